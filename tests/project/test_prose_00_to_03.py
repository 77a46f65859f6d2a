"""Numbers in the prose of notebooks 00 to 03 and A1 that no cell prints: each is computed here and looked for there."""

import functools
import inspect
import itertools
import math
import re
import tomllib
from fractions import Fraction

import nbformat
import pytest

from helpers.costs.step_cost import MIB
from helpers.freezing.plans import COURSE_PLANS
from helpers.lessons.exercises.nb01 import practice_head
from helpers.lessons.exercises.nb01_instruments import PRACTICE_PARTS
from helpers.lessons.exercises.nb02 import DIAGNOSES
from helpers.lessons.exercises.nb03 import (
    COUNTS,
    FREE,
    HEAD,
    MAIN,
    PEAKS,
    TOTAL,
    F,
    T,
    gpt_neo_counts,
    step_share,
)
from helpers.lessons.museum import EXHIBITS
from helpers.measuring.evaluation import sample_text
from helpers.models.loading import build_on_meta, gpt_neo_125m_config, mini_config
from helpers.models.roles import anatomy
from helpers.profiles import ROOT

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven")
UNIFORM = math.log(mini_config().vocab_size)  # nats


@functools.cache
def cells(number: str) -> dict:
    """A notebook's cells by their id."""
    path = next((ROOT / "notebooks").glob(f"{number}_*.ipynb"))
    return {cell["id"]: cell for cell in nbformat.read(path, as_version=4).cells}


def prose(number: str, name: str) -> str:
    """A cell's text; line ends count as blanks."""
    return " ".join(cells(number)[name].source.split())


def printed(number: str, name: str) -> str:
    return "".join(output.get("text", "") for output in cells(number)[name].outputs)


def bits(nats_a_token: float, characters_a_token: float) -> float:
    return nats_a_token / math.log(2) / characters_a_token


def fall(nats: float) -> float:
    """By how many percent the perplexity falls when the loss falls by so many nats."""
    return 100 * (1 - math.exp(-nats))


def chain(*trains: bool) -> Fraction:
    return Fraction(step_share(list(trains))).limit_denominator(20)


def window_of(plan: str) -> float:
    """MiB that one more window costs."""
    return (PEAKS[plan][8] - PEAKS[plan][1]) / 7


def tokens(n: int) -> str:
    return f"{n:,}"


FULL, PLAN = PEAKS  # the two rows of exercise 03d, full training first
STATE_SAVED = (PEAKS[FULL][1] - window_of(FULL)) - (PEAKS[PLAN][1] - window_of(PLAN))
OPTIMIZER = 8 * TOTAL / MIB  # MiB of AdamW's two moments
MANIFEST = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
UNTIED = gpt_neo_counts(768, 12, 3072, 50_257, 2048, False)

