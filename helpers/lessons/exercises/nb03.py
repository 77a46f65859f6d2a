"""Checks for the exercises of ``03_parameter_ratios``: counts of GPT-Neo 125M, and what a plan saves.

The counts stand here as numbers, so that a check is instant; a test compares them with the config.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from helpers.lessons.cases import judge_function
from helpers.lessons.checks import Reply, exercise, judge_number, right, wrong
from helpers.lessons.reading import finite, named, number, plain

COUNTS = {
    "attention": 28_320_768,
    "mlp": 56_669_184,
    "norm": 38_400,
    "token_embedding": 38_597_376,
    "position_embedding": 1_572_864,
}
MAIN = COUNTS["mlp"] + COUNTS["norm"]
TOTAL = sum(COUNTS.values())
HEAD = COUNTS["token_embedding"]  # tied: the same tensor


# One block: its MLP alone, with its two LayerNorms, and with the last LayerNorm of the model as well
_ONE_BLOCK = tuple(COUNTS["mlp"] // 12 + n_norms * 2 * 768 for n_norms in (0, 1, 2, 3))


def _rounded(answer: Any) -> bool:
    """Whether an answer is the right count with digits left out: in millions, or as 56,700,000."""
    value = finite(answer)
    if value < 1_000:
        return abs(value - MAIN / 1e6) < 0.5
    return abs(value - MAIN) < 0.5e6 and value % 1_000 == 0


@exercise("03a")
def trainable_of_the_main_plan(answer: Any) -> Reply:
    """Parameters that train with attention and embeddings frozen."""
    if _rounded(answer):
        in_millions = ", in millions" if finite(answer) < 1_000 else ""
        return wrong(
            f"this is near{in_millions}. Give all the digits: a rounded number does not show whether the "
            "LayerNorms and the biases are in it."
        )
    if any(math.isclose(finite(answer), scale * MAIN / TOTAL, rel_tol=1e-2) for scale in (1, 100)):
        return wrong("this is R, the share that trains. Asked is how many parameters that is.")
    return judge_number(
        answer,
        MAIN,
        "56,707,584: the MLPs (56,669,184) and 25 LayerNorms (38,400).",
        {
            MAIN
            + HEAD: "you counted the head as a trainable tensor of its own. It is tied to the token embedding: one "
            "tensor, and frozen.",
            COUNTS[
                "mlp"
            ]: "the MLPs are right. The LayerNorms train as well, and their 38,400 parameters are missing.",
            MAIN - 2 * 768: "almost: the LayerNorm after the last block is missing. There are 25, not 24.",
            MAIN - 25 * 768: "a LayerNorm has a scale and a shift: 2 x 768 numbers, not 768.",
            MAIN
            - 12
            * (
                4 * 768 + 768
            ): "the matrices and the LayerNorms are right. The biases of the MLP's two layers are missing.",
            12 * 2 * 4 * 768**2: "the MLP's matrices are right. Its biases and the LayerNorms are missing.",
            MAIN / 12: "this is divided by 12. The model has 12 blocks, and each has its own MLP.",
            **dict.fromkeys(
                _ONE_BLOCK,
                "this is one block. The model has 12, and each has an MLP of its own. (The "
                "LayerNorm after the last block is there once.)",
            ),
            MAIN
            - 12
            * (
                4 * 768**2 + 768
            ): "you counted the first of the MLP's two layers. It has a second one, back to the width.",
            MAIN
            - 12
            * (
                4 * 768**2 + 4 * 768
            ): "you counted the second of the MLP's two layers. It has a first one, to the inner width.",
            MAIN
            - 12 * 2 * 768: "one LayerNorm is missing in each block: a block has two, one before each part.",
            MAIN
            - 13
            * 2
            * 768: "you counted one LayerNorm a block. A block has two, and one more stands after the last.",
            MAIN
            + COUNTS[
                "position_embedding"
            ]: "you left the position embedding (wpe) trainable. The plan freezes both embeddings.",
            TOTAL - MAIN: "this is what the plan freezes. Asked is what trains.",
            COUNTS["attention"]
            + COUNTS["norm"]: "this is attention and LayerNorm: the opposite plan. Freezing the "
            "attention trains the MLP.",
            TOTAL: "this is the whole model.",
            TOTAL
            + HEAD: "163,795,968 is the whole model with the tied head counted twice; named_parameters() lists it "
            "once. Asked is what trains.",
        },
        otherwise="Write down the shapes of one MLP and one LayerNorm, and multiply.",
    )


# --- 03b ---------------------------------------------------------------------------

_NEAREST = {"attention", "token_embedding"}
_SPOKEN = {
    "wte": "token_embedding",
    "wpe": "position_embedding",
    "norms": "norm",
    "layernorm": "norm",
    "attn": "attention",
    "token embedding": "token_embedding",
    "position embedding": "position_embedding",
}


@exercise("03b")
def whole_roles_nearest_65_million(answer: Any) -> Reply:
    """The trained roles: a list, tuple or set of names, or text such as "attention + token_embedding"."""
    if isinstance(plain(answer), (int, float)):
        return _judge_sum(number(answer))
    if not isinstance(answer, (str, Iterable)):
        raise ValueError(f"names of roles are asked for, found {named(answer)}")
    roles = _roles(answer)
    n = sum(COUNTS[role] for role in roles)
    if roles == _NEAREST:
        return right(
            "66,918,144: the roles that the article says it freezes. No choice of whole roles gives 65 M."
        )
    if roles in ({"attention", "mlp"}, {"attention", "mlp", "norm"}):
        return wrong(
            f"these sum to {n:,}, which is far from 65 M: try all 31. ({n / 1e6:.0f} M is 48% less than 163.8 M, a total "
            "that counts the tied head twice. If that is why you chose it: compare counts, not shares.)"
        )
    if roles == _NEAREST | {"norm"}:
        return wrong(f"very near: {n:,}. But the LayerNorms take it a little further away from 65 M.")
    if roles == set(COUNTS) - _NEAREST:
        return wrong(
            f"these sum to {n:,}, which is too little by 6.7 M. If you meant what stays *frozen*, give what "
            "trains. If you wanted attention frozen, or the largest sum *below* 65 M: asked is the nearest of all, and "
            "it may lie above."
        )
    if roles == {"norm"}:
        return wrong(
            f"these sum to {n:,}, the smallest sum of all. If you looked for the smallest difference: its sign must not "
            "count, so take abs()."
        )
    if roles == {"mlp", "norm"}:
        return wrong(
            f"this is the plan as the article describes it, {n:,}. Other choices come nearer to 65 M."
        )
    if roles == _NEAREST | {"position_embedding"}:
        return wrong(
            f"these are all the roles that the article says it freezes, {n:,}. The position embedding is one too many: "
            "without it the sum is nearer to 65 M."
        )
    return wrong(
        f"these sum to {n:,}, {abs(n - 65_000_000):,} away from 65 M. Another choice is nearer: try all 31."
    )


def _roles(answer: Any) -> set[str]:
    words = (
        answer.replace("+", ",").replace(" and ", ",").split(",") if isinstance(answer, str) else list(answer)
    )
    names = [str(word).strip().lower() for word in words]
    roles = {_SPOKEN.get(name, name) for name in names}
    unknown = sorted(roles - set(COUNTS))
    if unknown or not roles:
        raise ValueError(f"the roles are {', '.join(COUNTS)}; found {', '.join(unknown) or 'none'}")
    return roles


def _judge_sum(n: float) -> Reply:
    if n == sum(COUNTS[role] for role in _NEAREST):
        return wrong("this is the right sum. Give the names of the roles that make it, as a list.")
    return wrong("give the names of the roles that train, as a list.")


# --- 03c ---------------------------------------------------------------------------

FALL = 9.1  # percent: the peak in the stock setting at 8 x 512 tokens (helpers/costs/step_cost.py; a test compares)

_MISTAKES = (  # (low, high) in percent, and what probably happened
    (
        53,
        57,
        "you multiplied everything by R. Activations and logits are most of the peak, and they do not depend on "
        "R.",
    ),
    (44, 46.5, "0.45 is R itself. Which lines of the table are multiplied by R?"),
    (
        39.5,
        42.5,
        "you left out the activations and the logits: this is the fall of parameters, gradients and optimizer "
        "state alone. At the peak there is much more.",
    ),
    (
        10.5,
        12.2,
        "this is near two mistakes. Either you counted gradients: at the fullest moment they are not made yet, look at "
        "the second column. Or you took away all of the optimizer state: only the part of the frozen weights goes.",
    ),
    (
        36,
        39,
        "you let the activations shrink with R as well. They stay nearly what they are: of this table, only the optimizer "
        "state has a part for each trainable parameter.",
    ),
    (24, 31, "this is the article's number, or a guess. Work it out from the table, kind by kind."),
    (20, 23, "this is the fall with the course's engine. Asked is the stock setting."),
    (
        0,
        0,
        "0% is not near: a weight that does not train has no moments, so the optimizer state shrinks with R.",
    ),
    (4.5, 4.95, "this is what *stays* of the optimizer state. Asked is what goes: 1 - R of it."),
    (480, 830, "this looks like MiB. Divide what is saved by the whole peak: percent is asked for."),
    (87, 96, "this is what *remains* of the peak. Asked is by how much it falls."),
)


@exercise("03c")
def fall_of_the_peak(answer: Any) -> Reply:
    """Percent by which the peak falls, stock setting; either sign is read as well."""
    size = abs(number(answer))
    if 0 < size < 1:
        reply = fall_of_the_peak(100 * size)
        said = "right, as a share" if reply.ok else reply.message
        return wrong(f"{said} (And a number of percent is asked for, a hundred times as much.)")
    if 5 <= size <= 10.4:
        return right(
            f"The budget says {FALL}%: the optimizer state shrinks with R, which alone is almost 6%, and the "
            "activations by a little. The rest does not shrink."
        )
    for low, high, reason in _MISTAKES:
        if low <= size <= high:
            return wrong(reason)
    return wrong(
        f"{size:.3g}% is not near. Only what there is once for each trainable parameter shrinks with R. "
        "Divide what is saved by the whole peak."
    )


# --- 03d ---------------------------------------------------------------------------

FREE = 14_000  # MiB
PEAKS = {
    "full": {1: 2426.4, 8: 9045.4},
    "main": {1: 1866.3, 8: 8222.8},
}  # MiB, stock setting; a test compares
BATCHES = (13, 14)


def _straight_line(peaks: Mapping[int, float]) -> float:
    """The batch, not yet whole, at which a straight line through two peaks meets `FREE`."""
    slope = (peaks[8] - peaks[1]) / 7
    return 1 + (FREE - peaks[1]) / slope


@exercise("03d")
def largest_batches(answer: Any) -> Reply:
    """Two whole numbers, full and main plan: a list, tuple, tensor or a dict with the keys full and main."""
    found = tuple(number(value) for value in _pair(answer))
    exact = tuple(_straight_line(peaks) for peaks in PEAKS.values())
    known = {
        tuple(
            FREE // peaks[1] for peaks in PEAKS.values()
        ): "you divided by the peak of one window. The state is in that number too, and it is there once, however "
        "many windows there are. Split the peak into a fixed part and a part for each window.",
        tuple(8 * FREE // peaks[8] for peaks in PEAKS.values()):  # both mistakes give 12 and 13
        "one window too few in each, and there are two ways to get there. Either you divided the rest by what a "
        "window costs and forgot the first window, whose cost is in the peak of batch 1: add 1. Or you took an "
        "eighth of the peak at batch 8 for each window: part of it is the state, which does not grow.",
        tuple(
            math.ceil(x) for x in exact
        ): "one window too many in each, and there are three ways to get there. You rounded up, and the next whole "
        "window does not fit any more. Or you divided all 14,000 by what a window costs: the fixed part needs its room "
        "first. Or you counted the first window twice: 1 is added only if its cost was taken away with the fixed part.",
        (
            13,
            28,
        ): "you divided by R. R says how many parameters train; most of the peak does not depend on it.",
        tuple(
            math.floor(1 + (FREE - peaks[1]) / ((peaks[8] - peaks[1]) / 8)) for peaks in PEAKS.values()
        ): "you divided the difference of the two peaks by 8. From batch 1 to batch 8 there are 7 windows more.",
        BATCHES[::-1]: "the numbers are right, and the order is not: full training first.",
    }
    if found == BATCHES:
        return right(
            "13 and 14. Freezing 55% of the parameters makes room for one more window: what each window "
            "needs hardly changes."
        )
    if found in known:
        return wrong(known[found])
    if all(abs(a - b) < 0.1 for a, b in zip(found, exact, strict=True)):
        return wrong(
            "the lines are right, but a batch is a whole number of windows. Which whole number still fits?"
        )
    whole = tuple(map(math.floor, map(finite, found)))
    if whole in known:
        return wrong(known[whole])
    return wrong(
        f"{found[0]:g} and {found[1]:g} are not it. For each plan: what does one more window cost, and what "
        "is there before the first window?"
    )


def _pair(answer: Any) -> list:
    if isinstance(answer, Mapping):
        answer = [answer[key] for key in ("full", "main") if key in answer]
    values = answer.tolist() if hasattr(answer, "tolist") else answer
    if not isinstance(values, (list, tuple)) or len(values) != 2:
        raise ValueError("two numbers are asked for, such as [10, 12]: full training, then the main plan")
    return list(values)


# --- Checks for the two exercises of ``03_parameter_ratios`` that ask for a function: a chain, and any size ---


# --- 03e: where the frozen layers stand --------------------------------------------

T, F = True, False
CHAINS = (
    [T, T, T, T],
    [F, F, T, T],
    [T, T, F, F],
    [F, F, F, T],
    [T, F, F, F],
    [T, F, T, F],
    [F, T, F, F, T, F],
)


def step_share(trains: list[bool], price: Callable | None = None) -> float:
    """FLOPs of a step of a chain of equal linear layers, first layer first, as a share of full training's."""
    price = price or _price
    return price(trains) / price([True] * len(trains))


