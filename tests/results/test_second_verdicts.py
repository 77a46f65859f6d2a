"""The second study's rules, tried on simulated studies and on records whose answers are known."""

import json
from dataclasses import replace

import numpy as np
import pytest

from helpers.measuring.comparison import ComparisonError
from helpers.measuring.frontiers import LESS, MORE, OPEN, SAME, Readings, Rules, compare, full_gain
from helpers.profiles import TINY
from helpers.results.second_verdicts import (
    BY_TEXT,
    EQUAL,
    PAGE,
    UNTESTED,
    Recipe,
    best_freeze_recipe,
    best_gain,
    compared,
    gain_share,
    gentlest_rate,
    learning_rate,
    over_texts,
    primary_tests,
    rate_changes,
    read_second_study,
    recipe_row,
    rewinding_removes_the_rate,
    which_weights,
)
from helpers.results.study_runs import REWOUND, STOPPED
from helpers.study.protocol import read_protocol
from support.studies import (
    FULL_GAIN,
    MINIATURE,
    N_DEV,
    N_RETENTION,
    PLANS,
    SMOLLM2,
    Case,
    diverged,
    main,
    one_study,
    record,
    run_from,
    simulated,
    study_of,
    tuning,
)

# --- what the rules do where nothing differs ---------------------------------------

RULES = Rules(levels=(0.5, 0.8))
CASES = [
    Case(n_seeds=3, **MINIATURE),
    Case(n_seeds=5, **MINIATURE),
    Case(n_seeds=10, **MINIATURE),
    Case(n_seeds=3, **SMOLLM2),
    Case(n_seeds=5, **SMOLLM2),
]
LONG_CASES = [
    *CASES,
    *(replace(c, n_dev=11, n_retention=16) for c in CASES),
    *(replace(c, n_dev=25, n_retention=32) for c in CASES),
    *(replace(c, seed_sd=0.005) for c in CASES[:3]),
]


def studied(case, n, seed=1):
    """(mean distance, smallest that counts, first 20 studies' words) of n simulated studies."""
    rng, means, smallest, words = np.random.default_rng(seed), [], [], []
    for _ in range(n // 250):
        recipe, reference, full = simulated(case, rng, 250)
        levels = np.multiply.outer(RULES.levels, full_gain([full]))
        a, b = recipe.at_levels(levels), reference.at_levels(levels)
        means.append(Readings(*(x.mean(0) for x in ((a - b).by_dev, (a - b).by_retention))).measured())
        at = b.by_dev[..., 0].mean(-1)  # (levels, studies)
        smallest.append(np.maximum(RULES.smallest, RULES.smallest_share * at).mean(0))
        words += words or [
            compare(one_study(recipe, i), one_study(reference, i), [one_study(full, i)], RULES).word
            for i in range(20)
        ]
    whole = replace(
        means[0],
        mean=np.concatenate([m.mean for m in means]),
        errors=tuple(np.concatenate(e) for e in zip(*(m.errors for m in means), strict=True)),
    )
    return whole, np.concatenate(smallest), words[:20]


def check_that_nothing_is_found(case, n):
    distance, smallest, words = studied(case, n)
    low, high = distance.interval()
    less, more = (high < 0) & (-distance.mean >= smallest), (low > 0) & (distance.mean >= smallest)
    assert [LESS if x else MORE if y else "" for x, y in zip(less, more, strict=True)][:20] == [
        w if w in (LESS, MORE) else "" for w in words
    ], "the whole comparison says the same"
    assert less.mean() <= 0.025 and more.mean() <= 0.025
    assert 0.93 <= ((low < 0) & (high > 0)).mean() <= 0.97


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c.n_seeds} seeds, F {c.forgotten}")
def test_with_no_difference_less_and_more_are_rare_and_the_interval_covers_the_truth(case):
    check_that_nothing_is_found(case, 2000)


@pytest.mark.long
@pytest.mark.parametrize("case", LONG_CASES, ids=str)
def test_with_no_difference_in_many_more_studies(case):
    check_that_nothing_is_found(case, 5000)


