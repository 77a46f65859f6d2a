"""Time and memory of a training step: the course's engine beside Hugging Face's Trainer.

    course benchmark --dry-run     what would run, and about how long      (course benchmark --dry-run)
    course benchmark               measure what is missing; stop and go on at any time
    course benchmark --show        the numbers so far

GPT-Neo 125M with random weights, batch 4 x 512, float32. Every measurement is a process of its own: one
step to warm up, then three that count (their median). Its memory is the peak of the whole process (VmHWM),
imports included; on a GPU, the most that its allocator held. The rate of a plain matrix product is measured
in a process of its own before and after each. The order of the engines alternates from repetition to repetition.

Engines: "trainer" is the Trainer as it comes; "trainer+pieces" is the Trainer with the fused GELU and the
course's attention, so that the table shows what the rest (the loss in chunks, the loop) brings; "ours" is
`helpers.training.loop.fit`. "trainer+settings" and "trainer+compiled" are the Trainer with the best settings it has
for this (`BEST`), without torch.compile and with it: the faster of the two is its best here. All see the same windows
in every step, so their first losses must agree.

glibc keeps freed blocks below a threshold that grows up to 32 MiB, so part of a peak is memory that nothing uses. To
show how much of the ratio is the allocator's, the engines "… (exact allocator)" measure the two once more with
MALLOC_MMAP_THRESHOLD_ set for both: freed blocks go back at once (memory_ratio_main_exact_allocator). It costs time:
each step asks the system for all its pages anew.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

from helpers.files import counted
from helpers.study.jobs import WORK
from helpers.study.measured_costs import BEST_ENGINES, against_best
from helpers.study.processes import (
    EXACT,
    STATUS,
    config_of,
    continued,
    measured_apart,
    resident_bytes,
)

FILE = WORK / "benchmark.json"
REAL = {"batch": 4, "length": 512}
SMALL = {"batch": 2, "length": 32}
N_STEPS, WARM_UP = 3, 1
# The Trainer's settings that cost time and that `fit` does without, from the reference of TrainingArguments
# (transformers 5.23). Its other defaults are already the fastest for this: AdamW is the fused one, batches are made in
# this process, and nothing is logged, saved or evaluated. Its GPT-Neo has no attention but the plain one on a CPU.
BEST = {
    "max_grad_norm": 0.0,  # no clipping: else a norm over all gradients, and a product with each
    "logging_nan_inf_filter": False,  # else each loss is looked at
}
TOLERANCE = 1e-4  # of the first loss, relative: float32 in another order
# What is measured in one repetition: a plan and its engines, one after the other.
GROUPS = (
    ("main", ("trainer", "ours", "trainer+pieces", *BEST_ENGINES)),
    ("full", ("trainer", "ours", "trainer+pieces", *BEST_ENGINES)),
    ("first-half", ("ours",)),
)
EXACT_GROUP = (
    "main",
    ("trainer (exact allocator)", "ours (exact allocator)"),
)  # in the first repetition alone
# Estimates for --dry-run, on two idle cores: seconds of one process, start and warm-up included.
SECONDS = {
    "trainer": 60,
    "trainer+pieces": 45,
    "trainer+settings": 60,
    "trainer+compiled": 150,
    "ours": 40,
    "sgemm": 7,
}


# --- in a process of its own -------------------------------------------------------


def peak_bytes() -> int:
    """The most memory that this process has held: of the GPU's allocator where there is one, else resident."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    if STATUS.exists():  # ru_maxrss would start at the size of the process that started this one
        return resident_bytes("VmHWM")
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def setting(shape: str, fast: bool):
    """Config, windows (batch, length), and the device they go to."""
    import torch

    from helpers.models import choose_device

    size, config = REAL if shape == "125m" else SMALL, config_of(shape)
    config.activation_function = "gelu_pytorch_tanh" if fast else "gelu_new"
    ids = torch.randint(
        config.vocab_size, (size["batch"], size["length"]), generator=torch.Generator().manual_seed(0)
    )
    return config, ids, choose_device()


