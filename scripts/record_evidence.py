"""Record the runs behind the verdicts: one JSON file a run, under data/evidence/.

    python scripts/record_evidence.py --dry-run           what would run, and about how long
    python scripts/record_evidence.py                     run what is missing; stop and go on at any time
    python scripts/record_evidence.py --books FOLDER      with the real authors as a second test
    python scripts/record_evidence.py --profile smollm2   the same study on the real pretrained model
    python scripts/record_evidence.py --texts alice --plans full attention+embeddings      a part of it first

Every number comes from data/evidence/PROTOCOL.md, which must be committed before the first run. Each file
stores the hash of that page and of the model. A file that was made with another one is named, and nothing
runs until it is out of the way (--start-over deletes the evidence of this model).

Stages, in this order: tune, main, books, others, long. Runs come seed by seed, so that a study that is
stopped early still holds whole pairs. Two processes with one thread each.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import copy
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from helpers import profiles
from helpers.checkpoints import bytes_hash, write_json
from helpers.protocol import Protocol, ProtocolError, read_protocol
from helpers.records import RUN_FIELDS, RecordError, read_record
from helpers.workers import cancelled_by_ctrl_c, executor, stopped_by_ctrl_c

ROOT = Path(__file__).resolve().parent.parent
EVIDENCE = ROOT / "data" / "evidence"
STAGES = ("tune", "main", "books", "others", "long")
AUTHORS = ("alice", "edgar")
FULL = "full"  # what the other plans are compared with, and whose gain sets the level
REAL = {"alice": ("carroll", ("alice", "carroll")), "edgar": ("poe", ("edgar", "poe"))}  # test name, words in files


@dataclass(frozen=True)
class Job:
    """One run: what to train, on what, and where its file goes."""

    stage: str
    plan: str
    text: str
    seed: int
    rate: float
    choice: str  # "tuning", "keep", "learn", "keep and learn" or "long"
    path: Path


@dataclass(frozen=True)
class Study:
    """Which study: the model, its part of the protocol, the folders. Small enough to send to a process."""

    profile: str
    model_name: str
    folder: Path
    books: Path | None
    protocol: Protocol
    plans: tuple[str, ...] = ()  # only these for now; empty: all
    texts: tuple[str, ...] = ()

    @property
    def numbers(self) -> dict:
        return self.protocol[self.profile]

    @property
    def rates_file(self) -> Path:
        return self.folder / ("rates.json" if self.profile == "tiny" else f"rates-{self.profile}.json")

    def place(self, kind: str) -> Path:
        return self.folder / kind / self.model_name

    def now(self, jobs: Iterable[Job]) -> list[Job]:
        """Those of the plans and texts that are asked for now."""
        return [j for j in jobs if j.plan in (self.plans or [j.plan]) and j.text in (self.texts or [j.text])]


# --- the plan of runs --------------------------------------------------------------


def grid_of(study: Study, plan: str) -> list[float]:
    """The rates that every plan of its kind is tried at first."""
    few = plan in study.numbers["few_parameter_plans"]
    return study.numbers["grid_few" if few else "grid"]


def tuning_job(study: Study, plan: str, text: str, rate: float, seed: int) -> Job:
    path = study.place("tuning") / plan / text / f"{seed}-{rate:g}.json"
    return Job("tune", plan, text, seed, rate, "tuning", path)


def tuning_jobs(study: Study, plans: Iterable[str], texts: Iterable[str], seeds: Iterable[int],
                tried: dict | None = None) -> list[Job]:
    """All tuning runs. ``tried``: (plan, text) to its rates, where the grid was extended."""
    rates = tried or {}
    return [tuning_job(study, p, t, r, s) for s in seeds for p in plans for t in texts
            for r in rates.get((p, t), grid_of(study, p))]


def main_jobs(study: Study, stage: str, plans: Iterable[str], texts: Iterable[str], n_seeds: int,
              chosen: dict | None, rate_of: str | None = None, choices=("keep", "learn")) -> list[Job]:
    """Seed by seed; in a seed first the rates that keep, for all plans and texts, then the rates that learn.

    Args:
        chosen: plan to text to {"keep": rate, "learn": rate}; None before the tuning, when only the number
            of runs is known: then the two rates are taken as different.
        rate_of: a text whose rates are used for all ``texts``.
    """
    jobs = []
    for seed in range(n_seeds):
        for choice in choices:
            for plan in plans:
                for text in texts:
                    own = (chosen or {}).get(plan, {}).get(rate_of or text, {"keep": 0.0, "learn": -1.0})
                    both = own["keep"] == own["learn"] and len(choices) > 1
                    if choice == "learn" and both:
                        continue
                    if choice == "learn" and seed >= study.numbers["seeds"].get("learn", n_seeds):
                        continue
                    name = f"{seed}.json" if choice == "keep" else f"{seed}-learn.json"
                    jobs.append(Job(stage, plan, text, seed, own[choice], "keep and learn" if both else choice,
                                    study.place("runs") / plan / text / name))
    return jobs


def long_jobs(study: Study, chosen: dict | None) -> list[Job]:
    """Long runs of the claim that the loss converges, at the rates that learn."""
    numbers = study.numbers
    return [Job("long", plan, text, seed, (chosen or {}).get(plan, {}).get(text, {"learn": 0.0})["learn"], "long",
                study.place("long") / plan / text / f"{seed}.json")
            for seed in range(numbers["seeds"]["long"]) for plan in numbers["long_plans"] for text in AUTHORS]


def other_plans(study: Study) -> list[str]:
    """Return the plans beside the deciding four: all that the protocol names."""
    return list(study.numbers["other_plans"])


def jobs_of(study: Study, stage: str, chosen: dict | None = None) -> list[Job]:
    """The runs of a stage. ``tune`` here is the grid before any extension, of the deciding plans."""
    numbers, seeds = study.numbers, study.numbers["seeds"]
    if stage == "tune":
        return tuning_jobs(study, numbers["deciding_plans"], AUTHORS, seeds["tuning"])
    if stage == "main":
        return main_jobs(study, "main", numbers["deciding_plans"], AUTHORS, seeds["main"], chosen)
    if stage == "others":
        tuning = tuning_jobs(study, other_plans(study), numbers["other_texts"], seeds["tuning"][:1])
        return tuning + main_jobs(study, "others", other_plans(study), numbers["other_texts"], seeds["others"], chosen)
    if stage == "long":
        return long_jobs(study, chosen)
    fresh = main_jobs(study, "books", numbers["fresh_plans"], ["fresh"], seeds["fresh"], chosen, "edgar", ["keep"])
    return (main_jobs(study, "books", numbers["deciding_plans"], ["poe"], seeds["books"], chosen, "edgar", ["keep"])
            + (fresh if book_file(study.books, ("fresh",)) else []))


# --- rates -------------------------------------------------------------------------


def tried_rates(study: Study, plan: str, text: str, seeds: list[int]) -> list[float]:
    """Rates at which every tuning seed was run, from the files."""
    folder = study.place("tuning") / plan / text
    found = {float(p.stem.split("-", 1)[1]) for p in folder.glob(f"{seeds[0]}-*.json")}
    return sorted(r for r in found if all((folder / f"{s}-{r:g}.json").exists() for s in seeds))


def is_tuned(study: Study, plan: str, text: str, seeds: list[int]) -> bool:
    """Whether the whole grid was run: a plan that was tuned in part has no best rate yet."""
    return set(grid_of(study, plan)) <= set(tried_rates(study, plan, text, seeds))


def tuned(study: Study, plan: str, text: str, rate: float, seeds: list[int]) -> list[dict]:
    paths = [tuning_job(study, plan, text, rate, s).path for s in seeds]
    return [read_record(p, RUN_FIELDS) for p in paths]


def row_of(study: Study, plan: str, text: str, rate: float, seeds: list[int], level: float) -> dict:
    """One line of the rate table: means over the tuning seeds; no forgetting where a seed misses the level.

    A run that diverged gained nothing, and has not reached the level.
    """
    from helpers.comparison import forgetting_at, frontier

    runs = [r["evaluations"] for r in tuned(study, plan, text, rate, seeds) if "diverged" not in r]
    at_level = [forgetting_at(e, level) for e in runs] + [None] * (len(seeds) - len(runs))
    reach = [f for f in at_level if f is not None]
    return {"plan": plan, "text": text, "rate": rate, "n_seeds": len(seeds), "n_reach": len(reach),
            "best_gain": round(sum(float(frontier(e)[0][-1]) for e in runs) / len(seeds), 5),
            "forgetting_at_level": round(sum(reach) / len(reach), 6) if len(reach) == len(seeds) else None}


def matched_gain_of(study: Study, text: str, seeds: list[int]) -> float:
    """g*: the first share of full training's best mean gain, over all its rates."""
    share = study.protocol["decisions"]["shares"][0]
    rows = [row_of(study, FULL, text, r, seeds, 0.0) for r in tried_rates(study, FULL, text, seeds)]
    if not rows:
        raise untuned_level(text)
    return share * max(row["best_gain"] for row in rows)


