"""Predicted against measured: the peak memory of every plan, and the time of its step.

    course memory --dry-run     what would run, and about how long
    course memory               measure what is missing; stop and go on at any time
    course memory --show        the table so far

GPT-Neo 125M with random weights, every course plan x batch {1, 4} x length {128, 512}, float32. Each point is a
process of its own that builds the model and takes two steps (AdamW's moments come with the first). Its size is
noted before the model is built, after that, when the moments are there, and at the fullest moment; the measured
growth is the last minus the first. Only the moments are counted from their tensors; what the first step leaves
beside them is the measured constant. On a GPU the allocator's bytes are read instead.

MALLOC_MMAP_THRESHOLD_=1048576 is set before Python starts: glibc then gives every freed block of a megabyte or
more back at once. Without it, it keeps blocks for later, and the size of a process says what it once held. What
is left beside the tensors is one constant, `benchmarks.ALLOCATOR_CONSTANT`: code and buffers of the libraries that
a step touches first. --constant shows it for a model of almost no size, as a lower bound.

Step times: plans against full training in one process, in pairs right after each other, at batch 4 x 512.
"""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable
from pathlib import Path

from helpers.files import counted
from helpers.study.jobs import WORK
from helpers.study.processes import (
    EXACT,
    STATUS,
    config_of,
    continued,
    measured_apart,
    resident_bytes,
)

FILE = WORK / "memory.json"
BATCHES, LENGTHS = (1, 4), (128, 512)
SMALL_LENGTHS = (16, 32)
TIME_AT = {"125m": (4, 512), "small": (2, 32)}
N_PAIRS = 4
SECONDS_OF_STEP = {
    (1, 128): 0.6,
    (1, 512): 1.5,
    (4, 128): 1.6,
    (4, 512): 5.5,
}  # of full training, two idle cores
SECONDS_TO_START = 12
FROZEN = "frozen in bfloat16"  # a precision: autocast in bfloat16, and the frozen matrices are kept in it


# --- in a process of its own -------------------------------------------------------


def held_bytes(name: str = "VmRSS") -> int:
    """What this process holds now ("VmRSS"), or has held at most ("VmHWM"); on a GPU, its allocator's tensors."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.memory_allocated() if name == "VmRSS" else torch.cuda.max_memory_allocated()
    if not STATUS.exists():
        raise SystemExit("Memory is measured on Linux or on a GPU: this system has no /proc/self/status.")
    return resident_bytes(name)


def forget_peak() -> None:
    """On a GPU, begin anew to look for the most that its allocator holds; a CPU's process cannot forget."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()


def trained(plan, shape: str, batch: int, length: int, precision: str = "float32", base=None):
    """A model under a plan: a function that takes one step, and the optimizer.

    Args:
        precision: "float32"; "bfloat16" for autocast; `FROZEN` to keep the frozen matrices in it as well.
        base: a model of this shape to begin with a copy of; None builds one.
    """
    import torch

    from helpers.models import build_model, choose_device, next_token_loss

    device = choose_device()
    config = config_of(shape)
    ids = torch.randint(config.vocab_size, (batch, length), generator=torch.Generator().manual_seed(0)).to(
        device
    )
    model = (build_model(config) if base is None else copy.deepcopy(base)).train().to(device)
    plan.apply(model)
    if precision == FROZEN:
        for parameter in (p for p in model.parameters() if not p.requires_grad and p.ndim > 1):
            # a LayerNorm takes no mixture of types, so vectors stay
            parameter.data = parameter.data.bfloat16()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5, fused=True)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision != "float32"):
            total, n_tokens = next_token_loss(model, ids)
        (total / n_tokens).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step, optimizer


def growth_of(build) -> tuple[dict, Callable]:
    """The size of this process at four moments, as growth by group.

    Args:
        build: makes a model; returns its step and its optimizer.

    Returns:
        (growth, step): after two steps.
    """
    forget_peak()
    before = held_bytes()
    step, optimizer = build()
    built = held_bytes()
    step()
    between = held_bytes()  # activations and gradients are gone
    step()
    peak = held_bytes("VmHWM")
    moments = sum(t.nbytes for state in optimizer.state.values() for t in state.values())
    return {
        "before_bytes": before,
        "growth_bytes": peak - before,
        "measured": {
            "weights and buffers": built - before,
            "optimizer": moments,
            "working memory": peak - between,
            "constant": between - built - moments,
        },
    }, step


def measure_point(plan_name: str, shape: str, batch: int, length: int) -> dict:
    """What one point of the table measures, in a process of its own."""
    from helpers.freezing import COURSE_PLANS
    from helpers.training import fit  # noqa: F401  (a run imports it; its size belongs to "before")

    return growth_of(lambda: trained(COURSE_PLANS[plan_name], shape, batch, length))[0]


def measure_times(plan_names: list[str], shape: str) -> list[dict]:
    """ln(step of a plan / step of full training), in alternating pairs."""
    from helpers.costs import budget, compare
    from helpers.freezing import COURSE_PLANS
    from helpers.measuring import paired_log_ratios

    batch, length = TIME_AT[shape]
    costs = {
        name: budget(config_of(shape), COURSE_PLANS[name], batch, length) for name in ("full", *plan_names)
    }
    (full, _), found = trained(COURSE_PLANS["full"], shape, batch, length), []
    for name in plan_names:
        step, _ = trained(COURSE_PLANS[name], shape, batch, length)
        logs = paired_log_ratios(step, full, n_pairs=N_PAIRS, best_of=1, warmup=1)
        found.append(
            {
                "plan": name,
                "batch": batch,
                "length": length,
                "log_ratios": logs,
                "predicted_ratio": compare(costs["full"], costs[name])["step_flops"],
            }
        )
    return found


