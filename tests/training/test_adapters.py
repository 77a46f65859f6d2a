"""A delta goes home bit for bit: through stock PEFT, and merged through plain transformers in a process of its own."""

import copy
import json
import shlex
import subprocess
import sys
import warnings

import pytest
import torch
from peft import PeftModel
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from helpers.freezing import COURSE_PLANS, FreezePlan, PlanError
from helpers.models import build_model, build_on_meta, load_model, load_tokenizer, weight_hash
from helpers.profiles import TINY
from helpers.training import adapters, export_merged, export_peft, import_peft, load_delta, save_delta
from helpers.training.deltas import DeltaError
from publishing.cli import main
from support import tiny
from support.tiny import FAMILIES

MAIN = FreezePlan.freeze("attention", "embeddings")
SIX = ("gpt_neo", "llama", "gpt2", "opt", "gpt_neox", "qwen2")
IDS = torch.arange(2, 26).reshape(2, 12)
WEIGHTS = "adapter_model.safetensors"


def of_family(name, tied=True, seed=1):
    return build_model(AutoConfig.for_model(name, **FAMILIES[name], tie_word_embeddings=tied), seed=seed)


@torch.no_grad()
def trained(base, plan):
    """The base with every trainable tensor changed, as a run would leave it."""
    model, rng = copy.deepcopy(base), torch.Generator().manual_seed(0)
    plan.apply(model)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=rng))
    return model


def made(folder, plan=MAIN, base=None):
    """A delta and its adapter: base, tuned model, both folders."""
    base = base if base is not None else build_model(tiny.config())
    model = trained(base, plan)
    save_delta(model, plan, base, folder / "run")
    export_peft(folder / "run", base, folder / "adapter")
    return base, model, folder / "run", folder / "adapter"


@torch.no_grad()
def logits(model):
    return model.eval()(input_ids=IDS).logits


