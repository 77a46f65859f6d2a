"""What a run learned against what it forgot: its path, read at equal gain, with the error of both axes.

    paths = [run.path("stopped", "B") for run in runs]     one a seed
    found = compare(paths, reference_paths, full_paths, rules)
    found.word, found.mean_distance, found.levels

A path holds the models that one run offers: the points along its training, or its best weights rewound towards the
base. Gain is read on windows of the dev text and forgetting on windows of the retention text; both are samples, so
both are left out window by window and everything is read again. The rules are those of data/evidence/PROTOCOL-2.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtr, stdtrit  # Student's t: the distribution and its quantile

from helpers.files import counted, require_each, seen
from helpers.measuring.comparison import ComparisonError, by_seed
from helpers.measuring.decisions import DEPENDS, LESS, MORE, OPEN, SAME
from helpers.measuring.intervals import probabilities

WORDS = (LESS, SAME, MORE, DEPENDS, OPEN)
PATIENCE, CAP, DIVERGED = "patience", "cap", "diverged"  # how a run ended


@dataclass(frozen=True)
class Rules:
    """The numbers by which curves are compared; from the block [decisions] of the protocol.

    Attributes:
        levels: shares of full training's best gain, rising.
        smallest_share: of the reference's forgetting; with ``smallest`` the smallest difference that counts.
    """

    levels: tuple[float, ...] = (0.35, 0.50, 0.65, 0.80, 0.90)
    least_levels: int = 2
    least_pairs: int = 3
    level: float = 0.95
    equal_level: float = 0.90
    family_error: float = 0.05
    smallest: float = 0.005
    smallest_share: float = 0.2
    smallest_loss: float = 0.02


# --- one path ----------------------------------------------------------------------


@dataclass(frozen=True)
class Path:
    """The models of one run under a method, in their order, by window of text; nats per token.

    Attributes:
        gains: (points, dev windows), loss of the base minus loss.
        forgetting: (points, retention windows), KL divergence from the base.
        prose: (points, windows), loss on ordinary prose minus the base's; None where it was not measured.
        ended: "patience", "cap" or "diverged". A run that diverged has no points.
    """

    seed: int
    gains: np.ndarray
    forgetting: np.ndarray
    prose: np.ndarray | None = None
    ended: str = PATIENCE

    def __post_init__(self):
        shapes = [np.shape(self.gains), np.shape(self.forgetting)]
        n_points = {shape[:1] for shape in shapes}
        if self.ended != DIVERGED and (min(map(len, shapes)) < 2 or len(n_points) > 1 or (0,) in n_points):
            raise ComparisonError(
                "A path has a point or more, and gains and forgetting for each, (points, windows); found "
                f"{shapes[0]} and {shapes[1]}. A run that diverged says so: ended='{DIVERGED}'."
            )

    @property
    def best_gain(self) -> float | None:
        """The highest gain of a point; None where the run diverged."""
        return None if self.ended == DIVERGED else float(self.gains.mean(-1).max())

    def forgetting_at(self, gain: float) -> float | None:
        """Forgetting where the path first has this gain; None where it never has, or has more from its start."""
        if self.ended == DIVERGED:
            return None
        return _known(crossing(self.gains.mean(-1), _root(self.forgetting.mean(-1)), gain) ** 2)

    def gain_at(self, budget: float) -> float | None:
        """The best gain before forgetting first passes the budget; None where its first point is beyond it."""
        if self.ended == DIVERGED:
            return None
        return _known(best_within(self.gains.mean(-1), self.forgetting.mean(-1), budget))

    def prose_at(self, gain: float) -> float | None:
        """How far the loss on ordinary prose is above the base's where the path first has this gain."""
        if self.prose is None or self.ended == DIVERGED:
            return None
        return _known(crossing(self.gains.mean(-1), self.prose.mean(-1), gain))


