"""The questions of the study and their answers: one sentence and one figure each, computed from the records.

`helpers/results/pages.py` makes the page of results from them. A sentence never assumes a sign, a plan or a
number of seeds. An answer is None where nothing was recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from helpers import plots
from helpers.files import counted
from helpers.freezing import PLANS
from helpers.measuring import (
    DEPENDS,
    EQUAL_SHARE,
    LESS,
    MORE,
    SAME,
    UNTESTED,
    Interval,
    RunRecord,
    frontier,
    gain_share,
    sign_depends,
)
from helpers.results.claims import two_digits
from helpers.results.evidence import (
    AUTHORS,
    BOOKS,
    DECIDING,
    FULL,
    MAIN,
    NO_DEV_WINDOWS,
    REAL,
    Evidence,
    Gap,
    by_rate,
    first_rule,
    forgetting_gap,
    full_gain,
    mean_style,
    quality_finding,
    share_of_style,
    style_findings,
    style_tests,
    tests_of,
    text_name,
)
from helpers.results.verdicts import numbers, said, scoreboard
from helpers.session import machine_in_words

LABELS = {key: named.label for key, named in PLANS.items()}
STYLES = {named.label: {"color": named.colour} for named in PLANS.values()}  # of a plan's lines in a figure


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
        page: that page's name.
        table: the numbers behind the sentence, in Markdown; empty where the sentence holds them all.
        rules: what to do, each in a sentence with its numbers; they stand under the figure.
        about_rules: how their numbers are read.
    """

    sentence: str
    title: str
    alt: str
    data: Any
    draw: Callable
    origin: str
    protocol: str | None = None
    page: str = "PROTOCOL.md"
    table: str = ""
    rules: tuple[str, ...] = ()
    about_rules: str = ""


def of_runs(evidence: Evidence, runs: Sequence[RunRecord], data: Any, **parts) -> Answer:
    """An answer that rests on runs: says on which."""
    return Answer(data=data, origin=origin_of(evidence, runs), protocol=protocol_of(runs), **parts)


def protocol_of(runs: Sequence[RunRecord]) -> str | None:
    """The hash of the page that all these runs followed; None where it was not one page."""
    protocols = {r.protocol for r in runs}
    return protocols.pop() if len(protocols) == 1 else None


def origin_of(evidence: Evidence, runs: Sequence[RunRecord]) -> str:
    """Which model, how many runs and seeds, on which machines, with which code."""
    seeds = sorted({r.seed for r in runs})
    commits = sorted({(r.commit or "unknown")[:7] for r in runs})
    return (
        f"{evidence.model} (weights `{runs[0].model_hash[:12]}`), {counted(len(runs), 'run')}, "
        f"{counted(len(seeds), 'seed')} ({listed(seeds)}), on {machines(runs)}; "
        f"code at commit {', '.join(f'`{c}`' for c in commits)}."
    )


def machines(runs: Sequence) -> str:
    """On which kinds of machine runs were made."""
    return ", ".join(sorted({machine_in_words(r.machine) for r in runs}))


def listed(seeds: Sequence[int]) -> str:
    return (
        f"{seeds[0]} to {seeds[-1]}"
        if len(seeds) > 2 and seeds[-1] - seeds[0] == len(seeds) - 1
        else ", ".join(map(str, seeds))
    )


def verdict(evidence: Evidence, claim: str) -> str:
    """The verdicts on a claim in a few words, for the end of a sentence; each part has its own."""
    found = [
        f"*{v.verdict}*" + (f" ({v.part})" if v.part else "")
        for v in scoreboard(evidence)
        if v.claim == claim
    ]
    return f"{claim}: {', '.join(found)}" if found else f"{claim} has no verdict yet"


def in_nats(interval: Interval) -> str:
    """An interval with two digits, the unit and the number of pairs."""
    if interval.n_pairs < 2:
        return numbers(interval)
    return f"{numbers(interval)} nats per token, {interval.n_pairs} pairs"


def between(low: float, high: float, sign: str = "+") -> str:
    """Two numbers as a range; one number where they round to the same."""
    ends = dict.fromkeys((two_digits(low, sign), two_digits(high, sign)))
    return " to ".join(ends)


