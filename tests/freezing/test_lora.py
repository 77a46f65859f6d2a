"""LoRA by hand: equal to PEFT's, exact in and out, trained by the course's own loop, saved and refused."""

import contextlib
import copy
import json
import math
import os
import re

import pytest
import torch
from peft import IA3Config, LNTuningConfig, LoraConfig, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import BloomConfig

from helpers.files import file_hash, record_hash
from helpers.freezing import lora
from helpers.freezing.lora import (
    LORA_PLAN,
    LoraError,
    LoRALinear,
    insert,
    layers_of,
    load_adapter,
    merge,
    save_adapter,
    unmerge,
)
from helpers.freezing.plans import FreezePlan
from helpers.freezing.selectors import PlanError
from helpers.models.loading import build_model, gpt_neo_125m_config, weight_hash
from helpers.models.losses import next_token_loss
from helpers.models.roles import AnatomyError, anatomy
from helpers.training.loop import fit
from helpers.training.runs import TrainingError, TrainSettings
from support import tiny
from support.tiny import family

CONFIG = tiny.config()
IDS = torch.randint(97, (4, 24), generator=torch.Generator().manual_seed(0))


def with_lora(where="attention", rank=3, alpha=6.0, trained=True):
    """A small GPT-Neo with LoRA; B is not zero where it is "trained"."""
    model = build_model(CONFIG, seed=1)
    insert(model, where, rank, alpha)
    if trained:
        generator = torch.Generator().manual_seed(2)
        for layer in layers_of(model).values():
            layer.lora_B.data.copy_(0.1 * torch.randn(layer.lora_B.shape, generator=generator))
    return model


def peft_twin(model, rank=3, alpha=6.0):
    """PEFT's LoRA on the same base, in the same layers, with the same A and B; its layers by our names."""
    twin = get_peft_model(
        build_model(CONFIG, seed=1),
        LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(layers_of(model))),
    )
    layers = {name: twin.get_submodule(f"base_model.model.{name}") for name in layers_of(model)}
    for name, layer in layers_of(model).items():
        layers[name].lora_A["default"].weight.data.copy_(layer.lora_A.data)
        layers[name].lora_B["default"].weight.data.copy_(layer.lora_B.data)
    return twin, layers


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


# --- equal to PEFT -----------------------------------------------------------------

