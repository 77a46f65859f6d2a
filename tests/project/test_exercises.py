"""Every exercise of every notebook: a stub, a check, three hints, and a solution that runs and is right."""

import ast
import re
import shutil
import symtable
from itertools import takewhile

import nbformat
import pytest

from helpers.lessons.checks import exercise_names, reply_to
from helpers.profiles import ROOT
from publishing.kernel import KERNEL_SETTINGS, OFFLINE, code_cells, run_notebook

BOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
LEVELS = ("●○○", "●●○", "●●●")  # a warm-up, takes thought, hard


def cells_of(path):
    return nbformat.read(path, as_version=4).cells


def exercises():
    """(its notebook, (the exercise's cell, the markdown above it, the three cells after it))"""
    for path in BOOKS:
        cells = cells_of(path)
        for i, cell in enumerate(cells):
            if "exercise" in cell.metadata.get("tags", []):
                last = max(k for k in range(i) if cells[k].cell_type == "markdown")
                text = takewhile(lambda c: c.cell_type == "markdown", reversed(cells[: last + 1]))
                above = "\n\n".join(reversed([c.source for c in text]))  # the task may go over two cells
                yield (
                    path,
                    pytest.param(
                        cell,
                        above,
                        cells[i + 1 : i + 4],
                        id=cell.metadata.get("exercise", f"{path.stem}-{i}"),
                    ),
                )


PLACED = list(exercises())
ALL = [exercise for _, exercise in PLACED]
each_exercise = pytest.mark.parametrize("cell, above, after", ALL)
each_notebook = pytest.mark.parametrize("path", BOOKS, ids=lambda p: p.stem)


def exercises_of(path):
    """Those that a notebook holds: an appendix goes on with the letters of its lesson."""
    return [exercise for place, exercise in PLACED if place == path]


def solution_of(cell, after) -> str:
    """The code of the folded solution, after three hints or more."""
    text = "\n".join(c.source for c in after if c.cell_type == "markdown")
    text = text[: text.index("</details>", text.index("<summary>Solution"))]
    assert len(re.findall(r"<summary>Hint \d", text)) >= 3
    return re.search(r"```python\n(.*?)```", text[text.index("<summary>Solution") :], re.S)[1]


def heading_of(name, above):
    """(level, minutes) of an exercise, from its heading."""
    found = re.search(rf"^### Exercise {name}: .+ \((●[●○]{{2}}), (\d+) minutes\)$", above, re.MULTILINE)
    assert found, f"write: ### Exercise {name}: what it asks (●●○, 10 minutes)"
    return LEVELS.index(found[1]), int(found[2])


# --- exercises ---------------------------------------------------------------------


@each_notebook
def test_each_notebook_has_three_exercises_or_more(path):
    assert len(exercises_of(path)) >= 3


def test_every_check_has_its_exercise_and_every_exercise_its_check():
    assert sorted(p.id for p in ALL) == exercise_names()


@each_exercise
def test_the_stub_is_untouched_and_its_check_says_so(cell, above, after):
    name = cell.metadata["exercise"]
    assert f"answer_{name} = ..." in cell.source and f'check("{name}", answer_{name})' in cell.source
    shown = "".join(o.get("text", "") for o in cell.outputs)
    assert "not attempted yet" in shown


@each_exercise
def test_three_hints_unfold_and_the_folded_solution_is_right(cell, above, after, monkeypatch):
    monkeypatch.chdir(ROOT)
    name = cell.metadata["exercise"]
    space: dict = {}
    exec(solution_of(cell, after), space)  # noqa: S102 (the course's own text)
    assert reply_to(name, space[f"answer_{name}"]).ok, reply_to(name, space[f"answer_{name}"]).message


@each_exercise
def test_the_stub_is_its_solution_with_the_answer_removed(cell, above, after):
    name = cell.metadata["exercise"]
    solution = [line.rstrip() for line in solution_of(cell, after).splitlines()]
    answers = [i for i, line in enumerate(solution) if line.startswith(f"answer_{name} = ")]
    assert answers, "the solution gives no answer"
    solution[answers[-1]] = f"answer_{name} = ..."
    given = [line.partition("  #")[0].rstrip() for line in cell.source.splitlines()]
    given = [line for line in given if line and not line.startswith(("#", "check("))]
    rest = iter(line.partition("  #")[0].rstrip() for line in solution)
    assert all(line in rest for line in given), f"the stub has a line that the solution lacks: {given}"


