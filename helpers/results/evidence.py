"""What the recorded runs of one model say about a claim, text by text.

    evidence = read_evidence("gpt-neo-mini")
    findings = forgetting_findings(evidence)        one `measuring.Finding` a text

A study that is still growing has fewer seeds, plans or texts: what is missing is said, and decides nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from helpers import measuring
from helpers.files import counted
from helpers.measuring import (
    EQUAL_SHARE,
    SMALLEST_LOSS,
    UNDECIDED,
    UNTESTED,
    ComparisonError,
    Finding,
    Interval,
    RunRecord,
    chosen,
    forgetting_at,
    forgetting_difference,
    frontier,
    gain_share,
    loss_difference,
    matched_gain,
    own_gains,
    pairs_by_seed,
    style_contrasts,
    style_difference,
    style_ratio,
    test_gain,
)
from helpers.profiles import DATA, STUDIED
from helpers.study import RecordError, is_recorded, read_record, read_runs

EVIDENCE = DATA / "evidence"
AUTHORS = ("alice", "edgar")
REAL = {"alice": "carroll", "edgar": "poe"}  # the real author behind each text
BOOKS = ("poe", "fresh")  # texts so long that a run reads a part of them, once
MAIN, ATTENTION, FULL = "attention+embeddings", "attention", "full"
DECIDING = (FULL, MAIN, "only-attention", "only-mlp-out")
BASES = "bases.json"
RATES = {p.model_name: p.rates_name for p in STUDIED.values()}  # model to its table of rates
MISSING = "no pairs of runs"  # how a reason begins where runs have not been recorded yet
SHARES = (0.80, 0.65, 0.50, 0.35)  # of full training's best gain: the levels at which plans are compared
TOP_SHARE = SHARES[0]  # the level g* in the table of rates
NO_DEV_WINDOWS = "the error of the gain is not known: the records do not hold the dev windows"


def text_name(text: str) -> str:
    """How a sentence, title or table for readers names a text: "Alice" for the key `alice`; other words stay."""
    return text.capitalize() if text in (*AUTHORS, *REAL.values(), *BOOKS) else text


@dataclass(frozen=True)
class Evidence:
    """All records of a model.

    Attributes:
        runs, long, tuning: main runs, long runs, and those that chose the rates.
        rates: the table of rates.
        base: test text to the loss of the untouched base on its windows; empty where that was not recorded.
    """

    model: str
    runs: list[RunRecord]
    long: list[RunRecord]
    rates: dict
    tuning: list[RunRecord] = field(default_factory=list)
    base: dict[str, list[float]] = field(default_factory=dict)

    def every(self, plan: str, text: str, choice: str) -> list[RunRecord]:
        """All runs of a plan by its key, those that broke off too. The choice "long": its long runs."""
        runs = self.long if choice == "long" else self.runs
        return chosen(runs, plan, text, choice)

    def of(self, plan: str, text: str, choice: str) -> list[RunRecord]:
        """The finished runs of a plan by its key."""
        return [r for r in self.every(plan, text, choice) if r.is_finished]

    def n_diverged(self, *plans: str, choice: str = "learn", texts: Sequence[str] = AUTHORS) -> int:
        """How many runs of these plans broke off. A comparison is made without them, and must say so."""
        return sum(not r.is_finished for p in plans for t in texts for r in self.every(p, t, choice))

    def both(self, plan: str, choice: str = "learn") -> list[RunRecord]:
        return [r for text in AUTHORS for r in self.of(plan, text, choice)]

    def seeds(self, *plans: str, choice: str = "learn", texts: Sequence[str] = AUTHORS) -> list[int]:
        """The seeds with which all these plans have finished on all texts."""
        own = [{r.seed for r in self.of(p, t, choice)} for p in plans for t in texts]
        return sorted(set.intersection(*own)) if own else []

    def smallest(self, text: str) -> float:
        """The smallest difference in forgetting that counts in the table of rates, nats per token.

        Main runs have other windows, and a smallest difference of their own: `Gap.smallest`.
        """
        return measuring.smallest_difference(min(self.at_level(FULL, text).values(), default=0.0))

    def at_level(self, plan: str, text: str) -> dict[float, float]:
        """Rate to forgetting at the level, nats per token: of the tuning runs of a plan that got there."""
        return {
            r["rate"]: r["forgetting_at_level"]
            for r in self.rates["table"]
            if (r["plan"], r["text"]) == (plan, text) and r["forgetting_at_level"] is not None
        }

    @property
    def has_real_authors(self) -> bool:
        runs = self.both(FULL)
        return bool(runs) and all(set(REAL.values()) <= set(r.test_windows) for r in runs)


def studied_models(folder: Path = EVIDENCE) -> list[str]:
    """The models with recorded runs and a table of rates; the miniature first."""
    return [
        m for m, rates in RATES.items() if is_recorded(folder / rates) and is_recorded(folder / "runs" / m)
    ]


def read_evidence(model: str, folder: Path = EVIDENCE) -> Evidence:
    """Read what `helpers/study/runner.py` and `helpers/study/bases.py` wrote.

    Raises:
        RecordError: a model that was not studied, or a damaged file, which it names.
    """
    if model not in RATES:
        raise RecordError(
            f"No study of {model!r} is recorded. Those that can be read are of: {', '.join(RATES)}."
        )
    rates = read_record(folder / RATES[model], {"chosen": dict})
    rates.setdefault("smallest_forgetting", {})
    runs, long, tuning = (read_runs(folder / kind / model) for kind in ("runs", "long", "tuning"))
    return Evidence(model, runs, long, rates, tuning, base_losses(folder / BASES, runs))


def base_losses(place: Path, runs: Sequence[RunRecord]) -> dict[str, list[float]]:
    """The losses of the base that these runs began from, by test text; none where it was not recorded."""
    recorded = read_record(place).values() if is_recorded(place) else ()
    own = {r.model_hash for r in runs}
    return next((entry["test_windows"] for entry in recorded if own == {entry["model_hash"]}), {})


def nothing(reason: str, verdict: str = UNDECIDED) -> Finding:
    """What decides nothing, and why."""
    return Finding(Interval(np.nan, np.nan, np.nan, 0, np.nan, np.nan), verdict, 1.0, limits=(reason,))


# --- forgetting --------------------------------------------------------------------


@dataclass(frozen=True)
class Gap:
    """The difference in forgetting between two plans at equal gain.

    Attributes:
        interval: of F(plan) - F(other), nats per token.
        share: of full training's best gain, at which both were read.
        smallest: the smallest difference that counts: a share of what the other plan forgot, on the same windows.
        word: less, more, …: `measuring.over_gains` over this share and the lower ones.
        forgotten: F of the plan and of the other there, nats per token, means over the pairs.
        rates: of the plan and of the other.
        has_unlike_rates: one of the two plans has no tuned rate that got to the level g*. Its runs have the rate that
            gains most, the other's the one that forgets least.
    """

    interval: Interval
    share: float
    smallest: float
    word: str
    forgotten: tuple[float, float]
    rates: tuple[float | None, float | None]
    has_unlike_rates: bool = False


def forgetting_gap(evidence: Evidence, plan: str, other: str, text: str) -> Gap | None:
    """D = F(plan) - F(other) at the highest level that every run of both reaches.

    None: some run does not reach even the last share, or no two runs share a seed; the plans are not comparable.
    """
    a, b = (evidence.every(p, text, "keep") for p in (plan, other))
    if not a or not b:
        return None
    try:
        level, share = matched_gain([r.evaluations for r in a + b], full_gain(evidence, text))
        found = [gap_at(evidence, a, b, text, level * (lower / share)) for lower in SHARES if lower <= share]
    except ComparisonError:
        return None
    words = [measuring.word(interval, smallest) for interval, smallest, _ in found]
    is_tuned = [
        bool(evidence.at_level(p, text)) or text not in evidence.rates["matched_gain"] for p in (plan, other)
    ]
    interval, smallest, forgotten = found[0]
    return Gap(
        interval,
        share,
        smallest,
        measuring.over_gains(words),
        forgotten,
        (rate_of(a), rate_of(b)),
        len(set(is_tuned)) > 1,
    )


def gap_at(
    evidence: Evidence, a: Sequence[RunRecord], b: Sequence[RunRecord], text: str, level: float
) -> tuple[Interval, float, tuple[float, float]]:
    """The difference in forgetting at one gain, the smallest that counts beside what b forgot there, and both F."""
    interval = forgetting_difference(a, b, level, level_runs(evidence, text))
    each = [[forgetting_at(run.evaluations, level) for run in pair] for pair in pairs_by_seed(a, b)]
    own, others = (float(f) for f in np.mean(each, axis=0))
    return interval, measuring.smallest_difference(others), (own, others)


def rate_of(runs: Sequence[RunRecord]) -> float | None:
    """The rate of a plan's runs; None where it is not known, or not one."""
    found = {r.rate for r in runs}
    return found.pop() if len(found) == 1 else None


