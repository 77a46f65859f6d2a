"""Make what the page "Does it fit?" loads: the course's budget as formulas of a model's sizes.

    course site --data        (some minutes on one thread)

`helpers.costs.budget` runs a step on tensors without numbers, which a browser cannot. So it is run here, on a model
whose sizes are different prime numbers: the bytes of each tensor then say by themselves of which sizes they are the
product. The running sums of these are what is alive at each moment of the step, as a formula. Blocks are all alike: two
models of different depth show what one block adds. Of all moments only those are stored that are the fullest for some
model. Which moments there are depends on whether a batch is one window, so each of both has a table of its own.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import torch
from transformers import GPTNeoConfig, LlamaConfig, PretrainedConfig

from helpers.costs import (
    DEVICES,
    GIB,
    KINDS,
    RESERVE,
    WITHOUT_BFLOAT16,
    Budget,
    LoraSize,
    StepMeter,
    budget,
)
from helpers.freezing import COURSE_PLANS, LORA_PLAN
from helpers.models import row_length
from helpers.plots import KIND_COLOURS
from publishing.page_records import text

OUT = Path(__file__).resolve().parent / "static" / "mini" / "data"
# GiB. A laptop's graphics card as it is sold; a second card with the room of another is left out.
CARDS = {"laptop": 8} | {card: gib for card, gib in DEVICES.items() if card != "H100"}
LORA = "lora"
LORA_WHERE = "attention"
BATCHES = (1, 2, 4, 8, 16, 32, 64)
LENGTHS = (256, 512, 1024, 2048)
RANKS = (4, 8, 16, 64)
PRECISIONS = {  # of products and of frozen weights
    "float32": (torch.float32, torch.float32),
    "half": (torch.bfloat16, torch.bfloat16),
}
STILL_PLANS = ("full", "attention", "attention+embeddings", "first-half")
STILL_KINDS = {
    "weights": ("parameters", "buffers"),
    "moments": ("optimizer",),
    "gradients": ("gradients",),
    "activations": ("activations",),
    "logits": ("logits",),
}
# L blocks, B windows of T tokens, S = T - 1, g key-value heads, q queries a key-value head, e numbers a head, f numbers
# inside the MLP, V words, W words in a stored row of logits, P positions, r: LoRA's rank.
SYMBOLS = "BTSgqefVWPr"
PRIMES = {"g": 5, "q": 7, "e": 3, "f": 11, "V": 293, "W": 19, "P": 271, "r": 17}


@dataclass(frozen=True)
class Shape:
    """The sizes of a model. ``window``: how far local attention looks back, or None."""

    family: str
    L: int
    g: int
    q: int
    e: int
    f: int
    V: int
    P: int
    window: int | None = None

    def config(self) -> PretrainedConfig:
        """The transformers config of a model of these sizes."""
        if self.family == "gpt_neo":
            return GPTNeoConfig(
                hidden_size=self.g * self.e,
                num_layers=self.L,
                num_heads=self.g,
                intermediate_size=self.f,
                vocab_size=self.V,
                max_position_embeddings=self.P,
                window_size=self.window,
                attention_types=[[["global", "local"], self.L // 2]],
                attention_dropout=0.0,
                embed_dropout=0.0,
                resid_dropout=0.0,
                bos_token_id=0,
                eos_token_id=0,
            )
        return LlamaConfig(
            hidden_size=self.g * self.q * self.e,
            intermediate_size=self.f,
            num_hidden_layers=self.L,
            num_attention_heads=self.g * self.q,
            num_key_value_heads=self.g,
            vocab_size=self.V,
            max_position_embeddings=self.P,
            tie_word_embeddings=True,
        )


# A family is what the formulas tell apart. "llama": several queries share a key-value head, and the head is
# the token table. Qwen2's biases are less than a thousandth of its bytes, and left out.
FAMILIES = ("gpt_neo", "llama")
MODELS = {
    "the course's miniature": Shape("gpt_neo", 4, 4, 1, 40, 640, 4096, 256, 64),
    "GPT-Neo 125M": Shape("gpt_neo", 12, 12, 1, 64, 3072, 50257, 2048, 256),
    "GPT-Neo 1.3B": Shape("gpt_neo", 24, 16, 1, 128, 8192, 50257, 2048, 256),
    "GPT-Neo 2.7B": Shape("gpt_neo", 32, 20, 1, 128, 10240, 50257, 2048, 256),
    "SmolLM2-135M": Shape("llama", 30, 3, 3, 64, 1536, 49152, 8192),
    "Qwen2.5-0.5B": Shape("llama", 24, 2, 7, 64, 4864, 151936, 32768),
    "Llama 3.2 1B": Shape("llama", 16, 8, 4, 64, 8192, 128256, 131072),
}
# The course's plans that the page has, and LoRA.
PLANS = ("full", "attention", "embeddings", "attention+embeddings", "first-half", LORA)


# The batches that a step's tensors are traced with: one window, and more. Both have a loss of more than one chunk, as
# every step of the page has, but for one window of the miniature, which is one prediction short of it. All windows are
# longer than local attention looks back. A length is a prime, half of whose predecessor is a prime too.
CASES = {"one": (1, 263), "more": (13, 47)}


def offered(shape: Shape) -> list[int]:
    """Return the lengths that the page offers for a model."""
    return [length for length in LENGTHS if (shape.window or LENGTHS[0]) < length <= shape.P]


def offered_ranks(shape: Shape) -> list[int]:
    """Return LoRA's ranks that the page offers for a model: at most the width of its keys."""
    return [rank for rank in RANKS if rank <= shape.g * shape.e]


