"""Pictures of measurements. A title states what is to be seen; colours are safe for colour-blind readers.

Functions return a matplotlib figure; `show` displays it with its alternative text. `Svg` is for drawings: it has the
colours of `THEME`, in light and dark.
"""

from __future__ import annotations

import io
import textwrap
from base64 import b64encode
from collections.abc import Mapping, Sequence
from html import escape
from types import MappingProxyType

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import display
from matplotlib.figure import Figure
from matplotlib.patches import Patch

# Okabe and Ito (2008): told apart with every common form of colour blindness.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
# A role of weights may be frozen or train: it has neither ice nor orange. All stand out on white and on black.
ROLE_COLOURS = {
    "attention": "#6A5ACD",
    "mlp": "#2F9A83",
    "token_embedding": "#999933",
    "position_embedding": "#888888",
    "norm": "#C05299",
    "head": "#555555",
    "total": "#000000",
}
# A plan's lines in every figure, by its key in `helpers.freezing.PLANS`. Full training is orange: all of it trains.
# The first are those of Okabe and Ito, the others of Tol's "muted" (2021), or near them.
PLAN_COLOURS = {
    "full": "#D55E00",
    "attention": "#000000",
    "attention+embeddings": "#0072B2",
    "mlp": "#882255",
    "mlp+embeddings": "#332288",
    "embeddings": "#117733",
    "first-half": "#999933",
    "only-attention": "#009E73",
    "only-mlp-out": "#CC79A7",
    "only-norms": "#AA4499",
    "only-biases": "#661100",
    "only-mlp-in": "#44AA99",
    "only-mlp-alternate": "#6699CC",
    "lora-attention": "#E69F00",
    "lora-mlp": "#56B4E9",
    "lora": "#777777",
}
ON_WHITE = {"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none"}  # a number on a bar
DASHES = ("-", "--", ":", "-.")
DOTS = 2  # of a stored figure for each pixel of the page; after a change every notebook is refreshed
NO_STYLES: Mapping[str, Mapping] = MappingProxyType({})
# Drawings, cards and pages: name to its colour in light and in dark. Ice blue is frozen, orange trains, everywhere.
THEME = {
    "paper": ("#ffffff", "#131416"),
    "raised": ("#f7f9fb", "#1d2024"),
    "ink": ("#1b2733", "#e8edf2"),
    "soft": ("#52606d", "#a9b4bf"),
    "line": ("#d5dde4", "#39424b"),
    "frozen": ("#00639c", "#74c2f2"),
    "frozen-fill": ("#d9edf9", "#12344a"),
    "trains": ("#b04a00", "#ffa266"),
    "trains-fill": ("#fde4d2", "#4a270e"),
}
# A figure is drawn for paper. In the dark, light and dark change places and hues stay: ice is ice, orange is orange.
IN_THE_DARK = "invert(0.926) hue-rotate(180deg)"
# What a step's memory and work are made of, one colour in every picture: in light and in dark, and the names that have
# it. Ice and orange are there for what is frozen and what trains, and for nothing else.
_KINDS = {
    ("#52606d", "#a9b4bf"): ("weights and buffers", "weights", "parameters", "forward"),
    ("#9fabb6", "#66727e"): ("buffers", "constant"),
    ("#a0457a", "#e39ac3"): ("optimizer", "moments"),
    ("#8a8420", "#d6cf6b"): ("gradients",),
    ("#00704f", "#4fcaa3"): ("activations", "working memory"),
    ("#5b4bb5", "#b3a6ff"): ("logits", "backward to the input"),
    THEME["trains"]: ("trained weights", "backward to the weight"),
    THEME["frozen"]: ("frozen weights",),
}
KIND_COLOURS = {name: shades for shades, names in _KINDS.items() for name in names}
GAIN, FORGETTING = "gain on held-out text (nats per token)", "forgetting: KL(base || tuned), nats per token"


def show(figure: Figure, alt: str) -> None:
    """Display a figure once, with alternative text for readers who cannot see it."""
    data, size = png(figure)
    bundle = {"text/plain": repr(figure), "image/png": data}
    display(bundle, metadata={"image/png": {"alt": alt, **size}}, raw=True)
    plt.close(figure)


