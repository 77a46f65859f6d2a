"""The style mixer: one prompt, continued by several models side by side, token by token.

All models throw the same dice: where two of them predict the same, they write the same.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from os.path import commonprefix

import torch
from matplotlib.figure import Figure
from torch import nn

from helpers.files import counted
from helpers.lessons.widgets.live import LiveDrawing
from helpers.measuring import evaluating
from helpers.models import ModelError, n_positions, require_seed

__all__ = ["style_mixer"]

FIRST_TOKENS = 24  # of the text that is there before the reader asks for more
PARTED = " \u2016 "  # in the picture: from here on a text is another than the first one


def style_mixer(
    models: Mapping[str, nn.Module],
    tokenizer,
    prompt: str,
    n_tokens: int = 40,
    seed: int = 0,
    temperature: float = 0.8,
) -> LiveDrawing:
    """A widget in which several models go on with the reader's words.

    Args:
        models: name to model, all with one tokenizer; the names head the columns.
        prompt, n_tokens, seed, temperature: at the start. Then only the first `FIRST_TOKENS` are written,
            so that the page is not held up.
    """
    most = min(200, (n_positions(next(iter(models.values())).config) or 400) // 2)
    start = {"prompt": prompt, "n_tokens": n_tokens, "temperature": temperature, "seed": seed}
    texts: dict[str, str] = {}

    def answer(choice):
        n = choice["n_tokens"] if texts else min(n_tokens, FIRST_TOKENS)
        begun = choice["prompt"], n, choice["seed"], choice["temperature"]
        for pieces in in_pieces(side_by_side(models, tokenizer, *begun)):
            texts.update({name: "".join(own) for name, own in pieces.items()})
            n_written = len(next(iter(pieces.values())))
            yield {"prompt": choice["prompt"], "pieces": pieces, "is_whole": n_written == n}

    def still():
        return texts_figure(prompt, texts), sentence(prompt, texts)

    return LiveDrawing(
        "styles", {"names": list(models), "most": most}, start, still, answer, is_on_page=False
    )


def in_pieces(texts: Iterator[Mapping[str, str]]) -> Iterator[dict[str, list[str]]]:
    """Growing texts, name to text, as lists with one piece a token; a letter of two tokens comes with the second."""
    pieces: dict[str, list[str]] = {}
    for written in texts:
        for name, text in written.items():
            own = pieces.setdefault(name, [])
            known = "".join(own)
            own.append(text[len(known) :].rstrip("\ufffd") if text.startswith(known) else "")
        yield {name: list(own) for name, own in pieces.items()}


def side_by_side(
    models: Mapping[str, nn.Module],
    tokenizer,
    prompt: str,
    n_tokens: int,
    seed: int = 0,
    temperature: float = 0.8,
) -> Iterator[dict[str, str]]:
    """After each token: name to what its model has written so far, the prompt left out.

    Raises:
        ModelError: no word in the prompt, a seed that is none, or more tokens than the model has positions.
    """
    require_seed(seed)
    start = tokenizer(prompt, verbose=False)["input_ids"]
    limit = min((n_positions(m.config) or len(start) + n_tokens) for m in models.values())
    if not start:
        raise ModelError("The prompt is empty. Write at least one word.")
    if len(start) + n_tokens > limit:
        raise ModelError(
            f"The prompt has {counted(len(start), 'token')}; with {n_tokens} more it is longer than the model's "
            f"{limit} positions. Shorten it, or ask for fewer tokens."
        )
    writers = {name: tokens(model, start, n_tokens, seed, temperature) for name, model in models.items()}
    ids: dict[str, list[int]] = {name: [] for name in models}
    for _ in range(n_tokens):
        for name, writer in writers.items():
            ids[name].append(next(writer))
        yield {name: tokenizer.decode(own, skip_special_tokens=True) for name, own in ids.items()}


def tokens(model: nn.Module, start: list[int], n_tokens: int, seed: int, temperature: float) -> Iterator[int]:
    """The ids that a model draws one after the other, as `evaluation.sample_windows` draws them."""
    device = next(model.parameters()).device
    dice, past = torch.Generator(device).manual_seed(seed), None
    new = torch.tensor([start], device=device)
    for _ in range(n_tokens):
        with torch.no_grad(), evaluating(model):
            out = model(new, past_key_values=past, use_cache=True)
            probs = torch.softmax(out.logits[:, -1].float() / temperature, dim=-1)  # (1, vocab)
            new, past = torch.multinomial(probs, 1, generator=dice), out.past_key_values
        yield int(new)


def sentence(prompt: str, texts: Mapping[str, str]) -> str:
    """What the picture shows, in words."""
    return f"Style mixer, prompt {prompt!r}. " + " ".join(
        f"{name}: {text.strip()!r}." for name, text in texts.items()
    )


def texts_figure(prompt: str, texts: Mapping[str, str]) -> Figure:
    """The columns as a picture, with a mark where a text parts from the first."""
    figure = Figure(figsize=(8.5, 2.0))
    figure.text(0.01, 0.92, f"The prompt of all: {prompt}", fontsize=10, style="italic")
    width = 0.98 / len(texts)
    first = next(iter(texts.values()))
    for i, (name, text) in enumerate(texts.items()):
        lines = textwrap.wrap(" ".join(marked(text, first).split()), round(98 / len(texts)))
        figure.text(0.01 + i * width, 0.80, name, fontsize=10, weight="bold", va="top")
        figure.text(0.01 + i * width, 0.66, "\n".join(lines), fontsize=9, va="top", parse_math=False)
    note = f"{PARTED.strip()} from here on another text than that of the first column"
    figure.text(0.01, 0.06, note, fontsize=9, color="#52606d")
    return figure


def marked(text: str, first: str) -> str:
    """A text with `PARTED` where it becomes another than the first one; as it is where it never does."""
    same = len(commonprefix([text, first]))
    return text if same == len(text) else f"{text[:same]}{PARTED}{text[same:]}"