def predicted(shape: Shape, setting: Mapping, **more) -> Budget:
    """Return the course's own budget of a step, as the page names it: with the keys of `budget.js`."""
    plan, (dtype, frozen) = setting["plan"], PRECISIONS[setting["precision"]]
    return budget(
        shape.config(),
        LORA_PLAN if plan == LORA else COURSE_PLANS[plan],
        setting["batch"],
        setting["length"],
        dtype=dtype,
        frozen_dtype=frozen,
        checkpointing=setting["checkpointing"],
        lora=LoraSize(LORA_WHERE, setting["rank"]) if plan == LORA else None,
        n_parts=setting["parts"],
        **more,
    )


# --- a step as a tape --------------------------------------------------------------


class TapeMeter(StepMeter):
    """Writes down each change of what is alive, in its order: (kind, bytes)."""

    def __init__(self, model):
        self.tape, self.marks = [], []
        super().__init__(model)

    def enter(self, phase: str) -> None:
        self.marks.append(len(self.tape))
        super().enter(phase)

    def __exit__(self, *problem):
        self.marks.append(len(self.tape))  # what comes later is the end of the model itself
        return super().__exit__(*problem)

    def passes(self) -> list[list[int]]:
        """Where each pass, forward and backward, twice, is full: the places before something is freed."""
        found = []
        for start, end in pairwise(self.marks):
            tape = [size for _, size in self.tape[start : end + 1]]
            found.append(
                [
                    start + i
                    for i, (a, b) in enumerate(pairwise(tape))
                    if a > 0 > b or (a > 0 and i == end - start - 1)
                ]
            )
        return found

    def _add(self, kind: str, size: int) -> None:
        self.tape.append((KINDS.index(kind), size))
        super()._add(kind, size)


def alike(shallow: np.ndarray, deep: np.ndarray) -> int:
    """Return at how many places from the start of a pass both models stand at the same moment.

    It ends where the shallow model leaves its last block: there the deep one begins another.

    Args:
        shallow, deep: (places, columns): what is alive at each place of the pass.
    """
    n = min(len(shallow), len(deep))
    same = (np.diff(shallow[:n], axis=0) == np.diff(deep[:n], axis=0)).all(1)
    return 1 + int(np.append(same, False).argmin())


