"""What tomorrow's packages do to the course: Colab's newest list, the newest versions, and which library broke it.

    course drift --colab pip-freeze.txt       our ranges and the lock against what Colab ships
    course drift --canary build/canary        each notebook with the lock, and with the newest versions

Each notebook runs in two environments, against its stored outputs. The *control* holds requirements.lock. The *canary*
holds the newest versions that requirements.txt allows. Where the canary alone fails, packages of the canary are
laid over the control until the fewest are found that break it (delta debugging: Zeller and Hildebrandt 2002, IEEE
Transactions on Software Engineering 28). A package is never tried without what it needs. Where the control fails too,
no package is to blame.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import distributions
from pathlib import Path
from xml.etree import ElementTree

from packaging.requirements import Requirement
from packaging.utils import (
    InvalidSdistFilename,
    InvalidWheelFilename,
    canonicalize_name,
    parse_sdist_filename,
    parse_wheel_filename,
)

from helpers.files import counted
from publishing.kernel import plain
from publishing.run import lessons

ROOT = Path(__file__).resolve().parents[1]
COLAB_RANGES = ROOT / "requirements-colab.txt"
OWN_RANGES = ROOT / "requirements.txt"
LOCK = ROOT / "requirements.lock"
ROOM = ROOT / "tests" / "support" / "colab_packages.txt"  # the versions that the tests of Colab run with
REPORT = ROOT / "build" / "drift" / "report.md"
# A notebook fails in an environment if it fails so often in a row: what passes once more was chance.
TRIES = 2
LIMIT_SECONDS = 3600  # of one notebook
NBVAL = (  # as `make test` runs a notebook
    "--nbval",
    "--nbval-current-env",
    "--nbval-sanitize-with=tests/nbval.cfg",
    "--nbval-cell-timeout=300",
    "--nbval-kernel-startup-timeout=300",
)
NOT_COMPARED = ("pip", "wheel", "frozen-attention")


class DriftError(ValueError):
    """What should be compared is not there. The message says what to do."""


# --- Colab's list against ours -----------------------------------------------------


def shipped(frozen: str) -> dict[str, str]:
    """Name to version in the words of ``pip freeze``; a package from an address has the version of its file's name."""
    found = {}
    for line in frozen.splitlines():
        name, sign, version = line.partition("==")
        if not sign:
            name, sign, address = line.partition(" @ ")
            version = version_in(address.partition("#")[0].rpartition("/")[2]) if sign else ""
        if version and not line.startswith(("#", "-")):
            found[canonicalize_name(name.strip())] = version.strip()
    return found


def version_in(file: str) -> str:
    """The version in the name of a wheel or a source archive; empty where it has none."""
    try:
        parse = parse_wheel_filename if file.endswith(".whl") else parse_sdist_filename
        return str(parse(file.replace("%2B", "+"))[1])
    except (InvalidWheelFilename, InvalidSdistFilename):
        return ""


def ranges(file: Path) -> list[Requirement]:
    """The requirements of a file, in its order, each once."""
    lines = (line.partition("#")[0].strip() for line in file.read_text("utf-8").splitlines())
    return [Requirement(line) for line in dict.fromkeys(filter(None, lines))]


def violated(wanted: Iterable[Requirement], colab: Mapping[str, str]) -> list[Requirement]:
    """The ranges that Colab's version is not in. What Colab lacks violates none: the set-up cell installs it."""
    return [r for r in wanted if (has := colab.get(canonicalize_name(r.name))) and not is_met(r, has)]


def is_met(requirement: Requirement, version: str) -> bool:
    return requirement.specifier.contains(version, prereleases=True)


def compare_colab(
    frozen: str, colab_ranges=COLAB_RANGES, own_ranges=OWN_RANGES, lock=LOCK, room=ROOM
) -> tuple[bool, list[str]]:
    """Whether Colab's list fits `requirements-colab.txt`, and what to say about it, as lines of Markdown."""
    colab, locked = shipped(frozen), shipped(lock.read_text("utf-8"))
    if not colab:
        raise DriftError("Colab's list names no package. Fetch pip-freeze.txt of googlecolab/backend-info.")
    broken = violated(ranges(colab_ranges), colab)
    named = {r.name for r in broken}
    others = [r for r in violated(ranges(own_ranges), colab) if r.name not in named]
    lines = [f"## Colab's list: {counted(len(colab), 'package')}", ""]
    lines += [f"Violated ranges of {colab_ranges.name}: {len(broken)}. Set-up cells would install these."]
    lines += range_table(broken, colab, locked)
    lines += [f"Violated ranges of {own_ranges.name} alone: {len(others)}. Colab never installs from it."]
    lines += range_table(others, colab, locked)
    old = shipped(room.read_text("utf-8"))
    moved = sorted(name for name in old.keys() & colab.keys() if old[name] != colab[name])
    lines += [f"Versions in {room.name} that are not Colab's any more: {len(moved)} of {len(old)}."]
    lines += [f"They are: {', '.join(f'{n} {old[n]} → {colab[n]}' for n in moved)}."] if moved else []
    return not broken, [*lines, ""]


