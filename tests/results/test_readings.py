"""How the records are read: each rule of the protocol's amendment of 2026-11-29, on built records."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.special import stdtrit

from helpers.measuring import decisions
from helpers.measuring.comparison import (
    forgetting_at,
    forgetting_difference,
    gain_share,
    gain_without_blocks,
    matched_gain,
)
from helpers.measuring.decisions import (
    DEPENDS,
    FAILS,
    HOLDS,
    IN_PART,
    LESS,
    MORE,
    OPEN,
    SAME,
    UNDECIDED,
    UNTESTED,
    over_findings,
    over_gains,
    p_value,
    share_finding,
    with_pairs,
    word,
)
from helpers.measuring.intervals import Interval, paired_interval
from helpers.measuring.recorded import RunRecord
from helpers.results import evidence as findings
from helpers.results.claims import Entry, Verdict, about, number_of, two_digits, with_interval
from helpers.results.evidence import forgetting_finding, forgetting_gap, quality_finding, rise_on_plain
from helpers.results.verdicts import newest, published, scoreboard, scoreboard_table
from support.records import a_run, change, evidence, forgot_times, look_by_look, with_tuning

MAIN, FULL = "attention+embeddings", "full"


def entries_of(found, claim):
    return [v for v in scoreboard(found) if v.claim == claim]


def changed(found, plan, edit):
    """Evidence with every record of a plan edited."""
    change(found.runs, edit, plan)
    return found


def uneven(run, spread=0.8):
    """Let the gain of a run come from some dev windows more than from others; its mean stays."""
    *others, best = run.evaluations
    shares = 1 + np.linspace(-spread, spread, 12)
    windows = list(np.array(others[0].held_out_windows) - best.gain * shares)
    return replace(run, evaluations=[*others, replace(best, held_out_windows=windows)])


# --- both axes ---------------------------------------------------------------------


def test_the_gain_of_a_run_and_the_level_are_read_again_without_each_dev_window():
    rng = np.random.default_rng(0)

    def bent(slope, spread):  # forgetting bends, so that the place where it is read matters
        def edit(e):
            forgetting = 10 * e.gain**2 * slope
            return replace(e, forgetting=forgetting, forgetting_windows=[forgetting] * 24)

        return look_by_look(uneven(a_run(rng, FULL, "alice", 0, slope), spread), edit)

    plan, full, other = (bent(*both) for both in ((0.3, 0.8), (0.5, 0.2), (0.5, -0.4)))
    found = forgetting_difference([plan], [full], 0.12, [other])

    def without(run, window):
        kept = np.delete(np.arange(12), window)
        start, best = (np.array(run.evaluations[i].held_out_windows)[kept] for i in (0, -1))
        factor = (start - best).mean() / 0.15
        return factor, [replace(e, gain=factor * e.gain) for e in run.evaluations]

    slow = []
    for window in range(12):
        level = 0.12 * without(other, window)[0]
        slow.append(
            forgetting_at(without(plan, window)[1], level) - forgetting_at(without(full, window)[1], level)
        )
    error = math.sqrt(11 / 12 * ((np.array(slow) - np.mean(slow)) ** 2).sum())
    assert found.gain_half == pytest.approx(stdtrit(11, 0.975) * error) and found.gain_half > 0


def test_windows_that_gain_alike_under_both_plans_add_no_error():
    rng = np.random.default_rng(0)
    runs = [[a_run(rng, FULL, "alice", s, slope) for s in range(3)] for slope in (0.3, 0.5)]
    assert forgetting_difference(*runs, 0.12, runs[1]).gain_half == pytest.approx(0.0, abs=1e-12)
    runs = [[uneven(run) for run in own] for own in runs]
    assert forgetting_difference(*runs, 0.12, runs[1]).gain_half == pytest.approx(0.0, abs=1e-12)
    assert forgetting_difference(*runs, 0.12).gain_half > 0.001, "against a fixed level they do"


def test_an_uneven_gain_opens_what_seeds_and_retention_windows_alone_would_decide():
    close = evidence({MAIN: 0.55})
    assert forgetting_gap(close, MAIN, FULL, "alice").word == SAME
    gap = forgetting_gap(changed(close, MAIN, uneven), MAIN, FULL, "alice")
    assert gap.word == OPEN and gap.interval.gain_half > gap.interval.seed_half


def test_the_three_errors_add_up_as_squares():
    found = paired_interval([-0.02, -0.035, -0.015], 0.004, 24, gain_error=0.003, n_gain_blocks=13)
    halves = (
        stdtrit(2, 0.975) * np.std([-0.02, -0.035, -0.015], ddof=1) / 3**0.5,
        stdtrit(23, 0.975) * 0.004,
        stdtrit(12, 0.975) * 0.003,
    )
    assert found.high - found.mean == pytest.approx(np.linalg.norm(halves))
    assert p_value(found, found.high, "lower") == pytest.approx(0.025, rel=1e-3)
    more = with_pairs(found, 3, 0.90)
    wanted = paired_interval([-0.02, -0.035, -0.015], 0.004, 24, 0.90, 0.003, 13)
    assert (more.low, more.high) == pytest.approx((wanted.low, wanted.high))


def test_records_without_dev_windows_say_that_this_error_is_not_known():
    found = evidence({MAIN: 0.25})
    change(found.runs, lambda run: look_by_look(run, lambda e: replace(e, held_out_windows=None)))
    assert gain_without_blocks(found.runs[0]) is None
    finding = forgetting_finding(found, MAIN, FULL, "alice")
    assert finding.interval.gain_half is None and findings.NO_DEV_WINDOWS in finding.limits
    assert finding.verdict == HOLDS and entries_of(found, "C10")[0].verdict == IN_PART


# --- words -------------------------------------------------------------------------


def interval(mean, half, n=5):
    return Interval(mean, mean - half, mean + half, n, half, 0.0)


@pytest.mark.parametrize(
    "mean, half, wanted",
    [
        (-0.03, 0.01, LESS),
        (0.03, 0.01, MORE),
        (-0.005, 0.003, SAME),
        (0.0, 0.009, SAME),
        (0.005, 0.02, OPEN),
        (-0.03, 0.04, OPEN),
    ],
)
def test_a_difference_has_one_of_five_words(mean, half, wanted):
    assert word(interval(mean, half), 0.01) == wanted
    assert word(interval(mean, half, n=2), 0.01) == OPEN


def test_less_at_one_gain_and_more_at_another_depends_on_the_gain():
    assert over_gains([MORE, OPEN, LESS]) == DEPENDS and over_gains([OPEN, LESS, LESS]) == OPEN
    found = evidence({MAIN: 0.3})

    def turns(run):
        return forgot_times(run, lambda e: 8 * e.gain)

    gap = forgetting_gap(changed(found, MAIN, lambda run: turns(turns(run))), MAIN, FULL, "alice")
    assert gap.word == LESS, "still less at each level"
    found = changed(evidence({MAIN: 0.7}), MAIN, turns)
    gap = forgetting_gap(found, MAIN, FULL, "alice")
    assert gap.word == DEPENDS
    assert "the sign depends on the gain" in forgetting_finding(found, MAIN, FULL, "alice").limits


def test_a_gap_is_the_difference_at_the_level_itself_to_the_last_bit():
    found = evidence({MAIN: 0.3}, level=0.116464)
    runs = [found.of(p, "alice", "keep") for p in (MAIN, FULL)]
    wanted = forgetting_difference(
        *runs,
        matched_gain([r.evaluations for r in sum(runs, [])], 0.116464 / 0.8)[0],
        findings.level_runs(found, "alice"),
    )
    assert forgetting_gap(found, MAIN, FULL, "alice").interval == wanted


def test_the_smallest_difference_comes_from_the_windows_that_decide():
    table = [{"plan": FULL, "text": "alice", "rate": 1e-4, "n_seeds": 2, "forgetting_at_level": 0.30}]
    found = evidence({FULL: 0.5, MAIN: 0.35}, table=table)
    gap = forgetting_gap(found, MAIN, FULL, "alice")
    assert gap.smallest == pytest.approx(0.2 * gap.forgotten[1]) == pytest.approx(0.012, rel=0.05)
    assert found.smallest("alice") == pytest.approx(0.06), "the table of rates has other windows, and its own"
    assert gap.word == LESS
    assert decisions.smallest_difference(0.001) == 0.005


# --- C10: two lines, unlike rates, the veto ----------------------------------------


def test_attention_alone_has_a_line_of_its_own_and_stays_exploratory():
    found = evidence({MAIN: 0.8})
    assert [e.part for e in entries_of(found, "C10")] == ["attention and embeddings frozen"]
    found.runs.extend(
        a_run(np.random.default_rng(s), "attention", t, s, 0.25) for t in ("alice", "edgar") for s in range(5)
    )
    assert any(r.plan == "attention" for r in found.runs)
    main, alone = entries_of(found, "C10")
    assert (main.verdict, alone.verdict) == (FAILS, IN_PART) and alone.part == "attention frozen"
    found.runs[:] = [r for r in found.runs if r.plan != "attention" or r.text == "alice"]
    alone = entries_of(found, "C10")[1]
    assert alone.verdict == IN_PART and "No pairs of runs on Edgar yet" in alone.note


def test_two_parts_on_one_model_do_not_take_each_others_place():
    where = {"unit": "x", "model": "m", "model_hash": "", "n_seeds": 1, "source": "live"}
    first, second, again = (
        Entry((Verdict("C10", IN_PART, value=value, part=part, **where),))
        for part, value in (("attention frozen", 1.0), ("both frozen", 2.0), ("both frozen", 3.0))
    )
    both = newest([first, second], [again])
    assert [(v.part, v.value) for v in both[0].verdicts] == [("attention frozen", 1.0), ("both frozen", 3.0)]
    assert about(first.first) == "attention frozen, on m"
    assert "Here: attention frozen." in scoreboard_table(both)


def test_rates_that_differ_because_one_plan_missed_the_level_are_named_and_limit_the_verdict():
    found = with_tuning(evidence({MAIN: 0.25}), rates=(1e-5, 1e-4))
    changed(found, MAIN, lambda r: replace(r, rate=1e-4))
    changed(found, FULL, lambda r: replace(r, rate=1e-5))
    assert not forgetting_finding(found, MAIN, FULL, "alice").limits, "it did reach the level at 1e-5"

    def slower(run):
        kept = [e for e in run.evaluations if e.gain < 0.08 or run.rate != 1e-5]
        return replace(run, evaluations=kept)

    change(found.tuning, slower, MAIN)
    (limit,) = forgetting_finding(found, MAIN, FULL, "alice").limits
    assert (
        "`attention+embeddings` was read at 0.0001 and `full` at 1e-05" in limit and "ended at 50%" in limit
    )
    assert entries_of(found, "C10")[0].verdict == IN_PART
    changed(found, FULL, lambda r: replace(r, rate=1e-4))
    assert not forgetting_finding(found, MAIN, FULL, "alice").limits


def test_a_rate_that_is_not_known_is_none():
    gap = forgetting_gap(evidence(), MAIN, FULL, "alice")
    assert gap.rates == (None, None)
    one = RunRecord(plan=FULL, text="alice", seed=0, rate=1e-4, evaluations=[])
    assert findings.rate_of([one, replace(one, rate=3e-4)]) is None and findings.rate_of([one, one]) == 1e-4


@pytest.mark.parametrize(
    "main, full, vetoed",
    [
        (3.60, 3.50, True),  # it forgets less, and rises above the base of 3.5
        (3.45, 3.30, False),  # worse than full training, but better than the base: no rise
        (3.51, 3.49, False),
    ],
)  # a rise too small to count
def test_the_veto_counts_only_a_rise_above_the_base(main, full, vetoed):
    found = evidence({MAIN: 0.25}, **{MAIN: {"plain": main}, FULL: {"plain": full}})
    assert forgetting_finding(found, MAIN, FULL, "alice").vetoes == vetoed


def test_the_veto_is_silent_where_the_tested_weights_stand_at_unlike_gains():
    found = evidence({MAIN: 0.25}, **{MAIN: {"plain": 3.6, "top": 0.13}})
    assert rise_on_plain(found, MAIN, FULL, "alice") is None
    assert not forgetting_finding(found, MAIN, FULL, "alice").vetoes
    found = evidence({MAIN: 0.25}, **{MAIN: {"plain": 3.6, "top": 0.14}})
    assert rise_on_plain(found, MAIN, FULL, "alice") == pytest.approx(0.1, abs=0.01)
    found.base.clear()
    assert rise_on_plain(found, MAIN, FULL, "alice") is None


# --- C13, C14 ----------------------------------------------------------------------


def test_a_share_of_the_gain_is_judged_and_not_the_loss():
    """0.015 nats are much of a small gain, and little of a large one."""
    base = np.linspace(3.5, 3.7, 24)
    for gain, wanted in ((0.05, 0.7), (0.5, 0.97)):
        full, plan = (
            [
                RunRecord(
                    plan=FULL,
                    text="alice",
                    seed=s,
                    evaluations=[],
                    test_windows={"alice": list(base - g)},
                )
                for s in range(3)
            ]
            for g in (gain, gain - 0.015)
        )
        assert gain_share(plan, full, "alice", base).mean == pytest.approx(wanted)


@pytest.mark.parametrize(
    "mean, half, wanted",
    [(0.95, 0.04, HOLDS), (1.3, 0.1, HOLDS), (0.95, 0.06, UNDECIDED), (0.8, 0.05, FAILS)],
)
def test_equal_means_a_share_above_nine_tenths(mean, half, wanted):
    narrow = Interval(mean, mean - half, mean + half, 5, half, 0.0, level=0.90)
    assert share_finding(narrow, interval(mean, half)).verdict == wanted


def test_where_full_training_gains_nothing_quality_is_not_tested_and_decides_nothing():
    found = evidence()
    found.base["carroll"] = [3.2] * 100  # every tuned model is worse than that
    finding = quality_finding(found, "alice", "carroll")
    assert finding.verdict == UNTESTED and finding.interval.n_pairs == 0
    (entry,) = entries_of(found, "C13")
    assert (
        entry.verdict == HOLDS
        and "Carroll (not tested here: full training itself gains nothing" in entry.note
    )
    found.base.update({t: [3.2] * n for t, n in (("alice", 28), ("edgar", 23), ("poe", 100))})
    assert entries_of(found, "C13")[0].verdict == UNTESTED
    assert over_findings([finding]) == UNTESTED


def test_every_test_loss_stands_beside_the_bases():
    note = entries_of(evidence(), "C13")[0].note
    assert (
        "Test losses of base, full training and main plan: Alice 3.60, 3.30, 3.30; Carroll 3.60, 3.30, 3.30"
        in note
    )


def test_without_the_bases_losses_no_gain_is_known():
    found = evidence()
    found.base.clear()
    finding = quality_finding(found, "alice", "alice")
    assert finding.verdict == UNDECIDED and "base's test loss was not recorded" in finding.limits[0]


def test_style_that_only_follows_the_gain_is_no_lead():
    """Attention learned half as much of everything: its contrast is half, and at equal gain it is the same."""
    found = evidence(own={"only-attention": 0.05}, **{"only-attention": {"loss": 3.5}})
    raw = findings.mean_style(found, "only-mlp-out") - findings.mean_style(found, "only-attention")
    assert raw == pytest.approx(0.05, abs=0.002)
    on_chapters = findings.style_findings(found)[0]
    assert on_chapters.interval.mean == pytest.approx(0.0, abs=0.003) and on_chapters.verdict == FAILS
    assert findings.share_of_style(found, "only-attention").interval.mean == pytest.approx(1.0, abs=0.02)


def test_style_is_not_read_at_equal_gain_where_nothing_was_gained():
    found = evidence(own={"only-attention": 0.05})
    found.base.update(carroll=[3.2] * 100)
    assert [f.verdict for f in findings.style_findings(found)] == [HOLDS, UNTESTED]


# --- the gentlest rate -------------------------------------------------------------


def test_the_gentlest_rate_is_the_one_that_forgets_least_at_a_level_that_every_rate_reaches():
    found = with_tuning(evidence(), {"only-attention": 0.10}, plans=(FULL, "only-attention"))
    assert findings.share_of_every_rate(found, (FULL,), "alice") == 0.8
    assert findings.share_of_every_rate(found, (FULL, "only-attention"), "alice") == 0.65
    assert findings.share_of_every_rate(found, (FULL, "mlp"), "alice") is None, "it has no tuning runs"
    reading = findings.gentlest(found, "only-attention", "alice", 0.65)
    assert reading.rate == 1e-4 and reading.forgetting == pytest.approx(0.25 * 0.65 * 0.15, rel=0.1)
    assert findings.gentlest(found, "only-attention", "alice", 0.8) is None


def test_a_plan_that_missed_the_level_is_marked_beside_one_that_did_not():
    found = with_tuning(evidence(**{"only-attention": {"top": 0.1}}), {"only-attention": 0.10})
    assert forgetting_gap(found, "only-attention", FULL, "alice").has_unlike_rates
    assert not forgetting_gap(found, MAIN, FULL, "alice").has_unlike_rates


# --- numbers and rows --------------------------------------------------------------


@pytest.mark.parametrize(
    "number, wanted",
    [
        (0.00894, "0.0089"),
        (0.0204, "0.020"),
        (1.09, "1.1"),
        (56.7, "57"),
        (100.0, "100"),
        (0.0, "0"),
        (2, "2"),
        (-0.996, "-1.0"),
        (1234.5, "1,234"),
    ],
)
def test_numbers_have_two_digits(number, wanted):
    assert two_digits(number) == wanted
    assert two_digits(number, "+") == (wanted if number < 0 else f"+{wanted}")


def test_every_recorded_row_of_the_study_names_its_text():
    rows = [v for e in published() for v in e.verdicts if v.n_seeds and v.source == "recorded"]
    assert rows and all(v.text for v in rows)
    assert number_of(rows[0]).startswith(f"{rows[0].text}: ")


@pytest.mark.parametrize(
    "value, low, high, wanted",
    [
        (0.936, 0.911, 0.978, "0.94 [0.91, 0.98]"),
        (1.0631, 1.0563, 1.0702, "1.06 [1.06, 1.07]"),
        (-0.0312, -0.0314, -0.0309, "-0.0312 [-0.0314, -0.0309]"),
        (100.0, 100.0, 100.0, "100 [100, 100]"),
    ],
)
def test_the_ends_of_an_interval_are_told_apart(value, low, high, wanted):
    assert with_interval(value, low, high) == wanted


def test_a_row_with_two_digits_and_its_text_stands_in_the_table():
    found = evidence({MAIN: 0.25})
    verdict = entries_of(found, "C10")[0]
    assert f"| {number_of(verdict)}<br>Forgetting at equal gain" in scoreboard_table([Entry((verdict,))])
    assert number_of(verdict).split(": ")[0] in ("Alice", "Edgar")