def _price(trains: list[bool]) -> int:
    """Terms: a forward each, a weight gradient where it trains, an input gradient where something below trains."""
    return len(trains) + sum(trains) + sum(any(trains[:i]) for i in range(len(trains)))


_STOPPED = (
    "you let a frozen layer stop the gradient. If anything *below* it trains, the gradient must pass through it: the "
    "second term stays."
)
_ALWAYS = (
    "you always count the backward pass to the input. Below the first layer that trains nobody needs it: where the "
    "frozen layers stand decides."
)
_CHAIN_MISTAKES: tuple[tuple[Callable, str], ...] = (  # wrong counts of the terms, and what probably happened
    (lambda t: len(t) + 2 * sum(t) - any(t), _STOPPED),
    (lambda t: len(t) + 2 * sum(t), _STOPPED),
    (lambda t: len(t) + sum(t) + sum(t[1:]), _STOPPED),
    (
        lambda t: len(t) + sum(t) + sum(t[:-1]),
        "you ask only whether the layer directly below trains. The gradient of an input is needed if *any* layer below "
        "trains: any(trains[:i]).",
    ),
    (lambda t: 2 * len(t) - 1 + sum(t), _ALWAYS),
    (lambda t: 2 * len(t) + sum(t), _ALWAYS),
    (
        lambda t: len(t) + sum(t) + sum(any(t[: i + 1]) for i in range(len(t))),
        "almost: you give an input gradient to the first trainable layer as well. Nothing below it trains, so nobody "
        "needs it. In full training that is layer 1.",
    ),
    (
        lambda t: _price(t[::-1]),
        "you read the list from the wrong end: the first entry is the layer next to the input.",
    ),
    (
        lambda t: len(t) + sum(t) + sum(any(t[i:]) for i in range(len(t))),
        "you ask whether a layer *above* trains. The gradient of an input is needed by the layers below it: trains[:i].",
    ),
    (
        lambda t: len(t) + sum(t),
        "the second term is missing: the gradient with respect to the input of a layer.",
    ),
)


