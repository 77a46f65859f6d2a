"""What a plan costs, predicted from the config: the published numbers, and against what PyTorch really does."""

import copy
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    CohereConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    OPTConfig,
    Qwen2Config,
    Qwen3MoeConfig,
)

from helpers.costs.meter import KINDS, Flops, StepMeter, allocated_at_most
from helpers.costs.step_cost import (
    MIB,
    BottomSize,
    BudgetError,
    LoraSize,
    ReplaySize,
    budget,
    budget_or_reason,
    compare,
    measured,
)
from helpers.freezing.bottom import find_bottom
from helpers.freezing.lora import LORA_PLAN, insert
from helpers.freezing.plans import COURSE_PLANS, FreezePlan
from helpers.freezing.selectors import PlanError
from helpers.models.loading import build_model, build_on_meta, gpt_neo_125m_config, mini_config
from helpers.models.losses import divergence_loss, next_token_loss
from helpers.models.model_files import ModelError
from helpers.models.roles import anatomy
from helpers.training.replay import Replay

LLAMA = LlamaConfig(
    vocab_size=211,
    hidden_size=64,
    intermediate_size=160,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
)
NEO = mini_config(
    vocab_size=211,
    hidden_size=48,
    num_heads=4,
    intermediate_size=192,
    max_position_embeddings=64,
    window_size=16,
)
SMALL = dict(vocab_size=211, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=64)
FAMILIES = {
    "gpt_neo": NEO,
    "llama": LLAMA,
    "gpt2": GPT2Config(
        vocab_size=211, n_embd=64, n_layer=2, n_head=4, n_positions=64, bos_token_id=0, eos_token_id=0
    ),
    "opt": OPTConfig(**SMALL, hidden_size=64, ffn_dim=160, word_embed_proj_dim=64),
    "gpt_neox": GPTNeoXConfig(**SMALL, hidden_size=64, intermediate_size=160),
    "qwen2_tied": Qwen2Config(
        **SMALL, hidden_size=64, intermediate_size=160, num_key_value_heads=2, tie_word_embeddings=True
    ),
    "mistral": MistralConfig(
        **SMALL, hidden_size=64, intermediate_size=160, num_key_value_heads=2, sliding_window=16
    ),
}
FULL, MAIN = FreezePlan.full(), FreezePlan.freeze("attention", "embeddings")
LAST_BLOCK = FreezePlan.only("layers:11")


def mib(n_bytes):
    return round(n_bytes / MIB)


# --- the published numbers: GPT-Neo 125M, batch 8 x 512 ----------------------------


@pytest.fixture(scope="module")
def neo_125m():
    plans = {
        name: COURSE_PLANS[name]
        for name in ("full", "attention", "attention+embeddings", "mlp", "mlp+embeddings", "first-half")
    } | {"last block": LAST_BLOCK}
    return {name: budget(gpt_neo_125m_config(), plan, 8, 512) for name, plan in plans.items()}


def test_r_of_the_main_plan_is_the_designs(neo_125m):
    main = neo_125m["attention+embeddings"]
    assert (main.n_parameters, main.n_trainable) == (125_198_592, 56_707_584)
    assert main.R == 56_707_584 / 125_198_592


@pytest.mark.parametrize(
    "plan, expected",
    [
        ("full", 1910),
        ("attention", 1586),
        ("attention+embeddings", 1127),
        ("mlp", 1262),
        ("mlp+embeddings", 802),
    ],
)
def test_parameters_gradients_and_adamw_of_the_125m(neo_125m, plan, expected):
    assert mib(neo_125m[plan].state_bytes) == expected


@pytest.mark.parametrize(
    "plan, expected",
    [
        ("attention", 1.08),
        ("attention+embeddings", 1.20),
        ("mlp", 1.17),
        ("mlp+embeddings", 1.31),
        ("first-half", 1.50),
        ("last block", 2.13),
    ],
)
def test_ideal_speed_up_of_the_125m(neo_125m, plan, expected):
    assert 1 / compare(neo_125m["full"], neo_125m[plan])["step_flops"] == pytest.approx(expected, abs=0.006)


