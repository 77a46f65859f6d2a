"""`course compare`: probe a reader's own model and text with a few recipes, in the time given, and say which to take.

The folder of a comparison:

    comparison.json       what is compared, the seconds spent, and up to which step each probe goes
    windows.safetensors   what the base wrote: forgetting is measured on it
    probes/NAME-N.json    what a candidate's probe of N steps measured; each is written whole
    work/NAME/            checkpoints, until the comparison is finished
    report.json, frontiers.svg

Killed at any moment, the same command goes on: what was decided is read, not decided again.
"""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file

from helpers import profiles
from helpers.costs import Budget, ReplaySize, budget_or_reason
from helpers.files import read_json, write_json, write_tensors
from helpers.freezing import PlanError
from helpers.measuring import CACHE_LIMIT
from helpers.study.probing import (
    N_REPLAYED,
    REPLAYED_A_STEP,
    Bench,
    CompareError,
    Made,
    Pacer,
    Speed,
    how_many,
    probe,
    seconds_needed,
    timed,
)
from helpers.study.recipes import CANDIDATES, CHOICE, Candidate, Choice, Probe, choose, halve, sizes
from helpers.training import TrainWords, locks, shell

STATE, WINDOWS = "comparison.json", "windows.safetensors"
UNITS = {
    "": 1,
    "k": 10**3,
    "m": 10**6,
    "g": 10**9,
    "t": 10**12,
    "ki": 2**10,
    "mi": 2**20,
    "gi": 2**30,
    "ti": 2**40,
}
MOST_MINUTES = 100_000
FOR_THE_REPORT = (4.0, 0.01)  # seconds, and a share of the time
DISK_SHARE = 0.5  # of the free disk that checkpoints may take
IN_A_CHECKPOINT = 4  # trained weights, the best of them, AdamW's two moments


@dataclass(frozen=True)
class CompareWords:
    """What was asked for, word by word; not checked yet. None: the profile decides, or there is no limit."""

    text: str
    minutes: float
    model: str | None = None
    memory: str | None = None
    keep: float | None = None
    seed: int = 0
    batch: int | None = None
    length: int | None = None
    out: str | None = None


@dataclass
class Setup:
    """A checked comparison.

    Attributes:
        ready: model, tokenizer, text and settings, as `course train` checks them.
        limit: bytes of a step's peak; None: no limit.
        what: what this comparison is, for its folder.
    """

    words: CompareWords
    out: Path
    ready: shell.Setup
    limit: float | None
    what: dict

    @property
    def made(self) -> Made:
        own = self.ready.settings
        return Made(own.batch, own.seed, own.warmup, own.precision)


def prepare(words: CompareWords) -> Setup:
    """Check every input, cheapest first, then load the model. Writes nothing.

    Raises:
        CompareError: a word of this command, or a folder that cannot be used.
        The errors of `course train` for model, text, seed, batch and length.
    """
    if not 0 < words.minutes <= MOST_MINUTES:  # NaN is in no range
        raise CompareError(
            f"--minutes must be above 0 and at most {MOST_MINUTES:,}; found {words.minutes:g}."
        )
    if words.keep is not None and not 0 < words.keep < math.inf:
        raise CompareError(
            f"--keep must be above 0: nats per token that may be forgotten, such as 0.05; found {words.keep:g}."
        )
    limit = None if words.memory is None else bytes_of(words.memory)
    out = folder_of(words)
    unborn = str(out / "run")  # `course train` checks a folder of its own, which is never made
    ready = shell.prepare(
        TrainWords(
            words.text, unborn, None, words.model, seed=words.seed, batch=words.batch, length=words.length
        )
    )
    what = {
        k: ready.mine[k]
        for k in ("text_sha256", "model_hash", "length", "batch", "seed", "precision", "arithmetic")
    } | {"minutes": words.minutes, "memory": limit, "keep": words.keep}
    return Setup(words, out, ready, limit, what)


