import json
import os
import random
from pathlib import Path

import pytest

from lib import dataset
from lib.dataset import Item


@pytest.fixture
def meshes(tmp_path):
    """A folder of files that only look like meshes: nothing here opens them."""

    def make(*paths: str) -> str:
        for path in paths:
            target = tmp_path / "meshes" / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(path)
        return str(tmp_path / "meshes")

    return make


def item_in(folder, name="chair_1", resolution=64) -> Item:
    return Item(name, str(folder / "chair.obj"), "abc", str(folder / "tree"), resolution)


# -- names ------------------------------------------------------------------------------------------------------------

HOSTILE = [
    "chair.obj",
    "Chair.obj",  # differs by case alone
    "chair.ply",  # the same stem
    "a/chair.obj",
    "caf\u00e9.obj",  # composed
    "cafe\u0301.obj",  # decomposed: looks the same
    "CON.obj",
    "-rf.obj",
    "{run}.obj",
    "quo\"te's and spaces .obj",
    "trailing. .obj",
    "\u6905\u5b50.obj",
    "\U0001f4ba.stl",
    "00123.obj",
    "x" * 250 + ".obj",
    "x" * 249 + "y.obj",
    "<script>alert(1)</script>.obj",
]


def test_slugs_are_short_safe_and_unique_whatever_the_path():
    names = [dataset.slug(path) for path in HOSTILE]
    assert len({name.casefold() for name in names}) == len(HOSTILE)
    for name in names:
        assert len(name) <= 60
        assert all(c in "abcdefghijklmnopqrstuvwxyz0123456789_" for c in name)
        assert name.rpartition("_")[0] not in ("", "con"[:2])


def test_a_slug_never_changes():
    assert dataset.slug("a/chair.obj") == "chair_0fa72d73"  # a promise to every tree that exists
    assert dataset.slug("00123.obj").startswith("00123_")


def test_paths_stay_under_windows_limit():
    item = Item(dataset.slug("x" * 250 + ".obj"), "", "", "C:/a/dataset", 1024)
    assert len(str(item.path("_view_035_normal_dinov2_features.npz"))) < 260


# -- collecting -------------------------------------------------------------------------------------------------------


def test_collect_finds_meshes_in_order_and_names_do_not_change_when_meshes_are_added(meshes, tmp_path):
    folder = meshes("b/two.obj", "a/one.STL", "notes.txt", "a/.hidden.obj", ".git/x.obj")
    tree = tmp_path / "tree"
    before = dataset.collect(folder, tree, 64)
    assert [os.path.basename(item.source) for item in before] == ["one.STL", "two.obj"]
    meshes("a/aaa.obj", "a/two.obj")
    after = dataset.collect(folder, tree, 64)
    assert len(after) == 4
    assert {item.name for item in before} < {item.name for item in after}
    assert [item.name for item in dataset.collect(folder, tree, 64, limit=2)] == [item.name for item in after[:2]]
    assert dataset.collect(folder, tree, 64, limit=-1) == after  # all, like jobs = -1


def test_our_own_tree_inside_the_meshes_folder_is_not_collected(meshes, tmp_path):
    folder = meshes("one.obj", "tree/one_1/64_one_1/64_one_1_normalized.obj")
    assert len(dataset.collect(folder, tmp_path / "meshes" / "tree", 64)) == 1


def test_items_csv_keeps_hashes_and_notices_a_change(meshes, tmp_path):
    folder, tree = meshes("one.obj", "two.obj"), tmp_path / "tree"
    first = dataset.collect(folder, tree, 64)
    assert [item.sha256 for item in dataset.items(tree, 64)] == [item.sha256 for item in first]
    stamp = (tree / "items.csv").stat().st_mtime_ns
    dataset.collect(folder, tree, 64)
    assert (tree / "items.csv").stat().st_mtime_ns == stamp  # nothing new, nothing written
    (tmp_path / "meshes" / "one.obj").write_text("other")
    second = dataset.collect(folder, tree, 64)
    assert second[0].sha256 == dataset.sha256(second[0].source) != first[0].sha256
    assert second[1] == first[1]


