"""The commands as a person gives them: to folders and to S3 with its faults, and what they say."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import s3
import test_archive
import test_shard
import torch

from lib import dataset, pack, pairs
from lib.store import Store

ROOT = Path(__file__).parent.parent


def run(*words, capsys=None) -> tuple[int, str]:
    code = pack.main([*map(str, words), "--resolution", "64"])
    return code, capsys.readouterr().out if capsys else ""


@pytest.fixture(params=s3.SERVERS)
def bucket(request, monkeypatch):
    with s3.faulty(request.param, monkeypatch) as found:
        yield found


def read(place) -> dict:
    return pairs.read(dataset.items(place, 64), sampled=True)[0]


def alike(a: dict, b: dict) -> bool:
    same = all(a[part].names == b[part].names for part in a)
    return (
        same
        and all((a[part].mean == b[part].mean).all() and (a[part].logvar == b[part].logvar).all() for part in a)
        and all((a[part].held == b[part].held).all() for part in a)
    )


def test_shards_in_s3_are_read_as_the_tree_is_whatever_the_server_does(tmp_path, bucket, capsys):
    test_shard.tree(tmp_path / "tree")
    bucket.faults = [("PUT", "503"), ("PUT", "torn"), ("GET", "503"), ("PUT", "flip")]
    assert run("shards", tmp_path / "tree", "s3://bucket/a", "--megabytes", 0.01, capsys=capsys)[0] == 0
    assert not bucket.faults and len([key for key in bucket.objects if key.endswith(".tar")]) > 3
    bucket.faults = [("GET", "flip"), ("GET", "cut"), ("GET", "500")]
    assert alike(read("s3://bucket/a"), read(tmp_path / "tree"))
    found = pairs.read(dataset.items("s3://bucket/a", 64), memory=0)[0]["train"]
    held = pairs.read(dataset.items(tmp_path / "tree", 64))[0]["train"]
    bucket.faults = [("GET", "flip"), ("GET", "503")]
    assert all((found.features(k, 1) == held.features(k, 1)).all() for k in range(len(found)))
    assert run("verify", "s3://bucket/a", capsys=capsys) == (0, "all is as it was written\n")
    name = next(key for key in bucket.objects if key.endswith("1.tar"))
    bucket.objects[name] = bucket.objects[name][:-1]
    code, said = run("verify", "s3://bucket/a", capsys=capsys)
    assert code == 1 and name in said and "lib.pack shards" in said
    with pytest.raises(ValueError, match=r"bytes, wanted .* makes what is missing"):
        read("s3://bucket/a")
    sent = len([asked for asked in bucket.asked if asked.startswith("PUT") and asked.endswith(".tar")])
    assert run("shards", tmp_path / "tree", "s3://bucket/a", "--megabytes", 0.01, capsys=capsys)[0] == 0
    assert len([a for a in bucket.asked if a.startswith("PUT") and a.endswith(".tar")]) == sent + 1, "that one alone"
    assert alike(read("s3://bucket/a"), read(tmp_path / "tree"))


@pytest.mark.slow
def test_a_network_learns_from_s3_what_it_learns_from_the_tree(tmp_path, bucket):
    torch.set_num_threads(1)
    test_shard.tree(tmp_path / "tree")
    run("shards", tmp_path / "tree", "s3://bucket/a")
    test_shard.train(tmp_path / "of_tree", tmp_path / "tree")
    bucket.faults = [("GET", "503"), ("GET", "flip"), ("GET", "cut")] * 3
    test_shard.train(tmp_path / "of_s3", "s3://bucket/a", memory=0)
    assert test_shard.weights(tmp_path / "of_s3") == test_shard.weights(tmp_path / "of_tree")


def test_what_was_read_from_s3_is_not_fetched_again_and_a_damaged_copy_is(tmp_path, bucket, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    test_shard.tree(tmp_path / "tree", 10)
    run("shards", tmp_path / "tree", "s3://bucket/a")
    wanted = pairs.read(dataset.items(tmp_path / "tree", 64), memory=0)[0]["train"]

    def epoch() -> int:
        before = len(bucket.asked)
        train = pairs.read(dataset.items("s3://bucket/a", 64), memory=0, disk=1.0)[0]["train"]
        seen = [(k, view) for k in range(len(train)) for view in range(test_shard.VIEWS)]
        assert all((train.features(*one) == wanted.features(*one)).all() for one in seen)
        return len([asked for asked in bucket.asked[before:] if asked.endswith(".tar") and asked.startswith("GET")])

    assert epoch() >= len(wanted) * test_shard.VIEWS and epoch() == 0
    path = next(path for path in (tmp_path / "cache").rglob("*") if path.is_file() and b"features" in path.read_bytes())
    test_archive.flip(path, 100)
    assert epoch() == 1 and epoch() == 0


def test_archives_in_s3_lose_nothing(tmp_path, bucket, capsys):
    test_archive.tree(tmp_path / "tree", 3)
    before = test_archive.content(tmp_path / "tree")
    bucket.faults = [("PUT", "torn"), ("GET", "503"), ("PUT", "503")]
    code, said = run("archive", tmp_path / "tree", "s3://bucket/b", "--jobs", 1, "--remove", capsys=capsys)
    assert code == 0 and "15 files were removed" in said and "108.5, a third: 36.2" in said
    bucket.faults = [("GET", "cut"), ("GET", "flip")]
    assert run("restore", "s3://bucket/b", tmp_path / "tree", capsys=capsys)[0] == 0
    assert test_archive.content(tmp_path / "tree") == before


def test_to_bring_back_from_where_nothing_is_fails(tmp_path, capsys):
    test_archive.tree(tmp_path / "tree", 1)
    code, said = run("restore", tmp_path / "nowhere", tmp_path / "tree", capsys=capsys)
    assert code == 1 and "holds no archives at" in said and "--resolution" in said
    assert run("archive", tmp_path / "tree", tmp_path / "there", "--jobs", 1, capsys=capsys)[0] == 0
    code, said = run("restore", tmp_path / "there", tmp_path / "tree", "--only", "typo", capsys=capsys)
    assert code == 1 and "holds nothing of typo at" in said


def test_nothing_is_removed_if_s3_never_has_it_whole(tmp_path, bucket, capsys):
    test_archive.tree(tmp_path / "tree", 2)
    before = test_archive.content(tmp_path / "tree")
    bucket.faults = [("PUT", "torn")] * 99
    code, said = run("archive", tmp_path / "tree", "s3://bucket/b", "--jobs", 1, "--remove", capsys=capsys)
    assert code == 1 and "arrived torn" in said and bucket.objects == {}
    assert test_archive.content(tmp_path / "tree") == before


@pytest.mark.parametrize("copied", [False, True])
def test_an_export_is_a_tree_to_learn_from(tmp_path, copied, capsys):
    test_shard.tree(tmp_path / "tree")
    words = ["--copy"] if copied else []
    for _ in range(2):
        assert run("export", tmp_path / "tree", tmp_path / "data", *words, capsys=capsys)[0] == 0
    files = [path for path in (tmp_path / "data").rglob("*.np[yz]")]
    assert len(files) == 20 * 5 and all(path.is_symlink() is not copied for path in files)
    assert alike(read(tmp_path / "data"), read(tmp_path / "tree"))


def test_an_export_into_the_tree_is_refused(tmp_path, capsys):
    test_shard.tree(tmp_path / "tree", 2)
    code, said = run("export", tmp_path / "tree", tmp_path / "tree" / "data", capsys=capsys)
    assert code == 1 and "Give a folder apart" in said


def test_verify_of_a_tree_names_mesh_file_and_what_to_do(tmp_path, capsys):
    item = test_archive.tree(tmp_path / "tree", 2)[1]
    test_archive.flip(item.path("_sharp_sample.ply"), 90)
    code, said = run("verify", tmp_path / "tree", "--jobs", 1, capsys=capsys)
    assert code == 1 and said.startswith(f"mesh_1: {item.path('_sharp_sample.ply')} is damaged. Run 02_sharp_sample")
    assert not item.path("_sharp_sample.ply").exists()


def test_what_makes_no_sense_is_told(tmp_path, capsys):
    assert "is no tree, and holds no shards" in run("verify", tmp_path, capsys=capsys)[1]
    assert "Run 01_watertight on this dataset first" in run("shards", tmp_path, tmp_path / "x", capsys=capsys)[1]
    with pytest.raises(SystemExit):
        pack.main(["pak"])
    result = subprocess.run([sys.executable, "-m", "lib.pack", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0 and all(name in result.stdout for name in pack.DO)
    assert json.dumps(Store(tmp_path).names()) == "{}"
