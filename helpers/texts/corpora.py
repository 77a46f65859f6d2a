"""A text file, validated, split by chapter, cut into windows of tokens.

The held-out end of a text is whole chapters, and no window crosses from one part
into another: windows drawn at random would put halves of one scene on both sides.
"""

from __future__ import annotations

import codecs
import errno
import hashlib
import re
import stat
import statistics
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from numbers import Integral
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset

from helpers.files import as_path, counted, seen
from helpers.profiles import Gutenberg
from helpers.texts.downloads import TextError, licence_problem, strip_licence, text_path
from helpers.texts.headings import MIN_CHAPTERS, Chapter, chapters

PARTS = ("train", "dev", "test")
NEAR = 0.02  # a cut may miss its place by this share of the text
MIN_HELD_OUT = 0.05  # less than this share of a text in the held-out chapters makes no test
MOST_BYTES = 10**9  # of a text; with its tokens it takes about 20 bytes of memory for each
TRIED = 5_000  # characters that are read twice, to see whether the tokens are the same
PIECE = 1 << 17  # characters given to the tokenizer at once; it needs about 200 bytes for each of them
MAX_CHANGED = 0.05  # a tokenizer that changes more than this share of a text's characters cannot read it
RUN, LEAST_RUN = 64, 8  # characters in a row, and tokens, that stand in two parts by no chance
WORTH_SAYING = 0.01  # of the held-out text repeated in the train part; of a text that is markup
# HTML's tags and entities, and TeX's commands: a page that was saved without its head, or a chapter of a TeX book.
MARKUP = re.compile(r"</?[A-Za-z][\w:-]*(?:\s[^<>]*)?/?>|<!--[^<>]*-->|&(?:#\w+|[A-Za-z]\w*);|\\[A-Za-z]+")
DAMAGED = (
    0.001  # more than this share of traces, and the text was read in a wrong encoding before it came here
)
# What programs write where they read another encoding than the file's: U+FFFD; control characters that no text has;
# and the letters for which they took the bytes of “ and of é.
TRACES = re.compile("[\ufffd\x80-\x84\x86-\x9f]|â€|Ã[\xa1-\xbf]")
UNEVEN = 4  # a held-out chapter this many times longer or shorter than the median makes a bad test

# --- read --------------------------------------------------------------------------


def read_text(path: str | Path) -> str:
    """Read a UTF-8 text; byte order marks and a last Ctrl-Z are dropped, line ends become newlines.

    Joined files have a byte order mark at every joint: none stays in the text.

    Raises:
        TextError: missing, a folder, not readable, empty, binary, not UTF-8, or damaged when it was made UTF-8.
    """
    return _decode(_read_bytes(path), path)


def _read_bytes(path: str | Path) -> bytes:
    place = as_path(path, "The place of a text")
    try:
        found = place.stat()
        if stat.S_ISDIR(found.st_mode):
            inside = sorted(p.name for p in place.glob("*.txt"))
            held = f"it holds {', '.join(inside[:5])}" if inside else "it holds no .txt file"
            raise TextError(f"'{path}' is a folder, not a text: {held}. Give one text file.")
        if not stat.S_ISREG(found.st_mode):
            raise TextError(
                f"'{path}' is a pipe or a device, and a text is read more than once: to go on, and to check its hash. "
                "Save it as a file, and give that."
            )
        if found.st_size > MOST_BYTES:
            raise TextError(
                f"The text '{path}' has {found.st_size:,} bytes, more than fit into memory with their tokens "
                f"({MOST_BYTES:,} at most here). Give a part of it."
            )
        return place.read_bytes()
    except FileNotFoundError as error:
        raise TextError(f"No text at '{path}': there is no such file. Give a UTF-8 text file.") from error
    except OSError as error:
        name = f"{str(path)[:80]}…" if error.errno == errno.ENAMETOOLONG else str(path)
        raise TextError(
            f"Cannot read the text {name!r}: {error.strerror or error}. Give the name of a file that you may read."
        ) from error


# What these files begin with. Some can be all ASCII, and their words are not the file's.
FORMATS = {
    rb"%PDF-": "a PDF",
    rb"\{\\rtf": "an RTF file",
    rb"%!PS": "a PostScript file",
    rb"\s*<(?i:!doctype|html|head|body|\?xml)\b": "a page of HTML or XML",
    rb"""\s*(\[\s*)?\{\s*"[^"\n]*"\s*:""": "JSON",
    rb"PK\x03\x04": "a ZIP archive, as Word documents and EPUB books are",
    rb"\x1f\x8b|BZh\d1AY&SY|\xfd7zXZ|7z\xbc\xaf|Rar!\x1a": "a packed file",
    rb"\xd0\xcf\x11\xe0": "a document of an old Word",
}
MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",  # first: one begins like UTF-16's
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}


