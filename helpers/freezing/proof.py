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

from helpers.files import counted, tensor_hash
from helpers.freezing.plans import COURSE_PLANS, FreezePlan, Ledger, LedgerRow, require_plan, undo
from helpers.freezing.selectors import PlanError
from helpers.models import anatomy, computed_buffers, named_buffers, named_modules, named_parameters

FREQUENCIES = "inv_freq"  # how the name of a buffer of rotary frequencies ends

__all__ = [
    "COURSE_PLANS",
    "FreezePlan",
    "FreezingError",
    "Ledger",
    "LedgerRow",
    "PlanError",
    "Proof",
    "Snapshot",
    "broken",
    "freezing_proof",
    "snapshot",
    "tensor_hash",
    "undo",
    "unheld",
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
    breaks: tuple[str, ...] = ()  # those of the problems that are more than a trainable tensor at rest
    knows_optimizer: bool = True  # False: none was given, so nothing is said of one

    @property
    def ok(self) -> bool:
        """Return whether nothing was found wrong."""
        return not self.problems

    def check(self) -> None:
        """Raise FreezingError with the tensors' names unless all is well."""
        if self.problems:
            raise FreezingError(str(self))

    def __str__(self) -> str:
        if self.problems:
            return _listed(f"Not proved, {len(self.problems)} found wrong:", self.problems)
        state = " or optimizer state" if self.knows_optimizer else " (no optimizer was given to look at)"
        return _listed(
            f"{counted(self.n_frozen_tensors, 'frozen tensor')} ({counted(self.n_frozen_parameters, 'parameter')}) and "
            f"{counted(self.n_buffers, 'buffer')} are bit-identical, without gradient{state}; "
            f"{self.n_moved} of {counted(self.n_trainable_tensors, 'trainable tensor')} moved.",
            self.notes,
        )


def snapshot(model: nn.Module, optimizer=None) -> Snapshot:
    """Hash every parameter and buffer. Take it after the plan is applied and before training.

    Args:
        optimizer: one or several, to remember the learning rates as they are now.

    Raises:
        NoValuesError: the model is on the meta device.
    """
    parameters = dict(named_parameters(model))
    tensors = parameters | dict(named_buffers(model))
    return Snapshot(
        hashes={name: tensor_hash(tensor) for name, tensor in tensors.items()},
        frozen=frozenset(name for name, parameter in parameters.items() if not parameter.requires_grad),
        rates=_rates(parameters, optimizer),
        kinds={name: _kind(tensor) for name, tensor in tensors.items()},
        ties=_ties(model),
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
    if not isinstance(before, Snapshot):
        raise TypeError(
            f"The proof needs what snapshot(model) gave before the training; found {type(before).__name__}."
        )
    if plan is not None:
        require_plan(plan)
    held = _held(optimizer)
    parameters, buffers = _tensors(before, model)
    frozen, trainable = _by_flag(parameters)
    moved = _moved(before, parameters | buffers)
    problems = _broken(before, model, held if optimizer is not None else None, moved)
    problems += _flags_against_plan(model, plan, roles)
    breaks = tuple(problems)

    notes = []
    for name, tensor in trainable.items():
        if name not in moved and name in before.hashes:
            reason, is_wrong = _why_unmoved(name, tensor, before, held, optimizer is not None)
            sentence = f"{name} is trainable but did not move: {reason}"
            (problems if is_wrong else notes).append(sentence)
    return Proof(
        problems=tuple(problems),
        n_frozen_tensors=len(frozen),
        n_frozen_parameters=sum(p.numel() for p in frozen.values()),
        n_buffers=len(buffers),
        n_trainable_tensors=len(trainable),
        n_moved=sum(name in moved for name in trainable),
        notes=tuple(notes),
        breaks=breaks,
        knows_optimizer=optimizer is not None,
    )


def broken(before: Snapshot, model: nn.Module, optimizer=None, among: Iterable[str] = ()) -> tuple[str, ...]:
    """Find what is wrong already while a model trains: the part of the proof that needs no end of training.

    Args:
        among: names of the tensors to hash; all else is looked at without arithmetic.

    Returns:
        The sentences of `freezing_proof`, none where all is well.
    """
    parameters, buffers = _tensors(before, model)
    suspects = {name: tensor for name, tensor in (parameters | buffers).items() if name in set(among)}
    held = None if optimizer is None else _held(optimizer)
    return tuple(_broken(before, model, held, _moved(before, suspects)))


def unheld(model: nn.Module, optimizer) -> tuple[str, ...]:
    """Find what trains by the plan and by no optimizer: one that was built before the plan was applied."""
    held = _held(optimizer)
    _, trainable = _by_flag(dict(named_parameters(model)))
    return tuple(
        f"{name} is trainable but no optimizer holds it: build the optimizer after the plan is applied"
        for name, parameter in trainable.items()
        if id(parameter) not in held
    )


def _broken(before: Snapshot, model: nn.Module, held: dict | None, moved: set[str]) -> list[str]:
    """Find what no moment of training allows. ``held`` is None where no optimizer is known."""
    parameters, buffers = _tensors(before, model)
    frozen, trainable = _by_flag(parameters)
    problems = _changed_names(before, parameters | buffers, _caches(before, model))
    problems += _changed_ties(before, model)
    problems += _changed_kinds(before, trainable)
    problems += _changed_frequencies(before, model)
    problems += _changed_flags(before, model)
    problems += _flags_on_modules(model)
    for name, tensor in frozen.items():
        problems += _moved_or_held(f"{name} is frozen but", tensor, name in moved, held)
    for name, tensor in buffers.items():
        problems += _moved_or_held(f"{name} is a buffer but", tensor, name in moved, held)
    if held is not None:
        problems += _moved_by_others(trainable, moved, held)
    return problems


def _tensors(before: Snapshot, model: nn.Module) -> tuple[dict[str, nn.Parameter], dict[str, torch.Tensor]]:
    """Return parameters and buffers by plain name, without the caches that a model grows as it needs them."""
    caches = _caches(before, model)
    buffers = {name: tensor for name, tensor in named_buffers(model) if name not in caches}
    return dict(named_parameters(model)), buffers


def _by_flag(parameters: dict[str, nn.Parameter]) -> tuple[dict[str, nn.Parameter], dict[str, nn.Parameter]]:
    """Return the frozen parameters and the trainable ones."""
    frozen = {name: p for name, p in parameters.items() if not p.requires_grad}
    trainable = {name: p for name, p in parameters.items() if p.requires_grad}
    return frozen, trainable


def require_optimizers(*optimizers) -> None:
    """Raise TypeError for what is no optimizer: it has no groups of parameters."""
    for one in optimizers:
        if not hasattr(one, "param_groups"):
            raise TypeError(f"An optimizer is needed, such as torch.optim.AdamW; found {type(one).__name__}.")


def _held(optimizer) -> dict[int, tuple[dict, dict]]:
    """Return, by the id of each tensor that an optimizer holds, its group and its state."""
    if optimizer is None:
        return {}
    held = {}
    several = optimizer if isinstance(optimizer, Iterable) else [optimizer]
    require_optimizers(*several)
    for one in several:
        for group in one.param_groups:
            for parameter in group["params"]:
                held[id(parameter)] = (group, one.state.get(parameter, {}))
    return held


def _rates(parameters: dict[str, nn.Parameter], optimizer) -> dict[str, float]:
    """Return the learning rate of each parameter that an optimizer holds."""
    held = _held(optimizer)
    rates = {}
    for name, parameter in parameters.items():
        if id(parameter) in held:
            group, _ = held[id(parameter)]
            rates[name] = float(group["lr"])
    return rates


def _moved(before: Snapshot, tensors: dict[str, torch.Tensor]) -> set[str]:
    """Return the names of the tensors whose bits are not those of the snapshot; a new one counts apart."""
    known = {name: tensor for name, tensor in tensors.items() if name in before.hashes}
    return {name for name, tensor in known.items() if tensor_hash(tensor) != before.hashes[name]}


def _kind(tensor: torch.Tensor) -> str:
    """Return type and shape as text: "float32 50257x768"."""
    kind = str(tensor.dtype).removeprefix("torch.")
    return f"{kind} {'x'.join(map(str, tensor.shape))}"


def _ties(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """Return, by the first name of each tensor that has several, all of its names."""
    names: dict[int, list[str]] = {}
    for name, parameter in named_parameters(model, every_name=True):
        names.setdefault(id(parameter), []).append(name)
    return {several[0]: tuple(several) for several in names.values() if len(several) > 1}


def _caches(before: Snapshot, model: nn.Module) -> set[str]:
    """Return the buffers that the model computed anew: grown, dropped, or frequencies."""
    now = dict(named_buffers(model))
    caches = set()
    for name in computed_buffers(model):
        if name not in now:
            is_anew = name in before.kinds
        else:
            is_anew = name.endswith(FREQUENCIES) or before.kinds.get(name) != _kind(now[name])
        if is_anew:
            caches.add(name)
    return caches


def _set_for_a_length(model: nn.Module) -> set[str]:
    """Return the rotary frequencies that a model sets anew in its forward, for the length of what it reads."""
    found = set()
    for name, module in named_modules(model).items():
        kinds = getattr(module, "rope_type", None)
        kinds = kinds.values() if isinstance(kinds, dict) else [kinds]
        if any(kind in ("dynamic", "longrope") for kind in kinds):
            found |= {
                f"{name}.{own}" for own in module._non_persistent_buffers_set if own.endswith(FREQUENCIES)
            }
    return found


def _changed_frequencies(before: Snapshot, model: nn.Module) -> list[str]:
    """Find rotary frequencies of the same type and shape that other code changed: they turn every query and key."""
    own = {name: tensor for name, tensor in named_buffers(model) if name.endswith(FREQUENCIES)}
    held = {name: tensor for name, tensor in own.items() if before.kinds.get(name) == _kind(tensor)}
    moved = _moved(before, held) - _set_for_a_length(model)
    return [
        f"{name} is a buffer but moved: the model does not set it anew, so other code changed it"
        for name in sorted(moved)
    ]


def _changed_names(before: Snapshot, tensors: dict[str, torch.Tensor], caches: set[str]) -> list[str]:
    """Find tensors that came or went: a head that lost its tie shows here."""
    problems = []
    for name in sorted((tensors.keys() ^ before.hashes.keys()) - caches):
        state = "new" if name in tensors else "gone"
        problems.append(f"{name} is {state} since the snapshot: was a tie made or broken?")
    return problems


def _changed_ties(before: Snapshot, model: nn.Module) -> list[str]:
    """Find tensors that share their memory with others than before, under names that are all still there."""
    now = _ties(model)
    problems = []
    for name in sorted(before.ties.keys() | now):
        if before.ties.get(name) != now.get(name) and name in before.hashes:
            once = ", ".join(before.ties.get(name, (name, "none"))[1:])
            today = ", ".join(now.get(name, (name, "none"))[1:])
            problems.append(f"{name} was one tensor with {once} at the snapshot and is one with {today} now")
    return problems


def _changed_kinds(before: Snapshot, trainable: dict[str, torch.Tensor]) -> list[str]:
    """Find trainable tensors of another type or shape: replaced, which no optimizer's step does."""
    problems = []
    for name, parameter in trainable.items():
        kind = _kind(parameter)
        if before.kinds.get(name, kind) != kind:
            problems.append(
                f"{name} is trainable and was {before.kinds[name]} at the snapshot, {kind} now: a step "
                "changes neither type nor shape"
            )
    return problems


def _changed_flags(before: Snapshot, model: nn.Module) -> list[str]:
    """Find parameters that were frozen at the snapshot and train now."""
    trainable = [name for name, parameter in named_parameters(model) if parameter.requires_grad]
    thawed = [name for name in trainable if name in before.frozen]
    return [f"{name} was frozen at the snapshot and is trainable now" for name in thawed]


def _flags_against_plan(model: nn.Module, plan: FreezePlan | None, roles) -> list[str]:
    """Find parameters that train although the plan freezes them, and the reverse."""
    if plan is None:
        return []
    wanted = plan.trainable_names(anatomy(model, roles))
    problems = []
    for name, parameter in named_parameters(model):
        if parameter.requires_grad != (name in wanted):
            state = "trainable" if parameter.requires_grad else "frozen"
            problems.append(f"{name} is {state}, against the plan {plan.code}")
    return problems


def _flags_on_modules(model: nn.Module) -> list[str]:
    """Find modules whose attribute says False while their parameters train."""
    problems = []
    for name, module in named_modules(model).items():
        says_frozen = vars(module).get("requires_grad") is False
        if says_frozen and any(parameter.requires_grad for parameter in module.parameters()):
            problems.append(
                f"{name or 'model'}.requires_grad = False set a module's plain attribute and froze "
                "nothing: call requires_grad_(False)"
            )
    return problems


def _moved_by_others(trainable: dict[str, torch.Tensor], moved: set[str], held) -> list[str]:
    """Find trainable tensors that changed although no optimizer holds them."""
    without = [name for name, p in trainable.items() if name in moved and id(p) not in held]
    return [
        f"{name} is trainable and changed, but no optimizer holds it: it was replaced after the optimizer "
        "was built, or other code changed it"
        for name in without
    ]


def _moved_or_held(what: str, tensor: torch.Tensor, has_moved: bool, held: dict | None) -> list[str]:
    """Say what is wrong with one frozen tensor or buffer: it moved, has a gradient, or is held."""
    group, state = (held or {}).get(id(tensor), (None, {}))
    problems = []
    if has_moved:
        cause = (
            "no optimizer was given, so what moved it is not known" if held is None else _cause(group, state)
        )
        problems.append(f"{what} moved: {cause}")
    if tensor.grad is not None:
        kind = "nonzero" if tensor.grad.any() else "all zeros, and zero is not absent"
        problems.append(f"{what} has a gradient ({kind}): set its .grad to None")
    if group is not None:
        kept = f"with state ({', '.join(state)})" if state else "without state so far"
        problems.append(f"{what} the optimizer holds it, {kept}: build the optimizer after freezing")
    return problems


def _cause(group: dict | None, state: dict) -> str:
    """Say what can have moved a frozen tensor."""
    if group is None:
        return "no optimizer holds it, so other code changed it"
    momentum = "momentum from earlier gradients" if _any_nonzero(state) else "no momentum"
    return f"the optimizer holds it, with weight decay {group.get('weight_decay', 0)} and {momentum}"


def _why_unmoved(
    name: str, tensor: torch.Tensor, before: Snapshot, held, has_optimizer: bool
) -> tuple[str, bool]:
    """Say why a trainable tensor kept its value, and whether that is wrong."""
    if not has_optimizer:
        return "no optimizer was given, so its gradient is not known", False
    group, state = held.get(id(tensor), (None, {}))
    if group is None:
        return "no optimizer holds it; build the optimizer after the plan is applied", True
    if not any((group["lr"], group.get("initial_lr"), before.rates.get(name))):
        return "its learning rate is 0", False
    has_gradient = tensor.grad is not None and bool(tensor.grad.any())
    if has_gradient or _any_nonzero(state):
        too_small = f"the steps are too small for {tensor.dtype} or were never taken"
        return f"it had a gradient and a rate, so {too_small}", True
    return "no nonzero gradient was seen", False


def _any_nonzero(state: dict) -> bool:
    """Return whether an optimizer's state holds momentum; its step count is none."""
    moments = [value for key, value in state.items() if key != "step" and torch.is_tensor(value)]
    return any(bool(moment.any()) for moment in moments)


def _listed(head: str, lines: tuple[str, ...], n: int = 10) -> str:
    """Put the first ``n`` lines below a head, and say how many more there are."""
    shown = [f"  - {line}" for line in lines[:n]]
    if len(lines) > n:
        shown.append(f"  - … and {len(lines) - n} more")
    return "\n".join([head, *shown])
