"""JupyterLab on a working copy of the lessons, under build/lab/: opening a lesson changes no file of the course.

    course lab [--no-browser ...]        (make lab)

The copy belongs to the reader. Beside it, hidden, lies the edition that it was made from. When the course has a new
edition of a lesson, the copy becomes that one with the reader's answers in it, and what it was before stays under
build/lab/earlier/.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from helpers.files import write_text
from helpers.profiles import build_dir

ROOT = Path(__file__).resolve().parents[1]
FIRST = "00_start_here.ipynb"
EDITIONS, EARLIER = ".editions", "earlier"
PREDICTION = re.compile(r"^(?:\w+\.)?predict\(\s*['\"]([^'\"]+)", re.MULTILINE)


class LabError(RuntimeError):
    """The working copy cannot be made. The message says what to do; no copy was changed."""


def question_of(cell: NotebookNode) -> str | None:
    """The name of what a cell asks: an exercise or a prediction; None for all other cells."""
    if cell.cell_type != "code":
        return None
    if "exercise" in cell.metadata:
        return f"exercise {cell.metadata['exercise']}"
    found = PREDICTION.search(cell.source)
    return f"prediction {found[1]}" if found else None


def answers(copy: NotebookNode, edition: NotebookNode) -> dict[str, NotebookNode]:
    """The cells that a reader has answered: question to cell, where its source is not what the edition has."""
    stubs = {question_of(cell): cell.source for cell in edition.cells}
    asked = {question_of(cell): cell for cell in copy.cells}
    return {q: cell for q, cell in asked.items() if q is not None and cell.source != stubs.get(q)}


def with_answers(
    new: NotebookNode, given: dict[str, NotebookNode]
) -> tuple[NotebookNode, dict[str, NotebookNode]]:
    """A new edition with a reader's answers in it, and the answers that it has no place for."""
    merged, left = nbformat.from_dict(new), dict(given)
    for cell in merged.cells:
        answer = left.pop(question_of(cell), None)
        if answer is not None:
            cell.source, cell.outputs = answer.source, answer.outputs
            cell.execution_count = answer.execution_count
    return merged, left


def furnish(course: Path, place: Path) -> list[str]:
    """Bring the working copy up to date, lesson by lesson.

    Args:
        course: the folder of the course's notebooks; only read.
        place: the folder of the copies.

    Returns:
        A line for each lesson whose copy became a new edition.

    Raises:
        LabError: a copy is no notebook any more, or the folder cannot be written.
    """
    try:
        (place / EDITIONS).mkdir(parents=True, exist_ok=True)
        lines = [bring_up(notebook, place) for notebook in sorted(course.glob("*.ipynb"))]
    except OSError as error:
        raise LabError(
            f"The working copy in '{place}' cannot be written: {error}. Choose another folder with COURSE_BUILD."
        ) from error
    return [line for line in lines if line]


def bring_up(notebook: Path, place: Path) -> str | None:
    """Make the copy of one lesson, or give it the course's new edition; a line that says so, if the copy changed."""
    copy, edition = place / notebook.name, place / EDITIONS / notebook.name
    text = notebook.read_text("utf-8")
    if not copy.exists() or (edition.exists() and copy.read_bytes() == edition.read_bytes()):
        write_text(edition, text)
        write_text(copy, text)
        return None
    if edition.exists() and edition.read_text("utf-8") == text:
        return None
    mine, new = read(copy), nbformat.reads(text, as_version=4)
    given = answers(mine, read(edition) if edition.exists() else new)
    merged, left = with_answers(new, given)
    before = set_aside(copy)
    write_text(copy, nbformat.writes(merged) + "\n")
    write_text(edition, text)
    lost = f" No place was left for: {', '.join(left)}." if left else ""
    return (
        f"{notebook.stem}: the new edition, with {len(given) - len(left)} of your answers. "
        f"What it was before is in {before.relative_to(place)}.{lost}"
    )


def read(copy: Path) -> NotebookNode:
    try:
        return nbformat.read(copy, as_version=4)
    except (ValueError, nbformat.ValidationError) as error:
        raise LabError(
            f"'{copy}' is no notebook any more. Move it away; the next start makes a new copy."
        ) from error


def set_aside(copy: Path) -> Path:
    """Keep a copy as it is now, under a name that is free."""
    folder = copy.parent / EARLIER
    folder.mkdir(exist_ok=True)
    numbers = range(1, 10**6)
    free = next(p for n in numbers if not (p := folder / f"{copy.stem}_{n}.ipynb").exists())
    shutil.copy2(copy, free)
    return free


def serve(arguments: list[str]) -> int:
    """Bring the copy up to date and become JupyterLab on it, which takes this process's place.

    Args:
        arguments: JupyterLab's own.

    Raises:
        LabError, ProfileError: there is no copy to open.
    """
    place = build_dir() / "lab"
    for line in furnish(ROOT / "notebooks", place):
        print(line)
    print(f"Your working copy: {place}", flush=True)
    command = [sys.executable, "-P", "-m", "jupyterlab", str(place / FIRST), *arguments]
    # The kernels of this environment, before those of the reader's other ones
    os.execve(sys.executable, command, os.environ | {"JUPYTER_PREFER_ENV_PATH": "1"})
