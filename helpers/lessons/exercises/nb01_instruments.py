"""Checks of notebook 01 and its appendix A1: instruments that the reader builds to look into a model.

01d finds a leak of the future. In A1, 01e tells which part wrote a logit, 01f is a milder ablation, and 01j turns
queries and keys by their positions.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from helpers.lessons.checks import FAULTS, AnswerFault, Reply, call, exercise, right, value_of, wrong
from helpers.lessons.exercises.nb01 import CLOSE, practice_block, residual_error
from helpers.lessons.reading import named, plain, tensor

# --- 01d: does a part look ahead? --------------------------------------------------

Part = Callable[[torch.Tensor], torch.Tensor]
Probe = Callable[[Part, torch.Tensor], Any]


def _running_mean(x):
    return x.cumsum(1) / torch.arange(1, x.shape[1] + 1)[:, None]


def _next_token(x):
    return torch.cat([x[:, :-1] + x[:, 1:], x[:, -1:]], dim=1)


def _first_reads(x, source, share=1.0):
    """Token 0 also gets a share of the token at ``source``."""
    return torch.cat([x[:, :1] + share * x[:, source, None], x[:, 1:]], dim=1)


def _next_token_centred(x):
    return torch.cat([x[:, :-1] + _centred(x[:, 1:]), x[:, -1:]], dim=1)


def _third_reads_fourth(x):
    return torch.cat([x[:, :2], x[:, 2:3] + x[:, 3:4], x[:, 3:]], dim=1)


def _fourth_reads_fifth(x):
    return torch.cat([x[:, :3], x[:, 3:4] + x[:, 4:5], x[:, 4:]], dim=1)


# (what it does, the part, whether it looks ahead); x is (1, 6, 4)
PRACTICE_PARTS: tuple[tuple[str, Part, bool], ...] = (
    ("the mean over each token and all before it", _running_mean, False),
    ("the features of each token in reverse", lambda x: x.flip(-1), False),
    ("each token plus the one before it", lambda x: x + torch.cat([x[:, :1], x[:, :-1]], dim=1), False),
    ("each token plus the one after it", _next_token, True),
    ("each token minus the mean over all tokens", lambda x: x - x.mean(1, keepdim=True), True),
    ("token 0 reads the last token, and nothing else looks ahead", lambda x: _first_reads(x, -1), True),
    ("token 2 reads token 3, and nothing else looks ahead", _third_reads_fourth, True),
    ("token 3 reads token 4, and nothing else looks ahead", _fourth_reads_fifth, True),
    ("every token reads the last one", lambda x: x + x[:, -1:], True),
    ("token 0 reads a millionth of token 3", lambda x: _first_reads(x, 3, 1e-6), True),
)


def looks_ahead(part: Part, x: torch.Tensor) -> bool:
    """Change each token in turn; does an output *before* it move, even in the last bit?"""
    return _probe(part, x, range(x.shape[1]), lambda j: slice(None, j))


def _probe(part, x, places, outputs, equal=torch.equal):
    before = part(x)
    for j in places:
        other = x.clone()
        other[:, j] = -other[:, j]  # a LayerNorm takes away what is added to the whole width; a sign it keeps
        seen = outputs(j)
        if not equal(part(other)[:, seen], before[:, seen]):
            return True
    return False


def _earlier(j):
    return slice(None, j)


def _some_equal(a, b):
    return bool((a == b).any())


MISPROBED: tuple[tuple[Probe, str], ...] = (
    (
        lambda part, x: not looks_ahead(part, x),
        "your answer is turned round: True must mean that it looks ahead.",
    ),
    (
        lambda part, x: _probe(part, x, range(x.shape[1]), lambda j: slice(j + 1, None)),
        "you look at the outputs *after* the changed token. They may change. The outputs before it may not.",
    ),
    (
        lambda part, x: True,
        "you say True to every part. A token may see itself, and later tokens may see it: only outputs *before* the "
        "changed token tell. Compare [:, :j], without j. And before token 0 there is nothing to compare: begin with 1.",
    ),
    (
        lambda part, x: False,
        "you say False to every part. Either the loop ends in its first round: `return False` belongs after the loop, not "
        "into it. Or the copy does not differ from x when the part reads it.",
    ),
    (
        lambda part, x: _probe(part, x, [1], _earlier),
        "you change token 1 and no other: a `return` inside the loop ends it in its first round. Return True at the first "
        "leak, and False after the loop.",
    ),
    (
        lambda part, x: _probe(part, x, range(1, x.shape[1]), _earlier, _some_equal),
        "you ask whether *every* number before the changed token moved. One that moves is a leak: (a != b).any(), or "
        "not (a == b).all(), or torch.equal.",
    ),
    (
        lambda part, x: _probe(part, x, [x.shape[1] - 1], _earlier),
        "you change only the last token. A part may read token 1 too early and the last one never. Change each in turn.",
    ),
    (
        lambda part, x: _probe(part, x, [x.shape[1] // 2], _earlier),
        "you change only the token in the middle. Change each in turn.",
    ),
    (
        lambda part, x: _probe(part, x, range(x.shape[1] - 1), _earlier),
        "you never change the last token. A token before it may read just that one: let the loop run to the end.",
    ),
    (
        lambda part, x: _probe(part, x, range(1, x.shape[1]), lambda j: slice(j - 1, j)),
        "you look only at the output just before the changed token. Look at all of them: [:, :j].",
    ),
    (
        lambda part, x: _probe(part, x, range(x.shape[1]), _earlier, torch.allclose),
        "a leak of a millionth escapes you: allclose forgives it. Here nothing may move, so compare with torch.equal.",
    ),
)


@exercise("01d")
def check_probe(answer: Any) -> Reply:
    """A function (part, x) -> bool, tried on parts that do and do not look ahead."""
    dice = torch.Generator().manual_seed(3)
    x = 1 + torch.randint(64, (1, 6, 4), generator=dice) / 64  # not near 0; means of four are exact
    found = tuple(_verdict(answer, part, x) for _, part, _ in PRACTICE_PARTS)
    if found == tuple(truth for *_, truth in PRACTICE_PARTS):
        return _judge_centred(answer, x) or right(
            f"{len(found) + 1} parts, all told apart. You can test a model whose code you have never seen."
        )
    for probe, reason in MISPROBED:
        if found == tuple(bool(probe(part, x)) for _, part, _ in PRACTICE_PARTS):
            return wrong(reason)
    what, truth = next(
        (what, truth) for (what, _, truth), said in zip(PRACTICE_PARTS, found, strict=True) if said != truth
    )
    return wrong(
        f"one part computes {what}. It {'does' if truth else 'does not'} look ahead; you say {not truth}."
    )


def _judge_centred(answer: Any, x: torch.Tensor) -> Reply | None:
    if _verdict(answer, _next_token_centred, x):
        return None
    return wrong(
        f"{len(PRACTICE_PARTS)} parts are told apart. One more reads the next token after taking its mean away, as a "
        "LayerNorm does, and you say False. A number added to all features is in the mean, so it is taken away too. "
        "Change a token otherwise: turn its sign round, other[:, j] = -x[:, j], or change one feature."
    )


def _verdict(answer: Any, part: Part, x: torch.Tensor) -> bool:
    given = x.clone()
    said = call(answer, part, given)
    if not torch.equal(given, x):
        raise AnswerFault(
            "you change x itself, so the next token is tested on a text that is already changed. "
            "Change a copy: other = x.clone()."
        )
    if said is None:
        raise AnswerFault(
            "your function returns None. It must return True or False, also where no leak is found."
        )
    said = torch.as_tensor(said).flatten() if isinstance(said, torch.Tensor) else plain(said)
    if isinstance(said, (list, tuple, torch.Tensor)):
        if len(said) != 1:
            raise AnswerFault(
                f"your function returns {len(said)} values. One is asked for: use .any() or torch.equal."
            )
        said = plain(said[0])
    if not isinstance(said, (bool, int, float)):
        raise AnswerFault(f"your function returns {named(said)}. It must return True or False.")
    return bool(said)


# --- 01e: which part wrote a logit? ------------------------------------------------

Split = Callable[[torch.Tensor, nn.LayerNorm, torch.Tensor], torch.Tensor]


def practice_stream() -> tuple[torch.Tensor, nn.LayerNorm, torch.Tensor]:
    """Four pieces (4, 12) whose sum is the stream at one token, the final LayerNorm, and a row (12,) of the table."""
    dice = torch.Generator().manual_seed(4)
    pieces = torch.randn(4, 12, generator=dice) * torch.tensor([[3.0], [1.0], [0.5], [2.0]]) + 1.0
    ln = nn.LayerNorm(12).requires_grad_(False)
    ln.weight.copy_(1 + 0.5 * torch.randn(12, generator=dice))
    ln.bias.copy_(torch.randn(12, generator=dice))
    return pieces, ln, torch.randn(12, generator=dice)


def logit_by_piece(pieces: torch.Tensor, ln: nn.LayerNorm, row: torch.Tensor) -> torch.Tensor:
    """What each piece adds to a logit: (pieces,). With row · bias they sum to the logit.

    The scale is that of the *sum*: LayerNorm is linear once its σ is held fixed
    (Elhage and others 2021, A Mathematical Framework for Transformer Circuits).
    """
    return (_centred(pieces) / _sigma(pieces.sum(0), ln) * ln.weight) @ row


def _centred(pieces):
    return pieces - pieces.mean(-1, keepdim=True)


def _sigma(stream, ln):
    return (stream.var(-1, unbiased=False, keepdim=True) + ln.eps).sqrt()


MISSPLIT: tuple[tuple[Split, str], ...] = (
    (
        lambda p, ln, row: ln(p) @ row,
        "each piece went through the LayerNorm alone, so each was brought to the same size, and the sum is not the logit. "
        "Take the σ of the whole stream for all pieces.",
    ),
    (
        lambda p, ln, row: (_centred(p) / _sigma(p, ln) * ln.weight) @ row,
        "each piece is divided by a σ of its own. Take the σ of the whole stream, pieces.sum(0), for all.",
    ),
    (
        lambda p, ln, row: (_centred(p) / _sigma(p.sum(0), ln) * ln.weight + ln.bias) @ row,
        "the bias of the LayerNorm is in every piece, so it counts once for each. It belongs to no piece: leave it out.",
    ),
    (
        lambda p, ln, row: (p / _sigma(p.sum(0), ln) * ln.weight) @ row,
        "you forgot to take the mean away. LayerNorm centres first: subtract each piece's own mean over the width.",
    ),
    (lambda p, ln, row: (_centred(p) / _sigma(p.sum(0), ln)) @ row, "the LayerNorm's weight is missing."),
    (lambda p, ln, row: p @ row, "no LayerNorm stands between the stream and the table in your function."),
    (
        lambda p, ln, row: (_centred(p) / (p.sum(0).var(-1, keepdim=True) + ln.eps).sqrt() * ln.weight) @ row,
        "your variance is divided by width − 1. LayerNorm divides by width: var(unbiased=False).",
    ),
    (
        lambda p, ln, row: (_centred(p) / (p.var(unbiased=False) + ln.eps).sqrt() * ln.weight) @ row,
        "your σ is taken over all numbers of all pieces. Take the σ of the stream, which is their sum: pieces.sum(0).",
    ),
    (
        lambda p, ln, row: logit_by_piece(p, ln, row) / logit_by_piece(p, ln, row).sum(),
        "these are shares of the sum. The contributions themselves are asked for, in the unit of the logit.",
    ),
)


@exercise("01e")
def check_logit_by_piece(answer: Any) -> Reply:
    """A function (pieces, ln, row) -> (pieces,): what each piece adds to the logit."""
    pieces, ln, row = practice_stream()
    found = tensor(value_of(answer, pieces.clone(), ln, row.clone()))
    if found.shape == pieces.shape:
        return wrong(
            "one number for each piece is asked for, and you return one for each feature: multiply with the "
            "row and add up over the width."
        )
    if found.numel() != len(pieces):
        return wrong(
            f"{len(pieces)} numbers are asked for, one for each piece; your function returns {found.numel()}."
        )
    found = found.reshape(-1)
    if torch.allclose(found, logit_by_piece(pieces, ln, row), rtol=1e-4, atol=1e-4):
        return right(
            "They add up to the logit without what the LayerNorm's bias adds. You can ask who wrote what."
        )
    for split, reason in MISSPLIT:
        if torch.allclose(found, split(pieces, ln, row), rtol=1e-4, atol=1e-4):
            return wrong(reason)
    logit = (ln(pieces.sum(0)) - ln.bias) @ row
    if torch.isclose(found.sum(), logit, rtol=1e-4, atol=1e-4):
        return wrong(
            "your four numbers add up to the logit, but they are not what each piece adds. Take from each "
            "piece its *own* mean over the width, before you divide by the σ of the sum."
        )
    return wrong(
        f"your four numbers add up to {found.sum():.3f}; the logit without the bias is {logit:.3f}. Write "
        "the LayerNorm of the sum as a formula, and then put the sum outside."
    )


# --- 01f: a hook that replaces a part's output by its mean -------------------------

# What was probably averaged, by the axes over which it was done: the output is (batch, time, width).
MISAVERAGED = (
    ((-1,), "you averaged over the width, each token's own features. Average over the positions: dim=1."),
    ((0,), "you averaged over the windows of the batch, dim 0. Average over the positions: dim=1."),
    (
        (0, 1),
        "you averaged over the windows too, so one text gets the mean of another. Average each window: dim=1.",
    ),
    ((0, 1, 2), "you averaged over everything, to a single number. Average over the positions alone: dim=1."),
)


@exercise("01f")
def check_mean_ablation(answer: Any) -> Reply:
    """A function (part) -> context manager in which the part's output is its mean over the positions."""
    block, x = practice_block()
    with torch.no_grad():
        whole = block(x)[0]
        return (
            _judge_means(answer, block, x, whole)
            or _judge_after(answer, block, x, whole)
            or right("Mean ablation, for parts of both kinds, and the model is whole again afterwards.")
        )