def untuned_level(text: str) -> SystemExit:
    return SystemExit(f"The level of equal learning on '{text}' is a share of what full training gains there, and full "
                      f"training has not been tuned on it yet. Add '{FULL}' to --plans.")


def choose(rows: list[dict]) -> dict[str, float]:
    """The two rates of a plan: *learn* gains most, *keep* forgets least at the level."""
    learn = max(rows, key=lambda r: r["best_gain"])["rate"]
    reaching = [r for r in rows if r["forgetting_at_level"] is not None]
    keep = min(reaching, key=lambda r: r["forgetting_at_level"])["rate"] if reaching else learn
    return {"keep": keep, "learn": learn}


def extension(study: Study, rates: list[float], start: list[float], chosen: dict[str, float]) -> list[float]:
    """The next rate beyond an edge where an optimum lies; none once the limit of steps is reached."""
    ladder, limit = study.protocol["decisions"]["ladder"], study.numbers["extensions"]
    new = []
    for edge, step, first in ((min(rates), -1, min(start)), (max(rates), 1, max(start))):
        place = ladder.index(edge) + step
        n_before = abs(ladder.index(edge) - ladder.index(first))
        if edge in chosen.values() and 0 <= place < len(ladder) and n_before < limit:
            new.append(ladder[place])
    return new


