"""Write results/: for each question one sentence, one figure and one table, from the recorded evidence.

`course results` calls this after publishing/readme.py; `course results --check` asks for differences. A picture holds
every model that has an answer. It carries the hash of the numbers that it shows, and is drawn again only when they
change. What was not recorded has no picture yet, and the page says so.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Mapping
from html import escape
from pathlib import Path

import matplotlib
from matplotlib import pyplot

from helpers.files import write_text
from helpers.plots import IN_THE_DARK, Svg
from helpers.profiles import ROOT
from helpers.results.answers import Answer
from helpers.results.evidence import EVIDENCE, read_evidence, studied_models
from helpers.results.questions import QUESTIONS, Question
from helpers.session import git
from helpers.study import PAGE, read_protocol

RESULTS = ROOT / "results"
DATE = "protocol.json"  # when the protocol of the runs was fixed
# Letters stay letters, so that a reader can search for them; the same numbers give the same file.
DRAWING = {"svg.fonttype": "none", "svg.hashsalt": "results", "svg.image_inline": True}
FOR_THE_DARK = f"@media (prefers-color-scheme: dark){{:root{{filter:{IN_THE_DARK}}}}}"
Answers = Mapping[str, Answer]  # of one question, by model


# --- pictures ----------------------------------------------------------------------


def data_hash(found: Answers) -> str:
    """Hash of what a picture shows: its titles and numbers."""
    shown = [[answer.title, rounded(answer.data)] for answer in found.values()]
    return hashlib.sha256(json.dumps(shown, sort_keys=True).encode()).hexdigest()


def rounded(data):
    """Numbers to five digits, so that the last bits of a sum do not count; keys as text."""
    if isinstance(data, dict):
        return {str(k): rounded(v) for k, v in data.items()}
    if isinstance(data, str) or data is None:
        return data
    return [rounded(v) for v in data] if hasattr(data, "__iter__") else float(f"{float(data):.5g}")


def hash_in(picture: Path) -> str | None:
    """The hash that a picture carries; None where there is no picture, or none of ours."""
    if not picture.exists():
        return None
    found = re.search(r"<desc>([0-9a-f]{64})</desc>", picture.read_text("utf-8")[:3000])
    return found and found[1]


def drawn(answer: Answer, place: int) -> tuple[str, float, float]:
    """A figure as SVG without its head, its width and height; ``place`` keeps its names apart from another's."""
    with matplotlib.rc_context(DRAWING):
        figure, file = answer.draw(), io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    pyplot.close(figure)
    text = file.getvalue()
    width, height = (float(re.search(rf'{side}="([\d.]+)pt"', text)[1]) for side in ("width", "height"))
    body = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    body = re.sub(r"^<svg[^>]*>", "", body).rpartition("</svg>")[0]
    body = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{'abcdefgh'[place]}", body)
    return body.replace("'DejaVu Sans'", Svg.FONT).replace("\n ", "\n"), width, height


def picture(found: Answers) -> str:
    """The figures of all models, one below the other, as one SVG."""
    figures = [drawn(answer, i) for i, answer in enumerate(found.values())]
    width, height, parts = max(w for _, w, _ in figures), 0.0, []
    for body, own_width, own_height in figures:
        parts.append(
            f'<svg y="{height:g}" width="{own_width:g}" height="{own_height:g}" '
            f'viewBox="0 0 {own_width:g} {own_height:g}">{body}</svg>'
        )
        height += own_height
    words = ". ".join(answer.alt for answer in found.values())
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" role="img" '
        f'width="{1.4 * width:g}" height="{1.4 * height:g}" viewBox="0 0 {width:g} {height:g}">'
        f"<title>{escape(words)}</title><desc>{data_hash(found)}</desc>"
        f'<style>{FOR_THE_DARK}</style><rect width="100%" height="100%" fill="white"/>{"".join(parts)}</svg>\n'
    )


# --- the page ----------------------------------------------------------------------


def section(question: Question, found: Answers, known: dict) -> str:
    """One question: for each model the answer in a sentence, one figure, one table; all else is folded."""
    if not found:
        return f"## {question.asks}\n\nNot recorded yet: `{question.command}`."
    alt = ". ".join(answer.alt for answer in found.values())
    parts = [f"## {question.asks}"]
    parts += [f"**{one_line(answer.title)}.**" for answer in found.values()]
    parts += [f"![{alt}]({question.name}.svg)"]
    parts += [
        "\n".join(
            [f"**{model}**, {a.about_rules}:\n", *(f"{i}. {rule}" for i, rule in enumerate(a.rules, 1))]
        )
        for model, a in found.items()
        if a.rules
    ]
    if any(answer.table for answer in found.values()):
        parts += folded("Table", *tables(found))
    said = [f"{f'**{model}.** ' if question.of_model else ''}{a.sentence}" for model, a in found.items()]
    origins = [f"*{answer.origin}{protocol_line(answer, known)}*" for answer in found.values()]
    made = f"Computed by `course results` from {question.source}."
    parts += folded(
        "In words, and how to read it", *said, f"How to read it: {question.how_to_read}", *origins, made
    )
    return "\n\n".join(parts)


def one_line(title: str) -> str:
    """A figure's title as a sentence without its full stop."""
    return " ".join(title.split()).rstrip(".")


def folded(summary: str, *parts: str) -> list[str]:
    return [f"<details><summary>{summary}</summary>", *parts, "</details>"]


