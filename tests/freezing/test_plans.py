"""Plans, ledgers and selectors, one by one: borders, words, order and tables."""

import hashlib
import re
from dataclasses import FrozenInstanceError
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import AutoConfig, LlamaConfig, LlamaForSequenceClassification

from helpers.costs import budget, explain_cost
from helpers.freezing import change_plan
from helpers.freezing.plans import COURSE_PLANS, FreezePlan, undo
from helpers.freezing.selectors import PlanError, _is_bias, canonical, file_id, parse_selectors, select
from helpers.models.loading import build_model, build_on_meta, gpt_neo_125m_config
from helpers.models.roles import Entry, anatomy
from helpers.training import FreezeGuard, TrainSettings, fit, save_delta
from publishing.families import config_of
from support.tiny import FAMILIES, family

BIG = anatomy(build_on_meta(gpt_neo_125m_config()))
MAIN = FreezePlan.freeze("attention", "embeddings")


@pytest.mark.parametrize("plan", [None, "attention", ["attention"], FreezePlan])
@pytest.mark.parametrize(
    "use",
    [
        FreezeGuard,
        lambda model, plan: fit(model, plan, torch.zeros(2, 4, dtype=torch.long), TrainSettings(1, 1e-3)),
        lambda model, plan: budget(model.config, plan, 1, 4),
        lambda model, plan: explain_cost(model, plan, 1, 4),
        lambda model, plan: save_delta(model, plan, model, "nowhere"),
        lambda model, plan: change_plan(model, torch.optim.SGD(model.parameters()), plan),
    ],
    ids=["guard", "fit", "budget", "reasons", "delta", "change"],
)
def test_what_is_no_plan_is_said(use, plan):
    with pytest.raises(PlanError, match="^A plan is a FreezePlan, such as"):
        use(family("llama"), plan)


@pytest.mark.parametrize(
    "plan, title",
    [
        (FreezePlan.only("attention", "mlp"), "only attention+mlp train"),
        (FreezePlan.only("mlp"), "only mlp trains"),
        (FreezePlan.only("embeddings"), "only embeddings train"),
        (FreezePlan.only("norms"), "only norms train"),
        (FreezePlan.only("blocks"), "only blocks train"),
        (FreezePlan.only("biases"), "only biases train"),
        (FreezePlan.only("first-half"), "only first-half trains"),
    ],
)
def test_one_thing_trains_and_several_train(plan, title):
    assert plan.title == title


def test_plans_and_ledgers_are_values():
    ledger = MAIN.ledger(BIG)
    for value, name in ((MAIN, "way"), (ledger, "plan"), (ledger.rows[0], "role")):
        with pytest.raises(FrozenInstanceError):
            setattr(value, name, "other")


def test_without_a_choice_nothing_is_frozen_and_with_two_nothing_is_guessed():
    assert FreezePlan.parse() == FreezePlan.parse(freeze="none") == FreezePlan.full() == FreezePlan("freeze")
    with pytest.raises(PlanError, match="--freeze mlp and --only norms together"):
        FreezePlan.parse(freeze="mlp", only="norms")
    with pytest.raises(PlanError):
        FreezePlan.parse(only="")


def test_the_ledger_prints_this_table():
    assert str(COURSE_PLANS["only-mlp-out"].ledger(BIG)).splitlines() == [
        "role                tensors     parameters      trainable  state       share",
        "attention                60     28,320,768              0  frozen      22.6%",
        "mlp                      48     56,669,184     28,320,768  mixed       45.3%",
        "norm                     50         38,400              0  frozen       0.0%",
        "token_embedding           1     38,597,376              0  frozen      30.8%",
        "position_embedding        1      1,572,864              0  frozen       1.3%",
        "all                     160    125,198,592     28,320,768             100.0%",
        "freezes: attention+mlp (part)+norm+embeddings | trains: mlp (part)",
        "R = 28,320,768 / 125,198,592 = 0.2262",
        "lm_head.weight is transformer.wte.weight: one tensor, counted once, frozen as one",
    ]


