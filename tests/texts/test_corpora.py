"""Reading, splitting, windows and downloads; each bad input has its one clear line."""

import contextlib
import copy
import gzip
import hashlib
import http.server
import json
import os
import random
import re
import socket
import subprocess
import sys
import threading
import time
import unicodedata
import urllib.request

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from helpers.models.loading import load_tokenizer
from helpers.profiles import DATA, Gutenberg
from helpers.texts import corpora, downloads
from helpers.texts.corpora import begin_ids, chapters, load_corpus, read_text, split_text, tensor_of, windows
from helpers.texts.downloads import (
    DownloadError,
    TextError,
    course_form,
    fetch,
    gutenberg,
    strip_licence,
    text_path,
)


def byte_tokenizer(template="$A"):
    """Every byte of a text is one token, so that counts can be worked out by hand.

    Args:
        template: what it makes of a text: "Z $A" puts a begin mark in front of it, as Llama's does, "$A Y" an end
            mark behind it.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[(mark, alphabet.index(mark)) for mark in "ZY"]
    )
    return PreTrainedTokenizerFast(tokenizer_object=bpe, model_max_length=16)


TOKENIZER = byte_tokenizer()


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return path


def book(n_chapters, size=400, heading="{roman}. The {n}th Part"):
    romans = ["I", "II", "III", "IV", "V", "VI", "VII", "VIII", "IX", "X", "XI", "XII"]
    return (
        "\n\n".join(
            heading.format(roman=romans[n], n=n + 1) + "\n\n" + f"Words of part {n + 1}. " * (size // 17)
            for n in range(n_chapters)
        )
        + "\n"
    )


# --- reading -----------------------------------------------------------------------


def folder_with_a_text(path):
    path.mkdir()
    write(path / "inside.txt", "Words.")


def sparse(path, n_bytes):
    """A file that is long and takes no room on the disk."""
    with open(path, "wb") as file:
        file.truncate(n_bytes)


LICENCE = "You may use this at no cost and with almost\nno restrictions whatsoever."

BAD_TEXTS = {
    "missing": (lambda p: None, "there is no such file"),
    "empty": (lambda p: write(p, b""), "is empty: 0 bytes"),
    "only blanks": (lambda p: write(p, b" \n\n\t "), "is empty"),
    "only a byte order mark": (lambda p: write(p, b"\xef\xbb\xbf\n"), "is empty"),
    "a folder": (folder_with_a_text, "is a folder, not a text: it holds inside.txt"),
    "a pipe that nobody writes to": (os.mkfifo, "is a pipe or a device"),
    "larger than memory": (lambda p: sparse(p, 300 << 30), "has 322,122,547,200 bytes, more than fit"),
    "binary": (
        lambda p: write(p, b"WX\x03\x04\x00\x00words"),
        "binary file, not a text: byte 0x03 at offset 2",
    ),
    "a NUL byte": (lambda p: write(p, b"words\x00words"), "byte 0x00 at offset 5"),
    "Latin-1": (
        lambda p: write(p, "A fine caf\xe9 indeed".encode("latin-1")),
        "not UTF-8: byte 0xe9 at offset 10.*WINDOWS-1252",
    ),
    "Windows-1252, whose quotes are no letters of Latin-1": (
        lambda p: write(p, "“Yes”, she said".encode("cp1252")),
        "not UTF-8: byte 0x93 at offset 0.*iconv -f WINDOWS-1252",
    ),
    "cut off in a character": (
        lambda p: write(p, (book(8) + "”").encode()[:-1]),
        r"ends in the middle of a character \(byte 0xe2 at",
    ),
    "one line of Latin-1 in a UTF-8 book": (
        lambda p: write(p, "“Yes”\n\n".encode() + "A caf\xe9\n".encode("latin-1") + "“No”\n".encode()),
        "is UTF-8 but for 1 place, the first in line 3 .byte 0xe9",
    ),
    "UTF-8 read as Latin-1": (
        lambda p: write(p, "“Yes”, he said.\n".encode().decode("latin-1") * 99),
        r"is damaged: 396 places of it, such as '\\x80'",
    ),
    "UTF-8 read as Windows-1252": (
        lambda p: write(p, "It’s a café. ".encode().decode("cp1252") * 99),
        r"is damaged: 198 places of it, such as '\\xe2\\u20ac'",
    ),
    "a Word document": (
        lambda p: write(p, b"PK\x03\x04\x14\x00words"),
        "is a ZIP archive, as Word documents and EPUB books are",
    ),
    "an old Word document": (lambda p: write(p, b"\xd0\xcf\x11\xe0\xa1\xb1"), "is a document of an old Word"),
    "a packed book": (lambda p: write(p, gzip.compress(book(8).encode())), "is a packed file"),
    "a page from the web": (
        lambda p: write(p, "\n <!DOCTYPE html>\n<html>" + book(8)),
        "is a page of HTML or XML, not a plain text",
    ),
    "a page behind a byte order mark": (
        lambda p: write(p, "\ufeff<?xml version='1.0'?>" + book(8)),
        "is a page of HTML or XML",
    ),
    "UTF-16": (lambda p: write(p, "Words".encode("utf-16")), "begins like UTF-16"),
    "UTF-16, high byte first": (lambda p: write(p, b"\xfe\xff\x00W\x00o"), "begins like UTF-16"),
    "UTF-16 without its mark": (
        lambda p: write(p, "Words".encode("utf-16-be")),
        "byte 0x00 at offset 0. Give a plain UTF-8 text file .this one may be UTF-16 without its mark",
    ),
    "UTF-32": (lambda p: write(p, "Words".encode("utf-32")), "begins like UTF-32"),
    "UTF-32, high byte first": (lambda p: write(p, b"\x00\x00\xfe\xff\x00\x00\x00W"), "begins like UTF-32"),
    "a PDF": (lambda p: write(p, "%PDF-1.4\n" + book(8)), "is a PDF, not a plain text"),
    "RTF": (lambda p: write(p, "{\\rtf1\\ansi " + book(8)), "is an RTF file, not a plain text"),
    "lines of JSON": (
        lambda p: write(p, "".join(f'{{"text": "{line}"}}\n' for line in book(8).splitlines())),
        "is JSON, not a plain text",
    ),
    "a notebook": (
        lambda p: write(p, '{\n "cells": [\n  {"source": []}]}' + book(8)),
        "is JSON, not a plain text",
    ),
    "a list of JSON": (lambda p: write(p, '\n[ {"text" : "' + book(8) + '"}]'), "is JSON, not a plain text"),
    "Gutenberg's START alone": (
        lambda p: write(p, "Terms.\n*** START OF THE PROJECT GUTENBERG EBOOK T ***\n" + book(8)),
        "do not take turns",
    ),
    "Gutenberg's END alone": (
        lambda p: write(p, book(8) + "*** END OF THE PROJECT GUTENBERG EBOOK T ***\nTerms.\n"),
        "do not take turns",
    ),
    "Gutenberg's old small print": (
        lambda p: write(p, "*END*THE SMALL PRINT! FOR PUBLIC DOMAIN ETEXTS*Ver.04.29.93*END*\n" + book(8)),
        "small print is of the older form",
    ),
    **{
        f"Gutenberg's licence, {kind}": (
            lambda p, lines=lines: write(p, "\n\n".join([LICENCE, lines[0], book(8), lines[1], LICENCE])),
            "no START and END lines of the known form set it apart",
        )
        for kind, lines in {
            "without marks": ("", ""),
            "with marks without stars": (
                "START OF THE PROJECT GUTENBERG EBOOK T",
                "END OF THE PROJECT GUTENBERG EBOOK T",
            ),
            "with marks in French": (
                "*** DEBUT DU LIVRE PROJECT GUTENBERG T ***",
                "*** FIN DU LIVRE PROJECT GUTENBERG T ***",
            ),
            "in bold": (
                "**START OF THE PROJECT GUTENBERG EBOOK T**",
                "**END OF THE PROJECT GUTENBERG EBOOK T**",
            ),
        }.items()
    },
    "PostScript": (
        lambda p: write(p, "%!PS-Adobe-3.0\n" + book(8)),
        "is a PostScript file, not a plain text",
    ),
    "damaged when it was made UTF-8": (
        lambda p: write(p, book(8).replace("o", "\ufffd")),
        r"is damaged: [\d,]+ places of it, such as '\\ufffd'",
    ),
    "a Ctrl-Z in the middle": (lambda p: write(p, b"words\x1awords"), "byte 0x1a at offset 5"),
    "too short for one window": (
        lambda p: write(p, "Only a few words."),
        "too short for one window: found .* need 64",
    ),
}


@pytest.mark.parametrize("case", BAD_TEXTS)
def test_a_bad_text_gets_one_line_that_names_the_file(case, tmp_path):
    prepare, message = BAD_TEXTS[case]
    path = tmp_path / "story.txt"
    prepare(path)
    with pytest.raises(TextError, match=message) as caught:
        load_corpus(path, TOKENIZER, 64)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert re.search(r"\. (Give|Save) ", str(caught.value)), "it says what to do"


def test_a_text_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    path = write(tmp_path / "story.txt", "Words.")

    def refuse(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(path), "read_bytes", refuse)
    with pytest.raises(TextError, match="Cannot read the text .*story.txt': Permission denied"):
        read_text(path)


def test_the_text_itself_in_place_of_its_name_is_said_in_one_line():
    with pytest.raises(TextError, match="File name too long. Give the name of a file") as error:
        load_corpus(book(8), TOKENIZER, 64)
    assert len(str(error.value).splitlines()) == 1


def test_line_ends_and_the_byte_order_mark_change_nothing(tmp_path):
    plain = book(6)
    unix = write(tmp_path / "unix.txt", plain)
    windows_text = write(tmp_path / "dos.txt", b"\xef\xbb\xbf" + plain.replace("\n", "\r\n").encode())
    mac = write(tmp_path / "mac.txt", plain.replace("\n", "\r"))
    unicode = write(tmp_path / "unicode.txt", plain.replace("\n\n", "\u2029").replace("\n", "\u2028"))
    assert read_text(unix) == read_text(windows_text) == read_text(mac) == read_text(unicode) == plain
    assert load_corpus(windows_text, TOKENIZER, 64).split == load_corpus(unix, TOKENIZER, 64).split


def test_byte_order_marks_between_joined_files_hide_no_heading(tmp_path):
    parts = [f"\ufeffChapter {n}.\n\nWords of part {n}.\n\n" for n in range(1, 7)]
    text = read_text(write(tmp_path / "joined.txt", "".join(parts)))
    assert "\ufeff" not in text
    assert [c.title for c in chapters(text)] == [f"Chapter {n}." for n in range(1, 7)]


@pytest.mark.parametrize("end", [b"\x1a", b"\r\n\x1a", b"\x1a\r\n", b"\x1a\x1a"])
def test_a_last_ctrl_z_makes_no_binary_file(end, tmp_path):
    assert read_text(write(tmp_path / "dos.txt", b"A word." + end)).rstrip("\n") == "A word."


def test_a_row_of_ctrl_z_inside_a_file_takes_no_longer_than_other_bytes(tmp_path):
    """Each of them was looked at as the last one of the file."""
    began = time.process_time()
    with pytest.raises(TextError, match="byte 0x1a at offset 1"):
        read_text(write(tmp_path / "rows.txt", b"a" + b"\x1a" * 300_000 + b"b"))
    assert time.process_time() - began < 5


def test_letters_beyond_ascii_are_kept(tmp_path):
    text = "Na\xefve caf\xe9s \u2014 \u6f22\u5b57"
    assert read_text(write(tmp_path / "t.txt", text)) == text


# --- chapters and split ------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [
        "I. The Clock",
        "IV. Who Stole the Tarts?",
        "XII. A",
        "3. The Farm",
        "CHAPTER I.",
        "CHAPTER I. Down",
        "Chapter 3. Title",
        "Chapter 12",
        "CHAPTER XL",
        "Chapter One",
        "Chapter Two: The Sea",
        "CHAPTER I.\nDown the Hole",
        "Chapter 1\nThe Lamp",
        "Chapter Twenty-One",
        "Kapitel 3",
        "KAPITEL IV. Der See",
        "Erstes Kapitel",
        "Zweites Kapitel.\nAm Fluss",
        "Chapitre premier",
        "CHAPITRE II. La mer",
        "Capítulo 5",
        "CAPÍTULO PRIMERO",
        "Глава 2",
        "ГЛАВА ПЕРВАЯ",
        "Глава III. Река",
        "Chương 1",
        "Chương 12\nBốn mươi cái đinh",
        "Chương hai mươi mốt",
        "第三章",
        "第十二章 春天",
        "第一百二十回　河水",
        "第2章：灯",
        "CHAPTER\u00a0IV.",
        "IV.\u00a0The Farm",
        "3.\u202fThe Farm",
        "Chương\u00a07",
        "제1장",
        "제 1 화",
        "제12장: 바다",
        "제삼장 밤의 끝",
        "第一話",
        "PART ONE",
        "PART I",
        "Part Two: The Sea",
        "PART THE THIRD",
        "PART ONE — THE OLD HOUSE",
        "PART ONE\nThe Sea",
        "BOOK THE FIRST",
        "BOOK THE FIRST—CALLED BACK",
        "Book Twenty-Three",
        "Часть 2",
        "Act I",
        "ACT 1",
        "Scene 2",
        "SCENE II. A room in the castle.",
        "ACT I. SCENE I. Before the gate.",
        "Act 1, Scene 2",
        "LETTER 1",
        "STAVE ONE",
        "STAVE I: The Guest",
    ],
)
def test_a_heading_is_seen(line):
    found = chapters(f"Before.\n\n{line}\n\nText.\n")
    assert [c.title for c in found] == [" ".join(line.split())]
    assert found[0].text == f"{line}\n\nText.\n"


@pytest.mark.parametrize(
    "title", ["Chương 12\nBốn mươi cái đinh", "Capítulo 5", "제12장 {}", "CHAPITRE PREMIER\nLa forêt"]
)
def test_a_heading_of_letters_in_parts_is_seen_too(title):
    """As a Mac may write them: each letter, then its accents. A Korean title is then twice as long."""
    title = title.format("바다를 건너간 사람들의 아주 긴 이야기 " * 2).strip()
    whole = "".join(f"{title}\n\nWords of a chapter. {'and more ' * 40}\n\n" for _ in range(6))
    apart = unicodedata.normalize("NFD", whole)
    assert (
        [c.title for c in chapters(apart)]
        == [c.title for c in chapters(whole)]
        == [" ".join(title.split())] * 6
    )
    assert "".join(c.text for c in chapters(apart)) == apart


@pytest.mark.parametrize(
    "line",
    [
        "I was there.",
        "I. e., not here.",
        "V. Yes.",
        "Civil. Words",
        "1863. A year of war",
        "I. " + "word " * 30,
        "Chapter and verse were quoted.",
        "IIII. Wrong",
        "IV",
        ". Dot",
        "One\nCHAPTER I.",
        "I. A verse line\nand another",
        "MIX. Words",
        "Mr. Hill",
        "Chapter 3\nwas dull, he said.",
        "#hashtag",
        "Kapitel für Kapitel las er es vor.",
        "第三章说的是河水。",
        "第三章很长，他没有读完",
        "Chương trình hôm nay có gì hay không",
        "Part one of the plan was easy.",
        "Act 1 was over.",
        "Letter 3 came.",
        "part one",
        "Part I had read",
        "Part two, then",
        "Part one.5",
        "Part ten\nof the crew went home",
        "Act I did not see",
        "Act I: he left, I stayed.",
        "Act up",
        "Book two rooms, please.",
        "Book the first train",
        "Scene two of it",
        "Letter C",
        "제1장은 길었다.",
        "제일 좋은 날",
        "第一話は長い。",
        "*Act 1 was over.*",
        "**Part one of the plan was easy.**",
        "* * *",
        "**Note**",
    ],
)
def test_a_line_that_only_looks_like_a_heading_is_none(line):
    assert chapters(f"Before.\n\n{line}\n\nText.\n") == []


@pytest.mark.parametrize(
    "line, title",
    [
        ("**Chapter 1**", "Chapter 1"),
        ("__Chapter Two: The Sea__", "Chapter Two: The Sea"),
        ("* * * CHAPTER I *", "CHAPTER I"),
        ("--- CHAPTER I ---", "CHAPTER I"),
        ("— Chapter 3 —", "Chapter 3"),
        ("**3. The Farm**", "3. The Farm"),
        ("**PART ONE**", "PART ONE"),
    ],
)
def test_what_decorates_a_heading_on_both_sides_is_no_part_of_it(line, title):
    found = chapters(f"Before.\n\n{line}\n\nText.\n")
    assert [(c.title, c.text) for c in found] == [(title, f"{line}\n\nText.\n")]


def test_chapters_stand_before_the_parts_that_hold_them_and_scenes_divide_a_play():
    novel = "\n\n".join(f"PART {p}\n\nA word.\n\n{n}. The Farm\n\nText." for n, p in enumerate("IIIIII", 1))
    assert [c.title for c in chapters(novel)] == [f"{n}. The Farm" for n in range(1, 7)]
    parts = "\n\n".join(f"PART {n}\n\nText." for n in range(1, 7))
    assert [c.title for c in chapters(parts)] == [f"PART {n}" for n in range(1, 7)]
    play = "\n\n".join(
        f"ACT {act}\n\nSCENE 1. A hall.\n\nText.\n\nSCENE 2. A wood.\n\nText." for act in range(1, 4)
    )
    assert [c.title for c in chapters(play)][:2] == ["ACT 1 SCENE 1. A hall.", "SCENE 2. A wood."]
    assert len(chapters(play)) == 6 and chapters(play)[0].text.startswith("ACT 1\n\nSCENE 1")


def test_headings_in_a_row_make_one_chapter():
    contents = "I. One\n\nII. Two\n\nI. One\n\nText.\n\nII. Two\n\nMore.\n"
    assert [c.title for c in chapters(contents)] == ["I. One II. Two I. One", "II. Two"]


def test_a_heading_of_markdown_needs_no_blank_line_behind_it():
    found = chapters("Before.\n# The Lamp\nText.\nMore.\n\n## 2. The Salt Road ##\n\nText.\n")
    assert [c.title for c in found] == ["The Lamp", "2. The Salt Road"]
    assert found[0].text == "# The Lamp\nText.\nMore.\n\n"


@pytest.mark.parametrize("before", ["Text.\n\n", "Text.\n"])
@pytest.mark.parametrize("code", ["# load the data\nx = 1", "x = 1\n\n# Chapter 9\n\ny = 2", "Chapter 9"])
def test_code_between_fences_holds_no_heading_and_is_not_cut(before, code):
    block = f"```python\n{code}\n```\n\n"
    text = "".join(f"# Part {n}\n\n{before}{block}More.\n\n" for n in range(1, 7))
    found = chapters(text)
    assert [c.title for c in found] == [f"Part {n}" for n in range(1, 7)]
    assert all(block in c.text for c in found)


def test_a_fence_that_is_never_closed_hides_no_heading():
    text = "".join(f"# Part {n}\n\nText.\n\n" for n in range(1, 7)) + "```\n\n# Part 7\n\nText.\n"
    assert [c.title for c in chapters(text)] == [f"Part {n}" for n in range(1, 8)]


@pytest.mark.parametrize("heading", ["Chapter {n}", "# Part {n}"])
def test_a_numbered_list_inside_a_chapter_opens_none(heading):
    questions = "\n\n".join(f"{n}. Why is that so?\n\nBecause." for n in range(1, 9))
    text = "\n\n".join(f"{heading.format(n=n)}\n\nText.\n\n{questions}" for n in range(1, 7))
    assert [c.title for c in chapters(text)] == [heading.format(n=n).strip("# ") for n in range(1, 7)]


def test_hundreds_of_numbered_questions_are_cut_by_size_between_two_of_them():
    text = "".join(f"{n}. Why is number {n} so?\n\n" + "Because it is. " * 4 + "\n\n" for n in range(1, 400))
    split = split_text(text)
    assert split.how.endswith("cut between chapters (the last 3 of 399 chapters hold 0.8% of it)")
    assert re.match(r"\d+\. Why", split.dev) and re.match(r"\d+\. Why", split.test)
    assert [round(len(p) / len(text), 2) for p in (split.train, split.dev, split.test)] == [0.80, 0.08, 0.12]


def test_two_chapters_can_be_held_out_for_dev():
    text = book(8)
    found, split = chapters(text), split_text(text, n_dev=2)
    assert split.dev == found[4].text + found[5].text
    assert split.test == found[6].text + found[7].text
    assert "dev is 'V. The 5th Part' and 'VI. The 6th Part', test is" in split.how
    assert "5 chapter headings found, 6 needed" in split_text(book(5), n_dev=2).how


@pytest.mark.parametrize(
    "sentence",
    [
        "河水在夜里流过村子。",
        "你听见了吗？",
        "「来了！」",
        "هل سمعت النهر؟ ",
        "नदी बहती है। ",
        "नदी बहती है॥ ",
        "Գետը հոսում է։ ",
        "ወንዙ ይፈሳል። ",
        "ទន្លេហូរ។ ",
        "မြစ်စီးသည်။ ",
        "Il attendait… ",
        "“Er kommt.” ",
        "– Cháu nghe rồi! ",
    ],
)
def test_a_line_in_any_script_is_cut_between_sentences(sentence):
    split = split_text(sentence * 3000)
    assert "between sentences" in split.how
    assert split.dev.startswith(sentence) and split.test.startswith(sentence)


def test_the_last_two_chapters_are_the_test_and_the_one_before_is_dev():
    text = "Preface.\n\n" + book(8)
    found, split = chapters(text), split_text(text)
    assert split.test == found[6].text + found[7].text
    assert split.dev == found[5].text
    assert split.train.startswith("Preface.") and split.train.endswith(found[4].text)
    assert split.how.startswith("by chapter: 8 found; dev is 'VI. The 6th Part'")


def test_fewer_than_five_chapters_are_cut_between_paragraphs_by_size():
    text = "".join(f"Paragraph {i} says this.\n\n" for i in range(300))
    split = split_text(text)
    assert "between paragraphs (0 chapter headings found, 5 needed)" in split.how
    assert split.dev.startswith("Paragraph ") and split.test.startswith("Paragraph ")
    assert [round(len(p) / len(text), 2) for p in (split.train, split.dev, split.test)] == [0.80, 0.08, 0.12]


def test_four_chapters_are_too_few_and_five_are_enough():
    assert "4 chapter headings found" in split_text(book(4, size=4000)).how
    assert split_text(book(5)).how.startswith("by chapter")


def test_a_book_whose_last_chapter_is_one_line_is_not_split_by_chapter():
    text = book(11, size=3000) + "\n\nXII. Which Was It?\n\nNobody knew.\n"
    assert "chapter 'XII. Which Was It?' has 33 characters" in split_text(text).how


def test_one_enormous_line_is_cut_between_sentences():
    text = "This is a sentence of some length. " * 5000
    split = split_text(text)
    assert "between sentences" in split.how
    assert split.dev.startswith("This is") and split.test.startswith("This is")


def test_a_few_huge_paragraphs_are_cut_between_sentences():
    text = ("This is a sentence of some length. " * 500 + "\n\n") * 4
    assert "between sentences" in split_text(text).how


def test_lines_or_words_are_cut_where_no_sentence_ends():
    lines = "".join(f"[12:{i % 60:02d}] Ann: a little word and one more\n" for i in range(300))
    split = split_text(lines)
    assert "between lines" in split.how
    assert split.dev.startswith("[12:") and split.test.startswith("[12:")
    split = split_text("night window garden " * 500)
    assert "between words" in split.how
    assert {part.split()[0] for part in (split.dev, split.test)} <= {"night", "window", "garden"}


def test_a_mark_of_the_tokenizer_in_the_text_is_said(tmp_path):
    tokenizer, text = load_tokenizer(DATA / "gpt-neo-mini"), book(8)
    plain = load_corpus(write(tmp_path / "plain.txt", text), tokenizer, 16)
    marked = text.replace("\n\n", " <|endoftext|>\n\n", 2)
    marked = load_corpus(write(tmp_path / "marked.txt", marked), tokenizer, 16)
    assert "mark" not in plain.shares
    assert "; <|endoftext|> stands in it 2 times, and is read as a mark" in marked.shares


def test_a_text_that_begins_like_no_page_is_a_text(tmp_path):
    for start in ("<Enter Hamlet>", "<!-- a draft -->", "<p>", "PK is short. ", "<3 you"):
        assert read_text(write(tmp_path / "story.txt", start + book(8))).startswith(start)


def test_one_enormous_line_without_an_end_is_cut_between_characters():
    split = split_text("x" * 1000)
    assert [len(p) for p in (split.train, split.dev, split.test)] == [800, 80, 120]
    assert "between characters" in split.how


@pytest.mark.parametrize(
    "letter", ["ท\u0e35\u0e48", "क\u093f", "e\u0301", "\u2764\ufe0f"]
)  # the vowel and tone follow
def test_a_letter_is_not_parted_from_its_marks(letter):
    for n_letters in range(100, 110):
        split = split_text(letter * n_letters)
        assert (
            "between characters" in split.how and split.train + split.dev + split.test == letter * n_letters
        )
        assert all(part.startswith(letter[0]) for part in (split.train, split.dev, split.test))


@pytest.mark.parametrize("line", [".", "!?", '."'])
def test_a_row_of_full_stops_takes_no_longer_than_other_letters(line):
    """300,000 dots were looked through from each of them: three quarters of an hour."""
    text = "a" + line * (300_000 // len(line))
    began = time.process_time()
    assert "between characters" in split_text(text).how
    assert time.process_time() - began < 5


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.sampled_from(["\n", "\n\n", "I. One", "II. Two", "Chapter 3.", "Words here. ", "x", "\u2014", " "])
        | st.text(max_size=5),
        max_size=60,
    )
)
def test_the_three_parts_always_join_to_the_text(pieces):
    text = "".join(pieces)
    split = split_text(text)
    assert split.train + split.dev + split.test == text
    assert all(c.text == text[c.start : c.start + len(c.text)] for c in chapters(text))


# --- windows -----------------------------------------------------------------------


def test_windows_follow_each_other_without_overlap_and_the_tail_is_dropped():
    text = "".join(chr(97 + i % 26) for i in range(70))
    rows = tensor_of(windows(TOKENIZER, text, 16))
    assert rows.shape == (4, 16) and rows.dtype == torch.int64
    assert TOKENIZER.decode(rows.flatten()) == text[:64]


def test_exactly_one_window_is_enough():
    assert len(windows(TOKENIZER, "x" * 16, 16)) == 1
    with pytest.raises(TextError, match="too short for one window: found 15 tokens, need 16"):
        windows(TOKENIZER, "x" * 15, 16)


@pytest.mark.parametrize(
    "template, n_marks", [("$A", 0), ("$A Y", 0), ("Z $A", 1), ("Z $A Y", 1), ("Z Z $A", 2)]
)
def test_every_window_begins_as_the_tokenizer_begins_a_text_and_none_ends(template, n_marks, tmp_path):
    tokenizer, text = byte_tokenizer(template), "".join(chr(97 + i % 26) for i in range(70))
    assert tokenizer.decode(begin_ids(tokenizer)) == "Z" * n_marks
    rows = tensor_of(windows(tokenizer, text, 16))
    assert rows.shape == (70 // (16 - n_marks), 16)
    assert all(tokenizer.decode(row[:n_marks]) == "Z" * n_marks for row in rows)
    assert tokenizer.decode(rows[:, n_marks:].flatten()) == text[: len(rows) * (16 - n_marks)]
    corpus = load_corpus(write(tmp_path / "t.txt", book(8)), tokenizer, 16)
    said = f"; each window begins with {'Z' * n_marks}, as a text does for this tokenizer"
    assert str(corpus).endswith(said if n_marks else "of the file is used")


def test_held_out_text_that_was_trained_on_is_said(tmp_path):
    letters = random.Random(1)
    different = ["".join(letters.choices("abcdefgh ", k=400)) for _ in range(6)]
    for chapters_of, share in (
        (different, 0.0),
        ([different[0]] * 6, 1.0),
        (different[:5] + different[:1], 0.33),
    ):
        text = "\n\n".join(f"Chapter {n + 1}\n\n{words}" for n, words in enumerate(chapters_of))
        corpus = load_corpus(write(tmp_path / "t.txt", text), TOKENIZER, 16)
        assert corpus.share_repeated == pytest.approx(share, abs=0.1)
        assert ("stands in the train part too" in str(corpus)) == (share > 0)


MARKED_UP = {
    "a page without its head": ('<p class="noindent">{}<br/></p>', '<p class="noindent">', 0.32),
    "entities": ("&#8220;{}&rdquo; &nbsp;", "&#8220;", 0.24),
    "TeX": ("\\chapter{{{0}}} \\emph{{so}}", "\\chapter", 0.15),
    "a few tags": ("{0} {0} {0} {0} {0} {0} <i>{0}</i> {0} {0} {0}", "", 0.009),
    "less and greater": ("if a < b and c > d & e; {}", "", 0.0),
    "addresses": ("write to <ann@example.org> or <https://example.org/a>; {}", "", 0.0),
}


@pytest.mark.parametrize("form", MARKED_UP)
def test_markup_that_would_be_learned_like_words_is_said(form, tmp_path):
    letters = random.Random(2)
    line, first, share = MARKED_UP[form]
    text = "\n\n".join(line.format("".join(letters.choices("abcdefgh ", k=60))) for _ in range(60))
    corpus = load_corpus(write(tmp_path / "t.txt", text), TOKENIZER, 16)
    assert corpus.share_markup == pytest.approx(share, abs=0.02)
    assert (f"of the text is markup, such as {first}, and is learned" in str(corpus)) == bool(first)


def test_a_long_tag_is_shortened_and_the_courses_own_texts_have_no_markup(tmp_path):
    text = "\n\n".join(f"<a\nhref='{'x' * 60}'>{'abc def ' * 9}</a>" for _ in range(60))
    corpus = load_corpus(write(tmp_path / "t.txt", text), TOKENIZER, 16)
    assert corpus.markup == f"<a href='{'x' * 30}…"
    for path in sorted(DATA.glob("*.txt")):
        assert load_corpus(path, TOKENIZER, 64).share_markup == 0, path


def test_a_few_repeated_tokens_are_chance(tmp_path):
    run = "sixty-three letters in a row, which are one less than a run has"
    assert len(run) == 63
    text = "\n\n".join(f"Chapter {n}\n\n" + chr(97 + n) * 400 + run + chr(107 + n) * 400 for n in range(6))
    corpus = load_corpus(write(tmp_path / "t.txt", text), TOKENIZER, 16)
    assert corpus.share_repeated == 0 and "train part too" not in str(corpus)


@pytest.mark.parametrize("n_dev", [0, -1, 1.5])
def test_the_dev_part_has_a_number_of_chapters(n_dev, tmp_path):
    with pytest.raises(TextError, match="whole number of chapters, 1 or more"):
        load_corpus(write(tmp_path / "t.txt", book(8)), TOKENIZER, 16, n_dev=n_dev)


@pytest.mark.parametrize("text", [None, b"words" * 20, ["words"] * 20])
def test_what_is_no_text_is_not_cut(text):
    with pytest.raises(TextError, match="^The text must be a str"):
        windows(TOKENIZER, text, 4)


@pytest.mark.parametrize("place", [None, 3, b"t.txt", ["t.txt"]])
def test_what_is_no_path_is_said(place):
    with pytest.raises(TypeError, match="^The place of a text is a path"):
        load_corpus(place, TOKENIZER, 16)


def test_a_tokenizer_that_cannot_read_a_word_is_said():
    knows = Tokenizer(models.WordLevel({"known": 0}))  # and no mark for what is unknown
    with pytest.raises(TextError, match="^The tokenizer cannot read the text .WordLevel error"):
        windows(PreTrainedTokenizerFast(tokenizer_object=knows), "unheard of", 2)


def test_a_mark_of_the_tokenizer_in_a_text_is_named():
    with pytest.raises(TextError, match="It reads '<.endoftext.>' as a mark of its own"):
        windows(load_tokenizer(DATA / "gpt-neo-mini"), "A lamp. <|endoftext|> " * 20, 4)


def test_a_window_that_the_marks_fill_is_refused():
    with pytest.raises(TextError, match="2 tokens has no room for text"):
        windows(byte_tokenizer("Z Z $A"), "x" * 100, 2)


@pytest.mark.parametrize("length", [1, 0, -5])
def test_a_window_must_have_something_to_predict(length):
    with pytest.raises(TextError, match=f"A window of {length} tokens"):
        windows(TOKENIZER, "x" * 100, length)


def test_a_row_of_a_dataset_is_a_tensor():
    assert windows(TOKENIZER, "x" * 40, 16)[0]["input_ids"].shape == (16,)


def test_a_long_text_makes_no_warning(caplog, recwarn, capfd):
    windows(byte_tokenizer(), "x" * 5000, 16)  # a new tokenizer: each warns only once
    assert not recwarn.list and not caplog.records and "longer" not in capfd.readouterr().err


def test_a_corpus_holds_its_three_parts_and_the_files_hash(tmp_path):
    path = write(tmp_path / "tales.txt", book(8))
    corpus = load_corpus(path, TOKENIZER, 64)
    assert corpus.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (corpus.name, corpus.path) == ("tales", str(path))
    assert corpus.n_tokens == {p: tensor_of(getattr(corpus, p)).numel() for p in ("train", "dev", "test")}
    for part in ("train", "dev", "test"):
        text = TOKENIZER.decode(tensor_of(getattr(corpus, part)).flatten())
        whole = getattr(corpus.split, part)
        assert whole.startswith(text) and len(whole) - len(text) < 64
    assert load_corpus(path, TOKENIZER, 64, name="mine").name == "mine"
    assert "train 3" in str(corpus) or "windows of 64 tokens" in str(corpus)


def test_a_part_that_is_too_short_is_named(tmp_path):
    path = write(tmp_path / "t.txt", "x" * 1000)
    with pytest.raises(
        TextError, match=r"The dev part of '.*t.txt' is too short for one window: found 80 tokens"
    ):
        load_corpus(path, TOKENIZER, 100)


def test_one_enormous_line_works(tmp_path):
    corpus = load_corpus(write(tmp_path / "line.txt", "x" * 1_000_000), TOKENIZER, 256)
    assert corpus.n_tokens["train"] == 800_000


def words_tokenizer(*known, lowercase=False):
    words = Tokenizer(
        models.WordLevel(vocab={w: n for n, w in enumerate(("[UNK]", *known))}, unk_token="[UNK]")
    )
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if lowercase:
        words.normalizer = normalizers.Lowercase()
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]")


def test_a_tokenizer_that_draws_its_tokens_is_refused():
    """BPE dropout: a merge is left out at random, so that a text has other tokens each time."""
    text = "all hills call " * 40
    letters = ["[UNK]", "Ġ", *sorted(set(text) - {" "}), "ll"]
    bpe = Tokenizer(
        models.BPE({c: i for i, c in enumerate(letters)}, [("l", "l")], unk_token="[UNK]", dropout=0.3)
    )
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    with pytest.raises(TextError, match='into other tokens each time.* Set "dropout" to null'):
        windows(PreTrainedTokenizerFast(tokenizer_object=bpe), text, 16)
    bpe.model.dropout = None
    assert (
        len(windows(PreTrainedTokenizerFast(tokenizer_object=bpe), text, 16))
        == 40 * (len("all hills call ") - 3) // 16
    )


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_an_accent_beside_its_letter_or_on_it_is_no_change(tmp_path, form):
    """As a Mac writes a French text, and as Qwen's tokenizer reads any."""
    one_form = byte_tokenizer()
    one_form.backend_tokenizer.normalizer = getattr(normalizers, form)()
    text = "Été après été, la forêt où l'élève dort.\n\n" * 40
    found = {
        kind: load_corpus(write(tmp_path / f"{kind}.txt", unicodedata.normalize(kind, text)), one_form, 32)
        for kind in ("NFC", "NFD")
    }
    assert all(corpus.share_changed == 0 and "changes" not in corpus.shares for corpus in found.values())
    whole = {kind: one_form.decode(tensor_of(corpus.test)[0]) for kind, corpus in found.items()}
    assert whole["NFC"][:20] == whole["NFD"][:20] == unicodedata.normalize(form, text)[:20]


