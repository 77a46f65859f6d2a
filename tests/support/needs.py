"""What a machine must have for a test."""

import os
from typing import NoReturn

import pytest


def require_or_skip(reason: str) -> NoReturn:
    """End a test whose machine lacks something: a skip for a reader, a failure under COURSE_REQUIRE_ALL=1.

    `.ci/run` sets the variable: what was to be proved there must not pass because nobody looked.

    Args:
        reason: what is missing, and how to get it.
    """
    if os.environ.get("COURSE_REQUIRE_ALL") == "1":
        pytest.fail(f"{reason} (COURSE_REQUIRE_ALL=1: a skip is a failure)", pytrace=False)
    pytest.skip(reason)
