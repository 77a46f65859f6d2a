"""A text file, validated, split by chapter, cut into windows of tokens.

The held-out end of a text is whole chapters, and no window crosses from one part
into another: windows drawn at random would put halves of one scene on both sides.
"""

from __future__ import annotations

import hashlib
import re
import statistics
from dataclasses import dataclass
from pathlib import Path

import torch
from datasets import Dataset

from helpers.downloads import DownloadError, TextError, fetch, gutenberg, strip_licence, text_path  # noqa: F401
from helpers.profiles import Gutenberg

PARTS = ("train", "dev", "test")
MIN_CHAPTERS = 5
MAX_HEADING = 80  # characters
NEAR = 0.02  # a cut may miss its place by this share of the text
UNEVEN = 4  # a held-out chapter this many times longer or shorter than the median makes a bad test

# --- read --------------------------------------------------------------------------


def read_text(path: str | Path) -> str:
    """Read a UTF-8 text; a byte order mark is dropped, line ends become newlines.

    Raises:
        TextError: missing, a folder, not readable, empty, binary, or not UTF-8.
    """
    return _decode(_read_bytes(path), path)


def _read_bytes(path: str | Path) -> bytes:
    place = Path(path)
    if place.is_dir():
        inside = sorted(p.name for p in place.glob("*.txt"))
        found = f"it holds {', '.join(inside[:5])}" if inside else "it holds no .txt file"
        raise TextError(f"'{path}' is a folder, not a text: {found}. Give one text file.")
    try:
        return place.read_bytes()
    except FileNotFoundError as error:
        raise TextError(f"No text at '{path}': there is no such file. Give a UTF-8 text file.") from error
    except OSError as error:
        raise TextError(f"Cannot read the text '{path}': {error.strerror or error}. Give a file that you may "
                        "read.") from error


def _decode(raw: bytes, path: str | Path) -> str:
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise TextError(f"The text '{path}' is not UTF-8: it begins like UTF-16. Save it as UTF-8.")
    control = re.search(rb"[\x00-\x08\x0b\x0e-\x1f\x7f]", raw)
    if control:
        raise TextError(f"'{path}' is a binary file, not a text: byte 0x{control[0][0]:02x} at offset "
                        f"{control.start():,}. Give a plain UTF-8 text file.")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise TextError(f"The text '{path}' is not UTF-8: byte 0x{raw[error.start]:02x} at offset {error.start:,}. "
                        "Save it as UTF-8 (for Latin-1: iconv -f ISO-8859-1 -t UTF-8).") from error
    text = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    if not text.strip():
        raise TextError(f"The text '{path}' is empty: {len(raw):,} bytes, no words. Give a text with words in it.")
    return text


# --- split -------------------------------------------------------------------------


@dataclass(frozen=True)
class Chapter:
    """A chapter: its heading, its text (heading included), and where it starts in the whole."""

    title: str
    text: str
    start: int


@dataclass(frozen=True)
class Split:
    """A text in three parts that join to the whole; ``how`` says in words where it was cut."""

    train: str
    dev: str
    test: str
    how: str


ROMAN = r"(?=[IVXLC])(?:XC|XL|L?X{0,3})(?:IX|IV|V?I{0,3})"
NUMBERED = re.compile(rf"(?:{ROMAN}|\d{{1,3}})\. +(?:\S.*)?[^.,;:\s]")
NAMED = re.compile(rf"chapter +(?:{ROMAN}|\d{{1,3}}|[a-z]+)(?: *[.:]\s*\S.*| *[.:]?)", re.I | re.S)


def chapters(text: str) -> list[Chapter]:
    """The chapters of a text, in order; what stands before the first heading is in none.

    A heading is a paragraph of one line: "IV. Title", "3. Title", "CHAPTER IV.",
    "Chapter 3. Title". Behind "Chapter" the title may stand on a line of its own.
    Headings that follow each other without text between them make one.
    """
    headings = []  # (start, end, title)
    for paragraph in re.finditer(r"\S[^\n]*(?:\n[^\n]*\S[^\n]*)*", text):
        if not _is_heading(paragraph[0]):
            continue
        start, title = paragraph.start(), " ".join(paragraph[0].split())
        if headings and not text[headings[-1][1] : start].strip():
            start, _, before = headings.pop()
            title = f"{before} {title}"
        headings.append((start, paragraph.end(), title))
    ends = [start for start, _, _ in headings[1:]] + [len(text)]
    return [Chapter(title, text[start:end], start)
            for (start, _, title), end in zip(headings, ends, strict=False)]  # no heading: no chapter


def _is_heading(paragraph: str) -> bool:
    if len(paragraph) > MAX_HEADING or paragraph.count("\n") > 1:
        return False
    return bool(NAMED.fullmatch(paragraph.strip()) or NUMBERED.fullmatch(paragraph.strip()))


