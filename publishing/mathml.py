"""LaTeX formulas as MathML, which browsers draw themselves: no script, no font and no picture is fetched."""

from __future__ import annotations

import re

from latex2mathml import converter, exceptions

# latex2mathml's errors have no class in common.
UNTRANSLATABLE = (
    IndexError,
    KeyError,
    ValueError,
    *(
        error
        for error in vars(exceptions).values()
        if isinstance(error, type) and issubclass(error, Exception)
    ),
)
WORDS = re.compile(r"\\text\{[^}]*\}")  # latex2mathml keeps the backslash of "\_" in there, and shows it
# A function's name: latex2mathml leaves no room beside it. One with an index is in an element of its own.
NAMED = r"<mi>(?:ln|log|exp|sin|cos|tan|tanh)</mi>"
ROOM = '<mspace width="0.17em"/>'
INFINITY = "<{0}>&#x0221E;</{0}>"  # an operator to latex2mathml, with room on both sides; it is a number


class FormulaError(ValueError):
    """A formula that cannot be translated. The message names it."""


def mathml(formula: str, display: str) -> str:
    """A LaTeX formula as MathML.

    Args:
        formula: without its dollar signs.
        display: "inline" within a line, "block" on a line of its own.

    Raises:
        FormulaError: latex2mathml does not understand it, or a command in it.
    """
    try:
        plain = WORDS.sub(lambda found: found[0].replace("\\_", "_"), formula.strip())
        drawn = converter.convert(plain, display=display)
    except UNTRANSLATABLE as error:
        raise FormulaError(
            f"The formula '{formula.strip()}' cannot be translated to MathML "
            f"({type(error).__name__}). Write it with simpler LaTeX."
        ) from error
    if "\\" in drawn:
        raise FormulaError(
            f"The formula '{formula.strip()}' has a command that latex2mathml does not know: "
            "it would be shown as text. Write it with simpler LaTeX."
        )
    drawn = re.sub(rf"(?<=</m[in]>)({NAMED})", rf"{ROOM}\1", drawn)
    drawn = re.sub(rf"(?<!<msub>)(?<!<msup>)({NAMED})(?=<m[^o])", rf"\1{ROOM}", drawn)
    return drawn.replace(INFINITY.format("mo"), INFINITY.format("mi"))
