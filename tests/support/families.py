"""Small models of every family that the tests know."""

from torch import nn
from transformers import AutoConfig

from helpers.models.loading import build_on_meta
from support import tiny

ENDS = {"bos_token_id": 0, "eos_token_id": 0}
SMALL = ENDS | {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "vocab_size": 64,
    "pad_token_id": 0,
}
GROUPED = SMALL | {"num_key_value_heads": 1}
FAMILIES = {
    "gpt_neo": ENDS
    | tiny.SHAPE
    | {
        "hidden_size": 16,
        "num_heads": 2,
        "intermediate_size": 24,
        "vocab_size": 64,
        "max_position_embeddings": 32,
    },
    "llama": GROUPED,
    "gpt2": ENDS
    | {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_inner": 24, "n_positions": 32, "vocab_size": 64},
    "opt": SMALL | {"ffn_dim": 24, "max_position_embeddings": 32, "word_embed_proj_dim": 16},
    "gpt_neox": SMALL | {"max_position_embeddings": 32},
    "qwen2": GROUPED,
    "mistral": GROUPED | {"head_dim": 8},
    "gemma3_text": GROUPED | {"head_dim": 8},
    "qwen3": GROUPED | {"head_dim": 8},
    "mixtral": GROUPED | {"num_local_experts": 2, "head_dim": 8},
    "qwen2_moe": GROUPED
    | {"num_experts": 12, "moe_intermediate_size": 8, "shared_expert_intermediate_size": 8},
}


def family(name: str, tied: bool = True, **changes):
    """A tiny model of a family, without numbers."""
    return build_on_meta(
        AutoConfig.for_model(name, **{**FAMILIES[name], **changes}, tie_word_embeddings=tied)
    )


def with_adapters():
    model = family("gpt_neo")
    for block in model.transformer.h:
        block.adapter = nn.Linear(3, 3, device="meta")
    return model
