"""What the set-up cell installs and says: packages, device, minutes, what to click; and where runs are kept."""

import json
import re
import subprocess
import sys
import types
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
import torch
from packaging.requirements import Requirement

import helpers
from helpers import profiles
from helpers import session as drive
from helpers import session as packages
from helpers import session as rooms
from helpers.costs.step_cost import budget
from helpers.freezing.plans import COURSE_PLANS
from helpers.models.loading import build_on_meta, choose_precision, gpt_neo_125m_config
from helpers.profiles import GPT_NEO, NOTEBOOKS, PROFILES, ROOT, TINY
from helpers.session import KEPT, PackageError, complete, lacks
from publishing import badges
from publishing.kernel import code_cells
from support.colab_room import colab_packages

BOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
T4_BYTES = 15e9  # Colab's T4 has 15 GiB; the course takes 15 GB as the limit


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)


@pytest.fixture
def colab(monkeypatch):
    """As if in Colab; a page that knows the open notebook can be added to it."""
    module = types.ModuleType("google.colab")
    monkeypatch.setitem(sys.modules, "google", types.ModuleType("google"))
    monkeypatch.setitem(sys.modules, "google.colab", module)
    return module


# --- the cell ----------------------------------------------------------------------


@pytest.mark.parametrize("book", BOOKS, ids=lambda p: p.stem)
def test_every_notebook_opens_with_the_same_set_up_cell(book):
    first = code_cells(nbformat.read(book, as_version=4))[0]
    assert first.source == badges.set_up_cell(badges.repository(), badges.revision()), (
        "run: course badges --repo …"
    )
    assert len(first.source.splitlines()) <= 4
    assert first.metadata.tags == ["nbval-ignore-output"] and first.metadata.reason


def test_the_version_that_cells_fetch_is_the_newest_or_this_release_or_a_commit():
    assert re.fullmatch(rf"main|v{re.escape(helpers.__version__)}|[0-9a-f]{{40}}", badges.revision())


def test_elsewhere_nothing_is_installed(monkeypatch, capsys):
    monkeypatch.setattr(packages, "complete", lambda: pytest.fail("pip outside Colab"))
    rooms.enter()
    told = capsys.readouterr().out
    assert "No GPU: " in told and " CPU cores" in told and "Profile " in told and "Colab" not in told


# --- packages ----------------------------------------------------------------------


def colab_requirements() -> dict[str, Requirement]:
    lines = packages.REQUIREMENTS.read_text("utf-8").splitlines()
    return {r.name: r for r in map(Requirement, (x for x in lines if x and not x.startswith("#")))}


def test_colab_ships_every_package_that_the_course_asks_for_inside_its_range():
    shipped = colab_packages()
    for name, wanted in colab_requirements().items():
        assert wanted.specifier.contains(shipped[name]), (
            f"Colab has {name} {shipped[name]}, the course wants {wanted}"
        )


def test_the_course_never_asks_pip_for_what_a_session_was_built_around():
    assert not set(KEPT) & set(colab_requirements())


def write(folder: Path, *lines: str) -> Path:
    (folder / "wanted.txt").write_text("\n".join(lines))
    return folder / "wanted.txt"


def test_a_package_lacks_if_it_is_missing_or_outside_its_range(tmp_path):
    file = write(tmp_path, "# a comment", "", "no-such-package>=1", "numpy>=1.0  # here", "torch>=99,<100")
    assert [(x.wanted.name, x.found) for x in lacks(file)] == [
        ("no-such-package", None),
        ("torch", version("torch")),
    ]


@pytest.fixture
def pip(monkeypatch):
    """Notes what pip was asked, and what it had to hold; answers as it is told."""
    calls = SimpleNamespace(commands=[], held=[], answer=0, output="")

    def run(command, **more):
        calls.commands.append(command)
        calls.held.append(Path(command[command.index("-c") + 1]).read_text().splitlines())
        return subprocess.CompletedProcess(command, calls.answer, calls.output)

    monkeypatch.setattr(subprocess, "run", run)
    return calls


