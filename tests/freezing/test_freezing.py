"""Plans take exactly what they name; apply and undo are exact; the proof finds every broken freeze."""

import copy
import math
import shlex

import pytest
import torch
from accelerate import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import AutoConfig

from helpers.files import tensor_bytes
from helpers.freezing.plans import COURSE_PLANS, FreezePlan, undo
from helpers.freezing.proof import FreezingError, freezing_proof, snapshot
from helpers.freezing.selectors import GROUPS, PARTS, WORDS, PlanError
from helpers.models.loading import build_model, build_on_meta, gpt_neo_125m_config, mini_config
from helpers.models.roles import ROLES, AnatomyError, anatomy
from support import tiny
from support.tiny import FAMILIES, family, with_adapters

BIG = anatomy(build_on_meta(gpt_neo_125m_config()))
TWELVE = family(
    "gpt_neo", num_layers=12, attention_types=[[["global", "local"], 6]]
)  # on meta: layers 1, 10, 11
DEEP = anatomy(TWELVE)
Q = "transformer.h.0.attn.attention.q_proj.weight"
MAIN = COURSE_PLANS["attention+embeddings"]


# --- the published numbers ---------------------------------------------------------

PUBLISHED = {
    "full": (125_198_592, 1.000),
    "attention": (96_877_824, 0.774),
    "attention+embeddings": (56_707_584, 0.453),
    "mlp": (68_529_408, 0.547),
    "mlp+embeddings": (28_359_168, 0.227),
    "embeddings": (85_028_352, 0.679),
    "first-half": (42_514_944, 0.340),
    "only-attention": (28_320_768, 0.226),
    "only-mlp-out": (28_320_768, 0.226),
    "only-norms": (38_400, 0.0003),
    "only-biases": (74_496, 0.0006),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_course_plan_trains_the_published_number(name):
    ledger = COURSE_PLANS[name].ledger(BIG)
    n_trainable, ratio = PUBLISHED[name]
    assert (ledger.n_trainable, ledger.n_parameters) == (n_trainable, 125_198_592)
    assert round(ledger.R, 4 if ratio < 0.001 else 3) == ratio


def test_the_course_plans_are_those_of_the_table():
    assert list(COURSE_PLANS) == list(PUBLISHED)


def test_the_articles_name_rule_leaves_the_embeddings_trainable():
    def rule(names):
        return {n for n in names if "attn" in n or "embed" in n}

    plan = FreezePlan.freeze("name:**.attn.**")
    assert plan.ledger(BIG).n_trainable == 96_877_824
    assert plan.trainable_names(BIG) == set(BIG.names()) - rule(BIG.names())
    assert {"transformer.wte.weight", "transformer.wpe.weight"} <= plan.trainable_names(BIG)


def test_one_reading_of_the_article_gives_its_48_percent():
    ledger = FreezePlan.freeze("q", "k", "v", "token_embedding").ledger(BIG)
    assert ledger.n_trainable == 65_367_552
    assert round(1 - ledger.R, 3) == 0.478


# --- selectors ---------------------------------------------------------------------


def taken(selector: str, parts=DEEP) -> frozenset[str]:
    return FreezePlan.only(selector).trainable_names(parts)


def layers_in(names, parts=DEEP) -> set:
    return {parts.entry(name).layer for name in names}


def test_layer_1_never_takes_layer_10():
    assert layers_in(taken("layers:1")) == {1}
    assert layers_in(taken("attention@1")) == {1}
    assert layers_in(taken("name:transformer.h.1.**")) == {1}
    assert len(taken("layers:1")) == len([e for e in DEEP.entries if e.layer == 1])


def test_a_layer_range_takes_all_of_its_blocks_and_nothing_else():
    assert taken("layers:9-11") == {e.name for e in DEEP.entries if e.layer in (9, 10, 11)}
    assert taken("mlp@0-1") == {e.name for e in DEEP.entries if e.layer in (0, 1) and e.role == "mlp"}


def test_norm_takes_every_norm_and_a_name_pattern_only_its_own():
    assert taken("norms") == taken("norm") == {e.name for e in DEEP.entries if e.role == "norm"}
    assert taken("name:model.norm.weight", anatomy(family("llama"))) == {"model.norm.weight"}


def test_first_half_is_the_embeddings_and_the_first_half_of_the_blocks():
    assert taken("first-half") == {
        e.name for e in DEEP.entries if e.role.endswith("embedding") or e.layer in range(6)
    }


def test_biases_are_all_vectors_named_bias():
    names = taken("biases")
    assert names == {n for n in DEEP.names() if n.endswith(".bias")}
    assert {"transformer.ln_f.bias", "transformer.h.0.mlp.c_fc.bias"} <= names


@pytest.mark.parametrize("name", FAMILIES)
def test_qkv_and_attention_out_make_up_attention_in_every_family(name):
    parts = anatomy(family(name))
    assert taken("qkv", parts) | taken("attention-out", parts) == taken("attention", parts)
    assert not taken("qkv", parts) & taken("attention-out", parts)


@pytest.mark.parametrize("name", FAMILIES)
def test_embeddings_blocks_and_the_last_norm_make_up_a_tied_model(name):
    parts = anatomy(family(name))
    rest = {e.name for e in parts.entries if e.layer is None and e.role == "norm"}
    assert taken("embeddings", parts) | taken("blocks", parts) | rest == set(parts.names())


@pytest.mark.parametrize("selector", ["head", "name:lm_head.weight", "token_embedding", "name:**.wte.weight"])
def test_a_tied_head_is_found_by_each_of_its_names(selector):
    assert taken(selector) == {"transformer.wte.weight"}


@pytest.mark.parametrize("name", FAMILIES)
def test_an_untied_head_is_apart_from_the_embeddings(name):
    parts = anatomy(family(name, tied=False))
    assert {parts.entry(n).role for n in taken("head", parts)} == {"head"}
    assert not taken("head", parts) & taken("embeddings", parts)


# --- errors ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, hint",
    [
        ("attn+emb", r"Plan 'attn\+emb' is not known: 'attn'.*Did you mean 'attention'"),
        ("Attention", "Did you mean 'attention'"),
        ("first_half", "Did you mean 'first-half'"),
        ("layers.1", "Did you mean 'layers:1'"),
        ("layer 3", "Did you mean 'layers:3'"),
        ("h.2-4", "'layers:2-4'"),
        ("lm_head.weight", "write 'name:lm_head.weight'"),
        ("none+mlp", "--freeze none alone"),
        ("", "'' is no role"),
        ("attention+", "'' is no role"),
        ("layers:", "layers:"),
        ("layers:a", "layers:a"),
        ("attention@", "attention@"),
        ("attention@x", "attention@x"),
        ("name:", "name:"),
        ("layers:1@2", "layers:1@2"),
        ("everything", "Roles: attention, mlp, norm.*Groups: embeddings.*Parts: q, k, v.*Also: layers:0-5"),
    ],
)
def test_an_unknown_word_is_an_error_that_says_what_there_is(text, hint):
    with pytest.raises(PlanError, match=hint):
        FreezePlan.parse(freeze=text)
    with pytest.raises(PlanError, match=hint):
        FreezePlan.parse(only=text)


