"""A meter for one training step: the bytes alive by kind, and the FLOPs in three terms.

It watches every operation that PyTorch runs, so it needs no list of a family's layers. It works
on tensors without numbers (`torch._subclasses.FakeTensorMode`) as on real ones.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import nn
from torch._C._profiler import _EventType
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from helpers.models import row_length

aten = torch.ops.aten

KINDS = ("parameters", "buffers", "gradients", "optimizer", "activations", "logits")
# Which of an operation's arguments are the factors.
PRODUCTS = {aten.mm: (0, 1), aten.addmm: (1, 2), aten.addmm_: (1, 2), aten.bmm: (0, 1), aten.baddbmm: (1, 2)}


@dataclass(frozen=True)
class Flops:
    """FLOPs of one step. A product of (m, k) by (k, n) is 2·m·k·n; everything else is left out.

    For one weight of n numbers each term is 2·n·tokens, so that 6·n·tokens is right only
    where nothing is frozen (Kaplan et al. 2020, arXiv 2001.08361, section 2.1).

    Attributes:
        forward: all products of the forward pass.
        backward_input: gradients with respect to activations. Attention's products cost twice
            their forward pass, the whole square of scores counted, masked or not; that a fast
            kernel computes the scores again is not counted, because no plan needs it.
        backward_weight: gradients with respect to weights: zero for a frozen one.
    """

    forward: int
    backward_input: int
    backward_weight: int

    @property
    def step(self) -> int:
        return self.forward + self.backward_input + self.backward_weight


class StepMeter(TorchDispatchMode):
    """Counts while it is active (``with meter:``); say with `enter` where the step stands.

    A question about a value is answered with 1: without numbers there is none, and the sizes
    of a decoder's tensors do not depend on it.

    Attributes:
        alive: bytes by kind, now.
        kept: the same when the forward pass had ended: what waits for the backward pass; of several, the most.
        at_peak: the same at the fullest moment since the forward pass began.
        at_most: of each kind alone, the most since then.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.phase = "optimizer"  # first its state is made
        self.terms: Counter = Counter()
        self.alive, self.kept, self.at_peak, self.at_most = (dict.fromkeys(KINDS, 0) for _ in range(4))
        self._sizes: dict[int, tuple[str, int]] = {}  # of each storage: kind, bytes
        self._vocabulary = model.get_output_embeddings().weight.size(0)
        self._row_lengths = {self._vocabulary, row_length(self._vocabulary)}
        self._weights = {_key(p) for p in model.parameters()}
        self._trained = {tuple(p.shape) for p in model.parameters() if p.requires_grad}
        self._trained |= {shape[1:] for shape in self._trained if len(shape) == 3}  # one expert of many
        for tensor in model.parameters():  # a tied one once
            self._see(tensor, "parameters")
            if tensor.requires_grad:
                tensor.register_post_accumulate_grad_hook(lambda p: self._rename(p.grad, "gradients"))
        for tensor in model.buffers():
            self._see(tensor, "buffers")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is aten._local_scalar_dense.default:
            return True if args[0].dtype is torch.bool else 1
        # a block computed again has grad on
        adds_gradients = self.phase == "backward" and not torch.is_grad_enabled()
        if adds_gradients and func is aten.add.Tensor and args[0].shape == getattr(args[1], "shape", None):
            # autograd adds up two gradients of one tensor in place, but not under a mode like this
            return args[0]
        if func is aten.add_.Tensor and args[0].dtype is not getattr(args[1], "dtype", args[0].dtype):
            self._cast_for_a_moment(args[1], args[0].dtype)
        out = func(*args, **(kwargs or {}))
        if func is aten.native_layer_norm.default and args[2] is not None and args[2].dtype is torch.float32:
            # Beside float32 weights a kernel keeps these in float32; on shapes alone PyTorch takes the input's 16 bits.
            out = (out[0], *(statistic.float() for statistic in out[1:]))
        term = self._count(func.overloadpacket, args)
        if func is aten._to_copy.default and _key(args[0]) in self._weights:
            self._weights.add(_key(out))  # autocast's copy of a weight
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self._see(tensor, self._kind_of(tensor, func.overloadpacket, args, term))
        return out

    def flops(self) -> Flops:
        return Flops(self.terms["forward"], self.terms["backward_input"], self.terms["backward_weight"])

    # --- bytes -----------------------------------------------------------------

    def enter(self, phase: str) -> None:
        """The step goes on to "forward" or "backward"; a step with several losses does so once for each."""
        if self.phase == "optimizer":
            self.at_peak, self.at_most = dict(self.alive), dict(self.alive)
        self.phase = phase
        if phase == "backward":
            self.kept = {kind: max(self.kept[kind], self.alive[kind]) for kind in KINDS}

    def hold(self, tensors: Iterable[torch.Tensor]) -> None:
        """Count tensors that stay beside the model the whole time, as buffers."""
        for tensor in tensors:
            self._weights.add(_key(tensor))
            self._see(tensor, "buffers")

    def _see(self, tensor: torch.Tensor, kind: str) -> None:
        """Note a storage, once, until it is freed."""
        storage, key = tensor.untyped_storage(), _key(tensor)
        if key not in self._sizes:
            self._sizes[key] = (kind, storage.nbytes())
            self._add(kind, storage.nbytes())
            weakref.finalize(storage, self._forget, key)

    def _cast_for_a_moment(self, tensor: torch.Tensor, dtype: torch.dtype) -> None:
        """A CPU adds a tensor of another precision by way of a copy of it; a GPU needs none."""
        kind, size = self._sizes[_key(tensor)][0], tensor.numel() * dtype.itemsize
        self._add(kind, size)
        self._add(kind, -size)

    def _rename(self, tensor: torch.Tensor, kind: str) -> None:
        old, size = self._sizes[_key(tensor)]
        self._sizes[_key(tensor)] = (kind, size)
        self._add(old, -size)
        self._add(kind, size)

    def _kind_of(self, tensor: torch.Tensor, op, args, term) -> str:
        """What a new storage is, from the operation that made it. Shapes alone would mix up
        a batch of 4,096 tokens with a vocabulary of 4,096."""
        if self.phase == "optimizer":
            return "optimizer"
        if _key(tensor) in self._weights:
            return "parameters"
        source = _key(args[0]) if args and isinstance(args[0], torch.Tensor) else None
        like_a_gradient = self._sizes.get(source, ("",))[0] == "gradients" and tensor.shape == args[0].shape
        like_a_weight = op is aten.zeros_like and source in self._weights  # the chunked loss adds up in it
        if (
            term == "backward_weight"
            or op is aten.embedding_dense_backward
            or like_a_gradient
            or like_a_weight
        ):
            return "gradients"
        return "logits" if tensor.ndim and tensor.size(-1) in self._row_lengths else "activations"

    def _forget(self, key: int) -> None:
        """Called when a storage is freed; its key may be used again."""
        kind, size = self._sizes.pop(key)
        self._add(kind, -size)
        self._weights.discard(key)

    def _add(self, kind: str, size: int) -> None:
        self.alive[kind] += size
        self.at_most[kind] = max(self.at_most[kind], self.alive[kind])
        if sum(self.alive.values()) > sum(self.at_peak.values()):
            self.at_peak = dict(self.alive)

    # --- FLOPs -----------------------------------------------------------------

    def _count(self, op, args) -> str | None:
        """Add an operation's FLOPs to its term; None where it multiplies no matrices."""
        if op in PRODUCTS:
            a, b = (args[i] for i in PRODUCTS[op])  # (…, m, k), (…, k, n)
            term, n = self._term(a, b), 2 * a.numel() * b.size(-1)
        elif "scaled_dot_product" in op.__name__:
            term, n = _attention(op, args)
            term = "backward_input" if self.phase == "backward" else term  # a block computed again
        else:
            return None
        self.terms[term] += n
        return term

    def _term(self, a: torch.Tensor, b: torch.Tensor) -> str:
        """Which of the three a product belongs to.

        Two activations that make something of a trained weight's shape are that weight's
        gradient. The chunked loss goes backward within the forward pass: there the product sums
        over the vocabulary, which no forward product does.
        """
        made = (*a.shape[:-1], b.size(-1))
        if not {_key(a), _key(b)} & self._weights and {made, made[:-2] + made[:-3:-1]} & self._trained:
            return "backward_weight"
        forward = self.phase == "forward" and a.size(-1) != self._vocabulary
        return "forward" if forward else "backward_input"


