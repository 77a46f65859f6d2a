"""The second study's runs: their order, one run end to end, and what a kill or another protocol changes."""

import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.models.loading import load_model, weight_hash
from helpers.profiles import ROOT
from helpers.study import second_study
from helpers.study.protocol import ProtocolError, read_protocol
from helpers.study.second_study import Job, StudyError, do, jobs_of, open_study, prepare, settings_of
from helpers.training.deltas import load_delta
from support import tiny
from support.said import course
from support.small_study import write_page

TIMES = ("wall_seconds", "seconds", "resumed_at")


@pytest.fixture(scope="module")
def small_model(tmp_path_factory):
    return tiny.saved(tmp_path_factory.mktemp("model") / "two-layers")


@pytest.fixture
def page(tmp_path, small_model, monkeypatch):
    """A protocol of a few short runs on a small base; everything happens in this process."""
    monkeypatch.setenv("COURSE_MODEL", str(small_model))
    second_study._benches.clear()
    return write_page(tmp_path)


@pytest.fixture
def study(page, tmp_path):
    found = open_study("tiny", read_protocol(page), tmp_path / "study2")
    prepare(found)
    return found


def read(path):
    return json.loads(path.read_text("utf-8"))


def test_runs_come_stage_by_stage_and_seed_by_seed_each_once(study):
    assert [(j.stage, j.plan, j.seed, j.weight) for j in jobs_of(study)] == [
        *(("first", plan, seed, 0.0) for seed in (900, 0, 1) for plan in ("full", "attention+embeddings")),
        ("replay", "lora", 0, 0.0),
        ("replay", "full", 0, 1.0),
        ("replay", "lora", 0, 1.0),
    ]
    assert second_study.missing_texts(study) == ["viet"]


def test_a_stage_that_the_order_does_not_name_is_refused(page):
    page.write_text(page.read_text("utf-8").replace('["first", "replay"]', '["first"]'), encoding="utf-8")
    with pytest.raises(ProtocolError, match="stage 'replay' that the order does not name"):
        jobs_of(open_study("tiny", read_protocol(page)))


@pytest.mark.parametrize(
    "rate, every, patience", [(1e-2, 2, 4), (1e-3, 20, 40), (1e-4, 200, 400), (1e-1, 2, 4)]
)
def test_patience_and_evaluations_are_as_far_at_every_rate(study, rate, every, patience):
    found = settings_of(study, Job("first", "full", "alice", 0, rate, 0.0))
    assert (found.evaluate_every, found.patience, found.n_steps) == (every, patience, 12)


def test_a_run_is_recorded_with_its_way_and_its_rewound_points(study):
    job = jobs_of(study)[2]
    path, _ = do(study, job)
    found = read(path)
    assert path == study.folder / "runs/two-layers/full/alice/0-0.01.json"
    assert (found["plan"], found["seed"], found["rate"], found["weight"]) == ("full", 0, 0.01, 0.0)
    assert found["protocol"] == study.protocol.sha256 and found["proof_ok"] and found["resumed_at"] == 0
    steps = [e["step"] for e in found["evaluations"]]
    assert (
        steps == list(range(0, found["steps_taken"] + 1, 2)) and len(found["losses"]) == found["steps_taken"]
    )
    first = found["evaluations"][0]
    assert first["gain"] == pytest.approx(0, abs=1e-5) and max(first["forgetting_a"]) < 1e-5
    assert (len(first["forgetting_a"]), len(first["forgetting_b"]), len(first["plain_windows"])) == (4, 4, 3)
    assert [(p["roles"], p["share"]) for p in found["rewound"]] == [
        ("all", 0.5),
        ("all", 1.0),
        ("attention", 0.5),
        ("mlp", 0.5),
        ("embeddings", 0.5),
    ]
    best = next(e for e in found["evaluations"] if e["step"] == found["best_step"])
    tuned = found["rewound"][1]
    assert {k: tuned[k] for k in ("dev_windows", "forgetting_a", "plain_windows")} == {
        k: best[k] for k in ("dev_windows", "forgetting_a", "plain_windows")
    }
    assert found["test_windows"] == tuned["test_windows"] and found["base"]["test_windows"].keys() == {
        "alice"
    }
    assert np.mean(found["rewound"][0]["forgetting_b"]) < np.mean(tuned["forgetting_b"])
    assert not study.work_folder(job).exists()


