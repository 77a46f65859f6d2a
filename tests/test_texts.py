"""The texts written for the course: long enough, clean, original, and as the README says."""

import hashlib
import re
import subprocess
import sys

import pytest

from helpers.corpora import chapters, read_text, split_text
from helpers.profiles import DATA, ROOT

TEXTS = {"alice_style.txt": 80_000, "edgar_style.txt": 80_000, "plain_tales.txt": 60_000}  # least bytes
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
    assert numbers == ["I", "II", "III", "IV", "V", "VI", "VII", "VIII", "IX", "X"][: len(numbers)]


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
    twins = [(i, j) for j in range(len(long)) for i in range(j)
             if len(long[i] & long[j]) > 0.6 * min(len(long[i]), len(long[j]))]
    assert twins == []


def test_it_borrows_no_name_of_the_originals(text):
    assert [n for n in FORBIDDEN if re.search(rf"\b{n}\b", text)] == []


def test_no_text_shares_a_run_of_eight_words_with_another():
    seen = {name: set(runs(read_text(DATA / name), 8)) for name in TEXTS}
    first, second, third = seen.values()
    assert not (first & second or first & third or second & third)


def test_it_shares_no_run_of_eight_words_with_the_real_books(name):
    if not ORIGINALITY.is_file():
        pytest.skip("the real books are not in the project: no ../shared beside it")
    done = subprocess.run([sys.executable, ORIGINALITY, DATA / name], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 shared 8-word runs" in done.stdout


def listed_files():
    rows = re.findall(r"^\| `(\S+)` \| ([\d,]+) \| `([0-9a-f]{64})` \|", read_text(DATA / "README.md"), re.M)
    return {name: (int(size.replace(",", "")), sha) for name, size, sha in rows}


def test_the_readme_lists_every_text_with_its_size_and_hash():
    found = {p.name: (p.stat().st_size, hashlib.sha256(p.read_bytes()).hexdigest()) for p in DATA.glob("*.txt")}
    assert listed_files() == found


def test_the_readmes_line_prints_the_hashes_that_it_lists():
    line = re.search(r'^python -c "(.+)"$', read_text(DATA / "README.md"), re.M)[1]
    done = subprocess.run([sys.executable, "-c", line], cwd=ROOT, capture_output=True, text=True, check=True)
    printed = {name: sha for sha, name in (row.split() for row in done.stdout.splitlines())}
    assert printed == {name: sha for name, (_, sha) in listed_files().items()}
