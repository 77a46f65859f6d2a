"""Write requirements.lock: the exact version of everything that requirements.txt brings in.

    python -m publishing.lock [transformers==5.23.0 ...]        (make lock [ARGS=...])

Installs requirements.txt into a fresh environment and lists what came; an argument holds a
package at one version inside its range. The local part of a version ("+cpu") is left out, so
that the lock fits any platform's wheels.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HEADER = """\
# Exact versions for local use and CI: the closure of requirements.txt, under Python {}.{}.
# Written by `make lock`. On Linux, PyPI's torch is the CUDA build: `make course TORCH_INDEX=...`
# takes the smaller CPU build from PyTorch's own index.
"""


def exact_versions(frozen: str) -> list[str]:
    """Lines of ``pip freeze`` as ``name==version``, sorted, without local version parts.

    Raises:
        ValueError: a line that is no plain version, such as a file or a git address.
    """
    lines = []
    for line in frozen.split("\n"):
        if not line.strip() or re.match(r"(pip|wheel)==", line):
            continue
        found = re.fullmatch(r"([\w.-]+)==([\w.!]+)(\+[\w.]+)?", line.strip())
        if found is None:
            raise ValueError(f"'{line}' has no plain version. A lock holds lines like 'numpy==2.4.6'.")
        lines.append(f"{found[1]}=={found[2]}")
    return sorted(lines, key=str.lower)


def freeze(requirements: Path, held: list[str]) -> str:
    """``pip freeze --all`` of a fresh environment that holds ``requirements`` and the versions ``held``."""
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        pip = [str(Path(folder) / "bin" / "python"), "-m", "pip"]
        subprocess.run(
            [*pip, "install", "--disable-pip-version-check", "-r", str(requirements), *held], check=True
        )
        subprocess.run([*pip, "check"], check=True)
        return subprocess.run([*pip, "freeze", "--all"], check=True, text=True, stdout=subprocess.PIPE).stdout


def main() -> None:
    lines = exact_versions(freeze(ROOT / "requirements.txt", sys.argv[1:]))
    partial = ROOT / "requirements.lock.partial"
    partial.write_text(HEADER.format(*sys.version_info[:2]) + "\n".join(lines) + "\n", encoding="utf-8")
    os.replace(partial, ROOT / "requirements.lock")
    print(f"requirements.lock: {len(lines)} packages")


if __name__ == "__main__":
    main()
