"""What all widgets of the course share: labelled controls, an answer to each change, errors that are seen.

A widget is a `Frame`: controls above views. Whenever a control changes, `answer` gets the values of all
controls and yields (view, HTML) pairs, one after the other; each is shown as soon as it is there. So what a
widget says is a plain function of its controls, and a test needs no browser.

A notebook keeps outputs without a kernel, on GitHub for instance. There a widget is nothing. So each one
shows two things in one output: the live controls, and a picture with a text that says what it shows. A page
with a kernel takes the controls; `notebook_kernel.tidy_outputs` drops them from stored outputs, and the
picture stays. Only ipywidgets' own controls are used: they work with the keyboard, and in Colab, whose
ipywidgets is often of version 7. The views are never cleared, only replaced, so that nothing flickers or jumps.
"""

from __future__ import annotations

import html
import io
from base64 import b64encode
from collections.abc import Callable, Iterable, Mapping
from contextlib import contextmanager

import ipywidgets
from IPython.display import display
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from helpers.costs import BudgetError
from helpers.files import wrapped
from helpers.freezing import PlanError
from helpers.models import ModelError

WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
PROBLEM_CLASS = "course-widget-problem"
STALE = "What stands below is from before."
DPI = 100
# What a reader's choice can bring about. Its message is shown; anything else is shown and raised as well.
EXPECTED = (PlanError, BudgetError, ModelError)
# The page's own colours where it names them (JupyterLab, light and dark), else what surrounds the widget.
STYLE = "color: var(--jp-ui-font-color1, inherit); line-height: 1.4;"

Answer = Callable[..., Iterable[tuple[str, str]]]


class Frame:
    """A widget: controls, and views that say what their values mean.

    Args:
        controls: name to control. Their values are the keyword arguments of ``answer``.
        views: name to the least height in pixels, so that the page does not jump when a text gets shorter.
        answer: yields (view, HTML) for given values, the quick ones first.
        still: makes (figure, sentence) of what is shown first, for pages without a kernel. The sentence
            is the picture's alternative text and, in lines that fit the page, the output's; notebooks are compared
            by it.
        rows: names of controls that stand in one row; None: each has its own.
        button: the name of a Button, where an answer takes so long that the reader must ask for it.
        adjust: called with the values before an answer, to fit other controls to a change, such as a slider's end.
        at_first: values that the first answer gets in place of the controls', to be quick.

    Raises:
        Exception: whatever ``answer`` raises on the values at the start.
    """

    def __init__(
        self,
        controls: Mapping[str, ipywidgets.Widget],
        views: Mapping[str, int],
        answer: Answer,
        still: Callable[[], tuple[Figure, str]],
        rows: Iterable[Iterable[str]] | None = None,
        button: str | None = None,
        adjust: Callable[..., None] | None = None,
        at_first: Mapping | None = None,
    ):
        self.controls, self.answer, self.still, self.adjust = dict(controls), answer, still, adjust
        self.button = self.controls.get(button)
        self.views = {
            name: ipywidgets.HTML(layout={"min_height": f"{height}px"}) for name, height in views.items()
        }
        self.problem = ipywidgets.HTML()
        self._is_quiet = False
        lines = [
            ipywidgets.Box([self.controls[name] for name in row], layout={"flex_flow": "row wrap"})
            for row in rows or [[name] for name in self.controls]
        ]
        self.box = ipywidgets.VBox([*lines, self.problem, *self.views.values()])
        self._show(**self.values | dict(at_first or {}))
        if self.button is not None:
            self.button.on_click(lambda _: self._pressed())
        else:
            for one in self.controls.values():
                one.observe(self._changed, "value")

    @property
    def values(self) -> dict:
        """What the controls say now."""
        return {name: one.value for name, one in self.controls.items() if one is not self.button}

    @contextmanager
    def quietly(self):
        """Change controls without an answer to each change."""
        self._is_quiet = True
        try:
            yield
        finally:
            self._is_quiet = False

    def _changed(self, change) -> None:
        if not self._is_quiet:
            self.run(self._follow)

    def _follow(self) -> None:
        if self.adjust:
            with self.quietly():
                self.adjust(**self.values)
        self._show(**self.values)

    def _pressed(self) -> None:
        self.button.disabled = True  # impatient clicks would wait in line
        try:
            self.run(self._follow)
        finally:
            self.button.disabled = False

    def run(self, work: Callable[[], None]) -> None:
        """Do something for the reader; an error is shown above the views.

        Raises:
            Exception: an error that no choice of the reader's can explain. The page's log then has its traceback.
        """
        try:
            work()
        except EXPECTED as error:
            self.problem.value = problem_html(error)
        except Exception as error:
            self.problem.value = problem_html(error)
            raise
        else:
            self.problem.value = ""

    def _show(self, **values) -> None:
        for view, text in self.answer(**values):
            self.views[view].value = text

    def _ipython_display_(self) -> None:
        figure, sentence = self.still()
        bundle = {
            "text/plain": wrapped(sentence),
            "image/png": b64encode(png(figure)).decode(),
            WIDGET_VIEW: {"version_major": 2, "version_minor": 0, "model_id": self.box.model_id},
        }
        display(bundle, metadata={"image/png": {"alt": sentence}}, raw=True)


