"""The texts written for the course: long enough, clean, original, and as the README says."""

import hashlib
import re
import subprocess
import sys
import unicodedata
from collections import Counter
from itertools import combinations

import pytest

from helpers.profiles import DATA, ROOT
from helpers.texts.corpora import chapters, read_text, split_text

TEXTS = {  # least bytes
    "alice_style.txt": 80_000,
    "edgar_style.txt": 80_000,
    "plain_tales.txt": 60_000,
    "verse_tales.txt": 54_000,
}
VERSE = DATA / "verse_tales.txt"
VIET = DATA / "viet_tales.txt"
VIET_LETTERS = "aàáảãạăằắẳẵặâầấẩẫậbcdđeèéẻẽẹêềếểễệghiìíỉĩịklmnoòóỏõọôồốổỗộơờớởỡợpqrstuùúủũụưừứửữựvxyỳýỷỹỵ"
ORIGINALITY = ROOT.parent / "shared" / "checks" / "originality.py"
# Names and set-pieces of the originals; a capital letter, so that a school's usher may stay.
FORBIDDEN = """Alice Dinah Cheshire Hatter Dormouse Gryphon Jabberwock Jabberwocky Bandersnatch Snark Tweedledum
Tweedledee Humpty Wonderland Caterpillar Duchess Knave Carroll Liddell Usher Ligeia Prospero Lenore Dupin Montresor
Fortunato Amontillado Roderick Madeline Nevermore Annabel Morella Berenice Eleonora Metzengerstein Valdemar Legrand
Rowena Pluto Poe Edgar Allan Griffin Raven Pym""".split()


@pytest.fixture(params=TEXTS)
def name(request):
    return request.param


@pytest.fixture
def text(name):
    return read_text(DATA / name)


def words(text):
    return re.findall(r"[a-z']+", text.lower())


def runs(text, n):
    w = words(text)
    return [tuple(w[i : i + n]) for i in range(len(w) - n + 1)]


def test_the_text_is_long_enough(name):
    assert (DATA / name).stat().st_size >= TEXTS[name]


def test_it_has_eight_chapters_or_more_numbered_in_order(text):
    numbers = [c.title.split(".")[0] for c in chapters(text)]
    assert len(numbers) >= 8
    assert numbers == "I II III IV V VI VII VIII IX X XI XII".split()[: len(numbers)]


def test_its_last_two_chapters_are_held_out(text):
    found = chapters(text)
    assert split_text(text).test == found[-2].text + found[-1].text


def test_it_is_ascii_with_unix_lines_and_no_stray_blanks(name):
    raw = (DATA / name).read_bytes()
    assert raw.isascii()
    assert not re.search(rb"\r|\t|\n\n\n|[ ]\n|_|\*", raw)
    assert raw.endswith(b"\n") and not raw.endswith(b"\n\n")


def test_it_hardly_repeats_itself(text):
    own = runs(text, 8)
    assert len(set(own)) / len(own) >= 0.97


def test_no_two_paragraphs_are_nearly_the_same(text):
    long = [set(runs(p, 4)) for p in text.split("\n\n") if len(words(p)) >= 25]
    twins = [
        (i, j)
        for j in range(len(long))
        for i in range(j)
        if len(long[i] & long[j]) > 0.6 * min(len(long[i]), len(long[j]))
    ]
    assert twins == []


def test_it_borrows_no_name_of_the_originals(text):
    assert [n for n in FORBIDDEN if re.search(rf"\b{n}\b", text)] == []


def test_no_text_shares_a_run_of_eight_words_with_another():
    seen = {name: set(runs(read_text(DATA / name), 8)) for name in TEXTS}
    assert [pair for pair in combinations(TEXTS, 2) if seen[pair[0]] & seen[pair[1]]] == []


