"""Verdicts from intervals, by rules that were fixed before the runs (data/evidence/PROTOCOL.md).

    findings = {"C10": [finding_of(interval, smallest, "lower"), …]}   one finding a text
    verdicts = primary_verdicts(findings)                             Holm's rule over the claims

A rule returns one of five words and never hides a case: what the data do not decide is *not decided*.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Real

from scipy.optimize import brentq
from scipy.special import stdtrit

from helpers.files import require_each, require_kind, require_named
from helpers.measuring.intervals import Interval, numbers, probabilities, require_size

HOLDS, IN_PART, FAILS = "holds", "holds in part", "does not hold"
UNDECIDED, UNTESTED = "not decided", "not tested here"
VERDICTS = (HOLDS, IN_PART, FAILS, UNDECIDED, UNTESTED)

SMALLEST_LOSS = 0.02  # nats per token: 2% of perplexity, the smallest difference that counts
SMALLEST_FORGETTING = 0.005  # nats per token, and at least …
SMALLEST_FORGETTING_SHARE = 0.2  # … of what the other plan forgot, on the same windows
EQUAL_SHARE = 0.9  # two gains are equal where the smaller is above this share of the larger
FAMILY_ERROR = 0.05  # Holm, over the primary tests of a model
STYLE_SHARE = 0.9
CATASTROPHIC = 0.5  # nats per token of forgetting
SIGN = {"lower": -1.0, "higher": 1.0}
LEAST_P = 1e-12  # a p-value is not followed below it
LEAST_PAIRS = 3  # below, the study decides nothing
LESS, SAME, MORE, DEPENDS, OPEN = "less", "no difference that counts", "more", "depends on the gain", "open"
FEW = f"below {LEAST_PAIRS} seeds nothing is decided"  # the reason that such a finding carries
JUDGED = "What a rule judges is an interval over pairs"  # how a refusal of something else begins
Rule = Callable[[Interval, Interval], str]  # (90% interval, 95% interval) to a verdict

# --- one interval ------------------------------------------------------------------


def decide(difference: Interval, smallest: float, claimed: str) -> str:
    """Does a difference between two plans bear a claim out?

    It *holds* if the interval lies on the claimed side of zero and the estimate reaches the
    smallest difference that counts. It *does not hold* if the interval shuts out an effect of
    that size on the claimed side. Else it is *not decided*. One pair decides nothing.

    Args:
        claimed: "lower" or "higher": the side on which the claim puts the difference.
    """
    require_kind(difference, Interval, JUDGED)
    if claimed not in SIGN:
        raise ValueError(f"A claim puts a difference on one side, {' or '.join(SIGN)}; found {claimed!r}.")
    require_size(smallest, "The smallest difference that counts is one number")
    sign = SIGN[claimed]
    low, high = sorted((sign * difference.low, sign * difference.high))
    if math.isnan(low):
        return UNDECIDED
    if low > 0 and sign * difference.mean >= smallest:
        return HOLDS
    return FAILS if high < smallest else UNDECIDED


def counts(difference: Interval, smallest: float) -> bool:
    """Whether a difference is clear and large enough to count, on either side."""
    return any(decide(difference, smallest, claimed) == HOLDS for claimed in SIGN)


def word(difference: Interval, smallest: float) -> str:
    """What a difference is called: less, more, no difference that counts, or open.

    *Less* and *more*: the interval lies on that side of zero, and the estimate reaches the smallest difference that
    counts. *No difference that counts*: the interval shuts out such a difference on both sides. Else *open*, as with
    fewer than `LEAST_PAIRS` pairs.
    """
    require_kind(difference, Interval, JUDGED)
    if difference.n_pairs < LEAST_PAIRS:
        return OPEN
    lower, higher = (decide(difference, smallest, claimed) for claimed in ("lower", "higher"))
    if HOLDS in (lower, higher):
        return LESS if lower == HOLDS else MORE
    return SAME if lower == higher == FAILS else OPEN


def over_gains(words: Sequence[str]) -> str:
    """One word for a difference that was read at several gains, the highest first.

    It is the word at the highest gain; but where one gain says *less* and another *more*, it depends on the gain.
    """
    words = _known(words, (LESS, SAME, MORE, DEPENDS, OPEN), "Gains that a difference was read at have words")
    return DEPENDS if {LESS, MORE} <= set(words) else words[0]


def _known(words: Sequence[str], known: Sequence[str], what: str) -> list[str]:
    """Return words as a list, one or more, each of them a ``known`` one; else raise ValueError or TypeError."""
    words = require_each(words, str, what, 1)
    if odd := [word for word in words if word not in known]:
        raise ValueError(f"{what}: {', '.join(known)}; found {odd[0]!r}.")
    return words


def smallest_difference(forgotten: float) -> float:
    """The smallest difference in forgetting that counts beside a plan that forgot so much, nats per token."""
    (forgotten,) = numbers([forgotten], "The smallest difference goes by what was forgotten, one number")
    return max(SMALLEST_FORGETTING, SMALLEST_FORGETTING_SHARE * float(forgotten))


def decide_equal(loss_90: Interval, loss_95: Interval, margin: float = SMALLEST_LOSS) -> str:
    """Are two plans equally good? Two one-sided tests (Schuirmann 1987).

    *Holds* if the 90% interval lies inside the margin; *does not hold* if the 95% interval is above
    zero and the estimate reaches the margin; else *not decided*.
    """
    for one in (loss_90, loss_95):
        require_kind(one, Interval, JUDGED)
    require_size(margin, "The margin of what is equal is one number")
    if math.isnan(loss_90.low):
        return UNDECIDED
    if -margin < loss_90.low and loss_90.high < margin:
        return HOLDS
    return FAILS if loss_95.low > 0 and loss_95.mean >= margin else UNDECIDED


def decide_at_least(ratio: Interval, least: float) -> str:
    """Is a ratio at least ``least``? *Holds* if its whole interval is; *does not hold* if none of it is."""
    require_kind(ratio, Interval, JUDGED)
    require_size(least, "The least ratio is one number")
    if math.isnan(ratio.low):
        return UNDECIDED
    if ratio.low >= least:
        return HOLDS
    return FAILS if ratio.high < least else UNDECIDED


def p_value(difference: Interval, border: float, claimed: str) -> float:
    """One-sided: how often an estimate this far beyond ``border`` comes up if the truth is at the border.

    It is half the error level at which the interval of `comparison.paired_interval` just touches the border.
    """
    require_kind(difference, Interval, JUDGED)
    if math.isnan(difference.low):
        return 1.0
    tail = (1 + difference.level) / 2
    errors = [(half / stdtrit(df, tail), df) for half, df in difference.parts]
    beyond = SIGN[claimed] * (difference.mean - border)

    def gap(q: float) -> float:
        """Half-width at the one-sided level q, minus the distance to the border."""
        return math.hypot(*(stdtrit(df, 1 - q) * error for error, df in errors)) - abs(beyond)

    p = brentq(gap, LEAST_P, 0.5, xtol=1e-9) if gap(LEAST_P) > 0 and beyond else (LEAST_P if beyond else 0.5)
    return p if beyond >= 0 else 1 - p


def pairs_needed(difference: Interval, rule: Rule, most: int = 200) -> int | None:
    """How many pairs would decide, if mean and spread stayed as they are; None: pairs alone never would."""
    if math.isnan(difference.low) or difference.n_pairs < 2:
        return None
    return next(
        (
            n
            for n in range(LEAST_PAIRS, most + 1)
            if rule(*(with_pairs(difference, n, level) for level in (0.90, 0.95))) != UNDECIDED
        ),
        None,
    )


def with_pairs(difference: Interval, n: int, level: float) -> Interval:
    """The interval that n pairs with the same mean, spread and windows would have."""
    was, tail = (1 + difference.level) / 2, (1 + level) / 2
    (seed_half, df), *others = difference.parts
    seed = seed_half / stdtrit(df, was) * math.sqrt((df + 1) / n) * stdtrit(n - 1, tail)
    halves = [half * stdtrit(df, tail) / stdtrit(df, was) for half, df in others]
    half = math.hypot(seed, *halves)
    return replace(
        difference,
        low=difference.mean - half,
        high=difference.mean + half,
        n_pairs=n,
        seed_half=seed,
        window_half=halves[0],
        gain_half=halves[1] if len(halves) > 1 else difference.gain_half,
        level=level,
    )


# --- texts and tests together ------------------------------------------------------


@dataclass(frozen=True)
class Finding:
    """What one test says about a claim: one text, or one kind of texts.

    Attributes:
        verdict: from its interval alone.
        p: at what error level it would just be *holds*, two-sided for a difference.
        is_reversed: the interval lies on the other side and the estimate reaches the smallest difference.
        limits: reasons why it can be no more than *holds in part*.
        rule: what made the verdict; None where no interval could.
        vetoes: it leaves the whole claim not decided, whatever other texts say.
        test: the text, or what else tells it from the claim's other tests; for notes.
    """

    interval: Interval
    verdict: str
    p: float
    is_reversed: bool = False
    limits: tuple[str, ...] = ()
    rule: Rule | None = None
    vetoes: bool = False
    test: str = ""

    @property
    def pairs_needed(self) -> int | None:
        """How many pairs would decide it, where it is open; None: pairs alone never would."""
        return None if self.rule is None else pairs_needed(self.interval, self.rule)


def finding_of(difference: Interval, smallest: float, claimed: str, limits: Sequence[str] = ()) -> Finding:
    """A claim that a difference lies on one side."""
    other = {"lower": "higher", "higher": "lower"}[claimed]
    p = min(1.0, 2 * p_value(difference, 0.0, claimed))
    return unless_few(
        Finding(
            difference,
            decide(difference, smallest, claimed),
            p,
            decide(difference, smallest, other) == HOLDS,
            tuple(limits),
            lambda _, wide: decide(wide, smallest, claimed),
        )
    )


def equal_finding(
    loss_90: Interval, loss_95: Interval, margin: float = SMALLEST_LOSS, limits: Sequence[str] = ()
) -> Finding:
    """A claim that two losses are equal; its p is the larger of the two one-sided tests."""
    p = max(p_value(loss_90, -margin, "higher"), p_value(loss_90, margin, "lower"))
    verdict = decide_equal(loss_90, loss_95, margin)
    return unless_few(
        Finding(
            loss_95,
            verdict,
            p,
            verdict == FAILS,
            tuple(limits),
            lambda narrow, wide: decide_equal(narrow, wide, margin),
        )
    )


def share_finding(
    share_90: Interval, share_95: Interval, least: float = EQUAL_SHARE, limits: Sequence[str] = ()
) -> Finding:
    """A claim that a plan gains as much as another: its share of the other's gain lies above ``least``.

    *Holds* if the 90% interval does; *does not hold* if the 95% interval lies below.
    """
    p = p_value(share_90, least, "higher")
    require_kind(share_95, Interval, JUDGED)

    def rule(narrow: Interval, wide: Interval) -> str:
        if math.isnan(narrow.low):
            return UNDECIDED
        return HOLDS if narrow.low > least else FAILS if wide.high < least else UNDECIDED

    verdict = rule(share_90, share_95)
    return unless_few(Finding(share_95, verdict, p, verdict == FAILS, tuple(limits), rule))


def unless_few(finding: Finding) -> Finding:
    """The finding; from fewer than `LEAST_PAIRS` pairs it decides nothing, whatever its interval says."""
    require_kind(finding, Finding, "What few pairs leave open is a test's finding")
    if finding.interval.n_pairs >= LEAST_PAIRS:
        return finding
    return replace(finding, verdict=UNDECIDED, p=1.0, is_reversed=False, limits=(*finding.limits, FEW))


def over_texts(verdicts: Sequence[str]) -> str:
    """One verdict from several texts, one or more: a claim holds only if it holds on each."""
    verdicts = _known(verdicts, VERDICTS, "Texts have verdicts")
    kinds = set(verdicts)
    if len(kinds) == 1:
        return verdicts[0]
    if HOLDS in kinds and FAILS not in kinds:
        return IN_PART
    return UNDECIDED


def over_findings(findings: Sequence[Finding]) -> str:
    """As `over_texts`, with what else limits a claim: true on one text and reversed on another decides nothing.

    What was not tested on a text is left out; where nothing was, the claim is not tested here.
    """
    findings = tested(findings)
    verdicts = {f.verdict for f in findings}
    if not findings:
        return UNTESTED
    if any(f.vetoes for f in findings):
        return UNDECIDED
    if verdicts == {HOLDS}:
        return IN_PART if any(f.limits for f in findings) else HOLDS
    if len(verdicts) == 1:
        return findings[0].verdict
    if HOLDS in verdicts and not any(f.is_reversed for f in findings):
        return IN_PART
    return UNDECIDED


def tested(findings: Sequence[Finding]) -> list[Finding]:
    """Those whose text could test the claim."""
    findings = require_each(findings, Finding, "Texts have findings")
    return [f for f in findings if f.verdict != UNTESTED]


def holm(p_values: Mapping[str, float], error: float = FAMILY_ERROR) -> frozenset[str]:
    """The tests that stand when several are made at once (Holm 1979)."""
    probabilities(list(p_values.values()))  # NaN is not above any error
    stands = []
    for k, (name, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        if p > error / (len(p_values) - k):
            break
        stands.append(name)
    return frozenset(stands)


def primary_verdicts(
    findings: Mapping[str, Sequence[Finding]], error: float = FAMILY_ERROR
) -> dict[str, str]:
    """The verdicts of the primary tests of a model, as far as Holm's rule over them allows.

    A claim that may not *hold* can still *hold in part*, and one that may not do that is not decided.
    """
    require_named(findings, Sequence, "Claims have findings, one a text", 0)
    verdicts = {name: over_findings(own) for name, own in findings.items()}
    for strong, weaker in ((HOLDS, IN_PART), (IN_PART, UNDECIDED)):
        stands = holm({name: p_of(verdicts[name], own) for name, own in findings.items()}, error)
        verdicts = {name: weaker if v == strong and name not in stands else v for name, v in verdicts.items()}
    return verdicts


def p_of(verdict: str, findings: Sequence[Finding]) -> float:
    """Of a claim on several texts. On each: the largest p. On some, *in part*: the smallest, times their number."""
    findings = tested(findings)
    if verdict != IN_PART:
        return max((f.p for f in findings), default=1.0)
    return min(1.0, len(findings) * min(f.p for f in findings if f.verdict == HOLDS))


def sign_depends(by_rate: Mapping[float, float], smallest: float) -> bool:
    """Whether differences at several rates point both ways. One that is too small to count has no sign."""
    require_named(by_rate, Real, "Differences stand by rate", 0)
    signs = {math.copysign(1, d) for d in by_rate.values() if abs(d) >= smallest}
    return len(signs) == 2
