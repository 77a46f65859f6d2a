"""What readers predict before they measure, and how the measurement compares."""

from __future__ import annotations

import re
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from helpers.files import keep, read_kept, say
from helpers.lessons.asked import QUESTIONS
from helpers.lessons.reading import finite
from helpers.lessons.showing import card, is_rich, number_line, tell
from helpers.profiles import build_dir
from helpers.results import CLAIMS, ClaimError, is_number


def predict(claim: str, value: Any = ..., low: Any = None, high: Any = None) -> None:
    """Note your own estimate and the range that you are 80% sure of, before you measure.

    Kept in ``build/predictions.json`` on this machine alone. It says what was understood; whatever is given,
    nothing stops. ``predict("C4", 0.5)`` notes a number without a range, ``predict("C4", None)`` takes an earlier
    one back, and ``predict("C4", ...)`` leaves it as it is. Without a number, a notebook shows a form; what was
    saved in it stays, until it is taken back there or a number is given here.
    A result that no claim is about is named by its notebook, as in ``predict("00-gain", None)``.

    Raises:
        ClaimError: no claim or result has this name.
    """
    if claim not in CLAIMS and not re.fullmatch(r"\d\d-[a-z-]+", claim):
        raise ClaimError(f"Claim '{claim}' is not known. Claims: {', '.join(CLAIMS)}.")
    earlier = predictions().get(claim)
    if value is None or value is ...:
        words = _left_open(claim, value, earlier)
        if is_rich():
            _show_form(claim, words)
        else:
            say(f"{claim}: {words}")
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
    if value is ... or "from_form" in earlier:
        return f"your earlier prediction is kept: {_said(earlier)}."
    return _taken_back(claim)


def _taken_back(claim: str) -> str:
    """Forget a prediction, and say so."""
    kept = predictions()
    entry = kept.pop(claim, None)
    if not keep(_predictions_file(), kept):
        return "your earlier prediction stays."
    return f"your earlier prediction, {_said(entry)}, is taken back."


# --- the form ----------------------------------------------------------------------


def _show_form(claim: str, words: str) -> None:
    """Show a form with what is noted for a claim or result, and save what is written into it."""
    from helpers.lessons.widgets.prediction_forms import PredictionForm  # ipywidgets and torch take a while

    noted = predictions().get(claim)
    texts = {name: "" if number is None else f"{number:.12g}" for name, number in _fields(noted).items()}
    form = PredictionForm(
        f"{claim}: {QUESTIONS.get(claim, 'what do you expect?')}",
        texts,
        f"{words[0].upper()}{words[1:]}" if noted or "taken back" in words else "",
        lambda **written: save_form(claim, written),
        lambda: _taken_back(claim).capitalize(),
    )
    form.show(f"{claim}: {words}")


def _fields(entry: Mapping | None) -> dict[str, float | None]:
    """An entry by the names of the form's fields."""
    entry = entry or {}
    return {"guess": entry.get("value"), "low": entry.get("low"), "high": entry.get("high")}


def save_form(claim: str, written: Mapping[str, str]) -> tuple[dict[str, str], str]:
    """Keep what was written into a form, if all of it can be read.

    Args:
        written: the texts of the fields guess, low and high; the last two may be empty.

    Returns:
        What is wrong, by field, and what to say. With a fault nothing is kept.
    """
    numbers, faults = _read(written)
    faults = faults or _contradictions(**numbers)
    if faults:
        earlier = predictions().get(claim)
        stays = f" Your earlier prediction, {_said(earlier)}, stays." if earlier else ""
        return faults, f"Nothing is saved yet: see what is said beside the field.{stays}"
    entry = {"value": numbers["guess"], "low": numbers["low"], "high": numbers["high"], "from_form": True}
    if not keep(_predictions_file(), {**predictions(), claim: entry}):
        return {}, "Nothing could be saved: the build folder cannot be written."
    sure = f", and are 80% sure of {entry['low']:g} to {entry['high']:g}" if _has_range(entry) else ""
    return {}, (
        f"Saved: you predict {entry['value']:g}{sure}. Now go on, and run the cell that reveals {claim}."
        + ("" if sure else " A range would say how sure you are.")
    )


