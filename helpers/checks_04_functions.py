"""Checks for the two exercises of ``04_training`` that test a function: a step in parts, and a ratio of times."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import nn

from helpers.cases import judge_function
from helpers.checks import Reply, call, exercise, number, right, value_of, wrong
from helpers.reading import plain

# --- 04b: one step, in parts -------------------------------------------------------

N_STEPS = 2  # gradients that are left over show in the second step


def reference_step(model, optimizer, parts, loss_of) -> float:
    """One optimizer step over all parts; returns the loss in nats a token."""
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
        n_tokens, nats = sum(map(len, parts)), 0.0
        for part in parts:
            if clear == "each part":
                optimizer.zero_grad()
            total = loss_of(model, part)
            (total / {"tokens": n_tokens, "means": len(part) * len(parts), "sum of means": len(part),
                      "sums": 1}[weight]).backward()
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
    (broken_step("means"), "the parts count alike, whatever their length: you took the mean of their means. Divide "
                           "each sum by the tokens of the whole batch."),
    (broken_step("sum of means"), "you added up the means of the parts. A mean cannot be added up: divide each sum by "
                                  "the tokens of the whole batch."),
    (broken_step("sums"), "you called backward on the sum of the losses. The gradient then grows with the number of "
                          "tokens: divide by the tokens of the whole batch."),
    (broken_step(clear="never"), "the second step is wrong: the gradient of the first is still in .grad. Call "
                                 "optimizer.zero_grad() once a step."),
    (broken_step(clear="each part"), "you clear the gradient inside the loop over the parts, so only the last part "
                                     "counts. Clear it once a step."),
    (broken_step(often=True), "you called optimizer.step() for each part. That is several small steps, not one step "
                              "over the whole batch."),
)


@exercise("04b")
def one_step_in_parts(answer: Any) -> Reply:
    """A function ``step(model, optimizer, parts, loss_of)``; it is tried with plain gradient descent."""
    weights, losses, held = _after(answer)
    expected, expected_losses, _ = _after(reference_step)
    if not torch.allclose(weights, expected):
        return wrong(_named(weights, expected))
    if None in losses:
        return wrong("the weights are right, but your function returns nothing. Return the loss in nats a token.")
    if not np.allclose([number(loss) for loss in losses], expected_losses):
        return wrong("the weights are right, and the loss that you return is not. It is the sum of the losses of all "
                     "parts, divided by all tokens, measured before the step.")
    if held:
        return wrong("the result is right, but you read the next part before calling backward on the one before. Then "
                     "what all parts keep is in memory at once, and nothing is saved. Call backward inside the loop.")
    return right("One step over all tokens, with one part in memory at a time.")


def _named(weights: torch.Tensor, expected: torch.Tensor) -> str:
    """What probably happened, from where the weights ended after each step."""
    if torch.equal(weights[0], weights[-1]):
        return "no weight has moved. Call backward on each part, then optimizer.step()."
    for mistake, reason in MISTAKES:
        if torch.allclose(weights, _after(mistake)[0]):
            return reason
    return ("the weights end somewhere else than after one step over the whole batch. In order: a loss for each part, "
            "backward, then one step, then clear.")


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
TIMES = ([(0.9, 1.0), (0.8, 1.0), (0.85, 1.0)], [(0.8, 1.0), (1.7, 2.0), (3.3, 4.0), (6.2, 8.0)],
         [(1.0, 2.0), (2.0, 1.0), (1.5, 1.0), (1.0, 1.25), (1.0, 1.1)])


def time_ratio(pairs, *, inverse=False, mean=lambda logs: logs.mean(), t=None, ddof=1, root=True, paired=True,
               logs=True) -> tuple[float, float, float]:
    """(ratio, low, high) of main over full over pairs of times; the options are the usual mistakes."""
    main, full = np.array(pairs, dtype=float).T
    if inverse:
        main, full = full, main
    d, n = (np.log(main / full) if logs else main / full), len(main)
    spread = d.std(ddof=ddof) if paired else math.hypot(np.log(main).std(ddof=1), np.log(full).std(ddof=1))
    half = (t or stats.t.ppf(0.975, n - 1)) * spread / (math.sqrt(n) if root else 1)
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
    reply = judge_function(lambda pairs: answer(pairs)[0], [(case,) for case in TIMES], _only(time_ratio), {
        _only(_variant(inverse=True)): "you divided full by main. Asked is main / full: below 1 means that main is "
                                       "faster.",
        _only(_ratio_of_means): "you divided two mean times. Then the slowest pair counts most, and what was slow may "
                                "have been the machine. Take the ratio in each pair first.",
        _only(_variant(logs=False)): "you took the plain mean of the ratios. Then 'twice' (2) weighs more than 'half' "
                                     "(0.5): one of each should give 1. Average the logarithms.",
        lambda pairs: math.log(time_ratio(pairs)[0]): "you return the mean logarithm. Turn it back into a ratio: "
                                                      "math.exp.",
    }, "")
    return _judge_bounds(answer) if reply.ok else reply


def _judge_bounds(answer: Callable) -> Reply:
    def symmetric(pairs):
        ratio, low, high = time_ratio(pairs)
        half = math.log(high / ratio)
        return ratio, ratio - half, ratio + half

    def logarithms(pairs):
        ratio, low, high = time_ratio(pairs)
        return ratio, math.log(low), math.log(high)

    return judge_function(answer, [(case,) for case in TIMES], time_ratio, {
        _variant(t=1.96): "the ratio is right. For the interval you took 1.96; for so few pairs t is larger: "
                          "stats.t.ppf(0.975, n - 1).",
        _variant(t=float(stats.norm.ppf(0.975))): "the ratio is right. For the interval you took the normal "
                                                  "distribution; for so few pairs t is larger: "
                                                  "stats.t.ppf(0.975, n - 1).",
        _variant(ddof=0): "the ratio is right. The spread is not: np.std divides by n unless you say ddof=1.",
        _variant(root=False): "the ratio is right. Divide the standard deviation by the square root of the number of "
                              "pairs.",
        _variant(paired=False): "the ratio is right. The interval takes the spread of the two plans one by one, so the "
                                "drift of the machine is in it. Take the spread of the differences within pairs.",
        logarithms: "the ratio is right. Both ends are still logarithms: math.exp.",
        symmetric: "the ratio is right. The half-width belongs to the logarithms: add it there, then math.exp.",
    }, "Ratios in pairs, averaged as logarithms: the drift of the machine cancels.")
