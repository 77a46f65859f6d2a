"""Make what the page "Equal steps or equal gain?" loads: steps, gain and forgetting of the recorded runs.

    course site --data

The runs are the main ones of data/evidence for the miniature that every text has: four plans, up to ten seeds,
each at the rate that forgets least ("keep") and at the rate that learns most ("learn"). With them goes the
smallest difference in forgetting that counts, as the study's protocol fixed it before the runs.
"""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.ticker import MaxNLocator

from helpers.measuring import RunRecord, chosen
from helpers.plots import PLAN_COLOURS
from helpers.results import read_evidence

OUT = Path(__file__).resolve().parent / "static" / "mini" / "data"
PLANS = ("full", "attention+embeddings", "only-attention", "only-mlp-out")
TEXTS = ("alice", "edgar")
CHOICES = ("keep", "learn")


def path_of(record: RunRecord) -> dict[str, list[float]]:
    """One run's evaluations as three lists: steps, gains and forgetting, nats per token."""
    evaluations = record.evaluations
    return {
        "steps": [e.step for e in evaluations],
        "gains": [round(e.gain, 4) for e in evaluations],
        "forgetting": [round(e.forgetting, 4) for e in evaluations],
    }


def runs_of(records: Sequence[RunRecord], plan: str, name: str, choice: str) -> list[RunRecord]:
    """Return the recorded runs of a plan on a text, in the order of their seeds."""
    return sorted(chosen(records, plan, name, choice), key=lambda record: record.seed)


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
                        "rate": runs[0].rate,
                        "seeds": [run.seed for run in runs],
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


# --- line charts as SVG text, for the pages' still pictures -------------------------


WIDTH, HEIGHT = 800, 390
LEFT, RIGHT, TOP, BOTTOM = 62, 12, 34, 44  # margins
INK, GRID = "#222222", "#dddddd"


@dataclass(frozen=True)
class Line:
    """One line. What is no number leaves a gap.

    Attributes:
        x, y: (points,).
        dash: an SVG dash pattern; "" for a whole line.
        dots: also mark each point.
    """

    x: np.ndarray
    y: np.ndarray
    colour: str
    width: float = 1.0
    opacity: float = 1.0
    dash: str = ""
    dots: bool = False


def chart(lines: Sequence[Line], title: str, x_label: str, y_label: str, description: str) -> str:
    """A chart of lines over common axes."""
    scale, middle = Scale.over(lines), (TOP + HEIGHT - BOTTOM) / 2
    body = [
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        text(LEFT, 20, title, size=14),
        text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, x_label, anchor="middle"),
        text(0, 0, y_label, anchor="middle", more=f'transform="translate(14 {middle}) rotate(-90)"'),
        *scale.grid(),
        *(drawn(line, scale) for line in lines),
    ]
    label = html.escape(description, quote=True)
    return (
        f'<svg role="img" aria-label="{label}" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'style="max-width: 100%; height: auto; background: white; font-family: sans-serif">{"".join(body)}</svg>'
    )


@dataclass(frozen=True)
class Scale:
    """From values to places in the chart, with the numbers that stand at the axes."""

    x_ticks: np.ndarray
    y_ticks: np.ndarray

    @classmethod
    def over(cls, lines: Sequence[Line]) -> Scale:
        """Axes that hold every point of some lines."""
        return cls(
            *(
                ticks(np.concatenate([getattr(line, axis) for line in lines] or [np.array([])]))
                for axis in ("x", "y")
            )
        )

    def x(self, values: np.ndarray) -> np.ndarray:
        low, high = self.x_ticks[[0, -1]]
        return LEFT + (values - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    def y(self, values: np.ndarray) -> np.ndarray:
        low, high = self.y_ticks[[0, -1]]
        return HEIGHT - BOTTOM - (values - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

    def grid(self) -> list[str]:
        found = []
        for value, place in zip(self.x_ticks, self.x(self.x_ticks), strict=True):
            found += [
                rule(place, TOP, place, HEIGHT - BOTTOM),
                text(place, HEIGHT - BOTTOM + 15, f"{value:g}", anchor="middle"),
            ]
        for value, place in zip(self.y_ticks, self.y(self.y_ticks), strict=True):
            found += [
                rule(LEFT, place, WIDTH - RIGHT, place),
                text(LEFT - 6, place + 4, f"{value:g}", anchor="end"),
            ]
        return found


def ticks(values: np.ndarray) -> np.ndarray:
    """Round numbers around some values."""
    finite = values[np.isfinite(values)]
    low, high = (finite.min(), finite.max()) if len(finite) else (0.0, 1.0)
    if low == high:
        low, high = low - 0.5, high + 0.5
    return np.round(MaxNLocator(7).tick_values(low, high), 10)


def drawn(line: Line, scale: Scale) -> str:
    """A line, its points as dots if it has them."""
    x, y, is_there = scale.x(line.x), scale.y(line.y), np.isfinite(line.y)
    places = [f"{a:.1f} {b:.1f}" for a, b in zip(x, y, strict=True)]
    steps = [("L" if i and is_there[i - 1] else "M") + places[i] for i in np.flatnonzero(is_there)]
    style = f'fill="none" stroke="{line.colour}" opacity="{line.opacity}" stroke-dasharray="{line.dash}"'
    found = f'<path d="{"".join(steps)}" {style} stroke-width="{line.width}" stroke-linejoin="round"/>'
    if line.dots:
        dots = "".join(f"M{places[i]}h0" for i in np.flatnonzero(is_there))
        found += (
            f'<path d="{dots}" fill="none" stroke="{line.colour}" opacity="{line.opacity}" stroke-width="3.5" '
            'stroke-linecap="round"/>'
        )
    return found


def rule(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{GRID}"/>'


def text(x: float, y: float, words: str, size: int = 12, anchor: str = "start", more: str = "") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="{INK}" text-anchor="{anchor}" {more}>'
        f"{html.escape(words)}</text>"
    )
