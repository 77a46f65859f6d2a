"""Built records, probes and times whose answer is known."""

from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace

import numpy as np

from helpers.measuring import Evaluation, RunRecord, RunSettings
from helpers.results.evidence import Evidence
from helpers.study.recipes import REWOUND, STOPPED, Probe
from helpers.study.records import run_of

PLANS = ("full", "attention+embeddings", "only-attention", "only-mlp-out")
TESTS = {"alice": 28, "edgar": 23, "plain": 24, "carroll": 100, "poe": 100}
BASE = {t: list((3.5 if t == "plain" else 3.6) + np.linspace(-0.1, 0.1, n)) for t, n in TESTS.items()}


def a_run(rng, plan, text, seed, slope=0.5, own=0.10, loss=3.4, top=0.15, plain=3.5):
    """A record: forgetting is ``slope`` times the gain; the own author is ``own`` nats better."""
    windows = rng.normal(1, 0.1, 24)
    factor = slope * (1 + rng.normal(0, 0.02))
    points = [
        {
            "step": 8 * i,
            "gain": g,
            "train_loss": 3.5 - g,
            "held_out_loss": 3.6 - g,
            "forgetting": float(factor * g * windows.mean()),
            "forgetting_windows": list(factor * g * windows),
        }
        for i, g in enumerate(np.linspace(0, top, 9))
    ]
    each = np.linspace(-0.3, 0.3, 12)  # the dev windows, at the start and at the best step
    points[0]["held_out_windows"] = list(3.6 + each)
    points[-1]["held_out_windows"] = list(3.6 - top + each)
    author = {"alice": ("alice", "carroll"), "edgar": ("edgar", "poe")}[text]
    tests = {
        t: list(
            loss
            - (own if t in author else 0)
            + (plain - loss if t == "plain" else 0)
            + np.linspace(-0.1, 0.1, n)
            + rng.normal(0, 0.001, n)
        )
        for t, n in TESTS.items()
    }
    calm = {"median": 1.0, "largest": 2.0, "spikes": 0.0, "quarters": 0.9}
    swap = {
        role: {t: 3.4 - (share * own if t == text else 0) for t in ("alice", "edgar")}
        for role, share in (("attention", 0.3), ("mlp", 0.5), ("all", 1.0))
    }
    row = {
        "plan": plan,
        "text": text,
        "seed": seed,
        "rate_choice": "keep and learn",
        "model_hash": "m",
        "text_hash": text,
        "retention_hash": "r",
        "batch": 8,
        "length": 256,
        "evaluations": points,
        "swap": swap,
        "test_windows": tests,
        "function_windows": tests,
        "best_step": 64,
        "gradient_norms": {"total": calm, "mlp+norm": calm},
    }
    return run_of("a built run", row)


def row_of(record) -> dict:
    """A record as its file holds it: without the fields that it lacks. Settings hold all of theirs."""
    if isinstance(record, dict):
        return {name: row_of(value) for name, value in record.items()}
    if isinstance(record, list):
        return [row_of(value) for value in record]
    if not is_dataclass(record):
        return record
    own = {field.name: getattr(record, field.name) for field in fields(record)}
    is_whole = isinstance(record, RunSettings)
    return {name: row_of(value) for name, value in own.items() if is_whole or value is not None}


def change(runs: list[RunRecord], edit: Callable[[RunRecord], RunRecord], plan=None, text=None) -> None:
    """Put an edited record in the place of each one, or of those of a plan, or on a text."""
    runs[:] = [edit(r) if plan in (None, r.plan) and text in (None, r.text) else r for r in runs]


def look_by_look(run: RunRecord, edit: Callable[[Evaluation], Evaluation]) -> RunRecord:
    """A run with each of its evaluations edited."""
    return replace(run, evaluations=[edit(e) for e in run.evaluations])


def forgot_times(run: RunRecord, factor: float | Callable[[Evaluation], float]) -> RunRecord:
    """A run that forgot a number of times as much, or a number of times that depends on the evaluation."""

    def edit(e: Evaluation) -> Evaluation:
        times = factor(e) if callable(factor) else factor
        return replace(
            e, forgetting=times * e.forgetting, forgetting_windows=[times * w for w in e.forgetting_windows]
        )

    return look_by_look(run, edit)


