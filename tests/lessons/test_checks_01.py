"""The exercises of notebook 01: right answers in every form, and each mistake by its name."""

from contextlib import contextmanager

import numpy as np
import pytest
import torch
from transformers.models.gpt_neo.modeling_gpt_neo import GPTNeoSelfAttention

from helpers.lessons.checks import check, reply_to
from helpers.lessons.exercises import nb01 as checks_01
from helpers.lessons.exercises.nb01_instruments import (
    MISPROBED,
    MISSPLIT,
    logit_by_piece,
    looks_ahead,
    practice_stream,
)
from helpers.models.loading import mini_config

INF = float("inf")
Q, K = checks_01.practice_head()
SCORES = Q @ K.transpose(-1, -2)
PAST = torch.ones(8, 8).tril().bool()
MASKED = SCORES.masked_fill(~PAST, -INF)


def wire(x, ln_1, attention, ln_2, mlp):
    h = x + attention(ln_1(x))
    return h + mlp(ln_2(h))


@pytest.mark.parametrize("name", ["01a", "01b", "01c", "01d", "01e", "01f"])
def test_an_untouched_stub_is_not_attempted_yet_and_raises_nothing(name, capsys):
    assert check(name, ...) is None
    assert "not attempted yet" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("01a", MASKED),
        ("01a", MASKED.tolist()),
        ("01a", MASKED.double()),
        ("01a", MASKED.numpy()),
        ("01a", MASKED[0]),
        ("01a", SCORES.masked_fill(~PAST, torch.finfo(torch.float32).min)),
        ("01a", torch.einsum("bhqd,bhkd->bhqk", Q, K).masked_fill(~PAST, -1e9).requires_grad_()),
        ("01b", 64),
        ("01b", 64.0),
        ("01b", "64"),
        ("01b", torch.tensor(64)),
        ("01b", torch.tensor([64])),
        ("01b", [64]),
        ("01b", np.int64(64)),
        ("01c", wire),
        ("01c", lambda x, a, f, b, g: x + f(a(x)) + g(b(x + f(a(x))))),
    ],
)
def test_a_right_answer_passes_in_every_form(name, answer):
    reply = reply_to(name, answer)
    assert reply.ok is True, reply.message


@pytest.mark.parametrize(
    ("answer", "named"),
    [
        ((SCORES / 32**0.5).masked_fill(~PAST, -INF), "divided by √32"),
        (SCORES / 32**0.5, "divided by √32"),
        (SCORES.transpose(-1, -2).masked_fill(~PAST, -INF), "rows and columns are exchanged"),
        (MASKED.softmax(-1), "after the softmax"),
        (SCORES, "the mask is missing"),
        (SCORES.masked_fill(~PAST, 0.0), "hid the future with 0"),
        (SCORES.masked_fill(PAST, -INF), "the mask is turned round"),
        (SCORES.masked_fill(~PAST.tril(-1), -INF), "no token sees itself"),
        (SCORES.masked_fill(~PAST.tril(-2), -INF), "may see are hidden"),
        (SCORES.masked_fill(~torch.ones(8, 8).tril(1).bool(), -INF), "not every later token is hidden"),
        (torch.zeros(1, 2, 8, 8) * -INF, "there is NaN"),
        (Q.transpose(-1, -2) @ K, "features against features"),
        ((Q @ K.transpose(-1, -2))[:, 0], "scores of one head"),
        ((Q @ K.transpose(-1, -2))[0, 1], "scores of one head"),
        (torch.zeros(8, 9), "(1, 2, 8, 8) is asked for"),
        (torch.ones(1, 2, 8, 8), "differ from q · k"),
        (lambda q, k: q @ k.transpose(-1, -2), "this is a function"),
        ("q @ k", "cannot be read"),
    ],
)
def test_01a_names_the_mistake_in_the_scores(answer, named):
    reply = reply_to("01a", answer)
    assert reply.ok is False
    assert named in reply.message


