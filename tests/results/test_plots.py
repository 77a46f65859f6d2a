"""Pictures: what a colour means, and where a legend stands."""

import base64
import io
import re

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import rgb_to_hsv, to_hex, to_rgb
from matplotlib.text import Text
from PIL import Image

from helpers import plots
from helpers.costs import KINDS
from helpers.freezing.plans import COURSE_PLANS, PLANS
from helpers.lessons.widgets import memory
from helpers.profiles import DATA, ROOT, TINY
from helpers.results import answers, plan_answers
from helpers.results.evidence import read_evidence
from helpers.study.measured_costs import GROUPS
from publishing import page_budgets

HUES = {"frozen": (185, 225), "trains": (12, 45)}  # degrees: what a reader would call ice or orange


@pytest.fixture(autouse=True)
def no_figure_stays_open():
    yield
    plt.close("all")


def test_a_figure_is_shown_with_its_words_and_may_have_two_dots_for_each_pixel_of_the_page(monkeypatch):
    shown = []
    monkeypatch.setattr(plots, "DOTS", 2)
    monkeypatch.setattr(plots, "display", lambda data, **options: shown.append((data, options)))
    figure, _ = plots.axes("title", "x", "y")
    plots.show(figure, "A title over empty axes.")
    ((data, options),) = shown
    size = options["metadata"]["image/png"]
    with Image.open(io.BytesIO(base64.b64decode(data["image/png"]))) as picture:
        assert picture.width // 2 == size["width"] and picture.width > 1300
    assert size["alt"] == "A title over empty axes." and data["text/plain"].startswith("<Figure size 700x380")
    assert figure.number not in plt.get_fignums(), "it is closed"


@pytest.mark.parametrize("n_bars", [1, 2, 6, 11])
def test_the_legend_of_the_shares_stands_right_below_the_axis_label(n_bars):
    counts = {
        f"plan {i}": {"attention": 2e6, "mlp": 3e6, "norm": 1e5, "gradients": 1e6} for i in range(n_bars)
    }
    figure = plots.shares(counts, "title")
    figure.canvas.draw()
    label, legend = figure.axes[0].xaxis.label.get_window_extent(), figure.legends[0].get_window_extent()
    gap = (label.y0 - legend.y1) / figure.dpi  # inches
    assert 0 <= gap < 0.25


def test_a_part_of_a_bar_has_its_number_where_there_is_room():
    counts = {"a": {"mlp": 9000.0, "norm": 1.0}, "b": {"mlp": 1000.0}}
    (ax,) = plots.shares(counts, "title", "MiB", 1, digits=0).axes
    assert sorted(text.get_text() for text in ax.texts if text.get_text()) == ["1,000", "9,000"]
    assert not plots.shares(counts, "title", "MiB", 1).axes[0].texts


def test_the_legend_says_which_bar_is_predicted_and_which_was_measured():
    kinds = {"optimizer": 1e6, "activations": 3e6}
    figure = plots.predicted_and_measured({"plan": {"predicted": kinds, "measured": kinds}}, "title")
    drawn = {round(bar.get_y() + bar.get_height() / 2, 1): bar.get_hatch() for bar in figure.axes[0].patches}
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == [*kinds, "upper bar: predicted", "lower bar: measured"]
    assert drawn == {-0.2: None, 0.2: "//"} and figure.axes[0].yaxis_inverted(), (
        "measured is below and hatched"
    )


def test_a_few_loss_curves_are_named_at_their_ends():
    curves = {"main, held out": ((0, 1), (3, 2)), "full, held out": ((0, 1), (3, 1))}
    (ax,) = plots.loss_curves(curves, "title", names_at_ends=True).axes
    assert ax.get_legend() is None and set(curves) <= {text.get_text() for text in ax.texts}
    assert plots.loss_curves(curves, "title").axes[0].get_legend() is not None


def test_a_dense_curve_has_no_marks():
    few, many = range(40), range(41)
    (ax,) = plots.loss_curves({"few": (few, few), "many": (many, many)}, "title").axes
    marks = {line.get_label(): line.get_marker() for line in ax.lines}
    assert marks["many"] in (None, "None", "") and marks["few"] not in (None, "None", "")


