"""What a notebook shows of a reply: a card, and numbers on a line. Everywhere else the same words are printed.

Cards and lines take the colour of the text around them, so that they can be read in light and in dark. Colour
never says anything alone: a sign and a word stand beside it.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Mapping
from html import escape

from helpers.files import say, wrapped
from helpers.profiles import wants_text_alone

# Name to sign and colour. White letters can be read on each colour, and each is seen on white and on black.
SIGNS = {
    "right": ("✓", "#007a56"),
    "not yet": ("↻", "#8f6400"),
    "open": ("–", "#646f7a"),
    "number": ("●", "#646f7a"),
}
WIDTH, EDGE = 340, 16  # of a number line, in pixels: it fits a phone
LETTERS = 13  # their height, in pixels


def is_rich() -> bool:
    """Whether a notebook shows the outputs: a kernel runs, and the settings do not ask for text alone."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return hasattr(shell, "kernel") and not wants_text_alone()


def tell(words: str, html: Callable[[], str]) -> None:
    """Show HTML in a notebook, and print the words everywhere else, in lines that fit the page."""
    if is_rich():
        from IPython.display import display

        display({"text/plain": wrapped(words), "text/html": html()}, raw=True)
    else:
        say(words)


def card(kind: str, word: str, title: str, body: str) -> str:
    """A card as HTML: sign and word, a title, and below them the body.

    Args:
        kind: a name of `SIGNS`.
        word: says what the sign says; plain text, as the title is.
        body: HTML.
    """
    sign, colour = SIGNS[kind]
    return (
        f'<div class="course-card" style="border-left: 4px solid {colour}; padding: 4px 0 4px 12px; '
        'max-width: 44em; line-height: 1.45; text-align: left">'
        f'<div><span style="background: {colour}; border-radius: 1em; color: #fff; padding: 1px 9px; '
        f'white-space: nowrap"><span aria-hidden="true">{sign}</span> {escape(word)}</span> {in_html(title)}</div>'
        f'<div style="margin-top: 4px">{body}</div></div>'
    )


def in_html(words: str) -> str:
    """Plain text as HTML: what stands between backquotes is code, and lines stay lines."""
    text = re.sub(r"`([^`\n]+)`", r"<code>\1</code>", escape(words))
    return re.sub(r"\*\*([^*\n]+)\*\*", r"<b>\1</b>", text).replace("\n", "<br>")


# --- numbers on a line -------------------------------------------------------------


def number_line(
    measured: float,
    interval: tuple[float, float] | None,
    guess: float,
    ends: tuple[float, float] | None,
    how: str,
) -> str:
    """A guess and a measured number on one line, as an SVG picture in HTML; nothing for numbers beyond 1e300.

    Args:
        interval: of the measured number, if it has one.
        ends: the reader's range, if there is one: a bar.
        how: the word beside the measured number.
    """
    numbers = [measured, guess, *(interval or ()), *(ends or ())]
    if max(map(abs, numbers)) > 1e300:
        return ""
    at = _Axis(min(numbers), max(numbers))
    across = f"H {WIDTH - EDGE}"
    parts = [f'<path d="M {EDGE} 42 {across} M {EDGE} 80 {across}" stroke="currentColor" opacity="0.6"/>']
    if ends:
        parts.append(
            f'<rect class="range" x="{at(ends[0]):.1f}" y="34" width="{at(ends[1]) - at(ends[0]):.1f}" height="16" '
            'rx="3" fill="currentColor" opacity="0.25"/>'
        )
    if interval:
        parts.append(
            f'<path class="interval" d="M {at(interval[0]):.1f} 42 H {at(interval[1]):.1f}" '
            'stroke="currentColor" stroke-width="3"/>'
        )
    parts += [_tick(at(value), value) for value in _round_numbers(at.low, at.high)]
    parts += [_dot(at(measured), 42, "measured"), _dot(at(guess), 42, "guess")]
    yours = f"you: {guess:.4g}" + (f" ({ends[0]:.4g} to {ends[1]:.4g})" if ends else "")
    parts += [_label(at(guess), 20, yours), _label(at(measured), 68, f"{how}: {measured:.3g}")]
    words = f"Number line. {yours}. {how}: {measured:.3g}"
    words += f", interval {interval[0]:.3g} to {interval[1]:.3g}." if interval else "."
    return svg(words, 104, parts)


