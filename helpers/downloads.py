"""Fetch books over the network: checked, retried, kept, and resumed after a cut connection.

Beside each file stands ``NAME.json`` with its address, size and SHA-256. A file is
downloaded under a temporary name, checked, then renamed: NAME is whole, or not there.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

from helpers.editions import course_form, plain_quotes, strip_licence
from helpers.profiles import Gutenberg, downloads_dir

GUTENBERG_URL = "https://www.gutenberg.org/cache/epub/{number}/pg{number}.txt"
GUTENBERG_TITLES = {11: "Alice's Adventures in Wonderland", 12: "Through the Looking-Glass",
                    **dict.fromkeys(range(2147, 2152), "The Works of Edgar Allan Poe")}
WORTH_RETRYING = {408, 416, 425, 429, 500, 502, 503, 504}
TIMEOUT = 30  # seconds without an answer
OFFLINE = ("COURSE_PROFILE=tiny needs no network; or put alice.txt and edgar.txt into a folder "
           "and set COURSE_TEXTS to it.")


class TextError(ValueError):
    """A text that cannot be used. The message says what was found and what to do."""


class DownloadError(TextError):
    """A book that could not be fetched, or is not the book that was asked for."""


class _Temporary(Exception):
    """A failure that may be gone at the next try."""


# --- fetch -------------------------------------------------------------------------


def fetch(url: str, folder: str | Path, *, title: str | None = None, min_bytes: int = 10_000,
          tries: int = 3, wait: float = 1.0) -> Path:
    """Download a text once; later calls return the kept file after checking its hash.

    Args:
        url: http or https address; its last part names the file.
        title: must occur in the text; case, spacing and the form of quotes do not matter.
        min_bytes: a smaller answer is an error page, not a book.
        tries: attempts in all when the connection fails or the server is busy.
        wait: seconds before the second try; doubled before each one after it.

    Raises:
        DownloadError: unreachable, refused, too small, another text, or changed since
            it was first fetched. A file that is already there stays as it is.
    """
    final = Path(folder) / _file_name(url)
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        if final.exists():
            _check(final, final, url, title, min_bytes)
        else:
            part = _download(url, final, tries, wait)
            _check(part, final, url, title, min_bytes)
            os.replace(part, final)
    except OSError as error:
        raise DownloadError(f"Cannot keep {url} as '{final}': {error}. Free some space, or choose another "
                            "folder with COURSE_DATA.") from error
    return final


def _file_name(url: str) -> str:
    address = urllib.parse.urlsplit(url)
    name = Path(address.path).name
    if address.scheme not in ("http", "https") or not address.netloc or not name:
        raise DownloadError(f"'{url}' is not the address of a file. Give https://SERVER/…/NAME.txt.")
    return name


def _download(url: str, final: Path, tries: int, wait: float) -> Path:
    part = final.with_name(f".{final.name}.part")
    for attempt in range(1, tries + 1):
        try:
            _receive(url, part)
            return part
        except _Temporary as error:
            if attempt == tries:
                raise DownloadError(f"Could not download {url}: {error}. Tried {tries} times. Check the connection "
                                    f"and run again: it goes on where it stopped. {OFFLINE}") from error
        time.sleep(wait * 2 ** (attempt - 1))
    raise DownloadError(f"tries is {tries}. Give 1 or more.")


def _receive(url: str, part: Path) -> None:
    """One attempt. What arrives is added to ``part``, if the server says it is still the same file."""
    mark = part.with_name(part.name + ".mark")  # the server's name for this version of the file
    version = mark.read_text("utf-8") if part.exists() and mark.exists() else ""
    have = part.stat().st_size if version else 0
    resume = {"Range": f"bytes={have}-", "If-Range": version} if have else {}
    request = urllib.request.Request(url, headers={"User-Agent": "frozen-attention-course", **resume})
    with _open(request, part) as response:
        resumed = response.status == 206
        start = have if resumed else 0
        if not resumed:
            part.unlink(missing_ok=True)  # before the mark: a kill in between must not pair old bytes with a new mark
            mark.write_text(_version(response), "utf-8")
        expected = response.headers.get("Content-Length")
        with open(part, "ab" if resumed else "wb") as file:
            while block := _read(response):
                file.write(block)
    received = part.stat().st_size - start
    if expected is not None and received != int(expected):
        raise _Temporary(f"the connection was cut after {start + received:,} of {start + int(expected):,} bytes")


def _open(request: urllib.request.Request, part: Path):
    try:
        return urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416:  # what we have is longer than the file: begin again
            part.unlink(missing_ok=True)
        if error.code in WORTH_RETRYING:
            raise _Temporary(f"the server answered {error.code} {error.reason}") from error
        raise DownloadError(f"The server refused {request.full_url}: {error.code} {error.reason}. "
                            f"Check the address. {OFFLINE}") from error
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise _Temporary(f"{request.host} cannot be reached ({reason})") from error


def _read(response) -> bytes:
    try:
        return response.read(1 << 16)
    except (OSError, http.client.HTTPException) as error:
        raise _Temporary(f"the connection broke ({error or type(error).__name__})") from error


def _version(response) -> str:
    """What the server calls this version; "" if it does not say, or only weakly: then nothing can be resumed."""
    etag = response.headers.get("ETag", "")
    return etag if etag and not etag.startswith("W/") else response.headers.get("Last-Modified", "")


def _check(path: Path, final: Path, url: str, title: str | None, min_bytes: int) -> None:
    """Text, size, title and remembered hash; what comes for the first time is remembered.

    A refused download is deleted; a refused file that was already there is not.
    """
    raw, record = path.read_bytes(), final.with_name(final.name + ".json")
    found, known = hashlib.sha256(raw).hexdigest(), _remembered(record)
    problem = _problem(raw, title, min_bytes)
    path.with_name(path.name + ".mark").unlink(missing_ok=True)
    if path != final and (problem or known not in (None, found)):
        path.unlink()
    if problem:
        what, advice = ((f"'{final}'", "Delete it to download it again") if path == final
                        else (f"What {url} sent", "Check the address"))
        raise DownloadError(f"{what} is not the book: {problem}. {advice}. {OFFLINE}")
    if known not in (None, found):
        raise DownloadError(f"The text of '{final}' has changed: its SHA-256 is {found[:12]}…, and {known[:12]}… was "
                            f"remembered when it was first fetched. Delete {final.name} to download it again, and "
                            f"{record.name} as well to accept another text.")
    if known is None:
        _write_whole(record, json.dumps({"url": url, "sha256": found, "bytes": len(raw)}, indent=1) + "\n")


def _problem(raw: bytes, title: str | None, min_bytes: int) -> str | None:
    if len(raw) < min_bytes:
        return f"it has {len(raw):,} bytes, at least {min_bytes:,} were expected; it begins {raw[:40]!r}"
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        return f"it is not UTF-8: byte 0x{raw[error.start]:02x} at offset {error.start:,}"
    if title and _folded(title) not in _folded(text):
        return f"the title \"{title}\" does not occur in it; it begins {text[:40]!r}"
    return None


def _folded(text: str) -> str:
    return re.sub(r"\s+", " ", plain_quotes(text)).casefold()


def _remembered(record: Path) -> str | None:
    try:
        return json.loads(record.read_text("utf-8"))["sha256"]
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise DownloadError(f"'{record}' cannot be read ({error}). Delete it to check the book anew.") from error


def _write_whole(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(text, "utf-8")
    os.replace(partial, path)


# --- Project Gutenberg -------------------------------------------------------------


def text_path(source: str | Path | Gutenberg) -> Path:
    """The file of a profile's text; books are downloaded first, if they are not there yet."""
    return gutenberg(source.numbers, downloads_dir()) if isinstance(source, Gutenberg) else Path(source)


def gutenberg(numbers: tuple[int, ...], folder: str | Path, url: str = GUTENBERG_URL, **options) -> Path:
    """Download books, take the licence off, and join them into one file in the course's form.

    Args:
        numbers: Project Gutenberg's numbers, joined in this order.
        url: address with ``{number}`` in it.
        options: passed on to `fetch`.

    Raises:
        DownloadError: as `fetch`; or a book whose START and END lines are missing.
    """
    folder, books = Path(folder), []
    for number in numbers:
        path = fetch(url.format(number=number), folder, title=GUTENBERG_TITLES.get(number), **options)
        text = path.read_text("utf-8-sig")
        book = strip_licence(text)
        if book == text:
            raise DownloadError(f"'{path}' has no '*** START OF … ***' and '*** END OF … ***' lines, so its licence "
                                "cannot be told from the book. Delete it to download it again.")
        books.append(course_form(book))
    joined = folder / f"gutenberg-{'-'.join(map(str, numbers))}.txt"
    _write_whole(joined, "\n\n".join(books) + "\n")
    return joined
