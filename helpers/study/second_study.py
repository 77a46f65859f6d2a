"""The second study's runs: which there are, how one is made, and what its record holds.

A recipe is a plan, a rate and a method. One run trains a plan at a rate, with or without a replay, from the base until
its patience ends it; then its best weights are rewound in steps. So a run serves three methods: stopped on the way,
rewound, and, with a replay, both again. Every number comes from data/evidence/PROTOCOL-2.md.

    study = open_study("tiny", protocol)
    for job in jobs_of(study):
        do(study, job)                    writes study.record_path(job), whole or not at all
"""

from __future__ import annotations

import copy
import math
import shutil
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from helpers import freezing, profiles
from helpers.files import bytes_hash, counted, file_hash, write_tensors
from helpers.freezing import COURSE_PLANS, FreezePlan, PlanError, select
from helpers.measuring import Retention, RunSettings, SecondRunRecord, held_out_loss, sample_windows
from helpers.models import anatomy, load_model, load_tokenizer, weight_hash
from helpers.profiles import DATA, build_dir
from helpers.session import code_commit, machine_class, versions
from helpers.study.laboratory import StudySettings, spread
from helpers.study.protocol import Protocol, ProtocolError
from helpers.study.records import read_run, rounded, write_run
from helpers.texts import Corpus, load_corpus, tensor_of
from helpers.training import FitResult, NotFinite, Replay, fit, load_checkpoint, rewound, save_delta

PAGE = DATA / "evidence" / "PROTOCOL-2.md"
FIRST_RETENTION = (
    DATA / "evidence" / "retention"
)  # of the first study: its halves A and B are taken where they fit
PLAIN = "plain"  # the text that is measured and never trained on
LORA = "lora"
LORA_LAYERS = "attention+mlp"  # all linear layers of the blocks
ALL = "all"  # roles, rewound together
MEASURED = (
    "dev_windows",
    "forgetting_a",
    "forgetting_b",
    "plain_windows",
    "test_windows",
)  # at a rewound point
KEPT_BYTES = (
    2 * 2**30
)  # of the base's log-probabilities on A and B, in each worker: an eighth less time a point
DIGITS = 5  # of a loss or a KL in a record, in nats per token


class StudyError(RuntimeError):
    """A study that cannot begin or go on. The message says what to do."""


@dataclass(frozen=True)
class Job:
    """One run."""

    stage: str
    plan: str
    text: str
    seed: int
    rate: float
    weight: float  # of the replay; 0.0: none

    @property
    def name(self) -> str:
        """Of the run's file, without its ending."""
        return f"{self.seed}-{self.rate:g}" + (f"-replay{self.weight:g}" if self.weight else "")

    @property
    def place(self) -> Path:
        """Of the run under a folder of runs."""
        return Path(self.plan) / self.text / self.name

    @property
    def cell(self) -> tuple:
        """All but the seed: one run of each cell keeps its trained weights."""
        return self.plan, self.text, self.rate, self.weight


@dataclass(frozen=True)
class Study:
    """One base's part of the study. Small enough to send to a process.

    Attributes:
        section: of the protocol: "tiny", "smollm2" or another base.
        model: folder of the base.
        folder: where the study writes.
    """

    section: str
    model: str
    model_name: str
    folder: Path
    protocol: Protocol

    @property
    def numbers(self) -> dict:
        return self.protocol[self.section]

    @property
    def rules(self) -> dict:
        """What holds for every base, where this base's own section says nothing else."""
        return self.protocol["study"] | {k: v for k, v in self.numbers.items() if k in self.protocol["study"]}

    @property
    def texts(self) -> dict[str, Path]:
        """The texts that are there."""
        return {n: p for n, f in self.protocol["texts"].items() if (p := DATA / f).is_file()}

    @property
    def windows_file(self) -> Path:
        return self.folder / "retention" / self.model_name / "windows.safetensors"

    def record_path(self, job: Job) -> Path:
        return self.folder / "runs" / self.model_name / job.place.with_name(f"{job.name}.json")

    def work_folder(self, job: Job) -> Path:
        """The run's checkpoints, as long as it is not finished."""
        return self.folder / "work" / self.model_name / job.place

    def delta_path(self, job: Job) -> Path:
        return self.folder / "deltas" / self.model_name / job.place.with_name(f"{job.name}.safetensors")

    def is_tuning(self, job: Job) -> bool:
        """Whether this run chooses rates or plans; such a run reads no test text."""
        return job.seed in self.rules["tuning_seeds"]