@pytest.mark.parametrize(
    "selector, hint",
    [
        ("layers:12", "block 12: this model has blocks 0 to 11"),
        ("layers:10-12", "blocks 0 to 11"),
        ("attention@12", "blocks 0 to 11"),
        ("layers:5-2", "2-5"),
        ("embeddings@0", "no parameter in these blocks"),
        ("router", "has the roles attention, mlp, norm, token_embedding, position_embedding and the parts"),
        ("mlp-gate", "parts .*mlp-in, mlp-out"),
        ("name:transformer.h.*.mlp.c_fcc.weight", r"Nearest: transformer\.h\.\*\.mlp\.c_fc\.weight"),
        ("name:transformer.h.3", r"names a module. Write 'name:transformer\.h\.3\.\*\*'"),
        ("name:attn", "matches no parameter"),
        ("name:h.1.mlp.c_fc.weight", "Nearest: transformer"),
    ],
)
def test_a_selector_that_finds_nothing_is_an_error_by_itself(selector, hint):
    for plan in (
        FreezePlan.freeze(selector),
        FreezePlan.freeze("norms", "attention", selector),
        FreezePlan.only("mlp", selector),
    ):
        with pytest.raises(PlanError, match=hint):
            plan.trainable_names(DEEP)


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox"])
@pytest.mark.parametrize("part", ["q", "k", "v"])
def test_one_third_of_a_fused_tensor_cannot_be_chosen(name, part):
    with pytest.raises(PlanError, match=r"fused tensors \(.*\.0\..*Choose 'qkv' or 'attention'"):
        FreezePlan.freeze(part).explain(family(name))


def test_a_model_without_head_or_positions_says_so():
    with pytest.raises(PlanError, match="'position_embedding' matches nothing"):
        FreezePlan.freeze("position_embedding").explain(family("llama"))
    with pytest.raises(PlanError, match="'biases' matches nothing"):
        FreezePlan.only("biases").explain(family("llama"))


