"""Claims about the curves of one run: does a loss fall, does it level off, are gradients stable, is it over-fitted?

The rules were fixed before the runs (data/evidence/PROTOCOL.md).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from numbers import Real

import numpy as np
from scipy.optimize import curve_fit
from scipy.special import stdtrit

from helpers.files import counted, require_each, require_kind, require_named
from helpers.measuring.comparison import rising
from helpers.measuring.decisions import FAILS, HOLDS, UNDECIDED
from helpers.measuring.intervals import numbers
from helpers.measuring.recorded import Evaluation, GradientNorms, RunRecord


def falls_share(losses: Sequence[float]) -> float:
    """Share of the moves before the minimum of a loss that go down; 0 where the first value is the least.

    Raises:
        ValueError: no loss, or one that is no finite number.
    """
    found = numbers(losses, "How a loss falls is read from losses", finite=True)
    moves = np.diff(found[: int(np.argmin(found)) + 1])
    return float((moves < 0).mean()) if len(moves) else 0.0


@dataclass(frozen=True)
class Levelling:
    """A curve L + a t^-b, fitted to the first part of a run; ``error``: its largest error on the rest, nats."""

    limit: float
    low: float
    high: float
    error: float

    def has_levelled(self, largest_error: float = 0.05, largest_width: float = 0.1) -> bool:
        return self.error <= largest_error and self.high - self.low < largest_width


def levelling(steps: Sequence[int], losses: Sequence[float], part: float = 0.75) -> Levelling:
    """Fit L + a t^-b (a, b >= 0) to the first part of a run, predict the rest; the interval of L is 95%.

    Raises:
        ValueError: too few evaluations after the start, or losses that are no finite numbers.
    """
    t = numbers(steps, "A curve needs the steps of its losses")
    y = numbers(losses, "A curve needs losses", finite=True)
    t, y = t[t > 0], y[t > 0]
    n = int(part * len(t))
    if not 4 <= n < len(t):
        raise ValueError(
            f"Three numbers are fitted to the first {part:.0%} of a curve, so it takes 6 evaluations or more after the "
            f"start; found {len(t)}. Evaluate more often."
        )

    def power_law(t, limit, a, b):
        return limit + a * t**-b

    bounds = ([0, 0, 0.01], [np.inf, np.inf, 5])
    start = (max(0.0, y[:n].min() - 0.1), max(1e-3, y[0] - y[n - 1]), 0.5)
    found, covariance = curve_fit(power_law, t[:n], y[:n], p0=start, bounds=bounds, max_nfev=20_000)
    half = stdtrit(n - 3, 0.975) * math.sqrt(covariance[0, 0])
    error = np.abs(power_law(t[n:], *found) - y[n:]).max()
    return Levelling(float(found[0]), float(found[0] - half), float(found[0] + half), float(error))


def is_stable(
    norms: GradientNorms, spike_share: float = 0.01, quarters: tuple[float, float] = (0.5, 2.0)
) -> bool:
    """Gradients of a run, from `norm_summary`: few spikes, no drift, nothing non-finite."""
    require_kind(norms, GradientNorms, "How steady gradients were is read from norm_summary(…)")
    is_finite = all(math.isfinite(v) for v in astuple(norms))
    return is_finite and norms.spikes < spike_share and quarters[0] <= norms.quarters <= quarters[1]


def overfitted_from(evaluations: Sequence[Evaluation]) -> int | None:
    """The step of the first evaluation after the best dev loss; None where the best is the last."""
    points = rising(evaluations)
    best = points[-1].step if points else 0
    return next((e.step for e in evaluations if e.step > best), None)


def curve(run: RunRecord, key: str = "train_loss") -> tuple[list[int], list[float]]:
    """The steps of a run's evaluations, and a number at each: the loss on the training probe, or another."""
    require_kind(run, RunRecord, "A curve is that of a recorded run")
    return [e.step for e in run.evaluations], [getattr(e, key) for e in run.evaluations]


def n_levelled(runs: Sequence[RunRecord]) -> int:
    """How many of the runs levelled off on the training probe; see `Levelling`."""
    runs = require_each(runs, RunRecord, "What levelled off is counted over runs")
    return sum(levelling(*curve(r)).has_levelled() for r in runs)


# --- How wide is the range of learning rates that a plan learns well with? ---------------


WITHIN = 0.05  # nats per token above the plan's best
GRID_STEP = 0.5  # decades: 1e-4, 3e-4, 1e-3, …


class StabilityError(ValueError):
    """A sweep that no width can be read from. The message says why."""


