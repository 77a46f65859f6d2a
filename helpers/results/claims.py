"""The article's claims, the reader's predictions, and the verdicts that measurements give.

A verdict never comes without a number, the model it was measured on, and how many seeds.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import KW_ONLY, asdict, dataclass, fields
from pathlib import Path
from typing import Any

from helpers.files import counted, keep, read_kept, require_each, say, seen
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


# --- verdicts ----------------------------------------------------------------------


@dataclass(frozen=True)
class Verdict:
    """What was found about a claim on one model, or about one part of it.

    Attributes:
        claim: an id of `CLAIMS`.
        verdict: one of `VERDICTS`.
        part: what of the claim this is about, e.g. "attention frozen"; empty for the whole claim.
        text: the text that the number was measured on; empty where no text was needed.
        value: the number that decided; None only where nothing was tested or decided.
        low, high: its 95% interval, where there is one.
        smallest: the smallest difference from `Scale.same` that counts, where a rule names one.
        n_seeds: training runs per plan; 0 where nothing was trained.
        source: "live" (measured by this notebook) or "recorded" (from data/evidence).
        note: what was measured, in a few words; "on these two authors" where that is all.

    Raises:
        ClaimError: an unknown claim, verdict or source, or a verdict without a number.
    """

    claim: str
    verdict: str
    _: KW_ONLY
    part: str = ""
    text: str = ""
    value: float | None
    low: float | None = None
    high: float | None = None
    smallest: float | None = None
    unit: str
    model: str
    model_hash: str
    n_seeds: int
    source: str
    note: str = ""

    def __post_init__(self) -> None:
        """Check, and make plain floats of the numbers."""
        if self.claim not in CLAIMS:
            raise ClaimError(f"Claim '{self.claim}' is not known. Claims: {', '.join(CLAIMS)}.")
        if self.verdict not in VERDICTS:
            raise ClaimError(f"Verdict '{self.verdict}' is not known. Verdicts: {', '.join(VERDICTS)}.")
        if self.source not in ("live", "recorded"):
            raise ClaimError(f"Source '{self.source}' is not known. Choose 'live' or 'recorded'.")
        for name in NUMBERS:
            object.__setattr__(self, name, plain(getattr(self, name)))
        if self.verdict not in (UNTESTED, UNDECIDED) and self.value is None:
            raise ClaimError(f"{self.claim}: a verdict needs a number. Give value=, or say '{UNTESTED}'.")

    def as_row(self) -> dict:
        """What a file holds of a verdict: all but its claim."""
        row = asdict(self)
        del row["claim"]
        return row

    @classmethod
    def from_row(cls, claim: str, row: Any) -> Verdict:
        """Read what `as_row` made. What it does not know, it leaves out.

        Raises:
            ClaimError: it is no verdict.
        """
        if not isinstance(row, dict):
            raise ClaimError(f"{claim}: a verdict is a mapping, found {seen(row)}.")
        faults = [f"no {name}" for name in NEEDED if name not in row]
        faults += [f"{name} is no text" for name in TEXTS if not isinstance(row.get(name, ""), str)]
        faults += [f"{name} is no number" for name in NUMBERS if not _is_number_or_none(row.get(name))]
        if type(row.get("n_seeds")) is not int:
            faults.append("n_seeds is no whole number")
        if faults:
            raise ClaimError(f"{claim}: this is no verdict: {', '.join(faults)}.")
        known = [field.name for field in fields(cls) if field.name != "claim"]
        return cls(claim, **{name: row[name] for name in known if name in row})


NUMBERS = ("value", "low", "high", "smallest")
TEXTS = ("verdict", "part", "text", "unit", "model", "model_hash", "source", "note")
NEEDED = ("verdict", "value", "unit", "model", "model_hash", "n_seeds", "source", "note")


def _is_number_or_none(found: Any) -> bool:
    return found is None or is_number(found)


@dataclass(frozen=True)
class Entry:
    """A claim with its verdicts: the first leads; those on other models, or about other parts, stand beside it."""

    verdicts: tuple[Verdict, ...]

    @property
    def first(self) -> Verdict:
        return self.verdicts[0]

    @property
    def id(self) -> str:
        return self.first.claim

    @property
    def statement(self) -> str:
        return CLAIMS[self.id].statement

    def as_json(self) -> dict:
        """What a file holds: the first verdict with its claim, and the others under "also"."""
        row, *others = (verdict.as_row() for verdict in self.verdicts)
        claim, note = CLAIMS[self.id], row.pop("note")
        content = {
            "id": claim.id,
            "statement": claim.statement,
            **row,
            "notebook": claim.notebook,
            "note": note,
        }
        return content | ({"also": others} if others else {})

    @classmethod
    def from_json(cls, found: Any) -> Entry:
        """Read what `as_json` made.

        Raises:
            ClaimError: it is no claim with its verdicts.
        """
        heads = (
            [found.get(name) for name in ("id", "statement", "notebook")] if isinstance(found, dict) else []
        )
        if not heads or not all(isinstance(head, str) for head in heads):
            raise ClaimError(f"An entry has an id, a statement and a notebook; found {seen(found)}.")
        others = found.get("also", [])
        if not isinstance(others, list):
            raise ClaimError(
                f"{found['id']}: the verdicts beside the first are a list, found {seen(others)}."
            )
        return cls(tuple(Verdict.from_row(found["id"], row) for row in (found, *others)))


def record(claim: str, verdict: str, *, folder: Path | None = None, **fields_of_verdict) -> Entry:
    """Write ``build/claims/<id>.json`` and print the verdict with its note.

    Args:
        claim: an id of `CLAIMS`.
        fields_of_verdict: as `Verdict` takes them.

    Raises:
        ClaimError: as in `Verdict`.
    """
    return record_entry(Entry((Verdict(claim, verdict, **fields_of_verdict),)), folder)


def record_entry(entry: Entry, folder: Path | None = None) -> Entry:
    """Do as `record` does with a claim that has its verdicts; return it. A long note has a line for each sentence."""
    store(entry, folder)
    for verdict in entry.verdicts:
        where = "" if verdict is entry.first else f" ({about(verdict)})"
        sentences = re.split(r"(?<=\.) ", verdict.note)
        start = " " if len(sentences) == 1 else "\n    "
        say(f"{entry.id} {verdict.verdict}{where}:{start}" + "\n    ".join(sentences))
    return entry


def store(entry: Entry, folder: Path | None = None) -> None:
    """Write an entry where `load_claims` looks for it; a folder that cannot be written is said."""
    keep((folder or build_dir() / "claims") / f"{entry.id}.json", entry.as_json())


def load_claims(folder: Path | None = None) -> list[Entry]:
    """Return all recorded verdicts, in the order of `CLAIMS`. A damaged file is said and put aside."""
    place = folder or build_dir() / "claims"
    there = {path.stem for path in place.glob("C*.json")}
    found = [
        read_kept(place / f"{claim}.json", lambda content, claim=claim: _whole(content, claim))
        for claim in CLAIMS
        if claim in there
    ]
    return [Entry.from_json(content) for content in found if content]


def _whole(content: Any, claim: str) -> dict:
    """The content of a file that holds an entry of this claim; ``{}`` for any other."""
    try:
        return content if Entry.from_json(content).id == claim else {}
    except ClaimError:
        return {}


# --- words -------------------------------------------------------------------------


def entries_of(found: Iterable[Entry]) -> list[Entry]:
    """Return entries as a list; raise TypeError for anything else."""
    return require_each(found, Entry, "Claims have entries, as load_claims gives them")


def about(verdict: Verdict) -> str:
    """Which verdict of a claim it is: its part, where it has one, and its model."""
    return f"{verdict.part}, on {verdict.model}" if verdict.part else f"on {verdict.model}"


def seeds_of(verdict: Verdict) -> str:
    """For the end of a list: ", 3 seeds"; empty where nothing was trained."""
    return f", {counted(verdict.n_seeds, 'seed')}" if verdict.n_seeds else ""


def sentence_case(text: str) -> str:
    """The same with a capital letter at its start."""
    return text[:1].upper() + text[1:]


def sentences(parts: Sequence[str]) -> str:
    """Each part as a sentence of its own."""
    return " ".join(f"{sentence_case(part)}." for part in parts)


def plain(number) -> float | None:
    """A float for JSON: no numpy type, no NaN."""
    return None if number is None or not math.isfinite(number) else float(number)


def is_number(found: Any) -> bool:
    """Whether something read from JSON is a number that can be shown: no truth value, no NaN, no infinity."""
    return type(found) in (int, float) and abs(found) <= sys.float_info.max


def two_digits(number: float, sign: str = "", more: int = 0) -> str:
    """A number with two significant digits and no exponent; whole numbers keep theirs.

    Args:
        number: any.
        sign: "+" shows it.
        more: digits beyond the two.
    """
    if not math.isfinite(number) or float(number).is_integer():
        return f"{number:{sign},.0f}"
    rounded = float(f"{number:.{1 + more}e}")
    n_decimals = max(0, 1 + more - math.floor(math.log10(abs(rounded))))
    return f"{rounded:{sign}.{n_decimals}f}" if abs(number) < 100 else f"{number:{sign},.0f}"


def with_interval(value: float, low: float, high: float) -> str:
    """``0.94 [0.91, 0.98]``: two digits each, three where both ends of the interval would read the same."""
    more = 1 if two_digits(low) == two_digits(high) else 0
    said, lowest, highest = (two_digits(number, more=more) for number in (value, low, high))
    return f"{said} [{lowest}, {highest}]"


def number_of(verdict: Verdict) -> str:
    """The number of a verdict with its text, interval and unit, e.g. ``alice: -0.031 [-0.044, -0.018] nats``."""
    if verdict.value is None:
        return "-"
    number = two_digits(verdict.value)
    if verdict.low is not None and verdict.high is not None:
        number = with_interval(verdict.value, verdict.low, verdict.high)
    return f"{verdict.text + ': ' if verdict.text else ''}{number} {verdict.unit}".strip()
