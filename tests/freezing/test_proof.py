"""The proof sees what else can happen to a tensor than a step, and raises no false alarm. All or nothing changes."""

import copy
from dataclasses import FrozenInstanceError

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, MptConfig, Qwen3Config

from helpers.files import NoValuesError
from helpers.freezing import lora
from helpers.freezing.plans import FreezePlan
from helpers.freezing.proof import FreezingError, Proof, Snapshot, freezing_proof, snapshot
from helpers.freezing.selectors import PlanError
from helpers.models.loading import build_model, weight_hash
from helpers.models.roles import AnatomyError, anatomy

SHAPE = {
    "vocab_size": 61,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
}
MAIN = FreezePlan.freeze("attention", "embeddings")
UP, Q = "model.layers.1.mlp.up_proj.weight", "model.layers.0.self_attn.q_proj.weight"


def begun(config=None, plan=MAIN):
    """A model under a plan, its optimizer and its snapshot."""
    model = build_model(config or LlamaConfig(**SHAPE))
    plan.apply(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    return model, optimizer, snapshot(model, optimizer)


def train(model, optimizer, length=12):
    ids = torch.randint(61, (2, length), generator=torch.Generator().manual_seed(0))
    for _ in range(2):
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def replace(model, name, tensor, requires_grad):
    module, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(module), leaf, nn.Parameter(tensor, requires_grad))


def problems(*args, **kwargs) -> str:
    return "\n".join(freezing_proof(*args, **kwargs).problems)


# --- what else than a step changes a tensor ----------------------------------------


def test_a_trainable_tensor_that_was_replaced_did_not_train_though_it_changed():
    model, optimizer, before = begun()
    replace(model, UP, torch.randn(24, 16), requires_grad=True)
    train(model, optimizer)
    assert f"{UP} is trainable and changed, but no optimizer holds it" in problems(before, model, optimizer)


def test_a_trainable_tensor_of_another_shape_or_type_is_seen():
    model, optimizer, before = begun()
    train(model, optimizer)
    assert freezing_proof(before, model, optimizer).ok
    model.get_parameter(UP).data = torch.randn(25, 16)
    assert f"{UP} is trainable and was float32 24x16 at the snapshot, float32 25x16 now" in problems(
        before, model, optimizer
    )
    model.get_parameter(UP).data = torch.randn(24, 16).bfloat16()
    assert "bfloat16 24x16 now" in problems(before, model, optimizer)


def test_a_resized_vocabulary_is_seen_on_both_ends():
    model, optimizer, before = begun(plan=FreezePlan.freeze("attention"))
    model.resize_token_embeddings(64)
    found = problems(before, model, optimizer)
    assert "model.embed_tokens.weight" in found and "lm_head.weight" in found and "64x16 now" in found


def test_a_frozen_tensor_that_was_replaced_is_seen():
    model, optimizer, before = begun()
    replace(model, Q, torch.randn(16, 16), requires_grad=False)
    assert f"{Q} is frozen but moved: no optimizer holds it" in problems(before, model, optimizer)


def test_a_head_tied_to_another_tensor_of_equal_value_is_seen():
    model, optimizer, before = begun(LlamaConfig(**SHAPE, tie_word_embeddings=True))
    twin = nn.Embedding(61, 16)
    model.twin = twin
    model.twin.weight = model.model.embed_tokens.weight
    before = snapshot(model, optimizer)
    model.model.embed_tokens.weight = model.lm_head.weight  # as it was
    assert freezing_proof(before, model, optimizer).problems == ()
    other = nn.Parameter(model.lm_head.weight.detach().clone(), requires_grad=False)
    model.lm_head.weight = model.twin.weight = other
    assert "new since the snapshot" in problems(before, model, optimizer)
    model, optimizer, _ = begun(LlamaConfig(**SHAPE, tie_word_embeddings=True))
    model.a, model.b = nn.Embedding(61, 16), nn.Embedding(61, 16)
    model.requires_grad_(False)
    model.b.weight = model.a.weight
    before = snapshot(model)
    model.b.weight = model.lm_head.weight
    assert (
        "model.embed_tokens.weight was one tensor with lm_head.weight at the snapshot and is one with "
        "lm_head.weight, b.weight now" in problems(before, model)
    )


# --- no false alarm ----------------------------------------------------------------


