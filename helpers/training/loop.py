"""One training loop that fits on a screen, and the small helpers it calls.

The loop trains what a `FreezePlan` leaves trainable, and nothing else. It resumes from a
run folder bit for bit (on a CPU), stops at the first non-finite loss, and proves afterwards
that what was frozen did not move. Started by `accelerate launch`, it shares each batch among
the processes; the result is that of one process.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate.utils import set_seed
from torch import nn
from tqdm import tqdm

from helpers.costs import BottomSize
from helpers.files import counted, require_whole, seen
from helpers.freezing import (
    LIMIT,
    BottomError,
    FreezePlan,
    FrozenBottom,
    Proof,
    find_bottom,
    freezing_proof,
    require_plan,
    snapshot,
)
from helpers.measuring import evaluating, in_mode
from helpers.models import (
    Anatomy,
    LossError,
    config_of,
    divergence_loss,
    next_token_loss,
    own_precision,
    require_next_token_model,
    require_windows,
)
from helpers.training import checkpoints, locks
from helpers.training.processes import (
    ProcessError,
    in_parts,
    is_main,
    join,
    lost_process,
    means_lost_process,
    n_processes,
    own_share,
    require_one_step,
    sum_over_processes,
)
from helpers.training.replay import Replay
from helpers.training.runs import History, Run, TrainingError, TrainSettings, batch_rows, put

__all__ = [
    "FitResult",
    "History",
    "NotFinite",
    "TokenLoss",
    "TrainSettings",
    "TrainingError",
    "batch_rows",
    "fit",
    "train",
]


class NotFinite(TrainingError):
    """The loss or a gradient was no number any more."""


@dataclass
class FitResult:
    """A finished run, the same in each of several processes.

    The model holds the last weights; `use_best` puts the best ones in. ``bottom`` says in a sentence what was kept of
    a frozen bottom, or why nothing was; ``bottom_size`` is what `budget` must know of it.
    """

    history: History
    best: dict[str, torch.Tensor]
    best_step: int
    proof: Proof
    n_tokens: int
    device_peak_bytes: int | None
    bottom: str = ""
    bottom_size: BottomSize | None = None

    def use_best(self, model: nn.Module) -> None:
        """Put the weights with the lowest held-out loss into the model."""
        put(model, self.best)


def fit(
    model: nn.Module,
    plan: FreezePlan,
    windows: torch.Tensor,
    settings: TrainSettings,
    *,
    evaluate: Callable[[nn.Module], dict] | None = None,
    folder: str | Path | None = None,
    progress: bool = True,
    replay: Replay | None = None,
    cache_frozen: bool | str = False,
    cache_limit: int = LIMIT,
) -> FitResult:
    """Train ``model`` under ``plan``; go on from ``folder`` where it holds this very run.

    When CUDA runs out of memory, the micro-batch is halved and the run starts over from its
    last checkpoint. The gradient is a sum over tokens, so the result does not change, unless the model
    has dropout: that strikes other numbers in smaller parts.

    The model trains in train mode (its dropout is on), is measured in eval mode, and is given back in
    the mode in which it came, after an error as well. The random state of Python, NumPy and PyTorch is set by
    the run's seed, and stands afterwards where the run left it.

    Under a launcher every process calls this with the same arguments: ``batch`` is that of all
    processes together, and only the main one writes. All of them evaluate, so that none waits.

    Args:
        windows: (n, length) token ids to train on.
        evaluate: called with the model at each evaluation; returns numbers to record. The
            key "held_out_loss" decides which weights are best.
        folder: where to keep checkpoints; None keeps none.
        replay: adds weight * KL(base || model), on text that the base wrote, to the loss of each step.
        cache_frozen: True computes frozen embeddings and first blocks once for each window, and keeps their
            output (`find_bottom`); the weights come out the same to the last bit. "auto" does so where it can be
            done in memory and each window is read twice or more often.
        cache_limit: bytes of memory for that output; beyond it True uses a file in ``folder``.

    Raises:
        BottomError: with ``cache_frozen=True``, where a frozen bottom cannot be computed once. The model is unchanged.
        TrainingError: a model wrapped for several devices, gradients switched off, windows or choices of another
            form, a replay of another vocabulary, a non-finite loss, a folder that holds another run, or a GPU too small.
        LockError: another process is at work in the folder, or it cannot be made or written.
        PlanError: the plan does not fit the model.
        LossError: the model does not predict the next token, or its config adds a term to the loss.
        ProcessError: another process of the run has ended, or a batch smaller than their number.
    """
    require_plan(plan)
    _require_bare(model)
    _require_gradients_on(model, windows)
    _require_windows(model, windows)
    _require_choices(model, replay, cache_frozen, cache_limit)
    with evaluating(model):
        require_next_token_model(model, windows[:1, :16].to(next(model.parameters()).device))
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    plan.apply(model)
    start = _on_the_gpu(model)
    micro = settings.micro_batch or settings.batch
    while True:
        try:
            with in_mode(model, training=True), own_precision(next(model.parameters()).device.type):
                bottom, reason = kept_bottom(
                    model, windows, settings, micro, replay, cache_frozen, cache_limit, folder
                )
                result = train(
                    model, plan, windows, settings, micro, evaluate, folder, progress, replay, bottom
                )
                result.bottom = reason or str(bottom)
                result.bottom_size = bottom and BottomSize(bottom.n_tokens, bottom.in_memory)
                return result
        except BottomError:
            for parameter, flag in flags:
                parameter.requires_grad_(flag)
            raise
        except torch.cuda.OutOfMemoryError as error:
            _require_room_for_less(micro, error)
            micro = micro // 2
            print(
                f"GPU memory ran out: going on with {counted(micro, 'window')} at a time instead of {2 * micro}. "
                "The result is the same.",
                file=sys.stderr,
            )
            model.zero_grad(set_to_none=True)
            put(model, start)
            torch.cuda.empty_cache()
        except RuntimeError as error:
            if not means_lost_process(error):
                raise
            raise lost_process(folder) from error
        finally:
            locks.give_back(folder)  # `Run.resume` took it; after an error it is free as well


def _require_bare(model: nn.Module) -> None:
    """Raise TrainingError for a model in a wrapper that spreads its work: the loop does that itself."""
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        raise TrainingError(
            f"The model is wrapped in {type(model).__name__}. Give the model inside (model.module): fit shares the work "
            "out itself, where `accelerate launch` starts several processes."
        )


def _require_gradients_on(model: nn.Module, windows: torch.Tensor) -> None:
    """Raise TrainingError where PyTorch was told to keep no gradients."""
    if not torch.is_grad_enabled():
        raise TrainingError(
            "Gradients are switched off here, by torch.no_grad, torch.inference_mode or torch.set_grad_enabled(False), and "
            "training needs them. Call fit outside of it, or torch.set_grad_enabled(True) first."
        )
    for what, tensors in (("model", model.parameters()), ("tensor of windows", [windows])):
        if any(isinstance(tensor, torch.Tensor) and tensor.is_inference() for tensor in tensors):
            raise TrainingError(
                f"A {what} made under torch.inference_mode takes part in no gradient. Make it again outside of that."
            )


def _require_windows(model: nn.Module, windows: torch.Tensor) -> None:
    """Raise TrainingError unless these are token ids of the model, one window a row, with a next token to predict."""
    try:
        require_windows(model, windows)
    except LossError as error:
        raise TrainingError(str(error)) from error


def _require_choices(
    model: nn.Module, replay: Replay | None, cache_frozen: bool | str, cache_limit: int
) -> None:
    """Raise TrainingError for a replay that is none, or of other words, and for a cache that is neither on nor off."""
    if replay is not None and not isinstance(replay, Replay):
        raise TrainingError(f"replay is a Replay, or None; found {seen(replay)}.")
    n_words = config_of(model).get_text_config().vocab_size
    if replay is not None and replay.n_words != n_words:
        raise TrainingError(
            f"The replay's base has a vocabulary of {replay.n_words:,}, and this model one of {n_words:,}. Make the replay "
            "from the base of this very model."
        )
    if cache_frozen is not True and cache_frozen is not False and cache_frozen != "auto":
        raise TrainingError(f"cache_frozen is True, False or 'auto'; found {cache_frozen!r}.")
    require_whole(cache_limit, "cache_limit is in bytes", least=0)


def _require_gradient(total: torch.Tensor) -> None:
    """Raise TrainingError where nothing that trains has a part in the loss."""
    if not total.requires_grad:
        raise TrainingError(
            "Nothing that trains under this plan takes part in the loss. LoRA that is merged takes none: call "
            "unmerge(model) first."
        )


def _on_the_gpu(model: nn.Module) -> dict[str, torch.Tensor]:
    """Copy what trains on a GPU into the host's memory, to start over with less where the GPU is full."""
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    return {name: p.detach().cpu() for name, p in trainable.items() if p.is_cuda}