def test_a_true_difference_of_a_third_is_seen():
    distance, smallest, words = studied(Case(n_seeds=5, effect=-0.35, **MINIATURE), 250)
    less = (distance.interval()[1] < 0) & (-distance.mean >= smallest)
    assert less.mean() > 0.95 and words.count(LESS) >= 19


# --- records -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def study():
    return study_of(tuning() + main())


# --- choices -----------------------------------------------------------------------


def falling(values, plan="full"):
    """A study whose tuning runs of a plan forget so much at falling rates."""
    rates = (3e-4, 1e-4, 3e-5, 1e-5)
    return study_of(
        [record("full", "alice", 900, 5e-4, forgotten=9.0)] * (plan != "full")
        + [record(plan, "alice", 900, r, forgotten=f) for r, f in zip(rates, values, strict=False)]
    )


@pytest.mark.parametrize(
    "values, rate",
    [
        ([0.30, 0.20, 0.15, 0.12], 1e-5),
        ([0.30, 0.20, 0.19, 0.05], 1e-4),
        ([0.30, 0.31, 0.1], 3e-4),
        ([0.3], 3e-4),
    ],
)
def test_the_gentlest_rate_is_the_last_that_lowered_forgetting_by_a_tenth(values, rate):
    assert gentlest_rate(falling(values), "full") == rate


def test_going_down_ends_where_a_run_does_not_reach_the_level():
    fast = [
        record("full", "alice", 900, 1e-4, forgotten=0.3),
        record("full", "alice", 900, 3e-5, forgotten=0.2),
    ]
    slow = record("full", "alice", 900, 1e-5, forgotten=0.01, gain=0.05)
    assert gentlest_rate(study_of([*fast, slow]), "full") == 3e-5
    assert gentlest_rate(study_of([*fast, diverged("only-mlp-out", "alice", 900)]), "only-mlp-out") == 1e-4
    assert gentlest_rate(study_of(fast), "attention") is None and best_gain(study_of([]), "alice") is None


def test_the_choice_reads_half_a_and_the_tuning_seed_alone():
    tuned = [record("full", "alice", 900, r, forgotten=f) for r, f in ((1e-4, 0.3), (3e-5, 0.2))]
    for r in tuned:
        for point in r["evaluations"]:
            point["forgetting_b"] = [
                1e-4 / r["rate"] * point["step"]
            ] * N_RETENTION  # half B says the opposite
    others = [record("full", "alice", s, 3e-5, forgotten=9.0) for s in range(3)]
    assert gentlest_rate(study_of(tuned + others), "full") == 3e-5


def test_the_rate_that_learns_gains_most():
    tuned = [record("full", "alice", 900, 1e-4, gain=0.15), record("full", "alice", 900, 3e-5, gain=0.16)]
    assert learning_rate(study_of(tuned), "full") == 3e-5 and learning_rate(study_of([]), "full") is None


def test_rewinding_removes_the_rate_where_nothing_changes_over_a_decade():
    def tuned(lowest):
        return study_of(
            [
                record(p, "alice", 900, r, forgotten=f)
                for p in ("full", "attention+embeddings")
                for r, f in ((1e-4, 0.1), (3e-5, 0.1), (1e-5, lowest))
            ]
        )

    assert rewinding_removes_the_rate(tuned(0.098)) and not rewinding_removes_the_rate(tuned(0.08))
    assert len(rate_changes(tuned(0.08))) == 4 and rate_changes(tuned(0.08))[0].change == pytest.approx(
        0.25, abs=0.06
    )
    assert not rewinding_removes_the_rate(study_of(tuning(rates=(1e-4, 3e-5)))), "half a decade says nothing"


