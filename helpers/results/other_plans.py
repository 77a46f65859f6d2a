"""Every plan without new matrices that the study ran on its first text: what each forgets and gains."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import fill

import numpy as np

from helpers import plots
from helpers.measuring import LESS, MORE, frontier
from helpers.results.answers import Answer, in_nats, markdown, of_runs
from helpers.results.claims import two_digits
from helpers.results.evidence import (
    AUTHORS,
    DECIDING,
    FULL,
    Evidence,
    Gap,
    Reading,
    forgetting_gap,
    gentlest,
    share_of_every_rate,
)
from helpers.results.notes import numbers

DESCRIBED = ("attention", "mlp", "first-half", "only-mlp-in", "only-mlp-alternate", "only-norms")
HEAD = (
    "text",
    "plan",
    "trained",
    "best gain, of full's",
    "read at, of full's best gain",
    "rates, plan / full",
    "forgot, plan / full",
    "plan minus full",
    "counts from",
    "in a word",
    "runs",
)


def every_plan(evidence: Evidence) -> Answer | None:
    """Forgetting at equal gain minus full training's, a row a plan; None where only the deciding plans were run.

    A plan with which no rate got to 80% has main runs at the rate that gains most. It is read in the tuning runs
    instead, where it and full training both have their gentlest rate.
    """
    text = AUTHORS[0]
    plans = [
        p
        for p in (*DECIDING[1:], *DESCRIBED)
        if evidence.of(p, text, "keep") and evidence.of(p, text, "learn")
    ]
    gaps = {p: forgetting_gap(evidence, p, FULL, text) for p in plans}
    compared = {
        p: gap
        for p, gap in gaps.items()
        if gap is not None and gap.interval.n_pairs > 1 and not gap.has_unlike_rates
    }
    if not compared or not set(plans) & set(DESCRIBED):
        return None
    runs = [r for p in (FULL, *compared) for r in evidence.of(p, text, "keep")]
    rows = {
        f"{p}, at {gap.share:.0%}": (gap.interval.mean, gap.interval.low, gap.interval.high)
        for p, gap in sorted(compared.items(), key=lambda item: item[1].interval.mean)
    }
    zones = [gap.smallest for _, gap in sorted(compared.items(), key=lambda item: item[1].interval.mean)]
    words = [gap.word for gap in compared.values()]
    title = fill(
        f"By enough to count, {words.count(LESS)} of {len(rows)} plans forgot less than full training at "
        f"equal gain, {words.count(MORE)} forgot more ({evidence.model}, {text})",
        width=70,
    )
    low = {p: readings(evidence, p, text) for p in plans if p not in compared}
    return of_runs(
        evidence,
        runs,
        [rows, zones],
        title=title,
        table=markdown(HEAD, table_rows(evidence, compared, low, text)),
        sentence=f"On {text}, forgetting at equal gain minus full training's: "
        + "; ".join(
            [
                *(in_words(p, gap) for p, gap in compared.items()),
                *(low_in_words(p, both) for p, both in low.items()),
            ]
        )
        + ".",
        alt=f"Differences in forgetting at equal gain to full training with 95% intervals for {len(rows)} plans; each "
        "row names the share of full training's best gain at which it was read",
        draw=lambda: plots.intervals(
            rows, title, "forgetting minus full training's at equal gain (nats per token)", zones
        ),
    )


def readings(evidence: Evidence, plan: str, text: str) -> tuple[float, Reading, Reading] | None:
    """The share of full's gain that both reach with every rate tried, and both at their gentlest rate there.

    None where no tuning runs of both were recorded, or one stays below 35%.
    """
    share = share_of_every_rate(evidence, (plan, FULL), text)
    return None if share is None else (share, *(gentlest(evidence, p, text, share) for p in (plan, FULL)))


def in_words(plan: str, gap: Gap) -> str:
    """What a plan forgot beside full training, in a word and in numbers."""
    return f"`{plan}` {gap.word}, {in_nats(gap.interval)}, at {gap.share:.0%} of full's gain"


def low_in_words(plan: str, found: tuple[float, Reading, Reading] | None) -> str:
    """A plan that no rate brought to 80%: both plans at their gentlest rate, in the tuning runs."""
    if found is None:
        return f"`{plan}` not comparable"
    share, own, full = found
    return (
        f"`{plan}`, which no rate brought to 80%, open: {two_digits(own.forgetting)} at its gentlest rate "
        f"{own.rate:g}, beside full training's {two_digits(full.forgetting)} at {full.rate:g}, at {share:.0%} of "
        f"full's gain ({runs_in_words(own)})"
    )


def runs_in_words(reading: Reading) -> str:
    return f"{reading.n_seeds} tuning run{'s' * (reading.n_seeds != 1)}, no interval"


def table_rows(evidence: Evidence, compared: dict[str, Gap], low: dict, text: str) -> list[Sequence[object]]:
    """A row a plan: those that were compared in pairs, then those that were read in the tuning runs."""
    rows = []
    for plan, gap in compared.items():
        rates = " / ".join("not known" if rate is None else f"{rate:g}" for rate in gap.rates)
        rows.append(
            [
                *beginning(evidence, plan, text),
                f"{gap.share:.0%}",
                rates,
                " / ".join(two_digits(f) for f in gap.forgotten),
                numbers(gap.interval),
                two_digits(gap.smallest),
                gap.word,
                f"{gap.interval.n_pairs} pairs",
            ]
        )
    for plan, found in low.items():
        if found is None:
            rows.append([*beginning(evidence, plan, text), *[""] * 5, "not comparable", ""])
            continue
        share, own, full = found
        rows.append(
            [
                *beginning(evidence, plan, text),
                f"{share:.0%}",
                f"{own.rate:g} / {full.rate:g}",
                f"{two_digits(own.forgetting)} / {two_digits(full.forgetting)}",
                two_digits(own.forgetting - full.forgetting, "+"),
                "",
                "open",
                runs_in_words(own),
            ]
        )
    return rows


def beginning(evidence: Evidence, plan: str, text: str) -> list[str]:
    """Text, plan, what it trains, and its best gain over full training's with the same seeds."""
    own, full = (
        {r["seed"]: frontier(r["evaluations"])[0][-1] for r in evidence.of(p, text, "learn")}
        for p in (plan, FULL)
    )
    both = sorted(own.keys() & full.keys())
    share = f"{np.mean([own[s] for s in both]) / np.mean([full[s] for s in both]):.0%}" if both else ""
    return [text, f"`{plan}`", f"{evidence.of(plan, text, 'keep')[0]['n_trainable']:,}", share]