def tables(found: Answers) -> list[str]:
    """The tables of all models as one; where a model has several, or other columns, each under its name."""
    lines = {model: answer.table.splitlines() for model, answer in found.items() if answer.table}
    if len(lines) < 2:
        return ["\n".join(own) for own in lines.values()]
    heads = {tuple(own[:2]) for own in lines.values()}
    if len(heads) > 1 or any("" in own for own in lines.values()):
        return [part for model, own in lines.items() for part in (f"**{model}**", "\n".join(own))]
    ((head, rule),) = heads
    rows = [f"| {model} {row}" for model, own in lines.items() for row in own[2:]]
    return ["\n".join([f"| model {head}", f"| --- {rule}", *rows])]


def protocol_line(answer: Answer, known: dict) -> str:
    if answer.protocol is None:
        return ""
    day = f" of {known['date']}" if known.get("date") and known["sha256"] == answer.protocol else ""
    return f" Protocol `{answer.protocol[:12]}`{day}: [the page](../data/evidence/{answer.page})."


def page(pages: Mapping[Question, Answers], known: dict) -> str:
    """All questions in their order."""
    start = (
        "# Results\n\n"
        "Each question has one answer in a sentence, one figure and one table. All of it is computed from the files "
        "under `data/evidence`, or from a config. The verdicts on all fifteen claims are in the "
        "[README](../README.md#what-the-course-found), the rules in the [protocol](../data/evidence/PROTOCOL.md).\n\n"
        "The words:\n\n"
        "- A *plan* says which weights train; the *main plan* freezes attention and embeddings. *At 0.0001*: with this "
        "learning rate.\n"
        "- *Gain*: by how much the loss on held-out chapters fell. *Forgetting*: how far the model moved from its base on "
        "text that the base wrote, in nats per token. *At equal gain*: both are read where they have gained as much.\n"
        "- *Stopped*: a model from along its training. *Rewound*: the tuned weights, taken back towards the base. "
        "*Replay*: training on pages that the base wrote as well; *replay 1*: with weight 1 in the loss. A *recipe*: a plan, "
        "a learning rate and one of these.\n"
        "- A *pair*: two runs with the same seed and batches. *[a, b]* behind a number: its 95% interval.\n"
        "- *Alice* and *Edgar*: the course's own texts, in the manner of two authors. *Carroll* and *Poe*: their own.\n"
        "- C1 to C15: the article's claims."
    )
    return "\n\n".join([start, *(section(q, found, known) for q, found in pages.items())]) + "\n"


def all_answers(folder: Path = EVIDENCE) -> dict[Question, dict[str, Answer]]:
    """Question to model to answer; models and questions without records are left out."""
    evidence = {m: read_evidence(m, folder) for m in studied_models(folder)}
    found: dict[Question, dict[str, Answer]] = {}
    for question in QUESTIONS:
        asked = (
            {m: question.answer(e) for m, e in evidence.items()}
            if question.of_model
            else {"": question.answer(folder)}
        )
        found[question] = {m: a for m, a in asked.items() if a is not None}
    return found


def pictures(pages: Mapping[Question, Answers]) -> dict[str, Answers]:
    """File name to the answers that it shows."""
    return {f"{question.name}.svg": found for question, found in pages.items() if found}


# --- the date of the protocol ------------------------------------------------------


def fixed_on(sha256: str) -> str | None:
    """The day on which the page with this hash was committed first; None without a history."""
    place = PAGE.relative_to(ROOT).as_posix()
    log = git("log", "--reverse", "--format=%H %cs", "--", place)
    for line in (log or "").splitlines():
        commit, day = line.split()
        text = git("show", f"{commit}:{place}")
        if text and hashlib.sha256(text.partition("\n## Amendments")[0].encode()).hexdigest() == sha256:
            return day
    return None


def known_date(results: Path) -> dict:
    place = results / DATE
    return json.loads(place.read_text("utf-8")) if place.exists() else {}


def date_of_protocol(results: Path) -> dict:
    """The protocol's hash and day: looked up in the history once, then kept for copies that have no history."""
    known, sha256 = known_date(results), read_protocol().sha256
    return known if known.get("sha256") == sha256 else {"sha256": sha256, "date": fixed_on(sha256)}


# --- writing -----------------------------------------------------------------------


def differences(results: Path = RESULTS, folder: Path = EVIDENCE) -> list[str]:
    """What in results/ is not what the evidence says: one line a file."""
    pages = all_answers(folder)
    shown, text = pictures(pages), page(pages, known_date(results))
    there = {p.name for p in results.iterdir()} - {DATE} if results.exists() else set()
    wanted = {"README.md", *shown}
    stale = [
        f"{name}: old numbers"
        for name, found in shown.items()
        if name in there and hash_in(results / name) != data_hash(found)
    ]
    if "README.md" in there and (results / "README.md").read_text("utf-8") != text:
        stale.insert(0, "README.md: old text")
    return (
        stale
        + [f"{name}: missing" for name in sorted(wanted - there)]
        + [f"{name}: nothing asks for it" for name in sorted(there - wanted)]
    )


def write(results: Path = RESULTS, folder: Path = EVIDENCE) -> None:
    """Write the page, and the pictures whose numbers changed."""
    results.mkdir(exist_ok=True)
    date = date_of_protocol(results)
    write_text(results / DATE, json.dumps(date) + "\n")
    pages = all_answers(folder)
    shown = pictures(pages)
    write_text(results / "README.md", page(pages, date))
    for name, found in shown.items():
        if hash_in(results / name) != data_hash(found):
            write_text(results / name, picture(found))
            print(f"drawn: {name}, {(results / name).stat().st_size / 1024:.0f} KB")
    for old in results.iterdir():
        if old.name not in {DATE, "README.md", *shown} and re.fullmatch(r"[\w.-]+\.(md|png|svg)", old.name):
            old.unlink()
            print(f"deleted: {old.name}, nothing asks for it any more")
    print(f"{len(pages)} questions, {len(shown)} pictures in {results.name}/")