def choose_rates(study: Study) -> dict:
    """Read the tuning runs and write the rates file: the table of all rates, the level, the chosen ones."""
    numbers, seeds = study.numbers, study.numbers["seeds"]["tuning"]
    levels = {t: matched_gain_of(study, t, seeds) for t in AUTHORS if is_tuned(study, FULL, t, seeds)}
    if not levels:
        raise untuned_level(AUTHORS[0])
    groups = [(p, t, seeds) for p in numbers["deciding_plans"] for t in levels]
    groups += [(p, t, seeds[:1]) for p in other_plans(study) for t in numbers["other_texts"] if t in levels]
    table, chosen = [], {}
    for plan, text, own_seeds in groups:
        if is_tuned(study, plan, text, own_seeds):
            rows = [row_of(study, plan, text, r, own_seeds, levels[text])
                    for r in tried_rates(study, plan, text, own_seeds)]
            table += rows
            chosen.setdefault(plan, {})[text] = choose(rows)
    record = {"matched_gain": levels, "smallest_forgetting": smallest(study, table, chosen), "grid": numbers["grid"],
              "seed": seeds[0], "seeds": seeds, "protocol": study.protocol.sha256, "chosen": chosen, "table": table}
    write_json(study.rates_file, record)
    return record


def smallest(study: Study, table: list[dict], chosen: dict) -> dict[str, float]:
    """The smallest difference in forgetting that counts, by text: a number from now on."""
    rules, found = study.protocol["decisions"], {}
    for text, rates in chosen[FULL].items():
        own = next(r for r in table if (r["plan"], r["text"], r["rate"]) == (FULL, text, rates["keep"]))
        found[text] = round(max(rules["smallest_forgetting"],
                                rules["smallest_forgetting_share"] * (own["forgetting_at_level"] or 0)), 5)
    return found