def full_gain(evidence: Evidence, text: str) -> float:
    """Full training's best mean gain, of which a level is a share: in its tuning runs, or on a text without any in
    its main runs. NaN where there are neither."""
    if text in evidence.rates["matched_gain"]:
        return evidence.rates["matched_gain"][text] / TOP_SHARE
    gains = [frontier(r.evaluations)[0][-1] for r in evidence.of(FULL, text, "keep")]
    return float(np.mean(gains)) if gains else np.nan


def level_runs(evidence: Evidence, text: str) -> list[RunRecord]:
    """The runs of full training whose best gain the level is a share of: `full_gain`, run by run."""
    by_rate: dict[float, list[RunRecord]] = {}
    for run in tuning_runs(evidence, FULL, text):
        by_rate.setdefault(run.rate, []).append(run)
    if not by_rate:
        return evidence.of(FULL, text, "keep")
    return max(by_rate.values(), key=lambda own: np.mean([frontier(r.evaluations)[0][-1] for r in own]))


def tuning_runs(evidence: Evidence, plan: str, text: str) -> list[RunRecord]:
    """The finished tuning runs of a plan by its key, at all its rates."""
    return [r for r in chosen(evidence.tuning, plan, text, "tuning") if r.is_finished]


@dataclass(frozen=True)
class Reading:
    """Forgetting of a plan at one gain in its tuning runs, at the rate that forgets least there.

    Attributes:
        rate, forgetting: of that rate; nats per token, mean over the tuning seeds.
        n_seeds: how many these are.
        runs: their records.
    """

    rate: float
    forgetting: float
    n_seeds: int
    runs: list[RunRecord]