def _chain_mistakes() -> dict[Callable, str]:
    """Wrong shares to what probably happened; each wrong count is divided by what it or the right one gives in full."""
    shares: dict[Callable, str] = {
        lambda t: (
            sum(t) / len(t)
        ): "you return the trainable share R. The forward pass, and the gradients that pass "
        "through frozen layers, cost time too.",
        lambda t: (
            _price(t) / 11
        ): "you always divide by 11, the terms of full training with four layers. Another number of layers has others.",
        _price: "you return the number of terms. Divide by the number of terms when every layer trains.",
        lambda t: (
            _price(t) / (3 * len(t))
        ): "the terms are right. Full training has one less than three a layer: the "
        "first layer has no backward to its input.",
        lambda t: (
            (_price(t) - len(t)) / (2 * len(t) - 1)
        ): "the forward pass is missing. Every layer does it, frozen or not.",
    }
    for price, reason in _CHAIN_MISTAKES:
        shares[lambda t, price=price: step_share(t, price)] = reason
        shares[lambda t, price=price: price(t) / (3 * len(t) - 1)] = reason
        shares[lambda t, price=price: price(t) / (3 * len(t))] = reason
    return shares


@exercise("03e")
def share_of_a_chain(answer: Any) -> Reply:
    """A function from a list of True and False (first layer first) to a share of full training's FLOPs."""
    reply = judge_function(
        answer,
        [(list(chain),) for chain in CHAINS],
        step_share,
        _chain_mistakes(),
        "Equal R, unequal cost: what is frozen at the start saves two terms, what is frozen elsewhere saves one.",
    )
    if not reply.ok:
        return reply
    return judge_function(
        answer,
        [([F, F, F],)],
        step_share,
        {
            lambda t: (
                0
            ): "right wherever something trains. With everything frozen there is still the forward pass.",
        },
        reply.message,
    )


