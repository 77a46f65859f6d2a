"""What a comparison says: a table, a sentence with intervals, a picture, a command, and what it could not find out."""

from __future__ import annotations

import io
import shlex
import shutil
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from helpers import plots
from helpers.files import write_json, write_text
from helpers.measuring import DIVERGED, Measured, held_out_loss
from helpers.study.comparing import Compared, CompareWords, Setup, compare, in_words, prepare
from helpers.study.recipes import (
    CHOICE,
    LEVEL,
    REPORT,
    REWOUND,
    STOPPED,
    UNFINISHED,
    Choice,
    Recipe,
    difference,
    read,
    reported_gain,
)
from helpers.training import locks

WIDTH = 80  # letters in a line of a terminal
REPORT_FILE, PICTURE = "report.json", "frontiers.svg"
MOST_LINES = 6  # in the picture
NOISY = 1.25  # the base's loss on its own text, over that on the reader's, from which it is called noisy
WIDE = 0.5  # half-width of an interval, as a share of the number


def carry_out(
    words: CompareWords, clock: Callable[[], float] = time.monotonic, began: float | None = None
) -> int:
    """Compare, print the answer, and keep it in the folder. Exit code 0: done.

    Args:
        began: the clock's time when the command began, before anything was imported; None: now.

    Raises:
        CompareError, and the errors of `course train`: what cannot be done, in one line.
    """
    began = clock() if began is None else began
    out = None
    try:
        setup = prepare(words)
        out = setup.out
        print(textwrap.fill(str(setup.ready.corpus), WIDTH), flush=True)  # before what takes long
        found = compare(setup, clock, began)
        said = report(setup, found)
        write_json(out / REPORT_FILE, said)
        draw(found, out)
        shutil.rmtree(out / "work", ignore_errors=True)
    finally:
        locks.give_back(out)
    print(on_screen(said, out))
    return 0


def report(setup: Setup, found: Compared) -> dict:
    """Everything that is printed, in values that JSON can hold."""
    choice = found.choice
    nothing = (
        "Nothing to choose: full training gained nothing on the dev text, or diverged, with each rate tried."
    )
    return {
        "what": setup.what,
        "model": setup.ready.profile.model,
        "text": setup.words.text,
        "text_is_read": str(setup.ready.corpus),
        "chosen": choice and {"recipe": titled(choice), "place": choice.place},
        "read": None if choice is None else what_is_read(choice),
        "rows": [] if choice is None else [row(found, recipe) for recipe in choice.ranked],
        "sentence": nothing if choice is None else sentence(choice),
        "command": None if choice is None else command(setup, choice),
        "not_found_out": notes(setup, found),
    }


def what_is_read(choice: Choice) -> dict:
    if choice.keep is not None:
        return {"within": choice.keep}
    return {"gain": reported_gain(choice), "reference": choice.reference.candidate.title}


def row(found: Compared, recipe: Recipe) -> dict:
    """One recipe: nats per token on the test text and half B, bytes at the peak of a step, minutes of training."""
    value, predicted = read(found.choice, recipe), found.budgets.get(recipe.probe.candidate)
    interval = value and value.measured(with_seeds=False)
    return {
        "recipe": recipe.title,
        "gain": recipe.probe.gain(REPORT),
        "value": interval and float(interval.mean),
        "interval": interval and list(ends(interval, found.choice)),
        "test_loss": recipe.probe.test_loss,
        "peak_bytes": predicted and predicted.peak_bytes,
        "minutes": recipe.probe.n_steps * recipe.probe.step_seconds / 60,
        "n_steps": recipe.probe.n_steps,
    }


def titled(choice: Choice) -> str:
    """The choice with its place: "attention frozen, 0.0001, rewound to 0.46"."""
    at = f" to {choice.place:g}" if choice.recipe.method == REWOUND else f" at step {choice.place:g}"
    return choice.recipe.title + at


# --- in one sentence ---------------------------------------------------------------


