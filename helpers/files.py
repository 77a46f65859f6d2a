"""Files that are written whole or not at all, the hashes that records carry, the small files kept for a reader,
lines that fit a page, and numbers of things in words.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from numbers import Integral
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


PAGE = 96  # columns of a notebook's page: what a cell prints is no wider


def say(*parts: object) -> None:
    """Print as `print` does, in lines that fit the page (`wrapped`)."""
    print(wrapped(" ".join(map(str, parts))))


def wrapped(text: str) -> str:
    """Return a text whose lines fit the page: a longer one goes on below, set in by four columns.

    Lines that fit stay as they are, tables too. A word is never cut, so that a path can be copied.
    """
    return "\n".join(line if len(line) <= PAGE else _folded(line) for line in text.split("\n"))


def _folded(line: str) -> str:
    indent = " " * (len(line) - len(line.lstrip()) + 4)
    return fill(line, PAGE, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def counted(n: int, thing: str, *rest: str) -> str:
    """A number of things in words: "1 seed", "2,000 seeds"; ``rest`` are words for one and for several ("is", "are")."""
    things = f"{thing}es" if thing.endswith("s") else f"{thing}s"
    return " ".join([f"{n:,}", thing, *rest[:1]] if n == 1 else [f"{n:,}", things, *rest[1:]])


def read_record(place: Path, wanted_format: int) -> dict:
    """A JSON record that carries its own hash, without it.

    Raises:
        ValueError: no record, one that was changed, or one of another format.
        OSError: it cannot be read.
    """
    return verified(read_json(place), wanted_format, place.name)


def verified(record: dict, wanted_format: int, name: str) -> dict:
    """A record that carries its own hash, checked and without it. ``name`` is where it stood, for the ValueError."""
    if not isinstance(record, dict) or record.pop("own_sha256", None) != record_hash(record):
        raise ValueError(f"{name} was changed")
    if record.get("format") != wanted_format:
        raise ValueError(f"format {record.get('format')}, this course reads {wanted_format}")
    return record


def record_hash(record: dict) -> str:
    """SHA-256 over a record that JSON can hold, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def as_path(place, what: str) -> Path:
    """Return a place as a path; ``what`` names it where it is none.

    Raises:
        TypeError: no str and no path.
    """
    if not isinstance(place, (str, os.PathLike)):
        raise TypeError(f"{what} is a path, a str or a pathlib.Path; found {type(place).__name__}.")
    return Path(place)


def require_whole(number, what: str, least: int = 1) -> None:
    """Raise ValueError unless this is a whole number, ``least`` or more; ``what`` says of what, as the words before "a"."""
    if not isinstance(number, Integral) or isinstance(number, bool) or number < least:
        raise ValueError(f"{what}, a whole number of {least} or more; found {number!r}.")


def require_each(things, kind: type, what: str, least: int = 0) -> list:
    """Return several things of one kind as a list; ``what`` says what they are, as the words before "a list".

    Raises:
        TypeError: no list, or one with something else in it.
        ValueError: fewer than ``least``.
    """
    several = isinstance(things, Iterable) and not isinstance(things, (str, bytes, Mapping))
    found = list(things) if several else None
    odd = [one for one in found or [] if not isinstance(one, kind)]
    if found is None or odd:
        raise TypeError(f"{what}, a list of {kind.__name__}; found {seen((odd or [things])[0])}.")
    if len(found) < least:
        raise ValueError(f"{what}, a list of {counted(least, kind.__name__)} or more; found {len(found)}.")
    return found


def require_named(things, kind: type, what: str, least: int = 1) -> None:
    """Raise TypeError or ValueError unless this is a dict of name to one ``kind``; ``what`` is as for `require_each`."""
    if not isinstance(things, Mapping):
        raise TypeError(f"{what}, a dict of name to {kind.__name__}; found {seen(things)}.")
    odd = [one for one in things.values() if not isinstance(one, kind)]
    if odd:
        raise TypeError(f"{what}, a dict of name to {kind.__name__}; found {seen(odd[0])} in it.")
    if len(things) < least:
        raise ValueError(f"{what}, a dict of {counted(least, 'name')} or more; found {len(things)}.")


def require_kind(thing, kind: type, what: str) -> None:
    """Raise TypeError unless this is one ``kind``; ``what`` says what it is, as the words before its kind's name."""
    if not isinstance(thing, kind):
        raise TypeError(f"{what}, one {kind.__name__}; found {seen(thing)}.")


def seen(thing) -> str:
    """How a message shows what was given: its repr, on one line, cut where that is long."""
    return " ".join(repr(thing).split())[:80]


