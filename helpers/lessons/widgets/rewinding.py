"""The rewinding dial: drag the share α of the change that stays, and see where the model stands.

Every point of the picture was measured before: the dial draws no model that nobody has looked at.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from helpers.lessons.widgets.live import LiveDrawing
from helpers.measuring import crossing
from helpers.plots import COLOURS

__all__ = ["rewinding_dial"]

TRAINED, REWOUND, HERE = COLOURS[1], COLOURS[0], COLOURS[6]  # orange trains, blue goes back to the base
Point = tuple[float, float]  # gain, forgetting: nats per token


def rewinding_dial(
    trained: Sequence[Point], rewound: Mapping[float, Point], start: float = 1.0
) -> LiveDrawing:
    """A widget that shows one run's way out, and its way back.

    Args:
        trained: (gain, forgetting) of the models along training, the base first; nats per token.
        rewound: share α to the same of the model base + α (tuned - base), measured; 0 and 1 among the shares.
        start: the share that is shown at first, one of them.
    """
    stops = [
        {
            "share": share,
            "point": list(map(float, rewound[share])),
            "said": sentence(trained, rewound, share),
        }
        for share in sorted(rewound)
    ]
    data = {"trained": [list(map(float, point)) for point in trained], "rewound": stops}

    def still():
        return figure(trained, rewound, start), sentence(trained, rewound, start)

    return LiveDrawing("rewinding", data, {"share": start}, still)


def sentence(trained: Sequence[Point], rewound: Mapping[float, Point], share: float) -> str:
    """What the model at a share gained and forgot, beside the tuned one and beside training at the same gain."""
    (gain, forgetting), (whole_gain, whole) = rewound[share], rewound[1.0]
    said = f"α = {share:g}: gain {gain:.3f}, forgetting {forgetting:.3f} nats per token"
    if share < 1 and whole_gain > 0 and whole > 0:
        said += f" ({gain / whole_gain:.0%} and {forgetting / whole:.0%} of what α = 1 has)"
    on_the_way = forgetting_on_the_way(trained, gain)
    if 0 < share < 1 and on_the_way is not None:
        said += f". Training had forgotten {on_the_way:.3f} where it first had this gain"
    return f"{said}."


def forgetting_on_the_way(trained: Sequence[Point], gain: float) -> float | None:
    """What the run had forgotten where it first had a gain, linear in between; None where it never had it."""
    gains, forgotten = np.array(trained).T
    found = float(crossing(gains, forgotten, gain))
    return None if np.isnan(found) else found


def figure(trained: Sequence[Point], rewound: Mapping[float, Point], share: float) -> Figure:
    """The same as a picture, for pages without a kernel."""
    picture = Figure(figsize=(7.5, 3.8), layout="constrained")
    ax = picture.add_subplot()
    back = np.array([rewound[each] for each in sorted(rewound)]).T  # (2, shares)
    gain, forgetting = rewound[share]
    ax.plot(*np.array(trained).T, "o-", color=TRAINED, markersize=4, linewidth=1.8, label="training")
    ax.plot(*back, "--", color=REWOUND, linewidth=1.8, label="rewinding")
    ax.plot([gain, gain, 0.0], [0.0, forgetting, forgetting], ":", color=HERE, linewidth=1.2)
    for each, (right, up) in zip(sorted(rewound), beside(back).T, strict=True):
        place = {"textcoords": "offset points", "ha": "center", "va": "center"}
        ax.annotate(f"{each:g}", rewound[each], (right, up), fontsize=8, color=REWOUND, **place)
    ax.set_title("The way out and the way back; small numbers are α", loc="left", fontsize=11)
    ax.set(xlabel="gain (nats per token)", ylabel="forgetting (nats per token)")
    ax.margins(y=0.1)  # room for the numbers below the line
    ax.grid(alpha=0.25)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(fontsize=8)
    return picture


def beside(line: np.ndarray, distance: float = 11) -> np.ndarray:
    """Steps from each point of a line to the place of its number, at the line's right hand: (2, points), in points."""
    along = np.gradient(line, axis=1) / np.maximum(np.ptp(line, axis=1, keepdims=True), 1e-12)  # (2, points)
    across = np.stack([along[1], -along[0]])
    return distance * across / np.maximum(np.linalg.norm(across, axis=0), 1e-12)
