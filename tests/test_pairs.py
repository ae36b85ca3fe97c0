"""Latents and features of a small tree: found by split, held or mapped, refused where they do not belong together."""

import json

import numpy as np
import pytest
from PIL import Image

from lib import dataset, pairs
from lib.seals import sealed

TOKENS, CHANNELS, PATCHES, WIDTH, VIEWS = 6, 4, 9, 5, 3
MADE = {"fingerprint": "f" * 64, "size": 42, "resize": 42}


def shape(item: dataset.Item, number: int, vae: str = "v1", save=np.savez, views: int = VIEWS, **made) -> None:
    """What 04 and 05 leave behind for one mesh: its number is in all of it."""
    rng = np.random.default_rng(number)
    records = {}
    for suffix, value in (("_latent_sample", number), ("_latent_logvar", -number), ("_latent_sample_2", number + 0.5)):
        tokens = 2 if suffix.endswith("_2") else TOKENS
        with item.writing(f"{suffix}.npy") as path:
            np.save(path, np.full((tokens, CHANNELS), value, np.float16))
    records["05_latents"] = {"parameters": {"sha256": vae}, "outputs": dict(item.written), "facts": {}}
    item.written.clear()
    for view in range(views):
        with item.writing(f"_view_{view:03d}_dinov2_features.npz") as path:
            tokens = rng.normal(size=(PATCHES, WIDTH))
            tokens[:, 0], tokens[:, 1] = number, view
            save(path, features=tokens.astype(np.float16))
    facts = {"weights": "random", "seed": 0}
    records["04_features"] = {"parameters": MADE | made, "outputs": dict(item.written), "facts": facts}
    item.written.clear()
    dataset.write_facts(item, {k: r | {"version": 1, "inputs": {}} for k, r in records.items()})


def tree(folder, count: int = 40, **options) -> list[dataset.Item]:
    items = [dataset.Item(f"mesh_{k}", "", "", str(folder), 64) for k in range(count)]
    for number, item in enumerate(items):
        shape(item, number, **options)
    stats = {"mean": [0.5] * CHANNELS, "std": [2.0] * CHANNELS, "tokens": TOKENS, "sha256": "v1", "ordered": True}
    stats["lengths"] = {"2": {"mean": [1.5] * CHANNELS, "std": [3.0] * CHANNELS}}
    (folder / "64_latent_stats.json").write_text(json.dumps(stats))
    return items


def test_each_split_has_its_shapes_and_theirs_alone(tmp_path):
    items = tree(tmp_path)
    parts, about = pairs.read(items)
    wanted = dataset.splits([item.name for item in items], tmp_path)
    assert {part: found.names for part, found in parts.items()} == {
        part: [name for name in wanted if wanted[name] == part] for part in ("train", "val", "test")
    }
    assert sum(map(len, parts.values())) == 40 and len(parts["val"]) > 0
    for found in parts.values():
        for k, name in enumerate(found.names):
            number = int(name.split("_")[1])
            assert (found.mean[k] == number).all() and found.mean[k].shape == (TOKENS, CHANNELS)
            for view in range(VIEWS):
                features = found.features(k, view)
                assert features.shape == (PATCHES, WIDTH) and features.dtype == np.float16
                assert (features[:, 0] == number).all() and (features[:, 1] == view).all()
    assert about["features"] == MADE | {"weights": "random", "seed": 0, "map": "image", "share": 0.6}
    assert about["latents"]["tokens"] == TOKENS


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_features_in_their_files_are_those_in_memory(tmp_path, save):
    items = tree(tmp_path, 12, save=save)
    held, mapped = pairs.read(items, memory=1)[0]["train"], pairs.read(items, memory=0)[0]["train"]
    assert held.held is not None and mapped.held is None
    assert isinstance(mapped.features(0, 0), np.memmap) == (save is np.savez)
    for k in range(len(held)):
        for view in range(VIEWS):
            assert (held.features(k, view) == mapped.features(k, view)).all()


def test_shapes_may_have_different_numbers_of_views(tmp_path):
    items = tree(tmp_path, 12)
    shape(items[3], 3, views=7)
    for memory in (0, 1):
        parts, _ = pairs.read(items, memory=memory)
        found = next(p for p in parts.values() if "mesh_3" in p.names)
        k = found.names.index("mesh_3")
        assert [found.features(k, v)[0, 1] for v in range(7)] == list(range(7))
        assert all(
            (p.features(i, 0)[:, 0] == int(name.split("_")[1])).all()
            for p in parts.values()
            for i, name in enumerate(p.names)
        )


def test_views_are_drawn_by_chance_and_several_without_repetition(tmp_path):
    found = pairs.read(tree(tmp_path, 12))[0]["train"]
    rng = np.random.default_rng(0)
    one = [int(found.draw(2, 1, rng)[0, 1]) for _ in range(300)]
    assert set(one) == {0, 1, 2} and min(one.count(v) for v in range(3)) > 70
    two = [found.draw(2, 2, rng)[:, 0, 1].tolist() for _ in range(50)]
    assert all(a != b for a, b in two)
    assert found.draw(2, 5, rng).shape == (5, PATCHES, WIDTH), "more than there are: some twice"