def by_stock_peft(base, folder):
    """What peft alone loads; it warns about layers that it does not count, and about biases without a weight."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return PeftModel.from_pretrained(copy.deepcopy(base), str(folder))


def same_state(one, other):
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("family", SIX)
def test_every_plan_goes_through_stock_peft_bit_for_bit(tmp_path, family, tied):
    base = of_family(family, tied)
    for key, plan in COURSE_PLANS.items():
        try:
            _, model, _, adapter = made(tmp_path / key, plan, base)
        except PlanError:
            assert key == "only-biases" and family == "llama"  # it has none
            continue
        peft = by_stock_peft(base, adapter)
        assert torch.equal(logits(peft), logits(model)), key
        assert same_state(peft.merge_and_unload(), model), key
        assert weight_hash(import_peft(adapter, base)) == weight_hash(model), key


def test_all_eleven_plans_are_tried():
    assert len(COURSE_PLANS) == 11


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("plan", [MAIN, FreezePlan.only("biases"), FreezePlan.full()], ids=lambda p: p.slug)
def test_the_adapter_holds_the_delta_s_tensors_and_of_a_tied_head_a_second_copy(tmp_path, plan, tied):
    base, _, run, adapter = made(tmp_path, plan, build_model(tiny.config(tie_word_embeddings=tied)))
    delta, stored = load_file(run / "delta.safetensors"), load_file(adapter / WEIGHTS)
    n_delta, n_stored = (sum(t.nbytes for t in one.values()) for one in (delta, stored))
    head = base.lm_head.weight.nbytes if tied and plan == FreezePlan.full() else 0
    assert n_stored == n_delta + head


def test_without_a_tied_head_the_files_differ_by_less_than_a_hundredth(tmp_path):
    base = build_model(tiny.config(hidden_size=64, intermediate_size=1024))
    _, _, run, adapter = made(tmp_path, MAIN, base)
    delta = (run / "delta.safetensors").stat().st_size
    assert (adapter / WEIGHTS).stat().st_size == pytest.approx(delta, rel=0.01)


def test_bfloat16_goes_through_as_it_is(tmp_path):
    base, model, _, adapter = made(tmp_path, MAIN, build_model(tiny.config()).bfloat16())
    assert same_state(by_stock_peft(base, adapter).merge_and_unload(), model)
    assert weight_hash(import_peft(adapter, base)) == weight_hash(model)


def test_only_the_names_of_the_base_are_read_for_the_export(tmp_path):
    base, _, run, adapter = made(tmp_path)
    export_peft(run, build_on_meta(base.config), tmp_path / "other", base_name="somewhere/base")
    mine, theirs = load_file(adapter / WEIGHTS), load_file(tmp_path / "other" / WEIGHTS)
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)
    config = json.loads((tmp_path / "other" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "somewhere/base" and config["peft_type"] == "LN_TUNING"


def test_another_base_is_refused_and_left_as_it_is_where_peft_says_nothing(tmp_path):
    _, model, _, adapter = made(tmp_path)
    other = build_model(tiny.config(), seed=7)
    before = weight_hash(other)
    with pytest.raises(DeltaError, match="belongs to another base: same shape but other weights"):
        import_peft(adapter, other, in_place=True)
    assert weight_hash(other) == before
    assert not torch.equal(logits(by_stock_peft(other, adapter)), logits(model))


def test_the_record_of_the_base_is_in_the_adapter(tmp_path):
    base, _, _, adapter = made(tmp_path)
    with safe_open(adapter / WEIGHTS, framework="pt") as file:
        record = json.loads(file.metadata()["delta"])
    assert record["base"]["weight_hash"] == weight_hash(base)


# --- what is refused -----------------------------------------------------------------


def rewritten(adapter, change):
    """The adapter with its tensors changed by hand."""
    with safe_open(adapter / WEIGHTS, framework="pt") as file:
        header = file.metadata()
    tensors = load_file(adapter / WEIGHTS)
    change(tensors)
    save_file(tensors, adapter / WEIGHTS, header)


def test_a_changed_missing_or_added_tensor_is_refused(tmp_path):
    base, _, _, adapter = made(tmp_path, FreezePlan.full())
    whole = (adapter / WEIGHTS).read_bytes()
    name = "base_model.model.transformer.h.0.mlp.c_fc.ln_tuning_layers.weight"
    head = "base_model.model.lm_head.ln_tuning_layers.weight"
    cases = {
        "the hash of transformer.h.0.mlp.c_fc.weight does not fit": lambda t: t[name].add_(1),
        "the hash of transformer.h.0.mlp.c_fc.weight does": lambda t: t.pop(name),
        "lm_head.weight is no tensor of the delta": lambda t: t[head].add_(1),
        "twin.weight is no tensor of the delta": lambda t: t.update({"twin.weight": torch.zeros(3)}),
    }
    for message, change in cases.items():
        (adapter / WEIGHTS).write_bytes(whole)
        rewritten(adapter, change)
        with pytest.raises(DeltaError, match=message):
            import_peft(adapter, base)


def test_an_adapter_of_another_hand_and_an_empty_folder_are_refused(tmp_path):
    base, _, run, adapter = made(tmp_path)
    save_file(load_file(adapter / WEIGHTS), adapter / WEIGHTS)
    with pytest.raises(DeltaError, match="this course did not write: it has no record of its base"):
        import_peft(adapter, base)
    with pytest.raises(DeltaError, match="There is no adapter in"):
        import_peft(tmp_path / "empty", base)
    with pytest.raises(DeltaError, match="There is no delta"):
        export_peft(tmp_path / "empty", base, tmp_path / "out")
    with pytest.raises(DeltaError, match=r"this one has no transformer\.h\.1\.ln_1\.bias"):
        export_peft(
            run, build_model(tiny.config(num_layers=1, attention_types=[[["global"], 1]])), tmp_path / "out"
        )
    assert not (tmp_path / "out").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(DeltaError, match="Could not write into"):
        export_peft(run, base, tmp_path / "file")


@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe"])
def test_experts_that_peft_could_not_put_back_are_refused_and_can_be_merged(family, tmp_path):
    """PEFT loaded such an adapter, and its merge_and_unload stopped with an AttributeError."""
    base = of_family(family, tied=False)
    model = trained(base, MAIN)
    save_delta(model, MAIN, base, tmp_path / "run")
    with pytest.raises(
        DeltaError, match=r"layers\.0\.mlp\.experts.* has no tensor of the name weight.* export_merged"
    ):
        export_peft(tmp_path / "run", base, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()
    merged = AutoModelForCausalLM.from_pretrained(export_merged(tmp_path / "run", base, tmp_path / "merged"))
    assert same_state(merged, model)


def test_a_module_within_another_that_trains_is_refused(tmp_path):
    base = build_model(tiny.config())
    base.transformer.h[0].mlp.scale = torch.nn.Parameter(torch.ones(3))
    plan, roles = FreezePlan.only("mlp"), {"transformer.h.0.mlp.scale": "mlp"}
    save_delta(base, plan, base, tmp_path, roles=roles)
    with pytest.raises(DeltaError, match=r"transformer\.h\.0\.mlp\.c_fc, .* lies within another module"):
        export_peft(tmp_path, base, tmp_path / "adapter")


# --- merged --------------------------------------------------------------------------

READ_PLAINLY = """
import sys, torch
from transformers import AutoModelForCausalLM
for folder in sys.argv[1:]:
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    assert model.dtype == torch.float32
    with torch.no_grad():
        torch.save(model(input_ids=torch.arange(2, 26).reshape(2, 12)).logits, folder + "/logits.pt")