def _read(written: Mapping[str, str]) -> tuple[dict[str, float | None], dict[str, str]]:
    """The numbers of the fields, None where one is empty, and a fault for each field that holds no number."""
    numbers: dict[str, float | None] = {}
    faults = {}
    for field, text in written.items():
        try:
            numbers[field] = _estimate(text) if text.strip() else None
        except ValueError as fault:
            words = str(fault)
            faults[field] = f"{words[0].upper()}{words[1:]}."
    if not written["guess"].strip():
        faults["guess"] = "Write a number here."
    return numbers, faults


def _contradictions(guess: float, low: float | None, high: float | None) -> dict[str, str]:
    """What is wrong with a range, by the field where it can be mended."""
    if low is None and high is None:
        return {}
    if low is None or high is None:
        return {"low" if low is None else "high": "A range has two ends: this one is missing."}
    if low > high:
        return {"low": f"{low:g} is above {high:g}: the lower end comes first."}
    if low == high:
        return {"high": "Both ends are the same, and nobody is that sure."}
    if not low <= guess <= high:
        return {"guess": f"{guess:g} is not inside your range, {low:g} to {high:g}."}
    return {}


# --- what was typed ----------------------------------------------------------------


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
    if not isinstance(entry, dict) or set(entry) - {"from_form"} != {"value", "low", "high"}:
        return False
    if not is_number(entry["value"]) or entry.get("from_form", True) is not True:
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


# --- what was measured -------------------------------------------------------------


def reveal(
    claim: str,
    measured: float,
    unit: str = "",
    article: str = "",
    how: str = "measured",
    interval: tuple[float | None, float | None] = (None, None),
) -> None:
    """Show article, prediction and measurement side by side. A miss is a question, not a mark.

    In a notebook the reader's range and the measured number stand on one line.

    Args:
        how: where the number comes from; "predicted" where it was computed and nothing was measured.
        interval: of the measured number, where it has one. It is drawn, and not printed.
    """
    yours = predictions().get(claim)
    words = (
        f"{claim}  article: {article or '-'} | you: {_said(yours)} | {how}: {measured:.3g} {unit}".rstrip()
    )
    if yours is not None and _holds(yours, measured) is False:
        words += "\nOutside your range. Which assumption was different from what happened?"
    if yours is not None and is_number(float(measured)):
        keep(_revealed_file(), {**revealed(), claim: float(measured)})
    ends = None if None in interval else interval
    about = " ".join(filter(None, (f"{claim}, {how}: {measured:.3g}", unit)))
    tell(words, lambda: _reveal_card(claim, yours, float(measured), ends, how, about, article))


def _reveal_card(
    claim: str,
    yours: Mapping | None,
    measured: float,
    interval: tuple[float, float] | None,
    how: str,
    about: str,
    article: str,
) -> str:
    """A reveal as HTML. ``about``: names the number, and its unit."""
    said = f"<div>The article says: {escape(article)}.</div>" if article else ""
    if yours is None:
        code = escape(f'predict("{claim}", …)')
        said += f"<div>To compare it with a guess of yours, fill in the form of <code>{code}</code> "
        return card("open", "no prediction of yours", about, f"{said}above, and run this cell again.</div>")
    ends = (yours["low"], yours["high"]) if _has_range(yours) else None
    if is_number(measured):
        said += number_line(measured, interval, yours["value"], ends, how)
    holds = _holds(yours, measured)
    if holds is None:
        return card("number", "beside your guess", about, said)
    if holds:
        return card("right", "inside your range", about, said)
    question = "<div>Which assumption was different from what happened?</div>"
    return card("not yet", "outside your range", about, said + question)


def revealed() -> dict[str, float]:
    """Return the answers to the reader's predictions, as far as they were revealed, by claim or result."""
    return read_kept(_revealed_file(), _numbers_in)


def _numbers_in(found: Any) -> dict[str, float]:
    """The entries of a file of revealed numbers that are numbers."""
    return {name: n for name, n in found.items() if is_number(n)} if isinstance(found, dict) else {}


def held() -> dict[str, bool]:
    """Return whether the 80% range held the answer, for each prediction with a range whose answer was revealed."""
    answers = revealed()
    found = {name: _holds(entry, answers[name]) for name, entry in predictions().items() if name in answers}
    return {name: holds for name, holds in found.items() if holds is not None}


def _revealed_file() -> Path:
    return build_dir() / "revealed.json"


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
