"""What a learner reads fits the page, and every name that a notebook takes from the house is there."""

import ast
import importlib
import re
from types import ModuleType

import nbformat
import pytest

from helpers.profiles import NOTEBOOKS, ROOT

WIDTH = 96


def sources(name: str) -> list[str]:
    """The code of a notebook's cells; a shell's line is left out."""
    book = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", 4)
    code = [cell.source for cell in book.cells if cell.cell_type == "code"]
    return [re.sub(r"^(\s*)[!%].*", r"\1pass", source, flags=re.MULTILINE) for source in code]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebook_code_is_no_wider_than_a_page(name):
    set_up, *cells = sources(name)  # the set-up cell is written by `publishing.badges`
    wide = [line for source in cells for line in source.splitlines() if len(line) > WIDTH]
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
