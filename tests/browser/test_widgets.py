"""The widgets of the lessons in a browser: mouse, keyboard, finger, errors in words, and quick.

Each stands in a plain page, with this Python as its kernel (tests/support/live.py); test_browser.py sees one of them
in JupyterLab. Screenshots go to ``build/screenshots``, to be looked at.
"""

import functools
import http.server
import re
import threading
from contextlib import ExitStack

import pytest

from helpers.costs import gpt_neo_1_3b_config
from helpers.freezing import COURSE_PLANS, FreezePlan
from helpers.lessons.widgets import MODULES
from helpers.lessons.widgets.blocks import Passage, block_explorer
from helpers.lessons.widgets.freezing import freeze_designer, plan_of
from helpers.lessons.widgets.losses import band, loss_explorer, runs_of_one_model, runs_shown
from helpers.lessons.widgets.memory import Setting, memory_planner
from helpers.lessons.widgets.rewinding import rewinding_dial
from helpers.lessons.widgets.styles import style_mixer
from helpers.models import anatomy, build_model, build_on_meta, load_model, load_tokenizer
from helpers.models.loading import mini_config
from helpers.profiles import DATA, TINY
from publishing.site import place_of
from support.live import latency, shown
from support.pages import SHOTS, THEMES, QuietHandler, findings

TEXT = "The door of the old house was open, and nobody had lit the lamp. " * 6
RECORDED = DATA / "evidence" / "runs" / TINY.model_name
WIDTHS = {"light": 1280, "dark": 390}
NAMES = ("freezing", "memory", "blocks", "losses", "styles", "rewinding")
pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(TINY.model)


@pytest.fixture(scope="module")
def model():
    return load_model(TINY.model, attention="eager")


@pytest.fixture
def make(model, tokenizer):
    """A fresh widget by the name of its module."""
    trained = [(0.0, 0.0), (0.06, 0.04), (0.12, 0.10), (0.10, 0.20)]
    rewound = {0.0: (0.0, 0.0), 0.5: (0.09, 0.05), 0.8: (0.11, 0.13), 1.0: (0.10, 0.20)}
    writers = {"base": model, "twin": model, "other": build_model(mini_config())}
    makers = {
        "freezing": lambda: freeze_designer(mini_config(), 8, 256),
        "memory": lambda: memory_planner({"big": gpt_neo_1_3b_config(), "mini": mini_config()}),
        "blocks": lambda: block_explorer(model, tokenizer, TEXT, block=1),
        "losses": lambda: loss_explorer(RECORDED, "alice", ["full", "attention+embeddings"], "learn"),
        "styles": lambda: style_mixer(writers, tokenizer, "The door was opened by", n_tokens=6, seed=3),
        "rewinding": lambda: rewinding_dial(trained, rewound, start=0.5),
    }
    return lambda name: makers[name]()


@pytest.fixture
def opened(browser, make):
    """A function that shows a widget: (widget, page)."""
    with ExitStack() as stack:

        def open_(name, theme="light", width=1000):
            widget = make(name)
            return widget, stack.enter_context(shown(browser, widget, theme, width))

        yield open_


# --- all of them -------------------------------------------------------------------


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("name", NAMES)
def test_on_a_phone_and_on_a_desk_nothing_sticks_out_and_axe_finds_nothing(name, theme, opened):
    _, page = opened(name, theme, WIDTHS[theme])
    assert page.evaluate("document.documentElement.scrollWidth") <= WIDTHS[theme]
    found = findings(page)
    assert not found, "\n".join(found)
    ground = page.evaluate("getComputedStyle(document.querySelector('.course-widget')).backgroundColor")
    assert ground == {"light": "rgb(255, 255, 255)", "dark": "rgb(19, 20, 22)"}[theme]
    SHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SHOTS / f"widget-{name}-{theme}-{WIDTHS[theme]}.png", full_page=True)


@pytest.mark.parametrize("name", NAMES)
def test_a_finger_finds_every_control_on_a_phone(name, opened):
    _, page = opened(name, "light", 390)
    controls = "button, select, input, textarea, [role=checkbox], [role=button]"
    small = page.evaluate(
        """(controls) => [...document.querySelectorAll(controls)]
        .filter((one) => one.getClientRects().length && !one.closest(".words"))
        .map((one) => [one.outerHTML.slice(0, 80), one.getBoundingClientRect()])
        .filter(([, box]) => box.width < 24 || box.height < 24).map(([html]) => html)""",
        controls,
    )
    assert not small


