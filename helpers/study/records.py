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
from dataclasses import dataclass
from dataclasses import fields as dataclass_fields
from pathlib import Path
from types import MappingProxyType

from helpers.files import read_json, write_text
from helpers.measuring import rising
from helpers.study.tables import REMEDY, RecordError, is_stored, stored

RUN_FIELDS = MappingProxyType({"plan": str, "text": str, "seed": int, "evaluations": list})


@dataclass(frozen=True, eq=False)
class RunRecord(Mapping):
    """One recorded run of the first study: data/evidence/README.md tells its fields. None: the record lacks a field.

    It is a mapping of the fields that it has, too, as its JSON file is.
    """

    plan: str
    text: str
    seed: int
    evaluations: list[dict]
    rate_choice: str | None = None
    stage: str | None = None
    model_name: str | None = None
    protocol: str | None = None
    n_amendments: int | None = None
    wall_seconds: float | None = None
    diverged: str | None = None
    model: str | None = None
    model_hash: str | None = None
    text_hash: str | None = None
    rate: float | None = None
    batch: int | None = None
    length: int | None = None
    n_train_windows: int | None = None
    n_steps: int | None = None
    steps_taken: int | None = None
    n_trainable: int | None = None
    n_parameters: int | None = None
    settings: dict | None = None
    retention_hash: str | None = None
    versions: dict[str, str] | None = None
    machine: str | None = None
    commit: str | None = None
    proof_ok: bool | None = None
    best_step: int | None = None
    base_held_out_loss: float | None = None
    gradient_norm_median: dict[str, float] | None = None
    gradient_norms: dict[str, dict[str, float]] | None = None
    spikes: float | None = None
    seconds: float | None = None
    losses: list[float] | None = None
    norms: list[float] | None = None
    test_windows: dict[str, list[float]] | None = None
    function_windows: dict[str, list[float]] | None = None
    swap: dict[str, dict[str, float]] | None = None
    memorisation: dict[str, dict[str, float]] | None = None

    @classmethod
    def of(cls, path: Path, record: Mapping) -> RunRecord:
        """A record as it was read.

        Raises:
            RecordError: it lacks what every run has, or has a field that no run has; ``path`` is named.
        """
        _checked(path, record, RUN_FIELDS)
        if unknown := sorted(set(record) - {f.name for f in dataclass_fields(cls)}):
            raise RecordError(
                f"'{path}' is no such record as expected: no run has {', '.join(unknown)}. {REMEDY}"
            )
        return cls(**record)

    @property
    def is_finished(self) -> bool:
        """Whether the run came to its end; if not, `diverged` says why."""
        return self.diverged is None

    def __getitem__(self, name: str):
        found = getattr(self, name, None) if name in self.__dataclass_fields__ else None
        if found is None:
            raise KeyError(name)
        return found

    def __iter__(self):
        return (f.name for f in dataclass_fields(self) if getattr(self, f.name) is not None)

    def __len__(self) -> int:
        return sum(1 for _ in self)


def slim(evaluations: list[dict], best_step: int) -> list[dict]:
    """Evaluations for a file: numbers to five decimals, windows only where something is computed from them.

    Forgetting by window is read along the frontier alone, and the dev windows at the start and the best.
    """
    on_frontier = {id(e) for e in rising(evaluations)}
    kept = []
    for e in evaluations:
        e_slim = {k: round(v, 5) if isinstance(v, float) else v for k, v in e.items()}
        if e["step"] not in (0, best_step):
            e_slim.pop("held_out_windows", None)
        if "forgetting_windows" in e:
            e_slim["forgetting_windows"] = rounded(e["forgetting_windows"])
            if e["step"] > 0 and id(e) not in on_frontier:
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
    return Path(path).exists() or is_stored(Path(path))


def read_runs(folder: str | Path) -> list[RunRecord]:
    """All recorded runs of the first study under a folder, as `read_rows`.

    Raises:
        RecordError: a file that is damaged, or no record of a run.
    """
    return [RunRecord.of(path, record) for path, record in read_rows(folder).items()]


def read_run(path: str | Path) -> RunRecord:
    """One recorded run, as `read_record`."""
    return RunRecord.of(Path(path), read_record(path))


def read_rows(folder: str | Path) -> dict[Path, dict]:
    """All recorded runs under a folder, sorted by path: its JSON files, and the rows of a Parquet file above.

    A file stands before a row of the same path. A run whose proof failed does not count: a line says so.

    Raises:
        RecordError: a file that is damaged, or no record of a run.
    """
    folder = Path(folder)
    found = stored(folder) | {path: _read(path) for path in sorted(folder.rglob("*.json"))}
    runs = {path: _checked(path, found[path], RUN_FIELDS) for path in sorted(found)}
    broken = [path for path, run in runs.items() if run.get("proof_ok", True) is not True]
    for path in broken:
        print(f"Left out: '{path}', for the proof of its freeze failed.", file=sys.stderr)
    return {path: run for path, run in runs.items() if path not in broken}


def read_record(
    path: str | Path, fields: Mapping[str, type | tuple[type, ...]] = MappingProxyType({})
) -> dict:
    """Read one record of the evidence: the file, or the row of a Parquet file above that has its path.

    Args:
        fields: names that it must have, each with the type of its value.

    Raises:
        RecordError: no such record, a damaged one, or one of another form. It is named.
    """
    path = Path(path)
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
