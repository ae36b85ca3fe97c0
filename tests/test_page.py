import base64
import csv
import io
from html.parser import HTMLParser

import nbformat
import pytest
from IPython.core.formatters import DisplayFormatter
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image

from lib import page, report

HOSTILE = """<img src=x onerror=alert(1)> "'&amp; </td><script>alert(2)</script> \udce9"""
PNG = base64.b64encode(b"\x89PNG not really").decode()


class Page(HTMLParser):
    """What a browser would make of a page: tags with their attributes, and all text."""

    def __init__(self, source):
        super().__init__()
        self.tags, self.words, self.open = [], [], []
        self.feed(source)
        self.close()
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "img", "br", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"{tag} closes another tag"

    def handle_data(self, data):
        self.words.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def record(**changes):
    section = {
        "notebook": "notebooks/01_one.ipynb",
        "differs": {"meshes": {"value": HOSTILE, "default": "data", "help": f"folder {HOSTILE}"}},
        "status": "completed",
        "reason": "",
        "seconds": 125.0,
        "peak_gib": 1.5,
        "quarantined": 1,
    }
    return {
        "params": "params/demo.yaml",
        "question": "Is it so?\nExpected: 3 minutes & a score of <0.5.",
        "text": "# Is it so?\n01_one:\n",
        "command": "python -m lib.batch params/demo.yaml",
        "status": "timed out",
        "host": "a-machine",
        "started": "2026-01-02T03:04:05+00:00",
        "ended": "2026-01-02T03:14:05+00:00",
        "seeds": {"01_one": 7},
        "provenance": {
            "commit": "abcdef012345",
            "dirty": True,
            "diff_sha256": "77" * 32,
            "cpu": "A CPU",
            "cores": 2,
            "memory_gib": 8,
            "system": "Linux",
            "gpu": ["A GPU, 24 GiB, 555.1"],
            "python": "3.12.1",
            "packages": {"numpy": "2.1.0"},
        },
        "sections": {
            "01_one": section,
            "02_two": section | {"status": "timed out", "reason": f"in cell 3: {HOSTILE}", "differs": {}},
            "03_three": {"notebook": "", "differs": {}, "status": "not run", "reason": ""},
        },
    } | changes


@pytest.fixture
def run(tmp_path):
    """A run's folder, named by an enemy, with one log and one ledger."""
    folder = tmp_path / "demo <b>"
    folder.mkdir()
    outputs = [
        new_output("stream", text="no picture"),
        new_output(
            "display_data", {"image/png": PNG + "\n"}, metadata={"image/png": {"alt": f"A sheet {HOSTILE[:-1]}"}}
        ),
        new_output("display_data", {"image/png": "BBBB"}),
    ]
    nb = new_notebook(cells=[new_markdown_cell("# One"), new_code_cell("pass", outputs=outputs)])
    nbformat.write(nb, folder / "01_one.ipynb")
    with (folder / "01_one.csv").open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        table = csv.writer(file)
        table.writerow(["item", "status", "reason", "seconds", "peak_gib", "source", "command", "faces"])
        table.writerow(["00123", "quarantined", HOSTILE, "1.50", "", HOSTILE, f"python -m lib.pool {HOSTILE}", ""])
        table.writerow(["NA", "quarantined", "x" * 200_000, "", "", "", "", ""])
        table.writerow(["fine", "done", "", "1", "", "", "", "3"])
    return folder


def test_the_page_tells_what_was_asked_and_how_it_went(run):
    page.write(run, record())
    source = (run / "index.html").read_text(encoding="utf-8")
    found = Page(source)
    for words in [
        "Is it so?",
        "a score of <0.5.",
        "demo <b> timed out",
        "01_one completed 2.1 min 1.50 GiB 1",
        "02_two timed out",
        "03_three not run",
        "All defaults.",
        "Quarantine: 2",
        "01_one 00123",
        "NA xxxxx",
        "1.50 python -m lib.pool",
        "abcdef012345, with changes not committed (777777777777)",
        "A CPU, 2 cores, 8 GiB",
        "A GPU, 24 GiB, 555.1",
        "01_one: 7",
        "python 3.12.1, numpy 2.1.0",
        "python -m lib.batch params/demo.yaml",
    ]:
        assert words in found.text, words
    assert "fine" not in found.text
    assert found.open == []


def test_the_page_needs_nothing_but_itself_and_links_only_what_is_there(run):
    page.write(run, record())
    source = (run / "index.html").read_text(encoding="utf-8")
    found = Page(source)
    assert "http:" not in source and "https:" not in source and found.all("script") == []
    links = {tag["href"] for tag in found.all("a")}
    parts = {"#notebooks", "#quarantine", "#origin", "#01_one", "#02_two", "#03_three"}
    assert links == {*parts, "01_one.ipynb", "01_one.csv", "run.json"}
    assert {link[1:] for link in parts} == {tag["id"] for tag in found.all("section")}
    assert {tag.get("id") for tag in found.all("section")} >= {"01_one", "02_two", "03_three"}
    assert [tag["src"] for tag in found.all("img")] == [f"data:image/png;base64,{PNG}"]


