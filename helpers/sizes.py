"""How big is what a run leaves behind? Whole checkpoint, delta and LoRA adapter, from the config alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import pandas as pd
import torch

from helpers.anatomy import anatomy
from helpers.budget import MIB
from helpers.lora import n_adapter_parameters
from helpers.models import build_on_meta
from helpers.plans import COURSE_PLANS, FreezePlan
from helpers.selectors import PlanError


def size_table(config, plans: Mapping[str, FreezePlan] = COURSE_PLANS, ranks: Iterable[int] = (4, 16, 64),
               lora_on: str = "attention", dtype: torch.dtype = torch.float32) -> pd.DataFrame:
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
