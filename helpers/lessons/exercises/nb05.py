"""Checks of the exercises in 05_loss_and_forgetting: numbers, a style contrast, verdicts."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Callable
from typing import Any

import torch
from scipy import stats
from torch.nn.functional import kl_div, log_softmax

from helpers.lessons.cases import judge_function
from helpers.lessons.checks import Reply, exercise, judge_number, right, value_of, wrong
from helpers.lessons.reading import items, number


@exercise("05a")
def forgetting_at_equal_gain(answer) -> Reply:
    return judge_number(
        answer,
        -0.01,
        "At a gain of 0.10 run A has forgotten 0.07 and run B 0.06.",
        {
            0.01: "the sign is turned round: B minus A was asked for.",
            -0.055: "you compared at equal steps (step 40). Compare where both have a gain of 0.10.",
            -0.085: "you compared the last points. A's gain is falling there, and the gains are not equal.",
            -0.07: "0.07 is A's forgetting at that gain. Subtract it from B's.",
            0.07: "0.07 is A's forgetting at that gain. Subtract it from B's.",
            -0.025: "you took the first point past a gain of 0.10. Join it to the point before by a line, and read at "
            "0.10.",
            0.005: "you took the last point before a gain of 0.10. Join it to the next by a line, and read at 0.10.",
            0.06
            - 0.10: "for A you took the first point past a gain of 0.10. Join it to the point before by a line.",
            0.13: "this is the sum. Asked is the difference, B minus A.",
            0.06 / 0.07: "this is the ratio B / A. Asked is the difference, B minus A.",
            0.07 / 0.06: "this is a ratio. Asked is the difference, B minus A.",
            0.075 * 0.10 / 0.11
            - 0.10
            * 0.10
            / 0.13: "your lines go from zero to the point past a gain of 0.10. Join *neighbouring* points.",
            -0.02: "you exchanged gain and forgetting: these are gains, where forgetting is 0.10 or ends below it.",
            0.06: "0.06 is B's forgetting at that gain. Subtract A's from it.",
        },
        within=5e-4,
        otherwise="Find for each run the two points around a gain of 0.10 and go halfway.",
    )


@exercise("05b")
def half_width_over_pairs(answer) -> Reply:
    return judge_number(
        answer,
        0.014307,
        "Ten pairs, nine degrees of freedom: t is 2.26.",
        _half_width_mistakes(),
        within=4e-5,
        otherwise="half-width = t with n - 1 degrees of freedom, times SD, over the square root of n.",
    )


def _half_width_mistakes() -> dict[float, str]:
    """A wrong half-width to what probably happened."""

    def half(t: float | None = None, n: float = 10, sd: float = 0.02) -> float:
        return (t or stats.t.ppf(0.975, 9)) * sd / math.sqrt(n)

    windows = "Windows are repeated looks at the same ten pairs: n is the number of pairs."
    times = {
        f"you took n = 1,000. {windows}": (
            half(n=1000),
            half(1.96, 1000),
            half(stats.t.ppf(0.975, 999), 1000),
        ),
        f"you took n = 100. {windows}": (half(n=100), half(1.96, 100), half(stats.t.ppf(0.975, 99), 100)),
        "you took 1.96. With ten pairs the t distribution asks for 2.26.": (half(1.96),),
        "you took t with 10 degrees of freedom. Ten pairs have 9: one is used up by the mean.": (
            half(stats.t.ppf(0.975, 10)),
        ),
        "you took t at 0.95, which leaves 5% on *each* side. Take 0.975 for an interval of 95%.": (
            half(stats.t.ppf(0.95, 9)),
        ),
        "that is the standard error. Multiply it by t.": (half(1),),
        "you left out the square root of n: that is the spread of single pairs.": (half(n=1),),
        "you took the square root of 9. The 9 belongs to t; the standard deviation is divided by the root of n.": (
            half(n=9),
        ),
        "this is the spread of single pairs. The mean of ten is steadier: divide by the square root of n, and multiply "
        "by t.": (half(1, 1),),
        "you halved it once more. t times SD over the square root of n is the half-width already.": (
            half() / 2,
        ),
        "this is the whole width of the interval. Asked is half of it.": (2 * half(),),
        "you squared the standard deviation: that is a variance.": (half(sd=0.02**2),),
    }
    found = {float(value): reason for reason, values in times.items() for value in values}
    found[half(n=100)] = (
        "this has the square root of 100, and there are two ways to get there. Either you divided by n, 10: divide "
        f"by its square root. Or you took n = 100. {windows}"
    )
    return found


STYLE_HINTS = {"KeyError": 'The keys of the table are pairs: loss["A", "E"].'}


@exercise("05c")
def style_number(answer) -> Reply:
    if not callable(answer):
        return wrong("a function is asked for: answer_05c = style, without brackets.")
    texts = {"A": 3.4, "E": 3.9}
    any_story = {
        (m, t): base - (0.0 if m == "base" else 0.2) for t, base in texts.items() for m in ("base", "A", "E")
    }
    one_better = {**any_story, ("A", "A"): 3.0, ("A", "E"): 3.5}  # A's model is better at every story
    own = {**any_story, ("A", "A"): 3.1, ("E", "E"): 3.6}
    no_tuning = {(m, t): base for t, base in texts.items() for m in ("base", "A", "E")}
    mirrored = {**any_story, ("E", "A"): 3.0, ("E", "E"): 3.5}  # E's model is better at every story
    number_of_none, number_of_any, number_of_one, number_of_mirrored, number_of_own = (
        number(value_of(answer, t, hints=STYLE_HINTS))
        for t in (no_tuning, any_story, one_better, mirrored, own)
    )
    if not math.isclose(number_of_none, 0.0, abs_tol=1e-9):
        return wrong(
            "three equal models get a style, because the text of E is harder than that of A. Compare two models "
            "on the *same* text, and never one model on two texts."
        )
    if not math.isclose(number_of_any, 0.0, abs_tol=1e-9):
        return wrong(
            "two models that became better at every story get a style. That is the own gain: compare two "
            "tuned models on the same text instead."
        )
    if not math.isclose(number_of_one, 0.0, abs_tol=1e-9):
        return wrong(
            "one model that is better at every story gets a style. "
            + _why_it_does_not_cancel(number_of_one, number_of_mirrored)
        )
    if number_of_own <= 0:
        return wrong("models that are best on their own author get no positive number. Check the sign.")
    return right("what helps with any story cancels, on both texts.")


def _why_it_does_not_cancel(one: float, mirrored: float) -> str:
    """What probably happened, from the numbers where A's model is better at every story, and where E's is."""
    if one > 0 and mirrored > 0:
        return (
            "So does the other one. Do not take sizes alone (abs), and not the larger of the two: a gain on one text "
            "and the loss on the other must cancel."
        )
    if math.isclose(one, -mirrored, abs_tol=1e-9):
        return (
            "Use both texts, other minus own on each, and *add* the two: the sign of one is turned round, or one text is "
            "missing."
        )
    return "Use both texts alike, other minus own on each, so that it cancels."


# --- 05d: verdicts -----------------------------------------------------------------

SMALLEST = 0.02  # nats per token
CASES = (
    (-0.05, -0.08, -0.02),
    (-0.03, -0.07, 0.01),
    (0.001, -0.006, 0.008),
    (-0.008, -0.012, -0.004),
    (0.04, 0.02, 0.06),
    (-0.022, -0.048, 0.004),
    (-0.06, math.nan, math.nan),
)  # (mean, low, high); claimed: lower
VERDICTS = (
    "holds",
    "not decided",
    "does not hold",
    "does not hold",
    "does not hold",
    "not decided",
    "not decided",
)

# (case, verdict given) to what probably happened
MISREAD = {
    (
        1,
        "not decided",
    ): "it is decided. The whole interval lies below zero, and the estimate, -0.05, is large enough. That the upper "
    "end is below zero is enough: it need not be below -0.02.",
    (
        2,
        "does not hold",
    ): "zero lies inside, so an effect is not shown. But -0.05 lies inside as well: it is not shut "
    "out either. Not shown is not the same as shown to be absent.",
    (2, "holds"): "you read the middle alone. The interval also holds zero, and values above it.",
    (
        3,
        "not decided",
    ): "zero lies inside, but look at the width: every value that would count (-0.02 and below) lies "
    "outside. The question is answered.",
    (3, "holds"): "the interval holds no value of -0.02 or below, so an effect that counts is shut out.",
    (
        4,
        "holds",
    ): "the whole interval is below zero, so there is a difference. But it is too small to count: even the "
    "lower end does not reach -0.02.",
    (
        4,
        "not decided",
    ): "the interval is narrow: it says quite well how large the difference is. Too small to count.",
    (
        5,
        "not decided",
    ): "the interval is wholly above zero: X forgets more. All that would count for the claim is shut out.",
    (5, "holds"): "the interval leaves zero out on the *other* side: the claim says lower.",
    (6, "holds"): "the estimate is large enough to count, but the interval holds zero.",
    (
        6,
        "does not hold",
    ): "the interval holds values that would count (down to -0.048). Nothing shuts them out.",
    (7, "holds"): "one pair has no spread, so no interval. However large the number, it decides nothing.",
    (
        7,
        "does not hold",
    ): "one pair has no spread, so no interval: nothing is shut out, and nothing is shown.",
}
_SPOKEN = {
    "h": "holds",
    "hold": "holds",
    "d": "does not hold",
    "no": "does not hold",
    "n": "not decided",
    "undecided": "not decided",
}


@exercise("05d")
def verdicts_of_intervals(answer: Any) -> Reply:
    """Seven verdicts: a list, tuple, array, dict by number, or text with commas."""
    given = _verdicts(answer)
    errors = [
        (n, found) for n, (found, said) in enumerate(zip(given, VERDICTS, strict=True), 1) if found != said
    ]
    if not errors:
        return right(
            "All seven. A verdict asks two questions: which side of zero, and large enough to count?"
        )
    if (given[0], given[4]) == ("does not hold", "holds"):
        return wrong(
            f"{len(CASES) - len(errors)} of {len(CASES)} are right. You read the sign the other way round: in number 1 the "
            "whole interval is below zero, which is less forgetting, and in number 5 it is above zero, which is more."
        )
    n, found = errors[0]
    mean, low, high = CASES[n - 1]
    reason = MISREAD.get((n, found), f"compare [{low:+.3f}, {high:+.3f}] with zero and with -{SMALLEST:g}.")
    return wrong(f"{len(CASES) - len(errors)} of {len(CASES)} are right. Number {n}, '{found}': {reason}")


def _verdicts(answer: Any) -> list[str]:
    if isinstance(answer, dict):
        answer = [answer[key] for key in sorted(answer)]
    answer = items(answer.split(",") if isinstance(answer, str) else answer, f"{len(CASES)} verdicts")
    words = [re.sub(r"[\s_-]+", " ", str(word)).strip().lower() for word in answer]
    words = [_SPOKEN.get(word, word) for word in words]
    odd = [word for word in words if word not in VERDICTS]
    if odd:
        raise ValueError(f"{odd[0]!r} is none of 'holds', 'does not hold', 'not decided'")
    if len(words) != len(CASES):
        raise ValueError(f"{len(CASES)} verdicts are asked for, found {len(words)}")
    return words


# --- Checks for the two exercises of ``05_loss_and_forgetting`` that ask for a function: a test loss, and a KL ---


NAN = math.nan

# --- 05e: which test loss may be reported? -----------------------------------------


def _run(*rows: tuple[float, float, float]) -> list[dict]:
    return [
        {"step": 20 * i, "train": train, "dev": dev, "test": test}
        for i, (train, dev, test) in enumerate(rows)
    ]


RUNS = (
    [_run((3.6, 3.50, 3.52), (3.3, 3.41, 3.46), (3.1, 3.38, 3.47), (2.9, 3.44, 3.45))],
    [
        _run((3.6, 3.50, 3.52), (3.3, 3.40, 3.44), (3.35, 3.43, 3.41)),
        _run((3.6, 3.50, 3.52), (3.4, 3.45, 3.40), (3.2, 3.41, 3.48)),
        _run((3.6, 3.50, 3.52), (3.2, 3.42, 3.49), (3.0, 3.39, 3.50)),
        _run((3.6, 3.50, 3.52), (3.3, 3.43, 3.49), (3.1, 3.44, 3.46)),
    ],
    [
        _run((3.6, 3.50, 3.52), (3.3, 3.41, 3.45), (NAN, NAN, NAN)),
        _run((3.6, 3.50, 3.52), (NAN, NAN, NAN), (NAN, NAN, NAN)),
        _run((3.6, 3.50, 3.52), (3.4, 3.44, 3.47), (3.2, 3.40, 3.42)),
    ],
)


def reported(runs: list[list[dict]]) -> float:
    """Mean over runs of the test loss at each run's lowest dev loss."""
    return sum(_best(run, "dev")["test"] for run in runs) / len(runs)


