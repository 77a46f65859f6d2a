"""The style mixer: each model's own words, token by token, with the first of them soon."""

import time
from statistics import median

import pytest
import torch

from helpers.lessons.widgets.styles import (
    FIRST_TOKENS,
    in_pieces,
    marked,
    side_by_side,
    style_mixer,
    texts_figure,
)
from helpers.measuring.evaluation import sample_text
from helpers.models.loading import build_model, load_model, load_tokenizer, mini_config
from helpers.models.model_files import ModelError
from helpers.profiles import TINY

PROMPT = "The door was opened by"


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(TINY.model)


@pytest.fixture(scope="module")
def models():
    return {
        "base": load_model(TINY.model),
        "twin": load_model(TINY.model),
        "random": build_model(mini_config()),
    }


@pytest.fixture
def mixer(models, tokenizer):
    return style_mixer(models, tokenizer, PROMPT, n_tokens=8, seed=3)


def test_a_model_writes_what_the_courses_sampling_writes(models, tokenizer):
    *_, last = side_by_side(models, tokenizer, PROMPT, 20, seed=3)
    assert PROMPT + last["base"] == sample_text(models["base"], tokenizer, PROMPT, 20, seed=3)


def test_texts_grow_by_a_token_in_all_columns(models, tokenizer):
    steps = list(side_by_side(models, tokenizer, PROMPT, 6, seed=1))
    assert len(steps) == 6
    assert all(
        later[name].startswith(earlier[name][:-3])
        for earlier, later in zip(steps, steps[1:], strict=False)
        for name in models
    )


def test_equal_models_throw_equal_dice(models, tokenizer):
    *_, last = side_by_side(models, tokenizer, PROMPT, 12, seed=2)
    assert last["base"] == last["twin"] != last["random"]


def test_sampling_leaves_models_and_gradients_as_they_are(models, tokenizer):
    models["random"].train()
    next(side_by_side(models, tokenizer, PROMPT, 3))
    assert models["random"].training and torch.is_grad_enabled()


def test_a_text_comes_in_pieces_of_one_token(models, tokenizer):
    texts = list(side_by_side(models, tokenizer, PROMPT, 12, seed=2))
    *_, pieces = in_pieces(iter(texts))
    assert {name: "".join(own) for name, own in pieces.items()} == texts[-1]
    assert {len(own) for own in pieces.values()} == {12}


def test_a_letter_of_two_tokens_comes_with_the_second():
    *_, pieces = in_pieces(iter([{"a": "x"}, {"a": "x\ufffd"}, {"a": "x\u00e9"}]))
    assert pieces == {"a": ["x", "", "\u00e9"]}


def written(widget, **changes) -> dict[str, str]:
    widget.choice = widget.choice | changes
    return {name: "".join(own) for name, own in widget.answer["pieces"].items()}


def test_the_first_text_is_short_and_the_reader_asks_for_more(models, tokenizer):
    widget = style_mixer({"base": models["base"]}, tokenizer, PROMPT, n_tokens=FIRST_TOKENS + 10, seed=3)
    assert len(widget.answer["pieces"]["base"]) == FIRST_TOKENS and widget.answer["is_whole"]
    written(widget, asked=1)
    assert len(widget.answer["pieces"]["base"]) == FIRST_TOKENS + 10


def test_a_text_is_shown_token_by_token(mixer):
    seen = []
    mixer.observe(lambda change: seen.append(change["new"]), "answer")
    written(mixer, seed=9)
    assert [len(one["pieces"]["base"]) for one in seen] == list(range(1, 9))
    assert [one["is_whole"] for one in seen] == [False] * 7 + [True]


def test_another_seed_throws_other_dice(mixer):
    assert written(mixer, seed=4) != written(mixer, seed=5)
    assert written(mixer, seed=4, asked=2) == written(mixer, seed=4, asked=3)


@pytest.mark.parametrize("prompt, message", [("", "at least one word"), ("word " * 255, "256 positions")])
def test_a_prompt_that_cannot_be_continued_is_told(mixer, prompt, message):
    before = mixer.answer
    written(mixer, prompt=prompt)
    assert message in mixer.problem and mixer.answer == before


@pytest.mark.parametrize("n_positions, most", [(256, 128), (300, 150), (2048, 200)])
def test_a_reader_may_ask_for_half_of_the_positions_and_at_most_200_tokens(tokenizer, n_positions, most):
    model = build_model(mini_config(max_position_embeddings=n_positions))
    assert style_mixer({"one": model}, tokenizer, PROMPT, n_tokens=1).data == {"names": ["one"], "most": most}


def test_two_families_of_words_in_one_prompt_are_an_error(models, tokenizer):
    with pytest.raises(ModelError, match="at least one word"):
        next(side_by_side(models, tokenizer, "", 3))


def test_the_picture_says_what_it_shows(mixer, models):
    figure, said = mixer._still()
    assert all(f"{name}: " in said for name in models) and PROMPT in said
    assert {*models} <= {text.get_text() for text in texts_figure(PROMPT, dict.fromkeys(models, "x")).texts}
    assert figure.texts


def test_the_picture_marks_where_a_text_parts_from_the_first():
    texts = {"base": "the horse ran", "same": "the horse ran", "other": "the horse sat"}
    shown = [text.get_text() for text in texts_figure(PROMPT, texts).texts]
    assert shown.count("the horse ran") == 2 and "the horse ‖ sat" in shown
    assert marked("the", "the horse") == "the" and marked("a", "the") == " ‖ a"


def test_the_first_token_of_three_models_comes_within_300_ms(models, tokenizer):
    """Median of five prompts, in the processor time of this process, so that a busy machine does not count."""
    seconds = []
    for seed in range(5):
        begin = time.process_time()
        next(side_by_side(models, tokenizer, PROMPT, 40, seed=seed))
        seconds.append(time.process_time() - begin)
    assert median(seconds) < 0.3
