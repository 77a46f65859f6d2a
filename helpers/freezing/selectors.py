"""Selectors: short expressions that name some parameters of a model.

    attention, mlp, norm, token_embedding, position_embedding, head     a role
    embeddings, norms, blocks, biases, first-half                        a group
    q, k, v, qkv, attention-out, mlp-in, mlp-gate, mlp-out, lora         a part
    layers:3, layers:0-5                     everything in these blocks
    attention@0-5, mlp-out@3                 a role, group or part in these blocks
    name:transformer.h.*.mlp.c_fc.weight     a glob over whole dotted names

A selector that finds nothing in a model is an error, never an empty choice.
"""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Callable, Iterable

from helpers.models import ROLES, Anatomy, Entry, matches, starred

GROUPS = ("embeddings", "norms", "blocks", "biases", "first-half")
PARTS = ("q", "k", "v", "qkv", "attention-out", "mlp-in", "mlp-gate", "mlp-out", "router", "lora")
WORDS = (*ROLES, *GROUPS, *PARTS)

_FUSED = {"q": ("qkv",), "k": ("qkv", "kv"), "v": ("qkv", "kv")}
_RANGE = re.compile(r"(\d+)(?:-(\d+))?")
_FORMS = "layers:0-5, attention@0-5, name:transformer.h.*.mlp.c_fc.weight"


def _is_bias(entry: Entry) -> bool:
    """A vector named "bias", or a tensor named "..._bias": a mixture keeps one row of it for each expert."""
    last = entry.name.split(".")[-1]
    return (last == "bias" and len(entry.shape) == 1) or last.endswith("_bias")


_TESTS: dict[str, Callable[[Entry], bool]] = {
    "head": lambda e: e.role == "head" or e.tied_head,
    "embeddings": lambda e: e.role in ("token_embedding", "position_embedding"),
    "norms": lambda e: e.role == "norm",
    "blocks": lambda e: e.layer is not None,
    "biases": _is_bias,
    "qkv": lambda e: e.part in ("q", "k", "v", "kv", "qkv"),
}


class PlanError(ValueError):
    """A plan or selector that is not known, or that does not fit the model. The message says what to do."""


def parse_selectors(text: str) -> tuple[str, ...]:
    """Split "attention+embeddings" and check each word; "norm" becomes "norms".

    Raises:
        PlanError: a word that is no role, group, part, layer range or name pattern.
    """
    if not isinstance(text, str):
        raise PlanError(f"A selector is text such as 'attention', found {text!r}.")
    words = [word.strip() for word in text.split("+")]
    for word in words:
        _check_word(word, text)
    return tuple("norms" + word[4:] if word.split("@")[0] == "norm" else word for word in words)


def select(anatomy: Anatomy, selector: str) -> frozenset[str]:
    """Names of the parameters that one selector takes.

    Raises:
        PlanError: it takes none; the message lists what the model has, or the nearest names.
    """
    kind, _, rest = selector.partition(":")
    if kind == "name" and rest:
        return _by_name(anatomy, rest)
    if kind == "layers":
        low, high = _layer_range(anatomy, selector, rest)
        return frozenset(e.name for e in anatomy.entries if e.layer is not None and low <= e.layer <= high)
    word, _, layers = selector.partition("@")
    chosen = [e for e in anatomy.entries if _test(anatomy, word)(e)]
    if not chosen:
        raise PlanError(_nothing(anatomy, word))
    if layers:
        low, high = _layer_range(anatomy, selector, layers)
        chosen = [e for e in chosen if e.layer is not None and low <= e.layer <= high]
        if not chosen:
            raise PlanError(f"'{selector}' matches nothing: '{word}' has no parameter in these blocks.")
    return frozenset(e.name for e in chosen)


def canonical(selectors: Iterable[str]) -> tuple[str, ...]:
    """Selectors checked, without repeats, and in one order (that of `WORDS`, then the patterns).

    Raises:
        PlanError: a selector is not known.
    """

    def order(selector: str) -> tuple[int, str]:
        word = selector.split("@")[0]
        return (WORDS.index(word) if word in WORDS else len(WORDS)), selector

    selectors = [selectors] if isinstance(selectors, str) else selectors
    return tuple(sorted({word for text in selectors for word in parse_selectors(text)}, key=order))


