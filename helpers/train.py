"""The course's run from a shell, on a reader's own text:

    python -m helpers.train --text BOOK.txt --freeze attention+embeddings --steps 200 --lr 3e-4 --out RUN

Prints what trains, what it should cost and what it did cost, the held-out loss before and
after, what was forgotten, the proof that frozen weights stayed, and a sample. Writes
RUN/report.json, and RUN/delta.safetensors with the best weights: what trained, and nothing
else (`helpers.deltas.load_delta` puts it back on the base). Stopped at any moment, the same
command goes on. In several processes:

    accelerate launch --multi_gpu --num_processes 2 -m helpers.train --processes 2 --text …
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext, redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from helpers import locks, profiles
from helpers.anatomy import AnatomyError
from helpers.bases import BaseRecord, base_record
from helpers.budget import Budget, BudgetError, budget
from helpers.checkpoints import CheckpointError
from helpers.corpora import Corpus, TextError, load_corpus, tensor_of
from helpers.deltas import DeltaError, save_delta
from helpers.evaluation import Retention, held_out_loss, sample_text
from helpers.folders import check_out, claim, write_report
from helpers.freezing import FreezePlan
from helpers.models import (
    ModelError,
    choose_device,
    choose_precision,
    load_config,
    load_model,
    load_tokenizer,
    n_positions,
    require_weights,
    weight_hash,
)
from helpers.processes import ProcessError, end, from_all, is_main, join, n_processes, require_processes
from helpers.profiles import ProfileError
from helpers.reports import as_dict, delta_line, median, peak_memory, print_report
from helpers.selectors import PlanError
from helpers.study import machine_class, versions
from helpers.training import FitResult, TrainingError, TrainSettings, fit

BAD_INPUT = (AnatomyError, BudgetError, PlanError, TextError, ModelError, ProfileError, TrainingError, CheckpointError,
             DeltaError, ProcessError, locks.LockError)


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="python -m helpers.train", description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--text", required=True, metavar="FILE", help="plain text, UTF-8")
    p.add_argument("--out", required=True, metavar="RUN", help="folder for checkpoints, weights and report.json")
    p.add_argument("--profile", help=f"{', '.join(profiles.PROFILES)} (default: gpt-neo with a GPU, else tiny)")
    p.add_argument("--model", help="a model folder or hub name in place of the profile's")
    way = p.add_mutually_exclusive_group()
    way.add_argument("--freeze", metavar="WHAT", help="what stays fixed, e.g. attention+embeddings, or none")
    way.add_argument("--only", metavar="WHAT", help="what trains, e.g. norms, attention, mlp-out")
    p.add_argument("--steps", type=int, help="optimizer steps")
    p.add_argument("--lr", type=float, help="learning rate")
    p.add_argument("--seed", type=int, default=0, help="order of the text")
    p.add_argument("--batch", type=int, help="windows a step")
    p.add_argument("--micro-batch", type=int, help="windows at a time in memory")
    p.add_argument("--length", type=int, help="tokens a window")
    p.add_argument("--processes", type=int, help="refuse to start unless the launcher has made so many")
    p.add_argument("--prompt", help="begin the sample with this (default: the first words of the test text)")
    return p


@dataclass
class Setup:
    """Everything a run needs, checked before the first step."""

    profile: profiles.Profile
    model: torch.nn.Module
    tokenizer: object
    corpus: Corpus
    plan: FreezePlan
    settings: TrainSettings
    predicted: Budget
    out: Path
    memory_before: int  # bytes, before the model was loaded


def prepare(args: argparse.Namespace) -> Setup:
    """Check every input, cheapest first, then load the model. Raises the errors of `BAD_INPUT`."""
    profile = profiles.current(args.profile, args.model)
    plan = FreezePlan.parse(freeze=args.freeze, only=args.only)
    settings = TrainSettings(
        n_steps=profile.n_steps if args.steps is None else args.steps,
        rate=args.lr if args.lr is not None else profile.rate_full if plan == FreezePlan.full() else profile.rate_main,
        batch=profile.batch if args.batch is None else args.batch, micro_batch=args.micro_batch, seed=args.seed,
        warmup=profile.warmup, precision=choose_precision(profile.precision, choose_device()))
    if settings.batch < n_processes():
        raise TrainingError(f"A batch of {settings.batch} windows cannot be shared by {n_processes()} processes. "
                            "Use a larger --batch, or fewer processes.")
    out = check_out(Path(args.out))
    source = profile.model
    config = load_config(source)
    require_weights(source)
    length = checked_length(args.length or profile.length, config)
    tokenizer = load_tokenizer(source)
    corpus = load_corpus(args.text, tokenizer, length, name=Path(args.text).stem)
    require_intervals(corpus, length)
    at_a_time = settings.micro_batch or -(-settings.batch // n_processes())
    predicted = budget(config, plan, at_a_time, length)  # the plan meets the model here
    memory = peak_memory()
    return Setup(profile, load_model(source), tokenizer, corpus, plan, settings, predicted, out, memory)


def checked_length(length: int, config) -> int:
    limit = n_positions(config)
    if length < 2:
        raise TrainingError(f"A window needs 2 tokens or more; found {length}.")
    if limit and length > limit:
        raise TrainingError(f"--length {length} is more than the model has positions ({limit}). "
                            f"Choose {limit} or fewer.")
    return length


def require_intervals(corpus: Corpus, length: int) -> None:
    """Raises TextError where a held-out part is too short for an interval over windows."""
    for part in ("dev", "test"):
        n_windows = len(getattr(corpus, part))
        if n_windows < 2:
            raise TextError(f"The {part} part of '{corpus.path}' is too short for an interval: it has {n_windows} "
                            f"window of {length} tokens, 2 are needed. Give a longer text, or a smaller --length.")


def claim_folder(setup: Setup) -> None:
    """Take the folder and write into it what this run is; refuse one in use, or one that holds another run."""
    claim(setup.out, {"text_sha256": setup.corpus.sha256, "model_hash": weight_hash(setup.model),
                      "plan": setup.plan.slug, "length": tensor_of(setup.corpus.train).size(1),
                      **asdict(setup.settings)})


def run(setup: Setup, prompt: str | None) -> dict:
    """Train, measure, print, and return the report."""
    model, corpus = setup.model, setup.corpus
    print(setup.profile.note)
    print(f"{corpus.name}: {corpus.split.how}; {corpus.shares}\n")
    print(setup.plan.explain(model))
    dev, test = tensor_of(corpus.dev), tensor_of(corpus.test)
    retention = Retention.sampled_from(model, setup.profile.retention_windows, test.size(1), seed=1234)
    before, base = held_out_loss(model, test), base_record(model)
    start = prompt or setup.tokenizer.decode(test[0, :12])
    sample_before = sample_text(model, setup.tokenizer, start, 60)
    began = time.perf_counter()
    result = fit(model, setup.plan, tensor_of(corpus.train), setup.settings,
                 evaluate=lambda m: {"held_out_loss": held_out_loss(m, dev).mean}, folder=setup.out / "checkpoints")
    seconds = time.perf_counter() - began
    result.use_best(model)
    if not is_main():
        return {"proof_ok": result.proof.ok}  # the main process measures and writes for all
    after, forgotten = held_out_loss(model, test), retention.forgetting(model)
    report = {
        "plan": setup.plan.slug, "n_trainable": setup.predicted.n_trainable,
        "n_parameters": setup.predicted.n_parameters, "held_out_loss_before": as_dict(before),
        "held_out_loss_after": as_dict(after), "forgetting": as_dict(forgotten), "proof_ok": result.proof.ok,
        "predicted_bytes": setup.predicted.at_peak, "predicted_peak_bytes": setup.predicted.peak_bytes,
        "measured_growth_bytes": peak_memory() - setup.memory_before,
        "n_processes": n_processes(), "seconds": round(seconds, 2), "seconds_a_step": median(result.history.seconds),
        "seed": setup.settings.seed, "rate": setup.settings.rate, "n_steps": setup.settings.n_steps,
        "best_step": result.best_step, "model_hash": base.weight_hash, "tuned_hash": weight_hash(model),
        "text": corpus.name, "text_hash": corpus.sha256, "text_share_used": corpus.share_used,
        "text_share_changed": corpus.share_changed, "profile": setup.profile.name,
        "versions": versions(), "machine": machine_class(), "evaluations": result.history.evaluations,
        "sample_before": sample_before, "sample_after": sample_text(model, setup.tokenizer, start, 60),
        "full_bytes": sum(p.numel() * p.element_size() for p in model.parameters()),
        "delta_bytes": save_trained(setup, model, base, result),
    }
    write_report(setup.out, report)
    print_report(report, result, before, after, forgotten)
    return report


def save_trained(setup: Setup, model, base: BaseRecord, result: FitResult) -> int | None:
    """Bytes of the delta; None where a broken freeze leaves none: its file would give another model."""
    if not result.proof.ok:
        return None
    return save_delta(model, setup.plan, base, setup.out, tokenizer=setup.tokenizer).stat().st_size


def in_every_process(work: Callable):
    """What ``work`` returns here; where it fails in one process, all of them stop, with that one's words."""
    try:
        found, problem = work(), None
    except BAD_INPUT as error:
        found, problem = None, error
    if said := [words for words in from_all(problem and str(problem)) if words]:
        raise problem or TrainingError(said[0])
    return found


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0: done; 2: bad input, said in one line; 1: the proof failed."""
    args = parser().parse_args(arguments)
    try:
        join(choose_device())  # before the model is loaded: of several GPUs each process gets its own
        require_processes(args.processes)
        setup = in_every_process(lambda: prepare(args))
        in_every_process(lambda: claim_folder(setup) if is_main() else None)
        with nullcontext() if is_main() else redirect_stdout(None):
            report = run(setup, args.prompt)
    except BAD_INPUT as error:
        if is_main() or isinstance(error, ProcessError):
            print(f"error: {error}", file=sys.stderr)
        return 2
    finally:
        locks.give_back(args.out)
    if is_main():
        print(f"\nresult: {setup.out / 'report.json'}\n{delta_line(report, setup.out)}")
    return 0 if report["proof_ok"] else 1


if __name__ == "__main__":
    end(main())
