"""Means with their 95% intervals: over windows of text, and over pairs of runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats
from scipy.special import stdtrit

from helpers.files import seen


def numbers(values: Sequence[float], what: str, least: int = 1, finite: bool = False) -> np.ndarray:
    """Return a row of numbers as float64, (n,); ``what`` says what is read from it, for the message.

    Raises:
        ValueError: fewer than ``least``, another shape, something else than numbers, or not ``finite`` ones.
    """
    try:
        found = np.asarray(values)
    except (TypeError, ValueError, RuntimeError):  # rows of unequal length, a tensor with a gradient
        found = np.asarray(None)
    if found.ndim != 1 or found.dtype.kind not in "biuf":
        raise ValueError(f"{what}, a plain row of them; found {seen(values)}.")
    if len(found) < least or (finite and not np.isfinite(found).all()):
        kind = "finite numbers" if finite else "numbers"
        raise ValueError(f"{what}, {least} or more {kind}; found {len(found)}: {found.tolist()[:5]}.")
    return found.astype(np.float64)


def require_size(value: float, what: str) -> None:
    """Raise ValueError unless this is one finite number, 0 or more; ``what`` says of what."""
    (found,) = numbers([value], what, finite=True)
    if found < 0:
        raise ValueError(f"{what}, 0 or more; found {value!r}.")


def probabilities(values: Sequence[float]) -> np.ndarray:
    """Return p-values as float64, (n,).

    Raises:
        ValueError: one that does not lie from 0 to 1.
    """
    found = numbers(values, "What is adjusted are p-values", 0)
    if not ((found >= 0) & (found <= 1)).all():
        raise ValueError(f"A p-value lies from 0 to 1; found {found.tolist()[:5]}.")
    return found


@dataclass(frozen=True)
class Interval:
    """A mean over pairs with its 95% interval and the parts of its half-width.

    ``seed_half`` comes from the spread over seeds, ``window_half`` from the spread over windows of the text that the
    number is measured on. ``gain_half`` comes from the windows that equal gain is read on: 0 where nothing is read at
    a gain, None where the records do not hold those windows, so that this error is not known. One pair has no spread
    over seeds: then ``seed_half`` is NaN and so are the bounds.
    """

    mean: float
    low: float
    high: float
    n_pairs: int
    seed_half: float
    window_half: float
    n_blocks: int = 20  # of windows, behind window_half
    level: float = 0.95
    gain_half: float | None = 0.0
    n_gain_blocks: int = 20

    @property
    def parts(self) -> tuple[tuple[float, int], ...]:
        """The known parts of the half-width, each with its degrees of freedom; they add up as squares."""
        found = ((self.seed_half, self.n_pairs - 1), (self.window_half, self.n_blocks - 1))
        return (*found, (self.gain_half, self.n_gain_blocks - 1)) if self.gain_half else found

    def __str__(self) -> str:
        if self.n_pairs == 0:
            return "no pairs"
        if self.n_pairs < 2:
            return f"{self.mean:+.3f} (one pair: no interval over seeds)"
        return f"{self.mean:+.3f} [{self.low:+.3f}, {self.high:+.3f}], {self.n_pairs} pairs"


def paired_interval(
    differences: Sequence[float],
    window_error: float = 0.0,
    n_blocks: int = 20,
    level: float = 0.95,
    gain_error: float | None = 0.0,
    n_gain_blocks: int = 20,
) -> Interval:
    """Mean difference over paired runs. The number of pairs is n; windows never add to it.

    Half-width = sqrt[(t * SD / sqrt(n))^2 + (t_blocks * SE_blocks)^2 + (t_gain * SE_gain)^2].

    Args:
        differences: one number a pair (same model, text, seed, batches, windows).
        window_error: standard error over blocks of windows (see `block_error`).
        n_blocks: how many blocks that error was taken over.
        gain_error: the same over the windows of the dev text, where the numbers are read at equal gain; None where
            it is not known.
        n_gain_blocks: how many blocks of these.

    Raises:
        ValueError: no pair, something else than finite numbers, a level outside 0 to 1, or an error below 0.
    """
    d = numbers(differences, "An interval over pairs needs one number a pair", finite=True)
    if not 0 < level < 1:
        raise ValueError(f"The level of an interval lies between 0 and 1, such as 0.95; found {level!r}.")
    for error in (window_error, gain_error):
        if error is not None and error < 0:  # NaN is that of a single window: then nothing is decided
            raise ValueError(f"A standard error is 0 or more; found {error!r}.")
    tail = (1 + level) / 2
    window_half = float(stdtrit(n_blocks - 1, tail) * window_error)
    gain_half = None if gain_error is None else float(stdtrit(n_gain_blocks - 1, tail) * gain_error)
    rest = (n_blocks, level, gain_half, n_gain_blocks)
    if len(d) < 2:
        return Interval(float(d.mean()), np.nan, np.nan, len(d), np.nan, window_half, *rest)
    seed_half = float(stdtrit(len(d) - 1, tail) * d.std(ddof=1) / np.sqrt(len(d)))
    mean, half = float(d.mean()), float(np.sqrt(seed_half**2 + window_half**2 + (gain_half or 0.0) ** 2))
    return Interval(mean, mean - half, mean + half, len(d), seed_half, window_half, *rest)


@dataclass(frozen=True)
class Estimate:
    """A mean over windows of text with its 95% interval.

    ``per_window`` holds the mean of each window, in text order.
    """

    mean: float
    low: float
    high: float
    n_windows: int
    n_tokens: int
    per_window: np.ndarray

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


def estimate(per_window: np.ndarray, n_tokens: int) -> Estimate:
    """Mean and 95% interval over windows, by delete-one jackknife over blocks of neighbours.

    Neighbouring windows share characters and scenes, so from 80 windows on a block is
    four of them; below that, one. For a mean the jackknife equals t * SD / sqrt(blocks).

    Args:
        per_window: (n_windows,), in text order, at least two.

    Raises:
        ValueError: fewer, or of another shape.
    """
    values = numbers(per_window, "An interval needs one number a window", 0)
    half = stats.t.ppf(0.975, len(blocks(values)) - 1) * block_error(values)
    mean = float(values.mean())
    return Estimate(mean, mean - half, mean + half, len(values), n_tokens, values)


def blocks(values: np.ndarray) -> list[np.ndarray]:
    """Neighbouring windows grouped: by four from 80 windows on, else one by one.

    Raises:
        ValueError: fewer than two windows.
    """
    if len(values) < 2:
        raise ValueError(
            f"An interval needs at least two windows of text; found {len(values)}. Give a longer text."
        )
    size = 4 if len(values) >= 80 else 1
    return np.array_split(values, max(1, len(values) // size))


def block_error(values: np.ndarray) -> float:
    """Standard error of the mean by delete-one jackknife over `blocks` (Efron and Stein 1981)."""
    groups = blocks(numbers(values, "An interval needs one number a window", 0))
    total, count = sum(g.sum() for g in groups), sum(len(g) for g in groups)
    left_out = np.array([(total - g.sum()) / (count - len(g)) for g in groups])
    return jackknife_error(left_out)


def jackknife_error(left_out: np.ndarray) -> float:
    """Standard error of a statistic from its values with one block left out at a time: (blocks,)."""
    n = len(left_out)
    return float(np.sqrt((n - 1) / n * ((left_out - left_out.mean()) ** 2).sum()))
