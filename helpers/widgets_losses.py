"""The loss explorer: recorded runs, plan by plan and seed by seed, smoothed openly.

Smoothing makes a line calmer than what was measured. Here the measured points stay in the picture, the width
of the smoothing stands in its title, and a table says how far the seeds of a plan lie apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import ipywidgets
import numpy as np
from matplotlib.figure import Figure

from helpers.plots import COLOURS, MARKERS
from helpers.records import read_runs
from helpers.widgets_frame import STYLE, Frame, control, picture_html, table_html

# What can be drawn: label to (list of the record, key in each entry or None, unit).
MEASURES = {"loss on the dev text": ("evaluations", "held_out_loss", "nats a token"),
            "training loss, each batch": ("losses", None, "nats a token"),
            "loss on the training text": ("evaluations", "train_loss", "nats a token"),
            "forgetting": ("evaluations", "forgetting", "nats a token"),
            "gradient norm": ("norms", None, "norm")}
WINDOWS = (1, 3, 5, 9, 15, 25)
ALL = "all"


class RunsError(ValueError):
    """A folder without runs. The message says how to record some."""


def loss_explorer(folder: str | Path, text: str | None = None, ticked: Sequence[str] | None = None,
                  measure: str = "training loss, each batch", window: int = 9) -> Frame:
    """A widget that draws recorded runs.

    Args:
        folder: with one JSON file a run, as `records.write_record` writes them; any plans, texts and seeds.
        text: shown at the start; None takes the first.
        ticked: labels (see `label`) shown at the start, or plans, then all their runs; None takes the first two.
        measure: a key of `MEASURES`.
        window: points that are averaged at the start; 1 draws the points alone.

    Raises:
        RunsError: there is no run in the folder, or there are runs of several models.
    """
    runs = runs_of_one_model(folder)
    labels = sorted(set(map(label, runs)))
    texts, seeds = (sorted({run[key] for run in runs}) for key in ("text", "seed"))
    first = labels[:2] if ticked is None else [one for one in labels if one in ticked or one.split(",")[0] in ticked]
    controls = {
        "text": control(ipywidgets.Dropdown, "Text", "which text the runs were trained on", options=texts,
                        value=text or texts[0]),
        "measure": control(ipywidgets.Dropdown, "Measure", "what is drawn", options=list(MEASURES), value=measure),
        "seed": control(ipywidgets.Dropdown, "Seed", "one run of each plan, or all of them",
                        options=[ALL, *map(str, seeds)], value=ALL),
        "window": control(ipywidgets.SelectionSlider, "Points averaged", "1: nothing is smoothed", options=WINDOWS,
                          value=window),
    }
    controls |= {one: control(ipywidgets.Checkbox, one, f"show the runs of {one}", value=one in first, indent=False,
                              layout={"width": "auto", "margin": "0 1.2em 0 0"}) for one in labels}
    canvas = Curves(labels)

    def chosen(values) -> Mapping[str, list[dict]]:
        on = [one for one in labels if values[one]]
        return runs_shown(runs, on, values["text"], values["seed"])

    def answer(**values):
        found = chosen(values)
        figure = canvas.draw(found, values["measure"], values["window"], values["text"])
        yield "curves", picture_html(figure, sentence(found, values["measure"], values["window"], values["text"]))
        yield "ends", ends_html(found, values["measure"])

    def still():
        values = frame.values
        found = chosen(values)
        said = sentence(found, values["measure"], values["window"], values["text"])
        return canvas.draw(found, values["measure"], values["window"], values["text"]), said

    rows = [["text", "measure", "seed", "window"], labels]
    frame = Frame(controls, {"curves": 390, "ends": 110}, answer, still, rows)
    return frame


def runs_of_one_model(folder: str | Path) -> list[dict]:
    """The recorded runs of a folder. Runs of two models do not belong into one picture."""
    runs = read_runs(folder)
    if not runs:
        raise RunsError(f"There is no recorded run in '{folder}'. Record some with 'make evidence'.")
    n_models = len({run["model_hash"] for run in runs})
    if n_models > 1:
        raise RunsError(f"The runs in '{folder}' are of {n_models} models. Give the folder of one of them.")
    return runs


def label(run: Mapping) -> str:
    """Runs of one label differ in text and seed alone: "full, rate 3e-05"."""
    return f"{run['plan']}, rate {run['rate']:g}"


def runs_shown(runs: Sequence[Mapping], labels: Sequence[str], text: str, seed: str = ALL) -> dict[str, list[Mapping]]:
    """Label to its runs on a text, in order of their seeds; a label without runs there is left out."""
    found = {one: sorted((r for r in runs if label(r) == one and r["text"] == text and seed in (ALL, str(r["seed"]))),
                         key=lambda r: r["seed"]) for one in labels}
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
    half, sizes = window // 2, range(len(values))
    parts = [values[max(0, i - half): i + half + 1] for i in sizes]
    return np.array([np.nanmean(part) if np.isfinite(part).any() else np.nan for part in parts])


def ends(found: Mapping[str, Sequence[Mapping]], measure: str) -> dict[str, np.ndarray]:
    """Label to the last value of each of its runs that has one."""
    last = {one: [values[-1] for _, values in (series(run, measure) for run in own) if len(values)]
            for one, own in found.items()}
    return {one: np.array(values) for one, values in last.items() if values}


def sentence(found: Mapping[str, Sequence[Mapping]], measure: str, window: int, text: str) -> str:
    """What the picture shows, in words."""
    if not found:
        return f"Loss explorer: no run is chosen on {text}."
    own = "; ".join(f"{one}: {len(runs)} seed{'s' * (len(runs) != 1)}" for one, runs in found.items())
    thick = "nothing is smoothed" if window == 1 else f"the thick lines are means over {window} neighbouring points"
    last = "; ".join(f"{one} {values.mean():.3f}" for one, values in ends(found, measure).items())
    return (f"Loss explorer: {measure} over steps on {text} ({own}). Every measured point is drawn, and {thick}. "
            f"At the end, mean over seeds: {last} {MEASURES[measure][2]}.")


def ends_html(found: Mapping[str, Sequence[Mapping]], measure: str) -> str:
    """For each label the last value: its mean over seeds, its lowest and its highest seed. Never smoothed."""
    rows = [(one, str(len(values)), f"{values.mean():.3f}", f"{values.min():.3f}", f"{values.max():.3f}")
            for one, values in ends(found, measure).items()]
    head = (f"{measure}, last point ({MEASURES[measure][2]})", "runs", "mean", "lowest seed", "highest seed")
    return f'<div class="loss-explorer-ends" style="{STYLE}">{table_html(head, rows, "loss-explorer-table")}</div>'


class Curves:
    """One figure for all choices; a label keeps its colour whatever else is shown."""

    def __init__(self, labels: Sequence[str]):
        self.place = {one: i for i, one in enumerate(labels)}
        self.figure = Figure(figsize=(8, 3.9))
        self.figure.subplots_adjust(left=0.09, right=0.98, top=0.91, bottom=0.13)
        self.ax = self.figure.add_subplot()
        self.ax.spines[["top", "right"]].set_visible(False)
        self.ax.grid(alpha=0.25)
        self.ax.set_xlabel("optimizer step")

    def draw(self, found: Mapping[str, Sequence[Mapping]], measure: str, window: int, text: str) -> Figure:
        """Thin: every point, one line a seed. Thick: the smoothed line, if any."""
        for line in list(self.ax.lines):
            line.remove()
        for one, own in found.items():
            colour, marker = (palette[self.place[one] % len(palette)] for palette in (COLOURS, MARKERS))
            for i, run in enumerate(own):
                steps, values = series(run, measure)
                self.ax.plot(steps, values, color=colour, marker=marker, markersize=2.5, linewidth=0.6, alpha=0.45)
                if window > 1:
                    self.ax.plot(steps, smoothed(values, window), color=colour, linewidth=2)
                if i == 0:
                    self.ax.lines[-1].set_label(one)
        how = "every point, nothing smoothed" if window == 1 else f"thin: every point; thick: mean of {window} points"
        self.ax.set_title(f"{measure}, {text} ({how})".capitalize(), loc="left", fontsize=10)
        self.ax.set_ylabel(MEASURES[measure][2])
        self.ax.relim()
        self.ax.autoscale()
        self.legend(bool(found))
        return self.figure

    def legend(self, is_needed: bool) -> None:
        if self.ax.get_legend():
            self.ax.get_legend().remove()
        if is_needed:
            self.ax.legend(fontsize=8, loc="upper right")
