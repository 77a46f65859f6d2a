"""One run falls, levels off, stays stable; widths of sweeps compared and drawn; a clock that favours nobody."""

import math
from dataclasses import replace

import matplotlib
import numpy as np
import pytest

from helpers import plots
from helpers.measuring.curves import (
    StabilityError,
    Width,
    falls_share,
    is_stable,
    is_steadier,
    levelling,
    norm_summary,
    overfitted_from,
    width,
)
from helpers.measuring.decisions import FAILS, HOLDS, UNDECIDED
from helpers.measuring.intervals import paired_interval
from helpers.measuring.recorded import Evaluation, GradientNorms
from helpers.measuring.timing import paired_log_ratios, seconds_of

NAN = math.nan
WIDE = {1e-4: 3.6, 3e-4: 3.44, 1e-3: 3.40, 3e-3: 3.43, 1e-2: 3.9}
NARROW = {1e-4: 3.6, 3e-4: 3.55, 1e-3: 3.40, 3e-3: 3.52, 1e-2: NAN}


def test_the_width_is_counted_in_decades_around_the_best():
    found = width(WIDE, base_loss=3.7)
    assert (found.low, found.high, found.best) == (3e-4, 3e-3, 1e-3)
    assert found.decades == pytest.approx(1.0) and not found.is_open and found.n_diverged == 1
    assert str(found).startswith("1.0 decades, 0.0003 to 0.003; 1 diverged")


def test_a_run_without_a_number_is_no_neighbour_and_counts_as_diverged():
    found = width({**NARROW, 3e-3: NAN}, base_loss=3.7)
    assert (found.decades, found.n_diverged) == (0.0, 2)


def test_a_gap_ends_the_width():
    assert width({1e-4: 3.41, 3e-4: 3.6, 1e-3: 3.41, 3e-3: 3.40, 1e-2: 3.8}).low == 1e-3


def test_an_edge_makes_the_width_a_lower_bound():
    found = width({1e-4: 3.41, 3e-4: 3.40, 1e-3: 3.8})
    assert found.is_open and str(found).startswith("at least 0.5 decades")


def test_too_few_rates_or_no_finished_run_are_refused():
    for losses in ({1e-3: 3.4, 1e-2: 3.5}, {1e-4: NAN, 1e-3: NAN, 1e-2: math.inf}):
        with pytest.raises(StabilityError, match="Try other rates"):
            width(losses)


def test_steadier_needs_a_grid_step_on_every_text():
    wide, narrow = width(WIDE), width(NARROW)
    assert is_steadier({"a": wide, "b": wide}, {"a": narrow, "b": narrow}) == HOLDS
    assert is_steadier({"a": narrow, "b": narrow}, {"a": wide, "b": wide}) == FAILS
    assert is_steadier({"a": wide, "b": narrow}, {"a": narrow, "b": wide}) == UNDECIDED
    assert is_steadier({"a": wide}, {"a": wide}) == UNDECIDED


def test_one_step_of_the_usual_grid_is_enough_though_it_is_not_exactly_half_a_decade():
    assert (
        is_steadier({"a": Width(1e-4, 3e-4, 1e-4, False, 0)}, {"a": Width(1e-4, 1e-4, 1e-4, False, 0)})
        == HOLDS
    )


def test_an_open_width_can_win_and_cannot_lose():
    open_narrow, wide = Width(1e-3, 1e-3, 1e-3, True, 0), width(WIDE)
    assert is_steadier({"a": wide}, {"a": open_narrow}) == UNDECIDED
    assert is_steadier({"a": Width(1e-4, 1e-2, 1e-3, True, 0)}, {"a": width(NARROW)}) == HOLDS


def test_a_wider_plan_with_more_diverged_runs_is_not_steadier():
    assert (
        is_steadier({"a": Width(1e-4, 1e-2, 1e-3, False, 2)}, {"a": Width(1e-3, 1e-3, 1e-3, False, 0)})
        == UNDECIDED
    )


def test_two_plans_on_different_texts_are_refused():
    with pytest.raises(StabilityError, match="same texts"):
        is_steadier({"a": width(WIDE)}, {"b": width(WIDE)})


