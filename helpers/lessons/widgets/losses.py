"""The loss explorer: recorded runs, plan by plan: the mean over seeds, and a band from the lowest to the highest.

Smoothing makes a line calmer than what was measured. So the title says how many points were averaged, one click shows
every measured point, and the last points of the runs stand below, never smoothed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from helpers.files import counted
from helpers.freezing import PLANS
from helpers.lessons.widgets.live import LiveDrawing
from helpers.measuring import RunRecord
from helpers.plots import line_styles
from helpers.study import read_runs

__all__ = ["loss_explorer"]

# What can be drawn: label to (list of the record, field of each entry or None, unit).
MEASURES = {
    "loss on the dev text": ("evaluations", "held_out_loss", "nats per token"),
    "training loss, each batch": ("losses", None, "nats per token"),
    "loss on the training text": ("evaluations", "train_loss", "nats per token"),
    "forgetting": ("evaluations", "forgetting", "nats per token"),
    "gradient norm": ("norms", None, "norm"),
}
DASHES = ("", "8 4", "2 4", "8 4 2 4")  # a plan's rates, from the lowest
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
) -> LiveDrawing:
    """A widget that draws recorded runs.

    Args:
        folder: with one JSON file a run, as `records.write_record` writes them; any plans, texts and seeds.
        text: shown at the start; None takes the first.
        plans: whose runs are shown at the start; None takes the first two.
        choice: shows only runs at the rate for this purpose, "keep" or "learn"; None: at every rate.
        measure: a key of `MEASURES`.
        window: points that are averaged at the start; 1 draws the points alone.

    Raises:
        RunsError: there is no run in the folder, or there are runs of several models.
    """
    runs = runs_of_one_model(folder)
    texts = sorted({run.text for run in runs})
    text = text or texts[0]
    first = plans or sorted({run.plan for run in runs})[:2]
    on = sorted(
        {
            label(run)
            for run in runs
            if run.plan in first and (choice is None or choice in (run.rate_choice or ""))
        }
    )
    data = {
        "runs": [run_data(run) for run in runs],
        "labels": looks(runs),
        "measures": [{"name": name, "unit": unit} for name, (_, _, unit) in MEASURES.items()],
        "windows": list(WINDOWS),
        "texts": texts,
        "seeds": sorted({run.seed for run in runs}),
    }
    start = {"text": text, "measure": measure, "seed": ALL, "window": window, "every": False, "on": on}

    def still():
        found = runs_shown(runs, on, text)
        return curves_figure(found, measure, window, text, data["labels"]), sentence(
            found, measure, window, text
        )

    return LiveDrawing("losses", data, start, still)


def runs_of_one_model(folder: str | Path) -> list[RunRecord]:
    """The recorded runs of a folder. Runs of two models do not belong into one picture."""
    runs = read_runs(folder)
    if not runs:
        raise RunsError(f"There is no recorded run in '{folder}'. Record some with 'course study first'.")
    n_models = len({run.model_hash for run in runs})
    if n_models > 1:
        raise RunsError(f"The runs in '{folder}' are of {n_models} models. Give the folder of one of them.")
    return runs


def label(run: RunRecord) -> str:
    """Runs of one label differ in text and seed alone: "full, rate 3e-05"."""
    return label_of(run.plan, run.rate)


def label_of(plan: str, rate: float) -> str:
    return f"{plan}, rate {rate:g}"


def looks(runs: Sequence[RunRecord]) -> list[dict]:
    """Each label with its words, its plan's colour, and the dash of its rate, in the registry's order of plans."""
    order = [*PLANS, *sorted({run.plan for run in runs} - set(PLANS))]
    pairs = sorted({(run.plan, run.rate) for run in runs}, key=lambda pair: (order.index(pair[0]), pair[1]))
    colours = line_styles(dict.fromkeys(plan for plan, _ in pairs))
    found = []
    for plan, rate in pairs:
        rates = [r for p, r in pairs if p == plan]
        words = PLANS[plan].label if plan in PLANS else plan
        found.append(
            {
                "label": label_of(plan, rate),
                "words": f"{words}, {rate:.0e}".replace("e-0", "e-"),
                "colour": colours[plan]["color"],
                "dash": DASHES[rates.index(rate) % len(DASHES)],
            }
        )
    return found


def run_data(run: RunRecord) -> dict:
    """What the module needs of a run. Steps that count from 1 are left out; None is no number."""
    found = {}
    for measure, (_, key, _) in MEASURES.items():
        steps, values = series(run, measure)
        numbers = [None if np.isnan(value) else round(float(value), 4) for value in values]
        found[measure] = {"values": numbers} if key is None else {"steps": steps.tolist(), "values": numbers}
    return {"label": label(run), "text": run.text, "seed": run.seed, "series": found}


def runs_shown(runs: Sequence[RunRecord], labels: Sequence[str], text: str) -> dict[str, list[RunRecord]]:
    """Label to its runs on a text, in order of their seeds; a label without runs there is left out."""
    found = {
        one: sorted((r for r in runs if label(r) == one and r.text == text), key=lambda r: r.seed)
        for one in labels
    }
    return {one: own for one, own in found.items() if own}


def series(run: RunRecord, measure: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of one run. Empty where the run has none; what was no number is NaN.

    Training loss and norm of the first batch belong to step 1, an evaluation to the steps taken before it.
    """
    place, key, _ = MEASURES[measure]
    if key is None:
        values = [np.nan if v is None else v for v in getattr(run, place) or ()]
        return 1.0 + np.arange(len(values)), np.array(values, dtype=float)
    points = [(e.step, getattr(e, key)) for e in getattr(run, place) if getattr(e, key) is not None]
    return np.array([step for step, _ in points], dtype=float), np.array([v for _, v in points], dtype=float)


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


