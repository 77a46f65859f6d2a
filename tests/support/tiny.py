"""Tiny models of the tests: a GPT-Neo with both kinds of attention, one on the disk, and one of each family.

A training step takes milliseconds. A test that needs another size says so by what it changes:
``tiny.config(hidden_size=48)``.
"""

from torch import nn
from transformers import AutoConfig, GPTNeoConfig

from helpers.models.loading import build_model, build_on_meta, load_tokenizer, mini_config
from helpers.profiles import TINY

SHAPE = {
    "vocab_size": 97,
    "hidden_size": 32,
    "num_layers": 2,
    "num_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 24,
    "window_size": 8,
    "attention_types": [[["global", "local"], 1]],
}


def config(**changes) -> GPTNeoConfig:
    """A config of this shape, but for the changes."""
    return mini_config(**SHAPE | changes)


# --- on the disk, with the miniature's tokenizer ------------------------------------

SHAPES = {
    "gpt_neo": None,
    "llama": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24},
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_inner": 24, "n_positions": 64},
}


def saved(folder, family: str = "gpt_neo", seed: int = 3):
    """A random model of two layers with the miniature's tokenizer, the same each time; give its folder as COURSE_MODEL."""
    config = mini_config(
        hidden_size=16,
        num_layers=2,
        num_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        window_size=16,
        attention_types=[[["global", "local"], 1]],
    )
    if SHAPES[family]:
        config = AutoConfig.for_model(
            family,
            **SHAPES[family],
            vocab_size=4096,
            bos_token_id=0,
            eos_token_id=0,
            tie_word_embeddings=True,
        )
    build_model(config, seed=seed).save_pretrained(folder)
    load_tokenizer(TINY.model).save_pretrained(folder)
    return folder


# --- one of each family -------------------------------------------------------------

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
    | SHAPE
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
