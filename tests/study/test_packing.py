"""The evidence as Parquet: nothing is lost, equal records give equal bytes, and what does not fit is named."""

import hashlib
import json
import re
import shutil
from dataclasses import FrozenInstanceError, fields

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from helpers.freezing.plans import PLANS
from helpers.measuring.recorded import (
    BaseWindows,
    Evaluation,
    GradientNorms,
    Memorised,
    RewoundLook,
    RunRecord,
    RunSettings,
    SecondRunRecord,
    StepLook,
)
from helpers.profiles import SMOLLM2, TINY
from helpers.results.evidence import EVIDENCE
from helpers.results.study_runs import read_study_runs
from helpers.study import tables
from helpers.study.packing import drop, pack, unpack
from helpers.study.records import (
    RecordError,
    is_recorded,
    read_record,
    read_runs,
    run_of,
    write_record,
)
from support.records import row_of

# Of 389 records as the JSON files held them (plans under their keys), before they became Parquet. The 390th, the
# benchmark, was recorded anew since.
BEFORE = "594950a4478a10e66edc5c2ec1db019426b60d86b7c61c4826a2d10066022541"
ANEW = "benchmark.json"
FIRST_STUDY = [p for p in tables.tables_in(EVIDENCE) if not p.stem.startswith("study2")]
A_RUN = "runs/gpt-neo-mini/full/alice/0.json"


