"""A tensor's own name, whatever the model was wrapped in.

``torch.compile`` puts ``_orig_mod.`` into every name, DistributedDataParallel ``module.`` in front of it. Plans,
proofs, deltas and adapters know a tensor by its name, so they all read names here.
"""

from __future__ import annotations

import torch
from torch import nn

from helpers.files import seen

ANYWHERE = frozenset(("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"))
IN_FRONT = "module"


def plain_name(name: str) -> str:
    """Return a dotted name without what wrappers added: "_orig_mod.module.lm_head.weight" is "lm_head.weight"."""
    parts = [part for part in name.split(".") if part not in ANYWHERE]
    while len(parts) > 1 and parts[0] == IN_FRONT:
        parts = parts[1:]
    return "" if parts == [IN_FRONT] else ".".join(parts)


def require_model(model) -> None:
    """Raise TypeError for what is no model, such as the name of one."""
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"A model is needed, as load_model gives it; found {seen(model)} ({type(model).__name__})."
        )


def config_of(model: nn.Module):
    """Return the config of a model of transformers, whatever it was wrapped in.

    Raises:
        TypeError: no model, or one that has no config.
    """
    config = getattr(unwrapped(model), "config", None)
    if config is None:
        raise TypeError(
            f"A language model of transformers is needed, as load_model gives it; found {type(unwrapped(model)).__name__}, "
            "which has no config."
        )
    return config


def named_parameters(model: nn.Module, every_name: bool = False) -> list[tuple[str, nn.Parameter]]:
    """Return plain names and parameters; a tied tensor once, or under ``every_name`` it has."""
    require_model(model)
    return [(plain_name(name), p) for name, p in model.named_parameters(remove_duplicate=not every_name)]


def named_buffers(model: nn.Module) -> list[tuple[str, torch.Tensor]]:
    """Return plain names and buffers."""
    require_model(model)
    return [(plain_name(name), buffer) for name, buffer in model.named_buffers()]


def computed_buffers(model: nn.Module) -> frozenset[str]:
    """Return the plain names of buffers that a model computes itself: no file of weights holds them."""
    return frozenset(
        plain_name(f"{name}.{own}" if name else own)
        for name, module in model.named_modules()
        for own in module._non_persistent_buffers_set
    )


def named_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Return plain name to module; of a wrapper and what it wraps, the wrapped one."""
    require_model(model)
    return {plain_name(name): module for name, module in model.named_modules()}


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model inside its wrappers: the one that has a config."""
    return named_modules(model)[""]
