"""What the measuring scripts share: a process of its own for each measurement, and a file that goes on where it was."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
EXACT = {
    "MALLOC_MMAP_THRESHOLD_": str(2**20)
}  # read by glibc when a process starts: freed blocks go back at once
STATUS = Path("/proc/self/status")


def config_of(shape: str):
    """The 125M as `models.load_model` sets it, or a small model for tests."""
    from helpers.models import gpt_neo_125m_config, mini_config

    if shape == "125m":
        config = gpt_neo_125m_config()
        config.activation_function = "gelu_pytorch_tanh"
        return config
    return mini_config(
        vocab_size=211,
        hidden_size=48,
        num_heads=4,
        intermediate_size=192,
        max_position_embeddings=64,
        window_size=16,
    )


def resident_bytes(name: str) -> int:
    """What this process holds now ("VmRSS"), or has held at most ("VmHWM"); on Linux, where `STATUS` exists."""
    return 1024 * next(
        int(line.split()[1]) for line in STATUS.read_text().splitlines() if line.startswith(name)
    )


def measured_apart(module: str, arguments: list[str], environment: Mapping[str, str], what: str):
    """Run a module in a fresh process, without the hub; its last line is the result.

    Raises:
        SystemExit: the process failed. What was measured before is kept.
    """
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | environment | {"HF_HUB_OFFLINE": "1"},
    )
    if done.returncode:
        raise SystemExit(
            f"The measurement {what} failed:\n{done.stderr[-3000:]}\n"
            "What was measured before is kept; the same command goes on from there."
        )
    return json.loads(done.stdout.strip().splitlines()[-1])


def continued(path: Path, setting: dict, **empty) -> dict:
    """The file so far, if it is of this very setting; else a new record with ``empty`` in it.

    Raises:
        SystemExit: it was measured on another machine, version or shape, so nothing here can be added to it.
    """
    from helpers.study.records import REMEDY, RecordError, read_record

    if not path.exists():
        return {"setting": setting, **empty}
    try:
        record = read_record(path, {"setting": dict, **{name: type(value) for name, value in empty.items()}})
    except RecordError as error:
        raise SystemExit(
            f"{str(error).removesuffix(REMEDY)}Move it away, and give the same command again."
        ) from error
    other = [key for key, value in setting.items() if record["setting"].get(key) != value]
    if other:
        raise SystemExit(
            f"'{path.name}' was measured elsewhere: it differs in {', '.join(other)}. "
            "Choose another --file, or delete that one."
        )
    return record
