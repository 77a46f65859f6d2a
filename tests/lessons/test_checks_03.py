"""The exercises of 03_parameter_ratios: right answers in every form, and each mistake by its message."""

import copy
import functools
import itertools

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from helpers.costs.step_cost import MIB, budget
from helpers.freezing.plans import COURSE_PLANS
from helpers.lessons.checks import reply_to
from helpers.lessons.exercises.nb03 import (
    BATCHES,
    CHAINS,
    COUNTS,
    FALL,
    FREE,
    MAIN,
    PEAKS,
    SIZES,
    gpt_neo_counts,
    step_share,
)
from helpers.models.loading import build_on_meta, gpt_neo_125m_config, mini_config
from helpers.models.roles import anatomy


@pytest.mark.parametrize("name", ["03a", "03b", "03c", "03d", "03e", "03f"])
def test_an_untouched_stub_is_not_attempted_yet(name):
    assert reply_to(name, ...).ok is None


def test_the_counts_in_the_checks_are_those_of_the_config():
    parts = anatomy(build_on_meta(gpt_neo_125m_config()))
    assert parts.counts() == COUNTS
    assert COURSE_PLANS["attention+embeddings"].ledger(parts).n_trainable == MAIN


@pytest.mark.parametrize(
    "answer", [56_707_584, 56_707_584.0, "56,707,584", torch.tensor(56_707_584), [56_707_584]]
)
def test_the_trainable_count_is_right_in_every_form(answer):
    assert reply_to("03a", answer).ok


@pytest.mark.parametrize(
    "answer, words",
    [
        (95_304_960, "tied"),
        (56_669_184, "38,400"),
        (56_706_048, "25, not 24"),
        (56_688_384, "scale and a shift"),
        (56_661_504, "biases of the MLP"),
        (56_623_104, "biases and the LayerNorms"),
        (4_725_632, "12 blocks"),
        (58_280_448, "wpe"),
        (68_491_008, "freezes"),
        (28_359_168, "opposite"),
        (125_198_592, "whole model"),
        (163_795_968, "counted twice"),
        (4_722_432, "one block"),
        (4_723_968, "one block"),
        (4_725_504, "one block"),
        (4_727_040, "one block"),
        (56.7, "in millions"),
        (56.71, "in millions"),
        (56.707584, "in millions"),
        ("56.7", "in millions"),
        (57, "in millions"),
        (56_700_000, "near. Give all the digits"),
        (57e6, "near. Give all the digits"),
        (56_689_152, "a block has two"),
        (56_687_616, "one LayerNorm a block"),
        (1, "shapes"),
        ("many", "cannot be read"),
    ],
)
def test_each_mistake_about_the_count_is_named(answer, words):
    reply = reply_to("03a", answer)
    assert reply.ok is False and words in reply.message


@pytest.mark.parametrize(
    "answer",
    [
        ["attention", "token_embedding"],
        ("token_embedding", "attention"),
        {"attention", "token_embedding"},
        "attention + token_embedding",
        "attention, wte",
        "attention and wte",
    ],
)
def test_the_roles_are_right_in_every_form(answer):
    assert reply_to("03b", answer).ok


def test_no_other_choice_of_whole_roles_is_nearer():
    choices = [c for size in range(1, 6) for c in itertools.combinations(COUNTS, size)]
    nearest = min(choices, key=lambda c: abs(sum(COUNTS[r] for r in c) - 65_000_000))
    assert [c for c in choices if reply_to("03b", c).ok] == [nearest]


@pytest.mark.parametrize(
    "answer, words",
    [
        (["attention", "mlp"], "head twice"),
        (["attention", "mlp", "norm"], "head twice"),
        (["attention", "token_embedding", "norm"], "further away"),
        (["mlp", "norm"], "describes"),
        (["mlp", "norm", "position_embedding"], "frozen"),
        (["mlp"], "all 31"),
        (["attention", "head"], "the roles are"),
        ([], "the roles are"),
        (66_918_144, "right sum"),
        (65_000_000, "names of the roles"),
    ],
)
def test_each_mistake_about_the_roles_is_named(answer, words):
    reply = reply_to("03b", answer)
    assert reply.ok is False and words in reply.message


