"""Change what trains in the middle of a run, and keep the optimizer's memory in order.

    optimizer = AdamW(p for p in model.parameters() if p.requires_grad)
    ...                                                     # some steps
    change_plan(model, optimizer, FreezePlan.only("layers:2-3"), lr=1e-4)

Three things go wrong by hand: a tensor that is made trainable but not given to the optimizer never
moves; a new optimizer forgets the moments of the old one; a tensor that is frozen again goes on moving
while the optimizer holds its gradient and its moments.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

from helpers.files import counted
from helpers.freezing.plans import FreezePlan, require_plan
from helpers.freezing.proof import require_optimizers
from helpers.models import anatomy

NUMBERS = frozenset(("lr", "eps", "momentum", "weight_decay"))  # settings of optimizers


class UnfreezingError(RuntimeError):
    """A model whose plan cannot be changed now. The message says what to do first."""


@dataclass(frozen=True)
class Change:
    """What a change of plan did, by parameter name."""

    thawed: tuple[str, ...]  # new in the optimizer, without moments
    refrozen: tuple[str, ...]  # taken out of it, moments and gradient dropped
    kept: tuple[str, ...]  # as they were, moments bit for bit

    def __str__(self) -> str:
        n_refrozen, n_kept = len(self.refrozen), len(self.kept)
        return (
            f"{counted(len(self.thawed), 'tensor', 'trains', 'train')} from here on, "
            f"{n_refrozen} no longer {'does' if n_refrozen == 1 else 'do'}, "
            f"{n_kept} {'goes on with its' if n_kept == 1 else 'go on with their'} moments"
        )


def change_plan(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    plan: FreezePlan,
    roles: dict[str, str] | None = None,
    **settings,
) -> Change:
    """Apply a plan to a model in training, and bring its optimizer in line.

    Tensors that train from here on become a new group, with the settings of the last group unless
    others are given. AdamW counts the steps of each tensor by itself, so a new one starts as in a
    new run: with moves of the full rate. Give such a group a warm-up, or a lower ``lr``.

    In several processes: DDP fixes what it sums when it wraps the model, and FSDP what it shares
    out. Change the plan on the bare model, in every process, and wrap it again.

    A learning-rate scheduler that was made before knows the old groups only, and PyTorch's `LambdaLR`
    stops at a new one. Make a new scheduler after the change.

    Args:
        optimizer: the one in use, wrapped by accelerate or not.
        settings: of the new group, such as ``lr``.

    Raises:
        UnfreezingError: the model is wrapped for several processes, the optimizer is another model's, or a setting is
            none of the optimizer's; model and optimizer are then unchanged.
        PlanError: the plan does not fit the model; model and optimizer are then unchanged.
    """
    if isinstance(model, (DistributedDataParallel, FSDPModule)):
        raise UnfreezingError(
            f"The model is wrapped ({type(model).__name__}), which fixed what is trained when it was "
            "made. Change the plan on the model inside, then wrap it again."
        )
    require_plan(plan)
    optimizer = getattr(optimizer, "optimizer", optimizer)  # the one inside accelerate's wrapper
    require_optimizers(optimizer)
    parameters = {id(parameter): parameter for parameter in model.parameters()}
    held = _held(optimizer)
    _require_fit(optimizer, held.keys() <= parameters.keys(), settings)
    plan.apply(model, roles)  # drops the gradients of what is frozen
    refrozen = [parameter for parameter in held.values() if not parameter.requires_grad]
    kept = [parameter for parameter in held.values() if parameter.requires_grad]
    new = [parameter for key, parameter in parameters.items() if key not in held]
    thawed = [parameter for parameter in new if parameter.requires_grad]
    _forget(optimizer, refrozen)
    if thawed:
        _add_group(optimizer, thawed, settings)
    return Change(_names(model, thawed), _names(model, refrozen), _names(model, kept))


def _require_fit(optimizer: torch.optim.Optimizer, is_of_model: bool, settings: dict) -> None:
    """Raise UnfreezingError for an optimizer of another model, or settings that a group of it cannot have."""
    if not is_of_model:
        raise UnfreezingError(
            "The optimizer holds tensors that are not in this model. Give the optimizer that trains this very model."
        )
    if unknown := sorted(settings.keys() - optimizer.defaults.keys()):
        raise UnfreezingError(
            f"{type(optimizer).__name__} knows no setting {', '.join(unknown)}; a group of it has "
            f"{', '.join(sorted(optimizer.defaults))}."
        )
    for name in sorted(settings.keys() & NUMBERS):
        value = settings[name]
        if not isinstance(value, Real) or isinstance(value, bool) or not 0 <= value < math.inf:
            raise UnfreezingError(f"The setting {name} must be a finite number, 0 or more; found {value!r}.")


def _held(optimizer: torch.optim.Optimizer) -> dict[int, torch.Tensor]:
    """Return all tensors of an optimizer, by id."""
    held = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            held[id(parameter)] = parameter
    return held


def _names(model: nn.Module, tensors: list[torch.Tensor]) -> tuple[str, ...]:
    """Return the names of these parameters, in their order."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return tuple(names[id(tensor)] for tensor in tensors)


def _add_group(optimizer: torch.optim.Optimizer, tensors: list[torch.Tensor], settings: dict) -> None:
    """Add a group with the settings of the last one, unless others are given."""
    group = dict(optimizer.param_groups[-1])
    group.pop("initial_lr", None)  # a scheduler's mark
    group.update(settings)
    group["params"] = tensors
    optimizer.add_param_group(group)


def _forget(optimizer: torch.optim.Optimizer, tensors: list[torch.Tensor]) -> None:
    """Take tensors out of an optimizer, moments and all. Groups stay, even empty: a scheduler may count them."""
    gone = {id(p) for p in tensors}
    for group in optimizer.param_groups:
        group["params"] = [p for p in group["params"] if id(p) not in gone]
    for tensor in tensors:
        optimizer.state.pop(tensor, None)


def layer_by_layer(model: nn.Module, roles: dict[str, str] | None = None) -> list[FreezePlan]:
    """Return plans for gradual unfreezing: first the last block alone, then the last two, and so on to all blocks.

    What is outside the blocks stays frozen (Howard and Ruder 2018, arXiv 1801.06146, unfreeze from
    the last layer down; in their recipe the embedding comes last).
    """
    last = anatomy(model, roles).n_layers - 1
    return [FreezePlan.only(f"layers:{first}-{last}") for first in range(last, -1, -1)]
