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
WORDS = (*ROLES, *GROUPS, *PARTS)  # every name that stands alone

_FUSED = {"q": ("qkv",), "k": ("qkv", "kv"), "v": ("qkv", "kv")}
_RANGE = re.compile(r"([0-9]{1,9})(?:-([0-9]{1,9}))?")
_FORMS = "layers:0-5, attention@0-5, name:transformer.h.*.mlp.c_fc.weight"


def _is_bias(entry: Entry) -> bool:
    """Return whether this is a vector named "bias", or a tensor named "..._bias".

    A mixture of experts keeps one row of the latter for each expert.
    """
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
    selectors = []
    for part in text.split("+"):
        selector = part.strip()
        _check_word(selector, text)
        if selector.split("@")[0] == "norm":
            selector = "norms" + selector.removeprefix("norm")
        selectors.append(selector)
    return tuple(selectors)


def select(anatomy: Anatomy, selector: str) -> frozenset[str]:
    """Return the names of the parameters that one selector takes.

    Raises:
        PlanError: it takes none; the message lists what the model has, or the nearest names.
    """
    require_anatomy(anatomy)
    parse_selectors(selector)
    kind, _, rest = selector.partition(":")
    if kind == "name" and rest:
        return _by_name(anatomy, rest)
    if kind == "layers":
        return _names(_in_blocks(anatomy.entries, _layer_range(anatomy, selector, rest)))
    word, _, layers = selector.partition("@")
    is_chosen = _test(anatomy, word)
    chosen = [entry for entry in anatomy.entries if is_chosen(entry)]
    if not chosen:
        raise PlanError(_nothing(anatomy, word))
    if layers:
        chosen = _in_blocks(chosen, _layer_range(anatomy, selector, layers))
        if not chosen:
            raise PlanError(f"'{selector}' matches nothing: '{word}' has no parameter in these blocks.")
    return _names(chosen)


def require_anatomy(anatomy) -> None:
    """Raise TypeError for what is no anatomy, such as the model itself."""
    if not hasattr(anatomy, "entries"):
        raise TypeError(f"An anatomy is needed, as anatomy(model) gives it; found {type(anatomy).__name__}.")


def _in_blocks(entries: Iterable[Entry], blocks: range) -> list[Entry]:
    """Return the entries that lie in these blocks."""
    return [entry for entry in entries if entry.layer in blocks]


def _names(entries: Iterable[Entry]) -> frozenset[str]:
    """Return the names of these entries."""
    return frozenset(entry.name for entry in entries)


def canonical(selectors: Iterable[str]) -> tuple[str, ...]:
    """Check selectors, and return each once, in one order (that of `WORDS`, then the patterns).

    Raises:
        PlanError: a selector is not known.
    """
    if isinstance(selectors, str):
        selectors = [selectors]
    each_once = set()
    for text in selectors:
        each_once.update(parse_selectors(text))
    return tuple(sorted(each_once, key=_order))


def _order(selector: str) -> tuple[int, str]:
    """Return the place of a selector among others: by `WORDS`, patterns last."""
    word = selector.split("@")[0]
    if word in WORDS:
        return WORDS.index(word), selector
    return len(WORDS), selector


def file_id(text: str) -> str:
    """Return a text as a file name; what had to be left out of it comes back as a short hash, so that ids differ."""
    safe = re.sub(r"[^\w+@.-]", "", text)
    if len(safe) <= 80 and "name:" not in text:
        return safe
    short_hash = hashlib.sha256(text.encode()).hexdigest()[:8]
    return f"{safe[:60]}-{short_hash}"