def test_a_tokenizer_that_does_not_know_the_words_is_refused():
    with pytest.raises(
        TextError, match=r"The text would lose 53% of its characters: .*'\w'.* Give a text in"
    ):
        windows(words_tokenizer("sông"), "sông nước lặng " * 50, 16)


def test_a_tokenizer_that_rewrites_letters_is_counted_and_refused_above_a_share(tmp_path):
    tokenizer = words_tokenizer("the", "river", "rises", "lamp", lowercase=True)
    path = write(tmp_path / "t.txt", "The river rises the lamp the river rises the lamp the river " * 60)
    corpus = load_corpus(path, tokenizer, 8)
    assert corpus.share_changed == pytest.approx(1 / 57, abs=0.003)
    assert re.search(r"the tokenizer changes 1\.\d\d% of the characters$", str(corpus))
    with pytest.raises(TextError, match=r"would lose \d+% of its characters.*'[TRL]'"):
        windows(tokenizer, "The River Rises The Lamp " * 60, 8)


def test_a_tokenizer_that_gives_back_every_letter_changes_nothing(tmp_path):
    corpus = load_corpus(DATA / "viet_tales.txt", TOKENIZER, 256)
    assert corpus.share_changed == 0 and "changes" not in str(corpus)


def test_the_share_of_the_file_that_is_used_is_said(tmp_path):
    header, text = "Project Gutenberg's licence. " * 40, "x" * 1000
    path = write(
        tmp_path / "t.txt",
        f"{header}\n*** START OF THE PROJECT GUTENBERG EBOOK T ***\n{text}\n"
        "*** END OF THE PROJECT GUTENBERG EBOOK T ***\n",
    )
    corpus = load_corpus(path, TOKENIZER, 16)
    in_windows = sum(corpus.n_tokens.values())  # a token is a letter here
    assert corpus.share_used == pytest.approx(in_windows / path.stat().st_size)
    assert 0.40 < corpus.share_used < 0.45
    assert str(corpus).endswith(f"; {corpus.share_used:.1%} of the file is used")


