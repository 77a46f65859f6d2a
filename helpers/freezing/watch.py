"""A watch over a frozen model while it trains: the freezing proof, kept running for less than anybody notices.

Each step it looks at what costs no arithmetic: is each tensor the same object, at the same place, of the same
type, with the same flag, and has autograd's version counter stood still? What the optimizer holds is looked at as
well. A write through ``.data`` leaves that counter alone, so every few steps one slice of each frozen tensor is
hashed, the next slice the next time. Whatever is odd goes to the proof, which alone decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral

import torch
from torch import nn

from helpers.files import tensor_hash
from helpers.freezing.proof import FreezingError, broken, require_optimizers, snapshot, unheld
from helpers.models import computed_buffers, named_buffers, named_parameters

N_SLICES = 16  # a check hashes one of so many parts of each frozen tensor


def require_every(every: int) -> None:
    """Raise ValueError for what is no number of steps between two sampled checks."""
    if not isinstance(every, Integral) or isinstance(every, bool) or every < 1:
        raise ValueError(f"every must be 1 step or more; found {every}.")


class Watch:
    """See the first frozen tensor that moves, in the step in which it does.

    Make it after the plan is applied and before training.

    Attributes:
        before: the `Snapshot` of that moment.
        hashed_bytes: what the sampled checks have hashed so far.

    Args:
        every: steps between two sampled checks. A write that autograd does not count (through ``.data``) is seen
            at the next one where it reaches the slice that is hashed then, after ``16 * every`` steps at the latest.
    """

    def __init__(self, model: nn.Module, every: int = 20):
        require_every(every)
        self.model = model
        self.every = every
        self.optimizer = None
        self.before = snapshot(model)
        self.hashed_bytes = 0
        self._n_checks = 0
        self._marks = _marks(model)
        self._held = ()
        frozen = self._fixed()
        self._slices = {
            name: [tensor_hash(_slice(tensor, part)) for part in range(N_SLICES)]
            for name, tensor in frozen.items()
        }

    def hold(self, *optimizers) -> None:
        """Take the optimizers that train the model, and look at what they hold.

        Raises:
            FreezingError: a frozen tensor is held, or a trainable one is not.
        """
        require_optimizers(*optimizers)
        self.optimizer = optimizers
        self._held = _held(optimizers)
        stop("step 0", broken(self.before, self.model, optimizers) + unheld(self.model, optimizers))

    def look(self, step: int, sampled: bool = True) -> None:
        """Look at every tensor and at the optimizer; at each ``every``-th step hash a slice of what is frozen.

        Args:
            step: the number of steps that were taken.
            sampled: False for a look between two steps, that hashes nothing.

        Raises:
            FreezingError: with the step and the tensors.
        """
        marks = _marks(self.model)
        held = _held(self.optimizer)
        odd = {name for name in marks.keys() | self._marks if marks.get(name) != self._marks.get(name)}
        is_due = sampled and step > 0 and step % self.every == 0
        by_hash = self._of_other_bytes() if is_due else set()
        when = f"step {step}"
        if by_hash - odd:
            when = f"step {step}, by a sampled check, the last one was at step {step - self.every}"
        odd |= by_hash
        if not odd and held == self._held:
            return
        problems = broken(self.before, self.model, self.optimizer, odd)
        if held != self._held:
            problems += unheld(self.model, self.optimizer)
        stop(when, problems)
        self._marks = marks  # the same values, written again or at another place
        self._held = held

    def _fixed(self) -> dict[str, torch.Tensor]:
        """Return the frozen parameters and the buffers that are stored, by name."""
        parameters = {name: p for name, p in named_parameters(self.model) if not p.requires_grad}
        computed = computed_buffers(self.model)
        return parameters | {name: b for name, b in named_buffers(self.model) if name not in computed}

    def _of_other_bytes(self) -> set[str]:
        """Hash the next slice of each frozen tensor; return the names of those that changed in it."""
        part = self._n_checks % N_SLICES
        self._n_checks += 1
        changed = set()
        for name, tensor in self._fixed().items():
            piece = _slice(tensor, part)
            self.hashed_bytes += piece.numel() * piece.element_size()
            if name in self._slices and tensor_hash(piece) != self._slices[name][part]:
                changed.add(name)
        return changed


def stop(when: str, problems: Sequence[str]) -> None:
    """Raise FreezingError where there is a problem: first the step, then the tensor."""
    if problems:
        rest = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise FreezingError(f"Stopped at {when}: {problems[0]}{rest}")


def _marks(model: nn.Module) -> dict[str, tuple]:
    """Return, by name, what of a tensor changes when it is written, replaced, cast or thawed."""
    tensors = named_parameters(model, every_name=True) + named_buffers(model)
    return {name: _mark(tensor) for name, tensor in tensors}


def _mark(tensor: torch.Tensor) -> tuple:
    """A trainable tensor is written in each step, so only its kind and its identity count."""
    kept = (id(tensor), tensor.dtype, tensor.shape, tensor.requires_grad)
    if tensor.requires_grad:
        return kept
    return (*kept, tensor._version, tensor.data_ptr(), tensor.grad is None)


def _held(optimizers) -> tuple[tuple[int, ...], ...]:
    """Return the tensors that each group of each optimizer holds, by their ids."""
    return tuple(
        tuple(id(parameter) for parameter in group["params"])
        for optimizer in optimizers or ()
        for group in optimizer.param_groups
    )


def _slice(tensor: torch.Tensor, part: int) -> torch.Tensor:
    """Return one of the parts of a tensor, in row order; a small tensor has empty ones."""
    flat = tensor.detach().reshape(-1)
    length = -(-flat.numel() // N_SLICES)
    return flat[part * length : (part + 1) * length]
