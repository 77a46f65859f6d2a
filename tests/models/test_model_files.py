"""A model folder is right, or refused in one line that says what is wrong, before memory is taken or code is run."""

import builtins
import json
import shutil
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import LlamaConfig

from helpers.costs.step_cost import BudgetError, budget
from helpers.freezing import lora
from helpers.freezing.plans import FreezePlan
from helpers.models.loading import (
    build_model,
    load_config,
    load_model,
    load_tokenizer,
    mini_config,
    weight_hash,
)
from helpers.models.losses import token_losses
from helpers.models.model_files import ModelError, require_loaded, require_memory
from publishing import families

IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SHAPE = IDS | {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
MINI = Path(__file__).parents[2] / "data" / "gpt-neo-mini"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 12\n"
UP = "model.layers.0.mlp.up_proj.weight"


@pytest.fixture
def folder(tmp_path):
    build_model(LlamaConfig(**SHAPE)).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def change_tensors(folder, change):
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


def change_config(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def refusal(load, folder) -> str:
    """The one line that a refusal is, in a second."""
    began = time.perf_counter()
    with pytest.raises(ModelError) as caught:
        load(folder)
    assert time.perf_counter() - began < 3
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- tensors -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda t: {n: v for n, v in t.items() if n != UP}, ["1 tensor", UP, "missing"]),
        (
            lambda t: {n.replace("q_proj", "query"): v for n, v in t.items()},
            [
                "2 tensors",
                "layers.0.self_attn.q_proj.weight",
                "missing",
                "layers.1.self_attn.query.weight",
                "not part",
            ],
        ),
        (
            lambda t: t | {"model.extra.weight": torch.ones(3)},
            ["1 tensor (model.extra.weight) not part of this model"],
        ),
        (lambda t: t | {"model.norm.weight": torch.ones(3)}, ["model.norm.weight 3, the model's is 32"]),
        (lambda t: {n: v for n, v in t.items() if n != "lm_head.weight"}, ["lm_head.weight", "missing"]),
        (lambda t: t | {UP: t[UP].to(torch.int8)}, ["quantised", UP]),
        (
            lambda t: t | {"model.layers.0.mlp.up_proj.qweight": torch.ones(3, 3, dtype=torch.int32)},
            ["quantised"],
        ),
        (
            lambda t: t | {"model.norm.weight": t["model.norm.weight"] * float("nan")},
            ["NaN", "model.norm.weight"],
        ),
        (lambda t: t | {UP: t[UP] * float("inf")}, ["infinite", UP]),
    ],
    ids=["missing", "renamed", "left-over", "shape", "untied-head", "int8", "gptq", "nan", "inf"],
)
def test_tensors_that_do_not_fit_are_counted_and_named(folder, change, words):
    change_tensors(folder, change)
    message = refusal(load_model, folder)
    assert all(word in message for word in words), message


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "module._orig_mod.", "_orig_mod.module."])
def test_a_wrappers_prefix_is_stripped_and_the_model_loads_bit_for_bit(folder, prefix):
    wanted = weight_hash(load_model(folder))
    change_tensors(folder, lambda t: {prefix + name: tensor for name, tensor in t.items()})
    loaded = load_model(folder)
    assert weight_hash(loaded) == wanted
    loaded.save_pretrained(folder)
    assert set(load_file(folder / "model.safetensors")) == {n for n, _ in loaded.named_parameters()}


def test_a_compiled_blocks_prefix_in_the_middle_of_a_name_is_stripped(folder):
    wanted = weight_hash(load_model(folder))
    change_tensors(folder, lambda t: {n.replace("layers.1.", "layers.1._orig_mod."): v for n, v in t.items()})
    assert weight_hash(load_model(folder)) == wanted


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod."])
def test_a_tensor_with_and_without_a_wrappers_prefix_is_not_guessed(folder, prefix):
    change_tensors(folder, lambda t: t | {prefix + UP: t[UP] + 1})
    message = refusal(load_model, folder)
    assert "1 tensor" in message and UP in message and "more than once" in message


