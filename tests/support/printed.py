"""What was printed, as it was said: `helpers.files.say` sets a long line's rest in below it."""

import re

from helpers.files import PAGE


def sayings(out: str) -> list[str]:
    """The lines before they were wrapped; none of those printed is wider than the page."""
    assert all(len(line) <= PAGE for line in out.splitlines()), out
    return re.sub(r"\n {4,}(?=\S)", " ", out).splitlines()
