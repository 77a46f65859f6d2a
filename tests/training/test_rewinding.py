"""Rewinding: exact at both ends, a straight line between them, and nothing changed where it refuses."""

import pytest
import torch
from torch import nn

from helpers.freezing.plans import FreezePlan
from helpers.freezing.selectors import PlanError, select
from helpers.models.loading import build_model, weight_hash
from helpers.models.roles import anatomy
from helpers.training.deltas import load_delta, save_delta
from helpers.training.rewinding import GRID, RewindError, choose_share, rewind, rewound
from support import tiny

CONFIG = tiny.config()
EMBEDDING = "transformer.wte.weight"  # the head is tied to it


def moved(base, seed=5, scale=0.1):
    """A copy of the base with a change in every weight."""
    model = build_model(CONFIG, seed=1)
    model.load_state_dict(base.state_dict())
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p += scale * torch.randn(p.shape, generator=rng)
    return model


@pytest.fixture
def base():
    return build_model(CONFIG, seed=1)


@pytest.fixture
def tuned(base):
    return moved(base)


def weights(model):
    return {n: p.detach().clone() for n, p in model.named_parameters()}


def test_share_one_is_the_tuned_model_and_share_zero_the_base_bit_for_bit(base, tuned):
    before = weight_hash(tuned)
    rewind(tuned, base, 1.0)
    assert weight_hash(tuned) == before != weight_hash(base)
    rewind(tuned, base, 0)
    assert weight_hash(tuned) == weight_hash(base)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.75])
def test_between_them_lies_a_straight_line(base, tuned, share):
    start = weights(tuned)
    rewind(tuned, base, share)
    for name, p in tuned.named_parameters():
        wanted = base.get_parameter(name) + share * (start[name] - base.get_parameter(name))
        assert torch.allclose(p, wanted, atol=1e-6) and not torch.equal(p, start[name])


def test_half_precision_is_computed_in_float32_and_rounded_once(base, tuned):
    base, tuned = base.to(torch.bfloat16), tuned.to(torch.bfloat16)
    start = weights(tuned)
    rewind(tuned, base, 0.3)
    for name, p in tuned.named_parameters():
        wanted = torch.lerp(base.get_parameter(name).float(), start[name].float(), 0.3).to(torch.bfloat16)
        assert torch.equal(p, wanted)


def test_one_role_goes_back_and_the_others_stay_tuned(base, tuned):
    start, attention = weights(tuned), select(anatomy(tuned), "attention")
    rewind(tuned, base, {"attention": 0.0})
    for name, p in tuned.named_parameters():
        assert torch.equal(p, base.get_parameter(name) if name in attention else start[name])


def test_roles_may_have_shares_of_their_own(base, tuned):
    start, parts = weights(tuned), anatomy(tuned)
    rewind(tuned, base, {"attention": 0.0, "mlp": 1.0, "embeddings": 0.5})
    assert all(torch.equal(tuned.get_parameter(n), start[n]) for n in select(parts, "mlp"))
    middle = base.get_parameter(EMBEDDING) + 0.5 * (start[EMBEDDING] - base.get_parameter(EMBEDDING))
    assert torch.allclose(tuned.get_parameter(EMBEDDING), middle, atol=1e-6)


def test_tensors_that_are_not_named_stay(base, tuned):
    start, name = weights(tuned), "transformer.h.0.mlp.c_fc.weight"
    rewind(tuned, {name: base.get_parameter(name)}, 0.0)
    assert [n for n, p in tuned.named_parameters() if not torch.equal(p, start[n])] == [name]


def test_a_tied_tensor_is_moved_once_under_each_of_its_names(base, tuned):
    value, start = base.get_parameter(EMBEDDING).detach(), tuned.get_parameter(EMBEDDING).detach().clone()
    rewind(tuned, {EMBEDDING: value, "lm_head.weight": value}, 0.5)
    assert torch.allclose(tuned.get_parameter(EMBEDDING), (value + start) / 2, atol=1e-6)
    assert tuned.lm_head.weight is tuned.transformer.wte.weight
    with pytest.raises(RewindError, match="are one tensor in the model, and the base has two values"):
        rewind(tuned, {EMBEDDING: value, "lm_head.weight": value + 1}, 0.5)


class WithCounts(nn.Module):
    """A decoder's wrapper that holds a whole-number weight beside it."""

    def __init__(self, model):
        super().__init__()
        self.transformer, self.lm_head = model.transformer, model.lm_head
        self.config, self.base_model = model.config, model.base_model
        self.transformer.h[0].mlp.c_fc.weight = nn.Parameter(
            torch.ones(64, 32, dtype=torch.int8), requires_grad=False
        )

    def get_output_embeddings(self):
        return self.lm_head


def test_whole_numbers_are_refused_by_name(tuned):
    name = "transformer.h.0.mlp.c_fc.weight"
    with pytest.raises(RewindError, match=f"'{name}' holds whole numbers"):
        rewind(tuned, {name: torch.ones(64, 32, dtype=torch.int8)}, 0.5)
    with pytest.raises(RewindError, match=f"'{name}' holds whole numbers"):
        rewind(WithCounts(tuned), {name: torch.ones(64, 32)}, 0.5)


def test_a_buffer_is_refused_by_name(base, tuned):
    tuned.transformer.register_buffer("seen", torch.zeros(3))
    with pytest.raises(RewindError, match="'transformer.seen' is a buffer"):
        rewind(tuned, {"transformer.seen": torch.zeros(3)}, 0.5)


