"""The block explorer: click a word of a passage, and see where every head looks from there.

Rows of a head's map are queries, columns are keys. Grey keys are hidden: they come later, or they lie outside
the block's local window.
"""

from __future__ import annotations

from base64 import b64encode

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn

from helpers.files import counted
from helpers.lessons.widgets.live import LiveDrawing
from helpers.measuring import evaluating
from helpers.models import ModelError, n_positions

__all__ = ["block_explorer"]

HIDDEN = "#bbbbbb"
MOST_TOKENS = 512  # twice the 125M's window; in a longer passage the points get too small to see
STEPS = 65535  # the square root of a weight travels as one of these many steps
MOST_WEIGHTS = 2_000_000  # of all heads together: more are sent when a reader asks for them


def block_explorer(
    model: nn.Module, tokenizer, passage: str, block: int = 0, head: int = 0, query: int | None = None
) -> LiveDrawing:
    """A widget that shows the attention of any block, head and token of a passage.

    Args:
        model: loaded with ``attention="eager"``; the fast attention keeps no weights.
        passage: the text at the start; the reader may write another.
        block, head, query: chosen at the start; the query is a position, None takes the last token.

    Raises:
        ModelError: the model shows no attention weights.
    """
    page = Passage(model, tokenizer, passage)
    last = len(page.tokens) - 1
    start = {"block": block, "head": head, "query": last if query is None else query, "text": passage}
    data = {"passage": page.sent()}
    told = {}  # the passage as an answer, where it is another one than at the start

    def answer(choice):
        if choice["text"] != page.text:
            page.read(choice["text"])
            told["passage"] = page.sent()
        if page.is_small:
            yield dict(told)
        else:
            at = min(choice["query"], len(page.tokens) - 1)
            yield told | page.asked_for(choice["block"], choice["head"], at)

    shown = start["query"]

    def still():
        return map_figure(page, block, head, shown), sentence(page, block, head, shown)

    return LiveDrawing("blocks", data, start, still, answer, is_on_page=page.is_small)


class Passage:
    """A text with the attention weights of every block and head on it.

    Attributes:
        tokens: each token as text.
        weights: (blocks, heads, queries, keys), each row summing to 1.
    """

    def __init__(self, model: nn.Module, tokenizer, text: str):
        self.model, self.tokenizer = model, tokenizer
        self.kinds, self.window = attention_kinds(model.config), getattr(model.config, "window_size", None)
        self.read(text)

    def read(self, text: str) -> None:
        """Run the model once on a text.

        Raises:
            ModelError: no token in the text, or a model that shows no weights.
        """
        ids = self.tokenizer(text, verbose=False)["input_ids"][
            : min(MOST_TOKENS, n_positions(self.model.config) or MOST_TOKENS)
        ]
        if not ids:
            raise ModelError("The passage is empty. Write at least one word.")
        self.weights = attention_weights(self.model, torch.tensor([ids]))
        self.tokens, self.text = [self.tokenizer.decode([i]) for i in ids], text

    def visible(self, block: int) -> np.ndarray:
        """Which keys each query of a block may see: (queries, keys)."""
        return visible_keys(self.kinds[block], self.window, len(self.tokens))

    @property
    def is_small(self) -> bool:
        """Whether all weights can be sent at once."""
        n_blocks, n_heads, n, _ = self.weights.shape
        return n_blocks * n_heads * n * (n + 1) // 2 <= MOST_WEIGHTS

    def sent(self) -> dict:
        """The passage as the module reads it, with all weights where they are few."""
        found = {
            "text": self.text,
            "tokens": self.tokens,
            "nHeads": self.weights.shape[1],
            "kinds": self.kinds,
            "window": self.window,
        }
        if self.is_small:
            found["weights"] = as_text(self.weights[..., *np.tril_indices(len(self.tokens))])
        return found

    def asked_for(self, block: int, head: int, query: int) -> dict:
        """Every head's row of a query, and the whole map of one head."""
        n = len(self.tokens)
        rows = self.weights[:, :, query, : query + 1]
        return {
            "rows": {"query": query, "data": as_text(rows)},
            "maps": {
                "block": block,
                "head": head,
                "data": as_text(self.weights[block, head][np.tril_indices(n)]),
            },
        }

    def shown(self, block: int, head: int) -> np.ndarray:
        """What the map shows: the square root of each weight, NaN where the key is hidden: (queries, keys)."""
        return np.where(self.visible(block), np.sqrt(self.weights[block, head]), np.nan)


