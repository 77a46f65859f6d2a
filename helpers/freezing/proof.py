"""Freezing from plan to proof: everything to freeze with, and the proof afterwards that nothing frozen moved.

plan = FreezePlan.freeze("attention", "embeddings")
print(plan.apply(model))                      # the ledger
optimizer = AdamW(p for p in model.parameters() if p.requires_grad)
before = snapshot(model, optimizer)
...                                           # train
freezing_proof(before, model, optimizer).check()
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import nn

from helpers.files import tensor_hash
from helpers.freezing.plans import COURSE_PLANS, FreezePlan, Ledger, LedgerRow, undo
from helpers.freezing.selectors import PlanError
from helpers.models import anatomy, computed_buffers, named_buffers, named_modules, named_parameters

__all__ = [
    "COURSE_PLANS",
    "FreezePlan",
    "FreezingError",
    "Ledger",
    "LedgerRow",
    "PlanError",
    "Proof",
    "Snapshot",
    "freezing_proof",
    "snapshot",
    "tensor_hash",
    "undo",
]


class FreezingError(AssertionError):
    """A frozen tensor that is not frozen. The message names the tensors."""


@dataclass(frozen=True)
class Snapshot:
    """A model before training, by plain names (`helpers.models.names`).

    Attributes:
        hashes: of each parameter and buffer.
        frozen: the parameters that were frozen.
        rates: learning rate of each parameter that an optimizer held.
        kinds: type and shape of each parameter and buffer.
        ties: name to all names of a tensor, where it has several.
    """

    hashes: dict[str, str]
    frozen: frozenset[str]
    rates: dict[str, float]
    kinds: dict[str, str] = field(default_factory=dict)
    ties: dict[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Proof:
    """What `freezing_proof` found. Tied tensors count once; buffers are not parameters."""

    problems: tuple[str, ...]  # one sentence each, with the tensor's name
    n_frozen_tensors: int
    n_frozen_parameters: int
    n_buffers: int
    n_trainable_tensors: int
    n_moved: int
    notes: tuple[str, ...] = ()  # trainable tensors that rightly did not move

    @property
    def ok(self) -> bool:
        return not self.problems

    def check(self) -> None:
        """Raise FreezingError with the tensors' names unless all is well."""
        if self.problems:
            raise FreezingError(str(self))

    def __str__(self) -> str:
        if self.problems:
            return _listed(f"Not proved, {len(self.problems)} found wrong:", self.problems)
        return _listed(
            f"{self.n_frozen_tensors} frozen tensors ({self.n_frozen_parameters:,} parameters) and "
            f"{self.n_buffers} buffers are bit-identical, without gradient or optimizer state; "
            f"{self.n_moved} of {self.n_trainable_tensors} trainable tensors moved.",
            self.notes,
        )


def snapshot(model: nn.Module, optimizer=None) -> Snapshot:
    """Hash every parameter and buffer. Take it after the plan is applied and before training.

    Args:
        optimizer: one or several, to remember the learning rates as they are now.
    """
    held = _held(optimizer)
    parameters = dict(named_parameters(model))
    rates = {name: float(held[id(p)][0]["lr"]) for name, p in parameters.items() if id(p) in held}
    tensors = parameters | dict(named_buffers(model))
    return Snapshot(
        {name: tensor_hash(t) for name, t in tensors.items()},
        frozenset(n for n, p in parameters.items() if not p.requires_grad),
        rates,
        {name: _kind(t) for name, t in tensors.items()},
        _ties(model),
    )


