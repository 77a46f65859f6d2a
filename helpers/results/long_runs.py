"""The long runs of the study: does the loss settle? Their answer for results/."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from helpers import plots
from helpers.measuring import curve, n_levelled
from helpers.results.answers import LABELS, STYLES, Answer, of_runs, verdict
from helpers.results.evidence import AUTHORS, FULL, MAIN, Evidence

KINDS = {"training probe": "train_loss", "dev text": "held_out_loss"}


def convergence(evidence: Evidence) -> Answer | None:
    """The loss of the long runs on the training probe and on the dev text, step by step."""
    runs = {(t, p): own for t in AUTHORS for p in (FULL, MAIN) if (own := evidence.of(p, t, "long"))}
    if not runs:
        return None
    every = [r for own in runs.values() for r in own]
    plans, n_steps = dict.fromkeys(p for _, p in runs), max(r["steps_taken"] for r in every)
    words = "; ".join(in_words(p, [r for (_, q), own in runs.items() if q == p for r in own]) for p in plans)
    paths = {
        t: {
            f"{LABELS[p]}, {kind}": [curve(r, key) for r in own]
            for (u, p), own in runs.items()
            if u == t
            for kind, key in KINDS.items()
        }
        for t, _ in runs
    }
    styles = {
        f"{LABELS[p]}, {kind}": STYLES[LABELS[p]] | {"linestyle": line}
        for p in plans
        for kind, line in zip(KINDS, ("-", ":"), strict=True)
    }
    best = np.median([r["best_step"] for r in every])
    title = (
        f"Within {n_steps} steps: the dev loss is least after {best:.0f} steps (median of {len(every)} runs)\n"
        f"({evidence.model}, a constant rate, nothing stopped early)"
    )
    return of_runs(
        evidence,
        every,
        paths,
        title=title,
        sentence=f"Within {n_steps} steps, {words}. {verdict(evidence, 'C8')}.",
        alt=f"Loss on the training probe and on the dev text over {n_steps} steps, one line a run and kind of text",
        draw=lambda: plots.lines_of_runs(paths, title, {}, "step", "loss (nats per token)", styles),
    )


def in_words(plan: str, runs: Sequence[dict]) -> str:
    dev = [curve(r, KINDS["dev text"])[1] for r in runs]
    rise = np.mean([losses[-1] - min(losses) for losses in dev])
    return (
        f"{LABELS[plan]}: the loss on the training probe levelled off in {n_levelled(runs)} of {len(runs)} runs, "
        f"and the dev loss ended {rise:.3f} nats per token above its least (mean)"
    )
