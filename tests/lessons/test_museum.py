"""Each exhibit of the museum must be broken in the way that notebook 02 says, and no other."""

import copy

import pytest
import torch
from transformers import LlamaConfig

from helpers.freezing.proof import freezing_proof, snapshot
from helpers.lessons.exercises.nb02 import DIAGNOSES
from helpers.lessons.museum import EXHIBITS, fitting, look, train, trainable
from helpers.models.loading import build_model, mini_config, weight_hash

BASE = build_model(
    mini_config(
        hidden_size=32,
        intermediate_size=64,
        num_heads=2,
        vocab_size=64,
        num_layers=2,
        attention_types=[[["global", "local"], 1]],
    )
)
BATCHES = list(torch.randint(64, (3, 2, 16), generator=torch.Generator().manual_seed(0)))

each_exhibit = pytest.mark.parametrize("exhibit", EXHIBITS, ids=lambda e: e.name)


def evidence(exhibit):
    """Names that the title promises to freeze, that have the flag, and that moved after ``frozen_now()``."""
    model, before = copy.deepcopy(BASE), {}
    exhibit.run(
        model, BATCHES, lambda: before.update({n: p.detach().clone() for n, p in model.named_parameters()})
    )
    flagged = {n for n, p in model.named_parameters() if not p.requires_grad}
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    return exhibit.promised(model), flagged, moved


def test_a_gpt_neo_is_shown_as_it_is_and_another_family_is_replaced_by_the_miniature(capsys):
    model, batches = fitting(BASE, BATCHES)
    assert model is BASE and all(map(torch.equal, batches, BATCHES)) and not capsys.readouterr().out
    llama = build_model(
        LlamaConfig(
            vocab_size=9000,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
        )
    )
    model, batches = fitting(llama, [torch.tensor([[8999, 3]])])
    assert model.config.model_type == "gpt_neo" and batches[0].max() < model.config.vocab_size
    assert "gpt-neo-mini" in capsys.readouterr().out
    EXHIBITS[3].run(model, batches, lambda: weight_hash(model))


def test_there_are_eight_numbered_in_order():
    assert [e.number for e in EXHIBITS] == list(range(1, 9))
    assert len({e.name for e in EXHIBITS}) == 8


@each_exhibit
def test_the_fault_is_the_one_that_the_exercise_expects(exhibit):
    promised, flagged, moved = evidence(exhibit)
    found = {
        "A": not flagged,
        "B": bool(flagged) and bool(promised - flagged),
        "C": bool(flagged - promised),
        "D": flagged == promised and bool(flagged & moved),
    }
    letter = DIAGNOSES[exhibit.number - 1]
    assert [fault for fault in found if found[fault]] == ["A" if letter == "E" else letter]


def test_a_check_without_clone_always_reads_zero(capsys):
    promised, _, moved = evidence(EXHIBITS[0])
    assert promised <= moved
    assert capsys.readouterr().out.endswith("attention weight 0.0\n")


def test_the_dot_h_rule_leaves_only_embeddings_and_the_last_norm():
    names = {n for n, _ in BASE.named_parameters()}
    _, flagged, _ = evidence(EXHIBITS[1])
    assert names - flagged == {
        "transformer.wte.weight",
        "transformer.wpe.weight",
        "transformer.ln_f.weight",
        "transformer.ln_f.bias",
    }


def test_the_inner_condition_leaves_q_k_v_and_the_output_projections_trainable():
    promised, flagged, moved = evidence(EXHIBITS[2])
    assert {n.split(".")[-2] for n in promised - flagged} == {"q_proj", "k_proj", "v_proj", "out_proj"}
    assert promised - flagged <= moved


def test_the_articles_rule_matches_no_embedding():
    promised, flagged, moved = evidence(EXHIBITS[4])
    assert promised - flagged == {"transformer.wte.weight", "transformer.wpe.weight"} <= moved


def test_the_tied_head_is_not_found_under_its_own_name():
    promised, flagged, moved = evidence(EXHIBITS[5])
    assert promised == {"transformer.wte.weight"} <= moved and not flagged


@each_exhibit
def test_the_proof_catches_it(exhibit):
    model, taken = copy.deepcopy(BASE), []
    optimizer = exhibit.run(model, BATCHES, lambda: taken.append(snapshot(model)))
    assert not freezing_proof(taken[0], model, optimizer, plan=exhibit.plan).ok


@each_exhibit
def test_the_plan_keeps_the_promise(exhibit):
    model = copy.deepcopy(BASE)
    exhibit.plan.apply(model)
    before = snapshot(model)
    optimizer = train(model, torch.optim.AdamW(trainable(model), lr=1e-3), BATCHES)
    freezing_proof(before, model, optimizer, plan=exhibit.plan).check()


@each_exhibit
def test_the_printed_code_is_the_code_that_runs(exhibit):
    assert str(exhibit).startswith(f"Exhibit {exhibit.number}.")
    assert f"def {exhibit.name}(model, batches, frozen_now):" in exhibit.code
    assert "frozen_now()" in exhibit.code


def test_old_gradients_are_filled_with_zeros_or_taken_away():
    for set_to_none, moves in ((False, True), (True, False)):
        model = copy.deepcopy(BASE)
        weight = model.transformer.h[0].mlp.c_fc.weight
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
        look(model, BATCHES[0])
        weight.requires_grad_(False)
        before = weight.detach().clone()
        train(model, optimizer, BATCHES, set_to_none=set_to_none)
        assert torch.equal(weight, before) is not moves


def test_look_returns_the_mean_loss():
    loss = look(copy.deepcopy(BASE), BATCHES[0])
    expected = BASE(input_ids=BATCHES[0], labels=BATCHES[0]).loss.item()
    assert loss == pytest.approx(expected, rel=1e-4)
