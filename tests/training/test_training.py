"""The loop: short, exact, resumable, and it stops where it must."""

import inspect
import shutil
import sys
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoConfig, BertConfig, GPT2Config

from helpers.costs.step_cost import budget
from helpers.freezing.bottom import BottomError
from helpers.freezing.plans import FreezePlan
from helpers.freezing.selectors import PlanError
from helpers.models.loading import build_model, enable_checkpointing, weight_hash
from helpers.models.losses import LossError, next_token_loss, require_next_token_model
from helpers.training import loop as training
from helpers.training import runs
from helpers.training.loop import build_optimizer, fit
from helpers.training.runs import TrainingError, TrainSettings, batch_rows
from support import tiny

CONFIG = tiny.config()
MAIN = FreezePlan.freeze("attention", "embeddings")


def make_windows(n=10, seed=0):
    return torch.randint(97, (n, 24), generator=torch.Generator().manual_seed(seed))


def train(plan=MAIN, folder=None, evaluate=None, model=None, windows=None, progress=False, **changes):
    model = model or build_model(CONFIG, seed=1)
    usual = {"n_steps": 6, "rate": 1e-2, "batch": 4, "evaluate_every": 2, "save_every": 2}
    settings = TrainSettings(**{**usual, **changes})
    result = fit(
        model,
        plan,
        make_windows() if windows is None else windows,
        settings,
        evaluate=evaluate,
        folder=folder,
        progress=progress,
    )
    return model, result


def test_the_loop_is_forty_lines_or_fewer():
    assert len(inspect.getsource(training.train).splitlines()) <= 40


def test_one_batch_is_learned_by_heart():
    _, result = train(FreezePlan.full(), n_steps=80, windows=make_windows(4))
    assert result.history.steps[-1]["loss"] < 0.5 * result.history.steps[0]["loss"]


@pytest.mark.parametrize("n_steps, words", [(4, "no window is read twice"), (5, "")])
def test_a_frozen_bottom_is_kept_where_each_window_is_read_twice(n_steps, words):
    """Ten windows: five steps of four windows read each of them twice."""
    model = build_model(CONFIG, seed=1)
    FreezePlan.freeze("embeddings", "layers:0").apply(model)
    settings = TrainSettings(n_steps=n_steps, rate=1e-2, batch=4)
    bottom, why = training.kept_bottom(model, make_windows(), settings, 4, None, "auto", 2**20, None)
    assert words in why and (bottom is None) == bool(words)
    assert bottom is None or bottom.n_tokens == 240


def test_what_is_frozen_stays_and_the_proof_says_so():
    model, result = train()
    base = build_model(CONFIG, seed=1)
    frozen = [n for n, p in model.named_parameters() if not p.requires_grad]
    assert result.proof.ok and frozen
    assert all(torch.equal(model.get_parameter(n), base.get_parameter(n)) for n in frozen)


def test_a_plan_that_does_not_fit_stops_before_training():
    with pytest.raises(PlanError):
        train(FreezePlan.freeze("name:transformer.h.7.*"))


def test_the_optimizer_holds_the_trainable_parameters_only():
    model = build_model(CONFIG)
    MAIN.apply(model)
    held = [
        p for group in build_optimizer(model, TrainSettings(1, 1e-3)).param_groups for p in group["params"]
    ]
    assert {id(p) for p in held} == {id(p) for p in model.parameters() if p.requires_grad}


def test_the_same_seed_repeats_and_another_does_not():
    one, two, other = (weight_hash(train(seed=s)[0]) for s in (0, 0, 1))
    assert one == two != other


def test_a_micro_batch_changes_nothing_but_memory():
    """In double precision: AdamW turns the rounding of a gradient near zero into a step of the rate's size."""
    whole, parts = (
        train(batch=4, micro_batch=m, model=build_model(CONFIG, seed=1).double())[0] for m in (None, 1)
    )
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-10)


def test_every_window_is_seen_once_an_epoch_in_a_new_order():
    rows = np.concatenate([batch_rows(10, 4, step, seed=0) for step in range(5)])
    assert sorted(rows[:10]) == sorted(rows[10:]) == list(range(10))
    assert list(rows[:10]) != list(rows[10:])


def test_a_batch_larger_than_the_text_is_filled_from_the_next_epochs():
    assert len(batch_rows(3, 8, 0, seed=0)) == 8


