"""Records of runs: one JSON file a run, small enough to keep hundreds of them.

Numbers are rounded to what the comparisons need, and windows are kept only where something is
computed from them: forgetting along the frontier, the dev text at the start and at the best step.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from helpers.files import read_json, write_text
from helpers.measuring import rising

REMEDY = "Restore it from the repository, or move it away and record it anew with `course study first`."
RUN_FIELDS = MappingProxyType({"plan": str, "text": str, "seed": int, "evaluations": list})


class RecordError(ValueError):
    """A file of the evidence that cannot be used. The message names it and says what to do."""


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


def read_runs(folder: str | Path) -> list[dict]:
    """All recorded runs under a folder, sorted by path. One whose proof failed does not count: a line says so.

    Raises:
        RecordError: a file that is damaged, or no record of a run.
    """
    runs = {path: read_record(path, RUN_FIELDS) for path in sorted(Path(folder).rglob("*.json"))}
    broken = [path for path, run in runs.items() if run.get("proof_ok", True) is not True]
    for path in broken:
        print(f"Left out: '{path}', for the proof of its freeze failed.", file=sys.stderr)
    return [run for path, run in runs.items() if path not in broken]


def read_record(
    path: str | Path, fields: Mapping[str, type | tuple[type, ...]] = MappingProxyType({})
) -> dict:
    """Read one file of the evidence.

    Args:
        fields: names that it must have, each with the type of its value.

    Raises:
        RecordError: no such file, a damaged one, or one of another form. It is named.
    """
    try:
        found = read_json(path)
    except (OSError, ValueError) as error:
        raise RecordError(f"{error}. {REMEDY}") from error
    wrong = [name for name, kind in fields.items() if not isinstance(found.get(name), kind)]
    if wrong:
        raise RecordError(
            f"'{path}' is no such record as expected: {', '.join(wrong)} "
            f"{'is' if len(wrong) == 1 else 'are'} missing, or of another form. {REMEDY}"
        )
    return found