def test_a_plan_that_trains_nothing_is_an_error():
    with pytest.raises(PlanError, match=r"trains nothing: it freezes all \d+ tensors"):
        FreezePlan.freeze("blocks", "embeddings", "norms").explain(TWELVE)
    with pytest.raises(PlanError, match="trains nothing"):
        FreezePlan.only()


def test_wrong_calls_are_told_the_right_one():
    with pytest.raises(PlanError, match="FreezePlan.full"):
        FreezePlan.freeze()
    with pytest.raises(PlanError, match="'freeze' or 'only', found 'train'"):
        FreezePlan("train", ("mlp",))
    with pytest.raises(PlanError, match="found 3"):
        FreezePlan.freeze(3)
    with pytest.raises(PlanError, match="give one of them"):
        FreezePlan.parse(freeze="mlp", only="norms")


def test_an_error_leaves_the_model_as_it_was():
    model = build_tiny()
    for plan in (FreezePlan.freeze("mlp", "router"), FreezePlan.freeze("blocks", "embeddings", "norms")):
        with pytest.raises(PlanError):
            plan.apply(model)
    assert all(p.requires_grad for p in model.parameters())


def test_a_model_with_unknown_parameters_needs_their_roles():
    with pytest.raises(AnatomyError, match="adapter"):
        MAIN.apply(with_adapters())
    ledger = MAIN.apply(with_adapters(), roles={"**.adapter.*": "mlp"})
    assert ledger.trains == "mlp+norm"


# --- how a plan is written ---------------------------------------------------------


@pytest.mark.parametrize(
    "plan, slug, title, code, flag",
    [
        (FreezePlan.full(), "full", "nothing frozen", "FreezePlan.full()", "--freeze none"),
        (
            MAIN,
            "freeze-attention+embeddings",
            "attention+embeddings frozen",
            'FreezePlan.freeze("attention", "embeddings")',
            "--freeze attention+embeddings",
        ),
        (
            FreezePlan.only("attention"),
            "only-attention",
            "only attention trains",
            'FreezePlan.only("attention")',
            "--only attention",
        ),
        (
            FreezePlan.only("norms"),
            "only-norms",
            "only norms train",
            'FreezePlan.only("norms")',
            "--only norms",
        ),
        (
            FreezePlan.only("mlp-out"),
            "only-mlp-out",
            "only mlp-out trains",
            'FreezePlan.only("mlp-out")',
            "--only mlp-out",
        ),
        (
            FreezePlan.freeze("layers:0-5"),
            "freeze-layers0-5",
            "layers:0-5 frozen",
            'FreezePlan.freeze("layers:0-5")',
            "--freeze layers:0-5",
        ),
        (
            FreezePlan.only("name:**.wpe.*"),
            "only-name.wpe.-03f7b219",
            "only name:**.wpe.* trains",
            'FreezePlan.only("name:**.wpe.*")',
            "--only 'name:**.wpe.*'",
        ),
    ],
)
def test_a_plan_has_one_spelling_for_each_use(plan, slug, title, code, flag):
    assert (plan.slug, plan.title, plan.code, plan.flag) == (slug, title, code, flag)


def test_patterns_that_differ_only_in_stars_have_different_file_names():
    assert FreezePlan.only("name:**.wpe.*").slug != FreezePlan.only("name:**.wpe.**").slug


def test_the_label_says_both_directions():
    assert MAIN.label(BIG) == "freezes attention+embeddings | trains mlp+norm"
    assert FreezePlan.full().label(BIG) == "freezes nothing | trains attention+mlp+norm+embeddings"
    assert (
        FreezePlan.only("mlp-out").label(BIG)
        == "freezes attention+mlp (part)+norm+embeddings | trains mlp (part)"
    )
    assert FreezePlan.freeze("token_embedding").label(BIG).startswith("freezes token_embedding | trains ")


def test_the_order_of_words_makes_no_other_plan():
    plan = FreezePlan.freeze("embeddings", "attention", "attention")
    assert (
        plan
        == MAIN
        == FreezePlan.freeze("embeddings+attention")
        == FreezePlan.parse(freeze="embeddings+attention")
    )
    assert hash(plan) == hash(MAIN)
    assert (
        FreezePlan.only("norm") == FreezePlan.only("norms")
        and FreezePlan.only("norm@1").slug == "only-norms@1"
    )


