"""What is a reader's in or beside a run folder stays: nothing but a run's own files is deleted or written over."""

import errno
import fcntl
import json
import os
import stat

import pytest
import torch

from helpers import files
from helpers.files import write_json, write_tensors
from helpers.training import checkpoints, folders, locks
from helpers.training.checkpoints import kept_steps, load_checkpoint, save_checkpoint
from helpers.training.runs import TrainingError

MINE = {
    "text_sha256": "t",
    "model_hash": "m",
    "plan": "full",
    "length": 8,
    "n_steps": 40,
    "rate": 1e-3,
    "micro_batch": None,
}


def save(folder, step, keep=2, **state):
    return save_checkpoint(
        folder, step, {"w": torch.full((5,), float(step))}, {"note": step, **state}, keep=keep
    )


def content(folder) -> dict:
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def readers_file(place):
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text("a reader's own")
    return place


# --- checkpoints -------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "step-by-step",
        "step-00000001-backup",
        "step-1",
        "step-99999999x",
        ".partial-report",
        ".partial-00000001",
        ".partial-00000001-9.txt",
    ],
)
@pytest.mark.parametrize("file", ["notes.txt", "state.json"])
def test_a_folder_of_a_similar_name_is_no_checkpoint_and_stays(tmp_path, name, file):
    kept = readers_file(tmp_path / name / file)
    for step in range(1, 6):
        save(tmp_path, step)
    assert kept.read_text() == "a reader's own"
    assert load_checkpoint(tmp_path).step == 5
    assert kept_steps(tmp_path) == [4, 5]


def test_a_half_written_folder_that_holds_a_readers_file_stays(tmp_path):
    kept = readers_file(tmp_path / ".partial-00000001-77" / "notes.txt")
    save(tmp_path, 1)
    assert kept.exists()


def test_a_link_of_a_half_written_name_is_not_followed(tmp_path):
    kept = readers_file(tmp_path / "mine" / "state.json")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".partial-00000001-77").symlink_to(tmp_path / "mine")
    save(tmp_path / "run", 1)
    assert kept.exists() and (tmp_path / "run" / ".partial-00000001-77").is_symlink()


def test_a_copy_that_a_reader_made_under_another_step_is_neither_taken_nor_deleted(tmp_path):
    save(tmp_path, 1)
    os.rename(save(tmp_path, 2), tmp_path / "step-00000777")
    before = content(tmp_path / "step-00000777")
    for step in (3, 4, 5, 6):
        save(tmp_path, step)
    assert content(tmp_path / "step-00000777") == before
    found = load_checkpoint(tmp_path)
    assert (
        found.step == 6
        and "step-00000777 is damaged" in found.damaged[0]
        and "says step 2" in found.damaged[0]
    )


def test_a_checkpoint_that_the_runs_record_does_not_list_stays(tmp_path):
    save(tmp_path / "other", 1)
    for step in (2, 3):
        save(tmp_path / "run", step)
    os.rename(tmp_path / "other" / "step-00000001", tmp_path / "run" / "step-00000001")
    for step in (4, 5, 6):
        save(tmp_path / "run", step)
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == [
        "step-00000001",
        "step-00000005",
        "step-00000006",
    ]


def test_a_checkpoint_with_a_readers_notes_in_it_stays(tmp_path):
    kept = readers_file(save(tmp_path, 1) / "notes.txt")
    for step in (2, 3, 4):
        save(tmp_path, step)
    assert kept.exists()


def test_a_linked_step_is_not_followed(tmp_path):
    save(tmp_path / "elsewhere", 1)
    before = content(tmp_path / "elsewhere")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "step-00000001").symlink_to(tmp_path / "elsewhere" / "step-00000001")
    for step in (2, 3, 4):
        save(tmp_path / "run", step)
    assert content(tmp_path / "elsewhere") == before and (tmp_path / "run" / "step-00000001").is_symlink()


@pytest.mark.parametrize("kind", ["folder", "file", "link"])
def test_what_stands_under_a_new_checkpoints_name_is_set_aside(tmp_path, capsys, kind):
    run, mine = tmp_path / "run", readers_file(tmp_path / "mine")
    run.mkdir()
    if kind == "folder":
        readers_file(run / "step-00000003" / "notes.txt")
    elif kind == "file":
        readers_file(run / "step-00000003")
    else:
        (run / "step-00000003").symlink_to(mine)
    save(run, 3)
    (aside,) = run.glob("set-aside-step-00000003-*")
    kept = aside / "notes.txt" if kind == "folder" else aside
    assert kept.read_text() == mine.read_text() == "a reader's own"
    assert load_checkpoint(run).step == 3 and "set-aside" in capsys.readouterr().err


