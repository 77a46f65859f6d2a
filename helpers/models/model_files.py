"""What a model's files say before anything is built from them: right, or refused in one line.

A folder from elsewhere can hold anything. The config is read, tried on tensors that have a shape but no numbers, and
measured against the files of weights; only then is memory taken. No code from a folder runs, and nothing is unpickled.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections import Counter
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig
from transformers.activations import ACT2FN

from helpers.files import counted
from helpers.models.names import plain_name

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
MOST_LAYERS = 500  # the deepest decoders have fewer than 200
MOST_PARAMETERS = 10**13  # no model of today has so many: a config that says so is damaged
MOST_BYTES_OF_A_CONFIG = 10**8
NORM_EPSILON = re.compile(r"(^|_)eps(ilon)?$")  # layer_norm_epsilon, rms_norm_eps, norm_epsilon …
POSITIONS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_sequence_length")
_POINTER = b"version https://git-lfs"
_ACTIVATIONS = ("hidden_act", "activation_function", "hidden_activation", "activation", "afn")
# The numbers of a packed matrix are not its entries: bitsandbytes, GPTQ, AWQ, and what they keep beside them.
_PACKED = re.compile(
    r"(^|\.)(qweight|qzeros|scales|g_idx|SCB|absmax|quant_map|quant_state(\.\w+)?|weight_scale\w*"
    r"|weight_packed|nested_absmax|nested_quant_map)$"
)
_WHOLE_FLOATS = ("F64", "F32", "F16", "BF16")


class ModelError(ValueError):
    """A model that cannot be loaded or used. The message says what to do."""


# --- the config --------------------------------------------------------------------


def require_readable(source: str | Path, names: tuple[str, ...]) -> None:
    """Raise ModelError where a name can be no folder's, or one of these files in it is no JSON object.

    A hub name passes, and so does a file that is not there.
    """
    try:
        found = (
            [path for path in (Path(source) / name for name in names) if path.is_file()]
            if str(source)
            else []
        )
    except OSError as error:
        raise ModelError(
            f"No model at '{str(source)[:60]}…': {error.strerror}. Give a folder that exists, or a hub name."
        ) from error
    if not str(source).strip("\0 "):
        raise ModelError("The model's name is empty. Give a folder that exists, or a hub name.")
    for path in found:
        _require_object(path, f"{path.name} in '{source}'")


def require_config(config, source: str | Path = "") -> None:
    """Raise ModelError unless a decoder can be built from a config; nothing is allocated for it."""
    _require_kind(config)
    whose = f"The config of '{source}'" if str(source) else f"This '{config.model_type}' config"
    _require_decoder(config, whose)
    require_size(config, whose)
    for problem in (_odd_heads, _odd_number, _odd_ids, _odd_activation):
        found = problem(config)
        if found:
            raise ModelError(
                f"{whose} cannot be right: {found}. Correct config.json, or get the model again."
            )
    try:
        shape_of(config)
    except Exception as error:
        raise ModelError(
            f"{whose} describes no model that can be built: {in_one_line(error)}. Correct config.json, "
            "or get the model again."
        ) from error


def _require_kind(config) -> None:
    """Raise ModelError for what is no config."""
    if not isinstance(config, PretrainedConfig):
        raise ModelError(
            f"A config of transformers is needed, such as model.config or load_config('data/gpt-neo-mini'); found "
            f"{type(config).__name__}."
        )


def shape_of(config) -> nn.Module:
    """Build the model with shapes but no numbers: no memory."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=False)


def require_size(config, whose: str = "") -> None:
    """Raise ModelError for a config of more layers or parameters than any model has. It takes no time."""
    _require_kind(config)
    whose = whose or f"This '{config.model_type}' config"
    n_layers, n_parameters = _number(config, "num_hidden_layers"), rough_size(config)
    if n_layers > MOST_LAYERS:
        raise ModelError(
            f"{whose} asks for {n_layers:,} layers, more than any model has ({MOST_LAYERS:,} at most "
            "here). Correct config.json."
        )
    if n_parameters > MOST_PARAMETERS:
        raise ModelError(
            f"{whose} asks for about {n_parameters:.1e} parameters (width "
            f"{_number(config, 'hidden_size'):,}, vocabulary {_number(config, 'vocab_size'):,}), more "
            f"than any model has ({MOST_PARAMETERS:.0e} at most here). Correct config.json."
        )