def test_the_ledger_prints_counts_both_directions_and_the_tie():
    text = str(MAIN.ledger(BIG))
    assert "attention                60     28,320,768              0  frozen      22.6%" in text.splitlines()
    assert "freezes: attention+embeddings | trains: mlp+norm" in text
    assert "R = 56,707,584 / 125,198,592 = 0.4529" in text
    assert "lm_head.weight is transformer.wte.weight: one tensor, counted once, frozen as one" in text
    assert "trainable as one" in str(FreezePlan.only("head").ledger(BIG))


def test_the_ledger_as_a_table_and_as_html():
    ledger = COURSE_PLANS["first-half"].ledger(BIG)
    table = ledger.table()
    assert list(table.columns) == ["tensors", "parameters", "trainable", "state", "share"]
    assert table["trainable"].sum() == ledger.n_trainable
    assert table["state"].to_dict() == {
        "attention": "mixed",
        "mlp": "mixed",
        "norm": "mixed",
        "token_embedding": "frozen",
        "position_embedding": "frozen",
    }
    assert "28,320,768" in ledger._repr_html_() and "lm_head.weight" in ledger._repr_html_()


# --- the algebra of plans ----------------------------------------------------------

fitting = [w for w in WORDS if w not in ("router", "mlp-gate", "lora")]  # a plain GPT-Neo has none of them
ranges = st.tuples(st.integers(0, 11), st.integers(0, 11)).map(lambda p: f"{min(p)}-{max(p)}")
selectors = st.one_of(
    st.sampled_from(fitting),
    ranges.map("layers:{}".format),
    st.integers(0, 11).map("layers:{}".format),
    st.tuples(st.sampled_from(["attention", "mlp", "q", "mlp-out", "attention-out"]), ranges).map("@".join),
    st.sampled_from(DEEP.names()).map("name:{}".format),
)
some_selectors = st.lists(selectors, min_size=1, max_size=4)


def names_or_none(plan: FreezePlan) -> frozenset[str]:
    """What trains, where a plan that trains nothing gives the empty set."""
    try:
        return plan.trainable_names(DEEP)
    except PlanError as error:
        assert "trains nothing" in str(error)
        return frozenset()


@given(some_selectors)
def test_freeze_and_only_are_complements(words):
    frozen_rest, trained = (
        names_or_none(FreezePlan.freeze(*words)),
        FreezePlan.only(*words).trainable_names(DEEP),
    )
    assert not frozen_rest & trained
    assert frozen_rest | trained == set(DEEP.names())


@given(some_selectors, some_selectors)
def test_only_more_trains_the_union(first, second):
    both = FreezePlan.only(*first, *second).trainable_names(DEEP)
    assert both == FreezePlan.only(*first).trainable_names(DEEP) | FreezePlan.only(*second).trainable_names(
        DEEP
    )


@given(some_selectors, st.booleans())
def test_the_counts_of_a_ledger_add_up(words, is_freeze):
    plan = (FreezePlan.freeze if is_freeze else FreezePlan.only)(*words)
    if not names_or_none(plan):
        return
    ledger = plan.ledger(DEEP)
    assert 0 < ledger.R <= 1
    assert ledger.n_parameters == DEEP.n_parameters
    assert sum(r.n_tensors for r in ledger.rows) == len(DEEP.entries)
    assert math.isclose(sum(r.share for r in ledger.rows), 1)
    assert ledger.n_trainable == sum(DEEP.entry(n).n_parameters for n in plan.trainable_names(DEEP))
    assert all((r.state == "mixed") == (0 < r.n_trainable < r.n_parameters) for r in ledger.rows)
    assert {r.role for r in ledger.rows} <= set(ROLES)


@given(some_selectors, st.booleans())
def test_a_plan_survives_the_shell_and_python(words, is_freeze):
    plan = (FreezePlan.freeze if is_freeze else FreezePlan.only)(*words)
    option, value = shlex.split(plan.flag)
    assert FreezePlan.parse(**{option.removeprefix("--"): value}) == plan
    assert eval(plan.code, {"FreezePlan": FreezePlan}) == plan  # noqa: S307


@given(some_selectors, some_selectors, st.booleans(), st.booleans())
def test_different_plans_have_different_file_names(first, second, a, b):
    one, two = ((FreezePlan.freeze if x else FreezePlan.only)(*w) for x, w in ((a, first), (b, second)))
    assert (one.slug == two.slug) == (one == two)
    assert len(one.slug) <= 80 and not set(one.slug) & set('/\\:*?"<>| ')


