"""Bigger models and more devices: counts are the published ones, and the shares add up."""

import copy

import pytest
import torch
from transformers import AutoConfig

from helpers.costs.scaling import (
    BFLOAT16,
    DEVICES,
    GIB,
    RESERVE,
    Plan,
    gpt_neo_1_3b_config,
    llama_2_7b_config,
    llama_2_70b_config,
    size_table,
)
from helpers.costs.step_cost import budget
from helpers.freezing.plans import COURSE_PLANS, FreezePlan
from helpers.lessons.widgets.memory import Planner, Setting, room
from helpers.models.loading import (
    build_model,
    build_on_meta,
    enable_checkpointing,
    gpt_neo_125m_config,
    mini_config,
)
from helpers.models.roles import anatomy
from helpers.training.deltas import save_delta
from support.tiny import FAMILIES

MAIN = COURSE_PLANS["attention+embeddings"]


@pytest.mark.parametrize(
    "config, n",
    [
        (gpt_neo_1_3b_config(), 1_315_575_808),
        (llama_2_7b_config(), 6_738_415_616),
        (llama_2_70b_config(), 68_976_648_192),
    ],
)
def test_the_shapes_give_the_published_number_of_parameters(config, n):
    assert anatomy(build_on_meta(config)).n_parameters == n


@pytest.fixture(scope="module")
def plan():
    return Plan.of(gpt_neo_125m_config(), MAIN)


def test_the_state_is_sixteen_bytes_a_trained_number_and_four_or_two_a_frozen_one(plan):
    n, t = 125_198_592, 56_707_584
    assert plan.state_bytes() == 16 * t + 4 * (n - t)
    assert plan.state_bytes(BFLOAT16) == 16 * t + 2 * (n - t)


def test_alone_a_device_needs_the_peak_of_the_step(plan):
    assert plan.need(1).total == plan.predicted.peak_bytes
    assert plan.need(1, BFLOAT16).total == plan.predicted.peak_bytes - 2 * (125_198_592 - 56_707_584)


def test_devices_share_the_state_and_nothing_else(plan):
    two, four = plan.need(2), plan.need(4)
    assert two.state == -(-plan.state_bytes() // 2) and four.state == -(-plan.state_bytes() // 4)
    assert (two.gathered, two.activations) == (four.gathered, four.activations) and two.gathered > 0


def test_what_is_gathered_is_two_blocks_and_what_is_outside_them(plan):
    block, width = 7_085_568, 768
    assert plan.block.n_parameters == block
    assert plan.outside.n_parameters == 125_198_592 - 12 * block
    assert plan.outside.n_trainable == 2 * width  # the last LayerNorm


def test_more_memory_never_needs_more_devices(plan):
    needs = [plan.fewest(gib) for gib in sorted(DEVICES.values())]
    assert needs == sorted(needs, reverse=True)
    assert plan.fewest(0.01) is None


def test_the_fewest_devices_fit_and_one_less_does_not():
    plan = Plan.of(gpt_neo_1_3b_config(), FreezePlan.full())
    n = plan.fewest(15)
    assert n >= 2
    assert plan.need(n).total <= 0.9 * 15 * GIB < plan.need(n - 1).total


# --- checkpointing -----------------------------------------------------------------


def test_checkpointing_keeps_one_input_a_block_and_computes_the_blocks_twice():
    config = mini_config()
    usual, again = budget(config, MAIN, 2, 64), budget(config, MAIN, 2, 64, checkpointing=True)
    inputs = config.num_layers * 2 * 64 * config.hidden_size * 4
    assert inputs <= again.bytes["activations"] < 0.5 * usual.bytes["activations"]
    assert again.bytes["gradients"] == usual.bytes["gradients"]
    assert (
        again.flops.forward == usual.flops.forward
        and again.flops.backward_weight == usual.flops.backward_weight
    )
    head = 2 * 2 * 63 * config.hidden_size * config.vocab_size
    last = (
        config.num_layers * 2 * 2 * 64 * config.hidden_size * 4 * config.hidden_size
    )  # nothing needs its result
    assert again.flops.backward_input - usual.flops.backward_input == usual.flops.forward - head - last


def test_a_frozen_prefix_stays_free_under_checkpointing():
    """transformers makes the embedding's output require a gradient; then all blocks would be computed twice."""
    plan, config = FreezePlan.freeze("first-half"), mini_config()
    usual, again = budget(config, plan, 2, 64), budget(config, plan, 2, 64, checkpointing=True)
    whole = budget(config, MAIN, 2, 64, checkpointing=True)
    assert again.bytes["activations"] < usual.bytes["activations"]
    assert again.flops.backward_input - usual.flops.backward_input < 0.6 * (
        whole.flops.backward_input - budget(config, MAIN, 2, 64).flops.backward_input
    )


def test_checkpointing_works_for_other_families_with_frozen_attention():
    from transformers import LlamaConfig

    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=128,
    )
    for plan in (MAIN, FreezePlan.full(), FreezePlan.only("norms")):
        usual, again = budget(config, plan, 2, 32), budget(config, plan, 2, 32, checkpointing=True)
        assert again.bytes["activations"] < usual.bytes["activations"]
        assert again.flops.backward_weight == usual.flops.backward_weight


