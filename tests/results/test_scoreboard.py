"""From records to verdicts: built records whose answer is known."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest

from helpers.measuring.comparison import forgetting_at, forgetting_without_blocks
from helpers.measuring.decisions import FAILS, FEW, HOLDS, IN_PART, UNDECIDED, UNTESTED
from helpers.results.claims import ClaimError, Entry, Verdict, record_entry, sentence_case
from helpers.results.evidence import (
    Evidence,
    forgetting_findings,
    read_evidence,
    studied_models,
    swap_contrasts,
)
from helpers.results.verdicts import newest, published, scoreboard, scoreboard_table, weakest
from support.records import a_long_run, a_run, change, evidence, forgot_times, row_of
from support.said import course


def verdict(found, claim):
    return next(e.verdict for e in scoreboard(found) if e.claim == claim)


def test_the_jackknife_reads_the_level_again_without_each_block():
    a, b = ([a_run(np.random.default_rng(i), "full", "alice", 0, slope)] for i, slope in ((1, 0.5), (2, 0.3)))

    def without(run, window):
        return [
            replace(e, forgetting=float(np.delete(e.forgetting_windows, window).mean()))
            for e in run.evaluations
        ]

    slow = [forgetting_at(without(a[0], w), 0.07) - forgetting_at(without(b[0], w), 0.07) for w in range(24)]
    fast = forgetting_without_blocks(a[0], 0.07) - forgetting_without_blocks(b[0], 0.07)
    assert fast == pytest.approx(slow, abs=1e-9)


def test_less_forgetting_of_the_main_plan_is_seen_and_equal_forgetting_is_not_called_less():
    assert verdict(evidence({"attention+embeddings": 0.25}), "C10") == HOLDS
    assert verdict(evidence(), "C10") == FAILS
    assert verdict(evidence({"attention+embeddings": 0.8}), "C10") == FAILS


def test_a_level_that_is_not_reached_is_named_and_limits_the_verdict():
    found = evidence({"attention+embeddings": 0.25}, **{"attention+embeddings": {"top": 0.10}})
    entry = next(e for e in scoreboard(found) if e.claim == "C10")
    assert entry.verdict == IN_PART and "At 65% of full training's gain" in entry.note
    low = evidence({"attention+embeddings": 0.25}, **{"attention+embeddings": {"top": 0.03}})
    entry = next(e for e in scoreboard(low) if e.claim == "C10")
    assert entry.verdict == UNDECIDED and entry.value is None and "Not comparable" in entry.note


def test_a_sign_that_turns_with_the_rate_limits_the_verdict():
    table = [
        {"plan": p, "text": t, "rate": r, "forgetting_at_level": f}
        for t in ("alice", "edgar")
        for p, r, f in (
            ("full", 1e-4, 0.05),
            ("full", 3e-4, 0.10),
            ("attention+embeddings", 1e-4, 0.08),
            ("attention+embeddings", 3e-4, 0.06),
            ("full", 3e-5, None),
        )
    ]
    found = forgetting_findings(evidence({"attention+embeddings": 0.25}, table=table))
    assert all("the sign depends on the rate" in f.limits for f in found)
    assert verdict(evidence({"attention+embeddings": 0.25}, table=table), "C10") == IN_PART


def test_ordinary_prose_can_contradict_forgetting_and_then_nothing_is_decided():
    found = evidence({"attention+embeddings": 0.25}, **{"attention+embeddings": {"plain": 3.6}})
    assert verdict(found, "C10") == UNDECIDED


def test_quality_is_equal_where_nine_tenths_of_the_gain_are_gained_on_every_test():
    assert verdict(evidence(), "C13") == HOLDS
    assert verdict(evidence(**{"attention+embeddings": {"loss": 3.45}}), "C13") == FAILS


def test_style_needs_ratio_and_primary_test_and_is_in_part_at_most():
    assert verdict(evidence(own={"only-attention": 0.05}), "C14") == IN_PART
    worse = evidence(own={"attention+embeddings": 0.05, "only-mlp-out": 0.05})
    assert verdict(worse, "C14") == FAILS


def test_a_run_that_diverged_does_not_stop_the_scoreboard():
    found = evidence({"attention+embeddings": 0.25})
    first = found.runs[0]
    found.runs[0] = replace(first, diverged="at step 3", test_windows={}, evaluations=first.evaluations[:1])
    on_alice, on_edgar = forgetting_findings(found)
    assert (on_alice.verdict, on_edgar.verdict) == (UNDECIDED, HOLDS), "it counts as not reaching the level"
    assert verdict(found, "C10") == IN_PART
    c13 = next(e for e in scoreboard(found) if e.claim == "C13")
    assert c13.verdict == IN_PART and "1 run diverged and could not be compared" in c13.note


@pytest.mark.parametrize("n_broken, wanted", [(0, IN_PART), (2, UNDECIDED)])
def test_a_run_that_diverged_was_not_stable(n_broken, wanted):
    found = evidence()
    main = [i for i, r in enumerate(found.runs) if r.plan == "attention+embeddings"]
    for i in main[:n_broken]:
        found.runs[i] = replace(found.runs[i], diverged="at step 3", test_windows={})
    entry = next(e for e in scoreboard(found) if e.claim == "C9")
    assert entry.verdict == wanted and f"{10 - n_broken} of 10 runs stable" in entry.note


def test_a_text_with_two_seeds_decides_nothing_beside_one_with_five():
    found = evidence({"attention+embeddings": 0.25})
    found.runs[:] = [r for r in found.runs if r.text == "alice" or r.seed < 2]
    for claim in ("C10", "C13"):
        entry = next(e for e in scoreboard(found) if e.claim == claim)
        assert entry.verdict == IN_PART and sentence_case(FEW) in entry.note
    assert verdict(found, "C14") == UNDECIDED, "style needs both texts, and has two seeds"


def test_each_test_is_named_with_its_own_verdict():
    found = evidence({"attention+embeddings": 0.25})
    found.runs[:] = [r for r in found.runs if r.text == "alice"]
    notes = {e.claim: e.note for e in scoreboard(found)}
    assert re.search(r"Alice -0\.029 \[[^]]+\] \(holds\), Edgar \(not decided\)\.", notes["C10"])
    one = r"1\.0 \[1\.0, 1\.0\] \(holds\)"
    assert re.search(rf"Alice {one}, Carroll {one}, Edgar and Poe \(not decided\)", notes["C13"])
    assert "missing" in notes["C14"]


def test_of_tests_that_speak_equally_little_for_a_claim_the_number_is_that_of_the_one_farther_from_it():
    found = evidence({"attention+embeddings": 0.65})
    # on edgar both forget twice as much, and so does the difference
    change(found.runs, lambda r: forgot_times(r, 2), text="edgar")
    on_alice, on_edgar = forgetting_findings(found)
    assert on_alice.p == on_edgar.p == 1 and weakest([on_alice, on_edgar], "lower") is on_edgar
    entry = next(e for e in scoreboard(found) if e.claim == "C10")
    assert entry.value == pytest.approx(on_edgar.interval.mean)


def test_tests_that_are_decided_and_differ_say_so():
    found = evidence()

    def worse(run):
        return replace(run, test_windows={t: [x + 0.05 for x in own] for t, own in run.test_windows.items()})

    change(found.runs, worse, "attention+embeddings", "alice")
    entry = next(e for e in scoreboard(found) if e.claim == "C13")
    assert entry.verdict == UNDECIDED and "The tests disagree" in entry.note
    assert "Alice 0.83 [0.83, 0.83] (does not hold)" in entry.note
    assert "Edgar 1.0 [1.0, 1.0] (holds)" in entry.note


def test_a_rate_that_learns_best_at_the_upper_edge_is_named():
    rows = [
        {"plan": p, "text": "alice", "rate": r, "forgetting_at_level": 0.1}
        for p in ("full", "attention+embeddings")
        for r in (3e-5, 1e-4, 3e-4)
    ]
    found = evidence(table=rows)
    found.rates["chosen"] = {
        p: {"alice": {"keep": 3e-5, "learn": rate}}
        for p, rate in (("full", 1e-4), ("attention+embeddings", 3e-4))
    }
    note = next(e.note for e in scoreboard(found) if e.claim == "C13")
    assert "The highest rate tried is the best for the main plan on Alice" in note


def test_what_full_training_forgot_stands_beside_the_border_of_catastrophic_at_other_rates_too():
    note = next(e.note for e in scoreboard(evidence({"full": 0.5})) if e.claim == "C10")
    assert (
        "Full training forgot at most 0.08 nats at its best gain with the rates compared. The protocol says "
        "catastrophic from 0.5 on."
    ) in note
    rows = [{"plan": "full", "text": "edgar", "rate": 3e-4, "forgetting_at_level": 0.574}]
    note = next(e.note for e in scoreboard(evidence({"full": 0.5}, table=rows)) if e.claim == "C10")
    assert "with the rates compared, and at another rate up to 0.57 at the level. The" in note


def test_rates_with_nothing_slower_that_reached_the_level_are_counted():
    at = {"full": {1e-5: None, 3e-5: 0.1, 1e-4: 0.2}, "attention+embeddings": {3e-5: 0.1, 1e-4: 0.09}}
    rows = [
        {"plan": plan, "text": "alice", "rate": rate, "forgetting_at_level": f}
        for plan, tried in at.items()
        for rate, f in tried.items()
    ]
    found = evidence(table=rows)
    assert "lowest tried" not in next(e for e in scoreboard(found) if e.claim == "C10").note
    found.rates["chosen"] = {
        "full": {"alice": {"keep": 3e-5}},
        "attention+embeddings": {"alice": {"keep": 1e-4}},
    }
    assert (
        "1 of 2 rates compared are the lowest" in next(e for e in scoreboard(found) if e.claim == "C10").note
    )


@pytest.mark.parametrize(
    "falling, levelling, wanted",
    [
        ((True,) * 3, (True,) * 3, IN_PART),
        ((False,) * 3, (True,) * 3, FAILS),
        ((True, True, False), (True,) * 3, UNDECIDED),
        ((True,) * 3, (False,) * 3, UNDECIDED),
        ((True,) * 3, (True, True, False), UNDECIDED),
    ],
)
def test_convergence_follows_the_rule_of_notebook_04_and_says_within_how_many_steps(
    falling, levelling, wanted
):
    long = [a_long_run(seed, *both) for seed, both in enumerate(zip(falling, levelling, strict=True))]
    entry = next(
        e for e in scoreboard(Evidence("a model", evidence().runs, long, evidence().rates)) if e.claim == "C8"
    )
    assert entry.verdict == wanted and "within 640 steps" in entry.note and entry.n_seeds == 3
    assert entry.high == (100 if any(falling) else entry.value), "in percent, as notebook 04 has it"
    assert ("More seeds alone would not decide" in entry.note) == (wanted == UNDECIDED)


def row(claim, verdict=IN_PART, value=1.0, model="a model", source="live"):
    where = {"model": model, "model_hash": "", "n_seeds": 1, "source": source}
    return Entry((Verdict(claim, verdict, value=value, unit="x", **where),))


def test_a_live_verdict_on_another_model_stands_beside_the_recorded_one_and_on_the_same_in_its_place():
    both = newest([row("C15", model="gpt-neo-mini")], [row("C15", value=2.0, model="smollm2")])
    assert [(v.model, v.value) for v in both[0].verdicts] == [("gpt-neo-mini", 1.0), ("smollm2", 2.0)]
    again = newest(both, [row("C15", value=3.0, model="gpt-neo-mini")])
    assert [(v.model, v.value) for v in again[0].verdicts] == [
        ("gpt-neo-mini", 3.0),
        ("smollm2", 2.0),
    ]
    (c15,) = (e for e in published(again) if e.id == "C15")
    assert [v.value for v in c15.verdicts] == [3, 2]


def test_a_live_verdict_leaves_the_other_claims_and_their_order():
    found = newest(
        [row("C10", HOLDS, source="recorded"), row("C4", HOLDS, source="recorded")], [row("C10", FAILS)]
    )
    assert [(e.id, e.first.verdict) for e in found] == [("C4", HOLDS), ("C10", FAILS)]


def test_swaps_give_the_style_contrast_of_each_role():
    assert swap_contrasts(evidence()) == {
        "attention": pytest.approx(0.03),
        "mlp": pytest.approx(0.05),
        "all": pytest.approx(0.1),
    }


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Writes evidence of a model as the study does; the reader's own build folder is out of the way."""
    monkeypatch.setenv("COURSE_BUILD", str(tmp_path / "build"))

    def write(found, model="gpt-neo-mini", rates="rates.json"):
        place = tmp_path / "evidence" / "runs" / model
        place.mkdir(parents=True)
        for i, run in enumerate(found.runs):
            (place / f"{i}.json").write_text(json.dumps(row_of(run)))
        (tmp_path / "evidence" / rates).write_text(json.dumps(found.rates))
        return tmp_path / "evidence"

    return write


