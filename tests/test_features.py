"""Features of a small tree through the real pool: names, numbers, what is kept, what is noticed."""

import json
from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from lib import attempt, dataset, dino, features, pool
from lib.claims import Claims

SIZE, RESIZE = 28, 32
MEANS = {"weights": "random-tiny", "seed": 0, "device": "cpu", "chunk": 3}


def parameters(**changes) -> dict:
    given = {"fingerprint": dino.load("random-tiny", 0).fingerprint, "maps": ["image"], "views": 0}
    return given | {"size": SIZE, "resize": RESIZE, "compress": False} | changes


def render(item: dataset.Item, views: int = 3, seed: int = 0) -> None:
    """What 03 leaves behind: pictures of noise in a disc, cameras at distance 4, and the record of it all."""
    rng = np.random.default_rng(seed)
    y, x = np.indices((48, 48)) - 23.5
    disc = x**2 + y**2 < 20**2
    frames = []
    for view in range(views):
        stem = f"_view_{view:03d}"
        rgba = np.dstack([rng.integers(0, 256, (48, 48, 3)), 255 * disc]).astype(np.uint8)
        depth = np.where(disc, rng.integers(30_000, 50_000, (48, 48)), 0).astype(np.uint16)
        for name, pixels in (("image", rgba), ("normal", rgba[..., :3] * disc[..., None]), ("depth", depth)):
            with item.writing(f"{stem}_{name}.png") as path:
                Image.fromarray(pixels).save(path, "png")
        camera = np.eye(4)
        camera[2, 3] = 4
        frames.append({"file_path": f"{item.stem}{stem}_image.png", "transform_matrix": camera.tolist()})
    with item.writing("_views.json") as path:
        path.write_text(json.dumps({"w": 48, "h": 48, "depth_scale": 1e-4, "frames": frames}))
    record = {"version": 1, "parameters": {}, "inputs": {}, "outputs": dict(item.written), "facts": {}}
    dataset.write_facts(item, {"03_render": record})
    item.written.clear()


@pytest.fixture
def items(tmp_path):
    """Three meshes as 03 leaves them."""
    rows = []
    for k in range(3):
        source = tmp_path / f"mesh_{k}.obj"
        source.write_text(f"v {k} 0 0")
        item = dataset.Item(f"mesh_{k}", str(source), dataset.sha256(source), str(tmp_path / "tree"), 64)
        render(item, seed=k)
        rows.append({"item": item.name, "source": item.source, "sha256": item.sha256, "size": "", "mtime_ns": ""})
    dataset.enter_items(tmp_path / "tree", rows)
    return dataset.items(tmp_path / "tree", 64)


def run(items, batch=3, **changes) -> dict[str, dict]:
    """What a worker of the pool does, in this process: the reply of each item."""
    given = parameters(**changes)
    job = pool.Job(
        stage="04_features",
        function="lib.features:features",
        together="lib.features:answer",
        parameters=given,
        means=MEANS,
        inputs=list(features.inputs(given["maps"])),
        version=1,
        dataset=items[0].dataset,
        resolution=64,
        run="",
        timeout=0,
        memory=0,
    )
    replies = {}
    with Claims(items[0].dataset) as claims:
        for start in range(0, len(items), batch):
            some = [dataset.Item(i.name, i.source, i.sha256, i.dataset, 64) for i in items[start : start + batch]]
            replies |= dict(zip((i.name for i in some), attempt.attempt(asdict(job), some, claims), strict=True))
    return replies


def statuses(replies: dict) -> str:
    return " ".join(reply["status"] for reply in replies.values())


def table(replies: dict) -> pd.DataFrame:
    return pd.DataFrame({"item": name, "status": r["status"], **r["record"]["facts"]} for name, r in replies.items())


def by_hand(item, view, name) -> np.ndarray:
    """The features of a view without the stage."""
    picture = Image.open(item.path(f"_view_{view:03d}_{name}.png"))
    if name == "depth":
        camera = np.eye(4)
        camera[2, 3] = 4
        picture = dino.grey(np.asarray(picture) * 1e-4, camera)
    if name == "normal":  # black is no normal: the background is white, as in the other maps
        pixels = np.asarray(picture)
        picture = Image.fromarray(np.where((pixels == 0).all(2, keepdims=True), 255, pixels).astype(np.uint8))
    return dino.encode(dino.load("random-tiny", 0), dino.prepare(picture, SIZE, RESIZE)[None])[0]


