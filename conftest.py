"""Settings for both passes of `make test`: tests/ and the notebooks under nbval.

They must be in place before a kernel starts or torch is imported. A variable that is set
already wins, so `OMP_NUM_THREADS=1 make test` means what it says.
"""

import atexit
import os
import shutil
import tempfile

from publishing.kernel import KERNEL_SETTINGS, OFFLINE

for name, value in (KERNEL_SETTINGS | OFFLINE | {"COURSE_PROFILE": "tiny"}).items():
    os.environ.setdefault(name, value)

# A reader's own predictions and progress stand in build/, and some cells print them. Tests see none.
if "COURSE_BUILD" not in os.environ:
    os.environ["COURSE_BUILD"] = tempfile.mkdtemp(prefix="frozen-attention-")
    atexit.register(shutil.rmtree, os.environ["COURSE_BUILD"], ignore_errors=True)
