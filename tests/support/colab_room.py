"""A room like Colab's: its versions of the packages, a stub of google.colab, and the course served from here.

torch is the course's own CPU build, linked into the room: Colab's is a CUDA build of several gigabytes. The
Python is the one that runs the tests. Everything else has the version of tests/colab_packages.txt.
"""

import hashlib
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import torch
from ipykernel.kernelspec import get_kernel_dict
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from packaging.utils import canonicalize_name

from helpers.profiles import ROOT
from publishing import badges

PACKAGES = Path(__file__).with_name("colab_packages.txt")
BORROWED = ("torch", "torchgen", "functorch")
# What the wheel of Colab's torch asks for, beside CUDA's own packages. The borrowed one asks for a newer setuptools.
COLABS_TORCH = """Metadata-Version: 2.1
Name: torch
Version: {version}
Requires-Dist: filelock
Requires-Dist: typing-extensions>=4.10.0
Requires-Dist: setuptools<82
Requires-Dist: sympy>=1.13.3
Requires-Dist: networkx>=2.5.1
Requires-Dist: jinja2
Requires-Dist: fsspec>=0.8.5
"""
STUB = {
    "sitecustomize.py": "import os, google.colab\nos.environ['COLAB_RELEASE_TAG'] = 'release-colab-stub'\n",
    "google/colab/__init__.py": "",
    # Colab's page knows which notebook is open.
    "google/colab/_message.py": "import json, os, pathlib\n\n\nclass MessageError(Exception):\n    pass\n\n\n"
    "def blocking_request(kind, request='', timeout_sec=5, parent=None):\n"
    "    book = os.environ.get('OPEN_NOTEBOOK')\n"
    "    return book and {'ipynb': json.loads(pathlib.Path(book).read_text('utf-8'))}\n",
    # Colab asks for consent here; this one is always given, and noted.
    "google/colab/drive.py": "import pathlib\n\n\ndef mount(mountpoint):\n"
    "    pathlib.Path(mountpoint, 'MyDrive').mkdir(parents=True, exist_ok=True)\n"
    "    print(f'Mounted at {mountpoint}')\n",
}


class RoomError(RuntimeError):
    """The room cannot be built here. The message says why."""


def colab_packages() -> dict[str, str]:
    """Package to the version that Colab ships."""
    lines = [line for line in PACKAGES.read_text("utf-8").splitlines() if not line.startswith("#")]
    return {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines)}


# --- Python with Colab's versions --------------------------------------------------


def room_python(place: Path = ROOT / "build" / "colab-room") -> Path:
    """The room's Python, kept from run to run; built where it is not there yet, or was built for something else.

    Two workers may ask at once: one builds, the other waits.

    Raises:
        RoomError: pip could not get the packages.
    """
    import fcntl  # not on Windows, where these tests skip

    place.parent.mkdir(exist_ok=True)
    with open(place.with_name(f"{place.name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # until the file is closed, or its process ends
        if not is_built(place):
            build_room(place)
    return place / "bin" / "python"


def built_for(place: Path) -> str:
    """What a room depends on: Colab's versions, its folder, this Python and this torch."""
    packages = hashlib.sha256(PACKAGES.read_bytes()).hexdigest()
    return f"{packages}\n{place}\n{sys.version}\n{torch.__version__}\n"


def is_built(place: Path) -> bool:
    """Whether a whole room is there that fits; a build that was broken off leaves no stamp."""
    stamp = place / "built-for"
    return stamp.is_file() and stamp.read_text("utf-8") == built_for(place)


def build_room(place: Path) -> None:
    shutil.rmtree(place, ignore_errors=True)
    run(sys.executable, "-m", "venv", "--without-pip", str(place))  # Colab's own pip comes with the packages
    options = ["-q", "--no-deps", "--only-binary", ":all:", "--disable-pip-version-check", "--no-input"]
    lines = [f"{name}=={version}" for name, version in colab_packages().items() if name != "torch"]
    run(sys.executable, "-m", "pip", "--python", str(place), "install", *options, *lines)
    borrow_torch(site_packages(place))
    (place / "built-for").write_text(built_for(place), "utf-8")


def site_packages(place: Path) -> Path:
    return Path(sysconfig.get_path("purelib", "venv", {"base": str(place), "platbase": str(place)}))


def borrow_torch(site: Path) -> None:
    """Link the torch of this Python into another one's packages: nothing else of this Python is to be seen there."""
    home = Path(torch.__file__).parent.parent
    for name in [*BORROWED, *(p.name for p in home.glob("torch-*.dist-info"))]:
        if (home / name).exists():
            (site / name).symlink_to(home / name)


def pretend_colabs_torch(folder: Path) -> Path:
    """A folder that shows pip Colab's own torch, by its name and needs alone, before the borrowed one."""
    version = colab_packages()["torch"]
    info = folder / f"torch-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(COLABS_TORCH.format(version=version), "utf-8")
    (info / "INSTALLER").write_text("pip\n", "utf-8")
    return folder


def run(*command: str, **more) -> str:
    done = subprocess.run(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **more)
    if done.returncode:
        raise RoomError(f"'{' '.join(command)[:120]}' failed:\n{done.stdout.strip()[-2000:]}")
    return done.stdout


def installed_in(python: Path) -> set[str]:
    """Name and version of every package in a virtual environment."""
    return {p.name for p in site_packages(python.parent.parent).glob("*.dist-info")}


# --- the course's address, and Colab's module --------------------------------------


def serve_course(folder: Path) -> dict[str, str]:
    """A repository with the working tree as it is now, under the version that the set-up cells fetch.

    Returns:
        Settings under which git finds it at the course's own address.
    """
    listed = run("git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard", "-z")
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)
    as_somebody = [
        "-c",
        "user.name=course",
        "-c",
        "user.email=course@example.org",
        "-c",
        "commit.gpgsign=false",
    ]
    run("git", "-C", str(folder), "init", "-q")
    run("git", "-C", str(folder), "add", "--all")
    run("git", "-C", str(folder), *as_somebody, "commit", "-q", "-m", "as it is now")
    run("git", "-C", str(folder), "branch", "-f", "-M", badges.revision())
    return {
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.{folder.as_uri()}.insteadOf",
        "GIT_CONFIG_VALUE_0": f"https://github.com/{badges.repository()}",
        "GIT_TERMINAL_PROMPT": "0",
    }


def write_stub(folder: Path) -> Path:
    for name, text in STUB.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, "utf-8")
    return folder


def kernel_of(python: Path) -> type[AsyncKernelManager]:
    """Starts kernels of another Python."""

    class RoomKernelManager(AsyncKernelManager):
        @property
        def kernel_spec(self) -> KernelSpec:
            return KernelSpec(argv=[str(python), *get_kernel_dict()["argv"][1:]], language="python")

    return RoomKernelManager


def settings_of(stub: Path, address: dict[str, str]) -> dict[str, str]:
    """The environment of a kernel there. Empty ones are unset: Colab has no build folder and no quiet progress bar."""
    quiet = (
        "COURSE_BUILD",
        "COURSE_DATA",
        "COURSE_MODEL",
        "COURSE_TEXTS",
        "COURSE_STEPS",
        "TQDM_DISABLE",
        "JPY_SESSION_NAME",
    )
    return {
        "COURSE_PROFILE": "smoke",
        "PYTHONPATH": str(stub),
        "PIP_NO_INDEX": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",  # else its debugger warns about the frozen modules of newer Pythons
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        **dict.fromkeys(quiet, ""),
        **address,
    }