def test_a_tensor_in_two_files_is_not_guessed(folder):
    whole = load_file(folder / "model.safetensors")
    load_model(folder).save_pretrained(folder, max_shard_size="20KB")
    (folder / "model.safetensors").unlink()
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    other = folder / next(file for file in index.values() if file != index[UP])
    save_file(load_file(other) | {UP: whole[UP] + 1}, other, metadata={"format": "pt"})
    message = refusal(load_model, folder)
    assert UP in message and "more than once" in message


def test_a_tied_head_that_is_not_in_the_file_is_none_missing(folder):
    build_model(LlamaConfig(**SHAPE, tie_word_embeddings=True)).save_pretrained(folder)
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    model = load_model(folder)
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_masks_that_old_gpt_neo_files_hold_are_none_left_over(tmp_path):
    config = mini_config(
        vocab_size=97,
        hidden_size=48,
        num_layers=2,
        num_heads=4,
        intermediate_size=96,
        max_position_embeddings=32,
        window_size=8,
        attention_types=[[["global", "local"], 1]],
    )
    build_model(config).save_pretrained(tmp_path)
    where = "transformer.h.0.attn.attention"
    change_tensors(
        tmp_path,
        lambda t: (
            t
            | {
                f"{where}.bias": torch.ones(1, 1, 32, 32, dtype=torch.bool),
                f"{where}.masked_bias": torch.tensor(-1e9),
            }
        ),
    )
    assert weight_hash(load_model(tmp_path)) == weight_hash(build_model(config))


def test_a_model_saved_with_lora_inside_is_refused_by_name(folder):
    model = load_model(folder)
    lora.insert(model, "q", rank=2, alpha=4.0)
    model.save_pretrained(folder)
    message = refusal(load_model, folder)
    assert (
        "LoRA" in message
        and "4 tensors" in message
        and "q_proj.lora_A" in message
        and "load_adapter" in message
    )


def test_a_peft_adapter_is_refused_as_one(folder):
    (folder / "adapter_config.json").write_text("{}")
    assert "PEFT adapter" in refusal(load_model, folder)
    (folder / "config.json").unlink()
    assert "PEFT adapter" in refusal(load_model, folder)


# --- files -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spoil, words",
    [
        (lambda p: (p / "model.safetensors").write_text(POINTER), ["git-lfs pointer", "git lfs pull"]),
        (lambda p: (p / "config.json").write_text(POINTER), ["config.json is a git-lfs pointer"]),
        (
            lambda p: (p / "model.safetensors").write_bytes((p / "model.safetensors").read_bytes()[:3000]),
            ["half downloaded", "3,000 bytes"],
        ),
        (lambda p: (p / "model.safetensors").write_bytes(b""), ["model.safetensors is empty"]),
        (
            lambda p: (p / "model.safetensors").rename(p / "model.safetensors.incomplete"),
            ["download that did not end"],
        ),
        (lambda p: (p / "model.safetensors").rename(p / "pytorch_model.bin"), ["no weights"]),
        (lambda p: (p / "generation_config.json").write_text("[1]"), ["generation_config.json", "list"]),
    ],
    ids=["lfs", "lfs-config", "half", "empty", "incomplete", "pickle", "generation"],
)
def test_files_that_are_not_what_they_seem_are_called_what_they_are(folder, spoil, words):
    spoil(folder)
    message = refusal(load_model, folder)
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    "name, load",
    [
        ("config.json", load_model),
        ("generation_config.json", load_model),
        ("model.safetensors", load_model),
        ("tokenizer_config.json", load_tokenizer),
    ],
)
def test_a_file_that_may_not_be_read_is_named(folder, name, load, monkeypatch):
    """safetensors lets the owner of a file alone read it: another user of the machine met a traceback."""
    (folder / "tokenizer_config.json").write_text("{}")
    opens = Path.open

    def refuse(self, *args, **kwargs):
        if self.name == name:
            raise PermissionError(13, "Permission denied", str(self))
        return opens(self, *args, **kwargs)

    monkeypatch.setattr(Path, "open", refuse)
    assert f"{name} cannot be read (Permission denied). Ask its owner" in refusal(load, folder)