peft_speaks = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing`:FutureWarning"
)  # an old name, in PEFT


@peft_speaks
@pytest.mark.parametrize("where", ["attention", "mlp", "q+v"])
def test_the_logits_are_pefts(where):
    ours = with_lora(where)
    twin, _ = peft_twin(ours)
    assert torch.allclose(logits(ours), logits(twin), atol=1e-6)
    assert not torch.allclose(logits(ours), logits(build_model(CONFIG, seed=1)), atol=1e-3)


@peft_speaks
def test_the_gradients_of_both_factors_are_pefts():
    ours = with_lora()
    twin, layers = peft_twin(ours)
    for model in (ours, twin.base_model.model):
        next_token_loss(model, IDS)[0].backward()
    for name, layer in layers_of(ours).items():
        for factor in ("lora_A", "lora_B"):
            mine, theirs = getattr(layer, factor).grad, getattr(layers[name], factor)["default"].weight.grad
            assert mine.norm() > 0 and (mine - theirs).norm() <= 1e-5 * theirs.norm(), (name, factor)


@peft_speaks
def test_merging_gives_pefts_merged_weights():
    ours = with_lora()
    twin, layers = peft_twin(ours)
    twin.merge_adapter()
    merge(ours)
    for name, layer in layers_of(ours).items():
        assert torch.allclose(layer.weight, layers[name].base_layer.weight, atol=1e-6)


@peft_speaks
def test_modules_to_save_unties_the_head_and_ours_does_not():
    """The fact that notebook 07 teaches; if PEFT changes it, the page must change too."""
    twin = get_peft_model(
        build_model(CONFIG, seed=1), LoraConfig(r=3, target_modules=["q_proj"], modules_to_save=["wte"])
    )
    inner = twin.base_model.model
    assert inner.lm_head.weight is not inner.transformer.wte.modules_to_save["default"].weight
    ours = with_lora("attention+mlp")
    assert ours.lm_head.weight is ours.transformer.wte.weight


@peft_speaks
@pytest.mark.parametrize(
    "adapter",
    [
        LoraConfig(r=3, target_modules=["q_proj"]),
        LoraConfig(r=3, target_modules=["q_proj"], modules_to_save=["wte"]),
        IA3Config(target_modules=["k_proj"], feedforward_modules=[]),
        LNTuningConfig(target_modules=["ln_1"]),
    ],
    ids=lambda adapter: adapter.peft_type.value,
)
def test_an_adapter_of_peft_has_no_roles_and_the_way_to_its_base_is_said(adapter):
    tuned = get_peft_model(build_model(CONFIG, seed=1), adapter)
    with pytest.raises(
        AnatomyError, match=r"holds an adapter of PEFT \(base_model.*Give its base: model\.unload\(\)"
    ):
        FreezePlan.parse(freeze="attention").apply(tuned)
    assert FreezePlan.parse(freeze="attention").apply(tuned.unload()).n_trainable > 0


def test_merged_lora_takes_no_part_in_the_loss_and_is_not_trained():
    model = with_lora()
    merge(model)
    with pytest.raises(TrainingError, match="unmerge"):
        fit(
            model, lora.LORA_PLAN, torch.zeros(4, 8, dtype=torch.long), TrainSettings(1, 1e-3), progress=False
        )


# --- in and out --------------------------------------------------------------------


def test_a_fresh_lora_changes_nothing_and_keeps_every_name():
    base, model = build_model(CONFIG, seed=1), with_lora(trained=False)
    assert torch.equal(logits(model), logits(base))
    assert {n for n, _ in base.named_parameters()} < {n for n, _ in model.named_parameters()}
    assert lora.base_hash(model) == weight_hash(base)
    assert type(model.transformer.h[0].mlp.c_fc) is nn.Linear


def test_the_base_keeps_its_own_tensors_and_is_not_copied():
    model = build_model(CONFIG, seed=1)
    before = dict(model.named_parameters())
    insert(model, "attention+mlp", 3, 6.0)
    assert all(model.get_parameter(name) is tensor for name, tensor in before.items())


def test_the_random_a_follows_the_seed_and_leaves_the_callers_dice_alone():
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    one, two = with_lora(trained=False), with_lora(trained=False)
    assert torch.equal(torch.rand(1), expected)
    other = build_model(CONFIG, seed=1)
    insert(other, "attention", 3, 6.0, seed=5)
    a, b, c = (next(iter(layers_of(m).values())).lora_A for m in (one, two, other))
    assert torch.equal(a, b) and not torch.equal(a, c) and a.any()


def test_merged_gives_the_same_output_and_unmerged_is_the_base_again_bit_for_bit():
    model = with_lora("attention+mlp")
    before, base = logits(model), lora.base_hash(model)
    merge(model)
    merge(model)  # twice is once
    assert torch.allclose(logits(model), before, atol=1e-5) and lora.base_hash(model) != base
    unmerge(model)
    assert torch.equal(logits(model), before) and lora.base_hash(model) == base


def test_unload_leaves_plain_layers_with_or_without_the_change():
    model, plain = with_lora(), with_lora()
    changed = logits(model)
    merge(model)
    lora.unload(model)
    lora.unload(plain)
    assert not any(isinstance(m, LoRALinear) for m in model.modules())
    assert torch.allclose(logits(model), changed, atol=1e-5)
    assert weight_hash(plain) == weight_hash(build_model(CONFIG, seed=1))


def test_alpha_over_rank_scales_the_change():
    one, four = (copy.deepcopy(with_lora(alpha=a)) for a in (3.0, 12.0))
    a, b = (next(iter(layers_of(m).values())).change() for m in (one, four))
    assert torch.allclose(4 * a, b) and torch.linalg.matrix_rank(a) == 3


@pytest.mark.parametrize("kind", ["llama", "opt", "gpt_neox"])
def test_other_families_get_lora_by_role(kind):
    config = family(kind).config
    model = build_model(config)
    names = insert(model, "attention", 2, 4.0)
    entries = [e for e in anatomy(model).entries if e.part == "lora"]
    assert len(entries) == 2 * len(names) and {e.role for e in entries} == {"attention"}
    assert sum(e.n_parameters for e in entries) == lora.n_adapter_parameters(config, "attention", 2)


# --- counting ----------------------------------------------------------------------


def test_the_published_ranks_match_exactly():
    config = gpt_neo_125m_config()
    counts = {lora.n_adapter_parameters(config, where, r) for where, r in (("attention", 10), ("mlp", 8))}
    assert counts == {737_280} and lora.equal_ranks(config, "attention", "mlp") == (5, 4)


def test_grouped_queries_and_a_gated_mlp_are_counted_as_they_are():
    """The shape of SmolLM2 135M: 33 on attention against 20 on the MLP."""
    config = family(
        "llama",
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
    ).config
    assert lora.equal_ranks(config, "attention", "mlp") == (33, 20)


def test_the_count_from_the_config_is_the_models():
    model = with_lora("mlp", rank=5)
    n = sum(p.numel() for layer in layers_of(model).values() for p in (layer.lora_A, layer.lora_B))
    assert n == lora.n_adapter_parameters(CONFIG, "mlp", 5) == LORA_PLAN.explain(model).n_trainable


# --- refusals ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "where, error, words",
    [
        ("atention", PlanError, "Did you mean 'attention'"),
        ("router", PlanError, "this model has none"),
        ("name:transformer.h.9.attn.attention.q_proj.weight", PlanError, "Nearest"),
        ("embeddings", LoraError, "lm_head.weight"),
        ("position_embedding", LoraError, "linear layers"),
        ("head", LoraError, "lm_head.weight as well"),
        ("norms", LoraError, "only vectors"),
        ("biases", LoraError, "only vectors"),
    ],
)
def test_what_is_no_linear_layer_is_refused_and_the_model_stays(where, error, words):
    model = build_model(CONFIG, seed=1)
    with pytest.raises(error, match=words):
        insert(model, where, 2, 4.0)
    assert not any(isinstance(m, LoRALinear) for m in model.modules())


@pytest.mark.parametrize(
    "rank, alpha, words",
    [
        (0, 1.0, "whole number from 1"),
        (33, 1.0, "from 1 to 32"),
        (2.5, 1.0, "2.5"),
        (2, 0.0, "alpha"),
        (2, float("nan"), "alpha"),
    ],
)
def test_a_rank_or_alpha_that_cannot_be_is_refused(rank, alpha, words):
    with pytest.raises(LoraError, match=words):
        insert(build_model(CONFIG), "attention", rank, alpha)


def test_a_second_lora_a_model_without_one_and_a_conv_are_refused():
    with pytest.raises(LoraError, match="already"):
        insert(with_lora(), "q", 2, 4.0)
    with pytest.raises(LoraError, match="no LoRA layer"):
        merge(build_model(CONFIG))
    with pytest.raises(LoraError, match="Conv1D"):
        insert(build_model(family("gpt2").config), "attention", 2, 4.0)


def test_the_lora_plan_finds_nothing_in_a_plain_model():
    with pytest.raises(PlanError, match="this model has none"):
        LORA_PLAN.apply(build_model(CONFIG))


# --- training ----------------------------------------------------------------------


def train(model, plan=LORA_PLAN, **more):
    settings = TrainSettings(
        **{"n_steps": 6, "rate": 3e-2, "batch": 4, "evaluate_every": 6, "save_every": 3, **more}
    )
    return fit(model, plan, IDS, settings, progress=False)


def test_fit_trains_the_factors_alone_and_proves_it():
    model, base = with_lora(trained=False), build_model(CONFIG, seed=1)
    result = train(model)
    n = len(layers_of(model))
    assert result.proof.ok and result.proof.n_moved == 2 * n
    assert result.proof.n_frozen_tensors == len(list(base.parameters()))
    assert lora.base_hash(model) == weight_hash(base)
    losses = [s["loss"] for s in result.history.steps]
    assert losses[-1] < losses[0] and set(result.history.steps[0]["norms"]) == {"attention", "total"}
    assert set(result.best) == {
        f"{name}.{factor}" for name in layers_of(model) for factor in ("lora_A", "lora_B")
    }


def test_lora_and_norms_together_are_a_plan_too():
    model = with_lora(trained=False)
    assert train(model, FreezePlan.only("lora", "norms")).proof.ok
    assert model.transformer.ln_f.weight.requires_grad and not model.transformer.wte.weight.requires_grad


def test_a_lora_run_resumes_bit_for_bit(tmp_path):
    whole, broken = with_lora(trained=False), with_lora(trained=False)
    train(whole)

    def pull_the_plug(model, looks=iter(range(9))):  # noqa: B008 (one counter for the run)
        if next(looks) == 5:
            raise KeyboardInterrupt
        return {}

    settings = TrainSettings(n_steps=6, rate=3e-2, batch=4, evaluate_every=1, save_every=3)
    with pytest.raises(KeyboardInterrupt):
        fit(broken, LORA_PLAN, IDS, settings, evaluate=pull_the_plug, folder=tmp_path, progress=False)
    again = with_lora(trained=False)
    fit(again, LORA_PLAN, IDS, settings, folder=tmp_path, progress=False)
    assert weight_hash(again) == weight_hash(whole)


def test_with_b_zero_only_b_has_a_gradient_at_first():
    model = with_lora(trained=False)
    LORA_PLAN.apply(model)
    next_token_loss(model, IDS)[0].backward()
    layer = next(iter(layers_of(model).values()))
    assert layer.lora_B.grad.any() and not layer.lora_A.grad.any() and layer.weight.grad is None


# --- the file ----------------------------------------------------------------------


def test_an_adapter_comes_back_bit_for_bit(tmp_path):
    model, fresh = with_lora("q+v"), build_model(CONFIG, seed=1)
    save_adapter(model, tmp_path / "adapter")
    dice = torch.get_rng_state()
    load_adapter(fresh, tmp_path / "adapter")
    assert torch.equal(dice, torch.get_rng_state()), "loading draws no random numbers of the caller's"
    assert torch.equal(logits(fresh), logits(model)) and weight_hash(fresh) == weight_hash(model)
    assert list(layers_of(fresh)) == list(layers_of(model))
    size = (tmp_path / "adapter" / "adapter.safetensors").stat().st_size
    n = lora.n_adapter_parameters(CONFIG, "q+v", 3)
    assert 4 * n < size < 4 * n + 3000
    assert sorted(p.name for p in (tmp_path / "adapter").iterdir()) == ["adapter.safetensors"]


def test_a_merged_adapter_is_not_saved(tmp_path):
    model = with_lora()
    merge(model)
    with pytest.raises(LoraError, match="unmerge"):
        save_adapter(model, tmp_path)


def test_a_folder_that_cannot_be_made_is_said(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(LoraError, match="choose another folder"):
        save_adapter(with_lora(), tmp_path / "file" / "adapter")


def cut(folder):
    file = folder / "adapter.safetensors"
    file.write_bytes(file.read_bytes()[:-40])


def edit(folder, reseal=False, **changes):
    with safe_open(folder / "adapter.safetensors", framework="pt") as file:
        record = json.loads(file.metadata()["adapter"]) | changes
    record.pop("own_sha256")
    rewrite(folder, json.dumps({**record, "own_sha256": record_hash(record) if reseal else "no"}))


def rewrite(folder, header=None, change=lambda tensors: None):
    with safe_open(folder / "adapter.safetensors", framework="pt") as file:
        header = header or file.metadata()["adapter"]
    tensors = load_file(folder / "adapter.safetensors")
    change(tensors)
    save_file(tensors, folder / "adapter.safetensors", {"adapter": header})


def flip(tensors):
    next(iter(tensors.values())).add_(1)


@pytest.mark.parametrize(
    "damage, words",
    [
        (cut, "cut short"),
        (lambda f: edit(f, base="0" * 64), "the record in adapter.safetensors was changed"),
        (lambda f: edit(f, reseal=True, format=9), "format 9"),
        (lambda f: (f / "adapter.safetensors").unlink(), "no adapter"),
        (lambda f: rewrite(f, "{"), "no adapter"),
        (lambda f: rewrite(f, "[]"), "no adapter"),
        (lambda f: rewrite(f, "[" * 100_000), "no adapter"),
        (lambda f: rewrite(f, change=flip), "was changed"),
        (lambda f: edit(f, reseal=True, base="0" * 64), "trained on the base 000000000000"),
    ],
)
def test_a_damaged_or_foreign_adapter_is_refused_and_the_model_stays(damage, words, tmp_path):
    save_adapter(with_lora(), tmp_path)
    damage(tmp_path)
    model = build_model(CONFIG, seed=1)
    with pytest.raises(LoraError, match=words):
        load_adapter(model, tmp_path)
    assert not any(isinstance(m, LoRALinear) for m in model.modules())


def test_an_adapter_of_two_files_as_the_older_form_had_is_read_and_refused_where_they_do_not_fit(tmp_path):
    model = with_lora()
    save_adapter(model, tmp_path)
    tensors = load_file(tmp_path / "adapter.safetensors")
    save_file(tensors, tmp_path / "adapter.safetensors")
    record = {
        "format": 1,
        "base": lora.base_hash(model),
        "sha256": file_hash(tmp_path / "adapter.safetensors"),
        "layers": {name: {"rank": x.rank, "alpha": x.alpha} for name, x in layers_of(model).items()},
    }
    (tmp_path / "adapter.json").write_text(json.dumps({**record, "own_sha256": record_hash(record)}))
    fresh = build_model(CONFIG, seed=1)
    load_adapter(fresh, tmp_path)
    assert weight_hash(fresh) == weight_hash(model)
    flip(tensors)
    save_file(tensors, tmp_path / "adapter.safetensors")
    with pytest.raises(LoraError, match="does not belong to adapter.json"):
        load_adapter(build_model(CONFIG, seed=1), tmp_path)


def test_an_adapter_whose_writer_dies_at_any_moment_is_the_old_or_the_new_one(tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    old, new = with_lora(), with_lora()
    next(iter(layers_of(new).values())).lora_B.data.add_(1)
    hashes = {weight_hash(old), weight_hash(new)}
    replace, sync = os.replace, os.fsync
    for step in range(6):
        save_adapter(old, tmp_path)
        left = [step]

        def counted(work, left=left):
            def call(*arguments):
                left[0] -= 1
                if left[0] < 0:
                    raise Killed
                return work(*arguments)

            return call

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", counted(replace))
            patch.setattr(os, "fsync", counted(sync))
            with contextlib.suppress(Killed):
                save_adapter(new, tmp_path)
        fresh = build_model(CONFIG, seed=1)
        load_adapter(fresh, tmp_path)
        assert weight_hash(fresh) in hashes


def test_an_adapter_for_another_base_is_refused(tmp_path):
    save_adapter(with_lora(), tmp_path)
    assert file_hash(tmp_path / "adapter.safetensors")
    with pytest.raises(LoraError, match="Load the base that it belongs to"):
        load_adapter(build_model(CONFIG, seed=2), tmp_path)


# --- borders, defaults and messages -------------------------------------------------

Q = "transformer.h.0.attn.attention.q_proj"


def fresh_lora(where="attention", rank=3, alpha=6.0, **more):
    model = build_model(CONFIG, seed=1)
    insert(model, where, rank, alpha, **more)
    return model


def factors(model):
    return {name: (layer.lora_A, layer.lora_B) for name, layer in layers_of(model).items()}


def header(folder):
    with safe_open(folder / "adapter.safetensors", framework="pt") as file:
        return json.loads(file.metadata()["adapter"])


def test_without_a_seed_the_random_a_is_that_of_seed_0():
    plain, zero = factors(fresh_lora()), factors(fresh_lora(seed=0))
    assert all(torch.equal(plain[name][0], zero[name][0]) for name in zero)


def test_a_starts_within_one_over_the_root_of_the_inputs_as_a_linear_layer_does():
    layer = LoRALinear(torch.nn.Linear(64, 64), 32, 1.0)
    assert 0.98 / math.sqrt(64) < layer.lora_A.abs().max() <= 1 / math.sqrt(64)
    assert not layer.lora_B.any() and layer.kept is None


@pytest.mark.parametrize("rank", [1, 32])
def test_the_smallest_and_the_largest_rank_fit(rank):
    assert {layer.rank for layer in layers_of(fresh_lora("q", rank, 1)).values()} == {rank}


@pytest.mark.parametrize("alpha", [math.inf, -1.0, None])
def test_an_alpha_that_is_no_finite_number_above_0_is_refused(alpha):
    with pytest.raises(LoraError, match=f"alpha must be above 0; found {alpha}"):
        fresh_lora("q", 2, alpha)


def test_the_message_about_a_rank_names_the_limit_the_layer_and_what_was_found():
    with pytest.raises(LoraError, match=rf"from 1 to 32, the smaller side of {Q}\.weight; found 0\."):
        fresh_lora("q", 0)


def test_the_message_about_a_tied_tensor_names_both():
    with pytest.raises(
        LoraError, match="'embeddings' takes transformer.wte.weight, which is lm_head.weight as well"
    ):
        fresh_lora("embeddings")
    with pytest.raises(LoraError, match=r"'position_embedding' takes transformer.wpe.weight\. LoRA"):
        fresh_lora("position_embedding")


def test_unload_keeps_the_mode_of_each_layer():
    model = fresh_lora("q").eval()
    lora.unload(model)
    assert not model.get_submodule(Q).training
    model = fresh_lora("q").train()
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
    model = fresh_lora("q+v", rank=2, alpha=5.0)
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
    model, other = fresh_lora(), build_model(CONFIG, seed=2)
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
    save_adapter(fresh_lora("q"), tmp_path)
    resealed(tmp_path, change)
    model = build_model(CONFIG, seed=1)
    with pytest.raises(LoraError, match=re.escape(words)):
        load_adapter(model, tmp_path)
    assert not any(isinstance(module, LoRALinear) for module in model.modules())


def test_a_layer_whose_matrix_the_forward_reads_past_it_is_refused_and_nothing_changes():
    shape = {"vocab_size": 61, "hidden_size": 16, "n_layer": 1, "n_head": 2}
    model = build_model(BloomConfig(**shape, slow_but_exact=True, pretraining_tp=2), attention="eager")
    before, torn = weight_hash(model), torch.get_rng_state()
    with pytest.raises(LoraError, match="does not call transformer.h.0.self_attention.dense .1 such layer"):
        insert(model, "attention", rank=2, alpha=4)
    assert weight_hash(model) == before and torch.equal(torch.get_rng_state(), torn)
    assert not any(isinstance(module, LoRALinear) for module in model.modules())
    assert insert(build_model(BloomConfig(**shape), attention="eager"), "attention", rank=2, alpha=4)
