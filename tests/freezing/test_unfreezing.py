"""A plan changed in the middle of a run: new tensors move, old moments stay, refrozen tensors never move."""

from dataclasses import FrozenInstanceError

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from helpers.freezing.plans import FreezePlan
from helpers.freezing.selectors import PlanError
from helpers.freezing.unfreezing import UnfreezingError, change_plan, layer_by_layer
from helpers.models.loading import build_model, mini_config
from helpers.models.losses import next_token_loss
from support import tiny

CONFIG = tiny.config(num_layers=4, attention_types=[[["global", "local"], 2]])
IDS = torch.randint(97, (4, 24), generator=torch.Generator().manual_seed(0))
LAST, LAST_TWO = FreezePlan.only("layers:3"), FreezePlan.only("layers:2-3")


def step(model, optimizer, n=1):
    for _ in range(n):
        total, n_tokens = next_token_loss(model, IDS)
        (total / n_tokens).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


@pytest.fixture
def run():
    """A model whose last block has trained for three steps, with weight decay, and its optimizer."""
    model = build_model(CONFIG, seed=1)
    LAST.apply(model)
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.1
    )
    step(model, optimizer, 3)
    return model, optimizer


def copies(model, names):
    return {n: model.get_parameter(n).detach().clone() for n in names}


def moments(model, optimizer, names):
    state = {n: optimizer.state[model.get_parameter(n)] for n in names}
    return {(n, key): torch.as_tensor(value).clone() for n, s in state.items() for key, value in s.items()}


def in_block(model, layer):
    return [n for n, _ in model.named_parameters() if f".h.{layer}." in n]


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"learning_rate": 1e-4}, "knows no setting learning_rate"), ({"lr": float("nan")}, "lr must")],
)
def test_a_setting_that_the_optimizer_does_not_know_is_refused_before_anything_changes(run, settings, words):
    model, optimizer = run
    flags = [p.requires_grad for p in model.parameters()]
    with pytest.raises(UnfreezingError, match=words):
        change_plan(model, optimizer, LAST_TWO, **settings)
    assert [p.requires_grad for p in model.parameters()] == flags and len(optimizer.param_groups) == 1


def test_the_optimizer_of_another_model_is_refused(run):
    with pytest.raises(UnfreezingError, match="tensors that are not in this model"):
        change_plan(build_model(CONFIG, seed=2), run[1], LAST_TWO)


def test_new_tensors_move_after_unfreezing_and_the_rest_does_not(run):
    model, optimizer = run
    change = change_plan(model, optimizer, LAST_TWO)
    assert sorted(change.thawed) == sorted(in_block(model, 2)) and not change.refrozen
    before = copies(model, [n for n, _ in model.named_parameters()])
    step(model, optimizer)
    moved = {n for n, old in before.items() if not torch.equal(old, model.get_parameter(n))}
    assert moved == set(in_block(model, 2) + in_block(model, 3))


