"""A delta holds what trained and nothing else, comes back bit for bit, and goes on its own base alone."""

import ast
import copy
import inspect
import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tokenizers.normalizers import Lowercase
from transformers import AutoConfig

from helpers import files
from helpers.freezing.plans import COURSE_PLANS, FreezePlan
from helpers.freezing.selectors import PlanError
from helpers.models.loading import build_model, load_model, load_tokenizer, mini_config, weight_hash
from helpers.profiles import TINY
from helpers.training import checkpoints, deltas
from helpers.training import deltas as bases
from helpers.training.deltas import (
    DeltaError,
    base_record,
    load_delta,
    read_delta,
    save_delta,
    tokenizer_hash,
)
from helpers.training.guard import FreezeGuard
from support import tiny
from support.tiny import FAMILIES

MAIN = FreezePlan.freeze("attention", "embeddings")
SHAPE = tiny.SHAPE | {"hidden_size": 16, "num_heads": 2, "intermediate_size": 24}


def small(seed=1, **changes):
    return build_model(mini_config(**{**SHAPE, **changes}), seed=seed)


def of_family(name, tied, seed=1):
    return build_model(AutoConfig.for_model(name, **FAMILIES[name], tie_word_embeddings=tied), seed=seed)


@torch.no_grad()
def trained(base, plan, seed=0):
    """The base with every trainable tensor changed, as a run would leave it."""
    model, dice = copy.deepcopy(base), torch.Generator().manual_seed(seed)
    plan.apply(model)
    for p in model.parameters():
        if p.requires_grad:
            p.add_(torch.randn(p.shape, generator=dice))
    return model


def saved(folder, plan=MAIN, base=None, **options):
    base = base or small()
    model = trained(base, plan)
    return save_delta(model, plan, base, folder, **options), base, model


def same(one, other):
    pairs = zip(one.named_parameters(), other.named_parameters(), strict=True)
    return all(n == m and p.dtype == q.dtype and torch.equal(p, q) for (n, p), (m, q) in pairs)


# --- there and back ----------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_plan_of_every_family_comes_back_bit_for_bit(tmp_path, family, tied):
    base, n_done = of_family(family, tied), 0
    record, before = base_record(base), weight_hash(base)
    for name, plan in COURSE_PLANS.items():
        try:
            model = trained(base, plan)
        except PlanError:  # Llama's kind has no biases
            assert name == "only-biases"
            continue
        place = save_delta(model, plan, record, tmp_path / f"{name}.safetensors")
        again = load_delta(place, base)
        trainable = {n for n, p in model.named_parameters() if p.requires_grad}
        assert same(again, model) and set(load_file(place)) == trainable, name
        head, embedding = again.get_output_embeddings().weight, again.get_input_embeddings().weight
        assert (head is embedding) == tied
        n_done += 1
    assert n_done >= len(COURSE_PLANS) - 1
    assert weight_hash(base) == before, "the base was changed"


def test_special_numbers_keep_their_bits(tmp_path):
    base, odd = small(), torch.tensor([float("nan"), -0.0, float("inf"), 1e-45, 1 + 2**-23])
    model = trained(base, MAIN)
    with torch.no_grad():
        model.transformer.ln_f.weight[:5] = odd
    again = load_delta(save_delta(model, MAIN, base, tmp_path), base)
    bits = again.transformer.ln_f.weight[:5].view(torch.int32)
    assert torch.equal(bits, odd.view(torch.int32))


def test_half_precision_is_kept_as_it_is(tmp_path):
    base = small().to(torch.bfloat16)
    model = trained(base, MAIN)
    assert same(load_delta(save_delta(model, MAIN, base, tmp_path), base), model)


def test_a_folder_or_a_file_is_a_place(tmp_path):
    place, base, model = saved(tmp_path / "new" / "run")
    assert place == tmp_path / "new" / "run" / "delta.safetensors"
    other = save_delta(model, MAIN, base, tmp_path / "mine.safetensors")
    assert other.name == "mine.safetensors" and other.read_bytes() == place.read_bytes()
    assert same(load_delta(tmp_path / "new" / "run", base), load_delta(other, base))


def test_the_same_weights_give_the_same_file(tmp_path):
    assert saved(tmp_path / "a")[0].read_bytes() == saved(tmp_path / "b")[0].read_bytes()


def test_the_base_can_be_filled_in_place(tmp_path):
    place, base, model = saved(tmp_path)
    assert load_delta(place, base, in_place=True) is base and same(base, model)


