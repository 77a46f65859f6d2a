"""One answer over all models that were studied: does the difference between two plans belong to the plans alone?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from helpers import plots
from helpers.measuring import LESS, MORE, Interval
from helpers.results.answers import Answer, gap_in_words, origin_of, protocol_of
from helpers.results.evidence import (
    AUTHORS,
    EVIDENCE,
    FULL,
    MAIN,
    forgetting_gap,
    read_evidence,
    studied_models,
)


def forgetting_by_model(folder: Path = EVIDENCE) -> Answer | None:
    """The main plan's forgetting at equal gain minus full training's, on every model; None for fewer than two."""
    found, runs, origins, zones, words = {}, [], [], [], []
    for model in studied_models(folder):
        evidence = read_evidence(model, folder)
        gaps = {
            t: gap
            for t in AUTHORS
            if (gap := forgetting_gap(evidence, MAIN, FULL, t)) and gap.interval.n_pairs > 1
        }
        if gaps:
            found[model] = gaps
            own = [r for plan in (MAIN, FULL) for t in gaps for r in evidence.of(plan, t, "keep")]
            origins.append(origin_of(evidence, own))
            runs += own
            zones += [gap.smallest for gap in gaps.values()]
            words.append(f"**{model}**: {'; '.join(gap_in_words(t, gap) for t, gap in gaps.items())}")
    if len(found) < 2:
        return None
    rows = {
        f"{model},\n{text}": (gap.interval.mean, gap.interval.low, gap.interval.high)
        for model, gaps in found.items()
        for text, gap in gaps.items()
    }
    says = sides({model: [gap.interval for gap in gaps.values()] for model, gaps in found.items()})
    n_large = sum(gap.word in (LESS, MORE) for gaps in found.values() for gap in gaps.values())
    large = f"{n_large} of {len(rows)} differences {'is' if n_large == 1 else 'are'} clear and large enough to count"
    title = f"Forgetting, main plan minus full training:\n{says};\n{large}"
    return Answer(
        sentence=f"Main plan minus full training, {len(found)} models: {says}; {large}. {'. '.join(words)}.",
        title=title,
        data=[rows, zones],
        alt=f"{len(rows)} differences in forgetting at equal gain with 95% intervals, a row for each model and text",
        draw=lambda: plots.intervals(
            rows, title, "difference in forgetting at equal gain (nats per token)", zones
        ),
        origin=" ".join(origins),
        protocol=protocol_of(runs),
    )


def sides(found: Mapping[str, Sequence[Interval]]) -> str:
    """On which models intervals lie above zero, and on which below."""
    where = {
        "above": [m for m, own in found.items() if any(i.low > 0 for i in own)],
        "below": [m for m, own in found.items() if any(i.high < 0 for i in own)],
    }
    words = [f"{side} zero on {' and '.join(models)}" for side, models in where.items() if models]
    return ", ".join(words) or "no interval leaves out zero"
