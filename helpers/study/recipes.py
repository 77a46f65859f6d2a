"""Which recipe to take: what can be tried, what a probe of it measured, and the rule that chooses.

A recipe is a plan, a rate and a method. One run of a candidate (plan, rate, replay) serves two methods: stopped on
its way, or its best weights rewound towards the base. Choices read the dev text and half A of the retention text;
reports read the test text and half B. Nothing here trains.

    probes = halve(candidates, sizes(len(candidates)), probe_of)
    choice = choose(probes)                  least forgetting at 80% of full training's best gain
    choice = choose(probes, keep=0.05)       the greatest gain within 0.05 nats per token of forgetting

Successive halving: Jamieson and Talwalkar 2016 (arXiv 1502.07943).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from helpers.freezing import COURSE_PLANS, FreezePlan
from helpers.measuring import DIVERGED, Measured, Path, Readings, crossing, stacked

STOPPED, REWOUND = "stopped", "rewound"
CHOICE, REPORT = ("dev", "a"), ("test", "b")  # (text of the gain, half of the forgetting)
LEVEL = 0.8  # share of full training's best gain at which recipes are compared
LOWER_LEVELS = (LEVEL, 0.65, 0.5, 0.35)  # where probes are compared that have not come so far yet
FEW = 3  # candidates are halved until so many are left
UNFINISHED = ""  # how a run ended that may go on


class Candidate(NamedTuple):
    """What one run trains: a plan of `COURSE_PLANS`, a rate, and the weight of a replay (0.0: none)."""

    plan: str
    rate: float
    replay: float = 0.0

    @property
    def freeze_plan(self) -> FreezePlan:
        return COURSE_PLANS[self.plan]

    @property
    def name(self) -> str:
        """For files, another one for each candidate."""
        return f"{self.plan}-{self.rate:g}" + (f"-replay{self.replay:g}" if self.replay else "")

    @property
    def title(self) -> str:
        """For readers: "attention frozen, 0.0001, replay"."""
        return f"{self.freeze_plan.title}, {self.rate:g}" + (", replay" if self.replay else "")


# The order says what is tried where the time does not suffice for all. Full training comes first: it says what a
# level is. Then come those that led in the first study, in the second study's tuning runs, or in pilots.
CANDIDATES = (
    Candidate("full", 1e-4),
    Candidate("full", 1e-4, 1.0),
    Candidate("first-half", 1e-4),
    Candidate("attention+embeddings", 1e-4),
    Candidate("attention", 1e-4),
    Candidate("only-mlp-out", 3e-4),
    Candidate("full", 3e-5),
    Candidate("attention+embeddings", 3e-5),
    Candidate("full", 3e-4),
    Candidate("first-half", 1e-4, 1.0),
    Candidate("attention", 3e-5),
    Candidate("only-mlp-out", 1e-4),
)


# --- what a probe measured ---------------------------------------------------------


@dataclass(frozen=True)
class Models:
    """The models that a method offers, in their order; the base is the first.

    Attributes:
        places: steps (stopped) or shares of the change (rewound).
        windows: "dev", "test" (losses), "a", "b" (forgetting): (models, windows) each, nats per token.
    """

    places: np.ndarray
    windows: Mapping[str, np.ndarray]

    @classmethod
    def of(cls, points: Sequence[Mapping]) -> Models:
        """Read what a probe's record holds: one mapping a model, with its place under "at"."""
        keys = (*CHOICE, *REPORT)
        return cls(
            np.array([p["at"] for p in points], dtype=float),
            {k: np.array([p[k] for p in points]) for k in keys},
        )


