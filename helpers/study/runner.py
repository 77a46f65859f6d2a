"""Record the runs behind the verdicts: one JSON file a run under build/study1/, packed into data/evidence at the end.

    course study first --dry-run           what would run, and about how long
    course study first                     run what is missing; stop and go on at any time
    course study first --books FOLDER      with the real authors as a second test
    course study first --profile smollm2   the same study on the real pretrained model
    course study first --texts alice --plans full attention+embeddings      a part of it first

Every number comes from data/evidence/PROTOCOL.md, which must be committed before the first run. Each file
stores the hash of that page and of the model. A file that was made with another one is named, and nothing
runs until it is out of the way (--start-over deletes the evidence of this model).

Stages, in this order: tune, main, books, others, long. Runs come seed by seed, so that a study that is
stopped early still holds whole pairs. Two processes with one thread each.
"""

from __future__ import annotations

import concurrent.futures
import copy
import subprocess
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

from helpers import profiles
from helpers.files import bytes_hash, counted
from helpers.measuring import RunRecord, RunSettings
from helpers.study.jobs import (
    AUTHORS,
    EVIDENCE,
    REAL,
    ROOT,
    STAGES,
    WORK,
    Job,
    Study,
    book_file,
    grid_of,
    half_of,
    has_real_texts,
    jobs_of,
    other_plans,
    plan_of,
    settings_of,
    tuning_job,
    tuning_jobs,
)
from helpers.study.packing import drop, pack, unpack
from helpers.study.processes import cancelled_by_ctrl_c, executor
from helpers.study.protocol import PAGE, ProtocolError, read_protocol
from helpers.study.rates import (
    choose,
    choose_rates,
    chosen_rates,
    extension,
    matched_gain_of,
    row_of,
    tried_rates,
)
from helpers.study.records import RecordError, read_run
from helpers.training import stopped_by_ctrl_c

# --- one run, in a process of its own ----------------------------------------------

_laboratories: dict = {}


def laboratory(study: Study, half: str):
    """Set up once a process and retention text; only one is kept, as a large base takes much memory."""
    if half not in _laboratories:
        _laboratories.clear()
        from helpers.models import load_model, load_tokenizer
        from helpers.study.laboratory import Laboratory
        from helpers.texts import load_corpus

        numbers, profile = study.numbers, profiles.current(study.profile)
        tokenizer = load_tokenizer(profile.model)
        corpora = {
            n: load_corpus(profile.texts[n], tokenizer, numbers["length"], name=n)
            for n in (*AUTHORS, "plain")
        }
        plain = corpora.pop("plain")
        real, long_texts = real_texts(study, tokenizer)
        lab = Laboratory(
            load_model(profile.model),
            corpora | long_texts,
            plain,
            real=real,
            retention=retention_windows(study)[half],
            n_probe=numbers["probe_windows"],
            held_out_windows=numbers["held_out_windows"],
        )
        lab.tokenizer = tokenizer
        _laboratories[half] = lab
    return _laboratories[half]


def real_texts(study: Study, tokenizer) -> tuple[dict, dict]:
    """Windows of the real authors to test on, and the texts that are long enough to train on for one epoch."""
    from helpers.study.laboratory import spread
    from helpers.texts import load_corpus, read_text, tensor_of, windows

    length, most = study.numbers["length"], study.numbers["real_windows"]
    real, long_texts = {}, {}
    if not has_real_texts(study):
        return real, long_texts
    carroll, poe, fresh = (
        book_file(study.books, w) for w in (REAL["alice"][1], REAL["edgar"][1], ("fresh",))
    )
    if carroll is None or poe is None:
        raise SystemExit(
            f"'{study.books}' needs a text of Carroll and one of Poe: a file with 'alice' or 'carroll' in "
            "its name, and one with 'poe' or 'edgar'."
        )
    long_texts["poe"] = load_corpus(poe, tokenizer, length, name="poe")
    if fresh:
        long_texts["fresh"] = load_corpus(fresh, tokenizer, length, name="fresh")
    real["carroll"] = spread(tensor_of(windows(tokenizer, read_text(carroll), length)), most)
    real["poe"] = spread(tensor_of(long_texts["poe"].test), most)  # never a window that a run may train on
    return real, long_texts


