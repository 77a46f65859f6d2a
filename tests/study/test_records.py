"""The evidence is read by one reader: a file that cannot be used is named, and what to do is said."""

import json

import pytest

from helpers.files import read_json
from helpers.measuring.recorded import RunRecord, SecondRunRecord
from helpers.results import evidence as findings
from helpers.study import measured_costs as benchmarks
from helpers.study.measured_costs import BenchmarkError
from helpers.study.protocol import ProtocolError, read_protocol
from helpers.study.records import RecordError, read_runs, write_run

DAMAGE = {
    "empty": b"",
    "half": b'{"plan": "full", "te',
    "a list": b"[]",
    "a number": b"3",
    "null": b"null",
    "nested too deeply": b'{"a":' * 100_000,
    "no UTF-8": b"\xff\xfe{}",
    "another form": b'{"plan": 3}',
}
RUN = {"plan": "full", "text": "alice", "seed": 1, "evaluations": [], "proof_ok": True}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_run_is_named(name, tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "7.json").write_bytes(DAMAGE[name])
    with pytest.raises(RecordError, match="7.json' is.*Restore it from the repository") as error:
        read_runs(tmp_path)
    assert "\n" not in str(error.value)


FAULTS = {
    "plan, text are missing": {"plan": ..., "text": ...},
    "seed is missing, or of another form": {"seed": "1"},
    "rate is missing, or of another form": {"rate": True},
    "no run has colour": {"colour": "red"},
    r"evaluations\[1\].step is missing": {"evaluations": [{"step": 0}, {"gain": 0.1}]},
    r"no run has evaluations\[0\].gian": {"evaluations": [{"step": 0, "gian": 0.1}]},
    "settings.n_steps, settings.rate, .*are missing": {"settings": {"patience": 3}},
    "gradient_norms.mlp is missing, or of another form": {"gradient_norms": {"mlp": 1.0}},
}


@pytest.mark.parametrize("words", FAULTS)
def test_a_field_that_is_missing_unknown_or_of_another_form_is_named_with_its_file(words, tmp_path):
    row = {name: value for name, value in (RUN | FAULTS[words]).items() if value is not ...}
    (tmp_path / "7.json").write_text(json.dumps(row))
    with pytest.raises(RecordError, match=f"7.json' is no such record as expected: {words}"):
        read_runs(tmp_path)


def test_a_run_that_could_not_be_read_is_not_written(tmp_path):
    with pytest.raises(RecordError, match="no run has colour"):
        write_run(tmp_path / "7.json", RUN | {"colour": "red"}, RunRecord)
    assert not list(tmp_path.iterdir())
    with pytest.raises(RecordError, match="weight, base, retention_hashes are missing"):
        write_run(tmp_path / "7.json", RUN, SecondRunRecord)
    write_run(tmp_path / "7.json", RUN, RunRecord)
    assert read_json(tmp_path / "7.json") == RUN


def test_a_run_whose_proof_failed_does_not_count(tmp_path, capsys):
    for seed, ok in ((1, True), (2, False)):
        (tmp_path / f"{seed}.json").write_text(json.dumps(RUN | {"seed": seed, "proof_ok": ok}))
    assert [run.seed for run in read_runs(tmp_path)] == [1]
    assert "2.json" in capsys.readouterr().err


@pytest.mark.parametrize("name", DAMAGE)
@pytest.mark.parametrize("file", ["benchmark.json", "memory.json"])
def test_a_damaged_measurement_is_named_and_how_it_is_made(name, file, tmp_path):
    (tmp_path / file).write_bytes(DAMAGE[name])
    with pytest.raises(BenchmarkError, match=f"{file}' is.*make it anew with: ") as error:
        benchmarks.read(tmp_path / file)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_table_of_rates_is_named(name, tmp_path):
    (tmp_path / "rates.json").write_bytes(DAMAGE[name])
    with pytest.raises(RecordError, match="rates.json' is"):
        findings.read_evidence("gpt-neo-mini", tmp_path)


PAGES = {
    "no block": b"# Rules",
    "no UTF-8": b"\xff\xfe",
    "no TOML": b"```toml\na = = 3\n```\n",
    "a number that becomes a table": b"```toml\na = 3\n```\n\n## Amendments\n\n```toml\n[a]\nb = 1\n```\n",
    "a table that becomes a number": b"```toml\n[a]\nb = 1\n```\n\n## Amendments\n\n```toml\na = 3\n```\n",
    "nested too deeply": b"```toml\na = " + b"[" * 100_000 + b"\n```\n",
}


@pytest.mark.parametrize("name", PAGES)
def test_a_page_of_rules_that_cannot_be_read_is_named(name, tmp_path):
    (tmp_path / "PROTOCOL.md").write_bytes(PAGES[name])
    with pytest.raises(ProtocolError, match="PROTOCOL.md"):
        read_protocol(tmp_path / "PROTOCOL.md")


def test_a_folder_where_a_page_or_a_record_should_be_is_said(tmp_path):
    (tmp_path / "7.json").mkdir()
    with pytest.raises(RecordError, match="7.json"):
        read_runs(tmp_path)
    with pytest.raises(ProtocolError, match="7.json"):
        read_protocol(tmp_path / "7.json")


def test_the_shipped_evidence_is_read():
    assert all(findings.read_evidence(model).runs for model in findings.studied_models())


def test_json_of_the_wanted_form_comes_back(tmp_path):
    (tmp_path / "a.json").write_text("[1]")
    assert read_json(tmp_path / "a.json", list) == [1]
    with pytest.raises(ValueError, match="a.json' is damaged: expected was an object, found a list"):
        read_json(tmp_path / "a.json")
