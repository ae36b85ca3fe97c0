"""A small tree packed: read from shards as from files, to the bit; damage named, and that shard alone made again."""

import json
import tarfile

import numpy as np
import pytest
import torch

from lib import dataset, pairs, shard, train_dit
from lib.store import Store

TOKENS, CHANNELS, PATCHES, WIDTH, VIEWS = 6, 4, 9, 5, 3
PARAMETERS = {"fingerprint": "f" * 64, "size": 42, "resize": 42}


def fill(item: dataset.Item, number: int) -> None:
    """What 04 and 05 leave behind."""
    rng, records = np.random.default_rng(number), {}
    for kind in ("sample", "logvar"):
        with item.writing(f"_latent_{kind}.npy") as path:
            np.save(path, rng.normal(size=(TOKENS, CHANNELS)).astype(np.float16))
    facts = {"parameters": {"sha256": "v1"}, "facts": {}, "version": 1, "inputs": {}}
    records["05_latents"] = facts | {"outputs": dict(item.written)}
    item.written.clear()
    for view in range(VIEWS):
        with item.writing(f"_view_{view:03d}_dinov2_features.npz") as path:
            np.savez(path, features=rng.normal(size=(PATCHES, WIDTH)).astype(np.float16))
    facts = {"parameters": PARAMETERS, "facts": {"weights": "random", "seed": 0}, "version": 1, "inputs": {}}
    records["04_features"] = facts | {"outputs": dict(item.written)}
    item.written.clear()
    dataset.write_facts(item, records)


def tree(folder, count: int = 20) -> list[dataset.Item]:
    items = [dataset.Item(f"mesh_{k}", f"{folder}/meshes/{k:03d}.obj", "", str(folder), 64) for k in range(count)]
    for number, item in enumerate(items):
        fill(item, number)
    rows = [dict(zip(dataset.COLUMNS, (item.name, item.source, "", "", ""), strict=True)) for item in items]
    dataset.enter_items(folder, rows)
    stats = {"mean": [0.0] * CHANNELS, "std": [1.0] * CHANNELS, "tokens": TOKENS, "sha256": "v1", "ordered": True}
    (folder / "64_latent_stats.json").write_text(json.dumps(stats | {"lengths": {}, "vae": "none"}))
    return items


def pack(folder, place, kilobytes: int = 8) -> dict:
    return shard.pack(folder, place, 64, pairs.extent, kilobytes / 1000)


def train(folder, place, **changes):
    recipe = {"steps": 4, "batch_size": 4, "warmup": 2, "lr": 0.01, "save_every": 2}
    options = {"size": "tiny", "draws": 1, "workers": 2, "recipe": recipe} | changes
    return train_dit.train_dit(dataset.items(place, 64), folder, **options)


def weights(folder) -> bytes:
    return (folder / "model.safetensors").read_bytes()


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("memory", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_training_from_shards_gives_the_bits_of_training_from_the_tree(tmp_path, memory):
    tree(tmp_path / "tree")
    assert pack(tmp_path / "tree", tmp_path / "packed")["packed"] > 3
    for place in ("tree", "packed"):
        train(tmp_path / f"of_{place}", tmp_path / place, memory=memory)
    assert weights(tmp_path / "of_tree") == weights(tmp_path / "of_packed")
    curve = [(tmp_path / f"of_{place}" / "curve.csv").read_text() for place in ("tree", "packed")]
    assert curve[0] == curve[1]


@pytest.mark.slow
def test_a_run_that_began_in_the_tree_goes_on_from_shards(tmp_path):
    tree(tmp_path / "tree")
    pack(tmp_path / "tree", tmp_path / "packed")
    train(tmp_path / "whole", tmp_path / "tree")
    train(tmp_path / "halves", tmp_path / "tree")
    (tmp_path / "halves" / "resume" / "step_000000004.pt").unlink()  # as if it had been stopped half-way
    (tmp_path / "halves" / "model.safetensors").unlink()
    train(tmp_path / "halves", tmp_path / "packed")
    assert weights(tmp_path / "halves") == weights(tmp_path / "whole")


def test_features_are_mapped_where_they_lie(tmp_path):
    items = tree(tmp_path / "tree")
    pack(tmp_path / "tree", tmp_path / "packed", 1000)  # some lie behind the first 64 kB
    found, _ = pairs.read(shard.items(tmp_path / "packed", 64), memory=0)
    for part in found.values():
        for k, name in enumerate(part.names):
            item = next(item for item in items if item.name == name)
            for view in range(VIEWS):
                features = part.features(k, view)
                assert isinstance(features, np.memmap)
                assert (features == np.load(item.path(f"_view_{view:03d}_dinov2_features.npz"))["features"]).all()


def test_every_sample_of_an_epoch_goes_to_one_rank_once(tmp_path):
    tree(tmp_path / "tree")
    pack(tmp_path / "tree", tmp_path / "packed")
    found, about = pairs.read(shard.items(tmp_path / "packed", 64))
    flows = {"views": 1, "posterior": "mean", "dropout": 0.1, "time_mean": 0.0, "time_std": 1.0, "shift": 1.0}
    given = {"pairs": found["train"], "stats": about["latents"], "seed": 3, "flows": flows}
    count = len(found["train"])
    seen = []
    for first in range(0, count, 2):  # two ranks, a sample each
        for rank in range(2):
            batch = (
                train_dit.batch(0, range(first + rank, min(first + rank + 1, count)), **given)
                if first + rank < count
                else None
            )
            seen += [] if batch is None else [batch["x"].numpy().tobytes()]
    assert len(set(seen)) == len(seen) == count


def test_the_same_tree_is_the_same_shards_and_nothing_is_packed_twice(tmp_path):
    tree(tmp_path / "tree")
    first = pack(tmp_path / "tree", tmp_path / "a")
    pack(tmp_path / "tree", tmp_path / "b")
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "b").iterdir())
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    again = pack(tmp_path / "tree", tmp_path / "a")
    assert (again["packed"], again["kept"]) == (0, first["packed"])