@pytest.mark.parametrize(
    "index, word",
    [
        ({"weight_map": {UP: "../model.safetensors"}}, "not opened"),
        ({"weight_map": {UP: "pytorch_model.bin"}}, "not opened"),
        ({"weight_map": {UP: "model-00001-of-00002.safetensors"}}, "of its 1 file of weights, 1 is missing"),
        ({"weight_map": [1]}, "weight_map"),
        (None, "NoneType"),
        ([1], "list"),
    ],
)
def test_an_index_stays_in_its_folder_and_names_files_that_are_there(folder, index, word):
    (folder / "model.safetensors").rename(folder.parent / "model.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert word in refusal(load_model, folder)


def test_a_link_to_weights_that_are_not_there_is_called_one(folder):
    """As in a hub's cache whose blobs were deleted."""
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(folder / "blobs" / "gone")
    message = refusal(load_model, folder)
    assert "is a link to" in message and "gone" in message


@pytest.mark.parametrize("field", ["return_dict", "output_hidden_states", "output_attentions"])
def test_in_what_form_a_model_answers_changes_no_loss(folder, field):
    ids = torch.arange(12).reshape(1, 12)
    wanted = token_losses(load_model(folder), ids)
    change_config(folder, **{field: field != "return_dict"})
    assert torch.equal(token_losses(load_model(folder), ids), wanted)


def test_a_head_of_its_own_under_a_config_that_says_tied_is_told_by_the_config(folder):
    """transformers then ties nothing and leaves the config; a budget would count the head as the embedding."""
    change_config(folder, tie_word_embeddings=True)
    model = load_model(folder)
    assert model.lm_head.weight is not model.model.embed_tokens.weight
    assert model.config.tie_word_embeddings is False
    plan = FreezePlan.freeze("attention", "embeddings")
    ledger, found = plan.apply(model), budget(model.config, plan, batch=2, length=8)
    assert (found.n_parameters, found.n_trainable) == (ledger.n_parameters, ledger.n_trainable)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "codegen"])
def test_a_config_says_what_it_said_where_the_files_agree_with_it(tmp_path, kind):
    for tied in (False, True):
        config = families.config_of(kind)
        config.tie_word_embeddings = tied
        build_model(config, attention="eager").save_pretrained(tmp_path / str(tied))
        assert load_model(tmp_path / str(tied), attention="eager").config.tie_word_embeddings is tied


def test_a_model_in_several_files_loads(folder):
    model = load_model(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="20KB")
    assert len(list(folder.glob("*.safetensors"))) > 1 and weight_hash(load_model(folder)) == weight_hash(
        model
    )


@pytest.mark.parametrize("name", ["", "\0", "x" * 5000])
@pytest.mark.parametrize("load", [load_config, load_model, load_tokenizer])
def test_a_name_that_no_folder_can_have_is_refused(load, name):
    refusal(load, name)


# --- code of others ----------------------------------------------------------------


def test_a_folder_with_code_of_its_own_is_refused_without_a_question(folder, monkeypatch):
    monkeypatch.setattr(builtins, "input", lambda *a: pytest.fail("a question on stdin"))
    code = {
        "AutoConfig": "mine.Config",
        "AutoModelForCausalLM": "mine.Model",
        "AutoTokenizer": ["mine.Tokenizer", None],
    }
    (folder / "mine.py").write_text("raise SystemExit('code of a folder ran')")
    change_config(folder, model_type="mine", auto_map=code)
    assert "code of its own" in refusal(load_model, folder)
    (folder / "tokenizer_config.json").write_text(json.dumps({"auto_map": code, "tokenizer_class": "Mine"}))
    refusal(load_tokenizer, folder)


