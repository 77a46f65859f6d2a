"""Stored pictures equal fresh ones: beside nbval, which compares text alone.

A plugin of pytest, loaded by the project's conftest.py. Both pictures are made small; no part of one may have another
colour than in the other. So a moved last digit passes, and a wrong colour, label or line does not. A cell whose
picture shows times has the metadata ``"picture": "varies"``.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
import pytest
from PIL import Image

PARTS, TOLERANCE = (24, 24), 0.1  # of a picture; of a colour's range, in its worst part


def pictures(outputs: Sequence) -> list[str]:
    """The PNG pictures of a cell's outputs, in base64."""
    return [output["data"]["image/png"] for output in outputs if "image/png" in output.get("data", {})]


def small(picture: str) -> np.ndarray:
    """A picture as PARTS mean colours from 0 to 1: (rows, columns, 3)."""
    with Image.open(io.BytesIO(base64.b64decode(picture))) as opened:
        return np.asarray(opened.convert("RGB").resize(PARTS, Image.Resampling.BOX)) / 255


def difference(stored: str, fresh: str) -> float:
    """The largest difference of any part's colour, 0 to 1."""
    return float(np.abs(small(stored) - small(fresh)).max())


def faults(stored: Sequence, fresh: Sequence) -> list[str]:
    """What is wrong with the pictures of a cell that was run again: one line each."""
    before, after = pictures(stored), pictures(fresh)
    if len(before) != len(after):
        return [f"{len(before)} pictures are stored, {len(after)} were drawn"]
    found = [difference(a, b) for a, b in zip(before, after, strict=True)]
    return [
        f"picture {k} differs by {d:.2f} in one part (at most {TOLERANCE}): run course notebooks, look at it"
        for k, d in enumerate(found, start=1)
        if d > TOLERANCE
    ]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """After nbval ran a cell, compare its pictures."""
    result = yield
    cell, fresh = getattr(item, "cell", None), getattr(item, "test_outputs", None)
    if cell is not None and fresh is not None and cell.metadata.get("picture") != "varies":
        found = faults(cell.outputs, fresh)
        assert not found, "; ".join(found)
    return result
