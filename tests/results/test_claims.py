"""Claims, predictions and bands: never a verdict without a number."""

import configparser
import json
import math
import os
import re
import subprocess
import sys

import nbformat
import numpy as np
import pytest
import torch

from helpers.lessons import predicting
from helpers.lessons.predicting import held, in_band, predict, reveal
from helpers.profiles import ROOT
from helpers.results import claims
from helpers.results.cards import claim_cards
from helpers.results.claims import ClaimError, Entry, Verdict, load_claims, record, record_entry
from support.said import sayings


@pytest.fixture(autouse=True)
def own_build(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_BUILD", str(tmp_path))
    return tmp_path


def note(claim="C4", verdict="does not hold", **changes):
    return record(
        claim,
        verdict,
        **{
            "value": 0.774,
            "unit": "of all parameters",
            "model": "gpt-neo-125M",
            "model_hash": "h",
            "n_seeds": 0,
            "source": "live",
            "note": "R",
            **changes,
        },
    )


def test_a_verdict_is_written_whole_and_printed_in_one_line(own_build, capsys):
    note(low=0.7, high=0.8)
    entry = json.loads((own_build / "claims" / "C4.json").read_text())
    assert {
        "id",
        "verdict",
        "value",
        "low",
        "high",
        "unit",
        "model",
        "model_hash",
        "n_seeds",
        "source",
        "notebook",
    } <= set(entry)
    assert capsys.readouterr().out == "C4 does not hold: R\n"


@pytest.mark.parametrize(
    "claim, verdict, changes, words",
    [
        ("C99", "holds", {}, "C99.*C1, C2"),
        ("C4", "true", {}, "holds in part"),
        ("C4", "holds", {"value": None}, "number"),
        ("C4", "holds", {"source": "memory"}, "recorded"),
    ],
)
def test_what_is_no_verdict_is_refused(claim, verdict, changes, words):
    with pytest.raises(ClaimError, match=words):
        note(claim, verdict, **changes)


def test_untested_needs_no_number():
    assert note("C11", "not tested here", value=None).first.value is None


def test_a_verdict_on_another_model_stands_under_the_same_claim(capsys):
    other = {
        "value": 0.5,
        "unit": "x",
        "model": "another",
        "model_hash": "h",
        "n_seeds": 3,
        "source": "recorded",
    }
    entry = Entry((*note().verdicts, Verdict("C4", "holds", **other, note="seen")))
    capsys.readouterr()
    assert record_entry(entry) is entry
    assert capsys.readouterr().out.splitlines()[1] == "C4 holds (on another): seen"
    assert "another, 3 seeds, recorded" in str(claim_cards(load_claims()))
    assert load_claims() == [entry]
    with pytest.raises(ClaimError, match="number"):
        Verdict("C4", "holds", **(other | {"value": None}))


def test_a_note_of_several_sentences_has_a_line_for_each(capsys):
    note(note="The gain was 0.5. Two runs. More would help")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith(":") and lines[1:] == [
        "    The gain was 0.5.",
        "    Two runs.",
        "    More would help",
    ]


def test_claims_come_back_in_the_articles_order_and_the_table_names_each(own_build):
    note("C10"), note("C2")
    entries = load_claims()
    assert [e.id for e in entries] == ["C2", "C10"]
    assert "C2" in str(claim_cards(entries)) and "does not hold" in str(claim_cards(entries))
    assert str(claim_cards([])) == "No claim has been measured yet."


def test_a_prediction_is_kept_and_set_beside_the_measurement(capsys):
    predict("C4", 0.5, 0.4, 0.6)
    reveal("C4", 0.774, article="0.5")
    out = capsys.readouterr().out
    assert "you: 0.5 (0.4 to 0.6)" in out and "Which assumption" in out and "wrong" not in out
    assert held() == {"C4": False}


def test_a_result_that_no_claim_is_about_is_predicted_by_its_notebook(capsys):
    predict("00-gain", 0.3, 0.1, 0.6)
    reveal("00-gain", 0.2, "nats per token")
    assert "you: 0.3 (0.1 to 0.6) | measured: 0.2 nats per token" in capsys.readouterr().out
    assert held() == {"00-gain": True}
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
    assert held() == predicting.revealed() == {}


NOTHING, BARE = None, (None, None)


@pytest.mark.parametrize(
    ("arguments", "noted", "said"),
    [
        ((0.5, 0.4, 0.6), (0.4, 0.6), "80% sure of 0.4 to 0.6."),
        ((0.5, 0.6, 0.4), (0.4, 0.6), "stood the other way round"),
        ((0.5,), BARE, "without a range"),
        ((0.5, 0.4), BARE, "one is missing"),
        ((0.5, None, 0.6), BARE, "one is missing"),
        ((0.5, 0.5, 0.5), BARE, "both ends are the same"),
        ((0.5, 0.6, 0.7), BARE, "0.5 is not inside 0.6 to 0.7"),
        ((0.5, "low", "high"), BARE, "'low' is no number"),
        ((0.5, math.nan, 0.6), BARE, "NaN"),
        ((0.5, [0.4, 0.6], 1), BARE, "found 2"),
        (("0.5", "0.4", "0.6"), (0.4, 0.6), "you predict 0.5"),
        (("0,5",), NOTHING, "0.5 and not 0,5"),
        (("about half",), NOTHING, "'about half' is no number"),
        (("50%",), NOTHING, "without the sign"),
        (("",), NOTHING, "'' is no number"),
        ((math.nan, 0, 1), NOTHING, "NaN"),
        ((math.inf, 0, 1), NOTHING, "infinity"),
        ((10**400, 0, 1), NOTHING, "too large"),
        ((True,), NOTHING, "True is no number"),
        ((np.float32(0.5), np.float64(0.25), np.int64(1)), (0.25, 1), "80% sure of 0.25 to 1."),
        ((np.array([0.5]), torch.tensor(0.25), [1]), (0.25, 1), "80% sure of 0.25 to 1."),
        (([0.4, 0.6],), NOTHING, "one number is asked for, found 2"),
        (({"value": 0.5},), NOTHING, "type dict"),
        ((math.sqrt, 0.4, 0.6), NOTHING, "function"),
        ((NotImplemented,), NOTHING, "type NotImplementedType"),
        ((None,), NOTHING, "in place of None"),
        ((None, 0.4, 0.6), NOTHING, "in place of None"),
        ((...,), NOTHING, "in place of the three dots"),
        ((), NOTHING, "in place of the three dots"),
    ],
    ids=repr,
)
def test_whatever_is_predicted_one_line_says_what_was_understood(capsys, arguments, noted, said):
    predict("C4", *arguments)
    (line,) = sayings(capsys.readouterr().out)
    assert line.startswith("C4: ") and said in line
    kept = predicting.predictions().get("C4")
    assert (kept and (kept["low"], kept["high"])) == noted
    assert kept is None or kept["value"] == 0.5
    reveal("C4", 0.774)
    outside = "Outside your range" in capsys.readouterr().out
    assert outside == (noted == (0.4, 0.6)), "only a range can be missed"
    assert set(predicting.revealed()) == ({"C4"} if kept else set())
    assert held() == ({"C4": False} if noted == (0.4, 0.6) else {"C4": True} if noted == (0.25, 1) else {})


def test_none_takes_a_prediction_back_and_three_dots_leave_it(capsys):
    predict("C4", 0.5, 0.4, 0.6)
    predict("C12", 0.9)
    predict("C4", ...)
    assert "kept: 0.5 (0.4 to 0.6)" in capsys.readouterr().out and set(predicting.predictions()) == {
        "C4",
        "C12",
    }
    predict("C4", "about half")
    assert "Your earlier prediction, 0.5 (0.4 to 0.6), stays" in capsys.readouterr().out
    predict("C4", None)
    assert capsys.readouterr().out == "C4: your earlier prediction, 0.5 (0.4 to 0.6), is taken back.\n"
    assert set(predicting.predictions()) == {"C12"}


def test_a_new_prediction_replaces_the_earlier_one():
    predict("C4", 0.5, 0.4, 0.6)
    predict("C4", 0.7)
    assert predicting.predictions() == {"C4": {"value": 0.7, "low": None, "high": None}}


def test_the_first_prediction_of_a_fresh_clone_is_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_BUILD", str(tmp_path / "not" / "yet"))
    predict("00-gain", 0.3, 0.1, 0.6)
    assert predicting.predictions() == {"00-gain": {"value": 0.3, "low": 0.1, "high": 0.6}}


def test_only_ranges_that_were_revealed_count():
    predict("C4", 0.5)
    predict("C8", 0.7, 0.7 - 0.1, 0.8)
    predict("C9", 0.7, 0.6, 0.8)
    reveal("C4", 0.774)
    reveal("C8", 0.774)
    assert held() == {"C8": True}


# --- damaged files -----------------------------------------------------------------

GOOD = {"value": 0.5, "low": 0.4, "high": 0.6}
DAMAGE = [
    b"",
    b"3",
    b"null",
    b"[]",
    b'"text"',
    b'{"C4": {"value": 0.5, "lo',
    b"\xff\xfe",
    b"[" * 100_000,
    b'{"C4": 0.5}',
    b'{"C4": {"value": "text", "low": "text", "high": "text"}}',
    b'{"C4": {"value": 0.5}}',
    b'{"C4": {"value": NaN, "low": 0, "high": 1}}',
    b'{"C4": {"value": true, "low": null, "high": null}}',
    b'{"C4": {"value": 0.5, "low": 0.6, "high": 0.4}}',
    b'{"C4": {"value": 1' + b"0" * 400 + b"}}",
]


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda d: repr(d[:30]))
def test_damaged_predictions_are_put_aside_in_one_line_and_the_course_goes_on(own_build, capsys, damage):
    (own_build / "predictions.json").write_bytes(damage)
    assert predicting.predictions() == {}
    (line,) = capsys.readouterr().out.splitlines()
    assert (
        line.startswith("predictions.json in the build folder cannot be read")
        and "predictions.json.damaged" in line
    )
    assert (own_build / "predictions.json.damaged").read_bytes() == damage
    predict("C4", 0.5, 0.4, 0.6)
    reveal("C4", 0.5)
    assert "cannot be read" not in capsys.readouterr().out
    assert predicting.predictions() == {"C4": GOOD}


