"""The heart of notebook 01: LayerNorm, one head and the proof, and in A1 rotary positions; each mistake by its name."""

import numpy as np
import pytest
import torch
from transformers.models.gpt_neo.modeling_gpt_neo import GPTNeoSelfAttention
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from helpers.lessons.checks import check, reply_to
from helpers.lessons.exercises import nb01_heart as heart
from helpers.lessons.exercises import nb01_instruments as instruments
from helpers.models.loading import mini_config


@pytest.mark.parametrize("name", ["01g", "01h", "01i", "01j"])
def test_an_untouched_stub_is_not_attempted_yet_and_raises_nothing(name, capsys):
    assert check(name, ...) is None
    assert "not attempted yet" in capsys.readouterr().out


# --- 01g ---------------------------------------------------------------------------


def norm(x, ln):
    mean = x.mean(-1, keepdim=True)
    variance = ((x - mean) ** 2).mean(-1, keepdim=True)
    return ln.weight * (x - mean) / (variance + ln.eps).sqrt() + ln.bias


def test_the_layer_norm_asked_for_is_that_of_torch():
    x, ln = heart.practice_norm()
    wanted = torch.nn.functional.layer_norm(x, x.shape[-1:], ln.weight, ln.bias, ln.eps)
    torch.testing.assert_close(heart.norm_with(x, ln), wanted)


@pytest.mark.parametrize(
    "answer",
    [
        norm,
        lambda x, ln: (
            (x - x.mean(-1, keepdim=True))
            * (x.var(-1, unbiased=False, keepdim=True) + ln.eps).rsqrt()
            * ln.weight
            + ln.bias
        ),
        lambda x, ln: torch.nn.functional.layer_norm(x, x.shape[-1:], ln.weight, ln.bias, ln.eps),
        lambda x, ln: norm(x.double(), ln).numpy(),
    ],
)
def test_01g_a_right_layer_norm_passes_in_every_form(answer):
    reply = reply_to("01g", answer)
    assert reply.ok is True, reply.message


@pytest.mark.parametrize("name", heart.NORM_FAULTS)
def test_01g_names_the_mistake(name):
    choices, reason = heart.NORM_FAULTS[name]
    reply = reply_to("01g", lambda x, ln: heart.norm_with(x, ln, **choices))
    assert reply.ok is False and reply.message == reason


@pytest.mark.parametrize(
    ("answer", "named"),
    [
        (
            lambda x, ln: (x - x.mean(-1, keepdim=True)) / x.std(-1, keepdim=True) * ln.weight + ln.bias,
            "ε is missing",
        ),
        (
            lambda x, ln: (x - x.mean(-1, keepdim=True)) / x.std(-1, keepdim=True) * ln.weight + ln.bias,
            "width − 1",
        ),
        (
            lambda x, ln: (
                (x - x.mean(1, keepdim=True)) / (x.var(1, unbiased=False, keepdim=True) + ln.eps).sqrt()
            ),
            "learned",
        ),
        (lambda x, ln: (x - x.mean(-1)) / ln.eps, "keepdim=True"),
        (lambda x, ln: x.sub_(x.mean(-1, keepdim=True)), "other numbers"),
        (lambda x, ln: x.copy_(norm(x.clone(), ln)), "wrote them into x"),
        (lambda x, ln: x.mean(-1), "keeps the shape"),
        (lambda x, ln: x, "other numbers"),
        (lambda x, ln: None, "returns None"),
        (lambda x: x, "stopped with TypeError"),
        (norm(*heart.practice_norm()), "found Tensor"),
    ],
)
def test_01g_says_what_is_wrong_with_something_else(answer, named):
    reply = reply_to("01g", answer)
    assert reply.ok is False and named in reply.message, reply.message


# --- 01h ---------------------------------------------------------------------------


def head(u, w_q, w_k, w_v):
    q, k, v = u @ w_q.T, u @ w_k.T, u @ w_v.T
    hidden = torch.ones(len(u), len(u)).triu(1).bool()
    return (q @ k.T).masked_fill(hidden, float("-inf")).softmax(-1) @ v


def test_the_head_asked_for_is_that_of_gpt_neo():
    u, w_q, w_k, w_v = heart.practice_tokens()
    attention = GPTNeoSelfAttention(mini_config(hidden_size=4, num_heads=1), "global")
    found, _ = attention._attn(*((u @ w.T)[None, None] for w in (w_q, w_k, w_v)))
    torch.testing.assert_close(heart.head_with(u, w_q, w_k, w_v), found[0, 0])


