"""The runs of the first study: what to train, on what, and where each file goes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from helpers.profiles import PROFILES
from helpers.study.protocol import Protocol, ProtocolError

ROOT = Path(__file__).resolve().parents[2]
EVIDENCE = ROOT / "data" / "evidence"
WORK = ROOT / "build" / "study1"  # run files of a study that is under way; not in git
STAGES = ("tune", "main", "books", "others", "long")
AUTHORS = ("alice", "edgar")
FULL = "full"  # what the other plans are compared with, and whose gain sets the level
REAL = {
    "alice": ("carroll", ("alice", "carroll")),
    "edgar": ("poe", ("edgar", "poe")),
}  # test name, words in files


@dataclass(frozen=True)
class Job:
    """One run: what to train, on what, and where its file goes."""

    stage: str
    plan: str
    text: str
    seed: int
    rate: float | None  # None before the tuning: it is not known yet
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
        return self.folder / PROFILES[self.profile].rates_name

    def place(self, kind: str) -> Path:
        return self.folder / kind / self.model_name

    def now(self, jobs: Iterable[Job]) -> list[Job]:
        """Those of the plans and texts that are asked for now."""
        return [j for j in jobs if j.plan in (self.plans or [j.plan]) and j.text in (self.texts or [j.text])]


def grid_of(study: Study, plan: str) -> list[float]:
    """The rates that every plan of its kind is tried at first."""
    few = plan in study.numbers["few_parameter_plans"]
    return study.numbers["grid_few" if few else "grid"]


def tuning_job(study: Study, plan: str, text: str, rate: float, seed: int) -> Job:
    path = study.place("tuning") / plan / text / f"{seed}-{rate:g}.json"
    return Job("tune", plan, text, seed, rate, "tuning", path)


def tuning_jobs(
    study: Study, plans: Iterable[str], texts: Iterable[str], seeds: Iterable[int], tried: dict | None = None
) -> list[Job]:
    """All tuning runs. ``tried``: (plan, text) to its rates, where the grid was extended."""
    rates = tried or {}
    return [
        tuning_job(study, p, t, r, s)
        for s in seeds
        for p in plans
        for t in texts
        for r in rates.get((p, t), grid_of(study, p))
    ]


def main_jobs(
    study: Study,
    stage: str,
    plans: Iterable[str],
    texts: Iterable[str],
    n_seeds: int,
    chosen: dict | None,
    rate_of: str | None = None,
    choices=("keep", "learn"),
) -> list[Job]:
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
                    own = (chosen or {}).get(plan, {}).get(rate_of or text)
                    both = own is not None and own["keep"] == own["learn"] and len(choices) > 1
                    if choice == "learn" and both:
                        continue
                    if choice == "learn" and seed >= study.numbers["seeds"].get("learn", n_seeds):
                        continue
                    name = f"{seed}.json" if choice == "keep" else f"{seed}-learn.json"
                    jobs.append(
                        Job(
                            stage,
                            plan,
                            text,
                            seed,
                            own and own[choice],
                            "keep and learn" if both else choice,
                            study.place("runs") / plan / text / name,
                        )
                    )
    return jobs


def long_jobs(study: Study, chosen: dict | None) -> list[Job]:
    """Long runs of the claim that the loss converges, at the rates that learn."""
    numbers = study.numbers
    return [
        Job(
            "long",
            plan,
            text,
            seed,
            (chosen or {}).get(plan, {}).get(text, {}).get("learn"),
            "long",
            study.place("long") / plan / text / f"{seed}.json",
        )
        for seed in range(numbers["seeds"]["long"])
        for plan in numbers["long_plans"]
        for text in AUTHORS
    ]


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
        return tuning + main_jobs(
            study, "others", other_plans(study), numbers["other_texts"], seeds["others"], chosen
        )
    if stage == "long":
        return long_jobs(study, chosen)
    fresh = main_jobs(
        study, "books", numbers["fresh_plans"], ["fresh"], seeds["fresh"], chosen, "edgar", ["keep"]
    )
    return main_jobs(
        study, "books", numbers["deciding_plans"], ["poe"], seeds["books"], chosen, "edgar", ["keep"]
    ) + (fresh if book_file(study.books, ("fresh",)) else [])


def book_file(folder: Path | None, words: tuple[str, ...]) -> Path | None:
    """The text in the folder whose name holds one of the words."""
    found = (
        sorted(p for p in Path(folder).glob("*.txt") if any(w in p.stem.lower() for w in words))
        if folder
        else []
    )
    return found[0] if found else None


def plan_of(name: str, config):
    """A plan of the study by name: (FreezePlan, what to do with the model first or None)."""
    from helpers.freezing import PLANS, FreezePlan

    if name in PLANS and PLANS[name].plan is not None:
        return PLANS[name].plan, None
    if name == "only-mlp-alternate":
        return FreezePlan.only(*(f"mlp@{i}" for i in range(0, config.num_hidden_layers, 2))), None
    if name.startswith("lora-"):
        from helpers import freezing

        where = name.removeprefix("lora-")
        ranks = dict(zip(("attention", "mlp"), freezing.equal_ranks(config, "attention", "mlp"), strict=True))
        return freezing.LORA_PLAN, lambda model, seed: freezing.insert(
            model, where, ranks[where], 2 * ranks[where], seed
        )
    raise ProtocolError(f"The protocol names a plan '{name}' that this script does not know.")


def settings_of(study: Study, job: Job):
    from helpers.study.laboratory import StudySettings

    n = study.numbers
    is_long = job.stage == "long"
    n_steps = n["long_steps"] if is_long else n["n_steps"]
    return StudySettings(
        n_steps=n_steps,
        rate=job.rate,
        batch=n["batch"],
        seed=job.seed,
        warmup=n["warmup"],
        evaluate_every=n["evaluate_every"],
        dense_until=n["dense_until"],
        save_every=n_steps,
        patience=None if is_long else n["patience"],
        precision=n.get("precision", "float32"),
    )


def half_of(job: Job) -> str:
    return "A" if job.choice == "tuning" else "B"


def has_real_texts(study: Study) -> bool:
    return study.books is not None and study.numbers["real_windows"] > 0
