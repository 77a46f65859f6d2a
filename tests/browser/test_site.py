"""The course as pages: built once, read as files, then in a browser, in light and dark.

Screenshots go to ``build/screenshots``, to be looked at.
"""

import functools
import http.server
import io
import os
import re
import threading
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

import nbformat
import pytest
from PIL import Image

from publishing import badges
from publishing import links as check_links
from support.pages import SHOTS, THEMES, QuietHandler, findings, needed

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
WIDTHS = (1280, 800, 400)
# Colours fade from theme to theme. What follows the scrolling never ends, and is left out.
AT_REST = """Promise.all(
  document.getAnimations().filter(one => one.timeline === document.timeline).map(one => one.finished)
)"""
UNFOLD = "document.querySelectorAll('details').forEach(part => part.open = true)"
CPU_SECONDS = 240  # two minutes on two idle cores

pytestmark = pytest.mark.timeout(900)  # the first test waits for the site, another one for axe on every page


def cpu_seconds() -> float:
    """What this process and its children have computed so far."""
    return sum(os.times()[:4])


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The site's folder, and the CPU seconds that it took."""
    needed("sphinx", "myst_nb", "furo")
    from publishing import site as build_site

    out, begin = tmp_path_factory.mktemp("site") / "pages", cpu_seconds()
    n_pages, status = build_site.build(ROOT, out)
    assert status == 0, "Sphinx's warnings stand above"
    assert n_pages == len(build_site.sources(ROOT))
    return out, cpu_seconds() - begin


@pytest.fixture(scope="module")
def site(built):
    return built[0]


@pytest.fixture(scope="module")
def pages(site):
    """Each page, by its address within the site, parsed as a browser would."""
    needed("justhtml")
    from justhtml import JustHTML

    files = sorted(path for path in site.rglob("*.html") if "_static" not in path.parts)
    return {
        path.relative_to(site).as_posix(): JustHTML(
            path.read_text("utf-8"), sanitize=False, collect_errors=True
        )
        for path in files
    }


@pytest.fixture(scope="module")
def address(site):
    """The site on a server of this machine."""
    handler = functools.partial(QuietHandler, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()


@pytest.fixture
def open_page(browser, address):
    """A function that opens a page of the site; no page may ask for anything beyond this machine."""
    asked, contexts = [], []

    def open_(name, theme="light", width=1280):
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=theme)
        contexts.append(context)
        context.on("request", lambda request: asked.append(request.url))
        page = context.new_page()
        page.goto(urljoin(address, name))
        return page

    yield open_
    for context in contexts:
        context.close()
    beyond = [url for url in asked if not url.startswith((address, "data:"))]
    assert asked and not beyond


def shown_text(page) -> str:
    """What a reader sees as prose: without code, outputs and formulas."""
    from justhtml import JustHTML

    article = JustHTML(page.query_one("article").to_html(), sanitize=False, fragment=True)
    for found in article.query("pre, code, math, script, style"):
        found.parent.remove_child(found)
    return article.to_text()


def links_of(page, name: str) -> list[str]:
    """The links of a page as addresses within the site, or full ones."""
    return [urljoin(name, link.attrs["href"]) for link in page.query("a[href]")]


# --- the build ---------------------------------------------------------------------


def test_the_site_is_built_in_two_minutes(built):
    assert built[1] < CPU_SECONDS


def test_every_page_is_well_formed(pages):
    found = [f"{name}: {error}" for name, page in pages.items() for error in page.errors]
    assert not found, "\n".join(found[:20])


def test_every_page_says_what_it_is(pages):
    for name, page in pages.items():
        assert page.query_one("html").attrs["lang"] == "en", name
        assert page.query_one("title").to_text().strip(), name
        if name != "search.html":  # its heading is written by the script that searches
            assert len(page.query("article h1")) == 1, name


def test_no_two_parts_of_a_page_have_the_same_name(pages):
    for name, page in pages.items():
        ids = [part.attrs["id"] for part in page.query("[id]")]
        twice = {i for i in ids if ids.count(i) > 1}
        assert not twice, f"{name}: {sorted(twice)[:5]}"


def test_every_page_leads_to_every_other(pages):
    for name, page in pages.items():
        reached = {urljoin(name, link.attrs["href"]) for link in page.query(".sidebar-tree a[href]")}
        missing = (
            set(pages) - {"index.html", "search.html", name} - {link.partition("#")[0] for link in reached}
        )
        assert not missing, f"{name} has no way to {sorted(missing)}"


def test_the_front_page_opens_as_readme_does(pages):
    front, readme = shown_text(pages["index.html"]), (ROOT / "README.md").read_text("utf-8")
    first = re.search(r"^\*\*(A course .+?)\*\*", readme, re.MULTILINE)[1]
    assert first in front
    for book in NOTEBOOKS:
        assert f"notebooks/{book.stem}.html" in links_of(pages["index.html"], "index.html")


