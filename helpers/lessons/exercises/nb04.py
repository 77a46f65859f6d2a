"""Checks of notebook 04: a rate for each plan, a run that survives a kill, sums instead of means."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import nn

from helpers.lessons.cases import judge_function
from helpers.lessons.checks import Reply, call, exercise, judge_number, right, value_of, wrong
from helpers.lessons.reading import named, number, plain

# --- 04c: which rate? --------------------------------------------------------------

WIDER = "wider"
NAN = math.nan
TWO_PLANS = {"full": {3e-5: 3.39, 1e-4: 3.35, 3e-4: 3.38}, "main": {1e-4: 3.36, 3e-4: 3.33, 1e-3: 3.37}}
UPPER_EDGE = {"main": {1e-4: 3.40, 3e-4: 3.35, 1e-3: 3.31}}
LOWER_EDGE = {"main": {1e-4: 3.30, 3e-4: 3.35, 1e-3: 3.41}}
DIVERGED = {"main": {1e-3: NAN, 1e-4: 3.36, 3e-4: 3.33}}
DIVERGED_INSIDE = {"main": {3e-4: NAN, 1e-4: 3.40, 1e-3: 3.33, 3e-3: 3.37}}  # min() returns the first
ANY_ORDER = {"main": {3e-4: 3.33, 1e-3: 3.37, 1e-4: 3.36}}
ANY_ORDER_EDGE = {"main": {3e-4: 3.35, 1e-3: 3.31, 1e-4: 3.40}}


@exercise("04c")
def rate_of_each_plan(answer: Any) -> Reply:
    """A function from ``{plan: {rate: loss}}`` to ``{plan: rate or "wider"}``."""
    if not callable(answer):
        return wrong("give the function itself, answer_04c = choose, without brackets and without a table.")
    return _judge_choice(answer)


def _judge_choice(choose: Callable) -> Reply:
    two = _chosen(choose, TWO_PLANS)
    if two["full"] == two["main"] != WIDER:
        return wrong(
            f"you gave both plans one rate, {two['full']}. Each plan has its own best rate: choose inside "
            "the loop over the plans."
        )
    worst = {plan: max(losses, key=losses.get) for plan, losses in TWO_PLANS.items()}
    if two == worst:
        return wrong("you took the rate with the highest loss. A lower loss is better.")
    if set(two.values()) == {WIDER}:
        return wrong(
            f"for {TWO_PLANS} you say '{WIDER}' for both plans. There the *highest* losses are at the edge, and the "
            "lowest are not. A lower loss is better."
        )
    if two == {plan: min(losses.values()) for plan, losses in TWO_PLANS.items()}:
        return wrong("you return the lowest loss of each plan. Asked is the rate that gave it.")
    for plan, rate in two.items():
        if rate != WIDER and rate not in TWO_PLANS[plan]:
            return wrong(
                f"for {plan} you chose {rate:g}, which was not tried with this plan. Choose among a plan's own rates: "
                "inside the loop over the plans."
            )
    if two != {"full": 1e-4, "main": 3e-4}:
        return wrong(
            f"for {TWO_PLANS} your function says {two}. The lowest loss of each plan stands in the middle of "
            "its grid."
        )
    for table in (UPPER_EDGE, LOWER_EDGE):
        found = _chosen(choose, table)["main"]
        if found != WIDER:
            best = min(table["main"], key=table["main"].get)
            return wrong(
                f"for {table['main']} you chose {found}. The lowest loss is that of {best}, at the edge of "
                "the grid. Nobody has tried what lies beyond it, so nothing shows that it is best: say "
                f"'{WIDER}'."
            )
    return _judge_awkward(choose)


def _judge_awkward(choose: Callable) -> Reply:
    if _chosen(choose, ANY_ORDER)["main"] != 3e-4 or _chosen(choose, ANY_ORDER_EDGE)["main"] != WIDER:
        return wrong(
            "your function trusts the order of the table. The edge is the smallest and the largest rate, "
            "wherever they stand."
        )
    inside, found = (_chosen(choose, table)["main"] for table in (DIVERGED_INSIDE, DIVERGED))
    if inside != 1e-3:
        return wrong(
            f"for {DIVERGED_INSIDE['main']} you chose {inside}. NaN is a run that diverged, and it must not win. A "
            "comparison with NaN is always False, with math.nan too, so min() may return it: math.isnan finds it."
        )
    if found != 3e-4:
        return wrong(
            f"for {DIVERGED['main']} you chose {found}. A run that diverged is a neighbour that was tried: its rate counts "
            "when you ask for the edge."
        )
    return right("A rate for each plan, never from the edge of a grid, and no prize for a run that diverged.")


def _chosen(choose: Callable, table: dict) -> dict:
    found = call(choose, {plan: dict(losses) for plan, losses in table.items()})
    if not isinstance(found, dict) or set(found) != set(table):
        raise ValueError(
            f"it should return a dict with the keys {sorted(table)}, and returned "
            f"{found if isinstance(found, dict) else named(found)}"
        )
    return {plan: _rate(value) for plan, value in found.items()}


def _rate(value: Any) -> float | str:
    """A rate, or the word "wider".

    Raises:
        ValueError: it is neither.
    """
    try:
        return WIDER if _says_wider(value) else number(value)
    except ValueError:
        raise ValueError(
            f"for a plan it should return a rate or the word '{WIDER}', and returned {named(value)}"
        ) from None


def _says_wider(value: Any) -> bool:
    return isinstance(value, str) and value.strip().lower() == WIDER


# --- 04a: unequal lengths ----------------------------------------------------------

MICRO_BATCHES = ((3.0, 400), (4.0, 80), (5.0, 20))  # (mean loss, tokens)


@exercise("04a")
def loss_over_unequal_lengths(answer: Any) -> Reply:
    """Three micro-batches: 400 tokens at 3.0 nats, 80 at 4.0, 20 at 5.0. The loss of the batch."""
    n_tokens = sum(n for _, n in MICRO_BATCHES)
    total = sum(mean * n for mean, n in MICRO_BATCHES)
    return judge_number(
        answer,
        total / n_tokens,
        "1,620 nats over 500 tokens. Each token counts once.",
        {
            4.0: "you took the mean of the three means. Then a token of the short micro-batch counts 20 times as much as "
            "one of the long. Add up nats and tokens, and divide once.",
            total: "you added up the nats of all tokens, which is right, and forgot to divide by the number of tokens.",
            total
            / 3: "you divided the sum of all nats by three micro-batches. Divide by the number of tokens.",
            4.76: "the tokens stand in the wrong order: the first micro-batch has 400, the last has 20.",
            3.0: "this is the loss of the first micro-batch alone. The tokens of the other two count as well.",
            sum(
                mean / n for mean, n in MICRO_BATCHES
            ): "you divided each mean by its tokens. A mean times its tokens is the sum of nats.",
            **{
                total
                / (
                    n_tokens - n
                ): f"1,620 nats are right. But the batch has {n_tokens} tokens, and you divided "
                f"by {n_tokens - n}."
                for _, n in MICRO_BATCHES
            },
            sum(mean / n for mean, n in MICRO_BATCHES)
            / sum(
                1 / n for _, n in MICRO_BATCHES
            ): "your weights are turned round: you weigh each mean by one over its "
            "tokens. Weigh it by its tokens.",
            total
            / 400: "1,620 nats are right. But the batch has 500 tokens, and you divided by 400, those of the first "
            "micro-batch.",
            12.0: "you added up the three means. A mean cannot be added up: turn each back into a sum first.",
            12.0
            / n_tokens: "you divided the sum of the *means* by the tokens. First turn each mean back into a sum: "
            "mean times its tokens.",
        },
        within=5e-3,
        otherwise="How many nats does each micro-batch hold in all?",
    )


# --- Checks for the two exercises of ``04_training`` that test a function: a step in parts, and a ratio of times ---


# --- 04b: one step, in parts -------------------------------------------------------

N_STEPS = 2  # gradients that are left over show in the second step


def reference_step(model, optimizer, parts, loss_of) -> float:
    """One optimizer step over all parts; returns the loss in nats per token."""
    n_tokens, nats = sum(len(part) for part in parts), 0.0
    for part in parts:
        total = loss_of(model, part)
        (total / n_tokens).backward()
        nats += total.item()
    optimizer.step()
    optimizer.zero_grad()
    return nats / n_tokens


def broken_step(weight: str = "tokens", clear: str = "after", often: bool = False) -> Callable:
    """A step with one fault: how a part is weighted, when gradients are cleared, a step for each part."""

    def step(model, optimizer, parts, loss_of) -> float:
        n_tokens, n_so_far, nats = sum(map(len, parts)), 0, 0.0
        for part in parts:
            if clear == "each part":
                optimizer.zero_grad()
            total = loss_of(model, part)
            n_so_far += len(part)
            (
                total
                / {
                    "tokens": n_tokens,
                    "means": len(part) * len(parts),
                    "sum of means": len(part),
                    "sums": 1,
                    "parts": len(parts),
                    "so far": n_so_far,
                }[weight]
            ).backward()
            nats += total.item()
            if often:
                optimizer.step()
                optimizer.zero_grad()
        if not often:
            optimizer.step()
        if clear == "after":
            optimizer.zero_grad()
        return nats / n_tokens

    return step


MISTAKES = (
    (
        broken_step("means"),
        "the parts count alike, whatever their length: you took the mean of their means. Divide "
        "each sum by the tokens of the whole batch.",
    ),
    (
        broken_step("sum of means"),
        "you added up the means of the parts. A mean cannot be added up: divide each sum by "
        "the tokens of the whole batch.",
    ),
    (
        broken_step("sums"),
        "you called backward on the sum of the losses. The gradient then grows with the number of "
        "tokens: divide by the tokens of the whole batch.",
    ),
    (
        broken_step("parts"),
        "you divided by the number of parts. loss_of gives a sum over tokens: divide by the tokens of the whole batch.",
    ),
    (
        broken_step("so far"),
        "you divided by the tokens read so far, so the first parts count too much. Count the tokens of all parts "
        "before the loop.",
    ),
    (
        broken_step(clear="never"),
        "the second step is wrong: the gradient of the first is still in .grad. Call "
        "optimizer.zero_grad() once a step.",
    ),
    (
        broken_step(clear="each part"),
        "you clear the gradient inside the loop over the parts, so only the last part "
        "counts. Clear it once a step.",
    ),
    (
        broken_step(often=True),
        "you called optimizer.step() for each part. That is several small steps, not one step "
        "over the whole batch.",
    ),
)


@exercise("04b")
def one_step_in_parts(answer: Any) -> Reply:
    """A function ``step(model, optimizer, parts, loss_of)``; it is tried with plain gradient descent."""
    weights, losses, held = _after(answer)
    expected, expected_losses, _ = _after(reference_step)
    if not torch.allclose(weights, expected):
        return wrong(_named(weights, expected))
    if None in losses:
        return wrong(
            "the weights are right, but your function returns nothing. Return the loss in nats per token."
        )
    if not np.allclose([number(loss) for loss in losses], expected_losses):
        return wrong(
            "the weights are right, and the loss that you return is not. It is the sum of the losses of all "
            "parts, divided by all tokens, measured before the step."
        )
    if held:
        return wrong(
            "the result is right, but you read the next part before calling backward on the one before. Then "
            "what all parts keep is in memory at once, and nothing is saved. Call backward inside the loop."
        )
    return right("One step over all tokens, with one part in memory at a time.")


def _named(weights: torch.Tensor, expected: torch.Tensor) -> str:
    """What probably happened, from where the weights ended after each step."""
    if torch.equal(weights[0], weights[-1]):
        return "no weight has moved. Call backward on each part, then optimizer.step()."
    for mistake, reason in MISTAKES:
        if torch.allclose(weights, _after(mistake)[0]):
            return reason
    return (
        "the weights end somewhere else than after one step over the whole batch. In order: a loss for each part, "
        "backward, then one step, then clear."
    )


def _after(step: Callable) -> tuple[torch.Tensor, list, bool]:
    """Weights before and after each step, the losses returned, and whether two parts were held at once."""
    model = nn.Linear(3, 1, dtype=torch.float64)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.5, -0.2, 0.1]]))
        model.bias.fill_(0.3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    seen, losses, waiting, held = [_flat(model)], [], set(), []

    def loss_of(model, part):  # the sum over the tokens of a part, as `next_token_loss` gives it
        held.append(bool(waiting))
        total, ticket = (model(part).squeeze(-1) - part.sum(-1)).square().sum(), object()
        if total.requires_grad:
            waiting.add(ticket)
            total.register_hook(lambda gradient: waiting.discard(ticket))
        return total

    for i in range(N_STEPS):
        parts = torch.arange(i, i + 24, dtype=torch.float64).reshape(8, 3).sin().split([5, 2, 1])
        losses.append(call(step, model, optimizer, list(parts), loss_of))
        waiting.clear()
        seen.append(_flat(model))
    return torch.stack(seen), losses, any(held)


def _flat(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten().clone() for p in model.parameters()])


# --- 04e: a ratio of times ---------------------------------------------------------

# (main, full) in seconds. In the second list the machine grows slower from pair to pair.
TIMES = (
    [(0.9, 1.0), (0.8, 1.0), (0.85, 1.0)],
    [(0.8, 1.0), (1.7, 2.0), (3.3, 4.0), (6.2, 8.0)],
    [(1.0, 2.0), (2.0, 1.0), (1.5, 1.0), (1.0, 1.25), (1.0, 1.1)],
)


def time_ratio(
    pairs,
    *,
    inverse=False,
    mean=lambda logs: logs.mean(),
    t=None,
    ddof=1,
    root=True,
    paired=True,
    logs=True,
    level=0.975,
    lost=1,
) -> tuple[float, float, float]:
    """(ratio, low, high) of main over full over pairs of times; the options are the usual mistakes."""
    main, full = np.array(pairs, dtype=float).T
    if inverse:
        main, full = full, main
    d, n = (np.log(main / full) if logs else main / full), len(main)
    spread = d.std(ddof=ddof) if paired else math.hypot(np.log(main).std(ddof=1), np.log(full).std(ddof=1))
    half = (t or stats.t.ppf(level, n - lost)) * spread / (math.sqrt(n) if root else 1)
    middle = mean(d)
    bounds = middle, middle - half, middle + half
    return tuple(float(np.exp(x)) if logs else float(x) for x in bounds)


def _variant(**changes) -> Callable:
    return lambda pairs: time_ratio(pairs, **changes)


def _ratio_of_means(pairs):
    main, full = np.array(pairs, dtype=float).T
    return (float(main.mean() / full.mean()), *time_ratio(pairs)[1:])


def _only(ratio: Callable) -> Callable:
    """The ratio alone, whatever the bounds are: to find a mistake in the ratio."""
    return lambda pairs: ratio(pairs)[0]


@exercise("04e")
def ratio_of_times(answer: Any) -> Reply:
    """A function from [(main, full), …] in seconds to (ratio, low, high)."""
    first = plain(value_of(answer, list(TIMES[0])))
    if not isinstance(first, (list, tuple)) or len(first) != 3:
        return wrong("return three numbers: the ratio, and the two ends of its interval.")
    low, ratio, _ = map(number, first)
    if math.isclose(ratio, time_ratio(TIMES[0])[0]) and low < ratio:
        return wrong(
            "the ratio stands in the middle. Asked is the ratio first, then the lower and the upper end."
        )
    reply = judge_function(
        lambda pairs: answer(pairs)[0],
        [(case,) for case in TIMES],
        _only(time_ratio),
        {
            _only(
                _variant(inverse=True)
            ): "you divided full by main. Asked is main / full: below 1 means that main is faster.",
            _only(
                _ratio_of_means
            ): "you divided two mean times. Then the slowest pair counts most, and what was slow may "
            "have been the machine. Take the ratio in each pair first.",
            _only(
                _variant(logs=False)
            ): "you took the plain mean of the ratios. Then 'twice' (2) weighs more than 'half' "
            "(0.5): one of each should give 1. Average the logarithms.",
            lambda pairs: math.log(
                time_ratio(pairs)[0]
            ): "you return the mean logarithm. Turn it back into a ratio: math.exp.",
        },
        "",
    )
    return _judge_bounds(answer) if reply.ok else reply


def _judge_bounds(answer: Callable) -> Reply:
    def symmetric(pairs):
        ratio, low, high = time_ratio(pairs)
        half = math.log(high / ratio)
        return ratio, ratio - half, ratio + half

    def logarithms(pairs):
        ratio, low, high = time_ratio(pairs)
        return ratio, math.log(low), math.log(high)

    return judge_function(
        answer,
        [(case,) for case in TIMES],
        time_ratio,
        {
            _variant(
                t=1.96
            ): "the ratio is right. For the interval you took 1.96; for so few pairs t is larger: "
            "stats.t.ppf(0.975, n - 1).",
            _variant(
                t=float(stats.norm.ppf(0.975))
            ): "the ratio is right. For the interval you took the normal "
            "distribution; for so few pairs t is larger: "
            "stats.t.ppf(0.975, n - 1).",
            _variant(
                ddof=0
            ): "the ratio is right. The spread is not: np.std divides by n unless you say ddof=1.",
            _variant(
                lost=0
            ): "the ratio is right. For the interval you took n degrees of freedom: one is used up by the mean, n - 1.",
            _variant(
                level=0.95
            ): "the ratio is right. You took 0.95 for t: that leaves 5% on *each* side. Take 0.975 for an interval "
            "of 95%.",
            lambda pairs: (
                time_ratio(pairs)[0],
                *time_ratio(pairs)[:0:-1],
            ): "the two ends are right, and their order is not: the lower one comes first.",
            _variant(
                root=False
            ): "the ratio is right. Divide the standard deviation by the square root of the number of pairs.",
            _variant(
                paired=False
            ): "the ratio is right. The interval takes the spread of the two plans one by one, so the "
            "drift of the machine is in it. Take the spread of the differences within pairs.",
            logarithms: "the ratio is right. Both ends are still logarithms: math.exp.",
            symmetric: "the ratio is right. The half-width belongs to the logarithms: add it there, then math.exp.",
        },
        "Ratios in pairs, averaged as logarithms: the drift of the machine cancels.",
    )
