"""Read what a person types: a number, several of them, a tensor.

Whatever is given, the answer is a value or a `ValueError` in plain words: what was asked for, and what was found.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from textwrap import shorten
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def number(answer: Any) -> float:
    """Return the number in an int, a float, a one-element tensor, array or list, or text such as "56,707,584".

    NaN and infinity are numbers here; `finite` refuses them.

    Raises:
        ValueError: it holds no number, or several.
    """
    answer = plain(answer)
    while isinstance(answer, (list, tuple)) and len(answer) == 1:
        answer = plain(answer[0])
    if isinstance(answer, str):
        answer = _without_marks(answer)
    if isinstance(answer, (list, tuple)):
        pair = isinstance(answer, tuple) and len(answer) == 2 and all(isinstance(a, int) for a in answer)
        comma = ". A decimal is written with a point, {0}.{1} and not {0},{1}".format(*answer) if pair else ""
        raise ValueError(f"one number is asked for, found {len(answer)}{comma}")
    if answer is None:
        raise ValueError("None is no number: print shows a value on the screen, and hands nothing on")
    if isinstance(answer, bool) or not isinstance(answer, (str, int, float)):
        raise ValueError(f"{named(answer)} is no number")
    try:
        return float(answer)
    except ValueError:
        raise ValueError(f"{named(answer)} is no number") from None
    except OverflowError:
        raise ValueError("the number is too large") from None


def finite(answer: Any) -> float:
    """Return `number` of an answer that must not be NaN or infinite.

    Raises:
        ValueError: as `number`, or it is NaN or infinite.
    """
    value = number(answer)
    if value != value:
        raise ValueError("NaN is what a calculation gives that went wrong, and no number")
    if value in (float("inf"), float("-inf")):
        raise ValueError("a number must end somewhere, found infinity")
    return value


def items(answer: Any, what: str, n: int | None = None) -> list:
    """Return the entries of a list, tuple, set, tensor, array, text with commas, or the values of a dict.

    Args:
        what: what is asked for, for the message: "six words".
        n: how many there must be; None where any number will do.

    Raises:
        ValueError: it holds no entries, or another number of them.
    """
    answer = plain(answer)
    if isinstance(answer, str):
        answer = [word for word in re.split(r"[,\s]+", answer) if word]
    elif isinstance(answer, Mapping):
        answer = answer.values()
    if not isinstance(answer, Iterable):
        raise ValueError(f"{what} are asked for, found {named(answer)}")
    found = list(answer)
    if n is not None and len(found) != n:
        raise ValueError(f"{what} are asked for, found {len(found)}")
    return found


def tensor(answer: Any) -> torch.Tensor:
    """Return a tensor or a nested list of numbers as float32 on the CPU.

    Raises:
        ValueError: it is none, or its rows have different lengths.
    """
    import torch

    if isinstance(answer, (str, Mapping)) or answer is None:
        raise ValueError(f"a tensor is asked for, found {named(answer)}")
    try:
        return torch.as_tensor(answer, dtype=torch.float32).detach().cpu()
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"a tensor of numbers is asked for, found {named(answer)}") from None


def plain(value: Any) -> Any:
    """Return Python's own numbers and lists for a tensor, an array or a numpy scalar; others as they are."""
    import torch

    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
    return value.tolist() if hasattr(value, "tolist") else value


def named(value: Any) -> str:
    """Return a short name of a value for a message: the text itself, or what kind of thing it is."""
    if value is None or isinstance(value, (bool, int, float)):
        return str(value)
    if isinstance(value, str):
        return f"'{shorten(value, 40, placeholder='…')}'"
    if callable(value) and hasattr(value, "__name__"):
        return f"the function or class {value.__name__}"
    return f"a value of the type {type(value).__name__}"


def _without_marks(text: str) -> str:
    """Return the text of a number without separators of thousands and without the sign of percent."""
    if re.search(r"\d", text) and re.search(r"^\D*0,|,(?!\d{3}(?!\d))", text):  # many write 3,24 for 3.24
        raise ValueError(f"a decimal is written with a point, {text.replace(',', '.')} and not {text}")
    return text.replace(",", "").replace("_", "").strip().removesuffix("%").strip()
