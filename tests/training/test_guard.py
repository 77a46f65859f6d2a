"""The guard finds each of the planted faults by tensor and step, raises no false alarm, and works in real Trainers."""

import copy
import importlib
import importlib.util
import re

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from torch import nn
from torch.nn.utils import parametrizations, prune, vector_to_parameters
from transformers import AutoConfig, Trainer, TrainerCallback, TrainingArguments

from helpers.files import NoValuesError
from helpers.freezing import COURSE_PLANS, FreezePlan, FreezingError, PlanError, change_plan, undo
from helpers.freezing import proof as proofs
from helpers.freezing import watch as watches
from helpers.measuring import Retention
from helpers.models import build_model, load_model, load_tokenizer, unwrapped, weight_hash
from helpers.profiles import TINY
from helpers.training import DeltaError, FreezeGuard, load_delta
from support import tiny
from support.tiny import FAMILIES

MAIN = FreezePlan.freeze("attention", "embeddings")
Q = "transformer.h.0.attn.attention.q_proj.weight"
WTE = "transformer.wte.weight"
UP = "transformer.h.1.mlp.c_fc.weight"
FAULT, N_STEPS, EVERY = 3, 8, 2


def small(seed=0, **changes):
    return build_model(tiny.config(**changes), seed=seed)


def ids_of(model, seed=0, rows=4):
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(3, unwrapped(model).config.vocab_size, (rows, 12), generator=rng)


def adam(model, **options):
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3, **options)


def backward(model):
    ids = ids_of(model)
    model(input_ids=ids, labels=ids).loss.backward()


def train(guard, optimizer, fault=lambda model, optimizer: None, n_steps=N_STEPS):
    """A loop of one's own; the fault strikes after the step ``FAULT``."""
    model = guard.model
    with guard:
        guard.watch(optimizer)
        for step in range(1, n_steps + 1):
            backward(model)
            optimizer.step()
            if step == FAULT:
                fault(model, optimizer)
            guard.step()
            optimizer.zero_grad()


def test_what_trained_and_is_no_number_any_more_is_not_saved(tmp_path):
    model = small()
    guard = FreezeGuard(model, MAIN, delta=tmp_path)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e38)
    with pytest.raises(DeltaError, match=f"after step {N_STEPS} .* hold NaN or infinite numbers"):
        train(guard, optimizer)
    assert not list(tmp_path.iterdir()) and guard.proof.ok


@pytest.mark.parametrize("optimizer", [None, "adamw", [1]])
def test_what_is_no_optimizer_is_said(optimizer):
    with pytest.raises(TypeError, match="^An optimizer is needed"):
        FreezeGuard(small(), MAIN).watch(optimizer)


# --- faults of the start: found before the first step --------------------------------


@pytest.mark.parametrize("keeps_delta", [True, False])
def test_a_model_without_values_is_refused_and_its_flags_stay(tmp_path, keeps_delta):
    model = small().to("meta")
    with pytest.raises(NoValuesError, match="on the meta device"):
        FreezeGuard(model, MAIN, delta=tmp_path if keeps_delta else None)
    assert all(parameter.requires_grad for parameter in model.parameters())


def early(model, **options):
    """An optimizer of before the plan."""
    return torch.optim.AdamW(model.parameters(), lr=1e-3, **options)


def early_with_momentum(model):
    optimizer = early(model)
    backward(model)
    optimizer.step()
    return optimizer


def of_an_earlier_plan(model):
    FreezePlan.only("norms").apply(model)
    return adam(model)


def of_a_copy(model):
    return early(copy.deepcopy(model))


def all_but_one(model):
    """A filter by name that misses a tensor."""
    MAIN.apply(model)
    return torch.optim.AdamW([p for n, p in model.named_parameters() if p.requires_grad and n != UP])


AT_THE_START = {
    early: f"{WTE} is frozen but the optimizer holds it, without state so far",
    early_with_momentum: f"{WTE} is frozen but the optimizer holds it, with state (step, exp_avg, exp_avg_sq)",
    of_an_earlier_plan: "transformer.h.0.mlp.c_fc.weight is trainable but no optimizer holds it",
    of_a_copy: "transformer.h.0.ln_1.weight is trainable but no optimizer holds it",
    all_but_one: f"{UP} is trainable but no optimizer holds it",
}


