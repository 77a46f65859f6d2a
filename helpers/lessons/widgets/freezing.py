"""The freeze designer: click what to freeze, and see what it does to the share that trains, memory and FLOPs.

The drawing, the counts and the bytes of state are the module's own; what depends on the step, the memory at the peak
and the FLOPs, is predicted here.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from matplotlib.figure import Figure

from helpers.costs import Budget, compare, predictor
from helpers.freezing import COURSE_PLANS, PLANS, FreezePlan, Ledger, PlanError
from helpers.lessons.widgets.live import LiveDrawing
from helpers.models import Anatomy, anatomy, build_on_meta
from helpers.plots import THEME

__all__ = ["freeze_designer"]

LEAST = 0.012  # of the longest bar: two pixels and more in the stored picture
EMBEDDINGS = ("token_embedding", "position_embedding")
LABELS = {"mlp": "MLP", "norm": "norms", "token_embedding": "token table", "position_embedding": "positions"}


def freeze_designer(
    config, batch: int, length: int, ticked: Sequence[str] = ("attention", *EMBEDDINGS)
) -> LiveDrawing:
    """A widget in which a reader builds a plan by clicking parts of the model.

    Args:
        config: any transformers config of a causal language model.
        batch, length: of the step whose memory and FLOPs are predicted.
        ticked: the roles that are frozen at the start, in all blocks.
    """
    anatomy_ = anatomy(build_on_meta(config))
    parts = parts_of(anatomy_)
    selectors = {part["id"]: part["selectors"] for part in parts}
    predict = predictor(config)

    @cache
    def cost_of(plan: FreezePlan) -> Budget:
        return predict(plan, batch, length)

    def answer(choice):
        plan = plan_of([word for part in choice["frozen"] for word in selectors[part]])
        own, full = cost_of(plan), cost_of(FreezePlan.full())
        yield {"frozen": choice["frozen"], **sizes(own), "full": sizes(full)}

    def still():
        plan = plan_of([role for role in ticked if role not in EMBEDDINGS], set(ticked) & set(EMBEDDINGS))
        costs = cost_of(FreezePlan.full()), cost_of(plan)
        return plan_figure(plan.ledger(anatomy_), *costs), sentence(plan.ledger(anatomy_), *costs)

    data = {
        "parts": parts,
        "plans": named_plans(anatomy_, parts),
        "step": f"a step of {batch} x {length} tokens",
    }
    frozen = [part["id"] for part in parts if part["role"] in ticked]
    return LiveDrawing("freezing", data, {"frozen": frozen}, still, answer)


def parts_of(model: Anatomy) -> list[dict]:
    """The boxes of the drawing, in the order in which a text passes them: a role in a block, or outside of all."""
    places: dict[tuple, list] = {}
    for entry in model.entries:
        places.setdefault((entry.layer, entry.role), []).append(entry)
    last = {"norm": 1, "head": 2}  # outside the blocks: embeddings come before them, these after
    order = ("norm", "attention", "mlp")

    def passed(place):
        block, role = place
        if block is None:
            return (last.get(role, -1) * (model.n_layers + 1), 0)
        return (block, order.index(role) if role in order else len(order))

    return [
        {
            "id": " ".join(selectors_of(place, places[place])),
            "selectors": selectors_of(place, places[place]),
            "role": place[1],
            "block": place[0],
            "label": label_of(*place),
            "n": sum(entry.n_parameters for entry in places[place]),
        }
        for place in sorted(places, key=passed)
    ]


def selectors_of(place: tuple[int | None, str], entries: Sequence) -> list[str]:
    """The selectors that take exactly the parameters of one box."""
    block, role = place
    if block is not None:
        return [f"{'norms' if role == 'norm' else role}@{block}"]
    return [f"name:{entry.name}" for entry in entries] if role == "norm" else [role]


def label_of(block: int | None, role: str) -> str:
    """A box in words: "block 3, MLP"; "the last norm" outside the blocks."""
    words = LABELS.get(role, role)
    return f"block {block}, {words}" if block is not None else "the last norm" if role == "norm" else words


def named_plans(model: Anatomy, parts: Sequence[dict]) -> list[dict]:
    """The course's plans that freeze whole boxes: each with its key, its label and the boxes that it freezes."""
    found = []
    for key, plan in COURSE_PLANS.items():
        try:
            trainable = plan.trainable_names(model)
            own = {part["id"]: plan_of(part["selectors"]).trainable_names(model) for part in parts}
        except PlanError:  # such as biases in a family that has none
            continue
        frozen = [name for name, others in own.items() if trainable <= others]
        if (
            plan_of([w for part in parts if part["id"] in frozen for w in part["selectors"]]).trainable_names(
                model
            )
            == trainable
        ):
            label = PLANS[key].label if key in PLANS else plan.title
            found.append({"key": key, "label": label, "frozen": frozen})
    return found


def plan_of(selectors: Sequence[str], embeddings: Sequence[str] = ()) -> FreezePlan:
    """The plan that freezes these; both embeddings together have one word.

    Raises:
        PlanError: a selector that is not known.
    """
    words = [*selectors, *(["embeddings"] if len(embeddings) == 2 else embeddings)]
    return FreezePlan.freeze(*words) if words else FreezePlan.full()


def sizes(budget: Budget) -> dict:
    """What the module shows of a step: bytes at the fullest moment, and FLOPs in three terms."""
    flops = budget.flops
    return {"peak": budget.peak_bytes, "flops": [flops.forward, flops.backward_input, flops.backward_weight]}


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
    # the edge of an empty bar would hide a small trainable one
    left.barh(
        roles,
        frozen,
        left=drawn,
        color=THEME["frozen-fill"][0],
        edgecolor=THEME["frozen"][0],
        label="frozen",
        linewidth=[float(n > 0) for n in frozen],
    )
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
