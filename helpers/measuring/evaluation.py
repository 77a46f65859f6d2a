"""Measure a model: held-out loss, forgetting, style. Always with an interval.

Loss is in nats per token: the natural logarithm, so a uniform guess over V tokens costs ln V.
Forgetting is the mean KL divergence from the base model to the tuned one, on text that the
base itself would write (Rebuffi and others measure accuracy instead; KL needs no task).
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping
from contextlib import contextmanager
from numbers import Integral, Real

import numpy as np
import pandas as pd
import torch
from torch import nn

from helpers.files import require_kind, require_named, require_values, require_whole
from helpers.measuring.intervals import Estimate, estimate, numbers
from helpers.models import (
    LossError,
    config_of,
    last_states,
    n_positions,
    next_token_logits,
    plain_trunk,
    require_no_leak,
    require_no_prompt,
    require_seed,
    require_sound_settings,
    require_windows,
    token_losses,
)
from helpers.texts import begin_ids, require_tokenizer

CACHE_LIMIT = 300 * 2**20  # bytes of base predictions worth keeping in memory


# --- held-out loss -----------------------------------------------------------------


def held_out_loss(model: nn.Module, windows: torch.Tensor, batch: int = 16) -> Estimate:
    """Return the mean next-token loss in nats per token, with its interval over windows.

    Args:
        windows: (n, length) token ids without padding. The first token of a window is only read.
        batch: windows at a time; changes memory, not the result.

    Raises:
        LossError: no windows of token ids of this model, or a model that sees the token that it should predict.
    """
    require_windows(model, windows)
    require_whole(batch, "batch is windows at a time")
    means = []
    with evaluating(model):
        require_no_leak(model, windows[:1, :16].to(_device(model)))
        for part in windows.split(batch):
            losses = token_losses(model, part.to(_device(model)))  # (windows, length - 1)
            means.append(losses.mean(1).cpu())
    per_window = torch.cat(means).double().numpy()  # (n,)
    return estimate(per_window, _n_predicted(windows))


def difference(a: Estimate, b: Estimate) -> Estimate:
    """Return a - b over the same windows: paired, so what makes a window hard cancels out.

    Raises:
        ValueError: the two were not measured on equally many windows.
    """
    for one in (a, b):
        if not isinstance(one, Estimate):
            raise TypeError(f"A difference is between two Estimates; found {type(one).__name__}.")
    if a.n_windows != b.n_windows:
        raise ValueError(
            f"A paired difference needs the same windows; found {a.n_windows} and {b.n_windows}."
        )
    return estimate(a.per_window - b.per_window, a.n_tokens)


def perplexity(loss: float) -> float:
    """Return e^loss: the number of equally likely tokens that would be as hard to guess."""
    (found,) = numbers([loss], "A perplexity is that of a loss, one number")
    return float(np.exp(found))


@contextmanager
def in_mode(model: nn.Module, training: bool):
    """Put a model into train or eval mode for a block, then each of its parts back into the mode it had."""
    modes = {module: module.training for module in model.modules()}
    model.train(training)
    try:
        yield
    finally:
        for module, was_training in modes.items():
            module.training = was_training


def evaluating(model: nn.Module):
    """Switch dropout off for a block, ``with evaluating(model):``, and back; no requires_grad changes."""
    return in_mode(model, training=False)


def _device(model: nn.Module) -> torch.device:
    """Return where the model's parameters are."""
    return next(model.parameters()).device


def _n_words(model: nn.Module) -> int:
    """Return the size of a model's vocabulary."""
    return config_of(model).get_text_config().vocab_size


def _n_predicted(windows: torch.Tensor) -> int:
    """Count the tokens to predict: the first one of each window is only read."""
    n_windows, length = windows.shape
    return n_windows * (length - 1)


# --- text that the model writes ----------------------------------------------------


