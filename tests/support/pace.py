"""How long the tests take: recorded once, told at the start of a run, used to begin with the longest file.

A plugin of pytest, loaded by the project's conftest.py. ``make test ARGS=--record-durations`` writes
tests/durations.json anew for the files that it ran.
"""

from __future__ import annotations

import json
import os
import time
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import pytest

DURATIONS = Path(__file__).parents[1] / "durations.json"
QUICK = 1.0  # seconds; a file's quick tests are recorded together, by their mean


def file_of(test: str) -> str:
    """The file in a test's id: ``tests/a/test_b.py::test_c`` gives ``tests/a/test_b.py``."""
    return test.partition("::")[0]


def summary(seconds: dict[str, float]) -> dict[str, float]:
    """What is kept of a run: each slow test by its id, and per file the mean of its quick ones."""
    quick = defaultdict(list)
    for test, taken in seconds.items():
        if taken < QUICK:
            quick[file_of(test)].append(taken)
    means = {file: round(sum(taken) / len(taken), 4) for file, taken in quick.items()}
    slow = {test: round(taken, 1) for test, taken in seconds.items() if taken >= QUICK}
    return dict(sorted((means | slow).items()))


def parts(path: Path = DURATIONS) -> dict[str, dict[str, float]]:
    """What was recorded, in seconds, by what was chosen with -m: "long" and "not long"."""
    return json.loads(path.read_text("utf-8")) if path.is_file() else {}


def read(path: Path = DURATIONS) -> dict[str, float]:
    """All that was recorded, in seconds; empty where nothing was."""
    return {name: taken for part in parts(path).values() for name, taken in part.items()}


def record(seconds: dict[str, float], path: Path = DURATIONS, chosen: str = "not long") -> None:
    """Put a run in the place of what was recorded of the same files, chosen in the same way with -m."""
    files, known = {file_of(test) for test in seconds}, parts(path)
    kept = {name: taken for name, taken in known.get(chosen, {}).items() if file_of(name) not in files}
    known[chosen] = dict(sorted((kept | summary(seconds)).items()))
    path.write_text(json.dumps(dict(sorted(known.items())), indent=0) + "\n", "utf-8")


def expected(tests: Iterable[str], recorded: dict[str, float]) -> float:
    """Seconds that tests took when they were recorded; a test that nobody recorded counts as nothing."""
    return sum(recorded.get(test, recorded.get(file_of(test), 0.0)) for test in tests)


def longest_first(tests: list[str], recorded: dict[str, float]) -> list[int]:
    """Places of the tests, whole files together, the longest file first.

    A worker that begins the longest file last would end long after the other one.
    """
    of_file = defaultdict(list)
    for place, test in enumerate(tests):
        of_file[file_of(test)].append(place)
    files = sorted(of_file, key=lambda file: -expected([tests[i] for i in of_file[file]], recorded))
    return [place for file in files for place in of_file[file]]


def forecast(tests: list[str], n_workers: int, recorded: dict[str, float]) -> str:
    """The line that a run begins with."""
    of_file = defaultdict(list)
    for test in tests:
        of_file[file_of(test)].append(test)
    unknown = sum(test not in recorded and file_of(test) not in recorded for test in tests)
    whole = [expected(each, recorded) for each in of_file.values()]
    seconds = max(sum(whole) / n_workers, max(whole, default=0.0))  # a file stays with one worker
    took = "less than a minute" if seconds < 60 else f"about {seconds / 60:.0f} min"
    workers = "one worker" if n_workers == 1 else f"{n_workers} workers"
    known = f"{took} with {workers} on the cores that recorded tests/durations.json"
    if not unknown:
        return f"{len(tests):,} tests: {known}"
    told = known if unknown < len(tests) else "nobody recorded yet how long they take"
    return f"{len(tests):,} tests: {told}; {unknown:,} have no record (--record-durations writes it)"


# --- what pytest calls -------------------------------------------------------------


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("pace", "how long the tests take")
    group.addoption("--record-durations", action="store_true", help="write tests/durations.json anew")
    group.addoption("--minutes", type=float, help="skip each test that would end later than that, and say so")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Pace(config), "pace")


class Pace:
    """One run of pytest: its beginning, and the seconds of each of its tests."""

    def __init__(self, config: pytest.Config):
        self.config, self.recorded = config, read()
        self.begun, self.seconds, self.told = time.monotonic(), defaultdict(float), False

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        if "PYTEST_XDIST_WORKER" in os.environ:  # alone, files come in the order of their names
            items[:] = [items[i] for i in longest_first([item.nodeid for item in items], self.recorded)]

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        if "PYTEST_XDIST_WORKER" not in os.environ and session.items:
            self.tell([item.nodeid for item in session.items], 1)

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, ids: list[str]) -> None:
        if not self.told:  # every worker collects the same tests
            self.tell(ids, len(self.config.getoption("tx")))

    def tell(self, tests: list[str], n_workers: int) -> None:
        self.told = True
        reporter = self.config.pluginmanager.get_plugin("terminalreporter")
        if reporter is not None:
            reporter.write_line(forecast(tests, n_workers, self.recorded))

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        minutes = self.config.getoption("minutes")
        until = time.monotonic() - self.begun + expected([item.nodeid], self.recorded)
        if minutes is not None and until > 60 * minutes:
            pytest.skip(f"left out, {minutes:g} minutes are over: {item.nodeid}")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.seconds[report.nodeid] += report.duration

    def pytest_sessionfinish(self) -> None:
        worker = "PYTEST_XDIST_WORKER" in os.environ
        if self.config.getoption("record_durations") and self.seconds and not worker:
            record(self.seconds, chosen=self.config.getoption("markexpr"))
