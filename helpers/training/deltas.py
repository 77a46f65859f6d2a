"""Delta checkpoints: only what trained, bound by hashes to the one base model that it belongs to.

    base = base_record(model)                                    # before training: hashes, not a copy
    ...                                                          # train under a plan
    save_delta(model, plan, base, "RUN")                         # writes RUN/delta.safetensors
    model = load_delta("RUN/delta.safetensors", load_model(source))

A delta is one safetensors file. Its header holds one JSON record: format, plan, counts by role, the
base's config and hashes, the tokenizer's hash, and a SHA-256 for each tensor and for the record itself.
Nothing in it is unpickled, and no code of it runs.
"""

from __future__ import annotations

import copy
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from helpers.files import as_path, record_hash, tensor_hash, write_tensors
from helpers.freezing import FreezePlan, require_plan
from helpers.models import anatomy, config_of, named_parameters, plain_name, tensors_hash, weight_hash
from helpers.training.rewinding import rewind, shares_of

# --- Which base model is it? Enough about a model to know it again, and to say what differs, without its weights ---


DROPOUT = ("dropout", "pdrop")  # how the fields of a dropout's share end
# Config fields that change neither the weights nor what the model computes from them.
_NO_MATTER = frozenset(
    (
        "_name_or_path",
        "architectures",
        "chunk_size_feed_forward",
        "dtype",
        "id2label",
        "initializer_range",
        "label2id",
        "output_attentions",
        "output_hidden_states",
        "pad_token_id",
        "problem_type",
        "return_dict",
        "torch_dtype",
        "transformers_version",
        "use_cache",
    )
)


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
    return BaseRecord(
        config_of(model).model_type,
        weight_hash(model),
        computing_fields(model),
        {name: fingerprint(t) for name, t in stored_tensors(model).items()},
    )


def differences(recorded: BaseRecord, found: BaseRecord) -> list[str]:
    """What makes a model another base than the recorded one, the plainest reason alone; empty for the same base."""
    if recorded.model_type != found.model_type:
        return [
            f"other architecture: its base is a '{recorded.model_type}' model, this is a '{found.model_type}'"
        ]
    # a field of one transformers version alone says nothing
    fields = [
        f"{k} was {v!r}, here it is {found.config[k]!r}"
        for k, v in recorded.config.items()
        if k in found.config and found.config[k] != v
    ]
    if fields:
        return [f"other config: {some(fields)}"]
    then, now = recorded.tensors, found.tensors
    names = [
        f"{n} is {'missing' if n in then else 'additional'} here" for n in sorted(then.keys() ^ now.keys())
    ]
    if names:
        return [f"other tensors: {some(names)}"]
    kinds = [
        f"{n} was {recorded_kind(then[n])}, here it is {recorded_kind(now[n])}"
        for n in then
        if recorded_kind(then[n]) != recorded_kind(now[n])
    ]
    if kinds:
        return [f"other types or shapes: {some(kinds)}"]
    values = [n for n in then if then[n] != now[n]]
    return (
        [f"same shape but other weights in {len(values)} of {len(then)} tensors: {some(values)}"]
        if values
        else []
    )


def tokenizer_hash(tokenizer) -> str:
    """SHA-256 over what a tokenizer does with a text: not its class, its padding or its truncation."""
    if hasattr(tokenizer, "backend_tokenizer"):
        rules = json.loads(tokenizer.backend_tokenizer.to_str())
        return record_hash({k: v for k, v in rules.items() if k not in ("truncation", "padding", "version")})
    if not hasattr(tokenizer, "get_vocab"):
        raise TypeError(
            f"A tokenizer is needed, as load_tokenizer gives it; found {type(tokenizer).__name__}."
        )
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


def computing_fields(model: nn.Module, training: bool = False) -> dict:
    """Return the fields of a model's config that decide what it computes; its dropout only if for ``training``."""
    fields = json.loads(config_of(model).to_json_string(use_diff=False))
    dropout = {k: v for k, v in fields.items() if training and k.endswith(DROPOUT)}
    return _relevant(fields) | dropout


def _relevant(config: dict) -> dict:
    """Dropout acts in training alone; GPT-Neo's two spellings of its GELU are one function."""
    same = {"gelu_new": "gelu_pytorch_tanh"}
    kept = {k: v for k, v in config.items() if k not in _NO_MATTER and not k.endswith(DROPOUT)}
    return {k: same.get(v, v) if isinstance(v, str) else v for k, v in kept.items()}