def test_a_bases_own_section_may_have_shares_of_its_own(page, study):
    text = page.read_text("utf-8").replace("lora_rank = 2", "lora_rank = 2\nrole_shares = []")
    page.write_text(text, encoding="utf-8")
    assert open_study("tiny", read_protocol(page)).rules["role_shares"] == []
    assert study.rules["role_shares"] == [0.5]


def test_the_kept_difference_gives_the_best_weights_again(study):
    job = jobs_of(study)[2]
    found = read(do(study, job)[0])
    base = load_model(study.model)
    again = load_delta(study.folder / found["delta"], base)
    measured = second_study.bench_of(study).measure(again, "alice")
    assert measured["dev_windows"] == found["rewound"][1]["dev_windows"]
    assert "delta" not in read(do(study, jobs_of(study)[4])[0])  # the second seed of the cell


def test_a_tuning_run_reads_no_test_text(study, monkeypatch):
    def read_test(self, model, text):
        raise AssertionError("the test text was read")

    monkeypatch.setattr(second_study.Bench, "tests", read_test)
    found = read(do(study, jobs_of(study)[0])[0])
    assert "test_windows" not in found and "test_windows" not in found["base"]
    assert not any("test_windows" in p for p in found["rewound"])


def test_a_plan_that_trains_one_role_has_no_rewinding_by_role(study):
    found = read(do(study, Job("first", "only-mlp-out", "alice", 5, 1e-2, 0.0))[0])
    assert {p["roles"] for p in found["rewound"]} == {"all"}


def test_lora_is_rewound_as_the_plain_matrices_that_it_makes(study):
    job = next(j for j in jobs_of(study) if j.plan == "lora")
    found = read(do(study, job)[0])
    assert {p["roles"] for p in found["rewound"]} == {"all", "attention", "mlp"}
    best = next(e for e in found["evaluations"] if e["step"] == found["best_step"])
    again = load_delta(study.folder / found["delta"], load_model(study.model))
    merged = second_study.bench_of(study).measure(again, "alice")
    assert merged["dev_windows"] == pytest.approx(best["dev_windows"], abs=2e-5)


def test_a_replay_holds_the_model_near_its_base(study):
    jobs = {j.weight: j for j in jobs_of(study) if j.plan == "full" and j.seed == 0}
    without, held = (read(do(study, jobs[w])[0]) for w in (0.0, 1.0))
    assert len(held["replay_losses"]) == held["steps_taken"] and held["replay_losses"][0] < 1e-6
    assert np.mean(held["evaluations"][1]["forgetting_b"]) < np.mean(
        without["evaluations"][1]["forgetting_b"]
    )
    assert without.get("replay_losses") is None


class Killed(BaseException):
    pass


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_a_run_that_was_killed_goes_on_to_the_same_record(study, monkeypatch, weight):
    job = Job("first", "full", "alice", 0, 1e-2, weight)
    whole = read(do(study, job)[0])
    study.record_path(job).unlink()
    evaluate, calls = second_study.Bench.evaluate, []

    def killed_at_the_third(self, model, text):
        calls.append(text)
        if len(calls) == 3:
            raise Killed
        return evaluate(self, model, text)

    monkeypatch.setattr(second_study.Bench, "evaluate", killed_at_the_third)
    with pytest.raises(Killed):
        do(study, job)
    assert not study.record_path(job).exists() and study.work_folder(job).exists()
    again = read(do(study, job)[0])
    assert again["resumed_at"] == 2
    assert {k: v for k, v in again.items() if k not in TIMES} == {
        k: v for k, v in whole.items() if k not in TIMES
    }


@pytest.mark.filterwarnings("ignore:overflow")
def test_a_run_that_diverges_is_a_result(study, monkeypatch):
    real, calls = second_study.fit, []

    def diverges(*args, **more):
        from helpers.training.loop import NotFinite

        calls.append(more["evaluate"](args[0]))
        raise NotFinite("At step 1 the loss is nan")

    monkeypatch.setattr(second_study, "fit", diverges)
    found = read(do(study, jobs_of(study)[2])[0])
    assert "nan" in found["diverged"] and [e["step"] for e in found["evaluations"]] == [0] and real and calls


def test_replay_windows_that_are_measured_on_are_refused():
    halves = {"A": torch.arange(12).reshape(2, 6), "B": torch.arange(20, 32).reshape(2, 6)}
    second_study.require_apart(halves, torch.arange(40, 48).reshape(2, 4))
    with pytest.raises(StudyError, match="1 replay window stands in half B"):
        second_study.require_apart(halves, torch.tensor([[0, 1, 2, 9], [26, 27, 28, 29]]))


