"""`course compare` on models of two layers: its time, its memory, a kill in the middle, its answer and its refusals."""

import contextlib
import io
import json
import shlex
import shutil
from dataclasses import replace

import pytest
import torch

from helpers.profiles import TINY
from helpers.study import comparing, probing
from helpers.study.answering import carry_out, command
from helpers.study.comparing import CompareWords, bytes_of, within
from helpers.study.probing import CompareError, Pacer, Speed, how_many
from helpers.study.recipes import CANDIDATES, Candidate, Choice, Probe, Recipe, halve, sizes
from publishing.cli import main
from support.records import probe as constructed
from support.tiny import saved

FEW = (
    Candidate("full", 1e-2),
    Candidate("attention", 1e-2),
    Candidate("full", 1e-2, 1.0),
    Candidate("full", 3e-3),
)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compare")
    saved(folder / "gpt_neo", "gpt_neo")
    text = TINY.texts["alice"].read_text("utf-8")[:9000]
    (folder / "tale.txt").write_text(text, encoding="utf-8")
    return folder


def take_few(monkeypatch) -> None:
    """Four candidates of high rates, each probed for ten steps and then ten more, whatever the clock says."""
    monkeypatch.setattr(comparing, "CANDIDATES", FEW)
    monkeypatch.setattr(Pacer, "n_steps", lambda self, candidate, n_done, n_rounds, n_probes: n_done + 10)
    monkeypatch.setattr(comparing, "how_many", lambda speed, seconds, most: most)


@pytest.fixture
def few(monkeypatch):
    take_few(monkeypatch)


def words(place, out, **changes) -> CompareWords:
    given = {"minutes": 5.0, "model": str(place / "gpt_neo"), "length": 32, "batch": 4, "out": str(out)}
    return CompareWords(str(place / "tale.txt"), **given | changes)


def probes_of(out) -> dict:
    """The records of the probes by name, but for how long a step took."""
    found = {p.name: json.loads(p.read_text("utf-8")) for p in sorted((out / "probes").iterdir())}
    return {name: {k: v for k, v in record.items() if k != "step_seconds"} for name, record in found.items()}


# --- the answer ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(place):
    """A comparison from its beginning to its end, and what it printed."""
    out = place / "whole"
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said):
        take_few(patch)
        assert carry_out(words(place, out)) == 0
    return out, said.getvalue()


def test_the_answer_is_a_table_a_sentence_a_picture_a_command_and_what_is_not_known(whole):
    out, said = whole
    report = json.loads((out / "report.json").read_text("utf-8"))
    assert len(report["rows"]) == 4 and report["rows"][0]["recipe"] in report["chosen"]["recipe"]
    best = report["rows"][0]
    assert best["interval"][0] < best["value"] < best["interval"][1] and best["peak_bytes"] > 1e6
    assert report["sentence"].startswith("At a gain of ") and "One seed" in report["sentence"]
    assert f"{best['value']:.4f} [{best['interval'][0]:.4f}" in report["sentence"]
    for row in report["rows"]:
        assert row["recipe"] in said
    assert report["command"] in said and "What this could not find out" in said
    assert (out / "frontiers.svg").read_text("utf-8").startswith("<?xml")
    assert not (out / "work").exists()
    lines = [line for line in said.splitlines() if line not in report["command"] and str(out) not in line]
    assert max(map(len, lines)) <= 80


def test_how_the_text_is_read_is_said_first(whole):
    """Its split, and what would make the answer worth little: parts that repeat, markup, letters that are changed."""
    out, said = whole
    corpus = comparing.prepare(words(out.parent, out.parent / "never")).ready.corpus
    assert "80% train, 8% dev, 12% test" in str(corpus) and corpus.shares in str(corpus)
    assert " ".join(said.split()).startswith(str(corpus))
    assert json.loads((out / "report.json").read_text("utf-8"))["text_is_read"] == str(corpus)


