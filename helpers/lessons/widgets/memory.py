"""The memory planner: does a training step fit on a card, and if not, what to change?

A prediction from the config. A card gives a program less than its name says; what a step may take is
`scaling.RESERVE` of `scaling.DEVICES`, as in notebook 08.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import ipywidgets
import torch
from matplotlib.figure import Figure

from helpers.costs import DEVICES, GIB, RESERVE, WITHOUT_BFLOAT16, Budget, is_quick, predictor
from helpers.freezing import COURSE_PLANS, FreezePlan, PlanError
from helpers.lessons.widgets.frame import STYLE, Frame, control, table_html
from helpers.models import Anatomy, anatomy, build_on_meta, n_positions
from helpers.plots import COLOURS

__all__ = ["memory_planner"]

CARDS = ("T4", "L4", "A100 40")
PRECISIONS = {"float32": torch.float32, "bfloat16 (autocast)": torch.bfloat16}
BATCHES = (1, 2, 4, 8, 16, 32, 64)
LENGTHS = (128, 256, 512, 1024, 2048)
KINDS = {
    "weights and buffers": ("parameters", "buffers"),
    "optimizer": ("optimizer",),
    "gradients": ("gradients",),
    "activations": ("activations",),
    "logits": ("logits",),
}


@dataclass(frozen=True)
class Setting:
    """One training step: what the planner's controls say. ``model`` and ``plan`` are names."""

    model: str
    plan: str
    batch: int
    length: int
    precision: str

    def but(self, **changes) -> Setting:
        return Setting(**{**self.__dict__, **changes})


def memory_planner(configs: Mapping[str, object], batch: int = 8, length: int = 512) -> Frame:
    """A widget that says whether a step fits on a T4, an L4 or an A100, and what to change where it does not.

    Args:
        configs: name to config of the models to choose from; the first one is shown at the start.
        batch, length: at the start.
    """
    planner = Planner(configs)
    start = Setting(next(iter(configs)), "full", batch, length, "float32")
    controls = {
        "model": control(
            ipywidgets.Dropdown, "Model", "whose config is used", options=list(configs), value=start.model
        ),
        "plan": control(
            ipywidgets.Dropdown,
            "Plan",
            "what is frozen; only-… names what trains",
            options=planner.plans(start.model),
            value=start.plan,
        ),
        "batch": control(
            ipywidgets.SelectionSlider,
            "Batch",
            "windows in memory at a time",
            options=BATCHES,
            value=batch,
            continuous_update=False,
        ),
        "length": control(
            ipywidgets.SelectionSlider,
            "Length",
            "tokens in a window",
            value=length,
            options=planner.lengths(start.model),
            continuous_update=False,
        ),
        "precision": control(
            ipywidgets.Dropdown,
            "Precision",
            "of the matrix products; weights stay float32",
            options=list(PRECISIONS),
            value=start.precision,
        ),
    }

    def adjust(model, **_):
        fit_options(controls["plan"], planner.plans(model))
        fit_options(controls["length"], planner.lengths(model))

    def answer(**values):
        yield "cards", cards_html(planner, Setting(**values))

    def still():
        setting = Setting(**frame.values)
        return cards_figure(planner, setting), sentence(planner, setting)

    frame = Frame(
        controls,
        {"cards": 210},
        answer,
        still,
        [["model", "plan", "precision"], ["batch", "length"]],
        adjust=adjust,
    )
    return frame


def fit_options(choice, options) -> None:
    """Give a list new options; a value that is no longer there becomes the last one."""
    if tuple(choice.options) != tuple(options):
        value = choice.value if choice.value in options else options[-1]
        choice.options = options
        choice.value = value


class Planner:
    """Predicted peaks, each computed once."""

    def __init__(self, configs: Mapping[str, object]):
        self.configs = dict(configs)
        self._parts = {name: anatomy(build_on_meta(config)) for name, config in self.configs.items()}
        self._predict = {name: predictor(config) for name, config in self.configs.items()}
        self._costs: dict[Setting, Budget] = {}

    def lengths(self, model: str) -> list[int]:
        """Windows that the model has positions for."""
        most = n_positions(self.configs[model]) or LENGTHS[-1]
        return [length for length in LENGTHS if length <= most]

    def plans(self, model: str) -> list[str]:
        """The course's plans that the model can have: Llama's kind has no biases to train."""
        return [name for name, plan in COURSE_PLANS.items() if suits(plan, self._parts[model])]

    def R(self, setting: Setting) -> float:
        """The share of the parameters that train."""
        return COURSE_PLANS[setting.plan].ledger(self._parts[setting.model]).R

    def cost(self, setting: Setting) -> Budget:
        """The predicted step."""
        if setting not in self._costs:
            self._costs[setting] = self._predict[setting.model](
                COURSE_PLANS[setting.plan], setting.batch, setting.length, dtype=PRECISIONS[setting.precision]
            )
        return self._costs[setting]

    def fits(self, setting: Setting, card: str) -> bool:
        """Whether the step's fullest moment stays within what the card gives a program."""
        return is_able(card, setting.precision) and self.cost(setting).peak_bytes <= room(card)

    def largest(self, setting: Setting, card: str, name: str, values: Iterable[int]) -> int | None:
        """The largest of some batches or lengths with which the step fits; None where it never does."""
        return max((v for v in values if self.fits(setting.but(**{name: v}), card)), default=None)


def suits(plan: FreezePlan, parts: Anatomy) -> bool:
    """Whether each selector of a plan finds something in a model."""
    try:
        return bool(plan.trainable_names(parts))
    except PlanError:
        return False


def is_able(card: str, precision: str) -> bool:
    """Whether a card computes in a precision: a T4 (of 2018) has no bfloat16."""
    return precision == "float32" or card not in WITHOUT_BFLOAT16


