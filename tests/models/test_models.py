"""The fast attention computes what eager computes; loading says clearly what is wrong."""

import inspect
import json

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.gpt_neo.modeling_gpt_neo import GPTNeoSelfAttention

from helpers.freezing import lora
from helpers.measuring.evaluation import sample_windows
from helpers.models.loading import (
    build_model,
    choose_precision,
    gpt_neo_125m_config,
    load_config,
    load_model,
    load_tokenizer,
    mini_config,
    weight_hash,
)
from helpers.models.losses import next_token_loss
from helpers.models.model_files import ModelError, n_positions
from support import tiny

CONFIG = tiny.config(hidden_size=48, intermediate_size=96, max_position_embeddings=40)


def pair(dtype=torch.float32):
    return [build_model(CONFIG, seed=3, attention=a).to(dtype).eval() for a in ("fast", "eager")]


@pytest.mark.parametrize("length", [1, 7, 8, 9, 40])
def test_fast_attention_equals_eager_under_and_over_the_local_window(length):
    ids = torch.randint(97, (3, length), generator=torch.Generator().manual_seed(0))
    fast, eager = pair()
    assert torch.allclose(fast(ids).logits, eager(ids).logits, atol=1e-5)


def double_attention(self, query, key, value, attention_mask=None):
    """Eager attention as upstream writes it, without its step down to float32."""
    scores = query @ key.transpose(-1, -2)  # (batch, heads, queries, keys)
    allowed = self.bias[:, :, scores.size(-1) - scores.size(-2) : scores.size(-1), : scores.size(-1)]
    weights = scores.masked_fill(~allowed, float("-inf")).softmax(-1)
    return weights @ value, weights


def test_gradients_equal_eagers_in_double_precision(monkeypatch):
    monkeypatch.setattr(GPTNeoSelfAttention, "_attn", double_attention)
    ids = torch.randint(97, (3, 30), generator=torch.Generator().manual_seed(1))
    fast, eager = pair(torch.float64)
    for model in (fast, eager):
        model(ids, labels=ids).loss.backward()
    for (name, a), (_, b) in zip(fast.named_parameters(), eager.named_parameters(), strict=True):
        assert (a.grad - b.grad).norm() <= 1e-10 * b.grad.norm().clamp(min=1e-30), name


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side_changes_no_real_token(side):
    ids = torch.randint(97, (2, 20), generator=torch.Generator().manual_seed(2))
    mask = torch.ones_like(ids)
    real = slice(6, None) if side == "left" else slice(0, 14)
    mask[0, : 6 if side == "left" else 0] = 0
    if side == "right":
        mask[0, 14:] = 0
    fast, eager = pair()
    a, b = (m(ids, attention_mask=mask).logits for m in (fast, eager))
    assert torch.allclose(a[0, real], b[0, real], atol=1e-5) and torch.allclose(a[1], b[1], atol=1e-5)
    assert torch.isfinite(a).all()


def test_cached_decoding_equals_decoding_without_a_cache():
    fast, _ = pair()
    ids = torch.randint(97, (2, 5), generator=torch.Generator().manual_seed(4))
    with_cache, without = (
        fast.generate(ids, max_new_tokens=20, do_sample=False, use_cache=c, eos_token_id=-1, pad_token_id=0)
        for c in (True, False)
    )
    assert torch.equal(with_cache, without)


def test_the_upstream_method_that_we_replace_still_has_its_signature():
    assert list(inspect.signature(GPTNeoSelfAttention._attn).parameters) == [
        "self",
        "query",
        "key",
        "value",
        "attention_mask",
    ]


def test_the_same_seed_builds_the_same_weights_and_leaves_the_random_state_alone():
    state = torch.get_rng_state()
    one, two, other = (weight_hash(build_model(CONFIG, seed=s)) for s in (1, 1, 2))
    assert one == two != other
    assert torch.equal(state, torch.get_rng_state())


def test_the_weight_hash_sees_one_changed_bit():
    model = build_model(CONFIG)
    before = weight_hash(model)
    with torch.no_grad():
        model.transformer.h[0].mlp.c_fc.bias[0] += 1e-7
    assert weight_hash(model) != before


