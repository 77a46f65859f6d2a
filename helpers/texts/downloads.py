"""Fetch books over the network: checked, retried, kept, and resumed after a cut connection.

Beside each file stands ``NAME.json`` with its address, size and SHA-256. A file is
downloaded under a temporary name, checked, then renamed: NAME is whole, or not there.
A server is not believed: type, length, range, version and end of what it sends are checked.
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

from helpers.files import as_path, counted
from helpers.profiles import Gutenberg, downloads_dir

# --- Bring a downloaded book into the form of the course's own texts: no licence, plain typography ---


# A long title goes on in the next lines, to the stars that end it.
MARK = re.compile(
    r"^[ \t]*\*\*\* ?(START|END) OF (?:THE|THIS) PROJECT GUTENBERG E(?:BOOK|TEXT)"
    r"(?:[^\n*]*(?:\n[^\n*]+){0,3}\*\*\*[^\n]*|[^\n]*)$",
    re.M | re.I,
)


def strip_licence(text: str) -> str:
    """The books between Project Gutenberg's START and END lines, joined; any other text unchanged.

    A text whose START and END lines do not take turns is left as it is.
    """
    marks = list(MARK.finditer(text))
    if not marks or [m[1].upper() for m in marks] != ["START", "END"] * (len(marks) // 2):
        return text
    books = [
        text[start.end() : end.start()].strip("\n")
        for start, end in zip(marks[::2], marks[1::2], strict=True)
    ]
    return "\n\n".join(books) + "\n"


# Words of the licence itself, whatever lines stand around it, in old editions and new ones.
LICENCE = re.compile(
    r"at\s+no\s+cost\s+and\s+with\s+almost\s+no\s+restrictions\s+whatsoever"
    r"|START:\s+FULL\s+LICENSE|THE\s+FULL\s+PROJECT\s+GUTENBERG(?:-tm|™)?\s+LICENSE",
    re.I,
)
SMALL_PRINT = re.compile(r"^\*+(?:START\*+|END ?\*?)THE SMALL PRINT!", re.M | re.I)  # until about 2003


def licence_problem(text: str) -> str | None:
    """Say why Project Gutenberg's licence cannot be told from the book; None where it can, or there is none."""
    book = strip_licence(text)
    if book == text and (found := MARK.search(text)):
        return f"its START and END lines do not take turns ({len(MARK.findall(text))} found, the first is {found[0]!r})"
    if book == text and SMALL_PRINT.search(text):
        return "its small print is of the older form, which no line ends"
    if found := LICENCE.search(book):
        line = book.count("\n", 0, found.start()) + 1
        words = " ".join(found[0].split())
        return f"no START and END lines of the known form set it apart ({words!r}, line {line:,} of the rest)"
    return None


def course_form(text: str) -> str:
    """One paragraph a line, straight quotes, ``--`` for dashes; indented lines (verse) keep their breaks.

    Authors must differ in style, not in the typography of their editions.
    """
    paragraphs = re.split(r"\n\s*\n", plain_quotes(text).replace("_", "").strip("\n"))
    return "\n\n".join(_unwrapped(p) for p in paragraphs if p.strip())


def plain_quotes(text: str) -> str:
    """Typographic quotes and dashes as plain ones."""
    return text.translate(
        str.maketrans(
            {
                "\u2018": "'",
                "\u2019": "'",
                "\u201c": '"',
                "\u201d": '"',
                "\u2014": "--",
                "\u2013": "-",
                "\u00a0": " ",
            }
        )
    )


def _unwrapped(paragraph: str) -> str:
    lines = [line for line in paragraph.splitlines() if line.strip()]
    is_verse = all(line.startswith(" ") for line in lines)
    return ("\n" if is_verse else " ").join(line.strip() for line in lines)


