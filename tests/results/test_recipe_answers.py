"""The page "which weights": its sentences are the primary tests, its rows the recipes, and nothing else is claimed."""

import pytest
from matplotlib import pyplot

from helpers.measuring import LESS, OPEN
from helpers.results.recipe_answers import recipes, recipes_of, said
from helpers.results.second_verdicts import primary_tests
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
        assert cells[1] == own.text and cells[3] == "4" and cells[5] == own.comparison.word
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
        rows = table.partition(f"on {text}: recipe")[2].partition("\n\n")[0].splitlines()[2:]
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
