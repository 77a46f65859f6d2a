"""How the pages of the site are made from those of the repository, before Sphinx reads them."""

import json
import re

import nbformat
import pytest

from publishing import badges, refresh
from publishing import site as build_site
from publishing.mathml import FormulaError, mathml
from publishing.site import ROOT, Links, SiteError

PAGES = {"index.md", "notebooks/02_freezing.ipynb", "docs/glossary.md"}


@pytest.fixture
def links():
    return Links(ROOT, PAGES)


def test_a_link_between_pages_stays_as_it_is(links):
    text = "[a](../docs/glossary.md) and [b](02_freezing.ipynb#3-frozen) and [c](https://example.org/x) and [d](#e)"
    assert links.rewritten(text, "notebooks/02_freezing.ipynb") == text


def test_a_link_to_readme_leads_to_the_front_page(links):
    assert links.rewritten("[a](../README.md)", "docs/glossary.md") == "[a](../index.md)"


def test_a_link_to_a_section_of_readme_finds_it_on_its_new_page(links):
    text = "[a](../README.md#what-the-course-found) [b](../README.md#your-own-model-in-five-lines)"
    expected = "[a](../verdicts.md) [b](../your_own.md#your-own-model-in-five-lines)"
    assert links.rewritten(text, "results/README.md") == expected
    assert links.rewritten("[a](#what-the-course-found)", "index.md") == "[a](verdicts.md)"


def test_a_link_to_a_file_that_is_no_page_leads_to_the_repository(links):
    address = build_site.repository_address(ROOT)
    assert badges.repository(ROOT) in address and "/blob/" in address
    assert (
        links.rewritten("[a](../helpers/costs/step_cost.py)", "docs/glossary.md")
        == f"[a]({address}/helpers/costs/step_cost.py)"
    )


def test_a_link_to_nothing_stops_the_build_and_is_named(links):
    with pytest.raises(SiteError, match=r"docs/glossary\.md has a link to 'nowhere\.md'"):
        links.rewritten("[a](nowhere.md)", "docs/glossary.md")


def test_code_is_not_taken_for_a_link(links):
    text = "`table[0](x)` and\n\n```python\nfunctions[0](x)\n```\n"
    assert links.rewritten(text, "index.md") == text


def test_a_badge_becomes_a_local_picture_and_keeps_its_address(links):
    badge = badges.badge("02_freezing", badges.repository())
    text = links.rewritten(badge, "notebooks/02_freezing.ipynb")
    assert build_site.BADGE not in text and "](../publishing/static/colab-badge.svg)" in text
    assert text.endswith(badge.partition("svg)")[2])


def test_a_picture_that_a_page_shows_comes_along(links):
    links.rewritten("![Forgetting](results/forgetting.svg)", "index.md")
    assert {path.name for path in links.pictures} == {"colab-badge.svg", "forgetting.svg"}


def cell_with_pictures(*texts: str) -> nbformat.NotebookNode:
    outputs = [
        nbformat.v4.new_output("display_data", {"image/png": "x"}, metadata={"image/png": {"alt": text}})
        for text in texts
    ]
    return nbformat.v4.new_code_cell("plots.show(...)", outputs=outputs)


def test_the_alternative_text_of_a_picture_is_handed_on():
    cell = cell_with_pictures("Two lines that cross.")
    build_site.described(cell, "02")
    assert cell.metadata["mystnb"]["image"] == {"alt": "Two lines that cross."}
    cell.outputs[0].metadata["image/png"]["width"] = 700
    build_site.described(cell, "02")
    assert cell.metadata["mystnb"]["image"]["width"] == "700px"


@pytest.mark.parametrize(
    ("texts", "reason"), [(("",), "no alternative text"), (("one", "two"), "two pictures")]
)
def test_a_picture_that_cannot_be_described_stops_the_build(texts, reason):
    with pytest.raises(SiteError, match=reason):
        build_site.described(cell_with_pictures(*texts), "02")


@pytest.mark.parametrize(
    ("printed", "is_text"),
    [("full: 2 runs\n    went on below\n", True), ("role   tensors\nmlp         16\n", False), ("", False)],
)
def test_printed_sentences_break_on_a_phone_and_columns_stay_columns(printed, is_text):
    outputs = [nbformat.v4.new_output("stream", text=printed)] if printed else []
    cell = nbformat.v4.new_code_cell("print(…)", outputs=outputs)
    assert ("sentences" in build_site.looks(cell)) == is_text


def test_the_mark_of_a_section_stays_with_its_last_word(links):
    book = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_markdown_cell("## 1. A head ★\nSome ☆ words ☆ here.")]
    )
    (cell,) = nbformat.reads(build_site.page_text("notebooks/x.ipynb", nbformat.writes(book), links), 4).cells
    assert cell.source == "## 1. A head\N{NO-BREAK SPACE}★\nSome ☆ words ☆ here."


