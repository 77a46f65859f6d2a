"""The rule that chooses a recipe, on constructed paths: which wins, at which place, and what it may not read."""

import numpy as np
import pytest

from helpers.study.recipes import (
    CANDIDATES,
    REPORT,
    REWOUND,
    STOPPED,
    Candidate,
    Recipe,
    choose,
    difference,
    halve,
    merit,
    read,
    recipes_of,
    reference_of,
    reported_gain,
    sizes,
    survivors,
)
from support.records import probe

FULL, GENTLE, FROZEN, HELD = CANDIDATES[0], CANDIDATES[6], CANDIDATES[4], CANDIDATES[1]


def test_every_candidate_is_another_one_and_full_training_comes_first():
    assert len({c.name for c in CANDIDATES}) == len(CANDIDATES) and CANDIDATES[0].plan == "full"
    assert any(c.replay for c in CANDIDATES[:3])
    assert Candidate("full", 1e-4, 1.0).title == "nothing frozen, 0.0001, replay"


def test_the_least_forgetting_at_four_fifths_of_fulls_best_gain_is_chosen():
    probes = [probe(FULL), probe(FROZEN, rewound=0.04, stopped=0.09), probe(HELD, gain=0.12, rewound=0.05)]
    choice = choose(probes)
    # at a gain of 0.08: 0.04 x 0.8² = 0.0256 for FROZEN, 0.05 x (0.08 / 0.12)² = 0.0222 for HELD
    assert (choice.recipe.probe.candidate, choice.recipe.method) == (HELD, REWOUND)
    assert choice.place == pytest.approx(0.67)  # 0.08 / 0.12, rounded up
    assert [r.probe.candidate for r in choice.ranked] == [HELD, FROZEN, FULL]
    assert choice.reference.candidate == FULL


def test_stopping_can_win_and_its_place_is_a_measured_step():
    choice = choose([probe(FULL), probe(FROZEN, stopped=0.01)])
    assert (choice.recipe.probe.candidate, choice.recipe.method, choice.place) == (FROZEN, STOPPED, 40)


@pytest.mark.parametrize("keep", [0.05, 0.0515])
def test_with_a_budget_the_greatest_gain_within_it_is_chosen(keep):
    frozen = probe(FROZEN, gain=0.3, rewound=0.4, stopped=1.0)
    choice = choose([probe(FULL, rewound=0.1), frozen, probe(GENTLE, gain=0.02)], keep=keep)
    # within 0.05: 0.1 x √(0.05 / 0.1) = 0.071 for FULL, 0.3 x √(0.05 / 0.4) = 0.106 for FROZEN
    assert (choice.recipe.probe.candidate, choice.recipe.method) == (FROZEN, REWOUND)
    assert choice.place == pytest.approx(
        0.35
    )  # √(0.05 / 0.4) = 0.354 and √(0.0515 / 0.4) = 0.359, rounded down
    value = read(choice, choice.recipe).measured(with_seeds=False)
    assert value.mean == pytest.approx(0.3 * np.sqrt(keep / 0.4), rel=1e-6)


def test_a_budget_that_nothing_passes_leaves_the_best_weights():
    choice = choose([probe(FULL), probe(FROZEN, gain=0.2)], keep=5.0)
    assert choice.recipe.probe.candidate == FROZEN and choice.place in (1.0, 40.0)


@pytest.mark.parametrize("keep", [None, 0.05])
def test_a_choice_reads_no_test_window_and_no_window_of_half_b(keep):
    sound = [probe(FULL), probe(FROZEN, rewound=0.04), probe(HELD, rewound=0.03)]
    turned = [probe(FULL), probe(FROZEN, rewound=0.04, bump=0.1), probe(HELD, rewound=0.03, bump=9.0)]
    a, b = choose(sound, keep), choose(turned, keep)
    assert (a.recipe.title, a.place) == (b.recipe.title, b.place)
    assert [r.title for r in a.ranked] == [r.title for r in b.ranked]
    left = [FULL, FROZEN, HELD]
    one, other = ({p.candidate: p for p in found} for found in (sound, turned))
    assert survivors(one, left, 2, keep) == survivors(other, left, 2, keep)


def test_a_recipe_that_has_not_come_to_the_level_is_no_choice_but_may_survive():
    slow = probe(GENTLE, gain=0.06, rewound=0.001, stopped=0.001)
    found = {p.candidate: p for p in [probe(FULL), slow, probe(FROZEN)]}
    assert choose(list(found.values())).recipe.probe.candidate != GENTLE
    assert survivors(found, [FULL, GENTLE, FROZEN], 2, None) == [FULL, GENTLE]


def test_what_gains_nothing_or_diverged_is_no_choice():
    assert choose([probe(FULL, gain=-0.1), probe(FROZEN)]) is None
    assert choose([probe(FULL, ended="diverged"), probe(FROZEN)]) is None
    broken = probe(FROZEN, ended="diverged")
    assert choose([probe(FULL), broken]).ranked[0].probe.candidate == FULL
    assert recipes_of([broken]) == []
    assert survivors({FULL: probe(FULL), FROZEN: broken}, [FULL, FROZEN], 2, None) == [FULL]


def test_the_reference_is_fulls_best_rate_and_never_a_replay():
    probes = [probe(FULL), probe(HELD, gain=0.9), probe(GENTLE, gain=0.11), probe(FROZEN, gain=0.5)]
    assert reference_of(probes).candidate == GENTLE


def test_halving_keeps_the_reference_and_the_better_half():
    asked = []
    worth = {c: 0.1 - 0.005 * i for i, c in enumerate(CANDIDATES)}  # the later ones forget less
    worth[FULL] = 0.2

    def make(candidate, before, n_rounds, n_probes):
        asked.append((candidate, before is not None, n_rounds, n_probes))
        return probe(
            candidate, gain=0.11 if candidate == FULL else 0.1, rewound=worth[candidate], stopped=0.5
        )

    found = halve(CANDIDATES, sizes(12), make)
    assert sizes(12) == [12, 6, 3] and sizes(2) == [2] and sizes(4) == [4, 2]
    assert len(asked) == 12 + 6 + 3 and len(found) == 12
    assert [a[0] for a in asked[12:18]] == [FULL, *CANDIDATES[:6:-1]]
    assert [a[0] for a in asked[18:]] == [FULL, *CANDIDATES[:9:-1]]
    assert [a[1:] for a in asked[:2]] == [(False, 3, 12), (False, 3, 11)] and asked[-1][1:] == (True, 1, 1)


def test_a_run_that_its_patience_ended_is_not_probed_again():
    asked = []

    def make(candidate, before, n_rounds, n_probes):
        asked.append(candidate)
        return probe(candidate, ended="patience")

    halve(CANDIDATES[:4], [4, 2], make)
    assert asked == list(CANDIDATES[:4])


def test_a_difference_has_the_error_of_both_texts_and_none_of_seeds():
    choice = choose([probe(FULL), probe(FROZEN, rewound=0.03)])
    assert reported_gain(choice) == pytest.approx(0.08)
    found = difference(choice, Recipe(choice.reference, STOPPED))
    assert found.mean == pytest.approx((0.03 - 0.1) * 0.64, rel=1e-6)
    low, high = found.interval()
    assert low < found.mean < high < 0 and len(found.errors) == 2


def test_a_better_recipe_has_the_greater_merit():
    reference = probe(FULL)
    values = [merit(Recipe(probe(FROZEN, rewound=f), REWOUND), reference, None) for f in (0.08, 0.06, 0.02)]
    assert values == sorted(values)
    assert probe(FULL).gain(REPORT) == pytest.approx(0.1)
