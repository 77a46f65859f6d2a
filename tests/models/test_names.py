"""A tensor is known by its own name, whatever the model was wrapped in: plans, proofs, deltas and adapters agree."""

import copy

import pytest
import torch
from torch import nn
from transformers import LlamaConfig

from helpers.freezing import lora
from helpers.freezing.plans import FreezePlan, undo
from helpers.freezing.proof import freezing_proof, snapshot
from helpers.models.loading import build_model, weight_hash
from helpers.models.roles import anatomy
from helpers.training.deltas import base_record, load_delta, save_delta

CONFIG = LlamaConfig(
    vocab_size=61,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    max_position_embeddings=32,
    tie_word_embeddings=True,
    pad_token_id=0,
)
PLAN = FreezePlan.freeze("attention", "embeddings")


class Parallel(nn.Module):
    """Holds a model as DistributedDataParallel does."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, **inputs):
        return self.module(**inputs)


@pytest.mark.parametrize(
    "model", [None, "data/gpt-neo-mini", {"a": torch.zeros(1)}], ids=["None", "name", "tensors"]
)
@pytest.mark.parametrize("use", [PLAN.apply, snapshot, base_record, anatomy, weight_hash])
def test_what_is_no_model_is_said(use, model):
    with pytest.raises(TypeError, match="^A model is needed"):
        use(model)


def compiled_blocks(model):
    for i, block in enumerate(model.model.layers):
        model.model.layers[i] = torch.compile(block, backend="eager")
    return model


def compiled(model):
    return torch.compile(model, backend="eager")


WRAPPERS = {
    "compiled": compiled,
    "parallel": Parallel,
    "both": lambda m: Parallel(compiled(m)),
    "both ways": lambda m: compiled(Parallel(m)),
    "blocks": compiled_blocks,
}


@pytest.fixture(params=WRAPPERS)
def wrap(request):
    return WRAPPERS[request.param]


def train(model, optimizer, n_steps=2):
    ids = torch.randint(61, (2, 12), generator=torch.Generator().manual_seed(0))
    for _ in range(n_steps):
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def sgd(model):
    return torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)


def test_anatomy_and_hash_are_those_of_the_model_inside(wrap):
    plain, wrapped = build_model(CONFIG), wrap(build_model(CONFIG))
    assert anatomy(wrapped) == anatomy(plain)
    assert weight_hash(wrapped) == weight_hash(plain)
    assert base_record(wrapped) == base_record(plain)


def test_a_plan_freezes_the_same_tensors_and_can_be_undone_from_either_side(wrap):
    model = build_model(CONFIG)
    wrapped = wrap(model)
    PLAN.apply(wrapped)
    assert sum(p.requires_grad for p in model.parameters()) == len(
        PLAN.trainable_names(anatomy(build_model(CONFIG)))
    )
    undo(model)
    assert all(p.requires_grad for p in model.parameters())


def test_a_model_wrapped_between_snapshot_and_proof_is_the_same_model(wrap):
    model = build_model(CONFIG)
    PLAN.apply(model)
    optimizer = sgd(model)
    before = snapshot(model, optimizer)
    wrapped = wrap(model)
    train(wrapped, optimizer)
    proof = freezing_proof(before, wrapped, optimizer, PLAN)
    assert proof.ok and proof.n_moved == proof.n_trainable_tensors > 0, proof


def test_a_delta_of_a_wrapped_model_fits_the_plain_base_and_the_reverse(wrap, tmp_path):
    base = build_model(CONFIG)
    tuned = wrap(copy.deepcopy(base))
    PLAN.apply(tuned)
    train(tuned, sgd(tuned))
    save_delta(tuned, PLAN, base, tmp_path)
    assert weight_hash(load_delta(tmp_path, base)) == weight_hash(tuned) != weight_hash(base)
    again = wrap(build_model(CONFIG))
    load_delta(tmp_path, again, in_place=True)
    assert weight_hash(again) == weight_hash(tuned)


def test_lora_goes_into_a_wrapped_model_and_its_adapter_onto_the_plain_one(wrap, tmp_path):
    wrapped = wrap(build_model(CONFIG))
    names = lora.insert(wrapped, "q+v", rank=2, alpha=4.0)
    assert names[0] == "model.layers.0.self_attn.q_proj" and list(lora.layers_of(wrapped)) == names
    lora.LORA_PLAN.apply(wrapped)
    train(wrapped, sgd(wrapped))
    lora.save_adapter(wrapped, tmp_path)
    plain = build_model(CONFIG)
    lora.load_adapter(plain, tmp_path)
    assert weight_hash(plain) == weight_hash(wrapped)
    lora.unload(wrapped)
    assert anatomy(wrapped) == anatomy(build_model(CONFIG))