def png(figure: Figure, **options) -> tuple[str, dict[str, int]]:
    """A figure as a PNG in base64, with `DOTS` for each pixel of the page, and its width there."""
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=DOTS * figure.dpi, **{"bbox_inches": "tight", **options})
    width = int.from_bytes(out.getvalue()[16:20], "big")  # where a PNG says it
    return b64encode(out.getvalue()).decode(), {"width": width // DOTS}


def axes(title: str, x: str, y: str, size: tuple[float, float] = (7, 3.8), has_row_labels: bool = False):
    """A figure with one pair of labelled axes; units belong into the labels. A title stands over row labels too."""
    figure, ax = plt.subplots(figsize=size, layout="constrained")
    if has_row_labels:
        figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    else:
        ax.set_title(title, loc="left", fontsize=11)
    ax.set(xlabel=x, ylabel=y)
    ax.grid(alpha=0.25)
    ax.spines[["top", "right"]].set_visible(False)
    return figure, ax


def part_colour(part: str, i: int) -> str:
    """The colour of a part of a stacked bar: the registry's, else the ``i``-th that is neither ice nor orange."""
    if part in KIND_COLOURS:
        return KIND_COLOURS[part][0]
    return ROLE_COLOURS.get(part, COLOURS[2 + i % 3])


def line_styles(labels: Sequence[str]) -> dict[str, dict]:
    """The look of each line by its label, "plan" or "plan, text": a plan has its colour, a text its dash.

    A name that is no plan's key takes the first of `COLOURS` that no plan of the figure has.
    """
    parts = {label: label.partition(", ") for label in labels}
    names = list(dict.fromkeys(name for name, _, _ in parts.values()))
    texts = list(dict.fromkeys(text for _, _, text in parts.values()))
    known = {name: PLAN_COLOURS[name] for name in names if name in PLAN_COLOURS}
    free = [colour for colour in COLOURS if colour not in known.values()]
    others = [name for name in names if name not in known]
    colour_of = known | {name: free[i % len(free)] for i, name in enumerate(others)}
    return {
        label: {
            "color": colour_of[name],
            "linestyle": DASHES[texts.index(text) % len(DASHES)],
            "marker": MARKERS[names.index(name) % len(MARKERS)],
        }
        for label, (name, _, text) in parts.items()
    }


# --- drawings ----------------------------------------------------------------------


class Svg:
    """A drawing as SVG text. Lengths are in units of its width; colours are names of `THEME`, or "#rrggbb".

    It draws its own ground, so that it can be read on any page. A notebook shows it with ``title`` as its words.
    """

    FONT = "system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif"
    LETTER = 0.56  # mean width of a letter over its size, in a wide face

    def __init__(self, width: float, title: str, theme: str = "auto"):
        """``theme``: "light", "dark", or "auto": as the reader's device. The height is set when all is drawn."""
        self.width, self.height, self.title, self.theme = width, width, title, theme
        self.parts: list[str] = []

    def _paint(self, fill: str | None, stroke: str | None = None) -> str:
        """Attributes for the light colours, and classes by which a style sheet puts the dark ones."""
        painted, classes = [], []
        for what, name in (("fill", fill), ("stroke", stroke)):
            shades = THEME.get(name or "", (name or "none",) * 2)
            painted.append(f'{what}="{shades[self.theme == "dark"]}"')
            if name in THEME and self.theme == "auto":
                classes.append(f"{what}-{name}")
        return " ".join(painted) + (f' class="{" ".join(classes)}"' if classes else "")

    def rect(self, x, y, width, height, fill, stroke=None, radius=4, line=1.5) -> None:
        self.parts.append(self._rect(x, y, width, height, fill, stroke, radius, line))

    def _rect(self, x, y, width, height, fill, stroke, radius, line) -> str:
        paint = self._paint(fill, stroke)
        place = f'x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}"'
        return f'<rect {place} rx="{radius}" stroke-width="{line}" {paint}/>'

    def path(self, steps: str, stroke: str, line: float = 2, dash: str = "", fill: str | None = None) -> None:
        """``steps``: SVG's path commands, such as "M 0 0 L 10 10"."""
        dashes = f'stroke-dasharray="{dash}" ' if dash else ""
        self.parts.append(
            f'<path d="{steps}" stroke-width="{line}" stroke-linecap="round" {dashes}{self._paint(fill, stroke)}/>'
        )

    def arrow(self, x0, y0, x1, y1, stroke: str, line: float = 2, dash: str = "") -> None:
        """A straight arrow, level or upright."""
        length = abs(x1 - x0) + abs(y1 - y0)
        dx, dy = (x1 - x0) / length, (y1 - y0) / length
        self.path(f"M {x0:g} {y0:g} L {x1 - 6 * dx:g} {y1 - 6 * dy:g}", stroke, line, dash)
        left = f"{x1 - 9 * dx - 5 * dy:g} {y1 - 9 * dy - 5 * dx:g}"
        right = f"{x1 - 9 * dx + 5 * dy:g} {y1 - 9 * dy + 5 * dx:g}"
        self.path(f"M {left} L {x1:g} {y1:g} L {right} Z", stroke, 1, fill=stroke)

    def circle(self, x, y, radius, fill, stroke=None, line=1.5) -> None:
        paint = self._paint(fill, stroke)
        self.parts.append(f'<circle cx="{x:g}" cy="{y:g}" r="{radius:g}" stroke-width="{line}" {paint}/>')

    def text(self, x, y, words, size=15, colour="ink", anchor="start", bold=False) -> None:
        """One line; ``y`` is where its letters stand."""
        weight = ' font-weight="600"' if bold else ""
        self.parts.append(
            f'<text x="{x:g}" y="{y:g}" font-size="{size}" text-anchor="{anchor}"{weight} {self._paint(colour)}>'
            f"{escape(words)}</text>"
        )

    def lines(self, x, y, words, width, size=15, colour="ink", bold=False) -> float:
        """Text that wraps at a width; returns where the next line stands."""
        letter = (self.LETTER + 0.06 * bold) * size
        for line in textwrap.wrap(words, int(width / letter)):
            self.text(x, y, line, size, colour, bold=bold)
            y += 1.35 * size
        return y

    def __str__(self) -> str:
        dark = "".join(
            f".{what}-{name}{{{what}:{shades[1]}}}"
            for name, shades in THEME.items()
            for what in ("fill", "stroke")
        )
        ground = self._rect(0.5, 0.5, self.width - 1, self.height - 1, "paper", "line", 12, 1.5)
        style = f"<style>@media (prefers-color-scheme: dark){{{dark}}}</style>" * (self.theme == "auto")
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width:g} {self.height:g}" '
            f'width="{self.width:g}" height="{self.height:g}" font-family="{self.FONT}" role="img">'
            f"<title>{escape(self.title)}</title>{style}\n" + "\n".join([ground, *self.parts]) + "\n</svg>\n"
        )

    def _repr_mimebundle_(self, **kwargs):
        words = textwrap.fill(self.title, 96)
        return {"image/svg+xml": str(self), "text/plain": words}, {"image/svg+xml": {"alt": self.title}}


