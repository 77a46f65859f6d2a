"""Which weights shall I train, and how do I keep what the model knew? The second study's records of one base.

A recipe is a plan, its rate, and how a model is taken from its run: stopped at a point, or rewound towards the base.
Words and intervals come from `second_verdicts.primary_tests`; a recipe that no test names is described.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd

from helpers import plots
from helpers.costs import MIB, Budget, LoraSize, ReplaySize, budget
from helpers.files import counted, read_json
from helpers.measuring import DEPENDS, DIVERGED, LESS, MORE, OPEN, SAME
from helpers.models import load_config
from helpers.profiles import DATA, PROFILES, STUDIED
from helpers.results.answers import LABELS, Answer, listed, machines, markdown
from helpers.results.claims import sentence_case, two_digits
from helpers.results.evidence import EVIDENCE, Evidence, text_name
from helpers.results.second_verdicts import (
    BY_TEXT,
    FULL,
    PAGE,
    PrimaryVerdict,
    Recipe,
    RecipeRow,
    SecondStudy,
    TextVerdict,
    best_gain,
    compared,
    gentlest_rate,
    learning_rate,
    primary_tests,
    read_second_study,
    recipe_row,
    which_weights,
)
from helpers.results.study_runs import ALL_ROLES, REWOUND, STOPPED, StudyRun
from helpers.study import LORA, LORA_LAYERS, is_recorded, plan_of, read_protocol

SECTIONS = {p.model_name: p.name for p in STUDIED.values()}  # model to its section in the protocol
MILLION = 1e6
REPLAY_WEIGHT = 1.0  # that of the protocol's stage "replay"
PART_WAY = 0.4  # a share of the way from the base that every base was rewound to
ASKED_FIRST = (
    "full rewound against full",
    "best freeze recipe against full rewound",
    "attention frozen against full",
)  # names of tests in the protocol
SAYS = {
    LESS: "{recipe}, forgets less than {reference}",
    MORE: "{recipe}, forgets more than {reference}",
    SAME: "{recipe}, and {reference}: no difference that counts",
    DEPENDS: "{recipe}, or {reference}: which forgets less depends on the gain",
    BY_TEXT: "{recipe}, against {reference}: it depends on the text",
    OPEN: "{recipe}, against {reference}: open",
}


def recipes(evidence: Evidence, folder: Path = EVIDENCE) -> Answer | None:
    """The primary tests of a base, and a row for each recipe that was run; None before any main run."""
    study, place = recorded_study(evidence.model, folder), folder / "abilities.json"
    kept = read_json(place).get(evidence.model) if place.exists() else None
    return study and recipes_of(study, kept)


def recorded_study(model: str, folder: Path = EVIDENCE) -> SecondStudy | None:
    """The second study of a model; None where it has no record."""
    place = folder / "study2" / "runs" / model
    if not is_recorded(place):
        return None
    return read_second_study(place, read_protocol(PAGE), SECTIONS[model])


def recipes_of(study: SecondStudy, kept: Mapping | None = None) -> Answer | None:
    """The same, from records that were read; None while no test has the pairs that the protocol asks for.

    Args:
        kept: the abilities of this base and its tuned models, where they were measured (`study.abilities`).
    """
    tests = primary_tests(study)
    read = [t for t in tests if any(map(is_compared, t.by_text))]
    if not read:
        return None
    runs = [r for r in study.runs if r.text in study.primary_texts]
    main = [r for r in runs if r.seed not in study.choices.tuning_seeds]
    points = distances(read)
    title = f"{sentence_case(said(read[0]))}\n({runs[0].model_name}, at equal gain)"
    seeds = sorted({r.seed for r in main})
    origin = (
        f"{runs[0].model_name} (weights `{runs[0].conditions[0][:12]}`), {counted(len(main), 'main run')}, "
        f"{counted(len(seeds), 'seed')} ({listed(seeds)}), and {counted(len(runs) - len(main), 'tuning run')}, on "
        f"{machines(runs)}; code at commit "
        f"{', '.join(f'`{c[:7]}`' for c in sorted({r.commit for r in runs}))}."
    )
    return Answer(
        sentence=sentence(tests),
        title=title,
        alt=f"{len(points)} differences of forgetting at equal gain, each with its interval; left of zero the first "
        "recipe forgets less",
        data={name: [d.mean, *d.interval(), smallest] for name, (d, smallest) in points.items()},
        draw=lambda: plots.intervals(
            {name: (d.mean, *d.interval()) for name, (d, _) in points.items()},
            title,
            "difference of forgetting, nats per token",
            [smallest for _, smallest in points.values()],
        ),
        origin=origin,
        protocol=runs[0].protocol,
        page=PAGE.name,
        table="\n\n".join(
            [
                tests_table(tests),
                *(table_of(study, t) for t in study.primary_texts if study_has(study, t)),
                *([abilities_table(kept)] if kept else []),
            ]
        ),
        rules=tuple(advice(study)),
    )


def is_compared(own: TextVerdict) -> bool:
    """Whether a test can be read on a text: enough pairs, and levels that both recipes reach."""
    found = own.comparison.mean_distance
    return found is not None and found.n_pairs >= own.comparison.rules.least_pairs


# --- words -------------------------------------------------------------------------


def in_words(recipe: Recipe | None) -> str:
    """A recipe as a reader says it."""
    if recipe is None:
        return "the best freeze recipe"
    plan = LABELS.get(recipe.plan, recipe.plan)
    plan = "attention and embeddings frozen" if recipe.plan == "attention+embeddings" else plan
    replay = f" with replay {recipe.weight:g}" if recipe.weight else ""
    rate = "at a rate not known" if recipe.rate is None else f"at {recipe.rate:g}"
    return f"{plan}{replay} {rate}, {'rewound' if recipe.method == REWOUND else recipe.method}"


def said(test: PrimaryVerdict) -> str:
    """What a primary test says, without its numbers."""
    return SAYS[test.word].format(recipe=in_words(test.recipe), reference=in_words(test.reference))


def sentence(tests: Sequence[PrimaryVerdict]) -> str:
    """What the decided tests say, in the protocol's order, then what is open."""
    decided = [f"{sentence_case(said(t))}." for t in tests if t.word != OPEN]
    left = [f"{in_words(t.recipe)}, against {in_words(t.reference)}" for t in tests if t.word == OPEN]
    return " ".join([*decided, *([f"Open: {'; '.join(left)}."] if left else [])])