def test_another_mesh_of_the_same_size_and_time_is_another_mesh(meshes, tmp_path):
    folder = tmp_path / "meshes"
    (before,) = dataset.collect(meshes("one.obj"), tmp_path / "tree", 64)
    stamp = os.stat(before.source).st_mtime_ns
    folder.rename(tmp_path / "old")
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "one.obj").write_text("ONE.OBJ")
    os.utime(tmp_path / "new" / "one.obj", ns=(stamp, stamp))  # as from an archive
    (after,) = dataset.collect(tmp_path / "new", tmp_path / "tree", 64)
    assert after.name == before.name and after.sha256 == dataset.sha256(after.source) != before.sha256


DAMAGE = [
    random.Random(0).randbytes(3000),
    b"",
    b"x" * 200_000,
    b"item;source\na;b\n",
    b"item,source,sha256,size,mtime_ns\na,/a.obj,12",
]


@pytest.mark.parametrize("damage", DAMAGE, ids=["noise", "empty", "one_long_field", "from_a_spreadsheet", "cut_short"])
def test_a_damaged_items_csv_is_refused_with_the_way_out(meshes, tmp_path, damage):
    folder, tree = meshes("one.obj"), tmp_path / "tree"
    before = dataset.collect(folder, tree, 64)
    (tree / "items.csv").write_bytes(damage)
    for use in (lambda: dataset.collect(folder, tree, 64), lambda: dataset.items(tree, 64)):
        with pytest.raises(ValueError, match=r"items\.csv: .* damaged(.|\n)*Remove the file and run 01_watertight"):
            use()
    (tree / "items.csv").unlink()
    assert dataset.collect(folder, tree, 64) == before


def test_a_folder_that_cannot_be_read_is_told(meshes, tmp_path, monkeypatch):
    def closed(path, real=os.scandir):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    folder = meshes("one.obj", "closed/two.obj")
    monkeypatch.setattr(os, "scandir", closed)
    with pytest.warns(match="passed over: .*closed"):
        assert len(dataset.collect(folder, tmp_path / "tree", 64)) == 1


def test_results_are_not_taken_for_meshes_nor_a_file_for_a_folder(meshes, tmp_path):
    folder = meshes("one.obj")
    (tmp_path / "link").symlink_to(folder)
    for same in (folder, tmp_path / "link"):
        with pytest.raises(ValueError, match="Give two folders"):
            dataset.collect(folder, same, 64)
    with pytest.raises(ValueError, match=r"one\.obj' is a file"):
        dataset.collect(folder, folder + "/one.obj", 64)


def test_two_folders_share_one_items_csv(meshes, tmp_path):
    folder = meshes("left/one.obj", "right/two.obj")
    dataset.collect(folder + "/left", tmp_path / "tree", 64)
    dataset.collect(folder + "/right", tmp_path / "tree", 64)
    assert len(dataset.items(tmp_path / "tree", 64)) == 2
    meshes("right/one.obj")
    with pytest.raises(ValueError, match=r"right/one\.obj would be called .* as .*left/one\.obj is already"):
        dataset.collect(folder + "/right", tmp_path / "tree", 64)


def test_a_folder_of_meshes_may_move_and_a_home_may_be_a_tilde(meshes, tmp_path, monkeypatch):
    (before,) = dataset.collect(meshes("one.obj"), tmp_path / "tree", 64)
    (tmp_path / "meshes").rename(tmp_path / "elsewhere")
    monkeypatch.setenv("HOME", str(tmp_path))
    (after,) = dataset.collect("~/elsewhere", "~/tree", 64)
    assert after.name == before.name and after.source == str(tmp_path / "elsewhere" / "one.obj")
    assert dataset.items("~/tree", 64) == [after]


def test_a_renamed_mesh_is_one_item_for_later_stages(meshes, tmp_path):
    folder, tree = meshes("one.obj", "two.obj", "gone.obj"), tmp_path / "tree"
    dataset.collect(folder, tree, 64)
    (tmp_path / "meshes" / "one.obj").rename(tmp_path / "meshes" / "uno.obj")
    (tmp_path / "meshes" / "gone.obj").unlink()  # deleted after 01 had closed it: it stays
    dataset.collect(folder, tree, 64)
    assert sorted(Path(item.source).stem for item in dataset.items(tree, 64)) == ["gone", "two", "uno"]


