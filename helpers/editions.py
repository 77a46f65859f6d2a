"""Bring a downloaded book into the form of the course's own texts: no licence, plain typography."""

from __future__ import annotations

import re

MARK = re.compile(r"^\*\*\* ?(START|END) OF (?:THE|THIS) PROJECT GUTENBERG EBOOK.*$", re.M | re.I)


def strip_licence(text: str) -> str:
    """The books between Project Gutenberg's START and END lines, joined; any other text unchanged.

    A text whose START and END lines do not take turns is left as it is.
    """
    marks = list(MARK.finditer(text))
    if not marks or [m[1].upper() for m in marks] != ["START", "END"] * (len(marks) // 2):
        return text
    books = [text[start.end() : end.start()].strip("\n")
             for start, end in zip(marks[::2], marks[1::2], strict=True)]
    return "\n\n".join(books) + "\n"


def course_form(text: str) -> str:
    """One paragraph a line, straight quotes, ``--`` for dashes; indented lines (verse) keep their breaks.

    Authors must differ in style, not in the typography of their editions.
    """
    paragraphs = re.split(r"\n\s*\n", plain_quotes(text).replace("_", "").strip("\n"))
    return "\n\n".join(_unwrapped(p) for p in paragraphs if p.strip())


def plain_quotes(text: str) -> str:
    """Typographic quotes and dashes as plain ones."""
    return text.translate(str.maketrans({"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"',
                                         "\u2014": "--", "\u2013": "-", "\u00a0": " "}))


def _unwrapped(paragraph: str) -> str:
    lines = [line for line in paragraph.splitlines() if line.strip()]
    is_verse = all(line.startswith(" ") for line in lines)
    return ("\n" if is_verse else " ").join(line.strip() for line in lines)