def measure_ours(plan, shape: str) -> dict:
    """`helpers.training.loop.fit` on one batch, again and again."""
    from helpers.models import build_model
    from helpers.training import TrainSettings, fit

    config, ids, device = setting(shape, fast=True)
    settings = TrainSettings(
        n_steps=WARM_UP + N_STEPS, rate=1e-5, batch=len(ids), evaluate_every=WARM_UP + N_STEPS
    )
    history = fit(build_model(config).to(device), plan, ids, settings, progress=False).history
    return {"step_seconds": history.seconds[WARM_UP:], "first_loss": history.steps[0]["loss"]}


def measure_trainer(plan, shape: str, pieces: bool = False, **settings) -> dict:
    """Hugging Face's Trainer with its own defaults.

    Args:
        pieces: with the fused GELU and the course's attention.
        settings: of `TrainingArguments`, in place of their defaults.
    """
    from transformers import Trainer, TrainerCallback, TrainingArguments

    from helpers.measuring import wait_for_gpu
    from helpers.models import build_model

    seconds, losses = [], []

    class Clock(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            self.began = time.perf_counter()

        def on_step_end(self, args, state, control, **kwargs):
            wait_for_gpu()
            seconds.append(time.perf_counter() - self.began)

    class Timed(Trainer):
        def training_step(self, *args, **kwargs):
            loss = super().training_step(*args, **kwargs)
            losses.append(float(loss))
            return loss

    config, ids, device = setting(shape, fast=pieces)
    model = build_model(config, attention="fast" if pieces else "eager")
    plan.apply(model)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            per_device_train_batch_size=len(ids),
            max_steps=WARM_UP + N_STEPS,
            learning_rate=1e-5,
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            use_cpu=device.type == "cpu",
            dataloader_pin_memory=False,
            **settings,
        )
        rows = [{"input_ids": row, "labels": row} for row in ids]
        Timed(model, arguments, train_dataset=rows, callbacks=[Clock()]).train()
    return {"step_seconds": seconds[WARM_UP:], "first_loss": losses[0]}


def measure_sgemm(n: int = 2048, repeats: int = 15) -> dict:
    """FLOPs a second of a float32 product of two square matrices: the limit of any step on this machine."""
    import torch

    from helpers.measuring import seconds_of
    from helpers.models import choose_device

    a, b = (torch.randn(n, n, device=choose_device()) for _ in range(2))
    taken = [seconds_of(lambda: a @ b) for _ in range(repeats)]
    return {"sgemm_flops": 2 * n**3 / statistics.median(taken[3:])}


def measure(engine: str, plan_name: str, shape: str) -> dict:
    """One measurement in this very process."""
    if engine == "sgemm":
        return measure_sgemm() if shape == "125m" else measure_sgemm(128)
    from helpers.freezing import COURSE_PLANS
    from helpers.study.measured_costs import PLANS

    plan, kind = COURSE_PLANS[PLANS[plan_name]], engine.removesuffix(" (exact allocator)")
    settings = {
        "trainer": {},
        "trainer+pieces": {"pieces": True},
        "trainer+settings": BEST,
        "trainer+compiled": {**BEST, "torch_compile": True},
    }
    found = measure_ours(plan, shape) if kind == "ours" else measure_trainer(plan, shape, **settings[kind])
    return found | {"peak_bytes": peak_bytes()}


# --- the process that starts them --------------------------------------------------


def start(engine: str, plan: str, shape: str) -> dict:
    """One measurement in a fresh process."""
    environment = EXACT if engine.endswith("(exact allocator)") else {}
    return measured_apart(
        "helpers.study.benchmark",
        [engine, plan, shape],
        environment,
        f"of '{engine}' ({plan})",
    )


def measure_group(plan: str, engines: tuple[str, ...], repetition: int, shape: str, run=start) -> dict:
    """One plan, once with each engine, with the machine's rate before and after each."""
    from helpers.session import code_commit

    order = engines if repetition % 2 == 0 else engines[::-1]
    rates, found = [run("sgemm", plan, shape)["sgemm_flops"]], {}
    for engine in order:
        found[engine] = run(engine, plan, shape)
        rates.append(run("sgemm", plan, shape)["sgemm_flops"])
        found[engine]["sgemm_flops"] = rates[-2:]
        print(
            f"  {plan:<10} {engine:<26} {statistics.median(found[engine]['step_seconds']):6.2f} s a step, "
            f"{found[engine]['peak_bytes'] / 1e6:,.0f} MB, sgemm {rates[-1] / 1e9:,.0f} GFLOPS",
            flush=True,
        )
    losses = [e["first_loss"] for e in found.values()]
    if max(losses) - min(losses) > TOLERANCE * min(losses):
        raise SystemExit(
            f"The engines do not compute the same loss: {dict(zip(found, losses, strict=True))}."
        )
    return {
        "repetition": repetition,
        "plan": plan,
        "order": list(order),
        "commit": code_commit(),
        "engines": found,
    }


