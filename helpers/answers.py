"""The questions of the study and their answers: one sentence and one figure each, computed from the records.

`scripts/write_results.py` makes the pages under results/ from them. A sentence never assumes a sign, a plan or a
number of seeds. An answer is None where nothing was recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from helpers import plots
from helpers.comparison import Interval, frontier, loss_difference
from helpers.decisions import counts, sign_depends
from helpers.findings import (
    AUTHORS,
    BOOKS,
    DECIDING,
    FULL,
    MAIN,
    REAL,
    Evidence,
    by_rate,
    forgetting_gap,
    full_gain,
    mean_style,
    share_of_style,
    style_findings,
    style_tests,
)
from helpers.scoreboard import scoreboard

LABELS = {FULL: "full training", MAIN: "main plan", "only-attention": "attention alone",
          "only-mlp-out": "MLP's output alone", "lora-attention": "LoRA on attention", "lora-mlp": "LoRA on the MLP"}


@dataclass(frozen=True)
class Answer:
    """What the records say to one question.

    Attributes:
        sentence: the answer.
        title: of the figure: the finding in short.
        alt: the figure in words.
        data: the numbers that the figure shows: mappings, sequences, numbers.
        draw: makes the figure.
        origin: model, seeds, machine, commit.
        protocol: hash of the protocol page that the runs followed; None where there is none.
    """

    sentence: str
    title: str
    alt: str
    data: Any
    draw: Callable
    origin: str
    protocol: str | None = None


def of_runs(evidence: Evidence, runs: Sequence[dict], data: Any, **parts) -> Answer:
    """An answer that rests on runs: says on which."""
    return Answer(data=data, origin=origin_of(evidence, runs), protocol=protocol_of(runs), **parts)


def protocol_of(runs: Sequence[dict]) -> str | None:
    """The hash of the page that all these runs followed; None where it was not one page."""
    protocols = {r.get("protocol") for r in runs}
    return protocols.pop() if len(protocols) == 1 else None


def origin_of(evidence: Evidence, runs: Sequence[dict]) -> str:
    """Which model, how many runs and seeds, on which machines, with which code."""
    seeds = sorted({r["seed"] for r in runs})
    commits = sorted({(r.get("commit") or "unknown")[:7] for r in runs})
    return (f"{evidence.model} (weights `{runs[0]['model_hash'][:12]}`), {len(runs)} runs, {len(seeds)} seed"
            f"{'s' * (len(seeds) != 1)} ({listed(seeds)}), on {', '.join(sorted({r['machine'] for r in runs}))}; "
            f"code at commit {', '.join(f'`{c}`' for c in commits)}.")


def listed(seeds: Sequence[int]) -> str:
    return f"{seeds[0]} to {seeds[-1]}" if len(seeds) > 2 and seeds[-1] - seeds[0] == len(seeds) - 1 else \
        ", ".join(map(str, seeds))


def verdict(evidence: Evidence, claim: str) -> str:
    """The verdict on a claim in a few words, for the end of a sentence."""
    found = {e["claim"]: e["verdict"] for e in scoreboard(evidence)}
    return f"{claim}: *{found[claim]}*" if claim in found else f"{claim} has no verdict yet"


def in_nats(interval: Interval) -> str:
    """As `str(interval)`, with the unit."""
    if interval.n_pairs < 2:
        return str(interval)
    return f"{interval.mean:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}] nats a token, {interval.n_pairs} pairs"


def share_in_words(ratio: Interval) -> str:
    """A ratio with its interval."""
    if ratio.n_pairs < 2:
        return f"{ratio.mean:.2f} (one pair: no interval over seeds)"
    return f"{ratio.mean:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]"


def between(low: float, high: float, form: str = "+.3f") -> str:
    return f"{low:{form}}" if f"{low:{form}}" == f"{high:{form}}" else f"{low:{form}} to {high:{form}}"


# --- forgetting --------------------------------------------------------------------


def forgetting(evidence: Evidence) -> Answer | None:
    """Forgetting against gain, by plan, and the difference that C10 is about."""
    return forgetting_on(evidence, AUTHORS, f" {verdict(evidence, 'C10')}.")


def forgetting_in_one_pass(evidence: Evidence) -> Answer | None:
    """The same where no window of the text was read twice, so that nothing could be learned by heart."""
    runs = [r for text in BOOKS for plan in (MAIN, FULL) for r in evidence.of(plan, text, "keep")]
    most = max((r["steps_taken"] * r["batch"] / r["n_train_windows"] for r in runs), default=0.0)
    return forgetting_on(evidence, BOOKS, f" A run read at most {most:.0%} of its text's windows.")


def forgetting_on(evidence: Evidence, some_texts: Sequence[str], ending: str) -> Answer | None:
    """Forgetting against gain on those of the texts that both plans were run on."""
    texts = [t for t in some_texts if evidence.of(MAIN, t, "keep") and evidence.of(FULL, t, "keep")]
    if not texts:
        return None
    runs = {t: {p: evidence.of(p, t, "keep") for p in DECIDING if evidence.of(p, t, "keep")} for t in texts}
    paths = {t: {LABELS[p]: [frontier(r["evaluations"]) for r in plans.get(p, ())] for p in DECIDING}
             for t, plans in runs.items()}
    gaps = {t: forgetting_gap(evidence, MAIN, FULL, t) for t in texts}
    levels = {t: gap[1] * full_gain(evidence, t) for t, gap in gaps.items() if gap}
    short = ", ".join(f"{t} {gap[0].mean:+.3f}" if gap else f"{t} not comparable" for t, gap in gaps.items())
    title = (f"Forgetting at equal gain, main plan minus full training: {short} nats a token\n"
             f"({evidence.model}, each plan at its own rate)")
    sentence = "; ".join(gap_in_words(t, gap, evidence.smallest(t)) for t, gap in gaps.items())
    return of_runs(
        evidence, [r for plans in runs.values() for own in plans.values() for r in own], [paths, levels], title=title,
        sentence=f"At equal gain, {sentence}.{ending}",
        alt=f"Forgetting against gain for {max(map(len, runs.values()))} plans on {' and '.join(texts)}, one line a "
            "run; the dashed line marks the gain at which the plans are compared",
        draw=lambda: plots.lines_of_runs(paths, title, levels))


def gap_in_words(text: str, gap: tuple[Interval, float] | None, smallest: float) -> str:
    """The difference in forgetting on one text; one below ``smallest`` is said to be too small to count."""
    if gap is None:
        return f"on {text} the main plan and full training are not comparable (a run stays below 35% of full's gain)"
    found, share = gap
    word = "less" if found.high < 0 else "more" if found.low > 0 else None
    words = f"the main plan forgot {word} than full training" if word else "the two plans are not told apart"
    if word and not counts(found, smallest):
        words += f", by too little to count (less than {smallest:.3f})"
    return f"on {text} {words}: {in_nats(found)}, at {share:.0%} of full training's best gain"


def rates(evidence: Evidence) -> Answer | None:
    """Forgetting at the level by rate, from the tuning runs."""
    panels = {t: {LABELS[p]: evidence.at_level(p, t) for p in DECIDING} for t in AUTHORS}
    if not all(plans[LABELS[FULL]] for plans in panels.values()):
        return None
    at_one_rate = {t: by_rate(evidence, MAIN, FULL, t) for t in AUTHORS}
    by_the_rate = max(np.ptp(list(plans[LABELS[FULL]].values())) for plans in panels.values())
    by_the_plan = [abs(d) for own in at_one_rate.values() for d in own.values()]
    title = (f"At equal gain the rate moves full training's forgetting by up to {by_the_rate:.3f} nats a token"
             + (f",\nthe main plan at one common rate by up to {max(by_the_plan):.3f}" if by_the_plan else "")
             + f" ({evidence.model})")
    seeds = evidence.rates.get("seeds") or [evidence.rates["seed"]]
    origin = f"{evidence.model}, tuning runs with seed{'s' * (len(seeds) != 1)} {listed(seeds)}, used for nothing else."
    return Answer(
        sentence=f"At equal gain, {'; '.join(rates_in_words(evidence, t, panels[t]) for t in AUTHORS)}.",
        title=title, data=panels, origin=origin, protocol=evidence.rates.get("protocol"),
        alt="Forgetting at one gain against the learning rate, one line a plan, one panel a text",
        draw=lambda: plots.forgetting_over_rates(panels, title))


def rates_in_words(evidence: Evidence, text: str, plans: Mapping[str, Mapping[float, float]]) -> str:
    full, at_one_rate = plans[LABELS[FULL]], by_rate(evidence, MAIN, FULL, text)
    words = f"on {text} full training forgot {between(min(full.values()), max(full.values()), '.3f')} nats a token, "
    if not at_one_rate:
        return f"{words}by the rate alone; at no common rate do both plans get that far"
    turns = sign_depends(at_one_rate, evidence.smallest(text))
    listed_gaps = ", ".join(f"{d:+.3f} at {rate:g}" for rate, d in at_one_rate.items())
    return (f"{words}by the rate alone, and the main plan minus full training is {listed_gaps}"
            + (": the sign turns" if turns else ""))


# --- quality and style -------------------------------------------------------------


def quality(evidence: Evidence) -> Answer | None:
    """Test loss of each plan minus full training's, in pairs."""
    tests = [(t, on) for t in AUTHORS for on in (t, *([REAL[t]] if evidence.has_real_authors else []))]
    found = {(p, t, on): loss_difference(evidence.of(p, t, "learn"), evidence.of(FULL, t, "learn"), on)
             for p in DECIDING[1:] for t, on in tests if evidence.seeds(p, FULL, texts=[t])}
    main = [i for (p, _, _), i in found.items() if p == MAIN]
    if not main:
        return None
    rows = {f"{LABELS[p]}, {t}" + (f" (test: {on})" if on != t else ""): (i.mean, i.low, i.high)
            for (p, t, on), i in found.items()}
    spans = {LABELS[p]: between(*(f(i.mean for (q, _, _), i in found.items() if q == p) for f in (min, max)))
             for p in dict.fromkeys(p for p, _, _ in found)}
    title = (f"Test loss of the main plan minus full training's: {spans[LABELS[MAIN]]} nats a token\n"
             f"({evidence.model}, {main[0].n_pairs} pairs, each plan at its own rate)")
    return of_runs(
        evidence, [r for p in DECIDING for r in evidence.both(p)], rows, title=title,
        sentence=f"Test loss minus full training's, over {len(main)} test{'s' * (len(main) != 1)}: "
                 + "; ".join(f"{label} {span}" for label, span in spans.items())
                 + f" nats a token. {verdict(evidence, 'C13')}.",
        alt="Differences in test loss to full training with 95% intervals, a row for each plan and test; the grey "
            "zone is too small to count",
        draw=lambda: plots.intervals(rows, title, "test loss minus full training's (nats a token)", 0.02))


