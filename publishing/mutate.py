"""Break the code in one place at a time, and count how often the tests notice.

    course mutate helpers/freezing                   every mutant of a room
    course mutate helpers --sample 200 --seed 1      a seeded sample over all rooms

A mutant that no test notices points at a test that is missing, or changes nothing that anybody could see: such a
one goes into tests/equivalent_mutants.txt with its reason, and is counted no more.

What is broken: a comparison (turned round, or moved by its border), an operator, `and`, `or` and `not`, a number, a
word, a default, a returned value, a call that stands alone, a `raise`. Left alone: docstrings, annotations, imports,
`if TYPE_CHECKING`, `__all__`, faces, and the wording of messages; values inside a message are broken like all others.

Why own code: mutmut 3 copies the package and calls each function through a trampoline, which a face that loads a file
at first use does not survive; cosmic-ray writes each mutant into the tree and starts a new Python for it, and that
Python waits ten seconds for torch. Here the parent imports once what the tests import, all but the code of the
project. Then it forks for each mutant: the child compiles the changed tree in memory and runs, fastest first, the tests
that reach the place. Nothing is written into the tree. A test that starts another Python sees the true code there;
tests that do nothing else are left out.
"""

from __future__ import annotations

import ast
import copy
import hashlib
import importlib
import importlib.abc
import importlib.util
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from publishing.kernel import KERNEL_SETTINGS, OFFLINE

ROOT = Path(__file__).resolve().parents[1]
EQUIVALENT = Path("tests") / "equivalent_mutants.txt"
LOG = Path("build") / "mutants.jsonl"
REACH = Path("build") / "mutants_reach"
OUTSIDE = (
    "tests/browser/",
    "tests/session/test_colab_room.py",
)  # in a browser, in Colab's Python: the true code
LIMIT = 600.0  # seconds for one file of tests as it is
NOTICED, SURVIVED, EQUAL = "noticed", "survived", "equivalent"


class MutationError(ValueError):
    """No such file, or no test for it. The message says what to do."""


# --- what can be broken ------------------------------------------------------------


@dataclass(frozen=True)
class Mutant:
    """One change in one place.

    Attributes:
        path: the file, from the root of the project.
        scope: the function or class around it, "" for the module.
        number: tells it from equal changes in the same scope.
        index: its place in the order of `changes`.
        lines: first and last line of the statement (or lambda) around it.
        body: first and last line of the code that has to run for it to matter; None for what runs at import.
    """

    path: str
    scope: str
    before: str
    after: str
    number: int
    index: int
    lines: tuple[int, int]
    body: tuple[int, int] | None

    @property
    def id(self) -> str:
        again = f" #{self.number + 1}" if self.number else ""
        return f"{self.path}::{self.scope}{again}: {self.before}  ->  {self.after}"


@dataclass(frozen=True)
class Place:
    """A field of a node, and what may stand there instead."""

    node: ast.AST
    field: str
    position: int | None  # in a list
    new: ast.AST
    around: tuple[ast.AST, ...]  # from the module down to the node

    @property
    def old(self) -> ast.AST:
        value = getattr(self.node, self.field)
        return value if self.position is None else value[self.position]

    def put(self, what: ast.AST) -> None:
        if self.position is None:
            setattr(self.node, self.field, what)
        else:
            getattr(self.node, self.field)[self.position] = what


_OPPOSITE = {
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Lt: ast.GtE,
    ast.GtE: ast.Lt,
    ast.Gt: ast.LtE,
    ast.LtE: ast.Gt,
}
_BORDER = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt}
_OPERATOR = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
    ast.MatMult: ast.Mult,
    ast.BitOr: ast.BitAnd,
    ast.BitAnd: ast.BitOr,
    ast.BitXor: ast.BitOr,
}
_FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
_SCOPE = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
_LEFT_ALONE = {"annotation", "returns", "type_params", "format_spec"}


