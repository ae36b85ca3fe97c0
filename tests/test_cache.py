"""What is kept of a bucket: whole, held to its hash, never more than its room, whoever else is at it."""

import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lib import cache
from lib.cache import Cache

GIB = 2.0**-30
ROOT = Path(__file__).parents[1]


def pieces(count: int, size: int = 1000) -> dict[str, bytes]:
    made = [os.urandom(size) for _ in range(count)]
    return {hashlib.sha256(data).hexdigest(): data for data in made}


def held(folder) -> int:
    return sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())


@pytest.fixture
def one_drawer(monkeypatch):
    monkeypatch.setattr(cache, "DRAWERS", 1)


def test_what_is_put_is_got_by_its_hash_alone(tmp_path):
    here, made = Cache(1.0, tmp_path), pieces(20)
    assert all(here.get(hash) is None for hash in made)
    for hash, data in made.items():
        here.put(hash, data)
    assert {hash: Cache(1.0, tmp_path).get(hash) for hash in made} == made
    assert held(tmp_path) == 20_000


def test_a_piece_with_a_flipped_bit_is_as_if_it_were_not_there(tmp_path):
    here = Cache(1.0, tmp_path)
    [(hash, data)] = pieces(1).items()
    here.put(hash, data)
    [path] = [path for path in tmp_path.rglob("*") if path.is_file()]
    path.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    assert here.get(hash) is None and not path.exists()


def test_a_full_drawer_keeps_what_it_has_and_takes_no_more(tmp_path, one_drawer):
    here, made = Cache(5_500 * GIB, tmp_path), pieces(9)
    for hash, data in made.items():
        here.put(hash, data)
    assert [here.get(hash) is not None for hash in made] == [True] * 5 + [False] * 4
    assert held(tmp_path) == 5000


def test_what_nobody_asked_for_in_days_makes_room_the_oldest_first(tmp_path, one_drawer):
    here, made = Cache(5_000 * GIB, tmp_path), pieces(6)
    *first, (hash, data) = made.items()
    for number, (name, piece) in enumerate(first):
        here.put(name, piece)
        os.utime(here._path(name), (time.time() - (10 - number) * 86400,) * 2)
    assert here.get(first[0][0])  # asked for just now
    here.put(hash, data)
    assert [here.get(name) is not None for name in made] == [True, False, True, True, True, True]


@pytest.mark.parametrize("place", ["a_file", "read_only/there"])
def test_a_disk_that_takes_nothing_is_no_error(tmp_path, place):
    (tmp_path / "a_file").write_text("")
    (tmp_path / "read_only").mkdir(mode=0o500)
    here = Cache(1.0, tmp_path / place)
    [(hash, data)] = pieces(1).items()
    here.put(hash, data)
    assert here.get(hash) in (None, data)  # root may write anywhere


MANY = """
import hashlib, sys
from lib import cache
cache.DRAWERS = 1
here = cache.Cache(200_000 / 2**30, sys.argv[1])
for k in range(150):
    data = hashlib.sha256(str(k).encode()).digest() * 100
    hash = hashlib.sha256(data).hexdigest()
    found = here.get(hash)
    assert found in (None, data)
    if found is None:
        here.put(hash, data)
"""


def test_many_processes_keep_whole_pieces_within_the_room(tmp_path):
    running = [subprocess.Popen([sys.executable, "-c", MANY, str(tmp_path)], cwd=ROOT) for _ in range(3)]
    assert [process.wait(60) for process in running] == [0, 0, 0]
    assert 190_000 < held(tmp_path) <= 200_000 + 3 * 3200  # each may have been at its last one
    assert not [path for path in tmp_path.rglob(".partial-*")]
