"""`course`: every command answers --help at once and in 80 columns, and bad input is one line and exit code 2."""

import os
import re
import resource
import subprocess
import sys
import tomllib
from inspect import signature
from pathlib import Path

import pytest
from typer.main import get_command

from helpers.training import Stopped, command
from publishing import environment
from publishing.cli import app, main, study

ROOT = Path(__file__).resolve().parents[2]
PANELS = {
    "Take the course": {"run", "lab", "progress"},
    "Your own text and model": {"train", "compare", "model", "export"},
    "The study": {"benchmark", "costs", "memory", "guard", "gpu", "style", "pretrain", "study"},
    "Upkeep": {"notebooks", "results", "site", "badges", "links", "families", "mutate", "drift", "lock"},
}


GOES_ON = "Stopped. What is recorded stays; the same command goes on with the rest."
WORK_THAT_GOES_ON = [
    one.callback
    for one in (*app.registered_commands, *study.registered_commands)
    if "the same command goes on" in " ".join(one.callback.__doc__.split()) and one.name != "train"
]  # `train` says at which step it stands: tests/training/test_command.py


def all_commands(group=None, before=()) -> list[tuple[str, ...]]:
    """Every command and every group, as a reader types them."""
    group = group or get_command(app)
    found = [before]
    for name, one in getattr(group, "commands", {}).items():
        found += all_commands(one, (*before, name))
    return found


COMMANDS = all_commands()
each_command = pytest.mark.parametrize("words", COMMANDS, ids=lambda words: "-".join(words) or "course")


def run(*words: str) -> subprocess.CompletedProcess:
    """This Python, in a terminal of 80 columns."""
    return subprocess.run(
        [sys.executable, *words], cwd=ROOT, capture_output=True, text=True, env=os.environ | {"COLUMNS": "80"}
    )


def started(*words: str) -> subprocess.CompletedProcess:
    return run("-m", "publishing.cli", *words)


@pytest.mark.parametrize("name", ["COLUMNS", "TERMINAL_WIDTH"])
@pytest.mark.parametrize("width", ["0", "999999", "²"])
def test_a_width_that_no_terminal_has_does_not_empty_a_help_page(name, width):
    said = subprocess.run(
        [sys.executable, "-m", "publishing.cli", "compare", "--help"],
        cwd=ROOT, capture_output=True, text=True, env=os.environ | {"COLUMNS": "80"} | {name: width},
    )  # fmt: skip
    assert said.stdout == started("compare", "--help").stdout != "" and said.returncode == 0, said.stderr


def test_every_command_is_known_here():
    assert {words[0] for words in COMMANDS if words} == set().union(*PANELS.values())
    assert ("study", "first") in COMMANDS and ("study", "second") in COMMANDS


HEAVY = ("torch", "transformers", "numpy", "matplotlib", "nbformat")
ASKED = (
    "import sys; from publishing.cli import main; code = main(sys.argv[1:]); "
    f"print([m for m in {HEAVY} if m in sys.modules], file=sys.stderr); sys.exit(code)"
)


@each_command
def test_help_answers_in_less_than_a_second_fits_80_columns_and_waits_for_nothing_heavy(words):
    seconds = []  # of a processor: what others do on this machine at the moment is not the command's
    for _ in range(3):
        began = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = run("-c", ASKED, *words, "--help")
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(ended.ru_utime + ended.ru_stime - began.ru_utime - began.ru_stime)
        assert done.returncode == 0, done.stderr
        if seconds[-1] < 1:
            break
    assert min(seconds) < 1, f"{min(seconds):.2f} s"
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert "…" not in done.stdout, "something is cut off"
    assert done.stderr == "[]\n"


def test_help_is_grouped():
    said = started("--help").stdout
    parts = re.split(r"─ ([A-Z][\w ]+) ─", said)[1:]
    found = {
        title: set(re.findall(r"^│ (\w+) ", text, re.MULTILINE))
        for title, text in zip(parts[::2], parts[1::2], strict=True)
    }
    found.pop("Options")
    assert found == PANELS


@each_command
def test_each_option_says_what_it_is_and_each_value_its_default(words):
    one = get_command(app)
    for word in words:
        one = one.commands[word]
    for parameter in one.params:
        has_default = parameter.required or getattr(parameter, "is_flag", False) or parameter.show_default
        assert has_default and parameter.help, parameter.name


# --- bad input -------------------------------------------------------------------------