def test_the_command_trains_the_model_that_was_measured(whole, tmp_path, capsys):
    """All but the replay: there `course train` lets the base write more windows."""
    out, _ = whole
    report = json.loads((out / "report.json").read_text("utf-8"))
    setup = comparing.prepare(words(out.parent, tmp_path / "x"))
    probes = [Probe.of(r | {"step_seconds": 0.1}) for r in probes_of(out).values()]
    plain = next(p for p in probes if p.candidate == FEW[1])
    recipe = Recipe(plain, "rewound")
    choice = Choice(recipe, 1.0, (recipe,), plain, None)
    program, *asked = shlex.split(command(setup, choice))
    assert program == "course" and report["command"].startswith("course train --text")
    asked[asked.index("--out") + 1] = str(tmp_path / "trained")
    assert main(asked) == 0
    trained = json.loads((tmp_path / "trained" / "report.json").read_text("utf-8"))
    assert trained["held_out_loss_after"]["mean"] == pytest.approx(plain.test_loss, abs=1e-5)
    assert trained["best_step"] == plain.best_step


def test_a_budget_of_forgetting_gives_another_sentence(place, few, tmp_path, capsys):
    assert carry_out(words(place, tmp_path / "c", keep=0.05)) == 0
    report = json.loads((tmp_path / "c" / "report.json").read_text("utf-8"))
    assert report["sentence"].startswith("Within 0.05 nats per token of forgetting") and report["read"] == {
        "within": 0.05
    }
    assert "within: gain within 0.05" in capsys.readouterr().out