def rough_size(config) -> int:
    """Parameters by rule of thumb: embeddings, and four square matrices and an MLP a layer."""
    width, layers = _number(config, "hidden_size"), _number(config, "num_hidden_layers")
    inner = _number(config, "intermediate_size") or 4 * width
    rows = _number(config, "vocab_size") + (n_positions(config) or 0)
    return rows * width + layers * (4 * width**2 + 2 * width * inner)


def n_positions(config) -> int | None:
    """Return the longest input in tokens, or None where the family has no fixed limit."""
    found = (getattr(config, name, None) for name in POSITIONS)
    return next((n for n in found if isinstance(n, int) and not isinstance(n, bool) and n > 0), None)


def _field(config, name: str):
    """A config's own field; some families know it under another name, some compute others from it."""
    return vars(config).get(config.attribute_map.get(name, name))


def _number(config, name: str) -> int:
    value = _field(config, name)
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def _require_decoder(config, whose: str) -> None:
    """Refuse what is not a plain decoder of text."""
    if getattr(config, "quantization_config", None) is not None:
        marks = config.quantization_config
        method = (
            marks.get("quant_method") if isinstance(marks, dict) else getattr(marks, "quant_method", None)
        )
        raise ModelError(
            f"{whose} is of a quantised model ({method or 'method not named'}): its matrices are packed "
            "and cannot be trained or counted here. Give the model in float32, float16 or bfloat16."
        )
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(
            f"{whose} is of an encoder-decoder ('{config.model_type}'). This course trains decoders: "
            "give a causal language model such as GPT-Neo or Llama."
        )
    other = [
        name
        for name in vars(config)
        if re.fullmatch(r"(vision|audio|encoder|image|speech)\w*_config", name)
        and getattr(config, name) is not None
    ]
    if other or config.get_text_config(decoder=True) is not config:
        more = f" ({', '.join(other)})" if other else ""
        raise ModelError(
            f"{whose} is of a model of more than a decoder of text ('{config.model_type}'{more}). This "
            "course trains text decoders: give the text model alone."
        )
    if getattr(config, "is_decoder", True) is False and hasattr(config, "add_cross_attention"):
        raise ModelError(
            f"{whose} is of an encoder ('{config.model_type}'), which reads in both directions. This "
            "course trains decoders: give a causal language model such as GPT-Neo or Llama."
        )
    if type(config) not in AutoModelForCausalLM._model_mapping:
        raise ModelError(
            f"{whose} is of the family '{config.model_type}', which transformers has no causal language "
            "model for. Give a decoder such as GPT-Neo or Llama."
        )


def _odd_heads(config) -> str | None:
    width, heads = _number(config, "hidden_size"), _number(config, "num_attention_heads")
    groups = _number(config, "num_key_value_heads")
    if width and heads and width % heads and _field(config, "head_dim") is None:
        return f"{heads} heads do not divide the width {width}"
    if heads and groups and heads % groups:
        return f"{groups} key/value heads do not divide {heads} heads"
    return None


def _odd_number(config) -> str | None:
    numbers = {name: value for name, value in vars(config).items() if isinstance(value, (int, float))}
    for name, value in numbers.items():
        if not math.isfinite(value):
            return f"{name} is {value}"
        if name.endswith(("dropout", "pdrop")) and not 0 <= value <= 1:
            return f"{name} is {value}, and a share is from 0 to 1"
        if NORM_EPSILON.search(name) and value < 0:
            return f"{name} is {value}, and is added to a variance: it must not be negative"
        if name in POSITIONS and (value == 0 or value < -1):  # -1: without limit
            return f"{name} is {value}, and a window needs positions"
    return None


def _odd_ids(config) -> str | None:
    rows = _number(config, "vocab_size")
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        value = _field(config, name)
        least = -1 if name == "pad_token_id" else 0  # -1: "no padding", in old Llama configs
        for token in value if isinstance(value, (list, tuple)) else [value]:
            if token is None or not rows:
                continue
            if not isinstance(token, int) or isinstance(token, bool) or not least <= token < rows:
                return f"{name} is {token!r}, and the vocabulary has the ids 0 to {rows - 1}"
    return None


