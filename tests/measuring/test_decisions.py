"""The rules behind the verdicts, tried on simulated studies whose truth is known."""

import math
from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest
from scipy import stats

from helpers.measuring import curves as stability
from helpers.measuring import decisions
from helpers.measuring.comparison import forgetting_difference
from helpers.measuring.curves import Levelling, is_stable, levelling
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
    unless_few,
    with_pairs,
    word,
)
from helpers.measuring.decisions import decide as decide_of_claims
from helpers.measuring.intervals import Interval, paired_interval
from helpers.measuring.recorded import Evaluation, RunRecord
from helpers.study.protocol import read_protocol

N_STUDIES = 2000


def interval(mean, half, n=5):
    return Interval(mean, mean - half, mean + half, n, half, 0.0)


# --- the page and the code say the same --------------------------------------------


def test_the_page_and_the_code_have_the_same_numbers():
    page = read_protocol()["decisions"]
    for name in (
        "smallest_loss",
        "smallest_forgetting",
        "smallest_forgetting_share",
        "equal_share",
        "family_error",
        "style_share",
        "catastrophic",
    ):
        assert page[name] == getattr(decisions, name.upper()), name
    assert page["stability_loss"] == stability.WITHIN
    from inspect import signature

    from helpers.measuring.comparison import matched_gain

    assert page["level"] == signature(paired_interval).parameters["level"].default
    assert [page["fitted_part"], page["spike_share"], tuple(page["quarters"])] == [
        signature(levelling).parameters["part"].default,
        signature(is_stable).parameters["spike_share"].default,
        signature(is_stable).parameters["quarters"].default,
    ]
    levels = signature(Levelling.has_levelled).parameters
    assert [page["prediction_error"], page["limit_width"]] == [
        levels["largest_error"].default,
        levels["largest_width"].default,
    ]
    reached = [
        matched_gain(
            [
                [
                    Evaluation(step=0, gain=0.0, forgetting=0.0),
                    Evaluation(step=1, gain=share + 0.001, forgetting=0.1),
                ]
            ],
            1.0,
        )[1]
        for share in page["shares"]
    ]
    assert reached == page["shares"]


def test_claims_has_the_same_rules_at_hand():
    assert decide_of_claims is decisions.decide


# --- p-values ----------------------------------------------------------------------


def test_the_p_value_is_the_t_tests_where_seeds_are_the_only_error():
    d = [-0.02, -0.035, -0.015, -0.03]
    found = p_value(paired_interval(d), 0.0, "lower")
    assert found == pytest.approx(stats.ttest_1samp(d, 0, alternative="less").pvalue, rel=1e-4)
    assert p_value(paired_interval(d), 0.0, "higher") == pytest.approx(1 - found)


@pytest.mark.parametrize("error", [0.0, 0.004, 0.02])
def test_the_p_value_and_the_interval_agree_about_the_border(error):
    d = np.random.default_rng(1).normal(-0.02, 0.01, 6)
    found = paired_interval(d, error, 24)
    assert p_value(found, found.high, "lower") == pytest.approx(0.025, rel=1e-3)
    assert (p_value(found, 0.0, "lower") < 0.025) == (found.high < 0)


def test_a_small_spread_over_many_pairs_has_its_p_value_too():
    d = np.random.default_rng(2).normal(-0.0003, 0.001, 40)
    found = p_value(paired_interval(d), 0.0, "lower")
    assert found == pytest.approx(stats.ttest_1samp(d, 0, alternative="less").pvalue, rel=1e-4)


def test_one_pair_and_no_spread_at_all_are_cases_too():
    assert p_value(paired_interval([-0.5]), 0.0, "lower") == 1.0
    same = paired_interval([-0.02, -0.02, -0.02])
    assert p_value(same, 0.0, "lower") < 1e-6 and p_value(same, 0.0, "higher") > 0.999
    assert p_value(paired_interval([0.0, 0.0]), 0.0, "lower") == 0.5


# --- what no rule can judge --------------------------------------------------------