# --- configs -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields, word",
    [
        ({"hidden_size": 10**9}, "parameters"),
        ({"num_hidden_layers": 10**9}, "layers"),
        ({"vocab_size": 10**12}, "param"),
        ({"intermediate_size": 10**15}, "parameters"),
        ({"max_position_embeddings": 10**13}, "parameters"),
        ({"max_position_embeddings": 0}, "positions"),
        ({"hidden_size": -32}, "cannot|no model"),
        ({"num_attention_heads": 5}, "heads"),
        ({"num_key_value_heads": 3}, "3 key/value heads"),
        ({"hidden_act": "teapot"}, "activation 'teapot'"),
        ({"attention_dropout": 2}, "attention_dropout is 2"),
        ({"bos_token_id": 97}, "bos_token_id is 97"),
        ({"eos_token_id": [2, 500]}, "eos_token_id is 500"),
        ({"pad_token_id": -7}, "pad_token_id is -7"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps is nan"),
        ({"hidden_size": "32"}, "hidden_size"),
        ({"hidden_size": None}, "hidden_size"),
        ({"model_type": ["llama"]}, "config"),
        ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}, "bitsandbytes"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "gptq"),
        ({"model_type": "t5"}, "encoder-decoder"),
        ({"model_type": "gemma3"}, "vision_config"),
        ({"model_type": "bert"}, "both"),
    ],
)
@pytest.mark.parametrize("load", [load_config, load_model])
def test_a_config_that_cannot_be_right_is_refused_in_a_line(folder, load, fields, word):
    change_config(folder, **fields)
    assert any(w in refusal(load, folder) for w in word.split("|"))


@pytest.mark.parametrize(
    "text", ["null", "5", "[1]", '"text"', "{}", "", "[" * 100_000, '{"a":' * 20_000, "\x00"]
)
def test_a_damaged_config_is_refused_in_a_line(folder, text):
    (folder / "config.json").write_text(text)
    refusal(load_model, folder)


@pytest.mark.parametrize("kind", ["gpt_neo", "llama"])
def test_a_config_without_sizes_does_not_fill_the_memory_with_random_weights(folder, kind):
    (folder / "config.json").write_text(json.dumps({"model_type": kind}))
    assert "describes" in refusal(load_model, folder)


def test_random_weights_of_an_enormous_model_are_not_made(monkeypatch):
    monkeypatch.setattr("helpers.models.model_files.machine_memory", lambda: 2**30)
    for config, word in (
        (LlamaConfig(), "GiB"),
        (LlamaConfig(**SHAPE | {"hidden_size": 2**30}), "parameters"),
    ):
        with pytest.raises(ModelError, match=word):
            build_model(config)


def test_a_model_without_numbers_needs_no_memory(monkeypatch):
    monkeypatch.setattr("helpers.models.model_files.machine_memory", lambda: 2**30)
    with FakeTensorMode():
        assert sum(p.numel() for p in build_model(LlamaConfig()).parameters()) > 6e9


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_a_file_of_every_kind_of_floats_is_loaded(folder, dtype):
    change_tensors(folder, lambda tensors: {name: t.to(dtype) for name, t in tensors.items()})
    assert load_model(folder).get_output_embeddings().weight.dtype is torch.float32


def test_a_model_as_large_as_the_memory_is_made_and_one_that_is_larger_is_refused_with_both_sizes(
    monkeypatch,
):
    shape = torch.nn.Linear(2**20, 512, bias=False, device="meta")  # 2 GiB in float32
    shape.register_buffer("table", torch.empty(2**28, dtype=torch.int16, device="meta"))  # and half a one
    monkeypatch.setattr("helpers.models.model_files.machine_memory", lambda: 2.5 * 2**30)
    require_memory(shape, "'here'")
    monkeypatch.setattr("helpers.models.model_files.machine_memory", lambda: 1.25 * 2**30)
    with pytest.raises(
        ModelError, match=r"^'here' needs 2\.5 GiB in float32, and this machine has 1\.2 GiB\."
    ):
        require_memory(shape, "'here'")