@settings(max_examples=40)
@given(
    some_selectors,
    some_selectors,
    st.lists(st.booleans(), min_size=len(DEEP.entries), max_size=len(DEEP.entries)),
)
def test_apply_sets_what_is_named_and_undo_restores_what_was(first, second, flags):
    for p, flag in zip(TWELVE.parameters(), flags, strict=True):
        p.requires_grad_(flag)
    for words in (first, second):
        plan = FreezePlan.only(*words)
        ledger = plan.apply(TWELVE)
        assert {n for n, p in TWELVE.named_parameters() if p.requires_grad} == plan.trainable_names(DEEP)
        assert ledger.n_trainable == sum(p.numel() for p in TWELVE.parameters() if p.requires_grad)
    undo(TWELVE)
    assert [p.requires_grad for p in TWELVE.parameters()] == flags


def test_the_words_of_selectors_are_all_tried_above():
    assert set(fitting) | {"router", "mlp-gate", "lora"} == {*ROLES, *GROUPS, *PARTS}


# --- apply and undo ----------------------------------------------------------------


def build_tiny(seed: int = 0, **changes):
    """A GPT-Neo of two blocks that trains in milliseconds."""
    shape = tiny.SHAPE | {
        "hidden_size": 16,
        "num_heads": 2,
        "intermediate_size": 32,
        "vocab_size": 40,
        "max_position_embeddings": 16,
    }
    return build_model(mini_config(**{**shape, **changes}), seed)


def backward(model, seed: int = 0) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokens = torch.randint(
            0, model.config.vocab_size, (4, 16)
        )  # (batch, time); 16 positions are all used
    model(tokens, labels=tokens).loss.backward()


def train(model, optimizer, n_steps: int = 3) -> None:
    for step in range(n_steps):
        backward(model, step)
        optimizer.step()
        optimizer.zero_grad()


def adamw(model, everything: bool = False, **settings):
    """AdamW over what trains, or, as a mistake, over everything."""
    chosen = [p for p in model.parameters() if p.requires_grad or everything]
    return torch.optim.AdamW(chosen, **{"lr": 1e-2, "weight_decay": 0.1, **settings})


def test_explain_leaves_the_model_alone():
    model = build_tiny()
    assert str(MAIN.explain(model)) == str(MAIN.ledger(anatomy(model)))
    assert all(p.requires_grad for p in model.parameters())
    assert set(vars(model)) == set(vars(build_tiny()))


def test_apply_drops_the_gradients_of_the_frozen_and_keeps_the_others():
    model = build_tiny()
    backward(model)
    MAIN.apply(model)
    assert all((p.grad is None) == (not p.requires_grad) for p in model.parameters())


def test_undo_without_a_plan_changes_nothing():
    model = build_tiny()
    model.transformer.wte.weight.requires_grad_(False)
    undo(model)
    assert not model.transformer.wte.weight.requires_grad


def test_a_copy_of_a_frozen_model_can_be_undone():
    model = build_tiny()
    MAIN.apply(model)
    twin = copy.deepcopy(model)
    undo(twin)
    assert all(p.requires_grad for p in twin.parameters())
    assert not model.transformer.wte.weight.requires_grad


def test_a_plan_is_not_saved_with_the_weights(tmp_path):
    model = build_tiny()
    keys = set(model.state_dict())
    MAIN.apply(model)
    assert set(model.state_dict()) == keys
    model.save_pretrained(tmp_path)


def test_a_tied_head_reaches_the_optimizer_once():
    model = build_tiny()
    FreezePlan.only("head").apply(model)
    assert [p.shape for p in model.parameters() if p.requires_grad] == [(40, 16)]
    assert model.lm_head.weight is model.transformer.wte.weight


def test_setting_the_attribute_of_a_module_freezes_nothing_and_apply_does():
    model = build_tiny()
    model.transformer.requires_grad = False
    assert all(p.requires_grad for p in model.parameters())
    assert MAIN.apply(model).n_trainable == sum(p.numel() for p in model.parameters() if p.requires_grad)


# --- the proof: what holds ---------------------------------------------------------


@pytest.mark.parametrize("name", COURSE_PLANS)
def test_every_course_plan_is_proved_on_real_training(name):
    model = build_tiny()
    ledger = COURSE_PLANS[name].apply(model)
    optimizer = adamw(model)
    before = snapshot(model, optimizer)
    start = {n: p.detach().clone() for n, p in model.named_parameters()}
    train(model, optimizer)
    proof = freezing_proof(before, model, optimizer, COURSE_PLANS[name])
    proof.check()
    assert proof.ok and not proof.problems
    changed = [n for n, p in model.named_parameters() if not torch.equal(p, start[n])]
    assert proof.n_moved == len(changed) == proof.n_trainable_tensors
    assert proof.n_frozen_parameters == ledger.n_parameters - ledger.n_trainable
    assert proof.n_frozen_tensors + proof.n_trainable_tensors == len(start)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "gpt_neox", "qwen2"])