def _best(run: list[dict], key: str) -> dict:
    return min((e for e in run if not math.isnan(e[key])), key=lambda e: e[key])


def _mean(choose) -> Any:
    return lambda runs: sum(choose(run) for run in runs) / len(runs)


def _nan_wins(run: list[dict]) -> float:
    """As numpy's argmin does: NaN is the smallest."""
    return next((e["test"] for e in run if math.isnan(e["dev"])), _best(run, "dev")["test"])


def _at_one_step(runs: list[list[dict]]) -> float:
    """The mean test loss at the step with the lowest mean dev loss, of the steps that all runs have."""
    points = list(zip(*runs, strict=False))
    best = min(points, key=lambda point: sum(e["dev"] for e in point))
    return sum(e["test"] for e in best) / len(best)


@exercise("05e")
def test_loss_to_report(answer: Any) -> Reply:
    """A function from runs (lists of evaluations with step, train, dev, test) to one number."""
    on_test = (
        "you chose the point with the lowest *test* loss. Then the test text took part in the choice, and its "
        "loss is too good. Choose on dev, and read test once."
    )
    nan = "a run that diverged has NaN, and NaN won. Comparisons with NaN are always False: leave such points out."
    finite = [[[e for e in run if not math.isnan(e["dev"])] for run in runs] for runs in RUNS[:2]]
    reply = judge_function(
        answer,
        [(runs,) for runs in finite],
        reported,
        {
            _mean(lambda run: _best(run, "test")["test"]): on_test,
            lambda runs: min(e["test"] for run in runs for e in run): on_test,
            _mean(
                lambda run: run[-1]["test"]
            ): "you took the last point of each run. After its best dev loss a run "
            "over-fits: read test where dev is lowest.",
            _mean(
                lambda run: _best(run, "train")["test"]
            ): "you chose by the training loss. It falls on while the model "
            "learns the text by heart: choose on dev.",
            lambda runs: min((_best(run, "dev") for run in runs), key=lambda e: e["dev"])[
                "test"
            ]: "you report the best run alone. Readers who train once get an average run: take the mean over all runs.",
            lambda runs: min(
                _best(run, "dev")["test"] for run in runs
            ): "you report the best run alone. Readers who train once get an average run: take the mean over all runs.",
            _mean(
                lambda run: _best(run, "dev")["dev"]
            ): "you return the dev loss. It was chosen to be low, so it is too "
            "good: return the test loss at that point.",
            _mean(
                lambda run: sum(e["test"] for e in run) / len(run)
            ): "you took the mean over all points of a run. A run "
            "is reported at one point: where dev is lowest.",
            lambda runs: sum(
                _best(run, "dev")["test"] for run in runs
            ): "you added the runs up. Divide by their number.",
            lambda runs: statistics.median(
                _best(run, "dev")["test"] for run in runs
            ): "you took the median. Then how bad the unlucky run is does not count: take the mean.",
            lambda runs: _best(runs[-1], "dev")[
                "test"
            ]: "you return the last run alone. Take the mean over all runs.",
            _mean(
                lambda run: max(run, key=lambda e: e["dev"])["test"]
            ): "you read test where the dev loss is *highest*. A lower loss is better.",
            _at_one_step: "you chose one step for all runs. Each run is read at the point where its *own* dev loss is "
            "lowest.",
        },
        "Chosen on dev, read on test, averaged over all runs, with none left out.",
    )
    return _judge_diverged(answer, reply, nan) if reply.ok else reply


