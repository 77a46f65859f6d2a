"""Compare recorded runs: at equal learning, in pairs, with intervals over seeds and windows.

Comparing plans after equally many steps mixes up two questions: how fast a plan learns, and
what it forgets for what it has learned. So forgetting is read off at the same gain
(held-out loss before minus after), between evaluations by a monotone curve, never beyond them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats
from scipy.interpolate import PchipInterpolator

from helpers.evaluation import block_error, blocks, jackknife_error


class ComparisonError(ValueError):
    """A comparison that the runs do not allow. The message says what is missing."""


# --- equal learning ----------------------------------------------------------------


def frontier(evaluations: Sequence[dict]) -> tuple[np.ndarray, np.ndarray]:
    """Gain and forgetting of a run up to its best gain, only where the gain rises: two (points,) arrays."""
    gains, forgotten = [0.0], [0.0]
    for e in evaluations:
        if e["step"] > 0 and e["gain"] > gains[-1]:
            gains.append(e["gain"])
            forgotten.append(e["forgetting"])
    return np.array(gains), np.array(forgotten)


def forgetting_at(evaluations: Sequence[dict], gain: float) -> float | None:
    """Forgetting when the run had gained ``gain`` nats; None where it never did.

    Between evaluations by PCHIP (Fritsch and Carlson 1980), which stays monotone; never beyond the last.
    """
    gains, forgotten = frontier(evaluations)
    if len(gains) < 2 or gain > gains[-1]:
        return None
    return float(PchipInterpolator(gains, forgotten)(gain))


def matched_gain(runs: Sequence[Sequence[dict]], full_gain: float) -> tuple[float, float]:
    """The highest of 80, 65, 50, 35% of ``full_gain`` that every run reaches, as (gain, share).

    Raises:
        ComparisonError: some run does not even reach 35%.
    """
    reached = min(frontier(r)[0][-1] for r in runs)
    for share in (0.80, 0.65, 0.50, 0.35):
        if reached >= share * full_gain:
            return share * full_gain, share
    raise ComparisonError(f"Not comparable: a run reaches a gain of {reached:.3f} nats, less than 35% of "
                          f"{full_gain:.3f}. Train longer, or tune its rate.")


# --- pairs and intervals -----------------------------------------------------------


@dataclass(frozen=True)
class Interval:
    """A mean over pairs with its 95% interval and the two parts of its half-width.

    ``seed_half`` comes from the spread over seeds, ``window_half`` from the spread over windows
    of text. One pair has no spread over seeds: then ``seed_half`` is NaN and so are the bounds.
    """

    mean: float
    low: float
    high: float
    n_pairs: int
    seed_half: float
    window_half: float

    def __str__(self) -> str:
        if self.n_pairs < 2:
            return f"{self.mean:+.3f} (one pair: no interval over seeds)"
        return f"{self.mean:+.3f} [{self.low:+.3f}, {self.high:+.3f}], {self.n_pairs} pairs"


def paired_interval(differences: Sequence[float], window_error: float = 0.0, n_blocks: int = 20,
                    level: float = 0.95) -> Interval:
    """Mean difference over paired runs. The number of pairs is n; windows never add to it.

    Half-width = sqrt[(t * SD / sqrt(n))^2 + (t_blocks * SE_blocks)^2].

    Args:
        differences: one number a pair (same model, text, seed, batches, windows).
        window_error: standard error over blocks of windows (see `block_error`).
        n_blocks: how many blocks that error was taken over.
    """
    d = np.asarray(differences, dtype=np.float64)
    tail = (1 + level) / 2
    window_half = float(stats.t.ppf(tail, n_blocks - 1) * window_error)
    if len(d) < 2:
        return Interval(float(d.mean()), np.nan, np.nan, len(d), np.nan, window_half)
    seed_half = float(stats.t.ppf(tail, len(d) - 1) * d.std(ddof=1) / np.sqrt(len(d)))
    half = float(np.hypot(seed_half, window_half))
    return Interval(float(d.mean()), float(d.mean() - half), float(d.mean() + half), len(d), seed_half, window_half)


def chosen(runs: Sequence[dict], plan: str, text: str, choice: str) -> list[dict]:
    """The recorded runs of a plan (its slug) on a text, at its rate for a purpose ("keep", "learn", "tuning")."""
    return [r for r in runs if r["plan"] == plan and r["text"] == text and choice in r["rate_choice"]]


def pairs_by_seed(runs_a: Sequence[dict], runs_b: Sequence[dict]) -> list[tuple[dict, dict]]:
    """Recorded runs of two plans with equal text and seed, side by side.

    Raises:
        ComparisonError: no pair, or a pair that is not one (other model, text or retention text).
    """
    by_seed = {r["seed"]: r for r in runs_b}
    pairs = [(a, by_seed[a["seed"]]) for a in runs_a if a["seed"] in by_seed]
    if not pairs:
        raise ComparisonError("No two runs share a seed. Record both plans with the same seeds.")
    for key in ("model_hash", "text_hash", "retention_hash", "batch", "length"):
        if any(a[key] != b[key] for a, b in pairs):
            raise ComparisonError(f"These runs are no pairs: they differ in {key}. Record them again together.")
    return pairs


def forgetting_difference(runs_a: Sequence[dict], runs_b: Sequence[dict], gain: float) -> Interval:
    """F(a) - F(b) at equal gain over paired runs, with both sources of error.

    Raises:
        ComparisonError: a run does not reach the gain.
    """
    pairs = pairs_by_seed(runs_a, runs_b)

    def mean_difference(keep: np.ndarray | None = None) -> list[float]:
        found = [(forgetting_at(without(a, keep), gain), forgetting_at(without(b, keep), gain)) for a, b in pairs]
        if any(x is None or y is None for x, y in found):
            raise ComparisonError(f"A run does not reach a gain of {gain:.3f} nats. Choose a lower level.")
        return [x - y for x, y in found]

    windows = np.arange(len(pairs[0][0]["evaluations"][0]["forgetting_windows"]))
    groups = blocks(windows)
    left_out = np.array([np.mean(mean_difference(np.setdiff1d(windows, g))) for g in groups])
    return paired_interval(mean_difference(), jackknife_error(left_out), len(groups))


def without(run: dict, keep: np.ndarray | None) -> list[dict]:
    """The evaluations with forgetting averaged over the windows ``keep`` alone; None keeps all."""
    if keep is None:
        return run["evaluations"]
    return [{**e, "forgetting": float(np.mean(np.array(e["forgetting_windows"])[keep]))} for e in run["evaluations"]]


def loss_difference(runs_a: Sequence[dict], runs_b: Sequence[dict], text: str, level: float = 0.95) -> Interval:
    """Test loss of a minus b over paired runs, on the windows of ``text``, in nats a token."""
    pairs = pairs_by_seed(runs_a, runs_b)
    tests = [(a["test_windows"][text], b["test_windows"][text]) for a, b in pairs]
    rows = np.array([np.subtract(a, b) for a, b in tests])  # (pairs, windows)
    windows = rows.mean(0)
    return paired_interval(rows.mean(1), block_error(windows), len(blocks(windows)), level)


def style_contrasts(runs: Sequence[dict], a: str = "alice", b: str = "edgar",
                    leave_out: Mapping[str, np.ndarray] | None = None) -> dict[int, float]:
    """S of `evaluation.style_contrast` by seed, from recorded runs of one plan on both authors.

    Args:
        leave_out: text to the windows (indices) that are left out of its mean; for the jackknife.
    """
    leave_out = leave_out or {}
    loss = {(r["text"], r["seed"]): {t: float(np.mean(np.delete(w, leave_out.get(t, []))))
                                     for t, w in r["test_windows"].items()} for r in runs}
    seeds = sorted(s for t, s in loss if t == a and (b, s) in loss)
    if not seeds:
        raise ComparisonError(f"The style contrast needs runs on both '{a}' and '{b}' with one seed; found none.")
    return {s: 0.5 * ((loss[b, s][a] - loss[a, s][a]) + (loss[a, s][b] - loss[b, s][b])) for s in seeds}


def style_ratio(runs: Sequence[dict], reference: Sequence[dict], a: str = "alice", b: str = "edgar") -> Interval:
    """S(plan) / S(reference): the share of the style that a plan learns, over seeds, with its interval."""

    def ratios(leave_out=None) -> list[float]:
        top, below = (style_contrasts(r, a, b, leave_out) for r in (runs, reference))
        return [top[s] / below[s] for s in top if s in below]

    variance, n_blocks = 0.0, []
    for text in (a, b):
        groups = blocks(np.arange(len(runs[0]["test_windows"][text])))
        left_out = np.array([np.mean(ratios({text: g})) for g in groups])
        variance += jackknife_error(left_out) ** 2
        n_blocks.append(len(groups))
    return paired_interval(ratios(), float(np.sqrt(variance)), min(n_blocks))


def spikes(norms: np.ndarray, warmup: int = 5, width: int = 21) -> float:
    """Share of steps after the warm-up whose gradient norm is over 3 times the running median of ``width``."""
    after = np.asarray(norms)[warmup:]
    if len(after) == 0:
        return 0.0
    medians = [np.median(after[max(0, i - width // 2) : i + width // 2 + 1]) for i in range(len(after))]
    return float(np.mean(after > 3 * np.array(medians)))
