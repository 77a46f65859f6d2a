"""What only a graphics card can tell, in one prepared run of nine minutes at most.

    course gpu --dry-run                          the parts, and how long each is planned to take
    course gpu                                    measure what is missing; stop and go on at any time
    course gpu --show                             the report, with the predictions; needs no card
    course gpu --device cpu --shape small         a stand-in on the CPU: it proves the script, and measures nothing

Four things, on GPT-Neo 125M with random weights unless it says something else:

- costs: peak memory and the time of a step, each plan in float32, in bfloat16 (autocast), and with its frozen matrices
  kept in bfloat16, at 8 x 512 tokens; beside full training of the same precision, in pairs right after each other;
- C11: the peak of full training and of the main plan at five sizes, in float32;
- training: what notebook 04 trains and how, on CUDA: loss, proof, checkpoint, interruption;
- SmolLM2: one run of the second study is made again and compared with the CPU's record of it. Where the two agree,
  the cells of the primary tests follow, with five seeds.

Each part is a JSON file of its own, whole or not there. The processes that measure are ended at the time limit.
`helpers/study/on_card.py` measures; here is what is measured when, and the report.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from helpers.costs import MIB, Budget, budget, compare
from helpers.files import counted, read_json
from helpers.freezing import COURSE_PLANS
from helpers.models import choose_device, choose_precision
from helpers.profiles import ProfileError
from helpers.session import code_commit, machine_class, machine_in_words, versions
from helpers.study.measured_costs import PLANS, memory_verdict, predicted_groups
from helpers.study.memory import FROZEN
from helpers.study.on_card import (
    CardError,
    Order,
    make_cells,
    measure_c11,
    measure_check,
    measure_costs,
    measure_training,
)
from helpers.study.packing import SECOND
from helpers.study.processes import ROOT, config_of
from helpers.study.protocol import ProtocolError
from helpers.study.records import write_record
from helpers.study.second_study import StudyError
from helpers.training import stopped_by_ctrl_c

MINUTES = 9.0
RECORD, STAND_IN = "card.json", "stand-in.json"  # the report; only the first can become evidence
PRECISIONS = ("float32", "bfloat16", FROZEN)
C11_SIZES = {
    "125m": ((1, 128), (1, 512), (4, 128), (4, 512), (8, 512)),
    "small": ((1, 16), (2, 32)),
}
# A plan, not a measurement: seconds of a part on a card of 40 GB or more, and of a process until it measures.
SECONDS = {"costs": 3, "c11": 2, "training": 25, "check": 60}
SECONDS_TO_START = 15
PROCESSES = {"costs": ("costs", "c11"), "training": ("training",), "smollm2": ("check",)}
CELLS = "smollm2"  # the process that goes on with runs of the second study until the time is over


@dataclass(frozen=True)
class Part:
    """One measurement: a JSON file."""

    kind: str
    words: tuple[str, ...]

    @property
    def name(self) -> str:
        return "-".join((self.kind, *self.words)).replace(" ", "-")

    def path(self, order: Order) -> Path:
        return order.folder / "parts" / f"{self.name}.json"


def parts(shape: str, kinds: Iterable[str] = tuple(SECONDS)) -> list[Part]:
    """All parts of these kinds, in their order. The cells of the second study are runs, and no parts."""
    every = [
        *(
            Part("costs", (p, plan))
            for p in PRECISIONS
            for plan in COURSE_PLANS
            if (p, plan) != (FROZEN, "full")
        ),
        *(
            Part("c11", (plan, str(batch), str(length)))
            for batch, length in C11_SIZES[shape]
            for plan in ("full", PLANS["main"])
        ),
        *(Part("training", (name,)) for name in ("main", "full")),
        Part("check", ()),
    ]
    return [part for part in every if part.kind in kinds]


def missing(order: Order, kinds: Iterable[str] = tuple(SECONDS)) -> list[Part]:
    return [part for part in parts(order.shape, kinds) if not part.path(order).exists()]


# --- the processes -----------------------------------------------------------------

MEASURE: dict[str, Callable[..., dict]] = {
    "costs": measure_costs,
    "c11": measure_c11,
    "training": measure_training,
    "check": measure_check,
}


def identity(shape: str) -> dict:
    """What all parts of one folder must have in common."""
    on_card = torch.cuda.is_available()
    return {
        "model": "gpt-neo-125m, random weights" if shape == "125m" else "a small shape, for tests",
        "device": choose_device().type,
        "machine": machine_class(),
        "memory_bytes": torch.cuda.get_device_properties(0).total_memory if on_card else 0,
        "versions": versions(),
        "cuda": torch.version.cuda or "" if on_card else "",
        "matmul": torch.get_float32_matmul_precision(),
        "has_bfloat16": choose_precision("auto", choose_device())
        == "bfloat16",  # else what uses it is emulated
    }


def work_through(order: Order, process: str, seconds: float) -> None:
    """Measure the missing parts of a process; a part begins only where it is expected to end in time.

    A part that fails, for want of memory or of a record, is said and stays missing; the others go on.

    Raises:
        CardError: a part failed, the card's run differs from the CPU's, or the folder has parts of another machine.
    """
    ends, longest, setting = time.monotonic() + seconds, dict(SECONDS), identity(order.shape)
    failed = []
    require_same(order, setting)
    for part in missing(order, PROCESSES[process]):
        began = time.monotonic()
        if began + longest[part.kind] > ends:
            print(f"  {part.name}: no time left", flush=True)
            return
        try:
            result = MEASURE[part.kind](order, *part.words)
        except RuntimeError as error:
            print(f"  {part.name}: FAILED {type(error).__name__}: {error}", flush=True)
            failed.append(part.name)
            continue
        took = time.monotonic() - began
        longest[part.kind] = max(longest[part.kind], took)
        write_record(
            part.path(order),
            {
                "setting": setting,
                "commit": code_commit() or "",
                "wall_seconds": round(took, 2),
                "result": result,
            },
        )
        print(f"  {part.name}: {took:.1f} s", flush=True)
    if failed:
        raise CardError(f"{counted(len(failed), 'part')} failed, the others are there: {', '.join(failed)}")
    if process == CELLS:
        make_cells(order, results(order, "check")[0])


def require_same(order: Order, setting: dict) -> None:
    for path in sorted((order.folder / "parts").glob("*.json")):
        found = read_json(path)["setting"]
        if other := [key for key, value in setting.items() if found.get(key) != value]:
            raise CardError(
                f"'{path}' was measured elsewhere: it differs in {', '.join(other)}. Choose another --folder, or move "
                "that one away."
            )


def start(order: Order, process: str, seconds: float, device: str) -> int | None:
    """One process, ended after so many seconds: its exit code, or None where it was ended."""
    words = [process, str(order.folder), order.shape, str(order.n_workers), str(seconds)]
    unseen = {"CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else {}
    try:
        return subprocess.run(
            [sys.executable, "-m", "helpers.study.card", *words],
            cwd=ROOT,
            timeout=seconds,
            env=os.environ | unseen | {"HF_HUB_OFFLINE": "1"},
        ).returncode
    except subprocess.TimeoutExpired:
        return None


def measure(order: Order, minutes: float, device: str, run: Callable = start) -> list[str]:
    """Start the processes one after the other, none beyond the time limit. Returns those that could not end.

    The stand-in leaves SmolLM2 out: on a CPU it would take hours.
    """
    ends, unfinished = time.monotonic() + 60 * minutes, []
    for process, kinds in PROCESSES.items():
        if device == "cpu" and process == CELLS or process != CELLS and not missing(order, kinds):
            continue
        left = ends - time.monotonic()
        n_parts = counted(len(missing(order, kinds)), "part", "is", "are")
        print(f"{process}: {n_parts} missing, {left:.0f} s are left", flush=True)
        if left < SECONDS_TO_START or run(order, process, left, device) != 0:
            unfinished.append(process)
    return unfinished


# --- the report --------------------------------------------------------------------


def results(order: Order, kind: str) -> list[dict]:
    places = (part.path(order) for part in parts(order.shape, (kind,)))
    return [read_json(place)["result"] for place in places if place.exists()]


@lru_cache(maxsize=128)
def cost_of(shape: str, plan: str, batch: int, length: int, precision: str) -> Budget:
    types = {
        "float32": {},
        "bfloat16": {"dtype": torch.bfloat16},
        FROZEN: {"dtype": torch.bfloat16, "frozen_dtype": torch.bfloat16},
    }
    return budget(config_of(shape), COURSE_PLANS[plan], batch, length, **types[precision])


def beside(shape: str, point: dict, device: str, precision: str = "float32") -> dict:
    """A measured point with what the budget predicts; their ratio on a card alone, for a stand-in measures nothing."""
    size = point["batch"], point["length"]
    cost, full = (cost_of(shape, plan, *size, precision) for plan in (point["plan"], "full"))
    ratio = {"ratio": round(cost.peak_bytes / point["growth_bytes"], 4)} if device == "cuda" else {}
    times = {"predicted_time_ratio": compare(full, cost)["step_flops"]}
    return point | {"predicted": predicted_groups(cost)} | ratio | times


def report(order: Order) -> dict:
    """All that was measured so far, with the predictions, in the form in which it becomes evidence.

    Raises:
        CardError: nothing was measured yet.
    """
    there = [p for part in parts(order.shape) if (p := part.path(order)).exists()]
    if not there:
        raise CardError(
            f"Nothing is measured yet under '{order.folder}'. No card has been measured: course gpu"
        )
    first = read_json(there[0])
    device = first["setting"]["device"]
    found = {
        "setting": first["setting"],
        "commit": first["commit"],
        "costs": [beside(order.shape, p, device, p["precision"]) for p in results(order, "costs")],
        "c11": [beside(order.shape, p, device) for p in results(order, "c11")],
        "training": results(order, "training"),
        "check": results(order, "check"),
        "n_runs": len(list((order.folder / SECOND / "runs").rglob("*.json"))),
        "missing": [part.name for part in missing(order)],
    }
    if device == "cuda" and not missing(order, ["c11"]):
        found["verdict"] = memory_verdict({"points": found["c11"], "setting": found["setting"]})
    return found


def is_evidence(found: dict) -> bool:
    """Whether a report is of a card and of the 125M: a stand-in's numbers mean nothing."""
    return found["setting"]["device"] == "cuda" and found["setting"]["model"].startswith("gpt-neo-125m")