def crossing(x: np.ndarray, y: np.ndarray, level: np.ndarray | float) -> np.ndarray:
    """y where x first reaches a level along the last axis, linear in between; NaN where it is not between two points.

    Args:
        x, y: (..., points); NaN after a path's end.
        level: (...), broadcast against them.
    """
    level = np.asarray(level, dtype=np.float64)[..., None]
    x, y, level = np.broadcast_arrays(x, y, level)
    has = x >= level
    first = np.maximum(has.argmax(-1, keepdims=True), 1)
    (x0, x1), (y0, y1) = (
        [np.take_along_axis(a, first - back, -1)[..., 0] for back in (1, 0)] for a in (x, y)
    )
    is_between = has.any(-1) & ~has[..., 0]
    span = np.where(is_between, x1 - x0, 1.0)
    inside = y0 + (level[..., 0] - x0) / span * (y1 - y0)
    return np.where(
        is_between, inside, np.where(has[..., 0] & (x[..., 0] == level[..., 0]), y[..., 0], np.nan)
    )


def best_within(gains: np.ndarray, forgetting: np.ndarray, budget: float) -> np.ndarray:
    """The highest gain along a path until forgetting first passes a budget: (...) from (..., points).

    Between two points linear in the root of forgetting. NaN where the first point is already beyond.
    """
    within = np.minimum.accumulate(forgetting <= budget, axis=-1)  # NaN after a path's end: no longer within
    reached = np.where(within, gains, -np.inf).max(-1)
    passing = crossing(_root(forgetting), gains, np.sqrt(budget))
    best = np.fmax(reached, passing)
    return np.where(within[..., 0], best, np.nan)


def _root(forgetting: np.ndarray) -> np.ndarray:
    """√F is nearly straight against the gain; a KL of zero may be stored as a little less."""
    return np.sqrt(np.maximum(forgetting, 0.0))


def _known(value: np.ndarray) -> float | None:
    return None if np.isnan(value) else float(value)


# --- a number with its errors ------------------------------------------------------


@dataclass(frozen=True)
class Measured:
    """A mean over pairs, with one standard error for each thing that is a sample: seeds first, then windows.

    Its interval is Student's t with the degrees of freedom of `df`. The fields are numbers, or arrays of one shape
    for many studies at once.

    Attributes:
        errors: standard errors; the first is over seeds, NaN where there is one pair, absent where seeds are left out.
        dfs: degrees of freedom of each.
    """

    mean: float
    errors: tuple[float, ...]
    dfs: tuple[int, ...]
    n_pairs: int

    @property
    def error(self) -> float:
        """The standard error of the mean."""
        return np.sqrt(sum(np.square(e) for e in self.errors))

    @property
    def df(self) -> float:
        """Degrees of freedom: halfway between Welch and Satterthwaite's (1946) and the least of the errors' own.

        Theirs alone give too narrow an interval where three seeds are the largest of several errors.
        """
        spread = sum(np.power(e, 4) / df for e, df in zip(self.errors, self.dfs, strict=True) if df > 0)
        has_spread = np.greater(spread, 0)
        satterthwaite = np.where(has_spread, np.power(self.error, 4) / np.where(has_spread, spread, 1.0), 1.0)
        return (np.maximum(satterthwaite, min(self.dfs)) + min(self.dfs)) / 2

    def half_width(self, level: float = 0.95) -> float:
        return stdtrit(self.df, (1 + level) / 2) * self.error

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """(low, high); NaN with fewer than two pairs."""
        half = self.half_width(level)
        return self.mean - half, self.mean + half

    def p_below(self, border: float = 0.0) -> float:
        """One-sided: how often an estimate this far below the border comes up if the truth is at the border."""
        if np.isnan(self.error):
            return 1.0
        if self.error == 0:
            return 0.5 if self.mean == border else float(self.mean > border)
        return float(stdtr(self.df, (self.mean - border) / self.error))

    def p_above(self, border: float = 0.0) -> float:
        """As `p_below`, on the other side."""
        return 1.0 if np.isnan(self.error) else 1 - self.p_below(border)

    def p_not_zero(self) -> float:
        """Two-sided."""
        if np.isnan(self.error):
            return 1.0
        below = self.p_below()
        return 2 * min(below, 1 - below)

    def p_within(self, border: float) -> float:
        """The larger of two one-sided tests that the truth lies within plus and minus a border (Schuirmann 1987)."""
        return max(self.p_below(border), self.p_above(-border))

    def __str__(self) -> str:
        if np.isnan(self.error):
            return f"{self.mean:+.3f} ({counted(self.n_pairs, 'pair')}: no interval over seeds)"
        return "{:+.3f} [{:+.3f}, {:+.3f}], {} pairs".format(self.mean, *self.interval(), self.n_pairs)


