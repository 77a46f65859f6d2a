"""Notebooks in a room like Colab's (tests/support/colab_room.py): an empty folder, Colab's versions.

The course is served from here at the address that the set-up cells fetch from. pip has no index, so a cell that
installed anything would fail.
"""

import json
import os
import re
import zipfile
from pathlib import Path

import nbformat
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from helpers.profiles import NOTEBOOKS, ROOT
from helpers.session import WANTS_GPU
from publishing.kernel import Failure, code_cells, run_notebook
from support import colab_room
from support.colab_room import (
    colab_packages,
    installed_in,
    kernel_of,
    room_python,
    serve_course,
    settings_of,
    write_stub,
)
from support.needs import require_or_skip

pytestmark = [
    pytest.mark.timeout(1800),
    pytest.mark.skipif(os.name != "posix", reason="Colab is a Linux machine"),
]
CELL_SECONDS = 900
POWER_CUT = """import os, signal
from helpers.training import checkpoints
save = checkpoints.save_checkpoint

def save_and_die(folder, step, *rest, **more):
    save(folder, step, *rest, **more)
    if step == 2:
        os.kill(os.getpid(), signal.SIGKILL)

checkpoints.save_checkpoint = save_and_die"""


class Room:
    """Runs notebooks, or scripts, as Colab would."""

    def __init__(self, python: Path, settings: dict[str, str]):
        self.python, self.settings = python, settings

    def run(self, book: nbformat.NotebookNode, folder: Path, **settings: str) -> Failure | None:
        folder.mkdir(exist_ok=True)
        return run_notebook(
            book, folder, self.settings | settings, timeout=CELL_SECONDS, manager=kernel_of(self.python)
        )

    def script(self, *arguments: str, **settings: str) -> str:
        return colab_room.run(
            str(self.python), *arguments, cwd=ROOT, env=os.environ | self.settings | settings
        )


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    folder = tmp_path_factory.mktemp("colab")
    try:
        python = room_python()
        address = serve_course(folder / "served")
    except (colab_room.RoomError, FileNotFoundError) as error:
        require_or_skip(f"the room cannot be built here: {error}")
    return Room(python, settings_of(write_stub(folder / "stub"), address))


def read(name: str) -> nbformat.NotebookNode:
    return nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)


def cell_of(book: nbformat.NotebookNode, cell_id: str) -> nbformat.NotebookNode:
    return next(cell for cell in book.cells if cell.id == cell_id)


def said(cell: nbformat.NotebookNode) -> str:
    return "".join(output.get("text", "") for output in cell.outputs)


def set_up_output(book: nbformat.NotebookNode) -> str:
    return said(next(cell for cell in book.cells if cell.cell_type == "code"))


def insert_after(book: nbformat.NotebookNode, cell_id: str, source: str) -> None:
    place = next(i for i, cell in enumerate(book.cells) if cell.id == cell_id)
    book.cells.insert(place + 1, nbformat.v4.new_code_cell(source))


# --- the notebooks -----------------------------------------------------------------


# 04 runs in the test after this one. 00 and 04 show set-up, training and what is kept; the others take minutes more.
ALL_BUT_04 = [
    pytest.param(name, marks=[pytest.mark.long] if name != "00_start_here" else [])
    for name in NOTEBOOKS
    if name != "04_training"
]


@pytest.mark.parametrize("name", ALL_BUT_04)
def test_a_notebook_runs_there_to_its_last_cell(room, name, tmp_path):
    book, before = read(name), installed_in(room.python)
    stopped = room.run(book, tmp_path / "content", OPEN_NOTEBOOK=str(ROOT / "notebooks" / f"{name}.ipynb"))
    assert stopped is None, f"{name}: {stopped}"
    assert code_cells(book)[-1].execution_count == len(code_cells(book))
    told = set_up_output(book)
    assert "on Colab: all packages are there, so nothing was installed." in told
    assert "No GPU: " in told and "Profile smoke: " in told and f"All cells of {name} take " in told
    assert ("click Runtime > Change runtime type > T4 GPU" in told) == (name in WANTS_GPU)
    assert installed_in(room.python) == before
    assert (tmp_path / "content" / "helpers" / "session.py").is_file()