def some(texts: list[str], n: int = 3) -> str:
    """The first few, and how many more there are."""
    return ", ".join(texts[:n]) + (f" and {len(texts) - n} more" if len(texts) > n else "")


FORMAT = 1
FILE_NAME = "delta.safetensors"
_FIELDS = {
    "plan": dict,
    "plan.way": str,
    "plan.selectors": list,
    "roles": (dict, type(None)),
    "counts": dict,
    "n_parameters": int,
    "base": dict,
    "base.model_type": str,
    "base.weight_hash": str,
    "base.config": dict,
    "base.tensors": dict,
    "tokenizer": (str, type(None)),
    "tuned_hash": str,
    "tensors": dict,
}


class DeltaError(RuntimeError):
    """A delta that cannot be written, read or put on this base. The message says why and what to do."""


@dataclass(frozen=True)
class Delta:
    """A verified delta: the trained tensors and where they belong."""

    plan: FreezePlan
    roles: dict[str, str] | None  # the reader's own patterns, as for `anatomy`
    counts: dict[str, int]  # role to its trained parameters
    n_parameters: int  # of the whole model
    base: BaseRecord
    tokenizer: str | None  # `tokenizer_hash`, where one was given
    tuned_hash: str  # `models.weight_hash` of base and delta together
    tensors: dict[str, torch.Tensor]


# --- save --------------------------------------------------------------------------


def save_delta(
    model: nn.Module,
    plan: FreezePlan,
    base: nn.Module | BaseRecord,
    path: str | Path,
    *,
    tokenizer=None,
    roles: dict[str, str] | None = None,
) -> Path:
    """Write the tensors that train under ``plan``, in their own type, bit for bit; returns the file's path.

    The write is atomic: an older delta in the same place stays until the new one is whole.

    Args:
        base: the model before training, or its `base_record`.
        path: a file that ends in ".safetensors", or a folder for ``delta.safetensors``.
        tokenizer: where given, its hash is kept, and `load_delta` can refuse another one.
        roles: as for `anatomy`, for a family that it does not know.

    Raises:
        DeltaError: a frozen tensor is not the base's (a broken freeze), ``base`` is another
            model, or the file cannot be written, or is there and is no delta.
        PlanError, AnatomyError: the plan does not fit the model.
    """
    require_plan(plan)
    require_own(place_of(path))
    base = base if isinstance(base, BaseRecord) else base_record(base)
    ledger, names = plan.explain(model, roles), plan.trainable_names(anatomy(model, roles))
    _require_frozen(model, plan, names, base)
    tensors = {name: p.detach() for name, p in named_parameters(model) if name in names}
    record = {
        "format": FORMAT,
        "plan": asdict(plan),
        "flag": plan.flag,
        "roles": roles,
        "counts": {row.role: row.n_trainable for row in ledger.rows if row.n_trainable},
        "n_parameters": ledger.n_parameters,
        "base": asdict(base),
        "tokenizer": None if tokenizer is None else tokenizer_hash(tokenizer),
        "tuned_hash": weight_hash(model),
        "tensors": {name: tensor_hash(t) for name, t in tensors.items()},
    }
    place = place_of(path)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        write_tensors(place, tensors, {"delta": json.dumps({**record, "own_sha256": record_hash(record)})})
    except (OSError, SafetensorError) as error:
        raise DeltaError(
            f"Could not save the delta '{place}': {error}. Free some space or choose another place, "
            "and save again; what was there before is intact."
        ) from error
    return place


def require_own(place: Path) -> None:
    """Raise DeltaError where a file stands that is no delta of this course: it is not overwritten.

    What cannot be read is taken for a damaged delta under a delta's own name, and for another's file elsewhere.
    """
    if not place.exists():
        return
    try:
        with safe_open(place, framework="pt") as file:
            is_own = "delta" in (file.metadata() or {})
    except (OSError, SafetensorError):
        is_own = place.is_file() and place.name == FILE_NAME
    if not is_own:
        raise DeltaError(
            f"'{place}' is there and is no delta of this course: it is not overwritten. Choose another name."
        )


