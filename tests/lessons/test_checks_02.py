"""Notebook 02's checks: right answers in every form, and a name for each usual mistake."""

import copy

import numpy as np
import pytest
import torch

from helpers.freezing.plans import FreezePlan
from helpers.lessons import museum
from helpers.lessons.checks import reply_to
from helpers.lessons.exercises import nb02 as checks_02
from helpers.lessons.exercises import nb02 as checks_02_recipes
from helpers.lessons.exercises.nb02 import DIAGNOSES, MISREAD
from helpers.lessons.museum import EXHIBITS

RIGHT_B = ["nonzero", "nonzero", "absent", "nonzero", "absent", "nonzero"]


@pytest.mark.parametrize("name", ["02a", "02b", "02c", "02d", "02e", "02f", "02g"])
def test_an_untouched_stub_is_not_attempted(name):
    reply = reply_to(name, ...)
    assert reply.ok is None and "not attempted yet" in reply.message


# --- 02a ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer", [1.9406, 1.940598, torch.tensor(1.9406), [1.9406], "1.9406", np.array([1.9406])], ids=repr
)
def test_the_decayed_weight_passes_in_every_form(answer):
    assert reply_to("02a", answer).ok is True


@pytest.mark.parametrize(
    ("answer", "what"),
    [
        (2, "no gradient, no movement"),
        (torch.tensor(2.0), "no gradient, no movement"),
        (1.94, "first* value"),
        (1.94, "rounded"),
        (1.941, "three decimals"),
        (1.458, "forgot the rate"),
        (1.98, "after one step"),
        (1.7, "only decay acts"),
        (0.5, "factor of one step"),
    ],
)
def test_a_wrong_weight_names_the_mistake(answer, what):
    reply = reply_to("02a", answer)
    assert reply.ok is False and what in reply.message


def test_the_answer_is_what_adamw_does():
    weight = torch.nn.Parameter(torch.tensor(2.0))
    optimizer = torch.optim.AdamW([weight], lr=0.1, weight_decay=0.1)
    for _ in range(3):
        weight.grad = torch.zeros(())
        optimizer.step()
    assert reply_to("02a", weight.item()).ok is True


# --- 02b ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [
        RIGHT_B,
        tuple(RIGHT_B),
        [w.upper() for w in RIGHT_B],
        dict(enumerate(RIGHT_B)),
        [1, 0.5, None, 2, None, 3],
        ["non-zero", "nonzero", "None", "nonzero", "none", "nonzero"],
        "nonzero, nonzero, absent, nonzero, absent, nonzero",
        [torch.ones(2, 2), torch.ones(2), None, torch.ones(1), None, torch.tensor(0.1)],
    ],
    ids=lambda a: str(a)[:40],
)
def test_the_right_states_pass_in_every_form(answer):
    assert reply_to("02b", answer).ok is True


@pytest.mark.parametrize(
    ("answer", "what"),
    [
        (["nonzero", "nonzero", "zero", "nonzero", "zero", "nonzero"], "None for 0"),
        (["nonzero", "nonzero", 0, "nonzero", torch.zeros(3), "nonzero"], "None for 0"),
        (["absent", "absent", "absent", "nonzero", "absent", "nonzero"], "stops the gradient"),
        (["nonzero", "absent", "absent", "nonzero", "absent", "nonzero"], "h.0.ln_1: you say 'absent'"),
        (["zero", "nonzero", "absent", "nonzero", "absent", "nonzero"], "wte: you say 'zero'"),
        (["nonzero"] * 6, "exists in mathematics"),
        (
            ["nonzero", "nonzero", "absent", "absent", "absent", "nonzero"],
            "h.0 mlp.c_fc: you say 'absent', and 'nonzero' is right. It is no attention weight",
        ),
        (["nonzero", "nonzero", "absent", "nonzero", "absent", "zero"], "ln_f: you say 'zero'"),
        (["nonzero"] * 5, "6 words are asked for, found 5"),
        (["yes"] * 6, "none of 'absent', 'zero', 'nonzero'"),
    ],
    ids=lambda a: str(a)[:40],
)
def test_a_wrong_state_names_the_mistake(answer, what):
    reply = reply_to("02b", answer)
    assert reply.ok is False and what in reply.message


