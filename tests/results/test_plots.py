"""Pictures: what a colour means, and where a legend stands."""

import re

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_hex, to_rgb

from helpers import plots
from helpers.freezing.plans import COURSE_PLANS, PLANS
from helpers.profiles import DATA, ROOT, TINY
from helpers.results import answers, long_runs, lora_study
from helpers.results.evidence import read_evidence


@pytest.fixture(autouse=True)
def no_figure_stays_open():
    yield
    plt.close("all")


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


def test_a_role_keeps_its_colour_in_every_picture():
    for order in (("attention", "mlp"), ("mlp", "attention")):
        figure = plots.shares({"plan": dict.fromkeys(order, 1e6)}, "title")
        bars = dict(zip(order, figure.axes[0].patches, strict=True))
        assert to_hex(bars["mlp"].get_facecolor()).upper() == plots.ROLE_COLOURS["mlp"]


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


# --- plans -------------------------------------------------------------------------


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


def test_the_pages_of_the_site_have_the_colours_of_the_theme():
    style = (ROOT / "publishing/static/mini/page.css").read_text("utf-8")
    names = {"ice": "frozen", "ice-fill": "frozen-fill", "orange": "trains", "orange-fill": "trains-fill"}
    found = dict(re.findall(r"--([\w-]+): light-dark\((#\w+, #\w+)\)", style))
    for name, shades in plots.THEME.items():
        (own,) = [key for key in found if names.get(key, key) == name]
        assert found[own] == ", ".join(shades), name


@pytest.fixture(scope="module")
def recorded():
    return read_evidence(TINY.model_name)


@pytest.mark.parametrize(
    "answer",
    [answers.forgetting, answers.rates, lora_study.lora, long_runs.convergence],
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
