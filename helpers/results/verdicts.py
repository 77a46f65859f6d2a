"""From recorded runs to verdicts: the one source of the table of claims.

    entries = scoreboard(read_evidence("gpt-neo-mini"))    what the records of one model say
    published(load_claims())                               all claims: these, beside what the notebooks measured

Where the study speaks about a claim, its verdict leads; verdicts on other models stand beside it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from helpers import measuring, study
from helpers.files import counted, seen
from helpers.measuring import (
    FAILS,
    FEW,
    HOLDS,
    IN_PART,
    LEAST_PAIRS,
    UNDECIDED,
    UNTESTED,
    Finding,
    Interval,
    RunRecord,
    frontier,
)
from helpers.results.claims import (
    CLAIMS,
    ClaimError,
    Entry,
    Verdict,
    entries_of,
    number_of,
    seeds_of,
    sentence_case,
    sentences,
    two_digits,
)
from helpers.results.evidence import (
    ATTENTION,
    AUTHORS,
    EVIDENCE,
    FULL,
    MAIN,
    MISSING,
    Evidence,
    forgetting_findings,
    forgetting_gap,
    quality_findings,
    read_evidence,
    share_of_style,
    studied_models,
    style_findings,
    tests_of,
    text_name,
)

FALLS_SHARE = 0.9  # of the looks: from here on a loss falls steadily (C8)
ON_125M = {"model": "gpt-neo-125M", "model_hash": "random weights", "n_seeds": 0, "source": "recorded"}

# --- the claims of one model -------------------------------------------------------


def scoreboard(evidence: Evidence) -> list[Verdict]:
    """The verdicts that these records allow, one a claim and part."""
    found = [*convergence(evidence), *stability_of_gradients(evidence)]
    if not any(
        evidence.of(MAIN, t, c) and evidence.of(FULL, t, c) for t in AUTHORS for c in ("keep", "learn")
    ):
        return found
    findings = {
        "C10": forgetting_findings(evidence),
        "C13": quality_findings(evidence),
        "C14": style_findings(evidence),
    }
    verdicts = measuring.primary_verdicts(findings)
    found.append(
        forgetting_verdict(
            evidence,
            MAIN,
            verdicts["C10"],
            findings["C10"],
            [how_catastrophic(evidence), *at_the_lowest_rate(evidence)],
        )
    )
    if any(evidence.of(ATTENTION, text, "keep") for text in AUTHORS):
        alone = forgetting_findings(evidence, ATTENTION)
        verdict = measuring.over_findings(alone)
        found.append(
            forgetting_verdict(
                evidence,
                ATTENTION,
                IN_PART if verdict == HOLDS else verdict,
                alone,
                ["exploratory, so in part is the most"],
            )
        )
    least = min(measured(findings["C13"]), key=lambda f: f.interval.mean)
    found.append(
        verdict_of(
            evidence,
            "C13",
            verdicts["C13"],
            least,
            "of full training's test gain",
            [
                f"main plan's share of what full training gains: {by_test(findings['C13'], '')}",
                f"equal means above {measuring.EQUAL_SHARE:g}",
                f"test losses of base, full training and main plan: {losses_by_test(evidence, FULL, MAIN)}",
                *at_the_highest_rate(evidence),
            ],
            findings["C13"],
            smallest=1 - measuring.EQUAL_SHARE,
        )
    )
    part_a = share_of_style(evidence)
    found.append(
        verdict_of(
            evidence,
            "C14",
            style_verdict(part_a.verdict, verdicts["C14"]),
            replace(part_a, test=" and ".join(map(text_name, AUTHORS))),
            "of full training's style contrast, at equal gain",
            [
                f"(a) main plan, on {part_a.test or 'both texts'}: {part_a.verdict}",
                "contrast of the MLP's output minus attention's at equal size and gain, in nats: "
                f"{by_test(findings['C14'])}",
                f"together {verdicts['C14']}",
                "(b), (c): not tested",
            ],
            [part_a, *findings["C14"]],
        )
    )
    return found


def forgetting_verdict(
    evidence: Evidence, plan: str, verdict: str, findings: Sequence[Finding], more: Sequence[str]
) -> Verdict:
    """C10 of one plan: the article says "attention", and two plans freeze it."""
    note = [
        f"forgetting at equal gain minus full training's (above 0: it forgets more): {by_test(findings)}",
        *words_by_text(evidence, plan),
        *more,
    ]
    shown = weakest(findings, "lower")
    gap = forgetting_gap(evidence, plan, FULL, shown.test) if shown.test in AUTHORS else None
    return verdict_of(
        evidence,
        "C10",
        verdict,
        shown,
        "nats per token",
        note,
        findings,
        part=f"{plan.replace('+', ' and ')} frozen",
        smallest=gap and gap.smallest,
    )


def style_verdict(part_a: str, primary: str) -> str:
    """Two of the four parts are not tested, so that *holds in part* is the most."""
    parts = {part_a, primary} - {UNTESTED}
    return IN_PART if HOLDS in parts or IN_PART in parts else FAILS if parts == {FAILS} else UNDECIDED


def verdict_of(
    evidence: Evidence,
    claim: str,
    verdict: str,
    finding: Finding,
    unit: str,
    note: Sequence[str],
    findings: Sequence[Finding] = (),
    **more,
) -> Verdict:
    """A verdict with its number; where it is open, what would decide.

    Args:
        note: what stands beside the number, a sentence each.
        more: other fields of `Verdict`.
    """
    found = finding.interval
    if verdict == UNDECIDED and (reason := what_would_decide(findings)):
        note = [*note, reason]
    limits = dict.fromkeys(limit for f in measuring.tested([finding, *findings]) for limit in f.limits)
    return Verdict(
        claim,
        verdict,
        text=text_name(finding.test),
        value=found.mean,
        low=found.low,
        high=found.high,
        unit=unit,
        model=evidence.model,
        n_seeds=found.n_pairs,
        model_hash=evidence.runs[0].model_hash,
        source="recorded",
        note=sentences([*note, *limits]),
        **more,
    )


def convergence(evidence: Evidence) -> list[Verdict]:
    """C8 by the rule of notebook 04, over runs: it falls steadily, and levels off within the run.

    *Does not hold* where no run falls steadily. *In part* where all fall steadily and all level off: a finite run
    proves no limit. Else *not decided*: also where all fall and none levels off.
    """
    runs = evidence.both(MAIN, "long")
    n = len(runs) + evidence.n_diverged(MAIN, choice="long")
    if not runs:
        return []
    falls = np.array([measuring.falls_share(measuring.curve(r)[1]) for r in runs])
    steadily, levelled = int((falls >= FALLS_SHARE).sum()), measuring.n_levelled(runs)
    finding = spread_of(
        100 * falls, runs, FAILS if steadily == 0 else IN_PART if steadily == levelled == n else UNDECIDED
    )
    note = [
        "a finite run proves no limit, so in part is the most",
        f"falls steadily in {steadily} of {n} runs",
        f"levelled off within {runs[0].steps_taken} steps in {levelled}",
        f"dev loss is least after {np.median([r.best_step for r in runs]):.0f} steps (median)",
    ]
    return [
        verdict_of(
            evidence, "C8", finding.verdict, finding, "% of looks fell (least and most)", note, [finding]
        )
    ]


def spread_of(values: np.ndarray, runs: Sequence[RunRecord], verdict: str) -> Finding:
    """Mean, least and most over runs, where a claim speaks about each run and not about a difference."""
    n_seeds = len({r.seed for r in runs})
    middle = Interval(float(values.mean()), float(values.min()), float(values.max()), n_seeds, np.nan, np.nan)
    texts = " and ".join(text_name(t) for t in AUTHORS if any(r.text == t for r in runs))
    return measuring.unless_few(Finding(middle, verdict, 1.0, test=texts))


def stability_of_gradients(evidence: Evidence) -> list[Verdict]:
    """C9, by `measuring.is_stable`; exploratory, so *holds in part* is the most. A run that diverged was not stable."""
    runs, full = (
        [r.gradient_norms for r in evidence.both(plan) if r.gradient_norms is not None]
        for plan in (MAIN, FULL)
    )
    if not runs:
        return []
    broken, beside_broken = evidence.n_diverged(MAIN), evidence.n_diverged(FULL)
    steady = sum(measuring.is_stable(norms["total"]) for norms in runs)
    beside = [measuring.is_stable(norms["mlp+norm"]) for norms in full if "mlp+norm" in norms]
    quarters = np.array([norms["total"].quarters for norms in runs])
    finding = spread_of(
        quarters,
        evidence.both(MAIN),
        FAILS if steady == 0 else IN_PART if steady == len(runs) + broken else UNDECIDED,
    )
    note = [
        "exploratory, so in part is the most",
        f"unclipped: {steady} of {len(runs) + broken} runs stable",
        f"full training on the same tensors: {sum(beside)} of {len(beside) + beside_broken}",
    ]
    return [
        verdict_of(
            evidence,
            "C9",
            finding.verdict,
            finding,
            "norm, last / first quarter (least and most)",
            note,
            [finding],
        )
    ]


# --- all claims --------------------------------------------------------------------


def recorded_verdicts(folder: Path = EVIDENCE) -> dict[str, list[Verdict]]:
    """Claim to its recorded verdicts, one a model: the study's, and those on memory and the time of a step."""
    found: dict[str, list[Verdict]] = {}
    for model in studied_models(folder):
        for verdict in scoreboard(read_evidence(model, folder)):
            found.setdefault(verdict.claim, []).append(verdict)
    if study.is_recorded(folder / study.BENCHMARK.name):
        found["C12"] = step_time(study.read(folder / study.BENCHMARK.name))
    if study.is_recorded(folder / study.MEMORY.name):
        found["C11"] = peak_memory(study.read(folder / study.MEMORY.name))
    return {claim: found[claim] for claim in CLAIMS if found.get(claim)}