def open_study(section: str, protocol: Protocol, folder: Path | None = None) -> Study:
    """The part of the study that a section of the protocol describes.

    Args:
        folder: where to write; None: ``build/study2``.

    Raises:
        ProtocolError: no such section.
        ProfileError: its base is not there yet; the message says how to fetch it.
    """
    numbers = protocol[section]
    profile = profiles.current(numbers["profile"], numbers.get("model"))
    return Study(section, profile.model, profile.model_name, folder or build_dir() / "study2", protocol)


# --- which runs there are ----------------------------------------------------------


def jobs_of(study: Study, stage: str | None = None) -> list[Job]:
    """The runs in their order: stage by stage, seed by seed, so that what was stopped early holds whole pairs.

    A run that two stages ask for belongs to the first. A text whose file is missing has no runs.

    Raises:
        ProtocolError: a stage that the order does not name.
    """
    found: dict[tuple, Job] = {}
    order = study.rules["order"]
    if unknown := sorted({s["name"] for s in study.numbers["stages"]} - set(order)):
        raise ProtocolError(
            f"The protocol's section [{study.section}] has a stage '{unknown[0]}' that the order does "
            f"not name. It names: {', '.join(order)}."
        )
    for name in order:
        entries = [s for s in study.numbers["stages"] if s["name"] == name]
        for seed in dict.fromkeys(seed for s in entries for seed in s["seeds"]):
            for job in (j for s in entries if seed in s["seeds"] for j in _of_seed(study, s, seed)):
                found.setdefault((*job.cell, job.seed), job)
    return [j for j in found.values() if stage in (None, j.stage)]


def _of_seed(study: Study, stage: dict, seed: int) -> Iterable[Job]:
    for text in (t for t in stage["texts"] if t in study.texts):
        for rate in stage["rates"]:
            for weight in stage["weights"]:
                for plan in stage["plans"]:
                    yield Job(stage["name"], plan, text, seed, float(rate), float(weight))


def missing_texts(study: Study) -> list[str]:
    """Texts that the stages ask for and whose file is not there."""
    return sorted({t for s in study.numbers["stages"] for t in s["texts"]} - study.texts.keys())


def settings_of(study: Study, job: Job) -> StudySettings:
    """Steps from the protocol's units: what it gives in rate x steps is as far at every rate."""
    n = study.numbers
    every = max(2, round(n["evaluate_every"] / job.rate))
    return StudySettings(
        n_steps=n["max_steps"],
        rate=job.rate,
        batch=n["batch"],
        seed=job.seed,
        warmup=n["warmup"],
        evaluate_every=every,
        dense_until=round(n["dense_until"] / job.rate),
        save_every=n["save_every"],
        patience=max(2 * every, math.ceil(n["patience"] / job.rate)),
        precision=n["precision"],
    )


def plan_of(name: str) -> FreezePlan:
    """A plan of the study by name.

    Raises:
        ProtocolError: the course has no such plan.
    """
    if not isinstance(name, str) or name not in (LORA, *COURSE_PLANS):
        raise ProtocolError(
            f"The protocol names a plan '{name}' that the course does not have. It has: "
            f"{', '.join(COURSE_PLANS)}, {LORA}."
        )
    return freezing.LORA_PLAN if name == LORA else COURSE_PLANS[name]


# --- what the base wrote -----------------------------------------------------------


def prepare(study: Study) -> dict[str, str]:
    """Let the base write its windows once: A and B to measure on, C to replay. Returns `hashes_of` them.

    Raises:
        StudyError: windows of another base are there, or a replay window is one that is measured on.
    """
    model = load_model(study.model)
    model_hash = weight_hash(model)
    if not study.windows_file.exists():
        n = study.numbers
        halves = first_halves(study, model_hash) or {
            half: sample_windows(model, n["retention_windows"], n["retention_length"], seed)
            for half, seed in n["retention_seeds"].items()
        }
        replay = sample_windows(model, n["replay_windows"], n["replay_length"], n["replay_seed"])
        require_apart(halves, replay)
        study.windows_file.parent.mkdir(parents=True, exist_ok=True)
        write_tensors(
            study.windows_file,
            {name: w.int() for name, w in {**halves, "C": replay}.items()},
            {"model_hash": model_hash},
        )
    if _hash_in(study.windows_file) != model_hash:
        raise StudyError(
            f"'{study.windows_file}' was written by another base. Move '{study.folder}' away, or take a "
            "folder of its own with --folder."
        )
    return hashes_of(study, model_hash)


