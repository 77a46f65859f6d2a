"""Compare recorded runs: at equal learning, in pairs, with intervals over seeds and windows.

Comparing plans after equally many steps mixes up two questions: how fast a plan learns, and
what it forgets for what it has learned. So forgetting is read off at the same gain
(held-out loss before minus after), between evaluations by a monotone curve, never beyond them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

import numpy as np
from scipy.interpolate import PchipInterpolator

from helpers.files import require_each, require_named
from helpers.measuring.intervals import (
    Interval,
    block_error,
    blocks,
    jackknife_error,
    numbers,
    paired_interval,
    require_size,
)
from helpers.measuring.recorded import Evaluation, RunRecord

Run = TypeVar("Run")
RUNS = "What is compared are recorded runs"  # how a refusal of something else begins


class ComparisonError(ValueError):
    """A comparison that the runs do not allow. The message says what is missing."""


# --- equal learning ----------------------------------------------------------------


def rising(evaluations: Sequence[Evaluation]) -> list[Evaluation]:
    """The evaluations after the start at which a run had its best gain so far, above 0."""
    found, best = [], 0.0
    for e in require_each(evaluations, Evaluation, "A run's gain is read from its evaluations"):
        if e.step > 0 and e.gain > best:
            found.append(e)
            best = e.gain
    return found


def frontier(evaluations: Sequence[Evaluation]) -> tuple[np.ndarray, np.ndarray]:
    """Gain and forgetting of a run up to its best gain, only where the gain rises: two (points,) arrays."""
    points = rising(evaluations)
    return np.array([0.0, *(e.gain for e in points)]), np.array([0.0, *(e.forgetting for e in points)])


def forgetting_at(evaluations: Sequence[Evaluation], gain: float) -> float | None:
    """Forgetting when the run had gained ``gain`` nats; None where it never did.

    Between evaluations by PCHIP (Fritsch and Carlson 1980), which stays monotone; never beyond the last.

    Raises:
        ValueError: a gain below 0, or none that is a number.
    """
    require_size(gain, "Forgetting is read at a gain, one number")
    gains, forgotten = frontier(evaluations)
    if len(gains) < 2 or gain > gains[-1]:
        return None
    return float(PchipInterpolator(gains, forgotten)(gain))


def matched_gain(runs: Sequence[Sequence[Evaluation]], full_gain: float) -> tuple[float, float]:
    """The highest of 80, 65, 50, 35% of ``full_gain`` that every run reaches, as (gain, share).

    Raises:
        ComparisonError: there is no run, full training gained nothing, or some run does not even reach 35%.
    """
    if not (runs := require_each(runs, Sequence, "Runs have evaluations")):
        raise ComparisonError("There are no runs to compare. Record them: course study first.")
    if full_gain <= 0:
        raise ComparisonError(
            "Not comparable: full training gained nothing, so there is no gain to match. "
            "Train longer, or tune its rate."
        )
    reached = min(frontier(r)[0][-1] for r in runs)
    for share in (0.80, 0.65, 0.50, 0.35):
        if reached >= share * full_gain:
            return share * full_gain, share
    raise ComparisonError(
        f"Not comparable: a run reaches a gain of {reached:.3f} nats, less than 35% of "
        f"{full_gain:.3f}. Train longer, or tune its rate."
    )


# --- pairs and intervals -----------------------------------------------------------


def chosen(runs: Sequence[RunRecord], plan: str, text: str, choice: str) -> list[RunRecord]:
    """The recorded runs of a plan on a text, at its rate for a purpose ("keep", "learn", "tuning")."""
    runs = require_each(runs, RunRecord, RUNS)
    return [r for r in runs if r.plan == plan and r.text == text and choice in (r.rate_choice or "")]


def pairs_by_seed(
    runs_a: Sequence[RunRecord], runs_b: Sequence[RunRecord]
) -> list[tuple[RunRecord, RunRecord]]:
    """Recorded runs of two plans with equal text and seed, side by side.

    Raises:
        ComparisonError: no pair, a pair that is not one (other model, text or retention text; a run diverged), or two
            runs of a plan with one seed.
    """
    of_a, of_b = (by_seed(require_each(runs, RunRecord, RUNS)) for runs in (runs_a, runs_b))
    pairs = [(run, of_b[seed]) for seed, run in of_a.items() if seed in of_b]
    if not pairs:
        raise ComparisonError("No two runs share a seed. Record both plans with the same seeds.")
    if any(not run.is_finished for pair in pairs for run in pair):
        raise ComparisonError("Not comparable: a run diverged, so it never reached the level. Tune its rate.")
    for key in ("model_hash", "text_hash", "retention_hash", "batch", "length"):
        if any(getattr(a, key) != getattr(b, key) for a, b in pairs):
            raise ComparisonError(
                f"These runs are no pairs: they differ in {key}. Record them again together."
            )
    return pairs


def by_seed(runs: Iterable[Run]) -> dict[int, Run]:
    """Runs, or their paths, by their seed; ComparisonError where two have one seed."""
    found = {}
    for run in runs:
        if run.seed in found:
            raise ComparisonError(
                f"Not comparable: two runs that shall be pairs with others have the seed {run.seed}. Give the runs of one "
                "text, one plan and one rate."
            )
        found[run.seed] = run
    return found


def forgetting_difference(
    runs_a: Sequence[RunRecord], runs_b: Sequence[RunRecord], gain: float, reference: Sequence[RunRecord] = ()
) -> Interval:
    """F(a) - F(b) at equal gain over paired runs, with three sources of error.

    Seeds differ; the retention text has few windows; and so has the dev text, on which the gain is read. For the
    last two one block of windows is left out at a time, and the level read again.

    Args:
        gain: nats per token.
        reference: the runs whose best gain the level is a share of; without them the level is a fixed number.

    Raises:
        ComparisonError: a run does not reach the gain.
    """
    pairs = pairs_by_seed(runs_a, runs_b)
    found = [(forgetting_at(a.evaluations, gain), forgetting_at(b.evaluations, gain)) for a, b in pairs]
    if any(x is None or y is None for x, y in found):
        raise ComparisonError(f"A run does not reach a gain of {gain:.3f} nats. Choose a lower level.")
    left_out = np.mean(
        [forgetting_without_blocks(a, gain) - forgetting_without_blocks(b, gain) for a, b in pairs], 0
    )
    on_dev = difference_without_dev_blocks(pairs, gain, reference)
    gain_error, n_gain = (None, 20) if on_dev is None else (jackknife_error(on_dev), len(on_dev))
    return paired_interval(
        [x - y for x, y in found],
        jackknife_error(left_out),
        len(left_out),
        gain_error=gain_error,
        n_gain_blocks=n_gain,
    )


def difference_without_dev_blocks(
    pairs: Sequence[tuple[RunRecord, RunRecord]], gain: float, reference: Sequence[RunRecord]
) -> np.ndarray | None:
    """F(a) - F(b), mean over pairs, with one block of dev windows left out at a time: (blocks,).

    The gain of each run and the level are read again without the block. None where a record lacks those windows.
    """
    of_runs = [gain_without_blocks(run) for run in [*(r for pair in pairs for r in pair), *reference]]
    if any(shares is None for shares in of_runs):
        return None
    of_level = np.mean(of_runs[2 * len(pairs) :], 0) if reference else np.ones(len(of_runs[0]))
    levels = [gain * of_level / own for own in of_runs[: 2 * len(pairs)]]  # on the axis of the whole dev text
    read = [
        _read_at(run, level) for run, level in zip((r for pair in pairs for r in pair), levels, strict=True)
    ]
    return np.mean([a - b for a, b in zip(read[::2], read[1::2], strict=True)], 0)


def gain_without_blocks(run: RunRecord) -> np.ndarray | None:
    """A run's best gain with one block of dev windows left out at a time, as a share of the whole: (blocks,).

    Records hold the dev loss by window at the start and at the best step alone. What a window adds is therefore taken
    as the same share of the gain all along the run. None where a record lacks them.
    """
    points = rising(run.evaluations)
    if not points or any(e.held_out_windows is None for e in (run.evaluations[0], points[-1])):
        return None
    gains = np.subtract(run.evaluations[0].held_out_windows, points[-1].held_out_windows)
    return np.array([np.delete(gains, g).mean() for g in blocks(np.arange(len(gains)))]) / gains.mean()


def _read_at(run: RunRecord, gains: np.ndarray) -> np.ndarray:
    """Forgetting at several gains; one beyond the run's best is read at its best."""
    x, y = frontier(run.evaluations)
    return PchipInterpolator(x, y)(np.clip(gains, 0, x[-1]))


