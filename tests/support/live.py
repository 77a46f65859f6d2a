"""A widget of the lessons in a browser, with this Python as its kernel: quicker than a JupyterLab, and the same code.

The module is the one text that a notebook hands over. A choice in the page becomes the widget's choice here, and what
the widget answers goes back, as over a notebook's line.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser, Page

from helpers.lessons.widgets.live import LiveDrawing

SYNCED = ("answer", "problem")
PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>A widget</title>
<meta name="viewport" content="width=device-width"></head>
<body style="margin: 8px; background: %s; color: %s"><main></main></body></html>"""
COLOURS = {"light": ("#fff", "#222"), "dark": ("#111", "#eee")}
START = """async ({text, css, values}) => {
  const style = document.createElement("style");
  style.textContent = css;
  document.head.append(style);
  const listeners = [];
  window.model = {
    get: (name) => values[name],
    set: (name, value) => { values[name] = value; },
    on: (event, act) => { listeners.push([event, act]); },
    news: (changes) => {
      Object.assign(values, changes);
      for (const [event, act] of listeners) if (Object.keys(changes).some((n) => event === `change:${n}`)) act();
    },
    save_changes: () => window.kernel(JSON.stringify(values.choice)),
  };
  const url = URL.createObjectURL(new Blob([text], { type: "text/javascript" }));
  const { default: widget } = await import(url);
  const el = document.createElement("div");
  widget.render({ model: window.model, el }); // first, as a notebook does
  document.querySelector("main").append(el);
  await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
}"""
# From a click to the next picture that the browser has drawn, in milliseconds; the quickest of nine: what the widget
# itself needs, on a machine that may be busy with other things.
LATENCY = """async (act) => {
  const taken = [];
  for (let i = 0; i < 9; i++) {
    const begin = performance.now();
    eval(act)(i);
    document.body.getBoundingClientRect();
    await new Promise((done) => requestAnimationFrame(() => done()));
    taken.push(performance.now() - begin);
  }
  return Math.min(...taken);
}"""


@contextmanager
def shown(browser: Browser, widget: LiveDrawing, theme: str = "light", width: int = 1000) -> Iterator[Page]:
    """A page with the widget in it. At the end no error may have been raised in the page."""
    context = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme=theme, has_touch=width < 500
    )
    page, errors = context.new_page(), []
    page.on("pageerror", lambda error: errors.append(str(error)))

    def kernel(choice: str) -> None:
        widget.choice = json.loads(choice)

    page.expose_function("kernel", kernel)
    page.set_content(PAGE % COLOURS[theme])
    values = {name: getattr(widget, name) for name in ("data", "choice", "alive", *SYNCED)}
    page.evaluate(START, {"text": widget._esm, "css": widget._css, "values": values})

    def news(change) -> None:
        page.evaluate("changes => { model.news(changes) }", {change["name"]: change["new"]})

    widget.observe(news, SYNCED)
    yield page
    widget.unobserve(news, SYNCED)
    context.close()
    assert not errors, "\n".join(errors)


def latency(page: Page, act: str) -> float:
    """Milliseconds from an act to the picture that follows; ``act`` is a function of the round, as JavaScript."""
    return page.evaluate(LATENCY, act)
