"""The run from a shell: a real result, and one clear line for each bad input."""

import dataclasses
import json
import os
import resource
import shutil
import subprocess
import sys

import numpy as np
import pytest
from transformers import AutoConfig, BertConfig, BertLMHeadModel, LlamaConfig

from helpers.measuring import Estimate
from helpers.models.loading import build_model, load_model, load_tokenizer, weight_hash
from helpers.profiles import ROOT, TINY
from helpers.training import afterwards
from helpers.training import shell as train
from helpers.training.deltas import load_delta

TEXT = ROOT / "data" / "plain_tales.txt"
QUICK = ["--profile", "smoke", "--steps", "2", "--lr", "3e-4"]


def call(capsys, *words):
    code = train.main([str(w) for w in words])
    return code, capsys.readouterr()


def test_a_run_trains_proves_and_reports(tmp_path, capsys):
    code, said = call(
        capsys, "--text", TEXT, "--out", tmp_path / "run", "--freeze", "attention+embeddings", *QUICK
    )
    report = json.loads((tmp_path / "run" / "report.json").read_text("utf-8"))
    assert code == 0, said.err
    assert {
        "plan",
        "n_trainable",
        "n_parameters",
        "held_out_loss_before",
        "held_out_loss_after",
        "forgetting",
        "proof_ok",
        "predicted_bytes",
        "measured_growth_bytes",
        "seconds",
        "seed",
        "model_hash",
        "text_hash",
    } <= set(report)
    assert report["proof_ok"] and report["n_trainable"] == 1_186_944
    for words in (
        "freezes: attention+embeddings | trains: mlp+norm",
        "held-out loss before",
        "forgetting",
        "memory predicted",
        "memory measured",
        "sample after",
        "report.json",
    ):
        assert words in said.out, words
    place = tmp_path / "run" / "delta.safetensors"
    last = said.out.strip().splitlines()[-1]
    assert (
        str(place) in last
        and f"{place.stat().st_size / report['full_bytes']:.1%} of the full model's" in last
    )
    tuned = load_delta(place, load_model(TINY.model), tokenizer=load_tokenizer(TINY.model))
    assert (
        weight_hash(tuned)
        == report["tuned_hash"]
        != report["model_hash"]
        == weight_hash(load_model(TINY.model))
    )


def test_a_family_that_is_not_predicted_trains_and_says_why(tmp_path, capsys, monkeypatch):
    shape = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = AutoConfig.for_model(
        "mixtral", **shape, vocab_size=4096, num_key_value_heads=1, num_local_experts=2, head_dim=8
    )
    build_model(config).save_pretrained(tmp_path / "mixture")
    load_tokenizer(TINY.model).save_pretrained(tmp_path / "mixture")

    def one_by_one(source):  # each expert reads the tokens that it was given: how many, the text decides
        config = load_config(source)
        config._experts_implementation = "eager"
        return config

    load_config = train.load_config
    monkeypatch.setattr(train, "load_config", one_by_one)
    words = ["--model", tmp_path / "mixture", "--freeze", "embeddings", *QUICK]
    code, said = call(capsys, "--text", TEXT, "--out", tmp_path / "run", *words)
    assert code == 0, said.err
    (line,) = (line for line in said.out.splitlines() if line.startswith("memory predicted"))
    assert "not predicted: A step of this 'mixtral' model cannot be run on shapes alone" in line
    report = json.loads((tmp_path / "run" / "report.json").read_text("utf-8"))
    assert report["predicted_bytes"] is report["predicted_peak_bytes"] is None
    assert report["not_predicted"] in line
    model = load_model(tmp_path / "mixture")
    n_frozen = model.get_input_embeddings().weight.numel()
    assert report["n_parameters"] - n_frozen == report["n_trainable"]
    assert report["n_parameters"] == sum(p.numel() for p in model.parameters())


def test_a_frozen_bottom_is_computed_once_and_the_weights_are_the_same(tmp_path, capsys):
    reports = {}
    for flag in ("--cache-frozen", "--no-cache-frozen"):
        code, said = call(
            capsys, "--text", TEXT, "--out", tmp_path / flag, "--freeze", "first-half", flag, *QUICK
        )
        assert code == 0, said.err
        reports[flag] = json.loads((tmp_path / flag / "report.json").read_text("utf-8"))
        assert ("frozen bottom         the first 2 blocks" in said.out) == (flag == "--cache-frozen")
    once, plainly = reports["--cache-frozen"], reports["--no-cache-frozen"]
    assert once["tuned_hash"] == plainly["tuned_hash"] != once["model_hash"]
    kept = once["predicted_bytes"]["buffers"] - plainly["predicted_bytes"]["buffers"]
    assert f"{kept / 2**20:,.1f} MiB kept in memory" in once["frozen_bottom"]