def test_the_eager_peak_of_the_125m_falls_by_nine_percent():
    full, main = (
        budget(gpt_neo_125m_config(), plan, 8, 512, attention="eager", loss="whole") for plan in (FULL, MAIN)
    )
    assert (mib(full.peak_bytes), mib(main.peak_bytes)) == (9045, 8223)
    assert compare(full, main)["peak_bytes"] == pytest.approx(0.91, abs=0.005)


# --- bytes against PyTorch ---------------------------------------------------------


def saved_by_autograd(config, plan, batch, length):
    """Bytes of the distinct storages that a real forward pass saves, parameters and head gradient left out."""
    model = build_model(config).train()
    plan.apply(model)
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    head = model.get_output_embeddings().weight.shape
    saved = {}

    def note(tensor):
        if tensor.untyped_storage().data_ptr() not in own and tensor.shape != head:
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss, _ = next_token_loss(model, torch.ones(batch, length, dtype=torch.long))
    assert loss.requires_grad
    return sum(storage.nbytes() for storage in saved.values())


PLANS = (
    "full",
    "attention",
    "attention+embeddings",
    "mlp+embeddings",
    "first-half",
    "only-mlp-out",
    "only-norms",
)


@pytest.mark.parametrize(
    "family, plan", [*((f, p) for f in ("gpt_neo", "llama") for p in PLANS), ("gpt_neo", "only-biases")]
)  # Llama has no biases
def test_activations_are_what_autograd_saves(family, plan):
    config = FAMILIES[family]
    found = budget(config, COURSE_PLANS[plan], 4, 48).bytes["activations"]
    assert found == pytest.approx(saved_by_autograd(config, COURSE_PLANS[plan], 4, 48), rel=0.01)


@pytest.mark.parametrize("family", FAMILIES)
def test_activations_are_right_for_every_family(family):
    plan = FreezePlan.freeze("attention")
    found = budget(FAMILIES[family], plan, 4, 48).bytes["activations"]
    assert found == pytest.approx(saved_by_autograd(FAMILIES[family], plan, 4, 48), rel=0.01)


def allocated_at_peak(config, plan, batch, length, replay_of=lambda model: None, keeps_bottom=False):
    """Parameters, buffers and moments, and the most that PyTorch's profiler saw allocated on top in one step."""
    model = build_model(config).train()
    replay = replay_of(model)
    plan.apply(model)
    adamw = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], fused=True)
    ids = torch.arange(batch * length).reshape(batch, length) % config.vocab_size
    bottom = find_bottom(model, ids, ids.numel()) if keeps_bottom else None

    def step():
        if replay is not None:
            rows = [i % replay.size.n_windows for i in range(replay.batch)]
            divergence_loss(model, replay.windows[rows], replay.base_of(rows)).backward()
        with bottom.reading(ids) if bottom else nullcontext():
            total = next_token_loss(model, ids)[0]
        total.backward()
        del total
        adamw.step()
        adamw.zero_grad()

    step()  # makes the moments
    held = [
        *model.parameters(),
        *model.buffers(),
        *(t for state in adamw.state.values() for t in state.values()),
    ]
    stand = sum(t.nbytes for t in held) + sum(kept.n_bytes for kept in (replay, bottom) if kept)
    return stand + allocated_at_most(step)


@pytest.mark.parametrize("plan", ["full", "attention+embeddings", "first-half", "only-norms"])
@pytest.mark.parametrize("batch, length", [(1, 32), (8, 64)])  # the peak is in the backward pass, before it
def test_the_peak_is_the_allocators(plan, batch, length):
    config = mini_config(
        vocab_size=512, hidden_size=96, intermediate_size=384, max_position_embeddings=64, window_size=16
    )
    found = budget(config, COURSE_PLANS[plan], batch, length).peak_bytes
    assert found == pytest.approx(allocated_at_peak(config, COURSE_PLANS[plan], batch, length), rel=0.005)


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "qwen2_tied"])
def test_the_peak_is_the_allocators_for_other_families(family):
    found = budget(FAMILIES[family], FULL, 4, 48).peak_bytes
    assert found == pytest.approx(allocated_at_peak(FAMILIES[family], FULL, 4, 48), rel=0.005)


def test_the_peak_is_the_allocators_where_the_model_itself_makes_all_logits():
    """Cohere scales them, so its loss is not taken in chunks, and the prediction knows it."""
    config = CohereConfig(
        **SMALL, bos_token_id=1, eos_token_id=2, hidden_size=64, intermediate_size=160, num_key_value_heads=2
    )
    found = budget(config, FULL, 4, 48).peak_bytes
    assert found == pytest.approx(allocated_at_peak(config, FULL, 4, 48), rel=0.005)