# --- one run, in a process of its own ----------------------------------------------

_laboratories: dict = {}


def laboratory(study: Study, half: str):
    """Set up once a process and retention text; only one is kept, as a large base takes much memory."""
    if half not in _laboratories:
        _laboratories.clear()
        from helpers.corpora import load_corpus
        from helpers.models import load_model, load_tokenizer
        from helpers.study import Laboratory

        numbers, profile = study.numbers, profiles.current(study.profile)
        tokenizer = load_tokenizer(profile.model)
        corpora = {n: load_corpus(profile.texts[n], tokenizer, numbers["length"], name=n) for n in (*AUTHORS, "plain")}
        plain = corpora.pop("plain")
        real, long_texts = real_texts(study, tokenizer)
        lab = Laboratory(load_model(profile.model), corpora | long_texts, plain, real=real,
                         retention=retention_windows(study)[half], n_probe=numbers["probe_windows"],
                         held_out_windows=numbers["held_out_windows"])
        lab.tokenizer = tokenizer
        _laboratories[half] = lab
    return _laboratories[half]


def book_file(folder: Path | None, words: tuple[str, ...]) -> Path | None:
    """The text in the folder whose name holds one of the words."""
    found = sorted(p for p in Path(folder).glob("*.txt") if any(w in p.stem.lower() for w in words)) if folder else []
    return found[0] if found else None


def real_texts(study: Study, tokenizer) -> tuple[dict, dict]:
    """Windows of the real authors to test on, and the texts that are long enough to train on for one epoch."""
    from helpers.corpora import load_corpus, read_text, tensor_of, windows
    from helpers.study import spread

    length, most = study.numbers["length"], study.numbers["real_windows"]
    real, long_texts = {}, {}
    if not has_real_texts(study):
        return real, long_texts
    carroll, poe, fresh = (book_file(study.books, w) for w in (REAL["alice"][1], REAL["edgar"][1], ("fresh",)))
    if carroll is None or poe is None:
        raise SystemExit(f"'{study.books}' needs a text of Carroll and one of Poe: a file with 'alice' or 'carroll' in "
                         "its name, and one with 'poe' or 'edgar'.")
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

    from helpers.evaluation import sample_windows

    numbers, place = study.numbers, study.place("retention") / "windows.safetensors"
    if place.exists():
        require_same_base(place, model_hash)
        return
    halves = {half: sample_windows(model, numbers["retention_windows"], numbers["retention_length"], seed).int()
              for half, seed in numbers["retention_seeds"].items()}
    place.parent.mkdir(parents=True, exist_ok=True)
    save_file(halves, place, metadata={"model_hash": model_hash})


def require_same_base(place: Path, model_hash: str) -> None:
    from safetensors import safe_open

    with safe_open(place, framework="pt") as file:
        found = file.metadata()["model_hash"]
    if found != model_hash:
        raise SystemExit(f"The retention text '{place.name}' was written by another base: model_hash {found[:12]}, now "
                         f"{model_hash[:12]}. Delete this model's evidence with --start-over; then start again.")


def plan_of(name: str, config):
    """A plan of the study by name: (FreezePlan, what to do with the model first or None)."""
    from helpers.freezing import COURSE_PLANS, FreezePlan

    if name in COURSE_PLANS:
        return COURSE_PLANS[name], None
    if name == "only-mlp-in":
        return FreezePlan.only("mlp-in"), None
    if name == "only-mlp-alternate":
        return FreezePlan.only(*(f"mlp@{i}" for i in range(0, config.num_hidden_layers, 2))), None
    if name.startswith("lora-"):
        from helpers import lora

        where = name.removeprefix("lora-")
        ranks = dict(zip(("attention", "mlp"), lora.equal_ranks(config, "attention", "mlp"), strict=True))
        return lora.LORA_PLAN, lambda model, seed: lora.insert(model, where, ranks[where], 2 * ranks[where], seed)
    raise ProtocolError(f"The protocol names a plan '{name}' that this script does not know.")


