"""What readers predict before they measure, and how the measurement compares."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from helpers.files import keep, read_kept, say
from helpers.lessons.reading import finite
from helpers.profiles import build_dir
from helpers.results import CLAIMS, ClaimError, Entry, is_number


def predict(claim: str, value: Any = ..., low: Any = None, high: Any = None) -> None:
    """Note your own estimate and the range that you are 80% sure of, before you measure.

    Kept in ``build/predictions.json`` on this machine alone. It says what was understood; whatever is given,
    nothing stops. ``predict("C4", 0.5)`` notes a number without a range, ``predict("C4", None)`` takes an earlier
    one back, and ``predict("C4", ...)`` leaves it as it is.
    A result that no claim is about is named by its notebook, as in ``predict("00-gain", None)``.

    Raises:
        ClaimError: no claim or result has this name.
    """
    if claim not in CLAIMS and not re.fullmatch(r"\d\d-[a-z-]+", claim):
        raise ClaimError(f"Claim '{claim}' is not known. Claims: {', '.join(CLAIMS)}.")
    earlier = predictions().get(claim)
    if value is None or value is ...:
        say(f"{claim}: {_left_open(claim, value, earlier)}")
        return
    try:
        number = _estimate(value)
    except ValueError as fault:
        stays = "" if earlier is None else f" Your earlier prediction, {_said(earlier)}, stays."
        say(
            f'{claim}: nothing is noted: {fault}. Write a number, as in predict("{claim}", 0.5, 0.4, 0.6).{stays}'
        )
        return
    ends, remark = _range(number, low, high)
    entry = {"value": number, "low": ends and ends[0], "high": ends and ends[1]}
    if not keep(_predictions_file(), {**predictions(), claim: entry}):
        return
    if ends:
        say(f"{claim}: you predict {number:g}, and are 80% sure of {ends[0]:g} to {ends[1]:g}.{remark}")
    else:
        say(
            f"{claim}: you predict {number:g}, without a range.{remark} "
            f'To say how sure you are: predict("{claim}", {number:g}, low, high).'
        )


def _left_open(claim: str, value: Any, earlier: Mapping | None) -> str:
    """What to say where no number was given, after doing what it means."""
    if earlier is None:
        return f"no prediction. Put a number in place of {'None' if value is None else 'the three dots'} to make one."
    if value is ...:
        return f"your earlier prediction is kept: {_said(earlier)}."
    rest = {name: entry for name, entry in predictions().items() if name != claim}
    if not keep(_predictions_file(), rest):
        return "your earlier prediction stays."
    return f"your earlier prediction, {_said(earlier)}, is taken back."


def _estimate(value: Any) -> float:
    """The number that was typed.

    Raises:
        ValueError: it is none, or may mean two.
    """
    if isinstance(value, str) and value.strip().endswith("%"):
        raise ValueError(
            f"'{value.strip()[:20]}' may mean a share or a number of percent, so write it without the "
            "sign, in the unit that is asked for"
        )
    return finite(value)


def _range(number: float, low: Any, high: Any) -> tuple[tuple[float, float] | None, str]:
    """The ends of the range in order, or None, and what to say about them."""
    if low is None and high is None:
        return None, ""
    if low is None or high is None:
        return None, " A range has two ends, and one is missing."
    try:
        first, second = _estimate(low), _estimate(high)
    except ValueError as fault:
        return None, f" The range is not kept: {fault}."
    ends = (min(first, second), max(first, second))
    if first == second:
        return None, " The range is not kept: both ends are the same, and nobody is that sure."
    if not ends[0] <= number <= ends[1]:
        return None, f" The range is not kept: {number:g} is not inside {ends[0]:g} to {ends[1]:g}."
    return ends, " (The ends stood the other way round.)" if first > second else ""


def predictions() -> dict[str, dict]:
    """Return all predictions so far, by claim; ``low`` and ``high`` are None where no range was given.

    A damaged file is said and put aside, and what could be read of it is kept.
    """
    return read_kept(_predictions_file(), _readable)


def _readable(found: Any) -> dict[str, dict]:
    """The entries of a file of predictions that have the form of one."""
    return (
        {claim: entry for claim, entry in found.items() if _is_prediction(entry)}
        if isinstance(found, dict)
        else {}
    )


def _is_prediction(entry: Any) -> bool:
    if not isinstance(entry, dict) or set(entry) != {"value", "low", "high"} or not is_number(entry["value"]):
        return False
    low, high = entry["low"], entry["high"]
    if low is None and high is None:
        return True
    return is_number(low) and is_number(high) and low <= entry["value"] <= high


def _has_range(entry: Mapping) -> bool:
    """Whether the range says something: one of width zero does not."""
    return entry["low"] is not None and entry["low"] < entry["high"]


def _said(entry: Mapping | None) -> str:
    """A prediction in a line: ``0.5 (0.4 to 0.6)``."""
    if entry is None:
        return "no prediction"
    return (
        f"{entry['value']:g} ({entry['low']:g} to {entry['high']:g})"
        if _has_range(entry)
        else f"{entry['value']:g}"
    )


def _holds(entry: Mapping, measured: float) -> bool | None:
    """Whether the measurement lies in the range; None where there is no range."""
    return entry["low"] <= measured <= entry["high"] if _has_range(entry) else None


def reveal(claim: str, measured: float, unit: str = "", article: str = "", how: str = "measured") -> None:
    """Print article, prediction and measurement side by side. A miss is a question, not a mark.

    Args:
        how: where the number comes from; "predicted" where it was computed and nothing was measured.
    """
    yours = predictions().get(claim)
    say(f"{claim}  article: {article or '-'} | you: {_said(yours)} | {how}: {measured:.3g} {unit}".rstrip())
    if yours is not None and _holds(yours, measured) is False:
        say("Outside your range. Which assumption was different from what happened?")


def prediction_ledger(entries: Sequence[Entry]) -> pd.DataFrame:
    """Return reader and measurement side by side, and whether the 80% range held (NA where none was given)."""
    yours = predictions()
    table = pd.DataFrame(
        [
            {
                "claim": e.id,
                "you": yours[e.id]["value"],
                "measured": e.first.value,
                "unit": e.first.unit,
                "in your range": _holds(yours[e.id], e.first.value),
            }
            for e in entries
            if e.id in yours and e.first.value is not None
        ],
        columns=["claim", "you", "measured", "unit", "in your range"],
    )
    return table.astype({"in your range": "boolean"})


def _predictions_file() -> Path:
    return build_dir() / "predictions.json"


def in_band(what: str, value: float, low: float, high: float, unit: str = "") -> bool:
    """Print a measured number, and that it lies where this page says it does, or that it does not.

    The last digits of a training run differ between machines. A band says how much of the
    number the page relies on; the prose around it claims no more. Strict nbval compares the band, and leaves the
    number out (``tests/nbval.cfg``).
    """
    inside = low <= value <= high
    if inside:
        print(f"{what}: {value:.3g}, between {low:g} and {high:g} {unit}".rstrip())
    else:
        say(
            f"{what}: {value:.4g} {unit}, outside {low:g} to {high:g}, which was seen when this page was made."
        )
    return inside