def test_a_widget_of_a_notebook_gets_its_module_and_its_data():
    widget = {"module": "losses", "data": {"words": "</script><b>"}, "choice": {}, "answer": {}}
    output = nbformat.v4.new_output(
        "display_data", {"image/png": ""}, metadata={"course-widget": json.dumps(widget)}
    )
    (added,) = build_site.living([output, nbformat.v4.new_output("stream", text="x")], "../")
    html = added.data["text/html"]
    assert 'src="../_static/mini/onpage.js"' in html and 'href="../_static/mini/widgets.css"' in html
    stored = re.search(r'<script type="application/json">(.*?)</script>', html)[1]
    assert json.loads(stored) == widget


def test_readme_is_split_into_the_front_page_and_others():
    readme = (ROOT / "README.md").read_text("utf-8")
    pages = build_site.readme_pages(readme)
    assert set(pages) == {"index.md", "your_own.md", "verdicts.md"}
    assert pages["index.md"].startswith(readme[:200]) and "## What the course found" not in pages["index.md"]
    assert pages["verdicts.md"].count("What the course found") == 1
    lines = {line for page in pages.values() for line in page.splitlines()}
    assert set(readme.splitlines()) - lines <= {"## What the course found"}, "a part of README is lost"


def test_a_section_that_readme_no_longer_has_is_named():
    with pytest.raises(SiteError, match="no section 'Your own text, from a shell'"):
        build_site.readme_pages("# Course\n\n## What the course found\n")


def test_every_page_stands_once_in_the_navigation():
    names = [
        "index.md",
        "notebooks/00_a.ipynb",
        "results/a.md",
        "docs/glossary.md",
        "docs/zebra.md",
        "verdicts.md",
        "your_own.md",
        "CONTRIBUTING.md",
    ]
    lines = build_site.navigation(names).splitlines()
    for name in names[1:]:
        assert lines.count(name.rpartition(".")[0]) == 1, name
    assert lines.index("docs/glossary") < lines.index("docs/zebra")


@pytest.fixture
def front():
    readme = (ROOT / "README.md").read_text("utf-8")
    return build_site.readme_pages(build_site.of_the_site(readme, badges.repository(ROOT)))


def test_the_front_page_leads_to_every_living_page_before_its_first_section(front):
    first = front["index.md"].partition("\n## ")[0]
    linked = re.findall(r'<a href="_static/(mini/[^"]+)">', first)
    assert sorted(linked) == sorted(
        f"mini/{path.name}" for path in (ROOT / "publishing/static/mini").glob("*.html")
    )


@pytest.mark.parametrize("page", ["docs/take_home.md", "notebooks/03_parameter_ratios.ipynb"])
def test_a_page_leads_to_the_living_page_that_lies_beside_it(links, page):
    address = f"{badges.pages_address(badges.repository(ROOT))}/_static/mini/planner.html"
    assert links.rewritten(f"[Fits?]({address})", page) == '<a href="../_static/mini/planner.html">Fits?</a>'
    assert f"({address})" in (ROOT / page).read_text("utf-8"), "the page itself has this link"


def test_a_living_page_that_a_lesson_sends_to_runs_inside_the_lesson(links):
    address = f"{badges.pages_address(badges.repository(ROOT))}/_static/mini/freeze.html"
    paragraph = f"On the page [Freeze it yourself]({address}) you can freeze."
    inside = '<iframe class="living-page" src="../_static/mini/freeze.html" title="Freeze it yourself"'
    lesson = links.rewritten(f"{paragraph}\n\nMore.", "notebooks/00_start_here.ipynb")
    assert lesson.split("\n\n")[1].startswith(inside) and lesson.endswith("\n\nMore.")
    assert "<iframe" not in links.rewritten(f"See [it]({address}).", "notebooks/00_start_here.ipynb")
    assert "<iframe" not in links.rewritten(paragraph, "docs/take_home.md"), "a page of words keeps its link"
    own = (ROOT / "notebooks" / "00_start_here.ipynb").read_text("utf-8")
    assert own.count("On the page [") == 2, "lesson 00 has two such paragraphs"


def test_the_claims_are_cards_on_the_site_and_folded_in_readme(front):
    readme = (ROOT / "README.md").read_text("utf-8")
    block = build_site.CLAIMS.search(readme)[0]
    outside = readme.replace(block, "")
    assert (
        block.count("<details>") == 2 and "**does not hold**" in block and "**does not hold**" not in outside
    )
    assert 'class="claims"' in front["verdicts.md"] and "| C10 |" not in front["verdicts.md"]


