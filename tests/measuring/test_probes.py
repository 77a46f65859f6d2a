"""What a finished run is asked besides its loss."""

import copy

import numpy as np
import pytest
import torch

from helpers.measuring.evaluation import held_out_loss
from helpers.measuring.probes import (
    FUNCTION_WORDS,
    function_losses,
    function_tokens,
    memorisation,
    right_tokens,
    shared_n_grams,
    swap_losses,
    with_change,
)
from helpers.models.loading import build_model, load_tokenizer
from helpers.profiles import TINY
from support import tiny

CONFIG = tiny.config(vocab_size=60, max_position_embeddings=64, window_size=16)


def text(n=6, length=40, seed=0):
    return torch.randint(1, 60, (n, length), generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def learned():
    """A model that has one text by heart, the text, and the base it came from."""
    base, windows = build_model(CONFIG, seed=1), text(3)
    model = copy.deepcopy(base)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        model(windows, labels=windows).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return base, model, windows


def test_a_text_learned_by_heart_is_told_from_one_that_was_never_seen(learned):
    base, model, windows = learned
    found = memorisation(model, windows, text(3, seed=9), n_prompts=3, n_tokens=16, n_gram=3)
    before = memorisation(base, windows, text(3, seed=9), n_prompts=3, n_tokens=16, n_gram=3)
    assert found["exact_train"] > 0.6 and found["exact_held_out"] == 0 and before["exact_train"] == 0
    assert found["right_train"] > before["right_train"] and found["n_grams"] >= before["n_grams"]


def test_right_tokens_are_counted_up_to_the_first_error(learned):
    _, model, windows = learned
    changed = windows.clone()
    changed[:, 20] = (changed[:, 20] + 1) % 59 + 1
    assert (right_tokens(model, changed, 16) <= 4).all()


def test_n_grams_are_looked_for_inside_windows_only():
    known = np.array([[1, 2, 3, 4], [5, 6, 7, 8]])
    assert shared_n_grams(np.array([[1, 2, 3, 9]]), known, 3) == 0.5
    assert shared_n_grams(np.array([[3, 4, 5]]), known, 3) == 0.0


def test_function_words_and_punctuation_are_found_and_parts_of_words_are_not():
    tokenizer = load_tokenizer(TINY.model)
    flags = function_tokens(tokenizer)
    ids = tokenizer("The cat, and then; it was of one")["input_ids"]
    marked = [tokenizer.decode([i]).strip() for i in ids if flags[i]]
    assert {"The", ",", "and", "then", ";", "it", "was", "of", "one"} >= set(marked) >= {",", "and", "of"}
    assert not any(flags[i] for i in tokenizer(" cat")["input_ids"]) and 140 <= len(FUNCTION_WORDS) <= 180


def test_the_loss_on_function_tokens_is_a_part_of_the_whole():
    model, windows = build_model(CONFIG, seed=2), text()
    everything = torch.ones(60, dtype=torch.bool)
    whole, function = function_losses(model, windows, everything, batch=4)
    assert whole == pytest.approx(function, rel=1e-5)
    assert whole.mean() == pytest.approx(held_out_loss(model, windows).mean, rel=1e-5)
    none = function_losses(model, windows, ~everything)[1]
    assert np.isnan(none).all()


def test_a_swap_puts_in_one_roles_change_and_all_of_them_give_the_tuned_model(learned):
    base, model, windows = learned
    before = copy.deepcopy(base.state_dict())
    losses = swap_losses(base, model, {"text": windows})
    assert losses["all"]["text"] == pytest.approx(held_out_loss(model, windows).mean, abs=1e-4)
    assert losses["all"]["text"] < min(losses[r]["text"] for r in ("attention", "mlp", "norm"))
    mixed = with_change(base, model, ("mlp",))
    assert torch.equal(mixed.transformer.wte.weight, base.transformer.wte.weight)
    assert torch.equal(mixed.transformer.h[0].mlp.c_fc.weight, model.transformer.h[0].mlp.c_fc.weight)
    assert all(torch.equal(t, before[n]) for n, t in base.state_dict().items()), "the base stays as it was"


def test_a_tuned_model_of_another_base_has_no_parts_to_swap():
    base = build_model(CONFIG)
    other = build_model(
        tiny.config(vocab_size=60, max_position_embeddings=64, window_size=16, hidden_size=16)
    )
    with pytest.raises(ValueError, match="not of this base: transformer.h.0.attn.* or of another shape"):
        swap_losses(base, other, {"text": torch.randint(60, (2, 16))})


@pytest.mark.parametrize(
    "more, message",
    [
        ({"n_gram": 0}, "n_gram is a count, a whole number of 1 or more; found 0"),
        ({"n_prompts": 0}, "n_prompts is a count"),
        ({"n_tokens": 1.5}, "n_tokens is a count"),
        ({"n_tokens": 17}, "Windows of 32 tokens are too short"),
        ({"n_tokens": 2}, "A run of 8 tokens is longer than a sample of 4"),
    ],
)
def test_memorisation_asks_for_counts_and_windows_that_fit(more, message):
    windows = torch.randint(60, (3, 32))
    with pytest.raises(ValueError, match=message):
        memorisation(build_model(CONFIG), windows, windows, **{"n_tokens": 16} | more)


def test_function_tokens_are_of_this_vocabulary():
    with pytest.raises(ValueError, match="each of the model's 60 tokens"):
        function_losses(build_model(CONFIG), torch.randint(60, (3, 8)), torch.zeros(5, dtype=torch.bool))