# --- 02c ---------------------------------------------------------------------------

CUTS = [6, 9, 0, 0, 8, 0]


@pytest.mark.parametrize(
    "answer",
    [
        CUTS,
        tuple(CUTS),
        torch.tensor(CUTS),
        np.array(CUTS),
        [float(n) for n in CUTS],
        dict(enumerate(CUTS)),
        [str(n) for n in CUTS],
    ],
    ids=str,
)
def test_the_right_cuts_pass_in_every_form(answer):
    assert reply_to("02c", answer).ok is True


@pytest.mark.parametrize(
    ("answer", "what"),
    [
        ([6, 9, 12, 0, 8, 0], "a frozen part is not a cut"),
        ([6, 9, 0, 0, 8, 12], "a part of its gradient"),
        ([6, 9, 0, 11, 8, 0], "A small share"),
        ([5, 9, 0, 0, 8, 0], "How many blocks are 0 to 5"),
        ([6, 3, 0, 0, 4, 0], "that still need gradients"),
        ([6, 8, 0, 0, 8, 0], "plan 2"),
        ([6, 9, 0, 0, 7, 0], "plan 5"),
        ([6, 9], "6 numbers are asked for, found 2"),
        (6, "cannot be read"),
    ],
    ids=str,
)
def test_a_wrong_cut_names_the_mistake(answer, what):
    reply = reply_to("02c", answer)
    assert reply.ok is False and what in reply.message


def gradients(plan, n_cut):
    """Gradients under a plan when the embeddings and the first blocks run under no_grad; 0 cuts nothing."""
    model = checks_02_recipes.practice_model()
    plan.apply(model.requires_grad_(True))
    for module in [model.transformer.drop, *model.transformer.h[:n_cut]] if n_cut else []:
        module.forward = torch.no_grad()(module.forward)
    model.zero_grad()
    ids = torch.arange(8)[None] % 5
    logits = model(ids).logits
    if logits.requires_grad:
        torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:]).backward()
    return [p.grad for p in model.parameters() if p.requires_grad]


