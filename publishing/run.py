"""Run the course's notebooks in order and show what they found.

    course run [--notebook 02_freezing]        (make course [NOTEBOOK=02_freezing])
    course run --record-minutes                (for maintainers, on a machine that does nothing else)

Each notebook runs in a kernel of its own. Its executed copy and its page go to
build/course/, never into notebooks/; the claims that it recorded end in build/claims.json
and in the table printed last. The first failing cell stops the course: it is shown, what
was done until then is kept, and the exit code is 1. Bad arguments: exit code 2.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import nbformat
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from helpers.files import counted
from publishing.kernel import KERNEL_SETTINGS, OFFLINE, Failure, code_cells, run_notebook
from publishing.offline_html import notebook_html

try:
    import resource
except ModuleNotFoundError:  # Windows
    resource = None

ROOT = Path(__file__).resolve().parents[1]


class CourseError(ValueError):
    """The course cannot start. The message says what to do."""


@dataclass(frozen=True)
class Lesson:
    """One executed notebook."""

    name: str
    n_cells: int
    seconds: float
    failure: Failure | None


def lessons(folder: Path, name: str = "") -> list[Path]:
    """The notebooks of a folder in order, or the one that is asked for.

    Args:
        name: "02_freezing", its beginning such as "02", or a path that leads to it; empty for all.

    Raises:
        CourseError: there is no such notebook, or none at all.
    """
    every = sorted(folder.glob("*.ipynb"))
    if not every:
        raise CourseError(f"There is no notebook in '{folder}'.")
    if not name:
        return every
    found = [p for p in every if is_named(p, name)] or [p for p in every if p.stem.startswith(name)]
    if len(found) != 1:
        names = [place.stem for place in every]
        near = difflib.get_close_matches(name, names, n=1)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        raise CourseError(f"Notebook '{name}' is not known. Notebooks: {', '.join(names)}.{hint}")
    return found


def is_named(notebook: Path, name: str) -> bool:
    """Whether a name is that of a notebook, with or without its ending. One with a folder in it must lead there."""
    given = f"{name.removesuffix('.ipynb')}.ipynb"
    if os.path.dirname(given):
        return os.path.realpath(given) == os.path.realpath(notebook)
    return given == notebook.name


class Bar:
    """The live line: notebook, cell, time. Without a terminal: a line when a notebook is done."""

    def __init__(self, console: Console, n_lessons: int):
        self.console, self.n_lessons, self.n_done = console, n_lessons, 0
        self.live = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("cell {task.fields[cell]} of {task.total}"),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )

    def start(self, name: str, n_cells: int) -> None:
        label = f"{self.n_done + 1}/{self.n_lessons} {name}"
        self.task = self.live.add_task(label, total=n_cells, cell=0)

    def before_cell(self, number: int) -> None:
        self.live.update(self.task, completed=number - 1, cell=number)

    def finish(self, lesson: Lesson) -> None:
        self.live.remove_task(self.task)
        self.n_done += 1
        mark = "stopped" if lesson.failure else "done"
        self.console.print(
            f"{self.n_done}/{self.n_lessons} {lesson.name:24s} {lesson.n_cells:3d} cells "
            f"{clock(lesson.seconds):>6s}  {mark}",
            highlight=False,
        )


def clock(seconds: float) -> str:
    """Minutes and seconds: 4:07."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def run_lesson(path: Path, out: Path, settings: dict[str, str], bar: Bar) -> Lesson:
    """Execute one notebook and keep its copy and page, finished or not."""
    book = nbformat.read(path, as_version=4)
    n_cells = len(code_cells(book))
    bar.start(path.stem, n_cells)
    begin = time.monotonic()
    stopped = None
    try:
        # As in JupyterLab, a cell works in the folder of its notebook.
        stopped = run_notebook(book, path.parent, settings, before_cell=bar.before_cell)
    finally:  # also after Ctrl-C
        out.mkdir(parents=True, exist_ok=True)
        nbformat.write(book, out / path.name)
        (out / f"{path.stem}.html").write_text(notebook_html(book, path.stem, path.parent), encoding="utf-8")
    lesson = Lesson(path.stem, n_cells, time.monotonic() - begin, stopped)
    bar.finish(lesson)
    return lesson


def run_lessons(paths: list[Path], out: Path, settings: dict[str, str], console: Console) -> list[Lesson]:
    """Execute notebooks in order, until the end or the first failure."""
    bar, done = Bar(console, len(paths)), []
    with bar.live:
        for path in paths:
            done.append(run_lesson(path, out, settings, bar))
            if done[-1].failure:
                break
    return done


