"""Print the verdicts of the study from its recorded runs, and what stands beside them.

    python scripts/print_scoreboard.py                         the miniature
    python scripts/print_scoreboard.py --profile smollm2
    python scripts/print_scoreboard.py --write                 also data/evidence/scoreboard-PROFILE.json

The claims that no run is about (counts, memory, time) come from the notebooks; see scripts/refresh_readme.py.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

from helpers import profiles
from helpers.checkpoints import write_json
from helpers.comparison import style_contrasts
from helpers.decisions import overfitted_from
from helpers.scoreboard import (
    AUTHORS,
    Evidence,
    forgetting_gap,
    reach,
    read_evidence,
    scoreboard,
    scoreboard_table,
    style_on_small_words,
    swap_contrasts,
)

PAIRS = (("attention+embeddings", "full"), ("only-attention", "only-mlp-out"), ("only-attention", "only-mlp-in"),
         ("only-attention", "only-mlp-alternate"), ("lora-attention", "lora-mlp"))
PLANS = ("full", "attention+embeddings", "only-attention", "only-mlp-out")


def forgetting_lines(evidence: Evidence) -> list[str]:
    """D of each pair of plans on each text that both were run on."""
    lines = []
    for plan, other in PAIRS:
        for text in (*AUTHORS, "poe", "fresh"):
            if text not in evidence.rates["matched_gain"] or not (evidence.of(plan, text, "keep")
                                                                  and evidence.of(other, text, "keep")):
                continue
            found = forgetting_gap(evidence, plan, other, text)
            said = "not comparable" if found is None else f"{found[0]} at {found[1]:.0%}"
            lines.append(f"{text}: {plan} minus {other}: {said}")
    return lines


def style_lines(evidence: Evidence) -> list[str]:
    lines = [f"{plan}: S = {np.mean(list(style_contrasts(evidence.both(plan)).values())):.3f} nats, on small words "
             f"{style_on_small_words(evidence, plan):.3f}" for plan in PLANS if evidence.both(plan)]
    return lines + [f"base with the change of {role} put in: S = {s:.3f} nats"
                    for role, s in swap_contrasts(evidence).items()]


def fitting_lines(evidence: Evidence) -> list[str]:
    """Reaching the level, over-fitting and learning by heart, by plan and text."""
    lines = []
    for plan in PLANS:
        for text in AUTHORS:
            runs = evidence.of(plan, text, "learn")
            if not runs:
                continue
            n, of = reach(evidence, plan, text)
            ends = [overfitted_from(r["evaluations"]) for r in runs]
            best = np.median([r["best_step"] for r in runs])
            heart = [r["memorisation"]["best"] for r in runs if "memorisation" in r]
            said = (f", by heart {np.mean([h['exact_train'] for h in heart]):.0%} of training prompts and "
                    f"{np.mean([h['exact_held_out'] for h in heart]):.0%} of held-out ones") if heart else ""
            lines.append(f"{text}, {plan}: {n} of {of} runs reach the level; best dev loss after {best:.0f} steps, "
                         f"over-fitted later in {sum(e is not None for e in ends)} of {len(ends)}{said}")
    return lines


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", default="tiny")
    parser.add_argument("--folder", type=Path, default=profiles.DATA / "evidence")
    parser.add_argument("--write", action="store_true", help="write the verdicts beside the runs")
    args = parser.parse_args(arguments)
    rates = "rates.json" if args.profile == "tiny" else f"rates-{args.profile}.json"
    model = profiles.current(args.profile).model_name
    if not (args.folder / "runs" / model).is_dir():
        raise SystemExit(f"No recorded runs of '{model}' in '{args.folder}'. Record them: make evidence.")
    evidence = read_evidence(model, args.folder, rates)
    entries = scoreboard(evidence)
    print(scoreboard_table(entries))
    for title, lines in (("Forgetting at equal gain", forgetting_lines(evidence)), ("Style", style_lines(evidence)),
                         ("Fitting", fitting_lines(evidence))):
        print(f"\n{title}\n" + "\n".join(f"  {line}" for line in lines))
    if args.write:
        write_json(args.folder / f"scoreboard-{args.profile}.json", entries)
    return 0


if __name__ == "__main__":
    sys.exit(main())