def test_a_role_that_trains_wholly_is_trainable():
    states = MAIN.ledger(BIG).table()["state"].to_dict()
    assert states["mlp"] == states["norm"] == "trainable" and states["attention"] == "frozen"


def test_the_table_has_the_numbers_of_the_rows():
    ledger = COURSE_PLANS["only-mlp-out"].ledger(BIG)
    table = ledger.table()
    assert list(table.index) == [row.role for row in ledger.rows]
    assert table.loc["mlp"].to_dict() == {
        "tensors": 48,
        "parameters": 56_669_184,
        "trainable": 28_320_768,
        "state": "mixed",
        "share": 56_669_184 / 125_198_592,
    }


def test_the_page_has_counts_shares_label_and_ties():
    page = COURSE_PLANS["only-mlp-out"].ledger(BIG)._repr_html_()
    rows = [re.findall(r"<t[dh]>([^<]*)</t[dh]>", row) for row in page.split("<tr>")]
    assert ["mlp", "48", "56,669,184", "28,320,768", "mixed", "45.3%"] in rows
    assert page.endswith(
        "<p>freezes attention+mlp (part)+norm+embeddings | trains mlp (part); R = 0.2262</p>"
        "<p>lm_head.weight is transformer.wte.weight: one tensor, counted once, frozen as one</p>"
    )


def test_embeddings_of_which_one_trains_are_named_apart():
    assert FreezePlan.only("token_embedding").label(BIG) == (
        "freezes attention+mlp+norm+position_embedding | trains token_embedding"
    )
    assert FreezePlan.only("embeddings").ledger(BIG).trains == "embeddings"
    assert FreezePlan.full().ledger(BIG).freezes == "nothing"


def test_a_head_of_its_own_is_told_and_a_bias_of_it_is_not():
    untied = anatomy(family("gpt_neo", tied=False))
    [line] = MAIN.ledger(untied).ties
    assert line.startswith(
        "lm_head.weight is a tensor of its own, not tied to the token embedding: 1,024 parameters"
    )
    assert line.endswith(", trainable")
    assert MAIN.ledger(anatomy(family("gpt_neo"))).ties == (
        "lm_head.weight is transformer.wte.weight: one tensor, counted once, frozen as one",
    )


@pytest.mark.parametrize(
    "name, layers",
    [
        ("jamba", "1 layer of 2"),
        ("recurrent_gemma", "2 layers of 3"),
        ("olmo_hybrid", "1 layer of 2"),  # its linear attention asks as well
        ("rwkv", "2 layers of 2"),
        ("doge", None),  # these have more in their attention than queries, keys and values
        ("laguna", None),
        ("llama", None),
    ],
)
def test_a_mixer_that_counts_as_attention_is_told(name, layers):
    model = build_on_meta(config_of(name))
    found = [line for line in FreezePlan.freeze("attention").explain(model).ties if "mixer" in line]
    assert len(found) == (layers is not None)
    if layers:
        assert found[0].startswith(f"in {layers} attention means the mixer in its place")
        assert found[0].endswith("parameters, 0 trainable")
    if name == "jamba":
        own = sum(p.numel() for n, p in model.named_parameters() if ".mamba." in n and "norm" not in n)
        assert f": {own:,} parameters" in found[0]
        [line] = [x for x in FreezePlan.only("attention").explain(model).ties if "mixer" in x]
        assert line.endswith(f"{own:,} parameters, {own:,} trainable")


def test_a_head_for_classes_is_no_head_of_words():
    config = LlamaConfig(**FAMILIES["llama"], num_labels=3)
    with torch.device("meta"):
        model = LlamaForSequenceClassification(config)
    assert MAIN.explain(model, roles={"score.weight": "head"}).ties == ()


def with_whole_numbers(n):
    model = build_model(AutoConfig.for_model("llama", **FAMILIES["llama"]))
    names = [name for name, _ in model.named_parameters() if "mlp" in name][:n]
    for name in names:
        place, _, leaf = name.rpartition(".")
        whole = torch.zeros_like(model.get_parameter(name), dtype=torch.int8)
        setattr(model.get_submodule(place), leaf, nn.Parameter(whole, requires_grad=False))
    return model, names


