"""What `course gpu` measures on a card: costs and C11, notebook 04's training, runs of the second study.

`helpers/study/card.py` says what each is for, and when it runs. Nothing is set on the card: no clocks, no modes; of
PyTorch's own settings none either.
"""

from __future__ import annotations

import copy
import gc
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from helpers.freezing import COURSE_PLANS
from helpers.measuring import SecondRunRecord, held_out_loss, seconds_of
from helpers.models import build_model, choose_device, choose_precision, load_tokenizer
from helpers.profiles import TINY, build_dir
from helpers.study import packing, second_runner, second_study
from helpers.study.jobs import EVIDENCE
from helpers.study.measured_costs import PLANS
from helpers.study.memory import growth_of, trained
from helpers.study.packing import SECOND, WINDOWS, kept_windows
from helpers.study.processes import config_of
from helpers.study.protocol import read_protocol
from helpers.study.records import is_recorded, read_run
from helpers.texts import load_corpus, tensor_of
from helpers.training import TrainSettings, fit, load_checkpoint

SIZE = {"125m": (8, 512), "small": (2, 32)}  # windows, tokens: notebook 04's on a GPU
N_PAIRS = 6
N_STEPS = {"125m": 40, "small": 8}
PRIMARY = ("first", "primary", "seeds")  # the stages that the primary tests of the second study read
# Nats a token, of dev loss and of forgetting, between the card's run and the CPU's at any step: the protocol says that
# seeds of SmolLM2 scatter by 0.002 to 0.005. Set before any card was measured.
AGREES = 0.002


class CardError(RuntimeError):
    """A measurement that cannot be made here. The message says what to do."""


@dataclass(frozen=True)
class Order:
    """What to measure, and where its files go.

    Attributes:
        shape: "125m", or "small" for the stand-in.
        n_workers: processes that make runs of the second study side by side; 0: none beside their parent.
        page, section: of the second study's protocol.
    """

    folder: Path
    shape: str = "125m"
    n_workers: int = 4
    page: Path = second_study.PAGE
    section: str = "smollm2"

    @property
    def study(self) -> second_study.Study:
        """The second study as the card makes it: beside the CPU's, never in it."""
        return second_study.open_study(self.section, read_protocol(self.page), self.folder / SECOND)


# --- costs and C11 -----------------------------------------------------------------


def event_seconds(step: Callable[[], None]) -> float:
    """Seconds from a step's first kernel on the card to its last, by CUDA events; on a CPU, by the clock."""
    if not torch.cuda.is_available():
        return seconds_of(step)
    torch.cuda.synchronize()
    begins, ends = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begins.record()
    step()
    ends.record()
    ends.synchronize()
    return begins.elapsed_time(ends) / 1000


@lru_cache(maxsize=1)
def base_of(shape: str):
    return build_model(config_of(shape))


@lru_cache(maxsize=1)
def full_step(shape: str, precision: str) -> Callable[[], None]:
    """A step of full training, warm: what the first one leaves in libraries is no plan's."""
    step, _ = trained(COURSE_PLANS["full"], shape, *SIZE[shape], precision, base_of(shape))
    for _ in range(3):
        step()
    return step


def measure_costs(order: Order, precision: str, plan: str) -> dict:
    """Growth of the card's memory under a plan, and its steps beside those of full training, in alternating pairs."""
    full, (batch, length) = full_step(order.shape, precision), SIZE[order.shape]
    found, step = growth(order.shape, plan, batch, length, precision)
    event_seconds(step)
    seconds = {"seconds": [], "full_seconds": []}
    for pair in range(N_PAIRS):
        both = [("seconds", step), ("full_seconds", full)]
        for name, one in both if pair % 2 == 0 else both[::-1]:
            seconds[name].append(event_seconds(one))
    return {"precision": precision, "plan": plan, "batch": batch, "length": length, **found, **seconds}


def growth(shape: str, plan: str, batch: int, length: int, precision: str) -> tuple[dict, Callable]:
    gc.collect()
    return growth_of(lambda: trained(COURSE_PLANS[plan], shape, batch, length, precision, base_of(shape)))


def measure_c11(order: Order, plan: str, batch: str, length: str) -> dict:
    """Growth of the card's memory at one size, in float32."""
    full_step(order.shape, "float32")
    found, _ = growth(order.shape, plan, int(batch), int(length), "float32")
    return {"plan": plan, "batch": int(batch), "length": int(length), **found}


# --- notebook 04's training --------------------------------------------------------