def table(found: dict) -> pd.DataFrame:
    """One row a plan and precision: MiB measured and predicted, milliseconds, and the share of full training's."""
    rows = {}
    for p in found["costs"]:
        rows[p["precision"], p["plan"]] = {
            "MiB": p["growth_bytes"] / MIB,
            "predicted / measured": p.get("ratio", np.nan),
            "ms a step": 1000 * np.median(p["seconds"]),
            "of full's time": np.exp(np.mean(np.log(np.divide(p["seconds"], p["full_seconds"])))),
            "predicted": p["predicted_time_ratio"],
        }
    return pd.DataFrame.from_dict(rows, orient="index").round(3)


def show(order: Order) -> None:
    """Print the report and write it beside the parts, under a name that says whether it is evidence."""
    found = report(order)
    name = RECORD if is_evidence(found) else STAND_IN
    write_record(order.folder / name, found)
    if name == STAND_IN:
        print("A stand-in: it shows that the script runs. No number below is a card's.")
    print(f"{machine_in_words(found['setting']['machine'])}; {found['setting']['model']}")
    print(table(found).to_string())
    if "verdict" in found:
        print(
            f"C11: {found['verdict']['verdict']}, {found['verdict']['value']:.1f} {found['verdict']['note']}"
        )
    for t in found["training"]:
        print(
            f"04, {t['plan']}: loss {t['losses'][0]:.3f} → {t['losses'][-1]:.3f}, proof {t['proof_ok']}; resumed at step "
            f"{t['resumed_at']}, then at most {t['resumed_differs']:.1e} apart"
        )
    for c in found["check"]:
        print(f"SmolLM2, {c['run']}: {c}")
    print(
        f"{counted(found['n_runs'], 'run')} of the second study; missing parts: {', '.join(found['missing']) or 'none'}"
    )
    print(
        f"{order.folder / name} is written."
        + ("" if name == STAND_IN else f" course study pack --folder {order.folder}")
    )