def evidence(slopes=None, own=None, seeds=5, level=0.12, table=(), **changes):
    rng = np.random.default_rng(0)
    slopes, own = slopes or {}, own or {}
    runs = [
        a_run(rng, p, t, s, slopes.get(p, 0.5), own.get(p, 0.10), **changes.get(p, {}))
        for p in PLANS
        for t in ("alice", "edgar")
        for s in range(seeds)
    ]
    rates = {"chosen": {}, "matched_gain": {"alice": level, "edgar": level}, "table": list(table)}
    return Evidence("a model", runs, [], rates, base=dict(BASE))


def a_long_run(seed, falls=True, levels=True):
    losses = [
        3.0 + 0.5 * t**-0.5 - (0 if levels else 0.002 * t) + (0.0 if falls or t % 16 else 0.2)
        for t in range(8, 648, 8)
    ]
    points = [
        {"step": 8 * (i + 1), "train_loss": loss, "held_out_loss": 3.5} for i, loss in enumerate(losses)
    ]
    row = {
        "plan": "attention+embeddings",
        "text": "alice",
        "seed": seed,
        "rate_choice": "long",
        "model_hash": "m",
        "best_step": 200,
        "steps_taken": 640,
        "evaluations": points,
    }
    return run_of("a built run", row)


def with_tuning(found, tops=None, rates=(1e-4, 3e-4), plans=PLANS, slopes=None):
    """The evidence with a tuning run of each plan at two rates on alice; the lower rate forgets half as much.

    Args:
        tops: plan to its best gain, for plans that never get to the level of 0.12.
    """
    rng = np.random.default_rng(1)
    for plan in plans:
        for rate, factor in zip(rates, (0.5, 1.0), strict=True):
            top = (tops or {}).get(plan, 0.15)
            run = a_run(rng, plan, "alice", 900, factor * (slopes or {}).get(plan, 0.5), top=top)
            found.tuning.append(
                replace(
                    run,
                    rate=rate,
                    rate_choice="tuning",
                    n_trainable=10,
                    machine="a CPU",
                    commit="c" * 40,
                    protocol="p" * 64,
                )
            )
            at_level = factor * 0.06 if top > 0.12 else None
            found.rates["table"].append(
                {"plan": plan, "text": "alice", "rate": rate, "n_seeds": 1, "forgetting_at_level": at_level}
            )
    return found


# --- probes of `course compare` -----------------------------------------------------

PLACES = {STOPPED: (0, 10, 20, 30, 40), REWOUND: (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)}
N_WINDOWS = 12


def models(places, gain, forgets, bump=1.0) -> list[dict]:
    """The gain grows straight to ``gain``, forgetting with its square to ``forgets``; windows differ a little."""
    window = 1 + 0.1 * np.linspace(-1, 1, N_WINDOWS)
    points = []
    for place in places:
        share = place / places[-1]
        loss, lost = 4.0 - gain * share * window, forgets * share**2 * window
        points.append(
            {
                "at": place,
                "dev": loss.tolist(),
                "test": (4.0 - bump * gain * share * window).tolist(),
                "a": lost.tolist(),
                "b": (bump * lost).tolist(),
            }
        )
    return points


def probe(candidate, gain=0.1, stopped=0.1, rewound=0.06, ended="", bump=1.0) -> Probe:
    if ended == "diverged":
        record = {}
    else:
        record = {
            STOPPED: models(PLACES[STOPPED], gain, stopped, bump),
            REWOUND: models(PLACES[REWOUND], gain, rewound, bump),
        }
    head = {"candidate": list(candidate), "n_steps": 40, "best_step": 40, "step_seconds": 0.1}
    return Probe.of({**head, "ended": ended, **record})


# --- a machine whose times and sizes are known --------------------------------------

SECONDS = {
    "trainer": 10.0,
    "trainer+pieces": 8.0,
    "trainer+settings": 9.5,
    "trainer+compiled": 6.25,
    "ours": 5.0,
}
FACTOR = {"main": 1.0, "full": 1.25, "first-half": 0.7}
FLOPS = {"main": 4e12, "full": 5e12, "first-half": 3e12}


def pretend(engine, plan, shape):
    """A machine of 1e12 FLOPs a second, twice as fast with our engine."""
    if engine == "sgemm":
        return {"sgemm_flops": 1e12}
    kind = engine.removesuffix(" (exact allocator)")
    return {
        "step_seconds": [9 * SECONDS[kind], FACTOR[plan] * SECONDS[kind], 0.1],
        "first_loss": 10.9,
        "peak_bytes": int(4e9 if kind == "ours" else 8e9),
    }
