"""A run in progress: its settings, its history, and the folder it resumes from."""

from __future__ import annotations

import io
import math
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from helpers import checkpoints, locks
from helpers.anatomy import anatomy
from helpers.freezing import FreezePlan
from helpers.models import weight_hash
from helpers.processes import is_main, own_random_state, random_states

MAX_RATE = 1.0


class TrainingError(RuntimeError):
    """Training cannot start or go on. The message says what to do."""


@dataclass(frozen=True)
class TrainSettings:
    """All that decides a run besides model, plan and text.

    Attributes:
        n_steps: optimizer steps.
        rate: learning rate after the warm-up; constant from there, so every point is a finished run.
        batch: windows a step.
        micro_batch: windows at a time in memory; None: the whole batch. Changes no result.
        warmup: steps of linear increase.
        weight_decay: AdamW's, on matrices and vectors alike.
        clip: largest gradient norm; None: no clipping.
        precision: "float32" or "bfloat16" (matrix products only; the weights stay float32).
        evaluate_every: steps between evaluations; 0 and the last step are always evaluated.
        save_every: steps between checkpoints.
    """

    n_steps: int
    rate: float
    batch: int = 8
    micro_batch: int | None = None
    seed: int = 0
    warmup: int = 5
    weight_decay: float = 0.0
    clip: float | None = None
    precision: str = "float32"
    evaluate_every: int = 10
    save_every: int = 20

    def __post_init__(self):
        for name in ("n_steps", "batch", "evaluate_every", "save_every"):
            if getattr(self, name) < 1:
                raise TrainingError(f"{name} must be 1 or more; found {getattr(self, name)}.")
        for name in ("warmup", "weight_decay", "clip"):
            if (getattr(self, name) or 0) < 0:
                raise TrainingError(f"{name} must be 0 or more; found {getattr(self, name)}.")
        if not (math.isfinite(self.rate) and 0 < self.rate <= MAX_RATE):
            raise TrainingError(f"The learning rate must be above 0 and at most {MAX_RATE:g}; found {self.rate:g}. "
                                "Usual values are 3e-5 to 1e-3.")
        if self.micro_batch is not None and self.micro_batch < 1:
            raise TrainingError(f"micro_batch must be 1 or more; found {self.micro_batch}.")
        if self.precision not in ("float32", "bfloat16"):
            raise TrainingError(f"Precision '{self.precision}' is not known. Choose float32 or bfloat16.")

    def rate_at(self, step: int) -> float:
        return self.rate * min(1.0, (step + 1) / self.warmup) if self.warmup else self.rate

    def evaluates_at(self, step: int) -> bool:
        return step % self.evaluate_every == 0 or step == self.n_steps

    def saves_at(self, step: int) -> bool:
        return step % self.save_every == 0 or step == self.n_steps

    def is_over(self, evaluations: list[dict]) -> bool:
        """Whether to stop before ``n_steps``. Never here; the study's settings have a rule for it."""
        return False


@dataclass
class History:
    """What happened, step by step. ``steps`` and ``evaluations`` are exact across a resume; times are not."""

    steps: list[dict] = field(default_factory=list)  # step, loss, rate, norms (by role); with a replay its KL
    evaluations: list[dict] = field(default_factory=list)  # step, held_out_loss, …
    seconds: list[float] = field(default_factory=list)  # of each step, evaluations left out

    def column(self, name: str) -> np.ndarray:
        """One quantity over the evaluations, e.g. ``column("held_out_loss")``."""
        return np.array([e[name] for e in self.evaluations], dtype=np.float64)

    def norm(self, role: str) -> np.ndarray:
        """The gradient norm of a role at each step; NaN where it had no gradient."""
        return np.array([s["norms"].get(role, math.nan) for s in self.steps])


