"""Records of the second study with answers that are known, for tests of its verdicts and its page."""

from dataclasses import dataclass

import numpy as np

from helpers.measuring.frontiers import Path, Paths
from helpers.measuring.recorded import SecondRunRecord
from helpers.results.second_verdicts import PAGE, second_study
from helpers.results.study_runs import study_run
from helpers.study.protocol import read_protocol
from helpers.study.records import run_of

N_DEV, N_RETENTION, N_TEST = 12, 16, 10
SHARES = np.linspace(0.1, 1.0, 10)
PLANS = (
    "full",
    "attention",
    "attention+embeddings",
    "embeddings",
    "first-half",
    "only-mlp-out",
    "only-attention",
)
FORGETS = {
    "full": 0.10,
    "attention": 0.10,
    "attention+embeddings": 0.14,
    "embeddings": 0.12,
    "first-half": 0.05,
    "only-mlp-out": 0.06,
    "only-attention": 0.2,
}
FULL_GAIN = 0.15
SETTINGS = {
    "n_steps": 640,
    "rate": 1e-4,
    "batch": 8,
    "micro_batch": None,
    "seed": 0,
    "warmup": 5,
    "weight_decay": 0.0,
    "clip": None,
    "precision": "float32",
    "evaluate_every": 6,
    "save_every": 40,
    "dense_until": 12,
    "patience": 24,
}


def record(
    plan,
    text,
    seed,
    rate=1e-4,
    weight=0.0,
    gain=FULL_GAIN,
    forgotten=None,
    rewound=0.5,
    test_gain=None,
    roles=(),
    **more,
):
    """The row of one run as the runner writes it: forgetting grows with the square of the gain; rewound it is a share of it."""
    rng = np.random.default_rng([seed, len(plan), len(text), int(rate * 1e7)])
    windows = np.random.default_rng(7)
    dev, kept, test = (
        windows.normal(1, 0.1, N_DEV),
        windows.normal(1, 0.1, N_RETENTION),
        windows.normal(1, 0.1, N_TEST),
    )
    top = FORGETS[plan] if forgotten is None else forgotten
    top *= rng.normal(1, 0.01)
    tuning = seed >= 900
    test_gain = 0.8 * gain if test_gain is None else test_gain

    def model(share, factor):
        found = {
            "dev_windows": (3 - gain * share * dev).tolist(),
            "plain_windows": [3.7] * 4,
            "forgetting_a": (factor * top * share**2 * kept).tolist(),
            "forgetting_b": (factor * top * share**2 * kept[::-1]).tolist(),
        }
        return found | ({} if tuning else {"test_windows": {text: (3.2 - test_gain * share * test).tolist()}})

    grid = np.linspace(0, 1, 9)
    base = {"dev_windows": [3.0] * N_DEV, "plain_windows": [3.7] * 4}
    made = {
        "stage": "first",
        "machine": "a machine",
        "commit": "0123456789",
        "protocol": "p",
        "profile": "tiny",
        "model_name": "m",
        "plan": plan,
        "text": text,
        "seed": seed,
        "rate": rate,
        "weight": weight,
        "model_hash": "h",
        "text_hash": text,
        "settings": SETTINGS,
        "retention_hashes": {"A": "a", "B": "b", "C": "c"},
        "n_trainable": 1000,
        "steps_taken": 50,
        "seconds": 25.0,
        "ended": "patience",
        "base": base | ({} if tuning else {"test_windows": {text: [3.2] * N_TEST}}),
        "evaluations": [
            {"step": i, **{k: v for k, v in model(s, 1.0).items() if k != "test_windows"}}
            for i, s in enumerate(grid)
        ],
        "rewound": [{"roles": "all", "share": s, **model(s, rewound)} for s in SHARES]
        + [{"roles": r, "share": s, **model(0.6 + 0.4 * s, 0.9)} for r in roles for s in (0.25, 0.5)],
    }
    if not tuning:
        made["test_windows"] = {text: model(1.0, 1.0)["test_windows"][text]}
    return made | more


def diverged(plan, text, seed, **options):
    found = record(plan, text, seed, **options)
    for key in ("rewound", "test_windows", "ended", "seconds", "n_trainable", "steps_taken"):
        found.pop(key, None)
    return found | {"diverged": "the loss is not a number"}


