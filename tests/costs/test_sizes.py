"""The table of sizes agrees with arithmetic, with the published counts, and with real files."""

import copy

import pytest
from transformers import AutoConfig

from helpers.costs.scaling import size_table
from helpers.freezing.plans import COURSE_PLANS, FreezePlan
from helpers.models.loading import build_model, gpt_neo_125m_config, mini_config
from helpers.training.deltas import save_delta
from support.families import FAMILIES


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
