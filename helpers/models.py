"""Load or build a decoder, choose its device and precision, and hash its weights."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GPTNeoConfig,
)
from transformers.utils import logging as transformers_logging

from helpers.attention import COURSE_ATTENTION

transformers_logging.disable_progress_bar()  # loading takes a moment; a bar would only fill the notebooks


class ModelError(ValueError):
    """A model that cannot be loaded or used. The message says what to do."""


# --- build and load ----------------------------------------------------------------


def attention_for(model_type: str, attention: str = "fast") -> str:
    """The ``attn_implementation`` name for a family: ``"fast"`` or ``"eager"``."""
    if attention == "fast":
        return COURSE_ATTENTION if model_type == "gpt_neo" else "sdpa"
    if attention == "eager":
        return "eager"
    raise ModelError(f"Attention '{attention}' is not known. Choose 'fast' or 'eager'.")


def mini_config(**changes) -> GPTNeoConfig:
    """The miniature's shape: 4 layers, width 192, 6 heads, 2.61 M parameters."""
    shape = dict(
        vocab_size=4096, hidden_size=192, num_layers=4, num_heads=6, intermediate_size=768,
        max_position_embeddings=256, window_size=64, attention_types=[[["global", "local"], 2]],
        activation_function="gelu_pytorch_tanh", bos_token_id=0, eos_token_id=0,
        attention_dropout=0.0, embed_dropout=0.0, resid_dropout=0.0,
    )
    return GPTNeoConfig(**{**shape, **changes})


def build_model(config, seed: int = 0, attention: str = "fast") -> nn.Module:
    """A model with random weights, the same for the same seed.

    Args:
        config: any transformers config of a causal language model.
        seed: seeds the weights; the caller's own random state is left as it was.
        attention: ``"fast"`` or ``"eager"`` (see `attention_for`).
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        implementation = attention_for(config.model_type, attention)
        return AutoModelForCausalLM.from_config(config, attn_implementation=implementation)


def build_on_meta(config) -> nn.Module:
    """The same model with shapes but no numbers: no memory, for counting alone."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def enable_checkpointing(model: nn.Module, use_reentrant: bool = False) -> None:
    """Keep each block's input alone, and compute the block again in the backward pass (arXiv 1604.06174).

    transformers also makes the embedding's output require a gradient, whatever is frozen: the whole
    network is then gone through backward. Here that is taken back, so that a frozen prefix stays free.

    ``use_reentrant=True`` is PyTorch's older way. It loses the gradient of a block whose input
    needs none, as under frozen embeddings; notebook 07 shows it.
    """
    # transformers renamed it within version 5
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": use_reentrant})
    if getattr(model, "_require_grads_hooks", None) or getattr(model, "_require_grads_hook", None):
        model.disable_input_require_grads()


def gpt_neo_125m_config() -> GPTNeoConfig:
    """The config of EleutherAI/gpt-neo-125M, written out so that counting needs no network."""
    return GPTNeoConfig(
        hidden_size=768, num_layers=12, num_heads=12, max_position_embeddings=2048,
        attention_types=[[["global", "local"], 6]], window_size=256, vocab_size=50257,
        attention_dropout=0.0, embed_dropout=0.0, resid_dropout=0.0,
    )


def load_config(source: str | Path):
    """Read a config from a folder or a hub name.

    Raises:
        ModelError: the folder or name holds no config that transformers knows.
    """
    try:
        return AutoConfig.from_pretrained(str(source))
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(_why_not(source, error, part="config")) from error