def tuning(forgotten=FORGETS, rates=(1e-4,), **options):
    return [
        record(p, "alice", 900, rate, forgotten=f, **options) for p, f in forgotten.items() for rate in rates
    ] + [record("full", "edgar", 900)]


def main(seeds=4, **options):
    return [record(p, t, s, **options) for p in PLANS for t in ("alice", "edgar") for s in range(seeds)]


def study_of(records, base="tiny"):
    return second_study([run_from(r) for r in records], read_protocol(PAGE), base)


def run_from(row):
    """One run as it is read."""
    return study_run(run_of("a built run", row, SecondRunRecord))


# --- simulated studies --------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """What simulated studies look like; spreads are shares of the mean where nothing else is said.

    Attributes:
        gain, forgotten: of full training at its best, nats per token.
        seed_sd: of D at 80% of the gain, over pairs, nats per token.
        uneven: of a retention window's forgetting, under every recipe alike.
        recipe_uneven: of a retention window's forgetting under one recipe, beside what all share.
        effect: what the recipe forgets over what the reference forgets, minus 1.
    """

    n_seeds: int = 5
    n_dev: int = 13
    n_retention: int = 24
    gain: float = 0.145
    forgotten: float = 0.085
    seed_sd: float = 0.0007
    uneven: float = 0.07
    recipe_uneven: float = 0.1
    effect: float = 0.0


# spreads of windows and seeds as in the first study's records; SmolLM2's retention windows are far more uneven
MINIATURE = dict(n_dev=13, n_retention=24, gain=0.145, forgotten=0.085, seed_sd=0.0007, uneven=0.07)
SMOLLM2 = dict(
    n_dev=12, n_retention=24, gain=0.40, forgotten=0.20, seed_sd=0.005, uneven=0.5, recipe_uneven=0.2
)
DEV_UNEVEN, DEV_RECIPE, DEV_RUN = (
    0.18,
    0.07,
    0.02,
)  # of a dev window's gain: shared, of one recipe, of one run
GRIDS = {"recipe": np.linspace(0, 1.02, 11), "reference": np.linspace(0, 1.02, 15) ** 0.8}


def simulated(case, rng, n):
    """(recipe, reference, full) of n studies, as Paths; full training is the reference, with a seed of its own.

    Forgetting grows with the square of the gain. With no effect both recipes have one curve: only windows and seeds
    differ.
    """
    shared = 1 + rng.normal(0, DEV_UNEVEN, (n, 1, case.n_dev))
    width = np.log1p(case.uneven**2)
    retention = rng.lognormal(-width / 2, np.sqrt(width), (n, 1, case.n_retention))
    pair_sd = case.seed_sd / (0.64 * case.forgotten) / np.sqrt(2)

    def windows():
        """Of one recipe."""
        return (
            rng.normal(0, DEV_RECIPE, (n, 1, case.n_dev)),
            rng.normal(0, case.recipe_uneven, (n, 1, case.n_retention)),
        )

    def paths(grid, n_seeds, own, effect=0.0):
        dev, kept = own
        by_dev = (
            shared
            + dev
            + rng.normal(0, DEV_RUN, (n, n_seeds, case.n_dev))
            + rng.normal(0, 0.005, (n, n_seeds, 1))
        )
        by_retention = retention * (
            1
            + kept
            + rng.normal(0, 0.02, (n, n_seeds, case.n_retention))
            + rng.normal(0, pair_sd, (n, n_seeds, 1))
        )
        rising, forgotten = case.gain * grid, (1 + effect) * case.forgotten * grid**2
        return Paths(rising[:, None] * by_dev[:, :, None], forgotten[:, None] * by_retention[:, :, None])

    own, full = windows(), windows()
    return (
        paths(GRIDS["recipe"], case.n_seeds, own, case.effect),
        paths(GRIDS["reference"], case.n_seeds, full),
        paths(GRIDS["reference"], 1, full),
    )


def one_study(many, i):
    """The paths of study i, run by run."""
    return [Path(seed, many.gains[i, seed], many.forgetting[i, seed]) for seed in range(many.gains.shape[1])]
