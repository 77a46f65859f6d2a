"""Paths read at equal gain: what is known, what is None, both axes' errors, and each word of a comparison."""

import numpy as np
import pytest
from scipy import stats

from helpers.measuring.comparison import ComparisonError
from helpers.measuring.decisions import holm
from helpers.measuring.frontiers import (
    CAP,
    DEPENDS,
    DIVERGED,
    LESS,
    MORE,
    OPEN,
    SAME,
    WORDS,
    Measured,
    Path,
    Readings,
    Rules,
    best_within,
    compare,
    crossing,
    full_gain,
    gain_within,
    holm_adjusted,
    jackknife,
    stacked,
)

RULES = Rules()


def path(gains, forgetting, seed=0, n_dev=4, n_retention=5, **more):
    """A path whose windows are all alike."""
    return Path(seed, np.outer(gains, np.ones(n_dev)), np.outer(forgetting, np.ones(n_retention)), **more)


def noisy(rng, forgotten, seeds=5, top=1.0, noise=0.01, power=2.0, gain=0.15, **more):
    """Paths of several seeds: forgetting is ``forgotten`` at full training's best gain, and grows with its power."""
    grid = np.linspace(0, top, 12)
    dev, retention = rng.normal(1, noise, 12), rng.normal(1, noise, 16)
    return [
        Path(
            s,
            np.outer(gain * grid, dev * rng.normal(1, noise / 5)),
            np.outer(forgotten * grid**power * rng.normal(1, noise / 5), retention),
            **more,
        )
        for s in range(seeds)
    ]


@pytest.fixture
def rng():
    return np.random.default_rng(3)


@pytest.fixture
def full(rng):
    return [noisy(rng, 0.1, seeds=1)]


# --- one path ----------------------------------------------------------------------


def test_between_two_points_the_root_of_forgetting_is_straight():
    way = path([0.0, 0.1, 0.2], [0.0, 0.01, 0.09])
    assert way.forgetting_at(0.1) == pytest.approx(0.01)
    assert way.forgetting_at(0.15) == pytest.approx(0.2**2)
    assert way.best_gain == pytest.approx(0.2)


def test_a_level_counts_where_it_is_first_reached():
    way = path([0.0, 0.1, 0.05, 0.3], [0.0, 0.04, 0.09, 0.16])
    assert way.forgetting_at(0.08) == pytest.approx(0.16**2)
    assert way.forgetting_at(0.1) == pytest.approx(0.04)


def test_nothing_is_extrapolated():
    from_base, one_role = path([0.0, 0.1], [0.0, 0.01]), path([0.05, 0.1], [0.02, 0.03])
    assert from_base.forgetting_at(0.1001) is None and one_role.forgetting_at(0.04) is None
    assert one_role.forgetting_at(0.05) == pytest.approx(0.02)
    assert one_role.gain_at(0.01) is None, "its first model has forgotten more than the budget"
    gone = Path(0, np.empty((0, 0)), np.empty((0, 0)), None, DIVERGED)
    assert gone.forgetting_at(0.1) is gone.gain_at(0.1) is gone.best_gain is gone.prose_at(0.1) is None


def test_the_gain_at_a_budget_is_the_inverse_and_always_defined():
    way = path([0.0, 0.1, 0.2], [0.0, 0.01, 0.09])
    for gain in (0.03, 0.1, 0.17):
        assert way.gain_at(way.forgetting_at(gain)) == pytest.approx(gain)
    assert way.gain_at(5.0) == pytest.approx(0.2), "a budget that is never spent: the best gain"
    falls = path([0.0, 0.3, 0.1], [0.0, 0.01, 0.09])
    assert falls.gain_at(0.05) == pytest.approx(0.3), "who has a better model on the way takes that one"


def test_the_vectorised_readings_are_those_of_single_paths():
    ways = [path([0.0, 0.1, 0.2], [0.0, 0.01, 0.09]), path([0.0, 0.15], [0.0, 0.02], seed=1)]
    levels = np.full((1, 5), 0.12)
    found = stacked(ways).at_levels(levels)
    assert found.by_dev[0, :, 0] == pytest.approx([w.forgetting_at(0.12) for w in ways])
    within = stacked(ways).within(0.03)
    assert within.by_dev[:, 0] == pytest.approx([w.gain_at(0.03) for w in ways])
    assert np.isnan(stacked(ways).at_levels(np.full((1, 5), 0.18)).by_dev[0, 1]).all()


