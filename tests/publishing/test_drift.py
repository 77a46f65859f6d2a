"""`course drift`: five known breaks with stand-in packages are named, and twenty green replays raise no alarm."""

import json
import random
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from publishing import drift
from publishing.drift import (
    NBVAL,
    Culprit,
    DriftError,
    Environment,
    Search,
    compare_colab,
    essence,
    fewest,
    findings,
    first_failure,
    packages_in,
    run_with_nbval,
    shipped,
    site_of,
    summary,
    with_needs,
)

PYTHON = Path(sys.executable)
CALM = [f"calm_{letter}" for letter in "abcdef"]  # packages that move on and break nothing
# Runs a lesson as nbval would, without a kernel: each cell's output against what is stored.
STAND_IN = """
import contextlib, io, json, sys
lesson, *sys.path[:0] = sys.argv[1:]
names = {}
for i, (source, stored) in enumerate(json.load(open(lesson))):
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            exec(source, names)
    except Exception as error:
        sys.exit(f"Cell {i}: {type(error).__name__}: {error}")
    if said.getvalue() != stored:
        sys.exit(f"Cell {i}: {stored!r} == {said.getvalue()!r}")
"""


def run(environment: Environment, lesson: Path) -> str | None:
    done = subprocess.run(
        [environment.python, "-I", "-S", "-c", STAND_IN, lesson, *environment.paths],
        capture_output=True,
        text=True,
    )
    return done.stderr.strip() or None


class World:
    """Two environments of stand-in packages, and a lesson with its stored outputs."""

    def __init__(self, folder: Path):
        self.folder, self.cells = folder, []
        self.sites = {title: folder / title / "lib" / "site-packages" for title in ("control", "canary")}
        for name in CALM:
            self.move(
                name,
                f"def value():\n    return '{name}'\n",
                "def value(loud=False):\n" + f"    return '{name}'\n",
            )
            self.cell(f"import {name}; print({name}.value())", f"{name}\n")

    def install(self, title: str, name: str, version: str, code: str | dict[str, str], requires=()) -> None:
        """A package as pip leaves it: its files, what it needs, and the list of its files."""
        site, info = self.sites[title], f"{name}-{version}.dist-info"
        files = {"__init__.py": code} if isinstance(code, str) else code
        placed = {f"{name}/{file}": text for file, text in files.items()}
        needs = "".join(f"Requires-Dist: {r}\n" for r in requires)
        placed[f"{info}/METADATA"] = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}"
        placed[f"{info}/RECORD"] = "".join(f"{file},,\n" for file in placed) + "../../bin/tool,,\n"
        for file, text in placed.items():
            (site / file).parent.mkdir(parents=True, exist_ok=True)
            (site / file).write_text(text)

    def move(self, name, old, new, old_needs=(), new_needs=(), versions=("1.0", "2.0")) -> None:
        self.install("control", name, versions[0], old, old_needs)
        self.install("canary", name, versions[1], new, new_needs)

    def cell(self, source: str, stored: str = "") -> None:
        self.cells.append((source, stored))

    def search(self) -> Search:
        control, canary = (Environment(t, PYTHON, (site,)) for t, site in self.sites.items())
        return Search(control, canary, *(packages_in(site) for site in self.sites.values()), run)

    def replay(self):
        """The one finding, and the search that found it."""
        lesson = self.folder / "lesson.ipynb"
        lesson.write_text(json.dumps(self.cells))
        search = self.search()
        return findings(search, [lesson])[0], search


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


# --- five known breaks -----------------------------------------------------------------


def an_api_removed(world):
    world.move(
        "alpha", "def open_model():\n    return 1\ndef load():\n    return 1\n", "def load():\n    return 1\n"
    )
    world.cell("import alpha; model = alpha.open_model()")
    return ["alpha"]


def a_default_changed(world):
    spread = "def spread(x, ddof={}):\n    return sum((i - 2) ** 2 for i in x) / (len(x) - ddof)\n"
    world.move("beta", spread.format(0), spread.format(1))
    world.cell("import beta; print(round(beta.spread([1, 2, 3]), 3))", "0.667\n")
    return ["beta"]


