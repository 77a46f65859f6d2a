"""Where the course runs: what this room lacks, what it has, and how long a notebook takes in it.

    from helpers import rooms; rooms.enter()        the last line of every notebook's set-up cell

A room is a Colab session, JupyterLab on a laptop, or a server. On Colab `enter` first installs what is missing
(`helpers.packages`); elsewhere it installs nothing. Then it says what was found, before anything slow begins.
"""

from __future__ import annotations

import json
import math
import os
import re
import sys
from dataclasses import dataclass

import torch

import helpers
from helpers import packages
from helpers.profiles import DATA, GPT_NEO, NOTEBOOKS, Profile, current, open_notebook

MINUTES = DATA / "minutes.json"  # what scripts/run_course.py --record-minutes measured, and on which machine
WANTS_GPU = ("04_training", "05_loss_and_forgetting", "06_lora")  # with one they train GPT-Neo 125M, and for long
GIB = 2**30


def enter() -> None:
    """On Colab, install what is missing. Everywhere, say what was found: device, memory, profile, minutes.

    Raises:
        PackageError: pip could not install what is missing, or the session must be restarted.
        ProfileError: a COURSE_… setting that cannot be used.
    """
    if on_colab():
        print(f"Frozen Attention {helpers.__version__} on Colab: {packages.complete()}.")
    profile, notebook = current(), this_notebook()
    print(f"{device()}. {profile.note}")
    print(expected(profile, notebook))
    for line in advice(profile, notebook):
        print(line)


def on_colab() -> bool:
    """Whether this kernel is Colab's. Its own module is loaded in every kernel there, and nowhere else."""
    return "google.colab" in sys.modules


# --- what was found ----------------------------------------------------------------


def device() -> str:
    """The processor that will compute, and its memory."""
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
    title = re.match(r"# (\d\d)\. ", "".join(cells[0].get("source", "")))
    return next((name for name in NOTEBOOKS if title and name.startswith(title[1])), None)


# --- how long it takes -------------------------------------------------------------


@dataclass(frozen=True)
class Duration:
    """Minutes for all cells of a notebook, and where the number comes from."""

    minutes: float
    source: str

    def __str__(self) -> str:
        whole = math.ceil(self.minutes)
        return f"about {whole} minutes" if whole > 1 else "about a minute" if self.minutes > 0.7 else "under a minute"


def duration(profile: Profile, notebook: str) -> Duration:
    """As measured for the profile where there is a measurement, else as planned."""
    record = json.loads(MINUTES.read_text(encoding="utf-8")).get(profile.name) if MINUTES.exists() else None
    if record and notebook in record["seconds"]:
        return Duration(record["seconds"][notebook] / 60, f"measured on {record['machine']}")
    return Duration(profile.minutes[notebook], "planned, not measured")


def expected(profile: Profile, notebook: str | None) -> str:
    """Minutes of this notebook, or of each where it is not known which one this is."""
    if profile.name == GPT_NEO.name and not torch.cuda.is_available():
        return ("How long GPT-Neo 125M takes without a GPU was not measured. "
                "Notebook 04 times a few steps before it trains.")
    if notebook:
        found = duration(profile, notebook)
        return f"All cells of {notebook} take {found} ({found.source})."
    every = {name: duration(profile, name) for name in NOTEBOOKS}
    told = ", ".join(f"{name[:2]}: {math.ceil(d.minutes)}" for name, d in every.items())
    return f"Minutes for all cells of a notebook: {told} ({'; '.join(sorted({d.source for d in every.values()}))})."


def advice(profile: Profile, notebook: str | None) -> list[str]:
    """What to click where a notebook wants a GPU and there is none; nothing where all is well."""
    if torch.cuda.is_available() or (notebook and notebook not in WANTS_GPU):
        return []
    if on_colab():
        who = "this notebook trains" if notebook else "the notebooks 04, 05 and 06 train"
        wanting = [notebook] if notebook else WANTS_GPU
        gpu = ", ".join(f"{name} {duration(GPT_NEO, name)}" for name in wanting)
        return [f"With a GPU {who} GPT-Neo 125M in place of the miniature, and the cells take: {gpu} "
                f"({duration(GPT_NEO, wanting[0]).source}).",
                "To get one, click Runtime > Change runtime type > T4 GPU > Save, then Runtime > Run all. "
                "To stay with the miniature, just go on."]
    if profile.name == GPT_NEO.name:
        return ["There is no GPU here. COURSE_PROFILE=tiny takes the miniature, which needs none; the badge on top "
                "of the page opens the notebook in Colab, where one can be asked for."]
    return []
