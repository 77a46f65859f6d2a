"""Checks of notebook 01: the heart of a block, written by the reader.

01g is a LayerNorm, 01h one attention head, 01i the proof that two computations are equal.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from itertools import combinations
from types import SimpleNamespace
from typing import Any

import torch

from helpers.lessons.checks import AnswerFault, Reply, call, exercise, right, value_of, wrong
from helpers.lessons.exercises.nb01 import CLOSE, residual_error
from helpers.lessons.reading import named, plain, tensor

Choices = dict[str, Any]
HIDDEN = -1e9  # as good as -inf, and no NaN where a row has nothing else


def _faults_in(faults: Mapping[str, tuple[Choices, str]]) -> Iterator[tuple[Choices, str]]:
    """Each fault alone, then each two of them that touch different choices: what to compute, and what to say."""
    yield from faults.values()
    for (one, first), (two, second) in combinations(faults.values(), 2):
        if not set(one) & set(two):
            yield one | two, f"two things. First, {first} Second, {second}"


def _is(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    return found.shape == wanted.shape and residual_error(found, wanted) < CLOSE


# --- 01g: LayerNorm ----------------------------------------------------------------


def practice_norm() -> tuple[torch.Tensor, SimpleNamespace]:
    """An input (2, 5, 12) and the numbers of a LayerNorm; token 1 hardly varies, so that ε is seen."""
    dice = torch.Generator().manual_seed(5)
    x = torch.randn(2, 5, 12, generator=dice) * 2 + 1
    x[:, 1] = 3e-3 * torch.randn(2, 12, generator=dice)
    weight = 1 + 0.5 * torch.randn(12, generator=dice)
    return x, SimpleNamespace(weight=weight, bias=torch.randn(12, generator=dice), eps=1e-5)


def norm_with(
    x: torch.Tensor,
    ln: Any,
    axes: tuple[int, ...] = (-1,),
    centred: bool = True,
    spread: str = "variance",
    n_less: int = 0,
    eps: str = "inside",
    affine: str = "weight, bias",
) -> torch.Tensor:
    """LayerNorm; the defaults are the true one (Ba and others 2016), each other choice is a known mistake."""
    mean = x.mean(axes, keepdim=True)
    squares = x**2 if spread == "mean square" else (x - mean) ** 2
    n = math.prod(x.shape[axis] for axis in axes)
    variance = squares.sum(axes, keepdim=True) / (n - n_less) + (ln.eps if eps == "inside" else 0)
    scale = variance if spread == "no root" else variance.sqrt()
    scale = scale + (ln.eps if eps == "outside" else 0)
    normed = (x - mean if centred else x) / scale
    return {
        "weight, bias": lambda: ln.weight * normed + ln.bias,
        "weight": lambda: ln.weight * normed,
        "bias": lambda: normed + ln.bias,
        "nothing": lambda: normed,
        "exchanged": lambda: ln.bias * normed + ln.weight,
        "bias first": lambda: ln.weight * (normed + ln.bias),
    }[affine]()


NORM_FAULTS: dict[str, tuple[Choices, str]] = {
    "no eps": (
        {"eps": "none"},
        "ε is missing. A token whose numbers hardly differ is then divided by almost 0: add ln.eps to the variance.",
    ),
    "eps outside": (
        {"eps": "outside"},
        "ε is added after the root. It belongs to the variance, under the root.",
    ),
    "unbiased": (
        {"n_less": 1},
        "the variance is divided by width − 1. LayerNorm divides by the width: var(-1, unbiased=False).",
    ),
    "no root": ({"spread": "no root"}, "you divide by the variance. Divide by its root."),
    "time": (
        {"axes": (1,)},
        "mean and variance are taken over the tokens. Take them over the width, the last axis, for each token alone.",
    ),
    "batch": (
        {"axes": (0,)},
        "mean and variance are taken over the batch. Take them over the width, the last axis, for each token alone.",
    ),
    "a whole text": (
        {"axes": (1, 2)},
        "mean and variance are taken over a whole text. Each token has its own: the last axis alone.",
    ),
    "everything": (
        {"axes": (0, 1, 2)},
        "mean and variance are taken over all numbers together. Each token has its own: mean(-1, keepdim=True).",
    ),
    "mean stays": ({"centred": False}, "the mean is not taken away: the formula begins with x − μ."),
    "mean square": (
        {"spread": "mean square"},
        "the variance is the mean of (x − μ)², and you take the mean of x².",
    ),
    "no bias": ({"affine": "weight"}, "the learned shift is missing: + ln.bias."),
    "no weight": ({"affine": "bias"}, "the learned scale is missing: ln.weight *."),
    "neither": ({"affine": "nothing"}, "the two learned vectors are missing: ln.weight * … + ln.bias."),
    "exchanged": (
        {"affine": "exchanged"},
        "weight and bias are exchanged: the weight multiplies, the bias is added.",
    ),
    "bias first": (
        {"affine": "bias first"},
        "the bias is multiplied too. The weight comes first, then the bias.",
    ),
}


@exercise("01g")
def check_layer_norm(answer: Any) -> Reply:
    """A function (x, ln) -> the normalised x, on an input where every part of the formula matters."""
    x, ln = practice_norm()
    given = x.clone()
    try:
        found = tensor(value_of(answer, given, ln))
    except AnswerFault as fault:
        raise _with_a_hint(
            fault, "must match", "mean(-1) drops the last axis; mean(-1, keepdim=True) keeps it"
        ) from fault
    if found.shape != x.shape:
        return wrong(
            f"the shape is {tuple(found.shape)}. A LayerNorm keeps the shape, here {tuple(x.shape)}."
        )
    if _is(found, norm_with(x, ln)):
        if not torch.equal(given, x):
            return wrong(
                "the numbers are right, but you wrote them into x. The skip still needs x: make a new tensor, "
                "as x - mean does."
            )
        return right("This is LayerNorm, to the last part of its formula.")
    for choices, reason in _faults_in(NORM_FAULTS):
        if _is(found, norm_with(x, ln, **choices)):
            return wrong(reason)
    return wrong(
        "these are other numbers. Go through the formula from the inside: mean, difference, variance, root, "
        "weight, bias. Print each for one token."
    )


def _with_a_hint(fault: AnswerFault, sign: str, hint: str) -> AnswerFault:
    """The fault, with a hint where its message shows the sign."""
    return AnswerFault(f"{fault}. Probably: {hint}.") if sign in str(fault) else fault


# --- 01h: one head -----------------------------------------------------------------


def practice_tokens() -> tuple[torch.Tensor, ...]:
    """Six normalised tokens (6, 10), and the weights of one head's q, k and v, each (4, 10)."""
    dice = torch.Generator().manual_seed(6)
    u = torch.randn(6, 10, generator=dice)
    return (u, *(0.5 * torch.randn(3, 4, 10, generator=dice)))