@pytest.mark.parametrize(
    ("name", "act"),
    [
        ("freezing", "(i) => document.querySelectorAll('.part')[i].dispatchEvent(new MouseEvent('click'))"),
        ("memory", "(i) => document.querySelectorAll('.memory .choices button')[i % 7].click()"),
        ("blocks", "(i) => document.querySelectorAll('.words button')[60 + i].click()"),
        ("blocks", "(i) => document.querySelectorAll('.heads button')[2 * i].click()"),
        ("losses", "(i) => document.querySelectorAll('.losses .choices button')[i].click()"),
        (
            "rewinding",
            "(i) => { const d = document.querySelector('input'); d.value = i % 4; d.dispatchEvent(new Event('input')); }",
        ),
    ],
)
def test_a_widget_reacts_within_100_ms(name, act, opened):
    _, page = opened(name)
    assert latency(page, act) < 100


def test_a_theme_that_is_chosen_later_is_followed(opened):
    _, page = opened("rewinding", "light")
    page.evaluate("document.body.style.color = '#eee'; document.body.dataset.theme = 'night'")
    page.wait_for_function("document.querySelector('.course-widget').style.colorScheme === 'dark'")


# --- freeze designer ---------------------------------------------------------------


def plan_on(page) -> FreezePlan:
    return eval(page.inner_text(".freezing code"), {"FreezePlan": FreezePlan})


def test_the_line_of_code_makes_the_plan_that_is_drawn(opened):
    widget, page = opened("freezing")
    model = anatomy(build_on_meta(mini_config()))
    for key in [plan["key"] for plan in widget.data["plans"]]:
        page.get_by_role("combobox", name="A plan to begin with").select_option(key)
        ledger = COURSE_PLANS[key].ledger(model)
        assert plan_on(page).trainable_names(model) == COURSE_PLANS[key].trainable_names(model)
        assert page.inner_text(".share") == f"{ledger.R:.1%}"
        state = 4 * ledger.n_parameters + 12 * ledger.n_trainable  # float32, gradient, AdamW's two moments
        assert f"{state / 2**20:.1f} MiB of" in page.locator(".meter").first.inner_text()
        page.wait_for_function("document.querySelectorAll('.meter').length === 3")


def test_a_part_is_frozen_by_a_click_and_thawed_from_the_keyboard(opened):
    widget, page = opened("freezing")
    part = page.locator('[data-part="mlp@2"]')
    assert part.get_attribute("aria-checked") == "true"
    part.click()
    assert part.get_attribute("aria-checked") == "false" and "mlp@2" in widget.choice["frozen"]
    assert plan_on(page) == FreezePlan.freeze("attention", "embeddings", "mlp@2")
    part.focus()
    for key, state in (("Space", "true"), ("Enter", "false")):
        page.keyboard.press(key)
        assert part.get_attribute("aria-checked") == state


def test_a_row_and_a_column_are_switched_at_once(opened):
    widget, page = opened("freezing")
    page.get_by_role("combobox", name="A plan to begin with").select_option("full")
    page.get_by_role("button", name="Switch block 1", exact=True).click()
    page.get_by_role("button", name="Switch MLP in all blocks").click()
    selectors = {part["id"]: part["selectors"] for part in widget.data["parts"]}
    asked = plan_of([word for part in widget.choice["frozen"] for word in selectors[part]])
    model = anatomy(build_on_meta(mini_config()))
    assert plan_on(page) == FreezePlan.freeze("attention@1", "mlp", "norms@1")
    assert asked.trainable_names(model) == plan_on(page).trainable_names(model)
    page.get_by_role("button", name="Switch MLP in all blocks").click()  # all of them are frozen: they thaw
    assert plan_on(page) == FreezePlan.freeze("attention@1", "norms@1")


def test_the_gradient_goes_as_far_as_the_first_part_that_trains(opened):
    _, page = opened("freezing")
    assert "as far as: block 0, norms." in page.inner_text(".freezing")
    page.get_by_role("combobox", name="A plan to begin with").select_option("first-half")
    assert "as far as: block 2, norms." in page.inner_text(".freezing")


