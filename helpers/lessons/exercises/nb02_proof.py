"""Checks of notebook 02 that ask for functions over time: the proof of a freeze, and a step on some rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from helpers.lessons.checks import AnswerFault, Reply, call, exercise, right, value_of, wrong
from helpers.lessons.exercises.nb02 import judge_values, practice_model
from helpers.models import choose_device

# --- 02e: the proof ----------------------------------------------------------------

WHOLE, FROZEN, ONE = (
    "transformer.wte.weight",
    "transformer.h.3.mlp.c_fc.weight",
    "transformer.h.1.ln_1.weight",
)
NO_NUMBER = "transformer.h.4.ln_2.weight"
LAST_BIT, EXCHANGED = "transformer.h.2.mlp.c_proj.weight", "transformer.h.5.attn.attention.q_proj.weight"
CHANGED = frozenset((WHOLE, FROZEN, ONE, NO_NUMBER, LAST_BIT, EXCHANGED))

# What a proof missed, the plainest first, and what it probably compares.
MISSED: tuple[tuple[frozenset[str], str], ...] = (
    (
        CHANGED - {FROZEN},
        "it sees that a frozen tensor moved, and none of those that train. A proof needs both: if nothing moved that "
        "should train, 'no frozen weight moved' proves nothing.",
    ),
    (
        frozenset({FROZEN}),
        "it sees what trains. But a tensor of block 3, which is frozen, moved as well, and your proof does not name "
        "it. That is the one it was made for.",
    ),
    (
        frozenset({ONE}),
        "it finds a tensor of which every number moved, and not one of which a single number did. One is enough: "
        "a tensor is the same only if *all* its numbers are.",
    ),
    (
        frozenset({LAST_BIT}),
        "it does not see a change in the last bit. 'Nearly equal' (allclose, a tolerance, rounding) lets a slow "
        "drift pass; a frozen weight has no reason to change at all.",
    ),
    (
        frozenset({EXCHANGED}),
        "two numbers of one tensor were exchanged, and it does not see it. A sum, a mean or a norm stays the same "
        "there: compare number by number.",
    ),
    (
        frozenset({NO_NUMBER}),
        "a weight became NaN, and it does not see it. Every comparison with NaN is False, so `difference > 0` is False "
        "too. Ask whether the two are *not* equal.",
    ),
)


@exercise("02e")
def proof_of_a_freeze(answer: Any) -> Reply:
    """Two functions: (model) keeps the values, (what was kept, model) returns the names that moved."""
    if not isinstance(answer, tuple | list) or len(answer) != 2:
        raise ValueError("two functions are asked for: (my_copies, my_moved)")
    keep, compare = answer
    model = proof_model().to(choose_device())  # where the lesson's model is: it goes on with this proof
    values = {name: p.detach().clone() for name, p in model.named_parameters()}
    kept = value_of(keep, model)
    reply = judge_values(model, values)
    if reply is not None:
        return reply
    untouched = _names(_compared(compare, kept, model))
    change(model)
    found = _names(_compared(compare, kept, model))
    return (
        _judge_found(found, frozenset(values), kept, model)
        or _judge_untouched(untouched)
        or right(
            "It sees one number, one bit, one NaN and an exchange, in what trains and in what is frozen."
        )
    )


def proof_model() -> nn.Module:
    """`practice_model`, with sums that are exact: one that an exchange keeps, and one that a last bit changes."""
    model = practice_model()
    model.get_parameter(LAST_BIT).data.fill_(1.0)
    exchanged = model.get_parameter(EXCHANGED).data.zero_()
    exchanged[0, :2] = torch.tensor([1.0, 2.0])
    return model


@torch.no_grad()
def change(model: nn.Module) -> None:
    """Change six tensors in place, as an optimizer does, each in a way of its own."""
    model.get_parameter(WHOLE).add_(0.5)
    model.get_parameter(FROZEN).add_(0.5)
    model.get_parameter(ONE)[0] += 0.5
    model.get_parameter(NO_NUMBER)[0] = torch.nan
    last_bit = model.get_parameter(LAST_BIT)
    last_bit.copy_(torch.nextafter(last_bit, last_bit + 1))
    exchanged = model.get_parameter(EXCHANGED)
    exchanged[0, :2] = exchanged[0, :2].flip(0)


def _compared(compare: Any, kept: Any, model: nn.Module) -> Any:
    try:
        return value_of(compare, kept, model)
    except AnswerFault as fault:
        if "ambiguous" in str(fault):
            raise AnswerFault(
                f"{fault} `==` and `!=` compare two tensors number by number; torch.equal gives one True or False."
            ) from fault
        raise


def _names(found: Any) -> frozenset[str]:
    """The names that a reader's comparison returned."""
    if not isinstance(found, set | frozenset | list | tuple) or not all(isinstance(n, str) for n in found):
        raise ValueError(
            "your second function must return a set of names, such as {'transformer.wte.weight'}: those that moved, "
            "not how many or whether"
        )
    return frozenset(found)


def _judge_found(found: frozenset[str], names: frozenset[str], kept: Any, model: nn.Module) -> Reply | None:
    if "lm_head.weight" in found:
        return wrong(
            "lm_head.weight is the second name of transformer.wte.weight: one tensor, tied. state_dict() lists it "
            "twice, and buffers too; named_parameters() lists each parameter once."
        )
    if found == names - CHANGED:
        return wrong("turned round: you return the names of what did *not* move.")
    if found & CHANGED <= {NO_NUMBER}:  # NaN is unequal to itself
        return wrong(_why_nothing_is_found(kept, model))
    missed = CHANGED - found
    for which, reason in MISSED:
        if which <= missed:
            return wrong(reason)
    if found - CHANGED:
        return wrong(f"it also names tensors that did not move, for example {min(found - CHANGED)}.")
    return None


