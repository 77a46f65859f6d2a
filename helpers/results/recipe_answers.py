"""Which weights shall I train, and how do I keep what the model knew? The second study's records of one base.

A recipe is a plan, its rate, and how a model is taken from its run: stopped at a point, or rewound towards the base.
Words and intervals come from `second_verdicts.primary_tests`; a recipe that no test names is described.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from helpers import plots
from helpers.freezing import PLANS
from helpers.measuring import DEPENDS, LESS, MORE, OPEN, SAME
from helpers.profiles import STUDIED
from helpers.results.answers import Answer, listed, markdown
from helpers.results.claims import two_digits
from helpers.results.evidence import EVIDENCE, Evidence
from helpers.results.second_verdicts import (
    BY_TEXT,
    PAGE,
    PrimaryVerdict,
    Recipe,
    RecipeRow,
    SecondStudy,
    TextVerdict,
    primary_tests,
    read_second_study,
    which_weights,
)
from helpers.results.study_runs import REWOUND
from helpers.study import is_recorded, read_protocol

SECTIONS = {p.model_name: p.name for p in STUDIED.values()}  # model to its section in the protocol
MILLION = 1e6
SAYS = {
    LESS: "{recipe} forgets less than {reference}",
    MORE: "{recipe} forgets more than {reference}",
    SAME: "{recipe} and {reference}: no difference that counts",
    DEPENDS: "{recipe} or {reference}: which forgets less depends on the gain",
    BY_TEXT: "{recipe} against {reference}: it depends on the text",
    OPEN: "{recipe} against {reference}: open",
}


def recipes(evidence: Evidence, folder: Path = EVIDENCE) -> Answer | None:
    """The primary tests of a base, and a row for each recipe that was run; None before any main run."""
    place = folder / "study2" / "runs" / evidence.model
    if not is_recorded(place):
        return None
    study = read_second_study(place, read_protocol(PAGE), SECTIONS[evidence.model])
    return recipes_of(study)


def recipes_of(study: SecondStudy) -> Answer | None:
    """The same, from records that were read; None while no test has the pairs that the protocol asks for."""
    tests = primary_tests(study)
    compared = [t for t in tests if any(map(is_compared, t.by_text))]
    if not compared:
        return None
    runs = [r for r in study.runs if r.text in study.primary_texts]
    main = [r for r in runs if r.seed not in study.choices.tuning_seeds]
    points = distances(compared)
    title = f"{sentence_case(said(compared[0]))}\n({runs[0].model_name}, at equal gain)"
    seeds = sorted({r.seed for r in main})
    origin = (
        f"{runs[0].model_name} (weights `{runs[0].conditions[0][:12]}`), {len(main)} main runs, {len(seeds)} seeds "
        f"({listed(seeds)}), and {len(runs) - len(main)} tuning runs, on "
        f"{', '.join(sorted({r.machine for r in runs}))}; code at commit "
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
            [tests_table(tests), *(table_of(study, t) for t in study.primary_texts if study_has(study, t))]
        ),
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
    plan = PLANS[recipe.plan].label if recipe.plan in PLANS else recipe.plan
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
    left = [f"{in_words(t.recipe)} against {in_words(t.reference)}" for t in tests if t.word == OPEN]
    return " ".join([*decided, *([f"Open: {'; '.join(left)}."] if left else [])])


def sentence_case(text: str) -> str:
    return text[:1].upper() + text[1:]


# --- the figure and the tables -----------------------------------------------------


def distances(tests: Sequence[PrimaryVerdict]) -> dict:
    """Test and text to the mean distance and the smallest that counts."""
    return {
        f"{own.text}: {short(test.recipe)}\nminus {short(test.reference)}": (
            own.comparison.mean_distance,
            own.comparison.smallest,
        )
        for test in tests
        for own in test.by_text
        if is_compared(own)
    }


def short(recipe: Recipe) -> str:
    """A recipe for a figure: the plan and the method."""
    return f"{PLANS[recipe.plan].label if recipe.plan in PLANS else recipe.plan}, {recipe.method}"


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
                rows.append([name, own.text, "", own.comparison.n_pairs, "", f"open: {reason}"])
                continue
            found = own.comparison.mean_distance
            low, high = (two_digits(v, "+") for v in found.interval())
            difference = f"{two_digits(found.mean, '+')} [{low}, {high}]"
            smallest = two_digits(own.comparison.smallest)
            rows.append([name, own.text, difference, found.n_pairs, smallest, own.comparison.word])
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
        f"on {text}: recipe",
        "runs",
        "share of full's best gain",
        *levels,
        f"gain within {study.budgets[1]:g}",
        "test loss (base)",
        "trains",
        "file",
    ]
    return markdown(head, [row_of(row) for row in which_weights(study, text)])


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
