"""A training step walked through with sizes in place of tensors: what is alive when, and the FLOPs in three terms.

A `Size` is alive from its making until Python drops its last reference, as a tensor is in PyTorch. Each
operation says what it makes, what it keeps for the backward pass, and what that pass makes in turn.
`helpers.closed_form` puts them together to a model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from helpers.meter import KINDS

FLOAT, INDEX = 4, 8  # bytes of a float32, of a token id


class Size:
    """Bytes that are alive. ``node`` says how a gradient goes on from here; None: none is needed."""

    __slots__ = ("walk", "kind", "n_bytes", "node")

    def __init__(self, walk: Walk, n_bytes: int, kind: str = "activations", node: Node | None = None):
        self.walk, self.kind, self.n_bytes, self.node = walk, kind, n_bytes, node
        walk.alive[kind] += n_bytes
        walk.total += n_bytes
        if walk.total > walk.peak:
            walk.peak, walk.at_peak = walk.total, walk.alive.copy()

    def __del__(self):
        self.walk.alive[self.kind] -= self.n_bytes
        self.walk.total -= self.n_bytes


@dataclass(eq=False)
class Node:
    """One operation's way back: from the gradient of its result to those of its inputs (nodes)."""

    order: int
    inputs: Sequence[Node | None]
    back: Callable[[Size], Sequence[Size | None]] | None


class Walk:
    """The operations of a step, and what they add up to.

    Attributes:
        alive: bytes by kind, now; ``total`` is their sum.
        at_peak: the same at the fullest moment so far.
        flops: forward, backward to the input, backward to the weight.
        gradients: of the weights, by name.
    """

    def __init__(self, trained: frozenset[str], batch: int, length: int, width: int, half: int):
        """``trained``: names of weights. ``half``: bytes of a number in matrix products, 4, or 2 under autocast."""
        self.trained, self.half, self.width = trained, half, width
        self.batch, self.length, self.n = batch, length, batch * length  # n tokens
        self.alive = dict.fromkeys(KINDS, 0)
        self.at_peak = self.alive.copy()
        self.total = self.peak = self.n_nodes = 0
        self.flops = [0, 0, 0]
        self.gradients: dict[str, Size] = {}
        self.casts: dict[str, Size] = {}  # autocast's copies of trained weights

    def backward(self, last: Node, gradient: Size) -> None:
        """The later an operation ran, the earlier its way back."""
        waiting = {last: gradient}
        del gradient
        while waiting:
            node = max(waiting, key=lambda n: n.order)
            found = node.back(waiting.pop(node))
            node.back = None  # what it kept is let go
            while found:
                target, one = node.inputs[len(found) - 1], found.pop()
                if target is not None:
                    waiting.setdefault(target, one)  # a second gradient is added into the first
            one = None

    def node(self, inputs: Sequence[Size], trains: bool, back: Callable) -> Node | None:
        """A way back, where an input or a weight of the operation needs one."""
        nodes = [size.node for size in inputs]
        if not trains and not any(nodes):
            return None
        self.n_nodes += 1
        return Node(self.n_nodes, nodes, back)

    def keep_gradient(self, name: str, n: int) -> None:
        """A weight's gradient; where there is one already, the new one is added into it."""
        new = Size(self, FLOAT * n, "gradients")
        self.gradients.setdefault(name, new)

    def cast(self, x: Size, n: int) -> Size:
        """float32 in the precision of the products: itself, or a copy."""
        if self.half == FLOAT or x.n_bytes == self.half * n:
            return x
        return Size(self, self.half * n, node=self.node([x], False, lambda g: [Size(self, FLOAT * n)]))

    def weight(self, name: str, n: int) -> Size | None:
        """Autocast's copy of a weight, or None. A trained one's is made once a step."""
        if self.half == FLOAT:
            return None
        if name in self.casts:
            return self.casts[name]
        copy = Size(self, self.half * n, "parameters")
        if name in self.trained:
            self.casts[name] = copy
        return copy

    def linear(self, x: Size, name: str, n_in: int, n_out: int) -> Size:
        """y = x W + b. The input is kept for W's gradient, W for the input's."""
        trains_w, trains_b = f"{name}.weight" in self.trained, f"{name}.bias" in self.trained
        flops = 2 * self.n * n_in * n_out
        self.flops[0] += flops
        x, w = self.cast(x, self.n * n_in), self.weight(f"{name}.weight", n_in * n_out)
        y = Size(self, self.half * self.n * n_out)
        needs_input, kept = x.node is not None, (x if trains_w else None, w if x.node else None)

        def back(gradient, kept=kept):
            made = None
            if needs_input:
                self.flops[1] += flops
                made = Size(self, self.half * self.n * n_in)
            if trains_w:
                self.flops[2] += flops
                self.weight_gradient(f"{name}.weight", n_in * n_out)
            if trains_b:
                self.weight_gradient(f"{name}.bias", n_out)
            return [made]

        y.node = self.node([x], trains_w or trains_b, back)
        return y

    def weight_gradient(self, name: str, n: int) -> None:
        """In the precision of the products first, then in float32."""
        half = None if self.half == FLOAT else Size(self, self.half * n)
        self.keep_gradient(name, n)
        del half

    def layer_norm(self, x: Size, name: str) -> Size:
        """Keeps its input, and each token's mean and deviation."""
        weights = [f"{name}.{part}" for part in ("weight", "bias") if f"{name}.{part}" in self.trained]
        y, statistics = Size(self, FLOAT * self.n * self.width), Size(self, 2 * FLOAT * self.n)
        needs_input = x.node is not None

        def back(gradient, kept=(x, statistics)):
            made = Size(self, FLOAT * self.n * self.width) if needs_input else None
            for weight in weights:
                self.keep_gradient(weight, self.width)
            return [made]

        y.node = self.node([x], bool(weights), back)
        return y

    def gelu(self, x: Size) -> Size:
        y = Size(self, x.n_bytes)
        y.node = self.node([x], False, lambda gradient, kept=x: [Size(self, kept.n_bytes)])
        return y

    def add(self, a: Size, b: Size) -> Size:
        """The skip connection. Both get the same gradient; only a change of precision makes another."""
        n_bytes = max(a.n_bytes, b.n_bytes)
        y, sizes = Size(self, n_bytes), (a.n_bytes, b.n_bytes)
        y.node = self.node([a, b], False, lambda g: [g if n == n_bytes else Size(self, n) for n in sizes])
        return y