def plan_of_time(order: Order) -> str:
    """The parts and their planned seconds, in words."""
    lines = []
    for process, kinds in PROCESSES.items():
        todo = missing(order, kinds)
        planned = SECONDS_TO_START + sum(SECONDS[part.kind] for part in todo)
        more = ", then runs of the second study for the rest of the time" if process == CELLS else ""
        lines.append(
            f"{process}: {counted(len(todo), 'part', 'is', 'are')} missing, planned {planned} s{more}"
        )
    return "\n".join(lines)


def carry_out(
    device: str,
    shape: str,
    minutes: float,
    n_workers: int,
    folder: Path | None,
    dry_run: bool,
    only_show: bool,
) -> int:
    """What the command does: measure what is missing, then show all of it.

    Returns:
        0: all parts are there; 1: some are not.

    Raises:
        CardError: no card, and no stand-in was asked for; or nothing to show.
    """
    place = folder or ROOT / "build" / ("card" if device == "cuda" else "stand-in")
    order = Order(place.absolute(), shape, n_workers)
    if dry_run:
        print(plan_of_time(order))
        return 0
    if only_show:
        show(order)
        return 0
    require_device(device, shape)
    with stopped_by_ctrl_c():
        unfinished = measure(order, minutes, device)
    if unfinished:
        print(
            f"Not finished: {', '.join(unfinished)}. The same command goes on; --show prints what is there."
        )
        return 1
    print("All parts are there. The report, with the predictions: --show")
    return 0


def require_device(device: str, shape: str) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        raise CardError(
            "There is no CUDA card here. Start it on a machine that has one, or ask for the stand-in on the CPU, which "
            "measures nothing: --device cpu --shape small"
        )
    if device == "cpu" and shape != "small":
        raise CardError("The stand-in on the CPU has the small shape: add --shape small.")


if __name__ == "__main__":  # a process that measures
    process, folder, shape, n_workers, seconds = sys.argv[1:]
    try:
        work_through(Order(Path(folder), shape, int(n_workers)), process, float(seconds))
    except (CardError, ProtocolError, ProfileError, StudyError) as error:
        sys.exit(f"  {error}")
