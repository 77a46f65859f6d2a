"""The README says what the notebooks and the evidence say."""

import json
import re

from helpers.measuring.decisions import VERDICTS
from helpers.models.loading import load_model, weight_hash
from helpers.profiles import ROOT, TINY
from helpers.results.claims import CLAIMS, on_models
from helpers.results.verdicts import published
from helpers.study.records import read_record, read_runs
from publishing import readme as refresh_readme
from publishing.badges import repository

RUNS = ROOT / "data" / "evidence" / "runs" / TINY.model_name
README = (ROOT / "README.md").read_text("utf-8")


def test_lessons_and_verdicts_are_up_to_date():
    assert refresh_readme.rendered(README) == README, "run: course results --readme"


def test_every_notebook_has_a_row_and_a_badge_that_opens_it():
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        assert f"/{repository(ROOT)}/blob/main/notebooks/{path.name}" in README
    for name in re.findall(r"notebooks/([\w]+\.ipynb)", README):
        assert (ROOT / "notebooks" / name).exists()


def test_every_file_that_the_readme_names_exists():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
    for name in re.findall(r"`(data/[\w./]+|\.github/[\w./]+|LICENSE[\w-]*|requirements[\w.-]+)`", README):
        assert (ROOT / name).exists(), name


def test_every_command_of_the_readme_is_a_make_target():
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text("utf-8"), re.M))
    assert set(re.findall(r"(?:`|^)make ([a-z0-9-]+)", README, re.M)) <= targets


def test_the_recorded_verdicts_are_of_the_shipped_miniature():
    entries = json.loads(refresh_readme.RECORDED.read_text("utf-8"))
    mini = weight_hash(load_model(TINY.model, device="cpu"))
    assert [e["id"] for e in entries] == [c for c in CLAIMS if c in {e["id"] for e in entries}]
    assert {f"C{i}" for i in range(1, 16)} <= {e["id"] for e in entries}
    assert {e["verdict"] for e in entries} <= set(VERDICTS)
    rows = [row for e in entries for row in on_models(e)]
    assert all(row["model_hash"] == mini for row in rows if row["model"] == TINY.model_name)


def test_the_recorded_verdicts_are_those_of_the_scoreboard():
    entries = json.loads(refresh_readme.RECORDED.read_text("utf-8"))
    assert published(entries) == entries, "the evidence says something else by now; run: course results"


def test_a_new_miniature_would_make_the_evidence_stale():
    runs = read_runs(RUNS)
    mini = weight_hash(load_model(TINY.model, device="cpu"))
    assert runs and all(r["model_hash"] == mini for r in runs), (
        "record the evidence again: course study first"
    )
    style = read_record(ROOT / "data" / "evidence" / "style.json")
    assert style["model_hash"] == mini


def test_at_least_three_seeds_and_every_proof_passed():
    runs = read_runs(RUNS)
    for plan in ("full", "attention+embeddings", "only-attention", "only-mlp-out"):
        for text in ("alice", "edgar"):
            own = [r for r in runs if r["plan"] == plan and r["text"] == text and "keep" in r["rate_choice"]]
            assert len({r["seed"] for r in own}) >= 3, (plan, text)
    assert all(r["proof_ok"] for r in runs)


def test_evidence_names_what_it_was_made_with():
    needed = {
        "model",
        "model_hash",
        "plan",
        "text",
        "text_hash",
        "seed",
        "rate",
        "batch",
        "length",
        "n_steps",
        "n_trainable",
        "n_parameters",
        "versions",
        "machine",
        "commit",
        "evaluations",
    }
    for run in read_runs(RUNS):
        assert needed <= set(run)