def hashes_of(study: Study, model_hash: str) -> dict[str, str]:
    """Of the base ("model") and of each set of windows that it wrote ("A", "B", "C")."""
    return {"model": model_hash} | {name: bytes_hash(w) for name, w in load_file(study.windows_file).items()}


def first_halves(study: Study, model_hash: str) -> dict[str, torch.Tensor]:
    """The first study's halves A and B, or the first windows of them, where this base wrote as many; else nothing."""
    place = FIRST_RETENTION / study.model_name / "windows.safetensors"
    if not place.is_file() or _hash_in(place) != model_hash:
        return {}
    n, halves = study.numbers, load_file(place)
    fits = halves.keys() == n["retention_seeds"].keys() and all(
        len(w) >= n["retention_windows"] and w.size(1) == n["retention_length"] for w in halves.values()
    )
    return {half: w[: n["retention_windows"]].long() for half, w in halves.items()} if fits else {}


def require_apart(halves: dict[str, torch.Tensor], replay: torch.Tensor) -> None:
    """Raises StudyError where a replay window is one that is measured on, as far as the shorter of the two goes."""
    for half, windows in halves.items():
        length = min(windows.size(1), replay.size(1))
        same = (replay[:, None, :length] == windows[None, :, :length]).all(-1)  # (replay windows, windows)
        if same.any():
            raise StudyError(
                f"{counted(int(same.any(1).sum()), 'replay window', 'stands', 'stand')} in half {half} as well. Choose another "
                "replay_seed in the protocol."
            )


def _hash_in(place: Path) -> str | None:
    with safe_open(place, framework="pt") as file:
        return (file.metadata() or {}).get("model_hash")


# --- a run -------------------------------------------------------------------------


class Bench:
    """A base with its texts and windows, set up once a process; every run starts from it."""

    def __init__(self, study: Study):
        self.study, n = study, study.numbers
        self.tokenizer = load_tokenizer(study.model)
        self.windows = {name: w.long() for name, w in load_file(study.windows_file).items()}
        both = torch.cat([self.windows["A"], self.windows["B"]])
        self.retention = Retention(load_model(study.model), both, limit=KEPT_BYTES)
        self.base = self.retention.base
        self.n_parameters = sum(p.numel() for p in self.base.parameters())
        self.hashes = hashes_of(study, weight_hash(self.base))
        self.plain = spread(tensor_of(self.corpus(PLAIN).test), n["plain_windows"])
        self.plain_windows = self.losses(self.base, self.plain)
        self._texts: dict[str, Corpus] = {}
        self._dev_losses: dict[str, np.ndarray] = {}
        self._base_tests: dict[str, dict[str, list[float]]] = {}

    def corpus(self, text: str) -> Corpus:
        path, n_dev = self.study.texts[text], self.study.rules["dev_chapters"]
        return load_corpus(
            path, self.tokenizer, self.study.numbers["length"], name=text, n_dev=1 if text == PLAIN else n_dev
        )

    def text(self, name: str) -> Corpus:
        if name not in self._texts:
            self._texts[name] = self.corpus(name)
        return self._texts[name]

    def held_out(self, windows) -> torch.Tensor:
        return spread(tensor_of(windows), self.study.numbers["held_out_windows"])

    @staticmethod
    def losses(model: nn.Module, windows: torch.Tensor) -> np.ndarray:
        """Loss of each window, nats per token: (windows,)."""
        return held_out_loss(model, windows).per_window

    def base_dev(self, text: str) -> np.ndarray:
        """The base's loss on each dev window of a text."""
        if text not in self._dev_losses:
            self._dev_losses[text] = self.losses(self.base, self.held_out(self.text(text).dev))
        return self._dev_losses[text]

    def measure(self, model: nn.Module, text: str) -> dict:
        """Dev, both halves of the retention text, and the plain text: lists by window, nats per token."""
        forgotten, n = self.retention.forgetting(model).per_window, len(self.windows["A"])
        return {
            "dev_windows": rounded(self.losses(model, self.held_out(self.text(text).dev)), DIGITS),
            "forgetting_a": rounded(forgotten[:n], DIGITS),
            "forgetting_b": rounded(forgotten[n:], DIGITS),
            "plain_windows": rounded(self.losses(model, self.plain), DIGITS),
        }

    def evaluate(self, model: nn.Module, text: str) -> dict:
        """What an evaluation during training records."""
        found = self.measure(model, text)
        loss = float(np.mean(found["dev_windows"]))
        return {"held_out_loss": loss, "gain": float(self.base_dev(text).mean()) - loss, **found}

    def tests(self, model: nn.Module, text: str) -> dict[str, list[float]]:
        return {text: rounded(self.losses(model, self.held_out(self.text(text).test)), DIGITS)}

    def replay(self, job: Job) -> Replay | None:
        if not job.weight:
            return None
        return Replay(self.base, self.windows["C"], job.weight, self.study.numbers["replay_batch"], job.seed)

    def of_base(self, job: Job) -> dict:
        """The untouched base on the texts of a run, by window: what its gains are gains over."""
        found = {
            "dev_windows": rounded(self.base_dev(job.text), DIGITS),
            "plain_windows": rounded(self.plain_windows, DIGITS),
        }
        if self.study.is_tuning(job):
            return found
        if job.text not in self._base_tests:
            self._base_tests[job.text] = self.tests(self.base, job.text)
        return found | {"test_windows": self._base_tests[job.text]}