def gentlest(evidence: Evidence, plan: str, text: str, share: float) -> Reading | None:
    """A plan at its gentlest rate: of those at which every tuning run reaches the share, the one that forgets least.

    None where no rate gets there.
    """
    by_rate: dict[float, list[RunRecord]] = {}
    for run in tuning_runs(evidence, plan, text):
        by_rate.setdefault(run.rate, []).append(run)
    found = []
    for rate, own in by_rate.items():
        at_level = [forgetting_at(r.evaluations, share * full_gain(evidence, text)) for r in own]
        if None not in at_level:
            found.append(Reading(rate, float(np.mean(at_level)), len(own), own))
    return min(found, key=lambda reading: reading.forgetting, default=None)


def share_of_every_rate(evidence: Evidence, plans: Sequence[str], text: str) -> float | None:
    """The highest share that these plans reach with every rate that was tried; None where one has no tuning runs.

    At it no rate is left out, so that the gentlest one of each plan can be seen. None too where one stays below 35%.
    """
    runs = [tuning_runs(evidence, plan, text) for plan in plans]
    if not all(runs):
        return None
    least = min(frontier(r.evaluations)[0][-1] for own in runs for r in own)
    return next((share for share in SHARES if least >= share * full_gain(evidence, text)), None)


def unlike_rates(evidence: Evidence, gap: Gap, plan: str, other: str, text: str) -> str:
    """Where two plans are compared at two rates because one of them missed the level at the other's; "" elsewhere."""
    if None in gap.rates or gap.rates[0] == gap.rates[1] or gap.has_unlike_rates:
        return ""
    faster, lower = (plan, gap.rates[1]) if gap.rates[0] > gap.rates[1] else (other, gap.rates[0])
    at_lower = [r for r in tuning_runs(evidence, faster, text) if r.rate == lower]
    gain = np.mean([frontier(r.evaluations)[0][-1] for r in at_lower]) if at_lower else np.nan
    if not gain < TOP_SHARE * full_gain(evidence, text):
        return ""
    return (
        f"on {text_name(text)} `{plan}` was read at {gap.rates[0]:g} and `{other}` at {gap.rates[1]:g}: at {lower:g} "
        f"`{faster}` ended at {gain / full_gain(evidence, text):.0%} of full training's gain"
    )


