"""Borders, numbers and words of the rules, one by one: what the other tests let pass when the code was broken."""

import math
from dataclasses import FrozenInstanceError

import pytest

from helpers.measuring import decisions
from helpers.measuring.decisions import (
    DEPENDS,
    FAILS,
    FEW,
    HOLDS,
    IN_PART,
    LESS,
    MORE,
    OPEN,
    SAME,
    UNDECIDED,
    UNTESTED,
    Finding,
    counts,
    decide,
    decide_at_least,
    decide_equal,
    equal_finding,
    finding_of,
    holm,
    over_findings,
    over_gains,
    over_texts,
    p_of,
    p_value,
    pairs_needed,
    primary_verdicts,
    share_finding,
    sign_depends,
    smallest_difference,
    with_pairs,
    word,
)
from helpers.measuring.intervals import Interval, paired_interval


def interval(low, high, n=5):
    """An interval whose ends are exact in binary."""
    mean, half = (low + high) / 2, (high - low) / 2
    return Interval(mean, low, high, n, half, 0.0)


NOTHING = Interval(-0.5, math.nan, math.nan, 1, math.nan, 0.0)


# --- borders -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "low, high, smallest, verdict",
    [
        (0.125, 0.375, 0.25, HOLDS),  # the estimate just reaches the smallest difference
        (0.125, 0.375, 0.2578125, UNDECIDED),
        (0.0, 0.5, 0.25, UNDECIDED),  # the interval touches zero
        (-0.25, 0.25, 0.25, UNDECIDED),  # it does not shut the smallest difference out
        (-0.25, 0.125, 0.25, FAILS),
    ],
)
def test_a_difference_at_the_border(low, high, smallest, verdict):
    assert decide(interval(low, high), smallest, "higher") == verdict
    assert decide(interval(-high, -low), smallest, "lower") == verdict


@pytest.mark.parametrize(
    "at_90, at_95, verdict",
    [
        ((-0.125, 0.125), (-0.25, 0.25), HOLDS),
        ((-0.25, 0.125), (-0.5, 0.5), UNDECIDED),  # touches the margin below
        ((-0.125, 0.25), (-0.5, 0.5), UNDECIDED),  # and above
        ((0.125, 0.375), (0.0625, 0.4375), FAILS),  # the estimate just reaches the margin
        ((0.0625, 0.4375), (0.0, 0.5), UNDECIDED),  # the wide interval touches zero
        ((0.125, 0.3125), (0.0625, 0.375), UNDECIDED),  # above zero, but less than the margin
        ((-0.375, -0.125), (-0.4375, -0.0625), UNDECIDED),  # lower is no proof of a loss
    ],
)
def test_equal_losses_at_the_border(at_90, at_95, verdict):
    narrow, wide = interval(*at_90), interval(*at_95)
    assert decide_equal(narrow, wide, 0.25) == verdict
    found = equal_finding(narrow, wide, 0.25, ["at 65%"])
    assert (found.verdict, found.is_reversed, found.limits) == (verdict, verdict == FAILS, ("at 65%",))
    assert found.rule(narrow, wide) == verdict and found.interval is wide


@pytest.mark.parametrize(
    "low, high, verdict",
    [(0.5, 0.75, HOLDS), (0.25, 0.5, UNDECIDED), (0.25, 0.4375, FAILS), (0.4375, 0.75, UNDECIDED)],
)
def test_a_ratio_at_the_border(low, high, verdict):
    assert decide_at_least(interval(low, high), 0.5) == verdict


@pytest.mark.parametrize(
    "at_90, at_95, verdict",
    [
        ((0.625, 0.75), (0.5, 0.875), HOLDS),
        ((0.5, 0.75), (0.25, 0.875), UNDECIDED),
        ((0.25, 0.375), (0.125, 0.5), UNDECIDED),
        ((0.25, 0.375), (0.125, 0.4375), FAILS),
    ],
)
def test_a_share_at_the_border(at_90, at_95, verdict):
    found = share_finding(interval(*at_90), interval(*at_95), 0.5, ["at 65%"])
    assert (found.verdict, found.is_reversed, found.limits) == (verdict, verdict == FAILS, ("at 65%",))
    assert found.p == p_value(interval(*at_90), 0.5, "higher") and found.interval == interval(*at_95)


