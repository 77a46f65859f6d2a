"""Claims, predictions and bands: never a verdict without a number."""

import json

import pytest

from helpers import claims
from helpers.claims import (
    ClaimError,
    claims_table,
    in_band,
    load_claims,
    predict,
    prediction_ledger,
    record,
    reveal,
)


@pytest.fixture(autouse=True)
def own_build(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_BUILD", str(tmp_path))
    return tmp_path


def note(claim="C4", verdict="does not hold", **changes):
    return record(claim, verdict, **{"value": 0.774, "unit": "of all parameters", "model": "gpt-neo-125M",
                                     "model_hash": "h", "n_seeds": 0, "source": "live", "note": "R", **changes})


def test_a_verdict_is_written_whole_and_printed_in_one_line(own_build, capsys):
    note(low=0.7, high=0.8)
    entry = json.loads((own_build / "claims" / "C4.json").read_text())
    assert {"id", "verdict", "value", "low", "high", "unit", "model", "model_hash", "n_seeds", "source",
            "notebook"} <= set(entry)
    assert capsys.readouterr().out == "C4 does not hold: R\n"


@pytest.mark.parametrize("claim, verdict, changes, words", [
    ("C99", "holds", {}, "C99.*C1, C2"), ("C4", "true", {}, "holds in part"),
    ("C4", "holds", {"value": None}, "number"),
    ("C4", "holds", {"source": "memory"}, "recorded")])
def test_what_is_no_verdict_is_refused(claim, verdict, changes, words):
    with pytest.raises(ClaimError, match=words):
        note(claim, verdict, **changes)


def test_untested_needs_no_number():
    assert note("C11", "not tested here", value=None)["value"] is None


def test_a_verdict_on_another_model_stands_under_the_same_claim(capsys):
    other = {"verdict": "holds", "value": 0.5, "unit": "x", "model": "another", "model_hash": "h", "n_seeds": 3,
             "source": "recorded", "note": "seen"}
    entry = note(also=[other])
    assert [row["model"] for row in claims.on_models(entry)] == ["gpt-neo-125M", "another"]
    assert capsys.readouterr().out.splitlines()[1] == "C4 holds (on another): seen"
    assert "another, 3 seeds, recorded" in claims_table(load_claims())
    with pytest.raises(ClaimError, match="number"):
        note(also=[other | {"value": None}])


def test_claims_come_back_in_the_articles_order_and_the_table_names_each(own_build):
    note("C10"), note("C2")
    entries = load_claims()
    assert [e["id"] for e in entries] == ["C2", "C10"]
    table = claims_table(entries)
    assert "C2" in table and "does not hold" in table and max(map(len, table.splitlines())) <= 110
    assert claims_table([]) == "No claim has been measured yet."


def test_a_prediction_is_kept_and_set_beside_the_measurement(capsys):
    predict("C4", 0.5, 0.4, 0.6)
    reveal("C4", 0.774, article="0.5")
    out = capsys.readouterr().out
    assert "you: 0.5 (0.4 to 0.6)" in out and "Which assumption" in out and "wrong" not in out
    ledger = prediction_ledger([note("C4")])
    assert list(ledger["in your range"]) == [False]


def test_a_result_that_no_claim_is_about_is_predicted_by_its_notebook(capsys):
    predict("00-gain", 0.3, 0.1, 0.6)
    reveal("00-gain", 0.2, "nats a token")
    assert "you: 0.3 (0.1 to 0.6) | measured: 0.2 nats a token" in capsys.readouterr().out
    assert len(prediction_ledger([note("C4")])) == 0
    for name in ("gain", "0-gain", "00-", "C99"):
        with pytest.raises(ClaimError, match="not known"):
            predict(name, 0.3)


def test_a_computed_number_is_not_called_measured(capsys):
    reveal("C12", 0.832, "of full training's time", how="predicted")
    out = capsys.readouterr().out
    assert "| predicted: 0.832 of full" in out and "measured" not in out


def test_no_prediction_lets_everything_go_on(capsys):
    predict("C4", None)
    reveal("C4", 0.774)
    assert "no prediction" in capsys.readouterr().out
    assert len(prediction_ledger([note("C4")])) == 0


def test_a_range_that_misses_its_own_value_is_refused():
    with pytest.raises(ClaimError, match="order"):
        predict("C4", 0.5, 0.6, 0.4)


def test_a_band_prints_the_same_for_every_value_inside_it(capsys):
    assert in_band("fall", 0.1234, 0.1, 0.2, "nats") and in_band("fall", 0.1999, 0.1, 0.2, "nats")
    first, second = capsys.readouterr().out.splitlines()
    assert first == second == "fall: between 0.1 and 0.2 nats"
    assert not in_band("fall", 0.3, 0.1, 0.2, "nats")
    assert "outside" in capsys.readouterr().out


def test_every_claim_names_a_notebook_of_the_plan():
    assert list(claims.CLAIMS) == [f"C{i}" for i in range(1, 16)]
