"""The chunked loss equals the plain one, in value and in every gradient."""

import pytest
import torch
import torch.nn.functional as F
from transformers import GPT2Config, LlamaConfig, OPTConfig

from helpers import losses
from helpers.losses import IGNORE, next_token_loss, shifted_labels, token_losses
from helpers.models import build_model, mini_config

MINI = mini_config(vocab_size=97, hidden_size=48, num_layers=2, num_heads=4, intermediate_size=96,
                   max_position_embeddings=40, window_size=8, attention_types=[[["global", "local"], 1]])
FAMILIES = {
    "gpt_neo": MINI,
    "llama_untied": LlamaConfig(vocab_size=97, hidden_size=32, intermediate_size=64, num_hidden_layers=1,
                                num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64),
    "gpt2": GPT2Config(vocab_size=97, n_embd=32, n_layer=1, n_head=4, n_positions=64, bos_token_id=0, eos_token_id=0,
                       resid_pdrop=0, embd_pdrop=0, attn_pdrop=0),
    "opt": OPTConfig(vocab_size=97, hidden_size=32, num_hidden_layers=1, ffn_dim=64, num_attention_heads=4,
                     max_position_embeddings=64, word_embed_proj_dim=32, dropout=0),
}


def ids_of(batch=3, length=20, seed=0):
    return torch.randint(1, 97, (batch, length), generator=torch.Generator().manual_seed(seed))


def plain_loss(model, ids, mask=None):
    logits = model(ids, attention_mask=mask, use_cache=False).logits[:, :-1]
    return F.cross_entropy(logits.reshape(-1, logits.size(-1)), shifted_labels(ids, None, mask).reshape(-1),
                           ignore_index=IGNORE, reduction="sum")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_value_and_gradients_equal_the_plain_loss(family, chunk, monkeypatch):
    monkeypatch.setattr(losses, "CHUNK", chunk)
    model, ids = build_model(FAMILIES[family]).double(), ids_of()
    total, n_tokens = next_token_loss(model, ids)
    total.backward()
    ours = {n: p.grad.clone() for n, p in model.named_parameters()}
    model.zero_grad()
    expected = plain_loss(model, ids)
    expected.backward()
    assert n_tokens == 3 * 19
    assert torch.allclose(total, expected, rtol=1e-10)
    for name, p in model.named_parameters():
        assert torch.allclose(ours[name], p.grad, rtol=1e-8, atol=1e-12), name


def test_a_frozen_head_gets_no_gradient_and_still_passes_it_on():
    model, ids = build_model(MINI), ids_of()
    model.transformer.wte.weight.requires_grad_(False)
    next_token_loss(model, ids)[0].backward()
    assert model.transformer.wte.weight.grad is None
    assert model.transformer.h[0].mlp.c_fc.weight.grad.abs().sum() > 0


def test_the_loss_of_a_text_depends_neither_on_padding_nor_on_its_neighbours():
    model, ids = build_model(MINI).eval(), ids_of(2, 30)
    mask = torch.ones_like(ids)
    mask[0, 18:] = 0
    both, n = next_token_loss(model, ids, attention_mask=mask)
    short, n_short = next_token_loss(model, ids[:1, :18])
    long, n_long = next_token_loss(model, ids[1:])
    assert n == n_short + n_long == 17 + 29
    assert torch.allclose(both, short + long, rtol=1e-5)


def test_labels_of_minus_100_are_not_counted():
    model, ids = build_model(MINI), ids_of(1, 10)
    labels = ids.clone()
    labels[0, :6] = IGNORE
    assert next_token_loss(model, ids, labels)[1] == 4


def test_sums_of_micro_batches_give_the_gradient_of_one_batch():
    model, ids = build_model(MINI).double(), ids_of(4, 12)
    total, n = next_token_loss(model, ids)
    (total / n).backward()
    whole = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    for part in ids.split(1):
        (next_token_loss(model, part)[0] / n).backward()
    for name, p in model.named_parameters():
        assert torch.allclose(whole[name], p.grad, rtol=1e-9, atol=1e-14), name


def test_bfloat16_autocast_comes_close_and_keeps_float32_gradients():
    model, ids = build_model(MINI), ids_of()
    exact = next_token_loss(model, ids)[0].item()
    with torch.autocast("cpu", torch.bfloat16):
        total, _ = next_token_loss(model, ids)
    total.backward()
    assert total.item() == pytest.approx(exact, rel=0.01)
    assert {p.grad.dtype for p in model.parameters()} == {torch.float32}


def test_token_losses_average_to_the_loss():
    model, ids = build_model(MINI).eval(), ids_of()
    total, n = next_token_loss(model, ids)
    assert token_losses(model, ids).shape == (3, 19)
    assert token_losses(model, ids).mean().item() == pytest.approx(total.item() / n, rel=1e-5)
