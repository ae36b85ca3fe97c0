"""From pictures to meshes with networks that hardly learned: files, seeds, faults, and the table of scores."""

import json

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

from lib import dataset, dino, dit, flow, generate, mesh, train_dit, vae
from lib.surface import surface

TOKENS, SIZE, VIEWS = 4, 28, 2
SPLIT = {"train": ["box_000_aa", "box_001_bb", "ball_000_cc"], "val": ["box_002_dd"], "test": ["ball_001_ee"]}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A tree of five boxes and balls as 01 to 05 leave it, and a run of 06 on it."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("made")
    torch.manual_seed(0)
    shapes = vae.build("tiny", tokens=TOKENS, channels=8)
    vae.save(shapes, folder / "vae")
    eyes, rng = dino.load("random-tiny", 0), np.random.default_rng(0)
    names = [name for part in SPLIT.values() for name in part]
    items = [dataset.Item(name, "", "", str(folder / "tree"), 64) for name in names]
    for number, item in enumerate(items):
        solid = trimesh.creation.box((2, 1 + 0.2 * number, 1)) if "box" in item.name else trimesh.creation.icosphere(3)
        records = {}
        with item.writing("_normalized.obj") as path:
            mesh.write(path, np.asarray(solid.vertices), np.asarray(solid.faces))
        with item.writing("_latent_sample.npy") as path:
            np.save(path, rng.normal(size=(TOKENS, shapes.channels)).astype(np.float16))
        records["05_latents"] = {"parameters": {"sha256": "v1"}, "outputs": dict(item.written), "facts": {}}
        item.written.clear()
        for view in range(VIEWS):
            pixels = np.zeros((64, 64, 4), np.uint8)
            pixels[16:48, 16:48] = (*rng.integers(0, 256, 3), 255)
            Image.fromarray(pixels).save(item.path(f"_view_{view:03d}_image.png"))
            with item.writing(f"_view_{view:03d}_dinov2_features.npz") as path:
                prepared = dino.prepare(Image.fromarray(pixels), SIZE, SIZE)
                np.savez(path, features=dino.encode(eyes, prepared[None])[0])
        parameters = {"fingerprint": eyes.fingerprint, "size": SIZE, "resize": SIZE}
        told = {"weights": "random-tiny", "seed": 0}
        records["04_features"] = {"parameters": parameters, "outputs": dict(item.written), "facts": told}
        item.written.clear()
        dataset.write_facts(item, {s: r | {"version": 1, "inputs": {}} for s, r in records.items()})
    stats = {"mean": [0.0] * shapes.channels, "std": [1.0] * shapes.channels, "tokens": TOKENS, "ordered": True}
    stats |= {"sha256": "v1", "vae": str(folder / "vae")}
    (folder / "tree" / "64_latent_stats.json").write_text(json.dumps(stats))
    (folder / "tree" / "split.json").write_text(json.dumps(SPLIT))
    recipe = {"steps": 2, "batch_size": 2, "warmup": 1}
    train_dit.train_dit(items, folder / "06_train_dit", size="tiny", draws=1, workers=1, recipe=recipe)
    return folder, items


@pytest.fixture
def tools(made):
    return generate.tools(made[0] / "06_train_dit", "auto")


def solid(V_and_F=None):
    """A surface to be found whatever the latents say: theirs are of networks that hardly learned."""
    ball = trimesh.creation.icosphere(2)
    return lambda shapes, z, depth: (np.asarray(ball.vertices), np.asarray(ball.faces))


def test_views_of_unseen_meshes_become_meshes(made, tools, tmp_path, monkeypatch):
    monkeypatch.setattr(generate, "surface", solid())
    asked = generate.pictures("", made[1], tools.about)
    assert [len(generate.pictures("", made[1], tools.about, most)) for most in (0, 1)] == [len(asked), 1]
    assert [one.name for one in asked] == ["box_002_dd_view_000", "ball_001_ee_view_000"], "none of train"
    table = generate.generate(asked, tools, tmp_path, steps=2, samples=2)
    assert list(table["name"]) == [f"{one.name}{tail}" for one in asked for tail in ("", "_2")]
    assert (table["reason"] == "").all() and (table["seconds_sample"] > 0).all() and (table["faces"] == 320).all()
    for name in table["name"]:
        assert len(trimesh.load(tmp_path / f"{name}.glb", force="mesh").faces) == 320
        assert len(mesh.read(tmp_path / f"{name}.obj")[1]) == 320
        assert Image.open(tmp_path / f"{name}.png").size == (64, 64)