def test_a_bottom_that_cannot_be_computed_once_is_refused_before_anything_is_written(tmp_path, capsys):
    code, said = call(
        capsys, "--text", TEXT, "--out", tmp_path / "run", "--freeze", "attention", "--cache-frozen", *QUICK
    )
    assert (
        code == 2 and "transformer.wte.weight trains" in said.err and len(said.err.strip().splitlines()) == 1
    )
    assert not (tmp_path / "run").exists()


def test_a_proof_that_fails_leaves_no_delta_and_exits_with_1(tmp_path, capsys, monkeypatch):
    def fit_and_break(model, *arguments, **options):
        result = fit(model, *arguments, **options)
        return dataclasses.replace(result, proof=dataclasses.replace(result.proof, problems=("wte moved",)))

    fit = train.fit
    monkeypatch.setattr(train, "fit", fit_and_break)
    code, said = call(capsys, "--text", TEXT, "--out", tmp_path / "run", *QUICK)
    assert code == 1 and "delta:  none, because the proof failed" in said.out and "wte moved" in said.out
    assert "without a whole freeze" not in said.out, (
        "a trainable tensor that stands still fails the proof as well"
    )
    assert (tmp_path / "run" / "report.json").exists() and not (
        tmp_path / "run" / "delta.safetensors"
    ).exists()


def test_a_run_killed_before_it_wrote_what_it_is_can_be_started_again(tmp_path, capsys):
    (tmp_path / "run").mkdir()
    for name in (".lock", ".run.json.12345"):
        (tmp_path / "run" / name).write_text("x")
    assert call(capsys, "--text", TEXT, "--out", tmp_path / "run", *QUICK)[0] == 0
    assert not (tmp_path / "run" / ".run.json.12345").exists()


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """The folder of a run of `QUICK` that has ended; for a test that changes it, `copied`."""
    folder = tmp_path_factory.mktemp("ended") / "run"
    assert train.main(["--text", str(TEXT), "--out", str(folder), *QUICK]) == 0
    return folder


@pytest.fixture
def copied(ended, tmp_path):
    """A copy of the folder of a run that has ended, and the words of its command."""
    shutil.copytree(ended, tmp_path / "run")
    return tmp_path / "run", ["--text", TEXT, "--out", tmp_path / "run", *QUICK]


def test_the_same_command_again_only_reads_the_result(copied, tmp_path, capsys):
    _, arguments = copied
    first = json.loads((tmp_path / "run" / "report.json").read_text("utf-8"))
    assert call(capsys, *arguments)[0] == 0
    second = json.loads((tmp_path / "run" / "report.json").read_text("utf-8"))
    assert first["tuned_hash"] == second["tuned_hash"]


def test_the_time_is_that_of_all_steps_and_memory_that_of_the_process_which_is_named(
    copied, tmp_path, capsys
):
    first = json.loads((tmp_path / "run" / "report.json").read_text("utf-8"))
    for steps in (2, 4):
        code, said = call(capsys, *copied[1], "--steps", steps)
        assert code == 0, said.err
        report = json.loads((tmp_path / "run" / "report.json").read_text("utf-8"))
        (place,) = (tmp_path / "run" / "checkpoints").glob(f"*{steps}/state.json")
        history = json.loads(place.read_text("utf-8"))["state"]["history"]
        assert report["seconds"] == round(sum(history["seconds"]), 2)
        assert f"{report['seconds']:.1f} s in all steps" in said.out
        assert (report["seconds"] == first["seconds"]) == (steps == 2)
        assert (first["measured_from_step"], report["measured_from_step"]) == (0, 2)
        took = {2: "no step", 4: "steps 3 to 4"}[steps]
        assert (
            f"growth of the process since before the model was loaded, of the process that took {took}\n"
            in said.out
        )


def bad_files(folder):
    files = {
        "empty.txt": b"",
        "binary.txt": b"\x00\x01\x02" * 500,
        "latin.txt": "caf\xe9 ".encode("latin-1") * 500,
        "short.txt": b"A few words.",
    }
    for name, raw in files.items():
        (folder / name).write_bytes(raw)
    (folder / "one-window.txt").write_text(TEXT.read_text("utf-8")[:9_000], encoding="utf-8")
    (folder / "file").write_text("x")
    (folder / "full").mkdir()
    (folder / "full" / "other.txt").write_text("x")
    (folder / "no-weights").mkdir()
    shutil.copy(f"{TINY.model}/config.json", folder / "no-weights" / "config.json")
    (folder / "teapot").mkdir()
    (folder / "teapot" / "config.json").write_text(json.dumps({"model_type": "teapot"}))


