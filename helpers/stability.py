"""How wide is the range of learning rates that a plan learns well with?

Counted as fixed before the runs: the width, in decades, of the rates whose loss is within 0.05 nats of the
plan's own best. A difference between two plans counts from one step of the grid on, and on every text.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from helpers.claims import FAILS, HOLDS, UNDECIDED

WITHIN = 0.05  # nats a token above the plan's best
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
        losses: rate to held-out loss at the end of the run, in nats a token; NaN for a run that broke off.
        base_loss: of the untouched base on the same text.

    Raises:
        StabilityError: fewer than three rates, or none that ended with a number.
    """
    rates = sorted(losses)
    finished = [rate for rate in rates if math.isfinite(losses[rate])]
    if len(rates) < 3 or not finished:
        raise StabilityError(f"A width needs three rates or more and a run that ended; found {len(rates)} rates, "
                             f"{len(finished)} ended. Try other rates.")
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
    if not plan or plan.keys() != other.keys():
        raise StabilityError(f"Both plans need the same texts; found {sorted(plan)} and {sorted(other)}.")
    if all(_is_wider(plan[text], other[text], step) for text in plan):
        return HOLDS
    return FAILS if all(_is_wider(other[text], plan[text], step) for text in plan) else UNDECIDED


def _is_wider(a: Width, b: Width, step: float) -> bool:
    # 1e-4 to 3e-4 and 3e-4 to 1e-3 are not exactly half a decade: allow for that
    return not b.is_open and a.decades - b.decades > step - 0.05 and a.n_diverged <= b.n_diverged