def test_what_can_be_read_of_damaged_predictions_is_kept(own_build, capsys):
    text = json.dumps({"C4": GOOD, "C8": {"value": "text", "low": 1, "high": 2}})
    (own_build / "predictions.json").write_text(text)
    for _ in range(2):
        assert predicting.predictions() == {"C4": GOOD}
    assert capsys.readouterr().out.count("What could be read is kept.") == 1
    assert (own_build / "predictions.json.damaged").read_text() == text


def test_a_second_damaged_file_does_not_replace_the_first(own_build):
    for content in (b"first", b"second"):
        (own_build / "predictions.json").write_bytes(content)
        predicting.predictions()
    assert (own_build / "predictions.json.damaged").read_bytes() == b"first"
    assert (own_build / "predictions.json.damaged-2").read_bytes() == b"second"


def test_a_folder_in_the_place_of_the_file_is_put_aside_too(own_build, capsys):
    (own_build / "predictions.json").mkdir()
    predict("C4", 0.5, 0.4, 0.6)
    assert predicting.predictions() == {"C4": GOOD}
    assert "cannot be read" in capsys.readouterr().out


def test_a_damaged_file_that_cannot_be_put_aside_stops_nothing(own_build, monkeypatch, capsys):
    (own_build / "predictions.json").write_text("null")
    monkeypatch.setattr(
        "os.replace", lambda *paths: (_ for _ in ()).throw(PermissionError(13, "Permission denied"))
    )
    predict("C4", 0.5, 0.4, 0.6)
    reveal("C4", 0.5)
    said = capsys.readouterr().out
    assert "cannot be put aside (Permission denied)" in said and "no prediction | measured" in said
    assert (own_build / "predictions.json").read_text() == "null"


