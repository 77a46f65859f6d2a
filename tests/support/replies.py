"""What the tests of the exercise checks ask of a reply."""

from helpers.lessons.checks import reply_to


def assert_wrong(name, answer, what):
    """The check calls the answer wrong, and its message holds ``what``."""
    reply = reply_to(name, answer)
    assert reply.ok is False
    assert what in reply.message, reply.message
