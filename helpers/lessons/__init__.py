"""Lessons: what notebooks ask, check and show."""

from helpers import face

__getattr__, __dir__, __all__ = face(
    __name__,
    {
        "calibrating": ["calibration"],
        "checks": ["check", "progress", "reply_to"],
        "exercises.nb01": ["practice_head"],
        "predicting": ["in_band", "predict", "reveal"],
        "reading": ["finite"],
    },
    modules=["drawings", "museum", "programs", "widgets"],
)
