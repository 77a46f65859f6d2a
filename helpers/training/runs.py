"""A run in progress: its settings, its history, and the folder it resumes from."""

from __future__ import annotations

import io
import math
import re
import sys
from dataclasses import asdict, dataclass, field
from numbers import Integral, Real
from pathlib import Path

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from helpers import files
from helpers.freezing import FreezePlan
from helpers.measuring import evaluating
from helpers.models import anatomy, weight_hash
from helpers.profiles import tf32_override
from helpers.training import checkpoints, locks
from helpers.training.deltas import computing_fields
from helpers.training.processes import is_main, n_processes, own_random_state, random_states

MAX_RATE = 1.0
MAX_COUNT = 10**9  # steps, windows
# Settings that change no result up to a step: a run may go on with others of these.
FREE_SETTINGS = frozenset(("n_steps", "micro_batch", "save_every"))
_STATE_FIELDS = {"identity", "history", "best_step"}
_SLOTS = ("step", "exp_avg", "exp_avg_sq")  # what AdamW keeps for each parameter


class TrainingError(RuntimeError):
    """Training cannot start or go on. The message says what to do."""


@dataclass(frozen=True)
class TrainSettings:
    """All that decides a run besides model, plan and text.

    Attributes:
        n_steps: optimizer steps. A finished run goes on with more of them; its last evaluation stays in its history.
        rate: learning rate after the warm-up; constant from there, so every point is a finished run.
        batch: windows a step.
        seed: decides the order of the text, 0 to 2**32 - 1.
        micro_batch: windows at a time in memory; None: the whole batch. Changes no result, but which numbers
            dropout strikes, where a model has dropout.
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
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, Integral) or not 1 <= value <= MAX_COUNT:
                raise TrainingError(
                    f"{name} must be a whole number, 1 or more and at most {MAX_COUNT:,}; found {value!r}."
                )
        for name in ("rate", "warmup", "weight_decay"):
            _require_number(name, getattr(self, name))
        for name in ("clip", "micro_batch"):
            if getattr(self, name) is not None:
                _require_number(name, getattr(self, name))
        if self.clip is not None and not self.clip > 0:
            raise TrainingError(
                f"clip must be above 0: the largest norm that a gradient keeps; found {self.clip}. For no clipping leave "
                "it out."
            )
        for name in ("warmup", "weight_decay", "clip"):
            if not (0 <= (value := getattr(self, name) or 0) and math.isfinite(value)):
                raise TrainingError(f"{name} must be 0 or more, and finite; found {value}.")
        if self.warmup != int(self.warmup):
            raise TrainingError(f"warmup must be a whole number of steps, 0 or more; found {self.warmup}.")
        if (
            isinstance(self.seed, bool)
            or not isinstance(self.seed, Integral)
            or not 0 <= self.seed <= 2**32 - n_processes()
        ):
            raise TrainingError(
                f"The seed must be a whole number from 0 to {2**32 - n_processes()}; found "
                f"{self.seed!r}. Any small number will do."
            )
        if not (math.isfinite(self.rate) and 0 < self.rate <= MAX_RATE):
            raise TrainingError(
                f"The learning rate must be above 0 and at most {MAX_RATE:g}; found {self.rate:g}. "
                "Usual values are 3e-5 to 1e-3."
            )
        if self.micro_batch is not None and not (
            isinstance(self.micro_batch, Integral) and self.micro_batch >= 1
        ):
            raise TrainingError(f"micro_batch must be 1 or more, and whole; found {self.micro_batch}.")
        if self.precision not in ("float32", "bfloat16"):
            raise TrainingError(f"Precision {self.precision!r} is not known. Choose float32 or bfloat16.")
        for name, value in list(vars(self).items()):  # NumPy's numbers go into no record, and seed nothing
            if isinstance(value, Real) and not isinstance(value, bool):
                plain = int(value) if isinstance(value, Integral) else float(value)
                object.__setattr__(self, name, plain)

    def rate_at(self, step: int) -> float:
        return self.rate * min(1.0, (step + 1) / self.warmup) if self.warmup else self.rate

    def evaluates_at(self, step: int) -> bool:
        return step % self.evaluate_every == 0 or step == self.n_steps

    def saves_at(self, step: int) -> bool:
        return step % self.save_every == 0 or step == self.n_steps

    def is_over(self, evaluations: list[dict]) -> bool:
        """Whether to stop before ``n_steps``. Never here; the study's settings have a rule for it."""
        return False


