"""Pages on a server of this machine, and axe over a page, without looking a thousand times at the same pair of colours.

Whether a text stands out depends on its colour, size and weight and on what is painted under it. A lesson has
thousands of words of code and some forty such looks: the rule of contrast, three quarters of axe's time, gets five
elements of each look. All other rules get the whole page.
"""

import http.server
from importlib.util import find_spec
from pathlib import Path

from playwright.sync_api import Page

from support.needs import require_or_skip

CONTRAST = "color-contrast"

# Marks five elements of each look that can be seen and have text of their own, and gives the number of looks. axe
# does not judge a text of one letter.
MARK = """() => {
  const look = (e, names) => { const style = getComputedStyle(e); return names.map(n => style[n]).join(); };
  const paint = ["backgroundColor", "backgroundImage", "opacity", "filter", "mixBlendMode", "visibility", "display"];
  const text = ["color", "fontSize", "fontWeight", "textShadow", "textDecorationLine", "position"];
  const seen = new Map(), under = new Map([[null, ""]]);
  for (const e of document.querySelectorAll("*")) {
    e.removeAttribute("data-look");
    const own = look(e, paint);
    const paints = !own.startsWith("rgba(0, 0, 0, 0),none,1,none,normal,visible,") || own.endsWith(",none");
    const below = under.get(e.parentElement) ?? "";
    under.set(e, paints ? `${below}|${own}` : below);
    const own_text = [...e.childNodes].filter(n => n.nodeType === Node.TEXT_NODE).map(n => n.data).join("");
    if (own_text.trim().length < 2 || !e.getClientRects().length) continue;
    const key = `${under.get(e)}|${look(e, text)}`;
    seen.set(key, (seen.get(key) ?? 0) + 1);
    if (seen.get(key) <= 5) e.setAttribute("data-look", "");
  }
  return seen.size;
}"""
# axe walks over the whole page each time that it is asked: so it is asked once, and this rule looks at what is marked
# and at fields, whose text is no text of theirs.
NARROW = """rule => axe.configure({rules: [{id: rule, selector: "[data-look], input, select, textarea"}]})"""
RUN = """options => axe.run(document, {resultTypes: ["violations"], selectors: false, ...options})
  .then(results => results.violations.map(({id, impact, nodes}) => ({id, impact, places: nodes.map(n => n.html)})))"""


def findings(page: Page, rules: list[str] | None = None) -> list[str]:
    """What axe finds serious or critical on a page as it stands, with the first places of each.

    Args:
        rules: the names of the rules beside that of contrast; None takes all that axe has.
    """
    from axe_playwright_python.sync_playwright import Axe  # where it is missing, `needed` has ended the test

    if not page.evaluate("'axe' in window"):
        page.evaluate(Axe().axe_script)
        page.evaluate(NARROW, CONTRAST)
    assert page.evaluate(MARK) > 0, "the page shows no text"
    chosen = {} if rules is None else {"runOnly": [*rules, CONTRAST]}
    return [
        f"{one['id']} ({one['impact']}), {len(one['places'])} places: {[p[:120] for p in one['places'][:3]]}"
        for one in page.evaluate(RUN, chosen)
        if one["impact"] in ("serious", "critical")
    ]


SHOTS = Path(__file__).resolve().parents[2] / "build" / "screenshots"
THEMES = ("light", "dark")


def needed(*packages: str) -> None:
    """End the test where a package is missing."""
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        require_or_skip(f"not installed: {', '.join(missing)}. `make venv` brings them.")


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        """Say nothing."""