def allocated_at_most(work: Callable[[], object]) -> int:
    """Run some work, and return the most bytes that PyTorch's CPU allocator held on top of what was there before.

    Measured by PyTorch's profiler, which notes each piece of memory that is taken or given back.
    """
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(profile_memory=True, activities=activities) as profile:
        work()
    sizes, waiting = [], list(profile.profiler.kineto_results.experimental_event_tree())
    while waiting:
        event = waiting.pop()
        waiting.extend(event.children)
        if event.tag == _EventType.Allocation:
            sizes.append((event.start_time_ns, event.extra_fields.alloc_size))
    now = most = 0
    for _, size in sorted(sizes, key=lambda pair: pair[0]):
        now += size
        most = max(most, now)
    return most


def _key(tensor: torch.Tensor) -> int:
    """What tells storages apart: views and tied tensors share one."""
    return tensor.untyped_storage()._cdata


def _attention(op, args) -> tuple[str, int]:
    """A fused attention kernel: two products forward, four backward."""
    backward = op.__name__.endswith("backward")
    query, key, value = args[1:4] if backward else args[:3]  # (batch, heads, time, head_dim)
    one_way = 2 * query[..., 0].numel() * key.size(-2) * (query.size(-1) + value.size(-1))
    return ("backward_input", 2 * one_way) if backward else ("forward", one_way)
