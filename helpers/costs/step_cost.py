"""What a training step under a plan will cost, in bytes and FLOPs, before anything is trained.

The prediction comes from the config alone: one whole step (loss, backward, AdamW) is run on
tensors that have a shape but no numbers, and every tensor is counted while it is alive. So what
autograd keeps under a plan is not guessed: PyTorch itself decides it, as it will in training.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from numbers import Integral
from threading import get_ident
from unittest import mock

import pandas as pd
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import masking_utils
from transformers.integrations import moe

from helpers.costs.meter import KINDS, Flops, StepMeter
from helpers.files import require_kind, require_whole, seen
from helpers.freezing import (
    BottomError,
    FreezePlan,
    LoraError,
    PlanError,
    frozen_blocks,
    insert,
    require_plan,
    skipping,
)
from helpers.models import (
    ONE_AT_A_TIME,
    AnatomyError,
    LossError,
    ModelError,
    base_predictions,
    build_model,
    divergence_loss,
    enable_checkpointing,
    n_positions,
    next_token_loss,
    own_precision,
    require_config,
)

MIB = 2**20
MOST_WINDOWS = 1024  # held in memory at a time; the loss walks them one by one, also without numbers


class BudgetError(ValueError):
    """A setting that no training step can have. The message says what to change."""


class NotPredicted(BudgetError):
    """A model that can be trained, but whose step cannot be run on shapes alone. The message says why."""


@dataclass(frozen=True)
class ReplaySize:
    """How large a replay is; `replay.Replay.size` gives that of a real one.

    Attributes:
        n_windows: that are kept.
        batch: windows a step (at a time, where there is a micro-batch).
        length: tokens in a window.
        keeps_predictions: whether log-probabilities are kept; else hidden states and the base's head.
    """

    n_windows: int
    batch: int = 4
    length: int = 256
    keeps_predictions: bool = False

    def __post_init__(self):
        require_whole(self.n_windows, "n_windows are those that a replay keeps")


@dataclass(frozen=True)
class LoraSize:
    """Which matrices LoRA changes, a selector as for `freezing.insert`, and with what rank."""

    where: str
    rank: int


@dataclass(frozen=True)
class BottomSize:
    """How much of a frozen bottom is kept (`freezing.find_bottom`).

    Attributes:
        n_tokens: of all different windows that are read.
        in_memory: else a file holds it, and it takes no memory that the system cannot have back.
    """

    n_tokens: int
    in_memory: bool = True

    def __post_init__(self):
        require_whole(self.n_tokens, "n_tokens is of all windows that are read", least=0)


@dataclass(frozen=True)
class Budget:
    """The predicted cost of one step.

    Not all of ``bytes`` is alive at one time: gradients come while activations go. What is
    there at the fullest moment is ``at_peak``; compare *its* sum, `peak_bytes`, with a measurement.

    Attributes:
        R: trainable share of the parameters, ``n_trainable / n_parameters``.
        bytes: by kind, each in full. Activations are what autograd saved for the backward pass;
            logits all vocabulary-sized tensors at the moment with most of them.
        at_peak: by kind, what is alive at the fullest moment of the step, temporaries included
            (under activations, or logits where they are vocabulary-sized).
        flops: of the step, in three terms.
        at_most: of each kind alone, the most during the step, temporaries included.
    """

    plan: FreezePlan
    batch: int
    length: int
    n_parameters: int
    n_trainable: int
    R: float
    bytes: dict[str, int]
    at_peak: dict[str, int]
    flops: Flops
    at_most: dict[str, int] = field(default_factory=dict)

    @property
    def state_bytes(self) -> int:
        """Parameters, gradients and optimizer state: the part that does not depend on the batch."""
        return sum(self.bytes[kind] for kind in ("parameters", "gradients", "optimizer"))

    @property
    def total_bytes(self) -> int:
        """The sum of all kinds in full. They are not alive together; temporaries, which `at_peak` has, are not in it."""
        return sum(self.bytes.values())

    @property
    def peak_bytes(self) -> int:
        """Bytes alive at the fullest moment of the step."""
        return sum(self.at_peak.values())

    def table(self) -> pd.DataFrame:
        """MiB by kind, in full and at the peak."""
        rows = {kind: (self.bytes[kind] / MIB, self.at_peak[kind] / MIB) for kind in KINDS}
        rows["total"] = (self.total_bytes / MIB, self.peak_bytes / MIB)
        return pd.DataFrame.from_dict(rows, orient="index", columns=["MiB in full", "MiB at the peak"]).round(
            1
        )


def budget(
    config,
    plan: FreezePlan,
    batch: int,
    length: int,
    *,
    dtype: torch.dtype = torch.float32,
    attention: str = "fast",
    loss: str = "chunked",
    optimizer: str = "adamw",
    roles: dict[str, str] | None = None,
    checkpointing: bool = False,
    replay: ReplaySize | None = None,
    bottom: BottomSize | None = None,
    lora: LoraSize | None = None,
    frozen_dtype: torch.dtype = torch.float32,
    n_parts: int = 1,
    meter: Callable[[nn.Module], StepMeter] = StepMeter,
    on_shapes: bool = True,
) -> Budget:
    """Predict bytes and FLOPs of one training step from the config: no weights, no data.

    Args:
        config: any transformers config of a causal language model.
        batch: windows held in memory at a time (the micro-batch, where there is one).
        length: tokens in a window.
        dtype: float32, or bfloat16 for autocast: weights, gradients and moments stay float32.
        attention: ``"fast"``, the course's engine (SDPA, GPT-Neo with the fused GELU, as
            `models.load_model` makes it), or ``"eager"``, the config as it stands.
        loss: ``"chunked"`` (`losses.next_token_loss`) or ``"whole"`` (the model's own, all logits at once).
        optimizer: ``"adamw"``, PyTorch's fused one: two moments a parameter, no temporaries.
        roles: as in `anatomy`, for a family that it does not know.
        checkpointing: keep each block's input alone, and compute the block again in the backward
            pass (Chen and others 2016, arXiv 1604.06174). Its second forward pass is counted under
            ``flops.backward_input``.
        replay: adds its pass forward and backward to the step, and what it keeps to the buffers.
        bottom: leaves the frozen blocks at the start out of the step, and adds their kept output to the buffers.
            A model that has dropout is not trained so, which a config alone does not show.
        lora: inserts LoRA before the plan is applied, which is `LORA_PLAN` most often.
        frozen_dtype: of the frozen weights in memory: float32, or bfloat16 beside autocast in bfloat16.
        n_parts: micro-batches of a step, whose gradients add up: ``batch`` windows in memory at a time, and
            ``n_parts`` times as many in a step. FLOPs are those of the whole step.
        meter: makes what counts the step, out of the model.
        on_shapes: False runs the step on real numbers: the same count, quicker for a model of almost no size.

    Raises:
        BudgetError: batch or length below what a step needs, more windows at a time than any machine
            holds, a length over the model's positions, an unknown loss, optimizer or dtype; a bottom where
            none is frozen.
        NotPredicted: the model's shapes depend on the text (some mixtures of experts): it can be
            trained, and its cost cannot be told before.
        ModelError, PlanError, AnatomyError: as the modules before this one raise them.
    """
    require_plan(plan)
    require_config(config)
    check_step(config, batch, length, dtype, loss, optimizer)
    _check_frozen(frozen_dtype, dtype)
    if not isinstance(n_parts, int) or isinstance(n_parts, bool) or n_parts < 1:
        raise BudgetError(f"A step has 1 part or more; found n_parts={n_parts!r}.")
    for size, kind in ((replay, ReplaySize), (bottom, BottomSize), (lora, LoraSize)):
        if size is not None and not isinstance(size, kind):
            raise BudgetError(f"A {kind.__name__} is needed, or None; found {seen(size)}.")
    if replay is not None:
        check_step(config, replay.batch, replay.length, dtype, loss, optimizer)
    shapes = FakeTensorMode() if on_shapes else nullcontext()
    with _on_a_plain_machine(), shapes, _never_packed(), _experts_in_one():
        try:
            model = _build(config, attention)
            if lora is not None:
                insert(model, lora.where, lora.rank, alpha=2 * lora.rank)
            plan.apply(model, roles)
            _cast_frozen(model, frozen_dtype)
            if checkpointing:
                enable_checkpointing(model)
            counts = meter(model)
            skip = _skipped(model, counts, bottom, dtype)
            _run_step(model, counts, (batch, length), n_parts, dtype, loss, replay, skip)
        except BottomError as error:
            raise BudgetError(str(error)) from error
        except (AnatomyError, LoraError, LossError, ModelError, PlanError):
            raise
        except (
            AttributeError,
            LookupError,
            RuntimeError,
            TypeError,
            ValueError,
        ) as error:  # the family's forward
            raise NotPredicted(
                f"A step of this '{config.model_type}' model cannot be run on shapes alone "
                f"({(str(error).strip() or type(error).__name__).splitlines()[0]}). Measure a step instead."
            ) from error
    return _summary(model, counts, plan, batch, length)


def budget_or_reason(*args, **settings) -> tuple[Budget | None, str]:
    """The `budget` and no words; or None and the reason, in one line, why it is not predicted.

    Such a model can be trained all the same. What cannot be trained raises, as `budget` does.
    """
    try:
        return budget(*args, **settings), ""
    except NotPredicted as error:
        return None, str(error)


def compare(a: Budget, b: Budget) -> dict[str, float]:
    """What ``b`` costs as a share of ``a``: 0.9 is ten percent less. Speed-up is ``1 / step_flops``."""
    for one in (a, b):
        require_kind(one, Budget, "A cost is compared with another, each as budget gives it")
    return {
        "trainable": b.n_trainable / a.n_trainable,
        "state_bytes": b.state_bytes / a.state_bytes,
        "peak_bytes": b.peak_bytes / a.peak_bytes,
        "forward_flops": b.flops.forward / a.flops.forward,
        "step_flops": b.flops.step / a.flops.step,
    }


def measured(predicted: Budget, n_bytes: int, constant: int = 0) -> pd.DataFrame:
    """Predicted beside measured, in MiB.

    Args:
        n_bytes: the measured growth: the peak minus the size before the model was built.
        constant: bytes that the allocator and the libraries take whatever the plan.
    """
    rows = {kind: predicted.at_peak[kind] / MIB for kind in KINDS} | {"constant": constant / MIB}
    table = pd.DataFrame({"predicted": rows, "measured": dict.fromkeys(rows, float("nan"))})
    table.loc["total"] = [(predicted.peak_bytes + constant) / MIB, n_bytes / MIB]
    table["predicted / measured"] = table["predicted"] / table["measured"]
    return table.round(3)


# --- the step without numbers ------------------------------------------------------


def check_step(config, batch: int, length: int, dtype: torch.dtype, loss: str, optimizer: str) -> None:
    """Raise BudgetError where no step can have these settings."""
    for name, value, least in (("batch", batch, 1), ("length", length, 2)):
        if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
            raise BudgetError(f"The {name} must be a whole number of at least {least}; found {value!r}.")
    if batch > MOST_WINDOWS:
        raise BudgetError(
            f"A batch of {batch:,} windows at a time is more than this budget can walk ({MOST_WINDOWS:,} "
            "at most). Give the number that is in memory at a time: the micro-batch."
        )
    limit = n_positions(config)
    if limit is not None and length > limit:
        raise BudgetError(
            f"A window of {length} tokens does not fit: the model has {limit} positions. "
            f"Choose a length of at most {limit}."
        )
    known = {
        "loss": (loss, ("chunked", "whole")),
        "optimizer": (optimizer, ("adamw",)),
        "dtype": (dtype, (torch.float32, torch.bfloat16)),
    }
    for name, (value, choices) in known.items():
        if value not in choices:
            raise BudgetError(f"The {name} '{value}' is not known. Choose {' or '.join(map(str, choices))}.")


def _check_frozen(frozen_dtype: torch.dtype, dtype: torch.dtype) -> None:
    if frozen_dtype not in (torch.float32, torch.bfloat16):
        raise BudgetError(
            f"The frozen_dtype '{frozen_dtype}' is not known. Choose torch.float32 or torch.bfloat16."
        )
    if frozen_dtype is torch.bfloat16 and dtype is not torch.bfloat16:
        raise BudgetError(
            "Frozen weights in bfloat16 can be multiplied with float32 under autocast alone: give "
            "dtype=torch.bfloat16 as well."
        )


def _cast_frozen(model: nn.Module, dtype: torch.dtype) -> None:
    """Keep what is frozen in another precision."""
    for parameter in model.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)


@contextmanager
def _on_a_plain_machine() -> Iterator[None]:
    """Whatever the caller has switched on: a step in float32 on the CPU with gradients, and one such step at a time."""
    with ONE_AT_A_TIME, torch.inference_mode(False), torch.enable_grad(), torch.device("cpu"):
        with own_precision("cpu"), torch.autograd.set_detect_anomaly(False):
            yield


@contextmanager
def _replaced(module, name: str, replacement: Callable) -> Iterator[None]:
    """Another function in the place of a library's for a while, in this thread alone: others go on as before."""
    own, here = getattr(module, name), get_ident()

    def either(*args, **kwargs):
        return (replacement if get_ident() == here else own)(*args, **kwargs)

    with mock.patch.object(module, name, either):
        yield


def _never_packed():
    """Training windows are never packed. transformers looks at the position numbers to see that;
    here there are no numbers, and it would build masks for the general case."""
    return _replaced(masking_utils, "find_packed_sequence_indices", lambda position_ids: None)


def _experts_in_one():
    """A mixture of experts sorts its tokens by expert and multiplies each group by its expert's matrix. Together
    the groups are all tokens, so one expert that takes them all has the shapes and FLOPs of the whole. PyTorch's
    own grouped product runs on shapes in bfloat16 alone."""

    def product(x, matrices, offs):  # (pairs, in), (experts, in, out) -> (pairs, out)
        with torch.autocast("cpu", enabled=False):  # as PyTorch's own, which autocast does not know
            return x.to(matrices.dtype) @ matrices[0]

    return _replaced(moe, "_grouped_mm", product)


def _build(config, attention: str) -> nn.Module:
    config = copy.deepcopy(config)
    config.dtype = torch.float32  # whatever the weights on disk are stored as
    if attention == "fast" and config.model_type == "gpt_neo" and config.activation_function == "gelu_new":
        config.activation_function = "gelu_pytorch_tanh"
    return build_model(config, attention=attention).train()


def _run_step(
    model, meter: StepMeter, shape, n_parts: int, dtype, loss: str, replay: ReplaySize | None, skip
) -> None:
    """The training loop's step, in its order."""
    kept, head = _kept(model, meter, replay)
    trainable = [p for p in model.parameters() if p.requires_grad]
    adamw = torch.optim.AdamW(trainable, fused=True)
    with meter:
        _make_moments(adamw, trainable)
        meter.enter("forward")
        if replay is not None:
            ids = torch.zeros(replay.batch, replay.length, dtype=torch.long)
            with skip(*ids.shape), torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):
                base_of = base_predictions(kept[torch.arange(replay.batch)].flatten(0, 1), head)
                total = divergence_loss(model, ids, base_of)
            meter.enter("backward")
            total.backward()
            del base_of, total
            meter.enter("forward")
        for part in range(min(n_parts, 2)):  # a third part would be as the second: the gradients are there
            before = meter.terms.copy()
            if part:
                meter.enter("forward")
            _read_text(model, meter, shape, dtype, loss, skip)
        for term, n_flops in (meter.terms - before).items():
            meter.terms[term] += max(n_parts - 2, 0) * n_flops
        adamw.step()