def bytes_of(word: str) -> float:
    """How many bytes "8GB", "512 MiB" or "6.5G" are.

    Raises:
        CompareError: none of these.
    """
    found = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?) ?([kmgt]i?)?b?", word.strip(), re.IGNORECASE)
    if not found or not float(found[1]):
        raise CompareError(f"--memory must be a size such as 8GB, 512MB or 6.5GiB; found '{word[:40]}'.")
    return float(found[1]) * UNITS[(found[2] or "").lower()]


def folder_of(words: CompareWords) -> Path:
    """The folder of a comparison. Raises CompareError where it is no folder, or holds something else."""
    name = f"{Path(words.text).stem}-{Path(words.model or 'model').name}"
    out = profiles.usable_path(words.out or profiles.build_dir() / "compare" / name, "--out")
    if any(place.exists() and not place.is_dir() for place in (out, *out.parents)):
        raise CompareError(f"The folder '{out}' cannot be made: a file is in its way. Give another --out.")
    if out.is_dir() and not (out / STATE).exists() and any(not p.name.startswith(".") for p in out.iterdir()):
        raise CompareError(f"The folder '{out}' is not empty and holds no comparison. Give a new --out.")
    return out


# --- what can be tried -------------------------------------------------------------


def budgets_of(setup: Setup) -> tuple[dict[Candidate, Budget | None], list[str]]:
    """The predicted step of each candidate that this model can have; and who is left out, in words."""
    ready, length = setup.ready, setup.what["length"]
    dtype = torch.bfloat16 if setup.made.precision == "bfloat16" else torch.float32
    found: dict[Candidate, Budget | None] = {}
    absent: dict[str, str] = {}  # plan to the reason why this model cannot have it
    for candidate in CANDIDATES:
        alike = [c for c in found if (c.plan, c.replay) == (candidate.plan, candidate.replay)]
        if alike:
            found[candidate] = found[alike[0]]  # a rate changes no cost
        elif candidate.plan not in absent:
            replay = replay_size(ready.model.config, length) if candidate.replay else None
            plan, batch = candidate.freeze_plan, setup.made.batch
            try:
                found[candidate], _ = budget_or_reason(
                    ready.model.config, plan, batch, length, dtype=dtype, replay=replay
                )
            except PlanError as error:
                absent[candidate.plan] = f"{plan.title}: {error}"
    return found, list(absent.values())


def replay_size(config, length: int) -> ReplaySize:
    is_small = 4 * N_REPLAYED * (length - 1) * config.vocab_size <= CACHE_LIMIT
    return ReplaySize(N_REPLAYED, REPLAYED_A_STEP, length, is_small)


def within(found: dict[Candidate, Budget | None], limit: float | None) -> tuple[list[Candidate], list[str]]:
    """Candidates whose predicted peak is within the limit; and those that are left out, in words.

    Raises:
        CompareError: none is within it.
    """
    too_large = [c for c, b in found.items() if limit is not None and b and b.peak_bytes > limit]
    if len(too_large) == len(found):
        least = min(found.values(), key=lambda b: b.peak_bytes)
        raise CompareError(
            f"No recipe fits into {in_words(limit)}: a step of the smallest, {least.plan.title}, needs "
            f"{in_words(least.peak_bytes)}. Give more --memory, or a smaller --batch or --length."
        )
    said = [f"{c.title}: its step needs {in_words(found[c].peak_bytes)}, over the limit." for c in too_large]
    return [c for c in found if c not in too_large], said


def in_words(n_bytes: float) -> str:
    return f"{n_bytes / 10**9:.1f} GB" if n_bytes >= 10**9 else f"{n_bytes / 10**6:.0f} MB"