def markdown(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def rate_in_words(rate: float | None) -> str:
    """A learning rate; one that is not known has none."""
    return "not known" if rate is None else f"{rate:g}"


# --- forgetting --------------------------------------------------------------------


def forgetting(evidence: Evidence) -> Answer | None:
    """Forgetting against gain, by plan, and the difference that C10 is about."""
    return forgetting_on(evidence, AUTHORS, f" {verdict(evidence, 'C10')}.")


def forgetting_in_one_pass(evidence: Evidence) -> Answer | None:
    """The same where no window of the text was read twice, so that nothing could be learned by heart."""
    runs = [r for text in BOOKS for plan in (MAIN, FULL) for r in evidence.of(plan, text, "keep")]
    most = max((r.steps_taken * r.batch / r.n_train_windows for r in runs), default=0.0)
    return forgetting_on(evidence, BOOKS, f" A run read at most {most:.0%} of its text's windows.")


def forgetting_on(evidence: Evidence, some_texts: Sequence[str], ending: str) -> Answer | None:
    """Forgetting against gain on those of the texts that both plans were run on."""
    texts = [t for t in some_texts if evidence.of(MAIN, t, "keep") and evidence.of(FULL, t, "keep")]
    if not texts:
        return None
    runs = {t: {p: evidence.of(p, t, "keep") for p in DECIDING if evidence.of(p, t, "keep")} for t in texts}
    paths = {
        text_name(t): {LABELS[p]: [frontier(r.evaluations) for r in plans.get(p, ())] for p in DECIDING}
        for t, plans in runs.items()
    }
    gaps = {t: forgetting_gap(evidence, MAIN, FULL, t) for t in texts}
    levels = {text_name(t): gap.share * full_gain(evidence, t) for t, gap in gaps.items() if gap}
    short = ", ".join(
        f"{text_name(t)} {two_digits(gap.interval.mean, '+')}" if gap else f"{text_name(t)} not comparable"
        for t, gap in gaps.items()
    )
    title = (
        f"Forgetting at equal gain, main plan minus full training: {short} nats per token\n"
        f"({evidence.model}, each plan at its own rate)"
    )
    sentence = "; ".join(gap_in_words(t, gap) for t, gap in gaps.items())
    return of_runs(
        evidence,
        [r for plans in runs.values() for own in plans.values() for r in own],
        [paths, levels],
        title=title,
        sentence=f"At equal gain, {sentence}.{ending}",
        table=gap_table(evidence, DECIDING[1:], texts),
        alt=f"Forgetting against gain for {max(map(len, runs.values()))} plans on {' and '.join(paths)}, one line a "
        "run; the dashed line marks the gain at which the plans are compared",
        draw=lambda: plots.lines_of_runs(paths, title, levels, styles=STYLES),
    )


def gap_table(evidence: Evidence, plans: Sequence[str], texts: Sequence[str]) -> str:
    """Each plan's forgetting at equal gain minus full training's, a row a text."""
    rows = []
    for text in texts:
        for plan in plans:
            gap = forgetting_gap(evidence, plan, FULL, text)
            if gap is not None:
                own, full = map(rate_in_words, gap.rates)
                mark = " (unlike rates)" if gap.has_unlike_rates else ""
                rows.append(
                    [
                        text_name(text),
                        LABELS.get(plan, f"`{plan}`"),
                        numbers(gap.interval),
                        two_digits(gap.smallest),
                        f"{gap.word}{mark}",
                        f"{gap.share:.0%}",
                        f"{own} / {full}",
                        gap.interval.n_pairs,
                    ]
                )
    return markdown(
        [
            "text",
            "plan",
            "forgetting minus full training's, nats per token",
            "counts from",
            "in a word",
            "read at, of full's best gain",
            "rates, plan / full",
            "pairs",
        ],
        rows,
    )


def gap_in_words(text: str, gap: Gap | None) -> str:
    """The difference in forgetting of main plan and full training on one text, by the word that it has."""
    if gap is None:
        return (
            f"on {text_name(text)} the main plan and full training are not comparable (a run stays below 35% of "
            "full's gain)"
        )
    words = {
        LESS: "the main plan forgot less than full training",
        MORE: "the main plan forgot more than full training",
        SAME: "the two plans show no difference that counts",
        DEPENDS: "which plan forgot less depends on the gain",
    }
    doubt = f"; {NO_DEV_WINDOWS}" if gap.interval.gain_half is None else ""
    return (
        f"on {text_name(text)} {words.get(gap.word, 'it is open whether the main plan forgot less or more')}: "
        f"{in_nats(gap.interval)}, at {gap.share:.0%} of full training's best gain (what counts begins at "
        f"{two_digits(gap.smallest)}){doubt}"
    )


def rates(evidence: Evidence) -> Answer | None:
    """Forgetting at the level by rate, from the tuning runs."""
    panels = {text_name(t): {LABELS[p]: evidence.at_level(p, t) for p in DECIDING} for t in AUTHORS}
    if not all(plans[LABELS[FULL]] for plans in panels.values()):
        return None
    at_one_rate = {t: by_rate(evidence, MAIN, FULL, t) for t in AUTHORS}
    by_the_rate = max(np.ptp(list(plans[LABELS[FULL]].values())) for plans in panels.values())
    by_the_plan = [abs(d) for own in at_one_rate.values() for d in own.values()]
    title = (
        f"At equal gain the rate moves full training's forgetting by up to {two_digits(by_the_rate)} nats per token"
        + (
            f",\nthe main plan at one common rate by up to {two_digits(max(by_the_plan))}"
            if by_the_plan
            else ""
        )
        + f" ({evidence.model})"
    )
    seeds = evidence.rates.get("seeds") or [evidence.rates["seed"]]
    word = "seed" if len(seeds) == 1 else "seeds"
    origin = f"{evidence.model}, tuning runs with {word} {listed(seeds)}, used for nothing else."
    return Answer(
        sentence=f"At equal gain, {'; '.join(rates_in_words(evidence, t, panels[text_name(t)]) for t in AUTHORS)}.",
        title=title,
        data=panels,
        origin=origin,
        protocol=evidence.rates.get("protocol"),
        table=rates_table(panels),
        alt="Forgetting at one gain against the learning rate, one line a plan, one panel a text",
        draw=lambda: plots.forgetting_over_rates(panels, title, STYLES),
    )


def rates_table(panels: Mapping[str, Mapping[str, Mapping[float, float]]]) -> str:
    """Forgetting at the level, a row a text and plan, a column a rate; empty where a rate did not get there."""
    tried = sorted({rate for plans in panels.values() for at in plans.values() for rate in at})
    rows = [
        [text, label, *(two_digits(at[rate]) if rate in at else "" for rate in tried)]
        for text, plans in panels.items()
        for label, at in plans.items()
    ]
    return markdown(["text", "plan", *(f"{rate:g}" for rate in tried)], rows)


def rates_in_words(evidence: Evidence, text: str, plans: Mapping[str, Mapping[float, float]]) -> str:
    full, at_one_rate = plans[LABELS[FULL]], by_rate(evidence, MAIN, FULL, text)
    forgot = between(min(full.values()), max(full.values()), "")
    words = f"on {text_name(text)} full training forgot {forgot} nats per token, "
    if not at_one_rate:
        return f"{words}by the rate alone; at no common rate do both plans get that far"
    turns = sign_depends(at_one_rate, evidence.smallest(text))
    listed_gaps = ", ".join(f"{two_digits(d, '+')} at {rate:g}" for rate, d in at_one_rate.items())
    return f"{words}by the rate alone, and the main plan minus full training is {listed_gaps}" + (
        ": the sign turns" if turns else ""
    )


# --- quality and style -------------------------------------------------------------


def quality(evidence: Evidence) -> Answer | None:
    """What each plan gains on the test texts, as a share of full training's gain, and every loss beside the base's."""
    main = {
        (t, on): quality_finding(evidence, t, on)
        for t, on in tests_of(evidence)
        if evidence.seeds(MAIN, FULL, texts=[t])
    }
    if not main or not evidence.base:
        return None
    tested = [key for key, finding in main.items() if finding.verdict != UNTESTED]
    found = {
        (p, t, on): gain_share(
            evidence.of(p, t, "learn"), evidence.of(FULL, t, "learn"), on, evidence.base[on]
        )
        for p in DECIDING[1:]
        for t, on in tested
        if evidence.seeds(p, FULL, texts=[t])
    }
    rows = {
        f"{LABELS[p]}, {text_name(t)}" + (f" (test: {text_name(on)})" if on != t else ""): (
            i.mean,
            i.low,
            i.high,
        )
        for (p, t, on), i in found.items()
    }
    of_main = [i.mean for (p, _, _), i in found.items() if p == MAIN]
    if not of_main:
        return None
    n_pairs = between(*(f(i.n_pairs for (p, _, _), i in found.items() if p == MAIN) for f in (min, max)), "")
    title = (
        f"On new chapters the main plan gains {between(min(of_main), max(of_main), '')} of what full training "
        f"gains\n({evidence.model}, {n_pairs} pairs, each plan at its own rate)"
    )
    return of_runs(
        evidence,
        [r for p in DECIDING for r in evidence.both(p)],
        rows,
        title=title,
        table=quality_table(evidence),
        sentence=f"Of what full training gains, {'; '.join(quality_in_words(*key, main[key]) for key in main)}. "
        f"{verdict(evidence, 'C13')}.",
        alt="Share of full training's test gain, with 95% intervals, a row for each plan and test; in the grey zone "
        "two gains are nearly equal",
        draw=lambda: plots.intervals(
            rows, title, "share of full training's test gain: 1 is as much", 1 - EQUAL_SHARE, same=1
        ),
    )


def quality_in_words(text: str, test: str, finding: Any) -> str:
    """The main plan's share of full training's gain on one test."""
    where = f"on {text_name(test)} (tuned on {text_name(text)})"
    if not finding.interval.n_pairs:
        return f"{where} no share can be read: {'; '.join(finding.limits)}"
    return f"{where} the main plan gains {numbers(finding.interval, '')}: {finding.verdict}"


def quality_table(evidence: Evidence) -> str:
    """Test losses, the untouched base's first, a row a text and test; then the share of the gain and two rules."""
    plans = [p for p in DECIDING if evidence.both(p)]
    rows = []
    for text, test in tests_of(evidence):
        own = {p: evidence.of(p, text, "learn") for p in plans}
        losses = [
            f"{np.mean([np.mean(r.test_windows[test]) for r in runs]):.2f}" if runs else ""
            for runs in own.values()
        ]
        finding, before = quality_finding(evidence, text, test), first_rule(evidence, text, test)
        share = numbers(finding.interval, "") if finding.interval.n_pairs else ""
        rows.append(
            [
                text_name(text),
                text_name(test),
                f"{np.mean(evidence.base[test]):.2f}",
                *losses,
                share,
                said(finding),
                "" if before is None else before.verdict,
            ]
        )
    return markdown(
        [
            "tuned on",
            "tested on",
            "untouched base",
            *(LABELS[p] for p in plans),
            "main plan's share of full's gain",
            "as much gained",
            "the rule before its amendment",
        ],
        rows,
    )


def style(evidence: Evidence) -> Answer | None:
    """Author x author: the loss of each tuned model on each author's text."""
    plans = {p: evidence.seeds(p) for p in DECIDING if evidence.seeds(p)}
    if not evidence.seeds(MAIN, FULL):
        return None
    tests = [*AUTHORS, *(REAL.values() if evidence.has_real_authors else ())]
    table = pd.DataFrame(
        {
            f"{LABELS[p]}, tuned on {text_name(a)}": {
                text_name(t): np.mean(
                    [np.mean(r.test_windows[t]) for r in evidence.of(p, a, "learn") if r.seed in seeds]
                )
                for t in tests
            }
            for p, seeds in plans.items()
            for a in AUTHORS
        }
    ).T
    contrast = {
        test: {LABELS[p]: mean_style(evidence, p, **options) for p in plans}
        for test, options in style_tests(evidence).items()
    }
    share, lead = share_of_style(evidence), next(iter(contrast))
    at_equal_size = "; ".join(
        f"{in_nats(f.interval) if f.interval.n_pairs else said(f)} on {f.test or 'both texts'}"
        for f in style_findings(evidence)
    )
    of_plans = contrast[lead]
    title = (
        f"Style contrast on {lead}: main plan {two_digits(of_plans[LABELS[MAIN]])}, full training "
        f"{two_digits(of_plans[LABELS[FULL]])} nats per token\n"
        f"({evidence.model}, {counted(len(plans[MAIN]), 'seed')}; colours compare inside a column)"
    )
    return of_runs(
        evidence,
        [r for p in plans for r in evidence.both(p)],
        table.to_dict(),
        title=title,
        sentence=f"At equal gain, on {lead}, the main plan has "
        f"{numbers(share.interval, '') if share.interval.n_pairs else 'an unknown share'} of full training's "
        f"style contrast; MLP's output minus attention: {at_equal_size}. {verdict(evidence, 'C14')}.",
        table=style_table(evidence, contrast),
        alt=f"Mean test loss of {len(table)} tuned models on {len(tests)} texts",
        draw=lambda: plots.matrix(table, title, "tested on (loss, nats per token)", "", by_column=True),
    )


def style_table(evidence: Evidence, contrast: Mapping[str, Mapping[str, float]]) -> str:
    """Style contrast of each plan, as measured and at equal gain beside full training's, a row a plan."""
    label_of = {LABELS[p]: p for p in DECIDING}
    rows = []
    for label in next(iter(contrast.values())):
        share = share_of_style(evidence, label_of[label]).interval
        rows.append(
            [
                label,
                *(two_digits(of_plans[label]) for of_plans in contrast.values()),
                "1" if label_of[label] == FULL else numbers(share, "") if share.n_pairs else "",
            ]
        )
    return markdown(
        [
            "plan",
            *(f"contrast on {test}, nats per token" for test in contrast),
            "share of full's at equal gain, the test chapters",
        ],
        rows,
    )
