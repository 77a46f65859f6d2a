"""The folder of a run from a shell: which folder can be one, whose it is, and its report.

A folder is a run by its ``run.json``. Nothing is written, and nothing deleted, before that is clear.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from helpers.files import counted, read_json, write_json
from helpers.profiles import ProfileError, usable_path
from helpers.training import locks
from helpers.training.checkpoints import CheckpointError, newest_record
from helpers.training.deltas import FILE_NAME
from helpers.training.runs import FREE_SETTINGS, TrainingError

RUN, REPORT, CHECKPOINTS = "run.json", "report.json", "checkpoints"
_OF_EVERY_RUN = {"text_sha256", "model_hash", "plan", "length", "n_steps"}
_ASKED_FOR = ("replay", "patience")  # a run without it has no entry for it
# Under these names the files above are written before they take their place; a kill can leave one.
_HALF_WRITTEN = re.compile(rf"\.({re.escape(RUN)}|{re.escape(REPORT)}|{re.escape(FILE_NAME)})\.\d+")


def check_out(out: Path) -> Path:
    """Raises TrainingError where the run folder cannot be one. Nothing is written."""
    try:
        usable_path(out, "The run folder")
        for place in (out, *out.parents):
            if place.exists() and not place.is_dir():
                raise TrainingError(
                    f"The run folder '{out}' cannot be made: '{place}' is a file. Choose another name."
                )
        held = {p.name for p in out.iterdir()} if out.exists() else set()
        nearest = next(place for place in (out, *out.absolute().parents) if place.exists())
        if not os.access(nearest, os.W_OK | os.X_OK):
            raise TrainingError(
                f"The run folder '{out}' cannot be written: '{nearest}' takes no new files. Choose another place."
            )
    except (OSError, ProfileError) as error:
        raise TrainingError(f"The run folder '{out}' cannot be used: {error}") from error
    others = {name for name in held if name != ".lock" and not _HALF_WRITTEN.fullmatch(name)}
    if others and RUN not in held and not _holds_checkpoints_of_a_run(out):
        raise TrainingError(
            f"The folder '{out}' is not empty and holds no run of this course. "
            "Choose a new or an empty folder."
        )
    return out


def refuse_other(out: Path, mine: dict) -> None:
    """Raises TrainingError where the folder holds another run than ``mine``, a longer one, or none of this course."""
    place = out / RUN
    if not place.exists():
        return
    try:
        other = read_json(place)
    except (OSError, ValueError) as error:
        raise TrainingError(
            f"{error}. If '{out}' is this run's folder: Delete this one file and give the same "
            "command again, for the checkpoints know which run they are of. Otherwise choose another "
            "folder."
        ) from error
    if not other.keys() >= _OF_EVERY_RUN:
        raise TrainingError(
            f"'{place}' is not of this course: it has no "
            f"{', '.join(sorted(_OF_EVERY_RUN - other.keys()))}. Choose a new folder."
        )
    compared = [k for k in mine if k in other and k not in FREE_SETTINGS and k not in _ASKED_FOR]
    unlike = [
        f"{k} {other.get(k)!r} there, {mine.get(k)!r} here"
        for k in (*compared, *_ASKED_FOR)
        if other.get(k) != mine.get(k)
    ]
    if unlike:
        raise TrainingError(
            f"The folder '{out}' holds another run ({'; '.join(unlike[:3])}). Choose a new folder."
        )
    newest = newest_record(out / CHECKPOINTS)
    if newest and newest["step"] > mine["n_steps"]:
        raise TrainingError(
            f"The folder '{out}' holds step {newest['step']} of this run already, more than the "
            f"{mine['n_steps']} asked for. Ask for {counted(newest['step'], 'step')} or more, or choose a new "
            "folder."
        )


def claim(out: Path, mine: dict) -> None:
    """Take a folder for this process and write into it what run it holds.

    Args:
        mine: what this run is, in values that JSON can hold.

    Raises:
        LockError: another process is at work there, or it cannot be made or written.
        TrainingError: it holds another run, or a damaged record of one. Nothing is written then.
    """
    refuse_other(out, mine)
    locks.take(out)
    refuse_other(out, mine)  # another process may have been faster
    try:
        for leftover in out.iterdir():  # nobody else writes here now
            if _HALF_WRITTEN.fullmatch(leftover.name) and leftover.is_file() and not leftover.is_symlink():
                leftover.unlink()
        write_json(out / RUN, mine)
    except OSError as error:
        raise TrainingError(f"The run folder '{out}' cannot be written: {error}. Choose another.") from error


def write_report(out: Path, report: dict) -> None:
    """Write ``report.json``; an older one stays until the new one is whole.

    Raises:
        CheckpointError: the disk is full. Nothing that was saved is lost.
    """
    try:
        write_json(out / REPORT, report)
    except OSError as error:
        raise CheckpointError(
            f"Could not save the report in '{out}': {error}. Free some space; the same "
            "command goes on from the last checkpoint."
        ) from error


def where_it_stopped(out: Path, step: int | None) -> str:
    """One sentence for a run that was interrupted at ``step``; None: before its first step."""
    saved = newest_record(out / CHECKPOINTS) if step is not None else None
    if saved:
        return f"stopped at step {step}, checkpoint {saved['step']}: the same command goes on"
    where = "before the first step" if not step else f"at step {step}, no checkpoint yet"
    return f"stopped {where}: the same command starts again"


def _holds_checkpoints_of_a_run(out: Path) -> bool:
    """Whether a verified checkpoint proves that the folder was a run whose run.json is gone."""
    place = out / CHECKPOINTS
    newest = None if place.is_symlink() else newest_record(place)
    identity = newest["state"].get("identity") if newest else None
    return isinstance(identity, dict) and {"plan", "base", "settings"} <= identity.keys()
