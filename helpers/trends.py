"""Claims about the curves of one run: does a loss fall, does it level off, are gradients stable, is it over-fitted?

The rules were fixed before the runs (data/evidence/PROTOCOL.md).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import curve_fit
from scipy.special import stdtrit

from helpers.comparison import rising


def falls_share(losses: Sequence[float]) -> float:
    """Share of the moves before the minimum of a loss that go down; 0 where the first value is the least."""
    moves = np.diff(np.asarray(losses)[: int(np.argmin(losses)) + 1])
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
    """Fit L + a t^-b (a, b >= 0) to the first part of a run, predict the rest; the interval of L is 95%."""
    t, y = np.asarray(steps, dtype=float), np.asarray(losses, dtype=float)
    t, y = t[t > 0], y[t > 0]
    n = int(part * len(t))

    def power_law(t, limit, a, b):
        return limit + a * t ** -b

    bounds = ([0, 0, 0.01], [np.inf, np.inf, 5])
    start = (max(0.0, y[:n].min() - 0.1), max(1e-3, y[0] - y[n - 1]), 0.5)
    found, covariance = curve_fit(power_law, t[:n], y[:n], p0=start, bounds=bounds, max_nfev=20_000)
    half = stdtrit(n - 3, 0.975) * math.sqrt(covariance[0, 0])
    error = np.abs(power_law(t[n:], *found) - y[n:]).max()
    return Levelling(float(found[0]), float(found[0] - half), float(found[0] + half), float(error))


def is_stable(norms: Mapping[str, float], spike_share: float = 0.01,
              quarters: tuple[float, float] = (0.5, 2.0)) -> bool:
    """Gradients of a run, from `comparison.norm_summary`: few spikes, no drift, nothing non-finite."""
    is_finite = all(math.isfinite(v) for v in norms.values())
    return is_finite and norms["spikes"] < spike_share and quarters[0] <= norms["quarters"] <= quarters[1]


def overfitted_from(evaluations: Sequence[dict]) -> int | None:
    """The step of the first evaluation after the best dev loss; None where the best is the last."""
    points = rising(evaluations)
    best = points[-1]["step"] if points else 0
    return next((e["step"] for e in evaluations if e["step"] > best), None)


def curve(run: dict, key: str = "train_loss") -> tuple[list[int], list[float]]:
    """The steps of a run's evaluations, and a number at each: the loss on the training probe, or another."""
    return [e["step"] for e in run["evaluations"]], [e[key] for e in run["evaluations"]]


def n_levelled(runs: Sequence[dict]) -> int:
    """How many of the runs levelled off on the training probe; see `Levelling`."""
    return sum(levelling(*curve(r)).has_levelled() for r in runs)
