"""The claims one by one, as cards from recorded verdicts.

cards = claim_cards(recorded_claims())
print(cards)                at most 80 columns, for a terminal
cards                       in a notebook: each card unfolds
cards.svg("light")          a picture, for a README
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from rich.console import Console
from rich.text import Text

from helpers.files import read_json
from helpers.measuring import FAILS, HOLDS, IN_PART, UNDECIDED, UNTESTED, over_texts
from helpers.plots import Svg
from helpers.profiles import DATA
from helpers.results.claims import (
    CLAIMS,
    ClaimError,
    Entry,
    Scale,
    Verdict,
    entries_of,
    seeds_of,
    two_digits,
    with_interval,
)

RECORDED = DATA / "evidence" / "claims.json"
OPEN = (UNDECIDED, UNTESTED)


def recorded_claims(place: Path = RECORDED) -> list[Entry]:
    """The verdicts that the course ships: of the study, of the measurements of time and memory, of the notebooks.

    Raises:
        ClaimError: the file is not there, or is damaged.
    """
    try:
        found = read_json(place, list)
    except (OSError, ValueError) as error:
        raise ClaimError(
            f"The recorded verdicts cannot be read ({error}). Restore '{place}' from the repository."
        ) from error
    return [Entry.from_json(each) for each in found]


def verdict_over_models(entry: Entry) -> str:
    """One verdict to choose an advice by: what holds must hold on every model that was tested."""
    tested = [v.verdict for v in entry.verdicts if v.verdict != UNTESTED]
    return over_texts(tested) if tested else UNTESTED


def verdict_counts(entries: Sequence[Entry]) -> dict[str, list[str]]:
    """Verdict over all models to the claims that got it, in the order holds, in part, does not hold, open."""
    entries = entries_of(entries)
    return {v: [e.id for e in entries if verdict_over_models(e) == v] for v in (HOLDS, IN_PART, FAILS, *OPEN)}


# --- the claims as cards ------------------------------------------------------------

# Verdict to its sign and its colour; white letters can be read on each, in light and in dark.
CHIPS = {
    HOLDS: ("✓", "#00704f"),
    IN_PART: ("◐", "#7a5b00"),
    FAILS: ("✗", "#a0356f"),
    UNDECIDED: ("?", "#52606d"),
    UNTESTED: ("–", "#52606d"),
}
LEGEND = "● measured, ─ its 95% interval, │ no difference, grey: too small to count"
WIDTH, COLUMNS = 80, 24  # of a terminal, and of a number line in it


@dataclass(frozen=True)
class NumberLine:
    """A number and its interval beside the value at which two things are equal; places from 0 to 1."""

    scale: Scale
    value: float
    low: float
    high: float
    zone: tuple[float, float]

    @classmethod
    def of(cls, verdict: Verdict) -> NumberLine | None:
        """None where the claim has no scale, or the verdict no number."""
        scale, value = CLAIMS[verdict.claim].scale, verdict.value
        if scale is None or value is None:
            return None
        low, high = (value if end is None else end for end in (verdict.low, verdict.high))
        half = verdict.smallest or 0.0
        reach = 1.15 * max(abs(end - scale.same) for end in (low, high, scale.same + half)) or 1.0

        def place(number: float) -> float:
            return 0.5 + (number - scale.same) / (2 * reach)

        zone = (place(scale.same - half), place(scale.same + half))
        return cls(scale, place(value), place(low), place(high), zone)

    def __str__(self) -> str:
        """As characters: grey is too small to count, the upright line is equality."""
        signs = [" "] * (COLUMNS + 1)

        def column(place: float) -> int:
            return round(place * COLUMNS)

        if self.zone[0] < self.zone[1]:
            for i in range(column(self.zone[0]), column(self.zone[1]) + 1):
                signs[i] = "░"
        for i in range(column(self.low), column(self.high) + 1):
            signs[i] = "─"
        signs[COLUMNS // 2] = "│"
        signs[column(self.value)] = "●"
        return "".join(signs)

    def html(self, words: str) -> str:
        """As a small picture in the colour of the text around it."""
        start, end, low, high, value = (
            round(200 * p, 1) for p in (*self.zone, self.low, self.high, self.value)
        )
        return (
            f'<svg viewBox="0 0 200 16" width="150" height="12" role="img" aria-label="{escape(words)}">'
            f'<rect x="{start}" width="{end - start:g}" height="16" fill="currentColor" opacity="0.2"/>'
            '<path d="M 100 0 V 16" stroke="currentColor"/>'
            f'<path d="M {low} 8 H {high}" stroke="currentColor" stroke-width="2"/>'
            f'<circle cx="{value}" cy="8" r="5" fill="currentColor"/></svg>'
        )


def number(verdict: Verdict) -> str:
    """The number and its interval, in few digits."""
    if verdict.value is None:
        return "no number"
    if verdict.low is None or verdict.high is None:
        return two_digits(verdict.value)
    return with_interval(verdict.value, verdict.low, verdict.high)


def where(verdict: Verdict) -> str:
    """What a row is about: its part, text and model, how many seeds, and whether it was measured now or recorded."""
    parts = [verdict.part, verdict.text, f"{verdict.model}{seeds_of(verdict)}, {verdict.source}"]
    return "; ".join(filter(None, parts))


class ClaimCards:
    """The cards of some claims. Text in a terminal, folded cards in a notebook or page, a picture in a README."""

    def __init__(self, entries: Sequence[Entry]):
        """``entries``: as `claims.load_claims` or `cards.recorded_claims` returns them."""
        self.entries = entries_of(entries)

    # --- text ---

    def text(self, with_notes: bool = False) -> Text:
        """The cards as text with colours, at most 80 columns; with the notes of the verdicts, if wanted."""
        if not self.entries:
            return Text("No claim has been measured yet.")
        lines = [line for entry in self.entries for line in self._lines(entry, with_notes)]
        if any(NumberLine.of(v) for e in self.entries for v in e.verdicts):
            lines.append(Text(f"{LEGEND} (░)", "dim"))
        return Text("\n").join(lines)

    def _lines(self, entry: Entry, with_notes: bool) -> list[Text]:
        sign, colour = CHIPS[verdict_over_models(entry)]
        head = Text.assemble(
            (f"{entry.id:<4}", "bold"), (f"{sign} {verdict_over_models(entry)}", f"bold {colour}")
        )
        indent = " " * 4
        lines = [head, *map(Text, _wrapped(entry.statement, indent))]
        for verdict in entry.verdicts:
            line = NumberLine.of(verdict)
            lines += [Text(part, "dim") for part in _wrapped(where(verdict), indent)]
            mark = f"{CHIPS[verdict.verdict][0]} {verdict.verdict}: " if len(entry.verdicts) > 1 else ""
            said = f"{mark}{number(verdict)} {verdict.unit}"
            lines += [Text(part) for part in _wrapped(said, indent)]
            if line:
                lines.append(Text(f"{indent}{line.scale.below:>18} {line} {line.scale.above}"))
            if with_notes:
                lines += [Text(part, "dim") for part in _wrapped(verdict.note, indent)]
        return [*lines, Text("")]

    def __str__(self) -> str:
        return "\n".join(line.rstrip() for line in self.text().plain.splitlines())

    __repr__ = __str__

    def show(self, with_notes: bool = False) -> None:
        """Print the cards, in colours where the terminal has them."""
        Console(soft_wrap=True, highlight=False).print(self.text(with_notes))

    # --- a notebook or a page ---

    def _repr_html_(self) -> str:
        columns = "repeat(auto-fill, minmax(min(100%, 21rem), 1fr))"
        cards = "".join(map(self._card, self.entries))
        return (
            f'<div class="claims"><p>{LEGEND}</p>'
            f'<div style="display: grid; gap: 10px; grid-template-columns: {columns}">{cards}</div></div>'
        )

    def _card(self, entry: Entry) -> str:
        verdict = verdict_over_models(entry)
        return (
            '<div style="border: 1px solid #8886; border-radius: 8px; padding: 8px 14px; text-align: left">'
            f"<div><b>{entry.id}</b> {chip(verdict)}</div>"
            f'<div style="margin: 6px 0"><b>{escape(entry.statement)}</b></div>'
            f"{''.join(self._row(v) for v in entry.verdicts)}"
            f"<details><summary>more</summary>{''.join(map(self._more, entry.verdicts))}</details></div>"
        )

    def _row(self, verdict: Verdict) -> str:
        sign, line = CHIPS[verdict.verdict][0], NumberLine.of(verdict)
        about = f"{sign} {verdict.part + ', ' if verdict.part else ''}{verdict.model}"
        if line is None:
            return f"<div>{escape(about)}: {escape(number(verdict))} {escape(verdict.unit)}</div>"
        picture = line.html(f"{number(verdict)} {verdict.unit}")
        return (
            f'<div>{escape(about)}</div><div style="white-space: nowrap">'
            f"<small>{escape(line.scale.below)}</small> {picture} <small>{escape(line.scale.above)}</small></div>"
        )

    def _more(self, verdict: Verdict) -> str:
        return (
            f"<p>{chip(verdict.verdict)} {escape(where(verdict))}: <b>{escape(number(verdict))}</b> "
            f"{escape(verdict.unit)}. {escape(verdict.note)}</p>"
        )

    # --- a picture ---

    def svg(self, theme: str = "auto") -> Svg:
        """All cards in one column, 480 wide, so that a phone shows letters of 11 px."""
        counts = ", ".join(
            f"{len(ids)} {verdict}" for verdict, ids in verdict_counts(self.entries).items() if ids
        )
        drawing = Svg(480, f"{len(self.entries)} claims: {counts}", theme)
        y = 14
        for entry in self.entries:
            draw_card(drawing, y, entry)
            y += card_height(entry)
        drawing.rect(20, y + 8, 24, 16, "line", radius=2)
        drawing.text(52, y + 21, "too small to count")
        drawing.path(f"M 210 {y + 16} H 250", "ink")
        drawing.circle(230, y + 16, 5, "ink")
        drawing.text(258, y + 21, "measured, 95% interval")
        drawing.height = y + 42
        return drawing


def claim_cards(entries: Sequence[Entry]) -> ClaimCards:
    """Show claims with their verdicts as cards."""
    return ClaimCards(entries)


def chip(verdict: str) -> str:
    """A verdict as HTML."""
    sign, colour = CHIPS[verdict]
    return (
        f'<span style="background: {colour}; border-radius: 1em; color: #fff; padding: 1px 9px; '
        f'white-space: nowrap">{sign} {verdict}</span>'
    )


def _wrapped(words: str, indent: str) -> list[str]:
    return textwrap.wrap(
        words, WIDTH, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False
    )


# --- one card of the picture -------------------------------------------------------

LETTERS = 50  # in a line of a card's sentence


def card_height(entry: Entry) -> int:
    """How high a card is: its sentence, and two lines for each verdict."""
    n_lines = len(textwrap.wrap(entry.statement, LETTERS))
    return 52 + 21 * n_lines + 44 * len(entry.verdicts)


def draw_card(drawing: Svg, y: float, entry: Entry) -> None:
    """One card: id and verdict, the sentence, a line for each model."""
    drawing.rect(12, y, 456, card_height(entry) - 10, "raised", "line", radius=8)
    verdict = verdict_over_models(entry)
    sign, colour = CHIPS[verdict]
    width = 30 + 9 * len(verdict)
    drawing.text(24, y + 25, entry.id, bold=True)
    drawing.rect(456 - width, y + 9, width, 23, colour, radius=11)
    drawing.text(456 - width / 2, y + 26, f"{sign} {verdict}", colour="#ffffff", anchor="middle")
    y += 50
    for line in textwrap.wrap(entry.statement, LETTERS):
        drawing.text(24, y, line, 16)
        y += 21
    for verdict in entry.verdicts:
        line = NumberLine.of(verdict)
        sign = CHIPS[verdict.verdict][0]
        drawing.text(24, y, f"{sign} {verdict.model}", colour="soft")
        drawing.text(456, y, number(verdict), colour="soft", anchor="end")
        if line:
            draw_line(drawing, y + 14, line)
        else:
            drawing.text(24, y + 19, verdict.unit, colour="soft")
        y += 44


def draw_line(drawing: Svg, y: float, line: NumberLine) -> None:
    """A number line between its two words."""
    left, width = 156, 168
    start, end, low, high, value = (left + width * p for p in (*line.zone, line.low, line.high, line.value))
    drawing.text(148, y + 5, line.scale.below, colour="soft", anchor="end")
    drawing.text(left + width + 8, y + 5, line.scale.above, colour="soft")
    drawing.rect(start, y - 8, end - start, 16, "line", radius=0, line=0)
    drawing.path(f"M {left + width / 2:g} {y - 9:g} V {y + 9:g}", "soft", 1.5)
    drawing.path(f"M {low:.1f} {y:g} H {high:.1f}", "ink")
    drawing.circle(round(value, 1), y, 5, "ink")