def test_the_history_holds_losses_norms_and_evaluations():
    _, result = train(evaluate=lambda m: {"held_out_loss": 1.0})
    assert [s["step"] for s in result.history.steps] == list(range(1, 7))
    assert [e["step"] for e in result.history.evaluations] == [0, 2, 4, 6]
    assert set(result.history.steps[0]["norms"]) == {"mlp", "norm", "total"}
    norms = result.history.steps[0]["norms"]
    assert norms["total"] == pytest.approx((norms["mlp"] ** 2 + norms["norm"] ** 2) ** 0.5)
    assert np.isnan(result.history.norm("attention")).all()


def test_best_weights_are_those_of_the_lowest_held_out_loss():
    losses = iter([3.0, 1.0, 2.0, 2.5])
    seen = {}

    def evaluate(model):
        loss = next(losses)
        seen[loss] = model.transformer.h[0].mlp.c_fc.weight.detach().clone()
        return {"held_out_loss": loss}

    model, result = train(evaluate=evaluate)
    assert result.best_step == 2
    result.use_best(model)
    assert torch.equal(model.transformer.h[0].mlp.c_fc.weight, seen[1.0])


def test_clipping_bounds_the_step():
    free, clipped = train(rate=1e-3)[0], train(rate=1e-3, clip=1e-6)[0]
    base = build_model(CONFIG, seed=1)
    moved = [(m.transformer.ln_f.weight - base.transformer.ln_f.weight).norm() for m in (free, clipped)]
    assert moved[0] > 0 and weight_hash(free) != weight_hash(clipped)


def test_bfloat16_trains_close_to_float32():
    exact, rough = (
        train(rate=1e-3, precision=p)[1].history.steps[-1]["loss"] for p in ("float32", "bfloat16")
    )
    assert rough == pytest.approx(exact, rel=0.02)


# --- faults ------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_stops_with_step_cause_and_checkpoint(tmp_path, monkeypatch):
    calls = iter(range(100))

    def sometimes_nan(model, ids):
        total, n = next_token_loss(model, ids)
        return total * (float("nan") if next(calls) == 5 else 1.0), n

    monkeypatch.setattr(training, "next_token_loss", sometimes_nan)
    with pytest.raises(TrainingError, match=r"step 5 .*nan.*rate.*step 4 in") as caught:
        train(folder=tmp_path, n_steps=20)
    assert str(tmp_path) in str(caught.value)
    monkeypatch.undo()
    _, again = train(folder=tmp_path, n_steps=20)
    assert again.history.steps == train(n_steps=20)[1].history.steps


def test_a_gradient_that_is_not_finite_stops_before_the_weights_are_touched():
    model = build_model(CONFIG, seed=1)
    model.transformer.h[1].mlp.c_fc.bias.register_hook(lambda g: g * float("inf"))
    before = weight_hash(model)
    with pytest.raises(TrainingError, match="gradient norm"):
        train(model=model)
    assert weight_hash(model) == before


def test_a_full_gpu_halves_the_micro_batch_and_says_so(monkeypatch, capsys):
    real = training.next_token_loss

    def crowded(model, ids):
        if len(ids) > 1:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return real(model, ids)

    monkeypatch.setattr(training, "next_token_loss", crowded)
    model, _ = train(batch=4)
    said = capsys.readouterr().err
    assert "2 windows at a time instead of 4" in said and "1 window at a time instead of 2" in said
    monkeypatch.undo()
    assert weight_hash(model) == weight_hash(train(batch=4, micro_batch=1)[0])


def test_a_gpu_too_small_for_one_window_is_an_error(monkeypatch):
    def crowded(model, ids):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(training, "next_token_loss", crowded)
    with pytest.raises(TrainingError, match="one window at a time"):
        train(batch=2)


@pytest.mark.parametrize(
    "bad, words",
    [
        ({"n_steps": 0}, "n_steps"),
        ({"n_steps": True}, "n_steps"),
        ({"rate": 0.0}, "rate"),
        ({"rate": -1.0}, "rate"),
        ({"rate": float("nan")}, "nan"),
        ({"rate": 50.0}, "50"),
        ({"batch": 0}, "batch"),
        ({"precision": "float16"}, "float16"),
        ({"micro_batch": 0}, "micro"),
        ({"warmup": -1}, "warmup"),
        ({"clip": -0.5}, "clip"),
        ({"clip": 0.0}, "clip must be above 0"),
        ({"warmup": 1.5}, "warmup"),
        ({"seed": True}, "seed"),
    ],
)
def test_settings_that_make_no_sense_are_refused(bad, words):
    with pytest.raises(TrainingError, match=words):
        TrainSettings(**{"n_steps": 1, "rate": 1e-3, **bad})


