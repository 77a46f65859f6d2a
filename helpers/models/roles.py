"""What each parameter of a decoder is for: one role per tensor, a tied tensor counted once.

Names are read component by component ("attn", "c_proj"), never as substrings:
GPT-2's ``c_proj`` is attention inside ``attn`` and MLP inside ``mlp``, and an
"embed" rule would miss GPT-Neo's ``wte``. A name that no rule knows is an error.

Roles go by what a tensor does for the stream of vectors. So the role "attention" is held by all that mixes
positions: in Mamba, RWKV and the hybrids the recurrent or convolutional mixer stands in attention's place.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property

import pandas as pd
import torch
from torch import nn

from helpers.files import counted
from helpers.models.names import named_parameters

ROLES = ("attention", "mlp", "norm", "token_embedding", "position_embedding", "head")

_CONTAINERS = dict.fromkeys(
    (
        "attn",
        "attention",
        "self_attn",
        "self_attention",
        "self_att",
        "multi_head_attention",
        "linear_attn",
        "mamba",
        "temporal_block",
        "conv",
        "mlstm_layer",
    ),
    ("attention",),
)
_CONTAINERS |= dict.fromkeys(
    ("mlp", "ffn", "feed_forward", "block_sparse_moe", "moe", "mlps", "mlp_block", "shared_mlp"), ("mlp",)
)
_CONTAINERS["mixer"] = ("mlp", "attention")  # Nemotron-H names every kind of layer so

# role -> part -> the modules that carry it in the families that transformers has
_PARTS = {
    "attention": {
        "q": "q_proj q_a_proj q_b_proj Wq query project_q q",
        "k": "k_proj Wk key project_k k",
        "v": "v_proj Wv value project_v v",
        "qkv": "c_attn query_key_value qkv_proj Wqkv",
        "kv": "kv_a_proj_with_mqa kv_b_proj kv_proj",
        "attention-out": "out_proj o_proj c_proj dense output Wo attention_out linear_out output_linear",
        "sinks": "sinks",
        "attention-gate": "gate gate_proj q_gate_proj output_gate lambda_q1 lambda_k1 lambda_q2 lambda_k2",
        "indexer": "wq_b wk weights_proj",  # sparse attention: which positions to look at
        # state-space, recurrent and convolutional mixers, and linear attention
        "mixer": "in_proj x_proj dt_proj conv1d conv_1d conv A_log A D dt a_proj b_proj g_proj "
        "g_a_proj g_b_proj f_proj f_a_proj f_b_proj in_proj_a in_proj_b in_proj_ba in_proj_z "
        "in_proj_qkv in_proj_qkvz linear_x linear_y input_gate recurrent_gate recurrent_param "
        "fgate_preact igate_preact ogate_preact time_decay time_first time_mix_key "
        "time_mix_value time_mix_receptance receptance",
    },
    "mlp": {
        "mlp-in": "c_fc fc1 fc_in up_proj dense_h_to_4h w3 gate_up_proj Wi w_1 proj_up input_linear key "
        "gate_up_proj_adapter_list",
        "mlp-gate": "gate_proj w1 w_0 proj_up_gate receptance time_mix_key time_mix_receptance",
        "mlp-out": "c_proj fc2 fc_out down_proj dense_4h_to_h w2 Wo w_out proj_down output_linear value",
        "activation": "alpha_p alpha_n",
        "router": "gate router shared_expert_gate expert e_score_correction",
    },
}
_INSIDE = {
    (role, module): part
    for role, parts in _PARTS.items()
    for part, modules in parts.items()
    for module in modules.split()
}
_BARE = {
    "fc1": ("mlp", "mlp-in"),
    "fc2": ("mlp", "mlp-out"),  # OPT's MLP has no module of its own
    "mlp": ("mlp", "mlp-out"),  # JetMoe's bias after its experts
    "linear": ("attention", "mixer"),  # Zamba's way from its shared block into a layer
    "input_residual": ("norm", "norm"),
    "post_attention_residual": ("norm", "norm"),
}  # Doge's scales
# wrap a layer, or hold one for each head, and say nothing of its role
_THROUGH = ("linear", "layer", "classifier", "norms")
_OUTSIDE = {
    **dict.fromkeys(
        (
            "wte",
            "embed_tokens",
            "embed_in",
            "word_embeddings",
            "tokens_embed",
            "embeddings",
            "input_embedding",
        ),
        ("token_embedding", "token"),
    ),
    **dict.fromkeys(
        ("wpe", "embed_positions", "position_embeddings", "positions_embed"),
        ("position_embedding", "position"),
    ),
    **dict.fromkeys(("lm_head", "embed_out", "output_projection", "head"), ("head", "head")),
    # OPT-350m keeps its token vectors narrower than its blocks.
    "project_in": ("token_embedding", "token"),
    "project_out": ("head", "head"),
}
# ln_1, q_norm, post_attention_layernorm
_NORM = re.compile(r"(\w+_)?(ln|norm|layernorm)(_?\d+|_f|_attn|_mlp|_ffn|_mlstm|_out|_before_\w+)?")
_DEFAULT_PART = {
    "attention": "attention",
    "mlp": "mlp",
    "norm": "norm",
    "token_embedding": "token",
    "position_embedding": "position",
    "head": "head",
}


class AnatomyError(ValueError):
    """A parameter without a known role, or a name the model does not have. The message says what to do."""


@dataclass(frozen=True)
class Entry:
    """One parameter tensor of a model.

    Attributes:
        name: as in ``model.named_parameters()``, without what a wrapper added (`names.plain_name`).
        role: one of `ROLES`.
        layer: index of its block, or None outside the blocks.
        part: finer than the role: "q", "k", "v", "qkv", "attention-out", "mixer", "mlp-in", "mlp-gate",
            "mlp-out", "router", "norm", "token", "position", "head"; weight and bias share it. "lora" for
            the two factors that `helpers.freezing.lora` adds to a layer, whose role they take.
        aliases: other names of the same tensor, such as a tied "lm_head.weight".
        tied_head: True for a token embedding that is the output head as well.
    """

    name: str
    role: str
    layer: int | None
    part: str
    shape: tuple[int, ...]
    n_parameters: int
    aliases: tuple[str, ...] = ()
    tied_head: bool = False


@dataclass(frozen=True)
class Anatomy:
    """All parameters of a model, in the order of ``named_parameters()``."""

    entries: tuple[Entry, ...]
    n_layers: int

    @property
    def n_parameters(self) -> int:
        return sum(entry.n_parameters for entry in self.entries)

    def count(self, role: str) -> int:
        """Parameters with this role; 0 where the model has none."""
        if role not in ROLES:
            raise AnatomyError(f"Role '{role}' is not known. Roles: {', '.join(ROLES)}.")
        return sum(entry.n_parameters for entry in self.entries if entry.role == role)

    def counts(self) -> dict[str, int]:
        """Role to its number of parameters, for the roles that the model has."""
        present = {entry.role for entry in self.entries}
        return {role: self.count(role) for role in ROLES if role in present}

    def names(self) -> tuple[str, ...]:
        return tuple(entry.name for entry in self.entries)

    @cached_property
    def _by_name(self) -> dict[str, Entry]:
        return {name: entry for entry in self.entries for name in (entry.name, *entry.aliases)}

    def entry(self, name: str) -> Entry:
        """The entry with this name; a tied tensor is found under each of its names.

        Raises:
            AnatomyError: the model has no such parameter; the message lists the nearest names.
        """
        if name not in self._by_name:
            near = difflib.get_close_matches(name, self._by_name, n=3)
            hint = f" Nearest: {', '.join(near)}." if near else ""
            raise AnatomyError(f"The model has no parameter '{name}'.{hint}")
        return self._by_name[name]

    def table(self) -> pd.DataFrame:
        """One row per role: tensors, parameters, and share of all parameters (0 to 1)."""
        return pd.DataFrame(
            [
                {
                    "role": role,
                    "tensors": sum(entry.role == role for entry in self.entries),
                    "parameters": n,
                    "share": n / self.n_parameters,
                }
                for role, n in self.counts().items()
            ]
        ).set_index("role")


def anatomy(model: nn.Module, roles: dict[str, str] | None = None) -> Anatomy:
    """Give each parameter of a causal language model its role.

    Args:
        model: any decoder of transformers, on any device; shapes are enough, so the meta device serves.
        roles: for names that the rules do not know: pattern to role, as in
            ``{"transformer.h.*.adapter.*": "mlp"}`` (see `matches`). These win over the rules.

    Raises:
        AnatomyError: a parameter without a role, a pattern that matches nothing,
            two patterns that disagree, a role that does not exist, or a packed tensor, whose
            numbers are not the matrix's.
    """
    tensors = _names_by_tensor(model)
    _require_unpacked(tensors)
    given = _given_roles(roles or {}, [name for names, _ in tensors for name in names])
    pairs = {name: given.get(name) or _known(name) for names, _ in tensors for name in names}
    unknown = [name for name, pair in pairs.items() if pair is None]
    if unknown:
        raise AnatomyError(_unknown_message(unknown))
    entries = tuple(_entry(names, parameter, {pairs[name] for name in names}) for names, parameter in tensors)
    return Anatomy(entries, 1 + max((e.layer for e in entries if e.layer is not None), default=-1))


def matches(pattern: str, name: str) -> bool:
    """Does a glob match a whole dotted name? ``*`` stays within one component, ``**`` is any number of them.

    So "h.1.*" never takes "h.10.weight", and "norm" never takes "input_norm.weight".
    """
    parts = name.split(".")
    taken = {0}  # how many components the pattern so far can take: one walk, however many stars
    for piece in pattern.split("."):
        if piece == "**":
            taken = set(range(min(taken), len(parts) + 1)) if taken else taken
        else:
            taken = {n + 1 for n in taken if n < len(parts) and fnmatchcase(parts[n], piece)}
    return len(parts) in taken


def starred(names) -> list[str]:
    """Names with each number replaced by ``*``, without repeats: one line for all blocks."""
    return list(dict.fromkeys(".".join("*" if c.isdigit() else c for c in n.split(".")) for n in names))


def _names_by_tensor(model: nn.Module) -> list[tuple[list[str], nn.Parameter]]:
    """Each tensor once, with all its names. By identity: equal values do not tie two tensors."""
    found: dict[int, tuple[list[str], nn.Parameter]] = {}
    for name, parameter in named_parameters(model, every_name=True):
        found.setdefault(id(parameter), ([], parameter))[0].append(name)
    return list(found.values())


def _require_unpacked(tensors: list[tuple[list[str], nn.Parameter]]) -> None:
    """Raise AnatomyError where one stored number stands for several, or a part of one: counts would be wrong."""
    packed = [
        names[0]
        for names, p in tensors
        if hasattr(p, "quant_state")
        or not (p.is_floating_point() or p.is_complex() or p.dtype in (torch.int8, torch.bool))
    ]
    if packed:
        more = f" and {len(packed) - 3} more" if len(packed) > 3 else ""
        raise AnatomyError(
            f"{counted(len(packed), 'tensor', 'is', 'are')} packed (quantised) and cannot be counted by what is stored: "
            f"{', '.join(packed[:3])}{more}. Load the model in float32, float16 or bfloat16."
        )


def _layer(name: str) -> int | None:
    """The first number in a name: a later one counts experts, not blocks."""
    return next((int(part) for part in name.split(".") if part.isdigit()), None)


def _known(name: str) -> tuple[str, str] | None:
    """(role, part) by the rules, or None."""
    parts = name.split(".")
    if parts[-1] in ("lora_A", "lora_B"):
        known = _known(".".join([*parts[:-1], "weight"]))  # the layer that they stand in
        return known and (known[0], "lora")
    if parts[-1] in ("weight", "bias"):
        parts = parts[:-1]
    found = _of_module(parts, _layer(name) is None)
    while found is None and len(parts) > 1 and (parts[-1] in _THROUGH or parts[-1].isdigit()):
        parts = parts[:-1]  # "q_proj.linear" is q_proj, "input_layernorm.0" a norm
        found = _of_module(parts, _layer(name) is None)
    return found


def _of_module(parts: list[str], outside: bool) -> tuple[str, str] | None:
    """(role, part) of a module by its path, or None."""
    module = parts[-1].removesuffix("_bias").removesuffix("_weight") if parts else ""
    if _NORM.fullmatch(module):
        return "norm", "norm"
    if outside:
        return _OUTSIDE.get(module)
    at = next((i for i in reversed(range(len(parts) - 1)) if parts[i] in _CONTAINERS), None)
    if at is None:
        return _BARE.get(module)
    for role in _CONTAINERS[parts[at]]:
        part = _INSIDE.get((role, module))
        if part:
            return role, part
    inside_a_router = "mlp" in _CONTAINERS[parts[at]] and {"gate", "router"} & set(parts[at + 1 : -1])
    return ("mlp", "router") if inside_a_router else None


def _entry(names: list[str], parameter: nn.Parameter, pairs: set[tuple[str, str]]) -> Entry:
    """One tensor's entry, from the (role, part) that each of its names has."""
    tied_head = {role for role, _ in pairs} == {"token_embedding", "head"}
    if tied_head:
        pairs = {("token_embedding", "token")}  # one tensor, and it is the embedding's
    if len(pairs) > 1:
        raise AnatomyError(
            f"{' and '.join(names)} are one tensor with {len(pairs)} roles, {sorted(pairs)}. "
            f'Give all its names one role: roles={{"{names[0]}": "mlp", …}}.'
        )
    role, part = next(iter(pairs))
    return Entry(
        names[0],
        role,
        _layer(names[0]),
        part,
        tuple(parameter.shape),
        parameter.numel(),
        tuple(names[1:]),
        tied_head,
    )


