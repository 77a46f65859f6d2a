"""What a verdict of the study says beside its number: each test's own verdict, what limits it, what would decide.

    by_test(forgetting_findings(evidence))    "alice -0.020 [-0.034, -0.0065] (not decided), edgar …"

`scoreboard` joins these words to the notes of its entries.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from helpers import measuring
from helpers.measuring import FEW, HOLDS, UNDECIDED, UNTESTED, Finding, Interval, frontier
from helpers.results.claims import two_digits
from helpers.results.evidence import AUTHORS, FULL, MAIN, MISSING, Evidence, forgetting_gap, tests_of


def by_test(findings: Sequence[Finding], sign: str = "+") -> str:
    """Each test with its estimate and its own verdict, the claim's other tests left out of account."""
    found = [f for f in findings if f.test]
    return (
        ", ".join(
            f"{f.test}{' ' + numbers(f.interval, sign) if f.interval.n_pairs else ''} ({said(f)})"
            for f in found
        )
        or "no test has runs"
    )


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


def words_by_text(evidence: Evidence, plan: str, other: str = FULL) -> str:
    """What the difference in forgetting is called on each text, and beside which smallest difference that counts."""
    gaps = {text: forgetting_gap(evidence, plan, other, text) for text in AUTHORS}
    return "; ".join(
        f"on {text}: {gap.word} (what counts begins at {two_digits(gap.smallest)})"
        for text, gap in gaps.items()
        if gap
    )


def losses_by_test(evidence: Evidence, *plans: str) -> str:
    """The test loss of the untouched base, then of each plan, on every test: nats per token."""
    lines = []
    for text, test in tests_of(evidence):
        own = [evidence.of(p, text, "learn") for p in plans]
        if all(own) and test in evidence.base:
            means = [
                np.mean(evidence.base[test]),
                *(np.mean([np.mean(r["test_windows"][test]) for r in runs]) for runs in own),
            ]
            lines.append(f"{test} {', '.join(f'{loss:.2f}' for loss in means)}")
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
    forgot = [float(frontier(r["evaluations"])[1][-1]) for t in AUTHORS for r in evidence.of(FULL, t, "keep")]
    if not forgot:
        return f"{MISSING} of full training at the rate that forgets least"
    elsewhere = [f for t in AUTHORS for f in evidence.at_level(FULL, t).values()]
    is_more = elsewhere and max(elsewhere) > max(forgot)
    more = f", and at another rate up to {max(elsewhere):.2f} at the level" if is_more else ""
    return (
        f"full training forgot at most {max(forgot):.2f} nats at its best gain with the rates compared{more} (the "
        f"protocol says catastrophic from {measuring.CATASTROPHIC:g} on)"
    )


def at_the_lowest_rate(evidence: Evidence) -> str:
    """How many of the compared rates have only rates below them that did not reach the level; "" where none has.

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
    return (
        f"; {n_lowest} of {len(own)} rates compared are the lowest tried that get there: more steps at a lower "
        "rate might change it"
        if n_lowest
        else ""
    )


def at_the_highest_rate(evidence: Evidence) -> str:
    """Where the rate that learns is the highest one tried, so that the best may lie beyond it; "" where none is."""
    tried: dict[str, list[float]] = {}
    for row in evidence.rates["table"]:
        tried.setdefault(row["plan"], []).append(row["rate"])
    chosen = evidence.rates.get("chosen", {})
    at_edge = [
        f"{name} on {t}"
        for p, name in ((FULL, "full training"), (MAIN, "the main plan"))
        for t, rates in chosen.get(p, {}).items()
        if t in AUTHORS and p in tried and rates.get("learn") == max(tried[p])
    ]
    return f"; the highest rate tried is the best for {', '.join(at_edge)}" if at_edge else ""


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
        return f"about {max(needed)} seeds would decide"
    verdicts = {f.verdict for f in measuring.tested(findings)}
    if not open_ones and verdicts == {HOLDS}:
        return "each test alone holds, but not beside the others (Holm)"
    if not open_ones and len(verdicts) > 1:
        return "the tests disagree, which more seeds alone would not change"
    return "more seeds alone would not decide"