def _decode(raw: bytes, path: str | Path) -> str:
    encoding = next((name for mark, name in MARKS.items() if raw.startswith(mark)), None)
    if encoding:
        raise TextError(f"The text '{path}' is not UTF-8: it begins like {encoding}. Save it as UTF-8.")
    start = raw[:4096].removeprefix(codecs.BOM_UTF8)
    kind = next((name for mark, name in FORMATS.items() if re.match(mark, start)), None)
    if kind:
        raise TextError(f"'{path}' is {kind}, not a plain text. Save its words as plain text, in UTF-8.")
    raw = _without_ctrl_z(raw)
    control = re.search(rb"[\x00-\x08\x0b\x0e-\x1f\x7f]", raw)
    if control:
        seems_wide = raw.count(0) > len(raw) / 4  # of ASCII letters in UTF-16 every second byte is 0
        raise TextError(
            f"'{path}' is a binary file, not a text: byte 0x{control[0][0]:02x} at offset {control.start():,}. "
            f"Give a plain UTF-8 text file{' (this one may be UTF-16 without its mark)' if seems_wide else ''}."
        )
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise TextError(_not_utf8(raw, error, path)) from error
    text = text.replace("\ufeff", "").replace("\u2029", "\n\n")
    text = re.sub("\r\n|[\r\u2028]", "\n", text)  # the ends of lines in DOS, on old Macs, and Unicode's own
    if not text.strip():
        raise TextError(
            f"The text '{path}' is empty: {len(raw):,} bytes, no words. Give a text with words in it."
        )
    traces = TRACES.findall(text)
    if len(traces) > DAMAGED * len(text):
        raise TextError(
            f"The text '{path}' is damaged: {counted(len(traces), 'place')} of it, such as {ascii(traces[0])}, are what "
            "programs write where they read another encoding than the file's. Save the original again, as UTF-8."
        )
    return text


def _not_utf8(raw: bytes, error: UnicodeDecodeError, path: str | Path) -> str:
    """What is wrong with a text that is not UTF-8, in one sentence, and what to do with it."""
    place = f"byte 0x{raw[error.start]:02x} at offset {error.start:,}"
    if error.reason == "unexpected end of data":
        return f"The text '{path}' ends in the middle of a character ({place}): it was cut off. Save it whole again."
    text = raw.decode("utf-8", "replace")
    n_lost = text.count("\ufffd")
    n_beyond_ascii = len(text) - len(text.encode("ascii", "ignore"))
    if n_beyond_ascii > 2 * n_lost:  # most of its letters beyond ASCII are UTF-8
        line = raw.count(b"\n", 0, error.start) + 1
        return (
            f"The text '{path}' is UTF-8 but for {counted(n_lost, 'place')}, the first in line "
            f"{line:,} ({place}): parts of it come from another encoding. "
            "Save it again when these letters are right in an editor."
        )
    return (
        f"The text '{path}' is not UTF-8: {place}. Save it as UTF-8 (for a text in a Western European language: "
        "iconv -f WINDOWS-1252 -t UTF-8), and look at its letters."
    )


def _without_ctrl_z(raw: bytes) -> bytes:
    """Cut off the Ctrl-Z with which DOS ended its files, and what stands behind it where that is blank."""
    end = len(raw.rstrip(b"\x1a \t\n\r\v\f"))
    mark = raw.find(b"\x1a", end)
    return raw if mark < 0 else raw[:mark]


# --- split -------------------------------------------------------------------------


@dataclass(frozen=True)
class Split:
    """A text in three parts that join to the whole; ``how`` says in words where it was cut."""

    train: str
    dev: str
    test: str
    how: str


