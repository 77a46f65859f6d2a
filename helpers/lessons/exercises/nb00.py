"""Checks for the exercises of ``00_start_here``: a loss, a perplexity, a leak, and models with two tokenizers."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

from helpers.lessons.checks import Reply, exercise, judge_number, right, value_of, wrong
from helpers.lessons.reading import number

UNIFORM = math.log(4096)  # nats: a uniform guess over the miniature's vocabulary


@exercise("00a")
def uniform_guess(answer: Any) -> Reply:
    """The loss of a uniform guess over 4,096 tokens, in nats."""
    return judge_number(
        answer,
        UNIFORM,
        "ln 4,096 = 8.318 nats. A model above this is worse than knowing nothing.",
        {
            8.3: "8.3 is near, and rounded too much: give two decimals.",
            12.0: "12 is log2(4,096): that is the loss in bits. One bit is ln 2 = 0.693 nats; the natural logarithm "
            "gives nats.",
            math.log10(
                4096
            ): "3.61 is log10(4,096). The loss uses the natural logarithm: math.log in Python.",
            4096.0: "4,096 is the perplexity, e to the power of the loss. Take its natural logarithm.",
            -UNIFORM: "the size is right, the sign is not: the loss is minus ln p, and ln of a number below 1 is negative.",
            1 / 4096: "1 / 4,096 is the probability of each token. The loss is minus its natural logarithm.",
            UNIFORM
            / 4096: "this is -p ln p, one term of a sum over all 4,096 tokens. The loss of one token is -ln p.",
            UNIFORM
            - 3.5: "this is how far 3.5 lies below the loss of the guess. Asked is the loss of the guess itself.",
        },
        within=0.006,
        otherwise="Each of 4,096 tokens has the same probability p. Read the hints, one at a time.",
    )


@exercise("00b")
def perplexity_change(answer: Any) -> Reply:
    """The change of perplexity, in percent, when the loss falls by 0.10 nats; the sign is free."""
    return judge_number(
        abs(number(answer)),
        100 * (1 - math.exp(-0.1)),
        "The perplexity is 9.5% lower: e^-0.1 = 0.905.",
        {
            **dict.fromkeys(
                (10.0, 0.1),
                "0.10 nats is not ten points of accuracy, and not exactly ten percent of anything: work out e^-0.1.",
            ),
            100
            * (
                math.exp(0.1) - 1
            ): "10.5% is e^0.1 - 1: how much higher the perplexity was *before*, seen from after. "
            "Asked is the fall, seen from before: 1 - e^-0.1.",
            100 * math.exp(-0.1): "90.5% is what is left of the perplexity. Asked is how much is gone.",
            1
            - math.exp(
                -0.1
            ): "the share is right: 0.095. Asked is a number of percent, a hundred times as much.",
            0.905: "0.905 is the ratio of the two perplexities. Asked is the change in percent.",
            100 * (1 - 2**-0.1): "6.7% comes from powers of 2, but the loss is in nats: use powers of e.",
            100 * (1 - 10**-0.1): "20.6% comes from powers of 10, but the loss is in nats: use powers of e.",
            10
            / 3.5: "2.9% is how far the *loss* falls, seen from 3.5. Asked is the perplexity, e to the power of the loss.",
            **dict.fromkeys(
                (0.1 / math.log(2), 10 / math.log(2)), "0.144 is the loss in bits. Asked is the perplexity."
            ),
        },
        within=0.06,
        otherwise="Perplexity is e to the power of the loss. Divide the one after by the one before.",
    )


# --- 00c ---------------------------------------------------------------------------

_ROLES = {"A": "train", "B": "held-out", "C": "retention"}
_SPOKEN = {"heldout": "held-out", "test": "held-out", "training": "train"}


@exercise("00c")
def roles_and_leak(answer: Any) -> Reply:
    """A mapping with the roles of texts A, B, C and the leaking windows."""
    if not isinstance(answer, Mapping):
        return wrong('give a dictionary: {"A": "…", "B": "…", "C": "…", "leaks": ["…"]}.')
    missing = [key for key in ("A", "B", "C", "leaks") if key not in answer]
    if missing:
        return wrong(f"the answer lacks {', '.join(missing)}.")
    return _judge_roles({key: _role(answer[key]) for key in _ROLES}) or _judge_leaks(
        _letters(answer["leaks"])
    )


def _role(text: Any) -> str:
    word = re.sub(r"[^a-z]", "", str(text).lower())
    return _SPOKEN.get(word, word)


def _letters(found: Any) -> set[str]:
    """Window names from ["d", "e"], a tuple, a set, or text such as "d, e" or "d and e"."""
    if not isinstance(found, (str, Iterable)):
        raise ValueError(f'"leaks" is a list of letters, found {found!r}')
    words = found.split() if isinstance(found, str) else list(found)
    joined = " ".join(map(str, words)).lower().replace("and", " ")
    letters = set(re.findall(r"[a-z]", joined))
    if not letters <= set("abcdefg"):
        raise ValueError(f"the windows are a to g, found {joined!r}")
    return letters


def _judge_roles(roles: dict[str, str]) -> Reply | None:
    """What is wrong with the roles; None where nothing is."""
    if roles == _ROLES:
        return None
    if (roles["B"], roles["C"]) == ("retention", "held-out"):
        return wrong(
            "B and C are swapped. Held-out text is by the same author, from chapters that were not trained "
            "on; retention text shows what the base knew before: its own pages."
        )
    if roles["A"] != "train":
        return wrong(
            f"A is the only text that changes the weights, so it is the train text, not '{roles['A']}'."
        )
    return wrong(
        f"B is '{roles['B']}' and C is '{roles['C']}' in your answer. Ask of each: is it by the author of the "
        "training text, and was it trained on? The roles are train, held-out, retention."
    )


def _judge_leaks(leaks: set[str]) -> Reply:
    if leaks == {"d", "e"}:
        return right(
            "d overlaps with b, and e is the next page of a's scene. Whole chapters on one side avoid both."
        )
    if leaks & set("abc"):
        return wrong(
            "the roles are right. Of the windows, a, b and c are on the training side; asked is which windows "
            "on the held-out side leak."
        )
    if leaks == set("defg"):
        return wrong(
            "the roles are right. But you name every window of the held-out side, and two of them are clean: no "
            "training window is from chapter 7 or chapter 9."
        )
    if not leaks:
        return wrong(
            "the roles are right. You name no window at all. Two held-out windows come from chapters that were trained on "
            "as well, and a leak need not be a whole window: some shared tokens are enough, or the next page of a scene."
        )
    if "f" in leaks:
        return wrong(
            "the roles are right. But f and c only have the same token *numbers*: they are in different "
            "chapters, so they share no text."
        )
    if "g" in leaks:
        return wrong("the roles are right. But no training window is from chapter 9, so g is clean.")
    if leaks == {"d"}:
        return wrong(
            "the roles are right, and d leaks: it shares tokens 1200 to 1255 with b. But you looked only for "
            "shared tokens. One more window continues a scene that was trained on."
        )
    if leaks == {"e"}:
        return wrong(
            "the roles are right, and e leaks: same scene as a. Now compare the token numbers in chapter 5."
        )
    return wrong(
        "the roles are right. Two held-out windows come from chapters that were trained on as well. Which?"
    )


# --- 00d ---------------------------------------------------------------------------

Measure = Callable[[torch.Tensor, str], Any]

# Losses of the tokens in nats, and the text that these tokens spell. The second has letters of two bytes.
TEXTS = (
    (torch.tensor([2.1, 0.4, 3.0, 1.5]), "the cat sat"),
    (torch.tensor([4.0, 0.7, 0.7, 2.2, 1.1, 0.3]), "a naïve café"),
    (torch.tensor([1.0]), "no"),
)
_BIT = math.log(2)


def bits_per_character(losses: torch.Tensor, text: str) -> float:
    """Sum of the losses in bits, divided by the number of characters."""
    return losses.sum().item() / _BIT / len(text)


MISMEASURED: tuple[tuple[Measure, str], ...] = (
    (
        lambda losses, text: losses.sum() / len(text),
        "these are *nats* a character. One bit is ln 2 = 0.693 nats: divide by it.",
    ),
    (
        lambda losses, text: losses.sum() * _BIT / len(text),
        "you multiplied by ln 2. A bit is the smaller unit, so there are more of them: divide.",
    ),
    (
        lambda losses, text: losses.mean() / _BIT,
        "these are bits *a token*. That number depends on how the tokenizer cuts. Divide the sum by the characters.",
    ),
    (
        lambda losses, text: losses.mean() / _BIT / len(text),
        "you took the mean first, which divides by the tokens, and then divided by the characters as well. Take the sum.",
    ),
    (
        lambda losses, text: losses.sum() / _BIT / len(text.encode()),
        "you counted bytes. In UTF-8 a letter such as é has two; len(text) counts characters.",
    ),
    (
        lambda losses, text: losses.sum() / _BIT / len(text.split()),
        "you counted words: len(text) counts characters.",
    ),
    (
        lambda losses, text: losses.sum() / _BIT / len("".join(text.split())),
        "you left the spaces out. They are part of the text, and the tokens spell them: len(text) counts them.",
    ),
    (
        lambda losses, text: losses.sum() / _BIT,
        "these are the bits of the whole text. How many characters share them?",
    ),
    (
        lambda losses, text: losses.sum() / math.log10(2) / len(text),
        "you divided by log10(2). The loss is in nats, so take the natural logarithm: math.log(2).",
    ),
)


@exercise("00d")
def fair_measure(answer: Any) -> Reply:
    """A function (losses, text) -> bits a character, tried on three short texts."""
    found = [number(value_of(answer, losses.clone(), text)) for losses, text in TEXTS]
    if _same(found, bits_per_character):
        return right("Bits a character: the same text, the same unit, whatever the tokenizer.")
    for measure, reason in MISMEASURED:
        if _same(found, measure):
            return wrong(reason)
    losses, text = TEXTS[0]
    return wrong(
        f"for the losses {[round(x, 1) for x in losses.tolist()]} of {text!r} it gives {found[0]:.4g}, and "
        f"{bits_per_character(losses, text):.4g} is right. Add up, change the unit, divide."
    )


def _same(found: list[float], measure: Measure) -> bool:
    wanted = [float(measure(*case)) for case in TEXTS]
    return all(math.isclose(a, b, rel_tol=1e-4) for a, b in zip(found, wanted, strict=True))
