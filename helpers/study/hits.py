"""How good are the answers of `course compare`? Ask it on cases that did not build it, and sweep all recipes beside it.

A case is a base, a text and a seed. The comparison is that of `course compare`, with fixed steps in place of a clock,
so that a busy machine changes nothing. The sweep trains every candidate to the last step with another order of the
text, and reads it on other retention windows and more of the test text. It is the truth that the answer is held to.

    course study hits              makes the cases that the evidence does not have yet, under build/hits
    course study hits --pack       puts them into data/evidence/hits.json, and writes docs/compare.md
"""

from __future__ import annotations

import copy
import itertools
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from torch import nn

from helpers.files import counted, read_json, write_json, write_text
from helpers.freezing import FreezePlan
from helpers.measuring import sample_windows
from helpers.models import load_model, load_tokenizer, weight_hash
from helpers.profiles import DATA, ROOT, SMOLLM2, TINY, build_dir, current
from helpers.session import machine_class, machine_in_words
from helpers.study.answering import ends
from helpers.study.probing import N_REPLAYED, Bench, Made, probe
from helpers.study.recipes import (
    CANDIDATES,
    LEVEL,
    REPORT,
    REWOUND,
    STOPPED,
    Candidate,
    Choice,
    Probe,
    Recipe,
    choose,
    difference,
    halve,
    read,
    recipes_of,
    reported_gain,
)
from helpers.study.records import RecordError, read_record
from helpers.texts import Corpus, load_corpus, tensor_of
from helpers.training import TrainSettings, fit

EVIDENCE, PAGE = DATA / "evidence" / "hits.json", ROOT / "docs" / "compare.md"
MINIATURES = ("gpt-neo-mini", "gpt-neo-mini, 60 steps on plain_tales.txt")
BASES = (*MINIATURES, SMOLLM2.model_name)
TEXTS = ("edgar", "viet", "code", "verse")
FILES = {"edgar": "edgar_style.txt", "viet": "viet_tales.txt", "verse": "verse_tales.txt"}
SEEDS = (0, 1)
ASKED = 12  # cases, at least
TRIED = CANDIDATES[:6]
ROUNDS, STEPS = (6, 3), (20, 40)  # candidates in each round, and up to which step
LENGTH, BATCH = 64, 4
N_ASKED, N_SWEPT = 16, 32  # windows of each text: the comparison's, and the sweep's
SWEEP = {"seed": 500, "written": 4321}  # added to the case's seed; of the base's own text
NEAR = 1.1  # the chosen recipe may forget a tenth more than the best


def made_with() -> dict:
    """What decides a case beside its base, text and seed; a record that was made with something else is stale."""
    return {
        "candidates": [c.name for c in TRIED],
        "rounds": list(ROUNDS),
        "steps": list(STEPS),
        "length": LENGTH,
        "batch": BATCH,
        "windows": [N_ASKED, N_SWEPT],
        "sweep": SWEEP,
    }


class Case(NamedTuple):
    base: str
    text: str
    seed: int

    @property
    def name(self) -> str:
        return f"{BASES.index(self.base)}-{self.text}-{self.seed}"


CASES = (  # SmolLM2's last: it must be fetched, and takes longer
    *(Case(base, text, seed) for seed, text, base in itertools.product(SEEDS, TEXTS, MINIATURES)),
    *(Case(SMOLLM2.model_name, text, 0) for text in TEXTS),
)


# --- what a case is made of --------------------------------------------------------


def source_of(base: str) -> str:
    """The model's folder.

    Raises:
        ProfileError: SmolLM2 was not fetched yet.
    """
    return TINY.model if base in MINIATURES else current(SMOLLM2.name).model


def base_of(name: str) -> nn.Module:
    """A model as it is shipped or fetched; or one that anybody can make: trained on, on a text that no case has."""
    model = load_model(source_of(name))
    if name != MINIATURES[1]:
        return model
    windows = tensor_of(load_corpus(DATA / "plain_tales.txt", load_tokenizer(TINY.model), LENGTH).train)
    fit(
        model,
        FreezePlan.full(),
        windows,
        TrainSettings(n_steps=60, rate=3e-4, batch=8, seed=77),
        progress=False,
    )
    return model