def file_hash(path: str | Path) -> str:
    """SHA-256 of a file, as 64 hex digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def bytes_hash(tensor: torch.Tensor) -> str:
    """Return the SHA-256 of a tensor's bytes alone, as 64 hex digits: records of texts carry it.

    `freezing.tensor_hash` also hashes type and shape, so the two never agree.
    """
    return hashlib.sha256(tensor_bytes(tensor)).hexdigest()


def read_json(path: str | Path, expected: type = dict) -> Any:
    """Read a JSON file that must hold one ``expected`` (dict or list).

    Raises:
        ValueError: the file is empty, half, too deeply nested, or of another form; it is named.
        OSError: it is not there, or cannot be read.
    """
    path = Path(path)
    try:
        found = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"'{path}' is damaged: it is no JSON that can be read ({error})") from error
    if not isinstance(found, expected):
        kind = {dict: "an object", list: "a list"}[expected]
        raise ValueError(f"'{path}' is damaged: expected was {kind}, found a {type(found).__name__}")
    return found


def write_json(path: str | Path, value) -> None:
    """Write JSON atomically, as `write_text` does."""
    write_text(path, json.dumps(value, indent=1, allow_nan=True) + "\n")


def write_text(path: str | Path, text: str) -> None:
    """Write a text file atomically: a reader sees the old file or the new one, never half of it."""
    with _replacement(Path(path)) as partial:
        partial.write_text(text, encoding="utf-8")


def write_tensors(
    path: str | Path, tensors: dict[str, torch.Tensor], header: dict[str, str] | None = None
) -> None:
    """Write a safetensors file atomically: the old file stays until the new one is whole and on the disk.

    Args:
        tensors: name to tensor, no two of them sharing memory; moved to the CPU for saving.
        header: texts to keep beside the tensors, read back as safetensors' metadata.

    Raises:
        OSError, SafetensorError: the disk is full, or the place cannot be written.
    """
    with _replacement(Path(path)) as partial:
        from safetensors.torch import save_file

        save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, partial, header)


@contextmanager
def _replacement(path: Path) -> Iterator[Path]:
    """A new file beside ``path`` that takes its place at the end, on the disk and at once; gone after an error."""
    partial = _new_file(path)
    rights = partial.stat().st_mode
    try:
        yield partial
        if partial.stat().st_mode != rights:  # safetensors puts a file there that its owner alone may read
            partial.chmod(stat.S_IMODE(rights))
        _flush(partial)
        os.replace(partial, path)
        _flush(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def _new_file(path: Path) -> Path:
    """An empty file that was not there before: no file of a reader's is written over, and no link is followed."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    while True:
        try:
            os.close(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
            return partial
        except FileExistsError:
            partial = path.with_name(f".{path.name}.{secrets.randbelow(10**12)}")


def _flush(path: Path) -> None:
    """Ask the system to put a file, or a folder's list of names, on the disk now.

    Windows writes through descriptors alone that may write, and opens no folder; some network drives flush
    no folder either. A rename is then as safe as that system makes it.
    """
    if path.is_dir():
        try:
            _sync(path, os.O_RDONLY)
        except OSError as error:
            if error.errno not in (
                errno.EACCES,
                errno.EPERM,
                errno.EBADF,
                errno.EINVAL,
                errno.ENOTSUP,
                errno.EISDIR,
            ):
                raise
    else:
        _sync(path, os.O_RDWR)


def _sync(path: Path, how: int) -> None:
    descriptor = os.open(path, how)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class NoValuesError(ValueError):
    """A tensor that has a shape and no values. The message says what to do."""


def require_values(tensor: torch.Tensor) -> None:
    """Raise NoValuesError for a tensor on the meta device."""
    if tensor.is_meta:
        shape = " x ".join(map(str, tensor.shape)) or "one number"
        raise NoValuesError(
            f"A tensor ({shape}) is on the meta device: it has a shape and no values. Load the model with its weights."
        )


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    """The raw bytes of a tensor, in row order, whatever its type or device.

    Raises:
        NoValuesError: it is on the meta device, so it has none.
    """
    require_values(tensor)
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    import torch

    return memoryview(flat.view(torch.uint8).numpy())


def tensor_hash(tensor: torch.Tensor) -> str:
    """SHA-256 over a tensor's type, shape and bytes."""
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    digest.update(tensor_bytes(tensor))
    return digest.hexdigest()


def read_kept(path: Path, readable: Callable[[Any], dict]) -> dict:
    """Return what can be read of a JSON file; ``{}`` where there is no file.

    Where that is not all, the file is moved to ``<name>.damaged`` (then ``<name>.damaged-2``, and so on), what
    could be read takes its place, and one line says so.

    Args:
        readable: from the content to the part of it that has the right form; ``{}`` where nothing has.
    """
    try:
        found = json.loads(path.read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except RecursionError:
        return _put_aside(path, {}, "it is nested too deeply")
    except ValueError as error:  # no JSON, or no UTF-8
        return _put_aside(path, {}, str(error))
    except OSError as error:
        return _put_aside(path, {}, error.strerror or str(error))
    good = readable(found)
    return (
        good if good == found else _put_aside(path, good, "not all of it has the form that is expected there")
    )


def keep(path: Path, content: dict) -> bool:
    """Write a reader's file whole; say in one line where that cannot be done, and return False."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, content)
    except OSError as error:
        print(
            f"({path.name} could not be kept: {error.strerror or error}. COURSE_BUILD names another build folder.)"
        )
        return False
    return True


def _put_aside(path: Path, good: dict, fault: str) -> dict:
    aside = _free(path)
    try:
        os.replace(path, aside)
    except OSError as error:
        print(
            f"{path.name} in the build folder cannot be read ({fault}), and cannot be put aside "
            f"({error.strerror or error}). The course goes on without it."
        )
        return good
    if good:
        keep(path, good)
    rest = "What could be read is kept." if good else "It begins anew."
    print(f"{path.name} in the build folder cannot be read ({fault}). It is now {aside.name}. {rest}")
    return good


def _free(path: Path) -> Path:
    """The first of ``<name>.damaged``, ``<name>.damaged-2``, … that is not taken."""
    aside, n = path.with_name(f"{path.name}.damaged"), 1
    while os.path.lexists(aside):
        n += 1
        aside = path.with_name(f"{path.name}.damaged-{n}")
    return aside
