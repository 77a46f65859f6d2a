"""Notebook 02's checks: right answers in every form, and a name for each usual mistake."""

import pytest
import torch

from helpers.checks import reply_to
from helpers.checks_02 import DIAGNOSES, MISREAD
from helpers.museum import EXHIBITS

RIGHT_B = ["nonzero", "nonzero", "absent", "nonzero", "absent", "nonzero"]


@pytest.mark.parametrize("name", ["02a", "02b", "02c"])
def test_an_untouched_stub_is_not_attempted(name):
    reply = reply_to(name, ...)
    assert reply.ok is None and "not attempted yet" in reply.message


# --- 02a ---------------------------------------------------------------------------


@pytest.mark.parametrize("answer", [
    "ECBABADD", "ecbabadd", "E C B A B A D D", "E, C, B, A, B, A, D, D", list("ECBABADD"), tuple("ecbabadd"),
    dict(enumerate("ECBABADD", start=1)), {e.name: DIAGNOSES[e.number - 1] for e in EXHIBITS}], ids=repr)
def test_the_right_letters_pass_in_every_form(answer):
    assert reply_to("02a", answer).ok is True


@pytest.mark.parametrize(("number", "letter"), list(MISREAD))
def test_a_misread_exhibit_is_named_with_its_reason(number, letter):
    answer = DIAGNOSES[:number - 1] + letter + DIAGNOSES[number:]
    reply = reply_to("02a", answer)
    assert reply.ok is False
    assert f"7 of 8 are right. Exhibit {number}, {letter}: {MISREAD[number, letter]}" == reply.message


def test_a_kept_weight_without_clone_is_explained():
    assert "without clone()" in reply_to("02a", "A" + DIAGNOSES[1:]).message


def test_movement_without_flags_is_explained():
    assert "movement alone" in reply_to("02a", DIAGNOSES[:6] + "AD").message


def test_another_wrong_letter_points_at_the_evidence():
    reply = reply_to("02a", DIAGNOSES[:7] + "C")
    assert reply.ok is False and "does not fit the evidence" in reply.message


@pytest.mark.parametrize(("answer", "what"), [
    ("ECBABAD", "7 letters"), ("ECBABADX", "'X' is no letter"), ({9: "A"}, "no exhibit 9"), (5, "cannot be read")])
def test_an_answer_of_another_form_is_explained(answer, what):
    reply = reply_to("02a", answer)
    assert reply.ok is False and what in reply.message


# --- 02b ---------------------------------------------------------------------------


@pytest.mark.parametrize("answer", [
    RIGHT_B, tuple(RIGHT_B), [w.upper() for w in RIGHT_B], dict(enumerate(RIGHT_B)), [1, 0.5, None, 2, None, 3],
    ["non-zero", "nonzero", "None", "nonzero", "none", "nonzero"],
    [torch.ones(2, 2), torch.ones(2), None, torch.ones(1), None, torch.tensor(0.1)]], ids=lambda a: str(a)[:40])
def test_the_right_states_pass_in_every_form(answer):
    assert reply_to("02b", answer).ok is True


@pytest.mark.parametrize(("answer", "what"), [
    (["nonzero", "nonzero", "zero", "nonzero", "zero", "nonzero"], "None for 0"),
    (["nonzero", "nonzero", 0, "nonzero", torch.zeros(3), "nonzero"], "None for 0"),
    (["absent", "absent", "absent", "nonzero", "absent", "nonzero"], "stops the gradient"),
    (["nonzero", "absent", "absent", "nonzero", "absent", "nonzero"], "stops the gradient"),
    (["zero", "nonzero", "absent", "nonzero", "absent", "nonzero"], "stops the gradient"),
    (["nonzero"] * 6, "exists in mathematics"),
    (["nonzero", "nonzero", "absent", "absent", "absent", "nonzero"], "h.0 mlp.c_fc is no attention weight"),
    (["nonzero", "nonzero", "absent", "nonzero", "absent", "zero"], "ln_f is no attention weight"),
    (["nonzero"] * 5, "6 words are asked for, found 5"),
    (["yes"] * 6, "none of 'absent', 'zero', 'nonzero'")], ids=lambda a: str(a)[:40])
def test_a_wrong_state_names_the_mistake(answer, what):
    reply = reply_to("02b", answer)
    assert reply.ok is False and what in reply.message


# --- 02c ---------------------------------------------------------------------------


@pytest.mark.parametrize("answer", [1.9406, 1.940598, torch.tensor(1.9406), [1.9406], "1.9406"], ids=repr)
def test_the_decayed_weight_passes_in_every_form(answer):
    assert reply_to("02c", answer).ok is True


@pytest.mark.parametrize(("answer", "what"), [
    (2, "no gradient, no movement"), (torch.tensor(2.0), "no gradient, no movement"), (1.94, "first* value"),
    (1.458, "forgot the rate"), (1.98, "after one step"), (1.7, "only decay acts"), (0.5, "factor of one step")])
def test_a_wrong_weight_names_the_mistake(answer, what):
    reply = reply_to("02c", answer)
    assert reply.ok is False and what in reply.message


def test_the_answer_is_what_adamw_does():
    weight = torch.nn.Parameter(torch.tensor(2.0))
    optimizer = torch.optim.AdamW([weight], lr=0.1, weight_decay=0.1)
    for _ in range(3):
        weight.grad = torch.zeros(())
        optimizer.step()
    assert reply_to("02c", weight.item()).ok is True