@dataclass(frozen=True)
class Width:
    """The rates around a plan's best that do nearly as well.

    Attributes:
        low, high: smallest and largest of them; all rates between were tried and do nearly as well.
        best: the rate with the lowest loss.
        is_open: True where ``low`` or ``high`` is the edge of the grid: the true width may be larger.
        n_diverged: rates whose run ended in no number, or worse than the untouched base.
    """

    low: float
    high: float
    best: float
    is_open: bool
    n_diverged: int

    @property
    def decades(self) -> float:
        return math.log10(self.high / self.low)

    def __str__(self) -> str:
        least = "at least " if self.is_open else ""
        return f"{least}{self.decades:.1f} decades, {self.low:g} to {self.high:g}; {self.n_diverged} diverged"


def width(losses: Mapping[float, float], base_loss: float = math.inf, within: float = WITHIN) -> Width:
    """Read a plan's width from its sweep.

    Args:
        losses: rate to held-out loss at the end of the run, in nats per token; NaN for a run that broke off.
        base_loss: of the untouched base on the same text.

    Raises:
        StabilityError: fewer than three rates, or none that ended with a number.
    """
    require_named(losses, Real, "A width is read from a sweep: rate to loss", 0)
    rates = sorted(losses)
    finished = [rate for rate in rates if math.isfinite(losses[rate])]
    if len(rates) < 3 or not finished:
        raise StabilityError(
            f"A width needs three rates or more and a run that ended; found {counted(len(rates), 'rate')}, "
            f"{len(finished)} ended. Try other rates."
        )
    best = min(finished, key=losses.get)
    near = [rate in finished and losses[rate] <= losses[best] + within for rate in rates]
    first = last = rates.index(best)
    while first > 0 and near[first - 1]:
        first -= 1
    while last < len(rates) - 1 and near[last + 1]:
        last += 1
    diverged = sum(not losses[rate] <= base_loss for rate in rates)  # NaN is not below anything
    return Width(rates[first], rates[last], best, first == 0 or last == len(rates) - 1, diverged)


def is_steadier(plan: Mapping[str, Width], other: Mapping[str, Width], step: float = GRID_STEP) -> str:
    """Is ``plan`` steadier than ``other``? Both: text to width.

    *Holds* if on every text its width is larger by a step of the grid or more and no more of its
    runs diverged; *does not hold* if that is so with the two exchanged; else *not decided*. A width that is
    open may be larger than was seen, so it can win, and cannot lose.

    Raises:
        StabilityError: the two were not measured on the same texts.
    """
    for one in (plan, other):
        require_named(one, Width, "Steadiness is read from widths by text", 0)
    if not plan or plan.keys() != other.keys():
        raise StabilityError(f"Both plans need the same texts; found {sorted(plan)} and {sorted(other)}.")
    if all(_is_wider(plan[text], other[text], step) for text in plan):
        return HOLDS
    return FAILS if all(_is_wider(other[text], plan[text], step) for text in plan) else UNDECIDED


def _is_wider(a: Width, b: Width, step: float) -> bool:
    # 1e-4 to 3e-4 and 3e-4 to 1e-3 are not exactly half a decade: allow for that
    return not b.is_open and a.decades - b.decades > step - 0.05 and a.n_diverged <= b.n_diverged


def spikes(norms: np.ndarray, warmup: int = 5, width: int = 21) -> float:
    """Share of steps after the warm-up whose gradient norm is over 3 times the running median of ``width``.

    A step without a norm (NaN) is none of them, and hides none beside it.
    """
    after = numbers(norms, "Spikes are counted among gradient norms")[warmup:]
    after = after[~np.isnan(after)]
    if len(after) == 0:
        return 0.0
    medians = [np.median(after[max(0, i - width // 2) : i + width // 2 + 1]) for i in range(len(after))]
    return float(np.mean(after > 3 * np.array(medians)))


def norm_summary(norms: np.ndarray, warmup: int = 5) -> GradientNorms:
    """How steady a gradient norm was after the warm-up.

    Returns:
        median, largest, spikes (see `spikes`), and quarters: the mean of the last quarter of the
        steps over that of the first. A step without a norm (NaN) is left out of all but ``largest``, which is NaN then.

    Raises:
        ValueError: no norm, or none that is a number.
    """
    norms = numbers(norms, "How steady a run was is read from its gradient norms")
    if np.isnan(norms).all():
        raise ValueError(
            "None of these gradient norms is a number: the run measured no gradient, or broke off."
        )
    after = norms[warmup:]
    if len(after) < 4:
        after = norms
    quarter = max(1, len(after) // 4)
    found = {
        "median": np.nanmedian(after),
        "largest": np.max(after),
        "spikes": spikes(norms, warmup),
        "quarters": np.nanmean(after[-quarter:]) / np.nanmean(after[:quarter]),
    }
    return GradientNorms(**{name: float(f"{value:.5g}") for name, value in found.items()})
