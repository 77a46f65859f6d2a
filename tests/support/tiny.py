"""The tiny GPT-Neo of the tests: both kinds of attention, and a training step takes milliseconds.

A test that needs another size says so by what it changes: ``tiny.config(hidden_size=48)``.
"""

from transformers import GPTNeoConfig

from helpers.models.loading import mini_config

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
