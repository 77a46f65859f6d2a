"""The exercises of notebook 05: right in every form, and each known mistake named."""

import math
import re

import numpy as np
import pytest
import torch
from torch.nn.functional import kl_div, log_softmax, softmax

from helpers.lessons.checks import CheckError, check, reply_to
from helpers.lessons.exercises.nb05 import CASES, SMALLEST, VERDICTS
from helpers.lessons.reading import number
from helpers.measuring.decisions import decide
from helpers.measuring.intervals import Interval


@pytest.mark.parametrize("name", ["05a", "05b", "05c", "05d", "05e", "05f"])
def test_an_untouched_stub_is_not_attempted(name):
    assert reply_to(name, ...).ok is None


@pytest.mark.parametrize("answer", [-0.01, torch.tensor(-0.01), [-0.01], "-0.01"])
def test_05a_right_in_any_form(answer):
    assert reply_to("05a", answer).ok


@pytest.mark.parametrize(
    "answer, words",
    [
        (0.01, "sign"),
        (-0.055, "equal steps"),
        (-0.085, "last points"),
        (-0.07, "Subtract"),
        (0.06, "Subtract"),
        (5, "go halfway"),
    ],
)
def test_05a_names_the_mistake(answer, words):
    reply = reply_to("05a", answer)
    assert reply.ok is False and words in reply.message


def test_05b_right():
    assert reply_to("05b", 0.0143).ok


@pytest.mark.parametrize(
    "answer, words",
    [(0.00124, "1,000"), (0.0124, "1.96"), (0.00632, "standard error"), (0.0452, "square root")],
)
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
    check("05a", {"a": 1})
    assert "05a: not yet. this answer cannot be read" in capsys.readouterr().out


def test_an_unknown_exercise_is_an_error():
    with pytest.raises(CheckError, match="99z"):
        reply_to("99z", 1)


def test_numbers_are_read_from_text_with_commas():
    assert number("56,707,584") == 56707584
    assert number("45%") == number(" 45 % ") == 45
    with pytest.raises(ValueError, match="None is no number: print shows a value on the screen"):
        number(None)


@pytest.mark.parametrize(("answer", "meant"), [("3,24", "3.24"), ("-0,010", "-0.010"), ((3, 24), "3.24")])
def test_a_decimal_comma_is_named_and_not_read_as_another_number(answer, meant):
    with pytest.raises(ValueError, match=re.escape(f"point, {meant} and not")):
        number(answer)


# --- 05d ---------------------------------------------------------------------------


def test_the_verdicts_are_those_of_the_courses_rule():
    def verdict(mean, low, high):
        return decide(Interval(mean, low, high, 1 if math.isnan(low) else 3, 0.0, 0.0), SMALLEST, "lower")

    assert tuple(verdict(*case) for case in CASES) == VERDICTS


@pytest.mark.parametrize(
    "answer",
    [
        list(VERDICTS),
        VERDICTS,
        np.array(VERDICTS),
        ", ".join(VERDICTS),
        [v.upper() for v in VERDICTS],
        dict(enumerate(VERDICTS, 1)),
        [v.replace(" ", "_") for v in VERDICTS],
        ["h", "n", "d", "d", "d", "n", "n"],
    ],
)
def test_verdicts_are_right_in_every_form(answer):
    assert reply_to("05d", answer).ok


def but(n, verdict):
    return [verdict if i == n else v for i, v in enumerate(VERDICTS, 1)]


@pytest.mark.parametrize(
    "answer, words",
    [
        (but(1, "not decided"), "large enough"),
        (but(1, "does not hold"), "with zero and with"),
        (but(2, "does not hold"), "shown to be absent"),
        (but(2, "holds"), "the middle alone"),
        (but(3, "not decided"), "look at the width"),
        (but(3, "holds"), "shut out"),
        (but(4, "holds"), "too small to count"),
        (but(4, "not decided"), "narrow"),
        (but(5, "holds"), "other* side"),
        (but(6, "holds"), "holds zero"),
        (but(6, "does not hold"), "would count"),
        (but(7, "holds"), "one pair"),
        (but(7, "does not hold"), "nothing is shut out"),
        (["yes"] * 7, "none of"),
        (["holds"], "found 1"),
        (3, "cannot be read"),
    ],
)
def test_each_mistake_about_verdicts_is_named(answer, words):
    reply = reply_to("05d", answer)
    assert reply.ok is False and words in reply.message


