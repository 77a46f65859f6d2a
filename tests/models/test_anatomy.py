"""Every parameter has one role, in every family; a tied tensor counts once; nothing is guessed."""

import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from helpers.models.loading import build_model, build_on_meta, gpt_neo_125m_config, mini_config
from helpers.models.roles import ROLES, AnatomyError, anatomy, matches
from support.tiny import FAMILIES, family, with_adapters

# --- golden counts -----------------------------------------------------------------


def test_gpt_neo_125m_has_the_published_counts_in_under_two_seconds():
    began = time.perf_counter()
    parts = anatomy(build_on_meta(gpt_neo_125m_config()))
    assert time.perf_counter() - began < 2
    assert parts.counts() == {
        "attention": 28_320_768,
        "mlp": 56_669_184,
        "norm": 38_400,
        "token_embedding": 38_597_376,
        "position_embedding": 1_572_864,
    }
    assert parts.n_parameters == 125_198_592
    assert parts.n_layers == 12
    assert parts.count("head") == 0


def test_the_table_has_the_published_shares():
    table = anatomy(build_on_meta(gpt_neo_125m_config())).table()
    assert list(table.loc["mlp"][["tensors", "parameters"]]) == [48, 56_669_184]
    shares = {role: round(100 * share, 1) for role, share in table["share"].items()}
    assert shares == {
        "attention": 22.6,
        "mlp": 45.3,
        "norm": 0.0,
        "token_embedding": 30.8,
        "position_embedding": 1.3,
    }
    assert table["share"].sum() == pytest.approx(1)


def test_the_miniature_has_the_counts_of_its_shape():
    parts = anatomy(build_on_meta(mini_config()))
    assert parts.counts() == {
        "attention": 590_592,
        "mlp": 1_183_488,
        "norm": 3_456,
        "token_embedding": 786_432,
        "position_embedding": 49_152,
    }
    assert parts.n_parameters == 2_613_120


