"""Where a notebook keeps its runs: on this machine's disk, or in the reader's Google Drive.

A Colab session ends without warning, and its disk goes with it. Drive outlives it, but holds a reader's private
files: the course opens it only after a yes, and Colab then asks for consent in a window of its own.
"""

from __future__ import annotations

from pathlib import Path

from helpers.profiles import ROOT, build_dir
from helpers.rooms import on_colab

MOUNT = Path("/content/drive")  # where Colab's own examples put it
FOLDER = "frozen-attention"  # in the reader's Drive


class DriveError(RuntimeError):
    """Drive was asked for and cannot be used. The message says what to do."""


def runs_folder(notebook: str, on_drive: bool = False) -> Path:
    """The folder for the runs of a notebook; says where it is, how long it lasts, and what lies there already.

    Args:
        notebook: such as "04_training".
        on_drive: the reader's yes to keeping the runs in Drive. Without it Drive is not touched.

    Raises:
        DriveError: Drive outside Colab, or the reader did not consent.
    """
    root = opened_drive() / FOLDER if on_drive else build_dir()
    folder = root / "runs" / notebook
    print(f"Runs are kept in {shown(folder)}{lifetime(on_drive)}")
    for run, step in unfinished(folder).items():
        print(f"An earlier session left {run} at step {step}: training goes on from there.")
    return folder


def opened_drive() -> Path:
    """The reader's Drive; Colab asks for consent unless it is open already."""
    if not on_colab():
        raise DriveError("Your Drive can be opened on Colab only, and this is another machine. "
                         "Put keep_on_drive = False; runs are then kept on this machine's disk.")
    from google.colab import drive
    try:
        drive.mount(str(MOUNT))
    except (ValueError, OSError, RuntimeError) as error:
        raise DriveError(f"Colab did not open your Drive ({error}). Run the cell again and agree in Colab's window, "
                         "or put keep_on_drive = False: runs are then kept on the disk of this session.") from error
    return MOUNT / "MyDrive"


def lifetime(on_drive: bool) -> str:
    """How long the folder lasts, in words."""
    if on_drive:
        return ", in your Drive: they outlast this session."
    if on_colab():
        return ": they outlast a restart of the kernel, but not the session. Your Drive would keep them longer."
    return ": they outlast a restart of the kernel."


def unfinished(folder: Path) -> dict[str, int]:
    """Run to the step of its newest checkpoint, for the runs that lie in a folder."""
    newest = {place.parent.name: int(place.name.removeprefix("step-")) for place in sorted(folder.glob("*/step-*"))}
    return {run: step for run, step in newest.items() if step > 0}


def shown(folder: Path) -> str:
    """A folder as the reader would name it."""
    return str(folder.relative_to(ROOT)) if folder.is_relative_to(ROOT) else str(folder)