def forgetting_findings(evidence: Evidence, plan: str = MAIN, other: str = FULL) -> list[Finding]:
    """C10: does a plan forget less, text by text?"""
    return [replace(forgetting_finding(evidence, plan, other, text), test=text) for text in AUTHORS]


def forgetting_finding(evidence: Evidence, plan: str, other: str, text: str) -> Finding:
    gap = forgetting_gap(evidence, plan, other, text)
    if gap is None:
        seeds = [{r.seed for r in evidence.every(p, text, "keep")} for p in (plan, other)]
        return nothing(
            "not comparable: a run stays below 35%, or diverged"
            if seeds[0] & seeds[1]
            else f"{MISSING} on {text_name(text)} yet"
        )
    limits = [f"at {gap.share:.0%} of full training's gain"] if gap.share < TOP_SHARE else []
    if measuring.sign_depends(by_rate(evidence, plan, other, text), evidence.smallest(text)):
        limits.append("the sign depends on the rate")
    if gap.word == measuring.DEPENDS:
        limits.append("the sign depends on the gain")
    if unlike := unlike_rates(evidence, gap, plan, other, text):
        limits.append(unlike)
    if gap.interval.gain_half is None:
        limits.append(NO_DEV_WINDOWS)
    finding = measuring.finding_of(gap.interval, gap.smallest, "lower", limits)
    return contradicted(finding, rise_on_plain(evidence, plan, other, text), gap.smallest)


def by_rate(evidence: Evidence, plan: str, other: str, text: str) -> dict[float, float]:
    """D of the tuning runs at each rate at which both plans reach the level."""
    own, others = evidence.at_level(plan, text), evidence.at_level(other, text)
    return {rate: own[rate] - others[rate] for rate in sorted(own.keys() & others.keys())}


def rise_on_plain(evidence: Evidence, plan: str, other: str, text: str) -> float | None:
    """How much more the loss on ordinary prose rose above the base's under one plan than under the other.

    A loss below the base's is no rise: 0. None where the base's loss was not recorded, or where the weights that were
    tested stand at unlike gains: the smaller of the two mean gains is below `EQUAL_SHARE` of the larger.
    """
    runs = [evidence.of(p, text, "keep") for p in (plan, other)]
    if (
        "plain" not in evidence.base
        or not all(runs)
        or any("plain" not in r.test_windows for r in sum(runs, []))
    ):
        return None
    gains = sorted(np.mean([frontier(r.evaluations)[0][-1] for r in own]) for own in runs)
    if gains[0] < EQUAL_SHARE * gains[1]:
        return None
    base = np.mean(evidence.base["plain"])
    rises = [np.mean([max(0.0, np.mean(r.test_windows["plain"]) - base) for r in own]) for own in runs]
    return float(rises[0] - rises[1])


