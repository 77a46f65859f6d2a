"""The words of `course train`, and what every command of the course does with bad input: one line, exit code 2.

Nothing here waits for torch, so that ``--help`` answers at once.
"""

from __future__ import annotations

import errno
import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, TextIO

import typer
from typer.main import get_command

from helpers import profiles
from helpers.training.interrupts import Stopped, ctrl_c_at_once

USAGE_ERROR = typer.BadParameter.mro()[1]  # click's UsageError, or that of typer's own copy of click
OWN = ("helpers", "publishing")
INPUT, RUN, MACHINE = "What to train on", "How it trains", "The machine"
AFTER = "What is kept"


@dataclass(frozen=True)
class TrainWords:
    """What was asked for, word by word; not checked yet. None: the profile decides."""

    text: str
    out: str
    profile: str | None = None
    model: str | None = None
    freeze: str | None = None
    only: str | None = None
    steps: int | None = None
    lr: float | None = None
    seed: int = 0
    batch: int | None = None
    micro_batch: int | None = None
    length: int | None = None
    patience: int | None = None
    replay: float | None = None
    rewind: str | None = None
    processes: int | None = None
    prompt: str | None = None
    cache_frozen: bool | None = None


def train_command(carry_out: Callable[[], Callable[[TrainWords], int]]) -> Callable[..., int]:
    """The command, with all its options.

    Args:
        carry_out: gives what does the work; called when there is some, because it brings torch.
    """

    def train(
        text: Annotated[str, typer.Option(metavar="FILE", help="Plain text, UTF-8.", rich_help_panel=INPUT)],
        out: Annotated[
            str,
            typer.Option(
                metavar="RUN", help="Folder for checkpoints, weights and report.json.", rich_help_panel=INPUT
            ),
        ],
        profile: Annotated[
            str,
            typer.Option(
                metavar="NAME",
                help=f"{', '.join(profiles.PROFILES)}.",
                show_default="gpt-neo with a GPU, else tiny",
                rich_help_panel=INPUT,
            ),
        ] = None,
        model: Annotated[
            str,
            typer.Option(
                metavar="MODEL",
                help="A model folder or hub name.",
                show_default="the profile's",
                rich_help_panel=INPUT,
            ),
        ] = None,
        freeze: Annotated[
            str,
            typer.Option(
                metavar="WHAT",
                help="What stays fixed, e.g. attention+embeddings.",
                show_default="nothing",
                rich_help_panel=RUN,
            ),
        ] = None,
        only: Annotated[
            str,
            typer.Option(
                metavar="WHAT",
                help="What trains, e.g. norms, attention, mlp-out.",
                show_default="everything",
                rich_help_panel=RUN,
            ),
        ] = None,
        steps: Annotated[
            int,
            typer.Option(
                metavar="N",
                help="Optimizer steps, at most.",
                show_default="the profile's",
                rich_help_panel=RUN,
            ),
        ] = None,
        lr: Annotated[
            float,
            typer.Option(
                metavar="RATE",
                help="Learning rate.",
                show_default="the profile's for this plan",
                rich_help_panel=RUN,
            ),
        ] = None,
        seed: Annotated[int, typer.Option(metavar="N", help="Order of the text.", rich_help_panel=RUN)] = 0,
        batch: Annotated[
            int,
            typer.Option(
                metavar="N", help="Windows a step.", show_default="the profile's", rich_help_panel=RUN
            ),
        ] = None,
        length: Annotated[
            int,
            typer.Option(
                metavar="N", help="Tokens a window.", show_default="the profile's", rich_help_panel=RUN
            ),
        ] = None,
        patience: Annotated[
            int,
            typer.Option(
                metavar="STEPS",
                help="End after so many steps without a lower held-out loss.",
                show_default="never",
                rich_help_panel=RUN,
            ),
        ] = None,
        replay: Annotated[
            float,
            typer.Option(
                metavar="WEIGHT",
                help="Hold the model near its base, on text that the base writes; usual are 0.3 to 3.",
                show_default="no replay",
                rich_help_panel=RUN,
            ),
        ] = None,
        rewind: Annotated[
            str,
            typer.Option(
                metavar="SHARE",
                help="Keep this share of the change, 0 to 1; auto: the smallest that keeps 90% of the gain.",
                show_default="all of it",
                rich_help_panel=AFTER,
            ),
        ] = None,
        prompt: Annotated[
            str,
            typer.Option(
                metavar="TEXT",
                help="Begin the sample with this.",
                show_default="the first words of the test text",
                rich_help_panel=AFTER,
            ),
        ] = None,
        micro_batch: Annotated[
            int,
            typer.Option(
                metavar="N",
                help="Windows at a time in memory.",
                show_default="all of a step",
                rich_help_panel=MACHINE,
            ),
        ] = None,
        cache_frozen: Annotated[
            bool,
            typer.Option(
                "--cache-frozen/--no-cache-frozen",
                help="Compute frozen first blocks once for each window, and keep their output.",
                show_default="where it fits in memory",
                rich_help_panel=MACHINE,
            ),
        ] = None,
        processes: Annotated[
            int,
            typer.Option(
                metavar="N",
                help="Refuse to start unless the launcher has made so many.",
                show_default="any number",
                rich_help_panel=MACHINE,
            ),
        ] = None,
    ) -> int:
        """Train on a text of your own, and measure what was learned and forgotten.

        Prints what trains, what it should cost and did cost, the loss before and
        after, what was forgotten, the proof that frozen weights stayed, and a
        sample. RUN/report.json holds all of it, RUN/delta.safetensors what trained.
        Stopped at any moment, the same command goes on.

        In several processes: accelerate launch --multi_gpu --num_processes 2
        -m helpers.training.shell ...
        """
        with ctrl_c_at_once():
            work = carry_out()
        return work(
            TrainWords(
                text, out, profile, model, freeze, only, steps, lr, seed, batch, micro_batch, length, patience,
                replay, rewind, processes, prompt, cache_frozen,
            )
        )  # fmt: skip

    return train


