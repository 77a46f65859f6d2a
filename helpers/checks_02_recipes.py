"""Checks of notebook 02: freezing code that the reader writes.

02d freezes one block, 02f trains some rows of a table. Each function is tried on small cases that
separate the usual mistakes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from helpers.checks import FAULTS, AnswerFault, Reply, call, exercise, right, wrong
from helpers.models import build_model, mini_config

# --- 02d: freeze one block ---------------------------------------------------------

N_BLOCKS = 12  # so that "h.1" is in the names of blocks 1, 10 and 11


def practice_model() -> nn.Module:
    """A GPT-Neo of 12 very narrow blocks. Block 3 is frozen already, and every other parameter has a gradient."""
    model = build_model(mini_config(vocab_size=16, hidden_size=4, num_layers=N_BLOCKS, num_heads=2, intermediate_size=8,
                                    max_position_embeddings=8, window_size=4,
                                    attention_types=[[["global", "local"], N_BLOCKS // 2]]))
    model.transformer.h[3].requires_grad_(False)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
    return model


@exercise("02d")
def freeze_one_block(answer: Any) -> Reply:
    """A function (model, index) that freezes one block and nothing else."""
    model = practice_model()
    values = {name: p.detach().clone() for name, p in model.named_parameters()}
    call(answer, model, 1)
    return (_judge_flags(model) or _judge_gradients(model) or _judge_values(model, values) or _judge_no_such(answer)
            or right("Block 1, all of it, and nothing else; and a block that is not there is an error."))


def _judge_flags(model: nn.Module) -> Reply | None:
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    inside = {name for name, _ in model.named_parameters() if name.startswith("transformer.h.1.")}
    before = {name for name, _ in model.named_parameters() if name.startswith("transformer.h.3.")}
    if frozen == inside | before:
        return None
    if not before <= frozen:
        return wrong("block 3 was frozen before the call, and now it trains: you set flags of other blocks too. (A "
                     "FreezePlan does so: a later plan replaces an earlier one.)")
    if frozen == before and any(vars(m).get("requires_grad") is False for m in model.modules()):
        return wrong("no parameter has the flag. requires_grad = False sets an attribute of the module; "
                     "requires_grad_(False) reaches the parameters inside.")
    if frozen == before:
        return wrong("no parameter of block 1 has the flag requires_grad = False afterwards.")
    others = sorted({name.split(".")[2] for name in frozen - inside - before if ".h." in name}, key=int)
    if others == ["10", "11"]:
        return wrong("you froze blocks 10 and 11 as well: 'h.1' is in their names. Put a dot after the number, or do "
                     "not go by names at all.")
    if frozen - inside - before:
        return wrong(f"more than block 1 is frozen, for example {min(frozen - inside - before)}.")
    return wrong(f"a part of block 1 still trains: {len(inside - frozen)} of {len(inside)} tensors, for example "
                 f"{min(inside - frozen)}.")


def _judge_gradients(model: nn.Module) -> Reply | None:
    block = dict(model.transformer.h[1].named_parameters())
    if any(p.grad is not None and p.grad.any() for p in block.values()):
        return wrong("the flags are right, but the old gradients are still there, and the next step would use them. "
                     "Set p.grad = None.")
    if any(p.grad is not None for p in block.values()):
        return wrong("you filled the old gradients with zeros. Zero is not absent: weight decay and momentum would "
                     "move the block. Set p.grad = None.")
    if any(p.grad is None for p in model.parameters() if p.requires_grad):
        return wrong("you took away the gradients of weights that go on training. Touch block 1 alone.")
    return None


def _judge_values(model: nn.Module, values: dict[str, torch.Tensor]) -> Reply | None:
    changed = [name for name, p in model.named_parameters() if not torch.equal(p, values[name])]
    return wrong(f"the values of {changed[0]} changed. Freezing leaves every value as it is.") if changed else None


def _judge_no_such(answer: Any) -> Reply | None:
    """Block 12 of 12 (0 to 11) does not exist: an error is asked for, and an unchanged model."""
    model = practice_model()
    try:
        answer(model, N_BLOCKS)
    except FAULTS:
        return None
    return wrong("right for block 1. But asked for block 12, which this model does not have (0 to 11), your function "
                 "does nothing and says nothing. A rule that matches nothing must be an error.")


# --- 02f: train some rows ----------------------------------------------------------

ROWS = [1, 4]
Step = Callable[[nn.Parameter, list[int], Optimizer], Any]

# What the reader's step is tried with, easy ones first, and what moves the other rows if it fails there.
CASES: tuple[tuple[Callable[[nn.Parameter], Optimizer], bool, str], ...] = (
    (lambda w: SGD([w], lr=0.1), False, ""),
    (lambda w: AdamW([w], lr=0.1, weight_decay=0.1), False,
     "with plain SGD only your rows move. With AdamW the others shrink: you zero their gradients, and weight decay "
     "does not ask for a gradient. Absent is not zero, and one tensor cannot be absent in part."),
    (lambda w: AdamW([w], lr=0.1, weight_decay=0.0), True,
     "without momentum only your rows move. After an earlier step with all gradients the others coast on: AdamW "
     "remembers. Zeroing gradients cannot stop that; put the values back."),
)


@exercise("02f")
def step_on_some_rows(answer: Any) -> Reply:
    """A function (weight, rows, optimizer): one step that moves these rows alone."""
    for build, has_momentum, reason in CASES:
        reply = _judge_step(answer, build, has_momentum, reason)
        if reply is not None:
            return reply
    return right("The rows move as the optimizer says, and the others not by one bit, decay or not, momentum or not.")


@torch.enable_grad()
def _judge_step(answer: Any, build: Callable, has_momentum: bool, reason: str) -> Reply | None:
    weight, optimizer = _practice_table(build, has_momentum)
    before = weight.detach().clone()
    other, plain = _practice_table(build, has_momentum)
    plain.step()  # what an ordinary step does to every row
    _step(answer, weight, optimizer)
    moved = (weight.detach() != before).any(1)  # (rows,)
    wanted = torch.zeros(len(moved), dtype=torch.bool)
    wanted[ROWS] = True
    if not moved.any():
        return wrong("nothing moved at all. Either no step was taken, or you put every row back.")
    if torch.equal(moved, ~wanted):
        return wrong(f"turned round: rows {ROWS} stand still, and the others move.")
    if (moved & ~wanted).any():
        return wrong(reason or "all rows move. If you put old values back, two things may have gone wrong. Without "
                               "clone() the old values are the new ones. And `weight = …` only gives the name to "
                               "another tensor: write *into* the parameter, weight[rows] = … or weight.copy_(…).")
    if not torch.allclose(weight[ROWS], other[ROWS], atol=1e-6):
        return wrong(f"the other rows stay. But rows {ROWS} do not move as an ordinary step of this optimizer moves "
                     "them, with its decay and its momentum.")
    return None


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


def _step(answer: Any, weight: nn.Parameter, optimizer: Optimizer) -> None:
    try:
        call(answer, weight, list(ROWS), optimizer)
    except AnswerFault as fault:
        if "leaf" in str(fault):
            raise AnswerFault(f"{fault} Values of a parameter are changed inside `with torch.no_grad():`.") from fault
        raise
