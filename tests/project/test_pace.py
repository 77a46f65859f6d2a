"""How a run of the tests forecasts, orders, records and cuts short its time (tests/support/pace.py, .ci/run)."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from support import pace

ROOT = Path(__file__).resolve().parents[2]
RECORDED = {"a.py": 0.5, "a.py::test_slow": 30.0, "b.py::test_one": 100.0}
TWO_TESTS = "def test_one():\n    pass\n\n\ndef test_two():\n    pass\n"


def pytest_run(folder: Path, *arguments: str) -> str:
    """What a pytest of its own says over the tests of a folder, with the plugin and no setting of this run."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    kept |= {
        "PYTHONPATH": str(ROOT / "tests"),
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    }  # others take seconds to load
    (folder / "pytest.ini").write_text("[pytest]\n")
    plugins = ["-p", "support.pace", "-p", "xdist", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *plugins, "-rs", *arguments],
        cwd=folder,
        env=kept,
        capture_output=True,
        text=True,
    )
    return done.stdout + done.stderr


def test_a_summary_keeps_the_slow_tests_and_the_mean_of_the_quick_ones():
    taken = {"a.py::test_x": 0.25, "a.py::test_y": 0.75, "a.py::test_slow": 3.0}
    assert pace.summary(taken) == {"a.py": 0.5, "a.py::test_slow": 3.0}


def test_a_run_replaces_what_was_recorded_of_its_files_alone(tmp_path):
    path = tmp_path / "durations.json"
    pace.record({"a.py::test_old": 9.0, "b.py::test_one": 5.0}, path)
    pace.record({"a.py::test_new": 2.0}, path)
    assert pace.read(path) == {"a.py::test_new": 2.0, "b.py::test_one": 5.0}


def test_what_was_recorded_of_the_long_tests_of_a_file_stays(tmp_path):
    path = tmp_path / "durations.json"
    pace.record({"a.py::test_long": 90.0}, path, chosen="long")
    pace.record({"a.py::test_slow": 9.0}, path)
    pace.record({"a.py::test_long": 80.0}, path, chosen="long")
    assert pace.read(path) == {"a.py::test_long": 80.0, "a.py::test_slow": 9.0}


def test_what_is_expected_counts_each_test_that_is_chosen():
    assert pace.expected(["a.py::test_x", "a.py::test_y", "a.py::test_slow"], RECORDED) == 31
    assert pace.expected(["c.py::test_unknown"], RECORDED) == 0


def test_the_longest_file_begins_and_no_file_is_torn_apart():
    tests = ["a.py::test_x", "a.py::test_slow", "b.py::test_one", "c.py::test_unknown", "b.py::test_two"]
    ordered = [tests[i] for i in pace.longest_first(tests, RECORDED)]
    assert ordered == ["b.py::test_one", "b.py::test_two", *tests[:2], "c.py::test_unknown"]


@pytest.mark.parametrize(
    ("n_workers", "minutes"), [(1, "about 2 min with one worker"), (2, "about 2 min with 2 workers")]
)
def test_a_forecast_divides_among_workers_down_to_the_longest_file(n_workers, minutes):
    told = pace.forecast(["a.py::test_slow", "b.py::test_one"], n_workers, RECORDED)
    assert told.startswith(f"2 tests: {minutes}") and "no record" not in told


def test_a_short_run_is_called_so():
    assert pace.forecast(["a.py::test_x"], 2, RECORDED).startswith("1 tests: less than a minute with")


def test_a_forecast_says_what_it_does_not_know():
    told = pace.forecast(["a.py::test_slow", "c.py::test_unknown"], 1, RECORDED)
    assert "less than a minute" in told and "1 have no record" in told
    assert "nobody recorded yet" in pace.forecast(["c.py::test_unknown"], 2, RECORDED)


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_run_says_at_its_start_how_long_it_will_take(workers, tmp_path):
    (tmp_path / "test_two.py").write_text(TWO_TESTS)
    told = pytest_run(tmp_path, "-n", workers)
    assert told.count("2 tests: nobody recorded yet how long they take") == 1, told
    assert "2 passed" in told.splitlines()[-1]


def test_what_does_not_fit_any_more_is_left_out_by_name(tmp_path):
    (tmp_path / "test_two.py").write_text(TWO_TESTS)
    told = pytest_run(tmp_path, "--minutes=0")
    assert "left out, 0 minutes are over: test_two.py::test_two" in told
    assert "2 skipped" in told.splitlines()[-1]


def test_all_that_is_recorded_is_still_there():
    """A renamed test would be forecast as nothing; a run with --record-durations mends it."""
    missing = [name for name in pace.read() if not (ROOT / pace.file_of(name)).is_file()]
    assert not missing, "run: make test ARGS=--record-durations"


# --- CI ----------------------------------------------------------------------------

FAKE_MAKE = """#!/bin/sh
echo "make $*: 7 tests"
case $1 in
  test) echo "== 7 passed, 1 skipped in 2.00s =="; exit {test};;
  test-long) echo "== 3 passed, 9 skipped in 5.00s =="; exit {long};;
esac
"""


def ci(folder: Path, **codes: int) -> subprocess.CompletedProcess:
    """.ci/run of a copy of its own, with a `make` and a browser that do nothing."""
    (folder / ".ci").mkdir()
    (folder / ".ci" / "run").write_text((ROOT / ".ci" / "run").read_text("utf-8"))
    (folder / "bin").mkdir()
    for name, text in (("make", FAKE_MAKE.format(**codes)), ("chromium", "#!/bin/sh\n")):
        (folder / "bin" / name).write_text(text)
        (folder / "bin" / name).chmod(0o755)
    path = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
    settings = os.environ | {"PATH": path}
    return subprocess.run(["bash", str(folder / ".ci" / "run")], env=settings, capture_output=True, text=True)


def test_ci_runs_the_tests_then_the_long_ones_that_fit_and_ends_with_pytests_closing_lines(tmp_path):
    done = ci(tmp_path, test=0, long=0)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "make test: 7 tests"
    (minutes,) = re.findall(r"^make test-long ARGS=--minutes=(\d+): 7 tests$", done.stdout, re.MULTILINE)
    assert 40 <= int(minutes) <= 45, "of 45 minutes hardly one is gone"
    assert lines[-3:] == [
        "Closing lines of pytest:",
        "== 7 passed, 1 skipped in 2.00s ==",
        "== 3 passed, 9 skipped in 5.00s ==",
    ]


@pytest.mark.parametrize("codes", [{"test": 2, "long": 0}, {"test": 0, "long": 2}], ids=str)
def test_ci_fails_where_a_test_fails(codes, tmp_path):
    done = ci(tmp_path, **codes)
    assert done.returncode == 2
    assert done.stdout.splitlines()[-1] == "== 3 passed, 9 skipped in 5.00s ==", (
        "what is long runs all the same"
    )