def split_text(text: str, n_dev: int = 1) -> Split:
    """Cut a text into train, dev and test, in this order, without a gap or an overlap.

    By chapter: the last two are the test, the ``n_dev`` before them are dev. Otherwise the first
    80% of the characters are train, 8% dev, 12% test, cut between chapters, else between
    paragraphs, sentences, lines, words or characters. That is so with fewer than four chapters more than
    ``n_dev``; with held-out chapters far longer or shorter than the rest; and with so many
    chapters (or numbered questions) that the last ones hold next to nothing.
    """
    found = chapters(text)
    problem = _why_not_by_chapter(text, found, n_dev)
    if problem:
        return _contiguous(text, problem, [c.start for c in found])
    dev, test = found[-2 - n_dev : -2], found[-2:]
    dev_titles = " and ".join(f"'{c.title}'" for c in dev)
    how = (
        f"by chapter: {len(found)} found; dev is {dev_titles}, test is '{test[0].title}' and "
        f"'{test[1].title}', train is all before them"
    )
    return Split(text[: dev[0].start], text[dev[0].start : test[0].start], text[test[0].start :], how)


def _why_not_by_chapter(text: str, found: list[Chapter], n_dev: int) -> str | None:
    needed = MIN_CHAPTERS - 1 + n_dev
    if len(found) < needed:
        return f"{counted(len(found), 'chapter heading')} found, {needed} needed"
    typical = statistics.median(len(c.text) for c in found)
    last = found[-2 - n_dev :]
    odd = [c for c in last if not typical / UNEVEN <= len(c.text) <= typical * UNEVEN]
    if odd:
        return f"chapter '{odd[0].title}' has {len(odd[0].text):,} characters, the median {typical:,.0f}"
    held_out = sum(len(c.text) for c in last) / len(text)
    if held_out < MIN_HELD_OUT:
        return f"the last {len(last)} of {len(found)} chapters hold {held_out:.1%} of it"
    return None


def _contiguous(text: str, why: str, starts: list[int]) -> Split:
    unit, (dev, test) = _cuts(text, starts)
    how = f"80% train, 8% dev, 12% test, in this order, cut between {unit} ({why})"
    return Split(text[:dev], text[dev:test], text[test:], how)


CLOSING = "[\"'”’»)\\]」』】）]*"
STOP = ".!?…؟۔।॥։።។။"  # the last four: Armenian, Ethiopic, Khmer, Burmese
UNITS = (
    ("paragraphs", r"\n\s*\n"),
    # A row of dots is tried from its first dot alone: from each, a row of n would take n * n / 2 looks.
    # In Chinese and Japanese no space follows a full stop.
    ("sentences", rf"(?<![{STOP}])[{STOP}]+{CLOSING}\s+|[。！？]+{CLOSING}\s*"),
    ("lines", r"\n"),
    ("words", r"[^\S\n]+"),
)