def test_the_page_can_be_read_by_all(run):
    page.write(run, record())
    found = Page((run / "index.html").read_text(encoding="utf-8"))
    assert found.all("html")[0]["lang"] == "en"
    assert [tag for tag, _ in found.tags if tag in ("h1", "h2")] == ["h1"] + 6 * ["h2"]
    assert all(tag["alt"] for tag in found.all("img"))
    assert all("scope" in tag for tag in found.all("th"))
    assert {"name": "color-scheme", "content": "light dark"} in found.all("meta")


def test_hostile_names_are_only_text(run):
    page.write(run, record())
    found = Page((run / "index.html").read_text(encoding="utf-8"))
    assert "onerror" not in {key for _, attributes in found.tags for key in attributes}
    assert found.text.count("<script>alert(2)</script>") >= 5
    assert found.all("img")[0]["alt"].startswith("A sheet <img src=x")


def test_a_banner_is_repeated_on_the_page(run):
    told = report.banner(f"A random network {HOSTILE[:-1]}")
    data, about = DisplayFormatter().format(told, include=["text/html"])
    output = new_output("display_data", data, metadata=about)
    nbformat.write(new_notebook(cells=[new_code_cell("pass", outputs=[output])]), run / "02_two.ipynb")
    page.write(run, record())
    source = (run / "index.html").read_text(encoding="utf-8")
    found = Page(source)
    assert f"A random network {HOSTILE[:-1]}" in found.text and found.open == []
    assert source.count('class="banner"') == 1, "01_one says nothing so loud"


def test_a_running_page_looks_again_by_itself_and_an_ended_one_does_not(run):
    refresh = {"http-equiv": "refresh", "content": "10"}
    for status, expected in (("running", True), ("completed", False)):
        page.write(run, record(status=status, provenance={}, ended=None))
        assert (refresh in Page((run / "index.html").read_text()).all("meta")) == expected


def test_a_long_quarantine_is_cut_on_the_page_only(run):
    with (run / "02_two.csv").open("w") as file:
        file.write(
            "item,status,reason,seconds,command\n" + "".join(f"i{i},quarantined,r,1,c\n" for i in range(page.ROWS))
        )
    page.write(run, record())
    found = Page((run / "index.html").read_text())
    assert f"Quarantine: {page.ROWS + 2}" in found.text and "2 more are in the ledgers" in found.text


@pytest.mark.parametrize("content", ["", "item,status\nx,quarantined\n", "\x00\x01", "item\nx\n"])
def test_an_odd_ledger_does_not_cost_the_page(run, content):
    (run / "01_one.csv").write_text(content)
    page.write(run, record())
    assert Page((run / "index.html").read_text()).open == []


def test_a_damaged_log_does_not_cost_the_page(run):
    (run / "01_one.ipynb").write_text('{"cells": [')
    page.write(run, record())
    assert Page((run / "index.html").read_text()).all("img") == []


def test_it_shows_curves_scores_and_the_way_to_the_other_runs(run):
    folder = run / "11_train_vae"
    folder.mkdir()
    (folder / "curve.csv").write_text("step,loss\n1,3\n2,1\n")
    (folder / "scores.csv").write_text("item,iou,f_05\na,0.25,1\nb,0.75,\n")
    (run.parent / "index.html").write_text("")
    (run / "01_one.html").write_text("")
    sections = record()["sections"] | {"11_train_vae": record()["sections"]["02_two"]}
    page.write(run, record(sections=sections))
    found = Page((run / "index.html").read_text(encoding="utf-8"))
    assert "11: overlap 0.5 11: F(0.05) 1" in found.text
    assert found.all("svg")[0]["aria-label"].startswith("loss, learned: 3 at step 1, 1 at step 2")
    links = [tag["href"] for tag in found.all("a")]
    assert "../index.html" in links and links.count("01_one.html") == 2, "the picture leads to the log that people read"
    page.write(run, record(shared=True))
    assert "../index.html" not in (run / "index.html").read_text(encoding="utf-8")


def test_a_large_picture_is_made_small(run):
    buffer = io.BytesIO()
    Image.effect_noise((2400, 600), 90).save(buffer, "png")
    output = new_output("display_data", {"image/png": base64.b64encode(buffer.getvalue()).decode()})
    nbformat.write(new_notebook(cells=[new_code_cell("pass", outputs=[output])]), run / "01_one.ipynb")
    page.write(run, record())
    (image,) = Page((run / "index.html").read_text(encoding="utf-8")).all("img")
    pixels = Image.open(io.BytesIO(base64.b64decode(image["src"].partition(",")[2])))
    assert pixels.size == (page.PICTURE, page.PICTURE // 4) and image["alt"] == "First picture of 01_one"
