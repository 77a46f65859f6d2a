"""Exercise checks: what is right, and which mistake a wrong answer shows.

    check("03a", 56_707_584)      prints "03a: right. …" or names the likely mistake

A check is a pure function from the answer to a `Reply`. The checks of notebook 03 stand in
``helpers/lessons/exercises/nb03.py``, each marked with ``@exercise("03a")``; a second file, where one would be too
long, is called ``checks_03_….py``. What was solved is kept in
``progress.json`` in the build folder, on this machine alone:

    progress()                                    in a notebook
    python -m helpers.lessons.checks --progress           in a terminal
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helpers.files import counted, keep, read_kept
from helpers.lessons.calibrating import calibration
from helpers.lessons.reading import finite, named
from helpers.lessons.showing import card, in_html, tell
from helpers.profiles import build_dir

FAULTS = (Exception,)  # what a reader's own function may raise when it is called: anything
# What our own code may raise on an answer of another form than the exercise asks for.
OTHER_FORM = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError)

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
    except ValueError as error:
        return wrong(f"this answer cannot be read ({error}). Look at the form that the exercise asks for.")
    except OTHER_FORM:
        return wrong(
            f"this answer cannot be read: it is {named(answer)}. Look at the form that the exercise asks for."
        )


def check(name: str, answer: Any) -> None:
    """Show the reply to an answer, and keep a right one for `progress`; Run-all goes on whatever it is.

    Returns nothing, so that a notebook shows the reply alone. `reply_to` gives the reply itself.
    """
    reply = reply_to(name, answer)
    words = {True: "right. ", False: "not yet. ", None: ""}[reply.ok]
    tell(f"{name}: {words}{reply.message}", lambda: _card(name, reply))
    if reply.ok:
        _keep(name)


def _card(name: str, reply: Reply) -> str:
    """A reply as HTML, with the exercise's name and what its check is called."""
    kind, word = {
        True: ("right", "right"),
        False: ("not yet", "not yet"),
        None: ("open", "your turn"),
    }[reply.ok]
    title = _CHECKS[name].__name__.removeprefix("check_").replace("_", " ")
    body = in_html(reply.message)
    return card(kind, word, f"**{name}** {title}", body)


def _find(name: str) -> Callable[[Any], Reply]:
    if name not in _CHECKS and name[:2].isdigit():
        _load(name[:2])
    if name not in _CHECKS:
        raise CheckError(
            f"There is no exercise '{name}'. Exercises loaded so far: {', '.join(sorted(_CHECKS))}."
        )
    return _CHECKS[name]


def _load(notebook: str = "") -> None:
    """Import the checks of one notebook ("03"), or of all."""
    for path in sorted((Path(__file__).parent / "exercises").glob(f"nb{notebook}*.py")):
        importlib.import_module(f"helpers.lessons.exercises.{path.stem}")


# --- reading an answer -------------------------------------------------------------


def judge_number(
    answer: Any,
    correct: float,
    praise: str,
    mistakes: Mapping[float, str],
    *,
    within: float = 0.0,
    otherwise: str = "Read the hints, one at a time.",
) -> Reply:
    """Compare a number with the right one and with the known wrong ones.

    Args:
        mistakes: wrong value to what probably happened.
        within: absolute difference that still counts as equal; from a small wrong value a twentieth of it at most.
    """
    found = finite(answer)
    if math.isclose(found, correct, rel_tol=1e-9, abs_tol=within):
        return right(praise)
    near = min(mistakes, key=lambda value: abs(found - value))
    if math.isclose(found, near, rel_tol=1e-9, abs_tol=min(within, abs(near) / 20)):
        return wrong(mistakes[near])
    for value, reason in _of_another_form(correct).items():
        if math.isclose(found, value, rel_tol=1e-3):
            return wrong(reason)
    return wrong(f"{found:,.6g} is not it. {otherwise}")


