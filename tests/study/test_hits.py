"""The score of `course compare` on held-out cases: how it counts, what a case records, and the page that it writes."""

from dataclasses import replace

import pytest

from helpers.files import read_json, write_json
from helpers.profiles import DATA, TINY
from helpers.study import hits
from helpers.study.hits import BASES, CASES, Case, outcome, page, score
from helpers.study.recipes import CANDIDATES, Candidate, choose
from helpers.study.records import RecordError
from support.records import probe
from support.tiny import saved

FULL, HELD, FROZEN = CANDIDATES[0], CANDIDATES[1], CANDIDATES[4]
STOPPED, REWOUND = (f"{FULL.title}, {method}" for method in ("stopped", "rewound"))


def entry(chosen, interval, truth, difference=None, **changes) -> dict:
    found = {
        "base": BASES[0],
        "text": "edgar",
        "seed": 0,
        "machine": "a CPU",
        "gain": 0.1,
        "reference": STOPPED,
    }
    return (
        found | {"chosen": chosen, "interval": interval, "difference": difference, "truth": truth} | changes
    )


def test_there_are_as_many_cases_as_were_asked_for_and_none_of_the_text_that_built_it():
    assert len(set(CASES)) == len(CASES) >= hits.ASKED
    assert not {c.text for c in CASES} & {"alice", "plain"} and all(c.seed < 900 for c in CASES)
    assert len({c.name for c in CASES}) == len(CASES)


def test_the_score_counts_what_the_sweep_knows():
    truth = {STOPPED: 0.06, REWOUND: 0.04, "a": 0.030, "b": 0.028, "c": None}
    records = [
        entry("a", [0.02, 0.031], truth, [-0.04, -0.02]),  # covered; a tenth over the best; better than both
        entry("a", [0.02, 0.029], truth, [-0.02, -0.01]),  # neither interval covers
        entry(REWOUND, [0.03, 0.05], truth, None),  # itself a rule, and no tenth over the best
        entry("c", [0.0, 1.0], truth),  # the sweep does not know it
        entry(None, None, {}),
    ]
    assert score(records) == {
        "covers": (2, 3),
        "covers the difference": (1, 2),
        "near the best": (2, 3),
        "better than full, stopped": (3, 3),
        "better than full, rewound": (3, 3),
    }
    worse = [entry(STOPPED, [0.05, 0.07], truth)]
    assert score(worse)["better than full, rewound"] == (0, 1) and score(worse)["near the best"] == (0, 1)


def test_an_answer_is_read_in_the_sweep_at_the_gain_that_it_names():
    choice = choose([probe(FULL), probe(HELD, rewound=0.03)])
    sweep = [probe(FULL, gain=0.2, rewound=0.08, stopped=0.3), probe(FROZEN, gain=0.05)]
    found = outcome(CASES[0], choice, sweep)
    # at a gain of 0.08: 0.08 x 0.4² rewound, 0.3 x 0.4² stopped; FROZEN never has it
    assert (
        found["gain"] == 0.08
        and found["chosen"] == f"{HELD.title}, rewound"
        and found["reference"] == STOPPED
    )
    assert found["truth"][REWOUND] == pytest.approx(0.0128, abs=1e-5)
    assert found["truth"][STOPPED] == pytest.approx(0.048, abs=1e-3)
    assert found["truth"][f"{FROZEN.title}, rewound"] is None
    assert found["interval"][0] < 0.03 * 0.64 < found["interval"][1] and found["difference"][1] < 0
    assert outcome(CASES[0], None, sweep)["chosen"] is None


def test_the_page_says_how_many_cases_of_those_asked_for_and_names_what_is_missing():
    records = [
        entry(REWOUND, [0.03, 0.05], {REWOUND: 0.04, STOPPED: None}),
        entry(None, None, {}, text="viet"),
    ]
    said = page(records)
    assert "2 cases; 12 or more were asked for. In 1 of them a recipe could be chosen" in said
    assert "the shipped miniature (2)" in said and "`viet_tales.txt` (1)" in said and "Python" not in said
    assert "not made yet: further trained, edgar, seed 0; further trained, viet" in said
    assert (
        "; SmolLM2, viet, seed 0; " in said
        and "SmolLM2"
        not in page(
            [
                entry(None, None, {}, **dict(zip(("base", "text", "seed"), case, strict=True)))
                for case in CASES
            ]
        ).partition("What was not asked")[2]
    )
    assert (
        "| 1 of 1 | 90% | yes, but in fewer cases than 12 |" in said
        and "| 0 of 0 | 100% | not known |" in said
    )
    assert "viet, seed 0 | nothing:" in said
    assert hits.met(10, 12, 0.9) == "no" and hits.met(11, 12, 0.9) == "yes"