# --- resume ------------------------------------------------------------------------


class Stop(Exception):
    pass


@pytest.mark.parametrize("at", [0, 2, 4, 6])
def test_a_run_that_was_stopped_goes_on_bit_for_bit(tmp_path, at):
    def measure(model):
        return {"held_out_loss": next_token_loss(model, make_windows(3, seed=9))[0].item()}

    unbroken, expected = train(n_steps=8, evaluate=measure)
    seen = []

    def stopping(model):
        if len(seen) == at // 2:
            raise Stop
        seen.append(1)
        return measure(model)

    with pytest.raises(Stop):
        train(n_steps=8, folder=tmp_path, evaluate=stopping)
    model, result = train(n_steps=8, folder=tmp_path, evaluate=measure)
    assert weight_hash(model) == weight_hash(unbroken)
    assert result.history.steps == expected.history.steps
    assert result.history.evaluations == expected.history.evaluations
    assert all(torch.equal(result.best[n], t) for n, t in expected.best.items())


def test_a_finished_run_is_only_read_again(tmp_path):
    first, _ = train(folder=tmp_path)
    second, result = train(folder=tmp_path)
    assert weight_hash(first) == weight_hash(second) and result.proof.ok


def test_a_folder_of_another_run_is_refused_and_left_alone(tmp_path):
    train(folder=tmp_path)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    for changes in (
        {"rate": 3e-3},
        {"seed": 5},
        {"plan": FreezePlan.full()},
        {"windows": make_windows(seed=3)},
        {"model": build_model(CONFIG, seed=2)},
    ):
        with pytest.raises(TrainingError, match="another run"):
            train(folder=tmp_path, **changes)
    assert before == {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}


@pytest.mark.parametrize(("bars_are_off", "progress"), [(False, True), (True, True), (False, False)])
def test_that_a_run_goes_on_is_said_in_words_where_there_may_be_a_bar(
    tmp_path, capsys, monkeypatch, bars_are_off, progress
):
    monkeypatch.setattr(runs, "tqdm", lambda **bar: SimpleNamespace(disable=bars_are_off))
    train(folder=tmp_path, n_steps=4)
    assert capsys.readouterr().err == "", "a new run resumes nothing"
    shutil.rmtree(tmp_path / "step-00000004")
    train(folder=tmp_path, n_steps=4, progress=progress)
    said = capsys.readouterr()
    words = f"The folder '{tmp_path}' holds step 2 of 4 of this run: going on from there.\n"
    assert (said.err, said.out) == (words if progress and not bars_are_off else "", "")


@pytest.mark.parametrize("is_notebook", [True, False])
def test_a_bar_writes_to_stderr_but_in_a_notebook_to_stdout(is_notebook, monkeypatch, capsys):
    monkeypatch.setattr(training, "in_notebook", lambda: is_notebook)
    monkeypatch.setattr(training, "tqdm", partial(training.tqdm, disable=False))  # the tests' TQDM_DISABLE
    run = SimpleNamespace(step=0, settings=SimpleNamespace(n_steps=2), plan=SimpleNamespace(title="a plan"))
    list(training.progress_bar(run, True))
    out, err = capsys.readouterr()
    assert ("a plan" in out, "a plan" in err) == (is_notebook, not is_notebook)


def test_a_kernel_is_a_notebook_and_a_terminal_is_not(monkeypatch):
    assert not training.in_notebook()
    for shell, expected in (
        (None, False),
        (SimpleNamespace(), False),
        (SimpleNamespace(kernel=object()), True),
    ):
        monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda shell=shell: shell))
        assert training.in_notebook() is expected


# --- one mode ------------------------------------------------------------------------

WITH_DROPOUT = tiny.config(resid_dropout=0.2, attention_dropout=0.1, embed_dropout=0.1)


