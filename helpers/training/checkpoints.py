"""Checkpoints that survive a kill: written whole or not at all, hashed, never pickled.

A run folder holds ``step-00000040/`` folders. Each has two files:

    tensors.safetensors   weights, optimizer moments, random state
    state.json            everything else, and the SHA-256 of both

A folder is written under a temporary name, flushed to disk, then renamed. So
``step-…`` is complete, or it is not there.

Each state.json lists the steps of its run that are kept. Only these are ever deleted, and only
while they hold the two files and nothing else. A link is never followed. What stands in the way
of a new checkpoint is set aside under another name.
"""

from __future__ import annotations

import os
import re
import secrets
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from helpers.files import _flush, file_hash, read_record, record_hash, write_json

FORMAT = 1
TENSORS, STATE = "tensors.safetensors", "state.json"
_STEP = re.compile(r"step-(\d{8,})")
_PARTIAL = re.compile(r"\.partial-\d{8,}-\d+")
_HALF_WRITTEN = re.compile(r"\.state\.json\.\d+|\.tmp[A-Za-z0-9]{6}")  # ours; safetensors' own


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written or read. The message says what to do."""


@dataclass(frozen=True)
class Checkpoint:
    """One saved moment of a run."""

    step: int
    tensors: dict[str, torch.Tensor]
    state: dict
    damaged: list[str] = field(default_factory=list)  # newer ones that had to be passed over


def save_checkpoint(
    folder: str | Path, step: int, tensors: dict[str, torch.Tensor], state: dict, keep: int = 2
) -> Path:
    """Write ``folder/step-…`` in one atomic move, then delete all of this run's but the newest ``keep``.

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
    partial = folder / f".partial-{step:08d}-{os.getpid()}{secrets.randbelow(10**6):06d}"
    kept = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _clear_partials(folder)
        kept = [old for old in kept_steps(folder) if old != step]
        partial.mkdir()
        plain = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
        save_file(plain, partial / TENSORS)
        record = {
            "format": FORMAT,
            "step": step,
            "sha256": file_hash(partial / TENSORS),
            "state": state,
            "kept": sorted([*kept, step]),
        }
        write_json(partial / STATE, {**record, "own_sha256": record_hash(record)})
        _flush(partial / TENSORS)
        _set_aside(final)
        os.replace(partial, final)
        _flush(folder)
    except (OSError, SafetensorError) as error:
        _remove_partial(partial)
        left = (
            "Earlier checkpoints are intact, and the same command resumes from the last one."
            if kept
            else "No checkpoint is kept yet: the same command begins anew."
        )
        raise CheckpointError(
            f"Could not save the checkpoint of step {step} in '{folder}': {error}. "
            f"Free some space or choose another folder. {left}"
        ) from error
    for old in sorted([*kept, step])[: -max(keep, 2)]:
        _remove_step(folder / f"step-{old:08d}")
    return final


def load_checkpoint(folder: str | Path) -> Checkpoint | None:
    """The newest intact checkpoint of a run folder, or None where there is none.

    A damaged one is passed over and named in ``Checkpoint.damaged``.

    Raises:
        CheckpointError: there are checkpoints, and every one is damaged; or the newest may not be read.
    """
    damaged = []
    for place in _step_folders(Path(folder)):
        try:
            return _read(place, damaged)
        except (
            PermissionError
        ) as error:  # it may be whole: an older one in its place would train its steps again
            raise CheckpointError(
                f"The checkpoint '{place}' may not be read ({error.strerror}). Give yourself the right to read it, or "
                "choose a new folder."
            ) from error
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            damaged.append(f"{place.name} is damaged ({error})")
    if damaged:
        raise CheckpointError(
            f"Every checkpoint in '{folder}' is damaged: {'; '.join(damaged)}. "
            "Delete nothing: choose a new folder to start again."
        )
    return None


def newest_record(folder: str | Path) -> dict | None:
    """The record of the newest checkpoint whose record is intact, without its tensors; None where there is none."""
    for place in _step_folders(Path(folder)):
        try:
            return _record(place)
        except (OSError, ValueError, KeyError):
            continue
    return None


def kept_steps(folder: str | Path) -> list[int]:
    """The steps that a run's own newest record lists, of those that are still there. Oldest first."""
    record = newest_record(folder)
    listed = [] if record is None else record.get("kept", [record["step"]])  # older records list none
    return sorted(step for step in listed if (Path(folder) / f"step-{step:08d}").is_dir())


