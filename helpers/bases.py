"""Which base model is it? Enough about a model to know it again, and to say what differs, without its weights."""

from __future__ import annotations

import json
from dataclasses import dataclass

import torch
from torch import nn

from helpers.checkpoints import record_hash
from helpers.freezing import tensor_hash
from helpers.models import weight_hash
from helpers.names import named_parameters, plain_name, unwrapped

# Config fields that change neither the weights nor what the model computes from them.
_NO_MATTER = frozenset((
    "_name_or_path", "architectures", "chunk_size_feed_forward", "dtype", "id2label", "initializer_range", "label2id",
    "output_attentions", "output_hidden_states", "pad_token_id", "problem_type", "return_dict", "torch_dtype",
    "transformers_version", "use_cache"))


@dataclass(frozen=True)
class BaseRecord:
    """What identifies a base model, without its weights.

    Attributes:
        weight_hash: `models.weight_hash`, the one that reports and evidence files carry.
        config: the fields that decide what the model computes.
        tensors: name to "type shape hash" for each parameter (a tied one once) and stored buffer.
    """

    model_type: str
    weight_hash: str
    config: dict
    tensors: dict[str, str]


def base_record(model: nn.Module) -> BaseRecord:
    """Write down a base model before it is trained: a few kilobytes of hashes."""
    config = unwrapped(model).config
    fields = json.loads(config.to_json_string(use_diff=False))
    return BaseRecord(config.model_type, weight_hash(model), _relevant(fields),
                      {name: fingerprint(t) for name, t in stored_tensors(model).items()})


def differences(recorded: BaseRecord, found: BaseRecord) -> list[str]:
    """What makes a model another base than the recorded one, the plainest reason alone; empty for the same base."""
    if recorded.model_type != found.model_type:
        return [f"other architecture: its base is a '{recorded.model_type}' model, this is a '{found.model_type}'"]
    fields = [f"{k} was {v!r}, here it is {found.config[k]!r}" for k, v in recorded.config.items()
              if k in found.config and found.config[k] != v]  # a field of one transformers version alone says nothing
    if fields:
        return [f"other config: {some(fields)}"]
    then, now = recorded.tensors, found.tensors
    names = [f"{n} is {'missing' if n in then else 'additional'} here" for n in sorted(then.keys() ^ now.keys())]
    if names:
        return [f"other tensors: {some(names)}"]
    kinds = [f"{n} was {recorded_kind(then[n])}, here it is {recorded_kind(now[n])}" for n in then
             if recorded_kind(then[n]) != recorded_kind(now[n])]
    if kinds:
        return [f"other types or shapes: {some(kinds)}"]
    values = [n for n in then if then[n] != now[n]]
    return [f"same shape but other weights in {len(values)} of {len(then)} tensors: {some(values)}"] if values else []


def tokenizer_hash(tokenizer) -> str:
    """SHA-256 over what a tokenizer does with a text: not its class, its padding or its truncation."""
    if hasattr(tokenizer, "backend_tokenizer"):
        rules = json.loads(tokenizer.backend_tokenizer.to_str())
        return record_hash({k: v for k, v in rules.items() if k not in ("truncation", "padding", "version")})
    return record_hash(tokenizer.get_vocab())  # one written in Python has no rules to read, only a vocabulary


# --- a model in words --------------------------------------------------------------


def stored_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return parameters, a tied one once, and the buffers that are saved with a model, by plain names."""
    every_name = dict(named_parameters(model, every_name=True))
    stored = {plain_name(name): tensor for name, tensor in model.state_dict().items()}
    return dict(named_parameters(model)) | {n: t for n, t in stored.items() if n not in every_name}


def fingerprint(tensor: torch.Tensor) -> str:
    """Like "float32 64x16 0123456789abcdef": enough to say what differs."""
    return f"{kind(tensor)} {tensor_hash(tensor)[:16]}"


def kind(tensor: torch.Tensor) -> str:
    """Type and shape of a tensor, as a `fingerprint` begins."""
    return f"{str(tensor.dtype).removeprefix('torch.')} {'x'.join(map(str, tensor.shape))}"


def recorded_kind(fingerprint: str) -> str:
    """The type and shape in a fingerprint."""
    return fingerprint.rpartition(" ")[0]


def _relevant(config: dict) -> dict:
    """Dropout acts in training alone; GPT-Neo's two spellings of its GELU are one function."""
    same = {"gelu_new": "gelu_pytorch_tanh"}
    kept = {k: v for k, v in config.items() if k not in _NO_MATTER and not k.endswith(("dropout", "pdrop"))}
    return {k: same.get(v, v) if isinstance(v, str) else v for k, v in kept.items()}


def some(texts: list[str], n: int = 3) -> str:
    """The first few, and how many more there are."""
    return ", ".join(texts[:n]) + (f" and {len(texts) - n} more" if len(texts) > n else "")
