"""A checkpoint is there whole or not at all, and a damaged one is named and passed over."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers import files
from helpers.files import bytes_hash, write_json
from helpers.freezing.plans import FreezePlan
from helpers.measuring import held_out_loss
from helpers.models.loading import build_model, load_model, load_tokenizer, weight_hash
from helpers.texts.corpora import read_text
from helpers.training import checkpoints, runs
from helpers.training.adapters import import_peft
from helpers.training.checkpoints import (
    CheckpointError,
    load_checkpoint,
    optimizer_tensors,
    restore_optimizer,
    save_checkpoint,
)
from helpers.training.loop import fit
from helpers.training.runs import TrainingError, TrainSettings
from support import tiny


def save(folder, step, keep=3):
    return save_checkpoint(folder, step, {"w": torch.full((5,), float(step))}, {"note": step}, keep=keep)


def test_the_newest_comes_back_with_its_tensors_and_state(tmp_path):
    save(tmp_path, 3), save(tmp_path, 12)
    found = load_checkpoint(tmp_path)
    assert (found.step, found.state, found.damaged) == (12, {"note": 12}, [])
    assert torch.equal(found.tensors["w"], torch.full((5,), 12.0))


def test_an_empty_or_missing_folder_holds_no_checkpoint(tmp_path):
    assert load_checkpoint(tmp_path) is None
    assert load_checkpoint(tmp_path / "nowhere") is None


def test_checkpoints_that_may_not_be_read_are_named(tmp_path, monkeypatch):
    save(tmp_path, 1)

    def refuse(self):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "iterdir", refuse)
    for read in (load_checkpoint, checkpoints.newest_record):
        with pytest.raises(CheckpointError, match="cannot be read .Permission denied.. Ask their owner"):
            read(tmp_path)


def test_only_the_newest_are_kept_and_never_fewer_than_two(tmp_path):
    for step in range(5):
        save(tmp_path, step, keep=1)
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["step-00000003", "step-00000004"]


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "another record"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_used(tmp_path, name, damage):
    save(tmp_path, 1)
    file = save(tmp_path, 2) / name
    raw = bytearray(file.read_bytes())
    if damage == "flip":
        raw[len(raw) // 2] ^= 1
        file.write_bytes(raw)
    elif damage == "cut":
        file.write_bytes(raw[: len(raw) // 2])
    elif damage == "another record":
        file.write_text("[]")
    else:
        file.unlink()
    found = load_checkpoint(tmp_path)
    assert found.step == 1
    assert "step-00000002" in found.damaged[0]


def test_all_damaged_is_an_error_that_says_what_to_do(tmp_path):
    (save(tmp_path, 1) / "state.json").write_text("{")
    with pytest.raises(CheckpointError, match="Every checkpoint.*step-00000001.*Delete") as error:
        load_checkpoint(tmp_path)
    assert "before it" not in str(error.value), "there is none before it"


def test_one_that_may_not_be_read_is_not_passed_over_for_an_older_one(tmp_path, monkeypatch):
    save(tmp_path, 1)
    save(tmp_path, 2)
    own = checkpoints.file_hash

    def refused(place):
        if "00000002" in str(place):
            raise PermissionError(13, "Permission denied", str(place))
        return own(place)

    monkeypatch.setattr(checkpoints, "file_hash", refused)
    with pytest.raises(CheckpointError, match=r"step-00000002' may not be read \(Permission denied\)"):
        load_checkpoint(tmp_path)


def test_a_half_written_one_from_a_killed_process_is_ignored_and_cleared(tmp_path):
    save(tmp_path, 1)
    (tmp_path / ".partial-00000002-999").mkdir()
    (tmp_path / ".partial-00000002-999" / "tensors.safetensors").write_bytes(b"half")
    assert load_checkpoint(tmp_path).step == 1
    save(tmp_path, 2)
    assert not list(tmp_path.glob(".partial-*"))


def test_a_folder_that_cannot_be_made_is_an_error_that_names_it(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError, match="step 1"):
        save(tmp_path / "file" / "run", 1)


def test_json_is_replaced_whole_and_an_old_file_survives_a_failure(tmp_path):
    write_json(tmp_path / "a.json", {"v": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"v": object()})
    assert json.loads((tmp_path / "a.json").read_text()) == {"v": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize("fused", [True, False])
def test_the_count_of_steps_goes_back_to_where_pytorch_keeps_it(fused):
    here = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(here.parameters(), fused=fused)
    here(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    kept = optimizer_tensors(optimizer, {p: n for n, p in here.named_parameters()})
    elsewhere = torch.nn.Linear(3, 2, device="meta")  # stands for a GPU
    there = torch.optim.AdamW(elsewhere.parameters(), foreach=False)
    there.param_groups[0]["fused"] = fused  # the constructor refuses meta tensors
    restore_optimizer(there, {p: n for n, p in elsewhere.named_parameters()}, kept)
    found = {key: value.device.type for slots in there.state.values() for key, value in slots.items()}
    assert found == {"step": "meta" if fused else "cpu", "exp_avg": "meta", "exp_avg_sq": "meta"}


def test_optimizer_state_goes_to_tensors_and_back_bit_for_bit():
    def make():
        torch.manual_seed(0)
        layer = torch.nn.Linear(3, 2)
        return (
            layer,
            torch.optim.AdamW(layer.parameters(), lr=0.1),
            {p: n for n, p in layer.named_parameters()},
        )

    def step(layer, optimizer):
        layer(torch.ones(1, 3)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    one, optimizer, names = make()
    step(one, optimizer)
    two, fresh, names_two = make()
    two.load_state_dict(one.state_dict())
    restore_optimizer(fresh, names_two, optimizer_tensors(optimizer, names))
    step(one, optimizer), step(two, fresh)
    assert bytes_hash(one.weight) == bytes_hash(two.weight)


# --- what a run takes up ------------------------------------------------------------

CONFIG = tiny.config()
MAIN = FreezePlan.freeze("attention", "embeddings")
WINDOWS = torch.randint(97, (10, 24), generator=torch.Generator().manual_seed(0))
USUAL = {"n_steps": 4, "rate": 1e-2, "batch": 4, "evaluate_every": 2, "save_every": 2}
LN, MLP = "transformer.ln_f.weight", "transformer.h.0.mlp.c_fc.weight"


def train(folder=None, evaluate=None, model=None, **changes):
    model = model or build_model(CONFIG, seed=1)
    return model, fit(
        model,
        MAIN,
        WINDOWS,
        TrainSettings(**USUAL | changes),
        evaluate=evaluate,
        folder=folder,
        progress=False,
    )


def forge(place, change_tensors=None, change_state=None, change_record=None):
    """Another content whose hashes fit."""
    tensors = {n: t.clone() for n, t in load_file(place / "tensors.safetensors").items()}
    record = json.loads((place / "state.json").read_text())
    record.pop("own_sha256")
    if change_tensors:
        change_tensors(tensors)
        save_file(tensors, place / "tensors.safetensors")
        record["sha256"] = files.file_hash(place / "tensors.safetensors")
    (change_state or dict)(record["state"])
    (change_record or dict)(record)
    (place / "state.json").write_text(json.dumps({**record, "own_sha256": files.record_hash(record)}))


def put_in(value, *path):
    def change(found):
        for key in path[:-1]:
            found = found[key]
        found[path[-1]] = value

    return change


def drop(*path):
    def change(found):
        for key in path[:-1]:
            found = found[key]
        del found[path[-1]]

    return change


TENSORS = {
    "a weight of another shape": put_in(torch.zeros(3), f"model/{LN}"),
    "a weight of another type": put_in(torch.zeros(32, dtype=torch.float16), f"model/{LN}"),
    "an additional weight": put_in(torch.zeros(97, 32), "model/transformer.wte.weight"),
    "a tensor of no kind": put_in(torch.zeros(1), "extra"),
    "a missing weight": drop(f"model/{LN}"),
    "a missing best weight": drop(f"best/{MLP}"),
    "moments of another shape": put_in(torch.zeros(2, 2), f"optimizer/{MLP}/exp_avg"),
    "moments of no parameter": put_in(torch.zeros(2), "optimizer/nowhere/exp_avg"),
    "half of the moments": drop(f"optimizer/{MLP}/exp_avg_sq"),
    "no random state": drop("random/cpu"),
    "a random state of another size": put_in(torch.zeros(7, dtype=torch.uint8), "random/cpu"),
}
STATES = {
    "no history": drop("history"),
    "an additional field": put_in(1, "extra"),
    "a history that is a list": put_in([], "history"),
    "a history without steps": put_in([], "history", "steps"),
    "an additional field in the history": put_in([], "history", "extra"),
    "evaluations that are numbers": put_in([1, 2], "history", "evaluations"),
    "a loss that is text": put_in("low", "history", "evaluations", 0, "held_out_loss"),
    "seconds that are text": put_in(["a"] * 4, "history", "seconds"),
    "a best step that is text": put_in("4", "best_step"),
    "a best step of -5": put_in(-5, "best_step"),
    "no best step": drop("best_step"),
    "an identity that is text": put_in("mine", "identity"),
    "an identity without settings": drop("identity", "settings"),
}
RECORDS = {
    "a step that is text": put_in("4", "step"),
    "a step of -5": put_in(-5, "step"),
    "true as a step": put_in(True, "step"),
    "a step of 1.5": put_in(1.5, "step"),
    "another step": put_in(2, "step"),
    "an additional field": put_in(1, "extra"),
    "no state": drop("state"),
    "a state that is a list": put_in([], "state"),
    "no hash": drop("sha256"),
    "kept steps that are text": put_in(["2"], "kept"),
}


@pytest.fixture
def run(tmp_path):
    train(tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.parametrize("name", TENSORS | STATES)
def test_a_checkpoint_whose_hash_fits_and_whose_content_does_not_is_refused_and_changes_nothing(run, name):
    forge(run / "step-00000004", TENSORS.get(name), STATES.get(name))
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file() and p.name != ".lock"}
    model, dice = build_model(CONFIG, seed=1), torch.get_rng_state()
    weights = weight_hash(model)
    with pytest.raises(
        TrainingError, match="Step 4 in '.*' fits its hash, but.*Choose a new folder"
    ) as error:
        train(run, model=model, n_steps=6)
    assert "\n" not in str(error.value) and weight_hash(model) == weights
    assert before == {p: p.read_bytes() for p in run.rglob("*") if p.is_file() and p.name != ".lock"}
    torch.set_rng_state(dice)


@pytest.mark.parametrize("name", RECORDS)
def test_a_record_that_does_not_say_what_it_must_is_passed_over_for_the_one_before_it(run, capsys, name):
    forge(run / "step-00000004", change_record=RECORDS[name])
    found = checkpoints.load_checkpoint(run)
    assert found.step == 2 and "step-00000004 is damaged" in found.damaged[0]
    assert train(run)[1].proof.ok
    assert (
        "step-00000004 is damaged" in (said := capsys.readouterr().err) and "using the one before it" in said
    )


def test_a_record_that_is_nested_too_deeply_is_damage(run):
    (run / "step-00000004" / "state.json").write_text('{"a":' * 100_000)
    assert checkpoints.load_checkpoint(run).step == 2


def test_a_finished_run_goes_on_with_more_steps_as_one_that_was_long_from_the_start(tmp_path):
    def measure(model):
        return {"held_out_loss": model.get_parameter(LN).sum().item()}

    train(tmp_path / "run", measure)
    _, longer = train(tmp_path / "run", measure, n_steps=8)
    _, whole = train(None, measure, n_steps=8)
    assert (
        longer.history.steps == whole.history.steps
        and longer.history.evaluations == whole.history.evaluations
    )
    assert (longer.best_step, longer.proof.ok) == (whole.best_step, True)
    assert all(torch.equal(longer.best[n], t) for n, t in whole.best.items())


def test_fewer_steps_than_were_trained_are_refused(run):
    with pytest.raises(TrainingError, match="holds step 4 of this run already, more than the 3 asked for"):
        train(run, n_steps=3)


def test_the_same_weights_that_compute_something_else_make_another_run(run):
    """An epsilon, a rotary base, a cap of the logits: no hash of weights holds them."""
    other = build_model(tiny.config(layer_norm_epsilon=1e-2), seed=1)
    with pytest.raises(TrainingError, match="another run: it differs in config.layer_norm_epsilon"):
        train(run, model=other, n_steps=6)


def test_a_measurement_of_one_number_is_kept_and_of_none_is_said(tmp_path):
    tensors = train(tmp_path / "a", lambda m: {"held_out_loss": torch.tensor(2.5)})[1]
    assert [e["held_out_loss"] for e in tensors.history.evaluations] == [2.5] * len(
        tensors.history.evaluations
    )
    with pytest.raises(TrainingError, match="must be a number; found Estimate"):
        train(tmp_path / "b", lambda m: {"held_out_loss": held_out_loss(m, WINDOWS)})
    with pytest.raises(TrainingError, match="evaluate must return a dict"):
        train(tmp_path / "c", lambda m: 2.5)


def test_an_older_run_that_did_not_record_its_config_goes_on(run):
    forge(run / "step-00000004", change_record=drop("kept"), change_state=drop("identity", "config"))
    assert train(run, n_steps=6)[1].history.steps[-1]["step"] == 6


def test_a_smaller_micro_batch_is_no_other_run_and_another_rate_is(run):
    assert train(run, micro_batch=2, n_steps=6)[1].history.steps[-1]["step"] == 6
    with pytest.raises(TrainingError, match="another run: it differs in rate"):
        train(run, rate=2e-2, n_steps=6)


def test_other_products_of_float32_are_another_run(run):
    try:
        torch.set_float32_matmul_precision("medium")
        with pytest.raises(TrainingError, match="differs in arithmetic"):
            train(run)
    finally:
        torch.set_float32_matmul_precision("highest")


def test_a_checkpoint_of_the_older_form_is_taken_up(run):
    forge(run / "step-00000004", change_record=drop("kept"), change_state=drop("identity", "arithmetic"))
    assert train(run, n_steps=6)[1].history.steps[-1]["step"] == 6


@pytest.mark.parametrize(
    "losses, best",
    [(["nan", 3, 2, 4], 4), (["nan", "nan", "nan"], 0), ([3, "nan", 2], 4), ([1, "nan", 2], 0)],
)
def test_the_best_step_is_the_least_number_whatever_was_no_number(losses, best):
    found = iter(map(float, losses))
    _, result = train(None, lambda model: {"held_out_loss": next(found)}, n_steps=2 * len(losses) - 2)
    assert result.best_step == best


@pytest.mark.parametrize("seed", [-1, 2**32, 2**64, 1.5, "0"])
def test_a_seed_that_cannot_be_is_refused(seed):
    with pytest.raises(TrainingError, match="seed must be a whole number from 0 to 4294967295"):
        TrainSettings(**USUAL | {"seed": seed})


@pytest.mark.parametrize("name", ["n_steps", "batch", "evaluate_every", "save_every"])
@pytest.mark.parametrize("value", [0, -1, 1.5, 10**30, "3"])
def test_a_count_that_is_no_count_is_refused(name, value):
    with pytest.raises(TrainingError, match=f"{name} must be a whole number"):
        TrainSettings(**USUAL | {name: value})


def test_a_run_says_where_it_stands(tmp_path):
    train(tmp_path / "run")
    assert runs.Run.where[tmp_path / "run"] == 4


@pytest.mark.parametrize(
    "asked", [load_model, load_tokenizer, read_text, lambda place: import_peft(place, None)]
)
@pytest.mark.parametrize("place", [3, None, ["folder"], b"folder"])
def test_a_place_that_is_no_path_is_named(asked, place):
    with pytest.raises(TypeError, match=f"is a path, a str or a pathlib.Path; found {type(place).__name__}"):
        asked(place)


def test_a_run_that_stops_in_its_first_step_stands_at_step_0(tmp_path, monkeypatch):
    def stopped(*words):
        raise KeyboardInterrupt

    monkeypatch.setattr("helpers.training.loop.next_token_loss", stopped)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run")
    assert runs.Run.where[tmp_path / "run"] == 0
