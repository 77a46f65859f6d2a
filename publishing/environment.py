"""Build .venv from requirements.lock, if it is not there already; and write that lock.

    python -m publishing.environment [--torch-index URL]        (every make target calls it)

A stamp inside .venv names the lock, the folder and the Python that it was built for. It is
written last: without it, or when it says something else, .venv is built again from nothing.
Runs on a bare Python, before anything is installed.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from collections import deque
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOCK = "requirements.lock"
OLDEST = (3, 11)
HEADER = """\
# Exact versions for local use and CI: the closure of requirements.txt, under Python {}.{}.
# Written by `course lock`. On Linux, PyPI's torch is the CUDA build: `make course TORCH_INDEX=...`
# takes the smaller CPU build from PyTorch's own index.
"""


class BuildError(RuntimeError):
    """The environment cannot be built. The message says what to do."""


def expected_stamp(root: Path) -> str:
    """What the stamp of an up-to-date .venv says: the lock's SHA-256, the folder, the Python."""
    digest = hashlib.sha256((root / LOCK).read_bytes()).hexdigest()
    return f"{digest}\n{root}\n{sys.version_info[0]}.{sys.version_info[1]}\n"


def is_current(root: Path) -> bool:
    """Whether .venv was built to the end, from this lock, in this folder."""
    stamp = root / ".venv" / "built-from"
    python = root / ".venv" / "bin" / "python"
    return stamp.is_file() and python.exists() and stamp.read_text(encoding="utf-8") == expected_stamp(root)