def alone(carry_out: Callable[[], Callable[[TrainWords], int]]) -> typer.Typer:
    """A program of the train command and nothing else: `python -m helpers.training.shell`."""
    app = typer.Typer(add_completion=False, rich_markup_mode="rich")
    app.command()(train_command(carry_out))
    return app


# --- one place for what goes wrong -------------------------------------------------

FULL = (errno.ENOSPC, errno.EDQUOT)  # a disk, or what somebody may use of it
NO_MEMORY = os.strerror(errno.ENOMEM)  # torch's RuntimeError ends with the system's words


def answer(app: typer.Typer, arguments: list[str] | None, name: str) -> int:
    """Run a program's command.

    Returns:
        0: done; 1: done, and something it checked is not so; 2: it could not be done, said in one line;
        130: interrupted.
    """
    write_any_letter()
    profiles.drop_useless_widths()
    if sys.flags.optimize > 1:
        say(
            "error: Python runs without docstrings here (-OO, or PYTHONOPTIMIZE=2), and transformers needs them. Take "
            "the setting away."
        )
        return 2
    try:
        os.getcwd()
    except OSError:
        say("error: The current folder is not there any more, or cannot be read. Change to another one.")
        return 2
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if empty := empty_word(arguments):  # as a shell's variable that is not set: it would mean "the default"
        say(f"error: {empty} is empty. Give a name.")
        return 2
    arguments = with_home(arguments)
    try:
        command = get_command(app)
        # Not its `main`, which has ends of its own for Ctrl-C and a closed pipe.
        with command.make_context(name, arguments) as context:
            code = command.invoke(context) or 0
        sys.stdout.flush()  # a full disk is said here, and not by Python at its end
        return code
    except typer.Exit as error:  # --help
        return error.exit_code
    except USAGE_ERROR as error:
        return refused(error, name)
    except Stopped as error:
        return interrupted(str(error))
    except (KeyboardInterrupt, typer.Abort):
        return interrupted("stopped: the same command starts again")
    except BrokenPipeError:  # as in `… | head`: nobody reads on
        sys.stdout = nowhere()  # Python flushes it at its end
        say(
            "error: What reads the output has ended, so not all was printed. The same command goes on from its last "
            "checkpoint, or begins anew where there is none."
        )
        return 2
    except SystemExit as error:
        if not isinstance(error.code, str):
            return error.code or 0
        say(f"error: {error.code}")
        return 2
    except Exception as error:  # noqa: BLE001 (the outermost place: named in one line, and kept whole)
        try:
            say(f"error: {told(error)}")
        except MemoryError:  # none is left even for the words
            say(
                "error: There is not enough memory. Close other programs, or take a smaller model, batch or length."
            )
        return 2


