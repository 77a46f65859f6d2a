"""What the recorded runs of one model say about a claim, text by text.

    evidence = read_evidence("gpt-neo-mini")
    findings = forgetting_findings(evidence)        one `decisions.Finding` a text

A study that is still growing has fewer seeds, plans or texts: what is missing is said, and decides nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from helpers import decisions
from helpers.comparison import (
    ComparisonError,
    Interval,
    chosen,
    forgetting_difference,
    frontier,
    loss_difference,
    matched_gain,
    style_contrasts,
    style_difference,
    style_ratio,
)
from helpers.decisions import SMALLEST_FORGETTING, SMALLEST_LOSS, UNDECIDED, Finding
from helpers.plans import COURSE_PLANS
from helpers.profiles import DATA, SMOLLM2, TINY
from helpers.records import read_record, read_runs

EVIDENCE = DATA / "evidence"
AUTHORS = ("alice", "edgar")
REAL = {"alice": "carroll", "edgar": "poe"}  # the real author behind each text
BOOKS = ("poe", "fresh")  # texts so long that a run reads a part of them, once
MAIN, FULL = "attention+embeddings", "full"
DECIDING = (FULL, MAIN, "only-attention", "only-mlp-out")
RATES = {TINY.model_name: "rates.json", SMOLLM2.model_name: "rates-smollm2.json"}  # model to its table of rates
MISSING = "no pairs of runs"  # how a reason begins where runs have not been recorded yet
TOP_SHARE = 0.8  # of full training's best gain: the level g* in the table of rates


@dataclass(frozen=True)
class Evidence:
    """All records of a model: main runs, long runs, and the table of rates."""

    model: str
    runs: list[dict]
    long: list[dict]
    rates: dict

    def every(self, plan: str, text: str, choice: str) -> list[dict]:
        """All runs of a plan by its course name, those that broke off too. The choice "long": its long runs."""
        runs = self.long if choice == "long" else self.runs
        return chosen(runs, COURSE_PLANS[plan].slug if plan in COURSE_PLANS else plan, text, choice)

    def of(self, plan: str, text: str, choice: str) -> list[dict]:
        """The finished runs of a plan by its course name."""
        return [r for r in self.every(plan, text, choice) if "diverged" not in r]

    def n_diverged(self, *plans: str, choice: str = "learn", texts: Sequence[str] = AUTHORS) -> int:
        """How many runs of these plans broke off. A comparison is made without them, and must say so."""
        return sum("diverged" in r for p in plans for t in texts for r in self.every(p, t, choice))

    def both(self, plan: str, choice: str = "learn") -> list[dict]:
        return [r for text in AUTHORS for r in self.of(plan, text, choice)]

    def seeds(self, *plans: str, choice: str = "learn", texts: Sequence[str] = AUTHORS) -> list[int]:
        """The seeds with which all these plans have finished on all texts."""
        own = [{r["seed"] for r in self.of(p, t, choice)} for p in plans for t in texts]
        return sorted(set.intersection(*own)) if own else []

    def smallest(self, text: str) -> float:
        """The smallest difference in forgetting that counts on a text, nats a token."""
        return self.rates["smallest_forgetting"].get(text, SMALLEST_FORGETTING)

    def at_level(self, plan: str, text: str) -> dict[float, float]:
        """Rate to forgetting at the level, nats a token: of the tuning runs of a plan that got there."""
        return {r["rate"]: r["forgetting_at_level"] for r in self.rates["table"]
                if (r["plan"], r["text"]) == (plan, text) and r["forgetting_at_level"] is not None}

    @property
    def has_real_authors(self) -> bool:
        runs = self.both(FULL)
        return bool(runs) and all(set(REAL.values()) <= set(r["test_windows"]) for r in runs)


def studied_models(folder: Path = EVIDENCE) -> list[str]:
    """The models with recorded runs and a table of rates; the miniature first."""
    return [m for m, rates in RATES.items()
            if (folder / rates).exists() and any((folder / "runs" / m).rglob("*.json"))]


def read_evidence(model: str, folder: Path = EVIDENCE) -> Evidence:
    """Read what `scripts/record_evidence.py` wrote. Raises RecordError, which names a damaged file."""
    rates = read_record(folder / RATES[model], {"chosen": dict})
    rates.setdefault("smallest_forgetting", {})
    return Evidence(model, read_runs(folder / "runs" / model), read_runs(folder / "long" / model), rates)


def nothing(reason: str) -> Finding:
    """What decides nothing, and why."""
    return Finding(Interval(np.nan, np.nan, np.nan, 0, np.nan, np.nan), UNDECIDED, 1.0, limits=(reason,))


# --- forgetting --------------------------------------------------------------------


def forgetting_gap(evidence: Evidence, plan: str, other: str, text: str) -> tuple[Interval, float] | None:
    """D = F(plan) - F(other) at the highest level that every run of both reaches, and the level's share.

    None: some run does not reach even the last share, or no two runs share a seed; the plans are not comparable.
    """
    a, b = (evidence.every(p, text, "keep") for p in (plan, other))
    if not a or not b:
        return None
    try:
        level, share = matched_gain([r["evaluations"] for r in a + b], full_gain(evidence, text))
        return forgetting_difference(a, b, level), share
    except ComparisonError:
        return None


def full_gain(evidence: Evidence, text: str) -> float:
    """Full training's best mean gain, of which a level is a share: in its tuning runs, or on a text without any in
    its main runs. NaN where there are neither."""
    if text in evidence.rates["matched_gain"]:
        return evidence.rates["matched_gain"][text] / TOP_SHARE
    gains = [frontier(r["evaluations"])[0][-1] for r in evidence.of(FULL, text, "keep")]
    return float(np.mean(gains)) if gains else np.nan


def forgetting_findings(evidence: Evidence, plan: str = MAIN, other: str = FULL) -> list[Finding]:
    """C10: does a plan forget less, text by text?"""
    return [replace(forgetting_finding(evidence, plan, other, text), test=text) for text in AUTHORS]


def forgetting_finding(evidence: Evidence, plan: str, other: str, text: str) -> Finding:
    found = forgetting_gap(evidence, plan, other, text)
    if found is None:
        seeds = [{r["seed"] for r in evidence.every(p, text, "keep")} for p in (plan, other)]
        return nothing("not comparable: a run stays below 35%, or diverged" if seeds[0] & seeds[1]
                       else f"{MISSING} on '{text}' yet")
    gap, share = found
    smallest = evidence.smallest(text)
    limits = [f"at {share:.0%} of full training's gain"] if share < TOP_SHARE else []
    if decisions.sign_depends(by_rate(evidence, plan, other, text), smallest):
        limits.append("the sign depends on the rate")
    finding = decisions.finding_of(gap, smallest, "lower", limits)
    return contradicted(finding, loss_on_plain(evidence, plan, other, text), smallest)


def by_rate(evidence: Evidence, plan: str, other: str, text: str) -> dict[float, float]:
    """D of the tuning runs at each rate at which both plans reach the level."""
    own, others = evidence.at_level(plan, text), evidence.at_level(other, text)
    return {rate: own[rate] - others[rate] for rate in sorted(own.keys() & others.keys())}


def loss_on_plain(evidence: Evidence, plan: str, other: str, text: str) -> Interval | None:
    """The difference of the loss on ordinary prose, at the best dev loss; None where it was not measured."""
    a, b = (evidence.of(p, text, "keep") for p in (plan, other))
    has_plain = all("plain" in r["test_windows"] for r in a + b)
    share_a_seed = {r["seed"] for r in a} & {r["seed"] for r in b}
    return loss_difference(a, b, "plain") if has_plain and share_a_seed else None


def contradicted(finding: Finding, on_plain: Interval | None, smallest: float) -> Finding:
    """A finding whose sign the loss on ordinary prose denies, both being large enough to count, decides nothing."""
    if on_plain is None or abs(on_plain.mean) < SMALLEST_LOSS or abs(finding.interval.mean) < smallest:
        return finding
    if on_plain.mean * finding.interval.mean > 0:
        return finding
    limits = (*finding.limits, "the loss on ordinary prose says otherwise")
    return Finding(finding.interval, UNDECIDED, 1.0, limits=limits, vetoes=True)


def reach(evidence: Evidence, plan: str, text: str) -> tuple[int, int]:
    """How many of a plan's runs reach the level g*, and how many there are."""
    runs = evidence.every(plan, text, "keep")
    level = evidence.rates["matched_gain"][text]
    return sum("diverged" not in r and bool(frontier(r["evaluations"])[0][-1] >= level) for r in runs), len(runs)