# --- one choice at a time ------------------------------------------------------------


def advice(study: SecondStudy) -> list[str]:
    """What each choice changed, all else equal, with its numbers and where they were seen; described, not tested."""
    said = [choice(study, *each) for each in plan_choices(study)]
    far = how_far(study)
    replay = [
        words + on_prose(study, *each[1:])
        for each in replay_choices(study)
        if (words := choice(study, *each))
    ]
    return [*filter(None, said), *([f"**How far?** {far}."] if far else []), *replay]


def plan_choices(study: SecondStudy) -> list[tuple[str, Recipe, Recipe]]:
    """A question about the way or the plan, the recipe that says yes, and the one it is set against."""
    quick = learning_rate(study, FULL)
    gentle = gentlest_rate(study, FULL)
    full, attention, main = (
        Recipe(plan, gentlest_rate(study, plan, REWOUND), REWOUND)
        for plan in (FULL, "attention", "attention+embeddings")
    )
    choices = [
        ("Rewind", full, Recipe(FULL, gentle)),
        ("Where you do not rewind, take a gentle rate", Recipe(FULL, gentle), Recipe(FULL, quick)),
        ("Where you rewind, the rate", full, Recipe(FULL, gentle, REWOUND)),
        ("Freeze attention as well", attention, full),
        ("Freeze the embeddings as well", main, attention),
    ]
    return [each for each in choices if each[1] != each[2]]


def replay_choices(study: SecondStudy) -> list[tuple[str, Recipe, Recipe]]:
    """The same for full training with a replay, stopped and rewound, against full training rewound.

    Replay trains on the kind of text that forgetting is read on, so the loss on ordinary prose stands beside it.
    """
    full = Recipe(FULL, gentlest_rate(study, FULL, REWOUND), REWOUND)
    found = []
    for weight in sorted({r.weight for r in study.runs if r.plan == FULL and r.weight}):
        stopped, rewound = (Recipe(FULL, full.rate, method, weight) for method in (STOPPED, REWOUND))
        found += [
            ("Replay, in place of rewinding", stopped, full),
            ("Replay, and rewind", rewound, full),
            ("Replay, where you do not rewind", stopped, Recipe(FULL, full.rate)),
        ]
    return found


def choice(study: SecondStudy, title: str, recipe: Recipe, reference: Recipe) -> str:
    """What one choice changed; empty where nothing is known."""
    changes = factors(study, recipe, reference)
    own, other = sentence_case(in_words(recipe)), in_words(reference)
    return f"**{title}?** {own}, forgot {changes}, against {other}." if changes else ""


