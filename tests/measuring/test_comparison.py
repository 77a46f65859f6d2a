"""Equal learning, pairs, intervals: the arithmetic behind the verdicts."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.measuring.comparison import (
    ComparisonError,
    chosen,
    forgetting_at,
    forgetting_difference,
    frontier,
    gain_without_blocks,
    loss_difference,
    matched_gain,
    own_gains,
    pairs_by_seed,
    style_contrasts,
    style_ratio,
)
from helpers.measuring.curves import spikes
from helpers.measuring.decisions import FAILS, HOLDS, UNDECIDED, decide, decide_equal, over_texts
from helpers.measuring.intervals import Interval, paired_interval
from helpers.measuring.recorded import Evaluation, RunRecord


def evaluations(points, windows=None):
    return [
        Evaluation(step=i, gain=g, forgetting=f, forgetting_windows=windows or [f] * 24)
        for i, (g, f) in enumerate([(0.0, 0.0), *points])
    ]


def a_run(seed, points, text="alice", tests=None, **changes):
    run = RunRecord(
        seed=seed,
        text=text,
        plan="full",
        model_hash="m",
        text_hash=text,
        retention_hash="r",
        batch=8,
        length=256,
        rate_choice="keep",
        evaluations=evaluations(points),
        test_windows=tests or {},
    )
    return replace(run, **changes)


def test_forgetting_is_read_between_evaluations_and_never_beyond():
    e = evaluations([(0.1, 0.02), (0.2, 0.06)])
    assert 0.02 < forgetting_at(e, 0.15) < 0.06
    assert forgetting_at(e, 0.1) == pytest.approx(0.02)
    assert forgetting_at(e, 0.21) is None
    assert forgetting_at(evaluations([(-0.1, 0.5)]), 0.05) is None


def test_points_after_the_best_gain_are_left_out():
    gains, forgotten = frontier(evaluations([(0.1, 0.02), (0.08, 0.04), (0.12, 0.05), (0.05, 0.2)]))
    assert list(gains) == [0.0, 0.1, 0.12] and list(forgotten) == [0.0, 0.02, 0.05]


@given(
    st.lists(st.tuples(st.floats(0.001, 0.1), st.floats(0.001, 0.1)), min_size=1, max_size=8), st.floats(0, 1)
)
def test_interpolation_stays_between_its_neighbours(moves, share):
    points = np.cumsum(np.array(moves), axis=0)
    e = evaluations([tuple(p) for p in points])
    gain = share * points[-1, 0]
    found = forgetting_at(e, gain)
    x, y = np.insert(points[:, 0], 0, 0), np.insert(points[:, 1], 0, 0)
    i = max(1, int(np.searchsorted(x, gain)))
    assert y[i - 1] - 1e-9 <= found <= y[i] + 1e-9


def test_the_matched_gain_is_the_highest_level_that_all_reach():
    fast, slow = evaluations([(0.2, 0.1)]), evaluations([(0.11, 0.1)])
    assert matched_gain([fast], 0.2) == (pytest.approx(0.16), 0.80)
    assert matched_gain([fast, slow], 0.2) == (pytest.approx(0.10), 0.50)
    with pytest.raises(ComparisonError, match="less than 35%"):
        matched_gain([fast, evaluations([(0.01, 0.1)])], 0.2)


def test_where_full_training_gained_nothing_no_gain_can_be_matched():
    with pytest.raises(ComparisonError, match="gained nothing"):
        matched_gain([evaluations([(-0.1, 0.1)])], 0.0)


def test_the_interval_over_pairs_is_the_t_interval_and_windows_add_in_quadrature():
    d = [-0.02, -0.035, -0.015]
    assert paired_interval(d).seed_half == pytest.approx(4.3027 * np.std(d, ddof=1) / 3**0.5, rel=1e-4)
    both = paired_interval(d, window_error=0.01, n_blocks=20)
    assert both.high - both.mean == pytest.approx(np.hypot(both.seed_half, 2.0930 * 0.01), rel=1e-4)


def test_one_pair_has_no_interval_and_decides_nothing():
    one = paired_interval([-0.5])
    assert np.isnan(one.low) and "no interval" in str(one)
    assert decide(one, 0.01, "lower") == UNDECIDED


def test_pairs_share_a_seed_and_everything_but_the_plan():
    a, b = [a_run(0, [(0.1, 0.1)]), a_run(1, [(0.1, 0.1)])], [a_run(1, [(0.1, 0.2)]), a_run(2, [(0.1, 0.2)])]
    assert [(x.seed, y.seed) for x, y in pairs_by_seed(a, b)] == [(1, 1)]
    with pytest.raises(ComparisonError, match="share a seed"):
        pairs_by_seed(a[:1], b)
    with pytest.raises(ComparisonError, match="retention_hash"):
        pairs_by_seed(a, [a_run(1, [(0.1, 0.2)], retention_hash="other")])
    for left, right in ((a, [*b, b[0]]), ([*a, a[1]], b)):  # such as the runs of two rates
        with pytest.raises(ComparisonError, match="two runs .* have the seed 1"):
            pairs_by_seed(left, right)


def test_the_forgetting_difference_has_the_sign_of_a_minus_b():
    a = [a_run(s, [(0.1, 0.02 + s / 1000), (0.2, 0.05)]) for s in range(3)]
    b = [a_run(s, [(0.1, 0.05), (0.2, 0.10)]) for s in range(3)]
    found = forgetting_difference(a, b, 0.1)
    assert found.mean == pytest.approx(-0.029) and found.n_pairs == 3
    with pytest.raises(ComparisonError, match="does not reach"):
        forgetting_difference(a, b, 0.5)


def test_loss_differences_are_over_pairs_not_windows():
    a = [a_run(s, [(0.1, 0.1)], tests={"alice": [3.0, 3.1, 3.2]}) for s in range(4)]
    b = [a_run(s, [(0.1, 0.1)], tests={"alice": [2.9, 3.0, 3.1]}) for s in range(4)]
    found = loss_difference(a, b, "alice")
    assert found.n_pairs == 4 and found.mean == pytest.approx(0.1)


def style_runs(own):
    """Both authors' runs of one plan: tuned on the own author is ``own`` nats better."""
    noise = np.linspace(-0.01, 0.01, 24)
    authors = ("alice", "edgar")
    return [
        a_run(s, [(0.1, 0.1)], text=t, tests={u: list(3.5 - (own if t == u else 0) + noise) for u in authors})
        for s in range(3)
        for t in authors
    ]


