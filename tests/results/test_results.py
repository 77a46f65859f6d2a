"""results/ is what the code makes of the committed evidence, and says so whatever the evidence is."""

import dataclasses
import hashlib
import json
import re
import shutil
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import pytest

from helpers.profiles import ROOT
from helpers.results import (
    answers,
    plan_answers,
)
from helpers.results import (
    cost_answers as costs,
)
from helpers.results import (
    lever_answers as levers,
)
from helpers.results import pages as write_results
from helpers.results.evidence import EVIDENCE
from helpers.results.questions import QUESTIONS
from helpers.results.verdicts import step_time
from helpers.study import benchmark
from helpers.study import measured_costs as benchmarks
from helpers.study.packing import unpack
from helpers.study.protocol import read_protocol
from support.records import FLOPS, PLANS, a_long_run, change, evidence, forgot_times, pretend, with_tuning

PAGE = (write_results.RESULTS / "README.md").read_text("utf-8")
PICTURES = sorted(write_results.RESULTS.glob("*.svg"))


def test_pages_and_pictures_are_up_to_date():
    assert not write_results.differences(), "run: course results"


def test_every_question_is_answered_in_order_with_one_picture_and_says_what_it_rests_on():
    sections = PAGE.split("\n## ")[1:]
    assert [section.partition("\n")[0] for section in sections] == [q.asks for q in QUESTIONS]
    for section in sections:
        if "Not recorded yet: `course " in section:
            continue
        open_part, *folds = section.split("<details>")
        assert re.search(r"^\*\*.+\.\*\*$", open_part, re.MULTILINE), "an answer in one sentence"
        ((alt, target),) = re.findall(r"!\[(.*?)\]\((.+?)\)", open_part)
        assert len(alt) > 20 and (write_results.RESULTS / target).exists()
        assert "| --- |" not in open_part and "How to read it" in folds[-1]
        assert re.search(r"\*.*(seed|nothing was trained|on x86_64|CPU|GPU).*\*", folds[-1])
    for target in re.findall(r"\]\((?!http)([^)#]+)", PAGE):
        assert (write_results.RESULTS / target).exists(), target
    assert "nan" not in PAGE.lower().split()


@pytest.mark.parametrize("path", PICTURES, ids=lambda p: p.stem)
def test_a_picture_is_small_well_formed_and_its_letters_can_be_searched(path):
    root = ElementTree.parse(path).getroot()
    names = [part.get("id") for part in root.iter() if part.get("id")]
    assert len(names) == len(set(names)), "two figures in one file must not share a name"
    used = set(re.findall(r"(?:url\(#|href=\"#)([\w-]+)", path.read_text("utf-8")))
    assert used <= set(names)
    assert len(list(root.iter("{http://www.w3.org/2000/svg}text"))) > 5
    assert path.stat().st_size < 130_000


def test_a_picture_drawn_twice_is_the_same_file():
    found = {"a model": answers.forgetting(at(evidence()))}
    assert write_results.picture(found) == write_results.picture(found)


def test_tables_of_two_models_become_one_with_a_column_for_the_model():
    answer = answers.forgetting(at(evidence()))
    (both,) = write_results.tables({"small": answer, "large": answer})
    head, rule, *rows = both.splitlines()
    assert head.startswith("| model | text |") and rule.startswith("| --- | --- |")
    n_own = len(answer.table.splitlines()) - 2
    assert [row.split(" | ")[0] for row in rows] == ["| small"] * n_own + ["| large"] * n_own
    (alone,) = write_results.tables({"small": answer})
    assert alone == answer.table
    two = dataclasses.replace(answer, table=f"{answer.table}\n\n{answer.table}")
    assert write_results.tables({"small": two, "large": answer}) == [
        "**small**",
        two.table,
        "**large**",
        answer.table,
    ]


# --- other evidence ----------------------------------------------------------------


def at(found, **more):
    made = {"machine": "a CPU", "commit": "c" * 40, "protocol": "p" * 64, "n_trainable": 10}
    change(found.runs, lambda run: replace(run, **made, **more))
    found.rates.update(seeds=[900], protocol="p" * 64)
    return found


