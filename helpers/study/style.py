"""Do the course's texts carry style, not only topic? Ask the real authors.

    course style --alice ALICE.txt --edgar POE.txt

Trains the miniature on alice_style.txt and on edgar_style.txt, equally long and at one rate, and
measures both on windows of the real books. Style is carried if each book is predicted better by the
model tuned on its own manner: a paired difference over windows of two standard errors or more.
Writes style.json beside the run files of the study (`helpers.study.packing`). Exit code 1 where a difference is smaller
than that.
"""

from __future__ import annotations

import copy
from pathlib import Path

import torch

from helpers import profiles
from helpers.files import read_json, write_json
from helpers.freezing import FreezePlan
from helpers.measuring import block_error, held_out_loss
from helpers.models import load_model, load_tokenizer, weight_hash
from helpers.session import machine_class
from helpers.study.jobs import WORK
from helpers.texts import load_corpus, read_text, tensor_of, windows
from helpers.training import TrainSettings, fit

N_WINDOWS = 160  # of each real book, evenly spaced
AUTHORS = ("alice", "edgar")


def spread(text: torch.Tensor, n: int) -> torch.Tensor:
    """n evenly spaced windows: (n, length)."""
    return text[torch.linspace(0, len(text) - 1, min(n, len(text))).long()]


def tuned_models(base, tokenizer, profile, settings: TrainSettings) -> dict:
    models = {}
    for author in AUTHORS:
        corpus = load_corpus(profile.texts[author], tokenizer, profile.length, name=author)
        models[author] = copy.deepcopy(base)
        fit(models[author], FreezePlan.full(), tensor_of(corpus.train), settings)
    return models


def compare_on(books: dict[str, Path], steps: int) -> dict:
    """Loss of both tuned models and the base on both books, and the paired differences."""
    profile = profiles.current("tiny")
    pages = {
        author: read_text(place) for author, place in books.items()
    }  # before training, so that a wrong path costs nothing
    base, tokenizer = load_model(profile.model), load_tokenizer(profile.model)
    settings = TrainSettings(n_steps=steps, rate=profile.rate_full, batch=profile.batch, evaluate_every=steps)
    models = tuned_models(base, tokenizer, profile, settings)
    report = {
        "model": profile.model_name,
        "model_hash": weight_hash(base),
        "n_steps": steps,
        "n_seeds": 1,
        "rate": profile.rate_full,
        "machine": machine_class(),
        "books": {},
    }
    for author, other in zip(AUTHORS, reversed(AUTHORS), strict=True):
        text = spread(tensor_of(windows(tokenizer, pages[author], profile.length)), N_WINDOWS)
        own, wrong, before = (held_out_loss(m, text) for m in (models[author], models[other], base))
        gap = wrong.per_window - own.per_window
        error = block_error(gap)
        report["books"][author] = {
            "n_windows": len(gap),
            "base": round(before.mean, 4),
            f"tuned_on_{author}": round(own.mean, 4),
            f"tuned_on_{other}": round(wrong.mean, 4),
            "difference": round(float(gap.mean()), 4),
            "standard_error": round(error, 4),
            "standard_errors": round(float(gap.mean()) / error, 1),
        }
    return report


def _is_record(place: Path) -> bool:
    """Whether a file is one that `write` wrote."""
    try:
        return {"books", "n_seeds"} <= read_json(place).keys()
    except (OSError, ValueError):
        return False


def write(alice: Path, edgar: Path, steps: int = 40, out: Path = WORK / "style.json") -> bool:
    """Compare on a real book of each author, print and keep what was found.

    Returns:
        Whether each difference is two standard errors or more.
    """
    if out.exists() and not _is_record(out):
        raise SystemExit(
            f"'{out}' is no record of this command: it is not overwritten. Choose another --out."
        )
    report = compare_on({"alice": alice, "edgar": edgar}, steps)
    for author, row in report["books"].items():
        print(f"{author}: " + ", ".join(f"{k} {v}" for k, v in row.items()))
    out.parent.mkdir(parents=True, exist_ok=True)
    write_json(out, report)
    return all(row["standard_errors"] >= 2 for row in report["books"].values())