def test_a_delta_says_what_it_is(tmp_path):
    place, base, model = saved(tmp_path)
    delta = read_delta(place)
    assert delta.plan == MAIN and delta.counts == {"mlp": 2 * (2 * 16 * 24 + 24 + 16), "norm": 2 * 64 + 32}
    assert delta.base.weight_hash == weight_hash(base) and delta.tuned_hash == weight_hash(model)
    assert sum(delta.counts.values()) == sum(t.numel() for t in delta.tensors.values())
    assert delta.n_parameters == sum(p.numel() for p in base.parameters())


def test_the_file_is_the_trained_tensors_and_a_small_header(tmp_path):
    place, _, model = saved(tmp_path, plan=FreezePlan.only("norms"))
    n_bytes = sum(4 * p.numel() for p in model.parameters() if p.requires_grad)
    assert n_bytes < place.stat().st_size < n_bytes + 300 * (len(list(model.parameters())) + 20)


def test_a_reader_may_name_the_roles_of_an_unknown_family(tmp_path):
    base, roles = small(), {"transformer.h.*.adapter.*": "mlp"}
    for block in base.transformer.h:
        block.adapter = torch.nn.Linear(3, 3)
    plan = FreezePlan.only("mlp")
    model = copy.deepcopy(base)
    plan.apply(model, roles)
    with torch.no_grad():
        model.transformer.h[0].adapter.bias.add_(1)
    assert same(load_delta(save_delta(model, plan, base, tmp_path, roles=roles), base), model)


def test_the_spelling_of_gpt_neos_gelu_does_not_make_another_base(tmp_path):
    place, base, model = saved(tmp_path)
    twin = small(activation_function="gelu_new")
    assert weight_hash(twin) == weight_hash(base) and same(load_delta(place, twin), model)


def test_the_shipped_model_and_its_tokenizer_come_back(tmp_path):
    base, tokenizer = load_model(TINY.model), load_tokenizer(TINY.model)
    place, _, model = saved(tmp_path, base=base, tokenizer=tokenizer)
    again = load_delta(place, load_model(TINY.model), tokenizer=tokenizer)
    assert same(again, model)
    model.save_pretrained(tmp_path / "whole")
    whole = (tmp_path / "whole" / "model.safetensors").stat().st_size
    share = sum(p.numel() for p in model.parameters() if p.requires_grad) / sum(
        p.numel() for p in model.parameters()
    )
    assert place.stat().st_size / whole == pytest.approx(share, abs=0.01)


# --- a broken freeze is not saved --------------------------------------------------


