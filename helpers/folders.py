"""The folder of a run from a shell: which folder can be one, whose it is, and its report."""

from __future__ import annotations

import json
from pathlib import Path

from helpers import locks
from helpers.checkpoints import CheckpointError, write_json
from helpers.runs import TrainingError

_FIRST_FILES = (".lock", ".run.json.*")  # all that a run leaves when it is killed in its first moment


def check_out(out: Path) -> Path:
    """Raises TrainingError where the run folder cannot be one. Nothing is written."""
    for place in (out, *out.parents):
        if place.exists() and not place.is_dir():
            raise TrainingError(f"The run folder '{out}' cannot be made: '{place}' is a file. Choose another name.")
    held = list(out.iterdir()) if out.exists() else []
    others = [p for p in held if not any(p.match(name) for name in _FIRST_FILES)]
    if others and not {"run.json", "checkpoints"} & {p.name for p in held}:
        raise TrainingError(f"The folder '{out}' is not empty and holds no run of this course. "
                            "Choose a new or an empty folder.")
    return out


def claim(out: Path, mine: dict) -> None:
    """Take a folder for this process and write into it what run it holds.

    Args:
        mine: what this run is, in values that JSON can hold.

    Raises:
        LockError: another process is at work there, or it cannot be made or written.
        TrainingError: it holds another run, or a damaged record of one.
    """
    locks.take(out)
    for leftover in out.glob(".*.[0-9]*"):  # files that a kill left half written; nobody else writes here now
        leftover.unlink(missing_ok=True)
    place = out / "run.json"
    if place.exists():
        other = _read(place)
        unlike = [f"{k} {other.get(k)!r} there, {v!r} here" for k, v in mine.items() if other.get(k) != v]
        if unlike:
            raise TrainingError(f"The folder '{out}' holds another run ({'; '.join(unlike[:3])}). "
                                "Choose a new folder.")
        return
    try:
        write_json(place, mine)
    except OSError as error:
        raise TrainingError(f"The run folder '{out}' cannot be written: {error}. Choose another.") from error


def write_report(out: Path, report: dict) -> None:
    """Write ``report.json``; an older one stays until the new one is whole.

    Raises:
        CheckpointError: the disk is full. Nothing that was saved is lost.
    """
    try:
        write_json(out / "report.json", report)
    except OSError as error:
        raise CheckpointError(f"Could not save the report in '{out}': {error}. Free some space; the same "
                              "command goes on from the last checkpoint.") from error


def _read(place: Path) -> dict:
    try:
        return dict(json.loads(place.read_text("utf-8")))
    except (ValueError, TypeError) as error:
        raise TrainingError(f"'{place}' is damaged ({error}). Delete this one file and give the same command again: "
                            "the checkpoints know which run they are of.") from error