def head_with(
    u: torch.Tensor,
    w_q: torch.Tensor,
    w_k: torch.Tensor,
    w_v: torch.Tensor,
    divide: float = 1.0,
    turned: bool = False,
    mask: str = "causal",
    hide: str = "before",
    over: int = -1,
    mix: str = "values",
) -> torch.Tensor:
    """One head of GPT-Neo: (time, head_dim); the defaults are the true one, each other choice is a known mistake."""
    q, k, v = u @ w_q.T, u @ w_k.T, u @ w_v.T  # each (time, head_dim)
    n, scores = len(u), (k @ q.T if turned else q @ k.T) / divide  # (queries, keys)
    may_see = {
        "causal": torch.ones(n, n).tril().bool(),
        "wrong way": torch.ones(n, n).triu().bool(),
        "without itself": torch.ones(n, n).tril(-1).bool(),
        "one too many": torch.ones(n, n).tril(1).bool(),
        "none": torch.ones(n, n).bool(),
    }[mask]
    hidden = {"before": HIDDEN, "with 0": 0.0, "after": scores}[hide]
    weights = torch.where(may_see, scores, torch.as_tensor(hidden)).softmax(over)
    weights = weights * may_see if hide == "after" else weights
    return {"values": lambda: weights @ v, "keys": lambda: weights @ k, "turned": lambda: weights.T @ v}[
        mix
    ]()


def _last_row_without_softmax(u, w_q, w_k, w_v):
    """The last token sees every key, so that no -inf hides what was done."""
    return (u[-1] @ w_q.T) @ (u @ w_k.T).T @ (u @ w_v.T)