def _read(place: Path, damaged: list[str]) -> Checkpoint:
    record = _record(place)
    found = file_hash(place / TENSORS)
    if found != record["sha256"]:
        raise ValueError(f"hash {found[:12]}, expected {record['sha256'][:12]}")
    return Checkpoint(record["step"], load_file(place / TENSORS), record["state"], list(damaged))


def _record(place: Path) -> dict:
    """The verified record of one step's folder: its hash fits, and so does what it says of itself."""
    record = read_record(place / STATE, FORMAT)
    odd = record.keys() ^ {"format", "step", "sha256", "state"}
    if odd - {"kept"}:
        raise ValueError(f"{STATE} has other fields than expected: {', '.join(sorted(odd - {'kept'}))}")
    if not is_count(record["step"]) or record["step"] != _number(place):
        raise ValueError(f"{STATE} says step {record['step']!r}")
    if not isinstance(record["state"], dict) or not isinstance(record["sha256"], str):
        raise ValueError(f"{STATE} has a state or a hash of another kind")
    if not (isinstance(kept := record.get("kept", []), list) and all(is_count(step) for step in kept)):
        raise ValueError(f"{STATE} lists steps that are no numbers")
    return record


def is_count(value: Any) -> bool:
    """Whether a value out of a file is a whole number, 0 or more."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


# --- whose is it? ------------------------------------------------------------------


def _step_folders(folder: Path) -> list[Path]:
    """Newest first. Names of our own alone, and no links.

    Raises:
        CheckpointError: the folder may not be read.
    """
    try:
        found = [p for p in folder.iterdir() if _STEP.fullmatch(p.name) and p.is_dir() and not p.is_symlink()]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise CheckpointError(
            f"The checkpoints in '{folder}' cannot be read ({error.strerror or error}). Ask their owner for the right to "
            "read them, or choose a new folder."
        ) from error
    return sorted(found, key=_number, reverse=True)


def _number(place: Path) -> int:
    return int(place.name.removeprefix("step-"))


def _remove_step(place: Path) -> None:
    """Delete a checkpoint that the run's record listed, if it is one: its two files, and nothing else beside them."""
    try:
        if place.is_symlink() or {p.name for p in place.iterdir()} != {TENSORS, STATE}:
            return
        _record(place)
        gone = place.with_name(f".partial-{_number(place):08d}-{os.getpid()}")
        os.rename(place, gone)  # at once: a kill leaves no half checkpoint under the name of a whole one
        _remove_partial(gone)
    except (OSError, ValueError, KeyError) as error:
        print(f"The old checkpoint '{place}' stays: {error}", file=sys.stderr)


def _clear_partials(folder: Path) -> None:
    for leftover in folder.iterdir():
        if _PARTIAL.fullmatch(leftover.name):
            _remove_partial(leftover)


def _remove_partial(place: Path) -> None:
    """Delete what a write left half done; left alone where it is a link, or holds a file of another name."""
    if place.is_symlink() or not place.is_dir():
        return
    held = list(place.iterdir())
    if all(p.name in (TENSORS, STATE) or _HALF_WRITTEN.fullmatch(p.name) for p in held):
        for file in held:
            file.unlink(missing_ok=True)
        place.rmdir()


def _set_aside(place: Path) -> None:
    """Give what stands under a new checkpoint's name (a damaged one, a link, a reader's file) another name."""
    if not os.path.lexists(place):
        return
    aside = place.with_name(f"set-aside-{place.name}-{secrets.token_hex(4)}")
    os.rename(place, aside)
    print(
        f"'{place}' was in the way of a new checkpoint. It is now '{aside.name}', unchanged.", file=sys.stderr
    )


# --- optimizers and random state ---------------------------------------------------


def optimizer_tensors(
    optimizer: torch.optim.Optimizer, names: dict[torch.Tensor, str]
) -> dict[str, torch.Tensor]:
    """An optimizer's state as ``optimizer/<parameter>/<key>`` tensors.

    Args:
        names: parameter to its name in the model.
    """
    return {
        f"optimizer/{names[p]}/{key}": torch.as_tensor(value)
        for p, slots in optimizer.state.items()
        for key, value in slots.items()
    }


def restore_optimizer(
    optimizer: torch.optim.Optimizer, names: dict[torch.Tensor, str], tensors: dict[str, torch.Tensor]
) -> None:
    """Put the tensors of `optimizer_tensors` back, each beside its parameter.

    PyTorch keeps the count of steps on the CPU, except in a fused or capturable optimizer.
    """
    by_name = {name: p for p, name in names.items()}
    counts_there = {
        p
        for group in optimizer.param_groups
        if group.get("fused") or group.get("capturable")
        for p in group["params"]
    }
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