def corpus_of(text: str, source: str, folder: Path) -> Corpus:
    """A text of the project, in the tokens of a model; "code" is its own Python, two rooms of it in one file."""
    path = DATA / FILES.get(text, "")
    if text == "code":
        rooms = [ROOT / "helpers" / room for room in ("models", "freezing")]
        path = folder / "code.txt"
        write_text(
            path, "\n\n".join(p.read_text("utf-8") for room in rooms for p in sorted(room.glob("*.py")))
        )
    return load_corpus(path, load_tokenizer(source), LENGTH, name=text)


def kept(place: Path, make: Callable[[], dict]) -> dict:
    """What a file holds; where there is none, it is made and written whole."""
    if not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        write_json(place, make())
    return read_json(place)


def compared(model: nn.Module, corpus: Corpus, seed: int, folder: Path) -> Choice | None:
    """What `course compare` chooses, with the steps of `STEPS`."""
    bench = Bench(model, corpus, Made(BATCH, seed), n=N_ASKED)

    def probe_of(candidate: Candidate, before: Probe | None, n_rounds: int, n_probes: int) -> Probe:
        n_steps = STEPS[-n_rounds]
        place = folder / "asked" / f"{candidate.name}-{n_steps}.json"
        return Probe.of(kept(place, lambda: probe(bench, candidate, n_steps, folder / "work")))

    return choose(halve(TRIED, ROUNDS, probe_of))


def swept(model: nn.Module, corpus: Corpus, seed: int, folder: Path) -> list[Probe]:
    """Every candidate to the last step, in another order of the text, on other and more windows."""
    written = sample_windows(model, 2 * N_SWEPT + N_REPLAYED, LENGTH, SWEEP["written"])
    bench = Bench(model, corpus, Made(BATCH, seed + SWEEP["seed"]), written, N_SWEPT)
    places = {c: folder / "swept" / f"{c.name}.json" for c in TRIED}
    return [Probe.of(kept(p, lambda c=c: probe(bench, c, STEPS[-1], None))) for c, p in places.items()]


def outcome(case: Case, choice: Choice | None, sweep: Sequence[Probe]) -> dict:
    """The answer beside the truth: forgetting at the gain that the answer names, nats per token."""
    found = {"base": case.base, "text": case.text, "seed": case.seed, "chosen": None}
    if choice is None:
        return found
    gain = reported_gain(choice)
    truth = {r.title: r.path(REPORT).forgetting_at(gain) for r in recipes_of(sweep)}
    mine, plain = read(choice, choice.recipe), Recipe(choice.reference, STOPPED)
    apart = None if choice.recipe == plain else difference(choice, plain)
    return found | {
        "chosen": choice.recipe.title,
        "gain": gain,
        "interval": mine and [round(end, 5) for end in ends(mine.measured(with_seeds=False), choice)],
        "reference": plain.title,
        "difference": apart and [round(float(end), 5) for end in apart.interval()],
        "truth": {title: value if value is None else round(value, 5) for title, value in truth.items()},
    }


def record(folder: Path | None = None, minutes: float | None = None) -> None:
    """Make the cases that neither the evidence nor the folder has, in their order.

    Args:
        minutes: begin no case after so many; None: all of them.

    Raises:
        RecordError: the folder holds a case that was made with other settings than those of now.
    """
    folder, began, bases = folder or build_dir() / "hits", time.monotonic(), {}
    known = packed() | made_in(folder)
    for case in CASES:
        place = folder / f"{case.name}.json"
        if case.name in known or (minutes is not None and time.monotonic() - began > 60 * minutes):
            continue
        own = folder / case.name
        own.mkdir(parents=True, exist_ok=True)
        if case.base not in bases:
            bases[case.base] = base_of(case.base)
        model, corpus = bases[case.base], corpus_of(case.text, source_of(case.base), own)
        choice = compared(copy.deepcopy(model), corpus, case.seed, own)
        found = outcome(case, choice, swept(copy.deepcopy(model), corpus, case.seed, own))
        hashes = {"text_hash": corpus.sha256, "model_hash": weight_hash(model)}
        write_json(place, found | hashes | {"machine": machine_class(), "made_with": made_with()})
        print(f"{case.name}: {found['chosen']}", flush=True)


# --- the score ---------------------------------------------------------------------


