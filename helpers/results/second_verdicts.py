"""The second study's verdicts: what was chosen on the tuning seeds, the primary tests, and a row for each recipe.

    study = read_second_study("build/study2/runs/gpt-neo-mini", read_protocol(PAGE), "tiny")
    for test in primary_tests(study):
        test.name, test.word, test.p

Everything is computed from the records and from the numbers of data/evidence/PROTOCOL-2.md. Choices are made on the
tuning seeds, one text and half A; results come from the other seeds and half B.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path as File

import numpy as np

from helpers.measuring import (
    DIVERGED,
    LESS,
    OPEN,
    Comparison,
    ComparisonError,
    Measured,
    Path,
    Rules,
    compare,
    full_gain,
    holm_adjusted,
    jackknife,
    means_without,
    stacked,
)
from helpers.profiles import DATA
from helpers.results.evidence import text_name
from helpers.results.study_runs import REWOUND, STOPPED, StudyRun, read_study_runs
from helpers.study import Protocol

PAGE = DATA / "evidence" / "PROTOCOL-2.md"
FULL = "full"
CHOSEN = "best freeze"  # in the protocol: the plan and the method that the tuning seeds choose
BY_TEXT = "depends on the text"
EQUAL, UNTESTED = "equal", "not tested"
BYTES = 4  # of a weight in float32
DECADE = 9.9  # a little under ten: 1e-4 / 1e-5 need not be ten exactly


@dataclass(frozen=True)
class Recipe:
    """A plan, its rate, how a model is taken from its run, and the weight of a replay (0.0: none).

    A rate that is not known is None: no tuning run says it.
    """

    plan: str
    rate: float | None
    method: str = STOPPED
    weight: float = 0.0

    def __str__(self) -> str:
        rate = "rate not known" if self.rate is None else f"{self.rate:g}"
        return f"{self.plan}, {rate}, {self.method}" + (f", replay {self.weight:g}" if self.weight else "")


@dataclass(frozen=True)
class PlannedTest:
    """A primary test as the protocol names it; "best freeze" stands for what the tuning seeds choose."""

    name: str
    plan: str
    method: str
    reference: str
    reference_method: str


@dataclass(frozen=True)
class Choices:
    """The numbers by which rates and plans are chosen; from the block [decisions] of the protocol."""

    tuning_seeds: tuple[int, ...]
    text: str
    level: float
    freeze_plans: tuple[str, ...]
    rate_level: float
    rate_falls: float
    rate_free: float
    rate_free_levels: tuple[float, ...]
    rate_free_plans: tuple[str, ...]


@dataclass(frozen=True)
class SecondStudy:
    """The records of one base with the protocol's numbers."""

    runs: tuple[StudyRun, ...]
    rules: Rules
    choices: Choices
    planned: tuple[PlannedTest, ...]
    primary_texts: tuple[str, ...]
    budgets: tuple[float, ...]
    gain_share: float

    def tuning(self, plan: str, text: str, weight: float = 0.0) -> list[StudyRun]:
        """The tuning runs of a plan on a text."""
        return [
            r
            for r in self.runs
            if (r.plan, r.text, r.weight) == (plan, text, weight) and r.seed in self.choices.tuning_seeds
        ]

    def of(self, recipe: Recipe, text: str) -> list[StudyRun]:
        """The main runs that a recipe takes its models from."""
        return [
            r
            for r in self.runs
            if (r.plan, r.text, r.weight, r.rate) == (recipe.plan, text, recipe.weight, recipe.rate)
            and r.seed not in self.choices.tuning_seeds
        ]

    def paths(self, recipe: Recipe, text: str) -> list[Path]:
        """Of the main runs, on half B."""
        return [r.path(recipe.method, "B") for r in self.of(recipe, text)]

    def full_tuning(self, text: str, half: str = "B") -> list[list[Path]]:
        """Full training's tuning paths on a text, one list a rate: they say what a level is."""
        runs = self.tuning(FULL, text)
        return [
            [r.path(STOPPED, half) for r in runs if r.rate == rate] for rate in sorted({r.rate for r in runs})
        ]


def read_second_study(folder: str | File, protocol: Protocol, base: str) -> SecondStudy:
    """Read the records of a base.

    Args:
        base: its section in the protocol, e.g. "tiny".
    """
    return second_study(read_study_runs(folder), protocol, base)


