"""One answer over all models that were studied: does the difference between two plans belong to the plans alone?"""

from __future__ import annotations

from pathlib import Path

from helpers import plots
from helpers.answers import Answer, gap_in_words, origin_of, protocol_of
from helpers.findings import AUTHORS, EVIDENCE, FULL, MAIN, forgetting_gap, read_evidence, studied_models

SIDES = ("no interval leaves out zero", "the intervals that leave out zero lie on one side of it",
         "intervals lie on both sides of zero")


def forgetting_by_model(folder: Path = EVIDENCE) -> Answer | None:
    """The main plan's forgetting at equal gain minus full training's, on every model; None for fewer than two."""
    found, runs, origins = {}, [], []
    for model in studied_models(folder):
        evidence = read_evidence(model, folder)
        gaps = {t: gap for t in AUTHORS if (gap := forgetting_gap(evidence, MAIN, FULL, t)) and gap[0].n_pairs > 1}
        if gaps:
            found[model] = gaps
            own = [r for plan in (MAIN, FULL) for t in gaps for r in evidence.of(plan, t, "keep")]
            origins.append(origin_of(evidence, own))
            runs += own
    if len(found) < 2:
        return None
    rows = {f"{model},\n{text}": (i.mean, i.low, i.high) for model, gaps in found.items()
            for text, (i, _) in gaps.items()}
    says = SIDES[len({low > 0 for _, low, high in rows.values() if low > 0 or high < 0})]
    title = f"Forgetting, main plan minus full training, on {len(found)} models: {says}"
    words = ". ".join(f"**{model}**: {'; '.join(gap_in_words(t, gap) for t, gap in gaps.items())}"
                      for model, gaps in found.items())
    return Answer(
        sentence=f"Over {len(found)} models, {says}. {words}.", title=title, data=rows,
        alt=f"{len(rows)} differences in forgetting at equal gain with 95% intervals, a row for each model and text",
        draw=lambda: plots.intervals(rows, title, "difference in forgetting at equal gain (nats a token)"),
        origin=" ".join(origins), protocol=protocol_of(runs))
