"""Any words make a plan that does what they say, or are refused in one line; a refusal changes no model."""

import json

import pytest
import torch
from hypothesis import strategies as st

from helpers.freezing import lora
from helpers.freezing.plans import FreezePlan
from helpers.freezing.selectors import WORDS, PlanError
from helpers.models.loading import build_model, weight_hash
from helpers.models.roles import anatomy
from support import tiny
from support.fuzz import (
    damaged,
    damages,
    failed_once,
    folder,
    held,
    long,
    numbers,
    quick,
    right_or_refused,
    words,
)

SMALL = tiny.config(hidden_size=8, num_heads=2, intermediate_size=8, max_position_embeddings=16)
MODEL = build_model(SMALL)
NAMES = frozenset(anatomy(MODEL).names())
selectors = st.one_of(
    st.sampled_from(
        [*WORDS, "layers:0", "layers:0-1", "layers:1-0", "layers:9", "mlp@1", "norms@0-1", "none", "all"]
    ),
    st.sampled_from(
        ["name:**", "name:*", "name:transformer.h.*.mlp.**", "name:[", "name:**.**.**.bias", "name:"]
    ),
    st.builds("layers:{}-{}".format, st.integers(-2, 10**20), st.integers(-2, 10**20)),
    words,
    st.sampled_from(["a\nb", "name:a\nb", "a.b\rc", "layers:\u2028"]),
)
joints = st.sampled_from(["+", " + ", ",", "@"])
plans = st.tuples(
    st.sampled_from(["freeze", "only"]),
    st.builds(str.join, joints, st.lists(selectors, min_size=1, max_size=4)),
)
adapters = st.tuples(selectors, numbers, numbers, damages)


def flags():
    return [p.requires_grad for p in MODEL.parameters()]


def check_plan(case):
    way, text = case
    before = flags()

    def work():
        plan = FreezePlan.parse(**{way: text})
        return plan, plan.apply(MODEL)

    found = right_or_refused(work, PlanError)
    if found is None:
        assert flags() == before
        return
    plan, ledger = found
    trained = {name for name, p in MODEL.named_parameters() if p.requires_grad}
    assert trained == plan.trainable_names(anatomy(MODEL)) and trained <= NAMES
    assert sum(row.n_trainable for row in ledger.rows) == sum(
        p.numel() for p in MODEL.parameters() if p.requires_grad
    )
    assert FreezePlan.parse(**{plan.way: "+".join(plan.selectors)} if plan.selectors else {}) == plan
    assert "/" not in plan.slug and len(plan.slug) < 120


def check_adapter(case):
    where, rank, alpha, damage = case
    model = build_model(SMALL)
    before, ids = weight_hash(model), torch.arange(8)[None]
    inserted = right_or_refused(lambda: lora.insert(model, where, rank, alpha), lora.LoraError, PlanError)
    if inserted is None:
        assert weight_hash(model) == before
        return
    with torch.no_grad():
        for layer in lora.layers_of(model).values():
            layer.lora_B.normal_(generator=torch.Generator().manual_seed(0))
        wanted = model(ids).logits
    with folder() as place:
        lora.save_adapter(model, place)
        path = place / lora.FILE_NAME
        path.write_bytes(damaged(path.read_bytes(), *damage))
        files, other = held(place), build_model(SMALL)

        def load():
            lora.load_adapter(other, place)
            return True

        loaded = right_or_refused(load, lora.LoraError)
        assert held(place) == files
    if loaded:
        with torch.no_grad():
            assert torch.equal(other(ids).logits, wanted)
    else:
        assert weight_hash(other) == before


test_any_words_are_a_plan_or_refused = quick(plans, check_plan)
test_any_adapter_is_put_back_or_refused = quick(adapters, check_adapter)
test_two_thousand_plans = long(plans, check_plan)
test_two_thousand_adapters = long(adapters, check_adapter)


@pytest.mark.parametrize("kind, case", failed_once("freezing"), ids=json.dumps)
def test_words_that_failed_once(kind, case):
    {"plan": check_plan, "adapter": check_adapter}[kind](case)
