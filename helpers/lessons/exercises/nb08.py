"""Checks of notebook 08: what fits on a card, what two processes add up, what an optimizer must be told."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from helpers.lessons.checks import (
    FAULTS,
    AnswerFault,
    Reply,
    call,
    exercise,
    judge_number,
    right,
    value_of,
    wrong,
)
from helpers.lessons.reading import finite, items, number

# --- 08a: which plan trains 7 B in 24 GB? ------------------------------------------

CARD, ACTIVATIONS = 24.0, 5.0  # GB, 10^9 bytes
N_PARAMETERS = 6.738  # billions
TRAINABLE = {
    "norms": 0.0003,
    "1 block": 0.202,
    "2 blocks": 0.405,
    "4 blocks": 0.810,
    "mlp-out": 1.443,
    "full": 6.738,
}


def _fitting(trained: float = 16, frozen: float = 2, activations: float = ACTIVATIONS) -> frozenset[str]:
    """The plans that would fit with so many bytes a trained and a frozen number."""
    return frozenset(
        name
        for name, t in TRAINABLE.items()
        if trained * t + frozen * (N_PARAMETERS - t) + activations <= CARD
    )


def _mistakes() -> dict[frozenset[str], str]:
    """Wrong choice to what was left out; a choice that several mistakes give is explained by the first."""
    tries = {
        "you counted the frozen weights with 4 bytes: then no plan fits. They are kept in bfloat16, 2 bytes each.": _fitting(
            frozen=4
        ),
        "one choice too many: 2 blocks need 24.1 GB, a little more than there is. If you found less, you "
        "left out the activations (5 GB) or one of AdamW's two moments.": _fitting(activations=0),
        "you left out AdamW's two moments: 8 more bytes for each trained number.": _fitting(trained=8),
        "you counted weights only. A trained number also needs its gradient (4 bytes) and two moments (8), and the "
        "activations need 5 GB.": _fitting(trained=4, activations=0),
        "you counted every weight with 2 bytes and nothing else. Weights that train are kept in float32, with a "
        "gradient and two moments: 16 bytes in all.": _fitting(trained=2, activations=0),
    }
    found: dict[frozenset[str], str] = {}
    for words, choice in tries.items():
        found.setdefault(choice, words)
    return found


@exercise("08a")
def plans_that_fit(answer: Any) -> Reply:
    """The names of the plans that fit, in any collection, or as text with commas."""
    chosen = _names(answer)
    if chosen == _fitting():
        return right(
            "13.5 GB of frozen weights and 5 GB of activations leave room for about 0.39 billion trained "
            "numbers at 14 bytes more each."
        )
    known = _mistakes().get(chosen)
    if known:
        return wrong(known)
    if chosen == frozenset(TRAINABLE) - _fitting():
        return wrong("turned round: these are the plans that do not fit.")
    if (
        len(chosen) == 1
        and chosen < _fitting()
        and TRAINABLE[min(chosen)] == max(TRAINABLE[n] for n in _fitting())
    ):
        return wrong("this is the largest plan that fits. Asked are all that fit: the smaller ones too.")
    missing, extra = _fitting() - chosen, chosen - _fitting()
    return wrong(
        f"{'too few' if missing else 'too many'}: look again at {', '.join(sorted(missing or extra))}. Bytes "
        "= 16 a trained number + 2 a frozen one + 5 GB."
    )


def _words(answer: Any) -> list:
    if isinstance(answer, str):
        return answer.split(",")
    return list(answer) if isinstance(answer, Mapping) else items(answer, "names of plans")


def _names(answer: Any) -> frozenset[str]:
    words = _words(answer)
    names = frozenset(str(w).strip().lower().removeprefix("only-") for w in words if str(w).strip())
    unknown = names - set(TRAINABLE)
    if unknown:
        raise ValueError(f"{', '.join(sorted(unknown))}: the plans are called {', '.join(TRAINABLE)}")
    return names


# --- 08b: two processes, one gradient ----------------------------------------------

TOKENS = (500, 20, 300, 80, 100, 40, 10)  # of each window of a batch


@exercise("08b")
def one_gradient_of_two_processes(answer: Any) -> Reply:
    """A pair: ``share(n_rows, process, n_processes)`` and ``scaled(nats, n_here, n_all, n_processes)``."""
    if not isinstance(answer, (tuple, list)) or len(answer) != 2:
        return wrong("two functions are asked for: answer_08b = (share, scaled)")
    share, scaled = answer
    for n_rows, n_processes in ((4, 2), (5, 2), (7, 3), (8, 3)):
        problem = _wrong_share(share, n_rows, n_processes)
        if problem:
            return wrong(problem)
    return _judge_scale(scaled)


def _wrong_share(share: Callable, n_rows: int, n: int) -> str | None:
    shares = [[int(finite(r)) for r in items(value_of(share, n_rows, i, n), "rows")] for i in range(n)]
    rows = sorted(r for one in shares for r in one)
    case = f"{n_rows} rows, {n} processes: your shares are {shares}"
    outside = sorted(set(rows) - set(range(n_rows)))
    if -1 in outside:
        return f"{case}. There is no row -1. The processes are numbered from 0, as the rows are: take none away from it."
    if outside:
        return f"{case}. There is no row {outside[0]}: they are counted from 0 to {n_rows - 1}."
    if set(rows) != set(range(n_rows)) and len(rows) > len(set(rows)):
        return f"{case}. A row is read twice, and others never. Begin at the process's number, and step by n_processes."
    if len(rows) > len(set(rows)):
        return f"{case}. A row is read twice. Use the process's number to tell the shares apart."
    if rows != list(range(n_rows)):
        return (
            f"{case}. A row is left out: {n_rows} rows cannot always be shared equally, and none may be lost."
        )
    if max(map(len, shares)) - min(map(len, shares)) > 1:
        return f"{case}. One process would wait for the other: let the sizes differ by one at most."
    return None


def _judge_scale(scaled: Callable) -> Reply:
    halves = (TOKENS[:4], TOKENS[4:])  # 900 and 150 tokens
    nats, n_here = [3.0 * sum(halves[0]), 5.0 * sum(halves[1])], [sum(h) for h in halves]
    n_all = sum(n_here)
    goal = sum(nats) / n_all
    sums = [torch.tensor(s, dtype=torch.float64, requires_grad=True) for s in nats]  # as a loss is
    values = [value_of(scaled, s, n, n_all, 2) for s, n in zip(sums, n_here, strict=True)]
    found = sum(map(number, values)) / 2  # DDP's mean
    told = {
        "Each token of the shorter share counts six times as much: you divided by the process's own tokens. Divide by "
        "those of all processes.": sum(s / n for s, n in zip(nats, n_here, strict=True)) / 2,
        "Half of it: DDP takes the *mean* over processes, after your division. Multiply by their number.": goal
        / 2,
        "A quarter of it: you divided by the number of processes, and DDP does so again. Multiply by it instead.": goal
        / 4,
        "You multiplied by the process's own tokens. nats is a sum over them already.": sum(
            s * n / n_all for s, n in zip(nats, n_here, strict=True)
        )
        / 2,
        "You divided by your own tokens and multiplied by the number of processes. Divide by the tokens of all.": sum(
            s / n for s, n in zip(nats, n_here, strict=True)
        ),
        "You did not divide by the tokens: a sum of nats.": sum(nats) / 2,
        "You multiplied by the number of processes, and did not divide by the tokens.": sum(nats),
    }
    if math.isclose(found, goal, rel_tol=1e-6):
        if not all(isinstance(value, torch.Tensor) and value.requires_grad for value in values):
            return wrong(
                "the number is right, but it has no gradient, so backward() can do nothing. nats is a tensor: leave out "
                "float(), .item() and torch.tensor()."
            )
        return right(
            "Every row once, every token once: the gradient is that of one process with the whole batch."
        )
    reason = next(
        (words for words, value in told.items() if math.isclose(found, value, rel_tol=1e-6)),
        "DDP gives the mean of what the processes return. What must each return for nats / tokens?",
    )
    return wrong(f"one process would get {goal:.4f} nats per token, two get {found:.4f}. {reason}")


# --- 08c: unfreeze layer by layer --------------------------------------------------


UNFREEZE_HINTS = {
    "'bool' object is not callable": "requires_grad is the flag itself; requires_grad_(…) sets it.",
    "param_group must be a dict": 'A group is a dict: {"params": new}.',
    "more than one parameter group": "Give each tensor to the optimizer once: the whole list in one group.",
}


@exercise("08c")
def unfreeze_with_one_optimizer(answer: Any) -> Reply:
    """A function ``unfreeze(optimizer, new)`` that lets the tensors ``new`` train from here on."""
    model, optimizer = _half_trained()
    new, old = list(model[0].parameters()), list(model[1].parameters())
    values = [p.detach().clone() for p in model.parameters()]
    state = {p: {k: torch.as_tensor(v).clone() for k, v in optimizer.state[p].items()} for p in old}
    returned = call(answer, optimizer, new, hints=UNFREEZE_HINTS)
    used = returned if isinstance(returned, torch.optim.Optimizer) else optimizer
    if any(not torch.equal(a, p) for a, p in zip(values, model.parameters(), strict=True)):
        return wrong("your function changed weights. It should change only what trains.")
    if not all(p.requires_grad for p in new):
        return wrong(
            "new tensors still have requires_grad False: they get no gradient, so they never move. Set it for each "
            "of them, with requires_grad_(True), and not for copies."
        )
    if not all(p.requires_grad for p in old):
        return wrong(
            "the tensors that trained before are frozen now. They must go on: change the new ones alone."
        )
    held = [p for group in used.param_groups for p in group["params"]]
    if not all(any(p is q for q in held) for p in new):
        return wrong(
            "the new tensors have a gradient, but the optimizer does not hold them, so they never move. Give "
            "them to it with add_param_group. (If you built a new one: outside your function nobody has it.)"
        )
    if not all(any(p is q for q in held) for p in old):
        return wrong(
            "the optimizer no longer holds the tensors that trained before. Add the new ones to them."
        )
    if any(_forgot(used.state.get(p, {}), state[p]) for p in old):
        return wrong(
            "the moments of the tensors that trained before are gone: a new optimizer starts without them. "
            "Keep the old optimizer, and add a group to it."
        )
    return _judge_moves(model, used, new)


def _forgot(now: dict, then: dict) -> bool:
    return any(
        key not in now or not torch.equal(torch.as_tensor(now[key]), value) for key, value in then.items()
    )


def _judge_moves(model: nn.Module, optimizer, new: list) -> Reply:
    before = [p.detach().clone() for p in new]
    try:
        _toy_steps(model, optimizer, 2)
    except FAULTS as error:
        raise AnswerFault(f"the next step stopped with {type(error).__name__}: {error}") from error
    if any(torch.equal(a, p) for a, p in zip(before, new, strict=True)):
        return wrong("a new tensor did not move in the next two steps. Is its learning rate 0?")
    return right("The new tensors move, and the old ones go on with the moments that they had.")


def _half_trained():
    """Two layers; the second has trained for three steps, the first is frozen."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))
    model[0].requires_grad_(False)
    optimizer = torch.optim.AdamW(model[1].parameters(), lr=0.05)
    _toy_steps(model, optimizer, 3)
    return model, optimizer


