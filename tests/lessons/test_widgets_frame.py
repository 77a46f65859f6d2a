"""What all widgets share: answers, errors that are seen, and the picture that stays without a kernel."""

import base64
import os
import subprocess
import sys
import time
from pathlib import Path

import ipywidgets
import nbformat
import pytest
from matplotlib.figure import Figure

from helpers.freezing.selectors import PlanError
from helpers.lessons.widgets import frame as widgets_frame
from helpers.lessons.widgets.frame import PROBLEM_CLASS, WIDGET_VIEW, Frame, control, png, table_html
from publishing.kernel import KERNEL_SETTINGS, code_cells, run_notebook
from publishing.offline_html import notebook_html
from support.said import sayings

ROOT = Path(__file__).resolve().parents[2]
PNG_BEGIN = b"\x89PNG"


def figure():
    picture = Figure(figsize=(2, 1))
    picture.add_subplot().plot([0, 1])
    return picture


def doubler(**options):
    """A number, and twice the number; 13 brings bad luck, 14 a fault."""

    def answer(number):
        if number == 13:
            raise PlanError("13 is not a number here. Choose another one.")
        if number == 14:
            raise RuntimeError("broken <inside>")
        yield "twice", f"<b>{2 * number}</b>"

    number = control(ipywidgets.IntSlider, "Number", "is doubled", value=1, min=0, max=20)
    return Frame(
        {"number": number}, {"twice": 40}, answer, lambda: (figure(), f"Twice {number.value}."), **options
    )


def test_a_changed_control_is_answered():
    frame = doubler()
    assert frame.views["twice"].value == "<b>2</b>"
    frame.controls["number"].value = 5
    assert frame.views["twice"].value == "<b>10</b>"


def test_a_wrong_choice_is_told_and_forgotten_when_it_is_mended():
    frame = doubler()
    frame.controls["number"].value = 13
    assert PROBLEM_CLASS in frame.problem.value and "Choose another one." in frame.problem.value
    assert "from before" in frame.problem.value
    assert frame.views["twice"].value == "<b>2</b>"  # what was right stays
    frame.controls["number"].value = 3
    assert frame.problem.value == "" and frame.views["twice"].value == "<b>6</b>"


def test_a_fault_of_the_code_is_shown_and_raised_too():
    frame = doubler()
    with pytest.raises(RuntimeError):
        frame.controls["number"].value = 14
    assert "RuntimeError" in frame.problem.value and "broken &lt;inside&gt;" in frame.problem.value


def test_with_a_button_only_a_click_is_answered():
    answers = []
    controls = {
        "number": control(ipywidgets.IntSlider, "Number", "", value=1),
        "go": control(ipywidgets.Button, "Go", "answer"),
    }

    def answer(number):
        answers.append((number, controls["go"].disabled))
        yield "said", str(number)

    frame = Frame(controls, {"said": 10}, answer, lambda: (figure(), ""), button="go", at_first={"number": 7})
    controls["number"].value = 4
    controls["go"].click()
    assert answers == [(7, False), (4, True)] and not controls["go"].disabled
    assert frame.views["said"].value == "4"


def test_controls_have_a_visible_label_and_a_tooltip():
    slider = control(ipywidgets.IntSlider, "Head", "which head")
    assert (slider.description, slider.tooltip) == ("Head", "which head")
    assert slider.style.description_width == "initial"


def test_tooltips_work_in_version_7(monkeypatch):
    class Old(ipywidgets.IntSlider):
        def __init__(self, **traits):
            self.given = traits
            super().__init__()

    monkeypatch.setattr(ipywidgets, "__version__", "7.7.1")
    assert control(Old, "Head", "which head").given["description_tooltip"] == "which head"


def test_one_output_holds_controls_picture_and_text(monkeypatch):
    shown = []
    monkeypatch.setattr(widgets_frame, "display", lambda data, **options: shown.append((data, options)))
    frame = doubler()
    frame._ipython_display_()
    ((data, options),) = shown
    assert data[WIDGET_VIEW]["model_id"] == frame.box.model_id
    assert base64.b64decode(data["image/png"]).startswith(PNG_BEGIN)
    assert data["text/plain"] == "Twice 1." == options["metadata"]["image/png"]["alt"]
    assert options["raw"]


def test_a_long_sentence_is_stored_in_lines_that_fit_the_page(monkeypatch):
    shown = []
    monkeypatch.setattr(widgets_frame, "display", lambda data, **options: shown.append((data, options)))
    frame, said = doubler(), "Twice one and twice two. " * 9 + "The end."
    figure, _ = frame.still()
    monkeypatch.setattr(frame, "still", lambda: (figure, said))
    frame._ipython_display_()
    ((data, options),) = shown
    assert sayings(data["text/plain"]) == [said] == [options["metadata"]["image/png"]["alt"]]


def test_texts_take_the_colour_of_the_page():
    html = table_html(("a", "b"), [("x", "1")], "some-class")
    assert "var(--jp-ui-font-color1, inherit)" in html
    assert 'scope="row"' in html and 'scope="col"' in html and "black" not in html


def test_a_picture_is_on_white():
    picture = figure()
    assert png(picture).startswith(PNG_BEGIN) and picture.get_facecolor() == (1, 1, 1, 1)


def test_other_controls_are_fitted_before_the_answer():
    controls = {
        "most": control(ipywidgets.IntText, "Most", "", value=9),
        "number": control(ipywidgets.IntSlider, "Number", "", value=8, max=9),
    }
    asked = []

    def adjust(most, **_):
        controls["number"].max = most

    frame = Frame(
        controls, {}, lambda **values: asked.append(values) or [], lambda: (figure(), ""), adjust=adjust
    )
    frame.controls["most"].value = 5
    assert asked == [{"most": 9, "number": 8}, {"most": 5, "number": 5}]


# --- notebooks ---------------------------------------------------------------------

CELL = """\
import ipywidgets
from matplotlib.figure import Figure
from helpers.lessons.widgets.frame import Frame, control
number = control(ipywidgets.IntSlider, "Number", "is shown", value=3)
answer = lambda number: [("said", str(number))]
Frame({"number": number}, {"said": 20}, answer, lambda: (Figure(figsize=(2, 1)), f"The number {number.value}."))"""


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


def test_a_view_is_replaced_in_far_less_than_100_ms():
    """What the frame itself adds to an answer."""
    frame, seconds = doubler(), []
    for number in range(2, 12):
        begin = time.process_time()
        frame.controls["number"].value = number
        seconds.append(time.process_time() - begin)
    assert sorted(seconds)[5] < 0.02