def one_token_at_a_time(u, w_q, w_k, w_v):
    rows = []
    for i in range(len(u)):
        scores = torch.stack([(w_q @ u[i]) @ (w_k @ u[j]) for j in range(i + 1)])
        rows.append(scores.softmax(0) @ (u[: i + 1] @ w_v.T))
    return torch.stack(rows)


@pytest.mark.parametrize(
    "answer", [head, one_token_at_a_time, lambda *p: head(*p).tolist(), lambda *p: np.asarray(head(*p))]
)
def test_01h_a_right_head_passes_in_every_form(answer):
    reply = reply_to("01h", answer)
    assert reply.ok is True, reply.message


@pytest.mark.parametrize("name", heart.HEAD_FAULTS)
def test_01h_names_the_mistake(name):
    choices, reason = heart.HEAD_FAULTS[name]
    reply = reply_to("01h", lambda *parts: heart.head_with(*parts, **choices))
    assert reply.ok is False and reply.message == reason


def masked(u, w_q, w_k, w_v, hidden):
    return (u @ w_q.T @ (u @ w_k.T).T).masked_fill(hidden, float("-inf")).softmax(-1) @ (u @ w_v.T)


def without_softmax(u, w_q, w_k, w_v):
    later = torch.ones(6, 6).triu(1).bool()
    return (u @ w_q.T @ (u @ w_k.T).T).masked_fill(later, float("-inf")) @ (u @ w_v.T)


@pytest.mark.parametrize(
    ("answer", "named"),
    [
        (lambda u, q, k, v: ((u @ q.T) @ (u @ k.T).T).softmax(-1), "not mixed yet"),
        (lambda u, q, k, v: ((u @ q.T) @ (u @ k.T).T).softmax(-1) @ u, "Mix their values"),
        (lambda u, q, k, v: u @ v.T, "the values as they were"),
        (lambda u, q, k, v: (u @ q.T @ (u @ k.T).T).tril() @ (u @ v.T), "the softmax is missing"),
        (lambda *p: without_softmax(*p), "the softmax is missing"),
        (lambda u, q, k, v: head(u, q / 2, k, v), "the scores are divided by √head_dim"),
        (lambda u, q, k, v: head(u, q / 10**0.5, k, v), "the scores are divided by the root of the width"),
        (lambda u, q, k, v: u @ q @ k.T, "turn it: u @ w_q.T"),
        (lambda *p: masked(*p, torch.ones(6, 6).triu().bool()), "token 0 must see itself"),
        (
            lambda *p: heart.head_with(*p, divide=2.0, mask="none"),
            "First, the scores are divided by √head_dim",
        ),
        (lambda *p: heart.head_with(*p, divide=2.0, mask="none"), "Second, the mask is missing"),
        (lambda *p: head(*p)[0], "head_dim numbers are asked for"),
        (lambda *p: 2 * head(*p), "other numbers"),
        (lambda *p: None, "returns None"),
        (lambda u: u, "stopped with TypeError"),
        (head(*heart.practice_tokens()), "found Tensor"),
    ],
)
def test_01h_says_what_is_wrong_with_something_else(answer, named):
    reply = reply_to("01h", answer)
    assert reply.ok is False and named in reply.message, reply.message


@pytest.mark.parametrize("faults", [heart.NORM_FAULTS, heart.HEAD_FAULTS], ids=["norm", "head"])
def test_no_fault_is_taken_for_another_or_for_the_truth(faults):
    is_norm = faults is heart.NORM_FAULTS
    compute, parts = (
        (heart.norm_with, heart.practice_norm()) if is_norm else (heart.head_with, heart.practice_tokens())
    )
    results = [compute(*parts), *(compute(*parts, **choices) for choices, _ in faults.values())]
    alike = [
        (i, j) for i, a in enumerate(results) for j, b in enumerate(results) if i < j and heart._is(a, b)
    ]
    assert not alike


# --- 01i ---------------------------------------------------------------------------


def proof(mine, real, inputs):
    for x in inputs:
        found, true = mine(x.clone()), real(x)
        if not (found - true).norm() / true.norm() < 1e-5:
            return False
    return True


@pytest.mark.parametrize(
    "answer",
    [
        proof,
        heart.is_proved_equal,
        lambda mine, real, inputs: torch.tensor(proof(mine, real, inputs)),
        lambda mine, real, inputs: all(
            (mine(x.clone()) - real(x)).norm() < 1e-5 * real(x).norm() for x in inputs
        ),
        lambda mine, real, inputs: all(
            torch.allclose(mine(x.clone()), real(x), rtol=1e-5, atol=0.0) for x in inputs
        ),
    ],
)
def test_01i_a_right_proof_passes(answer):
    reply = reply_to("01i", answer)
    assert reply.ok is True, reply.message