def test_the_first_studys_windows_are_taken_where_they_fit(study, tmp_path, monkeypatch):
    model_hash = weight_hash(load_model(study.model))
    place = tmp_path / "first" / "two-layers" / "windows.safetensors"
    place.parent.mkdir(parents=True)
    monkeypatch.setattr(second_study, "FIRST_RETENTION", tmp_path / "first")
    kept = {half: torch.full((4, 24), i, dtype=torch.int32) for i, half in enumerate("AB")}
    save_file(kept, place, metadata={"model_hash": model_hash})
    assert second_study.first_halves(study, model_hash)["B"].equal(kept["B"].long())
    assert second_study.first_halves(study, "another") == {}
    save_file({half: w.repeat(2, 1) for half, w in kept.items()}, place, metadata={"model_hash": model_hash})
    assert second_study.first_halves(study, model_hash)["B"].equal(kept["B"].long())
    save_file(
        {half: w[:, :20].contiguous() for half, w in kept.items()}, place, metadata={"model_hash": model_hash}
    )
    assert second_study.first_halves(study, model_hash) == {}


def test_windows_that_were_lost_are_written_again_the_same(study):
    known, windows = prepare(study), load_file(study.windows_file)
    study.windows_file.unlink()  # its folder stays, as after a kill in between
    assert prepare(study) == known
    assert all(w.equal(windows[name]) for name, w in load_file(study.windows_file).items())


def test_windows_of_another_base_are_refused(study, tmp_path):
    windows = load_file(study.windows_file)
    save_file(windows, study.windows_file, metadata={"model_hash": "another"})
    with pytest.raises(StudyError, match="was written by another base"):
        prepare(study)


# --- the script --------------------------------------------------------------------


def record(page, tmp_path, *more):
    return course("study", "second", "--page", page, "--folder", tmp_path / "study2", "--workers", "0", *more)


def test_a_dry_run_says_how_many_and_how_long_and_makes_nothing(page, tmp_path, capsys):
    assert record(page, tmp_path, "--dry-run") == 0
    said = capsys.readouterr().out
    assert "first    two-layers                  6 runs,    6 to do,  0.06 hours" in said
    assert "In all 9 runs, 9 to do, 0.1 hours" in said and "no runs on 'viet'" in said
    assert not (tmp_path / "study2").exists()


def test_the_script_makes_what_is_missing_and_nothing_twice(page, tmp_path, capsys):
    record(page, tmp_path, "--stages", "first")
    made = sorted((tmp_path / "study2" / "runs").rglob("*.json"))
    times = [p.stat().st_mtime_ns for p in made]
    assert len(made) == 6
    record(page, tmp_path, "--stages", "first")
    assert [p.stat().st_mtime_ns for p in made] == times
    assert "6 runs,    0 to do" in capsys.readouterr().out


def test_records_of_another_protocol_stop_the_study(page, tmp_path, study):
    do(study, jobs_of(study)[0])
    page.write_text(page.read_text("utf-8").replace("# A small study", "# Another"), encoding="utf-8")
    with pytest.raises(SystemExit, match="900-0.01.json differs in protocol"):
        record(page, tmp_path)


def test_an_amendment_of_a_setting_makes_its_records_stale(page, tmp_path, study):
    do(study, jobs_of(study)[0])
    more = "\n## Amendments\n\n- 2026-11-30, why.\n\n```toml\n[tiny]\nbatch = 3\n```\n"
    page.write_text(page.read_text("utf-8") + more, encoding="utf-8")
    with pytest.raises(SystemExit, match="900-0.01.json differs in settings"):
        record(page, tmp_path)


def test_a_study_that_was_killed_goes_on(page, tmp_path, small_model):
    """A real kill, in the middle of a run; the same command then makes all records."""
    command = [
        sys.executable,
        "-m",
        "publishing.cli",
        "study",
        "second",
        "--page",
        page,
        "--folder",
        tmp_path / "study2",
        "--workers",
        "1",
        "--stages",
        "first",
    ]
    first = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    while not list((tmp_path / "study2").rglob("runs/**/*.json")):
        assert first.poll() is None, first.stdout.read()
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    first.stdout.read()  # to its end: its worker holds the other end too, and stops within a second or two
    first.wait()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "study2").rglob("runs/**/*.json"))) == 6
    assert not list((tmp_path / "study2" / "work").rglob("step-*"))
