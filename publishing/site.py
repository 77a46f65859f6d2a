"""Build the course as a static site, from what the notebooks store. Nothing is run, nothing is fetched.

    course site

README, the notebooks and the pages of docs/ and results/ are laid out in one folder, with five changes: a badge from
elsewhere becomes a local picture, a link to a file that is no page leads to the repository, each figure gets its
alternative text, a widget's picture gets what makes it react, and the table of claims becomes cards. Then Sphinx makes
the site, set up by publishing/conf.py. Exit code 1: Sphinx warned of something. Exit code 2: the pages do not fit
together.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from html import unescape
from pathlib import Path, PurePosixPath

import nbformat

from helpers import lessons
from helpers.results import claim_cards, recorded_claims
from publishing import badges

ROOT = Path(__file__).resolve().parents[1]
BADGE = f"{badges.COLAB}/assets/colab-badge.svg"
OWN_BADGE = PurePosixPath("publishing/static/colab-badge.svg")
PICTURES = {".png", ".svg", ".jpg", ".gif"}

# README's sections that get pages of their own. All others make the front page.
OWN_PAGES = {
    "your_own": ("Your own text and model", ("Your own text, from a shell", "Your own model, in five lines")),
    "verdicts": ("What the course found", ("What the course found",)),
}
README_PAGES = {"index.md", *(f"{name}.md" for name in OWN_PAGES)}
# Caption in the navigation to pages. A pattern may match nothing.
NAVIGATION = {
    "Lessons": ("notebooks/*",),
    "Results": ("verdicts", "results/README", "results/*"),
    "Beside the lessons": ("docs/glossary", "your_own", "docs/*", "CONTRIBUTING"),
}
# The living pages are plain HTML in publishing/static/mini, and need the miniature's own files beside them.
MINI = PurePosixPath("_static/mini")
MODEL_FILES = ("model.safetensors", "tokenizer.json", "config.json")
MINI_LIMIT = 12_000_000  # bytes of all that the living pages can load
LED_TO = re.compile(r'^On the page <a href="([^"]+)">([^<]+)</a>.*$', re.MULTILINE)
CODE = re.compile(r"(^```.*?^```$|`[^`\n]+`)", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!\w+:)([^)\s#]*)(#[^)\s]*)?")
PICTURE = re.compile(r'<picture>.*?srcset="([^"]+)".*?src="([^"]+)" width="\d+" alt="([^"]*)"></picture>')
MARK = re.compile(r"(?<=\S) (?=[★☆]$)", re.MULTILINE)  # of a section: no line holds it alone
CLAIMS = re.compile(r"<!-- claims -->.*?<!-- /claims -->", re.DOTALL)


class SiteError(ValueError):
    """The pages do not fit together. The message says what to change."""


# --- which pages there are ---------------------------------------------------------


def readme_pages(readme: str) -> dict[str, str]:
    """README as the front page, index.md, and the pages of OWN_PAGES: name to Markdown.

    Raises:
        SiteError: README lacks a section that has a page of its own.
    """
    start, *parts = re.split(r"^(?=## )", readme, flags=re.MULTILINE)
    found = {part.partition("\n")[0].removeprefix("## ").strip(): part for part in parts}
    pages = {}
    for name, (title, headings) in OWN_PAGES.items():
        for heading in headings:
            if heading not in found:
                raise SiteError(
                    f"README has no section '{heading}' for the page '{title}'. Its sections: "
                    f"{', '.join(found)}. Bring OWN_PAGES in publishing/site.py up to date."
                )
        body = "".join(found.pop(heading) for heading in headings)
        pages[f"{name}.md"] = f"# {title}\n\n{body.removeprefix(f'## {title}')}"
    return {"index.md": start + "".join(found.values())} | pages


def sources(root: Path) -> dict[str, str]:
    """The site's pages as the repository has them: place in the site to text."""
    files = [
        *sorted((root / "notebooks").glob("*.ipynb")),
        *sorted((root / "results").glob("*.md")),
        *sorted((root / "docs").glob("*.md")),
        root / "CONTRIBUTING.md",
    ]
    pages = {path.relative_to(root).as_posix(): path.read_text(encoding="utf-8") for path in files}
    readme = of_the_site((root / "README.md").read_text(encoding="utf-8"), badges.repository(root))
    return readme_pages(readme) | pages


def navigation(pages: Iterable[str]) -> str:
    """The trees of contents that stand, unseen, on the front page: each page is in one of them."""
    left, trees = [PurePosixPath(page).with_suffix("") for page in pages if page != "index.md"], []
    for caption, patterns in NAVIGATION.items():
        found = []
        for pattern in patterns:
            found += [page for page in left if page.match(pattern) and page not in found]
        left = [page for page in left if page not in found]
        trees.append(
            "\n".join(["```{toctree}", ":hidden:", f":caption: {caption}", "", *map(str, found), "```"])
        )
    return "\n\n" + "\n\n".join(trees) + "\n"


# --- what changes on the way -------------------------------------------------------


def repository_address(root: Path) -> str:
    """Where the repository shows its files, at the version that the badges open: ``https://github.com/…/blob/…``."""
    place = re.search(r"/github/(\S+)/notebooks/", badges.badge("any", badges.repository(root)))
    return f"https://github.com/{place[1]}"