def step_time(benchmark: dict) -> list[Verdict]:
    """C12 on GPT-Neo 125M, from the benchmark's pairs of processes."""
    logs = study.plan_time_ratio(benchmark["pairs"], "main")
    if len(logs) < LEAST_PAIRS:
        return []
    return [Verdict("C12", **study.time_verdict(logs, benchmark["setting"]["machine"]), **ON_125M)]


def peak_memory(record: dict) -> list[Verdict]:
    """C11 on GPT-Neo 125M, from the measured peaks."""
    if study.largest_setting(record) is None:
        return []
    return [Verdict("C11", **study.memory_verdict(record), **ON_125M)]


def newest(recorded: Iterable[Entry], live: Iterable[Entry]) -> list[Entry]:
    """The recorded verdicts, each replaced by a live one on the same model and part; any other stands beside it."""
    found: dict[str, dict[tuple, Verdict]] = {}
    for entry in (*entries_of(recorded), *entries_of(live)):
        found.setdefault(entry.id, {}).update({(v.model, v.part): v for v in entry.verdicts})
    return [Entry(tuple(found[claim].values())) for claim in CLAIMS if claim in found]


def recorded_claim(claim: str, folder: Path = EVIDENCE) -> Entry:
    """One claim as the records have it: its first part leads.

    Raises:
        ClaimError: no claim has this name.
    """
    recorded = recorded_verdicts(folder)
    if claim not in recorded:
        raise ClaimError(f"No record is about a claim {seen(claim)}. There are: {', '.join(recorded)}.")
    return Entry(tuple(recorded[claim]))


