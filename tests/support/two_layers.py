"""Random models of two layers, on the disk, that read text with the miniature's tokenizer."""

from transformers import AutoConfig

from helpers.models.loading import build_model, load_tokenizer, mini_config
from helpers.profiles import TINY

SHAPES = {
    "gpt_neo": None,
    "llama": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24},
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_inner": 24, "n_positions": 64},
}


def saved(folder, family: str = "gpt_neo"):
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
    build_model(config, seed=3).save_pretrained(folder)
    load_tokenizer(TINY.model).save_pretrained(folder)
    return folder
