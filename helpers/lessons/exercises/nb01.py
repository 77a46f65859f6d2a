"""Checks of notebook 01: attention scores, the local window, the wiring of a block."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers.models.gpt_neo.modeling_gpt_neo import GPTNeoBlock

from helpers.lessons.checks import Reply, call, exercise, judge_number, right, wrong
from helpers.lessons.reading import tensor
from helpers.models import mini_config

CLOSE = 1e-5
HIDDEN = -1e4  # a masked score is this low or lower: -inf and the smallest float both are

# --- 01a: scores -------------------------------------------------------------------


def practice_head() -> tuple[torch.Tensor, torch.Tensor]:
    """Queries and keys for exercise 01a, always the same: two of (1, 2 heads, 8 tokens, head_dim 32)."""
    dice = torch.Generator().manual_seed(1)
    q, k = torch.randn(2, 1, 2, 8, 32, generator=dice)
    return q, k


@exercise("01a")
def check_scores(answer: Any) -> Reply:
    """Masked scores of `practice_head` as a tensor or nested list: (1, 2, 8, 8)."""
    q, k = practice_head()
    scores, visible = q @ k.transpose(-1, -2), torch.ones(8, 8).tril().bool()
    found = _as_scores(answer, scores.shape)
    if isinstance(found, Reply):
        return found
    return _judge_visible(found, scores, visible) or _judge_hidden(found, scores, visible)


def _as_scores(answer: Any, shape: torch.Size) -> torch.Tensor | Reply:
    if callable(answer) and not isinstance(answer, torch.Tensor):
        return wrong("this is a function. Call it, and give the scores that it returns.")
    found = tensor(answer)
    if found.shape == shape[1:]:
        found = found.unsqueeze(0)  # the batch of one was left out
    if found.shape[-2:] == (32, 32):
        return wrong(
            "these are 32 x 32 numbers a head: features against features. A score belongs to two tokens: "
            "transpose the keys, q @ k.transpose(-1, -2)."
        )
    if found.shape in (shape[2:], (1, *shape[2:])):
        return wrong("these are the scores of one head. There are two: keep the dimension of the heads.")
    if found.shape != shape:
        return wrong(
            f"the shape is {tuple(found.shape)}; (1, 2, 8, 8) is asked for: batch, heads, queries, keys."
        )
    if found.isnan().any():
        return wrong(
            "there is NaN among the scores. It comes from 0 x -inf: choose entries with masked_fill or "
            "torch.where, do not multiply by a mask."
        )
    return found


def _judge_visible(found: torch.Tensor, scores: torch.Tensor, visible: torch.Tensor) -> Reply | None:
    """A reply where the scores that may be seen are wrong, else None."""

    def same(other: torch.Tensor) -> bool:
        return torch.allclose(found[..., visible], other[..., visible], rtol=CLOSE, atol=CLOSE)

    if same(scores):
        return None
    if same(scores / 32**0.5):
        return wrong("you divided by √32, the square root of head_dim. Most models do; GPT-Neo does not.")
    if same(scores.transpose(-1, -2)):
        return wrong(
            "rows and columns are exchanged: a row is a query, a column a key. Use q @ kᵀ, not k @ qᵀ."
        )
    if torch.allclose(found.sum(-1), torch.ones(()), atol=CLOSE) and (found >= 0).all():
        return wrong(
            "each row sums to 1: these are weights, after the softmax. The scores before it are asked for."
        )
    hidden, diagonal = found <= HIDDEN, torch.eye(len(visible)).bool()
    if hidden[..., visible].all() and not hidden[..., ~visible].any():
        return wrong(
            "the mask is turned round: what a query may see is hidden, and the future is shown. masked_fill fills where "
            "the mask is True, so give it what may *not* be seen."
        )
    if hidden[..., diagonal].all() and not hidden[..., visible & ~diagonal].any():
        return wrong(
            "the diagonal is hidden: no token sees itself. A query sees itself and every token before it: "
            "the lower triangle stays, with the diagonal."
        )
    if hidden[..., visible].any():
        return wrong(
            "some tokens that a query may see are hidden. A query sees itself and every token before it: "
            "the lower triangle stays, with the diagonal."
        )
    return wrong(
        "the visible scores differ from q · k. Print one and compute it by hand: multiply 32 pairs, add up."
    )


def _judge_hidden(found: torch.Tensor, scores: torch.Tensor, visible: torch.Tensor) -> Reply:
    future = found[..., ~visible]
    if (future <= HIDDEN).all():
        return right("Dot products, no division, and the future is hidden.")
    if torch.allclose(future, scores[..., ~visible], rtol=CLOSE, atol=CLOSE):
        return wrong("the scores are right, but the mask is missing: token 0 can still see token 7.")
    if (future == 0).all():
        return wrong(
            "you hid the future with 0. A score of 0 still gets weight, since e^0 = 1. Use -inf: e^-inf = 0."
        )
    return wrong(
        "the visible scores are right, but not every later token is hidden. Put -inf in the upper triangle."
    )


# --- 01b: the local window ---------------------------------------------------------


@exercise("01b")
def check_window(answer: Any) -> Reply:
    """How many keys token 100 sees in a local layer with a window of 64."""
    return judge_number(
        answer,
        64,
        "Tokens 37 to 100: itself and the 63 before it.",
        {
            65: "you counted itself twice: the window of 64 already holds the token itself, so 63 others, not 64.",
            63: "you left itself out. A token sees itself: 63 before it and one more.",
            101: "that is a global layer: tokens 0 to 100. A local layer forgets what lies outside its window.",
            100: "that is every token before it. This layer is local, and a token also sees itself.",
            36: "that is the token where you might start to count (100 - 64). How many tokens lie in the window?",
            37: "that is the number of the first token that it sees. How many are there from 37 to 100?",
            127: "you let it see the future: 63 on each side. The mask is causal as well.",
            128: "you let it see the future: 64 on each side. The mask is causal as well.",
            129: "you let it see the future: 64 on each side and itself. The mask is causal as well.",
            256: "256 is the window of GPT-Neo 125M. The miniature's is 64.",
        },
    )


# --- 01c: the wiring of a block ----------------------------------------------------

Wiring = Callable[..., torch.Tensor]


def gpt_neo_wiring(x, ln_1, attention, ln_2, mlp):
    """Pre-LN, two skips: h = x + attention(ln_1(x)), y = h + mlp(ln_2(h))."""
    h = x + attention(ln_1(x))
    return h + mlp(ln_2(h))


def _post_ln(x, ln_1, attention, ln_2, mlp):
    h = ln_1(x + attention(x))
    return ln_2(h + mlp(h))


def _skip_after_ln(x, ln_1, attention, ln_2, mlp):
    x = ln_1(x)
    h = ln_2(x + attention(x))
    return h + mlp(h)


def _second_skip_from_x(x, ln_1, attention, ln_2, mlp):
    return x + mlp(ln_2(x + attention(ln_1(x))))


def _no_first_skip(x, ln_1, attention, ln_2, mlp):
    h = attention(ln_1(x))
    return h + mlp(ln_2(h))


def _no_second_skip(x, ln_1, attention, ln_2, mlp):
    return mlp(ln_2(x + attention(ln_1(x))))


def _no_first_ln(x, ln_1, attention, ln_2, mlp):
    h = x + attention(x)
    return h + mlp(ln_2(h))


def _no_second_ln(x, ln_1, attention, ln_2, mlp):
    h = x + attention(ln_1(x))
    return h + mlp(h)


def _lns_exchanged(x, ln_1, attention, ln_2, mlp):
    return gpt_neo_wiring(x, ln_2, attention, ln_1, mlp)


def _mlp_first(x, ln_1, attention, ln_2, mlp):
    return gpt_neo_wiring(x, ln_1, mlp, ln_2, attention)


def _mlp_first_with_its_ln(x, ln_1, attention, ln_2, mlp):
    return gpt_neo_wiring(x, ln_2, mlp, ln_1, attention)


def _first_skip_after_ln(x, ln_1, attention, ln_2, mlp):
    n = ln_1(x)
    h = n + attention(n)
    return h + mlp(ln_2(h))


def _second_skip_after_ln(x, ln_1, attention, ln_2, mlp):
    n = ln_2(x + attention(ln_1(x)))
    return n + mlp(n)


def _ln_after_each_part(x, ln_1, attention, ln_2, mlp):
    h = x + ln_1(attention(x))
    return h + ln_2(mlp(h))


def _post_ln_first(x, ln_1, attention, ln_2, mlp):
    h = ln_1(x + attention(x))
    return h + mlp(ln_2(h))


def _post_ln_second(x, ln_1, attention, ln_2, mlp):
    h = x + attention(ln_1(x))
    return ln_2(h + mlp(h))


def _x_added_twice(x, ln_1, attention, ln_2, mlp):
    h = x + attention(ln_1(x))
    return x + h + mlp(ln_2(h))


def _mlp_reads_attention_alone(x, ln_1, attention, ln_2, mlp):
    a = attention(ln_1(x))
    return x + a + mlp(ln_2(a))


def _mlp_reads_ln_1_of_x(x, ln_1, attention, ln_2, mlp):
    return x + attention(ln_1(x)) + mlp(ln_1(x))


def _h_alone(x, ln_1, attention, ln_2, mlp):
    return x + attention(ln_1(x))


def _parallel(x, ln_1, attention, ln_2, mlp):
    return x + attention(ln_1(x)) + mlp(ln_2(x))


def _no_ln(x, ln_1, attention, ln_2, mlp):
    h = x + attention(x)
    return h + mlp(h)


def _no_skip(x, ln_1, attention, ln_2, mlp):
    return mlp(ln_2(attention(ln_1(x))))


def _one_ln_twice(x, ln_1, attention, ln_2, mlp):
    h = x + attention(ln_1(x))
    return h + mlp(ln_1(h))


MISWIRED: tuple[tuple[Wiring, str], ...] = (
    (_post_ln, "you normalise after the sum. That is the article's formula (post-LN), not GPT-Neo's."),
    (
        _skip_after_ln,
        "you took the skip after the LayerNorm. The skip carries x itself, before it is normalised.",
    ),
    (_second_skip_from_x, "your second skip starts at x. It must start at h, or attention's result is lost."),
    (
        _parallel,
        "your MLP reads x, beside attention. In GPT-Neo it reads h, which already holds attention's result.",
    ),
    (_no_ln, "no LayerNorm is used. Each part reads a normalised copy."),
    (_no_skip, "nothing is added to x: both skips are missing."),
    (_one_ln_twice, "you used ln_1 twice. Each part has a LayerNorm of its own: the MLP reads ln_2(h)."),
)

# The same with one fault in one half
ONE_FAULT: tuple[tuple[Wiring, str], ...] = (
    (
        _mlp_reads_ln_1_of_x,
        "your MLP reads ln_1(x), beside attention. In GPT-Neo it reads ln_2(h), which already holds "
        "attention's result.",
    ),
    (
        _mlp_reads_attention_alone,
        "your MLP reads what attention returned, without x. It reads ln_2(h), and h holds both.",
    ),
    (_no_first_skip, "the first skip is missing: what attention returns is *added* to x."),
    (_no_second_skip, "the second skip is missing: what the MLP returns is *added* to h."),
    (_h_alone, "you return h, before the MLP. The second half is missing."),
    (_x_added_twice, "x is added twice: h holds it already."),
    (
        _first_skip_after_ln,
        "your first skip starts after ln_1. It carries x itself, before it is normalised.",
    ),
    (
        _second_skip_after_ln,
        "your second skip starts after ln_2. It carries h itself, before it is normalised.",
    ),
    (_no_first_ln, "attention reads x itself. It reads a normalised copy, ln_1(x)."),
    (_no_second_ln, "the MLP reads h itself. It reads a normalised copy, ln_2(h)."),
    (_lns_exchanged, "ln_1 and ln_2 are exchanged: ln_1 stands before attention, ln_2 before the MLP."),
    (_mlp_first, "the MLP comes first in your block. Attention comes first, and the MLP reads its result."),
    (
        _mlp_first_with_its_ln,
        "the MLP comes first in your block. Attention comes first, and the MLP reads its result.",
    ),
    (
        _ln_after_each_part,
        "you normalise what each part returns. A LayerNorm stands *before* its part: attention(ln_1(x)).",
    ),
    (
        _post_ln_first,
        "in the first half you normalise after the sum. ln_1 stands before attention, and not on the road "
        "from x to h.",
    ),
    (
        _post_ln_second,
        "in the second half you normalise after the sum. ln_2 stands before the MLP, and not on the road "
        "from h to y.",
    ),
)


@exercise("01c")
def check_wiring(answer: Any) -> Reply:
    """A function (x, ln_1, attention, ln_2, mlp) -> y, compared with a real GPT-Neo block of random weights."""
    block, x = practice_block()
    parts = (block.ln_1, lambda h: block.attn(h)[0], block.ln_2, block.mlp)
    with torch.no_grad():
        y = block(x)[0]
        found = call(answer, x.clone(), *parts)
        if not isinstance(found, torch.Tensor):
            return wrong(
                f"your function returns {type(found).__name__}. It must return y: end it with `return`."
            )
        if found.shape != y.shape:
            return wrong(f"your function returns the shape {tuple(found.shape)}; y has {tuple(y.shape)}.")
        if residual_error(found, y) < CLOSE:
            return right("Residual error under 0.00001: this is a GPT-Neo block.")
        for wiring, reason in (*MISWIRED, *ONE_FAULT):
            if residual_error(found, wiring(x, *parts)) < CLOSE:
                return wrong(f"residual error {residual_error(found, y):.2f}: {reason}")
    return wrong(
        f"residual error {residual_error(found, y):.2f}. Draw the two skips: where does each begin and end?"
    )


def residual_error(found: torch.Tensor, real: torch.Tensor) -> float:
    """||found - real|| / ||real||: 0 is equal, 1 as far off as answering 0."""
    return ((found - real).norm() / real.norm()).item()


def practice_block() -> tuple[nn.Module, torch.Tensor]:
    """A small GPT-Neo block in which every weight matters, LayerNorm's too, and an input (2, 8, 24)."""
    config = mini_config(hidden_size=24, num_heads=2, intermediate_size=48, max_position_embeddings=16)
    config._attn_implementation = "eager"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        block = GPTNeoBlock(config, layer_id=0).eval().requires_grad_(False)
        for norm in (block.ln_1, block.ln_2):
            norm.weight.normal_(1.0, 0.5)
            norm.bias.normal_(0.0, 0.5)
        return block, 2 * torch.randn(2, 8, 24) + 1