@pytest.mark.parametrize("plan", [MAIN, FreezePlan.only("mlp-out"), FreezePlan.full()], ids=lambda p: p.slug)
def test_checkpointing_gives_the_same_gradients_under_frozen_embeddings(plan):
    found = []
    for checkpointing in (False, True):
        model = build_model(
            mini_config(num_layers=2, attention_types=[[["global", "local"], 1]]), seed=1
        ).train()
        plan.apply(model)
        if checkpointing:
            enable_checkpointing(model)
        ids = torch.arange(64).reshape(2, 32)
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        found.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    assert all(torch.allclose(found[0][n], found[1][n], atol=1e-7) for n in found[0])


def test_the_older_way_of_checkpointing_loses_gradients_under_frozen_embeddings():
    model = build_model(mini_config(num_layers=2, attention_types=[[["global", "local"], 1]]), seed=1).train()
    enable_checkpointing(model, use_reentrant=True)
    ids = torch.arange(64).reshape(2, 32)
    FreezePlan.only("mlp-out").apply(model)
    with (
        pytest.warns(UserWarning, match="None of the inputs"),
        pytest.raises(RuntimeError, match="element 0 of"),
    ):
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    MAIN.apply(model)  # its last LayerNorm trains, so that the loss has a gradient, and nothing is said
    with pytest.warns(UserWarning, match="None of the inputs"):
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    with_gradient = [n for n, p in model.named_parameters() if p.grad is not None]
    assert with_gradient == ["transformer.ln_f.weight", "transformer.ln_f.bias"]


@pytest.mark.parametrize("plan, fits", [("attention+embeddings", False), ("first-half", True)])
def test_the_planner_of_03_and_the_cards_of_08_agree_about_a_t4(plan, fits):
    """GPT-Neo 1.3B, one window: frozen weights stay in float32 on a card that does not compute in bfloat16."""
    config = gpt_neo_1_3b_config()
    setting = Setting("1.3B", plan, 1, 512, "float32")
    planner = Planner({"1.3B": config})
    same = Plan.of(config, COURSE_PLANS[plan], 1, 512, checkpointing=False)
    assert planner.cost(setting).peak_bytes == pytest.approx(same.need().total, rel=1e-6)
    assert room("T4") == int(RESERVE * DEVICES["T4"] * GIB)
    assert planner.fits(setting, "T4") == (same.fewest_of("T4", most=1) == 1) == fits
    as_in_08 = Plan.of(config, COURSE_PLANS[plan], 1, 512)
    assert (as_in_08.fewest_of("T4", most=1) == 1) == fits  # with checkpointing too


def test_frozen_weights_are_counted_in_what_a_card_computes_in():
    plan = Plan.of(llama_2_7b_config(), COURSE_PLANS["only-norms"])
    assert plan.fewest_of("T4", most=1) is None and plan.fewest(DEVICES["T4"], BFLOAT16, most=1) == 1
    assert plan.fewest_of("L4", most=1) == plan.fewest(DEVICES["L4"], BFLOAT16, most=1) == 1


# --- sizes on the disk --------------------------------------------------------------


def test_gpt_neo_125m_has_the_published_sizes():
    table = size_table(gpt_neo_125m_config(), ranks=(8,))
    assert table.loc["full checkpoint", "bytes"] == 4 * 125_198_592
    assert table.loc["delta, attention+embeddings frozen", "bytes"] == 4 * 56_707_584
    assert table.loc["delta, only norms train", "parameters"] == 38_400
    assert table.loc["LoRA r = 8 on attention", "parameters"] == 12 * 4 * 8 * (768 + 768)
    assert table.loc["delta, attention+embeddings frozen", "share of full"] == pytest.approx(0.453, abs=5e-4)
    assert len(table) == 1 + len(COURSE_PLANS) + 1


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_a_table(family):
    table = size_table(AutoConfig.for_model(family, **FAMILIES[family]))
    assert table.loc["full checkpoint", "share of full"] == 1
    assert len(table) >= len(COURSE_PLANS) + 3
    assert (table["parameters"] > 0).all()


def test_real_files_are_as_big_as_the_table_says_but_for_their_header(tmp_path):
    config = mini_config()
    base, table = build_model(config), size_table(config)
    for plan in (FreezePlan.full(), FreezePlan.freeze("attention", "embeddings"), FreezePlan.only("norms")):
        model = copy.deepcopy(base)
        plan.apply(model)
        n_bytes = save_delta(model, plan, base, tmp_path).stat().st_size
        n_header = n_bytes - table.loc[f"delta, {plan.title}", "bytes"]
        assert 0 < n_header < 300 * (len(list(model.parameters())) + 20)
