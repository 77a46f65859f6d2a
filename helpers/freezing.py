"""Freezing from plan to proof: everything to freeze with, and the proof afterwards that nothing frozen moved.

    plan = FreezePlan.freeze("attention", "embeddings")
    print(plan.apply(model))                      # the ledger
    optimizer = AdamW(p for p in model.parameters() if p.requires_grad)
    before = snapshot(model, optimizer)
    ...                                           # train
    freezing_proof(before, model, optimizer).check()
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from helpers.anatomy import anatomy
from helpers.models import tensor_bytes
from helpers.plans import COURSE_PLANS, FreezePlan, Ledger, LedgerRow, undo
from helpers.selectors import PlanError

__all__ = ["COURSE_PLANS", "FreezePlan", "FreezingError", "Ledger", "LedgerRow", "PlanError", "Proof", "Snapshot",
           "freezing_proof", "snapshot", "tensor_hash", "undo"]


class FreezingError(AssertionError):
    """A frozen tensor that is not frozen. The message names the tensors."""

@dataclass(frozen=True)
class Snapshot:
    """A model before training: a hash of each parameter and buffer, what was frozen, and each one's rate."""

    hashes: dict[str, str]
    frozen: frozenset[str]
    rates: dict[str, float]


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
        return _listed(f"{self.n_frozen_tensors} frozen tensors ({self.n_frozen_parameters:,} parameters) and "
                       f"{self.n_buffers} buffers are bit-identical, without gradient or optimizer state; "
                       f"{self.n_moved} of {self.n_trainable_tensors} trainable tensors moved.", self.notes)


def snapshot(model: nn.Module, optimizer=None) -> Snapshot:
    """Hash every parameter and buffer. Take it after the plan is applied and before training.

    Args:
        optimizer: one or several, to remember the learning rates as they are now.
    """
    held = _held(optimizer)
    parameters = dict(model.named_parameters())
    rates = {name: float(held[id(p)][0]["lr"]) for name, p in parameters.items() if id(p) in held}
    hashes = {name: tensor_hash(t) for name, t in (parameters | dict(model.named_buffers())).items()}
    return Snapshot(hashes, frozenset(n for n, p in parameters.items() if not p.requires_grad), rates)


def freezing_proof(before: Snapshot, model: nn.Module, optimizer=None, plan: FreezePlan | None = None,
                   roles: dict[str, str] | None = None) -> Proof:
    """Compare a model after training with its snapshot.

    Every frozen tensor and buffer must be bit-identical, without gradient, and unknown to the
    optimizer. Every trainable one that had a nonzero gradient and rate must have moved; the
    gradient is known from ``.grad`` or from the optimizer's state.

    Args:
        optimizer: the one used, or several, wrapped by accelerate or not.
        plan: where given, what is frozen must be exactly what this plan freezes.
        roles: as for `anatomy`, only needed with a plan.
    """
    held, parameters = _held(optimizer), dict(model.named_parameters())
    buffers = dict(model.named_buffers())
    frozen = {name: p for name, p in parameters.items() if not p.requires_grad}
    trainable = {name: p for name, p in parameters.items() if p.requires_grad}
    moved = {n for n, t in (parameters | buffers).items() if tensor_hash(t) != before.hashes.get(n)}
    problems = [*_changed_names(before, parameters | buffers), *_changed_flags(before, model, plan, roles)]
    for name, tensor in (frozen | buffers).items():
        kind = "frozen" if name in frozen else "a buffer"
        problems += _moved_or_held(f"{name} is {kind} but", tensor, name in moved and name in before.hashes, held)
    notes = []
    for name in (n for n in trainable if n not in moved):
        reason, is_wrong = _why_unmoved(name, trainable[name], before, held, optimizer is not None)
        (problems if is_wrong else notes).append(f"{name} is trainable but did not move: {reason}")
    return Proof(tuple(problems), len(frozen), sum(p.numel() for p in frozen.values()), len(buffers),
                 len(trainable), len(trainable.keys() & moved), tuple(notes))