@pytest.mark.parametrize("slope, word", [(0.25, "less"), (0.8, "more")])
def test_the_sentence_on_forgetting_follows_the_records(slope, word):
    found = answers.forgetting(at(evidence({"attention+embeddings": slope})))
    assert found.sentence.count(f"the main plan forgot {word} than full training") == 2
    assert found.table.count(f"| {word} |") == 2 and "| not known / not known |" in found.table, (
        "a row a text"
    )
    assert ("-0." if word == "less" else "+0.") in found.title
    assert ("C10: *holds* (attention and embeddings frozen)" in found.sentence) == (word == "less")


def test_a_difference_that_may_be_zero_is_not_called_less_or_more():
    found = answers.forgetting(at(evidence(seeds=3)))
    assert found.sentence.count("the two plans show no difference that counts") == 2
    assert "forgot less" not in found.sentence


@pytest.mark.parametrize("more_on_alice", [0, 2])
def test_one_seed_makes_pages_that_say_so(more_on_alice):
    found = at(evidence(seeds=1 + more_on_alice))
    found.runs[:] = [r for r in found.runs if r.seed == 0 or r.text == "alice"]
    for question in QUESTIONS:
        answer = question.answer(found) if question.of_model else None
        assert answer is None or "nan" not in f"{answer.sentence} {answer.title}", question.name
    assert "one pair: no interval over seeds" in answers.style(found).sentence


def test_a_protocol_has_a_date_only_where_it_is_the_one_that_was_dated():
    found = answers.forgetting(at(evidence()))
    assert "of 2026-01-02" in write_results.protocol_line(found, {"sha256": "p" * 64, "date": "2026-01-02"})
    assert "of 2026" not in write_results.protocol_line(found, {"sha256": "q" * 64, "date": "2026-01-02"})


def test_a_plan_that_learned_too_little_is_said_to_be_not_comparable():
    found = answers.forgetting(at(evidence(**{"attention+embeddings": {"top": 0.03}})))
    assert "not comparable" in found.sentence and "not comparable" in found.title
    found.draw()


def test_a_question_without_its_runs_has_no_answer():
    only_full = at(evidence())
    only_full.runs[:] = [r for r in only_full.runs if r.plan == "full"]
    for question in QUESTIONS:
        if question.of_model:
            assert question.answer(only_full) is None, question.name


@pytest.mark.parametrize("slope", [0.25, 0.8])
def test_every_answer_about_runs_can_be_drawn(slope):
    table = [
        {"plan": p, "text": t, "rate": r, "n_seeds": 2, "forgetting_at_level": f}
        for t in ("alice", "edgar")
        for p, r, f in (
            ("full", 1e-4, 0.05),
            ("full", 3e-4, 0.10),
            ("attention+embeddings", 1e-4, slope / 10),
            ("attention+embeddings", 3e-4, 0.06),
            ("only-attention", 3e-4, None),
        )
    ]
    found = at(evidence({"attention+embeddings": slope}, table=table))
    seen = {q.name: q.answer(found) for q in QUESTIONS if q.of_model}
    assert {name for name, answer in seen.items() if answer} == {
        "levers",
        "forgetting",
        "rates",
        "quality",
        "style",
    }
    for answer in filter(None, seen.values()):
        answer.draw()
        again = dataclasses.replace(answer, title=f"{answer.title}!")
        hashes = [write_results.data_hash({"a model": a}) for a in (answer, answer, again)]
        assert hashes[0] == hashes[1] != hashes[2]
        assert "5 seeds" in answer.origin or "tuning" in answer.origin
    assert ("the sign turns" in seen["rates"].sentence) == (slope > 0.5)


def test_a_book_that_is_read_once_has_an_answer_of_its_own_and_no_tuning_runs():
    found = at(evidence({"attention+embeddings": 0.8}), steps_taken=100, n_train_windows=1600)
    assert answers.forgetting_in_one_pass(found) is None
    found.runs.extend([replace(r, text="poe") for r in found.runs if r.text == "edgar"])
    answer = answers.forgetting_in_one_pass(found)
    assert (
        "on Poe the main plan forgot more than full training" in answer.sentence
        and "at 80%" in answer.sentence
    )
    assert (
        answer.sentence.endswith("A run read at most 50% of its text's windows.")
        and "C10" not in answer.sentence
    )
    answer.draw()