def _require_frozen(model: nn.Module, plan: FreezePlan, names: frozenset[str], base: BaseRecord) -> None:
    """Raises DeltaError unless base and delta together make this very model."""
    tensors = stored_tensors(model)
    unlike = [
        f"{n} is {'new' if n in tensors else 'gone'}" for n in sorted(tensors.keys() ^ base.tensors.keys())
    ]
    unlike = unlike or [
        f"{n} is {kind(t)}, in the base {recorded_kind(base.tensors[n])}"
        for n, t in tensors.items()
        if kind(t) != recorded_kind(base.tensors[n])
    ]
    if unlike:
        raise DeltaError(
            f"The base is not what this model was trained from: {some(unlike)}. Give the base itself, "
            "in the same precision, and leave a tied head tied."
        )
    moved = [n for n, t in tensors.items() if n not in names and fingerprint(t) != base.tensors[n]]
    if moved:
        n_fixed = len(tensors) - len(names)
        raise DeltaError(
            f"Not saved: {len(moved)} of {n_fixed} tensors that {plan.code} leaves fixed are not the base's: "
            f"{some(moved)}. A delta without them would give another model. Where the freeze was broken, "
            "freezing_proof names the cause: train again. Where another plan trained, save with that plan. "
            "Where all differ, the base is another model."
        )


# --- load --------------------------------------------------------------------------


def load_delta(
    path: str | Path,
    base_model: nn.Module,
    *,
    tokenizer=None,
    in_place: bool = False,
    share: float | dict[str, float] = 1.0,
) -> nn.Module:
    """The trained model: the base with the delta's tensors, bit-identical to the one that was saved.

    Args:
        path: the file, or its folder.
        base_model: stays as it is, unless ``in_place``, which saves the memory of a copy.
        tokenizer: where given, it must be the one of the training.
        share: how much of the change to take, from 0 (base) to 1, or selector to share: see `rewinding.rewind`.

    Raises:
        RewindError: a share that cannot be.
        DeltaError: a damaged file, another base or another tokenizer. The message names the
            difference, and the base is untouched.
        NoValuesError: the base is on the meta device.
    """
    place = place_of(path)
    return lay_over(read_delta(place), place, base_model, tokenizer=tokenizer, in_place=in_place, share=share)


def lay_over(
    delta: Delta,
    place: Path,
    base_model: nn.Module,
    *,
    tokenizer=None,
    in_place: bool = False,
    share: float | dict[str, float] = 1.0,
) -> nn.Module:
    """Put a verified delta on its base, as `load_delta` does; ``place`` is where it stood, for the messages."""
    unlike = differences(delta.base, base_record(base_model))
    if unlike:
        raise DeltaError(
            f"The delta '{place}' belongs to another base: {'; '.join(unlike)}. Load the base that it was "
            f"trained from (weight hash {delta.base.weight_hash[:12]}…), or train on this one."
        )
    parts = anatomy(base_model, delta.roles)
    wanted = delta.plan.trainable_names(parts)
    odd = [
        f"{n} is {'missing' if n in wanted else 'not one of them'}"
        for n in sorted(wanted ^ delta.tensors.keys())
    ]
    if odd:
        raise DeltaError(
            f"The delta '{place}' does not hold the tensors that {delta.plan.code} trains: {some(odd)}. "
            "Save it again from the trained model."
        )
    if tokenizer is not None and delta.tokenizer not in (None, tokenizer_hash(tokenizer)):
        raise DeltaError(
            f"The delta '{place}' was trained with another tokenizer (hash {delta.tokenizer[:12]}…, "
            f"this one {tokenizer_hash(tokenizer)[:12]}…). Load the base's own tokenizer."
        )
    own = dict(named_parameters(base_model))
    unlike = [
        f"{name} is {kind(t)}, in the model {kind(own[name])}"
        for name, t in delta.tensors.items()
        if kind(t) != kind(own[name])
    ]
    if unlike:
        raise DeltaError(
            f"The delta '{place}' does not fit its base: {some(unlike)}. Save it again from the trained "
            "model."
        )
    if tensors_hash(list((own | delta.tensors).items())) != delta.tuned_hash:
        raise DeltaError(
            f"The delta '{place}' gives other weights than were saved. Save it again from the trained model."
        )
    shares_of(parts, share)  # refused before anything changes
    model = base_model if in_place else copy.deepcopy(base_model)
    own = dict(named_parameters(model))
    before = {name: own[name].detach().clone() for name in delta.tensors} if share != 1.0 else {}
    with torch.no_grad():
        for name, tensor in delta.tensors.items():
            own[name].copy_(tensor)
    if before:
        rewind(model, before, share, delta.roles)
    return model


