"""Record the runs of the second study: one JSON file a run, under build/study2/runs/.

    course study second --dry-run            how many runs there are, and about how long they take
    course study second                      make what is missing; stop and go on at any time
    course study second --workers 1          one process, for a busy machine
    course study second --profile smollm2    one base only
    course study second --stages first       a part of the order only

Every number comes from data/evidence/PROTOCOL-2.md, which must be committed before the first run. Each record
stores the hash of that page and of the base. A record that was made with another one is named, and nothing runs
until it is out of the way. Workers have one thread each and stand back behind everything else on the machine.
"""

from __future__ import annotations

import concurrent.futures
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from helpers.files import counted
from helpers.measuring import SecondRunRecord
from helpers.study.processes import cancelled_by_ctrl_c, executor
from helpers.study.protocol import ProtocolError, read_protocol
from helpers.study.records import read_run
from helpers.study.runner import require_committed
from helpers.training import stopped_by_ctrl_c

NICENESS = 10


def record(
    profile_names: Sequence[str] = (),
    stages: Sequence[str] = (),
    n_workers: int = 2,
    page: Path | None = None,
    folder: Path | None = None,
    dry_run: bool = False,
) -> None:
    """Say what would run, then make the runs that are missing.

    Args:
        profile_names, stages: only these sections and parts of the order; none for all.
        n_workers: processes with one thread each; 0 for none beside this one.
        page: the protocol; None for the second study's own.
        folder: where to write; None for build/study2.

    Raises:
        SystemExit, ProtocolError, ProfileError, StudyError: the study cannot start or go on.
    """
    from helpers.study import second_study

    page = page or second_study.PAGE
    protocol = read_protocol(page)
    require_stages(stages, protocol["study"]["order"])  # before a model is looked for
    studies = [
        second_study.open_study(name, protocol, folder and folder.resolve())
        for name in profile_names or protocol["study"]["profiles"]
    ]
    queue = queue_of(studies, stages)
    print_plan(queue, n_workers)
    if dry_run:
        return
    require_committed(page)
    require_fresh(studies)
    run_all([(s, j) for s, j in queue if not s.record_path(j).exists()], n_workers)


def require_stages(stages: Sequence[str], order: Sequence[str]) -> None:
    """Raises ProtocolError where a stage is not one of the protocol's order."""
    if unknown := sorted(set(stages) - set(order)):
        raise ProtocolError(f"The protocol's order has no '{unknown[0]}'. It has: {', '.join(order)}.")


def queue_of(studies: list, stages: Sequence[str]) -> list[tuple]:
    """(study, job) in order: a stage of each base in turn, before the next stage begins."""
    from helpers.study.second_study import jobs_of

    order = studies[0].rules["order"]
    require_stages(stages, order)
    return [(s, j) for name in order if name in (stages or order) for s in studies for j in jobs_of(s, name)]


def require_fresh(studies: list) -> None:
    """Raises SystemExit where a record was made with another base, text, protocol or setting."""
    from helpers.study import second_study

    problems = []
    for study in studies:
        hashes = second_study.prepare(study)
        problems += second_study.stale(study, second_study.jobs_of(study), hashes)
    if problems:
        more = f"\n  … and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise SystemExit(
            "Some records were made with another model, protocol or setting:\n  "
            + "\n  ".join(problems[:8])
            + more
            + "\nMove them away, then start again."
        )


def run_all(queue: list[tuple], n_workers: int) -> None:
    """Make the runs in order. One that fails is named at the end; the others go on."""
    from helpers.study.second_study import do

    began, failed = time.perf_counter(), []
    with stopped_by_ctrl_c(), executor(n_workers, NICENESS) as pool, cancelled_by_ctrl_c(pool):
        futures = {pool.submit(do, study, job): (study, job) for study, job in queue}
        for n_done, future in enumerate(concurrent.futures.as_completed(futures), 1):
            (study, job), error = futures[future], future.exception()
            what = f"{n_done}/{len(queue)}  {study.model_name}/{job.place}"
            if error is not None:
                failed.append(f"{study.model_name}/{job.place}: {type(error).__name__}: {error}")
                print(f"{what}  FAILED {type(error).__name__}: {error}", flush=True)
                continue
            print(
                f"{what}  {future.result()[1]:.0f} s, {(time.perf_counter() - began) / 60:.0f} minutes so far",
                flush=True,
            )
    if failed:
        raise SystemExit(
            f"{counted(len(failed), 'run')} failed; the others are recorded. The first: {failed[0]}"
        )


# --- the estimate ------------------------------------------------------------------


def measured_seconds(study) -> dict[tuple, float]:
    """Mean wall seconds of this base's recorded runs: by plan and rate, and of all, under ()."""
    sums: dict[tuple, list[float]] = {}
    for path in (study.folder / "runs" / study.model_name).rglob("*.json"):
        run = read_run(path, SecondRunRecord)
        if run.resumed_at == 0:
            for key in ((run.plan, run.rate), ()):
                sums.setdefault(key, []).append(run.wall_seconds)
    return {key: sum(v) / len(v) for key, v in sums.items()}


def estimate(study, job, measured: dict[tuple, float]) -> float:
    """Seconds that a run takes: measured on runs like it, on all runs of its base, or the protocol's estimate."""
    return measured.get((job.plan, job.rate), measured.get((), study.numbers["seconds_a_run"]))


def print_plan(queue: list[tuple], n_workers: int) -> float:
    """Runs and hours of each stage and base; returns the hours that are left."""
    from helpers.study.second_study import missing_texts

    studies = list(dict.fromkeys(study.section for study, _ in queue))
    by_section = {study.section: study for study, _ in queue}
    measured = {section: measured_seconds(by_section[section]) for section in studies}
    runs, to_do, hours = Counter(), Counter(), Counter()
    for study, job in queue:
        key = job.stage, study.section
        runs[key] += 1
        if not study.record_path(job).exists():
            to_do[key] += 1
            hours[key] += estimate(study, job, measured[study.section]) / max(1, n_workers) / 3600
    for stage, section in runs:
        key = stage, section
        print(
            f"{stage:<8} {by_section[section].model_name:<24} {runs[key]:>4} runs, {to_do[key]:>4} to do, "
            f"{hours[key]:5.2f} hours"
        )
    for section, study in by_section.items():
        basis = (
            "measured on the recorded runs"
            if measured[section]
            else "the protocol's estimate, before any run"
        )
        print(f"{study.model_name}: seconds a run are {basis}")
        for text in missing_texts(study):
            print(f"{study.model_name}: no runs on '{text}': its file is not there yet")
    print(
        f"In all {counted(sum(runs.values()), 'run')}, {sum(to_do.values())} to do, {sum(hours.values()):.1f} hours with "
        f"{counted(n_workers, 'worker')}"
    )
    return sum(hours.values())
