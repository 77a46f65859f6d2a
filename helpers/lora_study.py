"""LoRA beside partial fine-tuning in the study's records: a table, and the answer for results/."""

from __future__ import annotations

import numpy as np
import pandas as pd

from helpers import plots
from helpers.answers import LABELS, Answer, of_runs
from helpers.comparison import ComparisonError, forgetting_at, frontier, matched_gain
from helpers.findings import AUTHORS, FULL, MAIN, Evidence, full_gain

LORA = ("lora-attention", "lora-mlp")


def lora_table(evidence: Evidence, text: str = AUTHORS[0]) -> pd.DataFrame | None:
    """LoRA beside plans without new matrices: trained numbers, seeds, best gain, forgetting at the level all reach.

    None where LoRA was not studied. No forgetting (NaN) where a run learned too little to be compared.
    """
    runs = lora_runs(evidence, text)
    if not set(LORA) & set(runs) or FULL not in runs:
        return None
    try:
        level, _ = matched_gain([r["evaluations"] for own in runs.values() for r in own], full_gain(evidence, text))
    except ComparisonError:
        level = np.nan
    return pd.DataFrame.from_dict({LABELS[p]: {
        "trained": own[0]["n_trainable"], "seeds": len({r["seed"] for r in own}),
        "best gain": np.mean([frontier(r["evaluations"])[0][-1] for r in own]), "compared at gain": level,
        "forgetting": np.mean([forgetting_at(r["evaluations"], level) for r in own]) if level > 0 else np.nan,
    } for p, own in runs.items()}, orient="index")


def lora_runs(evidence: Evidence, text: str) -> dict[str, list[dict]]:
    runs = {p: evidence.of(p, text, "keep") for p in (FULL, MAIN, "only-attention", *LORA)}
    return {p: own for p, own in runs.items() if own}


def lora(evidence: Evidence) -> Answer | None:
    """LoRA against partial fine-tuning on the first text, where both were studied."""
    text, table = AUTHORS[0], lora_table(evidence)
    if table is None:
        return None
    runs, level = lora_runs(evidence, text), float(table["compared at gain"].iloc[0])
    paths = {LABELS[p]: [frontier(r["evaluations"]) for r in own] for p, own in runs.items()}
    words = "; ".join(f"{label}: {int(row['trained']):,} trained, best gain {row['best gain']:.3f}"
                      + (f", forgetting {row['forgetting']:.3f}" if level > 0 else "")
                      for label, row in table.iterrows())
    at_level = f"forgetting at an equal gain of {level:.3f}" if level > 0 else \
        "forgetting is not comparable: a run stays below 35% of full training's gain"
    best = table["best gain"].idxmax()
    title = (f"On {text}, {best} gains most ({table['best gain'].max():.3f} nats a token)"
             + (f";\nat equal gain {table['forgetting'].idxmin()} forgets least" if level > 0 else "")
             + f" ({evidence.model})")
    return of_runs(
        evidence, [r for own in runs.values() for r in own], [paths, level], title=title,
        sentence=f"On {text}, in nats a token ({at_level}): {words}.",
        alt=f"Forgetting against gain on {text} for LoRA and for plans without new matrices, one line a run",
        draw=lambda: plots.frontiers({text: paths}, title, {text: level} if level > 0 else {}))