def choices_table(study: SecondStudy) -> pd.DataFrame:
    """One choice a row: a recipe, what it is set against, and on each text what it forgot over the other.

    A cell reads "0.44 (0.014 / 0.033), less": the ratio, both in nats per token, and the word. Empty: not known.
    """
    rows = []
    for title, recipe, reference in [*plan_choices(study), *replay_choices(study)]:
        found = {}
        for text in study.primary_texts:
            own, other = (forgotten(study, r, text) for r in (recipe, reference))
            if own is not None and other is not None:
                word = compared(study, recipe, reference, text).word
                numbers = f"{two_digits(own / other)} ({two_digits(own)} / {two_digits(other)})"
                found[text_name(text)] = f"{numbers}, {word}"
        if found:
            words = {"choice": f"{title}?", "recipe": in_words(recipe), "against": in_words(reference)}
            rows.append(words | found)
    return pd.DataFrame(rows, index=range(1, len(rows) + 1)).fillna("")


def on_prose(study: SecondStudy, recipe: Recipe, reference: Recipe) -> str:
    """By how much the loss on ordinary prose rose at the level of choice, of both recipes, text by text."""
    parts = []
    for text in study.primary_texts:
        own, other = (prose_rise(study, r, text) for r in (recipe, reference))
        if own is not None and other is not None:
            parts.append(f"{two_digits(own, '+')} / {two_digits(other, '+')} on {text_name(text)}")
    return f" Loss on ordinary prose, nats per token above the base: {', '.join(parts)}." if parts else ""


def prose_rise(study: SecondStudy, recipe: Recipe, text: str) -> float | None:
    """How far the loss on ordinary prose is above the base's at the level of choice, mean over runs; None: not known."""
    gain, paths = best_gain(study, text), study.paths(recipe, text)
    rises = [None if gain is None else path.prose_at(study.choices.level * gain) for path in paths]
    return float(np.mean(rises)) if rises and None not in rises else None


def factors(study: SecondStudy, recipe: Recipe, reference: Recipe) -> str:
    """Forgetting of one recipe over another's at the level of choice, text by text; empty where nothing is known."""
    parts = []
    for text in study.primary_texts:
        own, other = (forgotten(study, r, text) for r in (recipe, reference))
        if own is None or other is None:
            continue
        word = compared(study, recipe, reference, text).word
        numbers = f"{two_digits(own)} / {two_digits(other)} nats per token; {word}"
        parts.append(f"{two_digits(own / other)} times as much on {text_name(text)} ({numbers})")
    return ", and ".join(parts)


def how_far(study: SecondStudy) -> str:
    """What full training keeps of gain and forgetting, a part of the way from the base; empty where nothing is known."""
    recipe = Recipe(FULL, gentlest_rate(study, FULL, REWOUND), REWOUND)
    parts = []
    for text in study.primary_texts:
        kept = [part_way(r) for r in study.of(recipe, text) if r.ended != DIVERGED]
        if kept:
            gain, forgetting = np.mean(kept, axis=0)
            parts.append(
                f"{gain:.0%} of the gain on dev and {forgetting:.0%} of the forgetting on {text_name(text)}"
            )
    if not parts:
        return ""
    whole = in_words(replace(recipe, method="not rewound"))
    return f"Base + {PART_WAY:g} · change keeps {' and '.join(parts)} ({whole}: 100%)"


def part_way(run: StudyRun) -> tuple[float, float]:
    """Of the best weights' gain and forgetting, what is left at `PART_WAY` from the base."""
    way = next(w for w in run.rewound if w.roles == ALL_ROLES)
    gains, forgetting = run.base_dev.mean() - way.points.dev.mean(-1), way.points.half_b.mean(-1)
    at = way.shares.index(PART_WAY)
    return gains[at] / gains[-1], forgetting[at] / forgetting[-1]


# --- the first screen of the README -----------------------------------------------------------


def asked_first(study: SecondStudy) -> list[PrimaryVerdict]:
    """The tests that a reader asks about, as far as they were read: rewind or stop, freeze or not."""
    tests = {test.name: test for test in primary_tests(study)}
    return [tests[n] for n in ASKED_FIRST if n in tests and any(map(is_compared, tests[n].by_text))]