def _toy_steps(model: nn.Module, optimizer, n: int) -> None:
    for k in range(n):
        optimizer.zero_grad()
        (model(torch.arange(6.0).reshape(2, 3).sin() + k) - 1).square().mean().backward()
        optimizer.step()


# --- 08d: how many cards? ----------------------------------------------------------

STATE, GATHERED, OWN_ACTIVATIONS, USABLE = 1104, 20, 12, 72  # GB


@exercise("08d")
def cards_for_70b(answer: Any) -> Reply:
    room = USABLE - GATHERED - OWN_ACTIVATIONS
    return judge_number(
        answer,
        math.ceil(STATE / room),
        "40 GB of each card are left for its share of 1,104 GB.",
        {
            math.ceil(
                STATE / USABLE
            ): "you shared out everything, or nothing but the state. Gathered weights (20 GB) and "
            "activations (12 GB) stand on every card in full.",
            math.ceil(
                STATE / (USABLE - OWN_ACTIVATIONS)
            ): "you left out the gathered weights: 20 GB on every card.",
            math.ceil(STATE / (USABLE - GATHERED)): "you left out the activations: FSDP does not share them.",
            math.ceil(
                STATE / (80 - GATHERED - OWN_ACTIVATIONS)
            ): "you filled the card to its last byte. Count with 72.",
            math.ceil(
                STATE / 4 / room
            ): "you counted the weights only. Gradients and two moments are three times as much again.",
            math.ceil(
                STATE / 2 / room
            ): "14 may be two things: half of the state, without AdamW's two moments; or all "
            "80 GB of each card for the state. 72 GB may be filled, and 32 of them are taken.",
            **dict.fromkeys(
                (STATE / 80, STATE / USABLE),
                "gathered weights (20 GB) and activations (12 GB) stand on every card in "
                "full: of 72 GB only a part is left for the state. And a card cannot be divided.",
            ),
            STATE / room: "27.6 is right, and there is no 0.6 of a card. Which whole number is enough?",
            math.ceil(STATE / room)
            + 1: "one card too many: 28 hold 1,120 GB of the state, and 1,104 are needed. The 32 GB of gathered weights "
            "and activations are taken from each card; they are no part of the 1,104 that is shared out.",
            32: "28 cards are enough, also if they do not fill whole machines of eight.",
            room: "this is what is left on each card, in GB. How many such parts make the state?",
            STATE // room: "you rounded down: so many cards are a little too few.",
        },
        within=1e-6,
        otherwise="Which of the three parts gets smaller with the number of cards?",
    )
