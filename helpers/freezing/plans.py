"""Freeze plans: what trains and what stays fixed, as a value that can be named, printed, applied and undone.

FreezePlan.freeze("attention", "embeddings")     these stay fixed, all else trains
FreezePlan.only("norms")                         these train, all else stays fixed
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass

import pandas as pd
from torch import nn

from helpers.files import counted, seen
from helpers.freezing.selectors import PlanError, canonical, file_id, require_anatomy, select
from helpers.models import Anatomy, Entry, anatomy, named_parameters, unwrapped
from helpers.plots import PLAN_COLOURS

_MEMORY = "_requires_grad_before_plan"  # on the model, so that a deep copy can be undone as well


@dataclass(frozen=True)
class FreezePlan:
    """What trains and what stays fixed, independent of any model.

    Selectors are those of `helpers.freezing.selectors`. One that is not known raises PlanError.
    """

    way: str  # "freeze": the selectors stay fixed, all else trains; "only": the reverse
    selectors: tuple[str, ...] = ()  # kept in one order, so that equal plans compare equal

    def __post_init__(self):
        if self.way not in ("freeze", "only"):
            raise PlanError(f"A plan's way is 'freeze' or 'only', found {self.way!r}.")
        object.__setattr__(self, "selectors", canonical(self.selectors))
        if self.way == "only" and not self.selectors:
            raise PlanError("FreezePlan.only() trains nothing: name at least one selector, such as 'norms'.")

    @classmethod
    def full(cls) -> FreezePlan:
        """Return the plan that freezes nothing."""
        return cls("freeze")

    @classmethod
    def freeze(cls, *selectors: str) -> FreezePlan:
        """Return the plan in which these stay fixed and everything else trains."""
        if not selectors:
            raise PlanError("FreezePlan.freeze() names nothing: write FreezePlan.full() to freeze nothing.")
        return cls("freeze", selectors)

    @classmethod
    def only(cls, *selectors: str) -> FreezePlan:
        """Return the plan in which these train and everything else stays fixed."""
        return cls("only", selectors)

    @classmethod
    def parse(cls, freeze: str | None = None, only: str | None = None) -> FreezePlan:
        """Return the plan of a shell's ``--freeze A+B`` or ``--only A+B``; without either, nothing is frozen.

        ``--freeze none`` freezes nothing as well.
        """
        if freeze is not None and only is not None:
            raise PlanError(f"--freeze {freeze} and --only {only} together: give one of them.")
        if only is not None:
            return cls("only", (only,))
        if freeze is None or freeze == "none":
            return cls.full()
        return cls("freeze", (freeze,))

    @property
    def slug(self) -> str:
        """Return a name for files, another one for each plan: "full", "freeze-attention+embeddings"."""
        if not self.selectors:
            return "full"
        return file_id(f"{self.way}-{'+'.join(self.selectors)}")

    @property
    def title(self) -> str:
        """Return a heading: "attention+embeddings frozen", "only norms train", "nothing frozen"."""
        if not self.selectors:
            return "nothing frozen"
        names = "+".join(self.selectors)
        if self.way == "freeze":
            return f"{names} frozen"
        is_plural = len(self.selectors) > 1 or names in ("embeddings", "norms", "blocks", "biases")
        return f"only {names} train" if is_plural else f"only {names} trains"

    @property
    def code(self) -> str:
        """Return the Python that makes this plan."""
        if not self.selectors:
            return "FreezePlan.full()"
        names = ", ".join(f'"{name}"' for name in self.selectors)
        return f"FreezePlan.{self.way}({names})"

    @property
    def flag(self) -> str:
        """Return the option that gives this plan in a shell: "--freeze attention+embeddings"."""
        names = "+".join(self.selectors) or "none"
        return f"--{self.way} {shlex.quote(names)}"

    def label(self, anatomy: Anatomy) -> str:
        """Return both sides for a table: "freezes attention+embeddings | trains mlp+norm"."""
        return self.ledger(anatomy).label

    def trainable_names(self, anatomy: Anatomy) -> frozenset[str]:
        """Return the names of the parameters that train in this model.

        Raises:
            PlanError: a selector finds nothing here, or nothing is left to train.
        """
        require_anatomy(anatomy)
        chosen = frozenset()
        for selector in self.selectors:
            chosen |= select(anatomy, selector)
        if self.way == "only":
            trainable = chosen
        else:
            trainable = frozenset(anatomy.names()) - chosen
        if not trainable:
            raise PlanError(f"{self.code} trains nothing: it freezes all {len(chosen)} tensors. Freeze less.")
        return trainable

    def ledger(self, anatomy: Anatomy) -> Ledger:
        """Return what the plan does to a model of this anatomy, role by role."""
        trainable = self.trainable_names(anatomy)
        rows = [_row(anatomy, role, trainable) for role in anatomy.counts()]
        notes = [_of_a_tie(entry, entry.name in trainable) for entry in anatomy.entries if entry.aliases]
        notes += [_of_the_head(entry, entry.name in trainable, anatomy) for entry in _own_heads(anatomy)]
        notes += _of_mixers(anatomy, trainable)
        return Ledger(self, tuple(rows), tuple(notes))

    def explain(self, model: nn.Module, roles: dict[str, str] | None = None) -> Ledger:
        """Return the ledger of this plan on a model, which stays as it is (the meta device serves)."""
        return self.ledger(anatomy(model, roles))

    def apply(self, model: nn.Module, roles: dict[str, str] | None = None) -> Ledger:
        """Set ``requires_grad`` on every parameter, and drop the gradients of the frozen ones.

        A later plan replaces an earlier one wholly. Build the optimizer afterwards. `undo`
        goes back to before the first plan (dropped gradients do not come back).

        Raises:
            PlanError, AnatomyError: the plan does not fit the model, which is then unchanged.
        """
        parts = anatomy(model, roles)
        names = self.trainable_names(parts)
        parameters = named_parameters(model)
        _require_trainable({name: p for name, p in parameters if name in names})
        _remember(model, parameters)
        for name, parameter in parameters:
            parameter.requires_grad_(name in names)
            if name not in names:
                parameter.grad = None  # a stale gradient would still move the weight
        return self.ledger(parts)


def require_plan(plan) -> None:
    """Raise PlanError for what is no plan, such as the selectors alone."""
    if not isinstance(plan, FreezePlan):
        raise PlanError(
            f"A plan is a FreezePlan, such as FreezePlan.freeze('attention', 'embeddings'); found {seen(plan)}."
        )


def undo(model: nn.Module) -> None:
    """Put ``requires_grad`` back to what it was before the first plan; nothing to do where none was applied."""
    before = vars(unwrapped(model)).pop(_MEMORY, {})
    for name, parameter in named_parameters(model):
        if name in before:
            parameter.requires_grad_(before[name])


def _remember(model: nn.Module, parameters: list[tuple[str, nn.Parameter]]) -> None:
    """Keep the flags of before the first plan on the model, for `undo`."""
    flags = {name: parameter.requires_grad for name, parameter in parameters}
    vars(unwrapped(model)).setdefault(_MEMORY, flags)


def _require_trainable(parameters: dict[str, nn.Parameter]) -> None:
    """Raise PlanError where a tensor that should train can have no gradient: of whole numbers, or of inference mode."""
    whole = []
    for name, parameter in parameters.items():
        if parameter.is_inference():
            raise PlanError(
                f"The plan would train {name}, which was made under torch.inference_mode and takes part in no gradient. "
                "Make or load the model again outside of that; the model is unchanged."
            )
        if not (parameter.is_floating_point() or parameter.is_complex()):
            kind = str(parameter.dtype).removeprefix("torch.")
            whole.append(f"{name} ({kind})")
    if whole:
        more = f" and {len(whole) - 3} more" if len(whole) > 3 else ""
        raise PlanError(
            f"The plan would train {', '.join(whole[:3])}{more}, which holds whole numbers and can have no "
            "gradient. Load the model in float32 or bfloat16, or freeze it; the model is unchanged."
        )


def _row(parts: Anatomy, role: str, trainable: frozenset[str]) -> LedgerRow:
    """Count the tensors and parameters of one role, and how many of them train."""
    entries = [entry for entry in parts.entries if entry.role == role]
    n_parameters = sum(entry.n_parameters for entry in entries)
    n_trainable = sum(entry.n_parameters for entry in entries if entry.name in trainable)
    share = n_parameters / parts.n_parameters
    return LedgerRow(role, len(entries), n_parameters, n_trainable, share)


def _own_heads(parts: Anatomy) -> list[Entry]:
    """Return the head matrices that are not tied to the token embedding but speak of the same vocabulary."""
    vocabulary = {entry.shape[0] for entry in parts.entries if entry.role == "token_embedding"}
    matrices = [entry for entry in parts.entries if entry.role == "head" and len(entry.shape) > 1]
    return [entry for entry in matrices if entry.shape[0] in vocabulary]


def _of_a_tie(entry: Entry, trains: bool) -> str:
    """Say that a tensor with several names is one, and trains or not as one."""
    state = "trainable" if trains else "frozen"
    return f"{', '.join(entry.aliases)} is {entry.name}: one tensor, counted once, {state} as one"


def _of_the_head(entry: Entry, trains: bool, parts: Anatomy) -> str:
    """Say what happens to a head of its own: a plan for embeddings does not reach it."""
    share = entry.n_parameters / parts.n_parameters
    state = "trainable" if trains else "frozen"
    return (
        f"{entry.name} is a tensor of its own, not tied to the token embedding: "
        f"{entry.n_parameters:,} parameters ({share:.1%}), {state}"
    )


def _of_mixers(parts: Anatomy, trainable: frozenset[str]) -> list[str]:
    """Say what has attention's role and is none: in some layers another mixer brings words together."""
    attention = [entry for entry in parts.entries if entry.role == "attention"]
    asks = {
        entry.layer for entry in attention if entry.part in ("q", "qkv") and ".linear_attn." not in entry.name
    }
    layers = {entry.layer for entry in attention if entry.part == "mixer"} - asks
    if not layers:
        return []
    found = [entry for entry in attention if entry.layer in layers]
    n_trainable = sum(entry.n_parameters for entry in found if entry.name in trainable)
    return [
        f"in {counted(len(layers), 'layer')} of {parts.n_layers} attention means the mixer in its place (recurrent, "
        f"convolutional or linear): {sum(entry.n_parameters for entry in found):,} parameters, {n_trainable:,} trainable"
    ]


