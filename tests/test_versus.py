"""Pairs: from latents, from pictures, from any two folders; what has no partner is told."""

import json

import numpy as np
import pandas as pd
import pytest
import trimesh

from lib import dataset, mesh, versus

NAMES = ("chair_000_aaaaaaaa", "chair_001_bbbbbbbb", "mug_000_cccccccc")


def write(path, solid=None):
    solid = solid or trimesh.creation.box()
    path.parent.mkdir(parents=True, exist_ok=True)
    mesh.write(path, np.asarray(solid.vertices), np.asarray(solid.faces))


@pytest.fixture
def tree(tmp_path):
    """Three shapes as 01 and 05 leave them, and a VAE's folder."""
    folder = tmp_path / "run" / "11_train_vae"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"a network")
    key = dataset.sha256(folder / "model.safetensors")
    items = [dataset.Item(name, f"/meshes/{name}.obj", name, str(tmp_path / "tree"), 64) for name in NAMES]
    for item in items:
        write(item.path("_normalized.obj"))
        with item.writing("_latent_sample.npy") as path, path.open("wb") as file:
            np.save(file, np.zeros((4, 8), np.float16))
        record = {"version": 1, "inputs": {}, "facts": {}, "parameters": {"sha256": key}}
        dataset.write_facts(item, {"05_latents": record | {"outputs": dict(item.written)}})
    rows = [{"item": i.name, "source": i.source, "sha256": i.sha256, "size": "", "mtime_ns": ""} for i in items]
    dataset.enter_items(tmp_path / "tree", rows)
    (tmp_path / "tree" / "split.json").write_text(
        json.dumps({"train": NAMES[:1], "val": NAMES[1:2], "test": NAMES[2:]})
    )
    return tmp_path, items, key


def collect(tmp_path, **options):
    return versus.collect(str(tmp_path / "tree"), str(tmp_path / "run"), 64, **options)


@pytest.mark.parametrize("split, count", [("unseen", 2), ("train", 1), ("val", 1), ("test", 1), ("all", 3)])
def test_what_05_encoded_is_reconstructed_by_split(tree, split, count):
    tmp_path, items, _ = tree
    found, aside = collect(tmp_path, split=split)
    pairs = [versus.pair_of(item) for item in found]
    assert len(pairs) == count and aside.empty
    for item, pair in zip(found, pairs, strict=True):
        own = next(one for one in items if one.name == pair.name == item.name)
        assert pair.made == item.source == str(own.path("_latent_sample.npy"))
        assert pair.truth == str(own.path("_normalized.obj")) and pair.task == "reconstruction"
        assert pair.kind == own.name.split("_")[0]


def test_an_unknown_split_and_another_vae_are_refused(tree):
    tmp_path, _, _ = tree
    with pytest.raises(ValueError, match="split = 'dev'; wanted train, val, test, unseen"):
        collect(tmp_path, split="dev")
    (tmp_path / "run/11_train_vae/model.safetensors").write_bytes(b"another")
    with pytest.raises(ValueError, match=r"another VAE than this\. Run 05_latents"):
        collect(tmp_path)


def test_a_pair_is_another_when_any_of_its_files_is(tree):
    tmp_path, items, _ = tree
    before = {item.name: item.sha256 for item in collect(tmp_path)[0]}
    assert {item.name: item.sha256 for item in collect(tmp_path)[0]} == before
    write(items[1].path("_normalized.obj"), trimesh.creation.icosphere(1))
    after = {item.name: item.sha256 for item in collect(tmp_path)[0]}
    assert {name for name in before if before[name] != after[name]} == {items[1].name}