def test_block_0_saves_the_way_to_the_input_only_while_nothing_below_it_trains(opened):
    """Notebook 02: what to find out with the designer."""
    _, page = opened("freezing")

    def to_the_input() -> float:
        page.wait_for_function("document.querySelectorAll('.meter').length === 3")
        return float(re.search(r"to the input ([\d.]+)", page.inner_text(".freezing"))[1])

    page.get_by_role("combobox", name="A plan to begin with").select_option("embeddings")
    whole = to_the_input()
    page.get_by_role("button", name="Switch block 0", exact=True).click()
    saved = to_the_input()
    page.locator('[data-part="position_embedding"]').click()
    assert saved < whole <= to_the_input()


def test_a_plan_that_trains_nothing_is_said_in_words(opened):
    _, page = opened("freezing")
    for name in ("norms", "MLP"):
        page.get_by_role("button", name=f"Switch {name} in all blocks").click()
    page.locator(".part:not(.frozen)").click()
    assert "Nothing trains. Thaw at least one part." in page.inner_text(".freezing")
    assert "this plan trains nothing" in page.inner_text(".freezing code") and "0.0%" in page.inner_text(
        ".share"
    )


# --- memory planner ----------------------------------------------------------------


def cards_of(page) -> list[str]:
    return [" ".join(text.split()) for text in page.locator(".card").all_inner_texts()]


def test_a_bar_is_as_long_as_its_share_of_the_card(opened):
    _, page = opened("memory")
    for card in page.locator(".card").all():
        share = int(re.search(r"(\d+)%", card.inner_text())[1])
        room = card.locator(".room").first.bounding_box()["width"]
        bars = sum(bar.bounding_box()["width"] for bar in card.locator("i").all())
        assert 100 * bars / room == pytest.approx(share, abs=1)


def test_advice_is_a_button_that_does_what_it_says(opened):
    widget, page = opened("memory")
    assert "does not fit" in cards_of(page)[0]
    page.locator(".card").first.get_by_role("button", name="the plan").click()
    page.wait_for_function("document.querySelector('.card .fits') !== null")
    assert cards_of(page)[0].startswith("T4 fits:") and widget.choice["plan"] != "full"


def test_the_answer_that_the_notebook_gives_is_true(opened):
    """Notebook 03: on a T4 only a plan helps the 1.3B, and it is first-half."""
    _, page = opened("memory")
    page.get_by_role("group", name="Batch").get_by_role("button", name="1", exact=True).click()
    page.get_by_role("group", name="Length").get_by_role("button", name="128").click()
    t4 = page.locator(".card").first
    assert t4.get_by_role("button").all_inner_texts() == ["the plan first-half"]
    page.get_by_role("combobox", name="Precision").select_option("bfloat16 (autocast)")
    assert "no bfloat16" in t4.inner_text() and t4.get_by_role("button").all_inner_texts() == ["float32"]


def test_what_fits_is_told_how_much_more_would(opened):
    widget, page = opened("memory")
    page.get_by_role("combobox", name="Model").select_option("mini")
    assert Setting(**widget.choice) == Setting("mini", "full", 8, 256, "float32")  # it has no 512 positions
    assert cards_of(page)[0].startswith("T4 fits:") and "a batch of 64 fits too" in cards_of(page)[0]


def test_the_keyboard_stays_where_it_was(opened):
    _, page = opened("memory")
    page.get_by_role("group", name="Batch").get_by_role("button", name="16").focus()
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.value") == "16"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.value") == "32"


# --- block explorer ----------------------------------------------------------------


def test_a_word_shows_what_the_model_says(opened, model, tokenizer):
    _, page = opened("blocks")
    own = Passage(model, tokenizer, TEXT)
    page.locator(".words button").nth(70).click()
    page.get_by_role("button", name="block 2, global, head 3").click()
    key, weight = max(enumerate(own.weights[2, 3, 70]), key=lambda pair: pair[1])
    said = page.inner_text(".said")
    assert f"Block 2 (global), head 3: “{own.tokens[70].strip()}” (70) may see 71 of" in said
    assert f"most at “{own.tokens[key].strip()}” ({key}): {weight:.2f}" in said
    page.get_by_role("button", name="block 1, local, head 0").click()
    assert "may see 64 of" in page.inner_text(".said")
    assert page.locator(".words .hidden").count() == len(own.tokens) - 64


def test_words_are_walked_with_the_arrow_keys(opened):
    widget, page = opened("blocks")
    page.locator(".words button").nth(20).click()
    page.keyboard.press("ArrowRight")
    assert widget.choice["query"] == 21
    page.keyboard.press("Home")
    assert widget.choice["query"] == 0 and "(0): 1.00" in page.inner_text(".said")
    assert page.evaluate("document.activeElement.tabIndex") == 0


