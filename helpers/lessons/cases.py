"""Judge a reader's function by cases that separate the usual mistakes.

A wrong function is called on the same cases as the right one and as each known mistake. The mistake
that gives the same results on all of them is the one that is named.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from helpers.lessons.checks import Reply, call, handed_on, right, wrong
from helpers.lessons.reading import number, plain


def judge_function(
    answer: Any,
    cases: Iterable[tuple],
    correct: Callable,
    mistakes: Mapping[Callable, str],
    praise: str,
    within: float = 1e-6,
) -> Reply:
    """Right if ``answer`` returns what ``correct`` does on every case; else the first mistake that fits.

    Args:
        cases: tuples of arguments; each call gets its own copy.
        correct: a function that returns one number, or several in a list or tuple.
        mistakes: wrong function to what it says about the reader.
        within: relative difference that still counts as equal; near zero a hundredth of it, absolute.

    Raises:
        AnswerFault: ``answer`` is no function, or it stopped (`checks.reply_to` makes a reply of it).
        TypeError, ValueError: it returned something that is no number.
    """
    cases = list(cases)
    values = [call(answer, *copy.deepcopy(case)) for case in cases]
    silent = [case for case, value in zip(cases, values, strict=True) if value is None]
    if 0 < len(silent) < len(cases):
        return wrong(
            f"for {_shown_case(silent[0])} your function comes to its end without a `return`, so it gives None. "
            "Which case is left out?"
        )
    found = [_results(handed_on(value)) for value in values]
    expected = [_results(correct(*case)) for case in cases]
    wrong_at = [i for i, (a, b) in enumerate(zip(found, expected, strict=True)) if not _same(a, b, within)]
    if not wrong_at:
        return right(praise)
    for mistake, reason in mistakes.items():
        if all(
            _same(a, _results(mistake(*copy.deepcopy(c))), within) for a, c in zip(found, cases, strict=True)
        ):
            return wrong(reason)
    for form, reason in _OTHER_FORMS:
        if all(_same(a, form(b), within) for a, b in zip(found, expected, strict=True)):
            return wrong(reason)
    first = wrong_at[0]
    if len(found[first]) != len(expected[first]):
        return wrong(f"{_count(expected[first])} asked for, and your function returns {len(found[first])}.")
    return wrong(
        f"for {_shown_case(cases[first])} your function gives {_shown(found[first])}, and "
        f"{_shown(expected[first])} is right. Work this case out by hand."
    )


# The right numbers in a form that was not asked for
_OTHER_FORMS: tuple[tuple[Callable[[list[float]], list[float]], str], ...] = (
    (
        lambda values: [100 * v for v in values],
        "you return a hundred times the right number. Percent is not asked for.",
    ),
    (lambda values: [-v for v in values], "the size is right, and the sign is turned round."),
    (lambda values: values[::-1], "the numbers are right, and they stand in the wrong order."),
)


def _count(values: list[float]) -> str:
    return "one number is" if len(values) == 1 else f"{len(values)} numbers are"


def _results(value: Any) -> list[float]:
    value = plain(value)
    return [number(v) for v in value] if isinstance(value, (list, tuple)) else [number(value)]


def _same(a: list[float], b: list[float], within: float) -> bool:
    """Equal numbers, in equal number; NaN equals NaN."""
    return len(a) == len(b) and all(
        math.isclose(x, y, rel_tol=within, abs_tol=within / 100) or math.isnan(x) and math.isnan(y)
        for x, y in zip(a, b, strict=True)
    )


def _shown(values: list[float]) -> str:
    return ", ".join(f"{v:,.4g}" if abs(v) < 1000 else f"{v:,.0f}" for v in values) or "nothing"


def _shown_argument(argument: Any) -> str:
    shape = getattr(argument, "shape", None)
    return str(argument) if shape is None else f"a tensor of shape {tuple(shape)}"


def _shown_case(case: tuple) -> str:
    text = ", ".join(_shown_argument(argument) for argument in case)
    return text if len(text) <= 160 else f"{text[:157]}…"