PAIRS = interval(-0.03, 0.01)
NOT_JUDGED = {
    "an interval": lambda: decide(-0.03, 0.02, "lower"),
    "a side": lambda: decide(PAIRS, 0.02, "sideways"),
    "an interval for a word": lambda: word((-0.04, -0.02), 0.02),
    "both intervals, the narrow one": lambda: decide_equal(None, PAIRS),
    "both intervals, the wide one": lambda: decide_equal(PAIRS, None),
    "an interval of a ratio": lambda: decide_at_least(0.9, 0.8),
    "an interval for a p-value": lambda: p_value([0.1], 0.0, "lower"),
    "an interval of a share": lambda: share_finding(PAIRS, 0.9),
    "a finding": lambda: unless_few("holds"),
    "a word at a gain": lambda: over_gains([]),
    "known words at gains": lambda: over_gains([LESS, "fewer"]),
    "known verdicts": lambda: over_texts([HOLDS, "perhaps"]),
    "findings by claim": lambda: primary_verdicts({"C1": 3}),
    "claims with findings": lambda: primary_verdicts([3]),
    "differences by rate": lambda: sign_depends({1e-4: "less"}, 0.01),
}
SAYS = "What a rule judges|A claim puts|What few pairs|Gains that|Texts have|Claims have|Differences stand"


@pytest.mark.parametrize("what", NOT_JUDGED)
def test_what_no_rule_can_judge_is_named_in_one_line(what):
    with pytest.raises((TypeError, ValueError), match=f"^({SAYS})") as refused:
        NOT_JUDGED[what]()
    assert "\n" not in str(refused.value)
    if "known" in what:
        assert str(refused.value).endswith(("found 'fewer'.", "found 'perhaps'."))


def test_no_claims_and_no_rates_are_no_fault():
    assert primary_verdicts({}) == {} and sign_depends({}, 0.01) is False


# --- texts, tests, rates -----------------------------------------------------------


def test_holm_allows_the_smallest_p_less_than_the_largest():
    assert holm({"a": 0.01, "b": 0.02, "c": 0.04}) == {"a", "b", "c"}
    assert holm({"a": 0.02, "b": 0.02, "c": 0.02}) == frozenset()
    assert holm({"a": 0.001, "b": 0.03, "c": 0.04}) == {"a"}
    assert holm({}) == frozenset()
    with pytest.raises(ValueError, match="from 0 to 1; found"):  # NaN is not above any error
        holm({"a": math.nan})


def lower(mean, half, limits=()):
    return finding_of(interval(mean, half), 0.01, "lower", limits)


def test_a_claim_needs_both_texts_and_a_reversal_undoes_it():
    yes, no, back, open_ = lower(-0.05, 0.01), lower(0.0, 0.005), lower(0.05, 0.01), lower(-0.02, 0.03)
    assert [f.verdict for f in (yes, no, back, open_)] == [HOLDS, FAILS, FAILS, UNDECIDED]
    assert over_findings([yes, yes]) == HOLDS
    assert over_findings([yes, open_]) == IN_PART
    assert over_findings([yes, no]) == IN_PART, "not there on the other text, but not reversed either"
    assert over_findings([yes, back]) == UNDECIDED
    assert over_findings([no, back]) == FAILS
    assert over_findings([open_, no]) == UNDECIDED


def test_a_limit_makes_the_most_of_it_holds_in_part():
    limited = lower(-0.05, 0.01, ["at 65% of full training's gain"])
    assert over_findings([limited, lower(-0.05, 0.01)]) == IN_PART
    assert over_findings([lower(0.0, 0.005, ["at 65%"])] * 2) == FAILS


def test_what_holds_alone_can_be_too_little_among_three_tests():
    # n = 5: a half-width of 0.0095 around 0.01 gives a p just under 0.05
    weak = [lower(-0.0100, 0.0095)] * 2
    assert primary_verdicts({"C10": weak})["C10"] == HOLDS
    others = {"C13": [lower(-0.0, 0.05)] * 2, "C14": [lower(-0.0, 0.05)] * 2}
    assert primary_verdicts({"C10": weak, **others})["C10"] == UNDECIDED


