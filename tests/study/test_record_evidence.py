"""The study's runs: their plan, their files, and what happens when a study is stopped, or its rules change."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest

from helpers.measuring.comparison import forgetting_difference, frontier
from helpers.measuring.recorded import evaluations_of
from helpers.models.loading import mini_config
from helpers.profiles import DATA, ROOT, TINY
from helpers.study import runner as evidence
from helpers.study.laboratory import StudySettings, norms_by_role
from helpers.study.protocol import PAGE, ProtocolError, read_protocol
from helpers.study.rates import Rate
from helpers.study.records import read_run, rounded, slim, write_record
from support import tiny
from support.said import course

SMALL = """# A small study

```toml
[tiny]
stages = ["tune", "main", "long"]
deciding_plans = ["full", "only-mlp-out"]
other_plans = []
other_texts = []
few_parameter_plans = []
fresh_plans = []
long_plans = ["full"]
n_steps = 6
long_steps = 8
batch = 2
length = 32
warmup = 1
evaluate_every = 4
dense_until = 4
patience = 40
grid = [1e-3]
grid_few = [1e-3]
extensions = 0
probe_windows = 2
held_out_windows = 4
real_windows = 5
retention_windows = 3
retention_length = 24
seconds_a_run = 1

[tiny.retention_seeds]
A = 1
B = 2

[tiny.seeds]
tuning = [900]
main = 1
others = 0
books = 1
fresh = 0
long = 1
swap = 1
memorisation = 0

[decisions]
shares = [0.80, 0.65, 0.50, 0.35]
ladder = [3e-4, 1e-3, 3e-3]
smallest_forgetting = 0.01
smallest_forgetting_share = 0.2
```

## Amendments
"""


@pytest.fixture(scope="module")
def small_model(tmp_path_factory):
    """A random model of two layers with the miniature's tokenizer."""
    return tiny.saved(tmp_path_factory.mktemp("model") / "two-layers")


@pytest.fixture
def small_study(tmp_path, small_model, monkeypatch):
    """A folder with a protocol of a few short runs; everything happens in this process."""
    texts = tmp_path / "texts"
    texts.mkdir()
    for name, path in TINY.texts.items():
        (texts / f"{name}.txt").write_text(path.read_text("utf-8")[:9000], encoding="utf-8")
    monkeypatch.setenv("COURSE_MODEL", str(small_model))
    monkeypatch.setenv("COURSE_TEXTS", str(texts))
    evidence._laboratories.clear()
    folder = tmp_path / "evidence"
    folder.mkdir()
    (folder / "PROTOCOL.md").write_text(SMALL, encoding="utf-8")
    return folder


def record(folder, *more):
    return course("study", "first", "--folder", folder, "--processes", "0", *more)


