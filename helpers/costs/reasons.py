"""Why a freeze saved little: what the backward pass still crosses, what fills the memory, and what would help.

print(explain_cost(model, FreezePlan.only("norms"), batch=8, length=512))
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from helpers.costs.step_cost import MIB, BottomSize, Budget, BudgetError, LoraSize, budget, compare
from helpers.files import counted
from helpers.freezing import FreezePlan, LoRALinear, PlanError, require_optimizers, require_plan
from helpers.models import (
    Anatomy,
    Entry,
    anatomy,
    build_on_meta,
    config_of,
    named_modules,
    named_parameters,
)

STALE, WEIGHTS, TRAINED, ACTIVATIONS, LOGITS = (
    "moments of frozen tensors",
    "weights",
    "gradients and moments",
    "activations",
    "logits",
)


@dataclass(frozen=True)
class CostReasons:
    """What a step under a plan costs, and why. Bytes are predicted, at the fullest moment of the step.

    Attributes:
        now: the budget of the step as it is; ``full`` of the same step with nothing frozen.
        lowest: the lowest trainable tensor.
        n_crossed: blocks that the backward pass goes through to reach it, of ``n_blocks``.
        bytes: by kind: weights, gradients, optimizer, activations, logits.
        cause: what takes most: one of `STALE`, `WEIGHTS`, `TRAINED`, `ACTIVATIONS`, `LOGITS`.
        change: the one change that would save most memory; "" where none of those tried saves any.
        saves: bytes that it would save.
        kept_share: the step's FLOPs with the frozen bottom computed once (`fit(cache_frozen=True)`), as a share of
            now; None where no bottom is frozen, or it is computed once already.
        kept_bytes: what is then kept of each token of the text, in memory or in a file; 0 where nothing is.
    """

    plan: FreezePlan
    now: Budget
    full: Budget
    lowest: str
    n_crossed: int
    n_blocks: int
    bytes: dict[str, int]
    stale_bytes: int
    cause: str
    change: str
    saves: int
    kept_share: float | None
    kept_bytes: int

    @property
    def peak_bytes(self) -> int:
        """Bytes at the fullest moment, with what an optimizer keeps for frozen tensors."""
        return sum(self.bytes.values())

    def __str__(self) -> str:
        share = compare(self.full, self.now)
        sizes = ", ".join(f"{kind} {size / MIB:,.1f}" for kind, size in self.bytes.items())
        lines = [
            f"{self.plan.title}: {self.now.R:.2%} of the parameters train; the peak is "
            f"{self.peak_bytes / self.full.peak_bytes:.2f} of full training's, the step "
            f"{share['step_flops']:.2f} of its FLOPs (predicted, {self.now.batch} x {self.now.length} tokens)",
            f"lowest trainable tensor: {self.lowest}; the backward pass crosses {self.n_crossed} of "
            f"{counted(self.n_blocks, 'block')}, the forward pass all",
            f"MiB at the peak: {sizes}",
            f"most of it: {self.cause}. {self.why}",
        ]
        if self.change:
            lines.append(f"what would help most: {self.change}, {self.saves / MIB:,.1f} MiB less")
        else:
            lines.append("none of the changes that were tried would make the peak lower")
        if self.kept_share is not None:
            lines.append(
                f"in time: with the frozen blocks at the start computed once for each window (cache_frozen) a step "
                f"has {self.kept_share:.2f} of these FLOPs; {self.kept_bytes:,} bytes are kept of each token of the text"
            )
        return "\n".join(lines)

    @property
    def why(self) -> str:
        """What stands behind the cause, in a sentence."""
        return {
            STALE: "The optimizer keeps two numbers for each frozen parameter that it trained before.",
            WEIGHTS: "A frozen weight still computes, so it stays in memory.",
            TRAINED: "Each trainable parameter takes 12 bytes more: its gradient and two moments.",
            ACTIVATIONS: f"To reach {self.lowest} the gradient goes through {self.n_crossed} of "
            f"{counted(self.n_blocks, 'block')}, frozen tensors in them too, and what it needs there is kept.",
            LOGITS: "The scores of the whole vocabulary do not depend on what is frozen.",
        }[self.cause]


def explain_cost(
    model: nn.Module, plan: FreezePlan, batch: int, length: int, optimizer=None, **settings
) -> CostReasons:
    """Explain what a step under a plan costs, and why it is not less.

    The model stays as it is. LoRA in it, checkpointing and frozen weights in bfloat16 are seen. Takes as long as
    some budgets: seconds.

    Args:
        batch, length: as for `budget`.
        optimizer: the one in use, to find what it keeps for tensors that are frozen.
        settings: more of `budget`'s, which win over what is seen in the model.

    Raises:
        BudgetError: a model that was changed by hand, so that its config no longer describes it; or weights of types
            that no budget knows, such as trainable ones in bfloat16.
        BudgetError, NotPredicted, PlanError: as `budget` raises them.
        TypeError: what is given as the optimizer is none.
    """
    require_plan(plan)
    parts = anatomy(model)
    _require_of_config(model, parts)
    trained = plan.trainable_names(parts)
    _require_of_types(model, trained)
    seen = _seen(model, trained) | settings
    now = budget(config_of(model), plan, batch, length, **seen)
    usual = {k: v for k, v in seen.items() if k not in ("lora", "frozen_dtype", "bottom")}  # of full training
    full = budget(config_of(model), FreezePlan.full(), batch, length, **usual)
    lowest = min((e for e in parts.entries if e.name in trained), key=_height)
    stale = _stale_bytes(model, trained, optimizer)
    changes = {name: now.peak_bytes - other.peak_bytes for name, other in _changed(model, plan, now, seen)}
    if stale:
        changes["build the optimizer anew, from what trains"] = stale
    best = max(changes, key=changes.get, default="")
    if best and changes[best] <= 0:
        best = ""
    return CostReasons(
        plan,
        now,
        full,
        lowest.name,
        _n_crossed(lowest, parts),
        parts.n_layers,
        _by_kind(now, stale),
        stale,
        _cause(now, stale),
        best,
        changes.get(best, 0),
        *_kept(model, plan, now, seen),
    )


def _require_of_config(model: nn.Module, parts: Anatomy) -> None:
    """Raise BudgetError for a model whose tensors are not those of its config, from which the step is predicted."""
    mine = {e.name: (e.shape, e.aliases) for e in parts.entries if e.part != "lora"}
    its = {e.name: (e.shape, e.aliases) for e in anatomy(build_on_meta(config_of(model))).entries}
    unlike = sorted(name for name in mine.keys() | its if mine.get(name) != its.get(name))
    if unlike:
        raise BudgetError(
            f"The model is not what its config describes: {unlike[0]} was added, taken away, tied or given another shape "
            f"({counted(len(unlike), 'such tensor')}), and the cost is predicted from the config. Set the config's "
            "fields for the change, or explain the model as it was loaded."
        )


def _require_of_types(model: nn.Module, trained: frozenset[str]) -> None:
    """Raise BudgetError for weights that take other bytes than a budget counts for them."""
    types = {name: parameter.dtype for name, parameter in named_parameters(model)}
    frozen = {types[name] for name in types.keys() - trained}
    unlike = sorted(name for name in trained if types[name] is not torch.float32)
    if not unlike and frozen not in (set(), {torch.float32}, {torch.bfloat16}):
        unlike = sorted(name for name in types.keys() - trained if types[name] is not torch.float32)
    if unlike:
        kind = str(types[unlike[0]]).removeprefix("torch.")
        state = "trains" if unlike[0] in trained else "is frozen"
        raise BudgetError(
            f"A cost is predicted for weights that train in float32, and frozen ones all in float32 or all in bfloat16; "
            f"{unlike[0]} {state}, and is in {kind} ({counted(len(unlike), 'such tensor')}). Load the model in float32, and "
            "cast all of what is frozen to bfloat16, or nothing."
        )


def _seen(model: nn.Module, trained: frozenset[str]) -> dict:
    """What `budget` must know of a model beside its config."""
    found = {"attention": "eager" if config_of(model)._attn_implementation == "eager" else "fast"}
    layers = {name: m for name, m in named_modules(model).items() if isinstance(m, LoRALinear)}
    if layers:
        where = "+".join(f"name:{name}.weight" for name in layers)
        found["lora"] = LoraSize(where, next(iter(layers.values())).rank)
    if any(getattr(module, "gradient_checkpointing", False) for module in model.modules()):
        found["checkpointing"] = True
    if any(p.dtype is torch.bfloat16 for name, p in named_parameters(model) if name not in trained):
        found |= {"dtype": torch.bfloat16, "frozen_dtype": torch.bfloat16}
    return found


def _height(entry: Entry) -> tuple[int, int]:
    """Where a tensor stands on the way up: what is under the blocks, the blocks, what is above them."""
    if entry.layer is not None:
        return 1, entry.layer
    return (0, 0) if entry.role.endswith("_embedding") or "embed" in entry.name else (2, 0)


def _n_crossed(lowest: Entry, parts: Anatomy) -> int:
    place, layer = _height(lowest)
    return {0: parts.n_layers, 1: parts.n_layers - layer, 2: 0}[place]


def _stale_bytes(model: nn.Module, trained: frozenset[str], optimizer) -> int:
    """Bytes that an optimizer keeps for tensors that this plan freezes."""
    if optimizer is None:
        return 0
    require_optimizers(optimizer)
    frozen = {p for name, p in named_parameters(model) if name not in trained}
    states = [state for p, state in optimizer.state.items() if p in frozen]
    return sum(t.nbytes for state in states for t in state.values() if isinstance(t, torch.Tensor))


def _kept(model: nn.Module, plan: FreezePlan, now: Budget, seen: dict) -> tuple[float | None, int]:
    """With the frozen bottom computed once: FLOPs as a share of now, and bytes kept of a token. Of none: (None, 0)."""
    if "bottom" in seen:
        return None, 0
    try:
        kept = budget(config_of(model), plan, now.batch, now.length, **seen | {"bottom": BottomSize(1)})
    except BudgetError:
        return None, 0
    return compare(now, kept)["step_flops"], kept.bytes["buffers"] - now.bytes["buffers"]


def _by_kind(now: Budget, stale: int) -> dict[str, int]:
    at_peak = now.at_peak
    return {
        "weights": at_peak["parameters"] + at_peak["buffers"],
        "gradients": at_peak["gradients"],
        "optimizer": at_peak["optimizer"] + stale,
        "activations": at_peak["activations"],
        "logits": at_peak["logits"],
    }


def _cause(now: Budget, stale: int) -> str:
    sizes = _by_kind(now, 0)
    shares = {
        STALE: stale,
        WEIGHTS: sizes["weights"],
        TRAINED: sizes["gradients"] + sizes["optimizer"],
        ACTIVATIONS: sizes["activations"],
        LOGITS: sizes["logits"],
    }
    return max(shares, key=shares.get)


def _changed(model: nn.Module, plan: FreezePlan, now: Budget, seen: dict) -> Iterator[tuple[str, Budget]]:
    """The changes that are tried, each alone, with the budget of the step that it would give."""

    def step(plan=plan, batch=now.batch, **changes) -> Budget:
        return budget(config_of(model), plan, batch, now.length, **seen | changes)

    if not seen.get("checkpointing"):
        yield "gradient checkpointing", step(checkpointing=True)
    if now.n_trainable < now.n_parameters and seen.get("frozen_dtype") is not torch.bfloat16:
        half = step(dtype=torch.bfloat16, frozen_dtype=torch.bfloat16)
        yield "frozen weights in bfloat16, under autocast", half
    if now.batch > 1:
        parts = 2 * seen.get("n_parts", 1)
        yield "half the windows at a time, in twice as many parts", step(batch=now.batch // 2, n_parts=parts)
    narrower = _with_frozen_half(plan, anatomy(build_on_meta(config_of(model))))
    if narrower is not None:
        yield f"freezing the first half too ({narrower.flag})", step(narrower)


def _with_frozen_half(plan: FreezePlan, parts: Anatomy) -> FreezePlan | None:
    """The plan with embeddings and the first half of the blocks frozen as well; None where it would be the same."""
    half = parts.n_layers // 2
    try:
        if plan.way == "freeze":
            narrower = FreezePlan.freeze(*plan.selectors, "first-half")
        elif any(":" in word or "@" in word or word in ("embeddings", "head") for word in plan.selectors):
            return None
        else:
            narrower = FreezePlan.only(*(f"{word}@{half}-{parts.n_layers - 1}" for word in plan.selectors))
        same = "lora" not in plan.selectors and narrower.trainable_names(parts) == plan.trainable_names(parts)
    except PlanError:
        return None
    return None if same else narrower