@torch.no_grad()
def sample_windows(
    model: nn.Module,
    n_windows: int,
    length: int,
    seed: int,
    *,
    start: torch.Tensor | None = None,
    temperature: float = 1.0,
) -> torch.Tensor:
    """Let the model write by itself; return its token ids, (n_windows, length), on the CPU.

    Args:
        start: (tokens,) to begin every window with; None: the model's begin-of-text token. A model needs a first
            token to write from, also where its tokenizer puts none in front of a text (`texts.begin_ids`).
        temperature: 1 samples from the model's own distribution; lower is bolder.

    Raises:
        ValueError: length is beyond the model's positions, a number that no sample can have, a start that is no
            text of the model, a setting of `require_sound_settings`, or predictions that are no numbers.
        ModelError: a seed that is none.
    """
    require_no_prompt(model)
    require_seed(seed)
    require_sound_settings(model)
    require_values(next(model.parameters()))
    require_whole(n_windows, "A sample needs windows")
    require_whole(length, "A sample needs tokens")
    require_kind(temperature, Real, "A sample needs a temperature")
    if not 0 < temperature < float("inf"):
        raise ValueError(f"A sample needs a temperature above 0, a finite one; found {temperature}.")
    limit = n_positions(config_of(model))
    if limit and length > limit:
        raise ValueError(f"{length} tokens asked for, but the model has {limit} positions. Ask for fewer.")
    device = _device(model)
    rng = torch.Generator(device).manual_seed(seed)
    if start is None:
        start = torch.tensor([_begin_token(config_of(model))])
    _require_start(model, start, length)
    ids = start.to(device).repeat(n_windows, 1)  # (n_windows, tokens so far)
    kept = {"use_cache": True}  # with the keys and values of the tokens that were read, once there are some
    unread = ids
    with evaluating(model):
        while ids.size(1) < length:
            output = model(unread, **kept)
            logits = output.logits[:, -1].float()  # (n_windows, vocab)
            probabilities = torch.softmax(logits / temperature, dim=-1)  # (n_windows, vocab)
            if not probabilities.isfinite().all():
                raise ValueError(
                    f"The model predicts no numbers (NaN) behind token {ids.size(1)}: its weights hold NaN or infinite "
                    "ones, or overflow. Load weights that are finite."
                )
            unread = torch.multinomial(probabilities, 1, generator=rng)  # (n_windows, 1)
            ids = torch.cat([ids, unread], dim=1)
            past = getattr(output, "past_key_values", None)
            if past is None:  # Mamba and its like keep another state: read the whole text again
                kept = {"use_cache": False}
                unread = ids
            else:
                kept = {"use_cache": True, "past_key_values": past}
    return ids.cpu()


def _require_start(model: nn.Module, start: torch.Tensor, length: int) -> None:
    """Raise ValueError unless a sample of ``length`` tokens can begin with ``start``."""
    n_words = _n_words(model)
    is_text = start.dim() == 1 and start.dtype == torch.long and 1 <= len(start) <= length
    if not is_text or not 0 <= start.min() <= start.max() < n_words:
        raise ValueError(
            f"A sample of {length} tokens begins with 1 to {length} token ids, (tokens,), int64, from 0 to "
            f"{n_words - 1}; found {tuple(start.shape)} of {start.dtype}: {start.tolist()[:5]}."
        )


def _begin_token(config) -> int:
    """Return the id of the begin-of-text token, or else of the end-of-text token, or else 0."""
    for found in (config.bos_token_id, config.eos_token_id):
        candidates = found if isinstance(found, (list, tuple)) else [found]
        for token in candidates:
            if token is not None:
                return token
    return 0


def sample_text(
    model: nn.Module, tokenizer, prompt: str, n_tokens: int = 80, seed: int = 0, temperature: float = 0.8
) -> str:
    """Return the prompt and how the model goes on with it.

    The prompt begins as a window of text does (`texts.begin_ids`), and no end mark stands behind it.
    It goes on for ``n_tokens``, or to the model's last position.

    Raises:
        ValueError: a prompt that is no text or longer than the model's positions, fewer tokens than none; or as
            `sample_windows`.
    """
    if not isinstance(prompt, str) or not isinstance(n_tokens, Integral) or n_tokens < 0:
        raise ValueError(
            f"A sample goes on with a text, for a whole number of tokens, 0 or more; found {prompt!r} and {n_tokens!r}."
        )
    require_tokenizer(tokenizer)
    ids = tokenizer(prompt, add_special_tokens=False, verbose=False)["input_ids"]
    begin = begin_ids(tokenizer)
    if ids[: len(begin)] != begin:
        ids = [*begin, *ids]
    start = torch.tensor(ids or [_begin_token(config_of(model))])
    limit = n_positions(config_of(model)) or len(start) + n_tokens
    if len(start) > limit:
        raise ValueError(
            f"The prompt has {len(start)} tokens, but the model has {limit} positions. Shorten it."
        )
    length = min(len(start) + n_tokens, limit)
    ids = sample_windows(model, 1, length, seed, start=start, temperature=temperature)
    return tokenizer.decode(ids[0], skip_special_tokens=True)


# --- forgetting --------------------------------------------------------------------


