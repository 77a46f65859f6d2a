"""Checkpoints that survive a kill: written whole or not at all, hashed, never pickled.

A run folder holds ``step-00000040/`` folders. Each has two files:

    tensors.safetensors   weights, optimizer moments, random state
    state.json            everything else, and the SHA-256 of both

A folder is written under a temporary name, flushed to disk, then renamed. So
``step-…`` is complete, or it is not there.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from helpers.models import tensor_bytes

FORMAT = 1


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written or read. The message says what to do."""


@dataclass(frozen=True)
class Checkpoint:
    """One saved moment of a run."""

    step: int
    tensors: dict[str, torch.Tensor]
    state: dict
    damaged: list[str] = field(default_factory=list)  # newer ones that had to be passed over


def save_checkpoint(folder: str | Path, step: int, tensors: dict[str, torch.Tensor], state: dict,
                    keep: int = 2) -> Path:
    """Write ``folder/step-…`` in one atomic move, then delete all but the newest ``keep``.

    Args:
        tensors: name to tensor; moved to the CPU and made contiguous for saving.
        state: anything that JSON can hold.
        keep: how many to leave; at least two, so that one can be damaged.

    Raises:
        CheckpointError: the disk is full or the folder cannot be written. Earlier
            checkpoints are untouched.
    """
    folder = Path(folder)
    final = folder / f"step-{step:08d}"
    partial = folder / f".partial-{step:08d}-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _clear_partials(folder)
        partial.mkdir()
        plain = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
        save_file(plain, partial / "tensors.safetensors")
        record = {"format": FORMAT, "step": step, "sha256": file_hash(partial / "tensors.safetensors"),
                  "state": state}
        write_json(partial / "state.json", {**record, "own_sha256": record_hash(record)})
        _flush(partial / "tensors.safetensors")
        if final.exists():
            shutil.rmtree(final)
        os.replace(partial, final)
        _flush(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise CheckpointError(f"Could not save the checkpoint of step {step} in '{folder}': {error}. "
                              "Free some space or choose another folder; earlier checkpoints are "
                              "intact, and the same command resumes from the last one.") from error
    for old in _step_folders(folder)[max(keep, 2):]:
        shutil.rmtree(old)
    return final


def load_checkpoint(folder: str | Path) -> Checkpoint | None:
    """The newest intact checkpoint of a run folder, or None where there is none.

    A damaged one is passed over and named in ``Checkpoint.damaged``.

    Raises:
        CheckpointError: there are checkpoints, and every one is damaged.
    """
    damaged = []
    for place in _step_folders(Path(folder)):
        try:
            return _read(place, damaged)
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            damaged.append(f"{place.name} is damaged ({error}); using the one before it")
    if damaged:
        raise CheckpointError(f"Every checkpoint in '{folder}' is damaged: {'; '.join(damaged)}. "
                              "Delete the folder to start again.")
    return None


def _read(place: Path, damaged: list[str]) -> Checkpoint:
    record = read_record(place / "state.json", FORMAT)
    found = file_hash(place / "tensors.safetensors")
    if found != record["sha256"]:
        raise ValueError(f"hash {found[:12]}, expected {record['sha256'][:12]}")
    tensors = load_file(place / "tensors.safetensors")
    return Checkpoint(record["step"], tensors, record["state"], list(damaged))


def read_record(place: Path, wanted_format: int) -> dict:
    """A JSON record that carries its own hash, without it.

    Raises:
        ValueError: no record, one that was changed, or one of another format.
        OSError: it cannot be read.
    """
    record = json.loads(place.read_text(encoding="utf-8"))
    if not isinstance(record, dict) or record.pop("own_sha256", None) != record_hash(record):
        raise ValueError(f"{place.name} was changed")
    if record["format"] != wanted_format:
        raise ValueError(f"format {record['format']}, this course reads {wanted_format}")
    return record


def record_hash(record: dict) -> str:
    """SHA-256 over a record that JSON can hold, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _step_folders(folder: Path) -> list[Path]:
    """Newest first."""
    return sorted(folder.glob("step-*"), reverse=True)


def _clear_partials(folder: Path) -> None:
    for leftover in folder.glob(".partial-*"):
        shutil.rmtree(leftover)


# --- files -------------------------------------------------------------------------


def file_hash(path: str | Path) -> str:
    """SHA-256 of a file, as 64 hex digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def bytes_hash(tensor: torch.Tensor) -> str:
    """Return the SHA-256 of a tensor's bytes alone, as 64 hex digits: records of texts carry it.

    `freezing.tensor_hash` also hashes type and shape, so the two never agree.
    """
    return hashlib.sha256(tensor_bytes(tensor)).hexdigest()


def write_json(path: str | Path, value) -> None:
    """Write JSON atomically, as `write_text` does."""
    write_text(path, json.dumps(value, indent=1, allow_nan=True) + "\n")


def write_text(path: str | Path, text: str) -> None:
    """Write a text file atomically: a reader sees the old file or the new one, never half of it."""
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(partial, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_tensors(path: str | Path, tensors: dict[str, torch.Tensor], header: dict[str, str] | None = None) -> None:
    """Write a safetensors file atomically: the old file stays until the new one is whole and on the disk.

    Args:
        tensors: name to tensor, no two of them sharing memory; moved to the CPU for saving.
        header: texts to keep beside the tensors, read back as safetensors' metadata.

    Raises:
        OSError, SafetensorError: the disk is full, or the place cannot be written.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, partial, header)
        _flush(partial)
        os.replace(partial, path)
        _flush(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    """Ask the system to put a file, or a folder's list of names, on the disk now."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# --- optimizers and random state ---------------------------------------------------


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: dict[torch.Tensor, str]) -> dict[str, torch.Tensor]:
    """An optimizer's state as ``optimizer/<parameter>/<key>`` tensors.

    Args:
        names: parameter to its name in the model.
    """
    return {f"optimizer/{names[p]}/{key}": torch.as_tensor(value)
            for p, slots in optimizer.state.items() for key, value in slots.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, names: dict[torch.Tensor, str],
                      tensors: dict[str, torch.Tensor]) -> None:
    """Put the tensors of `optimizer_tensors` back, each beside its parameter.

    PyTorch keeps the count of steps on the CPU, except in a fused or capturable optimizer.
    """
    by_name = {name: p for p, name in names.items()}
    counts_there = {p for group in optimizer.param_groups if group.get("fused") or group.get("capturable")
                    for p in group["params"]}
    for full_name, tensor in tensors.items():
        kind, _, rest = full_name.partition("/")
        if kind == "optimizer":
            name, _, key = rest.rpartition("/")
            p = by_name[name]
            moved = tensor if key == "step" and p not in counts_there else tensor.to(p.device)
            optimizer.state[p][key] = moved.clone()


def random_state() -> dict[str, torch.Tensor]:
    """PyTorch's random state on the CPU and on each GPU, as tensors."""
    state = {"random/cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state |= {f"random/cuda{i}": s for i, s in enumerate(torch.cuda.get_rng_state_all())}
    return state


def restore_random_state(tensors: dict[str, torch.Tensor]) -> None:
    """Put the state of `random_state` back; devices that are gone are passed over."""
    torch.set_rng_state(tensors["random/cpu"])
    for i in range(torch.cuda.device_count()):
        if f"random/cuda{i}" in tensors:
            torch.cuda.set_rng_state(tensors[f"random/cuda{i}"], i)