def test_where_nothing_is_learned_nothing_is_chosen_and_nothing_drawn(
    place, few, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(comparing, "CANDIDATES", (Candidate("full", 1e-12), Candidate("attention", 1e-12)))
    assert carry_out(words(place, tmp_path / "c")) == 0
    said = capsys.readouterr().out
    assert "Nothing to choose: full training gained nothing" in said and "picture:" not in said
    assert not (tmp_path / "c" / "frontiers.svg").exists() and "course train" not in said


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_other_families_are_compared_too(family, place, few, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(comparing, "CANDIDATES", FEW[:2])
    folder = saved(tmp_path / family, family)
    assert carry_out(words(place, tmp_path / "c", model=str(folder))) == 0
    assert len(json.loads((tmp_path / "c" / "report.json").read_text("utf-8"))["rows"]) == 2


def test_a_plan_that_the_model_cannot_have_is_named(place, few, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(comparing, "CANDIDATES", (*FEW[:2], Candidate("only-biases", 1e-2)))
    folder = saved(tmp_path / "llama", "llama")  # it has no biases
    assert carry_out(words(place, tmp_path / "c", model=str(folder))) == 0
    said = capsys.readouterr().out
    assert "Not tried: only biases train: " in said.replace("\n  ", " ")


# --- a kill --------------------------------------------------------------------------------


def test_killed_in_the_middle_the_same_command_ends_with_the_same_probes(
    place, whole, few, tmp_path, monkeypatch
):
    out, n_measured = tmp_path / "killed", []
    measure = probing.Bench.measure

    def killed(bench, model):
        n_measured.append(1)
        if len(n_measured) == 12:  # in the second probe
            raise KeyboardInterrupt
        return measure(bench, model)

    monkeypatch.setattr(probing.Bench, "measure", killed)
    with pytest.raises(KeyboardInterrupt):  # the command says that it goes on: tests/publishing/test_cli.py
        carry_out(words(place, out))
    assert len(list((out / "probes").iterdir())) == 1 and not (out / "report.json").exists()
    n_before = len(n_measured)
    assert carry_out(words(place, out)) == 0
    assert probes_of(out) == probes_of(whole[0])
    report, other = (json.loads((o / "report.json").read_text("utf-8")) for o in (out, whole[0]))
    assert (report["sentence"], report["chosen"]) == (other["sentence"], other["chosen"])
    n_of_all = len(n_measured) - n_before
    shutil.rmtree(out / "probes")  # as if none had been written: the journal says what is made again
    assert carry_out(words(place, out)) == 0
    assert probes_of(out) == probes_of(whole[0]) and len(n_measured) - n_before - n_of_all >= n_of_all


def test_a_finished_comparison_answers_again_without_training(place, whole, few, monkeypatch, capsys):
    monkeypatch.setattr(comparing, "probe", None)
    monkeypatch.setattr(Pacer, "n_steps", None)  # how far each probe goes was decided, and is read
    assert carry_out(words(place, whole[0])) == 0
    assert "One seed" in capsys.readouterr().out.replace("\n", " ")


# --- the time --------------------------------------------------------------------------------


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize("total", [120.0, 1200.0])
@pytest.mark.parametrize("drift", [1.0, 0.7, 1.4])
def test_the_time_is_kept_within_a_few_per_cent_on_a_machine_that_changes(total, drift):
    clock, speed = Clock(), Speed(0.1, 0.3)
    work = {c: 0.7 if c.plan != "full" else 1.5 if c.replay else 1.0 for c in CANDIDATES}
    real = {c: w * (1.15 if i % 2 else 0.9) for i, (c, w) in enumerate(work.items())}  # the prediction errs
    pacer = Pacer(speed, total, work, clock)

    def make(candidate, before, n_rounds, n_probes):
        n_done = before.n_steps if before else 0
        n_steps = pacer.n_steps(candidate, n_done, n_rounds, n_probes)
        began = clock.now
        slow = 1 + (drift - 1) * began / total  # slower and slower, or faster and faster
        clock.now += slow * Speed(0.1, 0.3).probe_seconds(n_steps - n_done, real[candidate])
        pacer.learn(candidate, n_steps - n_done, clock.now - began)
        return replace(constructed(candidate), n_steps=n_steps)

    n = how_many(speed, total, len(CANDIDATES))
    halve(CANDIDATES[:n], sizes(n), make)
    assert 0.9 * total <= clock.now <= 1.03 * total
    assert (n == 12) == (total > 1000) and n >= 4


def test_less_time_means_fewer_candidates_and_at_last_none():
    speed = Speed(1.0, 2.0)
    counts = [how_many(speed, seconds, 12) for seconds in (3000, 600, 200, 100, 40)]
    assert counts == sorted(counts, reverse=True) and counts[0] == 12 and counts[-1] == 0
    assert how_many(speed, probing.seconds_needed(speed) + 1e-6, 12) == 2


@pytest.mark.parametrize("minutes", ["0.0001", "0.01"])
def test_time_that_loading_takes_is_too_little_and_nothing_slow_begins(
    minutes, place, tmp_path, monkeypatch, capsys
):
    def slow(*_, **__):
        raise AssertionError("the time was over")

    for name in ("budgets_of", "Bench", "timed"):
        monkeypatch.setattr(comparing, name, slow)
    code = main(
        [
            "compare",
            "--text",
            str(place / "tale.txt"),
            "--model",
            str(place / "gpt_neo"),
            "--minutes",
            minutes,
        ]
        + ["--length", "32", "--batch", "4", "--out", str(tmp_path / "c")]
    )
    said = capsys.readouterr().err.splitlines()
    assert code == 2 and len(said) == 1 and f"--minutes {minutes} is too short: getting ready took" in said[0]
    assert not (tmp_path / "c").exists()


def test_time_that_is_over_when_the_base_has_written_its_text_is_too_little(place, tmp_path, monkeypatch):
    clock = Clock()

    def slow(*_, **__):
        clock.now = 100.0

    monkeypatch.setattr(comparing, "Bench", slow)
    with pytest.raises(CompareError, match="--minutes 1 is too short: getting ready took 100 s so far"):
        carry_out(words(place, tmp_path / "c", minutes=1.0), clock)
    assert not (tmp_path / "c").exists()


def test_too_little_time_is_said_before_anything_is_written(place, tmp_path, monkeypatch):
    monkeypatch.setattr(comparing, "timed", lambda bench, clock: Speed(1.0, 2.0))
    with pytest.raises(CompareError, match=r"^--minutes 0\.2 is too short: .* Two recipes need about"):
        carry_out(words(place, tmp_path / "c", minutes=0.2), Clock())
    assert not (tmp_path / "c").exists()


# --- the memory ------------------------------------------------------------------------------


def test_a_size_is_read_as_people_write_it():
    found = [bytes_of(word) for word in ("8GB", "8 gb", "512M", "1.5GiB", "2TiB", "900")]
    assert found == [8e9, 8e9, 512e6, 1.5 * 2**30, 2 * 2**40, 900]
    for word in ("", "much", "-8GB", "0GB", "8XB", "1e3", "GB", "nan"):
        with pytest.raises(CompareError, match="8GB"):
            bytes_of(word)


def test_what_needs_more_memory_is_left_out_and_named(place, few, tmp_path, capsys):
    setup = comparing.prepare(words(place, tmp_path / "c", memory="100GB"))
    budgets, _ = comparing.budgets_of(setup)
    plain, held = (budgets[c].peak_bytes for c in (FEW[0], FEW[2]))
    assert held > plain
    left, said = within(budgets, (plain + held) / 2)
    assert left == [FEW[0], FEW[1], FEW[3]] and len(said) == 1 and "0.01, replay: its step needs" in said[0]
    assert within(budgets, None) == (list(FEW), [])
    with pytest.raises(
        CompareError, match="No recipe fits into 0 MB: a step of the smallest, attention frozen"
    ):
        within(budgets, 1000)


# --- refusals ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes, word",
    [
        ({"minutes": 0}, "--minutes must be above 0"),
        ({"minutes": float("nan")}, "--minutes must be above 0"),
        ({"keep": -0.1}, "--keep must be above 0"),
        ({"keep": float("inf")}, "--keep must be above 0"),
        ({"memory": "lots"}, "--memory must be a size"),
        ({"seed": -1}, "seed"),
        ({"batch": 10**6}, "windows to train on"),
        ({"length": 1}, "2 tokens or more"),
        ({"length": 500}, "positions"),
        ({"model": "{place}/nowhere"}, "nowhere"),
        ({"text": "{place}/none.txt"}, "none.txt"),
        ({"out": "{place}/tale.txt"}, "a file is in its way"),
        ({"out": "{place}/gpt_neo"}, "holds no comparison"),
    ],
    ids=str,
)
def test_what_cannot_be_is_one_line_and_writes_nothing(changes, word, place, tmp_path, capsys):
    asked = {
        "text": place / "tale.txt",
        "model": place / "gpt_neo",
        "length": 32,
        "batch": 4,
        "out": tmp_path / "c",
    }
    asked |= {k: v.format(place=place) if isinstance(v, str) else v for k, v in changes.items()}
    before = sorted(place.rglob("*"))
    code = main(["compare", *(str(w) for k, v in asked.items() for w in (f"--{k}", v))])
    said = capsys.readouterr().err.splitlines()
    assert code == 2 and len(said) == 1 and word in said[0] and "unexpected" not in said[0], said
    assert sorted(place.rglob("*")) == before and not any(tmp_path.iterdir())


def test_a_folder_of_another_comparison_is_refused(place, whole, few, capsys):
    before = (whole[0] / "comparison.json").read_bytes()
    with pytest.raises(CompareError, match="holds another comparison .*seed 0 there, 1 here"):
        carry_out(words(place, whole[0], seed=1))
    assert (whole[0] / "comparison.json").read_bytes() == before


def test_a_damaged_file_of_a_comparison_is_named(place, whole, few, tmp_path, capsys):
    out = tmp_path / "damaged"
    shutil.copytree(whole[0], out)
    hurt = next((out / "probes").iterdir())
    hurt.write_text("{", encoding="utf-8")
    with pytest.raises(CompareError, match=f"{hurt.name}.*Delete this one file"):
        carry_out(words(place, out))
    (out / "comparison.json").write_text("{}", encoding="utf-8")
    with pytest.raises(CompareError, match="comparison.json' is damaged: it has no candidates"):
        carry_out(words(place, out))


def test_a_kill_before_the_first_file_was_whole_leaves_a_folder_that_can_be_used(tmp_path):
    out = tmp_path / "c"
    out.mkdir()
    for name in (".lock", ".comparison.json.123"):
        (out / name).touch()
    assert comparing.folder_of(CompareWords("a.txt", 1.0, out=str(out))) == out


def test_a_base_that_writes_one_text_only_is_refused():
    alike = torch.zeros(4, 8, dtype=torch.long)
    with pytest.raises(CompareError, match="the same text"):
        probing.unlike(alike, alike)
    others = torch.arange(32).reshape(4, 8)
    assert torch.equal(probing.unlike(torch.cat([others[:1], alike]), others), alike)
