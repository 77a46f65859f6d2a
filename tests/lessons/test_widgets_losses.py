"""The loss explorer: every point stays, smoothing is what it says, any recorded folder will do."""

import json
import re
import time
from statistics import median

import numpy as np
import pytest

from helpers.lessons.widgets.losses import (
    RunsError,
    curves_figure,
    ends,
    label,
    lines_of,
    loss_explorer,
    runs_of_one_model,
    runs_shown,
    series,
    smoothed,
    style_of,
)
from helpers.measuring.comparison import chosen, pairs_by_seed
from helpers.profiles import DATA, TINY

RECORDED = DATA / "evidence" / "runs" / TINY.model_name


def run(plan="full", text="alice", seed=0, rate=1e-4, n=12, **more):
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
    runs = [run(seed=s) for s in range(4)] + [run(rate=3e-4, text=t) for t in ("edgar", "zoe")]
    runs += [run(plan="only-norms", text=t, seed=5) for t in ("edgar", "zoe")]
    for number, one in enumerate(runs):
        place = tmp_path / one["plan"] / one["text"]
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number}.json").write_text(json.dumps(one))
    return tmp_path


def test_whatever_is_recorded_can_be_chosen(folder):
    controls = loss_explorer(folder).controls
    assert controls["text"].options == ("alice", "edgar", "zoe")
    assert controls["seed"].options == ("all", "0", "1", "2", "3", "5")
    assert [name for name in controls if "rate" in name] == [
        "full, rate 0.0001",
        "full, rate 0.0003",
        "only-norms, rate 0.0001",
    ]


def test_the_courses_own_evidence_is_shown():
    frame = loss_explorer(RECORDED)
    runs = runs_of_one_model(RECORDED)
    assert {r["text"] for r in runs} == set(frame.controls["text"].options)
    assert {label(r) for r in runs} <= set(frame.controls)


def test_a_purpose_ticks_its_rate_alone(folder):
    (folder / "keep.json").write_text(json.dumps(run(rate=1e-5, rate_choice="keep")))
    controls = loss_explorer(folder, plans=["full"], choice="keep").controls
    assert [name for name in controls if "rate" in name and controls[name].value] == ["full, rate 1e-05"]


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


def test_every_measured_point_stays_in_the_picture(folder):
    frame = loss_explorer(folder, plans=["full"], window=5)
    shown = frame.views["curves"].value
    assert shown.count("h0") == 4 * 12  # a dot each
    assert shown.count('stroke-width="2.5"') == 4 and "thick: mean of 5 points" in shown
    frame.controls["window"].value = 1
    shown = frame.views["curves"].value
    assert shown.count("h0") == 4 * 12 and 'stroke-width="2.5"' not in shown and "nothing smoothed" in shown


def test_smoothing_is_the_mean_of_neighbours_and_of_fewer_at_the_ends():
    assert smoothed(np.array([0.0, 3.0, 6.0, 0.0]), 3).tolist() == [1.5, 3.0, 3.0, 3.0]
    assert smoothed(np.array([1.0, np.nan, 3.0, np.nan]), 1)[2] == 3.0
    assert smoothed(np.array([1.0, np.nan, 3.0]), 3).tolist() == [1.0, 2.0, 3.0]


def test_one_seed_alone(folder):
    frame = loss_explorer(folder, plans=["full"])
    frame.controls["seed"].value = "2"
    assert frame.views["curves"].value.count("h0") == 12
    assert "<td" in frame.views["ends"].value and ">1</td>" in frame.views["ends"].value


def test_a_label_keeps_its_colour(folder):
    runs = runs_of_one_model(folder)
    labels = sorted(set(map(label, runs)))
    alone = lines_of(runs_shown(runs, labels[1:2], "alice"), "forgetting", 1, labels)
    both = lines_of(runs_shown(runs, labels[:2], "alice"), "forgetting", 1, labels)
    assert {line.colour for line in alone} < {line.colour for line in both}


def test_the_runs_shown_at_first_have_colours_of_their_own_however_many_others_there_are(folder):
    for k in range(12):  # names that sort before and after
        (folder / f"other-{k}.json").write_text(json.dumps(run(plan=f"{'az'[k % 2]}-{k}")))
    labels = [name for name in loss_explorer(folder, plans=["full"]).controls if ", rate " in name]
    styles = [tuple(style_of(name, labels).values()) for name in labels]
    assert len(labels) == 15 and labels[:2] == ["full, rate 0.0001", "full, rate 0.0003"]
    assert len(set(styles)) == len(styles)
    eighth = {labels[7]: [run()]}
    figure = curves_figure(lines_of(eighth, "forgetting", 1, labels), eighth, labels, "", "")
    assert {line.get_linestyle() for line in figure.axes[0].lines} == {"--"}


def test_nothing_chosen_is_an_empty_chart_and_no_error(folder):
    frame = loss_explorer(folder, plans=["full"])
    frame.controls["full, rate 0.0001"].value = False
    assert "no run is chosen" in frame.views["curves"].value and frame.problem.value == ""


def test_the_table_is_never_smoothed(folder):
    frame = loss_explorer(folder, plans=["full"], window=1)
    before = frame.views["ends"].value
    frame.controls["window"].value = 25
    assert frame.views["ends"].value == before and "2.965" in before  # mean of 2.95 to 2.98


def test_a_run_that_diverged_leaves_a_gap():
    broken = run(losses=[3.0, None, 3.2], evaluations=[{"step": 0, "held_out_loss": 3.4}, {"step": 6}])
    steps, values = series(broken, "training loss, each batch")
    assert steps.tolist() == [1, 2, 3] and np.isnan(values[1])
    assert series(broken, "forgetting")[0].tolist() == []
    assert len(ends({"x": [broken]}, "forgetting")) == 0


def test_a_folder_without_runs_and_a_mixed_one_are_refused(tmp_path, folder):
    with pytest.raises(RunsError, match="course study first"):
        loss_explorer(tmp_path / "nothing")
    (folder / "other.json").write_text(json.dumps(run(model_hash="b")))
    with pytest.raises(RunsError, match="2 models"):
        loss_explorer(folder)


def test_the_picture_says_what_it_shows(folder):
    figure, said = loss_explorer(folder, plans=["full"], window=9).still()
    assert "4 seeds" in said and "Every measured point is drawn" in said and "means over 9" in said
    assert "mean of 9 points" in figure.axes[0].get_title(loc="left")


def test_the_chart_is_described_for_those_who_cannot_see_it(folder):
    shown = loss_explorer(folder).views["curves"].value
    assert re.search(r'<svg role="img" aria-label="Loss explorer: [^"]{50,}"', shown)


def test_a_change_is_answered_within_100_ms():
    """Median over the course's own evidence, all its runs ticked, in the processor time of this process."""
    frame = loss_explorer(RECORDED, plans=[r["plan"] for r in runs_of_one_model(RECORDED)])
    seconds = []
    for name, value in (
        ("window", 25),
        ("window", 1),
        ("window", 9),
        ("text", "edgar"),
        ("measure", "gradient norm"),
        ("measure", "loss on the dev text"),
        ("seed", "0"),
        ("seed", "all"),
        ("text", "alice"),
    ):
        begin = time.process_time()
        frame.controls[name].value = value
        seconds.append(time.process_time() - begin)
    assert median(seconds) < 0.1