def _why_nothing_is_found(kept: Any, model: nn.Module) -> str:
    if _memories(kept) & _memories(dict(model.named_parameters())):
        return (
            "six tensors moved, and your proof compares each weight with itself. What you kept is the "
            "weights' own memory. A parameter, .data, .detach(), state_dict() and .numpy() are no copies: add .clone()."
        )
    return (
        "six tensors moved, and your proof names none of them, or that with a NaN alone. Which values does it compare "
        "with which?"
    )


def _memories(kept: Any) -> set[int]:
    """Where the numbers of tensors and arrays are, in a dict or a list of them."""
    values = kept.values() if isinstance(kept, dict) else kept if isinstance(kept, list | tuple) else ()
    return {torch.as_tensor(v).data_ptr() for v in values if isinstance(v, torch.Tensor | np.ndarray)}


def _judge_untouched(found: frozenset[str]) -> Reply | None:
    if not found:
        return None
    return wrong(
        f"right where something moved. But of an untouched model it names {len(found)} tensors, for example "
        f"{min(found)}. Compare values, with torch.equal: `is` asks whether two are one object."
    )


# --- 02g: train some rows ----------------------------------------------------------

ROWS = [1, 4]
ROW_HINTS = {
    "a leaf": "Values of a parameter are changed inside `with torch.no_grad():`.",
    "out of bounds for dimension 1": "That is a column: weight[i] is a row, and weight[:, i] a column.",
}

# What the reader's step is tried with, easy ones first, and what moves the other rows if it fails there.
CASES: tuple[tuple[Callable[[nn.Parameter], Optimizer], bool, str], ...] = (
    (lambda w: SGD([w], lr=0.1), False, ""),
    (
        lambda w: AdamW([w], lr=0.1, weight_decay=0.1),
        False,
        "with plain SGD only your rows move. With AdamW the others shrink: you zero their gradients, and weight decay "
        "does not ask for a gradient. Absent is not zero, and one tensor cannot be absent in part.",
    ),
    (
        lambda w: AdamW([w], lr=0.1, weight_decay=0.0),
        True,
        "without momentum only your rows move. After an earlier step with all gradients the others coast on: AdamW "
        "remembers. Zeroing gradients cannot stop that; put the values back.",
    ),
)


@exercise("02g")
def step_on_some_rows(answer: Any) -> Reply:
    """A function (weight, rows, optimizer): one step that moves these rows alone."""
    for build, has_momentum, reason in CASES:
        reply = _judge_step(answer, build, has_momentum, reason)
        if reply is not None:
            return reply
    return right(
        "The rows move as the optimizer says, and the others not by one bit, decay or not, momentum or not."
    )


@torch.enable_grad()
def _judge_step(answer: Any, build: Callable, has_momentum: bool, reason: str) -> Reply | None:
    weight, optimizer = _practice_table(build, has_momentum)
    before, gradient = weight.detach().clone(), weight.grad.clone()
    rate = optimizer.param_groups[0]["lr"]
    ordinary = _after_a_step(build, has_momentum)
    call(answer, weight, list(ROWS), optimizer, hints=ROW_HINTS)
    moved = (weight.detach() != before).any(1)  # (rows,)
    wanted = torch.zeros(len(moved), dtype=torch.bool)
    wanted[ROWS] = True
    if not moved.any():
        return wrong("nothing moved at all. Either no step was taken, or you put every row back.")
    if torch.equal(moved, ~wanted):
        return wrong(f"turned round: rows {ROWS} stand still, and the others move.")
    if (moved & ~wanted).any():
        return wrong(
            reason
            or "all rows move. If you put old values back, one of three things has gone wrong. Without clone() the "
            "old values are the new ones. Put back *before* the step, they move all the same. And `weight = …` only "
            "gives the name to another tensor: write *into* the parameter, weight[rows] = … or weight.copy_(…)."
        )
    found = weight.detach()[ROWS]
    if torch.allclose(found, ordinary[ROWS], atol=1e-6):
        return None
    if torch.allclose(found, (before - rate * gradient)[ROWS], atol=1e-6):
        return wrong(
            f"the other rows stay. But rows {ROWS} move by rate times gradient, whatever the optimizer is. AdamW steps "
            "otherwise: let the optimizer take its step, and put the other rows back."
        )
    if torch.allclose(found, _after_a_step(build, has_momentum, decay=0.0)[ROWS], atol=1e-6):
        return wrong(
            f"the other rows stay. But rows {ROWS} move as without weight decay: an ordinary step of this optimizer "
            "shrinks them too. Leave its settings as they are, and put the other rows back."
        )
    return wrong(
        f"the other rows stay. But rows {ROWS} do not move as an ordinary step of this optimizer moves "
        "them, with its decay and its momentum."
    )


def _after_a_step(build: Callable, has_momentum: bool, decay: float | None = None) -> torch.Tensor:
    """The practice table after an ordinary step, which every row takes; ``decay`` replaces the optimizer's own."""
    weight, optimizer = _practice_table(build, has_momentum)
    if decay is not None:
        optimizer.param_groups[0]["weight_decay"] = decay
    optimizer.step()
    return weight.detach()


def _practice_table(build: Callable, has_momentum: bool) -> tuple[nn.Parameter, Optimizer]:
    """A table of 6 rows and 3 columns with a gradient in every row, and its optimizer."""
    dice = torch.Generator().manual_seed(5)
    weight = nn.Parameter(torch.randn(6, 3, generator=dice))
    optimizer = build(weight)
    if has_momentum:
        weight.grad = torch.randn(6, 3, generator=dice)
        optimizer.step()
    weight.grad = torch.randn(6, 3, generator=dice)
    return weight, optimizer