@pytest.mark.parametrize("what", ["missing", "file", "empty"])
def test_a_useless_meshes_folder_is_refused_by_name(what, tmp_path):
    folder = tmp_path / "here"
    if what == "file":
        folder.write_text("")
    elif what == "empty":
        folder.mkdir()
    with pytest.raises(ValueError, match="here"):
        dataset.collect(folder, tmp_path / "tree", 64)


def test_a_mesh_that_is_no_file_gets_a_row_and_no_hash(meshes, tmp_path):
    folder = meshes("one.obj")
    (tmp_path / "meshes" / "gone.obj").symlink_to("nowhere")
    os.mkfifo(tmp_path / "meshes" / "pipe.obj")
    hashes = {os.path.basename(item.source): item.sha256 for item in dataset.collect(folder, tmp_path / "tree", 64)}
    assert hashes["one.obj"]
    assert not hashes["gone.obj"] and not hashes["pipe.obj"]


def test_duplicates_stand_behind_the_one_that_was_done_first(meshes, tmp_path):
    folder = meshes("b.obj")
    (tmp_path / "meshes" / "c.obj").write_text("b.obj")
    b, c = dataset.collect(folder, tmp_path / "tree", 64)
    os.makedirs(c.folder)
    assert dataset.duplicates([b, c]) == {b.name: c.name}


# -- splits -----------------------------------------------------------------------------------------------------------


def test_splits_are_80_10_10_and_stay_as_the_set_grows(tmp_path):
    names = [dataset.slug(f"{k}.obj") for k in range(20_000)]
    parts = dataset.splits(names, tmp_path)
    share = {part: list(parts.values()).count(part) / len(names) for part in ("train", "val", "test")}
    assert share == pytest.approx({"train": 0.8, "val": 0.1, "test": 0.1}, abs=0.01)
    assert dataset.splits(names[:100], tmp_path) == {name: parts[name] for name in names[:100]}


def test_split_json_overrides_and_a_typo_in_it_is_refused(tmp_path):
    (tmp_path / "split.json").write_text(json.dumps({"test": ["a"], "train": ["b"]}))
    parts = dataset.splits(["a", "b", "c"], tmp_path)
    assert (parts["a"], parts["b"], parts["c"]) == ("test", "train", dataset.split("c"))
    (tmp_path / "split.json").write_text(json.dumps({"valid": ["a"]}))
    with pytest.raises(ValueError, match=r"split\.json.*valid"):
        dataset.splits(["a"], tmp_path)


# -- writing ----------------------------------------------------------------------------------------------------------


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    item = item_in(tmp_path)
    with pytest.raises(RuntimeError), item.writing("_a.txt") as path:
        path.write_text("half")
        assert path.suffix == ".txt" and not item.path("_a.txt").exists()
        raise RuntimeError
    assert os.listdir(item.folder) == [] and item.written == {}
    with item.writing("_a.txt") as path:
        path.write_text("whole")
    assert item.path("_a.txt").read_text() == "whole"
    assert item.written == {"_a.txt": {"size": 5, "sha256": dataset.sha256(item.path("_a.txt"))}}
    assert dataset.whole(item, item.written)
    item.path("_a.txt").write_text("whol")
    assert not dataset.whole(item, item.written)


def test_replace_outlasts_a_scanner_that_holds_the_file(tmp_path, monkeypatch):
    (tmp_path / "new").write_text("new")
    calls = []

    def stubborn(source, target, real=os.replace):
        calls.append(source)
        if len(calls) < 3:
            raise PermissionError(13, "being used by another process", str(target))
        real(source, target)

    monkeypatch.setattr(os, "replace", stubborn)
    dataset.replace(tmp_path / "new", tmp_path / "old")
    assert (tmp_path / "old").read_text() == "new" and len(calls) == 3

    def forever(source, target):
        raise PermissionError(13, "being used by another process", str(target))

    monkeypatch.setattr(os, "replace", forever)
    monkeypatch.setattr(dataset.time, "sleep", lambda seconds: None)
    with pytest.raises(PermissionError):
        dataset.replace(tmp_path / "old", tmp_path / "new")