def test_new_meshes_go_into_new_shards_and_changed_ones_cost_their_own(tmp_path):
    items = tree(tmp_path / "tree")
    first = pack(tmp_path / "tree", tmp_path / "packed")
    tree(tmp_path / "more", 23)
    for number in (20, 21, 22):
        (tmp_path / "more" / f"mesh_{number}").rename(tmp_path / "tree" / f"mesh_{number}")
    dataset.enter_items(tmp_path / "tree", list(dataset.read_items(tmp_path / "more").values()))
    fill(items[7], 700)
    again = pack(tmp_path / "tree", tmp_path / "packed")
    assert again["meshes"] == 23 and again["kept"] == first["packed"] - 1
    found, _ = pairs.read(shard.items(tmp_path / "packed", 64))
    k, part = next((p.names.index("mesh_7"), p) for p in found.values() if "mesh_7" in p.names)
    assert (part.mean[k] == np.load(items[7].path("_latent_sample.npy"))).all()
    assert [item.name for item in shard.items(tmp_path / "packed", 64)] == [
        f"mesh_{k}" for k in dataset_order(tmp_path)
    ]


def dataset_order(folder) -> list[int]:
    return [int(item.name.split("_")[1]) for item in dataset.items(folder / "tree", 64)]


def test_tar_opens_a_shard_and_the_files_in_it_are_the_trees(tmp_path):
    items = tree(tmp_path / "tree", 4)
    pack(tmp_path / "tree", tmp_path / "packed", 1000)
    with tarfile.open(tmp_path / "packed" / "64_00000.tar") as tar:
        names = tar.getnames()
        assert len(names) == 4 * (2 + VIEWS) and "64_mesh_0.latent_sample.npy" in names
        data = tar.extractfile("64_mesh_2.view_001_dinov2_features.npz").read()
    assert data == items[2].path("_view_001_dinov2_features.npz").read_bytes()


@pytest.mark.parametrize("place", ["tar", "side", "lost", "cut"])
def test_damage_is_named_and_only_its_shard_is_made_again(tmp_path, place):
    tree(tmp_path / "tree")
    count = pack(tmp_path / "tree", tmp_path / "packed")["packed"]
    assert shard.verify(tmp_path / "packed", 64) == []
    before = {path.name: path.read_bytes() for path in (tmp_path / "packed").iterdir()}
    known = json.loads(before["64_00001.json"])["items"][1]
    target = tmp_path / "packed" / ("64_00001.json" if place == "side" else "64_00001.tar")
    data = bytearray(target.read_bytes())
    data[known["members"]["_latent_sample.npy"][0] + 140 if place == "tar" else 300] ^= 4
    if place == "lost":
        target.unlink()
    else:
        target.write_bytes(data[:-512] if place == "cut" else data)
    faults = shard.verify(tmp_path / "packed", 64)
    assert len(faults) == 1 and "64_00001" in faults[0]["file"] and "lib.pack shards" in faults[0]["do"]
    if place == "tar":
        assert faults[0]["mesh"] == known["name"] and "_latent_sample.npy" in faults[0]["fault"]
    again = pack(tmp_path / "tree", tmp_path / "packed")
    assert (again["packed"], again["kept"]) == (1, count - 1)
    assert {path.name: path.read_bytes() for path in (tmp_path / "packed").iterdir()} == before
    assert shard.verify(tmp_path / "packed", 64) == []


def test_a_damaged_file_of_the_tree_is_not_packed(tmp_path):
    items = tree(tmp_path / "tree", 6)
    path = items[3].path("_latent_sample.npy")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    told = pack(tmp_path / "tree", tmp_path / "packed")
    assert told["meshes"] == 5 and len(told["left out"]) == 1
    assert "mesh_3" in told["left out"][0] and "05_latents" in told["left out"][0]


def test_a_read_that_is_not_what_was_packed_is_an_error_that_names_it(tmp_path):
    items = tree(tmp_path / "tree", 4)
    pack(tmp_path / "tree", tmp_path / "packed", 1000)
    source = shard.Shards(tmp_path / "packed", 64)
    member = source.file(items[1], "_latent_sample.npy")
    path = tmp_path / "packed" / member.shard
    data = bytearray(path.read_bytes())
    data[member.start + 130] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"64_00000\.tar.*are not what was written"):
        pairs.latents(member)
    assert Store(tmp_path / "packed").names()["64_00000.tar"] == len(data)