assert not any(name.startswith("helpers") for name in sys.modules)
"""


def test_a_merged_model_is_read_by_plain_transformers_in_a_fresh_process(tmp_path):
    tuned = {}
    for family in SIX:
        base = of_family(family)
        model = trained(base, MAIN)
        save_delta(model, MAIN, base, tmp_path / family)
        tuned[export_merged(tmp_path / family, base, tmp_path / f"{family}-merged")] = model
    command = [sys.executable, "-c", READ_PLAINLY, *map(str, tuned)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for folder, model in tuned.items():
        difference = (torch.load(folder / "logits.pt") - logits(model)).abs().max()
        assert difference < 2e-5, folder.name


def test_a_merged_model_can_be_cast_each_number_once(tmp_path):
    base, model, run, _ = made(tmp_path)
    before = weight_hash(base)
    export_merged(run, base, tmp_path / "merged", dtype=torch.bfloat16, tokenizer=load_tokenizer(TINY.model))
    assert weight_hash(base) == before
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert again.dtype == torch.bfloat16
    assert same_state(again, copy.deepcopy(model).bfloat16())
    assert (tmp_path / "merged" / "tokenizer.json").is_file()
    rights = {path.stat().st_mode for path in (tmp_path / "merged").iterdir()}
    assert len(rights) == 1, "a server may run as another user, and must read the weights too"
    (tmp_path / "file").write_text("")
    with pytest.raises(DeltaError, match="Could not write into"):
        export_merged(run, base, tmp_path / "file")


def test_a_type_without_room_for_a_weight_is_refused_before_anything_is_written(tmp_path):
    """float16 ends at 65,504: a larger weight would become infinite without a word."""
    base = build_model(tiny.config())
    with torch.no_grad():
        base.transformer.h[1].attn.attention.q_proj.weight[0, 0] = -1e5
    _, _, run, _ = made(tmp_path, base=base)
    with pytest.raises(DeltaError, match=r"float16 ends at 65504, and transformer\.h\.1\..*q_proj\.weight"):
        export_merged(run, base, tmp_path / "merged", dtype=torch.float16)
    assert not (tmp_path / "merged").exists()
    export_merged(run, base, tmp_path / "merged", dtype=torch.bfloat16)


# --- the command ---------------------------------------------------------------------


@pytest.fixture
def course(monkeypatch, capsys):
    """Type a command: its exit code, what it printed, and its one line of complaint."""
    monkeypatch.setenv("COURSE_PROFILE", "tiny")

    def typed(words):
        code = main(shlex.split(words))
        said = capsys.readouterr()
        return code, said.out, said.err

    return typed


@pytest.fixture(scope="module")
def run_of_the_miniature(tmp_path_factory):
    """The miniature, trained a little, and its delta."""
    folder = tmp_path_factory.mktemp("miniature")
    base = load_model(TINY.model, device="cpu")
    model = trained(base, MAIN)
    save_delta(model, MAIN, base, folder)
    return base, model, folder


def test_the_command_writes_an_adapter(run_of_the_miniature, tmp_path, course):
    base, model, run = run_of_the_miniature
    code, said, _ = course(f"export --delta {run} --format peft --out {tmp_path / 'adapter'}")
    assert code == 0 and f'PeftModel.from_pretrained(base, "{tmp_path / "adapter"}")' in said
    assert same_state(by_stock_peft(base, tmp_path / "adapter").merge_and_unload(), model)


def test_the_command_writes_a_merged_model(run_of_the_miniature, tmp_path, course):
    _, model, run = run_of_the_miniature
    folder = tmp_path / "merged"
    code, said, _ = course(
        f"export --delta {run}/delta.safetensors --format merged --dtype bfloat16 --out {folder}"
    )
    assert code == 0 and f'AutoModelForCausalLM.from_pretrained("{folder}")' in said
    assert same_state(AutoModelForCausalLM.from_pretrained(folder), copy.deepcopy(model).bfloat16())
    assert load_tokenizer(folder)("a")["input_ids"] == load_tokenizer(TINY.model)("a")["input_ids"]


BAD = {
    "--format onnx": "Format 'onnx' is not known. Choose peft or merged.",
    "--format merged --dtype int8": "Type 'int8' is not known. Types: float32, bfloat16, float16.",
    "--dtype bfloat16": "An adapter keeps the type of its delta.",
}


@pytest.mark.parametrize("words", BAD)
def test_the_command_says_in_one_line_what_it_cannot_do(run_of_the_miniature, tmp_path, course, words):
    code, _, said = course(f"export --delta {run_of_the_miniature[2]} --out {tmp_path / 'x'} {words}")
    assert code == 2 and len(said.splitlines()) == 1 and BAD[words] in said
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("form", ["peft", "merged"])
def test_an_export_overwrites_nothing(run_of_the_miniature, tmp_path, course, form):
    """`--out` could be the base's own folder: it would be gone."""
    for name in ("model.safetensors", "adapter_model.safetensors"):
        (tmp_path / name).write_text("a reader's own")
    code, _, said = course(f"export --delta {run_of_the_miniature[2]} --format {form} --out {tmp_path}")
    assert code == 2 and len(said.splitlines()) == 1 and "nothing is overwritten" in said
    assert {p.read_text() for p in tmp_path.iterdir()} == {"a reader's own"} and len(
        [*tmp_path.iterdir()]
    ) == 2