def tensor_hash(tensor: torch.Tensor) -> str:
    """SHA-256 over a tensor's type, shape and bytes."""
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    digest.update(tensor_bytes(tensor))
    return digest.hexdigest()


def _held(optimizer) -> dict[int, tuple[dict, dict]]:
    """id of each tensor that an optimizer holds, to its group and its state."""
    several = optimizer if isinstance(optimizer, Iterable) else [optimizer] if optimizer is not None else []
    return {id(p): (group, one.state.get(p, {})) for one in several
            for group in one.param_groups for p in group["params"]}


def _changed_names(before: Snapshot, tensors: dict[str, torch.Tensor]) -> list[str]:
    """Tensors that came or went: a head that lost its tie shows here."""
    return [f"{name} is {'new' if name in tensors else 'gone'} since the snapshot: was a tie made or broken?"
            for name in sorted(tensors.keys() ^ before.hashes.keys())]


def _changed_flags(before: Snapshot, model: nn.Module, plan: FreezePlan | None, roles) -> list[str]:
    """Parameters that train although the plan, or the snapshot, has them frozen; and the reverse."""
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    problems = [f"{name} was frozen at the snapshot and is trainable now" for name in flags
                if flags[name] and name in before.frozen]
    if plan is not None:
        wanted = plan.trainable_names(anatomy(model, roles))
        problems += [f"{name} is {'trainable' if flag else 'frozen'}, against the plan {plan.code}"
                     for name, flag in flags.items() if flag != (name in wanted)]
    for name, module in model.named_modules():
        if vars(module).get("requires_grad") is False and any(p.requires_grad for p in module.parameters()):
            problems.append(f"{name or 'model'}.requires_grad = False set a module's plain attribute and froze "
                            "nothing: call requires_grad_(False)")
    return problems


def _moved_or_held(what: str, tensor: torch.Tensor, has_moved: bool, held) -> list[str]:
    """What is wrong with one frozen tensor or buffer."""
    group, state = held.get(id(tensor), (None, {}))
    problems = []
    if has_moved:
        cause = ("no optimizer holds it, so other code changed it" if group is None else
                 f"the optimizer holds it, with weight decay {group.get('weight_decay', 0)} and "
                 f"{'momentum from earlier gradients' if _any_nonzero(state) else 'no momentum'}")
        problems.append(f"{what} moved: {cause}")
    if tensor.grad is not None:
        kind = "nonzero" if tensor.grad.any() else "all zeros, and zero is not absent"
        problems.append(f"{what} has a gradient ({kind}): set its .grad to None")
    if group is not None:
        kept = f"with state ({', '.join(state)})" if state else "without state so far"
        problems.append(f"{what} the optimizer holds it, {kept}: build the optimizer after freezing")
    return problems


def _why_unmoved(name: str, tensor: torch.Tensor, before: Snapshot, held, has_optimizer: bool) -> tuple[str, bool]:
    """Why a trainable tensor kept its value, and whether that is wrong."""
    if not has_optimizer:
        return "no optimizer was given, so its gradient is not known", False
    group, state = held.get(id(tensor), (None, {}))
    if group is None:
        return "no optimizer holds it; build the optimizer after the plan is applied", True
    if not any((group["lr"], group.get("initial_lr"), before.rates.get(name))):
        return "its learning rate is 0", False
    if _any_nonzero(state) or (tensor.grad is not None and tensor.grad.any()):
        return f"it had a gradient and a rate, so the steps are too small for {tensor.dtype} or were never taken", True
    return "no nonzero gradient was seen", False


def _any_nonzero(state: dict) -> bool:
    """Does an optimizer's state hold momentum? Its step count is none."""
    return any(bool(v.any()) for key, v in state.items() if key != "step" and torch.is_tensor(v))


def _listed(head: str, lines: tuple[str, ...], n: int = 10) -> str:
    more = [f"… and {len(lines) - n} more"] if len(lines) > n else []
    return "\n".join([head, *(f"  - {line}" for line in [*lines[:n], *more])])
