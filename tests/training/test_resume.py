"""What a run takes up: only a checkpoint that is wholly its own, checked before the first tensor is copied."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers import files
from helpers.freezing.plans import FreezePlan
from helpers.models.loading import build_model, weight_hash
from helpers.training import checkpoints, runs
from helpers.training.loop import fit
from helpers.training.runs import TrainingError, TrainSettings
from support import tiny

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