def test_the_best_freeze_recipe_may_be_rewound_and_must_reach_the_level():
    found = best_freeze_recipe(study_of(tuning()))
    assert found == Recipe("first-half", 1e-4, REWOUND)
    slow = [
        r | {"evaluations": r["evaluations"][:3], "rewound": r["rewound"][:3]}
        if r["plan"] == "first-half"
        else r
        for r in tuning()
    ]
    assert best_freeze_recipe(study_of(slow)).plan == "only-mlp-out"
    assert best_freeze_recipe(study_of([record("full", "alice", 900)])) is None
    assert best_freeze_recipe(study_of(tuning(rewound=1.5))).method == STOPPED


# --- the primary tests -------------------------------------------------------------


def test_five_tests_each_with_its_word(study):
    found = {v.name: v for v in primary_tests(study)}
    assert [v.word for v in found.values()] == [LESS, SAME, MORE, MORE, LESS]
    assert list(found) == [p["name"] for p in read_protocol(PAGE)["decisions"]["primary"]]
    last = found["best freeze recipe against full rewound"]
    assert last.recipe == Recipe("first-half", 1e-4, REWOUND) and last.reference == Recipe(
        "full", 1e-4, REWOUND
    )
    assert [t.text for t in last.by_text] == ["alice", "edgar"] and last.p < 0.01 and last.reason == ""


def test_results_read_half_b_and_not_the_tuning_seed(study):
    found = compared(study, Recipe("first-half", 1e-4), Recipe("full", 1e-4), "alice")
    assert found.n_pairs == 4
    runs = [r.path(STOPPED, "B") for r in study.of(Recipe("full", 1e-4), "alice")]
    at = found.levels[3]
    assert at.reference == pytest.approx(np.mean([p.forgetting_at(at.gain) for p in runs]))
    other_a = main()
    for point in (p for r in other_a for p in r["evaluations"]):
        point["forgetting_a"] = [9.0 * f for f in point["forgetting_a"]]
    again = compared(study_of(tuning() + other_a), Recipe("first-half", 1e-4), Recipe("full", 1e-4), "alice")
    assert again.mean_distance == found.mean_distance


def test_words_of_two_texts():
    assert (
        over_texts([LESS, LESS]) == LESS and over_texts([LESS, MORE]) == over_texts([LESS, SAME]) == BY_TEXT
    )
    assert over_texts([LESS, OPEN]) == OPEN


def test_texts_that_disagree_are_said(study):
    records = (
        tuning()
        + [r for r in main() if (r["plan"], r["text"]) != ("attention", "edgar")]
        + [record("attention", "edgar", s, forgotten=0.2) for s in range(4)]
    )
    found = primary_tests(study_of(records))[1]
    assert found.word == BY_TEXT and [t.comparison.word for t in found.by_text] == [SAME, MORE]


def test_holms_rule_takes_back_what_is_too_weak(study, monkeypatch):
    from helpers.results import second_verdicts

    monkeypatch.setattr(second_verdicts, "holm_adjusted", lambda p: [0.06] * len(p))
    found = primary_tests(study)
    assert {v.word for v in found} == {OPEN} and all("Holm" in v.reason for v in found)


def test_without_tuning_or_main_runs_a_test_is_open():
    assert {v.word for v in primary_tests(study_of([]))} == {OPEN}
    found = primary_tests(study_of(tuning()))
    assert {v.reason for v in found} == {"Alice: no pairs of runs yet; Edgar: no pairs of runs yet"}
    two = primary_tests(study_of(tuning() + main(seeds=2)))
    assert {v.word for v in two} == {OPEN} and {v.p for v in two} == {1.0}


def test_a_diverged_run_opens_the_tests_that_read_it():
    records = [
        diverged("attention", "edgar", 2)
        if (r["plan"], r["text"], r["seed"]) == ("attention", "edgar", 2)
        else r
        for r in main()
    ]
    found = primary_tests(study_of(tuning() + records))
    assert found[1].word == OPEN and found[1].reason == "Edgar: 1 run diverged"
    assert found[0].word == LESS


def test_runs_that_are_no_pairs_are_refused():
    records = tuning() + [r | {"model_hash": "other"} if r["plan"] == "attention" else r for r in main()]
    with pytest.raises(ComparisonError, match="no pairs"):
        primary_tests(study_of(records))


