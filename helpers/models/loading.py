"""Load or build a decoder, choose its device and precision, and hash its weights."""

from __future__ import annotations

import copy
import hashlib
import json
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from numbers import Integral
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file
from torch import nn
from torch._guards import detect_fake_mode
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GPTNeoConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging as transformers_logging

from helpers.files import as_path, tensor_bytes
from helpers.models.attention import COURSE_ATTENTION
from helpers.models.model_files import (
    ModelError,
    n_positions,
    require_config,
    require_files,
    require_fit,
    require_loaded,
    require_memory,
    require_readable,
    require_size,
    rough_size,
    shape_of,
    weight_files,
    why_not,
)
from helpers.models.names import named_parameters, plain_name, unwrapped

__all__ = [
    "ModelError",
    "attention_for",
    "build_model",
    "build_on_meta",
    "choose_device",
    "choose_precision",
    "enable_checkpointing",
    "gpt_neo_125m_config",
    "load_config",
    "load_model",
    "load_tokenizer",
    "mini_config",
    "n_positions",
    "require_weights",
    "tensor_bytes",
    "tensors_hash",
    "weight_hash",
]

transformers_logging.disable_progress_bar()  # loading takes a moment; a bar would only fill the notebooks

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
)
LARGE = 10**8  # parameters from which a model's memory is looked at before it is built
ONE_AT_A_TIME = threading.RLock()  # held while something is changed for a moment that all threads share


# --- build and load ----------------------------------------------------------------


def attention_for(model_type: str, attention: str = "fast") -> str:
    """Return the ``attn_implementation`` name for a family: ``"fast"`` or ``"eager"``.

    A family without PyTorch's fused attention (Gemma 2, BLOOM, Mamba, ...) gets the eager kind, and a warning says
    so once.
    """
    if attention not in ("fast", "eager"):
        raise ModelError(f"Attention '{attention}' is not known. Choose 'fast' or 'eager'.")
    if attention == "eager":
        return "eager"
    if model_type == "gpt_neo":
        return COURSE_ATTENTION
    return "sdpa" if _has_sdpa(model_type) else "eager"


@cache  # so the warning comes once for each family
def _has_sdpa(model_type: str) -> bool:
    name = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(model_type)
    supported = name is None or bool(getattr(getattr(transformers, name), "_supports_sdpa", False))
    if not supported:
        warnings.warn(
            f"transformers has no fast attention (SDPA) for the family '{model_type}': the eager kind is "
            "used, which takes more time and memory.",
            stacklevel=3,
        )
    return supported


def mini_config(**changes) -> GPTNeoConfig:
    """The miniature's shape: 4 layers, width 192, 6 heads, 2.61 M parameters."""
    shape = dict(
        vocab_size=4096,
        hidden_size=192,
        num_layers=4,
        num_heads=6,
        intermediate_size=768,
        max_position_embeddings=256,
        window_size=64,
        attention_types=[[["global", "local"], 2]],
        activation_function="gelu_pytorch_tanh",
        bos_token_id=0,
        eos_token_id=0,
        attention_dropout=0.0,
        embed_dropout=0.0,
        resid_dropout=0.0,
    )
    return GPTNeoConfig(**{**shape, **changes})


def build_model(config, seed: int = 0, attention: str = "fast") -> nn.Module:
    """A model with random weights, the same for the same seed: on the CPU, in float32 unless its config says otherwise.

    Args:
        config: any transformers config of a causal language model.
        seed: seeds the weights; the caller's own random state is left as it was.
        attention: ``"fast"`` or ``"eager"`` (see `attention_for`).

    Raises:
        ModelError: the model would be larger than any, or than this machine's memory, or a seed that is none.
    """
    require_size(config)
    require_seed(seed)
    config = _with_steady_weights(config)
    if rough_size(config) > LARGE and detect_fake_mode() is None:
        require_memory(build_on_meta(config), f"A '{config.model_type}' model of this config")
    implementation = attention_for(config.model_type, attention)
    with seeded(seed):
        return AutoModelForCausalLM.from_config(
            config,
            attn_implementation=implementation,
            dtype=config.dtype or torch.float32,
            trust_remote_code=False,
        )


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """For the time of the block PyTorch draws from a seed, in float32 on the CPU; then all is what it was before.

    All threads share its random state and default type, so others wait here for their turn.
    """
    with ONE_AT_A_TIME, torch.random.fork_rng(devices=[]), torch.device("cpu"):
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float32)
        torch.default_generator.manual_seed(seed)
        try:
            yield
        finally:
            torch.set_default_dtype(before)


@contextmanager
def own_precision(device_type: str) -> Iterator[None]:
    """For the time of the block no autocast of the caller holds; one that begins inside keeps no copies of weights.

    PyTorch keeps such copies until the outermost autocast ends: a training inside one would compute with those of its
    first step to the end.
    """
    torch.autocast_increment_nesting()
    if torch.autocast_decrement_nesting() == 0:
        yield
        return
    with torch.autocast(device_type, enabled=False, cache_enabled=False):
        yield