# --- the plans that have a name ----------------------------------------------------


@dataclass(frozen=True)
class NamedPlan:
    """A plan of the course or of the study, with its one name and its one colour.

    Attributes:
        key: what code, protocols and records call it.
        title: for headings: what stays fixed or trains.
        label: for figures and tables.
        plan: None where it depends on the model (every other block), or where matrices are inserted first (LoRA).
        is_in_course: whether the notebooks offer it.
    """

    key: str
    title: str
    label: str
    plan: FreezePlan | None
    is_in_course: bool

    @property
    def colour(self) -> str:
        """Return the colour of its lines in every figure, "#rrggbb"."""
        return PLAN_COLOURS[self.key]


def _freezes(key: str, label: str) -> NamedPlan:
    plan = FreezePlan.full() if key == "full" else FreezePlan.freeze(*key.split("+"))
    return NamedPlan(key, plan.title, label, plan, True)


def _trains(name: str, label: str, is_in_course: bool = True) -> NamedPlan:
    plan = FreezePlan.only(name)
    return NamedPlan(f"only-{name}", plan.title, label, plan, is_in_course)


PLANS: dict[str, NamedPlan] = {
    named.key: named
    for named in (
        _freezes("full", "full training"),
        _freezes("attention", "attention frozen"),
        _freezes("attention+embeddings", "main plan"),
        _freezes("mlp", "MLP frozen"),
        _freezes("mlp+embeddings", "MLP and embeddings frozen"),
        _freezes("embeddings", "embeddings frozen"),
        _freezes("first-half", "first half frozen"),
        _trains("attention", "attention alone"),
        _trains("mlp-out", "MLP's output alone"),
        _trains("norms", "norms alone"),
        _trains("biases", "biases alone"),
        _trains("mlp-in", "MLP's input alone", False),
        NamedPlan("only-mlp-alternate", "only every other MLP trains", "every other MLP", None, False),
        NamedPlan("lora-attention", "LoRA on attention", "LoRA on attention", None, False),
        NamedPlan("lora-mlp", "LoRA on the MLP", "LoRA on the MLP", None, False),
        NamedPlan("lora", "LoRA on attention and the MLP", "LoRA", None, False),
    )
}
COURSE_PLANS: dict[str, FreezePlan] = {key: named.plan for key, named in PLANS.items() if named.is_in_course}


