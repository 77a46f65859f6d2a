"""What a finished run of `helpers.train` says, in lines for a terminal."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import torch

from helpers.budget import MIB
from helpers.deltas import FILE_NAME
from helpers.evaluation import Estimate, perplexity
from helpers.models import choose_device
from helpers.training import FitResult


def print_report(report: dict, result: FitResult, before: Estimate, after: Estimate, forgotten: Estimate) -> None:
    """What a run was predicted to cost and did cost, what it learned and forgot, and its proof."""
    print(f"\nheld-out loss before  {before} nats a token (perplexity {perplexity(before.mean):.1f})")
    print(f"held-out loss after   {after} nats a token (perplexity {perplexity(after.mean):.1f}), "
          f"best at step {report['best_step']}")
    print(f"forgetting            {forgotten} nats a token, KL(base || tuned) on text of the base's own")
    kinds = ", ".join(f"{k} {v / MIB:,.1f}" for k, v in report["predicted_bytes"].items())
    print(f"memory predicted      {report['predicted_peak_bytes'] / MIB:,.0f} MiB at the peak of a step ({kinds})")
    print(f"memory measured       {report['measured_growth_bytes'] / MIB:,.0f} MiB: growth of the "
          f"{'GPU allocator' if result.device_peak_bytes else 'process'} since before the model was loaded, "
          "the measuring of loss and forgetting included")
    print(f"time                  {report['seconds']:.1f} s in all, {report['seconds_a_step']:.3f} s a step "
          f"({report['machine']})")
    if report["n_processes"] > 1:
        print(f"processes             {report['n_processes']}, each with its own share of every batch")
    print(f"proof                 {result.proof}")
    print(f"\nsample before: {report['sample_before']}\n\nsample after:  {report['sample_after']}")


def as_dict(e: Estimate) -> dict:
    return {"mean": e.mean, "low": e.low, "high": e.high, "n_windows": e.n_windows}


def median(values: list[float]) -> float:
    return round(float(torch.tensor(values).median()), 4)


def delta_line(report: dict, out: Path) -> str:
    """Where the trained weights are, and how big the file is against the whole model."""
    if report["delta_bytes"] is None:
        return "delta:  none, because the proof failed: without a whole freeze the file would give another model"
    share = report["delta_bytes"] / report["full_bytes"]
    return (f"delta:  {out / FILE_NAME}, {report['delta_bytes'] / MIB:,.1f} MiB: {share:.1%} of the full model's "
            f"{report['full_bytes'] / MIB:,.1f} MiB; helpers.deltas.load_delta puts it on the base again")


def peak_memory() -> int:
    """Largest resident size of this process so far, in bytes; on a GPU the allocator's peak."""
    if choose_device().type == "cuda":
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage counts KiB on Linux, bytes on macOS
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
