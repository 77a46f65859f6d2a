"""The exercises of 07_lora: right answers in every form, and each mistake by its message."""

import math

import pytest
import torch

from helpers.freezing import lora
from helpers.lessons.checks import reply_to
from helpers.lessons.exercises.nb07 import N_IN, N_OUT, RANK, SWEEP
from helpers.measuring.curves import width
from helpers.models.loading import gpt_neo_125m_config


@pytest.mark.parametrize("name", ["07a", "07b", "07c", "07d"])
def test_an_untouched_stub_is_not_attempted_yet(name):
    assert reply_to(name, ...).ok is None


def said(name, answer):
    reply = reply_to(name, answer)
    assert reply.ok is False, reply.message
    return reply.message


# --- 07a ---------------------------------------------------------------------------


def factors(a, b):
    return lambda rank, n_in, n_out: (a(rank, n_in), b(n_out, rank))


@pytest.mark.parametrize(
    "answer",
    [
        factors(torch.randn, torch.zeros),
        factors(torch.rand, torch.zeros),
        factors(torch.zeros, torch.randn),
        lambda rank, n_in, n_out: [torch.nn.Parameter(torch.randn(rank, n_in)), torch.zeros(n_out, rank)],
    ],
)
def test_one_random_and_one_zero_is_right(answer):
    assert reply_to("07a", answer).ok


@pytest.mark.parametrize(
    "answer, words",
    [
        (factors(torch.zeros, torch.zeros), "no gradient, ever"),
        (factors(torch.randn, torch.randn), "jumps before step 1"),
        (factors(torch.ones, torch.zeros), "rank 1, not 3"),
        (factors(torch.zeros, torch.ones), "columns of B"),
        (lambda r, i, o: (torch.randn(i, r), torch.zeros(r, o)), "turned round"),
        (lambda r, i, o: (torch.randn(r, o), torch.zeros(i, r)), "B (n_out, rank)"),
        (lambda r, i, o: torch.randn(r, i), "two tensors"),
        (torch.zeros(2, 2), "function is asked for"),
        (lambda rank: None, "stopped with TypeError"),
    ],
)
def test_each_mistake_about_the_start_is_named(answer, words):
    assert words in said("07a", answer)


# --- 07b ---------------------------------------------------------------------------


@pytest.mark.parametrize("answer", [8, 8.0, "8", torch.tensor(8), [8]])
def test_the_rank_of_equal_size_is_right_in_every_form(answer):
    assert reply_to("07b", answer).ok


def test_the_check_agrees_with_the_config():
    config = gpt_neo_125m_config()
    attention = lora.n_adapter_parameters(config, "attention", 10)
    assert attention == 737_280 == 8 * lora.n_adapter_parameters(config, "mlp", 1)


@pytest.mark.parametrize(
    "answer, words",
    [
        (10, "equal rank"),
        (12.5, "turned round"),
        (5, "matrices themselves"),
        (4, "two matrices and attention four"),
        (16, "has two"),
        (2, "has four"),
        (737_280, "Which rank"),
        (7, "Count r"),
    ],
)
def test_each_mistake_about_the_rank_is_named(answer, words):
    assert words in said("07b", answer)


# --- 07c ---------------------------------------------------------------------------


@pytest.mark.parametrize("answer", [0.477, 0.5, "0.48", math.log10(3), torch.tensor(0.477)])
def test_the_width_is_right_in_every_form(answer):
    assert reply_to("07c", answer).ok


def test_the_check_agrees_with_the_helper():
    assert reply_to("07c", width(SWEEP).decades).ok


@pytest.mark.parametrize(
    "answer, words",
    [
        (2, "counts the rates"),
        (0.002, "difference"),
        (3, "ratio"),
        (1.0986, "natural"),
        (1.0, "1e-2 is out"),
        (1.477, "1e-4 is out"),
        (2.477, "1e-5"),
        (3.477, "whole grid"),
        (7, "log10"),
    ],
)
def test_each_mistake_about_the_width_is_named(answer, words):
    assert words in said("07c", answer)


# --- 07d ---------------------------------------------------------------------------


def merged(W, A, B, alpha):
    return W + alpha / len(A) * B @ A


def timed(run, clock):
    began = clock()
    run()
    return clock() - began


