"""The benchmark and the memory measurements: pairs are pairs, a stopped file goes on, and the verdicts follow."""

import json
import math

import pytest

from helpers import plots
from helpers.costs.step_cost import MIB, budget
from helpers.freezing.plans import COURSE_PLANS
from helpers.measuring.decisions import FAILS, HOLDS, UNTESTED
from helpers.models.loading import mini_config
from helpers.results.cost_answers import best_settings
from helpers.study import benchmark
from helpers.study import measured_costs as benchmarks
from helpers.study import memory as measure_memory
from helpers.study.measured_costs import BENCHMARK, MEMORY, BenchmarkError
from helpers.study.records import is_recorded
from support.records import FLOPS, pretend
from support.said import course


@pytest.fixture()
def pairs():
    return [
        benchmark.measure_group(plan, engines, r, "small", run=pretend)
        for r in range(3)
        for plan, engines in benchmark.GROUPS
    ]


def test_the_published_numbers_follow_from_the_pairs(pairs):
    found = benchmarks.summary(pairs, FLOPS)
    assert found["n_pairs"] == 3
    assert (found["time_ratio_main"], found["time_ratio_full"]) == (0.5, 0.5)
    assert (found["memory_ratio_main"], found["memory_ratio_full"]) == (0.5, 0.5)
    assert found["time_ratio_main_against_pieces"] == 0.625
    assert found["share_of_limit_main"] == pytest.approx(4e12 / (5.0 * 1e12))
    assert found["least_time_ratio_main"] == pytest.approx(4e12 / (10.0 * 1e12))
    assert found["intervals"]["time_ratio_main"] == [0.5, 0.5]
    assert benchmarks.plan_time_ratio(pairs, "first-half") == pytest.approx([math.log(0.7 / 1.25)] * 3)


def test_one_pair_has_no_interval(pairs):
    assert benchmarks.summary(pairs[:3], FLOPS)["intervals"]["time_ratio_main"] == [None, None]


def test_the_best_of_the_trainer_is_the_faster_of_two_and_no_word_where_it_was_not_measured(pairs):
    assert benchmarks.against_best(pairs, "main") == ("trainer+compiled", 0.8, [0.8, 0.8])
    assert "0.80 under the main plan (compiled)" in best_settings({"pairs": pairs})
    for pair in pairs:
        pair["engines"].pop("trainer+compiled", None)
    assert benchmarks.against_best(pairs, "full")[:2] == ("trainer+settings", round(5 / 9.5, 4))
    assert "0.53 in full training (not compiled)" in best_settings({"pairs": pairs})
    for pair in pairs:
        pair["engines"].pop("trainer+settings", None)
    assert benchmarks.against_best(pairs, "main") is None and best_settings({"pairs": pairs}) == ""


def test_groups_of_other_engines_are_measured_anew(tmp_path, monkeypatch):
    file = tmp_path / "b.json"
    run_benchmark(monkeypatch, file, "--pairs", "1")
    record = json.loads(file.read_text())
    for pair in record["pairs"]:
        pair["engines"].pop("trainer+compiled", None)
    file.write_text(json.dumps(record))
    run_benchmark(monkeypatch, file, "--pairs", "1")
    again = json.loads(file.read_text())
    assert len(again["pairs"]) == 4
    assert [p["plan"] for p in again["pairs"] if "trainer+compiled" in p["engines"]] == ["main", "full"]


def test_the_order_alternates_and_the_rate_stands_before_and_after_each(pairs):
    orders = [p["order"] for p in pairs if p["plan"] == "main"]
    assert orders[0] == orders[1][::-1] == orders[2]
    assert orders[0] == ["trainer", "ours", "trainer+pieces", "trainer+settings", "trainer+compiled"]
    assert all(len(e["sgemm_flops"]) == 2 for p in pairs for e in p["engines"].values())


def test_engines_that_compute_another_loss_are_no_pair():
    def wrong(engine, plan, shape):
        return pretend(engine, plan, shape) | ({"first_loss": 10.8} if engine == "ours" else {})

    with pytest.raises(SystemExit, match="do not compute the same loss"):
        benchmark.measure_group("main", ("trainer", "ours"), 0, "small", run=wrong)


def run_benchmark(monkeypatch, file, *arguments, run=pretend):
    monkeypatch.setattr(benchmark.measure_group, "__defaults__", (run,))
    course("benchmark", "--shape", "small", "--file", file, *arguments)


def test_a_benchmark_that_was_stopped_goes_on_where_it_was(tmp_path, monkeypatch, capsys):
    calls = []

    def stopping(engine, plan, shape):
        calls.append((engine, plan))
        if len(calls) == 12:
            raise SystemExit("stopped")
        return pretend(engine, plan, shape)

    file = tmp_path / "b.json"
    with pytest.raises(SystemExit):
        run_benchmark(monkeypatch, file, "--pairs", "1", run=stopping)
    assert len(json.loads(file.read_text())["pairs"]) == 1
    run_benchmark(monkeypatch, file, "--pairs", "1")
    record = json.loads(file.read_text())
    assert [(p["repetition"], p["plan"]) for p in record["pairs"]] == [
        (0, "main"),
        (0, "full"),
        (0, "first-half"),
        (0, "main"),
    ]
    assert record["n_pairs"] == 1 and record["time_ratio_main"] == 0.5
    before = file.read_text()
    run_benchmark(monkeypatch, file, "--pairs", "1", run=stopping)  # nothing is left to measure
    assert file.read_text() == before
    run_benchmark(monkeypatch, tmp_path / "none.json", "--dry-run")
    assert "groups are missing, about" in capsys.readouterr().out and not (tmp_path / "none.json").exists()