@pytest.mark.parametrize(
    "share, error, message",
    [
        (1.5, RewindError, "must be a number from 0 .base. to 1 .tuned.; found 1.5"),
        (-0.1, RewindError, "found -0.1"),
        (float("nan"), RewindError, "found nan"),
        (True, RewindError, "found True"),
        ({"attention": 2.0}, RewindError, "The share of 'attention' must be"),
        ({"attention": 0.5, "q": 0.1}, RewindError, "which another selector takes as well"),
        ({"attentoin": 0.5}, PlanError, "attentoin"),
    ],
)
def test_a_share_that_cannot_be_is_refused_and_nothing_changes(base, tuned, share, error, message):
    before = weight_hash(tuned)
    with pytest.raises(error, match=message):
        rewind(tuned, base, share)
    assert weight_hash(tuned) == before


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda v: {"transformer.h.9.mlp.c_fc.weight": v}, "has no weight 'transformer.h.9"),
        (
            lambda v: {EMBEDDING: v[:5]},
            r"is torch.float32 \(5, 32\) in the base and torch.float32 \(97, 32\)",
        ),
        (lambda v: {EMBEDDING: v.half()}, "is torch.float16"),
    ],
)
def test_another_base_is_refused_and_nothing_changes(base, tuned, change, message):
    before, first = weight_hash(tuned), {"transformer.ln_f.weight": torch.zeros(32)}
    with pytest.raises(RewindError, match=message):
        rewind(tuned, first | change(base.get_parameter(EMBEDDING).detach()), 0.0)
    assert weight_hash(tuned) == before


def test_a_base_model_that_lacks_a_weight_is_another(tuned):
    """A tied base of an untied model: share 0 would not be the base."""
    untied = build_model(tiny.config(tie_word_embeddings=False))
    before = weight_hash(untied)
    with pytest.raises(RewindError, match=r"The base has no weight 'lm_head\.weight'"):
        rewind(untied, tuned, 0.0)
    assert weight_hash(untied) == before


def test_rewinding_for_a_while_gives_the_tuned_weights_back_also_after_an_error(base, tuned):
    before = weight_hash(tuned)
    with rewound(tuned, base, 0.3):
        assert weight_hash(tuned) != before
    assert weight_hash(tuned) == before
    with pytest.raises(ZeroDivisionError), rewound(tuned, base, 0.3):
        raise ZeroDivisionError
    assert weight_hash(tuned) == before


# --- choosing ----------------------------------------------------------------------


def share_now(model, base, tuned_weights):
    """Which share the model stands at, read from one weight."""
    name = "transformer.ln_f.bias"
    change = tuned_weights[name] - base.get_parameter(name)
    return ((model.get_parameter(name) - base.get_parameter(name)) / change).mean().item()


def chosen(base, tuned, loss_at, base_loss=4.0, **more):
    start, calls = weights(tuned), []

    def loss_of(model):
        calls.append(round(share_now(model, base, start), 3))
        return loss_at(calls[-1])

    found = choose_share(tuned, base, loss_of, base_loss, **more)
    return found, calls


def test_the_smallest_share_that_keeps_most_of_the_gain_is_chosen_in_ten_evaluations(base, tuned):
    before = weight_hash(tuned)
    found, calls = chosen(base, tuned, lambda a: 4 - (a - a * a / 1.6))  # the best gain lies at 0.8
    assert calls == [pytest.approx(s) for s in GRID] and len(calls) == 10
    best = 0.8 - 0.4
    assert found.share == 0.6 and found.gain_kept == pytest.approx((0.6 - 0.36 / 1.6) / best)
    assert weight_hash(tuned) == before


def test_keeping_all_of_the_gain_is_the_lowest_loss(base, tuned):
    assert chosen(base, tuned, lambda a: 4 - (a - a * a / 1.6), keep=1.0)[0].share == 0.8


def test_where_nothing_is_gained_the_base_is_chosen(base, tuned):
    found, _ = chosen(base, tuned, lambda a: 4 + a)
    assert found.share == 0.0 and found.gain_kept == 0.0


@pytest.mark.parametrize(
    "more, message", [({"keep": 1.2}, "keep must be from 0 to 1"), ({"shares": ()}, "no share")]
)
def test_a_choice_that_cannot_be_made_is_refused(base, tuned, more, message):
    with pytest.raises(RewindError, match=message):
        chosen(base, tuned, lambda a: 4.0, **more)


# --- deltas ------------------------------------------------------------------------


def test_a_delta_is_loaded_with_a_share_of_its_change(base, tuned, tmp_path):
    place = save_delta(tuned, FreezePlan.full(), base, tmp_path)
    assert weight_hash(load_delta(place, base, share=1.0)) == weight_hash(tuned)
    assert weight_hash(load_delta(place, base, share=0.0)) == weight_hash(base)
    half = load_delta(place, base, share={"mlp": 0.5})
    rewind(tuned, base, {"mlp": 0.5})
    assert weight_hash(half) == weight_hash(tuned)
    before = weight_hash(base)
    with pytest.raises(RewindError):
        load_delta(place, base, in_place=True, share=7)
    assert weight_hash(base) == before


def test_the_tuned_model_is_not_its_own_base(tuned):
    with pytest.raises(RewindError, match="the tuned model itself"):
        rewind(tuned, tuned, 0.5)
    for base in (None, "RUN"):
        with pytest.raises(RewindError, match="The base is a model, or name to value"):
            rewind(tuned, base, 0.5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), None])
def test_no_share_is_chosen_by_a_loss_that_is_no_number(base, tuned, bad):
    before = weight_hash(tuned)
    with pytest.raises(RewindError, match="The dev loss of the base is"):
        choose_share(tuned, base, lambda model: 1.0, bad)
    if bad is not None:
        with pytest.raises(RewindError, match="The dev loss at share 0.1 is"):
            choose_share(tuned, base, lambda model: bad, 4.0)
    assert weight_hash(tuned) == before
