"""The house drawing says what the plan does, in words and colours, and can be read on a phone."""

import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from helpers.freezing import FreezePlan
from helpers.lessons import drawings
from helpers.models import build_on_meta, gpt_neo_125m_config, mini_config
from helpers.plots import THEME

MINI = build_on_meta(mini_config())
MAIN = FreezePlan.freeze("attention", "embeddings")
FORMS = {
    "flow": drawings.data_flow(MINI),
    "gradient": drawings.gradient(MINI, MAIN),
    "areas": drawings.areas(build_on_meta(gpt_neo_125m_config()), MAIN),
    "tuned": drawings.base_to_tuned(),
    "rewinding": drawings.rewinding(),
    "checkpoint": drawings.checkpoint(),
    "lora": drawings.lora(768, 8),
    "processes": drawings.two_processes(),
    "families": drawings.two_families(),
}
NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"
NS = "{http://www.w3.org/2000/svg}"
PHONE = 358 / drawings.WIDTH  # a drawing fills a screen of 390 without its margins


def texts(drawing) -> list[ElementTree.Element]:
    return list(ElementTree.fromstring(str(drawing)).iter(f"{NS}text"))


@pytest.mark.parametrize("drawing", FORMS.values(), ids=FORMS)
def test_letters_on_a_phone_are_11_pixels_high_and_stay_in_the_drawing(drawing):
    for text in texts(drawing):
        size = float(text.get("font-size"))
        width = len(text.text) * size * (drawing.LETTER + 0.06 * (text.get("font-weight") is not None))
        start = {"start": 0, "middle": width / 2, "end": width}[text.get("text-anchor")]
        left = float(text.get("x")) - start
        assert size * PHONE >= 11, text.text
        assert 0 < left and left + width <= drawing.width, text.text
        assert 0 < float(text.get("y")) < drawing.height


@pytest.mark.parametrize("drawing", FORMS.values(), ids=FORMS)
def test_a_drawing_has_words_for_readers_who_cannot_see_it(drawing):
    data, metadata = drawing._repr_mimebundle_()
    assert len(drawing.title) > 80 and metadata["image/svg+xml"]["alt"] == drawing.title
    assert max(map(len, data["text/plain"].splitlines())) <= 96
    assert ElementTree.fromstring(data["image/svg+xml"])[0].text == drawing.title


@pytest.mark.parametrize("form", FORMS)
def test_a_notebook_stores_the_drawing_that_the_code_draws(form):
    """Each length and place in it: strict nbval compares them too, but only in a whole run of a lesson."""
    stored = [
        "".join(output["data"]["image/svg+xml"])
        for path in sorted(NOTEBOOKS.glob("*.ipynb"))
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]
        for output in cell.get("outputs", [])
        if "image/svg+xml" in output.get("data", {})
    ]
    assert str(FORMS[form]) in stored, f"draw it again: course notebooks, where drawings.{form} is shown"


def colour_of(drawing, words: str) -> str:
    """The fill of the box around some words."""
    (text,) = (t for t in texts(drawing) if t.text.startswith(words))
    x, y = float(text.get("x")), float(text.get("y"))
    boxes = [
        r
        for r in ElementTree.fromstring(str(drawing)).iter(f"{NS}rect")
        if float(r.get("x")) < x < float(r.get("x")) + float(r.get("width"))
        and float(r.get("y")) < y < float(r.get("y")) + float(r.get("height"))
    ]
    return boxes[-1].get("fill")


@pytest.mark.parametrize(
    ("plan", "end", "attention", "passes"),
    [
        (MAIN, "does not reach the embeddings", "frozen", ["attention"]),
        (FreezePlan.freeze("attention"), "goes up to the embeddings", "frozen", ["attention"]),
        (FreezePlan.freeze("mlp", "embeddings"), "does not reach the embeddings", "trains", ["mlp"]),
        (FreezePlan.only("attention"), "does not reach the embeddings", "trains", ["mlp"]),
        (FreezePlan.only("mlp"), "does not reach the embeddings", "frozen", []),
        (FreezePlan.full(), "goes up to the embeddings", "trains", []),
    ],
    ids=lambda v: v.slug if isinstance(v, FreezePlan) else "",
)
def test_the_gradient_goes_as_far_as_something_trains_and_passes_what_is_frozen_on_its_way(
    plan, end, attention, passes
):
    drawing = drawings.gradient(MINI, plan)
    assert end in drawing.title
    assert colour_of(drawing, "attention:") == THEME[f"{attention}-fill"][0]
    found = re.search(r"It passes through (.+), which", drawing.title)
    assert (found[1].split(" and ") if found else []) == passes
    assert sum("lets it pass" in t.text for t in texts(drawing)) == len(passes)


def test_areas_are_as_the_numbers_of_parameters_and_a_norm_can_be_seen():
    root = ElementTree.fromstring(str(FORMS["areas"]))
    boxes = [
        (r.get("fill"), float(r.get("width")) * float(r.get("height")), float(r.get("height")))
        for r in root.iter(f"{NS}rect")
    ][1:-2]
    ice, orange = (
        [area for fill, area, height in boxes if fill == THEME[f"{state}-fill"][0] and height > 20]
        for state in ("frozen", "trains")
    )
    table, positions, *attention = ice
    assert len(attention) == len(orange) == 12
    assert sum(orange) / sum(attention) == pytest.approx(2, rel=0.01)
    assert (table + positions) / sum(attention) == pytest.approx(40.17 / 28.32, rel=0.08), (
        "gaps between boxes"
    )
    norms = [height for fill, _, height in boxes if fill == THEME["trains"][0]]
    assert len(norms) == 24 and min(norms) >= 2


@pytest.mark.parametrize(("width", "rank"), [(768, 8), (160, 4), (4096, 64)])
def test_loras_matrices_are_as_large_as_their_numbers(width, rank):
    drawing = drawings.lora(width, rank)
    boxes = [
        (r.get("fill"), float(r.get("width")), float(r.get("height")))
        for r in ElementTree.fromstring(str(drawing)).iter(f"{NS}rect")
    ][1:-2]  # neither the ground nor the legend
    (w,) = (wide * high for fill, wide, high in boxes if fill == THEME["frozen-fill"][0])
    thin = [wide * high for fill, wide, high in boxes if fill == THEME["trains-fill"][0]]
    assert len(thin) == 2
    assert sum(thin) / w == pytest.approx(max(2 * rank / width, 2 * 3 / 190), rel=0.01), (
        "at least 3 wide, to be seen"
    )
    assert f"{2 * rank / width:.1%} of W's numbers" in drawing.title


def test_dark_has_every_colour_of_the_theme():
    dark, light = (str(drawings.base_to_tuned(theme)) for theme in ("dark", "light"))
    for drawn, index in ((dark, 1), (light, 0)):
        colours = set(re.findall(r"#[0-9a-f]{6}", drawn))
        assert colours <= {shades[index] for shades in THEME.values()}
