"""The course's run from a shell, on a reader's own text:

    python -m helpers.train --text BOOK.txt --freeze attention+embeddings --steps 200 --lr 3e-4 --out RUN

Prints what trains, what it should cost and what it did cost, the held-out loss before and
after, what was forgotten, the proof that frozen weights stayed, and a sample. Writes
RUN/report.json and the best weights. Stopped at any moment, the same command goes on.
"""

from __future__ import annotations

import argparse
import copy
import json
import resource
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from helpers import profiles
from helpers.anatomy import AnatomyError
from helpers.budget import Budget, BudgetError, budget
from helpers.checkpoints import CheckpointError, write_json
from helpers.corpora import Corpus, TextError, load_corpus, tensor_of
from helpers.evaluation import Estimate, Retention, held_out_loss, perplexity, sample_text
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
from helpers.profiles import ProfileError
from helpers.runs import trainable_copy
from helpers.selectors import PlanError
from helpers.study import machine_class, versions
from helpers.training import FitResult, TrainingError, TrainSettings, fit

BAD_INPUT = (AnatomyError, BudgetError, PlanError, TextError, ModelError, ProfileError, TrainingError, CheckpointError)
MIB = 2**20


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="python -m helpers.train", description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--text", required=True, metavar="FILE", help="plain text, UTF-8")
    p.add_argument("--out", required=True, metavar="RUN", help="folder for checkpoints, weights and report.json")
    p.add_argument("--profile", help="tiny, gpt-neo or smoke (default: gpt-neo with a GPU, else tiny)")
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
    profile = profiles.current(args.profile)
    plan = FreezePlan.parse(freeze=args.freeze, only=args.only)
    settings = TrainSettings(
        n_steps=profile.n_steps if args.steps is None else args.steps,
        rate=args.lr if args.lr is not None else profile.rate_full if plan == FreezePlan.full() else profile.rate_main,
        batch=profile.batch if args.batch is None else args.batch, micro_batch=args.micro_batch, seed=args.seed,
        warmup=profile.warmup, precision=choose_precision(profile.precision, choose_device()))
    out = check_out(Path(args.out))
    source = args.model or profile.model
    config = load_config(source)
    require_weights(source)
    length = checked_length(args.length or profile.length, config)
    tokenizer = load_tokenizer(source)
    corpus = load_corpus(args.text, tokenizer, length, name=Path(args.text).stem)
    require_intervals(corpus, length)
    predicted = budget(config, plan, settings.micro_batch or settings.batch, length)  # the plan meets the model here
    memory = peak_memory()
    return Setup(profile, load_model(source), tokenizer, corpus, plan, settings, predicted, out, memory)


def check_out(out: Path) -> Path:
    """Raises TrainingError where the run folder cannot be one."""
    for place in (out, *out.parents):
        if place.exists() and not place.is_dir():
            raise TrainingError(f"The run folder '{out}' cannot be made: '{place}' is a file. Choose another name.")
    if out.exists() and any(out.iterdir()) and not (out / "run.json").exists():
        raise TrainingError(f"The folder '{out}' is not empty and holds no run of this course. "
                            "Choose a new or an empty folder.")
    return out


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


def claim_folder(setup: Setup, args: argparse.Namespace) -> None:
    """Write what this run is into its folder, or refuse a folder that holds another run."""
    mine = {"text_sha256": setup.corpus.sha256, "model_hash": weight_hash(setup.model), "plan": setup.plan.slug,
            "length": tensor_of(setup.corpus.train).size(1), **asdict(setup.settings)}
    place = setup.out / "run.json"
    if place.exists():
        other = json.loads(place.read_text("utf-8"))
        unlike = [f"{k} {other.get(k)!r} there, {v!r} here" for k, v in mine.items() if other.get(k) != v]
        if unlike:
            raise TrainingError(f"The folder '{setup.out}' holds another run ({'; '.join(unlike[:3])}). "
                                "Choose a new folder.")
        return
    try:
        setup.out.mkdir(parents=True, exist_ok=True)
        write_json(place, mine)
    except OSError as error:
        raise TrainingError(f"The run folder '{setup.out}' cannot be written: {error}. Choose another.") from error