def second_study(runs: Sequence[StudyRun], protocol: Protocol, base: str) -> SecondStudy:
    """Records with the numbers of the protocol."""
    page = protocol["decisions"]
    rules = Rules(
        tuple(page["levels"]),
        page["least_levels"],
        page["least_pairs"],
        page["level"],
        page["equal_level"],
        page["family_error"],
        page["smallest_forgetting"],
        page["smallest_forgetting_share"],
        page["smallest_loss"],
    )
    choices = Choices(
        tuple(protocol["study"]["tuning_seeds"]),
        page["choice_text"],
        page["choice_level"],
        tuple(page["freeze_plans"]),
        page["rate_level"],
        page["rate_falls"],
        page["rate_free"],
        tuple(page["rate_free_levels"]),
        tuple(page["rate_free_plans"]),
    )
    planned = tuple(PlannedTest(**entry) for entry in page["primary"])
    return SecondStudy(
        tuple(runs),
        rules,
        choices,
        planned,
        tuple(page["primary_texts"]),
        tuple(page["budgets"][base]),
        page["gain_share"],
    )


# --- choices, on tuning seeds and half A -------------------------------------------


def best_gain(study: SecondStudy, text: str) -> float | None:
    """Full training's best gain in its tuning runs, nats per token; None without such a run."""
    full = study.full_tuning(text)
    if not full or any(p.ended == DIVERGED for paths in full for p in paths):
        return None
    return float(full_gain([stacked(paths) for paths in full])[0])


def tuned_forgetting(
    study: SecondStudy, plan: str, method: str, share: float, weight: float = 0.0
) -> dict[float, float | None]:
    """Rate to forgetting on half A at a share of full's best gain, mean over tuning seeds; the highest rate first.

    None where a run does not reach the level, or diverged.
    """
    gain, runs = best_gain(study, study.choices.text), study.tuning(plan, study.choices.text, weight)
    found = {}
    for rate in sorted({r.rate for r in runs}, reverse=True):
        at = [
            None if gain is None else r.path(method, "A").forgetting_at(share * gain)
            for r in runs
            if r.rate == rate
        ]
        found[rate] = None if None in at else float(np.mean(at))
    return found


def gentlest_rate(study: SecondStudy, plan: str, method: str = STOPPED, weight: float = 0.0) -> float | None:
    """The last rate, going down, that lowered forgetting at the level by enough; None without a tuning run."""
    tuned = list(tuned_forgetting(study, plan, method, study.choices.rate_level, weight).items())
    if not tuned:
        return None
    chosen, before = tuned[0]
    for rate, now in tuned[1:]:
        if before is None or now is None or now > (1 - study.choices.rate_falls) * before:
            break
        chosen, before = rate, now
    return chosen


def learning_rate(study: SecondStudy, plan: str, weight: float = 0.0) -> float | None:
    """The tuning rate with the best dev gain; None without a tuning run that was finished."""
    runs = [r for r in study.tuning(plan, study.choices.text, weight) if r.ended != DIVERGED]
    gains = {
        rate: np.mean([r.path(STOPPED, "A").best_gain for r in runs if r.rate == rate])
        for rate in {r.rate for r in runs}
    }
    return max(gains, key=gains.get) if gains else None


@dataclass(frozen=True)
class RateChange:
    """By what share forgetting of the rewound runs changes from the lowest rate to the highest; None: not known."""

    plan: str
    share: float
    low: float
    high: float
    change: float | None


def rate_changes(study: SecondStudy) -> tuple[RateChange, ...]:
    """What the rate changes after rewinding, over the widest decade that was tuned; empty where there is none."""
    found = []
    for plan in study.choices.rate_free_plans:
        for share in study.choices.rate_free_levels:
            tuned = tuned_forgetting(study, plan, REWOUND, share)
            if not tuned or max(tuned) / min(tuned) < DECADE:
                continue
            high, low = max(tuned), min(tuned)
            known = tuned[high] is not None and tuned[low] is not None
            change = tuned[high] / tuned[low] - 1 if known else None
            found.append(RateChange(plan, share, low, high, change))
    return tuple(found)


def rewinding_removes_the_rate(study: SecondStudy) -> bool:
    """Whether every plan of the rule, at every level of the rule, changes by less than its share."""
    changes = rate_changes(study)
    asked = len(study.choices.rate_free_plans) * len(study.choices.rate_free_levels)
    return len(changes) == asked and all(
        c.change is not None and abs(c.change) < study.choices.rate_free for c in changes
    )


def best_freeze_recipe(study: SecondStudy) -> Recipe | None:
    """The freeze plan and method that forget least at the level of choice; None where none reaches it."""
    found = []
    for plan in study.choices.freeze_plans:
        for method in (STOPPED, REWOUND):
            rate = gentlest_rate(study, plan, method)
            at = tuned_forgetting(study, plan, method, study.choices.level).get(rate)
            if at is not None:
                found.append((at, Recipe(plan, rate, method)))
    return min(found, key=lambda item: item[0])[1] if found else None


# --- the primary tests -------------------------------------------------------------


@dataclass(frozen=True)
class TextVerdict:
    text: str
    comparison: Comparison


