"""Take a delta home: as an adapter that stock PEFT reads, or merged into a model that plain transformers reads.

    export_peft("RUN/delta.safetensors", base, "ADAPTER")
    PeftModel.from_pretrained(base, "ADAPTER").merge_and_unload()    # PEFT alone: the tuned weights, bit for bit
    tuned = import_peft("ADAPTER", base)                             # ours: refuses another base
    export_merged("RUN/delta.safetensors", base, "MODEL")            # read by AutoModelForCausalLM

PEFT's kind "LN_TUNING" puts a trained copy of a module beside the module, and the merge swaps the two: no product,
no rounding. It was made for LayerNorms (Zhao and others 2023, arXiv 2312.11420), but it copies any module.
So the adapter holds the delta's own tensors, and nothing else; of a tied head that trains, a second copy.
PEFT itself loads an adapter on any base without a word. The delta's record, with the base's hash, is therefore
in the header of the adapter's file, and `import_peft` checks it.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import nn

from helpers import profiles
from helpers.files import as_path, write_tensors
from helpers.models import load_model, load_tokenizer, named_modules, named_parameters, unwrapped
from helpers.training.deltas import (
    DeltaError,
    lay_over,
    load_delta,
    opened,
    place_of,
    read_delta,
    some,
    verified_delta,
    verified_record,
)

WEIGHTS = "adapter_model.safetensors"  # PEFT's name of the file
IN_FRONT, COPY = "base_model.model.", "ln_tuning_layers"  # how PEFT names a tensor of such an adapter

DTYPES = ("float32", "bfloat16", "float16")


def export_peft(
    delta: str | Path, base: nn.Module, folder: str | Path, *, base_name: str | None = None
) -> Path:
    """Write a delta as a PEFT adapter, bit for bit; returns the folder.

    Args:
        delta: the file, or the run folder that holds it.
        base: the model that it belongs to; only its names are read, so one on the meta device serves.
        folder: where ``adapter_config.json`` and ``adapter_model.safetensors`` go.
        base_name: what the config calls the base: a folder or hub name.

    Raises:
        DeltaError: a delta that cannot be read, that has tensors which the base has not, or whose modules
            lie within each other or have no weight; or a folder that is not empty or cannot be written.
    """
    from peft import LNTuningConfig

    place = place_of(delta)
    header, stored = opened(place)
    tensors = verified_delta(verified_record(header, place), stored, place).tensors
    names = _all_names(base, tensors, place)
    modules = sorted({name.rpartition(".")[0] for name in names})
    _require_apart(modules)
    _require_weights(base, modules)
    config = LNTuningConfig(
        task_type="CAUSAL_LM", target_modules=modules, base_model_name_or_path=base_name, inference_mode=True
    )
    copies = {_peft_name(name): tensors[first].clone() for name, first in names.items()}
    folder = _new_folder(folder)
    try:
        write_tensors(folder / WEIGHTS, copies, {**header, "format": "pt"})
        config.save_pretrained(str(folder))
    except (OSError, SafetensorError) as error:
        raise DeltaError(f"Could not write the adapter '{folder}': {error}. Choose another place.") from error
    return folder


def import_peft(
    folder: str | Path, base_model: nn.Module, *, tokenizer=None, in_place: bool = False
) -> nn.Module:
    """Return the tuned model of an adapter that `export_peft` wrote: the base with the delta's tensors.

    Args:
        base_model: stays as it is, unless ``in_place``.
        tokenizer: where given, it must be the one of the training.

    Raises:
        DeltaError: a damaged adapter, one that `export_peft` did not write, or another base or tokenizer.
    """
    place = as_path(folder, "The place of an adapter") / WEIGHTS
    if not place.is_file():
        raise DeltaError(
            f"There is no adapter in '{folder}': {WEIGHTS} is missing. Give the adapter's folder."
        )
    header, stored = opened(place)
    if "delta" not in header:
        raise DeltaError(
            f"'{folder}' holds a PEFT adapter that this course did not write: it has no record of its base. "
            "Load it with peft's PeftModel.from_pretrained."
        )
    record = verified_record(header, place)
    tensors = {_plain_name(name): tensor for name, tensor in stored.items()}
    own = {name: tensor for name, tensor in tensors.items() if name in record["tensors"]}
    copies = {name: tensor for name, tensor in tensors.items() if name not in own}
    strange = [
        name for name, copy in copies.items() if not any(_same(copy, tensor) for tensor in own.values())
    ]
    if strange:
        raise DeltaError(f"'{place}' was damaged or edited: {some(strange)} is no tensor of the delta.")
    return lay_over(
        verified_delta(record, own, place), place, base_model, tokenizer=tokenizer, in_place=in_place
    )


def export_merged(
    delta: str | Path,
    base: nn.Module,
    folder: str | Path,
    *,
    dtype: torch.dtype | None = None,
    tokenizer=None,
) -> Path:
    """Write base and delta as one model that plain transformers reads; returns the folder.

    Args:
        base: stays as it is.
        dtype: of the stored weights; None keeps that of the base. A cast rounds each number once.
        tokenizer: stored beside the weights, where given.

    Raises:
        DeltaError: as `load_delta` raises it, a type that has no room for a weight, or a folder that is not empty or
            cannot be written.
    """
    model = unwrapped(load_delta(delta, base, tokenizer=tokenizer))
    if dtype is not None:
        _require_room(model, dtype)
        model = model.to(dtype)
    folder = _new_folder(folder)
    try:
        for part in (model, tokenizer):
            if part is not None:
                part.save_pretrained(str(folder))
        for weights in folder.glob("*.safetensors"):  # safetensors lets their owner alone read them
            shutil.copymode(folder / "config.json", weights)
    except (OSError, SafetensorError) as error:
        raise DeltaError(f"Could not write the model '{folder}': {error}. Choose another place.") from error
    return folder


def export_delta(
    delta: str | Path,
    folder: str | Path,
    form: str = "peft",
    dtype: str | None = None,
    profile: str | None = None,
    model: str | None = None,
) -> str:
    """Do what `course export` asks for; return one line that says what was written and what reads it.

    Args:
        form: "peft" or "merged".
        dtype: "bfloat16", "float16" or "float32" of a merged model; None keeps the base's.
        profile, model: which base, as for a run.

    Raises:
        DeltaError: another form or type, or as `load_delta` raises it.
        ModelError, ProfileError: no such base.
    """
    if form not in ("peft", "merged"):
        raise DeltaError(f"Format '{form}' is not known. Choose peft or merged.")
    if dtype not in (None, *DTYPES):
        raise DeltaError(f"Type '{dtype}' is not known. Types: {', '.join(DTYPES)}.")
    if form == "peft" and dtype is not None:
        raise DeltaError("An adapter keeps the type of its delta. Give --dtype with --format merged alone.")
    source = str(profiles.current(profile, model).model)
    base = load_model(source, device="cpu")
    if form == "merged":
        kind = None if dtype is None else getattr(torch, dtype)
        export_merged(delta, base, folder, dtype=kind, tokenizer=load_tokenizer(source))
        return f'{folder}: AutoModelForCausalLM.from_pretrained("{folder}")'
    # the base's hash, before anything is written
    lay_over(read_delta(delta), place_of(delta), base, in_place=True)
    export_peft(delta, base, folder, base_name=source)
    return f'{folder}: PeftModel.from_pretrained(base, "{folder}"), the base is {source}'


# --- checked before anything is written --------------------------------------------


def _new_folder(folder: str | Path) -> Path:
    """Make a folder that holds nothing yet. Raises DeltaError where it holds something: that is not overwritten."""
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        inside = sorted(path.name for path in folder.iterdir())
    except (OSError, ValueError) as error:
        raise DeltaError(f"Could not write into '{folder}': {error}. Choose another place.") from error
    if inside:
        raise DeltaError(
            f"The folder '{folder}' holds {some(inside)}, and nothing is overwritten. Choose a new or an empty folder."
        )
    return folder


def _require_room(model: nn.Module, dtype: torch.dtype) -> None:
    """Raise DeltaError where a type has no room for a weight: the cast would make it infinite."""
    most = torch.finfo(dtype).max
    beyond = [name for name, weight in named_parameters(model) if weight.abs().max() > most]
    if beyond:
        raise DeltaError(
            f"{str(dtype).removeprefix('torch.')} ends at {most:g}, and {some(beyond)} holds larger numbers: they would "
            "become infinite. Take bfloat16, or keep the base's type."
        )


# --- PEFT's names ------------------------------------------------------------------


def _all_names(base: nn.Module, tensors: dict[str, torch.Tensor], place: Path) -> dict[str, str]:
    """Return every name of each tensor of a delta, a tied head's as well, with the name in the delta."""
    first_of = {id(parameter): name for name, parameter in named_parameters(base)}
    every = {name: first_of[id(p)] for name, p in named_parameters(base, every_name=True)}
    missing = sorted(tensors.keys() - set(every.values()))
    if missing:
        raise DeltaError(
            f"The delta '{place}' belongs to another base: this one has no {some(missing)}. Give the base that "
            "it was trained from."
        )
    return {name: first for name, first in every.items() if first in tensors}