def changes(tree: ast.Module) -> Iterator[Place]:
    """Every place of a module that can be broken, in order."""
    yield from _below(tree, ())


def _below(node: ast.AST, around: tuple[ast.AST, ...]) -> Iterator[Place]:
    around = (*around, node)
    for field, value in ast.iter_fields(node):
        if field in _LEFT_ALONE:
            continue
        children = enumerate(value) if isinstance(value, list) else [(None, value)]
        for position, child in children:
            if not isinstance(child, ast.AST) or _is_no_behaviour(child):
                continue
            in_message = any(isinstance(n, (ast.JoinedStr, ast.Raise)) for n in around)
            for new in _instead(child, field, node, in_message):
                yield Place(node, field, position, new, (*around, child))
            yield from _below(child, around)


def _is_no_behaviour(node: ast.AST) -> bool:
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        return True
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return True  # a docstring
    if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
        return True
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def _instead(node: ast.AST, field: str, parent: ast.AST, in_message: bool) -> Iterator[ast.AST]:
    """What may stand in the place of a node."""
    if isinstance(node, ast.Compare):
        for i, op in enumerate(node.ops):
            for table in (_OPPOSITE, _BORDER):
                if type(op) in table:
                    yield ast.Compare(
                        node.left, [*node.ops[:i], table[type(op)](), *node.ops[i + 1 :]], node.comparators
                    )
    elif isinstance(node, ast.BinOp) and type(node.op) in _OPERATOR:
        yield ast.BinOp(node.left, _OPERATOR[type(node.op)](), node.right)
    elif isinstance(node, ast.AugAssign) and type(node.op) in _OPERATOR:
        yield ast.AugAssign(node.target, _OPERATOR[type(node.op)](), node.value)
    elif isinstance(node, ast.BoolOp):
        yield ast.BoolOp(ast.Or() if isinstance(node.op, ast.And) else ast.And(), node.values)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.Not, ast.USub)):
        yield node.operand
    elif isinstance(node, ast.Constant):
        yield from (ast.Constant(value) for value in _other_values(node.value, in_message))
    elif isinstance(node, ast.Return) and not _is_none(node.value):
        yield ast.Return(ast.Constant(None))
    elif isinstance(node, ast.Raise) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)):
        yield ast.Pass()
    is_condition = field in ("test", "ifs") and not isinstance(parent, ast.Assert)
    if is_condition and not isinstance(node, (ast.Compare, ast.BoolOp, ast.UnaryOp, ast.Constant)):
        yield ast.UnaryOp(ast.Not(), node)


def _is_none(node: ast.AST | None) -> bool:
    return node is None or (isinstance(node, ast.Constant) and node.value is None)


