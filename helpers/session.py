"""Where the course runs: what this room lacks, what it has, and how long a notebook takes in it.

    from helpers import rooms; rooms.enter()        the last line of every notebook's set-up cell

A room is a Colab session, JupyterLab on a laptop, or a server. On Colab `enter` first installs what is missing
(`helpers.session`); elsewhere it installs nothing. Then it says what was found, before anything slow begins.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import platform
import re
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distributions, version
from pathlib import Path
from tempfile import TemporaryDirectory

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

import helpers
from helpers.files import say
from helpers.profiles import DATA, GPT_NEO, NOTEBOOKS, ROOT, Profile, build_dir, current, open_notebook

# --- The packages that Colab may lack: found missing or outside their range, and only then installed ---


REQUIREMENTS = ROOT / "requirements-colab.txt"
# What a running session has loaded, or was built around: pip must leave it as it is.
KEPT = (
    "torch",
    "torchvision",
    "torchaudio",
    "numpy",
    "scipy",
    "pandas",
    "matplotlib",
    "ipython",
    "ipykernel",
    "ipywidgets",
    "jupyter-client",
    "jupyter-core",
    "pyzmq",
    "tornado",
    "traitlets",
)


class PackageError(RuntimeError):
    """A package that is missing and cannot be used here. The message says what to do."""


@dataclass(frozen=True)
class Lack:
    """A package that the room lacks, and the version that it has instead: None where there is none."""

    wanted: Requirement
    found: str | None


def lacks(file: Path = REQUIREMENTS) -> list[Lack]:
    """What a requirements file asks for and this Python does not have, in a version inside the range."""
    lines = (line.partition("#")[0].strip() for line in file.read_text(encoding="utf-8").splitlines())
    every = [Lack(wanted, installed(wanted.name)) for wanted in map(Requirement, filter(None, lines))]
    return [x for x in every if x.found is None or not x.wanted.specifier.contains(x.found, prereleases=True)]


def installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def complete(file: Path = REQUIREMENTS) -> str:
    """Install what is missing, and nothing else. Says in words what was done.

    Raises:
        PackageError: pip failed, or it replaced a package that this kernel had loaded already.
    """
    missing = lacks(file)
    if not missing:
        return "all packages are there, so nothing was installed"
    loaded = [x.wanted.name for x in missing if x.wanted.name.replace("-", "_") in sys.modules]
    install(missing)
    importlib.invalidate_caches()
    if loaded:
        raise PackageError(
            f"{', '.join(loaded)} had been loaded before the course replaced it. "
            "Click Runtime > Restart session, then Runtime > Run all."
        )
    now = (
        f"{x.wanted.name} {installed(x.wanted.name)} ({f'was {x.found}' if x.found else 'was missing'})"
        for x in missing
    )
    return f"installed {', '.join(now)}"


def install(missing: list[Lack]) -> None:
    """Have pip install these, each within its range, and hold everything else at the version that is there.

    A package outside its range may bring others along, so then only `KEPT` is held.
    """
    held = None if all(x.found is None for x in missing) else KEPT
    with TemporaryDirectory() as folder:
        pins = Path(folder) / "held.txt"
        pins.write_text(
            "\n".join(versions_now(held, without=[x.wanted.name for x in missing])), encoding="utf-8"
        )
        command = [
            sys.executable,
            "-P",
            "-m",
            "pip",
            "install",
            "-q",
            "--disable-pip-version-check",
            "--no-input",
            "-c",
            str(pins),
            *(str(x.wanted) for x in missing),
        ]
        done = subprocess.run(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode:
        wanted = " ".join(f"'{x.wanted}'" for x in missing)
        raise PackageError(
            f"pip could not install {wanted}. Its last words:\n{done.stdout.strip()[-1500:]}\n"
            "Run the cell again. If it fails again, click Runtime > Disconnect and delete runtime, and "
            "start anew."
        )
    if done.stdout.strip():
        print(done.stdout.strip())


def versions_now(names: tuple[str, ...] | None, without: list[str]) -> list[str]:
    """Lines ``name==version`` of what is installed: these names, or all of them. Odd versions of system packages,
    which pip would not read, are left out."""
    skipped, lines = {canonicalize_name(name) for name in without}, []
    for found in distributions():
        name = canonicalize_name(found.metadata["Name"] or "")
        try:
            exact = Version(found.version)
        except InvalidVersion:
            continue
        if name and name not in skipped and (names is None or name in names):
            lines.append(f"{name}=={exact}")
    return sorted(set(lines))


MINUTES = DATA / "minutes.json"  # what publishing/run.py --record-minutes measured, and on which machine
WANTS_GPU = (
    "04_training",
    "05_loss_and_forgetting",
    "06_keep_what_it_knew",
    "07_lora",
)  # with one they train GPT-Neo 125M, and for long
GIB = 2**30


def enter() -> None:
    """On Colab, install what is missing. Everywhere, say what was found: device, memory, profile, minutes.

    Raises:
        PackageError: pip could not install what is missing, or the session must be restarted.
        ProfileError: a COURSE_… setting that cannot be used.
    """
    if on_colab():
        say(f"Frozen Attention {helpers.__version__} on Colab: {complete()}.")
    profile, notebook = current(), this_notebook()
    for line in (f"{device()}. {profile.note}", expected(profile, notebook), *advice(profile, notebook)):
        say(line)


def on_colab() -> bool:
    """Whether this kernel is Colab's. Its own module is loaded in every kernel there, and nowhere else."""
    return "google.colab" in sys.modules