@pytest.mark.parametrize(
    "title", ["short", "a title that is much longer than this small table of numbers is wide"]
)
def test_the_title_of_a_table_in_colours_stands_within_the_figure(title):
    figure = plots.matrix(pd.DataFrame({"a": [1.0, 2.0], "b": [2.0, 3.0]}), title, "x", "y")
    figure.draw_without_rendering()
    box, page = figure._suptitle.get_window_extent(), figure.bbox
    assert page.x0 <= box.x0 and box.x1 <= page.x1 and page.y0 <= box.y0 and box.y1 <= page.y1


def test_a_role_keeps_its_colour_in_every_picture():
    for order in (("attention", "mlp"), ("mlp", "attention")):
        figure = plots.shares({"plan": dict.fromkeys(order, 1e6)}, "title")
        bars = dict(zip(order, figure.axes[0].patches, strict=True))
        assert to_hex(bars["mlp"].get_facecolor()).upper() == plots.ROLE_COLOURS["mlp"]


def test_a_kind_of_memory_keeps_its_colour_in_every_picture():
    kinds = {"optimizer": 1e6, "gradients": 2e6, "activations": 3e6}
    one = plots.shares({"plan": kinds}, "title")
    two = plots.predicted_and_measured({"plan": {"predicted": kinds, "measured": kinds}}, "title")
    for figure, order in ((one, list(kinds)), (two, 2 * list(kinds))):
        drawn = [to_hex(bar.get_facecolor()) for bar in figure.axes[0].patches]
        assert drawn == [plots.KIND_COLOURS[kind][0] for kind in order]


@pytest.mark.parametrize("kind", [*KINDS, *page_budgets.STILL_KINDS, *memory.KINDS, *GROUPS])
def test_every_kind_of_memory_is_in_the_registry(kind):
    assert kind in plots.KIND_COLOURS


def test_ice_and_orange_are_frozen_and_trains_in_every_stacked_bar():
    theirs = {**plots.KIND_COLOURS, **{role: (own, own) for role, own in plots.ROLE_COLOURS.items()}}
    for name, shades in theirs.items():
        meaning = {"frozen weights": "frozen", "trained weights": "trains"}.get(name)
        meaning = "trains" if name == "backward to the weight" else meaning  # it is there for what trains
        for shade in shades:
            hue, saturation, _ = rgb_to_hsv(to_rgb(shade))
            found = [
                word for word, (low, high) in HUES.items() if low < 360 * hue < high and saturation > 0.3
            ]
            assert found == ([meaning] if meaning else []), (name, shade)


@pytest.mark.parametrize("picture", ["publishing/static/mini/data/planner-still.svg", "results/memory.svg"])
def test_stored_bars_of_memory_have_the_registrys_colours(picture):
    drawn = {shade.lower() for shade in re.findall(r"#[0-9a-fA-F]{6}", (ROOT / picture).read_text("utf-8"))}
    coloured = {shade for shade in drawn if rgb_to_hsv(to_rgb(shade))[1] > 0.2}
    assert len(coloured) >= 3
    assert coloured <= {light for light, _ in plots.KIND_COLOURS.values()}


def test_named_lines_have_their_names_beside_their_ends_and_leave_ice_and_orange_free():
    lines = {
        "falls": ((0, 1, 2), (3, 2, 1)),
        "stays": ((0, 1, 2), (3, 3, 3)),
        "just below": ((0, 2), (3, 2.98)),
    }
    figure = plots.named_lines(lines, "One falls", "step", "value")
    (ax,) = figure.axes
    heights = {t.get_text(): t.xy[1] for t in ax.texts if t.get_text() in lines}
    assert ax.get_legend() is None and set(heights) == set(lines)
    assert heights["falls"] == 1 and heights["stays"] - heights["just below"] > 0.1, "names do not overlap"
    assert not {line.get_color() for line in ax.get_lines()} & set(plots.COLOURS[:2])


ROWS = {"a": (-0.03, -0.05, -0.01), "b": (0.02, -0.01, 0.05), "c": (0.01, np.nan, np.nan)}


def test_intervals_have_one_colour_because_rows_have_labels():
    figure = plots.intervals(ROWS, "title", "difference", smallest=0.01)
    container, zone = figure.axes[0].containers
    assert [bar.get_width() for bar in zone] == [0.02] * len(ROWS)
    assert list(container.lines[0].get_xdata()) == [mean for mean, _, _ in ROWS.values()]
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == list(ROWS)
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["too small to count"]


def test_the_legend_of_the_intervals_covers_no_point():
    figure = plots.intervals(ROWS, "title", "difference", smallest=0.01)
    figure.canvas.draw()
    assert figure.legends[0].get_window_extent().y1 <= figure.axes[0].get_window_extent().y0


