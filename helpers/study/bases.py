"""Record what the untouched bases lose on every test text of the study: bases.json beside the run files.

    course study bases --books FOLDER      the miniature, and SmolLM2 where it was fetched

A test loss says little without the loss before any training: the gain of a run is the difference of the two.
Windows and settings are those of the study's runs (`record_evidence.py`). An entry is written over by a new one of
the same model; the other models' stay.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from helpers import profiles
from helpers.measuring import held_out_loss
from helpers.session import code_commit, machine_class, versions
from helpers.study import runner as record_evidence
from helpers.study.protocol import read_protocol
from helpers.study.records import rounded, write_record

PLACE = record_evidence.WORK / "bases.json"


def base_losses(profile_name: str, books: Path | None) -> dict:
    """Return the test loss of a base on every window of each test text, with what it was measured on."""
    profile = profiles.current(profile_name)
    study = record_evidence.Study(
        profile_name, profile.model_name, record_evidence.EVIDENCE, books, read_protocol()
    )
    lab = record_evidence.laboratory(study, "B")
    found = {name: held_out_loss(lab.base, windows) for name, windows in lab.test_texts().items()}
    return {
        "model_hash": lab.model_hash,
        "length": study.numbers["length"],
        "machine": machine_class(),
        "versions": versions(),
        "commit": code_commit(),
        "test_windows": {name: rounded(loss.per_window) for name, loss in found.items()},
    }


def write(profile_names: Sequence[str] = ("tiny",), books: Path | None = None) -> None:
    """Measure and keep the losses of these bases; with ``books`` on the real authors as well."""
    for name in profile_names:
        entry = base_losses(name, books)
        known = json.loads(PLACE.read_text("utf-8")) if PLACE.exists() else {}
        write_record(PLACE, known | {profiles.current(name).model_name: entry})
        means = {text: round(sum(losses) / len(losses), 3) for text, losses in entry["test_windows"].items()}
        print(f"{name}: {means}")
