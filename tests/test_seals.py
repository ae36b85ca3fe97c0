"""Any bit of what is sealed, flipped, is seen."""

import json

import pytest

from lib.seals import row_seal, seal, sealed, unsealed

RECORD = {"mean": [0.5, -1e-3], "tokens": 2048, "vae": "größe", "facts": {"seconds": 1.5, "n": None}, "seconds": 2}


@pytest.mark.parametrize("indent", [None, 1])
def test_every_flipped_bit_is_seen_or_changes_nothing(indent):
    data = sealed(RECORD, indent).encode()
    assert unsealed(data, strict=True) == RECORD
    for at in range(len(data)):
        for bit in range(8):
            other = data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :]
            try:
                assert unsealed(other, strict=True) == RECORD, (at, bit)
            except ValueError:
                continue


def test_older_files_have_no_seal_and_are_read_where_that_is_allowed():
    assert unsealed(json.dumps(RECORD)) == RECORD
    assert unsealed(json.dumps(RECORD | {"seal": seal(RECORD)}), strict=True) == RECORD
    for text in ("", "[1]", "nonsense", "[" * 100_000, '{"seal": "0"}', json.dumps(RECORD)):
        with pytest.raises(ValueError, match=r"."):
            unsealed(text, strict=True)


def test_times_count_only_if_asked():
    later = RECORD | {"seconds": 3}
    assert seal(later) == seal(RECORD) and seal(later, times=True) != seal(RECORD, times=True)
    assert seal(RECORD | {"tokens": 2049}) != seal(RECORD)


def test_a_row_is_known_by_every_cell_and_where_one_ends():
    rows = [{"a": "x", "b": ""}, {"a": "", "b": "x"}, {"a": "x", "b": "x"}, {"a": "\udcff", "b": ""}]
    assert len({row_seal(row) for row in rows}) == 4
