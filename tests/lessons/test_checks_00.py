"""The exercises of 00_start_here: right answers in every form, and each mistake by its message."""

import math

import numpy as np
import pytest
import torch

from helpers.lessons.checks import check, reply_to
from helpers.lessons.exercises.nb00 import MISMEASURED, bits_per_character

ROLES = {"A": "train", "B": "held-out", "C": "retention"}


@pytest.mark.parametrize("name", ["00a", "00b", "00c", "00d"])
def test_an_untouched_stub_is_not_attempted_yet(name):
    assert reply_to(name, ...).ok is None


@pytest.mark.parametrize(
    "answer",
    [
        math.log(4096),
        8.318,
        "8.318",
        torch.tensor(4096.0).log(),
        [8.3178],
        torch.tensor([8.3178]),
        np.array([8.3178]),
        np.float32(8.3178),
    ],
)
def test_the_uniform_guess_is_right_in_every_form(answer):
    assert reply_to("00a", answer).ok


@pytest.mark.parametrize(
    "answer, words",
    [
        (12, "bits"),
        (3.61, "log10"),
        (4096, "perplexity"),
        (-8.318, "sign"),
        (math.log10(4096), "log10"),
        (1 / 4096, "probability"),
        (5, "hints"),
        ([1, 2], "cannot be read"),
        (8.3, "two decimals"),
        ((8, 3), "8.3 and not 8,3"),
    ],
)
def test_each_mistake_about_the_uniform_guess_is_named(answer, words):
    reply = reply_to("00a", answer)
    assert reply.ok is False and words in reply.message


@pytest.mark.parametrize(
    "answer",
    [-9.5, 9.5, 9.516, "-9.5", "9.5%", torch.tensor(-9.5163), [9.5], 100 * (math.exp(-0.1) - 1)],
)
def test_the_perplexity_change_is_right_in_every_form(answer):
    assert reply_to("00b", answer).ok


@pytest.mark.parametrize(
    "answer, words",
    [
        (10, "accuracy"),
        (-10, "accuracy"),
        (0.10, "accuracy"),
        (-0.095, "the share is right"),
        (10.5, "before"),
        (90.5, "what is left"),
        (0.905, "ratio"),
        (6.7, "powers of 2"),
        (14.4, "bits"),
        (0.144, "bits"),
        (50, "after by the one before"),
    ],
)
def test_each_mistake_about_perplexity_is_named(answer, words):
    reply = reply_to("00b", answer)
    assert reply.ok is False and words in reply.message


@pytest.mark.parametrize("leaks", [["d", "e"], ("e", "d"), {"d", "e"}, "d, e", "d and e", "DE"])
def test_the_leaking_windows_are_right_in_every_form(leaks):
    assert reply_to("00c", ROLES | {"leaks": leaks}).ok


def test_the_roles_are_read_however_they_are_written():
    assert reply_to("00c", {"A": "Train", "B": "held_out", "C": "Retention", "leaks": "de"}).ok


@pytest.mark.parametrize(
    "changed, words",
    [
        ({"B": "retention", "C": "held-out"}, "swapped"),
        ({"A": "held-out", "B": "train"}, "changes the weights"),
        ({"B": "train"}, "Ask of each"),
        ({"leaks": ["d"]}, "shared tokens"),
        ({"leaks": "e"}, "chapter 5"),
        ({"leaks": ["d", "e", "f"]}, "token *numbers*"),
        ({"leaks": "deg"}, "chapter 9"),
        ({"leaks": "a, d"}, "held-out side"),
        ({"leaks": []}, "Two held-out windows"),
        ({"leaks": "xyz"}, "a to g"),
        ({"leaks": 3}, "cannot be read"),
    ],
)
def test_each_mistake_about_roles_and_leaks_is_named(changed, words):
    reply = reply_to("00c", ROLES | {"leaks": ["d", "e"]} | changed)
    assert reply.ok is False and words in reply.message


def test_an_answer_without_all_its_parts_says_what_is_missing():
    assert "leaks" in reply_to("00c", ROLES).message
    assert "dictionary" in reply_to("00c", ["d", "e"]).message


@pytest.mark.parametrize(
    "answer",
    [
        bits_per_character,
        lambda losses, text: sum(losses) / math.log(2) / len(text),
        lambda losses, text: np.array([losses.numpy().sum() / np.log(2) / len(text)]),
        lambda losses, text: (losses / math.log(2)).mean() * len(losses) / len(text),
    ],
)
def test_bits_per_character_is_right_however_it_is_computed(answer):
    reply = reply_to("00d", answer)
    assert reply.ok, reply.message


@pytest.mark.parametrize("measure, reason", MISMEASURED)
def test_each_mistake_about_the_fair_measure_is_named(measure, reason):
    reply = reply_to("00d", measure)
    assert reply.ok is False and reply.message == reason


@pytest.mark.parametrize(
    "answer, words",
    [
        (1.27, "a function is asked for, found float"),
        (lambda losses, text: None, "returns None"),
        (lambda losses: 1.0, "stopped with TypeError"),
        (lambda losses, text: losses, "cannot be read"),
        (lambda losses, text: 2.0, "is right. Add up"),
    ],
)
def test_something_else_than_the_fair_measure_is_explained(answer, words):
    reply = reply_to("00d", answer)
    assert reply.ok is False and words in reply.message


def test_the_example_of_the_solution_is_as_it_says():
    """A: 3.2 nats per token of 4.2 characters. B: 3.0 nats per token of 3.5 characters. Ten tokens of each."""
    a = bits_per_character(torch.full((10,), 3.2), "x" * 42)
    b = bits_per_character(torch.full((10,), 3.0), "x" * 35)
    assert (round(a, 2), round(b, 2)) == (1.10, 1.24)


def test_check_prints_the_exercise_and_the_verdict(capsys):
    assert check("00a", 12) is None, "a returned value would be shown in the notebook"
    assert capsys.readouterr().out.startswith("00a: not yet. 12 is log2")