GUTENBERG_URL = "https://www.gutenberg.org/cache/epub/{number}/pg{number}.txt"
GUTENBERG_TITLES = {
    11: "Alice's Adventures in Wonderland",
    12: "Through the Looking-Glass",
    **dict.fromkeys(range(2147, 2152), "The Works of Edgar Allan Poe"),
}
WORTH_RETRYING = {408, 416, 425, 429, 500, 502, 503, 504}
TIMEOUT = 30  # seconds without an answer
MAX_SECONDS = 600  # for one download, however steadily it drips
MAX_BYTES = 50_000_000  # no book is larger
BOOK_TYPES = ("text/plain", "application/octet-stream")
OFFLINE = (
    "COURSE_PROFILE=tiny needs no network; or put alice.txt and edgar.txt into a folder "
    "and set COURSE_TEXTS to it."
)


class TextError(ValueError):
    """A text that cannot be used. The message says what was found and what to do."""


class DownloadError(TextError):
    """A book that could not be fetched, or is not the book that was asked for."""


class _Temporary(Exception):
    """A failure that may be gone at the next try."""


# --- fetch -------------------------------------------------------------------------


def fetch(
    url: str,
    folder: str | Path,
    *,
    title: str | None = None,
    min_bytes: int = 10_000,
    tries: int = 3,
    wait: float = 1.0,
    licensed: bool = False,
) -> Path:
    """Download a text once; later calls return the kept file after checking its hash.

    Args:
        url: http or https address; its last part names the file.
        title: must occur in the text; case, spacing and the form of quotes do not matter.
        min_bytes: a smaller answer is an error page, not a book.
        tries: attempts in all when the connection fails or the server is busy.
        wait: seconds before the second try; doubled before each one after it.
        licensed: the text must have Project Gutenberg's START and END lines.

    Raises:
        DownloadError: unreachable, refused, too small, too large, too slow, of another type, of
            unknown length, another text, or changed since it was first fetched. A file that is
            already there stays as it is.
    """
    final = Path(folder) / _file_name(url)
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        if final.exists():
            _check(final, final, url, title, min_bytes, licensed)
        else:
            part = _download(url, final, tries, wait)
            _check(part, final, url, title, min_bytes, licensed)
            os.replace(part, final)
    except OSError as error:
        raise DownloadError(
            f"Cannot keep {url} as '{final}': {error}. Free some space, or choose another "
            "folder with COURSE_DATA."
        ) from error
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
                raise DownloadError(
                    f"Could not download {url}: {error}. Tried {counted(tries, 'time')}. Check the connection "
                    f"and run again: it goes on where it stopped. {OFFLINE}"
                ) from error
        time.sleep(wait * 2 ** (attempt - 1))
    raise DownloadError(f"tries is {tries}. Give 1 or more.")


def _receive(url: str, part: Path) -> None:
    """One attempt. What arrives is added to ``part``, if the server says it is still the same file."""
    mark = part.with_name(part.name + ".mark")  # the server's name for this version of the file
    version = mark.read_text("utf-8") if part.exists() and mark.exists() else ""
    have = part.stat().st_size if version else 0
    resume = {"Range": f"bytes={have}-", "If-Range": version} if have else {}
    request = urllib.request.Request(url, headers={"User-Agent": "frozen-attention-course", **resume})
    give_up = time.monotonic() + MAX_SECONDS
    with _open(request, part) as response:
        resumed = response.status == 206
        problem = _wrong_range(response, have, version) if resumed else None
        if problem or not resumed:
            # before the mark: a kill in between must not pair old bytes with a new mark
            part.unlink(missing_ok=True)
        if problem:
            raise _Temporary(f"the server sent another part of the file than was asked for ({problem})")
        _check_answer(url, response)
        if not resumed:
            mark.write_text(_version(response), "utf-8")
        start = have if resumed else 0
        total = _total(response, start)
        with open(part, "ab" if resumed else "wb") as file:
            while block := _read(response):
                file.write(block)
                _check_limits(url, file.tell(), give_up)
    received = part.stat().st_size
    if total is not None and received != total:
        raise _Temporary(f"the connection was cut after {received:,} of {total:,} bytes")


