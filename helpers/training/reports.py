"""What a finished run of `helpers.training.shell` says, in lines for a terminal."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from helpers.costs import MIB
from helpers.measuring import Estimate, perplexity
from helpers.models import choose_device
from helpers.session import machine_in_words
from helpers.training.deltas import FILE_NAME
from helpers.training.loop import FitResult

try:
    import resource
except ModuleNotFoundError:  # Windows
    resource = None

MUCH = 0.5  # nats per token; the study's protocol calls forgetting catastrophic from here on


def print_report(
    report: dict, result: FitResult, before: Estimate, after: Estimate, forgotten: Estimate
) -> None:
    """What a run was predicted to cost and did cost, what it learned and forgot, and its proof."""
    print(f"\nheld-out loss before  {before} nats per token (perplexity {perplexity(before.mean):.1f})")
    print(
        f"held-out loss after   {after} nats per token (perplexity {perplexity(after.mean):.1f}), "
        f"best at step {report['best_step']}"
    )
    print(f"forgetting            {forgotten} nats per token, KL(base || tuned) on text of the base's own")
    for line in remarks(report):
        print(f"{'':22}{line}")
    print(f"memory predicted      {predicted_memory(report)}")
    print(f"memory measured       {measured_memory(report, result)}")
    print(
        f"time                  {report['seconds']:.1f} s in all steps, {report['seconds_a_step']:.3f} s a step "
        f"({machine_in_words(report['machine'])})"
    )
    if result.bottom_size:
        print(f"frozen bottom         {report['frozen_bottom']}")
    if report["n_processes"] > 1:
        print(f"processes             {report['n_processes']}, each with its own share of every batch")
    print(f"proof                 {result.proof}")
    print(f"\nsample before: {report['sample_before']}\n\nsample after:  {report['sample_after']}")


def predicted_memory(report: dict) -> str:
    """The predicted peak of a step by kind, or why there is none."""
    if report["predicted_bytes"] is None:
        return f"not predicted: {report['not_predicted']}"
    kinds = ", ".join(f"{kind} {size / MIB:,.1f}" for kind, size in report["predicted_bytes"].items())
    return f"{report['predicted_peak_bytes'] / MIB:,.0f} MiB at the peak of a step ({kinds})"


def measured_memory(report: dict, result: FitResult) -> str:
    """What the run grew by, and why that is another number than the prediction."""
    if report["measured_growth_bytes"] is None:
        return "not measured: this system does not tell a program its peak"
    grown, kind = (
        report["measured_growth_bytes"] / MIB,
        "GPU allocator" if result.device_peak_bytes else "process",
    )
    since = "since before the model was loaded"
    if first := report["measured_from_step"]:
        trained = (
            f"steps {first + 1} to {report['steps_taken']}" if first < report["steps_taken"] else "no step"
        )
        since += f", of the process that took {trained}"
    return (
        f"{grown:,.0f} MiB: growth of the {kind} {since}\n"
        f"{'':22}not on the prediction's scale, which is the tensors of one step: this also holds the measuring\n"
        f"{'':22}of loss and forgetting, the samples, and on a CPU code and what the allocator keeps back"
    )


def remarks(report: dict) -> list[str]:
    """What a reader should know about these numbers before they use the weights."""
    found = []
    if report["forgetting"]["mean"] >= MUCH:
        found.append(
            f"that is much: {MUCH:g} or more. --rewind auto measures how far to go back; in the course's own "
            "study gentler rates and earlier stops forgot less (results/README.md)"
        )
    if report["best_step"] == report["n_steps"]:
        found.append("the best step is the last one: more --steps may gain more (the same command goes on)")
    if report["best_step"] == 0:
        found.append("the best step is step 0: training did not help. Try a lower --lr")
    return found


def as_dict(e: Estimate) -> dict:
    return {"mean": e.mean, "low": e.low, "high": e.high, "n_windows": e.n_windows}


def median(values: list[float]) -> float:
    return round(float(torch.tensor(values).median()), 4)


def delta_line(report: dict, out: Path) -> str:
    """Where the trained weights are, and how big the file is against the whole model."""
    if report["delta_bytes"] is None:
        return "delta:  none, because the proof failed: what it found wrong stands above"
    share = report["delta_bytes"] / report["full_bytes"]
    return (
        f"delta:  {out / FILE_NAME}, {size(report['delta_bytes'])}: {share:.1%} of the full model's "
        f"{size(report['full_bytes'])}; helpers.training.deltas.load_delta puts it on the base again"
    )


def size(n_bytes: int) -> str:
    """Bytes in words: MiB, or KB (1,000 bytes) where that is less than one."""
    return f"{n_bytes / MIB:,.1f} MiB" if n_bytes >= MIB else f"{n_bytes / 1000:,.0f} KB"


def growth(before: int | None) -> int | None:
    """Bytes by which `peak_memory` lies above an earlier one; None where this system does not tell."""
    return None if before is None else peak_memory() - before


def peak_memory() -> int | None:
    """Largest resident size of this process so far, in bytes; on a GPU the allocator's peak. None on Windows' CPUs."""
    if choose_device().type == "cuda":
        return torch.cuda.max_memory_allocated()
    if resource is None:
        return None
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage counts KiB on Linux, bytes on macOS
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