def test_a_build_folder_that_cannot_be_written_stops_nothing(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("COURSE_BUILD", str(tmp_path / "file" / "build"))
    predict("C4", 0.5, 0.4, 0.6)
    assert note("C4").first.value == 0.774 and load_claims() == []
    said = capsys.readouterr().out
    assert "predictions.json could not be kept" in said and "C4.json could not be kept" in said


ROW = {
    "verdict": "holds",
    "value": 0.5,
    "low": None,
    "high": None,
    "unit": "",
    "model": "m",
    "model_hash": "h",
    "n_seeds": 0,
    "source": "live",
    "note": "",
}
WHOLE = ROW | {"id": "C4", "statement": "s", "notebook": "n"}


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"3",
        b"null",
        b"[]",
        b'{"id": "C4"',
        b"\xff",
        b"[" * 100_000,
        *(
            json.dumps({**WHOLE, **wrong}).encode()
            for wrong in (
                {"id": "C5"},
                {"verdict": "true"},
                {"verdict": []},
                {"value": "0.5"},
                {"value": None},
                {"value": math.nan},
                {"n_seeds": "3"},
                {"unit": None},
                {"also": 3},
                {"also": [3]},
                {"also": [{"verdict": "holds"}]},
            )
        ),
    ],
    ids=lambda d: repr(d[-40:]),
)
def test_a_damaged_verdict_is_put_aside_and_the_others_are_shown(own_build, capsys, damage):
    note("C10")
    (own_build / "claims" / "C4.json").write_bytes(damage)
    capsys.readouterr()
    assert [entry.id for entry in load_claims()] == ["C10"]
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("C4.json in the build folder cannot be read") and "C4.json.damaged" in line
    assert (own_build / "claims" / "C4.json.damaged").read_bytes() == damage
    assert "C10" in str(claim_cards(load_claims())) and not capsys.readouterr().out