def test_the_script_prints_what_the_records_say_and_the_entries_can_be_recorded(folder, capsys):
    place = folder(evidence({"attention+embeddings": 0.25}))
    assert course("study", "verdicts", "--folder", place) == 0
    said = capsys.readouterr().out
    assert "C10 ✓ holds" in " ".join(said.split()) and "of 5 runs reach the level" in said
    found = read_evidence("gpt-neo-mini", place)
    assert found.has_real_authors
    entries = scoreboard(found)
    assert [e.claim for e in entries] == ["C9", "C10", "C13", "C14"]
    assert record_entry(Entry((entries[1],))).first.verdict == HOLDS


def test_without_records_the_script_says_how_to_get_them(tmp_path):
    with pytest.raises(ClaimError, match="course study first"):
        course("study", "verdicts", "--folder", tmp_path)


# --- a study that is still growing -------------------------------------------------


def without(found, keep):
    return replace(found, runs=[r for r in found.runs if keep(r)])


@pytest.mark.parametrize("gone", [("only-attention",), ("only-mlp-out",), ("only-attention", "only-mlp-out")])
def test_a_plan_that_was_not_run_leaves_the_other_verdicts_as_they_are(gone):
    found = without(evidence({"attention+embeddings": 0.25}), lambda r: r.plan not in gone)
    assert verdict(found, "C10") == verdict(found, "C13") == HOLDS
    entry = next(e for e in scoreboard(found) if e.claim == "C14")
    assert entry.verdict == IN_PART and "No pairs of runs of MLP and attention" in entry.note


