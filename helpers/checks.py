"""Exercise checks: what is right, and which mistake a wrong answer shows.

    check("03a", 56_707_584)      prints "03a: right. …" or names the likely mistake

A check is a pure function from the answer to a `Reply`. The checks of notebook 03 stand in
``helpers/checks_03.py``, each marked with ``@exercise("03a")``; a second file, where one would be too
long, is called ``checks_03_….py``. What was solved is kept in
``progress.json`` in the build folder, on this machine alone:

    progress()                                    in a notebook
    python -m helpers.checks --progress           in a terminal
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from helpers.checkpoints import write_json
from helpers.profiles import build_dir

# What a reader's own function may raise when it is called.
FAULTS = (ArithmeticError, AssertionError, AttributeError, LookupError, NameError, RuntimeError, TypeError, ValueError)

_CHECKS: dict[str, Callable[[Any], Reply]] = {}


class CheckError(ValueError):
    """An exercise that does not exist. The message lists those that do."""


class AnswerFault(ValueError):
    """An answer that is no function, or a function that stopped. The message is the reply."""


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
    except AnswerFault as fault:
        return wrong(str(fault))
    except (TypeError, ValueError) as error:
        return wrong(f"this answer cannot be read ({error}). Look at the form that the exercise asks for.")


def check(name: str, answer: Any) -> bool | None:
    """Print the reply to an answer, and keep a right one for `progress`; Run-all goes on whatever it is."""
    reply = reply_to(name, answer)
    words = {True: "right. ", False: "not yet. ", None: ""}[reply.ok]
    print(f"{name}: {words}{reply.message}")
    if reply.ok:
        _keep(name)
    return reply.ok


def _find(name: str) -> Callable[[Any], Reply]:
    if name not in _CHECKS and name[:2].isdigit():
        _load(name[:2])
    if name not in _CHECKS:
        raise CheckError(f"There is no exercise '{name}'. Exercises loaded so far: {', '.join(sorted(_CHECKS))}.")
    return _CHECKS[name]


def _load(notebook: str = "") -> None:
    """Import the checks of one notebook ("03"), or of all."""
    for path in sorted(Path(__file__).parent.glob(f"checks_{notebook}*.py")):
        importlib.import_module(f"helpers.{path.stem}")


# --- reading an answer -------------------------------------------------------------


def number(answer: Any) -> float:
    """A number from an int, a float, a one-element tensor, array or list, or text such as "56,707,584" or "9.5%".

    Raises:
        ValueError: it holds no number, or several.
    """
    if isinstance(answer, torch.Tensor):
        answer = answer.detach().cpu()
    if hasattr(answer, "tolist"):  # a tensor or something of numpy's
        answer = answer.tolist()
    while isinstance(answer, (list, tuple)) and len(answer) == 1:
        answer = answer[0]
    if isinstance(answer, str):
        if re.search(r"^\D*0,|,(?!\d{3}(?!\d))", answer):  # many languages write 3,24 where Python wants 3.24
            raise ValueError(f"a decimal is written with a point, {answer.replace(',', '.')} and not {answer}")
        answer = answer.replace(",", "").replace("_", "").strip().removesuffix("%")
    if isinstance(answer, (list, tuple, set, dict)):
        pair = isinstance(answer, tuple) and len(answer) == 2
        comma = ". A decimal is written with a point, {0}.{1} and not {0},{1}".format(*answer) if pair else ""
        raise ValueError(f"one number is asked for, found {len(answer)}{comma}")
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


def call(function: Any, *arguments: Any) -> Any:
    """What the reader's function returns, for a check that tries it on several cases.

    Raises:
        AnswerFault: it is no function, or it stopped with an error. `reply_to` turns it into the reply.
    """
    if not callable(function) or isinstance(function, torch.nn.Module):
        raise AnswerFault(f"a function is asked for, found {type(function).__name__}: give its name, without brackets.")
    try:
        return function(*arguments)
    except FAULTS as error:
        raise AnswerFault(f"your function stopped with {type(error).__name__}: {error}") from error


# --- progress ----------------------------------------------------------------------


def progress() -> None:
    """Print which exercises are solved, notebook by notebook."""
    names, done = exercise_names(), solved()
    for book in sorted({name[:2] for name in names}):
        marks = "  ".join(f"{name} {'■' if name in done else '·'}" for name in names if name.startswith(book))
        print(marks)
    n_solved = sum(name in done for name in names)
    print(f"■ solved: {n_solved} of {len(names)} exercises. Kept in progress.json in the build folder, nowhere else.")


def exercise_names() -> list[str]:
    """Every exercise of the course, in order: ["00a", "00b", …]."""
    _load()
    return sorted(_CHECKS)


def solved() -> set[str]:
    """Names of the exercises that were answered right on this machine.

    A damaged file is said, put aside as ``progress.json.damaged``, and begun anew.
    """
    place = _progress_file()
    try:
        found = json.loads(place.read_text("utf-8"))
        if isinstance(found, dict) and isinstance(found.get("solved"), list):
            return {name for name in found["solved"] if isinstance(name, str)}
        fault = "it holds no list of solved exercises"
    except FileNotFoundError:
        return set()
    except ValueError as error:  # no JSON, or no UTF-8
        fault = str(error)
    place.replace(place.with_name("progress.json.damaged"))
    print(f"progress.json in the build folder cannot be read ({fault}). It is now progress.json.damaged, and the "
          "list of solved exercises begins anew.")
    return set()


def _keep(name: str) -> None:
    """Note a solved exercise. A build folder that cannot be written is said, and nothing stops."""
    try:
        done = solved()
        if name not in done:
            _progress_file().parent.mkdir(parents=True, exist_ok=True)
            write_json(_progress_file(), {"solved": sorted(done | {name})})
    except OSError as error:
        print(f"(Progress could not be kept: {error.strerror or error}. COURSE_BUILD names another build folder.)")


def _progress_file() -> Path:
    return build_dir() / "progress.json"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m helpers.checks", description="Which exercises are solved.")
    parser.add_argument("--progress", action="store_true", required=True, help="list all exercises, solved and open")
    parser.parse_args(arguments)
    progress()
    return 0


if __name__ == "__main__":
    # The checks register with the module `helpers.checks`; run as a script, this file is another one.
    sys.exit(importlib.import_module("helpers.checks").main())