@dataclass(frozen=True)
class Probe:
    """A run of a candidate so far.

    Attributes:
        ended: "patience" (its dev loss falls no more), "diverged", or `UNFINISHED`.
        best_step: where the dev loss was lowest.
        step_seconds: of one step of training.
        models: by method; empty where the run diverged.
    """

    candidate: Candidate
    n_steps: int
    best_step: int
    ended: str
    step_seconds: float
    models: Mapping[str, Models]

    @classmethod
    def of(cls, record: Mapping) -> Probe:
        """Read a record that `probing.probe` wrote."""
        return cls(
            Candidate(*record["candidate"]),
            record["n_steps"],
            record["best_step"],
            record["ended"],
            record["step_seconds"],
            {method: Models.of(record[method]) for method in (STOPPED, REWOUND) if method in record},
        )

    def path(self, method: str, read: tuple[str, str]) -> Path:
        """Gain against forgetting.

        Args:
            read: `CHOICE` or `REPORT`.
        """
        if self.ended == DIVERGED:
            return Path(0, np.empty((0, 0)), np.empty((0, 0)), None, DIVERGED)
        text, half = (self.models[method].windows[key] for key in read)
        return Path(0, text[0] - text, half, None, self.ended)

    def gain(self, read: tuple[str, str]) -> float:
        """Gain of the best weights; of a run that diverged it is minus infinity."""
        if self.ended == DIVERGED:
            return -math.inf
        return float(self.path(REWOUND, read).gains[-1].mean())

    @property
    def test_loss(self) -> float:
        """Of the best weights, nats per token."""
        return float(self.models[REWOUND].windows["test"][-1].mean())


class Recipe(NamedTuple):
    """A candidate's run with a method."""

    probe: Probe
    method: str

    def path(self, read: tuple[str, str]) -> Path:
        return self.probe.path(self.method, read)

    @property
    def title(self) -> str:
        return f"{self.probe.candidate.title}, {self.method}"


def recipes_of(probes: Iterable[Probe]) -> list[Recipe]:
    """Both methods of every run that did not diverge."""
    return [Recipe(p, method) for p in probes if p.ended != DIVERGED for method in (STOPPED, REWOUND)]


def reference_of(probes: Iterable[Probe]) -> Probe:
    """The run that says what a level is: of the first candidate's plan, without replay, that of the best dev gain."""
    probes = list(probes)
    plan = probes[0].candidate.plan
    own = [p for p in probes if p.candidate.plan == plan and not p.candidate.replay]
    return max(own, key=lambda p: p.gain(CHOICE))


# --- the rule that chooses ---------------------------------------------------------


def merit(recipe: Recipe, reference: Probe, keep: float | None) -> tuple[float, float]:
    """How good a recipe is by what was measured so far; the greater is the better. Reads `CHOICE` alone.

    With ``keep``: the gain within that budget of forgetting. Without it: the share that it forgets of what the
    reference forgets, rewound, at equal gain, at the highest level that it has reached. One that has reached none
    stands behind, by its gain.
    """
    path, own_gain = recipe.path(CHOICE), recipe.probe.gain(CHOICE)
    if keep is not None:
        within = path.gain_at(keep)
        return (1.0, within) if within is not None else (0.0, own_gain)
    by = reference.path(REWOUND, CHOICE)
    for level in LOWER_LEVELS:
        gain = level * reference.gain(CHOICE)
        mine, its = path.forgetting_at(gain), by.forgetting_at(gain)
        if mine is not None and its:
            return 1.0, -mine / its
    return 0.0, own_gain


def survivors(
    probes: Mapping[Candidate, Probe], left: Sequence[Candidate], n: int, keep: float | None
) -> list[Candidate]:
    """The best candidates of those that are left, and the reference, which every choice needs: ``n`` in all."""
    reference = reference_of(probes.values())
    best = {
        c: max(merit(r, reference, keep) for r in found) for c in left if (found := recipes_of([probes[c]]))
    }
    ranked = sorted(best, key=lambda c: (c == reference.candidate, *best[c]), reverse=True)
    return ranked[:n]


def sizes(n: int) -> list[int]:
    """How many candidates each round probes: 12, 6, 3."""
    found = [n]
    while found[-1] > FEW:
        found.append(math.ceil(found[-1] / 2))
    return found


def halve(
    candidates: Sequence[Candidate],
    rounds: Sequence[int],
    probe_of: Callable[[Candidate, Probe | None, int, int], Probe],
    keep: float | None = None,
) -> list[Probe]:
    """Probe all candidates a little, the better half longer, and so on. Returns the newest probe of each.

    Args:
        rounds: how many are probed in each.
        probe_of: (candidate, its probe so far, rounds left, probes left in this round) to its longer probe.
    """
    probes: dict[Candidate, Probe] = {}
    left = list(candidates)
    for number, n in enumerate(rounds):
        left = survivors(probes, left, n, keep) if probes else left[:n]
        open_ones = [c for c in left if c not in probes or probes[c].ended == UNFINISHED]
        for place, candidate in enumerate(open_ones):
            found = probe_of(candidate, probes.get(candidate), len(rounds) - number, len(open_ones) - place)
            probes[candidate] = found
    return list(probes.values())


