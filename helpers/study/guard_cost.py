"""What `training.FreezeGuard` adds to a step of training, on the miniature under the main plan.

    course guard          (about five minutes on an idle machine)

Two copies of the model train on the same windows, one of them under a guard. Pairs of equally many steps are run
right after each other, and the order alternates. The clock counts the processor time of this process, so that
other work on the machine matters little. Writes data/evidence/guard.json.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from helpers.files import counted, write_json
from helpers.freezing import COURSE_PLANS
from helpers.measuring import Interval, paired_interval, paired_log_ratios, seconds_of
from helpers.models import load_model, next_token_loss, weight_hash
from helpers.profiles import ROOT, TINY
from helpers.session import machine_class, machine_in_words
from helpers.study.records import RecordError, read_record
from helpers.training import FreezeGuard

FILE = ROOT / "data" / "evidence" / "guard.json"
PLAN = "attention+embeddings"
EVERY = 20  # steps between two sampled checks: the guard's default, and the steps of one run


class Training:
    """A model in training, under a guard or not, one run of steps at a time."""

    def __init__(self, model: nn.Module, ids: torch.Tensor, is_guarded: bool):
        self.model = copy.deepcopy(model).train()
        self.ids = ids
        began = time.process_time()
        self.guard = FreezeGuard(self.model, COURSE_PLANS[PLAN], every=EVERY) if is_guarded else None
        COURSE_PLANS[PLAN].apply(self.model)
        trainable = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trainable, lr=1e-4, fused=True)
        if self.guard:
            self.guard.watch(self.optimizer)
        self.begin_seconds = time.process_time() - began
        self.guard_seconds = 0.0

    def steps(self) -> None:
        """Take as many steps as lie between two sampled checks, one of these included."""
        for _ in range(EVERY):
            loss, n_tokens = next_token_loss(self.model, self.ids)
            (loss / n_tokens).backward()
            self.optimizer.step()
            if self.guard:
                began = time.process_time()
                self.guard.step()
                self.guard_seconds += time.process_time() - began
            self.optimizer.zero_grad()


def measure(model: nn.Module, ids: torch.Tensor, n_pairs: int, clock: Callable = time.process_time) -> dict:
    """Return the record of a measurement.

    Args:
        ids: (windows, length), the batch of each step.
        n_pairs: an even number of pairs, each of ``EVERY`` steps with the guard and without.
    """
    guarded, plain = (Training(model, ids, is_guarded) for is_guarded in (True, False))
    ratios = paired_log_ratios(guarded.steps, plain.steps, n_pairs=n_pairs, best_of=1, warmup=1, clock=clock)
    n_steps = guarded.guard.n_steps
    step_seconds = seconds_of(plain.steps, clock) / EVERY
    end_seconds = seconds_of(guarded.guard.finish, clock)
    return {
        "plan": PLAN,
        "model_hash": weight_hash(model),
        "batch": len(ids),
        "length": ids.size(1),
        "every": EVERY,
        "log_ratios": ratios,
        "share_of_a_step": guarded.guard_seconds / n_steps / step_seconds,
        "begin_in_steps": (guarded.begin_seconds - plain.begin_seconds) / step_seconds,
        "end_in_steps": end_seconds / step_seconds,
        "machine": machine_class(),
    }


def more(record: dict) -> Interval:
    """Return how much longer a step is under the guard, as a share of a step, with its interval over pairs."""
    return paired_interval([math.expm1(ratio) for ratio in record["log_ratios"]])


def sentence(record: dict) -> str:
    """Return what a record says about a step."""
    found = more(record)
    mean, low, high = (f"{round(end, 4) + 0.0:+.2%}" for end in (found.mean, found.low, found.high))
    return (
        f"A step under the guard takes {mean} [{low}, {high}] processor time "
        f"({counted(len(record['log_ratios']), 'pair')} of {counted(record['every'], 'step')}, "
        f"{machine_in_words(record['machine'])}). "
        f"The guard's own code takes {record['share_of_a_step']:.2%} of a step."
    )


def at_the_ends(record: dict) -> str:
    """Return what the hashes at the start and the proof at the end cost, in steps."""
    return (
        f"Its hashes at the start cost as much as {record['begin_in_steps']:.2f} steps, its proof at the end as "
        f"{record['end_in_steps']:.2f}."
    )


def record(n_pairs: int, file: Path = FILE) -> None:
    """Measure on the shipped miniature, print and keep what was found.

    Raises:
        RecordError: the file holds more pairs than were asked for.
    """
    if file.exists() and (n_there := len(read_record(file, {"log_ratios": list})["log_ratios"])) > n_pairs:
        raise RecordError(
            f"'{file}' holds {n_there} pairs, more than the {n_pairs} that would take their place. Give --pairs "
            f"{n_there} or more, or move that file away."
        )
    model = load_model(TINY.model, device="cpu")
    rng = torch.Generator().manual_seed(0)
    ids = torch.randint(model.config.vocab_size, (TINY.batch, TINY.length), generator=rng)
    found = measure(model, ids, n_pairs)
    write_json(file, found)
    show(file)


def show(file: Path = FILE) -> None:
    """Print what was recorded.

    Raises:
        RecordError: nothing was, or the file is damaged.
    """
    if not file.exists():
        raise RecordError(f"Nothing is measured yet in '{file}'. Measure it: course guard")
    found = read_record(file, {"log_ratios": list})
    print(sentence(found))
    print(at_the_ends(found))
