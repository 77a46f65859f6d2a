"""The loss explorer: recorded runs, plan by plan and seed by seed, smoothed openly.

Smoothing makes a line calmer than what was measured. Here the measured points stay in the picture, the width
of the smoothing stands in its title, and a table says how far the seeds of a plan lie apart.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import ipywidgets
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from helpers.lessons.widgets.frame import STYLE, Frame, control, table_html, tick
from helpers.plots import COLOURS
from helpers.study import read_runs

__all__ = ["loss_explorer"]

# --- Line charts as SVG text: drawn in a few milliseconds, where matplotlib takes a tenth of a second ---


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


# What can be drawn: label to (list of the record, key in each entry or None, unit).
MEASURES = {
    "loss on the dev text": ("evaluations", "held_out_loss", "nats per token"),
    "training loss, each batch": ("losses", None, "nats per token"),
    "loss on the training text": ("evaluations", "train_loss", "nats per token"),
    "forgetting": ("evaluations", "forgetting", "nats per token"),
    "gradient norm": ("norms", None, "norm"),
}
DASHES = {
    "": "solid",
    "6 3": "dashed",
    "2 2": "dotted",
    "8 2 2 2": "double",
}  # SVG to CSS; from the eighth label on
WINDOWS = (1, 3, 5, 9, 15, 25)
ALL = "all"


class RunsError(ValueError):
    """A folder without runs. The message says how to record some."""


def loss_explorer(
    folder: str | Path,
    text: str | None = None,
    plans: Sequence[str] | None = None,
    choice: str | None = None,
    measure: str = "training loss, each batch",
    window: int = 9,
) -> Frame:
    """A widget that draws recorded runs.

    Args:
        folder: with one JSON file a run, as `records.write_record` writes them; any plans, texts and seeds.
        text: shown at the start; None takes the first.
        plans: whose runs are ticked at the start; None takes the first two.
        choice: ticks only runs at the rate for this purpose, "keep" or "learn"; None: at every rate.
        measure: a key of `MEASURES`.
        window: points that are averaged at the start; 1 draws the points alone.

    Raises:
        RunsError: there is no run in the folder, or there are runs of several models.
    """
    runs = runs_of_one_model(folder)
    texts, seeds = (sorted({run[key] for run in runs}) for key in ("text", "seed"))
    first = plans or sorted({run["plan"] for run in runs})[:2]
    ticked = {
        label(r)
        for r in runs
        if r["plan"] in first and (choice is None or choice in r.get("rate_choice", ""))
    }
    labels = sorted(
        set(map(label, runs)), key=lambda one: (one not in ticked, one)
    )  # the ticked: colours of their own
    controls = {
        "text": control(
            ipywidgets.Dropdown,
            "Text",
            "which text the runs were trained on",
            options=texts,
            value=text or texts[0],
        ),
        "measure": control(
            ipywidgets.Dropdown, "Measure", "what is drawn", options=list(MEASURES), value=measure
        ),
        "seed": control(
            ipywidgets.Dropdown,
            "Seed",
            "one run of each plan, or all of them",
            options=[ALL, *map(str, seeds)],
            value=ALL,
        ),
        "window": control(
            ipywidgets.SelectionSlider,
            "Points averaged",
            "1: nothing is smoothed",
            options=WINDOWS,
            value=window,
        ),
    }
    controls |= {one: tick(one, f"show the runs of {one}", one in ticked) for one in labels}

    def drawn(values) -> tuple[dict, list[Line], str, str]:
        on = [one for one in labels if values[one]]
        found = runs_shown(runs, on, values["text"], values["seed"])
        shown = values["measure"], values["window"], values["text"]
        return found, lines_of(found, *shown[:2], labels), title_of(*shown), sentence(found, *shown)

    def answer(**values):
        found, lines, title, said = drawn(values)
        unit = MEASURES[values["measure"]][2]
        yield "curves", chart(lines, title, "optimizer step", unit, said) + legend_html(found, labels)
        yield "ends", ends_html(found, values["measure"])

    def still():
        found, lines, title, said = drawn(frame.values)
        return curves_figure(lines, found, labels, title, MEASURES[frame.values["measure"]][2]), said

    rows = [["text", "measure", "seed", "window"], labels]
    frame = Frame(controls, {"curves": 0, "ends": 110}, answer, still, rows)
    return frame


def runs_of_one_model(folder: str | Path) -> list[dict]:
    """The recorded runs of a folder. Runs of two models do not belong into one picture."""
    runs = read_runs(folder)
    if not runs:
        raise RunsError(f"There is no recorded run in '{folder}'. Record some with 'course study first'.")
    n_models = len({run["model_hash"] for run in runs})
    if n_models > 1:
        raise RunsError(f"The runs in '{folder}' are of {n_models} models. Give the folder of one of them.")
    return runs


def label(run: Mapping) -> str:
    """Runs of one label differ in text and seed alone: "full, rate 3e-05"."""
    return f"{run['plan']}, rate {run['rate']:g}"


def runs_shown(
    runs: Sequence[Mapping], labels: Sequence[str], text: str, seed: str = ALL
) -> dict[str, list[Mapping]]:
    """Label to its runs on a text, in order of their seeds; a label without runs there is left out."""
    found = {
        one: sorted(
            (r for r in runs if label(r) == one and r["text"] == text and seed in (ALL, str(r["seed"]))),
            key=lambda r: r["seed"],
        )
        for one in labels
    }
    return {one: own for one, own in found.items() if own}


def series(run: Mapping, measure: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of one run. Empty where the run has none; what was no number is NaN.

    Training loss and norm of the first batch belong to step 1, an evaluation to the steps taken before it.
    """
    place, key, _ = MEASURES[measure]
    if key is None:
        values = [np.nan if v is None else v for v in run.get(place, [])]
        return 1.0 + np.arange(len(values)), np.array(values, dtype=float)
    points = [e for e in run.get(place, []) if e.get(key) is not None]
    return np.array([e["step"] for e in points], dtype=float), np.array([e[key] for e in points], dtype=float)


