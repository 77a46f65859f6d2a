"""A notebook as one HTML file that asks for nothing over the network.

JupyterLab's own look (nbconvert's lab template), without the scripts that it would fetch:
formulas become MathML, which browsers draw themselves; pictures are inside the file with their
alternative text (which the lab template forgets), and a picture that lives elsewhere, such as a
badge, becomes its description.
"""

from __future__ import annotations

import html
import re
from pathlib import Path

import nbformat
from jinja2 import DictLoader, pass_context
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

from publishing.mathml import FormulaError, mathml

TEMPLATE = """\
{%- extends 'lab/index.html.j2' -%}
{%- block html_head_js_requirejs -%}{%- endblock -%}
{%- block html_head_js_mathjax -%}{%- endblock -%}
{%- block html_head_js_mermaidjs -%}{%- endblock -%}
{%- block jupyter_widgets -%}{%- endblock -%}
{%- block html_head_css -%}
{{ super() }}
<style>.jp-RenderedSVG svg { max-width: min(100%, 88vw); height: auto }</style>
{%- endblock -%}
{%- block input_group -%}
{%- if cell.metadata.get("jupyter", {}).get("source_hidden") -%}
<details><summary>Code</summary>{{ super() }}</details>
{%- else -%}
{{ super() }}
{%- endif -%}
{%- endblock -%}
{%- block data_png scoped -%}
<div class="jp-RenderedImage jp-OutputArea-output {{ extra_class }}">
<img src="data:image/png;base64,{{ output.data['image/png'] | escape_html }}"
 alt="{{ (output | get_metadata('alt', 'image/png') or '') | escape_html }}"
 {% if output | get_metadata('width', 'image/png') %}width="{{ output | get_metadata('width', 'image/png') }}"{% endif %}>
</div>
{%- endblock -%}
"""
REMOTE_IMAGE = re.compile(r"<img\b[^>]*?\bsrc\s*=\s*[\"']?(?:https?:)?//[^>]*>", re.IGNORECASE)
LESSON_LINK = re.compile(r"(href=\"(?:\./)?\w\d_\w+)\.ipynb")


class OfflineRenderer(IPythonRenderer):
    """nbconvert's Markdown, with formulas as MathML."""

    def block_html(self, html: str) -> str:
        """HTML as it stands. The parent would parse it piece by piece and close each ``<details>`` at once."""
        return html if "<img" not in html else super().block_html(html)

    def inline_math(self, body: str) -> str:
        return drawn(body, "inline")

    def block_math(self, body: str) -> str:
        return drawn(body, "block")

    def latex_environment(self, name: str, body: str) -> str:
        return drawn(f"\\begin{{{name}}}{body}\\end{{{name}}}", "block")


class OfflineExporter(HTMLExporter):
    """nbconvert's HTML, with every formula, style and picture inside the file."""

    @pass_context
    def markdown2html(self, context, source):
        cell, metadata = context.get("cell", {}), context.get("resources", {}).get("metadata", {})
        renderer = OfflineRenderer(
            escape=False,
            attachments=cell.get("attachments", {}),
            embed_images=True,
            path=metadata.get("path", ""),
            anchor_link_text=self.anchor_link_text,
        )
        return MarkdownWithMath(renderer=renderer).render(source)


def drawn(formula: str, display: str) -> str:
    """A LaTeX formula as MathML; one that cannot be translated stays as it is written."""
    try:
        return mathml(formula, display)
    except FormulaError:
        return f"<code>{html.escape(formula)}</code>"


def notebook_html(book: nbformat.NotebookNode, name: str, folder: Path) -> str:
    """The page of a notebook.

    Args:
        name: the page's title.
        folder: where the notebook lives; its pictures are found from there.
    """
    exporter = OfflineExporter(
        extra_loaders=[DictLoader({"offline.html.j2": TEMPLATE})], template_file="offline.html.j2"
    )
    page, _ = exporter.from_notebook_node(book, resources={"metadata": {"name": name, "path": str(folder)}})
    page = REMOTE_IMAGE.sub(lambda found: description(found[0]), page)
    return LESSON_LINK.sub(r"\1.html", page)


def description(image: str) -> str:
    """What stands for a picture that is not on this machine: its alternative text."""
    found = re.search(r"\balt\s*=\s*(\"([^\"]*)\"|'([^']*)')", image)
    return (found[2] or found[3] or "") if found else ""