def score(records: Sequence[dict]) -> dict[str, tuple[int, int]]:
    """How many of how many cases, by question. A case in which the truth is not known is in neither number."""
    known = [r for r in records if r["chosen"] and r["truth"].get(r["chosen"]) is not None]
    best = {id(r): min(v for v in r["truth"].values() if v is not None) for r in known}
    return {
        "covers": count(known, lambda r: r["interval"] and covers(r["interval"], r["truth"][r["chosen"]])),
        "covers the difference": count(
            [r for r in known if r["difference"] and r["truth"][r["reference"]] is not None],
            lambda r: covers(r["difference"], r["truth"][r["chosen"]] - r["truth"][r["reference"]]),
        ),
        "near the best": count(known, lambda r: r["truth"][r["chosen"]] <= NEAR * best[id(r)]),
        "better than full, stopped": beside(known, always(STOPPED)),
        "better than full, rewound": beside(known, always(REWOUND)),
    }


def always(method: str) -> str:
    """What somebody does who does not ask: full training, at the gentlest rate that was tried."""
    gentlest = min((c for c in TRIED if c.plan == "full" and not c.replay), key=lambda c: c.rate)
    return f"{gentlest.title}, {method}"


def beside(records: Sequence[dict], rule: str) -> tuple[int, int]:
    """How often the choice forgets no more than a rule; the rule itself counts as no more."""
    both = [r for r in records if r["truth"].get(rule) is not None]
    return count(both, lambda r: r["truth"][r["chosen"]] <= r["truth"][rule])


def covers(interval: Sequence[float], value: float) -> bool:
    return interval[0] <= value <= interval[1]


def count(records: Sequence[dict], is_so: Callable[[dict], bool]) -> tuple[int, int]:
    return sum(bool(is_so(r)) for r in records), len(records)


def recorded() -> dict[str, dict]:
    """All cases of the evidence."""
    return read_record(EVIDENCE) if EVIDENCE.exists() else {}


def packed() -> dict[str, dict]:
    """The cases of the evidence that were made as they would be now."""
    return {name: record for name, record in recorded().items() if is_fresh(record)}


def made_in(folder: Path) -> dict[str, dict]:
    """The cases in a folder.

    Raises:
        RecordError: one is damaged, or was made with other settings than those of now.
    """
    found = {c.name: read_record(p) for c in CASES if (p := folder / f"{c.name}.json").exists()}
    if stale := [name for name, record in found.items() if not is_fresh(record)]:
        raise RecordError(
            f"'{folder / stale[0]}.json' was made with other settings than those of now ({len(stale)} of "
            f"{counted(len(found), 'case')} there). Move '{folder}' away, or give another --folder."
        )
    return found


def is_fresh(record: Mapping) -> bool:
    return record.get("made_with") == made_with()


def pack(folder: Path | None = None) -> None:
    """Put the cases of a folder into the evidence, and write the page of those that were made as they would be now.

    A case of the evidence goes only where the same case takes its place.

    Raises:
        RecordError: there is no case, in the folder or in the evidence; nothing is written.
    """
    folder = folder or build_dir() / "hits"
    found = recorded() | made_in(folder)
    if not found:
        raise RecordError(f"There is no case in '{folder}' or in the evidence. Make them: course study hits")
    names = [case.name for case in CASES]
    ordered = sorted(found, key=lambda name: names.index(name) if name in names else len(names))
    write_json(EVIDENCE, {name: found[name] for name in ordered})
    write_text(PAGE, page(list(packed().values())))


# --- the page ----------------------------------------------------------------------


