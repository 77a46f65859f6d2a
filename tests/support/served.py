"""Pages on a server of this machine, and what their tests need."""

import http.server
from importlib.util import find_spec
from pathlib import Path

from support.needs import require_or_skip

SHOTS = Path(__file__).resolve().parents[2] / "build" / "screenshots"
THEMES = ("light", "dark")


def needed(*packages: str) -> None:
    """End the test where a package is missing."""
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        require_or_skip(f"not installed: {', '.join(missing)}. `make venv` brings them.")


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        """Say nothing."""
