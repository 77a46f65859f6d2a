"""Ctrl-C: one line that says where the work stands, and exit code 130 (`helpers.training.command.answer`)."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class Stopped(SystemExit):
    """Work that was interrupted. The message is the line to say: where it stands, and what to do."""


@contextmanager
def stopped_by_ctrl_c() -> Iterator[None]:
    """Say that the same command goes on. Ctrl-C can come at any moment, so all of the work stands inside."""
    try:
        yield
    except KeyboardInterrupt:
        raise Stopped("Stopped. What is recorded stays; the same command goes on with the rest.") from None


@contextmanager
def ended_like_ctrl_c() -> Iterator[None]:
    """Let SIGTERM and SIGHUP, by which systems end programs, do what Ctrl-C does; one that is ignored stays so."""
    names = [name for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    wanted = [getattr(signal, name) for name in names]
    taken = {}
    try:
        for one in wanted:
            if signal.getsignal(one) is signal.SIG_DFL:
                taken[one] = signal.signal(one, signal.default_int_handler)
        yield
    finally:
        for one, before in taken.items():
            signal.signal(one, before)


def stop_at_once(number, frame) -> None:
    """What a signal calls: nothing was done yet, so there is nothing to tidy."""
    print("stopped before the first step: the same command starts again", file=sys.stderr, flush=True)
    os._exit(130)


@contextmanager
def ctrl_c_at_once() -> Iterator[None]:
    """Let Ctrl-C end the program without a word of Python's; afterwards it is a KeyboardInterrupt, as always."""
    try:
        before = signal.signal(signal.SIGINT, stop_at_once)
    except ValueError:  # not in the main thread, where nobody's Ctrl-C arrives
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler if before is stop_at_once else before)
