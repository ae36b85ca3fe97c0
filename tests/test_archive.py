"""What training does not need, put away and brought back: killed at any moment, damaged anywhere, nothing is lost."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import trimesh

from lib import archive, attempt, dataset, mesh
from lib.dataset import Item
from lib.store import Store

ROOT = Path(__file__).parent.parent


def fill(item: Item, number: int) -> None:
    """What 01 to 05 leave behind for a mesh, small."""
    rng, records = np.random.default_rng(number), {}
    Path(item.source).parent.mkdir(parents=True, exist_ok=True)
    ball = trimesh.creation.icosphere(2)
    mesh.write(item.source, ball.vertices * (1 + number), ball.faces)
    written = {
        "01_watertight": {"_normalized.obj": lambda path: mesh.write(path, ball.vertices, ball.faces)},
        "02_sharp_sample": {
            "_sample_points.npz": lambda path: np.savez(path, rand_points=rng.normal(size=(300, 4)).astype(np.float16)),
            "_sharp_sample.ply": lambda path: mesh.write(path, ball.vertices, ball.faces),
        },
        "03_render": {f"_view_{k:03d}_image.png": lambda path: path.write_bytes(rng.bytes(500)) for k in range(5)},
        "04_features": {"_view_000_dinov2_features.npz": lambda path: np.savez(path, features=np.ones((4, 4), "f2"))},
        "05_latents": {"_latent_sample.npy": lambda path: path.write_bytes(rng.bytes(64))},
    }
    for stage, files in written.items():
        item.written.clear()
        for suffix, write in files.items():
            with item.writing(suffix) as path:
                write(path)
        record = {"version": 1, "parameters": {}, "inputs": {}, "facts": {}, "outputs": dict(item.written)}
        records[stage] = record
    item.link_original()
    dataset.write_facts(item, records)


def tree(folder: Path, count: int = 6) -> list[Item]:
    rows = []
    for number in range(count):
        item = Item(f"mesh_{number}", f"{folder}_meshes/{number}.obj", "", str(folder), 64)
        fill(item, number)
        row = (item.name, item.source, dataset.sha256(item.source), "", "")
        rows.append(dict(zip(dataset.COLUMNS, row, strict=True)))
    dataset.enter_items(folder, rows)
    return dataset.items(folder, 64)


def put(folder, place, **options) -> dict:
    return archive.archive(folder, place, 64, **{"megabytes": 0.03, "jobs": 1} | options)


def content(folder: Path) -> dict[str, bytes]:
    """Every file of the meshes, links resolved."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.glob("mesh_*/**/*")
        if path.is_file() and not path.name.endswith("_archived.json")
    }


def test_a_tree_comes_back_to_the_bit(tmp_path):
    tree(tmp_path / "tree")
    before = content(tmp_path / "tree")
    told = put(tmp_path / "tree", tmp_path / "there")
    assert told["meshes"] == 6 and told["after"] < told["before"] and told["removed"] == 0
    archive.restore(tmp_path / "there", tmp_path / "back", 64)
    trained_on = {name for name in before if name.endswith((".npy", "features.npz"))}
    assert content(tmp_path / "back") == {name: data for name, data in before.items() if name not in trained_on}
    assert not list((tmp_path / "back").rglob("*.partial*")) and content(tmp_path / "tree") == before


def test_only_what_was_verified_is_removed_and_stages_know_where_it_is(tmp_path):
    items = tree(tmp_path / "tree")
    before = content(tmp_path / "tree")
    told = put(tmp_path / "tree", tmp_path / "there", remove=True)
    left = content(tmp_path / "tree")
    assert told["removed"] == len(before) - len(left) == 6 * 5
    assert all(before[name] == data for name, data in left.items())
    assert all(Path(item.source).exists() for item in items), "the user's meshes are not ours to remove"
    for item in items:
        facts = dataset.read_facts(item)
        for record in facts.values():
            assert dataset.whole(item, record["outputs"])
        assert dataset.find_inputs(item, facts, ("_normalized.obj",)) is not None
    assert put(tmp_path / "tree", tmp_path / "there", remove=True)["removed"] == 0
    archive.restore(tmp_path / "there", tmp_path / "tree", 64)
    assert content(tmp_path / "tree") == before
    assert not list((tmp_path / "tree").rglob("*_archived.json"))


