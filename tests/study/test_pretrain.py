"""The miniature's training script: resumable at any moment, held-out text never trained on, exports cleanly."""

import json
import signal
import subprocess
import sys
import time
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, GPTNeoForCausalLM

from helpers.files import bytes_hash
from helpers.profiles import ROOT
from helpers.study import pretrain as script
from helpers.training.checkpoints import load_checkpoint
from publishing.cli import main

TEXT = ROOT / "data" / "plain_tales.txt"


def command(out, steps=12):
    return [
        sys.executable,
        "-m",
        "publishing.cli",
        "pretrain",
        str(TEXT),
        "--out",
        str(out),
        "--steps",
        str(steps),
        "--batch",
        "2",
        "--held-out",
        "2",
        "--warmup",
        "2",
        "--save-every",
        "0",
        "--evaluate-every",
        "6",
    ]


def weights(out):
    found = load_checkpoint(out)
    return found.step, {n: bytes_hash(t) for n, t in found.tensors.items()}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    out = tmp_path_factory.mktemp("pretrain")
    done = subprocess.run(
        [*command(out), "--export", str(out / "model")], capture_output=True, text=True, cwd=ROOT, timeout=280
    )
    assert done.returncode == 0, done.stderr
    return out


def test_killed_and_taken_up_again_it_ends_with_the_same_weights_and_moments(unbroken, tmp_path):
    process = subprocess.Popen(
        command(tmp_path), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT
    )
    deadline = time.monotonic() + 200
    while (
        not list(tmp_path.glob("step-0000000[3-9]"))
        and time.monotonic() < deadline
        and process.poll() is None
    ):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert load_checkpoint(tmp_path).step < 12
    again = subprocess.run(command(tmp_path), capture_output=True, text=True, cwd=ROOT, timeout=280)
    assert again.returncode == 0, again.stderr
    assert weights(tmp_path) == weights(unbroken)


def test_the_export_loads_without_a_warning_in_float32(unbroken):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = GPTNeoForCausalLM.from_pretrained(unbroken / "model")
        tokenizer = AutoTokenizer.from_pretrained(unbroken / "model")
    assert not caught
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert tokenizer.decode(tokenizer("A tale, twice told--so!")["input_ids"]) == "A tale, twice told--so!"
    card = (unbroken / "model" / "README.md").read_text("utf-8")
    assert "plain_tales" in card and "Not good for" in card


def test_progress_speed_and_held_out_loss_are_logged(unbroken):
    log = [json.loads(line) for line in (unbroken / "log.jsonl").read_text("utf-8").splitlines()]
    assert [e["step"] for e in log if "held_out_loss" in e] == [6, 12]


def test_held_out_segments_are_whole_and_not_in_the_training_text(unbroken):
    tokens = np.load(unbroken / "tokens.npz")
    assert tokens["held_out"].shape == (2, script.SEGMENT)
    train = tokens["train"].tobytes()
    for segment in tokens["held_out"]:
        assert segment[100:140].tobytes() not in train


def test_each_epoch_sees_each_window_once_and_a_step_is_a_function_of_its_number():
    train = np.arange(256 * 9, dtype=np.uint16)
    steps = [script.batch_of(train, s, 4, seed=0) for s in range(2)]
    starts = torch.cat(steps)[:, 0].tolist()
    assert len(set(starts)) == 8
    assert torch.equal(script.batch_of(train, 1, 4, seed=0), steps[1])


def test_the_rate_warms_up_stays_and_decays_to_one_percent():
    shares = [script.rate_share(s, 1000, 100, 0.4) for s in (0, 99, 100, 599, 999)]
    assert shares[0] == 0.01 and shares[1:4] == [1.0, 1.0, 1.0]
    assert shares[4] == pytest.approx(0.01, abs=0.003)


def test_books_are_cut_by_their_manifest(tmp_path):
    (tmp_path / "two.txt").write_bytes("Erstes Buch.Zweites Büch.".encode())
    (tmp_path / "two.manifest.json").write_text(
        json.dumps(
            [
                {"title": "A", "year": "1900", "offset": 0, "bytes": 12},
                {"title": "B", "offset": 12, "bytes": 14},
            ]
        )
    )
    assert [(b["title"], b["text"]) for b in script.read_books([tmp_path / "two.txt"])] == [
        ("A", "Erstes Buch."),
        ("B", "Zweites Büch."),
    ]