def recorded(shape: Shape, plan: str, case: str, precision: str, checkpointing: bool) -> TapeMeter:
    """Run a step of two micro-batches: with real numbers, for on so small a model that takes a tenth of the time."""
    meters = []

    def meter(model):
        meters.append(TapeMeter(model))
        return meters[-1]

    batch, length = CASES[case]
    setting = {"plan": plan, "precision": precision, "checkpointing": checkpointing}
    setting |= {"batch": batch, "length": length, "parts": 2, "rank": PRIMES["r"]}
    predicted(shape, setting, meter=meter, on_shapes=False)
    return meters[0]


def primes(family: str, case: str) -> dict[str, int]:
    """Return the prime that stands for each symbol; none where the symbol is 1."""
    batch, length = CASES[case]
    found = dict(PRIMES, B=batch, T=length, S=(length - 1) // 2)
    if family == "gpt_neo":
        del found["q"]
    return {symbol: prime for symbol, prime in found.items() if prime > 1}


def factored(n_bytes: int, primes: Mapping[str, int]) -> tuple[str, float]:
    """Return the symbols in a number of bytes, and what is left over.

    Raises:
        ValueError: it is no product of sizes.
    """
    symbols, left = "", abs(n_bytes)
    for symbol, prime in primes.items():
        while left and left % prime == 0:
            symbols, left = symbols + symbol, left // prime
    rest = left
    for small in (2, 3, 43):  # 43: of the last chunk of the loss, 2 x 43 predictions
        while rest and rest % small == 0:
            rest //= small
    if rest > 1:
        raise ValueError(f"{n_bytes} bytes are no product of the sizes {dict(primes)}: {left} is left over.")
    scale = {"e": 2, "S": 2, "W": 16}  # a head has 2 x 3 numbers, and so on
    for symbol in symbols:
        left /= scale.get(symbol, 1)
    return "".join(sorted(symbols, key=SYMBOLS.index)), np.sign(n_bytes) * left


class Moments:
    """What is alive at each moment of a step of ``family``, for any number of blocks.

    Attributes:
        columns: (kind, symbols) of each column of ``formulas``.
        formulas: (moments, columns, 2): bytes, and bytes for each block.
        parts: (moments,), 1 or 2: in which micro-batch.
    """

    def __init__(self, family: str, plan: str, case: str, precision: str, checkpointing: bool):
        small, large = depths(family, plan)
        tapes = [recorded(sizes(family, n), plan, case, precision, checkpointing) for n in (small, large)]
        self.columns: list[tuple[int, str]] = []
        self._factored = cache(partial(factored, primes=primes(family, case)))
        self._column: dict[tuple[int, str], int] = {}
        sums = [self._sums([self._change(*change) for change in tape.tape]) for tape in tapes]
        found, parts = [], []
        for i, (a, b) in enumerate(zip(*(tape.passes() for tape in tapes), strict=True)):
            one, other = sums[0][a], sums[1][b]
            first, last = alike(one, other), alike(one[::-1], other[::-1])
            for shallow, deep in ((one[:first], other[:first]), (one[-last:], other[-last:])):
                each = (deep - shallow) / (large - small)
                found.append(np.stack([shallow - small * each, each], -1))
                parts += [1 + i // 2] * len(each)
        self.formulas, self.parts = np.concatenate(found), np.array(parts)

    def _change(self, kind: int, n_bytes: int) -> tuple[int, float]:
        symbols, amount = self._factored(n_bytes)
        key = (kind, symbols)
        if key not in self._column:
            self._column[key] = len(self.columns)
            self.columns.append(key)
        return self._column[key], amount

    def _sums(self, steps: list[tuple[int, float]]) -> np.ndarray:
        table = np.zeros((len(steps), len(self.columns)))
        for i, (column, amount) in enumerate(steps):
            table[i, column] = amount
        return table.cumsum(0)

    def fullest(self, settings: np.ndarray) -> list[int]:
        """Return the moments that are the fullest for some setting, with one micro-batch or two.

        Args:
            settings: (settings, 1 + symbols): L, and the value of each of `SYMBOLS`.
        """
        products = np.ones((len(settings), len(self.columns)))
        for j, (_, symbols) in enumerate(self.columns):
            for symbol in symbols:
                products[:, j] *= settings[:, 1 + SYMBOLS.index(symbol)]
        bytes_ = products @ self.formulas[:, :, 0].T
        bytes_ += (products * settings[:, :1]) @ self.formulas[:, :, 1].T  # (settings, moments)
        first = np.where(self.parts == 1, bytes_, -np.inf)
        return sorted({*bytes_.argmax(1).tolist(), *first.argmax(1).tolist()})

    def rows(self, i: int) -> list[dict[str, float]]:
        """Return a moment's formula of each kind: symbols (with L where each block adds it) to bytes."""
        found = [{} for _ in KINDS]
        for (kind, symbols), amounts in zip(self.columns, self.formulas[i], strict=True):
            for prefix, amount in zip(("", "L"), amounts, strict=True):
                if amount:
                    found[kind][prefix + symbols] = float(amount)
        return found


def depths(family: str, plan: str) -> tuple[int, int]:
    """Return two numbers of blocks, of which the smaller has a first, a last and one between.

    GPT-Neo's blocks alternate between two kinds. Where a half is frozen, so must those of a half.
    """
    if plan == "first-half":
        return (4, 8) if family == "gpt_neo" else (4, 6)
    return (4, 6) if family == "gpt_neo" else (3, 4)


def sizes(family: str, n_blocks: int) -> Shape:
    """Return a model whose sizes are different primes, or small multiples of them."""
    q = PRIMES["q"] if family == "llama" else 1
    window = 16 if family == "gpt_neo" else None
    return Shape(
        family,
        n_blocks,
        PRIMES["g"],
        q,
        2 * PRIMES["e"],
        PRIMES["f"],
        PRIMES["V"],
        PRIMES["P"],
        window,
    )


# --- the table ---------------------------------------------------------------------


def settings(family: str, case: str, rng: np.random.Generator) -> np.ndarray:
    """Return models and batches, by which the fullest moments are found: (settings, 1 + symbols)."""
    shapes = [shape for shape in MODELS.values() if shape.family == family]
    shapes += [edited(shape, rng) for shape in shapes for _ in range(12)]
    found = []
    batches = [batch for batch in BATCHES if (batch == 1) == (case == "one")]
    for shape, batch, rank in product(shapes, batches, RANKS[1:3]):
        found += [values(shape, batch, length, rank) for length in offered(shape)]
    return np.array(found, dtype=float)


def edited(shape: Shape, rng: np.random.Generator) -> Shape:
    """Return a model of the same family with other sizes, as a reader may type them."""
    return Shape(
        shape.family,
        4 * int(rng.integers(1, 13)),
        int(rng.integers(1, 17)),
        shape.q if shape.q == 1 else int(rng.integers(2, 9)),
        16 * int(rng.integers(1, 9)),
        64 * int(rng.integers(2, 200)),
        int(rng.integers(500, 160_000)),
        shape.P,
        shape.window,
    )


def values(shape: Shape, batch: int, length: int, rank: int) -> list[int]:
    """Return L and the value of each of `SYMBOLS`."""
    known = {"B": batch, "T": length, "S": length - 1, "W": row_length(shape.V), "r": rank}
    return [shape.L, *(known[s] if s in known else getattr(shape, s) for s in SYMBOLS)]


def key(plan: str, precision: str, checkpointing: bool) -> str:
    return f"{plan}|{precision}|{'checkpointing' if checkpointing else ''}"


class Table:
    """All that is stored. A formula that occurs often is stored once."""

    def __init__(self):
        self.formulas: dict[str, int] = {}
        self.families: dict[str, dict] = {family: {} for family in FAMILIES}

    def add(self, family: str, plan: str, precision: str, checkpointing: bool) -> None:
        """Add a plan in all cases."""
        rng = np.random.default_rng(0)
        found = {}
        for case in CASES:
            moments = Moments(family, plan, case, precision, checkpointing)
            fullest = moments.fullest(settings(family, case, rng))
            found[case] = [self._row(moments, i) for i in fullest]
        self.families[family][key(plan, precision, checkpointing)] = found

    def _row(self, moments: Moments, i: int) -> list[int]:
        """The micro-batch, and the number of each kind's formula."""
        texts = [json.dumps(row, separators=(",", ":")).replace(".0,", ",") for row in moments.rows(i)]
        texts = [text.replace(".0}", "}") for text in texts]
        return [
            int(moments.parts[i]),
            *(self.formulas.setdefault(text, len(self.formulas)) for text in texts),
        ]

    def as_json(self) -> str:
        """Return the whole file's text."""
        head = {
            "kinds": KINDS,
            "reserve": RESERVE,
            "cards": CARDS,
            "withoutBfloat16": WITHOUT_BFLOAT16,
            "batches": BATCHES,
            "lengths": LENGTHS,
            "ranks": RANKS,
            "models": {name: shape.__dict__ for name, shape in MODELS.items()},
            "families": self.families,
        }
        text = json.dumps(head, separators=(",", ":"))
        return f'{text[:-1]},"formulas":[{",".join(self.formulas)}]}}\n'


def make_table(families: Iterable[str] = FAMILIES, plans: Iterable[str] = PLANS) -> Table:
    """Return the formulas of all steps that the page can show."""
    table = Table()
    for family, plan in product(families, plans):
        for precision, checkpointing in product(PRECISIONS, (False, True)):
            table.add(family, plan, precision, checkpointing)
    return table


def still_picture() -> str:
    """The picture for readers whose browser runs nothing: plans of GPT-Neo 1.3B against a card's edge, as SVG."""
    card, left, scale = "L4", 190, 21  # pixels; pixels a GiB
    config = MODELS["GPT-Neo 1.3B"].config()
    edge = left + scale * RESERVE * CARDS[card]
    parts = [text(left, 24, f"One step of 4 x 512 tokens, GPT-Neo 1.3B: does it fit on an {card}?")]
    for row, plan in enumerate(STILL_PLANS):
        found, x, y = budget(config, COURSE_PLANS[plan], 4, 512), left, 44 + 46 * row
        parts.append(text(left - 8, y + 20, plan, anchor="end"))
        for name, kinds in STILL_KINDS.items():
            width, colour = scale * sum(found.at_peak[kind] for kind in kinds) / GIB, KIND_COLOURS[name][0]
            parts.append(f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="30" fill="{colour}"/>')
            x += width
        parts.append(text(x + 6, y + 20, f"{found.peak_bytes / GIB:.1f} GiB"))
    bottom = 44 + 46 * len(STILL_PLANS)
    parts.append(f'<path d="M{edge:.1f} 36V{bottom}" stroke="#222222" stroke-width="3"/>')
    x = left
    for name in STILL_KINDS:
        swatch = KIND_COLOURS[name][0]
        parts.append(f'<rect x="{x}" y="{bottom + 14}" width="12" height="12" fill="{swatch}"/>')
        parts.append(text(x + 17, bottom + 25, name))
        x += 36 + 7 * len(name)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 800 {bottom + 40}" width="800" height="{bottom + 40}">'
        + "".join(parts)
        + "</svg>"
    )


def write() -> None:
    """Write ``budgets.json`` and ``planner-still.svg``."""
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "budgets.json").write_text(make_table().as_json(), encoding="utf-8")
    (OUT / "planner-still.svg").write_text(still_picture() + "\n", encoding="utf-8")
