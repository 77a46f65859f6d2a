"""Where the chapters of a text begin: which paragraphs are headings, in the ways that books and Markdown write them."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

MIN_CHAPTERS = 5
MAX_HEADING = 80  # characters


@dataclass(frozen=True)
class Chapter:
    """A chapter: its heading, its text (heading included), and where it starts in the whole."""

    title: str
    text: str
    start: int


ROMAN = r"(?=[IVXLC])(?:XC|XL|L?X{0,3})(?:IX|IV|V?I{0,3})"
WORD = "chapter|kapitel|chapitre|capítulo|capitolo|hoofdstuk|rozdział|глава|chương"
NUMBER = rf"(?:{ROMAN}|\d{{1,3}}|[^\W\d_]+(?:[ -][^\W\d_]+){{0,2}})"  # IV, 12, Twenty-One, hai mươi mốt
# Part, act and letter are words of running text too: behind them stands a true number, and a capital in front.
ONES = (
    "one|two|three|four|five|six|seven|eight|nine|first|second|third|fourth|fifth|sixth|seventh|eighth|ninth"
)
TEENS = "ten|eleven|twelve|thirteen|fourteen|fifteen|sixteen|seventeen|eighteen|nineteen|tenth|eleventh|twelfth|twentieth"
COUNT = rf"(?:{ROMAN}|\d{{1,3}}|(?:the )?(?:{ONES}|{TEENS}|(?:twenty|thirty|forty|fifty)(?:[ -](?:{ONES}))?))"
CAPITAL = r"(?-i:(?=[A-ZÀ-ÞА-Я]))"
TITLE = r"(?:\S.*)?[^.,;:\s]"
REST = rf"(?:(?:\.\s+|:\s*| *[—–]\s*| +- +){TITLE}| *[.:]?|\n{CAPITAL}{TITLE})"
LETTER = "letter|stave|canto|brief|lettre|lettera|carta|письмо"
ACT, SCENE = (
    "act|akt|aufzug|acte|acto|atto|действие|акт",
    "scene|szene|auftritt|scène|escena|scena|явление|сцена",
)
PLAY = rf"(?:(?:{ACT}) +{COUNT}(?:[.,:]? +(?:{SCENE}) +{COUNT})?|(?:{SCENE}) +{COUNT})"
PART = "part|book|volume|teil|buch|partie|livre|parte|libro|libre|deel|boek|część|часть|phần"
HANGUL = "일이삼사오육칠팔구십백"
HEADINGS = (  # the first kind that makes enough chapters counts alone; a kind is one regular expression
    re.compile(
        rf"(?:{WORD}) +{NUMBER}(?: *[.:]\s*\S.*| *[.:]?|\n[^\n]*[^.,;:\s])"  # Chapter 3. Title
        r"|[^\W\d_]+tes kapitel(?:[.:\n]\s*\S.*|\.?)"  # Erstes Kapitel
        r"|第[\d〇零一二三四五六七八九十百两]{1,7}[章回話话][:：]?[^。，；：]*"  # 第三章 Title
        rf"|제 ?(?:\d{{1,3}}|[{HANGUL}]{{1,7}}) ?[장화회편막](?:[.:：]? +[^.,]*[^.,\s]|[.:：]?)"  # 제1장 Title
        rf"|{CAPITAL}(?:(?:{LETTER}) +{COUNT}|{PLAY}){REST}"  # LETTER 1, Act I
        rf"|(?-i:(?=[^a-z]+\b)){PLAY}[.:]\s*\S.*",  # SCENE II. A room in the castle.
        re.I | re.S,
    ),
    re.compile(r"#{1,6} +\S.*"),  # Markdown
    re.compile(rf"(?:{ROMAN}|\d{{1,3}})\. +(?:\S.*)?[^.,;:\s]"),  # IV. Title
    # PART ONE, BOOK THE FIRST. Last, for what stands within a part is the better chapter.
    re.compile(rf"{CAPITAL}(?:{PART}) +{COUNT}{REST}", re.I | re.S),
)
DECORATED = re.compile(
    r"[*_=~—–-][*_=~—– -]*(\S.*?\S)[*_=~—– -]*[*_=~—–-]", re.S
)  # **Chapter 1**, * * * CHAPTER I *
# A paragraph; Markdown's code between two lines of ``` is one, whatever is in it; so is a line of its #.
PARAGRAPH = re.compile(
    r"^```(?s:.*?)^```[^\n]*|^#{1,6} [^\n]*|\S[^\n]*(?:\n(?!#{1,6} |```)[^\n]*\S[^\n]*)*", re.M
)


def chapters(text: str) -> list[Chapter]:
    """The chapters of a text, in order; what stands before the first heading is in none.

    A heading is a paragraph of one line: "CHAPTER IV.", "Chapter 3. Title", "Kapitel 2",
    "Chương 1", "第三章", "제1장", "LETTER 1", "Act I", "SCENE 2. A room.", "# Title" of Markdown,
    "IV. Title", "3. Title", "PART ONE", "BOOK THE FIRST"; stars, dashes and their like around
    it say nothing, and between two lines of ``` stands code, where # begins a comment. Behind
    "Chapter" and its like the title may stand on a line of its own. Where one kind makes enough
    chapters, the others are text: a numbered list in a chapter opens none.
    Headings that follow each other without text between them make one.
    """
    headings = []  # (kind, start, end, title)
    for paragraph in PARAGRAPH.finditer(text):
        bare = _bare(_composed(paragraph[0]))
        kind = _heading_kind(bare)
        if kind is not None:
            title = " ".join(bare.strip("# \n").split())
            headings.append((kind, paragraph.start(), paragraph.end(), title))
    by_kind = [[h for h in headings if h[0] == kind] for kind in range(len(HEADINGS))]
    joined = [_joined(text, of_kind) for of_kind in by_kind]
    headings = next((found for found in joined if len(found) >= MIN_CHAPTERS), _joined(text, headings))
    ends = [start for start, _, _ in headings[1:]] + [len(text)]
    return [
        Chapter(title, text[start:end], start) for (start, _, title), end in zip(headings, ends, strict=False)
    ]  # no heading: no chapter


def _composed(paragraph: str) -> str:
    """A paragraph with each letter as one character: ư may stand as u and its hook, and 장 as three letters."""
    return unicodedata.normalize("NFC", paragraph) if len(paragraph) <= 4 * MAX_HEADING else paragraph


def _bare(paragraph: str) -> str:
    """A paragraph without what decorates it on both sides; a long one stays as it is, for it is no heading."""
    decorated = DECORATED.fullmatch(paragraph.strip()) if len(paragraph) <= MAX_HEADING else None
    return decorated[1] if decorated else paragraph


def _heading_kind(paragraph: str) -> int | None:
    if len(paragraph) > MAX_HEADING or paragraph.count("\n") > 1:
        return None
    line = re.sub(r"[^\S\n]", " ", paragraph.strip())  # a no-break space is a space
    return next((kind for kind, pattern in enumerate(HEADINGS) if pattern.fullmatch(line)), None)


def _joined(text: str, headings: list[tuple[int, int, int, str]]) -> list[tuple[int, int, str]]:
    """(start, end, title) of headings in order; those without text between them become one."""
    found: list[tuple[int, int, str]] = []
    for _, start, end, title in headings:
        if found and not text[found[-1][1] : start].strip():
            start, _, before = found.pop()
            title = f"{before} {title}"
        found.append((start, end, title))
    return found