def room(card: str) -> int:
    """Bytes that a step may take on a card."""
    return int(RESERVE * DEVICES[card] * GIB)


def advice(planner: Planner, setting: Setting, card: str) -> str:
    """What to change so that the step fits on a card, the change that costs least first; or how much more fits."""
    if not is_able(card, setting.precision):
        return f"a {card} does not compute in bfloat16: choose float32"
    if planner.fits(setting, card):
        if not is_quick(planner.configs[setting.model]):
            return ""
        most = planner.largest(setting, card, "batch", BATCHES)
        if setting.batch == BATCHES[-1]:
            return ""
        return f"a batch of {most} fits too" if most > setting.batch else "a batch of twice that does not"
    return (
        "; or ".join(changes(planner, setting, card))
        or "none of these controls alone helps: take a smaller model"
    )


def changes(planner: Planner, setting: Setting, card: str) -> list[str]:
    """Each single change with which the step would fit.

    Many steps are predicted for it, so only where that is quick.
    """
    if not is_quick(planner.configs[setting.model]):
        return ["try other values: for this family a prediction takes seconds"]
    found = []
    batch = planner.largest(setting, card, "batch", [b for b in BATCHES if b < setting.batch])
    if batch is not None:
        found.append(f"micro-batches of {batch}, their gradients added up (the same step)")
    length = planner.largest(
        setting, card, "length", [n for n in planner.lengths(setting.model) if n < setting.length]
    )
    if length is not None:
        found.append(f"windows of {length} tokens")
    half = next(name for name in PRECISIONS if name != "float32")
    if setting.precision == "float32" and planner.fits(setting.but(precision=half), card):
        found.append("bfloat16")
    plans = [name for name in planner.plans(setting.model) if planner.fits(setting.but(plan=name), card)]
    if plans:
        found.append("the plan " + max(plans, key=lambda name: planner.R(setting.but(plan=name))))
    return found


def cards_html(planner: Planner, setting: Setting) -> str:
    """Card by card: the room, the share that the step takes, whether it fits, what to change."""
    found = planner.cost(setting)
    rows = []
    for card in CARDS:
        rows.append(
            (
                card,
                gib(room(card)),
                f"{found.peak_bytes / room(card):.0%}",
                f"<b>{verdict(planner, setting, card)}</b>",
                advice(planner, setting, card),
            )
        )
    kinds = ", ".join(
        f"{name} {gib(sum(found.at_peak[kind] for kind in part))}" for name, part in KINDS.items()
    )
    return (
        f'<div class="memory-planner-result" style="{STYLE}"><p>At the fullest moment a step of {setting.batch} x '
        f"{setting.length} tokens needs <b>{gib(found.peak_bytes)} GiB</b> (predicted): {kinds}.</p>"
        + table_html(("card", "room (GiB)", "taken", "", "what to change"), rows, "memory-planner-cards")
        + f"<p>Room is {RESERVE:.0%} of what the card gives a program.</p></div>"
    )


def verdict(planner: Planner, setting: Setting, card: str) -> str:
    """ "fits", "does not fit", or that the card cannot compute so."""
    if not is_able(card, setting.precision):
        return "no bfloat16"
    return "fits" if planner.fits(setting, card) else "does not fit"


def gib(n_bytes: int) -> str:
    return f"{n_bytes / GIB:.2f}"


def sentence(planner: Planner, setting: Setting) -> str:
    """What the picture shows, in words."""
    said = [f"{card} ({gib(room(card))} GiB): {verdict(planner, setting, card)}" for card in CARDS]
    return (
        f"Memory planner: {setting.model}, plan {setting.plan}, {setting.batch} x {setting.length} tokens, "
        f"{setting.precision}: {gib(planner.cost(setting).peak_bytes)} GiB at the fullest moment (predicted). "
        f"{'; '.join(said)}."
    )


def cards_figure(planner: Planner, setting: Setting) -> Figure:
    """Peak against batch, with a line for what each card gives."""
    figure = Figure(figsize=(7.5, 3.6), layout="constrained")
    ax = figure.add_subplot()
    left = [0.0] * len(BATCHES)
    budgets = [planner.cost(setting.but(batch=batch)) for batch in BATCHES]
    for (name, kinds), colour in zip(KINDS.items(), COLOURS, strict=False):
        sizes = [sum(found.at_peak[kind] for kind in kinds) / GIB for found in budgets]
        ax.barh([str(batch) for batch in BATCHES], sizes, left=left, color=colour, label=name)
        left = [a + b for a, b in zip(left, sizes, strict=True)]
    for card in CARDS:
        ax.axvline(room(card) / GIB, color="#444444", linestyle="--", linewidth=1)
        ax.annotate(
            card,
            (room(card) / GIB, 1),
            (0, 3),
            xycoords=ax.get_xaxis_transform(),
            fontsize=8,
            ha="center",
            textcoords="offset points",
        )
    fitting = [batch for batch in BATCHES if planner.fits(setting.but(batch=batch), CARDS[0])]
    found = f"a batch of {max(fitting)} fits on a {CARDS[0]}" if fitting else f"nothing fits on a {CARDS[0]}"
    ax.set_title(
        f"{setting.model}, plan {setting.plan}, windows of {setting.length}: {found}",
        loc="left",
        fontsize=10,
        pad=16,
    )
    ax.set_xlabel(f"GiB at the fullest moment (predicted, {setting.precision}); dashed: the room on a card")
    ax.set_ylabel("batch (windows)")
    ax.set_xlim(0, 1.1 * room(CARDS[-1]) / GIB)
    ax.invert_yaxis()
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(fontsize=8, loc="lower right")
    return figure