# --- counting ----------------------------------------------------------------------


def shares(
    counts: Mapping[str, Mapping[str, float]],
    title: str,
    unit: str = "parameters (millions)",
    scale: float = 1e6,
    digits: int | None = None,
) -> Figure:
    """Stacked horizontal bars: one bar a model or plan, one colour a role or kind.

    Args:
        counts: {bar: {part: amount}}.
        scale: amounts are divided by it; 1e6 for millions, 2**20 for MiB.
        digits: each amount stands in its part with so many decimals, where there is room; None: no numbers.
    """
    figure, ax = axes(title, unit, "", (7, 1.2 + 0.5 * len(counts)), has_row_labels=True)
    parts = list(dict.fromkeys(p for bar in counts.values() for p in bar))
    left = np.zeros(len(counts))
    room = 0.065 * max(sum(bar.values()) for bar in counts.values()) / scale  # as wide as a number
    for i, part in enumerate(parts):
        amounts = np.array([bar.get(part, 0.0) for bar in counts.values()]) / scale
        name = part.replace("_", " ")
        bars = ax.barh(list(counts), amounts, left=left, color=part_colour(part, i), label=name)
        if digits is not None:
            numbers = [f"{amount:,.{digits}f}" if amount > room else "" for amount in amounts]
            ax.bar_label(bars, numbers, label_type="center", fontsize=8, bbox=ON_WHITE)
        left += amounts
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
    figure.legend(fontsize=8, ncols=3, loc="outside lower center", frameon=False)  # right below the bars
    return figure