def _read_text(model, meter: StepMeter, shape, dtype, loss: str, skip) -> None:
    """One part of a step: forward and backward."""
    ids = torch.zeros(*shape, dtype=torch.long)  # (batch, time)
    with skip(*shape), torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):
        if loss == "chunked":
            total, _ = next_token_loss(model, ids)
        else:
            total = model(input_ids=ids, labels=ids, use_cache=False).loss
    meter.enter("backward")
    total.backward()


def _skipped(model, meter: StepMeter, bottom: BottomSize | None, dtype: torch.dtype):
    """What leaves the frozen bottom out while windows of a shape are read; what is kept of it counts as buffers."""
    if bottom is None:
        return lambda batch, length: nullcontext()
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):
        blocks = frozen_blocks(model, torch.zeros(1, 2, dtype=torch.long))
    n_tokens, top = bottom.n_tokens if bottom.in_memory else 0, blocks[-1]
    kept = torch.empty(n_tokens, top.width, dtype=top.dtype)
    meter.hold([kept])

    @contextmanager
    def skip(batch: int, length: int):
        with skipping(blocks, kept.new_empty(batch, length, top.width)):
            yield

    return skip


def _kept(model, meter: StepMeter, replay: ReplaySize | None):
    """What a replay keeps of the base: (predictions or hidden states, head or None); counted as buffers."""
    if replay is None:
        return None, None
    own = model.get_output_embeddings()
    vocabulary, width = own.weight.shape
    head = None
    if not replay.keeps_predictions:
        head = nn.Linear(width, vocabulary, bias=own.bias is not None, dtype=torch.float32).requires_grad_(
            False
        )
    last = vocabulary if head is None else width
    kept = torch.empty(replay.n_windows, replay.length - 1, last, dtype=torch.float32)
    meter.hold([kept, *(head.parameters() if head is not None else ())])
    return kept, head


def _make_moments(adamw, trainable) -> None:
    """AdamW's state exists from the first step on; the step that is measured is a later one."""
    for p in trainable:
        p.grad = torch.zeros_like(p)
    adamw.step()
    adamw.zero_grad()


def _summary(model, meter: StepMeter, plan, batch, length) -> Budget:
    sizes = [(p.numel(), p.numel() * p.element_size(), p.requires_grad) for p in model.parameters()]
    n_parameters, n_trainable = sum(n for n, _, _ in sizes), sum(n for n, _, trains in sizes if trains)
    trained = sum(size for _, size, trains in sizes if trains)
    full = meter.kept | {
        "parameters": sum(size for _, size, _ in sizes),
        "gradients": trained,
        "logits": meter.at_most["logits"],
    }
    return Budget(
        plan,
        batch,
        length,
        n_parameters,
        n_trainable,
        n_trainable / n_parameters,
        full,
        meter.at_peak,
        meter.flops(),
        dict(meter.at_most),
    )