def test_link_original_links_or_copies(tmp_path, monkeypatch):
    item = item_in(tmp_path)
    (tmp_path / "chair.obj").write_text("v")
    item.link_original()
    link = tmp_path / "tree" / "chair_1" / "chair_1.obj"
    assert link.is_symlink() and link.read_text() == "v"
    link.unlink()

    def refuse(*_):
        raise OSError("symbolic link privilege not held")

    monkeypatch.setattr("pathlib.Path.symlink_to", refuse)
    item.link_original()
    assert not link.is_symlink() and link.read_text() == "v"


def test_another_resolution_of_the_same_mesh_does_not_sweep_our_link_away(tmp_path, monkeypatch):
    item = item_in(tmp_path, resolution=64)
    (tmp_path / "chair.obj").write_text("v")

    def interrupted(source, target, real=os.replace):
        dataset.sweep(item_in(tmp_path, resolution=128).folder)
        dataset.sweep(tmp_path / "tree" / "chair_1")
        real(source, target)

    monkeypatch.setattr(os, "replace", interrupted)
    item.link_original()
    assert (tmp_path / "tree" / "chair_1" / "chair_1.obj").read_text() == "v"


# -- facts -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["", "{", "[]", "\0\0", "[" * 200_000, '{"01_watertight": {"outputs": {}}}'])
def test_damaged_facts_are_no_facts(tmp_path, damage):
    item = item_in(tmp_path)
    facts = {"01_watertight": {"version": 1, "parameters": {}, "inputs": {}, "outputs": {}, "facts": {}}}
    dataset.write_facts(item, facts)
    assert dataset.read_facts(item) == facts
    item.path("_facts.json").write_text(damage)
    assert dataset.read_facts(item) == {}


def test_inputs_are_found_by_who_made_them(tmp_path):
    item = item_in(tmp_path)
    with item.writing("_normalized.obj") as path:
        path.write_text("v")
    facts = {"01_watertight": {"outputs": item.written}}
    sha = dataset.sha256(item.path("_normalized.obj"))
    assert dataset.find_inputs(item, facts, ("source", "_normalized.obj")) == {"source": "abc", "_normalized.obj": sha}
    assert dataset.find_inputs(item, facts, ("_views.json",)) is None
    item.path("_normalized.obj").unlink()
    assert dataset.find_inputs(item, facts, ("_normalized.obj",)) is None


def test_a_star_stands_for_all_files_of_that_name(tmp_path):
    item = dataset.Item("cup_0badcafe", "/nowhere/cup.obj", "abc", str(tmp_path), 64)
    for suffix in ("_view_000_image.png", "_view_001_image.png", "_view_000_depth.png"):
        with item.writing(suffix) as path:
            path.write_bytes(suffix.encode())
    facts = {"03_render": {"outputs": item.written}}
    found = dataset.find_inputs(item, facts, ("_view_*_image.png",))
    assert found == {name: item.written[name]["sha256"] for name in ("_view_000_image.png", "_view_001_image.png")}
    assert dataset.find_inputs(item, facts, ("_view_*_normal.png",)) is None, "none is not enough"
    item.path("_view_001_image.png").unlink()
    assert dataset.find_inputs(item, facts, ("_view_*_image.png",)) is None, "all of them must be whole"


def test_what_is_kept_unseen_is_val_and_test_mixed(tmp_path):
    items = [Item(f"{family}_{k:08x}", "", "", str(tmp_path), 64) for family in ("apple", "pear") for k in range(200)]
    found = [item.name for item in dataset.kept_unseen(items)]
    assert set(found) == {item.name for item in items if dataset.split(item.name) != "train"}
    assert {name.split("_")[0] for name in found[:10]} == {"apple", "pear"} and dataset.kept_unseen([]) == []
