"""LoRA beside partial fine-tuning in the study's records: a table, and the answer for results/."""

from __future__ import annotations

from textwrap import fill

import numpy as np
import pandas as pd

from helpers import plots
from helpers.answers import LABELS, Answer, of_runs
from helpers.comparison import ComparisonError, forgetting_at, frontier, matched_gain
from helpers.findings import AUTHORS, FULL, MAIN, Evidence, full_gain

LORA = ("lora-attention", "lora-mlp")


def lora_table(evidence: Evidence, text: str = AUTHORS[0]) -> pd.DataFrame | None:
    """LoRA beside plans without new matrices: trained numbers, seeds, best gain, forgetting at the level all reach.

    Over the seeds that all these plans have. The best gain is that of the rate that gains most, forgetting that of the
    rate that forgets least. None where LoRA was not studied. No forgetting (NaN) where a run learned too little to be
    compared.
    """
    runs, learned = lora_runs(evidence, text, "keep"), lora_runs(evidence, text, "learn")
    if not set(LORA) & set(runs) or FULL not in runs or set(runs) != set(learned):
        return None
    try:
        level, share = matched_gain([r["evaluations"] for own in runs.values() for r in own], full_gain(evidence, text))
    except ComparisonError:
        level, share = np.nan, np.nan
    return pd.DataFrame.from_dict({LABELS[p]: {
        "trained": own[0]["n_trainable"], "seeds": len(own),
        "best gain": np.mean([frontier(r["evaluations"])[0][-1] for r in learned[p]]),
        "compared at gain": level, "share of full's best": share,
        "forgetting": np.mean([forgetting_at(r["evaluations"], level) for r in own]) if level > 0 else np.nan,
    } for p, own in runs.items()}, orient="index")


def lora_runs(evidence: Evidence, text: str, choice: str) -> dict[str, list[dict]]:
    """The runs of the plans that are compared, with the seeds that all of them have; none of a plan without runs."""
    runs = {p: own for p in (FULL, MAIN, "only-attention", *LORA) if (own := evidence.of(p, text, choice))}
    seeds = evidence.seeds(*runs, choice=choice, texts=[text])
    return {p: [r for r in own if r["seed"] in seeds] for p, own in runs.items()} if seeds else {}


def lora(evidence: Evidence) -> Answer | None:
    """LoRA against partial fine-tuning on the first text, where both were studied."""
    text, table = AUTHORS[0], lora_table(evidence)
    if table is None:
        return None
    runs, level = lora_runs(evidence, text, "keep"), float(table["compared at gain"].iloc[0])
    paths = {LABELS[p]: [frontier(r["evaluations"]) for r in own] for p, own in runs.items()}
    words = "; ".join(f"{label}: {int(row['trained']):,} trained, best gain {row['best gain']:.3f}"
                      + (f", forgetting {row['forgetting']:.3f}" if level > 0 else "")
                      for label, row in table.iterrows())
    share = float(table["share of full's best"].iloc[0])
    at_level = f"forgetting at an equal gain of {level:.3f}, {share:.0%} of full training's best" if level > 0 else \
        "forgetting is not comparable: a run stays below 35% of full training's gain"
    gains = ", ".join(f"{label} {gain:.3f}" for label, gain in table["best gain"].items())
    title = fill(f"Best gains on {text}, nats a token: {gains} ({evidence.model}, {int(table['seeds'].iloc[0])} seeds)",
                 width=58)  # the picture has one panel
    return of_runs(
        evidence, [r for own in runs.values() for r in own], [paths, level], title=title,
        sentence=f"On {text}, in nats a token ({at_level}): {words}.",
        alt=f"Forgetting against gain on {text} for LoRA and for plans without new matrices, one line a run",
        draw=lambda: plots.lines_of_runs({text: paths}, title, {text: level} if level > 0 else {}))
