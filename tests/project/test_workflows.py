"""The workflows of GitHub: valid, safe, and doing what the course says they do."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

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
    drift = yaml.safe_load((ROOT / ".github" / "workflows" / "drift.yml").read_text("utf-8"))
    (job,) = drift["jobs"].values()
    assert drift["permissions"] == {"contents": "read"} and job["timeout-minutes"] <= 360
    uses = [step["uses"].partition("@")[0] for step in job["steps"] if "uses" in step]
    assert uses == ["actions/checkout", "actions/setup-python", "actions/upload-artifact"]
    runs = [step for step in job["steps"] if "run" in step]
    control, canary, colab, compare, report = (step["run"] for step in runs)
    assert control == "make venv" and "-r requirements.txt" in canary
    for made, path in ((canary, "build/canary"), (colab, "build/colab.txt")):
        assert path in made and path in compare
    assert canary.startswith("python -m venv build/canary"), "it makes build/, into which the list goes"
    python = next(s["with"]["python-version"] for s in job["steps"] if "setup-python" in s.get("uses", ""))
    assert tuple(map(int, python.split("."))) >= (3, 11), "the least that the course takes"
    assert report.startswith("cat build/drift/report.md")
    for step in job["steps"][-2:]:
        assert step["if"].startswith("always()")
    assert "hashFiles('build/drift/report.md') != ''" in runs[-1]["if"], (
        "cat of no file would be a second error"
    )
