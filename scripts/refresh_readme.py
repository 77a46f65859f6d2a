"""Write the parts of README.md that come from somewhere else: lessons, verdicts, picture.

    python scripts/refresh_readme.py          (make notebooks calls it last)
    python scripts/refresh_readme.py --check  exit code 1 where README.md is not up to date

The lessons come from the first cell of each notebook, the verdicts from data/evidence/claims.json
(a copy of build/claims.json, made on the shipped miniature), the picture from data/evidence/runs.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

from badges import badge, repository
from helpers import plots, profiles
from helpers.cards import RECORDED
from helpers.claims import claims_table, load_claims, number_of
from helpers.comparison import chosen, forgetting_at, frontier
from helpers.freezing import COURSE_PLANS
from helpers.study import read_runs

ROOT = Path(__file__).resolve().parent.parent
PICTURE = ROOT / "results" / "forgetting.png"
PLANS = ("full", "attention+embeddings", "only-attention", "only-mlp-out")


def lesson_row(notebook: Path, slug: str) -> str:
    """One row of the table, from the notebook's first cell: title, the minutes, the badge."""
    first = "".join(json.loads(notebook.read_text("utf-8"))["cells"][0]["source"])
    title = re.search(r"^# \d\d\. (.+)$", first, re.M)
    minutes = re.search(r"(\d+)(?: minutes)? to read.*?(\d+) (?:minutes )?with the exercises", first, re.S)
    if not (title and minutes):
        raise SystemExit(f"{notebook.name}: the first cell must hold '# 00. Title' and "
                         "'… 10 minutes to read, 20 with the exercises'.")
    return (f"| {title[1]} | [`{notebook.stem}`](notebooks/{notebook.name}) | {minutes[1]} / {minutes[2]} "
            f"| {badge(notebook.stem, slug)} |")


def lessons() -> str:
    rows = [lesson_row(p, repository(ROOT)) for p in sorted((ROOT / "notebooks").glob("*.ipynb"))]
    head = ["| lesson | notebook | minutes to read / with exercises | open |", "| --- | --- | --- | --- |"]
    return "\n".join(head + rows)


def verdicts() -> str:
    """The claims as a table; a claim that was not measured yet says so."""
    rows = ["| | the article says | verdict | measured | on |", "| --- | --- | --- | --- | --- |"]
    for e in json.loads(RECORDED.read_text("utf-8")):
        seeds = f", {e['n_seeds']} seed{'s' if e['n_seeds'] != 1 else ''}" if e["n_seeds"] else ""
        rows.append(f"| {e['id']} | {e['statement']} | **{e['verdict']}** | {number_of(e)}: {e['note']} "
                    f"| {e['model']}{seeds}, {e['source']} |")
    return "\n".join(rows)


def draw() -> None:
    """Forgetting against gain over all recorded seeds, one colour a plan."""
    runs = read_runs(ROOT / "data" / "evidence" / "runs" / profiles.TINY.model_name)
    seeds = sorted({r["seed"] for r in runs})
    paths, at_level = {}, {}
    kept = {plan: chosen(runs, COURSE_PLANS[plan].slug, "alice", "keep") for plan in PLANS}
    level = min(frontier(r["evaluations"])[0][-1] for own in kept.values() for r in own)
    for plan, own in kept.items():
        paths[COURSE_PLANS[plan].title] = [frontier(r["evaluations"]) for r in own]
        at_level[COURSE_PLANS[plan].title] = sum(forgetting_at(r["evaluations"], level) for r in own) / len(own)
    title = (f"At a gain of {level:.2f}, '{max(at_level, key=at_level.get)}' forgets most and "
             f"'{min(at_level, key=at_level.get)}' least\n"
             f"(GPT-Neo miniature, text 'alice', {len(seeds)} seeds, each plan at its own rate)")
    figure = plots.frontiers(paths, title)
    PICTURE.parent.mkdir(exist_ok=True)
    figure.savefig(PICTURE, dpi=110, metadata={"Software": None})


def fill(text: str, block: str, content: str) -> str:
    """Put content between ``<!-- block -->`` and ``<!-- /block -->``."""
    pattern = re.compile(rf"(<!-- {block} -->\n).*?(<!-- /{block} -->)", re.S)
    if not pattern.search(text):
        raise SystemExit(f"README.md has no place for '{block}': <!-- {block} --> … <!-- /{block} -->.")
    return pattern.sub(lambda m: f"{m[1]}{content}\n{m[2]}", text)


def rendered(text: str) -> str:
    return fill(fill(text, "lessons", lessons()), "claims", verdicts())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing")
    parser.add_argument("--record", action="store_true", help="take the verdicts from build/claims first")
    args = parser.parse_args()
    readme = ROOT / "README.md"
    text = readme.read_text("utf-8")
    if args.check:
        return 0 if rendered(text) == text else 1
    if args.record:
        entries = load_claims(profiles.build_dir() / "claims")
        RECORDED.write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")
        print(claims_table(entries))
    draw()
    readme.write_text(rendered(text), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
