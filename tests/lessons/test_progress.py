"""Which exercises are solved: kept in one local file, whatever happens to it."""

import json
import subprocess
import sys

import pytest

from helpers.lessons import checks
from helpers.profiles import ROOT


@pytest.fixture
def build(tmp_path, monkeypatch):
    """A build folder that does not exist yet."""
    monkeypatch.setenv("COURSE_BUILD", str(tmp_path / "build"))
    return tmp_path / "build"


def printed(capsys):
    checks.progress()
    return capsys.readouterr().out


def test_a_right_answer_is_kept_and_a_wrong_or_missing_one_is_not(build, capsys):
    for name, answer in {"00a": 8.318, "00b": 10, "01b": 64, "02a": ...}.items():
        checks.check(name, answer)
    assert checks.solved() == {"00a", "01b"}
    shown = printed(capsys)
    assert "00a ■  00b ·" in shown and "01a ·  01b ■" in shown
    assert f"solved: 2 of {len(checks.exercise_names())} exercises" in shown


def test_a_solved_exercise_stays_solved(build):
    checks.check("00a", 8.318)
    checks.check("00a", 12)
    assert checks.solved() == {"00a"}


def test_reply_to_stays_a_pure_function(build):
    assert checks.reply_to("00a", 8.318).ok
    assert not build.exists()


def test_looking_writes_nothing(build, capsys):
    assert "solved: 0 of" in printed(capsys)
    assert not build.exists()


def test_every_exercise_of_every_file_of_checks_is_listed(build, capsys):
    names = checks.exercise_names()
    assert names == sorted(set(names)) and {"00d", "01f", "02g"} <= set(names)
    assert all(name in printed(capsys) for name in names[::7])


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b'{"solved": ["00a"',
        b"\xff\xfe",
        b"[]",
        b'{"solved": 3}',
        b"null",
        b"3",
        b'"text"',
        b"[" * 100_000,
    ],
)
def test_a_damaged_file_is_said_and_begun_anew(build, capsys, damage):
    build.mkdir()
    (build / "progress.json").write_bytes(damage)
    assert "cannot be read" in printed(capsys)
    assert (build / "progress.json.damaged").read_bytes() == damage
    checks.check("00a", 8.318)
    assert json.loads((build / "progress.json").read_text("utf-8")) == {"solved": ["00a"]}
    assert "cannot be read" not in printed(capsys)


def test_what_can_be_read_of_a_damaged_file_is_kept(build, capsys):
    build.mkdir()
    (build / "progress.json").write_text('{"solved": ["00a", 3, null]}')
    assert checks.solved() == checks.solved() == {"00a"}
    assert capsys.readouterr().out.count("What could be read is kept") == 1


def test_a_name_that_is_no_exercise_any_more_does_not_count(build, capsys):
    build.mkdir()
    (build / "progress.json").write_text('{"solved": ["99z", "00a"]}')
    assert "solved: 1 of" in printed(capsys)


def test_no_half_written_file_is_left(build, monkeypatch):
    checks.check("00a", 8.318)
    monkeypatch.setattr("os.replace", lambda *places: (_ for _ in ()).throw(OSError("disk full")))
    checks.check("01b", 64)
    assert [place.name for place in build.iterdir()] == ["progress.json"]
    assert checks.solved() == {"00a"}


def test_a_build_folder_that_cannot_be_written_is_said_and_nothing_stops(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("COURSE_BUILD", str(tmp_path / "file" / "build"))
    checks.check("00a", 8.318)
    said = capsys.readouterr().out
    assert "00a: right" in said and "could not be kept" in said


def test_what_check_prints_does_not_depend_on_progress(build, capsys):
    for _ in range(2):
        checks.check("00a", 8.318)
        checks.check("00b", ...)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == lines[2:]


def test_the_command_shows_the_same_as_the_cell(build, capsys):
    checks.check("02a", 1.9406)
    capsys.readouterr()
    command = [sys.executable, "-m", "helpers.lessons.checks", "--progress"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout == printed(capsys)


def test_the_command_without_its_option_says_how_it_is_used(capsys):
    with pytest.raises(SystemExit):
        checks.main([])
    assert "--progress" in capsys.readouterr().err