def run(setup: Setup, prompt: str | None) -> dict:
    """Train, measure, print, and return the report."""
    model, corpus = setup.model, setup.corpus
    print(setup.profile.note)
    print(f"{corpus.name}: {corpus.split.how}\n")
    print(setup.plan.explain(model))
    dev, test = tensor_of(corpus.dev), tensor_of(corpus.test)
    retention = Retention.sampled_from(model, setup.profile.retention_windows, test.size(1), seed=1234)
    before, base_hash = held_out_loss(model, test), weight_hash(model)
    untouched = copy.deepcopy(model.state_dict())
    began = time.perf_counter()
    result = fit(model, setup.plan, tensor_of(corpus.train), setup.settings,
                 evaluate=lambda m: {"held_out_loss": held_out_loss(m, dev).mean}, folder=setup.out / "checkpoints")
    seconds = time.perf_counter() - began
    result.use_best(model)
    after, forgotten = held_out_loss(model, test), retention.forgetting(model)
    start = prompt or setup.tokenizer.decode(test[0, :12])
    report = {
        "plan": setup.plan.slug, "n_trainable": setup.predicted.n_trainable,
        "n_parameters": setup.predicted.n_parameters, "held_out_loss_before": as_dict(before),
        "held_out_loss_after": as_dict(after), "forgetting": as_dict(forgotten), "proof_ok": result.proof.ok,
        "predicted_bytes": setup.predicted.at_peak, "predicted_peak_bytes": setup.predicted.peak_bytes,
        "measured_growth_bytes": peak_memory() - setup.memory_before,
        "seconds": round(seconds, 2), "seconds_a_step": median(result.history.seconds),
        "seed": setup.settings.seed, "rate": setup.settings.rate, "n_steps": setup.settings.n_steps,
        "best_step": result.best_step, "model_hash": base_hash, "tuned_hash": weight_hash(model),
        "text": corpus.name, "text_hash": corpus.sha256, "profile": setup.profile.name,
        "versions": versions(), "machine": machine_class(), "evaluations": result.history.evaluations,
        "sample_before": sample_with(model, untouched, setup.tokenizer, start),
        "sample_after": sample_text(model, setup.tokenizer, start, 60),
    }
    save_trained(setup, model)
    write_json(setup.out / "report.json", report)
    print_report(report, result, before, after, forgotten)
    return report


def save_trained(setup: Setup, model) -> None:
    """The trained tensors alone: with the base model they are the whole result."""
    tensors = {name: t.cpu().contiguous() for name, t in trainable_copy(model).items()}
    try:
        save_file(tensors, setup.out / "trained.safetensors")
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"Could not save the weights in '{setup.out}': {error}. Free some space; the same "
                              "command goes on from the last checkpoint.") from error


def sample_with(model, weights: dict, tokenizer, start: str) -> str:
    """What the model wrote with other weights."""
    other = copy.deepcopy(model)
    other.load_state_dict(weights)
    return sample_text(other, tokenizer, start, 60)


def print_report(report: dict, result: FitResult, before: Estimate, after: Estimate, forgotten: Estimate) -> None:
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
    print(f"proof                 {result.proof}")
    print(f"\nsample before: {report['sample_before']}\n\nsample after:  {report['sample_after']}")


def as_dict(e: Estimate) -> dict:
    return {"mean": e.mean, "low": e.low, "high": e.high, "n_windows": e.n_windows}


def median(values: list[float]) -> float:
    return round(float(torch.tensor(values).median()), 4)


def peak_memory() -> int:
    """Largest resident size of this process so far, in bytes; on a GPU the allocator's peak."""
    if choose_device().type == "cuda":
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage counts KiB on Linux, bytes on macOS
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0: done; 2: bad input, said in one line; 1: the proof failed."""
    args = parser().parse_args(arguments)
    try:
        setup = prepare(args)
        claim_folder(setup, args)
        report = run(setup, args.prompt)
    except BAD_INPUT as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"\nresult: {setup.out / 'report.json'} and {setup.out / 'trained.safetensors'}")
    return 0 if report["proof_ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