@pytest.mark.parametrize("built", AT_THE_START, ids=lambda built: built.__name__)
def test_a_wrong_optimizer_is_found_before_the_first_step(built):
    model = small()
    optimizer = built(model)
    guard = FreezeGuard(model, MAIN)
    with pytest.raises(FreezingError, match=f"^Stopped at step 0: {re.escape(AT_THE_START[built])}"):
        train(guard, optimizer)


def test_a_frozen_tensor_in_a_second_optimizer_is_found():
    model = small()
    guard = FreezeGuard(model, MAIN)
    second = torch.optim.SGD([model.get_parameter(Q)], lr=1e-3)
    with pytest.raises(FreezingError, match=f"step 0: {re.escape(Q)} is frozen but the optimizer holds it"):
        guard.watch(adam(model), second)


def test_a_gradient_that_was_put_back_is_found_before_the_first_step():
    model = small()
    guard = FreezeGuard(model, MAIN)
    model.get_parameter(Q).grad = torch.zeros(32, 32)
    with pytest.raises(FreezingError, match=f"step 0: {re.escape(Q)} .* zero is not absent"):
        guard.watch(adam(model))


# --- faults in the middle ------------------------------------------------------------


def q_of(model):
    return model.get_parameter(Q)


def stale_gradient(model, optimizer):
    q_of(model).grad = torch.ones(32, 32)


def group_added(model, optimizer):
    optimizer.add_param_group({"params": [q_of(model)]})


def group_added_that_decays(model, optimizer):
    group_added(model, optimizer)
    q_of(model).grad = torch.zeros(32, 32)
    optimizer.step()


def group_dropped(model, optimizer):
    optimizer.param_groups[0]["params"].pop(0)


def data_write(model, optimizer):
    q_of(model).data.add_(1e-3)


def data_of_another(model, optimizer):
    q_of(model).data = torch.zeros(32, 32)


@torch.no_grad()
def in_place(model, optimizer):
    q_of(model).add_(1e-3)


@torch.no_grad()
def decay_by_hand(model, optimizer):
    for parameter in model.parameters():
        parameter.mul_(0.999)


def ema_through_data(model, optimizer):
    for parameter, other in zip(model.parameters(), small(seed=5).parameters(), strict=True):
        parameter.data.lerp_(other.data, 0.01)


@torch.no_grad()
def ema(model, optimizer):
    torch._foreach_lerp_(list(model.parameters()), list(small(seed=5).parameters()), 0.01)


def numpy_write(model, optimizer):
    q_of(model).detach().numpy()[:] += 1


def other_state(model, optimizer):
    model.load_state_dict(small(seed=5).state_dict(), strict=False)


def assigned_state(model, optimizer):
    model.load_state_dict(small(seed=5).state_dict(), assign=True, strict=False)


def layer_swapped(model, optimizer):
    model.transformer.h[0].attn = small(seed=5).transformer.h[0].attn


def frozen_layer_swapped(model, optimizer):
    model.transformer.h[0].attn = small(seed=5).transformer.h[0].attn.requires_grad_(False)


def trainable_layer_swapped(model, optimizer):
    model.transformer.h[1].mlp = small(seed=5).transformer.h[1].mlp


def weight_replaced(model, optimizer):
    model.transformer.h[0].attn.attention.q_proj.weight = nn.Parameter(torch.zeros(32, 32), False)


def swapped_under_its_name(model, optimizer):
    torch.utils.swap_tensors(q_of(model), nn.Parameter(torch.zeros(32, 32), False))


def untied(model, optimizer):
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())


def tied_elsewhere(model, optimizer):
    model.transformer.h[0].attn.attention.k_proj.weight = q_of(model)


def resized(model, optimizer):
    model.resize_token_embeddings(100)


def flag_flipped(model, optimizer):
    q_of(model).requires_grad_(True)


def all_thawed(model, optimizer):
    model.requires_grad_(True)


def plan_undone(model, optimizer):
    undo(model)


def another_plan(model, optimizer):
    FreezePlan.freeze("mlp").apply(model)


def cast(model, optimizer):
    model.bfloat16()


def attention_cast(model, optimizer):
    model.transformer.h[0].attn.half()


def trainable_cast(model, optimizer):
    model.transformer.h[1].mlp.bfloat16()


