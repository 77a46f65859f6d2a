"""The tool that breaks code in one place tells a tested function from an untested one, and leaves the tree alone."""

import ast
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from publishing.cli import main
from publishing.mutate import (
    EQUIVALENT,
    LOG,
    Trial,
    broken,
    equivalents,
    mutants,
    near_tests,
    score_table,
)

ROOT = Path(__file__).resolve().parents[2]
CODE = '''"""A tiny house."""


def larger(a, b):
    """The larger of two numbers."""
    return a if a > b else b


def smaller(a, b):
    return a if a < b else b
'''
TESTS = """from tiny.room.numbers import larger, smaller


def test_larger():
    assert larger(1, 2) == 2 and larger(2, 1) == 2


def test_smaller_is_called():
    smaller(1, 2)
"""


@pytest.fixture
def house(tmp_path):
    """A project of one room: `larger` is tested, `smaller` is only called."""
    files = {
        "tiny/__init__.py": "",
        "tiny/room/__init__.py": "from tiny.room.numbers import larger, smaller\n",
        "tiny/room/numbers.py": CODE,
        "tests/room/test_numbers.py": TESTS,
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, "utf-8")
    return tmp_path


def tried(house, *arguments):
    """What the command prints, and its exit code: a process of its own, for it forks."""
    done = subprocess.run(
        [sys.executable, "-m", "publishing.cli", "mutate", "tiny", "--root", str(house), *arguments],
        cwd=ROOT,
        env=os.environ
        | {"PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},  # the tiny house needs none
        capture_output=True,
        text=True,
    )
    assert not done.stderr, done.stderr
    return done.stdout, done.returncode


def state(house):
    return {
        p.relative_to(house).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in house.rglob("*")
        if p.is_file() and "build" not in p.parts
    }


def results(house):
    return [json.loads(line) for line in (house / LOG).read_text("utf-8").splitlines()]


def test_a_tested_function_is_told_from_an_untested_one_and_the_tree_is_left_as_it_was(house):
    before = state(house)
    said, code = tried(house, "--least", "0.9")
    assert state(house) == before
    assert code == 1, said
    by_id = {r["id"]: r["result"] for r in results(house)}
    assert by_id == {
        "tiny/room/numbers.py::larger: return a if a > b else b  ->  return None": "noticed",
        "tiny/room/numbers.py::larger: a > b  ->  a <= b": "noticed",
        "tiny/room/numbers.py::larger: a > b  ->  a >= b": "survived",
        "tiny/room/numbers.py::smaller: return a if a < b else b  ->  return None": "survived",
        "tiny/room/numbers.py::smaller: a < b  ->  a >= b": "survived",
        "tiny/room/numbers.py::smaller: a < b  ->  a <= b": "survived",
    }
    assert "survived: line 10, tiny/room/numbers.py::smaller: a < b  ->  a >= b" in said
    assert said.splitlines()[-1].split() == ["all", "6", "2", "0", "4", "0.333"]


def test_what_was_tried_is_tried_again_only_where_a_test_or_the_code_changed(house):
    tried(house)
    tried(house)
    assert len(results(house)) == 6
    test = house / "tests/room/test_numbers.py"
    test.write_text(
        TESTS.replace("    smaller(1, 2)", "    assert smaller(1, 2) == smaller(2, 1) == 1"), "utf-8"
    )
    tried(house)
    after = results(house)
    assert len(after) == 6 + 4, "the survivors alone"
    assert [r["result"] for r in after[6:]] == ["survived", "noticed", "noticed", "survived"]


def test_a_mutant_that_changes_nothing_is_listed_with_its_reason_and_not_counted(house):
    for name in ("larger: a > b  ->  a >= b", "smaller: a < b  ->  a <= b"):
        with (house / EQUIVALENT).open("a", encoding="utf-8") as file:
            file.write(f"tiny/room/numbers.py::{name}  because  equal numbers are the same number\n")
    with (house / EQUIVALENT).open("a", encoding="utf-8") as file:
        file.write("tiny/room/numbers.py::gone: a  ->  b  because  the code has changed since\n")
    said, code = tried(house, "--least", "0.5")
    assert "no longer there: tiny/room/numbers.py::gone: a  ->  b" in said
    assert said.splitlines()[-1].split() == ["all", "6", "2", "2", "2", "0.500"] and code == 0


def test_a_test_that_fails_without_a_mutant_notices_none(house):
    with (house / "tests/room/test_numbers.py").open("a", encoding="utf-8") as file:
        file.write("\n\ndef test_that_fails_already():\n    assert smaller(1, 2) == 3\n")
    said, _ = tried(house)
    assert said.splitlines()[-1].split()[-1] == "0.333"


def test_what_a_package_reads_when_it_is_imported_is_set_before(house, monkeypatch):
    """A test that needs a setting of the conftest.py fails without a mutant where tqdm is imported before it."""
    monkeypatch.delenv("TQDM_DISABLE")
    (house / "tests/conftest.py").write_text("import os\n\nos.environ['TQDM_DISABLE'] = '1'\n", "utf-8")
    with (house / "tests/room/test_numbers.py").open("a", encoding="utf-8") as file:
        file.write("\n\ndef test_bar():\n    from tqdm import tqdm\n\n")
        file.write("    assert smaller(1, 2) is not True and tqdm([1]).disable\n")
    said, _ = tried(house)
    assert said.splitlines()[-1].split()[-1] == "0.333"


def test_a_sample_is_drawn_by_its_seed(house):
    first, _ = tried(house, "--sample", "3", "--seed", "5")
    again, _ = tried(house, "--sample", "3", "--seed", "5")
    assert first == again and len(results(house)) == 3


# --- what is broken, and what is left alone ----------------------------------------


def made_from(tmp_path, source):
    """What each mutant of a source has in it, as text."""
    path = tmp_path / "code.py"
    path.write_text(source, "utf-8")
    return [ast.unparse(broken(m, tmp_path)) for m in mutants(path, tmp_path)]


@pytest.mark.parametrize(
    "source, wanted",
    [
        ("x = a < b", ["x = a >= b", "x = a <= b"]),
        ("x = a == b", ["x = a != b"]),
        ("x = a is not b", ["x = a is b"]),
        ("x = a in b", ["x = a not in b"]),
        ("x = a + b", ["x = a - b"]),
        ("x /= b", ["x *= b"]),
        ("x = a and b", ["x = a or b"]),
        ("x = not a", ["x = a"]),
        ("x = -a", ["x = a"]),
        ("x = True", ["x = False"]),
        ("x = 2", ["x = 3", "x = 0"]),
        ("x = 'word'", ["x = ''"]),
        ("f(a)", ["pass"]),
        ("raise E(a)", ["pass"]),
        ("x = a if b else c", ["x = a if not b else c"]),
        ("x = [a for a in b if a]", ["x = [a for a in b if not a]"]),
        ("def f(a=1):\n    g", ["def f(a=2):\n    g", "def f(a=0):\n    g"]),
        ("def f():\n    return a", ["def f():\n    return None"]),
        ("raise E(f'{a + b} found')", ["pass", "raise E(f'{a - b} found')"]),
    ],
)
def test_each_kind_of_change(tmp_path, source, wanted):
    assert made_from(tmp_path, source) == wanted


@pytest.mark.parametrize(
    "source",
    [
        '"""A docstring with 2 words."""',
        "from __future__ import annotations",
        "if TYPE_CHECKING:\n    x = 1",
        "x: Literal[1]",
        "def f(a: 'int') -> 'str':\n    pass",
        "__all__ = ['a', 'b']",
        "x = 'a sentence for a reader'",
        "x = f'{a:>8} words'",
        "return",
    ],
)
def test_what_is_no_behaviour_is_left_alone(tmp_path, source):
    assert made_from(tmp_path, source) == []


def test_every_mutant_has_a_name_of_its_own_that_lines_do_not_change(tmp_path):
    path = tmp_path / "code.py"
    path.write_text("def f(a):\n    x = a + 1\n    y = a + 1\n    return x, y\n", "utf-8")
    names = [m.id for m in mutants(path, tmp_path)]
    assert len(set(names)) == len(names) == 7
    path.write_text("# a comment\n\n" + path.read_text("utf-8"), "utf-8")
    assert [m.id for m in mutants(path, tmp_path)] == names


# --- which tests, and what is said -------------------------------------------------


def test_the_tests_of_a_file_are_those_of_its_room_that_import_it(house):
    (house / "tests/room/test_other.py").write_text("from tiny.room.other import x\n", "utf-8")
    (house / "tests/room/test_face.py").write_text("from tiny.room import larger\n", "utf-8")
    names = [test.name for test in near_tests("tiny/room/numbers.py", house)]
    assert names == ["test_numbers.py", "test_face.py"], "its namesake first"


def test_tests_in_a_browser_or_in_the_room_of_colab_are_left_out(house):
    for name in ("browser/test_pages.py", "session/test_colab_room.py", "session/test_rooms.py"):
        (house / "tests" / name).parent.mkdir(exist_ok=True)
        (house / "tests" / name).write_text("from tiny import plain\n", "utf-8")
    (house / "tiny/plain.py").write_text(CODE, "utf-8")
    assert [test.name for test in near_tests("tiny/plain.py", house)] == ["test_rooms.py"]


def test_a_path_that_is_not_there_or_has_no_tests_is_said(house, capsys):
    assert main(["mutate", "tiny/nowhere", "--root", str(house)]) == 2
    assert "There is no" in capsys.readouterr().err
    (house / "tests/room/test_numbers.py").unlink()
    assert main(["mutate", "tiny", "--root", str(house)]) == 2
    assert "tiny/room/numbers.py has no tests" in capsys.readouterr().err


def test_the_score_leaves_equivalent_mutants_out():
    trials = [
        Trial(str(i), "a.py", 1, r, "", "") for i, r in enumerate(["noticed", "survived", "equivalent"])
    ]
    assert score_table(trials).splitlines()[-1].split() == ["all", "3", "1", "1", "1", "0.500"]


def test_every_listed_mutant_is_of_a_file_and_has_a_reason():
    for name, reason in equivalents(ROOT).items():
        assert (ROOT / name.partition("::")[0]).is_file(), name
        assert len(reason.split()) >= 3, name
