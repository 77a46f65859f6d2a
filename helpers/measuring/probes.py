"""What a finished run is asked besides its loss: small words, swapped parts, words learned by heart.

None of these trains anything. Each answers one rival explanation: a plan may look better on
style because it learned topics, or forget less because it could not learn the text by heart.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from helpers.files import counted, require_named, require_whole
from helpers.measuring.evaluation import evaluating, held_out_loss, sample_windows
from helpers.models import anatomy, config_of, named_parameters, require_windows, token_losses
from helpers.texts import require_tokenizer

# Words that carry grammar rather than topic: articles, pronouns, prepositions, conjunctions, auxiliaries, particles.
FUNCTION_WORDS = frozenset(
    """
a an the this that these those some any no every each either neither both all such other another much many more most
i me my mine myself you your yours yourself he him his himself she her hers herself it its itself we us our ours
ourselves they them their theirs themselves who whom whose which what whoever one none
about above across after against along among around as at before behind below beneath beside between beyond but by
down during except for from in inside into like near of off on onto out over past since through till to toward towards
under until up upon with within without
and or nor so yet if then than because though although while when where why how whether unless
be am is are was were been being have has had having do does did done will would shall should can could may might must
not never ever too very quite rather only just even still again also there here now
""".split()
)

SWAPS: dict[str, tuple[str, ...]] = {
    "attention": ("attention",),
    "mlp": ("mlp",),
    "norm": ("norm",),
    "embeddings": ("token_embedding", "position_embedding"),
    "all": (),
}


# --- small words -------------------------------------------------------------------


def function_tokens(tokenizer) -> torch.Tensor:
    """Which tokens of a vocabulary are a function word or punctuation, whole: (vocab,), true or false."""
    require_tokenizer(tokenizer)
    texts = [tokenizer.decode([i]) for i in range(len(tokenizer))]
    return torch.tensor([_is_function_text(text) for text in texts])


def _is_function_text(text: str) -> bool:
    word = text.strip().lower()
    return word in FUNCTION_WORDS or bool(word and re.fullmatch(r"[^\w\s]+", word))


def function_losses(
    model: nn.Module, windows: torch.Tensor, is_function: torch.Tensor, batch: int = 8
) -> tuple[np.ndarray, np.ndarray]:
    """Mean loss of each window, over all tokens and over function tokens alone: two (windows,) arrays, nats.

    A window without a function token counts as NaN in the second.
    """
    require_windows(model, windows)
    require_whole(batch, "batch is windows at a time")
    n_words = config_of(model).get_text_config().vocab_size
    if not isinstance(is_function, torch.Tensor) or is_function.shape != (n_words,):
        raise ValueError(
            f"is_function says of each of the model's {n_words:,} tokens whether it is a function token: "
            "function_tokens(tokenizer) gives it."
        )
    rows_all, rows_function = [], []
    with evaluating(model):
        for part in windows.split(batch):
            losses = token_losses(
                model, part.to(next(model.parameters()).device)
            ).cpu()  # (batch, length - 1)
            rows_all.append(losses.mean(1))
            kept = is_function[part[:, 1:]]
            rows_function.append((losses * kept).sum(1) / kept.sum(1))
    return torch.cat(rows_all).double().numpy(), torch.cat(rows_function).double().numpy()


# --- swapped parts -----------------------------------------------------------------


def swap_losses(
    base: nn.Module, tuned: nn.Module, texts: Mapping[str, torch.Tensor]
) -> dict[str, dict[str, float]]:
    """Loss on each text of the base with the change of one role put in, by role of `SWAPS`; nothing is trained.

    It shows where a change can be stored, not where something was stored before.

    Raises:
        TypeError, ValueError: no dict of windows by text, or an empty one, or a tuned model of another base.
    """
    require_named(texts, torch.Tensor, "The texts that parts are swapped for have names and windows")
    found = {}
    for name, roles in SWAPS.items():
        mixed = with_change(base, tuned, roles)
        found[name] = {text: round(held_out_loss(mixed, windows).mean, 5) for text, windows in texts.items()}
    return found


@torch.no_grad()
def with_change(base: nn.Module, tuned: nn.Module, roles: tuple[str, ...]) -> nn.Module:
    """A copy of the base with the tuned weights of some roles; no role means all."""
    shapes, others = ({n: p.shape for n, p in named_parameters(m)} for m in (base, tuned))
    if shapes != others:
        odd = sorted(name for name in shapes.keys() | others if shapes.get(name) != others.get(name))
        raise ValueError(
            f"The tuned model is not of this base: {odd[0]} is in one of them alone, or of another shape "
            f"({counted(len(odd), 'such tensor')}). Give the base that it was trained from."
        )
    mixed = copy.deepcopy(base)
    for entry in anatomy(base).entries:
        if not roles or entry.role in roles:
            mixed.get_parameter(entry.name).copy_(tuned.get_parameter(entry.name))
    return mixed


# --- learned by heart --------------------------------------------------------------


def memorisation(
    model: nn.Module,
    train: torch.Tensor,
    held_out: torch.Tensor,
    n_prompts: int = 50,
    n_tokens: int = 32,
    n_gram: int = 8,
    seed: int = 0,
) -> dict[str, float]:
    """How much of the training text a model says by heart. Run it on the base too: that is the control.

    Args:
        train, held_out: (windows, length) token ids, length at least twice ``n_tokens``.

    Returns:
        exact_train, exact_held_out: the share of prompts (the first ``n_tokens`` of a window) whose next
        ``n_tokens``, chosen greedily, are the text's own; right_train, right_held_out: the mean number of
        tokens that are right before the first error; n_grams: the share of sampled runs of ``n_gram``
        tokens that stand in the training text.

    Raises:
        LossError: no windows of token ids of this model.
        ValueError: a number that is no count, or windows that are too short for it.
    """
    for name, number in (("n_prompts", n_prompts), ("n_tokens", n_tokens), ("n_gram", n_gram)):
        require_whole(number, f"{name} is a count")
    for windows in (train, held_out):
        require_windows(model, windows)
        if windows.size(1) < max(2 * n_tokens, n_gram):
            raise ValueError(
                f"Windows of {windows.size(1)} tokens are too short: {n_tokens} are the prompt and as many its answer, and "
                f"a run has {n_gram}. Give longer windows, or smaller numbers."
            )
    if n_gram > 2 * n_tokens:
        raise ValueError(
            f"A run of {n_gram} tokens is longer than a sample of {2 * n_tokens}. Give a smaller n_gram."
        )
    found = {}
    for name, windows in (("train", train), ("held_out", held_out)):
        right = right_tokens(model, _evenly(windows, n_prompts), n_tokens)
        found[f"exact_{name}"] = float((right == n_tokens).mean())
        found[f"right_{name}"] = float(right.mean())
    samples = sample_windows(model, n_prompts, 2 * n_tokens, seed)
    found["n_grams"] = shared_n_grams(samples.numpy(), train.numpy(), n_gram)
    return {k: round(v, 5) for k, v in found.items()}


@torch.no_grad()
def right_tokens(model: nn.Module, windows: torch.Tensor, n_tokens: int) -> np.ndarray:
    """Tokens that a greedy continuation gets right before its first error: (windows,)."""
    prompts = windows[:, :n_tokens].to(next(model.parameters()).device)
    with evaluating(model):
        # A stop token would end the row early, and a row that ends is padded: neither may happen here.
        said = model.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            max_new_tokens=n_tokens,
            min_new_tokens=n_tokens,
            do_sample=False,
            pad_token_id=0,
        ).cpu()
    is_right = said[:, n_tokens:] == windows[:, n_tokens : 2 * n_tokens]  # (windows, n_tokens)
    return is_right.long().cumprod(1).sum(1).numpy().astype(float)


def shared_n_grams(samples: np.ndarray, text: np.ndarray, n: int) -> float:
    """Share of the n-grams of the samples, (rows, tokens), that occur in the text, (windows, length)."""
    known = {tuple(g) for row in text for g in np.lib.stride_tricks.sliding_window_view(row, n)}
    said = [tuple(g) for row in samples for g in np.lib.stride_tricks.sliding_window_view(row, n)]
    return float(np.mean([g in known for g in said]))


def _evenly(windows: torch.Tensor, most: int) -> torch.Tensor:
    return windows if len(windows) <= most else windows[torch.linspace(0, len(windows) - 1, most).long()]
