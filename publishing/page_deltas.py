"""Make what the page "What does it forget?" loads: two tuned models as changes of the base, and texts to measure on.

    course site --data        (some minutes on one thread)

The miniature is trained in full on each of the two texts, so long that it learns and forgets. Stored is
the change of each weight, not the weight. A matrix is stored in whole numbers from -127 to 127 with one
scale a row, because two float16 changes and the base would not fit into the page's 12 MB. The tuned model
of the page *is* the base plus the stored change. The script prints what storing cost. Seed 0.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from helpers.freezing import FreezePlan
from helpers.measuring import Retention, held_out_loss
from helpers.models import load_model, load_tokenizer
from helpers.texts import load_corpus, tensor_of
from helpers.training import TrainSettings, fit
from publishing.page_records import Line, Scale, chart, text

ROOT = Path(__file__).resolve().parents[1]
BASE = ROOT / "data" / "gpt-neo-mini"
OUT = ROOT / "publishing" / "static" / "mini" / "data"
WRITTEN_BY_BASE = ROOT / "data" / "evidence" / "retention" / "gpt-neo-mini" / "windows.safetensors"
TEXTS = {"alice": "alice_style.txt", "edgar": "edgar_style.txt"}
COLOURS = {"alice": "#D55E00", "edgar": "#CC79A7"}
SETTINGS = TrainSettings(n_steps=96, rate=1e-4, batch=8, seed=0, evaluate_every=96, save_every=96)
SHARES = tuple(i / 10 for i in range(11))  # of the change, for the still picture
N_PASSAGES = 8  # of each text that the page measures on
N_WRITTEN = 4  # that the base wrote
PASSAGE_TOKENS = 80


def stored(change: torch.Tensor) -> dict[str, torch.Tensor]:
    """The parts of one tensor's change on disk: whole numbers with a scale a row, or float16 for a vector.

    Args:
        change: (rows, columns) or (n,), float32.

    Returns:
        "" to the tensor itself, int8 or float16; for a matrix also ".scale" to (rows,), float32.
    """
    if change.dim() < 2:
        return {"": change.half()}
    scale = change.abs().amax(dim=1).clamp(min=1e-12) / 127  # (rows,)
    return {"": (change / scale[:, None]).round().to(torch.int8), ".scale": scale}


def loaded(delta: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The changes of a stored delta by parameter name, float32."""
    changes = {}
    for name, tensor in delta.items():
        if name.endswith(".scale"):
            continue
        change = tensor.float()
        if f"{name}.scale" in delta:
            change = change * delta[f"{name}.scale"][:, None]
        changes[name] = change
    return changes


@torch.no_grad()
def moved(base: nn.Module, changes: dict[str, torch.Tensor], share: float) -> nn.Module:
    """A copy of the base with a share of the changes added to its weights."""
    model = copy.deepcopy(base)
    for name, parameter in model.named_parameters():
        parameter.add_(changes[name], alpha=share)
    return model


def trained_changes(base: nn.Module, windows: torch.Tensor) -> dict[str, torch.Tensor]:
    """Train a copy of the base in full, and return by how much each weight moved."""
    tuned = copy.deepcopy(base)
    fit(tuned, FreezePlan.full(), windows, SETTINGS)
    before = dict(base.named_parameters())
    return {name: (parameter - before[name]).detach() for name, parameter in tuned.named_parameters()}


def passages(page: str, tokenizer) -> list[str]:
    """Some places of a text, evenly spread: whole sentences, at most `PASSAGE_TOKENS` tokens each."""
    paragraphs = [part.strip() for part in re.split(r"\n\s*\n", page) if len(part) > 300]
    chosen = [paragraphs[len(paragraphs) * i // N_PASSAGES] for i in range(N_PASSAGES)]
    return [whole_sentences(paragraph, tokenizer) for paragraph in chosen]


def whole_sentences(paragraph: str, tokenizer) -> str:
    """The first sentences of a paragraph that fit; at least one."""
    kept = ""
    for sentence in re.findall(r".+?[.!?][\"']*(?:\s|$)", paragraph, re.DOTALL):
        if kept and len(tokenizer(kept + sentence)["input_ids"]) > PASSAGE_TOKENS:
            break
        kept += sentence
    return kept.strip()


def on_the_way(
    name: str, base: nn.Module, changes: dict, test: torch.Tensor, retention: Retention
) -> np.ndarray:
    """Loss and forgetting at each of `SHARES`, also printed: (shares, 2), nats per token."""
    rows = []
    for share in SHARES:
        model = moved(base, changes, share)
        rows.append((held_out_loss(model, test).mean, retention.forgetting(model).mean))
        print(
            f"{name}, share {share:.1f}: test loss {rows[-1][0]:.4f}, forgetting {rows[-1][1]:.4f} nats per token"
        )
    return np.array(rows)


def still_picture(paths: Mapping[str, np.ndarray]) -> str:
    """The picture for readers whose browser runs nothing: gain against forgetting along the way, as SVG."""
    lines = [
        Line(loss[0] - loss, forgetting, COLOURS[name], width=2, dots=True)
        for name, (loss, forgetting) in ((name, rows.T) for name, rows in paths.items())
    ]
    scale = Scale.over(lines)
    labels = [
        text(scale.x(line.x[-1]) + 8, scale.y(line.y[-1]) - 8, f"tuned on {name.title()}")
        for name, line in zip(paths, lines, strict=True)
    ]
    drawn = chart(
        lines,
        "Rewinding forgets less, and can gain more",
        "gain on unseen pages, nats per token",
        "forgetting, nats per token",
        "Two paths from the base to a tuned model",
    )
    whole = drawn.replace("</svg>", "".join(labels) + "</svg>")
    return whole.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)


def write() -> None:
    """Write ``alice.safetensors``, ``edgar.safetensors``, ``texts.json`` and ``forget-still.svg``."""
    OUT.mkdir(parents=True, exist_ok=True)
    base, tokenizer = load_model(BASE), load_tokenizer(BASE)
    own = load_file(WRITTEN_BY_BASE)["A"].long()  # (windows, length), half A
    retention = Retention(base, own)
    texts = {
        "base": [tokenizer.decode(row[:PASSAGE_TOKENS], skip_special_tokens=True) for row in own[:N_WRITTEN]]
    }
    paths = {}
    for name, file in TEXTS.items():
        corpus = load_corpus(ROOT / "data" / file, tokenizer, 256)
        changes = trained_changes(base, tensor_of(corpus.train))
        delta = {
            key + part: tensor for key, change in changes.items() for part, tensor in stored(change).items()
        }
        save_file(delta, OUT / f"{name}.safetensors")
        texts[name] = passages(corpus.split.test, tokenizer)
        test = tensor_of(corpus.test)
        paths[name] = on_the_way(name, base, loaded(delta), test, retention)
        unrounded = held_out_loss(moved(base, changes, 1.0), test).mean
        print(
            f"{name}, share 1.0 before it was rounded for storing: test loss {unrounded:.4f} nats per token"
        )
    (OUT / "texts.json").write_text(json.dumps(texts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (OUT / "forget-still.svg").write_text(still_picture(paths) + "\n", encoding="utf-8")