def _test(anatomy: Anatomy, word: str) -> Callable[[Entry], bool]:
    """Return the test that says whether a role, group or part takes an entry."""
    if word == "first-half":
        first_half = range(anatomy.n_layers // 2)
        return lambda e: _TESTS["embeddings"](e) or e.layer in first_half
    return _TESTS.get(word, lambda e: word in (e.role, e.part))


def _check_word(word: str, text: str) -> None:
    """Raise PlanError, with a hint, where a word of ``text`` is no selector."""
    kind, _, rest = word.partition(":")
    if kind == "name" and rest:
        return
    if kind == "layers" and _RANGE.fullmatch(rest):
        return
    base, at, layers = word.partition("@")
    if base in WORDS and (not at or _RANGE.fullmatch(layers)):
        return
    raise PlanError(
        f"Plan {text!r} is not known: {word!r} is no role, group, part or pattern.{_hint(word)} "
        f"Roles: {', '.join(ROLES)}. Groups: {', '.join(GROUPS)}. Parts: {', '.join(PARTS)}. "
        f"Also: {_FORMS}."
    )


def _hint(word: str) -> str:
    """Guess what was meant: a sentence, or nothing."""
    several = re.split(r"[\s,;&|]+", word)
    if len(several) > 1 and all(one.split("@")[0] in WORDS for one in several):
        return f" Did you mean {'+'.join(several)!r}?"
    layers = re.fullmatch(r"(?:layers?|blocks?|h)[.:@ ]?(\d+(?:-\d+)?)", word)
    if layers:
        return f" Did you mean 'layers:{layers[1]}'?"
    if word == "none":
        return " To freeze nothing write FreezePlan.full(), or --freeze none alone."
    if "." in word:
        return f" For a parameter's name write {'name:' + word!r}."
    near = difflib.get_close_matches(word.split("@")[0].lower(), WORDS, n=1, cutoff=0.4)
    return f" Did you mean '{near[0]}'?" if near else ""


def _by_name(anatomy: Anatomy, pattern: str) -> frozenset[str]:
    """Return the names that a pattern matches; a tied tensor is found under each of its names."""
    chosen = set()
    names = []
    for entry in anatomy.entries:
        own_names = (entry.name, *entry.aliases)
        names += own_names
        if any(matches(pattern, name) for name in own_names):
            chosen.add(entry.name)
    if chosen:
        return frozenset(chosen)
    if any(matches(f"{pattern}.**", name) for name in names):
        raise PlanError(
            f"{'name:' + pattern!r} matches no parameter: it names a module. "
            f"Write {'name:' + pattern + '.**'!r} for everything in it."
        )
    near = difflib.get_close_matches(pattern, [*starred(names), *names], n=3, cutoff=0.3)
    raise PlanError(
        f"{'name:' + pattern!r} matches no parameter. Nearest: {', '.join(near or starred(names)[:3])}."
    )


def _layer_range(anatomy: Anatomy, selector: str, text: str) -> range:
    """Return the blocks that "3" or "0-5" names.

    Raises:
        PlanError: it runs backwards, or past the last block.
    """
    first, last = _RANGE.fullmatch(text).groups()
    low = int(first)
    high = int(last or first)
    if low > high:
        raise PlanError(f"'{selector}' runs backwards: write the smaller block first, {high}-{low}.")
    if high >= anatomy.n_layers:
        raise PlanError(
            f"'{selector}' asks for block {high}: this model has blocks 0 to {anatomy.n_layers - 1}."
        )
    return range(low, high + 1)


def _nothing(anatomy: Anatomy, word: str) -> str:
    """Say why a word finds nothing in this model, and what there is."""
    parts_that_fuse_it = _FUSED.get(word, ())
    fused = [entry for entry in anatomy.entries if entry.part in parts_that_fuse_it]
    if fused:
        return (
            f"'{word}' cannot be chosen alone: this model keeps q, k, v in fused tensors "
            f"({fused[0].name}). Choose 'qkv' or 'attention'."
        )
    parts = dict.fromkeys(entry.part for entry in anatomy.entries if entry.part in PARTS)
    return (
        f"'{word}' matches nothing: this model has none. It has the roles {', '.join(anatomy.counts())} "
        f"and the parts {', '.join(parts)}."
    )