def test_checkpoints_of_the_older_form_are_read_and_pruned_no_more_than_they_can_be(tmp_path):
    for step in (1, 2):
        place = save(tmp_path, step)
        record = json.loads((place / "state.json").read_text())
        record.pop("kept"), record.pop("own_sha256")
        write_json(place / "state.json", {**record, "own_sha256": files.record_hash(record)})
    assert load_checkpoint(tmp_path).step == 2
    for step in (3, 4):
        save(tmp_path, step)
    assert load_checkpoint(tmp_path).step == 4 and kept_steps(tmp_path) == [3, 4]


# --- single files ------------------------------------------------------------------


@pytest.mark.parametrize(
    "write", [lambda p: write_json(p, {"v": 2}), lambda p: write_tensors(p, {"w": torch.ones(2)})]
)
@pytest.mark.parametrize("kind", ["file", "link"])
def test_a_file_is_never_written_by_way_of_one_that_is_there(tmp_path, write, kind):
    mine = readers_file(tmp_path / "mine")
    half = tmp_path / f".a.json.{os.getpid()}"
    if kind == "file":
        readers_file(half)
    else:
        half.symlink_to(mine)
    write(tmp_path / "a.json")
    assert mine.read_text() == half.read_text() == "a reader's own"
    assert (tmp_path / "a.json").stat().st_size
    assert {p.name for p in tmp_path.iterdir()} == {"a.json", "mine", half.name}


def test_whoever_may_read_a_new_file_may_read_tensors_too(tmp_path):
    (tmp_path / "new").touch()
    write_tensors(tmp_path / "a.safetensors", {"w": torch.ones(2)})
    assert (tmp_path / "a.safetensors").stat().st_mode == (tmp_path / "new").stat().st_mode


def test_a_linked_target_is_replaced_and_what_it_leads_to_stays(tmp_path):
    mine = readers_file(tmp_path / "mine")
    (tmp_path / "a.json").symlink_to(mine)
    write_json(tmp_path / "a.json", {"v": 1})
    assert mine.read_text() == "a reader's own" and not (tmp_path / "a.json").is_symlink()


def test_a_lock_that_is_a_link_is_refused_and_not_emptied(tmp_path):
    mine = readers_file(tmp_path / "mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").symlink_to(mine)
    with pytest.raises(locks.LockError, match="is a link"):
        locks.take(tmp_path / "run")
    assert mine.read_text() == "a reader's own"


def test_a_readers_lock_file_is_locked_and_keeps_its_content(tmp_path):
    mine = readers_file(tmp_path / ".lock")
    locks.take(tmp_path)
    locks.give_back(tmp_path)
    assert mine.read_text() == "a reader's own"


# --- whose folder is it? -----------------------------------------------------------


@pytest.mark.parametrize(
    "inside",
    [
        "checkpoints/model.ckpt",
        "checkpoints/step-00000010/weights.bin",
        "run.json/x",
        ".run.json.old",
        ".lockfile",
    ],
)
def test_a_folder_with_other_things_in_it_is_no_run(tmp_path, inside):
    readers_file(tmp_path / inside)
    before = content(tmp_path)
    with pytest.raises(TrainingError):
        folders.check_out(tmp_path)
        folders.claim(tmp_path, MINE)
    assert content(tmp_path) == before


@pytest.mark.parametrize("name", ["", "run", "deeper/run"])
def test_a_place_that_takes_no_files_is_refused_before_anything_is_computed(tmp_path, monkeypatch, name):
    monkeypatch.setattr(folders.os, "access", lambda place, _: place != tmp_path)
    with pytest.raises(TrainingError, match=f"'{tmp_path}' takes no new files"):
        folders.check_out(tmp_path / name)
    monkeypatch.undo()
    assert folders.check_out(tmp_path / name) == tmp_path / name


