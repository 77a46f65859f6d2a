"""The workflows of GitHub: valid, safe, and doing what the course says they do."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from publishing.drift import REPORT

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
BIN = Path(sys.executable).parent

BROKEN = {
    "an unknown key": ("timeout-minutes: ", "timeout: "),
    "a job without a machine": ("runs-on: ", "runs: "),
}
INJECTED = "      - run: echo ${{ github.event.pull_request.title }}\n"


def valid(*files: Path) -> subprocess.CompletedProcess:
    """What check-jsonschema says by GitHub's own schema of workflows, which it brings along."""
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "check_jsonschema",
            "--builtin-schema",
            "vendor.github-workflows",
            *map(str, files),
        ],
        capture_output=True,
        text=True,
    )


def safe(*files: Path) -> subprocess.CompletedProcess:
    """What zizmor says: it knows how workflows are misused. Offline, so that it asks nobody."""
    return subprocess.run(
        [
            shutil.which("zizmor", path=BIN),
            "--offline",
            "--no-progress",
            "--min-severity=medium",
            "--config",
            str(ROOT / ".github" / "zizmor.yml"),
            *map(str, files),
        ],
        capture_output=True,
        text=True,
    )


def test_there_is_one_workflow_that_tests_one_that_watches_and_one_that_publishes():
    assert [path.name for path in WORKFLOWS] == ["ci.yml", "drift.yml", "publish.yml"]


def test_the_workflows_are_valid():
    result = valid(*WORKFLOWS)
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_workflows_are_safe():
    result = safe(*WORKFLOWS)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("change", BROKEN.values(), ids=BROKEN)
def test_a_broken_workflow_is_seen(change, tmp_path):
    broken = tmp_path / "ci.yml"
    broken.write_text((ROOT / ".github" / "workflows" / "ci.yml").read_text("utf-8").replace(*change))
    assert valid(broken).returncode == 1


def test_an_unsafe_workflow_is_seen(tmp_path):
    unsafe = tmp_path / ".github" / "workflows" / "ci.yml"
    unsafe.parent.mkdir(parents=True)
    unsafe.write_text(
        (ROOT / ".github" / "workflows" / "ci.yml").read_text("utf-8").rstrip("\n") + "\n" + INJECTED
    )
    result = safe(unsafe)
    assert result.returncode != 0 and "template-injection" in result.stdout


def test_what_is_published_is_what_was_tested():
    ci, publish = (path.read_text("utf-8") for path in WORKFLOWS if path.name != "drift.yml")
    steps = re.findall(r"run: (.+)", ci)
    assert steps == [".ci/run", ".venv/bin/course site"]
    assert "uses: ./.github/workflows/ci.yml" in publish and "needs: test" in publish
    built = re.search(r"name: site\n +path: build/site\n", ci)
    assert built and re.search(r"download-artifact@\S+\n +with:\n +name: site\n", publish)
    assert "run:" not in publish


def test_drift_is_watched_once_a_week_by_the_command_that_the_tests_know(tmp_path):
    drift = (ROOT / ".github" / "workflows" / "drift.yml").read_text("utf-8")
    assert re.search(r'schedule:\n +- cron: "\d+ \d+ \* \* [0-6]"', drift)
    steps = re.findall(r"run: (.+)", drift)
    assert [step for step in steps if "course" in step] == [
        ".venv/bin/course drift --colab build/colab.txt --canary build/canary"
    ]
    assert any(step.endswith("googlecolab/backend-info/main/pip-freeze.txt") for step in steps)
    assert str(REPORT.relative_to(ROOT)) in steps[-1]


def test_drift_makes_what_it_uses_and_reports_a_stop_too():
    """On a bare machine: each path is there before it is read, and a stop before the report hides no other error."""
    drift = (ROOT / ".github" / "workflows" / "drift.yml").read_text("utf-8")
    assert "permissions:\n  contents: read\n" in drift
    uses = re.findall(r"uses: (\S+)@", drift)
    assert uses == ["actions/checkout", "actions/setup-python", "actions/upload-artifact"]
    python = re.search(r'python-version: "(\d+)\.(\d+)"', drift)
    assert tuple(map(int, python.groups())) >= (3, 11), "the least that the course takes"
    control, canary, colab, compare, report = re.findall(r"run: (.+)", drift)
    assert control == "make venv" and "-r requirements.txt" in canary
    assert canary.startswith("python -m venv build/canary"), "it makes build/, into which the list goes"
    assert "-o build/colab.txt" in colab
    assert "--colab build/colab.txt" in compare and "--canary build/canary" in compare
    conditions = re.findall(r"if: (.+)", drift)
    assert conditions == ["always() && hashFiles('build/drift/report.md') != ''", "always()"]
    assert report.startswith("cat build/drift/report.md"), "of no file it would be a second error"