# --- quality and style -------------------------------------------------------------


def quality_findings(evidence: Evidence) -> list[Finding]:
    """C13: equal test loss, on the chapters and on the real author of each text."""
    return [replace(quality_finding(evidence, text, test), test=test) for text in AUTHORS
            for test in (text, *([REAL[text]] if evidence.has_real_authors else []))]


def quality_finding(evidence: Evidence, text: str, test: str, plan: str = MAIN, other: str = FULL) -> Finding:
    runs = [evidence.of(p, text, "learn") for p in (plan, other)]
    if not evidence.seeds(plan, other, texts=[text]):
        return nothing(f"{MISSING} on '{text}' yet")
    losses = [loss_difference(*runs, test, level) for level in (0.90, 0.95)]
    return decisions.equal_finding(*losses, limits=broken_off(evidence, plan, other, texts=[text]))


def broken_off(evidence: Evidence, *plans: str, texts: Sequence[str] = AUTHORS) -> list[str]:
    """The limit of a comparison without the runs that diverged; none where all were finished."""
    n = evidence.n_diverged(*plans, texts=texts)
    return [f"{n} run{'s' * (n != 1)} diverged and could not be compared"] if n else []


def style_tests(evidence: Evidence) -> dict[str, Mapping]:
    """On which texts style is tested: the chapters, and the real authors where they were measured; the last leads."""
    return {"the test chapters": {}} | ({"the real authors": {"on": REAL}} if evidence.has_real_authors else {})


