"""The block explorer: choose a block, a head and a token, and see what the token looks at.

Rows of the map are queries, columns are keys. Grey keys are hidden: they come later, or they lie outside
the block's local window.
"""

from __future__ import annotations

import html
import io
from base64 import b64encode

import ipywidgets
import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.image import imsave
from torch import nn

from helpers.lessons.widgets.frame import STYLE, Frame, control
from helpers.measuring import evaluating
from helpers.models import ModelError, n_positions

__all__ = ["block_explorer"]

MAP_SIDE = 400  # pixels
HIDDEN = "#bbbbbb"
MOST_TOKENS = 512  # twice the 125M's window; in a longer passage the points get too small to see


def block_explorer(
    model: nn.Module, tokenizer, passage: str, block: int = 0, head: int = 0, query: int | None = None
) -> Frame:
    """A widget that shows the attention of any block, head and token of a passage.

    Args:
        model: loaded with ``attention="eager"``; the fast attention keeps no weights.
        passage: the text at the start; the reader may write another.
        block, head, query: chosen at the start; the query is a position, None takes the last token.

    Raises:
        ModelError: the model shows no attention weights.
    """
    page = Passage(model, tokenizer, passage)
    n_layers, n_heads = page.weights.shape[:2]
    last = len(page.tokens) - 1
    controls = {
        "block": control(
            ipywidgets.Dropdown,
            "Block",
            "which block's attention to show",
            value=block,
            options=[(f"{i} ({kind})", i) for i, kind in enumerate(attention_kinds(model.config))],
        ),
        "head": control(
            ipywidgets.IntSlider,
            "Head",
            "which attention head of the block",
            value=head,
            min=0,
            max=n_heads - 1,
        ),
        "query": control(
            ipywidgets.IntSlider,
            "Query",
            "the position of the token that looks",
            value=last if query is None else query,
            min=0,
            max=last,
        ),
        "text": control(
            ipywidgets.Textarea,
            "Passage",
            "your own text; it is read when you leave the field (Tab)",
            value=passage,
            continuous_update=False,
            rows=3,
            layout={"width": "95%"},
        ),
    }

    def adjust(text, **_):
        if text != page.text:
            page.read(text)
            controls["query"].max = len(page.tokens) - 1  # the slider ends at the new last token

    def answer(block, head, query, text):
        yield "words", words_html(page, block, head, query)
        yield "map", map_html(page, block, head, query)

    def still():
        values = {name: controls[name].value for name in ("block", "head", "query")}
        return map_figure(page, **values), sentence(page, **values)

    rows = [["block", "head", "query"], ["text"]]
    return Frame(controls, {"words": 130, "map": 0}, answer, still, rows, adjust=adjust)


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
        ids = self.tokenizer(text)["input_ids"][
            : min(MOST_TOKENS, n_positions(self.model.config) or MOST_TOKENS)
        ]
        if not ids:
            raise ModelError("The passage is empty. Write at least one word.")
        self.weights = attention_weights(self.model, torch.tensor([ids]))
        self.tokens, self.text = [self.tokenizer.decode([i]) for i in ids], text

    def visible(self, block: int) -> np.ndarray:
        """Which keys each query of a block may see: (queries, keys)."""
        return visible_keys(self.kinds[block], self.window, len(self.tokens))

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
        f"Attention map, block {block} ({page.kinds[block]}), head {head}, {n} tokens. Query {query} "
        f"({page.tokens[query]!r}) may see {n_visible} of {n} keys; most of its weight, {weight:.2f}, "
        f"goes to key {key} ({page.tokens[key]!r})."
    )


def words_html(page: Passage, block: int, head: int, query: int) -> str:
    """The passage, the darker a token the more the query looks at it; below, the five largest weights."""
    row, visible = page.weights[block, head, query], page.visible(block)[query]
    words = "".join(word_html(token, row[k], visible[k], k == query) for k, token in enumerate(page.tokens))
    top = ", ".join(
        f"{html.escape(repr(page.tokens[k]))} ({k}): {weight:.2f}" for k, weight in looked_at(row)
    )
    return (
        f'<div class="block-explorer-words" style="{STYLE}"><p>{words}</p>'
        f"<p>Query {query} sees {int(visible.sum())} of {len(row)} keys. It looks most at {top}.</p></div>"
    )


def word_html(token: str, weight: float, is_visible: bool, is_query: bool) -> str:
    """One token: its weight as the strength of a blue ground; a hidden one is pale; the query has a frame."""
    styles = [f"background: rgba(0, 114, 178, {0.6 * weight**0.5:.2f})" if is_visible else "opacity: 0.45"]
    if is_query:
        styles.append("outline: 2px solid var(--jp-warn-color1, #D55E00)")
    return f'<span style="{"; ".join(styles)}">{html.escape(token)}</span>'


def heading(page: Passage, block: int, head: int) -> str:
    return f"Block {block} ({page.kinds[block]}), head {head}: square root of the weight"


def map_html(page: Passage, block: int, head: int, query: int) -> str:
    """The map as pixels, one a weight, enlarged by the browser: quick to make. A line marks the query."""
    out = io.BytesIO()
    imsave(out, coloured(page.shown(block, head)), format="png")
    alt, n = html.escape(sentence(page, block, head, query), quote=True), len(page.tokens)
    data, side = b64encode(out.getvalue()).decode(), MAP_SIDE
    return (
        f'<div class="block-explorer-map" style="{STYLE}"><p>{heading(page, block, head)} '
        f"(dark: 0, yellow: 1, grey: hidden)</p>"
        f'<div style="position: relative; width: {side}px; height: {side}px; background: white">'
        f'<img src="data:image/png;base64,{data}" alt="{alt}" width="{side}" height="{side}" decoding="sync" '
        f'style="image-rendering: pixelated; max-width: none">'
        f'<div aria-hidden="true" style="position: absolute; left: 0; width: 100%; border-top: 1px solid #D55E00; '
        f'top: {(query + 0.5) / n:.2%}"></div></div>'
        f"<p>down: query, 0 to {n - 1}; to the right: key, 0 to {n - 1}</p></div>"
    )


def coloured(values: np.ndarray) -> np.ndarray:
    """Values from 0 to 1 as colours, NaN as grey: (queries, keys, 4) bytes."""
    return colormaps["viridis"].with_extremes(bad=HIDDEN)(np.ma.masked_invalid(values), bytes=True)


def map_figure(page: Passage, block: int, head: int, query: int) -> Figure:
    """The same map as a picture with axes."""
    figure = Figure(figsize=(5.4, 4.3), layout="constrained")
    ax = figure.add_subplot()
    ax.set_facecolor(HIDDEN)
    image = ax.imshow(page.shown(block, head), cmap="viridis", vmin=0, vmax=1, interpolation="nearest")
    ax.axhline(query, color="#D55E00", linewidth=1)
    ax.set_title(heading(page, block, head), loc="left", fontsize=10)
    ax.set_xlabel("key: position of the token that is looked at (grey: hidden)")
    ax.set_ylabel("query: position of the token that looks")
    figure.colorbar(image, ax=ax)
    return figure
