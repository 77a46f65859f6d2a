"""Compare the speed of two pieces of work on a machine that is never quite still.

A machine warms up, and gets faster or slower over minutes. So both are run before the clock counts,
then in pairs right after each other, and the order within a pair alternates.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch


def paired_log_ratios(
    work: Callable[[], object],
    other: Callable[[], object],
    *,
    n_pairs: int = 20,
    best_of: int = 3,
    warmup: int = 2,
    clock: Callable[[], float] = time.perf_counter,
) -> list[float]:
    """ln(seconds of ``work`` / seconds of ``other``) in each pair: (n_pairs,). 0 means equally fast.

    Logarithms, because "twice" and "half" then have equal weight in a mean. Give them to
    `comparison.paired_interval`.

    Args:
        n_pairs: an even number, so that each is first equally often.
        best_of: runs for one number. The fastest counts: what delays a run is another program.
        warmup: runs of each before anything counts.

    Raises:
        ValueError: an odd number of pairs, or fewer than two.
    """
    if n_pairs < 2 or n_pairs % 2:
        raise ValueError(
            f"n_pairs must be even and at least 2, so that the order can alternate; found {n_pairs}."
        )
    for run in (work, other):
        for _ in range(warmup):
            run()
    ratios = []
    for pair in range(n_pairs):
        order = (work, other) if pair % 2 == 0 else (other, work)
        seconds = {run: min(seconds_of(run, clock) for _ in range(best_of)) for run in order}
        ratios.append(math.log(seconds[work] / seconds[other]))
    return ratios


def seconds_of(work: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    """How long one run takes; a GPU, which works on behind Python's back, is waited for."""
    wait_for_gpu()
    began = clock()
    work()
    wait_for_gpu()
    return clock() - began


def wait_for_gpu() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
