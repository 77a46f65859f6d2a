"""Record what the untouched bases lose on every test text of the study: bases.json beside the run files.

    python -m helpers.study.bases --books FOLDER      the miniature, and SmolLM2 where it was fetched

A test loss says little without the loss before any training: the gain of a run is the difference of the two.
Windows and settings are those of the study's runs (`record_evidence.py`). An entry is written over by a new one of
the same model; the other models' stay.
"""

from __future__ import annotations

import argparse
import json
import sys
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


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--books", type=Path, help="folder with the real authors' books")
    parser.add_argument("--profile", choices=("tiny", "smollm2"), nargs="+", default=["tiny"])
    args = parser.parse_args(arguments)
    for name in args.profile:
        entry = base_losses(name, args.books)
        known = json.loads(PLACE.read_text("utf-8")) if PLACE.exists() else {}
        write_record(PLACE, known | {profiles.current(name).model_name: entry})
        means = {text: round(sum(losses) / len(losses), 3) for text, losses in entry["test_windows"].items()}
        print(f"{name}: {means}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
