"""What the processes do that `test_faults` starts, kills and starves. A module of its own: a process imports it."""

from __future__ import annotations

import contextlib
import copy
import itertools
import json
import os
import resource
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import torch

from helpers import files
from helpers.freezing.plans import FreezePlan
from helpers.models.loading import build_model, weight_hash
from helpers.training import locks, runs
from helpers.training import shell as train
from helpers.training.checkpoints import CheckpointError
from helpers.training.deltas import save_delta
from helpers.training.locks import LockError
from helpers.training.loop import fit
from helpers.training.runs import TrainingError, TrainSettings
from support import tiny

CONFIG = tiny.config()
MAIN = FreezePlan.freeze("attention", "embeddings")
NOBODY = 65_534


def run(
    folder: Path | None,
    out: Path,
    *,
    n_steps: int = 25,
    save_every: int = 1,
    gate: Path | None = None,
    disk_seconds: float = 0.0,
    file_limit: int | None = None,
    as_nobody: bool = False,
    nan_at: int | None = None,
) -> None:
    """Train in ``folder``; write to ``out`` what came of it, as JSON, and to ``out.err`` what was said.

    Args:
        gate: wait after the third step until this file exists.
        disk_seconds: what each write takes longer.
        file_limit: the largest file that this process may write, in bytes; a disk with no more room.
        as_nobody: give up the rights of root first.
        nan_at: the step whose gradient gets a NaN.
    """
    torch.set_num_threads(1)
    runs.tqdm = lambda **bar: SimpleNamespace(
        disable=False
    )  # TQDM_DISABLE, set for tests, silences words as well
    slow_down_the_disk(disk_seconds)
    model = build_model(CONFIG, seed=1)
    if nan_at is not None:
        inject_nan(model.transformer.h[1].mlp.c_fc.weight, nan_at)
    settings = TrainSettings(n_steps=n_steps, rate=1e-2, batch=4, evaluate_every=1, save_every=save_every)
    windows = torch.randint(97, (10, 24), generator=torch.Generator().manual_seed(0))
    with open(out, "w") as result, open(f"{out}.err", "w") as said, contextlib.redirect_stderr(said):
        if as_nobody:
            outcome(
                copy.deepcopy(model), windows, settings, None, None
            )  # imports what root alone may be able to read
            os.setuid(NOBODY)
        if file_limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, resource.RLIM_INFINITY))
        found = outcome(model, windows, settings, folder, gate)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        json.dump(found, result)


def outcome(model, windows, settings, folder, gate) -> dict:
    calls = itertools.count()

    def measure(model):
        while next(calls) >= 3 and gate is not None and not gate.exists():
            time.sleep(0.01)
        return {"held_out_loss": model.transformer.ln_f.weight.sum().item()}

    try:
        result = fit(model, MAIN, windows, settings, evaluate=measure, folder=folder)  # says where it goes on
    except (TrainingError, CheckpointError, LockError) as error:
        return {"error": str(error)}
    return {
        "weights": weight_hash(model),
        "steps": result.history.steps,
        "evaluations": result.history.evaluations,
        "best": {n: files.bytes_hash(t) for n, t in result.best.items()},
        "proof": result.proof.ok,
    }


def inject_nan(parameter: torch.nn.Parameter, at: int) -> None:
    calls = itertools.count()
    parameter.requires_grad_(True)
    parameter.register_hook(lambda grad: grad * float("nan") if next(calls) == at else grad)


def slow_down_the_disk(seconds: float) -> None:
    """Writing takes its time, so that a kill can meet it."""
    flush = files._flush
    files._flush = lambda path: (time.sleep(seconds), flush(path))


def save_deltas(folder: Path) -> None:
    """Save one delta and another one in its place, for ever."""
    torch.set_num_threads(1)
    slow_down_the_disk(0.01)
    base, model = build_model(CONFIG, seed=1), build_model(CONFIG, seed=1)
    while True:
        with torch.no_grad():
            model.transformer.ln_f.weight.add_(1)
        save_delta(model, MAIN, base, folder)


def hold(folder: Path) -> None:
    """Take a folder and do nothing."""
    locks.take(folder)
    time.sleep(600)


def command(arguments: list[str], out: Path) -> None:
    """`python -m helpers.training.shell` with these arguments; what it prints goes to ``out``."""
    torch.set_num_threads(1)
    with open(out, "w") as said, contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = train.main(arguments)
    sys.exit(code)