@pytest.mark.parametrize(
    ("answer", "named"),
    [
        (65, "counted itself twice"),
        (63, "left itself out"),
        (101, "global layer"),
        (100, "every token before"),
        (36, "start to count"),
        (37, "first token"),
        (127, "future"),
        (128, "future"),
        (129, "future"),
        (256, "GPT-Neo 125M"),
        (torch.tensor([65]), "counted itself twice"),
        ([101], "global layer"),
        (7, "is not it"),
        ([1, 2], "cannot be read"),
    ],
)
def test_01b_names_the_mistake_in_the_count(answer, named):
    reply = reply_to("01b", answer)
    assert reply.ok is False
    assert named in reply.message


@pytest.mark.parametrize(
    ("wiring", "named"),
    list(
        zip(
            [w for w, _ in checks_01.MISWIRED],
            [
                "after the sum",
                "skip after the LayerNorm",
                "second skip starts at x",
                "reads x, beside attention",
                "no LayerNorm",
                "both skips are missing",
                "ln_1 twice",
            ],
            strict=True,
        )
    ),
)
def test_01c_names_the_mistake_in_the_wiring_with_its_residual_error(wiring, named):
    reply = reply_to("01c", wiring)
    assert reply.ok is False
    assert named in reply.message
    assert "residual error" in reply.message


@pytest.mark.parametrize(("wiring", "reason"), checks_01.ONE_FAULT)
def test_01c_names_one_fault_in_one_half(wiring, reason):
    reply = reply_to("01c", wiring)
    assert reply.ok is False and reply.message.endswith(f": {reason}")


def test_01c_no_two_wirings_are_taken_for_each_other():
    reasons = [reply_to("01c", wiring).message for wiring, _ in (*checks_01.MISWIRED, *checks_01.ONE_FAULT)]
    assert (
        len({reason.partition(": ")[2] for reason in reasons}) == len(reasons) - 1
    )  # the MLP first: two ways


def faulty(x, ln_1, attention, ln_2, mlp):
    return x @ x


@pytest.mark.parametrize(
    ("answer", "named"),
    [
        (wire(2.0, *[lambda h: h] * 4), "a function is asked for, found float"),
        ("pre-LN", "a function is asked for, found str"),
        (lambda *parts: None, "returns NoneType"),
        (lambda x, *parts: x[0], "returns the shape (8, 24)"),
        (lambda x, *parts: 3 * x, "Draw the two skips"),
        (lambda x: x, "stopped with TypeError"),
        (faulty, "stopped with RuntimeError"),
    ],
)
def test_01c_says_what_is_wrong_with_something_else(answer, named):
    reply = reply_to("01c", answer)
    assert reply.ok is False
    assert named in reply.message


def post_ln_in_place(x, ln_1, attention, ln_2, mlp):
    x += attention(x)
    h = ln_1(x)
    return ln_2(h + mlp(h))


def test_01c_names_the_mistake_of_a_function_that_changes_its_input():
    assert "after the sum" in reply_to("01c", post_ln_in_place).message
    assert reply_to("01c", wire).ok is True


def test_the_scores_asked_for_are_those_of_gpt_neo():
    attention = GPTNeoSelfAttention(mini_config(hidden_size=64, num_heads=2), "global")
    _, weights = attention._attn(Q, K, K)
    torch.testing.assert_close(MASKED.softmax(-1), weights)


def test_the_window_asked_for_is_the_miniatures():
    config = mini_config()
    mask = GPTNeoSelfAttention(config, "local").bias[0, 0]
    assert mask[100].sum() == 64
    assert mask[100].nonzero()[0] == 37
    assert config.attention_layers[1] == "local"


def test_the_wiring_asked_for_is_that_of_the_real_block():
    block, x = checks_01.practice_block()
    found = checks_01.gpt_neo_wiring(x, block.ln_1, lambda h: block.attn(h)[0], block.ln_2, block.mlp)
    torch.testing.assert_close(found, block(x)[0])


# --- 01d ---------------------------------------------------------------------------


def by_gradient(part, x):
    """The same question asked with backward(): does an output depend on a later input?"""
    with torch.enable_grad():
        x = x.clone().requires_grad_()
        for t in range(x.shape[1] - 1):
            (slope,) = torch.autograd.grad(part(x)[:, t].square().sum(), x)
            if slope[:, t + 1 :].any():
                return torch.tensor(True)
    return torch.tensor(False)


