"""From the recorded runs of one model to its verdicts: every published number of the study comes from here.

    evidence = read_evidence("gpt-neo-mini")
    print(scoreboard_table(scoreboard(evidence)))
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from helpers import decisions
from helpers.claims import CLAIMS, number_of, plain
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
from helpers.decisions import FAILS, HOLDS, IN_PART, SMALLEST_LOSS, UNDECIDED, Finding
from helpers.plans import COURSE_PLANS
from helpers.profiles import DATA
from helpers.records import read_runs

AUTHORS = ("alice", "edgar")
REAL = {"alice": "carroll", "edgar": "poe"}  # the real author behind each text
MAIN, FULL = "attention+embeddings", "full"


@dataclass(frozen=True)
class Evidence:
    """All records of a model: main runs, long runs, and the table of rates."""

    model: str
    runs: list[dict]
    long: list[dict]
    rates: dict

    def of(self, plan: str, text: str, choice: str) -> list[dict]:
        """Finished runs of a plan by its course name."""
        slug = COURSE_PLANS[plan].slug if plan in COURSE_PLANS else plan
        return [r for r in chosen(self.runs, slug, text, choice) if "diverged" not in r]

    def both(self, plan: str, choice: str = "learn") -> list[dict]:
        return [r for text in AUTHORS for r in self.of(plan, text, choice)]

    @property
    def has_real_authors(self) -> bool:
        return all(set(REAL.values()) <= set(r["test_windows"]) for r in self.both(FULL))


def read_evidence(model: str, folder: Path = DATA / "evidence", rates: str = "rates.json") -> Evidence:
    """Read what `scripts/record_evidence.py` wrote."""
    return Evidence(model, read_runs(folder / "runs" / model), read_runs(folder / "long" / model),
                    json.loads((folder / rates).read_text("utf-8")))


# --- findings, one a text ----------------------------------------------------------


def forgetting_gap(evidence: Evidence, plan: str, other: str, text: str) -> tuple[Interval, float] | None:
    """D = F(plan) - F(other) at the highest level that every run of both reaches, and the level's share.

    None: some run does not reach even the last share, so the plans are not comparable.
    """
    a, b = (chosen(evidence.runs, COURSE_PLANS[p].slug if p in COURSE_PLANS else p, text, "keep")
            for p in (plan, other))
    try:
        level, share = matched_gain([r["evaluations"] for r in a + b], evidence.rates["matched_gain"][text] / 0.8)
        return forgetting_difference(a, b, level), share
    except ComparisonError:
        return None


def forgetting_findings(evidence: Evidence, plan: str = MAIN, other: str = FULL) -> list[Finding]:
    """C10: does a plan forget less, text by text?"""
    findings = []
    for text in AUTHORS:
        found = forgetting_gap(evidence, plan, other, text)
        if found is None:
            nothing = Interval(np.nan, np.nan, np.nan, 0, np.nan, np.nan)
            findings.append(Finding(nothing, UNDECIDED, 1.0, limits=("not comparable: a run stays below 35%",)))
            continue
        gap, share = found
        smallest = evidence.rates["smallest_forgetting"][text]
        limits = [f"at {share:.0%} of full training's gain"] if share < 0.8 else []
        if decisions.sign_depends(by_rate(evidence, plan, other, text), smallest):
            limits.append("the sign depends on the rate")
        finding = decisions.finding_of(gap, smallest, "lower", limits)
        findings.append(contradicted(finding, loss_on_plain(evidence, plan, other, text), smallest))
    return findings


def by_rate(evidence: Evidence, plan: str, other: str, text: str) -> dict[float, float]:
    """D of the tuning runs at each rate at which both plans reach the level."""
    at = {(r["plan"], r["rate"]): r["forgetting_at_level"] for r in evidence.rates["table"] if r["text"] == text}
    rates = sorted({rate for _, rate in at})
    return {r: at[plan, r] - at[other, r] for r in rates
            if at.get((plan, r)) is not None and at.get((other, r)) is not None}


def loss_on_plain(evidence: Evidence, plan: str, other: str, text: str) -> Interval | None:
    """The difference of the loss on ordinary prose, at the best dev loss."""
    a, b = (evidence.of(p, text, "keep") for p in (plan, other))
    has_plain = all("plain" in r["test_windows"] for r in a + b)
    return loss_difference(a, b, "plain") if has_plain and a and b else None


def contradicted(finding: Finding, on_plain: Interval | None, smallest: float) -> Finding:
    """A finding whose sign the loss on ordinary prose denies, both being large enough to count, decides nothing."""
    if on_plain is None or abs(on_plain.mean) < SMALLEST_LOSS or abs(finding.interval.mean) < smallest:
        return finding
    if on_plain.mean * finding.interval.mean > 0:
        return finding
    limits = (*finding.limits, "the loss on ordinary prose says otherwise")
    return Finding(finding.interval, UNDECIDED, 1.0, limits=limits)


def quality_findings(evidence: Evidence) -> list[Finding]:
    """C13: equal test loss, on the chapters and on the real author of each text."""
    findings = []
    for text in AUTHORS:
        runs = [evidence.of(p, text, "learn") for p in (MAIN, FULL)]
        for test in (text, *([REAL[text]] if evidence.has_real_authors else [])):
            findings.append(decisions.equal_finding(*(loss_difference(*runs, test, level) for level in (0.90, 0.95))))
    return findings


def style_findings(evidence: Evidence) -> list[Finding]:
    """C14, the primary test: is style written more easily into the MLP than into attention, at equal size?"""
    runs = [evidence.both(p) for p in ("only-mlp-out", "only-attention")]
    options = [{}] + ([{"on": REAL}] if evidence.has_real_authors else [])
    return [decisions.finding_of(style_difference(*runs, **o), SMALLEST_LOSS, "higher") for o in options]


# --- verdicts ----------------------------------------------------------------------


def scoreboard(evidence: Evidence) -> list[dict]:
    """One entry a claim that these records can speak about: what `claims.record` takes, and the note."""
    findings = {"C10": forgetting_findings(evidence), "C13": quality_findings(evidence),
                "C14": style_findings(evidence)}
    verdicts = decisions.primary_verdicts(findings)
    entries = [*convergence(evidence), *stability_of_gradients(evidence)]
    weakest = {claim: max(own, key=lambda f: f.p) for claim, own in findings.items()}
    entries.append(entry_of(evidence, "C10", verdicts["C10"], weakest["C10"], "nats a token",
                            "forgetting at equal gain, main plan minus full, weaker of two texts"))
    entries.append(entry_of(evidence, "C13", verdicts["C13"],
                            max(findings["C13"], key=lambda f: abs(f.interval.mean)), "nats a token",
                            f"test loss, main plan minus full, largest of {len(findings['C13'])} tests"))
    ratio = style_ratio(evidence.both(MAIN), evidence.both(FULL), **({"on": REAL} if evidence.has_real_authors else {}))
    part_a = decisions.decide_at_least(ratio, decisions.STYLE_SHARE)
    entries.append(entry_of(
        evidence, "C14", style_verdict(part_a, verdicts["C14"]), Finding(ratio, part_a, 1.0),
        "of full training's style contrast",
        f"(a) main plan: {part_a}; MLP above attention at equal size: {verdicts['C14']} "
        f"({weakest['C14'].interval}); (b), (c): not tested"))
    return entries


def style_verdict(part_a: str, primary: str) -> str:
    """Two of the four parts are not tested, so that *holds in part* is the most."""
    parts = {part_a, primary}
    return IN_PART if HOLDS in parts or IN_PART in parts else FAILS if parts == {FAILS} else UNDECIDED


def entry_of(evidence: Evidence, claim: str, verdict: str, finding: Finding, unit: str, note: str) -> dict:
    """A verdict with its number; where it is open, how many pairs would decide."""
    found = finding.interval
    if verdict == UNDECIDED and claim == "C10":
        needed = decisions.pairs_needed(found, min(evidence.rates["smallest_forgetting"].values()), "lower")
        note += f"; {needed} pairs would decide" if needed else "; more pairs alone would not decide"
    note = "; ".join([note, *finding.limits])
    return {"claim": claim, "verdict": verdict, "value": plain(found.mean), "low": plain(found.low),
            "high": plain(found.high), "unit": unit, "model": evidence.model, "n_seeds": found.n_pairs,
            "model_hash": evidence.runs[0]["model_hash"], "source": "recorded", "note": note}


def convergence(evidence: Evidence) -> list[dict]:
    """C8: falls, and levels off within the run. Never *holds*: a finite run proves no limit."""
    runs = [r for r in evidence.long if r["plan"] == COURSE_PLANS[MAIN].slug and "diverged" not in r]
    if not runs:
        return []
    curves = [([e["step"] for e in r["evaluations"]], [e["train_loss"] for e in r["evaluations"]]) for r in runs]
    falls = np.array([decisions.falls_share(losses) for _, losses in curves])
    levelled = sum(decisions.levelling(*curve).has_levelled() for curve in curves)
    steadily = int((falls >= 0.9).sum())
    verdict = FAILS if steadily == 0 else IN_PART if steadily == len(runs) else UNDECIDED
    note = (f"falls steadily in {steadily} of {len(runs)} runs; levelled off within {curves[0][0][-1]} steps in "
            f"{levelled}; dev loss is least after {np.median([r['best_step'] for r in runs]):.0f} steps (median)")
    return [entry_of(evidence, "C8", verdict, spread_of(falls, runs, verdict), "of looks fell (least and most)", note)]


def spread_of(values: np.ndarray, runs: Sequence[dict], verdict: str) -> Finding:
    """Mean, least and most over runs, where a claim speaks about each run and not about a difference."""
    n_seeds = len({r["seed"] for r in runs})
    middle = Interval(float(values.mean()), float(values.min()), float(values.max()), n_seeds, np.nan, np.nan)
    return Finding(middle, verdict, 1.0)


def stability_of_gradients(evidence: Evidence) -> list[dict]:
    """C9, by `decisions.is_stable`; exploratory, so *holds in part* is the most."""
    runs, full = evidence.both(MAIN), evidence.both(FULL)
    steady = [decisions.is_stable(r["gradient_norms"]["total"]) for r in runs]
    beside = [decisions.is_stable(r["gradient_norms"]["mlp+norm"]) for r in full]
    verdict = FAILS if not any(steady) else IN_PART if all(steady) else UNDECIDED
    quarters = np.array([r["gradient_norms"]["total"]["quarters"] for r in runs])
    note = (f"unclipped: {sum(steady)} of {len(steady)} runs stable; full training on the same tensors: "
            f"{sum(beside)} of {len(beside)}")
    return [entry_of(evidence, "C9", verdict, spread_of(quarters, runs, verdict),
                     "norm, last / first quarter (least and most)", note)]


def scoreboard_table(entries: Sequence[dict]) -> str:
    """Markdown for a README: per claim the verdict, its number and interval, n and model."""
    rows = ["| | the article says | verdict | measured | on |", "| --- | --- | --- | --- | --- |"]
    rows += [f"| {e['claim']} | {CLAIMS[e['claim']].statement} | **{e['verdict']}** | {number_of(e)}: {e['note']} | "
             f"{e['model']}, {e['n_seeds']} seeds |" for e in entries]
    return "\n".join(rows)


# --- beside the verdicts -----------------------------------------------------------


def swap_contrasts(evidence: Evidence) -> dict[str, float]:
    """Style contrast of the base with one role's change put in, mean over seeds, by role."""
    runs = {(r["text"], r["seed"]): r["swap"] for r in evidence.both(FULL) if "swap" in r}
    seeds = sorted({s for t, s in runs if all((a, s) in runs for a in AUTHORS)})

    def contrast(role: str, seed: int) -> float:
        a, e = (runs[author, seed][role] for author in AUTHORS)
        return 0.5 * ((e["alice"] - a["alice"]) + (a["edgar"] - e["edgar"]))

    return {role: float(np.mean([contrast(role, s) for s in seeds]))
            for role in (next(iter(runs.values())) if seeds else {})}


def style_on_small_words(evidence: Evidence, plan: str) -> float:
    """Style contrast on function words and punctuation alone, mean over seeds."""
    return float(np.mean(list(style_contrasts(evidence.both(plan), windows="function_windows").values())))


def reach(evidence: Evidence, plan: str, text: str) -> tuple[int, int]:
    """How many of a plan's runs reach the level g*, and how many there are."""
    runs = chosen(evidence.runs, COURSE_PLANS[plan].slug if plan in COURSE_PLANS else plan, text, "keep")
    level = evidence.rates["matched_gain"][text]
    return sum(frontier(r["evaluations"])[0][-1] >= level for r in runs), len(runs)