@pytest.mark.parametrize("plan", ["full", "attention+embeddings"])
@pytest.mark.parametrize("limit", [0, 10**9])  # hidden states are kept, or log-probabilities
@pytest.mark.parametrize("windows, length", [(4, 64), (12, 48)])  # less than the text's batch, and more
def test_the_peak_with_a_replay_is_the_allocators(plan, limit, windows, length):
    config = mini_config(
        vocab_size=512, hidden_size=96, intermediate_size=384, max_position_embeddings=64, window_size=16
    )
    made = []

    def replay_of(model):
        made.append(Replay(model, torch.ones(16, length, dtype=torch.long), batch=windows, limit=limit))
        return made[-1]

    allocated = allocated_at_peak(config, COURSE_PLANS[plan], 8, 64, replay_of)
    found = budget(config, COURSE_PLANS[plan], 8, 64, replay=made[0].size)
    assert found.peak_bytes == pytest.approx(allocated, rel=0.005)
    alone = budget(config, COURSE_PLANS[plan], 8, 64)
    assert found.bytes["buffers"] - alone.bytes["buffers"] == made[0].n_bytes


@pytest.mark.parametrize("family", ["gpt_neo", "llama"])
@pytest.mark.parametrize("plan", ["first-half", "last"])
def test_the_peak_with_a_kept_bottom_is_the_allocators(family, plan):
    last = FreezePlan.only(f"layers:{FAMILIES[family].num_hidden_layers - 1}")
    plan = {"last": last, "first-half": COURSE_PLANS["first-half"]}[plan]
    found = budget(FAMILIES[family], plan, 4, 48, bottom=BottomSize(4 * 48))
    allocated = allocated_at_peak(FAMILIES[family], plan, 4, 48, keeps_bottom=True)
    assert found.peak_bytes == pytest.approx(allocated, rel=0.005)
    alone, in_a_file = (
        budget(FAMILIES[family], plan, 4, 48, bottom=bottom) for bottom in (None, BottomSize(4 * 48, False))
    )
    n_bytes = 4 * 4 * 48 * FAMILIES[family].hidden_size
    assert found.bytes["buffers"] - n_bytes == alone.bytes["buffers"] == in_a_file.bytes["buffers"]


@pytest.mark.parametrize("family", ["gpt_neo", "llama", "opt"])
def test_flops_with_a_kept_bottom_are_those_of_pytorchs_counter(family):
    config, plan = copy.deepcopy(FAMILIES[family]), COURSE_PLANS["first-half"]
    config.dropout = 0.0  # OPT's
    found = budget(config, plan, 3, 40, attention="eager", loss="whole", bottom=BottomSize(3 * 40)).flops
    model, ids = build_model(config, attention="eager").train(), torch.ones(3, 40, dtype=torch.long)
    plan.apply(model)
    bottom = find_bottom(model, ids, ids.numel())
    for _ in range(2):
        with FlopCounterMode(display=False) as counter, bottom.reading(ids):
            model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    assert found.step == counter.get_total_flops()


def test_parts_of_a_step_add_up_and_the_gradients_stay():
    one, two, five = (budget(NEO, MAIN, 2, 48, n_parts=n) for n in (1, 2, 5))
    for term in ("forward", "backward_input", "backward_weight"):
        assert [getattr(b.flops, term) / getattr(one.flops, term) for b in (two, five)] == [2, 5]
    assert one.at_peak["gradients"] < two.at_peak["gradients"] == two.bytes["gradients"]
    assert two.at_peak == five.at_peak
    replay = ReplaySize(4, 2, 48)
    alone, with_it = (budget(NEO, MAIN, 2, 48, n_parts=3, replay=r).flops.step for r in (None, replay))
    assert with_it - alone == budget(NEO, MAIN, 2, 48, replay=replay).flops.step - one.flops.step