def test_the_page_is_that_of_the_records():
    records = read_json(hits.EVIDENCE)
    assert hits.PAGE.read_text("utf-8") == page(list(records.values()))
    assert set(records) <= {case.name for case in CASES}
    assert hits.packed() == records, "made with other settings than today's: make these cases again"


def test_a_case_is_made_once_and_a_stopped_study_goes_on(tmp_path, monkeypatch, capsys):
    small = {"ROUNDS": (2,), "STEPS": (10,), "LENGTH": 32, "N_ASKED": 6, "N_SWEPT": 8}
    small["TRIED"] = (Candidate("full", 1e-2), Candidate("attention", 1e-2))
    folder = saved(tmp_path / "model", "gpt_neo")
    monkeypatch.setattr(hits, "TINY", replace(TINY, model=str(folder)))
    for name, value in small.items():
        monkeypatch.setattr(hits, name, value)
    monkeypatch.setattr(hits, "CASES", (Case(BASES[0], "code", 0), Case(BASES[0], "edgar", 0)))
    monkeypatch.setattr(hits, "EVIDENCE", tmp_path / "hits.json")
    monkeypatch.setattr(hits, "PAGE", tmp_path / "compare.md")
    hits.record(tmp_path / "hits", minutes=0)
    assert not list((tmp_path / "hits").glob("*.json"))
    hits.record(tmp_path / "hits")
    places = sorted((tmp_path / "hits").glob("*.json"))
    assert [p.stem for p in places] == ["0-code-0", "0-edgar-0"]
    first = [p.read_bytes() for p in places]
    places[1].unlink()
    monkeypatch.setattr(hits, "probe", None)  # what was measured is read
    hits.record(tmp_path / "hits")
    assert [p.read_bytes() for p in places] == first
    found = read_json(places[0])
    assert found["chosen"] in found["truth"] and found["model_hash"]
    hits.pack(tmp_path / "hits")
    assert list(read_json(hits.EVIDENCE)) == ["0-code-0", "0-edgar-0"]
    assert hits.PAGE.read_text("utf-8").count("| miniature, ") == 2
    for place in places:
        place.unlink()
    hits.record(tmp_path / "hits")  # the evidence has them
    assert not list((tmp_path / "hits").glob("*.json"))
    hits.pack(tmp_path / "hits")
    assert len(hits.packed()) == 2
    before = read_json(hits.EVIDENCE)
    monkeypatch.setattr(
        hits, "LENGTH", 16
    )  # other code: these cases are not as they would be now, and they stay
    assert hits.packed() == {}
    hits.pack(tmp_path / "nothing")
    assert read_json(hits.EVIDENCE) == before and "0 cases; 12 or more" in hits.PAGE.read_text("utf-8")
    monkeypatch.setattr(hits, "CASES", hits.CASES[:1])
    hits.pack(tmp_path / "nothing")
    assert list(read_json(hits.EVIDENCE)) == list(before)


def test_a_folder_with_a_case_of_other_settings_is_refused_and_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(hits, "EVIDENCE", tmp_path / "hits.json")
    monkeypatch.setattr(hits, "PAGE", tmp_path / "compare.md")
    case = tmp_path / "hits" / f"{CASES[0].name}.json"
    case.parent.mkdir()
    write_json(case, {"made_with": hits.made_with() | {"length": 1}})
    with pytest.raises(RecordError, match="no case in .*course study hits"):
        hits.pack(tmp_path / "empty")
    for work in (hits.pack, hits.record):
        with pytest.raises(RecordError, match=f"{case.name}' was made with other settings"):
            work(case.parent)
    case.write_text("{")
    with pytest.raises(RecordError, match=f"{case.name}' is damaged"):
        hits.pack(case.parent)
    assert not hits.EVIDENCE.exists() and not hits.PAGE.exists()


def test_the_further_trained_base_is_another_one_and_its_text_is_none_of_the_cases(tmp_path, monkeypatch):
    folder = saved(tmp_path / "model", "gpt_neo")
    monkeypatch.setattr(hits, "TINY", replace(TINY, model=str(folder)))
    monkeypatch.setattr(hits, "LENGTH", 32)
    plain, again, other = hits.base_of(BASES[1]), hits.base_of(BASES[1]), hits.base_of(BASES[0])
    assert hits.weight_hash(plain) == hits.weight_hash(again) != hits.weight_hash(other)
    assert (DATA / "plain_tales.txt").exists()
