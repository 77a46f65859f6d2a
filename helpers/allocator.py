"""Memory that was freed goes back to the system, so that a run's process is as large as what it holds."""

from __future__ import annotations

import ctypes
import sys


def give_back_freed_memory() -> bool:
    """Ask the C library to return the pages of freed blocks now; False where it cannot be asked.

    glibc keeps freed blocks for later (malloc_trim(3)). A step's activations come and go in sizes of many
    megabytes and leave holes between what stays, so the process ends up holding more than its tensors. What
    is given back has to be asked for again in the next step: some tenths of a second for a model of 125 million
    parameters, a tenth of the step for the miniature. So `fit` calls this between long steps only.
    """
    if not sys.platform.startswith("linux"):
        return False
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # another C library may have none
    return trim is not None and trim(0) == 1