def published(live: Iterable[Entry] = (), folder: Path = EVIDENCE) -> list[Entry]:
    """The table of claims: recorded verdicts first, then the notebooks' own on models that no record is about.

    A record that leaves a claim untested gives way to a notebook that tested it on the same model.

    Args:
        live: what the notebooks measured (`claims.load_claims`), or an earlier table.
    """
    own, studied = {e.id: e for e in live}, recorded_verdicts(folder)
    entries = []
    for claim in CLAIMS:
        here = own[claim].verdicts if claim in own else ()
        tested = {v.model for v in here if v.verdict != UNTESTED}
        found = [v for v in studied.get(claim, ()) if v.verdict != UNTESTED or v.model not in tested]
        known = {v.model for v in found}
        beside = [v for v in here if v.model not in known and not (found and v.source == "recorded")]
        if found or beside:
            entries.append(Entry((*found, *beside)))
    return entries


def scoreboard_table(entries: Sequence[Entry]) -> str:
    """Markdown for a README: per claim, model and part the verdict, its number and interval, and what it rests on."""
    rows = ["| | the article says | verdict | measured | on |", "| --- | --- | --- | --- | --- |"]
    for entry in entries_of(entries):
        for verdict in entry.verdicts:
            statement = entry.statement if verdict is entry.first else "(the same claim)"
            if verdict.part:
                statement += f" Here: {verdict.part}."
            rows.append(
                f"| {entry.id} | {statement} | **{verdict.verdict}** | {number_of(verdict)}<br>{sentence_case(verdict.note)} "
                f"| {verdict.model}{seeds_of(verdict)}, {verdict.source} |"
            )
    return "\n".join(rows)