def of_the_site(readme: str, slug: str) -> str:
    """README with cards for its table of claims, and with links to the living pages that lie beside the site's own."""
    cards = claim_cards(recorded_claims())._repr_html_()
    return CLAIMS.sub(lambda _: cards, beside(readme, slug))


def beside(text: str, slug: str, up: str = "") -> str:
    """A text whose links to the published living pages lead to those that lie beside the site's own.

    Args:
        up: from the page to the site's folder, as "../".
    """
    published = re.compile(rf"\[([^\]]+)\]\({re.escape(badges.pages_address(slug))}/([^)]+)\)")
    return published.sub(rf'<a href="{up}\2">\1</a>', text)


def with_living_pages(text: str) -> str:
    """A lesson's text in which a living page that a paragraph begins with runs below that paragraph.

    The paragraph begins: On the page [Title](address of the living page).
    """
    return LED_TO.sub(
        r'\g<0>\n\n<iframe class="living-page" src="\1" title="\2" loading="lazy"></iframe>', text
    )


class Links:
    """The links of the repository's pages as links of the site.

    Attributes:
        pictures: the pictures that the pages show, by their place in the repository.
    """

    def __init__(self, root: Path, pages: Iterable[str]):
        self.root, self.pages, self.address = root, set(pages), repository_address(root)
        self.slug = badges.repository(root)
        self.pictures = {OWN_BADGE}

    def rewritten(self, text: str, page: str) -> str:
        """A Markdown text with the links of the site; what it shows as code stays as it is.

        Raises:
            SiteError: a link leads to no file.
        """
        parts = CODE.split(PICTURE.sub(self._in_both_themes, text))  # text and code by turns
        up = "../" * (len(PurePosixPath(page).parts) - 1)
        parts[::2] = [
            LINK.sub(
                lambda found: f"]({self._target(page, up, found[1], found[2] or '')}",
                beside(part, self.slug, up),
            )
            for part in parts[::2]
        ]
        whole = "".join(parts).replace(f"({BADGE})", f"({up}{OWN_BADGE})")
        return with_living_pages(whole) if page.endswith(".ipynb") else whole

    def _in_both_themes(self, found: re.Match) -> str:
        """A picture in light and in dark, of which the site's theme shows one."""
        dark, light, alt = found.groups()
        self.pictures |= {PurePosixPath(dark), PurePosixPath(light)}
        return "\n\n".join(
            f"```{{image}} {place}\n:class: only-{theme}\n:alt: {unescape(alt)}\n```"
            for theme, place in (("light", light), ("dark", dark))
        )

    def _target(self, page: str, up: str, link: str, anchor: str) -> str:
        if not link and page not in README_PAGES:
            return anchor  # a place on the page itself
        path = (self.root / page).parent.joinpath(link or "README.md").resolve()
        if not path.exists() or not path.is_relative_to(self.root):
            raise SiteError(f"{page} has a link to '{link}', which is not there.")
        place = path.relative_to(self.root).as_posix()
        if place == "README.md":
            return up + readme_place(anchor)
        if path.suffix in PICTURES:
            self.pictures.add(PurePosixPath(place))
            return link
        return (link if place in self.pages else f"{self.address}/{place}") + anchor


def readme_place(anchor: str) -> str:
    """Where a place of README is in the site: the front page, or a page of its own with the anchor left."""
    for name, (title, headings) in OWN_PAGES.items():
        for heading in headings:
            if anchor == "#" + re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-"):
                return f"{name}.md" + (anchor if heading != title else "")
    return f"index.md{anchor}"


def described(cell: nbformat.NotebookNode, name: str) -> None:
    """Hand the words and the width of a cell's picture to myst-nb, which looks for them in the cell's metadata.

    Raises:
        SiteError: a picture without alternative text, or two that say different things.
    """
    pictures = [
        (kind, output) for output in cell.outputs for kind in output.get("data", {}) if "image/" in kind
    ]
    texts = {output.metadata.get(kind, {}).get("alt", "").strip() for kind, output in pictures}
    if "" in texts:
        raise SiteError(
            f"{name}, cell {cell.id}: a picture has no alternative text. Show it with plots.show(alt=…)."
        )
    if len(texts) > 1:
        raise SiteError(f"{name}, cell {cell.id}: two pictures in one cell. Give each a cell of its own.")
    for kind, output in pictures[:1]:
        shown = output.metadata[kind]
        width = {"width": f"{shown['width']}px"} if "width" in shown else {}
        cell.metadata["mystnb"] = {"image": {"alt": shown["alt"].strip(), **width}}


def living(outputs: Iterable[nbformat.NotebookNode], up: str) -> list[nbformat.NotebookNode]:
    """What makes the widgets of a cell react in the site: for each an output with its module's data.

    Args:
        up: from the page to the site's folder, as "../".
    """
    found = [output.get("metadata", {}).get(lessons.widgets.ON_PAGES) for output in outputs]
    return [
        nbformat.v4.new_output("display_data", {"text/html": place_of(widget, f"{up}{MINI}")})
        for widget in found
        if widget
    ]


