"""Make what the page "Equal steps or equal gain?" loads: steps, gain and forgetting of the recorded runs.

    course site --data

The runs are the main ones of data/evidence for the miniature that every text has: four plans, up to ten seeds,
each at the rate that forgets least ("keep") and at the rate that learns most ("learn"). With them goes the
smallest difference in forgetting that counts, as the study's protocol fixed it before the runs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from helpers.lessons.widgets.losses import Line, Scale, chart, text
from helpers.plots import PLAN_COLOURS
from helpers.results import read_evidence

OUT = Path(__file__).resolve().parent / "static" / "mini" / "data"
PLANS = ("full", "attention+embeddings", "only-attention", "only-mlp-out")
TEXTS = ("alice", "edgar")
CHOICES = ("keep", "learn")


def path_of(record: Mapping) -> dict[str, list[float]]:
    """One run's evaluations as three lists: steps, gains and forgetting, nats per token."""
    evaluations = record["evaluations"]
    return {
        "steps": [e["step"] for e in evaluations],
        "gains": [round(e["gain"], 4) for e in evaluations],
        "forgetting": [round(e["forgetting"], 4) for e in evaluations],
    }


def runs_of(records: Sequence[Mapping], plan: str, name: str, choice: str) -> list[Mapping]:
    """Return the recorded runs of a plan on a text, in the order of their seeds."""
    own = [record for record in records if (record["plan"], record["text"]) == (plan, name)]
    chosen = [record for record in own if choice in record["rate_choice"]]
    return sorted(chosen, key=lambda record: record["seed"])


def page_entries() -> list[dict]:
    """Return all lines that the page draws: one entry for each text, choice of rate and plan."""
    records = read_evidence("gpt-neo-mini").runs
    entries = []
    for name in TEXTS:
        for choice in CHOICES:
            for plan in PLANS:
                runs = runs_of(records, plan, name, choice)
                entries.append(
                    {
                        "text": name,
                        "choice": choice,
                        "plan": plan,
                        "rate": runs[0]["rate"],
                        "seeds": [run["seed"] for run in runs],
                        "runs": [path_of(run) for run in runs],
                    }
                )
    return entries


def still_picture(entries: list[dict], choice: str = "learn") -> str:
    """The picture for readers whose browser runs nothing: each plan's first run on Alice, as SVG."""
    shown = {
        entry["plan"]: entry["runs"][0]
        for entry in entries
        if (entry["text"], entry["choice"]) == ("alice", choice)
    }
    lines, labels = [], []
    for plan, run in shown.items():
        end = 1 + int(np.argmax(run["gains"]))  # what comes after is no way to reach a gain
        lines.append(
            Line(np.array(run["gains"][:end]), np.array(run["forgetting"][:end]), PLAN_COLOURS[plan], width=2)
        )
    scale = Scale.over(lines)
    for plan, line in zip(shown, lines, strict=True):
        labels.append(text(scale.x(line.x[-1]) - 6, scale.y(line.y[-1]) - 8, plan, anchor="end"))
    drawn = chart(
        lines,
        "The lines cross: which plan forgets least depends on the gain",
        "gain on held-out text, nats per token",
        "forgetting, nats per token",
        "Forgetting against gain for four plans, one run each",
    )
    whole = drawn.replace("</svg>", "".join(labels) + "</svg>")
    return whole.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)


def write() -> None:
    """Write ``records.json`` and ``equal-still.svg``."""
    smallest = read_evidence("gpt-neo-mini").rates["smallest_forgetting"]
    entries = page_entries()
    records = {"smallest": {name: smallest[name] for name in TEXTS}, "entries": entries}
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "records.json").write_text(json.dumps(records, separators=(",", ":")) + "\n", encoding="utf-8")
    (OUT / "equal-still.svg").write_text(still_picture(entries) + "\n", encoding="utf-8")