def test_a_text_that_was_not_run_leaves_open_what_must_hold_on_both():
    found = without(evidence({"attention+embeddings": 0.25}), lambda r: r.text == "alice")
    entries = {e.claim: e for e in scoreboard(found)}
    assert entries["C10"].verdict == IN_PART and entries["C13"].verdict == IN_PART
    assert "No pairs of runs on Edgar yet" in entries["C10"].note
    assert entries["C14"].verdict == UNDECIDED and entries["C14"].value is None
    assert "The missing runs would have to be recorded" in entries["C14"].note
    assert record_entry(Entry((entries["C14"],))).first.value is None


def test_without_the_plans_of_a_claim_there_is_no_entry_and_no_error():
    only_full = without(evidence(), lambda r: r.plan == "full")
    assert scoreboard(only_full) == []
    assert scoreboard(Evidence("a model", [], [], only_full.rates)) == []


def test_a_seed_that_one_plan_lacks_is_no_pair():
    found = without(evidence({"attention+embeddings": 0.25}), lambda r: (r.plan, r.seed) != ("full", 4))
    entry = next(e for e in scoreboard(found) if e.claim == "C10")
    assert (entry.verdict, entry.n_seeds) == (HOLDS, 4)


def test_below_three_seeds_nothing_is_decided():
    for entry in scoreboard(evidence({"attention+embeddings": 0.25}, seeds=2)):
        assert entry.verdict == UNDECIDED and "Below 3 seeds nothing is decided" in entry.note


