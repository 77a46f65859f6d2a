"""Small files that the course keeps for a reader: predictions, solved exercises, verdicts.

They lie in the build folder, where anything may happen to them. A damaged one is put aside under a name that says
so, in one line, and the course goes on with what could be read.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from helpers.checkpoints import write_json


def read_kept(path: Path, readable: Callable[[Any], dict]) -> dict:
    """Return what can be read of a JSON file; ``{}`` where there is no file.

    Where that is not all, the file is moved to ``<name>.damaged`` (then ``<name>.damaged-2``, and so on), what
    could be read takes its place, and one line says so.

    Args:
        readable: from the content to the part of it that has the right form; ``{}`` where nothing has.
    """
    try:
        found = json.loads(path.read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except RecursionError:
        return _put_aside(path, {}, "it is nested too deeply")
    except ValueError as error:  # no JSON, or no UTF-8
        return _put_aside(path, {}, str(error))
    except OSError as error:
        return _put_aside(path, {}, error.strerror or str(error))
    good = readable(found)
    return good if good == found else _put_aside(path, good, "not all of it has the form that is expected there")


def keep(path: Path, content: dict) -> bool:
    """Write a reader's file whole; say in one line where that cannot be done, and return False."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, content)
    except OSError as error:
        print(f"({path.name} could not be kept: {error.strerror or error}. COURSE_BUILD names another build folder.)")
        return False
    return True


def _put_aside(path: Path, good: dict, fault: str) -> dict:
    aside = _free(path)
    try:
        os.replace(path, aside)
    except OSError as error:
        print(f"{path.name} in the build folder cannot be read ({fault}), and cannot be put aside "
              f"({error.strerror or error}). The course goes on without it.")
        return good
    if good:
        keep(path, good)
    rest = "What could be read is kept." if good else "It begins anew."
    print(f"{path.name} in the build folder cannot be read ({fault}). It is now {aside.name}. {rest}")
    return good


def _free(path: Path) -> Path:
    """The first of ``<name>.damaged``, ``<name>.damaged-2``, … that is not taken."""
    aside, n = path.with_name(f"{path.name}.damaged"), 1
    while os.path.lexists(aside):
        n += 1
        aside = path.with_name(f"{path.name}.damaged-{n}")
    return aside
