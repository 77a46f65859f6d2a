"""Write the parts of README.md that come from somewhere else: lessons, verdicts and measured costs.

    course results            write data/evidence/claims.json anew, then README.md and results/
    course results --readme   README.md alone, from what is recorded
    course results --check    change nothing; exit code 1 where something is not up to date

What was found, and its picture, come from the records; the lessons from the first cell of each notebook; the verdicts
from data/evidence/claims.json. That file holds the study's verdicts, as `helpers.results.verdicts` computes them from
the records, and beside them what the notebooks measured themselves, on the shipped miniature. The costs come from
the benchmark and the record of memory.
"""

from __future__ import annotations

import json
import re
from functools import cache
from html import escape
from pathlib import Path

from helpers import profiles, results
from helpers.files import write_text
from helpers.freezing import FreezePlan
from helpers.lessons import drawings
from helpers.measuring import FAILS, HOLDS, IN_PART, UNDECIDED, UNTESTED
from helpers.models import build_on_meta, gpt_neo_125m_config
from helpers.plots import Svg
from helpers.results import (
    EVIDENCE,
    FULL,
    QUESTIONS,
    RECORDED,
    Lever,
    SecondStudy,
    claim_cards,
    forgotten_first,
    headline,
    largest_levers,
    load_claims,
    newest,
    published,
    read_evidence,
    recorded_claims,
    recorded_study,
    scoreboard_table,
    short,
    studied_models,
    text_name,
    two_digits,
    verdict_counts,
)
from publishing.badges import badge, pages_address, repository

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
NAMES = {"gpt-neo-mini": "the course's miniature", "smollm2-135m-instruct": "SmolLM2-135M"}
KINDS = {"the rate": "the learning rate", "the plan": "what is frozen", "stopping": "stopping late"}
SHORT = {"the rate": "learning rate", "the plan": "what is frozen", "stopping": "stopping late"}
WORDS = {
    HOLDS: ("holds", "hold"),
    IN_PART: ("holds in part", "hold in part"),
    FAILS: ("does not hold", "do not hold"),
    UNDECIDED: ("not decided", "not decided"),
    UNTESTED: ("not tested here", "not tested here"),
}  # of one claim, and of several
REWOUND = ", rewound,"  # the word's meaning stands where it comes first
IN_WORDS = ", *rewound* (taken part of the way back to the base),"
LIVING = {
    "freeze": "Freeze it yourself",
    "forget": "What does it forget?",
    "equal": "Equal steps or equal gain?",
    "planner": "Does it fit?",
}


def lesson_row(notebook: Path, slug: str) -> str:
    """One row of the table, from the notebook's first cell: title, the minutes, the badge."""
    first = "".join(json.loads(notebook.read_text("utf-8"))["cells"][0]["source"])
    title = re.search(r"^# \w\d\. (.+)$", first, re.M)
    minutes = re.search(r"(\d+)(?: minutes)? to read.*?(\d+) (?:minutes )?with the exercises", first, re.S)
    if not (title and minutes):
        raise SystemExit(
            f"{notebook.name}: the first cell must hold '# 00. Title' and "
            "'… 10 minutes to read, 20 with the exercises'."
        )
    return (
        f"| [{notebook.stem[:2]}. {title[1]}](notebooks/{notebook.name}) | {minutes[1]} / {minutes[2]} "
        f"| {badge(notebook.stem, slug)} |"
    )


def lessons() -> str:
    rows = [lesson_row(p, repository(ROOT)) for p in sorted((ROOT / "notebooks").glob("*.ipynb"))]
    head = ["| lesson | minutes to read / with exercises | open |", "| --- | --- | --- |"]
    return "\n".join(head + rows)


def verdicts() -> str:
    """The claims behind a fold, so that nobody reads an answer before the question: cards, then all notes."""
    entries = recorded_claims()
    cards = picture("claims", claim_cards(entries).svg().title, 480)
    return "\n\n".join(
        [
            "<details><summary>Show the verdicts</summary>",
            cards,
            "</details>",
            "<details><summary>Every number, with its notes</summary>",
            scoreboard_table(entries),
            "</details>",
        ]
    )


# --- the first screen --------------------------------------------------------------


@cache
def largest() -> dict[str, dict[str, Lever]]:
    """Model to its largest levers of forgetting, by kind; models with no such records are left out."""
    found = {model: largest_levers(read_evidence(model)) for model in studied_models()}
    return {model: levers for model, levers in found.items() if set(levers) == set(KINDS)}