def test_it_shares_no_run_of_eight_words_with_the_real_books(name):
    if not ORIGINALITY.is_file():
        pytest.skip("the real books are not in the project: no ../shared beside it")
    done = subprocess.run([sys.executable, ORIGINALITY, DATA / name], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 shared 8-word runs" in done.stdout


# --- the text in verse -------------------------------------------------------------


def test_the_text_in_verse_has_twelve_cantos_of_like_size_each_with_a_title():
    found = chapters(read_text(VERSE))
    assert len(found) == 12 and all(re.fullmatch(r"[IVX]+\. [A-Z].+", c.title) for c in found)
    assert all(4_300 <= len(c.text) <= 5_300 for c in found)


def test_verse_keeps_short_lines_in_stanzas_and_repeats_none_but_a_refrain():
    text = read_text(VERSE)
    lines = [line for line in text.split("\n") if line]
    assert max(map(len, lines)) <= 72
    assert all(text.startswith(c.title + "\n\n", c.start) for c in chapters(text))
    again = [line for line, n in Counter(lines).items() if n > 1]
    assert len(again) == 3 and all(re.fullmatch(r"H\w+, Tib, h\w+ .+\.", line) for line in again)


# --- the far text ------------------------------------------------------------------


@pytest.fixture
def tales():
    return read_text(VIET)


def syllables(text):
    return re.findall(r"[^\W\d_]+", text.lower())


def test_the_far_text_has_fourteen_chapters_of_like_size_each_with_a_title(tales):
    found = chapters(tales)
    assert VIET.stat().st_size >= 82_000
    assert [c.title.split()[:2] for c in found] == [["Chương", str(n)] for n in range(1, 15)]
    assert all(len(c.title.split()) > 3 and c.text.count("\n\n") > 10 for c in found)
    assert all(4_000 < len(c.text) < 6_500 for c in found)


def test_the_far_text_is_split_by_chapter_with_two_for_dev(tales):
    found, split = chapters(tales), split_text(tales, n_dev=2)
    assert split.dev == found[-4].text + found[-3].text
    assert split.test == found[-2].text + found[-1].text
    assert split.train == "".join(c.text for c in found[:-4])


def test_the_far_text_is_vietnamese_in_composed_letters_with_one_dash_and_unix_lines(tales):
    assert unicodedata.is_normalized("NFC", tales)
    assert set(tales.lower()) <= set(VIET_LETTERS + '0123456789 .,:;?!()"-–\n')
    assert not re.search(r"\n\n\n|  | \n|\n ", tales)
    assert tales.endswith("\n") and not tales.endswith("\n\n")


def test_every_word_of_the_far_text_is_a_vietnamese_syllable(tales):
    onset = "ngh|ng|nh|gh|gi|kh|ph|th|tr|ch|qu|[bcdđghklmnpqrstvx]"
    rhyme = "[aăâeêioôơuưy]{1,3}(?:ch|ng|nh|[cmnpt])?"
    bare = re.sub("[\u0300\u0301\u0303\u0309\u0323]", "", unicodedata.normalize("NFD", tales))  # no tones
    plain = syllables(unicodedata.normalize("NFC", bare))
    assert len(plain) == len(syllables(tales)) > 15_000
    assert [s for s in plain if not re.fullmatch(rf"(?:{onset})?{rhyme}", s)] == []


def test_a_syllable_that_ends_in_a_stop_has_a_rising_or_a_heavy_tone(tales):
    stopped = [s for s in syllables(tales) if re.search("(?:ch|[cpt])$", s)]
    assert len(stopped) > 1_000
    assert [s for s in stopped if not re.search("[\u0301\u0323]", unicodedata.normalize("NFD", s))] == []


def test_the_far_text_hardly_repeats_itself(tales):
    words_of = syllables(tales)
    own = [tuple(words_of[i : i + 8]) for i in range(len(words_of) - 7)]
    assert len(set(own)) / len(own) >= 0.99


# --- the table of the texts --------------------------------------------------------


def listed_files():
    rows = re.findall(r"^\| `(\S+)` \| ([\d,]+) \| `([0-9a-f]{64})` \|", read_text(DATA / "README.md"), re.M)
    return {name: (int(size.replace(",", "")), sha) for name, size, sha in rows}


def test_the_readme_lists_every_text_with_its_size_and_hash():
    found = {
        p.name: (p.stat().st_size, hashlib.sha256(p.read_bytes()).hexdigest()) for p in DATA.glob("*.txt")
    }
    assert listed_files() == found


def test_the_readmes_line_prints_the_hashes_that_it_lists():
    line = re.search(r'^python -c "(.+)"$', read_text(DATA / "README.md"), re.M)[1]
    done = subprocess.run([sys.executable, "-c", line], cwd=ROOT, capture_output=True, text=True, check=True)
    printed = {name: sha for sha, name in (row.split() for row in done.stdout.splitlines())}
    assert printed == {name: sha for name, (_, sha) in listed_files().items()}
