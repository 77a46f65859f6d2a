"""Memory that was freed goes back to the system, so that a run's process is as large as what it holds."""

from __future__ import annotations

import ctypes
import sys

M_MMAP_THRESHOLD = -3  # its number in glibc's malloc.h
BLOCK = 2**20  # bytes


def give_back_freed_blocks() -> bool:
    """Ask the C library to return every freed block of a megabyte or more at once; False where it cannot be asked.

    glibc keeps freed blocks for later, under a limit that grows by itself up to 32 MiB (mallopt(3)). The
    activations of a step are of about that size and come and go in another order each time, so the process
    ends up holding far more than its tensors. A fixed limit costs no time that we could measure.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # another C library may have none
    return mallopt is not None and mallopt(M_MMAP_THRESHOLD, BLOCK) == 1
