"""One run in a folder at a time: a lock that the system keeps, and that ends with its process.

    take("RUN")            # refused where another process is at work
    ...
    give_back("RUN")

The lock is on the file ``RUN/.lock``. It belongs to the process, not to the file's existence:
however a process ends, kill -9 included, the system frees it at once. So a leftover ``.lock``
file locks nothing, and nobody has to delete it.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

from helpers.training.processes import is_main

try:
    import fcntl
except ModuleNotFoundError:  # Windows
    fcntl = None

_held: dict[
    Path, tuple[int, int]
] = {}  # lock file to (process, file descriptor); a forked child holds nothing


_OWN_CONTENT = re.compile(rb"(\d{1,20}\n)?")


class LockError(RuntimeError):
    """A folder that another process uses, or that cannot be used. The message says what to do."""


def take(folder: str | Path) -> None:
    """Make ``folder`` (created where it is missing) this process's own, until `give_back` or the process's end.

    A process that has it already keeps it. Of several processes of one run, the main one takes
    it for all. Where the system has no such locks, a line on stderr says so.

    Raises:
        LockError: another process has it, or the folder cannot be made or written.
    """
    if not is_main():
        return
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        place = folder.resolve() / ".lock"
        if not _is_held(place):
            _held[place] = (os.getpid(), _locked(place, folder))
    except (OSError, ValueError) as error:
        raise LockError(
            f"The run folder '{folder}' cannot be made or written: {error}. "
            "Choose another folder, or free space and ask for the right to write there."
        ) from error


def give_back(folder: str | Path | None) -> None:
    """Free a folder for other processes; nothing to do where there is none, or where this process does not have it."""
    if folder is None:
        return
    pid, descriptor = _held.pop(Path(folder).resolve() / ".lock", (None, None))
    if pid == os.getpid():
        os.close(descriptor)  # the system frees the lock with it


def _is_held(place: Path) -> bool:
    """Does this process hold the lock of the file that is there now? A deleted folder takes its lock with it."""
    pid, descriptor = _held.get(place, (None, None))
    if pid != os.getpid():
        return False
    if place.exists() and os.path.samestat(os.fstat(descriptor), place.stat()):
        return True
    give_back(place.parent)
    return False


def _locked(place: Path, folder: Path) -> int:
    """The descriptor of a lock file that this process has locked. Its content only serves the message.

    A link is somebody else's: refused. A file that holds more than a process's number is locked, and left as it is.
    """
    if place.is_symlink():
        raise LockError(f"'{place}' is a link, and no lock of this course. Choose another folder.")
    descriptor = os.open(place, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o644)
    try:
        _lock(descriptor, folder)
        if _OWN_CONTENT.fullmatch(os.read(descriptor, 40)):
            os.ftruncate(descriptor, 0)
            os.lseek(descriptor, 0, os.SEEK_SET)
            os.write(descriptor, f"{os.getpid()}\n".encode())
    except (OSError, LockError):
        os.close(descriptor)
        raise
    return descriptor


def _lock(descriptor: int, folder: Path) -> None:
    """Lock an open file, or say who has it."""
    if fcntl is None:
        print(
            f"This system has no file locks: see to it that only one run at a time uses '{folder}'.",
            file=sys.stderr,
        )
        return
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:  # both mean that another process has it
        owner = os.read(descriptor, 20).decode(errors="replace").strip() or "unknown"
        raise LockError(
            f"The run folder '{folder}' is in use: process {owner} is at work there. Wait until it ends "
            "and give the same command again, or choose another folder."
        ) from error
    except OSError as error:  # a network drive without locks
        print(
            f"No lock on '{folder}' ({error}): see to it that only one run at a time uses it.",
            file=sys.stderr,
        )
