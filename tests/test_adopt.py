"""A tree as the older scripts left it: what is right is kept by the stages, each fault has its reason."""

import csv
from pathlib import Path

import numpy as np
import pytest
import trimesh
from PIL import Image

from lib import adopt, attempt, dataset, latents, mesh, sharp_sample, vae, watertight

R = 64


class OldItem(dataset.Item):
    """The older scripts' names for a stage of ours."""

    def __init__(self, start: Path):
        super().__init__(start.name, "", "", "", R)
        object.__setattr__(self, "start", start)

    def path(self, suffix: str) -> Path:
        return Path(f"{self.start}{suffix}")


def old_tree(folder: Path, count: int = 2) -> list[Path]:
    """Meshes, and what was made of them in the older names and formats: float32 points, 8-bit depth, wide latents."""
    sources = []
    for number in range(count):
        name = f"Cup {number}"
        shape = trimesh.creation.torus(1.0, 0.3 + 0.1 * number)
        (folder / "meshes").mkdir(parents=True, exist_ok=True)
        sources.append(folder / "meshes" / f"{name}.obj")
        mesh.write(sources[-1], 5 * shape.vertices + 2, shape.faces)
        here = folder / "old" / name / f"{R}_{name}"
        here.mkdir(parents=True)
        V, F, _ = watertight.close(mesh.normalise(shape.vertices)[0], shape.faces, R)
        mesh.write(here / f"{R}_{name}_normalized.obj", V, F)
        counts = {"coarse": 500, "sharp": 500, "draws": 2000, "uniform": 2000, "near": [0.001, 0.005]}
        counts |= {"sharp_near": [0.001, 0.005], "angle": 15.0, "precision": "float32", "seed": 0}
        sharp_sample.sharp_sample(OldItem(here / f"{R}_{name}"), **sharp_sample.checked(**counts))
        for view in range(36):
            Image.new("L", (8, 8), 99).save(here / f"{R}_{name}_view_{view:03d}_depth.png")
            Image.new("RGB", (8, 8)).save(here / f"{R}_{name}_view_{view:03d}_normal.png")
        np.savez_compressed(here / f"{R}_{name}_view_000_normal_features.npz", features=np.zeros((260, 8), np.float16))
        np.save(here / f"{R}_{name}_latent_sample.npy", np.ones((256, 768), np.float32))
    return sources


def told(folder: Path) -> dict[tuple, str]:
    rows = adopt.adopt(folder / "old", folder / "meshes", folder / "tree", R)
    return {(row["item"][:5], row["stage"][:2]): row["reason"] for row in rows}


def path(folder: Path, suffix: str, number: int = 0) -> Path:
    return folder / "old" / f"Cup {number}" / f"{R}_Cup {number}" / f"{R}_Cup {number}{suffix}"


def current(folder: Path, stage: str, inputs: list) -> list[bool]:
    """Would the stage keep what each item has?"""
    job = {"stage": stage, "version": 8, "parameters": {"any": 1}, "inputs": inputs}
    items = dataset.items(folder / "tree", R)
    return [bool(attempt.current(job, item, dataset.read_facts(item))) for item in items]


def test_what_is_right_is_kept_by_the_stages_and_each_fault_has_its_reason(tmp_path):
    old_tree(tmp_path)
    found = told(tmp_path)
    assert [found["cup_0", stage] for stage in ("01", "02")] == ["", ""]
    assert "not metric" in found["cup_0", "03"] and "no cameras" in found["cup_0", "03"]
    assert "registers" in found["cup_0", "04"] and "260" in found["cup_0", "04"]
    assert "wrong tensor: (256, 768)" in found["cup_0", "05"] and "post_kl" in found["cup_0", "05"]
    assert current(tmp_path, "01_watertight", ["source"]) == [True, True]
    assert current(tmp_path, "02_sharp_sample", ["_normalized.obj"]) == [True, True]
    assert current(tmp_path, "05_latents", ["_sample_points.npz"]) == [False, False]
    item = dataset.items(tmp_path / "tree", R)[0]
    assert item.path("_normalized.obj").samefile(path(tmp_path, "_normalized.obj")), "on one disk it costs no bytes"
    facts = dataset.read_facts(item)["01_watertight"]["facts"]
    V, _ = mesh.read(item.source)
    assert np.allclose(facts["center"], (V.min(0) + V.max(0)) / 2) and facts["scale"] == pytest.approx(
        np.ptp(V, 0).max() / 2
    )
    rows = list(csv.DictReader((tmp_path / "tree" / f"{R}_adopted.csv").open()))
    assert len(rows) == 10 and sum(row["adopted"] == "True" for row in rows) == 4
    assert set(told(tmp_path).values()) >= {"the tree has its own already"}


def both(one: tuple, other: tuple) -> tuple:
    return np.concatenate([one[0], other[0]]), np.concatenate([one[1], other[1] + len(one[0])])


def spoilt(folder: Path, how: str) -> None:
    target = path(folder, "_normalized.obj")
    V, F = mesh.read(target)
    if how == "open":
        mesh.write(target, V, F[:-1])
    elif how == "inside out":
        mesh.write(target, V, F[:, ::-1])
    elif how == "cut":
        target.write_bytes(target.read_bytes()[:-400])
    elif how == "another":
        target.write_bytes(path(folder, "_normalized.obj", 1).read_bytes())
    elif how == "parts":  # the source has a second part that the old mesh lacks
        V, F = mesh.read(folder / "meshes" / "Cup 0.obj")
        ball = trimesh.creation.icosphere(2)
        mesh.write(folder / "meshes" / "Cup 0.obj", *both((V, F), (ball.vertices * 0.8 + 2, ball.faces)))
    elif how == "lost":
        target.unlink()


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("open", "not closed"),
        ("inside out", "inside out"),
        ("cut", ""),
        ("another", "lost|not this mesh"),
        ("parts", "parts are lost"),
        ("lost", "lost: there is no such file"),
    ],
)
def test_a_mesh_that_is_wrong_is_refused_and_so_are_its_points(tmp_path, how, reason):
    old_tree(tmp_path)
    spoilt(tmp_path, how)
    found = told(tmp_path)
    assert found["cup_0", "01"] and found["cup_0", "02"] and not found["cup_1", "01"]
    assert any(word in found["cup_0", "01"] for word in reason.split("|"))
    assert current(tmp_path, "01_watertight", ["source"]) == [False, True]


