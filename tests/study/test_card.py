"""`course gpu` on the CPU: parts are whole, a stopped run goes on, the time limit is kept, nothing is said of a card."""

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from helpers.costs.step_cost import budget
from helpers.files import read_json
from helpers.freezing.plans import COURSE_PLANS
from helpers.profiles import ROOT
from helpers.study import card, on_card, second_study
from helpers.study.card import (
    PROCESSES,
    SECONDS,
    SECONDS_TO_START,
    Part,
    measure,
    missing,
    parts,
    report,
    work_through,
)
from helpers.study.jobs import EVIDENCE
from helpers.study.memory import FROZEN, trained
from helpers.study.on_card import CardError, Order, event_seconds, make_cells, measure_check, measure_training
from helpers.study.packing import pack
from helpers.study.processes import config_of
from helpers.study.protocol import read_protocol
from helpers.study.records import is_recorded, read_record, read_run, write_record
from support import tiny
from support.said import course
from support.small_study import write_page

TYPES = {
    "float32": {},
    "bfloat16": {"dtype": torch.bfloat16},
    FROZEN: {"dtype": torch.bfloat16, "frozen_dtype": torch.bfloat16},
}
FEW = {name: COURSE_PLANS[name] for name in ("full", "attention+embeddings", "only-biases")}


