"""The freeze designer: the parts of the drawing, the plans that they make, and what a step of them costs."""

import json
import time
from statistics import median

import pytest
from matplotlib.colors import to_hex
from transformers import LlamaConfig

from helpers.costs.step_cost import budget
from helpers.freezing.plans import COURSE_PLANS, FreezePlan
from helpers.freezing.selectors import PlanError
from helpers.lessons.widgets.freezing import freeze_designer, parts_of, plan_of
from helpers.models.loading import build_on_meta, mini_config
from helpers.models.roles import anatomy
from helpers.plots import THEME

ROLES = ["attention", "mlp", "norm", "token_embedding", "position_embedding"]
LLAMA = LlamaConfig(
    vocab_size=211,
    hidden_size=64,
    intermediate_size=160,
    num_hidden_layers=2,
    num_attention_heads=4,
    max_position_embeddings=128,
    tie_word_embeddings=False,
)


@pytest.fixture(scope="module")
def model():
    return anatomy(build_on_meta(mini_config()))


@pytest.fixture
def designer():
    return freeze_designer(mini_config(), 8, 256)


def plan_on(widget) -> FreezePlan:
    """The plan of the boxes that are frozen now."""
    parts = {part["id"]: part["selectors"] for part in widget.data["parts"]}
    return plan_of([word for part in widget.choice["frozen"] for word in parts[part]])


@pytest.mark.parametrize("config", [mini_config(), LLAMA], ids=["mini", "llama"])
def test_the_boxes_hold_every_parameter_once(config):
    model = anatomy(build_on_meta(config))
    parts = parts_of(model)
    assert sum(part["n"] for part in parts) == model.n_parameters
    taken = [set(model.names()) - plan_of(part["selectors"]).trainable_names(model) for part in parts]
    assert sum(map(len, taken)) == len(set.union(*taken)) == len(model.names())


def test_boxes_come_in_the_order_in_which_a_text_passes_them(model):
    labels = [part["label"] for part in parts_of(model)]
    assert labels[:5] == ["token table", "positions", "block 0, norms", "block 0, attention", "block 0, MLP"]
    assert labels[-1] == "the last norm"
    assert [part["label"] for part in parts_of(anatomy(build_on_meta(LLAMA)))][-1] == "head"


def test_it_starts_with_the_main_plan(designer, model):
    main = COURSE_PLANS["attention+embeddings"]
    assert plan_on(designer).trainable_names(model) == main.trainable_names(model)


def test_the_named_plans_freeze_what_their_names_say(designer, model):
    keys = {plan["key"] for plan in designer.data["plans"]}
    assert keys == set(COURSE_PLANS) - {"only-mlp-out", "only-biases"}  # these take parts of boxes
    for plan in designer.data["plans"]:
        designer.choice = {"frozen": plan["frozen"]}
        assert plan_on(designer).trainable_names(model) == COURSE_PLANS[plan["key"]].trainable_names(model)


def test_memory_and_flops_are_those_of_the_budget(designer):
    designer.choice = {"frozen": ["mlp@0", "mlp@1"]}
    own, full = (budget(mini_config(), p, 8, 256) for p in (FreezePlan.freeze("mlp@0-1"), FreezePlan.full()))
    for said, wanted in ((designer.answer, own), (designer.answer["full"], full)):
        assert sum(said["flops"]) == wanted.flops.step and said["flops"][0] == wanted.flops.forward
        assert said["peak"] == pytest.approx(wanted.peak_bytes, rel=0.002)
    assert designer.answer["frozen"] == ["mlp@0", "mlp@1"]


def test_a_plan_that_trains_nothing_is_told(designer):
    designer.choice = {"frozen": [part["id"] for part in designer.data["parts"]]}
    assert "trains nothing" in designer.problem
    designer.choice = {"frozen": []}
    assert designer.problem == ""


def test_a_plan_that_is_not_known_is_an_error():
    with pytest.raises(PlanError):
        plan_of(["nonsense"])


def test_the_site_has_the_boxes_and_the_first_answer(designer):
    page = json.loads(designer.on_page())
    assert page["module"] == "freezing" and page["answer"]["frozen"] == page["choice"]["frozen"]


def test_the_answer_that_the_notebook_gives_is_true():
    """Notebook 02: embeddings and one block frozen; block 0 saves most, and only while nothing below it trains."""

    def flops(*selectors):
        return budget(mini_config(), FreezePlan.freeze(*selectors), 8, 256).flops

    with_embeddings = [flops("embeddings", f"layers:{i}") for i in range(4)]
    assert with_embeddings[0].step < min(other.step for other in with_embeddings[1:])
    assert len({other.step for other in with_embeddings[1:]}) == 1
    assert flops("token_embedding", "layers:0").step == flops("token_embedding", "layers:2").step


def test_the_picture_says_what_it_shows(designer):
    figure, sentence = designer._still()
    assert 'FreezePlan.freeze("attention", "embeddings"): R = 0.454' in sentence and "(predicted)" in sentence
    assert all(ax.get_xlabel() for ax in figure.axes)


def test_the_edge_of_an_empty_bar_hides_no_small_trainable_one(designer):
    figure, _ = designer._still()
    trained, frozen = figure.axes[0].containers
    norm = ROLES.index("norm")
    assert trained[norm].get_width() > 0 and frozen[norm].get_width() == frozen[norm].get_linewidth() == 0
    figure.canvas.draw()
    assert trained[norm].get_window_extent().width >= 2, "pixels"
    assert to_hex(trained[norm].get_facecolor()) == THEME["trains"][0]


def test_a_choice_is_answered_within_100_ms(designer):
    """Median over twelve plans, in the processor time of this process."""
    seconds, ids = [], [part["id"] for part in designer.data["parts"]]
    for n in range(12):
        begin = time.process_time()
        designer.choice = {"frozen": ids[:n]}
        seconds.append(time.process_time() - begin)
    assert median(seconds) < 0.1
