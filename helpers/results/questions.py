"""The questions that the page of results answers, in their order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from helpers.results import (
    answers,
    plan_answers,
)
from helpers.results import (
    cost_answers as costs,
)
from helpers.results import (
    lever_answers as levers,
)
from helpers.results import (
    recipe_answers as recipes,
)

RUNS = "the runs in `data/evidence/study1-*.parquet`"


@dataclass(frozen=True)
class Question:
    """One page.

    Attributes:
        name: of the page and its picture.
        asks: the question, for the heading.
        answer: takes the evidence of a model, or the folder of all evidence; None where nothing was recorded.
        of_model: whether each model has its own answer.
        source: what the answer is computed from.
        command: what records it.
        how_to_read: what the figure shows, and what it cannot show.
    """

    name: str
    asks: str
    answer: Callable
    of_model: bool
    source: str
    command: str
    how_to_read: str


UNLIKE = (
    "*Unlike rates*: no rate of this plan got to 80% of full training's gain, so that its runs have the rate "
    "that gains most, beside full training at the rate that forgets least. "
)
BOTH_AXES = (
    "An interval holds three errors: of the seeds, of the retention text's windows, and of the dev windows on "
    "which the gain is read. Records hold the dev windows of a run's start and best step; between them each "
    "window's share of the gain is taken as constant. "
)
WORDS = (
    "*Less* or *more*: the interval lies on one side of zero, and the difference is at least a fifth of what the "
    "other plan forgot on the same windows, and 0.005 nats. *No difference that counts*: the interval shuts out "
    "one of that size. *Open*: neither. *Depends on the gain*: less at one level, more at another. "
)

QUESTIONS = (
    Question(
        "which_weights",
        "Which weights shall I train, and how do I keep what the model knew?",
        recipes.recipes,
        True,
        "the runs in `data/evidence/study2-*.parquet`",
        "course study second",
        "each row of the picture is one recipe minus another, over pairs with the same seed, averaged over the gains "
        "that both reach. Left of zero the first forgets less. *Rewound*: the tuned weights taken back towards the "
        "base, which needs no training; *stopped*: a point along training. Each recipe of the picture has its *gentlest "
        "rate*: going down, the last that still lowered what it forgot by a tenth or more, in the tuning runs. Only the "
        "tests in the sentences decide; "
        "a table shows every recipe that was run, and describes. *At the cap*: the run was ended by its last step, "
        "not by its dev loss. What a recipe forgot is measured on text that the base wrote itself, and an empty "
        "cell is a level that a run did not reach. Memory (at the peak) and work (operations, of full training's) of "
        "a step are predicted by the budget for the study's batch. *Copying*: by how much the loss of a passage falls "
        "when it comes a second time, in nats per token; more is better (`course study abilities`). *Answers*, of a chat "
        "model alone: drift on the base's own answers to short prompts; less is better. The rules, and which of them were "
        "changed when, are on the protocol's page. " + WORDS.strip(),
    ),
    Question(
        "levers",
        "What moves forgetting most?",
        levers.levers,
        True,
        RUNS,
        "course study first",
        "a factor is forgetting with the first over forgetting with the second; 1 is no change. The rate: tuning "
        "runs, both at 80% of full training's best gain. Stopping: each run "
        "at its best gain, and at 80% of that; this alone is not at equal gain. The plan: pairs of runs at equal "
        "gain, each at the rate that forgets least. A factor has no interval here: the words behind a plan come "
        "from the intervals of the next question. " + WORDS.strip(),
    ),
    Question(
        "forgetting",
        "Which plan forgets less, for what it has learned?",
        answers.forgetting,
        True,
        RUNS,
        "course study first",
        "each line is one run, from the base at (0, 0) to its best gain. At one gain, lower is better. Plans are "
        "compared in pairs with the same seed, at the dashed line; between evaluations a line is read by a "
        "monotone curve. " + BOTH_AXES + WORDS + UNLIKE.strip(),
    ),
    Question(
        "models",
        "Is it the plan, or the model?",
        plan_answers.forgetting_by_model,
        False,
        RUNS,
        "course study first --profile smollm2",
        "left of zero the main plan forgets less than full training, on that model and text. The models differ in "
        "many things at once, so the picture cannot say why they differ, or agree. Two models are no sample of "
        "models.",
    ),
    Question(
        "one_pass",
        "And on a long text that is read only once?",
        answers.forgetting_in_one_pass,
        True,
        RUNS,
        "course study first --books FOLDER",
        "as under *Which plan forgets less, for what it has learned?*, on a real author's book. Where a run read less "
        "than 100% of it, no window came twice: then nothing seen here comes from learning a short text by heart. The "
        "rates are those of the course's own text in that manner. These runs are described and decide nothing.",
    ),
    Question(
        "rates",
        "How much does the learning rate change forgetting?",
        answers.rates,
        True,
        "the tables of rates (`data/evidence/rates.parquet`)",
        "course study first",
        "forgetting is read at one gain, 80% of full training's best. A rate that does not get there has no point "
        "and an empty cell. These are tuning runs: they chose the rates, and decide nothing else.",
    ),
    Question(
        "quality",
        "Which plan predicts the new text best?",
        answers.quality,
        True,
        RUNS,
        "course study first",
        "the gain is the base's test loss minus that of the tuned model, with the weights of the best dev loss. "
        "Each row of the picture is a plan's gain over full training's, over pairs with the same seed. "
        "Right of 1: it gained more. *As much gained* holds where the 90% interval of the share lies above "
        "0.9. Where a tuned model loses more than the untouched base, nothing was gained, and two equal losses "
        "say nothing. It is a loss, and says nothing about how a text reads.",
    ),
    Question(
        "style",
        "Who learns an author's style?",
        answers.style,
        True,
        RUNS,
        "course study first",
        "read down a column: the text stays, the models change. Style contrast is the mean over both authors of "
        "how much better the model tuned on an author is than the one tuned on the other; what helps with any "
        "story drops out. It grows with the gain, so a plan that learned less has less of it. At equal gain: the "
        "contrast of each plan over its own gain on its own author's chapters, times full training's gain. The "
        "records hold it at the best weights alone, so it is taken as growing in step with the gain.",
    ),
    Question(
        "convergence",
        "Does the loss settle?",
        plan_answers.convergence,
        True,
        "the long runs in `data/evidence/study1-*.parquet`",
        "course study first",
        "each line is one long run. *Levelled off*: a curve that falls to a limit, fitted to the first three "
        "quarters, predicts the rest. A finite run proves no limit. Where the dev loss rises while the probe's "
        "still falls, the run learns its text by heart.",
    ),
    Question(
        "what_trains",
        "What does each plan train?",
        costs.what_trains,
        False,
        "the config of GPT-Neo 125M",
        "course results",
        "a plan's name says what it freezes, or what alone it trains. The tied head is the token embedding, and "
        "counts once. `only-norms` and `only-biases` train so little that their bars cannot be seen: see the table.",
    ),
    Question(
        "engine",
        "What do a step's time and memory come to, against the Trainer?",
        costs.engine,
        False,
        "`data/evidence/benchmark.parquet`",
        "course benchmark",
        "left of zero: less than Hugging Face's Trainer as it comes, with the same plan and the same batch. Each "
        "pair was measured one after the other on one machine, in processes of their own.",
    ),
    Question(
        "memory",
        "Does a plan need the memory that the budget predicts?",
        costs.memory,
        False,
        "`data/evidence/memory.parquet`",
        "course memory",
        "for each plan the upper bar is predicted from the config alone, the hatched one measured as the growth "
        "of a process. The table has shares of full training's, as measured.",
    ),
    Question(
        "plans",
        "What do all the other freezes do?",
        plan_answers.every_plan,
        True,
        RUNS,
        "course study first",
        "each row is one plan against full training on one text, over pairs with the same seed. A plan's name "
        "says what it freezes, or what alone it trains. Left of zero: it forgets less. The row says at which "
        "share of full training's best gain both were read: rows with different shares are not to be compared "
        "with each other. Plans that no rate brought to 80% are in the table alone: they are read in the tuning "
        "runs (other windows of the retention text), at the highest share that every rate tried reached, each at "
        "its gentlest rate there, that is the one that forgets least. "
        + BOTH_AXES
        + WORDS
        + "Plans with five pairs are described and decide nothing.",
    ),
    Question(
        "lora",
        "LoRA or partial fine-tuning?",
        plan_answers.lora,
        True,
        RUNS,
        "course study first",
        "on one text. Lines are tuning runs at the rate that forgets least at this gain, for each plan: no rate "
        "of the LoRA plans got to 80% of full training's gain, so all are read at the highest share that every "
        "rate tried reached. A best gain, in the table, is that of the main runs at the rate that gains "
        "most: more than where the lines end. These runs are "
        "described and decide nothing: they are few, and on one text.",
    ),
)
