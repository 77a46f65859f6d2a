"""Texts: read, split into chapters and windows, downloaded."""

from helpers import face

__getattr__, __dir__, __all__ = face(
    __name__,
    {
        "corpora": [
            "Corpus",
            "begin_ids",
            "load_corpus",
            "read_text",
            "require_tokenizer",
            "tensor_of",
            "windows",
        ],
        "downloads": ["GUTENBERG_TITLES", "GUTENBERG_URL", "TextError", "text_path"],
    },
)
