"""The course as a site that needs no network: a page for each notebook, and an index of them."""

import re
from html import escape, unescape
from pathlib import Path
from urllib.parse import quote

from jinja2 import pass_context
from math_core import LatexToMathML
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from pygments.formatters import HtmlFormatter

HERE = Path(__file__).resolve().parent
TITLE = "Quantization from scratch"
ABOUT = (
    "A course in Jupyter notebooks that teaches how a neural network's 32-bit floats become "
    "8-bit integers. Read the notebooks in this order."
)
PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
{css}
</style>
</head>
<body class="{kind}">
{body}
</body>
</html>
"""
# The cells alone, without the page around them, whose scripts nbconvert takes from a network.
# Its pictures don't know of the description in the output's metadata, so they are written here.
CELLS = """{% extends 'lab/base.html.j2' %}
{% block data_png %}
{% set alt = output | get_metadata('alt', 'image/png') %}
<div class="jp-RenderedImage jp-OutputArea-output"><img
{%- if alt %} alt="{{ alt | e }}"{% endif %}
 src="data:image/png;base64,{{ output.data['image/png'] | replace('\n', '') }}"></div>
{% endblock %}
"""


def pages(notebooks):
    """Return the site, text by file name. `notebooks` has the notebooks by stem, in order."""
    stems = list(notebooks)
    site = {f"{stem}.html": page(notebooks[stem], stem, stems) for stem in stems}
    return site | {"index.html": index(notebooks)}


def page(notebook, stem, stems):
    renderer = Renderer(stems)
    cells, _ = Exporter(renderer).from_notebook_node(notebook)
    contents = "\n".join(
        f'<li class="h{level}"><a href="#{quote(name)}">{text}</a></li>'
        for level, name, text in renderer.headings
        if level > 1
    )
    ways = f'<div class="ways">{ways_on(stem, stems)}</div>'
    body = (
        f'<nav class="contents" aria-label="Contents">\n{ways}\n<ul>\n{contents}\n</ul>\n</nav>\n'
        f'<main>\n{cells}\n<nav aria-label="Other notebooks">{ways}</nav>\n</main>'
    )
    return whole(title_of(notebook), body, "notebook")


def ways_on(stem, stems):
    """Links to the notebook before, the index, and the notebook after."""
    at = stems.index(stem)
    links = [f'<a href="{stems[at - 1]}.html" rel="prev">Previous</a>'] if at > 0 else []
    links.append('<a href="index.html">All notebooks</a>')
    if at + 1 < len(stems):
        links.append(f'<a href="{stems[at + 1]}.html" rel="next">Next</a>')
    return "\n".join(links)


def index(notebooks):
    markdown = MarkdownWithMath(renderer=Renderer(list(notebooks)))
    entries = "\n".join(
        f'<h2><a href="{stem}.html">{escape(title_of(notebook))}</a></h2>\n'
        f"{markdown.render(opening_of(notebook))}"
        for stem, notebook in notebooks.items()
    )
    return whole(TITLE, f"<main>\n<h1>{TITLE}</h1>\n<p>{ABOUT}</p>\n{entries}</main>", "index")


def whole(title, body, kind):
    colours = HtmlFormatter(nobackground=True).get_style_defs(".highlight")
    css = (HERE / "site.css").read_text(encoding="utf-8") + colours
    return PAGE.format(title=escape(title), css=css, body=body, kind=kind)


def title_of(notebook):
    return notebook.cells[0].source.partition("\n")[0].lstrip("# ")


def opening_of(notebook):
    """What the first cell says of the notebook: all of it but title and badges."""
    paragraphs = notebook.cells[0].source.split("\n\n")
    return "\n\n".join(text for text in paragraphs[1:] if not text.startswith("[!["))


class Exporter(HTMLExporter):
    def __init__(self, renderer):
        self.markdown = MarkdownWithMath(renderer=renderer)
        super().__init__(raw_template=CELLS)

    @pass_context
    def markdown2html(self, context, source):
        return self.markdown.render(source)


class Renderer(IPythonRenderer):
    """Markdown to HTML that suits a site, with the headings it met."""

    def __init__(self, stems):
        super().__init__(escape=False, embed_images=True, path=str(HERE.parent / "notebooks"))
        self.stems, self.headings = stems, []
        self.to_mathml = LatexToMathML().convert_with_local_state  # raises on what it can't read

    def heading(self, text, level, **attributes):
        # The name that JupyterLab gives to it, so that links to it work there and here.
        name = unescape(re.sub("<[^>]*>", "", text)).replace(" ", "-")
        while name in [other for _, other, _ in self.headings]:
            name += "-again"
        self.headings.append((level, name, re.sub("</?a[^>]*>", "", text)))
        return f'<h{level} id="{escape(name)}">{text}</h{level}>\n'

    def link(self, text, url, title=None):
        """A link to what the site doesn't have is text."""
        file, mark, fragment = url.partition("#")
        if file == "../README.md":
            return super().link(text, "index.html", title)
        if file.endswith(".ipynb") and "://" not in file:
            if file.removesuffix(".ipynb") not in self.stems:
                return text
            url = file.removesuffix(".ipynb") + ".html" + mark + fragment
        return super().link(text, url, title)

    def image(self, text, url, title=None):
        """A badge, whose picture is on a network, becomes its description."""
        return text if "://" in url else super().image(text, url, title)

    # nbconvert's own would close a <details> at once, to look for images in it.
    def block_html(self, html):
        return html + "\n"

    def inline_html(self, html):
        return html

    def inline_math(self, body):
        return self.to_mathml(body, displaystyle=False)

    def block_math(self, body):
        return f'<span class="formula">{self.to_mathml(body, displaystyle=True)}</span>'
