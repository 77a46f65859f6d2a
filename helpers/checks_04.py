"""Checks of notebook 04: a rate for each plan, a run that survives a kill, sums instead of means."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from helpers.checks import FAULTS, Reply, call, exercise, judge_number, number, right, wrong
from helpers.reading import named

# --- 04c: which rate? --------------------------------------------------------------

WIDER = "wider"
NAN = math.nan
TWO_PLANS = {"full": {3e-5: 3.39, 1e-4: 3.35, 3e-4: 3.38}, "main": {1e-4: 3.36, 3e-4: 3.33, 1e-3: 3.37}}
UPPER_EDGE = {"main": {1e-4: 3.40, 3e-4: 3.35, 1e-3: 3.31}}
LOWER_EDGE = {"main": {1e-4: 3.30, 3e-4: 3.35, 1e-3: 3.41}}
DIVERGED = {"main": {1e-3: NAN, 1e-4: 3.36, 3e-4: 3.33}}
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
        return wrong(f"you gave both plans one rate, {two['full']}. Each plan has its own best rate: choose inside "
                     "the loop over the plans.")
    worst = {plan: max(losses, key=losses.get) for plan, losses in TWO_PLANS.items()}
    if two == worst:
        return wrong("you took the rate with the highest loss. A lower loss is better.")
    if two != {"full": 1e-4, "main": 3e-4}:
        return wrong(f"for {TWO_PLANS} your function says {two}. The lowest loss of each plan stands in the middle of "
                     "its grid.")
    for table in (UPPER_EDGE, LOWER_EDGE):
        found = _chosen(choose, table)["main"]
        if found != WIDER:
            best = min(table["main"], key=table["main"].get)
            return wrong(f"for {table['main']} you chose {found}. The lowest loss is that of {best}, at the edge of "
                         "the grid. Nobody has tried what lies beyond it, so nothing shows that it is best: say "
                         f"'{WIDER}'.")
    return _judge_awkward(choose)


def _judge_awkward(choose: Callable) -> Reply:
    found = _chosen(choose, DIVERGED)["main"]
    if found != 3e-4:
        return wrong(f"for {DIVERGED['main']} you chose {found}. NaN is a run that diverged. It must not win (a "
                     "comparison with NaN is always False, so min() may return it), and it is a neighbour that was "
                     "tried.")
    if _chosen(choose, ANY_ORDER)["main"] != 3e-4 or _chosen(choose, ANY_ORDER_EDGE)["main"] != WIDER:
        return wrong("your function trusts the order of the table. The edge is the smallest and the largest rate, "
                     "wherever they stand.")
    return right("A rate for each plan, never from the edge of a grid, and no prize for a run that diverged.")


def _chosen(choose: Callable, table: dict) -> dict:
    found = call(choose, {plan: dict(losses) for plan, losses in table.items()})
    if not isinstance(found, dict) or set(found) != set(table):
        raise ValueError(f"it should return a dict with the keys {sorted(table)}, and returned "
                         f"{found if isinstance(found, dict) else named(found)}")
    return {plan: WIDER if _says_wider(value) else number(value) for plan, value in found.items()}


def _says_wider(value: Any) -> bool:
    return isinstance(value, str) and value.strip().lower() == WIDER


# --- 04d: a run that survives a kill -----------------------------------------------

SAVED_AT, KILLED_AT, END = 3, 5, 8


@exercise("04d")
def resume_exactly(answer: Any) -> Reply:
    """A pair of functions: ``save(model, optimizer, step)`` and ``load(saved, model, optimizer)``."""
    save, load = _two_functions(answer)
    try:
        with torch.random.fork_rng(devices=[]):
            return _judge_resume(save, load)
    except FAULTS as error:
        return wrong(f"your functions stopped with {type(error).__name__}: {error}.")


def _two_functions(answer: Any) -> tuple[Callable, Callable]:
    pair = (answer["save"], answer["load"]) if isinstance(answer, dict) and {"save", "load"} <= set(answer) else answer
    if not isinstance(pair, (tuple, list)) or len(pair) != 2 or not all(callable(f) for f in pair):
        raise ValueError("two functions are asked for: answer_04d = (save, load)")
    return tuple(pair)


def _judge_resume(save: Callable, load: Callable) -> Reply:
    model, optimizer = _toy(seed=0)
    _toy_steps(model, optimizer, 0, SAVED_AT)
    then = _all_of(model, optimizer)
    saved = save(model, optimizer, SAVED_AT)
    _toy_steps(model, optimizer, SAVED_AT, KILLED_AT)  # work that the kill will lose
    lost = _all_of(model, optimizer)
    model, optimizer = _toy(seed=999)  # a new process: other weights, empty optimizer, other dice
    step = load(saved, model, optimizer)
    problem = _what_is_missing(_all_of(model, optimizer), then, lost) or _wrong_step(step)
    if problem:
        return wrong(problem)
    _toy_steps(model, optimizer, SAVED_AT, END)
    unbroken, its_optimizer = _toy(seed=0)
    _toy_steps(unbroken, its_optimizer, 0, END)
    if not _same(_all_of(model, optimizer)["weights"], _all_of(unbroken, its_optimizer)["weights"]):
        return wrong("all is back after loading, and yet the end differs. Does your function change anything else?")
    return right("Weights, moments, random state and place in the data: the end is the same, bit for bit.")


def _what_is_missing(now: dict, then: dict, lost: dict) -> str | None:
    """The first part of the run that is not what it was when it was saved."""
    for part, name in (("weights", "weights"), ("moments", "optimizer's moments")):
        if not _same(now[part], then[part]) and _same(now[part], lost[part]):
            return (f"the {name} that you saved went on changing while training went on: state_dict() hands out the "
                    "living tensors. Copy them (copy.deepcopy, or clone each).")
    if not _same(now["weights"], then["weights"]):
        return "the weights are not those of the moment of saving. Save model.state_dict() and load it."
    if not _same(now["moments"], then["moments"]):
        return ("the weights are back, but AdamW's moments are not: it starts again without its memory of earlier "
                "gradients. Save and load the optimizer's state_dict() as well.")
    if not _same(now["dice"], then["dice"]):
        return ("weights and moments are back, but the random state is not, so dropout strikes other numbers. Keep "
                "torch.get_rng_state(), and set it as the last thing that load does.")
    return None


def _wrong_step(step: Any) -> str | None:
    if step is None:
        return "all is back, but load returns nothing. It should return the step at which the run goes on."
    try:
        found = number(step)
    except ValueError as fault:
        return f"all is back, but load should return the step at which the run goes on: {fault}."
    if found == 0:
        return ("load returns step 0, so the data order starts from the beginning: the run sees its first batches "
                "twice. Save the step, and return it.")
    if found != SAVED_AT:
        return f"load returns step {step}, but the run was saved after step {SAVED_AT}. Return what was saved."
    return None


def _toy(seed: int):
    """A small model with dropout, so that the random state matters, and its optimizer."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.3), nn.Linear(8, 1))
    return model, torch.optim.AdamW(model.parameters(), lr=0.05)


