"""Freeze plans: what trains and what stays fixed, as a value that can be named, printed, applied and undone.

FreezePlan.freeze("attention", "embeddings")     these stay fixed, all else trains
FreezePlan.only("norms")                         these train, all else stays fixed
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass

import pandas as pd
from torch import nn

from helpers.freezing.selectors import GROUPS, PlanError, canonical, file_id, select
from helpers.models import Anatomy, Entry, anatomy, named_parameters, unwrapped

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
        """Nothing frozen."""
        return cls("freeze")

    @classmethod
    def freeze(cls, *selectors: str) -> FreezePlan:
        """These stay fixed; everything else trains."""
        if not selectors:
            raise PlanError("FreezePlan.freeze() names nothing: write FreezePlan.full() to freeze nothing.")
        return cls("freeze", selectors)

    @classmethod
    def only(cls, *selectors: str) -> FreezePlan:
        """These train; everything else stays fixed."""
        return cls("only", selectors)

    @classmethod
    def parse(cls, freeze: str | None = None, only: str | None = None) -> FreezePlan:
        """A plan from a shell's ``--freeze A+B`` or ``--only A+B``; ``--freeze none`` and neither freeze nothing."""
        if freeze is not None and only is not None:
            raise PlanError(f"--freeze {freeze} and --only {only} together: give one of them.")
        if only is not None:
            return cls("only", (only,))
        return cls.full() if freeze in (None, "none") else cls("freeze", (freeze,))

    @property
    def slug(self) -> str:
        """A name for files, different for different plans: "full", "freeze-attention+embeddings"."""
        return file_id(f"{self.way}-{'+'.join(self.selectors)}") if self.selectors else "full"

    @property
    def title(self) -> str:
        """For headings: "attention+embeddings frozen", "only norms train", "nothing frozen"."""
        if not self.selectors:
            return "nothing frozen"
        names = "+".join(self.selectors)
        verb = "train" if len(self.selectors) > 1 or names in GROUPS[:4] else "trains"  # "only norms train"
        return f"{names} frozen" if self.way == "freeze" else f"only {names} {verb}"

    @property
    def code(self) -> str:
        """The Python that makes this plan."""
        names = ", ".join(f'"{name}"' for name in self.selectors)
        return f"FreezePlan.{self.way}({names})" if names else "FreezePlan.full()"

    @property
    def flag(self) -> str:
        """The same plan in a shell."""
        return f"--{self.way} {shlex.quote('+'.join(self.selectors) or 'none')}"

    def label(self, anatomy: Anatomy) -> str:
        """For tables, both directions: "freezes attention+embeddings | trains mlp+norm"."""
        return self.ledger(anatomy).label

    def trainable_names(self, anatomy: Anatomy) -> frozenset[str]:
        """Names of the parameters that train in this model.

        Raises:
            PlanError: a selector finds nothing here, or nothing is left to train.
        """
        chosen = frozenset().union(*(select(anatomy, selector) for selector in self.selectors))
        trainable = chosen if self.way == "only" else frozenset(anatomy.names()) - chosen
        if not trainable:
            raise PlanError(f"{self.code} trains nothing: it freezes all {len(chosen)} tensors. Freeze less.")
        return trainable

    def ledger(self, anatomy: Anatomy) -> Ledger:
        """What the plan does to a model of this anatomy, by role."""
        names, rows = self.trainable_names(anatomy), []
        for role, n in anatomy.counts().items():
            entries = [e for e in anatomy.entries if e.role == role]
            n_trainable = sum(e.n_parameters for e in entries if e.name in names)
            rows.append(LedgerRow(role, len(entries), n, n_trainable, n / anatomy.n_parameters))
        ties = tuple(
            f"{', '.join(e.aliases)} is {e.name}: one tensor, counted once, "
            f"{'trainable' if e.name in names else 'frozen'} as one"
            for e in anatomy.entries
            if e.aliases
        )
        vocabulary = {e.shape[0] for e in anatomy.entries if e.role == "token_embedding"}
        heads = [
            e for e in anatomy.entries if e.role == "head" and len(e.shape) > 1 and e.shape[0] in vocabulary
        ]
        return Ledger(
            self, tuple(rows), ties + tuple(_of_the_head(e, e.name in names, anatomy) for e in heads)
        )

    def explain(self, model: nn.Module, roles: dict[str, str] | None = None) -> Ledger:
        """The ledger of this plan on a model, which stays as it is (the meta device serves)."""
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
        vars(unwrapped(model)).setdefault(_MEMORY, {name: p.requires_grad for name, p in parameters})
        for name, parameter in parameters:
            parameter.requires_grad_(name in names)
            if name not in names:
                parameter.grad = None  # a stale gradient would still move the weight
        return self.ledger(parts)