def test_a_saved_model_loads_back_with_the_same_weights_and_loss(tmp_path):
    model = build_model(CONFIG, seed=5)
    model.save_pretrained(tmp_path)
    again = load_model(tmp_path, device="cpu")
    ids = torch.randint(97, (2, 20))
    assert weight_hash(again) == weight_hash(model)
    assert next_token_loss(again, ids)[0] == next_token_loss(model, ids)[0]


@pytest.mark.parametrize("device", ["zzz", "cuda:99", 1.5])
def test_a_device_that_is_none_or_not_there_is_said_before_anything_is_loaded(device):
    with pytest.raises(ModelError, match="^The device .* cannot be used .* Choose 'cpu'"):
        load_model("nowhere", device=device)


@pytest.mark.parametrize("load", [load_model, load_tokenizer, load_config])
@pytest.mark.parametrize("place", [None, 5, b"x", ["x"]])
def test_what_is_no_place_of_a_model_is_said(load, place):
    with pytest.raises(TypeError, match="^The place of a .* is a path"):
        load(place)


def test_gpt_neos_own_gelu_is_replaced_by_its_fused_form(tmp_path):
    config = mini_config(**{**CONFIG.to_diff_dict(), "activation_function": "gelu_new"})
    build_model(config).save_pretrained(tmp_path)
    assert load_model(tmp_path, device="cpu").config.activation_function == "gelu_pytorch_tanh"


def test_another_family_gets_its_own_sdpa(tmp_path):
    config = LlamaConfig(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    build_model(config).save_pretrained(tmp_path)
    assert load_model(tmp_path, device="cpu").config._attn_implementation == "sdpa"


@pytest.mark.parametrize(
    "prepare, words",
    [
        (lambda p: None, ["is not a model folder", "config.json", "nothing"]),
        (
            lambda p: (p / "config.json").write_text(json.dumps({"model_type": "gpt_neo"})),
            ["no weights", "safetensors"],
        ),
        (lambda p: (p / "config.json").write_text(json.dumps({"model_type": "teapot"})), ["teapot"]),
        (lambda p: (p / "config.json").write_text("{not json"), ["cannot be loaded"]),
    ],
)
def test_a_folder_that_holds_no_model_is_named_with_what_is_missing(tmp_path, prepare, words):
    prepare(tmp_path)
    with pytest.raises(ModelError) as caught:
        load_model(tmp_path)
    assert str(tmp_path) in str(caught.value) and all(w in str(caught.value) for w in words), caught.value


def test_a_damaged_weight_file_is_named(tmp_path):
    build_model(CONFIG).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\x10\x00\x00")
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_model(tmp_path)


def test_a_hub_that_cannot_be_reached_offers_the_tiny_profile(monkeypatch):
    monkeypatch.setattr(
        "helpers.models.loading.AutoConfig.from_pretrained",
        lambda *a, **k: (_ for _ in ()).throw(OSError("We couldn't connect to the hub")),
    )
    with pytest.raises(ModelError, match="COURSE_PROFILE=tiny"):
        load_model("some-org/some-model")


def test_a_missing_folder_and_a_missing_tokenizer_are_said(tmp_path):
    with pytest.raises(ModelError, match="no such folder"):
        load_model(tmp_path / "nowhere")
    with pytest.raises(ModelError, match="tokenizer|model folder"):
        load_tokenizer(tmp_path)


def test_precision_is_float32_on_a_cpu_and_an_unknown_one_is_refused():
    assert choose_precision("auto", torch.device("cpu")) == "float32"
    with pytest.raises(ModelError, match="float16"):
        choose_precision("float16", torch.device("cpu"))


def test_positions_of_the_125m():
    assert n_positions(gpt_neo_125m_config()) == 2048


@pytest.mark.parametrize("seed", [-1, 2**32, 2**64, 1.5, "0", True, None])
def test_a_seed_that_is_none_is_refused_before_anything_is_built(seed):
    config = mini_config()
    before = torch.get_rng_state()
    with pytest.raises(ModelError, match="seed must be a whole number from 0 to 4294967295"):
        build_model(config, seed=seed)
    model = build_model(config)
    as_it_was = weight_hash(model)
    for work in (
        lambda: lora.insert(model, "attention", rank=2, alpha=4, seed=seed),
        lambda: sample_windows(model, 1, 4, seed),
    ):
        with pytest.raises(ModelError, match="seed must be a whole number"):
            work()
    assert torch.equal(before, torch.get_rng_state()) and weight_hash(model) == as_it_was
