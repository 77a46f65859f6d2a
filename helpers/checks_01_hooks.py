"""Check of notebook 01's last exercise: a hook that replaces a part's output by its mean.

01f. The reader's context manager is opened on the MLP and on the attention of a small block.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from helpers.checks import FAULTS, AnswerFault, Reply, call, exercise, right, wrong
from helpers.checks_01 import CLOSE, practice_block, residual_error

# What was probably averaged, by the axes over which it was done: the output is (batch, time, width).
MISAVERAGED = (
    ((-1,), "you averaged over the width, each token's own features. Average over the positions: dim=1."),
    ((0,), "you averaged over the windows of the batch, dim 0. Average over the positions: dim=1."),
    ((0, 1), "you averaged over the windows too, so one text gets the mean of another. Average each window: dim=1."),
    ((0, 1, 2), "you averaged over everything, to a single number. Average over the positions alone: dim=1."),
)


@exercise("01f")
def check_mean_ablation(answer: Any) -> Reply:
    """A function (part) -> context manager in which the part's output is its mean over the positions."""
    block, x = practice_block()
    with torch.no_grad():
        whole = block(x)[0]
        return (_judge_means(answer, block, x, whole) or _judge_after(answer, block, x, whole)
                or right("Mean ablation, for parts of both kinds, and the model is whole again afterwards."))


def _judge_means(answer: Any, block: nn.Module, x: torch.Tensor, whole: torch.Tensor) -> Reply | None:
    """Does the block compute the right thing while the MLP, then attention, is replaced?"""
    normed = block.ln_1(x)
    attended = block.attn(normed)[0]  # (batch, time, width)
    h = x + attended

    def with_mlp(out: torch.Tensor) -> torch.Tensor:
        return h + out

    def with_attention(out: torch.Tensor) -> torch.Tensor:
        return x + out + block.mlp(block.ln_2(x + out))

    found = _while_open(answer, block.mlp, block, x)
    transformed = block.mlp(block.ln_2(h))
    if not _same(found, with_mlp(transformed.mean(1, keepdim=True))):
        return _named(found, whole, h, lambda axes: with_mlp(transformed.mean(axes, keepdim=True)))
    if not _same(_while_open(answer, block.attn, block, x), with_attention(attended.mean(1, keepdim=True))):
        return wrong("it works for the MLP, and not for attention. Attention returns a tuple: replace its first "
                     "entry and return a tuple again, as silence does. A bare tensor is taken apart instead.")
    return None


def _same(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    return found.shape == wanted.shape and residual_error(found, wanted) < CLOSE


def _named(found: torch.Tensor, whole: torch.Tensor, skipped: torch.Tensor, averaged: Callable) -> Reply:
    """What probably went wrong with the MLP; ``averaged(axes)`` is the block with another mean."""
    if _same(found, whole):
        return wrong("nothing was replaced. A hook replaces the output only if it *returns* the new one, and only if "
                     "it is hung in before the model runs.")
    if _same(found, skipped):
        return wrong("this is the zero of section 12, not the mean.")
    for axes, reason in MISAVERAGED:
        if _same(found, averaged(axes)):
            return wrong(reason)
    return wrong("the block's output changes, but not as the mean over the positions would change it.")


def _while_open(answer: Any, part: nn.Module, block: nn.Module, x: torch.Tensor, stop: bool = False) -> torch.Tensor:
    """The block's output while the reader's context manager is open; ``stop`` raises inside it."""
    manager = call(answer, part)
    if inspect.isgenerator(manager):
        raise AnswerFault("your function yields, but it is no context manager yet: put @contextmanager above it.")
    if not hasattr(manager, "__enter__"):
        raise AnswerFault(f"your function returns {type(manager).__name__}, which `with` cannot open. Write it with "
                          "@contextmanager and yield, as skipped is written.")
    try:
        with manager:
            if stop:
                raise _Stopped
            return block(x)[0]
    except _Stopped:
        raise
    except FAULTS as error:
        tuple_too = " Attention returns a tuple: take its first entry, as silence does." if part is block.attn else ""
        raise AnswerFault(f"while it was open, the block stopped with {type(error).__name__}: {error}.{tuple_too}"
                          ) from error


class _Stopped(Exception):
    """Raised on purpose inside the reader's `with`."""


def _judge_after(answer: Any, block: nn.Module, x: torch.Tensor, whole: torch.Tensor) -> Reply | None:
    if not torch.equal(block(x)[0], whole):
        return wrong("right while it is open, but afterwards the hook is still there, and the model stays broken. "
                     "Call handle.remove().")
    try:
        _while_open(answer, block.mlp, block, x, stop=True)
    except _Stopped:
        pass
    if not torch.equal(block(x)[0], whole):
        return wrong("right, as long as nothing goes wrong inside `with`. After an error the hook stays. Put the yield "
                     "in try, and handle.remove() in finally.")
    return None
