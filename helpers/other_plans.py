"""Every plan without new matrices that the study ran on its first text: what each forgets and gains."""

from __future__ import annotations

from textwrap import fill

import numpy as np

from helpers import plots
from helpers.answers import Answer, in_nats, of_runs
from helpers.comparison import frontier
from helpers.decisions import counts
from helpers.findings import AUTHORS, DECIDING, FULL, Evidence, forgetting_gap

DESCRIBED = ("attention", "mlp", "first-half", "only-mlp-in", "only-mlp-alternate", "only-norms")


def every_plan(evidence: Evidence) -> Answer | None:
    """Forgetting at equal gain minus full training's, a row a plan; None where only the deciding plans were run."""
    text = AUTHORS[0]
    plans = [p for p in (*DECIDING[1:], *DESCRIBED) if evidence.of(p, text, "keep") and evidence.of(p, text, "learn")]
    gaps = {p: forgetting_gap(evidence, p, FULL, text) for p in plans}
    compared = {p: gap for p, gap in gaps.items() if gap is not None and gap[0].n_pairs > 1}
    if not set(compared) & set(DESCRIBED):
        return None
    runs = [r for p in (FULL, *plans) for r in evidence.of(p, text, "keep")]
    rows = {f"{p}{star(evidence, p, text)}, at {share:.0%}": (gap.mean, gap.low, gap.high)
            for p, (gap, share) in sorted(compared.items(), key=lambda item: item[1][0].mean)}
    smallest = evidence.smallest(text)
    large = [gap.mean for gap, _ in compared.values() if counts(gap, smallest)]
    title = fill(f"By enough to count, {sum(d < 0 for d in large)} of {len(rows)} plans forgot less than full training "
                 f"at equal gain, {sum(d > 0 for d in large)} forgot more ({evidence.model}, {text})", width=70)
    return of_runs(
        evidence, runs, [rows, smallest], title=title,
        sentence=f"On {text}, the best gain as a share of full training's, and forgetting at equal gain minus full "
                 f"training's: {'; '.join(in_words(evidence, p, gaps[p], text) for p in plans)}.",
        alt=f"Differences in forgetting at equal gain to full training with 95% intervals for {len(rows)} plans; each "
            "row names the share of full training's best gain at which it was read",
        draw=lambda: plots.intervals(rows, title, "forgetting minus full training's at equal gain (nats a token)",
                                     smallest))


def in_words(evidence: Evidence, plan: str, gap: tuple | None, text: str) -> str:
    """What a plan trains, its best gain over full training's with the same seeds, and what it forgot beside it."""
    own, full = ({r["seed"]: frontier(r["evaluations"])[0][-1] for r in evidence.of(p, text, "learn")}
                 for p in (plan, FULL))
    both = sorted(own.keys() & full.keys())
    share = np.mean([own[s] for s in both]) / np.mean([full[s] for s in both]) if both else np.nan
    forgot = f"{in_nats(gap[0])}, at {gap[1]:.0%} of full's gain" if gap else "not comparable"
    n_trained = evidence.of(plan, text, "keep")[0]["n_trainable"]
    return f"`{plan}`{star(evidence, plan, text)} ({n_trained:,} trained) {share:.0%}, {forgot}"


def star(evidence: Evidence, plan: str, text: str) -> str:
    """A star where no rate of a plan got to the level: its runs have the rate that gains most."""
    return "" if evidence.at_level(plan, text) else "*"
