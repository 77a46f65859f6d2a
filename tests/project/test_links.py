"""The list of external addresses keeps step with the course, and its script tells the truth."""

import re
import urllib.error
from datetime import date

import pytest

from publishing import links as check_links
from publishing.links import ROOT, UNSEEN


def small_course(folder):
    """A course with two addresses, one of which was seen."""
    (folder / "docs").mkdir()
    (folder / "pyproject.toml").write_text('[tool.frozen-attention]\nrepository = "ada/course"\n')
    (folder / "README.md").write_text(
        "See [a](https://example.org/a), https://example.org/b. "
        "Ours: https://github.com/ada/course/blob/main/README.md"
    )
    check_links.write_list(
        folder, {"https://example.org/a": "2026-01-02", "https://example.org/gone": UNSEEN}
    )
    return folder


def test_every_external_address_is_in_the_list():
    assert set(check_links.read_list(ROOT)) == check_links.external(ROOT), "run course links"


def test_the_list_says_when_each_was_seen():
    for day in check_links.read_list(ROOT).values():
        assert day == UNSEEN or date.fromisoformat(day) <= date.today()


def test_the_list_is_as_the_script_writes_it():
    lines = (ROOT / check_links.LIST).read_text("utf-8").splitlines()
    kept = [line for line in lines if line.startswith('"')]
    assert kept == sorted(kept) and "\n".join(lines).startswith(check_links.HEADER.strip())


def test_an_address_ends_before_the_stop_behind_it():
    text = "(https://example.org/a_b), **https://example.org/c.txt**. `https://example.org` [x](https://e.org/d#e)"
    assert check_links.addresses(text) == {
        "https://example.org/a_b",
        "https://example.org/c.txt",
        "https://example.org",
        "https://e.org/d#e",
    }


@pytest.mark.parametrize(
    ("address", "own"),
    [
        ("https://github.com/ada/course", True),
        ("https://github.com/ada/course/blob/main/a.md", True),
        ("https://github.com/ada/course-two", False),
        ("https://ada.github.io/course/_static/a.html", True),
        ("https://ada.github.io/course-two/a.html", False),
        ("https://example.org/ada", False),
    ],
)
def test_the_courses_own_addresses_are_known(address, own):
    assert check_links.is_own(address, "ada/course") is own


def test_an_answer_is_dated_and_a_silence_is_told(tmp_path, monkeypatch):
    course = small_course(tmp_path)
    monkeypatch.setattr(
        check_links, "problem", lambda address: "status 404" if address.endswith("/a") else None
    )
    failures = check_links.check(course, "2026-11-24")
    assert failures == ["https://example.org/a: status 404 (last seen: 2026-01-02)"]
    seen = check_links.read_list(course)
    assert (seen["https://example.org/a"], seen["https://example.org/b"]) == ("2026-01-02", "2026-11-24")
    assert "https://example.org/gone" not in seen and not any("ada/course" in address for address in seen)


def test_an_error_of_the_network_is_a_reason_not_a_crash(monkeypatch):
    def silent(*arguments, **options):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(check_links.urllib.request, "urlopen", silent)
    assert check_links.problem("https://example.org") == "no route to host"


def test_an_answer_with_an_error_status_is_none(monkeypatch):
    def refused(request, timeout):
        raise urllib.error.HTTPError(request.full_url, 404, "Not Found", {}, None)

    monkeypatch.setattr(check_links.urllib.request, "urlopen", refused)
    assert re.fullmatch("status 404", check_links.problem("https://example.org"))
