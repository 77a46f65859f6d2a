"""Why a freeze saved little: ten cases that people ask about, and each answer is measured."""

from dataclasses import dataclass, field
from functools import cache

import pytest
import torch
from torch import nn
from transformers import LlamaConfig

from helpers.costs.reasons import ACTIVATIONS, LOGITS, STALE, TRAINED, WEIGHTS, explain_cost
from helpers.costs.step_cost import BottomSize, BudgetError
from helpers.files import counted
from helpers.freezing.lora import LORA_PLAN, insert
from helpers.freezing.plans import FreezePlan
from helpers.models.loading import build_model, build_on_meta, enable_checkpointing, mini_config
from helpers.models.losses import next_token_loss
from helpers.study.cost_points import measured

UNTIED = LlamaConfig(
    vocab_size=2048,
    hidden_size=128,
    intermediate_size=352,
    num_hidden_layers=4,
    num_attention_heads=4,
    max_position_embeddings=128,
)
TIED = mini_config(vocab_size=2048, hidden_size=128, num_heads=4, intermediate_size=512)
NORMS = FreezePlan.only("norms")


def with_lora(model: nn.Module) -> None:
    insert(model, "q+v", rank=8, alpha=16)


def frozen_in_bfloat16(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if "norm" not in name:
            parameter.data = parameter.data.bfloat16()


def old_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    """One that has trained everything before."""
    adamw = torch.optim.AdamW(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    adamw.step()
    adamw.zero_grad()
    return adamw


@dataclass
class Case:
    """A question, and what must be answered: the cause, the lowest tensor, the blocks that are crossed, the help."""

    plan: FreezePlan
    cause: str
    lowest: str
    n_crossed: int
    change: str
    config: object = None
    prepare: object = None
    shape: tuple[int, int] = (4, 64)
    measured: dict = field(default_factory=dict)
    optimizer: object = None


HALF_OFF, RECOMPUTE, FEWER = "freezing the first half", "gradient checkpointing", "half the windows"
CASES = {
    "I train the head alone": Case(FreezePlan.only("head"), WEIGHTS, "lm_head.weight", 0, FEWER, UNTIED),
    "I train the last block alone": Case(
        FreezePlan.only("layers:3"), WEIGHTS, "model.layers.3.self_attn.q_proj.weight", 1, FEWER, UNTIED
    ),
    "I froze every other block": Case(
        FreezePlan.freeze("embeddings", "layers:0", "layers:2"),
        ACTIVATIONS, "model.layers.1.self_attn.q_proj.weight", 3, HALF_OFF, UNTIED,
    ),
    "I train the embeddings alone": Case(
        FreezePlan.only("embeddings"), ACTIVATIONS, "model.embed_tokens.weight", 4, RECOMPUTE, UNTIED
    ),
    "I froze the embeddings": Case(
        FreezePlan.freeze("embeddings"), ACTIVATIONS, "transformer.h.0.ln_1.weight", 4, HALF_OFF, TIED
    ),
    "I train the biases alone": Case(
        FreezePlan.only("biases"), ACTIVATIONS, "transformer.h.0.ln_1.bias", 4, RECOMPUTE, TIED
    ),
    "I train the norms alone": Case(NORMS, ACTIVATIONS, "transformer.h.0.ln_1.weight", 4, RECOMPUTE, TIED),
    "my frozen weights have 16 bits": Case(
        NORMS, ACTIVATIONS, "model.layers.0.input_layernorm.weight", 4, FEWER, UNTIED, frozen_in_bfloat16,
        measured={"bfloat16": True},
    ),
    "I use gradient checkpointing": Case(
        FreezePlan.freeze("embeddings"), TRAINED, "transformer.h.0.ln_1.weight", 4, HALF_OFF, TIED,
        enable_checkpointing, measured={"checkpointing": True},
    ),
    "I use LoRA on q and v": Case(
        LORA_PLAN, ACTIVATIONS, "model.layers.0.self_attn.q_proj.lora_A", 4, RECOMPUTE, UNTIED, with_lora,
        measured={"plan": "lora", "lora": "q+v"},
    ),
    "my optimizer holds all parameters": Case(
        NORMS, STALE, "model.layers.0.input_layernorm.weight", 4, "build the optimizer anew", UNTIED,
        shape=(1, 16), optimizer=old_optimizer,
    ),
    "my batch is small and my vocabulary large": Case(
        FreezePlan.only("layers:0"), LOGITS, "model.layers.0.self_attn.q_proj.weight", 1, FEWER,
        LlamaConfig(
            vocab_size=4000, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
            tie_word_embeddings=True,
        ),
    ),
}  # fmt: skip


@cache
def explained(question: str):
    """A model of the case, its optimizer if it has one, and what is said of them."""
    case = CASES[question]
    model = build_model(case.config)
    if case.prepare:
        case.prepare(model)
    optimizer = case.optimizer(model) if case.optimizer else None
    before = {name: (p.requires_grad, p.dtype) for name, p in model.named_parameters()}
    found = explain_cost(model, case.plan, *case.shape, optimizer=optimizer)
    assert before == {name: (p.requires_grad, p.dtype) for name, p in model.named_parameters()}
    return model, optimizer, found


@pytest.mark.parametrize("question", CASES)
def test_the_cause_is_named(question):
    case, (_, _, found) = CASES[question], explained(question)
    assert (found.cause, found.lowest, found.n_crossed) == (case.cause, case.lowest, case.n_crossed)
    assert found.change.startswith(case.change)
    assert case.cause, "a cause has a name"
    for words in (
        case.cause,
        case.lowest,
        f"crosses {case.n_crossed} of {counted(found.n_blocks, 'block')}",
        found.change,
    ):
        assert words in str(found)


@pytest.mark.parametrize("question", CASES)
def test_the_peak_and_what_the_change_saves_are_measured(question):
    case = CASES[question]
    batch, length = case.shape
    _, optimizer, found = explained(question)
    point = {"plan": case.plan, "batch": batch, "length": length} | case.measured
    before = measured(point, case.config)
    assert before == pytest.approx(found.now.peak_bytes, rel=0.01)
    if optimizer is not None:  # built anew it holds nothing of what is frozen
        kept = sum(t.nbytes for state in optimizer.state.values() for t in state.values())
        assert found.peak_bytes - found.now.peak_bytes == found.saves
        assert found.saves == pytest.approx(kept, rel=0.01)
        return
    if case.change == RECOMPUTE:
        point["checkpointing"] = True
    elif case.change == FEWER:
        point |= {"batch": batch // 2, "n_parts": 2}
    else:
        point["plan"] = FreezePlan.freeze(*case.plan.selectors, "first-half")
    assert before - measured(point, case.config) == pytest.approx(found.saves, rel=0.03)


@pytest.mark.parametrize("question", CASES)
def test_autograd_crosses_the_blocks_that_are_named(question):
    case, (model, _, found) = CASES[question], explained(question)
    case.plan.apply(model)
    reached = set()
    blocks = model.transformer.h if case.config is TIED else model.model.layers

    def note(i):
        def hook(module, arguments, out):
            states = out[0] if isinstance(out, tuple) else out
            if states.requires_grad:
                states.register_hook(lambda gradient: reached.add(i))

        return hook

    for i, block in enumerate(blocks):
        block.register_forward_hook(note(i))
    with torch.autocast("cpu", torch.bfloat16, enabled="bfloat16" in case.measured):
        total, _ = next_token_loss(model, torch.ones(1, 8, dtype=torch.long))
    total.backward()
    assert reached == set(range(found.n_blocks - found.n_crossed, found.n_blocks))


def test_a_kept_bottom_is_proposed_where_one_is_frozen():
    last, norms = (
        explain_cost(build_on_meta(UNTIED), plan, 4, 64) for plan in (FreezePlan.only("layers:3"), NORMS)
    )
    assert last.kept_share < 0.7 and f"has {last.kept_share:.2f} of these FLOPs" in str(last)
    assert norms.kept_share is None and norms.kept_bytes == 0 and "cache_frozen" not in str(norms)
    assert (
        last.kept_bytes == 4 * UNTIED.hidden_size
        and f"; {last.kept_bytes:,} bytes are kept of each" in str(last)
    )
    once = explain_cost(build_on_meta(UNTIED), FreezePlan.only("layers:3"), 4, 64, bottom=BottomSize(64))
    assert once.kept_share is None and "cache_frozen" not in str(once)


def test_a_setting_that_is_given_wins():
    plainly, given = (
        explain_cost(build_on_meta(TIED), NORMS, 4, 64, **settings) for settings in ({}, {"loss": "whole"})
    )
    assert given.bytes["logits"] > 2 * plainly.bytes["logits"] and given.cause == LOGITS
    with pytest.raises(BudgetError, match="batch must be"):
        explain_cost(build_on_meta(TIED), NORMS, 0, 64)


def test_what_is_no_optimizer_is_refused():
    with pytest.raises(TypeError, match="found str"):
        explain_cost(build_model(TIED), FreezePlan.only("norms"), 1, 8, optimizer="adamw")


CHANGES_BY_HAND = {
    "a tied head": lambda m: setattr(m.lm_head, "weight", m.model.embed_tokens.weight),
    "a block less": lambda m: m.model.layers.__delitem__(1),
    "another MLP": lambda m: setattr(m.model.layers[0], "mlp", nn.Linear(64, 64)),
    "a head with a bias": lambda m: setattr(m, "lm_head", nn.Linear(64, UNTIED.vocab_size)),
}


@pytest.mark.parametrize("change", CHANGES_BY_HAND)
def test_a_model_that_its_config_no_longer_describes_is_refused(change):
    model = build_on_meta(UNTIED)
    CHANGES_BY_HAND[change](model)
    with pytest.raises(
        BudgetError, match="not what its config describes: .* was added, taken away, tied or given"
    ):
        explain_cost(model, NORMS, batch=2, length=16)


def cast(*kinds: str, to: torch.dtype):
    """Cast the weights whose names hold one of these words."""

    def change(model: nn.Module) -> None:
        for name, parameter in model.named_parameters():
            if any(kind in name for kind in kinds):
                parameter.data = parameter.data.to(to)

    return change


TYPES_BY_HAND = {
    "all in bfloat16": (
        FreezePlan.full(),
        cast("", to=torch.bfloat16),
        "lm_head.weight trains, and is in bfloat16",
    ),
    "all in bfloat16, some frozen": (NORMS, cast("", to=torch.bfloat16), "trains, and is in bfloat16"),
    "what trains, in float64": (NORMS, cast("norm", to=torch.float64), "trains, and is in float64"),
    "frozen ones in float16": (NORMS, cast("proj", to=torch.float16), "is frozen, and is in float16"),
    "some of the frozen in bfloat16": (
        NORMS,
        cast("mlp", to=torch.bfloat16),
        "is frozen, and is in bfloat16",
    ),
}


@pytest.mark.parametrize("change", TYPES_BY_HAND)
def test_weights_that_take_other_bytes_than_a_budget_counts_are_refused(change):
    plan, prepare, words = TYPES_BY_HAND[change]
    model = build_on_meta(UNTIED)
    prepare(model)
    with pytest.raises(BudgetError, match=words):
        explain_cost(model, plan, batch=2, length=16)


def test_where_a_cost_is_predicted_it_counts_the_bytes_that_the_weights_take():
    for prepare in (lambda model: None, frozen_in_bfloat16):
        model = build_on_meta(UNTIED)
        prepare(model)
        held = sum(p.nbytes for p in model.parameters())
        assert explain_cost(model, NORMS, batch=2, length=16).now.bytes["parameters"] == held