@pytest.fixture
def order(tmp_path, monkeypatch):
    """The stand-in with two plans, on a CPU even where there is a card."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(card, "COURSE_PLANS", FEW)
    monkeypatch.setattr(on_card, "N_PAIRS", 2)
    return Order(tmp_path / "card", "small", n_workers=0)


# --- parts, time and processes ---------------------------------------------------------


def test_ten_plans_and_full_training_in_three_precisions():
    costs = [part.words for part in parts("125m", ["costs"])]
    assert len(costs) == len(set(costs)) == 3 * len(COURSE_PLANS) - 1 and len(COURSE_PLANS) == 11
    assert (FROZEN, "full") not in costs and (FROZEN, "attention") in costs
    assert len({part.name for part in parts("125m")}) == len(parts("125m"))
    assert {kind for kinds in PROCESSES.values() for kind in kinds} == set(SECONDS) == set(card.MEASURE)


def test_the_planned_time_fits_and_leaves_two_minutes_to_the_runs_of_smollm2():
    planned = len(PROCESSES) * SECONDS_TO_START + sum(SECONDS[part.kind] for part in parts("125m"))
    assert planned <= 60 * card.MINUTES - 120


def test_a_stopped_run_goes_on_and_each_part_is_whole(order, monkeypatch, capsys):
    calls = []

    def stopping(order, *words):
        calls.append(words)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return {"words": list(words)}

    monkeypatch.setitem(card.MEASURE, "costs", stopping)
    monkeypatch.setitem(card.MEASURE, "c11", lambda order, *words: {"words": list(words)})
    with pytest.raises(KeyboardInterrupt):
        work_through(order, "costs", 100)
    assert len(missing(order)) == len(parts("small")) - 2
    work_through(order, "costs", 100)
    assert missing(order, PROCESSES["costs"]) == []
    assert len(calls) == len(set(calls)) + 1 == len(parts("small", ["costs"])) + 1, (
        "only the stopped one came twice"
    )
    for part in parts("small", PROCESSES["costs"]):
        assert read_json(part.path(order))["result"]["words"] == list(part.words)


def test_a_part_that_fails_is_said_and_the_others_go_on(order, monkeypatch, capsys):
    def failing(order, precision, plan):
        if (precision, plan) == ("bfloat16", "full"):
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return {}

    monkeypatch.setitem(card.MEASURE, "costs", failing)
    monkeypatch.setitem(card.MEASURE, "c11", lambda order, *words: {})
    with pytest.raises(CardError, match="1 part failed, the others are there: costs-bfloat16-full"):
        work_through(order, "costs", 100)
    assert [part.name for part in missing(order, PROCESSES["costs"])] == ["costs-bfloat16-full"]
    assert "FAILED OutOfMemoryError: CUDA out of memory" in capsys.readouterr().out


def test_a_part_begins_only_where_it_is_expected_to_end(order, monkeypatch, capsys):
    now = iter(range(0, 1000, 8))  # each look at the clock: eight seconds later
    monkeypatch.setattr(card.time, "monotonic", lambda: next(now))
    monkeypatch.setitem(card.MEASURE, "costs", lambda order, *words: {})
    work_through(order, "costs", 8 * 5)
    # The first part took eight seconds, so the third would not end in time, whatever was planned.
    assert len(missing(order, ["costs"])) == len(parts("small", ["costs"])) - 2
    assert "no time left" in capsys.readouterr().out


def test_processes_are_ended_at_the_limit(order, monkeypatch):
    given = []

    def run(order, process, seconds, device):
        given.append((process, seconds))
        return None

    assert measure(order, 9.0, "cuda", run) == list(PROCESSES)
    assert [process for process, _ in given] == list(PROCESSES) and all(s <= 540 for _, s in given)
    assert measure(order, 0.1, "cuda", run) == list(PROCESSES) and len(given) == len(PROCESSES)
    assert "smollm2" not in measure(order, 9.0, "cpu", run), "on a CPU it would take hours"

    def endless(words, timeout, **settings):
        assert words[1:4] == ["-m", "helpers.study.card", "costs"] and timeout == 7.0
        assert settings["env"]["CUDA_VISIBLE_DEVICES"] == ""
        raise subprocess.TimeoutExpired(words, timeout)

    monkeypatch.setattr(card.subprocess, "run", endless)
    assert card.start(order, "costs", 7.0, "cpu") is None


def test_parts_of_another_machine_are_refused(order):
    place = Part("costs", ("float32", "full")).path(order)
    write_record(place, {"setting": card.identity("small") | {"machine": "another card"}, "result": {}})
    with pytest.raises(CardError, match="differs in machine"):
        work_through(order, "costs", 100)


def test_without_a_card_it_is_refused_in_one_line(order):
    with pytest.raises(CardError, match="--device cpu --shape small") as refused:
        course("gpu", "--folder", order.folder)
    assert "\n" not in str(refused.value)
    course("gpu", "--folder", order.folder, "--dry-run")
    assert not order.folder.exists()


# --- what is measured ------------------------------------------------------------------


def test_a_step_on_a_card_is_timed_by_its_events(monkeypatch):
    said = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            said.append("record")

        def synchronize(self):
            said.append("wait")

        def elapsed_time(self, other):
            return 250.0  # milliseconds

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: said.append("wait"))
    monkeypatch.setattr(torch.cuda, "Event", Event)
    assert event_seconds(lambda: said.append("step")) == 0.25
    assert said == ["wait", "record", "step", "record", "wait"]


@pytest.mark.parametrize("precision", card.PRECISIONS)
def test_frozen_matrices_are_kept_in_bfloat16_where_that_is_asked_for(precision):
    class Seen:
        def apply(self, model):
            self.model = model
            COURSE_PLANS["attention+embeddings"].apply(model)

    seen = Seen()
    step, _ = trained(seen, "small", 2, 32, precision, on_card.base_of("small"))
    step()
    for parameter in seen.model.parameters():
        is_half = precision == FROZEN and not parameter.requires_grad and parameter.ndim > 1
        assert parameter.dtype == (torch.bfloat16 if is_half else torch.float32)
    assert all(p.dtype == torch.float32 for p in on_card.base_of("small").parameters()), "the base is copied"


def test_the_stand_in_measures_and_reports_and_is_no_evidence(order, capsys):
    for process in ("costs", "training"):
        work_through(order, process, 1000)
    found = report(order)
    assert [(p["precision"], p["plan"]) for p in found["costs"]] == [
        *(("float32", plan) for plan in FEW),
        *(("bfloat16", plan) for plan in FEW),
        *((FROZEN, plan) for plan in FEW if plan != "full"),
    ]
    for point in found["costs"]:
        assert len(point["seconds"]) == len(point["full_seconds"]) == 2 and min(point["seconds"]) > 0
        assert sum(point["measured"].values()) == point["growth_bytes"] and "ratio" not in point
    assert "verdict" not in found and found["missing"] == ["check"] and not card.is_evidence(found)
    card.show(order)
    assert "No number below is a card's" in capsys.readouterr().out
    assert (order.folder / "stand-in.json").exists() and not (order.folder / "card.json").exists()


def test_the_report_of_a_card_sets_the_prediction_beside_and_becomes_evidence(order, monkeypatch, capsys):
    """With made-up measurements: the main plan's peak lies a fifth below what full training takes."""
    here = card.identity("small")
    as_on_a_card = {"device": "cuda", "machine": "A card", "model": "gpt-neo-125m, random weights"}
    monkeypatch.setattr(card, "identity", lambda shape: here | as_on_a_card)
    monkeypatch.setattr(on_card, "full_step", lambda shape, precision: lambda: None)
    monkeypatch.setattr(on_card, "event_seconds", lambda step: 0.25)
    monkeypatch.setattr(on_card, "growth", pretended_growth)
    work_through(order, "costs", 1000)
    found = report(order)
    assert card.is_evidence(found) and found["verdict"]["verdict"] == "does not hold"
    assert (
        found["verdict"]["value"] == pytest.approx(20)
        and "a GPU's allocator; 2 x 32" in found["verdict"]["note"]
    )
    for point in found["costs"]:
        cost = budget(config_of("small"), COURSE_PLANS[point["plan"]], 2, 32, **TYPES[point["precision"]])
        peak = cost.peak_bytes
        assert sum(point["predicted"].values()) == peak
        assert point["ratio"] == pytest.approx(peak / point["growth_bytes"], abs=1e-4)
    assert card.table(found)["of full's time"].tolist() == [1.0] * len(found["costs"])
    card.show(order)
    said = capsys.readouterr().out
    assert "A card; gpt-neo-125m" in said and "C11: does not hold, 20.0" in said and "stand-in" not in said
    pack(order.folder, order.folder / "evidence")
    assert read_record(order.folder / "evidence" / "card.json") == read_record(order.folder / "card.json")