@dataclass(frozen=True)
class Choice:
    """The recipe, and which of its models.

    Attributes:
        place: the step at which to stop, or the share of the change to keep.
        ranked: the best recipe of each candidate, the best first.
        reference: whose best gain the level is a share of.
        keep: the budget of forgetting; None: the level decided.
    """

    recipe: Recipe
    place: float
    ranked: tuple[Recipe, ...]
    reference: Probe
    keep: float | None


def choose(probes: Sequence[Probe], keep: float | None = None) -> Choice | None:
    """The recipe that forgets least at `LEVEL`; with ``keep`` the one of the greatest gain within that budget.

    None where nothing can be chosen: the reference gained nothing, or every run diverged.
    """
    reference = reference_of(probes)
    goal = LEVEL * reference.gain(CHOICE)
    if not goal > 0:
        return None
    best_of: dict[Candidate, Recipe] = {}
    for recipe in sorted(recipes_of(probes), key=lambda r: _order(r, reference, keep), reverse=True):
        best_of.setdefault(recipe.probe.candidate, recipe)
    best, *others = best_of.values()
    place = place_at(best, goal) if keep is None else place_within(best, keep)
    return Choice(best, place, (best, *others), reference, keep)


def _order(recipe: Recipe, reference: Probe, keep: float | None) -> tuple:
    """As `merit`; but without ``keep`` a recipe that has not come to `LEVEL` is no choice, and stands behind."""
    reaches = recipe.path(CHOICE).forgetting_at(LEVEL * reference.gain(CHOICE)) is not None
    return (keep is not None or reaches, *merit(recipe, reference, keep))


def place_at(recipe: Recipe, gain: float) -> float:
    """The first step with this dev gain; rewound, the least share with it, in hundredths."""
    places, path = recipe.probe.models[recipe.method].places, recipe.path(CHOICE)
    if recipe.method == STOPPED:
        return float(places[(path.gains.mean(-1) >= gain).argmax()])
    return math.ceil(100 * float(crossing(path.gains.mean(-1), places, gain)) - 1e-9) / 100


def place_within(recipe: Recipe, budget: float) -> float:
    """The model of the greatest dev gain before forgetting first passes a budget; a share is in hundredths."""
    places, path = recipe.probe.models[recipe.method].places, recipe.path(CHOICE)
    gains, forgetting = path.gains.mean(-1), path.forgetting.mean(-1)
    n_within = int(np.minimum.accumulate(forgetting <= budget).sum())
    best = places[gains[:n_within].argmax()]
    if recipe.method == STOPPED or n_within == len(places):
        return float(best)
    passing = float(crossing(np.sqrt(np.maximum(forgetting, 0)), places, math.sqrt(budget)))
    grows_on = gains[n_within] > gains[:n_within].max()
    return math.floor(100 * passing + 1e-9) / 100 if grows_on else float(best)


# --- what is reported --------------------------------------------------------------


def readings_at(recipe: Recipe, gain: float) -> Readings | None:
    """Forgetting on half B at a gain on the test text, window by window left out; None where it is not between points."""
    paths = stacked([recipe.path(REPORT)])
    found = paths.at_levels(np.full((1, 1 + paths.gains.shape[-1]), gain))
    return _known(Readings(found.by_dev[0], found.by_retention[0]))


def readings_within(recipe: Recipe, budget: float) -> Readings | None:
    """Gain on the test text within a budget of forgetting on half B."""
    return _known(stacked([recipe.path(REPORT)]).within(budget))


def _known(found: Readings) -> Readings | None:
    return found if found.is_known else None


def reported_gain(choice: Choice) -> float:
    """The gain on the test text at which forgetting is reported: `LEVEL` of the reference's, three digits."""
    return round(LEVEL * choice.reference.gain(REPORT), 3)


def read(choice: Choice, recipe: Recipe) -> Readings | None:
    """What the choice is about, of any recipe: forgetting at the reported gain, or the gain within the budget."""
    if choice.keep is not None:
        return readings_within(recipe, choice.keep)
    gain = reported_gain(choice)
    return readings_at(recipe, gain) if gain > 0 else None


def difference(choice: Choice, other: Recipe) -> Measured | None:
    """The choice minus another recipe on the same windows: the error of both texts, not of seeds."""
    mine, its = read(choice, choice.recipe), read(choice, other)
    return (mine - its).measured(with_seeds=False) if mine and its else None
