"""A checkpoint is there whole or not at all, and a damaged one is named and passed over."""

import json

import pytest
import torch

from helpers.files import bytes_hash, write_json
from helpers.training.checkpoints import (
    CheckpointError,
    load_checkpoint,
    optimizer_tensors,
    restore_optimizer,
    save_checkpoint,
)


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
    with pytest.raises(CheckpointError, match="Every checkpoint.*step-00000001.*Delete"):
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
