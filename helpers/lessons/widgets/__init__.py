"""The course's widgets, one file each: what a reader changes, and what answers.

    from helpers.lessons import widgets
    widgets.freeze_designer(config, batch, length)      # as the last line of a cell

A file of this folder names its widget in `__all__`, and draws it with the ES module of the same name in `js`. `live`
says what they have in common. Where nothing runs each one is a picture.
"""

from __future__ import annotations

import importlib
import pkgutil

__all__ = []

for _file in pkgutil.iter_modules(__path__):
    _module = importlib.import_module(f"{__name__}.{_file.name}")
    for _name in getattr(_module, "__all__", ()):
        globals()[_name] = getattr(_module, _name)
        __all__.append(_name)