@dataclass(frozen=True)
class Readings:
    """A number of each run, read on all windows (place 0) and with each window left out in turn.

    Attributes:
        by_dev: (..., runs, 1 + dev windows).
        by_retention: (..., runs, 1 + retention windows).
    """

    by_dev: np.ndarray
    by_retention: np.ndarray

    def __sub__(self, other: Readings) -> Readings:
        return Readings(self.by_dev - other.by_dev, self.by_retention - other.by_retention)

    @property
    def is_known(self) -> np.ndarray:
        """(...): whether every run has it, whichever window is left out."""
        return ~(np.isnan(self.by_dev).any((-1, -2)) | np.isnan(self.by_retention).any((-1, -2)))

    def measured(self, with_seeds: bool = True) -> Measured:
        """The mean over runs: its spread over seeds, and the jackknife's errors of both kinds of windows.

        Args:
            with_seeds: False leaves the seeds out, as one run alone must: then the interval holds the windows only.
        """
        runs = self.by_dev[..., 0]
        n = runs.shape[-1]
        seed = runs.std(-1, ddof=1) / np.sqrt(n) if n > 1 else np.full(runs.shape[:-1], np.nan)
        dev, retention = (jackknife(a.mean(-2)[..., 1:]) for a in (self.by_dev, self.by_retention))
        dfs = (n - 1, self.by_dev.shape[-1] - 2, self.by_retention.shape[-1] - 2)
        first = 0 if with_seeds else 1
        return Measured(runs.mean(-1), (seed, dev, retention)[first:], dfs[first:], n)


def jackknife(left_out: np.ndarray) -> np.ndarray:
    """Standard error of a statistic from its values with one window left out at a time (Tukey 1958): (...).

    Raises:
        ComparisonError: fewer than two values.
    """
    n = _two_or_more(left_out)
    return np.sqrt((n - 1) * np.square(left_out - left_out.mean(-1, keepdims=True)).mean(-1))


def means_without(windows: np.ndarray) -> np.ndarray:
    """Means over windows, of all (place 0) and without each in turn: (..., 1 + windows, points).

    Raises:
        ComparisonError: fewer than two windows.
    """
    n, total = _two_or_more(windows), windows.sum(-1, keepdims=True)
    return np.concatenate([total / n, (total - windows) / (n - 1)], -1).swapaxes(-1, -2)


def _two_or_more(windows: np.ndarray) -> int:
    """Return how many numbers stand along the last axis, one a window; one alone has no spread."""
    if not isinstance(windows, np.ndarray) or windows.ndim < 1 or windows.shape[-1] < 2:
        raise ComparisonError(
            f"An error over windows needs an array with two or more along its last axis; found {seen(windows)}."
        )
    return windows.shape[-1]


# --- the paths of several runs -----------------------------------------------------


