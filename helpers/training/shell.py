"""The course's run from a shell, on a reader's own text:

    python -m helpers.training.shell --text BOOK.txt --freeze attention+embeddings --steps 200 --lr 3e-4 --out RUN

Prints what trains, what it should cost and what it did cost, the held-out loss before and
after, what was forgotten, the proof that frozen weights stayed, and a sample. Writes
RUN/report.json, and RUN/delta.safetensors with the best weights: what trained, and nothing
else (`helpers.training.deltas.load_delta` puts it back on the base). Stopped at any moment, the same
command goes on; with more --steps a finished run does. In several processes:

    accelerate launch --multi_gpu --num_processes 2 -m helpers.training.shell --processes 2 --text …
"""

from __future__ import annotations

import importlib
import math
import sys
import threading
from collections.abc import Callable
from contextlib import nullcontext, redirect_stdout
from dataclasses import asdict, dataclass, field
from pathlib import Path

if __name__ == "__main__":  # before torch is read, so that --help need not wait for it
    # Run as a script this file is another module than `helpers.training.shell`, whose errors the others know.
    import signal

    from helpers.training.interrupts import stop_at_once

    signal.signal(signal.SIGINT, stop_at_once)
    from helpers.training.command import alone, answer

    def carry_out():
        return importlib.import_module("helpers.training.shell").carry_out

    code = answer(alone(carry_out), None, "python -m helpers.training.shell")
    if "helpers.training.shell" in sys.modules:
        importlib.import_module("helpers.training.processes").end(code)
    sys.exit(code)

import torch

from helpers import profiles
from helpers.costs import Budget, BudgetError, budget_or_reason
from helpers.files import counted
from helpers.freezing import LIMIT, BottomError, FreezePlan, PlanError, key_of
from helpers.measuring import (
    CATASTROPHIC,
    Retention,
    evaluating,
    held_out_loss,
    in_mode,
    sample_text,
    sample_windows,
)
from helpers.models import (
    AnatomyError,
    LossError,
    ModelError,
    choose_device,
    choose_precision,
    load_config,
    load_model,
    load_tokenizer,
    n_positions,
    require_next_token_model,
    require_weights,
    weight_hash,
)
from helpers.profiles import ProfileError
from helpers.session import machine_class, versions
from helpers.texts import Corpus, TextError, load_corpus, tensor_of
from helpers.training import locks
from helpers.training.afterwards import apply, asked_share, judgement, measured_rewind
from helpers.training.checkpoints import CheckpointError
from helpers.training.command import TrainWords, alone, answer
from helpers.training.deltas import BaseRecord, DeltaError, base_record, save_delta
from helpers.training.folders import (
    CHECKPOINTS,
    check_out,
    claim,
    refuse_other,
    where_it_stopped,
    write_report,
)
from helpers.training.interrupts import Stopped, ended_like_ctrl_c
from helpers.training.loop import FitResult, fit, kept_bottom
from helpers.training.processes import (
    ProcessError,
    from_all,
    is_main,
    join,
    n_processes,
    require_processes,
)
from helpers.training.replay import Replay
from helpers.training.reports import as_dict, delta_line, growth, median, peak_memory, print_report
from helpers.training.rewinding import RewindError
from helpers.training.runs import Run, TrainingError, TrainSettings, arithmetic

BAD_INPUT = (
    AnatomyError,
    BottomError,
    BudgetError,
    PlanError,
    TextError,
    ModelError,
    ProfileError,
    TrainingError,
    CheckpointError,
    DeltaError,
    LossError,
    ProcessError,
    RewindError,
    locks.LockError,
)


SAMPLE = 60  # tokens


@dataclass(frozen=True)
class PatientSettings(TrainSettings):
    """Settings of a run that may end early.

    Attributes:
        patience: end when the held-out loss has not been lower for so many steps.
    """

    patience: int = 1

    def __post_init__(self):
        super().__post_init__()
        if self.patience < 1:
            raise TrainingError(f"--patience must be 1 step or more; found {self.patience}.")

    def is_over(self, evaluations: list[dict]) -> bool:
        if not evaluations:
            return False
        best = min(evaluations, key=lambda e: e["held_out_loss"])
        return evaluations[-1]["step"] - best["step"] >= self.patience