def load_model(source: str | Path, *, attention: str = "fast", dtype: torch.dtype = torch.float32,
               device: str | torch.device | None = None) -> nn.Module:
    """Load a causal language model from a folder or a hub name.

    GPT-Neo gets the course's attention and the fused form of its own GELU.

    Args:
        source: a folder with config and safetensors, or a name such as "EleutherAI/gpt-neo-125M".
        attention: ``"fast"`` (SDPA) or ``"eager"`` (needed for attention maps).
        dtype: precision of the weights in memory.
        device: where to put it; None chooses with `choose_device`.

    Raises:
        ModelError: no such model, no weights in the folder, or a family that
            transformers does not know. The message says which.
    """
    config = load_config(source)
    if config.model_type == "gpt_neo" and config.activation_function == "gelu_new":
        config.activation_function = "gelu_pytorch_tanh"  # the same function, one fused kernel
    try:
        model = AutoModelForCausalLM.from_pretrained(
            str(source), config=config, dtype=dtype, use_safetensors=True,
            attn_implementation=attention_for(config.model_type, attention))
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ModelError(_why_not(source, error)) from error
    return model.to(device or choose_device())


def load_tokenizer(source: str | Path):
    """Load the tokenizer that belongs to a model.

    Raises:
        ModelError: the source has no tokenizer files.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(source))
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(_why_not(source, error, part="tokenizer")) from error
    if len(tokenizer) < 2:  # transformers makes an empty one where the files are missing
        raise ModelError(f"'{source}' has no tokenizer files (tokenizer.json, or vocab.json and merges.txt). "
                         "Save the tokenizer beside the model with save_pretrained.")
    return tokenizer


def require_weights(source: str | Path) -> None:
    """Say at once, before anything slow, that a folder holds no weights. A hub name passes.

    Raises:
        ModelError: the folder has no safetensors file.
    """
    folder = Path(source)
    if folder.is_dir() and not list(folder.glob("*.safetensors")):
        raise ModelError(_why_not(source, OSError("no weights")))


def _why_not(source, error: Exception, part: str = "model") -> str:
    """One sentence a reader can act on, from whatever transformers raised."""
    folder = Path(str(source))
    first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if not folder.is_dir():
        if _looks_like_path(str(source)):
            return f"No {part} at '{source}': there is no such folder. Give a folder that exists, or a hub name."
        return (f"Cannot get the {part} '{source}' from the model hub ({first_line}). Check the name and the "
                "connection, or use COURSE_PROFILE=tiny, which needs no network.")
    if not (folder / "config.json").exists():
        return f"'{source}' is not a model folder: it has no config.json. It holds: {_listing(folder)}."
    if part == "model" and not list(folder.glob("*.safetensors")):
        return (f"The folder '{source}' has no weights: no *.safetensors file. It holds: {_listing(folder)}. "
                "Save the model again with save_pretrained.")
    return f"The folder '{source}' cannot be loaded as a {part}: {first_line}"


def _looks_like_path(source: str) -> bool:
    return source.startswith((".", "/", "~")) or source.count("/") != 1 or Path(source).parent.is_dir()


def _listing(folder: Path) -> str:
    names = sorted(p.name for p in folder.iterdir())
    return ", ".join(names[:8]) + (" …" if len(names) > 8 else "") if names else "nothing"


# --- device, precision, identity ---------------------------------------------------


def choose_device() -> torch.device:
    """CUDA if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def choose_precision(asked: str, device: torch.device) -> str:
    """"float32" or "bfloat16" for the matrix products of training.

    "auto" gives bfloat16 where the GPU computes in it, else float32. Never float16: GPT-Neo's
    scores are not scaled and can overflow there. A T4 has no bfloat16.

    Raises:
        ModelError: a precision that the course does not use.
    """
    if asked in ("float32", "bfloat16"):
        return asked
    if asked != "auto":
        raise ModelError(f"Precision '{asked}' is not known. Choose float32, bfloat16 or auto.")
    on_gpu = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bfloat16" if on_gpu else "float32"


def n_positions(config) -> int | None:
    """The longest input in tokens, or None where the family has no fixed limit."""
    return getattr(config, "max_position_embeddings", None)


def weight_hash(model: nn.Module) -> str:
    """SHA-256 over names, shapes, types and bytes of all parameters; a tied tensor counts once."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        digest.update(json.dumps([name, list(parameter.shape), str(parameter.dtype)]).encode())
        digest.update(tensor_bytes(parameter))
    return digest.hexdigest()


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    """The raw bytes of a tensor, in row order, whatever its type or device."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return memoryview(flat.view(torch.uint8).numpy())