@dataclass(frozen=True)
class Paths:
    """Paths of several runs, side by side, NaN after a path's end. More axes may stand in front: many studies.

    Attributes:
        gains: (..., runs, points, dev windows).
        forgetting: (..., runs, points, retention windows).
    """

    gains: np.ndarray
    forgetting: np.ndarray

    def best_gains(self) -> np.ndarray:
        """Mean over runs of their best gain, by window left out: (..., 1 + dev windows)."""
        return np.nanmax(means_without(self.gains), -1).mean(-2)

    def at_levels(self, levels: np.ndarray) -> Readings:
        """Forgetting at each level: Readings with the levels as the first axis.

        Args:
            levels: (levels, ..., 1 + dev windows), gains; they are read again without each dev window.
        """
        gains, roots = means_without(self.gains), _root(means_without(self.forgetting))
        by_dev = crossing(gains, roots[..., :1, :], levels[..., None, :]) ** 2
        return Readings(by_dev, crossing(gains[..., :1, :], roots, levels[..., None, :1]) ** 2)

    def within(self, budget: float) -> Readings:
        """The gain at a budget of forgetting."""
        gains, forgetting = means_without(self.gains), means_without(self.forgetting)
        return Readings(
            best_within(*np.broadcast_arrays(gains, forgetting[..., :1, :]), budget),
            best_within(*np.broadcast_arrays(gains[..., :1, :], forgetting), budget),
        )


def stacked(paths: Sequence[Path]) -> Paths:
    """Paths of runs on the same windows, side by side.

    Raises:
        ComparisonError: the runs were measured on different numbers of windows, or one diverged.
        TypeError, ValueError: no list of paths, or none in it.
    """
    paths = require_each(paths, Path, "What stands side by side are paths of runs", 1)
    if any(p.ended == DIVERGED for p in paths):
        raise ComparisonError("A run diverged: it has no path. Compare without its recipe, or tune its rate.")
    sizes = {(p.gains.shape[1], p.forgetting.shape[1]) for p in paths}
    if len(sizes) != 1:
        raise ComparisonError(
            f"The runs were measured on different windows: {sorted(sizes)} of dev and retention. "
            "Record them again together."
        )
    return Paths(_side_by_side([p.gains for p in paths]), _side_by_side([p.forgetting for p in paths]))


def _side_by_side(rows: Sequence[np.ndarray]) -> np.ndarray:
    """(runs, points, windows) from one (points, windows) a run; NaN where a run has fewer points."""
    whole = np.full((len(rows), max(len(r) for r in rows), rows[0].shape[1]), np.nan)
    for place, row in zip(whole, rows, strict=True):
        place[: len(row)] = row
    return whole


def full_gain(full: Sequence[Paths]) -> np.ndarray:
    """Full training's best gain by window left out: of the rate whose mean over runs is highest on all windows.

    Args:
        full: the tuning runs of full training, one item a rate, one or more.
    """
    full = require_each(full, Paths, "Full training has tuning runs", 1)
    means = np.stack([p.best_gains() for p in full])  # (rates, ..., 1 + dev windows)
    best = means[..., :1].argmax(0)[None]
    return np.take_along_axis(means, np.broadcast_to(best, (1, *means.shape[1:])), 0)[0]


# --- two recipes -------------------------------------------------------------------


@dataclass(frozen=True)
class LevelDifference:
    """Two recipes at one gain.

    Attributes:
        share: of full training's best gain; ``gain`` is that level, nats per token.
        n_reached: how many runs of the recipe, and of the reference, have this gain.
        forgetting, reference: mean forgetting of the runs; None where one of them does not have this gain.
        difference: forgetting minus the reference's; None where the level is not read.
        smallest: the smallest difference that counts here; None where the level is not read.
    """

    share: float
    gain: float
    n_reached: tuple[int, int]
    forgetting: float | None
    reference: float | None
    difference: Measured | None
    smallest: float | None