def same(found, wanted):
    return all(a is not None and torch.allclose(a, b, atol=1e-7) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize(("code", "n"), checks_02.CUTS)
def test_the_cuts_asked_for_are_the_longest_that_change_no_gradient(code, n):
    plan = eval(f"FreezePlan.{code}", {"FreezePlan": FreezePlan})  # noqa: S307 (the course's own text)
    whole = gradients(plan, 0)
    assert same(gradients(plan, n), whole)
    assert not same(gradients(plan, n + 1), whole)


# --- 02d ---------------------------------------------------------------------------


def freeze_block(model, index):
    for parameter in model.transformer.h[index].parameters():
        parameter.requires_grad_(False)
        parameter.grad = None


def by_name(rule, silent=True, clear=True):
    def freeze(model, index):
        hits = [p for name, p in model.named_parameters() if rule(name, index)]
        if not hits and not silent:
            raise ValueError(f"no block {index}")
        for parameter in hits:
            parameter.requires_grad_(False)
            parameter.grad = None if clear else parameter.grad

    return freeze


def with_dot(name, index):
    return f".h.{index}." in name


def after(first):
    """The right function, and something more."""

    def freeze(model, index):
        freeze_block(model, index)
        first(model, index)

    return freeze


def on_the_module(model, index):
    model.transformer.h[index].requires_grad = False


def zeros(model, index):
    model.transformer.h[index].requires_grad_(False).zero_grad(set_to_none=False)


def with_a_plan(model, index):
    FreezePlan.freeze(f"layers:{index}").apply(model)


@pytest.mark.parametrize("answer", [freeze_block, by_name(with_dot, silent=False)])
def test_a_right_freeze_of_one_block_passes(answer):
    reply = reply_to("02d", answer)
    assert reply.ok is True, reply.message
    assert "name" not in reply.message, "right by place or by name: the reply cannot know which"


@pytest.mark.parametrize(
    ("answer", "what"),
    [
        (by_name(lambda name, i: f".h.{i}" in name), "blocks 10 and 11"),
        (by_name(with_dot), "must be an error"),
        (by_name(with_dot, clear=False), "old gradients are still there"),
        (on_the_module, "an attribute of the module"),
        (zeros, "Zero is not absent"),
        (with_a_plan, "block 3 was frozen"),
        (lambda m, i: m.eval(), "no parameter of block 1"),
        (lambda m, i: freeze_block(m.requires_grad_(True), i), "block 3 was frozen"),
        (after(lambda m, i: m.zero_grad()), "weights that go on training"),
        (
            by_name(lambda name, i: with_dot(name, i) and "attn" in name),
            "a part of block 1 still trains: 8 of 13",
        ),
        (by_name(lambda name, i: with_dot(name, i) or "wte" in name), "more than block 1 is frozen"),
        (after(lambda m, i: m.transformer.h[i].mlp.c_fc.weight.data.zero_()), "the values of"),
        (lambda m, i: m.h[i], "stopped with AttributeError"),
        (None, "found NoneType"),
    ],
)
def test_a_wrong_freeze_of_one_block_names_the_mistake(answer, what):
    reply = reply_to("02d", answer)
    assert reply.ok is False and what in reply.message


# --- 02e ---------------------------------------------------------------------------


def kept_by(value, wanted=lambda name, p: True):
    """A function that keeps a value of each parameter, by its name."""
    return lambda model: {name: value(p) for name, p in model.named_parameters() if wanted(name, p)}


def named_where(differs, wanted=lambda name, p: True):
    """A function that names the parameters which differ from what was kept."""
    return lambda before, model: {
        name for name, p in model.named_parameters() if wanted(name, p) and differs(before[name], p)
    }


def cloned(p):
    return p.detach().clone()


def unequal(before, p):
    return not torch.equal(before, p)


def trains(name, p):
    return p.requires_grad


def is_frozen(name, p):
    return not p.requires_grad


RIGHT_KEPT, RIGHT_MOVED = kept_by(cloned), named_where(unequal)


@pytest.mark.parametrize(
    "answer",
    [
        (museum.copies, museum.moved),
        [RIGHT_KEPT, RIGHT_MOVED],
        (copy.deepcopy, lambda before, model: RIGHT_MOVED(dict(before.named_parameters()), model)),
        (kept_by(lambda p: p.tolist()), named_where(lambda old, p: old != p.tolist())),
        (
            kept_by(lambda p: p.detach().numpy().copy()),
            named_where(lambda old, p: (old != p.detach().numpy()).any()),
        ),
        (RIGHT_KEPT, lambda before, model: sorted(RIGHT_MOVED(before, model))),
        (
            kept_by(lambda p: hash(p.detach().numpy().tobytes())),
            named_where(lambda old, p: old != hash(p.detach().numpy().tobytes())),
        ),
    ],
)
def test_a_right_proof_passes(answer):
    reply = reply_to("02e", answer)
    assert reply.ok is True, reply.message


def state(model):
    return {name: t.clone() for name, t in model.state_dict().items()}


def moved_in_state(before, model):
    return {name for name, t in model.state_dict().items() if not torch.equal(t, before[name])}


@pytest.mark.parametrize(
    ("keep", "compare", "what"),
    [
        *(
            (kept_by(value), RIGHT_MOVED, "itself")
            for value in (lambda p: p, lambda p: p.data, lambda p: p.detach(), lambda p: p.detach().cpu())
        ),
        (lambda model: dict(model.named_parameters()), RIGHT_MOVED, "add .clone()"),
        (lambda model: model.state_dict(), RIGHT_MOVED, "add .clone()"),
        (kept_by(lambda p: p.detach().numpy()),
         named_where(lambda old, p: (old != p.detach().numpy()).any()), "add .clone()"),
        (RIGHT_KEPT, lambda before, model: set(), "Which values"),
        (RIGHT_KEPT, named_where(unequal, trains), "block 3"),
        (RIGHT_KEPT, named_where(unequal, is_frozen), "none of those that train"),
        (RIGHT_KEPT, named_where(lambda old, p: bool((old != p).all())), "One is enough"),
        (RIGHT_KEPT, named_where(lambda old, p: not torch.allclose(old, p)), "last bit"),
        (RIGHT_KEPT, named_where(lambda old, p: (old - p).abs().max() > 1e-6), "last bit"),
        (kept_by(lambda p: p.sum().item()), named_where(lambda old, p: old != p.sum().item()), "number by number"),
        (kept_by(lambda p: p.norm().item()), named_where(lambda old, p: old != p.norm().item()), "number by number"),
        (RIGHT_KEPT, named_where(torch.equal), "turned round"),
        (RIGHT_KEPT, named_where(lambda old, p: old is not p), "it also names"),
        (state, moved_in_state, "second name"),
        (RIGHT_KEPT, named_where(lambda old, p: old != p), "torch.equal gives one"),
        (RIGHT_KEPT, lambda before, model: len(RIGHT_MOVED(before, model)), "not how many"),
        (RIGHT_KEPT, lambda before, model: bool(RIGHT_MOVED(before, model)), "not how many"),
        (RIGHT_KEPT, lambda before, model: print(RIGHT_MOVED(before, model)), "returns None"),
        (lambda model: print("kept"), RIGHT_MOVED, "returns None"),
        (kept_by(cloned, trains), RIGHT_MOVED, "stopped with KeyError"),
        (kept_by(lambda p: p.data.zero_().clone()), RIGHT_MOVED, "the values of"),
        ({}, RIGHT_MOVED, "found dict"),
    ],
)  # fmt: skip
def test_a_wrong_proof_names_the_mistake(keep, compare, what):
    reply = reply_to("02e", (keep, compare))
    assert reply.ok is False and what in reply.message, reply.message


@pytest.mark.parametrize("answer", [RIGHT_KEPT, (RIGHT_KEPT,), {"copies": RIGHT_KEPT}, "six lines"])
def test_one_function_is_no_proof(answer):
    assert "two functions are asked for" in reply_to("02e", answer).message


def test_of_an_untouched_model_nothing_is_named():
    def moved(before, model):
        return RIGHT_MOVED(before, model) or {"transformer.wpe.weight"}

    assert "untouched model it names 1" in reply_to("02e", (RIGHT_KEPT, moved)).message


# --- 02f ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [
        "ECBABADD",
        "ecbabadd",
        "E C B A B A D D",
        "E, C, B, A, B, A, D, D",
        list("ECBABADD"),
        tuple("ecbabadd"),
        dict(enumerate("ECBABADD", start=1)),
        {e.name: DIAGNOSES[e.number - 1] for e in EXHIBITS},
    ],
    ids=repr,
)
def test_the_right_letters_pass_in_every_form(answer):
    assert reply_to("02f", answer).ok is True


