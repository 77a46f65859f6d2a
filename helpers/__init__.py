"""Helpers behind the Frozen Attention notebooks: nine rooms, each behind a face, and four plain modules.

Rooms, in the order in which they may import each other; a line may use all lines above it:

    files, profiles, plots, session     plain modules: files and hashes, settings, figures, the machine
    texts, models                       corpora and downloads; loading, attention, roles, losses
    freezing, measuring                 plans and the proof; loss, forgetting, intervals, decisions
    costs                               what a step costs, before it is run
    training                            the loop, runs, checkpoints, deltas
    study                               protocol, runs and records: writes data/evidence
    results                             claims, verdicts, pages: reads data/evidence
    lessons                             exercises, predictions, widgets

From outside a room import from its face alone: ``from helpers.freezing import FreezePlan``.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence

__version__ = "0.1.0"


def face(
    room: str, files: Mapping[str, Sequence[str]], modules: Sequence[str] = ()
) -> tuple[Callable, Callable, list]:
    """Make the face of a room: the names that others may import from it. A file loads when its name is first used.

    So that the checks of an exercise, or ``course --help``, need not wait for torch.

    Args:
        room: the ``__name__`` of the room's package.
        files: each file of the room, with the names that it gives to others.
        modules: files that others take whole.

    Returns:
        ``__getattr__``, ``__dir__`` and ``__all__`` of the package (PEP 562).
    """
    home_of = {name: file for file, names in files.items() for name in names}
    names = sorted([*home_of, *modules])

    def get(name: str):
        if name in home_of:
            return getattr(importlib.import_module(f"{room}.{home_of[name]}"), name)
        if name in modules:
            return importlib.import_module(f"{room}.{name}")
        raise AttributeError(f"module {room!r} has no attribute {name!r}; it has: {', '.join(names)}")

    return get, lambda: names, names