def test_the_numbers_below_intervals_do_not_touch():
    rows = {
        "a row with a long name, of a recipe\nminus another": (-0.017, -0.021, -0.014),
        "b": (0.01, 0.0, 0.018),
    }
    figure = plots.intervals(rows, "title", "difference")
    figure.canvas.draw()
    picture = figure.axes[0].get_window_extent()
    boxes = [label.get_window_extent() for label in figure.axes[0].get_xticklabels()]
    boxes = [box for box in boxes if picture.x0 <= (box.x0 + box.x1) / 2 <= picture.x1]
    assert len(boxes) > 2
    assert all(right.x0 - left.x1 > 4 for left, right in zip(boxes, boxes[1:], strict=False))


# --- plans -------------------------------------------------------------------------


ENDS = {f"recipe {i}": ([0.0, 0.1], [0.0, 0.1 + 0.001 * i]) for i in range(6)} | {"far": ([0, 0.2], [0, 0.3])}


def test_each_recipe_has_its_name_beside_the_picture_and_no_two_names_overlap():
    figure = plots.recipes(ENDS, "title", level=0.05)
    figure.canvas.draw()
    names = [t for t in figure.axes[0].texts if t.get_text() in ENDS]
    assert {t.get_text() for t in names} == set(ENDS)
    boxes = sorted((Text.get_window_extent(t) for t in names), key=lambda box: box.y0)  # without its leader
    assert all(low.y1 <= high.y0 + 1 for low, high in zip(boxes, boxes[1:], strict=False))
    picture = figure.axes[0].get_window_extent()
    assert all(box.x0 >= picture.x1 and box.y1 <= figure.bbox.y1 for box in boxes)


def test_no_line_to_a_name_crosses_a_name():
    paths = {f"recipe {i}": ([0, 0.2], [0, 0.01 + 0.001 * i]) for i in range(8)} | {
        "far": ([0, 0.2], [0, 0.3])
    }
    figure = plots.recipes(paths, "title", level=0.19)
    figure.canvas.draw()
    names = [t for t in figure.axes[0].texts if t.get_text() in paths]
    for name in names:
        leader = name.arrow_patch.get_window_extent()
        assert leader.x1 <= min(Text.get_window_extent(t).x0 for t in names) + 1


def test_the_names_stand_in_the_order_of_forgetting_at_the_level():
    paths = {
        "more at the level": ([0, 0.1, 0.2], [0, 0.3, 0.4]),
        "more at the end": ([0, 0.1, 0.2], [0, 0.1, 0.9]),
    }
    upper, lower = (
        next(t for t in plots.recipes(paths, "title", 0.1).axes[0].texts if t.get_text() == name)
        for name in paths
    )
    assert upper.xy == (0.1, 0.3) and lower.xy == (0.1, 0.1)
    assert upper.get_position()[1] > lower.get_position()[1]


def test_a_path_ends_at_its_best_gain_and_one_that_falls_short_is_named_there():
    figure = plots.recipes({"short": ([0, 0.05, 0.04], [0, 0.1, 0.2])}, "title", 0.1)
    assert list(figure.axes[0].get_lines()[0].get_xdata()) == [0, 0.05]
    assert next(t for t in figure.axes[0].texts if t.get_text() == "short").xy == (0.05, 0.1)


def test_a_recipe_keeps_the_style_that_it_was_given():
    styles = {"far": {"color": "#999933", "linestyle": "--"}}
    figure = plots.recipes(ENDS, "title", 0.05, styles)
    line = next(x for x in figure.axes[0].get_lines() if x.get_label() == "far")
    assert (to_hex(line.get_color()), line.get_linestyle()) == ("#999933", "--")


def test_the_line_between_two_models_marks_its_best_gain():
    figure = plots.along_the_line([0, 0.5, 1], [0, 0.2, 0.1], [0, 0.05, 0.2], "title")
    gain, forgetting, mark = figure.axes[0].get_lines()
    assert list(gain.get_ydata()) == [0, 0.2, 0.1] and list(forgetting.get_ydata()) == [0, 0.05, 0.2]
    assert list(mark.get_xdata()) == [0.5, 0.5]


