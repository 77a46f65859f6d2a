"""The table of the page "Does it fit?": a tensor's bytes tell its sizes, and what is stored is what the budget says."""

import json

import pytest

from publishing import page_budgets
from publishing.page_budgets import Table, factored, primes


def test_bytes_tell_of_which_sizes_they_are_the_product():
    known = primes("llama", "more")
    batch, length = page_budgets.CASES["more"]
    assert factored(4 * batch * length * 5 * 7 * 6, known) == ("BTgqe", 4.0)
    assert factored(-2 * batch * (length - 1) * 11, known) == ("BSf", -2.0)
    assert factored(4 * 256 * 304, known) == ("W", 1024.0)
    assert factored(6 // 2 * 4, known) == ("e", 2.0), "half of a head"
    with pytest.raises(ValueError, match="no product of the sizes"):
        factored(4 * 37, known)


def test_no_size_is_a_factor_of_another():
    for family in page_budgets.FAMILIES:
        for case, (batch, length) in page_budgets.CASES.items():
            known = primes(family, case)
            assert len(set(known.values())) == len(known)
            last = batch * (length - 1) % 256  # rows of the loss's last chunk, which are no size of the model
            # Six rows look like the numbers of one head: fewer than a whole chunk's while heads have at most 256.
            assert {symbol for symbol, prime in known.items() if last % prime == 0} <= {"e"}


def stored() -> dict:
    return json.loads((page_budgets.OUT / "budgets.json").read_text("utf-8"))


def test_the_file_has_all_that_the_page_offers():
    table = stored()
    wanted = {
        page_budgets.key(plan, precision, checkpointing)
        for plan in page_budgets.PLANS
        for precision in page_budgets.PRECISIONS
        for checkpointing in (False, True)
    }
    for family in page_budgets.FAMILIES:
        assert set(table["families"][family]) == wanted
        assert all(set(cases) == set(page_budgets.CASES) for cases in table["families"][family].values())
    assert table["models"] == {name: shape.__dict__ for name, shape in page_budgets.MODELS.items()}
    assert table["cards"] == page_budgets.CARDS
    used = {
        n
        for cases in table["families"].values()
        for c in cases.values()
        for rows in c.values()
        for row in rows
        for n in row[1:]
    }
    assert used == set(range(len(table["formulas"])))


def test_the_stored_formulas_are_those_of_this_budget():
    table, made = stored(), Table()
    made.add("llama", page_budgets.LORA, "half", False)
    name = page_budgets.key(page_budgets.LORA, "half", False)
    formulas = [json.loads(text) for text in made.formulas]
    for case, rows in made.families["llama"][name].items():
        kept = table["families"]["llama"][name][case]
        assert [row[0] for row in kept] == [row[0] for row in rows]
        for row, other in zip(rows, kept, strict=True):
            assert [formulas[n] for n in row[1:]] == [table["formulas"][n] for n in other[1:]]
