"""Three steps of training on the miniature: the same lines in one process and in two."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from helpers.freezing import COURSE_PLANS
from helpers.models import load_model
from helpers.profiles import TINY
from helpers.training import FitResult, TrainSettings, fit

PLAN = COURSE_PLANS["attention+embeddings"]
SETTINGS = TrainSettings(n_steps=3, rate=1e-4, batch=5, micro_batch=2, evaluate_every=3)


def read(folder: str | Path) -> tuple[nn.Module, torch.Tensor]:
    """Return the miniature, and the windows that the notebook wrote: (windows, time)."""
    model = load_model(TINY.model, device="cpu")
    windows = load_file(Path(folder) / "windows.safetensors")["windows"]
    return model, windows


def train(folder: str | Path) -> tuple[nn.Module, FitResult]:
    """Train for three steps; return the model and what `fit` returned."""
    model, windows = read(folder)
    result = fit(model, PLAN, windows, SETTINGS, progress=False)
    return model, result