_benches: dict[tuple, Bench] = {}


def bench_of(study: Study) -> Bench:
    """The bench of this process; only one is kept, as a large base takes much memory."""
    key = (study.section, study.folder, study.model)
    if key not in _benches:
        _benches.clear()
        _benches[key] = Bench(study)
    return _benches[key]


def do(study: Study, job: Job) -> tuple[Path, float]:
    """Make one run and write its record in one move; a run that was killed goes on from its last checkpoint.

    Returns:
        (path, seconds): of the record, and how long this call took.
    """
    began = time.perf_counter()
    bench, work = bench_of(study), study.work_folder(job)
    model, settings = copy.deepcopy(bench.base), settings_of(study, job)
    if job.plan == LORA:
        rank = study.numbers["lora_rank"]
        freezing.insert(model, LORA_LAYERS, rank, 2 * rank, job.seed)
    saved = load_checkpoint(work)
    measured = list(saved.state["history"]["evaluations"]) if saved else []

    def measure(model: nn.Module) -> dict:
        measured.append(bench.evaluate(model, job.text))
        return measured[-1]

    try:
        result = fit(
            model,
            plan_of(job.plan),
            tensor_of(bench.text(job.text).train),
            settings,
            evaluate=measure,
            folder=work,
            progress=False,
            replay=bench.replay(job),
        )
        found = after_training(bench, job, model, result)
    except NotFinite as error:
        steps = [s for s in range(settings.n_steps + 1) if settings.evaluates_at(s)]
        found = {
            "diverged": str(error),
            "evaluations": [{"step": s, **m} for s, m in zip(steps, measured, strict=False)],
        }
    seconds = time.perf_counter() - began
    write_run(
        study.record_path(job),
        head_of(bench, job)
        | {"wall_seconds": round(seconds, 1), "resumed_at": saved.step if saved else 0}
        | found,
        SecondRunRecord,
    )
    shutil.rmtree(work, ignore_errors=True)
    return study.record_path(job), seconds


def head_of(bench: Bench, job: Job) -> dict:
    """What a record says before its results."""
    study = bench.study
    return {
        **asdict(job),
        "profile": study.section,
        "model_name": study.model_name,
        **made_with(study, job, bench.hashes),
        "n_amendments": study.protocol.n_amendments,
        "versions": versions(),
        "machine": machine_class(),
        "commit": code_commit(),
        "base": bench.of_base(job),
    }


def made_with(study: Study, job: Job, hashes: dict[str, str]) -> dict:
    """What decides a run's results beside the job itself; a record that differs in it is stale."""
    return {
        "protocol": study.protocol.sha256,
        "model_hash": hashes["model"],
        "retention_hashes": {name: h for name, h in hashes.items() if name != "model"},
        "text_hash": file_hash(study.texts[job.text]),
        "settings": asdict(settings_of(study, job)),
    }


