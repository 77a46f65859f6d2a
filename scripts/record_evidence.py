"""Record the runs that notebook 05 and the README read: one JSON file a run, under data/evidence/.

    python scripts/record_evidence.py --dry-run     what would run, and about how long
    python scripts/record_evidence.py               run what is missing; stop and go on at any time

Protocol (fixed before the runs):
 1. tune   four plans x both authors x a half-decade grid of rates, seed 900, retention text A.
 2. choose for each plan and author two rates: "keep" forgets least at the matched gain (80% of
           full training's best gain), "learn" has the lowest dev loss.
 3. main   the same plans and authors at those rates, seeds 0, 1, 2, ...; retention text B.
The grid was first 1e-4, 3e-4, 1e-3. The tuning runs at 1e-4 and 3e-4 showed the optimum at the lower
edge, so the grid was moved half a decade down before any main run and before any run at 1e-3.
Settings of every run: AdamW, no weight decay, no dropout, no clipping, warm-up of 5 steps, then a
constant rate. A seed changes the order of the text alone. Two processes with one thread each.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import multiprocessing
import os
import time
from dataclasses import dataclass
from pathlib import Path

GRID = (3e-5, 1e-4, 3e-4)
PLANS = ("full", "attention+embeddings", "only-attention", "only-mlp-out")
AUTHORS = ("alice", "edgar")
TUNING_SEED = 900
N_STEPS, BATCH = 80, 8
EVALUATE_AT = 8  # steps between evaluations
RETENTION = {"A": 1234, "B": 5678}  # seeds of the two retention texts
N_RETENTION = 32  # windows of each


@dataclass(frozen=True)
class Job:
    """One run: what to train and where its file goes."""

    plan: str
    author: str
    seed: int
    rate: float
    choice: str  # "tuning", "keep", "learn" or "keep and learn"
    path: Path


def tuning_jobs(folder: Path, model_name: str) -> list[Job]:
    place = folder / "tuning" / model_name
    return [Job(p, a, TUNING_SEED, r, "tuning", place / p / a / f"{TUNING_SEED}-{r:g}.json")
            for r in GRID for p in PLANS for a in AUTHORS]


def main_jobs(folder: Path, model_name: str, seeds: range) -> list[Job]:
    """Seed by seed, so that a run stopped early still holds whole pairs."""
    rates = json.loads((folder / "rates.json").read_text("utf-8"))["chosen"]
    place = folder / "runs" / model_name
    jobs = []
    for choice in ("keep", "learn"):
        for seed in seeds:
            for plan in PLANS:
                for author in AUTHORS:
                    chosen = rates[plan][author]
                    both = chosen["keep"] == chosen["learn"]
                    if choice == "learn" and both:
                        continue
                    name = f"{seed}.json" if choice == "keep" else f"{seed}-learn.json"
                    jobs.append(Job(plan, author, seed, chosen[choice], "keep and learn" if both else choice,
                                    place / plan / author / name))
    return jobs


def choose_rates(folder: Path, model_name: str) -> None:
    """Read the tuning runs and write ``rates.json``: the table of all rates, and the chosen ones."""
    from helpers.comparison import forgetting_at, frontier

    table, chosen, levels = [], {p: {} for p in PLANS}, {}
    for author in AUTHORS:
        runs = {(p, r): json.loads((folder / "tuning" / model_name / p / author / f"{TUNING_SEED}-{r:g}.json")
                                   .read_text("utf-8"))["evaluations"] for p in PLANS for r in GRID}
        levels[author] = 0.8 * max(frontier(runs["full", r])[0][-1] for r in GRID)
        for plan in PLANS:
            rows = []
            for rate in GRID:
                best = float(frontier(runs[plan, rate])[0][-1])
                rows.append({"plan": plan, "text": author, "rate": rate, "best_gain": round(best, 4),
                             "forgetting_at_level": forgetting_at(runs[plan, rate], levels[author])})
            reaching = [r for r in rows if r["forgetting_at_level"] is not None]
            learn = max(rows, key=lambda r: r["best_gain"])
            keep = min(reaching, key=lambda r: r["forgetting_at_level"]) if reaching else learn
            chosen[plan][author] = {"keep": keep["rate"], "learn": learn["rate"]}
            table += rows
    record = {"matched_gain": levels, "grid": GRID, "seed": TUNING_SEED, "chosen": chosen, "table": table}
    (folder / "rates.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


# --- workers -----------------------------------------------------------------------

_laboratories: dict = {}


def laboratory(half: str):
    """Set up once a process and retention text."""
    if half not in _laboratories:
        from helpers import profiles
        from helpers.corpora import load_corpus
        from helpers.models import load_model, load_tokenizer
        from helpers.study import Laboratory

        profile = profiles.current("tiny")
        tokenizer = load_tokenizer(profile.model)
        corpora = {n: load_corpus(profile.texts[n], tokenizer, profile.length, name=n)
                   for n in (*AUTHORS, "plain")}
        plain = corpora.pop("plain")
        _laboratories[half] = Laboratory(load_model(profile.model), corpora, plain, n_retention=N_RETENTION,
                                         retention_seed=RETENTION[half])
    return _laboratories[half]


def do(job: Job) -> tuple[Path, float]:
    """Run one job and write its file in one atomic move."""
    from helpers.checkpoints import write_json
    from helpers.freezing import COURSE_PLANS
    from helpers.training import TrainSettings

    began = time.perf_counter()
    lab = laboratory("A" if job.choice == "tuning" else "B")
    settings = TrainSettings(n_steps=N_STEPS, rate=job.rate, batch=BATCH, seed=job.seed,
                             evaluate_every=EVALUATE_AT, save_every=N_STEPS)
    run = lab.run(COURSE_PLANS[job.plan], job.author, settings, progress=False)
    entry = {"rate_choice": job.choice, **lab.record(run)}
    job.path.parent.mkdir(parents=True, exist_ok=True)
    write_json(job.path, entry)
    return job.path, time.perf_counter() - began


def run_all(jobs: list[Job], n_processes: int) -> None:
    missing = [j for j in jobs if not j.path.exists()]
    print(f"{len(jobs)} runs, {len(jobs) - len(missing)} there already", flush=True)
    if not missing:
        return
    os.environ["OMP_NUM_THREADS"] = "1"  # read by the workers when they start
    began = time.perf_counter()
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(n_processes, mp_context=context) as pool:
        for done, future in enumerate(concurrent.futures.as_completed([pool.submit(do, j) for j in missing]), 1):
            path, seconds = future.result()
            left = (time.perf_counter() - began) / done * (len(missing) - done) / 60
            print(f"{done}/{len(missing)}  {path.parent.parent.name}/{path.parent.name}/{path.stem}  "
                  f"{seconds:.0f} s, {left:.0f} minutes left", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(__file__).resolve().parent.parent / "data" / "evidence")
    parser.add_argument("--model-name", default="gpt-neo-mini", help="name of the folder of runs")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--dry-run", action="store_true", help="only say what would run")
    args = parser.parse_args()
    tuning = tuning_jobs(args.folder, args.model_name)
    if args.dry_run:
        most = len(tuning) + 2 * args.seeds * len(PLANS) * len(AUTHORS)
        seconds = [json.loads(p.read_text("utf-8"))["seconds"] for p in args.folder.rglob("*00-*.json")]
        each = sum(seconds) / len(seconds) if seconds else 60
        print(f"{len(tuning)} tuning runs and up to {most - len(tuning)} main runs; at about {1.3 * each:.0f} s each "
              f"in {args.processes} processes: up to {1.3 * each * most / args.processes / 3600:.1f} hours")
        return
    run_all(tuning, args.processes)
    choose_rates(args.folder, args.model_name)
    run_all(main_jobs(args.folder, args.model_name, range(args.seeds)), args.processes)


if __name__ == "__main__":
    main()