def test_a_stage_that_needs_what_is_away_says_how_to_bring_it_back(tmp_path):
    item = tree(tmp_path / "tree", 1)[0]
    put(tmp_path / "tree", tmp_path / "there", remove=True)
    job = {"stage": "09_new", "inputs": ["_normalized.obj"], "parameters": {}, "version": 1, "means": {}}
    running = attempt.perform(None, job, item, dataset.read_facts(item))
    with pytest.raises(ValueError, match=r"in an archive only.*lib\.pack restore PLACE .* --only mesh_0"):
        next(running)


def test_one_mesh_alone_is_brought_back(tmp_path):
    tree(tmp_path / "tree")
    put(tmp_path / "tree", tmp_path / "there")
    archive.restore(tmp_path / "there", tmp_path / "back", 64, ["mesh_3"])
    assert {name.split("/")[0] for name in content(tmp_path / "back")} == {"mesh_3"}


def test_nothing_that_differs_is_written_over(tmp_path):
    item = tree(tmp_path / "tree", 2)[0]
    put(tmp_path / "tree", tmp_path / "there")
    item.path("_normalized.obj").write_text("mine")
    told = archive.restore(tmp_path / "there", tmp_path / "tree", 64)
    assert told["differ"] == [str(item.path("_normalized.obj"))] and told["written"] == 0
    assert item.path("_normalized.obj").read_text() == "mine"


def test_what_changed_is_put_away_again_and_the_newest_comes_back(tmp_path):
    items = tree(tmp_path / "tree", 3)
    put(tmp_path / "tree", tmp_path / "there")
    archives = len(list((tmp_path / "there").glob("*.tar")))
    assert put(tmp_path / "tree", tmp_path / "there") and len(list((tmp_path / "there").glob("*.tar"))) == archives
    fill(items[1], 77)
    dataset.enter_items(
        tmp_path / "tree",
        [
            dict(
                zip(
                    dataset.COLUMNS,
                    (items[1].name, items[1].source, dataset.sha256(items[1].source), "", ""),
                    strict=True,
                )
            )
        ],
    )
    put(tmp_path / "tree", tmp_path / "there")
    archive.restore(tmp_path / "there", tmp_path / "back", 64)
    wanted, found = content(tmp_path / "tree"), content(tmp_path / "back")
    assert all(wanted[name] == data for name, data in found.items())


def test_a_damaged_original_is_neither_put_away_nor_removed(tmp_path):
    item = tree(tmp_path / "tree", 2)[1]
    data = bytearray(item.path("_sharp_sample.ply").read_bytes())
    data[99] ^= 1
    item.path("_sharp_sample.ply").write_bytes(data)
    told = put(tmp_path / "tree", tmp_path / "there", remove=True)
    assert len(told["left out"]) == 1 and "mesh_1" in told["left out"][0]
    assert item.path("_sharp_sample.ply").read_bytes() == data and not item.path("_normalized.obj").exists()


def test_nothing_is_removed_if_the_archive_reads_back_otherwise(tmp_path):
    tree(tmp_path / "tree")
    before = content(tmp_path / "tree")
    put(tmp_path / "tree", tmp_path / "there")
    flip(next((tmp_path / "there").glob("*.tar")), 700)
    with pytest.raises(ValueError, match="is damaged: nothing of it was removed"):
        put(tmp_path / "tree", tmp_path / "there", remove=True)
    assert content(tmp_path / "tree") == before


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 8
    path.write_bytes(data)