def buffer_written(model, optimizer):
    model.transformer.h[0].ln_1.scale.fill_(2.0)


def buffer_replaced(model, optimizer):
    model.transformer.h[0].ln_1.scale = torch.zeros(3)


def all_from_a_vector(model, optimizer):
    vector = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    vector_to_parameters(vector * 1.001, model.parameters())


def reparametrised(model, optimizer):
    parametrizations.weight_norm(model.transformer.h[0].attn.attention.q_proj)


def pruned(model, optimizer):
    prune.l1_unstructured(model.transformer.h[0].attn.attention.q_proj, "weight", amount=0.5)


def initialised_again(model, optimizer):
    model.transformer.h[0].attn.attention.q_proj.reset_parameters()


def adapter_merged(model, optimizer):
    q_of(model).data += torch.ones(32, 1) @ torch.ones(1, 32)


def unknown_optimizer(model, optimizer):
    q_of(model).requires_grad_(True)
    q_of(model).sum().backward()
    torch.optim.SGD([q_of(model)], lr=1e-3).step()
    q_of(model).grad = None
    q_of(model).requires_grad_(False)


NOW, NEXT_CHECK = f"step {FAULT}:", f"step {FAULT + 1}, by a sampled check, the last one was at step 2:"
LN = "transformer.h.0.ln_1.scale"
IN_THE_MIDDLE = {
    stale_gradient: (NOW, f"{Q} is frozen but has a gradient (nonzero)"),
    group_added: (NOW, f"{Q} is frozen but the optimizer holds it, without state"),
    group_added_that_decays: (NOW, f"{Q} is frozen but moved: the optimizer holds it, with weight decay"),
    group_dropped: (NOW, "is trainable but no optimizer holds it"),
    data_write: (NEXT_CHECK, f"{Q} is frozen but moved: no optimizer holds it, so other code changed it"),
    data_of_another: (NOW, f"{Q} is frozen but moved"),
    in_place: (NOW, f"{Q} is frozen but moved"),
    decay_by_hand: (NOW, f"{WTE} is frozen but moved"),
    ema_through_data: (NEXT_CHECK, f"{WTE} is frozen but moved"),
    ema: (NOW, f"{WTE} is frozen but moved"),
    numpy_write: (NEXT_CHECK, f"{Q} is frozen but moved"),
    other_state: (NOW, f"{WTE} is frozen but moved"),
    assigned_state: (NOW, "lm_head.weight is new since the snapshot: was a tie made or broken?"),
    layer_swapped: (NOW, "attn.attention.k_proj.weight was frozen at the snapshot and is trainable now"),
    frozen_layer_swapped: (NOW, "transformer.h.0.attn.attention.k_proj.weight is frozen but moved"),
    trainable_layer_swapped: (NOW, f"{UP} is trainable and changed, but no optimizer holds it: it was rep"),
    weight_replaced: (NOW, f"{Q} is frozen but moved"),
    swapped_under_its_name: (NOW, f"{Q} is frozen but moved"),
    untied: (NOW, "lm_head.weight is new since the snapshot: was a tie made or broken?"),
    tied_elsewhere: (NOW, f"{Q} is gone since the snapshot: was a tie made or broken?"),
    resized: (NOW, f"{WTE} "),
    flag_flipped: (NOW, f"{Q} was frozen at the snapshot and is trainable now"),
    all_thawed: (NOW, f"{WTE} was frozen at the snapshot and is trainable now"),
    plan_undone: (NOW, f"{WTE} was frozen at the snapshot and is trainable now"),
    another_plan: (NOW, f"{WTE} was frozen at the snapshot and is trainable now"),
    cast: (NOW, "was float32 32 at the snapshot, bfloat16 32 now"),
    attention_cast: (NOW, "transformer.h.0.attn.attention.k_proj.weight is frozen but moved"),
    trainable_cast: (NOW, f"{UP} is trainable and was float32 64x32 at the snapshot, bfloat16 64x32 now"),
    buffer_written: (NOW, f"{LN} is a buffer but moved"),
    buffer_replaced: (NOW, f"{LN} is a buffer but moved"),
    all_from_a_vector: (NOW, f"{WTE} is frozen but moved"),
    reparametrised: (NOW, "transformer.h.0.attn.attention.q_proj.parametrizations.weight.original0 is new"),
    pruned: (NOW, f"{Q} is gone since the snapshot"),
    initialised_again: (NOW, f"{Q} is frozen but moved"),
    adapter_merged: (NEXT_CHECK, f"{Q} is frozen but moved"),
    unknown_optimizer: (NOW, f"{Q} is frozen but moved"),
}


