"""The exercises of 03_parameter_ratios: right answers in every form, and each mistake by its message."""

import itertools

import pytest
import torch

from helpers.anatomy import anatomy
from helpers.budget import budget
from helpers.checks import reply_to
from helpers.checks_03 import COUNTS, FALL, MAIN
from helpers.freezing import COURSE_PLANS
from helpers.models import build_on_meta, gpt_neo_125m_config


@pytest.mark.parametrize("name", ["03a", "03b", "03c"])
def test_an_untouched_stub_is_not_attempted_yet(name):
    assert reply_to(name, ...).ok is None


def test_the_counts_in_the_checks_are_those_of_the_config():
    parts = anatomy(build_on_meta(gpt_neo_125m_config()))
    assert parts.counts() == COUNTS
    assert COURSE_PLANS["attention+embeddings"].ledger(parts).n_trainable == MAIN


@pytest.mark.parametrize("answer", [56_707_584, 56_707_584.0, "56,707,584", torch.tensor(56_707_584), [56_707_584]])
def test_the_trainable_count_is_right_in_every_form(answer):
    assert reply_to("03a", answer).ok


@pytest.mark.parametrize("answer, words", [
    (95_304_960, "tied"), (56_669_184, "38,400"), (56_706_048, "25, not 24"), (56_688_384, "scale and a shift"),
    (56_661_504, "biases of the MLP"), (56_623_104, "biases and the LayerNorms"), (4_725_632, "12 blocks"),
    (58_280_448, "wpe"), (68_491_008, "freezes"), (28_359_168, "opposite"), (125_198_592, "whole model"),
    (163_795_968, "counted twice"), (1, "shapes"), ("many", "cannot be read")])
def test_each_mistake_about_the_count_is_named(answer, words):
    reply = reply_to("03a", answer)
    assert reply.ok is False and words in reply.message


@pytest.mark.parametrize("answer", [
    ["attention", "token_embedding"], ("token_embedding", "attention"), {"attention", "token_embedding"},
    "attention + token_embedding", "attention, wte", "attention and wte"])
def test_the_roles_are_right_in_every_form(answer):
    assert reply_to("03b", answer).ok


def test_no_other_choice_of_whole_roles_is_nearer():
    choices = [c for size in range(1, 6) for c in itertools.combinations(COUNTS, size)]
    nearest = min(choices, key=lambda c: abs(sum(COUNTS[r] for r in c) - 65_000_000))
    assert [c for c in choices if reply_to("03b", c).ok] == [nearest]


@pytest.mark.parametrize("answer, words", [
    (["attention", "mlp"], "head twice"), (["attention", "mlp", "norm"], "head twice"),
    (["attention", "token_embedding", "norm"], "further away"), (["mlp", "norm"], "describes"),
    (["mlp", "norm", "position_embedding"], "frozen"), (["mlp"], "all 31"), (["attention", "head"], "the roles are"),
    ([], "the roles are"), (66_918_144, "right sum"), (65_000_000, "names of the roles")])
def test_each_mistake_about_the_roles_is_named(answer, words):
    reply = reply_to("03b", answer)
    assert reply.ok is False and words in reply.message


@pytest.mark.parametrize("answer", [9, 9.1, -9, 0.09, "9", torch.tensor(9.09), [9.1], 5.8, -0.058, 7])
def test_the_fall_of_the_peak_is_right_in_every_form(answer):
    assert reply_to("03c", answer).ok


@pytest.mark.parametrize("answer, words", [
    (55, "multiplied everything"), (-0.547, "multiplied everything"), (45.3, "R itself"), (41, "left out"),
    (11.5, "gradients"), (27.5, "article"), (21.5, "engine"), (91, "remains"), (70, "not near"), (0, "not near")])
def test_each_mistake_about_the_peak_is_named(answer, words):
    reply = reply_to("03c", answer)
    assert reply.ok is False and words in reply.message


def test_the_fall_that_the_check_states_is_the_budgets():
    costs = [budget(gpt_neo_125m_config(), COURSE_PLANS[name], 8, 512, attention="eager", loss="whole")
             for name in ("full", "attention+embeddings")]
    fall = 100 * (1 - costs[1].peak_bytes / costs[0].peak_bytes)
    assert fall == pytest.approx(FALL, abs=0.05)
