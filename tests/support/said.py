"""What the course says to a test: a command run in this process, printed lines, the reply of a check."""

import re

from typer.main import get_command

from helpers.files import PAGE
from helpers.lessons.checks import reply_to
from publishing.cli import app

REPEATED = ("--stages", "--plans", "--texts")


def course(*words) -> int:
    """Run a command; its own errors come through, where a shell would show one line.

    After --stages, --plans and --texts several words may stand.
    """
    given, flag = [], None
    for word in map(str, words):
        if flag and not word.startswith("--"):
            given += [flag, word]
            continue
        flag = word if word in REPEATED else None
        given += [] if flag else [word]
    return get_command(app).main(given, prog_name="course", standalone_mode=False) or 0


def sayings(out: str) -> list[str]:
    """The printed lines before `helpers.files.say` wrapped them; none of those printed is wider than the page."""
    assert all(len(line) <= PAGE for line in out.splitlines()), out
    return re.sub(r"\n {4,}(?=\S)", " ", out).splitlines()


def assert_wrong(name, answer, what):
    """The check calls the answer wrong, and its message holds ``what``."""
    reply = reply_to(name, answer)
    assert reply.ok is False
    assert what in reply.message, reply.message