@dataclass(frozen=True)
class Comparison:
    """What a recipe forgets beside a reference, over the gains that both reach.

    Attributes:
        levels: every level of the rules; one that is not read has no difference.
        mean_distance: the difference averaged over the levels that are read; None where nothing can be compared.
        smallest: the smallest mean distance that counts.
        prose_rise: by how much more ordinary prose got worse than with the reference, at the highest level read.
        reason: why nothing is compared; empty where it is.
        n_pairs: runs of equal seed.
    """

    levels: tuple[LevelDifference, ...]
    mean_distance: Measured | None
    smallest: float | None
    prose_rise: float | None
    reason: str
    n_pairs: int
    rules: Rules

    @property
    def read(self) -> tuple[LevelDifference, ...]:
        return tuple(e for e in self.levels if e.difference is not None)

    def band(self) -> tuple[tuple[float, float], ...]:
        """An interval at each level that is read; all of them hold at once (Bonferroni)."""
        error = (1 - self.rules.level) / max(1, len(self.read))
        return tuple(e.difference.interval(1 - error) for e in self.read)

    @property
    def word(self) -> str:
        """One of `WORDS`."""
        return _word_and_p(self)[0]

    @property
    def p(self) -> float:
        """The p-value of its word; 1 for an open one."""
        return _word_and_p(self)[1]


def compare(
    recipe: Sequence[Path], reference: Sequence[Path], full: Sequence[Sequence[Path]], rules: Rules
) -> Comparison:
    """A recipe against a reference at equal gain, in pairs of equal seed.

    Args:
        full: the paths of full training's tuning runs, one list a rate: they say what a level is.

    Raises:
        TypeError, ComparisonError: what is no list of paths, paths that have not the same windows, or two of one seed.
    """
    recipe, reference = (require_each(p, Path, "Recipes have paths, one a run") for p in (recipe, reference))
    full = require_each(full, Sequence, "Full training has rates, each with paths")
    full = [require_each(paths, Path, "A rate of full training has paths, one a run", 1) for paths in full]
    pairs = _pairs(recipe, reference)
    n_diverged = sum(p.ended == DIVERGED for paths in (recipe, reference) for p in paths)
    if reason := _why_not(len(pairs[0]), n_diverged, full):
        return _without(reason, len(pairs[0]), rules)
    gain = full_gain([stacked(paths) for paths in full])
    if gain[0] - stdtrit(len(gain) - 2, (1 + rules.level) / 2) * jackknife(gain[1:]) <= 0:
        return _without("full training gained nothing on this text", len(pairs[0]), rules)
    levels = np.multiply.outer(rules.levels, gain)
    a, b = (stacked(paths).at_levels(levels) for paths in pairs)
    rows = tuple(_level(i, levels[i, 0], a, b, rules) for i in range(len(levels)))
    is_read = np.array([r.difference is not None for r in rows])
    if is_read.sum() < rules.least_levels:
        return _without(_unread(rows, pairs, rules), len(pairs[0]), rules, rows)
    mean = Readings(
        *((x - y)[is_read].mean(0) for x, y in ((a.by_dev, b.by_dev), (a.by_retention, b.by_retention)))
    )
    smallest = float(np.mean([r.smallest for r in rows if r.smallest is not None]))
    return Comparison(
        rows,
        mean.measured(),
        smallest,
        _prose(*pairs, float(levels[is_read][-1, 0])),
        "",
        len(pairs[0]),
        rules,
    )


def gain_within(recipe: Sequence[Path], reference: Sequence[Path], budget: float) -> Measured | None:
    """The recipe's gain minus the reference's at a budget of forgetting, in pairs.

    None: no pair, a run diverged, or a path begins beyond the budget.

    Raises:
        ComparisonError: two paths of a recipe with one seed.
    """
    pairs = _pairs(recipe, reference)
    if not pairs[0] or any(p.ended == DIVERGED for paths in (recipe, reference) for p in paths):
        return None
    a, b = (stacked(paths).within(budget) for paths in pairs)
    found = a - b
    return found.measured() if found.is_known else None


def _pairs(recipe: Sequence[Path], reference: Sequence[Path]) -> list[list[Path]]:
    """The paths of the seeds that both have, in the same order."""
    of_each = [by_seed(paths) for paths in (recipe, reference)]
    seeds = sorted(of_each[0].keys() & of_each[1].keys())
    return [[paths[seed] for seed in seeds] for paths in of_each]


