"""The rules behind the verdicts, tried on simulated studies whose truth is known."""

import math

import numpy as np
import pytest
from scipy import stats

from helpers.measuring import curves as stability
from helpers.measuring import decisions
from helpers.measuring.comparison import forgetting_difference
from helpers.measuring.curves import Levelling, falls_share, is_stable, levelling, overfitted_from
from helpers.measuring.decisions import (
    FAILS,
    HOLDS,
    IN_PART,
    UNDECIDED,
    equal_finding,
    finding_of,
    holm,
    over_findings,
    p_value,
    primary_verdicts,
    sign_depends,
    with_pairs,
)
from helpers.measuring.decisions import decide as decide_of_claims
from helpers.measuring.intervals import Interval, paired_interval
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
                    {"step": 0, "gain": 0.0, "forgetting": 0.0},
                    {"step": 1, "gain": share + 0.001, "forgetting": 0.1},
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


def test_one_pair_and_no_spread_at_all_are_cases_too():
    assert p_value(paired_interval([-0.5]), 0.0, "lower") == 1.0
    same = paired_interval([-0.02, -0.02, -0.02])
    assert p_value(same, 0.0, "lower") < 1e-6 and p_value(same, 0.0, "higher") > 0.999
    assert p_value(paired_interval([0.0, 0.0]), 0.0, "lower") == 0.5


# --- texts, tests, rates -----------------------------------------------------------


def test_holm_allows_the_smallest_p_less_than_the_largest():
    assert holm({"a": 0.01, "b": 0.02, "c": 0.04}) == {"a", "b", "c"}
    assert holm({"a": 0.02, "b": 0.02, "c": 0.02}) == frozenset()
    assert holm({"a": 0.001, "b": 0.03, "c": 0.04}) == {"a"}
    assert holm({}) == frozenset()


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
        {
            "step": 8 * i,
            "gain": g,
            "forgetting": float(factor * g * by_window.mean()),
            "forgetting_windows": list(factor * g * by_window),
        }
        for i, g in enumerate(np.linspace(0, 0.15, 8))
    ]
    return {
        "seed": seed,
        "text": text,
        "model_hash": "m",
        "text_hash": text,
        "retention_hash": "r",
        "batch": 8,
        "length": 256,
        "evaluations": points,
    }


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


# --- claims about one run ----------------------------------------------------------


def test_the_share_of_falls_is_counted_before_the_minimum():
    assert falls_share([4.0, 3.0, 2.0, 2.5, 1.0, 1.5, 2.0]) == pytest.approx(3 / 4)
    assert falls_share([1.0, 2.0]) == 0.0


def test_a_curve_that_levels_off_is_told_from_one_that_does_not():
    steps = np.arange(0, 641, 8)
    noise = np.random.default_rng(0).normal(0, 0.002, len(steps))
    flat = levelling(steps, 2.5 + 1.2 * np.maximum(steps, 1) ** -0.8 + noise)
    assert flat.limit == pytest.approx(2.5, abs=0.03) and flat.has_levelled()
    falling = levelling(steps, 3.5 - 0.002 * steps + noise)
    assert not falling.has_levelled()


def test_stable_gradients_have_few_spikes_and_no_drift():
    calm = {"median": 1.0, "largest": 1.5, "spikes": 0.0, "quarters": 0.9}
    assert is_stable(calm)
    for change in ({"spikes": 0.02}, {"quarters": 2.5}, {"largest": math.inf}):
        assert not is_stable(calm | change)


def test_overfitted_points_begin_after_the_best_dev_loss():
    evaluations = [
        {"step": s, "gain": g} for s, g in ((0, 0.0), (8, 0.1), (16, 0.12), (24, 0.11), (32, 0.05))
    ]
    assert overfitted_from(evaluations) == 24 and overfitted_from(evaluations[:3]) is None
