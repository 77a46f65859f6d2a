"""Checks for the two exercises of ``03_parameter_ratios`` that ask for a function: a chain, and any size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from helpers.cases import judge_function
from helpers.checks import Reply, exercise

# --- 03e: where the frozen layers stand --------------------------------------------

T, F = True, False
CHAINS = ([T, T, T, T], [F, F, T, T], [T, T, F, F], [F, F, F, T], [T, F, F, F], [T, F, T, F], [F, T, F, F, T, F])


def step_share(trains: list[bool], price: Callable | None = None) -> float:
    """FLOPs of a step of a chain of equal linear layers, first layer first, as a share of full training's."""
    price = price or _price
    return price(trains) / price([True] * len(trains))


def _price(trains: list[bool]) -> int:
    """Terms: a forward each, a weight gradient where it trains, an input gradient where something below trains."""
    return len(trains) + sum(trains) + sum(any(trains[:i]) for i in range(len(trains)))


@exercise("03e")
def share_of_a_chain(answer: Any) -> Reply:
    """A function from a list of True and False (first layer first) to a share of full training's FLOPs."""
    reply = judge_function(answer, [(list(chain),) for chain in CHAINS], step_share, {
        lambda t: sum(t) / len(t):
            "you return the trainable share R. The forward pass, and the gradients that pass through frozen layers, "
            "cost time too.",
        _price: "you return the number of terms. Divide by the number of terms when every layer trains.",
        lambda t: step_share(t, lambda u: len(u) + 2 * sum(u) - any(u)):
            "you let a frozen layer stop the gradient. If anything *below* it trains, the gradient must pass through "
            "it: the second term stays.",
        lambda t: step_share(t, lambda u: len(u) + 2 * sum(u)):
            "you let a frozen layer stop the gradient. If anything *below* it trains, the gradient must pass through "
            "it: the second term stays.",
        lambda t: step_share(t, lambda u: 2 * len(u) - 1 + sum(u)):
            "you always count the backward pass to the input. Below the first layer that trains nobody needs it: where "
            "the frozen layers stand decides.",
        lambda t: step_share(t, lambda u: 2 * len(u) + sum(u)):
            "you always count the backward pass to the input. Below the first layer that trains nobody needs it: where "
            "the frozen layers stand decides.",
        lambda t: step_share(t, lambda u: len(u) + sum(u) + sum(any(u[:i + 1]) for i in range(len(u)))):
            "almost: you give an input gradient to the first trainable layer as well. Nothing below it trains, so "
            "nobody needs it. In full training that is layer 1.",
        lambda t: step_share(t[::-1]): "you read the list from the wrong end: the first entry is the layer next to "
                                       "the input.",
        lambda t: step_share(t, lambda u: len(u) + sum(u)): "the second term is missing: the gradient with respect to "
                                                            "the input of a layer.",
        lambda t: (_price(t) - len(t)) / (2 * len(t) - 1): "the forward pass is missing. Every layer does it, frozen "
                                                           "or not.",
    }, "Equal R, unequal cost: what is frozen at the start saves two terms, what is frozen elsewhere saves one.")
    if not reply.ok:
        return reply
    return judge_function(answer, [([F, F, F],)], step_share, {
        lambda t: 0: "right wherever something trains. With everything frozen there is still the forward pass.",
    }, reply.message)


# --- 03f: counts for any size ------------------------------------------------------

SIZES = ((768, 12, 3072, 50_257, 2048, True), (192, 4, 768, 4096, 256, True), (64, 3, 100, 1000, 128, True),
         (64, 3, 100, 1000, 128, False))  # width, n_layers, inner, vocabulary, positions, tied


def gpt_neo_counts(width, n_layers, inner, vocabulary, positions, tied, *, head_trains=True, head_counts=True,
                   last_norm=True, qkv_biases=False) -> tuple[int, int]:
    """(trainable, all) parameters of a GPT-Neo of these sizes with attention and embeddings frozen."""
    attention = n_layers * (4 * width**2 + (4 if qkv_biases else 1) * width)
    mlp = n_layers * (2 * width * inner + inner + width)
    norms = (2 * n_layers + last_norm) * 2 * width
    head = 0 if tied or not head_counts else vocabulary * width
    everything = attention + mlp + norms + (vocabulary + positions) * width + head
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
    return judge_function(answer, SIZES, gpt_neo_counts, {
        _but(head_counts=False): "you forgot the head where it is not tied. Then it is a matrix of its own, width x "
                                 "vocabulary, and it belongs to all parameters.",
        _but(head_trains=False): "you froze the untied head with the embeddings. The plan freezes attention and "
                                 "embeddings; an untied head is neither, so it trains.",
        _tied_counted_twice: twice, _total_counts_twice: twice,
        _four_times: "you took 4 x width for the inner width of the MLP. That is usual, and not certain: the size is "
                     "given.",
        _but(last_norm=False): "a LayerNorm is missing: one stands after the last block.",
        _but(qkv_biases=True): "you gave q, k and v a bias. In GPT-Neo only the output projection of the attention "
                               "has one.",
        lambda *sizes: gpt_neo_counts(*sizes)[::-1]: "both numbers are right, and the order is not: trainable first.",
        _frozen: "the first number is what the plan freezes. Asked is what trains.",
        lambda *sizes: gpt_neo_counts(*SIZES[0]): "you return the numbers of GPT-Neo 125M whatever the sizes are. Use "
                                                  "the arguments.",
        lambda *sizes: gpt_neo_counts(*sizes)[0]: "return two numbers: trainable, and all.",
        lambda *sizes: gpt_neo_counts(*sizes)[0] / gpt_neo_counts(*sizes)[1]: "this is R. Return two numbers: "
                                                                              "trainable, and all.",
    }, "One line a part, for any size. With an untied head the same plan trains another share: R belongs to a plan "
       "*and* a model.")