def test_less_evidence_never_gives_a_better_verdict():
    strong, weak, open_ = lower(-0.05, 0.01), lower(-0.0100, 0.0095), lower(-0.02, 0.03)
    others = {"C13": [lower(0.0, 0.05)] * 2, "C14": [lower(0.0, 0.05)] * 2}

    def verdict(*findings):
        return primary_verdicts({"C10": findings, **others})["C10"]

    assert verdict(weak, weak) == verdict(weak, open_) == UNDECIDED
    assert verdict(strong, weak) == verdict(strong, open_) == IN_PART and verdict(strong, strong) == HOLDS
    limited = lower(-0.0100, 0.0095, ["at 65%"])
    assert verdict(limited, limited) == UNDECIDED


def test_two_pairs_decide_nothing_however_alike_they_are():
    alike = finding_of(interval(-0.05, 1e-6, n=2), 0.01, "lower")
    assert alike.verdict == UNDECIDED and alike.p == 1.0 and decisions.FEW in alike.limits
    back = finding_of(interval(0.05, 1e-6, n=2), 0.01, "lower")
    assert not back.is_reversed and over_findings([lower(-0.05, 0.01), back]) == IN_PART
    same = interval(0.0, 1e-6, n=2)
    assert equal_finding(same, same).verdict == UNDECIDED


def test_the_sign_over_rates_ignores_what_is_too_small_to_count():
    assert not sign_depends({1e-4: 0.004, 3e-4: -0.03}, 0.01)
    assert sign_depends({1e-4: 0.014, 3e-4: -0.03}, 0.01)
    assert not sign_depends({}, 0.01)


def test_pairs_needed_falls_with_the_spread_and_knows_when_pairs_cannot_help():
    scatter = np.array([-1.0, 0.3, 0.7])
    few, many = (
        finding_of(paired_interval(-0.03 + s * scatter), 0.01, "lower").pairs_needed for s in (0.02, 0.04)
    )
    assert 3 <= few < many <= 200
    by_windows = paired_interval([-0.011, -0.009, -0.010], window_error=0.05)
    assert finding_of(by_windows, 0.01, "lower").pairs_needed is None


def test_the_interval_of_more_pairs_is_the_one_that_they_would_give():
    for level in (0.90, 0.95):
        wanted = paired_interval([-0.02, -0.04, -0.03], 0.004, 24, level)
        found = with_pairs(paired_interval([-0.02, -0.04, -0.03], 0.004, 24), 3, level)
        assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high))


def test_pairs_needed_knows_the_rule_of_equal_losses():
    scatter = np.array([-1.0, 0.3, 0.7])
    loss = [paired_interval(0.012 + 0.01 * scatter, 0.001, 25, level) for level in (0.90, 0.95)]
    found = equal_finding(*loss)
    assert found.verdict == UNDECIDED and 4 <= found.pairs_needed <= 20


# --- simulated studies -------------------------------------------------------------


def simulated(rng, truth, n_pairs, pair_sd=0.005, window_error=0.001, n_blocks=24):
    """The interval of one comparison: pairs scatter around the truth, and all of them share an error of the windows."""
    shift = rng.normal(0, window_error)
    seen_error = window_error * math.sqrt(rng.chisquare(n_blocks - 1) / (n_blocks - 1))
    pairs = rng.normal(truth + shift, pair_sd, n_pairs)
    return lambda level=0.95: paired_interval(pairs, seen_error, n_blocks, level)


def study(rng, n_pairs, difference=0.0, loss=0.0, style=0.0, smallest=0.01, **spread):
    """The three primary tests on two texts each."""

    def equal():
        both = simulated(rng, loss, n_pairs, **spread)
        return equal_finding(both(0.90), both(0.95))

    return primary_verdicts(
        {
            "C10": [
                finding_of(simulated(rng, difference, n_pairs, **spread)(), smallest, "lower")
                for _ in range(2)
            ],
            "C13": [equal(), equal()],
            "C14": [finding_of(simulated(rng, style, n_pairs, **spread)(), 0.02, "higher") for _ in range(2)],
        }
    )


def share(verdicts, claim, word):
    return sum(v[claim] == word for v in verdicts) / len(verdicts)


