import pytest

from lib import tables


def test_all_is_text_and_a_long_reason_is_kept(tmp_path):
    (tmp_path / "a.csv").write_text(f'item,reason\n00123,"a, ""b""\nc"\nNA,{"x" * 200_000}\n')
    first, second = tables.rows(tmp_path / "a.csv")
    assert first == {"item": "00123", "reason": 'a, "b"\nc'} and len(second["reason"]) == 200_000


@pytest.mark.parametrize("content", [b"", b"item\n", b"\xff\xfe,\0\n1\n", b'item\n"open'])
def test_what_is_no_table_has_no_number(tmp_path, content):
    assert tables.rows(tmp_path / "gone.csv") == tables.rows(tmp_path) == []
    (tmp_path / "a.csv").write_bytes(content)
    assert tables.mean(tables.rows(tmp_path / "a.csv"), "item") is None


def test_a_mean_is_of_the_numbers_that_are_there():
    found = [{"a": "0.5"}, {"a": ""}, {"a": None}, {}, {"a": "nan"}, {"a": "inf"}, {"a": "x"}, {"a": "1"}]
    assert tables.mean(found, "a") == 0.75 and tables.mean(found, "b") is None
    assert tables.number("1e-3") == 0.001 and tables.number("inf") is None
