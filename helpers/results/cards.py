"""The decision card: when to freeze what, and when not to, from recorded verdicts alone.

An advice is chosen by the verdict of one claim, and stands beside the number that it rests on.
Where nothing was measured, the card says "predicted", or that it does not know.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from helpers.measuring import EQUAL_SHARE, FAILS, HOLDS, IN_PART, UNDECIDED, UNTESTED, over_texts
from helpers.profiles import DATA
from helpers.results.claims import Entry, Verdict, number_of, seeds_of

RECORDED = DATA / "evidence" / "claims.json"
UNKNOWN = "nothing was recorded: run the notebook that tests it"
OPEN = (UNDECIDED, UNTESTED)


@dataclass(frozen=True)
class Rule:
    """What to do for one wish, by the verdict of the claim that speaks about it."""

    wish: str
    claim: str
    advice: Mapping[str, str]  # verdict to advice; OPEN verdicts share one


def _rule(wish: str, claim: str, holds: str, in_part: str, fails: str, undecided: str) -> Rule:
    return Rule(wish, claim, {HOLDS: holds, IN_PART: in_part, FAILS: fails, **dict.fromkeys(OPEN, undecided)})


# The main plan freezes attention and embeddings, and trains MLP and LayerNorm.
RULES = (
    _rule(
        "the lowest loss on the new text",
        "C13",
        f"the main plan gains at least {EQUAL_SHARE:.0%} of what full training gains on new chapters: let memory and "
        "time decide",
        f"the main plan gained {EQUAL_SHARE:.0%} of what full training gained on some texts or models only: try both "
        "on your own dev text",
        "do not freeze for quality: full training gained more",
        "try full training and the main plan, each at its own rate, on your own dev text",
    ),
    _rule(
        "to keep what the base could do",
        "C10",
        "freeze, at a gentle rate: at equal gain it forgot less",
        "lower the rate first. Freezing forgot less on some texts or models only: compare at equal gain on yours",
        "do not freeze for this: at equal gain it did not forget less by an amount that counts. Lower the rate "
        "first, and stop early",
        "do not rely on freezing: lower the rate first, stop early, then compare plans at equal gain",
    ),
    _rule(
        "an author's manner",
        "C14",
        "the main plan is enough",
        "try the main plan beside full training: notebook 05 says for each part of the claim what was found",
        "do not rely on the MLP alone: the main plan learned less of the style than full training",
        "train everything if you can; whether the MLP alone is enough was not decided",
    ),
    _rule(
        "a shorter step",
        "C12",
        "freeze: a step took less time",
        "freeze, and time it on your machine: it was shorter in some settings only",
        "do not freeze for this: a step was no shorter",
        "count FLOPs with the budget; the time was not decided here",
    ),
    _rule(
        "less memory",
        "C11",
        "freeze: the peak fell as the article says",
        "freeze, but ask the budget first: the article's 25 to 30% were seen in some settings only",
        "do not expect 25 to 30%: ask the budget first, and use smaller micro-batches or checkpointing",
        "ask the budget first: what it predicts for you may be far from 25 to 30%",
    ),
    _rule(
        "to choose between this and LoRA",
        "C15",
        "partial fine-tuning: no new matrices, no latency, and stable over rates",
        "look which part of the claim you need: extra matrices, latency and stability got different verdicts in 07",
        "do not choose by latency or stability: decide by file size and memory, in notebook 07's table",
        "make notebook 07's table for your model; this was not decided",
    ),
)


def recorded_claims(place: Path = RECORDED) -> list[Entry]:
    """The verdicts that the course ships: of the study, of the measurements of time and memory, of the notebooks."""
    return [Entry.from_json(found) for found in json.loads(place.read_text("utf-8"))]


def basis_of(entry: Entry | None) -> str:
    """What an advice rests on, on each model and part: verdict, number, seeds; "predicted" where not measured."""
    if entry is None:
        return UNKNOWN
    return f"{entry.id} " + "; ".join(map(_basis_on_one, entry.verdicts))


def _basis_on_one(verdict: Verdict) -> str:
    was_measured = verdict.value is not None and "predicted" not in verdict.note
    who = f"{verdict.part + ', ' if verdict.part else ''}{verdict.model}"
    how = f"{who}{seeds_of(verdict) or ', no training runs'}" if was_measured else "predicted, not measured"
    return f"{verdict.verdict}: {number_of(verdict)} ({how})"


def verdict_over_models(entry: Entry) -> str:
    """One verdict to choose an advice by: what holds must hold on every model that was tested."""
    tested = [v.verdict for v in entry.verdicts if v.verdict != UNTESTED]
    return over_texts(tested) if tested else UNTESTED


def decision_card(entries: Sequence[Entry]) -> pd.DataFrame:
    """One row a wish: what to do, and what that rests on."""
    by_id = {e.id: e for e in entries}
    rows = []
    for rule in RULES:
        entry = by_id.get(rule.claim)
        advice = rule.advice[verdict_over_models(entry) if entry else UNTESTED]
        rows.append({"you want": rule.wish, "then": advice, "this rests on": basis_of(entry)})
    return pd.DataFrame(rows).set_index("you want")


def card_text(card: pd.DataFrame) -> str:
    """The card as plain lines, for output that is read and compared."""
    return "\n".join(
        f"{wish}:\n    {row['then']}\n    [{row['this rests on']}]" for wish, row in card.iterrows()
    )


def verdict_counts(entries: Sequence[Entry]) -> dict[str, list[str]]:
    """Verdict over all models to the claims that got it, in the order holds, in part, does not hold, open."""
    return {v: [e.id for e in entries if verdict_over_models(e) == v] for v in (HOLDS, IN_PART, FAILS, *OPEN)}