def freezing_proof(
    before: Snapshot,
    model: nn.Module,
    optimizer=None,
    plan: FreezePlan | None = None,
    roles: dict[str, str] | None = None,
) -> Proof:
    """Compare a model after training with its snapshot.

    Every frozen tensor and buffer must be bit-identical, without gradient, and unknown to the
    optimizer. Every trainable one that had a nonzero gradient and rate must have moved; the
    gradient is known from ``.grad`` or from the optimizer's state. One that moved must be held by the
    optimizer, where one is given, and no tensor may have got another type, shape or tie. A table that a
    model grows or recomputes as it needs it (a cache of positions) is no weight and is left out.

    Args:
        optimizer: the one used, or several, wrapped by accelerate or not.
        plan: where given, what is frozen must be exactly what this plan freezes.
        roles: as for `anatomy`, only needed with a plan.
    """
    held, parameters = _held(optimizer), dict(named_parameters(model))
    caches = _caches(before, model)
    buffers = {name: tensor for name, tensor in named_buffers(model) if name not in caches}
    frozen = {name: p for name, p in parameters.items() if not p.requires_grad}
    trainable = {name: p for name, p in parameters.items() if p.requires_grad}
    moved = {n for n, t in (parameters | buffers).items() if tensor_hash(t) != before.hashes.get(n)}
    problems = [
        *_changed_names(before, parameters | buffers, caches),
        *_changed_ties(before, model),
        *_changed_kinds(before, trainable),
        *_changed_flags(before, model, plan, roles),
    ]
    for name, tensor in (frozen | buffers).items():
        kind = "frozen" if name in frozen else "a buffer"
        problems += _moved_or_held(
            f"{name} is {kind} but", tensor, name in moved and name in before.hashes, held
        )
    if optimizer is not None:
        problems += [
            f"{name} is trainable and changed, but no optimizer holds it: it was replaced after the optimizer "
            "was built, or other code changed it"
            for name, p in trainable.items()
            if name in moved and name in before.hashes and id(p) not in held
        ]
    notes = []
    for name in (n for n in trainable if n not in moved):
        reason, is_wrong = _why_unmoved(name, trainable[name], before, held, optimizer is not None)
        (problems if is_wrong else notes).append(f"{name} is trainable but did not move: {reason}")
    return Proof(
        tuple(problems),
        len(frozen),
        sum(p.numel() for p in frozen.values()),
        len(buffers),
        len(trainable),
        len(trainable.keys() & moved),
        tuple(notes),
    )


def _held(optimizer) -> dict[int, tuple[dict, dict]]:
    """id of each tensor that an optimizer holds, to its group and its state."""
    several = optimizer if isinstance(optimizer, Iterable) else [optimizer] if optimizer is not None else []
    return {
        id(p): (group, one.state.get(p, {}))
        for one in several
        for group in one.param_groups
        for p in group["params"]
    }


