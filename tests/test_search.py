from collections import Counter

import pytest
import trimesh

from lib import dataset, mesh
from lib.search import alternatives, list_meshes, passed_over, refuse_resolution, resolutions


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A newcomer's folder, in which we are: meshes in formats we read and others, and what lies beside them."""
    monkeypatch.chdir(tmp_path)
    for name in ("a.glb", "b/c.OBJ", "b/c.mtl", "b/c.png", "d.blend", "b/e.FBX", "b/f.fbx", "README", ".g.fbx"):
        path = tmp_path / "own" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return tmp_path / "own"


def made(name: str, resolution: int, tree) -> None:
    """What 01 leaves of an item, as far as a search looks."""
    item = dataset.Item(name, "", "", str(tree), resolution)
    dataset.write_text(item.path("_facts.json"), "{}")


# -- meshes -----------------------------------------------------------------------------------------------------------


def test_other_formats_are_counted_and_companions_and_hidden_files_are_not(folder):
    found, others = list_meshes(folder, besides=folder / "none")
    assert [path.removeprefix(f"{folder}/") for path in found] == ["a.glb", "b/c.OBJ"]
    assert others == {".fbx": 2, ".blend": 1}


def test_what_is_passed_over_is_told_with_what_is_read(folder, tmp_path, capsys):
    assert len(dataset.collect(folder, tmp_path / "tree", 64)) == 2
    told = capsys.readouterr().out
    assert "2 .fbx, 1 .blend. Read are " in told and all(suffix in told for suffix in mesh.SUFFIXES)
    (folder / "a.glb").unlink()
    (folder / "b" / "c.OBJ").unlink()
    with pytest.raises(ValueError, match=r"no mesh below .*own\. Passed over, .*2 \.fbx, 1 \.blend\. Read are .*\.obj"):
        dataset.collect(folder, tmp_path / "tree", 64)


def test_of_very_many_suffixes_the_most_frequent_are_told():
    others = Counter({f".{k}": k for k in range(1, 21)})
    assert "20 .20, 19 .19, 18 .18, 17 .17, 16 .16, 15 .15, 14 .14, 13 .13 and 12 more suffixes" in passed_over(others)
    assert passed_over(Counter()) == ""


# -- datasets ---------------------------------------------------------------------------------------------------------


def test_an_empty_dataset_is_told_with_those_that_are_there(folder, tmp_path):
    trimesh.creation.box().export(folder / "a.glb")
    with pytest.raises(ValueError, match=r"nowhere/items\.csv has no item\. Run 01_watertight on this data.*first\.$"):
        dataset.items("nowhere", 256)
    items = dataset.collect(folder, tmp_path / "data" / "demo" / "dataset", 64)
    made(items[0].name, 64, items[0].dataset)
    with pytest.raises(ValueError, match=r'first\. There is dataset = "data/demo/dataset" \(resolution 64\)\.$'):
        dataset.items("nowhere", 256)


def test_a_folder_of_meshes_that_is_not_there_is_told_with_those_that_are(folder, tmp_path):
    (tmp_path / "data" / "demo" / "meshes").mkdir(parents=True)
    with pytest.raises(ValueError, match=r'is not a folder.*There is meshes = "data/demo/meshes"\.$'):
        dataset.collect("data/meshes", tmp_path / "tree", 64)


def test_a_resolution_that_the_dataset_lacks_is_refused_with_those_it_has(folder, tmp_path):
    items = dataset.collect(folder, tmp_path / "tree", 128)
    assert len(dataset.items(tmp_path / "tree", 256)) == 2  # nothing is made yet: each stage says what it lacks
    for item in items:
        made(item.name, 128, tmp_path / "tree")
    made(items[0].name, 64, tmp_path / "tree")
    assert len(dataset.items(tmp_path / "tree", 64)) == 2  # one that was made is enough
    with pytest.raises(ValueError, match=r"resolution = 256: no item of .*tree was made at it\. It has 64 and 128"):
        dataset.items(tmp_path / "tree", 256)
    assert resolutions(tmp_path / "tree", [items[1].name]) == [128]
    refuse_resolution(tmp_path / "empty", [], 256)


def test_alternatives_are_few_and_in_order(tmp_path):
    folders = [tmp_path / name for name in "fedcba"]
    for folder in folders:
        folder.mkdir()
    told = alternatives("dataset", folders)
    assert told.startswith(" There is dataset = ") and told.count(", or ") == 3 and "/a" in told and "/e" not in told
