"""Checks of notebook 02: what is frozen, what moves all the same."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from helpers.lessons import checks
from helpers.lessons.checks import FAULTS, Reply, call, exercise, right, wrong
from helpers.lessons.museum import EXHIBITS
from helpers.lessons.reading import items, number
from helpers.models import build_model, mini_config

# --- 02a: a zeroed gradient --------------------------------------------------------


@exercise("02a")
def zeroed_gradient(answer: Any) -> Reply:
    """w = 2, gradient filled with zeros, AdamW with rate 0.1 and decay 0.1, three steps."""
    return checks.judge_number(
        answer,
        2 * 0.99**3,
        "Decay asks for no gradient: 2 · 0.99³ = 1.9406.",
        {
            2.0: "you took 'no gradient, no movement'. But the gradient is zero, not absent: the optimizer visits the "
            "weight, and weight decay shrinks it.",
            1.94: "1.94 may be two things: the right number, rounded, or 1% of the *first* value taken away three "
            "times (2 − 0.06). Each step takes 1% of what is left. Give four decimals.",
            1.941: "this is the right number in three decimals. Give four, so that a rounded guess can be told from it.",
            2
            * 0.9
            ** 3: "you forgot the rate: decay multiplies by 1 − rate · decay = 0.99, not by 1 − decay = 0.9.",
            1.98: "that is the weight after one step; three are asked for.",
            1.97: "you took away rate · decay = 0.01, the same number in each step. Decay takes 1% of the *weight*: "
            "multiply by 0.99.",
            0.99**3: "0.9703 is the factor of three steps. The weight starts at 2.",
            2 * 0.99**4: "that is the weight after four steps; three are asked for.",
            2 * 1.01**3: "the sign is turned round: weight decay makes the weight smaller.",
            1.7: "you let the weight move by the rate at each step. Momentum never got a gradient here: only decay acts.",
        },
        within=1e-4,
        otherwise="Only weight decay acts here: find the factor of one step.",
    )


# --- 02b: which gradients exist ----------------------------------------------------

TENSORS = ("wte", "h.0.ln_1", "h.0 q_proj", "h.0 mlp.c_fc", "last out_proj", "ln_f")
STATES = ("nonzero", "nonzero", "absent", "nonzero", "absent", "nonzero")
_FROZEN, _BEFORE = (2, 4), (0, 1)  # places in TENSORS: attention, and what stands before all attention


@exercise("02b")
def gradients_with_frozen_attention(answer: Any) -> Reply:
    """Six words, in order, also as one text; None, 0 and other numbers are read as absent, zero and nonzero."""
    found = [_state(value) for value in items(answer, f"{len(TENSORS)} words", len(TENSORS))]
    if tuple(found) == STATES:
        return right(
            "Only the frozen weights have no gradient. It passes through them to all that stands before."
        )
    if all((state == "nonzero") != (given == "nonzero") for state, given in zip(STATES, found, strict=True)):
        return wrong(
            "turned round: a frozen weight is the one that has no gradient, and the others have one."
        )
    if tuple(found[::-1]) == STATES:
        return wrong("the words are right, and their order is turned round: the list begins with wte.")
    if any(found[i] == "zero" for i in _FROZEN):
        return wrong(
            "you took None for 0. PyTorch stores no number for a frozen weight: its gradient is absent. A "
            "weight whose gradient is zero still moves under weight decay."
        )
    if all(found[i] != "nonzero" for i in _BEFORE):
        return wrong(
            "you think that a frozen layer stops the gradient for what stands before it. detach() does that. "
            "Freezing does not: look at the first layer in the table of section 3."
        )
    if all(found[i] == "nonzero" for i in _FROZEN):
        return wrong(
            "the slope along a frozen weight exists in mathematics, but PyTorch does not compute it. What did "
            ".grad hold for the frozen weight a in section 1?"
        )
    place = next(i for i, state in enumerate(found) if state != STATES[i])
    because = "no attention weight, so it is not frozen, and a frozen weight after it lets its gradient pass"
    if place in _FROZEN:
        because = (
            "a part of attention (as q_proj, k_proj and v_proj are), so it is frozen: no gradient is stored"
        )
    return wrong(
        f"{TENSORS[place]}: you say '{found[place]}', and '{STATES[place]}' is right. It is {because}."
    )


def _state(value: Any) -> str:
    if value is None:
        return "absent"
    if isinstance(value, str):
        word = value.strip().lower().replace("non-zero", "nonzero")
        word = "absent" if word == "none" else word
        if word not in set(STATES) | {"zero"}:
            raise ValueError(f"{value!r} is none of 'absent', 'zero', 'nonzero'")
        return word
    if isinstance(value, torch.Tensor) and value.numel() != 1:
        return "nonzero" if value.any() else "zero"
    return "nonzero" if number(value) else "zero"


# --- 02c: how much may run without gradients ---------------------------------------

N_BLOCKS = 12
# Each plan, and how many blocks from the bottom may run under no_grad in GPT-Neo 125M
CUTS = (
    ('freeze("first-half")', 6),
    ('only("layers:9-11")', 9),
    ('freeze("attention", "embeddings")', 0),
    ('only("norms")', 0),
    ('only("mlp@8-11")', 8),
    ('only("head")', 0),
)
_HALF, _MAIN, _NORMS, _HEAD, _UPPER = 0, 2, 3, 5, (1, 4)  # places in CUTS
_TRAINED = "you counted the blocks in which something trains. Asked are those below the lowest of them."
_MISCUT = {
    (
        7,
        10,
        1,
        1,
        9,
        1,
    ): "one too many in each: you counted the lowest block that trains as well. It needs its gradients. "
    "And block 0 is the lowest where the answer is 0.",
    (6, 3, 12, 12, 4, 0): _TRAINED,
    (6, 3, 12, 12, 4, 12): _TRAINED,
    tuple(n / N_BLOCKS for _, n in CUTS): "these are shares of the blocks. Asked is how many blocks: of 12.",
}


@exercise("02c")
def blocks_without_gradients(answer: Any) -> Reply:
    """Six whole numbers: a list, tuple, tensor, array, or a dict in the order of the plans."""
    found = [number(value) for value in items(answer, f"{len(CUTS)} numbers", len(CUTS))]
    right_ones = [n for _, n in CUTS]
    if found == right_ones:
        return right("What counts is the lowest weight that trains, not how many do.")
    for known, reason in _MISCUT.items():
        if found == list(known):
            return wrong(reason)
    if found[_MAIN] != 0:
        return wrong(
            "plan 3 freezes attention everywhere, but a frozen part is not a cut: the MLP of block 0 trains, "
            "and its gradient comes down through all the blocks above it."
        )
    if found[_HEAD] != 0:
        return wrong(
            "plan 6 trains the output head, which stands on top. But it is tied: the same tensor is the token "
            "embedding, below block 0, and a part of its gradient comes from there."
        )
    if found[_NORMS] != 0:
        return wrong(
            "plan 4 trains very little, but a LayerNorm stands in block 0. A small share is no short way."
        )
    if any(found[i] == N_BLOCKS - right_ones[i] for i in _UPPER):
        return wrong("you counted the blocks that still need gradients. Asked are those below, which do not.")
    if found[_HALF] == 5:
        return wrong(
            "first-half freezes blocks 0 to 5. Block 5 is the last of them. How many blocks are 0 to 5?"
        )
    place = next(i for i, given in enumerate(found) if given != right_ones[i])
    if found[place] == right_ones[place] + 1:
        return wrong(
            f"one too many in plan {place + 1}, {CUTS[place][0]}: block {right_ones[place]} trains itself. It counts "
            "as one that needs its gradients."
        )
    if found[place] == 0:
        return wrong(
            f"plan {place + 1}, {CUTS[place][0]}: 0 would mean that something in block 0 or below it trains. Here all "
            "of that is frozen. Which is the lowest block that trains?"
        )
    return wrong(
        f"plan {place + 1}, {CUTS[place][0]}: {found[place]:g} is not it. Which is the lowest block that "
        "holds a weight that trains?"
    )


# --- 02d: freeze one block ---------------------------------------------------------

FLAG_HINTS = {"'bool' object is not callable": "requires_grad is the flag itself; requires_grad_(…) sets it."}
N_BLOCKS = 12  # so that "h.1" is in the names of blocks 1, 10 and 11


def practice_model() -> nn.Module:
    """A GPT-Neo of 12 very narrow blocks. Block 3 is frozen already, and every other parameter has a gradient."""
    model = build_model(
        mini_config(
            vocab_size=16,
            hidden_size=4,
            num_layers=N_BLOCKS,
            num_heads=2,
            intermediate_size=8,
            max_position_embeddings=8,
            window_size=4,
            attention_types=[[["global", "local"], N_BLOCKS // 2]],
        )
    )
    model.transformer.h[3].requires_grad_(False)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
    return model


@exercise("02d")
def freeze_one_block(answer: Any) -> Reply:
    """A function (model, index) that freezes one block and nothing else."""
    model = practice_model()
    values = {name: p.detach().clone() for name, p in model.named_parameters()}
    call(answer, model, 1, hints=FLAG_HINTS)
    return (
        _judge_flags(model)
        or _judge_gradients(model)
        or judge_values(model, values)
        or _judge_no_such(answer)
        or right("Block 1, all of it, and nothing else; and a block that is not there is an error.")
    )


def _judge_flags(model: nn.Module) -> Reply | None:
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    inside = {name for name, _ in model.named_parameters() if name.startswith("transformer.h.1.")}
    before = {name for name, _ in model.named_parameters() if name.startswith("transformer.h.3.")}
    if frozen == inside | before:
        return None
    if not before <= frozen:
        return wrong(
            "block 3 was frozen before the call, and now it trains: you set flags of other blocks too. (A "
            "FreezePlan does so: a later plan replaces an earlier one.)"
        )
    if frozen == before and any(vars(m).get("requires_grad") is False for m in model.modules()):
        return wrong(
            "no parameter has the flag. requires_grad = False sets an attribute of the module; "
            "requires_grad_(False) reaches the parameters inside."
        )
    if frozen == before:
        return wrong("no parameter of block 1 has the flag requires_grad = False afterwards.")
    if not inside & frozen:
        return wrong(
            f"for index 1 you froze another block: {min(frozen - before)}, and nothing of block 1. Block 1 is "
            "model.transformer.h[1]; counting starts at 0."
        )
    others = sorted({name.split(".")[2] for name in frozen - inside - before if ".h." in name}, key=int)
    if others == ["10", "11"]:
        return wrong(
            "you froze blocks 10 and 11 as well: 'h.1' is in their names. Put a dot after the number, or do "
            "not go by names at all."
        )
    if frozen - inside - before:
        return wrong(f"more than block 1 is frozen, for example {min(frozen - inside - before)}.")
    return wrong(
        f"a part of block 1 still trains: {len(inside - frozen)} of {len(inside)} tensors, for example "
        f"{min(inside - frozen)}."
    )


def _judge_gradients(model: nn.Module) -> Reply | None:
    block = dict(model.transformer.h[1].named_parameters())
    if any(p.grad is not None and p.grad.any() for p in block.values()):
        return wrong(
            "the flags are right, but the old gradients are still there, and the next step would use them. "
            "Set p.grad = None."
        )
    if any(p.grad is not None for p in block.values()):
        return wrong(
            "you filled the old gradients with zeros. Zero is not absent: weight decay and momentum would "
            "move the block. Set p.grad = None."
        )
    if any(p.grad is None for p in model.parameters() if p.requires_grad):
        return wrong("you took away the gradients of weights that go on training. Touch block 1 alone.")
    return None


def judge_values(model: nn.Module, values: dict[str, torch.Tensor]) -> Reply | None:
    changed = [name for name, p in model.named_parameters() if not torch.equal(p, values[name])]
    return (
        wrong(f"the values of {changed[0]} changed. Freezing leaves every value as it is.")
        if changed
        else None
    )


def _judge_no_such(answer: Any) -> Reply | None:
    """Block 12 of 12 (0 to 11) does not exist: an error is asked for, and an unchanged model."""
    model = practice_model()
    try:
        answer(model, N_BLOCKS)
    except FAULTS:
        return None
    return wrong(
        "right for block 1. But asked for block 12, which this model does not have (0 to 11), your function "
        "does nothing and says nothing. A rule that matches nothing must be an error."
    )


# --- 02f: the museum ---------------------------------------------------------------

DIAGNOSES = "ECBABADD"  # exhibit 1 first
MUSEUM_FAULTS = {
    "A": "freezes nothing",
    "B": "freezes something, and less than its title",
    "C": "freezes more than its title",
    "D": "the flags are right and the weights move",
    "E": "its own check cannot fail",
}

# (exhibit, letter given) to what probably happened
MISREAD = {
    (
        1,
        "A",
    ): "True, nothing is frozen there, but a later letter fits as well. Its check said 0.0 all the same: "
    "weight.data kept without clone() is the weight itself, so the check always says unmoved.",
    (
        1,
        "D",
    ): "No attention tensor has the flag. And why did its own check print 0.0? It kept weight.data without "
    "clone().",
    (2, "A"): "Look at the second line of evidence: tensors that should train have the flag.",
    (
        2,
        "B",
    ): "You have the direction turned round: all promised tensors have the flag, and others too. '.h.' is in "
    "the name of everything inside a block.",
    (3, "A"): "Some promised tensors do have the flag: those that the inner `if` let through, the biases.",
    (
        3,
        "D",
    ): "Most promised tensors have no flag at all, so they simply trained. The inner `if` has no `else`.",
    (4, "B"): "No tensor has the flag, not one. requires_grad = False set an attribute of the module; "
    "requires_grad_(False) would have reached the parameters.",
    (
        4,
        "D",
    ): "The flags are not right: no parameter has one. requires_grad = False set an attribute of the module.",
    (5, "A"): "It does freeze the attention. It misses the embeddings: GPT-Neo calls them wte and wpe.",
    (5, "D"): "The flags are not right: the embeddings have none, as GPT-Neo calls them wte and wpe.",
    (
        6,
        "B",
    ): "No tensor has the flag. The tied head is listed once, as transformer.wte.weight, so the rule matches "
    "nothing.",
    (6, "D"): "The flags are not right: the rule matches nothing, for the tied head is listed once, as "
    "transformer.wte.weight.",
    (
        7,
        "A",
    ): "You looked at movement alone. The flags are all there. What moves a weight whose gradient is zero?",
    (
        7,
        "B",
    ): "You looked at movement alone. The flags are all there. What moves a weight whose gradient is zero?",
    (
        7,
        "E",
    ): "This exhibit has no check of its own. All promised tensors have the flag, and some moved. What moves a weight "
    "whose gradient is zero?",
    (
        8,
        "E",
    ): "This exhibit has no check of its own. All promised tensors have the flag, and some moved. What did the "
    "optimizer remember?",
    (8, "A"): "You looked at movement alone. The flags are all there. What did the optimizer remember?",
    (8, "B"): "You looked at movement alone. The flags are all there. What did the optimizer remember?",
}


@exercise("02f")
def broken_freezes(answer: Any) -> Reply:
    """Eight letters: text, a list, or a dict from number or name to letter."""
    letters = _letters(answer)
    errors = [(n, given) for n, given in enumerate(letters, start=1) if given != DIAGNOSES[n - 1]]
    if not errors:
        return right(
            "All eight. Numbers 1 to 3 were found in published lessons: a proof of your own is worth it."
        )
    n, given = errors[0]
    reason = MISREAD.get(
        (n, given),
        f"'{MUSEUM_FAULTS[given]}' does not fit the evidence. Count the flags first, then "
        "look at what moved.",
    )
    return wrong(f"{8 - len(errors)} of 8 are right. Exhibit {n}, {given}: {reason}")


def _letters(answer: Any) -> list[str]:
    if isinstance(answer, dict):
        keys = {**{e.number: e.number for e in EXHIBITS}, **{e.name: e.number for e in EXHIBITS}}
        unknown = [key for key in answer if key not in keys]
        if unknown:
            raise ValueError(f"no exhibit {unknown[0]!r}; exhibits: 1 to 8")
        answer = [letter for _, letter in sorted((keys[key], letter) for key, letter in answer.items())]
    letters = [str(letter).strip().upper() for letter in answer if str(letter).strip(" ,;")]
    odd = [letter for letter in letters if letter not in MUSEUM_FAULTS]
    if odd:
        raise ValueError(f"{odd[0]!r} is no letter from A to E")
    if len(letters) != len(EXHIBITS):
        raise ValueError(f"{len(letters)} letters, and there are {len(EXHIBITS)} exhibits")
    return letters
