"""What measures takes what it can measure: an empty list, another container or a lone item is refused in one line."""

import math
import traceback
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers import measuring, results, study, texts
from helpers.measuring.intervals import numbers
from helpers.models.loading import build_model
from support import tiny

HELPERS = Path(measuring.__file__).parents[1]
MODEL = build_model(tiny.config(vocab_size=60), seed=1)
WINDOWS = torch.randint(1, 60, (4, 20), generator=torch.Generator().manual_seed(0))
INTERVAL = measuring.paired_interval([1.0, 2.0, 3.0])
ESTIMATE = measuring.held_out_loss(MODEL, WINDOWS)
SWEEP = {1e-4: 2.0, 1e-3: 1.0, 1e-2: 3.0}
WIDTHS = {"alice": measuring.width(SWEEP)}
NORMS = np.ones(20)
RUN = measuring.RunRecord(
    plan="full", text="alice", seed=0, evaluations=[], test_windows={"alice": [1.0, 2.0, 3.0]}
)
FINDING = measuring.finding_of(INTERVAL, 0.1, "lower")
PATH = measuring.Path(0, np.ones((2, 3)), np.ones((2, 3)))

GOOD = {
    "author_matrix": ({"a": MODEL}, {"a": WINDOWS}),
    "block_error": (np.arange(3.0),),
    "chosen": ([RUN], "full", "alice", "keep"),
    "compare": ([PATH], [PATH], [[PATH]], measuring.Rules()),
    "counts": (INTERVAL, 0.1),
    "curve": (RUN,),
    "decide": (INTERVAL, 0.1, "lower"),
    "decide_at_least": (INTERVAL, 1.0),
    "decide_equal": (INTERVAL, INTERVAL),
    "difference": (ESTIMATE, ESTIMATE),
    "equal_finding": (INTERVAL, INTERVAL),
    "estimate": (np.arange(3.0), 3),
    "evaluations_of": ([{"step": 0}],),
    "falls_share": ([3.0, 2.0, 1.0],),
    "finding_of": (INTERVAL, 0.1, "lower"),
    "forgetting_at": ([], 0.1),
    "forgetting_difference": ([], [], 0.1),
    "frontier": ([],),
    "function_tokens": (None,),
    "full_gain": ([measuring.stacked([PATH])],),
    "function_losses": (MODEL, WINDOWS, torch.ones(60, dtype=torch.bool)),
    "gain_share": ([], [], "alice", []),
    "held_out_loss": (MODEL, WINDOWS),
    "holm_adjusted": ([0.1, 0.2],),
    "is_stable": (measuring.norm_summary(NORMS),),
    "is_steadier": (WIDTHS, WIDTHS),
    "jackknife": (NORMS,),
    "log_probabilities": (MODEL, WINDOWS),
    "loss_difference": ([], [], "alice"),
    "matched_gain": ([], 1.0),
    "means_without": (np.ones((2, 3)),),
    "memorisation": (MODEL, WINDOWS, WINDOWS, 2, 4, 2),
    "n_levelled": ([],),
    "norm_summary": (NORMS,),
    "over_findings": ([FINDING],),
    "over_gains": (["less"],),
    "over_texts": (["holds"],),
    "overfitted_from": ([],),
    "own_gains": ([RUN], {"alice": [1.0], "edgar": [1.0]}),
    "paired_interval": ([1.0, 2.0],),
    "pairs_by_seed": ([], []),
    "perplexity": (1.0,),
    "primary_verdicts": ({"C1": [FINDING]},),
    "Retention": (MODEL, WINDOWS),
    "rising": ([],),
    "sample_text": (MODEL, None, "a"),
    "sample_windows": (MODEL, 1, 4, 0),
    "share_finding": (INTERVAL, INTERVAL),
    "sign_depends": ({1e-3: 0.1}, 0.01),
    "smallest_difference": (0.1,),
    "spikes": (NORMS,),
    "stacked": ([PATH],),
    "style_contrasts": ([RUN],),
    "style_difference": ([], []),
    "style_ratio": ([], []),
    "swap_losses": (MODEL, MODEL, {"a": WINDOWS}),
    "test_gain": ([RUN], "alice", [1.0, 2.0, 3.0]),
    "tested": ([FINDING],),
    "unless_few": (FINDING,),
    "width": (SWEEP,),
    "word": (INTERVAL, 0.1),
}
OTHERS = {  # plain arithmetic on arrays, and switches: they take what numpy, torch and the clock take
    "crossing", "evaluating", "in_mode", "paired_log_ratios", "seconds_of", "wait_for_gpu",
}  # fmt: skip
ELSEWHERE = {
    study: {
        "against_best": ([], "full"),
        "bottom_table": ({"times": []},),
        "by_plan": ({"points": []}, 1, 1),
        "falls": ({"points": []}, 1, 1),
        "is_recorded": ("x",),
        "largest_setting": ({"points": []},),
        "memory_table": ({"points": []},),
        "memory_verdict": ({"points": []},),
        "plan_of": ("full",),
        "plan_time_ratio": ([], "full"),
        "read": ("x",),
        "read_protocol": ("x",),
        "read_record": ("x",),
        "read_runs": ("x",),
        "stored": ("x",),
        "time_table": ({"times": []},),
        "time_verdict": ([1.0, 2.0], "cpu"),
    },
    results: {
        "claim_cards": ([],),
        "newest": ([], []),
        "scoreboard_table": ([],),
        "verdict_counts": ([],),
        "two_digits": (1.0,),
        "recorded_claims": ("x",),
        "recorded_claim": ("x",),
    },
    texts: {
        "begin_ids": (None,),
        "load_corpus": ("x", None, 8),
        "read_text": ("x",),
        "tensor_of": (None,),
        "text_path": ("x",),
        "windows": (None, "x", 8),
    },
}
SETTINGS = (str, int, float, measuring.Rules)  # a lone number or word steers; the rest is measured
CALLS = [(measuring, name, GOOD[name]) for name in GOOD]
CALLS += [(room, name, given) for room, calls in ELSEWHERE.items() for name, given in calls.items()]
WRONG = [
    [], {}, (), set(), None, "x", [1.0], [math.nan], ["a"], {"a": 1}, {"x": []}, [WINDOWS], torch.zeros(0),
    np.array([]), np.zeros((2, 2)), torch.ones(3, requires_grad=True), [[1.0], [1.0, 2.0]], [RUN], MODEL,
]  # fmt: skip