def test_a_whole_verdict_is_no_damage(own_build, capsys):
    (own_build / "claims").mkdir()
    path = own_build / "claims" / "C4.json"
    path.write_text(json.dumps(WHOLE | {"also": [WHOLE]}))
    (entry,) = load_claims()
    assert not capsys.readouterr().out and path.is_file()
    for verdict in entry.verdicts:
        assert {name: getattr(verdict, name) for name in ROW} == ROW and len(entry.verdicts) == 2


def test_a_file_of_a_claim_has_always_had_this_form(own_build):
    """Files of an earlier edition are read, and tools read ours: names and their order."""
    note(low=0.7, high=0.8)
    other = Verdict("C4", "holds", **{name: value for name, value in ROW.items() if name != "verdict"})
    claims.store(Entry((load_claims()[0].first, other)))
    content = json.loads((own_build / "claims" / "C4.json").read_text())
    names = "verdict part text value low high smallest unit model model_hash n_seeds source".split()
    assert list(content) == ["id", "statement", *names, "notebook", "note", "also"]
    assert [list(row) for row in content["also"]] == [[*names, "note"]]


# --- bands -------------------------------------------------------------------------


def left_out(text):
    """What strict nbval compares of an output."""
    rules = configparser.RawConfigParser()
    rules.read(ROOT / "tests" / "nbval.cfg")
    for section in rules.sections():
        text = re.sub(rules.get(section, "regex"), rules.get(section, "replace"), text)
    return text


@pytest.mark.parametrize("value", [0.1234, 0.1999, 0.1, 0.2, 0.15])
def test_a_band_shows_the_number_to_a_reader_and_nbval_compares_the_band(capsys, value):
    assert in_band("fall: full", value, 0.1, 0.2, "nats")
    shown = capsys.readouterr().out
    assert shown == f"fall: full: {value:.3g}, between 0.1 and 0.2 nats\n"
    assert left_out(shown) == "fall: full: between 0.1 and 0.2 nats\n"


@pytest.mark.parametrize("value", [-0.0001, 1e-9, -3e-7, 0])
def test_a_number_of_any_size_is_left_out(capsys, value):
    in_band("fall", value, -0.2, 1e-3)
    assert left_out(capsys.readouterr().out) == "fall: between -0.2 and 0.001\n"


@pytest.mark.parametrize("value", [0.3, -1, math.nan, math.inf])
def test_a_number_outside_its_band_fails_under_nbval(capsys, value):
    assert not in_band("fall", value, 0.1, 0.2, "nats")
    shown = capsys.readouterr().out
    assert "outside 0.1 to 0.2" in shown and left_out(shown) == shown


def test_strict_nbval_compares_the_band_and_not_the_number(tmp_path):
    source = "from helpers.lessons import in_band\n_ = in_band('fall', 0.17, 0.1, 0.2, 'nats')"
    stored = ["0.17, between 0.1 and 0.2", "0.12, between 0.1 and 0.2", "0.17, between 0.1 and 0.3"]
    cells = [
        nbformat.v4.new_code_cell(
            source,
            execution_count=n,
            outputs=[nbformat.v4.new_output("stream", name="stdout", text=f"fall: {text} nats\n")],
        )
        for n, text in enumerate(stored, start=1)
    ]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "bands.ipynb")
    (option,) = re.findall(r"--nbval-sanitize-with=\S+", (ROOT / "Makefile").read_text("utf-8"))
    command = [
        sys.executable,
        "-m",
        "pytest",
        str(tmp_path),
        "-p",
        "nbval.plugin",
        "--nbval",
        "--nbval-current-env",
        option,
        "-q",
        "-p",
        "no:cacheprovider",
        "--rootdir",
        str(tmp_path),
    ]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
    )
    assert "1 failed, 2 passed" in done.stdout and "bands.ipynb::Cell 2" in done.stdout, (
        done.stdout + done.stderr
    )


def test_a_band_that_misses_says_so(capsys):
    assert not in_band("fall", 0.3, 0.1, 0.2, "nats")
    assert "outside" in capsys.readouterr().out


def test_every_claim_names_a_notebook_of_the_plan():
    assert list(claims.CLAIMS) == [f"C{i}" for i in range(1, 16)]