@pytest.mark.parametrize(("number", "letter"), list(MISREAD))
def test_a_misread_exhibit_is_named_with_its_reason(number, letter):
    answer = DIAGNOSES[: number - 1] + letter + DIAGNOSES[number:]
    reply = reply_to("02f", answer)
    assert reply.ok is False
    assert f"7 of 8 are right. Exhibit {number}, {letter}: {MISREAD[number, letter]}" == reply.message


def test_a_kept_weight_without_clone_is_explained():
    assert "without clone()" in reply_to("02f", "A" + DIAGNOSES[1:]).message


def test_movement_without_flags_is_explained():
    assert "movement alone" in reply_to("02f", DIAGNOSES[:6] + "AD").message


def test_another_wrong_letter_points_at_the_evidence():
    reply = reply_to("02f", DIAGNOSES[:7] + "C")
    assert reply.ok is False and "does not fit the evidence" in reply.message


@pytest.mark.parametrize(
    ("answer", "what"),
    [
        ("ECBABAD", "7 letters"),
        ("ECBABADX", "'X' is no letter"),
        ({9: "A"}, "no exhibit 9"),
        (5, "cannot be read"),
    ],
)
def test_an_answer_of_another_form_is_explained(answer, what):
    reply = reply_to("02f", answer)
    assert reply.ok is False and what in reply.message