def retention_windows(study: Study) -> dict:
    """The two halves of the retention text, by the file that `sample_retention` made."""
    from safetensors.torch import load_file

    return {half: t.long() for half, t in load_file(study.place("retention") / "windows.safetensors").items()}


def sample_retention(study: Study, model, model_hash: str) -> None:
    """Let the base write both halves once, and keep them: a run on another machine then asks the same text."""
    from safetensors.torch import save_file

    from helpers.measuring import sample_windows

    numbers, place = study.numbers, study.place("retention") / "windows.safetensors"
    if place.exists():
        require_same_base(place, model_hash)
        return
    halves = {
        half: sample_windows(model, numbers["retention_windows"], numbers["retention_length"], seed).int()
        for half, seed in numbers["retention_seeds"].items()
    }
    place.parent.mkdir(parents=True, exist_ok=True)
    save_file(halves, place, metadata={"model_hash": model_hash})


def require_same_base(place: Path, model_hash: str) -> None:
    from safetensors import safe_open

    with safe_open(place, framework="pt") as file:
        found = file.metadata()["model_hash"]
    if found != model_hash:
        raise SystemExit(
            f"The retention text '{place.name}' was written by another base: model_hash {found[:12]}, now "
            f"{model_hash[:12]}. Delete this model's evidence with --start-over; then start again."
        )


def do(study: Study, job: Job) -> tuple[Path, float]:
    """Run one job and write its file in one move."""
    from helpers.study.laboratory import Diverged
    from helpers.study.records import write_run

    began = time.perf_counter()
    lab = laboratory(study, half_of(job))
    plan, prepare = plan_of(job.plan, lab.base.config)
    settings = settings_of(study, job)
    try:
        run = lab.run(
            plan,
            job.text,
            settings,
            progress=False,
            forgetting=job.stage != "long",
            name=job.plan,
            prepare=(lambda model: prepare(model, job.seed)) if prepare else None,
        )
        entry = lab.record(run, tests=False) | after_run(study, lab, run, job)
    except Diverged as error:
        entry = {
            "diverged": str(error),
            "model_hash": lab.model_hash,
            "plan": job.plan,
            "text": job.text,
            "seed": job.seed,
            "rate": job.rate,
            "retention_hash": lab.retention.text_hash,
            "settings": asdict(settings),
            "test_windows": {},
            "evaluations": error.evaluations,
        }
    seconds = time.perf_counter() - began
    write_run(
        job.path,
        {
            "rate_choice": job.choice,
            "stage": job.stage,
            "model_name": study.model_name,
            "protocol": study.protocol.sha256,
            "n_amendments": study.protocol.n_amendments,
            "wall_seconds": round(seconds, 1),
            **entry,
        },
        RunRecord,
    )
    return job.path, seconds


def after_run(study: Study, lab, run, job: Job) -> dict:
    """What a finished run is asked with its best weights: tests, function words, swaps, words learned by heart.

    Tuning runs see no test text. Swaps and words by heart are asked of some seeds only.
    """
    from helpers import measuring
    from helpers.study.records import rounded
    from helpers.texts import tensor_of

    if job.stage in ("tune", "long") or job.choice == "tuning":
        return {}
    if "is_function" not in vars(lab):
        lab.is_function = measuring.function_tokens(lab.tokenizer)
    best = copy.deepcopy(run.model)
    run.result.use_best(best)
    found = {t: measuring.function_losses(best, w, lab.is_function) for t, w in lab.test_texts().items()}
    entry = {
        "test_windows": {t: rounded(a) for t, (a, _) in found.items()},
        "function_windows": {t: rounded(f) for t, (_, f) in found.items()},
    }
    seeds, is_deciding = study.numbers["seeds"], job.stage == "main" and "learn" in job.choice
    if is_deciding and job.plan == "full" and job.seed < seeds["swap"]:
        texts = {a: lab.held_out(lab.corpora[a].test) for a in AUTHORS}
        entry["swap"] = measuring.swap_losses(lab.base, best, texts)
    if is_deciding and job.seed < seeds["memorisation"]:
        corpus = lab.corpora[job.text]
        train, held_out = tensor_of(corpus.train), tensor_of(corpus.test)
        models = {"best": best, "last": run.model} | ({"base": lab.base} if job.seed == 0 else {})
        entry["memorisation"] = {
            name: measuring.memorisation(m, train, held_out) for name, m in models.items()
        }
    return entry


