"""Faults in real processes: nothing that was saved is lost, the words say what to do, and the run goes on exactly.

The processes are forked from one that has imported everything, so that each costs a moment, not seconds.
"""

import errno
import json
import multiprocessing
import os
import random
import time

import pytest
import torch
from safetensors import SafetensorError

from helpers.models.loading import build_model
from helpers.profiles import ROOT
from helpers.training import checkpoints, locks
from helpers.training import shell as train
from helpers.training.checkpoints import CheckpointError, load_checkpoint
from helpers.training.deltas import read_delta
from helpers.training.locks import LockError
from helpers.training.runs import TrainSettings
from support import fault_jobs

if "forkserver" not in multiprocessing.get_all_start_methods():
    pytest.skip("this system cannot fork, and the faults need many processes", allow_module_level=True)

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["__main__", "helpers.training.shell"])
PATIENCE = 120  # seconds; only a hanging process waits so long
KILLED = -9


def start(job, *arguments, **options):
    process = PROCESSES.Process(target=job, args=arguments, kwargs=options, daemon=True)
    process.start()
    return process


def finished(folder, out, **options) -> dict:
    """What a run came to that nobody disturbed, and what it said."""
    process = start(fault_jobs.run, folder, out, **options)
    process.join(PATIENCE)
    assert process.exitcode == 0, out.with_name(f"{out.name}.err").read_text()
    return json.loads(out.read_text()) | {"said": out.with_name(f"{out.name}.err").read_text()}


def without_words(outcome: dict) -> dict:
    return {k: v for k, v in outcome.items() if k != "said"}


def smoke_run(out) -> list[str]:
    """The arguments of `helpers.training.shell` for a run of six steps."""
    return [
        "--profile",
        "smoke",
        "--text",
        str(ROOT / "data" / "plain_tales.txt"),
        "--freeze",
        "attention+embeddings",
        "--steps",
        "6",
        "--lr",
        "3e-4",
        "--length",
        "32",
        "--out",
        str(out),
    ]