def told(error: Exception) -> str:
    """What an error is, in one line, and what to do."""
    if is_own(error):
        return str(error)
    if isinstance(error, OSError) and error.errno in FULL:
        sys.stdout = nowhere()  # Python flushes it at its end
        return f"No more can be written: {error.strerror}. Make room, then give the same command again."
    if isinstance(error, MemoryError) or NO_MEMORY in str(error):
        return (
            f"There is not enough memory: {one_line(error)}. Close other programs, or take a smaller model, batch or "
            "length."
        )
    if settings := profiles.settings_behind(error):
        return (
            f"A library cannot use what the environment sets, {' and '.join(settings)}: {one_line(error)}. Unset it, or "
            "give it another value."
        )
    return f"unexpected, and not your mistake as far as this program can tell: {one_line(error)}. {kept_traceback()}"


def empty_word(arguments: list[str]) -> str | None:
    """The first word of a command that is blank, by its option; an empty prompt alone means something."""
    for before, word in zip(["", *arguments], arguments, strict=False):
        option, is_given, value = word.partition("=") if word.startswith("--") else (before, True, word)
        if is_given and not value.strip() and option != "--prompt":
            return option if option.startswith("--") else "An argument"
    return None


def with_home(arguments: list[str]) -> list[str]:
    """The words of a command with the home folder in the place of a leading ``~``, but for a prompt.

    A shell puts it in where ``~`` stands alone in front; ``--out=~/RUN``, and what is quoted, comes as it was typed.
    """
    found = []
    for before, word in zip(["", *arguments], arguments, strict=False):
        option, mark, value = word.partition("=") if word.startswith("--") else ("", "", word)
        is_prompt = "--prompt" in (before, option)
        found.append(word if is_prompt else option + mark + os.path.expanduser(value))
    return found


def interrupted(line: str) -> int:
    """Say where the work stands, and return exit code 130.

    Where Ctrl-C struck in code that was made as text, such as the methods of a dataclass, Python keeps in mind to end
    by the signal, whatever the program returns; the next such text makes it forget that.
    """
    say(line)
    exec("")
    return 130


def refused(error: Exception, name: str) -> int:
    """Say what is wrong with a command's words; a program that was given none shows its help."""
    context = getattr(error, "ctx", None)
    if type(error).__name__.startswith("NoArgsIsHelp"):
        print(context.get_help() if context else error)
        return 2
    message = error.format_message()
    if "extra argument" in message:
        message += ": a value stands behind the name of its option."
    say(f"error: {message} See {context.command_path if context else name} --help")
    return 2


def is_own(error: BaseException) -> bool:
    """Whether an error is of the course's own kinds: these say what was wrong, what was found and what to do."""
    return type(error).__module__.split(".")[0] in OWN


def nowhere() -> TextIO:
    """A stream for what nobody can read any more; it stays open to the program's end."""
    return open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115


def write_any_letter() -> None:
    """Make a console of few letters (cp1252, ascii) show the others as \\uXXXX, where Python would stop.

    A stream that was closed before the program began is None in Python; what is written to it then goes nowhere.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, nowhere())
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def say(line: str) -> None:
    """One line on stderr, whatever an error's own words hold."""
    print(" ".join(line.split()), file=sys.stderr, flush=True)


def one_line(error: BaseException) -> str:
    """The kind of an error and the first line of what it says."""
    words = str(error).strip().splitlines()
    return f"{type(error).__name__}: {words[0][:300]}" if words else type(error).__name__


def kept_traceback() -> str:
    """Write the traceback of the error in progress to a file of its own; says where, or that it could not."""
    try:
        descriptor, name = tempfile.mkstemp(prefix="helpers-train-", suffix=".txt")
        with open(descriptor, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(traceback.format_exc())
    except OSError as error:
        return f"Its traceback could not be written ({error})."
    return f"Its traceback is in '{name}'."
