"""Folders and buckets: whole, verified or not there, whatever an S3 server does on the way."""

import hashlib
from unittest import mock

import pytest
import s3

from lib import dataset, store
from lib.store import Store, Torn

DATA = bytes(range(256)) * 40


@pytest.fixture(params=s3.SERVERS)
def bucket(request, monkeypatch):
    """A bucket whose faults are to be told, and a client that does not wait between its tries."""
    with s3.faulty(request.param, monkeypatch) as found:
        yield found


@pytest.fixture(params=["folder", "memory", *s3.SERVERS])
def place(request, tmp_path, monkeypatch):
    if request.param in ("folder", "memory"):
        yield str(tmp_path / "there") if request.param == "folder" else f"memory://{tmp_path}"
        return
    with s3.faulty(request.param, monkeypatch):
        yield "s3://bucket/some/prefix"


def test_what_is_written_is_read(place, tmp_path):
    here = Store(place)
    assert here.names() == {}
    here.write("a/b.bin", DATA)
    (tmp_path / "source").write_bytes(DATA * 1000)
    here.write("large.tar", tmp_path / "source")
    assert here.names() == {"a/b.bin": len(DATA), "large.tar": 1000 * len(DATA)}
    assert here.read("a/b.bin") == DATA and here.read("large.tar", 700, 20) == (DATA * 2)[700:720]
    assert here.hash("large.tar") == hashlib.sha256(DATA * 1000).hexdigest()
    here.write("a/b.bin", b"other")
    assert here.read("a/b.bin") == b"other"
    here.remove("a/b.bin")
    here.remove("a/b.bin")
    assert list(here.names()) == ["large.tar"]
    with pytest.raises(FileNotFoundError):
        here.read("a/b.bin")


def test_other_bytes_than_their_hash_are_an_error(place):
    here = Store(place)
    here.write("a", DATA)
    wanted = hashlib.sha256(DATA[10:20]).hexdigest()
    assert here.read("a", 10, 10, wanted) == DATA[10:20]
    with mock.patch.object(store, "PAUSE", 0), pytest.raises(Torn, match="not what was written"):
        here.read("a", 11, 10, wanted)


@pytest.mark.parametrize("fault", ["500", "503", "torn", "flip", "stall"])
def test_an_upload_that_fails_is_sent_again(bucket, fault, monkeypatch):
    monkeypatch.setattr(store, "TIMEOUT", 1)
    bucket.faults = [("PUT", fault), ("PUT", fault)]
    Store("s3://bucket/x").write("a", DATA)
    assert bucket.objects == {"x/a": DATA} and not bucket.faults


@pytest.mark.parametrize("fault", ["torn", "flip"])
def test_an_upload_that_stays_torn_is_not_there(bucket, fault):
    bucket.faults = [("PUT", fault)] * store.TRIES
    with pytest.raises(Torn, match="arrived torn"):
        Store("s3://bucket/x").write("a", DATA)
    assert bucket.objects == {}


def test_a_server_that_is_gone_is_told_with_what_to_do(bucket):
    bucket.faults = [("PUT", "503")] * 100
    with pytest.raises(OSError, match=r"write s3://bucket/x/a failed 5 times.*the same command goes on"):
        Store("s3://bucket/x").write("a", DATA)


@pytest.mark.parametrize("fault", ["500", "503", "flip", "cut", "stall"])
def test_a_read_that_fails_is_asked_again(bucket, fault, monkeypatch):
    monkeypatch.setattr(store, "TIMEOUT", 1)
    bucket.objects["x/a"] = DATA
    bucket.faults = [("GET", fault), ("GET", fault)]
    wanted = hashlib.sha256(DATA[100:200]).hexdigest()
    assert Store("s3://bucket/x").read("a", 100, 100, wanted) == DATA[100:200]
    assert not bucket.faults


def test_an_index_is_what_was_written_or_an_error(bucket):
    here = Store("s3://bucket/x")
    here.write_json("i.json", {"a": [1, 0.5]})
    bucket.faults = [("GET", "flip"), ("GET", "500"), ("GET", "cut")]
    assert here.read_json("i.json")["a"] == [1, 0.5] and not bucket.faults
    bucket.objects["x/i.json"] = bucket.objects["x/i.json"].replace(b"0.5", b"0.7")
    with pytest.raises(Torn, match="is damaged"):
        here.read_json("i.json")


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    here = Store(tmp_path)
    here.write("a", DATA)
    with mock.patch.object(dataset.os, "replace", side_effect=OSError("full")), pytest.raises(OSError, match="full"):
        here.write("a", b"new")
    assert here.read("a") == DATA and list(here.names()) == ["a"]


def test_a_disk_that_reads_back_otherwise_is_told(tmp_path):
    with mock.patch.object(store, "sha256", return_value="0"), pytest.raises(OSError, match="is the disk sound"):
        Store(tmp_path).write("a", DATA)
    assert Store(tmp_path).names() == {}


def test_a_run_is_copied_once_and_without_its_checkpoints(bucket, tmp_path):
    for name in ("run.json", "06_train_dit/train.log", "06_train_dit/resume/step.pt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    assert set(store.copy(tmp_path, "s3://bucket/logs")) == {"run.json", "06_train_dit/train.log"}
    (tmp_path / "run.json").write_text("RUN.json")
    bucket.faults = [("PUT", "torn")]
    assert set(store.copy(tmp_path, "s3://bucket/logs")) == {"run.json"}
    assert bucket.objects["logs/run.json"] == b"RUN.json"


def test_a_place_that_cannot_be_opened_is_told(tmp_path):
    with pytest.raises(ValueError, match=r"abc://there: abc:// cannot be opened"):
        Store("abc://there")
