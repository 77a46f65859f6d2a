"""How Sphinx makes the course's site. `course site` calls it through publishing/site.py.

myst-nb shows the notebooks with their stored outputs and runs nothing; furo is the theme.
No page fetches anything from elsewhere: formulas are MathML, badges are local pictures.
"""

from docutils import nodes
from sphinx.util import logging

from publishing.mathml import FormulaError, mathml

project = "Frozen Attention"
language = "en"
smartquotes = False  # h' is not h’
highlight_language = "none"  # a block says its language, or has none
html_title = project
extensions = ["myst_nb"]

# --- pages -------------------------------------------------------------------------

nb_execution_mode = "off"
nb_merge_streams = True
nb_code_prompt_show = "Show the {type}"  # of a cell that answers a prediction
nb_code_prompt_hide = "Hide the {type}"
nb_ipywidgets_js = {}  # widgets are shown as their stored pictures
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

# --- looks -------------------------------------------------------------------------

html_theme = "furo"
html_static_path = ["static"]
html_css_files = ["course.css"]
html_js_files = [("wide.js", {"defer": "defer"}), ("found.js", {"defer": "defer"})]
html_show_sphinx = False
html_show_copyright = False
html_copy_source = False
html_use_index = False
html_math_renderer = "mathml"
pygments_style = "a11y-high-contrast-light"
pygments_dark_style = "a11y-high-contrast-dark"
html_theme_options = {"top_of_page_buttons": []}


# --- formulas ----------------------------------------------------------------------


def formula(node: nodes.Element, display: str) -> str:
    """MathML of a formula. One that cannot be translated is a warning, and a warning stops the build."""
    try:
        return mathml(node.astext(), display)
    except FormulaError as error:
        logging.getLogger(__name__).warning("%s", error, location=node, type="formula")
        return ""


def visit_math(self, node):
    self.body.append(formula(node, "inline"))
    raise nodes.SkipNode


def visit_math_block(self, node):
    self.body.append(f'<div class="formula">{formula(node, "block")}</div>')
    raise nodes.SkipNode


# --- navigation --------------------------------------------------------------------


def level_of_captions(app, pagename, templatename, context, doctree):
    """Captions of the navigation are headings without a level: a screen reader needs one."""
    tree = context["furo_navigation_tree"]
    context["furo_navigation_tree"] = tree.replace('role="heading"', 'role="heading" aria-level="2"')


def front_without_contents(app, pagename, templatename, context, doctree):
    """The front page is one thought, and its picture stands where other pages have their contents."""
    if pagename == "index":
        context["furo_hide_toc"] = True


def setup(app):
    for change in (level_of_captions, front_without_contents):
        # after furo, which writes navigation and contents
        app.connect("html-page-context", change, priority=900)
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