# --- 05e ---------------------------------------------------------------------------


def lowest(run, key):
    return min((e for e in run if not math.isnan(e[key])), key=lambda e: e[key])


def mean_over(choose):
    return lambda runs: np.mean([choose(run) for run in runs])


def report(runs):
    return mean_over(lambda run: lowest(run, "dev")["test"])(runs)


@pytest.mark.parametrize("form", [float, str, torch.tensor, np.float64, lambda v: [v]])
def test_the_reported_loss_is_right_in_every_form(form):
    assert reply_to("05e", lambda runs: form(report(runs))).ok


@pytest.mark.parametrize(
    "mistake, words",
    [
        (mean_over(lambda run: lowest(run, "test")["test"]), "took part in the choice"),
        (lambda runs: min(e["test"] for run in runs for e in run), "took part in the choice"),
        (mean_over(lambda run: run[-1]["test"]), "last point"),
        (mean_over(lambda run: lowest(run, "train")["test"]), "by the training loss"),
        (
            lambda runs: min((lowest(run, "dev") for run in runs), key=lambda e: e["dev"])["test"],
            "best run alone",
        ),
        (lambda runs: min(lowest(run, "dev")["test"] for run in runs), "best run alone"),
        (mean_over(lambda run: lowest(run, "dev")["dev"]), "return the dev loss"),
        (mean_over(lambda run: np.mean([e["test"] for e in run])), "all points"),
        (lambda runs: sum(lowest(run, "dev")["test"] for run in runs), "Divide by their number"),
        (mean_over(lambda run: run[int(np.argmin([e["dev"] for e in run]))]["test"]), "NaN won"),
        (lambda runs: report([run for run in runs if not math.isnan(run[1]["dev"])]), "dropped the run"),
        (lambda runs: 1.0, "is right"),
        (lambda runs: runs["dev"], "stopped with TypeError"),
        (3.4, "function is asked"),
    ],
)
def test_each_mistake_about_the_reported_loss_is_named(mistake, words):
    reply = reply_to("05e", mistake)
    assert reply.ok is False and words in reply.message


# --- 05f ---------------------------------------------------------------------------


def forgotten(base, tuned, reduction="none", dim=-1):
    each = kl_div(
        log_softmax(tuned, dim), softmax(base, dim), reduction=reduction
    )  # (windows, tokens, vocabulary)
    return each.sum(-1).mean() if reduction == "none" else each


@pytest.mark.parametrize(
    "form", [lambda v: v, float, lambda v: str(v.item()), lambda v: [v.item()], lambda v: v.numpy()]
)
def test_forgetting_is_right_in_every_form(form):
    assert reply_to("05f", lambda base, tuned: form(forgotten(base, tuned))).ok


def from_softmax(base, tuned):
    p, q = softmax(base, -1), softmax(tuned, -1)
    return (p * (p.log() - q.log())).sum(-1).mean()


@pytest.mark.filterwarnings(
    "ignore:reduction:UserWarning"
)  # PyTorch warns of the mistake that is tested here
@pytest.mark.parametrize(
    "mistake, words",
    [
        (lambda b, t: forgotten(t, b), "KL(tuned || base)"),
        (lambda b, t: -forgotten(b, t), "sign"),
        (lambda b, t: forgotten(b, t, "mean"), "mean over the vocabulary"),
        (lambda b, t: forgotten(b, t, "sum"), "added up all tokens"),
        (lambda b, t: forgotten(b, t, "batchmean"), "by the windows"),
        (lambda b, t: forgotten(b, t) / math.log(2), "bits"),
        (lambda b, t: kl_div(log_softmax(t, 1), softmax(b, 1), reduction="none").sum(1).mean(), "dim=-1"),
        (lambda b, t: -(softmax(b, -1) * log_softmax(t, -1)).sum(-1).mean(), "cross-entropy"),
        (lambda b, t: (b - t).square().mean(), "compared logits"),
        (lambda b, t: kl_div(t, b, reduction="batchmean"), "log-probabilities first"),
        (from_softmax, "gives NaN"),
        (lambda b, t: b.mean(), "is right"),
        (lambda b, t: b.nothing, "stopped with AttributeError"),
        (0.1, "function is asked for"),
    ],
)
def test_each_mistake_about_forgetting_is_named(mistake, words):
    reply = reply_to("05f", mistake)
    assert reply.ok is False and words in reply.message