def _kind(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {'x'.join(map(str, tensor.shape))}"


def _ties(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """The first name of each tensor that has several, to all of them."""
    names: dict[int, list[str]] = {}
    for name, parameter in named_parameters(model, every_name=True):
        names.setdefault(id(parameter), []).append(name)
    return {several[0]: tuple(several) for several in names.values() if len(several) > 1}


def _caches(before: Snapshot, model: nn.Module) -> frozenset[str]:
    """Buffers that the model computes itself and computed anew: grown, dropped, or frequencies set for a length."""
    found, computed = dict(named_buffers(model)), computed_buffers(model)
    gone = {name for name in before.kinds if name in computed and name not in found}
    return frozenset(
        gone
        | {
            name
            for name, tensor in found.items()
            if name in computed and (before.kinds.get(name) != _kind(tensor) or name.endswith("inv_freq"))
        }
    )


def _changed_ties(before: Snapshot, model: nn.Module) -> list[str]:
    """Tensors that share their memory with others than before, under names that are all still there."""
    now = _ties(model)
    return [
        f"{name} was one tensor with {', '.join(before.ties.get(name, (name, 'none'))[1:])} at the snapshot and is "
        f"one with {', '.join(now.get(name, (name, 'none'))[1:])} now"
        for name in sorted(before.ties.keys() | now)
        if before.ties.get(name) != now.get(name) and name in before.hashes
    ]


def _changed_kinds(before: Snapshot, trainable: dict[str, torch.Tensor]) -> list[str]:
    """Trainable tensors of another type or shape: replaced, which no optimizer's step does."""
    return [
        f"{name} is trainable and was {before.kinds[name]} at the snapshot, {_kind(p)} now: a step changes neither "
        "type nor shape"
        for name, p in trainable.items()
        if before.kinds.get(name, _kind(p)) != _kind(p)
    ]


def _changed_names(before: Snapshot, tensors: dict[str, torch.Tensor], caches: frozenset[str]) -> list[str]:
    """Tensors that came or went: a head that lost its tie shows here."""
    return [
        f"{name} is {'new' if name in tensors else 'gone'} since the snapshot: was a tie made or broken?"
        for name in sorted((tensors.keys() ^ before.hashes.keys()) - caches)
    ]


def _changed_flags(before: Snapshot, model: nn.Module, plan: FreezePlan | None, roles) -> list[str]:
    """Parameters that train although the plan, or the snapshot, has them frozen; and the reverse."""
    flags = {name: p.requires_grad for name, p in named_parameters(model)}
    problems = [
        f"{name} was frozen at the snapshot and is trainable now"
        for name in flags
        if flags[name] and name in before.frozen
    ]
    if plan is not None:
        wanted = plan.trainable_names(anatomy(model, roles))
        problems += [
            f"{name} is {'trainable' if flag else 'frozen'}, against the plan {plan.code}"
            for name, flag in flags.items()
            if flag != (name in wanted)
        ]
    for name, module in named_modules(model).items():
        if vars(module).get("requires_grad") is False and any(p.requires_grad for p in module.parameters()):
            problems.append(
                f"{name or 'model'}.requires_grad = False set a module's plain attribute and froze "
                "nothing: call requires_grad_(False)"
            )
    return problems


def _moved_or_held(what: str, tensor: torch.Tensor, has_moved: bool, held) -> list[str]:
    """What is wrong with one frozen tensor or buffer."""
    group, state = held.get(id(tensor), (None, {}))
    problems = []
    if has_moved:
        cause = (
            "no optimizer holds it, so other code changed it"
            if group is None
            else f"the optimizer holds it, with weight decay {group.get('weight_decay', 0)} and "
            f"{'momentum from earlier gradients' if _any_nonzero(state) else 'no momentum'}"
        )
        problems.append(f"{what} moved: {cause}")
    if tensor.grad is not None:
        kind = "nonzero" if tensor.grad.any() else "all zeros, and zero is not absent"
        problems.append(f"{what} has a gradient ({kind}): set its .grad to None")
    if group is not None:
        kept = f"with state ({', '.join(state)})" if state else "without state so far"
        problems.append(f"{what} the optimizer holds it, {kept}: build the optimizer after freezing")
    return problems


def _why_unmoved(
    name: str, tensor: torch.Tensor, before: Snapshot, held, has_optimizer: bool
) -> tuple[str, bool]:
    """Why a trainable tensor kept its value, and whether that is wrong."""
    if not has_optimizer:
        return "no optimizer was given, so its gradient is not known", False
    group, state = held.get(id(tensor), (None, {}))
    if group is None:
        return "no optimizer holds it; build the optimizer after the plan is applied", True
    if not any((group["lr"], group.get("initial_lr"), before.rates.get(name))):
        return "its learning rate is 0", False
    if _any_nonzero(state) or (tensor.grad is not None and tensor.grad.any()):
        return (
            f"it had a gradient and a rate, so the steps are too small for {tensor.dtype} or were never taken",
            True,
        )
    return "no nonzero gradient was seen", False


def _any_nonzero(state: dict) -> bool:
    """Does an optimizer's state hold momentum? Its step count is none."""
    return any(bool(v.any()) for key, v in state.items() if key != "step" and torch.is_tensor(v))


def _listed(head: str, lines: tuple[str, ...], n: int = 10) -> str:
    more = [f"… and {len(lines) - n} more"] if len(lines) > n else []
    return "\n".join([head, *(f"  - {line}" for line in [*lines[:n], *more])])
