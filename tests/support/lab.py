"""A JupyterLab of its own, started as `course lab` starts it, and a learner's hands in it.

What tests/browser/test_browser.py is written with. Nothing here waits for a fixed time: each step waits for what a
reader would wait for, such as the number that appears beside a cell when it has run.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from playwright.sync_api import BrowserContext, ConsoleMessage, Locator, Page, Request, Route, expect

from publishing.kernel import KERNEL_SETTINGS, OFFLINE

ROOT = Path(__file__).resolve().parents[2]
SECONDS_FOR_A_STEP = 120  # a click, a page, a kernel: generous, for machines that are busy
SECONDS_FOR_A_RUN = 480  # a whole notebook
expect.set_options(timeout=1000 * SECONDS_FOR_A_STEP)
THEMES = {"light": "JupyterLab Light", "dark": "JupyterLab Dark"}
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PROMPT = ".jp-Notebook .jp-CodeCell .jp-InputPrompt"
BADGE = "https://colab.research.google.com/assets/colab-badge.svg"

# A reader who wants no news of Jupyter, and all cells in the page, also those far below: the checks look at all.
SETTINGS = {
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "notebook-extension/tracker": {"windowingMode": "none"},
}

# Each Python of the lab, the server and the kernels, notes the hosts that it asks for.
WATCH = """
import os, sys
LOCAL = {"", "localhost", "127.0.0.1", "::1", "0.0.0.0", "::"}
def watch(event, details):
    if event == "socket.getaddrinfo":
        host = details[0]
    elif event == "socket.connect" and isinstance(details[1], tuple):
        host = details[1][0]
    else:
        return
    host = host.decode() if isinstance(host, bytes) else str(host or "")
    if host not in LOCAL:
        with open(os.environ["COURSE_TEST_HOSTS"], "a") as file:
            file.write(host + "\\n")
sys.addaudithook(watch)
"""


class LabError(RuntimeError):
    """JupyterLab did not start. The message is what it said."""


def chromium() -> str | None:
    """The browser: Debian's chromium, or a Chrome that is installed under one of its usual names."""
    return next((path for path in map(shutil.which, BROWSERS) if path), None)


# --- the server --------------------------------------------------------------------


@dataclass(frozen=True)
class Lab:
    """A running JupyterLab.

    Attributes:
        url: address with a closing slash.
        token: what the address must carry.
        folder: holds its settings, and the build folder with the working copy of the notebooks.
    """

    url: str
    token: str
    folder: Path

    @property
    def copies(self) -> Path:
        """The working copy of the notebooks."""
        return self.folder / "build" / "lab"

    def address(self, name: str, workspace: str = "") -> str:
        """Of a notebook. A workspace of its own keeps the tabs of other notebooks closed."""
        place = f"workspaces/{workspace}/" if workspace else ""
        return f"{self.url}lab/{place}tree/{name}.ipynb?token={self.token}"

    def hosts(self) -> set[str]:
        """The hosts beyond this machine that its server and kernels asked for."""
        noted = self.folder / "hosts"
        return set(noted.read_text("utf-8").split()) if noted.exists() else set()


def environment(folder: Path) -> dict[str, str]:
    """A reader's, with nothing of this machine's Jupyter settings, and not offline: the lab must ask for nothing."""
    taken = {name for name in os.environ if name.startswith(("JUPYTER", "IPYTHON"))}
    taken |= {*OFFLINE, *KERNEL_SETTINGS} - {"OMP_WAIT_POLICY"}
    kept = {name: value for name, value in os.environ.items() if name not in taken}
    places = {f"JUPYTER_{name}_DIR": str(folder / name.lower()) for name in ("CONFIG", "DATA", "RUNTIME")}
    path = os.pathsep.join(filter(None, [str(folder / "watch"), str(ROOT), os.environ.get("PYTHONPATH")]))
    return (
        kept
        | places
        | {
            "IPYTHONDIR": str(folder / "ipython"),
            "COURSE_BUILD": str(folder / "build"),
            "COURSE_PROFILE": "tiny",
            "COURSE_TEST_HOSTS": str(folder / "hosts"),
            "PYTHONPATH": path,
        }
    )


def furnish(folder: Path) -> None:
    """Write settings, and what notes the hosts."""
    (folder / "watch").mkdir()
    (folder / "watch" / "sitecustomize.py").write_text(WATCH, "utf-8")
    for name, values in SETTINGS.items():
        extension, _, plugin = name.partition("/")
        place = folder / "config" / "lab" / "user-settings" / "@jupyterlab" / extension
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{plugin}.jupyterlab-settings").write_text(json.dumps(values), "utf-8")