def _given_roles(roles: dict[str, str], names: list[str]) -> dict[str, tuple[str, str]]:
    """Name to (role, part) for the reader's own patterns."""
    given: dict[str, tuple[str, str]] = {}
    if not isinstance(roles, dict):
        raise AnatomyError(
            f"roles is a dict of pattern to role, such as {{'transformer.h.*.adapter.*': 'mlp'}}; found {roles!r}."
        )
    for pattern, role in roles.items():
        if role not in ROLES:
            raise AnatomyError(
                f"roles={{'{pattern}': '{role}'}}: role '{role}' is not known. Roles: {', '.join(ROLES)}."
            )
        hits = [name for name in names if matches(pattern, name)]
        if not hits:
            near = difflib.get_close_matches(pattern, starred(names), n=3, cutoff=0.4)
            raise AnatomyError(
                f"roles={{'{pattern}': '{role}'}} matches no parameter. "
                f"Nearest: {', '.join(near or starred(names)[:3])}."
            )
        for name in hits:
            known = _known(name)
            pair = known if known and known[0] == role else (role, _DEFAULT_PART[role])
            if given.setdefault(name, pair) != pair:
                raise AnatomyError(
                    f"'{name}' gets two roles, '{given[name][0]}' and '{role}': make the patterns narrower."
                )
    return given


def _unknown_message(unknown: list[str]) -> str:
    lines = [
        f"{pattern} (first: {next(n for n in unknown if matches(pattern, n))})"
        for pattern in starred(unknown)
    ]
    if any(".base_layer." in name or ".modules_to_save." in name for name in unknown):
        return (
            f"The model holds an adapter of PEFT ({unknown[0]}), whose tensors have no role of their own. Give its base: "
            "model.unload() takes the adapter away, model.merge_and_unload() adds it to the weights."
        )
    return (
        f"Parameter names without a known role, {len(unknown)} in all: {'; '.join(lines)}. Name the role of each, "
        f'for example roles={{"{starred(unknown)[0]}": "mlp"}}. Roles: {", ".join(ROLES)}.'
    )