@pytest.mark.parametrize(("wrong_proof", "reason"), heart.MISPROVED)
def test_01i_names_the_mistake_of_a_proof(wrong_proof, reason):
    reply = reply_to("01i", wrong_proof)
    assert reply.ok is False and reply.message == reason


def compares_a_tensor_with_itself(mine, real, inputs):
    return all((real(x) - real(x)).norm() / real(x).norm() < 1e-5 for x in inputs)


def returns_in_its_loop(mine, real, inputs):
    for x in inputs:
        return bool((mine(x.clone()) - real(x)).norm() / real(x).norm() < 1e-5)


def largest_difference(mine, real, inputs):
    return all((mine(x.clone()) - real(x)).abs().max() < 1e-5 for x in inputs)


def stops_at_a_great_error_and_copies_nothing(mine, real, inputs):
    for x in inputs:
        found, true = mine(x), real(x)
        if (found - true).norm() / true.norm() > 1e-5:
            return False
    return True


@pytest.mark.parametrize(
    ("answer", "named"),
    [
        (compares_a_tensor_with_itself, "compares a tensor with itself"),
        (largest_difference, "not divided by the length"),
        (returns_in_its_loop, "a `return` inside the loop"),
        (stops_at_a_great_error_and_copies_nothing, "returns NaN: False is right"),
        (stops_at_a_great_error_and_copies_nothing, "writes ones into its input"),
        (lambda mine, real, inputs: None, "returns None"),
        (lambda mine, real, inputs: "equal", "'equal'. It must return True or False"),
        (lambda mine, real, inputs: 1e-7, "1e-07. It must return True or False"),
        (lambda mine: True, "stopped with TypeError"),
        (True, "found bool"),
    ],
)
def test_01i_says_what_is_wrong_with_something_else(answer, named):
    reply = reply_to("01i", answer)
    assert reply.ok is False and named in reply.message, reply.message


# --- 01j ---------------------------------------------------------------------------


def turn(t, positions, theta):
    half = t.shape[-1] // 2
    angle = positions[:, None] * theta ** (-torch.arange(half) / half)
    a, b = t[..., :half], t[..., half:]
    return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1)


def test_the_turn_asked_for_is_that_of_llama():
    from transformers import LlamaConfig

    t, positions, theta = instruments.practice_turn()
    config = LlamaConfig(
        hidden_size=16, num_attention_heads=2, rope_parameters={"rope_type": "default", "rope_theta": theta}
    )
    cos, sin = LlamaRotaryEmbedding(config)(t, positions[None])
    wanted, _ = apply_rotary_pos_emb(t[None], t[None], cos, sin)
    torch.testing.assert_close(instruments.turned_with(t, positions, theta), wanted[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("answer", [turn, lambda *parts: turn(*parts).tolist()])
def test_01j_a_right_turn_passes(answer):
    reply = reply_to("01j", answer)
    assert reply.ok is True, reply.message


@pytest.mark.parametrize(("choices", "reason"), instruments.MISTURNED)
def test_01j_names_the_mistake_of_a_turn(choices, reason):
    reply = reply_to("01j", lambda *parts: instruments.turned_with(*parts, **choices))
    assert reply.ok is False and reply.message == reason


def turns_what_it_turned(t, positions, theta):
    half = t.shape[-1] // 2
    angle = positions[:, None] * theta ** (-torch.arange(half) / half)
    a, b = t[..., :half].clone(), t[..., half:].clone()
    a = a * angle.cos() - b * angle.sin()
    return torch.cat([a, b * angle.cos() + a * angle.sin()], -1)


@pytest.mark.parametrize(
    ("answer", "named"),
    [
        (lambda t, positions, theta: t, "nothing was turned"),
        (turns_what_it_turned, "as they *came in*"),
        (lambda t, positions, theta: turn(t, 2 * positions, theta), "Print the angles"),
        (lambda t, positions, theta: turn(t, positions, theta)[0], "turning keeps it"),
        (lambda t, positions, theta: None, "returns None"),
        (lambda t: t, "stopped with TypeError"),
        (torch.ones(2, 5, 8), "found Tensor"),
    ],
)
def test_01j_says_what_is_wrong_with_something_else(answer, named):
    reply = reply_to("01j", answer)
    assert reply.ok is False and named in reply.message, reply.message