def test_a_bad_file_among_pictures_costs_only_itself(tools, tmp_path, monkeypatch):
    monkeypatch.setattr(generate, "surface", solid())
    folder = tmp_path / "photos"
    folder.mkdir()
    with pytest.raises(ValueError, match=r"photos' is a folder without a picture .*there: 0\)"):
        generate.pictures(str(folder), [], tools.about)
    (folder / "notes.txt").write_text("none")
    (folder / ".DS_Store").write_text("none")
    with pytest.raises(ValueError, match=r"photos' is a folder without a picture .*there: 1\)"):
        generate.pictures(str(folder), [], tools.about)
    (folder / "torn.JPG").write_text("none")
    with pytest.raises(ValueError, match=r"none of 1 files in .*photos is a picture.*torn.JPG' cannot be read"):
        generate.pictures(str(folder), [], tools.about)
    for name in ("cup.png", "cup.gif", "jar.png"):
        Image.fromarray(np.pad(np.zeros((20, 20), np.uint8), 10, constant_values=255)).save(folder / name)
    asked = generate.pictures(str(folder), [], tools.about)
    assert [one.name for one in asked] == ["cup_gif", "cup_png", "jar", "torn"], "none overwrites another"
    table = generate.generate(asked, tools, tmp_path / "made", steps=1).set_index("picture")
    assert "no known format" in table["reason"]["torn"] and (table["reason"] != "").sum() == 1
    assert sorted(path.stem for path in (tmp_path / "made").glob("*.glb")) == ["cup_gif", "cup_png", "jar"]
    assert generate.gallery(table.reset_index(), asked, tmp_path / "made", generate.judge(table, asked, [], tools, ""))


@pytest.mark.parametrize("name, given", [("samples", "samples"), ("batch", "batch"), ("octree_depth", "depth")])
def test_none_of_anything_is_refused_before_any_work(tools, tmp_path, name, given):
    with pytest.raises(ValueError, match=f"{name} = 0; wanted at least 1"):
        generate.generate([], tools, tmp_path, **{given: 0})


def test_a_surface_is_where_the_vae_says(tools):
    """Against the dense field on a grid: each vertex lies within a cell of a change of sign."""
    torch.manual_seed(1)
    z = torch.randn(TOKENS, tools.shapes.channels)
    V, F, _ = surface(tools.shapes, z, 4)
    context = tools.shapes.decode(z[None])
    if len(F):
        inner = np.abs(V).max(1) < 1.04  # where the box cuts it off it is closed
        values = tools.shapes.query(context, torch.from_numpy(V[inner]).float()[None])[0].detach().numpy()
        assert (
            np.abs(values).max()
            < np.abs(tools.shapes.query(context, torch.rand(1, 500, 3) * 2 - 1).detach().numpy()).max()
        )


def test_the_same_seed_gives_the_same_shape_in_any_company(made, tools):
    features = torch.from_numpy(generate.look(generate.pictures("", made[1], tools.about), tools))
    one = dit.sample(tools.model, features, TOKENS, steps=3, seed=5)
    again = dit.sample(tools.model, features[:1], TOKENS, steps=3, seed=5)
    assert torch.allclose(one[:1], again, atol=1e-5)
    assert not torch.allclose(one, dit.sample(tools.model, features, TOKENS, steps=3, seed=6))
    with pytest.raises(ValueError, match="wanted one of euler, heun"):
        dit.sample(tools.model, features, TOKENS, sampler="ode")


def test_a_view_is_looked_at_as_in_training(made, tools):
    asked = generate.pictures("", made[1], tools.about)
    seen = dino.read_features(asked[0].item.path("_view_000_dinov2_features.npz"))
    assert np.abs(generate.look(asked, tools)[0].astype(float) - seen).max() < 5e-3


def test_a_file_or_a_folder_of_pictures(made, tools, tmp_path):
    pixels = np.full((80, 120, 3), 255, np.uint8)
    pixels[20:40, 70:100] = 30
    for name in ("cat.png", "dog.jpg"):
        Image.fromarray(pixels).save(tmp_path / name)
    (one,) = generate.pictures(str(tmp_path / "cat.png"), [], tools.about)
    assert one.name == "cat" and one.item is None
    assert generate.cutout.extent(np.asarray(one.picture.getchannel("A"))) == pytest.approx(
        tools.about["features"]["share"], abs=0.01
    ), "framed as the views are"
    assert [one.name for one in generate.pictures(str(tmp_path), [], tools.about)] == ["cat", "dog"]
    assert [len(generate.pictures(str(tmp_path), [], tools.about, most)) for most in (0, 1, 2)] == [2, 1, 2]
    with pytest.raises(ValueError, match="is not there"):
        generate.pictures(str(tmp_path / "none.png"), [], tools.about)


@pytest.mark.parametrize("fault", ["empty", "memory"])
def test_one_that_fails_costs_its_row(made, tools, tmp_path, monkeypatch, fault):
    def surface(shapes, z, depth):
        if len(calls) == 0:
            calls.append(1)
            if fault == "memory":
                raise torch.OutOfMemoryError("CUDA out of memory")
            return np.zeros((0, 3)), np.zeros((0, 3), int)
        return solid()(shapes, z, depth)

    calls = []
    monkeypatch.setattr(generate, "surface", surface)
    table = generate.generate(generate.pictures("", made[1], tools.about), tools, tmp_path, steps=1)
    assert ("no surface" if fault == "empty" else "out of memory") in table["reason"][0] and table["reason"][1] == ""
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".csv", ".glb", ".obj", ".png"]