def predicted_and_measured(
    points: Mapping[str, Mapping[str, Mapping[str, float]]],
    title: str,
    unit: str = "MiB at the fullest moment",
    scale: float = 2**20,
) -> Figure:
    """Two stacked bars a point, predicted above measured (hatched), one colour a group of bytes.

    Args:
        points: {point: {"predicted": {group: amount}, "measured": {group: amount}}}.
        scale: amounts are divided by it; 2**20 for MiB.
    """
    figure, ax = axes(title, unit, "", (7, 1.4 + 0.42 * len(points)), has_row_labels=True)
    groups = list(
        dict.fromkeys(g for point in points.values() for g in (*point["predicted"], *point["measured"]))
    )
    for row, point in enumerate(points.values()):
        for side, shift, hatch in (("predicted", -0.2, None), ("measured", 0.2, "//")):
            left = 0.0
            for i, group in enumerate(groups):
                amount = point[side].get(group, 0.0) / scale
                look = {"color": part_colour(group, i), "hatch": hatch, "edgecolor": "white"}
                ax.barh(row + shift, amount, 0.36, left, linewidth=0.5, **look)
                left += amount
    ax.set_yticks(range(len(points)), list(points))
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
    names = [Patch(color=part_colour(group, i), label=group) for i, group in enumerate(groups)]
    names += [Patch(facecolor="#888888", label="upper bar: predicted")]
    names += [Patch(facecolor="#888888", edgecolor="white", hatch="////", label="lower bar: measured")]
    figure.legend(handles=names, fontsize=8, ncols=3, loc="outside lower center", frameon=False)
    return figure


def attention_maps(weights: np.ndarray, title: str, names: Sequence[str]) -> Figure:
    """Attention maps side by side: rows are queries, columns are keys.

    ``weights``: (maps, time, time), each row summing to 1. ``names``: one for each map.
    """
    figure, all_axes = plt.subplots(
        1, len(weights), figsize=(3.1 * len(weights), 3.3), layout="constrained", squeeze=False
    )
    for ax, one, name in zip(all_axes[0], weights, names, strict=True):
        ax.imshow(np.sqrt(one), cmap="Blues", vmin=0, vmax=1)
        ax.set_title(name, fontsize=9)
        ax.set_xlabel("key position")
    all_axes[0][0].set_ylabel("query position")
    figure.suptitle(title + " (square root of the weight)", fontsize=11)
    return figure


# --- training ----------------------------------------------------------------------


def loss_curves(
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    title: str,
    y: str = "loss (nats per token)",
    names_at_ends: bool = False,
) -> Figure:
    """Loss over steps. ``curves``: {label: (steps, losses)}; nothing is smoothed. ``names_at_ends``: for few lines."""
    figure, ax = axes(title, "optimizer step", y)
    styles = line_styles(list(curves))
    for label, (steps, losses) in curves.items():
        dense = len(steps) > 40
        look = {"linewidth": 1, "alpha": 0.8, "marker": None} if dense else {"linewidth": 1.8}
        ax.plot(steps, losses, label=label, markersize=4, **(styles[label] | look))
    if names_at_ends:
        _names_at_ends(ax)
    else:
        ax.legend(fontsize=8)
    return figure