def settings_of(study: Study, job: Job):
    from helpers.study import StudySettings

    n = study.numbers
    is_long = job.stage == "long"
    n_steps = n["long_steps"] if is_long else n["n_steps"]
    return StudySettings(
        n_steps=n_steps, rate=job.rate, batch=n["batch"], seed=job.seed, warmup=n["warmup"],
        evaluate_every=n["evaluate_every"], dense_until=n["dense_until"], save_every=n_steps,
        patience=None if is_long else n["patience"], precision=n.get("precision", "float32"))


def half_of(job: Job) -> str:
    return "A" if job.choice == "tuning" else "B"


def do(study: Study, job: Job) -> tuple[Path, float]:
    """Run one job and write its file in one move."""
    from helpers.records import write_record
    from helpers.study import Diverged

    began = time.perf_counter()
    lab = laboratory(study, half_of(job))
    plan, prepare = plan_of(job.plan, lab.base.config)
    settings = settings_of(study, job)
    name = job.plan if prepare or job.plan.startswith("only-mlp-") else None
    try:
        run = lab.run(plan, job.text, settings, progress=False, forgetting=job.stage != "long", name=name,
                      prepare=(lambda model: prepare(model, job.seed)) if prepare else None)
        entry = lab.record(run, tests=False) | after_run(study, lab, run, job)
    except Diverged as error:
        entry = {"diverged": str(error), "model_hash": lab.model_hash, "plan": name or plan.slug, "text": job.text,
                 "seed": job.seed, "rate": job.rate, "retention_hash": lab.retention.text_hash,
                 "settings": asdict(settings), "test_windows": {}, "evaluations": error.evaluations}
    seconds = time.perf_counter() - began
    write_record(job.path, {"rate_choice": job.choice, "stage": job.stage, "model_name": study.model_name,
                            "protocol": study.protocol.sha256, "n_amendments": study.protocol.n_amendments,
                            "wall_seconds": round(seconds, 1), **entry})
    return job.path, seconds


def after_run(study: Study, lab, run, job: Job) -> dict:
    """What a finished run is asked with its best weights: tests, function words, swaps, words learned by heart.

    Tuning runs see no test text. Swaps and words by heart are asked of some seeds only.
    """
    from helpers import probes
    from helpers.corpora import tensor_of
    from helpers.study import rounded

    if job.stage in ("tune", "long") or job.choice == "tuning":
        return {}
    if "is_function" not in vars(lab):
        lab.is_function = probes.function_tokens(lab.tokenizer)
    best = copy.deepcopy(run.model)
    run.result.use_best(best)
    found = {t: probes.function_losses(best, w, lab.is_function) for t, w in lab.test_texts().items()}
    entry = {"test_windows": {t: rounded(a) for t, (a, _) in found.items()},
             "function_windows": {t: rounded(f) for t, (_, f) in found.items()}}
    seeds, is_deciding = study.numbers["seeds"], job.stage == "main" and "learn" in job.choice
    if is_deciding and job.plan == "full" and job.seed < seeds["swap"]:
        texts = {a: lab.held_out(lab.corpora[a].test) for a in AUTHORS}
        entry["swap"] = probes.swap_losses(lab.base, best, texts)
    if is_deciding and job.seed < seeds["memorisation"]:
        corpus = lab.corpora[job.text]
        train, held_out = tensor_of(corpus.train), tensor_of(corpus.test)
        models = {"best": best, "last": run.model} | ({"base": lab.base} if job.seed == 0 else {})
        entry["memorisation"] = {name: probes.memorisation(m, train, held_out) for name, m in models.items()}
    return entry


# --- running them ------------------------------------------------------------------