def room_for(candidates: Sequence[Candidate], found: dict[Candidate, Budget | None], place: Path) -> int:
    """For how many candidates' checkpoints the disk has room."""
    while not place.exists():
        place = place.parent
    full = next((b.n_parameters for b in found.values() if b), 0)
    each = 1.5 * 4 * IN_A_CHECKPOINT * full  # four bytes a number; those that survive have two for a while
    return int(DISK_SHARE * shutil.disk_usage(place).free / each) if each else len(candidates)


# --- the comparison ----------------------------------------------------------------


class Journal:
    """What was decided so far, in ``comparison.json``: a comparison that goes on decides the same."""

    def __init__(self, out: Path, what: dict):
        self.out, self.what = out, what
        self.spent = 0.0  # seconds, of earlier calls and this one
        self.speed: Speed | None = None
        self.candidates: list[Candidate] = []
        self.probes: list[list] = []  # [name, up to which step], in order
        self._next = 0
        if (out / STATE).exists():
            self._read()

    def _read(self) -> None:
        found = read_own(self.out / STATE, {"what", "spent", "speed", "candidates", "probes"})
        unlike = [
            f"{k} {v!r} there, {self.what[k]!r} here" for k, v in found["what"].items() if self.what[k] != v
        ]
        if unlike:
            raise CompareError(
                f"The folder '{self.out}' holds another comparison ({'; '.join(unlike[:3])}). Give a new --out."
            )
        self.spent, self.probes = found["spent"], found["probes"]
        self.speed, self.candidates = Speed(**found["speed"]), [Candidate(*c) for c in found["candidates"]]

    def write(self) -> None:
        write_json(
            self.out / STATE,
            {
                "what": self.what,
                "spent": self.spent,
                "speed": asdict(self.speed),
                "candidates": self.candidates,
                "probes": self.probes,
            },
        )

    def target(self, candidate: Candidate, plan: Callable[[], int]) -> int:
        """Up to which step the next probe goes: as it was written, or as ``plan`` says, and written then."""
        self._next += 1
        if self._next > len(self.probes):
            self.probes.append([candidate.name, plan()])
            self.write()
        return self.probes[self._next - 1][1]


def read_own(place: Path, keys: set[str]) -> dict:
    """A file of a comparison. Raises CompareError where it is damaged, or lacks one of the keys."""
    try:
        found = read_json(place)
        if missing := sorted(keys - found.keys()):
            raise ValueError(f"'{place}' is damaged: it has no {', '.join(missing)}")
    except (OSError, ValueError) as error:
        raise CompareError(f"{error}. Delete this one file and give the same command again.") from error
    return found


@dataclass(frozen=True)
class Compared:
    """A finished comparison.

    Attributes:
        choice: None where nothing can be chosen.
        left_out: who was not tried, in words.
    """

    choice: Choice | None
    probes: list[Probe]
    budgets: dict[Candidate, Budget | None]
    left_out: list[str]
    bench: Bench


def compare(setup: Setup, clock: Callable[[], float], began: float) -> Compared:
    """Plan, probe and choose, within the time.

    Args:
        began: the clock's time when the command began.

    Raises:
        CompareError: the time is too short for two candidates; nothing is written then.
    """
    journal = Journal(setup.out, setup.what)
    began -= journal.spent
    total = 60 * setup.words.minutes
    until = began + total - FOR_THE_REPORT[0] - FOR_THE_REPORT[1] * total
    require_time_left(journal, setup, until - clock(), clock() - began)
    budgets, left_out = budgets_of(setup)
    candidates, too_large = within(budgets, setup.limit)
    place = setup.out / WINDOWS
    written = load_file(place)["written"] if place.exists() else None
    # What is kept of a frozen bottom is up to 1 GiB beside the step that `within` weighed against --memory.
    cache_frozen = "auto" if setup.what["memory"] is None else False
    bench = Bench(setup.ready.model, setup.ready.corpus, setup.made, written, cache_frozen=cache_frozen)
    require_time_left(journal, setup, until - clock(), clock() - began)
    if journal.speed is None:
        journal.speed = timed(bench, clock)
        most = min(len(candidates), room_for(candidates, budgets, setup.out))
        journal.candidates = candidates[: how_many(journal.speed, until - clock(), most)]
        require_time(journal, setup, clock() - began)
    locks.take(setup.out)
    journal.write()
    write_tensors(place, {"written": bench.written})
    (setup.out / "probes").mkdir(exist_ok=True)
    pacer = Pacer(journal.speed, until, work_of(budgets), clock)
    make = maker(setup, bench, journal, pacer, began)
    probes = halve(journal.candidates, sizes(len(journal.candidates)), make, setup.words.keep)
    not_tried = [c for c in candidates if c not in journal.candidates]
    left_out += too_large
    if not_tried:
        left_out.append(f"{'; '.join(c.title for c in not_tried)}: no time, or no room on the disk.")
    return Compared(choose(probes, setup.words.keep), probes, budgets, left_out, bench)


