"""A log as one HTML file with a table of contents, for people without Jupyter; it loads nothing but what it holds."""

import html
import re
import sys
from pathlib import Path

import nbformat

from lib.dataset import write_text

# requirejs and mermaid would come from the network. A picture has the words its author gave it, which lab's template
# forgets, and a cell is no stop for the keyboard: nothing in it can be used.
TEMPLATE = """{% extends 'lab/index.html.j2' %}
{% block html_head_js_requirejs %}{% endblock %}
{% block html_head_js_mermaidjs %}{% endblock %}
{% block data_png scoped %}<div class="jp-RenderedImage jp-OutputArea-output">
<img src="data:image/png;base64,{{ output.data['image/png'] }}"
 alt="{{ (output | get_metadata('alt', 'image/png') or 'A picture without words') | escape_html }}">
</div>{% endblock %}
"""
NO_FORMULAS = "{% block html_head_js_mathjax %}{% endblock %}"
LEAD = re.compile(r"^\*\*([^*\n]+)\*\*[ \t]*", re.M)  # **A question?** at the start of a paragraph
HEADING = re.compile(r"<h([1-6]) id=\"[^\"]*\">(.*?)(?:<a class=\"anchor-link\"[^>]*>.*?</a>)?</h\1>", re.S)


def export(log: Path) -> None:
    """Write a log's HTML beside it."""
    try:
        write_text(log.with_suffix(".html"), page(nbformat.read(log, 4), log.stem))
    except Exception as error:  # a copy for convenience must not end a run of days
        sys.stderr.write(f"no HTML copy of {log}: {error}\n")


def page(nb, name: str) -> str:
    """A notebook as HTML; the questions that open its paragraphs are headings."""
    import jinja2  # slow, and only needed at the end of a notebook
    from nbconvert import HTMLExporter

    texts = [cell for cell in nb.cells if cell.cell_type == "markdown"]
    for cell in texts:
        cell.source = LEAD.sub(lambda found: f"## {found[1].strip()}\n\n", cell.source)
    formulas = any("$" in cell.source for cell in texts)
    loader = jinja2.DictLoader({"log.j2": TEMPLATE + NO_FORMULAS * (not formulas)})
    exporter = HTMLExporter(template_file="log.j2", extra_loaders=[loader])
    body, _ = exporter.from_notebook_node(nb, {"metadata": {"name": name}})
    return with_contents(body)


def with_contents(body: str) -> str:
    """Headings get anchors that are unique, and a table of contents above them all leads to each."""
    entries: list[tuple[int, str]] = []

    def anchored(found: re.Match) -> str:
        level, inner = int(found[1]), found[2].strip()
        words = " ".join(html.unescape(re.sub("<[^>]+>", "", inner)).split()).rstrip(":")
        entries.append((level, words))
        mark = f"part-{len(entries)}"
        anchor = f'<a class="anchor-link" href="#{mark}" aria-label="Link to this part">¶</a>'
        return f'<h{level} id="{mark}" tabindex="-1">{inner}{anchor}</h{level}>'

    head, main, rest = body.partition("<main>")
    rest = HEADING.sub(anchored, rest)
    rest = rest.replace(' tabindex="0"', "")
    if len(entries) < 2:
        return head + main + rest
    lines = "".join(
        f'<li class="level-{level}"><a href="#part-{number}">{html.escape(words)}</a></li>\n'
        for number, (level, words) in enumerate(entries, 1)
    )
    contents = f'<nav class="contents" aria-label="Contents"><ol>\n{lines}</ol></nav>\n'
    return head.replace("</head>", f"<style>{STYLE}</style>\n</head>", 1) + contents + main + rest


STYLE = """
body.jp-Notebook { padding: 0 1rem 4rem; max-width: 76rem; margin: 0 auto; overflow: visible; }
.contents { font: 14px/1.6 system-ui, sans-serif; background: #f6f5f1; border: 1px solid #e2dfd8; border-radius: 10px;
  margin: 1.5rem 0; padding: 1rem 1.4rem; }
.contents ol { list-style: none; margin: 0; padding: 0; columns: 22rem; }
.contents li { break-inside: avoid; margin: 0 0 .25rem; }
.contents .level-1 { font-weight: 600; column-span: all; }
.contents a { color: #2a5f88; }
.contents a:focus-visible, .anchor-link:focus-visible { outline: 3px solid #2a5f88; outline-offset: 2px; opacity: 1; }
.jp-RenderedHTMLCommon h2 { font-size: 1.15rem; }
:target { scroll-margin-top: 1rem; background: #fff6d6; }
"""
