"""Losses, intervals, forgetting and style mean what they say."""

import copy
import hashlib
import math

import numpy as np
import pytest
import torch
from scipy import stats
from transformers import BertConfig, Gemma3TextConfig, LlamaConfig

from helpers.freezing import FreezePlan
from helpers.measuring import evaluation
from helpers.measuring.evaluation import (
    Retention,
    author_matrix,
    difference,
    held_out_loss,
    perplexity,
    sample_text,
    sample_windows,
    style_contrast,
)
from helpers.measuring.intervals import block_error, estimate
from helpers.models import LossError, next_token_loss, token_losses
from helpers.models.loading import build_model, build_on_meta, load_tokenizer
from helpers.profiles import DATA
from helpers.training import TrainingError, TrainSettings, fit
from support import tiny

CONFIG = tiny.config()


def model(seed=1):
    return build_model(CONFIG, seed=seed)


def text(n=6, length=24, seed=0):
    return torch.randint(97, (n, length), generator=torch.Generator().manual_seed(seed))


def test_a_model_that_knows_nothing_costs_ln_v():
    flat = model()
    with torch.no_grad():
        flat.transformer.wte.weight.zero_()
    assert held_out_loss(flat, text()).mean == pytest.approx(math.log(97), rel=1e-5)


def test_the_batch_size_does_not_change_the_loss():
    one, many = (held_out_loss(model(), text(7), batch=b) for b in (1, 5))
    assert one.mean == pytest.approx(many.mean, rel=1e-6)
    assert one.n_tokens == 7 * 23 and one.n_windows == 7


def test_the_interval_of_a_mean_is_the_t_interval_below_80_windows():
    values = np.random.default_rng(0).normal(3, 1, 30)
    found = estimate(values, 1)
    half = stats.t.ppf(0.975, 29) * values.std(ddof=1) / np.sqrt(30)
    assert (found.low, found.high) == pytest.approx((values.mean() - half, values.mean() + half))


def test_neighbours_that_agree_count_less_from_80_windows_on():
    rng = np.random.default_rng(1)
    repeated = np.repeat(rng.normal(0, 1, 40), 4)
    assert block_error(repeated) > 1.8 * repeated.std(ddof=1) / np.sqrt(160)


def test_one_window_has_no_interval():
    with pytest.raises(ValueError, match="at least two windows"):
        estimate(np.array([1.0]), 1)


def test_a_paired_difference_is_narrower_than_two_separate_intervals():
    rng = np.random.default_rng(2)
    hard = rng.normal(3, 1, 40)
    a, b = estimate(hard + 0.1 + rng.normal(0, 0.01, 40), 1), estimate(hard, 1)
    paired = difference(a, b)
    assert paired.mean == pytest.approx(0.1, abs=0.01)
    assert paired.high - paired.low < 0.1 * (a.high - a.low)
    with pytest.raises(ValueError, match="same windows"):
        difference(a, estimate(hard[:10], 1))


def test_measuring_leaves_training_mode_and_requires_grad_as_they_were():
    m = model().train()
    m.transformer.wte.weight.requires_grad_(False)
    held_out_loss(m, text())
    assert m.training and not m.transformer.wte.weight.requires_grad


def test_each_part_of_a_model_gets_its_own_mode_back_after_an_error_too():
    m = model().train()
    m.transformer.h[0].eval()
    found = [module.training for module in m.modules()]
    m.transformer.ln_f.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        held_out_loss(m, text())
    assert [module.training for module in m.modules()] == found


NO_WINDOWS = {
    "a list": text().tolist(),
    "NumPy": text().numpy(),
    "one row": text()[0],
    "no row": text()[:0],
    "nothing to predict": text()[:, :1],
    "floats": text().float(),
    "bytes": text().to(torch.uint8),
    "an id too large": text() + 90,
    "padding of -100": text().masked_fill(text() < 20, -100),
}


@pytest.mark.parametrize("case", NO_WINDOWS)
@pytest.mark.parametrize(
    "measure",
    [
        held_out_loss,
        token_losses,
        next_token_loss,
        Retention,
        lambda m, windows: fit(m, FreezePlan.full(), windows, TrainSettings(1, 1e-3), progress=False),
    ],
)
def test_what_is_no_window_of_token_ids_is_refused_before_it_is_measured(case, measure):
    with pytest.raises((LossError, TrainingError), match="^The windows must"):
        measure(model(), NO_WINDOWS[case])


def test_a_wrapped_model_is_measured_like_the_model_inside():
    m = model()
    for wrapped in (torch.nn.DataParallel(m), torch.compile(m, backend="eager")):
        assert held_out_loss(wrapped, text()).mean == pytest.approx(held_out_loss(m, text()).mean, rel=1e-6)
        assert Retention(wrapped, text()).forgetting(m).mean == pytest.approx(0, abs=1e-6)


def test_what_is_no_language_model_is_said():
    with pytest.raises(TypeError, match="found Linear, which has no config"):
        held_out_loss(torch.nn.Linear(2, 2), text())