def _level(i: int, gain: float, a: Readings, b: Readings, rules: Rules) -> LevelDifference:
    found = Readings(a.by_dev[i] - b.by_dev[i], a.by_retention[i] - b.by_retention[i])
    at = [r.by_dev[i, :, 0] for r in (a, b)]
    means = [_known(runs.mean()) for runs in at]
    reached = tuple(int((~np.isnan(runs)).sum()) for runs in at)
    if not found.is_known:
        return LevelDifference(rules.levels[i], float(gain), reached, *means, None, None)
    smallest = max(rules.smallest, rules.smallest_share * means[1])
    return LevelDifference(rules.levels[i], float(gain), reached, *means, found.measured(), smallest)


def _why_not(n_pairs: int, n_diverged: int, full: Sequence[Sequence[Path]]) -> str:
    if n_diverged:
        return f"{counted(n_diverged, 'run')} diverged"
    if not n_pairs:
        return "no pairs of runs yet"
    if not full or any(p.ended == DIVERGED for paths in full for p in paths):
        return "no tuning run of full training that says what a level is"
    return ""


def _without(reason: str, n_pairs: int, rules: Rules, rows: tuple[LevelDifference, ...] = ()) -> Comparison:
    return Comparison(rows, None, None, None, reason, n_pairs, rules)


def _unread(rows: Sequence[LevelDifference], pairs: Sequence[Sequence[Path]], rules: Rules) -> str:
    n = sum(r.difference is not None for r in rows)
    capped = sum(p.ended == CAP for paths in pairs for p in paths)
    said = f"; the cap ended {capped} of the runs, so higher levels are not known" if capped else ""
    return f"not comparable: every run reaches {n} of the levels, {rules.least_levels} are needed{said}"


def _prose(recipe: Sequence[Path], reference: Sequence[Path], gain: float) -> float | None:
    """How much more prose rises above the base; a fall below it counts as no rise."""
    rises = [[p.prose_at(gain) for p in paths] for paths in (recipe, reference)]
    if any(r is None for own in rises for r in own):
        return None
    top, below = (max(0.0, float(np.mean(own))) for own in rises)
    return top - below


# --- words -------------------------------------------------------------------------


def _word_and_p(found: Comparison) -> tuple[str, float]:
    """The word of the first rule that fits, in the protocol's order, and that word's p-value."""
    rules, mean = found.rules, found.mean_distance
    if mean is None or found.n_pairs < rules.least_pairs:
        return OPEN, 1.0
    turns = _both_signs(found)
    if turns is not None:
        return DEPENDS, turns
    low, high = mean.interval(rules.level)
    if high < 0 and -mean.mean >= found.smallest:
        denied = found.prose_rise is not None and found.prose_rise >= rules.smallest_loss
        return (OPEN, 1.0) if denied else (LESS, mean.p_not_zero())
    if low > 0 and mean.mean >= found.smallest:
        return MORE, mean.p_not_zero()
    p = max(e.difference.p_within(e.smallest) for e in found.read)
    return (SAME, p) if p <= (1 - rules.equal_level) / 2 else (OPEN, 1.0)


def _both_signs(found: Comparison) -> float | None:
    """The p-value of less at one level and more at another, both large enough to count; None where it is not so."""
    adjusted = holm_adjusted([e.difference.p_not_zero() for e in found.read])
    counted = [
        (e.difference.mean > 0, p)
        for e, p in zip(found.read, adjusted, strict=True)
        if p <= found.rules.family_error and abs(e.difference.mean) >= e.smallest
    ]
    sides = [[p for is_above, p in counted if is_above == side] for side in (False, True)]
    return max(min(side) for side in sides) if all(sides) else None


def holm_adjusted(p_values: Sequence[float]) -> list[float]:
    """The p-values of tests that are made at once: each may be compared with the family's error (Holm 1979).

    Raises:
        ValueError: a number that is no p-value, from 0 to 1.
    """
    p_values = probabilities(p_values)
    order = np.argsort(p_values)
    factors = np.arange(len(order), 0, -1)
    adjusted = np.empty(len(order))
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(p_values[order] * factors))
    return adjusted.tolist()