def test_every_view_and_map_has_its_features_under_its_name(items, tmp_path):
    """Through the pool itself, with a process of its own."""
    given = parameters(maps=["image", "depth", "normal"])
    options = {"inputs": features.inputs(given["maps"]), "means": MEANS, "together": features.answer, "batch": 2}
    ledger = pool.map(features.features, items, "04_features", tmp_path / "run", given, jobs=1, **options)
    assert list(ledger["status"]) == ["done"] * 3
    assert (ledger["pictures"] == 9).all() and (ledger["patches"] == 4).all() and (ledger["width"] == 96).all()
    for item in items:
        for view in range(3):
            for name, suffix in (("image", "dinov2"), ("depth", "depth"), ("normal", "normal")):
                path = item.path(f"_view_{view:03d}_{suffix}_features.npz")
                with np.load(path, allow_pickle=False) as file:
                    assert file.files == ["features"]
                    found = file["features"]
                assert found.shape == (4, 96) and found.dtype == np.float16
                assert np.abs(found - by_hand(item, view, name).astype(np.float32)).max() < 5e-3, path
    sizes = sum(path.stat().st_size for path in tmp_path.glob("tree/*/*/*_features.npz"))
    assert ledger["bytes"].sum() == sizes


def test_meshes_that_share_a_batch_get_what_they_get_alone(items, tmp_path):
    """A batch of 9 pictures in chunks of 3 mixes no meshes up; other batch sizes may differ in the last bits only."""
    pictures = [next(features.features(item, **parameters(), **MEANS)) for item in items]
    together = features.answer(pictures, **parameters(), **MEANS)
    for one, (found, spent) in zip(pictures, together, strict=True):
        ((alone, _),) = features.answer([one[:2]], **parameters(), **MEANS)
        assert np.abs(alone.astype(np.float32) - found[:2]).max() < 5e-3
        assert spent["seconds_model"] > 0
    assert np.abs(together[0][0].astype(np.float32) - together[1][0]).max() > 0.05, "meshes differ"


def test_a_second_run_keeps_and_a_new_picture_is_noticed(items):
    assert statuses(run(items)) == "done done done"
    assert statuses(run(items)) == "kept kept kept"
    render(items[1], seed=9)
    assert statuses(run(items)) == "kept done kept"
    assert statuses(run(items, resize=28)) == "done done done"


def test_other_weights_under_the_same_name_are_noticed(items):
    (reply,) = run(items[:1], fingerprint="0" * 64).values()
    assert reply["status"] == "quarantined" and "changed since this run began" in reply["reason"]