def test_the_main_plan_is_proved_in_every_family(name, tied):
    model = build_model(AutoConfig.for_model(name, **FAMILIES[name], tie_word_embeddings=tied))
    MAIN.apply(model)
    optimizer = adamw(model)
    before = snapshot(model, optimizer)
    train(model, optimizer)
    freezing_proof(before, model, optimizer, MAIN).check()
    assert model.get_output_embeddings().weight.requires_grad == (not tied)


def test_the_proof_accepts_several_optimizers():
    model = build_tiny()
    MAIN.apply(model)
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizers = [
        torch.optim.Muon([p for p in trainable if p.ndim == 2], lr=1e-2),
        torch.optim.AdamW([p for p in trainable if p.ndim == 1], lr=1e-2),
    ]
    before = snapshot(model, optimizers)
    backward(model)
    for optimizer in optimizers:
        optimizer.step()
    freezing_proof(before, model, optimizers).check()
    stale = [optimizers[0], torch.optim.AdamW([model.transformer.wpe.weight])]
    assert named(broken(before, model, stale), "frozen but the optimizer holds") == {"transformer.wpe.weight"}


def test_the_proof_accepts_what_accelerate_wraps():
    model = build_tiny()
    MAIN.apply(model)
    wrapped, optimizer = Accelerator(cpu=True).prepare(model, adamw(model))
    before = snapshot(model, optimizer)
    train(wrapped, optimizer)
    freezing_proof(before, model, optimizer).check()


def test_a_tensor_without_gradient_or_rate_need_not_move_and_is_noted():
    model = build_tiny()
    FreezePlan.only("norms").apply(model)
    slow, *fast = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        [{"params": [slow], "lr": 0.0}, {"params": fast}], lr=1e-2, weight_decay=0.0
    )
    before = snapshot(model, optimizer)
    train(model, optimizer)
    proof = freezing_proof(before, model, optimizer)
    assert proof.ok and proof.n_moved == proof.n_trainable_tensors - 1
    assert proof.notes == (
        "transformer.h.0.ln_1.weight is trainable but did not move: its learning rate is 0",
    )
    assert proof.notes[0] in str(proof)


def test_a_position_that_no_text_reaches_is_noted_not_blamed():
    model = build_tiny()
    FreezePlan.only("embeddings").apply(model)
    optimizer = adamw(model, weight_decay=0.0)
    before = snapshot(model, optimizer)
    model.transformer.wte.weight.grad = torch.ones_like(model.transformer.wte.weight)
    optimizer.step()
    proof = freezing_proof(before, model, optimizer)
    assert proof.ok and "transformer.wpe.weight is trainable but did not move: no nonzero" in proof.notes[0]


def test_a_rate_that_fell_to_zero_at_the_end_was_a_rate():
    model = build_tiny()
    FreezePlan.only("norms").apply(model)
    optimizer = adamw(model)
    before = snapshot(model, optimizer)
    train(model, optimizer)
    with torch.no_grad():
        model.transformer.ln_f.bias.zero_()  # back to where it began
    optimizer.param_groups[0]["lr"] = 0.0
    with pytest.raises(FreezingError, match=r"transformer\.ln_f\.bias is trainable but did not move: it had"):
        freezing_proof(before, model, optimizer).check()


def test_nothing_frozen_is_said_with_a_zero():
    model = build_tiny()
    before = snapshot(model)
    text = str(freezing_proof(before, model))
    assert text.startswith("0 frozen tensors (0 parameters)") and "0 of 30 trainable" in text


# --- the proof: what is broken -----------------------------------------------------


def broken(before, model, optimizer=None, plan=None) -> tuple[str, ...]:
    """The problems of a proof that must fail; its error names the first tensors too."""
    proof = freezing_proof(before, model, optimizer, plan)
    assert not proof.ok
    with pytest.raises(FreezingError) as caught:
        proof.check()
    assert proof.problems[0] in str(caught.value)
    return proof.problems


def named(problems, text: str) -> set[str]:
    """First words of the problems that hold a text."""
    return {p.split(" ")[0] for p in problems if text in p}


def frozen_names(model) -> set[str]:
    return {n for n, p in model.named_parameters() if not p.requires_grad}