@pytest.mark.parametrize(
    "answer",
    [
        looks_ahead,
        by_gradient,
        lambda part, x: np.bool_(looks_ahead(part, x)),
        lambda part, x: int(looks_ahead(part, x)),
    ],
)
def test_01d_a_right_probe_passes_whatever_it_returns(answer):
    reply = reply_to("01d", answer)
    assert reply.ok is True, reply.message


@pytest.mark.parametrize(("probe", "reason"), MISPROBED)
def test_01d_names_the_mistake_of_a_probe(probe, reason):
    reply = reply_to("01d", probe)
    assert reply.ok is False and reply.message == reason


def probe_that_writes_into_x(part, x):
    before = part(x.clone())
    for j in range(x.shape[1]):
        x[:, j] += 1.0
        if not torch.equal(part(x)[:, :j], before[:, :j]):
            return True
    return False


def probe_that_returns_in_its_loop(part, x):
    before = part(x)
    for j in range(1, x.shape[1]):
        other = x.clone()
        other[:, j] += 1
        if not torch.equal(part(other)[:, :j], before[:, :j]):
            return True
        return False


def probe_that_returns_at_token_0(part, x):
    before = part(x)
    for j in range(x.shape[1]):
        other = x.clone()
        other[:, j] += 1
        return not torch.equal(part(other)[:, :j], before[:, :j])


def probe_that_asks_for_any(part, x):
    before = part(x)
    for j in range(1, x.shape[1]):
        other = x.clone()
        other[:, j] += 1
        if not (part(other)[:, :j] == before[:, :j]).any():
            return True
    return False


def probe_that_asks_for_all(part, x):
    before = part(x)
    for j in range(1, x.shape[1]):
        other = x.clone()
        other[:, j] += 1
        if (part(other)[:, :j] != before[:, :j]).all():
            return True
    return False


@pytest.mark.parametrize(
    ("answer", "named"),
    [
        (probe_that_returns_in_its_loop, "a `return` inside the loop"),
        (probe_that_returns_at_token_0, "belongs after the loop"),
        (probe_that_asks_for_any, "One that moves is a leak"),
        (probe_that_asks_for_all, "One that moves is a leak"),
        (lambda part, x: "no", "'no'. It must return True or False"),
        (probe_that_writes_into_x, "you change x itself"),
        (lambda part, x: None, "returns None"),
        (lambda part, x: part(x) != x, "returns 24 values"),
        (True, "found bool"),
        (lambda x: False, "stopped with TypeError"),
        (lambda part, x: part(x)[0, 0, 0] > 2, "one part computes"),
    ],
)
def test_01d_says_what_is_wrong_with_something_else(answer, named):
    reply = reply_to("01d", answer)
    assert reply.ok is False and named in reply.message


# --- 01e ---------------------------------------------------------------------------


def test_01e_the_contributions_and_the_bias_make_the_logit():
    pieces, ln, row = practice_stream()
    logit = ln(pieces.sum(0)) @ row
    torch.testing.assert_close(logit_by_piece(pieces, ln, row).sum() + row @ ln.bias, logit)


@pytest.mark.parametrize(
    "answer",
    [
        logit_by_piece,
        lambda p, ln, row: logit_by_piece(p, ln, row).tolist(),
        lambda p, ln, row: logit_by_piece(p, ln, row).numpy(),
        lambda p, ln, row: logit_by_piece(p, ln, row)[:, None],
        lambda p, ln, row: (
            ((p - p.mean(-1, keepdim=True)) @ (ln.weight * row)) / p.sum(0).std(unbiased=False)
        ),
    ],
)
def test_01e_right_contributions_pass_in_every_form(answer):
    reply = reply_to("01e", answer)
    assert reply.ok is True, reply.message


@pytest.mark.parametrize(("split", "reason"), MISSPLIT)
def test_01e_names_the_mistake_in_the_contributions(split, reason):
    reply = reply_to("01e", split)
    assert reply.ok is False and reply.message == reason


