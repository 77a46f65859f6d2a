"""The watch by itself: which bytes it hashes and when, what it calls odd, and what it says."""

import pytest
import torch
from torch import nn

from helpers.freezing import proof
from helpers.freezing.proof import FreezingError, snapshot
from helpers.freezing.watch import Watch, stop

BY_OTHERS = "moved: no optimizer holds it, so other code changed it"


def small() -> nn.Module:
    """Sizes to count by hand: a row of the table is a sixteenth of it."""
    model = nn.Module()
    model.table = nn.Parameter(torch.arange(80.0).view(16, 5), requires_grad=False)
    model.short = nn.Parameter(torch.arange(3.0), requires_grad=False)
    model.up = nn.Parameter(torch.ones(4))
    model.register_buffer("scale", torch.ones(2))
    model.register_buffer("cache", torch.ones(6), persistent=False)
    return model


def watched(every: int = 2) -> tuple[nn.Module, Watch, torch.optim.SGD]:
    model = small()
    watch = Watch(model, every)
    optimizer = torch.optim.SGD([model.up], lr=0.1)
    watch.hold(optimizer)
    return model, watch, optimizer


def first_stop(watch: Watch, first: int = 1) -> str:
    """What is said when the watch stops, within forty steps; "" where it does not."""
    for step in range(first, first + 40):
        try:
            watch.look(step)
        except FreezingError as error:
            return str(error)
    return ""


def by_sampled_check(step: int, every: int = 2) -> str:
    return f"Stopped at step {step}, by a sampled check, the last one was at step {step - every}: "


# --- what it costs -----------------------------------------------------------------


def test_a_watch_begins_with_a_snapshot_and_looks_every_20_steps_unless_told():
    model = small()
    watch = Watch(model)
    assert watch.every == 20 and watch.before == snapshot(model)
    assert watch.hashed_bytes == 0 and watch.optimizer is None


@pytest.mark.parametrize("every", [0, -3])
def test_a_check_between_two_steps_is_refused(every):
    with pytest.raises(ValueError, match=rf"^every must be 1 step or more; found {every}\.$"):
        Watch(small(), every)
    assert Watch(small(), 1).every == 1


def test_each_check_hashes_the_next_sixteenth_of_what_is_frozen_and_then_begins_again():
    _, watch, _ = watched()
    watch.look(0)
    hashed = {0: watch.hashed_bytes}
    for step in range(1, 35):
        watch.look(step)
        hashed[step] = watch.hashed_bytes
    # 20 bytes of the table each time; 4 of `short` three times, 4 of the buffer `scale` twice
    assert [hashed[step] for step in (0, 1, 2, 3, 4, 6, 8, 10)] == [0, 0, 28, 28, 56, 80, 100, 120]
    assert hashed[32] == 4 * (80 + 3 + 2) and hashed[34] == hashed[32] + 28


def test_a_look_between_two_steps_hashes_nothing():
    model, watch, _ = watched()
    model.table.data[0] += 1
    watch.look(2, sampled=False)
    assert watch.hashed_bytes == 0
    with pytest.raises(FreezingError, match="^Stopped at step 2, by a sampled check"):
        watch.look(2)


# --- writes past autograd ------------------------------------------------------------


@pytest.mark.parametrize("row, step", [(0, 2), (3, 8), (15, 32)])
def test_a_write_past_autograd_is_found_when_its_row_is_hashed(row, step):
    model, watch, _ = watched()
    model.table.data[row, 4] += 1
    assert first_stop(watch) == f"{by_sampled_check(step)}table is frozen but {BY_OTHERS}"


def test_a_row_that_was_hashed_already_is_found_in_the_next_round():
    model, watch, _ = watched()
    watch.look(2)
    model.table.data[0, 0] += 1
    assert first_stop(watch, 3).startswith(by_sampled_check(34))


def test_of_a_tensor_of_less_than_sixteen_numbers_each_check_hashes_one_while_there_are_some():
    model, watch, _ = watched(every=1)
    model.short.data[2] += 1
    assert first_stop(watch) == f"{by_sampled_check(3, 1)}short is frozen but {BY_OTHERS}"


def test_a_stored_buffer_is_hashed_and_one_that_the_model_computes_is_not():
    model, watch, _ = watched()
    model.cache.data.add_(1)
    assert first_stop(watch) == ""
    model.scale.data[1] += 1
    model.up.data.add_(1)
    assert first_stop(watch, 41) == f"{by_sampled_check(68)}scale is a buffer but {BY_OTHERS}"


# --- what is seen without arithmetic ---------------------------------------------------


