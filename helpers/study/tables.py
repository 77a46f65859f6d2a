"""The evidence as Parquet: what a record looks like as a typed row, and back, with nothing lost.

A record is named by its path, such as "runs/gpt-neo-mini/full/alice/0.json": while a study is under way it is
that JSON file, later a row of a Parquet file, with its path in the column ``file``. data/evidence/README.md
tells the columns.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from helpers.files import as_path

REMEDY = "Restore it from the repository, or move it away and record it anew with `course study first`."
DEPTH = 6  # a record lies at most so many folders below its Parquet file


class RecordError(ValueError):
    """A file of the evidence that cannot be used. The message names it and says what to do."""


@dataclass(frozen=True)
class Keyed:
    """An object with free keys: a list of structs, the key in the field ``key``."""

    key: str
    value: Any


@dataclass(frozen=True)
class Nullable:
    """A field that is always there, and may be null. Any other field that is null was not there."""

    value: Any


TYPES = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}
FLOATS, LOSSES = [float], Keyed("text", [float])  # LOSSES: by text, each window's loss
VERSIONS = {"torch": str, "transformers": str, "accelerate": str}
SETTINGS = {
    "n_steps": int,
    "rate": float,
    "batch": int,
    "micro_batch": Nullable(int),
    "seed": int,
    "warmup": int,
    "weight_decay": float,
    "clip": Nullable(float),
    "precision": str,
    "evaluate_every": int,
    "save_every": int,
    "dense_until": int,
    "patience": Nullable(int),
}
FIRST_RUN = {
    "rate_choice": str,
    "stage": str,
    "model_name": str,
    "protocol": str,
    "n_amendments": int,
    "wall_seconds": float,
    "diverged": str,
    "model": str,
    "model_hash": str,
    "plan": str,
    "text": str,
    "text_hash": str,
    "seed": int,
    "rate": float,
    "batch": int,
    "length": int,
    "n_train_windows": int,
    "n_steps": int,
    "steps_taken": int,
    "n_trainable": int,
    "n_parameters": int,
    "settings": SETTINGS,
    "retention_hash": str,
    "versions": VERSIONS,
    "machine": str,
    "commit": str,
    "proof_ok": bool,
    "best_step": int,
    "base_held_out_loss": float,
    "gradient_norm_median": Keyed("role", float),
    "gradient_norms": Keyed("role", {"median": float, "largest": float, "spikes": float, "quarters": float}),
    "spikes": float,
    "seconds": float,
    "losses": FLOATS,
    "norms": FLOATS,
    "test_windows": LOSSES,
    "evaluations": [
        {
            "step": int,
            "held_out_loss": float,
            "gain": float,
            "train_loss": float,
            "held_out_windows": FLOATS,
            "forgetting": float,
            "forgetting_windows": FLOATS,
        }
    ],
    "function_windows": LOSSES,
    "swap": Keyed("role", Keyed("text", float)),
    "memorisation": Keyed(
        "weights",
        {
            "exact_train": float,
            "right_train": float,
            "exact_held_out": float,
            "right_held_out": float,
            "n_grams": float,
        },
    ),
}
MEASURED = {
    "dev_windows": FLOATS,
    "forgetting_a": FLOATS,
    "forgetting_b": FLOATS,
    "plain_windows": FLOATS,
}
SECOND_RUN = {
    "stage": str,
    "plan": str,
    "text": str,
    "seed": int,
    "rate": float,
    "weight": float,
    "profile": str,
    "model_name": str,
    "protocol": str,
    "model_hash": str,
    "retention_hashes": {"A": str, "B": str, "C": str},
    "text_hash": str,
    "settings": SETTINGS,
    "n_amendments": int,
    "versions": VERSIONS,
    "machine": str,
    "commit": str,
    "base": {"dev_windows": FLOATS, "plain_windows": FLOATS, "test_windows": LOSSES},
    "wall_seconds": float,
    "resumed_at": int,
    "diverged": str,
    "n_trainable": int,
    "n_parameters": int,
    "steps_taken": int,
    "best_step": int,
    "ended": str,
    "proof_ok": bool,
    "seconds": float,
    "losses": FLOATS,
    "evaluations": [{"step": int, "held_out_loss": float, "gain": float, "train_loss": float, **MEASURED}],
    "replay_losses": FLOATS,
    "test_windows": LOSSES,
    "rewound": [{"roles": str, "share": float, **MEASURED, "test_windows": LOSSES}],
    "delta": str,
}
RATES = {
    "matched_gain": Keyed("text", float),
    "smallest_forgetting": Keyed("text", float),
    "grid": FLOATS,
    "seed": int,
    "seeds": [int],
    "protocol": str,
    "chosen": Keyed("plan", Keyed("text", {"keep": float, "learn": float})),
    "table": [
        {
            "plan": str,
            "text": str,
            "rate": float,
            "n_seeds": int,
            "n_reach": int,
            "best_gain": float,
            "forgetting_at_level": Nullable(float),
        }
    ],
}
BASES = Keyed(
    "model_name",
    {
        "model_hash": str,
        "length": int,
        "machine": str,
        "versions": VERSIONS,
        "commit": str,
        "test_windows": LOSSES,
    },
)
STYLE = {
    "model": str,
    "model_hash": str,
    "n_steps": int,
    "n_seeds": int,
    "rate": float,
    "machine": str,
    "books": Keyed(
        "author",
        {
            "n_windows": int,
            "base": float,
            "tuned_on_alice": float,
            "tuned_on_edgar": float,
            "difference": float,
            "standard_error": float,
            "standard_errors": float,
        },
    ),
}
RATIOS = [
    f"{what}_{plan}{against}"
    for plan in ("main", "full")
    for what, against in (
        ("time_ratio", ""),
        ("time_ratio", "_against_pieces"),
        ("memory_ratio", ""),
        ("memory_ratio", "_against_pieces"),
        ("share_of_limit", ""),
        ("least_time_ratio", ""),
    )
]
BENCHMARK = {
    **dict.fromkeys((*RATIOS, "memory_ratio_main_exact_allocator"), float),
    "n_pairs": int,
    "intervals": Keyed("number", [Nullable(float)]),
    "setting": {
        "model": str,
        "batch": int,
        "length": int,
        "dtype": str,
        "n_steps": int,
        "warm_up": int,
        "machine": str,
        "n_threads": int,
        "versions": VERSIONS,
        "exact allocator": Keyed("variable", str),
    },
    "flops": Keyed("plan", int),
    "pairs": [
        {
            "repetition": int,
            "plan": str,
            "order": [str],
            "commit": str,
            "engines": Keyed(
                "engine",
                {"step_seconds": FLOATS, "first_loss": float, "peak_bytes": int, "sgemm_flops": FLOATS},
            ),
        }
    ],
}
BYTES = Keyed("group", int)
MEMORY = {
    "setting": {
        "model": str,
        "dtype": str,
        "device": str,
        "machine": str,
        "n_threads": int,
        "versions": VERSIONS,
        "environment": Keyed("variable", str),
        "constant_bytes": int,
    },
    "commit": str,
    "points": [
        {
            "plan": str,
            "batch": int,
            "length": int,
            "before_bytes": int,
            "growth_bytes": int,
            "measured": BYTES,
            "predicted": BYTES,
            "at_peak": BYTES,
            "ratio": float,
        }
    ],
    "times": [{"plan": str, "batch": int, "length": int, "log_ratios": FLOATS, "predicted_ratio": float}],
}
GROWTH = {
    "plan": str,
    "batch": int,
    "length": int,
    "before_bytes": int,
    "growth_bytes": int,
    "measured": BYTES,
    "predicted": BYTES,
    "ratio": float,
    "predicted_time_ratio": float,
}
CARD = {
    "setting": {
        "model": str,
        "device": str,
        "machine": str,
        "memory_bytes": int,
        "versions": VERSIONS,
        "cuda": str,
        "matmul": str,
        "has_bfloat16": bool,
    },
    "commit": str,
    "costs": [{"precision": str, **GROWTH, "seconds": FLOATS, "full_seconds": FLOATS}],
    "c11": [GROWTH],
    "verdict": {"verdict": str, "value": float, "unit": str, "note": str},
    "training": [
        {
            "plan": str,
            "batch": int,
            "length": int,
            "precision": str,
            "losses": FLOATS,
            "held_out": FLOATS,
            "proof_ok": bool,
            "resumed_at": int,
            "resumed_differs": float,
            "peak_bytes": int,
            "step_seconds": FLOATS,
        }
    ],
    "check": [{"run": str, "dev_loss_differs": float, "forgetting_differs": float, "agrees": bool}],
    "n_runs": int,
    "missing": [str],
}
FORMS = {
    "study1": FIRST_RUN,
    "study2": SECOND_RUN,
    "rates": RATES,
    "bases": BASES,
    "style": STYLE,
    "benchmark": BENCHMARK,
    "memory": MEMORY,
    "card": CARD,
}


# --- forms, types and values -------------------------------------------------------


def type_of(form: Any) -> pa.DataType:
    """The Arrow type of a form."""
    if isinstance(form, Nullable):
        return type_of(form.value)
    if isinstance(form, list):
        return pa.list_(type_of(form[0]))
    if isinstance(form, Keyed):
        return pa.list_(type_of(entry_of(form)))
    if isinstance(form, dict):
        return pa.struct([(name, type_of(own)) for name, own in form.items()])
    return TYPES[form]


def schema_of(form: Mapping) -> pa.Schema:
    return pa.schema([(name, type_of(own)) for name, own in form.items()])


def entry_of(form: Keyed) -> dict:
    """One entry of an object with free keys: its key beside its fields, or beside its one value."""
    return {form.key: str, **(form.value if isinstance(form.value, dict) else {"value": form.value})}


def packed(value: Any, form: Any, place: str) -> Any:
    """A JSON value as Arrow takes it.

    Raises:
        RecordError: the value is not of this form; ``place`` names it.
    """
    if isinstance(form, Nullable):
        return None if value is None else packed(value, form.value, place)
    wanted = list if isinstance(form, list) else form if isinstance(form, type) else dict
    if type(value) is not wanted:
        raise RecordError(f"{place}: expected was {wanted.__name__}, found is {type(value).__name__}.")
    if isinstance(form, type):
        return value
    if isinstance(form, list):
        return [packed(v, form[0], place) for v in value]
    if isinstance(form, Keyed):
        is_flat = isinstance(form.value, dict)
        return [
            {form.key: key}
            | (
                packed(v, form.value, f"{place}.{key}")
                if is_flat
                else {"value": packed(v, form.value, f"{place}.{key}")}
            )
            for key, v in value.items()
        ]
    if unknown := sorted(set(value) - set(form)):
        raise RecordError(f"{place}: no column for {', '.join(unknown)}. Add it in helpers/study/tables.py.")
    return {name: packed(v, form[name], f"{place}.{name}") for name, v in value.items()}


def unpacked(value: Any, form: Any) -> Any:
    """The JSON value that `packed` was given."""
    if value is None or isinstance(form, type):
        return value
    if isinstance(form, Nullable):
        return unpacked(value, form.value)
    if isinstance(form, list):
        return [unpacked(v, form[0]) for v in value]
    if isinstance(form, Keyed):
        is_flat = isinstance(form.value, dict)
        return {e[form.key]: unpacked(e if is_flat else e["value"], form.value) for e in value}
    return {
        name: unpacked(value[name], own)
        for name, own in form.items()
        if value[name] is not None or isinstance(own, Nullable)
    }


# --- files -------------------------------------------------------------------------


def columns_of(name: str) -> dict:
    """The columns of a Parquet file by its name: "study1-MODEL" has those of "study1"."""
    form = FORMS[name.partition("-")[0]]
    return {"file": str, **(form if isinstance(form, dict) else {"entries": form})}


def table_of(name: str, records: Mapping[str, dict]) -> pa.Table:
    """Records as a table, sorted by path.

    Args:
        name: of the Parquet file that it is for: it decides the columns.
        records: a record's path to the record.

    Raises:
        RecordError: a record that has another form, or would not come back as it is.
    """
    form = columns_of(name)
    rows = []
    for file in sorted(records):
        record = {"entries": records[file]} if "entries" in form else records[file]
        rows.append(packed({"file": file} | record, form, file))
    table = pa.Table.from_pylist(rows, schema_of(form))
    for file, back in records_in(table, form).items():
        if json.dumps(back, sort_keys=True) != json.dumps(records[file], sort_keys=True):
            raise RecordError(f"{file} does not come back from Parquet as it is.")
    return table


def write_table(path: Path, table: pa.Table) -> None:
    """Write a Parquet file whole or not at all; equal tables give equal bytes."""
    partial = path.with_suffix(".partial")
    pq.write_table(table, partial, compression="zstd", compression_level=9, version="2.6")
    partial.replace(path)


def records_in(table: pa.Table, form: Mapping, wanted: Callable[[str], bool] = bool) -> dict[str, dict]:
    """The records of a table by their path; of those paths alone that are wanted."""
    rows = [i for i, file in enumerate(table["file"].to_pylist()) if wanted(file)]
    found = {}
    for row in table.take(pa.array(rows, pa.int64())).to_pylist():
        record = unpacked(row, form)
        file = record.pop("file")
        found[file] = record.get("entries", record)
    return found


def open_table(path: Path) -> pa.Table:
    """A Parquet file of records.

    Raises:
        RecordError: no such file, a damaged one, or one of another form.
    """
    try:
        stat = path.stat()
        table = _table(path, stat.st_mtime_ns, stat.st_size)
    except (OSError, ValueError) as error:
        raise RecordError(
            f"'{path}' is damaged: it is no Parquet that can be read ({error}). {REMEDY}"
        ) from error
    wanted = schema_of(columns_of(path.stem))
    if not table.schema.equals(wanted):
        raise RecordError(f"'{path}' is no such table as expected: it has other columns. {REMEDY}")
    return table


@lru_cache(maxsize=16)
def _table(path: Path, changed: int, size: int) -> pa.Table:
    return pq.read_table(path)


def read_table(path: Path, wanted: Callable[[str], bool] = bool) -> dict[str, dict]:
    """The records of a Parquet file by their path, as `open_table`; of those paths alone that are wanted."""
    return records_in(open_table(path), columns_of(path.stem), wanted)


def tables_in(folder: Path) -> list[Path]:
    """The Parquet files of records that lie in a folder."""
    return [p for p in sorted(folder.glob("*.parquet")) if p.stem.partition("-")[0] in FORMS]


def tables_above(path: Path) -> tuple[Path, list[Path]]:
    """(folder, Parquet files in it) of the nearest folder above a path that has any; (path, []) where none has."""
    return next(((f, t) for f in list(path.parents)[:DEPTH] if (t := tables_in(f))), (path, []))


def is_stored(path: Path) -> bool:
    """Whether a Parquet file above holds the record at this path, or one under this folder."""
    folder, tables = tables_above(path)
    wanted = at(path, folder)
    return any(wanted(file) for table in tables for file in open_table(table)["file"].to_pylist())


def stored(path: Path) -> dict[Path, dict]:
    """What the Parquet files above hold, by path: the record at this path, or all under this folder."""
    path = as_path(path, "The place of a record")
    folder, tables = tables_above(path)
    wanted, found = at(path, folder), {}
    for table in tables:
        found |= {folder / file: record for file, record in read_table(table, wanted).items()}
    return found


def at(path: Path, folder: Path) -> Callable[[str], bool]:
    """Whether a record of ``folder`` lies at a path, or under it."""
    name = path.relative_to(folder).as_posix() if folder != path else ""
    return lambda file: file == name or file.startswith(f"{name}/")