def test_what_is_open_says_how_many_seeds_would_decide():
    rng = np.random.default_rng(1)
    found = evidence(seeds=3)
    # forgetting that scatters from seed to seed
    change(found.runs, lambda r: forgot_times(r, 1 + rng.normal(0, 0.25)))
    entry = next(e for e in scoreboard(found) if e.claim == "C10")
    assert entry.verdict == UNDECIDED and "seeds would decide" in entry.note


# --- several models, and the notebooks' own verdicts -------------------------------


def live(claim, model="gpt-neo-mini", verdict=HOLDS):
    where = {"model": model, "model_hash": "h", "n_seeds": 1, "source": "live", "note": "seen"}
    return Entry((Verdict(claim, verdict, value=1.0, unit="x", **where),))


def test_each_model_that_was_studied_has_its_own_verdict_and_number_of_seeds(folder):
    folder(evidence({"attention+embeddings": 0.25}))
    place = folder(evidence(seeds=3), "smollm2-135m-instruct", "rates-smollm2.json")
    assert studied_models(place) == ["gpt-neo-mini", "smollm2-135m-instruct"]
    entry = next(e for e in published(folder=place) if e.id == "C10")
    assert [(v.model, v.verdict, v.n_seeds) for v in entry.verdicts] == [
        ("gpt-neo-mini", HOLDS, 5),
        ("smollm2-135m-instruct", FAILS, 3),
    ]
    rows = [line for line in scoreboard_table([entry]).splitlines() if line.startswith("| C10")]
    assert "gpt-neo-mini, 5 seeds" in rows[0] and "smollm2-135m-instruct, 3 seeds" in rows[1]