@cache
def studied() -> dict[str, SecondStudy]:
    """Model to its second study, where a test that a reader asks about was read."""
    found = {model: recorded_study(model) for model in studied_models()}
    return {model: study for model, study in found.items() if study and headline(study)}


def finding(found: dict[str, dict[str, Lever]], answered: dict[str, SecondStudy]) -> str:
    """What the course found, from the records: the answer of each model that has one; else what moved forgetting."""
    if not answered:
        return strongest(found)
    answers = [f"On {name_of(model)}, {headline(study)}" for model, study in answered.items()]
    left = [name_of(model) for model in found if model not in answered]
    answers += [f"The same on {', '.join(left)}: not recorded yet."] if left else []
    return " ".join(answers).replace(REWOUND, IN_WORDS, 1)


def strongest(found: dict[str, dict[str, Lever]]) -> str:
    """Which lever of the first study changed forgetting most, in one sentence."""
    leads = {next(iter(levers)) for levers in found.values()}
    if len(leads) != 1:
        ends = "; ".join(
            f"{KINDS[next(iter(levers))]} on {name_of(model)}" for model, levers in found.items()
        )
        return f"What changed most how much a model forgets depended on the model: {ends}."
    (lead,) = leads
    counts = " and ".join(
        f"{times(levers[lead])} times on {name_of(model)}" for model, levers in found.items()
    )
    beside = next(kind for kind in ("the plan", "the rate") if kind != lead)
    other = " and ".join(times(levers[beside]) for levers in found.values())
    return (
        f"Without rewinding, {KINDS[lead]} changed most how much a model forgets: up to {counts}. "
        f"({KINDS[beside].capitalize()}: up to {other} times.)"
    )


def times(lever: Lever) -> str:
    return two_digits(lever.times)


def name_of(model: str) -> str:
    """A model's name for readers who have not met it."""
    return NAMES.get(model, model)


def poster(theme: str, found: dict[str, dict[str, Lever]], answered: dict[str, SecondStudy]) -> Svg:
    """The picture of the first screen: a model under the main plan, and what changed forgetting on each model."""
    model, plan = build_on_meta(gpt_neo_125m_config()), FreezePlan.freeze("attention", "embeddings")
    ledger = plan.explain(model)
    words = (
        f"A drawing of GPT-Neo 125M with attention and embeddings frozen: {ledger.R:.0%} of its parameters train. "
        f"Below it bars: {finding(found, answered).replace('*', '')}"
    )
    drawing = Svg(480, words, theme)
    drawing.text(24, 34, f"Here {ledger.R:.0%} of GPT-Neo 125M trains", 17, bold=True)
    y = drawings.city(drawing, 48, model, ledger, 150) + 12
    drawings.legend(drawing, y)
    y += 52
    for name, study in answered.items():
        y = recipe_bars(drawing, y, name_of(name), study) + 22
    left = {name: levers for name, levers in found.items() if name not in answered}
    drawing.height = (lever_bars(drawing, y, left) if left else y - 14) + 18
    return drawing


def recipe_bars(drawing: Svg, y: float, name: str, study: SecondStudy) -> float:
    """What the recipes of the first tests forgot for one gain, as bars; returns where they end."""
    values = forgotten_first(study)
    scale = 150 / max(values.values())
    drawing.text(24, y, "Forgotten for the same gain", 17, bold=True)
    drawing.text(24, y + 22, f"{name}, {text_name(study.choices.text)}; nats per token", colour="soft")
    y += 30
    for recipe, value in sorted(values.items(), key=lambda item: -item[1]):
        colour = "trains" if recipe.plan == FULL else "frozen"
        drawing.text(252, y + 17, short(recipe), anchor="end")
        drawing.rect(260, y + 2, max(scale * value, 2), 20, colour, radius=2, line=0)
        drawing.text(266 + scale * value, y + 17, two_digits(value), bold=True)
        y += 26
    return y


def lever_bars(drawing: Svg, y: float, found: dict[str, dict[str, Lever]]) -> float:
    """By what factor each lever changed forgetting, as bars; returns where they end."""
    drawing.text(24, y, "What changed forgetting, and how much", 17, bold=True)
    scale = 205 / max(lever.times - 1 for levers in found.values() for lever in levers.values())
    for name, levers in found.items():
        drawing.text(24, y + 26, f"{name_of(name)}, first study", colour="soft")
        y += 34
        for kind, lever in levers.items():
            colour = "frozen" if kind == "the plan" else "soft"
            drawing.text(150, y + 17, SHORT[kind], anchor="end")
            drawing.rect(158, y + 2, max(scale * (lever.times - 1), 2), 20, colour, radius=2, line=0)
            drawing.text(164 + scale * (lever.times - 1), y + 17, f"{times(lever)} times", bold=True)
            y += 26
    return y