def page(records: Sequence[dict]) -> str:
    """What was measured, on which cases, and what was not."""
    found = score(records)
    rows = "\n".join(map(line, records))
    said = "\n".join(
        f"| {words} | {found[key][0]} of {found[key][1]} | {aim:.0%} | {met(*found[key], aim)} |"
        for key, (words, aim) in QUESTIONS.items()
    )
    n_chosen = sum(bool(r["chosen"]) for r in records)
    rounds = ", then ".join(f"{n} to step {step}" for n, step in zip(ROUNDS, STEPS, strict=True))
    machines = "; ".join(sorted({machine_in_words(r["machine"]) for r in records}))
    return f"""# How far to trust `course compare`

`course compare --text BOOK.txt --minutes 20` probes a model and a text with a few recipes and names the one that forgets
least. This page says how good its answers were on cases that were not used to build it. `course study hits` makes the
cases, `course study hits --pack` writes this page from `data/evidence/hits.json`.

## What was asked

{counted(len(records), "case")}; {ASKED} or more were asked for. In {n_chosen} of them a recipe could be chosen. A case is a
base, a text and a seed.
Bases: {listed(records, "base", BASE_WORDS)}.
Texts: {listed(records, "text", TEXT_WORDS)}.

Each case is small: windows of {LENGTH} tokens, {BATCH} a step; {len(TRIED)} candidates: {rounds}; {N_ASKED} windows
of each text. The sweep trains all candidates for {STEPS[-1]} steps, with another order of the text, and reads them on
{N_SWEPT} test windows and {N_SWEPT} other retention windows. So it has an error of its own, and another seed, which the
intervals do not hold. Machine: {machines}.

## What came out

| question | cases | aim | met? |
| --- | --- | --- | --- |
{said}

The last two are what somebody does who does not ask: full training, at the gentlest rate that was tried here.

Forgetting at equal gain on the test text, nats per token. "Chosen" is the answer, with its interval; the other numbers
are of the sweep, at the gain that the answer names ({LEVEL:.0%} of the best of full training in the comparison).

| case | chosen | interval | the same, swept | best of the sweep |
| --- | --- | --- | --- | --- |
{rows}

## What was not asked

{unasked(records)}Every other large model; a second miniature that was trained from another seed; a budget of 20
minutes, or windows of 256 tokens; a GPU; `--keep`. Nothing here speaks about them.
"""


BASE_WORDS = {
    MINIATURES[0]: "the shipped miniature",
    MINIATURES[1]: "the same, trained 60 steps further on `plain_tales.txt`",
    SMOLLM2.model_name: "SmolLM2-135M, the instruct variant",
}
SHORT = dict(zip(BASES, ("miniature", "further trained", "SmolLM2"), strict=True))
TEXT_WORDS = {
    "edgar": "`edgar_style.txt`",
    "viet": "`viet_tales.txt`",
    "verse": "`verse_tales.txt`",
    "code": "the course's own Python (the rooms `models` and `freezing`)",
}


def listed(records: Sequence[dict], key: str, words: Mapping[str, str]) -> str:
    """The bases or texts that the records have, each with its number of cases."""
    n_by_name = Counter(r[key] for r in records)
    return "; ".join(f"{words[name]} ({n_by_name[name]})" for name in words if n_by_name[name])


def unasked(records: Sequence[dict]) -> str:
    """The planned cases that are missing, in words; empty where there are all."""
    made = {(r["base"], r["text"], r["seed"]) for r in records}
    missing = [short(*case) for case in CASES if tuple(case) not in made]
    return f"Planned, and not made yet: {'; '.join(missing)}.\n\n" if missing else ""


def short(base: str, text: str, seed: int) -> str:
    return f"{SHORT[base]}, {text}, seed {seed}"


QUESTIONS = {  # to the words and the share of the cases that was hoped for
    "covers": ("the interval of the answer holds the sweep's number", 0.9),
    "covers the difference": ("so does that of the difference from full training, stopped", 0.9),
    "near the best": ("the chosen recipe forgets at most a tenth more than the best of the sweep", 1.0),
    "better than full, stopped": (f"it forgets no more than {always(STOPPED)}", 1.0),
    "better than full, rewound": (f"it forgets no more than {always(REWOUND)}", 1.0),
}


def met(n: int, n_asked: int, aim: float) -> str:
    """Whether an aim was met, and on how little that rests."""
    if n_asked == 0:
        return "not known"
    few = f", but in fewer cases than {ASKED}" if n_asked < ASKED else ""
    return ("yes" if n >= aim * n_asked else "no") + few


def line(entry: dict) -> str:
    """A case as a row of the table."""
    name = short(entry["base"], entry["text"], entry["seed"])
    if not entry["chosen"]:
        return f"| {name} | nothing: full training gained nothing | | | |"
    known = {title: value for title, value in entry["truth"].items() if value is not None}
    mine, best = known.get(entry["chosen"]), min(known, key=known.get, default=None)
    return "| {} | {}, at a gain of {:.3f} | {} | {} | {} |".format(
        name,
        entry["chosen"],
        entry["gain"],
        "none" if not entry["interval"] else "{:.4f} to {:.4f}".format(*entry["interval"]),
        "not reached" if mine is None else f"{mine:.4f}",
        "none reached" if best is None else f"{known[best]:.4f}: {best}",
    )