def range_table(wanted: list[Requirement], colab: Mapping[str, str], locked: Mapping[str, str]) -> list[str]:
    rows = ["", "| package | our range | Colab has | the lock has |", "| --- | --- | --- | --- |"]
    for r in wanted:
        name = canonicalize_name(r.name)
        rows.append(f"| {r.name} | {r.specifier} | {colab[name]} | {locked.get(name, 'nothing')} |")
    return [*rows, ""] if wanted else []


# --- what is installed -------------------------------------------------------------


@dataclass(frozen=True)
class Package:
    """An installed package: its files are paths under ``site``."""

    name: str
    version: str
    requires: tuple[Requirement, ...]
    site: Path
    files: tuple[Path, ...]


def packages_in(site: Path) -> dict[str, Package]:
    """What is installed in a folder such as .venv/lib/python3.11/site-packages, by name."""
    found = {}
    for one in distributions(path=[str(site)]):
        name = canonicalize_name(one.metadata["Name"])
        files = tuple(path for f in one.files or () if ".." not in (path := Path(str(f))).parts)
        if name not in NOT_COMPARED:
            found[name] = Package(name, one.version, applying(one.requires or ()), site, files)
    return found


def applying(requires: Iterable[str]) -> tuple[Requirement, ...]:
    """The requirements that hold on this machine, without any extra."""
    every = map(Requirement, requires)
    return tuple(r for r in every if r.marker is None or r.marker.evaluate({"extra": ""}))


def site_of(environment: Path) -> Path:
    """The folder of the packages of a virtual environment.

    Raises:
        DriftError: it is none.
    """
    found = sorted(environment.glob("lib/python3*/site-packages"))
    if not found or not (environment / "bin" / "python").exists():
        raise DriftError(
            f"'{environment}' is no virtual environment. Make it with: python -m venv {environment}"
        )
    return found[0]


def differing(control: Mapping[str, Package], canary: Mapping[str, Package]) -> list[str]:
    """What the canary has in another version than the control, or has alone."""
    return sorted(n for n, p in canary.items() if n not in control or control[n].version != p.version)


def unmet(packages: Mapping[str, Package]) -> set[tuple[str, Requirement]]:
    """(package, its requirement) where what is there does not meet it."""
    return {
        (p.name, r)
        for p in packages.values()
        for r in p.requires
        if (has := packages.get(canonicalize_name(r.name))) is None or not is_met(r, has.version)
    }


def with_needs(
    chosen: Iterable[str], control: Mapping[str, Package], canary: Mapping[str, Package]
) -> frozenset[str]:
    """The chosen packages of the canary, with all that must come along when they replace those of the control.

    What they need comes first. Where the canary's version of it does not help, the package of the control that
    objects is replaced. What is unmet in the control as it stands stays so.
    """
    new, known, taken = set(differing(control, canary)), unmet(control), set(chosen)
    while True:
        further = set()
        for name, requirement in unmet({**control, **{n: canary[n] for n in taken}}) - known:
            needed = canonicalize_name(requirement.name)
            if needed in new - taken and is_met(requirement, canary[needed].version):
                further.add(needed)
            elif name in new - taken:
                further.add(name)
        if not further:
            return frozenset(taken)
        taken |= further


def lay_over(chosen: Iterable[str], canary: Mapping[str, Package], folder: Path) -> Path:
    """Put the files of these packages into a folder, by hard links: first on the path, it stands before the control."""
    for name in chosen:
        package = canary[name]
        for file in package.files:
            source, place = package.site / file, folder / file
            if source.is_file() and not place.exists():
                place.parent.mkdir(parents=True, exist_ok=True)
                os.link(source, place)
    return folder


# --- a notebook in an environment --------------------------------------------------


@dataclass(frozen=True)
class Environment:
    """A Python, and the folders in which it looks for packages first."""

    title: str
    python: Path
    paths: tuple[Path, ...]


Run = Callable[
    [Environment, Path], str | None
]  # how a notebook fails, beginning with the place; None: it passes