def measure_training(order: Order, name: str) -> dict:
    """Train as notebook 04 does: once in one go, once interrupted in an evaluation and taken up again."""
    plan, base = COURSE_PLANS[PLANS[name]], base_of(order.shape).to(choose_device())
    windows, dev = text_windows(order.shape, base.config.vocab_size)
    settings = settings_of(order.shape)
    n_looks = iter(range(settings.n_steps))

    def look(model) -> dict:
        return {"held_out_loss": held_out_loss(model, dev).mean}

    def cut(model) -> dict:
        if next(n_looks) == 3:
            raise KeyboardInterrupt
        return look(model)

    order.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=order.folder) as folder:
        run, alike = Path(folder) / "run", {"progress": False}
        with suppress(KeyboardInterrupt):
            fit(copy.deepcopy(base), plan, windows, settings, evaluate=cut, folder=run, **alike)
        kept = load_checkpoint(run).step
        went_on = fit(copy.deepcopy(base), plan, windows, settings, evaluate=look, folder=run, **alike)
    result = fit(copy.deepcopy(base), plan, windows, settings, evaluate=look, **alike)
    losses = [[s["loss"] for s in r.history.steps] for r in (result, went_on)]
    return {
        "plan": PLANS[name],
        "batch": settings.batch,
        "length": windows.size(1),
        "precision": settings.precision,
        "losses": losses[0],
        "held_out": [float(e["held_out_loss"]) for e in result.history.evaluations],
        "proof_ok": result.proof.ok and went_on.proof.ok,
        "resumed_at": kept,
        "resumed_differs": float(np.abs(np.subtract(*losses)).max()),
        "peak_bytes": result.device_peak_bytes or 0,
        "step_seconds": result.history.seconds,
    }


def settings_of(shape: str) -> TrainSettings:
    n_steps = N_STEPS[shape]
    return TrainSettings(
        n_steps=n_steps,
        rate=1e-4,
        batch=SIZE[shape][0],
        precision=choose_precision("auto", choose_device()),
        evaluate_every=n_steps // 4,
        save_every=n_steps // 4,
    )


def text_windows(shape: str, n_tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The course's own text as the miniature's tokenizer reads it: (windows to train on, windows of dev)."""
    corpus = load_corpus(TINY.texts["alice"], load_tokenizer(TINY.model), SIZE[shape][1], name="alice")
    train, dev = (tensor_of(part) % n_tokens for part in (corpus.train, corpus.dev))
    return train, dev[: 2 * SIZE[shape][0]]


# --- SmolLM2 -----------------------------------------------------------------------


def primary_jobs(study: second_study.Study) -> list[second_study.Job]:
    return [job for job in second_study.jobs_of(study) if job.stage in PRIMARY]


def recorded(study: second_study.Study, job: second_study.Job) -> SecondRunRecord | None:
    """The CPU's record of a run: of the study under way, or of the evidence; None where it has none."""
    path = study.record_path(job)
    for place in (path, EVIDENCE / SECOND / path.relative_to(study.folder)):
        if is_recorded(place):
            return read_run(place, SecondRunRecord)
    return None


def measure_check(order: Order) -> dict:
    """Make one run that the CPU has recorded, and say by how much the two differ.

    Raises:
        CardError: no such record.
    """
    study = order.study
    cpu = replace(study, folder=build_dir() / SECOND)
    every = [*primary_jobs(study), *second_study.jobs_of(study)]
    pairs = ((j, recorded(cpu, j)) for j in every)
    job, of_cpu = next((pair for pair in pairs if pair[1] is not None), (None, None))
    if job is None:
        raise CardError(
            f"The second study has no run of '{study.model_name}' on a CPU yet, so there is nothing to check a "
            f"card's run against. Record one: course study second --profile {order.section}"
        )
    take_windows(cpu, study)
    second_study.prepare(study)
    path = study.record_path(job)
    path = path if path.exists() else second_study.do(study, job)[0]
    off = differences(of_cpu, read_run(path, SecondRunRecord))
    return {"run": job.place.as_posix(), **off, "agrees": max(off.values()) <= AGREES}


def take_windows(cpu: second_study.Study, study: second_study.Study) -> None:
    """Forgetting is measured on the windows that the base wrote on the CPU: a card's would be others."""
    kept = EVIDENCE / "retention" / study.model_name / kept_windows(SECOND)
    source = next((p for p in (cpu.windows_file, kept) if p.exists()), None)
    if source is None:
        raise CardError(
            f"The windows that '{study.model_name}' wrote for the CPU's study are not here ({WINDOWS})."
        )
    packing.copy(source, study.windows_file)


def differences(cpu: SecondRunRecord, card: SecondRunRecord) -> dict[str, float]:
    """The largest difference of the means over the windows, at the steps that both evaluated, in nats per token."""
    by_step = [{e.step: e for e in record.evaluations} for record in (cpu, card)]
    steps = sorted(by_step[0].keys() & by_step[1].keys())
    names = {"dev_loss": "dev_windows", "forgetting": "forgetting_b"}
    return {
        f"{name}_differs": max(
            abs(np.mean(getattr(by_step[0][s], key)) - np.mean(getattr(by_step[1][s], key))) for s in steps
        )
        for name, key in names.items()
    }


def make_cells(order: Order, checked: dict) -> None:
    """Make the runs of the primary cells that are missing.

    Args:
        checked: what `measure_check` found.

    Raises:
        CardError: the card's run differs from the CPU's.
    """
    if not checked["agrees"]:
        raise CardError(
            f"The card's run differs from the CPU's by more than {AGREES} nats per token ({checked}). So no more runs "
            "are made."
        )
    study = order.study
    queue = [(study, job) for job in primary_jobs(study) if not study.record_path(job).exists()]
    second_runner.run_all(queue, order.n_workers)
