"""The form in which a reader writes a prediction: a guess, and a range of 80%. What `predict` shows in a notebook."""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping

import ipywidgets
from IPython.display import display

from helpers.files import wrapped

WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
# The page's own colour where it names one (JupyterLab, light and dark), else that of the text around.
STYLE = "color: var(--jp-ui-font-color1, inherit); line-height: 1.4;"
# Name to label and width. They stand in one line where the page is wide enough.
FIELDS = {"guess": ("Your guess", "13em"), "low": ("80% sure: from", "15em"), "high": ("to", "9em")}


class PredictionForm:
    """Three fields, and a button that saves them; Enter saves as well.

    Args:
        question: what is asked for.
        texts: what stands in the fields at first, by name.
        status: what is said below the fields at first.
        save: gets the three texts by name. Returns a fault in words for each field that has one, and what to say;
            with a fault nothing was saved.
        take_back: forgets the prediction, and returns what to say.
    """

    def __init__(
        self,
        question: str,
        texts: Mapping[str, str],
        status: str,
        save: Callable[..., tuple[Mapping[str, str], str]],
        take_back: Callable[[], str],
    ):
        self._save = save
        self._take_back = take_back
        self.fields = {name: self._field(name, texts.get(name, "")) for name in FIELDS}
        self.faults = {name: ipywidgets.HTML(layout={"max_width": "17em"}) for name in FIELDS}
        self.status = ipywidgets.HTML()
        self.button = ipywidgets.Button(description="Save my prediction", layout={"width": "auto"})
        self.back = ipywidgets.Button(description="Take it back", layout={"width": "auto"})
        self.button.on_click(lambda _: self.save())
        self.back.on_click(lambda _: self.take_back())
        self._entered = None  # the field in which Enter was pressed, while its text may still be on its way
        head = ipywidgets.HTML(f'<b style="{STYLE}">{html.escape(question)}</b>')
        columns = [ipywidgets.VBox([self.fields[name], self.faults[name]]) for name in FIELDS]
        line = ipywidgets.Box([*columns, self.button, self.back], layout={"flex_flow": "row wrap"})
        self.box = ipywidgets.VBox([head, line, self.status])
        self._say(status)
        self._offer_to_take_back(any(texts.values()))

    def _field(self, name: str, text: str) -> ipywidgets.Text:
        label, width = FIELDS[name]
        field = ipywidgets.Text(
            value=text,
            description=label,
            style={"description_width": "initial"},
            layout={"width": width},
            continuous_update=False,
        )
        field.on_msg(lambda widget, message, _: self._pressed(widget, message))
        field.observe(lambda change: self._arrived(change.owner), "value")
        return field

    def _pressed(self, field: ipywidgets.Text, message: Mapping) -> None:
        """Enter in a field. A page sends the key first, and only then what was typed: `_arrived` saves that."""
        if message.get("event") == "submit":
            self._entered = field
            self.save()

    def _arrived(self, field: ipywidgets.Text) -> None:
        if field is self._entered:
            self._entered = None
            self.save()

    def save(self) -> None:
        """Save what stands in the fields, or say beside each field what is wrong with it."""
        faults, words = self._save(**{name: field.value for name, field in self.fields.items()})
        for name, view in self.faults.items():
            view.value = _fault(faults.get(name, ""))
        self._say(words)
        if not faults:
            self._offer_to_take_back(True)

    def take_back(self) -> None:
        """Forget the prediction, and empty the fields."""
        self._entered = None
        for name, field in self.fields.items():
            field.value, self.faults[name].value = "", ""
        self._say(self._take_back())
        self._offer_to_take_back(False)

    def _say(self, words: str) -> None:
        self.status.value = f'<div role="status" style="{STYLE}">{html.escape(words)}</div>'

    def _offer_to_take_back(self, is_offered: bool) -> None:
        self.back.layout.display = None if is_offered else "none"

    def show(self, words: str) -> None:
        """Display the form, with words for a page without a kernel."""
        view = {"version_major": 2, "version_minor": 0, "model_id": self.box.model_id}
        display({"text/plain": wrapped(words), WIDGET_VIEW: view}, raw=True)


def _fault(words: str) -> str:
    """What is wrong with a field, or nothing."""
    if not words:
        return ""
    return f'<div role="alert" style="{STYLE} padding-left: 8px">↻ {html.escape(words)}</div>'