BAD = {
    "no such command": (["fly"], "fly"),
    "no such option": (["run", "--wings"], "--wings"),
    "a word too many": (["site", "now"], "now"),
    "no value": (["run", "--notebook"], "--notebook"),
    "no number": (["benchmark", "--pairs", "many"], "--pairs"),
    "a missing option": (["train", "--out", "run"], "--text"),
    "no such notebook": (["run", "--notebook", "99"], "'99' is not known"),
    "no such notebook to store": (["notebooks", "99"], "'99' is not known"),
    "no such profile": (["study", "first", "--profile", "huge", "--dry-run"], "huge"),
    "no such plan": (["study", "first", "--plans", "ful", "--dry-run"], "no plan 'ful'"),
    "no such text": (["study", "first", "--texts", "bob", "--dry-run"], "no text 'bob'"),
    "no such stage": (["study", "first", "--stages", "late", "--dry-run"], "no stage 'late'"),
    "no such part of the second study": (["study", "second", "--stages", "late", "--dry-run"], "late"),
    "no such shape": (["benchmark", "--shape", "huge", "--dry-run"], "huge"),
    "no such records": (["study", "verdicts", "--folder", "{folder}"], "course study first"),
    "no repository": (["badges", "--repo", "ada"], "'ada' is not a repository"),
    "no version": (["badges", "--version", "two words"], "'two words' is not a version"),
    "nothing to set": (["badges"], "--repo"),
    "nothing to mutate": (["mutate", "{folder}/none"], "There is no"),
    "nothing of Python": (["mutate", str(ROOT / "README.md")], "is no Python file"),
    "no such device": (["gpu", "--device", "tpu"], "'tpu' is not known"),
    "a large stand-in": (["gpu", "--device", "cpu"], "--shape small"),
    "a repository of dots": (["badges", "--repo", "ada/.."], "'ada/..' is not a repository"),
    "a long version": (["badges", "--version", "v" * 500], "is not a version"),
    "an empty place": (["export", "--delta", "{folder}", "--out", ""], "--out is empty. Give a name."),
    "an empty name": (["notebooks", ""], "An argument is empty. Give a name."),
    "another project's file": (["mutate", "/etc"], "/etc is not in "),
    "no pairs to show": (
        ["benchmark", "--show", "--file", "{folder}/x.json"],
        "Measure it: course benchmark",
    ),
    "no points to show": (["memory", "--show", "--file", "{folder}/x.json"], "Measure it: course memory"),
    "no costs to show": (["costs", "--show", "--file", "{folder}/x.json"], "Measure it: course costs"),
    "nothing to show": (["gpu", "--show", "--folder", "{folder}/card"], "No card has been measured"),
    "nothing to compare": (["drift"], "--colab"),
    "no list of Colab's": (["drift", "--colab", "{folder}/none"], "pip-freeze.txt"),
    "no canary": (["drift", "--canary", "{folder}/none"], "python -m venv"),
    "damaged run files": (["study", "pack", "--folder", "{folder}/none"], "none"),
    "no such family": (["families", "teapot"], "teapot"),
    "no such book": (["style", "--alice", "{folder}/a.txt", "--edgar", "{folder}/b.txt"], "a.txt"),
    "no such text to compare on": (["compare", "--text", "{folder}/a.txt", "--out", "{folder}/c"], "a.txt"),
    "no time": (["compare", "--text", "{folder}/a.txt", "--minutes", "0"], "--minutes must be"),
    "no memory": (["compare", "--text", "{folder}/a.txt", "--memory", "much"], "--memory must be"),
    "fewer seeds than none": (["study", "first", "--seeds", "-1", "--dry-run"], "--seeds"),
    "fewer than no process": (["study", "first", "--processes", "-1", "--dry-run"], "--processes"),
    "no folder of books": (["study", "first", "--books", "{folder}/none", "--dry-run"], "--books"),
    "fewer workers than none": (["study", "second", "--workers", "-1", "--dry-run"], "--workers"),
    "a file for a folder": (
        ["study", "second", "--folder", str(ROOT / "README.md"), "--dry-run"],
        "is a file",
    ),
    "a folder for a file": (["costs", "--file", str(ROOT / "docs"), "--dry-run"], "is a directory"),
    "minutes that are no number": (["study", "hits", "--minutes", "nan"], "--minutes"),
    "no pairs": (["benchmark", "--pairs", "0", "--shape", "small"], "--pairs"),
    "a share that is no number": (["mutate", "helpers", "--least", "nan"], "--least"),
    "pairs that cannot alternate": (["guard", "--pairs", "3"], "--pairs must be even"),
    "no steps": (["style", "--alice", "README.md", "--edgar", "README.md", "--steps", "0"], "--steps"),
    "no such text to train on": (["train", "--text", "{folder}/a.txt", "--out", "{folder}/run"], "a.txt"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_exit_code_2(name, tmp_path, capsys):
    words, expected = BAD[name]
    assert main([word.format(folder=tmp_path) for word in words]) == 2
    said = capsys.readouterr().err
    assert len(said.strip().splitlines()) == 1 and said.startswith("error: ") and expected in said, said
    assert "unexpected, and not your mistake" not in said
    assert not any(tmp_path.iterdir())


def test_bad_input_in_a_shell_is_no_traceback():
    done = started("run", "--wings")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == "error: No such option: --wings See course run --help\n"


def test_a_stray_word_is_told_where_values_stand():
    done = started("run", "02_freezing")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert "(02_freezing): a value stands behind the name of its option. See course run --help" in done.stderr


def test_python_without_docstrings_is_refused_by_name(monkeypatch):
    monkeypatch.setenv("PYTHONOPTIMIZE", "2")
    done = started("progress")
    assert done.returncode == 2 and "PYTHONOPTIMIZE=2" in done.stderr and done.stdout == ""


def test_without_a_word_the_help_is_shown(capsys):
    assert main([]) == 2
    said = capsys.readouterr()
    assert "Take the course" in said.out and said.err == ""


def test_ctrl_c_and_a_closed_pipe_are_one_line(monkeypatch, capsys):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr("helpers.lessons.checks.progress", interrupted)
    assert main(["progress"]) == 130
    assert capsys.readouterr().err == "stopped: the same command starts again\n"


@pytest.mark.parametrize(
    "work, words, said",
    [
        ("helpers.study.answering.prepare", ["compare", "--text", "a.txt"], GOES_ON),
        ("helpers.study.hits.made_in", ["study", "hits"], GOES_ON),
        ("helpers.study.benchmark.continued", ["benchmark", "--shape", "small"], GOES_ON),
        ("helpers.study.runner.study_of", ["study", "first"], GOES_ON),
        ("publishing.mutate.mutate", ["mutate", "helpers"], GOES_ON),
        ("publishing.run.run_lessons", ["run", "--notebook", "00"], "Stopped. What ran until then is in "),
        ("publishing.refresh.refresh", ["notebooks", "00"], "stopped: the same command starts again"),
        (
            "helpers.training.export_delta",
            ["export", "--delta", "a", "--out", "b"],
            "stopped: the same command",
        ),
    ],
)
def test_ctrl_c_is_one_line_and_exit_code_130_in_every_command(
    work, words, said, monkeypatch, tmp_path, capsys
):
    def interrupted(*arguments, **settings):
        raise KeyboardInterrupt

    monkeypatch.setenv("COURSE_BUILD", str(tmp_path))
    monkeypatch.setattr(work, interrupted)
    assert main(words) == 130
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith(said)


@pytest.mark.parametrize("work", WORK_THAT_GOES_ON, ids=lambda work: work.__name__)
def test_a_command_that_goes_on_says_so_when_it_is_stopped(work, monkeypatch):
    needed = {p.name: "x" for p in signature(work).parameters.values() if p.default is p.empty}

    def interrupted(*arguments, **settings):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises((Stopped, KeyboardInterrupt)) as found:
        patched.setattr(
            "builtins.__import__", interrupted
        )  # importing is the first thing that each of them does
        work(**needed)
    assert found.type is Stopped


def test_a_mistake_of_the_program_is_named_and_its_traceback_kept(monkeypatch, tmp_path, capsys):
    def broken():
        return {}["a strange\nkey"]

    monkeypatch.setattr(command.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr("helpers.lessons.checks.progress", broken)
    assert main(["progress"]) == 2
    said = capsys.readouterr().err
    (kept,) = tmp_path.iterdir()
    assert "unexpected" in said and str(kept) in said and len(said.strip().splitlines()) == 1
    assert "KeyError" in kept.read_text()


# --- how it gets onto a machine --------------------------------------------------------


def test_the_package_brings_the_program_and_colab_can_run_it():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    assert settings["project"]["scripts"] == {"course": "publishing.cli:main"}
    assert "typer" in (ROOT / "tests" / "support" / "colab_packages.txt").read_text("utf-8")


def test_make_has_few_words_of_its_own():
    makefile = (ROOT / "Makefile").read_text("utf-8")
    targets = set(re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)[1].split())
    assert targets == {"help", "venv", "course", "test", "test-long", "lint", "lab"}


WITHOUT_A_COMMAND = ("data/README.md", "docs/glossary.md")
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for folder in ("", "docs", "data", "data/evidence")
    for path in (ROOT / folder).glob("*.md")
    if not path.name.startswith("PROTOCOL")  # pages of their day
)


@pytest.mark.parametrize("page", PAGES)
def test_every_command_that_a_page_names_is_there(page):
    text = (ROOT / page).read_text("utf-8")
    code = "\n".join(
        re.findall(r"```(?:bash)?\n(.*?)```", text, re.DOTALL) + re.findall(r"`([^`\n]+)`", text)
    )
    named = re.findall(r"^(?:\.venv/bin/)?course ((?:study )?[a-z]+)\b", code, re.MULTILINE)
    assert named or page in WITHOUT_A_COMMAND
    for words in named:
        assert tuple(words.split()) in COMMANDS, words
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for target in re.findall(r"\bmake ([a-z-]+)", code):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    for module in re.findall(r"python -m ((?:helpers|publishing)[a-z_.]*)", text):
        source = (ROOT / f"{module.replace('.', '/')}.py").read_text("utf-8")
        assert 'if __name__ == "__main__":' in source, module


def test_an_environment_that_was_built_before_there_was_a_program_gets_it(tmp_path, monkeypatch):
    calls = []
    (tmp_path / "requirements.lock").write_text("numpy==2.4.6\n")
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "python").touch()
    (tmp_path / ".venv" / "built-from").write_text(environment.expected_stamp(tmp_path))
    monkeypatch.setattr(environment, "install", lambda place, n, arguments: calls.append(arguments))
    environment.bring_up(tmp_path)
    assert [words[0] for words in calls] == ["--no-deps"]
    (tmp_path / ".venv" / "bin" / "course").touch()
    environment.bring_up(tmp_path)
    assert len(calls) == 1
