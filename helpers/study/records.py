"""Records of runs: one JSON file a run while a study is under way, then a row of a Parquet file.

Either is read by the same path (`helpers.study.tables`). Numbers are rounded to what the comparisons need, and
windows are kept only where something is computed from them: forgetting along the frontier, the dev text at the start
and at the best step.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from dataclasses import MISSING, is_dataclass
from dataclasses import fields as fields_of
from functools import cache
from pathlib import Path
from types import MappingProxyType, UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from helpers.files import as_path, read_json, write_text
from helpers.measuring import RunRecord, SecondRunRecord, evaluations_of, rising
from helpers.study.tables import REMEDY, RecordError, is_stored, stored

RECORD = "The place of a record"
KINDS = TypeVar("KINDS", RunRecord, SecondRunRecord)


def slim(evaluations: list[dict], best_step: int) -> list[dict]:
    """Evaluations for a file: numbers to five decimals, windows only where something is computed from them.

    Forgetting by window is read along the frontier alone, and the dev windows at the start and the best.
    """
    on_frontier = {e.step for e in rising(evaluations_of(evaluations))}
    kept = []
    for e in evaluations:
        e_slim = {k: round(v, 5) if isinstance(v, float) else v for k, v in e.items()}
        if e["step"] not in (0, best_step):
            e_slim.pop("held_out_windows", None)
        if "forgetting_windows" in e:
            e_slim["forgetting_windows"] = rounded(e["forgetting_windows"])
            if e["step"] > 0 and e["step"] not in on_frontier:
                e_slim.pop("forgetting_windows")
        kept.append(e_slim)
    return kept


def rounded(values, digits: int = 4) -> list[float]:
    return [round(float(v), digits) for v in values]


def write_record(path: Path, entry: dict) -> None:
    """Write a record whole or not at all, each list of numbers on one line."""
    text = re.sub(
        r"\[\s+([^][{}]*?)\s+\]", lambda m: f"[{' '.join(m[1].split())}]", json.dumps(entry, indent=1)
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text + "\n")


def is_recorded(path: str | Path) -> bool:
    """Whether there is a record at this path: a file, or a row of a Parquet file above."""
    path = as_path(path, RECORD)
    return path.exists() or is_stored(path)


def read_runs(folder: str | Path, kind: type[KINDS] = RunRecord) -> list[KINDS]:
    """All recorded runs under a folder, sorted by path: its JSON files, and the rows of a Parquet file above.

    A file stands before a row of the same path. A run whose proof failed does not count: a line says so.

    Args:
        kind: which study's runs lie there.

    Raises:
        RecordError: a file that is damaged, or no record of such a run.
    """
    folder = as_path(folder, RECORD)
    found = stored(folder) | {path: _read(path) for path in sorted(folder.rglob("*.json"))}
    runs = {path: run_of(path, found[path], kind) for path in sorted(found)}
    broken = [path for path, run in runs.items() if run.proof_ok is False]
    for path in broken:
        print(f"Left out: '{path}', for the proof of its freeze failed.", file=sys.stderr)
    return [run for path, run in runs.items() if path not in broken]


def read_run(path: str | Path, kind: type[KINDS] = RunRecord) -> KINDS:
    """One recorded run, as `read_record`."""
    return run_of(path, read_record(path), kind)


def write_run(path: Path, row: dict, kind: type[KINDS]) -> None:
    """Write the record of a run, as `write_record`.

    Raises:
        RecordError: it has not the fields of its kind, so that nobody could read it. Nothing is written.
    """
    run_of(path, row, kind)
    write_record(path, row)


def read_record(
    path: str | Path, fields: Mapping[str, type | tuple[type, ...]] = MappingProxyType({})
) -> dict:
    """Read one record of the evidence: the file, or the row of a Parquet file above that has its path.

    Args:
        fields: names that it must have, each with the type of its value.

    Raises:
        RecordError: no such record, a damaged one, or one of another form. It is named.
    """
    path = as_path(path, RECORD)
    row = None if path.exists() else stored(path).get(path)
    return _checked(path, _read(path) if row is None else row, fields)


def _read(path: str | Path) -> dict:
    try:
        return read_json(path)
    except (OSError, ValueError) as error:
        raise RecordError(f"{error}. {REMEDY}") from error


def _checked(path: str | Path, found: dict, fields: Mapping) -> dict:
    wrong = [name for name, kind in fields.items() if not isinstance(found.get(name), kind)]
    if wrong:
        raise RecordError(
            f"'{path}' is no such record as expected: {', '.join(wrong)} "
            f"{'is' if len(wrong) == 1 else 'are'} missing, or of another form. {REMEDY}"
        )
    return found


# --- from a JSON object to a typed record ------------------------------------------


def run_of(path: str | Path, row: Mapping, kind: type[KINDS] = RunRecord) -> KINDS:
    """The record of a run from its JSON object: the one place where it gets its names and types.

    Raises:
        RecordError: a field is missing, of another form, or one that no run has; it and ``path`` are named.
    """
    try:
        return _typed(kind, row, "")
    except _Unlike as error:
        raise RecordError(f"'{path}' is no such record as expected: {error}. {REMEDY}") from error


class _Unlike(ValueError):
    """A JSON value that has another form than its type says. The message names the field."""


def _typed(form: Any, value: Any, name: str) -> Any:
    """A JSON value as its type says. The numbers of a list are taken as they are."""
    if isinstance(form, UnionType):  # X | None
        return None if value is None else _typed(get_args(form)[0], value, name)
    if is_dataclass(form):
        return _object(form, value, name)
    kind = get_origin(form) or form
    is_like = isinstance(value, (int, float) if kind is float else kind)
    if not is_like or isinstance(value, bool) != (kind is bool):
        raise _Unlike(f"{name} is missing, or of another form")
    if kind is dict:
        own = get_args(form)[1]
        return {key: _typed(own, each, f"{name}.{key}") for key, each in value.items()}
    if kind is list and is_dataclass(own := get_args(form)[0]):
        return [_typed(own, each, f"{name}[{i}]") for i, each in enumerate(value)]
    return value


def _object(form: type, value: Any, name: str) -> Any:
    """A JSON object as a dataclass: it has all fields without a default, and no other field than its own."""
    if not isinstance(value, Mapping):
        raise _Unlike(f"{name} is missing, or of another form")
    types, needed = _fields(form)
    before = f"{name}." if name else ""
    if missing := [before + field for field in needed if field not in value]:
        raise _Unlike(f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing")
    if unknown := sorted(before + field for field in value if field not in types):
        raise _Unlike(f"no run has {', '.join(unknown)}")
    return form(**{field: _typed(types[field], own, before + field) for field, own in value.items()})


@cache
def _fields(form: type) -> tuple[dict[str, Any], list[str]]:
    """The types of a dataclass by name, and the names that have no default."""
    return get_type_hints(form), [field.name for field in fields_of(form) if field.default is MISSING]