@pytest.mark.parametrize("family", ["gpt_neo", "llama"])
def test_flops_of_lora_are_those_of_pytorchs_counter(family):
    config, ids = FAMILIES[family], torch.ones(3, 40, dtype=torch.long)
    found = budget(config, LORA_PLAN, 3, 40, attention="eager", loss="whole", lora=LoraSize("q+v", 4)).flops
    model = build_model(config, attention="eager").train()
    insert(model, "q+v", rank=4, alpha=8)
    LORA_PLAN.apply(model)
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    assert found.step == counter.get_total_flops()


def test_frozen_weights_in_bfloat16_take_half():
    whole, half = (
        budget(NEO, MAIN, 2, 48, dtype=torch.bfloat16, frozen_dtype=dtype)
        for dtype in (torch.float32, torch.bfloat16)
    )
    n_frozen = whole.n_parameters - whole.n_trainable
    assert whole.bytes["parameters"] - half.bytes["parameters"] == 2 * n_frozen
    assert (half.n_trainable, half.flops) == (whole.n_trainable, whole.flops)


@pytest.mark.parametrize(
    "wrong, words",
    [
        ({"n_parts": 0}, "1 part or more"),
        ({"n_parts": True}, "1 part or more"),
        ({"frozen_dtype": torch.float16}, "is not known"),
        ({"frozen_dtype": torch.bfloat16}, "dtype=torch.bfloat16 as well"),
    ],
)
def test_settings_that_no_step_can_have_are_refused(wrong, words):
    with pytest.raises(BudgetError, match=words):
        budget(NEO, MAIN, 2, 48, **wrong)


def test_a_bottom_that_trains_has_no_budget():
    with pytest.raises(BudgetError, match=r"transformer\.wte\.weight trains"):
        budget(NEO, FULL, 4, 48, bottom=BottomSize(100))


def test_a_frozen_prefix_keeps_nothing():
    """Training the last of four blocks alone saves a quarter, not the whole."""
    full, last = (budget(NEO, plan, 4, 48) for plan in (FULL, FreezePlan.freeze("embeddings", "layers:0-2")))
    assert last.bytes["activations"] < 0.3 * full.bytes["activations"]


def test_a_frozen_linear_does_not_keep_its_input():
    full, frozen = (
        budget(NEO, plan, 4, 48).bytes["activations"] for plan in (FULL, FreezePlan.freeze("mlp-out"))
    )
    assert full - frozen == NEO.num_layers * 4 * 48 * NEO.intermediate_size * 4


def test_whole_logits_grow_with_the_batch_and_chunks_do_not():
    config = mini_config(num_layers=1, attention_types=[[["global"], 1]])
    whole = [budget(config, MAIN, batch, 256, loss="whole").bytes["logits"] for batch in (2, 4)]
    chunked = [budget(config, MAIN, batch, 256).bytes["logits"] for batch in (2, 4)]
    assert whole[1] == pytest.approx(2 * whole[0], rel=0.01)
    assert chunked[0] == pytest.approx(chunked[1], rel=0.01) and chunked[1] < 0.6 * whole[0]


def test_a_batch_of_as_many_tokens_as_the_vocabulary_has_words_is_no_logits():
    small, same = (budget(mini_config(), FULL, batch, 256) for batch in (8, 16))  # 16 x 256 = 4,096
    assert same.bytes["logits"] == small.bytes["logits"]
    assert same.bytes["activations"] == pytest.approx(2 * small.bytes["activations"], rel=0.01)
    assert same.flops.backward_weight == pytest.approx(2 * small.flops.backward_weight, rel=0.01)


def test_bfloat16_shrinks_activations_but_not_the_state():
    float32, bfloat16 = (budget(NEO, MAIN, 4, 48, dtype=dtype) for dtype in (torch.float32, torch.bfloat16))
    assert bfloat16.bytes["activations"] < 0.75 * float32.bytes["activations"]
    assert bfloat16.state_bytes == float32.state_bytes
    assert bfloat16.flops == float32.flops


def test_fast_attention_of_gpt_neo_counts_the_fused_gelu():
    stock = mini_config(activation_function="gelu_new")
    assert budget(stock, FULL, 2, 64).bytes == budget(mini_config(), FULL, 2, 64).bytes
    assert stock.activation_function == "gelu_new"  # the caller's config is left alone