def _toy_steps(model, optimizer, first: int, last: int) -> None:
    data = torch.arange(END * 12.0).reshape(END, 3, 4).sin()  # (steps, batch, features)
    model.train()
    for step in range(first, last):
        optimizer.zero_grad()
        (model(data[step]) - 1).square().mean().backward()
        optimizer.step()


def _all_of(model, optimizer) -> dict[str, list[torch.Tensor]]:
    """Copies of everything that decides how the run goes on."""
    moments = [torch.as_tensor(v).clone() for p in model.parameters() for _, v in sorted(optimizer.state[p].items())]
    return {"weights": [p.detach().clone() for p in model.parameters()], "moments": moments,
            "dice": [torch.get_rng_state()]}


def _same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


# --- 04a: unequal lengths ----------------------------------------------------------

MICRO_BATCHES = ((3.0, 400), (4.0, 80), (5.0, 20))  # (mean loss, tokens)


@exercise("04a")
def loss_over_unequal_lengths(answer: Any) -> Reply:
    """Three micro-batches: 400 tokens at 3.0 nats, 80 at 4.0, 20 at 5.0. The loss of the batch."""
    n_tokens = sum(n for _, n in MICRO_BATCHES)
    total = sum(mean * n for mean, n in MICRO_BATCHES)
    return judge_number(answer, total / n_tokens, "1,620 nats over 500 tokens. Each token counts once.", {
        4.0: "you took the mean of the three means. Then a token of the short micro-batch counts 20 times as much as "
             "one of the long. Add up nats and tokens, and divide once.",
        total: "you added up the nats of all tokens, which is right, and forgot to divide by the number of tokens.",
        total / 3: "you divided the sum of all nats by three micro-batches. Divide by the number of tokens.",
        12.0: "you added up the three means. A mean cannot be added up: turn each back into a sum first.",
        12.0 / n_tokens: "you divided the sum of the *means* by the tokens. First turn each mean back into a sum: "
                         "mean times its tokens.",
    }, within=5e-3, otherwise="How many nats does each micro-batch hold in all?")