def smoothed(values: np.ndarray, window: int) -> np.ndarray:
    """The mean of each point and its neighbours, ``window`` points in all; at the ends of as many as there are.

    Points that are no number are left out of the means.
    """
    if not len(values):
        return values
    is_number, ones, half = np.isfinite(values), np.ones(window), window // 2
    sums, counts = (
        np.convolve(points, ones)[half : half + len(values)]
        for points in (np.where(is_number, values, 0.0), is_number.astype(float))
    )
    return np.divide(sums, counts, out=np.full(len(values), np.nan), where=counts > 0.5)


def ends(found: Mapping[str, Sequence[Mapping]], measure: str) -> dict[str, np.ndarray]:
    """Label to the last value of each of its runs that has one."""
    last = {
        one: [values[-1] for _, values in (series(run, measure) for run in own) if len(values)]
        for one, own in found.items()
    }
    return {one: np.array(values) for one, values in last.items() if values}


def sentence(found: Mapping[str, Sequence[Mapping]], measure: str, window: int, text: str) -> str:
    """What the picture shows, in words."""
    if not found:
        return f"Loss explorer: no run is chosen on {text}."
    own = "; ".join(f"{one}: {len(runs)} seed{'s' * (len(runs) != 1)}" for one, runs in found.items())
    thick = (
        "nothing is smoothed"
        if window == 1
        else f"the thick lines are means over {window} neighbouring points"
    )
    last = "; ".join(f"{one} {values.mean():.3f}" for one, values in ends(found, measure).items())
    return (
        f"Loss explorer: {measure} over steps on {text} ({own}). Every measured point is drawn, and {thick}. "
        f"At the end, mean over seeds: {last} {MEASURES[measure][2]}."
    )


def ends_html(found: Mapping[str, Sequence[Mapping]], measure: str) -> str:
    """For each label the last value: its mean over seeds, its lowest and its highest seed. Never smoothed."""
    rows = [
        (one, str(len(values)), f"{values.mean():.3f}", f"{values.min():.3f}", f"{values.max():.3f}")
        for one, values in ends(found, measure).items()
    ]
    head = (f"{measure}, last point ({MEASURES[measure][2]})", "runs", "mean", "lowest seed", "highest seed")
    return f'<div class="loss-explorer-ends" style="{STYLE}">{table_html(head, rows, "loss-explorer-table")}</div>'


def lines_of(
    found: Mapping[str, Sequence[Mapping]], measure: str, window: int, labels: Sequence[str]
) -> list[Line]:
    """Thin with dots: every point, one line a seed. Thick: the smoothed one, if any. A label keeps its colour."""
    thin, thick = [], []
    for one, own in found.items():
        style = style_of(one, labels)
        for run in own:
            steps, values = series(run, measure)
            thin.append(Line(steps, values, **style, opacity=0.45, dots=True))
            if window > 1:
                thick.append(Line(steps, smoothed(values, window), **style, width=2.5))
    return thin + thick


def style_of(one: str, labels: Sequence[str]) -> dict[str, str]:
    """Colour and dash of a label: its own, as long as there are no more than 28."""
    place = labels.index(one)
    return {"colour": COLOURS[place % len(COLOURS)], "dash": [*DASHES][place // len(COLOURS) % len(DASHES)]}


def title_of(measure: str, window: int, text: str) -> str:
    """What is drawn and how it was smoothed."""
    how = (
        "every point, nothing smoothed"
        if window == 1
        else f"thin: every point; thick: mean of {window} points"
    )
    return f"{measure[0].upper()}{measure[1:]}, {text} ({how})"


def legend_html(found: Mapping[str, Sequence[Mapping]], labels: Sequence[str]) -> str:
    """Which colour and dash is which label."""
    box = "display: inline-block; width: 1.6em; margin-bottom: 0.25em; border-top: 4px"
    styles = {one: style_of(one, labels) for one in found}
    words = "".join(
        f'<span style="margin-right: 1.5em; white-space: nowrap"><span aria-hidden="true" '
        f'style="{box} {DASHES[own["dash"]]} {own["colour"]}"></span> {html.escape(one)}</span>'
        for one, own in styles.items()
    )
    return f'<div class="loss-explorer-legend" style="{STYLE}">{words}</div>'


def curves_figure(
    lines: Sequence[Line],
    found: Mapping[str, Sequence[Mapping]],
    labels: Sequence[str],
    title: str,
    unit: str,
) -> Figure:
    """The same lines as a picture."""
    figure = Figure(figsize=(8, 3.9), layout="constrained")
    ax = figure.add_subplot()
    for line in lines:
        ax.plot(
            line.x,
            line.y,
            color=line.colour,
            linestyle=_pattern(line.dash),
            linewidth=line.width,
            alpha=line.opacity,
            marker="o" if line.dots else None,
            markersize=2.5,
        )
    for one in found:
        own = style_of(one, labels)
        ax.plot([], [], color=own["colour"], linestyle=_pattern(own["dash"]), label=one)
    ax.set_title(title, loc="left", fontsize=10)
    ax.set_xlabel("optimizer step")
    ax.set_ylabel(unit)
    ax.grid(alpha=0.25)
    ax.spines[["top", "right"]].set_visible(False)
    if found:
        ax.legend(fontsize=8)
    return figure


def _pattern(dash: str):
    """An SVG dash as matplotlib's line style."""
    return (0, tuple(map(float, dash.split()))) if dash else "-"
