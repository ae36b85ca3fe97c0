import base64
import re

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from lib.export import export

PNG = base64.b64encode(b"\x89PNG not really").decode()


def exported(folder, *texts, alt="A <b>sheet"):
    outputs = [
        new_output("stream", text="no picture"),
        new_output("display_data", {"image/png": PNG}, metadata={"image/png": {"alt": alt}}),
    ]
    nb = new_notebook(cells=[*map(new_markdown_cell, texts), new_code_cell("pass", outputs=outputs)])
    nbformat.write(nb, folder / "01_one.ipynb")
    export(folder / "01_one.ipynb")
    return (folder / "01_one.html").read_text(encoding="utf-8")


def test_a_log_is_one_page_that_loads_nothing(tmp_path):
    source = exported(tmp_path, "# One")
    assert PNG in source and "no picture" in source and '<script src="http' not in source
    assert "MathJax" not in source and "MathJax" in exported(tmp_path, "$x^2$")


def test_the_contents_lead_to_every_part(tmp_path):
    texts = ["# One & <i>all</i>", "**Is it so?** Look:", "words\n\n**Is it so?** Again.", "**The verdict:** so?"]
    source = exported(tmp_path, *texts)
    nav = source.partition('<nav class="contents" aria-label="Contents">')[2].partition("</nav>")[0]
    links = re.findall(r'href="#([^"]+)">([^<]+)<', nav)
    assert [words for _, words in links] == ["One &amp; all", "Is it so?", "Is it so?", "The verdict"]
    ids = re.findall(r'<[^>]* id="([^"]+)"', source)
    assert len(ids) == len(set(ids)), "also of parts with the same words"
    heads = {mark: tag for tag, mark in re.findall(r'<(h[1-6]) id="([^"]+)"', source)}
    assert [heads[mark] for mark, _ in links] == ["h1", "h2", "h2", "h2"]
    assert source.index("<main>") > source.index("</nav>")


def test_pictures_keep_the_words_of_their_author(tmp_path):
    assert 'alt="A &lt;b&gt;sheet"' in exported(tmp_path, "# One")


def test_bold_words_within_a_paragraph_are_no_heading(tmp_path):
    source = exported(tmp_path, "# One", "It is **not** one, and\n`**this**` neither.")
    assert "<nav" not in source.partition("<main>")[0] and "<strong>not</strong>" in source


def test_a_damaged_log_has_no_page_and_ends_nothing(tmp_path, capsys):
    (tmp_path / "01_one.ipynb").write_text('{"cells": [')
    export(tmp_path / "01_one.ipynb")
    assert "no HTML copy" in capsys.readouterr().err and not (tmp_path / "01_one.html").exists()