def files(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*.json"))


# --- the page and the plan of runs -------------------------------------------------


def the_study(profile="tiny", books=None):
    return evidence.Study(profile, "gpt-neo-mini", PAGE.parent / "nothing-here", books, read_protocol())


@pytest.mark.parametrize("profile", ["tiny", "smollm2"])
def test_the_page_has_every_number_that_the_plan_of_runs_needs(profile):
    study = the_study(profile)
    jobs = [j for stage in study.numbers["stages"] for j in evidence.jobs_of(study, stage)]
    assert len({j.path for j in jobs}) == len(jobs) > 0
    assert study.numbers["seeds"]["main"] >= 3


def test_stopped_after_any_whole_seed_the_main_runs_are_whole_pairs():
    jobs = evidence.jobs_of(the_study(), "main")
    n_plans = len(the_study().numbers["deciding_plans"])
    for seed in range(10):
        own = [j for j in jobs if j.seed == seed]
        assert jobs[jobs.index(own[0]) : jobs.index(own[0]) + len(own)] == own
        for text in evidence.AUTHORS:
            assert len([j for j in own if j.text == text and j.choice == "keep"]) == n_plans


def test_equal_rates_need_one_run():
    chosen = {
        p: {t: {"keep": 1e-4, "learn": 1e-4} for t in evidence.AUTHORS}
        for p in the_study().numbers["deciding_plans"]
    }
    jobs = evidence.jobs_of(the_study(), "main", chosen)
    assert len(jobs) == 10 * 4 * 2 and {j.choice for j in jobs} == {"keep and learn"}


def test_tuning_uses_seeds_and_a_retention_text_of_its_own():
    tuning, main = (evidence.jobs_of(the_study(), s) for s in ("tune", "main"))
    assert not {j.seed for j in tuning} & {j.seed for j in main}
    assert {evidence.half_of(j) for j in tuning} == {"A"} and {evidence.half_of(j) for j in main} == {"B"}
    tries = {p: len([j for j in tuning if j.plan == p]) for p in {j.plan for j in tuning}}
    assert len(set(tries.values())) == 1, "every plan is tried equally often"


def test_an_optimum_at_the_edge_extends_the_grid_and_stops_at_the_limit():
    study, grid = the_study(), [3e-5, 1e-4, 3e-4]
    assert evidence.extension(study, grid, grid, {"keep": 1e-4, "learn": 1e-4}) == []
    assert evidence.extension(study, grid, grid, {"keep": 3e-5, "learn": 3e-4}) == [1e-5, 1e-3]
    wide = [3e-6, 1e-5, *grid]
    assert evidence.extension(study, wide, grid, {"keep": 3e-6, "learn": 1e-4}) == []


def test_keep_forgets_least_among_the_rates_that_reach_the_level():
    rows = [
        Rate("full", "alice", 1e-5, 2, 0, best_gain=0.05, forgetting_at_level=None),
        Rate("full", "alice", 3e-5, 2, 2, best_gain=0.12, forgetting_at_level=0.04),
        Rate("full", "alice", 1e-4, 2, 2, best_gain=0.14, forgetting_at_level=0.06),
    ]
    assert evidence.choose(rows) == {"keep": 3e-5, "learn": 1e-4}
    assert evidence.choose(rows[:1]) == {"keep": 1e-5, "learn": 1e-5}


def test_every_plan_of_the_page_is_known_and_the_compared_ones_have_nearly_equal_counts():
    from helpers.models.loading import build_on_meta

    model = build_on_meta(mini_config())
    numbers = the_study().numbers
    counts = {
        p: evidence.plan_of(p, model.config)[0].explain(model).n_trainable
        for p in [*numbers["deciding_plans"], *numbers["other_plans"]]
        if not p.startswith("lora-")
    }
    assert counts["only-attention"] == counts["only-mlp-out"]
    for near in ("only-mlp-in", "only-mlp-alternate"):
        assert abs(counts[near] / counts["only-attention"] - 1) < 0.005
    with pytest.raises(ProtocolError, match="only-something"):
        evidence.plan_of("only-something", model.config)


def test_the_dry_run_says_how_many_runs_and_hours_and_starts_nothing(small_study, capsys):
    assert record(small_study, "--dry-run") == 0
    said = capsys.readouterr().out
    assert "tune        4 runs,    4 to do" in said and "In all" in said and files(small_study) == []


def test_a_run_whose_loss_only_rises_stops_early_and_keeps_its_first_weights(small_study):
    page = small_study / "PROTOCOL.md"
    page.write_text(
        page.read_text()
        .replace("patience = 40", "patience = 2")
        .replace("grid = [1e-3]", "grid = [0.5]")
        .replace("ladder = [", "ladder = [0.5, ")
    )
    study = evidence.Study("tiny", "two-layers", small_study, None, read_protocol(page))
    evidence.prepare(study)
    run = json.loads(evidence.do(study, evidence.jobs_of(study, "tune")[0])[0].read_text())
    assert (run["steps_taken"], run["best_step"], run["n_steps"]) == (2, 0, 6) and run["proof_ok"]


def test_an_amendment_overrides_a_number_and_leaves_the_hash(tmp_path):
    page = tmp_path / "PROTOCOL.md"
    page.write_text(SMALL)
    before = read_protocol(page)
    page.write_text(
        SMALL + "\n- 2026-01-02: half the steps; no result seen.\n\n```toml\n[tiny]\nn_steps = 3\n```\n"
    )
    after = read_protocol(page)
    assert (before["tiny"]["n_steps"], after["tiny"]["n_steps"]) == (6, 3)
    assert before.sha256 == after.sha256 and after.n_amendments == 1
    page.write_text(SMALL + "\n- 2026-01-02: other seeds.\n\n```toml\n[tiny.seeds]\nswap = 7\n```\n")
    assert read_protocol(page)["tiny"] == {**before["tiny"], "seeds": {**before["tiny"]["seeds"], "swap": 7}}
    with page.open("a") as opened:  # a second one on the same table
        opened.write("\n- 2026-01-03: seeds again.\n\n```toml\n[tiny.seeds]\nswap = 8\nmain = 4\n```\n")
    assert read_protocol(page)["tiny"]["seeds"] == {**before["tiny"]["seeds"], "swap": 8, "main": 4}
    page.write_text(SMALL.replace("n_steps = 6", "n_steps = 7"))
    assert read_protocol(page).sha256 != before.sha256
    page.write_text(SMALL.replace("n_steps = 6", "n_steps 6"))
    with pytest.raises(ProtocolError, match="not TOML"):
        read_protocol(page)


def test_evaluations_are_close_at_first_and_a_run_that_learns_no_more_ends():
    settings = StudySettings(n_steps=160, rate=1e-4, evaluate_every=8, dense_until=32, patience=40)
    steps = [s for s in range(161) if settings.evaluates_at(s)]
    assert steps == [*range(0, 33, 4), *range(40, 161, 8)]
    losses = [{"step": s, "held_out_loss": loss} for s, loss in ((0, 3.5), (32, 3.3), (40, 3.4), (64, 3.35))]
    assert not settings.is_over(losses) and settings.is_over([*losses, {"step": 72, "held_out_loss": 3.31}])
    assert not StudySettings(n_steps=9, rate=1e-4).is_over(losses), "without patience a run goes to its end"


def test_three_hundred_runs_stay_small_in_git(tmp_path):
    rng = np.random.default_rng(0)
    steps = [
        s for s in range(161) if StudySettings(160, 1e-4, evaluate_every=8, dense_until=32).evaluates_at(s)
    ]
    found = [
        {
            "step": s,
            "held_out_loss": 3.5 - s / 1000,
            "gain": s / 1000,
            "train_loss": rng.normal(),
            "forgetting": rng.normal(),
            "held_out_windows": list(rng.normal(3, 1, 13)),
            "forgetting_windows": list(rng.normal(0.1, 0.02, 24)),
        }
        for s in steps
    ]  # every point on the frontier
    tests = {
        t: rounded(rng.normal(3, 1, n)) for t, n in (("a", 28), ("b", 23), ("c", 24), ("d", 100), ("e", 100))
    }
    path = tmp_path / "run.json"
    write_record(
        path,
        {
            "losses": rounded(rng.normal(3, 1, 160)),
            "norms": rounded(rng.normal(3, 1, 160)),
            "test_windows": tests,
            "function_windows": tests,
            "evaluations": slim(found, 160),
        },
    )
    assert path.stat().st_size < 22_000
    again = json.loads(path.read_text())["evaluations"]
    assert len(frontier(evaluations_of(again))[0]) == len(frontier(evaluations_of(found))[0])
    assert all("forgetting_windows" in e for e in again) and sum("held_out_windows" in e for e in again) == 2


# --- running -----------------------------------------------------------------------


def test_a_small_study_from_end_to_end_and_again_without_work(small_study, capsys):
    assert record(small_study) == 0
    said = capsys.readouterr().out
    assert "4 runs, 0 there already" in said
    found = files(small_study)
    assert len([f for f in found if f.startswith("runs/")]) == 4 and "rates.json" in found
    run = json.loads((small_study / "runs/two-layers/full/alice/0.json").read_text())
    assert {"protocol", "model_hash", "retention_hash", "commit", "function_windows", "swap"} <= set(run)
    assert [e["step"] for e in run["evaluations"]] == [0, 2, 4, 6] and run["proof_ok"]
    assert set(run["test_windows"]) == {"alice", "edgar", "plain"} and run["rate_choice"] == "keep and learn"
    tuning = json.loads((small_study / "tuning/two-layers/full/alice/900-0.001.json").read_text())
    assert not tuning.get("test_windows"), "a tuning run must not read the test text"
    long = json.loads((small_study / "long/two-layers/full/edgar/0.json").read_text())
    assert "forgetting" not in long["evaluations"][0] and long["steps_taken"] == 8
    before = {f: (small_study / f).stat().st_mtime_ns for f in found if f != "rates.json"}
    assert record(small_study) == 0
    assert before == {f: (small_study / f).stat().st_mtime_ns for f in before}


def test_a_part_first_and_the_rest_later_make_the_same_study(small_study, tmp_path):
    stages = ["--stages", "tune", "main"]
    whole = tmp_path / "whole"
    shutil.copytree(small_study, whole)
    record(whole, *stages)
    record(small_study, *stages, "--texts", "alice", "--plans", "full")
    made = [f for f in files(small_study) if f.startswith(("runs/", "tuning/"))]
    assert made and all("/full/alice/" in f for f in made)
    assert list(json.loads((small_study / "rates.json").read_text())["matched_gain"]) == ["alice"]
    with pytest.raises(
        SystemExit, match="No rate has been chosen yet for full on edgar, only-mlp-out on alice"
    ):
        record(small_study, "--stages", "main")
    with pytest.raises(SystemExit, match="Add 'full' to --plans"):
        record(small_study, *stages, "--texts", "edgar", "--plans", "only-mlp-out")
    record(small_study, *stages)
    assert files(small_study) == files(whole)
    assert (small_study / "rates.json").read_text() == (whole / "rates.json").read_text()


def test_each_model_trains_in_the_precision_that_the_page_names():
    studies = [the_study("tiny"), the_study("smollm2")]
    found = {
        s.profile: {evidence.settings_of(s, j).precision for j in evidence.jobs_of(s, "tune")}
        for s in studies
    }
    assert found == {"tiny": {"float32"}, "smollm2": {"bfloat16"}}


def test_a_plan_that_the_study_does_not_have_is_named(small_study):
    with pytest.raises(ProtocolError, match="no plan 'ful'. It has: full"):
        record(small_study, "--plans", "ful")


def test_recorded_runs_can_be_compared(small_study):
    record(small_study, "--stages", "tune", "main")
    a, b = (read_run(small_study / f"runs/two-layers/{p}/alice/0.json") for p in ("full", "only-mlp-out"))
    gain = 0.5 * min(max(e.gain for e in r.evaluations) for r in (a, b))
    assert gain > 0 and forgetting_difference([a], [b], gain).n_pairs == 1


def test_after_a_kill_between_two_runs_only_the_missing_ones_are_made(small_study, monkeypatch):
    whole, done = evidence.do, []

    def killed_after_two(study, job):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(job)
        return whole(study, job)

    monkeypatch.setattr(evidence, "do", killed_after_two)
    with pytest.raises(SystemExit, match="Stopped. What is recorded stays"):
        record(small_study, "--stages", "tune")
    first = files(small_study)
    assert len(first) == 2
    times = {f: (small_study / f).stat().st_mtime_ns for f in first}
    monkeypatch.setattr(evidence, "do", whole)
    assert record(small_study, "--stages", "tune") == 0
    assert len([f for f in files(small_study) if f.startswith("tuning/")]) == 4
    assert times == {f: (small_study / f).stat().st_mtime_ns for f in first}


CTRL_C = """import sys, time
from pathlib import Path
from helpers.study import read_protocol
from helpers.study import runner as evidence

folder = Path(sys.argv[1])

def do(study, job):
    (folder / f"begun-{job.seed}").touch()
    time.sleep(600)

if __name__ == "__main__":
    evidence.do = do
    study = evidence.Study("tiny", "a model", folder, None, read_protocol())
    evidence.run_all(study, evidence.tuning_jobs(study, ["full"], ["alice"], range(8), {("full", "alice"): [1e-4]}), 2)
"""


def test_ctrl_c_ends_the_study_and_begins_no_other_run(tmp_path):
    script = tmp_path / "study.py"
    script.write_text(CTRL_C)
    study = subprocess.Popen(
        [sys.executable, script, tmp_path],
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    while len(list(tmp_path.glob("begun-*"))) < 2:
        assert study.poll() is None, study.stderr.read()
        time.sleep(0.1)
    os.killpg(study.pid, signal.SIGINT)
    _, said = study.communicate(timeout=60)
    assert study.returncode == 1 and "Stopped. What is recorded stays" in said
    assert len(list(tmp_path.glob("begun-*"))) == 2
    with pytest.raises(ProcessLookupError):  # Python's own helper process takes a moment longer
        for _ in range(100):
            os.killpg(study.pid, 0)
            time.sleep(0.1)


@pytest.mark.parametrize("ignored, code", [(True, 0), (False, -signal.SIGINT)])
def test_a_worker_ignores_ctrl_c_as_its_study_does_in_the_background(ignored, code):
    before = "SIG_IGN" if ignored else "SIG_DFL"
    worker = (
        f"import os, signal; from helpers.study import processes; signal.signal(signal.SIGINT, signal.{before}); "
        "processes.end_with_parent(); os.kill(os.getpid(), signal.SIGINT)"
    )
    done = subprocess.run(
        [sys.executable, "-c", worker], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == code


def test_ctrl_c_while_a_finished_run_is_reported_is_no_error_either(small_study, monkeypatch):
    class Interrupted(float):
        def __format__(self, spec):
            raise KeyboardInterrupt

    monkeypatch.setattr(evidence, "do", lambda study, job: (job.path, Interrupted()))
    with pytest.raises(SystemExit, match="Stopped. What is recorded stays"):
        record(small_study, "--stages", "tune")


def test_a_plan_that_was_tuned_in_part_gets_no_rate(small_study):
    page = small_study / "PROTOCOL.md"
    page.write_text(page.read_text().replace("grid = [1e-3]", "grid = [3e-4, 1e-3]"))
    record(small_study, "--stages", "tune")
    (small_study / "tuning/two-layers/only-mlp-out/alice/900-0.0003.json").unlink()
    study = evidence.Study("tiny", "two-layers", small_study, None, read_protocol(page))
    chosen = evidence.choose_rates(study)["chosen"]
    assert list(chosen["only-mlp-out"]) == ["edgar"] and list(chosen["full"]) == ["alice", "edgar"]


def test_a_run_that_was_made_at_another_choice_of_rates_is_named(small_study):
    record(small_study, "--stages", "tune", "main")
    place = small_study / "runs/two-layers/full/alice"
    run = json.loads((place / "0.json").read_text())
    (place / "0.json").write_text(json.dumps(run | {"rate_choice": "keep"}))
    with pytest.raises(SystemExit, match="0.json differs in rate_choice"):
        record(small_study, "--stages", "main")
    (place / "0.json").write_text(json.dumps(run))
    (place / "0-learn.json").write_text(json.dumps(run | {"rate_choice": "learn"}))
    with pytest.raises(SystemExit, match="no longer another one"):
        record(small_study, "--stages", "main")


def test_runs_of_a_text_that_an_older_rates_file_lacks_are_no_reason_to_stop(small_study):
    record(small_study, "--stages", "tune", "main")
    place = small_study / "rates.json"
    rates = json.loads(place.read_text())
    older = rates | {"chosen": {p: {"alice": own["alice"]} for p, own in rates["chosen"].items()}}
    place.write_text(json.dumps(older))
    record(small_study, "--stages", "tune", "main")
    assert json.loads(place.read_text()) == rates


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--plans", "only-mlp-out", "--stages", "tune"], "Add 'full' to --plans"),
        (["--profile", "smoke", "--dry-run"], r"no section \[smoke\]"),
    ],
)
def test_what_cannot_be_studied_is_said_without_a_traceback(small_study, arguments, words):
    with pytest.raises((SystemExit, ProtocolError), match=words):
        record(small_study, *arguments)


@pytest.mark.parametrize(
    "change, words", [("protocol", "protocol"), ("model", "model_hash"), ("steps", "settings")]
)
def test_evidence_of_another_protocol_or_model_is_named_and_refused(small_study, change, words):
    record(small_study, "--stages", "tune")
    path = small_study / "tuning/two-layers/full/alice/900-0.001.json"
    run = json.loads(path.read_text())
    if change == "protocol":
        page = small_study / "PROTOCOL.md"
        page.write_text(page.read_text().replace("A small study", "Another study"))
    elif change == "model":
        path.write_text(json.dumps(run | {"model_hash": "0" * 64}))
    else:
        path.write_text(json.dumps(run | {"settings": run["settings"] | {"n_steps": 7}}))
    with pytest.raises(SystemExit, match=rf"900-0.001.json differs in {words}[\s\S]*--start-over"):
        record(small_study)
    if change == "protocol":
        assert record(small_study, "--start-over", "--stages", "tune") == 0


def test_a_retention_text_of_another_base_is_refused(small_study, tmp_path, monkeypatch):
    record(small_study, "--stages", "tune")
    other = tiny.saved(tmp_path / "two-layers", seed=4)
    monkeypatch.setenv("COURSE_MODEL", str(other))
    with pytest.raises(SystemExit, match="another base"):
        record(small_study)


@pytest.mark.parametrize(
    "roles, together", [(("attention", "mlp", "norm"), True), (("mlp",), False), ((), False)]
)
def test_norms_of_what_every_plan_trains_are_read_together(roles, together):
    size = {"attention": 1.0, "mlp": 3.0, "norm": 4.0}
    steps = [{"norms": {role: size[role] for role in roles}} for _ in range(12 if roles else 0)]
    history = SimpleNamespace(steps=steps, norm=lambda role: np.array([s["norms"][role] for s in steps]))
    found = norms_by_role(history)
    assert {name: n.median for name, n in found.items()} == {
        **{role: size[role] for role in roles},
        **({"mlp+norm": 5.0} if together else {}),
    }


def test_a_run_that_diverges_is_recorded_as_one_that_did_not_reach_the_level(small_study):
    page = small_study / "PROTOCOL.md"
    page.write_text(
        page.read_text().replace("grid = [1e-3]", "grid = [1.0]").replace("ladder = [", "ladder = [1.0, ")
    )
    import torch

    from helpers.study.laboratory import Laboratory

    whole = Laboratory.run

    def broken(self, plan, *arguments, **options):
        before = options.get("prepare")

        def prepare(model):
            if before:
                before(model)
            with torch.no_grad():
                model.transformer.h[0].ln_1.weight.fill_(float("nan"))

        return whole(self, plan, *arguments, **{**options, "prepare": prepare})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Laboratory, "run", broken)
        study = evidence.Study("tiny", "two-layers", small_study, None, read_protocol(page))
        evidence.prepare(study)
        path, _ = evidence.do(study, evidence.jobs_of(study, "tune")[0])
        lora, _ = evidence.do(study, evidence.tuning_job(study, "lora-mlp", "alice", 1.0, 900))
    run = json.loads(path.read_text())
    assert "diverged" in run and run["test_windows"] == {} and run["evaluations"][0]["step"] == 0
    assert json.loads(lora.read_text())["plan"] == "lora-mlp", "under its own name, as a finished run"
    row = evidence.row_of(study, "full", "alice", 1.0, [900], 0.0)
    assert (row.n_reach, row.best_gain, row.forgetting_at_level) == (0, 0, None)


