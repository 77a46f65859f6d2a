"""Studies whose truth is known: paths of runs by window, as uneven as those of the recorded runs."""

from dataclasses import dataclass

import numpy as np

from helpers.measuring.frontiers import Path, Paths


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