def test_frequencies_that_a_model_recomputes_for_a_length_are_no_weights():
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    model, optimizer, before = begun(LlamaConfig(**SHAPE | {"rope_parameters": rope}))
    frequencies = model.model.rotary_emb.inv_freq.clone()
    train(model, optimizer, length=48)  # longer than the 32 positions: the frequencies are set anew
    assert not torch.equal(model.model.rotary_emb.inv_freq, frequencies)
    assert freezing_proof(before, model, optimizer, MAIN).ok


def test_a_table_of_positions_that_grew_is_no_weight():
    model, optimizer, before = begun()
    model.model.register_buffer("table", torch.zeros(4), persistent=False)
    before = snapshot(model, optimizer)
    model.model.table = torch.zeros(8)
    train(model, optimizer)
    assert freezing_proof(before, model, optimizer).ok
    model.model.register_buffer("counter", torch.zeros(4))
    before = snapshot(model, optimizer)
    model.model.counter = torch.ones(4)
    assert "model.counter is a buffer but moved" in problems(before, model, optimizer)


# --- a head of its own -------------------------------------------------------------


@pytest.mark.parametrize("plan, state", [(MAIN, "trainable"), (FreezePlan.only("norms"), "frozen")])
def test_a_plan_says_in_one_line_what_happens_to_a_head_of_its_own(plan, state):
    line = f"lm_head.weight is a tensor of its own, not tied to the token embedding: 976 parameters (19.6%), {state}"
    share = 976 / anatomy(build_model(Qwen3Config(**SHAPE, head_dim=8))).n_parameters
    assert line.replace("19.6%", f"{share:.1%}") in str(
        plan.explain(build_model(Qwen3Config(**SHAPE, head_dim=8)))
    )
    tied = build_model(Qwen3Config(**SHAPE, head_dim=8, tie_word_embeddings=True))
    assert "of its own" not in str(plan.explain(tied))


# --- all or nothing ----------------------------------------------------------------


def with_int8(name=UP):
    model = build_model(LlamaConfig(**SHAPE))
    replace(model, name, torch.zeros(24, 16, dtype=torch.int8), requires_grad=False)
    return model


def state(model):
    return {n: (p.requires_grad, p.grad, p.dtype) for n, p in model.named_parameters()}, copy.copy(
        vars(model)
    )


@pytest.mark.parametrize("plan", [MAIN, FreezePlan.full(), FreezePlan.only("mlp")])
def test_a_plan_that_would_train_whole_numbers_changes_nothing(plan):
    model = with_int8()
    before = state(model)
    with pytest.raises(PlanError, match=rf"{UP} \(int8\)"):
        plan.apply(model)
    assert state(model) == before


def test_a_plan_that_freezes_whole_numbers_is_applied():
    model = with_int8()
    FreezePlan.only("norms").apply(model)
    assert sum(p.requires_grad for p in model.parameters()) == 5


def test_a_packed_tensor_is_refused_by_name_and_not_counted_wrongly():
    model = build_model(LlamaConfig(**SHAPE))
    replace(model, UP, torch.zeros(192, 1, dtype=torch.uint8), requires_grad=False)
    before = state(model)
    for use in (anatomy, MAIN.apply, MAIN.explain):
        with pytest.raises(AnatomyError, match=UP):
            use(model)
    assert state(model) == before


def test_lora_over_an_int8_layer_changes_nothing():
    model = with_int8()
    before, modules = weight_hash(model), dict(model.named_modules())
    with pytest.raises(lora.LoraError, match=rf"{UP} is packed \(int8\)"):
        lora.insert(model, "mlp", rank=2, alpha=4.0)
    assert weight_hash(model) == before and dict(model.named_modules()) == modules


@pytest.mark.parametrize("rank, alpha", [(True, 4.0), (2, "4"), (2, float("nan")), (0, 4.0), (2.0, 4.0)])
@pytest.mark.filterwarnings("ignore:transformers has no fast attention")
def test_a_rank_or_alpha_that_is_no_number_changes_nothing(rank, alpha):
    model = build_model(MptConfig(vocab_size=61, d_model=16, n_layers=1, n_heads=2, max_seq_len=32))
    modules = dict(model.named_modules())
    with pytest.raises(lora.LoraError):
        lora.insert(model, "mlp", rank=rank, alpha=alpha)
    assert dict(model.named_modules()) == modules


# --- words, borders and causes ------------------------------------------------------

NORM = "model.norm.weight"


def begun_with(plan=MAIN, make=torch.optim.AdamW, everything=False, **settings):
    model = build_model(LlamaConfig(**SHAPE))
    plan.apply(model)
    chosen = [p for p in model.parameters() if p.requires_grad or everything]
    return model, make(chosen, **{"lr": 1e-2, **settings})


