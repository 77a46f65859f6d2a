"""The bytes and FLOPs of a GPT-Neo step by arithmetic: in half a millisecond, where `budget` takes from 0.2 s on.

`budget.budget` lets PyTorch run the step on tensors without numbers, which serves every family. Controls
that answer while they are moved need it quicker. Here the same step is written down once, for GPT-Neo and
the course's engine, with sizes in place of tensors. A test holds the two against each other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from helpers.costs.meter import KINDS, Flops
from helpers.costs.step_cost import Budget, budget, check_step
from helpers.freezing import FreezePlan
from helpers.models import CHUNK, anatomy, build_on_meta, row_length

# --- A training step walked through with sizes in place of tensors: what is alive when, and the FLOPs in three terms ---


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


def is_quick(config) -> bool:
    """Whether this file knows the model: a GPT-Neo without dropout, whose head is its token embedding."""
    if config.model_type != "gpt_neo" or not config.tie_word_embeddings:
        return False
    dropout = config.attention_dropout or config.embed_dropout or config.resid_dropout
    return not dropout and config.activation_function in ("gelu_new", "gelu_pytorch_tanh")


def predictor(config) -> Callable[..., Budget]:
    """What predicts steps of a model, called as ``(plan, batch, length, dtype=…)``: `Step.cost`, or else `budget`."""
    return Step(config).cost if is_quick(config) else partial(budget, config)


class Step:
    """Steps of one GPT-Neo model.

    Args:
        config: one for which `is_quick` is true.
    """

    def __init__(self, config):
        self.config, self.parts = config, anatomy(build_on_meta(config))

    def cost(self, plan: FreezePlan, batch: int, length: int, dtype: torch.dtype = torch.float32) -> Budget:
        """As `budget.budget` with its other settings left alone.

        Raises:
            BudgetError, PlanError: as `budget.budget` raises them.
        """
        check_step(self.config, batch, length, dtype, "chunked", "adamw")
        walk = GPTNeoStep(self.config, plan.trainable_names(self.parts), batch, length, dtype.itemsize)
        trained = [e.n_parameters for e in self.parts.entries if e.name in walk.trained]
        walk.start(self.parts.n_parameters, sum(trained), len(trained))
        walk.run()
        full = walk.kept | {
            "parameters": FLOAT * self.parts.n_parameters,
            "gradients": FLOAT * sum(trained),
            "logits": walk.at_most_logits,
        }
        return Budget(
            plan,
            batch,
            length,
            self.parts.n_parameters,
            sum(trained),
            sum(trained) / self.parts.n_parameters,
            full,
            walk.at_peak,
            Flops(*walk.flops),
        )


class GPTNeoStep(Walk):
    """One step of a GPT-Neo model, in the order of the training loop."""

    def __init__(self, config, trained: frozenset[str], batch: int, length: int, half: int):
        super().__init__(trained, batch, length, config.hidden_size, half)
        self.config, self.inner = config, config.intermediate_size or 4 * config.hidden_size
        self.kept, self.at_most_logits = {}, 0

    def start(self, n_parameters: int, n_trainable: int, n_tensors: int) -> None:
        """What is there before the step: weights, masks, and AdamW's moments with one step count a tensor."""
        masks = self.config.num_layers * self.config.max_position_embeddings**2
        self.there = [
            Size(self, FLOAT * n_parameters, "parameters"),
            Size(self, masks, "buffers"),
            Size(self, 2 * FLOAT * n_trainable + FLOAT * n_tensors, "optimizer"),
        ]

    def run(self) -> None:
        """Forward, loss and backward pass, in the order of the training loop."""
        ids = Size(self, INDEX * self.n)
        last = self.loss(Size(self, INDEX * self.batch * (self.length - 1)))
        self.casts.clear()  # autocast ends with the forward pass
        self.kept = self.alive.copy()
        self.backward(last, Size(self, FLOAT))
        del ids
        self.gradients.clear()  # or they and this step would hold each other
        self.there.clear()

    def attend(self, q: Size, k: Size, v: Size, kind: str) -> Size:
        """The fused kernel: it keeps what it read and made, and one number a query and head."""
        pairs = self.length**2
        mask = None
        if kind == "local" and self.length > self.config.window_size:
            inverse = Size(self, pairs)  # True where hidden
            mask = Size(self, self.half * pairs)
            del inverse
        y, sums = Size(self, q.n_bytes), Size(self, FLOAT * self.n * self.config.num_heads)
        flops = 4 * self.batch * pairs * self.width
        self.flops[0] += flops

        def back(gradient, kept=(q, k, v, y, sums, mask)):
            self.flops[1] += 2 * flops
            return [Size(self, one.n_bytes) for one in kept[:3]]

        y.node = self.node([q, k, v], False, back)
        return y

    def block(self, x: Size, i: int, kind: str) -> Size:
        """The names live as long as in the real block."""
        name, d = f"transformer.h.{i}", self.width
        hidden = self.layer_norm(x, f"{name}.ln_1")
        attended = self.attention(hidden, f"{name}.attn.attention", kind)
        hidden = after = self.add(attended, x)
        hidden = self.layer_norm(hidden, f"{name}.ln_2")
        inside = self.linear(hidden, f"{name}.mlp.c_fc", d, self.inner)
        inside = self.gelu(inside)
        inside = self.linear(inside, f"{name}.mlp.c_proj", self.inner, d)
        return self.add(after, inside)

    def attention(self, hidden: Size, name: str, kind: str) -> Size:
        q, k, v = (self.linear(hidden, f"{name}.{part}_proj", self.width, self.width) for part in "qkv")
        return self.linear(self.attend(q, k, v, kind), f"{name}.out_proj", self.width, self.width)

    def embed(self) -> tuple[Size, ...]:
        """The first x, and what the model's own function holds on to: the two embeddings and the positions."""
        width, config = self.width, self.config
        tables = {
            "transformer.wte.weight": (self.n, config.vocab_size),
            "transformer.wpe.weight": (self.length, config.max_position_embeddings),
        }
        rows = []
        for name, (n_rows, n_all) in tables.items():
            row = Size(self, FLOAT * n_rows * width)
            row.node = self.node(
                [],
                name in self.trained,
                lambda g, name=name, n=n_all * width: self.keep_gradient(name, n) or [],
            )
            rows.append(row)
        x = Size(self, FLOAT * self.n * width)
        sums_places = rows[1].node is not None and self.batch > 1
        x.node = self.node(
            rows, False, lambda g: [g, Size(self, FLOAT * self.length * width) if sums_places else g]
        )
        return x, *rows, Size(self, 2 * INDEX * self.length)

    def loss(self, targets: Size) -> Node:
        """The chunked loss: it goes backward at once, chunk by chunk, and keeps the gradient of its input."""
        x, *held = self.embed()
        for i, kind in enumerate(self.config.attention_layers):
            x = self.block(x, i, kind)
        x = self.layer_norm(x, "transformer.ln_f")
        del held
        return self.chunks(x)

    def chunks(self, x: Size) -> Node:
        """A chunk's logits serve all chunks. The sizes in ``held`` are alive together at its fullest."""
        n, width, words = self.batch * (self.length - 1), self.width, self.config.vocab_size
        chunk, head, is_half = min(CHUNK, n), "transformer.wte.weight", self.half < FLOAT
        held = [Size(self, FLOAT * n * width)] if self.batch > 1 else []  # x without each window's last token
        if is_half:
            held.append(Size(self, self.half * words * width, "parameters"))
        self.flops[0] += 2 * n * words * width
        made = self.loss_gradients(x, head, n)
        held.append(Size(self, self.half * chunk * row_length(words), "logits"))
        wide = Size(self, FLOAT * chunk * words, "logits") if is_half else None  # softmax is taken in float32
        if is_half:
            held.append(Size(self, self.half * chunk * words, "logits"))
        self.at_most_logits = self.alive["logits"]
        del wide
        held.append(Size(self, max((INDEX + 5 * FLOAT) * chunk, self.half * chunk * width if x.node else 0)))
        if is_half and head in self.trained:
            held[-1] = Size(self, self.half * words * width)
        return self.node([x], head in self.trained, lambda g, kept=made: [Size(self, FLOAT * self.n * width)])

    def loss_gradients(self, x: Size, head: str, n: int) -> Size | None:
        """The loss goes backward within the forward pass: the gradients of the head and of its input."""
        flops, made = 2 * n * self.config.vocab_size * self.width, None
        if x.node:
            self.flops[1] += flops
            made = Size(self, FLOAT * n * self.width)
        if head in self.trained:
            self.flops[2] += flops
            self.keep_gradient(head, self.config.vocab_size * self.width)
        return made
