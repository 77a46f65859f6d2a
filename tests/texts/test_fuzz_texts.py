"""Any file of bytes makes a corpus that is the file's own text, or is refused in one line."""

import pytest
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from helpers.texts.corpora import PARTS, load_corpus, read_text, tensor_of
from helpers.texts.downloads import TextError, strip_licence
from support.fuzz import damaged, damages, failed_once, folder, held, long, quick, right_or_refused


def byte_tokenizer():
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=bpe)


TOKENIZER = byte_tokenizer()
START, END = "*** START OF THE PROJECT GUTENBERG EBOOK T ***", "*** END OF THE PROJECT GUTENBERG EBOOK T ***"
pieces = st.one_of(
    st.sampled_from(
        [
            "CHAPTER I.", "Chapter 2. The Lamp", "Kapitel 3", "Chương 4", "第五章", "# Six", "VII. Seven", "8. Is it?",
            "\n\n", "\r\n\r\n", "\r", "\ufeff", "\u00a0", "\u2028", "\u0085", "\x1a", "\x0c", "\0", START, END,
            "。", "！", "…", "¿Qué? ", "نعم؟ ", "ไม่มีช่องว่าง", "👩‍👩‍👧", "e\u0301", "a sentence of some words. " * 9,
            "1. one\n\n2. two\n\n3. three\n\n", "*", "#", " ", "\t",
        ]
    ),
    st.text(max_size=40),
)  # fmt: skip
cases = st.tuples(
    st.lists(pieces, max_size=40).map("".join),
    st.integers(1, 6),  # repeated
    st.sampled_from(
        ["utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16", "utf-32", "latin-1", "cp1252", "shift_jis"]
    ),
    st.one_of(st.none(), damages),
    st.sampled_from([-1, 0, 1, 2, 3, 16, 64]),
)


def check(case):
    text, times, encoding, damage, length = case
    raw = (text * times).encode(encoding, errors="replace")
    raw = damaged(raw, *damage) if damage else raw
    with folder() as place:
        path = place / "t.txt"
        path.write_bytes(raw)
        corpus = right_or_refused(lambda: load_corpus(path, TOKENIZER, length), TextError)
        assert held(place) == {"t.txt": raw}
        if corpus is None:
            return
        book = strip_licence(read_text(path))
    parts = [getattr(corpus.split, part) for part in PARTS]
    assert "".join(parts) == book
    for part, whole in zip(PARTS, parts, strict=True):
        rows = tensor_of(getattr(corpus, part))
        used = TOKENIZER.decode(rows.flatten(), clean_up_tokenization_spaces=False)
        assert whole.encode().startswith(used.rstrip("\ufffd").encode())
        assert 0 <= len(whole.encode()) - rows.numel() < length
    assert 0 < corpus.share_used <= 1 and corpus.share_changed == 0


test_any_file_is_read_rightly_or_refused = quick(cases, check)
test_two_thousand_files_are_read_rightly_or_refused = long(cases, check)


@pytest.mark.parametrize("case", failed_once("texts"))
def test_a_file_that_failed_once(case):
    check(case)
