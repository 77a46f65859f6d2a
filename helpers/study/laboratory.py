"""The experiment: the same texts, seeds, evaluations and records for every plan.

`helpers.measuring.comparison` reads the records and compares plans at equal learning.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from helpers.freezing import FreezePlan, key_of
from helpers.measuring import (
    Evaluation,
    GradientNorms,
    Retention,
    evaluations_of,
    held_out_loss,
    norm_summary,
    spikes,
)
from helpers.models import anatomy, weight_hash
from helpers.session import code_commit, machine_class, versions
from helpers.study.records import rounded, slim
from helpers.texts import Corpus, tensor_of
from helpers.training import FitResult, NotFinite, TrainingError, TrainSettings, fit

SHARED_ROLES = ("mlp", "norm")  # trained by full training and by the main plan: their norms can be compared


@dataclass(frozen=True)
class StudySettings(TrainSettings):
    """How a run of the study trains: close evaluations at first, and an end once it learns no more.

    Attributes:
        dense_until: up to this step evaluations come twice as often.
        patience: stop when the held-out loss has not been lower for so many steps; None: never.
    """

    dense_until: int = 0
    patience: int | None = None

    def evaluates_at(self, step: int) -> bool:
        is_between = step <= self.dense_until and step % max(1, self.evaluate_every // 2) == 0
        return is_between or super().evaluates_at(step)

    def is_over(self, evaluations: list[dict]) -> bool:
        if self.patience is None or not evaluations:
            return False
        best = min(evaluations, key=lambda e: e["held_out_loss"])
        return evaluations[-1]["step"] - best["step"] >= self.patience


class Diverged(TrainingError):
    """A run whose loss was no number any more, with what it had measured: a result, not a mishap."""

    def __init__(self, message: str, settings: TrainSettings, measured: list[dict]):
        super().__init__(message)
        steps = [s for s in range(settings.n_steps + 1) if settings.evaluates_at(s)]
        self.evaluations = [{"step": s, **m} for s, m in zip(steps, measured, strict=False)]


# --- runs --------------------------------------------------------------------------


class Laboratory:
    """A base model, the texts and the retention text, set up once; `run` starts from the base each time.

    Args:
        model: the base; a copy is kept and never trained.
        corpora: author to text, e.g. {"alice": …, "edgar": …}.
        plain: a text in neither manner, for a second look at forgetting.
        n_retention: windows of retention text that the base samples.
        held_out_windows: at most so many windows of a held-out text, evenly spaced; None takes all.
        retention: windows sampled before, (n, length), in place of sampling now.
        real: more test texts, by name: (windows, length) each.
        n_probe: windows of the training text whose loss is measured during a run.
    """

    def __init__(
        self,
        model: nn.Module,
        corpora: dict[str, Corpus],
        plain: Corpus | None = None,
        n_retention: int = 32,
        retention_seed: int = 1234,
        held_out_windows: int | None = None,
        *,
        retention: torch.Tensor | None = None,
        real: Mapping[str, torch.Tensor] | None = None,
        n_probe: int = 8,
    ):
        self.base = copy.deepcopy(model)
        self.corpora, self.plain, self.most = corpora, plain, held_out_windows
        self.real, self.n_probe = dict(real or {}), n_probe
        length = next(iter(corpora.values())).train[0]["input_ids"].numel()
        self.retention = (
            Retention.sampled_from(self.base, n_retention, length, seed=retention_seed)
            if retention is None
            else Retention(self.base, retention)
        )
        self.model_hash = weight_hash(self.base)
        self.base_losses = {a: held_out_loss(self.base, self.held_out(c.dev)) for a, c in corpora.items()}

    def held_out(self, windows) -> torch.Tensor:
        """The windows of a held-out part that are measured: (n, length)."""
        return spread(tensor_of(windows), self.most)

    def measure(self, author: str, forgetting: bool = True) -> Callable[[nn.Module], dict]:
        """What an evaluation records during a run on ``author``; losses and KL in nats per token."""
        dev = self.held_out(self.corpora[author].dev)
        train = tensor_of(self.corpora[author].train)[: self.n_probe]

        def measure_now(model: nn.Module) -> dict:
            dev_loss = held_out_loss(model, dev)
            found = {
                "held_out_loss": dev_loss.mean,
                "gain": self.base_losses[author].mean - dev_loss.mean,
                "train_loss": held_out_loss(model, train).mean,
                "held_out_windows": rounded(dev_loss.per_window, 5),
            }
            if forgetting:
                forgotten = self.retention.forgetting(model)
                found |= {
                    "forgetting": forgotten.mean,
                    "forgetting_windows": rounded(forgotten.per_window, 5),
                }
            return found

        return measure_now

    def run(
        self,
        plan: FreezePlan,
        author: str,
        settings: TrainSettings,
        *,
        folder: Path | None = None,
        progress: bool = True,
        forgetting: bool = True,
        name: str | None = None,
        prepare: Callable[[nn.Module], object] | None = None,
    ) -> StudyRun:
        """Train a copy of the base on ``author`` under ``plan``.

        Args:
            forgetting: measure it at each evaluation.
            name: what records call the plan; None takes its key.
            prepare: called with the copy before the plan is applied, e.g. to insert LoRA.

        Raises:
            Diverged: the loss was no number any more. Any other `TrainingError` is a mishap, and passes through.
        """
        model = copy.deepcopy(self.base)
        if prepare is not None:
            prepare(model)
        measure, seen = self.measure(author, forgetting), []

        def measure_and_keep(model: nn.Module) -> dict:
            seen.append(measure(model))
            return seen[-1]

        try:
            result = fit(
                model,
                plan,
                tensor_of(self.corpora[author].train),
                settings,
                evaluate=measure_and_keep,
                folder=folder,
                progress=progress,
            )
        except NotFinite as error:
            raise Diverged(str(error), settings, seen) from error
        return StudyRun(plan, author, settings, model, result, name or key_of(plan))

    def test_texts(self) -> dict[str, torch.Tensor]:
        """Every text that a finished run is tested on: (windows, length) each."""
        own = self.corpora | ({} if self.plain is None else {"plain": self.plain})
        return {name: self.held_out(c.test) for name, c in own.items()} | self.real

    def record(self, run: StudyRun, tests: bool = True) -> dict:
        """The run as the evidence file holds it (see data/README.md). Test losses are at the best dev loss."""
        last, history = copy.deepcopy(run.model), run.result.history
        run.result.use_best(last)
        found = {t: held_out_loss(last, w) for t, w in self.test_texts().items()} if tests else {}
        corpus, parts, norms = self.corpora[run.author], anatomy(last), norms_by_role(history)
        return {
            "model": self.base.config.model_type,
            "model_hash": self.model_hash,
            "plan": run.name,
            "text": corpus.name,
            "text_hash": corpus.sha256,
            "seed": run.settings.seed,
            "rate": run.settings.rate,
            "batch": run.settings.batch,
            "length": tensor_of(corpus.train).size(1),
            "n_train_windows": len(corpus.train),
            "n_steps": run.settings.n_steps,
            "steps_taken": len(history.steps),
            "n_trainable": run.plan.explain(last).n_trainable,
            "n_parameters": parts.n_parameters,
            "settings": asdict(run.settings),
            "retention_hash": self.retention.text_hash,
            "versions": versions(),
            "machine": machine_class(),
            "commit": code_commit(),
            "proof_ok": run.result.proof.ok,
            "best_step": run.result.best_step,
            "base_held_out_loss": self.base_losses[run.author].mean,
            "gradient_norm_median": {r: s.median for r, s in norms.items()},
            "gradient_norms": {r: asdict(s) for r, s in norms.items()},
            "spikes": spikes(history.norm("total")),
            "seconds": round(sum(history.seconds), 2),
            "losses": rounded([s["loss"] for s in history.steps]),
            "norms": [float(f"{n:.4g}") for n in history.norm("total")],
            "test_windows": {t: rounded(e.per_window) for t, e in found.items()},
            "evaluations": slim(history.evaluations, run.result.best_step),
        }


@dataclass
class StudyRun:
    """One finished run with its model (last weights)."""

    plan: FreezePlan
    author: str
    settings: TrainSettings
    model: nn.Module
    result: FitResult
    name: str = ""  # what records call the plan

    @property
    def evaluations(self) -> list[dict]:
        return self.result.history.evaluations

    @property
    def measured(self) -> list[Evaluation]:
        """The same by name and type, as the comparisons read them."""
        return evaluations_of(self.evaluations)


def spread(windows: torch.Tensor, most: int | None) -> torch.Tensor:
    """At most so many windows, evenly spaced over the text: (n, length)."""
    if most is None or len(windows) <= most:
        return windows
    return windows[torch.linspace(0, len(windows) - 1, most).long()]


def norms_by_role(history) -> dict[str, GradientNorms]:
    """How steady the gradient norm of each role was, and that of `SHARED_ROLES` together."""
    roles = list(history.steps[-1]["norms"]) if history.steps else []
    found = {role: norm_summary(history.norm(role)) for role in roles}
    if set(SHARED_ROLES) <= set(roles):
        found["+".join(SHARED_ROLES)] = norm_summary(np.sqrt(sum(history.norm(r) ** 2 for r in SHARED_ROLES)))
    return found