def key_of(plan: FreezePlan) -> str:
    """What records call a plan: its key in `PLANS`; its slug where it has none."""
    require_plan(plan)
    return next((key for key, named in PLANS.items() if named.plan == plan), plan.slug)


# --- the ledger --------------------------------------------------------------------


@dataclass(frozen=True)
class LedgerRow:
    """One role: its tensors, parameters, trainable parameters, and share of the model (0 to 1)."""

    role: str
    n_tensors: int
    n_parameters: int
    n_trainable: int
    share: float

    @property
    def state(self) -> str:
        """Return "trainable", "frozen" or "mixed"."""
        if self.n_trainable == 0:
            return "frozen"
        if self.n_trainable == self.n_parameters:
            return "trainable"
        return "mixed"


@dataclass(frozen=True)
class Ledger:
    """A plan's effect on one model. R = n_trainable / n_parameters, the article's parameter ratio."""

    plan: FreezePlan
    rows: tuple[LedgerRow, ...]
    ties: tuple[
        str, ...
    ] = ()  # a sentence for each tensor with several names, a head of its own, and other mixers

    @property
    def n_parameters(self) -> int:
        """Count the parameters of the model."""
        return sum(row.n_parameters for row in self.rows)

    @property
    def n_trainable(self) -> int:
        """Count the parameters that train."""
        return sum(row.n_trainable for row in self.rows)

    @property
    def R(self) -> float:
        """Return the share of the parameters that train, 0 to 1."""
        return self.n_trainable / self.n_parameters

    @property
    def freezes(self) -> str:
        """Return the roles that stay fixed, or "nothing"; "(part)" marks a role on both sides."""
        return self._side("frozen") or "nothing"

    @property
    def trains(self) -> str:
        """Return the roles that train; "(part)" marks a role on both sides."""
        return self._side("trainable")

    @property
    def label(self) -> str:
        """Return both sides for a table: "freezes attention+embeddings | trains mlp+norm"."""
        return f"freezes {self.freezes} | trains {self.trains}"

    def _side(self, state: str) -> str:
        """Name the roles of one state, joined by "+"; the embeddings share one name where they share one state."""
        states = {row.role: row.state for row in self.rows}
        embeddings = [role for role in states if role.endswith("_embedding")]
        alike = len({states[role] for role in embeddings}) == 1
        names = []
        for role in states:
            name = "embeddings" if alike and role in embeddings else role
            if states[role] == state:
                names.append(name)
            elif states[role] == "mixed":
                names.append(f"{name} (part)")
        return "+".join(dict.fromkeys(names))  # each once, in order

    def table(self) -> pd.DataFrame:
        """Return one row for each role: tensors, parameters, trainable, state, share (0 to 1)."""
        columns = {
            "role": [row.role for row in self.rows],
            "tensors": [row.n_tensors for row in self.rows],
            "parameters": [row.n_parameters for row in self.rows],
            "trainable": [row.n_trainable for row in self.rows],
            "state": [row.state for row in self.rows],
            "share": [row.share for row in self.rows],
        }
        return pd.DataFrame(columns).set_index("role")

    def __str__(self) -> str:
        line = "{:<18}  {:>7}  {:>13}  {:>13}  {:<9}  {:>6}".format
        lines = [line("role", "tensors", "parameters", "trainable", "state", "share")]
        for row in self.rows:
            n_parameters = f"{row.n_parameters:,}"
            n_trainable = f"{row.n_trainable:,}"
            lines.append(
                line(row.role, row.n_tensors, n_parameters, n_trainable, row.state, f"{row.share:.1%}")
            )
        n_tensors = sum(row.n_tensors for row in self.rows)
        lines.append(line("all", n_tensors, f"{self.n_parameters:,}", f"{self.n_trainable:,}", "", "100.0%"))
        lines.append(f"freezes: {self.freezes} | trains: {self.trains}")
        lines.append(f"R = {self.n_trainable:,} / {self.n_parameters:,} = {self.R:.4f}")
        return "\n".join([*lines, *self.ties])

    def _repr_html_(self) -> str:
        formatters = {"parameters": "{:,}".format, "trainable": "{:,}".format, "share": "{:.1%}".format}
        table = self.table().to_html(formatters=formatters)
        notes = [f"{self.label}; R = {self.R:.4f}", *self.ties]
        return table + "".join(f"<p>{note}</p>" for note in notes)
