"""Next-token loss: a mean over real tokens, computed in chunks.

The logits of a batch are the largest tensor of a training step: 4 x 512 tokens
of GPT-Neo make 412 MB, and their gradient as much again. Nothing needs them all
at once, so the loss walks over the tokens in chunks and keeps one chunk.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

IGNORE = -100  # the label of a position that has nothing to predict, as in PyTorch
CHUNK = 256  # tokens


class _ChunkedLoss(torch.autograd.Function):
    """Sum of cross-entropies. The gradient is taken chunk by chunk in the forward pass."""

    @staticmethod
    def forward(ctx, hidden, weight, bias, labels):
        need_h, need_w, need_b, _ = ctx.needs_input_grad
        work = _matmul_dtype(hidden)
        w = weight.to(work)  # (vocab, width)
        total = _at_least_float32(hidden.new_zeros(()))
        grad_h = torch.empty_like(hidden) if need_h else None
        grad_w = torch.zeros_like(weight) if need_w else None
        grad_b = torch.zeros_like(bias) if need_b else None
        for start in range(0, hidden.size(0), CHUNK):
            part = slice(start, start + CHUNK)
            h, y = hidden[part].to(work), labels[part]  # (chunk, width), (chunk,)
            logits = _at_least_float32(F.linear(h, w, None if bias is None else bias.to(work)))
            total += F.cross_entropy(logits, y, ignore_index=IGNORE, reduction="sum")
            if not (need_h or need_w or need_b):
                continue
            slope = torch.softmax(logits, dim=-1)  # d loss / d logits = softmax - one_hot
            slope[torch.arange(len(y), device=y.device), y.clamp(min=0)] -= 1.0
            slope = slope.mul_((y != IGNORE).unsqueeze(1)).to(work)  # (chunk, vocab)
            if need_h:
                grad_h[part] = slope @ w
            if need_w:
                grad_w += slope.t() @ h
            if need_b:
                grad_b += slope.sum(0)
        ctx.save_for_backward(grad_h, grad_w, grad_b)
        return total

    @staticmethod
    def backward(ctx, grad_total):
        scaled = [None if g is None else g * grad_total.to(g.dtype) for g in ctx.saved_tensors]
        return *scaled, None


def _matmul_dtype(x: torch.Tensor) -> torch.dtype:
    """The type in which autocast would multiply ``x``; its own where autocast is off."""
    on = torch.is_autocast_enabled(x.device.type)
    return torch.get_autocast_dtype(x.device.type) if on else x.dtype


def _at_least_float32(x: torch.Tensor) -> torch.Tensor:
    return x if x.dtype == torch.float64 else x.float()


def next_token_loss(model: nn.Module, input_ids: torch.Tensor, labels: torch.Tensor | None = None,
                    attention_mask: torch.Tensor | None = None) -> tuple[torch.Tensor, int]:
    """Sum of the next-token losses of a batch, in nats, and the number of tokens in it.

    Divide the one by the other for the mean. Sums add up over micro-batches and
    processes; means of unequal batches do not.

    Args:
        input_ids: (batch, time), integer.
        labels: (batch, time); position t holds the token that was *read* at t, and -100
            where it must not be predicted. None: the input itself, padding left out.
        attention_mask: (batch, time), 1 for real tokens, 0 for padding.

    Returns:
        (loss, n_tokens): a scalar with gradient, and how many tokens it sums over.
    """
    targets = shifted_labels(input_ids, labels, attention_mask)  # (batch, time - 1)
    hidden = model.base_model(input_ids=input_ids, attention_mask=attention_mask,
                              use_cache=False).last_hidden_state[:, :-1]  # (batch, time - 1, width)
    head = model.get_output_embeddings()
    n_tokens = int((targets != IGNORE).sum())
    loss = _ChunkedLoss.apply(hidden.reshape(-1, hidden.size(-1)), head.weight, head.bias,
                              targets.reshape(-1))
    return loss, n_tokens


def shifted_labels(input_ids, labels=None, attention_mask=None) -> torch.Tensor:
    """The token that each position must predict: (batch, time - 1); -100 means "not counted".

    A target counts only where it and the token before it are real.
    """
    labels = input_ids if labels is None else labels
    targets = labels[:, 1:].clone()
    if attention_mask is not None:
        real = attention_mask.bool()
        targets[~(real[:, 1:] & real[:, :-1])] = IGNORE
    return targets


def token_losses(model: nn.Module, input_ids: torch.Tensor) -> torch.Tensor:
    """The loss of every single token, in nats: (batch, time - 1). No gradient, no padding."""
    with torch.no_grad():
        hidden = model.base_model(input_ids=input_ids, use_cache=False).last_hidden_state[:, :-1]
        head = model.get_output_embeddings()
        rows = [F.cross_entropy(_at_least_float32(head(h)), y, reduction="none")
                for h, y in zip(hidden, input_ids[:, 1:], strict=True)]
    return torch.stack(rows)