def control(kind: type, description: str, tooltip: str, **traits) -> ipywidgets.Widget:
    """A control with a label that is never cut off, and a tooltip, in either version of ipywidgets."""
    is_old = ipywidgets.__version__.startswith("7.")
    tip = {"description_tooltip" if is_old and kind is not ipywidgets.Button else "tooltip": tooltip}
    if kind is not ipywidgets.Button:
        tip["style"] = {"description_width": "initial"}
    return kind(description=description, **tip, **traits)


def problem_html(error: Exception) -> str:
    """An error as the reader sees it: its message, its kind where the message alone would not do, and what is old."""
    name = "" if isinstance(error, EXPECTED) else f"<b>{type(error).__name__}</b>: "
    return (
        f'<div class="{PROBLEM_CLASS}" role="alert" style="border-left: 4px solid var(--jp-error-color1, #b00020); '
        f'padding-left: 8px; {STYLE}">{name}{html.escape(str(error))} <i>{STALE}</i></div>'
    )


def tick(name: str, tooltip: str, is_on: bool) -> ipywidgets.Checkbox:
    """A checkbox as narrow as its label, so that several stand in a row."""
    return control(
        ipywidgets.Checkbox,
        name,
        tooltip,
        value=is_on,
        indent=False,
        layout={"width": "auto", "margin": "2px 1em 2px 4px"},
    )


def table_html(head: Iterable[str], rows: Iterable[Iterable[str]], css_class: str) -> str:
    """A table: the first column names the row, all others are numbers or words, right-aligned. Cells are HTML."""
    first, *others = head
    top = f'<th scope="col" style="text-align: left">{first}</th>' + "".join(
        f'<th scope="col" style="text-align: right; padding-left: 1.2em">{name}</th>' for name in others
    )
    body = "".join(
        f'<tr><th scope="row" style="text-align: left; font-weight: normal">{name}</th>'
        + "".join(f'<td style="text-align: right; padding-left: 1.2em">{cell}</td>' for cell in cells)
        + "</tr>"
        for name, *cells in rows
    )
    return (
        f'<div style="overflow-x: auto"><table class="{css_class}" style="border-collapse: collapse; {STYLE}">'
        f"<thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def png(figure: Figure) -> bytes:
    """A figure as a picture, on white whatever the page's theme. It needs no pyplot, so nothing is left open."""
    canvas, out = FigureCanvasAgg(figure), io.BytesIO()
    figure.set_dpi(DPI)
    figure.set_facecolor("white")
    canvas.print_png(out)
    return out.getvalue()