def in_eval_mode(config=WITH_DROPOUT):
    """As `from_pretrained` gives a model."""
    return build_model(config, seed=1).eval()


def note_modes(model):
    """The modes in which the last block is run, in order, without repeats."""
    seen = []
    model.transformer.h[1].mlp.register_forward_pre_hook(lambda module, args: seen.append(module.training))
    return lambda: [mode for i, mode in enumerate(seen) if i == 0 or mode != seen[i - 1]]


@pytest.mark.parametrize("training_before", [True, False])
def test_fit_trains_with_dropout_measures_without_and_gives_back_the_mode_that_it_found(training_before):
    model = in_eval_mode().train(training_before)
    model.transformer.h[0].eval()  # one part of its own mind
    found, modes = [module.training for module in model.modules()], note_modes(model)
    train(
        model=model,
        n_steps=2,
        evaluate=lambda m: {"held_out_loss": next_token_loss(m, make_windows(2))[0].item()},
    )
    assert modes() == [False, True, False]  # measured at step 0, trained, measured at step 2
    assert [module.training for module in model.modules()] == found


def test_the_mode_comes_back_after_an_error_in_training_and_in_measuring():
    def broken(m):
        raise KeyError("no such number")

    def break_in_training(module, args):
        if module.training:
            raise KeyError("no such state")

    for changes, hook in (({"evaluate": broken}, None), ({"evaluate": lambda m: {}}, break_in_training)):
        model = in_eval_mode()
        if hook:
            model.transformer.h[1].register_forward_pre_hook(hook)
        with pytest.raises(KeyError):
            train(model=model, **changes)
        assert not any(module.training for module in model.modules())


def test_dropout_changes_what_is_learned_and_nothing_where_a_model_has_none():
    hashes = {
        (config is CONFIG, mode): weight_hash(train(model=in_eval_mode(config).train(mode))[0])
        for config in (CONFIG, WITH_DROPOUT)
        for mode in (True, False)
    }
    assert hashes[True, True] == hashes[True, False] and hashes[False, True] == hashes[False, False]
    assert hashes[True, True] != hashes[False, True]


def test_a_model_with_dropout_in_eval_mode_resumes_bit_for_bit(tmp_path):
    class Stopped(Exception):
        pass

    def stop_at_four(m):
        if stop_at_four.calls == 2:
            raise Stopped
        stop_at_four.calls += 1
        return {}

    stop_at_four.calls = 0
    whole, _ = train(model=in_eval_mode(), evaluate=lambda m: {})
    with pytest.raises(Stopped):
        train(model=in_eval_mode(), folder=tmp_path, evaluate=stop_at_four)
    resumed, result = train(model=in_eval_mode(), folder=tmp_path, evaluate=lambda m: {})
    assert len(result.history.steps) == 6
    assert weight_hash(resumed) == weight_hash(whole)


def test_the_budget_counts_what_a_step_of_fit_keeps_in_the_mode_in_which_it_trains(monkeypatch):
    config = GPT2Config(
        vocab_size=97, n_embd=32, n_layer=2, n_head=4, n_positions=24, bos_token_id=0, eos_token_id=0
    )
    assert config.resid_pdrop > 0
    model = build_model(config).eval()
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    saved = {}

    def note(tensor):
        if tensor.untyped_storage().data_ptr() not in own and tensor.shape != (97, 32):
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    def watched(*args):
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            return next_token_loss(*args)

    monkeypatch.setattr(training, "next_token_loss", watched)
    train(MAIN, model=model, n_steps=1, batch=4)
    predicted = budget(config, MAIN, 4, 24).bytes["activations"]
    assert predicted == pytest.approx(sum(s.nbytes() for s in saved.values()), rel=0.01)


def test_checkpointing_is_at_work_in_fit():
    model, calls = in_eval_mode(), []
    enable_checkpointing(model)
    model.transformer.h[1].mlp.register_forward_pre_hook(lambda module, args: calls.append(module.training))
    train(FreezePlan.full(), model=model, n_steps=1, batch=2)
    assert calls.count(True) == 2  # forward, and again in the backward pass


def test_a_model_that_is_no_decoder_is_refused_before_anything_changes():
    model = build_model(
        BertConfig(
            vocab_size=97, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4
        )
    )
    flags = [p.requires_grad for p in model.parameters()]
    with pytest.raises(LossError, match="sees later tokens"):
        train(FreezePlan.freeze("name:**.word_embeddings.weight"), model=model)
    assert [p.requires_grad for p in model.parameters()] == flags