def proof_of(*problems, notes=()):
    return Proof(problems, 1, 2, 3, 4, 5, tuple(notes))


def test_a_proof_in_words():
    assert str(proof_of()) == (
        "1 frozen tensor (2 parameters) and 3 buffers are bit-identical, without gradient or optimizer state; "
        "5 of 4 trainable tensors moved."
    )
    assert str(proof_of("a", "b")).splitlines() == ["Not proved, 2 found wrong:", "  - a", "  - b"]
    assert str(proof_of(notes=["n"])).splitlines()[1:] == ["  - n"]


def test_a_proof_without_an_optimizer_says_nothing_of_one():
    """The optimizer of full training still holds the frozen tensors' momentum: who does not see it cannot deny it."""
    model, optimizer = begun_with(everything=True)
    before = snapshot(model)
    model.get_parameter(NORM).sum().backward()
    optimizer.step()
    proof = freezing_proof(before, model)
    assert proof.ok
    words = str(proof).splitlines()[0]
    assert "without gradient (no optimizer was given to look at); 1 of" in words
    assert "optimizer state" not in words
    assert "build the optimizer after freezing" in str(freezing_proof(before, model, optimizer))

    frozen = next(name for name, p in model.named_parameters() if not p.requires_grad)
    model.get_parameter(frozen).data.add_(1)
    unknown = f"{frozen} is frozen but moved: no optimizer was given, so what moved it is not known"
    assert problems(before, model) == unknown


@pytest.mark.parametrize("n, last", [(9, "  - 8"), (10, "  - 9"), (11, "  - … and 1 more")])
def test_ten_lines_are_shown(n, last):
    lines = str(proof_of(*map(str, range(n)))).splitlines()
    assert len(lines) == 1 + min(n, 11) and lines[-1] == last
    with pytest.raises(FreezingError):
        proof_of(*map(str, range(n))).check()


def test_a_proof_and_a_snapshot_are_values():
    before = Snapshot({}, frozenset(), {})
    assert (before.kinds, before.ties, proof_of().notes) == ({}, {}, ())
    for value, name in ((before, "hashes"), (proof_of(), "problems")):
        with pytest.raises(FrozenInstanceError):
            setattr(value, name, ())


def test_a_snapshot_keeps_hash_kind_and_rate_of_each_tensor():
    model, optimizer = begun_with()
    before = snapshot(model, optimizer)
    assert before.kinds[NORM] == "float32 16" and before.kinds["lm_head.weight"] == "float32 61x16"
    assert before.rates == {n: 1e-2 for n, p in model.named_parameters() if p.requires_grad}
    assert before.frozen == {n for n, p in model.named_parameters() if not p.requires_grad}
    assert before.hashes.keys() == before.kinds.keys() and before.ties == {}


# --- why a trainable tensor did not move ---------------------------------------------


def reason(model, before, optimizer=None):
    """The sentence about the last norm, and whether it is a problem."""
    proof = freezing_proof(before, model, optimizer)
    [line] = [line for line in (*proof.problems, *proof.notes) if line.startswith(NORM)]
    return line.partition("did not move: ")[2], line in proof.problems


def test_a_rate_of_zero_that_a_scheduler_raises_later_was_a_rate():
    model, optimizer = begun_with(FreezePlan.only("norms"))
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.0)
    before = snapshot(model, optimizer)
    model.model.norm.weight.grad = torch.ones(16)
    words, is_wrong = reason(model, before, optimizer)
    assert is_wrong and words.startswith(
        "it had a gradient and a rate, so the steps are too small for torch.float32"
    )


def test_a_rate_that_the_snapshot_remembers_was_a_rate():
    model, optimizer = begun_with(FreezePlan.only("norms"))
    before = snapshot(model, optimizer)
    optimizer.param_groups[0]["lr"] = 0.0
    model.model.norm.weight.grad = torch.ones(16)
    assert reason(model, before, optimizer)[1]
    assert reason(model, snapshot(model, optimizer), optimizer) == ("its learning rate is 0", False)