def test_a_picture_for_two_themes_becomes_two_pictures_of_which_one_is_shown(links):
    readme = (
        '<picture><source media="(x)" srcset="docs/a-dark.svg">'
        '<img src="docs/a-light.svg" width="9" alt="It&#x27;s."></picture>'
    )
    text = links.rewritten(readme, "index.md")
    assert re.findall(r"{image} (\S+)\n:class: (\S+)\n:alt: (.+)\n", text) == [
        ("docs/a-light.svg", "only-light", "It's."),
        ("docs/a-dark.svg", "only-dark", "It's."),
    ]
    assert {"a-light.svg", "a-dark.svg"} < {path.name for path in links.pictures}


def test_a_formula_that_would_be_shown_as_text_is_refused():
    with pytest.raises(FormulaError, match="simpler LaTeX"):
        mathml(r"\nosuchcommand x", "inline")
    with pytest.raises(FormulaError, match="a_b_c"):
        mathml("a_b_c", "inline")


def test_an_underscore_in_words_is_shown_as_one():
    assert "head_dim" in mathml(r"\sqrt{\text{head\_dim}}", "inline")


@pytest.mark.parametrize(
    ("formula", "n_rooms"),
    [
        (r"-\ln p(x)", 1),
        (r"a\cos\varphi - b\sin\varphi", 4),
        (r"\ln(a)", 0),
        (r"2 \ln 2", 2),
        (r"\log_2 x", 0),
    ],
)
def test_a_named_function_has_room_beside_letters_and_numbers(formula, n_rooms):
    assert mathml(formula, "inline").count("<mspace") == n_rooms


# --- outputs that answer a prediction ----------------------------------------------

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("book", NOTEBOOKS, ids=lambda p: p.stem)
def test_no_stored_reveal_is_open_before_its_prediction_was_made(book):
    cells = nbformat.read(book, as_version=4).cells
    folded = {c.id for c in cells if c.metadata.get("jupyter", {}).get("outputs_hidden")}
    assert folded == {c.id for c in refresh.answered(cells)}, f"run: course notebooks {book.stem}"
    shown = [c.id for c in cells if c.cell_type == "code" and "reveal(" in c.source and c.outputs]
    assert shown and set(shown) <= folded or "reveal(" not in book.read_text("utf-8")
    assert all(c.metadata.collapsed for c in cells if c.id in folded), "Colab reads this one"


def test_an_answer_begins_after_the_question_and_a_far_one_folds_alone():
    def cell(source, **metadata):
        out = [nbformat.v4.new_output("stream", text="0.5")]
        return nbformat.v4.new_code_cell(source, outputs=out, metadata=metadata)

    ask, tell, verdict = cell('predict("C4", None)'), cell('reveal("C4", R)'), cell('record("C4")')
    work, exercise = cell("print(R)"), cell("check(1)", exercise="03a")
    near = [cell("before"), ask, work, exercise, tell, verdict, cell("after")]
    assert refresh.answered(near) == [work, tell, verdict]
    far = [ask, *(cell("print(R)") for _ in range(refresh.FAR)), tell]
    assert refresh.answered(far) == [tell]
    band = cell('in_band("it is", 0.5, 0, 1)')
    assert refresh.answered([ask, tell, band, cell("after")]) == [tell, band]
    elsewhere = [work, tell]
    assert refresh.answered(elsewhere) == [tell]


def test_counting_is_predicted_before_any_count_is_shown():
    cells = nbformat.read(NOTEBOOKS[0], as_version=4).cells
    asked = next(i for i, c in enumerate(cells) if c.cell_type == "code" and 'predict("C4"' in c.source)
    assert 'predict("C5"' in cells[asked].source
    for cell in cells[: asked + 1]:
        said = cell.source + "".join(str(output) for output in cell.get("outputs", []))
        assert not re.search(
            r"\bR = |FreezePlan|trainable", said.replace("from helpers.freezing import FreezePlan", "")
        )


def test_a_folded_output_is_folded_on_the_site(links):
    cell = nbformat.v4.new_code_cell("reveal()", metadata={"jupyter": {"outputs_hidden": True}})
    page = nbformat.writes(nbformat.v4.new_notebook(cells=[cell, nbformat.v4.new_code_cell("x")]))
    one, other = nbformat.reads(build_site.page_text("notebooks/02_freezing.ipynb", page, links), 4).cells
    assert one.metadata.tags == ["hide-output"] and "tags" not in other.metadata


def test_a_folded_cell_is_folded_on_the_site_with_its_output_open(links):
    cell = nbformat.v4.new_code_cell("session.enter()", metadata={"jupyter": {"source_hidden": True}})
    page = nbformat.writes(nbformat.v4.new_notebook(cells=[cell]))
    (one,) = nbformat.reads(build_site.page_text("notebooks/02_freezing.ipynb", page, links), 4).cells
    assert one.metadata.tags == ["hide-input"]