# --- running them ------------------------------------------------------------------


def stale(study: Study, jobs: Iterable[Job], model_hash: str) -> list[str]:
    """What is there and was made with something else: one sentence a file."""
    hashes = {half: bytes_hash(w) for half, w in retention_windows(study).items()}
    problems = []
    for job in jobs:
        if not job.path.exists():
            continue
        found = read_run(job.path)
        wanted = {
            "model_hash": model_hash,
            "protocol": study.protocol.sha256,
            "rate": job.rate,
            "retention_hash": hashes[half_of(job)],
            "settings": RunSettings(**asdict(settings_of(study, job))),
            "rate_choice": job.choice,
        }
        other = [k for k, v in wanted.items() if getattr(found, k) != v]
        if found.test_windows and ("poe" in found.test_windows) != has_real_texts(study):
            other.append("the test on the real authors (the same --books for all runs)")
        twin = job.path.with_name(f"{job.seed}-learn.json")
        if job.choice == "keep and learn" and twin.exists():
            other.append(f"'{twin.name}' beside it, for a rate that is no longer another one")
        if other:
            problems.append(f"{job.path.relative_to(study.folder)} differs in {', '.join(other)}")
    return problems


def refuse_stale(study: Study, jobs: Iterable[Job], model_hash: str) -> None:
    problems = stale(study, jobs, model_hash)
    if problems:
        more = f"\n  … and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise SystemExit(
            "Some evidence was made with another model, protocol or setting:\n  "
            + "\n  ".join(problems[:8])
            + more
            + "\nMove it away, or delete this model's evidence with --start-over; then start again."
        )


def start_over(study: Study) -> None:
    """Delete the recorded evidence of this model, and of no other: the files that are records, and follow no link."""
    for kind in ("tuning", "runs", "long"):
        for path in [] if study.place(kind).is_symlink() else study.place(kind).rglob("*.json"):
            if path.is_file() and not path.is_symlink() and is_record(path):
                path.unlink()
    (study.place("retention") / "windows.safetensors").unlink(missing_ok=True)
    study.rates_file.unlink(missing_ok=True)


def is_record(path: Path) -> bool:
    """Whether a file is one that `do` wrote; a damaged one cannot be told from a reader's own, and stays."""
    try:
        run = read_run(path)
    except RecordError:
        return False
    return None not in (run.model_hash, run.protocol)


def require_committed(page: Path) -> None:
    """In a checkout the protocol must be committed, so that it stood before its runs."""
    if not (ROOT / ".git").exists() or not page.resolve().is_relative_to(ROOT):
        return
    said = subprocess.run(
        ["git", "-C", str(ROOT), "status", "--porcelain", "--", str(page)], capture_output=True, text=True
    )
    if said.returncode == 0 and said.stdout.strip():
        raise SystemExit(
            f"{page.name} is changed or new since the last commit. Commit it first: the rules must stand "
            "before the runs that they judge."
        )


def run_all(study: Study, jobs: list[Job], n_processes: int) -> None:
    """Run what is missing, in order. A run that fails is named at the end; the others go on."""
    missing = [j for j in jobs if not j.path.exists()]
    print(f"{counted(len(jobs), 'run')}, {len(jobs) - len(missing)} there already", flush=True)
    if not missing:
        return
    began, failed = time.perf_counter(), []
    with stopped_by_ctrl_c(), executor(n_processes) as pool, cancelled_by_ctrl_c(pool):
        futures = {pool.submit(do, study, j): j for j in missing}
        for done, future in enumerate(concurrent.futures.as_completed(futures), 1):
            job, error = futures[future], future.exception()
            if error is not None:
                failed.append(f"{job.path.relative_to(study.folder)}: {type(error).__name__}: {error}")
                print(f"{done}/{len(missing)}  FAILED {failed[-1]}", flush=True)
                continue
            left = (time.perf_counter() - began) / done * (len(missing) - done) / 60
            print(
                f"{done}/{len(missing)}  {job.plan}/{job.text}/{job.path.stem}  {future.result()[1]:.0f} s, "
                f"{left:.0f} minutes left in this stage",
                flush=True,
            )
    if failed:
        raise SystemExit(
            f"{counted(len(failed), 'run')} failed; the others are recorded. The first: {failed[0]}"
        )


