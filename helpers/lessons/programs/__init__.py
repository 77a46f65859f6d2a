"""Programs that notebook 08 prints and starts: files, because two processes must read the same lines."""

from helpers import face

__getattr__, __dir__, __all__ = face(__name__, {}, modules=["three_steps", "two_processes", "two_shards"])
