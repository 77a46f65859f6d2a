"""One drawing of the model, in several forms: ice blue is frozen, orange trains.

    drawings.data_flow(model)                      what flows where, with shapes
    drawings.gradient(model, plan)                 where the gradient passes, and where it stops
    drawings.areas(model, plan)                    as large as it has parameters
    drawings.base_to_tuned()                       what gain and forgetting compare
    drawings.rewinding()                           the way of training, and the straight way back

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


def legend(drawing: Svg, y: float) -> None:
    """What the two colours mean."""
    for x, state in ((24, "frozen"), (136, "trains")):
        drawing.rect(x, y, 24, 18, f"{state}-fill", state, radius=4, line=2)
        drawing.text(x + 32, y + 14, state)