@pytest.mark.parametrize("step", [1, 2])
def test_a_write_that_autograd_counts_is_found_at_once_and_by_no_sampled_check(step):
    model, watch, _ = watched()
    model.table.add_(1)
    with pytest.raises(FreezingError) as error:
        watch.look(step)
    assert str(error.value) == f"Stopped at step {step}: table is frozen but {BY_OTHERS}"


def test_of_a_counted_and_an_uncounted_write_both_are_told():
    model, watch, _ = watched()
    model.table.add_(1)
    model.short.data[0] += 1
    with pytest.raises(FreezingError) as error:
        watch.look(2)
    assert str(error.value) == f"{by_sampled_check(2)}table is frozen but {BY_OTHERS} (and 1 more)"


def gradient(model):
    model.table.grad = torch.zeros(16, 5)


def thawed(model):
    model.table.requires_grad_(True)


def cast(model):
    model.up.data = model.up.data.half()


def reshaped(model):
    model.up.data = torch.ones(5)


def gone(model):
    del model.short


def new(model):
    model.more = nn.Parameter(torch.ones(2), requires_grad=False)


ODD = {
    gradient: "table is frozen but has a gradient (all zeros, and zero is not absent)",
    thawed: "table was frozen at the snapshot and is trainable now",
    cast: "up is trainable and was float32 4 at the snapshot, float16 4 now",
    reshaped: "up is trainable and was float32 4 at the snapshot, float32 5 now",
    gone: "short is gone since the snapshot",
    new: "more is new since the snapshot",
}


@pytest.mark.parametrize("step", [1, 2])
@pytest.mark.parametrize("change", ODD, ids=lambda change: change.__name__)
def test_what_else_is_odd_is_found_at_once(change, step):
    model, watch, _ = watched()
    change(model)
    with pytest.raises(FreezingError) as error:
        watch.look(step)
    assert str(error.value).startswith(f"Stopped at step {step}: {ODD[change]}")


def test_the_same_bits_at_another_place_are_no_alarm_and_are_hashed_once(monkeypatch):
    model, watch, _ = watched()
    hashed, tensor_hash = [], proof.tensor_hash
    monkeypatch.setattr(proof, "tensor_hash", lambda tensor: hashed.append(tensor) or tensor_hash(tensor))
    model.table.data = model.table.data.clone()
    watch.look(1)
    assert [tensor is model.table for tensor in hashed] == [True]
    watch.look(3)
    assert len(hashed) == 1


def test_a_step_of_training_is_no_alarm():
    model, watch, optimizer = watched(every=1)
    for step in range(1, 20):
        model.up.square().sum().backward()
        optimizer.step()
        watch.look(step)
        optimizer.zero_grad()
        watch.look(step, sampled=False)
    assert not torch.equal(model.up, torch.ones(4))


# --- the optimizer -------------------------------------------------------------------


def test_an_optimizer_is_looked_at_when_it_comes():
    model = small()
    watch = Watch(model)
    with pytest.raises(FreezingError, match="^Stopped at step 0: table is frozen but the optimizer holds it"):
        watch.hold(torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(FreezingError, match="^Stopped at step 0: up is trainable but no optimizer holds it"):
        watch.hold(torch.optim.SGD([torch.ones(1)], lr=0.1))
    two = [torch.optim.SGD([tensor], lr=0.1) for tensor in (model.up, torch.ones(1))]
    watch.hold(*two)
    assert watch.optimizer == tuple(two)


def test_a_frozen_tensor_that_an_optimizer_takes_later_is_found():
    model, watch, optimizer = watched()
    optimizer.add_param_group({"params": [model.short]})
    with pytest.raises(FreezingError, match="^Stopped at step 1: short is frozen but the optimizer holds it"):
        watch.look(1)


def test_a_trainable_tensor_that_an_optimizer_lets_go_is_found():
    _, watch, optimizer = watched()
    optimizer.param_groups[0]["params"].clear()
    with pytest.raises(FreezingError, match="^Stopped at step 1: up is trainable but no optimizer holds it"):
        watch.look(1)


# --- what is said --------------------------------------------------------------------


@pytest.mark.parametrize(
    "problems, words", [(["a"], "a"), (["a", "b"], "a (and 1 more)"), (["a", "b", "c"], "a (and 2 more)")]
)
def test_the_first_problem_is_told_and_how_many_more_there_are(problems, words):
    with pytest.raises(FreezingError) as error:
        stop("the end", problems)
    assert str(error.value) == f"Stopped at the end: {words}"


def test_without_a_problem_nothing_is_stopped():
    assert stop("the end", []) is None