@pytest.mark.parametrize("damage", ["cut short", "no picture", "sixteen bits", "no cameras"])
def test_a_damaged_view_costs_its_mesh_alone(items, tmp_path, damage):
    suffix = "_views.json" if damage == "no cameras" else "_view_001_image.png"
    path = items[1].path(suffix)
    size = path.stat().st_size
    if damage == "cut short":
        content = path.read_bytes()[: size // 2].ljust(size, b"\0")
    elif damage == "no picture":
        content = b"x" * size
    elif damage == "no cameras":
        content = b'{"frames": []}'.ljust(size)
    else:
        Image.fromarray(np.zeros((9, 9), np.uint16)).save(path)
        content = path.read_bytes().ljust(size, b"\0")
    path.write_bytes(content)
    replies = run(items)
    assert statuses(replies) == "done quarantined done"
    reason = replies["mesh_1"]["reason"]
    assert str(path) in reason and "Run 03_render again" in reason
    assert not list(tmp_path.glob("tree/mesh_1/*/*_features.npz"))


def test_fewer_views_are_spread_over_all(items):
    render(items[0], views=9)
    suffixes = [suffix for suffix, *_ in features.listed(items[0], ["image"], 3)]
    assert suffixes == [f"_view_{k:03d}_dinov2_features.npz" for k in (0, 4, 8)]
    assert len(features.listed(items[0], ["image", "depth"], 0)) == 18
    assert len(features.listed(items[0], ["image"], 99)) == 9


@pytest.mark.parametrize("maps", [[], ["image", "albedo"], ["Image"]])
def test_maps_that_there_are_not(maps):
    with pytest.raises(ValueError, match="wanted one or more of"):
        features.inputs(maps)


def test_what_the_middle_loses():
    mask = np.ones((100, 100), bool)
    assert features.lost(mask, 0.8) == pytest.approx(1 - 0.8**2)
    mask[:10] = mask[-10:] = mask[:, :10] = mask[:, -10:] = False
    assert features.lost(mask, 0.8) == 0 and features.lost(mask, 1.0) == 0
    assert features.lost(np.zeros((9, 9), bool), 0.5) == 0


# -- what the notebook shows ------------------------------------------------------------------------------------------


def test_what_it_costs():
    rows = {"status": ["done", "done", "quarantined"], "pictures": [36, 36, np.nan], "bytes": [6e6, 8e6, np.nan]}
    rows |= {"seconds": [5.0, 3.0, 100.0], "seconds_load": [2.0, 0.0, np.nan]}
    found = features.cost(pd.DataFrame(rows), jobs=2).set_index("")["here"]
    assert found["MB a mesh"] == 7 and found["TB for 14,752 meshes"] == pytest.approx(7 * 14_752 / 1e6)
    assert found["pictures a second"] == pytest.approx(72 * 2 / 6)
    assert found["hours for 14,752 meshes"] == pytest.approx(14_752 * 36 / 24 / 3600)


def test_the_bare_network_gets_all_pictures():
    seen = []
    model = dino.load("random-tiny", 0)
    model.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    assert features.bare(model, np.zeros((7, 3, 28, 28), np.uint8), chunk=3, rounds=2) > 0
    assert seen == [3, 3, 1] * 3


def test_views_that_resemble_their_own_mesh_are_counted(items, tmp_path):
    """Views 0 and 1 of each mesh are alike; view 2 is alike view 2 of the next mesh."""
    ledger = table(run(items))
    rng = np.random.default_rng(0)
    own, shared = rng.normal(size=(3, 96)), rng.normal(size=96)
    for k, item in enumerate(items):
        for view in range(3):
            base = shared if view == 2 else own[k]
            tokens = (base + 0.05 * rng.normal(size=(4, 96))).astype(np.float16)
            np.savez(item.path(f"_view_{view:03d}_dinov2_features.npz"), features=tokens)
    found = features.agreement(ledger, str(tmp_path / "tree"), 64, parameters())
    assert found["own"].tolist() == pytest.approx([2 / 3] * 3)
    assert found["by chance"].tolist() == pytest.approx([2 / 8] * 3)


def test_components_tell_patches_apart():
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 3, (5, 16))
    tokens = rng.normal(size=(3, 40))[groups] + 0.01 * rng.normal(size=(5, 16, 40))
    painted = features.components(tokens).astype(int)
    colours = np.stack([painted[groups == g].mean(0) for g in range(3)])
    assert all(np.abs(painted[groups == g] - colours[g])[:, :2].max() < 30 for g in range(3))
    assert min(np.abs(colours[a] - colours[b]).max() for a, b in ((0, 1), (0, 2), (1, 2))) > 100


def test_views_and_their_colours_are_one_picture(items, tmp_path):
    ledger = table(run(items))
    shown = features.colours(ledger.head(2), str(tmp_path / "tree"), 64, parameters(), views=2)
    assert shown.format == "png" and len(shown.data) > 1000


def test_a_gpu_is_fed_by_as_many_processes_as_there_are_cores_for(monkeypatch):
    monkeypatch.setattr(features.memory, "choose", lambda device: device)
    monkeypatch.setattr(features.joblib, "cpu_count", lambda: 16)
    assert features.choose("cpu", -1) == ("cpu", 2) and features.choose("cuda:1", -1) == ("cuda:1", 8)
    assert features.choose("cuda", 3)[1] == 3 and features.choose("cuda", -1, "tcp://host:8786")[1] == -1
    monkeypatch.setattr(features.joblib, "cpu_count", lambda: 2)
    assert features.choose("cuda", -1)[1] == 2