def test_shorter_latents_and_the_spread_are_read_on_request(tmp_path):
    items = tree(tmp_path, 12)
    parts, about = pairs.read(items, tokens=2)
    assert about["latents"]["tokens"] == 2 and about["latents"]["std"] == [3.0] * CHANNELS, "each length has its own"
    assert "lengths" not in about["latents"]
    train = parts["train"]
    assert train.mean.shape[1] == 2 and (train.mean[0] == int(train.names[0][5:]) + 0.5).all()
    assert train.logvar is None
    train = pairs.read(items, sampled=True)[0]["train"]
    assert (train.logvar == -train.mean).all()
    with pytest.raises(ValueError, match=r"latent_sample_3.npy cannot be read .* Run 05_latents again"):
        pairs.read(items, tokens=3)


def test_latents_of_another_vae_are_refused(tmp_path):
    items = tree(tmp_path, 12)
    shape(items[5], 5, vae="v2")
    with pytest.raises(ValueError, match=r"latents of 1 of 12 meshes, the first mesh_5, are of another VAE"):
        pairs.read(items)


def test_latents_that_looked_from_elsewhere_are_refused(tmp_path):
    items = tree(tmp_path, 12)
    facts = dataset.read_facts(items[5])
    facts["05_latents"]["parameters"]["anchors"] = "nearest"
    dataset.write_facts(items[5], facts)
    with pytest.raises(ValueError, match=r"the first mesh_5, .* or its tokens looked from elsewhere"):
        pairs.read(items)


@pytest.mark.parametrize("change", [{"fingerprint": "0" * 64}, {"size": 28}])
def test_features_made_in_two_ways_are_refused(tmp_path, change):
    items = tree(tmp_path, 12)
    shape(items[5], 5, **change)
    with pytest.raises(ValueError, match="features were made in 2 ways"):
        pairs.read(items)


def test_meshes_without_latents_or_features_are_left_out(tmp_path):
    items = tree(tmp_path, 12)
    facts = dataset.read_facts(items[0])
    dataset.write_facts(items[0], {"04_features": facts["04_features"]})
    dataset.write_facts(items[1], {"05_latents": facts["05_latents"]})
    dataset.write_facts(items[2], {})
    assert sum(map(len, pairs.read(items)[0].values())) == 9
    with pytest.raises(ValueError, match=r"none of 3 meshes .* Run 04_features and 05_latents first"):
        pairs.read(items[:3])
    with pytest.raises(ValueError, match=r"none of 12 meshes .* features of its depth"):
        pairs.read(items, map="depth")
    with pytest.raises(ValueError, match="wanted one of image, depth, normal"):
        pairs.read(items, map="albedo")


def test_statistics_of_which_a_bit_changed(tmp_path):
    items = tree(tmp_path, 12)
    path = tmp_path / "64_latent_stats.json"
    path.write_text(sealed(json.loads(path.read_text())))
    assert len(pairs.read(items)[0]["train"]) and '"tokens"' in path.read_text()
    path.write_text(path.read_text().replace('"std": [2.0', '"std": [2.5'))
    with pytest.raises(ValueError, match=r"64_latent_stats.json is missing or damaged. Run 05_latents"):
        pairs.read(items)


@pytest.mark.parametrize(
    "content",
    ["", "{}", "[]", '{"mean": [0], "std": [0], "sha256": "v1", "ordered": true}', '{"mean": [0], "std": [1]}'],
)
def test_statistics_that_are_damaged(tmp_path, content):
    items = tree(tmp_path, 12)
    (tmp_path / "64_latent_stats.json").write_text(content)
    with pytest.raises(ValueError, match=r"64_latent_stats.json is missing or damaged. Run 05_latents"):
        pairs.read(items)


@pytest.mark.parametrize("damage", ["cut short", "not a number", "nonsense"])
def test_latents_that_are_damaged(tmp_path, damage):
    items = tree(tmp_path, 12)
    path = items[4].path("_latent_sample.npy")
    if damage == "cut short":
        path.write_bytes(path.read_bytes()[:-5])
    elif damage == "not a number":
        np.save(path, np.full((TOKENS, CHANNELS), np.nan, np.float16))
    else:
        path.write_bytes(b"\x93NUMPY" + b"x" * 50)
    with pytest.raises(ValueError, match=f"{path} cannot be read"):
        pairs.read(items)


@pytest.mark.parametrize("memory", [0, 1])
def test_features_that_are_damaged(tmp_path, memory):
    items = tree(tmp_path, 12)
    found = pairs.read(items)[0]["train"]
    found.views[0][0].write_bytes(b"PK nothing")
    with pytest.raises(ValueError, match=f"{found.views[0][0]} cannot be read"):
        pairs.read(items, memory=memory)[0]["train"].features(0, 0)


def test_the_scale_of_features(tmp_path):
    found = pairs.read(tree(tmp_path, 12))[0]["train"]
    every = np.concatenate([found.features(k, v) for k in range(len(found)) for v in range(VIEWS)]).astype(float)
    mean, std = pairs.scale_of_features(found)
    assert np.allclose(mean, every.mean(0), atol=1e-3) and np.allclose(std, np.maximum(every.std(0), 1e-3), atol=1e-3)


def test_how_much_of_its_frame_a_shape_fills(tmp_path):
    items = tree(tmp_path, 5)
    for k, item in enumerate(items):
        alpha = np.zeros((100, 100), np.uint8)
        alpha[10:20, 20 : 70 + k] = 255
        for view in range(3):
            path = item.path(f"_view_{view:03d}_image.png")
            Image.fromarray(np.dstack([alpha] * 4)).save(path)
    assert pairs.share_of_frame(items, pairs.Tree()) == pytest.approx(0.52)