@pytest.mark.parametrize("fault", IN_THE_MIDDLE, ids=lambda fault: fault.__name__)
def test_a_fault_in_the_middle_stops_the_training_at_its_step_and_names_the_tensor(fault):
    when, what = IN_THE_MIDDLE[fault]
    model = small()
    model.transformer.h[0].ln_1.register_buffer("scale", torch.ones(3))
    guard = FreezeGuard(model, MAIN, every=EVERY)
    with pytest.raises(FreezingError) as error:
        train(guard, adam(model), fault)
    assert str(error.value).startswith(f"Stopped at {when} ")
    assert what in str(error.value)
    assert guard.proof is None


def test_at_least_thirty_faults_are_planted():
    assert len(AT_THE_START) + len(IN_THE_MIDDLE) >= 30


def test_a_head_of_its_own_that_is_tied_to_the_frozen_embeddings_is_found():
    def tied(model, optimizer):
        model.lm_head.weight = model.get_parameter(WTE)

    model = small(tie_word_embeddings=False)
    with pytest.raises(FreezingError, match=r"^Stopped at step 3: lm_head\.weight is gone .* was a tie made"):
        train(FreezeGuard(model, MAIN), adam(model), tied)


def test_one_number_that_was_written_past_autograd_is_found_in_its_turn_or_at_the_end():
    def one_number(model, optimizer):
        q_of(model).data[5, 0] += 1  # in the third of sixteen slices

    model = small()
    guard = FreezeGuard(model, MAIN, every=EVERY)
    with pytest.raises(FreezingError, match=f"^Stopped at step 6, by a sampled check.*{re.escape(Q)}"):
        train(guard, adam(model), one_number)
    model = small()
    guard = FreezeGuard(model, MAIN, every=100)
    with pytest.raises(
        FreezingError, match=f"^Stopped at the end, after step 8.*\n.*{re.escape(Q)} is frozen"
    ):
        train(guard, adam(model), one_number)


def test_a_harmless_write_in_each_step_hides_no_other_write():
    model = small()
    guard = FreezeGuard(model, MAIN, every=EVERY)
    guard.watch(adam(model))
    with pytest.raises(
        FreezingError, match=f"^Stopped at step 4, by a sampled check.*{re.escape(Q)} is frozen"
    ):
        for step in range(1, N_STEPS):
            with torch.no_grad():
                model.get_parameter(WTE).mul_(1)
            if step == FAULT:
                data_write(model, None)
            guard.step()


def test_a_failed_loop_keeps_its_own_error():
    model = small()
    with pytest.raises(ZeroDivisionError), FreezeGuard(model, MAIN):
        in_place(model, None)
        1 / 0  # noqa: B018


# --- no false alarm --------------------------------------------------------------------

TWELVE = FAMILIES | {
    "starcoder2": FAMILIES["qwen2"] | {"max_position_embeddings": 32},
}


@pytest.mark.parametrize("family", TWELVE)
def test_no_false_alarm(family, tmp_path):
    model = build_model(AutoConfig.for_model(family, **TWELVE[family])).train()
    for key in ("attention+embeddings", "first-half", "only-norms"):
        run = copy.deepcopy(model)
        guard = FreezeGuard(run, COURSE_PLANS[key], every=1, delta=tmp_path / key)
        train(guard, adam(run), n_steps=3)
        assert guard.proof.ok and guard.proof.n_moved > 0, guard.proof
        assert weight_hash(load_delta(tmp_path / key, model)) == weight_hash(run)


def test_twelve_families_are_tried():
    assert len(TWELVE) == 12


def same_bits_again(model, optimizer):
    model.load_state_dict(model.state_dict())


def moved_in_memory(model, optimizer):
    model.get_parameter(Q).data = model.get_parameter(Q).data.clone()


def swapped_out_and_in(model, optimizer):
    tuned = copy.deepcopy(model.state_dict())
    model.load_state_dict(small(seed=5).state_dict())
    model.load_state_dict(tuned)


