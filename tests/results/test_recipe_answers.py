"""The page "which weights": its sentences are the primary tests, its rows the recipes, and nothing else is claimed."""

import re

import pytest
from matplotlib import pyplot

from helpers.costs import budget
from helpers.freezing import FreezePlan
from helpers.measuring import LESS, OPEN
from helpers.models import mini_config
from helpers.results import two_digits
from helpers.results.recipe_answers import (
    advice,
    choices_table,
    cost_of,
    headline,
    how_far,
    recipes,
    recipes_of,
    said,
)
from helpers.results.second_verdicts import Recipe, primary_tests, which_weights
from support.studies import main, record, study_of, tuning


@pytest.fixture(scope="module")
def study():
    return study_of(tuning() + main())


def test_each_primary_test_has_its_sentence_with_its_word_and_numbers(study):
    answer = recipes_of(study)
    tests = primary_tests(study)
    for test in tests:
        assert said(test)[1:] in answer.sentence
    assert tests[0].word == LESS and "forgets less than full training at 0.0001, stopped" in answer.sentence
    rows = answer.table.partition("\n\n")[0].splitlines()[2:]
    assert len(rows) == sum(len(t.by_text) for t in tests) == 10
    for row, own in zip(rows, (v for t in tests for v in t.by_text), strict=True):
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        found = own.comparison.mean_distance
        assert float(cells[2].split()[0]) == pytest.approx(found.mean, rel=0.06), "two digits"
        assert cells[1] == own.text.title() and cells[3] == "4" and cells[5] == own.comparison.word
    assert answer.page == "PROTOCOL-2.md" and "4 seeds (0 to 3)" in answer.origin


def test_with_too_few_pairs_nothing_is_said():
    assert recipes_of(study_of(tuning() + main(seeds=2))) is None


def test_an_open_test_says_open_and_why():
    """Full training alone has three seeds: its test is read, the others wait."""
    records = main(seeds=2) + [record("full", text, 2) for text in ("alice", "edgar")]
    few = study_of(tuning() + records)
    assert [t.word for t in primary_tests(few)][1:] == [OPEN] * 4
    answer = recipes_of(few)
    decided, _, left = answer.sentence.partition("Open: ")
    assert left.count(" against ") == 4 and decided.count("forgets less") == 1
    rows = answer.table.partition("\n\n")[0].splitlines()[2:]
    assert sum("open: 3 pairs are needed" in row or "open: " in row for row in rows) == 8
    assert len(answer.data) == 2, "and the figure shows what was read alone"


def test_every_recipe_that_was_run_has_a_row_on_each_text(study):
    table = recipes_of(study).table
    for text in ("alice", "edgar"):
        rows = table.partition(f"on {text.title()}: recipe")[2].partition("\n\n")[0].splitlines()[2:]
        assert len(rows) == 14, "seven plans, stopped and rewound"


def test_without_main_runs_there_is_no_answer(tmp_path):
    assert recipes_of(study_of(tuning())) is None

    class Nobody:
        model = "gpt-neo-mini"

    assert recipes(Nobody(), tmp_path) is None


def test_the_figure_has_a_row_for_each_difference(study):
    answer = recipes_of(study)
    figure = answer.draw()
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == list(answer.data)
    pyplot.close(figure)


def test_each_choice_stands_with_its_numbers_on_each_text(study):
    said = advice(study)
    assert len(said) == 4, "one rate was run: nothing is said about rates"
    rewind = said[0]
    assert rewind.startswith("**Rewind?** Full training at 0.0001, rewound, forgot 0.5")
    for text in ("alice", "edgar"):
        rows = {row.recipe: row.forgetting[2] for row in which_weights(study, text)}
        full, stopped = rows[Recipe("full", 1e-4, "rewound")], rows[Recipe("full", 1e-4)]
        assert (
            f"on {text.title()} ({two_digits(full)} / {two_digits(stopped)} nats per token; less)" in rewind
        )
    # Along a rewound path forgetting grows with the square of the way, and the gain with the way.
    assert said[-1].startswith("**How far?** Base + 0.4 · change keeps 40% of the gain on dev and 16% of")
    assert recipes_of(study).rules == tuple(said)