def _other_values(value: object, in_message: bool) -> list:
    """A flag is turned; a number grows by one, and becomes 0; a word becomes "". A text with spaces is a message."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, (int, float)):
        return [value + 1, 0] if value else [1]
    if isinstance(value, str) and not in_message and not any(c.isspace() for c in value.strip()):
        return [""] if value else ["x"]
    return []


def mutants(path: Path, root: Path = ROOT) -> list[Mutant]:
    """All mutants of a file, in order."""
    relative = path.relative_to(root).as_posix()
    tree, seen, found = ast.parse(path.read_text("utf-8")), Counter(), []
    for index, place in enumerate(changes(tree)):
        scope = ".".join(n.name for n in place.around if isinstance(n, _SCOPE))
        before, after = _words(place)
        found.append(
            Mutant(
                relative,
                scope,
                before,
                after,
                seen[scope, before, after],
                index,
                _lines(place.around),
                _body(place.around),
            )
        )
        seen[scope, before, after] += 1
    return found


def _words(place: Place) -> tuple[str, str]:
    """Before and after in one line each; of a number or a word, with what stands around it."""
    shown, old = place.old, place.old
    if isinstance(old, ast.Constant):
        near = [n for n in place.around[:-1] if isinstance(n, (ast.expr, ast.keyword, ast.arguments))]
        shown = near[-1] if near and len(ast.unparse(near[-1])) <= 60 else old
    before = ast.unparse(shown)
    place.put(place.new)
    after = ast.unparse(place.new if shown is old else shown)
    place.put(old)
    return tuple(
        text if len(text) <= 90 else f"{text[:87]}..." for text in map(_in_one_line, (before, after))
    )


def _in_one_line(text: str) -> str:
    return " ".join(text.split())


def _lines(around: tuple[ast.AST, ...]) -> tuple[int, int]:
    nearest = next(n for n in reversed(around) if isinstance(n, (ast.stmt, ast.Lambda)))
    return nearest.lineno, nearest.end_lineno


def _body(around: tuple[ast.AST, ...]) -> tuple[int, int] | None:
    """The lines of the innermost function: of the function itself for its defaults and decorators."""
    function = next((n for n in reversed(around) if isinstance(n, _FUNCTION)), None)
    if function is None:
        return None
    first = function.body[0] if isinstance(function.body, list) else function.body
    return first.lineno, function.end_lineno


def broken(mutant: Mutant, root: Path) -> ast.Module:
    """The tree of a file with one change in it."""
    tree = ast.parse((root / mutant.path).read_text("utf-8"))
    place = next(p for i, p in enumerate(changes(tree)) if i == mutant.index)
    place.put(ast.copy_location(copy.copy(place.new), place.old))
    return ast.fix_missing_locations(tree)


# --- which tests -------------------------------------------------------------------


@cache
def near_tests(path: str, root: Path) -> tuple[Path, ...]:
    """The files of tests for a file of the house: those of its room that import it, or else all of its room.

    The one that has its name comes first, then the shortest: the next is opened only where these notice nothing.

    Raises:
        MutationError: there is none.
    """
    parts = Path(path).with_suffix("").parts
    in_a_room = len(parts) > 2
    folder = root / "tests" / parts[1] if in_a_room else root / "tests"
    tests = sorted(folder.rglob("test_*.py"))
    every = [test for test in tests if not test.relative_to(root).as_posix().startswith(OUTSIDE)]
    names = {getattr(n, "name", "") for n in ast.parse((root / path).read_text("utf-8")).body}
    near = [test for test in every if _imports(test, ".".join(parts), names)]
    if not every:
        raise MutationError(f"{path} has no tests: there is no {folder.relative_to(root)}/test_*.py.")
    found = near or (every if in_a_room else [])
    return tuple(sorted(found, key=lambda test: (parts[-1] not in test.stem, test.stat().st_size, test.name)))


def _imports(test: Path, module: str, names: set[str]) -> bool:
    """Whether a file imports a module, as such or by a name of it through the face of its room."""
    face, _, stem = module.rpartition(".")
    for node in ast.walk(ast.parse(test.read_text("utf-8"))):
        if isinstance(node, ast.Import) and any(a.name == module for a in node.names):
            return True
        if isinstance(node, ast.ImportFrom):
            taken = {a.name for a in node.names}
            if node.module == module or (node.module == face and taken & (names | {stem})):
                return True
    return False


@dataclass(frozen=True)
class Reach:
    """What the tests of one file do as the code is.

    Attributes:
        seconds: test to its time; only tests that pass.
        lines: path to test to the lines that it reaches; "" for what the file reaches outside of its tests.
        imported: modules from outside the project.
    """

    seconds: dict[str, float]
    lines: dict[str, dict[str, list[int]]]
    imported: list[str]


@cache
def reach(test: Path, root: Path, top: str) -> Reach:
    """Run a file of tests once on the code as it is; kept in build/ until the test or the code changes."""
    package = sorted((root / top).rglob("*.py"))
    key = _hash(*(p.read_bytes() for p in [test, *package]))
    kept = root / REACH / f"{test.stem}-{key}.json"
    if not kept.is_file():
        kept.parent.mkdir(parents=True, exist_ok=True)
        partial = kept.with_suffix(".partial")
        code = in_child(lambda: _record_reach(test, root, top, partial), LIMIT)
        if not partial.is_file():
            raise MutationError(f"{test.relative_to(root)} could not be run as it is (exit code {code}).")
        partial.replace(kept)
    return Reach(**json.loads(kept.read_text("utf-8")))


def _record_reach(test: Path, root: Path, top: str, target: Path) -> int:
    import coverage
    import pytest

    counter = coverage.Coverage(data_file=None, config_file=False, include=[f"{root / top}/*"])
    seconds, failed, running = Counter(), set(), [""]

    class Recorder:
        @pytest.hookimpl(wrapper=True)
        def pytest_runtest_protocol(self, item):
            running[0] = item.nodeid
            counter.switch_context(item.nodeid)
            done = yield
            running[0] = ""
            counter.switch_context("")
            return done

        @pytest.hookimpl(wrapper=True)
        def pytest_fixture_setup(self, fixturedef):
            if fixturedef.scope != "function":  # its lines count for every test of the file
                counter.switch_context("")
            value = yield
            counter.switch_context(running[0])
            return value

        def pytest_runtest_logreport(self, report):
            seconds[report.nodeid] += report.duration
            if report.failed:
                failed.add(report.nodeid)

    counter.start()
    code = run_tests([str(test)], root, [Recorder()])
    counter.stop()
    data = counter.get_data()
    lines = {}
    for file in data.measured_files():
        by_test = lines.setdefault(Path(file).relative_to(root).as_posix(), {})
        for line, contexts in data.contexts_by_lineno(file).items():
            for context in contexts:
                by_test.setdefault(context, []).append(line)
    imported = [name for name, module in list(sys.modules.items()) if _is_foreign(name, module, root)]
    passed = {name: round(s, 4) for name, s in seconds.items() if name not in failed}
    target.write_text(json.dumps({"seconds": passed, "lines": lines, "imported": imported}), "utf-8")
    return int(code)


def _is_own(name: str, module: object, root: Path) -> bool:
    """Whether a module is the project's."""
    file = getattr(module, "__file__", None)
    inside = file and Path(file).is_relative_to(root) and ".venv" not in Path(file).parts
    return bool(inside) and name != "__main__"


