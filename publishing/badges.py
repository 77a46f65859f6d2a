"""Set the repository's name and version wherever a badge, an address or a set-up cell needs them.

    course badges --repo ada/frozen-attention --version v0.1.0

Both live in pyproject.toml, under [tool.frozen-attention]; README, CONTRIBUTING, the pages of docs/
and the notebooks repeat them. All change together: the old ones are read from pyproject.toml and replaced. The version
is a branch, a tag or a commit. A badge opens the notebook of that version, and its set-up cell fetches
the helpers of the same one.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from helpers.files import counted

ROOT = Path(__file__).resolve().parents[1]
COLAB = "https://colab.research.google.com"


class BadgeError(ValueError):
    """A name or a version that cannot be. The message says what to give; nothing was changed."""


def settings(root: Path = ROOT) -> dict[str, str]:
    """The project's own settings in pyproject.toml."""
    return tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["frozen-attention"]


def repository(root: Path = ROOT) -> str:
    """OWNER/REPO, as pyproject.toml has it."""
    return settings(root)["repository"]


def revision(root: Path = ROOT) -> str:
    """Branch, tag or commit of the notebooks and helpers that a reader gets."""
    return settings(root).get("revision", "main")


def pages_address(slug: str) -> str:
    """Where GitHub Pages shows the site of OWNER/REPO."""
    owner, name = slug.split("/")
    return f"https://{owner}.github.io/{name}"


def badge(notebook: str, slug: str, version: str | None = None) -> str:
    """Markdown of the badge that opens ``notebooks/<notebook>.ipynb`` in Colab."""
    return (
        f"[![Open in Colab]({COLAB}/assets/colab-badge.svg)]"
        f"({COLAB}/github/{slug}/blob/{version or revision()}/notebooks/{notebook}.ipynb)"
    )


def set_up_cell(slug: str, version: str) -> str:
    """The first code cell of every notebook.

    It puts the course into the folder where Colab starts its kernels: a second run, or a restarted kernel,
    finds it there. Fetching the same version again changes nothing.
    """
    return f"""import sys  # Colab: fetch the course, install what it lacks. Elsewhere: say what was found.
if "google.colab" in sys.modules:
    !git init -q && git fetch -q --depth 1 https://github.com/{slug} {version} && git checkout -q FETCH_HEAD
from helpers import session; session.enter()"""


def pages(root: Path) -> list[Path]:
    """The files that repeat the repository's name or version."""
    named = [root / "pyproject.toml", root / "README.md", root / "CONTRIBUTING.md"]
    found = [*sorted((root / "docs").glob("*.md")), *sorted((root / "notebooks").glob("*.ipynb"))]
    return [p for p in [*named, *found] if p.exists()]


def rename(root: Path, slug: str | None = None, version: str | None = None) -> dict[str, int]:
    """Replace the repository's name, its version, or both, in every file that holds them.

    Args:
        slug: the new OWNER/REPO; None keeps the old one.
        version: the new branch, tag or commit; None keeps the old one.

    Returns:
        File to how many places changed there.

    Raises:
        BadgeError: a name that is not of the form owner/name, or a version that cannot stand in an address.
    """
    old = repository(root), revision(root)
    new = old[0] if slug is None else slug, old[1] if version is None else version
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9-]{0,38}/(?!\.+$)[A-Za-z0-9._-]{1,100}", new[0]):
        raise BadgeError(
            f"'{new[0]}' is not a repository. Give owner and name: course badges --repo ada/frozen-attention"
        )
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", new[1]) or ".." in new[1]:
        raise BadgeError(
            f"'{new[1]}' is not a version. Give a branch, tag or commit: course badges --version v0.1.0"
        )
    changed = {}
    for path in pages(root):
        before = path.read_text(encoding="utf-8")
        after, n_places = replaced(before, old, new)
        if after != before:
            path.write_text(after, encoding="utf-8")
            changed[str(path.relative_to(root))] = n_places
    return changed


def replaced(text: str, old: tuple[str, str], new: tuple[str, str]) -> tuple[str, int]:
    """A page with the new name and version, and how many places changed.

    A version may be a common word such as "main": it is replaced in badges, set-up cells and pyproject.toml alone.
    """
    (slug, version), n_places = (re.escape(word) for word in old), 0
    swaps = (
        {
            rf"(/github/{slug}/blob/){version}(?=/notebooks/)": rf"\g<1>{new[1]}",
            rf"(https://github\.com/{slug} ){version}(?= &&)": rf"\g<1>{new[1]}",
            rf'^(revision = "){version}(?=")': rf"\g<1>{new[1]}",
        }
        if new[1] != old[1]
        else {}
    )
    if new[0] != old[0]:
        swaps[rf"(?<![\w.-]){slug}(?![\w-])"] = new[0]
        swaps[rf"{re.escape(pages_address(old[0]))}(?![\w-])"] = pages_address(new[0])
    for pattern, word in swaps.items():
        text, n = re.subn(pattern, word, text, flags=re.MULTILINE)
        n_places += n
    return text, n_places


def set_everywhere(slug: str | None, version: str | None) -> None:
    """Change the course's own files, and say where.

    Raises:
        BadgeError: as `rename`; or nothing was asked for.
    """
    if slug is None and version is None:
        raise BadgeError("Give --repo OWNER/NAME, or --version VERSION, or both.")
    for name, n_places in rename(ROOT, slug, version).items():
        print(f"{name}: {counted(n_places, 'place')}")
    print(f"The repository is {repository()}, its version {revision()}.")