def _cuts(text: str, starts: list[int]) -> tuple[str, list[int]]:
    """Where 80% and 88% of the text end, in the largest unit that has ends near enough."""
    goals = [len(text) * 80 // 100, len(text) * 88 // 100]
    ends = ((unit, [m.end() for m in re.finditer(end, text)]) for unit, end in UNITS)
    for unit, places in (("chapters", starts), *ends):
        cuts = [min(places or [0], key=lambda place: abs(place - goal)) for goal in goals]
        # A few long paragraphs can leave no cut near the place where one is wanted.
        if all(abs(cut - goal) <= NEAR * len(text) for cut, goal in zip(cuts, goals, strict=True)):
            return unit, cuts
    return "characters", [_whole_letter(text, goal) for goal in goals]


def _whole_letter(text: str, place: int) -> int:
    """The next place where no letter is parted from its marks: Thai and Indic vowels, accents, variation selectors."""
    while place < len(text) and unicodedata.category(text[place]).startswith("M"):
        place += 1
    return place


# --- windows -----------------------------------------------------------------------

# Where a byte-level tokenizer begins a token in any case: between two words, else behind a word or number with a mark.
BETWEEN = (re.compile(r"[^\W\d_](?= [^\W\d_])"), re.compile(r"[^\W_](?=[\n,;:.!?(){}=。，、；：！？」）])"))


def require_tokenizer(tokenizer) -> None:
    """Raise TypeError for what is no tokenizer, such as the name of one."""
    if not callable(tokenizer) or not hasattr(tokenizer, "decode"):
        raise TypeError(f"A tokenizer is needed, as load_tokenizer gives it; found {seen(tokenizer)}.")


def begin_ids(tokenizer) -> list[int]:
    """What a tokenizer itself puts in front of every text: ``[]``, or the id of its begin mark, such as ``<s>``.

    The one rule for marks, in text windows and in samples: each begins as the tokenizer begins a text, so a
    model that has always read a begin mark reads one here. No end mark is ever put behind a text: after it
    another document would begin. (Where the tokenizer adds nothing, text that the model writes still needs
    a first token: `sample_windows` takes the config's begin token.)
    """
    require_tokenizer(tokenizer)
    plain, marked = (tokenizer("a", add_special_tokens=adds)["input_ids"] for adds in (False, True))
    places = range(len(marked) - len(plain) + 1)
    return list(marked[: next((i for i in places if marked[i : i + len(plain)] == plain), 0)])


@dataclass(frozen=True)
class Corpus:
    """A text ready for training. Each part is a Dataset with ``input_ids`` of (windows, length).

    ``share_used`` is the share of the file's characters that stand in windows: a licence and the
    tails of the parts do not. ``share_changed`` is the share that the tokenizer cannot give back.
    ``begin`` is the mark with which each window begins, or "" (see `begin_ids`). ``share_repeated`` is the share of
    the dev and test parts that stands in the train part too, in runs of `RUN` characters: what is tested there was learned.
    ``marks`` counts the words of the text that the tokenizer reads as marks of its own, such as <|endoftext|>.
    ``share_markup`` is the share of the text that is tags, entities and commands; ``markup`` is the first of them.
    """

    name: str
    path: str
    sha256: str
    split: Split
    train: Dataset
    dev: Dataset
    test: Dataset
    length: int
    share_used: float
    share_changed: float
    begin: str = ""
    share_repeated: float = 0.0
    marks: Counter[str] = field(default_factory=Counter)
    share_markup: float = 0.0
    markup: str = ""

    @property
    def n_tokens(self) -> dict[str, int]:
        """Tokens in the windows of each part; the tail that fills no window is not counted."""
        return {part: len(getattr(self, part)) * self.length for part in PARTS}

    def __str__(self) -> str:
        sizes = ", ".join(f"{part} {len(getattr(self, part))}" for part in PARTS)
        return f"{self.name}: windows of {self.length} tokens: {sizes}; {self.split.how}; {self.shares}"

    @property
    def shares(self) -> str:
        """In words: what share of the file is used, what share of that the tokenizer changes, how a window begins."""
        changed = (
            f"; the tokenizer changes {self.share_changed:.2%} of the characters"
            if self.share_changed
            else ""
        )
        begin = (
            f"; each window begins with {self.begin}, as a text does for this tokenizer" if self.begin else ""
        )
        repeated = (
            f"{self.share_repeated:.0%} of the dev and test parts stands in the train part too, word for word, where a low "
            "loss is no sign of learning; "
            if self.share_repeated >= WORTH_SAYING
            else ""
        )
        marks = "".join(
            f"; {mark} stands in it {counted(n, 'time')}, and is read as a mark of the tokenizer's, not as letters"
            for mark, n in self.marks.items()
        )
        markup = (
            f"; {self.share_markup:.0%} of the text is markup, such as {self.markup}, and is learned like its words"
            if self.share_markup >= WORTH_SAYING
            else ""
        )
        return f"{repeated}{self.share_used:.1%} of the file is used{markup}{changed}{marks}{begin}"


def load_corpus(
    path: str | Path | Gutenberg, tokenizer, length: int, name: str | None = None, n_dev: int = 1
) -> Corpus:
    """Read, split and tokenize a text. Project Gutenberg's licence is left out, where there is one.

    Args:
        path: a file; or a profile's books, which are downloaded first if they are not there yet.
        tokenizer: a transformers tokenizer.
        length: tokens in a window.
        name: for tables; None takes the file's name.
        n_dev: chapters of the dev part.

    Raises:
        TextError: as `read_text` and `windows`; a failed download, Project Gutenberg's licence that cannot be told
            from the book, or an ``n_dev`` that is no number of chapters.
    """
    if not isinstance(n_dev, Integral) or n_dev < 1:
        raise TextError(f"The dev part has a whole number of chapters, 1 or more; found n_dev={n_dev!r}.")
    path = text_path(path)
    raw = _read_bytes(path)
    sha256, whole = hashlib.sha256(raw).hexdigest(), _decode(raw, path)
    del raw  # a long text is not held twice
    if problem := licence_problem(whole):
        raise TextError(
            f"The text '{path}' has Project Gutenberg's licence in it, and {problem}: a model would learn the licence. "
            "Give the whole file, or one without the licence and its marks."
        )
    book = strip_licence(whole)
    split = split_text(book, n_dev)
    cut = {
        part: _cut(tokenizer, getattr(split, part), length, f"The {part} part of '{path}'") for part in PARTS
    }
    in_windows = sum(c.n_chars_in_windows for c in cut.values())
    changed = sum(c.n_chars_changed for c in cut.values())
    train, *held_out = (cut[part].windows for part in PARTS)
    marks = begin_ids(tokenizer)
    run = max(LEAST_RUN, RUN * len(train) * length // max(1, cut["train"].n_chars_in_windows))
    return Corpus(
        name or Path(path).stem,
        str(path),
        sha256,
        split,
        **{part: c.windows for part, c in cut.items()},
        length=length,
        share_used=in_windows / len(whole),
        share_changed=changed / len(book),
        share_repeated=_share_repeated(train, held_out, len(marks), run),
        begin=tokenizer.decode(marks),
        marks=_marks_in(tokenizer, book),
        share_markup=sum(len(found[0]) for found in MARKUP.finditer(book)) / len(book),
        markup=_shortened(MARKUP.search(book)),
    )


def _shortened(found: re.Match | None, most: int = 40) -> str:
    """What was found, in one line of at most so many characters; "" where nothing was."""
    words = " ".join(found[0].split()) if found else ""
    return words if len(words) <= most else f"{words[: most - 1]}…"


def windows(tokenizer, text: str, length: int, what: str = "The text") -> Dataset:
    """Cut a text into windows of ``length`` tokens that do not overlap; the tail is dropped.

    Each begins with the mark that the tokenizer puts in front of a text, where it has one (`begin_ids`).

    Returns:
        A Dataset in torch format, column ``input_ids``: (windows, length), int64.

    Raises:
        TextError: fewer tokens than one window, a length under two, or a tokenizer that changes more
            than 5% of the characters: it does not know the script, or it rewrites letters.
    """
    return _cut(tokenizer, text, length, what).windows


@dataclass(frozen=True)
class _Cut:
    """The windows of a text, and how many of its characters they hold, and the tokenizer changes."""

    windows: Dataset
    n_chars_in_windows: int
    n_chars_changed: int


def _share_repeated(train: Dataset, held_out: list[Dataset], n_marks: int, run: int) -> float:
    """The share of the runs of so many tokens in held-out windows that stand in the train windows too.

    The train windows are read in pieces, so that a long text needs little memory.
    """
    wanted = np.concatenate([_run_hashes(tensor_of(part), n_marks, run) for part in held_out])
    if not len(wanted):
        return 0.0
    wanted.sort()
    steps = np.zeros(len(wanted) + 1, dtype=np.int32)  # +1 where a found run's places begin, -1 behind them
    n_rows = max(1, PIECE // train[0]["input_ids"].numel())
    for start in range(0, len(train), n_rows):
        there = _run_hashes(train[start : start + n_rows]["input_ids"], n_marks, run)
        np.add.at(steps, np.searchsorted(wanted, there, "left"), 1)
        np.add.at(steps, np.searchsorted(wanted, there, "right"), -1)
    return float((steps[:-1].cumsum() > 0).mean())


def _run_hashes(windows: torch.Tensor, n_marks: int, run: int) -> np.ndarray:
    """One number, uint64, for each ``run`` of neighbours among the text's tokens of windows, (windows, length)."""
    factor = np.uint64(6364136223846793005)  # Knuth's multiplier; what overflows is cut off
    ids = windows[:, n_marks:].numpy().reshape(-1).astype(np.uint64)
    hashes = np.zeros(max(0, len(ids) - run + 1), dtype=np.uint64)
    for place in range(run):
        hashes = hashes * factor + ids[place : place + len(hashes)]
    return hashes


def _cut(tokenizer, text: str, length: int, what: str) -> _Cut:
    if not isinstance(text, str):
        raise TextError(f"{what} must be a str; found {type(text).__name__}.")
    if not isinstance(length, Integral) or length < 2:
        raise TextError(
            f"A window of {seen(length)} tokens has nothing to predict. Give a length of 2 or more."
        )
    require_tokenizer(tokenizer)
    ids, changed = _tokens(tokenizer, text)
    n_changed = changed.total()
    if n_changed > MAX_CHANGED * len(text):
        examples = ", ".join(repr(character) for character, _ in changed.most_common(4))
        marks = ", ".join(map(repr, _marks_in(tokenizer, text)))
        cure = (
            f"It reads {marks} as a mark of its own: take that out of the text."
            if marks
            else "Give a text in a script that it knows, or a model with another tokenizer."
        )
        raise TextError(
            f"{what} would lose {n_changed / len(text):.0%} of its characters: the tokenizer does not give "
            f"back {examples}. {cure}"
        )
    begin = begin_ids(tokenizer)
    room = length - len(begin)  # for the text's own tokens
    if room < 1:
        raise TextError(
            f"A window of {length} tokens has no room for text: the tokenizer begins each with {len(begin)} of its "
            "own. Give a larger length."
        )
    n_windows = len(ids) // room
    if n_windows == 0:
        raise TextError(
            f"{what} is too short for one window: found {counted(len(ids), 'token')}, need {room}. "
            "Give a longer text, or a smaller length."
        )
    tail = tokenizer.decode(ids[n_windows * room :])
    rows = np.empty((n_windows, length), dtype=np.int64)
    rows[:, : len(begin)] = begin
    rows[:, len(begin) :] = ids[: n_windows * room].reshape(n_windows, room)
    return _Cut(_dataset(rows), len(text) - len(tail), n_changed)


def _marks_in(tokenizer, text: str) -> Counter[str]:
    """The tokenizer's own marks that a text spells, and how often."""
    return Counter({mark: text.count(mark) for mark in tokenizer.all_special_tokens if mark in text})


def _dataset(rows: np.ndarray) -> Dataset:
    """Windows, (windows, length) int64, as a Dataset that holds this very memory.

    `Dataset.from_dict` copies them, and without a fingerprint a Dataset pickles all of its table to make one.
    """
    starts = np.arange(0, rows.size + 1, rows.shape[1], dtype=np.int32)
    column = pa.ListArray.from_arrays(pa.array(starts), pa.array(rows.reshape(-1)))
    fingerprint = hashlib.sha256(rows).hexdigest()[:16]
    return Dataset(pa.table({"input_ids": column}), fingerprint=fingerprint).with_format("torch")


def _tokens(tokenizer, text: str) -> tuple[np.ndarray, Counter[str]]:
    """The ids of a text, int32, and its characters (spaces aside) that the ids do not give back.

    An accent that stands apart from its letter in one of them, and with it as one character in the other, is no change.
    """
    ids: list[np.ndarray] = []
    changed: Counter[str] = Counter()
    _require_one_reading(tokenizer, text[:TRIED])
    for piece in _pieces(text):
        found = _ids(tokenizer, piece)
        back = tokenizer.decode(found, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        changed += _letters(piece) - _letters(back)
        ids.append(np.array(found, dtype=np.int32))
    return np.concatenate(ids), changed


def _ids(tokenizer, piece: str) -> list[int]:
    try:  # verbose=False: a whole book is longer than the model's context, and no cause for a warning.
        return tokenizer(piece, add_special_tokens=False, verbose=False)["input_ids"]
    except Exception as error:  # the tokenizers' own library raises nothing narrower
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise TextError(
            f"The tokenizer cannot read the text ({reason}). Give the one that load_tokenizer gives for the model."
        ) from error


def _require_one_reading(tokenizer, text: str) -> None:
    """Raise TextError for a tokenizer that draws the tokens of a text at random."""
    if _ids(tokenizer, text) != _ids(tokenizer, text):
        raise TextError(
            "The tokenizer cuts the same text into other tokens each time, so no two losses on it can be compared: it drops "
            'merges at random, or draws its pieces. Set "dropout" to null in its tokenizer.json, or enable_sampling to '
            "false in its sp_model_kwargs."
        )


def _letters(text: str) -> Counter[str]:
    """The characters of a text, spaces aside, each letter as one with its accents (Unicode's form NFC)."""
    return Counter(unicodedata.normalize("NFC", text).replace(" ", ""))


def _pieces(text: str) -> Iterator[str]:
    """A text in pieces of at most `PIECE` characters, cut at a place of `BETWEEN` where there is one.

    So a byte-level tokenizer gives the pieces the tokens of the whole.
    """
    start = 0
    while len(text) - start > PIECE:
        end = start + PIECE
        places = ([m.end() for m in kind.finditer(text, end - PIECE // 8, end)] for kind in BETWEEN)
        end = next((found[-1] for found in places if found), end)
        yield text[start:end]
        start = end
    yield text[start:]


def tensor_of(dataset: Dataset) -> torch.Tensor:
    """All windows of a dataset: (windows, length), int64.

    Raises:
        TypeError: no Dataset of windows, such as a part of a corpus.
    """
    if not isinstance(dataset, Dataset) or "input_ids" not in dataset.column_names:
        raise TypeError(f"Windows stand in a Dataset, such as corpus.train; found {type(dataset).__name__}.")
    return dataset[:]["input_ids"]