@pytest.mark.parametrize(
    "slope, words",
    [(0.25, "above zero on small, below zero on large"), (0.8, "above zero on small and large")],
)
def test_the_models_are_set_beside_each_other_and_their_signs_are_read_off(monkeypatch, slope, words):
    studied = {
        model: replace(at(evidence({"attention+embeddings": own})), model=model)
        for model, own in (("small", 0.8), ("large", slope))
    }
    monkeypatch.setattr(plan_answers, "read_evidence", lambda model, folder: studied[model])
    monkeypatch.setattr(plan_answers, "studied_models", lambda folder: list(studied))
    answer = plan_answers.forgetting_by_model()
    assert words in answer.title and words in answer.sentence and "**large**: on Alice" in answer.sentence
    n_large = sum(
        abs(mean) >= zone for (mean, *_), zone in zip(answer.data[0].values(), answer.data[1], strict=True)
    )
    assert f"{n_large} of 4 differences" in answer.title
    assert answer.origin.count("5 seeds") == 2 and len(answer.data[0]) == len(answer.data[1]) == 4
    answer.draw()
    del studied["large"]
    assert plan_answers.forgetting_by_model() is None


def test_long_runs_are_drawn_and_said_to_have_levelled_off_only_where_they_did():
    found = at(evidence())
    found.long.extend(a_long_run(seed, falls=seed > 0) for seed in range(3))
    change(found.long, lambda run: replace(run, machine="a CPU", protocol="p" * 64))
    answer = plan_answers.convergence(found)
    assert "main plan: the loss on the training probe levelled off in 2 of 3 runs" in answer.sentence
    assert "within 640 steps" in answer.title.lower() and "C8: *not decided*" in answer.sentence
    answer.draw()


def runs_like(found, plan, other, **changes):
    """More main runs: those of ``plan``, under another name."""
    return [replace(r, plan=other, **changes) for r in found.runs if r.plan == plan]


def test_lora_is_read_at_its_gentlest_rate_and_both_rates_are_named():
    found = at(evidence(seeds=3))
    for plan in plan_answers.LORA:
        found.runs.extend(runs_like(found, "only-attention", plan, rate=3e-4))
    assert plan_answers.lora(found) is None, "without tuning runs no gentlest rate is known"
    assert plan_answers.forgetting_by_rate(found) is None
    tops = dict.fromkeys(("only-attention", *plan_answers.LORA), 0.09)
    answer = plan_answers.lora(with_tuning(found, tops, plans=plan_answers.SET_BESIDE))
    title = answer.title.replace("\n", " ")
    assert (
        "LoRA on attention" in answer.sentence
        and "LoRA on the MLP 0.018" in title
        and "1 tuning run each" in title
    )
    table = plan_answers.lora_table(found)
    assert set(table["at gentlest rate"]) == {1e-4} and set(table["share of full's best"]) == {0.5}
    assert (
        table.loc["LoRA on the MLP", "at rate"] == 3e-4 and table.loc["LoRA on the MLP", "forgetting"] < 0.025
    )
    assert "rate that forgets least" not in answer.sentence and "at its gentlest rate" in answer.table
    by_rate = plan_answers.forgetting_by_rate(found)
    assert list(by_rate.index) == list(table.index) and list(by_rate.columns) == sorted(by_rate.columns)
    assert (
        by_rate.min(axis="columns").tolist() == table["forgetting"].tolist()
        and by_rate.notna().sum().min() > 1
    )
    answer.draw()


