"""The packages that Colab may lack: found missing or outside their range, and only then installed.

    packages.complete()        "all packages are there, so nothing was installed"

A course that swaps torch or numpy under a running kernel costs its readers minutes and a restart. So each
package of requirements-colab.txt is looked at first, and pip gets only those that are missing or outside their
range, with everything else held at the version that is there. Only Colab's own packages are needed to import this.
"""

from __future__ import annotations

import importlib
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distributions, version
from pathlib import Path
from tempfile import TemporaryDirectory

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from helpers.profiles import ROOT

REQUIREMENTS = ROOT / "requirements-colab.txt"
# What a running session has loaded, or was built around: pip must leave it as it is.
KEPT = ("torch", "torchvision", "torchaudio", "numpy", "scipy", "pandas", "matplotlib", "ipython", "ipykernel",
        "ipywidgets", "jupyter-client", "jupyter-core", "pyzmq", "tornado", "traitlets")


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
        raise PackageError(f"{', '.join(loaded)} had been loaded before the course replaced it. "
                        "Click Runtime > Restart session, then Runtime > Run all.")
    now = (f"{x.wanted.name} {installed(x.wanted.name)} ({f'was {x.found}' if x.found else 'was missing'})"
           for x in missing)
    return f"installed {', '.join(now)}"


def install(missing: list[Lack]) -> None:
    """Have pip install these, each within its range, and hold everything else at the version that is there.

    A package outside its range may bring others along, so then only `KEPT` is held.
    """
    held = None if all(x.found is None for x in missing) else KEPT
    with TemporaryDirectory() as folder:
        pins = Path(folder) / "held.txt"
        pins.write_text("\n".join(versions_now(held, without=[x.wanted.name for x in missing])), encoding="utf-8")
        command = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-input",
                   "-c", str(pins), *(str(x.wanted) for x in missing)]
        done = subprocess.run(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode:
        wanted = " ".join(f"'{x.wanted}'" for x in missing)
        raise PackageError(f"pip could not install {wanted}. Its last words:\n{done.stdout.strip()[-1500:]}\n"
                        "Run the cell again. If it fails again, click Runtime > Disconnect and delete runtime, and "
                        "start anew.")
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