def test_after_a_dead_kernel_notebook_04_goes_on_from_the_local_disk(room, tmp_path):
    cut = read("04_training")
    insert_after(cut, "training-052", POWER_CUT)
    stopped = room.run(cut, tmp_path / "content")
    assert "kernel died" in str(stopped) and 'long_run("main")' in stopped.source
    again = read("04_training")
    stopped = room.run(again, tmp_path / "content")
    assert stopped is None, stopped
    told = " ".join(said(cell_of(again, "training-drive")).split())  # lines are folded at the page's width
    assert (
        "Runs are kept in build/runs/04_training: they outlast a restart of the kernel, but not the session"
        in told
    )
    assert (
        "An earlier session left freeze-attention" in told
        and "at step 2: training goes on from there" in told
    )
    assert "holds step 2 of 4 of this run: going on from there" in said(cell_of(again, "training-053"))
    assert "main: 4 steps" in said(cell_of(again, "training-053"))
    assert code_cells(again)[-1].execution_count == len(code_cells(again))


def test_after_a_lost_session_notebook_04_goes_on_from_drive_if_the_reader_said_yes(room, tmp_path):
    def book_of_a_reader_who_says_yes(*, ends_at: str) -> nbformat.NotebookNode:
        book = read("04_training")
        del book.cells[book.cells.index(cell_of(book, ends_at)) + 1 :]
        cell = cell_of(book, "training-drive")
        assert "keep_on_drive = False" in cell.source
        cell.source = cell.source.replace("keep_on_drive = False", "keep_on_drive = True")
        insert_after(
            book, "imports-1", f"import pathlib; session.MOUNT = pathlib.Path({str(tmp_path / 'drive')!r})"
        )
        return book

    first = book_of_a_reader_who_says_yes(ends_at="training-053")
    insert_after(first, "training-052", POWER_CUT)
    assert "kernel died" in str(room.run(first, tmp_path / "first"))
    assert not (tmp_path / "first" / "build" / "runs").exists()
    second = book_of_a_reader_who_says_yes(ends_at="training-053")
    stopped = room.run(second, tmp_path / "second")
    assert stopped is None, stopped
    told = " ".join(said(cell_of(second, "training-drive")).split())
    assert "Mounted at" in told and "in your Drive: they outlast this session" in told
    assert "at step 2: training goes on from there" in told
    assert "holds step 2 of 4 of this run: going on from there" in said(cell_of(second, "training-053"))


def test_drive_is_not_touched_without_a_yes(room, tmp_path):
    book = read("04_training")
    book.cells = [cell_of(book, name) for name in ("training-001", "imports-1", "training-drive")]
    assert room.run(book, tmp_path / "content") is None
    assert "Mounted" not in said(book.cells[-1])


def test_the_set_up_cell_runs_twice_and_in_a_restarted_kernel(room, tmp_path):
    for _ in range(2):
        book = read("01_transformer_block")
        cell = cell_of(book, "cell-001")
        cells = [nbformat.v4.new_code_cell(cell.source) for _ in range(2)]
        book.cells = [*cells, nbformat.v4.new_code_cell("print(session.helpers.__file__)")]
        assert room.run(book, tmp_path / "content") is None
        assert "nothing was installed" in said(cells[0]) and said(cells[1]) == said(cells[0])
        assert said(book.cells[-1]).strip() == str(tmp_path / "content" / "helpers" / "__init__.py")


def test_an_edited_helper_survives_a_second_run(room, tmp_path):
    book = read("01_transformer_block")
    source = cell_of(book, "cell-001").source
    edit = (
        "import pathlib; place = pathlib.Path('helpers/measuring/timing.py'); _ = place.write_text('# mine')"
    )
    cells = [nbformat.v4.new_code_cell(text) for text in (source, edit, source, "print(place.read_text())")]
    book.cells = cells
    assert room.run(book, tmp_path / "content") is None
    assert said(cells[-1]) == "# mine\n"


# --- what is installed -------------------------------------------------------------