def test_a_click_on_the_map_chooses_its_row(opened):
    widget, page = opened("blocks")
    box = page.locator(".two canvas").last.bounding_box()
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 4)
    n = len(widget.data["passage"]["tokens"])
    assert widget.choice["query"] == pytest.approx(n / 4, abs=2)


def test_ones_own_passage_is_read_and_an_empty_one_is_told_in_words(opened):
    _, page = opened("blocks")
    page.get_by_label("Your own passage").fill("A <b>short</b> one")
    page.get_by_role("button", name="Read it").click()
    page.wait_for_function("document.querySelector('.words').textContent === 'A <b>short</b> one'")
    page.get_by_label("Your own passage").fill("")
    page.get_by_role("button", name="Read it").click()
    page.wait_for_function("!document.querySelector('.problem').hidden")
    assert "at least one word" in page.get_by_role("alert").inner_text()


def test_of_a_large_model_rows_and_maps_come_from_the_kernel(browser, model, tokenizer, monkeypatch):
    monkeypatch.setattr("helpers.lessons.widgets.blocks.MOST_WEIGHTS", 1000)
    widget, own = block_explorer(model, tokenizer, TEXT), Passage(model, tokenizer, TEXT)
    with shown(browser, widget) as page:
        page.locator(".words button").nth(30).click()
        key, weight = max(enumerate(own.weights[0, 0, 30]), key=lambda pair: pair[1])
        page.wait_for_function("!document.querySelector('.said').textContent.includes('asking')")
        assert f"({key}): {weight:.2f}" in page.inner_text(".said")


# --- loss explorer -----------------------------------------------------------------

BAND = """async ([text, series, width]) => {
    const url = URL.createObjectURL(new Blob([text], { type: "text/javascript" }));
    const { band, smoothed } = await import(url);
    return band(series.map(({ steps, values }) => ({ steps: steps ?? values.map((_, i) => i + 1),
        values: smoothed(values, width) })));
}"""


@pytest.mark.parametrize("measure", ["training loss, each batch", "forgetting"])
def test_lines_and_bands_are_those_of_python(measure, opened):
    widget, page = opened("losses")
    runs = [r for r in widget.data["runs"] if (r["label"], r["text"]) == ("full, rate 0.0001", "alice")]
    found = page.evaluate(BAND, [widget._esm, [run["series"][measure] for run in runs], 9])
    recorded = runs_shown(runs_of_one_model(RECORDED), ["full, rate 0.0001"], "alice")
    wanted = band(recorded["full, rate 0.0001"], measure, 9)
    assert [point["step"] for point in found] == wanted.steps.tolist()
    for key in ("mean", "low", "high"):
        assert [point[key] for point in found] == pytest.approx(getattr(wanted, key).tolist(), abs=1e-4)


def test_a_plan_is_shown_and_hidden_by_its_button(opened):
    widget, page = opened("losses")
    button = page.get_by_role("button", name="full training, 1e-4")
    assert button.get_attribute("aria-pressed") == "true" and page.locator(".end").count() == 2
    button.focus()
    page.keyboard.press("Space")
    assert page.locator(".end").count() == 1 and "full, rate 0.0001" not in widget.choice["on"]
    on_alice = {run["label"] for run in widget.data["runs"] if run["text"] == "alice"}
    assert page.locator(".choices button:enabled").count() == len(on_alice)


def test_one_seed_shows_every_point_of_it(opened):
    _, page = opened("losses")
    n_lines = page.locator(".chart path").count()
    assert n_lines == 4  # for each of two plans a band and a line
    page.get_by_role("button", name="every run").click()
    assert page.locator(".chart path").count() == 4 + 2 * 10
    page.get_by_role("button", name="every run").click()
    page.get_by_role("combobox", name="Seed").select_option("2")
    assert page.locator(".chart path").count() == 2 * 2 and "every point of seed 2" in page.inner_text(
        ".title"
    )


def test_nothing_chosen_is_said_in_words(opened):
    _, page = opened("losses")
    for name in ("full training, 1e-4", "main plan, 1e-4"):
        page.get_by_role("button", name=name).click()
    assert "No run is chosen on this text: press a plan below." in page.inner_text(".losses")


# --- style mixer -------------------------------------------------------------------


def columns_of(page) -> list[str]:
    return page.locator(".column p").all_inner_texts()


