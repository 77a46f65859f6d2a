"""Whatever a reader gives to any exercise, the reply comes in plain words and nothing stops."""

import re

import numpy as np
import pytest
import torch

from helpers.lessons.checks import exercise_names, reply_to

NAMES = exercise_names()
PAIRS = ("02e", "04d", "07d", "08b")  # two functions are asked for


def raises(*arguments):
    raise Exception("not written yet")


def prints(*arguments):
    print(0.5)


def returns(value):
    return lambda *arguments: value


def takes_none():
    return 0.5


class Odd:
    """Something that is no number, no text and no list."""

    def __len__(self):
        raise RuntimeError("no length")


VALUES = {
    "text": "about half",
    "empty text": "",
    "None": None,
    "a list": [1, 2, 3],
    "an empty list": [],
    "a list of text": ["a", None, 3],
    "nested lists": [[1], [2, 3]],
    "a dict": {"a": 1},
    "an empty dict": {},
    "NaN": float("nan"),
    "infinity": float("inf"),
    "a NaN tensor": torch.tensor(float("nan")),
    "a numpy integer": np.int64(77),
    "a numpy float": np.float32(0.77),
    "an array": np.zeros((2, 3)),
    "a tensor": torch.ones(3),
    "True": True,
    "a huge number": 10**400,
    "a complex number": 1j,
    "bytes": b"half",
    "an object": Odd(),
    "a class": Odd,
    "a set": {1, "a"},
    "a generator": (i for i in range(2)),
}
FUNCTIONS = {
    "raises": raises,
    "prints": prints,
    "takes no argument": takes_none,
    "takes nine": lambda a, b, c, d, e, f, g, h, i: 0.5,
    "a function of the library": len,
    "returns a function": returns(len),
    **{f"returns {name}": returns(value) for name, value in VALUES.items()},
}
# What Python says, and no reply of ours may. (What the reader's own function raised is left out first.)
RAW = re.compile(
    r"could not convert|object is not|not iterable|unsupported operand|invalid literal|must be real|"
    r"can't convert|cannot convert|truth value|Traceback|has no attribute|not subscriptable|0x[0-9a-f]{6}"
)


def assert_plain(reply):
    assert reply.ok is False
    assert len(reply.message) < 700
    own = re.sub(r"stopped with .*", "", reply.message)
    assert not RAW.search(own), reply.message


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", VALUES)
def test_a_strange_value_gets_a_plain_reply(name, kind):
    reply = reply_to(name, VALUES[kind])
    assert_plain(reply)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", FUNCTIONS)
def test_a_strange_function_gets_a_plain_reply(name, kind):
    function = FUNCTIONS[kind]
    assert_plain(reply_to(name, (function, function) if name in PAIRS else function))


@pytest.mark.parametrize(
    "name",
    [
        "00d",
        "01c",
        "01d",
        "01e",
        "01g",
        "01h",
        "01i",
        "01j",
        "02d",
        "02g",
        "03e",
        "03f",
        "04b",
        "04c",
        "04e",
        "05c",
        "05e",
        "05f",
        "06b",
        "06c",
        "06d",
        "06e",
        "06f",
        "07a",
        "08c",
    ],
)
def test_a_function_that_stops_or_takes_other_arguments_is_told_so(name):
    assert "stopped with Exception: not written yet" in reply_to(name, raises).message
    assert re.search(r"is called with \d arguments? here", reply_to(name, takes_none).message)


@pytest.mark.parametrize(
    "name",
    [
        "00d",
        "01d",
        "01e",
        "01g",
        "01h",
        "01i",
        "01j",
        "03e",
        "03f",
        "04e",
        "05c",
        "05e",
        "05f",
        "06b",
        "06c",
        "06d",
        "06e",
        "06f",
    ],
)
def test_a_function_that_prints_in_place_of_returning_is_told_so(name):
    assert "returns None" in reply_to(name, prints).message
