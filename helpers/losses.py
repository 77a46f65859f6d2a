"""Next-token loss: a mean over real tokens, computed in chunks.

The logits of a batch are the largest tensor of a training step: 4 x 512 tokens
of GPT-Neo make 412 MB, and their gradient as much again. Nothing needs them all
at once, so the loss walks over the tokens in chunks and keeps one chunk.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

IGNORE = -100  # the label of a position that has nothing to predict, as in PyTorch
CHUNK = 256  # tokens


class _ChunkedLoss(torch.autograd.Function):
    """Sum of a loss over tokens. The gradient is taken chunk by chunk in the forward pass.

    ``score(logits, part)`` gives the sum of a chunk's losses and d loss / d logits, (chunk, vocab); it may write into
    the logits. ``part`` says which of the tokens these are.
    """

    @staticmethod
    def forward(ctx, hidden, weight, bias, score):
        need_h, need_w, need_b, _ = ctx.needs_input_grad
        work = _matmul_dtype(hidden)
        w = weight.to(work)  # (vocab, width)
        total = _at_least_float32(hidden.new_zeros(()))
        grad_h = torch.empty_like(hidden) if need_h else None
        grad_w = torch.zeros_like(weight) if need_w else None
        grad_b = torch.zeros_like(bias) if need_b else None
        buffer = hidden.new_empty(min(CHUNK, len(hidden)), row_length(len(w)), dtype=work)  # serves every chunk
        for start in range(0, len(hidden), CHUNK):
            part = slice(start, start + CHUNK)
            h = hidden[part].to(work)  # (chunk, width)
            logits = torch.mm(h, w.t(), out=buffer[: len(h), : len(w)])
            loss, slope = score(logits if bias is None else logits.add_(bias), part)
            total += loss
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


def _cross_entropy(labels: torch.Tensor):
    """The score of the next-token loss; labels: (tokens,)."""
    some_ignored = bool((labels == IGNORE).any())

    def score(logits, part):
        y = labels[part]
        losses, slope = _losses_and_slope(logits, y)
        if some_ignored:
            slope.masked_fill_((y == IGNORE).unsqueeze(1), 0.0)
        return losses.masked_fill_(y == IGNORE, 0.0).sum(), slope

    return score


def _divergence(base_of: Callable[[slice], torch.Tensor]):
    """The score of KL(base || model); ``base_of(part)`` gives the base's log-probabilities, (chunk, vocab)."""

    def score(logits, part):
        log_p, log_q = base_of(part), _at_least_float32(logits)
        log_q.sub_(log_q.logsumexp(-1, keepdim=True))
        p = log_p.exp()
        total = log_p.sub_(log_q).mul_(p).sum()
        return total, log_q.exp_().sub_(p)  # d KL / d logits = softmax - p

    return score


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
                              _cross_entropy(targets.reshape(-1)))
    return loss, n_tokens


def divergence_loss(model: nn.Module, input_ids: torch.Tensor,
                    base_of: Callable[[slice], torch.Tensor]) -> torch.Tensor:
    """Sum over tokens of KL(base || model), in nats: a scalar with gradient (Kullback and Leibler 1951).

    Args:
        input_ids: (batch, time) without padding.
        base_of: gives the base's log-probabilities of some of the batch * (time - 1) predictions, in text order:
            (chunk, vocab), float32. They are overwritten.
    """
    hidden = model.base_model(input_ids=input_ids, use_cache=False).last_hidden_state[:, :-1]
    head = model.get_output_embeddings()
    return _ChunkedLoss.apply(hidden.reshape(-1, hidden.size(-1)), head.weight, head.bias, _divergence(base_of))


def base_predictions(kept: torch.Tensor, head: nn.Module | None = None) -> Callable[[slice], torch.Tensor]:
    """A base's log-probabilities in chunks, as `divergence_loss` asks for them, each chunk once.

    Args:
        kept: (predictions, vocab) log-probabilities; with a head (predictions, width), the hidden states below it.
        head: the base's, where hidden states were kept. It multiplies in float32, also under autocast.
    """
    if head is None:
        return lambda part: kept[part]

    def again(part: slice) -> torch.Tensor:
        with torch.no_grad(), torch.autocast(kept.device.type, enabled=False):
            return torch.log_softmax(_at_least_float32(head(kept[part])), dim=-1)

    return again


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