def _wrong_range(response, have: int, version: str) -> str | None:
    """What is wrong with the answer to a request for the rest of a file, or None."""
    found = response.headers.get("Content-Range", "")
    if not have:
        return "no part was asked for"
    if _version(response) != version:
        return f"version {_version(response)!r}, not {version!r}"
    if not re.fullmatch(rf"bytes {have}-\d+/\d+", found):
        return f"Content-Range {found!r}, not 'bytes {have}-…'"
    return None


def _check_answer(url: str, response) -> None:
    kind = response.headers.get_content_type() if "Content-Type" in response.headers else BOOK_TYPES[0]
    if response.status not in (200, 206):
        raise DownloadError(
            f"The server answered {response.status} {response.reason} to {url}. Check the address. {OFFLINE}"
        )
    if kind not in BOOK_TYPES:
        raise DownloadError(
            f"What {url} sends is not the book: its type is {kind}, not text/plain. "
            f"Check the address. {OFFLINE}"
        )


def _total(response, start: int) -> int | None:
    """The bytes of the whole file as the server states them; None for a chunked answer, whose end is marked."""
    if getattr(response, "chunked", False):
        return None
    stated = response.headers.get("Content-Length", "")
    if not re.fullmatch(r"\d{1,12}", stated):
        raise DownloadError(
            f"The server does not say how long the file is (Content-Length {stated!r}), so a cut could "
            f"not be told from its end. Download it by hand. {OFFLINE}"
        )
    total = start + int(stated)
    whole = re.search(r"/(\d+)$", response.headers.get("Content-Range", ""))
    if whole and int(whole[1]) != total:
        raise _Temporary(f"the server's lengths do not fit: {total:,} bytes and {int(whole[1]):,}")
    if total > MAX_BYTES:
        raise _too_large(f"{total:,}")
    return total


def _check_limits(url: str, n_bytes: int, give_up: float) -> None:
    if n_bytes > MAX_BYTES:
        raise _too_large(f"over {MAX_BYTES:,}")
    if time.monotonic() > give_up:
        raise DownloadError(
            f"{url} took more than {MAX_SECONDS} seconds: {n_bytes:,} bytes came. "
            f"Run again: it goes on where it stopped. {OFFLINE}"
        )


def _too_large(found: str) -> DownloadError:
    return DownloadError(
        f"The server sends {found} bytes, and no book has more than {MAX_BYTES:,}. "
        f"Check the address. {OFFLINE}"
    )


