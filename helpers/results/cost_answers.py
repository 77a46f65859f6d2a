"""Answers about costs: what each plan trains, and time and memory as they were measured.

As `helpers.results.answers`, for the questions that no training run of the study is about.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from helpers import plots, study
from helpers.costs import MIB
from helpers.files import counted
from helpers.freezing import COURSE_PLANS
from helpers.models import anatomy, build_on_meta, gpt_neo_125m_config
from helpers.results.answers import Answer, markdown
from helpers.results.claims import two_digits
from helpers.session import machine_in_words

COMPARED = {
    "time_ratio_main": "time of a step, main plan",
    "time_ratio_full": "time of a step, full training",
    "memory_ratio_main": "peak memory, main plan",
    "memory_ratio_full": "peak memory, full training",
}


def what_trains(_: Path) -> Answer:
    """How many parameters each plan trains, by role, from the config alone."""
    model = build_on_meta(gpt_neo_125m_config())
    ledgers = {name: plan.explain(model) for name, plan in COURSE_PLANS.items()}
    counts = {
        name: {row.role: row.n_trainable for row in ledger.rows if row.n_trainable}
        for name, ledger in ledgers.items()
    }
    total, main = anatomy(model).n_parameters, ledgers["attention+embeddings"].n_trainable
    attention, mlp_out = (ledgers[name].n_trainable for name in ("only-attention", "only-mlp-out"))
    same = "exactly equally many" if attention == mlp_out else f"not equally many ({mlp_out:,})"
    title = f"The main plan trains {main / 1e6:.1f} of GPT-Neo 125M's {total / 1e6:.1f} million parameters"
    return Answer(
        sentence=f"Of {total:,} parameters of GPT-Neo 125M the main plan (attention and embeddings frozen) trains "
        f"{main:,} ({main / total:.1%}); attention alone is {attention:,}, and the MLP's output alone {same}.",
        title=title,
        data=counts,
        alt=f"Trained parameters by role for {len(counts)} plans, as stacked bars",
        draw=lambda: plots.shares(counts, title, "trained parameters (millions)"),
        table=markdown(
            ["plan", "trained parameters", "share"],
            [[f"`{name}`", f"{own.n_trainable:,}", f"{own.R:.2%}"] for name, own in ledgers.items()],
        ),
        origin="Counted from the config of GPT-Neo 125M; nothing was trained.",
    )


def engine(folder: Path) -> Answer | None:
    """Time and memory of the course's engine as a share of the Trainer's."""
    place = folder / study.BENCHMARK.name
    if not study.is_recorded(place):
        return None
    found = study.read(place)
    setting, n_pairs = found["setting"], found["n_pairs"]
    machine = machine_in_words(setting["machine"])
    rows, of_pairs = {}, f"{counted(n_pairs, 'pair')} of processes"
    for name, label in COMPARED.items():
        low, high = (np.nan if end is None else 100 * (end - 1) for end in found["intervals"][name])
        rows[label] = (100 * (found[name] - 1), low, high)
    title = (
        f"Against the Trainer, main plan: {rows[COMPARED['time_ratio_main']][0]:+.0f}% time, "
        f"{rows[COMPARED['memory_ratio_main']][0]:+.0f}% memory ({of_pairs})"
    )
    return Answer(
        sentence=f"On {machine} a step of the course's engine takes {found['time_ratio_main']:.2f} (main plan) and "
        f"{found['time_ratio_full']:.2f} (full training) of the time of Hugging Face's Trainer as it comes, and "
        f"{found['memory_ratio_main']:.2f} and {found['memory_ratio_full']:.2f} of its peak memory ({of_pairs})."
        f"{best_settings(found)} It reaches {found['share_of_limit_main']:.2f} and {found['share_of_limit_full']:.2f} of the "
        f"rate of a plain matrix product. An engine at that rate itself would take {found['least_time_ratio_main']:.2f} and "
        f"{found['least_time_ratio_full']:.2f} of the Trainer's time.",
        title=title,
        data=rows,
        alt="Change of time and memory against the Trainer in percent, with 95% intervals",
        draw=lambda: plots.intervals(rows, title, "change against the Trainer (%)"),
        origin=f"{setting['model']}, {setting['dtype']}, batch {setting['batch']} x {setting['length']} tokens, on "
        f"{machine}, torch {setting['versions']['torch']}, transformers "
        f"{setting['versions']['transformers']}; code at commit {commits(found)}.",
    )


def best_settings(record: Mapping) -> str:
    """A sentence on the Trainer with its best settings; nothing where a record has none of it."""
    said = []
    for plan, words in {"main": "under the main plan", "full": "in full training"}.items():
        found = study.against_best(record["pairs"], plan)
        if found is None:
            return ""
        engine, ratio, _ = found
        how = "compiled" if engine == "trainer+compiled" else "not compiled"
        said.append(f"{ratio:.2f} {words} ({how})")
    return f" Of the time of the Trainer with its best settings it takes {' and '.join(said)}."


def commits(record: Mapping) -> str:
    found = {record.get("commit"), *(p.get("commit") for p in record.get("pairs", ()))} - {None}
    return ", ".join(f"`{c[:7]}`" for c in sorted(found)) or "unknown"


def memory(folder: Path) -> Answer | None:
    """Peak memory by plan: what the budget predicts and what a process grew by."""
    place = folder / study.MEMORY.name
    if not study.is_recorded(place):
        return None
    record = study.read(place)
    largest, setting = study.largest_setting(record), record["setting"]
    if largest is None:
        return None
    (batch, length), fall = largest, study.falls(record, *largest)
    off = max(abs(p["ratio"] - 1) for p in record["points"])
    bars = study.by_plan(record, batch, length)
    title = (
        f"The main plan's peak lies {fall['measured']:.1%} below full training's, predicted "
        f"{fall['predicted']:.1%}\n(batch {batch} x {length} tokens)"
    )
    return Answer(
        sentence=f"At batch {batch} x {length} the main plan's peak lies {fall['measured']:.1%} below full training's, "
        f"and the budget predicts {fall['predicted']:.1%}; over all {counted(len(record['points']), 'point')} "
        f"prediction and measurement differ by at most {off:.0%}.",
        title=title,
        data=bars,
        table=shares_of_full(record, batch, length),
        alt=f"Peak memory of {len(bars)} plans by group, predicted above measured",
        draw=lambda: plots.predicted_and_measured(bars, title, f"MiB ({MIB:,} bytes) at the fullest moment"),
        origin=f"{setting['model']}, {setting['dtype']}, a process of its own for each point, on "
        f"{machine_in_words(setting['machine'])}; code at commit {commits(record)}.",
    )


def shares_of_full(record: Mapping, batch: int, length: int) -> str:
    """Peak memory and time of a step of each plan as shares of full training's, as measured; a row a plan."""
    peaks = {
        plan: sum(both["measured"].values()) for plan, both in study.by_plan(record, batch, length).items()
    }
    times = study.time_table(record)["measured"] if record["times"] else {}
    rows = [
        [f"`{plan}`", two_digits(peak / peaks["full"]), two_digits(times[plan]) if plan in times else ""]
        for plan, peak in peaks.items()
        if plan != "full"
    ]
    return markdown(["plan", "peak memory", "time of a step"], rows)