def score() -> str:
    """How many claims got which verdict."""
    counts = verdict_counts(recorded_claims())
    parts = [f"{len(ids)} {WORDS[verdict][len(ids) != 1]}" for verdict, ids in counts.items() if ids]
    total = sum(map(len, counts.values()))
    return f"**{total} claims of an article:** {', '.join(parts)}. [Which ones?](#what-the-course-found)"


def picture(name: str, alt: str, width: int) -> str:
    """HTML that shows ``docs/NAME-light.svg``, or in the dark ``docs/NAME-dark.svg``."""
    return (
        f'<picture><source media="(prefers-color-scheme: dark)" srcset="docs/{name}-dark.svg">'
        f'<img src="docs/{name}-light.svg" width="{width}" alt="{escape(alt)}"></picture>'
    )


def front() -> str:
    """What a reader sees first: what was found, a picture that says it, where to start, and the score."""
    found, pages = largest(), pages_address(repository(ROOT))
    tries = " · ".join(f"[{words}]({pages}/_static/mini/{name}.html)" for name, words in LIVING.items())
    first = sorted((ROOT / "notebooks").glob("*.ipynb"))[0]
    return "\n\n".join(
        [
            f"**What it found.** {finding(found, studied())} [All results, and what the words mean](results/README.md)",
            f"**[Start: lesson {first.stem[:2]}](notebooks/{first.name})** Try it now: {tries}",
            score(),
            picture("front", poster("light", found, studied()).title, 480),
        ]
    )


def drawn() -> dict[str, str]:
    """The pictures of README: name of a file under docs/ to what it must hold."""
    found, cards = largest(), claim_cards(recorded_claims())
    shown = {"front": lambda theme: poster(theme, found, studied()), "claims": cards.svg}
    return {
        f"{name}-{theme}.svg": str(draw(theme)) for name, draw in shown.items() for theme in ("light", "dark")
    }


# --- README as a whole -------------------------------------------------------------


def fill(text: str, block: str, content: str) -> str:
    """Put content between ``<!-- block -->`` and ``<!-- /block -->``."""
    pattern = re.compile(rf"(<!-- {block} -->\n).*?(<!-- /{block} -->)", re.S)
    if not pattern.search(text):
        raise SystemExit(f"README.md has no place for '{block}': <!-- {block} --> … <!-- /{block} -->.")
    return pattern.sub(lambda m: f"{m[1]}{content}\n{m[2]}", text)


def measured_costs() -> str:
    """One sentence each on the engine and on memory, where they were measured."""
    found = {"engine": results.engine(EVIDENCE), "memory": results.memory(EVIDENCE)}
    return "\n\n".join(
        f"{answer.sentence} [How it was measured](results/README.md#{slug(name)})."
        for name, answer in found.items()
        if answer is not None
    )


def slug(name: str) -> str:
    """Where a question is on the page of results."""
    asks = next(question.asks for question in QUESTIONS if question.name == name)
    return re.sub(r"[^\w -]", "", asks.lower()).replace(" ", "-")


def rendered(text: str) -> str:
    blocks = {"front": front, "lessons": lessons, "claims": verdicts, "costs": measured_costs}
    for block, content in blocks.items():
        text = fill(text, block, content())
    return text


def record() -> None:
    """Write the verdicts anew: the study's from its records, the others from build/claims, or as they were.

    What the notebooks measured on another model than the shipped miniature stands beside it, not in its place.
    """
    entries = published(newest(recorded_claims(), load_claims(profiles.build_dir() / "claims")))
    write_text(RECORDED, json.dumps([entry.as_json() for entry in entries], indent=1) + "\n")
    claim_cards(entries).show()


def write(anew: bool = False) -> None:
    """Bring README.md up to date; with ``anew`` the verdicts first."""
    if anew:
        record()
    readme = ROOT / "README.md"
    readme.write_text(rendered(readme.read_text("utf-8")), encoding="utf-8")
    for name, text in drawn().items():
        write_text(DOCS / name, text)


def is_current() -> bool:
    """Whether README.md and its pictures say what they would be given now."""
    text = (ROOT / "README.md").read_text("utf-8")
    pictures = {name: (DOCS / name).read_text("utf-8") for name in drawn() if (DOCS / name).exists()}
    return rendered(text) == text and pictures == drawn()