@pytest.mark.parametrize("seen_in", ["gradient", "momentum"])
def test_a_gradient_is_known_from_itself_or_from_the_momentum(seen_in):
    model, optimizer = begun_with(FreezePlan.only("norms"), torch.optim.SGD, momentum=0.9)
    before = snapshot(model, optimizer)
    weight = model.model.norm.weight
    assert reason(model, before, optimizer) == ("no nonzero gradient was seen", False)
    if seen_in == "gradient":
        weight.grad = torch.zeros(16)
        assert reason(model, before, optimizer) == ("no nonzero gradient was seen", False)
        weight.grad = torch.ones(16)
    else:
        optimizer.state[weight] = {"step": torch.ones(1), "momentum_buffer": torch.zeros(16)}
        assert reason(model, before, optimizer) == ("no nonzero gradient was seen", False)
        optimizer.state[weight]["momentum_buffer"] += 1
    assert reason(model, before, optimizer)[1]


def test_without_an_optimizer_nothing_is_blamed_and_with_another_one_it_is():
    model, optimizer = begun_with(FreezePlan.only("norms"))
    before = snapshot(model)
    model.model.norm.weight.grad = torch.ones(16)
    assert reason(model, before) == ("no optimizer was given, so its gradient is not known", False)
    other = torch.optim.AdamW([model.lm_head.weight])
    assert reason(model, before, other) == (
        "no optimizer holds it; build the optimizer after the plan is applied",
        True,
    )


# --- why a frozen one did -------------------------------------------------------------


def test_an_optimizer_without_weight_decay_is_said_to_have_none():
    model, optimizer = begun_with(make=torch.optim.Rprop, everything=True)
    before = snapshot(model, optimizer)
    model.lm_head.weight.requires_grad_(False)
    before = snapshot(model, optimizer)
    with torch.no_grad():
        model.lm_head.weight += 1
    wrong = [line for line in freezing_proof(before, model, optimizer).problems if line.startswith("lm_head")]
    assert wrong == [
        "lm_head.weight is frozen but moved: the optimizer holds it, with weight decay 0 and no momentum",
        "lm_head.weight is frozen but the optimizer holds it, without state so far: build the optimizer after "
        "freezing",
    ]


def test_a_flag_set_on_the_model_itself_is_named_model():
    model, _ = begun_with(FreezePlan.full())
    before = snapshot(model)
    model.requires_grad = False
    [line] = freezing_proof(before, model).problems
    assert line.startswith("model.requires_grad = False set a module's plain attribute")
    FreezePlan.only("norms").apply(model)
    model.requires_grad_(False)
    assert "plain attribute" not in str(freezing_proof(snapshot(model), model)), (
        "nothing trains: nothing is wrong"
    )


def test_counts_are_of_tensors_and_of_numbers():
    model, optimizer = begun_with(FreezePlan.only("norms"))
    before = snapshot(model, optimizer)
    with torch.no_grad():
        model.model.norm.weight += 1
    proof = freezing_proof(before, model, optimizer)
    n_all = sum(p.numel() for p in model.parameters())
    assert (proof.n_trainable_tensors, proof.n_moved, len(proof.notes)) == (5, 1, 4)
    assert proof.n_frozen_tensors == len(list(model.parameters())) - 5
    assert proof.n_frozen_parameters == n_all - 5 * 16
    assert proof.ok and proof.n_buffers == 0, "frequencies are computed, not stored"
    model.register_buffer("counter", torch.zeros(1))
    assert freezing_proof(snapshot(model), model).n_buffers == 1


def test_a_model_without_values_is_neither_hashed_nor_proved():
    model, optimizer = begun_with()
    before = snapshot(model, optimizer)
    without = copy.deepcopy(model).to("meta")
    for ask in (
        lambda: snapshot(without),
        lambda: freezing_proof(before, without),
        lambda: weight_hash(without),
    ):
        with pytest.raises(NoValuesError, match="on the meta device.*Load the model with its weights"):
            ask()


def test_frequencies_that_nobody_recomputes_are_held_like_every_buffer():
    model, optimizer, before = begun()
    model.model.rotary_emb.inv_freq.mul_(2)
    assert "model.rotary_emb.inv_freq is a buffer but moved" in problems(before, model, optimizer)


def test_a_snapshot_and_a_plan_that_are_none_are_named():
    model, optimizer, before = begun()
    with pytest.raises(TypeError, match="what snapshot.model. gave before the training; found dict"):
        freezing_proof({}, model, optimizer)
    with pytest.raises(PlanError, match="A plan is a FreezePlan"):
        freezing_proof(before, model, optimizer, "attention")
    with pytest.raises(TypeError, match="An anatomy is needed.*found LlamaForCausalLM"):
        MAIN.trainable_names(model)