def test_meshes_of_pictures_have_the_truth_of_their_views(tree):
    tmp_path, items, _ = tree
    folder = tmp_path / "run" / "07_generate"
    rows = [
        (f"{NAMES[1]}_view_005", f"{NAMES[1]}_view_005", ""),
        (f"{NAMES[1]}_view_005", f"{NAMES[1]}_view_005_2", ""),
        (f"{NAMES[2]}_view_001", f"{NAMES[2]}_view_001", "no surface"),
        ("my_photo", "my_photo", ""),
    ]
    for _, name, _ in rows:
        write(folder / f"{name}.obj")
    pd.DataFrame(rows, columns=["picture", "name", "reason"]).to_csv(folder / "made.csv", index=False)
    found, aside = collect(tmp_path, split="val")
    pairs = [versus.pair_of(item) for item in found]
    assert [pair.task for pair in pairs] == ["reconstruction", "generation", "generation"]
    assert {pair.truth for pair in pairs} == {str(items[1].path("_normalized.obj"))}
    told = dict(zip(aside["pair"], aside["reason"], strict=True))
    assert told == {rows[2][1]: "no surface", "my_photo": "a picture of no mesh of the dataset"}


def test_without_a_vae_what_was_generated_is_scored_and_the_rest_told(tree):
    tmp_path, _, _ = tree
    (tmp_path / "run/11_train_vae/model.safetensors").unlink()
    (tmp_path / "run/11_train_vae").rmdir()
    with pytest.raises(ValueError, match=r"nothing to score\. Run 05_latents or 07_generate"):
        collect(tmp_path)
    write(tmp_path / "run/07_generate" / f"{NAMES[1]}_view_000.obj")
    row = {"picture": "p", "name": f"{NAMES[1]}_view_000", "reason": ""}
    pd.DataFrame([row]).to_csv(tmp_path / "run/07_generate/made.csv", index=False)
    found, aside = collect(tmp_path)
    assert len(found) == 1 and "give vae = its folder" in aside["reason"][0]


def test_two_folders_are_matched_by_name_whatever_the_format(tmp_path):
    write(tmp_path / "made/cars/a.glb")
    write(tmp_path / "made/b_view_003.obj")
    write(tmp_path / "made/stranger.obj")
    for name in ("cars/a.obj", "b.ply", "lost.stl"):
        write(tmp_path / "true" / name)
    given = {"predictions": str(tmp_path / "made"), "truth": str(tmp_path / "true")}
    found, aside = versus.collect("", str(tmp_path / "run"), 256, **given)
    pairs = {versus.pair_of(item).truth.rsplit("/", 1)[1]: versus.pair_of(item) for item in found}
    assert set(pairs) == {"a.obj", "b.ply"} and {pair.task for pair in pairs.values()} == {"comparison"}
    assert pairs["a.obj"].kind == "cars" and pairs["a.obj"].made.endswith("made/cars/a.glb")
    assert list(aside["pair"]) == ["lost", "stranger"]


def test_folders_that_cannot_be_compared_are_refused_with_the_reason(tmp_path):
    write(tmp_path / "made/a.obj")
    write(tmp_path / "true/b.obj")
    with pytest.raises(ValueError, match="give both, or neither"):
        versus.collect("", "run", 256, predictions="x")
    with pytest.raises(ValueError, match=r"generated = 'nowhere' holds no made.csv; wanted .*07_generate"):
        versus.collect("", "run", 256, generated="nowhere")
    with pytest.raises(ValueError, match=r"truth = .* is not a folder"):
        versus.compared(tmp_path / "made", tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"no mesh below .*made \(a ...\) is called like one below .*true \(b ...\)"):
        versus.compared(tmp_path / "made", tmp_path / "true")


def test_classes_are_folders_or_names():
    def item(source):
        return dataset.Item(source.rsplit("/", 1)[1], source, "", "", 64)

    flat = [item("/m/chair_003_flipped_0badcafe"), item("/m/mug_1_00000000"), item("/m/plain_12345678")]
    assert list(versus.classes(flat).values()) == ["chair", "mug", "plain"]
    assert versus.family("floor_lamp_010_0badcafe") == "floor_lamp"
    assert set(versus.classes([item("/m/cars/a"), item("/m/planes/b")]).values()) == {"cars", "planes"}