@pytest.mark.parametrize("name", ["alice_style.txt", "viet_tales.txt"])
def test_a_text_in_pieces_has_the_tokens_of_the_whole(name, monkeypatch):
    tokenizer, text = load_tokenizer(DATA / "gpt-neo-mini"), read_text(DATA / name)
    whole = tensor_of(windows(tokenizer, text, 64))
    monkeypatch.setattr(corpora, "PIECE", 3000)
    assert torch.equal(tensor_of(windows(tokenizer, text, 64)), whole)


@pytest.mark.parametrize(
    "text",
    [
        ",".join(str(i * i) for i in range(900)),
        "".join(f"x{i}=f{i % 9}(y[{i}],z);\n" for i in range(300)),
        "".join("河水在夜里涨" + "，。"[i % 2] for i in range(600)),
        "\n".join(f"line{i}" for i in range(900)),
    ],
    ids=["numbers", "code", "Chinese", "lines"],
)
def test_a_text_without_two_words_has_the_tokens_of_the_whole_in_pieces_too(text, monkeypatch):
    tokenizer = load_tokenizer(DATA / "gpt-neo-mini")
    whole = tensor_of(windows(tokenizer, text, 16))
    monkeypatch.setattr(corpora, "PIECE", 1001)
    assert torch.equal(tensor_of(windows(tokenizer, text, 16)), whole)