# --- what a verdict says beside its number ------------------------------------------


def by_test(findings: Sequence[Finding], sign: str = "+") -> str:
    """Each test with its estimate and its own verdict, the claim's other tests left out of account.

    Those without an estimate come last; where they have one reason it is said once.
    """
    found = [f for f in findings if f.test]
    parts = [
        f"{text_name(f.test)} {numbers(f.interval, sign)} ({said(f)})" for f in found if f.interval.n_pairs
    ]
    without: dict[str, list[str]] = {}
    for f in found:
        if not f.interval.n_pairs:
            without.setdefault(said(f), []).append(text_name(f.test))
    parts += [f"{' and '.join(names)} ({reason})" for reason, names in without.items()]
    return ", ".join(parts) or "no test has runs"


def said(finding: Finding) -> str:
    """The verdict of one test; where its text could not test the claim, also why."""
    is_tested = finding.verdict != UNTESTED
    return finding.verdict if is_tested else f"{finding.verdict}: {'; '.join(finding.limits)}"


def numbers(interval: Interval, sign: str = "+") -> str:
    """An estimate with its interval, two significant digits each; one pair has no interval over seeds."""
    if interval.n_pairs < 2:
        return f"{two_digits(interval.mean, sign)} (one pair: no interval over seeds)"
    low, high = (two_digits(end, sign) for end in (interval.low, interval.high))
    return f"{two_digits(interval.mean, sign)} [{low}, {high}]"


def words_by_text(evidence: Evidence, plan: str, other: str = FULL) -> list[str]:
    """What the difference in forgetting is called on each text, and beside which smallest difference that counts."""
    gaps = {text: forgetting_gap(evidence, plan, other, text) for text in AUTHORS}
    words = [
        f"{gap.word} on {text_name(text)} (what counts begins at {two_digits(gap.smallest)})"
        for text, gap in gaps.items()
        if gap
    ]
    return [f"in a word: {', '.join(words)}"] if words else []


def losses_by_test(evidence: Evidence, *plans: str) -> str:
    """The test loss of the untouched base, then of each plan, on every test: nats per token."""
    lines = []
    for text, test in tests_of(evidence):
        own = [evidence.of(p, text, "learn") for p in plans]
        if all(own) and test in evidence.base:
            means = [
                np.mean(evidence.base[test]),
                *(np.mean([np.mean(r.test_windows[test]) for r in runs]) for runs in own),
            ]
            lines.append(f"{text_name(test)} {', '.join(f'{loss:.2f}' for loss in means)}")
    return "; ".join(lines)


