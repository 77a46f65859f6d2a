"""A frozen bottom is computed once: frozen embeddings and first blocks say the same of a window each time.

bottom = find_bottom(model, windows[:8], n_tokens)    after the plan is applied; refused where it would be wrong
with bottom.reading(ids):                             the first time the whole model runs, later the blocks above alone
    loss, n_tokens = next_token_loss(model, ids)

What a step computes stays the same to the last bit: what is kept was made by such a step, and it is read only by a
step with as many windows at a time.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch._guards import detect_fake_mode

from helpers.files import require_whole
from helpers.models import (
    ONE_AT_A_TIME,
    anatomy,
    named_modules,
    named_parameters,
    next_token_loss,
    require_windows,
)

LIMIT = 2**30  # bytes of memory
SHORT = 16  # tokens; enough to see where gradients go
SPARE = 2**28  # bytes of a disk that are left free


class BottomError(ValueError):
    """A bottom that cannot be computed once. The message says why."""


@dataclass(frozen=True)
class FrozenBlock:
    """A frozen block, and its output: numbers of this type and width, in a tuple of so many places, or plainly (0)."""

    module: nn.Module
    dtype: torch.dtype
    width: int
    n_places: int

    def giving(self, states: torch.Tensor) -> Callable:
        """A forward that computes nothing."""
        out = (states, *[None] * (self.n_places - 1)) if self.n_places else states
        return lambda *args, **kwargs: out


class FrozenBottom:
    """The output of a model's first blocks, kept for each window that was read. Made by `find_bottom`.

    Attributes:
        n_blocks: that are skipped where their output is known.
        n_tokens, n_bytes: of all windows together.
        in_memory: whether there; else they stand in a file without a name, which goes with the process.
    """

    def __init__(
        self, blocks: list[FrozenBlock], n_tokens: int, n_bytes: int, in_memory: bool, folder: Path | None
    ):
        self.n_blocks = len(blocks)
        self.n_tokens = n_tokens
        self.n_bytes = n_bytes
        self.in_memory = in_memory
        self._blocks = blocks
        self._folder = folder
        self._room: torch.Tensor | None = None  # (n_bytes,), made when the first window comes
        self._used = 0
        self._kept: dict[bytes, tuple[torch.Tensor, int]] = {}  # ids: (time, width), and windows beside it

    def __str__(self) -> str:
        blocks = "the first block is" if self.n_blocks == 1 else f"the first {self.n_blocks} blocks are"
        where = "in memory" if self.in_memory else "in a file"
        return f"{blocks} computed once for each window: {self.n_bytes / 2**20:,.1f} MiB kept {where}"

    @contextmanager
    def reading(self, input_ids: torch.Tensor) -> Iterator[None]:
        """For the time of the block the model reads these windows, (batch, time), and no others."""
        keys = [row.numpy().tobytes() for row in input_ids.cpu()]
        known = [self._kept.get(key, (None, 0)) for key in keys]
        if all(n_beside == len(keys) for _, n_beside in known):
            states = torch.stack([row for row, _ in known]).to(input_ids.device)
            with skipping(self._blocks, states):
                yield
            return
        seen: list[torch.Tensor] = []
        with _forwards({self._blocks[-1].module: _noting(self._blocks[-1].module.forward, seen)}):
            yield
        for key, states in zip(keys, seen[0].detach(), strict=True):
            self._keep(key, states, len(keys))

    def _keep(self, key: bytes, states: torch.Tensor, n_beside: int) -> None:
        """Keep a window's states, (time, width); where all the room is taken, do nothing."""
        row, _ = self._kept.get(key, (self._new_row(states), 0))
        if row is not None and row.dtype == states.dtype:
            row.copy_(states)
            self._kept[key] = row, n_beside

    def _new_row(self, like: torch.Tensor) -> torch.Tensor | None:
        if self._room is None:
            self._room = self._new_room()
        start, end = self._used, self._used + like.nbytes
        if end > self.n_bytes:
            return None
        self._used = end
        return self._room[start:end].view(like.dtype).view(like.shape)

    def _new_room(self) -> torch.Tensor:
        if self.in_memory:
            return torch.empty(self.n_bytes, dtype=torch.uint8, device="cpu")
        with tempfile.TemporaryFile(dir=self._folder) as file:  # it has no name: gone with the process
            if hasattr(os, "posix_fallocate"):  # a full disk is an error here, not a crash later
                os.posix_fallocate(file.fileno(), 0, self.n_bytes)
            file.truncate(self.n_bytes)
            return torch.from_numpy(np.memmap(file, np.uint8, "r+", shape=(self.n_bytes,)))