@pytest.mark.parametrize("n_pairs, pair_sd", [(3, 0.005), (10, 0.05)])
def test_with_no_true_difference_2000_studies_say_holds_in_at_most_2_and_a_half_percent(n_pairs, pair_sd):
    rng = np.random.default_rng(n_pairs)
    # A loss at the very border of "equal" is the hardest case for C13.
    found = [
        study(rng, n_pairs, loss=decisions.SMALLEST_LOSS, smallest=0.0, pair_sd=pair_sd)
        for _ in range(N_STUDIES)
    ]
    for claim in ("C10", "C13", "C14"):
        assert share(found, claim, HOLDS) <= 0.025, claim


@pytest.mark.parametrize("window_error", [0.0, 0.005, 0.02])
def test_one_text_alone_says_holds_in_at_most_2_and_a_half_percent_whatever_the_windows_do(window_error):
    rng = np.random.default_rng(7)
    found = [
        finding_of(simulated(rng, 0.0, 5, 0.01, window_error)(), 0.0, "lower").verdict == HOLDS
        for _ in range(N_STUDIES)
    ]
    # 2.5% of 2,000 is 50; three standard errors of a binomial are 21.
    assert sum(found) <= 50 + 21


def test_true_differences_are_found_with_the_power_that_the_page_states():
    rows = read_protocol()["power"]["rows"]
    assert len(rows) >= 6
    for row in rows:
        rng = np.random.default_rng(11)
        truth = {"C10": "difference", "C13": "loss", "C14": "style"}[row["claim"]]
        found = [
            study(
                rng,
                row["pairs"],
                **{truth: row["truth"]},
                pair_sd=row["pair_sd"],
                window_error=row["window_error"],
            )
            for _ in range(200)
        ]
        assert share(found, row["claim"], row["verdict"]) == pytest.approx(row["share"], abs=0.06), row


def test_a_difference_of_half_the_smallest_that_counts_is_not_called_one():
    rng = np.random.default_rng(5)
    found = [study(rng, 10, difference=-0.005) for _ in range(300)]
    assert share(found, "C10", HOLDS) <= 0.025


def small_run(rng, seed, text, slope, windows=24):
    """A record whose forgetting rises with the gain, with scatter by seed and by window."""
    by_window = rng.normal(1, 0.15, windows)
    factor = slope * (1 + rng.normal(0, 0.03))
    points = [
        Evaluation(
            step=8 * i,
            gain=g,
            forgetting=float(factor * g * by_window.mean()),
            forgetting_windows=list(factor * g * by_window),
        )
        for i, g in enumerate(np.linspace(0, 0.15, 8))
    ]
    return RunRecord(
        plan="full",
        seed=seed,
        text=text,
        model_hash="m",
        text_hash=text,
        retention_hash="r",
        batch=8,
        length=256,
        evaluations=points,
    )


def test_whole_records_go_through_match_jackknife_and_rule():
    rng = np.random.default_rng(3)

    def verdict(slope):
        findings = []
        for text in ("alice", "edgar"):
            plan, full = ([small_run(rng, s, text, k) for s in range(5)] for k in (slope, 0.5))
            findings.append(finding_of(forgetting_difference(plan, full, 0.12), 0.01, "lower"))
        return over_findings(findings)

    same = [verdict(0.5) for _ in range(40)]
    less = [verdict(0.25) for _ in range(20)]
    assert same.count(HOLDS) <= 2 and less.count(HOLDS) >= 18


# --- borders, numbers and words, one by one -----------------------------------------


def between(low, high, n=5):
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
    assert decide(between(low, high), smallest, "higher") == verdict
    assert decide(between(-high, -low), smallest, "lower") == verdict


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
    narrow, wide = between(*at_90), between(*at_95)
    assert decide_equal(narrow, wide, 0.25) == verdict
    found = equal_finding(narrow, wide, 0.25, ["at 65%"])
    assert (found.verdict, found.is_reversed, found.limits) == (verdict, verdict == FAILS, ("at 65%",))
    assert found.rule(narrow, wide) == verdict and found.interval is wide


