"""Next-token loss: a mean over real tokens, computed in chunks.

The logits of a batch are the largest tensor of a training step: 4 x 512 tokens
of GPT-Neo make 412 MB, and their gradient as much again. Nothing needs them all
at once, so the loss walks over the tokens in chunks and keeps one chunk.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from threading import get_ident

import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

from helpers.files import require_values, seen
from helpers.models.loading import ONE_AT_A_TIME
from helpers.models.model_files import in_one_line, n_positions
from helpers.models.names import config_of, unwrapped

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
        # serves every chunk
        buffer = hidden.new_empty(min(CHUNK, len(hidden)), row_length(len(w)), dtype=work)
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

    A matrix product takes half as long again where rows do not begin on a cache line of 64 bytes.
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


class LossError(ValueError):
    """A model or batch whose next-token loss would not be what it seems. The message says what to do."""


# Settings of a config: each adds a term to the model's own loss.
EXTRA_TERMS = ("output_router_logits", "z_loss_coefficient")


def next_token_loss(
    model: nn.Module,
    input_ids: torch.Tensor,
    labels: torch.Tensor | None = None,
    attention_mask: torch.Tensor | None = None,
) -> tuple[torch.Tensor, int]:
    """Sum of the next-token losses of a batch, in nats, and the number of tokens in it.

    Divide the one by the other for the mean. Sums add up over micro-batches and
    processes; means of unequal batches do not.

    The mean equals the model's own loss. Where the model has a `plain_trunk`, the logits are made in
    chunks; else the model's own forward makes them all. A term that a family adds to its own loss
    (the load balance of a router, a z-loss) is not part of it: such a setting is refused.

    Args:
        input_ids: (batch, time), integer.
        labels: (batch, time); position t holds the token that was *read* at t, and -100
            where it must not be predicted. None: the input itself, padding left out.
        attention_mask: (batch, time), 1 for real tokens, 0 for padding, which stands on the right.

    Returns:
        (loss, n_tokens): a scalar with gradient, and how many tokens it sums over.

    Raises:
        LossError: no token ids, other labels, padding before a real token, or a model set to add a term to its loss.
    """
    require_no_extra_terms(model)
    require_windows(model, input_ids)
    _require_beside(model, input_ids, labels, attention_mask)
    targets = shifted_labels(input_ids, labels, attention_mask)  # (batch, time - 1)
    n_tokens = int((targets != IGNORE).sum())
    trunk = plain_trunk(model)
    if trunk is not None:
        hidden = last_states(trunk, input_ids, attention_mask)  # (batch, time - 1, width)
        return _over_chunks(hidden, model, _cross_entropy(targets.reshape(-1))), n_tokens
    logits = next_token_logits(model, input_ids, attention_mask)  # (batch, time - 1, vocab)
    loss = F.cross_entropy(
        _at_least_float32(logits).flatten(0, 1), targets.flatten(), ignore_index=IGNORE, reduction="sum"
    )
    return loss, n_tokens


def divergence_loss(
    model: nn.Module, input_ids: torch.Tensor, base_of: Callable[[slice], torch.Tensor]
) -> torch.Tensor:
    """Sum over tokens of KL(base || model), in nats: a scalar with gradient (Kullback and Leibler 1951).

    Args:
        input_ids: (batch, time) without padding.
        base_of: gives the base's log-probabilities of some of the batch * (time - 1) predictions, in text order:
            (chunk, vocab), float32. They are overwritten.
    """
    require_windows(model, input_ids)
    trunk = plain_trunk(model)
    if trunk is not None:
        return _over_chunks(last_states(trunk, input_ids), model, _divergence(base_of))
    logits = _at_least_float32(next_token_logits(model, input_ids)).flatten(0, 1)  # (predictions, vocab)
    log_p = base_of(slice(0, len(logits)))
    return (log_p.exp() * (log_p - torch.log_softmax(logits, dim=-1))).sum()


def _over_chunks(hidden: torch.Tensor, model: nn.Module, score: Callable) -> torch.Tensor:
    """The sum of a score over all predictions; hidden: (batch, time - 1, width), below the model's head."""
    head = model.get_output_embeddings()
    return _ChunkedLoss.apply(hidden.reshape(-1, hidden.size(-1)), head.weight, head.bias, score)


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

    Raises:
        LossError: padding before a real token. Few families count positions from the first real token.
    """
    labels = input_ids if labels is None else labels
    targets = labels[:, 1:].clone()
    if attention_mask is not None:
        real = attention_mask.bool()
        if bool((real[:, 1:] & ~real[:, :-1]).any()):
            raise LossError(
                "The attention mask has padding before a real token: most families would count "
                "its positions wrong. Pad on the right (tokenizer.padding_side = 'right')."
            )
        targets[~(real[:, 1:] & real[:, :-1])] = IGNORE
    return targets


def require_token_ids(input_ids: torch.Tensor) -> None:
    """Refuse what is no batch of token ids: (batch, time), int64 or int32, with a next token to predict.

    Raises:
        LossError: it says what was given.
    """
    found = type(input_ids).__name__
    if isinstance(input_ids, torch.Tensor):
        found = f"{tuple(input_ids.shape)} of {input_ids.dtype} on {input_ids.device}"
        is_table = input_ids.dim() == 2 and input_ids.size(0) >= 1 and input_ids.size(1) >= 2
        if is_table and input_ids.dtype in (torch.int64, torch.int32) and not input_ids.is_meta:
            return
    raise LossError(
        "The windows must be a tensor of token ids, (windows, length), int64, with one window or more and 2 tokens "
        f"or more in each; found {found}. `tensor_of(corpus.train)` is one."
    )


def require_windows(model: nn.Module, windows: torch.Tensor) -> None:
    """Refuse windows that are no token ids of this model, or too long: ids from 0 to its vocabulary's last.

    Rotary positions have no last one, so there the length is free; but for those of the dynamic kind.

    Raises:
        NoValuesError: the model is on the meta device.
        LossError: it says what was given; or the model is under a setting of `require_sound_settings`, or reads tokens
            that are not in the windows.
    """
    require_no_prompt(model)
    require_token_ids(windows)
    if isinstance(windows, FakeTensor):  # a step on shapes alone: there are no ids to look at
        return
    require_sound_settings(model)
    require_values(next(model.parameters()))
    config = config_of(model).get_text_config()
    limit, n_words = n_positions(config), config.vocab_size
    if limit and windows.size(1) > limit and getattr(config, "rope_parameters", None) is None:
        raise LossError(
            f"Windows of {windows.size(1)} tokens are longer than the model has positions ({limit}). Cut the text into "
            f"windows of {limit} or fewer."
        )
    _require_steady_positions(model, config, windows.size(1), limit)
    least, most = torch.stack(windows.aminmax()).tolist()  # one wait for the device in each step, not two
    if not 0 <= least <= most < n_words:
        raise LossError(
            f"The windows must hold token ids of the model, 0 to {n_words - 1}; found {least} to {most}. Use the "
            "tokenizer that belongs to the model, and whole windows without padding."
        )


def _require_beside(model: nn.Module, input_ids: torch.Tensor, labels, mask) -> None:
    """Raise LossError for labels or a mask that do not stand beside the tokens, one for one, or hold other values."""
    n_words, shape = config_of(model).get_text_config().vocab_size, tuple(input_ids.shape)

    def beside(given) -> bool:
        return isinstance(given, torch.Tensor) and given.shape == input_ids.shape

    if labels is not None and not (beside(labels) and _are_words(labels, n_words)):
        raise LossError(
            f"The labels must be token ids beside the tokens, {shape}, int64: each 0 to {n_words - 1}, or {IGNORE} where "
            f"nothing is to be predicted; found {seen(labels)}."
        )
    if mask is not None and not (beside(mask) and bool(((mask == 0) | (mask == 1)).all())):
        raise LossError(
            f"The attention mask must be {shape}, 1 for a token, 0 for padding; found {seen(mask)}."
        )


def _are_words(labels: torch.Tensor, n_words: int) -> bool:
    are_words = (labels >= 0) & (labels < n_words) | (labels == IGNORE)
    return labels.dtype in (torch.int64, torch.int32) and bool(are_words.all())


def _require_steady_positions(model: nn.Module, config, length: int, limit: int | None) -> None:
    """Raise LossError where dynamic rotary positions would depend on the texts that were read before.

    Beyond the limit transformers stretches them to the longest text so far, and takes that back at a text below it.
    """
    if limit is None or length < limit or "dynamic" not in str(getattr(config, "rope_parameters", None)):
        return
    kept = (item for module in model.modules() for item in vars(module).items())
    longest = max((int(value) for name, value in kept if name.endswith("max_seq_len_cached")), default=0)
    if max(length, longest) > limit:
        raise LossError(
            f"Windows of {length} tokens: this model's rotary positions (rope_type 'dynamic') stretch beyond {limit} "
            "tokens, to the longest text that it has read so far, so a loss would depend on what came before. Cut the "
            f"text into windows of fewer than {limit}, or set another rope_type."
        )


def token_losses(model: nn.Module, input_ids: torch.Tensor) -> torch.Tensor:
    """The loss of every single token, in nats: (batch, time - 1). No gradient, no padding.

    In the mode that the model is in: with dropout in train mode. `measuring.held_out_loss` sets eval mode.

    Raises:
        LossError: no token ids.
    """
    require_windows(model, input_ids)
    with torch.no_grad():
        trunk = plain_trunk(model)
        if trunk is not None:
            rows, head = last_states(trunk, input_ids), model.get_output_embeddings()
        else:
            rows, head = next_token_logits(model, input_ids), nn.Identity()
        losses = [
            F.cross_entropy(_at_least_float32(head(row)), y, reduction="none")
            for row, y in zip(rows, input_ids[:, 1:].long(), strict=True)
        ]
    return torch.stack(losses)


# --- which way to the logits -------------------------------------------------------


def last_states(trunk: nn.Module, input_ids: torch.Tensor, attention_mask=None) -> torch.Tensor:
    """The states of a `plain_trunk` that predict each next token: (batch, time - 1, width)."""
    out = trunk(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
    return out.last_hidden_state[:, :-1]


def next_token_logits(model: nn.Module, input_ids: torch.Tensor, attention_mask=None) -> torch.Tensor:
    """The logits of each next token by the model's own forward: (batch, time - 1, vocab).

    Raises:
        LossError: the forward gives more or fewer predictions than there are tokens.
    """
    logits = model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits
    if logits.size(1) != input_ids.size(1):
        raise LossError(
            f"This '{config_of(model).model_type}' model gives {logits.size(1)} predictions for {input_ids.size(1)} "
            "tokens: its forward adds tokens to the text or takes some away, so none of them is the next token's. Give "
            "the model without what was put around it."
        )
    return logits[:, :-1]


def plain_trunk(model: nn.Module) -> nn.Module | None:
    """The module whose last states, times the head's matrix plus its bias, *are* the logits; else None.

    Families scale or cap their logits (Cohere, Granite, Gemma 2), have layers between, or carry an
    adapter in the head. So no list of them is asked: the model's own forward is run with recorders in
    the place of its parts. One part must be given the token ids alone; the head must be given this
    part's very tensor; and the forward must return the head's very tensor. No numbers are computed:
    it takes some 60 microseconds, so it is asked anew at each call and cannot go out of date.
    """
    base = model._modules.get(getattr(model, "base_model_prefix", ""))
    head = model.get_output_embeddings() if base is not None else None
    if getattr(type(head), "forward", None) is not nn.Linear.forward:
        return None
    parts = {base, head, *base.children(), *model.children()}
    asked: list[tuple] = []  # (module, the tensors it was given), in order
    with ONE_AT_A_TIME:
        if any(map(_is_changed, (model, *parts))):
            return None
        with torch.inference_mode(False):  # there a tensor does not count the changes made to it
            ids = torch.zeros(1, 2, dtype=torch.long, device=head.weight.device)
            states = head.weight.new_empty(1, 2, head.in_features)
            logits = head.weight.new_empty(1, 2, head.out_features, dtype=torch.float32)

        def answer(part):
            return logits if part is head else _OnlyStates(states)

        try:
            with _recorders(parts, asked, answer), torch.no_grad():
                made = model.forward(input_ids=ids, use_cache=False).logits
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError):
            return None  # this forward wants more from its parts than states and logits
    modules, given = [module for module, _ in asked], [tensors for _, tensors in asked]
    if len(modules) != 2 or modules[0] is head or modules[1] is not head or logits._version > 0:
        return None
    is_plain = all(map(_are_same, [*given, [made]], ([ids], [states], [logits])))
    return modules[0] if is_plain else None


class _OnlyStates:
    """What a base model returns, with nothing in it but the last states."""

    def __init__(self, states: torch.Tensor):
        self.last_hidden_state = states

    def __getattr__(self, name: str) -> None:
        return None

    def __getitem__(self, place):
        return (self.last_hidden_state,)[place]


@contextmanager
def _recorders(modules: set[nn.Module], asked: list, answer: Callable):
    """For the time of the block, in this thread alone, modules note what they are given, and give ``answer(module)``."""
    here = get_ident()

    def recorder(module):
        def forward(*args, **kwargs):
            if get_ident() != here:
                return type(module).forward(module, *args, **kwargs)
            asked.append((module, [x for x in (*args, *kwargs.values()) if isinstance(x, torch.Tensor)]))
            return answer(module)

        return forward

    try:
        for module in modules:
            module.forward = recorder(module)
        yield
    finally:
        for module in modules:
            del module.forward


def _is_changed(module: nn.Module) -> bool:
    """Whether someone hung something into this module: a hook, or a forward of its own."""
    hooks = (
        module._forward_pre_hooks,
        module._forward_hooks,
        module._backward_pre_hooks,
        module._backward_hooks,
    )
    return any(hooks) or "forward" in vars(module)


def _are_same(found: list, wanted: list) -> bool:
    """Whether two lists hold the same tensors: the same memory, read in the same way."""

    def key(x):
        return x.untyped_storage()._cdata, x.storage_offset(), x.shape, x.stride(), x.dtype

    return list(map(key, found)) == list(map(key, wanted))


# --- models that are refused -------------------------------------------------------


def require_no_extra_terms(model: nn.Module) -> None:
    """Refuse a model whose config adds a term to its loss, such as a router's load balance.

    Raises:
        LossError: the setting, and how to take it back.
    """
    config = config_of(model).get_text_config()
    found = [name for name in EXTRA_TERMS if getattr(config, name, None)]
    if found:
        name, value = found[0], getattr(config, found[0])
        raise LossError(
            f"This model adds a term to its loss (config.{name} is {value}), and the course trains on "
            f"the next-token loss alone. Set model.config.{name} = False first."
        )


def require_sound_settings(model: nn.Module) -> None:
    """Refuse a model under a setting that breaks its forward, or lets the forward change its weights.

    Raises:
        LossError: the setting, and how to take it back.
    """
    config = config_of(model).get_text_config()
    if not config.return_dict:
        raise LossError(
            "The model is set to answer with a tuple (config.return_dict is False), which its own parts cannot read. "
            "Set model.config.return_dict = True first."
        )
    divided_from = getattr(config, "rescale_every", 0)
    if 0 < divided_from < config.num_hidden_layers:
        raise LossError(
            f"This '{config.model_type}' model divides its own weights in eval mode (config.rescale_every is "
            f"{divided_from}), so frozen ones would move. Load it with load_model, which takes that away."
        )


def require_no_leak(model: nn.Module, input_ids: torch.Tensor) -> torch.Tensor:
    """Refuse a model whose logits change with a later token, as an encoder's do: it sees what it should predict.

    Call it with dropout off.

    Args:
        input_ids: (1, time), a short window; the last token is varied.

    Returns:
        The logits of all tokens but the last, (1, time - 1, vocab), without gradient.

    Raises:
        LossError: it sees later tokens, or these are no token ids.
    """
    require_token_ids(input_ids)
    other = input_ids.clone()
    other[:, -1] = (other[:, -1] + 1) % config_of(model).get_text_config().vocab_size
    with torch.no_grad():
        logits, changed = (next_token_logits(model, ids) for ids in (input_ids, other))
    leak, largest = (logits - changed).abs().max().item(), logits.abs().max().item()
    if leak > _rounding(model, logits) * largest:
        raise LossError(
            f"This '{config_of(model).model_type}' model sees later tokens (a changed last token moves earlier logits by "
            f"{leak / largest:.0e} of the largest): it would learn to copy. Choose a decoder; some families "
            "are one only with config.is_decoder=True."
        )
    return logits


def _rounding(model: nn.Module, logits: torch.Tensor) -> float:
    """The error of rounding, relative, in the coarsest type in which the logits may have been computed."""
    weight = next(model.parameters())
    dtypes = (torch.float32, logits.dtype, weight.dtype, _matmul_dtype(weight))
    return min(0.05, 1000 * max(torch.finfo(dtype).eps for dtype in dtypes))


def require_no_prompt(model: nn.Module) -> None:
    """Refuse a model of PEFT with a learned prompt or prefix: prompt tuning, prefix tuning, p-tuning and their like.

    It reads tokens that no window holds, and with a cache it reads them again before each new token.

    Raises:
        LossError: it names the kind of adapter.
    """
    adapter = getattr(unwrapped(model), "active_peft_config", None)
    if getattr(adapter, "is_prompt_learning", False):
        raise LossError(
            f"This model has a {adapter.peft_type.value} adapter of PEFT: its {adapter.num_virtual_tokens} learned tokens "
            "stand before every text and are no weights of the model, so the course neither trains nor measures it. "
            "Give its base (model.get_base_model()), or an adapter of weights such as LoRA."
        )


def require_next_token_model(model: nn.Module, input_ids: torch.Tensor) -> None:
    """Refuse a model that does not predict the next token from those before it, by its own forward.

    Its own loss must be the mean next-token loss, and no logits may change with a later token: an
    encoder such as BERT sees the token that it should predict. Call it with dropout off.

    Args:
        input_ids: (1, time), a short window of at least three tokens; the last one is varied.

    Raises:
        LossError: it fails one of the two, or cannot be run on these ids.
    """
    require_no_prompt(model)
    require_no_extra_terms(model)
    require_token_ids(input_ids)
    kind = config_of(model).model_type
    try:
        own = model(input_ids=input_ids, labels=input_ids.long(), use_cache=False)
        logits = require_no_leak(model, input_ids)
    except LossError:
        raise
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise LossError(
            f"This '{kind}' model cannot be run on these token ids ({in_one_line(error)}). "
            "Choose a causal language model, and the tokenizer that belongs to it."
        ) from error
    mean = F.cross_entropy(_at_least_float32(logits).flatten(0, 1), input_ids[:, 1:].flatten().long()).item()
    if own.loss is None or abs(own.loss.item() - mean) > _rounding(model, logits) * mean:
        found = "none" if own.loss is None else f"{own.loss.item():.4f}"
        raise LossError(
            f"The own loss of this '{kind}' model is not the next-token loss (found {found}, "
            f"expected {mean:.4f}), and the course trains on nothing else. Choose another model."
        )