def show_claims(build: Path) -> None:
    """Gather the recorded claims in claims.json and print their table."""
    from helpers.files import write_json
    from helpers.results import claim_cards, load_claims

    claims = load_claims(build / "claims")
    write_json(build / "claims.json", [entry.as_json() for entry in claims])
    if claims:
        print()
        claim_cards(claims).show()


def peak_memory() -> str:
    """In words: the most that any finished kernel held. Windows does not tell it."""
    if resource is None:
        return "memory not measured"
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB on Linux
    return (
        f"at most {resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit / 2**30:.1f} GiB of memory"
    )


def report(done: list[Lesson], out: Path, seconds: float) -> None:
    """The closing lines: the failure, if any, then what ran and where it is."""
    failed = next((lesson for lesson in done if lesson.failure), None)
    if failed:
        print(f"\nFAILED: {failed.name}, {failed.failure}\n\nWhat ran until then is in {shown(out)}.")
        return
    n_cells = sum(lesson.n_cells for lesson in done)
    print(
        f"\n{counted(len(done), 'notebook')}, {counted(n_cells, 'cell')}, {clock(seconds)} minutes, "
        f"{peak_memory()}. Read them: {shown(out / (done[0].name + '.html'))}"
    )


def shown(path: Path) -> str:
    """A path as short as it can be said from here."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def forget_claims(build: Path) -> None:
    """A whole run shows only what it measures itself. Nothing but the claims' own files is deleted, and no link."""
    for old in (build / "claims").glob("C*.json"):
        if re.fullmatch(r"C\d+\.json", old.name) and old.is_file() and not old.is_symlink():
            old.unlink()


def minutes_so_far() -> dict[str, dict]:
    """What is kept of earlier whole runs, by profile."""
    from helpers.session import MINUTES

    return json.loads(MINUTES.read_text(encoding="utf-8")) if MINUTES.exists() else {}


def require_no_fewer(paths: list[Path], profile: str) -> None:
    """Raise CourseError where minutes are kept of a notebook that is not among these."""
    there = minutes_so_far().get(profile, {}).get("seconds", {})
    if lost := sorted(there.keys() - {path.stem for path in paths}):
        raise CourseError(f"--record-minutes would drop the minutes of {', '.join(lost)}: run these as well.")


def record_minutes(done: list[Lesson], profile: str) -> None:
    """Keep how long each notebook took, and on what: set-up cells tell it to readers (`helpers.session`)."""
    from helpers.files import write_json
    from helpers.session import MINUTES, code_commit, machine_class, versions

    every = minutes_so_far()
    every[profile] = {
        "machine": machine_class(),
        "versions": versions(),
        "commit": code_commit(),
        "seconds": {lesson.name: round(lesson.seconds, 1) for lesson in done},
    }
    write_json(MINUTES, every)
    print(f"How long each notebook took is now in {shown(MINUTES)}.")


def run(notebook: str = "", folder: Path = ROOT / "notebooks", keep_minutes: bool = False) -> int:
    """Run all notebooks of a folder, or one, and show what they found.

    Args:
        notebook: its name, such as "02_freezing"; empty for all.
        keep_minutes: note the times of a whole run in data/minutes.json.

    Returns:
        0: all ran; 1: a cell failed.

    Raises:
        CourseError, ProfileError: nothing was run.
        Stopped: interrupted.
    """
    from helpers.profiles import build_dir, current
    from helpers.training import Stopped

    if keep_minutes and notebook:
        raise CourseError("--record-minutes keeps the times of all notebooks together: leave out --notebook.")
    paths = lessons(folder.resolve(), notebook)
    profile, build = current(), Path(build_dir()).resolve()
    if keep_minutes:
        require_no_fewer(paths, profile.name)
    settings = KERNEL_SETTINGS | {"COURSE_PLAIN": ""}  # these pages are to be read: with cards
    settings |= OFFLINE if profile.name == "tiny" else {}
    if not notebook:
        forget_claims(build)
    begin = time.monotonic()
    try:
        done = run_lessons(paths, build / "course", settings, Console(soft_wrap=True))
    except KeyboardInterrupt:
        raise Stopped(f"Stopped. What ran until then is in {shown(build / 'course')}.") from None
    show_claims(build)
    report(done, build / "course", time.monotonic() - begin)
    if keep_minutes and not done[-1].failure:
        record_minutes(done, profile.name)
    return 1 if done[-1].failure else 0
