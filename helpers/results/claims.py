"""The article's claims, the reader's predictions, and the verdicts that measurements give.

A verdict never comes without a number, the model it was measured on, and how many seeds.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helpers.files import keep, read_kept, say
from helpers.measuring import (
    UNDECIDED,
    UNTESTED,
    VERDICTS,
)
from helpers.profiles import build_dir


class ClaimError(ValueError):
    """A claim or verdict that cannot be recorded. The message says what is allowed."""


@dataclass(frozen=True)
class Scale:
    """How to read a claim's number: the value at which two things are equal, and what lies on its sides."""

    same: float
    below: str
    above: str


@dataclass(frozen=True)
class Claim:
    """What the article says, in our words, where the course tests it, and how to read its number."""

    id: str
    statement: str
    notebook: str
    scale: Scale | None = None


CLAIMS = {
    c.id: c
    for c in (
        Claim("C1", "A block computes h' = LN(x + MSA(x)), y = LN(h' + MLP(h')).", "A1_who_does_what"),
        Claim(
            "C2",
            "Attention learns relations between tokens; the MLP transforms features.",
            "A1_who_does_what",
            Scale(1, "worth less", "worth more"),
        ),
        Claim(
            "C3",
            "requires_grad = False makes the gradient of the attention weights zero, and it is skipped.",
            "02_freezing",
        ),
        Claim("C4", "The share of parameters that train, R, is about 0.5.", "03_parameter_ratios"),
        Claim("C5", "Of about 125 M parameters about 65 M train: almost 48% fewer.", "03_parameter_ratios"),
        Claim(
            "C6",
            "Matching names on 'attn' or 'embed' freezes attention and embeddings.",
            "03_parameter_ratios",
        ),
        Claim("C7", "The optimizer must get only the trainable parameters.", "02_freezing"),
        Claim("C8", "The loss still falls steadily and converges.", "04_training"),
        Claim("C9", "Gradients stay stable.", "04_training", Scale(1, "norm falls", "norm grows")),
        Claim(
            "C10",
            "Freezing attention reduces catastrophic forgetting.",
            "05_loss_and_forgetting",
            Scale(0, "forgets less", "forgets more"),
        ),
        Claim("C11", "GPU memory falls by 25 to 30%.", "04_training"),
        Claim("C12", "Training is slightly faster.", "04_training", Scale(1, "shorter step", "longer step")),
        Claim(
            "C13",
            "On narrow tasks the quality equals full fine-tuning.",
            "05_loss_and_forgetting",
            Scale(1, "gains less", "gains more"),
        ),
        Claim(
            "C14",
            "Training the MLP is enough for style; attention holds grammar, the MLP facts.",
            "05_loss_and_forgetting",
            Scale(1, "less style", "more style"),
        ),
        Claim("C15", "Against LoRA: no extra matrices, no added latency, very stable.", "07_lora"),
    )
}


# What a verdict says; the rest of an entry is about the claim.
VERDICT_KEYS = (
    "verdict",
    "part",
    "text",
    "value",
    "low",
    "high",
    "smallest",
    "unit",
    "model",
    "model_hash",
    "n_seeds",
    "source",
    "note",
)


# --- records -----------------------------------------------------------------------


def record(claim: str, verdict: str, *, folder: Path | None = None, **entry) -> dict:
    """Write ``build/claims/<id>.json`` and print the verdict with its note.

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
        say(f"{claim} {row['verdict']}{where}: {row['note']}")
    return found


def made(
    claim: str,
    verdict: str,
    *,
    value: float | None,
    unit: str,
    model: str,
    model_hash: str,
    n_seeds: int,
    source: str,
    low: float | None = None,
    high: float | None = None,
    smallest: float | None = None,
    note: str = "",
    part: str = "",
    text: str = "",
    also: Sequence[Mapping] = (),
) -> dict:
    """One verdict as it is stored.

    Args:
        value: the number that decided; None only where nothing was tested or decided.
        low, high: its 95% interval, where there is one.
        smallest: the smallest difference from `Scale.same` that counts, where a rule names one.
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
    entry = {
        "id": claim,
        "statement": CLAIMS[claim].statement,
        "verdict": verdict,
        "part": part,
        "text": text,
        "value": plain(value),
        "low": plain(low),
        "high": plain(high),
        "smallest": plain(smallest),
        "unit": unit,
        "model": model,
        "model_hash": model_hash,
        "n_seeds": n_seeds,
        "source": source,
        "notebook": CLAIMS[claim].notebook,
        "note": note,
    }
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
    found = [
        read_kept(
            place / f"{claim}.json", lambda entry, claim=claim: entry if _is_entry(entry, claim) else {}
        )
        for claim in CLAIMS
        if claim in there
    ]
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
    numbers = all(row.get(key) is None or is_number(row[key]) for key in ("value", "low", "high", "smallest"))
    return texts and numbers and (row.get("value") is not None or row["verdict"] in (UNTESTED, UNDECIDED))


def is_number(found: Any) -> bool:
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
