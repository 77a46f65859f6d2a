"""What all widgets share: answers, errors that are seen, modules as one text, and the picture without a kernel."""

import base64
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from matplotlib.figure import Figure
from PIL import Image

from helpers.freezing.selectors import PlanError
from helpers.lessons.widgets import live
from helpers.lessons.widgets.live import IMPORT, MODULES, ON_PAGES, LiveDrawing, module_text, needs
from publishing.kernel import KERNEL_SETTINGS, WIDGET_VIEW, code_cells, run_notebook
from publishing.offline_html import notebook_html
from support.said import sayings

ROOT = Path(__file__).resolve().parents[2]
PNG_BEGIN = b"\x89PNG"
NAMES = sorted(path.stem for path in MODULES.glob("*.js"))


def figure():
    picture = Figure(figsize=(2, 1))
    picture.add_subplot().plot([0, 1])
    return picture


def doubler(said="Twice 1.", **options):
    """A number, and twice the number; 13 brings bad luck, 14 a fault."""

    def answer(choice):
        if choice["number"] == 13:
            raise PlanError("13 is not a number here. Choose another one.")
        if choice["number"] == 14:
            raise RuntimeError("broken <inside>")
        yield {"twice": 2 * choice["number"]}

    return LiveDrawing("rewinding", {"a": 1}, {"number": 1}, lambda: (figure(), said), answer, **options)


def test_a_choice_is_answered():
    widget = doubler()
    assert widget.answer == {"twice": 2}
    widget.choice = {"number": 5}
    assert widget.answer == {"twice": 10}


def test_a_wrong_choice_is_told_and_forgotten_when_it_is_mended():
    widget = doubler()
    widget.choice = {"number": 13}
    assert "Choose another one." in widget.problem and "from before" in widget.problem
    assert widget.answer == {"twice": 2}  # what was right stays
    widget.choice = {"number": 3}
    assert widget.problem == "" and widget.answer == {"twice": 6}


def test_the_same_problem_twice_is_said_twice():
    widget, seen = doubler(), []
    widget.observe(lambda change: seen.append(change["new"]), "problem")
    widget.choice = {"number": 13}
    widget.choice = {"number": 13, "asked": 2}
    assert [bool(words) for words in seen] == [True, False, True]


def test_a_fault_of_the_code_is_shown_and_raised_too():
    widget = doubler()
    with pytest.raises(RuntimeError):
        widget.choice = {"number": 14}
    assert "RuntimeError: broken <inside>" in widget.problem  # the module puts it in as text


def test_a_first_choice_that_cannot_be_answered_is_an_error():
    with pytest.raises(PlanError):
        LiveDrawing("rewinding", {}, {}, lambda: (figure(), ""), answer=lambda choice: FreezeNothing())


class FreezeNothing:
    def __iter__(self):
        raise PlanError("nothing trains")


def test_one_output_holds_drawing_picture_text_and_what_the_site_needs(monkeypatch):
    shown = []
    monkeypatch.setattr(live, "display", lambda data, **options: shown.append((data, options)))
    widget = doubler()
    widget._ipython_display_()
    ((data, options),) = shown
    assert data[WIDGET_VIEW]["model_id"] == widget.model_id
    assert base64.b64decode(data["image/png"]).startswith(PNG_BEGIN)
    assert data["text/plain"] == "Twice 1." == options["metadata"]["image/png"]["alt"]
    page = {"module": "rewinding", "data": {"a": 1}, "choice": {"number": 1}, "answer": {"twice": 2}}
    assert json.loads(options["metadata"][ON_PAGES]) == page and options["raw"]


def test_colab_is_told_what_draws_widgets_there(monkeypatch):
    shown, colab = [], {WIDGET_VIEW: {"colab": {"custom_widget_manager": {"url": "…"}}}}
    monkeypatch.setattr(live, "display", lambda data, **options: shown.append(options))
    monkeypatch.setattr(LiveDrawing, "_repr_mimebundle_", lambda self: ({WIDGET_VIEW: {}}, colab))
    doubler()._ipython_display_()
    assert shown[0]["metadata"][WIDGET_VIEW] == colab[WIDGET_VIEW] and "image/png" in shown[0]["metadata"]