def _require_number(name: str, value) -> None:
    """Raise TrainingError for what is no number, or a whole number too large to compute with."""
    if (
        isinstance(value, bool)
        or not isinstance(value, Real)
        or not (isinstance(value, float) or abs(value) <= 10**18)
    ):
        raise TrainingError(f"{name} must be a number; found {str(value)[:40]!r}.")


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
    orders = {
        e: np.random.default_rng([seed, e]).permutation(n_windows) for e in np.unique(places // n_windows)
    }
    return np.array([orders[p // n_windows][p % n_windows] for p in places])


class Run:
    """A run in progress: where it stands, what it has seen, and its folder."""

    where: dict[Path, int] = {}  # run folder to the step at which this process's last run in it stands

    def __init__(
        self, model, plan: FreezePlan, windows: torch.Tensor, settings: TrainSettings, folder, replay=None
    ):
        self.model, self.plan, self.settings = model, plan, settings
        self.folder = None if folder is None else Path(folder)
        self.parts, self.history, self.step = anatomy(model), History(), 0
        self.names = {p: n for n, p in model.named_parameters()}
        self._kept, self.best_step, self.bar = {}, 0, None
        self.identity = {
            "plan": plan.slug,
            "base": weight_hash(model),
            "config": computing_fields(model, training=True),
            "settings": asdict(settings),
            "windows": list(windows.shape),
            "text": files.bytes_hash(windows),
            "arithmetic": arithmetic(),
            "replay": replay.identity if replay else None,
        }

    def resume(self, optimizer, progress: bool = True) -> None:
        """Take the folder, and take up its newest intact checkpoint, if it is of this very run.

        Args:
            progress: say where a run goes on.

        Raises:
            TrainingError: it is of another run, or does not hold what a run saves. Nothing is changed then.
        """
        saved = self._take_folder() if self.folder else None
        if self.folder:
            self.where[self.folder] = saved.step if saved else 0
        if saved is None:
            return
        put(self.model, {n[6:]: t for n, t in saved.tensors.items() if n.startswith("model/")})
        self._kept = {n[5:]: t for n, t in saved.tensors.items() if n.startswith("best/")}
        inner = getattr(optimizer, "optimizer", optimizer)
        checkpoints.restore_optimizer(inner, self.names, saved.tensors)
        checkpoints.restore_random_state(own_random_state(saved.tensors))
        self.step, self.best_step = saved.step, saved.state["best_step"]
        self.history = History(**saved.state["history"])
        if progress:
            self._say_where()

    def _take_folder(self) -> checkpoints.Checkpoint | None:
        """The folder is this process's own until `fit` gives it back."""
        locks.take(self.folder)
        saved = self.own_checkpoint()
        for line in saved.damaged if saved and is_main() else []:
            print(f"{line}; using the one before it", file=sys.stderr)
        return saved

    def own_checkpoint(self) -> checkpoints.Checkpoint | None:
        """Read the newest intact checkpoint of the folder; None where it has none. Nothing is written.

        Raises:
            TrainingError: it is of another run, or does not hold what a run saves.
            CheckpointError: every one is damaged.
        """
        saved = checkpoints.load_checkpoint(self.folder)
        if saved is None:
            return None
        if problem := self._problem(saved):
            raise TrainingError(
                f"Step {saved.step} in '{self.folder}' fits its hash, but it is no checkpoint that "
                f"this course wrote: {problem}. Choose a new folder."
            )
        if other := differences(self.identity, saved.state["identity"]):
            raise TrainingError(
                f"The folder '{self.folder}' holds another run: it differs in {', '.join(other)}. "
                "Choose a new folder."
            )
        if problem := self._tensor_problem(saved.tensors):
            raise TrainingError(
                f"Step {saved.step} in '{self.folder}' fits its hash, but not this model: {problem}. "
                "Choose a new folder."
            )
        if saved.step > self.settings.n_steps:
            raise TrainingError(
                f"The folder '{self.folder}' holds step {saved.step} of this run already, more than "
                f"the {self.settings.n_steps} asked for. Ask for {files.counted(saved.step, 'step')} or more, or choose "
                "a new folder."
            )
        return saved

    def _problem(self, saved: checkpoints.Checkpoint) -> str | None:
        """What is wrong with a checkpoint's record; None where it is as `save` writes it."""
        state = saved.state
        if odd := state.keys() ^ _STATE_FIELDS:
            return f"its record has {'no' if odd <= _STATE_FIELDS else 'an unknown'} {', '.join(sorted(odd))}"
        if not isinstance(state["identity"], dict) or not isinstance(state["identity"].get("settings"), dict):
            return "its identity is no table"
        if not checkpoints.is_count(state["best_step"]) or state["best_step"] > saved.step:
            return f"its best step is {state['best_step']!r}"
        return history_problem(state["history"], saved.step)

    def _tensor_problem(self, tensors: dict[str, torch.Tensor]) -> str | None:
        """What is wrong with a checkpoint's tensors; None where each has its place, and each place its tensor."""
        wanted = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        like = {f"{kind}/{n}": (p.shape, p.dtype) for kind in ("model", "best") for n, p in wanted.items()}
        optional = {
            f"optimizer/{n}/{slot}": (
                torch.Size() if slot == "step" else p.shape,
                torch.float32 if slot == "step" else p.dtype,
            )
            for n, p in wanted.items()
            for slot in _SLOTS
        }
        place = torch.get_rng_state()
        like["random/cpu"] = place.shape, place.dtype
        for name, tensor in tensors.items():
            if re.fullmatch(r"(process\d+/)?random/(cpu|cuda\d+)", name) and tensor.dtype == place.dtype:
                if name.endswith("cpu") and tensor.shape != place.shape:
                    return f"{name} has the shape {list(tensor.shape)}"
                continue
            expected = like.get(name) or optional.get(name)
            if expected is None:
                return f"{name} has no place in it"
            if expected != (tensor.shape, tensor.dtype):
                return f"{name} is {tensor.dtype} {list(tensor.shape)}, not {expected[1]} {list(expected[0])}"
        missing = sorted(like.keys() - tensors.keys())
        missing += [
            f"optimizer/{n}/{slot}"
            for n in wanted
            for slot in _SLOTS
            if f"optimizer/{n}/{slot}" not in tensors and any(f"optimizer/{n}/{s}" in tensors for s in _SLOTS)
        ]
        return f"{missing[0]} is missing" if missing else None

    def _say_where(self) -> None:
        """Say in words that a run goes on. TQDM_DISABLE silences them and the bar: no notebook stores either."""
        if not is_main() or tqdm(total=0, file=io.StringIO()).disable:
            return
        left = "going on from there" if self.step < self.settings.n_steps else "nothing is left to train"
        print(
            f"The folder '{self.folder}' holds step {self.step} of {self.settings.n_steps} of this run: {left}.",
            file=sys.stderr,
        )

    def note(self, loss: float, norms: dict[str, float], seconds: float, drift: float | None = None) -> None:
        """One finished step; ``drift`` is the mean KL on the replay windows, where there are some."""
        rate = self.settings.rate_at(self.step)
        self.step += 1
        if self.folder:
            self.where[self.folder] = self.step
        self.history.steps.append(
            {"step": self.step, "loss": loss, "rate": rate, "norms": norms}
            | ({} if drift is None else {"replay": drift})
        )
        self.history.seconds.append(seconds)
        self.bar.set_postfix_str(
            f"loss {loss:.3f}, {self.settings.batch * self.identity['windows'][1] / seconds:,.0f} tokens/s",
            refresh=False,
        )

    def evaluate(self, measure) -> None:
        """Measure where the settings ask for it, once a step, dropout off, and remember the best weights."""
        done = self.history.evaluations and self.history.evaluations[-1]["step"] == self.step
        if done or not self.settings.evaluates_at(self.step):
            return
        with evaluating(self.model):
            found = _numbers(measure(self.model)) if measure else {}
        self.history.evaluations.append({"step": self.step, **found})
        losses = [e.get("held_out_loss", -e["step"]) for e in self.history.evaluations]
        numbers = [loss for loss in losses if not math.isnan(loss)]
        if len(losses) == 1 or (not math.isnan(losses[-1]) and losses[-1] <= min(numbers)):
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
        checkpoints.save_checkpoint(
            self.folder,
            self.step,
            tensors,
            {"identity": self.identity, "history": asdict(self.history), "best_step": self.best_step},
        )


def arithmetic() -> dict[str, str | None]:
    """What rounds a run's numbers and is set outside of it: torch's default type, and how it multiplies float32."""
    return {
        "default_type": str(torch.get_default_dtype()),
        "matmul": torch.get_float32_matmul_precision(),
        "tf32_override": tf32_override(),
    }


def _numbers(found) -> dict:
    """What a reader's measurement gave, for the record; a tensor of one number is that number.

    Raises:
        TrainingError: no dict, or a held-out loss that is no number.
    """
    if not isinstance(found, dict):
        raise TrainingError(
            f"evaluate must return a dict, such as {{'held_out_loss': 3.2}}; found {type(found).__name__}."
        )
    found = {k: v.item() if isinstance(v, (torch.Tensor, np.generic)) else v for k, v in found.items()}
    loss = found.get("held_out_loss", 0.0)
    if not isinstance(loss, Real):
        raise TrainingError(
            f"evaluate's 'held_out_loss' must be a number; found {type(loss).__name__}. "
            "`held_out_loss(model, windows).mean` is one."
        )
    return found


def differences(mine: dict, saved: dict) -> list[str]:
    """The names of what makes a saved run another one. An older record without a name says nothing about it."""
    found = []
    for name, value in mine.items():
        if name == "config":  # a field of one transformers version alone says nothing
            there = saved.get(name, {})
            found += [f"config.{k}" for k, v in value.items() if there.get(k, v) != v]
        elif name == "settings":
            there = saved[name]
            found += [k for k, v in value.items() if k not in FREE_SETTINGS and k in there and there[k] != v]
            found += sorted(there.keys() - value.keys() - FREE_SETTINGS)
        elif saved.get(name, value) != value:
            found.append(name)
    return found


def history_problem(found, step: int) -> str | None:
    """What is wrong with the history of a checkpoint of ``step``; None where `History` can hold it."""
    if not isinstance(found, dict) or found.keys() != {"steps", "evaluations", "seconds"}:
        return "its history is not that of a run"
    if not all(isinstance(part, list) for part in found.values()):
        return "its history is not made of lists"
    if [s.get("step") if isinstance(s, dict) else None for s in found["steps"]] != list(range(1, step + 1)):
        return f"its history does not have the steps 1 to {step}"
    if not all(
        isinstance(s.get("norms"), dict) and all(isinstance(s.get(k), (int, float)) for k in ("loss", "rate"))
        for s in found["steps"]
    ):
        return "a step of its history has no loss, rate or norms"
    if len(found["seconds"]) != step or not all(isinstance(s, (int, float)) for s in found["seconds"]):
        return "its history does not have a time for each step"
    at = [e.get("step") if isinstance(e, dict) else None for e in found["evaluations"]]
    if not all(checkpoints.is_count(s) and s <= step for s in at) or at != sorted(set(at)):
        return "the evaluations of its history are not in order"
    if not all(isinstance(e.get("held_out_loss", 0.0), (int, float)) for e in found["evaluations"]):
        return "an evaluation of its history has a loss that is no number"
    return None


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
