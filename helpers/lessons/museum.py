"""A museum of broken freezes: eight short recipes, each of which does something else than its title says.

Mistakes 1 to 3 were found in published lessons, 5 in the article that the course tests; the code here is
the course's own. The recipes use GPT-Neo's parameter names.

    exhibit = EXHIBITS[0]
    exhibit.run(model, batches, frozen_now)

A recipe freezes, calls ``frozen_now()`` at the moment from which nothing frozen may move, trains on the
batches, and returns its optimizer. Run it on a copy of a model: it trains the model it gets.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim import AdamW, Optimizer

from helpers.freezing import FreezePlan
from helpers.models import anatomy, load_model, next_token_loss
from helpers.profiles import TINY

RATE = 1e-3
DECAY = 0.1

FrozenNow = Callable[[], object]
Batches = Sequence[torch.Tensor]


@dataclass(frozen=True)
class Exhibit:
    """One broken freeze.

    Attributes:
        number: 1 to 8.
        promise: what its title says stays fixed.
        plan: the same promise as a plan that keeps it.
        run: the recipe, ``run(model, batches, frozen_now) -> optimizer``.
    """

    number: int
    promise: str
    plan: FreezePlan
    run: Callable[[nn.Module, Batches, FrozenNow], Optimizer]

    @property
    def name(self) -> str:
        """Return the name of the recipe."""
        return self.run.__name__

    @property
    def code(self) -> str:
        """Return the recipe's source."""
        return inspect.getsource(self.run).rstrip()

    def promised(self, model: nn.Module) -> frozenset[str]:
        """Return the names of the parameters that the title says stay fixed."""
        parts = anatomy(model)
        return frozenset(parts.names()) - self.plan.trainable_names(parts)

    def __str__(self) -> str:
        return f'Exhibit {self.number}. Its title: "{self.promise}"\n\n{self.code}'


# --- what the recipes share --------------------------------------------------------


def train(
    model: nn.Module, optimizer: Optimizer, batches: Batches, *, set_to_none: bool = False
) -> Optimizer:
    """Take one optimizer step a batch, as a plain loop writes it.

    Args:
        batches: each (batch, time) token ids.
        set_to_none: True, PyTorch's default since 2.0, takes old gradients away. False fills them
            with zeros, as older loops do; a parameter that never had a gradient keeps None either way.
    """
    for batch in batches:
        optimizer.zero_grad(set_to_none=set_to_none)
        look(model, batch)
        optimizer.step()
    return optimizer


def look(model: nn.Module, batch: torch.Tensor) -> float:
    """Return the mean loss of a batch in nats per token; its gradients are left in ``.grad``."""
    loss, n_tokens = next_token_loss(model, batch)
    (loss / n_tokens).backward()
    return loss.item() / n_tokens


def fitting(model: nn.Module, batches: Batches) -> tuple[nn.Module, list[torch.Tensor]]:
    """Return a model and batches that the recipes fit: yours if it is a GPT-Neo, else the shipped miniature.

    The recipes ask what moves, not what is learned, so token ids of another vocabulary are folded into the
    miniature's (the remainder of the division by its size).
    """
    if model.config.model_type == "gpt_neo":
        return model, list(batches)
    print(f"The recipes use GPT-Neo's parameter names, so they run on {TINY.model_name}.")
    miniature = load_model(TINY.model, device=model.device)
    return miniature, [batch % miniature.config.vocab_size for batch in batches]


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that train."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


# --- the visitor's proof -----------------------------------------------------------


def copies(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return a copy of every parameter by its name: what a proof keeps before training."""
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def moved(before: dict[str, torch.Tensor], model: nn.Module) -> set[str]:
    """Return the names of the parameters that are no longer, bit for bit, what `copies` kept."""
    return {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}


# --- the exhibits ------------------------------------------------------------------


def kept_without_clone(model, batches, frozen_now):
    kept = {}
    for name, parameter in model.named_parameters():
        if "c_attn" in name:
            parameter.requires_grad = False
        if "attn" in name:
            kept[name] = parameter.data
    frozen_now()
    optimizer = train(model, AdamW(trainable(model), lr=RATE), batches)
    changes = [model.get_parameter(name).data - kept[name] for name in kept]
    largest = max(change.abs().max().item() for change in changes)
    print(f"its own check: largest change of an attention weight {largest}")
    return optimizer


def dot_h_rule(model, batches, frozen_now):
    for name, parameter in model.named_parameters():
        if ".h." in name:
            parameter.requires_grad = False
    frozen_now()
    return train(model, AdamW(trainable(model), lr=RATE), batches)


def inner_condition(model, batches, frozen_now):
    for name, parameter in model.named_parameters():
        if "attn" in name:
            if name.endswith("bias"):
                parameter.requires_grad = False
        else:
            parameter.requires_grad = True
    frozen_now()
    return train(model, AdamW(trainable(model), lr=RATE), batches)


def flag_on_module(model, batches, frozen_now):
    for block in model.transformer.h:
        block.attn.requires_grad = False
    frozen_now()
    return train(model, AdamW(trainable(model), lr=RATE), batches)


def attn_or_embed(model, batches, frozen_now):
    for name, parameter in model.named_parameters():
        if "attn" in name or "embed" in name:
            parameter.requires_grad = False
    frozen_now()
    return train(model, AdamW(trainable(model), lr=RATE), batches)


def head_by_name(model, batches, frozen_now):
    for name, parameter in model.named_parameters():
        if name.startswith("lm_head"):
            parameter.requires_grad = False
    frozen_now()
    return train(model, AdamW(trainable(model), lr=RATE), batches)


def optimizer_first(model, batches, frozen_now):
    optimizer = AdamW(model.parameters(), lr=RATE, weight_decay=DECAY)
    look(model, batches[0])  # is the loss as expected, and are there gradients?
    for block in model.transformer.h:
        block.attn.requires_grad_(False)
    frozen_now()
    return train(model, optimizer, batches)


def frozen_midway(model, batches, frozen_now):
    optimizer = AdamW(model.parameters(), lr=RATE, weight_decay=0.0)
    train(model, optimizer, batches)
    for block in model.transformer.h:
        block.attn.requires_grad_(False)
    frozen_now()
    return train(model, optimizer, batches)


_ATTENTION = FreezePlan.freeze("attention")

EXHIBITS: tuple[Exhibit, ...] = (
    Exhibit(1, "attention frozen, and checked", _ATTENTION, kept_without_clone),
    Exhibit(2, "attention frozen", _ATTENTION, dot_h_rule),
    Exhibit(3, "attention frozen", _ATTENTION, inner_condition),
    Exhibit(4, "attention frozen", _ATTENTION, flag_on_module),
    Exhibit(
        5, "attention and embeddings frozen", FreezePlan.freeze("attention", "embeddings"), attn_or_embed
    ),
    Exhibit(6, "output head frozen", FreezePlan.freeze("head"), head_by_name),
    Exhibit(7, "attention frozen", _ATTENTION, optimizer_first),
    Exhibit(8, "attention frozen after the first steps", _ATTENTION, frozen_midway),
)