def test_nothing_missing_means_that_pip_is_not_asked(pip, tmp_path):
    assert "nothing was installed" in complete(write(tmp_path, "numpy>=1.0"))
    assert not pip.commands


def test_only_what_is_missing_is_asked_for_by_range_and_all_else_is_held(pip, tmp_path):
    told = complete(write(tmp_path, "no-such-package>=1,<2", "numpy>=1.0"))
    assert [x for x in pip.commands[0] if "no-such" in x or "numpy" in x] == ["no-such-package<2,>=1"]
    assert f"numpy=={version('numpy')}" in pip.held[0] and f"torch=={version('torch')}" in pip.held[0]
    assert len(pip.held[0]) > 50 and "no-such-package" in told and "was missing" in told


def test_a_package_outside_its_range_may_bring_others_but_never_those_of_the_session(pip, tmp_path):
    with pytest.raises(
        PackageError, match="pandas had been loaded.*Restart session"
    ):  # the tests have loaded it
        complete(write(tmp_path, "pandas>=99"))
    names = {line.partition("==")[0] for line in pip.held[0]}
    assert names <= set(KEPT) and {"torch", "numpy"} <= names and "pandas" not in names


def test_a_pip_that_fails_says_what_was_wanted_and_what_to_do(pip, tmp_path):
    pip.answer, pip.output = 1, "ERROR: no network"
    with pytest.raises(
        PackageError, match="(?s)'no-such-package>=1'.*no network.*Run the cell again.*delete runtime"
    ):
        complete(write(tmp_path, "no-such-package>=1"))


def test_what_pip_says_beside_its_work_reaches_the_reader(pip, tmp_path, capsys):
    pip.output = "WARNING: something is odd"
    complete(write(tmp_path, "no-such-package>=1"))
    assert "something is odd" in capsys.readouterr().out


def test_a_version_that_pip_cannot_read_is_not_held(monkeypatch):
    odd = SimpleNamespace(metadata={"Name": "system-thing"}, version="2.22.1ubuntu1")
    good = SimpleNamespace(metadata={"Name": "Jinja2"}, version="3.1.6")
    monkeypatch.setattr(packages, "distributions", lambda: [odd, good, good])
    assert packages.versions_now(None, without=[]) == ["jinja2==3.1.6"]


# --- which notebook, how long ------------------------------------------------------


def test_jupyter_says_which_notebook_is_open(monkeypatch):
    monkeypatch.setenv("JPY_SESSION_NAME", "lessons/notebooks/04_training.ipynb")
    assert rooms.this_notebook() == "04_training"
    monkeypatch.setenv("JPY_SESSION_NAME", "Untitled.ipynb")
    assert rooms.this_notebook() is None


def page(answer, error: bool = False):
    """Colab's page, as its own module shows it to a kernel."""

    class MessageError(Exception):
        pass

    def blocking_request(kind, timeout_sec):
        assert kind == "get_ipynb" and timeout_sec
        if error:
            raise MessageError("closed")
        return answer

    return SimpleNamespace(MessageError=MessageError, blocking_request=blocking_request)


def opened(title: str) -> dict:
    return {"ipynb": {"cells": [{"cell_type": "markdown", "source": [title, "\n", "text"]}]}}


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        (opened("# 05. Loss and forgetting"), "05_loss_and_forgetting"),
        (opened("# My notes"), None),
        (opened("# 99. Another"), None),
        ({"ipynb": {"cells": []}}, None),
        ({}, None),
        (None, None),
    ],
)
def test_colabs_page_says_which_notebook_is_open_or_nobody_knows(colab, answer, found):
    colab._message = page(answer)
    assert rooms.this_notebook() == found


def test_a_colab_that_answers_with_an_error_or_has_changed_leaves_the_notebook_unknown(colab):
    assert rooms.this_notebook() is None
    colab._message = page(None, error=True)
    assert rooms.this_notebook() is None