def an_import_renamed(world):
    files = {"__init__.py": "", "loading.py": "def load():\n    return 1\n"}
    world.move("gamma", files, {"__init__.py": "", "reading.py": files["loading.py"]})
    world.cell("from gamma.loading import load; print(load())", "1\n")
    return ["gamma"]


def an_output_text_changed(world):
    table = "class Table:\n    def __repr__(self):\n        return '{}'\n"
    world.move("delta", table.format("2 rows"), table.format("rows: 2"))
    world.cell("import delta; print(delta.Table())", "2 rows\n")
    return ["delta"]


def two_that_do_not_fit_together(world):
    world.move("epsilon", "def pack():\n    return {'form': 1}\n", "def pack():\n    return {'form': 2}\n")
    reads = "def read(packed):\n    return 'read'\n"
    strict = "def read(packed):\n    if packed['form'] == 2:\n        raise ValueError('form 2')\n    return 'read'\n"
    world.move("zeta", reads, strict)
    world.cell("import epsilon, zeta; print(zeta.read(epsilon.pack()))", "read\n")
    return ["epsilon", "zeta"]


BREAKS = [
    an_api_removed,
    a_default_changed,
    an_import_renamed,
    an_output_text_changed,
    two_that_do_not_fit_together,
]


@pytest.mark.parametrize("known", BREAKS, ids=lambda known: known.__name__)
def test_a_known_break_is_named(world, known):
    broken = known(world)
    finding, search = world.replay()
    assert finding.is_drift
    assert finding.culprits == (Culprit(tuple(broken), ()),)
    said = "\n".join(summary(search, [finding]))
    assert "Fail with the newest versions alone: 1. Fail with the lock: 0." in said
    assert all(f"**{name} 2.0 (the lock: 1.0)**" in said for name in broken)
    assert not any(name in said for name in CALM)


def test_a_library_that_only_another_one_uses_is_named_and_not_the_other(world):
    world.move("eta", "def size():\n    return 1\n", "def width():\n    return 1\n")
    uses = "import eta\ndef size():\n    return eta.size()\n"
    world.move("theta", uses, uses, ["eta>=1"], ["eta>=2"])
    world.cell("import theta; print(theta.size())", "1\n")
    finding, _ = world.replay()
    assert finding.culprits == (Culprit(("eta",), ()),)


def test_a_library_comes_with_what_it_needs(world):
    world.move("iota", "", "def size():\n    return 2\n")
    world.move(
        "kappa",
        "def size():\n    return 1\n",
        "import iota\ndef size():\n    return iota.size()\n",
        [],
        ["iota>=2"],
    )
    world.cell("import kappa; print(kappa.size())", "1\n")
    finding, search = world.replay()
    assert finding.culprits == (Culprit(("kappa",), ("iota",)),)
    assert "which came with iota 2.0" in "\n".join(summary(search, [finding]))


def test_a_new_package_and_one_that_objects_come_along(world):
    world.install("canary", "fresh", "0.1", "")
    world.move("mu", "", "", ["nu<2"], ["nu>=2", "fresh"])
    world.move("nu", "", "")
    old, new = (packages_in(site) for site in world.sites.values())
    assert with_needs(["mu"], old, new) == with_needs(["nu"], old, new) == {"mu", "nu", "fresh"}
    assert with_needs(["calm-a"], old, new) == {"calm-a"}


def test_a_mixture_that_fails_elsewhere_is_no_culprit(world):
    """A library may need another one in a new version and not say so: that is no break of the canary's."""
    world.move("a_needy", "", "import needed\nneeded.new\n")
    world.move("needed", "", "new = 1\n")
    world.cells.insert(0, ("import a_needy", ""))
    an_api_removed(world)
    finding, _ = world.replay()
    assert finding.culprits == (Culprit(("alpha",), ()),)