def answered(room, name: str, given: tuple):
    """What a function returns; None where it refuses in one line of its own. Any other error is the test's."""
    try:
        return getattr(room, name)(*given)
    except (TypeError, ValueError) as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        said = str(error)
        own = Path(frame.filename).is_relative_to(HELPERS) and frame.line.startswith("raise")
        assert own and said.strip() and "\n" not in said, f"{name}{given}: {said}"
        return None


@pytest.mark.filterwarnings("error::RuntimeWarning")  # numpy's, of a mean over nothing
@pytest.mark.parametrize("room, name, given", CALLS, ids=lambda x: x if isinstance(x, str) else "")
def test_what_is_empty_or_of_another_form_is_measured_right_or_refused_in_one_line(room, name, given):
    answered(room, name, given)
    measured = [place for place, one in enumerate(given) if not isinstance(one, SETTINGS)]
    for wrong in WRONG:
        for place in measured:
            answered(room, name, (*given[:place], wrong, *given[place + 1 :]))


def test_every_measure_is_tried():
    functions = {
        name
        for name in measuring.__all__
        if callable(getattr(measuring, name)) and not isinstance(getattr(measuring, name), type)
    }
    assert functions == (GOOD.keys() | OTHERS) - {"Retention"}


@pytest.mark.parametrize(
    "name, given",
    [
        *[(name, (empty,)) for name in ("falls_share", "norm_summary", "spikes") for empty in ([], {})],
        ("estimate", ([], 0)),
        ("estimate", ([1.0], 1)),
        ("norm_summary", ([math.nan] * 9,)),
        ("falls_share", ([1.0, math.nan],)),
        ("paired_interval", ([],)),
        ("paired_interval", (np.zeros((2, 2)),)),
        *[("paired_interval", ([0.1, bad, 0.2],)) for bad in (math.nan, math.inf)],
        *[("paired_interval", ([0.1, 0.2], 0.0, 20, level)) for level in (95, 1.0, 0.0, math.nan)],
        ("paired_interval", ([0.1, 0.2], -0.1)),
        *[("forgetting_at", ([], bad)) for bad in (-0.1, math.nan)],
        *[
            (name, (*given, bad))
            for name, given in (("counts", (INTERVAL,)), ("decide_at_least", (INTERVAL,)), ("decide_equal", (INTERVAL,) * 2))
            for bad in (-0.1, math.nan, math.inf, "0.1")
        ],
        *[("holm_adjusted", ([0.5, bad],)) for bad in (math.nan, 1.2, -0.1)],
        ("over_gains", ([],)),
        ("over_texts", ([],)),
        ("over_texts", (["x"],)),
        ("full_gain", ([],)),
        ("jackknife", (np.ones(1),)),
        ("means_without", (np.ones((2, 1)),)),
        ("Path", (0, np.ones((0, 3)), np.ones((0, 3)))),
        ("author_matrix", ({}, {"a": WINDOWS})),
        ("author_matrix", ({"a": MODEL}, {})),
        ("author_matrix", ([MODEL], [WINDOWS])),
        ("swap_losses", (MODEL, MODEL, {})),
        ("test_gain", ([], "alice", [])),
        ("own_gains", ([RUN], {})),
        ("perplexity", ("3",)),
        ("decide", (INTERVAL, 0.1, "less")),
    ],
)  # fmt: skip
def test_what_leaves_nothing_to_measure_is_refused(name, given):
    with pytest.raises((TypeError, ValueError)):
        getattr(measuring, name)(*given)
    assert answered(measuring, name, given) is None


def test_a_refusal_says_what_is_read_what_was_found_and_how_many_are_needed():
    with pytest.raises(
        ValueError, match=r"^How a loss falls is read from losses, 1 or more finite numbers; found 0: \[\]\.$"
    ):
        measuring.falls_share([])  # fmt: skip
    with pytest.raises(
        TypeError, match=r"^The models of a matrix have names, a dict of name to Module; found \["
    ):
        measuring.author_matrix([MODEL], {"a": WINDOWS})  # fmt: skip
    with pytest.raises(ValueError, match="needs at least two windows of text; found 0. Give a longer text"):
        measuring.estimate([], 0)


def test_numbers_come_back_as_they_are_in_float64():
    found = numbers([1, 2], "x")
    assert found.dtype == np.float64 and found.tolist() == [1.0, 2.0]
    assert numbers(torch.tensor([1.5]), "x").tolist() == [1.5] and numbers([], "x", 0).tolist() == []
    assert math.isnan(numbers([math.nan], "x")[0])