# --- the process that starts them --------------------------------------------------


def start(*arguments: str):
    """One measurement in a fresh process."""
    return measured_apart("helpers.study.memory", list(arguments), EXACT, " ".join(arguments))


def points(shape: str) -> list[tuple[str, int, int]]:
    from helpers.freezing import COURSE_PLANS

    lengths = LENGTHS if shape == "125m" else SMALL_LENGTHS
    return [(plan, batch, length) for length in lengths for batch in BATCHES for plan in COURSE_PLANS]


def add_prediction(point: dict, shape: str) -> dict:
    """The point with its prediction by group, and the ratio of the totals."""
    import torch

    from helpers.costs import budget
    from helpers.freezing import COURSE_PLANS
    from helpers.study.measured_costs import ALLOCATOR_CONSTANT, predicted_groups

    cost = budget(config_of(shape), COURSE_PLANS[point["plan"]], point["batch"], point["length"])
    predicted = predicted_groups(cost, 0 if torch.cuda.is_available() else ALLOCATOR_CONSTANT)
    return point | {
        "predicted": predicted,
        "at_peak": cost.at_peak,
        "ratio": round(sum(predicted.values()) / point["growth_bytes"], 4),
    }


def identity(shape: str) -> dict:
    """What all points of one file must have in common."""
    import torch

    from helpers.models import choose_device
    from helpers.session import machine_class, versions
    from helpers.study.measured_costs import ALLOCATOR_CONSTANT

    return {
        "model": f"gpt-neo-125m, random weights{'' if shape == '125m' else ' (a small shape, for tests)'}",
        "dtype": "float32",
        "device": choose_device().type,
        "machine": machine_class(),
        "n_threads": torch.get_num_threads(),
        "versions": versions(),
        "environment": EXACT,
        "constant_bytes": ALLOCATOR_CONSTANT,
    }


def minutes(missing_points, missing_times) -> float:
    steps = sum(2 * SECONDS_OF_STEP[b, n] + SECONDS_TO_START for _, b, n in missing_points)
    return (steps + len(missing_times) * 2 * (N_PAIRS + 1) * SECONDS_OF_STEP[4, 512]) / 60


def show(record: dict) -> None:
    from helpers.study.measured_costs import memory_table, time_table

    if record["points"]:
        print(memory_table(record)[["predicted", "measured", "predicted / measured"]].round(3).to_string())
    if record["times"]:
        print(time_table(record).to_string())


def measured_here(what: str, shape: str, *words: str):
    """One measurement in this very process: "point" PLAN BATCH LENGTH, or "times" PLAN."""
    if what == "times":
        return measure_times(list(words), shape)
    return measure_point(words[0], shape, int(words[1]), int(words[2]))


def allocator_constant() -> float:
    """MiB by which a model of almost no size makes a process grow."""
    return start("point", "small", "full", "1", "16")["growth_bytes"] / 2**20


def collect(file: Path = FILE, shape: str = "125m", dry_run: bool = False, only_show: bool = False) -> None:
    """Measure what is missing, point by point; the file is whole at any moment. Then print the tables so far.

    Args:
        shape: "125m", or "small" for tests.
        dry_run: only say what would run.
        only_show: only print.

    Raises:
        SystemExit: a measurement failed, or the file was measured elsewhere.
    """
    from helpers.freezing import COURSE_PLANS
    from helpers.session import code_commit
    from helpers.study.records import write_record

    record = continued(file, identity(shape), commit=code_commit(), points=[], times=[])
    there = {(p["plan"], p["batch"], p["length"]) for p in record["points"]}
    missing = [p for p in points(shape) if p not in there]
    untimed = [
        name for name in COURSE_PLANS if name != "full" and name not in {t["plan"] for t in record["times"]}
    ]
    if only_show and not record["points"] and not record["times"]:
        raise SystemExit(f"Nothing is measured yet in '{file}'. Measure it: course memory")
    if dry_run or not only_show:
        told = (
            f", about {counted(round(minutes(missing, untimed)), 'minute')} on two idle cores"
            if shape == "125m"
            else ""
        )
        print(
            f"{counted(len(missing), 'point')} and {counted(len(untimed), 'step time')} are missing{told}",
            flush=True,
        )
    for plan, batch, length in [] if dry_run or only_show else missing:
        found = start("point", shape, plan, str(batch), str(length))
        record["points"].append(
            add_prediction({"plan": plan, "batch": batch, "length": length} | found, shape)
        )
        write_record(file, record)
        print(f"  {plan:<22} {batch} x {length:<4} ratio {record['points'][-1]['ratio']:.3f}", flush=True)
    for plan in [] if dry_run or only_show else untimed:
        record["times"] += start("times", shape, plan)
        write_record(file, record)
    show(record)


if __name__ == "__main__":  # the fresh process of one measurement
    print(json.dumps(measured_here(*sys.argv[1:])))