@pytest.mark.parametrize("answer", [9, 9.1, -9, "9", torch.tensor(9.09), [9.1], 5.8, 7])
def test_the_fall_of_the_peak_is_right_in_every_form(answer):
    assert reply_to("03c", answer).ok


@pytest.mark.parametrize(
    "answer, words",
    [
        (55, "multiplied everything"),
        (-0.547, "multiplied everything"),
        (0.09, "right, as a share"),
        (-0.058, "a number of percent is asked for"),
        (45.3, "R itself"),
        (41, "left out"),
        (11.5, "gradients"),
        (27.5, "article"),
        (21.5, "engine"),
        (91, "remains"),
        (70, "not near"),
        (0, "not near"),
    ],
)
def test_each_mistake_about_the_peak_is_named(answer, words):
    reply = reply_to("03c", answer)
    assert reply.ok is False and words in reply.message


@functools.cache
def stock_peak(plan, batch):
    """MiB at the peak of a step in the stock setting."""
    cost = budget(gpt_neo_125m_config(), COURSE_PLANS[plan], batch, 512, attention="eager", loss="whole")
    return cost.peak_bytes / MIB


def test_the_fall_that_the_check_states_is_the_budgets():
    fall = 100 * (1 - stock_peak("attention+embeddings", 8) / stock_peak("full", 8))
    assert fall == pytest.approx(FALL, abs=0.05)


# --- 03d ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [
        [13, 14],
        (13.0, 14.0),
        torch.tensor([13, 14]),
        np.array([13, 14]),
        {"full": 13, "main": 14},
        ["13", "14"],
    ],
)
def test_the_largest_batches_are_right_in_every_form(answer):
    assert reply_to("03d", answer).ok


@pytest.mark.parametrize(
    "answer, words",
    [
        ([5, 7], "peak of one window"),
        ([12, 13], "an eighth"),
        ([12, 13], "forgot the first window"),
        ([14, 15], "rounded up"),
        ([14, 15], "counted the first window twice"),
        ([13, 28], "divided by R"),
        ([14, 13], "order"),
        ([13.24, 14.36], "whole number"),
        ([20, 30], "one more window cost"),
        (13, "two numbers"),
        ([1, 2, 3], "two numbers"),
    ],
)
def test_each_mistake_about_the_batch_is_named(answer, words):
    reply = reply_to("03d", answer)
    assert reply.ok is False and words in reply.message


def test_the_peaks_are_the_budgets_and_the_largest_batches_lie_on_their_lines():
    for plan, name, largest in zip(("full", "attention+embeddings"), PEAKS, BATCHES, strict=True):
        peaks = {batch: stock_peak(plan, batch) for batch in (1, 8)}
        assert {batch: round(peak, 1) for batch, peak in peaks.items()} == PEAKS[name]
        window = (peaks[8] - peaks[1]) / 7
        assert peaks[1] + (largest - 1) * window <= FREE < peaks[1] + largest * window


# --- 03e ---------------------------------------------------------------------------


def test_the_share_of_a_chain_is_what_pytorchs_counter_says():
    def flops(trains):
        chain = torch.nn.Sequential(*(torch.nn.Linear(8, 8, bias=False) for _ in trains))
        for layer, on in zip(chain, trains, strict=True):
            layer.requires_grad_(on)
        with FlopCounterMode(display=False) as counter:
            chain(torch.ones(4, 8)).sum().backward()
        return counter.get_total_flops()

    for trains in CHAINS:
        assert step_share(trains) == pytest.approx(flops(trains) / flops([True] * len(trains)))


def share(trains, first=1):
    """The solution; ``first`` 0 gives the lowest layer that trains an input gradient as well."""

    def price(which):
        lowest = which.index(True) if True in which else len(which)
        return len(which) + sum(which) + max(0, len(which) - lowest - first)

    return price(trains) / price([True] * len(trains))


@pytest.mark.parametrize("form", [float, str, torch.tensor, np.float64, lambda v: [v]])
def test_the_share_of_a_chain_is_right_in_every_form(form):
    assert reply_to("03e", lambda trains: form(share(trains))).ok


def terms_of_trainable(trains):
    return len(trains) + 2 * sum(trains)


