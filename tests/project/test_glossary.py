"""The glossary keeps step with the notebooks."""

import re

import nbformat
import pytest

from helpers.profiles import ROOT

PAGE = (ROOT / "docs" / "glossary.md").read_text("utf-8")
ROWS = re.findall(r"^\| ([^|]+) \| ([^|]+) \| (\w\d) \|$", PAGE, re.MULTILINE)


def prose(number: str) -> str:
    """All text and output of a notebook, in lower case."""
    found = list((ROOT / "notebooks").glob(f"{number}_*.ipynb"))
    if not found:
        pytest.skip(f"notebook {number} is not there yet")
    cells = nbformat.read(found[0], as_version=4).cells
    return "\n".join(c.source for c in cells).lower()


@pytest.mark.parametrize(("word", "meaning", "number"), ROWS)
def test_a_word_is_used_in_the_notebook_that_needs_it_first(word, meaning, number):
    names = [re.sub(r" \(.*\)", "", name).strip().lower() for name in word.split(",")]
    text = prose(number)
    missing = [n for n in names if not re.search(rf"(?<!\w){re.escape(n)}", text)]
    assert not missing, f"{missing} not in notebook {number}"
    assert meaning.strip()


def test_the_words_are_sorted_and_each_is_defined_once():
    words = [word.lower() for word, _, _ in ROWS]
    assert len(words) > 50
    assert words == sorted(words) and len(set(words)) == len(words)
