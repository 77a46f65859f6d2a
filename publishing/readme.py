"""Write the parts of README.md that come from somewhere else: lessons, verdicts and measured costs.

    course results            write data/evidence/claims.json anew, then README.md and results/
    course results --readme   README.md alone, from what is recorded
    course results --check    change nothing; exit code 1 where something is not up to date

The lessons come from the first cell of each notebook, the verdicts from data/evidence/claims.json. That file
holds the study's verdicts, as `helpers.results.verdicts` computes them from the records, and beside them what the
notebooks measured themselves, on the shipped miniature. The costs come from benchmark.json and memory.json. The
picture is written by helpers/results/pages.py.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from helpers import profiles, results
from helpers.files import write_text
from helpers.results import (
    EVIDENCE,
    RECORDED,
    claims_table,
    load_claims,
    newest,
    published,
    recorded_claims,
    scoreboard_table,
)
from publishing.badges import badge, repository

ROOT = Path(__file__).resolve().parents[1]


def lesson_row(notebook: Path, slug: str) -> str:
    """One row of the table, from the notebook's first cell: title, the minutes, the badge."""
    first = "".join(json.loads(notebook.read_text("utf-8"))["cells"][0]["source"])
    title = re.search(r"^# \d\d\. (.+)$", first, re.M)
    minutes = re.search(r"(\d+)(?: minutes)? to read.*?(\d+) (?:minutes )?with the exercises", first, re.S)
    if not (title and minutes):
        raise SystemExit(
            f"{notebook.name}: the first cell must hold '# 00. Title' and "
            "'… 10 minutes to read, 20 with the exercises'."
        )
    return (
        f"| {title[1]} | [`{notebook.stem}`](notebooks/{notebook.name}) | {minutes[1]} / {minutes[2]} "
        f"| {badge(notebook.stem, slug)} |"
    )


def lessons() -> str:
    rows = [lesson_row(p, repository(ROOT)) for p in sorted((ROOT / "notebooks").glob("*.ipynb"))]
    head = ["| lesson | notebook | minutes to read / with exercises | open |", "| --- | --- | --- | --- |"]
    return "\n".join(head + rows)


def verdicts() -> str:
    """The claims as a table, each on every model that it was measured on."""
    return scoreboard_table(json.loads(RECORDED.read_text("utf-8")))


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
        f"{answer.sentence} [How it was measured](results/{name}.md)."
        for name, answer in found.items()
        if answer is not None
    )


def rendered(text: str) -> str:
    for block, content in (("lessons", lessons()), ("claims", verdicts()), ("costs", measured_costs())):
        text = fill(text, block, content)
    return text


def record() -> None:
    """Write the verdicts anew: the study's from its records, the others from build/claims, or as they were.

    What the notebooks measured on another model than the shipped miniature stands beside it, not in its place.
    """
    entries = published(newest(recorded_claims(), load_claims(profiles.build_dir() / "claims")))
    write_text(RECORDED, json.dumps(entries, indent=1) + "\n")
    print(claims_table(entries))


def write(anew: bool = False) -> None:
    """Bring README.md up to date; with ``anew`` the verdicts first."""
    if anew:
        record()
    readme = ROOT / "README.md"
    readme.write_text(rendered(readme.read_text("utf-8")), encoding="utf-8")


def is_current() -> bool:
    """Whether README.md says what it would be given now."""
    text = (ROOT / "README.md").read_text("utf-8")
    return rendered(text) == text
