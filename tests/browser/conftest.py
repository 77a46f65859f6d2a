"""The browser of the tests in this folder, one for each file."""

import pytest

from support import lab
from support.needs import require_or_skip
from support.pages import needed


@pytest.fixture(scope="module")
def browser():
    needed("playwright", "axe_playwright_python")
    from playwright.sync_api import sync_playwright

    path = lab.chromium()
    if path is None:
        require_or_skip("no browser here: install Chromium, on Debian with `apt-get install chromium`")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path)
        yield started
        started.close()
