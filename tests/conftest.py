"""Shared by all tests."""

from hypothesis import settings

# A training step has no deadline: a busy machine must not make a test fail.
settings.register_profile("course", deadline=None, print_blob=True)
settings.load_profile("course")
