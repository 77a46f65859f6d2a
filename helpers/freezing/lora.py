"""LoRA by hand: a trained change of low rank beside each frozen matrix (Hu and others 2021, arXiv 2106.09685).

insert(model, "attention", rank=10, alpha=20)    B is zero: the model computes what it did before
fit(model, LORA_PLAN, windows, settings)         trains A and B alone, and proves it
save_adapter(model, folder)                      the two factors of each layer; the base is not in the file
merge(model)                                     W + (alpha / r) B A: no extra work at inference
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

from helpers.files import (
    bytes_hash,
    counted,
    file_hash,
    read_record,
    record_hash,
    require_whole,
    verified,
    write_tensors,
)
from helpers.freezing.plans import FreezePlan
from helpers.freezing.selectors import parse_selectors, select
from helpers.models import (
    Anatomy,
    Entry,
    anatomy,
    build_on_meta,
    named_modules,
    named_parameters,
    next_token_logits,
    own_precision,
    require_seed,
    seeded,
    tensors_hash,
)

FORMAT = 2
FILE_NAME = "adapter.safetensors"
FACTORS = (".lora_A", ".lora_B")  # how the names of the two factors end
LORA_PLAN = FreezePlan.only("lora")  # A and B train, the whole base stays fixed


class LoraError(ValueError):
    """A layer, rank or adapter file that cannot be used. The message says what to do."""


class LoRALinear(nn.Linear):
    """y = W x + b + (alpha / r) B A x. W and b are the tensors of the layer it replaces."""

    def __init__(self, linear: nn.Linear, rank: int, alpha: float):
        super().__init__(linear.in_features, linear.out_features, device="meta")
        self.weight = linear.weight  # (out, in), not a copy: names, ties and hashes stay
        self.bias = linear.bias  # (out,) or None
        A = nn.init.kaiming_uniform_(torch.empty(rank, linear.in_features), a=math.sqrt(5))
        B = torch.zeros(linear.out_features, rank)
        self.lora_A = nn.Parameter(A.to(linear.weight))  # (r, in), random
        self.lora_B = nn.Parameter(B.to(linear.weight))  # (out, r), zero: no change at first
        self.rank = rank
        self.alpha = alpha
        self.kept = None  # W, while the change is merged into it

    def change(self) -> torch.Tensor:
        """Return (alpha / r) B A, what is added to W: of rank r at most."""
        return self.alpha / self.rank * self.lora_B @ self.lora_A  # (out, in)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = super().forward(x)  # (batch, time, in) -> (batch, time, out)
        if self.kept is not None:  # merged: W has the change in it
            return y
        return y + self.alpha / self.rank * (x @ self.lora_A.T @ self.lora_B.T)  # as y


# --- which layers, how many parameters ---------------------------------------------


def targets(parts: Anatomy, where: str) -> list[Entry]:
    """Return the matrices that a selector takes, such as "attention", "q+v" or "mlp@0-5".

    The selectors are those of `helpers.freezing.selectors`.

    Raises:
        PlanError: a selector that is not known or finds nothing; the message lists what there is.
        LoraError: it takes an embedding, a tensor with two names, or no matrix at all.
    """
    names = frozenset()
    for selector in parse_selectors(where):
        names |= select(parts, selector)
    chosen = [entry for entry in parts.entries if entry.name in names]
    matrices = [entry for entry in chosen if len(entry.shape) > 1 and entry.part != "lora"]
    for entry in matrices:
        if entry.role.endswith("_embedding") or entry.aliases:
            also = f", which is {', '.join(entry.aliases)} as well" if entry.aliases else ""
            raise LoraError(
                f"'{where}' takes {entry.name}{also}. LoRA here is for linear layers with a weight of "
                "their own: choose 'attention', 'mlp' or parts of them."
            )
    if not matrices:
        raise LoraError(
            f"'{where}' takes no matrix, only vectors: LoRA has nothing to factor there. Choose "
            "'attention', 'mlp' or parts of them."
        )
    return matrices


def n_adapter_parameters(config, where: str, rank: int) -> int:
    """Count the parameters of A and B over all target layers, from the config alone: r (in + out) a layer."""
    require_whole(rank, "LoRA has a rank")
    parts = anatomy(build_on_meta(config))
    n_in_and_out = sum(sum(entry.shape) for entry in targets(parts, where))
    return rank * n_in_and_out


def equal_ranks(config, where: str, other: str) -> tuple[int, int]:
    """Return the smallest two ranks that give both places exactly as many parameters; multiples fit as well."""
    n = n_adapter_parameters(config, where, rank=1)
    m = n_adapter_parameters(config, other, rank=1)
    common = math.gcd(n, m)
    return m // common, n // common


# --- into a model and out of it ----------------------------------------------------


def insert(model: nn.Module, where: str, rank: int, alpha: float, seed: int = 0) -> list[str]:
    """Put a `LoRALinear` in the place of each target layer, and return the names of these layers.

    The model's output does not change (B is zero), and neither do its tensors' names.
    Freezing is left to a plan: `LORA_PLAN`.

    Args:
        where: as for `targets`.
        seed: of the random A; the caller's own random state is left as it was.

    Raises:
        LoraError: a rank or layer that does not fit, or a layer that the model does not call. The model is then unchanged.
        ModelError: a seed that is none; unchanged as well.
    """
    require_seed(seed)
    linears = {}
    for entry in targets(anatomy(model), where):
        name = entry.name.removesuffix(".weight")
        linears[name] = _linear(model, entry, rank, alpha)
    _require_called(model, linears)
    with seeded(seed):
        layers = {name: LoRALinear(linear, rank, alpha) for name, linear in linears.items()}
    for name, layer in layers.items():
        _replace(model, name, layer)
    return list(layers)


def layers_of(model: nn.Module) -> dict[str, LoRALinear]:
    """Return the model's LoRA layers by name.

    Raises:
        LoraError: it has none.
    """
    modules = named_modules(model)
    layers = {name: module for name, module in modules.items() if isinstance(module, LoRALinear)}
    if not layers:
        raise LoraError(
            "This model has no LoRA layer. Call insert(model, 'attention', rank=…, alpha=…) first."
        )
    return layers


@torch.no_grad()
def merge(model: nn.Module) -> None:
    """Add each change to its W, so that inference costs what the base costs. Nothing to do where it is done."""
    for layer in layers_of(model).values():
        if layer.kept is None:
            layer.kept = layer.weight.clone()
            with own_precision(layer.weight.device.type):
                layer.weight += layer.change()


@torch.no_grad()
def unmerge(model: nn.Module) -> None:
    """Put each W back, bit for bit (from a copy: subtracting the change would leave rounding behind)."""
    for layer in layers_of(model).values():
        if layer.kept is not None:
            layer.weight.copy_(layer.kept)
            layer.kept = None


def unload(model: nn.Module) -> None:
    """Put plain linear layers back, with the weights as they are: with the change after `merge`, else without."""
    for name, layer in layers_of(model).items():
        linear = nn.Linear(layer.in_features, layer.out_features, device="meta")
        linear.train(layer.training)
        linear.weight = layer.weight
        linear.bias = layer.bias
        _replace(model, name, linear)


def _linear(model: nn.Module, entry: Entry, rank: int, alpha: float) -> nn.Linear:
    """Return the layer of a target, if LoRA with these numbers fits it."""
    layer = named_modules(model)[entry.name.rpartition(".")[0]]
    if isinstance(layer, LoRALinear):
        raise LoraError(
            f"{entry.name} has LoRA already. Start from a fresh model, or call unload(model) first."
        )
    if not isinstance(layer, nn.Linear) or "weight" not in dict(layer.named_parameters(recurse=False)):
        raise LoraError(
            f"{entry.name} belongs to a {type(layer).__name__}; LoRA here is for nn.Linear. Choose parts that are "
            "linear layers, or use PEFT, which knows more kinds (GPT-2's Conv1D with fan_in_fan_out=True)."
        )
    shape = (layer.out_features, layer.in_features)
    if not layer.weight.is_floating_point() or tuple(layer.weight.shape) != shape:
        raise LoraError(
            f"{entry.name} is packed ({str(layer.weight.dtype).removeprefix('torch.')}): its factors could "
            "not be made in its own type. Load the model in float32 or bfloat16."
        )
    if not isinstance(rank, int) or isinstance(rank, bool) or not 1 <= rank <= min(entry.shape):
        raise LoraError(
            f"The rank must be a whole number from 1 to {min(entry.shape)}, the smaller side of "
            f"{entry.name}; found {rank!r}."
        )
    if not (isinstance(alpha, (int, float)) and math.isfinite(alpha) and alpha > 0):
        raise LoraError(f"alpha must be above 0; found {alpha!r}. A usual choice is twice the rank.")
    return layer


@torch.no_grad()
def _require_called(model: nn.Module, linears: dict[str, nn.Linear]) -> None:
    """Refuse layers that the model's forward does not call: it reads their matrix itself, past what stands beside it.

    Three tokens are run. On tensors without values nothing can be run, and nothing is asked.
    """
    if any(p.is_meta or isinstance(p, FakeTensor) for p in model.parameters()):
        return
    called = set()
    hooks = [
        linear.register_forward_pre_hook(lambda module, given: called.add(module))
        for linear in linears.values()
    ]
    device = next(model.parameters()).device
    try:
        # A compiled part passes over hooks: here it runs as it is written.
        with seeded(0), torch.compiler.set_stance("force_eager"):
            next_token_logits(model, torch.zeros(1, 3, dtype=torch.long, device=device))
    finally:
        for hook in hooks:
            hook.remove()
    past = [name for name, linear in linears.items() if linear not in called]
    if past:
        raise LoraError(
            f"The model does not call {past[0]} ({counted(len(past), 'such layer')}): its forward reads the matrix "
            "itself, so what stands beside it would change nothing. Choose other parts."
        )


def _replace(model: nn.Module, name: str, layer: nn.Module) -> None:
    """Put a layer in the place of the one with this name."""
    parent, _, child = name.rpartition(".")
    setattr(named_modules(model)[parent], child, layer)


# --- the adapter file --------------------------------------------------------------


def base_hash(model: nn.Module) -> str:
    """Return `models.weight_hash` of the model as it would be without LoRA."""
    base = []
    for name, parameter in named_parameters(model):
        if not name.endswith(FACTORS):
            base.append((name, parameter))
    return tensors_hash(base)


def save_adapter(model: nn.Module, folder: str | Path) -> Path:
    """Write ``adapter.safetensors``: all A and B, and in its header what they belong to.

    An older adapter there stays until the new one is whole: one file, one rename.

    Raises:
        LoraError: no LoRA in the model, its change is merged into W, or the folder cannot be written.
    """
    layers = layers_of(model)
    folder = Path(folder)
    if any(layer.kept is not None for layer in layers.values()):
        raise LoraError(
            "The change is merged into the weights. Call unmerge(model) before you save the adapter."
        )
    tensors = _factors(layers)
    record = {
        "format": FORMAT,
        "base": base_hash(model),
        "tensors": _content_hash(tensors),
        "layers": {name: {"rank": layer.rank, "alpha": layer.alpha} for name, layer in layers.items()},
    }
    header = {"adapter": json.dumps({**record, "own_sha256": record_hash(record)})}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_tensors(folder / FILE_NAME, tensors, header)
    except (OSError, SafetensorError) as error:
        raise LoraError(
            f"Could not save the adapter in '{folder}': {error}. Free some space or choose another folder."
        ) from error
    return folder


def load_adapter(model: nn.Module, folder: str | Path) -> None:
    """Put a saved adapter into the base that it was trained on, bit for bit.

    Raises:
        LoraError: a damaged or foreign file, or another base. The model is then unchanged.
    """
    record, tensors = _read(Path(folder))
    if record["base"] != base_hash(model):
        raise LoraError(
            f"The adapter in '{folder}' was trained on the base {record['base'][:12]}…, and this model is "
            f"{base_hash(model)[:12]}…. Load the base that it belongs to."
        )
    parts = anatomy(model)
    layers = {}
    with seeded(0):  # a new layer starts at random: the caller's random state stays
        for name, numbers in record["layers"].items():
            linear = _linear(model, parts.entry(f"{name}.weight"), **numbers)
            layers[name] = LoRALinear(linear, **numbers)
    _require_shapes(layers, tensors, folder)
    for name, layer in layers.items():
        layer.lora_A.data.copy_(tensors[f"{name}.lora_A"])
        layer.lora_B.data.copy_(tensors[f"{name}.lora_B"])
        _replace(model, name, layer)


def _factors(layers: dict[str, LoRALinear]) -> dict[str, nn.Parameter]:
    """Return A and B of each layer by name, as the file holds them."""
    tensors = {}
    for name, layer in layers.items():
        tensors[f"{name}.lora_A"] = layer.lora_A
        tensors[f"{name}.lora_B"] = layer.lora_B
    return tensors


def _require_shapes(
    layers: dict[str, LoRALinear], tensors: dict[str, torch.Tensor], folder: str | Path
) -> None:
    """Raise LoraError unless the file has both factors of each layer, in their shapes, and nothing else."""
    wanted = {name: tuple(tensor.shape) for name, tensor in _factors(layers).items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    odd = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
    if odd:
        raise LoraError(
            f"The adapter in '{folder}' does not fit its own record: {odd[0]} is {found.get(odd[0])}, "
            f"{wanted.get(odd[0])} is wanted. Save it again."
        )


def _read(folder: Path) -> tuple[dict, dict[str, torch.Tensor]]:
    """Read an adapter: its record, and its tensors by name."""
    try:
        with safe_open(folder / FILE_NAME, framework="pt") as file:
            header = (file.metadata() or {}).get("adapter")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if header is None:
            return _older_record(folder), tensors
        record = verified(json.loads(header), FORMAT, f"the record in {FILE_NAME}")
        if _content_hash(tensors) != record["tensors"]:
            raise ValueError(f"{FILE_NAME} was changed")
        return record, tensors
    except (OSError, ValueError, KeyError, RecursionError, SafetensorError) as error:
        raise LoraError(
            f"'{folder}' holds no adapter that can be read: it was changed or cut short, or there is none "
            f"({error}). Save it again."
        ) from error


def _older_record(folder: Path) -> dict:
    """Read the record of an adapter of format 1, which stood in a file of its own."""
    record = read_record(folder / "adapter.json", 1)
    if file_hash(folder / FILE_NAME) != record["sha256"]:
        raise ValueError(f"{FILE_NAME} does not belong to adapter.json")
    return record


def _content_hash(tensors: dict[str, torch.Tensor]) -> str:
    """Hash type, shape and bytes of each tensor."""
    contents = {}
    for name, tensor in tensors.items():
        contents[name] = [str(tensor.dtype), list(tensor.shape), bytes_hash(tensor)]
    return record_hash(contents)
