"""GPT-Neo's attention through PyTorch's fused kernel, under the name ``"course"``.

transformers has no SDPA attention for GPT-Neo. This one computes the same numbers as eager
attention, in less time and memory. It is registered in three places, since GPT-Neo looks its
attention up by class: the class table, the list of allowed names, and the table of masks.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask
from transformers.models.gpt_neo import modeling_gpt_neo as gpt_neo

COURSE_ATTENTION = "course"


class CourseGPTNeoAttention(gpt_neo.GPTNeoSelfAttention):
    """GPT-Neo's attention through ``scaled_dot_product_attention``.

    Only the product is replaced; the four projections stay GPT-Neo's own.
    It returns no attention weights: load with ``attention="eager"`` to see maps.
    """

    def _attn(self, query, key, value, attention_mask=None):
        n_queries, n_keys = query.size(-2), key.size(-2)
        mask = self._visible(n_queries, n_keys, attention_mask)
        # (batch, heads, queries, head_dim)
        context = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            # "causal" is only right when every key has its query: not in cached decoding.
            is_causal=mask is None,
            dropout_p=self.attn_dropout.p if self.training else 0.0,
            scale=1.0,  # GPT-Neo does not divide by sqrt(head_dim)
        )
        return context, None

    def _visible(self, n_queries, n_keys, padding_mask):
        """What each query may see, or None where plain causal attention is enough."""
        is_local = self.attention_type == "local" and n_keys > self.config.window_size
        if padding_mask is None and n_queries == n_keys and not is_local:
            return None
        allowed = self.bias[:, :, n_keys - n_queries : n_keys, :n_keys]  # (1, 1, queries, keys)
        if padding_mask is None:
            return allowed
        # A large finite number, as in eager: a row of -inf alone would give NaN.
        return padding_mask.masked_fill(~allowed, torch.finfo(padding_mask.dtype).min)


def _course_mask(*args, attention_mask=None, allow_is_causal_skip=True, **kwargs):
    """Additive mask for padded batches; None where no token is padding."""
    nothing_padded = attention_mask is None or bool(attention_mask.all())
    if allow_is_causal_skip and nothing_padded:
        return None
    return eager_mask(*args, attention_mask=attention_mask, **kwargs)


def _never_called(*args, **kwargs):
    raise RuntimeError("GPT-Neo looks its attention up by class, so this function is never called")


gpt_neo.GPT_NEO_ATTENTION_CLASSES[COURSE_ATTENTION] = CourseGPTNeoAttention
AttentionInterface.register(COURSE_ATTENTION, _never_called)  # lets the config accept the name
AttentionMaskInterface.register(COURSE_ATTENTION, _course_mask)  # without it padding is ignored