@pytest.mark.parametrize(
    "mistake, words",
    [
        (lambda t: sum(t) / len(t), "trainable share R"),
        (
            lambda t: terms_of_trainable(t) / terms_of_trainable([1] * len(t)),
            "frozen layer stop the gradient",
        ),
        (
            lambda t: (2 * len(t) - 1 + sum(t)) / (3 * len(t) - 1),
            "always count the backward pass to the input",
        ),
        (lambda t: (2 * len(t) + sum(t)) / (3 * len(t)), "always count the backward pass to the input"),
        (lambda t: share(t, first=0), "almost"),
        (lambda t: share(t[::-1]), "wrong end"),
        (lambda t: share(t) * (3 * len(t) - 1), "number of terms"),
        (lambda t: (len(t) + sum(t)) / (2 * len(t)), "second term is missing"),
        (lambda t: (share(t) * (3 * len(t) - 1) - len(t)) / (2 * len(t) - 1), "forward pass is missing"),
        (lambda t: share(t) if any(t) else 0, "everything frozen"),
        (lambda t: t.index(True) and share(t) or share(t), "stopped with ValueError"),
        (lambda t: 0.5, "Work this case out"),
        (lambda t: None, "cannot be read"),
        (0.5, "function is asked for"),
    ],
)
def test_each_mistake_about_a_chain_is_named(mistake, words):
    reply = reply_to("03e", mistake)
    assert reply.ok is False and words in reply.message


# --- 03f ---------------------------------------------------------------------------


def counts(width, n_layers, inner, vocabulary, positions, tied):
    trainable = n_layers * (2 * width * inner + inner + width) + (2 * n_layers + 1) * 2 * width
    head = 0 if tied else width * vocabulary
    frozen = n_layers * (4 * width * width + width) + (vocabulary + positions) * width
    return trainable + head, trainable + head + frozen


def test_the_counts_for_any_size_are_those_of_anatomy():
    for width, n_layers, inner, vocabulary, positions, tied in SIZES[1:]:
        config = copy.deepcopy(mini_config())
        config.hidden_size, config.num_layers, config.intermediate_size = width, n_layers, inner
        config.num_heads, config.vocab_size, config.max_position_embeddings = 4, vocabulary, positions
        config.attention_layers = ["global"] * n_layers
        config.attention_types = [[["global"], n_layers]]
        config.tie_word_embeddings = tied
        parts = anatomy(build_on_meta(config))
        found = COURSE_PLANS["attention+embeddings"].ledger(parts).n_trainable, parts.n_parameters
        assert found == gpt_neo_counts(width, n_layers, inner, vocabulary, positions, tied)
    assert gpt_neo_counts(*SIZES[0]) == (MAIN, sum(COUNTS.values()))


@pytest.mark.parametrize("form", [tuple, list, torch.tensor, np.array, lambda pair: [f"{n:,}" for n in pair]])
def test_the_counts_for_any_size_are_right_in_every_form(form):
    assert reply_to("03f", lambda *sizes: form(counts(*sizes))).ok


def untied(*sizes):
    return counts(*sizes[:-1], False)


@pytest.mark.parametrize(
    "mistake, words",
    [
        (lambda *s: counts(*s[:-1], True), "forgot the head"),
        (lambda *s: (counts(*s[:-1], True)[0], counts(*s)[1]), "froze the untied head"),
        (untied, "one tensor, counted once"),
        (lambda *s: (counts(*s)[0], untied(*s)[1]), "one tensor, counted once"),
        (lambda *s: counts(s[0], s[1], 4 * s[0], *s[3:]), "4 x width"),
        (lambda *s: tuple(n - 2 * s[0] for n in counts(*s)), "LayerNorm is missing"),
        (lambda *s: (counts(*s)[0], counts(*s)[1] + 3 * s[0] * s[1]), "q, k and v a bias"),
        (lambda *s: counts(*s)[::-1], "trainable first"),
        (lambda *s: (counts(*s)[1] - counts(*s)[0], counts(*s)[1]), "what the plan freezes"),
        (lambda *s: (56_707_584, 125_198_592), "whatever the sizes"),
        (lambda *s: counts(*s)[0], "two numbers"),
        (lambda *s: counts(*s)[0] / counts(*s)[1], "this is R"),
        (lambda *s: (1, 2), "is right"),
        (counts(*SIZES[0]), "function is asked for"),
    ],
)
def test_each_mistake_about_any_size_is_named(mistake, words):
    reply = reply_to("03f", mistake)
    assert reply.ok is False and words in reply.message
