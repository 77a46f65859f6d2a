"""The freeze designer: the plan that ticks mean, and what stands on the page."""

import html
import re
import time
from statistics import median

import pytest
from matplotlib.colors import to_hex

from helpers.costs.step_cost import budget, compare
from helpers.freezing.plans import COURSE_PLANS, FreezePlan
from helpers.freezing.selectors import PlanError
from helpers.lessons.widgets.freezing import (
    CODE,
    LEDGER,
    RATIO,
    RESULT,
    WAYS,
    freeze_designer,
    plan_of,
    runs_of,
)
from helpers.models.loading import build_on_meta, mini_config
from helpers.models.roles import anatomy
from helpers.plots import THEME

FREEZE, ONLY = WAYS
ROLES = ["attention", "mlp", "norm", "token_embedding", "position_embedding"]
BLOCKS = [f"block {i}" for i in range(4)]


@pytest.fixture(scope="module")
def parts():
    return anatomy(build_on_meta(mini_config()))


@pytest.fixture
def designer():
    return freeze_designer(mini_config(), 8, 256)


def tick(frame, *names):
    """Tick exactly these."""
    with frame.quietly():
        for name in ROLES + BLOCKS:
            frame.controls[name].value = name in names
    frame.controls["way"].value = ONLY
    frame.controls["way"].value = FREEZE


def code_on(frame):
    return html.unescape(re.search(f'<code class="{CODE}">(.*?)</code>', frame.views["ledger"].value)[1])


def ratio_on(frame):
    return float(re.search(f'class="{RATIO}">(.*?)</b>', frame.views["ledger"].value)[1])


@pytest.mark.parametrize(
    "ticked, plan",
    [
        (
            ["attention", "token_embedding", "position_embedding", *BLOCKS],
            COURSE_PLANS["attention+embeddings"],
        ),
        (["mlp", *BLOCKS], COURSE_PLANS["mlp"]),
        (BLOCKS, FreezePlan.full()),
        (["attention"], FreezePlan.full()),  # in no block
        (["attention", "block 0", "block 1", "block 3"], FreezePlan.freeze("attention@0-1", "attention@3")),
        (["token_embedding"], FreezePlan.freeze("token_embedding")),
        (["norm", "block 2"], FreezePlan.freeze("norms@2")),
    ],
)
def test_ticks_mean_this_plan(parts, ticked, plan):
    assert plan_of(parts, FREEZE, ticked) == plan


def test_the_other_way_trains_what_is_ticked(parts):
    assert plan_of(parts, ONLY, ["norm", *BLOCKS]) == COURSE_PLANS["only-norms"]
    with pytest.raises(PlanError, match="trains nothing"):
        plan_of(parts, ONLY, BLOCKS)


def test_a_whole_block_ticked_is_the_block(parts):
    plan = plan_of(parts, ONLY, ["attention", "mlp", "norm", "block 2"])
    assert plan.trainable_names(parts) == FreezePlan.only("layers:2").trainable_names(parts)


def test_neighbouring_blocks_become_one_range():
    assert runs_of([0, 1, 2, 5, 7, 8]) == ["0-2", "5", "7-8"] and runs_of([]) == []


def test_it_starts_with_the_main_plan(designer):
    assert code_on(designer) == 'FreezePlan.freeze("attention", "embeddings")'
    assert ratio_on(designer) == round(1_186_944 / 2_613_120, 4)


@pytest.mark.parametrize(
    "ticked", [["mlp", "block 1", "block 2"], ["attention", "norm", *BLOCKS], ROLES[3:], BLOCKS], ids=str
)
def test_the_line_of_code_makes_the_plan_again(designer, parts, ticked):
    tick(designer, *ticked)
    plan = eval(code_on(designer), {"FreezePlan": FreezePlan})
    assert plan == plan_of(parts, FREEZE, ticked)
    assert ratio_on(designer) == round(plan.ledger(parts).R, 4)


def test_the_ledger_and_the_costs_follow_a_tick(designer):
    before = {name: view.value for name, view in designer.views.items()}
    designer.controls["mlp"].value = True
    after = {name: view.value for name, view in designer.views.items()}
    assert before["ledger"] != after["ledger"] and before["cost"] != after["cost"]
    assert all(RESULT in text for text in after.values()) and LEDGER in after["ledger"]


def test_memory_and_flops_are_those_of_the_budget(designer):
    plan = FreezePlan.freeze("mlp@0-1")
    tick(designer, "mlp", "block 0", "block 1")
    share = compare(*(budget(mini_config(), p, 8, 256) for p in (FreezePlan.full(), plan)))
    shown = re.findall(r"(\d+)%", designer.views["cost"].value)
    assert [int(shown[i]) for i in (0, 1, -1)] == [
        round(100 * share[what]) for what in ("state_bytes", "peak_bytes", "step_flops")
    ]


def test_a_plan_that_trains_nothing_is_told(designer):
    tick(designer, *ROLES, *BLOCKS)
    assert "trains nothing" in designer.problem.value
    designer.controls["norm"].value = False
    assert designer.problem.value == ""


def test_its_checkboxes_keep_their_names(designer):
    assert [designer.controls[name].description for name in ROLES + BLOCKS] == ROLES + BLOCKS
    assert designer.controls["way"].description == "Ticked parts"


def test_the_answer_that_the_notebook_gives_is_true():
    """Notebook 02: embeddings and one block frozen; block 0 saves most, and only while nothing below it trains."""

    def flops(*selectors):
        return budget(mini_config(), FreezePlan.freeze(*selectors), 8, 256).flops

    with_embeddings = [flops("embeddings", f"layers:{i}") for i in range(4)]
    assert with_embeddings[0].step < min(other.step for other in with_embeddings[1:])
    assert len({other.step for other in with_embeddings[1:]}) == 1
    assert flops("token_embedding", "layers:0").step == flops("token_embedding", "layers:2").step


def test_the_picture_says_what_it_shows(designer):
    figure, sentence = designer.still()
    assert 'FreezePlan.freeze("attention", "embeddings"): R = 0.454' in sentence and "(predicted)" in sentence
    assert all(ax.get_xlabel() for ax in figure.axes)


def test_the_edge_of_an_empty_bar_hides_no_small_trainable_one(designer):
    figure, _ = designer.still()
    trained, frozen = figure.axes[0].containers
    norm = ROLES.index("norm")
    assert trained[norm].get_width() > 0 and frozen[norm].get_width() == frozen[norm].get_linewidth() == 0
    figure.canvas.draw()
    assert trained[norm].get_window_extent().width >= 2, "pixels"
    assert to_hex(trained[norm].get_facecolor()) == THEME["trains"][0]


def test_a_tick_is_answered_within_100_ms(designer):
    """Median over twelve ticks, ledger and costs together, in the processor time of this process."""
    seconds = []
    for name in ("mlp", "norm", "block 0", "block 1", "block 2", "attention") * 2:
        begin = time.process_time()
        designer.controls[name].value = not designer.controls[name].value
        seconds.append(time.process_time() - begin)
    assert median(seconds) < 0.1