# --- 03f: counts for any size ------------------------------------------------------

SIZES = (
    (768, 12, 3072, 50_257, 2048, True),
    (192, 4, 768, 4096, 256, True),
    (64, 3, 100, 1000, 128, True),
    (64, 3, 100, 1000, 128, False),
)  # width, n_layers, inner, vocabulary, positions, tied


def gpt_neo_counts(
    width,
    n_layers,
    inner,
    vocabulary,
    positions,
    tied,
    *,
    head_trains=True,
    head_counts=True,
    last_norm=True,
    qkv_biases=False,
    out_bias=True,
    mlp_biases=True,
    head_bias=False,
    position_counts=True,
    norm_vectors=2,
) -> tuple[int, int]:
    """(trainable, all) parameters of a GPT-Neo of these sizes with attention and embeddings frozen."""
    attention = n_layers * (4 * width**2 + (3 * qkv_biases + out_bias) * width)
    mlp = n_layers * (2 * width * inner + mlp_biases * (inner + width))
    norms = (2 * n_layers + last_norm) * norm_vectors * width
    head = 0 if tied or not head_counts else vocabulary * (width + head_bias)
    everything = attention + mlp + norms + (vocabulary + position_counts * positions) * width + head
    return mlp + norms + (head if head_trains else 0), everything