def digest(records):
    found = hashlib.sha256()
    for file in sorted(records.keys() - {ANEW}):
        found.update(f"{file} {json.dumps(records[file], sort_keys=True)}\n".encode())
    return found.hexdigest()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The shipped evidence as files of runs; only to be read."""
    folder = tmp_path_factory.mktemp("files")
    unpack(EVIDENCE, folder)
    return folder


@pytest.fixture
def few(files, tmp_path):
    """Two runs and a table of rates in a folder of their own."""
    for name in (A_RUN, "tuning/gpt-neo-mini/full/alice/900-3e-05.json", "rates.json"):
        (tmp_path / "files" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(files / name, tmp_path / "files" / name)
    return tmp_path / "files"


def test_every_record_is_what_its_file_was():
    records = {file: r for place in FIRST_STUDY for file, r in tables.read_table(place).items()}
    assert len(records) == 390 and digest(records) == BEFORE


def test_the_files_come_back_and_give_the_same_rows_and_twice_the_same_bytes(files, tmp_path):
    assert digest({p.relative_to(files).as_posix(): read_record(p) for p in files.rglob("*.json")}) == BEFORE
    pack(files, tmp_path / "one")
    pack(files, tmp_path / "two")
    for place in FIRST_STUDY:
        one, two = (tmp_path / folder / place.name for folder in ("one", "two"))
        assert one.read_bytes() == two.read_bytes()
        assert pq.read_table(one).equals(pq.read_table(place))
        if pq.read_metadata(one).created_by == pq.read_metadata(place).created_by:
            assert one.read_bytes() == place.read_bytes()


def test_floats_come_back_to_the_last_bit(few, tmp_path):
    run = read_record(few / A_RUN)
    odd = [0.1 + 0.2, 5e-324, 1.7976931348623157e308, -0.0, 1 / 3]
    write_record(few / A_RUN, run | {"losses": odd})
    pack(few, tmp_path / "evidence")
    back = read_record(tmp_path / "evidence" / A_RUN)["losses"]
    assert [x.hex() for x in back] == [x.hex() for x in odd]


def test_a_run_that_broke_off_may_hold_what_is_no_number(few, tmp_path):
    run = read_record(few / A_RUN)
    broken = {k: run[k] for k in ("rate_choice", "plan", "text", "seed", "rate", "settings")}
    points = [{"step": 0, "held_out_loss": float("nan"), "gain": float("-inf")}]
    write_record(few / A_RUN, broken | {"diverged": "nan", "test_windows": {}, "evaluations": points})
    pack(few, tmp_path / "evidence")
    (back,) = tables.stored(tmp_path / "evidence" / "runs").values()
    assert list(back) == ["rate_choice", "diverged", "plan", "text", "seed", "rate", "settings", "test_windows",
                          "evaluations"]  # fmt: skip
    assert back["test_windows"] == {} and np.isnan(back["evaluations"][0]["held_out_loss"])


def test_records_are_read_alike_from_files_and_from_parquet(few, tmp_path):
    pack(few, tmp_path / "evidence")
    for kind in ("runs", "tuning", "long"):
        assert read_runs(few / kind) == read_runs(tmp_path / "evidence" / kind)
    assert read_record(few / "rates.json") == read_record(tmp_path / "evidence" / "rates.json")
    assert is_recorded(tmp_path / "evidence" / "runs" / "gpt-neo-mini")
    assert not is_recorded(tmp_path / "evidence" / "runs" / "gpt-neo")  # no name that only begins alike


def test_a_file_stands_before_the_row_of_its_name(few, tmp_path):
    pack(few, tmp_path / "evidence")
    run = read_record(few / A_RUN)
    write_record(tmp_path / "evidence" / A_RUN, run | {"seed": 77})
    assert [r.seed for r in read_runs(tmp_path / "evidence" / "runs")] == [77]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"colour": "red"}, "no column for colour"),
        ({"seed": 1.5}, "seed: expected was int, found is float"),
        ({"settings": [1]}, "settings: expected was dict, found is list"),
        ({"proof_ok": 1}, "proof_ok: expected was bool"),
    ],
)
def test_a_record_of_another_form_is_named_and_nothing_is_written(few, tmp_path, change, words):
    write_record(few / A_RUN, read_record(few / A_RUN) | change)
    with pytest.raises(RecordError, match=f"{A_RUN}.*{words}"):
        pack(few, tmp_path / "evidence")
    assert not (tmp_path / "evidence").exists()


def test_a_folder_that_lacks_recorded_runs_is_refused_until_they_may_go(few, tmp_path):
    pack(few, tmp_path / "evidence")
    before = (tmp_path / "evidence" / "study1-gpt-neo-mini.parquet").read_bytes()
    (few / A_RUN).unlink()
    with pytest.raises(RecordError, match=f"1 record that is not in .*{A_RUN}.*Unpack first"):
        pack(few, tmp_path / "evidence")
    assert (tmp_path / "evidence" / "study1-gpt-neo-mini.parquet").read_bytes() == before
    pack(few, tmp_path / "evidence", replaces=True)
    assert not is_recorded(tmp_path / "evidence" / A_RUN)


def test_a_record_that_holds_less_than_the_evidence_is_refused_until_it_may(few, tmp_path):
    pack(few, tmp_path / "evidence")
    run = read_record(few / A_RUN)
    write_record(few / A_RUN, run | {"seed": 77})  # another value is no less
    pack(few, tmp_path / "evidence")
    for less in ({"losses": run["losses"][:-1]}, {"test_windows": {}}, {"evaluations": None}):
        write_record(few / A_RUN, run | less)
        with pytest.raises(
            RecordError, match=f"{A_RUN}' has .* entries under {next(iter(less))}, .*--replace"
        ):
            pack(few, tmp_path / "evidence")
        assert read_record(tmp_path / "evidence" / A_RUN) == run | {"seed": 77}
    write_record(few / A_RUN, run | {"losses": run["losses"][:-1]})
    pack(few, tmp_path / "evidence", replaces=True)
    assert read_record(tmp_path / "evidence" / A_RUN)["losses"] == run["losses"][:-1]


def test_unpacking_leaves_a_newer_file_as_it_is(few, tmp_path):
    pack(few, tmp_path / "evidence")
    write_record(few / A_RUN, read_record(few / A_RUN) | {"seed": 77})
    (few / "rates.json").unlink()
    assert unpack(tmp_path / "evidence", few) == ["rates.json"]
    assert read_record(few / A_RUN)["seed"] == 77


def test_what_was_started_over_does_not_come_back(few, tmp_path):
    evidence = tmp_path / "evidence"
    write_record(few / SMOLLM2.rates_name, read_record(few / "rates.json"))
    for profile in (TINY, SMOLLM2):
        (few / "retention" / profile.model_name).mkdir(parents=True)
        (few / "retention" / profile.model_name / "windows.safetensors").write_bytes(b"old")
    pack(few, evidence)
    (few / "retention" / TINY.model_name / "windows.safetensors").write_bytes(b"new")
    unpack(evidence, few)
    assert (few / "retention" / TINY.model_name / "windows.safetensors").read_bytes() == b"new"
    drop(evidence, TINY)
    assert sorted(unpack(evidence, tmp_path / "again")) == ["rates-smollm2.json"]
    kept = [p.parent.name for p in (tmp_path / "again").rglob("windows.safetensors")]
    assert kept == [SMOLLM2.model_name]


@pytest.mark.parametrize("content", [b"", b"PAR1", b"{}"])
def test_a_damaged_parquet_file_is_named(content, tmp_path):
    (tmp_path / "study1-gpt-neo-mini.parquet").write_bytes(content)
    with pytest.raises(RecordError, match=r"study1-gpt-neo-mini.parquet' is damaged.*Restore it"):
        read_runs(tmp_path / "runs" / "gpt-neo-mini")


def test_a_parquet_file_with_other_columns_is_named(tmp_path):
    pd.DataFrame({"file": ["a"], "seed": [1]}).to_parquet(tmp_path / "rates.parquet")
    with pytest.raises(RecordError, match=r"rates.parquet' is no such table"):
        read_record(tmp_path / "rates.json")


# --- what a reader elsewhere does with it ------------------------------------------


def test_pandas_and_datasets_read_the_runs(tmp_path):
    from datasets import load_dataset

    place = EVIDENCE / "study1-gpt-neo-mini.parquet"
    frame = pd.read_parquet(place)
    assert len(frame) == 304 and frame["seed"].dtype == "int64" and frame["rate"].dtype == "float64"
    data = load_dataset("parquet", data_files=str(place), split="train", cache_dir=str(tmp_path))
    own = read_record(EVIDENCE / A_RUN)
    row = data[data["file"].index(A_RUN)]
    assert row["losses"] == own["losses"] == frame.set_index("file").loc[A_RUN, "losses"].tolist()
    assert {t["text"]: t["value"] for t in row["test_windows"]} == own["test_windows"]


def test_both_models_have_the_same_columns():
    one, two = (pq.read_schema(p) for p in sorted(EVIDENCE.glob("study1-*.parquet")))
    assert one.equals(two)


def test_the_card_names_every_file_and_every_column():
    card = (EVIDENCE / "README.md").read_text("utf-8")
    for place in tables.tables_in(EVIDENCE):
        assert f"`{place.stem.partition('-')[0]}" in card
        for column in pq.read_schema(place).names:
            assert re.search(rf"`{column}`", card), (place.name, column)


def test_records_call_a_plan_by_its_key():
    for place in FIRST_STUDY:
        table = pq.read_table(place)
        if "plan" in table.column_names:
            assert set(table["plan"].to_pylist()) <= set(PLANS)


def test_a_run_is_read_by_its_fields_and_a_field_it_lacks_is_none():
    runs = read_runs(EVIDENCE / "long" / "gpt-neo-mini")
    assert len(runs) == 12 and all(r.is_finished and r.rate_choice == "long" for r in runs)
    assert runs[0].swap is None and runs[0].diverged is None and runs[0].evaluations[0].forgetting is None
    assert len(runs[0].losses) == runs[0].steps_taken and runs[0].settings.n_steps == runs[0].n_steps
    with pytest.raises(FrozenInstanceError):
        runs[0].seed = 1


@pytest.mark.parametrize(("study", "kind"), [("study1", RunRecord), ("study2", SecondRunRecord)])
def test_the_fields_of_a_run_are_the_columns_of_its_file_and_so_are_those_of_what_lies_in_it(study, kind):
    form = tables.FORMS[study]
    assert {f.name for f in fields(kind)} == set(form)
    inside = {"settings": RunSettings, "evaluations": Evaluation if kind is RunRecord else StepLook}
    if kind is RunRecord:
        inside |= {"gradient_norms": GradientNorms, "memorisation": Memorised}
    else:
        inside |= {"base": BaseWindows, "rewound": RewoundLook}
    for name, own in inside.items():
        columns = form[name][0] if isinstance(form[name], list) else getattr(form[name], "value", form[name])
        assert {f.name for f in fields(own)} == set(columns)


def test_no_record_of_the_evidence_loses_anything_when_it_is_read():
    for place in tables.tables_in(EVIDENCE):
        if place.stem.startswith(("study1", "study2")):
            kind = RunRecord if place.stem.startswith("study1") else SecondRunRecord
            rows = tables.read_table(place)
            assert digest(rows) == digest({f: row_of(run_of(f, row, kind)) for f, row in rows.items()})


# --- the second study --------------------------------------------------------------


SETTINGS = {
    "n_steps": 640, "rate": 1e-4, "batch": 8, "micro_batch": None, "seed": 0, "warmup": 5, "weight_decay": 0.0,
    "clip": None, "precision": "float32", "evaluate_every": 6, "save_every": 40, "dense_until": 12, "patience": 24,
}  # fmt: skip


def a_second_run(seed, test=3.0):
    """A record as `helpers.study.second_study` writes it."""

    def measured(loss, kept):
        return {
            "dev_windows": [loss, loss + 0.125],
            "forgetting_a": [kept, kept],
            "forgetting_b": [kept, 2 * kept],
            "plain_windows": [3.25, 3.5],
        }

    tests = {"test_windows": {"alice": [test, test + 0.5]}}
    return {
        "stage": "replay", "plan": "full", "text": "alice", "seed": seed, "rate": 1e-4, "weight": 0.3,
        "profile": "tiny", "model_name": "mini", "protocol": "p", "model_hash": "m",
        "retention_hashes": {"A": "a", "B": "b", "C": "c"}, "text_hash": "t", "settings": SETTINGS,
        "n_amendments": 0, "versions": {"torch": "2", "transformers": "5", "accelerate": "1"},
        "machine": "a CPU", "commit": "c0",
        "base": {"dev_windows": [3.5, 3.75], "plain_windows": [3.25, 3.25], **tests},
        "wall_seconds": 9.5, "resumed_at": 0, "n_trainable": 7, "n_parameters": 9, "steps_taken": 2, "best_step": 1,
        "ended": "patience", "proof_ok": True, "seconds": 8.0, "losses": [3.0, 2.5],
        "evaluations": [
            {"step": 0, "held_out_loss": 3.625, "gain": 0.0, **measured(3.5, 0.0)},
            {"step": 1, "held_out_loss": 3.0, "gain": 0.625, **measured(3.0, 0.25)},
        ],
        "replay_losses": [0.5, 0.25], **tests,
        "rewound": [
            {"roles": "all", "share": 0.5, **measured(3.25, 0.125), **tests},
            {"roles": "all", "share": 1.0, **measured(3.0, 0.25), **tests},
            {"roles": "attention", "share": 0.5, **measured(3.1, 0.2), **tests},
        ],
        "delta": "deltas/mini/full/alice/0.safetensors",
    }  # fmt: skip


def test_runs_of_the_second_study_get_a_file_a_model_and_are_read_from_either(tmp_path):
    work, runs = tmp_path / "study2", [a_second_run(seed) for seed in range(3)]
    diverged = {k: v for k, v in runs[2].items() if k not in ("rewound", "ended", "test_windows", "losses")}
    runs[2] = diverged | {"diverged": "the loss is nan"}
    for run in runs:
        write_record(work / "runs" / "mini" / "full" / "alice" / f"{run['seed']}-0.0001-replay0.3.json", run)
    for folder, content in ((work, b"A, B and C"), (tmp_path / "evidence", b"A and B")):
        (folder / "retention" / "mini").mkdir(parents=True)
        (folder / "retention" / "mini" / "windows.safetensors").write_bytes(content)
    assert pack(work, tmp_path / "evidence") == [tmp_path / "evidence" / "study2-mini.parquet"]
    assert list(tables.stored(tmp_path / "evidence" / "study2" / "runs" / "mini").values()) == runs
    assert not read_runs(tmp_path / "evidence" / "runs" / "mini")  # those are the first study's
    one, two = (read_study_runs(p / "runs" / "mini") for p in (work, tmp_path / "evidence" / "study2"))
    assert repr(one) == repr(two) and [r.ended for r in two] == ["patience", "patience", "diverged"]
    assert [way.roles for way in two[0].rewound] == ["all", "attention"]
    names = unpack(tmp_path / "evidence", tmp_path / "again", "study2")
    assert len(names) == 3 and read_record(tmp_path / "again" / names[2]) == runs[2]
    assert not unpack(tmp_path / "evidence", tmp_path / "first")
    kept = {f: (tmp_path / f / "retention/mini/windows.safetensors").read_bytes() for f in ("again", "first")}
    assert kept == {"again": b"A, B and C", "first": b"A and B"}
