"""Freed memory goes back to the system."""

import sys
from pathlib import Path

import pytest
import torch

from helpers import training
from helpers.allocator import give_back_freed_memory
from helpers.freezing import COURSE_PLANS
from helpers.models import build_model, mini_config
from helpers.training import TrainSettings, fit


def resident() -> int:
    """MiB that this process holds."""
    return next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines()
                if line.startswith("VmRSS")) // 1024


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="it asks the C library of Linux")
def test_freed_blocks_between_others_that_stay_are_given_back():
    if not give_back_freed_memory():
        pytest.skip("this C library has no malloc_trim, or had nothing to give back")
    blocks = [torch.ones(2**13) for _ in range(8192)]  # 32 KiB each: too small for memory of their own
    full = resident()
    del blocks[::2]
    kept = resident()
    assert give_back_freed_memory()
    assert kept - resident() > 60, f"{full} MiB with all blocks, {kept} after half of them were freed"


def test_a_system_without_that_call_is_left_alone(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert give_back_freed_memory() is False


@pytest.mark.parametrize(("long_step", "times"), [(0.0, 3), (1e9, 0)])
def test_fit_gives_back_between_long_steps_only(monkeypatch, long_step, times):
    called = []
    monkeypatch.setattr(training, "give_back_freed_memory", lambda: called.append(1))
    monkeypatch.setattr(training, "LONG_STEP", long_step)
    model = build_model(mini_config(), seed=0)
    fit(model, COURSE_PLANS["full"], torch.arange(128).reshape(4, 32), TrainSettings(n_steps=3, rate=1e-4, batch=2))
    assert len(called) == times