def place_of(widget: str, folder: str) -> str:
    """The HTML in which `onpage.js` starts a widget, given as JSON; no text in it can end the script."""
    stored = widget.replace("<", "\\u003c")
    return (
        f'<div data-course-widget><link rel="stylesheet" href="{folder}/widgets.css">'
        f'<script type="application/json">{stored}</script></div>'
        f'<script type="module" src="{folder}/onpage.js"></script>'
    )


def page_text(page: str, text: str, links: Links) -> str:
    """A page as Sphinx reads it."""
    if not page.endswith(".ipynb"):
        return links.rewritten(text, page)
    book = nbformat.reads(text, as_version=4)
    book.metadata.setdefault("language_info", {})["pygments_lexer"] = "ipython3"  # it knows "!git" and "%cd"
    for cell in book.cells:
        if cell.cell_type == "markdown":
            cell.source = MARK.sub("\N{NO-BREAK SPACE}", links.rewritten(cell.source, page))
        elif cell.cell_type == "code":
            described(cell, page)
            cell.outputs += living(cell.outputs, "../" * (len(PurePosixPath(page).parts) - 1))
            if found := looks(cell):
                cell.metadata["tags"] = [*cell.metadata.get("tags", []), *found]
    return nbformat.writes(book)


def looks(cell: nbformat.NotebookNode) -> list[str]:
    """Tags of a cell for the site: what is folded, and whether it prints sentences, which a phone may break anywhere."""
    folded = cell.metadata.get("jupyter", {})
    found = {
        "hide-output": folded.get("outputs_hidden"),
        "hide-input": folded.get("source_hidden"),
        "sentences": prints_sentences(cell),
    }
    return [tag for tag, is_so in found.items() if is_so]


def prints_sentences(cell: nbformat.NotebookNode) -> bool:
    """Whether a cell prints text without columns: no line has two blanks in a row behind its beginning."""
    printed = [output.text for output in cell.outputs if output.output_type == "stream"]
    lines = [line.strip() for text in printed for line in text.splitlines()]
    return bool(lines) and not any("  " in line for line in lines)


# --- building ----------------------------------------------------------------------


def lay_out(root: Path, folder: Path) -> int:
    """Write the pages, and the pictures that they show, into an empty folder.

    Returns:
        The number of pages.
    """
    pages = sources(root)
    links = Links(root, pages)
    texts = {page: page_text(page, text, links) for page, text in pages.items()}
    texts["index.md"] += navigation(pages)
    for page, text in texts.items():
        (folder / page).parent.mkdir(parents=True, exist_ok=True)
        (folder / page).write_text(text, encoding="utf-8")
    for picture in links.pictures:
        (folder / picture).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / picture, folder / picture)
    return len(pages)


def add_model(root: Path, out: Path) -> int:
    """Copy the miniature's files and the widgets' modules to where the living pages look for them.

    Returns:
        Bytes of all files of the living pages.

    Raises:
        SiteError: together they are larger than `MINI_LIMIT`.
    """
    folder = out / MINI / "data"
    folder.mkdir(parents=True, exist_ok=True)
    for name in MODEL_FILES:
        shutil.copy(root / "data" / "gpt-neo-mini" / name, folder / name)
    shutil.copytree(lessons.widgets.MODULES, out / MINI, dirs_exist_ok=True)
    n_bytes = sum(path.stat().st_size for path in (out / MINI).rglob("*") if path.is_file())
    if n_bytes > MINI_LIMIT:
        raise SiteError(
            f"The living pages have {n_bytes:,} bytes, more than {MINI_LIMIT:,}. Make the deltas smaller: "
            "publishing/page_deltas.py."
        )
    return n_bytes


def build(root: Path, out: Path) -> tuple[int, int]:
    """Build the site anew, and throw away the one that is there.

    Args:
        out: the site's folder; what it was made from stands in ``<out>-work``.

    Returns:
        The number of pages, and Sphinx's exit code: 0 when it had nothing to say.
    """
    work = out.with_name(f"{out.name}-work")
    for old in (work, out):
        shutil.rmtree(old, ignore_errors=True)
    n_pages = lay_out(root, work / "pages")
    command = [
        sys.executable,
        "-P",
        "-m",
        "sphinx",
        "-b",
        "html",
        "-c",
        root / "publishing",
        "-d",
        work / "doctrees",
        "-j",
        "2",
        "-q",
        "-W",
        "--keep-going",
        work / "pages",
        out,
    ]
    # for publishing/conf.py
    path = os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])
    status = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}).returncode
    add_model(root, out)
    return n_pages, status


def build_course() -> int:
    """Build the course's own site; 0 where Sphinx had nothing to say, else 1.

    Raises:
        SiteError: the pages do not fit together.
    """
    begin = time.monotonic()
    n_pages, status = build(ROOT, ROOT / "build" / "site")
    if status:
        print("The site is not whole: Sphinx's warnings stand above.", file=sys.stderr)
        return 1
    print(f"{n_pages} pages in {time.monotonic() - begin:.0f} s. Open build/site/index.html")
    return 0
