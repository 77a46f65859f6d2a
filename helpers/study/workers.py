"""Worker processes of a study: one thread each, ended by Ctrl-C and with their parent, never before their time."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from helpers.profiles import one_thread_each


@contextmanager
def stopped_by_ctrl_c() -> Iterator[None]:
    """Ctrl-C is no error: it says what to do. It can come at any moment, so all of the work stands inside."""
    try:
        yield
    except KeyboardInterrupt:
        raise SystemExit("Stopped. What is recorded stays; the same command goes on with the rest.") from None


@contextmanager
def cancelled_by_ctrl_c(pool: concurrent.futures.Executor) -> Iterator[None]:
    """Ctrl-C takes back the runs that have not begun, instead of waiting for them all."""
    try:
        yield
    except KeyboardInterrupt:
        pool.shutdown(wait=False, cancel_futures=True)
        raise


def executor(n_processes: int, niceness: int = 0) -> concurrent.futures.Executor:
    """Processes with one thread each; with none, the runs happen here, one after the other.

    Args:
        niceness: how far the processes stand back behind others: 0 not at all, 19 as far as possible.
    """
    if n_processes == 0:
        return Here()
    one_thread_each()
    context = multiprocessing.get_context("spawn")
    return concurrent.futures.ProcessPoolExecutor(
        n_processes, mp_context=context, initializer=begin, initargs=(niceness,)
    )


def begin(niceness: int) -> None:
    """What a worker does first."""
    os.nice(niceness)
    end_with_parent()


def end_with_parent(seconds: float = 1.0) -> None:
    """A worker ends when its study was killed: it would otherwise go on beside the study that resumes.

    Ctrl-C ends it at once; Python's own answer would be an error of this run, and the next one. A study that was
    started in the background ignores Ctrl-C, and so do its workers.
    """
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(seconds)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class Here(concurrent.futures.Executor):
    """Runs each call at once, in this process."""

    def submit(self, call, *args):
        future = concurrent.futures.Future()
        try:
            future.set_result(call(*args))
        except (RuntimeError, ValueError, OSError) as error:
            future.set_exception(error)
        return future