def attention_kinds(config) -> list[str]:
    """ "global" or "local" for each block. A family without local blocks has only global ones."""
    kinds = getattr(config, "attention_layers", None)
    return list(kinds) if kinds else ["global"] * config.num_hidden_layers


def visible_keys(kind: str, window: int | None, n_tokens: int) -> np.ndarray:
    """True where a query (row) may see a key (column): itself and earlier ones, in a local block only the nearest.

    Args:
        window: how many keys a query of a local block sees, itself counted.
    """
    query, key = np.arange(n_tokens)[:, None], np.arange(n_tokens)[None, :]
    causal = key <= query
    return causal & (query - key < window) if kind == "local" else causal


@torch.no_grad()
def attention_weights(model: nn.Module, ids: torch.Tensor) -> np.ndarray:
    """Weights of every block and head on one text: (blocks, heads, queries, keys).

    Args:
        ids: (1, time).

    Raises:
        ModelError: the model was loaded with an attention that keeps none.
    """
    with evaluating(model):
        found = model(ids.to(next(model.parameters()).device), output_attentions=True).attentions
    if not found or any(layer is None for layer in found):
        raise ModelError(
            'This model shows no attention weights. Load it with load_model(…, attention="eager").'
        )
    return torch.stack([layer[0].float().cpu() for layer in found]).numpy()


def looked_at(row: np.ndarray, most: int = 5) -> list[tuple[int, float]]:
    """The keys that got most of a query's attention: (position, weight), largest first, visible ones only.

    Args:
        row: (keys,), the weights of one query.
    """
    order = sorted(range(len(row)), key=lambda key: (-row[key], key))[:most]
    return [(key, float(row[key])) for key in order if row[key] > 0]


def sentence(page: Passage, block: int, head: int, query: int) -> str:
    """What the map shows, in words."""
    n_visible, n = int(page.visible(block)[query].sum()), len(page.tokens)
    key, weight = looked_at(page.weights[block, head, query])[0]
    return (
        f"Attention map, block {block} ({page.kinds[block]}), head {head}, {counted(n, 'token')}. Query {query} "
        f"({page.tokens[query]!r}) may see {n_visible} of {n} keys; its largest weight, {weight:.2f}, "
        f"goes to key {key} ({page.tokens[key]!r})."
    )


def as_text(weights: np.ndarray) -> str:
    """Weights as the module reads them: square roots in `STEPS`, two bytes each, as base64."""
    return b64encode(np.round(STEPS * np.sqrt(weights)).astype("<u2").tobytes()).decode()


def heading(page: Passage, block: int, head: int) -> str:
    return f"Block {block} ({page.kinds[block]}), head {head}: square root of the weight"


def map_figure(page: Passage, block: int, head: int, query: int) -> Figure:
    """The same map as a picture with axes."""
    figure = Figure(figsize=(5.4, 4.3), layout="constrained")
    ax = figure.add_subplot()
    ax.set_facecolor(HIDDEN)
    image = ax.imshow(page.shown(block, head), cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    ax.axhline(query, color="#D55E00", linewidth=1)
    ax.set_title(heading(page, block, head), loc="left", fontsize=10)
    ax.set_xlabel("key: position of the token that is looked at (grey: hidden)")
    ax.set_ylabel("query: position of the token that looks")
    figure.colorbar(image, ax=ax)
    return figure