def calibration_plot(rows: Mapping[str, tuple[float, float, float, float]], words: str) -> str:
    """One row a prediction, scaled so that each answer stands at the centre, as an SVG picture in HTML.

    Args:
        rows: name to guess, low, high, answer. What lies below zero, or beyond double the answer, is drawn at the
            edge.
    """
    left, height = 96, 30 + 24 * len(rows)
    centre, half = (left + WIDTH - EDGE) / 2, (WIDTH - EDGE - left) / 2

    def at(value: float, answer: float, span: float) -> float:
        return centre + half * max(-1.0, min(1.0, (value - answer) / span))

    parts = [f'<path d="M {centre} 4 V {height - 24}" stroke="currentColor" stroke-width="1.5"/>']
    for k, (name, (guess, low, high, answer)) in enumerate(rows.items()):
        y, span = 16 + 24 * k, abs(answer) or high - low
        ends = [at(end, answer, span) for end in (low, high)]
        begin = min(ends[0], WIDTH - EDGE - 8)
        held = "✓" if low <= answer <= high else "↻"
        parts += [
            f'<text x="0" y="{y + 4}">{held} {escape(name)}</text>',
            f'<rect class="range" x="{begin:.1f}" y="{y - 6}" width="{max(ends[1] - begin, 8):.1f}" height="12" '
            'rx="3" fill="currentColor" opacity="0.3"/>',
            _dot(at(guess, answer, span), y, "guess"),
        ]
    places = ((left, "start", "0"), (centre, "middle", "the answer"), (WIDTH - EDGE, "end", "double"))
    parts += [f'<text x="{x:g}" y="{height - 6}" text-anchor="{side}">{w}</text>' for x, side, w in places]
    return svg(words, height, parts)


def svg(words: str, height: float, parts: list[str]) -> str:
    """A picture with its alternative text, no wider than the page."""
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:g}" width="{WIDTH}" role="img" aria-label="{escape(words)}" '
        f'font-size="{LETTERS}" fill="currentColor" style="display: block; max-width: 100%; height: auto; '
        f'margin: 6px 0">{"".join(parts)}</svg>'
    )


class _Axis:
    """From numbers to pixels: the lowest and the highest have some room on their outer side."""

    def __init__(self, low: float, high: float):
        is_one_point = high - low <= 1e-6 * max(abs(low), abs(high)) + 1e-30
        room = max(abs(high), 1.0) if is_one_point else 0.12 * (high - low)
        self.low = low - room
        self.high = high + room

    def __call__(self, value: float) -> float:
        return EDGE + (WIDTH - 2 * EDGE) * (value - self.low) / (self.high - self.low)


def _round_numbers(low: float, high: float) -> list[float]:
    """Two to seven round numbers between two ends."""
    power = 10.0 ** math.floor(math.log10(high - low))
    step = next(power * s for s in (2, 1, 0.5, 0.2) if (high - low) / (power * s) >= 2.5)
    return [k * step for k in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _tick(x: float, value: float) -> str:
    return (
        f'<path d="M {x:.1f} 80 V 84" stroke="currentColor"/>'
        f'<text x="{x:.1f}" y="97" font-size="12" text-anchor="middle">{float(f"{value:.6g}"):g}</text>'
    )


def _dot(x: float, y: float, name: str) -> str:
    """A dot: a circle for the guess, filled for what was measured. Where they meet, both are seen."""
    look = (
        'r="6" fill="none" stroke="currentColor" stroke-width="2"'
        if name == "guess"
        else 'r="4" fill="currentColor"'
    )
    return f'<circle class="{name}" cx="{x:.1f}" cy="{y:g}" {look}/>'


def _label(x: float, y: float, words: str) -> str:
    """Words over or under a place; near an edge they end there."""
    half = 0.32 * LETTERS * len(words)  # of their width, about
    side = "middle"
    if x < half:
        x, side = 2, "start"
    elif x > WIDTH - half:
        x, side = WIDTH - 2, "end"
    return f'<text x="{x:.1f}" y="{y}" text-anchor="{side}">{escape(words)}</text>'