@dataclass
class Setup:
    """Everything a run needs, checked before the first step."""

    profile: profiles.Profile
    model: torch.nn.Module
    tokenizer: object
    corpus: Corpus
    plan: FreezePlan
    settings: TrainSettings
    predicted: Budget | None
    not_predicted: str  # why; "" where it is
    out: Path
    memory_before: int | None  # bytes, before the model was loaded; None where the system does not tell
    mine: dict = field(default_factory=dict)  # what this run is, for its folder
    replay_weight: float | None = None
    rewind: str | None = None  # "auto" or a number, as it was asked for
    cache_frozen: bool | str = "auto"

    def predict(self, **kept) -> None:
        """Predict a step, with what is kept beside the model: a replay, a frozen bottom (see `budget`)."""
        self.predicted, self.not_predicted = predicted_step(
            self.model.config, self.plan, self.settings, self.corpus.length, **kept
        )


def prepare(args: TrainWords) -> Setup:
    """Check every input, cheapest first, then load the model. Raises the errors of `BAD_INPUT`; writes nothing."""
    require_words(args)
    profile = profiles.current(args.profile, args.model)
    plan = FreezePlan.parse(freeze=args.freeze, only=args.only)
    asked_share(args.rewind)
    patience = {} if args.patience is None else {"patience": args.patience}
    settings = (PatientSettings if patience else TrainSettings)(
        **patience,
        n_steps=profile.n_steps if args.steps is None else args.steps,
        rate=profile.rate_of(key_of(plan)) if args.lr is None else args.lr,
        batch=profile.batch if args.batch is None else args.batch,
        micro_batch=args.micro_batch,
        seed=args.seed,
        warmup=profile.warmup,
        precision=choose_precision(profile.precision, choose_device()),
    )
    if settings.batch < n_processes():
        raise TrainingError(
            f"A batch of {counted(settings.batch, 'window')} cannot be shared by {n_processes()} processes. "
            "Use a larger --batch, or fewer processes."
        )
    out = check_out(Path(args.out))
    source = profile.model
    config = load_config(source)
    require_weights(source)
    length = checked_length(profile.length if args.length is None else args.length, config)
    tokenizer = load_tokenizer(source)
    corpus = load_corpus(args.text, tokenizer, length, name=Path(args.text).stem)
    require_intervals(corpus, length)
    require_batch(settings.batch, corpus)
    require_prompt(args.prompt, tokenizer, config)
    predicted, not_predicted = predicted_step(config, plan, settings, length)  # the plan meets the model here
    memory = peak_memory()
    model = load_model(source)
    with evaluating(model):
        require_next_token_model(model, tensor_of(corpus.train)[:1, :16].to(next(model.parameters()).device))
    setup = Setup(profile, model, tokenizer, corpus, plan, settings, predicted, not_predicted, out, memory)
    if says_tied(model.config) != says_tied(config):  # `load_model` found a head of its own in the files
        setup.predict()
    setup.replay_weight, setup.rewind = args.replay, args.rewind
    setup.cache_frozen = "auto" if args.cache_frozen is None else args.cache_frozen
    setup.mine = {
        "text_sha256": corpus.sha256,
        "model_hash": weight_hash(setup.model),
        "plan": plan.slug,
        "length": length,
        **asdict(settings),
        "arithmetic": arithmetic(),
        **({} if args.replay is None else {"replay": args.replay}),
    }
    refuse_other(out, setup.mine)
    return setup


def predicted_step(
    config, plan: FreezePlan, settings: TrainSettings, length: int, **kept
) -> tuple[Budget | None, str]:
    """The budget of one process's step; or None and the reason why it is not predicted."""
    dtype = torch.bfloat16 if settings.precision == "bfloat16" else torch.float32
    return budget_or_reason(config, plan, at_a_time(settings), length, dtype=dtype, **kept)


def says_tied(config) -> bool:
    return bool(getattr(config.get_text_config(), "tie_word_embeddings", False))