def undo(model: nn.Module) -> None:
    """Put ``requires_grad`` back to what it was before the first plan; nothing to do where none was applied."""
    before = vars(unwrapped(model)).pop(_MEMORY, {})
    for name, parameter in named_parameters(model):
        if name in before:
            parameter.requires_grad_(before[name])


def _require_trainable(parameters: dict[str, nn.Parameter]) -> None:
    """Raise PlanError where a tensor that should train holds whole numbers: it can have no gradient."""
    odd = [
        f"{name} ({str(p.dtype).removeprefix('torch.')})"
        for name, p in parameters.items()
        if not (p.is_floating_point() or p.is_complex())
    ]
    if odd:
        more = f" and {len(odd) - 3} more" if len(odd) > 3 else ""
        raise PlanError(
            f"The plan would train {', '.join(odd[:3])}{more}, which holds whole numbers and can have no "
            "gradient. Load the model in float32 or bfloat16, or freeze it; the model is unchanged."
        )


def _of_the_head(entry: Entry, trains: bool, parts: Anatomy) -> str:
    """What happens to a head of its own: a plan for embeddings does not reach it."""
    share = entry.n_parameters / parts.n_parameters
    return (
        f"{entry.name} is a tensor of its own, not tied to the token embedding: {entry.n_parameters:,} parameters "
        f"({share:.1%}), {'trainable' if trains else 'frozen'}"
    )


# --- the plans that have a name ----------------------------------------------------


@dataclass(frozen=True)
class NamedPlan:
    """A plan of the course or of the study, with its one name and its one colour.

    Attributes:
        key: what code, protocols and records call it.
        title: for headings: what stays fixed or trains.
        label: for figures and tables.
        colour: of its lines in every figure, "#rrggbb".
        plan: None where it depends on the model (every other block), or where matrices are inserted first (LoRA).
        is_in_course: whether the notebooks offer it.
    """

    key: str
    title: str
    label: str
    colour: str
    plan: FreezePlan | None
    is_in_course: bool


def _freezes(key: str, label: str, colour: str) -> NamedPlan:
    plan = FreezePlan.full() if key == "full" else FreezePlan.freeze(*key.split("+"))
    return NamedPlan(key, plan.title, label, colour, plan, True)


def _trains(name: str, label: str, colour: str, is_in_course: bool = True) -> NamedPlan:
    plan = FreezePlan.only(name)
    return NamedPlan(f"only-{name}", plan.title, label, colour, plan, is_in_course)


# The first colours are those of Okabe and Ito (2008), the others of Tol's "muted" (2021), or near them.
PLANS: dict[str, NamedPlan] = {
    named.key: named
    for named in (
        _freezes("full", "full training", "#0072B2"),
        _freezes("attention", "attention frozen", "#000000"),
        _freezes("attention+embeddings", "main plan", "#D55E00"),
        _freezes("mlp", "MLP frozen", "#882255"),
        _freezes("mlp+embeddings", "MLP and embeddings frozen", "#332288"),
        _freezes("embeddings", "embeddings frozen", "#117733"),
        _freezes("first-half", "first half frozen", "#999933"),
        _trains("attention", "attention alone", "#009E73"),
        _trains("mlp-out", "MLP's output alone", "#CC79A7"),
        _trains("norms", "norms alone", "#AA4499"),
        _trains("biases", "biases alone", "#661100"),
        _trains("mlp-in", "MLP's input alone", "#44AA99", False),
        NamedPlan(
            "only-mlp-alternate", "only every other MLP trains", "every other MLP", "#6699CC", None, False
        ),
        NamedPlan("lora-attention", "LoRA on attention", "LoRA on attention", "#E69F00", None, False),
        NamedPlan("lora-mlp", "LoRA on the MLP", "LoRA on the MLP", "#56B4E9", None, False),
        NamedPlan("lora", "LoRA on attention and the MLP", "LoRA", "#777777", None, False),
    )
}
COURSE_PLANS: dict[str, FreezePlan] = {key: named.plan for key, named in PLANS.items() if named.is_in_course}