def test_a_method_that_a_run_does_not_offer_is_named(study):
    run = study.of(Recipe("full", 1e-4), "alice")[0]
    with pytest.raises(ComparisonError, match="It has: stopped, rewound"):
        run.path("rewound attention", "A")
    role = run_from(record("full", "alice", 0, roles=("attention",)))
    assert role.path("rewound attention", "A").forgetting_at(0.01) is None, "the other roles stay tuned"
    assert role.path("rewound attention", "A").best_gain == pytest.approx(role.path(STOPPED, "A").best_gain)


# --- learning ----------------------------------------------------------------------


def learned(share, seeds=5, full_gain=0.12):
    plan = [record("attention", "alice", s, test_gain=share * full_gain) for s in range(seeds)]
    full = [record("full", "alice", s, test_gain=full_gain) for s in range(seeds)]
    return gain_share(study_of(tuning() + plan + full), "attention", "alice")


@pytest.mark.parametrize("share, word", [(0.97, EQUAL), (0.6, LESS)])
def test_the_share_of_full_trainings_gain(share, word):
    found = learned(share)
    assert found.word == word and found.share.mean == pytest.approx(share, rel=0.02)
    assert found.base_loss == pytest.approx(3.2) and found.full_loss < found.loss < found.base_loss


def test_a_share_that_is_the_same_in_every_pair_has_no_error_over_seeds():
    gains = [0.10, 0.12, 0.14]
    runs = [
        record(p, "alice", s, test_gain=k * g)
        for p, k in (("attention", 0.8), ("full", 1.0))
        for s, g in enumerate(gains)
    ]
    found = gain_share(study_of(tuning() + runs), "attention", "alice")
    assert found.share.mean == pytest.approx(0.8) and found.share.errors[0] == pytest.approx(0.0, abs=1e-9)


def test_where_full_training_gains_nothing_the_share_is_not_tested():
    found = learned(0.97, full_gain=-0.02)
    assert found.word == UNTESTED and found.share is None and found.full_loss > found.base_loss
    assert learned(0.97, seeds=2).word == OPEN
    nothing = gain_share(study_of(tuning()), "attention", "alice")
    assert nothing.word == OPEN and nothing.base_loss is None


# --- rows --------------------------------------------------------------------------


def full_dev():
    """The mean of the dev windows' gains over the gain that `record` was given."""
    return np.random.default_rng(7).normal(1, 0.1, N_DEV).mean()


def test_a_row_for_each_recipe_from_records_alone(study):
    rows = which_weights(study, "alice")
    assert len(rows) == 2 * len(PLANS) and rows[0].recipe == Recipe("first-half", 1e-4, REWOUND)
    full = next(r for r in rows if r.recipe == Recipe("full", 1e-4))
    assert full.n_runs == 4 and full.n_diverged == full.n_at_cap == 0
    assert full.gain_share == pytest.approx(1.0, rel=0.01)
    level = 0.8 * FULL_GAIN
    assert full.forgetting[3] == pytest.approx(
        np.mean(
            [r.path(STOPPED, "B").forgetting_at(level * full_dev()) for r in study.of(full.recipe, "alice")]
        ),
        rel=1e-6,
    )
    assert list(full.forgetting) == sorted(full.forgetting)
    assert full.gain_at_budget[0] == pytest.approx(
        np.mean([r.path(STOPPED, "B").gain_at(0.03) for r in study.of(full.recipe, "alice")])
    )
    assert full.test_loss < full.base_test_loss == pytest.approx(3.2)
    assert (full.n_trainable, full.file_bytes, full.step_seconds) == (1000, 4000, 0.5)


def test_the_test_loss_of_a_rewound_recipe_is_that_of_its_best_dev_model(study):
    run = study.of(Recipe("full", 1e-4), "alice")[0]
    assert run.test_windows(REWOUND).tolist() == run.test.tolist(), (
        "here more gains more: the whole way is best"
    )
    assert run.base_test.mean() - run.test.mean() == pytest.approx(0.8 * FULL_GAIN, rel=0.1)