def test_pairs_of_another_setting_are_refused(tmp_path, monkeypatch):
    file = tmp_path / "b.json"
    run_benchmark(monkeypatch, file, "--pairs", "1")
    record = json.loads(file.read_text())
    record["setting"]["n_threads"] += 1
    file.write_text(json.dumps(record))
    with pytest.raises(SystemExit, match="differs in n_threads"):
        run_benchmark(monkeypatch, file, "--pairs", "2")


@pytest.mark.parametrize(
    "engine",
    [
        "ours",
        "trainer",
        "trainer+pieces",
        "trainer+settings",
        pytest.param("trainer+compiled", marks=pytest.mark.long),  # a compiler runs
    ],
)
def test_every_engine_takes_its_steps_and_starts_at_the_same_loss(engine):
    found = benchmark.measure(engine, "main", "small")
    assert len(found["step_seconds"]) == benchmark.N_STEPS and min(found["step_seconds"]) > 0
    expected = benchmark.measure("ours", "full", "small")["first_loss"]
    assert found["first_loss"] == pytest.approx(expected, rel=1e-5)
    assert found["peak_bytes"] > 50e6


# --- memory ------------------------------------------------------------------------


def point(plan="attention+embeddings", factor=1.0):
    cost = budget(measure_memory.config_of("small"), COURSE_PLANS[plan], 2, 32)
    predicted = benchmarks.predicted_groups(cost, 8 * MIB)
    measured = {group: factor * size for group, size in predicted.items()}
    return {"plan": plan, "batch": 2, "length": 32, "predicted": predicted, "measured": measured}


def test_groups_hold_every_byte_of_the_peak():
    cost = budget(mini_config(), COURSE_PLANS["full"], 2, 64)
    assert sum(benchmarks.predicted_groups(cost).values()) == cost.peak_bytes
    assert benchmarks.predicted_groups(cost, 5)["constant"] == 5


def test_the_memory_table_sets_predicted_beside_measured():
    table = benchmarks.memory_table({"points": [point(), point("full")]})
    assert list(table.index.names) == ["plan", "batch", "length"] and len(table) == 2
    assert table["predicted / measured"].tolist() == pytest.approx([1.0, 1.0])
    figure = plots.predicted_and_measured({"a": point(), "b": point("full")}, "title")
    assert len(figure.axes[0].patches) == 2 * 2 * 4


def test_the_time_table_sets_flops_beside_seconds():
    table = benchmarks.time_table(
        {"times": [{"plan": "mlp", "log_ratios": [math.log(0.80), math.log(0.90)], "predicted_ratio": 0.85}]}
    )
    assert table.loc["mlp", "measured"] == pytest.approx(math.sqrt(0.72), abs=1e-3)
    assert table.loc["mlp", "low"] < 0.8 < 0.9 < table.loc["mlp", "high"]


def test_a_point_is_measured_by_group():
    found = measure_memory.measure_point("attention+embeddings", "small", 2, 32)
    assert set(found["measured"]) == {*benchmarks.GROUPS, "constant"}
    assert sum(found["measured"].values()) == found["growth_bytes"]
    cost = budget(measure_memory.config_of("small"), COURSE_PLANS["attention+embeddings"], 2, 32)
    assert found["measured"]["optimizer"] == pytest.approx(cost.at_peak["optimizer"], rel=0.01)


def test_step_times_come_in_pairs_with_their_prediction():
    (found,) = measure_memory.measure_times(["mlp"], "small")
    assert len(found["log_ratios"]) == measure_memory.N_PAIRS and 0.6 < found["predicted_ratio"] < 1


def test_a_point_gets_its_prediction_and_the_ratio_of_the_totals():
    found = measure_memory.add_prediction(
        {"plan": "full", "batch": 2, "length": 32, "growth_bytes": 60 * MIB}, "small"
    )
    assert set(found["predicted"]) == {*benchmarks.GROUPS, "constant"}
    assert found["ratio"] == pytest.approx(sum(found["predicted"].values()) / (60 * MIB), abs=1e-4)


def test_every_plan_is_measured_at_both_batches_and_lengths():
    wanted = measure_memory.points("125m")
    assert len(wanted) == len(set(wanted)) == 4 * len(COURSE_PLANS)
    assert {(b, n) for _, b, n in wanted} == {(1, 128), (1, 512), (4, 128), (4, 512)}