def sentence(choice: Choice) -> str:
    """The answer with its intervals, beside what most people do: full training, stopped."""
    mine, other = read(choice, choice.recipe), rival(choice)
    its = other and read(choice, other)
    if mine is None:
        return f"{titled(choice)} was chosen on the dev text; on the test text its level was not reached."
    if choice.keep is None:
        start = (
            f"At a gain of {reported_gain(choice):.3f} nats per token on the test text ({LEVEL:.0%} of the best of "
            f"{choice.reference.candidate.title}), {titled(choice)} forgets"
        )
    else:
        start = (
            f"Within {choice.keep:g} nats per token of forgetting, {titled(choice)} gains on the test text"
        )
    end = "One seed: the 95% intervals hold the windows of both texts, not another order of the data."
    said = f"{start} {with_interval(mine.measured(with_seeds=False), choice)} nats per token"
    if its is None:
        return f"{said}. {end}"
    return (
        f"{said}; {other.title}: {with_interval(its.measured(with_seeds=False), choice)}. The difference is "
        f"{with_interval(difference(choice, other))}. {end}"
    )


def rival(choice: Choice) -> Recipe | None:
    """The reference, stopped; where that is the choice itself, the next best recipe."""
    plain = Recipe(choice.reference, STOPPED)
    if choice.recipe != plain:
        return plain
    return choice.ranked[1] if len(choice.ranked) > 1 else None


def with_interval(number: Measured, choice: Choice | None = None) -> str:
    """A number and its interval; without a choice it is a difference, with its sign."""
    low, high = ends(number, choice)
    sign = "" if choice else "+"
    return f"{number.mean:{sign}.4f} [{low:{sign}.4f}, {high:{sign}.4f}]"


def ends(number: Measured, choice: Choice | None) -> tuple[float, float]:
    """The 95% interval; that of forgetting ends at 0, which no divergence is below."""
    low, high = map(float, number.interval())
    is_forgetting = choice is not None and choice.keep is None
    return (max(0.0, low), high) if is_forgetting else (low, high)


# --- the command -------------------------------------------------------------------


def command(setup: Setup, choice: Choice) -> str:
    """What trains the chosen model, whole: the run that was measured."""
    candidate, made = choice.recipe.probe.candidate, setup.made
    n_steps = choice.recipe.probe.n_steps if choice.recipe.method == REWOUND else choice.place
    words = [
        *("--text", setup.words.text, "--model", setup.ready.profile.model),
        *candidate.freeze_plan.flag.split(" ", 1),
        *("--lr", f"{candidate.rate:g}", "--steps", f"{n_steps:g}", "--seed", str(made.seed)),
        *("--batch", str(made.batch), "--length", str(setup.what["length"])),
        *(("--replay", f"{candidate.replay:g}") if candidate.replay else ()),
        *(("--rewind", f"{choice.place:g}") if choice.recipe.method == REWOUND else ()),
        *("--out", f"{setup.out}-trained"),
    ]
    return f"course train {shlex.join(words)}"


# --- what it could not find out ----------------------------------------------------


def notes(setup: Setup, found: Compared) -> list[str]:
    """What is not known after this comparison, and why; a reader is told all of it."""
    said = [f"Not tried: {line}" for line in found.left_out]
    said += [f"{p.candidate.title}: diverged." for p in found.probes if p.ended == DIVERGED]
    if found.choice is not None:
        said += of_the_choice(found.choice)
    own = held_out_loss(found.bench.base, found.bench.written[: 2 * found.bench.n]).mean
    theirs = held_out_loss(found.bench.base, found.bench.test).mean
    if own > NOISY * theirs:
        said.append(
            f"The retention text is noisy: the base finds what it wrote itself harder ({own:.2f} nats per token) "
            f"than your text ({theirs:.2f}). It says little about text that you would ask the model for."
        )
    if getattr(setup.ready.tokenizer, "chat_template", None):
        said.append(
            "This model was taught to chat, and wrote its retention text outside its chat template: what it "
            "forgets in a chat was not measured."
        )
    return said