def tune(study: Study, plans: list[str], texts: list[str], seeds: list[int], n_processes: int) -> None:
    """The grid, then beyond an edge where an optimum lies there, until none does or the limit is reached."""
    grid = study.now(tuning_jobs(study, plans, texts, seeds))
    run_all(study, grid, n_processes)
    while True:
        levels = {
            t: matched_gain_of(study, t, study.numbers["seeds"]["tuning"]) for t in {j.text for j in grid}
        }
        new = []
        for plan, text in dict.fromkeys((j.plan, j.text) for j in grid):
            rates = tried_rates(study, plan, text, seeds)
            chosen = choose([row_of(study, plan, text, r, seeds, levels[text]) for r in rates])
            new += [
                tuning_job(study, plan, text, r, s)
                for s in seeds
                for r in extension(study, rates, grid_of(study, plan), chosen)
            ]
        if not new:
            return
        print(
            "An optimum lies at the edge of the grid: "
            + ", ".join(sorted({f"{j.plan} on {j.text} at {j.rate:g}" for j in new})),
            flush=True,
        )
        run_all(study, new, n_processes)


def run_stage(study: Study, stage: str, n_processes: int) -> None:
    numbers, seeds = study.numbers, study.numbers["seeds"]
    print(f"Stage {stage}", flush=True)
    if stage == "tune":
        tune(study, numbers["deciding_plans"], list(AUTHORS), seeds["tuning"], n_processes)
        choose_rates(study)
        return
    if stage == "others":
        tune(study, other_plans(study), numbers["other_texts"], seeds["tuning"][:1], n_processes)
        choose_rates(study)
    jobs = [j for j in study.now(jobs_of(study, stage, chosen_rates(study))) if j.choice != "tuning"]
    if untuned := sorted({f"{j.plan} on {j.text}" for j in jobs if j.rate is None}):
        raise SystemExit(
            f"No rate has been chosen yet for {', '.join(untuned)}. Run the stage 'tune' for them first, "
            "or leave them out with --plans and --texts."
        )
    run_all(study, jobs, n_processes)


# --- the estimate ------------------------------------------------------------------


def measured_seconds(study: Study) -> dict[str, float]:
    """Mean wall seconds of the recorded runs of this model: of each plan, of each stage, and of all ("")."""
    sums: dict[str, list[float]] = {}
    for kind in ("tuning", "runs", "long"):
        for path in study.place(kind).rglob("*.json"):
            run = read_run(path)
            if run.wall_seconds is not None:
                for key in (path.parent.parent.name, run.stage, ""):
                    sums.setdefault(key, []).append(run.wall_seconds)
    return {key: sum(v) / len(v) for key, v in sums.items()}


def seconds_of(study: Study, job: Job, measured: dict[str, float]) -> float:
    if job.stage == "long":
        share = study.numbers["long_steps"] / study.numbers["n_steps"]
        return measured.get("long", share * measured.get("", study.numbers["seconds_a_run"]))
    return measured.get(job.plan, measured.get(job.stage, measured.get("", study.numbers["seconds_a_run"])))


def print_plan(study: Study, stages: Iterable[str], n_processes: int) -> float:
    """Each stage's runs and hours; returns the hours that are left."""
    measured, chosen, total = measured_seconds(study), chosen_rates(study), 0.0
    basis = "measured on the recorded runs" if measured else "before any run: the protocol's estimate"
    print(f"{study.model_name}: seconds a run are {basis}; {counted(n_processes, 'process')}")
    for stage in stages:
        if stage == "books" and study.books is None:
            print("books    no runs: give --books FOLDER")
            continue
        jobs = study.now(jobs_of(study, stage, chosen))
        missing = [j for j in jobs if not j.path.exists()]
        hours = sum(seconds_of(study, j, measured) for j in missing) / max(1, n_processes) / 3600
        total += hours
        at_most = chosen is None and stage in ("main", "others")
        print(
            f"{stage:<8} {len(jobs):>4} runs, {len(missing):>4} to do, {hours:5.2f} hours"
            + ("  (at most: where a plan's two rates are one, a run serves twice)" if at_most else "")
        )
    print(f"In all {total:.1f} hours. An optimum at the edge of the grid adds tuning runs.")
    return total


