"""The working copy that `course lab` opens: the course stays as it is, and a new edition keeps the answers."""

import json
import os
import sys

import nbformat
import pytest

from helpers.profiles import NOTEBOOKS
from publishing import lab
from publishing.cli import main

STUB, ASKED = 'answer_01a = ...\ncheck("01a", answer_01a)', 'predict("01-size", None)'


def notebook(path, *, title="First edition", exercise="01a", stub=STUB, predict=ASKED):
    cells = [
        nbformat.v4.new_markdown_cell(f"# {title}", id="title"),
        nbformat.v4.new_code_cell(stub, id="answer", metadata={"exercise": exercise, "tags": ["exercise"]}),
        nbformat.v4.new_code_cell(predict, id="guess"),
        nbformat.v4.new_code_cell("print('the course')", id="shown"),
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)


@pytest.fixture
def course(tmp_path):
    notebook(tmp_path / "notebooks" / "01_one.ipynb")
    lab.furnish(tmp_path / "notebooks", tmp_path / "lab")
    return tmp_path / "notebooks" / "01_one.ipynb", tmp_path / "lab" / "01_one.ipynb"


def again(course):
    return lab.furnish(course[0].parent, course[1].parent)


def answer(copy):
    """A reader answers both questions and changes another cell."""
    book = nbformat.read(copy, 4)
    book.cells[1].source = STUB.replace("...", "42")
    book.cells[1].outputs = [nbformat.v4.new_output("stream", text="right\n")]
    book.cells[2].source = 'predict("01-size", 0.5)'
    book.cells[3].source = "print('mine')"
    nbformat.write(book, copy)


def sources(path):
    return [cell.source for cell in nbformat.read(path, 4).cells]


def test_a_copy_is_the_course_and_stays_the_readers(course):
    assert course[1].read_bytes() == course[0].read_bytes()
    before = course[0].read_bytes()
    answer(course[1])
    mine = course[1].read_bytes()
    assert again(course) == []
    assert course[1].read_bytes() == mine and course[0].read_bytes() == before


def test_a_new_edition_keeps_the_answers_and_what_was_before(course):
    answer(course[1])
    mine = course[1].read_bytes()
    notebook(course[0], title="Second edition", stub="# now with a hint\n" + STUB)
    (line,) = again(course)
    assert "01_one: the new edition, with 2 of your answers" in line and "earlier/01_one_1.ipynb" in line
    assert sources(course[1]) == [
        "# Second edition",
        STUB.replace("...", "42"),
        'predict("01-size", 0.5)',
        "print('the course')",
    ]
    assert nbformat.read(course[1], 4).cells[1].outputs[0].text == "right\n"
    assert (course[1].parent / "earlier" / "01_one_1.ipynb").read_bytes() == mine
    assert again(course) == []
    notebook(course[0], title="Third edition")
    again(course)
    assert sources(course[1])[1] == STUB.replace("...", "42"), "an answer outlives two editions"
    assert (course[1].parent / "earlier" / "01_one_2.ipynb").exists()


def test_a_question_that_nobody_answered_takes_the_new_words(course):
    notebook(course[0], stub="# now with a hint\n" + STUB)
    assert again(course) == [] and course[1].read_bytes() == course[0].read_bytes()
    book = nbformat.read(course[1], 4)
    book.cells[3].execution_count = 7
    nbformat.write(book, course[1])
    notebook(course[0], stub="# and another\n" + STUB)
    assert "with 0 of your answers" in again(course)[0]
    assert course[1].read_text() == course[0].read_text()


def test_an_answer_without_a_place_is_named_and_kept_beside(course):
    answer(course[1])
    notebook(course[0], exercise="01b")
    assert "No place was left for: exercise 01a." in again(course)[0]
    assert STUB.replace("...", "42") in sources(course[1].parent / "earlier" / "01_one_1.ipynb")


def test_a_copy_that_is_damaged_is_said_and_left(course):
    course[1].write_text("no notebook")
    notebook(course[0], title="Second edition")
    with pytest.raises(lab.LabError, match="Move it away"):
        again(course)
    assert course[1].read_text() == "no notebook"


def test_every_question_of_the_course_is_found_once():
    for path in sorted((lab.ROOT / "notebooks").glob("*.ipynb")):
        found = [lab.question_of(c) for c in nbformat.read(path, 4).cells]
        asked = [q for q in found if q]
        assert len(set(asked)) == len(asked), path.name
        exercises = [c for c in json.loads(path.read_text())["cells"] if "exercise" in c["metadata"]]
        assert sum(q.startswith("exercise") for q in asked) == len(exercises)
        guesses = [
            c for c in nbformat.read(path, 4).cells if "predict(" in c.source and c.cell_type == "code"
        ]
        assert sum(q.startswith("prediction") for q in asked) == len(guesses), path.name


def test_course_lab_becomes_jupyterlab_on_the_copy(tmp_path, monkeypatch):
    called = []
    monkeypatch.setenv("COURSE_BUILD", str(tmp_path / "build"))
    monkeypatch.setattr(os, "execve", lambda *words: called.append(words))
    main(["lab", "--no-browser", "--ServerApp.port=1"])
    (((python, command, settings)),) = called
    assert python == sys.executable
    first = str(tmp_path / "build" / "lab" / "00_start_here.ipynb")
    assert command[1:] == ["-P", "-m", "jupyterlab", first, "--no-browser", "--ServerApp.port=1"]
    assert settings["JUPYTER_PREFER_ENV_PATH"] == "1"
    assert len(list((tmp_path / "build" / "lab").glob("*.ipynb"))) == len(NOTEBOOKS)
