"""What a recorded run holds, by name and type: its settings, its evaluations, what its best weights lost.

`study.read_runs` makes these from files and from rows of Parquet; data/evidence/README.md tells what each field means.
Losses, gains and forgetting are in nats per token. None: the record lacks the field, so it was not measured or not kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from helpers.files import require_each


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What was measured after so many steps of a run; windows are lists with one number each."""

    step: int
    held_out_loss: float | None = None
    gain: float | None = None
    train_loss: float | None = None
    held_out_windows: list[float] | None = None
    forgetting: float | None = None
    forgetting_windows: list[float] | None = None


def evaluations_of(measured: Sequence[Mapping]) -> list[Evaluation]:
    """The evaluations that a run's history holds, in the form that the comparisons read.

    Args:
        measured: objects with the fields of `Evaluation`, as in ``result.history.evaluations``.

    Raises:
        TypeError: one has a field that an evaluation does not have, or lacks its step.
    """
    measured = require_each(measured, Mapping, "What was measured along a run are evaluations")
    return [Evaluation(**e) for e in measured]


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """How a recorded run was trained: the fields of `study.laboratory.StudySettings`."""

    n_steps: int
    rate: float
    batch: int
    micro_batch: int | None
    seed: int
    warmup: int
    weight_decay: float
    clip: float | None
    precision: str
    evaluate_every: int
    save_every: int
    dense_until: int
    patience: int | None


@dataclass(frozen=True, kw_only=True)
class GradientNorms:
    """How steady a gradient norm was after the warm-up: see `norm_summary`."""

    median: float
    largest: float
    spikes: float
    quarters: float


@dataclass(frozen=True, kw_only=True)
class Memorised:
    """What weights know by heart: see `probes.memorisation`."""

    exact_train: float
    right_train: float
    exact_held_out: float
    right_held_out: float
    n_grams: float


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """What the runs of both studies hold."""

    plan: str
    text: str
    seed: int
    stage: str | None = None
    rate: float | None = None
    settings: RunSettings | None = None
    model_name: str | None = None
    model_hash: str | None = None
    text_hash: str | None = None
    protocol: str | None = None
    n_amendments: int | None = None
    versions: dict[str, str] | None = None
    machine: str | None = None
    commit: str | None = None
    wall_seconds: float | None = None
    seconds: float | None = None
    diverged: str | None = None
    proof_ok: bool | None = None
    n_trainable: int | None = None
    n_parameters: int | None = None
    steps_taken: int | None = None
    best_step: int | None = None
    losses: list[float] | None = None
    test_windows: dict[str, list[float]] | None = None

    @property
    def is_finished(self) -> bool:
        """Whether the run came to its end; if not, `diverged` says why."""
        return self.diverged is None


@dataclass(frozen=True, kw_only=True)
class RunRecord(Recorded):
    """One run of the first study."""

    evaluations: list[Evaluation]
    rate_choice: str | None = None
    model: str | None = None
    batch: int | None = None
    length: int | None = None
    n_train_windows: int | None = None
    n_steps: int | None = None
    retention_hash: str | None = None
    base_held_out_loss: float | None = None
    gradient_norm_median: dict[str, float] | None = None
    gradient_norms: dict[str, GradientNorms] | None = None
    spikes: float | None = None
    norms: list[float] | None = None
    function_windows: dict[str, list[float]] | None = None
    swap: dict[str, dict[str, float]] | None = None
    memorisation: dict[str, Memorised] | None = None


@dataclass(frozen=True, kw_only=True)
class BaseWindows:
    """The untouched base on the texts of a run, by window; no test text in a tuning run."""

    dev_windows: list[float]
    plain_windows: list[float]
    test_windows: dict[str, list[float]] | None = None


@dataclass(frozen=True, kw_only=True)
class Look:
    """What a model of the second study lost, by window: an evaluation, or a rewound model."""

    dev_windows: list[float]
    forgetting_a: list[float]
    forgetting_b: list[float]
    plain_windows: list[float]


@dataclass(frozen=True, kw_only=True)
class StepLook(Look):
    """After so many steps."""

    step: int
    held_out_loss: float | None = None
    gain: float | None = None
    train_loss: float | None = None


@dataclass(frozen=True, kw_only=True)
class RewoundLook(Look):
    """The best weights at a share of the way from the base, in all roles or in one."""

    roles: str
    share: float
    test_windows: dict[str, list[float]] | None = None


@dataclass(frozen=True, kw_only=True)
class SecondRunRecord(Recorded):
    """One run of the second study. Where it diverged it has no ``ended`` and no ``rewound``."""

    weight: float
    base: BaseWindows
    evaluations: list[StepLook]
    retention_hashes: dict[str, str]
    profile: str | None = None
    resumed_at: int | None = None
    ended: str | None = None
    replay_losses: list[float] | None = None
    rewound: list[RewoundLook] | None = None
    delta: str | None = None
