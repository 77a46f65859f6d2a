"""`python -m helpers.training.shell`: whatever a user types, sets or interrupts ends in one line; no folder before its time."""

import io
import json
import os
import shlex
import signal
import subprocess
import sys
import time

import pytest
import typer

from helpers import profiles
from helpers.models.loading import load_tokenizer, mini_config
from helpers.profiles import ROOT
from helpers.texts import TextError
from helpers.training import command, interrupts, reports
from helpers.training import shell as train
from helpers.training.folders import where_it_stopped
from support import tiny

TEXT = ROOT / "data" / "plain_tales.txt"
QUICK = {"--text": TEXT, "--profile": "smoke", "--steps": "2", "--lr": "3e-4", "--length": "32"}


def words(place, **changes):
    flags = (
        QUICK | {"--out": place} | {f"--{name.replace('_', '-')}": value for name, value in changes.items()}
    )
    return [str(w) for pair in flags.items() for w in pair]


def refused(capsys, *arguments) -> str:
    code = train.main([str(a) for a in arguments])
    said = capsys.readouterr().err.strip().splitlines()
    assert code == 2 and len(said) == 1 and said[0].startswith("error: "), said
    assert "unexpected" not in said[0], said
    return said[0]


BAD = {
    "seed -1": ({"seed": -1}, "seed"),
    "seed 2**32": ({"seed": 2**32}, "seed"),
    "seed 2**64": ({"seed": 2**64}, "seed"),
    "NUL in --text": ({"text": "a\0b"}, "--text"),
    "NUL in --out": ({"out": "a\0b"}, "--out"),
    "NUL in --model": ({"model": "a\0b"}, "--model"),
    "NUL in --prompt": ({"prompt": "a\0b"}, "--prompt"),
    "NUL in --freeze": ({"freeze": "a\0b"}, "--freeze"),
    "a long --text": ({"text": "a" * 5000}, "too long"),
    "a long --out": ({"out": "a" * 5000}, "too long"),
    "a long --model": ({"model": "a" * 5000}, "too long"),
    "no text": ({"text": ""}, "--text is empty"),
    "no folder": ({"out": " "}, "--out is empty"),
    "no profile": ({"profile": ""}, "--profile is empty"),
    "letters that are no text": ({"prompt": "\udce9"}, "set PYTHONUTF8=1"),
    "length 0": ({"length": 0}, "2 tokens or more"),
    "length -3": ({"length": -3}, "2 tokens or more"),
    "steps of 10**30": ({"steps": 10**30}, "n_steps"),
    "a batch of a million": ({"batch": 10**6}, "windows to train on"),
    "batch 10**30": ({"batch": 10**30}, "batch"),
    "micro-batch 0": ({"micro_batch": 0}, "micro_batch"),
    "a prompt of no room": ({"prompt": "word " * 400}, "positions"),
    "more processes than there are": ({"processes": 3}, "processes"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_is_one_line_and_leaves_no_folder(name, tmp_path, capsys):
    changes, word = BAD[name]
    assert word in refused(capsys, *words(tmp_path / "run", **changes))
    assert not any(tmp_path.iterdir())


SETTINGS = {
    "COURSE_PROFILE": ["huge", "tiny ³", "0", "-1", "1.5", "３", "'"],
    "COURSE_STEPS": ["0", "-1", "1.5", "³", "３", "many", "9" * 5000, "1e3", "0x10"],
    "COURSE_MODEL": ["a" * 5000, "~nobody-of-this-name/model"],
    "ACCELERATE_USE_FSDP": ["true"],
    "ACCELERATE_USE_DEEPSPEED": ["1"],
    "WORLD_SIZE": ["2", "banana", "-1", "³"],
    "LOCAL_RANK": ["0", "x", "1.5"],
}


@pytest.mark.parametrize(
    "name, value", [(name, value) for name, values in SETTINGS.items() for value in values]
)
def test_a_setting_that_cannot_be_is_one_line_and_leaves_no_folder(
    name, value, tmp_path, capsys, monkeypatch
):
    for state in ("PartialState", "AcceleratorState"):  # as in a process that has not met accelerate yet
        monkeypatch.setattr(getattr(sys.modules["accelerate.state"], state), "_shared_state", {})
    monkeypatch.setenv(name, value)
    flags = words(tmp_path / "run")
    flags = [
        f
        for i, f in enumerate(flags)
        if "--profile" not in (f, flags[max(i - 1, 0)]) or name != "COURSE_PROFILE"
    ]
    said = refused(capsys, *flags)
    assert name in said or "Profile '" in said or "The model" in said, said
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["missing", "empty", "file", "long", "nobody"])
def test_a_folder_of_texts_that_is_none_is_said(kind, tmp_path, capsys, monkeypatch):
    place = tmp_path / "texts"
    if kind == "empty":
        place.mkdir()
    elif kind == "file":
        place.write_text("x")
    given = {"long": "a" * 5000, "nobody": "~nobody-of-this-name/x"}.get(kind, str(place))
    monkeypatch.setenv("COURSE_TEXTS", given)
    assert "COURSE_TEXTS" in refused(capsys, *words(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_accelerates_own_variables_change_nothing(tmp_path, capsys, monkeypatch):
    found = []
    others = {
        "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4",
        "ACCELERATE_MIXED_PRECISION": "bf16",
        "ACCELERATE_DYNAMO_BACKEND": "inductor",
        "OMPI_COMM_WORLD_SIZE": "2",
        "FORK_LAUNCHED": "maybe",
        "ACCELERATE_TORCH_DEVICE": "nonsense",
        "ACCELERATE_USE_CPU": "perhaps",
    }
    for i, settings in enumerate(({}, others)):
        for state in ("PartialState", "AcceleratorState", "GradientState"):
            monkeypatch.setattr(getattr(sys.modules["accelerate.state"], state), "_shared_state", {})
        for name, value in settings.items():
            monkeypatch.setenv(name, value)
        assert train.main(words(tmp_path / str(i))) == 0, capsys.readouterr().err
        found.append(json.loads((tmp_path / str(i) / "report.json").read_text())["tuned_hash"])
    assert found[0] == found[1]


def test_an_error_that_nobody_foresaw_is_named_in_one_line_and_its_traceback_is_kept(
    tmp_path, capsys, monkeypatch
):
    def strange(*arguments, **settings):
        raise KeyError("a strange\nthing")

    monkeypatch.setattr(command.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(train, "budget_or_reason", strange)
    assert train.main(words(tmp_path / "run")) == 2
    said = capsys.readouterr().err.strip()
    assert "\n" not in said and "unexpected" in said and "KeyError" in said and "Traceback" not in said
    (kept,) = tmp_path.glob("helpers-train-*.txt")
    assert str(kept) in said and "Traceback" in kept.read_text() and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "name, value, module",
    [
        ("TQDM_MININTERVAL", "x", "tqdm"),
        ("TORCH_LOGS", "nonsense", "torch"),
        ("MPLBACKEND", "Nonsense", "matplotlib"),
        ("HF_HUB_DOWNLOAD_TIMEOUT", "soon", "huggingface_hub.constants"),
    ],
)
def test_a_setting_of_another_program_that_it_cannot_use_is_named(name, value, module, tmp_path):
    (tmp_path / "program.py").write_text(
        "import sys, typer\nfrom importlib import import_module\nfrom helpers.training.command import answer\n"
        f"app = typer.Typer()\napp.command()(lambda: import_module({module!r}))\n"
        "sys.exit(answer(app, [], 'program'))\n"
    )
    settings = {k: v for k, v in os.environ.items() if not k.startswith(("TQDM_", "HF_"))}
    process = subprocess.run(
        [sys.executable, "-m", "program"], cwd=tmp_path, capture_output=True, text=True, timeout=120,
        env={**settings, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "USER": "nonsense", name: value},
    )  # fmt: skip
    assert process.returncode == 2 and process.stderr.count("\n") == 1
    assert process.stderr.startswith(
        f"error: A library cannot use what the environment sets, {name}='{value}': ValueError: "
    )
    assert process.stderr.endswith("Unset it, or give it another value.\n")


def test_a_setting_that_only_looks_like_the_words_of_an_error_is_not_blamed(monkeypatch):
    """Each has one half of what counts: the value in the words, or the name in the code."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # a number, named in this very file
    monkeypatch.setenv("".join(["UN", "READ_HERE"]), "strange")  # a name that no file quotes
    monkeypatch.setenv("TQDM_DISABLE", "other")

    def found():
        try:
            raise KeyError("a strange thing, 1")
        except KeyError as error:
            return profiles.settings_behind(error)

    assert found() == []
    monkeypatch.setenv("TQDM_DISABLE", "a strange")
    assert found() == ["TQDM_DISABLE='a strange'"]


def test_a_model_whose_weights_are_no_numbers_is_refused_before_anything_is_written(
    tmp_path, capsys, monkeypatch
):
    def damaged(source):
        model = load(source)
        model.transformer.ln_f.weight.data[0] = float("nan")
        return model

    load = train.load_model
    monkeypatch.setattr(train, "load_model", damaged)
    assert train.main(words(tmp_path / "run")) == 2
    assert "nan before any training" in capsys.readouterr().err and not (tmp_path / "run").exists()


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_a_console_of_few_letters_gets_them_all_in_some_form(encoding, monkeypatch, tmp_path):
    streams = {name: io.TextIOWrapper(io.BytesIO(), encoding=encoding) for name in ("stdout", "stderr")}
    for name, stream in streams.items():
        monkeypatch.setattr(sys, name, stream)
    assert train.main(words(tmp_path / "chương", prompt="Chương “một” 你好")) == 0
    streams["stdout"].flush()
    assert rb"\u4f60\u597d" in streams["stdout"].buffer.getvalue()
    assert train.main(["--help"]) == 0


def test_a_finished_run_goes_on_with_more_steps_and_a_smaller_micro_batch(tmp_path, capsys):
    assert train.main(words(tmp_path / "run")) == 0
    assert train.main(words(tmp_path / "run", steps=4, micro_batch=1)) == 0
    assert train.main(words(tmp_path / "whole", steps=4)) == 0
    one, other = (json.loads((tmp_path / name / "report.json").read_text()) for name in ("run", "whole"))
    assert one["n_steps"] == 4 and one["held_out_loss_after"]["mean"] == pytest.approx(
        other["held_out_loss_after"]["mean"], abs=1e-5
    )
    capsys.readouterr()
    assert "holds step 4 of this run already" in refused(capsys, *words(tmp_path / "run", steps=3))


def start(out, **changes):
    settings = {k: v for k, v in os.environ.items() if k != "TQDM_DISABLE"}
    return subprocess.Popen(
        [sys.executable, "-m", "helpers.training.shell", *words(out, **changes)],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=settings,
    )


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_ctrl_c_and_what_ends_programs_says_where_the_run_stands_and_the_same_command_goes_on(sign, tmp_path):
    process = start(tmp_path / "run", steps=4000)
    until = time.monotonic() + 240
    while not list((tmp_path / "run" / "checkpoints").glob("step-*")) and time.monotonic() < until:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(sign)
    _, said = process.communicate(timeout=120)
    last = said.strip().splitlines()[-1]
    assert process.returncode == 130 and "Traceback" not in said, said[-2000:]
    assert (
        "stopped at step " in last and ", checkpoint " in last and last.endswith("the same command goes on")
    ), last


def test_ctrl_c_in_the_first_second_is_no_traceback(tmp_path):
    process = start(tmp_path / "run")
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130 and said.strip().endswith("the same command starts again"), said[-2000:]
    assert len(said.strip().splitlines()) == 1 and not (tmp_path / "run").exists()


def test_ctrl_c_in_code_that_was_made_as_text_ends_with_the_code_too_and_not_by_the_signal(tmp_path):
    (tmp_path / "program.py").write_text(
        "import sys, typer\nfrom helpers.training.command import answer\napp = typer.Typer()\n"
        "app.command()(lambda: exec('raise KeyboardInterrupt'))\nsys.exit(answer(app, [], 'program'))\n"
    )
    process = subprocess.run(
        [sys.executable, "-m", "program"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert (process.returncode, process.stderr) == (130, "stopped: the same command starts again\n")


def test_where_a_run_stopped_is_said_in_each_case(tmp_path):
    assert where_it_stopped(tmp_path, None) == "stopped before the first step: the same command starts again"
    assert (
        where_it_stopped(tmp_path, 7) == "stopped at step 7, no checkpoint yet: the same command starts again"
    )
    train.main(words(tmp_path / "run"))
    assert (
        where_it_stopped(tmp_path / "run", 2) == "stopped at step 2, checkpoint 2: the same command goes on"
    )


def test_a_closed_pipe_is_no_traceback(tmp_path):
    process = start(tmp_path / "run")
    process.stdout.close()
    said = process.stderr.read()
    process.wait(240)
    assert process.returncode == 2 and "Traceback" not in said and "has ended" in said, said[-2000:]
    # it may have ended before the first checkpoint, and other commands keep none
    assert "goes on from its last checkpoint, or begins anew where there is none" in said


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
@pytest.mark.parametrize("arguments", [["--help"], ["study", "first", "--dry-run"]])
def test_a_full_disk_behind_the_output_is_one_line(arguments):
    with open("/dev/full", "w") as full:
        process = subprocess.run(
            [sys.executable, "-m", "publishing.cli", *arguments],
            cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True, timeout=120,
        )  # fmt: skip
    assert process.returncode == 2 and process.stderr.startswith(
        "error: No more can be written: No space left"
    )
    assert process.stderr.count("\n") == 1


@pytest.mark.skipif(sys.platform == "win32", reason="a shell closes the streams")
def test_closed_streams_are_no_error(tmp_path):
    line = [sys.executable, "-m", "helpers.training.shell", *words(tmp_path / "run")]
    process = subprocess.run(["sh", "-c", f"exec {shlex.join(line)} <&- >&- 2>&-"], cwd=ROOT, timeout=240)
    assert process.returncode == 0 and (tmp_path / "run" / "report.json").is_file()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows keeps the folder that a process stands in")
def test_a_current_folder_that_is_gone_is_one_line(tmp_path):
    gone = tmp_path / "gone"
    gone.mkdir()
    code = f"import os; os.rmdir({str(gone)!r}); from publishing.cli import main; raise SystemExit(main(['--help']))"
    process = subprocess.run(
        [sys.executable, "-c", code],
        cwd=gone, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert process.returncode == 2 and process.stderr.startswith("error: The current folder is not there")
    assert process.stderr.count("\n") == 1 and not process.stdout


@pytest.mark.parametrize(
    "error",
    [MemoryError(), RuntimeError("unable to mmap 52 bytes from file <a>: Cannot allocate memory (12)")],
)
def test_too_little_memory_is_one_line_without_a_traceback(error, capsys):
    app = typer.Typer(add_completion=False)

    @app.command()
    def work():
        raise error

    assert command.answer(app, [], "work") == 2
    said = capsys.readouterr().err
    assert said.startswith("error: There is not enough memory: ") and "traceback" not in said.lower()


# --- the report --------------------------------------------------------------------


def test_a_system_without_resource_is_said_and_the_run_reports(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(reports, "resource", None)
    assert train.main(words(tmp_path / "run")) == 0
    assert "memory measured       not measured: this system" in capsys.readouterr().out


def test_the_report_says_why_two_numbers_of_memory_differ_and_how_small_a_delta_is(tmp_path, capsys):
    assert train.main([*words(tmp_path / "run"), "--only", "norms"]) == 0
    said = capsys.readouterr().out
    assert "not on the prediction's scale" in said
    n_bytes = (tmp_path / "run" / "delta.safetensors").stat().st_size
    assert n_bytes < 2**20 and f"delta.safetensors, {n_bytes / 1000:,.0f} KB" in said


@pytest.mark.parametrize(
    "numbers, words",
    [
        ({"best_step": 20}, ["last one"]),
        ({"best_step": 0}, ["did not help"]),
        ({"best_step": 10}, []),
        ({"best_step": 10, "forgetting": {"mean": 1.76}}, ["that is much"]),
    ],
)
def test_the_report_remarks_on_what_a_reader_should_know(numbers, words):
    found = reports.remarks({"n_steps": 20, "forgetting": {"mean": 0.1}} | numbers)
    assert len(found) == len(words) and all(w in line for w, line in zip(words, found, strict=True))


def test_a_signal_that_is_ignored_stays_ignored_and_the_others_come_back():
    before = signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with interrupts.ended_like_ctrl_c():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) is signal.default_int_handler
        assert signal.getsignal(signal.SIGTERM) is before
    finally:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.mark.parametrize(
    "arguments, what",
    [
        (["--out", ""], "--out"),
        (["--out= "], "--out"),
        (["run", ""], "An argument"),
        (["--x", "1", "--y", " "], "--y"),
    ],
)
def test_a_blank_word_is_none_that_means_the_default(arguments, what, capsys):
    assert command.answer(typer.Typer(), arguments, "course") == 2
    assert capsys.readouterr().err == f"error: {what} is empty. Give a name.\n"


def test_a_prompt_of_no_room_is_told_without_a_warning_of_transformers():
    tokenizer = load_tokenizer(ROOT / "data" / "gpt-neo-mini")
    with pytest.raises(TextError, match="The prompt has 402 tokens"):
        train.require_prompt("word " * 400, tokenizer, mini_config())
    assert not tokenizer.deprecation_warnings


def test_a_blank_prompt_alone_means_something():
    assert command.empty_word(["--prompt", "", "--text=a", "--prompt="]) is None


@pytest.mark.parametrize("form", ["--out=~/RUN", "--out ~/RUN"])
def test_a_home_folder_that_the_shell_left_as_typed_is_the_readers_own(form, tmp_path, monkeypatch):
    """Bash puts the home folder in where ~ begins a word, and not behind --out=."""
    home, here = tmp_path / "home", tmp_path / "here"
    for folder in (home, here):
        folder.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USERPROFILE", str(home))
    monkeypatch.chdir(here)
    asked = words(home / "RUN", model=tiny.saved(tmp_path / "model"), batch=4)
    place = asked.index("--out")
    assert train.main([*asked[:place], *asked[place + 2 :], *form.split()]) == 0
    assert (home / "RUN" / "report.json").is_file() and not list(here.iterdir())


def test_a_home_folder_stands_in_all_words_but_a_prompt(monkeypatch):
    monkeypatch.setenv("HOME", "/h")
    monkeypatch.setenv("USERPROFILE", "/h")
    asked = [
        "export",
        "--delta",
        "~/R",
        "--model=~",
        "~/a.txt",
        "--prompt",
        "~/x",
        "--prompt=~/x",
        "a~/b",
        "--x",
    ]
    wanted = [
        "export",
        "--delta",
        "/h/R",
        "--model=/h",
        "/h/a.txt",
        "--prompt",
        "~/x",
        "--prompt=~/x",
        "a~/b",
        "--x",
    ]
    assert command.with_home(asked) == wanted


def test_where_no_memory_is_left_for_the_words_it_is_said_all_the_same(capsys, monkeypatch):
    app = typer.Typer()

    @app.command()
    def fail() -> None:
        raise ImportError("failed to map segment from shared object")

    def settings_behind(error):
        raise MemoryError

    monkeypatch.setattr(profiles, "settings_behind", settings_behind)
    assert command.answer(app, [], "course") == 2
    said = capsys.readouterr().err
    assert said.startswith("error: There is not enough memory.") and said.count("\n") == 1


def test_a_file_in_the_place_of_a_model_is_called_one(capsys, tmp_path):
    place = tmp_path / "model.safetensors"
    place.write_bytes(b"x")
    said = refused(capsys, *words(tmp_path / "run", model=place))
    assert "that is a file, and a model is a folder. Give a folder" in said