def test_a_link_to_the_checkpoints_of_a_run_makes_no_run(tmp_path):
    save(tmp_path / "run" / "checkpoints", 1, identity={"plan": "full", "base": "b", "settings": {}})
    folders.check_out(tmp_path / "run")  # its run.json is gone, and its checkpoints prove what it was
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "checkpoints").symlink_to(tmp_path / "run" / "checkpoints")
    with pytest.raises(TrainingError, match="holds no run of this course"):
        folders.check_out(tmp_path / "other")


@pytest.mark.parametrize("record", ["{}", '{"scripts": {}}', "[]", "", "{", "[" * 100_000, "\ufeff{}"])
def test_a_run_json_that_is_not_of_this_course_is_refused_and_the_folder_stays(tmp_path, record):
    (tmp_path / "run.json").write_text(record, "utf-8")
    readers_file(tmp_path / ".report.json.2024")
    before = content(tmp_path)
    folders.check_out(tmp_path)
    with pytest.raises(TrainingError, match="run.json.*folder"):
        folders.claim(tmp_path, MINE)
    assert content(tmp_path) == before


@pytest.mark.parametrize("name", [".notes.2024", ".env.1", ".a.b.9", ".report.json.bak", ".run.json.12x"])
def test_a_readers_hidden_file_stays_when_a_run_takes_its_folder(tmp_path, name):
    folders.claim(tmp_path, MINE)
    kept, own = readers_file(tmp_path / name), readers_file(tmp_path / ".run.json.4242")
    link = tmp_path / ".report.json.4242"
    link.symlink_to(kept)
    folders.claim(tmp_path, MINE)
    locks.give_back(tmp_path)
    assert kept.exists() and link.is_symlink() and not own.exists()


def test_another_run_is_refused_before_anything_is_written(tmp_path):
    folders.claim(tmp_path, MINE)
    locks.give_back(tmp_path)
    (tmp_path / ".lock").unlink()
    before = content(tmp_path)
    with pytest.raises(TrainingError, match="another run .rate 0.001 there, 0.1 here"):
        folders.claim(tmp_path, MINE | {"rate": 0.1})
    assert content(tmp_path) == before


@pytest.mark.parametrize("word", [{"replay": 1.0}, {"patience": 10}])
def test_a_word_that_was_not_given_before_or_is_not_given_now_makes_another_run(tmp_path, word):
    for first, then in ((MINE, MINE | word), (MINE | word, MINE)):
        place = tmp_path / str(len(first))
        folders.claim(place, first)
        locks.give_back(place)
        before = content(place)
        with pytest.raises(TrainingError, match=f"another run .{next(iter(word))} "):
            folders.claim(place, then)
        assert content(place) == before


def test_more_steps_or_a_smaller_micro_batch_are_no_other_run_but_fewer_steps_than_saved_are_refused(
    tmp_path,
):
    folders.claim(tmp_path, MINE)
    save(tmp_path / "checkpoints", 40)
    folders.claim(tmp_path, MINE | {"n_steps": 60, "micro_batch": 2})
    assert json.loads((tmp_path / "run.json").read_text())["n_steps"] == 60
    with pytest.raises(TrainingError, match="holds step 40 of this run already, more than the 30"):
        folders.claim(tmp_path, MINE | {"n_steps": 30})
    locks.give_back(tmp_path)
    assert json.loads((tmp_path / "run.json").read_text())["n_steps"] == 60


# --- other systems -----------------------------------------------------------------


def test_saving_works_where_no_read_only_descriptor_can_be_flushed_and_no_folder_opened(
    tmp_path, monkeypatch
):
    """As on Windows."""
    sync, open_file, flushed = os.fsync, os.open, []

    def fsync(descriptor):
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        flushed.append(stat.S_ISREG(os.fstat(descriptor).st_mode))
        sync(descriptor)

    def no_folders(path, *arguments, **options):
        if os.path.isdir(path):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return open_file(path, *arguments, **options)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "open", no_folders)
    save(tmp_path / "run", 1)
    write_json(tmp_path / "a.json", {})
    write_tensors(tmp_path / "a.safetensors", {"w": torch.ones(2)})
    assert load_checkpoint(tmp_path / "run").step == 1 and len(flushed) == 4 and all(flushed)


def test_a_full_disk_is_no_refusal_of_the_system_and_is_said(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(checkpoints.CheckpointError, match="No space left"):
        save(tmp_path, 1)