@pytest.mark.parametrize("plan", ["embeddings", "attention", "full"])
def test_in_bfloat16_a_step_on_shapes_alone_needs_what_one_with_numbers_does(plan):
    """Frozen embeddings give 16-bit states to norms that train: their means and deviations are float32 then."""
    half = {"dtype": torch.bfloat16, "frozen_dtype": torch.bfloat16}
    on_shapes, with_numbers = (
        budget(mini_config(), COURSE_PLANS[plan], 2, 64, on_shapes=on, **half) for on in (True, False)
    )
    assert on_shapes.at_peak == with_numbers.at_peak


def test_weights_stored_in_half_precision_train_in_float32():
    assert budget(mini_config(dtype="float16"), FULL, 2, 64).bytes == budget(mini_config(), FULL, 2, 64).bytes


# --- FLOPs -------------------------------------------------------------------------


@pytest.mark.parametrize("plan", [FULL, FreezePlan.freeze("attention"), FreezePlan.only("mlp-out")])
@pytest.mark.parametrize("family", FAMILIES)
def test_flops_are_those_of_pytorchs_counter(family, plan):
    config = FAMILIES[family]
    found = budget(config, plan, 3, 40, attention="eager", loss="whole").flops
    with FakeTensorMode():
        model = build_model(config, attention="eager").train()
        plan.apply(model)
        ids = torch.zeros(3, 40, dtype=torch.long)
        with FlopCounterMode(display=False) as counter:
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
            forward = counter.get_total_flops()
            loss.backward()
    assert found.forward == forward
    assert found.step == counter.get_total_flops()


@pytest.mark.parametrize("plan", [FULL, MAIN])
@pytest.mark.parametrize("family", ["gpt_neo", "llama"])
@pytest.mark.parametrize("keeps_predictions", [False, True])
def test_flops_with_a_replay_are_those_of_pytorchs_counter(family, plan, keeps_predictions):
    config, size = FAMILIES[family], ReplaySize(6, 2, 30, keeps_predictions)
    found = budget(config, plan, 3, 40, attention="eager", replay=size).flops
    model = build_model(config, attention="eager").train()
    replay = Replay(model, torch.ones(6, 30, dtype=torch.long), limit=10**9 if keeps_predictions else 0)
    plan.apply(model)

    def in_place(total, a, b, out_shape=None, **more):  # PyTorch's counter knows addmm, and not addmm_
        return 2 * a[0] * a[1] * b[1]

    with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: in_place}) as counter:
        divergence_loss(model, replay.windows[[0, 1]], replay.base_of([0, 1])).backward()
        next_token_loss(model, torch.ones(3, 40, dtype=torch.long))[0].backward()
    assert found.step == counter.get_total_flops()
    alone, more = (budget(config, plan, *shape, attention="eager").flops for shape in ((3, 40), (2, 30)))
    head = (
        0 if keeps_predictions else 2 * 2 * 29 * build_on_meta(config).get_output_embeddings().weight.numel()
    )
    assert found.forward == alone.forward + more.forward + head


@pytest.mark.parametrize("loss, predicted_tokens", [("whole", 40), ("chunked", 39)])
@pytest.mark.parametrize("name", ["full", "attention", "attention+embeddings", "mlp", "only-attention"])
def test_the_three_terms_follow_the_formula(name, loss, predicted_tokens):
    """2 FLOPs a weight and token: forward and to the input for all matrices, to the weight for trained ones.

    The first block's q, k and v have nothing below them to train where norms and embeddings are frozen.
    """
    plan, parts = COURSE_PLANS[name], anatomy(build_on_meta(NEO))
    trained = plan.trainable_names(parts)
    matrices = [e for e in parts.entries if len(e.shape) == 2 and e.role in ("attention", "mlp")]
    head = parts.entry("lm_head.weight")  # tied to wte
    attention = 4 * 3 * 40 * 40 * NEO.hidden_size * NEO.num_layers  # scores and their product with the values

    def cost(entries):
        return sum(2 * e.n_parameters * 3 * (predicted_tokens if e is head else 40) for e in entries)

    found = budget(NEO, plan, 3, 40, loss=loss).flops
    assert found.forward == cost([*matrices, head]) + attention
    dead_end = [e for e in matrices if name == "only-attention" and e.layer == 0 and e.part in "qkv"]
    assert found.backward_input == cost([*matrices, head]) - cost(dead_end) + 2 * attention
    assert found.backward_weight == cost(e for e in [*matrices, head] if e.name in trained)


