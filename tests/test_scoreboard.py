"""From records to verdicts: built records whose answer is known."""

import json

import numpy as np
import pytest

import print_scoreboard
from helpers.claims import record
from helpers.comparison import forgetting_at, forgetting_without_blocks
from helpers.decisions import FAILS, HOLDS, IN_PART, UNDECIDED
from helpers.plans import COURSE_PLANS
from helpers.scoreboard import Evidence, forgetting_findings, read_evidence, scoreboard, swap_contrasts

PLANS = ("full", "attention+embeddings", "only-attention", "only-mlp-out")
TESTS = {"alice": 28, "edgar": 23, "plain": 24, "carroll": 100, "poe": 100}


def a_run(rng, plan, text, seed, slope=0.5, own=0.10, loss=3.4, top=0.15, plain=3.5):
    """A record: forgetting is ``slope`` times the gain; the own author is ``own`` nats better."""
    windows = rng.normal(1, 0.1, 24)
    factor = slope * (1 + rng.normal(0, 0.02))
    points = [{"step": 8 * i, "gain": g, "train_loss": 3.5 - g, "held_out_loss": 3.6 - g,
               "forgetting": float(factor * g * windows.mean()), "forgetting_windows": list(factor * g * windows)}
              for i, g in enumerate(np.linspace(0, top, 9))]
    author = {"alice": ("alice", "carroll"), "edgar": ("edgar", "poe")}[text]
    tests = {t: list(loss - (own if t in author else 0) + (plain - loss if t == "plain" else 0)
                     + np.linspace(-0.1, 0.1, n) + rng.normal(0, 0.001, n)) for t, n in TESTS.items()}
    calm = {"median": 1.0, "largest": 2.0, "spikes": 0.0, "quarters": 0.9}
    swap = {role: {t: 3.4 - (share * own if t == text else 0) for t in ("alice", "edgar")}
            for role, share in (("attention", 0.3), ("mlp", 0.5), ("all", 1.0))}
    return {"plan": COURSE_PLANS[plan].slug, "text": text, "seed": seed, "rate_choice": "keep and learn",
            "model_hash": "m", "text_hash": text, "retention_hash": "r", "batch": 8, "length": 256,
            "evaluations": points, "swap": swap, "test_windows": tests, "function_windows": tests, "best_step": 64,
            "gradient_norms": {"total": calm, "mlp+norm": calm}}


def evidence(slopes=None, own=None, seeds=5, level=0.12, table=(), **changes):
    rng = np.random.default_rng(0)
    slopes, own = slopes or {}, own or {}
    runs = [a_run(rng, p, t, s, slopes.get(p, 0.5), own.get(p, 0.10), **changes.get(p, {}))
            for p in PLANS for t in ("alice", "edgar") for s in range(seeds)]
    rates = {"matched_gain": {"alice": level, "edgar": level}, "smallest_forgetting": {"alice": 0.01, "edgar": 0.01},
             "table": list(table)}
    return Evidence("a model", runs, [], rates)


def verdict(found, claim):
    return next(e["verdict"] for e in scoreboard(found) if e["claim"] == claim)


def test_the_jackknife_reads_the_level_again_without_each_block():
    a, b = ([a_run(np.random.default_rng(i), "full", "alice", 0, slope)] for i, slope in ((1, 0.5), (2, 0.3)))

    def without(run, window):
        return [{**e, "forgetting": float(np.delete(e["forgetting_windows"], window).mean())}
                for e in run["evaluations"]]

    slow = [forgetting_at(without(a[0], w), 0.07) - forgetting_at(without(b[0], w), 0.07) for w in range(24)]
    fast = forgetting_without_blocks(a[0], 0.07) - forgetting_without_blocks(b[0], 0.07)
    assert fast == pytest.approx(slow, abs=1e-9)


def test_less_forgetting_of_the_main_plan_is_seen_and_equal_forgetting_is_not_called_less():
    assert verdict(evidence({"attention+embeddings": 0.25}), "C10") == HOLDS
    assert verdict(evidence(), "C10") == FAILS
    assert verdict(evidence({"attention+embeddings": 0.8}), "C10") == FAILS