def style(evidence: Evidence) -> Answer | None:
    """Author x author: the loss of each tuned model on each author's text."""
    plans = {p: evidence.seeds(p) for p in DECIDING if evidence.seeds(p)}
    if not evidence.seeds(MAIN, FULL):
        return None
    tests = [*AUTHORS, *(REAL.values() if evidence.has_real_authors else ())]
    table = pd.DataFrame({f"{LABELS[p]}, tuned on {a}": {
        t: np.mean([np.mean(r["test_windows"][t]) for r in evidence.of(p, a, "learn") if r["seed"] in seeds])
        for t in tests} for p, seeds in plans.items() for a in AUTHORS}).T
    on, options = list(style_tests(evidence).items())[-1]
    contrast = {LABELS[p]: mean_style(evidence, p, **options) for p in plans}
    share = share_of_style(evidence)
    at_equal_size = "; ".join(f"{in_nats(f.interval)} on {f.test or 'both texts'}" for f in style_findings(evidence))
    title = (f"Style contrast: main plan {contrast[LABELS[MAIN]]:.3f}, full training {contrast[LABELS[FULL]]:.3f}\n"
             f"({evidence.model}, {len(plans[MAIN])} seeds; colours compare inside a column)")
    return of_runs(
        evidence, [r for p in plans for r in evidence.both(p)], table.to_dict(), title=title,
        sentence=f"On {on} the main plan has {share_in_words(share.interval)} of full training's style contrast; MLP's "
                 f"output minus attention: {at_equal_size}. {verdict(evidence, 'C14')}.",
        alt=f"Mean test loss of {len(table)} tuned models on {len(tests)} texts",
        draw=lambda: plots.matrix(table, title, "tested on (loss, nats a token)", "", by_column=True))
