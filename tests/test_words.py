import pytest

from lib.words import first_line, in_words, say


def test_a_line_is_out_at_once(capsys):
    say("one")
    assert capsys.readouterr().out == "one\n"


@pytest.mark.parametrize(("said", "line"), [
    (ValueError("\n  wanted a folder  \nand more"), "wanted a folder"),
    (ValueError(), "ValueError"),
    ("a text\nof two lines", "a text"),
    ("", ""),
    ("x" * 999, "x" * 300),
])  # fmt: skip
def test_the_first_line_of_what_is_said(said, line):
    assert first_line(said) == line


def test_times_in_words():
    assert [in_words(s) for s in (8, 89, 200, 7200)] == ["8 s", "89 s", "3 min", "2.0 h"]