def forgetting_without_blocks(run: RunRecord, gain: float) -> np.ndarray:
    """Forgetting at ``gain`` with one block of retention windows left out at a time: (blocks,)."""
    points = rising(run.evaluations)
    windows = np.array([e.forgetting_windows for e in points])  # (points, windows)
    groups = blocks(np.arange(windows.shape[1]))
    means = np.stack([np.delete(windows, g, axis=1).mean(1) for g in groups], axis=1)  # (points, blocks)
    start = np.zeros((1, len(groups)))
    gains = np.array([0.0, *(e.gain for e in points)])
    return PchipInterpolator(gains, np.concatenate([start, means]))(gain)


def windows_of(run: RunRecord, text: str, kind: str = "test_windows") -> list[float]:
    """What a run lost on each window of a test text, nats per token.

    Raises:
        ComparisonError: it was not measured there.
    """
    found = getattr(run, kind) or {}
    if text not in found:
        raise ComparisonError(
            f"A run of '{run.plan}' on '{run.text}' was not measured on '{text}' ({kind} hold: {', '.join(found) or 'none'})."
        )
    return found[text]


def _gain_by_window(base: Sequence[float], run: RunRecord, text: str) -> np.ndarray:
    before = numbers(base, "The base's loss is one number a window")
    after = windows_of(run, text)
    if len(before) != len(after):
        raise ComparisonError(
            f"The base was measured on {len(before)} windows of '{text}', and a run on {len(after)}: record both anew."
        )
    return before - np.asarray(after)