def _judge_diverged(answer: Any, reply: Reply, nan: str) -> Reply:
    dropped = "you dropped the run that diverged. It counts too, at its best dev loss: leave out its NaN points, not the run."
    return judge_function(
        answer,
        [(RUNS[2],)],
        reported,
        {
            _mean(_nan_wins): nan,
            lambda runs: reported(runs[2:]): dropped,
            lambda runs: reported(runs[::2]): dropped,
        },
        reply.message,
    )


# --- 05f: forgetting from logits ---------------------------------------------------


def _logits() -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Base and tuned logits, always the same: (windows, tokens, vocabulary)."""
    dice = torch.Generator().manual_seed(5)
    base = 2 * torch.randn(3, 4, 6, generator=dice)
    tuned = base + torch.randn(3, 4, 6, generator=dice)
    return [(base, tuned), (base, base.clone()), (tuned[:1], base[:1])]


def forgetting(base: torch.Tensor, tuned: torch.Tensor) -> torch.Tensor:
    """Mean KL(base || tuned) in nats per token, from logits of (windows, tokens, vocabulary)."""
    p, q = log_softmax(base, -1), log_softmax(tuned, -1)
    return (p.exp() * (p - q)).sum(-1).mean()


def _over_time(summed: int) -> Callable:
    def mistake(base, tuned):
        p, q = log_softmax(base, 1), log_softmax(tuned, 1)
        return (p.exp() * (p - q)).sum(summed).mean()

    return mistake


def _cross_entropy(base, tuned):
    return -(log_softmax(base, -1).exp() * log_softmax(tuned, -1)).sum(-1).mean()


@exercise("05f")
def forgetting_from_logits(answer: Any) -> Reply:
    """A function from the logits of the base and of the tuned model to nats per token."""
    reply = judge_function(
        answer,
        _logits(),
        forgetting,
        {
            lambda b, t: forgetting(
                t, b
            ): "this is KL(tuned || base). Asked is what became of the *base's* likely tokens: "
            "weigh by the base's probabilities. (kl_div takes the tuned model's log first.)",
            lambda b, t: (
                -forgetting(b, t)
            ): "the sign is turned round: ln p - ln q, with p the base's. A KL is never negative.",
            lambda b, t: (
                forgetting(b, t) / b.size(-1)
            ): "you took the mean over the vocabulary too. A token's KL is a *sum* over the vocabulary; the mean is over "
            "tokens. (kl_div's reduction='mean' does this.)",
            lambda b, t: (
                forgetting(b, t) * b[..., 0].numel()
            ): "you added up all tokens. Asked is a mean: nats per token.",
            lambda b, t: (
                forgetting(b, t) * b.size(1)
            ): "you divided by the windows, not by the tokens. (kl_div's reduction='batchmean' divides by the first "
            "size alone.)",
            lambda b, t: (
                forgetting(b, t) / math.log(2)
            ): "this is in bits. For nats take the natural logarithm.",
            lambda b, t: (
                (log_softmax(b, -1) - log_softmax(t, -1)).sum(-1).mean()
            ): "every token of the vocabulary counts alike. Weigh ln p - ln q with the base's probability p.",
            lambda b, t: (
                (log_softmax(t, -1).exp() * (log_softmax(b, -1) - log_softmax(t, -1))).sum(-1).mean()
            ): "you weigh by the tuned model's probabilities. Weigh by the base's.",
            lambda b, t: (
                (log_softmax(b, -1).exp() * (b - t)).sum(-1).mean()
            ): "you subtract logits. ln p and ln q are log_softmax of the logits: take that of both first.",
            **dict.fromkeys(
                (_over_time(1), _over_time(-1)),
                "your softmax runs over the tokens (dim 1). The vocabulary is the last dimension: dim=-1.",
            ),
            _cross_entropy: "this is the cross-entropy: it is not 0 for two equal models. Subtract the base's own entropy, "
            "or use ln p - ln q.",
            lambda b, t: (
                (b - t).square().mean()
            ): "you compared logits. Adding a constant to all logits changes no "
            "probability: compare distributions.",
            lambda b, t: kl_div(
                t, b, reduction="batchmean"
            ): "kl_div wants log-probabilities first and probabilities second, not logits.",
        },
        "KL(base || tuned), summed over the vocabulary, averaged over tokens.",
        within=1e-4,
    )
    return _judge_sure(answer, reply) if reply.ok else reply


def _judge_sure(answer: Any, reply: Reply) -> Reply:
    """A base that is sure of itself: a probability below the smallest float32 must not give NaN."""
    sure = torch.tensor([[[400.0, 0.0, -400.0]]]), torch.tensor([[[399.0, 0.0, -400.0]]])
    return judge_function(
        answer,
        [sure],
        forgetting,
        {
            lambda b, t: (
                NAN
            ): "for logits as far apart as 400 and -400 your function gives NaN: softmax is exactly 0 "
            "there, and 0 times ln 0 is NaN. Take log_softmax, not the logarithm of softmax.",
            lambda b, t: (
                math.inf
            ): "for logits as far apart as 400 and -400 your function gives infinity: softmax is "
            "exactly 0 there. Take log_softmax, not the logarithm of softmax.",
        },
        reply.message,
        within=1e-4,
    )