PHRASES = [
    (
        "00",
        "cell-007",
        f"the **temperature** is {inspect.signature(sample_text).parameters['temperature'].default}.",
    ),
    ("00", "cell-037-2", f"The vocabulary has {tokens(mini_config().vocab_size)} tokens."),
    ("00", "cell-039", f"\\approx {UNIFORM:.3f}$ nats. In bits it is exactly {math.log2(4096):.0f},"),
    ("00", "cell-044", f"The perplexity falls by {fall(0.10):.1f}%."),
    ("00", "cell-044", f"0.02 nats less is about {fall(0.02):.0f}% less perplexity"),
    ("00", "fair-hints", f"\\ln 2 = {math.log(2):.3f}$ nats"),
    ("00", "fair-hints", f"A needs {bits(3.2, 4.2):.2f} bits per character and B {bits(3.0, 3.5):.2f}:"),
    ("00", "cell-059", f"Python {MANIFEST['project']['requires-python'].removeprefix('>=')} or newer"),
    ("00", "quiz-1", f"0.2 nats would be {fall(0.2):.0f}% of the perplexity"),
    ("00", "quiz-2", f"A uniform guess costs only {UNIFORM:.2f} nats"),
    ("01", "cell-036", "eight tokens, two heads, head_dim 32."),
    ("01", "cell-043", f"In a local block of the miniature the window is {mini_config().window_size}."),
    ("01", "cell-045", f"The token sees keys {100 - 64 + 1} to 100,"),
    ("01", "cell-045", f"{mini_config().window_size - 1} tokens before it, and it."),
    ("01", "ahead-text", f"The check tries your function on {WORDS[len(PRACTICE_PARTS) + 1]} parts."),
    ("A1", "cell-099", f"A factor of ten in probability is {math.log(10):.1f} nats."),
    ("A1", "cell-099", "a piece of text has 17 tokens: 16 are read"),
    ("A1", "quiz-2", f"0.2 nats raise the perplexity by {100 * math.expm1(0.2):.0f}%."),
    ("02", "freezing-000", f"recognise {WORDS[len(EXHIBITS)]} freezes that do not work"),
    ("02", "freezing-018", "shrinks by one percent a step"),
    ("02", "freezing-029", f"2 · 0.99³ = {2 * 0.99**3:.4f}."),
    (
        "02",
        "freezing-058",
        f"{WORDS[DIAGNOSES.count('D')].capitalize()} of the {WORDS[len(EXHIBITS)]} broken freezes",
    ),
    ("02", "freezing-065", f"with {gpt_neo_125m_config().num_layers} blocks, numbered 0 to 11."),
    ("02", "freezing-077", f"{WORDS[len(EXHIBITS)].capitalize()} exhibits."),
    ("02", "cut-text-b", f"only LayerNorms train, {100 * COUNTS['norm'] / TOTAL:.2f}% of the parameters"),
    ("02", "quiz-6", f"only the LayerNorms, {100 * COUNTS['norm'] / TOTAL:.2f}% of the parameters"),
    ("03", "first-words", f"$2^{{20}}$ = {2**20:,} bytes"),
    (
        "03",
        "cell-011",
        f"have {COUNTS['mlp']:,} parameters and the LayerNorms {COUNTS['norm']:,}, together {MAIN:,}.",
    ),
    ("03", "cell-037", f"only {2 ** len(COUNTS) - 1} choices with at least one role"),
    ("03", "cell-037", f"{COUNTS['attention'] + COUNTS['token_embedding']:,} in all"),
    ("03", "cell-070", f"It becomes {MAIN / TOTAL:.3f} times what it was."),
    ("03", "cell-070", f"${OPTIMIZER:.0f} \\cdot (1 - 0.453) \\approx {OPTIMIZER * (1 - 0.453):.0f}$ MiB."),
    ("03", "cell-070", f"the peak of {PEAKS[FULL][8]:,.0f} MiB"),
    ("03", "ex-03d-task", f"has **{FREE:,} MiB** free"),
    ("03", "ex-03d-task", f"with {100 * (1 - MAIN / TOTAL):.0f}% of the parameters frozen"),
    ("03", "ex-03d-help", f"/ 7 \\approx {window_of(FULL):.1f}$ MiB a window"),
    (
        "03",
        "ex-03d-solution",
        f"saves {STATE_SAVED:.0f} MiB once, whatever the batch, and "
        f"{100 * (1 - window_of(PLAN) / window_of(FULL)):.0f}% of what each window needs",
    ),
    ("03", "ex-03d-solution", f"gets {FREE // PEAKS[FULL][1]:.0f} and {FREE // PEAKS[PLAN][1]:.0f}:"),
    (
        "03",
        "ex-03e-solution",
        f"costs {chain(F, F, T, T)} and `[True, True, False, False]` {chain(T, T, F, F)},",
    ),
    ("03", "ex-03f-solution", f"gives {MAIN:,} and {TOTAL:,}, so R = {MAIN / TOTAL:.3f}."),
    ("03", "ex-03f-solution", f"trains {UNTIED[0]:,} of {UNTIED[1]:,}, so R = {UNTIED[0] / UNTIED[1]:.3f}."),
    ("03", "quiz-2", f"sum to {(TOTAL + HEAD) / 1e6:.1f} M, its card says {TOTAL // 10**6} M."),
    ("03", "quiz-2", f"(a): {TOTAL / 1e6:.1f} M includes the embeddings"),
    ("03", "quiz-4", f"only the LayerNorms, R = {COUNTS['norm'] / TOTAL:.4f}."),
    ("03", "quiz-3", f"You freeze {100 * (1 - MAIN / TOTAL):.0f}% of the parameters."),
]