def named_lines(
    lines: Mapping[str, tuple[Sequence[float], Sequence[float]]], title: str, x: str, y: str
) -> Figure:
    """A few lines, each with its name beside its end: {label: (xs, ys)}.

    Their colours leave ice and orange to what is frozen and what trains.
    """
    figure, ax = axes(title, x, y)
    for (label, (xs, ys)), colour, marker in zip(lines.items(), COLOURS[2:], MARKERS, strict=False):
        ax.plot(xs, ys, label=label, color=colour, marker=marker, markersize=4, linewidth=1.8)
    _names_at_ends(ax)
    return figure


def over_rates(sweeps: Mapping[str, Mapping[float, float]], title: str, base_loss: float) -> Figure:
    """Loss against learning rate: {label: {rate: loss}}. A run without a number leaves a gap.

    The dashed line is the untouched base; what ends far above it is drawn at the upper edge.
    """
    figure, ax = axes(title, "learning rate (logarithmic)", "held-out loss (nats per token)")
    lowest = np.nanmin([loss for losses in sweeps.values() for loss in losses.values()])
    top = base_loss + (base_loss - lowest)
    styles = line_styles(list(sweeps))
    for label, losses in sweeps.items():
        rates = sorted(losses)
        ends = np.minimum([losses[rate] for rate in rates], top)
        ax.plot(rates, ends, label=label, markersize=4, **styles[label])
    ax.axhline(base_loss, color="#666666", linestyle="--", linewidth=1, label="untouched base")
    ax.set_xscale("log")
    ax.legend(fontsize=8)
    return figure


def spectra(matrices: Mapping[str, np.ndarray], title: str, rank: int) -> Figure:
    """How much of a matrix fits into each rank: share of the sum of squared singular values.

    ``matrices``: label to matrix. A dashed line marks ``rank``.
    """
    figure, ax = axes(title, "rank (logarithmic)", "share of the squared size")
    for i, (label, matrix) in enumerate(matrices.items()):
        squares = np.linalg.svd(np.asarray(matrix, dtype=np.float64), compute_uv=False) ** 2
        ax.plot(1 + np.arange(len(squares)), squares.cumsum() / squares.sum(), color=COLOURS[i], label=label)
    ax.axvline(rank, color="#666666", linestyle="--", linewidth=1, label=f"rank {rank}")
    ax.set_xscale("log")
    ax.set_ylim(0, 1.05)
    ax.legend(fontsize=8)
    return figure


def frontier(
    points: Mapping[str, tuple[Sequence[float], Sequence[float]]], title: str, level: float | None = None
) -> Figure:
    """Forgetting against gain: {label: (gains, forgetting)}; a dashed line marks the matched gain."""
    figure, ax = axes(title, GAIN, FORGETTING)
    styles = line_styles(list(points))
    for label, (gains, forgotten) in points.items():
        ax.plot(gains, forgotten, label=label, markersize=4, **styles[label])
    if level is not None:
        ax.axvline(level, color="#666666", linestyle="--", linewidth=1)
        ax.annotate("matched gain", (level, ax.get_ylim()[1]), fontsize=8, ha="right", va="top", rotation=90)
    ax.legend(fontsize=8)
    return figure


def recipes(
    paths: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    title: str,
    level: float,
    styles: Mapping[str, Mapping] = NO_STYLES,
) -> Figure:
    """Forgetting against gain, one line a recipe: {label: (gains, forgetting)}. Each path ends at its best gain.

    The names stand at the right in the order of forgetting at ``level``, the gain at which recipes are compared; a thin
    line leads to the point. A path that does not get there is named at its end. ``styles``: as in `lines_of_runs`.
    """
    figure, ax = axes(title, GAIN, FORGETTING, (8.6, 4.6))
    named = []
    for i, (label, path) in enumerate(paths.items()):
        gains, forgotten = (np.asarray(values)[: np.argmax(path[0]) + 1] for values in path)
        own = {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)]}
        look = own | styles.get(label, {})
        ax.plot(gains, forgotten, label=label, markersize=4, **look)
        at = float(np.interp(level, gains, forgotten)) if gains[-1] >= level else float(forgotten[-1])
        named.append((at, min(level, gains[-1]), ax.get_lines()[-1]))
    ax.axvline(level, color="#666666", linestyle="--", linewidth=1)
    ax.annotate("compared here", (level, 1), (-3, -4), xycoords=("data", "axes fraction"), fontsize=8, rotation=90,
                textcoords="offset points", ha="right", va="top")  # fmt: skip
    _names_at_the_right(ax, sorted(named, key=lambda item: item[0]))
    return figure


