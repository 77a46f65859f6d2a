"""LoRA beside partial fine-tuning in the study's records: a table, and the answer for results/."""

from __future__ import annotations

from textwrap import fill

import numpy as np
import pandas as pd

from helpers import plots
from helpers.measuring import forgetting_at, frontier
from helpers.results.answers import LABELS, STYLES, Answer, markdown, of_runs, rate_in_words
from helpers.results.claims import two_digits
from helpers.results.evidence import (
    AUTHORS,
    FULL,
    MAIN,
    Evidence,
    Reading,
    full_gain,
    gentlest,
    rate_of,
    share_of_every_rate,
    tuning_runs,
)

LORA = ("lora-attention", "lora-mlp")
SET_BESIDE = (FULL, MAIN, "only-attention", *LORA)


def lora_table(evidence: Evidence, text: str = AUTHORS[0]) -> pd.DataFrame | None:
    """LoRA beside plans without new matrices: trained numbers, best gain, and forgetting at a gain that all reach.

    The best gain is that of the rate that gains most, over the seeds that all these plans have. Forgetting is read in
    the tuning runs, where each plan has its gentlest rate: at the highest share of full training's best gain that all
    these plans reach with every rate tried. None where LoRA was not studied, or no such share is there.
    """
    learned, read = learned_runs(evidence, text), readings(evidence, text)
    if read is None or not set(SET_BESIDE) <= set(learned):
        return None
    share, by_plan = read
    return pd.DataFrame.from_dict(
        {
            LABELS[p]: {
                "trained": learned[p][0]["n_trainable"],
                "seeds": len(learned[p]),
                "best gain": np.mean([frontier(r["evaluations"])[0][-1] for r in learned[p]]),
                "at rate": rate_of(learned[p]),
                "compared at gain": share * full_gain(evidence, text),
                "share of full's best": share,
                "forgetting": reading.forgetting,
                "at gentlest rate": reading.rate,
                "tuning runs": reading.n_seeds,
            }
            for p, reading in by_plan.items()
        },
        orient="index",
    )


def forgetting_by_rate(evidence: Evidence, text: str = AUTHORS[0]) -> pd.DataFrame | None:
    """Forgetting at the equal gain of `lora_table`, a row a plan and a column a rate: the mean of its tuning runs.

    NaN where a plan was not tried at a rate. None where `lora_table` is none.
    """
    read = readings(evidence, text)
    if read is None:
        return None
    level = read[0] * full_gain(evidence, text)
    rows = {}
    for plan in SET_BESIDE:
        by_rate: dict[float, list[float]] = {}
        for run in tuning_runs(evidence, plan, text):
            by_rate.setdefault(run["rate"], []).append(forgetting_at(run["evaluations"], level))
        rows[LABELS[plan]] = {rate: np.mean(found) for rate, found in by_rate.items()}
    return pd.DataFrame.from_dict(rows, orient="index").sort_index(axis="columns")


def readings(evidence: Evidence, text: str) -> tuple[float, dict[str, Reading]] | None:
    """The share at which all plans are read, and each plan at its gentlest rate there."""
    share = share_of_every_rate(evidence, SET_BESIDE, text)
    return None if share is None else (share, {p: gentlest(evidence, p, text, share) for p in SET_BESIDE})


def learned_runs(evidence: Evidence, text: str) -> dict[str, list[dict]]:
    """The runs at the rate that gains most, with the seeds that all plans have; none of a plan without runs."""
    runs = {p: own for p in SET_BESIDE if (own := evidence.of(p, text, "learn"))}
    seeds = evidence.seeds(*runs, choice="learn", texts=[text])
    return {p: [r for r in own if r["seed"] in seeds] for p, own in runs.items()} if seeds else {}


def lora(evidence: Evidence) -> Answer | None:
    """LoRA against partial fine-tuning on the first text, where both were studied."""
    text, table = AUTHORS[0], lora_table(evidence)
    if table is None:
        return None
    share, by_plan = readings(evidence, text)
    level = share * full_gain(evidence, text)
    paths = {LABELS[p]: [frontier(r["evaluations"]) for r in reading.runs] for p, reading in by_plan.items()}
    words = "; ".join(
        f"{label} {two_digits(row['forgetting'])} at {row['at gentlest rate']:g}, best gain "
        f"{two_digits(row['best gain'])}"
        for label, row in table.iterrows()
    )
    gains = ", ".join(f"{label} {two_digits(gain)}" for label, gain in table["best gain"].items())
    title = fill(
        f"Best gains on {text}, nats per token: {gains} ({evidence.model}, {int(table['seeds'].iloc[0])} seeds)",
        width=58,
    )  # the picture has one panel
    rows = [
        [
            text,
            label,
            f"{int(row['trained']):,}",
            two_digits(row["best gain"]),
            rate_in_words(row["at rate"]),
            int(row["seeds"]),
            two_digits(row["forgetting"]),
            f"{row['at gentlest rate']:g}",
            int(row["tuning runs"]),
        ]
        for label, row in table.iterrows()
    ]
    return of_runs(
        evidence,
        [r for reading in by_plan.values() for r in reading.runs],
        [paths, level],
        title=title,
        sentence=f"On {text}, forgetting in nats per token at an equal gain of {two_digits(level)} ({share:.0%} of full "
        f"training's best), each plan at its gentlest rate, in the tuning runs: {words}.",
        table=markdown(
            [
                "text",
                "plan",
                "trained",
                "best gain",
                "at rate",
                "seeds",
                f"forgetting at {share:.0%}",
                "at its gentlest rate",
                "tuning runs",
            ],
            rows,
        ),
        alt=f"Forgetting against gain on {text} for LoRA and for plans without new matrices, each at its gentlest "
        "rate, one line a run",
        draw=lambda: plots.lines_of_runs({text: paths}, title, {text: level}, styles=STYLES),
    )