def test_one_pair_is_undecided_by_every_rule():
    assert decide(NOTHING, 0.1, "lower") == decide_at_least(NOTHING, 0.5) == UNDECIDED
    assert decide_equal(NOTHING, NOTHING) == UNDECIDED
    assert share_finding(interval(0.1, 0.2), interval(0.1, 0.2)).rule(NOTHING, NOTHING) == UNDECIDED
    assert pairs_needed(NOTHING, lambda narrow, wide: HOLDS) is None


def test_holm_lets_a_p_at_the_border_stand():
    assert holm({"a": 0.125, "b": 0.25}, 0.25) == {"a", "b"}
    assert holm({"a": 0.126, "b": 0.126}, 0.25) == frozenset()
    assert holm({"a": 0.06, "b": 0.001}) == {"b"}, "5% where nothing else is said"


def test_a_difference_at_the_border_has_a_sign():
    assert sign_depends({1.0: 0.25, 2.0: -0.25}, 0.25) and not sign_depends({1.0: 0.25, 2.0: 0.5}, 0.25)


# --- words -------------------------------------------------------------------------


def test_what_a_difference_is_called():
    low, high, none, wide = (
        interval(-0.5, -0.25),
        interval(0.25, 0.5),
        interval(-0.125, 0.125),
        interval(-1, 1),
    )
    assert [word(i, 0.25) for i in (low, high, none, wide)] == [LESS, MORE, SAME, OPEN]
    assert [counts(i, 0.25) for i in (low, high, none, wide)] == [True, True, False, False]
    assert word(interval(-0.5, -0.25, n=3), 0.25) == LESS and word(interval(-0.5, -0.25, n=2), 0.25) == OPEN
    assert word(interval(-0.25, 0.125), 0.25) == OPEN, "shut out on one side alone"


def test_one_word_over_several_gains():
    assert over_gains([LESS, MORE]) == over_gains([MORE, SAME, LESS]) == DEPENDS
    assert over_gains([SAME, LESS]) == SAME and over_gains([LESS, OPEN]) == LESS


def test_the_words_are_those_of_the_pages():
    assert (LESS, SAME, MORE, DEPENDS, OPEN) == (
        "less",
        "no difference that counts",
        "more",
        "depends on the gain",
        "open",
    )
    assert decisions.VERDICTS == (
        "holds",
        "holds in part",
        "does not hold",
        "not decided",
        "not tested here",
    )
    assert FEW == "below 3 seeds nothing is decided"


def test_the_smallest_difference_in_forgetting_is_a_share_and_never_below_the_floor():
    assert smallest_difference(0.1) == pytest.approx(0.02)
    assert smallest_difference(0.01) == smallest_difference(-1.0) == 0.005


# --- p-values and pairs ------------------------------------------------------------


def test_a_p_value_is_followed_down_to_the_least_and_turned_round_on_the_other_side():
    sure = interval(-0.5 - 1e-9, -0.5 + 1e-9, n=30)
    assert p_value(sure, 0.0, "lower") == decisions.LEAST_P == 1e-12
    assert p_value(sure, 0.0, "higher") == 1 - 1e-12


def test_the_p_of_a_difference_is_two_sided_and_at_most_one():
    d = paired_interval([-0.02, -0.035, -0.015, -0.03])
    assert finding_of(d, 0.01, "lower").p == pytest.approx(2 * p_value(d, 0.0, "lower"))
    assert finding_of(d, 0.01, "higher").p == 1.0
    assert finding_of(d, 0.01, "higher").is_reversed and not finding_of(d, 0.01, "lower").is_reversed
    up = interval(0.25, 0.5)
    assert finding_of(up, 0.25, "lower").is_reversed and not finding_of(up, 0.25, "higher").is_reversed


def test_the_p_of_equal_losses_is_the_larger_of_the_two_sides():
    narrow = paired_interval([0.012, 0.016, 0.009, 0.011], level=0.90)
    above, below = p_value(narrow, 0.02, "lower"), p_value(narrow, -0.02, "higher")
    assert equal_finding(narrow, narrow).p == above > below
    mirrored = paired_interval([-0.012, -0.016, -0.009, -0.011], level=0.90)
    assert equal_finding(mirrored, mirrored).p == pytest.approx(above)