def test_what_a_run_does_not_reach_is_none_in_the_row():
    short = [record("only-attention", "alice", s, gain=0.1) for s in range(3)]
    row = recipe_row(study_of(tuning() + short), Recipe("only-attention", 1e-4), "alice")
    assert [f is None for f in row.forgetting] == [False, False, False, True, True]
    gone = recipe_row(
        study_of(tuning() + [*short, diverged("only-attention", "alice", 3)]),
        Recipe("only-attention", 1e-4),
        "alice",
    )
    assert (
        gone.n_runs == 4
        and gone.n_diverged == 1
        and set(gone.forgetting) == {None}
        and gone.test_loss is None
    )
    assert gone.gain_share is None and gone.file_bytes == 4000
    capped = [r | {"ended": "cap"} for r in short]
    assert recipe_row(study_of(tuning() + capped), Recipe("only-attention", 1e-4), "alice").n_at_cap == 3
    assert recipe_row(study_of(short), Recipe("only-attention", 1e-4), "alice").gain_share is None


def written(folder, records):
    """The folder with each record as a file of its own."""
    for i, one in enumerate(records):
        (folder / f"{i:03}.json").write_text(json.dumps(one))
    return folder


def rows_in(base, folder):
    """The rows of every text, from the records of a folder."""
    study = read_second_study(folder, read_protocol(PAGE), base)
    return tuple(row for text in sorted({r.text for r in study.runs}) for row in which_weights(study, text))


def test_the_rows_of_every_text_are_read_from_a_folder(tmp_path):
    runs = [record("full", text, seed) for text in ("alice", "edgar") for seed in range(3)]
    rows = rows_in("tiny", written(tmp_path, tuning() + runs))
    assert [(r.text, str(r.recipe), r.n_runs) for r in rows] == [
        ("alice", "full, 0.0001, rewound", 3),
        ("alice", "full, 0.0001, stopped", 3),
        ("edgar", "full, 0.0001, rewound", 3),
        ("edgar", "full, 0.0001, stopped", 3),
    ]


def test_before_the_main_runs_there_is_no_row(tmp_path):
    assert rows_in("tiny", written(tmp_path, tuning())) == ()
    assert rows_in("smollm2", tmp_path / "nothing here") == ()


def test_a_replay_is_a_recipe_of_its_own():
    records = tuning() + [record("full", "alice", s, weight=w) for s in range(3) for w in (0.0, 1.0)]
    assert {r.recipe.weight for r in which_weights(study_of(records), "alice")} == {0.0, 1.0}
    assert str(Recipe("full", 1e-4, REWOUND, 1.0)) == "full, 0.0001, rewound, replay 1"
    assert str(Recipe("full", None)) == "full, rate not known, stopped"


def test_a_study_is_read_from_a_folder(tmp_path):
    from helpers.study.records import write_record

    for r in (record("full", "alice", 900), record("full", "alice", 0)):
        write_record(tmp_path / r["plan"] / r["text"] / f"{r['seed']}.json", r)
    found = read_second_study(tmp_path, read_protocol(PAGE), "smollm2")
    assert len(found.runs) == 2 and found.budgets == (0.05, 0.10, 0.15)
    assert found.rules == Rules(), "the page and the code have the same numbers"


def test_the_rates_of_a_run_that_names_none_are_those_of_the_tuning_runs():
    """`Profile.rates` is typed by hand, since profiles read no records: it must be what the records say."""
    recorded = read_second_study(
        PAGE.parent / "study2" / "runs" / TINY.model_name, read_protocol(PAGE), "tiny"
    )
    tuned = {r.plan for r in recorded.runs if r.seed in recorded.choices.tuning_seeds}
    assert TINY.rates == {plan: gentlest_rate(recorded, plan, REWOUND) for plan in tuned}
    assert TINY.rate_of("only-mlp-out") == 3e-4 and TINY.rate_of("mlp") == TINY.rate_main