def contradicted(finding: Finding, on_plain: float | None, smallest: float) -> Finding:
    """A finding whose sign a rise of the loss on ordinary prose denies, both large enough to count, decides nothing."""
    if on_plain is None or abs(on_plain) < SMALLEST_LOSS or abs(finding.interval.mean) < smallest:
        return finding
    if on_plain * finding.interval.mean > 0:
        return finding
    limits = (*finding.limits, "the loss on ordinary prose says otherwise")
    return Finding(finding.interval, UNDECIDED, 1.0, limits=limits, vetoes=True)


def reach(evidence: Evidence, plan: str, text: str) -> tuple[int, int]:
    """How many of a plan's runs reach the level g*, and how many there are."""
    runs = evidence.every(plan, text, "keep")
    level = evidence.rates["matched_gain"][text]
    return sum(r.is_finished and bool(frontier(r.evaluations)[0][-1] >= level) for r in runs), len(runs)


# --- quality and style -------------------------------------------------------------


def quality_findings(evidence: Evidence, plan: str = MAIN, other: str = FULL) -> list[Finding]:
    """C13: as much gained on the test texts, on the chapters and on the real author of each text."""
    return [
        replace(quality_finding(evidence, text, test, plan, other), test=test)
        for text, test in tests_of(evidence)
    ]


def tests_of(evidence: Evidence) -> list[tuple[str, str]]:
    """Each text that is trained on, with each text that it is tested on."""
    return [
        (text, test)
        for text in AUTHORS
        for test in (text, *([REAL[text]] if evidence.has_real_authors else []))
    ]


def quality_finding(evidence: Evidence, text: str, test: str, plan: str = MAIN, other: str = FULL) -> Finding:
    """The plan's share of the other's test gain; not tested where the other gains nothing on that test."""
    runs = [evidence.of(p, text, "learn") for p in (plan, other)]
    if not evidence.seeds(plan, other, texts=[text]):
        return nothing(f"{MISSING} on {text_name(text)} yet")
    if test not in evidence.base:
        return nothing("the base's test loss was not recorded, so that no gain is known")
    base = evidence.base[test]
    if not gains(runs[1], test, base):
        return nothing(f"{'full training' if other == FULL else other} itself gains nothing there", UNTESTED)
    shares = [gain_share(*runs, test, base, level) for level in (0.90, 0.95)]
    return measuring.share_finding(*shares, limits=broken_off(evidence, plan, other, texts=[text]))


def gains(runs: Sequence[RunRecord], test: str, base: Sequence[float]) -> bool:
    """Whether runs gained on a test: the mean lies above 0, and so does the interval, where there is one."""
    gain = test_gain(runs, test, base)
    return gain.mean > 0 and not gain.low <= 0


def first_rule(
    evidence: Evidence, text: str, test: str, plan: str = MAIN, other: str = FULL
) -> Finding | None:
    """What the protocol's own rule for C13, before its amendment, says: equal within a fixed margin of the loss."""
    if not evidence.seeds(plan, other, texts=[text]):
        return None
    runs = [evidence.of(p, text, "learn") for p in (plan, other)]
    return measuring.equal_finding(*(loss_difference(*runs, test, level) for level in (0.90, 0.95)))


def broken_off(evidence: Evidence, *plans: str, texts: Sequence[str] = AUTHORS) -> list[str]:
    """The limit of a comparison without the runs that diverged; none where all were finished."""
    n = evidence.n_diverged(*plans, texts=texts)
    return [f"{counted(n, 'run')} diverged and could not be compared"] if n else []


def style_tests(evidence: Evidence) -> dict[str, Mapping]:
    """On which texts style is measured: the chapters, and the real authors where they were measured; the last leads."""
    return {"the test chapters": {}} | (
        {"the real authors": {"on": REAL}} if evidence.has_real_authors else {}
    )


