"""The loss explorer: means and bands are what they say, colours are the registry's, any recorded folder will do."""

import json

import numpy as np
import pytest

from helpers.lessons.widgets.losses import (
    MEASURES,
    RunsError,
    band,
    ends,
    label,
    loss_explorer,
    run_data,
    runs_of_one_model,
    series,
    smoothed,
)
from helpers.measuring.comparison import chosen, pairs_by_seed
from helpers.plots import PLAN_COLOURS
from helpers.profiles import DATA, TINY
from helpers.study.records import run_of

RECORDED = DATA / "evidence" / "runs" / TINY.model_name
OWN = "training loss, each batch"


def run(**more):
    return run_of("a built run", row(**more))


def row(plan="full", text="alice", seed=0, rate=1e-4, n=12, **more):
    """A run as its file holds it."""
    losses = [3.5 - 0.05 * i + 0.01 * seed for i in range(n)]
    points = [
        {"step": s, "held_out_loss": 3.4 - 0.01 * s, "train_loss": 3.3, "forgetting": 0.01 * s}
        for s in (0, 6, 12)
    ]
    return {
        "plan": plan,
        "text": text,
        "seed": seed,
        "rate": rate,
        "model_hash": "a",
        "losses": losses,
        "norms": losses,
        "evaluations": points,
    } | more


@pytest.fixture
def folder(tmp_path):
    """Two plans, one of them at two rates, on three texts, with up to four seeds."""
    rows = [row(seed=s) for s in range(4)] + [row(rate=3e-4, text=t) for t in ("edgar", "zoe")]
    rows += [row(plan="only-norms", text=t, seed=5) for t in ("edgar", "zoe")]
    for number, one in enumerate(rows):
        place = tmp_path / one["plan"] / one["text"]
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number}.json").write_text(json.dumps(one))
    return tmp_path


def test_whatever_is_recorded_can_be_chosen(folder):
    data = loss_explorer(folder).data
    assert data["texts"] == ["alice", "edgar", "zoe"] and data["seeds"] == [0, 1, 2, 3, 5]
    assert [look["words"] for look in data["labels"]] == [
        "full training, 1e-4",
        "full training, 3e-4",
        "norms alone, 1e-4",
    ]


def test_the_courses_own_evidence_is_shown():
    data, runs = loss_explorer(RECORDED).data, runs_of_one_model(RECORDED)
    assert {r.text for r in runs} == set(data["texts"]) and len(data["runs"]) == len(runs)
    assert {label(r) for r in runs} == {look["label"] for look in data["labels"]}
    for look in data["labels"]:
        assert look["colour"] == PLAN_COLOURS[look["label"].partition(", ")[0]]
    looks = [(look["colour"], look["dash"]) for look in data["labels"]]
    assert len(set(looks)) == len(looks)


def test_a_purpose_shows_its_rate_alone(folder):
    (folder / "keep.json").write_text(json.dumps(row(rate=1e-5, rate_choice="keep")))
    assert loss_explorer(folder, plans=["full"], choice="keep").choice["on"] == ["full, rate 1e-05"]


def test_a_plan_without_a_registered_colour_gets_one_of_its_own(folder):
    (folder / "other.json").write_text(json.dumps(row(plan="mine")))
    looks = loss_explorer(folder).data["labels"]
    assert looks[-1]["words"] == "mine, 1e-4"
    assert looks[-1]["colour"] not in {look["colour"] for look in looks[:-1]}


def test_the_answers_that_the_notebook_gives_are_true():
    """Notebook 05: runs with one seed jump together; the plans lie apart in training loss, hardly on dev."""
    runs = runs_of_one_model(RECORDED)
    for text in ("alice", "edgar"):
        full, main = (chosen(runs, plan, text, "learn") for plan in ("full", "attention+embeddings"))
        own, dev = "training loss, each batch", "loss on the dev text"
        for a, b in pairs_by_seed(full, main):
            n = min(len(series(run, own)[1]) for run in (a, b))  # a run ends early where it learns no more
            x, y = (series(run, own)[1][:n] for run in (a, b))
            assert np.corrcoef(np.diff(x), np.diff(y))[0, 1] > 0.9
            assert np.abs(np.diff(x)).mean() > (y - x)[:10].mean() > 0 and np.mean(y > x) > 0.9
        gap = {
            m: [values.mean() for values in ends({"full": full, "main": main}, m).values()]
            for m in (own, dev)
        }
        assert gap[own][1] - gap[own][0] > 5 * abs(gap[dev][1] - gap[dev][0])


def test_smoothing_is_the_mean_of_neighbours_and_of_fewer_at_the_ends():
    assert smoothed(np.array([0.0, 3.0, 6.0, 0.0]), 3).tolist() == [1.5, 3.0, 3.0, 3.0]
    assert smoothed(np.array([1.0, np.nan, 3.0, np.nan]), 1)[2] == 3.0
    assert smoothed(np.array([1.0, np.nan, 3.0]), 3).tolist() == [1.0, 2.0, 3.0]


def test_a_band_is_the_mean_the_lowest_and_the_highest_as_far_as_all_runs_go():
    runs = [run(seed=0), run(seed=2, n=9)]
    found = band(runs, OWN, 1)
    assert found.steps.tolist() == list(range(1, 10))
    assert found.low == pytest.approx(runs[0].losses[:9]) and found.high == pytest.approx(runs[1].losses)
    assert found.mean == pytest.approx((found.low + found.high) / 2)
    assert band([run(losses=[])], OWN, 1) is None


def test_what_is_no_number_reaches_the_page_as_a_gap_and_steps_that_count_from_one_are_left_out():
    data = run_data(run(losses=[3.0, None, 3.2]))["series"]
    assert data[OWN] == {"values": [3.0, None, 3.2]}
    assert data["forgetting"] == {"steps": [0, 6, 12], "values": [0.0, 0.06, 0.12]}
    assert set(data) == set(MEASURES)


def test_a_run_that_diverged_leaves_a_gap():
    broken = run(losses=[3.0, None, 3.2], evaluations=[{"step": 0, "held_out_loss": 3.4}, {"step": 6}])
    steps, values = series(broken, "training loss, each batch")
    assert steps.tolist() == [1, 2, 3] and np.isnan(values[1])
    assert series(broken, "forgetting")[0].tolist() == []
    assert len(ends({"x": [broken]}, "forgetting")) == 0


def test_a_folder_without_runs_and_a_mixed_one_are_refused(tmp_path, folder):
    with pytest.raises(RunsError, match="course study first"):
        loss_explorer(tmp_path / "nothing")
    (folder / "other.json").write_text(json.dumps(row(model_hash="b")))
    with pytest.raises(RunsError, match="2 models"):
        loss_explorer(folder)


def test_the_picture_says_what_it_shows(folder):
    figure, said = loss_explorer(folder, plans=["full"], window=9)._still()
    assert "4 seeds" in said and "mean over seeds" in said and "the mean of 9 neighbouring ones" in said
    assert "full, rate 0.0001 2.965" in said  # mean of 2.95 to 2.98: the last points, never smoothed
    assert "mean of 9 neighbouring points" in figure.axes[0].get_title(loc="left")
    (line,) = figure.axes[0].lines
    assert line.get_color() == PLAN_COLOURS["full"] and len(figure.axes[0].collections) == 1


def test_nothing_chosen_is_an_empty_picture_and_no_error(folder):
    assert "no run is chosen on alice" in loss_explorer(folder, plans=["only-norms"])._still()[1]
