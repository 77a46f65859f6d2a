"""The rewinding dial: it shows what was measured, says it in words, and draws both ways."""

import time
from statistics import median

import pytest

from helpers.lessons.widgets.rewinding import figure, forgetting_on_the_way, lines, rewinding_dial, sentence

TRAINED = [(0.0, 0.0), (0.06, 0.04), (0.12, 0.10), (0.10, 0.20)]
REWOUND = {0.0: (0.0, 0.0), 0.5: (0.09, 0.05), 0.8: (0.11, 0.13), 1.0: (0.10, 0.20)}


@pytest.fixture
def dial():
    return rewinding_dial(TRAINED, REWOUND, start=0.5)


def test_it_offers_the_measured_shares_alone_and_starts_where_it_is_told(dial):
    slider = dial.controls["share"]
    assert [share for _, share in slider.options] == [0.0, 0.5, 0.8, 1.0]
    assert slider.value == 0.5


def test_dragging_is_answered_in_words_with_what_was_measured(dial):
    assert "α = 0.5: gain 0.090, forgetting 0.050" in dial.views["said"].value
    dial.controls["share"].value = 0.8
    assert "α = 0.8: gain 0.110, forgetting 0.130" in dial.views["said"].value
    assert "110% and 65% of what α = 1 has" in dial.views["said"].value


def test_training_at_the_same_gain_stands_beside_it():
    assert forgetting_on_the_way(TRAINED, 0.09) == pytest.approx(0.07)  # halfway between two looks
    assert "Training had forgotten 0.070" in sentence(TRAINED, REWOUND, 0.5)
    assert forgetting_on_the_way(TRAINED, 0.5) is None
    assert "Training" not in sentence(TRAINED, {0.5: (0.5, 0.05), 1.0: (0.6, 0.2)}, 0.5)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_the_two_ends_are_compared_with_nothing(share):
    assert "Training" not in sentence(TRAINED, REWOUND, share)


def test_a_run_that_gained_nothing_gets_no_shares():
    assert "%" not in sentence([(0.0, 0.0), (-0.1, 0.1)], {0.5: (-0.02, 0.02), 1.0: (-0.1, 0.1)}, 0.5)


def test_the_way_back_is_drawn_from_the_base_to_the_tuned_model():
    out, back, here = lines(TRAINED, REWOUND, 0.8)
    assert list(zip(out.x, out.y, strict=True)) == TRAINED and out.dots
    assert (back.x[0], back.y[0]) == (0.0, 0.0) and (back.x[-1], back.y[-1]) == (0.10, 0.20)
    assert (here.x[1], here.y[1]) == REWOUND[0.8]


def test_the_picture_and_its_sentence_say_the_same(dial):
    picture, said = dial.still()
    assert said == sentence(TRAINED, REWOUND, 0.5)
    assert [t.get_text() for t in picture.axes[0].texts] == ["0", "0.5", "0.8", "1"]
    assert [t.get_text() for t in figure(TRAINED, REWOUND, 0.5).axes[0].get_legend().get_texts()] == [
        "training",
        "rewinding",
    ]


def test_the_chart_is_described_for_those_who_cannot_see_it(dial):
    assert 'role="img"' in dial.views["picture"].value and "aria-label=" in dial.views["picture"].value


def test_a_change_is_answered_within_100_ms(dial):
    taken = []
    for share in (0.0, 0.5, 0.8, 1.0) * 3:
        began = time.perf_counter()
        dial.controls["share"].value = share
        taken.append(time.perf_counter() - began)
    assert median(taken) < 0.1