def read_delta(path: str | Path) -> Delta:
    """Read and verify a delta without any model.

    Raises:
        DeltaError: no such file, a damaged or edited one, another kind of file, or another format.
    """
    place = place_of(path)
    header, tensors = opened(place)
    return verified_delta(verified_record(header, place), tensors, place)


def opened(place: Path) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    """Return the header and the tensors of a safetensors file.

    Raises:
        DeltaError: no such file, or one that cannot be read.
    """
    if not place.is_file():
        raise DeltaError(
            f"There is no delta '{place}'. Give the file, or the run folder that holds {FILE_NAME}."
        )
    try:
        place.open("rb").close()  # safetensors takes a file that may not be read for one that is not there
        with safe_open(place, framework="pt") as file:
            header = file.metadata() or {}
            return header, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except PermissionError as error:
        raise DeltaError(
            f"'{place}' cannot be read: {error.strerror}. Ask its owner for the right to read it."
        ) from error
    except (OSError, SafetensorError) as error:
        raise DeltaError(
            f"'{place}' cannot be read: {error}. It was cut short or changed, or it is no safetensors "
            "file: copy or save it again."
        ) from error


def verified_delta(record: dict, tensors: dict[str, torch.Tensor], place: Path) -> Delta:
    """Return the delta of a verified record, each tensor checked against its hash.

    Raises:
        DeltaError: the record lacks a field, or a tensor is not the one that was saved.
    """
    try:
        return _delta(record, tensors, place)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DeltaError(
            f"'{place}' holds no delta that can be read: its record fits its hash, but lacks what a delta "
            f"needs ({type(error).__name__}: {error}). Save it again from the trained model."
        ) from error


def _delta(record: dict, tensors: dict[str, torch.Tensor], place: Path) -> Delta:
    """The delta of a verified record, each tensor checked against its hash."""
    for path, wanted in _FIELDS.items():
        part = record
        for name in path.split("."):
            part = part[name]
        if not isinstance(part, wanted):
            raise TypeError(f"'{path}' is {type(part).__name__}")
    names = tensors.keys() | record["tensors"].keys()
    changed = [
        n for n in sorted(names) if n not in tensors or tensor_hash(tensors[n]) != record["tensors"].get(n)
    ]
    if changed:
        raise DeltaError(
            f"'{place}' was damaged or edited: the hash of {some(changed)} does not fit. "
            "Copy or save it again."
        )
    plan = FreezePlan(record["plan"]["way"], tuple(record["plan"]["selectors"]))
    return Delta(
        plan,
        record["roles"],
        record["counts"],
        record["n_parameters"],
        BaseRecord(**record["base"]),
        record["tokenizer"],
        record["tuned_hash"],
        tensors,
    )


def verified_record(header: dict[str, str], place: Path) -> dict:
    """Return the record of a delta's header, checked against its own hash.

    Raises:
        DeltaError: no record, a changed one, or another format.
    """
    if "delta" not in header:
        raise DeltaError(
            f"'{place}' is no delta: its header has no 'delta' entry. A whole model is loaded with "
            "models.load_model."
        )
    try:
        record = json.loads(header["delta"])
        own = record.pop("own_sha256")
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise DeltaError(
            f"'{place}' was damaged or edited: its record is unreadable ({error}). Copy or save it again."
        ) from error
    if own != record_hash(record):
        raise DeltaError(
            f"'{place}' was damaged or edited: its record does not fit its own hash. Copy or save it again."
        )
    if record.get("format") != FORMAT:
        raise DeltaError(
            f"'{place}' has format version {record.get('format')}; this course reads {FORMAT}. Use the "
            "version of the course that wrote it, or save it again."
        )
    return record


def place_of(path: str | Path) -> Path:
    if isinstance(path, str) and not path.strip():  # it would be the current folder
        raise DeltaError(f"The place of a delta is {path!r}, which names nothing. Give a name.")
    place = as_path(path, "The place of a delta")
    return place if place.suffix == ".safetensors" else place / FILE_NAME
