from test_page import Page

from lib import markup

HOSTILE = """a <b>"'&#1; %20 \udce9"""


def test_a_page_is_whole_and_says_its_language(tmp_path):
    markup.write(tmp_path / "page.html", HOSTILE, ["<h1>One</h1>"])
    found = Page((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert found.open == [] and found.all("html") == [{"lang": "en"}]
    assert not found.all("b") and {"name": "color-scheme", "content": "light dark"} in found.all("meta")


def test_a_link_leads_to_its_file_whatever_its_name(tmp_path):
    found = Page(markup.link("a#b?c%d e/<i>.html", HOSTILE))
    assert found.all("a") == [{"href": "a%23b%3Fc%25d%20e/%3Ci%3E.html"}]
    assert Page(markup.link("x\udce9", "x")).all("a") == [{"href": "x%E9"}]


def test_a_table_scrolls_by_itself_and_its_heads_say_what_they_are_of():
    found = Page(markup.table(["One", HOSTILE], [["1", "2"]], HOSTILE, headed=True))
    assert [tag["scope"] for tag in found.all("th")] == ["col", "col", "row"]
    assert found.all("div")[0] == {"class": "wide", "role": "region", "aria-label": HOSTILE, "tabindex": "0"}


def test_times_are_for_people():
    assert markup.minutes(59.4) == "59 s" and markup.minutes(90) == "1.5 min"
    assert ">2026-01-02 03:04<" in markup.moment("2026-01-02T03:04:05+00:00")
