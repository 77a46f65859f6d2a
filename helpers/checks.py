"""Exercise checks: what is right, and which mistake a wrong answer shows.

    check("03a", 56_707_584)      prints "03a: right. …" or names the likely mistake

A check is a pure function from the answer to a `Reply`. The checks of notebook 03 stand in
``helpers/checks_03.py``, each marked with ``@exercise("03a")``.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

_CHECKS: dict[str, Callable[[Any], Reply]] = {}


class CheckError(ValueError):
    """An exercise that does not exist. The message lists those that do."""


@dataclass(frozen=True)
class Reply:
    """What a check has to say: ``ok`` is None for an untouched stub."""

    ok: bool | None
    message: str


def right(message: str) -> Reply:
    return Reply(True, message)


def wrong(message: str) -> Reply:
    return Reply(False, message)


def exercise(name: str):
    """Mark a function as the check of an exercise: it gets the answer and returns a `Reply`."""

    def mark(function: Callable[[Any], Reply]) -> Callable[[Any], Reply]:
        _CHECKS[name] = function
        return function

    return mark


def reply_to(name: str, answer: Any) -> Reply:
    """The reply to an answer; ``...`` (an untouched stub) is "not attempted yet".

    Raises:
        CheckError: no such exercise.
    """
    function = _find(name)
    if answer is ...:
        return Reply(None, "not attempted yet. Put your answer in place of the three dots.")
    try:
        return function(answer)
    except (TypeError, ValueError) as error:
        return wrong(f"this answer cannot be read ({error}). Look at the form that the exercise asks for.")


def check(name: str, answer: Any) -> bool | None:
    """Print the reply to an answer; Run-all goes on whatever it is."""
    reply = reply_to(name, answer)
    words = {True: "right. ", False: "not yet. ", None: ""}[reply.ok]
    print(f"{name}: {words}{reply.message}")
    return reply.ok


def _find(name: str) -> Callable[[Any], Reply]:
    if name not in _CHECKS:
        module = f"helpers.checks_{name[:2]}"
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name != module:
                raise
    if name not in _CHECKS:
        raise CheckError(f"There is no exercise '{name}'. Exercises loaded so far: {', '.join(sorted(_CHECKS))}.")
    return _CHECKS[name]


# --- reading an answer -------------------------------------------------------------


def number(answer: Any) -> float:
    """A number from an int, a float, a one-element tensor or list, or text such as "56,707,584".

    Raises:
        ValueError: it holds no number, or several.
    """
    if isinstance(answer, torch.Tensor):
        answer = answer.detach().cpu().tolist()
    while isinstance(answer, (list, tuple)) and len(answer) == 1:
        answer = answer[0]
    if isinstance(answer, str):
        answer = answer.replace(",", "").replace("_", "").strip()
    if isinstance(answer, (list, tuple, set, dict)):
        raise ValueError(f"one number is asked for, found {len(answer)}")
    return float(answer)


def judge_number(answer: Any, correct: float, praise: str, mistakes: Mapping[float, str], *, within: float = 0.0,
                 otherwise: str = "Read the hints, one at a time.") -> Reply:
    """Compare a number with the right one and with the known wrong ones.

    Args:
        mistakes: wrong value to what probably happened.
        within: absolute difference that still counts as equal.
    """
    found = number(answer)
    if math.isclose(found, correct, rel_tol=1e-9, abs_tol=within):
        return right(praise)
    for value, reason in mistakes.items():
        if math.isclose(found, value, rel_tol=1e-9, abs_tol=within):
            return wrong(reason)
    return wrong(f"{found:,.6g} is not it. {otherwise}")