def test_what_is_missing_is_told_in_minutes():
    """15.2 s, 15.0 s and 23.0 s a point: two steps and twelve seconds to start. A time is five pairs of 5.5 s."""
    missing = [("full", 4, 128), ("full", 1, 512), ("mlp", 4, 512)]
    assert measure_memory.minutes(missing, []) == pytest.approx(53.2 / 60)
    assert measure_memory.minutes([], ["mlp", "norms"]) == pytest.approx(110 / 60)
    every = measure_memory.points("125m")  # 66.4 s a plan
    assert measure_memory.minutes(every, []) == pytest.approx(len(COURSE_PLANS) * 66.4 / 60)


def test_a_memory_file_that_was_stopped_goes_on_where_it_was(tmp_path, monkeypatch, capsys):
    def pretend_point(*arguments):
        if arguments[0] == "times":
            return [
                {
                    "plan": arguments[-1],
                    "batch": 2,
                    "length": 32,
                    "log_ratios": [-0.1, -0.2],
                    "predicted_ratio": 0.9,
                }
            ]
        if arguments[2] == "only-norms" and arguments[3:] == ("4", "32") and not hurdle:
            raise SystemExit("stopped")
        return {"before_bytes": 1, "growth_bytes": 60 * MIB, "measured": point_of_main["measured"]}

    hurdle, file, point_of_main = [], tmp_path / "m.json", point()
    monkeypatch.setattr(measure_memory, "start", pretend_point)
    monkeypatch.setattr(
        measure_memory,
        "add_prediction",
        lambda p, shape: p | {"predicted": point_of_main["predicted"], "ratio": 1.0},
    )
    with pytest.raises(SystemExit):
        course("memory", "--shape", "small", "--file", file)
    n_before = len(json.loads(file.read_text())["points"])
    hurdle.append("gone")
    course("memory", "--shape", "small", "--file", file)
    record = json.loads(file.read_text())
    assert 0 < n_before < len(record["points"]) == 4 * len(COURSE_PLANS)
    assert {t["plan"] for t in record["times"]} == set(COURSE_PLANS) - {"full"}
    assert "predicted / measured" in capsys.readouterr().out


# --- verdicts ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "device, fall, verdict",
    [("cpu", 0.27, UNTESTED), ("cuda", 0.10, FAILS), ("cuda", 0.27, HOLDS), ("cuda", 0.40, "holds in part")],
)
def test_a_gpu_decides_the_memory_claim_and_a_cpu_does_not(device, fall, verdict):
    points = [
        {"plan": plan, "batch": b, "length": 512, "predicted": {"all": 100}, "measured": {"all": size}}
        for b in (1, 4)
        for plan, size in (("full", 100), ("attention+embeddings", 100 * (1 - fall * b / 4)))
    ]
    entry = benchmarks.memory_verdict({"setting": {"device": device}, "points": points})
    assert entry["verdict"] == verdict and entry["value"] == pytest.approx(100 * fall), (
        "at the largest setting"
    )


def test_the_time_claim_needs_more_than_one_pair_and_a_gain_that_counts():
    faster = [math.log(r) for r in (0.80, 0.82, 0.81)]
    assert benchmarks.time_verdict(faster, "a machine")["verdict"] == HOLDS
    assert benchmarks.time_verdict(faster[:1], "a machine")["verdict"] == "not decided"
    same = [math.log(r) for r in (0.999, 1.001, 1.0)]
    assert benchmarks.time_verdict(same, "a machine")["verdict"] == FAILS


def test_a_file_that_is_not_there_says_how_it_is_made(tmp_path):
    with pytest.raises(BenchmarkError, match="course benchmark"):
        benchmarks.read(tmp_path / "benchmark.json")


# --- the files that are part of the project ----------------------------------------


@pytest.mark.skipif(not is_recorded(BENCHMARK), reason="the benchmark was not recorded yet")
def test_the_recorded_benchmark_says_what_its_pairs_say():
    record = benchmarks.read(BENCHMARK)
    again = benchmarks.summary(record["pairs"], record["flops"])
    assert {key: record[key] for key in again} == again
    assert record["n_pairs"] >= 5 and record["setting"]["batch"] == 4 and record["setting"]["length"] == 512
    assert (
        record["flops"]["main"]
        == budget(benchmark.setting("125m", True)[0], COURSE_PLANS["attention+embeddings"], 4, 512).flops.step
    ), "the engine changed: measure again"
    assert all(p["commit"] for p in record["pairs"])


@pytest.mark.skipif(not is_recorded(MEMORY), reason="memory was not recorded yet")
def test_the_recorded_memory_was_predicted_by_this_very_budget():
    record = benchmarks.read(MEMORY)
    assert len(record["points"]) == 4 * len(COURSE_PLANS)
    p = record["points"][0]
    cost = budget(measure_memory.config_of("125m"), COURSE_PLANS[p["plan"]], p["batch"], p["length"])
    assert p["predicted"] == benchmarks.predicted_groups(cost, record["setting"]["constant_bytes"]), (
        "the prediction changed: run helpers/study/memory.py again"
    )
    ratios = [q["ratio"] for q in record["points"]]
    assert 0.9 <= min(ratios) and max(ratios) <= 1.1