HEAD_FAULTS: dict[str, tuple[Choices, str]] = {
    "divided": (
        {"divide": 4**0.5},
        "the scores are divided by √head_dim. Most models do this; GPT-Neo does not.",
    ),
    "divided by the width": (
        {"divide": 10**0.5},
        "the scores are divided by the root of the width. Others divide by √head_dim; GPT-Neo does not divide at all.",
    ),
    "turned": ({"turned": True}, "queries and keys are exchanged: a row is a query, so q @ k.T."),
    "wrong way": (
        {"mask": "wrong way"},
        "the mask is the wrong way round: each token sees the later ones. Keep the lower triangle, tril.",
    ),
    "without itself": (
        {"mask": "without itself"},
        "a token does not see itself. It does: the diagonal stays, tril() and not tril(-1).",
    ),
    "one too many": (
        {"mask": "one too many"},
        "a token sees the next one too. Keep tril(), with nothing above it.",
    ),
    "no mask": ({"mask": "none"}, "the mask is missing: token 0 sees all the others."),
    "hidden with 0": (
        {"hide": "with 0"},
        "hidden scores are 0, and 0 is a score like any other: e^0 = 1. Use -inf.",
    ),
    "hidden after": (
        {"hide": "after"},
        "the mask comes after the softmax, so the rows no longer sum to 1. Hide the scores first.",
    ),
    "over the queries": (
        {"over": 0},
        "the softmax runs over the queries: columns sum to 1. Each row must: softmax(-1).",
    ),
    "keys mixed": ({"mix": "keys"}, "you mix the keys. What is handed over are the values: weights @ v."),
    "weights turned": (
        {"mix": "turned"},
        "the weights are turned round before the mixing: weights @ v, not weights.T @ v.",
    ),
}


@exercise("01h")
def check_head(answer: Any) -> Reply:
    """A function (u, w_q, w_k, w_v) -> what one head of GPT-Neo hands on, (time, head_dim)."""
    parts = practice_tokens()
    try:
        found = tensor(value_of(answer, *(part.clone() for part in parts)))
    except AnswerFault as fault:
        raise _with_a_hint(
            fault, "cannot be multiplied", "PyTorch stores a weight as (out, in), so turn it: u @ w_q.T"
        ) from fault
    u, w_v = parts[0], parts[3]
    n, width = u.shape
    if found.shape == (n, n):
        return wrong(
            "these are 6 x 6 numbers, one for each two tokens: scores or weights. The values are not mixed yet: "
            "weights @ v."
        )
    if found.shape == (n, width):
        return wrong("you mix the tokens u themselves. Mix their values, v = u @ w_v.T.")
    if found.shape != (n, len(w_v)):
        return wrong(
            f"the shape is {tuple(found.shape)}. For each of the {n} tokens head_dim numbers are asked for: "
            f"({n}, {len(w_v)})."
        )
    if _is(found[-1], _last_row_without_softmax(*parts)):
        return wrong("the softmax is missing: the values are mixed with the scores themselves.")
    if found.isnan().any():
        return wrong(
            "there is NaN. A row in which every score is -inf has no softmax: token 0 must see itself. Or -inf was "
            "multiplied by 0: use masked_fill."
        )
    if _is(found, head_with(*parts)):
        return right(
            "One head of GPT-Neo. The model has many of them side by side, and nothing else mixes tokens."
        )
    if _is(found, u @ w_v.T):
        return wrong(
            "these are the values as they were. Each token must mix them with its weights: weights @ v."
        )
    for choices, reason in _faults_in(HEAD_FAULTS):
        if _is(found, head_with(*parts, **choices)):
            return wrong(reason)
    return wrong(
        "these are other numbers. Print each step for two tokens, q, k, v, scores, weights and mix, and compare with "
        "the five words of section 3."
    )


# --- 01i: the proof ----------------------------------------------------------------

Function = Callable[[torch.Tensor], torch.Tensor]
Proof = Callable[[Function, Function, list[torch.Tensor]], Any]


def _doubled(x):
    return 2 * x


def _wrong_at(token):
    def mine(x):
        y = 2 * x
        y[:, token] += 0.1
        return y

    return mine


def _writes_into_x(x):
    x.fill_(1.0)
    return 2 * x