# --- what was found ----------------------------------------------------------------


def device() -> str:
    """The processor that will compute, and its memory."""
    import torch

    if torch.cuda.is_available():
        gpu = torch.cuda.get_device_properties(0)
        return f"GPU: {gpu.name} with {gpu.total_memory / GIB:.1f} GiB of memory"
    return f"No GPU: {os.cpu_count()} CPU cores{memory()}"


def memory() -> str:
    """The machine's memory in words; empty where the system does not tell (Windows)."""
    if not hasattr(os, "sysconf"):
        return ""
    return f" and {os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / GIB:.1f} GiB of memory"


def this_notebook() -> str | None:
    """Which notebook the set-up cell stands in, one of `profiles.NOTEBOOKS`; None where nobody tells."""
    return open_notebook() or (notebook_in_colab() if on_colab() else None)


def notebook_in_colab() -> str | None:
    """Ask Colab's page for the open notebook and read the number in its title.

    The request is not a documented part of Colab: without it, or without an answer, the notebook stays unknown.
    """
    try:
        from google.colab import _message as page
    except ImportError:
        return None
    try:
        reply = page.blocking_request("get_ipynb", timeout_sec=10)
    except page.MessageError:
        return None
    cells = ((reply or {}).get("ipynb") or {}).get("cells") or [{}]
    title = re.match(r"# (\w\d)\. ", "".join(cells[0].get("source", "")))
    return next((name for name in NOTEBOOKS if title and name.startswith(title[1])), None)


# --- how long it takes -------------------------------------------------------------


@dataclass(frozen=True)
class Duration:
    """Minutes for all cells of a notebook, and where the number comes from."""

    minutes: float
    source: str

    def __str__(self) -> str:
        whole = math.ceil(self.minutes)
        return (
            f"about {whole} minutes"
            if whole > 1
            else "about a minute"
            if self.minutes > 0.7
            else "under a minute"
        )


def duration(profile: Profile, notebook: str) -> Duration:
    """As measured for the profile where there is a measurement, else as planned."""
    record = json.loads(MINUTES.read_text(encoding="utf-8")).get(profile.name) if MINUTES.exists() else None
    if record and notebook in record["seconds"]:
        return Duration(
            record["seconds"][notebook] / 60, f"measured on {machine_in_words(record['machine'])}"
        )
    return Duration(profile.minutes[notebook], "planned, not measured")


def expected(profile: Profile, notebook: str | None) -> str:
    """Minutes of this notebook, or of each where it is not known which one this is."""
    import torch

    if profile.name == GPT_NEO.name and not torch.cuda.is_available():
        return (
            "How long GPT-Neo 125M takes without a GPU was not measured. "
            "Notebook 04 times a few steps before it trains."
        )
    if notebook:
        found = duration(profile, notebook)
        return f"All cells of {notebook} take {found} ({found.source})."
    every = {name: duration(profile, name) for name in NOTEBOOKS}
    told = ", ".join(f"{name[:2]}: {math.ceil(d.minutes)}" for name, d in every.items())
    return f"Minutes for all cells of a notebook: {told} ({'; '.join(sorted({d.source for d in every.values()}))})."