def test_a_plan_that_never_reached_the_level_is_read_at_its_gentlest_rate_and_not_counted():
    found = at(evidence(seeds=3), rate=3e-4)
    assert plan_answers.every_plan(found) is None  # the deciding plans have pages of their own
    found.runs.extend(runs_like(found, "only-attention", "only-norms", rate=1e-2))
    # at the rate that gains most it forgets three times as much
    change(found.runs, lambda r: forgot_times(r, 3), "only-norms")
    with_tuning(found, {"only-norms": 0.08}, plans=(*PLANS, "only-norms"))
    answer = plan_answers.every_plan(found)
    rows, zones = answer.data
    assert len(rows) == 3 and not any("only-norms" in name for name in rows), "it has no row in the picture"
    assert "0 of 3 plans forgot less" in answer.title.replace("\n", " ") and "0 forgot more" in answer.title
    low = next(line for line in answer.table.splitlines() if "only-norms" in line)
    assert "| 50% | 0.0001 / 0.0001 |" in low and "1 tuning run, no interval" in low and "| open |" in low
    assert (
        "which no rate brought to 80%, open: " in answer.sentence
        and "beside full training's" in answer.sentence
    )
    answer.draw()
    wanted = read_protocol()["tiny"]["other_plans"]
    assert [*plan_answers.DESCRIBED, *plan_answers.LORA] == wanted


def test_a_plan_without_tuning_runs_that_never_reached_the_level_is_not_comparable():
    found = with_tuning(at(evidence(seeds=3), rate=3e-4))
    found.runs.extend(runs_like(found, "only-attention", "only-norms"))
    assert "`only-norms` not comparable" in plan_answers.every_plan(found).sentence


# --- what moves forgetting most ----------------------------------------------------


def test_the_largest_lever_comes_first_and_no_sign_is_assumed():
    found = with_tuning(at(evidence({"only-attention": 1.5, "only-mlp-out": 0.25}), rate=1e-4))
    answer = levers.levers(found)
    first = answer.table.splitlines()[2]
    assert "`only-attention` over `only-mlp-out`: more" in first and "| 6.0 |" in first, "0.18 over 0.03"
    assert (
        "| the rate | full training at 0.0003 over 0.0001 |" in answer.table
        and "a factor of 2" in answer.sentence
    )
    assert "By its largest factor of forgetting: the plan 6.0 (on " in answer.sentence, (
        "the largest kind comes first"
    )
    assert "On Alice `only-attention` minus `only-mlp-out` at equal gain: more" in answer.sentence
    other = levers.levers(with_tuning(at(evidence({"only-attention": 0.1}), rate=1e-4)))
    assert "On Alice `only-attention` minus `only-mlp-out` at equal gain: less" in other.sentence
    answer.draw()


def test_all_levers_are_found_with_the_strongest_first_whatever_their_sign():
    found = levers.every_lever(
        with_tuning(at(evidence({"only-attention": 1.5, "only-mlp-out": 0.25}), rate=1e-4))
    )
    strength = [max(lever.factor, 1 / lever.factor) for lever in found]
    assert strength == sorted(strength, reverse=True) and {lever.kind for lever in found} == {
        "the rate",
        "stopping",
        "the plan",
    }
    weak = levers.every_lever(with_tuning(at(evidence({"only-attention": 0.1}), rate=1e-4)))
    assert weak[0].factor < 1


def test_stopping_is_what_the_last_fifth_of_the_gain_costs():
    lever = levers.stopping_lever(at(evidence({"full": 0.5})), "alice")
    assert lever.factor == pytest.approx(1 / 0.8, rel=1e-3) and lever.n_seeds == 5, (
        "here forgetting follows the gain"
    )
    assert levers.stopping_lever(at(evidence()), "poe") is None


def test_without_rates_there_is_no_page_about_levers():
    assert levers.levers(at(evidence())) is None


# --- costs -------------------------------------------------------------------------


