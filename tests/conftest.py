"""Shared by all tests."""

import os

from hypothesis import settings

# A training step has no deadline: a busy machine must not make a test fail. In CI made-up inputs are the same each time.
settings.register_profile("course", deadline=None, print_blob=True)
settings.register_profile("course-ci", settings.get_profile("course"), derandomize=True)
settings.load_profile("course-ci" if os.environ.get("COURSE_SAME_INPUTS") else "course")