BAD = {
    "unknown plan": (["--freeze", "attn+emb"], "attn"),
    "unknown role": (["--only", "heads"], "heads"),
    "pattern without match": (["--freeze", "name:transformer.h.99.*"], "h.99"),
    "plan that trains nothing": (["--freeze", "attention+mlp+norms+embeddings"], "nothing"),
    "unknown profile": (["--profile", "huge"], "huge"),
    "missing text": (["--text", "{folder}/nowhere.txt"], "nowhere.txt"),
    "empty text": (["--text", "{folder}/empty.txt"], "empty"),
    "binary text": (["--text", "{folder}/binary.txt"], "binary"),
    "not UTF-8": (["--text", "{folder}/latin.txt"], "UTF-8"),
    "text too short": (["--text", "{folder}/short.txt"], "short.txt"),
    "one window of held-out text": (["--text", "{folder}/one-window.txt"], "too short"),
    "a folder as text": (["--text", "{folder}"], "folder"),
    "rate 0": (["--lr", "0"], "rate"),
    "negative rate": (["--lr", "-1"], "rate"),
    "rate NaN": (["--lr", "nan"], "nan"),
    "absurd rate": (["--lr", "1000"], "1000"),
    "zero steps": (["--steps", "0"], "n_steps"),
    "batch 0": (["--batch", "0"], "batch"),
    "more positions than the model has": (["--length", "300"], "300"),
    "no model folder": (["--model", "{folder}/nowhere"], "nowhere"),
    "model folder without weights": (["--model", "{folder}/no-weights"], "no-weights"),
    "unknown family": (["--model", "{folder}/teapot"], "teapot"),
    "run folder is a file": (["--out", "{folder}/file"], "file"),
    "parent of the run folder is a file": (["--out", "{folder}/file/run"], "file"),
    "run folder with other things in it": (["--out", "{folder}/full"], "full"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_clear_line_and_exit_code_2(name, tmp_path, capsys):
    bad_files(tmp_path)
    changes, word = BAD[name]
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    arguments = {
        "--text": TEXT,
        "--out": tmp_path / "run",
        "--profile": "smoke",
        "--steps": "2",
        "--lr": "3e-4",
    }
    flags = dict(zip(changes[::2], changes[1::2], strict=True))
    arguments |= {k: v.format(folder=tmp_path) for k, v in flags.items()}
    code, said = call(capsys, *[w for pair in arguments.items() for w in pair])
    assert code == 2, said
    lines = said.err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and word in lines[0], said.err
    assert "Traceback" not in said.err
    assert before == {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    assert not (tmp_path / "run").exists()


def test_a_folder_that_holds_another_run_is_refused_and_left_alone(copied, tmp_path, capsys):
    arguments = ["--text", TEXT, "--out", tmp_path / "run", "--profile", "smoke", "--steps", "2"]
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    code, said = call(capsys, *arguments, "--lr", "1e-4")
    assert code == 2 and "another run" in said.err and "rate" in said.err
    assert before == {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}


def test_a_refused_resume_leaves_every_file_as_it_was(copied, tmp_path, capsys):
    """Also where only a checkpoint knows that the run is another one: its config, or a setting that run.json lacks."""
    folder, arguments = copied
    more = [*(word for word in arguments if word not in ("--steps", "2")), "--steps", "4"]
    edited = []
    for field, value in {"layer_norm_epsilon": 1e-3, "embed_dropout": 0.25}.items():
        edited.append(tmp_path / field)
        shutil.copytree(TINY.model, edited[-1])
        config = json.loads((edited[-1] / "config.json").read_text("utf-8"))
        (edited[-1] / "config.json").write_text(json.dumps(config | {field: value}))
    record = json.loads((folder / "run.json").read_text("utf-8"))
    del record["rate"]
    (folder / "run.json").write_text(json.dumps(record))
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    for words, difference in [
        (["--model", edited[0]], "config.layer_norm_epsilon"),
        (["--model", edited[1]], "config.embed_dropout"),
        (["--lr", "1e-4"], "rate"),
    ]:
        code, said = call(capsys, *more, *words)
        assert code == 2 and "holds another run" in said.err and difference in said.err, said.err
        assert len(said.err.strip().splitlines()) == 1
        assert before == {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert call(capsys, *more)[0] == 0
    assert json.loads((folder / "run.json").read_text("utf-8"))["n_steps"] == 4


def test_checkpoints_that_are_all_damaged_are_said_before_the_first_write(copied, capsys):
    folder, arguments = copied
    for place in (folder / "checkpoints").glob("step-*/state.json"):
        place.write_text("{")
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    code, said = call(capsys, *arguments[:-4], "--steps", "4", "--lr", "3e-4")
    assert code == 2 and "is damaged" in said.err and len(said.err.strip().splitlines()) == 1
    assert before == {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_damaged_record_of_the_run_is_said_and_its_checkpoints_are_kept(copied, capsys):
    folder, arguments = copied
    place = folder / "run.json"
    raw = bytearray(place.read_bytes())
    raw[0] ^= 1
    place.write_bytes(raw)
    code, said = call(capsys, *arguments)
    assert code == 2 and "is damaged" in said.err and "Delete this one file" in said.err
    place.unlink()
    assert call(capsys, *arguments)[0] == 0


def test_one_enormous_line_is_a_text_like_any_other(tmp_path, capsys):
    (tmp_path / "line.txt").write_text(TEXT.read_text("utf-8").replace("\n", " "), encoding="utf-8")
    assert call(capsys, "--text", tmp_path / "line.txt", "--out", tmp_path / "run", *QUICK)[0] == 0


def test_a_disk_that_fills_while_saving_is_said_and_exits_with_2(tmp_path):
    def small_files():
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))

    done = subprocess.run(
        [sys.executable, "-m", "helpers.training.shell", "--text", TEXT, "--out", tmp_path / "run", *QUICK],
        capture_output=True,
        text=True,
        cwd=ROOT,
        preexec_fn=small_files,
        timeout=240,
        env={**os.environ, "COURSE_PROFILE": "smoke"},
    )
    assert done.returncode == 2, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: Could not save") and "run" in last and "Traceback" not in done.stderr


# --- ending early, replay and rewinding ------------------------------------------------


ALICE = ROOT / "data" / "alice_style.txt"
LEARNING = ["--text", ALICE, "--profile", "smoke", "--steps", "10", "--batch", "8", "--lr", "3e-4"]


def report_of(place):
    return json.loads((place / "report.json").read_text("utf-8"))


def test_patience_ends_a_run_and_belongs_to_what_the_run_is(tmp_path, capsys):
    arguments = [
        "--text",
        TEXT,
        "--out",
        tmp_path / "run",
        "--profile",
        "smoke",
        "--steps",
        "60",
        "--lr",
        "0.5",
    ]
    assert call(capsys, *arguments, "--patience", "10")[0] == 0
    report = report_of(tmp_path / "run")
    assert report["patience"] == 10 and report["steps_taken"] == report["best_step"] + 10 < 60
    code, said = call(capsys, *arguments, "--patience", "20")
    assert code == 2 and "patience" in said.err
    code, said = call(capsys, *arguments[:2], "--out", tmp_path / "other", *QUICK, "--patience", "0")
    assert code == 2 and "--patience must be 1 step or more; found 0" in said.err


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """The folder of a run that learned something, without rewinding or replay."""
    folder = tmp_path_factory.mktemp("learned") / "run"
    assert train.main([str(word) for word in [*LEARNING, "--out", folder]]) == 0
    return folder


def test_rewind_takes_back_a_measured_part_and_says_what_it_gave(learned, tmp_path, capsys):
    shutil.copytree(learned, tmp_path / "run")
    arguments = [*LEARNING, "--out", tmp_path / "run"]
    whole = report_of(learned)
    assert whole["rewind"] is None
    code, said = call(capsys, *arguments, "--rewind", "auto")
    report = report_of(tmp_path / "run")
    found = report["rewind"]
    assert code == 0 and 0 < found["share"] < 1 and found["gain_kept"] >= 0.9
    assert found["forgetting_before"] == pytest.approx(whole["forgetting"]["mean"])
    assert (
        found["forgetting_after"] == pytest.approx(report["forgetting"]["mean"]) != found["forgetting_before"]
    )
    assert f"Rewinding to {found['share']:g} took forgetting from" in said.out
    tuned = load_delta(tmp_path / "run" / "delta.safetensors", load_model(TINY.model))
    assert weight_hash(tuned) == report["tuned_hash"] != whole["tuned_hash"]
    assert call(capsys, *arguments, "--rewind", "0")[0] == 0
    assert report_of(tmp_path / "run")["tuned_hash"] == report["model_hash"]
    assert call(capsys, *arguments, "--rewind", "1")[0] == 0
    assert report_of(tmp_path / "run")["tuned_hash"] == whole["tuned_hash"]


def test_replay_forgets_less_and_belongs_to_what_the_run_is(learned, tmp_path, capsys):
    assert call(capsys, *LEARNING, "--out", tmp_path / "with", "--replay", "3")[0] == 0
    without, with_it = report_of(learned), report_of(tmp_path / "with")
    assert with_it["replay"]["weight"] == 3 and without["replay"] is None
    assert with_it["forgetting"]["mean"] < without["forgetting"]["mean"]
    assert with_it["predicted_peak_bytes"] > without["predicted_peak_bytes"]
    code, said = call(capsys, *LEARNING, "--out", tmp_path / "with", "--replay", "1")
    assert code == 2 and "replay 3.0 there, 1.0 here" in said.err


@pytest.mark.parametrize(
    "words, expected",
    [
        (["--rewind", "half"], "auto, or a number"),
        (["--rewind", "1.5"], "auto, or a number"),
        (["--rewind", "nan"], "auto, or a number"),
        (["--replay", "0"], "above 0"),
        (["--replay", "inf"], "above 0"),
        (["--patience", "-1"], "1 step or more"),
    ],
)
def test_a_lever_that_cannot_be_is_one_line_and_leaves_no_folder(words, expected, tmp_path, capsys):
    code, said = call(capsys, "--text", TEXT, "--out", tmp_path / "run", *QUICK, *words)
    assert code == 2 and len(said.err.strip().splitlines()) == 1 and expected in said.err
    assert not (tmp_path / "run").exists()


def test_a_head_of_its_own_under_a_config_that_says_tied_is_predicted_as_it_is(tmp_path, capsys):
    shape = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = build_model(LlamaConfig(**shape, vocab_size=4096))
    model.save_pretrained(tmp_path / "model")
    load_tokenizer(TINY.model).save_pretrained(tmp_path / "model")
    config = tmp_path / "model" / "config.json"
    config.write_text(
        json.dumps(json.loads(config.read_text("utf-8")) | {"tie_word_embeddings": True}), "utf-8"
    )
    words = ["--model", tmp_path / "model", "--freeze", "embeddings", *QUICK]
    code, said = call(capsys, "--text", TEXT, "--out", tmp_path / "run", *words)
    assert code == 0, said.err
    report = report_of(tmp_path / "run")
    assert report["predicted_bytes"]["parameters"] == 4 * sum(p.numel() for p in model.parameters())


def test_an_encoder_is_refused_before_the_folder_is_taken(tmp_path, capsys):
    config = BertConfig(
        vocab_size=4096, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )
    BertLMHeadModel(config).save_pretrained(tmp_path / "encoder")
    load_tokenizer(TINY.model).save_pretrained(tmp_path / "encoder")
    code, said = call(
        capsys, "--text", TEXT, "--out", tmp_path / "run", *QUICK, "--model", tmp_path / "encoder"
    )
    lines = [line for line in said.err.strip().splitlines() if line.startswith("error: ")]
    assert code == 2 and len(lines) == 1 and "encoder" in lines[0], said.err
    assert not (tmp_path / "run").exists()


def rewound_to(share, before, after, kept):
    said = [Estimate(value, value, value, 1, 31, np.array([value])) for value in (before, after)]
    return afterwards.Rewound(share, kept, {1.0: 3.0}, *said)


@pytest.mark.parametrize(
    "numbers, words",
    [
        ((0, 20, 0.1, None, False), ["did not help", "0.10 nats per token: not catastrophic"]),
        ((20, 20, 0.1, None, False), ["still falling at the last step"]),
        ((10, 20, 0.6, None, False), ["lowest at step 10 of 20", "0.60 nats per token: catastrophic"]),
        (
            (10, 20, 0.6, rewound_to(0.4, 0.6, 0.2, 0.93), False),
            ["--rewind 0.4 takes forgetting from 0.60 to 0.20 nats per token, and 93% of the gain stays"],
        ),
        (
            (10, 20, 0.2, rewound_to(0.4, 0.6, 0.2, 0.93), True),
            ["Rewinding to 0.4 took forgetting from 0.60"],
        ),
    ],
)
def test_the_closing_sentence_says_only_what_was_measured(numbers, words):
    said = afterwards.judgement(*numbers)
    assert all(word in said for word in words), said
    assert ("rewind" in said.lower()) == (numbers[3] is not None)
