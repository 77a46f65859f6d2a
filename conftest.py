"""Settings for all that `make test` runs: tests/, and the notebooks under nbval.

They must be in place before a kernel starts or torch is imported. A variable that is set
already wins, so `OMP_NUM_THREADS=4 make test` means what it says.
"""

import atexit
import os
import shutil
import tempfile

import pytest

from publishing.kernel import KERNEL_SETTINGS, OFFLINE

pytest_plugins = ["support.pace", "support.pictures"]
WORKER = os.environ.get("PYTEST_XDIST_WORKER")  # "gw0" in the first of several workers

for name, value in (KERNEL_SETTINGS | OFFLINE | {"COURSE_PROFILE": "tiny"}).items():
    os.environ.setdefault(name, value)

# A reader's own predictions and progress stand in build/, and some cells print them. Tests see none.
if "COURSE_BUILD" not in os.environ:
    os.environ["COURSE_BUILD"] = tempfile.mkdtemp(prefix="frozen-attention-")
    atexit.register(shutil.rmtree, os.environ["COURSE_BUILD"], ignore_errors=True)

if WORKER:  # side by side, each with one thread and a build folder of its own
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ["COURSE_BUILD"] = os.path.join(os.environ["COURSE_BUILD"], WORKER)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A notebook's cells have nbval's limit alone; pytest's own one would stop a cell that nbval lets run."""
    for item in items:
        if item.path.suffix == ".ipynb":
            item.add_marker(pytest.mark.timeout(0))
