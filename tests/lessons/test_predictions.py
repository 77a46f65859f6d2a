"""The prediction cells of the notebooks: whatever a reader writes into them, in a fresh clone, everything runs on."""

import ast
import re

import nbformat
import pytest

from helpers import lessons
from helpers.lessons import predicting
from helpers.lessons.asked import QUESTIONS
from helpers.profiles import ROOT
from publishing.kernel import KERNEL_SETTINGS, OFFLINE, code_cells, run_notebook
from support.said import sayings

BOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
STUB = re.compile(r'^((?:lessons\.)?predict\("([^"]+)", )(None|\.\.\.)\)', re.MULTILINE)
KINDS = {
    "good": "0.5, 0.4, 0.6",
    "no range": "0.5",
    "one end": "0.5, 0.4",
    "turned": "0.5, 0.6, 0.4",
    "outside": "0.5, 0.6, 0.7",
    "no width": "0.5, 0.5, 0.5",
    "text": '"about half"',
    "a number as text": '"0.5"',
    "percent": '"50%"',
    "NaN": 'float("nan"), 0, 1',
    "infinity": 'float("inf")',
    "a list": "[0.4, 0.6]",
    "untouched": "None",
    "None after a number": "0.5, 0.4, 0.6",
}
WITH_RANGE = ("good", "turned")
WITH_NUMBER = (*WITH_RANGE, "no range", "one end", "outside", "no width", "a number as text")
each_notebook = pytest.mark.parametrize("path", BOOKS, ids=lambda path: path.stem)


@pytest.fixture(autouse=True)
def fresh_clone(tmp_path, monkeypatch):
    """A build folder that does not exist yet."""
    monkeypatch.setenv("COURSE_BUILD", str(tmp_path / "build"))
    return tmp_path / "build"


def pasted(source: str, kind: str) -> str:
    """A cell with a prediction of this kind in place of its stub."""

    def answer(stub):
        line = f"{stub[1]}{KINDS[kind]})"
        return f"{line}\n{stub[1]}None)" if kind == "None after a number" else line

    return STUB.sub(answer, source)


def sources(path) -> list[str]:
    return [cell.source for cell in code_cells(nbformat.read(path, as_version=4))]


def predictions_in(path) -> list[str]:
    """The names that are asked for, in order."""
    return [stub[2] for source in sources(path) for stub in STUB.finditer(source)]


def reveals_in(path) -> list[ast.Call]:
    trees = [ast.parse(source) for source in sources(path) if "reveal(" in source]
    calls = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [call for call in calls if ast.unparse(call.func).removeprefix("lessons.") == "reveal"]


def constant(node: ast.expr) -> str:
    """The text of an argument; a stand-in where the notebook would have to run to know it."""
    return node.value if isinstance(node, ast.Constant) else "something measured"


@each_notebook
def test_every_prediction_is_a_stub_that_can_be_replaced(path):
    lines = [
        line
        for source in sources(path)
        for line in source.splitlines()
        if re.match(r"\s*(lessons\.)?predict\(", line)
    ]
    assert all(STUB.match(line) for line in lines)
    assert lines or path.stem == "01_transformer_block", "its predictions went into the appendix"


def test_what_is_asked_again_keeps_the_number_that_was_given_before():
    """None takes a prediction back, so an untouched stub of a later notebook must not hold it."""
    stubs = [
        (stub[2], stub[3]) for path in BOOKS for source in sources(path) for stub in STUB.finditer(source)
    ]
    again = [name for i, (name, _) in enumerate(stubs) if name in dict(stubs[:i])]
    assert again and [name for name, given in stubs if given == "..."] == again


def test_what_is_predicted_is_revealed():
    asked = {name for path in BOOKS for name in predictions_in(path)}
    shown = {constant(call.args[0]) for path in BOOKS for call in reveals_in(path)}
    assert asked == shown


