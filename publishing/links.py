"""Ask each external address of the course whether it still answers, and write down when it did.

    course links        (needs a network)

The addresses, and the day when each last answered, stand in docs/external_links.toml. A new address
is added as "not checked yet", one that the course no longer has is taken out. Exit code 1: an address
did not answer; its old date stays. The course's own addresses, those with the name of its repository,
are not in the list: what they lead to is a file here, and a test looks for it.
"""

from __future__ import annotations

import datetime
import http.client
import json
import re
import tomllib
import urllib.error
import urllib.request
from pathlib import Path

from helpers.texts import GUTENBERG_TITLES, GUTENBERG_URL
from publishing.badges import ROOT, pages_address, repository

LIST = "docs/external_links.toml"
UNSEEN = "not checked yet"
HEADER = """\
# The course's external addresses, and the day when each last answered (or "not checked yet").
# Written by publishing/links.py, which asks them all again.
[seen]
"""
PAGES = ("*.md", "LICENSE-texts", "docs/*.md", "results/*.md", "data/**/*.md", "notebooks/*.ipynb")
THEME = {"https://github.com/pradyunsg/furo"}  # stands at the foot of every page of the site
ADDRESS = re.compile(r"https?://[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)+(?::\d+)?(?:/[^\s<>()\[\]\"'`\\…]*)?")
SECONDS = 20


def text_of(path: Path) -> str:
    """What a page says: of a notebook, its cells."""
    text = path.read_text(encoding="utf-8")
    return (
        "\n".join("".join(c["source"]) for c in json.loads(text)["cells"])
        if path.suffix == ".ipynb"
        else text
    )


def addresses(text: str) -> set[str]:
    """The addresses in a text, without the full stop or comma behind them."""
    return {found.rstrip(".,;:!?*") for found in ADDRESS.findall(text)}


def is_own(address: str, slug: str) -> bool:
    """Whether an address names the course's own repository, or its site."""
    site = address.startswith(f"{pages_address(slug)}/")
    return site or re.search(rf"/{re.escape(slug)}(?![\w-])", address) is not None


def external(root: Path) -> set[str]:
    """All external addresses of the course's pages and notebooks, and those of the books that it downloads."""
    files = {path for pattern in PAGES for path in root.glob(pattern)}
    found = THEME.union(*(addresses(text_of(path)) for path in files))
    found |= {GUTENBERG_URL.format(number=number) for number in GUTENBERG_TITLES}
    return {address for address in found if not is_own(address, repository(root))}


def read_list(root: Path) -> dict[str, str]:
    """Address to the day when it last answered, YYYY-MM-DD, or "not checked yet"."""
    return tomllib.loads((root / LIST).read_text(encoding="utf-8"))["seen"]


def write_list(root: Path, seen: dict[str, str]) -> None:
    lines = [f'"{address}" = "{day}"\n' for address, day in sorted(seen.items())]
    (root / LIST).write_text(HEADER + "".join(lines), encoding="utf-8")


def problem(address: str) -> str | None:
    """Why an address does not answer; None when it does."""
    request = urllib.request.Request(address, headers={"User-Agent": "Mozilla/5.0 (link check of a course)"})
    try:
        with urllib.request.urlopen(request, timeout=SECONDS) as answer:
            return None if answer.status < 400 else f"status {answer.status}"
    except urllib.error.HTTPError as error:
        return f"status {error.code}"
    except (OSError, http.client.HTTPException, ValueError) as error:
        return str(getattr(error, "reason", error))


def check(root: Path, today: str) -> list[str]:
    """Ask every address, and write the list anew.

    Returns:
        A line for each address that did not answer.
    """
    seen = dict.fromkeys(external(root), UNSEEN)
    seen |= {address: day for address, day in read_list(root).items() if address in seen}
    failures = []
    for address in sorted(seen):
        reason = problem(address)
        if reason is None:
            seen[address] = today
        else:
            failures.append(f"{address}: {reason} (last seen: {seen[address]})")
    write_list(root, seen)
    return failures


def check_all() -> bool:
    """Ask every address of the course, and say which did not answer; whether all did."""
    failures = check(ROOT, datetime.date.today().isoformat())
    n_addresses = len(read_list(ROOT))
    print("\n".join([*failures, f"{n_addresses - len(failures)} of {n_addresses} addresses answered."]))
    return not failures
