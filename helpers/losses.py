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
        buffer = hidden.new_empty(min(CHUNK, len(hidden)), row_length(len(w)), dtype=work)  # serves every chunk
        some_ignored = bool((labels == IGNORE).any())
        for start in range(0, len(hidden), CHUNK):
            part = slice(start, start + CHUNK)
            h, y = hidden[part].to(work), labels[part]  # (chunk, width), (chunk,)
            logits = torch.mm(h, w.t(), out=buffer[: len(h), : len(w)])
            losses, slope = _losses_and_slope(logits if bias is None else logits.add_(bias), y)
            total += losses.masked_fill_(y == IGNORE, 0.0).sum()
            if some_ignored:
                slope.masked_fill_((y == IGNORE).unsqueeze(1), 0.0)
            slope = slope.to(work)
            if need_h:
                grad_h[part] = slope @ w
            if need_w:
                _add_product_(grad_w, slope.t(), h)
            if need_b:
                grad_b += slope.sum(0)
        ctx.save_for_backward(grad_h, grad_w, grad_b)
        return total

    @staticmethod
    def backward(ctx, grad_total):
        # In place: a copy of the head's gradient would stand beside all activations.
        return *(None if g is None else g.mul_(grad_total) for g in ctx.saved_tensors), None


def row_length(n_words: int) -> int:
    """Numbers in a stored row of logits: the vocabulary, rounded up to a multiple of 16.

    A matrix product that writes rows of 50,257 numbers takes half as long again as one whose
    rows all begin on a cache line of 64 bytes.
    """
    return -(-n_words // 16) * 16


def _losses_and_slope(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Each token's loss, (chunk,), and d loss / d logits = softmax - one_hot, in the logits' own memory."""
    x, y = _at_least_float32(logits), labels.clamp(min=0).unsqueeze(1)  # (chunk, vocab), (chunk, 1)
    top, at_label = x.amax(-1, keepdim=True), x.gather(-1, y)
    sums = x.sub_(top).exp_().sum(-1, keepdim=True)
    losses = sums.log() + top - at_label
    slope = x.div_(sums).scatter_add_(-1, y, -torch.ones_like(at_label))
    return losses.squeeze(1), slope


def _add_product_(total: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> None:
    """``total += a @ b``, without a temporary where all are of one type."""
    if total.dtype == a.dtype:
        total.addmm_(a, b)
    else:
        total += a @ b


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