def test_the_study_leads_and_one_run_of_the_same_model_gives_way(folder):
    place = folder(evidence())
    table = {e.id: e for e in published([live("C4"), live("C9"), live("C15")], place)}
    assert list(table) == ["C4", "C9", "C10", "C13", "C14", "C15"]
    assert [(v.source, v.n_seeds) for v in table["C9"].verdicts] == [("recorded", 5)]
    beside = {e.id: e for e in published([live("C9", "another model")], place)}["C9"]
    assert [v.model for v in beside.verdicts] == ["gpt-neo-mini", "another model"]


def test_memory_seen_on_a_cpu_leaves_the_claim_untested_until_a_gpu_tests_it(tmp_path):
    point = {"batch": 4, "length": 512}
    record = {
        "setting": {"device": "cpu"},
        "times": [],
        "points": [
            point | {"plan": "full", "predicted": {"all": 200}, "measured": {"all": 210}},
            point | {"plan": "attention+embeddings", "predicted": {"all": 170}, "measured": {"all": 168}},
        ],
    }
    (tmp_path / "memory.json").write_text(json.dumps(record))
    (entry,) = published(folder=tmp_path)
    assert (entry.id, entry.first.verdict, entry.first.model) == ("C11", UNTESTED, "gpt-neo-125M")
    assert entry.first.value == pytest.approx(20) and "on a CPU, not measured on a GPU" in entry.first.note
    (foreseen,) = published([live("C11", "gpt-neo-125M", UNTESTED)], tmp_path)
    assert foreseen == entry, "a measurement leads before what was only predicted"
    (on_gpu,) = published([live("C11", "gpt-neo-125M", FAILS)], tmp_path)
    assert [v.verdict for v in on_gpu.verdicts] == [FAILS]
    record["setting"]["device"] = "cuda"
    (tmp_path / "memory.json").write_text(json.dumps(record))
    assert published(folder=tmp_path)[0].first.verdict == FAILS, "20% is less than the claimed 25 to 30%"
    (tmp_path / "memory.json").write_text(json.dumps(record | {"points": record["points"][:1]}))
    assert published(folder=tmp_path) == []


def test_a_published_table_stays_as_it_is_when_it_is_published_again(folder):
    place = folder(evidence())
    once = published([live("C4"), live("C9", "another model")], place)
    assert published(once, place) == once
