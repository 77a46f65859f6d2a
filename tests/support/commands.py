"""`course` from a test: a command's own errors come through, where a shell would show one line."""

from typer.main import get_command

from publishing.cli import app

REPEATED = ("--stages", "--plans", "--texts")


def course(*words) -> int:
    """Run a command; after --stages, --plans and --texts several words may stand."""
    given, flag = [], None
    for word in map(str, words):
        if flag and not word.startswith("--"):
            given += [flag, word]
            continue
        flag = word if word in REPEATED else None
        given += [] if flag else [word]
    return get_command(app).main(given, prog_name="course", standalone_mode=False) or 0
