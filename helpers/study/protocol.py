"""The protocol of the study: one page for people, whose numbers the code reads.

The page holds its numbers in blocks of TOML, so that what a reader sees is what runs. A block
under "Amendments" overrides the ones above it, earlier amendments too. The hash of the page is that of everything
before the amendments: it is stored in each result, so that a rule cannot be changed in silence
after the runs. An amendment says what was changed, when, and which results had been seen.
"""

from __future__ import annotations

import hashlib
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

from helpers.files import as_path
from helpers.profiles import DATA

PAGE = DATA / "evidence" / "PROTOCOL.md"
AMENDMENTS = "## Amendments"


class ProtocolError(ValueError):
    """A protocol page that cannot be read, or evidence that does not fit it. The message says what to do."""


@dataclass(frozen=True)
class Protocol:
    """The numbers of the page, by section; its hash without the amendments; how many amendments there are."""

    numbers: dict
    sha256: str
    n_amendments: int

    def __getitem__(self, section: str) -> dict:
        if section not in self.numbers:
            raise ProtocolError(
                f"The protocol page has no section [{section}]. It has: {', '.join(self.numbers)}. "
                "Add the section, or choose a profile that the study covers."
            )
        return self.numbers[section]


def read_protocol(page: str | Path = PAGE) -> Protocol:
    """Read the page.

    Raises:
        ProtocolError: no page, one that is no text, or a block that is not TOML or contradicts another.
    """
    page = as_path(page, "The place of a protocol")
    if not page.is_file():
        raise ProtocolError(f"No protocol page at '{page}'. The study has none to follow; restore the file.")
    try:
        text = page.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ProtocolError(
            f"The protocol page '{page}' cannot be read: {error}. Restore the file."
        ) from error
    fixed, _, amended = text.partition(f"\n{AMENDMENTS}")
    numbers: dict = {}
    for block in ("\n".join(_blocks(fixed)), *_blocks(amended)):
        _override(numbers, _table(block, page), page)
    if not numbers:
        raise ProtocolError(f"The protocol page '{page}' has no block of numbers. Restore the file.")
    n_amendments = len(re.findall(r"^- \d{4}-\d{2}-\d{2}", amended, re.MULTILINE))
    return Protocol(numbers, hashlib.sha256(fixed.encode()).hexdigest(), n_amendments)


def _override(numbers: dict, newer: dict, page: Path) -> None:
    """Put the newer numbers in; a table keeps those of its numbers that the newer one does not name."""
    for key, value in newer.items():
        if key in numbers and isinstance(numbers[key], dict) != isinstance(value, dict):
            raise ProtocolError(
                f"An amendment in '{page}' makes '{key}' a table where it was a number, or a number "
                "where it was a table. Correct that block."
            )
        if isinstance(value, dict):
            _override(numbers.setdefault(key, {}), value, page)
        else:
            numbers[key] = value


def _blocks(text: str) -> list[str]:
    """The TOML in a part of the page, block by block."""
    return re.findall(r"^```toml\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def _table(block: str, page: Path) -> dict:
    try:
        return tomllib.loads(block)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ProtocolError(
            f"A block of numbers in '{page}' is not TOML: {error}. Correct that block."
        ) from error