def find_bottom(
    model: nn.Module,
    input_ids: torch.Tensor,
    n_tokens: int,
    limit: int = LIMIT,
    folder: str | Path | None = None,
) -> FrozenBottom:
    """Find the frozen blocks at a model's start, and try on some windows whether they can be skipped.

    Call it with the plan applied, in the mode and under the autocast in which the model trains. It takes the
    time of about four forward passes, and changes nothing.

    Args:
        input_ids: (windows, time), as many as are read at a time.
        n_tokens: of all different windows that will be read.
        limit: bytes of memory for what is kept. Beyond it a file in ``folder`` holds it.

    Raises:
        LossError, ValueError: no windows of token ids of this model, or a number that none can be.
        BottomError: a tensor below the first block's end trains; something in the bottom is random, such as
            dropout; the blocks do not run one after the other; those above need something else of those below
            than the last one's output; or there is no room for what is kept.
    """
    require_windows(model, input_ids)
    require_whole(n_tokens, "n_tokens is of all windows that will be read")
    require_whole(limit, "limit is in bytes", least=0)
    blocks = frozen_blocks(model, input_ids[:1, :SHORT])
    with _own_random_state():
        states = _tried(model, blocks, input_ids)
    n_bytes = n_tokens * states.size(-1) * states.element_size()
    if n_bytes > limit:
        _require_disk(n_bytes, limit, folder)
    return FrozenBottom(blocks, n_tokens, n_bytes, n_bytes <= limit, folder and Path(folder))


# --- which blocks ------------------------------------------------------------------


def frozen_blocks(model: nn.Module, input_ids: torch.Tensor) -> list[FrozenBlock]:
    """Return the blocks at a model's start whose output needs no gradient, and is the same each time.

    Also on tensors without numbers, where nothing random is seen.

    Args:
        input_ids: (windows, time), short ones will do.

    Raises:
        BottomError: as for `find_bottom`.
    """
    modules = _blocks_of(model)
    # also where the caller keeps no gradients: without them all would seem frozen
    with _own_random_state(), torch.inference_mode(False), torch.enable_grad():
        turns, _ = _watched(modules, lambda: model(input_ids=input_ids, use_cache=False), 0)
    if [turn.place for turn in turns] != list(range(len(modules))):
        raise BottomError("The model's blocks do not run once each, one after the other.")
    trains = [turn.states.requires_grad for turn in turns]
    n_frozen = trains.index(True) if any(trains) else len(modules)
    if n_frozen == 0:
        raise BottomError(
            f"The output of the first block changes in training: {_lowest(model, turns[0])} trains. Only "
            "frozen embeddings and first blocks can be computed once."
        )
    for turn in turns[:n_frozen]:
        if turn.is_random:
            raise BottomError(
                f"Block {turn.place} draws random numbers (dropout): its output is another one each time. Set "
                "the config's dropout to 0 first, or let the frozen blocks be computed in each step."
            )
    routers = [e.name for e in anatomy(model).entries if e.part == "router" and e.layer < n_frozen]
    if routers:
        raise BottomError(
            f"{routers[0]} sends the tokens of all windows of a batch through its experts together, so the last "
            "bits of a window's output depend on its neighbours."
        )
    bottom = zip(modules, turns[:n_frozen], strict=False)
    return [
        FrozenBlock(module, turn.states.dtype, turn.states.size(-1), _n_places(turn.out))
        for module, turn in bottom
    ]


@contextmanager
def skipping(blocks: list[FrozenBlock], states: torch.Tensor) -> Iterator[None]:
    """For the time of the block these frozen ones compute nothing, and give these states, (batch, time, width)."""
    with _forwards({block.module: block.giving(states) for block in blocks}):
        yield


@dataclass(frozen=True)
class _Turn:
    """One block's turn in a forward pass: what it gave, and whether it drew random numbers."""

    place: int
    out: object
    is_random: bool

    @property
    def states(self) -> torch.Tensor:
        """(batch, time, width)."""
        return _states(self.out)


def _blocks_of(model: nn.Module) -> list[nn.Module]:
    """The model's blocks in their order, found by the names of their tensors."""
    modules, lists, places = named_modules(model), set(), set()
    for entry in anatomy(model).entries:
        if entry.layer is not None:
            lists.add(entry.name.partition(f".{entry.layer}.")[0])
            places.add(entry.layer)
    if len(lists) != 1:
        raise BottomError("The model's blocks do not stand in one list, one after the other.")
    name = lists.pop()
    return [modules[f"{name}.{place}"] for place in sorted(places)]