def _require_apart(modules: list[str]) -> None:
    """Raise DeltaError where one module lies in another: PEFT would copy the inner one twice."""
    inner = [one for one in modules if any(one != other and one.startswith(f"{other}.") for other in modules)]
    if inner or "" in modules:
        raise DeltaError(
            f"PEFT cannot hold this delta: {some(inner or modules)} lies within another module that trains. Merge it "
            "instead: export_merged."
        )


def _require_weights(base: nn.Module, modules: list[str]) -> None:
    """Raise DeltaError where a module has no tensor "weight": PEFT would load the copy, and fail to put it in."""
    inside = named_modules(base)
    without = [name for name in modules if not hasattr(inside[name], "weight")]
    if without:
        raise DeltaError(
            f"PEFT cannot hold this delta: {some(without)} has no tensor of the name weight, as a mixture's experts "
            "have none. Merge it instead: export_merged."
        )


def _peft_name(name: str) -> str:
    """Like "base_model.model.lm_head.ln_tuning_layers.weight" of "lm_head.weight"."""
    module, _, own = name.rpartition(".")
    return f"{IN_FRONT}{module}.{COPY}.{own}"


def _plain_name(name: str) -> str:
    """The model's own name of a tensor in an adapter."""
    return name.removeprefix(IN_FRONT).replace(f".{COPY}.", ".")


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Return whether two tensors have the same type, shape and values."""
    return one.dtype == other.dtype and one.shape == other.shape and torch.equal(one, other)