def _names_at_the_right(ax, named: Sequence[tuple], gap: float = 0.065) -> None:
    """Write each line's label beside the axes, at the height of its point or as near above as there is room.

    Args:
        named: (y, x, line) of each point, the lowest first.
        gap: between two labels, as a share of the height.
    """
    low, high = ax.get_ylim()
    place = -gap
    for y, x, line in named:
        place = max((y - low) / (high - low), place + gap)
        ax.annotate(
            line.get_label(),
            (x, y),
            (1.03, place),
            textcoords="axes fraction",
            fontsize=9,
            color=line.get_color(),
            va="center",
            arrowprops={"arrowstyle": "-", "color": line.get_color(), "alpha": 0.6, "linewidth": 0.8},
        )


def along_the_line(
    shares: Sequence[float], gains: Sequence[float], forgotten: Sequence[float], title: str
) -> Figure:
    """Gain and forgetting of the models between base (share 0) and tuned model (share 1), as curves over the share."""
    figure, ax = axes(title, "α: the share of the change that stays", "nats per token")
    ax.plot(shares, gains, "^-", color=COLOURS[2], markersize=4, label="gain on the dev text")
    ax.plot(shares, forgotten, "s-", color=COLOURS[6], markersize=4, label="forgetting: KL(base || rewound)")
    best = int(np.argmax(gains))
    ax.axvline(shares[best], color="#666666", linestyle="--", linewidth=1, label="the best gain")
    ax.legend(fontsize=8)
    return figure


def lines_of_runs(
    panels: Mapping[str, Mapping[str, Sequence[tuple]]],
    title: str,
    levels: Mapping[str, float],
    x: str = GAIN,
    y: str = FORGETTING.replace(", ", ",\n"),
    styles: Mapping[str, Mapping] = NO_STYLES,
) -> Figure:
    """One line a run, one colour a label, one panel a text: {text: {label: [(xs, ys), …]}}; a dashed line a level.

    ``styles``: label to matplotlib's options of its lines, such as its colour; a label without one takes the next.
    """
    figure, row = _panels(panels, title, x, y)
    for ax, (text, paths) in zip(row, panels.items(), strict=True):
        for i, (label, runs) in enumerate(paths.items()):
            for k, (xs, ys) in enumerate(runs):
                style = {"color": COLOURS[i % len(COLOURS)], **styles.get(label, {})}
                ax.plot(xs, ys, label=label if k == 0 else "_nolegend_", linewidth=1, **style)
        if text in levels:
            ax.axvline(levels[text], color="#666666", linestyle="--", linewidth=1)
    _names_at_ends(row[-1])
    return figure


def _names_at_ends(ax) -> None:
    """The names of the lines in the right margin, beside their ends and not over each other: no legend to look up."""
    lines = [line for line in ax.get_lines() if not str(line.get_label()).startswith("_")]
    ends = sorted(((float(line.get_ydata()[-1]), line) for line in lines), key=lambda end: end[0])
    low, high = ax.get_ylim()
    place = -np.inf
    for y, line in ends:
        place = max(y, place + 0.07 * (high - low))
        beside = {"xycoords": ("axes fraction", "data"), "va": "center", "annotation_clip": False}
        ax.annotate("●", (1.02, place), color=line.get_color(), fontsize=9, **beside)
        ax.annotate(line.get_label(), (1.07, place), fontsize=9, **beside)


