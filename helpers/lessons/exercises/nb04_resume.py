"""Check of notebook 04: a run that is killed, and goes on as if it had not been."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from helpers.lessons.checks import FAULTS, Reply, exercise, right, wrong
from helpers.lessons.reading import number

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
    pair = (
        (answer["save"], answer["load"])
        if isinstance(answer, dict) and {"save", "load"} <= set(answer)
        else answer
    )
    if not isinstance(pair, (tuple, list)) or len(pair) != 2 or not all(callable(f) for f in pair):
        raise ValueError("two functions are asked for: answer_04d = (save, load)")
    if [getattr(f, "__name__", "") for f in pair] == ["load", "save"]:
        raise ValueError("save comes first: answer_04d = (save, load)")
    return tuple(pair)


def _judge_resume(save: Callable, load: Callable) -> Reply:
    model, optimizer = _toy(seed=0)
    _toy_steps(model, optimizer, 0, SAVED_AT)
    then = _all_of(model, optimizer)
    saved = save(model, optimizer, SAVED_AT)
    if saved is None:
        return wrong(
            "save returns nothing, so load has nothing to put back. Return one value that holds all."
        )
    _toy_steps(model, optimizer, SAVED_AT, KILLED_AT)  # work that the kill will lose
    lost = _all_of(model, optimizer)
    model, optimizer = _toy(seed=999)  # a new process: other weights, empty optimizer, other dice
    fresh = _all_of(model, optimizer)
    step = load(saved, model, optimizer)
    problem = _what_is_missing(_all_of(model, optimizer), then, lost, fresh) or _wrong_step(step)
    if problem:
        return wrong(problem)
    _toy_steps(model, optimizer, SAVED_AT, END)
    unbroken, its_optimizer = _toy(seed=0)
    _toy_steps(unbroken, its_optimizer, 0, END)
    if not _same(_all_of(model, optimizer)["weights"], _all_of(unbroken, its_optimizer)["weights"]):
        return wrong(
            "all is back after loading, and yet the end differs. Does your function change anything else?"
        )
    return right("Weights, moments, random state and place in the data: the end is the same, bit for bit.")


def _what_is_missing(now: dict, then: dict, lost: dict, fresh: dict) -> str | None:
    """The first part of the run that is not what it was when it was saved; ``fresh`` is the new one before loading."""
    for part, name in (("weights", "weights"), ("moments", "optimizer's moments")):
        if not _same(now[part], then[part]) and _same(now[part], lost[part]):
            return (
                f"the {name} that you saved went on changing while training went on: state_dict() hands out the "
                "living tensors. Copy them (copy.deepcopy, or clone each)."
            )
    if _same(now["weights"], fresh["weights"]):
        return (
            "the weights are not those of the moment of saving: load leaves the new model as it was. Save model.state_dict() "
            "and load it into the model that is given, model.load_state_dict(…). (`model = …` only gives the name to "
            "another one.)"
        )
    if not _same(now["weights"], then["weights"]):
        return "the weights are not those of the moment of saving. Save model.state_dict() and load it."
    if not _same(now["moments"], then["moments"]):
        return (
            "the weights are back, but AdamW's moments are not: it starts again without its memory of earlier "
            "gradients. Save and load the optimizer's state_dict() as well."
        )
    if not _same(now["dice"], then["dice"]):
        if not _same(now["dice"], fresh["dice"]):
            return (
                "weights and moments are back, and your load changes the random state, but not to what it was when the "
                "run was saved. A seed would begin the numbers anew, and a number drawn later moves them on. Keep "
                "torch.get_rng_state(), and set it as the last thing that load does."
            )
        return (
            "weights and moments are back, but the random state is not, so dropout strikes other numbers. Keep "
            "torch.get_rng_state(), and set it as the last thing that load does."
        )
    return None


def _wrong_step(step: Any) -> str | None:
    if step is None:
        return "all is back, but load returns nothing. It should return the step at which the run goes on."
    try:
        found = number(step)
    except ValueError as fault:
        return f"all is back, but load should return the step at which the run goes on: {fault}."
    if found == 0:
        return (
            "load returns step 0, so the data order starts from the beginning: the run sees its first batches "
            "twice. Save the step, and return it."
        )
    if found != SAVED_AT:
        return (
            f"load returns step {step}, but the run was saved after step {SAVED_AT}. Return what was saved."
        )
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
    moments = [
        torch.as_tensor(v).clone() for p in model.parameters() for _, v in sorted(optimizer.state[p].items())
    ]
    return {
        "weights": [p.detach().clone() for p in model.parameters()],
        "moments": moments,
        "dice": [torch.get_rng_state()],
    }


def _same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
