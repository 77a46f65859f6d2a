"""The freeze designer: tick what to freeze, and see what it does to the ledger, R, memory and FLOPs.

For tests that look at the page: the checkboxes are called by their role ("attention", "mlp", "norm",
"token_embedding", "position_embedding", "head") and by their block ("block 0", "block 1", …); the list in front
is called "Ticked parts". The results stand in elements of the classes `RESULT` (all of it), `LEDGER`, `RATIO`,
`CODE` (the plan as Python) and `COST`.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from functools import cache

import ipywidgets
from matplotlib.figure import Figure

from helpers.costs import MIB, Budget, compare, predictor
from helpers.freezing import FreezePlan, Ledger
from helpers.lessons.widgets.frame import STYLE, Frame, control, table_html, tick
from helpers.models import Anatomy, anatomy, build_on_meta
from helpers.plots import THEME

__all__ = ["freeze_designer"]

LEAST = 0.012  # of the longest bar: two pixels and more in the stored picture

RESULT, LEDGER, RATIO, CODE, COST = (
    f"freeze-designer-{part}" for part in ("result", "ledger", "ratio", "code", "cost")
)
IN_BLOCKS = ("attention", "mlp", "norm")
EMBEDDINGS = ("token_embedding", "position_embedding")
WAYS = {"stay frozen, all else trains": "freeze", "train, all else stays frozen": "only"}


def freeze_designer(
    config, batch: int, length: int, ticked: Sequence[str] = ("attention", *EMBEDDINGS)
) -> Frame:
    """A widget in which a reader builds a plan by ticking roles and blocks.

    Args:
        config: any transformers config of a causal language model.
        batch, length: of the step whose memory and FLOPs are predicted.
        ticked: the roles at the start, in all blocks.
    """
    parts = anatomy(build_on_meta(config))
    controls = {
        "way": control(
            ipywidgets.Dropdown,
            "Ticked parts",
            "what happens to the parts that you tick",
            options=list(WAYS),
            value=next(iter(WAYS)),
        )
    }
    controls |= {
        role: tick(role, f"all weights of the role {role.replace('_', ' ')}", role in ticked)
        for role in parts.counts()
    }
    controls |= {
        f"block {i}": tick(f"block {i}", f"the ticked ones of attention, mlp and norm, in block {i}", True)
        for i in range(parts.n_layers)
    }
    predict = predictor(config)

    @cache
    def cost_of(plan: FreezePlan) -> Budget:
        return predict(plan, batch, length)

    def answer(way, **ticks):
        plan = plan_of(parts, way, [name for name, is_on in ticks.items() if is_on])
        yield "ledger", ledger_html(plan.ledger(parts))
        yield "cost", cost_html(cost_of(FreezePlan.full()), cost_of(plan))

    def still():
        plan = plan_of(parts, next(iter(WAYS)), [name for name, one in controls.items() if one.value is True])
        figure = plan_figure(plan.ledger(parts), cost_of(FreezePlan.full()), cost_of(plan))
        return figure, sentence(plan.ledger(parts), cost_of(FreezePlan.full()), cost_of(plan))

    blocks = [name for name in controls if name.startswith("block ")]
    return Frame(
        controls, {"ledger": 220, "cost": 150}, answer, still, [["way"], list(parts.counts()), blocks]
    )


def plan_of(parts: Anatomy, way: str, ticked: Sequence[str]) -> FreezePlan:
    """The plan that ticks mean: a role in blocks counts in the ticked blocks, the embeddings and the head as a whole.

    Args:
        way: a key of `WAYS`.
        ticked: roles, and blocks as "block 3".

    Raises:
        PlanError: nothing would train.
    """
    blocks = [i for i in range(parts.n_layers) if f"block {i}" in ticked]
    embeddings = [role for role in EMBEDDINGS if role in ticked]
    selectors = ["embeddings"] if embeddings == list(EMBEDDINGS) else embeddings
    selectors += ["head"] if "head" in ticked else []
    for role in (role for role in IN_BLOCKS if role in ticked):
        selectors += [role] if len(blocks) == parts.n_layers else [f"{role}@{run}" for run in runs_of(blocks)]
    if WAYS[way] == "freeze":
        return FreezePlan.freeze(*selectors) if selectors else FreezePlan.full()
    return FreezePlan.only(*selectors)


def runs_of(numbers: Sequence[int]) -> list[str]:
    """Neighbouring numbers joined: [0, 1, 2, 5] becomes ["0-2", "5"]."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return [f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs]


