"""The three steps once more, in the plainest loop, the model shared among two processes."""

import json
import sys

import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from torch import nn
from torch.distributed.fsdp import FSDPModule

from helpers.lessons.programs.three_steps import PLAN, SETTINGS, read
from helpers.training import (
    TokenLoss,
    batch_rows,
    build_optimizer,
    held_by_each,
    is_main,
    join,
    own_share,
    set_rate,
    shard,
    whole,
)


def train(accelerator: Accelerator, model: nn.Module, windows: torch.Tensor) -> FSDPModule:
    """Share out the model and train for three steps; return the module that was shared out."""
    loss_of = shard(TokenLoss(model))  # after the plan, before the optimizer
    optimizer = build_optimizer(model, SETTINGS)
    for step in range(SETTINGS.n_steps):
        set_rate(optimizer, SETTINGS.rate_at(step))
        rows = batch_rows(len(windows), SETTINGS.batch, step, SETTINGS.seed)
        n_tokens = len(rows) * (windows.size(1) - 1)  # of both processes together
        own = windows[own_share(rows, accelerator)]  # (own windows, time)
        total = loss_of(own)
        (total * accelerator.num_processes / n_tokens).backward()
        optimizer.step()
        optimizer.zero_grad()
    return loss_of


def main(folder: str) -> None:
    """Train, ask what each process holds, and write sharded.safetensors into the folder."""
    accelerator = join(torch.device("cpu"))
    model, windows = read(folder)
    PLAN.apply(model)
    loss_of = train(accelerator, model, windows)

    embedding = model.get_input_embeddings().weight
    head = model.get_output_embeddings().weight
    kind = type(loss_of).__name__
    facts = {"held": held_by_each(loss_of), "type": kind, "tied": head is embedding}
    weights = {name: whole(p).detach().clone() for name, p in model.named_parameters()}
    if is_main():
        print(json.dumps(facts))
        save_file(weights, f"{folder}/sharded.safetensors")


if __name__ == "__main__":
    main(sys.argv[1])