def test_the_interval_of_more_pairs_keeps_the_errors_of_the_windows_and_of_the_gain():
    d, more = [-0.02, -0.04, -0.03], {"window_error": 0.004, "n_blocks": 24, "gain_error": 0.003}
    wanted = paired_interval(d, **more, n_gain_blocks=16, level=0.90)
    found = with_pairs(paired_interval(d, **more, n_gain_blocks=16), 3, 0.90)
    for name in ("mean", "low", "high", "n_pairs", "seed_half", "window_half", "gain_half", "level"):
        assert getattr(found, name) == pytest.approx(getattr(wanted, name)), name
    twelve = with_pairs(paired_interval(d, **more), 12, 0.95)
    assert twelve.n_pairs == 12 and twelve.seed_half < found.seed_half
    assert with_pairs(paired_interval(d, gain_error=None), 5, 0.95).gain_half is None


def test_pairs_needed_is_the_first_number_that_decides_from_3_to_200():
    d = paired_interval([-0.02, -0.04])

    def asked(least):
        seen = []

        def rule(narrow, wide):
            seen.append((wide.n_pairs, narrow.level, wide.level))
            return HOLDS if wide.n_pairs >= least else UNDECIDED

        return pairs_needed(d, rule), seen

    assert asked(1) == (3, [(3, 0.90, 0.95)]) and asked(17)[0] == 17
    assert asked(200)[0] == 200 and asked(201)[0] is None
    assert (
        finding_of(d, 0.01, "lower").pairs_needed is not None and Finding(d, HOLDS, 0.1).pairs_needed is None
    )


# --- several texts -----------------------------------------------------------------


def finding(verdict, p=0.01, **more):
    return Finding(interval(0.25, 0.5), verdict, p, **more)


def test_one_verdict_from_several_texts():
    assert over_texts([FAILS]) == FAILS == over_texts([FAILS, FAILS]) and over_texts([HOLDS, HOLDS]) == HOLDS
    assert over_texts([HOLDS, UNDECIDED]) == IN_PART
    assert over_texts([HOLDS, FAILS]) == over_texts([FAILS, UNDECIDED]) == UNDECIDED
    assert over_texts([HOLDS, FAILS, UNDECIDED]) == UNDECIDED


def test_what_was_not_tested_is_left_out_and_a_veto_leaves_all_open():
    assert over_findings([]) == over_findings([finding(UNTESTED)]) == UNTESTED
    assert over_findings([finding(UNTESTED), finding(HOLDS)]) == HOLDS
    assert over_findings([finding(HOLDS), finding(HOLDS, vetoes=True)]) == UNDECIDED
    assert over_findings([finding(UNTESTED, vetoes=True), finding(HOLDS)]) == HOLDS
    assert over_findings([finding(IN_PART), finding(IN_PART)]) == IN_PART


def test_the_p_of_a_claim_on_several_texts():
    several = [finding(HOLDS, 0.01), finding(HOLDS, 0.03), finding(UNTESTED, 0.9)]
    assert p_of(HOLDS, several) == 0.03 and p_of(HOLDS, []) == 1.0
    some = [finding(HOLDS, 0.01), finding(HOLDS, 0.02), finding(FAILS, 0.001)]
    assert p_of(IN_PART, some) == pytest.approx(0.03)
    assert p_of(IN_PART, [finding(HOLDS, 0.4), finding(HOLDS, 0.5), finding(FAILS, 0.6)]) == 1.0


def test_what_may_not_hold_can_hold_in_part_and_what_fails_stays():
    verdicts = primary_verdicts(
        {"A": [finding(HOLDS, 0.001), finding(HOLDS, 0.2)], "B": [finding(FAILS, 0.9)]}
    )
    assert verdicts == {"A": IN_PART, "B": FAILS}
    assert primary_verdicts({"A": [finding(HOLDS, 0.2)]}, error=0.25) == {"A": HOLDS}
    assert primary_verdicts({"A": [finding(HOLDS, 0.2)]}) == {"A": UNDECIDED}


def test_from_two_pairs_a_finding_keeps_its_limits_and_decides_nothing():
    few = finding_of(interval(-0.5, -0.25, n=2), 0.25, "higher", ["at 65%"])
    assert (few.verdict, few.p, few.is_reversed, few.limits) == (UNDECIDED, 1.0, False, ("at 65%", FEW))
    assert finding_of(interval(-0.5, -0.25, n=3), 0.25, "lower").verdict == HOLDS


def test_a_finding_is_plain_and_cannot_be_changed():
    found = Finding(interval(0.25, 0.5), HOLDS, 0.01)
    assert (found.is_reversed, found.limits, found.rule, found.vetoes, found.test) == (
        False,
        (),
        None,
        False,
        "",
    )
    with pytest.raises(FrozenInstanceError):
        found.p = 0.0
