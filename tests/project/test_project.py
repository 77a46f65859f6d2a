"""The project's own rules: what it needs, which module may import which, what a notebook may hold."""

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from functools import cache
from importlib.metadata import packages_distributions, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from publishing import badges
from publishing import environment as build_venv

ROOT = Path(__file__).resolve().parents[2]
HELPERS = sorted((ROOT / "helpers").rglob("*.py"))
PUBLISHING = sorted((ROOT / "publishing").glob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
LESSONS = (
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

# Packages that are run, not imported, and the file that shows it.
COMMANDS = {
    "jupyterlab": "publishing/lab.py",
    "nbval": "Makefile",
    "ruff": "Makefile",
    "pytest-timeout": "pyproject.toml",
    "pytest-xdist": "Makefile",
    "setuptools": "pyproject.toml",
    "sphinx": "publishing/site.py",
    "docutils": "publishing/conf.py",
    "myst-nb": "publishing/conf.py",
    "furo": "publishing/conf.py",
    "check-jsonschema": "tests/project/test_workflows.py",
    "zizmor": "tests/project/test_workflows.py",
}


# --- packages ----------------------------------------------------------------------


def requirements(name: str) -> dict[str, Requirement]:
    """Package to its line in a requirements file."""
    lines = (line.partition("#")[0].strip() for line in (ROOT / name).read_text("utf-8").splitlines())
    return {canonicalize_name(Requirement(line).name): Requirement(line) for line in lines if line}


def python_of(book: Path) -> str:
    """The code of a notebook, without its shell and magic lines."""
    cells = json.loads(book.read_text("utf-8"))["cells"]
    code = ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
    code = [c for c in code if not c.lstrip().startswith("%%")]
    return "\n".join(re.sub(r"^(\s*)[%!].*", r"\1pass", c, flags=re.MULTILINE) for c in code)


def imported(path: Path) -> set[str]:
    """Top-level names that a module or notebook imports."""
    tree = ast.parse(python_of(path) if path.suffix == ".ipynb" else path.read_text("utf-8"))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.level == 0}
    return {name.partition(".")[0] for name in names}


@cache
def distributions() -> Mapping[str, list[str]]:
    """Every top-level name of the environment, with the packages that bring it: looked up once for all files."""
    return packages_distributions()


def third_party(paths: list[Path]) -> set[str]:
    """Packages, by the name they are installed under, that files import."""
    own = {"helpers", "publishing", "support", "conftest", "google"}
    names = set().union(*map(imported, paths)) - own - set(sys.stdlib_module_names)
    homes = distributions()
    return {canonicalize_name(homes.get(name, [name])[0]) for name in names}


@pytest.mark.parametrize(
    "path", [*HELPERS, *PUBLISHING, *TESTS, *NOTEBOOKS], ids=lambda p: f"{p.parent.name}/{p.stem}"
)
def test_every_imported_package_is_declared(path):
    missing = third_party([path]) - set(requirements("requirements.txt"))
    assert not missing, (
        f"{path.name} imports {sorted(missing)}: add it to requirements.txt and run course lock"
    )


def test_every_declared_package_is_used():
    used = third_party([*HELPERS, *PUBLISHING, *TESTS, ROOT / "conftest.py", *NOTEBOOKS])
    for package in set(requirements("requirements.txt")) - used:
        assert package in COMMANDS, f"nothing imports {package}: take it out of requirements.txt"
        word = package.removeprefix("pytest-")
        assert word in (ROOT / COMMANDS[package]).read_text("utf-8"), (
            f"{COMMANDS[package]} does not use {package}"
        )


def test_the_lock_fits_the_ranges():
    locked = requirements("requirements.lock")
    for file in ("requirements.txt", "requirements-colab.txt"):
        for name, wanted in requirements(file).items():
            assert name in locked, f"{name} of {file} is not in the lock: run course lock"
            exact = str(locked[name].specifier).removeprefix("==")
            assert wanted.specifier.contains(exact), (
                f"{name} {exact} is locked, {file} asks for {wanted.specifier}"
            )


def test_the_lock_is_the_same_on_every_machine():
    for line in (ROOT / "requirements.lock").read_text("utf-8").splitlines():
        assert line.startswith("#") or re.fullmatch(r"[\w.-]+==[\w.!]+", line), f"not a plain version: {line}"
    assert str(requirements("requirements.lock")["torch"].specifier) == "==2.13.0"


@pytest.mark.skipif(
    Path(sys.prefix).resolve() != ROOT / ".venv", reason="not in the environment that make builds"
)
def test_the_lock_is_what_is_installed():
    for name, wanted in requirements("requirements.lock").items():
        assert wanted.specifier.contains(version(name).partition("+")[0]), (
            f"{name} {version(name)}, not {wanted}"
        )


def test_colab_keeps_its_torch_numpy_and_jupyter():
    colab, all_of_it = requirements("requirements-colab.txt"), requirements("requirements.txt")
    touched = [
        n for n in colab if re.match(r"torch|numpy|jupyter|ipy|nb|notebook|pandas|scipy|matplotlib", n)
    ]
    assert not touched
    for name, wanted in colab.items():
        assert wanted.specifier == all_of_it[name].specifier, f"{name}: two files, two ranges"
        assert "==" not in str(wanted.specifier)


def test_a_lock_line_without_plain_version_is_refused():
    good = build_venv.exact_versions("torch==2.13.0+cpu\npip==23.2.1\nNumPy==2.4.6\n")
    assert good == ["NumPy==2.4.6", "torch==2.13.0"]
    with pytest.raises(ValueError, match="file:///"):
        build_venv.exact_versions("torch @ file:///wheels/torch-2.13.0.whl")


# --- files -------------------------------------------------------------------------


def tracked() -> list[Path]:
    """The files that git knows or would add; without git, all but what is built."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listed.returncode == 0:
        return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]
    built = {".venv", "build", "runs", ".git", "__pycache__", ".pytest_cache"}
    return [p for p in ROOT.rglob("*") if p.is_file() and not built & set(p.relative_to(ROOT).parts)]


def test_no_file_names_a_place_on_one_machine():
    places = re.compile(
        r"(?<![\w./:~-])/(?:" + "|".join(["home", "root", "work", "tmp", "Users", "opt"]) + r")/[\w.]"
    )
    found = []
    for path in tracked():
        if path.suffix in (".safetensors", ".png", ".xz") or path == Path(__file__).resolve():
            continue
        text = path.read_text("utf-8", errors="replace")
        found += [
            f"{path.relative_to(ROOT)}: {text[m.start() - 20 : m.end() + 20]!r}"
            for m in places.finditer(text)
        ]
    assert not found, "\n".join(found)


def test_no_big_file_is_committed():
    assert not [p for p in tracked() if p.stat().st_size > 9_000_000]


# --- notebooks ---------------------------------------------------------------------


def cells_of(book: Path) -> list[dict]:
    """The code cells of a notebook, with their source as one text."""
    cells = json.loads(book.read_text("utf-8"))["cells"]
    code = [c | {"text": "".join(c["source"])} for c in cells if c["cell_type"] == "code"]
    return [c for c in code if c["text"].strip()]


def tags_of(cell: dict) -> set[str]:
    return set(cell["metadata"].get("tags", []))


def opts_out(cell: dict) -> bool:
    """Whether nbval leaves the cell's output alone."""
    comment = re.search(r"#\s*NBVAL_(IGNORE_OUTPUT|SKIP|RAISES_EXCEPTION)", cell["text"])
    return bool(tags_of(cell) & {"nbval-ignore-output", "nbval-skip", "raises-exception"} or comment)


def is_compared(cell: dict) -> bool:
    """Whether nbval compares text that the cell shows: a picture alone does not count."""
    texts = [
        o for o in cell.get("outputs", []) if o["output_type"] in ("stream", "execute_result", "display_data")
    ]
    kinds = [{"stdout"} if o.get("name") == "stdout" else set(o.get("data", {})) for o in texts]
    return not opts_out(cell) and any(k and not any(x.startswith("image/") for x in k) for k in kinds)


each_notebook = pytest.mark.parametrize("book", NOTEBOOKS, ids=lambda p: p.stem)


def test_every_lesson_is_there():
    assert set(LESSONS) <= {book.stem for book in NOTEBOOKS}


@each_notebook
def test_every_cell_was_run_in_order(book):
    counts = [c["execution_count"] for c in cells_of(book)]
    assert counts == list(range(1, len(counts) + 1)), f"run: course notebooks {book.stem}"


@each_notebook
def test_cells_are_short(book):
    lengths = [len(c["text"].splitlines()) for c in cells_of(book)]
    assert max(lengths) <= 12
    n_long = sum(length > 10 for length in lengths)
    assert n_long <= 0.05 * len(lengths), f"{n_long} of {len(lengths)} cells have more than ten lines"


@each_notebook
def test_a_cell_that_opts_out_says_why(book):
    silent = [
        c["text"].splitlines()[0] for c in cells_of(book) if opts_out(c) and not c["metadata"].get("reason")
    ]
    assert not silent, f"give a reason in the cell's metadata: {silent}"


@each_notebook
def test_github_can_show_it(book):
    content = json.loads(book.read_text("utf-8"))
    assert "widgets" not in content["metadata"]
    assert content["metadata"]["kernelspec"]["name"] == "python3"
    assert all(re.fullmatch(r"[\w-]{1,64}", cell["id"]) for cell in content["cells"])
    assert len({cell["id"] for cell in content["cells"]}) == len(content["cells"])


@each_notebook
def test_nothing_stored_differs_from_run_to_run(book):
    outputs = [o for c in cells_of(book) for o in c["outputs"]]
    assert not [o for o in outputs if o.get("name") == "stderr"], "a warning or a progress bar is stored"
    assert "application/vnd.jupyter.widget-view+json" not in book.read_text("utf-8")


def test_most_outputs_are_compared():
    shown = [c for book in NOTEBOOKS for c in cells_of(book) if c["outputs"]]
    n_compared = sum(map(is_compared, shown))
    assert shown and n_compared >= 0.75 * len(shown), (
        f"{n_compared} of {len(shown)} cells with output are compared"
    )


# --- the repository's name ---------------------------------------------------------


def test_every_badge_has_the_name_of_pyproject():
    pages = [p for p in [ROOT / "README.md", *NOTEBOOKS] if p.exists()]
    for page in pages:
        found = re.findall(
            r"research\.google\.com/github/([^/]+/[^/]+)/blob/([^/]+)/notebooks/(\w+)\.ipynb",
            page.read_text("utf-8"),
        )
        assert found, f"{page.name} has no badge"
        for slug, revision, name in found:
            assert slug == badges.repository(), f"{page.name}: run course badges --repo {badges.repository()}"
            assert revision == badges.revision(), (
                f"{page.name}: run course badges --version {badges.revision()}"
            )
            assert (ROOT / "notebooks" / f"{name}.ipynb").exists(), f"{page.name} has a badge for {name}"


@each_notebook
def test_a_notebook_opens_in_colab(book):
    first = "".join(json.loads(book.read_text("utf-8"))["cells"][0]["source"])
    assert badges.badge(book.stem, badges.repository()) in first


def small_project(folder: Path) -> Path:
    """A project with one badge in README and one in a notebook."""
    (folder / "notebooks").mkdir()
    (folder / "pyproject.toml").write_text('[tool.frozen-attention]\nrepository = "OWNER/frozen-attention"\n')
    page = badges.badge("00_a", "OWNER/frozen-attention", "main")
    (folder / "README.md").write_text(f"{page}\ngit clone https://github.com/OWNER/frozen-attention.git\n")
    (folder / "notebooks" / "00_a.ipynb").write_text(json.dumps({"cells": [{"source": [page]}]}))
    (folder / "docs").mkdir()
    (folder / "docs" / "a.md").write_text(
        "[Fits?](https://OWNER.github.io/frozen-attention/_static/mini/a.html)\n"
    )
    return folder


def test_badges_change_everywhere_at_once_and_back(tmp_path):
    project = small_project(tmp_path)
    first = (project / "README.md").read_text()
    changed = badges.rename(project, "ada/my.course")
    assert changed == {"pyproject.toml": 1, "README.md": 2, "docs/a.md": 1, "notebooks/00_a.ipynb": 1}
    assert badges.repository(project) == "ada/my.course"
    assert "OWNER" not in "".join(p.read_text() for p in project.rglob("*.*") if p.is_file())
    badges.rename(project, "OWNER/frozen-attention")
    assert (project / "README.md").read_text() == first


@pytest.mark.parametrize(
    "name", ["", "ada", "ada/", "/course", "https://github.com/ada/course", "ada/a b", "a/b/c"]
)
def test_a_name_that_is_no_repository_is_refused(tmp_path, name):
    project = small_project(tmp_path)
    with pytest.raises(ValueError, match="owner and name"):
        badges.rename(project, name)
    assert badges.repository(project) == "OWNER/frozen-attention"


@pytest.fixture
def versioned(tmp_path):
    """A small project whose notebook has a set-up cell, and whose README says "main" of something else."""
    project = small_project(tmp_path)
    with open(project / "pyproject.toml", "a") as file:
        file.write('revision = "main"\n')
    cells = [
        {"source": [badges.badge("00_a", "OWNER/frozen-attention", "main")]},
        {"source": badges.set_up_cell("OWNER/frozen-attention", "main").splitlines(keepends=True)},
    ]
    (project / "notebooks" / "00_a.ipynb").write_text(json.dumps({"cells": cells}))
    with open(project / "README.md", "a") as file:
        file.write("the main plan, on branch main\n")
    return project


def test_badges_set_up_cells_and_version_change_together(versioned):
    changed = badges.rename(versioned, "ada/course", "v1.2.0")
    assert changed == {"pyproject.toml": 2, "README.md": 3, "docs/a.md": 1, "notebooks/00_a.ipynb": 4}
    first, cell = json.loads((versioned / "notebooks" / "00_a.ipynb").read_text())["cells"]
    assert first["source"] == [badges.badge("00_a", "ada/course", "v1.2.0")]
    assert "".join(cell["source"]) == badges.set_up_cell("ada/course", "v1.2.0")
    assert (badges.repository(versioned), badges.revision(versioned)) == ("ada/course", "v1.2.0")
    assert "the main plan, on branch main" in (versioned / "README.md").read_text()


def test_a_version_changes_alone_and_back(versioned):
    before = {p: p.read_bytes() for p in versioned.rglob("*.*")}
    commit = "0" * 40
    changed = badges.rename(versioned, version=commit)
    assert changed == {"pyproject.toml": 1, "README.md": 1, "notebooks/00_a.ipynb": 2}
    assert badges.rename(versioned, version=commit) == {}
    badges.rename(versioned, version="main")
    assert {p: p.read_bytes() for p in versioned.rglob("*.*")} == before


@pytest.mark.parametrize("version", ["", "two words", "-b", "a/b", "../main", "v1;ls", "$(ls)"])
def test_a_version_that_could_not_stand_in_an_address_is_refused(versioned, version):
    with pytest.raises(ValueError, match="branch, tag or commit"):
        badges.rename(versioned, version=version)
    assert badges.revision(versioned) == "main"


def test_the_package_has_the_version_of_helpers():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    assert settings["project"]["dynamic"] == ["version"]
    assert settings["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "helpers.__version__"}


# --- commands ----------------------------------------------------------------------


def fake_venv(root: Path, lock: str = "numpy==2.4.6\n") -> Path:
    """A project folder with a finished .venv, as far as the stamp can tell."""
    (root / "requirements.lock").write_text(lock)
    (root / ".venv" / "bin").mkdir(parents=True)
    (root / ".venv" / "bin" / "python").touch()
    (root / ".venv" / "built-from").write_text(build_venv.expected_stamp(root))
    return root


def test_a_finished_environment_is_not_built_again(tmp_path):
    assert build_venv.is_current(fake_venv(tmp_path))


def test_a_changed_lock_makes_the_environment_stale(tmp_path):
    root = fake_venv(tmp_path)
    (root / "requirements.lock").write_text("numpy==2.4.7\n")
    assert not build_venv.is_current(root)


def test_a_half_built_environment_is_built_again(tmp_path):
    root = fake_venv(tmp_path)
    (root / ".venv" / "built-from").unlink()
    assert not build_venv.is_current(root)


def test_an_environment_that_was_moved_is_built_again(tmp_path):
    root = fake_venv(tmp_path)
    moved = root.with_name("elsewhere")
    os.rename(root, moved)
    assert not build_venv.is_current(moved)


def test_only_torch_is_looked_for_in_the_extra_index(tmp_path, monkeypatch):
    (tmp_path / "requirements.lock").write_text("numpy==2.4.6\ntorch==2.13.0\n")
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / "left-over").touch()
    calls = []
    monkeypatch.setattr(build_venv, "install", lambda place, n, arguments: calls.append(arguments))
    build_venv.build(tmp_path, "https://example.org/cpu")
    lock = str(tmp_path / "requirements.lock")
    assert calls[0] == ["--extra-index-url", "https://example.org/cpu", "-c", lock, "torch==2.13.0"]
    assert calls[1] == ["-r", lock]
    assert calls[2][:2] == ["--no-deps", "--no-build-isolation"] and len(calls) == 3
    assert build_venv.is_current(tmp_path) and not (tmp_path / ".venv" / "left-over").exists()


def test_a_build_that_fails_says_why_and_leaves_no_stamp(tmp_path):
    (tmp_path / "requirements.lock").write_text("no-such-package-anywhere==1.0\n")
    (tmp_path / "empty").mkdir()
    build_venv_pip = [
        "--no-index",
        "--find-links",
        str(tmp_path / "empty"),
        "-r",
        str(tmp_path / "requirements.lock"),
    ]
    subprocess.run(
        [sys.executable, "-m", "venv", "--without-pip", "--system-site-packages", str(tmp_path / ".venv")],
        check=True,
    )
    with pytest.raises(build_venv.BuildError, match="pip failed"):
        build_venv.install(tmp_path / ".venv", 1, build_venv_pip)
    assert not build_venv.is_current(tmp_path)


def test_help_lists_every_command():
    makefile = (ROOT / "Makefile").read_text("utf-8")
    targets = set(re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)[1].split())
    told = set(re.findall(r"^([a-z0-9-]+):.*## ", makefile, re.MULTILINE))
    assert targets == told


def test_ci_runs_both_kinds_of_tests_in_bounded_time():
    script = (ROOT / ".ci" / "run").read_text("utf-8")
    assert re.findall(r"^ *bounded (make [\w-]+)", script, re.MULTILINE) == ["make test", "make test-long"]
    assert "set -euo pipefail" in script and os.access(ROOT / ".ci" / "run", os.X_OK)


def test_the_package_is_helpers_and_publishing():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    assert settings["tool"]["setuptools"]["packages"]["find"] == {"include": ["helpers*", "publishing*"]}
    assert "dependencies" not in settings["project"]