def of_the_choice(choice: Choice) -> list[str]:
    """How far the choice itself is known."""
    said, probe = [], choice.recipe.probe
    if choice.keep is None:
        short = [r.probe.candidate.title for r in choice.ranked if read(choice, r) is None]
        if short:
            said.append(f"Not at this gain in the steps it had, so not compared: {'; '.join(short)}.")
    if probe.best_step == probe.n_steps and probe.ended == UNFINISHED:
        said.append(
            f"The dev loss of the choice was still falling at step {probe.n_steps}: more steps may gain more, with "
            "another share. Give more --minutes."
        )
    if len(choice.ranked) > 1:
        second = difference(choice, choice.ranked[1])
        low, high = second.interval() if second else (-1.0, 1.0)
        if low <= 0 <= high:
            said.append(
                f"Whether it is better than {choice.ranked[1].title}: the windows do not tell them apart."
            )
    value = read(choice, choice.recipe)
    if value is not None:
        number = value.measured(with_seeds=False)
        if number.half_width() > WIDE * abs(number.mean):
            said.append("Its interval is wide: the texts have few windows here. A longer text narrows it.")
    if probe.candidate.replay:
        said.append(
            "The choice trains on text that the base wrote, and forgetting is measured on text of that kind: on "
            "other text it may forget more."
        )
    if probe.gain(REPORT) < LEVEL * probe.gain(CHOICE):
        said.append(
            f"Its best weights gain {probe.gain(REPORT):.3f} on the test text and {probe.gain(CHOICE):.3f} on the dev "
            "text, on which it was chosen: chapters differ, or it fits the dev text too well."
        )
    return said


# --- on the screen -----------------------------------------------------------------


def on_screen(said: dict, out: Path) -> str:
    """The report for a terminal."""
    lines = []
    if said["rows"]:
        head = "within" if "within" in said["read"] else "forgets"
        lines += [
            "",
            f"{'gain':>6} {head:>7} {'loss':>6} {'memory':>7} {'min':>5}  recipe (the best first, by dev and half A)",
            *map(table_line, said["rows"]),
            caption(said["read"]),
            "",
        ]
    lines.append(textwrap.fill(said["sentence"], WIDTH))
    if said["command"]:
        lines += ["", said["command"]]
    if said["not_found_out"]:
        notes = [textwrap.fill(f"- {note}", WIDTH, subsequent_indent="  ") for note in said["not_found_out"]]
        lines += ["", "What this could not find out:", *notes]
    picture = [f"picture: {out / PICTURE}"] if said["rows"] else []
    return "\n".join([*lines, "", *picture, f"report:  {out / REPORT_FILE}"])


def table_line(entry: dict) -> str:
    value = "-" if entry["value"] is None else f"{entry['value']:.4f}"
    memory = "-" if entry["peak_bytes"] is None else in_words(entry["peak_bytes"])
    return (
        f"{entry['gain']:>6.3f} {value:>7} {entry['test_loss']:>6.3f} {memory:>7} {entry['minutes']:>5.2g}  "
        f"{entry['recipe']}"
    )


def caption(kind: dict) -> str:
    """What the columns are."""
    middle = (
        f"within: gain within {kind['within']:g} of forgetting on half B."
        if "within" in kind
        else f"forgets: on half B, at a gain of {kind['gain']:.3f} on the test text (-: not reached)."
    )
    return (
        f"Nats per token. gain, loss: best weights on the test text.\n{middle}\n"
        "memory: predicted peak of a step. min: minutes of training, so far."
    )


def draw(found: Compared, out: Path) -> None:
    """Save the frontiers of the best recipes: forgetting on half B against gain on the test text."""
    if found.choice is None:
        return
    points = {}
    for recipe in found.choice.ranked[:MOST_LINES]:
        path = recipe.path(REPORT)
        points[recipe.title] = (path.gains.mean(-1), np.maximum(path.forgetting.mean(-1), 0.0))
    within = found.choice.keep
    end = "forgets least at equal gain" if within is None else f"gains most within {within:g} of forgetting"
    level = reported_gain(found.choice) if within is None else None
    figure = plots.frontier(points, f"{titled(found.choice)}\n{end} (chosen on dev and half A)", level)
    image = io.StringIO()
    figure.savefig(image, format="svg", metadata={"Date": None})
    plots.plt.close(figure)
    write_text(out / PICTURE, image.getvalue())
