"""The block explorer: the right weights, the right window, and answers to its controls."""

import time
from base64 import b64decode
from statistics import median

import numpy as np
import pytest
import torch
from transformers import LlamaConfig

from helpers.lessons.widgets import blocks
from helpers.lessons.widgets.blocks import (
    STEPS,
    Passage,
    attention_kinds,
    block_explorer,
    looked_at,
    sentence,
    visible_keys,
)
from helpers.models.loading import load_model, load_tokenizer
from helpers.models.model_files import ModelError
from helpers.profiles import TINY

TEXT = "The door of the old house was open, and nobody had lit the lamp. " * 6


@pytest.fixture(scope="module")
def model():
    return load_model(TINY.model, attention="eager")


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(TINY.model)


@pytest.fixture
def explorer(model, tokenizer):
    return block_explorer(model, tokenizer, TEXT, block=1)


def test_a_local_block_sees_its_window_and_a_global_one_everything_before():
    assert visible_keys("local", 3, 6)[5].tolist() == [False, False, False, True, True, True]
    assert visible_keys("global", 3, 6)[4].tolist() == [True] * 5 + [False]


@pytest.mark.parametrize("block", range(4))
def test_the_window_is_the_models_own(model, tokenizer, block):
    page = Passage(model, tokenizer, TEXT)
    n = len(page.tokens)
    mask = model.transformer.h[block].attn.attention.bias[0, 0, :n, :n].numpy()
    assert n > page.window and np.array_equal(page.visible(block), mask)


def test_weights_are_the_models_own_and_none_is_on_a_hidden_key(model, tokenizer):
    page, ids = Passage(model, tokenizer, TEXT), torch.tensor([tokenizer(TEXT)["input_ids"]])
    with torch.no_grad():
        true = model(ids, output_attentions=True).attentions[3][0, 5].numpy()
    assert np.allclose(page.weights[3, 5], true, atol=1e-6)
    assert np.allclose(page.weights.sum(-1), 1, atol=1e-5)
    assert all(page.weights[b][:, ~page.visible(b)].max() == 0 for b in range(4))


def test_the_largest_weights_come_first_and_hidden_keys_never():
    assert looked_at(np.array([0.1, 0.0, 0.7, 0.2, 0.0]), 3) == [(2, 0.7), (3, 0.2), (0, 0.1)]


def roots(text: str) -> np.ndarray:
    """What the module reads: the square roots of weights."""
    return np.frombuffer(b64decode(text), "<u2") / STEPS


def test_the_page_gets_every_weight_of_every_head(explorer, model, tokenizer):
    page, sent = Passage(model, tokenizer, TEXT), explorer.data["passage"]
    n = len(page.tokens)
    weights = roots(sent["weights"]).reshape(4, 6, n * (n + 1) // 2) ** 2
    assert np.abs(weights[3, 5] - page.weights[3, 5][np.tril_indices(n)]).max() < 1e-4
    assert sent["tokens"] == page.tokens and (sent["nHeads"], sent["window"]) == (6, 64)


def test_of_a_large_model_the_page_gets_what_is_asked_for(model, tokenizer, monkeypatch):
    monkeypatch.setattr(blocks, "MOST_WEIGHTS", 1000)
    explorer = block_explorer(model, tokenizer, TEXT)
    assert "weights" not in explorer.data["passage"] and explorer.on_page() is None
    explorer.choice = explorer.choice | {"block": 2, "head": 4, "query": 20}
    rows, maps = explorer.answer["rows"], explorer.answer["maps"]
    page = Passage(model, tokenizer, TEXT)
    assert (rows["query"], maps["block"], maps["head"]) == (20, 2, 4)
    assert np.abs(roots(rows["data"]).reshape(4, 6, 21) ** 2 - page.weights[:, :, 20, :21]).max() < 1e-4
    whole = roots(maps["data"]) ** 2
    assert np.abs(whole - page.weights[2, 4][np.tril_indices(len(page.tokens))]).max() < 1e-4


def test_a_passage_of_ones_own(explorer):
    explorer.choice = explorer.choice | {"text": "A <short> one.", "query": 10**9}
    passage = explorer.answer["passage"]
    assert passage["text"] == "A <short> one." == "".join(passage["tokens"]) and explorer.problem == ""
    explorer.choice = explorer.choice | {"head": 2}
    assert explorer.answer["passage"] == passage  # a page that comes late gets it as well


def test_an_empty_passage_is_told(explorer):
    explorer.choice = explorer.choice | {"text": ""}
    assert "at least one word" in explorer.problem
    explorer.choice = explorer.choice | {"text": "Good again."}
    assert explorer.problem == ""


def test_fast_attention_is_refused_with_what_to_do(tokenizer):
    with pytest.raises(ModelError, match='attention="eager"'):
        block_explorer(load_model(TINY.model), tokenizer, TEXT)


def test_a_family_without_local_blocks_has_global_ones():
    assert attention_kinds(LlamaConfig(num_hidden_layers=2)) == ["global", "global"]


def test_the_answers_that_the_notebook_gives_are_true(model, tokenizer):
    """Notebook 01: only global blocks reach the first token from the last; query 0 looks at itself."""
    page = Passage(model, tokenizer, TEXT)
    assert [bool(page.visible(b)[-1, 0]) for b in range(4)] == [kind == "global" for kind in page.kinds]
    assert np.allclose(page.weights[:, :, 0, 0], 1)


def test_the_picture_says_what_it_shows(explorer, model, tokenizer):
    figure, said = explorer._still()
    page = Passage(model, tokenizer, TEXT)
    assert said == sentence(page, 1, 0, len(page.tokens) - 1)
    assert "key" in figure.axes[0].get_xlabel() and "Block 1 (local), head 0" in figure.axes[0].get_title(
        loc="left"
    )


def test_a_choice_is_answered_within_100_ms(explorer):
    """Median over nine choices, two of them new passages, in the processor time of this process."""
    seconds = []
    for text in (TEXT, "A new passage, read by the model.", TEXT):
        for head in range(3):
            begin = time.process_time()
            explorer.choice = explorer.choice | {"head": head, "text": text}
            seconds.append(time.process_time() - begin)
    assert median(seconds) < 0.1 and max(seconds) < 0.3
