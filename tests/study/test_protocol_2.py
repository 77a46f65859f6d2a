"""The page of the second study: its numbers are read, and its hash does not see the amendments."""

import pytest

from helpers.freezing.plans import COURSE_PLANS
from helpers.study.protocol import AMENDMENTS, PAGE, read_protocol

PAGE_2 = PAGE.with_name("PROTOCOL-2.md")
BASES = ("tiny", "smollm2")
LORA = "lora"  # a method of adapters, not a freeze plan


@pytest.fixture(scope="module")
def page():
    return read_protocol(PAGE_2)


def cells(page, base, stage=None):
    """(plan, rate, weight, text, seed) of every run that the page asks of a base."""
    return [
        (plan, rate, weight, text, seed)
        for entry in page[base]["stages"]
        if stage in (None, entry["name"])
        for plan in entry["plans"]
        for rate in entry["rates"]
        for weight in entry["weights"]
        for text in entry["texts"]
        for seed in entry["seeds"]
    ]


def test_an_amendment_changes_a_number_and_not_the_hash(page, tmp_path):
    copy = tmp_path / "PROTOCOL-2.md"
    text = PAGE_2.read_text("utf-8")
    copy.write_text(text + "\n- 2030-01-01: more steps.\n\n```toml\n[tiny]\nmax_steps = 641\n```\n", "utf-8")
    amended = read_protocol(copy)
    assert amended["tiny"]["max_steps"] == 641 and amended["tiny"]["batch"] == page["tiny"]["batch"]
    assert amended.sha256 == page.sha256 and amended.n_amendments == page.n_amendments + 1


def test_a_changed_rule_changes_the_hash(page, tmp_path):
    copy = tmp_path / "PROTOCOL-2.md"
    fixed, _, amended = PAGE_2.read_text("utf-8").partition(f"\n{AMENDMENTS}")
    copy.write_text(
        fixed.replace("smallest_forgetting = 0.005", "smallest_forgetting = 0.004")
        + f"\n{AMENDMENTS}{amended}",
        "utf-8",
    )
    assert read_protocol(copy)["decisions"]["smallest_forgetting"] == 0.004
    assert read_protocol(copy).sha256 != page.sha256


@pytest.mark.parametrize("base", BASES)
def test_every_stage_has_its_place_in_the_order_and_names_known_plans_and_texts(page, base):
    assert {entry["name"] for entry in page[base]["stages"]} == set(page["study"]["order"])
    for plan, rate, weight, text, _ in cells(page, base):
        assert plan in COURSE_PLANS or plan == LORA
        assert text in page["texts"] and text != "plain"
        assert 0 < rate < 1e-2 and weight in (0.0, 0.3, 1.0, 3.0)
    assert set(page["decisions"]["budgets"]) == set(BASES) == set(page["study"]["profiles"])


@pytest.mark.parametrize("base", BASES)
def test_no_run_is_asked_twice_and_tuning_seeds_only_tune(page, base):
    asked = cells(page, base)
    assert len(asked) == len(set(asked))
    tuning = set(page["study"]["tuning_seeds"])
    assert {seed for *_, seed in cells(page, base, "tune")} == tuning
    assert all(
        seed not in tuning
        for entry in page[base]["stages"]
        if entry["name"] != "tune"
        for seed in entry["seeds"]
    )


@pytest.mark.parametrize("base", BASES)
def test_the_primary_tests_have_their_runs_before_what_may_be_cut(page, base):
    early = cells(page, base, "first") + cells(page, base, "primary")
    plans = {p[k] for p in page["decisions"]["primary"] for k in ("plan", "reference")} - {"best freeze"}
    for text in page["decisions"]["primary_texts"]:
        for plan in plans:
            seeds = {s for p, _, w, t, s in early if (p, w, t) == (plan, 0.0, text)}
            assert len(seeds) >= page["decisions"]["least_pairs"], (plan, text)
    order = page["study"]["order"]
    assert order.index("primary") < min(order.index(name) for name in ("replay", "far", "seeds", "rest"))
    tuned = {plan for plan, *_ in cells(page, base, "tune")}
    assert plans | set(page["decisions"]["freeze_plans"]) <= tuned
    assert len(page["decisions"]["primary"]) == 5