class _SameScheme(urllib.request.HTTPRedirectHandler):
    """Follow no redirect to another scheme, but from http to https."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        schemes = req.type, urllib.parse.urlsplit(newurl).scheme
        if schemes[0] != schemes[1] and schemes != ("http", "https"):
            raise DownloadError(
                f"{req.full_url} sends on to {newurl}, from {schemes[0]} to {schemes[1]}: "
                f"not followed. Check the address. {OFFLINE}"
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _open(request: urllib.request.Request, part: Path):
    try:
        return urllib.request.build_opener(_SameScheme).open(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416:  # what we have is longer than the file: begin again
            part.unlink(missing_ok=True)
        if error.code in WORTH_RETRYING:
            raise _Temporary(f"the server answered {error.code} {error.reason}") from error
        raise DownloadError(
            f"The server refused {request.full_url}: {error.code} {error.reason}. "
            f"Check the address. {OFFLINE}"
        ) from error
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise _Temporary(f"{request.host} cannot be reached ({reason})") from error


def _read(response) -> bytes:
    try:
        return response.read1(1 << 16)  # read would wait for all of it, however slowly it drips
    except (OSError, http.client.HTTPException) as error:
        raise _Temporary(f"the connection broke ({error or type(error).__name__})") from error


def _version(response) -> str:
    """What the server calls this version; "" if it does not say, or only weakly: then nothing can be resumed."""
    etag = response.headers.get("ETag", "")
    return etag if etag and not etag.startswith("W/") else response.headers.get("Last-Modified", "")


def _check(path: Path, final: Path, url: str, title: str | None, min_bytes: int, licensed: bool) -> None:
    """Text, size, title and remembered hash; what comes for the first time is remembered.

    A refused download is deleted; a refused file that was already there is not.
    """
    raw, record = path.read_bytes(), final.with_name(final.name + ".json")
    found, known = hashlib.sha256(raw).hexdigest(), _remembered(record)
    problem = _problem(raw, title, min_bytes, licensed)
    path.with_name(path.name + ".mark").unlink(missing_ok=True)
    if path != final and (problem or known not in (None, found)):
        path.unlink()
    if problem:
        what, advice = (
            (f"'{final}'", "Delete it to download it again")
            if path == final
            else (f"What {url} sent", "Check the address")
        )
        raise DownloadError(f"{what} is not the book: {problem}. {advice}. {OFFLINE}")
    if known not in (None, found):
        raise DownloadError(
            f"The text of '{final}' has changed: its SHA-256 is {found[:12]}…, and {known[:12]}… was "
            f"remembered when it was first fetched. Delete {final.name} to download it again, and "
            f"{record.name} as well to accept another text."
        )
    if known is None:
        _write_whole(record, json.dumps({"url": url, "sha256": found, "bytes": len(raw)}, indent=1) + "\n")


def _problem(raw: bytes, title: str | None, min_bytes: int, licensed: bool) -> str | None:
    if len(raw) < min_bytes:
        return f"it has {len(raw):,} bytes, at least {min_bytes:,} were expected; it begins {raw[:40]!r}"
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        return f"it is not UTF-8: byte 0x{raw[error.start]:02x} at offset {error.start:,}"
    if title and _folded(title) not in _folded(text):
        return f'the title "{title}" does not occur in it; it begins {text[:40]!r}'
    if licensed and strip_licence(text) == text:
        return (
            "it has no '*** START OF … ***' and '*** END OF … ***' lines, so its licence cannot be told "
            "from the book"
        )
    return None


def _folded(text: str) -> str:
    return re.sub(r"\s+", " ", plain_quotes(text)).casefold()


def _remembered(record: Path) -> str | None:
    try:
        return json.loads(record.read_text("utf-8"))["sha256"]
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise DownloadError(
            f"'{record}' cannot be read ({error}). Delete it to check the book anew."
        ) from error


def _write_whole(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(text, "utf-8")
    os.replace(partial, path)


# --- Project Gutenberg -------------------------------------------------------------


def text_path(source: str | Path | Gutenberg) -> Path:
    """The file of a profile's text; books are downloaded first, if they are not there yet."""
    if isinstance(source, Gutenberg):
        return gutenberg(source.numbers, downloads_dir())
    return as_path(source, "The place of a text")


def gutenberg(numbers: tuple[int, ...], folder: str | Path, url: str = GUTENBERG_URL, **options) -> Path:
    """Download books, take the licence off, and join them into one file in the course's form.

    Beside it stands ``NAME.json`` with its SHA-256 and that of each book.

    Args:
        numbers: Project Gutenberg's numbers, joined in this order.
        url: address with ``{number}`` in it.
        options: passed on to `fetch`.

    Raises:
        DownloadError: as `fetch`; or a book whose START and END lines are missing.
    """
    folder, books, hashes = Path(folder), [], {}
    for number in numbers:
        path = fetch(
            url.format(number=number), folder, title=GUTENBERG_TITLES.get(number), licensed=True, **options
        )
        books.append(course_form(strip_licence(path.read_text("utf-8-sig"))))
        hashes[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    joined = folder / f"gutenberg-{'-'.join(map(str, numbers))}.txt"
    text = "\n\n".join(books) + "\n"
    record = {"sha256": hashlib.sha256(text.encode()).hexdigest(), "books": hashes}
    _write_whole(joined, text)
    _write_whole(joined.with_name(joined.name + ".json"), json.dumps(record, indent=1) + "\n")
    return joined