def require_seed(seed: int) -> int:
    """Return a seed that PyTorch and NumPy both take.

    Raises:
        ModelError: it is no whole number from 0 to 2**32 - 1.
    """
    if isinstance(seed, bool) or not isinstance(seed, Integral) or not 0 <= seed < 2**32:
        raise ModelError(
            f"A seed must be a whole number from 0 to {2**32 - 1}; found {seed!r}. Any small number will do."
        )
    return int(seed)


def build_on_meta(config) -> nn.Module:
    """Build the same model with shapes but no numbers: no memory, for counting alone."""
    require_size(config)
    return shape_of(config)


def enable_checkpointing(model: nn.Module, use_reentrant: bool = False) -> None:
    """Keep each block's input alone, and compute the block again in the backward pass (arXiv 1604.06174).

    transformers also makes the embedding's output require a gradient, whatever is frozen: the whole
    network is then gone through backward. Here that is taken back, so that a frozen prefix stays free.

    ``use_reentrant=True`` is PyTorch's older way. It loses the gradient of a block whose input
    needs none, as under frozen embeddings; notebook 08 shows it.
    """
    model = unwrapped(model)
    # transformers renamed it within version 5
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": use_reentrant})
    if getattr(model, "_require_grads_hooks", None) or getattr(model, "_require_grads_hook", None):
        model.disable_input_require_grads()


def gpt_neo_125m_config() -> GPTNeoConfig:
    """The config of EleutherAI/gpt-neo-125M, written out so that counting needs no network."""
    return GPTNeoConfig(
        hidden_size=768,
        num_layers=12,
        num_heads=12,
        max_position_embeddings=2048,
        attention_types=[[["global", "local"], 6]],
        window_size=256,
        vocab_size=50257,
        attention_dropout=0.0,
        embed_dropout=0.0,
        resid_dropout=0.0,
    )


def load_config(source: str | Path):
    """Read a config from a folder or a hub name, and try its shapes.

    Raises:
        ModelError: the folder or name holds no config that transformers knows, or one that cannot be right.
    """
    as_path(source, "The place of a model")
    require_readable(source, ("config.json",))
    with _quiet():
        try:
            config = AutoConfig.from_pretrained(str(source), trust_remote_code=False)
        except Exception as error:
            raise ModelError(why_not(source, error, part="config")) from error
        require_config(config, source)
    config.return_dict = True  # in what form a model answers is no part of the model
    config.output_hidden_states = config.output_attentions = False
    return _with_steady_weights(config)


def _with_steady_weights(config):
    """The config, or a copy of it under which the model leaves its weights alone.

    RWKV divides weights by powers of 2 in eval mode, and multiplies them again in train mode: a guard against overflow
    in float16. Frozen weights would seem to move, and weights saved in one mode be wrong in the other.
    """
    if not getattr(config, "rescale_every", 0):
        return config
    config = copy.deepcopy(config)
    config.rescale_every = 0
    return config


def load_model(
    source: str | Path,
    *,
    attention: str = "fast",
    dtype: torch.dtype = torch.float32,
    device: str | torch.device | None = None,
) -> nn.Module:
    """Load a causal language model from a folder or a hub name.

    GPT-Neo gets the course's attention and the fused form of its own GELU. Names that a wrapper changed
    (``_orig_mod.``, ``module.``) are read as the model's own. No code from the folder runs.

    Args:
        source: a folder with config and safetensors, or a name such as "EleutherAI/gpt-neo-125M".
        attention: ``"fast"`` (SDPA, where the family has it) or ``"eager"`` (needed for attention maps).
        dtype: precision of the weights in memory.
        device: where to put it; None chooses with `choose_device`.

    Raises:
        ModelError: no such device or model, no weights in the folder, a family that is no decoder, or tensors that are
            missing, left over, of another shape, packed or not finite. The message says which.
    """
    device = _require_device(device) if device is not None else choose_device()
    config = load_config(source)
    if config.model_type == "gpt_neo" and config.activation_function == "gelu_new":
        config.activation_function = "gelu_pytorch_tanh"  # the same function, one fused kernel
    require_readable(source, ("generation_config.json",))
    if attention == "eager" and config.model_type == "falcon" and config.alibi:
        raise ModelError(
            f"The eager attention that transformers has for '{source}' (Falcon with ALiBi) adds the positions' bias "
            "twice, and computes something else than the fast one. Load it with attention='fast'."
        )
    stored = require_files(source)
    shape = shape_of(config)
    require_fit(shape, stored, source)
    options = {
        "config": config,
        "dtype": dtype,
        "attn_implementation": attention_for(config.model_type, attention),
        "output_loading_info": True,
        "ignore_mismatched_sizes": True,
        "trust_remote_code": False,
    }
    try:
        with ONE_AT_A_TIME, _quiet():
            if any(plain_name(name) != name for name in stored):
                kind = AutoModelForCausalLM._model_mapping[type(config)]
                del options["trust_remote_code"]
                model, report = kind.from_pretrained(None, state_dict=_plain_tensors(Path(source)), **options)
            else:
                model, report = AutoModelForCausalLM.from_pretrained(
                    str(source), use_safetensors=True, **options
                )
    except Exception as error:
        raise ModelError(why_not(source, error)) from error
    require_loaded(model, report, source)
    if _has_tied_head(shape) and not _has_tied_head(model):  # the files hold another matrix for the head
        model.config.get_text_config().tie_word_embeddings = False  # so costs and exports know
    return model.to(device)