@dataclass(frozen=True)
class PrimaryVerdict:
    """A primary test of one base.

    Attributes:
        by_text: what each text says by itself.
        word: of all texts together, as far as Holm's rule over the tests allows.
        p: the larger of the texts' p-values, before Holm's rule.
        reason: why it is open, where a reason is known.
    """

    name: str
    recipe: Recipe | None
    reference: Recipe | None
    by_text: tuple[TextVerdict, ...]
    word: str
    p: float
    reason: str


def primary_tests(study: SecondStudy) -> tuple[PrimaryVerdict, ...]:
    """The protocol's tests of this base, in its order."""
    alone = [_tested(study, planned) for planned in study.planned]
    allowed = holm_adjusted([v.p for v in alone])
    return tuple(
        v
        if v.word == OPEN or p <= study.rules.family_error
        else PrimaryVerdict(
            v.name,
            v.recipe,
            v.reference,
            v.by_text,
            OPEN,
            v.p,
            f"Holm's rule over {len(alone)} tests does not allow '{v.word}'",
        )
        for v, p in zip(alone, allowed, strict=True)
    )


def _tested(study: SecondStudy, planned: PlannedTest) -> PrimaryVerdict:
    recipe = (
        best_freeze_recipe(study)
        if planned.plan == CHOSEN
        else _gentlest(study, planned.plan, planned.method)
    )
    reference = _gentlest(study, planned.reference, planned.reference_method)
    if recipe is None or recipe.rate is None or reference.rate is None:
        return PrimaryVerdict(planned.name, recipe, reference, (), OPEN, 1.0, "no tuning runs yet")
    texts = tuple(TextVerdict(t, compared(study, recipe, reference, t)) for t in study.primary_texts)
    word = over_texts([t.comparison.word for t in texts])
    p = max(t.comparison.p for t in texts) if word != OPEN else 1.0
    reasons = [f"{text_name(t.text)}: {t.comparison.reason}" for t in texts if t.comparison.reason]
    return PrimaryVerdict(planned.name, recipe, reference, texts, word, p, "; ".join(reasons))


def _gentlest(study: SecondStudy, plan: str, method: str) -> Recipe:
    return Recipe(plan, gentlest_rate(study, plan, method), method)


def compared(study: SecondStudy, recipe: Recipe, reference: Recipe, text: str) -> Comparison:
    """Two recipes on a text, on half B.

    Raises:
        ComparisonError: two runs of equal seed are no pair, as they differ in base, text, windows or batch.
    """
    runs = [*study.of(recipe, text), *study.of(reference, text), *study.tuning(FULL, text)]
    if len({r.conditions for r in runs}) > 1:
        raise ComparisonError(
            f"The runs of '{recipe}' and '{reference}' on '{text}', and the tuning runs of full "
            "training, are no pairs: they differ in base, text, windows or batch. Record them "
            "again together."
        )
    return compare(
        study.paths(recipe, text), study.paths(reference, text), study.full_tuning(text), study.rules
    )


def over_texts(words: Sequence[str]) -> str:
    """One word for a base: the one that all texts share; open where a text is open."""
    if OPEN in words:
        return OPEN
    return words[0] if len(set(words)) == 1 else BY_TEXT


# --- learning: the share of full training's test gain (C13) ------------------------


@dataclass(frozen=True)
class GainShare:
    """What a plan learns of what full training learns, on a test text.

    Attributes:
        share: of full training's gain; None where it is not tested or not known.
        base_loss, loss, full_loss: on the test windows, nats per token; None where not known.
        word: "equal", "less", "open" or "not tested".
    """

    plan: str
    text: str
    share: Measured | None
    base_loss: float | None
    loss: float | None
    full_loss: float | None
    word: str


def gain_share(study: SecondStudy, plan: str, text: str) -> GainShare:
    """C13: the test gain of a plan over full training's, both with their best weights at the rates that learn."""
    pairs = _learned_pairs(study, plan, text)
    if not pairs:
        return GainShare(plan, text, None, None, None, None, OPEN)
    base = pairs[0][0].base_test
    losses = [np.array([r.test for r in own]) for own in zip(*pairs, strict=True)]  # (pairs, windows) each
    known = (float(base.mean()), *(float(x.mean()) for x in losses))
    own, full = (means_without((base - x)[:, None, :])[..., 0] for x in losses)  # (pairs, 1 + windows)
    if len(pairs) < study.rules.least_pairs:
        return GainShare(plan, text, None, *known, OPEN)
    learned = Measured(full[:, 0].mean(), *_errors(full), len(pairs))
    if not learned.interval(study.rules.level)[0] > 0:
        return GainShare(plan, text, None, *known, UNTESTED)
    ratio = own.mean(0) / full.mean(0)  # of means: one pair with a small gain must not decide
    errors = (_seed_error(own[:, 0] - ratio[0] * full[:, 0]) / full[:, 0].mean(), jackknife(ratio[1:]))
    share = Measured(ratio[0], errors, (len(pairs) - 1, base.size - 1), len(pairs))
    return GainShare(plan, text, share, *known, _share_word(share, study))