def headline(study: SecondStudy) -> str:
    """What follows "On a model, ": a sentence for each of the first two tests that a reader asks about, with its numbers.

    Empty where no test was read.
    """
    asked = asked_first(study)[:2]
    if not asked:
        return ""
    n_seeds = len({r.seed for r in study.of(asked[0].recipe, study.choices.text)})
    first, *others = (in_brief(study, test) for test in asked)
    clauses = [
        f"for the same gain, {first} ({counted(n_seeds, 'seed')})",
        *with_replay(study),
        *map(sentence_case, others),
    ]
    return " ".join(f"{clause}." for clause in clauses)


def with_replay(study: SecondStudy) -> list[str]:
    """What replay adds to full training rewound, in few words; none where a text has too few runs. No test reads it."""
    recipe = replayed(study)
    if recipe is None:
        return []
    reference = replace(recipe, weight=0.0)
    times = [forgotten(study, recipe, t) / forgotten(study, reference, t) for t in study.primary_texts]
    words = " and ".join(map(two_digits, times))
    return [f"With replay of text that the base wrote it forgets {words} times that (described, not tested)"]


def replayed(study: SecondStudy) -> Recipe | None:
    """Full training with a replay, rewound; None where a text has too few runs, or a level was not reached."""
    recipe = Recipe(FULL, gentlest_rate(study, FULL, REWOUND), REWOUND, REPLAY_WEIGHT)
    for text in study.primary_texts:
        for own in (recipe, replace(recipe, weight=0.0)):
            if len(study.of(own, text)) < study.rules.least_pairs or forgotten(study, own, text) is None:
                return None
    return recipe


def in_brief(study: SecondStudy, test: PrimaryVerdict) -> str:
    """What a test says in few words, with forgetting over the other's, text by text, at the level of choice.

    The same plan is named once.
    """
    own, other = short(test.recipe), short(test.reference)
    if (test.reference.plan, test.reference.weight) == (test.recipe.plan, test.recipe.weight):
        other = "stopped early" if test.reference.method == STOPPED else test.reference.method
    pairs = [
        (forgotten(study, test.recipe, t), forgotten(study, test.reference, t)) for t in study.primary_texts
    ]
    ratios = [] if any(None in pair for pair in pairs) else [two_digits(a / b) for a, b in pairs]
    times = " and ".join(f"{r} ({text_name(t)})" for r, t in zip(ratios, study.primary_texts, strict=False))
    if test.word in (LESS, MORE) and times:
        return f"{own}, forgets {times} times as much as {other}"
    word = "not decided" if test.word == OPEN else test.word
    return f"{own}, against {other}: {word}" + (f" ({' and '.join(ratios)} times)" if ratios else "")


def forgotten(study: SecondStudy, recipe: Recipe, text: str) -> float | None:
    """What a recipe forgot at the level of choice, nats per token, mean over runs; None where it is not known."""
    return recipe_row(study, recipe, text).forgetting[study.rules.levels.index(study.choices.level)]


def forgotten_first(study: SecondStudy) -> dict[Recipe, float]:
    """The recipes of the tests that a reader asks about, then replay, and what each forgot on the text of choice."""
    recipes = [r for t in asked_first(study) for r in (t.reference, t.recipe)]
    beside = replayed(study) if recipes else None
    each = dict.fromkeys(recipes + ([beside] if beside else []))
    found = {recipe: forgotten(study, recipe, study.choices.text) for recipe in each}
    return {recipe: value for recipe, value in found.items() if value is not None}


# --- the figure and the tables -----------------------------------------------------


def distances(tests: Sequence[PrimaryVerdict]) -> dict:
    """Test and text to the mean distance and the smallest that counts."""
    return {
        f"{text_name(own.text)}: {short(test.recipe)}\nminus {short(test.reference)}": (
            own.comparison.mean_distance,
            own.comparison.smallest,
        )
        for test in tests
        for own in test.by_text
        if is_compared(own)
    }


def short(recipe: Recipe) -> str:
    """A recipe for a figure: the plan, a replay, and the method."""
    plan = LABELS.get(recipe.plan, recipe.plan)
    return f"{plan}{', replay' if recipe.weight else ''}, {recipe.method}"