@pytest.mark.parametrize("book", BOOKS, ids=lambda p: p.stem)
def test_the_title_of_a_notebook_is_how_it_is_known(colab, book):
    first = nbformat.read(book, as_version=4).cells[0]
    colab._message = page({"ipynb": {"cells": [{"source": first.source.splitlines(keepends=True)}]}})
    assert rooms.this_notebook() == book.stem


@pytest.fixture
def measured(monkeypatch, tmp_path):
    record = {"tiny": {"machine": "a slow machine", "seconds": {"04_training": 130.0, "00_start_here": 20.0}}}
    (tmp_path / "minutes.json").write_text(json.dumps(record))
    monkeypatch.setattr(rooms, "MINUTES", tmp_path / "minutes.json")


def test_minutes_are_the_measured_ones_with_their_machine(measured):
    assert rooms.expected(TINY, "04_training") == (
        "All cells of 04_training take about 3 minutes (measured on a slow machine)."
    )
    assert "under a minute" in rooms.expected(TINY, "00_start_here")


def test_minutes_that_were_not_measured_are_called_a_plan(measured, monkeypatch):
    assert "5 minutes (planned, not measured)" in rooms.expected(TINY, "05_loss_and_forgetting")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert "10 minutes (planned, not measured)" in rooms.expected(GPT_NEO, "04_training")


def test_where_nobody_tells_which_notebook_this_is_the_minutes_of_all_are_shown(measured):
    told = rooms.expected(TINY, None)
    assert (
        all(f"{name[:2]}: " in told for name in NOTEBOOKS) and "04: 3," in told and "a slow machine" in told
    )


def test_without_a_gpu_gpt_neo_gets_no_minutes_that_were_meant_for_one():
    told = rooms.expected(profiles.current("gpt-neo"), "04_training")
    assert "not measured" in told and not re.search(r"\d+ minutes", told)


@pytest.mark.skipif(not rooms.MINUTES.exists(), reason="not recorded: make course ARGS=--record-minutes")
def test_the_recorded_minutes_are_of_notebooks_and_profiles_that_exist():
    for profile, record in json.loads(rooms.MINUTES.read_text("utf-8")).items():
        assert profile in PROFILES and set(record["seconds"]) == set(NOTEBOOKS)
        assert record["machine"] and record["versions"]["torch"]
        assert all(0 < seconds < 3600 for seconds in record["seconds"].values())


# --- a GPU, or none ----------------------------------------------------------------


@pytest.mark.parametrize("name", rooms.WANTS_GPU)
def test_a_notebook_that_wants_a_gpu_says_so_with_both_minutes_and_what_to_click(
    colab, capsys, monkeypatch, name
):
    monkeypatch.setenv("COURSE_PROFILE", "tiny")
    colab._message = page(opened(f"# {name[:2]}. Title"))
    rooms.enter()
    told = capsys.readouterr().out
    assert f"Frozen Attention {helpers.__version__} on Colab: all packages are there" in told
    here, there = rooms.duration(TINY, name), rooms.duration(GPT_NEO, name)
    assert f"{name} take {here}" in told and f"{name} {there} ({there.source})" in told
    assert "Runtime > Change runtime type > T4 GPU" in told


def test_a_notebook_that_wants_no_gpu_asks_for_none(colab):
    assert rooms.advice(TINY, "02_freezing") == []
    assert any("T4 GPU" in line for line in rooms.advice(TINY, None))