def test_the_table_of_choices_has_the_numbers_of_the_sentences(study):
    table = choices_table(study)
    assert list(table.columns) == ["choice", "recipe", "against", "Alice", "Edgar"]
    said = {line.partition("**")[2].partition("**")[0]: line for line in advice(study)}
    assert [*table.choice, "How far?"] == list(said), "a row for each choice, in the order of the sentences"
    assert said["How far?"].endswith(f"{how_far(study)}.")
    for title, row in zip(table.choice, table.itertuples(), strict=True):
        assert f"{row.recipe}, forgot" in said[title].lower() and f"against {row.against}." in said[title]
        for text in ("Alice", "Edgar"):
            ratio, numbers, word = re.fullmatch(r"(\S+) \((.+)\), (.+)", getattr(row, text)).groups()
            assert f"{ratio} times as much on {text} ({numbers} nats per token; {word})" in said[title]


def test_a_text_on_which_nothing_is_known_has_an_empty_cell():
    records = [r for r in tuning() + main() if (r["plan"], r["text"]) != ("attention", "edgar")]
    table = choices_table(study_of(records)).set_index("choice")
    row = table.loc["Freeze attention as well?"]
    assert row.Alice and row.Edgar == ""


def test_replay_stands_beside_rewinding_with_the_loss_on_ordinary_prose():
    """Replay halves what is forgotten (0.05 of 0.10), and rewinding halves it once more (`support.studies`)."""
    replayed = [
        record("full", text, seed, weight=1.0, forgotten=0.05)
        for text in ("alice", "edgar")
        for seed in range(4)
    ]
    said = advice(study_of(tuning() + main() + replayed))[4:]
    assert [line.partition("?**")[0] for line in said] == [
        "**Replay, in place of rewinding",
        "**Replay, and rewind",
        "**Replay, where you do not rewind",
    ]
    instead, rewound, alone = said
    assert "Full training with replay 1 at 0.0001, stopped, forgot " in instead
    assert instead.count("no difference that counts") == 2
    assert rewound.count("; less)") == 2 and alone.count("; less)") == 2
    assert alone.count(" 0.50 times as much on") == 2
    for line in said:
        assert line.endswith("above the base: +0 / +0 on Alice, +0 / +0 on Edgar.")


def test_the_first_screen_says_replay_when_each_text_has_the_runs_that_the_protocol_asks_for():
    def replayed(n_seeds, texts):
        return [record("full", t, s, weight=1.0, forgotten=0.05) for t in texts for s in range(n_seeds)]

    said = headline(study_of(tuning() + main() + replayed(3, ("alice", "edgar"))))
    first, again, _ = said.split(". ", 2)
    assert first.endswith("times as much as stopped early (4 seeds)")
    assert again.endswith(" it forgets 0.50 and 0.50 times that (described, not tested)")
    for few in (replayed(2, ("alice", "edgar")), replayed(3, ("alice",)), []):
        assert "replay" not in headline(study_of(tuning() + main() + few))


def test_a_choice_that_nobody_ran_is_left_out():
    """Attention frozen was never run: nothing is said about it."""
    records = [r for r in tuning() + main() if r["plan"] != "attention"]
    assert not any("ttention frozen" in rule for rule in advice(study_of(records)))


def test_memory_and_work_of_a_step_are_the_budgets():
    own = budget(mini_config(), FreezePlan.freeze("attention"), 8, 256)
    full = budget(mini_config(), FreezePlan.full(), 8, 256)
    memory, work = cost_of("gpt-neo-mini", Recipe("attention", 1e-4))
    assert memory == f"{own.peak_bytes / 2**20:.0f} MiB" and work == f"{own.flops.step / full.flops.step:.0%}"
    dearer = cost_of("gpt-neo-mini", Recipe("full", 1e-4, "stopped", 1.0))
    assert int(dearer[1][:-1]) > 130 and cost_of("gpt-neo-mini", Recipe("full", 1e-4))[1] == "100%"
    assert cost_of("a base that is not here", Recipe("full", 1e-4)) == ["", ""]


def test_abilities_stand_in_a_table_of_their_own_beside_the_base(study):
    row = {"plan": "attention", "rate": 1e-4, "weight": 0.0, "text": "alice", "seed": 0, "share": 0.4}
    kept = {"base": {"copying": 0.504}, "rows": [row | {"copying": 0.476}]}
    table = recipes_of(study, kept).table.rpartition("\n\n")[2].splitlines()
    assert "copying, nats per token (base 0.50)" in table[0]
    assert table[2] == "| attention frozen at 0.0001, 0.4 of the change | Alice | 0.48 |"
    assert "copying" not in recipes_of(study).table