def test_the_benchmark_and_the_memory_have_pages_once_they_are_recorded(tmp_path):
    assert costs.engine(tmp_path) is None and costs.memory(tmp_path) is None
    pairs = [
        benchmark.measure_group(plan, engines, r, "small", run=pretend)
        for r in range(3)
        for plan, engines in benchmark.GROUPS
    ]
    setting = {
        "model": "a model",
        "dtype": "float32",
        "batch": 4,
        "length": 512,
        "machine": "a CPU",
        "versions": {"torch": "2", "transformers": "5"},
    }
    found = benchmarks.summary(pairs, FLOPS) | {"setting": setting, "pairs": pairs, "flops": FLOPS}
    (tmp_path / "benchmark.json").write_text(json.dumps(found))
    answer = costs.engine(tmp_path)
    assert (
        "takes 0.50 (main plan) and 0.50 (full training) of the time" in answer.sentence
        and "-50% time" in answer.title
    )
    answer.draw()
    assert step_time(found)[0].verdict == "holds", "C12, from the same file"

    def point(plan, size):
        return {
            "plan": plan,
            "batch": 1,
            "length": 128,
            "ratio": 0.95,
            "predicted": {"optimizer": 0.95 * size},
            "measured": {"optimizer": size},
        }

    record = {
        "setting": {"model": "a model", "dtype": "float32", "machine": "a CPU"},
        "points": [point("full", 1000), point("attention+embeddings", 800)],
        "times": [],
    }
    (tmp_path / "memory.json").write_text(json.dumps(record))
    answer = costs.memory(tmp_path)
    assert "20.0% below full training's" in answer.sentence and "at most 5%" in answer.sentence
    answer.draw()


# --- writing -----------------------------------------------------------------------


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A copy of the evidence and of results/, with two of the questions: the first test above asks all."""
    monkeypatch.setattr(
        write_results, "QUESTIONS", [q for q in QUESTIONS if q.name in ("forgetting", "engine")]
    )
    shutil.copytree(EVIDENCE, tmp_path / "evidence", ignore=shutil.ignore_patterns("retention"))
    shutil.copytree(ROOT / "results", tmp_path / "results")
    return tmp_path


def test_fewer_seeds_make_other_pages_and_a_picture_is_drawn_only_when_its_numbers_change(place, capsys):
    results, folder = place / "results", place / "files"
    unpack(EVIDENCE, folder)
    write_results.write(results, folder)
    assert "drawn" not in capsys.readouterr().out
    for path in (folder / "runs").rglob("2*.json"):
        path.unlink()
    stale = write_results.differences(results, folder)
    assert "README.md: old text" in stale and "forgetting.svg: old numbers" in stale
    write_results.write(results, folder)
    assert "drawn: forgetting.svg" in capsys.readouterr().out
    assert write_results.differences(results, folder) == []


def test_a_page_that_nothing_asks_for_goes(place):
    (place / "results" / "old.md").write_text("old")
    assert "old.md: nothing asks for it" in write_results.differences(place / "results", place / "evidence")
    write_results.write(place / "results", place / "evidence")
    assert not (place / "results" / "old.md").exists()


def test_without_any_evidence_the_index_says_what_would_record_it(place):
    (place / "empty").mkdir()
    write_results.write(place / "results", place / "empty")
    said = (place / "results" / "README.md").read_text()
    assert "Not recorded yet: `course study first`." in said and "`course benchmark`" in said


def test_the_date_of_the_protocol_is_kept_for_copies_without_a_history(place, monkeypatch):
    monkeypatch.setattr(write_results, "git", lambda *a: None)
    known = write_results.date_of_protocol(write_results.RESULTS)
    assert known == json.loads((write_results.RESULTS / "protocol.json").read_text()) and known["date"]


def test_the_date_of_the_protocol_is_the_day_of_the_first_commit_that_had_it(monkeypatch):
    page = "# Protocol\n" + "{}" + "\n## Amendments\n" + "{}"
    texts = {"a": page.format(1, 1), "b": page.format(2, 1), "c": page.format(2, 2)}
    log = "a 2026-01-01\nb 2026-01-02\nc 2026-01-03"
    monkeypatch.setattr(
        write_results, "git", lambda what, *rest: log if what == "log" else texts[rest[0].partition(":")[0]]
    )
    hashes = [hashlib.sha256(f"# Protocol\n{n}".encode()).hexdigest() for n in (1, 2, 3)]
    assert [write_results.fixed_on(sha) for sha in hashes] == ["2026-01-01", "2026-01-02", None]


def test_the_commits_of_a_benchmark_are_short_sorted_and_said_once():
    pairs = [{"commit": "b" * 40}, {"commit": "a" * 40}, {}]
    assert costs.commits({"commit": "b" * 40, "pairs": pairs}) == "`aaaaaaa`, `bbbbbbb`"
    assert costs.commits({}) == "unknown"
