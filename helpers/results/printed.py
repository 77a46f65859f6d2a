"""Print the verdicts of the study from its recorded runs, and what stands beside them.

    course study verdicts                         every model that was studied
    course study verdicts --profile smollm2       one of them

These are the verdicts that README, results/ and notebook 05 show. The claims that no run is about (counts,
memory) come from the notebooks; publishing/readme.py puts both together.
"""

from __future__ import annotations

from pathlib import Path
from textwrap import fill

import numpy as np

from helpers import profiles
from helpers.files import counted
from helpers.measuring import overfitted_from
from helpers.results.cards import WIDTH, claim_cards
from helpers.results.claims import ClaimError, Entry
from helpers.results.evidence import (
    AUTHORS,
    BOOKS,
    DECIDING,
    EVIDENCE,
    Evidence,
    forgetting_gap,
    mean_style,
    reach,
    read_evidence,
    studied_models,
    swap_contrasts,
    text_name,
)
from helpers.results.verdicts import scoreboard

PAIRS = (
    ("attention+embeddings", "full"),
    ("attention", "full"),
    ("first-half", "full"),
    ("only-attention", "only-mlp-out"),
    ("only-attention", "only-mlp-in"),
    ("only-attention", "only-mlp-alternate"),
    ("lora-attention", "lora-mlp"),
)
MODELS = {name: p.model_name for name, p in profiles.STUDIED.items()}


def forgetting_lines(evidence: Evidence) -> list[str]:
    """D of each pair of plans on each text that both were run on."""
    lines = []
    for plan, other in PAIRS:
        for text in (*AUTHORS, *BOOKS):
            if not (evidence.of(plan, text, "keep") and evidence.of(other, text, "keep")):
                continue
            found = forgetting_gap(evidence, plan, other, text)
            said = (
                "not comparable"
                if found is None
                else (
                    f"{found.interval} at {found.share:.0%}, {found.word}"
                    + (" (unlike rates)" if found.has_unlike_rates else "")
                )
            )
            lines.append(f"{text_name(text)}: {plan} minus {other}: {said}")
    return lines


def style_lines(evidence: Evidence) -> list[str]:
    lines = [
        f"{plan}: S = {mean_style(evidence, plan):.3f} nats{small_words(evidence, plan)}"
        for plan in DECIDING
        if evidence.seeds(plan)
    ]
    return lines + [
        f"base with the change of {role} put in: S = {s:.3f} nats"
        for role, s in swap_contrasts(evidence).items()
    ]


def small_words(evidence: Evidence, plan: str) -> str:
    """Style contrast on function words and punctuation alone, where it was measured."""
    if not all(r.function_windows is not None for r in evidence.both(plan)):
        return ""
    return f", on small words {mean_style(evidence, plan, windows='function_windows'):.3f}"


def fitting_lines(evidence: Evidence) -> list[str]:
    """Reaching the level, over-fitting and learning by heart, by plan and text."""
    lines = []
    for plan in DECIDING:
        for text in AUTHORS:
            runs = evidence.of(plan, text, "learn")
            if not runs:
                continue
            n, of = reach(evidence, plan, text)
            ends = [overfitted_from(r.evaluations) for r in runs]
            best = np.median([r.best_step for r in runs])
            heart = [r.memorisation["best"] for r in runs if r.memorisation is not None]
            said = (
                (
                    f", by heart {np.mean([h.exact_train for h in heart]):.0%} of training prompts and "
                    f"{np.mean([h.exact_held_out for h in heart]):.0%} of held-out ones"
                )
                if heart
                else ""
            )
            lines.append(
                f"{text_name(text)}, {plan}: {n} of {of} runs reach the level; best dev loss after {best:.0f} steps, "
                f"over-fitted later in {sum(e is not None for e in ends)} of {len(ends)}{said}"
            )
    return lines


def show(profile: str | None = None, folder: Path = EVIDENCE) -> None:
    """Print the verdicts of every model that was studied, or of one.

    Raises:
        ClaimError: there are no records.
    """
    models = [m for m in studied_models(folder) if profile in (None, *(p for p in MODELS if MODELS[p] == m))]
    if not models:
        raise ClaimError(
            f"No recorded runs{f' of {MODELS.get(profile, profile)}' if profile else ''} in '{folder}'. "
            "Record them: course study first."
        )
    for model in models:
        evidence = read_evidence(model, folder)
        print(f"{model}, {counted(len(evidence.runs), 'run')}")
        claim_cards([Entry((verdict,)) for verdict in scoreboard(evidence)]).show(with_notes=True)
        for title, lines in (
            ("Forgetting at equal gain", forgetting_lines(evidence)),
            ("Style", style_lines(evidence)),
            ("Fitting", fitting_lines(evidence)),
        ):
            print(
                f"\n{title}\n"
                + "\n".join(
                    fill(f"  {line}", WIDTH, subsequent_indent="      ", break_on_hyphens=False)
                    for line in lines
                )
            )
