"""A reader's function is judged on cases, and the mistake that fits all of them is named."""

import pytest
import torch

from helpers.lessons.cases import judge_function
from helpers.lessons.checks import AnswerFault


def judge(answer, **more):
    return judge_function(
        answer,
        [(1,), (2,), (3,)],
        lambda n: n**2,
        {lambda n: 2 * n: "doubled", lambda n: n**2 + (n == 3): "wrong at three"},
        "well done",
        **more,
    )


@pytest.mark.parametrize("form", [float, str, lambda v: [v], torch.tensor])
def test_a_right_function_passes_in_every_form(form):
    reply = judge(lambda n: form(n * n))
    assert reply.ok and reply.message == "well done"


def test_a_mistake_is_named_only_where_it_fits_every_case():
    assert judge(lambda n: n + n).message == "doubled"
    assert judge(lambda n: 10 if n == 3 else n * n).message == "wrong at three"
    assert "for 1 your function gives 7, and 1 is right" in judge(lambda n: 7).message


def test_a_case_is_safe_from_a_function_that_changes_its_argument():
    def spoils(values):
        values.append(1)
        return 0

    case = [5]
    judge_function(spoils, [(case,)], lambda values: 0, {}, "")
    assert case == [5]


def test_nan_equals_nan_and_nothing_else():
    nan = float("nan")
    assert judge_function(lambda n: nan, [(1,)], lambda n: nan, {}, "").ok
    assert not judge_function(lambda n: nan, [(1,)], lambda n: 1, {}, "").ok


@pytest.mark.parametrize(
    "answer, words", [(3, "function is asked for"), (lambda n: 1 / 0, "ZeroDivisionError")]
)
def test_what_cannot_be_called_is_said(answer, words):
    with pytest.raises(AnswerFault, match=words):
        judge(answer)