@pytest.mark.parametrize(
    "low, high, verdict",
    [(0.5, 0.75, HOLDS), (0.25, 0.5, UNDECIDED), (0.25, 0.4375, FAILS), (0.4375, 0.75, UNDECIDED)],
)
def test_a_ratio_at_the_border(low, high, verdict):
    assert decide_at_least(between(low, high), 0.5) == verdict


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
    found = share_finding(between(*at_90), between(*at_95), 0.5, ["at 65%"])
    assert (found.verdict, found.is_reversed, found.limits) == (verdict, verdict == FAILS, ("at 65%",))
    assert found.p == p_value(between(*at_90), 0.5, "higher") and found.interval == between(*at_95)


def test_one_pair_is_undecided_by_every_rule():
    assert decide(NOTHING, 0.1, "lower") == decide_at_least(NOTHING, 0.5) == UNDECIDED
    assert decide_equal(NOTHING, NOTHING) == UNDECIDED
    assert share_finding(between(0.1, 0.2), between(0.1, 0.2)).rule(NOTHING, NOTHING) == UNDECIDED
    assert pairs_needed(NOTHING, lambda narrow, wide: HOLDS) is None


@pytest.mark.parametrize("lacks", [{"low": math.nan}, {"n_pairs": 1}, {"n_pairs": 0}], ids=str)
def test_without_an_interval_or_without_a_spread_over_seeds_no_number_of_pairs_is_told(lacks):
    three = paired_interval([-0.02, -0.04, -0.03])
    assert pairs_needed(three, lambda narrow, wide: HOLDS) == 3
    assert pairs_needed(replace(three, **lacks), lambda narrow, wide: HOLDS) is None


def test_holm_lets_a_p_at_the_border_stand():
    assert holm({"a": 0.125, "b": 0.25}, 0.25) == {"a", "b"}
    assert holm({"a": 0.126, "b": 0.126}, 0.25) == frozenset()
    assert holm({"a": 0.06, "b": 0.001}) == {"b"}, "5% where nothing else is said"


def test_a_difference_at_the_border_has_a_sign():
    assert sign_depends({1.0: 0.25, 2.0: -0.25}, 0.25) and not sign_depends({1.0: 0.25, 2.0: 0.5}, 0.25)


# --- words -------------------------------------------------------------------------


def test_what_a_difference_is_called():
    low, high, none, wide = (
        between(-0.5, -0.25),
        between(0.25, 0.5),
        between(-0.125, 0.125),
        between(-1, 1),
    )
    assert [word(i, 0.25) for i in (low, high, none, wide)] == [LESS, MORE, SAME, OPEN]
    assert [counts(i, 0.25) for i in (low, high, none, wide)] == [True, True, False, False]
    assert word(between(-0.5, -0.25, n=3), 0.25) == LESS and word(between(-0.5, -0.25, n=2), 0.25) == OPEN
    assert word(between(-0.25, 0.125), 0.25) == OPEN, "shut out on one side alone"


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
    sure = between(-0.5 - 1e-9, -0.5 + 1e-9, n=30)
    assert p_value(sure, 0.0, "lower") == decisions.LEAST_P == 1e-12
    assert p_value(sure, 0.0, "higher") == 1 - 1e-12


def test_the_p_of_a_difference_is_two_sided_and_at_most_one():
    d = paired_interval([-0.02, -0.035, -0.015, -0.03])
    assert finding_of(d, 0.01, "lower").p == pytest.approx(2 * p_value(d, 0.0, "lower"))
    assert finding_of(d, 0.01, "higher").p == 1.0
    assert finding_of(d, 0.01, "higher").is_reversed and not finding_of(d, 0.01, "lower").is_reversed
    up = between(0.25, 0.5)
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
    return Finding(between(0.25, 0.5), verdict, p, **more)


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
    few = finding_of(between(-0.5, -0.25, n=2), 0.25, "higher", ["at 65%"])
    assert (few.verdict, few.p, few.is_reversed, few.limits) == (UNDECIDED, 1.0, False, ("at 65%", FEW))
    assert finding_of(between(-0.5, -0.25, n=3), 0.25, "lower").verdict == HOLDS


def test_a_finding_is_plain_and_cannot_be_changed():
    found = Finding(between(0.25, 0.5), HOLDS, 0.01)
    assert (found.is_reversed, found.limits, found.rule, found.vetoes, found.test) == (
        False,
        (),
        None,
        False,
        "",
    )
    with pytest.raises(FrozenInstanceError):
        found.p = 0.0