def test_the_room_has_colabs_versions(room):
    names = (name.removesuffix(".dist-info").rpartition("-") for name in installed_in(room.python))
    found = {canonicalize_name(name): version for name, _, version in names}
    wanted = colab_packages()
    assert set(found) == set(wanted)
    assert {name for name in wanted if found[name] != wanted[name]} <= {"torch"}


def test_a_resolver_dry_run_changes_nothing_that_colab_ships(room, tmp_path):
    """pip's own resolver over Colab's versions, torch's included; without an index it cannot look for others."""
    told = room.script(
        "-m",
        "pip",
        "install",
        "--dry-run",
        "--quiet",
        "--report",
        "-",
        "-r",
        "requirements-colab.txt",
        PYTHONPATH=str(colab_room.pretend_colabs_torch(tmp_path)),
    )
    assert json.loads(told)["install"] == []


def test_colabs_packages_satisfy_each_other_and_its_own_torch(room):
    """What pip would check: every requirement of every package there, against the versions in Colab's list."""
    wanted, found = (
        colab_packages(),
        json.loads(
            room.script(
                "-c",
                (
                    "import importlib.metadata as m, json; "
                    "print(json.dumps({d.metadata['Name']: d.requires or [] for d in m.distributions()}))"
                ),
            )
        ),
    )
    found["torch"] = re.findall("Requires-Dist: (.+)", colab_room.COLABS_TORCH)
    broken = []
    for name, requires in found.items():
        for r in map(Requirement, requires):
            if r.marker and not r.marker.evaluate({"extra": ""}):
                continue
            version = wanted.get(canonicalize_name(r.name))
            if version is None or not r.specifier.contains(version, prereleases=True):
                broken.append(f"{name} wants {r}; Colab has {version}")
    # Colab's own: its front end draws the widgets, and its IPython works without jedi
    assert [
        b for b in broken if not b.startswith(("ipywidgets wants widgetsnbextension", "ipython wants jedi"))
    ] == []


def wheel(folder: Path, name: str, version: str, requires: str = "") -> None:
    """A package without content."""
    info = f"{name}-{version}.dist-info"
    needs = f"Requires-Dist: {requires}\n" if requires else ""
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as file:
        file.writestr(f"{name}.py", "")
        file.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}")
        file.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr(f"{info}/RECORD", f"{name}.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n")


@pytest.fixture
def shelf(tmp_path):
    """What pip finds, and where it installs: not in the room itself."""
    for version in ("1.2", "1.5", "2.1"):
        wheel(tmp_path, "course_missing", version)
    wheel(tmp_path, "course_greedy", "1.0", "numpy>=99")
    wheel(tmp_path, "numpy", "99.0")
    site = tmp_path / "site"
    return {
        "PIP_FIND_LINKS": str(tmp_path),
        "PIP_TARGET": str(site),
        "PYTHONPATH": f"{ROOT}{os.pathsep}{site}",
    }


COMPLETE = (
    "import sys, pathlib; from helpers import session; print(session.complete(pathlib.Path(sys.argv[1])))"
)


def test_a_missing_package_is_installed_by_its_range_and_nothing_else(room, shelf, tmp_path):
    before = installed_in(room.python)
    (tmp_path / "wanted.txt").write_text("course-missing>=1,<2  # a range\nnumpy>=2\n")
    told = room.script("-c", COMPLETE, str(tmp_path / "wanted.txt"), **shelf)
    assert "installed course-missing 1.5 (was missing)" in told
    assert {p.name for p in (tmp_path / "site").glob("*.dist-info")} == {"course_missing-1.5.dist-info"}
    again = room.script("-c", COMPLETE, str(tmp_path / "wanted.txt"), **shelf)
    assert "nothing was installed" in again and installed_in(room.python) == before


def test_a_package_that_would_replace_numpy_is_refused(room, shelf, tmp_path):
    (tmp_path / "wanted.txt").write_text("course-greedy>=1\n")
    with pytest.raises(
        colab_room.RoomError, match="(?s)not install 'course-greedy>=1'.*conflict.*delete runtime"
    ):
        room.script("-c", COMPLETE, str(tmp_path / "wanted.txt"), **shelf)
    assert not (tmp_path / "site").exists()