def advice(profile: Profile, notebook: str | None) -> list[str]:
    """What to click where a notebook wants a GPU and there is none; nothing where all is well."""
    import torch

    if torch.cuda.is_available() or (notebook and notebook not in WANTS_GPU):
        return []
    if on_colab():
        who = "this notebook trains" if notebook else "the notebooks 04, 05, 06 and 07 train"
        wanting = [notebook] if notebook else WANTS_GPU
        gpu = ", ".join(f"{name} {duration(GPT_NEO, name)}" for name in wanting)
        return [
            f"With a GPU {who} GPT-Neo 125M in place of the miniature, and the cells take: {gpu} "
            f"({duration(GPT_NEO, wanting[0]).source}).",
            "To get one, click Runtime > Change runtime type > T4 GPU > Save, then Runtime > Run all. "
            "To stay with the miniature, just go on.",
        ]
    if profile.name == GPT_NEO.name:
        return [
            "There is no GPU here. COURSE_PROFILE=tiny takes the miniature, which needs none; the badge on top "
            "of the page opens the notebook in Colab, where one can be asked for."
        ]
    return []


# --- Where a notebook keeps its runs: on this machine's disk, or in the reader's Google Drive ---


MOUNT = Path("/content/drive")  # where Colab's own examples put it
FOLDER = "frozen-attention"  # in the reader's Drive


class DriveError(RuntimeError):
    """Drive was asked for and cannot be used. The message says what to do."""


def runs_folder(notebook: str, on_drive: bool = False) -> Path:
    """The folder for the runs of a notebook; says where it is, how long it lasts, and what lies there already.

    Args:
        notebook: such as "04_training".
        on_drive: the reader's yes to keeping the runs in Drive. Without it Drive is not touched.

    Raises:
        DriveError: Drive outside Colab, or the reader did not consent.
    """
    root = opened_drive() / FOLDER if on_drive else build_dir()
    folder = root / "runs" / notebook
    say(f"Runs are kept in {shown(folder)}{lifetime(on_drive)}")
    for run, step in unfinished(folder).items():
        say(f"An earlier session left {run} at step {step}: training goes on from there.")
    return folder


def opened_drive() -> Path:
    """The reader's Drive; Colab asks for consent unless it is open already."""
    if not on_colab():
        raise DriveError(
            "Your Drive can be opened on Colab only, and this is another machine. "
            "Put keep_on_drive = False; runs are then kept on this machine's disk."
        )
    from google.colab import drive

    try:
        drive.mount(str(MOUNT))
    except (ValueError, OSError, RuntimeError) as error:
        raise DriveError(
            f"Colab did not open your Drive ({error}). Run the cell again and agree in Colab's window, "
            "or put keep_on_drive = False: runs are then kept on the disk of this session."
        ) from error
    return MOUNT / "MyDrive"


def lifetime(on_drive: bool) -> str:
    """How long the folder lasts, in words."""
    if on_drive:
        return ", in your Drive: they outlast this session."
    if on_colab():
        return (
            ": they outlast a restart of the kernel, but not the session. Your Drive would keep them longer."
        )
    return ": they outlast a restart of the kernel."


def unfinished(folder: Path) -> dict[str, int]:
    """Run to the step of its newest checkpoint, for the runs that lie in a folder."""
    newest = {
        place.parent.name: int(place.name.removeprefix("step-")) for place in sorted(folder.glob("*/step-*"))
    }
    return {run: step for run, step in newest.items() if step > 0}


def shown(folder: Path) -> str:
    """A folder as the reader would name it."""
    return str(folder.relative_to(ROOT)) if folder.is_relative_to(ROOT) else str(folder)


# --- where a record was made --------------------------------------------------------


def versions() -> dict[str, str]:
    return {name: version(name).split("+")[0] for name in ("torch", "transformers", "accelerate")}


def machine_class() -> str:
    """Enough to judge a timing by, and nothing that names a machine."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return (
        f"{platform.machine()} CPU, {torch.get_num_threads()} threads, "
        f"{torch.backends.cpu.get_cpu_capability()}"
    )


def machine_in_words(machine: str) -> str:
    """What `machine_class` recorded, for a sentence."""
    return machine.replace(" 1 threads", " 1 thread")


def code_commit() -> str | None:
    """The project's commit; None outside a checkout."""
    said = git("rev-parse", "HEAD")
    return None if said is None else said.strip()


def git(*arguments: str) -> str | None:
    """What git prints about the project; None where git is missing or refuses, as outside a checkout."""
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True)
    except FileNotFoundError:
        return None
    return done.stdout if done.returncode == 0 else None
