"""One drawing of the model, in several forms: ice blue is frozen, orange trains.

    drawings.data_flow(model)                      what flows where, with shapes
    drawings.gradient(model, plan)                 where the gradient passes, and where it stops
    drawings.areas(model, plan)                    as large as it has parameters
    drawings.base_to_tuned()                       what gain and forgetting compare
    drawings.rewinding()                           the way of training, and the straight way back
    drawings.checkpoint()                          what a run that ends must have on the disk
    drawings.lora()                                two thin matrices beside one that is frozen
    drawings.two_processes()                       one training step in two processes
    drawings.two_families()                        a block of GPT-Neo beside one of Llama

Each is an `Svg`: a notebook shows it, with a sentence for readers who cannot see it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from helpers.files import counted
from helpers.freezing import FreezePlan, Ledger
from helpers.models import anatomy
from helpers.plots import Svg

WIDTH, STREAM = 480, 76  # of a drawing, and where in it the sum runs down
NORM, ATTENTION, MLP = "norm", "attention", "mlp"
TABLE, POSITIONS = "token_embedding", "position_embedding"


@dataclass(frozen=True)
class Part:
    """A box of the drawing: its look, and what stands in it."""

    words: str
    state: str = ""  # "frozen", "trains", or "" where no plan is shown

    def draw(self, drawing: Svg, x: float, y: float, width: float, height: float) -> None:
        fill, stroke = (f"{self.state}-fill", self.state) if self.state else ("raised", "soft")
        drawing.rect(x, y, width, height, fill, stroke, radius=6, line=2)
        if self.words:
            drawing.text(x + width / 2, y + height / 2 + 5, self.words, anchor="middle")


def state_of(ledger: Ledger, role: str) -> str:
    """Whether a role of the model trains; one that trains in part does."""
    rows = {row.role: row for row in ledger.rows}
    return "trains" if role in rows and rows[role].n_trainable else "frozen"


def house(drawing: Svg, y: float, parts: Mapping[str, Part], block: str, n_blocks: int) -> float:
    """Draw the model from ``y`` down: embeddings, one block with its two skips, the head tied to the table.

    Returns:
        Where the drawing goes on: below the head.
    """
    ink = "soft"
    drawing.path(f"M 155 {y:g} V {y - 10:g} H 466 V {y + 403:g} H 270", ink, 2, "3 5")  # the tie
    parts[TABLE].draw(drawing, 24, y, 246, 40)
    parts[POSITIONS].draw(drawing, 286, y, 164, 40)
    drawing.path(f"M 366 {y + 40:g} V {y + 64:g} H 96", ink)
    drawing.arrow(100, y + 64, 88, y + 64, ink)
    drawing.arrow(STREAM, y + 40, STREAM, y + 352, ink, 3)
    drawing.rect(24, y + 88, 426, 216, "none", "line", radius=10)
    drawing.text(438, y + 110, block, 15, "soft", "end")
    for top, name in ((y + 118, ATTENTION), (y + 210, MLP)):
        drawing.arrow(STREAM, top + 20, 112, top + 20, ink)
        parts[NORM].draw(drawing, 112, top, 70, 40)
        drawing.arrow(182, top + 20, 206, top + 20, ink)
        parts[name].draw(drawing, 206, top, 232, 40)
        drawing.path(f"M 322 {top + 40:g} V {top + 64:g} H 96", ink)
        drawing.arrow(100, top + 64, 88, top + 64, ink)
    for plus in (y + 64, y + 182, y + 274):
        drawing.circle(STREAM, plus, 11, "paper", ink, 2)
        drawing.path(f"M {STREAM - 5} {plus:g} H {STREAM + 5} M {STREAM} {plus - 5:g} V {plus + 5:g}", "ink")
    drawing.text(96, y + 330, f"the same for {counted(n_blocks, 'block')}", 15, "soft")
    parts[NORM].draw(drawing, 41, y + 352, 70, 28)
    drawing.arrow(STREAM, y + 380, STREAM, y + 396, ink, 3)
    Part("head: the same table", parts[TABLE].state).draw(drawing, 24, y + 396, 246, 40)
    return y + 436


def titled(title: str, words: str, theme: str) -> tuple[Svg, float]:
    """A drawing with its title, and where the rest of it begins."""
    drawing = Svg(WIDTH, f"{title}. {words}", theme)
    return drawing, drawing.lines(24, 36, title, 440, 18, bold=True) + 14


# --- forms -------------------------------------------------------------------------


def data_flow(model: nn.Module, theme: str = "auto") -> Svg:
    """What flows through a model of this family, with the shapes of one text."""
    c = model.config
    words = (
        "Drawing of the model from top to bottom: token and position embeddings are added into the stream. "
        "In each block, LayerNorm and attention read the stream and add to it; then LayerNorm and MLP do. "
        "After the last block a LayerNorm and the head, which is the table of the token embedding, give a score "
        "for each token of the vocabulary."
    )
    drawing, y = titled("Each part adds to one stream", words, theme)
    parts = {
        TABLE: Part(f"token embedding, {c.vocab_size:,} rows"),
        POSITIONS: Part("positions"),
        NORM: Part("LN"),
        ATTENTION: Part("attention: mixes tokens"),
        MLP: Part("MLP: each token alone"),
    }
    end = house(drawing, y + 26, parts, f"x: tokens × {c.hidden_size}", c.num_hidden_layers)
    drawing.text(24, y + 4, "in: numbers of tokens", 15, "soft")
    drawing.arrow(STREAM, end, STREAM, end + 22, "soft", 3)
    drawing.text(24, end + 44, "out: a score for every token that could come next", 15, "soft")
    drawing.height = end + 64
    return drawing


def gradient(model: nn.Module, plan: FreezePlan, theme: str = "auto") -> Svg:
    """Where the gradient goes under a plan: up from the loss, through what is frozen, as far as something trains."""
    ledger = plan.explain(model)
    state = {role: state_of(ledger, role) for role in (TABLE, POSITIONS, NORM, ATTENTION, MLP)}
    in_embeddings = "trains" in (state[TABLE], state[POSITIONS])
    is_needed_before = {
        NORM: in_embeddings,
        ATTENTION: in_embeddings or state[NORM] == "trains",
        MLP: in_embeddings or "trains" in (state[NORM], state[ATTENTION]),
    }
    parts = {
        TABLE: Part(f"token embedding: {state[TABLE]}", state[TABLE]),
        POSITIONS: Part(f"positions: {state[POSITIONS]}", state[POSITIONS]),
        NORM: Part("LN", state[NORM]),
    }
    for name, label in ((ATTENTION, "attention"), (MLP, "MLP")):
        passes = state[name] == "frozen" and is_needed_before[name]
        parts[name] = Part(f"{label}: {'frozen, lets it pass' if passes else state[name]}", state[name])
    end = "goes up to the embeddings" if in_embeddings else "does not reach the embeddings"
    title = f"{plan.title.replace('+', ' and ')}: the gradient {end}"
    through = [name for name in (ATTENTION, MLP) if state[name] == "frozen" and is_needed_before[name]]
    words = (
        f"Drawing of the model. It trains: {ledger.trains}. Frozen: {ledger.freezes}. The gradient starts at the "
        f"loss below the head and {end}."
        + (f" It passes through {' and '.join(through)}, which stays as it is." if through else "")
    )
    drawing, y = titled(title, words, theme)
    y += 12
    bottom = house(drawing, y, parts, "a block", model.config.num_hidden_layers)
    top = y + 44 if in_embeddings else y + 76
    drawing.arrow(STREAM, bottom, STREAM, bottom + 22, "soft", 3)
    drawing.text(STREAM - 28, bottom + 42, "loss", bold=True)
    drawing.path(f"M {STREAM - 36} {bottom + 37:g} H 12 V {bottom:g}", "trains", 4)
    drawing.arrow(12, bottom, 12, top, "trains", 4)
    if not in_embeddings:
        drawing.path(f"M 4 {top:g} H 20", "trains", 5)
    legend(drawing, bottom + 66)
    drawing.path(f"M 246 {bottom + 75:g} H 268", "trains", 4)
    drawing.text(276, bottom + 80, "gradient")
    drawing.height = bottom + 102
    return drawing


def areas(model: nn.Module, plan: FreezePlan, theme: str = "auto") -> Svg:
    """The model with each part as large as its number of parameters, under a plan."""
    ledger = plan.explain(model)
    title = f"{plan.title.replace('+', ' and ')}: {ledger.R:.0%} of the parameters train"
    sizes = ", ".join(f"{row.role.replace('_', ' ')} {row.share:.1%}" for row in ledger.rows)
    words = f"Drawing in which areas are parameters: {sizes}. It trains: {ledger.trains}."
    drawing, y = titled(title, words, theme)
    end = city(drawing, y, model, ledger, 300)
    legend(drawing, end + 16)
    drawing.text(246, end + 30, "area: parameters", 15, "soft")
    drawing.height = end + 50
    return drawing


def city(drawing: Svg, y: float, model: nn.Module, ledger: Ledger, height: float) -> float:
    """Embeddings as one slab, blocks as columns below it, in one scale of area; returns the lower end."""
    parts, width = anatomy(model), 432.0
    counts, n_blocks = parts.counts(), model.config.num_hidden_layers
    unit = height / parts.n_parameters  # of height a parameter, over the whole width
    slab = unit * counts[TABLE]
    share = counts.get(POSITIONS, 0) / (counts[TABLE] + counts.get(POSITIONS, 0))
    slab /= 1 - share
    Part("token embedding = head", state_of(ledger, TABLE)).draw(drawing, 24, y, width * (1 - share), slab)
    if share:
        Part("", state_of(ledger, POSITIONS)).draw(drawing, 24 + width * (1 - share), y, width * share, slab)
    y += slab + 8
    step = width / n_blocks
    for name in (NORM, ATTENTION, NORM, MLP):
        depth = max(unit * counts[name] / (2 if name == NORM else 1), 3 if name == NORM else 0)
        for block in range(n_blocks):
            state = state_of(ledger, name)
            if name == NORM:
                drawing.rect(24 + block * step + 1, y, step - 2, depth, state, radius=0, line=0)
            else:
                Part("", state).draw(drawing, 24 + block * step + 1, y, step - 2, depth)
        if name != NORM:
            word = f"{'attention' if name == ATTENTION else 'MLP'}, {counted(n_blocks, 'block')}"
            drawing.rect(150, y + depth / 2 - 14, 180, 26, "paper", radius=13, line=0)
            drawing.text(240, y + depth / 2 + 4, word, anchor="middle")
        y += depth + 3
    return y


def base_to_tuned(theme: str = "auto") -> Svg:
    """What training changes, and what gain and forgetting compare."""
    words = (
        "Drawing of two models: the base on the left, the tuned model on the right, between them training on a new "
        "text. Both read the same two texts. On new chapters of the new text the tuned model's loss is lower: the "
        "gain. On pages that the base wrote itself, the distance between their predictions is the forgetting."
    )
    drawing, y = titled("Two models, two texts: gain and forgetting", words, theme)
    for x, name, state in ((24, "base", "frozen"), (322, "tuned", "trains")):
        drawing.rect(x, y, 134, 120, "raised", "line", radius=10)
        drawing.text(x + 67, y + 24, name, 16, anchor="middle", bold=True)
        for k, label in enumerate(("attention", "MLP")):
            Part(label, state).draw(drawing, x + 14, y + 36 + 40 * k, 106, 32)
    drawing.arrow(166, y + 60, 314, y + 60, "trains", 4)
    drawing.text(240, y + 48, "trains on", anchor="middle")
    drawing.text(240, y + 86, "a new text", anchor="middle")
    questions = (
        ("new chapters of that text", "gain: how much the loss falls", "trains"),
        ("pages that the base wrote", "forgetting: how far it drifted", "frozen"),
    )
    for k, (text, answer, colour) in enumerate(questions):
        top = y + 150 + 84 * k
        drawing.rect(90, top, 300, 62, "raised", colour, radius=8, line=2)
        drawing.text(240, top + 26, text, anchor="middle")
        drawing.text(240, top + 48, answer, anchor="middle", bold=True)
        for x, edge in ((57, 90), (423, 390)):
            drawing.path(f"M {x} {y + 120:g} V {top + 31:g} H {edge}", "soft")
    drawing.height = y + 320
    return drawing


def rewinding(theme: str = "auto") -> Svg:
    """The way of training from base to tuned, and the straight way back on which α counts."""
    words = (
        "Drawing of two models: the base on the left, the tuned model on the right. A bent orange line goes from one "
        "to the other: training, in many small steps. A straight line joins them as well, with marks at α = 0, 0.25, "
        "0.5, 0.75 and 1: the models that rewinding offers, each base plus α times the change. At α = 0 it is the "
        "base, at α = 1 the tuned model. No model on the straight line was trained."
    )
    drawing, y = titled("Rewinding: a straight way back", words, theme)
    top = y + 96
    for x, name, state in ((24, "base", "frozen"), (340, "tuned", "trains")):
        drawing.rect(x, top, 116, 116, "raised", "line", radius=10)
        drawing.text(x + 58, top + 24, name, 16, anchor="middle", bold=True)
        for k, label in enumerate(("attention", "MLP")):
            Part(label, state).draw(drawing, x + 10, top + 36 + 38 * k, 96, 30)
    drawing.path(
        f"M 82 {top - 8:g} C 90 {y - 10:g}, 250 {y + 70:g}, 300 {y + 20:g} S 394 {y + 30:g} 398 {top - 16:g}",
        "trains",
        4,
    )
    drawing.arrow(398, top - 17, 398, top - 8, "trains", 4)
    drawing.text(190, y + 14, "training: many small steps", anchor="middle")
    line = top + 160
    drawing.path(f"M 82 {top + 116:g} V {line:g} H 398 V {top + 116:g}", "soft", 2)
    for share in (0, 0.25, 0.5, 0.75, 1):
        x = 82 + 316 * share
        drawing.circle(x, line, 6, "ink")
        drawing.text(x, line + 26, f"{share:g}", anchor="middle")
    drawing.text(240, line - 16, "base + α · change", anchor="middle", bold=True)
    drawing.text(
        240, line + 50, "α: nothing trains here, each is only measured", anchor="middle", colour="soft"
    )
    drawing.height = line + 70
    return drawing


def checkpoint(theme: str = "auto") -> Svg:
    """What a run needs to go on: what its checkpoint holds, and what it has from elsewhere."""
    words = (
        "Drawing of a run at the top and of the disk below it. From the run four things go into the checkpoint: the "
        "weights that train, AdamW's moments of them, the state of the random numbers and the place in the data. The "
        "frozen weights do not: they are the base's, and the checkpoint holds only the base's hash, to know them again."
    )
    drawing, y = titled("Four things go to the disk", words, theme)
    drawing.rect(24, y, 432, 150, "raised", "line", radius=10)
    drawing.text(38, y + 24, "the run, in memory", 15, bold=True)
    for x, label, state in ((40, "attention", "frozen"), (152, "MLP", "trains")):
        Part(label, state).draw(drawing, x, y + 40, 98, 46)
    Part("moments", "trains").draw(drawing, 264, y + 40, 86, 46)
    for top, label in ((y + 36, "random"), (y + 66, "place")):
        Part(label).draw(drawing, 366, top, 78, 26)
    drawing.text(40, y + 110, "the base's", 15, "soft")
    drawing.text(40, y + 130, "weights", 15, "soft")
    disk = y + 196
    for x in (201, 307, 405):
        drawing.arrow(x, y + 94, x, disk - 2, "trains" if x < 400 else "soft", 3)
    drawing.rect(152, disk, 304, 92, "raised", "soft", radius=10, line=2)
    drawing.text(166, disk + 24, "checkpoint", 15, bold=True)
    drawing.text(166, disk + 48, "weights that train, moments,")
    drawing.text(166, disk + 70, "random state, place in the data")
    drawing.rect(24, disk, 112, 92, "raised", "frozen", radius=10, line=2)
    drawing.text(38, disk + 24, "base", 15, bold=True)
    drawing.text(38, disk + 48, "is there")
    drawing.text(38, disk + 70, "already")
    drawing.path(f"M 80 {y + 140:g} V {disk:g}", "frozen", 3, "3 6")
    legend(drawing, disk + 110)
    drawing.height = disk + 144
    return drawing


def lora(width: int, rank: int, theme: str = "auto") -> Svg:
    """A linear layer of ``width`` inputs and outputs under LoRA, its matrices as large as their numbers."""
    share = 2 * rank / width
    words = (
        f"Drawing of one layer. Its matrix W, {width} times {width} numbers, is a large square and frozen. Beside it "
        f"stand two thin matrices that train: A, {rank} times {width}, and B, {width} times {rank}. The input goes into "
        f"W and into A; what A gives goes into B; both results are added. A and B together have {share:.1%} of W's numbers."
    )
    drawing, y = titled(f"A and B have {share:.1%} of W's numbers, and only they train", words, theme)
    side, top = 190.0, y + 44
    thin = max(side * rank / width, 3)
    middle = top + side / 2
    drawing.text(24, y + 16, "input x", bold=True)
    drawing.path(f"M 52 {y + 24:g} V {middle:g} H 70", "soft", 3)
    drawing.arrow(68, middle, 84, middle, "soft", 3)
    drawing.rect(86, top, side, side, "frozen-fill", "frozen", radius=4, line=2)
    drawing.text(86 + side / 2, middle - 4, "W, frozen", anchor="middle", bold=True)
    drawing.text(86 + side / 2, middle + 20, f"{width} × {width}", anchor="middle")
    below = top + side + 40
    drawing.path(f"M 52 {middle:g} V {below:g} H 70", "soft", 3)
    drawing.arrow(68, below, 84, below, "soft", 3)
    drawing.rect(86, below - thin / 2, side, thin, "trains-fill", "trains", radius=0, line=2)
    drawing.text(86, below + thin / 2 + 24, f"A: {rank} × {width}")
    drawing.arrow(86 + side + 4, below, 330, below, "trains", 3)
    drawing.rect(334, below - side / 2, thin, side, "trains-fill", "trains", radius=0, line=2)
    drawing.text(334 + thin + 8, below + side / 2 - 6, f"B: {width} × {rank}")
    plus = top + 20
    drawing.path(f"M {86 + side:g} {plus:g} H {334 + thin / 2:g}", "soft", 3)
    drawing.arrow(334 + thin / 2, below - side / 2 - 4, 334 + thin / 2, plus + 12, "trains", 3)
    drawing.arrow(346 + thin / 2, plus, 420, plus, "soft", 3)
    drawing.circle(334 + thin / 2, plus, 11, "paper", "soft", 2)
    drawing.text(334 + thin / 2, plus + 6, "+", 18, anchor="middle", bold=True)
    drawing.text(372, plus - 14, "output", bold=True)
    legend(drawing, below + side / 2 + 16)
    drawing.text(246, below + side / 2 + 30, "area: numbers", 15, "soft")
    drawing.height = below + side / 2 + 52
    return drawing


def two_processes(theme: str = "auto") -> Svg:
    """One step of training in two processes: each reads its own windows, and the gradients are added up."""
    words = (
        "Drawing of two processes side by side. Each holds the whole model, attention frozen and MLP training, and "
        "reads its own windows of one batch. Each computes a gradient for the MLP alone. The two gradients are added and "
        "divided by the tokens of both, and both processes take the same step. Nothing is sent for what is frozen."
    )
    drawing, y = titled("Two processes, one step: only what trains is sent", words, theme)
    for x, number, rows in ((24, 1, "windows 1, 3"), (266, 2, "windows 2, 4")):
        drawing.text(x + 95, y + 14, rows, anchor="middle")
        drawing.arrow(x + 95, y + 22, x + 95, y + 46, "soft", 3)
        drawing.rect(x, y + 48, 190, 140, "raised", "line", radius=10)
        drawing.text(x + 95, y + 72, f"process {number}", 15, anchor="middle", bold=True)
        for k, (label, state) in enumerate((("attention", "frozen"), ("MLP", "trains"))):
            Part(label, state).draw(drawing, x + 24, y + 84 + 48 * k, 142, 38)
        drawing.path(f"M {x + 95} {y + 170:g} V {y + 236:g}", "trains", 3)
        drawing.text(
            x + (87 if number == 1 else 103), y + 212, "gradient", anchor="end" if number == 1 else "start"
        )
    drawing.path(f"M 119 {y + 236:g} H 361", "trains", 3)
    drawing.rect(110, y + 218, 260, 62, "raised", "trains", radius=8, line=2)
    drawing.text(240, y + 244, "sum of both gradients", anchor="middle", bold=True)
    drawing.text(240, y + 268, "divided by all tokens", anchor="middle")
    for x in (119, 361):
        drawing.arrow(x, y + 280, x, y + 316, "trains", 3)
    drawing.text(240, y + 312, "the same step in both", anchor="middle")
    legend(drawing, y + 336)
    drawing.height = y + 370
    return drawing


def two_families(theme: str = "auto") -> Svg:
    """A block of GPT-Neo beside one of Llama: one plan of the house, other parts."""
    words = (
        "Drawing of two blocks side by side. Both have one stream and two skips: a norm and attention read the stream and "
        "add to it, then a norm and an MLP do. In GPT-Neo the norms are LayerNorm, attention has as many keys as queries, "
        "the MLP has two matrices, and positions come from a table. In Llama the norms are RMSNorm, several queries "
        "share a key, the MLP has three matrices, and positions turn the queries and keys."
    )
    drawing, y = titled("Two families: the same house, other parts", words, theme)
    families = (
        ("GPT-Neo", "LayerNorm", "attention: own keys", "MLP: 2 matrices", "positions: a table"),
        ("Llama", "RMSNorm", "attention: few keys", "MLP: 3, with a gate", "positions: a turn"),
    )
    for x, (name, norm, attention, mlp, positions) in zip((24, 250), families, strict=True):
        stream = x + 14
        drawing.text(x, y + 14, name, 16, bold=True)
        drawing.text(x, y + 40, positions, colour="soft")
        drawing.arrow(stream, y + 52, stream, y + 330, "soft", 3)
        for top, part in ((y + 66, attention), (y + 194, mlp)):
            drawing.path(f"M {stream} {top + 16:g} H {x + 34}", "soft")
            Part(norm).draw(drawing, x + 34, top, 100, 32)
            drawing.arrow(x + 84, top + 32, x + 84, top + 46, "soft")
            Part(part).draw(drawing, x + 34, top + 46, 172, 36)
            drawing.path(f"M {x + 84} {top + 82:g} V {top + 100:g} H {stream + 16}", "soft")
            drawing.arrow(stream + 22, top + 100, stream + 12, top + 100, "soft")
            drawing.circle(stream, top + 100, 10, "paper", "soft", 2)
            drawing.text(stream, top + 106, "+", 17, anchor="middle", bold=True)
    drawing.height = y + 350
    return drawing


def legend(drawing: Svg, y: float) -> None:
    """What the two colours mean."""
    for x, state in ((24, "frozen"), (136, "trains")):
        drawing.rect(x, y, 24, 18, f"{state}-fill", state, radius=4, line=2)
        drawing.text(x + 32, y + 14, state)
