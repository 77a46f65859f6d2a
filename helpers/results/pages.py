"""Write the pages under results/: one figure a question, one sentence a figure, from the recorded evidence.

    python -m helpers.results.pages            write the pages and pictures that changed
    python -m helpers.results.pages --check    exit code 1 where results/ is not what the evidence says

`course results` calls this after publishing/readme.py. A picture carries the hash of the numbers that it
shows, and is drawn again only when they change. What was not recorded has no page yet, and the index says so.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from pathlib import Path

from matplotlib import pyplot
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from helpers.files import write_text
from helpers.profiles import ROOT, TINY
from helpers.results.answers import Answer
from helpers.results.evidence import EVIDENCE, read_evidence, studied_models
from helpers.results.questions import QUESTIONS, Question
from helpers.session import git
from helpers.study import PAGE, read_protocol

RESULTS = ROOT / "results"
DATE = "protocol.json"  # when the protocol of the runs was fixed
DPI, N_COLOURS = 100, 256


# --- pictures ----------------------------------------------------------------------


def picture_name(question: Question, model: str) -> str:
    """The miniature has the short name, which the README shows."""
    is_short = model == TINY.model_name or not question.of_model
    return f"{question.name}.png" if is_short else f"{question.name}-{model}.png"


def data_hash(answer: Answer) -> str:
    """Hash of what a picture shows: its title and numbers."""
    return hashlib.sha256(
        json.dumps([answer.title, rounded(answer.data)], sort_keys=True).encode()
    ).hexdigest()


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
    with Image.open(picture) as opened:
        return opened.info.get("Data")


def draw(answer: Answer, picture: Path) -> None:
    """Draw, and keep few colours: a third of the size, and no difference that an eye sees."""
    figure, drawn = answer.draw(), io.BytesIO()
    figure.savefig(drawn, dpi=DPI)
    pyplot.close(figure)
    marks = PngInfo()
    marks.add_text("Data", data_hash(answer))
    Image.open(drawn).convert("RGB").quantize(N_COLOURS).save(picture, optimize=True, pnginfo=marks)


# --- pages -------------------------------------------------------------------------


def page(question: Question, found: dict[str, Answer], known: dict) -> str:
    """One question: for each model the sentence, the table, the figure, and what it rests on."""
    parts = [
        f"# {question.asks}",
        f"Written by `course results` from {question.source}. [All questions](README.md)",
    ]
    for model, answer in found.items():
        if question.of_model:
            parts.append(f"## {model}")
        parts += [
            answer.sentence,
            *filter(None, [answer.table]),
            f"![{answer.alt}]({picture_name(question, model)})",
            f"*{answer.origin}{protocol_line(answer, known)}*",
        ]
    return "\n\n".join([*parts, f"How to read it: {question.how_to_read}"]) + "\n"


def protocol_line(answer: Answer, known: dict) -> str:
    if answer.protocol is None:
        return ""
    day = f" of {known['date']}" if known.get("date") and known["sha256"] == answer.protocol else ""
    return f" Protocol `{answer.protocol[:12]}`{day}: [the page](../data/evidence/{answer.page})."


def index(pages: dict[Question, dict[str, Answer]]) -> str:
    """All questions with their answers in one sentence each."""
    parts = [
        "# Results",
        "One page a question. Every answer, number and picture is computed by `course results` from "
        "the files under `data/evidence`, or from a config. The verdicts on all fifteen claims stand in the "
        "[README](../README.md#what-the-course-found), the rules in the "
        "[protocol](../data/evidence/PROTOCOL.md).",
    ]
    for question, found in pages.items():
        if not found:
            parts += [f"## {question.asks}", f"Not recorded yet: `{question.command}`."]
            continue
        parts.append(f"## [{question.asks}]({question.name}.md)")
        for model, answer in found.items():
            parts.append(f"{f'**{model}.** ' if question.of_model else ''}{answer.sentence}")
    return "\n\n".join(parts) + "\n"


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


def texts(pages: dict[Question, dict[str, Answer]], known: dict) -> dict[str, str]:
    """File name to what it must hold."""
    written = {f"{q.name}.md": page(q, found, known) for q, found in pages.items() if found}
    return {"README.md": index(pages)} | written


def pictures(pages: dict[Question, dict[str, Answer]]) -> dict[str, Answer]:
    return {picture_name(q, m): a for q, found in pages.items() for m, a in found.items()}


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
    wanted, drawn = texts(pages, known_date(results)), pictures(pages)
    there = {p.name for p in results.iterdir()} - {DATE} if results.exists() else set()
    stale = [
        f"{name}: old text"
        for name, text in wanted.items()
        if name in there and (results / name).read_text("utf-8") != text
    ]
    stale += [
        f"{name}: old numbers"
        for name, a in drawn.items()
        if name in there and hash_in(results / name) != data_hash(a)
    ]
    return (
        stale
        + [f"{name}: missing" for name in sorted({*wanted, *drawn} - there)]
        + [f"{name}: nothing asks for it" for name in sorted(there - {*wanted, *drawn})]
    )


def write(results: Path = RESULTS, folder: Path = EVIDENCE) -> None:
    results.mkdir(exist_ok=True)
    date = date_of_protocol(results)
    write_text(results / DATE, json.dumps(date) + "\n")
    pages = all_answers(folder)
    wanted, drawn = texts(pages, date), pictures(pages)
    for name, text in wanted.items():
        write_text(results / name, text)
    for name, answer in drawn.items():
        if hash_in(results / name) != data_hash(answer):
            draw(answer, results / name)
            print(f"drawn: {name}, {(results / name).stat().st_size / 1024:.0f} KB")
    for old in results.iterdir():
        if old.name not in {DATE, *wanted, *drawn} and re.fullmatch(r"[\w.-]+\.(md|png)", old.name):
            old.unlink()
            print(f"deleted: {old.name}, nothing asks for it any more")
    print(f"{len(wanted)} pages, {len(drawn)} pictures in {results.name}/")
