"""Studies whose truth is known: paths of runs by window, as uneven as those of the recorded runs."""

from dataclasses import dataclass

import numpy as np

from helpers.frontiers import Path


@dataclass(frozen=True)
class Case:
    """What a simulated study looks like; standard deviations are shares of the mean.

    Attributes:
        gain, forgotten: of full training at its best, nats per token.
        seed_sd: of D at 80% of the gain, over pairs, nats per token.
        uneven: of a retention window's forgetting over the mean's.
        recipe_uneven: of a retention window's forgetting under one recipe, beside what both share.
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


GRIDS = {"recipe": np.linspace(0, 1.02, 11), "reference": np.linspace(0, 1.02, 15) ** 0.8}


def simulated(case, rng):
    """(recipe, reference, full): paths of one study; full training is the reference, with a tuning seed of its own.

    Forgetting grows with the square of the gain. Gains of windows differ by a fifth, and by a tenth between two
    recipes, as on the miniature's dev chapter of alice.
    """
    shared = rng.normal(0, 0.18, case.n_dev)
    retention = rng.lognormal(-np.log1p(case.uneven**2) / 2, np.sqrt(np.log1p(case.uneven**2)), case.n_retention)
    at_80 = 0.64 * case.forgotten

    def paths(name, seeds, dev, own, effect):
        return [one(seed, GRIDS[name], dev, own, effect) for seed in seeds]

    def one(seed, grid, dev, own, effect):
        by_dev = 1 + shared + dev + rng.normal(0, 0.02, case.n_dev) + rng.normal(0, 0.005)
        noise = rng.normal(0, case.seed_sd / at_80 / np.sqrt(2)) + rng.normal(0, 0.02, case.n_retention)
        by_retention = retention * (1 + own + noise)
        return Path(seed, np.outer(case.gain * grid, by_dev),
                    np.outer((1 + effect) * case.forgotten * grid**2, by_retention))

    dev = [rng.normal(0, 0.07, case.n_dev) for _ in range(2)]
    own = [rng.normal(0, case.recipe_uneven, case.n_retention) for _ in range(2)]
    seeds = range(case.n_seeds)
    return (paths("recipe", seeds, dev[0], own[0], case.effect), paths("reference", seeds, dev[1], own[1], 0.0),
            [paths("reference", [900], dev[1], own[1], 0.0)])
