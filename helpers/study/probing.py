"""Probe a candidate: train it for some steps, measure it on the way, rewind its best weights. And plan by the clock.

    bench = Bench(model, corpus, settings)
    record = probe(bench, Candidate("full", 1e-4), n_steps=40, folder=RUN)

A probe goes on from the one before it, so 20 and then 20 more steps give what 40 at once give, bit for bit on a CPU.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from helpers.freezing import FreezePlan
from helpers.measuring import DIVERGED, PATIENCE, Retention, held_out_loss, sample_windows
from helpers.study.laboratory import StudySettings, spread
from helpers.study.recipes import REWOUND, STOPPED, UNFINISHED, Candidate, sizes
from helpers.study.records import rounded
from helpers.texts import Corpus, tensor_of
from helpers.training import FitResult, NotFinite, Replay, TrainSettings, fit, rewound

N_WINDOWS = 16  # of the dev text, of the test text, of half A and of half B
N_REPLAYED = 32
REPLAYED_A_STEP = 4
WRITTEN_WITH_SEED = 1234  # what the base writes
SHARES = (0.2, 0.4, 0.6, 0.8)  # of the change that a rewound model keeps; 1 is measured during training
EVERY = 10  # steps between two measurements: as `course train`
PATIENCE_IN_RATE = 2.4e-3  # rate x steps without a new lowest dev loss, as in the second study's protocol
DIGITS = 5
MOST_STEPS = 10_000


class CompareError(RuntimeError):
    """A comparison that cannot begin or go on. The message says what to do."""


@dataclass(frozen=True)
class Made:
    """How every probe is trained: what `course train` takes as well."""

    batch: int
    seed: int = 0
    warmup: int = 5
    precision: str = "float32"

    def settings(self, candidate: Candidate, n_steps: int) -> StudySettings:
        return StudySettings(
            n_steps=n_steps,
            rate=candidate.rate,
            batch=self.batch,
            seed=self.seed,
            warmup=self.warmup,
            precision=self.precision,
            evaluate_every=EVERY,
            save_every=MOST_STEPS,  # at its end: the next probe goes on from there
            patience=max(2 * EVERY, math.ceil(PATIENCE_IN_RATE / candidate.rate)),
        )


class Bench:
    """A base with its text and the windows that it wrote: A and B to measure forgetting on, C to replay.

    Args:
        written: (windows, length), written before by this base; None: the base writes them now.
        cache_frozen: as `helpers.training.fit` takes it: whether a probe computes frozen first blocks once.

    Raises:
        CompareError: the base writes the same windows again and again, so that no part of its text is free.
    """

    def __init__(
        self,
        model: nn.Module,
        corpus: Corpus,
        made: Made,
        written: torch.Tensor | None = None,
        n: int = N_WINDOWS,
        cache_frozen: bool | str = "auto",
    ):
        self.made, self.n, self.cache_frozen = made, n, cache_frozen
        self.train = tensor_of(corpus.train)
        self.dev, self.test = (spread(tensor_of(part), n) for part in (corpus.dev, corpus.test))
        if written is None:
            written = sample_windows(model, 2 * n + N_REPLAYED, corpus.length, WRITTEN_WITH_SEED)
        self.written = written
        self.replayed = unlike(written[2 * n :], written[: 2 * n])
        self.retention = Retention(model, written[: 2 * n])
        self.base = self.retention.base
        self._replays: dict[float, Replay] = {}

    def measure(self, model: nn.Module) -> dict[str, list[float]]:
        """Losses of the dev and the test text, forgetting on halves A and B: by window, nats per token."""
        forgotten = self.retention.forgetting(model).per_window
        return {
            "dev": rounded(held_out_loss(model, self.dev).per_window, DIGITS),
            "test": rounded(held_out_loss(model, self.test).per_window, DIGITS),
            "a": rounded(forgotten[: self.n], DIGITS),
            "b": rounded(forgotten[self.n :], DIGITS),
        }

    def evaluate(self, model: nn.Module) -> dict:
        """What is kept of a measurement during training; the dev text alone says which weights are best."""
        found = self.measure(model)
        return {"held_out_loss": float(np.mean(found["dev"])), **found}

    def replay(self, weight: float) -> Replay | None:
        if not weight:
            return None
        if weight not in self._replays:
            self._replays[weight] = Replay(self.base, self.replayed, weight, REPLAYED_A_STEP, self.made.seed)
        return self._replays[weight]


def unlike(windows: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """The windows that are none of the others.

    Raises:
        CompareError: none is left, or the others are all one.
    """
    is_new = ~(windows[:, None] == others[None]).all(-1).any(1)  # (windows,)
    if len(torch.unique(others, dim=0)) < 2 or not is_new.any():
        raise CompareError(
            "The model writes the same text whenever it writes by itself, so forgetting cannot be measured on it. "
            "Take the base model before its tuning, or one with other weights."
        )
    return windows[is_new]


def probe(bench: Bench, candidate: Candidate, n_steps: int, folder: Path | None) -> dict:
    """Train a candidate up to ``n_steps``, or until its patience ends it; returns the record of it.

    Args:
        folder: holds its checkpoints, so that it goes on where an earlier probe ended or was killed.
    """
    model = copy.deepcopy(bench.base)
    head = {"candidate": list(candidate), "n_steps": n_steps, "best_step": 0, "step_seconds": 0.0}
    try:
        result = fit(
            model,
            candidate.freeze_plan,
            bench.train,
            bench.made.settings(candidate, n_steps),
            evaluate=bench.evaluate,
            folder=folder and folder / candidate.name,
            progress=False,
            replay=bench.replay(candidate.replay),
            cache_frozen=bench.cache_frozen,
        )
    except NotFinite:
        return {**head, "ended": DIVERGED}
    n_taken = len(result.history.steps)
    return {
        **head,
        "n_steps": n_taken,
        "best_step": result.best_step,
        "ended": PATIENCE if n_taken < n_steps else UNFINISHED,
        "step_seconds": float(np.median(result.history.seconds)),
        STOPPED: [point_of(e["step"], e) for e in result.history.evaluations],
        REWOUND: rewound_points(bench, model, result),
    }


def rewound_points(bench: Bench, model: nn.Module, result: FitResult) -> list[dict]:
    """The base, the best weights rewound to each of `SHARES`, the best weights."""
    result.use_best(model)
    measured = {e["step"]: e for e in result.history.evaluations}
    base = dict(bench.base.named_parameters())
    changed = {n: base[n] for n, p in model.named_parameters() if not torch.equal(p, base[n])}
    points = [point_of(0.0, measured[0])]
    for share in SHARES if changed else ():
        with rewound(model, changed, share):
            points.append(point_of(share, bench.measure(model)))
    return [*points, point_of(1.0, measured[result.best_step])]


def point_of(place: float, measured: dict) -> dict:
    return {"at": place, **{key: measured[key] for key in ("dev", "test", "a", "b")}}


# --- the clock ---------------------------------------------------------------------


@dataclass(frozen=True)
class Speed:
    """What was timed on this machine before the first probe, in seconds.

    Attributes:
        step: of full training.
        measuring: of one measurement.
    """

    step: float
    measuring: float

    def probe_seconds(self, n_steps: int, work: float = 1.0) -> float:
        """Predicted for a probe of so many new steps.

        Args:
            work: of a step, as a share of full training's.
        """
        return n_steps * self.step * work + (n_steps / EVERY + len(SHARES)) * self.measuring

    def steps_within(self, seconds: float, work: float = 1.0) -> int:
        """How many new steps fit, in whole turns of `EVERY` steps and a measurement; 0: not one turn."""
        turn = EVERY * self.step * work + self.measuring
        return EVERY * max(0, int((seconds - len(SHARES) * self.measuring) / turn))


def timed(bench: Bench, clock: Callable[[], float] = time.monotonic) -> Speed:
    """Time a measurement, and four steps of full training of which the first is a warm-up."""
    began = clock()
    bench.measure(bench.base)
    measuring = clock() - began
    settings = TrainSettings(n_steps=4, rate=1e-5, batch=bench.made.batch, precision=bench.made.precision)
    result = fit(copy.deepcopy(bench.base), FreezePlan.full(), bench.train, settings, progress=False)
    return Speed(float(np.median(result.history.seconds[1:])), measuring)


class Pacer:
    """Shares the time that is left among the probes that are left, and learns from each how fast the machine is.

    Args:
        until: the clock's time at which the last probe should end.
        work: of each candidate's step, as a share of full training's.
    """

    def __init__(
        self, speed: Speed, until: float, work: Mapping[Candidate, float], clock: Callable[[], float]
    ):
        self.speed, self.until, self.work, self.clock = speed, until, work, clock
        self.pace = 1.0  # seconds that the newest probe took, over those that were predicted
        self.furthest: dict[int, int] = {}  # rounds left to the step of that round's first probe

    def n_steps(self, candidate: Candidate, n_done: int, n_rounds: int, n_probes: int) -> int:
        """Up to which step a probe goes, in its share of this round's share of the time that is left.

        Before the last round none goes further than the round's first: what is left over serves those that survive.
        """
        seconds = (self.until - self.clock()) / n_rounds / n_probes
        n_new = self.speed.steps_within(seconds / self.pace, self.work[candidate])
        step = min(MOST_STEPS, n_done + n_new)
        if n_rounds > 1:
            step = min(step, self.furthest.setdefault(n_rounds, step))
        return max(step, n_done + EVERY)

    def learn(self, candidate: Candidate, n_new: int, seconds: float) -> None:
        """Note how long a probe of so many new steps took."""
        if n_new > 0:
            self.pace = seconds / self.speed.probe_seconds(n_new, self.work[candidate])


def how_many(speed: Speed, seconds: float, most: int) -> int:
    """The most candidates of which each gets two turns in the first round; 0 where not even two do."""
    for n in range(most, 1, -1):
        if speed.steps_within(seconds / len(sizes(n)) / n) >= 2 * EVERY:
            return n
    return 0


def seconds_needed(speed: Speed) -> float:
    """For two candidates, each with two turns."""
    return 2 * speed.probe_seconds(2 * EVERY)