def test_a_level_that_is_not_reached_is_named_and_limits_the_verdict():
    found = evidence({"attention+embeddings": 0.25}, **{"attention+embeddings": {"top": 0.10}})
    entry = next(e for e in scoreboard(found) if e["claim"] == "C10")
    assert entry["verdict"] == IN_PART and "at 65% of full training's gain" in entry["note"]
    low = evidence({"attention+embeddings": 0.25}, **{"attention+embeddings": {"top": 0.03}})
    entry = next(e for e in scoreboard(low) if e["claim"] == "C10")
    assert entry["verdict"] == UNDECIDED and entry["value"] is None and "not comparable" in entry["note"]


def test_a_sign_that_turns_with_the_rate_limits_the_verdict():
    table = [{"plan": p, "text": t, "rate": r, "forgetting_at_level": f} for t in ("alice", "edgar")
             for p, r, f in (("full", 1e-4, 0.05), ("full", 3e-4, 0.10), ("attention+embeddings", 1e-4, 0.08),
                             ("attention+embeddings", 3e-4, 0.06), ("full", 3e-5, None))]
    found = forgetting_findings(evidence({"attention+embeddings": 0.25}, table=table))
    assert all("the sign depends on the rate" in f.limits for f in found)
    assert verdict(evidence({"attention+embeddings": 0.25}, table=table), "C10") == IN_PART


def test_ordinary_prose_can_contradict_forgetting_and_then_nothing_is_decided():
    found = evidence({"attention+embeddings": 0.25}, **{"attention+embeddings": {"plain": 3.6}})
    assert verdict(found, "C10") == UNDECIDED


def test_quality_is_equal_within_two_hundredths_on_every_test():
    assert verdict(evidence(), "C13") == HOLDS
    assert verdict(evidence(**{"attention+embeddings": {"loss": 3.45}}), "C13") == FAILS


def test_style_needs_ratio_and_primary_test_and_is_in_part_at_most():
    assert verdict(evidence(own={"only-attention": 0.05}), "C14") == IN_PART
    worse = evidence(own={"attention+embeddings": 0.05, "only-mlp-out": 0.05})
    assert verdict(worse, "C14") == FAILS


def test_a_run_that_diverged_does_not_stop_the_scoreboard():
    found = evidence({"attention+embeddings": 0.25})
    found.runs[0].update(diverged="at step 3", test_windows={}, evaluations=found.runs[0]["evaluations"][:1])
    on_alice, on_edgar = forgetting_findings(found)
    assert (on_alice.verdict, on_edgar.verdict) == (UNDECIDED, HOLDS), "it counts as not reaching the level"
    assert verdict(found, "C10") == IN_PART and verdict(found, "C13") == HOLDS


def test_swaps_give_the_style_contrast_of_each_role():
    assert swap_contrasts(evidence()) == {"attention": pytest.approx(0.03), "mlp": pytest.approx(0.05),
                                          "all": pytest.approx(0.1)}


def test_the_script_prints_what_the_records_say_and_the_entries_can_be_recorded(tmp_path, capsys, monkeypatch):
    found = evidence({"attention+embeddings": 0.25})
    place = tmp_path / "runs" / "gpt-neo-mini"
    place.mkdir(parents=True)
    for i, run in enumerate(found.runs):
        (place / f"{i}.json").write_text(json.dumps(run))
    (tmp_path / "rates.json").write_text(json.dumps(found.rates))
    monkeypatch.setenv("COURSE_BUILD", str(tmp_path / "build"))
    assert print_scoreboard.main(["--folder", str(tmp_path), "--write"]) == 0
    said = capsys.readouterr().out
    assert "| C10 |" in said and "**holds**" in said and "of 5 runs reach the level" in said
    entries = json.loads((tmp_path / "scoreboard-tiny.json").read_text())
    assert [e["claim"] for e in entries] == ["C9", "C10", "C13", "C14"]
    assert read_evidence("gpt-neo-mini", tmp_path).has_real_authors
    assert record(**entries[1])["verdict"] == HOLDS


def test_without_records_the_script_says_how_to_get_them(tmp_path):
    with pytest.raises(SystemExit, match="make evidence"):
        print_scoreboard.main(["--folder", str(tmp_path)])