def fair(a, b, n_pairs, clock):
    a(), b()
    pairs = []
    for i in range(n_pairs):
        if i % 2:
            second, first = timed(b, clock), timed(a, clock)
            pairs.append((first, second))
        else:
            pairs.append((timed(a, clock), timed(b, clock)))
    return pairs


def cold(a, b, n_pairs, clock):
    return [(timed(a, clock), timed(b, clock)) for _ in range(n_pairs)]


def same_order(a, b, n_pairs, clock):
    a(), b()
    return cold(a, b, n_pairs, clock)


def in_blocks(a, b, n_pairs, clock):
    a(), b()
    first = [timed(a, clock) for _ in range(n_pairs)]
    return list(zip(first, [timed(b, clock) for _ in range(n_pairs)], strict=True))


def as_run(a, b, n_pairs, clock):
    """Alternates, and gives each pair in the order in which it was measured."""
    a(), b()
    return [
        (timed(a, clock), timed(b, clock)) if i % 2 == 0 else (timed(b, clock), timed(a, clock))
        for i in range(n_pairs)
    ]


def swapped(a, b, n_pairs, clock):
    return [(y, x) for x, y in fair(a, b, n_pairs, clock)]


def whole(a, b, n_pairs, clock):
    """Forgets to stop the clock between the two."""
    pairs = fair(a, b, n_pairs, clock)
    return [(x, x + y) for x, y in pairs]


def test_a_merge_and_a_fair_clock_are_right():
    assert reply_to("07d", (merged, fair)).ok
    assert reply_to("07d", [merged, fair]).ok


@pytest.mark.parametrize(
    "merge, words",
    [
        (lambda W, A, B, alpha: W + B @ A, "alpha / r is forgotten"),
        (lambda W, A, B, alpha: W + alpha * B @ A, "divide"),
        (lambda W, A, B, alpha: W + len(A) / alpha * B @ A, "turned round"),
        (lambda W, A, B, alpha: W + alpha / N_IN * B @ A, "width"),
        (lambda W, A, B, alpha: W, "W itself"),
        (lambda W, A, B, alpha: alpha / RANK * B @ A, "the change alone"),
        (lambda W, A, B, alpha: W.add_(alpha / RANK * B @ A), "changed the W"),
        (lambda W, A, B, alpha: W + A @ B, "stopped with RuntimeError"),
        (lambda W, A, B, alpha: (B @ A).T, f"({N_OUT}, {N_IN})"),
        (lambda W, A, B, alpha: W - alpha / RANK * B @ A, "the change is added"),
        (lambda W, A, B, alpha: W + 10 * B @ A, "another output"),
    ],
)
def test_each_mistake_about_merging_is_named(merge, words):
    assert words in said("07d", (merge, fair))


@pytest.mark.parametrize(
    "compare, words",
    [
        (cold, "warming up"),
        (in_blocks, "Run them in pairs"),
        (same_order, "Let the order alternate"),
        (as_run, "also where b ran first"),
        (swapped, "turned round"),
        (whole, "inside the measured time"),
        (lambda a, b, n, clock: [(1.0, 1.0)] * n, "never calls the clock"),
        (lambda a, b, n, clock: [(1.0, 1.0 + 0 * clock())] * n, "twice as long"),
        (lambda a, b, n, clock: [], "n_pairs pairs"),
        (lambda a, b, n, clock: [(0.0, 1.0)] * n, "not above 0"),
        (lambda a, b, n, clock: [(1.0, 2.0, 3.0)] * n, "should be a pair"),
        (lambda a, b, n, clock: [1.0] * n, "should be a pair"),
    ],
)
def test_each_mistake_about_timing_is_named(compare, words):
    assert words in said("07d", (merged, compare))


@pytest.mark.parametrize("answer", [merged, (merged,), (merged, 3), "both"])
def test_two_functions_are_asked_for(answer):
    assert "two functions" in said("07d", answer)


def test_07a_each_factor_may_hold_a_part():
    def shared(rank, n_in, n_out):
        A, B = torch.randn(rank, n_in), torch.randn(n_out, rank)
        A[0], B[:, 1:] = 0, 0
        return A, B

    assert reply_to("07a", shared).ok
