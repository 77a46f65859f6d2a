"""Freed memory goes back to the system."""

import sys
from pathlib import Path

import pytest
import torch

from helpers.allocator import give_back_freed_blocks


def resident() -> int:
    """MiB that this process holds."""
    return next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines()
                if line.startswith("VmRSS")) // 1024


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's limit exists on Linux alone")
def test_freed_blocks_of_some_megabytes_are_given_back_between_others_that_stay():
    if not give_back_freed_blocks():
        pytest.skip("this C library has no mallopt")
    before = resident()
    blocks = [torch.ones(2**20) for _ in range(64)]  # 4 MiB each
    assert resident() - before > 200
    del blocks[::2]
    assert resident() - before < 160


def test_a_system_without_that_limit_is_left_alone(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert give_back_freed_blocks() is False