def test_a_batch_of_as_many_tokens_as_a_weight_has_rows_is_no_weight_gradient():
    two, four = (
        budget(NEO, FULL, batch, 48, loss="whole").flops for batch in (2, 4)
    )  # 4 x 48 = the MLP's 192
    assert four.forward == 2 * two.forward
    assert four.backward_weight == 2 * two.backward_weight


def test_a_frozen_prefix_costs_no_backward_pass():
    full, half = (budget(NEO, COURSE_PLANS[name], 3, 40).flops for name in ("full", "first-half"))
    assert half.forward == full.forward
    assert half.backward_input < 0.6 * full.backward_input


@settings(max_examples=6)
@given(plan=st.sampled_from(sorted(COURSE_PLANS)), batch=st.integers(1, 5), length=st.integers(2, 64))
def test_no_plan_costs_more_than_training_everything(plan, batch, length):
    full, part = (budget(NEO, p, batch, length) for p in (FULL, COURSE_PLANS[plan]))
    assert part.R <= 1 and part.flops.forward == full.flops.forward
    assert part.flops.step <= full.flops.step and part.peak_bytes <= full.peak_bytes
    assert all(part.bytes[kind] <= full.bytes[kind] for kind in KINDS)


# --- tables and errors -------------------------------------------------------------


def test_tables_add_up():
    found = budget(NEO, MAIN, 4, 48)
    table = found.table()
    assert list(table.index) == [*KINDS, "total"]
    assert table.loc["total", "MiB at the peak"] == pytest.approx(found.peak_bytes / MIB, abs=0.05)
    beside = measured(found, 2 * found.peak_bytes, constant=found.peak_bytes)
    assert beside.loc["total", "predicted / measured"] == 1
    assert beside["predicted"][:-1].sum() == pytest.approx(beside.loc["total", "predicted"], abs=0.01)
    assert set(compare(found, found).values()) == {1}


def test_a_whole_number_of_numpy_is_one():
    assert budget(NEO, FULL, np.int64(2), np.int32(32)) == budget(NEO, FULL, 2, 32)


@pytest.mark.parametrize("config", [None, "data/gpt-neo-mini", NEO.to_dict(), build_model(NEO, seed=0)])
def test_what_is_no_config_is_said(config):
    with pytest.raises(ModelError, match="^A config of transformers is needed"):
        budget(config, FULL, 2, 32)


@pytest.mark.parametrize(
    "batch, length, message",
    [
        (0, 32, "batch must be a whole number of at least 1; found 0"),
        (-2, 32, "found -2"),
        (1.5, 32, "found 1.5"),
        (True, 32, "found True"),
        (2, 1, "length must be a whole number of at least 2; found 1"),
        (2, 65, "A window of 65 tokens does not fit: the model has 64 positions"),
    ],
)
def test_a_batch_or_length_that_no_step_can_have_is_refused(batch, length, message):
    with pytest.raises(BudgetError, match=message):
        budget(NEO, FULL, batch, length)


@pytest.mark.parametrize(
    "setting, message",
    [
        ({"loss": "half"}, "loss 'half' is not known. Choose chunked or whole"),
        ({"optimizer": "sgd"}, "optimizer 'sgd' is not known. Choose adamw"),
        (
            {"dtype": torch.float16},
            "dtype 'torch.float16' is not known. Choose torch.float32 or torch.bfloat16",
        ),
        ({"attention": "flash"}, "'flash' is not known"),
    ],
)
def test_an_unknown_setting_is_refused_with_the_choices(setting, message):
    with pytest.raises(ValueError, match=message):
        budget(NEO, FULL, 2, 32, **setting)


def test_a_plan_that_the_model_cannot_follow_is_the_plans_error():
    with pytest.raises(PlanError):
        budget(LLAMA, FreezePlan.only("biases"), 2, 32)


MIXTURES = {
    "mixtral": MixtralConfig(
        **SMALL, hidden_size=64, intermediate_size=160, num_key_value_heads=2, num_local_experts=4
    ),
    "qwen3_moe": Qwen3MoeConfig(
        **SMALL,
        hidden_size=64,
        intermediate_size=160,
        num_key_value_heads=2,
        num_experts=8,
        num_experts_per_tok=3,
        moe_intermediate_size=48,
        bos_token_id=0,
        eos_token_id=0,
    ),
}


