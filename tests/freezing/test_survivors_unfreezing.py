"""A plan changed in the middle of a run: what the other tests let pass when the code was broken."""

from dataclasses import FrozenInstanceError

import pytest
import torch

from helpers.freezing.plans import FreezePlan
from helpers.freezing.unfreezing import UnfreezingError, change_plan
from helpers.models.loading import build_model, mini_config

CONFIG = mini_config(
    vocab_size=97,
    hidden_size=16,
    num_layers=2,
    num_heads=2,
    intermediate_size=24,
    max_position_embeddings=24,
    window_size=8,
    attention_types=[[["global", "local"], 1]],
)


def begun(plan):
    model = build_model(CONFIG, seed=1)
    plan.apply(model)
    return model, torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)


def test_a_change_says_how_many_tensors_it_moved_and_cannot_be_changed():
    model, optimizer = begun(FreezePlan.only("layers:1", "norms"))
    change = change_plan(model, optimizer, FreezePlan.only("layers:0", "norms"))
    counts = len(change.thawed), len(change.refrozen), len(change.kept)
    assert counts == (9, 9, 10)
    assert str(change) == "9 tensors train from here on, 9 no longer do, 10 go on with their moments"
    with pytest.raises(FrozenInstanceError):
        change.kept = ()


def test_a_new_group_does_not_start_at_the_rate_that_a_scheduler_remembers():
    model, optimizer = begun(FreezePlan.only("layers:1"))
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5)
    change_plan(model, optimizer, FreezePlan.full())
    old, new = optimizer.param_groups
    assert old["initial_lr"] == 1e-2 and "initial_lr" not in new and new["lr"] == old["lr"] == 5e-3


def test_no_group_is_added_where_nothing_new_trains_and_an_empty_one_stays():
    model, optimizer = begun(FreezePlan.full())
    change_plan(model, optimizer, FreezePlan.only("norms"))
    assert len(optimizer.param_groups) == 1
    change_plan(model, optimizer, FreezePlan.only("embeddings"))
    assert [len(group["params"]) for group in optimizer.param_groups] == [0, 2]


def test_what_an_optimizer_wraps_is_what_is_changed():
    model, optimizer = begun(FreezePlan.only("layers:1"))
    wrapper = type("Wrapped", (), {"optimizer": optimizer})()
    change_plan(model, wrapper, FreezePlan.full())
    assert len(optimizer.param_groups) == 2


def test_the_message_about_a_wrapped_model_names_the_wrapper():
    wrapped = torch.nn.parallel.DistributedDataParallel.__new__(torch.nn.parallel.DistributedDataParallel)
    with pytest.raises(UnfreezingError, match=r"\(DistributedDataParallel\)"):
        change_plan(wrapped, None, FreezePlan.full())