def wanted_groups(n_pairs: int) -> list[tuple[int, str, tuple[str, ...]]]:
    """Repetition, plan and engines, in the order in which they are measured."""
    groups = [(r, plan, engines) for r in range(n_pairs) for plan, engines in GROUPS]
    return [*groups, (0, *EXACT_GROUP)]


def is_there(pairs: list[dict], repetition: int, plan: str, engines: tuple[str, ...]) -> bool:
    return any(
        (p["repetition"], p["plan"], set(p["engines"])) == (repetition, plan, set(engines)) for p in pairs
    )


def identity(shape: str) -> dict:
    """What all pairs of one file must have in common."""
    import torch

    from helpers.session import machine_class, versions

    return {
        "model": "gpt-neo-125m, random weights" if shape == "125m" else "a small shape, for tests",
        **(REAL if shape == "125m" else SMALL),
        "dtype": "float32",
        "n_steps": N_STEPS,
        "warm_up": WARM_UP,
        "machine": machine_class(),
        "n_threads": torch.get_num_threads(),
        "versions": versions(),
        "exact allocator": EXACT,
    }


def finish(record: dict, shape: str) -> dict:
    """The record with the numbers that follow from its pairs, those that are published first."""
    from helpers.costs import budget
    from helpers.freezing import COURSE_PLANS
    from helpers.study.measured_costs import PLANS, summary

    if "flops" not in record:
        config, ids, _ = setting(shape, fast=True)
        record["flops"] = {
            name: budget(config, COURSE_PLANS[plan], *ids.shape).flops.step for name, plan in PLANS.items()
        }
    numbers = summary(record["pairs"], record["flops"])
    return numbers | {key: record[key] for key in ("setting", "flops", "pairs")}


def minutes(groups) -> float:
    names = [e.removesuffix(" (exact allocator)") for _, _, engines in groups for e in engines]
    n_rates = sum(1 + len(engines) for _, _, engines in groups)
    return (sum(SECONDS[name] for name in names) + n_rates * SECONDS["sgemm"]) / 60


def record(
    n_pairs: int = 5, file: Path = FILE, shape: str = "125m", dry_run: bool = False, show: bool = False
) -> None:
    """Measure what is missing, pair by pair; the file is whole at any moment. Then print the numbers so far.

    Args:
        shape: "125m", or "small" for tests.
        dry_run: only say what would run.
        show: only print.

    Raises:
        SystemExit: a measurement failed, or the file was measured elsewhere.
    """
    from helpers.study.records import write_record

    found, wanted = continued(file, identity(shape), pairs=[]), wanted_groups(n_pairs)
    missing = [group for group in wanted if not is_there(found["pairs"], *group)]
    known = [set(engines) for _, _, engines in wanted]  # a group of other engines than these is measured anew
    found["pairs"] = [pair for pair in found["pairs"] if set(pair["engines"]) in known]
    if show and not found["pairs"]:
        raise SystemExit(f"Nothing is measured yet in '{file}'. Measure it: course benchmark")
    if not show:
        print(
            f"{counted(n_pairs, 'pair')} a plan: {counted(len(missing), 'group', 'is', 'are')} missing, about "
            f"{counted(round(minutes(missing)), 'minute')} "
            "on two idle cores",
            flush=True,
        )
    for repetition, plan, engines in [] if dry_run or show else missing:
        found["pairs"].append(measure_group(plan, engines, repetition, shape))
        found = finish(found, shape)
        write_record(file, found)
    for name, value in found.items():
        if isinstance(value, (int, float)):
            print(f"{name:<38} {value} {found['intervals'].get(name, '')}")
    for plan in ("main", "full"):
        best = against_best(found["pairs"], plan)
        if best is not None:
            print(f"{f'time_ratio_{plan} against {best[0]}':<38} {best[1]} {best[2]}")


if __name__ == "__main__":  # the fresh process of one measurement
    print(json.dumps(measure(*sys.argv[1:])))
