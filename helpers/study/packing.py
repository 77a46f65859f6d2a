"""Pack the run files of a study into the Parquet files of the evidence, and unpack them again.

    course study pack                        build/study1 -> data/evidence
    course study pack --unpack               data/evidence -> build/study1, to go on with the study
    course study pack --folder build/study2  the second study

While a study is under way a record is one JSON file, under build/ and outside git; a run that is killed leaves
the others whole. Equal records give equal bytes: rows are sorted, nothing tells the time.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from helpers.files import counted
from helpers.profiles import Profile
from helpers.study.jobs import EVIDENCE
from helpers.study.records import RecordError, read_record, write_record
from helpers.study.tables import read_table, table_of, tables_in, write_table

SMALL = ("bases", "style", "benchmark", "memory", "card")
SECOND = "study2"
WINDOWS = "windows.safetensors"  # under retention/MODEL/, beside the run files of either study


def pack(folder: Path, evidence: Path, replaces: bool = False) -> list[Path]:
    """Write the Parquet files of what lies in a folder of run files; those of other records stay as they are.

    Args:
        folder: holds runs/, tuning/, long/ with MODEL/PLAN/TEXT/NAME.json, rates*.json and the small files.
        replaces: whether what the evidence has and the folder has not may go.

    Returns:
        The files written.

    Raises:
        RecordError: a file that is damaged, of another form, missing beside the evidence, or holds less than the
            evidence's own. Nothing is written.
    """
    folder, evidence = Path(folder), Path(evidence)
    found: dict[str, dict[str, dict]] = {}
    for path in record_files(folder):
        record = read_record(path)
        name, file = place_of(path.relative_to(folder), record)
        found.setdefault(name, {})[file] = record
    for name, records in found.items():
        place = evidence / f"{name}.parquet"
        if place.exists() and not replaces:
            require_no_less(place, read_table(place), records, folder)
    made = {evidence / f"{name}.parquet": table_of(name, records) for name, records in sorted(found.items())}
    evidence.mkdir(parents=True, exist_ok=True)
    for place, table in made.items():
        write_table(place, table)
    study = SECOND if any(name.startswith(SECOND) for name in found) else ""
    for path in folder.glob(f"retention/*/{WINDOWS}"):
        copy(path, evidence / path.parent.relative_to(folder) / kept_windows(study))
    return list(made)


def require_no_less(place: Path, there: dict[str, dict], records: dict[str, dict], folder: Path) -> None:
    """Raise RecordError where a Parquet file has a record that a folder lacks, or one with a longer list."""
    if lost := sorted(there.keys() - records.keys()):
        raise RecordError(
            f"'{place}' holds {counted(len(lost), 'record', 'that is', 'that are')} not in '{folder}', such as {lost[0]}. "
            "Unpack first (--unpack), or give --replace to drop them."
        )
    for file, record in there.items():
        for name, value in record.items():
            n_there, n_here = (
                len(v) if isinstance(v, list | dict) else 0 for v in (value, records[file].get(name))
            )
            if n_here < n_there:
                raise RecordError(
                    f"'{folder / file}' has {n_here} entries under {name}, and the record in '{place}' {n_there}. "
                    "Measure the rest, or give --replace to drop them."
                )


def unpack(evidence: Path, folder: Path, study: str = "") -> list[str]:
    """Write the records of the evidence as files. One that is there already stays as it is.

    Args:
        study: "study2" for the runs of the second study alone; "" for all others.

    Returns:
        The paths of the files written, under the folder.
    """
    written = []
    for table in tables_in(Path(evidence)):
        if (table.stem.partition("-")[0] == SECOND) != (study == SECOND):
            continue
        for file, record in read_table(table).items():
            place = Path(folder) / file.removeprefix(f"{SECOND}/")
            if not place.exists():
                write_record(place, record)
                written.append(place)
    for path in Path(evidence).glob(f"retention/*/{kept_windows(study)}"):
        place = Path(folder) / path.parent.relative_to(evidence) / WINDOWS
        if not place.exists():
            copy(path, place)
    return [p.relative_to(folder).as_posix() for p in written]


def drop(evidence: Path, profile: Profile) -> None:
    """Delete what the evidence holds of the first study of a profile: its runs, its windows, its rates."""
    (evidence / f"study1-{profile.model_name}.parquet").unlink(missing_ok=True)
    (evidence / "retention" / profile.model_name / "windows.safetensors").unlink(missing_ok=True)
    place = evidence / "rates.parquet"
    if place.exists():
        kept = read_table(place, lambda file: file != profile.rates_name)
        write_table(place, table_of(place.stem, kept))


def record_files(folder: Path) -> list[Path]:
    """The files of a folder that are records."""
    runs = [p for kind in ("runs", "tuning", "long") for p in (folder / kind).rglob("*.json")]
    small = [folder / f"{name}.json" for name in SMALL]
    return sorted([*runs, *folder.glob("rates*.json"), *(p for p in small if p.exists())])


def place_of(path: Path, record: dict) -> tuple[str, str]:
    """(name of the Parquet file, path of the record in it) of a file under the folder of run files."""
    if len(path.parts) == 1:
        return ("rates" if path.stem.startswith("rates") else path.stem), path.name
    model = path.parts[1]
    if "retention_hashes" in record:
        return f"{SECOND}-{model}", f"{SECOND}/{path.as_posix()}"
    return f"study1-{model}", path.as_posix()


def kept_windows(study: str) -> str:
    """What the evidence calls a study's windows: those of the second study hold part C, and stand beside the first's."""
    return f"{SECOND}.safetensors" if study == SECOND else WINDOWS


def copy(path: Path, place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, place)


def carry_out(folder: Path, unpacking: bool, replaces: bool, evidence: Path = EVIDENCE) -> None:
    """Pack or unpack, and say what was written; what the command does."""
    if unpacking:
        study = SECOND if folder.name == SECOND else ""
        print(f"{counted(len(unpack(evidence, folder, study)), 'record')} written under '{folder}'")
        return
    written = pack(folder, evidence, replaces)
    if not written:
        raise RecordError(
            f"There are no run files under '{folder}'. Record some (course study first), or give another --folder."
        )
    for path in written:
        print(f"{path}  {path.stat().st_size:,} bytes")