def test_enter_lets_the_models_write_and_marks_where_they_part(opened):
    widget, page = opened("styles")
    page.get_by_label("Prompt").fill("The ship")
    page.get_by_label("Prompt").press("Enter")
    page.wait_for_function("document.querySelector('.styles').textContent.includes('parts from')")
    base, twin, other = columns_of(page)
    assert base == twin != other and base.startswith("The ship")
    assert page.locator("mark").count() == 1
    pieces = widget.answer["pieces"]
    n = next(i for i in range(6) if pieces["other"][i] != pieces["base"][i])
    assert f"twin writes the same as base. other parts from base after {n} of 6 tokens." in page.inner_text(
        ".styles"
    )


def test_other_dice_write_something_else_and_the_button_comes_back(opened):
    _, page = opened("styles")
    before = columns_of(page)
    page.get_by_role("button", name="Other dice").click()
    page.wait_for_function("!document.querySelector('form button').disabled")
    assert columns_of(page) != before and page.get_by_label("Seed").input_value() == "4"


def test_a_prompt_that_is_too_long_is_told_in_words(opened):
    _, page = opened("styles")
    before = columns_of(page)
    page.get_by_label("Prompt").fill("word " * 300)
    page.get_by_role("button", name="Write").click()
    page.wait_for_function("!document.querySelector('.problem').hidden")
    assert "256 positions" in page.get_by_role("alert").inner_text() and columns_of(page) == before
    assert page.get_by_role("button", name="Write").is_enabled()


# --- rewinding dial ----------------------------------------------------------------


def test_the_dial_moves_from_stop_to_stop_by_keyboard_and_by_a_click_on_a_point(opened):
    widget, page = opened("rewinding")
    page.locator("input").focus()
    page.keyboard.press("ArrowRight")
    assert widget.choice == {"share": 0.8} and "α = 0.8: gain 0.110" in page.inner_text(".rewinding")
    page.keyboard.press("End")
    assert widget.choice == {"share": 1.0}
    page.locator("circle").nth(5).click()  # after four looks of training, the second stop
    assert widget.choice == {"share": 0.5} and "α = 0.5" in page.inner_text("label")


# --- on a page of the site, where no kernel answers --------------------------------


@pytest.fixture
def without_kernel(browser, make):
    """A function that shows a widget as the site does: from what a stored output keeps, with the modules as files."""
    handler = functools.partial(QuietHandler, directory=str(MODULES))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server, ExitStack() as stack:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address, errors = f"http://127.0.0.1:{server.server_address[1]}", []
        context = stack.enter_context(browser.new_context(viewport={"width": 1000, "height": 900}))

        def open_(name):
            page = context.new_page()
            page.on("pageerror", lambda error: errors.append(str(error)))
            page.route(f"{address}/page", lambda route: route.fulfill(body=html, content_type="text/html"))
            html = f"<!doctype html><meta charset=utf-8><body>{place_of(make(name).on_page(), address)}"
            page.goto(f"{address}/page")
            page.wait_for_selector("[data-course-widget].runs")
            return page

        yield open_
        server.shutdown()
        assert not errors, "\n".join(errors)


def test_the_designer_counts_without_a_kernel(without_kernel):
    page = without_kernel("freezing")
    assert page.locator(".meter").count() == 3  # the first answer of the kernel is kept
    page.locator('[data-part="mlp@2"]').click()
    assert plan_on(page) == FreezePlan.freeze("attention", "embeddings", "mlp@2")
    assert page.locator(".meter").count() == 1 and page.inner_text(".share") == "34.1%"


def test_the_explorer_shows_its_passage_without_a_kernel(without_kernel):
    page = without_kernel("blocks")
    page.locator(".words button").nth(70).click()
    assert (
        "may see 64 of" in page.inner_text(".said") and not page.get_by_label("Your own passage").is_visible()
    )


@pytest.mark.parametrize("name", ["losses", "rewinding"])
def test_curves_react_without_a_kernel(name, without_kernel):
    page = without_kernel(name)
    before = page.inner_html(".chart")
    page.locator(".losses .choices button:enabled, .rewinding input").first.focus()
    page.keyboard.press("Home" if name == "rewinding" else "Space")
    assert page.inner_html(".chart") != before


@pytest.mark.parametrize("name", ["memory", "styles"])
def test_what_cannot_do_without_a_kernel_stays_a_picture(name, make):
    assert make(name).on_page() is None