def test_a_widget_that_needs_its_kernel_gives_the_site_nothing(monkeypatch):
    shown = []
    monkeypatch.setattr(live, "display", lambda data, **options: shown.append(options))
    doubler(is_on_page=False)._ipython_display_()
    assert ON_PAGES not in shown[0]["metadata"]


def test_a_long_sentence_is_stored_in_lines_that_fit_the_page(monkeypatch):
    shown, said = [], "Twice one and twice two. " * 9 + "The end."
    monkeypatch.setattr(live, "display", lambda data, **options: shown.append((data, options)))
    doubler(said)._ipython_display_()
    ((data, options),) = shown
    assert sayings(data["text/plain"]) == [said] == [options["metadata"]["image/png"]["alt"]]


def test_a_picture_is_on_white_and_has_two_dots_a_pixel(monkeypatch):
    shown = []
    monkeypatch.setattr(live, "display", lambda data, **options: shown.append((data, options)))
    doubler()._ipython_display_()
    ((data, options),) = shown
    with Image.open(io.BytesIO(base64.b64decode(data["image/png"]))) as picture:
        assert picture.getpixel((0, 0)) == (255, 255, 255, 255)
        assert picture.size == (400, 200) and options["metadata"]["image/png"]["width"] == 200


# --- modules -----------------------------------------------------------------------


def test_a_module_is_one_text_with_all_that_it_imports():
    text = module_text("losses")
    assert needs("losses") == ["draw", "chart"] and not IMPORT.search(text) and "import" not in text
    assert text.index("function element(") < text.index("class Chart") < text.index("function render(")
    assert len(re.findall(r"^export default", text, re.MULTILINE)) == 1


@pytest.mark.parametrize("name", NAMES)
def test_a_module_can_be_read_at_a_sitting(name):
    lines = (MODULES / f"{name}.js").read_text("utf-8").splitlines()
    assert len(lines) <= 200 and max(map(len, lines)) <= 140
    assert lines[0].startswith("// ")


@pytest.mark.parametrize("name", NAMES)
def test_a_module_asks_for_nothing_from_elsewhere(name):
    text = (MODULES / f"{name}.js").read_text("utf-8")
    assert not re.search(r"https?:(?!//www\.w3\.org/2000/svg)|from \"(?!\./)|fetch\(|@import|url\(", text)


# --- notebooks ---------------------------------------------------------------------

CELL = """\
from matplotlib.figure import Figure
from helpers.lessons.widgets.live import LiveDrawing
LiveDrawing("rewinding", {}, {"number": 3}, lambda: (Figure(figsize=(2, 1)), "The number 3."))"""


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """A notebook of one widget, run as `make course` and `course notebooks` run it; and its path."""
    folder = tmp_path_factory.mktemp("widget")
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CELL)])
    settings = KERNEL_SETTINGS | {"PYTHONPATH": str(ROOT)}
    assert run_notebook(book, folder, settings) is None
    nbformat.write(book, folder / "widget.ipynb")
    return book, folder / "widget.ipynb"


def test_a_stored_widget_is_a_picture_and_no_widget_view(executed):
    book, path = executed
    (output,) = code_cells(book)[0].outputs
    assert set(output.data) == {"image/png", "text/plain"}
    assert base64.b64decode(output.data["image/png"]).startswith(PNG_BEGIN)
    assert output.data["text/plain"] == output.metadata["image/png"]["alt"] == "The number 3."
    assert WIDGET_VIEW not in path.read_text("utf-8") and "widgets" not in book.metadata


def test_a_page_without_a_kernel_shows_the_picture(executed):
    book, path = executed
    page = notebook_html(book, "widget", path.parent)
    assert 'src="data:image/png;base64,' in page and "The number 3." in page
    assert "widget-view" not in page


def test_strict_nbval_compares_the_sentence_of_a_widget(executed, tmp_path):
    book, path = executed
    wrong = tmp_path / "wrong.ipynb"
    wrong.write_text(path.read_text("utf-8").replace('"The number 3."', '"The number 4."'), "utf-8")
    command = [
        sys.executable,
        "-m",
        "pytest",
        str(path),
        str(wrong),
        "--nbval",
        "--nbval-current-env",
        "-q",
        "-p",
        "no:cacheprovider",
        "--rootdir",
        str(path.parent),
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    assert "1 failed, 1 passed" in done.stdout, done.stdout + done.stderr