def tests_table(tests: Sequence[PrimaryVerdict]) -> str:
    """A row a test and text: the difference with its interval, the smallest that counts, and the word."""
    head = [
        "test",
        "text",
        "forgetting minus the other's, nats per token",
        "pairs",
        "smallest that counts",
        "word",
    ]
    rows = []
    for test in tests:
        name = f"{in_words(test.recipe)} minus {in_words(test.reference)}"
        for own in test.by_text:
            if not is_compared(own):
                reason = own.comparison.reason or f"{own.comparison.rules.least_pairs} pairs are needed"
                rows.append([name, text_name(own.text), "", own.comparison.n_pairs, "", f"open: {reason}"])
                continue
            found = own.comparison.mean_distance
            low, high = (two_digits(v, "+") for v in found.interval())
            difference = f"{two_digits(found.mean, '+')} [{low}, {high}]"
            smallest = two_digits(own.comparison.smallest)
            rows.append([name, text_name(own.text), difference, found.n_pairs, smallest, own.comparison.word])
        if not test.by_text:
            rows.append([name, "", "", 0, "", f"open: {test.reason}"])
    return markdown(head, rows)


def study_has(study: SecondStudy, text: str) -> bool:
    """Whether there are main runs on a text."""
    return any(r.text == text and r.seed not in study.choices.tuning_seeds for r in study.runs)


def table_of(study: SecondStudy, text: str) -> str:
    """A row a recipe, the least forgetting at the level of choice first; an empty cell is not known."""
    levels = [f"forgot at {share:.0%}" for share in study.rules.levels]
    head = [
        f"on {text_name(text)}: recipe",
        "runs",
        "share of full's best gain",
        *levels,
        f"gain within {study.budgets[1]:g}",
        "test loss (base)",
        "trains",
        "file",
        "memory of a step",
        "work of a step",
    ]
    rows = which_weights(study, text)
    model = next(r.model_name for r in study.runs)
    return markdown(head, [[*row_of(row), *cost_of(model, row.recipe)] for row in rows])


def abilities_table(kept: Mapping) -> str:
    """A row for each kept run and share of its change: what it can still do, beside its base; one run each."""
    base, names = kept["base"], list(kept["base"])
    heads = [f"{name}, nats per token (base {two_digits(base[name])})" for name in names]
    rows = [
        [
            in_words(Recipe(row["plan"], row["rate"], f"{row['share']:g} of the change", row["weight"])),
            text_name(row["text"]),
            *(two_digits(row[name]) for name in names),
        ]
        for row in sorted(kept["rows"], key=lambda r: (r["text"], r["plan"], r["rate"], r["share"]))
    ]
    return markdown(["one run each: what it can still do", "text", *heads], rows)


@cache
def step_budget(model_name: str, plan: str, weight: float) -> Budget | None:
    """The predicted step of a plan, with the study's batch; None where the base is not in the project."""
    section = SECTIONS.get(model_name)
    if section is None or not Path(PROFILES[section].model).is_relative_to(DATA):
        return None
    numbers = read_protocol(PAGE)[section]
    return budget(
        load_config(PROFILES[section].model),
        plan_of(plan),
        numbers["batch"],
        numbers["length"],
        lora=LoraSize(LORA_LAYERS, numbers["lora_rank"]) if plan == LORA else None,
        replay=ReplaySize(numbers["replay_windows"], numbers["replay_batch"], numbers["replay_length"])
        if weight
        else None,
    )


def cost_of(model_name: str, recipe: Recipe) -> list[str]:
    """The predicted memory at the peak of a step, and its work as a share of full training's."""
    own, full = step_budget(model_name, recipe.plan, recipe.weight), step_budget(model_name, FULL, 0.0)
    if own is None or full is None:
        return ["", ""]
    return [f"{own.peak_bytes / MIB:.0f} MiB", f"{own.flops.step / full.flops.step:.0%}"]


def row_of(row: RecipeRow) -> list[str]:
    """One recipe's cells."""
    ends = [f"{n} {what}" for n, what in ((row.n_diverged, "diverged"), (row.n_at_cap, "at the cap")) if n]
    both = row.test_loss is not None and row.base_test_loss is not None
    return [
        in_words(row.recipe),
        f"{row.n_runs}" + (f" ({', '.join(ends)})" if ends else ""),
        "" if row.gain_share is None else f"{row.gain_share:.0%}",
        *(cell(f) for f in row.forgetting),
        cell(row.gain_at_budget[1]),
        f"{row.test_loss:.3f} ({row.base_test_loss:.3f})" if both else "",
        "" if row.n_trainable is None else f"{row.n_trainable / MILLION:.2f} M",
        "" if row.file_bytes is None else f"{row.file_bytes / MILLION:.1f} MB",
    ]


def cell(number: float | None) -> str:
    return "" if number is None else two_digits(number)