def _odd_activation(config) -> str | None:
    for name in _ACTIVATIONS:
        value = _field(config, name)
        if isinstance(value, str) and value not in ACT2FN and config.model_type not in ("openai-gpt",):
            return f"the activation '{value}' ({name}) is not known"
    return None


# --- the files ---------------------------------------------------------------------


def require_files(source: str | Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Check a folder's files of weights by their headers; each tensor's type and shape. Empty for a hub name.

    Raises:
        ModelError: no weights, a file that is missing, cut short or a git-lfs pointer, an index that leads out of the
            folder, an adapter in place of a model, or tensors that are packed or there twice.
    """
    folder = Path(source)
    if not folder.is_dir():
        return {}
    if (folder / "adapter_config.json").exists():
        raise ModelError(why_not(source, OSError("an adapter")))
    headers = [_header(path) for path in weight_files(folder)]
    stored = {name: found for header in headers for name, found in header.items()}
    _require_once([name for header in headers for name in header], source)
    packed = [
        name
        for name, (kind, shape) in stored.items()
        if _PACKED.search(name) or _is_packed(name, kind, shape)
    ]
    if packed:
        raise ModelError(
            f"'{source}' holds a quantised model: {listed(packed)}. Packed matrices cannot be trained or "
            "counted here: give the model in float32, float16 or bfloat16."
        )
    factors = [name for name in stored if re.search(r"\.lora_[AB](\.|$)", name)]
    if factors:
        raise ModelError(
            f"'{source}' was saved with LoRA inside: {listed(factors)}, which no plain model has a place "
            "for. Load the base and put the adapter on it (lora.load_adapter), or merge and unload "
            "before you save."
        )
    return stored


def _require_once(names: list[str], source: str | Path) -> None:
    """Raise ModelError where two tensors of a folder are one of the model's: nothing says which is meant."""
    times = Counter(map(plain_name, names))
    twice = sorted(name for name, n in times.items() if n > 1)
    if twice:
        raise ModelError(
            f"'{source}' holds {listed(twice)} more than once, in two files or with and without a wrapper's "
            "prefix: nothing says which one is meant. Save the model again with save_pretrained."
        )


def require_fit(shape: nn.Module, stored: dict, source: str | Path) -> None:
    """Raise ModelError where a config describes far more numbers than the files or memory hold, or other kinds."""
    n_parameters = sum(p.numel() for p in shape.parameters())
    n_stored = sum(math.prod(size) for _, size in stored.values())
    if stored and n_parameters > 2 * n_stored:
        raise ModelError(
            f"The config of '{source}' describes {n_parameters:,} parameters, its files hold "
            f"{n_stored:,} numbers. One of them belongs to another model, or config.json has no sizes."
        )
    parameters = {name for name, _ in shape.named_parameters(remove_duplicate=False)}
    odd = [
        name
        for name, (kind, _) in stored.items()
        if plain_name(name) in parameters and kind not in _WHOLE_FLOATS
    ]
    if odd:
        raise ModelError(
            f"The weights in '{source}' are not all in floating point: {listed(odd)}. Give the model in float32, "
            "float16 or bfloat16."
        )
    require_memory(shape, f"'{source}'")


def require_memory(shape: nn.Module, what: str) -> None:
    """Raise ModelError where a model in float32 is larger than this machine's memory."""
    n_bytes = 4 * sum(p.numel() for p in shape.parameters()) + sum(b.nbytes for b in shape.buffers())
    if n_bytes > machine_memory():
        raise ModelError(
            f"{what} needs {n_bytes / 2**30:,.1f} GiB in float32, and this machine has "
            f"{machine_memory() / 2**30:,.1f} GiB. Give a smaller model, or correct config.json."
        )


def machine_memory() -> float:
    """Bytes of memory that this machine has; without limit where the system does not say."""
    if not hasattr(os, "sysconf"):
        return math.inf
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def weight_files(folder: Path) -> list[Path]:
    """Return the files that transformers would read, each inside the folder."""
    if (folder / WEIGHTS).exists():
        return [folder / WEIGHTS]
    if not (folder / INDEX).exists():
        raise ModelError(why_not(folder, OSError("no weights")))
    index = _require_object(folder / INDEX, f"The index '{folder / INDEX}'")
    names = index.get("weight_map")
    if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
        raise ModelError(
            f"The index '{folder / INDEX}' has no 'weight_map' from tensors to files. Save the model "
            "again with save_pretrained."
        )
    files = sorted(set(names.values()))
    odd = [
        name for name in files if Path(name).name != name or "\\" in name or not name.endswith(".safetensors")
    ]
    if odd:
        raise ModelError(
            f"The index '{folder / INDEX}' names '{odd[0]}', which is no safetensors file in the same "
            "folder. It is not opened. Save the model again with save_pretrained."
        )
    missing = [name for name in files if not (folder / name).exists()]
    if missing:
        raise ModelError(
            f"'{folder}' is not whole: of its {counted(len(files), 'file')} of weights, {len(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} missing "
            f"({some(missing)}). Download the model again."
        )
    return [folder / name for name in files]


def _header(path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Name to type and shape for all tensors of a file, without reading them."""
    require_real(path)
    try:
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            return {name: (part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()}
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"'{path.parent}' cannot be loaded: {path.name} ({path.stat().st_size:,} bytes) is damaged or "
            f"only half downloaded ({in_one_line(error)}). Download or save the model again."
        ) from error


def require_real(path: Path) -> None:
    """Raise ModelError where a file is a git-lfs pointer, empty, no file, or one that may not be read."""
    if not path.is_file():
        raise ModelError(f"'{path}' is not a file. Download or save the model again.")
    try:
        with path.open("rb") as file:
            start = file.read(len(_POINTER))
    except OSError as error:
        raise ModelError(
            f"'{path.parent}' cannot be loaded: {path.name} cannot be read ({error.strerror or error}). Ask its owner for "
            "the right to read it, or download the model again."
        ) from error
    if start == _POINTER:
        raise ModelError(
            f"'{path.parent}' cannot be loaded: {path.name} is a git-lfs pointer, not the file itself. "
            "Run 'git lfs pull' in its repository, or download the model again."
        )
    if not start:
        raise ModelError(
            f"'{path.parent}' cannot be loaded: {path.name} is empty. Download or save the model again."
        )


def _is_packed(name: str, kind: str, shape: tuple[int, ...]) -> bool:
    """Is this a matrix in another type than floating point of 16 bits or more? A mask has the shape (1, 1, n, n)."""
    return kind not in _WHOLE_FLOATS and name.endswith("weight") and len(shape) > 1


def _require_object(path: Path, whose: str) -> dict:
    """The JSON object in a file."""
    require_real(path)
    if path.stat().st_size > MOST_BYTES_OF_A_CONFIG:
        raise ModelError(f"{whose} is damaged: it has {path.stat().st_size:,} bytes. Get the model again.")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(
            f"{whose} cannot be loaded: it is no JSON ({in_one_line(error)}). Get the model again."
        ) from error
    if not isinstance(found, dict):
        raise ModelError(
            f"{whose} cannot be loaded: it is {type(found).__name__} where an object {{…}} belongs. Get "
            "the model again."
        )
    return found


# --- the tensors -------------------------------------------------------------------


def require_loaded(model: nn.Module, report: dict, source: str | Path) -> None:
    """Raise ModelError unless every parameter came from the files and every tensor of the files has a place.

    Args:
        report: transformers' own, from ``output_loading_info=True``. A tied tensor under one of its names is none
            missing, and a buffer that the model computes itself is none left over.
    """
    own = {plain_name(name) for name, _ in model.named_buffers()}
    extra = [
        name
        for name in sorted(report["unexpected_keys"])
        if name not in own and not name.endswith((".masked_bias", ".inv_freq"))
    ]
    missing = sorted(report["missing_keys"])
    other = sorted(
        f"{name} {_times(stored)}, the model's is {_times(wanted)}"
        for name, stored, wanted in report["mismatched_keys"]
    )
    found = [
        f"{listed(names)} {what}"
        for names, what in (
            (missing, "missing"),
            (extra, "not part of this model"),
            (other, "of another shape"),
        )
        if names
    ]
    if found:
        advice = "Save the whole model again, or correct config.json."
        if any(plain_name(name) != name for name in extra):
            advice = "A wrapper changed their names: download the model into a folder, and give that folder."
        raise ModelError(
            f"The weights in '{source}' do not fit its config: {'; '.join(found)}. Random numbers would "
            f"stand in their place. {advice}"
        )
    require_finite(model, source)


def require_finite(model: nn.Module, source: str | Path) -> None:
    """Raise ModelError where a weight is NaN or infinite."""
    odd = [name for name, p in model.named_parameters() if not torch.isfinite(p).all()]
    if odd:
        raise ModelError(
            f"The weights in '{source}' hold NaN or infinite numbers: {listed(odd)}. No training can "
            "start from them: get or save the model again."
        )


def listed(names: list[str]) -> str:
    """ "3 tensors (a, b and 1 more)"."""
    return f"{counted(len(names), 'tensor')} ({some(names)})"


def some(names: list[str], n: int = 3) -> str:
    return ", ".join(names[:n]) + (f" and {len(names) - n} more" if len(names) > n else "")


def _times(shape) -> str:
    return "x".join(map(str, shape))


# --- words -------------------------------------------------------------------------


def in_one_line(error: Exception) -> str:
    """Return what an error says, in one line. A KeyError says the key alone; here it says what is the matter."""
    if isinstance(error, KeyError):
        return f"the entry {error} is missing"
    return " ".join(str(error).split())[:300].removesuffix(".") or type(error).__name__


def why_not(source: str | Path, error: Exception, part: str = "model") -> str:
    """Return one line a reader can act on, from whatever transformers raised."""
    folder = Path(str(source))
    said = in_one_line(error)
    if folder.is_dir() and isinstance(error, UnicodeEncodeError):
        return (
            f"The {part} in {ascii(str(source))} cannot be loaded: the folder's name is no text in Python's encoding of file "
            "names here. Set PYTHONUTF8=1 in the environment, or give the folder a name of plain letters."
        )
    if not folder.is_dir():
        if _looks_like_path(str(source)):
            found = (
                "that is a file, and a model is a folder" if folder.is_file() else "there is no such folder"
            )
            return f"No {part} at '{source}': {found}. Give a folder that exists, or a hub name."
        return (
            f"Cannot get the {part} '{source}' from the model hub ({said}). Check the name and the "
            "connection, or use COURSE_PROFILE=tiny, which needs no network."
        )
    if (folder / "adapter_config.json").exists():
        return (
            f"'{source}' holds a PEFT adapter (adapter_config.json), which is not a whole model. Merge it into its "
            "base, save that with save_pretrained, and give that folder."
        )
    if not (folder / "config.json").exists():
        return f"'{source}' is not a model folder: it has no config.json. It holds: {_listing(folder)}."
    lost = [
        name for name in (WEIGHTS, INDEX) if (folder / name).is_symlink() and not (folder / name).exists()
    ]
    if part == "model" and lost:
        target = os.readlink(folder / lost[0])
        return f"'{source}' has no weights: {lost[0]} is a link to '{target}', which is not there. Download the model again."
    if part == "model" and not any((folder / name).exists() for name in (WEIGHTS, INDEX)):
        half = [
            path.name for path in folder.iterdir() if path.suffix in (".incomplete", ".part", ".crdownload")
        ]
        advice = (
            f"{half[0]} is a download that did not end: download the model again."
            if half
            else "Save the model again with save_pretrained."
        )
        return (
            f"The folder '{source}' has no weights: no {WEIGHTS} file. It holds: {_listing(folder)}. {advice}"
        )
    if "trust_remote_code" in str(error) or "custom code" in str(error):
        return (
            f"The folder '{source}' cannot be loaded as a {part}: it asks to run code of its own, and this course "
            "runs no code from a model folder. Give a family that transformers knows."
        )
    return f"The folder '{source}' cannot be loaded as a {part}: {said}"


def _looks_like_path(source: str) -> bool:
    return source.startswith((".", "/", "~")) or source.count("/") != 1 or Path(source).parent.is_dir()


def _listing(folder: Path) -> str:
    names = sorted(p.name for p in folder.iterdir())
    return ", ".join(names[:8]) + (" …" if len(names) > 8 else "") if names else "nothing"
