"""The 125M's path without a hub: GPT-2's tokenizer, random weights of the real shape, real books, two steps.

Needs the development data beside the project (tokenizer and books); skipped where it is absent.
"""

import json
import shutil

import pytest

from helpers import profiles
from helpers.models.loading import build_model, gpt_neo_125m_config, load_tokenizer
from helpers.profiles import ROOT
from helpers.texts.corpora import load_corpus
from helpers.texts.downloads import text_path
from helpers.training import shell as train

SHARED = ROOT.parent / "shared" / "data"
pytestmark = [
    pytest.mark.long,  # test_smollm2 takes the same path with a small model
    pytest.mark.skipif(
        not (SHARED / "gpt2-tokenizer").is_dir(),
        reason="needs GPT-2's tokenizer and the real books, which are not part of the project",
    ),
]


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gpt-neo")
    build_model(gpt_neo_125m_config()).save_pretrained(folder / "model")
    for file in (SHARED / "gpt2-tokenizer").iterdir():
        shutil.copyfile(file, folder / "model" / file.name)
    (folder / "texts").mkdir()
    shutil.copyfile(SHARED / "books" / "carroll-alice.txt", folder / "texts" / "alice.txt")
    shutil.copyfile(SHARED / "books" / "poe-short-fiction.txt", folder / "texts" / "edgar.txt")
    yield folder
    shutil.rmtree(folder)


@pytest.fixture()
def settings(stand_in, monkeypatch):
    for name, value in {
        "COURSE_PROFILE": "gpt-neo",
        "COURSE_MODEL": stand_in / "model",
        "COURSE_TEXTS": stand_in / "texts",
        "COURSE_STEPS": "2",
    }.items():
        monkeypatch.setenv(name, str(value))


def test_the_profile_takes_folder_texts_and_steps_from_its_settings(stand_in, settings):
    profile = profiles.current()
    assert profile.model == str(stand_in / "model") and profile.n_steps == 2
    tokenizer = load_tokenizer(profile.model)
    assert len(tokenizer) == 50257
    alice = load_corpus(text_path(profile.texts["alice"]), tokenizer, 256, name="alice")
    assert len(alice.train) > 80 and "Stole the Tarts" in alice.split.test[:40]


def test_the_main_plan_trains_the_125m_on_a_real_book_and_proves_it(
    stand_in, settings, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(profiles, "GPT_NEO", profiles.replace(profiles.GPT_NEO, retention_windows=2))
    short = stand_in / "texts" / "short.txt"
    short.write_text((stand_in / "texts" / "alice.txt").read_text("utf-8")[:24_000], encoding="utf-8")
    code = train.main(
        [
            "--text",
            str(short),
            "--freeze",
            "attention+embeddings",
            "--steps",
            "2",
            "--batch",
            "1",
            "--length",
            "128",
            "--out",
            str(tmp_path / "run"),
        ]
    )
    assert code == 0, capsys.readouterr().err
    report = json.loads((tmp_path / "run" / "report.json").read_text("utf-8"))
    assert (report["n_trainable"], report["n_parameters"]) == (56_707_584, 125_198_592)
    assert report["proof_ok"]
