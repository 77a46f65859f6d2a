"""Right or refused, in every family that can be built small: docs/families.md says what each one does."""

import copy
import warnings

import pytest
import torch
from transformers import AutoConfig

from helpers.freezing.plans import FreezePlan
from helpers.freezing.proof import freezing_proof, snapshot
from helpers.measuring import sample_windows
from helpers.models.loading import _has_sdpa as has_sdpa
from helpers.models.loading import attention_for, build_model, build_on_meta, load_model
from helpers.models.model_files import ModelError, n_positions
from helpers.models.roles import anatomy
from publishing import families

ROWS = families.DOCUMENT.read_text(encoding="utf-8").splitlines()
OURS = ("loss", "KL", "main plan", "step", "delta", "LoRA")  # right or refused in every family
FAULTS = {"wrong", "failed", "proof fails", "refused in several lines"}
RARE = [name for name in sorted(families.FAMILIES) if name not in families.ALWAYS]


def check(name):
    found = families.row(name)
    assert not {found[column] for column in OURS} & FAULTS, found
    assert families.line(found) in ROWS, "docs/families.md is out of date: course families"


@pytest.mark.parametrize("name", families.ALWAYS)
def test_a_common_family_is_right_or_refused(name):
    check(name)


@pytest.mark.long
@pytest.mark.parametrize("name", RARE)
def test_a_rare_family_is_right_or_refused(name):
    """The complete matrix: about a second a family."""
    check(name)


def test_the_document_holds_these_families_and_no_other():
    rows = [line.split(" | ") for line in ROWS if line.startswith("| ")]
    listed = [cells[0].removeprefix("| ") for cells in rows if len(cells) == len(families.COLUMNS)]
    assert listed == [families.COLUMNS[0], "---", *sorted(families.FAMILIES)]
    assert len(families.FAMILIES) > 60
    assert "\n".join(ROWS).startswith(families.HEADING.rstrip())


def test_most_families_have_their_loss_computed_in_chunks():
    """A forward of transformers that changed its ways would silently cost the memory of all logits."""
    assert sum(" | in chunks | " in row for row in ROWS) > 60


def eager_error(name) -> float | None:
    """How far the family's eager logits lie from its fast ones, as a share of the largest; None: it has one kind."""
    fast = families.build(name)
    if families.kind_of_attention(fast) == "eager":
        return None
    with torch.no_grad():
        for parameter in fast.parameters():
            parameter.mul_(3 if parameter.dim() > 1 else 1)  # or all attention is nearly even
    eager = build_model(families.config_of(name), attention="eager").eval()
    eager.load_state_dict(fast.state_dict())
    with torch.no_grad():
        wanted, found = (model(input_ids=families.texts(2)).logits for model in (fast, eager))
    return ((found - wanted).abs().max() / wanted.abs().max()).item()


@pytest.mark.parametrize("name", families.ALWAYS)
def test_eager_attention_is_the_fast_one(name):
    error = eager_error(name)
    assert error is None or error < 1e-4


@pytest.mark.long
@pytest.mark.parametrize("name", sorted(set(RARE) - {"falcon, alibi"}))
def test_eager_attention_is_the_fast_one_in_a_rare_family(name):
    error = eager_error(name)
    assert error is None or error < 1e-4


def test_falcons_eager_attention_with_alibi_is_another_and_is_refused(tmp_path):
    """Where this fails, transformers has mended it: take the refusal out of `load_model`, and the words out of the page."""
    assert eager_error("falcon, alibi") > 2e-4
    families.build("falcon, alibi").save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="Load it with attention='fast'"):
        load_model(tmp_path, attention="eager")


SAMPLED = (
    "llama", "gpt_neo", "gpt2", "bloom", "gemma2", "mixtral", "mamba", "mamba2", "falcon_mamba", "rwkv",
    "recurrent_gemma", "jamba", "lfm2", "minimax", "qwen3_next", "nemotron_h",
)  # fmt: skip