def record(
    profile: str = "tiny",
    folder: Path = WORK,
    books: Path | None = None,
    stages: Sequence[str] = (),
    n_seeds: int | None = None,
    plans: Sequence[str] = (),
    texts: Sequence[str] = (),
    n_processes: int = 2,
    dry_run: bool = False,
    anew: bool = False,
) -> None:
    """Say what would run, then run what is missing.

    Args:
        folder: where run files go; PROTOCOL.md may lie there.
        books: a folder with the real authors; None leaves the stage out.
        stages, plans, texts: only these now; none for all.
        n_seeds: at most so many main seeds.
        anew: first delete this model's records.

    Raises:
        SystemExit, ProtocolError, RecordError: the study cannot start or go on.
    """
    study = study_of(profile, folder, books, plans, texts, n_seeds)
    require_known("stage", stages, STAGES)
    stages = stages or [s for s in STAGES if s in study.numbers["stages"]]
    if folder == WORK:
        unpack(EVIDENCE, WORK)
    print_plan(study, stages, n_processes)
    if dry_run:
        return
    require_committed(page_of(folder))
    if anew:
        start_over(study)
        if folder == WORK:
            drop(EVIDENCE, profiles.PROFILES[study.profile])
    model_hash = prepare(study)
    for stage in stages:
        if stage == "books" and study.books is None:
            print("Stage books: left out, no --books FOLDER")
            continue
        refuse_stale(study, recorded_jobs(study), model_hash)
        run_stage(study, stage, n_processes)
    if folder == WORK:
        pack(WORK, EVIDENCE)


def page_of(folder: Path) -> Path:
    """The protocol of a folder of run files: its own, or else the course's."""
    own = folder / PAGE.name
    return own if own.exists() or folder != WORK else PAGE


def require_known(what: str, asked: Iterable[str], known: Iterable[str]) -> None:
    """Raises ProtocolError where a word is none of those that are known."""
    if unknown := [word for word in asked if word not in known]:
        raise ProtocolError(f"The study has no {what} '{unknown[0]}'. It has: {', '.join(known)}.")


def study_of(
    profile_name: str,
    folder: Path,
    books: Path | None,
    plans: Sequence[str],
    texts: Sequence[str],
    n_seeds: int | None,
) -> Study:
    """The study of one model, as its protocol has it.

    Raises:
        ProfileError, ProtocolError: the protocol has no such profile, text or plan.
    """
    profile, protocol = profiles.current(profile_name), read_protocol(page_of(folder))
    numbers = protocol[profile_name]
    require_known("text", texts, AUTHORS)
    known = [*numbers["deciding_plans"], *numbers["other_plans"]]
    if unknown := [p for p in plans if p not in known]:
        raise ProtocolError(
            f"The study of this profile has no plan '{unknown[0]}'. It has: {', '.join(known)}."
        )
    if n_seeds:
        numbers["seeds"]["main"] = min(n_seeds, numbers["seeds"]["main"])
    return Study(profile_name, profile.model_name, folder, books, protocol, tuple(plans), tuple(texts))


def prepare(study: Study) -> str:
    """Load the base once, let it write the retention text, and return its hash."""
    from helpers.models import load_model, weight_hash

    model = load_model(profiles.current(study.profile).model)
    found = weight_hash(model)
    sample_retention(study, model, found)
    return found


def recorded_jobs(study: Study) -> list[Job]:
    """Every job whose file may be there: all stages, and the tuning runs beyond the grid.

    A plan or text that the rates file does not name has no settings yet to compare with.
    """
    chosen, seeds = chosen_rates(study), study.numbers["seeds"]["tuning"]
    jobs = [j for stage in STAGES for j in jobs_of(study, stage, chosen) if j.rate is not None]
    plans = [*study.numbers["deciding_plans"], *other_plans(study)]
    return jobs + [
        tuning_job(study, p, t, r, s)
        for p in plans
        for t in AUTHORS
        for s in seeds
        for r in study.protocol["decisions"]["ladder"]
        if r not in grid_of(study, p)
    ]
