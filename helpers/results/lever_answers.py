"""What moves forgetting most: the rate, stopping early, or what is frozen? From the records of one model.

Each lever is one number: forgetting with it over forgetting without it, at equal gain wherever a gain can be equal.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from helpers import plots
from helpers.files import counted
from helpers.measuring import forgetting_at, frontier
from helpers.results.answers import Answer, in_nats, markdown, of_runs
from helpers.results.claims import sentence_case, two_digits
from helpers.results.evidence import (
    AUTHORS,
    DECIDING,
    FULL,
    SHARES,
    TOP_SHARE,
    Evidence,
    Gap,
    forgetting_gap,
    full_gain,
    gap_at,
    quality_finding,
    text_name,
)
from helpers.results.plan_answers import DESCRIBED
from helpers.results.verdicts import numbers

RIVALS = (("only-attention", "only-mlp-out"),)  # equally many parameters


@dataclass(frozen=True)
class Lever:
    """One choice on one text: forgetting with the one and with the other, nats per token, over so many seeds.

    ``kind`` is "the rate", "stopping" or "the plan"; ``name`` says what stands over what.
    """

    text: str
    kind: str
    name: str
    forgot: tuple[float, float]
    n_seeds: int

    @property
    def factor(self) -> float:
        return self.forgot[0] / self.forgot[1]

    @property
    def times(self) -> float:
        """The factor, or its inverse: 1 or more."""
        return max(self.factor, 1 / self.factor)


def rate_lever(evidence: Evidence, text: str) -> Lever | None:
    """Full training at its highest rate that got to the level, over its gentlest: tuning runs."""
    at = evidence.at_level(FULL, text)
    if len(at) < 2:
        return None
    high, low = max(at), min(at, key=at.get)
    n_seeds = {r["n_seeds"] for r in evidence.rates["table"] if (r["plan"], r["text"]) == (FULL, text)}
    return Lever(
        text, "the rate", f"full training at {high:g} over {low:g}", (at[high], at[low]), min(n_seeds)
    )


def stopping_lever(evidence: Evidence, text: str) -> Lever | None:
    """Full training at its own best gain, over 80% of that: what the last fifth of the gain costs."""
    runs = evidence.of(FULL, text, "keep")
    if not runs:
        return None
    at_best = [float(frontier(r.evaluations)[1][-1]) for r in runs]
    early = [forgetting_at(r.evaluations, TOP_SHARE * frontier(r.evaluations)[0][-1]) for r in runs]
    return Lever(
        text,
        "stopping",
        f"full training at its best gain over {TOP_SHARE:.0%} of it",
        (float(np.mean(at_best)), float(np.mean(early))),
        len(runs),
    )


def plan_levers(evidence: Evidence, text: str) -> list[Lever]:
    """Each pair of plans that was compared at equal gain, at the rates that forget least."""
    pairs = [*RIVALS, *((p, FULL) for p in (*DECIDING[1:], *DESCRIBED))]
    gaps = {pair: forgetting_gap(evidence, *pair, text) for pair in pairs}
    return [
        Lever(text, "the plan", f"`{plan}` over `{other}`: {gap.word}", gap.forgotten, gap.interval.n_pairs)
        for (plan, other), gap in gaps.items()
        if gap and not gap.has_unlike_rates
    ]


def every_lever(evidence: Evidence) -> list[Lever]:
    """The rate, stopping, and the plans, as factors of forgetting; the largest first."""
    found = [
        lever
        for text in AUTHORS
        for lever in (
            rate_lever(evidence, text),
            stopping_lever(evidence, text),
            *plan_levers(evidence, text),
        )
        if lever
    ]
    return sorted(found, key=lambda lever: abs(np.log(lever.factor)), reverse=True)


def largest_levers(evidence: Evidence) -> dict[str, Lever]:
    """Kind to its lever with the largest factor, the largest first."""
    first: dict[str, Lever] = {}
    for lever in every_lever(evidence):
        first.setdefault(lever.kind, lever)
    return first


def levers(evidence: Evidence) -> Answer | None:
    """What moves forgetting most: every lever, with its factor."""
    found = every_lever(evidence)
    if not any(lever.kind == "the rate" for lever in found) or len(found) < 2:
        return None
    points = {f"{text_name(lever.text)}, {short(lever)}": (lever.factor,) * 3 for lever in found}
    first = found[0]
    name = short(first)
    title = (
        f"{sentence_case(name)} changed forgetting most: {two_digits(first.times)} times\n"
        f"({evidence.model}, on {text_name(first.text)}, {seeds(first)}; other factors below)"
    )
    runs = [r for t in AUTHORS for p in (FULL, *DECIDING[1:], *DESCRIBED) for r in evidence.of(p, t, "keep")]
    return of_runs(
        evidence,
        runs,
        points,
        title=title,
        table=table_of(found),
        sentence=" ".join([ranking(largest_levers(evidence)), *sentences(evidence)]),
        alt=f"Factors by which {len(points)} choices change forgetting; 1 is no change",
        draw=lambda: plots.intervals(points, title, "factor of forgetting: 1 is no change", same=1),
    )


def short(lever: Lever) -> str:
    """A lever in a few words: its kind, or for a plan what stands over what."""
    return lever.name.replace("`", "").partition(": ")[0] if lever.kind == "the plan" else lever.kind


def ranking(first: Mapping[str, Lever]) -> str:
    """Each kind of lever by its largest factor, in their order."""
    return (
        "By its largest factor of forgetting: "
        + "; ".join(
            f"{lever.kind} {two_digits(lever.factor)} (on {text_name(lever.text)}, {lever.name.partition(': ')[0]})"
            for lever in first.values()
        )
        + "."
    )


def table_of(found: list[Lever]) -> str:
    """A row a lever, the largest factor first."""
    rows = [
        [
            text_name(lever.text),
            lever.kind,
            lever.name,
            " / ".join(two_digits(f) for f in lever.forgot),
            two_digits(lever.factor),
            lever.n_seeds,
        ]
        for lever in found
    ]
    head = [
        "text",
        "what",
        "the first over the second",
        "forgetting of each, nats per token",
        "factor",
        "seeds",
    ]
    return markdown(head, rows)


# --- sentences ---------------------------------------------------------------------


def sentences(evidence: Evidence) -> list[str]:
    """What the records say beside the claims, each with its numbers and seeds; what was not run is left out."""
    said = []
    for text in AUTHORS:
        rate, stop = rate_lever(evidence, text), stopping_lever(evidence, text)
        if rate:
            high, low = map(two_digits, rate.forgot)
            said.append(
                f"On {text_name(text)}, {rate.name}: {high} and {low} nats per token at equal gain, a factor of "
                f"{two_digits(rate.factor)} ({seeds(rate)})."
            )
        if stop:
            last = stop.forgot[0] - stop.forgot[1]
            said.append(
                f"On {text_name(text)} the last fifth of full training's gain cost {two_digits(last)} nats per token of "
                f"forgetting, the first four {two_digits(stop.forgot[1])} ({seeds(stop)})."
            )
        for plan, other in (("attention", FULL), ("first-half", FULL), *RIVALS):
            gap = forgetting_gap(evidence, plan, other, text)
            if gap and not gap.has_unlike_rates:
                said.append(plan_in_words(evidence, plan, other, text, gap))
    return said


def seeds(lever: Lever) -> str:
    return counted(lever.n_seeds, "seed")


def plan_in_words(evidence: Evidence, plan: str, other: str, text: str, gap: Gap) -> str:
    """One plan beside another: the word, the difference, a factor a level, and what it gains on new chapters."""
    a, b = (evidence.every(p, text, "keep") for p in (plan, other))
    factors = []
    for share in (s for s in SHARES if s <= gap.share):
        _, _, (own, others) = gap_at(evidence, a, b, text, share * full_gain(evidence, text))
        factors.append(f"{two_digits(own / others)} at {share:.0%}")
    words = (
        f"On {text_name(text)} `{plan}` minus `{other}` at equal gain: {gap.word}, {in_nats(gap.interval)}; of what "
        f"`{other}` forgot it forgot {', '.join(factors)} of full training's best gain"
    )
    quality = quality_finding(evidence, text, text, plan, other)
    if quality.interval.n_pairs:
        words += f"; it gained {numbers(quality.interval, '')} of the other's gain on new chapters"
    return f"{words}."