def require_time_left(journal: Journal, setup: Setup, left: float, prepared: float) -> None:
    """Raises CompareError where the time of a new comparison is over before a step was timed; both in seconds."""
    if journal.speed is None and left <= 0:
        raise CompareError(
            f"--minutes {setup.words.minutes:g} is too short: getting ready took {prepared:.0f} s so far, the report "
            f"takes {FOR_THE_REPORT[0]:.0f} s, and no step is timed yet. Give more --minutes; 20 are usual."
        )


def require_time(journal: Journal, setup: Setup, prepared: float) -> None:
    """Raises CompareError where fewer than two candidates can be tried, though the models would allow it."""
    if len(journal.candidates) >= 2:
        return
    needed = (prepared + 1.2 * seconds_needed(journal.speed) + FOR_THE_REPORT[0]) / 60
    raise CompareError(
        f"--minutes {setup.words.minutes:g} is too short: here a step of full training takes {journal.speed.step:.2g} s, "
        f"a measurement {journal.speed.measuring:.2g} s, and getting ready took {prepared:.0f} s. Two recipes need "
        f"about {math.ceil(10 * needed) / 10:g} minutes (--minutes), and room on the disk for their checkpoints."
    )


def work_of(budgets: dict[Candidate, Budget | None]) -> dict[Candidate, float]:
    """A step of each candidate as a share of full training's, by its operations; 1 where they are not predicted."""
    full = next((b for c, b in budgets.items() if c.plan == "full" and not c.replay), None)
    return {c: b.flops.step / full.flops.step if b and full else 1.0 for c, b in budgets.items()}


def maker(setup: Setup, bench: Bench, journal: Journal, pacer: Pacer, began: float) -> Callable[..., Probe]:
    """What `halve` calls for each probe: make it and write it whole, or read it where it is written."""
    clock = pacer.clock

    def probe_of(candidate: Candidate, before: Probe | None, n_rounds: int, n_probes: int) -> Probe:
        n_done = before.n_steps if before else 0
        n_steps = journal.target(candidate, lambda: pacer.n_steps(candidate, n_done, n_rounds, n_probes))
        place = setup.out / "probes" / f"{candidate.name}-{n_steps}.json"
        if not place.exists():
            start = clock()
            record = probe(bench, candidate, n_steps, setup.out / "work")
            write_json(place, record)
            pacer.learn(candidate, record["n_steps"] - n_done, clock() - start)
            journal.spent = clock() - began
            journal.write()
        found = Probe.of(read_own(place, {"candidate", "n_steps", "best_step", "ended", "step_seconds"}))
        print(line_of(found, 60 * setup.words.minutes - (clock() - began)), flush=True)
        return found

    return probe_of


def line_of(found: Probe, seconds_left: float) -> str:
    """One line of progress."""
    title = f"{found.candidate.title}: step {found.n_steps}"
    if found.ended == "diverged":
        return f"{title}, the loss is no number any more"
    return f"{title}, gain {found.gain(CHOICE):.3f} on dev, {max(0.0, seconds_left) / 60:.1f} minutes left"