def test_weight_decay_with_zero_gradients_is_caught_and_named():
    model = build_tiny()
    FreezePlan.freeze("name:" + Q).apply(model)
    optimizer = adamw(model, everything=True)
    before = snapshot(model, optimizer)
    backward(model)
    model.get_parameter(Q).grad = torch.zeros(16, 16)
    optimizer.step()
    problems = broken(before, model, optimizer)
    assert named(problems, "") == {Q}
    assert (
        f"{Q} is frozen but moved: the optimizer holds it, with weight decay 0.1 and no momentum" in problems
    )
    assert named(problems, "gradient (all zeros, and zero is not absent)") == {Q}


def test_momentum_after_a_real_gradient_is_caught_and_named():
    model = build_tiny()
    optimizer = adamw(model, weight_decay=0.0)
    train(model, optimizer)
    MAIN.apply(model)
    before = snapshot(model, optimizer)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for p in model.parameters():
        p.grad = None
    moved = named(
        broken(before, model, optimizer), "moved: the optimizer holds it, with weight decay 0.0 and momentum"
    )
    assert moved == frozen_names(model) and Q in moved


def test_sgd_momentum_is_caught_as_well():
    model = build_tiny()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    backward(model)
    optimizer.step()
    FreezePlan.freeze("mlp").apply(model)
    before = snapshot(model, optimizer)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    assert frozen_names(model) == named(broken(before, model, optimizer), "momentum from earlier gradients")


def test_an_optimizer_built_before_freezing_is_caught_though_nothing_moved():
    model = build_tiny()
    optimizer = adamw(model)
    MAIN.apply(model)
    before = snapshot(model, optimizer)
    train(model, optimizer)
    problems = broken(before, model, optimizer)
    assert len(problems) == len(frozen_names(model))
    assert named(
        problems, "the optimizer holds it, without state so far: build the optimizer after freezing"
    ) == frozen_names(model)


def test_an_optimizer_that_kept_old_moments_is_caught():
    model = build_tiny()
    optimizer = adamw(model)
    train(model, optimizer)
    MAIN.apply(model)
    before = snapshot(model, optimizer)
    train(model, optimizer)
    assert named(broken(before, model, optimizer), "with state (step, exp_avg, exp_avg_sq)") == frozen_names(
        model
    )


def test_a_frozen_tensor_edited_by_hand_is_caught_to_the_last_bit():
    model = build_tiny()
    MAIN.apply(model)
    optimizer = adamw(model)
    before = snapshot(model, optimizer)
    train(model, optimizer)
    weight = model.get_parameter(Q).data
    weight[3, 4] = torch.nextafter(weight[3, 4], torch.tensor(9.0))
    assert broken(before, model, optimizer) == (
        f"{Q} is frozen but moved: no optimizer holds it, so other code changed it",
    )


def test_minus_zero_is_not_zero_and_another_type_is_not_the_same():
    model = build_tiny()
    FreezePlan.freeze("biases").apply(model)
    before = snapshot(model)
    model.transformer.ln_f.bias.data.neg_()  # all zeros: equal in value, not in bits
    assert named(broken(before, model), "moved") == {"transformer.ln_f.bias"}
    model.transformer.ln_f.bias.data.neg_()
    assert freezing_proof(before, model).ok
    model.transformer.ln_f.bias.data = model.transformer.ln_f.bias.data.view(4, 4)
    assert named(broken(before, model), "moved") == {"transformer.ln_f.bias"}


def test_a_leftover_gradient_is_caught():
    model = build_tiny()
    backward(model)
    for p in model.transformer.wpe.parameters():
        p.requires_grad_(False)  # by hand, so nothing clears the gradient
    before = snapshot(model)
    assert broken(before, model) == (
        "transformer.wpe.weight is frozen but has a gradient (nonzero): set its .grad to None",
    )


def test_a_buffer_that_moved_is_caught():
    model = build_tiny()
    MAIN.apply(model)
    before = snapshot(model)
    assert "transformer.h.1.attn.attention.bias" in dict(model.named_buffers())
    model.transformer.h[1].attn.attention.bias.logical_not_()
    assert named(broken(before, model), "is a buffer but moved") == {"transformer.h.1.attn.attention.bias"}


def test_a_trainable_tensor_outside_the_optimizer_is_caught():
    model = build_tiny()
    MAIN.apply(model)
    optimizer = adamw(model)
    FreezePlan.freeze("embeddings").apply(model)  # unfreezes attention; the optimizer does not know it
    before = snapshot(model, optimizer)
    train(model, optimizer)
    late = named(broken(before, model, optimizer), "did not move: no optimizer holds it")
    assert late == {e.name for e in anatomy(model).entries if e.role == "attention"}