# --- what a page shows -------------------------------------------------------------


def test_every_picture_is_here_and_described(pages, site):
    for name, page in pages.items():
        for picture in page.query("img"):
            source = urljoin(name, picture.attrs["src"])
            assert (site / source).is_file(), f"{name}: {source}"
            assert len(picture.attrs.get("alt", "")) > 10, f"{name}: {source} has no alternative text"
            assert picture.attrs["alt"] != picture.attrs["src"]


@pytest.mark.parametrize("book", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_lesson_shows_all_that_its_notebook_stores(book, pages):
    page, cells = pages[f"notebooks/{book.stem}.html"], nbformat.read(book, as_version=4).cells
    shown = re.sub(r"\s+", "", "".join(part.to_text() for part in page.query("pre")))
    outputs = [output for cell in cells if cell.cell_type == "code" for output in cell.outputs]
    for text in [output.text for output in outputs if output.output_type == "stream"]:
        assert re.sub(r"\s+", "", text) in shown, text
    n_pictures = sum(bool({"image/png", "image/svg+xml"} & set(output.get("data", {}))) for output in outputs)
    assert len(page.query(".cell_output img")) == n_pictures
    assert len(page.query(".cell_output table")) == sum(
        "<table" in "".join(output.get("data", {}).get("text/html", "")) for output in outputs
    )


@pytest.mark.parametrize("book", NOTEBOOKS, ids=lambda p: p.stem)
def test_hints_and_solutions_are_folded(book, pages):
    texts = [c.source for c in nbformat.read(book, as_version=4).cells if c.cell_type == "markdown"]
    page = pages[f"notebooks/{book.stem}.html"]
    in_outputs = page.query(".cell_output details")
    answers = page.query("details.hide")  # outputs that answer a prediction
    folded = [part for part in page.query("details") if part not in in_outputs and part not in answers]
    assert len(folded) == sum(text.count("<details>") for text in texts) > 0
    for part in folded:
        assert "open" not in part.attrs
        summary = part.query_one("summary").to_text()
        assert len(part.to_text()) > len(summary) + 10, f"nothing is inside '{summary}'"


def test_formulas_are_drawn(pages):
    n_formulas = {name: len(page.query("math")) for name, page in pages.items()}
    assert sum(n_formulas.values()) > 200 and n_formulas["docs/glossary.html"] > 15
    for name, page in pages.items():
        raw = re.search(r"\$[^$\n]{1,60}\$|\\[a-z]+\{?", shown_text(page))
        assert not raw, f"{name}: {raw[0]}"
        assert not [m for m in page.query("math") if "\\" in m.to_text()]


def test_a_badge_is_a_local_picture_that_opens_colab(pages):
    for book in NOTEBOOKS:
        wanted = re.search(r"\]\((https://[^)]*\.ipynb)\)", badges.badge(book.stem, badges.repository()))[1]
        badge = pages[f"notebooks/{book.stem}.html"].query_one(f'a[href="{wanted}"]')
        assert badge.query_one("img").attrs["alt"] == "Open in Colab"


# --- links -------------------------------------------------------------------------


def test_every_internal_link_leads_somewhere(pages, site):
    ids = {name: {part.attrs["id"] for part in page.query("[id]")} for name, page in pages.items()}
    broken = []
    for name, page in pages.items():
        for link in (urlsplit(link) for link in links_of(page, name)):
            target = unquote(link.path) or name
            anchor_is_there = target not in ids or link.fragment in ids[target] | {""}
            if not link.scheme and not ((site / target).is_file() and anchor_is_there):
                broken.append(f"{name}: {link.geturl()}")
    assert not broken, "\n".join(broken)


def test_every_external_link_is_in_the_list(pages):
    seen, slug = check_links.read_list(ROOT), badges.repository()
    used = {link for name, page in pages.items() for link in links_of(page, name) if link.startswith("http")}
    unknown = {link for link in used if not check_links.is_own(link, slug)} - set(seen)
    assert not unknown, "run course links"


def test_a_link_into_the_repository_names_a_file_of_it(pages):
    slug = badges.repository()
    used = {
        link
        for name, page in pages.items()
        for link in links_of(page, name)
        if check_links.is_own(link, slug)
    }
    for link in used:
        file = re.search(r"/(?:blob|tree)/[^/]+/([^#?]+)", link)
        assert file is None or (ROOT / file[1]).exists(), link


def test_no_page_names_a_script_style_or_picture_elsewhere(pages, site):
    for name, page in pages.items():
        parts = page.query("script, link, img, iframe, source, use")
        sources = [part.attrs.get("src") or part.attrs.get("href") or "" for part in parts]
        assert not [source for source in sources if re.match(r"(\w+:)?//", source)], name
    for style in site.rglob("*.css"):
        remote = re.search(r"(url\(|@import)\s*[\"']?(https?:)?//[^)]*", style.read_text("utf-8"))
        assert not remote, f"{style.name}: {remote[0]}"


# --- in a browser ------------------------------------------------------------------


@pytest.fixture(scope="module")
def visits(pages, browser, address):
    """Every page, opened once: what axe finds in each theme, how wide it is, what it asked for."""
    found, asked = {}, []
    page = browser.new_page(viewport={"width": WIDTHS[0], "height": 900}, color_scheme="light")
    page.on("request", lambda request: asked.append(request.url))
    for name in pages:
        page.goto(urljoin(address, name))
        page.evaluate(UNFOLD)
        # The dark theme changes colours alone.
        for theme, rules in (("light", None), ("dark", ["link-in-text-block"])):
            page.emulate_media(color_scheme=theme)
            page.evaluate(AT_REST)
            found[name, theme] = findings(page, rules)
        page.emulate_media(color_scheme="light")
        for width in WIDTHS:
            page.set_viewport_size({"width": width, "height": 900})
            found[name, width] = page.evaluate("document.documentElement.scrollWidth")
        page.set_viewport_size({"width": WIDTHS[0], "height": 900})
    page.close()
    return found, asked


@pytest.mark.parametrize("theme", THEMES)
def test_every_page_is_accessible(theme, pages, visits):
    found = [f"{name}: {finding}" for name in pages for finding in visits[0][name, theme]]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("width", WIDTHS)
def test_no_page_is_wider_than_the_screen(width, pages, visits):
    wider = {name: visits[0][name, width] for name in pages if visits[0][name, width] > width}
    assert not wider


def test_no_page_asks_for_anything_beyond_this_machine(visits, address):
    assert visits[1] and not [url for url in visits[1] if not url.startswith((address, "data:"))]


@pytest.mark.parametrize("theme", THEMES)
def test_one_pale_word_among_thousands_is_found(theme, open_page):
    page = open_page("notebooks/02_freezing.html", theme)
    ground = {"light": "#eeeeee", "dark": "#222222"}[theme]
    page.evaluate(
        """colour => {
      const words = [...document.querySelectorAll("article pre span")];
      const word = words.findLast(one => one.textContent.trim().length > 5);
      word.style.color = colour;
    }""",
        ground,
    )
    (finding,) = findings(page, ["link-in-text-block"])
    assert finding.startswith("color-contrast (serious), 1 places")


def test_a_picture_without_words_is_found(open_page):
    page = open_page("verdicts.html")
    page.evaluate("document.querySelector('article').append(new Image())")
    assert [finding for finding in findings(page) if finding.startswith("image-alt")]


def test_search_finds_a_word(open_page):
    page = open_page("index.html")
    page.locator(".sidebar-search").fill("LayerNorm")
    page.locator(".sidebar-search").press("Enter")
    page.wait_for_selector("#search-results li a")
    titles = page.locator("#search-results li a").all_inner_texts()
    assert any("transformer block" in title for title in titles), titles


TALLER = """async () => {
  const late = document.createElement("div");
  late.style.height = "2000px";
  document.querySelector("article").prepend(late);
  for (let k = 0; k < 3; k++) await new Promise(requestAnimationFrame);
}"""


def test_a_hit_of_the_search_opens_at_its_place(open_page):
    page = open_page("search.html?q=rewinding")
    page.locator("#search-results li.kind-text a", has_text="06.").first.click()
    page.wait_for_selector("article span.highlighted")
    page.wait_for_function("scrollY > 0")
    place = page.locator("article span.highlighted:visible").first
    assert 0 < place.bounding_box()["y"] < 900
    page.evaluate(TALLER)
    assert 0 < place.bounding_box()["y"] < 900, "what comes later above it does not move it"
    here = page.evaluate("scrollY")
    page.mouse.wheel(0, 3000)
    page.wait_for_function("here => scrollY > here + 1000", arg=here)
    page.evaluate(TALLER)
    assert place.bounding_box()["y"] < 0, "a reader who goes on is not brought back"


@pytest.mark.parametrize("width", [1280, 1440])
def test_the_contents_of_a_page_stand_beside_it(width, open_page):
    page = open_page("notebooks/01_transformer_block.html", width=width)
    link = page.locator(".toc-tree a", has_text="2. LayerNorm").bounding_box()
    text, code = (page.locator(f"article {part}").first.bounding_box() for part in ("p", ".highlight"))
    assert max(one["x"] + one["width"] for one in (text, code)) < link["x"] < width - link["width"]
    wide = page.locator("article div.cell:not(.tag_hide-input) div.cell_input pre").evaluate_all(
        "all => all.filter(one => one.scrollWidth > one.clientWidth).length"
    )
    assert wide == 0, "96 columns have room"


FADES = """async () => {
  const frame = () => new Promise(requestAnimationFrame);
  await frame();
  await frame();  // what a widget made narrower stops to fade in the next frame
  const scrolls = one => ["auto", "scroll"].includes(getComputedStyle(one).overflowX);
  const boxes = [...document.querySelectorAll("article *")].filter(scrolls);
  const isWide = one => one.scrollWidth > one.clientWidth;
  const wide = boxes.filter(isWide);
  const edges = async share => {
    wide.forEach(one => one.scrollTo({left: share * one.scrollWidth, behavior: "instant"}));
    await frame();
    await frame();
    return wide.filter(isWide).map(one => ["left", "right"].map(  // a widget that began to run may fit now
      side => parseFloat(getComputedStyle(one).getPropertyValue("--fade-" + side)) > 0));
  };
  const fading = boxes.filter(one => parseFloat(getComputedStyle(one).getPropertyValue("--fade-right")) > 0);
  return [fading.every(isWide), await edges(0), await edges(1)];
}"""


@pytest.mark.parametrize(
    "name", ["notebooks/01_transformer_block", "notebooks/03_parameter_ratios", "docs/glossary"]
)
def test_a_wide_block_fades_at_the_edge_beyond_which_it_goes_on(name, open_page):
    page = open_page(f"{name}.html", width=390)
    page.evaluate(UNFOLD)
    page.wait_for_function("!document.querySelector('[data-course-widget]:not(.runs)')")
    only_wide_ones_fade, at_start, at_end = page.evaluate(FADES)
    assert only_wide_ones_fade and len(at_end) > 1
    assert at_start == len(at_start) * [[False, True]] and at_end == len(at_end) * [[True, False]]


GROUNDS = """async ([selector, x, y]) => {
  const image = document.querySelector(selector);
  image.scrollIntoView({block: "start", behavior: "instant"});
  await image.decode();
  const box = image.getBoundingClientRect();
  return [box.x + x, box.y + y];
}"""


@pytest.mark.parametrize("device, chosen", [("dark", "auto"), ("light", "dark")])
@pytest.mark.parametrize("kind", ["png", "svg"])
def test_a_figure_in_the_dark_has_the_ground_of_its_page(device, chosen, kind, open_page):
    page = open_page("notebooks/05_loss_and_forgetting.html", device)
    page.evaluate("theme => { document.body.dataset.theme = theme; }", chosen)
    page.evaluate(UNFOLD)
    page.evaluate(AT_REST)
    x, y = page.evaluate(GROUNDS, [f'.cell_output img[src$=".{kind}"]', 6, 12])
    shot = page.screenshot(clip={"x": x, "y": y, "width": 2, "height": 2})
    pixel = Image.open(io.BytesIO(shot)).convert("RGB").getpixel((0, 0))
    assert max(abs(a - b) for a, b in zip(pixel, (19, 20, 22), strict=True)) <= 4


def test_a_widget_runs_in_place_of_its_picture(open_page):
    page = open_page("notebooks/05_loss_and_forgetting.html", "dark")
    page.wait_for_selector("[data-course-widget].runs")
    cell = page.locator(".cell_output", has=page.locator("[data-course-widget]"))
    assert cell.locator("img").count() == 1 and not cell.locator("img").is_visible()
    assert cell.locator(".course-widget").evaluate("one => one.style.colorScheme") == "dark"
    chart = cell.locator(".chart")
    before = chart.inner_html()
    cell.get_by_role("button", name="norms alone").click()
    assert chart.inner_html() != before


def test_a_hint_unfolds_at_a_click(open_page):
    page = open_page("notebooks/02_freezing.html")
    hint = page.locator("details:not(.hide)").first
    assert not hint.locator("p").first.is_visible()
    hint.locator("summary").click()
    assert hint.locator("p").first.is_visible()


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("width", WIDTHS[:2])
def test_screenshots_are_kept(theme, width, open_page):
    SHOTS.mkdir(parents=True, exist_ok=True)
    for name in ("index", "notebooks/02_freezing", "docs/glossary", "verdicts"):
        page = open_page(f"{name}.html", theme, width)
        page.screenshot(path=SHOTS / f"site-{Path(name).name}-{theme}-{width}.png")
        page.context.close()


def test_the_watch_sees_a_page_that_asks_elsewhere(browser):
    """The check of open_page, on a page that does what none may do."""
    asked = []
    page = browser.new_page()
    page.on("request", lambda request: asked.append(request.url))
    with page.expect_request("https://example.org/*"):
        page.set_content('<img src="https://example.org/picture.png" alt="">')
    page.close()
    assert "https://example.org/picture.png" in asked