@each_notebook
def test_a_level_and_minutes_stand_at_each_exercise_and_no_level_falls(path):
    own = exercises_of(path)
    levels = [heading_of(p.id, p.values[1])[0] for p in own]
    assert levels == sorted(levels), [LEVELS[level] for level in levels]
    assert [p.id for p in own] == sorted(p.id for p in own), "letters follow the reading order"


@each_notebook
def test_the_minutes_with_the_exercises_are_the_sum(path):
    opening = cells_of(path)[0].source
    read, with_exercises = map(
        int,
        re.search(
            r"(\d+)(?: minutes)? to read.*?(\d+) (?:minutes )?with the exercises", opening, re.S
        ).groups(),
    )
    total = read + sum(heading_of(p.id, p.values[1])[1] for p in exercises_of(path))
    assert abs(total - with_exercises) <= 5, f"{read} to read and the exercises make {total} minutes"


# --- a solution changes nothing but the answer -------------------------------------


def names_of(source: str) -> tuple[set[str], set[str]]:
    """The global names that a cell sets, and those that it reads, also inside its functions."""
    tables, sets, reads = [symtable.symtable(plain_python(source), "cell", "exec")], set(), set()
    while tables:
        table = tables.pop()
        tables += table.get_children()
        for symbol in table.get_symbols():
            if table.get_type() == "module" and (symbol.is_assigned() or symbol.is_imported()):
                sets.add(symbol.get_name())
            if symbol.is_referenced() and (table.get_type() == "module" or symbol.is_global()):
                reads.add(symbol.get_name())
    return sets, reads


def plain_python(source: str) -> str:
    """A cell without the lines that are IPython's."""
    return re.sub(r"^(\s*)[%!].*$", r"\1pass", source, flags=re.MULTILINE)


def imports_of(source: str) -> dict[str, str]:
    """Name to what is imported under it."""
    tree = ast.parse(plain_python(source))
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    return {
        alias.asname or alias.name.partition(".")[0]: f"{getattr(node, 'module', '')} {alias.name}"
        for node in nodes
        for alias in node.names
    }


@each_exercise
def test_a_solution_uses_no_name_of_another_cell(cell, above, after):
    """A learner pastes it in and runs on: what later cells read must be what it was."""
    name = cell.metadata["exercise"]
    path = next(path for path, exercise in PLACED if exercise.id == name)
    solution = solution_of(cell, after)
    others = [c.source for c in cells_of(path) if c.cell_type == "code" and c.id != cell.id]
    imported = {key: what for source in others for key, what in imports_of(source).items()}
    same = {key for key, what in imports_of(solution).items() if imported.get(key, what) == what}
    taken = set().union(*(sets | reads for sets, reads in map(names_of, others)))
    clashes = (names_of(solution)[0] - same - {f"answer_{name}"}) & taken
    assert not clashes, f"rename {', '.join(sorted(clashes))}, or put the lines into a function"


@each_exercise
def test_the_stub_gives_the_name_of_the_function_that_is_asked_for(cell, above, after):
    """Without a name a learner takes one that the notebook uses, such as block."""
    name = cell.metadata["exercise"]
    answer = re.findall(rf"^answer_{name} = (.*)$", solution_of(cell, after), re.MULTILINE)[-1]
    written = re.findall(r"^def (\w+)", solution_of(cell, after), re.MULTILINE)
    if answer in written or answer.startswith("("):
        assert f"answer_{name} = {answer}" in cell.source.replace(f"answer_{name} = ...", "")


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("path", [*BOOKS[:4], BOOKS[-1]], ids=lambda p: p.stem)
def test_a_notebook_with_its_solutions_pasted_in_gives_the_same_outputs(path, tmp_path):
    untouched, solved = (outputs_of(path, pasted, tmp_path / str(pasted)) for pasted in (False, True))
    assert untouched == solved