def ledger_html(ledger: Ledger) -> str:
    """Role by role what trains; R; and the Python that makes the plan."""
    rows = [(row.role, f"{row.n_parameters:,}", f"{row.n_trainable:,}", row.state) for row in ledger.rows]
    rows.append(("<b>all</b>", f"{ledger.n_parameters:,}", f"{ledger.n_trainable:,}", ""))
    return (
        f'<div class="{RESULT}" style="{STYLE}">'
        + table_html(("role", "parameters", "trainable", "state"), rows, LEDGER)
        + f'<p>R = {ledger.n_trainable:,} / {ledger.n_parameters:,} = <b class="{RATIO}">{ledger.R:.4f}</b></p>'
        + f'<p>The plan: <code class="{CODE}">{html.escape(ledger.plan.code)}</code></p></div>'
    )


def cost_html(full: Budget, own: Budget) -> str:
    """Predicted memory and FLOPs of a step, beside full training's."""
    rows = [
        ("weights, gradients, optimizer", *shared(full.state_bytes, own.state_bytes, MIB, "MiB")),
        ("all at the fullest moment", *shared(full.peak_bytes, own.peak_bytes, MIB, "MiB")),
    ]
    for term in ("forward", "backward_input", "backward_weight", "step"):
        name = {"step": "all three"}.get(term, term.replace("_", " to the "))
        rows.append((name, *shared(getattr(full.flops, term), getattr(own.flops, term), 1e9, "GFLOP")))
    head = (f"one step of {own.batch} x {own.length} tokens", "nothing frozen", "this plan", "share")
    return f'<div class="{RESULT}">{table_html(head, rows, COST)}</div>'


def shared(full: int, own: int, scale: float, unit: str) -> tuple[str, str, str]:
    """Full training's amount, the plan's, and its share."""
    return f"{full / scale:,.1f} {unit}", f"{own / scale:,.1f} {unit}", f"{own / full:.0%}"


def sentence(ledger: Ledger, full: Budget, own: Budget) -> str:
    """What the picture shows, in words."""
    share = compare(full, own)
    return (
        f"Freeze designer, {ledger.plan.code}: R = {ledger.R:.3f}. Of full training's step it needs "
        f"{share['state_bytes']:.0%} of the memory for weights, gradients and optimizer, {share['peak_bytes']:.0%} "
        f"of the memory at the fullest moment, and {share['step_flops']:.0%} of the FLOPs (predicted)."
    )


def plan_figure(ledger: Ledger, full: Budget, own: Budget) -> Figure:
    """Left: what trains of each role. Right: what is left of full training's cost."""
    figure = Figure(figsize=(8.5, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    roles = [row.role.replace("_", " ") for row in ledger.rows]
    trained = [row.n_trainable / 1e6 for row in ledger.rows]
    frozen = [(row.n_parameters - row.n_trainable) / 1e6 for row in ledger.rows]
    least = LEAST * max(map(sum, zip(trained, frozen, strict=True)))
    drawn = [max(n, least) if n else 0.0 for n in trained]  # a LayerNorm that trains can be seen
    left.barh(roles, drawn, color=THEME["trains"][0], label="trainable")
    left.barh(
        roles,
        frozen,
        left=drawn,
        color=THEME["frozen-fill"][0],
        edgecolor=THEME["frozen"][0],
        label="frozen",
        linewidth=[float(n > 0) for n in frozen],
    )  # the edge of an empty bar would hide a small trainable one
    left.set_xlabel("parameters (millions)")
    left.set_title(f"{ledger.plan.title}: R = {ledger.R:.3f}", loc="left", fontsize=10)
    left.legend(fontsize=8)
    share = compare(full, own)
    bars = {
        "parameters that train": ledger.R,
        "weights, gradients,\noptimizer": share["state_bytes"],
        "memory at the peak": share["peak_bytes"],
        "FLOPs of a step": share["step_flops"],
    }
    right.barh(list(bars), [100 * value for value in bars.values()], color=THEME["soft"][0])
    right.axvline(100, color="#444444", linewidth=1)
    right.set_xlabel("% of full training (predicted)")
    right.set_title(
        f"Trainable: {1 - ledger.R:.0%} fewer; peak: {1 - share['peak_bytes']:.0%} less",
        loc="left",
        fontsize=10,
    )
    for ax in (left, right):
        ax.invert_yaxis()
        ax.tick_params(labelsize=8)
        ax.spines[["top", "right"]].set_visible(False)
    return figure