@dataclass(frozen=True)
class Band:
    """Several runs as one line: (points,) each, as far as all runs go."""

    steps: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def band(runs: Sequence[RunRecord], measure: str, window: int) -> Band | None:
    """The mean over runs, smoothed, and its lowest and highest run; None where no run has points."""
    found = [own for own in (series(run, measure) for run in runs) if len(own[0])]
    if not found:
        return None
    steps = np.array(sorted(set.intersection(*(set(own) for own, _ in found))))
    values = np.array([smoothed(y, window)[np.isin(x, steps)] for x, y in found])  # (runs, points)
    is_whole = np.isfinite(values).all(axis=0)
    values = values[:, is_whole]
    return Band(steps[is_whole], values.mean(axis=0), values.min(axis=0), values.max(axis=0))


def ends(found: Mapping[str, Sequence[RunRecord]], measure: str) -> dict[str, np.ndarray]:
    """Label to the last value of each of its runs that has one."""
    last = {
        one: [values[-1] for _, values in (series(run, measure) for run in own) if len(values)]
        for one, own in found.items()
    }
    return {one: np.array(values) for one, values in last.items() if values}


def sentence(found: Mapping[str, Sequence[RunRecord]], measure: str, window: int, text: str) -> str:
    """What the picture shows, in words."""
    if not found:
        return f"Loss explorer: no run is chosen on {text}."
    own = "; ".join(f"{one}: {counted(len(runs), 'seed')}" for one, runs in found.items())
    how = "no points are averaged" if window == 1 else f"each point is the mean of {window} neighbouring ones"
    last = "; ".join(f"{one} {values.mean():.3f}" for one, values in ends(found, measure).items())
    return (
        f"Loss explorer: {measure} over steps on {text} ({own}). A line is the mean over seeds, a band goes from the "
        f"lowest to the highest seed, and {how}. At the end, mean over seeds: {last} {MEASURES[measure][2]}."
    )


def curves_figure(
    found: Mapping[str, Sequence[RunRecord]], measure: str, window: int, text: str, labels: Sequence[Mapping]
) -> Figure:
    """The same lines and bands as a picture."""
    figure = Figure(figsize=(8, 3.9), layout="constrained")
    ax = figure.add_subplot()
    for one, runs in found.items():
        own, look = band(runs, measure, window), next(each for each in labels if each["label"] == one)
        if own is not None:
            pattern = (0, tuple(map(float, look["dash"].split()))) if look["dash"] else "-"
            ax.fill_between(own.steps, own.low, own.high, color=look["colour"], alpha=0.18, linewidth=0)
            ax.plot(own.steps, own.mean, color=look["colour"], linestyle=pattern, label=look["words"])
    how = "no points averaged" if window == 1 else f"mean of {window} neighbouring points"
    ax.set_title(
        f"{measure[0].upper()}{measure[1:]}, {text} ({how}; band: all seeds)", loc="left", fontsize=10
    )
    ax.set_xlabel("optimizer step")
    ax.set_ylabel(MEASURES[measure][2])
    ax.grid(alpha=0.25)
    ax.spines[["top", "right"]].set_visible(False)
    if found:
        ax.legend(fontsize=8)
    return figure