@pytest.mark.parametrize("n, more", [(1, ""), (3, ""), (4, " and 1 more"), (6, " and 3 more")])
def test_tensors_of_whole_numbers_are_named_three_at_most(n, more):
    model, names = with_whole_numbers(n)
    words = ", ".join(f"{name} (int8)" for name in names[:3])
    with pytest.raises(PlanError, match=re.escape(f"would train {words}{more}, which holds whole numbers")):
        FreezePlan.full().apply(model)


@pytest.mark.parametrize(
    "plan", [FreezePlan.full(), MAIN, FreezePlan.only("norms")], ids=lambda plan: plan.slug
)
def test_a_model_made_in_inference_mode_is_refused_and_left_as_it_was(plan):
    with torch.inference_mode():
        model = build_model(AutoConfig.for_model("llama", **FAMILIES["llama"]))
    before = [parameter.requires_grad for parameter in model.parameters()]
    with pytest.raises(PlanError, match="made under torch.inference_mode .* again outside of that"):
        plan.apply(model)
    assert [parameter.requires_grad for parameter in model.parameters()] == before
    undo(model)  # nothing was remembered
    plain = build_model(AutoConfig.for_model("llama", **FAMILIES["llama"]))
    with torch.inference_mode():
        ledger = plan.apply(plain)
    assert ledger.n_trainable == sum(p.numel() for p in plain.parameters() if p.requires_grad)


def test_complex_numbers_can_be_trained():
    model = build_model(AutoConfig.for_model("llama", **FAMILIES["llama"]))
    weight = model.model.layers[0].mlp.up_proj.weight
    model.model.layers[0].mlp.up_proj.weight = nn.Parameter(weight.detach().to(torch.complex64))
    FreezePlan.only("mlp").apply(model)
    assert model.model.layers[0].mlp.up_proj.weight.requires_grad


def test_undo_goes_back_to_before_the_first_plan_once():
    model = build_model(AutoConfig.for_model("llama", **FAMILIES["llama"]))
    model.model.norm.weight.requires_grad_(False)
    MAIN.apply(model)
    FreezePlan.only("norms").apply(model)
    undo(model)
    assert [n for n, p in model.named_parameters() if not p.requires_grad] == ["model.norm.weight"]
    model.requires_grad_(False)
    undo(model)
    assert not any(p.requires_grad for p in model.parameters()), "what was undone is forgotten"


def test_a_parameter_that_came_after_the_plan_is_left_by_undo():
    model = build_model(AutoConfig.for_model("llama", **FAMILIES["llama"]))
    MAIN.apply(model)
    model.late = nn.Parameter(torch.zeros(1), requires_grad=False)
    undo(model)
    assert not model.late.requires_grad and model.model.embed_tokens.weight.requires_grad


# --- selectors: borders, order and hints --------------------------------------------

TWO = anatomy(family("gpt_neo"))


def refused(text):
    with pytest.raises(PlanError) as caught:
        parse_selectors(text)
    return str(caught.value)


def not_found(selector, parts=TWO):
    with pytest.raises(PlanError) as caught:
        select(parts, selector)
    return str(caught.value)


def test_a_name_is_kept_up_to_80_signs_and_cut_with_a_hash_above():
    text = "layers0-1" * 9  # 81 signs
    assert file_id(text[:80]) == text[:80]
    assert file_id(text) == f"{text[:60]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    assert file_id("a:b c/d") == "abcd" and file_id("a_b+c@d.e-f") == "a_b+c@d.e-f"


def test_selectors_stand_in_the_order_of_the_words_and_patterns_come_last():
    found = canonical(["name:a", "layers:1", "biases", "mlp@1", "lora", "attention", "mlp", "q"])
    assert found == ("attention", "mlp", "mlp@1", "biases", "q", "lora", "layers:1", "name:a")
    assert canonical("mlp+norm") == ("mlp", "norms") == canonical(["norms", "mlp", "norm"])