# --- 02g ---------------------------------------------------------------------------


def others(weight, rows):
    return [row for row in range(len(weight)) if row not in rows]


def put_back(weight, rows, optimizer):
    before = weight.detach().clone()
    optimizer.step()
    with torch.no_grad():
        weight[others(weight, rows)] = before[others(weight, rows)]


def by_where(weight, rows, optimizer):
    before = weight.detach().clone()
    optimizer.step()
    mine = torch.zeros(len(weight), 1, dtype=torch.bool)
    mine[rows] = True
    weight.data = torch.where(mine, weight.data, before)


def masked(weight, rows, optimizer):
    weight.grad[others(weight, rows)] = 0
    optimizer.step()


def masked_with_decay_by_hand(weight, rows, optimizer):
    group = optimizer.param_groups[0]
    decay, group["weight_decay"] = group["weight_decay"], 0
    with torch.no_grad():
        weight[rows] *= 1 - group["lr"] * decay
    masked(weight, rows, optimizer)
    group["weight_decay"] = decay


def without_decay(weight, rows, optimizer):
    optimizer.param_groups[0]["weight_decay"] = 0
    put_back(weight, rows, optimizer)


def without_clone(weight, rows, optimizer):
    before = weight.data
    optimizer.step()
    weight.data[others(weight, rows)] = before[others(weight, rows)]


def rebound(weight, rows, optimizer):
    before = weight.detach().clone()
    optimizer.step()
    mine = torch.zeros(len(weight), 1, dtype=torch.bool)
    mine[rows] = True
    weight = torch.where(mine, weight, before)  # a new tensor, which nobody sees


def all_put_back(weight, rows, optimizer):
    before = weight.detach().clone()
    optimizer.step()
    weight.data.copy_(before)


def without_no_grad(weight, rows, optimizer):
    before = weight.detach().clone()
    optimizer.step()
    weight[others(weight, rows)] = before[others(weight, rows)]


@pytest.mark.parametrize("answer", [put_back, by_where])
def test_a_right_step_on_some_rows_passes(answer):
    reply = reply_to("02g", answer)
    assert reply.ok is True, reply.message


@pytest.mark.parametrize(
    ("answer", "what"),
    [
        (masked, "weight decay does not ask"),
        (masked_with_decay_by_hand, "coast on"),
        (without_decay, "move as without weight decay"),
        (without_clone, "clone()"),
        (rebound, "only gives the name to another tensor"),
        (all_put_back, "nothing moved at all"),
        (lambda weight, rows, optimizer: None, "nothing moved at all"),
        (lambda weight, rows, optimizer: put_back(weight, others(weight, rows), optimizer), "turned round"),
        (lambda weight, rows, optimizer: optimizer.step(), "all rows move"),
        (without_no_grad, "torch.no_grad()"),
        (lambda weight, rows: None, "stopped with TypeError"),
        (torch.ones(2), "found Tensor"),
    ],
)
def test_a_wrong_step_on_some_rows_names_the_mistake(answer, what):
    reply = reply_to("02g", answer)
    assert reply.ok is False and what in reply.message