def tied_again(model, optimizer):
    model.tie_weights()


@pytest.mark.parametrize("what", [same_bits_again, moved_in_memory, swapped_out_and_in, tied_again])
def test_the_same_bits_written_again_are_no_alarm(what):
    model = small()
    guard = FreezeGuard(model, MAIN, every=EVERY)
    train(guard, adam(model), what)
    assert guard.proof.ok


def test_a_trainable_tensor_at_rest_is_a_warning_and_the_delta_is_saved(tmp_path):
    model = small().bfloat16()
    guard = FreezeGuard(model, MAIN, delta=tmp_path)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-6)
    with pytest.warns(UserWarning, match="is trainable but did not move: .* too small for torch.bfloat16"):
        train(guard, optimizer)
    assert (tmp_path / "delta.safetensors").exists()


# --- what it costs ---------------------------------------------------------------------


def test_a_sampled_check_hashes_a_sixteenth_of_what_is_frozen():
    model = small(hidden_size=64)
    guard = FreezeGuard(model, MAIN, every=EVERY)
    train(guard, adam(model), n_steps=2 * EVERY)
    frozen = sum(4 * p.numel() for p in model.parameters() if not p.requires_grad)
    assert guard._watch.hashed_bytes == pytest.approx(2 * frozen / 16, rel=0.02)


def test_a_step_without_a_sampled_check_hashes_nothing(monkeypatch):
    model = small()
    guard = FreezeGuard(model, MAIN, every=100)
    optimizer = adam(model)
    guard.watch(optimizer)
    monkeypatch.setattr(watches, "tensor_hash", None)
    monkeypatch.setattr(proofs, "tensor_hash", None)
    for _ in range(3):
        backward(model)
        optimizer.step()
        guard.step()


def test_what_was_written_again_with_the_same_bits_is_hashed_once(monkeypatch):
    model = small()
    guard = FreezeGuard(model, MAIN, every=100)
    guard.watch(adam(model))
    same_bits_again(model, None)
    guard.step()
    monkeypatch.setattr(proofs, "tensor_hash", None)
    guard.step()


# --- forgetting ------------------------------------------------------------------------


def test_forgetting_is_measured_where_a_retention_is_given():
    model = small()
    retention = Retention.sampled_from(model, 4, 10)
    guard = FreezeGuard(model, MAIN, retention=retention)
    optimizer = adam(model)
    guard.watch(optimizer)
    assert guard.evaluate() == 0
    backward(model)
    optimizer.step()
    guard.step()
    assert guard.evaluate() == retention.forgetting(model).mean > 0
    assert [step for step, _ in guard.forgetting] == [0, 1]
    with pytest.raises(ValueError, match="needs a retention"):
        FreezeGuard(small(), MAIN).evaluate()


def test_a_plan_that_does_not_fit_changes_nothing():
    model = small()
    with pytest.raises(PlanError):
        FreezeGuard(model, FreezePlan.freeze("experts"))
    assert all(p.requires_grad for p in model.parameters())


# --- Hugging Face's Trainer ------------------------------------------------------------


def trainer_of(model, folder, *callbacks, optimizer=None, **changes):
    rows = [{"input_ids": row, "labels": row} for row in ids_of(model, rows=8)]
    settings = {
        "max_steps": 6, "per_device_train_batch_size": 2, "learning_rate": 1e-3, "report_to": "none",
        "use_cpu": True, "disable_tqdm": True, "eval_strategy": "steps", "eval_steps": 3, "save_strategy": "no",
        "logging_strategy": "no",
    }  # fmt: skip
    return Trainer(
        model,
        TrainingArguments(str(folder), **settings | changes),
        train_dataset=rows,
        eval_dataset=rows[:2],
        callbacks=list(callbacks),
        optimizers=(optimizer, None),
    )


class Reporter(TrainerCallback):
    """Notes what the Trainer gives to TensorBoard and its like."""

    def __init__(self):
        self.seen = set()

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.seen |= logs.keys()


