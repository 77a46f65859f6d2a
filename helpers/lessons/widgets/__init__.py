"""The course's widgets, one function each: what a reader changes, and what answers.

    from helpers import widgets
    widgets.freeze_designer(config, batch, length)      # as the last line of a cell

`widgets_frame` says what they have in common. On a page without a kernel each one is a picture.
"""

from __future__ import annotations

from helpers.lessons.widgets.blocks import block_explorer
from helpers.lessons.widgets.freezing import freeze_designer
from helpers.lessons.widgets.losses import loss_explorer
from helpers.lessons.widgets.memory import memory_planner
from helpers.lessons.widgets.styles import style_mixer

__all__ = ["block_explorer", "freeze_designer", "loss_explorer", "memory_planner", "style_mixer"]