@pytest.mark.parametrize("name", SAMPLED)
def test_a_sample_is_what_the_models_own_forward_gives(name):
    """Whatever state a family keeps between two tokens, the sample is that of whole texts read anew."""
    model, dice = families.build(name), torch.Generator().manual_seed(5)
    ids = families.texts(1)[:, :4].repeat(2, 1)
    again = copy.deepcopy(model)
    found = sample_windows(model, 2, 12, seed=5, start=ids[0])
    with torch.no_grad():
        while ids.size(1) < 12:
            probs = again(input_ids=ids, use_cache=False).logits[:, -1].softmax(-1)
            ids = torch.cat([ids, torch.multinomial(probs, 1, generator=dice)], dim=1)
    assert torch.equal(found, ids)


def test_a_wrong_loss_is_seen(monkeypatch):
    """The guard taken away, a family that scales its logits has another loss: the row says so."""
    monkeypatch.setattr("helpers.models.losses.plain_trunk", lambda model: model.base_model)
    assert families.cell(families.loss, families.build("cohere, scaled")) == "wrong"
    assert families.cell(families.loss, families.build("llama")) == "in chunks"


# --- families that the course does not teach ----------------------------------------

IDS = {"vocab_size": 97, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
PLAIN = IDS | {"hidden_size": 32, "num_hidden_layers": 2}
SMALL = PLAIN | {
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
}
OLD = IDS | {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
FAMILIES = {  # what each is given, and its positions
    "gemma2": (SMALL, 64),
    "vaultgemma": (SMALL, 64),
    "bloom": (IDS | {"hidden_size": 32, "n_layer": 2, "n_head": 4}, None),
    "mpt": (IDS | {"d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 48}, 48),
    "gptj": (OLD | {"rotary_dim": 4}, 64),
    "codegen": (OLD | {"rotary_dim": 4}, 64),
    "openai-gpt": (OLD, 64),
    "xglm": (
        IDS
        | {
            "d_model": 32,
            "ffn_dim": 64,
            "num_layers": 2,
            "attention_heads": 4,
            "max_position_embeddings": 64,
        },
        64,
    ),
    "gpt_oss": (SMALL | {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 16}, 64),
    "mamba": (PLAIN, None),
    "falcon_mamba": (PLAIN, None),
    "mamba2": (
        PLAIN | {"num_heads": 8, "head_dim": 8, "n_groups": 1, "state_size": 8, "chunk_size": 16},
        None,
    ),
    "gpt_bigcode": (OLD, 64),
    "phi": (SMALL, 64),
    "starcoder2": (SMALL, 64),
    "qwen3_moe": (SMALL | {"num_experts": 4, "moe_intermediate_size": 16, "num_experts_per_tok": 2}, 64),
    "jamba": (
        SMALL
        | {
            "num_hidden_layers": 4,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "num_experts": 4,
            "expert_layer_period": 2,
            "mamba_d_state": 4,
            "mamba_dt_rank": 4,
        },
        64,
    ),
    "lfm2": (SMALL, 64),
}
EAGER = {
    "gemma2",
    "vaultgemma",
    "bloom",
    "mpt",
    "gptj",
    "codegen",
    "openai-gpt",
    "xglm",
    "gpt_oss",
    "mamba",
    "mamba2",
    "falcon_mamba",
}
# Read by shape alone, as transformers builds them by default, with few layers.
BY_NAME = (
    "afmoe apertus bailing_hybrid bamba beam deepseek_v32 diffllama doge ernie4_5_moe falcon_h1 glm_moe_dsa "
    "granitemoehybrid kimi_linear laguna longcat_flash minimax moshi nemotron_h olmo_hybrid qwen3_next "
    "recurrent_gemma rwkv xlstm zamba2"
).split()


def config_of(name):
    return AutoConfig.for_model(name, **FAMILIES[name][0])


@pytest.mark.filterwarnings("ignore:transformers has no fast attention")
@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_is_built_frozen_trained_proved_saved_and_loaded(name, tmp_path):
    config = config_of(name)
    model = build_model(config).train()
    assert n_positions(config) == FAMILIES[name][1]
    plan = FreezePlan.freeze("attention", "embeddings")
    plan.apply(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    before = snapshot(model, optimizer)
    ids = torch.randint(3, 97, (2, 16), generator=torch.Generator().manual_seed(0))
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    proof = freezing_proof(before, model, optimizer, plan)
    assert proof.ok and proof.n_moved > 0, proof
    model.save_pretrained(tmp_path)
    again = load_model(tmp_path, device="cpu")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_without_fast_attention_gets_the_eager_kind_and_says_so_once(name):
    has_sdpa.cache_clear()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        kinds = {attention_for(name) for _ in range(3)}
    assert kinds == ({"eager"} if name in EAGER else {"sdpa"})
    assert len(said) == (name in EAGER) and all(f"'{name}'" in str(w.message) for w in said)


@pytest.mark.filterwarnings("ignore:transformers has no fast attention")
@pytest.mark.parametrize("name", FAMILIES)
def test_biases_are_all_that_are_named_so_experts_included(name):
    model = build_on_meta(config_of(name))
    wanted = {n for n, _ in model.named_parameters() if n.endswith(("bias", "_bias"))}
    if wanted:
        assert FreezePlan.only("biases").trainable_names(anatomy(model)) == wanted
    if name == "gpt_oss":
        assert "model.layers.1.mlp.experts.gate_up_proj_bias" in wanted


@pytest.mark.parametrize("name", BY_NAME)
def test_every_tensor_of_a_familys_usual_config_has_a_role(name):
    config = AutoConfig.for_model(name)
    for field in ("num_hidden_layers", "num_layers", "n_layer"):
        if isinstance(getattr(config, field, None), int):
            setattr(config, field, min(6, getattr(config, field)))
    parts = anatomy(build_on_meta(config))
    assert {"attention", "mlp", "norm", "token_embedding"} <= set(parts.counts())
    assert all(e.layer is not None for e in parts.entries if e.role in ("attention", "mlp"))


@pytest.mark.parametrize(
    "name, switch",
    [
        ("stablelm", "qk_layernorm"),  # q_layernorm.norms.0.weight: a norm for each head
        ("persimmon", "qk_layernorm"),
        ("phi", "qk_layernorm"),
        ("cohere", "use_qk_norm"),
        ("glm4_moe", "use_qk_norm"),
    ],
)
def test_norms_of_queries_and_keys_are_norms_of_their_block(name, switch):
    config = families.config_of(name)
    setattr(config, switch, False)
    without = set(anatomy(build_on_meta(config)).names())
    setattr(config, switch, True)
    parts = anatomy(build_on_meta(config))
    added = [entry for entry in parts.entries if entry.name not in without]
    assert {(entry.role, entry.part) for entry in added} == {("norm", "norm")}
    assert {entry.layer for entry in added} == set(range(config.num_hidden_layers))
    trainable = FreezePlan.only("norms").trainable_names(parts)
    assert {entry.name for entry in added} <= trainable


def test_a_state_space_mixer_stands_in_attentions_place_and_its_router_is_one():
    mamba = anatomy(build_on_meta(config_of("mamba")))
    assert {
        mamba.entry(f"backbone.layers.1.mixer.{n}").role for n in ("A_log", "conv1d.bias", "in_proj.weight")
    } == {"attention"}
    mixed = anatomy(build_on_meta(AutoConfig.for_model("nemotron_h")))
    roles = {e.name.split("mixer.")[1]: e.role for e in mixed.entries if "mixer." in e.name}
    assert roles["experts.up_proj"] == roles["gate.weight"] == "mlp"
    assert roles["in_proj.weight"] == roles["q_proj.weight"] == "attention" and roles["norm.weight"] == "norm"
