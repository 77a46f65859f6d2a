"""Every exercise of every notebook: a stub, a check, three hints, and a solution that runs and is right."""

import re

import nbformat
import pytest

from helpers.checks import reply_to
from helpers.profiles import ROOT


def exercises():
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        cells = nbformat.read(path, as_version=4).cells
        for i, cell in enumerate(cells):
            if "exercise" in cell.metadata.get("tags", []):
                yield pytest.param(cell, cells[i + 1 : i + 4], id=cell.metadata.get("exercise", f"{path.stem}-{i}"))


ALL = list(exercises())


def test_each_notebook_has_two_exercises_or_more():
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        assert sum(p.id.startswith(path.stem[:2]) for p in ALL) >= 2, path.name


@pytest.mark.parametrize("cell, after", ALL)
def test_the_stub_is_untouched_and_its_check_says_so(cell, after):
    name = cell.metadata["exercise"]
    assert f"answer_{name} = ..." in cell.source and f'check("{name}", answer_{name})' in cell.source
    shown = "".join(o.get("text", "") for o in cell.outputs)
    assert "not attempted yet" in shown


@pytest.mark.parametrize("cell, after", ALL)
def test_three_hints_unfold_and_the_folded_solution_is_right(cell, after, monkeypatch):
    monkeypatch.chdir(ROOT)
    name = cell.metadata["exercise"]
    text = "\n".join(c.source for c in after if c.cell_type == "markdown")
    text = text[: text.index("</details>", text.index("<summary>Solution"))]
    assert len(re.findall(r"<summary>Hint \d", text)) >= 3
    code = re.search(r"```python\n(.*?)```", text[text.index("<summary>Solution"):], re.S)
    space: dict = {}
    exec(code[1], space)  # noqa: S102 (the course's own text)
    assert reply_to(name, space[f"answer_{name}"]).ok, reply_to(name, space[f"answer_{name}"]).message


def test_every_notebook_opens_with_the_same_short_set_up_cell():
    opening = {next(c.source for c in nbformat.read(p, as_version=4).cells if c.cell_type == "code")
               for p in sorted((ROOT / "notebooks").glob("*.ipynb"))}
    assert len(opening) == 1
    assert len(opening.pop().splitlines()) <= 4
