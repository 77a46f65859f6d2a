"""Any model folder loads as what it is, or is refused in one line, and stays as it was."""

import json
import shutil
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from helpers.models.loading import build_model, load_config, load_model, load_tokenizer, mini_config
from helpers.models.model_files import ModelError
from support.fuzz import damaged, damages, failed_once, folder, held, long, quick, right_or_refused, values

MINI = Path(__file__).parents[2] / "data" / "gpt-neo-mini"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
FIELDS = (
    "vocab_size", "hidden_size", "num_layers", "num_heads", "intermediate_size", "max_position_embeddings",
    "window_size", "attention_types", "attention_layers", "activation_function", "bos_token_id", "eos_token_id",
    "pad_token_id", "attention_dropout", "layer_norm_epsilon", "initializer_range", "model_type", "architectures",
    "dtype", "tie_word_embeddings", "use_cache", "auto_map", "quantization_config", "transformers_version",
    "return_dict", "output_attentions", "output_hidden_states",
)  # fmt: skip


@cache
def files() -> dict[str, bytes]:
    """The files of a small model with the miniature's tokenizer."""
    shape = dict(
        hidden_size=8,
        num_heads=2,
        num_layers=2,
        intermediate_size=8,
        max_position_embeddings=16,
        attention_types=[[["global", "local"], 1]],
    )
    with folder() as place:
        build_model(mini_config(**shape)).save_pretrained(place)
        for name in TOKENIZER_FILES:
            shutil.copy(MINI / name, place)
        return {name: raw for name, raw in held(place).items() if raw is not None}


def load_all(place):
    load_config(place)
    tokenizer = load_tokenizer(place)
    model = load_model(place, device="cpu")
    return tokenizer, model


bytes_cases = st.tuples(
    st.sampled_from(["config.json", "generation_config.json", "model.safetensors", *TOKENIZER_FILES]), damages
)
field_cases = st.dictionaries(st.sampled_from(FIELDS), values, min_size=1, max_size=3)
tensor_cases = st.tuples(
    st.integers(0, 60),
    st.sampled_from(["drop", "rename", "nan", "int8", "row", "extra", "twin", "_orig_mod.", "module."]),
)


def check_bytes(case):
    name, damage = case
    check_folder(files() | {name: damaged(files()[name], *damage)})


def check_fields(changes):
    config = json.loads(files()["config.json"]) | changes
    check_folder(files() | {"config.json": json.dumps(config).encode("utf-8", "surrogatepass")})


def check_tensors(case):
    number, how = case
    with folder() as place:
        (place / "m").write_bytes(files()["model.safetensors"])
        tensors = load_file(place / "m")
        name = sorted(tensors)[number % len(tensors)]
        tensor = tensors[name]
        if how.endswith("."):
            tensors = {how + n: t for n, t in tensors.items()}
        elif how == "twin":
            tensors["module." + name] = tensor + 1
        elif how == "extra":
            tensors["extra.weight"] = tensor.clone()
        else:
            del tensors[name]
            tensors |= {
                "drop": {},
                "rename": {f"{name}_": tensor},
                "nan": {name: tensor * float("nan")},
                "int8": {name: tensor.to(torch.int8)},
                "row": {name: tensor[1:].contiguous()},
            }[how]
        save_file(tensors, place / "m", {"format": "pt"})
        raw = (place / "m").read_bytes()
    found = check_folder(files() | {"model.safetensors": raw})
    assert found is None or how.endswith(".") or tensor.ndim > 2, (name, how)


def check_folder(contents):
    with folder() as place:
        for name, raw in contents.items():
            (place / name).write_bytes(raw)
        found = right_or_refused(lambda: load_all(place), ModelError)
        assert held(place) == contents
    if found is not None:
        tokenizer, model = found
        ids = torch.tensor([tokenizer("a b")["input_ids"]])
        with torch.no_grad():
            assert model(input_ids=ids).logits.isfinite().all()
    return found


test_any_bytes_in_a_folder_are_loaded_or_refused = quick(bytes_cases, check_bytes)
test_any_field_of_a_config_is_loaded_or_refused = quick(field_cases, check_fields)
test_any_change_of_a_tensor_is_refused_and_a_wrappers_prefix_is_none = quick(tensor_cases, check_tensors)
test_two_thousand_damages = long(bytes_cases, check_bytes)
test_two_thousand_fields = long(field_cases, check_fields)
test_two_thousand_tensors = long(tensor_cases, check_tensors)


@pytest.mark.parametrize("kind, case", [(kind, case) for kind, case in failed_once("models")])
def test_a_folder_that_failed_once(kind, case):
    {"bytes": check_bytes, "fields": check_fields, "tensors": check_tensors}[kind](case)