def stale(study: Study, jobs: Iterable[Job], model_hash: str) -> list[str]:
    """What is there and was made with something else: one sentence a file."""
    hashes = {half: bytes_hash(w) for half, w in retention_windows(study).items()}
    problems = []
    for job in jobs:
        if not job.path.exists():
            continue
        found = read_record(job.path)
        wanted = {"model_hash": model_hash, "protocol": study.protocol.sha256, "rate": job.rate,
                  "retention_hash": hashes[half_of(job)], "settings": asdict(settings_of(study, job)),
                  "rate_choice": job.choice}
        other = [k for k, v in wanted.items() if found.get(k) != v]
        if found.get("test_windows") and ("poe" in found["test_windows"]) != has_real_texts(study):
            other.append("the test on the real authors (the same --books for all runs)")
        twin = job.path.with_name(f"{job.seed}-learn.json")
        if job.choice == "keep and learn" and twin.exists():
            other.append(f"'{twin.name}' beside it, for a rate that is no longer another one")
        if other:
            problems.append(f"{job.path.relative_to(study.folder)} differs in {', '.join(other)}")
    return problems


def has_real_texts(study: Study) -> bool:
    return study.books is not None and study.numbers["real_windows"] > 0


def refuse_stale(study: Study, jobs: Iterable[Job], model_hash: str) -> None:
    problems = stale(study, jobs, model_hash)
    if problems:
        more = f"\n  … and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise SystemExit("Some evidence was made with another model, protocol or setting:\n  "
                         + "\n  ".join(problems[:8]) + more
                         + "\nMove it away, or delete this model's evidence with --start-over; then start again.")


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
        return read_record(path, RUN_FIELDS | {"model_hash": str, "protocol": str}) != {}
    except RecordError:
        return False


def require_committed(page: Path) -> None:
    """In a checkout the protocol must be committed, so that it stood before its runs."""
    if not (ROOT / ".git").exists() or not page.resolve().is_relative_to(ROOT):
        return
    said = subprocess.run(["git", "-C", str(ROOT), "status", "--porcelain", "--", str(page)], capture_output=True,
                          text=True)
    if said.returncode == 0 and said.stdout.strip():
        raise SystemExit(f"{page.name} is changed or new since the last commit. Commit it first: the rules must stand "
                         "before the runs that they judge.")


def run_all(study: Study, jobs: list[Job], n_processes: int) -> None:
    """Run what is missing, in order. A run that fails is named at the end; the others go on."""
    missing = [j for j in jobs if not j.path.exists()]
    print(f"{len(jobs)} runs, {len(jobs) - len(missing)} there already", flush=True)
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
            print(f"{done}/{len(missing)}  {job.plan}/{job.text}/{job.path.stem}  {future.result()[1]:.0f} s, "
                  f"{left:.0f} minutes left in this stage", flush=True)
    if failed:
        raise SystemExit(f"{len(failed)} runs failed; the others are recorded. The first: {failed[0]}")


def tune(study: Study, plans: list[str], texts: list[str], seeds: list[int], n_processes: int) -> None:
    """The grid, then beyond an edge where an optimum lies there, until none does or the limit is reached."""
    grid = study.now(tuning_jobs(study, plans, texts, seeds))
    run_all(study, grid, n_processes)
    while True:
        levels = {t: matched_gain_of(study, t, study.numbers["seeds"]["tuning"]) for t in {j.text for j in grid}}
        new = []
        for plan, text in dict.fromkeys((j.plan, j.text) for j in grid):
            rates = tried_rates(study, plan, text, seeds)
            chosen = choose([row_of(study, plan, text, r, seeds, levels[text]) for r in rates])
            new += [tuning_job(study, plan, text, r, s) for s in seeds
                    for r in extension(study, rates, grid_of(study, plan), chosen)]
        if not new:
            return
        print("An optimum lies at the edge of the grid: " +
              ", ".join(sorted({f"{j.plan} on {j.text} at {j.rate:g}" for j in new})), flush=True)
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
    if untuned := sorted({f"{j.plan} on {j.text}" for j in jobs if j.rate <= 0}):
        raise SystemExit(f"No rate has been chosen yet for {', '.join(untuned)}. Run the stage 'tune' for them first, "
                         "or leave them out with --plans and --texts.")
    run_all(study, jobs, n_processes)


def chosen_rates(study: Study) -> dict | None:
    """The chosen rates, or None before the tuning."""
    place = study.rates_file
    return read_record(place, {"chosen": dict})["chosen"] if place.exists() else None


# --- the estimate ------------------------------------------------------------------


