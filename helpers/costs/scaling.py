"""What a bigger model needs, on one device and on several: predicted from its shape, never measured here.

One device holds everything. Of n devices under fully sharded training each holds one n-th of the
weights, gradients and moments, and on top of it what it works on: the whole weights of a block or
two, and the activations of its own windows, which nobody shares.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from numbers import Real

import pandas as pd
import torch
from transformers import GPTNeoConfig, LlamaConfig

from helpers.costs.step_cost import MIB, Budget, BudgetError, budget
from helpers.files import require_whole
from helpers.freezing import COURSE_PLANS, FreezePlan, PlanError, n_adapter_parameters
from helpers.models import anatomy, build_on_meta

GIB = 2**30
FLOAT32, BFLOAT16 = 4, 2  # bytes a number
RESERVE = 0.9  # of a device's memory; an assumption: the rest is for the driver and the allocator's gaps
# GiB as the cards are sold; of a T4's 16, its driver gives a program about 15.
DEVICES = {"T4": 15, "L4": 24, "A100 40": 40, "A100 80": 80, "H100": 80}
WITHOUT_BFLOAT16 = ("T4",)  # of 2018: it does not compute in bfloat16


# --- published shapes --------------------------------------------------------------


def gpt_neo_1_3b_config() -> GPTNeoConfig:
    """EleutherAI/gpt-neo-1.3B as its config.json gives it (Black and others 2021): 1,315,575,808 parameters."""
    return GPTNeoConfig(
        hidden_size=2048,
        num_layers=24,
        num_heads=16,
        max_position_embeddings=2048,
        attention_types=[[["global", "local"], 12]],
        window_size=256,
        vocab_size=50257,
        attention_dropout=0.0,
        embed_dropout=0.0,
        resid_dropout=0.0,
    )


def llama_2_7b_config() -> LlamaConfig:
    """Llama 2 7B (Touvron and others 2023, arXiv 2307.09288, and its config.json): 6,738,415,616 parameters."""
    return _llama_2(4096, 11008, 32, 32, 32)


def llama_2_70b_config() -> LlamaConfig:
    """Llama 2 70B (the same source): grouped queries, 8 key-value heads; 68,976,648,192 parameters."""
    return _llama_2(8192, 28672, 80, 64, 8)


def _llama_2(width: int, inner: int, n_layers: int, n_heads: int, n_kv_heads: int) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=n_layers,
        num_attention_heads=n_heads,
        num_key_value_heads=n_kv_heads,
        vocab_size=32000,
        max_position_embeddings=4096,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
    )


# --- needs -------------------------------------------------------------------------


@dataclass(frozen=True)
class Unit:
    """Weights that are gathered together: a block, or all that is outside the blocks."""

    n_parameters: int
    n_trainable: int

    def n_bytes(self, frozen: int) -> int:
        """Whole weights and gradients, with ``frozen`` bytes for each number that does not train."""
        return 2 * FLOAT32 * self.n_trainable + frozen * (self.n_parameters - self.n_trainable)


@dataclass(frozen=True)
class Need:
    """Bytes on each device. ``state`` is its share of weights, gradients and moments."""

    n_devices: int
    state: int
    gathered: int
    activations: int

    @property
    def total(self) -> int:
        return self.state + self.gathered + self.activations


@dataclass(frozen=True)
class Plan:
    """A model's predicted step under a plan, with what sharding needs to know of it."""

    predicted: Budget
    block: Unit
    outside: Unit

    @classmethod
    def of(
        cls, config, plan: FreezePlan, batch: int = 1, length: int = 512, checkpointing: bool = True
    ) -> Plan:
        """From the config alone. ``batch`` windows on each device; as in `budget.budget`."""
        parts = anatomy(build_on_meta(config))
        trained = plan.trainable_names(parts)
        blocks = [_unit([e for e in parts.entries if e.layer == i], trained) for i in range(parts.n_layers)]
        largest = max(blocks, key=lambda unit: unit.n_bytes(FLOAT32))
        return cls(
            budget(config, plan, batch, length, checkpointing=checkpointing),
            largest,
            _unit([e for e in parts.entries if e.layer is None], trained),
        )

    def state_bytes(self, frozen: int = FLOAT32) -> int:
        """Weights, gradients and AdamW's two moments: 16 bytes a trained number, ``frozen`` bytes another."""
        n_trainable = self.predicted.n_trainable
        return 4 * FLOAT32 * n_trainable + frozen * (self.predicted.n_parameters - n_trainable)

    def need(self, n_devices: int = 1, frozen: int = FLOAT32) -> Need:
        """Bytes on each of ``n_devices``.

        Alone, the fullest moment of the step. Sharded, an upper bound: all of the state, two blocks
        and what is outside them gathered (one block computes while the next arrives), and the most
        activations of any moment, counted in float32.

        Args:
            frozen: bytes a frozen number takes: `FLOAT32`, or `BFLOAT16` where frozen weights are kept in it.
        """
        require_whole(n_devices, "n_devices is how many share the model")
        if frozen not in (FLOAT32, BFLOAT16):
            raise BudgetError(
                f"A frozen number takes {BFLOAT16} or {FLOAT32} bytes; found frozen={frozen!r}."
            )
        if n_devices == 1:
            spared = (FLOAT32 - frozen) * (self.predicted.n_parameters - self.predicted.n_trainable)
            state = self.state_bytes(frozen)
            return Need(1, state, 0, max(0, self.predicted.peak_bytes - spared - state))
        gathered = self.outside.n_bytes(frozen) + 2 * self.block.n_bytes(frozen)
        return Need(
            n_devices,
            -(-self.state_bytes(frozen) // n_devices),
            gathered,
            sum(self.predicted.at_most[kind] for kind in ("activations", "logits", "buffers")),
        )

    def fewest(self, gib: float, frozen: int = FLOAT32, most: int = 8) -> int | None:
        """The fewest devices of ``gib`` GiB on which it fits, or None where ``most`` are not enough."""
        if not isinstance(gib, Real) or not gib > 0:
            raise BudgetError(f"A device has memory, in GiB, above 0; found {gib!r}.")
        require_whole(most, "most is how many devices there may be")
        room = RESERVE * gib * GIB
        return next((n for n in range(1, most + 1) if self.need(n, frozen).total <= room), None)

    def fewest_of(self, card: str, most: int = 8) -> int | None:
        """As `fewest` for a card of `DEVICES`; frozen weights are in bfloat16 where the card computes in it."""
        if card not in DEVICES:
            raise BudgetError(f"The card {card!r} is not known. Choose one of: {', '.join(DEVICES)}.")
        return self.fewest(DEVICES[card], FLOAT32 if card in WITHOUT_BFLOAT16 else BFLOAT16, most)


def _unit(entries, trained: frozenset[str]) -> Unit:
    return Unit(
        sum(e.n_parameters for e in entries), sum(e.n_parameters for e in entries if e.name in trained)
    )


# --- How big is what a run leaves behind? Whole checkpoint, delta and LoRA adapter, from the config alone ---


def size_table(
    config,
    plans: Mapping[str, FreezePlan] = COURSE_PLANS,
    ranks: Iterable[int] = (4, 16, 64),
    lora_on: str = "attention",
    dtype: torch.dtype = torch.float32,
) -> pd.DataFrame:
    """One row a file: the whole model (a tied tensor once), the delta of each plan, a LoRA adapter of each rank.

    Bytes are those of the tensors: parameters × bytes each, where LoRA has r (in + out) parameters a
    matrix (Hu and others 2021, arXiv 2106.09685). The header of a file, some kilobytes, is left out.

    Args:
        config: any transformers config of a causal language model.
        plans: those that find nothing to train or to freeze in this family are left out.
        lora_on: which matrices LoRA changes, a selector as for `lora.targets`.
    """
    parts = anatomy(build_on_meta(config))
    rows = {"full checkpoint": parts.n_parameters}
    for plan in plans.values():
        try:
            rows[f"delta, {plan.title}"] = plan.ledger(parts).n_trainable
        except PlanError:  # Llama's kind has no biases
            continue
    rows |= {f"LoRA r = {rank} on {lora_on}": n_adapter_parameters(config, lora_on, rank) for rank in ranks}
    table = pd.DataFrame({"parameters": pd.Series(rows)})
    table["bytes"] = table["parameters"] * dtype.itemsize
    table["MiB"] = (table["bytes"] / MIB).round(2)
    table["share of full"] = table["parameters"] / parts.n_parameters
    return table