def batch_rows(n_windows: int, batch: int, step: int, seed: int) -> np.ndarray:
    """Which windows make up the batch of a step: (batch,).

    Epoch after epoch in a new order. A function of the step and the seed alone, so a resumed
    run sees the same batches and nothing has to be remembered.
    """
    places = np.arange(step * batch, (step + 1) * batch)
    orders = {e: np.random.default_rng([seed, e]).permutation(n_windows) for e in np.unique(places // n_windows)}
    return np.array([orders[p // n_windows][p % n_windows] for p in places])


class Run:
    """A run in progress: where it stands, what it has seen, and its folder."""

    def __init__(self, model, plan: FreezePlan, windows: torch.Tensor, settings: TrainSettings, folder,
                 replay=None):
        self.model, self.plan, self.settings = model, plan, settings
        self.folder = None if folder is None else Path(folder)
        self.parts, self.history, self.step = anatomy(model), History(), 0
        self.names = {p: n for n, p in model.named_parameters()}
        self._kept, self.best_step, self.bar = {}, 0, None
        self.identity = {"plan": plan.slug, "base": weight_hash(model), "settings": asdict(settings),
                         "windows": list(windows.shape), "text": checkpoints.bytes_hash(windows),
                         "replay": replay.identity if replay else None}

    def resume(self, optimizer) -> None:
        """Take the folder, and take up its newest intact checkpoint, if it is of this very run."""
        saved = self._take_folder() if self.folder else None
        if saved is None:
            return
        put(self.model, {n[6:]: t for n, t in saved.tensors.items() if n.startswith("model/")})
        self._kept = {n[5:]: t for n, t in saved.tensors.items() if n.startswith("best/")}
        inner = getattr(optimizer, "optimizer", optimizer)
        checkpoints.restore_optimizer(inner, self.names, saved.tensors)
        checkpoints.restore_random_state(own_random_state(saved.tensors))
        self.step, self.best_step = saved.step, saved.state["best_step"]
        self.history = History(**saved.state["history"])
        self._say_where()

    def _take_folder(self) -> checkpoints.Checkpoint | None:
        """The folder is this process's own until `fit` gives it back."""
        locks.take(self.folder)
        saved = checkpoints.load_checkpoint(self.folder)
        for line in saved.damaged if saved and is_main() else []:
            print(line, file=sys.stderr)
        other = [k for k, v in self.identity.items() if saved and saved.state["identity"].get(k) != v]
        if other:
            raise TrainingError(f"The folder '{self.folder}' holds another run: it differs in {', '.join(other)}. "
                                "Choose a new folder, or delete that one.")
        return saved

    def _say_where(self) -> None:
        """Say in words that a run goes on. TQDM_DISABLE silences them and the bar: no notebook stores either."""
        if not is_main() or tqdm(total=0, file=io.StringIO()).disable:
            return
        left = "going on from there" if self.step < self.settings.n_steps else "nothing is left to train"
        print(f"The folder '{self.folder}' holds step {self.step} of {self.settings.n_steps} of this run: {left}.",
              file=sys.stderr)

    def note(self, loss: float, norms: dict[str, float], seconds: float, drift: float | None = None) -> None:
        """One finished step; ``drift`` is the mean KL on the replay windows, where there are some."""
        rate = self.settings.rate_at(self.step)
        self.step += 1
        self.history.steps.append({"step": self.step, "loss": loss, "rate": rate, "norms": norms}
                                  | ({} if drift is None else {"replay": drift}))
        self.history.seconds.append(seconds)
        self.bar.set_postfix_str(f"loss {loss:.3f}, {self.settings.batch * self.identity['windows'][1] / seconds:,.0f} "
                                 "tokens/s", refresh=False)

    def evaluate(self, measure) -> None:
        """Measure where the settings ask for it, once a step, and remember the best weights."""
        done = self.history.evaluations and self.history.evaluations[-1]["step"] == self.step
        if done or not self.settings.evaluates_at(self.step):
            return
        found = measure(self.model) if measure else {}
        self.history.evaluations.append({"step": self.step, **found})
        losses = [e.get("held_out_loss", -e["step"]) for e in self.history.evaluations]
        if losses[-1] <= min(losses):
            self.best_step = self.step
            self._kept = keep(self.model, self._kept) if measure else {}

    @property
    def best(self) -> dict[str, torch.Tensor]:
        """The weights of the best evaluation. Where nothing is measured the last are the best, and no copy is kept."""
        return self._kept or trainable_copy(self.model)

    def save(self, optimizer) -> None:
        if self.folder is None or not self.settings.saves_at(self.step):
            return
        dice = random_states()  # every process brings its own; only the main one writes
        if not is_main():
            return
        inner = getattr(optimizer, "optimizer", optimizer)
        tensors = {f"model/{n}": t for n, t in trainable_copy(self.model).items()}
        tensors |= {f"best/{n}": t for n, t in self.best.items()}
        tensors |= checkpoints.optimizer_tensors(inner, self.names) | dice
        checkpoints.save_checkpoint(self.folder, self.step, tensors, {
            "identity": self.identity, "history": asdict(self.history), "best_step": self.best_step})


def trainable_copy(model: nn.Module) -> dict[str, torch.Tensor]:
    """The trainable tensors by name, copied: ``clone`` matters, or they would go on changing."""
    return {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}


@torch.no_grad()
def keep(model: nn.Module, kept: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As `trainable_copy`, into the memory of an earlier copy where there is one: two would stand side by side."""
    if not kept:
        return trainable_copy(model)
    for name, tensor in kept.items():
        tensor.copy_(model.get_parameter(name))
    return kept


@torch.no_grad()
def put(model: nn.Module, tensors: dict[str, torch.Tensor]) -> None:
    for name, tensor in tensors.items():
        model.get_parameter(name).copy_(tensor)
