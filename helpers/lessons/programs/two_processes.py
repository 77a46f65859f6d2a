"""The three steps in two processes. Each says what it saw; the main one keeps the weights."""

import json
import sys

import torch
import torch.distributed as dist
from accelerate import PartialState
from safetensors.torch import save_file

from helpers.lessons.programs.three_steps import train
from helpers.training import from_all, is_main


def main(folder: str) -> None:
    """Train, ask whether the processes talk, and write two.safetensors into the folder."""
    model, result = train(folder)
    me = PartialState().process_index  # 0 or 1
    number = torch.tensor([10.0**me])  # process 0 brings 1, process 1 brings 10
    dist.all_reduce(number)  # the sum, in both
    loss = result.history.steps[-1]["loss"]
    facts = from_all({"process": me, "sum": number.item(), "loss": loss})
    if is_main():
        print(json.dumps(facts))
        weights = {name: p.detach().clone() for name, p in model.named_parameters()}
        save_file(weights, f"{folder}/two.safetensors")


if __name__ == "__main__":
    main(sys.argv[1])