def test_prose_is_read_at_the_same_gain():
    way = path([0.0, 0.1, 0.2], [0.0, 0.01, 0.09], prose=np.outer([0.0, 0.2, 0.1], np.ones(3)))
    assert way.prose_at(0.05) == pytest.approx(0.1) and way.prose_at(0.3) is None
    assert path([0.0, 0.1], [0.0, 0.1]).prose_at(0.05) is None


def test_paths_on_other_windows_or_without_points_are_not_stacked():
    with pytest.raises(ComparisonError, match="different windows"):
        stacked([path([0, 1], [0, 1]), path([0, 1], [0, 1], n_dev=3)])
    with pytest.raises(ComparisonError, match="diverged"):
        stacked([path([0, 1], [0, 1], ended=DIVERGED)])


# --- errors ------------------------------------------------------------------------


def test_leaving_a_window_out_reads_both_axes_and_the_level_again(rng):
    """Against plain loops over windows."""
    ways = [
        Path(s, np.cumsum(rng.uniform(0.01, 0.05, (8, 6)), 0), np.cumsum(rng.uniform(0.001, 0.02, (8, 7)), 0))
        for s in range(3)
    ]
    ways = [
        Path(w.seed, np.vstack([np.zeros(6), w.gains]), np.vstack([np.zeros(7), w.forgetting])) for w in ways
    ]
    gain = full_gain([stacked(ways)])
    found = stacked(ways).at_levels(np.array([0.8 * gain]))

    def without(way, dev=(), retention=()):
        return Path(way.seed, np.delete(way.gains, dev, 1), np.delete(way.forgetting, retention, 1))

    for k in range(6):
        left = [without(w, dev=[k]) for w in ways]
        level = 0.8 * np.mean([w.best_gain for w in left])
        assert found.by_dev[0, :, 1 + k] == pytest.approx([w.forgetting_at(level) for w in left])
    for k in range(7):
        left = [without(w, retention=[k]) for w in ways]
        assert found.by_retention[0, :, 1 + k] == pytest.approx(
            [w.forgetting_at(0.8 * gain[0]) for w in left]
        )


def test_the_level_is_read_again_on_the_windows_that_are_left(rng):
    """Where a window gains more under every recipe alike, a share of full's gain means the same without it."""
    grid, dev = np.linspace(0, 1, 10), rng.normal(1, 0.3, 12)

    def ways(forgotten):
        return [
            Path(s, np.outer(0.15 * grid, dev), np.outer(forgotten * grid**2, np.ones(16))) for s in range(3)
        ]

    found = compare(ways(0.05), ways(0.1), [ways(0.1)], RULES)
    assert found.mean_distance.errors[1] == pytest.approx(0.0, abs=1e-9) and found.word == LESS


def test_the_jackknife_of_a_mean_is_its_standard_error(rng):
    x = rng.normal(size=14)
    left_out = np.array([np.delete(x, i).mean() for i in range(14)])
    assert jackknife(left_out) == pytest.approx(x.std(ddof=1) / np.sqrt(14))


def test_each_error_has_the_degrees_of_freedom_of_its_seeds_or_windows(rng):
    found = Readings(rng.normal(size=(2, 5, 1 + 11)), rng.normal(size=(2, 5, 1 + 23))).measured()
    assert found.dfs == (4, 10, 22) and found.n_pairs == 5
    assert [e.shape for e in found.errors] == [(2,)] * 3


def test_with_one_kind_of_error_the_interval_is_students():
    d = [-0.02, -0.035, -0.015, -0.03]
    only_seeds = Measured(np.mean(d), (stats.sem(d), 0.0, 0.0), (3, 11, 23), 4)
    expected = stats.ttest_1samp(d, 0.0)
    assert only_seeds.interval() == pytest.approx(tuple(expected.confidence_interval()))
    assert only_seeds.p_not_zero() == pytest.approx(expected.pvalue)
    assert only_seeds.p_below() == pytest.approx(expected.pvalue / 2)


def test_the_degrees_of_freedom_lie_between_the_seeds_and_welchs():
    mixed = Measured(0.1, (0.02, 0.02, 0.01), (2, 11, 23), 3)
    welch = 0.0009**2 / (0.02**4 / 2 + 0.02**4 / 11 + 0.01**4 / 23)
    assert mixed.df == pytest.approx((welch + 2) / 2)
    assert mixed.error == pytest.approx(0.03)
    assert mixed.p_within(0.2) == mixed.p_below(0.2) > mixed.p_above(-0.2)


