"""The decision card says what the records say: each verdict has its own advice, and a prediction is called one."""

import pytest

from helpers.measuring.decisions import FAILS, HOLDS, IN_PART, UNDECIDED, UNTESTED, VERDICTS
from helpers.results.cards import (
    RULES,
    UNKNOWN,
    basis_of,
    card_text,
    decision_card,
    recorded_claims,
    verdict_counts,
)
from helpers.results.claims import CLAIMS, Entry, Verdict


def entry(claim, verdict, value=0.5, note="", **more):
    where = {"model": "a model", "model_hash": "h", "n_seeds": 3, "source": "recorded"} | more
    return Entry((Verdict(claim, verdict, value=value, unit="nats", note=note, **where),))


def beside(first, second):
    return Entry((*first.verdicts, *second.verdicts))


@pytest.mark.parametrize("rule", RULES, ids=lambda r: r.claim)
def test_every_verdict_has_an_advice_and_decided_ones_differ(rule):
    assert set(rule.advice) == set(VERDICTS) and rule.claim in CLAIMS
    assert len({rule.advice[v] for v in (HOLDS, FAILS, UNDECIDED)}) == 3


@pytest.mark.parametrize("verdict", VERDICTS)
def test_the_card_follows_the_verdict_and_shows_its_number(verdict):
    card = decision_card([entry("C10", verdict, 0.011)])
    row = card.loc["to keep what the base could do"]
    assert row["then"] == next(r for r in RULES if r.claim == "C10").advice[verdict]
    assert f"C10 {verdict}: 0.011 nats" in row["this rests on"]


def test_freezing_is_not_advised_where_it_was_seen_to_fail():
    card = decision_card([entry(c, FAILS) for c in ("C10", "C12", "C13")])
    for wish in ("to keep what the base could do", "a shorter step", "the lowest loss on the new text"):
        assert card.loc[wish, "then"].startswith("do not freeze for")


def test_what_was_not_measured_is_called_predicted():
    assert "predicted, not measured" in basis_of(entry("C11", UNTESTED, 21.5, "predicted by the budget"))
    assert "predicted" not in basis_of(entry("C11", HOLDS, 26.0))
    assert "predicted" not in basis_of(entry("C11", UNTESTED, 21.5, "growth of a process on a CPU"))


def test_a_claim_without_a_record_is_said_to_be_unknown():
    card = decision_card([])
    assert set(card["this rests on"]) == {UNKNOWN}
    assert set(card["then"]) == {r.advice[UNTESTED] for r in RULES}


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
def test_an_advice_holds_on_every_model_that_was_tested(first, second, chosen):
    both = beside(entry("C10", first), entry("C10", second, 0.02, model="another model"))
    row = decision_card([both]).loc["to keep what the base could do"]
    assert row["then"] == next(r for r in RULES if r.claim == "C10").advice[chosen]
    assert f"{first}: 0.50 nats" in row["this rests on"] and f"{second}: 0.020 nats" in row["this rests on"]


def test_the_shipped_verdicts_fill_the_card():
    entries = recorded_claims()
    text = card_text(decision_card(entries))
    assert all(rule.wish in text for rule in RULES)
    assert sum(map(len, verdict_counts(entries).values())) == len(entries)


def test_verdicts_are_counted_in_one_order():
    assert list(verdict_counts([entry("C1", IN_PART)])) == [HOLDS, IN_PART, FAILS, UNDECIDED, UNTESTED]
    assert verdict_counts([entry("C1", IN_PART)])[IN_PART] == ["C1"]
    on_two = beside(entry("C1", HOLDS), entry("C1", UNDECIDED, model="another"))
    assert verdict_counts([on_two])[IN_PART] == ["C1"], "each model counts"