def run_with_nbval(environment: Environment, notebook: Path) -> str | None:
    """Run a notebook against its stored outputs, as `make test` does: "Cell 4: ValueError: …", or None."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        words = [*NBVAL, "-q", "-p", "no:cacheprovider", f"--junitxml={report}"]
        try:
            done = subprocess.run(
                [str(environment.python), "-m", "pytest", str(notebook), *words],
                cwd=ROOT,
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=LIMIT_SECONDS,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (ROOT, *environment.paths)))},
            )
        except subprocess.TimeoutExpired:
            return f"no cell: it took longer than {LIMIT_SECONDS} seconds"
        if done.returncode == 0:
            return None
        last = (done.stdout.strip().splitlines() or ["nothing was said"])[-1]
        return (report.exists() and first_failure(report)) or f"no cell: {last}"


def first_failure(report: Path) -> str | None:
    """The first failing cell in pytest's report, and what it said in one line."""
    for case in ElementTree.parse(report).iter("testcase"):
        for failure in (*case.iter("failure"), *case.iter("error")):
            return f"{case.get('name')}: {essence(failure.text or '')}"
    return None


def essence(text: str) -> str:
    """What a cell's failure comes down to: the last line that names an error, or how outputs differ."""
    text = plain(text.replace("#x1B", "\x1b"))  # XML has no sign for the beginning of a colour
    lines = [re.sub(r"^E +", "", line.strip()) for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception|Interrupt|Timeout)\b", line)]
    differs = [line for line in lines if " == " in line or "output fields" in line]
    return (errors or differs or lines or ["no reason was given"])[-1][:200]


# --- which packages broke it -------------------------------------------------------


@dataclass(frozen=True)
class Culprit:
    """The fewest packages of the canary that make a notebook fail on the control.

    Attributes:
        packages: one; or several, where each of them alone breaks nothing.
        brought: what must come along, which the notebook does not fail with alone.
    """

    packages: tuple[str, ...]
    brought: tuple[str, ...]


@dataclass
class Search:
    """One comparison of a control and a canary.

    Attributes:
        chances: (environment, notebook) that failed and passed when it ran once more.
    """

    control: Environment
    canary: Environment
    old: Mapping[str, Package]
    new: Mapping[str, Package]
    run: Run
    chances: list[tuple[str, str]] = field(default_factory=list)

    def failure(self, environment: Environment, notebook: Path) -> str | None:
        """How a notebook fails; None where it passes in one of `TRIES` runs."""
        for i in range(TRIES):
            failed = self.run(environment, notebook)
            if failed is None:
                if i:
                    self.chances.append((environment.title, notebook.stem))
                return None
        return failed

    def failure_with(self, chosen: frozenset[str], notebook: Path) -> str | None:
        """How it fails on the control with these packages of the canary laid over it."""
        with tempfile.TemporaryDirectory(dir=self.new[min(chosen)].site.parent) as folder:
            over = lay_over(chosen, self.new, Path(folder))
            mixed = Environment(" ".join(sorted(chosen)), self.control.python, (over, *self.control.paths))
            return self.failure(mixed, notebook)

    def culprits(self, notebook: Path, failed: str) -> list[Culprit]:
        """What breaks a notebook that passes in the control and fails in the canary; empty where no package does.

        A mixture counts as broken where the same cell fails as in the canary: another failure is the mixture's own.
        """
        found: list[Culprit] = []
        known: dict[frozenset[str], bool] = {}

        def breaks(chosen: Iterable[str]) -> bool:
            whole = with_needs(chosen, self.old, self.new)
            if not whole or any(set(c.packages) <= whole for c in found):
                return False
            if whole not in known:
                how = self.failure_with(whole, notebook)
                known[whole] = how is not None and place_of(how) == place_of(failed)
            return known[whole]

        while True:
            left = [n for n in differing(self.old, self.new) if not self.needs_one_of(n, found)]
            if not breaks(left):
                return found
            found.append(self.named(fewest(left, breaks), breaks))

    def needs_one_of(self, name: str, found: list[Culprit]) -> bool:
        whole = with_needs([name], self.old, self.new)
        return any(set(c.packages) <= whole or name in c.packages for c in found)

    def named(self, packages: list[str], breaks: Callable[[Iterable[str]], bool]) -> Culprit:
        """Out of the fewest and what they bring along: one package that breaks it and brings less, if there is one."""
        whole = with_needs(packages, self.old, self.new)
        sizes = {name: len(with_needs([name], self.old, self.new)) for name in sorted(whole)}
        smaller = [name for name in sorted(sizes, key=sizes.get) if sizes[name] < len(whole)]
        alone = next((name for name in smaller if breaks([name])), None)
        chosen = [alone] if alone else packages
        brought = with_needs(chosen, self.old, self.new) - set(chosen)
        return Culprit(tuple(sorted(chosen)), tuple(sorted(brought)))


def place_of(failed: str) -> str:
    return failed.partition(":")[0]