def _but(**changes) -> Callable:
    return lambda *sizes: gpt_neo_counts(*sizes, **changes)


def _tied_counted_twice(width, n_layers, inner, vocabulary, positions, tied):
    return gpt_neo_counts(width, n_layers, inner, vocabulary, positions, False)


def _total_counts_twice(*sizes):
    return gpt_neo_counts(*sizes)[0], _tied_counted_twice(*sizes)[1]


def _four_times(width, n_layers, inner, vocabulary, positions, tied):
    return gpt_neo_counts(width, n_layers, 4 * width, vocabulary, positions, tied)


def _frozen(*sizes):
    trainable, everything = gpt_neo_counts(*sizes)
    return everything - trainable, everything


@exercise("03f")
def counts_for_any_size(answer: Any) -> Reply:
    """A function of six sizes that returns (trainable, all)."""
    twice = "you count the head also where it is tied. Then it is the token embedding itself: one tensor, counted once."
    return judge_function(
        answer,
        SIZES,
        gpt_neo_counts,
        {
            _but(
                head_counts=False
            ): "you forgot the head where it is not tied. Then it is a matrix of its own, width x "
            "vocabulary, and it belongs to all parameters.",
            _but(
                head_trains=False
            ): "you froze the untied head with the embeddings. The plan freezes attention and "
            "embeddings; an untied head is neither, so it trains.",
            _but(
                out_bias=False
            ): "the attention's bias is missing: its output projection has one in each block.",
            _but(mlp_biases=False): "the biases of the MLP's two layers are missing.",
            _but(
                head_bias=True
            ): "you gave the untied head a bias. It has none: width x vocabulary, and no more.",
            _but(
                position_counts=False
            ): "the position embedding is missing: it is frozen, and it counts in all.",
            lambda *sizes: gpt_neo_counts(
                *sizes[:-1], not sizes[-1]
            ): "you turned tied round: if tied is True, the head adds nothing.",
            _but(norm_vectors=1): "a LayerNorm has a scale and a shift: 2 x width numbers.",
            lambda *sizes: (
                gpt_neo_counts(*sizes)[0],
                _frozen(*sizes)[0],
            ): "the second number is what the plan freezes. Asked are all parameters.",
            _tied_counted_twice: twice,
            _total_counts_twice: twice,
            _four_times: "you took 4 x width for the inner width of the MLP. That is usual, and not certain: the size is "
            "given.",
            _but(last_norm=False): "a LayerNorm is missing: one stands after the last block.",
            _but(
                qkv_biases=True
            ): "you gave q, k and v a bias. In GPT-Neo only the output projection of the attention has one.",
            lambda *sizes: gpt_neo_counts(*sizes)[
                ::-1
            ]: "both numbers are right, and the order is not: trainable first.",
            _frozen: "the first number is what the plan freezes. Asked is what trains.",
            lambda *sizes: gpt_neo_counts(
                *SIZES[0]
            ): "you return the numbers of GPT-Neo 125M whatever the sizes are. Use the arguments.",
            lambda *sizes: gpt_neo_counts(*sizes)[0]: "return two numbers: trainable, and all.",
            lambda *sizes: (
                gpt_neo_counts(*sizes)[0] / gpt_neo_counts(*sizes)[1]
            ): "this is R. Return two numbers: trainable, and all.",
        },
        "One line a part, for any size. With an untied head the same plan trains another share: R belongs to a plan "
        "*and* a model.",
    )