def test_in_the_trainer_the_plan_holds_forgetting_is_logged_and_the_delta_is_saved(tmp_path):
    model = small()
    base = copy.deepcopy(model)
    guard = FreezeGuard(model, MAIN, retention=Retention.sampled_from(model, 4, 10), delta=tmp_path)
    reporter = Reporter()
    trainer = trainer_of(model, tmp_path / "trainer", guard, reporter)
    trainer.train()
    assert guard.proof.ok and guard.proof.n_moved == guard.proof.n_trainable_tensors
    assert "eval_loss" in reporter.seen and "eval_forgetting" not in reporter.seen, (
        "as docs/take_home.md says"
    )
    assert [step for step, _ in guard.forgetting] == [3, 6]
    logged = {
        row["step"]: row["eval_forgetting"] for row in trainer.state.log_history if "eval_forgetting" in row
    }
    assert logged == dict(guard.forgetting) and logged[6] > 0
    assert weight_hash(load_delta(tmp_path, base)) == weight_hash(model) != weight_hash(base)


def test_the_trainer_goes_on_from_its_own_checkpoint_under_a_guard(tmp_path):
    model = small()
    folder = tmp_path / "trainer"
    trainer_of(model, folder, FreezeGuard(model, MAIN), save_strategy="steps", save_steps=3).train()
    again = small()
    guard = FreezeGuard(again, MAIN, delta=tmp_path)
    trainer_of(again, folder, guard).train(resume_from_checkpoint=str(folder / "checkpoint-3"))
    assert guard.n_steps == 6 and guard.proof.ok
    assert weight_hash(again) == weight_hash(model)


def resumed_under(tmp_path, plan, other):
    """What a guard of another plan says to the Trainer's checkpoint of a run under ``plan``; and the steps it took."""
    trainer_of(
        model := small(), tmp_path, FreezeGuard(model, plan), save_strategy="steps", save_steps=3
    ).train()
    again = small()
    guard = FreezeGuard(again, other)
    with pytest.raises((FreezingError, ValueError)) as refused:
        trainer_of(again, tmp_path, guard).train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert guard.proof is None
    return refused.value, guard.n_steps


def test_the_trainers_checkpoint_of_another_plan_is_refused_before_a_step(tmp_path):
    """The guard sees what moved; where other numbers of tensors train, torch's optimizer speaks first (take_home.md)."""
    first, second = FreezePlan.only("layers:0-0"), FreezePlan.only("layers:1-1")
    said, n_steps = resumed_under(tmp_path / "as many", first, second)
    assert isinstance(said, FreezingError) and "h.0" in str(said) and len(str(said).splitlines()) == 1
    assert n_steps == 3
    said, n_steps = resumed_under(tmp_path / "more", first, FreezePlan.full())
    assert "parameter group that doesn't match the size" in str(said) and n_steps == 0


USUAL = {
    "gradients added up": {"gradient_accumulation_steps": 2},
    "checkpointing": {"gradient_checkpointing": True},
    "bfloat16": {"bf16": True},
    "clipped and decayed": {"max_grad_norm": 0.1, "weight_decay": 0.1},
    "the best one at the end": {
        "save_strategy": "steps", "save_steps": 3, "load_best_model_at_end": True,
        "metric_for_best_model": "eval_forgetting", "greater_is_better": False,
    },
}  # fmt: skip


@pytest.mark.parametrize("settings", USUAL.values(), ids=USUAL)
def test_the_trainers_usual_settings_are_no_alarm(tmp_path, settings):
    model = small()
    base = copy.deepcopy(model)
    guard = FreezeGuard(model, MAIN, retention=Retention.sampled_from(model, 4, 10), delta=tmp_path)
    trainer_of(model, tmp_path / "trainer", guard, **settings).train()
    assert guard.n_steps == 6 and guard.proof.ok
    assert weight_hash(load_delta(tmp_path, base)) == weight_hash(model) != weight_hash(base)
    if "load_best_model_at_end" in settings:
        best = load_file(tmp_path / "trainer" / "checkpoint-3" / "model.safetensors")
        assert guard.forgetting[0][1] < guard.forgetting[1][1], "the base is nearer after fewer steps"
        assert all(torch.equal(value, best[name]) for name, value in model.named_parameters())


class Writes(TrainerCallback):
    """A callback that writes into a frozen tensor after step 3, past autograd or not."""

    def __init__(self, write):
        self.write = write

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step == FAULT:
            self.write(model, None)