@pytest.mark.parametrize(("number", "name", "phrase"), PHRASES, ids=lambda value: str(value)[:40])
def test_a_number_in_the_prose_is_the_computed_one(number, name, phrase):
    assert phrase in prose(number, name)


def test_the_loss_that_exercise_00a_asks_about_is_that_of_the_base():
    base = float(re.search(r"the base: ([\d.]+) nats", printed("00", "cell-041"))[1])
    assert f"How good is a loss of {base:.1f}?" in prose("00", "cell-037-2")


def test_more_than_half_of_the_weights_is_frozen_in_the_first_example():
    ledger = COURSE_PLANS["attention+embeddings"].ledger(anatomy(build_on_meta(mini_config())))
    assert "more than half of its weights are *frozen*" in prose("00", "cell-000") and ledger.R < 0.5


def test_the_practice_head_of_01_has_the_shape_that_its_text_says():
    assert [t.shape for t in practice_head()] == [(1, 2, 8, 32)] * 2


def test_a_piece_of_text_in_A1_has_as_many_tokens_as_its_text_says():
    assert "texts.windows(tokenizer, text, 17)" in prose("A1", "cell-100")
    assert "passages of 16 tokens" in printed("A1", "cell-101")


def table(name: str) -> dict[str, list[float]]:
    """A table that a cell of 01 prints: the first word of each row to its numbers."""
    rows = re.findall(r"^ *(\S+)((?: +-?\d+\.\d+)+)$", printed("01", name), re.MULTILINE)
    return {first: [float(number) for number in rest.split()] for first, rest in rows}


def test_the_head_of_five_words_in_01_does_what_its_text_reads():
    weights = table("tiny-weights")
    assert weights["The"] == [1, 0, 0, 0, 0] and weights["old"] == [0.5, 0.5, 0, 0, 0]
    mixed = table("tiny-mix")
    thing, quality = (mixed[word].index(max(mixed[word])) for word in ("slept", "cat"))
    assert (thing, quality) == (0, 1) and mixed["old"] == [0, 4.5, 0]


def test_undivided_scores_in_01_grow_as_its_text_says():
    spread, largest, divided = zip(*table("divide-measured").values(), strict=True)
    assert all(1.8 < wide / narrow < 2.1 for narrow, wide in itertools.pairwise(spread))
    assert largest[-1] > 0.9 and max(divided) - min(divided) < 0.05


def test_left_of_zero_a_relu_has_no_slope_and_a_gelu_has_one():
    for u, (_, relu_slope, _, gelu_slope) in table("gelu-slopes").items():
        assert float(u) > 0 or (relu_slope == 0 and gelu_slope != 0)


def test_the_parts_of_03_make_as_many_choices_as_its_text_says():
    parts = {entry.part for entry in anatomy(build_on_meta(gpt_neo_125m_config())).entries}
    n_choices = sum(1 for size in range(1, len(parts) + 1) for _ in itertools.combinations(parts, size))
    assert f"That makes {WORDS[len(parts)]} parts and {n_choices} choices." in prose("03", "cell-039")


def test_comparisons_in_the_prose_of_03_hold():
    embeddings = COUNTS["token_embedding"] + COUNTS["position_embedding"]
    assert "less than a quarter" in prose("03", "cell-023") and COUNTS["attention"] / TOTAL < 0.25
    assert "the bigger part of what the main plan freezes" in prose("03", "cell-023")
    assert embeddings > COUNTS["attention"]
    assert "differ by almost 5%" in prose("03", "cell-064") and 0.045 < MIB / 1e6 - 1 < 0.05


def test_the_limits_of_the_speed_up_in_03_are_those_of_its_outputs():
    most = float(re.search(r"at most ([\d.]+)x", printed("03", "cell-087"))[1])
    norms = float(re.search(r"norms alone .* step ([\d.]+) of full", printed("03", "cell-085"))[1])
    assert "the speed-up stays under 1.5:" in prose("03", "cell-088") and most < 1.5
    assert "still costs more than two thirds" in prose("03", "cell-088") and norms > 2 / 3
    assert "About 1.5 times faster at most" in prose("03", "quiz-4") and round(1 / norms, 1) <= 1.5