def _share_word(share: Measured, study: SecondStudy) -> str:
    if share.interval(study.rules.equal_level)[0] > study.gain_share:
        return EQUAL
    return LESS if share.interval(study.rules.level)[1] < study.gain_share else OPEN


def _learned_pairs(study: SecondStudy, plan: str, text: str) -> list[tuple[StudyRun, StudyRun]]:
    """Finished runs of equal seed at the rates that learn."""
    own, full = (
        {r.seed: r for r in study.of(Recipe(p, learning_rate(study, p)), text) if r.ended != DIVERGED}
        for p in (plan, FULL)
    )
    return [(own[s], full[s]) for s in sorted(own.keys() & full.keys())]


def _errors(readings: np.ndarray) -> tuple[tuple[float, float], tuple[int, int]]:
    """Standard errors of a mean over seeds and over windows, and their degrees of freedom."""
    n, n_windows = len(readings), readings.shape[1] - 1
    return (_seed_error(readings[:, 0]), jackknife(readings.mean(0)[1:])), (n - 1, n_windows - 1)


def _seed_error(values: np.ndarray) -> float:
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else np.nan


# --- a row for each recipe ---------------------------------------------------------


@dataclass(frozen=True)
class RecipeRow:
    """What one recipe did on a text: the columns of `which_weights` that records can tell.

    Attributes:
        n_runs, n_diverged, n_at_cap: runs of the recipe, and how many of them ended so.
        gain_share: its best dev gain over full training's best.
        forgetting: at each level of the rules, mean over runs; None where a run does not reach it.
        gain_at_budget: dev gain at each budget of forgetting; None where a path begins beyond it.
        test_loss, base_test_loss: of the method's best dev model, and of the base.
        n_trainable, file_bytes: weights that train, and their size in a file of float32.
        step_seconds: median over runs of a training step's time.
    """

    recipe: Recipe
    text: str
    n_runs: int
    n_diverged: int
    n_at_cap: int
    gain_share: float | None
    forgetting: tuple[float | None, ...]
    gain_at_budget: tuple[float | None, ...]
    test_loss: float | None
    base_test_loss: float | None
    n_trainable: int | None
    file_bytes: int | None
    step_seconds: float | None


def which_weights(study: SecondStudy, text: str) -> tuple[RecipeRow, ...]:
    """A row for each recipe that has main runs on a text; the least forgetting at the level of choice first."""
    cells = {
        (r.plan, r.rate, r.weight)
        for r in study.runs
        if r.text == text and r.seed not in study.choices.tuning_seeds
    }
    rows = [
        recipe_row(study, Recipe(plan, rate, method, weight), text)
        for plan, rate, weight in sorted(cells)
        for method in (STOPPED, REWOUND)
    ]
    at = study.rules.levels.index(study.choices.level)
    return tuple(sorted(rows, key=lambda row: (row.forgetting[at] is None, row.forgetting[at] or 0.0)))


def recipe_row(study: SecondStudy, recipe: Recipe, text: str) -> RecipeRow:
    """The row of one recipe. A number that one of its runs does not have is None: none is dropped."""
    runs, paths, full = study.of(recipe, text), study.paths(recipe, text), best_gain(study, text)
    levels = [None if full is None else share * full for share in study.rules.levels]
    forgotten = tuple(None if g is None else _mean([p.forgetting_at(g) for p in paths]) for g in levels)
    gained = _mean([p.best_gain for p in paths])
    tests = [None if r.ended == DIVERGED else r.test_windows(recipe.method) for r in runs]
    trainable = next((r.n_trainable for r in runs if r.n_trainable is not None), None)
    seconds = [r.step_seconds for r in runs if r.step_seconds is not None]
    return RecipeRow(
        recipe,
        text,
        len(runs),
        sum(r.ended == DIVERGED for r in runs),
        sum(r.ended == "cap" for r in runs),
        None if gained is None or not full else gained / full,
        forgotten,
        tuple(_mean([p.gain_at(b) for p in paths]) for b in study.budgets),
        _mean([None if t is None else float(t.mean()) for t in tests]),
        _mean([None if r.base_test is None else float(r.base_test.mean()) for r in runs]),
        trainable,
        None if trainable is None else BYTES * trainable,
        float(np.median(seconds)) if seconds else None,
    )


def _mean(values: Sequence[float | None]) -> float | None:
    return None if not values or None in values else float(np.mean(values))