# --- families ----------------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("name", FAMILIES)
def test_every_parameter_of_a_family_has_a_role_and_is_counted_once(name, tied):
    model = family(name, tied)
    parts = anatomy(model)
    assert list(parts.names()) == [n for n, _ in model.named_parameters()]
    assert parts.n_parameters == sum(p.numel() for p in model.parameters()) == sum(parts.counts().values())
    assert parts.n_layers == 2
    assert {e.role for e in parts.entries} <= set(ROLES)
    assert {e.layer for e in parts.entries if e.role in ("attention", "mlp")} == {0, 1}
    assert all(e.layer is None for e in parts.entries if e.role.endswith("embedding") or e.role == "head")
    assert all(
        e.shape == tuple(p.shape) and e.n_parameters == p.numel()
        for e, p in zip(parts.entries, model.parameters(), strict=True)
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_a_tied_head_is_the_embeddings_entry_and_an_untied_one_is_its_own(name):
    tied, untied = anatomy(family(name)), anatomy(family(name, tied=False))
    assert tied.count("head") == 0
    assert untied.count("head") == untied.count("token_embedding") == 64 * 16
    assert untied.n_parameters == tied.n_parameters + 64 * 16
    embedding = next(e for e in tied.entries if e.tied_head)
    assert embedding.role == "token_embedding" and len(embedding.aliases) == 1
    assert tied.entry(embedding.aliases[0]) is embedding
    assert not any(e.aliases or e.tied_head for e in untied.entries)


# Per block, by hand: width 16, MLP 24, 2 heads of 8, one key/value head where grouped.
BY_HAND = {
    "gpt_neo": {"attention": 4 * 256 + 16, "mlp": 2 * 16 * 24 + 24 + 16},
    "gpt2": {"attention": 4 * 256 + 4 * 16, "mlp": 2 * 16 * 24 + 24 + 16},
    "opt": {"attention": 4 * 256 + 4 * 16, "mlp": 2 * 16 * 24 + 24 + 16},
    "gpt_neox": {"attention": 4 * 256 + 4 * 16, "mlp": 2 * 16 * 24 + 24 + 16},
    "llama": {"attention": 2 * 256 + 2 * 128, "mlp": 3 * 16 * 24},
    "qwen2": {"attention": 2 * 256 + 2 * 128 + 16 + 2 * 8, "mlp": 3 * 16 * 24},
}


@pytest.mark.parametrize("name", BY_HAND)
def test_counts_by_role_agree_with_arithmetic(name):
    parts = anatomy(family(name))
    assert {role: parts.count(role) for role in ("attention", "mlp")} == {
        r: 2 * n for r, n in BY_HAND[name].items()
    }


PARTS_OF = {
    "gpt_neo": "q k v attention-out mlp-in mlp-out",
    "opt": "q k v attention-out mlp-in mlp-out",
    "gpt2": "qkv attention-out mlp-in mlp-out",
    "gpt_neox": "qkv attention-out mlp-in mlp-out",
    "llama": "q k v attention-out mlp-gate mlp-in mlp-out",
    "qwen2": "q k v attention-out mlp-gate mlp-in mlp-out",
    "mixtral": "q k v attention-out mlp-in mlp-out router",
}


@pytest.mark.parametrize("name", PARTS_OF)
def test_parts_name_what_the_family_has(name):
    found = {e.part for e in anatomy(family(name)).entries if e.role in ("attention", "mlp")}
    assert found == set(PARTS_OF[name].split())


def test_the_same_module_name_has_two_roles_by_where_it_stands():
    parts = anatomy(family("gpt2"))
    assert parts.entry("transformer.h.0.attn.c_proj.weight").part == "attention-out"
    assert parts.entry("transformer.h.0.mlp.c_proj.weight").part == "mlp-out"


def test_a_norm_named_after_attention_is_a_norm():
    assert anatomy(family("llama")).entry("model.layers.1.post_attention_layernorm.weight").role == "norm"
    assert anatomy(family("qwen3")).entry("model.layers.1.self_attn.q_norm.weight").role == "norm"
    assert anatomy(family("opt")).entry("model.decoder.layers.1.self_attn_layer_norm.bias").role == "norm"


def test_experts_and_their_router_are_mlp_and_their_numbers_are_no_layers():
    model = family("mixtral")
    model.model.layers[1].mlp.experts = nn.ModuleList(
        [nn.ModuleDict({name: nn.Linear(4, 4, bias=False) for name in ("w1", "w2", "w3")}) for _ in range(12)]
    )
    parts = anatomy(model)
    assert parts.n_layers == 2
    expert = parts.entry("model.layers.1.mlp.experts.11.w2.weight")
    assert (expert.role, expert.layer, expert.part) == ("mlp", 1, "mlp-out")
    assert parts.entry("model.layers.0.mlp.gate.weight").part == "router"
    for layer in model.model.layers:  # as in HunYuan: a module of the router
        layer.mlp.gate = nn.ModuleDict({"wg": nn.Linear(4, 4, bias=False)})
    assert anatomy(model).entry("model.layers.0.mlp.gate.wg.weight").part == "router"


def test_narrow_token_vectors_of_opt_350m_are_embedding_and_head():
    parts = anatomy(family("opt", word_embed_proj_dim=8))
    assert parts.entry("model.decoder.project_in.weight").role == "token_embedding"
    assert parts.entry("model.decoder.project_out.weight").role == "head"


# --- ties --------------------------------------------------------------------------


def test_equal_values_do_not_tie_two_tensors():
    model = build_model(mini_config(tie_word_embeddings=False))
    with torch.no_grad():
        model.lm_head.weight.copy_(model.transformer.wte.weight)
    parts = anatomy(model)
    assert parts.count("head") == parts.count("token_embedding") == 4096 * 192


def test_a_head_registered_first_is_still_the_embeddings_entry():
    model = nn.ModuleDict({"lm_head": nn.Linear(4, 8, bias=False), "wte": nn.Embedding(8, 4)})
    model["wte"].weight = model["lm_head"].weight
    (entry,) = anatomy(model).entries
    assert (entry.name, entry.role, entry.aliases) == ("lm_head.weight", "token_embedding", ("wte.weight",))


def test_one_tensor_with_two_roles_is_an_error():
    model = family("gpt_neo")
    block = model.transformer.h[0]
    block.mlp.c_proj.bias = block.attn.attention.out_proj.bias
    with pytest.raises(AnatomyError, match=r"out_proj\.bias and .*c_proj\.bias are one tensor with 2 roles"):
        anatomy(model)


# --- what is not known -------------------------------------------------------------


def test_an_unknown_parameter_is_reported_with_the_way_to_name_it():
    with pytest.raises(AnatomyError) as caught:
        anatomy(with_adapters())
    message = str(caught.value)
    assert "4 in all" in message and "transformer.h.0.adapter.bias" in message
    assert 'roles={"transformer.h.*.adapter.weight": "mlp"}' in message
    assert "attention, mlp, norm, token_embedding, position_embedding, head" in message


def test_the_way_that_the_message_shows_works():
    parts = anatomy(with_adapters(), roles={"transformer.h.*.adapter.*": "mlp"})
    assert parts.count("mlp") == anatomy(family("gpt_neo")).count("mlp") + 2 * 12
    assert parts.entry("transformer.h.1.adapter.weight").layer == 1


@pytest.mark.parametrize(
    "where", ["transformer.h.0.attn", "transformer.h.0.mlp", "transformer.h.0", "transformer"]
)
def test_a_new_name_is_never_guessed_from_its_surroundings(where):
    model = family("gpt_neo")
    model.get_submodule(where).gadget = nn.Linear(2, 2, device="meta")
    with pytest.raises(AnatomyError, match="gadget"):
        anatomy(model)


@pytest.mark.parametrize(
    "name", ["prenormal", "normalizer", "embed_tokens_per_layer", "lm_head_2", "attn_wte"]
)
def test_a_name_that_only_contains_a_known_one_is_not_known(name):
    model = family("gpt_neo")
    model.transformer.add_module(name, nn.Linear(2, 2, device="meta"))
    with pytest.raises(AnatomyError, match=name):
        anatomy(model)


def test_the_readers_own_roles_win_over_the_rules():
    parts = anatomy(family("gpt_neo"), roles={"transformer.ln_f.*": "head"})
    assert parts.entry("transformer.ln_f.weight").role == "head"
    named = anatomy(family("gpt_neo"), roles={"**.q_proj.weight": "attention"})
    assert named.entry("transformer.h.0.attn.attention.q_proj.weight").part == "q"


def test_a_pattern_for_roles_that_matches_nothing_is_an_error_with_the_nearest_names():
    with pytest.raises(AnatomyError, match=r"matches no parameter.*transformer\.h\.\*\.adapter\.weight"):
        anatomy(with_adapters(), roles={"transformer.h.*.adaptor.weight": "mlp"})


def test_a_role_that_does_not_exist_is_an_error_that_lists_the_roles():
    with pytest.raises(AnatomyError, match="'adapter' is not known. Roles: attention, mlp"):
        anatomy(with_adapters(), roles={"**.adapter.*": "adapter"})
    with pytest.raises(AnatomyError, match="'embeddings' is not known"):
        anatomy(family("gpt2")).count("embeddings")


def test_two_patterns_that_disagree_are_an_error():
    with pytest.raises(AnatomyError, match="two roles, 'mlp' and 'norm'"):
        anatomy(with_adapters(), roles={"**.adapter.*": "mlp", "**.adapter.bias": "norm"})


def test_asking_for_a_parameter_that_is_not_there_lists_the_nearest():
    with pytest.raises(AnatomyError, match=r"no parameter 'lm_head\.weigth'\. Nearest: lm_head\.weight"):
        anatomy(family("gpt2")).entry("lm_head.weigth")


# --- patterns ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "pattern, name, expected",
    [
        ("h.1.*", "h.1.weight", True),
        ("h.1.*", "h.10.weight", False),
        ("h.1.**", "h.10.a.weight", False),
        ("h.*", "h.1.weight", False),
        ("h.**", "h.1.weight", True),
        ("**", "h.1.weight", True),
        ("**.norm.weight", "a.b.norm.weight", True),
        ("**.norm.weight", "a.input_norm.weight", False),
        ("norm.weight", "a.norm.weight", False),
        ("**.1.**", "layers.0.experts.1.w1", True),
        ("layers.1.**", "layers.0.experts.1.w1", False),
        ("**.norm.**", "norm.weight", True),
        ("*.q_*.weight", "attn.q_proj.weight", True),
        ("h", "h.1", False),
        ("", "h", False),
    ],
)
def test_a_pattern_matches_whole_components(pattern, name, expected):
    assert matches(pattern, name) is expected


@pytest.mark.parametrize("pattern", ["**." * 60 + "x", "**.a." * 30 + "x", "*a" * 60 + "x", "*." * 60 + "x"])
def test_many_stars_take_no_time(pattern):
    began = time.perf_counter()
    assert not matches(pattern, ".".join("a" * 40))
    assert time.perf_counter() - began < 0.5


components = st.lists(st.text("ab_1", min_size=1, max_size=3), min_size=1, max_size=5)


@given(components, components)
def test_a_plain_name_matches_itself_alone(first, second):
    assert matches(".".join(first), ".".join(second)) == (first == second)


@given(components, st.data())
def test_a_star_stands_for_exactly_one_component(parts, data):
    i = data.draw(st.integers(0, len(parts) - 1))
    pattern = ".".join([*parts[:i], "*", *parts[i + 1 :]])
    assert matches(pattern, ".".join(parts))
    assert not matches(pattern, ".".join([*parts, "x"]))


@given(components, st.data())
def test_two_stars_stand_for_any_number_of_components(parts, data):
    low = data.draw(st.integers(0, len(parts)))
    high = data.draw(st.integers(low, len(parts)))
    assert matches(".".join([*parts[:low], "**", *parts[high:]]), ".".join(parts))