@pytest.mark.parametrize("guard_is_first", [True, False], ids=["after the guard", "before the guard"])
@pytest.mark.parametrize("write", [in_place, data_write], ids=["counted", "not counted"])
def test_a_callback_that_writes_is_found(tmp_path, write, guard_is_first):
    model = small()
    guard = FreezeGuard(model, MAIN, every=EVERY)
    callbacks = [guard, Writes(write)] if guard_is_first else [Writes(write), guard]
    step = 3 if write is in_place else 4
    with pytest.raises(
        FreezingError, match=f"^Stopped at step {step}[:,].*{re.escape(Q)} is frozen but moved"
    ):
        trainer_of(model, tmp_path, *callbacks).train()


def test_the_trainer_with_an_optimizer_of_before_the_plan_is_stopped(tmp_path):
    model = small()
    optimizer = early(model)
    guard = FreezeGuard(model, MAIN)
    with pytest.raises(
        FreezingError, match=f"^Stopped at step 0: {re.escape(WTE)} is frozen but the optimizer"
    ):
        trainer_of(model, tmp_path, guard, optimizer=optimizer).train()


def test_the_trainer_of_another_model_is_stopped(tmp_path):
    model = small()
    guard = FreezeGuard(model, MAIN)
    with pytest.raises(FreezingError, match="^Stopped at step 0: the Trainer trains another model"):
        trainer_of(copy.deepcopy(model), tmp_path, guard).train()


def test_a_frozen_tensor_that_was_thawed_between_plan_and_training_is_found(tmp_path):
    model = small()
    guard = FreezeGuard(model, MAIN)
    model.enable_input_require_grads()  # of inputs alone: no alarm
    trainer_of(model, tmp_path, guard).train()
    guard = FreezeGuard(model, MAIN)
    change_plan(model, early(model), FreezePlan.full())
    with pytest.raises(
        FreezingError, match=f"step 0: {re.escape(WTE)} was frozen at the snapshot and is train"
    ):
        trainer_of(model, tmp_path, guard).train()


@pytest.mark.long
@pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="trl is not installed: pip install trl")
def test_in_the_sft_trainer_the_plan_holds_and_a_write_is_found(tmp_path):
    trl = importlib.import_module("trl")  # no requirement of the course: installed by hand for this test

    def trainer_for(model, *callbacks):
        settings = trl.SFTConfig(
            str(tmp_path / "trl"), max_steps=4, per_device_train_batch_size=2, max_length=32,
            learning_rate=1e-3, report_to="none", use_cpu=True, bf16=False, disable_tqdm=True, save_strategy="no",
        )  # fmt: skip
        rows = Dataset.from_dict({"text": ["The Rabbit looked at its watch.", "Once upon a midnight."] * 4})
        return trl.SFTTrainer(
            model, settings, train_dataset=rows, processing_class=load_tokenizer(TINY.model),
            callbacks=list(callbacks),
        )  # fmt: skip

    model = load_model(TINY.model, device="cpu")
    base = copy.deepcopy(model)
    guard = FreezeGuard(model, MAIN, delta=tmp_path)
    trainer_for(model, guard).train()
    assert guard.n_steps == 4 and guard.proof.ok and guard.proof.n_moved > 0, guard.proof
    assert weight_hash(load_delta(tmp_path, base)) == weight_hash(model) != weight_hash(base)
    model = copy.deepcopy(base)

    class WritesQ(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            with torch.no_grad():
                model.get_parameter(Q).add_(1e-3)

    with pytest.raises(FreezingError, match=f"^Stopped at step 1: {re.escape(Q)} is frozen but moved"):
        trainer_for(model, FreezeGuard(model, MAIN), WritesQ()).train()


@pytest.mark.parametrize(
    "words, message",
    [
        ({"delta": ""}, "names nothing. Give a name"),
        ({"delta": " "}, "names nothing. Give a name"),
        ({"every": 1.5}, "every must be 1 step or more; found 1.5"),
        ({"every": True}, "every must be 1 step or more; found True"),
        ({"retention": "x"}, "retention is a Retention"),
        ({"roles": ["mlp"]}, "roles is a dict of pattern to role"),
    ],
)
def test_a_guard_is_refused_words_that_it_cannot_use(words, message):
    model = small()
    with pytest.raises((TypeError, ValueError, DeltaError), match=message):
        FreezeGuard(model, FreezePlan.freeze("attention"), **words)
    assert all(parameter.requires_grad for parameter in model.parameters())