@pytest.mark.parametrize(
    "windows, found",
    [
        ([[1, 2, 3]], "found list"),
        (torch.ones(24, dtype=torch.long), r"found \(24,\) of torch.int64"),
        (torch.ones(4, 24), r"found \(4, 24\) of torch.float32"),
        (torch.ones(0, 24, dtype=torch.long), r"found \(0, 24\)"),
        (torch.ones(4, 1, dtype=torch.long), r"found \(4, 1\)"),
    ],
    ids=["list", "one-window", "float", "none", "one-token"],
)
def test_windows_of_another_form_are_refused_before_anything_changes(windows, found):
    model = build_model(CONFIG)
    with pytest.raises(TrainingError, match=found):
        fit(model, MAIN, windows, TrainSettings(n_steps=1, rate=1e-3))
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_frozen_bottom_that_cannot_be_kept_leaves_the_flags_as_they_were():
    model = build_model(tiny.config(resid_dropout=0.2))
    model.transformer.wpe.weight.requires_grad_(False)
    flags = [parameter.requires_grad for parameter in model.parameters()]
    with pytest.raises(BottomError, match="dropout"):
        fit(
            model, FreezePlan.only("layers:1"), make_windows(), TrainSettings(n_steps=1, rate=1e-3),
            progress=False, cache_frozen=True,
        )  # fmt: skip
    assert [parameter.requires_grad for parameter in model.parameters()] == flags


@pytest.mark.parametrize("factor", [0.0, 1e6])
def test_a_model_whose_logits_are_all_zero_sees_no_later_token(factor):
    """All weights 0, or so large that a norm divides by infinity: the logits are 0, and 0 / 0 is no reason to stop."""
    model = build_model(AutoConfig.for_model("llama", **tiny.FAMILIES["llama"]))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(factor)
        if factor:
            model.model.norm.weight.zero_()
    require_next_token_model(model.eval(), make_windows(1)[:, :16] % 64)


@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode, partial(torch.set_grad_enabled, False)])
def test_where_gradients_are_switched_off_nothing_trains_and_it_is_said(off):
    model, ids = build_model(tiny.config(), seed=0), torch.randint(97, (4, 12))
    flags = [p.requires_grad for p in model.parameters()]
    with pytest.raises(TrainingError, match="^Gradients are switched off here"), off():
        fit(model, FreezePlan.freeze("attention"), ids, TrainSettings(n_steps=1, rate=1e-3), progress=False)
    assert [p.requires_grad for p in model.parameters()] == flags


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_settings_alone_say_in_which_precision_a_run_computes(precision):
    def heard(model):
        return {"held_out_loss": next_token_loss(model, make_windows(2))[0].item()}

    alone, plain = train(precision=precision, evaluate=heard)
    with torch.autocast("cpu", torch.bfloat16):
        around, result = train(precision=precision, evaluate=heard)
    assert weight_hash(around) == weight_hash(alone)
    assert result.history.evaluations == plain.history.evaluations


@pytest.mark.parametrize("what", ["model", "tensor of windows"])
def test_what_was_made_under_inference_mode_is_not_trained_on(what):
    made = {
        "model": lambda: build_model(tiny.config(), seed=0),
        "tensor of windows": lambda: torch.ones(4, 12).long(),
    }
    with torch.inference_mode():
        inside = made[what]()
    given = {name: inside if name == what else make() for name, make in made.items()}
    settings = TrainSettings(n_steps=1, rate=1e-3)
    with pytest.raises(TrainingError, match=f"^A {what} made under torch.inference_mode"):
        fit(given["model"], FreezePlan.full(), given["tensor of windows"], settings, progress=False)


def test_windows_of_int32_train_as_those_of_int64_do():
    ids, tuned = torch.randint(97, (4, 12), generator=torch.Generator().manual_seed(0)), []
    for windows in (ids, ids.int()):
        model = build_model(tiny.config(), seed=0)
        fit(
            model,
            FreezePlan.freeze("attention"),
            windows,
            TrainSettings(n_steps=2, rate=1e-3),
            progress=False,
        )
        tuned.append(weight_hash(model))
    assert tuned[0] == tuned[1]
