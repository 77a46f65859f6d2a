"""The memory planner: does a training step fit on a card, and if not, what to change?

A prediction from the config. A card gives a program less than its name says; what a step may take is
`scaling.RESERVE` of `scaling.DEVICES`, as in notebook 08.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from matplotlib.figure import Figure

from helpers.costs import DEVICES, GIB, RESERVE, WITHOUT_BFLOAT16, Budget, is_quick, predictor
from helpers.freezing import COURSE_PLANS, FreezePlan, PlanError
from helpers.lessons.widgets.live import LiveDrawing
from helpers.models import Anatomy, anatomy, build_on_meta, n_positions
from helpers.plots import KIND_COLOURS

__all__ = ["memory_planner"]

CARDS = ("T4", "L4", "A100 40")
FLOAT32, HALF = "float32", "bfloat16 (autocast)"
PRECISIONS = {FLOAT32: torch.float32, HALF: torch.bfloat16}
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


def memory_planner(configs: Mapping[str, object], batch: int = 8, length: int = 512) -> LiveDrawing:
    """A widget that says whether a step fits on a T4, an L4 or an A100, and what to change where it does not.

    Args:
        configs: name to config of the models to choose from; the first one is shown at the start.
        batch, length: at the start.
    """
    planner = Planner(configs)
    start = Setting(next(iter(configs)), "full", batch, length, FLOAT32)

    def answer(choice):
        setting = Setting(**choice)
        yield {"costs": {key(one): kinds(planner.cost(one)) for one in neighbours(planner, setting)}}

    def still():
        return cards_figure(planner, start), sentence(planner, start)

    data = {
        "models": {name: model_data(planner, start.but(model=name)) for name in configs},
        "cards": [{"name": n, "room": room(n), "hasHalf": n not in WITHOUT_BFLOAT16} for n in CARDS],
        "kinds": list(KINDS),
        "precisions": list(PRECISIONS),
        "half": HALF,
        "reserve": f"{RESERVE:.0%}",
    }
    return LiveDrawing("memory", data, start.__dict__, still, answer, is_on_page=False)


def model_data(planner: Planner, start: Setting) -> dict:
    """What a reader may choose for a model; each plan with the share of the parameters that train."""
    plans = [{"key": name, "R": planner.R(start.but(plan=name))} for name in planner.plans(start.model)]
    return {
        "batches": list(BATCHES),
        "lengths": planner.lengths(start.model),
        "plans": plans,
        "isQuick": is_quick(planner.configs[start.model]),
    }


def neighbours(planner: Planner, setting: Setting) -> list[Setting]:
    """A setting, and all that differ from it in one thing. Where a prediction takes seconds, the setting alone."""
    if not is_quick(planner.configs[setting.model]):
        return [setting]
    values = {
        "batch": BATCHES,
        "length": planner.lengths(setting.model),
        "precision": PRECISIONS,
        "plan": planner.plans(setting.model),
    }
    return [setting, *(setting.but(**{name: value}) for name, own in values.items() for value in own)]


def key(setting: Setting) -> str:
    """The name under which the module finds a setting's cost."""
    return "|".join(map(str, setting.__dict__.values()))


def kinds(found: Budget) -> list[int]:
    """Bytes at the fullest moment, in the order of `KINDS`."""
    return [sum(found.at_peak[kind] for kind in part) for part in KINDS.values()]


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


def suits(plan: FreezePlan, parts: Anatomy) -> bool:
    """Whether each selector of a plan finds something in a model."""
    try:
        return bool(plan.trainable_names(parts))
    except PlanError:
        return False


def is_able(card: str, precision: str) -> bool:
    """Whether a card computes in a precision: a T4 (of 2018) has no bfloat16."""
    return precision == FLOAT32 or card not in WITHOUT_BFLOAT16


def room(card: str) -> int:
    """Bytes that a step may take on a card."""
    return int(RESERVE * DEVICES[card] * GIB)


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
    for name, kinds in KINDS.items():
        sizes = [sum(found.at_peak[kind] for kind in kinds) / GIB for found in budgets]
        ax.barh([str(batch) for batch in BATCHES], sizes, left=left, color=KIND_COLOURS[name][0], label=name)
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
    ax.legend(fontsize=8, loc="lower right", framealpha=1)  # it lies over the edge of a card
    return figure