class Retention:
    """Keep what a base model predicts on text of its own, to see later how much of it is gone.

    Args:
        base: the untouched model; a copy is kept, so tuning it afterwards is safe.
        windows: (n, length) token ids, best from `sample_windows(base, …)`.
        limit: bytes of log-probabilities that may be kept; beyond it they are computed again from hidden states.

    Raises:
        LossError: no windows of token ids of this model.
    """

    BATCH = 4  # windows at a time; changes memory, not the result

    def __init__(self, base: nn.Module, windows: torch.Tensor, limit: int = CACHE_LIMIT):
        require_windows(base, windows)
        self.windows = windows
        self.base = copy.deepcopy(base).eval().requires_grad_(False)
        n_bytes = 4 * windows.numel() * _n_words(base)
        self._keeps_predictions = n_bytes <= limit
        self._kept = [self._of_base(part) for part in windows.split(self.BATCH)]

    @classmethod
    def sampled_from(cls, base: nn.Module, n_windows: int, length: int, seed: int = 0) -> Retention:
        """Return the retention on text that ``base`` samples at temperature 1."""
        return cls(base, sample_windows(base, n_windows, length, seed))

    @property
    def text_hash(self) -> str:
        """Return the SHA-256 of the windows."""
        return hashlib.sha256(self.windows.numpy().tobytes()).hexdigest()

    @torch.no_grad()
    def _of_base(self, part: torch.Tensor) -> torch.Tensor | None:
        """Return what is kept of the base: its log-probabilities, (windows, length - 1, vocab).

        Where they are too large to keep, its last states, which are one matrix product away from them. None
        where it has no such states: then the base is asked again each time.
        """
        if self._keeps_predictions:
            return log_probabilities(self.base, part)
        trunk = plain_trunk(self.base)
        if trunk is None:
            return None
        return last_states(trunk, part.to(_device(self.base)))  # (windows, length - 1, width)

    def forgetting(self, model: nn.Module) -> Estimate:
        """Return F, the mean over tokens of KL(base || tuned), in nats; 0 means that nothing changed.

        KL(p || q) = sum over the vocabulary of p * (ln p - ln q) (Kullback and Leibler 1951).
        The base stands first: a token that it finds likely and the tuned model does not costs most.

        Raises:
            LossError: the model has another vocabulary.
        """
        then, now = (_n_words(m) for m in (self.base, model))
        if then != now:
            raise LossError(
                f"Forgetting compares predictions of the same words: the base has a vocabulary of {then:,}, and this "
                f"model one of {now:,}. Take the retention from the base of this very model."
            )
        parts = self.windows.split(self.BATCH)
        means = []
        with evaluating(model):
            for kept, part in zip(self._kept, parts, strict=True):
                means.append(self._kl(kept, part, model))
        per_window = torch.cat(means).double().numpy()  # (n,)
        return estimate(per_window, _n_predicted(self.windows))

    @torch.no_grad()
    def _kl(self, kept: torch.Tensor, part: torch.Tensor, model: nn.Module) -> torch.Tensor:
        """Return the mean KL of each window, (windows,)."""
        base = kept
        if not self._keeps_predictions:
            base = log_probabilities(self.base, part, kept)
        tuned = log_probabilities(model, part)  # (windows, length - 1, vocab)
        terms = base.exp().mul_(base - tuned)  # p (ln p - ln q), in the memory of p
        return terms.sum(-1).mean(1).cpu()


def log_probabilities(
    model: nn.Module, windows: torch.Tensor, states: torch.Tensor | None = None
) -> torch.Tensor:
    """Return ln p of each next token, (windows, length - 1, vocab).

    Args:
        states: the last ones, where they are known: (windows, length - 1, width).

    Raises:
        LossError: no windows of token ids of this model.
    """
    require_windows(model, windows)
    ids = windows.to(_device(model))
    trunk = plain_trunk(model)
    if trunk is None:
        logits = next_token_logits(model, ids)
    else:
        if states is None:
            states = last_states(trunk, ids)
        logits = model.get_output_embeddings()(states)
    return torch.log_softmax(logits.float(), dim=-1)


# --- style -------------------------------------------------------------------------


def author_matrix(models: Mapping[str, nn.Module], texts: Mapping[str, torch.Tensor]) -> pd.DataFrame:
    """Return the held-out loss of each model (rows) on each author's text (columns), in nats per token.

    Raises:
        TypeError, ValueError: no dict of models, or of windows, or an empty one; LossError as `held_out_loss`.
    """
    require_named(models, nn.Module, "The models of a matrix have names")
    require_named(texts, torch.Tensor, "The texts of a matrix have names and windows")
    columns = {}
    for text, windows in texts.items():
        columns[text] = {name: held_out_loss(model, windows).mean for name, model in models.items()}
    return pd.DataFrame(columns)


def style_contrast(on_a: Mapping[str, Estimate], on_b: Mapping[str, Estimate]) -> float:
    """Return S, half of [L_b(A) - L_a(A)] + [L_a(B) - L_b(B)], in nats per token.

    L_x(Y) is the loss of the model tuned on author x, on author Y's text. A gain that any
    story would bring appears in both terms of a bracket and cancels. 0: no style was learned.

    Args:
        on_a: losses on author A's text, keys "a" (tuned on A) and "b" (tuned on B).
        on_b: the same on author B's text.
    """
    gain_on_a = on_a["b"].mean - on_a["a"].mean
    gain_on_b = on_b["a"].mean - on_b["b"].mean
    return 0.5 * (gain_on_a + gain_on_b)