def _judge_means(answer: Any, block: nn.Module, x: torch.Tensor, whole: torch.Tensor) -> Reply | None:
    """Does the block compute the right thing while the MLP, then attention, is replaced?"""
    normed = block.ln_1(x)
    attended = block.attn(normed)[0]  # (batch, time, width)
    h = x + attended

    def with_mlp(out: torch.Tensor) -> torch.Tensor:
        return h + out

    def with_attention(out: torch.Tensor) -> torch.Tensor:
        return x + out + block.mlp(block.ln_2(x + out))

    found = _while_open(answer, block.mlp, block, x)
    transformed = block.mlp(block.ln_2(h))
    if not _same(found, with_mlp(transformed.mean(1, keepdim=True))):
        return _named(found, whole, h, lambda axes: with_mlp(transformed.mean(axes, keepdim=True)))
    if not _same(_while_open(answer, block.attn, block, x), with_attention(attended.mean(1, keepdim=True))):
        return wrong(
            "it works for the MLP, and not for attention. Attention returns a tuple: replace its first "
            "entry and return a tuple again, as silence does. A bare tensor is taken apart instead."
        )
    return None


def _same(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    return found.shape == wanted.shape and residual_error(found, wanted) < CLOSE


def _named(found: torch.Tensor, whole: torch.Tensor, skipped: torch.Tensor, averaged: Callable) -> Reply:
    """What probably went wrong with the MLP; ``averaged(axes)`` is the block with another mean."""
    if _same(found, whole):
        return wrong(
            "nothing was replaced. A hook replaces the output only if it *returns* the new one, and only if "
            "it is hung in before the model runs."
        )
    if _same(found, skipped):
        return wrong("this is the zero of `skipped`, not the mean.")
    for axes, reason in MISAVERAGED:
        if _same(found, averaged(axes)):
            return wrong(reason)
    return wrong("the block's output changes, but not as the mean over the positions would change it.")


def _while_open(
    answer: Any, part: nn.Module, block: nn.Module, x: torch.Tensor, stop: bool = False
) -> torch.Tensor:
    """The block's output while the reader's context manager is open; ``stop`` raises inside it."""
    manager = call(answer, part)
    if inspect.isgenerator(manager):
        raise AnswerFault(
            "your function yields, but it is no context manager yet: put @contextmanager above it."
        )
    if not hasattr(manager, "__enter__"):
        raise AnswerFault(
            f"your function returns {type(manager).__name__}, which `with` cannot open. Write it with "
            "@contextmanager and yield, as skipped is written."
        )
    try:
        with manager:
            if stop:
                raise _Stopped
            return block(x)[0]
    except _Stopped:
        raise
    except FAULTS as error:
        tuple_too = (
            " Attention returns a tuple: take its first entry, as silence does." if part is block.attn else ""
        )
        raise AnswerFault(
            f"while it was open, the block stopped with {type(error).__name__}: {error}.{tuple_too}"
        ) from error


class _Stopped(Exception):
    """Raised on purpose inside the reader's `with`."""


def _judge_after(answer: Any, block: nn.Module, x: torch.Tensor, whole: torch.Tensor) -> Reply | None:
    if not torch.equal(block(x)[0], whole):
        return wrong(
            "right while it is open, but afterwards the hook is still there, and the model stays broken. "
            "Call handle.remove()."
        )
    try:
        _while_open(answer, block.mlp, block, x, stop=True)
    except _Stopped:
        pass
    if not torch.equal(block(x)[0], whole):
        return wrong(
            "right, as long as nothing goes wrong inside `with`. After an error the hook stays. Put the yield "
            "in try, and handle.remove() in finally."
        )
    return None


# --- 01j: rotary positions ---------------------------------------------------------


def practice_turn() -> tuple[torch.Tensor, torch.Tensor, float]:
    """Queries (2 heads, 5 tokens, head_dim 8), positions that do not begin at 0, and the constant θ."""
    dice = torch.Generator().manual_seed(8)
    return torch.randn(2, 5, 8, generator=dice), torch.tensor([3, 4, 5, 6, 9]), 100.0


def turned_with(
    t: torch.Tensor,
    positions: torch.Tensor,
    theta: float,
    pairs: str = "halves",
    speeds: str = "falling",
    sign: int = 1,
    places: str = "given",
    back: str = "as they came",
) -> torch.Tensor:
    """Rotary positions (Su and others 2021) as Llama has them; each choice but the first is a known mistake."""
    half = t.shape[-1] // 2
    number = torch.arange(half)
    exponent = {
        "falling": -number / half,
        "half as fast": -number / t.shape[-1],
        "rising": number / half,
        "one for all": 0 * number,
    }[speeds]
    place = positions if places == "given" else torch.arange(len(positions)) + (places == "from 1")
    angle = sign * place[:, None] * theta**exponent  # (time, half)
    a, b = (t[..., :half], t[..., half:]) if pairs == "halves" else (t[..., ::2], t[..., 1::2])
    turned = a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()
    together = (pairs == "halves") == (back == "as they came")
    return torch.cat(turned, -1) if together else torch.stack(turned, -1).flatten(-2)


MISTURNED: tuple[tuple[dict[str, Any], str], ...] = (
    (
        {"pairs": "neighbours"},
        "you pair neighbours, 0 with 1 and 2 with 3. Some models do. Llama pairs number i with number i + head_dim/2.",
    ),
    (
        {"back": "otherwise"},
        "the turned numbers stand in the wrong places: you pair the halves, and put the pairs back side by side. Put "
        "half after half: torch.cat.",
    ),
    ({"sign": -1}, "you turn the other way: a·cos − b·sin comes first, then b·cos + a·sin."),
    (
        {"speeds": "half as fast"},
        "the exponent is −i/head_dim. It is −2i/head_dim: i divided by *half* of head_dim.",
    ),
    (
        {"speeds": "rising"},
        "the last pair is the fastest in your function. The exponent is negative: the first is.",
    ),
    ({"speeds": "one for all"}, "all pairs turn at one speed. Pair i has the speed θ^(−2i/head_dim)."),
    (
        {"places": "from 0"},
        "you count the positions anew from 0. Use those that are given: a text may go on where another part ended.",
    ),
    ({"places": "from 1"}, "you count the positions anew from 1. Use those that are given."),
    (
        {"pairs": "neighbours", "places": "from 0"},
        "you pair neighbours, and count the positions from 0. Llama pairs i with i + head_dim/2, at the given positions.",
    ),
)


@exercise("01j")
def check_rotary(answer: Any) -> Reply:
    """A function (t, positions, theta) -> t with each pair of numbers turned by its angle."""
    t, positions, theta = practice_turn()
    found = tensor(value_of(answer, t.clone(), positions.clone(), theta))
    if found.shape != t.shape:
        return wrong(f"the shape is {tuple(found.shape)}; turning keeps it, here {tuple(t.shape)}.")
    if _same(found, turned_with(t, positions, theta)):
        return right(
            "Each pair is turned by its angle, and a score depends only on how far two tokens are apart."
        )
    if _same(found, t):
        return wrong("nothing was turned: the numbers are those that came in.")
    for choices, reason in MISTURNED:
        if _same(found, turned_with(t, positions, theta, **choices)):
            return wrong(reason)
    if not torch.allclose(found.norm(dim=-1), t.norm(dim=-1), rtol=1e-4):
        return wrong(
            "the lengths changed, and turning keeps a length. Take both numbers of a pair as they *came in*: a·cos − b·sin "
            "and b·cos + a·sin."
        )
    return wrong(
        "each length is right, so you do turn. Print the angles: position times θ^(−2i/head_dim), for pair i."
    )