def test_words_are_stripped_and_only_norm_has_a_second_spelling():
    assert parse_selectors(" attention + norm@0-1 ") == ("attention", "norms@0-1")
    assert parse_selectors("norms") == ("norms",) and parse_selectors("name:norm") == ("name:norm",)


@pytest.mark.parametrize(
    "text, hint",
    [
        ("layer:3", "Did you mean 'layers:3'?"),
        ("blocks 0-2", "Did you mean 'layers:0-2'?"),
        ("block@7", "Did you mean 'layers:7'?"),
        ("h12", "Did you mean 'layers:12'?"),
        ("attention,embeddings", "Did you mean 'attention+embeddings'?"),
        ("attention@0-1 & mlp; norms", "Did you mean 'attention@0-1+mlp+norms'?"),
        ("atention@1", "Did you mean 'attention'?"),
        ("NORMS", "Did you mean 'norms'?"),
        ("none", "To freeze nothing write FreezePlan.full()"),
        ("wte.weight", "For a parameter's name write 'name:wte.weight'."),
    ],
)
def test_a_hint_names_one_word(text, hint):
    message = refused(text)
    assert f"pattern. {hint}" in message and message.count("Did you mean") <= 1


def test_a_word_like_no_other_has_no_hint():
    assert "is no role, group, part or pattern. Roles: " in refused("zzzz")


def test_a_name_that_is_not_there_gets_the_three_nearest_patterns():
    nearest = re.search(r"Nearest: (.*)\.$", not_found("name:transformer.h.*.attn.attention.qq_proj.weight"))[
        1
    ]
    assert nearest.split(", ")[0] == "transformer.h.*.attn.attention.q_proj.weight"
    assert len(nearest.split(", ")) == 3
    strange = re.search(r"Nearest: (.*)\.$", not_found("name:§§§§"))[1].split(", ")
    assert strange == ["transformer.wte.weight", "lm_head.weight", "transformer.wpe.weight"]


def test_a_range_that_cannot_be_says_its_blocks():
    assert "write the smaller block first, 0-1." in not_found("mlp@1-0")
    assert "asks for block 2: this model has blocks 0 to 1." in not_found("mlp@0-2")
    assert select(TWO, "layers:0-1") == select(TWO, "blocks") and select(TWO, "mlp@1-1") == select(
        TWO, "mlp@1"
    )


def test_the_first_half_of_an_odd_number_of_blocks_is_the_smaller_one():
    three = anatomy(family("gpt_neo", num_layers=3, attention_types=[[["global"], 3]]))
    assert {three.entry(name).layer for name in select(three, "first-half")} == {None, 0}


def test_what_a_model_lacks_is_told_with_what_it_has_once_each():
    message = not_found("router")
    assert message.endswith("and the parts k, v, q, attention-out, mlp-in, mlp-out.")


def test_qkv_is_every_way_to_keep_queries_keys_and_values():
    parts = ("q", "k", "v", "kv", "qkv", "attention-out", "mlp-in")
    entries = [Entry(part, "attention", 0, part, (4, 4), 16) for part in parts]
    assert select(SimpleNamespace(entries=entries), "qkv") == {"q", "k", "v", "kv", "qkv"}
    for word in ("k", "v"):
        assert "fused tensors (kv)" in not_found(word, SimpleNamespace(entries=entries[3:4]))


def test_a_bias_is_a_vector_by_name_or_a_table_for_experts():
    def entry(name, *shape):
        return type("Entry", (), {"name": name, "shape": shape})

    assert _is_bias(entry("h.0.bias", 4)) and _is_bias(entry("h.0.gate_bias", 2, 4))
    assert not _is_bias(entry("h.0.bias", 1, 4)) and not _is_bias(entry("h.0.bias.weight", 4))
    assert not _is_bias(entry("bias.h", 4)) and not _is_bias(entry("h.0.weight", 4))