def test_every_plan_has_one_key_one_label_and_a_colour_of_its_own():
    assert all(key == named.key for key, named in PLANS.items())
    for what in ("label", "colour", "title"):
        assert len({getattr(named, what) for named in PLANS.values()}) == len(PLANS)
    assert {to_rgb(named.colour) for named in PLANS.values()}.isdisjoint({(1.0, 1.0, 1.0)})
    assert list(COURSE_PLANS) == [key for key, named in PLANS.items() if named.is_in_course]


def test_the_study_and_the_course_name_no_plan_that_the_registry_lacks():
    for page in ("PROTOCOL.md", "PROTOCOL-2.md"):
        text = (DATA / "evidence" / page).read_text("utf-8")
        named = {
            name
            for line in re.findall(r"^\w*plans = \[(.*?)\]", text, re.MULTILINE | re.DOTALL)
            for name in re.findall(r'"([^"]+)"', line)
        }
        assert named and named <= set(PLANS), named - set(PLANS)


@pytest.mark.parametrize(
    "order", [("full", "attention+embeddings"), ("attention+embeddings", "full"), ("main", "full")]
)
@pytest.mark.parametrize("draw", ["frontier", "loss_curves"])
def test_a_plan_keeps_its_colour_whatever_the_order_and_no_other_name_takes_it(order, draw):
    points = ([0.0, 0.1], [0.0, 0.2])
    figure = getattr(plots, draw)(
        {f"{name}, {text}": points for name in order for text in ("a", "b")}, "title"
    )
    lines = {line.get_label(): line for line in figure.axes[0].get_lines()}
    for name in order:
        own = {to_hex(lines[f"{name}, {text}"].get_color()).upper() for text in ("a", "b")}
        assert len(own) == 1 and (name not in PLANS or own == {PLANS[name].colour})
    assert len({to_hex(line.get_color()) for line in lines.values()}) == 2
    dashes = {text: {lines[f"{name}, {text}"].get_linestyle() for name in order} for text in ("a", "b")}
    assert dashes == {"a": {"-"}, "b": {"--"}}, "a text has its dash"


PAGE, WIDGETS = "publishing/static/mini/page.css", "helpers/lessons/widgets/js/widgets.css"
PLANNER = "publishing/static/mini/planner.css"


def colours_of(sheet: str) -> dict[str, str]:
    """The colours that a style sheet names: name to "light, dark"."""
    return dict(re.findall(r"--([\w-]+): light-dark\((#\w+, #\w+)\)", (ROOT / sheet).read_text("utf-8")))


@pytest.mark.parametrize("sheet", [PAGE, WIDGETS])
def test_the_pages_of_the_site_have_the_colours_of_the_theme(sheet):
    names = {"ice": "frozen", "ice-fill": "frozen-fill", "orange": "trains", "orange-fill": "trains-fill"}
    found = colours_of(sheet)
    for name, shades in plots.THEME.items():
        (own,) = [key for key in found if names.get(key, key) == name]
        assert found[own] == ", ".join(shades), name


@pytest.mark.parametrize("sheet", [PLANNER, WIDGETS])
def test_the_planners_have_the_colours_of_the_kinds_of_memory(sheet):
    found = colours_of(sheet)
    for kind in ("weights", "optimizer", "gradients", "activations", "logits"):
        assert found[kind] == ", ".join(plots.KIND_COLOURS[kind]), kind


def test_figures_go_dark_by_one_rule():
    style = (ROOT / "publishing/static/course.css").read_text("utf-8")
    assert style.count(f"--figure: {plots.IN_THE_DARK};") == 2  # the reader's choice, and the device's
    pictures = sorted((ROOT / "results").glob("*.svg"))
    assert pictures and all(plots.IN_THE_DARK in picture.read_text("utf-8")[:5000] for picture in pictures)


@pytest.fixture(scope="module")
def recorded():
    return read_evidence(TINY.model_name)


@pytest.mark.parametrize(
    "answer",
    [answers.forgetting, answers.rates, plan_answers.lora, plan_answers.convergence],
    ids=lambda a: a.__name__,
)
def test_a_plan_has_its_colour_in_every_figure_of_the_results(recorded, answer):
    drawn = {}
    for ax in answer(recorded).draw().axes:
        for line in ax.get_lines():
            drawn.setdefault(str(line.get_label()).partition(", ")[0], set()).add(to_hex(line.get_color()))
    colours = {named.label: named.colour.lower() for named in PLANS.values()}
    found = {label: own for label, own in drawn.items() if label in colours}
    assert len(found) >= 2
    assert found == {label: {colours[label]} for label in found}