def test_a_budget_refuses_a_batch_and_a_config_by_size_first():
    for config, batch, error in (
        (LlamaConfig(**SHAPE), 10**6, BudgetError),
        (LlamaConfig(**SHAPE | {"num_hidden_layers": 10**9}), 1, ModelError),
        (LlamaConfig(**SHAPE | {"hidden_act": "teapot"}), 1, ModelError),
    ):
        began = time.perf_counter()
        with pytest.raises(error):
            budget(config, FreezePlan.full(), batch, 16)
        assert time.perf_counter() - began < 3


# --- tokenizers --------------------------------------------------------------------


@pytest.fixture
def mini(tmp_path):
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(MINI / name, tmp_path)
    return tmp_path


def edited(path, change):
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"])
@pytest.mark.parametrize("text", ["[1]", "null", "5", '{"half": ', "", POINTER, "[" * 100_000])
def test_a_damaged_tokenizer_file_is_named(mini, name, text):
    (mini / name).write_text(text)
    assert name in refusal(load_tokenizer, mini)


@pytest.mark.parametrize(
    "change",
    [
        lambda r: r.update(model=[1]),
        lambda r: r["model"].update(vocab=[1]),
        lambda r: r["model"].pop("merges"),
        lambda r: r["model"].update(type="teapot"),
        lambda r: r.clear(),
    ],
)
def test_a_tokenizer_whose_parts_are_damaged_is_refused(mini, change):
    edited(mini / "tokenizer.json", change)
    refusal(load_tokenizer, mini)


def test_a_tokenizer_without_an_entry_is_told_which(mini):
    edited(mini / "tokenizer.json", lambda r: r.clear())
    assert "the entry 'added_tokens' is missing" in refusal(load_tokenizer, mini)


def test_a_folder_whose_name_is_no_text_is_told_what_to_set(mini, tmp_path):
    """A name in another encoding than Python's: the libraries in Rust read UTF-8 alone."""
    strange = tmp_path / "B\udcfccher"
    try:
        strange.mkdir()
    except (OSError, UnicodeEncodeError):
        pytest.skip("this system's file names are text alone")
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(mini / name, strange)
    said = refusal(load_tokenizer, strange)
    assert "B\\udcfccher' cannot be loaded: the folder's name is no text" in said and "PYTHONUTF8=1" in said


@pytest.mark.parametrize("stays", [True, False], ids=["tokenizer_config.json stays", "it is gone too"])
@pytest.mark.parametrize("kind", [None, "LlamaTokenizer", "GPT2Tokenizer", "PreTrainedTokenizerFast"])
def test_a_tokenizer_whose_words_are_missing_is_told_which_file(mini, kind, stays):
    """transformers fails, asks for other packages, or makes an empty one, by the class that the files name."""
    (mini / "tokenizer.json").unlink()
    edited(mini / "tokenizer_config.json", lambda r: r.update(tokenizer_class=kind))
    if not stays:
        (mini / "tokenizer_config.json").unlink()
    assert "no tokenizer files (tokenizer.json, or vocab.json" in refusal(load_tokenizer, mini)
    (mini / "tokenizer.model").write_bytes(
        b"\n\x0e\n\x05<unk>\x15\0\0\0\0\x18\x02"
    )  # as older Llama folders have it
    said = refusal(load_tokenizer, mini)
    assert "its tokenizer is in tokenizer.model" in said and "which writes tokenizer.json" in said


@pytest.mark.parametrize("name", ["_orig_mod.lm_head.weight", "module.lm_head.weight"])
def test_a_model_of_the_hub_with_a_wrappers_names_says_how_to_read_it(name):
    report = {"unexpected_keys": {name}, "missing_keys": {"lm_head.weight"}, "mismatched_keys": set()}
    with pytest.raises(ModelError, match="into a folder, and give that folder"):
        require_loaded(
            build_model(mini_config(num_layers=1, attention_types=[[["global"], 1]])), report, "some/model"
        )


def test_a_tokenizer_with_more_tokens_than_the_embedding_has_rows_is_refused(mini):
    assert len(load_tokenizer(mini)) == 4096
    change_config(mini, vocab_size=4095)
    assert "up to id 4,095" in refusal(load_tokenizer, mini) and "4,095 rows" in refusal(load_tokenizer, mini)
