"""The exercises of notebook 05: right in every form, and each known mistake named."""

import pytest
import torch

from helpers.checks import CheckError, check, number, reply_to


@pytest.mark.parametrize("name", ["05a", "05b", "05c"])
def test_an_untouched_stub_is_not_attempted(name):
    assert reply_to(name, ...).ok is None


@pytest.mark.parametrize("answer", [-0.01, torch.tensor(-0.01), [-0.01], "-0.01"])
def test_05a_right_in_any_form(answer):
    assert reply_to("05a", answer).ok


@pytest.mark.parametrize("answer, words", [(0.01, "sign"), (-0.055, "equal steps"), (-0.085, "last points"),
                                           (-0.07, "Subtract"), (0.06, "Subtract"), (5, "go halfway")])
def test_05a_names_the_mistake(answer, words):
    reply = reply_to("05a", answer)
    assert reply.ok is False and words in reply.message


def test_05b_right():
    assert reply_to("05b", 0.0143).ok


@pytest.mark.parametrize("answer, words", [(0.00124, "1,000"), (0.0124, "1.96"), (0.00632, "standard error"),
                                           (0.0452, "square root")])
def test_05b_names_the_mistake(answer, words):
    reply = reply_to("05b", answer)
    assert reply.ok is False and words in reply.message


def test_05c_right_and_its_mistakes():
    def style(loss):
        return 0.5 * (loss["E", "A"] - loss["A", "A"] + loss["A", "E"] - loss["E", "E"])

    assert reply_to("05c", style).ok
    assert "own gain" in reply_to("05c", lambda loss: loss["base", "A"] - loss["A", "A"]).message
    assert "both texts" in reply_to("05c", lambda loss: loss["E", "A"] - loss["A", "A"]).message
    assert "sign" in reply_to("05c", lambda loss: -style(loss)).message
    assert "function" in reply_to("05c", 0.3).message


def test_an_unreadable_answer_is_no_crash(capsys):
    assert check("05a", {"a": 1}) is False
    assert "cannot be read" in capsys.readouterr().out


def test_an_unknown_exercise_is_an_error():
    with pytest.raises(CheckError, match="99z"):
        reply_to("99z", 1)


def test_numbers_are_read_from_text_with_commas():
    assert number("56,707,584") == 56707584