@pytest.mark.parametrize("plan", ["full", "attention", "mlp+embeddings", "only-norms"])
@pytest.mark.parametrize("family", MIXTURES)
def test_a_mixture_of_experts_costs_what_is_predicted(family, plan):
    """Which expert a token goes to changes no shape: together the groups are all tokens."""
    config, plan = MIXTURES[family], COURSE_PLANS[plan]
    found = budget(config, plan, 4, 48)
    assert found.bytes["activations"] == pytest.approx(saved_by_autograd(config, plan, 4, 48), rel=0.001)
    assert found.peak_bytes == pytest.approx(allocated_at_peak(config, plan, 4, 48), rel=0.001)


@pytest.mark.parametrize("family", MIXTURES)
def test_the_flops_of_a_mixture_are_those_of_the_experts_at_work(family):
    config, n_tokens = MIXTURES[family], 4 * 48
    parts = anatomy(build_on_meta(config))
    at_work = sum(
        entry.n_parameters * (config.num_experts_per_tok / config.num_experts if len(entry.shape) == 3 else 1)
        for entry in parts.entries
        if len(entry.shape) > 1 and entry.role in ("attention", "mlp")
    )
    everything = budget(config, FULL, 4, 48).flops.backward_weight
    head = budget(config, FreezePlan.only("head"), 4, 48).flops.backward_weight
    assert everything - head == 2 * at_work * n_tokens


def test_a_model_whose_shapes_depend_on_the_text_says_that_it_is_not_predicted():
    config = copy.deepcopy(MIXTURES["mixtral"])
    config._experts_implementation = "eager"
    with pytest.raises(BudgetError, match="'mixtral' model cannot be run on shapes alone"):
        budget(config, FULL, 2, 32)
    found, reason = budget_or_reason(config, FULL, 2, 32)
    assert found is None
    assert reason.startswith("A step of this 'mixtral' model cannot be run on shapes alone")
    assert "\n" not in reason
    with pytest.raises(BudgetError, match="batch must be a whole number"):
        budget_or_reason(config, FULL, 0, 32)
    assert budget_or_reason(LLAMA, FULL, 2, 32) == (budget(LLAMA, FULL, 2, 32), "")


def test_a_familys_forward_that_fails_is_not_predicted_and_a_plan_that_does_not_fit_is_the_plans_error():
    config = copy.deepcopy(LLAMA)
    config.return_dict = False  # transformers' own forward then asks a tuple for its last_hidden_state
    found, reason = budget_or_reason(config, FULL, 2, 32)
    assert found is None and "last_hidden_state" in reason and "\n" not in reason
    with pytest.raises(PlanError):
        budget_or_reason(config, FreezePlan.only("layers:99"), 2, 32)


@pytest.mark.parametrize("name", ["replay", "bottom", "lora"])
def test_a_size_that_is_none_is_refused(name):
    with pytest.raises(BudgetError, match="Size is needed, or None; found 'x'"):
        budget(mini_config(), FreezePlan.full(), batch=2, length=8, **{name: "x"})


@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
def test_the_budget_counts_the_backward_pass_where_gradients_are_switched_off(off):
    config, plan = LLAMA, FreezePlan.freeze("attention")
    with off():
        inside = budget(config, plan, 2, 12)
    assert inside == budget(config, plan, 2, 12)


class Experts(torch.nn.Module):
    """A table as the head, and matrices of several experts, kept as (experts, out, in)."""

    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding(7, 5)
        self.weight = torch.nn.Parameter(torch.ones(3, 6, 4))

    def get_output_embeddings(self):
        return self.table


@pytest.mark.parametrize("turned", [False, True], ids=["as kept", "turned"])
def test_the_gradient_of_a_batch_of_matrices_is_a_weights_whichever_way_it_is_read(turned):
    """PyTorch keeps the layout of one matrix; of a batch it makes the gradient of what was read, here (in, out)."""
    model, rows = Experts(), torch.ones(3, 5, 6 - 2 * turned, requires_grad=True)
    meter = StepMeter(model)
    with meter:
        meter.enter("forward")
        read = model.weight.transpose(1, 2) if turned else model.weight
        total = torch.bmm(rows, read).sum()
        meter.enter("backward")
        total.backward()
    assert meter.flops() == Flops(*3 * [2 * 3 * 5 * 6 * 4])
