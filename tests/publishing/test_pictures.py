"""The comparison of stored pictures sees a wrong colour, and not a moved digit."""

import base64
import io

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import nbformat
import pytest

from helpers import plots
from support.pictures import TOLERANCE, difference, faults


def stored(figure) -> str:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=72)
    plt.close(figure)
    return base64.b64encode(file.getvalue()).decode()


def bars(trainable=1.0, colour="#D55E00", title="Half of it trains"):
    figure, ax = plots.axes(title, "parameters (millions)", "")
    ax.barh(["mlp", "norm"], [trainable, 0.4], color=colour)
    return stored(figure)


def output(picture):
    return nbformat.v4.new_output("display_data", {"image/png": picture})


def test_the_same_picture_and_one_with_a_moved_digit_pass():
    assert difference(bars(), bars()) == 0
    assert difference(bars(), bars(1.002)) <= TOLERANCE
    assert faults([output(bars())], [output(bars(1.002))]) == []


@pytest.mark.parametrize("other", [{"colour": "#0072B2"}, {"trainable": 0.7}], ids=str)
def test_another_colour_or_another_length_is_found(other):
    (line,) = faults([output(bars())], [output(bars(**other))])
    assert "picture 1 differs" in line


def test_a_picture_too_few_is_found():
    assert faults([output(bars())], []) == ["1 pictures are stored, 0 were drawn"]
