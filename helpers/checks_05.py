"""Checks of the exercises in 05_loss_and_forgetting: numbers, a style contrast, verdicts."""

from __future__ import annotations

import math
import re
from typing import Any

from helpers.checks import Reply, exercise, judge_number, number, right, value_of, wrong
from helpers.reading import items


@exercise("05a")
def forgetting_at_equal_gain(answer) -> Reply:
    return judge_number(answer, -0.01, "At a gain of 0.10 run A has forgotten 0.07 and run B 0.06.", {
        0.01: "the sign is turned round: B minus A was asked for.",
        -0.055: "you compared at equal steps (step 40). Compare where both have a gain of 0.10.",
        -0.085: "you compared the last points. A's gain is falling there, and the gains are not equal.",
        -0.07: "0.07 is A's forgetting at that gain. Subtract it from B's.",
        0.06: "0.06 is B's forgetting at that gain. Subtract A's from it.",
    }, within=5e-4, otherwise="Find for each run the two points around a gain of 0.10 and go halfway.")


@exercise("05b")
def half_width_over_pairs(answer) -> Reply:
    return judge_number(answer, 0.014307, "Ten pairs, nine degrees of freedom: t is 2.26.", {
        0.001241: "you took n = 1,000. Windows are repeated looks at the same ten pairs.",
        0.012396: "you took 1.96. With ten pairs the t distribution asks for 2.26.",
        0.006325: "that is the standard error. Multiply it by t.",
        0.045243: "you left out the square root of n: that is the spread of single pairs.",
    }, within=4e-5, otherwise="half-width = t with n - 1 degrees of freedom, times SD, over the square root of n.")


@exercise("05c")
def style_number(answer) -> Reply:
    if not callable(answer):
        return wrong("a function is asked for: answer_05c = style, without brackets.")
    texts = {"A": 3.4, "E": 3.9}
    any_story = {(m, t): base - (0.0 if m == "base" else 0.2) for t, base in texts.items() for m in ("base", "A", "E")}
    one_better = {**any_story, ("A", "A"): 3.0, ("A", "E"): 3.5}  # A's model is better at every story
    own = {**any_story, ("A", "A"): 3.1, ("E", "E"): 3.6}
    number_of_any, number_of_one, number_of_own = (number(value_of(answer, t)) for t in (any_story, one_better, own))
    if not math.isclose(number_of_any, 0.0, abs_tol=1e-9):
        return wrong("two models that became better at every story get a style. That is the own gain: compare two "
                     "tuned models on the same text instead.")
    if not math.isclose(number_of_one, 0.0, abs_tol=1e-9):
        return wrong("one model that is better at every story gets a style. Use both texts, so that it cancels.")
    if number_of_own <= 0:
        return wrong("models that are best on their own author get no positive number. Check the sign.")
    return right("what helps with any story cancels, on both texts.")


# --- 05d: verdicts -----------------------------------------------------------------

SMALLEST = 0.02  # nats a token
CASES = ((-0.05, -0.08, -0.02), (-0.03, -0.07, 0.01), (0.001, -0.006, 0.008), (-0.008, -0.012, -0.004),
         (0.04, 0.02, 0.06), (-0.022, -0.048, 0.004), (-0.06, math.nan, math.nan))  # (mean, low, high); claimed: lower
VERDICTS = ("holds", "not decided", "does not hold", "does not hold", "does not hold", "not decided", "not decided")

# (case, verdict given) to what probably happened
MISREAD = {
    (2, "does not hold"): "zero lies inside, so an effect is not shown. But -0.05 lies inside as well: it is not shut "
                          "out either. Not shown is not the same as shown to be absent.",
    (2, "holds"): "you read the middle alone. The interval also holds zero, and values above it.",
    (3, "not decided"): "zero lies inside, but look at the width: every value that would count (-0.02 and below) lies "
                        "outside. The question is answered.",
    (3, "holds"): "the interval holds no value of -0.02 or below, so an effect that counts is shut out.",
    (4, "holds"): "the whole interval is below zero, so there is a difference. But it is too small to count: even the "
                  "lower end does not reach -0.02.",
    (4, "not decided"): "the interval is narrow: it says quite well how large the difference is. Too small to count.",
    (5, "holds"): "the interval leaves zero out on the *other* side: the claim says lower.",
    (6, "holds"): "the estimate is large enough to count, but the interval holds zero.",
    (6, "does not hold"): "the interval holds values that would count (down to -0.048). Nothing shuts them out.",
    (7, "holds"): "one pair has no spread, so no interval. However large the number, it decides nothing.",
    (7, "does not hold"): "one pair has no spread, so no interval: nothing is shut out, and nothing is shown.",
}
_SPOKEN = {"h": "holds", "hold": "holds", "d": "does not hold", "no": "does not hold", "n": "not decided",
           "undecided": "not decided"}


@exercise("05d")
def verdicts_of_intervals(answer: Any) -> Reply:
    """Seven verdicts: a list, tuple, array, dict by number, or text with commas."""
    given = _verdicts(answer)
    errors = [(n, found) for n, (found, said) in enumerate(zip(given, VERDICTS, strict=True), 1) if found != said]
    if not errors:
        return right("All seven. A verdict asks two questions: which side of zero, and large enough to count?")
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