def fewest(items: list[str], breaks: Callable[[list[str]], bool]) -> list[str]:
    """A part of the items that breaks, and no longer does without any one of them (ddmin).

    Args:
        items: they break together.
    """
    n_parts = 2
    while len(items) > 1:
        size = -(-len(items) // n_parts)
        parts = [items[i : i + size] for i in range(0, len(items), size)]
        rests = [[x for x in items if x not in part] for part in parts]
        if broken := next(filter(breaks, parts), None):
            items, n_parts = broken, 2
        elif broken := next(filter(breaks, rests), None):
            items, n_parts = broken, max(n_parts - 1, 2)
        elif n_parts >= len(items):
            break
        else:
            n_parts = min(2 * n_parts, len(items))
    return items


# --- the report --------------------------------------------------------------------


@dataclass(frozen=True)
class Finding:
    """A notebook in both environments: how it failed in each, and what broke the canary alone."""

    notebook: str
    control: str | None
    canary: str | None
    culprits: tuple[Culprit, ...] = ()

    @property
    def is_drift(self) -> bool:
        return self.canary is not None and self.control is None


def findings(search: Search, notebooks: Iterable[Path]) -> list[Finding]:
    """Run each notebook in the control and in the canary, and look for what broke the canary alone."""
    found = []
    for notebook in notebooks:
        control, canary = (search.failure(e, notebook) for e in (search.control, search.canary))
        culprits = search.culprits(notebook, canary) if canary and not control else ()
        found.append(Finding(notebook.stem, control, canary, tuple(culprits)))
        print(f"{notebook.stem}: control {passes(control)}, canary {passes(canary)}", flush=True)
    return found


def passes(failed: str | None) -> str:
    return "passes" if failed is None else f"fails ({failed})"


def summary(search: Search, found: list[Finding]) -> list[str]:
    """The findings as lines of Markdown: what broke, and which library did it."""
    n_drift, n_both = sum(f.is_drift for f in found), sum(f.control is not None for f in found)
    n_packages = counted(len(differing(search.old, search.new)), "package")
    lines = [
        f"## {counted(len(found), 'notebook')}, {n_packages} in another version",
        "",
        f"Fail with the newest versions alone: {n_drift}. Fail with the lock: {n_both}.",
        "",
    ]
    for f in found:
        if f.control is not None:
            lines.append(f"- **{f.notebook}** is no drift: it fails with the lock as well ({f.control}).")
        elif f.canary is not None:
            lines.append(f"- **{f.notebook}** fails: {f.canary}. {blame(search, f)}")
    lines += [
        f"- {name} failed once in '{title}' and passed once more: chance." for title, name in search.chances
    ]
    return [*lines, ""]


def blame(search: Search, finding: Finding) -> str:
    if not finding.culprits:
        gone = sorted(search.old.keys() - search.new.keys())
        return (
            "No package of the canary does this on the control. "
            f"The canary lacks: {', '.join(gone) or 'nothing'}."
        )
    return " ".join(sentence(search, culprit) for culprit in finding.culprits)


def sentence(search: Search, culprit: Culprit) -> str:
    def moved(name: str) -> str:
        was = search.old[name].version if name in search.old else "not there"
        return f"{name} {search.new[name].version} (the lock: {was})"

    names = " and ".join(f"**{moved(name)}**" for name in culprit.packages)
    together = " together" if len(culprit.packages) > 1 else ""
    needs = f", which came with {', '.join(map(moved, culprit.brought))}" if culprit.brought else ""
    return f"Broken by {names}{together}{needs}."


def carry_out(
    colab: Path | None, canary: Path | None, control: Path, folder: Path, report: Path = REPORT
) -> int:
    """Compare, print the report and write it; what the command does.

    Returns:
        0: all is well; 1: a range is violated, a library broke a notebook, or a notebook fails with the lock.

    Raises:
        DriftError: nothing to compare, or no such file or environment.
    """
    if colab is None and canary is None:
        raise DriftError("There is nothing to compare. Give --colab FILE, --canary FOLDER, or both.")
    if colab is not None and not colab.is_file():
        raise DriftError(f"There is no file '{colab}'. Fetch pip-freeze.txt of googlecolab/backend-info.")
    sites = [site_of(e) for e in (control, canary)] if canary else []
    is_well, lines = compare_colab(colab.read_text("utf-8")) if colab else (True, [])
    if canary:
        environments = [
            Environment(title, place.absolute() / "bin" / "python", (site.absolute(),))
            for title, place, site in zip(("control", "canary"), (control, canary), sites, strict=True)
        ]
        search = Search(*environments, *map(packages_in, sites), run_with_nbval)
        found = findings(search, lessons(folder))
        is_well = is_well and all(f.canary is None and f.control is None for f in found)
        lines += summary(search, found)
    text = "\n".join(["# Drift", "", *lines])
    report.parent.mkdir(parents=True, exist_ok=True)
    report.write_text(text, encoding="utf-8")
    print(text)
    return 0 if is_well else 1