# --- pictures ----------------------------------------------------------------------


@pytest.fixture
def no_window(monkeypatch):
    matplotlib.use("Agg")
    yield
    plots.plt.close("all")


def test_a_sweep_is_drawn_over_logarithmic_rates_with_a_gap_where_a_run_broke_off(no_window):
    ax = plots.over_rates({"a": {**WIDE, 3e-2: 9.0}, "b": NARROW}, "title", base_loss=3.6).axes[0]
    assert ax.get_xscale() == "log" and "nats" in ax.get_ylabel()
    a, b = (np.asarray(line.get_ydata(), dtype=float) for line in ax.get_lines()[:2])
    assert a.max() == pytest.approx(3.8) and np.isnan(b[-1])  # 3.6 and as far above it as the best is below


def test_a_matrix_of_rank_two_is_whole_at_rank_two(no_window):
    dice = np.random.default_rng(0)
    low = dice.normal(size=(8, 2)) @ dice.normal(size=(2, 6))
    ax = plots.spectra({"low": low, "any": dice.normal(size=(8, 6))}, "title", rank=2).axes[0]
    low_shares, any_shares = (line.get_ydata() for line in ax.get_lines()[:2])
    assert (
        low_shares[1] == pytest.approx(1.0) and any_shares[1] < 0.95 and any_shares[-1] == pytest.approx(1.0)
    )


# --- timing ------------------------------------------------------------------------


class Machine:
    """A pretended machine: the first run of each work is slow, and every run is 5% slower than the one before."""

    def __init__(self):
        self.now, self.n_runs, self.seen = 0.0, 0, []

    def work(self, name, cost):
        def run():
            self.now += cost * 1.05**self.n_runs + (9.0 if name not in self.seen else 0.0)
            self.n_runs += 1
            self.seen.append(name)

        return run

    def clock(self):
        return self.now


def test_equal_work_comes_out_equal_on_a_machine_that_warms_up_and_slows_down():
    machine = Machine()
    a, b = machine.work("a", 1.0), machine.work("b", 1.0)
    found = paired_log_ratios(a, b, n_pairs=10, best_of=1, clock=machine.clock)
    assert abs(paired_interval(found).mean) < 1e-9 and max(map(abs, found)) < 0.06
    assert machine.seen[:4] == ["a", "a", "b", "b"] and machine.seen[4:8] == ["a", "b", "b", "a"]


def test_the_ratio_is_the_first_over_the_second():
    machine = Machine()
    found = paired_log_ratios(machine.work("a", 3.0), machine.work("b", 1.0), n_pairs=4, clock=machine.clock)
    assert paired_interval(found).mean == pytest.approx(math.log(3), abs=1e-9)


@pytest.mark.parametrize("n_pairs", [0, 1, 5])
def test_pairs_that_cannot_alternate_are_refused(n_pairs):
    with pytest.raises(ValueError, match="even"):
        paired_log_ratios(int, int, n_pairs=n_pairs)


def test_seconds_are_those_of_the_work():
    machine = Machine()
    assert seconds_of(machine.work("a", 2.0), machine.clock) == 11.0


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
    calm = GradientNorms(median=1.0, largest=1.5, spikes=0.0, quarters=0.9)
    assert is_stable(calm)
    for change in ({"spikes": 0.02}, {"quarters": 2.5}, {"largest": math.inf}):
        assert not is_stable(replace(calm, **change))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_run_with_a_norm_that_is_no_number_was_not_stable(bad):
    norms = np.ones(40)
    assert is_stable(norm_summary(norms))
    norms[20] = bad
    found = norm_summary(norms)
    assert not is_stable(found) and found.median == found.quarters == 1.0


def test_overfitted_points_begin_after_the_best_dev_loss():
    evaluations = [
        Evaluation(step=s, gain=g) for s, g in ((0, 0.0), (8, 0.1), (16, 0.12), (24, 0.11), (32, 0.05))
    ]
    assert overfitted_from(evaluations) == 24 and overfitted_from(evaluations[:3]) is None