def test_old_moments_are_kept_bit_for_bit(run):
    model, optimizer = run
    before = moments(model, optimizer, in_block(model, 3))
    change = change_plan(model, optimizer, LAST_TWO)
    after = moments(model, optimizer, change.kept)
    assert before.keys() == after.keys() and len(before) == 3 * len(in_block(model, 3))
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_the_kept_tensors_go_on_as_if_nothing_had_changed_where_the_new_rate_is_zero(run):
    model, optimizer = run
    other = build_model(CONFIG, seed=1)
    LAST.apply(other)
    its = torch.optim.AdamW([p for p in other.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.1)
    step(other, its, 5)
    change_plan(model, optimizer, LAST_TWO, lr=0.0)
    step(model, optimizer, 2)
    for name in in_block(model, 3):
        assert torch.allclose(model.get_parameter(name), other.get_parameter(name), atol=1e-7), name


def test_refrozen_tensors_never_move_again(run):
    model, optimizer = run
    total, _ = next_token_loss(model, IDS)
    total.backward()  # a gradient that would still move the weight
    change = change_plan(model, optimizer, FreezePlan.only("layers:2"))
    assert sorted(change.refrozen) == sorted(in_block(model, 3)) and not change.kept
    before = copies(model, change.refrozen)
    assert all(model.get_parameter(n).grad is None for n in change.refrozen)
    assert all(model.get_parameter(n) not in optimizer.state for n in change.refrozen)
    step(model, optimizer, 3)
    assert all(torch.equal(old, model.get_parameter(n)) for n, old in before.items())


def test_by_hand_a_refrozen_tensor_goes_on_moving(run):
    """What `change_plan` is for: the flag alone does not stop a stale gradient, moments and weight decay."""
    model, optimizer = run
    total, _ = next_token_loss(model, IDS)
    total.backward()
    weight = model.transformer.h[3].mlp.c_fc.weight.requires_grad_(False)
    before = weight.detach().clone()
    optimizer.step()
    assert not torch.equal(before, weight)


def test_thawing_again_starts_without_the_old_moments(run):
    model, optimizer = run
    change_plan(model, optimizer, FreezePlan.only("layers:2"))
    change_plan(model, optimizer, LAST_TWO)
    step(model, optimizer)
    assert {optimizer.state[model.get_parameter(n)]["step"].item() for n in in_block(model, 3)} == {1.0}


def test_a_new_group_has_the_settings_of_the_last_one_and_its_own_rate(run):
    model, optimizer = run
    change_plan(model, optimizer, LAST_TWO, lr=1e-4)
    old, new = optimizer.param_groups
    assert (old["lr"], new["lr"]) == (1e-2, 1e-4) and old["weight_decay"] == new["weight_decay"] == 0.1


def test_each_tensor_is_held_once_whatever_is_changed(run):
    model, optimizer = run
    for plan in (LAST_TWO, FreezePlan.full(), LAST, FreezePlan.freeze("embeddings"), FreezePlan.full()):
        change_plan(model, optimizer, plan)
        held = [id(p) for group in optimizer.param_groups for p in group["params"]]
        assert sorted(held) == sorted(id(p) for p in model.parameters() if p.requires_grad)
        step(model, optimizer)


def test_a_plan_that_does_not_fit_changes_nothing(run):
    model, optimizer = run
    flags, groups = [p.requires_grad for p in model.parameters()], len(optimizer.param_groups)
    with pytest.raises(PlanError):
        change_plan(model, optimizer, FreezePlan.only("layers:9"))
    assert flags == [p.requires_grad for p in model.parameters()] and groups == len(optimizer.param_groups)


def test_a_model_wrapped_for_several_processes_is_refused(run):
    model, optimizer = run
    wrapped = DistributedDataParallel.__new__(
        DistributedDataParallel
    )  # a process group is not needed to be refused
    with pytest.raises(UnfreezingError, match="wrap it again"):
        change_plan(wrapped, optimizer, LAST)


def test_layer_by_layer_goes_from_the_last_block_to_all(run):
    plans = layer_by_layer(run[0])
    assert [p.selectors for p in plans] == [
        ("layers:3-3",),
        ("layers:2-3",),
        ("layers:1-3",),
        ("layers:0-3",),
    ]
    counts = [p.explain(run[0]).n_trainable for p in plans]
    assert counts == sorted(counts) and counts[0] * 4 == counts[-1]


# --- borders and words --------------------------------------------------------------

SMALL = mini_config(
    vocab_size=97,
    hidden_size=16,
    num_layers=2,
    num_heads=2,
    intermediate_size=24,
    max_position_embeddings=24,
    window_size=8,
    attention_types=[[["global", "local"], 1]],
)


def begun_with(plan):
    model = build_model(SMALL, seed=1)
    plan.apply(model)
    return model, torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)


def test_a_change_says_how_many_tensors_it_moved_and_cannot_be_changed():
    model, optimizer = begun_with(FreezePlan.only("layers:1", "norms"))
    change = change_plan(model, optimizer, FreezePlan.only("layers:0", "norms"))
    counts = len(change.thawed), len(change.refrozen), len(change.kept)
    assert counts == (9, 9, 10)
    assert str(change) == "9 tensors train from here on, 9 no longer do, 10 go on with their moments"
    with pytest.raises(FrozenInstanceError):
        change.kept = ()


def test_a_new_group_does_not_start_at_the_rate_that_a_scheduler_remembers():
    model, optimizer = begun_with(FreezePlan.only("layers:1"))
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5)
    change_plan(model, optimizer, FreezePlan.full())
    old, new = optimizer.param_groups
    assert old["initial_lr"] == 1e-2 and "initial_lr" not in new and new["lr"] == old["lr"] == 5e-3


def test_no_group_is_added_where_nothing_new_trains_and_an_empty_one_stays():
    model, optimizer = begun_with(FreezePlan.full())
    change_plan(model, optimizer, FreezePlan.only("norms"))
    assert len(optimizer.param_groups) == 1
    change_plan(model, optimizer, FreezePlan.only("embeddings"))
    assert [len(group["params"]) for group in optimizer.param_groups] == [0, 2]


def test_what_an_optimizer_wraps_is_what_is_changed():
    model, optimizer = begun_with(FreezePlan.only("layers:1"))
    wrapper = type("Wrapped", (), {"optimizer": optimizer})()
    change_plan(model, wrapper, FreezePlan.full())
    assert len(optimizer.param_groups) == 2


def test_the_message_about_a_wrapped_model_names_the_wrapper():
    wrapped = torch.nn.parallel.DistributedDataParallel.__new__(torch.nn.parallel.DistributedDataParallel)
    with pytest.raises(UnfreezingError, match=r"\(DistributedDataParallel\)"):
        change_plan(wrapped, None, FreezePlan.full())