def pretended_growth(shape, plan, batch, length, precision):
    size = 1000 if plan == "full" else 800
    measured = {"weights and buffers": 300, "optimizer": 200, "working memory": size - 600, "constant": 100}
    return {"before_bytes": 5, "growth_bytes": size, "measured": measured}, lambda: None


def test_notebook_04s_training_is_proved_and_goes_on_where_it_was_cut(order):
    found = measure_training(order, "main")
    assert found["plan"] == "attention+embeddings" and found["proof_ok"]
    assert len(found["losses"]) == 8 and found["losses"][-1] < found["losses"][0]
    assert len(found["held_out"]) == 5 and found["held_out"][-1] < found["held_out"][0]
    assert found["resumed_at"] == 4 and found["resumed_differs"] == 0


# --- SmolLM2: a small base in its place ------------------------------------------------


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny.saved(tmp_path_factory.mktemp("model") / "two-layers")


@pytest.fixture
def small(order, base, tmp_path, monkeypatch):
    """The card's order and the CPU's study."""
    monkeypatch.setenv("COURSE_MODEL", str(base))
    monkeypatch.setenv("COURSE_BUILD", str(tmp_path / "build"))
    second_study._benches.clear()
    page = write_page(tmp_path)
    cpu = second_study.open_study("tiny", read_protocol(page), tmp_path / "build" / "study2")
    return replace(order, page=page, section="tiny"), cpu


def test_a_run_is_checked_against_the_cpus_record_before_more_are_made(small, monkeypatch):
    order, cpu = small
    with pytest.raises(CardError, match="no run of 'two-layers' on a CPU yet"):
        measure_check(order)
    second_study.prepare(cpu)
    job = on_card.primary_jobs(cpu)[1]
    second_study.do(cpu, job)
    taken = []
    monkeypatch.setattr(on_card, "read_run", lambda path, kind: taken.append(path) or read_run(path, kind))
    found = measure_check(order)
    assert len(set(taken)) == len(taken) == 2, "the CPU's record and the card's, each once"
    assert found == {
        "run": job.place.as_posix(),
        "dev_loss_differs": 0.0,
        "forgetting_differs": 0.0,
        "agrees": True,
    }
    assert order.study.windows_file.read_bytes() == cpu.windows_file.read_bytes()
    make_cells(order, found)
    runs = [order.study.record_path(j) for j in on_card.primary_jobs(order.study)]
    assert len(runs) == 6 and all(path.exists() for path in runs)
    assert all(read_json(path)["stage"] == "first" for path in runs), "replay is no primary cell"


def test_where_the_check_differs_no_run_is_made(small):
    order, cpu = small
    second_study.prepare(cpu)
    job = on_card.primary_jobs(cpu)[0]
    path, _ = second_study.do(cpu, job)
    record = read_json(path)
    record["evaluations"][-1]["forgetting_b"] = [x + 0.01 for x in record["evaluations"][-1]["forgetting_b"]]
    write_record(path, record)
    found = measure_check(order)
    assert found["forgetting_differs"] == pytest.approx(0.01, abs=1e-4) and found["dev_loss_differs"] == 0
    assert not found["agrees"]
    with pytest.raises(CardError, match="differs from the CPU's by more than 0.002"):
        make_cells(order, found)
    assert len(list((order.folder / "study2" / "runs").rglob("*.json"))) == 1
    cpu.windows_file.unlink()
    with pytest.raises(CardError, match="wrote for the CPU's study are not here"):
        measure_check(order)


# --- what the pages say ----------------------------------------------------------------


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "data/evidence/README.md"])
def test_pages_say_that_no_card_has_been_measured_as_long_as_it_is_so(page):
    text = " ".join(Path(ROOT, page).read_text("utf-8").split())
    assert ("no card has been measured" in text.lower()) != is_recorded(EVIDENCE / "card.json")


@pytest.mark.long
def test_the_whole_command_in_its_own_processes(tmp_path):
    assert course("gpu", "--device", "cpu", "--shape", "small", "--folder", tmp_path / "card") == 0
    assert course("gpu", "--device", "cpu", "--shape", "small", "--folder", tmp_path / "card", "--show") == 0
    assert read_json(tmp_path / "card" / "stand-in.json")["missing"] == ["check"]
