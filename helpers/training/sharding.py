"""Fully sharded training (FSDP2): every process keeps a part of each tensor, and borrows the rest when it computes.

Under DDP each process holds the whole model, its gradients and the optimizer's moments. Here each
holds one share of all three. A block's whole weights are gathered just before the block computes,
and dropped after it (PyTorch, `torch.distributed.fsdp.fully_shard`; Zhao and others 2023,
arXiv 2304.11277, describe the idea). Frozen tensors are shared out as well: they have no gradient
and no moments, but their weights take room too.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from helpers.training.loop import TokenLoss
from helpers.training.processes import from_all, n_processes


def shard(loss_of: TokenLoss) -> FSDPModule:
    """Share out a model among all processes, in place: block by block, then what is outside the blocks.

    Apply the freeze plan before, and build the optimizer after: sharding puts new tensors in the
    place of the old ones, and keeps ``requires_grad`` and ties. Gradients are the mean over processes.

    accelerate's own FSDP setting is ignored on a CPU (1.15: plain DDP, without a word); this is not.
    """
    device = next(loss_of.parameters()).device.type
    mesh = init_device_mesh(device, (n_processes(),))
    for block in blocks_of(loss_of.model):
        fully_shard(block, mesh=mesh)
    return fully_shard(loss_of, mesh=mesh)


def blocks_of(model: nn.Module) -> nn.ModuleList:
    """The model's blocks: the longest list of modules that it has."""
    return max((m for m in model.modules() if isinstance(m, nn.ModuleList)), key=len)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """All of a tensor that is shared out, on every process. All of them must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def held_here(module: nn.Module) -> int:
    """Parameters that this process holds while nothing is computed; a tied one counts once."""
    return sum(p.to_local().numel() if isinstance(p, DTensor) else p.numel() for p in module.parameters())


def held_by_each(module: nn.Module) -> list[int]:
    """`held_here` of every process. All of them must call it."""
    return from_all(held_here(module))
