"""Rewinding: go back from the tuned weights towards the base, without training.

    theta = base + share * (tuned - base)           share 1: tuned; share 0: base

    rewind(model, base, 0.4)                        every tensor goes back to 40% of its change
    rewind(model, base, {"attention": 0.0})         attention is the base's again, all else stays tuned
    choose_share(model, base, loss_of, base_loss)   the smallest share that keeps most of the gain

The straight line between base and tuned weights is that of WiSE-FT (Wortsman and others 2022, arXiv 2109.01903).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Real

import torch
from torch import nn

from helpers.files import require_named
from helpers.freezing import parse_selectors, select
from helpers.models import Anatomy, anatomy, named_buffers, named_parameters

Base = nn.Module | Mapping[str, torch.Tensor]
Share = float | Mapping[str, float]
GRID = tuple(tenth / 10 for tenth in range(1, 11))  # 0.1, 0.2, … 1.0


class RewindError(ValueError):
    """A base or a share that does not fit the model. The message says what to do; the model is unchanged."""


@dataclass(frozen=True)
class Choice:
    """What `choose_share` found: the share, and the dev loss at each share that was tried, in nats per token."""

    share: float
    losses: dict[float, float]
    base_loss: float

    @property
    def gain_kept(self) -> float:
        """Return the gain at the chosen share as a part of the best gain; 0.0 where nothing was gained."""
        best_gain = self.base_loss - min(self.losses.values())
        if self.share not in self.losses or not best_gain > 0:
            return 0.0
        gain = self.base_loss - self.losses[self.share]
        return gain / best_gain


def rewind(model: nn.Module, base: Base, share: Share, roles: dict[str, str] | None = None) -> None:
    """Move the weights of ``model`` back towards ``base``, in place: theta = base + share * (tuned - base).

    Share 1 leaves the tuned weights, and share 0 gives those of the base, bit for bit. The line between them
    is computed in float32 at least, and rounded once to the type of the tensor.

    Args:
        model: holds the tuned weights.
        base: the base model, or name to the base's value for each tensor that differs. A tied tensor may be
            given under each of its names. Tensors that are not named are left as they are.
        share: from 0 to 1, for all tensors; or selector (see `helpers.freezing.selectors`) to share, such as
            ``{"attention": 0.5, "mlp": 1.0}``: what no selector takes stays tuned.
        roles: as for `anatomy`, for a family that it does not know.

    Raises:
        RewindError: a share outside 0 to 1; two selectors that take one tensor; a name that the model does not
            have, a buffer, an integer tensor, another shape or type, or two values for one tied tensor.
        PlanError, AnatomyError: as `select` and `anatomy` raise them.
    """
    parts = anatomy(model, roles)
    values = _values(model, parts, base)
    shares = shares_of(parts, share)
    tensors = dict(named_parameters(model))
    with torch.no_grad():
        for name, value in values.items():
            tensor = tensors[name]
            tensor.copy_(_between(value.to(tensor.device), tensor, shares.get(name, 1.0)))


@contextmanager
def rewound(
    model: nn.Module, base: Base, share: Share, roles: dict[str, str] | None = None
) -> Iterator[nn.Module]:
    """``with rewound(model, base, 0.4):`` rewinds for a while; the tuned weights come back, bit for bit."""
    names = _values(model, anatomy(model, roles), base)  # those that may differ
    tensors = dict(named_parameters(model))
    tuned = {name: tensors[name].detach().clone() for name in names}
    try:
        rewind(model, base, share, roles)
        yield model
    finally:
        with torch.no_grad():
            for name, tensor in tuned.items():
                tensors[name].copy_(tensor)


def choose_share(
    model: nn.Module,
    base: Base,
    loss_of: Callable[[nn.Module], float],
    base_loss: float,
    *,
    keep: float = 0.9,
    shares: Iterable[float] = GRID,
    roles: dict[str, str] | None = None,
) -> Choice:
    """Choose a share on the dev text; the model stays as it is.

    The rule: the smallest share that keeps at least ``keep`` of the gain at the best share. What is nearer to
    the base forgets less, so forgetting need not be measured. ``keep=1`` gives the share of the lowest loss. Where
    no share gains anything, the choice is 0: the base is better than what was trained.

    Args:
        loss_of: called once a share with the rewound model; the dev loss, in nats per token.
        base_loss: the dev loss of the base.
        keep: from 0 to 1.
        shares: what is tried; ten by default, so ten evaluations.

    Raises:
        RewindError: ``keep`` outside 0 to 1, no share to try, a loss that is no number, or as `rewind`.
    """
    if not 0 <= keep <= 1:
        raise RewindError(f"keep must be from 0 to 1, a part of the best gain; found {keep!r}.")
    _require_loss(base_loss, "of the base")
    losses = {}
    for share in sorted(shares):
        with rewound(model, base, share, roles):
            losses[share] = float(loss_of(model))
        _require_loss(losses[share], f"at share {share:g}")
    if not losses:
        raise RewindError("There is no share to try. Give at least one number from 0 to 1.")
    best_gain = base_loss - min(losses.values())
    if not best_gain > 0:
        return Choice(0.0, losses, base_loss)
    good = [share for share, loss in losses.items() if base_loss - loss >= keep * best_gain]
    return Choice(min(good), losses, base_loss)


def _require_loss(loss: float, where: str) -> None:
    """Raise RewindError for a loss that is no finite number: no share can be chosen by it."""
    if not isinstance(loss, Real) or not math.isfinite(loss):
        raise RewindError(
            f"The dev loss {where} is {loss!r}, not a number that can be compared. Look at what loss_of returns."
        )


# --- checked first, changed then -----------------------------------------------------


def _between(base: torch.Tensor, tuned: torch.Tensor, share: float) -> torch.Tensor:
    """Return base + share * (tuned - base); the ends are the tensors themselves."""
    if share == 0.0:
        return base
    if share == 1.0:
        return tuned
    work = torch.promote_types(tuned.dtype, torch.float32)
    return torch.lerp(base.to(work), tuned.to(work), share).to(tuned.dtype)


def _values(model: nn.Module, parts: Anatomy, base: Base) -> dict[str, torch.Tensor]:
    """Return the base's value of each tensor that may differ, by the tensor's first name.

    Raises:
        RewindError: see `rewind`.
    """
    if base is model:
        raise RewindError("The base is the tuned model itself. Give the base as it was before the training.")
    if not isinstance(base, (nn.Module, Mapping)):
        raise RewindError(f"The base is a model, or name to value; found {type(base).__name__}.")
    given = dict(named_parameters(base)) if isinstance(base, nn.Module) else base
    tensors, buffers = dict(named_parameters(model)), dict(named_buffers(model))
    require_named(given, torch.Tensor, "The base's values have names", least=0)
    first_names = _first_names(parts)
    values: dict[str, torch.Tensor] = {}
    for name, value in given.items():
        if name in buffers:
            raise RewindError(
                f"'{name}' is a buffer, not a weight: it is not trained, so it cannot be rewound. Leave "
                "it out of the base's values."
            )
        if name not in first_names:
            raise RewindError(
                f"The model has no weight '{name}'. Give the base of this very model, the "
                "one that it was trained from."
            )
        first = first_names[name]
        _require_alike(name, value.detach(), tensors[first])
        if first in values and not torch.equal(values[first], value):
            raise RewindError(
                f"'{name}' and '{first}' are one tensor in the model, and the base has two values "
                "for it. Give one of the two."
            )
        values[first] = value.detach()
    absent = sorted(set(first_names.values()) - values.keys())
    if isinstance(base, nn.Module) and absent:
        raise RewindError(
            f"The base has no weight '{absent[0]}'. Give the base of this very model, the one that it was trained from."
        )
    return values


def _first_names(parts: Anatomy) -> dict[str, str]:
    """Return, for each name of a tensor, the first one: a tied tensor has several."""
    first_names = {}
    for entry in parts.entries:
        for name in (entry.name, *entry.aliases):
            first_names[name] = entry.name
    return first_names


def _require_alike(name: str, value: torch.Tensor, tuned: torch.Tensor) -> None:
    """Raise RewindError unless both are of one floating type and of one shape."""
    if not (value.is_floating_point() and tuned.is_floating_point()):
        raise RewindError(
            f"'{name}' holds whole numbers ({value.dtype} in the base, {tuned.dtype} in the model): "
            "between two of them there is no weight. Leave it out, or load a floating type."
        )
    if (value.shape, value.dtype) != (tuned.shape, tuned.dtype):
        raise RewindError(
            f"'{name}' is {value.dtype} {tuple(value.shape)} in the base and {tuned.dtype} "
            f"{tuple(tuned.shape)} in the model. Give the base of this very model, in the same type."
        )


def shares_of(parts: Anatomy, share: Share) -> dict[str, float]:
    """Return the share of each tensor by name; one that is absent stays tuned.

    Raises:
        RewindError: a share outside 0 to 1, or two selectors that take one tensor.
        PlanError: a selector that is not known or finds nothing.
    """
    if not isinstance(share, Mapping):
        return dict.fromkeys(parts.names(), _checked(share, "The share"))
    shares: dict[str, float] = {}
    for selector, number in share.items():
        names = frozenset()
        for one in parse_selectors(selector):
            names |= select(parts, one)
        twice = sorted(names & shares.keys())
        if twice:
            raise RewindError(
                f"'{selector}' takes {twice[0]}, which another selector takes as well. Let each tensor "
                "have one share."
            )
        shares |= dict.fromkeys(names, _checked(number, f"The share of '{selector}'"))
    return shares


def _checked(share: float, what: str) -> float:
    """Return a share as a float, or raise RewindError."""
    is_number = isinstance(share, int | float) and not isinstance(share, bool)
    if not is_number or not 0 <= share <= 1:  # NaN is not in any range
        raise RewindError(f"{what} must be a number from 0 (base) to 1 (tuned); found {share!r}.")
    return float(share)
