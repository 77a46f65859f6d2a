"""Some hundred wrong answers, and the cause that the reply must name."""

import tomllib
from collections import Counter
from pathlib import Path

import pytest
import torch

from helpers.lessons.checks import exercise_names
from support.said import assert_wrong

ANSWERS = tomllib.loads(Path(__file__).with_name("wrong_answers.toml").read_text("utf-8"))["answer"]


@pytest.mark.filterwarnings("ignore:reduction. 'mean' divides", "ignore:Converting a tensor")
@pytest.mark.parametrize("wrong", ANSWERS, ids=lambda wrong: f"{wrong['exercise']}: {wrong['cause'][:60]}")
def test_the_reply_names_the_cause(wrong):
    space = {"torch": torch}
    exec(wrong["code"], space)  # noqa: S102 (answers of our own)
    assert_wrong(wrong["exercise"], space["answer"], wrong["says"])


def test_every_exercise_from_02_to_08_has_five_wrong_answers_or_more():
    asked = [name for name in exercise_names() if "02" <= name[:2] <= "08"]
    n = Counter(wrong["exercise"] for wrong in ANSWERS)
    assert {name: n[name] for name in asked if n[name] < 5} == {}