@pytest.mark.parametrize(
    "measure",
    [
        lambda m: held_out_loss(m, text()),
        lambda m: Retention(m, text()),
        lambda m: sample_windows(m, 1, 4, seed=0),
    ],
)
def test_a_model_that_answers_with_a_tuple_is_refused_in_one_line(measure):
    tuples = copy.deepcopy(model())  # a config of its own
    tuples.config.return_dict = False  # its own forward then asks a tuple for its last states
    with pytest.raises(LossError, match=r"Set model\.config\.return_dict = True first\.$"):
        measure(tuples)


@pytest.mark.parametrize(
    "sees_ahead",
    [
        lambda shape: BertConfig(**shape),
        lambda shape: LlamaConfig(**shape, is_causal=False),
        lambda shape: Gemma3TextConfig(**shape, head_dim=8, use_bidirectional_attention=True),
    ],
)
def test_a_model_that_sees_the_token_that_it_should_predict_has_no_held_out_loss(sees_ahead):
    shape = dict(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    ids = torch.randint(3, 97, (4, 12), generator=torch.Generator().manual_seed(0))
    with pytest.raises(LossError, match="sees later tokens"):
        held_out_loss(build_model(sees_ahead(shape)), ids)


def test_windows_of_int32_give_the_same_numbers():
    m = model()
    assert held_out_loss(m, text().int()).mean == held_out_loss(m, text()).mean
    assert Retention(m, text().int()).forgetting(m).mean == 0


def test_forgetting_is_refused_for_a_model_of_another_vocabulary():
    retention = Retention(model(), text())
    larger = build_model(tiny.config(vocab_size=101), seed=1)
    with pytest.raises(LossError, match="a vocabulary of 97, and this model one of 101"):
        retention.forgetting(larger)


@pytest.mark.parametrize(
    "start",
    [[], [0, 1, 2, 3, 4], [97], [-1], [0.5]],
    ids=["none", "too long", "unknown", "negative", "no id"],
)
def test_a_sample_begins_with_text_of_the_model(start):
    with pytest.raises(ValueError, match="A sample of 4 tokens begins with 1 to 4 token ids"):
        sample_windows(model(), 1, 4, 0, start=torch.tensor(start))


def test_a_model_of_nan_writes_no_sample():
    m = model()
    m.transformer.ln_f.weight.data[0] = math.nan
    with pytest.raises(ValueError, match="predicts no numbers"):
        sample_windows(m, 1, 4, 0)


@pytest.mark.parametrize(("prompt", "n"), [(None, 3), (["The"], 3), ("The", -1), ("The", 1.5)])
def test_a_sample_goes_on_with_a_text_for_a_whole_number_of_tokens(prompt, n):
    with pytest.raises(ValueError, match="A sample goes on with a text"):
        sample_text(model(), None, prompt, n)


def test_perplexity_falls_by_a_tenth_of_itself_for_a_tenth_of_a_nat():
    assert perplexity(3.0 - 0.1) / perplexity(3.0) == pytest.approx(0.9048, abs=1e-4)


# --- sampling and forgetting -------------------------------------------------------


def test_samples_repeat_with_their_seed_and_differ_without():
    m = model()
    one, two, other = (sample_windows(m, 2, 20, seed=s) for s in (0, 0, 1))
    assert one.shape == (2, 20) and torch.equal(one, two) and not torch.equal(one, other)


def test_samples_follow_the_models_own_distribution():
    m = model()
    ids = sample_windows(m, 4000, 2, seed=0)
    with torch.no_grad():
        expected = (
            m(ids[:1, :1]).logits[0, -1].double().softmax(-1).numpy()
        )  # in float32 the sum misses 1 by 3e-8
    counts = np.bincount(ids[:, 1].numpy(), minlength=97)
    assert stats.chisquare(counts, 4000 * expected / expected.sum()).pvalue > 1e-4


def test_more_tokens_than_positions_are_refused():
    with pytest.raises(ValueError, match="24 positions"):
        sample_windows(model(), 1, 25, seed=0)


def test_an_untouched_model_has_forgotten_nothing_and_a_changed_one_something():
    m = model()
    retention = Retention.sampled_from(m, 3, 20)
    assert abs(retention.forgetting(m).mean) < 1e-6
    with torch.no_grad():
        m.transformer.wte.weight += 0.1 * torch.randn_like(m.transformer.wte.weight)
    assert retention.forgetting(m).mean > 0.001


def test_forgetting_equals_kl_computed_by_torch_with_and_without_the_cache(monkeypatch):
    base, tuned = model(1), model(2)
    windows = text(3, 20)
    with torch.no_grad():
        p, q = (m(windows).logits[:, :-1].log_softmax(-1) for m in (base, tuned))
    expected = torch.nn.functional.kl_div(q, p, log_target=True, reduction="none").sum(-1).mean().item()
    assert Retention(base, windows).forgetting(tuned).mean == pytest.approx(expected, rel=1e-5)
    monkeypatch.setattr(evaluation, "CACHE_LIMIT", 0)
    assert Retention(base, windows).forgetting(tuned).mean == pytest.approx(expected, rel=1e-5)


def test_style_cancels_what_helps_with_any_story():
    def e(mean):
        return estimate(np.array([mean, mean]), 1)

    assert style_contrast({"a": e(3.2), "b": e(3.2)}, {"a": e(3.5), "b": e(3.5)}) == 0
    assert style_contrast({"a": e(3.1), "b": e(3.2)}, {"a": e(3.6), "b": e(3.5)}) == pytest.approx(0.1)


def test_the_author_matrix_has_models_in_rows_and_texts_in_columns():
    table = author_matrix({"x": model(1), "y": model(2)}, {"t": text()})
    assert list(table.index) == ["x", "y"] and list(table.columns) == ["t"]


@pytest.mark.parametrize("begin, end", [([], []), ([8], []), ([], [9]), ([8], [9])])
def test_a_sample_begins_as_a_text_does_and_goes_on_with_its_prompt(begin, end):
    class Numbers:
        """Reads and writes ids as numbers; adds its marks where it is asked to."""

        def __call__(self, prompt, add_special_tokens=True, verbose=True):
            ids = [5] if prompt == "a" else [int(word) for word in prompt.split()]
            return {"input_ids": [*begin, *ids, *end] if add_special_tokens else ids}

        def decode(self, ids, skip_special_tokens):
            return " ".join(str(int(i)) for i in ids)

    def ids(prompt):
        return [int(word) for word in sample_text(model(), Numbers(), prompt, n_tokens=4).split()]

    assert ids("5 6 7")[:-4] == [*begin, 5, 6, 7]
    assert ids("8 5 6 7")[:-4] == [8, 5, 6, 7], "a mark that is there is not put there again"
    assert ids("")[:-4] == (begin or [model().config.bos_token_id])
    assert len(ids("5 " * 22)) == 24, "it ends at the model's last position"
    with pytest.raises(
        ValueError, match="The prompt has .* tokens, but the model has 24 positions. Shorten it."
    ):
        ids("5 " * 25)  # asking for fewer tokens would not help


def test_a_prompt_that_is_too_long_is_told_in_one_line_without_a_warning_of_transformers():
    tokenizer = load_tokenizer(DATA / "gpt-neo-mini")
    with pytest.raises(ValueError, match="402 tokens"):
        sample_text(model(), tokenizer, "word " * 400)
    assert not tokenizer.deprecation_warnings


@pytest.mark.parametrize(
    "numbers", [(0, 5, 1.0), (1, 0, 1.0), (1, 5, 0.0), (1, 5, -1.0), (1, 5, float("nan"))]
)
def test_a_sample_that_cannot_be_is_refused(numbers):
    n_windows, length, temperature = numbers
    with pytest.raises(ValueError, match="A sample needs"):
        sample_windows(model(), n_windows, length, seed=0, temperature=temperature)


def test_the_hash_of_a_retention_text_is_that_of_its_tokens_and_their_order():
    windows = text(n=3, length=8)
    own = Retention(model(), windows).text_hash
    assert own == hashlib.sha256(windows.numpy().tobytes()).hexdigest()
    assert own == Retention(model(seed=2), windows.clone()).text_hash, "the base is not in it"
    assert own != Retention(model(), windows.flip(0)).text_hash


@pytest.mark.parametrize("batch", [0, -1, 1.5, None, True])
def test_so_many_windows_at_a_time_that_none_are_read_is_refused(batch):
    with pytest.raises(ValueError, match="batch is windows at a time, a whole number of 1 or more"):
        held_out_loss(build_model(CONFIG), torch.randint(97, (3, 12)), batch=batch)


@pytest.mark.parametrize("values", [[], [1.0], [[1.0, 2.0]], 3.0])
def test_an_estimate_needs_a_number_for_each_of_two_windows(values):
    with pytest.raises(ValueError, match="An interval needs"):
        estimate(np.array(values), 10)


def test_a_difference_is_between_estimates():
    with pytest.raises(TypeError, match="between two Estimates; found float"):
        evaluation.difference(1.0, 2.0)


def test_under_inference_mode_loss_and_forgetting_are_the_same():
    base, tuned = (build_model(tiny.config(), seed=seed) for seed in (0, 1))
    ids = torch.randint(97, (4, 12), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        inside = held_out_loss(tuned, ids).mean, Retention(base, ids).forgetting(tuned).mean
    assert inside == (held_out_loss(tuned, ids).mean, Retention(base, ids).forgetting(tuned).mean)


def test_a_model_without_numbers_writes_nothing():
    with pytest.raises(ValueError, match="is on the meta device: it has a shape and no values"):
        sample_windows(build_on_meta(tiny.config()), 1, 4, seed=0)
