"""What all widgets of the course share: a drawing in the page, a kernel that answers it, and a still picture.

A widget is a `LiveDrawing`: an ES module of the folder `js` that draws and reacts by itself, with `anywidget` between
it and Python. It needs the kernel only for what needs the model: then the reader's choice comes here, and `answer`
yields what it means, as plain JSON. So what a widget says of a model is a plain function of the choice, and a test
needs no browser. The site runs the same modules, without a kernel, on what a stored output keeps in its metadata.

A notebook keeps outputs without a kernel, on GitHub for instance. There a widget is nothing. So each one
shows two things in one output: the live drawing, and a picture with a text that says what it shows. A page
with a kernel takes the drawing; `publishing.kernel.tidy_outputs` drops it from stored outputs, and the
picture stays.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path

import anywidget
import traitlets
from IPython.display import display
from matplotlib.figure import Figure

from helpers import plots
from helpers.costs import BudgetError
from helpers.files import wrapped
from helpers.freezing import PlanError
from helpers.models import ModelError

__all__ = ["MODULES", "ON_PAGES"]

MODULES = Path(__file__).with_name("js")
ON_PAGES = "course-widget"  # the key in an output's metadata under which the site finds a widget
IMPORT = re.compile(r'^import \{[^}]*\} from "\./(\w+)\.js";\n', re.MULTILINE)
STALE = "What you see is from before."
# What a reader's choice can bring about. Its message is shown; anything else is shown and raised as well.
EXPECTED = (PlanError, BudgetError, ModelError)

Answer = Callable[[dict], Iterable[dict]]


class LiveDrawing(anywidget.AnyWidget):
    """A drawing that reacts to the reader.

    Args:
        module: the name of its ES module in the folder `js`.
        data: what it draws, as JSON; it stays as it is.
        choice: what the reader has chosen, as JSON; the module changes it.
        still: makes (figure, sentence) of the first choice, for pages without a kernel. The sentence is the
            picture's alternative text and, in lines that fit the page, the output's; notebooks are compared by it.
        answer: yields what a choice means, as JSON, one after the other; None: the module needs no kernel.
        is_on_page: whether the site runs the module; else it shows the picture.

    Raises:
        Exception: whatever ``answer`` raises on the first choice.
    """

    data = traitlets.Dict().tag(sync=True)
    choice = traitlets.Dict().tag(sync=True)
    answer = traitlets.Dict().tag(sync=True)
    problem = traitlets.Unicode().tag(sync=True)
    alive = traitlets.Bool(True).tag(sync=True)  # on the site it is not there: no kernel answers
    _esm = traitlets.Unicode().tag(sync=True)
    _css = traitlets.Unicode().tag(sync=True)

    def __init__(
        self,
        module: str,
        data: Mapping,
        choice: Mapping,
        still: Callable[[], tuple[Figure, str]],
        answer: Answer | None = None,
        is_on_page: bool = True,
    ):
        css = (MODULES / "widgets.css").read_text(encoding="utf-8")
        super().__init__(data=dict(data), choice=dict(choice), _esm=module_text(module), _css=css)
        self._module, self._still, self._answer, self._is_on_page = module, still, answer, is_on_page
        if answer is not None:
            self._show()
            self.observe(lambda change: self._run(), "choice")

    def _show(self) -> None:
        for found in self._answer(dict(self.choice)):
            self.answer = found

    def _run(self) -> None:
        """Answer a choice; the reader sees an error in words.

        Raises:
            Exception: an error that no choice of the reader's can explain. The page's log then has its traceback.
        """
        self.problem = ""  # first, so that the same problem twice is said twice
        try:
            self._show()
        except EXPECTED as error:
            self.problem = f"{error} {STALE}"
        except Exception as error:
            self.problem = f"{type(error).__name__}: {error} {STALE}"
            raise

    def on_page(self) -> str | None:
        """What the site needs to run the module without a kernel, as one line of JSON; None where it cannot."""
        if not self._is_on_page:
            return None
        values = {name: getattr(self, name) for name in ("data", "choice", "answer")}
        return json.dumps({"module": self._module, **values}, separators=(",", ":"), ensure_ascii=False)

    def _ipython_display_(self) -> None:
        figure, sentence = self._still()
        bundle, metadata = self._repr_mimebundle_()  # for Colab, with the address of what draws widgets there
        figure.set_facecolor("white")  # whatever the page's theme
        data, size = plots.png(figure, bbox_inches=None)
        bundle |= {"text/plain": wrapped(sentence), "image/png": data}
        metadata = {**metadata, "image/png": {"alt": sentence, **size}}
        if (page := self.on_page()) is not None:
            metadata[ON_PAGES] = page
        display(bundle, metadata=metadata, raw=True)


@cache
def module_text(name: str) -> str:
    """An ES module, with all that it imports from its folder, as one text: a notebook takes no second file.

    Raises:
        FileNotFoundError: there is no such module.
    """
    text = (MODULES / f"{name}.js").read_text(encoding="utf-8")
    return "\n".join([*(without_exports(part) for part in needs(name)), IMPORT.sub("", text)])


def needs(name: str) -> list[str]:
    """The modules that one imports, each once, after those that it imports itself."""
    found: list[str] = []
    for other in IMPORT.findall((MODULES / f"{name}.js").read_text(encoding="utf-8")):
        found += [each for each in (*needs(other), other) if each not in found]
    return found


def without_exports(name: str) -> str:
    """A module's own text, all of its names private."""
    text = (MODULES / f"{name}.js").read_text(encoding="utf-8")
    return re.sub(r"^export ", "", IMPORT.sub("", text), flags=re.MULTILINE)