@pytest.mark.parametrize("removed", [False, True])
@pytest.mark.parametrize("how", ["flip", "cut", "lost", "index"])
def test_damage_is_named_and_the_next_run_mends_it(tmp_path, how, removed):
    items = tree(tmp_path / "tree")
    before = content(tmp_path / "tree")
    put(tmp_path / "tree", tmp_path / "there", remove=removed)
    assert archive.verify(tmp_path / "there", 64, tmp_path / "tree") == []
    target = sorted((tmp_path / "there").glob("*.tar"))[0]
    entries = json.loads(target.with_suffix(".json").read_text())["items"]
    victim = next(name for name in entries if name.endswith("_sample_points.npz"))
    if how == "flip":
        flip(target, entries[victim]["start"] + 30)
    elif how == "cut":
        target.write_bytes(target.read_bytes()[: entries[victim]["start"] + 30])
    elif how == "lost":
        target.unlink()
    else:
        target.with_suffix(".json").write_text("{")
    faults = archive.verify(tmp_path / "there", 64, tmp_path / "tree")
    assert faults and all(target.stem in fault["file"] and "Run" in fault["do"] for fault in faults)
    if how == "flip":
        assert [fault["mesh"] for fault in faults] == [victim.split("/")[0]] and victim in faults[0]["fault"]
        item = next(item for item in items if item.name == faults[0]["mesh"])
        outputs = {stage: record["outputs"] for stage, record in dataset.read_facts(item).items()}
        kept = {stage: dataset.whole(item, made) for stage, made in outputs.items()}
        assert kept == {stage: stage != "02_sharp_sample" or not removed for stage in kept}, "02 alone is done again"
    if how == "index" or not removed:
        put(tmp_path / "tree", tmp_path / "there")
        assert archive.verify(tmp_path / "there", 64) == []
        archive.restore(tmp_path / "there", tmp_path / "back", 64)
        assert all(before[name] == data for name, data in content(tmp_path / "back").items())
        assert len(content(tmp_path / "back")) == 6 * 10


def test_plain_tools_open_an_archive(tmp_path):
    items = tree(tmp_path / "tree", 1)
    put(tmp_path / "tree", tmp_path / "there")
    with tarfile.open(next((tmp_path / "there").glob("*.tar"))) as tar:
        names = tar.getnames()
    assert "mesh_0/64_mesh_0/64_mesh_0_view_004_image.png" in names
    assert "mesh_0/64_mesh_0/64_mesh_0_facts.json.xz" in names
    assert len(names) == 10 and items


def test_an_archive_cannot_write_outside_the_tree(tmp_path):
    tree(tmp_path / "tree", 1)
    put(tmp_path / "tree", tmp_path / "there")
    index = next((tmp_path / "there").glob("*.json"))
    known = json.loads(index.read_text())
    entry = next(iter(known["items"].values()))
    known["items"] = {"../evil": entry, str(tmp_path / "evil"): entry}
    Store(tmp_path / "there").write_json(index.name, known)
    archive.restore(tmp_path / "there", tmp_path / "back", 64)
    assert not (tmp_path / "evil").exists()


@pytest.mark.slow
def test_killed_at_any_moment_nothing_is_lost(tmp_path):
    tree(tmp_path / "first", 12)
    before = {name: data for name, data in content(tmp_path / "first").items()}
    rng, unfinished = random.Random(0), 0
    command = [sys.executable, "-m", "lib.pack", "archive", "--resolution", "64", "--megabytes", "0.03"]
    start = time.monotonic()
    whole = [*command, "--jobs", "1", str(tmp_path / "first"), str(tmp_path / "whole")]
    assert subprocess.run(whole, cwd=ROOT, stdout=subprocess.DEVNULL).returncode == 0
    first = time.monotonic() - start  # what an undisturbed one takes on this machine
    for round in range(3):
        folder, place = tmp_path / "first", tmp_path / f"there_{round}"
        command_here = [*command, "--jobs", "1", "--remove", str(folder), str(place)]
        for _ in range(12):
            process = subprocess.Popen(command_here, cwd=ROOT, stdout=subprocess.DEVNULL)
            try:
                process.wait(first * rng.uniform(0.5, 1.1))
            except subprocess.TimeoutExpired:
                os.kill(process.pid, signal.SIGKILL)
                process.wait()
                unfinished += 1
            archive.restore(place, tmp_path / "check", 64) if place.exists() else None
            have = content(tmp_path / "check") if (tmp_path / "check").exists() else {}
            there = have | content(folder)
            assert {name: there.get(name) for name in before} == before, "in the tree or in the archive, to the bit"
            shutil.rmtree(tmp_path / "check", ignore_errors=True)
        assert subprocess.run(command_here, cwd=ROOT, stdout=subprocess.DEVNULL, timeout=300).returncode == 0
        assert archive.verify(place, 64) == []
        archive.restore(place, folder, 64)
        assert content(folder) == before
    assert unfinished, "some were killed at work"