@contextmanager
def running_lab(folder: Path) -> Iterator[Lab]:
    """`course lab` with this very Python, on a free port.

    Raises:
        LabError: it ended, or did not answer in time.
    """
    furnish(folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--no-browser", "--ip=127.0.0.1", f"--ServerApp.port={port}", "--ServerApp.port_retries=50"]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        options.append("--allow-root")  # containers of CI
    with open(folder / "lab.log", "wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "publishing.cli", "lab", *options],
            cwd=folder,
            env=environment(folder),
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        answer = _answer(process, folder)
        yield Lab(answer["url"], answer["token"], folder)
    finally:
        process.terminate()  # it ends its kernels first
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _answer(process: subprocess.Popen, folder: Path) -> dict[str, str]:
    """The address and token that the server writes down when it listens."""
    until = time.monotonic() + SECONDS_FOR_A_STEP
    while time.monotonic() < until and process.poll() is None:
        for file in (folder / "runtime").glob("jpserver-*.json"):
            try:
                return json.loads(file.read_text("utf-8"))
            except ValueError:
                pass  # half written: look again
        time.sleep(0.1)
    tail = (folder / "lab.log").read_text("utf-8", errors="replace")[-2000:]
    raise LabError(f"JupyterLab did not start (exit code {process.poll()}). It said:\n{tail}")


# --- the page ----------------------------------------------------------------------


@dataclass
class Seen:
    """What a page asked for and complained about."""

    hosts: set[str] = field(default_factory=set)
    errors: list[str] = field(default_factory=list)

    def request(self, request: Request) -> None:
        host = re.match(r"(?:https?|wss?)://([^/:?#]+)", request.url)
        if host and request.url != BADGE:
            self.hosts.add(host[1])

    def console(self, message: ConsoleMessage) -> None:
        if message.type == "error" and message.location.get("url") != BADGE:
            self.errors.append(message.text)

    def crash(self, error: Exception) -> None:
        self.errors.append(str(error))


class NotebookPage:
    """One notebook, opened in a browser."""

    def __init__(self, lab: Lab, context: BrowserContext, name: str, workspace: str = ""):
        self.lab, self.name, self.seen = lab, name, Seen()
        self.cells = json.loads((lab.copies / f"{name}.ipynb").read_text("utf-8"))["cells"]
        self.page: Page = context.new_page()
        self.page.set_default_timeout(1000 * SECONDS_FOR_A_STEP)
        self.page.on("request", self.seen.request)
        self.page.on("console", self.seen.console)
        self.page.on("pageerror", self.seen.crash)
        self.page.route(BADGE, self._without_badge)
        self.page.goto(lab.address(name, workspace))
        expect(self.cell(len(self.cells) - 1)).to_be_attached()
        self.wait_for_kernel()

    @staticmethod
    def _without_badge(route: Route) -> None:
        route.abort()  # the one picture that lies elsewhere: the badge for Colab

    def cell(self, which: str | int) -> Locator:
        """A cell by its id in the file, or by its place."""
        place = which if isinstance(which, int) else [c["id"] for c in self.cells].index(which)
        return self.page.locator(f'.jp-Notebook .jp-Cell[data-windowed-list-index="{place}"]')

    def wait_for_kernel(self) -> None:
        """Until the kernel is connected and has nothing to do. Without a kernel JupyterLab shows "idle" as well."""
        self.page.wait_for_function(CONNECTED, arg=f"{self.name}.ipynb", timeout=1000 * SECONDS_FOR_A_STEP)
        expect(self.page.locator(".jp-NotebookPanel .jp-KernelName")).to_contain_text("Python 3")
        idle = self.page.locator('.jp-NotebookPanel .jp-Notebook-ExecutionIndicator[data-status="idle"]')
        expect(idle).to_be_attached(timeout=1000 * SECONDS_FOR_A_RUN)

    def choose(self, menu: str, *items: str) -> None:
        """Click through the menu bar: ``choose("Run", "Run All Cells")``."""
        self.page.locator(".lm-MenuBar-itemLabel").get_by_text(menu, exact=True).click()
        for item in items:
            self.page.locator(".lm-Menu-itemLabel").get_by_text(item, exact=True).click()

    def prompts(self) -> list[str]:
        """What stands beside the code cells: "[3]:" when it ran, "[*]:" while it waits, "[ ]:" when it did not run."""
        return [text.strip() for text in self.page.locator(PROMPT).all_text_contents()]

    def run_all(self) -> None:
        """Start every cell, from the menu; `wait_until_all_ran` waits for them."""
        self.choose("Run", "Run All Cells")

    def restart_and_run_all(self) -> None:
        self.choose("Kernel", "Restart Kernel and Run All Cells…")
        self.page.locator(".jp-Dialog button.jp-mod-warn").click()

    def wait_until_started(self) -> None:
        """Until the last cell waits for its turn."""
        last = self.page.locator(PROMPT).last
        expect(last).to_contain_text("*")

    def wait_until_all_ran(self) -> None:
        """Until no cell waits any more."""
        waiting = self.page.locator(PROMPT, has_text="*")
        expect(waiting).to_have_count(0, timeout=1000 * SECONDS_FOR_A_RUN)

    def complaints(self) -> list[str]:
        """The error and stderr outputs of all cells."""
        kinds = ", ".join(
            f'.jp-Notebook .jp-OutputArea-output[data-mime-type="application/vnd.jupyter.{kind}"]'
            for kind in ("error", "stderr")
        )
        return self.page.locator(kinds).all_inner_texts()

    def run_cell(self, which: str | int, source: str | None = None) -> Locator:
        """Run a cell, after typing a new source into it, and return its output."""
        cell = self.cell(which)
        before = cell.locator(".jp-InputPrompt").inner_text()
        cell.locator(".cm-content").click()
        if source is not None:
            self.page.keyboard.press("ControlOrMeta+a")
            self.page.keyboard.insert_text(source)
        prompt = cell.locator(".jp-InputPrompt")
        self.page.keyboard.press("Control+Enter")
        expect(prompt).not_to_have_text(before)
        if (
            prompt.inner_text().strip() == "[ ]:"
        ):  # JupyterLab drops what comes before the page knows its kernel
            self.wait_for_kernel()
            self.page.keyboard.press("Control+Enter")
            expect(prompt).not_to_have_text("[ ]:")
        expect(prompt).to_have_text(re.compile(r"\[\d+\]"), timeout=1000 * SECONDS_FOR_A_RUN)
        return cell.locator(".jp-Cell-outputArea")

    def show(self, theme: str, width: int, height: int = 900) -> None:
        """Choose a theme from the menu, and the size of the window."""
        self.page.set_viewport_size({"width": 1280, "height": height})  # all menus fit
        if self.page.locator("body").get_attribute("data-jp-theme-name") != THEMES[theme]:
            self.choose("Settings", "Theme", THEMES[theme])
        expect(self.page.locator("body")).to_have_attribute("data-jp-theme-name", THEMES[theme])
        expect(self.page.locator("#jupyterlab-splash")).to_have_count(
            0
        )  # it covers the window while a theme loads
        self.page.set_viewport_size({"width": width, "height": height})

    def cut_off(self) -> list[str]:
        """What in a rendered text or output sticks out where no scrollbar reaches it."""
        return self.page.evaluate(CUT_OFF)

    def screenshot(self, which: str | int, path: Path) -> None:
        """The window as it looks with a cell at its upper end."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.cell(which).evaluate("cell => cell.scrollIntoView({block: 'start'})")
        self.page.screenshot(path=path)


# Does the server know a kernel for the notebook, with this page listening to it?
CONNECTED = """async notebook => {
  const answer = await fetch('/api/sessions');
  const sessions = answer.ok ? await answer.json() : [];
  return sessions.some(one => one.path === notebook && one.kernel.connections > 0);
}"""

# For each element: does an ancestor cut a part of it off, with no scrollbar between the two?
CUT_OFF = """() => {
  const panel = document.querySelector('.jp-NotebookPanel .jp-Notebook');
  const right = e => e.getBoundingClientRect().right;
  const cutter = e => {
    for (let up = e.parentElement; up; up = up.parentElement) {
      const over = getComputedStyle(up).overflowX;
      if (up === panel || over === 'hidden' || over === 'clip') {
        if (up.getBoundingClientRect().width > 1 && right(e) > right(up) + 1) return up;
      }
      if (up === panel || over === 'auto' || over === 'scroll') return null;
    }
  };
  const found = [];
  for (const root of panel.querySelectorAll('.jp-MarkdownOutput, .jp-OutputArea-output')) {
    for (const e of [root, ...root.querySelectorAll('*')]) {
      if (!e.getBoundingClientRect().width || e.closest('mjx-assistive-mml')) continue;  // not to be seen
      const by = cutter(e);
      if (!by) continue;
      const what = `${e.tagName} is ${Math.round(right(e) - right(by))} px wider than ${by.className || by.tagName}`;
      found.push(`${what}: ${e.textContent.trim().slice(0, 60)}`);
      break;
    }
  }
  return found;
}"""