def wait_until(condition, process, what) -> None:
    """Look every millisecond; a process that ended early, or hangs, is a failure."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert process.is_alive(), f"the process ended with {process.exitcode} before {what}"
        assert time.monotonic() < end, f"waited {PATIENCE} s for {what}"
        time.sleep(0.001)


def newest(folder) -> int:
    return max((int(p.name[5:]) for p in folder.glob("step-*")), default=0)


def kill(process) -> None:
    process.kill()
    process.join(PATIENCE)
    assert process.exitcode == KILLED


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory) -> dict:
    """The run of 25 steps that nothing disturbs, without a folder."""
    return finished(None, tmp_path_factory.mktemp("unbroken") / "out")


# --- kill -9 -----------------------------------------------------------------------


def test_killed_twenty_times_the_run_ends_as_if_unbroken(tmp_path):
    folder, dice, n_steps = tmp_path / "run", random.Random(0), 90
    n_while_writing, last = 0, 0
    for i in range(20):
        process = start(fault_jobs.run, folder, tmp_path / "out", n_steps=n_steps, disk_seconds=0.003)
        goal = last + dice.randint(0, 3)
        if i % 2:  # at any moment after the goal
            wait_until(lambda goal=goal: newest(folder) >= goal, process, f"step {goal}")
            time.sleep(dice.uniform(0, 0.2))
        else:  # while a checkpoint is being written
            wait_until(
                lambda goal=goal: newest(folder) >= goal and any(folder.glob(".partial-*")),
                process,
                "a write",
            )
            time.sleep(dice.uniform(0, 0.005))
        kill(process)
        n_while_writing += any(folder.glob(".partial-*"))
        saved = load_checkpoint(folder)
        assert saved is None or saved.damaged == [], saved.damaged
        assert last <= (saved.step if saved else 0), "an earlier result was lost"
        last = saved.step if saved else 0
    done = finished(folder, tmp_path / "out", n_steps=n_steps)
    assert f"'{folder}' holds step {last} of {n_steps} of this run: going on from there" in done["said"]
    unbroken = finished(None, tmp_path / "unbroken", n_steps=n_steps)
    assert without_words(done) == without_words(unbroken) and done["proof"]
    assert n_while_writing >= 5, "too few kills met a write"
    assert newest(folder) == n_steps and not any(folder.glob(".partial-*"))


def test_a_delta_whose_writer_is_killed_is_the_old_or_the_new_one(tmp_path):
    dice = random.Random(1)
    for _ in range(5):
        process = start(fault_jobs.save_deltas, tmp_path)
        wait_until(
            lambda: any(tmp_path.glob(".delta.safetensors.*")) and (tmp_path / "delta.safetensors").exists(),
            process,
            "a write",
        )
        time.sleep(dice.uniform(0, 0.03))
        kill(process)
        assert read_delta(tmp_path).counts  # verified whole
        for leftover in tmp_path.glob(".*"):
            leftover.unlink()


def test_the_command_killed_at_its_start_in_training_and_at_its_end_reports_the_same(tmp_path):
    run, whole = tmp_path / "run", tmp_path / "whole"
    for moment in (run / ".lock", run / "checkpoints" / ".lock", run / "checkpoints" / "step-00000006"):
        process = start(fault_jobs.command, smoke_run(run), tmp_path / "said")
        wait_until(moment.exists, process, moment.name)
        kill(process)
    (run / ".delta.safetensors.99999").write_bytes(b"half")
    for out in (run, whole):
        process = start(fault_jobs.command, smoke_run(out), tmp_path / "said")
        process.join(PATIENCE)
        assert process.exitcode == 0, (tmp_path / "said").read_text()
    one, other = (json.loads((out / "report.json").read_text()) for out in (run, whole))
    for key in (
        "tuned_hash",
        "held_out_loss_after",
        "forgetting",
        "evaluations",
        "sample_after",
        "delta_bytes",
    ):
        assert one[key] == other[key], key
    assert (run / "delta.safetensors").read_bytes() == (whole / "delta.safetensors").read_bytes()
    assert not list(run.glob(".delta*"))


# --- a disk that fills, a folder that cannot be ------------------------------------


def test_a_disk_that_fills_keeps_what_was_saved_and_the_run_goes_on(tmp_path, unbroken):
    folder = tmp_path / "run"
    process = start(fault_jobs.run, folder, tmp_path / "out")
    wait_until(lambda: newest(folder) >= 5, process, "step 5")
    kill(process)
    before = load_checkpoint(folder).step
    stopped = finished(folder, tmp_path / "out", file_limit=20_000)
    assert f"Could not save the checkpoint of step {before + 1}" in stopped["error"]
    assert "Free some space" in stopped["error"] and "resumes from the last one" in stopped["error"]
    saved = load_checkpoint(folder)
    assert saved.step == before and saved.damaged == [] and not any(folder.glob(".partial-*"))
    assert without_words(finished(folder, tmp_path / "out")) == without_words(unbroken)


FULL = {
    "OSError": OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
    "SafetensorError": SafetensorError(
        "Error while serializing: I/O error: No space left on device (os error 28)"
    ),
}


@pytest.mark.parametrize("kind", FULL)
@pytest.mark.parametrize("place", ["save_file", "write_json", "_flush"])
def test_no_space_at_any_point_of_a_save_leaves_the_earlier_checkpoint(tmp_path, monkeypatch, place, kind):
    def save(step):
        return checkpoints.save_checkpoint(tmp_path, step, {"w": fault_jobs.torch.ones(3)}, {})

    def full(*arguments, **options):
        raise FULL[kind]

    save(1)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, place, full)
        with pytest.raises(
            CheckpointError, match="step 2.*No space left.*Free some space.*Earlier checkpoints"
        ):
            save(2)
    assert load_checkpoint(tmp_path).step == 1 and load_checkpoint(tmp_path).damaged == []
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]


def test_no_space_for_the_first_checkpoint_promises_no_earlier_one(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoints, "save_file", full)
    with pytest.raises(
        CheckpointError, match="step 2.*No checkpoint is kept yet: the same command begins anew"
    ) as error:
        checkpoints.save_checkpoint(tmp_path, 2, {}, {})
    assert "earlier" not in str(error.value) and not list(tmp_path.iterdir())


def test_a_folder_below_a_file_is_refused_before_the_first_step(tmp_path):
    (tmp_path / "file").write_text("kept")
    stopped = finished(tmp_path / "file" / "run", tmp_path / "out")
    assert "cannot be made" in stopped["error"] and "Choose another folder" in stopped["error"]
    assert (tmp_path / "file").read_text() == "kept"


def test_a_folder_without_write_permission_is_refused_before_the_first_step(tmp_path):
    closed = tmp_path / "closed"
    closed.mkdir()
    closed.chmod(0o555)
    stopped = finished(closed / "run", tmp_path / "out", as_nobody=os.geteuid() == 0)
    assert "cannot be made" in stopped["error"] and "the right to write there" in stopped["error"]
    assert not any(closed.iterdir())


# --- a NaN, a flipped bit ----------------------------------------------------------


def test_a_nan_in_a_gradient_stops_before_the_weights_and_the_run_goes_on_without_it(tmp_path, unbroken):
    folder = tmp_path / "run"
    stopped = finished(folder, tmp_path / "out", nan_at=7)
    assert "At step 7" in stopped["error"] and "gradient norm nan" in stopped["error"]
    assert f"The last good checkpoint is step 7 in '{folder}'" in stopped["error"]
    assert "Try a third of the rate" in stopped["error"]
    assert load_checkpoint(folder).step == 7
    assert without_words(finished(folder, tmp_path / "out")) == without_words(unbroken)


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json"])
def test_one_flipped_bit_falls_back_to_the_earlier_checkpoint_and_says_so(tmp_path, unbroken, name):
    folder, dice = tmp_path / "run", random.Random(2)
    process = start(fault_jobs.run, folder, tmp_path / "out")
    wait_until(lambda: newest(folder) >= 4, process, "step 4")
    kill(process)
    step = newest(folder)
    file = folder / f"step-{step:08d}" / name
    raw = bytearray(file.read_bytes())
    bit = dice.randrange(8 * len(raw))
    raw[bit // 8] ^= 1 << bit % 8
    file.write_bytes(raw)
    done = finished(folder, tmp_path / "out")
    assert f"step-{step:08d} is damaged" in done["said"] and "using the one before it" in done["said"]
    assert f"holds step {step - 1} of 25" in done["said"]
    assert without_words(done) == without_words(unbroken)


# --- two runs in one folder --------------------------------------------------------


def test_a_second_run_in_a_folder_at_work_is_refused_and_the_first_one_goes_on(tmp_path, unbroken):
    folder = tmp_path / "run"
    first = start(fault_jobs.run, folder, tmp_path / "first", gate=tmp_path / "go")
    wait_until(lambda: newest(folder) >= 2, first, "step 2")
    refused = finished(folder, tmp_path / "second")
    (tmp_path / "go").touch()
    assert f"is in use: process {first.pid} is at work there" in refused["error"]
    assert "Wait until it ends" in refused["error"] and "choose another folder" in refused["error"]
    first.join(PATIENCE)
    assert first.exitcode == 0
    done = json.loads((tmp_path / "first").read_text())
    assert done == without_words(unbroken)
    again = finished(folder, tmp_path / "second")
    assert "holds step 25 of 25 of this run: nothing is left to train" in again["said"]
    assert without_words(again) == without_words(unbroken)


def test_two_runs_that_start_together_never_share_the_folder(tmp_path, unbroken):
    pair = [start(fault_jobs.run, tmp_path / "run", tmp_path / name) for name in "ab"]
    for process in pair:
        process.join(PATIENCE)
    found = [json.loads((tmp_path / name).read_text()) for name in "ab"]
    done = [f for f in found if "error" not in f]
    assert done and all(f == without_words(unbroken) for f in done)
    assert all("is in use" in f["error"] for f in found if "error" in f)


def test_the_command_is_refused_in_a_folder_at_work_and_leaves_it_alone(tmp_path, capsys):
    run = tmp_path / "run"
    other = start(fault_jobs.hold, run)
    wait_until(lambda: (run / ".lock").exists() and (run / ".lock").read_text(), other, "the lock")
    code = train.main(smoke_run(run))
    said = capsys.readouterr().err
    kill(other)
    assert (
        code == 2 and f"error: The run folder '{run}' is in use: process {other.pid} is at work there" in said
    )
    assert [p.name for p in run.iterdir()] == [".lock"]


def test_a_killed_run_leaves_no_lock(tmp_path, unbroken):
    folder = tmp_path / "run"
    process = start(fault_jobs.run, folder, tmp_path / "out")
    wait_until(lambda: newest(folder) >= 1, process, "step 1")
    kill(process)
    assert (folder / ".lock").read_text() == f"{process.pid}\n"
    assert without_words(finished(folder, tmp_path / "out")) == without_words(unbroken)


def test_a_run_that_stopped_in_a_living_process_leaves_the_folder_to_others(tmp_path):
    model = build_model(fault_jobs.CONFIG, seed=1)
    fault_jobs.inject_nan(model.transformer.h[1].mlp.c_fc.weight, at=4)
    windows = torch.randint(97, (10, 24), generator=torch.Generator().manual_seed(0))
    settings = TrainSettings(n_steps=25, rate=1e-2, batch=4, evaluate_every=1, save_every=1)
    stopped = fault_jobs.outcome(model, windows, settings, tmp_path / "run", None)
    assert "At step 4" in stopped["error"]
    assert finished(tmp_path / "run", tmp_path / "out")["proof"]


def test_a_process_takes_a_folder_again_and_again_and_gives_it_back(tmp_path):
    locks.take(tmp_path / "run")
    locks.take(tmp_path / "run")
    locks.give_back(tmp_path / "run")
    locks.give_back(tmp_path / "run")
    locks.give_back(None)


def test_a_lock_is_not_lost_with_a_folder_that_was_deleted_and_made_again(tmp_path):
    folder = tmp_path / "run"
    locks.take(folder)
    (folder / ".lock").unlink()
    locks.take(folder)
    refused = finished(folder, tmp_path / "out", n_steps=1)
    locks.give_back(folder)
    assert f"process {os.getpid()} is at work" in refused["error"]


def test_a_system_without_file_locks_is_said_and_the_run_goes_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(locks, "fcntl", None)
    locks.take(tmp_path)
    locks.give_back(tmp_path)
    assert "no file locks" in capsys.readouterr().err


@pytest.mark.parametrize(
    "code, is_refused",
    [(errno.EAGAIN, True), (errno.EACCES, True), (errno.ENOLCK, False), (errno.EOPNOTSUPP, False)],
)
def test_a_drive_without_locks_is_said_but_a_locked_one_is_refused(
    tmp_path, monkeypatch, capsys, code, is_refused
):
    def answer(*arguments):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(locks.fcntl, "lockf", answer)
    if is_refused:
        with pytest.raises(LockError, match="is in use: process unknown"):
            locks.take(tmp_path)
    else:
        locks.take(tmp_path)
        locks.give_back(tmp_path)
        assert "No lock on" in capsys.readouterr().err
