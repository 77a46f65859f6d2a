"""The proof: borders, defaults and causes that the other tests let pass when the code was broken."""

from dataclasses import FrozenInstanceError

import pytest
import torch
from transformers import LlamaConfig

from helpers.freezing.plans import FreezePlan
from helpers.freezing.proof import FreezingError, Proof, Snapshot, freezing_proof, snapshot
from helpers.models.loading import build_model

SHAPE = {
    "vocab_size": 61,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
}
MAIN = FreezePlan.freeze("attention", "embeddings")
NORM = "model.norm.weight"


def begun(plan=MAIN, make=torch.optim.AdamW, everything=False, **settings):
    model = build_model(LlamaConfig(**SHAPE))
    plan.apply(model)
    chosen = [p for p in model.parameters() if p.requires_grad or everything]
    return model, make(chosen, **{"lr": 1e-2, **settings})


def proof_of(*problems, notes=()):
    return Proof(problems, 1, 2, 3, 4, 5, tuple(notes))


def test_a_proof_in_words():
    assert str(proof_of()) == (
        "1 frozen tensors (2 parameters) and 3 buffers are bit-identical, without gradient or optimizer state; "
        "5 of 4 trainable tensors moved."
    )
    assert str(proof_of("a", "b")).splitlines() == ["Not proved, 2 found wrong:", "  - a", "  - b"]
    assert str(proof_of(notes=["n"])).splitlines()[1:] == ["  - n"]


@pytest.mark.parametrize("n, last", [(9, "  - 8"), (10, "  - 9"), (11, "  - … and 1 more")])
def test_ten_lines_are_shown(n, last):
    lines = str(proof_of(*map(str, range(n)))).splitlines()
    assert len(lines) == 1 + min(n, 11) and lines[-1] == last
    with pytest.raises(FreezingError):
        proof_of(*map(str, range(n))).check()


def test_a_proof_and_a_snapshot_are_values():
    before = Snapshot({}, frozenset(), {})
    assert (before.kinds, before.ties, proof_of().notes) == ({}, {}, ())
    for value, name in ((before, "hashes"), (proof_of(), "problems")):
        with pytest.raises(FrozenInstanceError):
            setattr(value, name, ())


def test_a_snapshot_keeps_hash_kind_and_rate_of_each_tensor():
    model, optimizer = begun()
    before = snapshot(model, optimizer)
    assert before.kinds[NORM] == "float32 16" and before.kinds["lm_head.weight"] == "float32 61x16"
    assert before.rates == {n: 1e-2 for n, p in model.named_parameters() if p.requires_grad}
    assert before.frozen == {n for n, p in model.named_parameters() if not p.requires_grad}
    assert before.hashes.keys() == before.kinds.keys() and before.ties == {}


# --- why a trainable tensor did not move ---------------------------------------------


def reason(model, before, optimizer=None):
    """The sentence about the last norm, and whether it is a problem."""
    proof = freezing_proof(before, model, optimizer)
    [line] = [line for line in (*proof.problems, *proof.notes) if line.startswith(NORM)]
    return line.partition("did not move: ")[2], line in proof.problems


def test_a_rate_of_zero_that_a_scheduler_raises_later_was_a_rate():
    model, optimizer = begun(FreezePlan.only("norms"))
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.0)
    before = snapshot(model, optimizer)
    model.model.norm.weight.grad = torch.ones(16)
    words, is_wrong = reason(model, before, optimizer)
    assert is_wrong and words.startswith(
        "it had a gradient and a rate, so the steps are too small for torch.float32"
    )


def test_a_rate_that_the_snapshot_remembers_was_a_rate():
    model, optimizer = begun(FreezePlan.only("norms"))
    before = snapshot(model, optimizer)
    optimizer.param_groups[0]["lr"] = 0.0
    model.model.norm.weight.grad = torch.ones(16)
    assert reason(model, before, optimizer)[1]
    assert reason(model, snapshot(model, optimizer), optimizer) == ("its learning rate is 0", False)


@pytest.mark.parametrize("seen_in", ["gradient", "momentum"])
def test_a_gradient_is_known_from_itself_or_from_the_momentum(seen_in):
    model, optimizer = begun(FreezePlan.only("norms"), torch.optim.SGD, momentum=0.9)
    before = snapshot(model, optimizer)
    weight = model.model.norm.weight
    assert reason(model, before, optimizer) == ("no nonzero gradient was seen", False)
    if seen_in == "gradient":
        weight.grad = torch.zeros(16)
        assert reason(model, before, optimizer) == ("no nonzero gradient was seen", False)
        weight.grad = torch.ones(16)
    else:
        optimizer.state[weight] = {"step": torch.ones(1), "momentum_buffer": torch.zeros(16)}
        assert reason(model, before, optimizer) == ("no nonzero gradient was seen", False)
        optimizer.state[weight]["momentum_buffer"] += 1
    assert reason(model, before, optimizer)[1]


def test_without_an_optimizer_nothing_is_blamed_and_with_another_one_it_is():
    model, optimizer = begun(FreezePlan.only("norms"))
    before = snapshot(model)
    model.model.norm.weight.grad = torch.ones(16)
    assert reason(model, before) == ("no optimizer was given, so its gradient is not known", False)
    other = torch.optim.AdamW([model.lm_head.weight])
    assert reason(model, before, other) == (
        "no optimizer holds it; build the optimizer after the plan is applied",
        True,
    )


# --- why a frozen one did -------------------------------------------------------------


def test_an_optimizer_without_weight_decay_is_said_to_have_none():
    model, optimizer = begun(make=torch.optim.Rprop, everything=True)
    before = snapshot(model, optimizer)
    model.lm_head.weight.requires_grad_(False)
    before = snapshot(model, optimizer)
    with torch.no_grad():
        model.lm_head.weight += 1
    wrong = [line for line in freezing_proof(before, model, optimizer).problems if line.startswith("lm_head")]
    assert wrong == [
        "lm_head.weight is frozen but moved: the optimizer holds it, with weight decay 0 and no momentum",
        "lm_head.weight is frozen but the optimizer holds it, without state so far: build the optimizer after "
        "freezing",
    ]


def test_a_flag_set_on_the_model_itself_is_named_model():
    model, _ = begun(FreezePlan.full())
    before = snapshot(model)
    model.requires_grad = False
    [line] = freezing_proof(before, model).problems
    assert line.startswith("model.requires_grad = False set a module's plain attribute")
    FreezePlan.only("norms").apply(model)
    model.requires_grad_(False)
    assert "plain attribute" not in str(freezing_proof(snapshot(model), model)), (
        "nothing trains: nothing is wrong"
    )


def test_counts_are_of_tensors_and_of_numbers():
    model, optimizer = begun(FreezePlan.only("norms"))
    before = snapshot(model, optimizer)
    with torch.no_grad():
        model.model.norm.weight += 1
    proof = freezing_proof(before, model, optimizer)
    n_all = sum(p.numel() for p in model.parameters())
    assert (proof.n_trainable_tensors, proof.n_moved, len(proof.notes)) == (5, 1, 4)
    assert proof.n_frozen_tensors == len(list(model.parameters())) - 5
    assert proof.n_frozen_parameters == n_all - 5 * 16
    assert proof.ok and proof.n_buffers == 0, "frequencies are computed, not stored"
    model.register_buffer("counter", torch.zeros(1))
    assert freezing_proof(snapshot(model), model).n_buffers == 1
