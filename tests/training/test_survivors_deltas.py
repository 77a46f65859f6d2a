"""Delta checkpoints: fields, borders and messages that the other tests let pass when the code was broken."""

import copy
import json
import re
from dataclasses import FrozenInstanceError

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from helpers import files
from helpers.freezing.plans import FreezePlan
from helpers.models.loading import build_model, mini_config, weight_hash
from helpers.training import deltas
from helpers.training.deltas import BaseRecord, DeltaError, base_record, load_delta, read_delta, save_delta

MAIN = FreezePlan.freeze("attention", "embeddings")
SHAPE = {
    "vocab_size": 97,
    "hidden_size": 16,
    "num_layers": 2,
    "num_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 24,
    "window_size": 8,
    "attention_types": [[["global", "local"], 1]],
}
LN = "transformer.ln_f.bias"


def small(seed=1):
    return build_model(mini_config(**SHAPE), seed=seed)


def saved(folder, plan=MAIN, **more):
    base = small()
    model = copy.deepcopy(base)
    plan.apply(model)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p += 0.5
    return save_delta(model, plan, base, folder, **more), base, model


def record_of(place):
    with safe_open(place, framework="pt") as file:
        return json.loads(file.metadata()["delta"])


def signed_again(place, change):
    """The file with another record whose own hash fits."""
    record = record_of(place)
    record.pop("own_sha256")
    change(record)
    with safe_open(place, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    save_file(tensors, place, {"delta": json.dumps({**record, "own_sha256": files.record_hash(record)})})


# --- which base ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "field",
    [
        "_name_or_path",
        "architectures",
        "chunk_size_feed_forward",
        "dtype",
        "id2label",
        "initializer_range",
        "label2id",
        "output_attentions",
        "output_hidden_states",
        "pad_token_id",
        "problem_type",
        "return_dict",
        "torch_dtype",
        "transformers_version",
        "use_cache",
        "attention_dropout",
        "embd_pdrop",
    ],
)
def test_a_field_that_no_forward_pass_reads_is_not_of_the_base(field):
    assert deltas._relevant({field: 1, "hidden_size": 16}) == {"hidden_size": 16}


def test_the_two_spellings_of_gelu_are_one_and_other_values_stay():
    config = {"activation_function": "gelu_new", "layers": ["gelu_new"], "n": 2, "pdrop_scale": 1}
    assert deltas._relevant(config) == {**config, "activation_function": "gelu_pytorch_tanh"}


def base(**changes):
    same = {
        "model_type": "gpt_neo",
        "weight_hash": "0",
        "config": {"a": 1, "b": "x"},
        "tensors": {"t": "float32 2x3 0123", "u": "float32 4 4567"},
    }
    return BaseRecord(**same | changes)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({}, None),
        ({"weight_hash": "1"}, None),
        ({"config": {"a": 1, "c": 3}}, None),
        ({"model_type": "gpt2"}, "other architecture: its base is a 'gpt_neo' model, this is a 'gpt2'"),
        ({"config": {"a": 2, "b": "y"}}, "other config: a was 1, here it is 2, b was 'x', here it is 'y'"),
        ({"tensors": {"t": "float32 2x3 0123"}}, "other tensors: u is missing here"),
        (
            {"tensors": {"t": "float32 2x3 0123", "u": "float32 4 4567", "v": "float32 1 8"}},
            "other tensors: v is additional here",
        ),
        (
            {"tensors": {"t": "float16 2x3 0123", "u": "float32 4 4567"}},
            "other types or shapes: t was float32 2x3, here it is float16 2x3",
        ),
        (
            {"tensors": {"t": "float32 2x3 9999", "u": "float32 4 4567"}},
            "same shape but other weights in 1 of 2 tensors: t",
        ),
    ],
)
def test_the_plainest_difference_alone_is_said(changes, words):
    assert deltas.differences(base(), base(**changes)) == ([words] if words else [])


def test_a_fingerprint_is_type_shape_and_sixteen_signs():
    tensor = torch.zeros(2, 3, dtype=torch.bfloat16)
    found = deltas.fingerprint(tensor)
    assert (
        found == f"bfloat16 2x3 {deltas.tensor_hash(tensor)[:16]}" and deltas.kind(tensor) == "bfloat16 2x3"
    )
    assert deltas.recorded_kind(found) == "bfloat16 2x3"


@pytest.mark.parametrize(
    "n, words", [(1, "0"), (3, "0, 1, 2"), (4, "0, 1, 2 and 1 more"), (9, "0, 1, 2 and 6 more")]
)
def test_three_are_named(n, words):
    assert deltas.some([str(i) for i in range(n)]) == words


def test_records_and_deltas_are_values(tmp_path):
    for value, name in ((base(), "config"), (read_delta(saved(tmp_path)[0]), "plan")):
        with pytest.raises(FrozenInstanceError):
            setattr(value, name, None)


def test_a_tokenizer_without_rules_is_known_by_its_vocabulary():
    class Written:
        def __init__(self, words):
            self.words = words

        def get_vocab(self):
            return self.words

    one, same, other = (deltas.tokenizer_hash(Written(w)) for w in ({"a": 0}, {"a": 0}, {"a": 1}))
    assert one == same != other


# --- the file --------------------------------------------------------------------------