def test_a_long_line_without_blanks_is_read_in_pieces(monkeypatch):
    monkeypatch.setattr(corpora, "PIECE", 100)
    assert TOKENIZER.decode(tensor_of(windows(TOKENIZER, "xyz" * 400, 16)).flatten()) == "xyz" * 400


def test_reading_a_long_text_takes_at_most_twenty_bytes_a_character(tmp_path):
    n = 2_500_000
    sentence = "The river rose in the night and nobody in the village heard it come. "
    path = write(tmp_path / "long.txt", sentence * (n // len(sentence)))
    program = f"""
import resource
from helpers.texts import load_corpus
from helpers.models import load_tokenizer
tokenizer = load_tokenizer({str(DATA / "gpt-neo-mini")!r})
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
load_corpus({str(DATA / "alice_style.txt")!r}, tokenizer, 64)  # what the first call loads is no part of the text
before = peak()
load_corpus({str(path)!r}, tokenizer, 64)
print(peak() - before)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 20 * n


def test_the_windows_of_a_text_are_in_memory_once():
    rows = np.arange(12, dtype=np.int64).reshape(3, 4)
    dataset = corpora._dataset(rows)
    (piece,) = dataset.data.column("input_ids").chunks
    assert piece.flatten().buffers()[1].address == rows.ctypes.data
    assert torch.equal(tensor_of(dataset), torch.from_numpy(rows))


def test_line_ends_that_a_tokenizer_makes_spaces_count_as_changed(tmp_path):
    path = write(tmp_path / "t.txt", book(8))
    plain = load_corpus(path, TOKENIZER, 64)
    flat = copy.deepcopy(TOKENIZER)
    flat.backend_tokenizer.normalizer = normalizers.Replace("\n", " ")
    found = load_corpus(path, flat, 64)
    assert plain.share_changed == 0
    assert found.share_changed == pytest.approx(book(8).count("\n") / len(book(8)))


def test_the_shipped_texts_load():
    corpus = load_corpus(DATA / "alice_style.txt", TOKENIZER, 256)
    assert corpus.split.how.startswith("by chapter")
    assert len(corpus.test) > 22


# --- Project Gutenberg's form ------------------------------------------------------

LICENSED = (
    "The Project Gutenberg eBook of Tales\n\n*** START OF THE PROJECT GUTENBERG EBOOK TALES ***\n\n\n{}\n\n"
    "*** END OF THE PROJECT GUTENBERG EBOOK TALES ***\n\nTerms of use, at length.\n"
)


def test_the_licence_is_left_out_and_other_texts_stay_as_they_are():
    assert strip_licence(LICENSED.format("Body.")) == "Body.\n"
    assert strip_licence(LICENSED.format("Body.").replace("THE PROJECT", "THIS PROJECT")) == "Body.\n"
    assert strip_licence("*** START OF something\n") == "*** START OF something\n"
    in_two_lines = LICENSED.format("Body.").replace("EBOOK TALES", "ETEXT OF TALES\nAND RHYMES")
    assert strip_licence(in_two_lines) == "Body.\n"
    assert strip_licence(LICENSED.format("Body.").replace("*** ", "  ***")) == "Body.\n"


def test_every_book_of_joined_books_is_kept_and_every_licence_left_out():
    joined = LICENSED.format("The first book.") + "\n" + LICENSED.format("The second book.")
    assert strip_licence(joined) == "The first book.\n\nThe second book.\n"


def test_marks_that_do_not_take_turns_leave_the_text_as_it_is():
    start, end = (
        "*** START OF THE PROJECT GUTENBERG EBOOK T ***",
        "*** END OF THE PROJECT GUTENBERG EBOOK T ***",
    )
    for marks in ([start, start, end], [end, start], [start, end, start], [start], [end]):
        text = "Before.\n" + "".join(f"{mark}\nWords.\n" for mark in marks)
        assert strip_licence(text) == text


def test_a_readers_own_gutenberg_file_is_not_tested_on_its_licence(tmp_path):
    path = write(tmp_path / "t.txt", LICENSED.format(book(8)))
    split = load_corpus(path, TOKENIZER, 64).split
    assert "Terms of use" not in split.test and "START OF" not in split.train


def test_course_form_unwraps_prose_keeps_verse_and_writes_plain_quotes():
    raw = "\u201cIt\u2019s a _long_\nline\u201d\u2014he said.\n\n  How doth\n  the tide\n\n\n\nEnd."
    assert course_form(raw) == '"It\'s a long line"--he said.\n\nHow doth\nthe tide\n\nEnd.'


# --- downloads, from a server on this machine ---------------------------------------

TITLE = "The Book of Tests"
GOOD = (
    f"{TITLE.replace(' ', chr(10), 1)}\n\n" + "A line of the book, as long as it must be.\n" * 400
).encode()


class Server(http.server.ThreadingHTTPServer):
    """Sends ``body``; ``script`` holds what to do wrong, one entry a request.

    An entry is a status; "cut", "drip" or "send"; or a dict of headers that are sent in place of the right
    ones (None: not at all), and of ``status`` and ``body`` if they are to be others.
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.body, self.script, self.requests, self.etag = GOOD, [], [], '"v1"'

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/book.txt"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        server.requests.append(dict(self.headers))
        action = server.script.pop(0) if server.script else "send"
        if isinstance(action, int):
            return self.send_error(action)
        wrong = dict(action) if isinstance(action, dict) else {}
        body, start = server.body, 0
        if "Range" in self.headers and self.headers["If-Range"] == server.etag:
            start = int(re.fullmatch(r"bytes=(\d+)-", self.headers["Range"])[1])
        if start >= len(body):
            return self.send_error(416)
        self.send_response(wrong.pop("status", 206 if start else 200))
        sent = wrong.pop("body", body[start : start + 5000] if action == "cut" else body[start:])
        right = {
            "ETag": server.etag or None,
            "Content-Length": len(body) - start,
            "Content-Type": "text/plain",
            "Content-Range": f"bytes {start}-{len(body) - 1}/{len(body)}" if start else None,
        }
        for name, value in (right | wrong).items():
            if value is not None:
                self.send_header(name, str(value))
        self.end_headers()
        if action != "drip":
            return self.wfile.write(sent)
        with contextlib.suppress(OSError):  # the client has gone
            for place in range(0, len(sent), 100):
                self.wfile.write(sent[place : place + 100])
                time.sleep(0.02)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(downloads, "TIMEOUT", 5)
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def get(server, folder, **options):
    return fetch(server.url, folder, **{"title": TITLE, "wait": 0.0, **options})


def test_a_book_is_downloaded_and_its_hash_remembered(server, tmp_path):
    path = get(server, tmp_path / "new" / "folder")
    assert path.read_bytes() == GOOD and path.name == "book.txt"
    record = json.loads((path.parent / "book.txt.json").read_text())
    assert record == {"url": server.url, "sha256": hashlib.sha256(GOOD).hexdigest(), "bytes": len(GOOD)}
    assert sorted(p.name for p in path.parent.iterdir()) == ["book.txt", "book.txt.json"]


def test_the_second_time_nothing_is_downloaded(server, tmp_path):
    assert get(server, tmp_path) == get(server, tmp_path)
    assert len(server.requests) == 1


def test_a_cut_connection_is_resumed_where_it_broke(server, tmp_path):
    server.script = ["cut", "cut", "send"]
    assert get(server, tmp_path).read_bytes() == GOOD
    assert [r.get("Range") for r in server.requests] == [None, "bytes=5000-", "bytes=10000-"]


def test_a_later_call_resumes_what_an_earlier_one_left(server, tmp_path):
    server.script = ["cut"]
    with pytest.raises(DownloadError, match=r"cut after 5,000 of 17,\d+ bytes. Tried 1 time\."):
        get(server, tmp_path, tries=1)
    assert not (tmp_path / "book.txt").exists()
    assert get(server, tmp_path).read_bytes() == GOOD
    assert server.requests[1]["Range"] == "bytes=5000-"


@pytest.mark.parametrize(
    "wrong",
    [
        {
            "Content-Range": f"bytes 4000-{len(GOOD) - 1}/{len(GOOD)}",
            "Content-Length": len(GOOD) - 4000,
            "body": GOOD[4000:],
        },
        {"Content-Range": None},
        {"Content-Range": "bytes 5000-/*"},
        {"Content-Range": f"bytes 5000-{len(GOOD)}/{len(GOOD) + 1}"},
        {"ETag": '"v2"'},
        {"ETag": None},
    ],
    ids=["starts elsewhere", "no range", "no total", "another total", "another version", "no version"],
)
def test_a_rest_that_is_not_the_one_asked_for_is_not_appended(wrong, server, tmp_path):
    server.script = ["cut", wrong, "send"]
    assert get(server, tmp_path).read_bytes() == GOOD
    with pytest.raises(
        DownloadError, match="(another part of the file than was asked for|lengths do not fit)"
    ):
        server.script = ["cut", wrong]
        get(server, tmp_path / "again", tries=2)


def test_a_part_that_nobody_asked_for_is_no_file(server, tmp_path):
    server.script = [{"status": 206, "Content-Range": f"bytes 0-{len(GOOD) - 1}/{len(GOOD)}"}]
    with pytest.raises(DownloadError, match="no part was asked for"):
        get(server, tmp_path, tries=1)


def test_a_file_whose_length_is_not_said_is_refused(server, tmp_path):
    for length in (None, "many", "-5"):
        server.script = [{"Content-Length": length, "body": GOOD[:15_000]}]
        with pytest.raises(DownloadError, match="does not say how long the file is"):
            get(server, tmp_path)
    assert not (tmp_path / "book.txt").exists() and len(server.requests) == 3


def chunked(body, end=b"0\r\n\r\n"):
    return b"%x\r\n%s\r\n%s" % (len(body), body, end)


def test_a_chunked_answer_is_whole_when_its_end_has_come(server, tmp_path):
    header = {"Transfer-Encoding": "chunked", "Content-Length": None}
    server.script = [header | {"body": chunked(GOOD[:12_000], end=b"")}, header | {"body": chunked(GOOD)}]
    server.etag = ""
    assert get(server, tmp_path).read_bytes() == GOOD
    assert len(server.requests) == 2


def test_what_is_of_another_type_is_refused_before_it_is_read(server, tmp_path):
    server.script = [{"Content-Type": "text/html; charset=utf-8"}]
    with pytest.raises(DownloadError, match="its type is text/html, not text/plain"):
        get(server, tmp_path)
    server.script = [{"Content-Type": None}]
    assert get(server, tmp_path).read_bytes() == GOOD


def test_a_file_without_an_end_is_given_up(server, tmp_path, monkeypatch):
    monkeypatch.setattr(downloads, "MAX_BYTES", 10_000)
    with pytest.raises(DownloadError, match=r"sends 17,\d+ bytes, and no book has more than 10,000"):
        get(server, tmp_path)
    server.script = [{"Transfer-Encoding": "chunked", "Content-Length": None, "body": chunked(GOOD * 20)}]
    with pytest.raises(DownloadError, match="sends over 10,000 bytes"):
        get(server, tmp_path)
    assert not (tmp_path / "book.txt").exists()


def test_a_server_that_drips_for_ever_is_given_up_and_what_came_is_kept(server, tmp_path, monkeypatch):
    monkeypatch.setattr(downloads, "MAX_SECONDS", 0.3)
    server.script = ["drip"]
    with pytest.raises(DownloadError, match="took more than 0.3 seconds: .* bytes came. Run again") as caught:
        get(server, tmp_path)
    came = int(re.search(r"([\d,]+) bytes came", str(caught.value))[1].replace(",", ""))
    assert 0 < came < len(GOOD) // 2
    assert get(server, tmp_path).read_bytes() == GOOD
    assert server.requests[1]["Range"] == f"bytes={came}-"


def test_a_redirect_is_followed_but_not_to_another_scheme(server, tmp_path):
    server.script = [{"status": 302, "Location": server.url.replace("book", "moved")}]
    assert get(server, tmp_path).read_bytes() == GOOD
    server.script = [{"status": 302, "Location": "ftp://127.0.0.1/book.txt"}]
    with pytest.raises(DownloadError, match="from http to ftp: not followed"):
        get(server, tmp_path / "again")


def test_a_secure_address_is_never_left_for_an_open_one():
    follow = downloads._SameScheme().redirect_request
    secure, plain = (urllib.request.Request(f"{s}://example.org/a.txt") for s in ("https", "http"))
    with pytest.raises(DownloadError, match="from https to http"):
        follow(secure, None, 302, "", {}, "http://example.org/b.txt")
    assert (
        follow(plain, None, 302, "", {}, "https://example.org/b.txt").full_url == "https://example.org/b.txt"
    )


def test_a_file_that_changed_on_the_server_is_not_patched_together(server, tmp_path):
    server.script = ["cut"]
    with pytest.raises(DownloadError):
        get(server, tmp_path, tries=1)
    server.body, server.etag = GOOD.replace(b"A line", b"A word"), '"v2"'
    assert get(server, tmp_path).read_bytes() == server.body


def test_a_kill_cannot_leave_old_bytes_under_a_new_mark(server, tmp_path, monkeypatch):
    write(tmp_path / ".book.txt.part", b"old bytes")
    write(tmp_path / ".book.txt.part.mark", '"v0"')

    def kill(response):
        raise KeyboardInterrupt

    monkeypatch.setattr(downloads, "_version", kill)
    with pytest.raises(KeyboardInterrupt):
        get(server, tmp_path)
    assert not (tmp_path / ".book.txt.part").exists()


def test_a_weak_version_from_the_server_is_not_trusted(server, tmp_path):
    server.etag, server.script = 'W/"v1"', ["cut", "send"]
    assert get(server, tmp_path).read_bytes() == GOOD
    assert [r.get("Range") for r in server.requests] == [None, None]


def test_at_least_one_try_is_needed(server, tmp_path):
    with pytest.raises(DownloadError, match="tries is 0"):
        get(server, tmp_path, tries=0)


def test_without_a_version_from_the_server_a_cut_download_starts_again(server, tmp_path):
    server.etag, server.script = "", ["cut", "send"]
    assert get(server, tmp_path).read_bytes() == GOOD
    assert [r.get("Range") for r in server.requests] == [None, None]


def test_a_partial_file_that_is_already_whole_starts_again(server, tmp_path):
    write(tmp_path / ".book.txt.part", GOOD + b"more")
    write(tmp_path / ".book.txt.part.mark", '"v1"')
    assert get(server, tmp_path).read_bytes() == GOOD


def test_a_missing_page_is_not_tried_again(server, tmp_path):
    server.script = [404]
    with pytest.raises(DownloadError, match="404 Not Found.*COURSE_PROFILE=tiny"):
        get(server, tmp_path)
    assert len(server.requests) == 1


def test_a_busy_server_is_tried_again(server, tmp_path):
    server.script = [503, 429, "send"]
    assert get(server, tmp_path).read_bytes() == GOOD
    assert len(server.requests) == 3


def test_a_server_that_stays_busy_is_given_up(server, tmp_path):
    server.script = [503] * 9
    with pytest.raises(DownloadError, match="503 Service Unavailable. Tried 3 times.*COURSE_PROFILE=tiny"):
        get(server, tmp_path)
    assert len(server.requests) == 3


def test_between_tries_the_wait_doubles(server, tmp_path, monkeypatch):
    waits, server.script = [], [503, 503, "send"]
    monkeypatch.setattr(downloads.time, "sleep", waits.append)
    get(server, tmp_path, wait=1.5)
    assert waits == [1.5, 3.0]


@pytest.mark.parametrize(
    "body, message",
    [
        (b"<html>Come back later</html>", "28 bytes, at least 10,000 were expected; it begins b'<html>Come"),
        (b"Another book altogether.\n" * 800, 'title "The Book of Tests" does not occur in it'),
        (b"\xff" + GOOD, "not UTF-8: byte 0xff at offset 0"),
    ],
)
def test_what_is_not_the_book_is_not_kept(server, tmp_path, body, message):
    server.body = body
    with pytest.raises(DownloadError, match=message):
        get(server, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_title_may_have_typographic_quotes(server, tmp_path):
    server.body = "Alice\u2019s\r\n  ADVENTURES\n".encode() + GOOD
    assert get(server, tmp_path, title="Alice's Adventures").exists()


def test_a_kept_file_that_was_changed_is_reported_and_left_alone(server, tmp_path):
    path = get(server, tmp_path)
    changed = write(path, GOOD + b"An addition.").read_bytes()
    with pytest.raises(DownloadError, match="has changed.*Delete book.txt to download it again"):
        get(server, tmp_path)
    assert path.read_bytes() == changed and len(server.requests) == 1
    path.unlink()
    assert get(server, tmp_path).read_bytes() == GOOD


def test_another_text_at_the_same_address_is_reported(server, tmp_path):
    get(server, tmp_path).unlink()
    server.body = GOOD + b"A new edition."
    with pytest.raises(DownloadError, match="has changed.*and book.txt.json as well to accept another"):
        get(server, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["book.txt.json"]


def test_a_file_put_there_by_hand_is_checked_and_used(server, tmp_path):
    write(tmp_path / "book.txt", GOOD)
    assert get(server, tmp_path).read_bytes() == GOOD
    assert server.requests == [] and (tmp_path / "book.txt.json").exists()
    (tmp_path / "book.txt.json").unlink()
    write(tmp_path / "book.txt", b"short")
    with pytest.raises(DownloadError, match="book.txt' is not the book: it has 5 bytes.*Delete it"):
        get(server, tmp_path)
    assert (tmp_path / "book.txt").exists()


def test_a_damaged_record_is_named(server, tmp_path):
    get(server, tmp_path)
    write(tmp_path / "book.txt.json", "{")
    with pytest.raises(DownloadError, match="book.txt.json' cannot be read"):
        get(server, tmp_path)


def test_an_unreachable_server_is_named_and_tiny_offered(tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(
        DownloadError, match=rf"127.0.0.1:{port} cannot be reached.*Tried 2 times.*COURSE_PROFILE=tiny"
    ):
        fetch(f"http://127.0.0.1:{port}/book.txt", tmp_path, tries=2, wait=0.0)


@pytest.mark.parametrize("url", ["book.txt", "file:///etc/hosts", "https://example.org/"])
def test_what_is_not_an_address_is_refused(url, tmp_path):
    with pytest.raises(DownloadError, match="is not the address of a file"):
        fetch(url, tmp_path)


def test_a_folder_that_cannot_be_written_is_named(server, tmp_path):
    write(tmp_path / "taken", "a file, not a folder")
    with pytest.raises(DownloadError, match="Cannot keep .*COURSE_DATA"):
        get(server, tmp_path / "taken")


def test_books_are_joined_in_order_without_licence(server, tmp_path):
    server.body = LICENSED.format("A tale,\nin two lines.").encode()
    url = server.url.replace("book", "pg{number}")
    joined = gutenberg((7, 5), tmp_path, url=url, min_bytes=10)
    assert joined.name == "gutenberg-7-5.txt"
    assert joined.read_text() == "A tale, in two lines.\n\nA tale, in two lines.\n"
    assert (tmp_path / "pg7.txt").exists() and (tmp_path / "pg5.txt").exists()


def test_a_known_number_must_have_its_title(server, tmp_path):
    server.body = LICENSED.format("Another book.").encode()
    with pytest.raises(DownloadError, match='title "Alice\'s Adventures in Wonderland" does not occur'):
        gutenberg((11,), tmp_path, url=server.url, min_bytes=10)


def test_a_book_without_its_marks_is_refused_and_not_remembered(server, tmp_path):
    with pytest.raises(DownloadError, match="has no .*START OF"):
        gutenberg((7,), tmp_path, url=server.url)
    assert list(tmp_path.iterdir()) == []
    server.body = LICENSED.format("A tale.").encode()
    assert gutenberg((7,), tmp_path, url=server.url, min_bytes=10).read_text() == "A tale.\n"


def test_joined_books_have_a_record_of_each_books_hash(server, tmp_path):
    server.body = LICENSED.format("A tale.").encode()
    joined = gutenberg((7, 5), tmp_path, url=server.url.replace("book", "pg{number}"), min_bytes=10)
    of_book, of_joined = (hashlib.sha256(raw).hexdigest() for raw in (server.body, joined.read_bytes()))
    record = json.loads((tmp_path / "gutenberg-7-5.txt.json").read_text())
    assert record == {"sha256": of_joined, "books": {"pg7.txt": of_book, "pg5.txt": of_book}}


def test_the_text_of_a_profile_is_a_file_or_is_downloaded(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setenv("COURSE_DATA", str(tmp_path))
    monkeypatch.setattr(
        downloads, "gutenberg", lambda numbers, folder: asked.append((numbers, folder)) or tmp_path
    )
    assert text_path(tmp_path / "a.txt") == tmp_path / "a.txt"
    assert text_path(Gutenberg((11, 12))) == tmp_path
    assert asked == [((11, 12), tmp_path.resolve())]


def test_a_corpus_of_books_is_downloaded_first(tmp_path, monkeypatch):
    joined = write(tmp_path / "joined.txt", book(8))
    monkeypatch.setattr(downloads, "gutenberg", lambda numbers, folder: joined)
    corpus = load_corpus(Gutenberg((11, 12)), TOKENIZER, 64, name="alice")
    assert (corpus.name, corpus.path) == ("alice", str(joined))