def _of_another_form(correct: float) -> dict[float, str]:
    """The right number in a form that was not asked for, to what it is."""
    return {
        -correct: "the size is right, and the sign is turned round.",
        100 * correct: "this is a hundred times the right number. Look at the unit that is asked for.",
        correct / 100: "this is a hundredth of the right number. Look at the unit that is asked for.",
    }


def call(function: Any, *arguments: Any, hints: Mapping[str, str] | None = None) -> Any:
    """Return what the reader's function returns, for a check that tries it on several cases.

    Args:
        hints: words of an error to what it means in this exercise.

    Raises:
        AnswerFault: it is no function, or it stopped with an error. `reply_to` turns it into the reply.
    """
    import torch

    if not callable(function) or isinstance(function, torch.nn.Module):
        raise AnswerFault(
            f"a function is asked for, found {type(function).__name__}: give its name, without brackets."
        )
    try:
        return function(*arguments)
    except FAULTS as error:
        asked = (
            ""
            if _takes(function, len(arguments))
            else f". It is called with {counted(len(arguments), 'argument')} here"
        )
        said = f"{type(error).__name__}: {error}".rstrip(".")
        meant = "".join(f". {hint}" for words, hint in (hints or {}).items() if words in said)
        raise AnswerFault(f"your function stopped with {said}{asked}{meant}") from error


def value_of(function: Any, *arguments: Any, hints: Mapping[str, str] | None = None) -> Any:
    """Return what the reader's function returns, as `call` does, where it must return something.

    Raises:
        AnswerFault: as in `call`.
        ValueError: it returned nothing.
    """
    return handed_on(call(function, *arguments, hints=hints))


def handed_on(value: Any) -> Any:
    """Return a value that a reader's function returned.

    Raises:
        ValueError: it is None.
    """
    if value is None:
        raise ValueError(
            "your function returns None: end it with `return`; print shows a value on the screen, "
            "and hands nothing on"
        )
    return value


def _takes(function: Any, n: int) -> bool:
    """Whether a function can be called with ``n`` arguments, as far as Python can tell."""
    try:
        inspect.signature(function).bind(*range(n))
    except TypeError:
        return False
    except ValueError:  # some built-in functions say nothing about their arguments
        return True
    return True


# --- progress ----------------------------------------------------------------------


def progress() -> None:
    """Print which exercises are solved, notebook by notebook, and how well the predictions held."""
    names, done = exercise_names(), solved()
    for book in sorted({name[:2] for name in names}):
        marks = "  ".join(f"{name} {'■' if name in done else '·'}" for name in names if name.startswith(book))
        print(marks)
    n_solved = sum(name in done for name in names)
    print(
        f"■ solved: {n_solved} of {len(names)} exercises. Kept in progress.json in the build folder, nowhere else."
    )
    calibration()


def exercise_names() -> list[str]:
    """Every exercise of the course, in order: ["00a", "00b", …]."""
    _load()
    return sorted(_CHECKS)


def solved() -> set[str]:
    """Return the names of the exercises that were answered right on this machine.

    A damaged file is said and put aside, and what could be read of it is kept.
    """
    return set(read_kept(_progress_file(), _readable).get("solved", ()))


def _readable(found: Any) -> dict:
    """The names in a file of solved exercises."""
    names = found.get("solved") if isinstance(found, dict) else None
    return {"solved": [name for name in names if isinstance(name, str)]} if isinstance(names, list) else {}


def _keep(name: str) -> None:
    """Note a solved exercise. A build folder that cannot be written is said, and nothing stops."""
    done = solved()
    if name not in done:
        keep(_progress_file(), {"solved": sorted(done | {name})})


def _progress_file() -> Path:
    return build_dir() / "progress.json"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m helpers.lessons.checks", description="Which exercises are solved."
    )
    parser.add_argument(
        "--progress", action="store_true", required=True, help="list all exercises, solved and open"
    )
    parser.parse_args(arguments)
    progress()
    return 0


if __name__ == "__main__":
    # The checks register with the module `helpers.lessons.checks`; run as a script, this file is another one.
    sys.exit(importlib.import_module("helpers.lessons.checks").main())
