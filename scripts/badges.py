"""Set the repository's name, OWNER/REPO, wherever a badge or an address needs it.

    python scripts/badges.py ada/frozen-attention        (make badges REPO=ada/frozen-attention)

The name lives in pyproject.toml; README and the notebooks repeat it. All change together:
the old name is read from pyproject.toml and replaced.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COLAB = "https://colab.research.google.com"


def repository(root: Path = ROOT) -> str:
    """OWNER/REPO, as pyproject.toml has it."""
    settings = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    return settings["tool"]["frozen-attention"]["repository"]


def badge(notebook: str, slug: str) -> str:
    """Markdown of the badge that opens ``notebooks/<notebook>.ipynb`` in Colab."""
    return (f"[![Open in Colab]({COLAB}/assets/colab-badge.svg)]"
            f"({COLAB}/github/{slug}/blob/main/notebooks/{notebook}.ipynb)")


def rename(root: Path, slug: str) -> dict[str, int]:
    """Replace the repository's name in every file that holds it.

    Returns:
        File to how many places changed there.

    Raises:
        ValueError: the new name is not of the form owner/name.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9-]*/[A-Za-z0-9._-]+", slug):
        raise ValueError(f"'{slug}' is not a repository. Give owner and name: make badges REPO=ada/frozen-attention")
    old = re.compile(rf"(?<![\w.-]){re.escape(repository(root))}(?![\w-])")
    pages = [root / "pyproject.toml", root / "README.md", root / "CONTRIBUTING.md"]
    files = [*pages, *sorted((root / "notebooks").glob("*.ipynb"))]
    changed = {}
    for path in (p for p in files if p.exists()):
        text, n_places = old.subn(slug, path.read_text(encoding="utf-8"))
        if n_places and text != path.read_text(encoding="utf-8"):
            path.write_text(text, encoding="utf-8")
            changed[str(path.relative_to(root))] = n_places
    return changed


def main() -> int:
    try:
        changed = rename(ROOT, sys.argv[1] if len(sys.argv) > 1 else "")
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    for name, n_places in changed.items():
        print(f"{name}: {n_places} place{'s' * (n_places != 1)}")
    print(f"The repository is {repository()}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