def after_training(bench: Bench, job: Job, model: nn.Module, result: FitResult) -> dict:
    """The results of a finished run: its way, then its best weights rewound in steps."""
    study, history = bench.study, result.history
    ledger = plan_of(job.plan).explain(model)
    result.use_best(model)
    if job.plan == LORA:
        freezing.merge(model)
        freezing.unload(model)
    at_cap = len(history.steps) == study.numbers["max_steps"]
    found = {
        "n_trainable": ledger.n_trainable,
        "n_parameters": bench.n_parameters,
        "steps_taken": len(history.steps),
        "best_step": result.best_step,
        "ended": "cap" if at_cap else "patience",
        "proof_ok": result.proof.ok,
        "seconds": round(sum(history.seconds), 2),
        "losses": rounded([s["loss"] for s in history.steps], 4),
        "evaluations": history.evaluations,
    }
    if job.weight:
        found["replay_losses"] = rounded([s["replay"] for s in history.steps], DIGITS)
    if not study.is_tuning(job):
        found["test_windows"] = bench.tests(model, job.text)
    best = next(e for e in history.evaluations if e["step"] == result.best_step)
    found["rewound"] = rewind_in_steps(
        bench, job, model, {k: v for k, v in (best | found).items() if k in MEASURED}
    )
    if keeps_delta(study, job):
        found["delta"] = keep_delta(bench, job, model)
    return found


def rewind_in_steps(bench: Bench, job: Job, model: nn.Module, tuned: dict) -> list[dict]:
    """The best weights, rewound: all roles together, then one role at a time while the others stay tuned.

    Args:
        model: holds the best weights.
        tuned: what was measured with them already: the point at share 1.
    """
    study, base = bench.study, dict(bench.base.named_parameters())
    changed = {n: base[n] for n, p in model.named_parameters() if not torch.equal(p, base[n])}
    shares = [(ALL, s, s) for s in study.rules["shares"]]
    shares += [
        (role, s, {role: s})
        for role in study.rules["rewound_roles"]
        if is_a_part(model, role, changed)
        for s in study.rules["role_shares"]
    ]
    points = []
    for roles, number, share in shares:
        if share == 1.0:
            points.append({"roles": roles, "share": number, **tuned})
            continue
        with rewound(model, changed, share):
            tests = {} if study.is_tuning(job) else {"test_windows": bench.tests(model, job.text)}
            points.append({"roles": roles, "share": number, **bench.measure(model, job.text), **tests})
    return points


def is_a_part(model: nn.Module, role: str, changed: Iterable[str]) -> bool:
    """Whether a role holds some of the changed tensors, and not all of them: then rewinding it is a way of its own."""
    changed = set(changed)
    try:
        names = select(anatomy(model), role)
    except PlanError:  # this family has no such role
        return False
    return bool(names & changed) and not changed <= names


def keeps_delta(study: Study, job: Job) -> bool:
    """Whether this run keeps its trained weights for its cell: the cell's first run that is no tuning run."""
    own = [j for j in jobs_of(study) if j.cell == job.cell and not study.is_tuning(j)]
    return bool(own) and own[0] == job


def keep_delta(bench: Bench, job: Job, model: nn.Module) -> str:
    """Write the best weights' difference from the base; returns its path under the study's folder."""
    plan = FreezePlan.only(*LORA_LAYERS.split("+")) if job.plan == LORA else plan_of(job.plan)
    place = save_delta(model, plan, bench.base, bench.study.delta_path(job))
    return str(place.relative_to(bench.study.folder))


def stale(study: Study, jobs: Iterable[Job], hashes: dict[str, str]) -> list[str]:
    """What is recorded and was made with something else: one sentence a file."""
    problems = []
    for job in (j for j in jobs if study.record_path(j).exists()):
        found = read_run(study.record_path(job), SecondRunRecord)
        wanted = made_with(study, job, hashes)
        wanted["settings"] = RunSettings(**wanted["settings"])
        other = [k for k, v in wanted.items() if getattr(found, k) != v]
        if other:
            problems.append(
                f"{study.record_path(job).relative_to(study.folder)} differs in {', '.join(other)}"
            )
    return problems
