"""The README says what the notebooks and the evidence say."""

import json
import re
import xml.etree.ElementTree as ElementTree

import pytest

from helpers.measuring.decisions import VERDICTS
from helpers.models.loading import load_model, weight_hash
from helpers.profiles import ROOT, TINY
from helpers.results.cards import recorded_claims
from helpers.results.claims import CLAIMS
from helpers.results.lever_answers import Lever
from helpers.results.recipe_answers import headline
from helpers.results.verdicts import published
from helpers.study.records import read_record, read_runs
from publishing import readme as refresh_readme
from publishing.badges import repository
from support.studies import main, study_of, tuning

RUNS = ROOT / "data" / "evidence" / "runs" / TINY.model_name
README = (ROOT / "README.md").read_text("utf-8")


def test_what_comes_from_elsewhere_is_up_to_date():
    assert refresh_readme.rendered(README) == README, "run: course results --readme"
    for name, text in refresh_readme.drawn().items():
        assert (refresh_readme.DOCS / name).read_text("utf-8") == text, f"{name}: run course results --readme"


def test_the_first_screen_says_what_it_is_what_was_found_and_where_to_start_and_no_verdict():
    screen = README.partition("## The course")[0]
    assert screen.index("A course on partial fine-tuning") < screen.index("What it found")
    assert screen.index("What it found") < screen.index("Start: lesson 00") < screen.index("<picture>")
    assert not re.search(r"\bC\d+\b", screen), "which claim got which verdict is behind the fold"
    assert len(re.sub(r"<picture>.*?</picture>|\(http\S+\)", "", screen).split()) < 170


def levers(rate: float, plan: float, stopping: float) -> dict:
    """A model's largest levers, the largest first."""
    factors = {"the rate": rate, "the plan": plan, "stopping": stopping}
    made = {kind: Lever("alice", kind, "one over another", (f, 1.0), 3) for kind, f in factors.items()}
    return dict(sorted(made.items(), key=lambda item: -item[1].times))


def test_what_was_found_follows_the_records():
    both = {"small": levers(3, 1.5, 2), "large": levers(4, 0.25, 1.5)}
    assert "the learning rate changed most" in refresh_readme.finding(both, {})
    assert "up to 3 times on small and 4 times on large" in refresh_readme.finding(both, {})
    assert "What is frozen: up to 1.5 and 4 times" in refresh_readme.finding(both, {}), (
        "a factor below 1 is turned"
    )
    apart = both | {"large": levers(2, 0.25, 1.5)}
    assert refresh_readme.finding(apart, {}).endswith("the learning rate on small; what is frozen on large.")


@pytest.fixture(scope="module")
def study():
    return study_of(tuning() + main())


def test_the_answer_of_a_studied_model_comes_first_with_its_numbers(study):
    """In these records rewinding halves forgetting, and only-mlp-out forgets less than full training."""
    both = {"small": levers(3, 1.5, 2), "large": levers(4, 1.5, 2)}
    found = refresh_readme.finding(both, {"small": study})
    start, _, rest = found.partition(", *rewound* (taken part of the way back to the base), forgets ")
    assert start == "On small, for the same gain, full training"
    numbers = re.match(
        r"(0\.\d+) \(Alice\) and (0\.\d+) \(Edgar\) times as much as stopped early \(4 seeds\)\. First half",
        rest,
    )
    assert all(0.45 < float(number) < 0.55 for number in numbers.groups())
    assert rest.endswith("The same on large: not recorded yet.")


def test_no_answer_is_given_before_a_test_was_read():
    few = study_of(tuning() + main(seeds=2))
    assert headline(few) == ""


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("is_answered", [False, True])
def test_the_first_picture_can_be_read_on_a_phone(theme, is_answered, study):
    found = {"small": levers(3, 1.5, 2), "large": levers(30, 0.25, 1.5)}
    drawing = refresh_readme.poster(theme, found, {"small": study} if is_answered else {})
    for text in ElementTree.fromstring(str(drawing)).iter("{http://www.w3.org/2000/svg}text"):
        size, x = float(text.get("font-size")), float(text.get("x"))
        width = len(text.text) * size * 0.62
        assert size * 358 / drawing.width >= 11
        assert (x - width if text.get("text-anchor") == "end" else x) > 0 and x < drawing.width
        assert text.get("text-anchor") != "start" or x + width <= drawing.width, text.text


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
    entries = recorded_claims()
    mini = weight_hash(load_model(TINY.model, device="cpu"))
    assert [e.id for e in entries] == [c for c in CLAIMS if c in {e.id for e in entries}]
    assert {f"C{i}" for i in range(1, 16)} <= {e.id for e in entries}
    assert {e.first.verdict for e in entries} <= set(VERDICTS)
    verdicts = [v for e in entries for v in e.verdicts]
    assert all(v.model_hash == mini for v in verdicts if v.model == TINY.model_name)


def test_the_recorded_verdicts_are_those_of_the_scoreboard():
    entries = recorded_claims()
    assert published(entries) == entries, "the evidence says something else by now; run: course results"
    text = refresh_readme.RECORDED.read_text("utf-8")
    assert text == json.dumps([e.as_json() for e in entries], indent=1) + "\n", (
        "read and written, it stays as it is"
    )


def test_a_note_is_made_of_short_sentences():
    """Plain words for readers in a second language: no sentence of more than 40 words."""
    for entry in recorded_claims():
        for verdict in entry.verdicts:
            parts = re.split(r"(?<=[^\d])\. |\. (?=[A-Z\d(])", verdict.note)
            assert max(len(part.split()) for part in parts) <= 40, f"{entry.id}: {verdict.note}"


def test_texts_have_their_names_in_what_a_reader_reads():
    """A key such as `alice` is for code; lines of code in README are left out."""
    prose = re.sub(r"```.*?```|`[^`]*`", "", README, flags=re.DOTALL)
    results = re.sub(r"`[^`]*`", "", (ROOT / "results" / "README.md").read_text("utf-8"))
    assert not re.findall(r"\b(?:alice|edgar|carroll|poe)\b", prose + results)


def test_a_new_miniature_would_make_the_evidence_stale():
    runs = read_runs(RUNS)
    mini = weight_hash(load_model(TINY.model, device="cpu"))
    assert runs and all(r.model_hash == mini for r in runs), "record the evidence again: course study first"
    style = read_record(ROOT / "data" / "evidence" / "style.json")
    assert style["model_hash"] == mini


def test_at_least_three_seeds_and_every_proof_passed():
    runs = read_runs(RUNS)
    for plan in ("full", "attention+embeddings", "only-attention", "only-mlp-out"):
        for text in ("alice", "edgar"):
            own = [r for r in runs if r.plan == plan and r.text == text and "keep" in r.rate_choice]
            assert len({r.seed for r in own}) >= 3, (plan, text)
    assert all(r.proof_ok for r in runs)


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
        assert None not in [getattr(run, name) for name in needed]