def _has_tied_head(model: nn.Module) -> bool:
    head = getattr(model.get_output_embeddings(), "weight", None)
    return head is not None and head is model.get_input_embeddings().weight


def _plain_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """A folder's tensors under their own names."""
    return {
        plain_name(name): tensor for path in weight_files(folder) for name, tensor in load_file(path).items()
    }


@contextmanager
def _quiet() -> Iterator[None]:
    """transformers only reports what does not fit; here it becomes an error, so its table is not printed."""
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)


def load_tokenizer(source: str | Path):
    """Load the tokenizer that belongs to a model.

    Raises:
        ModelError: the source has no tokenizer files, damaged ones, or more tokens than the model has rows for.
    """
    folder = as_path(source, "The place of a tokenizer")
    require_readable(source, TOKENIZER_FILES)
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(source), trust_remote_code=False)
        n_tokens, most = len(tokenizer), max(tokenizer.get_vocab().values(), default=0)
    except Exception as error:
        missing = _lacks_vocabulary(folder) if (folder / "config.json").is_file() else None
        raise ModelError(missing or why_not(source, error, part="tokenizer")) from error
    if n_tokens < 2:  # transformers makes an empty one where the files are missing
        raise ModelError(
            _lacks_vocabulary(folder) or f"The tokenizer of '{source}' knows no words. Get the model again."
        )
    rows = _vocabulary_rows(folder)
    if rows is not None and most >= rows:
        raise ModelError(
            f"The tokenizer of '{source}' has tokens up to id {most:,}, and the model's embedding has "
            f"{rows:,} rows. Save the model's own tokenizer beside it, or resize the embedding "
            "(resize_token_embeddings) and save the model again."
        )
    return tokenizer


def _lacks_vocabulary(folder: Path) -> str | None:
    """What a folder lacks that no tokenizer can be without, in one line; None: nothing."""
    if any((folder / name).exists() for name in ("tokenizer.json", "vocab.json", "vocab.txt")):
        return None
    others = sorted(
        path.name for kind in ("*.model", "*.tiktoken", "tekken.json") for path in folder.glob(kind)
    )
    if others:
        return (
            f"'{folder}' has no tokenizer.json: its tokenizer is in {others[0]}, which other packages read. Load it once "
            "where sentencepiece and tiktoken are installed, and save it with save_pretrained, which writes tokenizer.json."
        )
    return (
        f"'{folder}' has no tokenizer files (tokenizer.json, or vocab.json and merges.txt). "
        "Save the tokenizer beside the model with save_pretrained."
    )


def _vocabulary_rows(folder: Path) -> int | None:
    """Rows of the embedding, where the folder holds a config that says so."""
    return getattr(load_config(folder), "vocab_size", None) if (folder / "config.json").is_file() else None


def require_weights(source: str | Path) -> None:
    """Check at once, before anything slow, that a folder holds whole weights. A hub name passes.

    Raises:
        ModelError: the folder has no safetensors file, or one that is damaged, packed or holds an adapter.
    """
    require_files(source)


# --- device, precision, identity ---------------------------------------------------


def choose_device() -> torch.device:
    """CUDA if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _require_device(device: str | torch.device) -> torch.device:
    """Raise ModelError for a device that is none, or not there; an empty tensor tells."""
    try:
        return torch.empty(0, device=device).device
    except (AssertionError, RuntimeError, TypeError) as error:
        raise ModelError(
            f"The device {device!r} cannot be used ({str(error).splitlines()[0]}). Choose 'cpu', or leave it out."
        ) from error


def choose_precision(asked: str, device: str | torch.device) -> str:
    """ "float32" or "bfloat16" for the matrix products of training.

    "auto" gives bfloat16 where the GPU computes in it, else float32. Never float16: GPT-Neo's
    scores are not scaled and can overflow there. A T4 has no bfloat16.

    Raises:
        ModelError: a precision that the course does not use.
    """
    if asked in ("float32", "bfloat16"):
        return asked
    if asked != "auto":
        raise ModelError(f"Precision '{asked}' is not known. Choose float32, bfloat16 or auto.")
    on_gpu = torch.device(device).type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bfloat16" if on_gpu else "float32"


def weight_hash(model: nn.Module) -> str:
    """SHA-256 over names, shapes, types and bytes of all parameters; a tied tensor counts once."""
    return tensors_hash(named_parameters(model))


def tensors_hash(named: list[tuple[str, torch.Tensor]]) -> str:
    """Return the `weight_hash` of a model that has these names and tensors."""
    digest = hashlib.sha256()
    for name, parameter in sorted(named, key=lambda pair: pair[0]):
        digest.update(json.dumps([name, list(parameter.shape), str(parameter.dtype)]).encode())
        digest.update(tensor_bytes(parameter))
    return digest.hexdigest()
