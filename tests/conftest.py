"""Shared by all tests."""

import os
from typing import NoReturn

import pytest
from hypothesis import settings

# A training step has no deadline: a busy machine must not make a test fail.
settings.register_profile("course", deadline=None, print_blob=True)
settings.load_profile("course")


def require_or_skip(reason: str) -> NoReturn:
    """End a test whose machine lacks something: a skip for a reader, a failure under COURSE_REQUIRE_ALL=1.

    `.ci/run` sets the variable: what was to be proved there must not pass because nobody looked.

    Args:
        reason: what is missing, and how to get it.
    """
    if os.environ.get("COURSE_REQUIRE_ALL") == "1":
        pytest.fail(f"{reason} (COURSE_REQUIRE_ALL=1: a skip is a failure)", pytrace=False)
    pytest.skip(reason)
