"""The cards of the claims say what the records say."""

import io
import re
import xml.etree.ElementTree as ElementTree

import pytest
from rich.console import Console

from helpers.measuring.decisions import FAILS, HOLDS, IN_PART, UNDECIDED, UNTESTED, VERDICTS
from helpers.plots import THEME
from helpers.results.cards import (
    CHIPS,
    COLUMNS,
    NumberLine,
    claim_cards,
    recorded_claims,
    verdict_counts,
    verdict_over_models,
)
from helpers.results.claims import ClaimError, Entry, Verdict


def entry(claim, verdict, value=0.5, note="", **more):
    where = {"model": "a model", "model_hash": "h", "n_seeds": 3, "source": "recorded"} | more
    return Entry((Verdict(claim, verdict, value=value, unit="nats", note=note, **where),))


def beside(first, second):
    return Entry((*first.verdicts, *second.verdicts))


@pytest.mark.parametrize(
    "first, second, chosen",
    [
        (HOLDS, HOLDS, HOLDS),
        (HOLDS, UNDECIDED, IN_PART),
        (HOLDS, FAILS, UNDECIDED),
        (FAILS, FAILS, FAILS),
        (FAILS, UNDECIDED, UNDECIDED),
        (UNTESTED, FAILS, FAILS),
        (UNTESTED, UNTESTED, UNTESTED),
    ],
)
def test_one_verdict_over_models_is_the_careful_one(first, second, chosen):
    both = beside(entry("C10", first), entry("C10", second, 0.02, model="another model"))
    assert verdict_over_models(both) == chosen


def test_every_shipped_claim_is_counted_once():
    entries = recorded_claims()
    assert sum(map(len, verdict_counts(entries).values())) == len(entries)


def test_verdicts_are_counted_in_one_order():
    assert list(verdict_counts([entry("C1", IN_PART)])) == [HOLDS, IN_PART, FAILS, UNDECIDED, UNTESTED]
    assert verdict_counts([entry("C1", IN_PART)])[IN_PART] == ["C1"]
    on_two = beside(entry("C1", HOLDS), entry("C1", UNDECIDED, model="another"))
    assert verdict_counts([on_two])[IN_PART] == ["C1"], "each model counts"


# --- the claims as cards ------------------------------------------------------------

SHIPPED = recorded_claims()


def of_claim(claim="C10", verdict=FAILS, value=0.02, low=0.01, high=0.03, smallest=0.005, **more):
    rest = {"unit": "nats", "model": "a model", "model_hash": "h", "n_seeds": 3, "source": "recorded"}
    numbers = {"value": value, "low": low, "high": high, "smallest": smallest}
    return Entry((Verdict(claim, verdict, **(rest | numbers | more)),))


def line_of(claim="C10", **more):
    return NumberLine.of(of_claim(claim, **more).first)


def contrast(one: str, other: str) -> float:
    """The contrast of two colours, 1 to 21 (WCAG 2.2)."""

    def luminance(colour):
        parts = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


# --- a number line -----------------------------------------------------------------


def test_a_number_lies_on_its_side_of_equality_and_outside_the_zone_where_it_counts():
    line = line_of()
    assert 0 < line.zone[0] < 0.5 < line.zone[1] < line.low < line.value < line.high < 1
    less = line_of(value=-0.02, low=-0.03, high=0.001)
    assert less.low < less.value < less.zone[0] and 0.5 < less.high < less.zone[1]


def test_a_share_is_compared_with_one_and_a_difference_with_zero():
    assert line_of("C13", value=1.0, low=0.9, high=1.1).value == 0.5
    assert line_of(value=0.0, low=-1.0, high=1.0).value == 0.5


def test_what_has_no_scale_or_no_number_has_no_line():
    assert line_of("C5", value=57.0) is None
    assert line_of(verdict="not decided", value=None, low=None, high=None) is None


def test_the_line_as_characters_keeps_the_order():
    text = str(line_of())
    assert len(text) == COLUMNS + 1
    assert (
        text.index("░")
        < text.index("│")
        < text.index("─")
        < text.index("●")
        == round(COLUMNS * line_of().value)
    )


