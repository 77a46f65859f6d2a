"""What a learner reads fits the page, and every name that a notebook takes from the house is there."""

import ast
import importlib
import re
from types import ModuleType

import nbformat
import pytest

from helpers.files import PAGE, counted, say
from helpers.profiles import NOTEBOOKS, ROOT
from helpers.session import machine_in_words

MOST_WORDS = 150  # in a cell of text
ROW = re.compile(r"^\| ([^|]+) \| ([^|]+) \|(?: (\w\d) \|)?$", re.MULTILINE)


def cells_of(name: str, kind: str) -> list[nbformat.NotebookNode]:
    book = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", 4)
    return [cell for cell in book.cells if cell.cell_type == kind]


def sources(name: str) -> list[str]:
    """The code of a notebook's cells; a shell's line is left out."""
    code = [cell.source for cell in cells_of(name, "code")]
    return [re.sub(r"^(\s*)[!%].*", r"\1pass", source, flags=re.MULTILINE) for source in code]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebook_code_is_no_wider_than_a_page(name):
    wide = [line for source in sources(name) for line in source.splitlines() if len(line) > PAGE]
    assert not wide


def modules_of(tree: ast.AST) -> dict[str, ModuleType]:
    """The modules of the house that a cell imports, by the names that it gives them; each name must be there."""
    modules = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module.partition(".")[0] == "helpers":
            room = importlib.import_module(node.module)
            for alias in node.names:
                if room.__name__ == "helpers":
                    thing = importlib.import_module(f"helpers.{alias.name}")
                else:
                    thing = getattr(room, alias.name)
                if isinstance(thing, ModuleType):
                    modules[alias.asname or alias.name] = thing
    return modules


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_every_name_that_a_notebook_takes_from_the_house_is_there(name):
    trees = [ast.parse(source) for source in sources(name)]
    modules = {}
    for tree in trees:
        modules |= modules_of(tree)
    assert modules
    taken = [
        node
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules
    ]
    missing = [f"{n.value.id}.{n.attr}" for n in taken if not hasattr(modules[n.value.id], n.attr)]
    assert not missing


# --- the form of a lesson ----------------------------------------------------------


def printed(cell: nbformat.NotebookNode) -> list[str]:
    """The lines that are stored as text below a cell."""
    texts = [o["text"] if "text" in o else o.get("data", {}).get("text/plain", "") for o in cell.outputs]
    return [line for text in texts for line in text.splitlines()]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_no_printed_line_is_wider_than_a_page(name):
    wide = {cell.id: line for cell in cells_of(name, "code") for line in printed(cell) if len(line) > PAGE}
    assert not wide, "print it with helpers.files.say"


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_cell_of_text_is_read_in_a_minute(name):
    n_words = {
        cell.id: len(re.sub(r"<details>.*?</details>", "", cell.source, flags=re.DOTALL).split())
        for cell in cells_of(name, "markdown")
    }
    assert not {key: n for key, n in n_words.items() if n > MOST_WORDS}, "divide it where the thought ends"


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_the_words_that_a_lesson_uses_first_are_in_its_table_as_in_the_glossary(name):
    text = "\n".join(cell.source for cell in cells_of(name, "markdown"))
    section = re.search(r"^## The lesson's words$.*?(?=^##? |\Z)", text, re.MULTILINE | re.DOTALL)
    assert section, "write: ## The lesson's words"
    rows = {(word, meaning) for word, meaning, _ in ROW.findall(section[0])} - {
        ("word", "meaning"),
        ("---",) * 2,
    }
    glossary = ROW.findall((ROOT / "docs" / "glossary.md").read_text("utf-8"))
    assert rows == {(word, meaning) for word, meaning, first in glossary if first == name[:2]}


UNMARKED = ("## What you can do now", "## Recap", "## The lesson's words", "## Quiz")


def sections(name: str) -> list[str]:
    """The headings of a lesson's sections, those in blocks of code left out."""
    text = "\n".join(cell.source for cell in cells_of(name, "markdown"))
    return re.findall(
        r"^## .+$", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE
    )


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_section_says_whether_it_may_be_left_out_on_a_first_reading(name):
    marked = [heading for heading in sections(name) if heading not in UNMARKED]
    assert not [heading for heading in marked if heading[-2:] not in (" ★", " ☆")], "end it with ★ or ☆"
    assert {heading[-1] for heading in marked} == {"★", "☆"}, "a lesson has a core, and something around it"


# --- how long it takes to read -----------------------------------------------------


def reading_minutes(name: str) -> float:
    """125 words a minute, without what is folded; 8 seconds a line of code, 3 a printed line, 30 a picture.

    So slow, because three cold readers of 01 gave it 60 to 70 minutes, and most read in a second language.
    """
    text = "\n".join(cell.source for cell in cells_of(name, "markdown"))
    open_text = re.sub(r"<details>.*?</details>", "", text, flags=re.DOTALL)
    words = sum(any(map(str.isalnum, word)) for word in open_text.split())
    code = cells_of(name, "code")
    lines = sum(bool(line.strip()) for cell in code for line in cell.source.splitlines())
    pictures = sum(kind.startswith("image/") for c in code for o in c.outputs for kind in o.get("data", {}))
    return words / 125 + (8 * lines + 3 * sum(len(printed(c)) for c in code) + 30 * pictures) / 60


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_the_minutes_to_read_are_those_of_a_clock(name):
    stated = int(re.search(r"(\d+)(?: minutes)? to read", cells_of(name, "markdown")[0].source)[1])
    assert abs(stated - reading_minutes(name)) <= 3, (
        f"write: {5 * round(reading_minutes(name) / 5)} minutes to read"
    )


def test_a_wide_line_goes_on_below_and_what_fits_stays_as_it_is(capsys):
    table = "name   1  2\n\n  wide " + "x" * (PAGE - 7)
    say(table)
    assert capsys.readouterr().out == table + "\n"
    long = "C8 not decided: " + "; ".join(f"part {i} of it" for i in range(20))
    say(f"{long}\n  {long}")
    first, *rest = (out := capsys.readouterr().out).splitlines()
    assert len(first) > PAGE - 10 and rest[0].startswith("    ") and rest[-1].startswith(" " * 6)
    assert " ".join(out.split()) == f"{long} {long}"
    say("see " + "/folder" * 20)  # a path stays whole
    assert "/folder" * 20 in capsys.readouterr().out


@pytest.mark.parametrize(
    "words, said",
    [
        ((1, "seed"), "1 seed"),
        ((0, "seed"), "0 seeds"),
        ((2000, "frozen tensor"), "2,000 frozen tensors"),
        ((2, "process"), "2 processes"),
        ((1, "part", "is", "are"), "1 part is"),
        ((3, "part", "is", "are"), "3 parts are"),
    ],
)
def test_one_is_no_several(words, said):
    assert counted(*words) == said


def test_a_recorded_machine_is_put_in_words_and_no_page_says_one_threads():
    assert machine_in_words("x86_64 CPU, 1 threads, AVX512") == "x86_64 CPU, 1 thread, AVX512"
    for machine in ("x86_64 CPU, 11 threads, AVX2", "A card"):
        assert machine_in_words(machine) == machine
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), ROOT / "results" / "README.md"]
    for page in (*pages, *(ROOT / "notebooks").glob("*.ipynb")):
        assert " 1 threads" not in page.read_text("utf-8"), page.name