def build(root: Path, torch_index: str = "") -> None:
    """Make .venv anew and install the lock, then the course itself, into it.

    Args:
        torch_index: address of a package index to look for torch in as well, such as
            PyTorch's own CPU index. Nothing else is taken from there.

    Raises:
        BuildError: Python's venv module, or pip, failed.
    """
    place = root / ".venv"
    if place.exists():
        shutil.rmtree(place)
    done = subprocess.run(
        [sys.executable, "-m", "venv", str(place)],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    if done.returncode:
        raise BuildError(
            f"Python could not make .venv:\n{done.stdout.strip()}\n"
            "On Debian and Ubuntu, 'apt install python3-venv' adds what is missing."
        )
    lock = ["-r", str(root / LOCK)]
    n_packages = len(locked(root))
    if torch_index:
        constraints = ["-c", str(root / LOCK)]
        install(place, n_packages, ["--extra-index-url", torch_index, *constraints, locked(root)["torch"]])
    install(place, n_packages, lock)
    install_course(root)
    (place / "built-from").write_text(expected_stamp(root), encoding="utf-8")


def install_course(root: Path) -> None:
    """Install the course itself, and with it the program `course`."""
    install(root / ".venv", 1, ["--no-deps", "--no-build-isolation", "-e", str(root)])


def bring_up(root: Path, torch_index: str = "") -> None:
    """Build .venv where it is not up to date; say so, and how long it took.

    Raises:
        BuildError: as `build`.
    """
    if is_current(root):
        if not (root / ".venv" / "bin" / "course").exists():  # built before there was a program
            install_course(root)
        return
    print(
        f"Building .venv: {len(locked(root))} packages from {LOCK}. About two minutes, more on a slow line."
    )
    start = time.monotonic()
    build(root, torch_index)
    print(f"Built .venv in {time.monotonic() - start:.0f} s.")


def locked(root: Path) -> dict[str, str]:
    """Package name to its line in the lock."""
    lines = (root / LOCK).read_text(encoding="utf-8").splitlines()
    return {line.partition("==")[0]: line for line in lines if line and not line.startswith("#")}


def install(place: Path, n_packages: int, arguments: list[str]) -> None:
    """Run pip; show one line that says how far it is, or its last words where it fails."""
    command = [
        str(place / "bin" / "python"),
        "-m",
        "pip",
        "install",
        "--disable-pip-version-check",
        "--no-input",
        *arguments,
    ]
    last, n_found = deque(maxlen=25), 0
    with subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as pip:
        for line in pip.stdout:
            last.append(line.rstrip())
            n_found += line.startswith(("Collecting ", "Processing "))
            show_progress(line.strip(), n_found, n_packages)
    if sys.stdout.isatty():
        print("\r\033[K", end="")
    if pip.returncode:
        raise BuildError(
            "pip failed. Its last words:\n  "
            + "\n  ".join(last)
            + "\nThe next call starts again; what was downloaded is kept in pip's cache."
        )


def show_progress(line: str, n_found: int, n_packages: int) -> None:
    """One line of pip's talk: rewritten in place on a terminal, only the long waits elsewhere."""
    wait = re.match(
        r"(Downloading \S{1,80}.*\(\d[\d.]* GB\)|Downloading torch-.*|Installing collected packages)", line
    )
    if sys.stdout.isatty():
        what = wait[0] if wait else line.partition(" (from")[0]
        print(f"\r\033[K  {n_found:3d} of {n_packages}  {what[:88]}", end="", flush=True)
    elif wait:
        print(f"  {n_found} of {n_packages} packages found. {wait[0]} ...", flush=True)


# --- the lock ----------------------------------------------------------------------


def exact_versions(frozen: str) -> list[str]:
    """Lines of ``pip freeze`` as ``name==version``, sorted, without local version parts.

    Raises:
        ValueError: a line that is no plain version, such as a file or a git address.
    """
    lines = []
    for line in frozen.split("\n"):
        if not line.strip() or re.match(r"(pip|wheel)==", line):
            continue
        found = re.fullmatch(r"([\w.-]+)==([\w.!]+)(\+[\w.]+)?", line.strip())
        if found is None:
            raise ValueError(f"'{line}' has no plain version. A lock holds lines like 'numpy==2.4.6'.")
        lines.append(f"{found[1]}=={found[2]}")
    return sorted(lines, key=str.lower)


def freeze(requirements: Path, held: list[str]) -> str:
    """``pip freeze --all`` of a fresh environment that holds ``requirements`` and the versions ``held``."""
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        pip = [str(Path(folder) / "bin" / "python"), "-m", "pip"]
        subprocess.run(
            [*pip, "install", "--disable-pip-version-check", "-r", str(requirements), *held], check=True
        )
        subprocess.run([*pip, "check"], check=True)
        return subprocess.run([*pip, "freeze", "--all"], check=True, text=True, stdout=subprocess.PIPE).stdout


def write_lock(held: Sequence[str] = (), root: Path = ROOT) -> int:
    """Write requirements.lock anew; returns how many packages it holds.

    Installs requirements.txt into a fresh environment and lists what came. The local part of a version ("+cpu")
    is left out, so that the lock fits any platform's wheels.

    Args:
        held: packages at one version inside their range, such as "transformers==5.23.0".

    Raises:
        BuildError: pip failed; the lock is as it was.
    """
    try:
        lines = exact_versions(freeze(root / "requirements.txt", list(held)))
    except subprocess.CalledProcessError as error:
        raise BuildError(f"pip failed; its own words stand above. {LOCK} is as it was.") from error
    partial = root / f"{LOCK}.partial"
    partial.write_text(HEADER.format(*sys.version_info[:2]) + "\n".join(lines) + "\n", encoding="utf-8")
    os.replace(partial, root / LOCK)
    return len(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Build .venv from requirements.lock, if it is not there already."
    )
    parser.add_argument("--torch-index", default="", metavar="URL", help="index to look for torch in as well")
    options = parser.parse_args()
    if sys.version_info < OLDEST:
        sys.exit(
            f"The course needs Python 3.11 or newer; this is {sys.version.split()[0]}. "
            "Name another one: make course PYTHON=/path/to/python3.11"
        )
    try:
        bring_up(ROOT, options.torch_index)
    except BuildError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