def _is_foreign(name: str, module: object, root: Path) -> bool:
    """Whether a module comes from a file that is not the project's."""
    has_file = bool(getattr(module, "__file__", None))
    return (
        has_file
        and not _is_own(name, module, root)
        and name.partition(".")[0] not in ("__main__", "coverage")
    )


def chosen_tests(mutant: Mutant, known: Reach) -> list[str]:
    """The tests of a file that reach a mutant, the fastest first."""
    by_test = known.lines.get(mutant.path, {})
    if mutant.body is None:
        names = list(known.seconds) if by_test else []
    else:
        first, last = mutant.lines
        span = range(max(first, mutant.body[0]), last + 1) or range(mutant.body[0], mutant.body[1] + 1)
        hit = {name for name, lines in by_test.items() if not set(span).isdisjoint(lines)}
        names = [name for name in known.seconds if name in hit or "" in hit]
    return sorted(names, key=known.seconds.get)


# --- one mutant --------------------------------------------------------------------


class _Changed(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Gives one module from a changed tree; its file is only named, for tracebacks."""

    def __init__(self, module: str, path: Path, tree: ast.Module):
        self.module, self.path, self.tree = module, path, tree

    def find_spec(self, name, path=None, target=None):
        if name == self.module:
            return importlib.util.spec_from_file_location(name, self.path, loader=self)
        return None

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        exec(compile(self.tree, str(self.path), "exec", dont_inherit=True), module.__dict__)

    def get_source(self, name):
        return self.path.read_text("utf-8")


def in_child(work: Callable[[], int], limit: float) -> int | None:
    """The exit code of ``work`` in a forked process that says nothing; None where it took too long."""
    child = os.fork()
    if not child:
        code = 70
        try:
            os.setsid()  # what a test starts ends with it
            nowhere = os.open(os.devnull, os.O_RDWR)
            for stream in (0, 1, 2):
                os.dup2(nowhere, stream)
            code = work()
        finally:
            os._exit(code)
    end = time.monotonic() + limit
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def run_tests(arguments: Sequence[str], root: Path, plugins: Sequence[object] = ()) -> int:
    """pytest on the project, without a cache and stopping at the first failure when asked by ``-x``."""
    import pytest

    sys.dont_write_bytecode = True
    os.chdir(root)
    sys.path.insert(0, str(root))
    for name in [name for name, module in sys.modules.items() if _is_own(name, module, root)]:
        del sys.modules[name]  # the command has loaded some of the project, whole
    with tempfile.TemporaryDirectory() as folder:
        os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = os.environ["TMPDIR"] = tempfile.tempdir = folder
        quiet = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", f"--basetemp={folder}/tmp"]
        return int(pytest.main([*quiet, *arguments], plugins=list(plugins)))


def is_noticed(mutant: Mutant, known: Reach, root: Path) -> bool:
    """Whether a test of one file fails, or takes far longer than it did, on a mutant."""
    names, tree = chosen_tests(mutant, known), broken(mutant, root)
    module = ".".join(Path(mutant.path).with_suffix("").parts)

    def work() -> int:
        sys.meta_path.insert(0, _Changed(module, root / mutant.path, tree))
        return run_tests(["-x", *names], root)

    expected = sum(map(known.seconds.get, names))
    return bool(names) and in_child(work, 60 + 4 * expected) != 0


# --- many --------------------------------------------------------------------------


@dataclass(frozen=True)
class Trial:
    """What became of one mutant: noticed, survived or equivalent."""

    id: str
    path: str
    line: int
    result: str
    code: str  # hash of the file
    tests: str  # hash of its tests
    seconds: float = 0.0


def mutate(
    paths: Sequence[str | Path],
    sample: int | None = None,
    seed: int = 0,
    root: Path = ROOT,
    report: Callable[[str], None] = print,
) -> list[Trial]:
    """Try mutants of some files against the tests of their rooms; what was tried before is not tried again.

    A mutant that was noticed counts as noticed while its file is the same; one that survived is tried again when a
    test of its file changes.

    Args:
        paths: files and folders of the project; faces are left out.
        sample: how many, drawn at random by ``seed``; None for all.
        report: gets one line for each survivor, as it is found.

    Raises:
        MutationError: a path that is not there, or has no tests.
    """
    every = [m for path in _files(paths, root) for m in mutants(path, root)]
    equal, before, trials = equivalents(root), _before(root), []
    places, ids = {m.path for m in every}, {m.id for m in every}
    for name in equal:
        if name.partition("::")[0] in places and name not in ids:
            report(f"listed as equivalent, and no longer there: {name}")
    if sample is not None and sample < len(every):
        every = sorted(random.Random(seed).sample(every, sample), key=lambda m: (m.path, m.index))
    # What the tests' conftest.py sets: some packages read it when they are imported. A fork copies one thread.
    for name, value in (KERNEL_SETTINGS | OFFLINE | {"OMP_NUM_THREADS": "1"}).items():
        os.environ.setdefault(name, value)
    for mutant in every:
        tests = near_tests(mutant.path, root)
        code = _hash((root / mutant.path).read_bytes())
        known = _hash(*(t.read_bytes() for t in tests))
        if mutant.id in equal:
            trials.append(Trial(mutant.id, mutant.path, mutant.lines[0], EQUAL, code, known))
            continue
        old = before.get((mutant.id, code))
        if old is None or (old.result == SURVIVED and old.tests != known):
            old = _try(mutant, tests, code, known, root)
            _append(old, root)
        if old.result == SURVIVED:
            report(f"survived: line {old.line}, {old.id}")
        trials.append(old)
    return trials


def _try(mutant: Mutant, tests: Sequence[Path], code: str, known: str, root: Path) -> Trial:
    start, result = time.monotonic(), SURVIVED
    for test in tests:
        reached = reach(test, root, Path(mutant.path).parts[0])
        _import_all(tuple(reached.imported))
        if is_noticed(mutant, reached, root):
            result = NOTICED
            break
    seconds = round(time.monotonic() - start, 2)
    return Trial(mutant.id, mutant.path, mutant.lines[0], result, code, known, seconds)


@cache
def _import_all(names: tuple[str, ...]) -> None:
    """Import for all children to come what a file of tests imports from outside the project."""
    with _silent():
        for name in names:
            with suppress(ImportError, AttributeError, ValueError, RuntimeError, KeyError):
                importlib.import_module(name)


@contextmanager
def _silent() -> Iterator[None]:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _files(paths: Sequence[str | Path], root: Path) -> list[Path]:
    found = []
    for path in (root / p for p in paths):
        if not path.exists():
            raise MutationError(f"There is no {path}. Give files or folders such as helpers/freezing.")
        if not path.resolve().is_relative_to(root.resolve()):
            raise MutationError(f"{path} is not in {root}. Give files or folders such as helpers/freezing.")
        if path.is_file() and path.suffix != ".py":
            raise MutationError(f"{path} is no Python file. Give files or folders such as helpers/freezing.")
        found += sorted(path.rglob("*.py")) if path.is_dir() else [path]
    return [p for p in found if p.name != "__init__.py"]


def equivalents(root: Path) -> dict[str, str]:
    """Mutants that change nothing that a test could see, and why: "id  because  reason", one a line."""
    path = root / EQUIVALENT
    lines = path.read_text("utf-8").splitlines() if path.is_file() else []
    pairs = [line.split("  because  ") for line in lines if line.strip() and not line.startswith("#")]
    return {mutant.strip(): reason.strip() for mutant, reason in pairs}


def _before(root: Path) -> dict[tuple[str, str], Trial]:
    path = root / LOG
    lines = path.read_text("utf-8").splitlines() if path.is_file() else []
    trials = [Trial(**json.loads(line)) for line in lines]
    return {(t.id, t.code): t for t in trials}


def _append(trial: Trial, root: Path) -> None:
    (root / LOG).parent.mkdir(parents=True, exist_ok=True)
    with (root / LOG).open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(trial)) + "\n")


def _hash(*parts: bytes) -> str:
    return hashlib.sha256(b"\0".join(hashlib.sha256(p).digest() for p in parts)).hexdigest()[:16]


# --- the command -------------------------------------------------------------------


def score_table(trials: Sequence[Trial]) -> str:
    """One line a file and one for all: mutants, noticed, equivalent, survived, and the score."""
    line = "{:<40} {:>8} {:>8} {:>11} {:>9} {:>6}".format
    rows = [line("file", "mutants", NOTICED, EQUAL, SURVIVED, "score")]
    for path in [*sorted({t.path for t in trials}), "all"]:
        count = Counter(t.result for t in trials if path in (t.path, "all"))
        counted = count[NOTICED] + count[SURVIVED]
        score = f"{count[NOTICED] / counted:.3f}" if counted else "-"
        rows.append(line(path, count.total(), count[NOTICED], count[EQUAL], count[SURVIVED], score))
    return "\n".join(rows)


def carry_out(paths: Sequence[str], sample: int | None, seed: int, least: float, root: Path = ROOT) -> int:
    """Print the table: 0 where the score is at least ``least``, else 1. What the command does."""
    trials = mutate(paths, sample, seed, root.resolve())
    print(score_table(trials))
    counted = [t for t in trials if t.result != EQUAL]
    return int(sum(t.result == NOTICED for t in counted) < least * len(counted))
