"""LoRA by hand: borders, defaults and messages that the other tests let pass when the code was broken."""

import json
import math
import re

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from helpers.files import record_hash
from helpers.freezing import lora
from helpers.freezing.lora import LoraError, LoRALinear, insert, layers_of, load_adapter, merge, save_adapter
from helpers.models.loading import build_model, mini_config

CONFIG = mini_config(
    vocab_size=97,
    hidden_size=32,
    num_layers=2,
    num_heads=4,
    intermediate_size=64,
    max_position_embeddings=24,
    window_size=8,
    attention_types=[[["global", "local"], 1]],
)
Q = "transformer.h.0.attn.attention.q_proj"


def with_lora(where="attention", rank=3, alpha=6.0, **more):
    model = build_model(CONFIG, seed=1)
    insert(model, where, rank, alpha, **more)
    return model


def factors(model):
    return {name: (layer.lora_A, layer.lora_B) for name, layer in layers_of(model).items()}


def header(folder):
    with safe_open(folder / "adapter.safetensors", framework="pt") as file:
        return json.loads(file.metadata()["adapter"])


def test_without_a_seed_the_random_a_is_that_of_seed_0():
    plain, zero = factors(with_lora()), factors(with_lora(seed=0))
    assert all(torch.equal(plain[name][0], zero[name][0]) for name in zero)


def test_a_starts_within_one_over_the_root_of_the_inputs_as_a_linear_layer_does():
    layer = LoRALinear(torch.nn.Linear(64, 64), 32, 1.0)
    assert 0.98 / math.sqrt(64) < layer.lora_A.abs().max() <= 1 / math.sqrt(64)
    assert not layer.lora_B.any() and layer.kept is None


@pytest.mark.parametrize("rank", [1, 32])
def test_the_smallest_and_the_largest_rank_fit(rank):
    assert {layer.rank for layer in layers_of(with_lora("q", rank, 1)).values()} == {rank}


@pytest.mark.parametrize("alpha", [math.inf, -1.0, None])
def test_an_alpha_that_is_no_finite_number_above_0_is_refused(alpha):
    with pytest.raises(LoraError, match=f"alpha must be above 0; found {alpha}"):
        with_lora("q", 2, alpha)


def test_the_message_about_a_rank_names_the_limit_the_layer_and_what_was_found():
    with pytest.raises(LoraError, match=rf"from 1 to 32, the smaller side of {Q}\.weight; found 0\."):
        with_lora("q", 0)


def test_the_message_about_a_tied_tensor_names_both():
    with pytest.raises(
        LoraError, match="'embeddings' takes transformer.wte.weight, which is lm_head.weight as well"
    ):
        with_lora("embeddings")
    with pytest.raises(LoraError, match=r"'position_embedding' takes transformer.wpe.weight\. LoRA"):
        with_lora("position_embedding")


def test_unload_keeps_the_mode_of_each_layer():
    model = with_lora("q").eval()
    lora.unload(model)
    assert not model.get_submodule(Q).training
    model = with_lora("q").train()
    lora.unload(model)
    assert model.get_submodule(Q).training


def test_insert_names_its_layers_in_order_and_a_second_merge_keeps_the_first_copy():
    model = build_model(CONFIG, seed=1)
    assert insert(model, "q", 2, 4.0) == [Q, Q.replace(".0.", ".1.")] == list(layers_of(model))
    layers_of(model)[Q].lora_B.data.fill_(0.5)
    before = layers_of(model)[Q].weight.detach().clone()
    merge(model)
    merge(model)
    assert torch.equal(layers_of(model)[Q].kept, before) and not torch.equal(
        layers_of(model)[Q].weight, before
    )


# --- the file ----------------------------------------------------------------------


def test_the_header_of_an_adapter_is_its_record(tmp_path):
    model = with_lora("q+v", rank=2, alpha=5.0)
    folder = tmp_path / "new" / "folders"
    assert save_adapter(model, str(folder)) == folder
    assert save_adapter(model, folder) == folder, "an older adapter there is replaced"
    found = header(folder)
    assert set(found) == {"format", "base", "tensors", "layers", "own_sha256"}
    assert found["format"] == 2 and found["base"] == lora.base_hash(model)
    assert found["layers"] == {name: {"rank": 2, "alpha": 5.0} for name in layers_of(model)}
    assert set(load_file(folder / "adapter.safetensors")) == {
        f"{name}.{factor}" for name in layers_of(model) for factor in ("lora_A", "lora_B")
    }


def test_another_base_is_named_by_twelve_signs_of_both_hashes(tmp_path):
    model, other = with_lora(), build_model(CONFIG, seed=2)
    save_adapter(model, tmp_path)
    words = f"base {lora.base_hash(model)[:12]}…, and this model is {lora.base_hash(other)[:12]}…."
    with pytest.raises(LoraError, match=re.escape(words)):
        load_adapter(other, tmp_path)


def resealed(folder, change):
    """The adapter with other tensors, and a record that fits them."""
    tensors, record = load_file(folder / "adapter.safetensors"), header(folder)
    change(tensors)
    record.pop("own_sha256")
    record["tensors"] = lora._content_hash(tensors)
    sealed = json.dumps({**record, "own_sha256": record_hash(record)})
    save_file(tensors, folder / "adapter.safetensors", {"adapter": sealed})


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda t: t.update({f"{Q}.lora_A": torch.zeros(3, 5)}), "lora_A is (3, 5), (3, 32) is wanted"),
        (lambda t: t.pop(f"{Q}.lora_B"), "lora_B is None, (32, 3) is wanted"),
        (lambda t: t.update({"more": torch.zeros(1)}), "more is (1,), None is wanted"),
    ],
)
def test_one_tensor_that_does_not_fit_the_record_is_named_with_both_shapes(tmp_path, change, words):
    save_adapter(with_lora("q"), tmp_path)
    resealed(tmp_path, change)
    model = build_model(CONFIG, seed=1)
    with pytest.raises(LoraError, match=re.escape(words)):
        load_adapter(model, tmp_path)
    assert not any(isinstance(module, LoRALinear) for module in model.modules())
