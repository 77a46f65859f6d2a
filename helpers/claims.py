"""The article's claims, the reader's predictions, and the verdicts that measurements give.

A verdict never comes without a number, the model it was measured on, and how many seeds.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import Any

import pandas as pd

from helpers.decisions import (  # noqa: F401  (the words and rules are at hand here as well)
    FAILS,
    HOLDS,
    IN_PART,
    SMALLEST_FORGETTING,
    SMALLEST_LOSS,
    UNDECIDED,
    UNTESTED,
    VERDICTS,
    decide,
    decide_at_least,
    decide_equal,
    over_texts,
)
from helpers.kept import keep, read_kept
from helpers.profiles import build_dir
from helpers.reading import finite


class ClaimError(ValueError):
    """A claim or verdict that cannot be recorded. The message says what is allowed."""


@dataclass(frozen=True)
class Claim:
    """What the article says, in our words, and where the course tests it."""

    id: str
    statement: str
    notebook: str


CLAIMS = {c.id: c for c in (
    Claim("C1", "A block computes h' = LN(x + MSA(x)), y = LN(h' + MLP(h')).", "01_transformer_block"),
    Claim("C2", "Attention learns relations between tokens; the MLP transforms features.", "01_transformer_block"),
    Claim("C3", "requires_grad = False makes the gradient of the attention weights zero, and it is skipped.",
          "02_freezing"),
    Claim("C4", "The share of parameters that train, R, is about 0.5.", "03_parameter_ratios"),
    Claim("C5", "Of about 125 M parameters about 65 M train: almost 48% fewer.", "03_parameter_ratios"),
    Claim("C6", "Matching names on 'attn' or 'embed' freezes attention and embeddings.", "03_parameter_ratios"),
    Claim("C7", "The optimizer must get only the trainable parameters.", "02_freezing"),
    Claim("C8", "The loss still falls steadily and converges.", "04_training"),
    Claim("C9", "Gradients stay stable.", "04_training"),
    Claim("C10", "Freezing attention reduces catastrophic forgetting.", "05_loss_and_forgetting"),
    Claim("C11", "GPU memory falls by 25 to 30%.", "04_training"),
    Claim("C12", "Training is slightly faster.", "04_training"),
    Claim("C13", "On narrow tasks the quality equals full fine-tuning.", "05_loss_and_forgetting"),
    Claim("C14", "Training the MLP is enough for style; attention holds grammar, the MLP facts.",
          "05_loss_and_forgetting"),
    Claim("C15", "Against LoRA: no extra matrices, no added latency, very stable.", "06_lora"),
)}


# What a verdict says; the rest of an entry is about the claim.
VERDICT_KEYS = ("verdict", "part", "text", "value", "low", "high", "unit", "model", "model_hash", "n_seeds", "source",
                "note")


# --- records -----------------------------------------------------------------------


def record(claim: str, verdict: str, *, folder: Path | None = None, **entry) -> dict:
    """Write ``build/claims/<id>.json`` and print the verdict in one line.

    Args:
        claim: an id of `CLAIMS`.
        entry: as `made` takes it.

    Raises:
        ClaimError: an unknown claim, verdict or source, or a verdict without a number.
    """
    found = made(claim, verdict, **entry)
    store(found, folder)
    for k, row in enumerate(on_models(found)):
        where = f" ({about(row)})" if k else ""
        print(f"{claim} {row['verdict']}{where}: {row['note']}")
    return found


def made(claim: str, verdict: str, *, value: float | None, unit: str, model: str, model_hash: str, n_seeds: int,
         source: str, low: float | None = None, high: float | None = None, note: str = "", part: str = "",
         text: str = "", also: Sequence[Mapping] = ()) -> dict:
    """One verdict as it is stored.

    Args:
        value: the number that decided; None only where nothing was tested or decided.
        low, high: its 95% interval, where there is one.
        n_seeds: training runs per plan; 0 where nothing was trained.
        source: "live" (measured by this notebook) or "recorded" (from data/evidence).
        note: what was measured, in a few words; "on these two authors" where that is all.
        part: what of the claim this verdict is about, e.g. "attention frozen"; empty for the whole claim.
        text: the text that the number was measured on; empty where no text was needed.
        also: the same claim on other models, or other parts of it: mappings with the same names.

    Raises:
        ClaimError: as in `record`.
    """
    if claim not in CLAIMS:
        raise ClaimError(f"Claim '{claim}' is not known. Claims: {', '.join(CLAIMS)}.")
    if verdict not in VERDICTS:
        raise ClaimError(f"Verdict '{verdict}' is not known. Verdicts: {', '.join(VERDICTS)}.")
    if source not in ("live", "recorded"):
        raise ClaimError(f"Source '{source}' is not known. Choose 'live' or 'recorded'.")
    if verdict not in (UNTESTED, UNDECIDED) and value is None:
        raise ClaimError(f"{claim}: a verdict needs a number. Give value=, or say '{UNTESTED}'.")
    entry = {"id": claim, "statement": CLAIMS[claim].statement, "verdict": verdict, "part": part, "text": text,
             "value": plain(value), "low": plain(low), "high": plain(high), "unit": unit, "model": model,
             "model_hash": model_hash, "n_seeds": n_seeds, "source": source,
             "notebook": CLAIMS[claim].notebook, "note": note}
    others = [made(**{"claim": claim, **row}) for row in also]
    return entry | ({"also": [{k: row[k] for k in VERDICT_KEYS} for row in others]} if others else {})


def store(entry: Mapping, folder: Path | None = None) -> None:
    """Write an entry where `load_claims` looks for it; a folder that cannot be written is said."""
    keep((folder or build_dir() / "claims") / f"{entry['id']}.json", dict(entry))


def on_models(entry: Mapping) -> list[Mapping]:
    """The verdicts of a claim, one a model and part: the entry's own first, then those under "also"."""
    return [{k: row[k] for k in VERDICT_KEYS if k in row} for row in (entry, *entry.get("also", ()))]


