"""Answers that set plans beside each other: every plan, LoRA, the same over all models, and in long runs.

As `helpers.results.answers`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill

import numpy as np
import pandas as pd

from helpers import plots
from helpers.files import counted
from helpers.measuring import LESS, MORE, Interval, RunRecord, curve, forgetting_at, frontier, n_levelled
from helpers.results.answers import (
    LABELS,
    STYLES,
    Answer,
    gap_in_words,
    in_nats,
    markdown,
    of_runs,
    origin_of,
    protocol_of,
    rate_in_words,
    verdict,
)
from helpers.results.claims import two_digits
from helpers.results.evidence import (
    AUTHORS,
    DECIDING,
    EVIDENCE,
    FULL,
    MAIN,
    Evidence,
    Gap,
    Reading,
    forgetting_gap,
    full_gain,
    gentlest,
    rate_of,
    read_evidence,
    share_of_every_rate,
    studied_models,
    text_name,
    tuning_runs,
)
from helpers.results.verdicts import numbers

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
        f"equal gain, {words.count(MORE)} forgot more ({evidence.model}, {text_name(text)})",
        width=70,
    )
    low = {p: readings(evidence, p, text) for p in plans if p not in compared}
    return of_runs(
        evidence,
        runs,
        [rows, zones],
        title=title,
        table=markdown(HEAD, table_rows(evidence, compared, low, text)),
        sentence=f"On {text_name(text)}, forgetting at equal gain minus full training's: "
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
    return f"{counted(reading.n_seeds, 'tuning run')}, no interval"


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
                counted(gap.interval.n_pairs, "pair"),
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
        {r.seed: frontier(r.evaluations)[0][-1] for r in evidence.of(p, text, "learn")} for p in (plan, FULL)
    )
    both = sorted(own.keys() & full.keys())
    share = f"{np.mean([own[s] for s in both]) / np.mean([full[s] for s in both]):.0%}" if both else ""
    return [text_name(text), f"`{plan}`", f"{evidence.of(plan, text, 'keep')[0].n_trainable:,}", share]


# --- LoRA ---------------------------------------------------------------------------

LORA = ("lora-attention", "lora-mlp")
SET_BESIDE = (FULL, MAIN, "only-attention", *LORA)


def lora_table(evidence: Evidence, text: str = AUTHORS[0]) -> pd.DataFrame | None:
    """LoRA beside plans without new matrices: trained numbers, best gain, and forgetting at a gain that all reach.

    The best gain is that of the rate that gains most, over the seeds that all these plans have. Forgetting is read in
    the tuning runs, where each plan has its gentlest rate: at the highest share of full training's best gain that all
    these plans reach with every rate tried. None where LoRA was not studied, or no such share is there.
    """
    learned, read = learned_runs(evidence, text), lora_readings(evidence, text)
    if read is None or not set(SET_BESIDE) <= set(learned):
        return None
    share, by_plan = read
    return pd.DataFrame.from_dict(
        {
            LABELS[p]: {
                "trained": learned[p][0].n_trainable,
                "seeds": len(learned[p]),
                "best gain": np.mean([frontier(r.evaluations)[0][-1] for r in learned[p]]),
                "at rate": rate_of(learned[p]),
                "compared at gain": share * full_gain(evidence, text),
                "share of full's best": share,
                "forgetting": reading.forgetting,
                "at gentlest rate": reading.rate,
                "tuning runs": reading.n_seeds,
            }
            for p, reading in by_plan.items()
        },
        orient="index",
    )


def forgetting_by_rate(evidence: Evidence, text: str = AUTHORS[0]) -> pd.DataFrame | None:
    """Forgetting at the equal gain of `lora_table`, a row a plan and a column a rate: the mean of its tuning runs.

    NaN where a plan was not tried at a rate. None where `lora_table` is none.
    """
    read = lora_readings(evidence, text)
    if read is None:
        return None
    level = read[0] * full_gain(evidence, text)
    rows = {}
    for plan in SET_BESIDE:
        by_rate: dict[float, list[float]] = {}
        for run in tuning_runs(evidence, plan, text):
            by_rate.setdefault(run.rate, []).append(forgetting_at(run.evaluations, level))
        rows[LABELS[plan]] = {rate: np.mean(found) for rate, found in by_rate.items()}
    return pd.DataFrame.from_dict(rows, orient="index").sort_index(axis="columns")


def lora_readings(evidence: Evidence, text: str) -> tuple[float, dict[str, Reading]] | None:
    """The share at which all plans are read, and each plan at its gentlest rate there."""
    share = share_of_every_rate(evidence, SET_BESIDE, text)
    return None if share is None else (share, {p: gentlest(evidence, p, text, share) for p in SET_BESIDE})


def learned_runs(evidence: Evidence, text: str) -> dict[str, list[RunRecord]]:
    """The runs at the rate that gains most, with the seeds that all plans have; none of a plan without runs."""
    runs = {p: own for p in SET_BESIDE if (own := evidence.of(p, text, "learn"))}
    seeds = evidence.seeds(*runs, choice="learn", texts=[text])
    return {p: [r for r in own if r.seed in seeds] for p, own in runs.items()} if seeds else {}


def lora(evidence: Evidence) -> Answer | None:
    """LoRA against partial fine-tuning on the first text, where both were studied."""
    text, table = AUTHORS[0], lora_table(evidence)
    name = text_name(text)
    if table is None:
        return None
    share, by_plan = lora_readings(evidence, text)
    level = share * full_gain(evidence, text)
    paths = {LABELS[p]: [frontier(r.evaluations) for r in reading.runs] for p, reading in by_plan.items()}
    words = "; ".join(
        f"{label} {two_digits(row['forgetting'])} at {row['at gentlest rate']:g}, best gain "
        f"{two_digits(row['best gain'])}"
        for label, row in table.iterrows()
    )
    forgot = ", ".join(f"{label} {two_digits(value)}" for label, value in table["forgetting"].items())
    n_runs = sorted({int(n) for n in table["tuning runs"]})
    # the picture has one panel
    title = fill(
        f"Forgotten at {share:.0%} of full training's best gain, on {name}, nats per token: {forgot} "
        f"({evidence.model}, {' or '.join(map(str, n_runs))} tuning run{'s' * (n_runs != [1])} each)",
        width=58,
    )
    rows = [
        [
            name,
            label,
            f"{int(row['trained']):,}",
            two_digits(row["best gain"]),
            rate_in_words(row["at rate"]),
            int(row["seeds"]),
            two_digits(row["forgetting"]),
            f"{row['at gentlest rate']:g}",
            int(row["tuning runs"]),
        ]
        for label, row in table.iterrows()
    ]
    return of_runs(
        evidence,
        [r for reading in by_plan.values() for r in reading.runs],
        [paths, level],
        title=title,
        sentence=f"On {name}, forgetting in nats per token at an equal gain of {two_digits(level)} ({share:.0%} of full "
        f"training's best), each plan at its gentlest rate, in the tuning runs: {words}.",
        table=markdown(
            [
                "text",
                "plan",
                "trained",
                "best gain",
                "at rate",
                "seeds",
                f"forgetting at {share:.0%}",
                "at its gentlest rate",
                "tuning runs",
            ],
            rows,
        ),
        alt=f"Forgetting against gain on {name} for LoRA and for plans without new matrices, each at its gentlest "
        "rate, one line a run",
        draw=lambda: plots.lines_of_runs({name: paths}, title, {name: level}, styles=STYLES),
    )


# --- over all models ----------------------------------------------------------------


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
        f"{model},\n{text_name(text)}": (gap.interval.mean, gap.interval.low, gap.interval.high)
        for model, gaps in found.items()
        for text, gap in gaps.items()
    }
    says = sides({model: [gap.interval for gap in gaps.values()] for model, gaps in found.items()})
    n_large = sum(gap.word in (LESS, MORE) for gaps in found.values() for gap in gaps.values())
    large = f"{n_large} of {len(rows)} differences {'is' if n_large == 1 else 'are'} clear and large enough to count"
    title = f"Forgetting, main plan minus full training:\n{says};\n{large}"
    return Answer(
        sentence=f"Main plan minus full training, {counted(len(found), 'model')}: {says}; {large}. {'. '.join(words)}.",
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


# --- long runs ----------------------------------------------------------------------

KINDS = {"training probe": "train_loss", "dev text": "held_out_loss"}


def convergence(evidence: Evidence) -> Answer | None:
    """The loss of the long runs on the training probe and on the dev text, step by step."""
    runs = {(t, p): own for t in AUTHORS for p in (FULL, MAIN) if (own := evidence.of(p, t, "long"))}
    if not runs:
        return None
    every = [r for own in runs.values() for r in own]
    plans, n_steps = dict.fromkeys(p for _, p in runs), max(r.steps_taken for r in every)
    words = "; ".join(
        long_in_words(p, [r for (_, q), own in runs.items() if q == p for r in own]) for p in plans
    )
    paths = {
        text_name(t): {
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
    best = np.median([r.best_step for r in every])
    title = (
        f"Within {n_steps} steps: the dev loss is least after {best:.0f} steps (median of {counted(len(every), 'run')})\n"
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


def long_in_words(plan: str, runs: Sequence[RunRecord]) -> str:
    dev = [curve(r, KINDS["dev text"])[1] for r in runs]
    rise = np.mean([losses[-1] - min(losses) for losses in dev])
    return (
        f"{LABELS[plan]}: the loss on the training probe levelled off in {n_levelled(runs)} of {len(runs)} runs, "
        f"and the dev loss ended {rise:.3f} nats per token above its least (mean)"
    )