@pytest.mark.parametrize(
    ("answer", "named"),
    [
        (lambda p, ln, row: p * row, "one for each feature"),
        (lambda p, ln, row: ln(p.sum(0)) @ row, "4 numbers are asked"),
        (lambda p, ln, row: logit_by_piece(p, ln, row).mean().expand(4), "its *own* mean"),
        (lambda p, ln, row: torch.ones(4), "add up to 4.000"),
        (lambda p, ln, row: p @ p, "stopped with RuntimeError"),
        (torch.ones(4), "found Tensor"),
    ],
)
def test_01e_says_what_is_wrong_with_something_else(answer, named):
    reply = reply_to("01e", answer)
    assert reply.ok is False and named in reply.message


# --- 01f ---------------------------------------------------------------------------


def ablation(mean, keeps_tuple=True, returns=True, removes=True, guarded=True):
    """A context manager as a reader may write it, right or with one mistake."""

    def replace(module, inputs, output):
        new = mean(output[0] if isinstance(output, tuple) else output)
        if returns:
            return (new, *output[1:]) if isinstance(output, tuple) and keeps_tuple else new

    def ablated(part):
        handle = part.register_forward_hook(replace)
        try:
            yield
        finally:
            if removes and guarded:
                handle.remove()
        if removes:
            handle.remove()

    return contextmanager(ablated)


def over_positions(out):
    return out.mean(1, keepdim=True).expand_as(out)


@contextmanager
def forgets_the_tuple(part):
    """Right for an MLP; what attention returns has no mean."""
    handle = part.register_forward_hook(lambda module, inputs, output: over_positions(output))
    try:
        yield
    finally:
        handle.remove()


@pytest.mark.parametrize(
    "answer", [ablation(over_positions), ablation(lambda out: out.mean(1, keepdim=True))]
)
def test_01f_a_right_ablation_passes(answer):
    reply = reply_to("01f", answer)
    assert reply.ok is True, reply.message


@pytest.mark.parametrize(
    ("answer", "named"),
    [
        (ablation(over_positions, keeps_tuple=False), "not for attention"),
        (ablation(over_positions, returns=False), "nothing was replaced"),
        (ablation(over_positions, removes=False), "the hook is still there"),
        (ablation(over_positions, guarded=False), "After an error the hook stays"),
        (ablation(torch.zeros_like), "this is the zero"),
        (ablation(lambda out: out.mean(-1, keepdim=True).expand_as(out)), "over the width"),
        (ablation(lambda out: out.mean(0, keepdim=True).expand_as(out)), "windows of the batch"),
        (ablation(lambda out: out.mean((0, 1), keepdim=True).expand_as(out)), "mean of another"),
        (ablation(lambda out: out.mean().expand_as(out)), "a single number"),
        (forgets_the_tuple, "Attention returns a tuple: take its first entry"),
        (ablation(lambda out: out.mean(1)), "the block stopped with RuntimeError"),
        (ablation(lambda out: 2 * out), "would change it"),
        (ablation(over_positions).__wrapped__, "put @contextmanager above it"),
        (lambda part: None, "which `with` cannot open"),
        ("mean", "found str"),
    ],
)
def test_01f_names_the_mistake_in_the_ablation(answer, named):
    reply = reply_to("01f", answer)
    assert reply.ok is False and named in reply.message


def test_01f_is_not_disturbed_by_an_earlier_wrong_answer():
    reply_to("01f", ablation(over_positions, removes=False))
    assert reply_to("01f", ablation(over_positions)).ok is True


def test_01d_a_leak_behind_a_layer_norm_needs_a_change_that_it_keeps():
    def probe(part, x, change):
        before = part(x)
        for j in range(1, x.shape[1]):
            other = x.clone()
            change(other[:, j])
            if not torch.equal(part(other)[:, :j], before[:, :j]):
                return True
        return False

    assert reply_to("01d", lambda part, x: probe(part, x, lambda token: token.neg_())).ok
    assert reply_to("01d", lambda part, x: probe(part, x, lambda token: token[..., 0].add_(1))).ok
    reply = reply_to("01d", lambda part, x: probe(part, x, lambda token: token.add_(1)))
    assert not reply.ok and "turn its sign round" in reply.message