def test_with_a_gpu_there_is_nothing_to_click_and_its_name_and_memory_are_shown(colab, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(
        torch.cuda,
        "get_device_properties",
        lambda i: SimpleNamespace(name="Tesla T4", total_memory=15_828_320_256),
    )
    assert rooms.advice(GPT_NEO, "04_training") == []
    assert rooms.device() == "GPU: Tesla T4 with 14.7 GiB of memory"


def test_outside_colab_only_gpt_neo_asks_for_a_gpu():
    assert rooms.advice(TINY, "04_training") == []
    assert "COURSE_PROFILE=tiny" in rooms.advice(profiles.current("gpt-neo"), "04_training")[0]


@pytest.mark.parametrize("plan", COURSE_PLANS)
def test_a_t4_holds_a_step_of_every_plan_in_float32_and_four_more_models(plan):
    """Beside the model in training, a notebook holds the base, a finished run, and the best weights of both."""
    cost = budget(gpt_neo_125m_config(), COURSE_PLANS[plan], batch=GPT_NEO.batch, length=GPT_NEO.length)
    others = 4 * cost.bytes["parameters"]
    cuda = 1e9  # the context and the kernels of PyTorch's libraries, which no allocator counts
    assert cost.peak_bytes + others + cuda < T4_BYTES


def test_a_t4_trains_in_float32(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation)
    assert choose_precision(GPT_NEO.precision, torch.device("cuda")) == "float32"


# --- where runs are kept -----------------------------------------------------------


def test_notebook_04_says_how_much_room_its_checkpoints_take_in_drive():
    """One holds the trained weights, the best ones and AdamW's two moments, in float32; each run writes four of them.

    Drive moves what is deleted to its trash, where it goes on taking room.
    """
    sizes = [
        COURSE_PLANS[plan].explain(build_on_meta(gpt_neo_125m_config())).n_trainable * 4 * 4
        for plan in ("attention+embeddings", "full")
    ]
    cells = {
        cell.id: cell.source for cell in nbformat.read(ROOT / "notebooks" / "04_training.ipynb", 4).cells
    }
    assert "save_every=max(1, n_steps // 4)" in cells["training-023"]
    text = cells["training-051"]
    assert f"about {4 * sum(sizes) / 1e9:.0f} GB" in text and "trash" in text and "Without your yes" in text


def test_runs_are_kept_in_the_build_folder_without_a_yes(monkeypatch, tmp_path, capsys, colab):
    monkeypatch.setenv("COURSE_BUILD", str(tmp_path))
    colab.drive = SimpleNamespace(mount=lambda place: pytest.fail("Drive was mounted unasked"))
    assert drive.runs_folder("04_training") == tmp_path / "runs" / "04_training"
    assert "not the session" in capsys.readouterr().out


def test_with_a_yes_runs_are_kept_in_drive(monkeypatch, tmp_path, capsys, colab):
    mounted = []
    colab.drive = SimpleNamespace(mount=mounted.append)
    monkeypatch.setattr(drive, "MOUNT", tmp_path)
    folder = drive.runs_folder("04_training", on_drive=True)
    assert folder == tmp_path / "MyDrive" / "frozen-attention" / "runs" / "04_training" and mounted == [
        str(tmp_path)
    ]
    assert "in your Drive: they outlast this session" in capsys.readouterr().out


def test_what_an_earlier_session_left_is_named_with_its_newest_step(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("COURSE_BUILD", str(tmp_path))
    for step in (0, 20, 40):
        (tmp_path / "runs" / "04_training" / "full-1e-4" / f"step-{step:08d}").mkdir(parents=True)
    drive.runs_folder("04_training")
    told = capsys.readouterr().out
    assert "An earlier session left full-1e-4 at step 40" in told and "at step 20" not in told


def test_drive_outside_colab_is_an_error_that_says_what_to_put(tmp_path):
    with pytest.raises(drive.DriveError, match="on Colab only.*keep_on_drive = False"):
        drive.runs_folder("04_training", on_drive=True)


def test_a_reader_who_does_not_consent_is_told_how_to_go_on(colab):
    def mount(place):
        raise ValueError("mount failed")

    colab.drive = SimpleNamespace(mount=mount)
    with pytest.raises(drive.DriveError, match="mount failed.*keep_on_drive = False"):
        drive.runs_folder("04_training", on_drive=True)
