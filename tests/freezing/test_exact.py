"""The engine against the model as transformers writes it: the same loss and, tensor by tensor, the same gradient."""

import pytest
import torch
import torch.nn.functional as F
from transformers import LlamaConfig
from transformers.models.gpt_neo.modeling_gpt_neo import GPTNeoSelfAttention

from helpers.freezing.plans import FreezePlan
from helpers.models.loading import build_model, mini_config
from helpers.models.losses import IGNORE, next_token_loss, shifted_labels
from support import tiny

SHAPE = tiny.SHAPE | {"hidden_size": 48, "intermediate_size": 96, "max_position_embeddings": 40}
PLANS = {"trained head": FreezePlan.full(), "frozen head": FreezePlan.freeze("attention", "embeddings")}
LARGEST = {torch.float32: 1e-5, torch.float64: 1e-10}  # of a difference, relative to what is compared
LENGTHS = {"under the window": [7, 7, 7], "over the window": [30, 30, 30], "unequal": [30, 5, 17]}


def batch_of(lengths):
    """Token ids padded to the longest on the right, and the mask: (texts, time) each; None where nothing is padded."""
    ids = torch.randint(1, 97, (len(lengths), max(lengths)), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(ids.size(1)) < torch.tensor(lengths).unsqueeze(1)).long()
    return ids * mask, None if bool(mask.all()) else mask


def eager_attention(self, query, key, value, attention_mask=None):
    """Eager attention as upstream writes it, without its step down to float32."""
    scores = query @ key.transpose(-1, -2)  # (batch, heads, queries, keys)
    scores = scores.masked_fill(
        ~self.bias[:, :, : scores.size(-2), : scores.size(-1)], torch.finfo(scores.dtype).min
    )
    weights = (scores if attention_mask is None else scores + attention_mask).softmax(-1)
    return weights @ value, weights


def eager(plan, dtype, ids, mask):
    """Loss and gradients of the stock model: eager attention, GELU in several passes, all logits at once."""
    model = build_model(mini_config(**SHAPE, activation_function="gelu_new"), attention="eager").to(dtype)
    plan.apply(model)
    logits = model(ids, attention_mask=mask, use_cache=False).logits[:, :-1]  # (texts, time - 1, vocab)
    loss = F.cross_entropy(
        logits.reshape(-1, logits.size(-1)), shifted_labels(ids, None, mask).reshape(-1), ignore_index=IGNORE
    )
    loss.backward()
    return loss, {n: p.grad for n, p in model.named_parameters()}


def ours(plan, dtype, ids, mask):
    model = build_model(mini_config(**SHAPE)).to(dtype)
    plan.apply(model)
    total, n_tokens = next_token_loss(model, ids, attention_mask=mask)
    loss = total / n_tokens
    loss.backward()
    return loss, {n: p.grad for n, p in model.named_parameters()}


@pytest.mark.parametrize("dtype", LARGEST)
@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("lengths", LENGTHS)
def test_loss_and_gradients_are_those_of_the_eager_model(lengths, plan, dtype, monkeypatch):
    if dtype is torch.float64:
        monkeypatch.setattr(GPTNeoSelfAttention, "_attn", eager_attention)
    ids, mask = batch_of(LENGTHS[lengths])
    (loss, gradients), (expected, wanted) = (f(PLANS[plan], dtype, ids, mask) for f in (ours, eager))
    assert abs(loss - expected) <= LARGEST[dtype] * abs(expected)
    assert {n for n, g in gradients.items() if g is not None} == {
        n for n, g in wanted.items() if g is not None
    }
    for name, gradient in gradients.items():
        if gradient is not None:
            assert (gradient - wanted[name]).norm() <= LARGEST[dtype] * wanted[name].norm(), name


def test_the_loss_of_a_text_depends_neither_on_padding_nor_on_its_neighbours():
    model, lengths = build_model(mini_config(**SHAPE)).double(), (30, 5, 17)
    ids, mask = batch_of(lengths)
    with torch.no_grad():
        together, n_together = next_token_loss(model, ids, attention_mask=mask)
        alone = [next_token_loss(model, ids[i : i + 1, :n]) for i, n in enumerate(lengths)]
        changed = ids.masked_fill(mask == 0, 4)  # other numbers in the padding
        changed[0] = 3  # another neighbour
        neighbour, _ = next_token_loss(model, changed[:1])
        others = next_token_loss(model, changed, attention_mask=mask)[0] - neighbour
    assert n_together == sum(n for _, n in alone)
    assert together.item() == pytest.approx(sum(loss.item() for loss, _ in alone), rel=1e-12)
    assert others.item() == pytest.approx(sum(loss.item() for loss, _ in alone[1:]), rel=1e-12)


def test_another_family_uses_its_own_sdpa():
    model = build_model(
        LlamaConfig(
            vocab_size=97,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=4,
            max_position_embeddings=64,
        )
    )
    assert model.config._attn_implementation == "sdpa"


# --- the loss's own memory ---------------------------------------------------------


def test_a_gradient_is_given_once():
    """It is scaled in place, so a second backward pass must fail rather than scale it twice."""
    model = build_model(mini_config(**SHAPE))
    loss, n_tokens = next_token_loss(model, batch_of([9, 9])[0])
    (loss / n_tokens).backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        (loss / n_tokens).backward()


# --- a frozen prefix ---------------------------------------------------------------


def saved_layers(plan):
    """Numbers that autograd keeps of each block, weights left out: {layer: bytes}."""
    model = build_model(
        mini_config(**SHAPE | {"num_layers": 4, "attention_types": [[["global", "local"], 2]]})
    ).train()
    plan.apply(model)
    own, kept, now = {t.data_ptr() for t in (*model.parameters(), *model.buffers())}, {}, [None]
    for i, block in enumerate(model.transformer.h):
        block.register_forward_pre_hook(lambda *_, i=i: now.__setitem__(0, i))
    model.transformer.ln_f.register_forward_pre_hook(lambda *_: now.__setitem__(0, "above"))

    def note(tensor):
        if tensor.data_ptr() not in own:
            kept[now[0]] = kept.get(now[0], 0) + tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss, _ = next_token_loss(model, batch_of([30, 30])[0])
    return kept, loss, model


def functions_below(loss):
    """How many steps the backward pass of a loss has."""
    seen, todo = set(), [loss.grad_fn]
    while todo:
        function = todo.pop()
        if function is not None and function not in seen:
            seen.add(function)
            todo.extend(f for f, _ in function.next_functions)
    return len(seen)


def test_a_frozen_prefix_keeps_no_activation_and_has_no_backward_pass():
    (all_kept, full_loss, _), (kept, loss, model) = (
        saved_layers(p) for p in (FreezePlan.full(), FreezePlan.freeze("first-half"))
    )
    assert set(all_kept) >= {0, 1, 2, 3} and set(kept) == {2, 3, "above"}
    assert functions_below(loss) < 0.6 * functions_below(full_loss)
    needs_gradient = []
    for block in model.transformer.h:
        block.register_forward_hook(
            lambda _, __, out: needs_gradient.append(
                (out[0] if isinstance(out, tuple) else out).requires_grad
            )
        )
    next_token_loss(model, batch_of([30, 30])[0])[0].backward()
    assert needs_gradient == [False, False, True, True]
    assert all(p.grad is None for block in model.transformer.h[:2] for p in block.parameters())
