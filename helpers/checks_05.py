"""Checks of the exercises in 05_loss_and_forgetting."""

from __future__ import annotations

import math

from helpers.checks import Reply, exercise, judge_number, right, wrong


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
    if not math.isclose(answer(any_story), 0.0, abs_tol=1e-9):
        return wrong("two models that became better at every story get a style. That is the own gain: compare two "
                     "tuned models on the same text instead.")
    if not math.isclose(answer(one_better), 0.0, abs_tol=1e-9):
        return wrong("one model that is better at every story gets a style. Use both texts, so that it cancels.")
    if answer(own) <= 0:
        return wrong("models that are best on their own author get no positive number. Check the sign.")
    return right("what helps with any story cancels, on both texts.")