def style_findings(evidence: Evidence) -> list[Finding]:
    """C14, the primary test: is style written more easily into the MLP than into attention, at equal size?"""
    plans = ("only-mlp-out", "only-attention")
    if not evidence.seeds(*plans):
        return [nothing(f"{MISSING} of MLP and attention on both texts yet")]
    runs = [evidence.both(p) for p in plans]
    gaps = {test: style_difference(*runs, **on) for test, on in style_tests(evidence).items()}
    return [replace(decisions.finding_of(gap, SMALLEST_LOSS, "higher", broken_off(evidence, *plans)), test=test)
            for test, gap in gaps.items()]


def share_of_style(evidence: Evidence, plan: str = MAIN) -> Finding:
    """C14 (a): style contrast of a plan over full training's, on the real authors where they were measured."""
    if not evidence.seeds(plan, FULL):
        return nothing(f"{MISSING} on both texts yet")
    test, on = list(style_tests(evidence).items())[-1]
    ratio = style_ratio(evidence.both(plan), evidence.both(FULL), **on)
    return decisions.unless_few(Finding(
        ratio, decisions.decide_at_least(ratio, decisions.STYLE_SHARE), 1.0,
        limits=tuple(broken_off(evidence, plan, FULL)),
        rule=lambda _, wide: decisions.decide_at_least(wide, decisions.STYLE_SHARE), test=test))


def swap_contrasts(evidence: Evidence) -> dict[str, float]:
    """Style contrast of the base with one role's change put in, mean over seeds, by role."""
    runs = {(r["text"], r["seed"]): r["swap"] for r in evidence.both(FULL) if "swap" in r}
    seeds = sorted({s for t, s in runs if all((a, s) in runs for a in AUTHORS)})

    def contrast(role: str, seed: int) -> float:
        a, e = (runs[author, seed][role] for author in AUTHORS)
        return 0.5 * ((e["alice"] - a["alice"]) + (a["edgar"] - e["edgar"]))

    return {role: float(np.mean([contrast(role, s) for s in seeds]))
            for role in (next(iter(runs.values())) if seeds else {})}


def mean_style(evidence: Evidence, plan: str, **options) -> float:
    """Style contrast of a plan, mean over seeds; options as in `comparison.style_contrasts`."""
    return float(np.mean(list(style_contrasts(evidence.both(plan), **options).values())))