def test_what_is_held_out_is_the_middle_of_each_part_and_is_not_trained_on():
    """Two parts of three segments each, of tokens that are all different."""
    ids = SimpleNamespace(ids=list(range(6 * script.SEGMENT)))
    tokenizer = SimpleNamespace(backend_tokenizer=SimpleNamespace(encode_batch=lambda texts: [ids]))
    train, held_out = script.encode(tokenizer, [{"text": ""}], seed=0, n_held_out=2)
    parts = np.arange(6 * script.SEGMENT).reshape(6, script.SEGMENT)
    assert np.array_equal(held_out, parts[[1, 4]])
    assert np.array_equal(train, parts[[0, 2, 3, 5]].ravel())


def test_too_little_text_is_said():
    tokenizer = script.train_tokenizer([{"text": "a b c " * 50}], 300)
    with pytest.raises(SystemExit, match="too few"):
        script.encode(tokenizer, [{"text": "a b c " * 50}], seed=0, n_held_out=2)


REFUSED = {
    "no steps": (["--steps", "0"], "n_steps"),
    "a rate that is no number": (["--rate", "nan"], "rate must be"),
    "no windows": (["--batch", "0"], "batch must be"),
    "a negative seed": (["--seed", "-1"], "seed must be"),
    "a negative warm-up": (["--warmup", "-1"], "warmup must be"),
    "never an evaluation": (["--evaluate-every", "0"], "evaluate_every must be"),
    "nothing held out": (["--held-out", "0"], "--held-out must be 1 segment or more; found 0"),
    "a decay over twice the steps": (["--decay", "2"], "--decay must be from 0 to 1; found 2"),
    "a pause that is no number": (
        ["--save-every", "nan"],
        "--save-every must be 0 minutes or more; found nan",
    ),
    "a run that was not finished": (["--again-from", "1"], "stands at step 0"),
    "more held out than there is": (["--held-out", "100000"], "too few to hold out"),
    "a missing book": (["nowhere.txt"], "Cannot read the book 'nowhere.txt'"),
    "a folder": (["data"], "Cannot read the book 'data'"),
    "no text": (["data/gpt-neo-mini/model.safetensors"], "UnicodeDecodeError"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_one_line_and_leaves_no_folder(name, tmp_path, capsys):
    words, said = REFUSED[name]
    book = [str(TEXT)] if words[0].startswith("-") else []
    usual = {"--steps": "2", "--batch": "2", "--held-out": "2", "--out": str(tmp_path / "run")}
    usual |= dict(zip(words[::2], words[1::2], strict=True)) if book else {}
    code = main(["pretrain", *(book or words), *(word for pair in usual.items() for word in pair)])
    lines = capsys.readouterr().err.strip().splitlines()
    assert code == 2 and len(lines) == 1 and said in lines[0] and "unexpected" not in lines[0], lines
    assert not (tmp_path / "run").exists()


def test_a_folder_goes_on_with_its_own_books_and_settings_alone(unbroken, tmp_path, capsys):
    before, own = weights(unbroken), command(unbroken, steps=14)[3:]
    for place, value, said in (
        (own.index("--batch") + 1, "3", "batch 2 there, 3 here"),
        (own.index("--held-out") + 1, "3", "another --held-out"),
        (own.index(str(TEXT)), str(ROOT / "data" / "alice_style.txt"), "a run on other books"),
    ):
        assert main([*own[:place], value, *own[place + 1 :]]) == 2
        assert said in capsys.readouterr().err
    assert weights(unbroken) == before
    (tmp_path / "diary.txt").write_text("a reader's own")
    assert main(command(tmp_path)[3:]) == 2 and "holds no run of this command" in capsys.readouterr().err
    assert main([*command(tmp_path / "run")[3:], "--export", str(tmp_path)]) == 2
    assert "holds no export of this command" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["diary.txt"]


def test_a_record_of_style_is_not_written_over_another_file(tmp_path, capsys):
    (tmp_path / "notes.json").write_text('{"mine": 1}')
    words = ["style", "--alice", str(TEXT), "--edgar", str(TEXT), "--out", str(tmp_path / "notes.json")]
    assert main(words) == 2 and "it is not overwritten" in capsys.readouterr().err