def test_one_pair_and_no_spread_at_all_are_cases_too():
    one = Measured(-0.5, (np.nan, 0.01, 0.01), (0, 11, 23), 1)
    assert one.p_not_zero() == one.p_below() == one.p_above() == 1.0 and np.isnan(one.interval()).all()
    assert "no interval" in str(one)
    same = Measured(-0.02, (0.0, 0.0, 0.0), (2, 11, 23), 3)
    assert same.interval() == (-0.02, -0.02) and same.p_below() == 0.0 and same.p_above() == 1.0
    assert Measured(0.0, (0.0,), (2,), 3).p_below() == 0.5


def test_holms_adjusted_p_values_allow_what_holms_rule_allows(rng):
    for _ in range(50):
        p = rng.uniform(0, 0.06, 5).tolist()
        allowed = {str(i) for i, q in enumerate(holm_adjusted(p)) if q <= 0.05}
        assert allowed == holm({str(i): q for i, q in enumerate(p)})
    assert holm_adjusted([0.04, 0.01]) == [0.04, 0.02] and holm_adjusted([]) == []


# --- words -------------------------------------------------------------------------


@pytest.mark.parametrize("forgotten, word", [(0.05, LESS), (0.1, SAME), (0.16, MORE)])
def test_a_clear_difference_has_its_word(rng, full, forgotten, word):
    found = compare(noisy(rng, forgotten), noisy(rng, 0.1), full, RULES)
    assert found.word == word in WORDS and not found.reason and found.n_pairs == 5
    assert len(found.read) == 5 and (found.p < 0.05)
    assert found.mean_distance.mean == pytest.approx(np.mean([e.difference.mean for e in found.levels]))
    at_80 = found.levels[3]
    assert at_80.smallest == pytest.approx(max(0.005, 0.2 * at_80.reference))
    assert at_80.difference.mean == pytest.approx(at_80.forgetting - at_80.reference)


def test_a_recipe_beside_itself_differs_by_nothing_at_any_level_and_without_an_error(rng, full):
    one = noisy(rng, 0.1)
    found = compare(one, one, full, RULES)
    assert [e.difference.mean for e in found.read] == [0.0] * 5
    assert [e.difference.errors for e in found.read] == [(0.0, 0.0, 0.0)] * 5


def test_curves_that_cross_depend_on_the_gain(rng, full):
    found = compare(noisy(rng, 0.25, power=5.0), noisy(rng, 0.1, power=1.0), full, RULES)
    assert found.word == DEPENDS and found.p < 0.05
    assert found.levels[0].difference.mean < 0 < found.levels[-1].difference.mean


def test_a_wide_difference_is_open(rng, full):
    found = compare(noisy(rng, 0.1, noise=0.4), noisy(rng, 0.09), full, RULES)
    assert found.word == OPEN and found.p == 1.0


def test_a_clear_difference_below_the_smallest_that_counts_is_not_less(rng, full):
    found = compare(noisy(rng, 0.09, noise=0.001), noisy(rng, 0.1, noise=0.001), full, RULES)
    assert found.mean_distance.interval()[1] < 0 and found.word == SAME


def test_two_paths_of_one_seed_are_no_pair(rng, full):
    once, twice = noisy(rng, 0.05), [*noisy(rng, 0.1), *noisy(rng, 0.2, seeds=1)]
    for left, right in ((once, twice), (twice, once)):
        with pytest.raises(ComparisonError, match="two runs .* have the seed 0"):
            compare(left, right, full, RULES)
        with pytest.raises(ComparisonError, match="two runs .* have the seed 0"):
            gain_within(left, right, 0.03)


def test_two_pairs_decide_nothing(rng, full):
    found = compare(noisy(rng, 0.05, seeds=2), noisy(rng, 0.1, seeds=2), full, RULES)
    assert found.word == OPEN and found.mean_distance is not None


def test_the_band_is_wider_than_one_interval(rng, full):
    found = compare(noisy(rng, 0.05), noisy(rng, 0.1), full, RULES)
    for (low, high), level in zip(found.band(), found.read, strict=True):
        one = level.difference.interval()
        assert low < one[0] and one[1] < high
        assert (low, high) == pytest.approx(level.difference.interval(0.99))


def test_a_level_that_one_run_does_not_reach_is_not_read(rng, full):
    short = noisy(rng, 0.05, top=0.7)
    found = compare(short, noisy(rng, 0.1), full, RULES)
    assert [e.difference is None for e in found.levels] == [False, False, False, True, True]
    last = found.levels[-1]
    assert last.smallest is None and last.forgetting is None and last.reference is not None
    assert last.n_reached == (0, 5) and found.word == LESS
    one_short = [*noisy(rng, 0.05)[:4], noisy(rng, 0.05, top=0.7)[4]]
    assert compare(one_short, noisy(rng, 0.1), full, RULES).levels[-1].n_reached == (4, 5)