def test_steps_too_small_for_the_precision_are_caught():
    model = build_tiny().bfloat16()
    FreezePlan.only("norms").apply(model)
    optimizer = adamw(model, lr=1e-5, weight_decay=0.0)
    before = snapshot(model, optimizer)
    train(model, optimizer, n_steps=1)
    assert named(broken(before, model, optimizer), "too small for torch.bfloat16") >= {
        "transformer.ln_f.weight"
    }


def test_unfreezing_after_the_snapshot_is_caught():
    model = build_tiny()
    MAIN.apply(model)
    before = snapshot(model)
    undo(model)
    late = named(broken(before, model), "was frozen at the snapshot and is trainable now")
    assert late == set(dict(model.named_parameters())) - MAIN.trainable_names(anatomy(model))


def test_a_head_that_lost_its_tie_is_caught():
    model = build_tiny()
    MAIN.apply(model)
    before = snapshot(model)
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    assert named(broken(before, model), "new since the snapshot: was a tie made or broken?") == {
        "lm_head.weight"
    }


def test_tied_tensors_and_equal_tensors_are_told_apart():
    model = build_tiny(tie_word_embeddings=False)
    model.lm_head.weight.data.copy_(model.transformer.wte.weight)
    FreezePlan.freeze("embeddings", "head").apply(model)
    before = snapshot(model)
    assert freezing_proof(before, model).n_frozen_tensors == 3
    model.lm_head.weight.data[0] += 1
    assert named(broken(before, model), "moved") == {"lm_head.weight"}


def test_a_long_list_of_problems_is_cut_for_reading_and_kept_whole():
    model = build_tiny()
    optimizer = adamw(model)
    FreezePlan.only("mlp-out").apply(model)
    proof = freezing_proof(snapshot(model), model, optimizer)
    assert len(proof.problems) == 30 - 4 and "… and 16 more" in str(proof)


# --- broken freezes from lessons: the plan tells what was meant ---------------------


def test_an_attribute_set_on_a_module_is_caught_even_without_a_plan():
    model = build_tiny()
    for block in model.transformer.h:
        block.attn.requires_grad = False
    optimizer = adamw(model)
    before = snapshot(model, optimizer)
    train(model, optimizer)
    problems = broken(before, model, optimizer)
    assert problems[0] == (
        "transformer.h.0.attn.requires_grad = False set a module's plain attribute and froze "
        "nothing: call requires_grad_(False)"
    )
    assert len(problems) == 2
    against = broken(before, model, optimizer, FreezePlan.freeze("attention"))
    assert f'{Q} is trainable, against the plan FreezePlan.freeze("attention")' in against


def test_a_name_rule_that_freezes_more_than_its_title_is_caught():
    model = build_tiny()
    for name, p in model.named_parameters():
        p.requires_grad_(".h." not in name)  # called "attention frozen"
    before = snapshot(model)
    assert freezing_proof(before, model).ok  # it froze what it froze; only the plan knows what was meant
    wrong = named(broken(before, model, plan=FreezePlan.freeze("attention")), "is frozen, against the plan")
    assert "transformer.h.0.mlp.c_fc.weight" in wrong and Q not in wrong


def test_an_inner_condition_that_leaves_projections_trainable_is_caught():
    model = build_tiny()
    for name, p in model.named_parameters():
        if "attn" in name:
            if name.endswith("bias"):
                p.requires_grad_(False)
    wrong = named(
        broken(snapshot(model), model, plan=FreezePlan.freeze("attention")), "is trainable, against"
    )
    assert wrong == {n for n in dict(model.named_parameters()) if "attn" in n and n.endswith("weight")}


def test_the_articles_rule_is_caught_with_both_embeddings_named():
    model = build_tiny()
    for name, p in model.named_parameters():
        p.requires_grad_(not ("attn" in name or "embed" in name))
    wrong = broken(snapshot(model), model, plan=MAIN)
    assert named(wrong, "is trainable, against") == {"transformer.wte.weight", "transformer.wpe.weight"}


def test_the_snapshot_holds_no_reference_to_the_weights():
    model = build_tiny()
    MAIN.apply(model)
    before = snapshot(model)
    kept = model.get_parameter(Q).data  # a lesson's check: compares a tensor with itself
    model.get_parameter(Q).data += 1
    assert bytes(tensor_bytes(kept)) == bytes(tensor_bytes(model.get_parameter(Q)))
    assert named(broken(before, model), "moved") == {Q}
