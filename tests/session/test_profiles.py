"""Which model, text and sizes are chosen, and what a wrong setting says."""

import os
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest
import torch

from helpers import profiles
from helpers.profiles import DATA, ROOT, Gutenberg, ProfileError, build_dir, current, downloads_dir


@pytest.fixture(autouse=True)
def no_settings_and_no_gpu(monkeypatch):
    for name in [n for n in os.environ if n.startswith("COURSE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_without_a_gpu_the_course_runs_the_shipped_model_and_its_own_texts():
    profile = current()
    assert profile.name == "tiny"
    assert profile.model == str(DATA / "gpt-neo-mini")
    assert profile.texts == {
        "alice": DATA / "alice_style.txt",
        "edgar": DATA / "edgar_style.txt",
        "plain": DATA / "plain_tales.txt",
    }
    assert (profile.length, profile.batch, profile.precision) == (256, 8, "float32")
    assert "no CUDA GPU was found" in profile.note


def test_the_shipped_texts_of_the_profile_are_there():
    assert all(path.is_file() for path in current("tiny").texts.values())


def test_with_a_gpu_the_course_runs_gpt_neo_on_real_books(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    profile = current()
    assert (profile.name, profile.model) == ("gpt-neo", "EleutherAI/gpt-neo-125M")
    assert (profile.length, profile.batch) == (512, 8)
    assert profile.texts["alice"] == Gutenberg((11, 12))
    assert set(profile.texts["edgar"].numbers) == set(range(2147, 2152))
    assert "a CUDA GPU was found" in profile.note
    assert "seen in pretraining" in profile.text_note


def test_gpt_neo_on_a_cpu_takes_smaller_steps_and_says_so():
    profile = current("gpt-neo")
    assert (profile.length, profile.batch) == (256, 4)
    assert "lack of a GPU" in profile.note


def test_course_profile_wins_over_the_machine(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("COURSE_PROFILE", "tiny")
    assert current().name == "tiny"
    assert "set by COURSE_PROFILE" in current().note


def test_a_profile_asked_for_by_name_wins_over_course_profile(monkeypatch):
    monkeypatch.setenv("COURSE_PROFILE", "gpt-neo")
    assert current("tiny").name == "tiny"


def test_smoke_is_the_tiny_model_with_few_steps_and_windows():
    smoke, tiny = current("smoke"), current("tiny")
    assert (smoke.model, smoke.texts) == (tiny.model, tiny.texts)
    assert smoke.n_steps == 4
    assert smoke.retention_windows <= 4 and smoke.held_out_windows <= 4


@pytest.fixture()
def fetched(monkeypatch, tmp_path):
    """The folder of profile smollm2, as if it had been fetched."""
    monkeypatch.setenv("COURSE_DATA", str(tmp_path))
    profiles.smollm2_dir().mkdir()
    return profiles.smollm2_dir()


@pytest.mark.parametrize("name", profiles.PROFILES)
def test_every_profile_is_whole(name, fetched):
    profile = current(name)
    assert set(profile.texts) == {"alice", "edgar", "plain"}
    assert 0 <= profile.warmup < min(profile.n_steps, profile.short_steps)
    assert set(profile.minutes) == set(profiles.NOTEBOOKS)
    assert 0 < profile.rate_full <= profile.rate_main < 1
    assert profile.precision in profiles.PRECISIONS
    assert "\n" not in profile.note and len(profile.note) < 160


def test_the_tiny_course_is_planned_for_at_most_twelve_minutes():
    minutes = current("tiny").minutes
    assert sum(m for notebook, m in minutes.items() if notebook < "06") <= 12


def test_a_profile_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        current().batch = 1


def test_an_unknown_profile_is_named_with_the_nearest_one(monkeypatch):
    monkeypatch.setenv("COURSE_PROFILE", "gptneo")
    with pytest.raises(
        ProfileError, match="'gptneo' is not known.*tiny, gpt-neo, smollm2, smoke.*mean 'gpt-neo'"
    ):
        current()


def test_smollm2_is_the_fetched_model_on_texts_that_it_has_not_seen(fetched):
    profile = current("smollm2")
    assert profile.model == str(fetched)
    assert (profile.texts, profile.text_note) == (current("tiny").texts, current("tiny").text_note)
    small = (128, 2, 24, 6)  # with these two cores of 77 GFLOPS run 05 in about ten minutes
    assert (profile.length, profile.batch, profile.n_steps, profile.short_steps) == small
    assert "instruct variant" in profile.note and "de-quantised from 4 bits" in profile.note
    assert "not the published one" in profile.note


def test_smollm2_on_real_books_says_that_they_may_have_been_seen(fetched, monkeypatch, tmp_path):
    for name in ("alice.txt", "edgar.txt"):
        (tmp_path / name).write_text("Words.", "utf-8")
    monkeypatch.setenv("COURSE_TEXTS", str(tmp_path))
    assert "may have seen them in pretraining" in current("smollm2").text_note


def test_smollm2_that_was_not_fetched_says_what_to_run_and_how_large_it_is(monkeypatch, tmp_path):
    monkeypatch.setenv("COURSE_DATA", str(tmp_path))
    with pytest.raises(
        ProfileError, match="Run 'course model'.*93 MB.*542 MB.*COURSE_PROFILE=tiny works without it"
    ):
        current("smollm2")


def test_a_model_of_the_readers_own_stands_in_for_one_that_was_not_fetched(monkeypatch, tmp_path):
    monkeypatch.setenv("COURSE_DATA", str(tmp_path / "nothing"))
    monkeypatch.setenv("COURSE_MODEL", str(tmp_path))
    assert current("smollm2").model == str(tmp_path.resolve())


def test_a_model_given_by_argument_wins_over_course_model(monkeypatch, tmp_path):
    monkeypatch.setenv("COURSE_MODEL", "someone/some-model")
    assert current("tiny", str(tmp_path)).model == str(tmp_path.resolve())
    assert current("tiny", None).model == "someone/some-model"


def test_course_model_takes_a_folder_from_anywhere(monkeypatch, tmp_path):
    (tmp_path / "my-model").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COURSE_MODEL", "my-model")
    profile = current("tiny")
    assert Path(profile.model) == tmp_path.resolve() / "my-model"
    assert profile.model_name == "my-model"


def test_course_model_is_looked_for_from_the_projects_root_too(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COURSE_MODEL", "helpers")  # any folder of the project will do
    assert Path(current("tiny").model) == ROOT / "helpers"


def test_course_model_takes_a_hub_name(monkeypatch):
    monkeypatch.setenv("COURSE_MODEL", "someone/some-model")
    profile = current("tiny")
    assert (profile.model, profile.model_name) == ("someone/some-model", "some-model")


def test_course_texts_replaces_downloads_and_keeps_the_plain_tales(monkeypatch, tmp_path):
    for name in ("alice.txt", "edgar.txt"):
        (tmp_path / name).write_text("Words.", "utf-8")
    monkeypatch.setenv("COURSE_TEXTS", str(tmp_path))
    texts = current("gpt-neo").texts
    assert texts == {
        "alice": tmp_path.resolve() / "alice.txt",
        "edgar": tmp_path.resolve() / "edgar.txt",
        "plain": DATA / "plain_tales.txt",
    }


def test_course_texts_may_bring_its_own_plain_text(monkeypatch, tmp_path):
    for name in ("alice.txt", "edgar.txt", "plain.txt"):
        (tmp_path / name).write_text("Words.", "utf-8")
    monkeypatch.setenv("COURSE_TEXTS", str(tmp_path))
    assert current("tiny").texts["plain"] == tmp_path.resolve() / "plain.txt"


def test_course_texts_without_a_text_names_the_missing_one(monkeypatch, tmp_path):
    (tmp_path / "alice.txt").write_text("Words.", "utf-8")
    monkeypatch.setenv("COURSE_TEXTS", str(tmp_path))
    with pytest.raises(ProfileError, match="which has no edgar.txt"):
        current()


def test_course_steps_caps_the_steps_and_the_warm_up(monkeypatch):
    monkeypatch.setenv("COURSE_STEPS", "3")
    assert (current("tiny").n_steps, current("tiny").warmup) == (3, 2)
    monkeypatch.setenv("COURSE_STEPS", "100000")
    assert current("tiny").n_steps == 80


@pytest.mark.parametrize("value", ["0", "-1", "ten", "1.5", "nan", "²"])
def test_course_steps_must_be_a_whole_number(monkeypatch, value):
    monkeypatch.setenv("COURSE_STEPS", value)
    with pytest.raises(ProfileError, match=f"COURSE_STEPS is '{value}'"):
        current()


def test_an_empty_setting_counts_as_unset(monkeypatch):
    for name in (
        "COURSE_PROFILE",
        "COURSE_MODEL",
        "COURSE_TEXTS",
        "COURSE_STEPS",
        "COURSE_BUILD",
        "COURSE_DATA",
    ):
        monkeypatch.setenv(name, " ")
    assert current().name == "tiny"
    assert (build_dir(), downloads_dir()) == (ROOT / "build", ROOT / ".downloads")


def test_results_and_downloads_can_go_elsewhere(monkeypatch, tmp_path):
    monkeypatch.setenv("COURSE_BUILD", str(tmp_path / "b"))
    monkeypatch.setenv("COURSE_DATA", str(tmp_path / "d"))
    assert (build_dir(), downloads_dir()) == (tmp_path.resolve() / "b", tmp_path.resolve() / "d")


def test_what_a_launcher_says_is_read_as_it_stands(monkeypatch):
    said = {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "here", "MASTER_PORT": "29500"}
    for name in said:
        monkeypatch.delenv(name, raising=False)
    assert profiles.launcher_settings() == {}
    for name, value in (said | {"NODE_RANK": "1"}).items():
        monkeypatch.setenv(name, value)
    assert profiles.launcher_settings() == said