def test_the_style_contrast_and_its_ratio():
    assert style_contrasts(style_runs(0.2)) == {s: pytest.approx(0.2) for s in range(3)}
    assert style_ratio(style_runs(0.1), style_runs(0.2)).mean == pytest.approx(0.5)
    with pytest.raises(ComparisonError, match="both"):
        style_contrasts(style_runs(0.1)[:1])


def test_a_plans_own_gain_is_what_it_learned_on_the_author_of_its_training():
    base = {t: list(3.5 + np.linspace(-0.01, 0.01, 24)) for t in ("alice", "edgar")}
    assert own_gains(style_runs(0.2), base) == {s: pytest.approx(0.2) for s in range(3)}
    other = {"alice": base["alice"], "other": [x - 0.1 for x in base["edgar"]]}
    runs = [
        replace(r, test_windows={"other" if t == "edgar" else t: w for t, w in r.test_windows.items()})
        for r in style_runs(0.2)
    ]
    assert own_gains(runs, other, on={"edgar": "other"}) == {s: pytest.approx(0.15) for s in range(3)}


def test_without_the_windows_of_its_start_a_runs_gain_is_not_known_by_block():
    run = a_run(0, [(0.1, 0.1), (0.2, 0.2)])
    kept = [replace(e, held_out_windows=[3.0 - e.gain] * 12) for e in run.evaluations]
    assert gain_without_blocks(replace(run, evaluations=kept)) == pytest.approx(1.0)
    for k, known in ((0, False), (1, True), (2, False)):
        lost = [replace(e, held_out_windows=None) if i == k else e for i, e in enumerate(kept)]
        assert (gain_without_blocks(replace(run, evaluations=lost)) is not None) is known


def test_runs_are_chosen_by_plan_text_and_purpose():
    runs = [
        a_run(0, [], rate_choice="keep and learn"),
        a_run(1, [], rate_choice="learn"),
        a_run(2, [], text="edgar"),
    ]
    assert [r.seed for r in chosen(runs, "full", "alice", "keep")] == [0]
    assert [r.seed for r in chosen(runs, "full", "alice", "learn")] == [0, 1]


def test_spikes_are_found_against_the_running_median():
    norms = np.ones(100)
    norms[[40, 70]] = 10
    assert spikes(norms) == pytest.approx(2 / 95)
    assert spikes(np.ones(3)) == 0.0


def test_a_step_without_a_norm_hides_no_spike_beside_it():
    norms = np.ones(100)
    norms[[40, 70]] = 10
    norms[45] = np.nan
    assert spikes(norms) == pytest.approx(2 / 94)


# --- decisions ---------------------------------------------------------------------


def interval(mean, half):
    return Interval(mean, mean - half, mean + half, 5, half, 0.0)


@pytest.mark.parametrize(
    "mean, half, verdict",
    [
        (-0.05, 0.02, HOLDS),
        (-0.005, 0.001, FAILS),
        (0.05, 0.02, FAILS),
        (-0.05, 0.06, UNDECIDED),
        (0.0, 0.005, FAILS),
    ],
)
def test_a_claimed_decrease_is_decided_by_side_and_size(mean, half, verdict):
    assert decide(interval(mean, half), 0.01, "lower") == verdict
    assert decide(interval(-mean, half), 0.01, "higher") == verdict


def test_equality_needs_the_whole_90_percent_interval_inside_the_margin():
    assert decide_equal(interval(0.005, 0.01), interval(0.005, 0.012)) == HOLDS
    assert decide_equal(interval(0.05, 0.01), interval(0.05, 0.012)) == FAILS
    assert decide_equal(interval(0.015, 0.01), interval(0.015, 0.012)) == UNDECIDED


def test_one_text_is_not_two():
    assert over_texts([HOLDS, HOLDS]) == HOLDS
    assert over_texts([HOLDS, UNDECIDED]) == "holds in part"
    assert over_texts([HOLDS, FAILS]) == UNDECIDED


def test_with_no_true_difference_a_claim_holds_in_at_most_2_and_a_half_percent_of_2000_studies():
    rng = np.random.default_rng(0)
    for n in (3, 5, 10):
        held = [decide(paired_interval(rng.normal(0, 0.05, n)), 0.01, "lower") == HOLDS for _ in range(2000)]
        # 2.5% of 2,000 is 50; three standard errors of a binomial are 21.
        assert sum(held) <= 50 + 21, (n, sum(held))