def _require_room_for_less(micro: int, error: Exception) -> None:
    """Stop where a full GPU cannot be helped with a smaller micro-batch.

    Raises:
        ProcessError: the other processes are in the middle of a step, and cannot start over with this one.
        TrainingError: there is one window at a time already.
    """
    if n_processes() > 1:
        raise ProcessError(
            f"A GPU is full with {counted(micro, 'window')} at a time. Start again with a smaller "
            "micro_batch; the result is the same."
        ) from error
    if micro == 1:
        raise TrainingError(
            "The GPU is full even with one window at a time. Use shorter windows, a plan "
            "that trains less, or a smaller model."
        ) from error


def train(model, plan, windows, settings, micro, evaluate, folder, progress, replay, bottom):
    """Run the loop. A turn: set the rate, add up the gradient, step, note, evaluate, save."""
    accelerator = join(next(model.parameters()).device)
    device = accelerator.device
    set_seed(settings.seed, device_specific=True)
    run = Run(model, plan, windows, settings, folder, replay)
    before = snapshot(model)
    optimizer = build_optimizer(model, settings)
    loss_of, optimizer = accelerator.prepare(TokenLoss(model, bottom), optimizer)  # frozen now
    run.resume(optimizer, progress)
    require_one_step(run.step, folder)
    run.evaluate(evaluate)
    for step in progress_bar(run, progress):
        if settings.is_over(run.history.evaluations):
            break
        began = time.perf_counter()
        set_rate(optimizer, settings.rate_at(step))
        rows = batch_rows(len(windows), settings.batch, step, settings.seed)
        n_tokens = len(rows) * (windows.size(1) - 1)  # of all processes together
        batch = windows[own_share(rows, accelerator)].to(device)  # (own windows, time)
        drift = replay and replay.add_gradient(loss_of, step, micro, settings, accelerator)
        loss = 0.0
        for part in in_parts(batch, micro, accelerator, loss_of):  # their gradients add up
            with torch.autocast(device.type, torch.bfloat16, settings.precision == "bfloat16"):
                total = loss_of(part)  # a sum over tokens
            accelerator.backward(total * accelerator.num_processes / n_tokens)  # DDP averages
            loss += total.item() / n_tokens
        loss = sum_over_processes(accelerator, loss)
        norms = gradient_norms(model, run.parts)
        stop_if_not_finite(loss + (drift or 0.0), norms["total"], step, settings, folder)
        if settings.clip is not None:
            accelerator.clip_grad_norm_(model.parameters(), settings.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        run.note(loss, norms, time.perf_counter() - began, drift)
        run.evaluate(evaluate)
        run.save(optimizer)
    proof = freezing_proof(before, model, optimizer, plan)
    n_tokens = run.step * settings.batch * (windows.size(1) - 1)
    return FitResult(run.history, run.best, run.best_step, proof, n_tokens, peak_bytes())


# --- what the loop calls -----------------------------------------------------------


class TokenLoss(nn.Module):
    """Sum a batch's token losses, as a module, because DDP and FSDP wrap a module and watch its ``forward``.

    It adds no parameter; the model inside stays the caller's own. With a `FrozenBottom` the frozen blocks run once
    for each window.
    """

    def __init__(self, model: nn.Module, bottom: FrozenBottom | None = None):
        super().__init__()
        self.model = model
        self.bottom = bottom

    def forward(self, input_ids: torch.Tensor, base_of: Callable | None = None) -> torch.Tensor:
        """Return the sum of next-token losses; with ``base_of`` that of KL(base || model), see `divergence_loss`."""
        with self.bottom.reading(input_ids) if self.bottom else nullcontext():
            if base_of is not None:
                return divergence_loss(self.model, input_ids, base_of)
            total, _ = next_token_loss(self.model, input_ids)
            _require_gradient(total)
            return total


def kept_bottom(
    model, windows, settings: TrainSettings, micro: int, replay, ask: bool | str, limit: int, folder
) -> tuple[FrozenBottom | None, str]:
    """Return the frozen bottom that a run computes once for each window; or None and the sentence that says why.

    Raises:
        BottomError: it was asked for (True), and cannot be.
        TrainingError: the question is neither True, False nor "auto".
    """
    if ask not in (True, False, "auto"):
        raise TrainingError(f"cache_frozen must be True, False or 'auto'; found {ask!r}.")
    if ask is False:
        return None, "The frozen blocks are computed in each step: nothing else was asked for."
    if ask == "auto" and settings.n_steps * settings.batch < 2 * len(windows):
        return None, "The frozen blocks are computed in each step: no window is read twice."
    n_tokens = windows.numel() + (replay.windows.numel() if replay else 0)
    device = next(model.parameters()).device
    some = windows[: min(micro, settings.batch)].to(device)
    try:
        if n_processes() > 1:
            raise BottomError("Several processes would each keep all windows: that is not done.")
        with torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bfloat16"):
            return find_bottom(model, some, n_tokens, limit, folder if ask is True else None), ""
    except BottomError as error:
        if ask is True:
            raise
        return None, f"The frozen blocks are computed in each step. {error}"


def build_optimizer(model: nn.Module, settings: TrainSettings) -> torch.optim.AdamW:
    """Build AdamW over the trainable parameters only: a frozen one never meets decay or momentum."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.AdamW(trainable, lr=settings.rate, weight_decay=settings.weight_decay, fused=True)


def set_rate(optimizer, rate: float) -> None:
    """Set the learning rate of every group."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def gradient_norms(model: nn.Module, parts: Anatomy) -> dict[str, float]:
    """Return the Euclidean norm of the gradient, by role and in all ("total"); roles without one are absent."""
    squares: dict[str, float] = {}
    for entry in parts.entries:
        gradient = model.get_parameter(entry.name).grad
        if gradient is not None:
            # one number a row: no copy of it all in float64
            rows = torch.linalg.vector_norm(gradient, dim=-1)
            square = rows.double().square().sum().item()
            squares[entry.role] = squares.get(entry.role, 0.0) + square
    squares["total"] = sum(squares.values())
    return {role: math.sqrt(square) for role, square in squares.items()}


def stop_if_not_finite(loss: float, norm: float, step: int, settings: TrainSettings, folder) -> None:
    """Stop before the weights are touched.

    Raises:
        NotFinite: with the step, the likely cause and what is left.
    """
    if math.isfinite(loss) and math.isfinite(norm):
        return
    cause = "a number overflowed: check the text, the starting weights and the precision"
    if settings.rate > 1e-3:
        cause = f"the rate {settings.rate:g} is too high"
    left = "No checkpoint was kept."
    saved = checkpoints.load_checkpoint(folder) if folder else None
    if saved:
        left = f"The last good checkpoint is step {saved.step} in '{folder}'."
    raise NotFinite(
        f"At step {step} the loss is {loss} and the gradient norm {norm}. Most likely {cause}. "
        f"{left} Try a third of the rate."
    )


def in_notebook() -> bool:
    """Return whether a Jupyter kernel runs this."""
    ipython = sys.modules.get("IPython")
    return getattr(ipython and ipython.get_ipython(), "kernel", None) is not None


def progress_bar(run: Run, show: bool):
    """Return the steps that are left, as a bar with loss and tokens a second: on stderr, in a notebook on stdout.

    Jupyter shows stderr as an alarm, in red. A bar that was taken away would leave an empty red line there.
    tqdm's own widget would stand in the saved notebook as a broken one, and it does not read TQDM_DISABLE.
    """
    steps = range(run.step, run.settings.n_steps)
    hidden = {} if show and is_main() else {"disable": True}  # shown: TQDM_DISABLE may still hide it
    bar = tqdm(
        steps,
        initial=run.step,
        total=run.settings.n_steps,
        desc=run.plan.title,
        unit="step",
        leave=False,
        mininterval=0.5,
        file=sys.stdout if in_notebook() else sys.stderr,
        **hidden,
    )
    run.bar = bar
    return bar


def peak_bytes() -> int | None:
    """Return the most memory that the GPU's allocator held; None on a CPU."""
    if not torch.cuda.is_available():
        return None
    return torch.cuda.max_memory_allocated()