def test_real_books_are_a_second_test_and_no_window_of_them_is_trained_on(small_study, tmp_path):
    books = tmp_path / "books"
    books.mkdir()
    (books / "carroll-alice.txt").write_text((DATA / "plain_tales.txt").read_text()[:9000])
    (books / "poe-tales.txt").write_text((DATA / "plain_tales.txt").read_text()[9000:30000])
    record(small_study, "--stages", "tune")
    record(small_study, "--stages", "main", "books", "--books", books)
    run = json.loads((small_study / "runs/two-layers/full/alice/0.json").read_text())
    assert {t: len(w) for t, w in run["test_windows"].items()}["carroll"] == 5
    on_poe = json.loads((small_study / "runs/two-layers/full/poe/0.json").read_text())
    assert on_poe["text"] == "poe" and on_poe["rate_choice"] == "keep"
    lab = evidence._laboratories["B"]
    train = {tuple(w.tolist()) for w in lab.corpora["poe"].train[:]["input_ids"]}
    assert not train & {tuple(w.tolist()) for w in lab.real["poe"]}
    with pytest.raises(SystemExit, match="the same --books for all runs"):
        record(small_study, "--stages", "main")


def test_a_lora_run_is_recorded_under_its_own_name(small_study):
    study = evidence.Study(
        "tiny", "two-layers", small_study, None, read_protocol(small_study / "PROTOCOL.md")
    )
    evidence.prepare(study)
    job = evidence.tuning_job(study, "lora-attention", "alice", 1e-3, 900)
    run = json.loads(evidence.do(study, job)[0].read_text())
    assert (
        run["plan"] == "lora-attention"
        and run["proof_ok"]
        and 0 < run["n_trainable"] < run["n_parameters"] / 10
    )


def test_no_plan_of_the_protocol_leaves_the_study():
    """Plans once left it, in silence, where a file of the house had another name."""
    for profile, model in (("tiny", "gpt-neo-mini"), ("smollm2", "smollm2-135m-instruct")):
        study = evidence.Study(profile, model, evidence.EVIDENCE, None, read_protocol())
        assert evidence.other_plans(study) == read_protocol()[profile]["other_plans"]


def test_books_that_lack_an_author_are_named(small_study, tmp_path):
    (tmp_path / "none").mkdir()
    protocol = read_protocol(small_study / "PROTOCOL.md")
    study = evidence.Study("tiny", "two-layers", small_study, tmp_path / "none", protocol)
    with pytest.raises(SystemExit, match="one of Poe"):
        evidence.real_texts(study, None)