def forgetting_over_rates(
    panels: Mapping[str, Mapping[str, Mapping[float, float]]],
    title: str,
    styles: Mapping[str, Mapping] = NO_STYLES,
) -> Figure:
    """Forgetting at one gain against the learning rate, a panel a text: {text: {label: {rate: forgetting}}}.

    ``styles``: as in `lines_of_runs`.
    """
    figure, row = _panels(
        panels, title, "learning rate (logarithmic)", "forgetting at equal gain,\nnats per token"
    )
    for ax, plans in zip(row, panels.values(), strict=True):
        for label, by_rate in plans.items():
            if by_rate:
                look = line_styles(list(plans))[label] | styles.get(label, {})
                ax.plot(*zip(*sorted(by_rate.items()), strict=True), label=label, markersize=4, **look)
        rates = sorted({rate for by_rate in plans.values() for rate in by_rate})
        ax.set_xscale("log")
        ax.set_xticks(rates, [f"{rate:g}" for rate in rates], fontsize=8)
        ax.minorticks_off()
    _names_at_ends(row[-1])
    return figure


def title_width(title: str) -> float:
    """Inches that a title needs, so that a small picture does not cut it off."""
    return 0.2 + 0.085 * max(map(len, title.splitlines()))


def _panels(names: Sequence[str], title: str, x: str, y: str):
    """One row of axes with a common vertical axis, and a title over them all."""
    width = max(1 + 3.6 * len(names), title_width(title))
    figure, grid = plt.subplots(
        1, len(names), figsize=(width, 3.6), sharey=True, squeeze=False, layout="constrained"
    )
    figure.suptitle(title, fontsize=10, x=0.01, ha="left")
    for ax, name in zip(grid[0], names, strict=True):
        ax.set_title(name, fontsize=9)
        ax.set_xlabel(x, fontsize=9)
        ax.grid(alpha=0.25)
        ax.spines[["top", "right"]].set_visible(False)
    grid[0][0].set_ylabel(y, fontsize=9)
    return figure, grid[0]


def intervals(
    rows: Mapping[str, tuple[float, float, float]],
    title: str,
    x: str,
    smallest: float | Sequence[float] | None = None,
    same: float = 0,
) -> Figure:
    """Means with their intervals, one a row: {label: (mean, low, high)}. The label says it all: one colour.
    ``same`` is where two things are equal; ``smallest`` shades what is too near it to count: one number, or one a row.
    """
    figure, ax = axes(title, x, "", (7, 1.4 + 0.45 * len(rows)), has_row_labels=True)
    means, lows, highs = np.array(list(rows.values()), dtype=float).reshape(-1, 3).T
    ax.errorbar(
        means, range(len(rows)), xerr=[means - lows, highs - means], fmt="o", color=COLOURS[0], capsize=4
    )
    ax.axvline(same, color="#444444", linewidth=1)
    if smallest is not None:
        half = np.array(smallest)
        ax.barh(
            range(len(rows)), 2 * half, 1, same - half, color="#999999", alpha=0.2, label="too small to count"
        )
        figure.legend(fontsize=8, loc="outside lower center", frameon=False)
    ax.set_yticks(range(len(rows)), list(rows))
    ax.set_ylim(len(rows) - 0.5, -0.5)
    return figure


def matrix(table: pd.DataFrame, title: str, x: str, y: str, by_column: bool = False) -> Figure:
    """A small table as a heat map with its numbers in it. ``by_column``: colours show differences inside a column."""
    width = max(1.0 + 0.085 * max(map(len, map(str, table.index))) + 1.2 * table.shape[1], title_width(title))
    figure, ax = plt.subplots(figsize=(width, 1.3 + 0.6 * table.shape[0]), layout="constrained")
    figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    shown = table.to_numpy() - (table.to_numpy().mean(0) if by_column else 0)
    image = ax.imshow(shown, cmap="cividis", aspect="auto")
    middle = (image.norm.vmin + image.norm.vmax) / 2
    for (row, column), value in np.ndenumerate(table.to_numpy()):
        ink = "white" if shown[row, column] < middle else "black"
        ax.text(column, row, f"{value:.3f}", ha="center", va="center", color=ink)
    ax.set_xticks(range(table.shape[1]), table.columns)
    ax.set_yticks(range(table.shape[0]), table.index)
    ax.set_xlabel(x)
    ax.set_ylabel(y)
    return figure
