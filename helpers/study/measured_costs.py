"""What the engine and the plans cost, as measured: the two evidence files, and what they say.

`helpers/study/benchmark.py` measures the one, `helpers/study/memory.py` the other.
Everything published about them is computed here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, median

import numpy as np
import pandas as pd

from helpers.costs import MIB, Budget
from helpers.files import as_path, counted, require_each
from helpers.measuring import FAILS, HOLDS, IN_PART, UNDECIDED, UNTESTED, decide, paired_interval
from helpers.profiles import ROOT
from helpers.session import machine_in_words
from helpers.study.records import REMEDY, RecordError, is_recorded, read_record

BENCHMARK, MEMORY = (
    ROOT / "data" / "evidence" / name for name in ("benchmark.json", "memory.json")
)  # the records' paths: rows of benchmark.parquet and memory.parquet
COSTS = ROOT / "data" / "evidence" / "costs.json"
PAIRS = "Engines are compared in pairs of runs"  # how a refusal of something else begins
PLANS = {
    "main": "attention+embeddings",
    "full": "full",
    "first-half": "first-half",
}  # their names in COURSE_PLANS
BEST_ENGINES = ("trainer+settings", "trainer+compiled")  # the Trainer with the best settings it has for this
FIELDS = {
    BENCHMARK.name: {"pairs": list, "flops": dict},
    MEMORY.name: {"points": list, "times": list, "setting": dict},
    COSTS.name: {"points": list, "times": list, "setting": dict},
}
COMMANDS = {BENCHMARK.name: "course benchmark", MEMORY.name: "course memory", COSTS.name: "course costs"}
# Beside its tensors a process grows in its first step: code that is read in, buffers of the matrix products,
# threads. Measured: 45 MiB on the 125M at 1 x 128 and at 4 x 512; 20 on a model of almost no size.
ALLOCATOR_CONSTANT = 45 * MIB
CLAIMED_FALL = (0.25, 0.30)  # C11
SLIGHTLY = 0.02  # C12: the smallest share of a step's time that counts as faster
GROUPS = {
    "weights and buffers": ("parameters", "buffers"),
    "optimizer": ("optimizer",),
    "working memory": ("gradients", "activations", "logits"),
}  # what a process's size can tell apart


class BenchmarkError(ValueError):
    """A file of measurements that cannot be used. The message says how to make it."""


def read(path: Path) -> dict:
    """An evidence file.

    Raises:
        BenchmarkError: it is not there, is damaged, or is of another form.
    """
    path = as_path(path, "The place of measurements")
    script = COMMANDS.get(path.name)
    if script is None:
        raise BenchmarkError(
            f"'{path}' is no file of measurements: those are {', '.join(COMMANDS)}. Give one."
        )
    if not is_recorded(path):
        raise BenchmarkError(f"There is no '{path.name}' yet. Make it with: {script}")
    try:
        return read_record(path, FIELDS.get(path.name, {}))
    except RecordError as error:
        raise BenchmarkError(
            f"{str(error).removesuffix(REMEDY)}Restore it from the repository, or move it away and "
            f"make it anew with: {script}"
        ) from error


def rows_of(record: Mapping, name: str) -> list[Mapping]:
    """What an evidence file holds under "points" or "times".

    Raises:
        BenchmarkError: it has no such list.
    """
    found = record.get(name) if isinstance(record, Mapping) else None
    if not isinstance(found, list):
        raise BenchmarkError(
            f"No {name} were measured here. Give what `read` returns of one of these: {', '.join(COMMANDS)}."
        )
    return found


# --- the engine against the Trainer ------------------------------------------------


def log_ratios(
    pairs: Sequence[Mapping], plan: str, what: str, engine: str = "ours", against: str = "trainer"
) -> list[float]:
    """ln(engine / against) of each pair of a plan; ``what`` is "seconds" (median step) or "peak_bytes"."""
    own = [p["engines"] for p in require_each(pairs, Mapping, PAIRS) if p["plan"] == plan]
    return [
        math.log(_number(e[engine], what) / _number(e[against], what))
        for e in own
        if engine in e and against in e
    ]


def shares_of_limit(pairs: Sequence[Mapping], plan: str, flops: int, engine: str = "ours") -> list[float]:
    """FLOPs that a step needs ÷ (an engine's seconds x the sgemm rate measured right before and after it).

    For the Trainer it is also the least time ratio against it: that of an engine that computes at the sgemm
    rate and does nothing else. Where matrix products are slow next to memory, there is less to gain.
    """
    own = [p["engines"][engine] for p in pairs if p["plan"] == plan and engine in p["engines"]]
    return [flops / (_number(e, "seconds") * fmean(e["sgemm_flops"])) for e in own]


def summary(pairs: Sequence[Mapping], flops: Mapping[str, int]) -> dict:
    """The published numbers of a benchmark: geometric means over its pairs, and their intervals.

    Args:
        pairs: as the script records them; one for each plan and repetition.
        flops: of a step, by plan.
    """
    found, intervals = {}, {}
    for plan in ("main", "full"):
        for what, name in (("seconds", "time_ratio"), ("peak_bytes", "memory_ratio")):
            for against, suffix in (("trainer", ""), ("trainer+pieces", "_against_pieces")):
                logs = log_ratios(pairs, plan, what, against=against)
                if logs:
                    found[f"{name}_{plan}{suffix}"], intervals[f"{name}_{plan}{suffix}"] = _ratio(logs)
        for engine, name in (("ours", "share_of_limit"), ("trainer", "least_time_ratio")):
            shares = shares_of_limit(pairs, plan, flops[plan], engine)
            if shares:
                found[f"{name}_{plan}"], intervals[f"{name}_{plan}"] = _ratio(np.log(shares))
    exact = log_ratios(pairs, "main", "peak_bytes", *(f"{e} (exact allocator)" for e in ("ours", "trainer")))
    if exact:
        found["memory_ratio_main_exact_allocator"], _ = _ratio(exact)
    found["n_pairs"] = min(len(log_ratios(pairs, plan, "seconds")) for plan in ("main", "full"))
    return found | {"intervals": intervals}


def against_best(pairs: Sequence[Mapping], plan: str) -> tuple[str, float, list[float | None]] | None:
    """The time of a step as a share of the Trainer's with its best settings.

    Returns:
        The faster of `BEST_ENGINES`, the geometric mean over the pairs, its 95% interval; None where neither was
        measured.
    """
    found = {engine: log_ratios(pairs, plan, "seconds", engine) for engine in BEST_ENGINES}
    fastest = min((e for e in found if found[e]), key=lambda e: fmean(found[e]), default=None)
    if fastest is None:
        return None
    return fastest, *_ratio(log_ratios(pairs, plan, "seconds", against=fastest))


def _number(engine: Mapping, what: str) -> float:
    return median(engine["step_seconds"]) if what == "seconds" else engine[what]


def _ratio(logs: Sequence[float]) -> tuple[float, list[float | None]]:
    """Geometric mean and its 95% interval; one pair has no interval."""
    interval = paired_interval(logs)
    ends = [None if math.isnan(x) else round(math.exp(x), 4) for x in (interval.low, interval.high)]
    return round(math.exp(interval.mean), 4), ends


def plan_time_ratio(pairs: Sequence[Mapping], plan: str, against: str = "full") -> list[float]:
    """ln(step of a plan / step of another) on our engine, by repetition: both from one repetition."""
    pairs = require_each(pairs, Mapping, PAIRS)
    by_plan = {
        name: {
            p["repetition"]: p["engines"]["ours"]
            for p in pairs
            if p["plan"] == name and "ours" in p["engines"]
        }
        for name in (plan, against)
    }
    both = sorted(by_plan[plan].keys() & by_plan[against].keys())
    return [
        math.log(_number(by_plan[plan][r], "seconds") / _number(by_plan[against][r], "seconds")) for r in both
    ]


# --- predicted against measured ----------------------------------------------------


def predicted_groups(cost: Budget, constant: int = 0) -> dict[str, int]:
    """The bytes at the peak in the groups that a process's size can tell apart."""
    return {name: sum(cost.at_peak[kind] for kind in kinds) for name, kinds in GROUPS.items()} | {
        "constant": constant
    }


def memory_table(record: Mapping) -> pd.DataFrame:
    """One row a measured point: MiB predicted and measured by group, and the ratio of the totals."""
    rows = {}
    for point in rows_of(record, "points"):
        row = {}
        for side in ("predicted", "measured"):
            row |= {f"{side}: {group}": size / MIB for group, size in point[side].items()}
            row[side] = sum(point[side].values()) / MIB
        rows[point["plan"], point["batch"], point["length"]] = row | {
            "predicted / measured": row["predicted"] / row["measured"]
        }
    table = pd.DataFrame.from_dict(rows, orient="index")
    table.index = pd.MultiIndex.from_tuples(rows, names=["plan", "batch", "length"])
    return table


def time_table(record: Mapping) -> pd.DataFrame:
    """One row a plan: its step's time as a share of full training's, predicted from FLOPs and measured."""
    rows = {}
    for entry in rows_of(record, "times"):
        measured, ends = _ratio(entry["log_ratios"])
        rows[entry["plan"]] = {
            "predicted": entry["predicted_ratio"],
            "measured": measured,
            "low": ends[0],
            "high": ends[1],
            "predicted / measured": entry["predicted_ratio"] / measured,
        }
    return pd.DataFrame.from_dict(rows, orient="index").round(3)


def bottom_table(record: Mapping) -> pd.DataFrame:
    """One row a number of frozen blocks: a step with their output kept, as a share of the same step without.

    Columns: ``predicted`` from FLOPs; ``measured``, the geometric mean of the pairs, with the ends of its 95%
    interval, ``low`` and ``high``; ``n_pairs``. The index is (frozen blocks, all blocks).
    """
    rows = {}
    for entry in rows_of(record, "times"):
        measured, (low, high) = _ratio(entry["log_ratios"])
        rows[entry["n_frozen"], entry["n_blocks"]] = {
            "predicted": entry["predicted_ratio"],
            "measured": measured,
            "low": low,
            "high": high,
            "n_pairs": len(entry["log_ratios"]),
        }
    return pd.DataFrame.from_dict(rows, orient="index")


# --- C11 and C12 -------------------------------------------------------------------


def largest_setting(record: Mapping) -> tuple[int, int] | None:
    """The largest batch and length that were measured for the main plan and for full training; None before that."""
    there = {(p["plan"], p["batch"], p["length"]) for p in rows_of(record, "points")}
    both = [(b, n) for plan, b, n in there if plan == "full" and (PLANS["main"], b, n) in there]
    return max(both, default=None)


def by_plan(record: Mapping, batch: int, length: int) -> dict[str, dict[str, dict[str, int]]]:
    """Plan to its "predicted" and "measured" bytes by group at one setting; `plots.predicted_and_measured` draws it."""
    return {
        p["plan"]: {side: p[side] for side in ("predicted", "measured")}
        for p in rows_of(record, "points")
        if (p["batch"], p["length"]) == (batch, length)
    }


def falls(record: Mapping, batch: int, length: int) -> dict[str, float]:
    """By how much the main plan's peak lies below full training's, "predicted" and "measured": 0 to 1."""
    plans = by_plan(record, batch, length)
    if missing := {"full", PLANS["main"]} - plans.keys():
        raise BenchmarkError(f"At {batch} x {length} tokens {', '.join(sorted(missing))} was not measured.")
    return {
        side: 1 - sum(plans[PLANS["main"]][side].values()) / sum(size.values())
        for side, size in plans["full"].items()
    }


def memory_verdict(record: Mapping) -> dict:
    """C11 as `claims.record` takes it, at the largest setting: the fall in percent, the verdict, and a note.

    The claim is about GPU memory: what the size of a process on a CPU shows leaves it *not tested here*.
    """
    largest = largest_setting(record)
    if largest is None:
        raise BenchmarkError("No setting was measured for both the main plan and full training.")
    batch, length = largest
    fall, on_gpu, (low, high) = (
        falls(record, batch, length),
        record["setting"]["device"] == "cuda",
        CLAIMED_FALL,
    )
    by_number = FAILS if fall["measured"] < low else HOLDS if fall["measured"] <= high else IN_PART
    how = "a GPU's allocator" if on_gpu else "growth of a process on a CPU, not measured on a GPU"
    return {
        "verdict": by_number if on_gpu else UNTESTED,
        "value": 100 * fall["measured"],
        "unit": "% less at the peak",
        "note": f"{how}; {batch} x {length} tokens; the budget says {100 * fall['predicted']:.1f}",
    }


def time_verdict(log_ratios: Sequence[float], machine: str) -> dict:
    """C12 as `claims.record` takes it, from pairs of steps of the main plan and of full training.

    Raises:
        ValueError: no pair, or something else than numbers.
    """
    interval = paired_interval(log_ratios)
    verdict = (
        decide(interval, smallest=-math.log(1 - SLIGHTLY), claimed="lower")
        if len(log_ratios) > 1
        else UNDECIDED
    )
    value, (low, high) = _ratio(log_ratios)
    return {
        "verdict": verdict,
        "value": value,
        "low": low,
        "high": high,
        "unit": "of full training's time a step",
        "note": f"{counted(len(log_ratios), 'pair')} of processes, GPT-Neo 125M with random weights, on "
        f"{machine_in_words(machine)}",
    }