def outputs_of(path, pasted: bool, build) -> list[tuple[str, list[str]]]:
    """What each cell prints that is neither an exercise nor left out by nbval, after a run."""
    book = nbformat.read(path, as_version=4)
    for i, cell in enumerate(book.cells):
        if pasted and "exercise" in cell.metadata.get("tags", []):
            name = cell.metadata["exercise"]
            cell.source = f'{solution_of(cell, book.cells[i + 1 : i + 4])}\ncheck("{name}", answer_{name})'
    settings = KERNEL_SETTINGS | OFFLINE | {"COURSE_PROFILE": "tiny", "COURSE_BUILD": str(build)}
    assert run_notebook(book, path.parent, settings) is None
    tags = {c.id: set(c.metadata.get("tags", [])) for c in book.cells}
    assert all(
        (": right." in c.outputs[0].text) is pasted for c in code_cells(book) if "exercise" in tags[c.id]
    )
    compared = [c for c in code_cells(book) if not {"exercise", "nbval-ignore-output"} & tags[c.id]]
    return [
        (c.source, [o.get("text") or o.get("data", {}).get("text/plain", "") for o in c.outputs])
        for c in compared
    ]


# --- quiz, project, progress -------------------------------------------------------


@each_notebook
def test_the_quiz_explains_every_choice(path):
    text = "\n\n".join(c.source for c in cells_of(path) if c.cell_type == "markdown")
    quiz = text[text.rindex("## Quiz") :]
    questions = re.findall(r"\*\*(\d+)\..*?</details>", quiz, re.S)
    blocks = re.findall(r"(\*\*\d+\..*?)<details>.*?</summary>(.*?)</details>", quiz, re.S)
    assert len(questions) == len(blocks) >= 5
    for question, answer in blocks:
        choices = re.findall(r"\(([a-z])\)", question)
        assert len(choices) >= 3, question
        silent = [c for c in choices if f"({c})" not in answer]
        assert not silent, f"the answer says nothing about {silent}: {question}"


@pytest.mark.parametrize("path", BOOKS[4:], ids=lambda p: p.stem)
def test_each_choice_of_a_quiz_stands_on_a_line_of_its_own(path):
    text = "\n\n".join(c.source for c in cells_of(path) if c.cell_type == "markdown")
    quiz = text[text.rindex("## Quiz") :]
    questions = re.findall(r"\*\*\d+\..*?(?=<details>)", quiz, re.S)
    assert questions
    for question in questions:
        n_choices = len(re.findall(r"\([a-z]\) ", question))
        assert len(re.findall(r"^- \([a-z]\) ", question, re.MULTILINE)) == n_choices, question


def project_of(path):
    """The section of the closing project, from its heading to the next one."""
    text = "\n\n".join(c.source for c in cells_of(path) if c.cell_type == "markdown")
    found = re.search(r"^## (?:Closing p|P)roject\b.*?(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    return found[0] if found else ""


@each_notebook
def test_a_closing_project_has_a_rubric_of_four_lines_or_more(path):
    assert project_of(path), "write: ## Project: what it is about (45 minutes)"
    assert len(re.findall(r"^(?:\d\. |\| \w)", project_of(path), re.MULTILINE)) >= 4


@pytest.mark.parametrize("path", [p for p in BOOKS if "```python" in project_of(p)], ids=lambda p: p.stem)
def test_the_first_lines_of_a_project_run(path, tmp_path, monkeypatch):
    shutil.copy(ROOT / "data" / "alice_style.txt", tmp_path / "my_text.txt")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COURSE_PROFILE", "smoke")
    exec(re.search(r"```python\n(.*?)```", project_of(path), re.S)[1], {})  # noqa: S102 (the course's own text)


def test_a_cell_shows_progress_and_no_output_depends_on_it():
    cells = [c for path in BOOKS for c in cells_of(path) if c.source.startswith("progress()")]
    assert cells
    assert all("nbval-ignore-output" in c.metadata.tags and c.metadata.reason for c in cells)


def test_every_notebook_opens_with_the_same_short_set_up_cell():
    opening = {next(c.source for c in cells_of(p) if c.cell_type == "code") for p in BOOKS}
    assert len(opening) == 1
    assert len(opening.pop().splitlines()) <= 4