def about(row: Mapping) -> str:
    """Which verdict of a claim it is: its part, where it has one, and its model."""
    return f"{row['part']}, on {row['model']}" if row.get("part") else f"on {row['model']}"


def seeds_of(row: Mapping) -> str:
    """For the end of a list: ", 3 seeds"; empty where nothing was trained."""
    return f", {row['n_seeds']} seed{'s' * (row['n_seeds'] != 1)}" if row["n_seeds"] else ""


def plain(number) -> float | None:
    """A float for JSON: no numpy type, no NaN."""
    return None if number is None or not math.isfinite(number) else float(number)


def load_claims(folder: Path | None = None) -> list[dict]:
    """Return all recorded verdicts, in the order of `CLAIMS`. A damaged file is said and put aside."""
    place = folder or build_dir() / "claims"
    there = {path.stem for path in place.glob("C*.json")}
    found = [read_kept(place / f"{claim}.json", lambda entry, claim=claim: entry if _is_entry(entry, claim) else {})
             for claim in CLAIMS if claim in there]
    return [entry for entry in found if entry]


def _is_entry(found: Any, claim: str) -> bool:
    """Whether a file holds what `made` makes for this claim."""
    if not isinstance(found, dict) or found.get("id") != claim:
        return False
    others = found.get("also", [])
    texts = all(isinstance(found.get(key), str) for key in ("statement", "notebook"))
    return texts and isinstance(others, list) and all(map(_is_verdict, [found, *others]))


def _is_verdict(row: Any) -> bool:
    if not isinstance(row, dict) or row.get("verdict") not in VERDICTS or type(row.get("n_seeds")) is not int:
        return False
    texts = all(isinstance(row.get(key), str) for key in ("unit", "model", "model_hash", "source", "note"))
    numbers = all(row.get(key) is None or _is_number(row[key]) for key in ("value", "low", "high"))
    return texts and numbers and (row.get("value") is not None or row["verdict"] in (UNTESTED, UNDECIDED))


def _is_number(found: Any) -> bool:
    """Whether something read from JSON is a number that can be shown: no truth value, no NaN, no infinity."""
    return type(found) in (int, float) and abs(found) <= sys.float_info.max


def two_digits(number: float, sign: str = "") -> str:
    """A number with two significant digits and no exponent; whole numbers keep theirs. ``sign``: "+" shows it."""
    if not math.isfinite(number) or float(number).is_integer():
        return f"{number:{sign},.0f}"
    rounded = float(f"{number:.1e}")
    n_decimals = max(0, 1 - math.floor(math.log10(abs(rounded))))
    return f"{rounded:{sign}.{n_decimals}f}" if abs(number) < 100 else f"{number:{sign},.0f}"


def number_of(entry: Mapping) -> str:
    """The number of a verdict with its text, interval and unit, e.g. ``alice: -0.031 [-0.044, -0.018] nats``."""
    if entry["value"] is None:
        return "-"
    number = two_digits(entry["value"])
    if entry["low"] is not None and entry["high"] is not None:
        number += f" [{two_digits(entry['low'])}, {two_digits(entry['high'])}]"
    return f"{entry['text'] + ': ' if entry.get('text') else ''}{number} {entry['unit']}".strip()


