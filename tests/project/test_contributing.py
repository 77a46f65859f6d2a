"""CONTRIBUTING.md names one file for each thing that can be added. In a copy of the course that file is enough."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest

from helpers.profiles import ROOT

PAGE = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
ROWS = dict(re.findall(r"^\| an? (\w+) \| `([^`]+)` \|", PAGE, re.MULTILINE))

# What a newcomer writes at the end of the file; a widget is a file of its own.
ADDED = {
    "plan": 'COURSE_PLANS["mlp-out"] = FreezePlan.freeze("mlp-out")',
    "family": '_OUTSIDE["word_table"] = ("token_embedding", "token")',
    "exercise": """
@exercise("03z")
def legs(answer):
    return judge_number(answer, 8, "a spider has eight.", {6: "an insect has six."})
""",
    "figure": """
def dots(numbers: Sequence[float], title: str) -> Figure:
    figure, ax = axes(title, "which", "how much")
    ax.plot(numbers, "o")
    return figure
""",
    "claim": 'CLAIMS["C99"] = Claim("C99", "A frozen model forgets nothing.", "02_freezing")',
    "profile": 'PROFILES["pocket"] = replace(TINY, name="pocket", n_steps=2)',
    "widget": """
__all__ = ["counter"]

def counter(start: int) -> int:
    return start + 1
""",
    "command": '''
@app.command(rich_help_panel=KEEP)
def greet() -> None:
    """Greet."""
''',
    "text": 'OWN_TEXTS["viet"] = DATA / "viet_tales.txt"',
    "recipe": 'CANDIDATES = (*CANDIDATES, Candidate("mlp", 1e-4))',
}

# Asked in the copy; each line shows that the course sees the new thing.
ASKED = {
    "plan": """
from helpers.freezing import COURSE_PLANS
from helpers.models import anatomy, build_on_meta, mini_config
from helpers.lessons import widgets
widgets.freeze_designer(mini_config(), 2, 8)  # reads the names of all plans
seen = COURSE_PLANS["mlp-out"].ledger(anatomy(build_on_meta(mini_config()))).freezes
""",
    "family": """
from torch import nn
from helpers.models import anatomy
model = nn.Module()
model.word_table = nn.Embedding(5, 4)
model.lm_head = nn.Linear(4, 5, bias=False)
seen = anatomy(model).entry("word_table.weight").role
""",
    "exercise": """
from helpers.lessons.checks import exercise_names, reply_to
seen = "03z" in exercise_names() and reply_to("03z", 6).message
""",
    "figure": """
from helpers import plots
seen = plots.dots([1, 2], "Two dots").axes[0].get_ylabel()
""",
    "claim": """
from helpers.results import claim_cards, record
where = {"model": "a model", "model_hash": "a hash", "n_seeds": 1, "source": "live"}
entry = record("C99", "does not hold", value=0.1, unit="nats", **where)
seen = "A frozen model forgets nothing." in str(claim_cards([entry]))
""",
    "profile": """
from helpers import profiles
seen = profiles.current("pocket").n_steps
""",
    "widget": """
from helpers.lessons import widgets
seen = widgets.counter(1)
""",
    "command": """
from typer.testing import CliRunner
from publishing.cli import app
seen = "greet" in CliRunner().invoke(app, ["--help"]).output
""",
    "text": """
from helpers import profiles
from helpers.texts import read_text
seen = len(read_text(profiles.current("tiny").texts["viet"])) > 1000
""",
    "recipe": """
from helpers.study import recipes
seen = recipes.CANDIDATES[-1].title
""",
}

SEEN = {
    "plan": "mlp (part)",
    "family": "token_embedding",
    "exercise": "an insect has six.",
    "figure": "how much",
    "claim": True,
    "profile": 2,
    "widget": 2,
    "command": True,
    "text": True,
    "recipe": "mlp frozen, 0.0001",
}


def test_the_page_names_a_place_for_each_of_the_ten():
    assert set(ROWS) == set(ADDED) == set(ASKED) == set(SEEN)
    missing = [path for path in ROWS.values() if not (ROOT / path).exists()]
    assert set(missing) <= {"publishing/cli.py"}


QUESTIONS = """
import json, sys
import matplotlib
matplotlib.use("Agg")
answers = {}
for thing, code in json.loads(sys.stdin.read()).items():
    space = {}
    try:
        exec(code, space)
        answers[thing] = space["seen"]
    except Exception as error:
        answers[thing] = repr(error)
print(json.dumps(answers))
"""


def answers_in(course) -> dict:
    """Ask all questions in a copy of the course."""
    environment = os.environ | {"PYTHONPATH": str(course), "COURSE_BUILD": str(course / "build")}
    asked = subprocess.run(
        [sys.executable, "-c", QUESTIONS],
        input=json.dumps(ASKED),
        cwd=course,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert asked.returncode == 0, asked.stderr
    return json.loads(asked.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def answers(tmp_path_factory) -> tuple[dict, dict]:
    """What a copy of the course says before and after the ten were added, each in its one file."""
    course = tmp_path_factory.mktemp("course")
    for name in ("helpers", "publishing"):
        shutil.copytree(ROOT / name, course / name, ignore=shutil.ignore_patterns("__pycache__"))
    (course / "data").symlink_to(ROOT / "data")
    before = answers_in(course)
    for thing, place in ROWS.items():
        path = course / place
        if path.is_dir():
            path = path / "mine.py"
        with path.open("a", encoding="utf-8") as file:
            file.write(f"\n\n{ADDED[thing]}\n")
    return before, answers_in(course)


@pytest.mark.parametrize("thing", ADDED)
def test_one_file_is_enough_to_add(answers, thing):
    before, after = answers
    if not (ROOT / ROWS[thing]).exists():
        pytest.skip("the program `course` is not in this checkout yet")
    assert before[thing] != SEEN[thing]
    assert after[thing] == SEEN[thing]