@pytest.mark.parametrize("kind", KINDS)
def test_every_prediction_of_the_course_and_every_reveal_runs(kind, fresh_clone, capsys):
    space = {"lessons": lessons, "predict": predicting.predict}
    for path in BOOKS:
        for source in sources(path):
            lines = [stub.group() for stub in STUB.finditer(source)]
            exec(pasted("\n".join(lines), kind), space)  # noqa: S102 (the course's own text)
        said = sayings(capsys.readouterr().out)
        n_asked = len(predictions_in(path))
        assert len(said) == n_asked * (2 if kind == "None after a number" else 1), said
        for call in reveals_in(path):
            texts = [constant(argument) for argument in call.args[2:]]
            named = {k.arg: (0.4, 0.5) if k.arg == "interval" else constant(k.value) for k in call.keywords}
            predicting.reveal(constant(call.args[0]), 0.45, *texts, **named)
        said = "\n".join(sayings(capsys.readouterr().out))
        yours = {"good": "you: 0.5 (0.4 to 0.6) |", "turned": "you: 0.5 (0.4 to 0.6) |"}
        assert said.count(
            yours.get(kind, "you: 0.5 |" if kind in WITH_NUMBER else "you: no prediction |")
        ) == len(reveals_in(path))


CALIBRATIONS = [source for path in BOOKS for source in sources(path) if "calibration(" in source]


@pytest.mark.parametrize("kind", KINDS)
def test_a_lesson_ends_by_counting_ranges_alone(kind, capsys):
    assert len(CALIBRATIONS) >= 2
    predict_c4 = pasted('predict("C4", None)', kind)
    exec(predict_c4, {"predict": predicting.predict})  # noqa: S102
    predicting.reveal("C4", 0.45)
    capsys.readouterr()
    for source in CALIBRATIONS:
        exec(source, {"lessons": lessons})  # noqa: S102 (the course's own text)
        said = capsys.readouterr().out
        counted = said.startswith("your 80% ranges: 1 of 1 held\n")
        assert counted if kind in WITH_RANGE else said == "no predictions were noted\n"


def test_what_was_computed_is_not_called_measured():
    outputs = [o for path in BOOKS for c in code_cells(nbformat.read(path, 4)) for o in c.outputs]
    unfolded = "\n".join(re.sub(r"\n {4,}", " ", output.get("text", "")) for output in outputs)
    said = [line for line in unfolded.splitlines() if " | you: " in line]
    wrong = [line for line in said if "| measured:" in line and re.search("not measured|predicted", line)]
    assert len(said) > 20 and not wrong


def test_every_prediction_has_a_question_of_its_own():
    asked = {name for path in BOOKS for name in predictions_in(path)}
    assert asked == set(QUESTIONS), "helpers/lessons/asked.py has a sentence for each"
    assert len(set(QUESTIONS.values())) == len(QUESTIONS)


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("last", ["good", "None after a number"])
@pytest.mark.parametrize("name", ["00_start_here", "03_parameter_ratios"])
def test_a_notebook_runs_in_a_fresh_clone_with_every_kind_of_prediction(name, last, fresh_clone):
    path = ROOT / "notebooks" / f"{name}.ipynb"
    book = nbformat.read(path, as_version=4)
    for cell in code_cells(book):
        lines = "\n".join(stub.group() for stub in STUB.finditer(cell.source))
        cell.source = "\n".join(
            [*(pasted(lines, kind) for kind in KINDS if lines), pasted(cell.source, last)]
        )
    settings = KERNEL_SETTINGS | OFFLINE | {"COURSE_PROFILE": "tiny", "COURSE_BUILD": str(fresh_clone)}
    assert run_notebook(book, path.parent, settings) is None
    said = "".join(output.get("text", "") for cell in code_cells(book) for output in cell.outputs)
    yours = "you: 0.5 (0.4 to 0.6) |" if last == "good" else "you: no prediction |"
    assert said.count(yours) == len(reveals_in(path)) and "'about half' is no number" in said