def loss_difference(
    runs_a: Sequence[RunRecord], runs_b: Sequence[RunRecord], text: str, level: float = 0.95
) -> Interval:
    """Test loss of a minus b over paired runs, on the windows of ``text``, in nats per token."""
    pairs = pairs_by_seed(runs_a, runs_b)
    tests = [(windows_of(a, text), windows_of(b, text)) for a, b in pairs]
    rows = np.array([np.subtract(a, b) for a, b in tests])  # (pairs, windows)
    windows = rows.mean(0)
    return paired_interval(rows.mean(1), block_error(windows), len(blocks(windows)), level)


def gain_share(
    runs_a: Sequence[RunRecord],
    runs_b: Sequence[RunRecord],
    text: str,
    base: Sequence[float],
    level: float = 0.95,
) -> Interval:
    """Gain of a over gain of b on the windows of a test text, over paired runs.

    Args:
        base: the loss of the untouched base on the same windows, (windows,).
    """
    pairs = pairs_by_seed(runs_a, runs_b)

    def shares(left_out=()) -> list[float]:
        gains = [[np.delete(_gain_by_window(base, r, text), left_out).mean() for r in p] for p in pairs]
        return [a / b for a, b in gains]

    groups = blocks(np.arange(len(base)))
    error = jackknife_error(np.array([np.mean(shares(g)) for g in groups]))
    return paired_interval(shares(), error, len(groups), level)


def test_gain(runs: Sequence[RunRecord], text: str, base: Sequence[float]) -> Interval:
    """Gain on a test text over runs, nats per token: the base's loss minus theirs. Below 0: worse than no training."""
    runs = require_each(runs, RunRecord, RUNS, 1)
    rows = np.array([_gain_by_window(base, r, text) for r in runs])  # (runs, windows)
    windows = rows.mean(0)
    return paired_interval(rows.mean(1), block_error(windows), len(blocks(windows)))


def style_contrasts(
    runs: Sequence[RunRecord],
    a: str = "alice",
    b: str = "edgar",
    leave_out: Mapping[str, np.ndarray] | None = None,
    on: Mapping[str, str] | None = None,
    windows: str = "test_windows",
) -> dict[int, float]:
    """S of `evaluation.style_contrast` by seed, from recorded runs of one plan on both authors.

    Args:
        leave_out: text to the windows (indices) that are left out of its mean; for the jackknife.
        on: author to the text that stands for them, e.g. {"alice": "carroll"}; None: their own test chapters.
        windows: "test_windows", or "function_windows" for function words and punctuation alone.
    """
    loss = _losses_by_author(runs, a, b, leave_out, on, windows)
    return {
        s: 0.5 * ((loss[b, s][a] - loss[a, s][a]) + (loss[a, s][b] - loss[b, s][b]))
        for s in _seeds_on_both(loss, a, b)
    }