@pytest.mark.parametrize(
    ("how", "reason"),
    [("sign", "wrong sign"), ("labels", "no distances"), ("cut", "cut short or damaged"), ("moved", "off the mesh")],
)
def test_points_that_are_wrong_are_refused(tmp_path, how, reason):
    old_tree(tmp_path)
    target = path(tmp_path, "_sample_points.npz")
    arrays = dict(np.load(target))
    if how == "cut":
        target.write_bytes(target.read_bytes()[:-500])
    else:
        for key in ("rand_points", "sharp_near_surface"):
            arrays[key][..., 3] *= {"sign": -1, "labels": 1.5, "moved": 1}[how]
        arrays["fps_coarse_surface"][..., 0] += 0.02 * (how == "moved")
        arrays["rand_points"][..., 3] += 0.1 * (how == "labels")
        np.savez(target, **arrays)
    found = told(tmp_path)
    assert found["cup_0", "01"] == "" and reason in found["cup_0", "02"] and found["cup_1", "02"] == ""


def test_latents_are_taken_only_of_a_vae_that_is_named(tmp_path):
    old_tree(tmp_path)
    np.save(path(tmp_path, "_latent_sample.npy"), np.random.default_rng(0).normal(size=(1, 256, 64)))
    assert "--vae" in told(tmp_path)["cup_0", "05"]
    vae.save(vae.build("tiny", tokens=256), tmp_path / "vae")
    adopt.adopt(tmp_path / "old", tmp_path / "meshes", tmp_path / "tree", R, str(tmp_path / "vae"))
    item = dataset.items(tmp_path / "tree", R)[0]
    assert np.load(item.path("_latent_sample.npy")).shape == (256, 64)
    assert dataset.read_facts(item)["05_latents"]["parameters"]["sha256"] == dataset.sha256(
        tmp_path / "vae" / "model.safetensors"
    )
    assert current(tmp_path, "05_latents", ["_sample_points.npz"]) == [True, False]
    assert latents.is_of(item, latents.describe(str(tmp_path / "vae"), "cpu")), "05 counts it among its own"


def test_what_nobody_sees_from_outside_is_no_loss(tmp_path):
    old_tree(tmp_path, 1)
    V, F = mesh.read(tmp_path / "meshes" / "Cup 0.obj")
    inner = trimesh.creation.torus(1.0, 0.1)
    mesh.write(tmp_path / "meshes" / "Cup 0.obj", *both((V, F), (5 * inner.vertices + 2, inner.faces)))
    assert told(tmp_path)["cup_0", "01"] == ""


def test_the_watertight_scripts_own_name_is_known_and_the_original_is_not_taken_for_it(tmp_path):
    old_tree(tmp_path)
    path(tmp_path, "_normalized.obj").rename(path(tmp_path, ".obj"))
    path(tmp_path, "_normalized.obj", 1).unlink()
    (tmp_path / "old" / "Cup 1" / "Cup 1.obj").write_bytes((tmp_path / "meshes" / "Cup 1.obj").read_bytes())
    found = told(tmp_path)
    assert found["cup_0", "01"] == found["cup_0", "02"] == "" and found["cup_1", "01"].startswith("lost")
    assert current(tmp_path, "01_watertight", ["source"]) == [True, False]


def test_files_in_an_archive_of_the_older_scripts_are_told(tmp_path):
    old_tree(tmp_path)
    for suffix in ("_normalized.obj", "_sample_points.npz"):
        path(tmp_path, suffix).unlink()
    path(tmp_path, "_mesh_and_points.7z").write_bytes(b"7z")
    assert told(tmp_path)["cup_0", "02"] == "lost, or still in _mesh_and_points.7z: unpack it there, adopt again"


@pytest.mark.parametrize(
    ("latents", "reason"),
    [(np.array([{}], dtype=object), "holds Python objects"), (None, "cut short or damaged")],
    ids=["pickled", "cut"],
)
def test_latents_that_cannot_be_read_are_told_why(tmp_path, latents, reason):
    old_tree(tmp_path, 1)
    target = path(tmp_path, "_latent_sample.npy")
    target.write_bytes(target.read_bytes()[:-500])
    if latents is not None:
        np.save(target, latents)  # an array of objects
    assert told(tmp_path)["cup_0", "05"].startswith(reason)


def test_lost_views_are_counted(tmp_path):
    old_tree(tmp_path)
    path(tmp_path, "_view_017_depth.png").unlink()
    path(tmp_path, "_view_017_normal.png").unlink()
    assert "1 of 36 views are lost, the first 17" in told(tmp_path)["cup_0", "03"]


def test_two_meshes_of_one_name_are_told_apart_by_nobody(tmp_path):
    sources = old_tree(tmp_path)
    (tmp_path / "meshes" / "more").mkdir()
    (tmp_path / "meshes" / "more" / "Cup 0.obj").write_bytes(sources[1].read_bytes())
    assert "2 meshes are called cup 0" in told(tmp_path)["cup_0", "01"]