def at_a_time(settings: TrainSettings) -> int:
    """Windows that one process has in memory at once."""
    return min(settings.micro_batch or settings.batch, -(-settings.batch // n_processes()))


def require_words(args: TrainWords) -> None:
    """Raises ProfileError where a word of the command cannot be a path, or is no text."""
    for name in ("text", "out", "model", "prompt", "profile", "freeze", "only"):
        word = getattr(args, name)
        if word is None:
            continue
        if name in ("text", "out", "model", "profile") and not word.strip():
            raise ProfileError(f"--{name} is empty. Give a name.")
        if name in ("text", "out", "model"):
            profiles.usable_path(word, f"--{name}")
        elif "\0" in word or any(0xD800 <= ord(letter) < 0xE000 for letter in word):
            raise ProfileError(
                f"--{name} holds bytes that are no text in this terminal's encoding. Write it in UTF-8, and set "
                "PYTHONUTF8=1 in the environment."
            )


def require_batch(batch: int, corpus: Corpus) -> None:
    """Raises TextError where a step would need more windows than the text has."""
    n_windows = len(corpus.train)
    if batch > n_windows:
        raise TextError(
            f"'{corpus.path}' has {counted(n_windows, 'window')} to train on, fewer than a batch of {batch}. "
            f"Use --batch {n_windows} or fewer, a smaller --length, or a longer text."
        )


def require_prompt(prompt: str | None, tokenizer, config) -> None:
    """Raises TextError where a prompt leaves no room for a sample."""
    limit, n_tokens = n_positions(config), len(tokenizer(prompt, verbose=False)["input_ids"]) if prompt else 0
    if limit and limit < SAMPLE:
        raise TextError(
            f"The model has {limit} positions, and the sample that is shown before and after needs {SAMPLE}. "
            "Give a model that reads longer texts."
        )
    if limit and n_tokens + SAMPLE > limit:
        raise TextError(
            f"The prompt has {counted(n_tokens, 'token')}, and the sample needs {SAMPLE} more; the model has "
            f"{limit} positions. Give a prompt of {counted(max(limit - SAMPLE, 0), 'token')} or fewer."
        )


def checked_length(length: int, config) -> int:
    limit = n_positions(config)
    if length < 2:
        raise TrainingError(f"A window needs 2 tokens or more; found {length}.")
    if limit and length > limit:
        raise TrainingError(
            f"--length {length} is more than the model has positions ({limit}). Choose {limit} or fewer."
        )
    return length


def require_intervals(corpus: Corpus, length: int) -> None:
    """Raises TextError where a held-out part is too short for an interval over windows."""
    for part in ("dev", "test"):
        n_windows = len(getattr(corpus, part))
        if n_windows < 2:
            raise TextError(
                f"The {part} part of '{corpus.path}' is too short for an interval: it has "
                f"{counted(n_windows, 'window')} of {length} tokens, 2 are needed. Give a longer text, or a smaller --length."
            )


def run(setup: Setup, prompt: str | None) -> dict:
    """Measure, take the folder, train, measure again, print, and return the report."""
    model, corpus = setup.model, setup.corpus
    print(setup.profile.note)
    print(f"{corpus.name}: {corpus.split.how}; {corpus.shares}\n")
    print(setup.plan.explain(model))
    dev, test = tensor_of(corpus.dev), tensor_of(corpus.test)
    before, base = held_out_loss(model, test), base_record(model)
    if not math.isfinite(before.mean):
        raise ModelError(
            f"The model's loss on the test text is {before.mean} before any training: its weights are "
            "damaged or overflow. Load it again from its source."
        )
    retention = Retention.sampled_from(model, setup.profile.retention_windows, test.size(1), seed=1234)
    replay = None
    if setup.replay_weight is not None:  # on other windows than those that forgetting is measured on
        own_text = sample_windows(model, setup.profile.retention_windows, test.size(1), seed=9012)
        replay = Replay(model, own_text, setup.replay_weight, seed=setup.settings.seed)
    if setup.cache_frozen is True:
        require_bottom(setup, replay)
    start = prompt or setup.tokenizer.decode(test[0, :12])
    sample_before = sample_text(model, setup.tokenizer, start, SAMPLE)
    # all is checked: the first write
    began_at = in_every_process(lambda: take_folder(setup, replay) if is_main() else 0)
    result = fit(
        model,
        setup.plan,
        tensor_of(corpus.train),
        setup.settings,
        evaluate=lambda m: {"held_out_loss": held_out_loss(m, dev).mean},
        folder=setup.out / CHECKPOINTS,
        replay=replay,
        cache_frozen=setup.cache_frozen,
    )
    result.use_best(model)
    if not is_main():
        return {"proof_ok": result.proof.ok}  # the main process measures and writes for all
    found = None
    if setup.rewind or retention.forgetting(model).mean >= CATASTROPHIC:
        dev_loss = result.history.evaluations[0]["held_out_loss"]  # of the base: step 0
        found = measured_rewind(
            model, retention, lambda m: held_out_loss(m, dev).mean, dev_loss, asked_share(setup.rewind)
        )
    if setup.rewind:
        apply(model, retention, found)
    after, forgotten = held_out_loss(model, test), retention.forgetting(model)
    if replay or result.bottom_size:
        setup.predict(replay=replay and replay.size, bottom=result.bottom_size)
    predicted, ledger = setup.predicted, setup.plan.explain(model)
    n_taken = len(result.history.steps)
    report = {
        "plan": setup.plan.slug,
        "n_trainable": ledger.n_trainable,
        "n_parameters": ledger.n_parameters,
        "held_out_loss_before": as_dict(before),
        "held_out_loss_after": as_dict(after),
        "forgetting": as_dict(forgotten),
        "proof_ok": result.proof.ok,
        "predicted_bytes": predicted and predicted.at_peak,
        "predicted_peak_bytes": predicted and predicted.peak_bytes,
        "not_predicted": setup.not_predicted or None,
        "frozen_bottom": result.bottom,
        "measured_growth_bytes": growth(setup.memory_before),
        "measured_from_step": began_at,  # an earlier process took the steps before it
        "n_processes": n_processes(),
        "seconds": round(sum(result.history.seconds), 2),
        "seconds_a_step": median(result.history.seconds),
        "seed": setup.settings.seed,
        "rate": setup.settings.rate,
        "n_steps": setup.settings.n_steps,
        "steps_taken": n_taken,
        "best_step": result.best_step,
        "patience": getattr(setup.settings, "patience", None),
        "replay": replay and replay.identity,
        "rewind": found.as_dict() if found and setup.rewind else None,
        "judgement": judgement(result.best_step, n_taken, forgotten.mean, found, bool(setup.rewind)),
        "model_hash": base.weight_hash,
        "tuned_hash": weight_hash(model),
        "text": corpus.name,
        "text_hash": corpus.sha256,
        "text_share_used": corpus.share_used,
        "text_share_changed": corpus.share_changed,
        "text_share_repeated": corpus.share_repeated,
        "text_share_markup": corpus.share_markup,
        "profile": setup.profile.name,
        "versions": versions(),
        "machine": machine_class(),
        "evaluations": result.history.evaluations,
        "sample_before": sample_before,
        "sample_after": sample_text(model, setup.tokenizer, start, SAMPLE),
        "full_bytes": sum(p.numel() * p.element_size() for p in model.parameters()),
        "delta_bytes": save_trained(setup, model, base, result),
    }
    write_report(setup.out, report)
    print_report(report, result, before, after, forgotten)
    print(f"\n{report['judgement']}")
    return report


def require_bottom(setup: Setup, replay: Replay | None) -> None:
    """Raises BottomError where a frozen bottom was asked to be computed once and cannot be: before the first write."""
    setup.plan.apply(setup.model)
    with in_mode(setup.model, training=True):
        kept_bottom(
            setup.model, tensor_of(setup.corpus.train), setup.settings, at_a_time(setup.settings),
            replay, True, LIMIT, setup.out,
        )  # fmt: skip


def take_folder(setup: Setup, replay: Replay | None) -> int:
    """Claim the run folder, the first write of all, once its checkpoints are known to be this very run's.

    Returns:
        The step at which the run goes on.
    """
    setup.plan.apply(setup.model)  # what trains is what a checkpoint holds
    windows = tensor_of(setup.corpus.train)
    run = Run(setup.model, setup.plan, windows, setup.settings, setup.out / CHECKPOINTS, replay)
    saved = run.own_checkpoint()
    claim(setup.out, setup.mine)
    return saved.step if saved else 0


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
    """The command, as `python -m helpers.training.shell` runs it."""
    return answer(alone(lambda: carry_out), arguments, "python -m helpers.training.shell")


def carry_out(args: TrainWords) -> int:
    """Exit code 0: done; 1: the proof failed; beside the main process, 2: bad input, 130: interrupted.

    Raises:
        The errors of `BAD_INPUT`, or Stopped, in the main process; a ProcessError in each.
    """
    try:
        report = report_of(args)
    except BAD_INPUT as error:
        if is_main() or isinstance(error, ProcessError):
            raise
        return 2  # the main process says it for all
    except KeyboardInterrupt:
        if not is_main():
            return 130  # the main process says it for all
        where = where_it_stopped(Path(args.out), Run.where.get(Path(args.out) / CHECKPOINTS))
        raise Stopped(where) from None
    if is_main():
        print(f"\nresult: {Path(args.out) / 'report.json'}\n{delta_line(report, Path(args.out))}", flush=True)
    return 0 if report["proof_ok"] else 1


def report_of(args: TrainWords) -> dict:
    """Check, train and measure what the command asks for."""
    try:
        join(choose_device())  # before the model is loaded: of several GPUs each process gets its own
        require_processes(args.processes)
        is_alone = n_processes() == 1 and threading.current_thread() is threading.main_thread()
        with (
            ended_like_ctrl_c() if is_alone else nullcontext()
        ):  # a launcher ends its processes by its own rules
            setup = in_every_process(lambda: prepare(args))
            with nullcontext() if is_main() else redirect_stdout(None):
                return run(setup, args.prompt)
    finally:
        if "\0" not in args.out:
            locks.give_back(args.out)
