"""Run the notebooks and write their outputs into the files that are committed.

    course notebooks [02_freezing ...]

A notebook is written only when every one of its cells has run; a failing one stays as it
was, and the exit code is 1. What changes from run to run without meaning anything (timings,
widget ids, the Python's version) is left out, so that a difference is a difference. Prints
which cells now say something else.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

import nbformat

from helpers.files import counted
from publishing.kernel import KERNEL_SETTINGS, OFFLINE, code_cells, run_notebook
from publishing.run import ROOT, lessons

# Stored outputs are those of the miniature, on any machine.
SETTINGS = KERNEL_SETTINGS | OFFLINE | {"COURSE_PROFILE": "tiny"}
KERNEL = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
ASKED, REVEALED = re.compile(r'\bpredict\("([\w-]+)"'), re.compile(r'\breveal\("([\w-]+)"')
FAR = 16  # cells
FOLDED = {"jupyter": {"source_hidden": True}, "cellView": "form"}  # in JupyterLab, and on Colab
CELL_NOISE = ("execution", "collapsed", "scrolled", "jupyter", "ExecuteTime", "trusted")


def normalise(book: nbformat.NotebookNode) -> None:
    """Leave in a notebook only what a reader or a test needs."""
    book.metadata.pop("widgets", None)
    book.metadata.update(nbformat.from_dict(KERNEL))
    book.nbformat, book.nbformat_minor = 4, 5
    for index, cell in enumerate(book.cells):
        cell.setdefault("id", f"cell-{index:03d}")
        cell.source = cell.source.rstrip()
        for key in CELL_NOISE:
            cell.metadata.pop(key, None)
    for cell in answered(book.cells):
        cell.metadata |= {"collapsed": True, "jupyter": {"outputs_hidden": True}}
    for cell in code_cells(book):
        if "session.enter()" in cell.source:  # the set-up cell: what it says is for the reader, not its code
            cell.metadata |= FOLDED


def answered(cells: Sequence[nbformat.NotebookNode]) -> list[nbformat.NotebookNode]:
    """The cells whose outputs answer a prediction: they are stored folded, and open when they are run.

    What is between a prediction and its `reveal` computes the answer, unless they are far apart; what stands
    right behind the reveal may be the verdict.
    """
    asked: dict[str, int] = {}
    found: set[int] = set()
    for place, cell in enumerate(cells):
        for name in ASKED.findall(cell.source) if cell.cell_type == "code" else ():
            asked.setdefault(name, place)
        for name in REVEALED.findall(cell.source) if cell.cell_type == "code" else ():
            begin = asked.get(name, place - 1)
            found |= set(range(begin + 1 if place - begin <= FAR else place, place + 1))
            found |= {p for p in (place + 1,) if p < len(cells) and "record(" in cells[p].source}
    return [cells[p] for p in sorted(found) if cells[p].get("outputs") and not is_asking(cells[p])]


def is_asking(cell: nbformat.NotebookNode) -> bool:
    """Whether a cell is an exercise or a prediction of its own."""
    return "exercise" in cell.metadata or ASKED.search(cell.source) is not None


def said(cell: nbformat.NotebookNode) -> list[str]:
    """The lines of text in a cell's outputs, and a line for each picture."""
    lines = []
    for output in cell.outputs:
        data = output.get("data", {})
        text = output.get("text") or data.get("text/html") or data.get("text/plain") or ""
        lines += text.splitlines()
        lines += [
            f"[{kind}, {len(data[kind])} characters]" for kind in sorted(data) if kind.startswith("image/")
        ]
    return lines


def changes(before: nbformat.NotebookNode, after: nbformat.NotebookNode) -> list[str]:
    """A line for each code cell whose output is not what it was."""
    old = {cell.get("id"): said(cell) for cell in code_cells(before)}
    found = []
    for number, cell in enumerate(code_cells(after), start=1):
        was, now = old.get(cell.get("id")), said(cell)
        if was is None:
            found.append(f"  cell {number}: new")
        elif was != now:
            found.append(f"  cell {number}: {first_difference(was, now)}")
    return found


def first_difference(was: list[str], now: list[str]) -> str:
    """The first line that differs, before and after."""
    length = max(len(was), len(now))
    pairs = zip(
        was + ["(nothing)"] * (length - len(was)), now + ["(nothing)"] * (length - len(now)), strict=True
    )
    old, new = next(pair for pair in pairs if pair[0] != pair[1])
    return f"{old.strip()[:60]!r} is now {new.strip()[:60]!r}"


def refresh(path: Path) -> bool:
    """Run one notebook and write it back; say what changed. False where a cell failed."""
    before = nbformat.read(path, as_version=4)
    after = nbformat.from_dict(before)
    # as Jupyter's server does, so that the set-up cell speaks of this notebook alone
    named = {"JPY_SESSION_NAME": path.name}
    stopped = run_notebook(after, path.parent, SETTINGS | named)
    if stopped:
        print(f"{path.stem}: FAILED, {stopped}\n\n{path.name} is as it was.")
        return False
    normalise(after)
    partial = path.with_suffix(".partial")
    nbformat.write(after, partial)
    os.replace(partial, path)
    different = changes(before, after)
    n_cells, n_different = counted(len(code_cells(after)), "cell"), len(different)
    print(f"{path.stem}: {n_cells} run, {n_different} {'says' if n_different == 1 else 'say'} something else")
    print("\n".join(different), end="\n" * bool(different), flush=True)
    return True


def refresh_all(names: Sequence[str] = (), folder: Path = ROOT / "notebooks") -> bool:
    """Run the named notebooks, or all; whether each ran to its end. A failing one does not keep the others back.

    Raises:
        CourseError: there is no such notebook.
    """
    paths = [path for name in names or [""] for path in lessons(folder.resolve(), name)]
    return all([refresh(path) for path in paths])
