"""The walls of the house: which room may use which, what a face is, and what no file may be called."""

import ast
import importlib
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HELPERS = ROOT / "helpers"
STONES = ("files", "profiles", "plots", "session")  # plain modules, in their order
ROOMS = ("texts", "models", "freezing", "measuring", "costs", "training", "study", "results", "lessons")
ORDER = (*STONES, *ROOMS)
FILES = sorted(p for p in HELPERS.rglob("*.py") if p != HELPERS / "__init__.py")
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def place_of(path: Path) -> str:
    """The stone or room in which a file stands."""
    return path.relative_to(HELPERS).parts[0].removesuffix(".py")


def name_of(path: Path) -> str:
    """The dotted name of a file: "helpers.freezing.plans"; of a face, its room."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def imports_of(path: Path) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """What a file takes from the house: (module, names); an ``import x`` has no names."""
    return tuple(imports_in(ast.parse(path.read_text("utf-8"))))


def imports_in(tree: ast.AST) -> list[tuple[str, tuple[str, ...]]]:
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "helpers":
            found.append((node.module, tuple(alias.name for alias in node.names)))
        elif isinstance(node, ast.Import):
            found += [(alias.name, ()) for alias in node.names if alias.name.split(".")[0] == "helpers"]
    return found


def places_used(path: Path) -> set[str]:
    """Stones and rooms that a file imports from."""
    used = set()
    for module, names in imports_of(path):
        used |= set(names) & set(ORDER) if module == "helpers" else {module.split(".")[1]}
    return used


def test_a_newcomer_can_draw_the_house_from_memory():
    directly_under = {p.stem for p in HELPERS.iterdir() if not p.name.startswith("__")}
    assert directly_under == set(ORDER)
    assert len(directly_under) <= 13


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_file_uses_only_rooms_that_stand_before_its_own(path):
    here = ORDER.index(place_of(path))
    late = {place for place in places_used(path) if ORDER.index(place) > here}
    assert not late, (
        f"{name_of(path)} uses {sorted(late)}: these stand after {place_of(path)} (helpers/__init__.py)"
    )


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_from_outside_a_room_only_its_face_is_used(path):
    past_the_face = [
        module
        for module, _ in imports_of(path)
        if module.count(".") > 1 and module.split(".")[1] != place_of(path)
    ]
    assert not past_the_face, f"import from the room itself: {past_the_face}"


@pytest.mark.parametrize("book", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_never_names_a_file_of_a_room(book):
    import nbformat

    code = [c.source for c in nbformat.read(book, 4).cells if c.cell_type == "code"]
    for source in code:
        plain = re.sub(r"^(\s*)[!%].*", r"\1pass", source, flags=re.MULTILINE)
        deep = [m for m, _ in imports_in(ast.parse(plain)) if m.count(".") > 1]
        assert not deep, f"{book.stem}: {deep}"


@pytest.mark.parametrize("room", ROOMS)
def test_inside_a_room_no_circle(room):
    files = {name_of(p): p for p in FILES if place_of(p) == room}
    inside = {}
    for name, path in files.items():
        taken = {m for m, _ in imports_of(path)} | {
            f"{m}.{n}" for m, names in imports_of(path) for n in names
        }
        inside[name] = taken & set(files) - {f"helpers.{room}", name}
    while inside:  # take away what depends on nothing that is left
        free = [name for name, needs in inside.items() if not needs & set(inside)]
        assert free, f"these files import each other: {sorted(inside)}"
        for name in free:
            del inside[name]


@pytest.mark.parametrize("room", ROOMS)
def test_every_name_of_a_face_is_there(room):
    face = importlib.import_module(f"helpers.{room}")
    assert face.__all__ == sorted(set(face.__all__)) == dir(face)
    for name in face.__all__:
        assert getattr(face, name) is not None
    with pytest.raises(AttributeError, match="it has"):
        face.no_such_name  # noqa: B018


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_file_has_the_name_of_a_function_in_it(path):
    functions = {n.name for n in ast.parse(path.read_text("utf-8")).body if isinstance(n, ast.FunctionDef)}
    assert path.stem not in functions, "behind a face the function would hide the file"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_file_holds_one_idea(path):
    n_lines = len(path.read_text("utf-8").splitlines())
    assert n_lines <= 600, f"{path.name} has {n_lines} lines"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_only_profiles_reads_environment_variables(path):
    tree = ast.parse(path.read_text("utf-8"))
    touched = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    touched |= {a.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for a in node.names}
    if path.stem != "profiles" and place_of(path) != "study":
        assert not touched & {"environ", "environb", "getenv", "putenv"}


@pytest.mark.parametrize("path", [*FILES, *sorted((ROOT / "publishing").glob("*.py"))], ids=name_of)
def test_nothing_rests_on_assert_for_python_with_o_leaves_it_out(path):
    tree = ast.parse(path.read_text("utf-8"))
    assert not [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Assert)]


@pytest.mark.parametrize("path", [*FILES, *sorted((ROOT / "publishing").glob("*.py"))], ids=name_of)
def test_a_library_that_is_started_in_the_readers_folder_takes_no_file_of_it_for_a_module(path):
    """``python -m pip`` beside a reader's random.py imports that one; with -P it does not."""
    started = re.findall(r'sys\.executable,\s*(?:"-P",\s*)?"-m",\s*"(\w+)', path.read_text("utf-8"))
    safe = re.findall(r'sys\.executable,\s*"-P",\s*"-m",\s*"(\w+)', path.read_text("utf-8"))
    in_the_course = {"accelerate", "helpers", "venv"}  # their callers start them in the course's own folder
    assert set(started) - in_the_course == set(safe)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_only_plots_and_widgets_draw(path):
    tree = ast.parse(path.read_text("utf-8"))
    names = {a.name.partition(".")[0] for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    names |= {(n.module or "").partition(".")[0] for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    if path.stem != "plots" and "widgets" not in path.parts and path.name != "pages.py":
        assert not names & {"matplotlib", "ipywidgets", "anywidget", "seaborn", "plotly"}


@pytest.mark.parametrize(
    "line",
    [
        "from helpers.lessons import check, predict, reveal, in_band",
        "from helpers.results import CLAIMS, record",
        "from helpers.study import read_runs, read_protocol",
    ],
)
def test_checks_claims_and_records_do_not_wait_for_torch(line):
    code = f"import sys; {line}; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