def test_the_header_of_a_delta_is_its_record(tmp_path):
    place, own, model = saved(tmp_path / "new" / "folders")
    found = record_of(place)
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert place == tmp_path / "new" / "folders" / "delta.safetensors"
    assert set(found) == {
        *("format", "plan", "flag", "roles", "counts", "n_parameters", "base", "tokenizer"),
        *("tuned_hash", "tensors", "own_sha256"),
    }
    assert found["format"] == 1 and found["flag"] == "--freeze attention+embeddings"
    assert found["plan"] == {"way": "freeze", "selectors": ["attention", "embeddings"]}
    assert found["roles"] is None and found["tokenizer"] is None
    assert set(found["counts"]) == {"mlp", "norm"}, "a role of which nothing trains is left out"
    assert found["counts"]["norm"] == sum(p.numel() for n, p in trained.items() if "ln_" in n)
    assert found["tensors"] == {n: files.tensor_hash(p) for n, p in trained.items()}
    assert found["base"]["weight_hash"] == weight_hash(own) and found["tuned_hash"] == weight_hash(model)


def test_a_file_may_be_named_and_is_written_again_in_its_place(tmp_path):
    named = tmp_path / "mine.safetensors"
    assert saved(named)[0] == named == saved(str(named))[0]
    assert read_delta(str(named)).plan == MAIN
    assert [p.name for p in tmp_path.iterdir()] == ["mine.safetensors"]


def test_a_base_record_serves_as_well_as_the_base(tmp_path):
    place, own, model = saved(tmp_path)
    again = save_delta(model, MAIN, base_record(own), tmp_path / "other")
    assert record_of(again) == record_of(place)


@pytest.mark.parametrize(
    "path",
    [
        *("plan", "plan.way", "plan.selectors", "roles", "counts", "n_parameters", "base", "base.model_type"),
        *("base.weight_hash", "base.config", "base.tensors", "tokenizer", "tuned_hash", "tensors"),
    ],
)
def test_a_field_of_another_type_is_named(tmp_path, path):
    place = saved(tmp_path)[0]

    def change(record):
        *above, last = path.split(".")
        for name in above:
            record = record[name]
        record[last] = 0.5

    signed_again(place, change)
    with pytest.raises(DeltaError, match=rf"TypeError: '{re.escape(path)}' is float"):
        read_delta(place)


# --- what is said ----------------------------------------------------------------------


def test_how_many_fixed_tensors_moved_is_said(tmp_path):
    own = small()
    model = copy.deepcopy(own)
    with torch.no_grad():
        model.transformer.wpe.weight += 1
    words = (
        'Not saved: 1 of 12 tensors that FreezePlan.freeze("attention", "embeddings") leaves fixed are not the '
        "base's: transformer.wpe.weight."
    )
    with pytest.raises(DeltaError, match=re.escape(words)):
        save_delta(model, MAIN, own, tmp_path)


def test_a_tensor_that_is_gone_or_of_another_type_is_named_with_both(tmp_path):
    own = small()
    record = base_record(own)
    more = BaseRecord(record.model_type, "", record.config, {**record.tensors, "old": "float32 1 0"})
    with pytest.raises(DeltaError, match=r"trained from: old is gone\. Give"):
        save_delta(own, MAIN, more, tmp_path)
    half = copy.deepcopy(own)
    half.transformer.ln_f.to(torch.float16)
    with pytest.raises(
        DeltaError, match=rf"ln_f\.weight is float16 16, in the base float32 16, {LN} is float16 16"
    ):
        save_delta(half, MAIN, own, tmp_path)


def test_a_wrong_base_is_told_by_twelve_signs_of_the_right_one(tmp_path):
    place, own, _ = saved(tmp_path)
    with pytest.raises(DeltaError, match=rf"\(weight hash {weight_hash(own)[:12]}…\)"):
        load_delta(place, small(seed=2))


class Words:
    """A tokenizer in Python alone."""

    def __init__(self, **words):
        self.words = words

    def get_vocab(self):
        return self.words


def test_another_tokenizer_is_told_by_twelve_signs_of_both(tmp_path):
    one, two = Words(a=0), Words(a=1)
    place, own, _ = saved(tmp_path, tokenizer=one)
    load_delta(place, own, tokenizer=one)
    load_delta(saved(tmp_path / "without")[0], own, tokenizer=two)
    hashes = [deltas.tokenizer_hash(t)[:12] for t in (one, two)]
    with pytest.raises(DeltaError, match=rf"\(hash {hashes[0]}…, this one {hashes[1]}…\)"):
        load_delta(place, own, tokenizer=two)


def test_a_shape_that_does_not_fit_the_base_is_told_with_both(tmp_path):
    place, own, _ = saved(tmp_path, plan=FreezePlan.only("norms"))
    record = record_of(place)
    record.pop("own_sha256")
    with safe_open(place, framework="pt") as file:
        tensors = {n: file.get_tensor(n) for n in file.keys()} | {LN: torch.zeros(7)}  # noqa: SIM118
    record["tensors"][LN] = deltas.tensor_hash(tensors[LN])
    sealed = json.dumps({**record, "own_sha256": files.record_hash(record)})
    save_file(tensors, place, {"delta": sealed})
    with pytest.raises(
        DeltaError, match=rf"does not fit its base: {LN} is float32 7, in the model float32 16\."
    ):
        load_delta(place, own)


# --- the base stays, or does not ---------------------------------------------------------


def test_the_base_is_copied_unless_it_may_be_changed(tmp_path):
    place, own, model = saved(tmp_path)
    before = weight_hash(own)
    loaded = load_delta(place, own)
    assert loaded is not own and weight_hash(own) == before and weight_hash(loaded) == weight_hash(model)
    assert load_delta(place, own, in_place=True) is own and weight_hash(own) == weight_hash(model)


@pytest.mark.parametrize("share, part", [(0.0, 0.0), (0.5, 0.25), (1.0, 0.5), ({"norms": 0.0}, 0.0)])
def test_a_share_of_the_change_is_taken(tmp_path, share, part):
    place, own, _ = saved(tmp_path)
    loaded = load_delta(place, own, share=share)
    moved = loaded.get_parameter(LN) - own.get_parameter(LN)
    assert torch.allclose(moved, torch.full_like(moved, part))