def measured(findings: Sequence[Finding]) -> Sequence[Finding]:
    """Those with a number, if any has one."""
    return [f for f in findings if f.interval.n_pairs] or findings


def weakest(findings: Sequence[Finding], claimed: str) -> Finding:
    """The test that speaks least for a claim: the largest p, and of equal ones the estimate farthest from the claim.

    Args:
        claimed: "lower" or "higher", as in `measuring.decide`.
    """
    return max(measured(findings), key=lambda f: (f.p, -measuring.SIGN[claimed] * f.interval.mean))


def how_catastrophic(evidence: Evidence) -> str:
    """The most that full training forgot: at its best gain, and at the level with other rates; beside the border."""
    forgot = [float(frontier(r.evaluations)[1][-1]) for t in AUTHORS for r in evidence.of(FULL, t, "keep")]
    if not forgot:
        return f"{MISSING} of full training at the rate that forgets least"
    elsewhere = [f for t in AUTHORS for f in evidence.at_level(FULL, t).values()]
    is_more = elsewhere and max(elsewhere) > max(forgot)
    more = f", and at another rate up to {max(elsewhere):.2f} at the level" if is_more else ""
    return (
        f"full training forgot at most {max(forgot):.2f} nats at its best gain with the rates compared{more}. "
        f"The protocol says catastrophic from {measuring.CATASTROPHIC:g} on"
    )


def at_the_lowest_rate(evidence: Evidence) -> list[str]:
    """How many of the compared rates have only rates below them that did not reach the level; empty where none has.

    Slower training tends to forget less, and the limit of steps ends it: such a plan might do better with more steps.
    """
    chosen = evidence.rates.get("chosen", {})
    own = [
        (rates["keep"], reached)
        for p in (FULL, MAIN)
        for t, rates in chosen.get(p, {}).items()
        if (reached := evidence.at_level(p, t))
    ]
    n_lowest = sum(rate == min(reached) for rate, reached in own)
    words = f"{n_lowest} of {len(own)} rates compared are the lowest tried that get there: more steps at a lower rate"
    return [f"{words} might change it"] if n_lowest else []


def at_the_highest_rate(evidence: Evidence) -> list[str]:
    """Where the rate that learns is the highest one tried, so that the best may lie beyond it; empty where none is."""
    tried: dict[str, list[float]] = {}
    for row in evidence.rates["table"]:
        tried.setdefault(row["plan"], []).append(row["rate"])
    chosen = evidence.rates.get("chosen", {})
    at_edge = [
        f"{name} on {text_name(t)}"
        for p, name in ((FULL, "full training"), (MAIN, "the main plan"))
        for t, rates in chosen.get(p, {}).items()
        if t in AUTHORS and p in tried and rates.get("learn") == max(tried[p])
    ]
    return [f"the highest rate tried is the best for {', '.join(at_edge)}"] if at_edge else []


def what_would_decide(findings: Sequence[Finding]) -> str:
    """How many seeds would decide what is open, if means and spreads stayed as they are; "" where a limit says it."""
    limits = [limit for f in findings for limit in f.limits]
    if any(limit.startswith(MISSING) for limit in limits):
        return "the missing runs would have to be recorded"
    if FEW in limits:
        return ""
    open_ones = [f for f in findings if f.verdict == UNDECIDED]
    needed = [f.pairs_needed for f in open_ones]
    if needed and None not in needed:
        return f"about {counted(max(needed), 'seed')} would decide"
    verdicts = {f.verdict for f in measuring.tested(findings)}
    if not open_ones and verdicts == {HOLDS}:
        return "each test alone holds, but not beside the others (Holm)"
    if not open_ones and len(verdicts) > 1:
        return "the tests disagree, which more seeds alone would not change"
    return "more seeds alone would not decide"