def split_text(text: str) -> Split:
    """Cut a text into train, dev and test, in this order, without a gap or an overlap.

    By chapter: the last two are the test, the one before them is dev. With fewer than
    five chapters, or with held-out chapters far longer or shorter than the rest, the first
    80% of the characters are train, 8% dev, 12% test, cut between paragraphs, else
    between sentences, else between characters.
    """
    found = chapters(text)
    problem = _why_not_by_chapter(found)
    if problem:
        return _contiguous(text, problem)
    dev, test = found[-3], found[-2]
    how = (f"by chapter: {len(found)} found; dev is '{dev.title}', test is '{test.title}' and "
           f"'{found[-1].title}', train is all before them")
    return Split(text[: dev.start], text[dev.start : test.start], text[test.start :], how)


def _why_not_by_chapter(found: list[Chapter]) -> str | None:
    if len(found) < MIN_CHAPTERS:
        return f"{len(found)} chapter headings found, {MIN_CHAPTERS} needed"
    typical = statistics.median(len(c.text) for c in found)
    odd = [c for c in found[-3:] if not typical / UNEVEN <= len(c.text) <= typical * UNEVEN]
    return f"chapter '{odd[0].title}' has {len(odd[0].text):,} characters, the median {typical:,.0f}" if odd else None


def _contiguous(text: str, why: str) -> Split:
    unit, (dev, test) = _cuts(text)
    how = f"80% train, 8% dev, 12% test, in this order, cut between {unit} ({why})"
    return Split(text[:dev], text[dev:test], text[test:], how)


def _cuts(text: str) -> tuple[str, list[int]]:
    """Where 80% and 88% of the text end, in the largest unit that has ends near enough."""
    goals = [len(text) * 80 // 100, len(text) * 88 // 100]
    for unit, end in (("paragraphs", r"\n\s*\n"), ("sentences", r"[.!?][\"')\]]*\s+")):
        places = [m.end() for m in re.finditer(end, text)] or [0]
        cuts = [min(places, key=lambda place: abs(place - goal)) for goal in goals]
        # A few long paragraphs can leave no cut near the place where one is wanted.
        if all(abs(cut - goal) <= NEAR * len(text) for cut, goal in zip(cuts, goals, strict=True)):
            return unit, cuts
    return "characters", goals


# --- windows -----------------------------------------------------------------------


@dataclass(frozen=True)
class Corpus:
    """A text ready for training. Each part is a Dataset with ``input_ids`` of (windows, length)."""

    name: str
    path: str
    sha256: str
    split: Split
    train: Dataset
    dev: Dataset
    test: Dataset
    length: int

    @property
    def n_tokens(self) -> dict[str, int]:
        """Tokens in the windows of each part; the tail that fills no window is not counted."""
        return {part: len(getattr(self, part)) * self.length for part in PARTS}

    def __str__(self) -> str:
        sizes = ", ".join(f"{part} {len(getattr(self, part))}" for part in PARTS)
        return f"{self.name}: windows of {self.length} tokens: {sizes}; {self.split.how}"


def load_corpus(path: str | Path | Gutenberg, tokenizer, length: int, name: str | None = None) -> Corpus:
    """Read, split and tokenize a text. Project Gutenberg's licence is left out, where there is one.

    Args:
        path: a file; or a profile's books, which are downloaded first if they are not there yet.
        tokenizer: a transformers tokenizer.
        length: tokens in a window.
        name: for tables; None takes the file's name.

    Raises:
        TextError: as `read_text`; or a part too short for one window; or a failed download.
    """
    path = text_path(path)
    raw = _read_bytes(path)
    split = split_text(strip_licence(_decode(raw, path)))
    parts = {part: windows(tokenizer, getattr(split, part), length, what=f"The {part} part of '{path}'")
             for part in PARTS}
    return Corpus(name or Path(path).stem, str(path), hashlib.sha256(raw).hexdigest(), split, **parts, length=length)


def windows(tokenizer, text: str, length: int, what: str = "The text") -> Dataset:
    """Cut a text into windows of ``length`` tokens that do not overlap; the tail is dropped.

    Returns:
        A Dataset in torch format, column ``input_ids``: (windows, length), int64.

    Raises:
        TextError: fewer tokens than one window, or a length under two.
    """
    if length < 2:
        raise TextError(f"A window of {length} tokens has nothing to predict. Give a length of 2 or more.")
    # verbose=False: a whole book is longer than the model's context, and no cause for a warning.
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    n_windows = len(ids) // length
    if n_windows == 0:
        raise TextError(f"{what} is too short for one window: found {len(ids)} tokens, need {length}. "
                        "Give a longer text, or a smaller length.")
    rows = torch.tensor(ids[: n_windows * length]).reshape(n_windows, length)  # (windows, length)
    return Dataset.from_dict({"input_ids": rows.numpy()}).with_format("torch")


def tensor_of(dataset: Dataset) -> torch.Tensor:
    """All windows of a dataset: (windows, length), int64."""
    return dataset[:]["input_ids"]