@pytest.mark.parametrize("form", ["peft", "merged"])
def test_the_command_refuses_another_base_before_it_writes(tmp_path, course, form):
    _, _, run, _ = made(tmp_path)
    code, _, said = course(f"export --delta {run} --format {form} --out {tmp_path / 'x'}")
    assert code == 2 and "belongs to another base" in said
    assert not (tmp_path / "x").exists()


def test_load_delta_and_import_peft_give_one_model(run_of_the_miniature, tmp_path):
    base, _, run = run_of_the_miniature
    export_peft(run, base, tmp_path)
    assert weight_hash(import_peft(tmp_path, base)) == weight_hash(load_delta(run, base))


def test_a_full_disk_is_said_and_an_adapter_has_a_place(tmp_path, monkeypatch):
    base = build_model(tiny.config(), seed=1)
    plan, tuned = FreezePlan.only("norms"), copy.deepcopy(base)
    with torch.no_grad():
        tuned.transformer.ln_f.weight += 1
    delta = save_delta(tuned, plan, base, tmp_path / "run")

    def full(*words):
        raise SafetensorError("I/O error: File too large (os error 27)")

    monkeypatch.setattr(adapters, "write_tensors", full)
    with pytest.raises(DeltaError, match="Could not write the adapter .*File too large"):
        adapters.export_peft(delta, base, tmp_path / "adapter")
    with pytest.raises(TypeError, match="The place of an adapter is a path"):
        adapters.import_peft(None, base)