# --- forms -------------------------------------------------------------------------


def test_a_terminal_of_80_columns_shows_every_line_whole():
    lines = str(claim_cards(SHIPPED)).splitlines()
    assert max(map(len, lines)) <= 80
    for e in SHIPPED:
        (head,) = (line for line in lines if re.match(rf"{e.id}\b", line))
        assert head.endswith(verdict_over_models(e))


def test_a_terminal_with_colours_shows_the_same_words():
    console = Console(file=io.StringIO(), force_terminal=True, width=80, color_system="truecolor")
    console.print(claim_cards([of_claim()]).text())
    shown = console.file.getvalue()
    assert "\x1b[" in shown
    plain = re.sub(r"\x1b\[[\d;]*m", "", shown)
    assert plain.split() == str(claim_cards([of_claim()])).split()


def test_a_terminal_shows_the_notes_only_where_they_are_asked_for():
    cards = claim_cards([of_claim(note="on these two texts, " * 9)])
    assert "on these two texts" not in str(cards)
    lines = cards.text(with_notes=True).plain.splitlines()
    assert sum("on these two texts" in line for line in lines) > 1 and max(map(len, lines)) <= 80


def test_a_page_folds_the_notes_and_shows_verdict_number_and_line():
    html = claim_cards([of_claim(note="on these <two> texts")])._repr_html_()
    card, more = html.split("<details>")
    assert FAILS in card and "forgets more" in card and 'aria-label="0.020 [0.010, 0.030] nats"' in card
    assert "on these &lt;two&gt; texts" in more and "on these" not in card
    assert len(re.findall("<details>", claim_cards(SHIPPED)._repr_html_())) == len(SHIPPED)
    assert "\n" not in claim_cards(SHIPPED)._repr_html_(), "an empty line would end it inside Markdown"


@pytest.mark.parametrize("theme", ["light", "dark", "auto"])
def test_the_picture_is_well_formed_and_holds_every_claim(theme):
    drawn = str(claim_cards(SHIPPED).svg(theme))
    words = [t.text for t in ElementTree.fromstring(drawn).iter("{http://www.w3.org/2000/svg}text")]
    assert {e.id for e in SHIPPED} <= set(words)
    assert len([w for w in words if w == "forgets more"]) == len(SHIPPED[9].verdicts)
    assert ("prefers-color-scheme" in drawn) == (theme == "auto")


def test_every_verdict_has_a_sign_of_its_own_and_white_letters_can_be_read_on_it():
    assert set(CHIPS) == set(VERDICTS) and len({sign for sign, _ in CHIPS.values()}) == len(VERDICTS)
    assert all(contrast(colour, "#ffffff") >= 4.5 for _, colour in CHIPS.values())


@pytest.mark.parametrize("theme", [0, 1])
def test_words_can_be_read_on_every_ground(theme):
    for ground in ("paper", "raised", "frozen-fill", "trains-fill"):
        assert contrast(THEME["ink"][theme], THEME[ground][theme]) >= 7
    for words in ("soft", "frozen", "trains"):
        assert contrast(THEME[words][theme], THEME["raised"][theme]) >= 4.5


def test_a_claim_that_holds_on_one_model_alone_says_so_on_its_card():
    other = of_claim(verdict=HOLDS, value=-0.02, low=-0.03, high=-0.01, model="another")
    text = str(claim_cards([Entry((*of_claim().verdicts, *other.verdicts))]))
    assert "✓ holds: -0.020" in text and "✗ does not hold: 0.020" in text


def test_verdicts_that_are_not_there_or_damaged_are_named(tmp_path):
    place = tmp_path / "claims.json"
    for words in (None, "{", "{}"):
        if words is not None:
            place.write_text(words)
        with pytest.raises(
            ClaimError, match=r"verdicts cannot be read .*Restore '.*claims.json' from the repository"
        ):
            recorded_claims(place)
