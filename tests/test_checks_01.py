"""The exercises of notebook 01: right answers in every form, and each mistake by its name."""

import pytest
import torch
from transformers.models.gpt_neo.modeling_gpt_neo import GPTNeoSelfAttention

from helpers import checks_01
from helpers.checks import check, reply_to
from helpers.models import mini_config

INF = float("inf")
Q, K = checks_01.practice_head()
SCORES = Q @ K.transpose(-1, -2)
PAST = torch.ones(8, 8).tril().bool()
MASKED = SCORES.masked_fill(~PAST, -INF)


def wire(x, ln_1, attention, ln_2, mlp):
    h = x + attention(ln_1(x))
    return h + mlp(ln_2(h))


@pytest.mark.parametrize("name", ["01a", "01b", "01c"])
def test_an_untouched_stub_is_not_attempted_yet_and_raises_nothing(name, capsys):
    assert check(name, ...) is None
    assert "not attempted yet" in capsys.readouterr().out


@pytest.mark.parametrize(("name", "answer"), [
    ("01a", MASKED),
    ("01a", MASKED.tolist()),
    ("01a", MASKED.double()),
    ("01a", MASKED[0]),
    ("01a", SCORES.masked_fill(~PAST, torch.finfo(torch.float32).min)),
    ("01a", torch.einsum("bhqd,bhkd->bhqk", Q, K).masked_fill(~PAST, -1e9).requires_grad_()),
    ("01b", 64), ("01b", 64.0), ("01b", "64"), ("01b", torch.tensor(64)), ("01b", torch.tensor([64])), ("01b", [64]),
    ("01c", wire),
    ("01c", lambda x, a, f, b, g: x + f(a(x)) + g(b(x + f(a(x))))),
])
def test_a_right_answer_passes_in_every_form(name, answer):
    reply = reply_to(name, answer)
    assert reply.ok is True, reply.message


@pytest.mark.parametrize(("answer", "named"), [
    ((SCORES / 32**0.5).masked_fill(~PAST, -INF), "divided by √32"),
    (SCORES / 32**0.5, "divided by √32"),
    (SCORES.transpose(-1, -2).masked_fill(~PAST, -INF), "rows and columns are exchanged"),
    (MASKED.softmax(-1), "after the softmax"),
    (SCORES, "the mask is missing"),
    (SCORES.masked_fill(~PAST, 0.0), "hid the future with 0"),
    (SCORES.masked_fill(PAST, -INF), "may see are hidden"),
    (SCORES.masked_fill(~PAST.tril(-1), -INF), "may see are hidden"),
    (SCORES.masked_fill(~torch.ones(8, 8).tril(1).bool(), -INF), "not every later token is hidden"),
    (torch.zeros(1, 2, 8, 8) * -INF, "there is NaN"),
    (Q.transpose(-1, -2) @ K, "features against features"),
    (torch.zeros(8, 8), "(1, 2, 8, 8) is asked for"),
    (torch.ones(1, 2, 8, 8), "differ from q · k"),
    (lambda q, k: q @ k.transpose(-1, -2), "this is a function"),
    ("q @ k", "cannot be read"),
])
def test_01a_names_the_mistake_in_the_scores(answer, named):
    reply = reply_to("01a", answer)
    assert reply.ok is False
    assert named in reply.message


@pytest.mark.parametrize(("answer", "named"), [
    (65, "counted itself twice"), (63, "left itself out"), (101, "global layer"), (100, "every token before"),
    (36, "start to count"), (37, "first token"), (127, "future"), (128, "future"), (129, "future"),
    (256, "GPT-Neo 125M"), (torch.tensor([65]), "counted itself twice"), ([101], "global layer"), (7, "is not it"),
    ([1, 2], "cannot be read"),
])
def test_01b_names_the_mistake_in_the_count(answer, named):
    reply = reply_to("01b", answer)
    assert reply.ok is False
    assert named in reply.message


@pytest.mark.parametrize(("wiring", "named"), list(zip(
    [w for w, _ in checks_01.MISWIRED],
    ["after the sum", "skip after the LayerNorm", "second skip starts at x", "reads x, beside attention",
     "no LayerNorm", "both skips are missing", "ln_1 twice"], strict=True)))
def test_01c_names_the_mistake_in_the_wiring_with_its_residual_error(wiring, named):
    reply = reply_to("01c", wiring)
    assert reply.ok is False
    assert named in reply.message
    assert "residual error" in reply.message


def faulty(x, ln_1, attention, ln_2, mlp):
    return x @ x


@pytest.mark.parametrize(("answer", "named"), [
    (wire(2.0, *[lambda h: h] * 4), "a function is asked for, found float"),
    ("pre-LN", "a function is asked for, found str"),
    (lambda *parts: None, "returns NoneType"),
    (lambda x, *parts: x[0], "returns the shape (8, 24)"),
    (lambda x, *parts: 3 * x, "Draw the two skips"),
    (lambda x: x, "stopped with TypeError"),
    (faulty, "stopped with RuntimeError"),
])
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
    block, x = checks_01._practice_block()
    found = checks_01.gpt_neo_wiring(x, block.ln_1, lambda h: block.attn(h)[0], block.ln_2, block.mlp)
    torch.testing.assert_close(found, block(x)[0])