def _lowest(model: nn.Module, turn: _Turn) -> str:
    """The first trainable tensor that a block's output depends on.

    Raises:
        BottomError: there is none, and the output asks for a gradient all the same.
    """
    trainable = [(name, p) for name, p in named_parameters(model) if p.requires_grad]
    found = torch.autograd.grad(turn.states.sum(), [p for _, p in trainable], allow_unused=True)
    for (name, _), slope in zip(trainable, found, strict=True):
        if slope is not None:
            return name
    raise BottomError(
        "The output of the first block asks for a gradient, and nothing that trains is below it: a hook asks for it, as "
        "gradient_checkpointing_enable() adds one. Call model.disable_input_require_grads(), or enable_checkpointing(model)."
    )


@torch.no_grad()
def _tried(model: nn.Module, blocks: list[FrozenBlock], ids: torch.Tensor) -> torch.Tensor:
    """The bottom's output on some windows, once it is sure that skipping it changes no bit above it."""
    modules = _blocks_of(model)
    turns, (loss, _) = _watched(modules, lambda: next_token_loss(model, ids), 0)
    states, top = turns[len(blocks) - 1].states, turns[-1].states
    # In another order and from another seed; what the model may have noted of the first run is gone after it.
    turns, _ = _watched(modules, lambda: next_token_loss(model, ids.flip(0)), 1)
    if not torch.equal(turns[len(blocks) - 1].states.flip(0), states):
        raise BottomError(
            "The frozen blocks do not say the same of a window each time: something before them is random "
            "(dropout of the embeddings), or a window's output depends on its neighbours in the batch."
        )
    try:
        with skipping(blocks, states):
            turns, (same, _) = _watched(modules[-1:], lambda: next_token_loss(model, ids), 0)
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise BottomError(NEEDS_MORE) from error
    if not (torch.equal(same, loss) and torch.equal(turns[-1].states, top)):
        raise BottomError(NEEDS_MORE)
    return states


NEEDS_MORE = "The blocks above need more of the frozen ones than their last output: they cannot be skipped."


def _require_disk(n_bytes: int, limit: int, folder: str | Path | None) -> None:
    """Raise BottomError where what is kept needs a file, and there is no folder or no room for it."""
    size = f"{n_bytes / 2**20:,.0f} MiB, more than the limit of {limit / 2**20:,.0f} MiB of memory"
    if folder is None:
        raise BottomError(
            f"The output of the frozen blocks takes {size}. Give a folder for a file, or a higher limit."
        )
    there = next(path for path in (Path(folder), *Path(folder).absolute().parents) if path.is_dir())
    free = shutil.disk_usage(there).free
    if n_bytes + SPARE > free:
        raise BottomError(
            f"The output of the frozen blocks takes {size}, and the disk of '{folder}' has "
            f"{free / 2**20:,.0f} MiB free. Free some space, or choose another folder."
        )


# --- other forwards for a while ----------------------------------------------------


def _watched(modules: list[nn.Module], read: Callable, seed: int) -> tuple[list[_Turn], object]:
    """The turns of these blocks while something is read from a random seed, and what reading it gave."""
    turns: list[_Turn] = []

    def watching(place, forward):
        def run(*args, **kwargs):
            before = _random_state()
            out = forward(*args, **kwargs)
            turns.append(_Turn(place, out, before != _random_state()))
            return out

        return run

    torch.manual_seed(seed)
    with _forwards({module: watching(i, module.forward) for i, module in enumerate(modules)}):
        return turns, read()


@contextmanager
def _own_random_state() -> Iterator[None]:
    """For the time of the block random numbers are drawn, in one thread at a time; then all is as it was before."""
    with ONE_AT_A_TIME, torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        yield


def _random_state() -> list[bytes]:
    """Where the random numbers of each device stand; tensors without numbers draw none."""
    if detect_fake_mode() is not None:
        return []
    return [state.numpy().tobytes() for state in (torch.get_rng_state(), *torch.cuda.get_rng_state_all())]


def _noting(forward: Callable, seen: list[torch.Tensor]) -> Callable:
    """The same forward; its states are added to ``seen``."""

    def run(*args, **kwargs):
        out = forward(*args, **kwargs)
        seen.append(_states(out))
        return out

    return run


@contextmanager
def _forwards(forwards: dict[nn.Module, Callable]) -> Iterator[None]:
    """For the time of the block these modules run other forwards."""
    before = {module: vars(module).get("forward") for module in forwards}
    try:
        for module, forward in forwards.items():
            module.forward = forward
        yield
    finally:
        for module, forward in before.items():
            del module.forward
            if forward is not None:
                module.forward = forward


def _n_places(out: object) -> int:
    return len(out) if isinstance(out, (tuple, list)) else 0


def _states(out: object) -> torch.Tensor:
    """What a block gives to the next one, (batch, time, width): all, or the first of several (attention maps …)."""
    states = out[0] if isinstance(out, (tuple, list)) else out
    if not isinstance(states, torch.Tensor):
        raise BottomError("A block of this model gives no tensor to the next one.")
    return states
