"""Fuzzing: a property is tried on 40 made-up inputs in every run, on 2,000 under ``-m long``, and on all that failed.

It holds where the result is right or an error of the course in one line, nothing is left behind, and what was given is
as it was. A property takes one case of plain values: one that failed is kept in tests/corpus.json.
"""

import json
import tempfile
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

CORPUS = Path(__file__).parents[1] / "corpus.json"
SLOW = (HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example)

numbers = st.one_of(
    st.integers(-3, 3),
    st.integers(),
    st.sampled_from([2**31, 2**32, 2**63, 2**64, 10**9, 10**30, -(2**63)]),
    st.floats(),
)
words = st.one_of(
    st.text(max_size=12), st.sampled_from(["", "0", "²", "٣", "nan", "../x", "\0", "a" * 300, "\ud800"])
)
values = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, words),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)
damages = st.tuples(
    st.sampled_from(["cut", "flip", "insert", "swap", "double", "empty", "other"]),
    st.floats(0, 1, exclude_max=True),
    st.integers(1, 255),
)


def damaged(raw: bytes, how: str, place: float, byte: int) -> bytes:
    """Bytes with one damage: at a place that is a share of their length."""
    at = int(place * len(raw))
    return {
        "cut": raw[:at],
        "flip": raw[:at] + bytes([raw[at] ^ byte]) + raw[at + 1 :] if raw else raw,
        "insert": raw[:at] + bytes([byte]) * 5 + raw[at:],
        "swap": raw[at:] + raw[:at],
        "double": raw + raw,
        "empty": b"",
        "other": json.dumps([byte, place]).encode(),
    }[how]


def quick(strategy, check: Callable) -> Callable:
    """A test of the normal run."""
    return settings(max_examples=40, suppress_health_check=SLOW, database=None)(given(strategy)(check))


def long(strategy, check: Callable) -> Callable:
    """The same property, for minutes."""
    many = settings(max_examples=2000, suppress_health_check=SLOW)(given(strategy)(check))
    return pytest.mark.long(many)


def failed_once(name: str) -> list:
    """The cases under NAME in tests/corpus.json."""
    return json.loads(CORPUS.read_text("utf-8"))[name]


@contextmanager
def folder():
    with tempfile.TemporaryDirectory() as place:
        yield Path(place)


def held(place: Path) -> dict[str, bytes | None]:
    """Every path under a folder with its bytes."""
    return {
        str(p.relative_to(place)): p.read_bytes() if p.is_file() else None for p in sorted(place.rglob("*"))
    }


def right_or_refused(work: Callable, *refusals: type[Exception]):
    """What ``work`` returns, or None where it refuses in one line; any other error is the test's."""
    try:
        return work()
    except refusals as error:
        said = str(error)
        assert said.strip() and len(said.splitlines()) == 1, repr(said)
        return None