def key_of(plan: FreezePlan) -> str:
    """What records call a plan: its key in `PLANS`; its slug where it has none."""
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
        """ "trainable", "frozen", or "mixed"."""
        return {0: "frozen", self.n_parameters: "trainable"}.get(self.n_trainable, "mixed")


@dataclass(frozen=True)
class Ledger:
    """A plan's effect on one model. R = n_trainable / n_parameters, the article's parameter ratio."""

    plan: FreezePlan
    rows: tuple[LedgerRow, ...]
    ties: tuple[str, ...] = ()  # one sentence for each tensor with several names, and for a head of its own

    @property
    def n_parameters(self) -> int:
        return sum(row.n_parameters for row in self.rows)

    @property
    def n_trainable(self) -> int:
        return sum(row.n_trainable for row in self.rows)

    @property
    def R(self) -> float:
        return self.n_trainable / self.n_parameters

    @property
    def freezes(self) -> str:
        """Roles that stay fixed, "nothing" where there are none; "(part)" marks a role on both sides."""
        return self._side("frozen") or "nothing"

    @property
    def trains(self) -> str:
        """Roles that train; "(part)" marks a role on both sides."""
        return self._side("trainable")

    @property
    def label(self) -> str:
        """For tables: "freezes attention+embeddings | trains mlp+norm"."""
        return f"freezes {self.freezes} | trains {self.trains}"

    def _side(self, state: str) -> str:
        states = {row.role: row.state for row in self.rows}
        embeddings = [role for role in states if role.endswith("_embedding")]
        alike = len({states[role] for role in embeddings}) == 1
        words = []
        for role in states:
            word = "embeddings" if alike and role in embeddings else role
            if states[role] == state:
                words.append(word)
            elif states[role] == "mixed":
                words.append(f"{word} (part)")
        return "+".join(dict.fromkeys(words))

    def table(self) -> pd.DataFrame:
        """One row per role: tensors, parameters, trainable, state, share (0 to 1)."""
        return pd.DataFrame(
            [
                {
                    "role": row.role,
                    "tensors": row.n_tensors,
                    "parameters": row.n_parameters,
                    "trainable": row.n_trainable,
                    "state": row.state,
                    "share": row.share,
                }
                for row in self.rows
            ]
        ).set_index("role")

    def __str__(self) -> str:
        line = "{:<18}  {:>7}  {:>13}  {:>13}  {:<9}  {:>6}".format
        rows = [
            line(r.role, r.n_tensors, f"{r.n_parameters:,}", f"{r.n_trainable:,}", r.state, f"{r.share:.1%}")
            for r in self.rows
        ]
        return "\n".join(
            [
                line("role", "tensors", "parameters", "trainable", "state", "share"),
                *rows,
                line(
                    "all",
                    sum(r.n_tensors for r in self.rows),
                    f"{self.n_parameters:,}",
                    f"{self.n_trainable:,}",
                    "",
                    "100.0%",
                ),
                f"freezes: {self.freezes} | trains: {self.trains}",
                f"R = {self.n_trainable:,} / {self.n_parameters:,} = {self.R:.4f}",
                *self.ties,
            ]
        )

    def _repr_html_(self) -> str:
        styled = self.table().to_html(
            formatters={"parameters": "{:,}".format, "trainable": "{:,}".format, "share": "{:.1%}".format}
        )
        return f"{styled}<p>{self.label}; R = {self.R:.4f}</p>" + "".join(
            f"<p>{tie}</p>" for tie in self.ties
        )
