"""The experiment: the same texts, seeds, evaluations and records for every plan.

`helpers.comparison` reads the records and compares plans at equal learning.
"""

from __future__ import annotations

import copy
import json
import platform
import subprocess
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import nn

from helpers.anatomy import anatomy
from helpers.comparison import spikes
from helpers.corpora import Corpus, tensor_of
from helpers.evaluation import Retention, held_out_loss
from helpers.freezing import FreezePlan
from helpers.models import weight_hash
from helpers.profiles import ROOT
from helpers.training import FitResult, TrainSettings, fit

# --- runs --------------------------------------------------------------------------


class Laboratory:
    """A base model, the texts and the retention text, set up once; `run` starts from the base each time.

    Args:
        model: the base; a copy is kept and never trained.
        corpora: author to text, e.g. {"alice": …, "edgar": …}.
        plain: a text in neither manner, for a second look at forgetting.
        n_retention: windows of retention text that the base samples.
        held_out_windows: at most so many windows of a held-out text; None takes all.
    """

    def __init__(self, model: nn.Module, corpora: dict[str, Corpus], plain: Corpus | None = None,
                 n_retention: int = 32, retention_seed: int = 1234, held_out_windows: int | None = None):
        self.base = copy.deepcopy(model)
        self.corpora, self.plain, self.most = corpora, plain, held_out_windows
        length = next(iter(corpora.values())).train[0]["input_ids"].numel()
        self.retention = Retention.sampled_from(self.base, n_retention, length, seed=retention_seed)
        self.model_hash = weight_hash(self.base)
        self.base_losses = {a: held_out_loss(self.base, self.held_out(c.dev)) for a, c in corpora.items()}

    def held_out(self, windows) -> torch.Tensor:
        """The windows of a held-out part that are measured: (n, length)."""
        return tensor_of(windows)[: self.most]

    def measure(self, author: str) -> Callable[[nn.Module], dict]:
        """What an evaluation records during a run on ``author``; losses and KL in nats a token."""
        dev = self.held_out(self.corpora[author].dev)
        train = tensor_of(self.corpora[author].train)[:8]

        def measure_now(model: nn.Module) -> dict:
            dev_loss, forgotten = held_out_loss(model, dev), self.retention.forgetting(model)
            return {"held_out_loss": dev_loss.mean, "gain": self.base_losses[author].mean - dev_loss.mean,
                    "forgetting": forgotten.mean, "train_loss": held_out_loss(model, train).mean,
                    "held_out_windows": rounded(dev_loss.per_window),
                    "forgetting_windows": rounded(forgotten.per_window)}

        return measure_now

    def run(self, plan: FreezePlan, author: str, settings: TrainSettings, *, folder: Path | None = None,
            progress: bool = True) -> StudyRun:
        """Train a copy of the base on ``author`` under ``plan``."""
        model = copy.deepcopy(self.base)
        result = fit(model, plan, tensor_of(self.corpora[author].train), settings,
                     evaluate=self.measure(author), folder=folder, progress=progress)
        return StudyRun(plan, author, settings, model, result)

    def record(self, run: StudyRun) -> dict:
        """The run as the evidence file holds it (see data/README.md). Test losses are at the best dev loss."""
        last = copy.deepcopy(run.model)
        run.result.use_best(last)
        tests = {a: held_out_loss(last, self.held_out(c.test)) for a, c in self.corpora.items()}
        if self.plain is not None:
            tests["plain"] = held_out_loss(last, self.held_out(self.plain.test))
        corpus, history, parts = self.corpora[run.author], run.result.history, anatomy(last)
        norms = {r: round(float(np.nanmedian(history.norm(r))), 5) for r in history.steps[-1]["norms"]}
        return {
            "model": self.base.config.model_type, "model_hash": self.model_hash, "plan": run.plan.slug,
            "text": corpus.name, "text_hash": corpus.sha256, "seed": run.settings.seed,
            "rate": run.settings.rate, "batch": run.settings.batch,
            "length": tensor_of(corpus.train).size(1), "n_steps": run.settings.n_steps,
            "n_trainable": run.plan.explain(last).n_trainable, "n_parameters": parts.n_parameters,
            "settings": asdict(run.settings), "retention_hash": self.retention.text_hash,
            "versions": versions(), "machine": machine_class(), "commit": code_commit(),
            "proof_ok": run.result.proof.ok, "best_step": run.result.best_step,
            "base_held_out_loss": self.base_losses[run.author].mean, "gradient_norm_median": norms,
            "spikes": spikes(history.norm("total")), "seconds": round(sum(history.seconds), 2),
            "losses": [round(s["loss"], 4) for s in history.steps],
            "norms": [round(float(n), 4) for n in history.norm("total")],
            "test_windows": {a: rounded(e.per_window) for a, e in tests.items()},
            "evaluations": history.evaluations,
        }


@dataclass
class StudyRun:
    """One finished run with its model (last weights)."""

    plan: FreezePlan
    author: str
    settings: TrainSettings
    model: nn.Module
    result: FitResult

    @property
    def evaluations(self) -> list[dict]:
        return self.result.history.evaluations


def rounded(values: np.ndarray) -> list[float]:
    return [round(float(v), 5) for v in values]


def versions() -> dict[str, str]:
    return {name: version(name).split("+")[0] for name in ("torch", "transformers", "accelerate")}


def machine_class() -> str:
    """Enough to judge a timing by, and nothing that names a machine."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return (f"{platform.machine()} CPU, {torch.get_num_threads()} threads, "
            f"{torch.backends.cpu.get_cpu_capability()}")


def code_commit() -> str | None:
    """The project's commit; None outside a checkout."""
    try:
        done = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True)
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def read_runs(folder: str | Path) -> list[dict]:
    """All recorded runs under a folder, sorted by path."""
    return [json.loads(p.read_text("utf-8")) for p in sorted(Path(folder).rglob("*.json"))]