def test_too_few_levels_are_not_comparable_and_the_cap_is_named(rng, full):
    found = compare(noisy(rng, 0.05, top=0.4, ended=CAP), noisy(rng, 0.1), full, RULES)
    assert found.word == OPEN and found.mean_distance is None and len(found.levels) == 5
    assert "not comparable" in found.reason and "the cap ended 5" in found.reason
    assert "cap" not in compare(noisy(rng, 0.05, top=0.4), noisy(rng, 0.1), full, RULES).reason


def test_a_diverged_run_leaves_the_comparison_open(rng, full):
    gone = Path(4, np.empty((0, 0)), np.empty((0, 0)), None, DIVERGED)
    found = compare([*noisy(rng, 0.05)[:4], gone], noisy(rng, 0.1), full, RULES)
    assert (found.word, found.reason) == (OPEN, "1 run diverged")
    alone = compare(
        [*noisy(rng, 0.05), Path(77, gone.gains, gone.forgetting, None, DIVERGED)],
        noisy(rng, 0.1),
        full,
        RULES,
    )
    assert alone.word == OPEN, "also where its seed has no partner: none is dropped"
    assert "no tuning run" in compare(noisy(rng, 0.05), noisy(rng, 0.1), [[gone]], RULES).reason
    assert gain_within([*noisy(rng, 0.05)[:4], gone], noisy(rng, 0.1), 0.03) is None


def test_where_full_training_gains_nothing_there_is_no_level(rng):
    none = [[Path(900, rng.normal(0, 0.02, (12, 13)), np.ones((12, 24)))]]
    found = compare(noisy(rng, 0.05), noisy(rng, 0.1), [noisy(rng, 0.1, seeds=1, gain=-0.1)], RULES)
    assert found.reason == "full training gained nothing on this text" and found.word == OPEN
    flat = np.zeros((12, 13))
    flat[1:] = np.linspace(-1, 1.2, 13)  # a gain on some windows, a loss on others
    found = compare(noisy(rng, 0.05), noisy(rng, 0.1), [[Path(900, flat, none[0][0].forgetting)]], RULES)
    assert found.reason == "full training gained nothing on this text"


def test_no_pairs_are_said(rng, full):
    other = [Path(p.seed + 50, p.gains, p.forgetting) for p in noisy(rng, 0.1)]
    assert compare(noisy(rng, 0.05), other, full, RULES).reason == "no pairs of runs yet"
    assert gain_within(noisy(rng, 0.05), other, 0.03) is None


def prosaic(paths, rise):
    return [
        Path(p.seed, p.gains, p.forgetting, np.outer(np.linspace(0, rise, 12), np.ones(6))) for p in paths
    ]


def test_ordinary_prose_can_deny_less_but_only_by_a_rise_above_the_base(rng, full):
    recipe, reference = noisy(rng, 0.05), noisy(rng, 0.1)
    worse = compare(prosaic(recipe, 0.05), prosaic(reference, 0.0), full, RULES)
    assert worse.word == OPEN and worse.prose_rise > RULES.smallest_loss
    better = compare(prosaic(recipe, -0.05), prosaic(reference, -0.2), full, RULES)
    assert better.word == LESS and better.prose_rise == 0.0
    assert compare(prosaic(recipe, 0.05), prosaic(reference, 0.05), full, RULES).word == LESS


def test_the_gain_at_a_budget_is_compared_in_pairs(rng):
    found = gain_within(noisy(rng, 0.05), noisy(rng, 0.1), 0.03)
    expected = 0.15 * (np.sqrt(0.03 / 0.05) - np.sqrt(0.03 / 0.1))
    assert found.mean == pytest.approx(expected, rel=0.05) and found.interval()[0] > 0
    late = [Path(s, np.array([[0.1] * 4, [0.2] * 4]), np.array([[0.5] * 4, [0.6] * 4])) for s in range(3)]
    assert gain_within(late, late, 0.03) is None


def test_crossing_and_best_within_broadcast():
    x = np.array([[0.0, 1.0, 2.0], [0.0, 2.0, np.nan]])
    assert crossing(x, x * 10, np.array([1.5, 1.5])) == pytest.approx([15, 15])
    assert crossing(x, x * 10, np.array([[0.5], [2.5]])).shape == (2, 2)
    assert best_within(x, x**2, 1.0) == pytest.approx([1.0, 1.0])