def test_scores_stand_beside_what_else_could_be_handed_out(made, tools, tmp_path, monkeypatch):
    monkeypatch.setattr(generate, "surface", solid())
    _, items = made
    asked = generate.pictures("", items, tools.about)
    table = generate.generate(asked, tools, tmp_path, steps=1)
    scores = generate.judge(table, asked, items, tools, tmp_path).set_index("picture")
    ball, box = scores.loc["ball_001_ee_view_000"], scores.loc["box_002_dd_view_000"]
    assert ball["made"] > 0.9 and ball["same family"] > 0.9, "a ball was made of everything"
    assert box["made"] < 0.7 and box["a random unseen"] < 0.7
    assert (scores["itself again"] > 0.9).all()
    assert list(scores.index) == ["box_002_dd_view_000", "ball_001_ee_view_000"], "the worst first"


def test_the_nearest_by_features_is_the_one_that_looks_alike(made, tools):
    _, items = made
    train = items[:3]
    known = [
        generate.Asked(item.name, Image.open(item.path("_view_001_image.png")).convert("RGBA"), item) for item in train
    ]
    assert generate.nearest_by_features(known, train, tools) == train
    stray = train[0].path("_view_077_dinov2_features.npz")
    np.savez(stray, features=np.zeros((9, 5), np.float16))
    assert generate.nearest_by_features(known, train, tools) == train, "left by an earlier 04 with another network"
    stray.unlink()


def test_other_eyes_than_those_of_the_training_are_refused(made, tmp_path, monkeypatch):
    monkeypatch.setattr(generate.dino, "load", lambda *_: dino.make_random("random-tiny", 9))
    monkeypatch.setattr(torch.nn.Module, "fingerprint", "other", raising=False)
    with pytest.raises(ValueError, match="features of other weights"):
        generate.tools(made[0] / "06_train_dit", "auto")


def test_a_model_of_normal_maps_looks_at_the_features_of_normals(made, tools):
    about = tools.about | {"features": tools.about["features"] | {"map": "normal"}}
    item = next(item for item in made[1] if item.name == "box_002_dd")
    path = item.path("_view_001_normal_features.npz")
    np.savez(path, features=np.full((4, 96), 2, np.float16))
    (one,) = generate.pictures("", made[1], about, view=1)
    assert one.item == item and (generate.look([one], tools) == 2).all()
    path.unlink()
    with pytest.raises(ValueError, match="trained on normal maps"):
        generate.pictures("cat.png", made[1], about)


def test_without_views_or_a_picture_the_error_says_what_to_do(made, tools):
    with pytest.raises(ValueError, match=r"has view 7. Run 03_render, or give image"):
        generate.pictures("", made[1], tools.about, view=7)


def test_flow_steps_are_those_asked_for(made, tools, monkeypatch):
    seen = []
    monkeypatch.setattr(flow, "schedule", lambda steps, shift: seen.append((steps, shift)) or [1.0, 0.0])
    features = torch.from_numpy(generate.look(generate.pictures("", made[1], tools.about), tools))
    dit.sample(tools.model, features, TOKENS, steps=9, shift=2.0)
    assert seen == [(9, 2.0)]


def test_the_gallery_is_one_picture_worst_first(made, tools, tmp_path, monkeypatch):
    monkeypatch.setattr(generate, "surface", solid())
    asked = generate.pictures("", made[1], tools.about)
    table = generate.generate(asked, tools, tmp_path, steps=1)
    scores = generate.judge(table, asked, made[1], tools, tmp_path)
    sheets = []
    monkeypatch.setattr(generate.picture, "contact_sheet", lambda *given, **_: sheets.append(given[:2]))
    generate.gallery(table, asked, tmp_path, scores)
    ((meshes, titles),) = sheets
    assert len(meshes) == len(titles) == 8 and titles[0] == "box_002_dd_view_000"
    assert meshes[0][2][1].shape == (64, 64, 3), "the picture itself"
    means = generate.verdict(scores).set_index("handed out")
    assert means["F(0.05)"]["made"] == pytest.approx(scores["made"].mean()) and (means["pictures"] == 2).all()
    assert generate.verdict(scores.head(0)).empty
    assert "seconds_sample" in list(generate.cost(table)[""])
    assert "never saw a picture" in generate.told(tools)


def test_the_view_is_a_little_above_the_horizon_unless_told(made, tools):
    item = next(item for item in made[1] if item.name == "box_002_dd")
    for number in range(VIEWS, 10):
        Image.new("RGBA", (8, 8), "red").save(item.path(f"_view_{number:03d}_image.png"))
    assert generate.pictures("", [item], tools.about)[0].name == "box_002_dd_view_004"
    assert generate.pictures("", [item], tools.about, view=7)[0].name == "box_002_dd_view_007"
    for number in range(VIEWS, 10):
        item.path(f"_view_{number:03d}_image.png").unlink()