def can_be_read_at_equal_gain(evidence: Evidence, *plans: str, **on) -> bool:
    """Whether each of these plans gained on each of the two tests, so that style a nat of gain is a number."""
    tests = {a: a for a in AUTHORS} | dict(on.get("on") or {})
    return all(
        test in evidence.base and gains(runs, test, evidence.base[test])
        for plan in plans
        for text, test in tests.items()
        if (runs := evidence.of(plan, text, "learn"))
    )


def style_findings(evidence: Evidence) -> list[Finding]:
    """C14, the primary test: is style written more easily into the MLP than into attention, at equal size and gain?

    Style contrast grows with the gain, so each plan's is divided by its own gain and multiplied by full training's.
    """
    plans = ("only-mlp-out", "only-attention")
    if not evidence.seeds(*plans, FULL):
        return [nothing(f"{MISSING} of MLP and attention on both texts yet")]
    return [
        replace(style_finding(evidence, plans, on), test=test) for test, on in style_tests(evidence).items()
    ]


def style_finding(evidence: Evidence, plans: tuple[str, str], on: Mapping) -> Finding:
    if not can_be_read_at_equal_gain(evidence, *plans, FULL, **on):
        return nothing("a plan gains nothing there, so there is no equal gain", UNTESTED)
    runs = [evidence.both(p) for p in plans]
    gain = float(np.mean(list(own_gains(evidence.both(FULL), evidence.base, **on).values())))
    gap = scaled(style_difference(*runs, base=evidence.base, **on), gain)
    return measuring.finding_of(gap, SMALLEST_LOSS, "higher", broken_off(evidence, *plans))


def scaled(interval: Interval, factor: float) -> Interval:
    """An interval in another unit; the factor is above 0 and taken as known."""
    names = ("mean", "low", "high", "seed_half", "window_half")
    return replace(interval, **{name: factor * getattr(interval, name) for name in names})


def share_of_style(evidence: Evidence, plan: str = MAIN) -> Finding:
    """C14 (a): style contrast of a plan over full training's, at equal gain, on the test chapters."""
    if not evidence.seeds(plan, FULL):
        return nothing(f"{MISSING} on both texts yet")
    test = next(iter(style_tests(evidence)))
    if not can_be_read_at_equal_gain(evidence, plan, FULL):
        return replace(nothing("a plan gains nothing there, so there is no equal gain"), test=test)
    ratio = style_ratio(evidence.both(plan), evidence.both(FULL), base=evidence.base)
    return measuring.unless_few(
        Finding(
            ratio,
            measuring.decide_at_least(ratio, measuring.STYLE_SHARE),
            1.0,
            limits=tuple(broken_off(evidence, plan, FULL)),
            rule=lambda _, wide: measuring.decide_at_least(wide, measuring.STYLE_SHARE),
            test=test,
        )
    )


def swap_contrasts(evidence: Evidence) -> dict[str, float]:
    """Style contrast of the base with one role's change put in, mean over seeds, by role."""
    runs = {(r.text, r.seed): r.swap for r in evidence.both(FULL) if r.swap is not None}
    seeds = sorted({s for t, s in runs if all((a, s) in runs for a in AUTHORS)})

    def contrast(role: str, seed: int) -> float:
        a, e = (runs[author, seed][role] for author in AUTHORS)
        return 0.5 * ((e["alice"] - a["alice"]) + (a["edgar"] - e["edgar"]))

    return {
        role: float(np.mean([contrast(role, s) for s in seeds]))
        for role in (next(iter(runs.values())) if seeds else {})
    }


def mean_style(evidence: Evidence, plan: str, **options) -> float:
    """Style contrast of a plan, mean over seeds; options as in `comparison.style_contrasts`."""
    return float(np.mean(list(style_contrasts(evidence.both(plan), **options).values())))
