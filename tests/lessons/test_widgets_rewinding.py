"""The rewinding dial: it shows what was measured, says it in words, and draws both ways."""

import numpy as np
import pytest

from helpers.lessons.widgets.rewinding import beside, figure, forgetting_on_the_way, rewinding_dial, sentence

TRAINED = [(0.0, 0.0), (0.06, 0.04), (0.12, 0.10), (0.10, 0.20)]
REWOUND = {0.0: (0.0, 0.0), 0.5: (0.09, 0.05), 0.8: (0.11, 0.13), 1.0: (0.10, 0.20)}


@pytest.fixture
def dial():
    return rewinding_dial(TRAINED, REWOUND, start=0.5)


def test_it_offers_the_measured_shares_alone_and_starts_where_it_is_told(dial):
    assert [stop["share"] for stop in dial.data["rewound"]] == [0.0, 0.5, 0.8, 1.0]
    assert dial.choice == {"share": 0.5} and dial.data["trained"] == [list(point) for point in TRAINED]


def test_each_share_says_what_was_measured(dial):
    said = {stop["share"]: stop["said"] for stop in dial.data["rewound"]}
    assert "α = 0.5: gain 0.090, forgetting 0.050" in said[0.5]
    assert "α = 0.8: gain 0.110, forgetting 0.130" in said[0.8]
    assert "110% and 65% of what α = 1 has" in said[0.8]


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
    out, back, here = figure(TRAINED, REWOUND, 0.8).axes[0].lines
    assert list(zip(*out.get_data(), strict=True)) == TRAINED and out.get_marker() == "o"
    assert list(zip(*back.get_data(), strict=True)) == [REWOUND[share] for share in sorted(REWOUND)]
    assert (here.get_xdata()[1], here.get_ydata()[1]) == REWOUND[0.8]


def test_a_number_stands_beside_the_line_and_not_on_it():
    back = np.array([REWOUND[share] for share in sorted(REWOUND)]).T
    steps, along = beside(back), np.gradient(back, axis=1) / np.ptp(back, axis=1, keepdims=True)
    assert np.allclose(np.linalg.norm(steps, axis=0), 11) and np.allclose((steps * along).sum(0), 0)


def test_the_picture_and_its_sentence_say_the_same(dial):
    picture, said = dial._still()
    assert said == sentence(TRAINED, REWOUND, 0.5)
    assert [t.get_text() for t in picture.axes[0].texts] == ["0", "0.5", "0.8", "1"]
    assert [t.get_text() for t in figure(TRAINED, REWOUND, 0.5).axes[0].get_legend().get_texts()] == [
        "training",
        "rewinding",
    ]