def test_two_breaks_in_one_cell_are_both_named(world):
    an_api_removed(world)
    world.move("beta", "one = 1\n", "two = 2\n")
    source, _ = world.cells.pop()
    world.cell(
        f"import beta\ntry:\n    beta.one\nexcept AttributeError as error:\n    raise ValueError\n{source}"
    )
    finding, _ = world.replay()
    assert sorted(c.packages for c in finding.culprits) == [("alpha",), ("beta",)]


def test_what_no_package_does_alone_is_said_to_be_unexplained(world):
    world.install(
        "control", "old_help", "1.0", "def help():\n    return 1\n"
    )  # the newest versions no longer bring it
    world.cell("import old_help; print(old_help.help())", "1\n")
    finding, search = world.replay()
    assert finding.is_drift and finding.culprits == ()
    assert "The canary lacks: old-help." in "\n".join(summary(search, [finding]))


# --- no false alarm --------------------------------------------------------------------


def alternating(world) -> str:
    """Source of a cell that fails in every other run."""
    count = world.folder / "runs.txt"
    return (
        f"import pathlib; p = pathlib.Path({str(count)!r}); n = p.stat().st_size if p.exists() else 0\n"
        "p.write_text('x' * (n + 1)); assert n % 2, 'a busy machine'"
    )


@pytest.mark.parametrize("seed", range(20))
def test_a_green_replay_raises_no_alarm(world, seed):
    """Versions move, packages come and go, requirements change; every third lesson fails now and then."""
    rng = random.Random(seed)
    for name in rng.sample(CALM, 3):
        loud = f"# {rng.random()}\ndef value(loud=False):\n    return '{name}'\n\ndef more():\n    return {seed}\n"
        world.install("canary", name, "2.0", loud, rng.choice([[], ["fresh"], ["calm_a>=1"]]))
    world.install("canary", "fresh", "0.1", "")
    world.install("control", "unused", "1.0", "")
    if seed % 3 == 0:
        world.cell(alternating(world))
    finding, search = world.replay()
    assert (finding.control, finding.canary, finding.culprits) == (None, None, ())
    assert bool(search.chances) == (seed % 3 == 0)
    assert "Fail with the newest versions alone: 0. Fail with the lock: 0." in "\n".join(
        summary(search, [finding])
    )


def test_what_fails_with_the_lock_too_is_no_drift(world):
    an_api_removed(world)
    world.cells.insert(0, ("raise OSError('the disk is full')", ""))
    finding, search = world.replay()
    assert not finding.is_drift and finding.culprits == ()
    assert "is no drift: it fails with the lock as well (Cell 0: OSError: the disk is full)" in "\n".join(
        summary(search, [finding])
    )


# --- the search ------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(10))
def test_the_fewest_that_break_are_found(seed):
    rng = random.Random(seed)
    items = [str(i) for i in range(rng.randint(1, 30))]
    guilty = set(rng.sample(items, min(len(items), rng.randint(1, 3))))
    tried = []

    def breaks(part):
        tried.append(part)
        return guilty <= set(part)

    assert set(fewest(items, breaks)) == guilty
    if len(guilty) == 1:
        assert len(tried) <= 4 * len(items).bit_length()


# --- a real notebook -------------------------------------------------------------------


def test_a_real_notebook_is_run_against_its_stored_outputs(tmp_path):
    world = World(tmp_path)
    an_output_text_changed(world)
    source, stored = world.cells[-1]
    out = nbformat.v4.new_output("stream", name="stdout", text=stored)
    book = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(source, outputs=[out], execution_count=1)]
    )
    book.metadata["kernelspec"] = {"display_name": "Python 3", "language": "python", "name": "python3"}
    lesson = tmp_path / "lesson.ipynb"
    nbformat.write(book, lesson)
    control, canary = (Environment(t, PYTHON, (site,)) for t, site in world.sites.items())
    assert run_with_nbval(control, lesson) is None
    assert run_with_nbval(canary, lesson) == r"Cell 0: '2 rows\n' == 'rows: 2\n'"


