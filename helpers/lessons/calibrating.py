"""How well a reader's 80% ranges held the answers."""

from __future__ import annotations

from math import comb

from helpers.lessons.predicting import held, predictions, revealed
from helpers.lessons.showing import calibration_plot, card, in_html, tell

SURE = 0.8  # how sure of a range the reader was asked to be
FEWEST = 5  # predictions of which something can be said


def calibration() -> None:
    """Show how many of the reader's ranges held, and what somebody who is 80% sure, and right about it, would reach.

    It counts predictions with a range whose result was revealed; a notebook shows each on a line as well.
    """
    found = held()
    if not found:
        are_noted = any(entry["low"] is not None for entry in predictions().values())
        words = "none of your predictions is revealed yet" if are_noted else "no predictions were noted"
        print(words)
        return
    words = calibration_words(found)
    tell(words, lambda: _calibration_card(found, words))


def calibration_words(found: dict[str, bool]) -> str:
    """Say how many ranges held, and what that says.

    Args:
        found: each prediction's name, and whether its range held.
    """
    n, n_held = len(found), sum(found.values())
    missed = [name for name, holds in found.items() if not holds]
    lines = [
        f"your {SURE:.0%} ranges: {n_held} of {n} held" + f" (missed: {', '.join(missed)})" * bool(missed)
    ]
    if n < FEWEST:
        lines.append(f"Of fewer than {FEWEST} predictions nothing can be said yet.")
        return "\n".join(lines)
    least, most = usual_hits(n)
    lines.append(
        f"Anyone whose ranges are right {SURE:.0%} of the time would hold about {SURE * n:.0f} of {n}, "
        f"and usually {least} to {most}."
    )
    if n_held < least:
        lines.append("You were surer than you could be: make your ranges wider.")
    elif n_held > most:
        lines.append("You knew more than you said: make your ranges narrower.")
    else:
        lines.append("Yours agree with that.")
    return "\n".join(lines)


def usual_hits(n: int) -> tuple[int, int]:
    """Return the least and the most of ``n`` ranges that hold, leaving out the rarest twentieth on either side.

    Each holds with a probability of 0.8, independently of the others: a binomial distribution.
    """
    chances = [comb(n, k) * SURE**k * (1 - SURE) ** (n - k) for k in range(n + 1)]
    least = next(k for k in range(n + 1) if sum(chances[: k + 1]) > 0.05)
    most = next(k for k in range(n, -1, -1) if sum(chances[k:]) > 0.05)
    return least, most


def _calibration_card(found: dict[str, bool], words: str) -> str:
    noted = predictions()
    answers = revealed()
    rows = {
        name: (noted[name]["value"], noted[name]["low"], noted[name]["high"], answers[name]) for name in found
    }
    picture = calibration_plot(rows, "Each range beside the answer. " + words.replace("\n", " "))
    about = (
        "<div><small>Bar: your range. Circle: your guess. Line: the answer. "
        "What lies beyond an edge is drawn at it.</small></div>"
    )
    return card("number", "calibration", "", f"<div>{in_html(words)}</div>{picture}{about}")