def _off_up_and_down(x):
    return 2 * x + 0.1 * torch.tensor([1.0, -1.0]).repeat(x.shape[-1] // 2)


def _wrong_for_the_last(x):
    return 2 * x + (x[0, 0, 0] > 50)


def _a_little_off_for_the_last(x):
    return 2 * x * (1 + 2.5e-5 * (x[0, 0, 0] > 50))


def _wrong_for_the_first(x):
    return 2 * x + (x[0, 0, 0] < 50)


# (what the computation does, the computation, the true one, whether they are equal); inputs are (1, 6, 4)
PRACTICE_PROOFS: tuple[tuple[str, Function, Function, bool], ...] = (
    ("is the true one", _doubled, _doubled, True),
    ("is off by rounding alone", lambda x: 2 * x * (1 + 3e-7), _doubled, True),
    ("is off by one part in a thousand", lambda x: 2.002 * x, _doubled, False),
    ("is off by one part in forty thousand", lambda x: 2 * x * (1 + 2.5e-5), _doubled, False),
    (
        "is off by one part in forty thousand, for the last input alone",
        _a_little_off_for_the_last,
        _doubled,
        False,
    ),
    ("has the opposite sign", lambda x: -2 * x, _doubled, False),
    ("is wrong at the last token alone", _wrong_at(-1), _doubled, False),
    ("is wrong at the first token alone", _wrong_at(0), _doubled, False),
    ("is right for the first inputs and wrong for the last", _wrong_for_the_last, _doubled, False),
    ("is wrong for the first inputs and right for the last", _wrong_for_the_first, _doubled, False),
    ("is too large here and too small there, so that the mean error is 0", _off_up_and_down, _doubled, False),
    ("answers 0 where the true numbers are tiny", lambda x: 0 * x, lambda x: 1e-12 * x, False),
    ("has huge numbers, off by rounding alone", lambda x: 1e9 * x * (1 + 3e-7), lambda x: 1e9 * x, True),
    ("returns NaN", lambda x: x * float("nan"), _doubled, False),
    ("writes ones into its input before the true one reads it", _writes_into_x, _doubled, False),
)


def practice_inputs() -> list[torch.Tensor]:
    """Three inputs (1, 6, 4); only the last holds large numbers."""
    dice = torch.Generator().manual_seed(7)
    small = [1 + torch.rand(1, 6, 4, generator=dice) for _ in range(2)]
    return [*small, 100 + torch.rand(1, 6, 4, generator=dice)]


def is_proved_equal(
    mine: Function,
    real: Function,
    inputs: list[torch.Tensor],
    error: Callable[[torch.Tensor, torch.Tensor], Any] = residual_error,
    below: float = CLOSE,
    copied: bool = True,
    over: Callable[[Any], bool] = all,
) -> bool:
    """Whether the residual error is below the limit for every input; the other choices are known mistakes."""
    found = []
    for x in inputs:
        x = x.clone()
        y = mine(x.clone() if copied else x)
        found.append(bool(error(y, real(x)) < below))
    return bool(over(found))


def _mean_error(mine, real, inputs):
    return sum(residual_error(mine(x.clone()), real(x.clone())) for x in inputs) / len(inputs) < CLOSE


def _greater(mine, real, inputs):
    return not any(residual_error(mine(x.clone()), real(x)) > CLOSE for x in inputs)


MISPROVED: tuple[tuple[Proof, str], ...] = (
    (
        lambda mine, real, inputs: True,
        "your proof says True to everything, also to a computation with the opposite sign. Either it compares a tensor "
        "with itself (real with real?), or its limit is so loose that all passes, or it returns before it compares.",
    ),
    (
        lambda mine, real, inputs: False,
        "your proof says False to everything, also where both are the same function.",
    ),
    (
        lambda mine, real, inputs: not is_proved_equal(mine, real, inputs),
        "your answer is turned round: True must mean equal.",
    ),
    (
        lambda mine, real, inputs: is_proved_equal(mine, real, inputs, copied=False),
        "a computation that writes into its input deceives you: `real` then reads the changed x, and both agree. Give "
        "`mine` a copy: mine(x.clone()).",
    ),
    (
        _greater,
        "NaN passes your proof. Every comparison with NaN is False, so `error > 1e-5` never stops it. Ask `not error < 1e-5`.",
    ),
    (
        lambda mine, real, inputs: is_proved_equal(mine, real, inputs, below=1e-2),
        "your limit is too loose: an error of one part in a thousand passes. A rounding error is below 1e-5.",
    ),
    (
        lambda mine, real, inputs: is_proved_equal(mine, real, inputs, below=1e-4),
        "your limit is too loose: an error of one part in forty thousand passes. A rounding error is below 1e-5.",
    ),
    (
        _mean_error,
        "you ask for a small *mean* error over the inputs: one input that fails can hide behind those that agree. Ask of "
        "each input, or take the largest error.",
    ),
    (
        lambda mine, real, inputs: is_proved_equal(
            mine, real, inputs, lambda a, b: float(not torch.equal(a, b))
        ),
        "your proof asks for the same bits. Two ways to compute the same thing round differently: ask for a residual "
        "error below 1e-5.",
    ),
    (
        lambda mine, real, inputs: is_proved_equal(mine, real, inputs, lambda a, b: (a - b).norm()),
        "your error is not divided by the length of the true result. Huge numbers then fail by rounding, and tiny ones pass "
        "whatever they are.",
    ),
    (
        lambda mine, real, inputs: is_proved_equal(
            mine, real, inputs, lambda a, b: 0.0 if torch.allclose(a, b, rtol=CLOSE) else 1.0
        ),
        "allclose forgives an absolute error of 1e-8, so 0 passes where the true numbers are tiny. Use the residual error.",
    ),
    (
        lambda mine, real, inputs: is_proved_equal(
            mine, real, inputs, lambda a, b: ((a - b).sum() / b.sum()).abs()
        ),
        "errors of opposite sign cancel in your sum or mean. The length of the difference, (a - b).norm(), forgets no error.",
    ),
    (
        lambda mine, real, inputs: is_proved_equal(
            mine, real, inputs, lambda a, b: ((a.norm() - b.norm()) / b.norm()).abs()
        ),
        "you compare the lengths of the two results. Results of equal length can point anywhere: take the length of the "
        "difference, (a - b).norm().",
    ),
    (
        lambda mine, real, inputs: is_proved_equal(mine, real, inputs[:1]),
        "you look at the first input alone: a `return` inside the loop ends it. Return False at the first failure, and "
        "True after the loop.",
    ),
    (
        lambda mine, real, inputs: is_proved_equal(mine, real, inputs[-1:]),
        "you look at the last input alone: each round overwrites the one before it.",
    ),
    (
        lambda mine, real, inputs: is_proved_equal(mine, real, inputs, over=any),
        "one input that agrees is enough for you. All must agree.",
    ),
    (
        lambda mine, real, inputs: is_proved_equal(
            mine, real, inputs, lambda a, b: residual_error(a[:, -1], b[:, -1])
        ),
        "you compare the last token alone. Compare the whole tensors.",
    ),
    (
        lambda mine, real, inputs: is_proved_equal(
            mine, real, inputs, lambda a, b: residual_error(a[:, 0], b[:, 0])
        ),
        "you compare the first token alone. Compare the whole tensors.",
    ),
)


@exercise("01i")
def check_proof(answer: Any) -> Reply:
    """A function (mine, real, inputs) -> bool, tried on computations that are and are not equal."""
    found = tuple(_proof_of(answer, mine, real) for _, mine, real, _ in PRACTICE_PROOFS)
    if found == tuple(truth for *_, truth in PRACTICE_PROOFS):
        return right(
            f"{len(found)} computations, all told apart. This proof can fail, so it proves something."
        )
    for proof, reason in MISPROVED:
        if found == tuple(bool(proof(m, r, practice_inputs())) for _, m, r, _ in PRACTICE_PROOFS):
            return wrong(reason)
    missed = [
        f"one computation {what}: {truth} is right, and you say {not truth}."
        for (what, _, _, truth), said in zip(PRACTICE_PROOFS, found, strict=True)
        if said != truth
    ]
    return wrong(" ".join(missed[:2]))


def _proof_of(answer: Any, mine: Function, real: Function) -> bool:
    said = call(answer, mine, real, practice_inputs())
    if said is None:
        raise AnswerFault(
            "your function returns None. It must return True or False, also where all are equal."
        )
    said = plain(said)
    if not isinstance(said, (bool, int)):
        raise AnswerFault(f"your function returns {named(said)}. It must return True or False.")
    return bool(said)
