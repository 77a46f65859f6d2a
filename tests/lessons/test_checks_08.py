"""Notebook 08's checks: right answers in every form, and a name for each usual mistake."""

import numpy as np
import pytest
import torch

from helpers.lessons.checks import reply_to
from support.said import assert_wrong


@pytest.mark.parametrize("name", ["08a", "08b", "08c", "08d"])
def test_an_untouched_stub_is_not_attempted(name):
    reply = reply_to(name, ...)
    assert reply.ok is None and "not attempted yet" in reply.message


# --- 08a ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [
        ["norms", "1 block"],
        {"1 block", "norms"},
        ("norms", "1 block"),
        "norms, 1 block",
        ["only-norms", "1 Block"],
        {"norms": 1, "1 block": 2},
    ],
)
def test_the_two_plans_pass_in_every_form(answer):
    assert reply_to("08a", answer).ok is True


@pytest.mark.parametrize(
    ("answer", "what"),
    [
        ([], "with 4 bytes"),
        (["norms", "1 block", "2 blocks"], "left out the activations"),
        (["norms", "1 block", "2 blocks", "4 blocks"], "two moments"),
        (["norms", "1 block", "2 blocks", "4 blocks", "mlp-out"], "weights only"),
        (["norms", "1 block", "2 blocks", "4 blocks", "mlp-out", "full"], "nothing else"),
        (["norms"], "too few: look again at 1 block"),
        (["norms", "1 block", "full"], "too many: look again at full"),
        (["lora"], "the plans are called"),
        (3, "cannot be read"),
    ],
)
def test_what_was_not_counted_is_named(answer, what):
    assert_wrong("08a", answer, what)


# --- 08b ---------------------------------------------------------------------------


def share(n_rows, process, n):
    return list(range(process, n_rows, n))


def scaled(nats, n_here, n_all, n):
    return nats * n / n_all


@pytest.mark.parametrize(
    "answer",
    [
        (share, scaled),
        [share, scaled],
        (lambda r, p, n: np.array_split(np.arange(r), n)[p], scaled),
        (share, lambda *a: torch.as_tensor(scaled(*a))),
    ],
)
def test_a_right_pair_passes_in_every_form(answer):
    assert reply_to("08b", answer).ok is True


@pytest.mark.parametrize(
    ("answer", "what"),
    [
        ((lambda r, p, n: list(range(r)), scaled), "A row is read twice"),
        ((lambda r, p, n: list(range(r // n)), scaled), "A row is read twice"),
        ((lambda r, p, n: list(range(p * (r // n), (p + 1) * (r // n))), scaled), "A row is left out"),
        ((lambda r, p, n: list(range(r)) if p == 0 else [], scaled), "One process would wait"),
        ((share, lambda nats, here, everyone, n: nats / here), "counts six times as much"),
        ((share, lambda nats, here, everyone, n: nats / everyone), "takes the *mean* over processes"),
        (
            (share, lambda nats, here, everyone, n: nats * n / here),
            "divided by your own tokens and multiplied",
        ),
        ((share, lambda nats, here, everyone, n: nats), "did not divide by the tokens"),
        ((share, lambda nats, here, everyone, n: nats * n), "You multiplied by the number of processes"),
        ((share, lambda *a: 1.0), "What must each return"),
        ((share, 3.0), "a function is asked for"),
        (share, "two functions are asked for"),
        ((share, lambda *a: a[9]), "stopped with IndexError"),
    ],
)
def test_a_usual_mistake_with_two_processes_is_named(answer, what):
    assert_wrong("08b", answer, what)


# --- 08c ---------------------------------------------------------------------------


def unfreeze(optimizer, new):
    for p in new:
        p.requires_grad_(True)
    optimizer.add_param_group({"params": new})


def and_return(optimizer, new):
    unfreeze(optimizer, new)
    return optimizer


def flags_only(optimizer, new):
    for p in new:
        p.requires_grad_(True)


def group_only(optimizer, new):
    optimizer.add_param_group({"params": new})


def rebuilt(optimizer, new):
    flags_only(optimizer, new)
    old = [p for group in optimizer.param_groups for p in group["params"]]
    return torch.optim.AdamW([*old, *new], lr=0.05)


def new_alone(optimizer, new):
    flags_only(optimizer, new)
    return torch.optim.AdamW(new, lr=0.05)


def reset(optimizer, new):
    unfreeze(optimizer, new)
    optimizer.state.clear()


def no_rate(optimizer, new):
    flags_only(optimizer, new)
    optimizer.add_param_group({"params": new, "lr": 0.0, "weight_decay": 0.0})


def twice(optimizer, new):
    unfreeze(optimizer, new)
    optimizer.add_param_group({"params": new})


def zeroed(optimizer, new):
    unfreeze(optimizer, new)
    torch.nn.init.zeros_(new[0])


@pytest.mark.parametrize("answer", [unfreeze, and_return])
def test_a_new_group_passes(answer):
    assert reply_to("08c", answer).ok is True


@pytest.mark.parametrize(
    ("answer", "what"),
    [
        (lambda optimizer, new: None, "still have requires_grad False"),
        (group_only, "still have requires_grad False"),
        (flags_only, "does not hold them"),
        (rebuilt, "starts without them"),
        (new_alone, "no longer holds"),
        (reset, "starts without them"),
        (no_rate, "learning rate 0"),
        (twice, "stopped with ValueError"),
        (zeroed, "changed weights"),
        (3, "a function is asked for"),
    ],
)
def test_a_usual_mistake_with_the_optimizer_is_named(answer, what):
    assert_wrong("08c", answer, what)


# --- 08d ---------------------------------------------------------------------------


@pytest.mark.parametrize("answer", [28, 28.0, "28", torch.tensor(28), [28], np.int64(28)])
def test_the_number_of_cards_passes_in_every_form(answer):
    assert reply_to("08d", answer).ok is True


@pytest.mark.parametrize(
    ("answer", "what"),
    [
        (16, "shared out everything"),
        (19, "gathered weights"),
        (22, "does not share them"),
        (23, "last byte"),
        (7, "weights only"),
        (14, "two moments"),
        (27, "rounded down"),
        (8, "gets smaller with"),
    ],
)
def test_a_usual_mistake_with_cards_is_named(answer, what):
    assert_wrong("08d", answer, what)
