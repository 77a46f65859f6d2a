"""Probes whose paths are known: what a rule must find in them can be said beforehand."""

import numpy as np

from helpers.study.recipes import REWOUND, STOPPED, Probe

PLACES = {STOPPED: (0, 10, 20, 30, 40), REWOUND: (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)}
N_WINDOWS = 12


def models(places, gain, forgets, bump=1.0) -> list[dict]:
    """The gain grows straight to ``gain``, forgetting with its square to ``forgets``; windows differ a little."""
    window = 1 + 0.1 * np.linspace(-1, 1, N_WINDOWS)
    points = []
    for place in places:
        share = place / places[-1]
        loss, lost = 4.0 - gain * share * window, forgets * share**2 * window
        points.append(
            {
                "at": place,
                "dev": loss.tolist(),
                "test": (4.0 - bump * gain * share * window).tolist(),
                "a": lost.tolist(),
                "b": (bump * lost).tolist(),
            }
        )
    return points


def probe(candidate, gain=0.1, stopped=0.1, rewound=0.06, ended="", bump=1.0) -> Probe:
    if ended == "diverged":
        record = {}
    else:
        record = {
            STOPPED: models(PLACES[STOPPED], gain, stopped, bump),
            REWOUND: models(PLACES[REWOUND], gain, rewound, bump),
        }
    head = {"candidate": list(candidate), "n_steps": 40, "best_step": 40, "step_seconds": 0.1}
    return Probe.of({**head, "ended": ended, **record})