def test_a_frozen_tensor_that_moved_is_named_and_nothing_is_written(tmp_path):
    base = small()
    model = trained(base, MAIN)
    with torch.no_grad():
        model.transformer.h[1].attn.attention.q_proj.weight[0, 0] += 1e-7
    with pytest.raises(
        DeltaError, match=r"1 of 12 tensors.*h\.1\.attn\.attention\.q_proj\.weight\..*freezing_proof"
    ):
        save_delta(model, MAIN, base, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_plan_that_is_not_the_one_that_trained_is_refused(tmp_path):
    base = small()
    with pytest.raises(DeltaError, match="not the base's.*save with that plan"):
        save_delta(trained(base, FreezePlan.full()), MAIN, base, tmp_path)


def test_a_tie_that_broke_in_training_is_refused(tmp_path):
    base = small()
    model = trained(base, MAIN)
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    with pytest.raises(DeltaError, match="lm_head.weight is new.*tied"):
        save_delta(model, MAIN, base, tmp_path)


def test_another_precision_than_the_bases_is_refused(tmp_path):
    base = small()
    with pytest.raises(DeltaError, match="bfloat16.*float32.*precision"):
        save_delta(trained(base, MAIN).to(torch.bfloat16), MAIN, base, tmp_path)


def test_a_buffer_that_moved_is_refused(tmp_path):
    base = small()
    base.register_buffer("counter", torch.zeros(2))
    model = trained(base, MAIN)
    model.counter += 1
    with pytest.raises(DeltaError, match="counter"):
        save_delta(model, MAIN, base, tmp_path)


# --- the wrong base ----------------------------------------------------------------

OTHERS = {
    "other architecture": (lambda: of_family("gpt2", tied=True), "'gpt_neo' model, this is a 'gpt2'"),
    "other width": (lambda: small(hidden_size=32), "hidden_size was 16, here it is 32"),
    "other depth": (
        lambda: small(num_layers=4, attention_types=[[["global", "local"], 2]]),
        "num_layers was 2",
    ),
    "other window, the same shapes": (lambda: small(window_size=4), "window_size was 8, here it is 4"),
    "other epsilon, the same shapes": (lambda: small(layer_norm_epsilon=1e-6), "layer_norm_epsilon"),
    "an untied head": (lambda: small(tie_word_embeddings=False), "tie_word_embeddings was True"),
    "other weights": (
        lambda: small(seed=2),
        r"same shape but other weights in \d+ of 30 tensors: transformer.wte",
    ),
    "other precision": (lambda: small().to(torch.float16), "was float32 97x16, here it is float16"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_base_is_refused_with_the_difference_and_left_alone(tmp_path, name):
    make, words = OTHERS[name]
    place, other = saved(tmp_path)[0], make()
    before = weight_hash(other)
    with pytest.raises(DeltaError, match=words) as caught:
        load_delta(place, other, in_place=True)
    assert "belongs to another base" in str(caught.value) and "Load the base" in str(caught.value)
    assert weight_hash(other) == before


def test_one_changed_number_of_a_frozen_or_a_trained_tensor_makes_another_base(tmp_path):
    place, base, _ = saved(tmp_path)
    for name in ("transformer.wpe.weight", "transformer.h.0.mlp.c_fc.bias"):
        other = copy.deepcopy(base)
        with torch.no_grad():
            other.get_parameter(name)[0] += 1e-3
        with pytest.raises(DeltaError, match=f"other weights in 1 of 30 tensors: {name}"):
            load_delta(place, other)


def test_a_head_untied_by_hand_makes_another_base(tmp_path):
    place, base, _ = saved(tmp_path)
    base.lm_head.weight = torch.nn.Parameter(base.lm_head.weight.detach().clone())
    with pytest.raises(DeltaError, match="lm_head.weight is additional here"):
        load_delta(place, base)


def test_a_base_without_weights_is_refused(tmp_path):
    place, base, _ = saved(tmp_path)
    with pytest.raises(files.NoValuesError, match="on the meta device.*Load the model with its weights"):
        load_delta(place, base.to("meta"))


def test_settings_that_matter_in_training_alone_do_not_make_another_base(tmp_path):
    place, _, model = saved(tmp_path)
    assert same(load_delta(place, small(attention_dropout=0.1, use_cache=False, pad_token_id=0)), model)


def test_another_tokenizer_is_refused_and_padding_is_none(tmp_path):
    tokenizer, other = load_tokenizer(TINY.model), load_tokenizer(TINY.model)
    place, base, _ = saved(tmp_path, tokenizer=tokenizer)
    tokenizer.backend_tokenizer.enable_padding(length=8)
    tokenizer.backend_tokenizer.enable_truncation(max_length=8)
    load_delta(place, base, tokenizer=tokenizer)
    other.add_tokens(["<new>"])
    assert tokenizer_hash(other) != tokenizer_hash(tokenizer)
    with pytest.raises(DeltaError, match="another tokenizer"):
        load_delta(place, base, tokenizer=other)


def test_a_tokenizer_with_the_same_words_and_other_rules_is_another():
    """Its vocabulary alone would not tell that it reads a text in small letters."""
    tokenizer, other = load_tokenizer(TINY.model), load_tokenizer(TINY.model)
    other.backend_tokenizer.normalizer = Lowercase()
    assert other.get_vocab() == tokenizer.get_vocab()
    assert tokenizer_hash(other) != tokenizer_hash(tokenizer)


# --- damaged, edited, or something else --------------------------------------------


def header_and_body(place):
    raw = place.read_bytes()
    n = 8 + int.from_bytes(raw[:8], "little")
    return bytearray(raw), n


def test_every_flipped_bit_is_caught(tmp_path):
    base = small(
        vocab_size=7,
        hidden_size=4,
        num_layers=1,
        intermediate_size=4,
        num_heads=1,
        max_position_embeddings=4,
        attention_types=[[["global"], 1]],
    )
    place, _, _ = saved(tmp_path, plan=FreezePlan.only("biases"), base=base)
    raw, n = header_and_body(place)
    dice = torch.Generator().manual_seed(0)
    header = torch.randint(8 * n, (600,), generator=dice).tolist()
    body = torch.randint(8 * n, 8 * len(raw), (200,), generator=dice).tolist()
    for bit in [*header, *body, 0, 8 * n - 1, 8 * n, 8 * len(raw) - 1]:
        damaged = bytearray(raw)
        damaged[bit // 8] ^= 1 << bit % 8
        place.write_bytes(damaged)
        with pytest.raises(DeltaError):
            read_delta(place)


def test_a_delta_that_may_not_be_read_is_not_called_damaged(tmp_path, monkeypatch):
    place, base, _ = saved(tmp_path)

    def refuse(self, *args):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(DeltaError, match="cannot be read: Permission denied. Ask its owner"):
        load_delta(place, base)


@pytest.mark.parametrize("n_left", [0, 5, 8, 100, -1, -1000])
def test_a_file_cut_short_is_refused(tmp_path, n_left):
    place, base, _ = saved(tmp_path)
    place.write_bytes(place.read_bytes()[:n_left])
    with pytest.raises(DeltaError, match="cannot be read.*cut short.*copy or save it again"):
        load_delta(place, base)


def rewritten(place, change_tensors=None, change_record=None, sign=True):
    """The file with other content; signed again, as a careful forger would."""
    tensors = {n: t.clone() for n, t in load_file(place).items()}
    delta = read_delta(place)
    assert delta
    with deltas.safe_open(place, framework="pt") as file:
        record = json.loads(file.metadata()["delta"])
    if change_tensors:
        change_tensors(tensors)
    if change_record:
        change_record(record)
    if sign:
        record.pop("own_sha256")
        record["own_sha256"] = files.record_hash(record)
    save_file(tensors, place, {"delta": json.dumps(record)})


def test_an_edited_tensor_is_named(tmp_path):
    place, base, _ = saved(tmp_path)
    rewritten(place, lambda tensors: tensors["transformer.ln_f.weight"].add_(1e-3))
    with pytest.raises(DeltaError, match="damaged or edited: the hash of transformer.ln_f.weight"):
        load_delta(place, base)


def test_an_edited_record_is_refused(tmp_path):
    place, base, _ = saved(tmp_path)
    rewritten(place, change_record=lambda record: record["base"].update(weight_hash="0" * 64), sign=False)
    with pytest.raises(DeltaError, match="record does not fit its own hash"):
        load_delta(place, base)


def test_missing_and_additional_tensors_are_named_even_where_the_hashes_fit(tmp_path):
    def drop(tensors):
        del tensors["transformer.ln_f.bias"]

    def add(tensors):
        tensors["transformer.wte.weight"] = torch.zeros(97, 16)

    for change, words in ((drop, "ln_f.bias is missing"), (add, "wte.weight is not one of them")):
        place, base, _ = saved(tmp_path)
        rewritten(place, change)
        with pytest.raises(DeltaError, match="hash of transformer"):
            load_delta(place, base)
        hashes = {n: deltas.tensor_hash(t) for n, t in load_file(place).items()}
        place, base, _ = saved(tmp_path)
        rewritten(place, change, lambda record, hashes=hashes: record.update(tensors=hashes))
        with pytest.raises(DeltaError, match=f"does not hold the tensors.*{words}"):
            load_delta(place, base)


def test_an_unknown_format_version_is_named(tmp_path):
    place, base, _ = saved(tmp_path)
    rewritten(place, change_record=lambda record: record.update(format=99))
    with pytest.raises(DeltaError, match="format version 99; this course reads 1"):
        load_delta(place, base)


def test_a_whole_model_is_no_delta(tmp_path):
    save_file({"w": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(DeltaError, match="is no delta.*load_model"):
        load_delta(tmp_path / "model.safetensors", small())


def test_a_missing_file_is_said(tmp_path):
    with pytest.raises(DeltaError, match="There is no delta.*run folder"):
        load_delta(tmp_path, small())


class Trap:
    def __reduce__(self):
        return os.mkdir, (self.place,)


def test_a_pickle_is_refused_and_never_run(tmp_path):
    trap = Trap()
    trap.place = str(tmp_path / "sprung")
    (tmp_path / "delta.safetensors").write_bytes(pickle.dumps(trap))
    with pytest.raises(DeltaError, match="cannot be read"):
        load_delta(tmp_path, small())
    torch.save(trap, tmp_path / "delta.safetensors")
    with pytest.raises(DeltaError, match="cannot be read"):
        load_delta(tmp_path, small())
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("module", [deltas, bases, checkpoints], ids=lambda m: m.__name__)
def test_nothing_is_unpickled_and_no_remote_code_runs(module):
    tree = ast.parse(inspect.getsource(module))
    imported = {
        a.name
        for node in ast.walk(tree)
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for a in node.names
    }
    called = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    words = {node.arg for node in ast.walk(tree) if isinstance(node, ast.keyword)}
    assert not imported & {"pickle", "marshal", "shelve", "importlib", "subprocess"}
    assert not called & {"torch.load", "torch.save", "eval", "exec", "compile", "__import__"}
    assert "trust_remote_code" not in words


# --- writing -----------------------------------------------------------------------


def test_a_disk_that_fills_leaves_the_older_delta_whole(tmp_path, monkeypatch):
    place, base, model = saved(tmp_path)

    def full(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(DeltaError, match="Could not save.*No space left.*intact"):
        save_delta(trained(base, MAIN, seed=5), MAIN, base, tmp_path)
    assert same(load_delta(place, base), model)
    assert [p.name for p in tmp_path.iterdir()] == ["delta.safetensors"]


def test_another_file_in_a_deltas_place_is_not_overwritten(tmp_path):
    base = small()
    base.save_pretrained(tmp_path)
    place = tmp_path / "model.safetensors"
    before = place.read_bytes()
    with pytest.raises(DeltaError, match="is no delta of this course: it is not overwritten"):
        save_delta(trained(base, MAIN), MAIN, base, place)
    assert place.read_bytes() == before
    model = small()
    with pytest.raises(DeltaError, match="is no delta of this course"):
        FreezeGuard(model, MAIN, delta=place)  # before the training, not after it
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_damaged_delta_under_its_own_name_is_written_anew(tmp_path):
    (tmp_path / "delta.safetensors").write_text("half of it")
    place, base, model = saved(tmp_path)
    assert same(load_delta(place, base), model)


def test_a_file_of_another_name_that_cannot_be_read_is_not_overwritten(tmp_path):
    (tmp_path / "thesis.safetensors").write_text("half of it")
    with pytest.raises(DeltaError, match="is no delta of this course: it is not overwritten"):
        saved(tmp_path / "thesis.safetensors")
    assert (tmp_path / "thesis.safetensors").read_text() == "half of it"


def test_a_place_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(DeltaError, match="Could not save the delta.*choose another place"):
        saved(tmp_path / "file" / "run")


def signed_again(place, change, **tensors):
    """A delta file whose record and tensors were changed, and whose hashes fit all the same."""
    with safe_open(place, framework="pt") as file:
        record = json.loads(file.metadata()["delta"])
        held = {name: file.get_tensor(name) for name in file.keys()} | tensors  # noqa: SIM118
    record.pop("own_sha256")
    record["tensors"] = {name: deltas.tensor_hash(tensor) for name, tensor in held.items()}
    change(record)
    record["own_sha256"] = files.record_hash(record)
    save_file(held, place, {"delta": json.dumps(record)})


@pytest.mark.parametrize(
    "tensor",
    [torch.zeros(7), torch.zeros(1), torch.zeros(16), torch.zeros(16).double()],
    ids=["shape", "broadcast", "values", "type"],
)
def test_a_delta_whose_hash_fits_and_whose_content_does_not_leaves_the_base_as_it_was(tmp_path, tensor):
    place, _, base = saved(tmp_path, plan=FreezePlan.only("norms"))
    signed_again(place, lambda record: None, **{"transformer.ln_f.bias": tensor})
    before = weight_hash(base)
    with pytest.raises(DeltaError):
        load_delta(place, base, in_place=True)
    assert weight_hash(base) == before


@pytest.mark.parametrize(
    "change",
    [
        lambda r: r.pop("plan"),
        lambda r: r.pop("tensors"),
        lambda r: r.pop("base"),
        lambda r: r.pop("format"),
        lambda r: r.update(plan=[1]),
        lambda r: r.update(tensors=[1]),
        lambda r: r.update(base=None),
        lambda r: r["plan"].update(way="sideways"),
        lambda r: r["base"].update(more=1),
        lambda r: r.update(tuned_hash=None),
        lambda r: r["base"].update(tensors=[1]),
        lambda r: r["base"].update(config="x"),
        lambda r: r.update(roles=[1]),
    ],
)
def test_a_record_that_lacks_what_a_delta_needs_is_refused(tmp_path, change):
    place, _, base = saved(tmp_path, plan=FreezePlan.only("norms"))
    signed_again(place, change)
    before = weight_hash(base)
    with pytest.raises(DeltaError):
        load_delta(place, base, in_place=True)
    assert weight_hash(base) == before
