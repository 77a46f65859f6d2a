"""The second study's records, typed: what one run trained, and what each of its models lost by window of text.

runs = read_study_runs("build/study2/runs/gpt-neo-mini")            the run files, under way
runs = read_study_runs("data/evidence/study2/runs/gpt-neo-mini")    rows of data/evidence/study2-gpt-neo-mini.parquet
runs[0].path("rewound", "B")           a `frontiers.Path`
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path as File

import numpy as np

from helpers.measuring import (
    CAP,
    DIVERGED,
    PATIENCE,
    BaseWindows,
    ComparisonError,
    Look,
    Path,
    RewoundLook,
    SecondRunRecord,
)
from helpers.study import read_runs

STOPPED, REWOUND = "stopped", "rewound"  # methods; "rewound attention" rewinds one role
ALL_ROLES = "all"
HALVES = ("A", "B")


@dataclass(frozen=True)
class Points:
    """Models in their order; losses and KL divergences by window, nats per token: (points, windows).

    ``test`` is None where the test text was not read: in tuning runs, and along training.
    """

    dev: np.ndarray
    half_a: np.ndarray
    half_b: np.ndarray
    prose: np.ndarray
    test: np.ndarray | None


@dataclass(frozen=True)
class Rewound:
    """The best weights rewound, in all roles or in one, in rising shares of the way from the base.

    Attributes:
        shares: α of each point; all roles together begin at the base, whose share is 0.
    """

    roles: str
    shares: tuple[float, ...]
    points: Points


@dataclass(frozen=True)
class StudyRun:
    """One run.

    Attributes:
        weight: of the replay; 0.0: none.
        ended: "patience", "cap" or "diverged".
        conditions: what two runs must share to be a pair.
        base_dev, base_prose, base_test: losses of the untouched base by window; no test in a tuning run.
        test: losses of the best weights by window; None in a tuning run, and where the run diverged.
        n_trainable, step_seconds: None where the run diverged.
        stopped: the points along training, the base first; None where the run diverged.
        rewound: one way for all roles and one for each; empty where the run diverged.
        machine, commit, protocol: where it ran, with which code, by which page (its hash).
    """

    model_name: str
    plan: str
    text: str
    seed: int
    rate: float
    weight: float
    ended: str
    conditions: tuple
    base_dev: np.ndarray
    base_prose: np.ndarray
    base_test: np.ndarray | None
    test: np.ndarray | None
    n_trainable: int | None
    step_seconds: float | None
    stopped: Points | None
    rewound: tuple[Rewound, ...]
    machine: str
    commit: str
    protocol: str

    def points(self, method: str) -> Points:
        """The models that a method offers.

        Raises:
            ComparisonError: this run has no such way; the message names those it has.
        """
        if method == STOPPED and self.stopped is not None:
            return self.stopped
        roles = ALL_ROLES if method == REWOUND else method.removeprefix(f"{REWOUND} ")
        for way in self.rewound:
            if way.roles == roles:
                return way.points
        known = [
            STOPPED,
            *(REWOUND if w.roles == ALL_ROLES else f"{REWOUND} {w.roles}" for w in self.rewound),
        ]
        raise ComparisonError(
            f"The run of '{self.plan}' with seed {self.seed} offers no models '{method}'. It has: "
            f"{', '.join(known)}."
        )

    def path(self, method: str, half: str) -> Path:
        """Gain on dev against forgetting on a half of the retention text."""
        if self.ended == DIVERGED:
            return Path(self.seed, np.empty((0, 0)), np.empty((0, 0)), None, DIVERGED)
        found = self.points(method)
        forgetting = found.half_a if half == "A" else found.half_b
        return Path(
            self.seed, self.base_dev - found.dev, forgetting, found.prose - self.base_prose, self.ended
        )

    def test_windows(self, method: str) -> np.ndarray | None:
        """Test losses of the method's model with the best dev loss; None where no test was read."""
        if method == STOPPED or self.test is None:
            return self.test
        found = self.points(method)
        return None if found.test is None else found.test[found.dev.mean(-1).argmin()]


def read_study_runs(folder: str | File) -> list[StudyRun]:
    """All records under a folder, sorted by path: files, or rows of a Parquet file above (`study.read_runs`).

    Raises:
        RecordError: a file that is damaged, or no record of a run.
    """
    return [study_run(record) for record in read_runs(folder, SecondRunRecord)]


def study_run(record: SecondRunRecord) -> StudyRun:
    """One record, its windows as arrays and its models by method."""
    base, text = record.base, record.text
    conditions = (
        record.model_hash,
        record.text_hash,
        tuple(sorted(record.retention_hashes.items())),
        record.settings.batch,
        len(base.dev_windows),
    )
    return StudyRun(
        record.model_name,
        record.plan,
        text,
        record.seed,
        record.rate,
        record.weight,
        {"cap": CAP, "patience": PATIENCE}[record.ended] if record.is_finished else DIVERGED,
        conditions,
        np.array(base.dev_windows),
        np.array(base.plain_windows),
        _test_of(base, text),
        _test_of(record, text),
        record.n_trainable,
        record.seconds / record.steps_taken if record.is_finished else None,
        _points(record.evaluations) if record.is_finished else None,
        _ways(record) if record.is_finished else (),
        record.machine,
        record.commit,
        record.protocol,
    )


def _ways(record: SecondRunRecord) -> tuple[Rewound, ...]:
    """The base stands before the models that are rewound in all roles; the best weights after those of one role."""
    text, best = record.text, record.rewound
    whole = sorted((p for p in best if p.roles == ALL_ROLES), key=lambda p: p.share)
    roles = dict.fromkeys(p.roles for p in best if p.roles != ALL_ROLES)
    tests = [_test_of(measured, text) for measured in (record.base, *whole)]
    points = _points([record.evaluations[0], *whole], tests)
    ways = [Rewound(ALL_ROLES, (0.0, *(p.share for p in whole)), points)]
    for role in roles:
        own = sorted((p for p in best if p.roles == role), key=lambda p: p.share)
        shares = (*(p.share for p in own), 1.0)
        models = [*own, whole[-1]]
        ways.append(Rewound(role, shares, _points(models, [_test_of(m, text) for m in models])))
    return tuple(ways)


def _points(models: Sequence[Look], tests: Sequence[np.ndarray | None] = (None,)) -> Points:
    """Models in their order; their tests are left out where one has none."""
    return Points(
        np.array([m.dev_windows for m in models]),
        np.array([m.forgetting_a for m in models]),
        np.array([m.forgetting_b for m in models]),
        np.array([m.plain_windows for m in models]),
        None if any(t is None for t in tests) else np.array(tests),
    )


def _test_of(measured: SecondRunRecord | BaseWindows | RewoundLook, text: str) -> np.ndarray | None:
    """The losses on a text's test windows; None where they were not read."""
    losses = (measured.test_windows or {}).get(text)
    return None if losses is None else np.array(losses)