def test_a_failure_is_its_first_cell_and_the_line_that_matters(tmp_path):
    report = tmp_path / "report.xml"
    case = '<testcase name="Cell {}"><failure>Traceback:\nE   ImportError: no {}\nand so on\n</failure></testcase>'
    report.write_text(f"<s><testcase name='Cell 0'/>{case.format(1, 'one')}{case.format(2, 'two')}</s>")
    assert first_failure(report) == "Cell 1: ImportError: no one"
    report.write_text("<s><testcase name='Cell 0'/></s>")
    assert first_failure(report) is None
    assert essence(
        "#x1B[91mmismatch#x1B[0m\n Unexpected output fields from running code: {'stderr'}\n\n"
    ) == ("Unexpected output fields from running code: {'stderr'}")
    assert essence("") == "no reason was given"


def test_notebooks_run_as_make_test_runs_them():
    text = (drift.ROOT / "Makefile").read_text("utf-8").replace("\\\n", " ")
    line = next(line for line in text.splitlines() if line.startswith("NBVAL ="))
    assert line.replace("$(CELL_SECONDS)", "300").split()[2:] == list(NBVAL)


def test_an_environment_must_be_there(tmp_path):
    with pytest.raises(DriftError, match="no virtual environment"):
        site_of(tmp_path)


# --- Colab's list ----------------------------------------------------------------------

FROZEN = """# Do not modify this file directly
numpy==2.0.2
Torch @ https://example.org/whl/cu128/torch-2.11.0%2Bcu128-cp312-cp312-linux_x86_64.whl#sha256=0
google-colab @ file:///colabtools/dist/google_colab-1.0.0.tar.gz
odd @ file:///somewhere/no_version
transformers==6.1.0
datasets==4.0.0
scipy==1.10.0
-e git+https://example.org/x#egg=x
"""


@pytest.fixture
def ours(tmp_path):
    places = {
        "colab_ranges": "transformers>=5.9,<6  # the models\ndatasets>=4.0,<6\npeft>=0.19,<1\n",
        "own_ranges": "torch>=2.13,<2.14\ntransformers>=5.9,<6\nscipy>=1.16,<2\n",
        "lock": "# exact\nscipy==1.16.1\ntransformers==5.23.0\n",
        "room": "datasets==4.0.0\ntransformers==5.9.0\n",
    }
    for name, text in places.items():
        (tmp_path / name).write_text(text)
    return {name: tmp_path / name for name in places}


def test_a_list_of_colabs_is_read_line_by_line():
    assert shipped(FROZEN) == {
        "numpy": "2.0.2",
        "torch": "2.11.0+cu128",
        "google-colab": "1.0.0",
        "transformers": "6.1.0",
        "datasets": "4.0.0",
        "scipy": "1.10.0",
    }


def test_ranges_that_colab_violates_are_named(ours):
    fits, lines = compare_colab(FROZEN, **ours)
    assert not fits
    said = "\n".join(lines)
    assert "Violated ranges of colab_ranges: 1." in said
    assert "| transformers | <6,>=5.9 | 6.1.0 | 5.23.0 |" in said
    assert "Violated ranges of own_ranges alone: 2." in said
    assert "| torch | <2.14,>=2.13 | 2.11.0+cu128 | nothing |" in said and "| scipy |" in said
    assert "peft" not in said, "what Colab lacks is installed, and violates nothing"
    assert "not Colab's any more: 1 of 2." in said and "transformers 5.9.0 → 6.1.0" in said


def test_a_list_inside_the_ranges_is_no_alarm(ours):
    fits, _ = compare_colab(FROZEN.replace("6.1.0", "5.20.0"), **ours)
    assert fits
    with pytest.raises(DriftError, match="names no package"):
        compare_colab("<html>not found</html>", **ours)


def test_the_list_of_the_tests_room_fits_the_ranges():
    fits, lines = compare_colab(drift.ROOM.read_text("utf-8"))
    assert fits and any(line.endswith("any more: 0 of 93.") for line in lines), lines