def own_gains(
    runs: Sequence[RunRecord],
    base: Mapping[str, Sequence[float]],
    a: str = "alice",
    b: str = "edgar",
    leave_out: Mapping[str, np.ndarray] | None = None,
    on: Mapping[str, str] | None = None,
) -> dict[int, float]:
    """What a plan gained on the author that it was tuned on, by seed: nats per token, mean over the two authors.

    Args:
        base: test text to the loss of the untouched base on its windows.
        leave_out, on: as in `style_contrasts`.
    """
    leave_out, tests = leave_out or {}, {a: a, b: b} | dict(on or {})
    require_named(base, Sequence, "The base's losses stand by test text", 0)
    if missing := [t for t in tests.values() if t not in base]:
        raise ComparisonError(f"The base has no losses on '{missing[0]}'. Record them: course study bases.")
    loss = _losses_by_author(runs, a, b, leave_out, on, "test_windows")
    before = {t: float(np.delete(base[tests[t]], leave_out.get(t, [])).mean()) for t in (a, b)}
    return {s: 0.5 * sum(before[t] - loss[t, s][t] for t in (a, b)) for s in _seeds_on_both(loss, a, b)}


def _losses_by_author(
    runs, a: str, b: str, leave_out, on, windows: str
) -> dict[tuple[str, int], dict[str, float]]:
    """(Text of the run, seed) to the run's mean loss on the test of each author."""
    leave_out, tests = leave_out or {}, {a: a, b: b} | dict(on or {})
    return {
        (r.text, r.seed): {
            t: float(np.nanmean(np.delete(windows_of(r, tests[t], windows), leave_out.get(t, []))))
            for t in (a, b)
        }
        for r in require_each(runs, RunRecord, RUNS)
    }


def _seeds_on_both(loss: Mapping[tuple[str, int], object], a: str, b: str) -> list[int]:
    seeds = sorted(s for t, s in loss if t == a and (b, s) in loss)
    if not seeds:
        raise ComparisonError(
            f"The style contrast needs runs on both '{a}' and '{b}' with one seed; found none."
        )
    return seeds


def style_ratio(
    runs: Sequence[RunRecord], reference: Sequence[RunRecord], a: str = "alice", b: str = "edgar", **options
) -> Interval:
    """S(plan) / S(reference): the share of the style that a plan learns, over seeds, with its interval.

    Options are those of `style_contrasts` (on, windows), and ``base``: with it both are read at equal gain, as
    contrast per nat of own gain (`own_gains`).
    """
    return _style_interval(runs, reference, lambda top, below: top / below, a, b, options)


def style_difference(
    runs: Sequence[RunRecord], reference: Sequence[RunRecord], a: str = "alice", b: str = "edgar", **options
) -> Interval:
    """S(plan) - S(reference) in nats per token, over seeds, with its interval; options as in `style_ratio`.

    With ``base`` it is contrast per nat of own gain.
    """
    return _style_interval(runs, reference, lambda top, below: top - below, a, b, options)


def _style_interval(runs, reference, compare, a: str, b: str, options: dict) -> Interval:
    """Over pairs of seeds; the windows of each text are left out block by block, and the two errors add up."""
    runs, reference = (require_each(own, RunRecord, RUNS, 1) for own in (runs, reference))
    options = dict(options)
    base = options.pop("base", None)

    def style_of(own, leave_out) -> dict[int, float]:
        contrasts = style_contrasts(own, a, b, leave_out, **options)
        if base is None:
            return contrasts
        gains = own_gains(own, base, a, b, leave_out, options.get("on"))
        return {seed: s / gains[seed] for seed, s in contrasts.items()}

    def compared(leave_out=None) -> list[float]:
        top, below = (style_of(r, leave_out) for r in (runs, reference))
        return [compare(top[s], below[s]) for s in top if s in below]

    on, kind = {a: a, b: b} | dict(options.get("on") or {}), options.get("windows", "test_windows")
    variance, n_blocks = 0.0, []
    for text in (a, b):
        groups = blocks(np.arange(len(windows_of(runs[0], on[text], kind))))
        left_out = np.array([np.mean(compared({text: g})) for g in groups])
        variance += jackknife_error(left_out) ** 2
        n_blocks.append(len(groups))
    return paired_interval(compared(), float(np.sqrt(variance)), min(n_blocks))