def file_id(text: str) -> str:
    """A text as a file name; what had to be left out of it comes back as a short hash, so that ids differ."""
    safe = re.sub(r"[^\w+@.-]", "", text)
    if len(safe) <= 80 and "name:" not in text:
        return safe
    return f"{safe[:60]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _test(anatomy: Anatomy, word: str) -> Callable[[Entry], bool]:
    if word == "first-half":
        half = anatomy.n_layers // 2
        return lambda e: _TESTS["embeddings"](e) or (e.layer is not None and e.layer < half)
    return _TESTS.get(word, lambda e: word in (e.role, e.part))


def _check_word(word: str, text: str) -> None:
    kind, _, rest = word.partition(":")
    if kind == "name" and rest:
        return
    if kind == "layers" and _RANGE.fullmatch(rest):
        return
    base, at, layers = word.partition("@")
    if base in WORDS and (not at or _RANGE.fullmatch(layers)):
        return
    raise PlanError(
        f"Plan '{text}' is not known: '{word}' is no role, group, part or pattern.{_hint(word)} "
        f"Roles: {', '.join(ROLES)}. Groups: {', '.join(GROUPS)}. Parts: {', '.join(PARTS)}. "
        f"Also: {_FORMS}."
    )


def _hint(word: str) -> str:
    layers = re.fullmatch(r"(?:layers?|blocks?|h)[.:@ ]?(\d+(?:-\d+)?)", word)
    if layers:
        return f" Did you mean 'layers:{layers[1]}'?"
    if word == "none":
        return " To freeze nothing write FreezePlan.full(), or --freeze none alone."
    if "." in word:
        return f" For a parameter's name write 'name:{word}'."
    near = difflib.get_close_matches(word.split("@")[0].lower(), WORDS, n=1, cutoff=0.4)
    return f" Did you mean '{near[0]}'?" if near else ""


def _by_name(anatomy: Anatomy, pattern: str) -> frozenset[str]:
    """A tied tensor is found under each of its names."""
    hits = frozenset(
        e.name for e in anatomy.entries if any(matches(pattern, n) for n in (e.name, *e.aliases))
    )
    if hits:
        return hits
    names = [n for e in anatomy.entries for n in (e.name, *e.aliases)]
    if any(matches(f"{pattern}.**", n) for n in names):
        raise PlanError(
            f"'name:{pattern}' matches no parameter: it names a module. "
            f"Write 'name:{pattern}.**' for everything in it."
        )
    near = difflib.get_close_matches(pattern, [*starred(names), *names], n=3, cutoff=0.3)
    raise PlanError(
        f"'name:{pattern}' matches no parameter. Nearest: {', '.join(near or starred(names)[:3])}."
    )


def _layer_range(anatomy: Anatomy, selector: str, text: str) -> tuple[int, int]:
    first, last = _RANGE.fullmatch(text).groups()
    low, high = int(first), int(last or first)
    if low > high:
        raise PlanError(f"'{selector}' runs backwards: write the smaller block first, {high}-{low}.")
    if high >= anatomy.n_layers:
        raise PlanError(
            f"'{selector}' asks for block {high}: this model has blocks 0 to {anatomy.n_layers - 1}."
        )
    return low, high


def _nothing(anatomy: Anatomy, word: str) -> str:
    """Why a word finds nothing in this model, and what there is."""
    fused = [e for e in anatomy.entries if e.part in _FUSED.get(word, ())]
    if fused:
        return (
            f"'{word}' cannot be chosen alone: this model keeps q, k, v in fused tensors "
            f"({fused[0].name}). Choose 'qkv' or 'attention'."
        )
    parts = list(dict.fromkeys(e.part for e in anatomy.entries if e.part in PARTS))
    return (
        f"'{word}' matches nothing: this model has none. It has the roles {', '.join(anatomy.counts())} "
        f"and the parts {', '.join(parts)}."
    )