def measured_seconds(study: Study) -> dict[str, float]:
    """Mean wall seconds of the recorded runs of this model: of each plan, of each stage, and of all ("")."""
    sums: dict[str, list[float]] = {}
    for kind in ("tuning", "runs", "long"):
        for path in study.place(kind).rglob("*.json"):
            run = read_record(path)
            if "wall_seconds" in run:
                for key in (path.parent.parent.name, run["stage"], ""):
                    sums.setdefault(key, []).append(run["wall_seconds"])
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
    print(f"{study.model_name}: seconds a run are {basis}; {n_processes} processes")
    for stage in stages:
        if stage == "books" and study.books is None:
            print("books    no runs: give --books FOLDER")
            continue
        jobs = study.now(jobs_of(study, stage, chosen))
        missing = [j for j in jobs if not j.path.exists()]
        hours = sum(seconds_of(study, j, measured) for j in missing) / max(1, n_processes) / 3600
        total += hours
        at_most = chosen is None and stage in ("main", "others")
        print(f"{stage:<8} {len(jobs):>4} runs, {len(missing):>4} to do, {hours:5.2f} hours"
              + ("  (at most: where a plan's two rates are one, a run serves twice)" if at_most else ""))
    print(f"In all {total:.1f} hours. An optimum at the edge of the grid adds tuning runs.")
    return total


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", default="tiny", help="tiny (the miniature) or smollm2")
    parser.add_argument("--folder", type=Path, default=EVIDENCE, help="where PROTOCOL.md is and results go")
    parser.add_argument("--books", type=Path, help="a folder with the real authors, e.g. alice.txt and poe.txt")
    parser.add_argument("--stages", nargs="+", choices=STAGES, help="only these")
    parser.add_argument("--seeds", type=int, help="at most so many main seeds (the protocol says how many in all)")
    parser.add_argument("--plans", nargs="+", default=[], help="only these plans now; the others later")
    parser.add_argument("--texts", nargs="+", default=[], choices=AUTHORS, help="only these texts now")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--dry-run", action="store_true", help="only say what would run")
    parser.add_argument("--start-over", action="store_true", help="first delete this model's recorded evidence")
    args = parser.parse_args(arguments)
    study = study_of(args)
    stages = args.stages or [s for s in STAGES if s in study.numbers["stages"]]
    print_plan(study, stages, args.processes)
    if args.dry_run:
        return 0
    require_committed(args.folder / "PROTOCOL.md")
    if args.start_over:
        start_over(study)
    model_hash = prepare(study)
    for stage in stages:
        if stage == "books" and study.books is None:
            print("Stage books: left out, no --books FOLDER")
            continue
        refuse_stale(study, recorded_jobs(study), model_hash)
        run_stage(study, stage, args.processes)
    return 0


def study_of(args) -> Study:
    try:
        profile, protocol = profiles.current(args.profile), read_protocol(args.folder / "PROTOCOL.md")
        numbers = protocol[args.profile]
    except (profiles.ProfileError, ProtocolError) as error:
        raise SystemExit(str(error)) from error
    study = Study(args.profile, profile.model_name, args.folder, args.books, protocol, tuple(args.plans),
                  tuple(args.texts))
    known = [*numbers["deciding_plans"], *numbers["other_plans"]]
    if unknown := [p for p in args.plans if p not in known]:
        raise SystemExit(f"The study of this profile has no plan '{unknown[0]}'. It has: {', '.join(known)}.")
    if args.seeds:
        numbers["seeds"]["main"] = min(args.seeds, numbers["seeds"]["main"])
    return study


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
    jobs = [j for stage in STAGES for j in jobs_of(study, stage, chosen) if j.rate > 0]
    plans = [*study.numbers["deciding_plans"], *other_plans(study)]
    return jobs + [tuning_job(study, p, t, r, s) for p in plans for t in AUTHORS for s in seeds
                   for r in study.protocol["decisions"]["ladder"] if r not in grid_of(study, p)]


if __name__ == "__main__":
    try:
        sys.exit(main())
    except RecordError as error:
        sys.exit(f"error: {error}")
