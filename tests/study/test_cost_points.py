"""The recorded costs: what the budget says against what the allocator held, and what a kept bottom saves in time."""

from statistics import median

import pytest

from helpers.costs.step_cost import BottomSize, budget, compare
from helpers.freezing.plans import FreezePlan
from helpers.study import cost_points, guard_cost, processes
from helpers.study.measured_costs import bottom_table, read
from helpers.study.processes import config_of, measured_apart, resident_bytes
from helpers.study.records import RecordError, read_record
from support.said import course

RECORD = read(cost_points.FILE)
KINDS_OF_STEP = ("checkpointing", "n_parts", "replay_limit", "bfloat16", "keeps_bottom")


def some_points() -> list[dict]:
    """One point of each family, and of Llama one of each kind of step: its head is a tensor of its own."""
    found = {}
    for point in RECORD["points"]:
        kind = next((k for k in KINDS_OF_STEP if k in point), point["plan"] == "lora" and "lora")
        found.setdefault(point["family"], point)
        if point["family"] == "llama":
            found.setdefault(kind, point)
    return list(found.values())


def named(point: dict) -> str:
    return " ".join(str(value) for value in cost_points.settings_of(point).values())


def require_predicted(point: dict) -> None:
    config = cost_points.configs()[point["family"]]
    now = cost_points.predicted(point, config).at_peak
    assert {kind: size for kind, size in now.items() if size} == point["predicted"]


def test_every_point_was_measured():
    assert [cost_points.settings_of(point) for point in RECORD["points"]] == list(cost_points.points())
    assert len(RECORD["points"]) >= 200 and {p["family"] for p in RECORD["points"]} == set(
        cost_points.configs()
    )


def test_the_budget_is_right_to_three_percent_everywhere_and_to_one_in_the_median():
    off = cost_points.errors(RECORD)
    assert max(off) <= 0.03 and median(off) <= 0.01


@pytest.mark.parametrize("point", some_points(), ids=named)
def test_the_recorded_predictions_are_those_of_today(point):
    require_predicted(point)


@pytest.mark.long
@pytest.mark.parametrize("point", RECORD["points"], ids=named)
def test_all_recorded_predictions_are_those_of_today(point):
    require_predicted(point)


@pytest.mark.parametrize("point", some_points()[:2], ids=named)
def test_a_point_measured_here_is_the_recorded_one(point):
    config = cost_points.configs()[point["family"]]
    assert cost_points.measured(point, config) == pytest.approx(point["measured"], rel=0.001)


@pytest.mark.parametrize("entry", RECORD["times"], ids=lambda entry: f"{entry['n_frozen']} frozen")
def test_a_kept_bottom_saves_the_time_that_its_flops_say(entry):
    config, n = config_of("125m"), entry["n_frozen"]
    plan = FreezePlan.freeze("embeddings", f"layers:0-{n - 1}")
    plainly, once = (
        budget(config, plan, entry["batch"], entry["length"], bottom=kept) for kept in (None, BottomSize(0))
    )
    assert entry["predicted_ratio"] == pytest.approx(compare(plainly, once)["step_flops"], abs=1e-4)
    row = bottom_table(RECORD).loc[(n, entry["n_blocks"])]
    assert row.low <= row.measured <= row.high and row.n_pairs == len(entry["log_ratios"])
    assert row.measured == pytest.approx(row.predicted, rel=0.03)


def test_a_measurement_that_was_stopped_goes_on(tmp_path, monkeypatch, capsys):
    file, calls = tmp_path / "costs.json", []
    few = [point for point in cost_points.points() if point["family"] == "llama"][:3]

    def pretend(point, config):
        if len(calls) == 2:
            raise RuntimeError("stopped")
        calls.append(point)
        return sum(cost_points.predicted(point, config).at_peak.values())

    monkeypatch.setattr(cost_points, "points", lambda: iter(few))
    monkeypatch.setattr(cost_points, "FROZEN_BLOCKS", (2,))
    monkeypatch.setattr(cost_points, "measured", pretend)
    with pytest.raises(RuntimeError, match="stopped"):
        course("costs", "--shape", "small", "--file", file)
    assert len(read_record(file)["points"]) == 2
    calls.clear()
    course("costs", "--shape", "small", "--file", file)
    assert calls == few[2:] and len(read_record(file)["points"]) == 3
    (entry,) = read_record(file)["times"]
    assert entry["n_frozen"] == 2 and 0.5 < entry["predicted_ratio"] < 1
    assert "3 points: 0.00% off" in capsys.readouterr().out
    course("costs", "--dry-run", "--file", tmp_path / "none.json")
    assert not (tmp_path / "none.json").exists()


# --- in a process of its own -------------------------------------------------------


def test_a_measurement_runs_in_a_fresh_process_without_the_hub_and_its_last_line_is_the_result(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    program = "import json, os, sys\nprint('a warning')\n"
    program += "print(json.dumps([sys.argv[1:], os.environ['HF_HUB_OFFLINE'], os.environ['MORE']]))\n"
    (tmp_path / "a_point.py").write_text(program, "utf-8")
    found = measured_apart(
        "a_point", ["full", "4"], {"PYTHONPATH": str(tmp_path), "MORE": "here"}, "of a point"
    )
    assert found == [["full", "4"], "1", "here"]


def test_a_measurement_that_fails_says_which_and_why(tmp_path):
    (tmp_path / "a_point.py").write_text("raise ValueError('no such plan')\n", "utf-8")
    with pytest.raises(SystemExit, match=r"^The measurement of a point failed:(.|\n)*no such plan"):
        measured_apart("a_point", [], {"PYTHONPATH": str(tmp_path)}, "of a point")


def test_the_size_of_a_process_is_read_in_kibibytes_and_told_in_bytes(tmp_path, monkeypatch):
    (tmp_path / "status").write_text("Name:\tpython\nVmHWM:\t    2000 kB\nVmRSS:\t    1000 kB\n", "utf-8")
    monkeypatch.setattr(processes, "STATUS", tmp_path / "status")
    assert (resident_bytes("VmRSS"), resident_bytes("VmHWM")) == (1_024_000, 2_048_000)


def test_a_guard_that_was_never_measured_has_nothing_to_show(tmp_path):
    with pytest.raises(RecordError, match="Nothing is measured yet in .*Measure it: course guard"):
        guard_cost.show(tmp_path / "guard.json")