def claims_table(entries: list[dict], width: int = 110) -> str:
    """The verdicts as aligned text for a terminal: a line a model and part, then the claim; long ones are wrapped."""
    if not entries:
        return "No claim has been measured yet."
    lines = []
    for e in entries:
        for k, row in enumerate(on_models(e)):
            line = (f"{'' if k else e['id']:<4} {row['verdict']:<15} {number_of(row):<34} "
                    f"{about(row).removeprefix('on ')}, {row['n_seeds']} seed{'s' if row['n_seeds'] != 1 else ''}, "
                    f"{row['source']}")
            lines.append(fill(line, width, subsequent_indent=" " * 21, break_on_hyphens=False))
        lines.append(fill(e["statement"], width, initial_indent=" " * 5, subsequent_indent=" " * 5))
    return "\n".join(lines)


# --- predictions -------------------------------------------------------------------


def predict(claim: str, value: Any = ..., low: Any = None, high: Any = None) -> None:
    """Note your own estimate and the range that you are 80% sure of, before you measure.

    Kept in ``build/predictions.json`` on this machine alone. One line says what was understood; whatever is given,
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
        print(f"{claim}: {_left_open(claim, value, earlier)}")
        return
    try:
        number = _estimate(value)
    except ValueError as fault:
        stays = "" if earlier is None else f" Your earlier prediction, {_said(earlier)}, stays."
        print(f'{claim}: nothing is noted: {fault}. Write a number, as in predict("{claim}", 0.5, 0.4, 0.6).{stays}')
        return
    ends, remark = _range(number, low, high)
    entry = {"value": number, "low": ends and ends[0], "high": ends and ends[1]}
    if not keep(_predictions_file(), {**predictions(), claim: entry}):
        return
    if ends:
        print(f"{claim}: you predict {number:g}, and are 80% sure of {ends[0]:g} to {ends[1]:g}.{remark}")
    else:
        print(f"{claim}: you predict {number:g}, without a range.{remark} "
              f'To say how sure you are: predict("{claim}", {number:g}, low, high).')


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
        raise ValueError(f"'{value.strip()[:20]}' may mean a share or a number of percent, so write it without the "
                         "sign, in the unit that is asked for")
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
    return {claim: entry for claim, entry in found.items() if _is_prediction(entry)} if isinstance(found, dict) else {}


def _is_prediction(entry: Any) -> bool:
    if not isinstance(entry, dict) or set(entry) != {"value", "low", "high"} or not _is_number(entry["value"]):
        return False
    low, high = entry["low"], entry["high"]
    if low is None and high is None:
        return True
    return _is_number(low) and _is_number(high) and low <= entry["value"] <= high


def _has_range(entry: Mapping) -> bool:
    """Whether the range says something: one of width zero does not."""
    return entry["low"] is not None and entry["low"] < entry["high"]


def _said(entry: Mapping | None) -> str:
    """A prediction in a line: ``0.5 (0.4 to 0.6)``."""
    if entry is None:
        return "no prediction"
    return f"{entry['value']:g} ({entry['low']:g} to {entry['high']:g})" if _has_range(entry) else f"{entry['value']:g}"


def _holds(entry: Mapping, measured: float) -> bool | None:
    """Whether the measurement lies in the range; None where there is no range."""
    return entry["low"] <= measured <= entry["high"] if _has_range(entry) else None


def reveal(claim: str, measured: float, unit: str = "", article: str = "", how: str = "measured") -> None:
    """Print article, prediction and measurement side by side. A miss is a question, not a mark.

    Args:
        how: where the number comes from; "predicted" where it was computed and nothing was measured.
    """
    yours = predictions().get(claim)
    print(f"{claim}  article: {article or '-'} | you: {_said(yours)} | {how}: {measured:.3g} {unit}".rstrip())
    if yours is not None and _holds(yours, measured) is False:
        print("Outside your range. Which assumption was different from what happened?")


def prediction_ledger(entries: list[dict]) -> pd.DataFrame:
    """Return reader and measurement side by side, and whether the 80% range held (NA where none was given)."""
    yours = predictions()
    table = pd.DataFrame([{
        "claim": e["id"], "you": yours[e["id"]]["value"], "measured": e["value"], "unit": e["unit"],
        "in your range": _holds(yours[e["id"]], e["value"]),
    } for e in entries if e["id"] in yours and e["value"] is not None],
        columns=["claim", "you", "measured", "unit", "in your range"])
    return table.astype({"in your range": "boolean"})


def _predictions_file() -> Path:
    return build_dir() / "predictions.json"


# --- printed numbers that survive another machine ----------------------------------


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
        print(f"{what}: {value:.4g} {unit}, outside {low:g} to {high:g}, which was seen when this page was made.")
    return inside
