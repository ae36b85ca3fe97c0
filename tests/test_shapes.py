"""The demo's shapes are what their names say: the same from the same seed, various, sound, or broken as promised."""

import os
import subprocess
import sys

import numpy as np
import pytest
import trimesh

from lib import shapes
from lib.solids import lathe

NAMES = [family.__name__ for family in shapes.FAMILIES]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Five of every family."""
    return shapes.make(tmp_path_factory.mktemp("shapes"), 5 * len(NAMES), seed=3)


@pytest.fixture(scope="module")
def merged(files):
    """The triangles of every file in one mesh, equal points merged, for no vertex may be split by its colour."""
    meshes = {path: trimesh.load_scene(path).to_mesh() for path in files}
    return {path: trimesh.Trimesh(mesh.vertices, mesh.faces) for path, mesh in meshes.items()}


def family(path):
    return path.stem.split("_")[0]


def borders(mesh):
    """How many edges have a face on one side only."""
    return int((np.unique(mesh.edges_sorted, axis=0, return_counts=True)[1] == 1).sum())


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_same_seed_same_bytes_in_another_process_and_whatever_the_count(tmp_path):
    shapes.make(tmp_path / "few", 5, seed=7)
    command = [sys.executable, "-m", "lib.shapes", tmp_path / "many", "--count", "14", "--seed", "7"]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONHASHSEED": "1"})
    few, many = contents(tmp_path / "few"), contents(tmp_path / "many")
    assert len(few) > 5 and few == {name: many[name] for name in few}
    chair = next(name for name in few if name.startswith("chair"))
    other = shapes.make(tmp_path / "other", 1, seed=8)[0]
    assert other.name == chair and other.read_bytes() != few[chair]


def test_few_shapes_show_all_families_and_readers(files):
    assert [family(path) for path in files[: len(NAMES)]] == NAMES
    assert {path.suffix for path in files} == {".glb", ".obj", ".ply", ".stl"}
    assert len({path.name for path in files}) == len(files)


def test_no_two_of_a_family_are_alike(merged):
    """Proportions and area of each against its sisters: none is another one, scaled or painted."""
    for name in NAMES:
        sisters = [mesh for path, mesh in merged.items() if family(path) == name]
        looks = [np.append(mesh.extents / mesh.scale, mesh.area / mesh.scale**2) for mesh in sisters]
        gaps = [np.abs(a / b - 1).max() for k, a in enumerate(looks) for b in looks[:k]]
        assert min(gaps) > 0.01 and max(gaps) > 0.15, name


def test_all_stand_on_the_floor_in_metres(merged):
    for path, mesh in merged.items():
        assert np.isfinite(mesh.vertices).all() and 500 < len(mesh.faces) < 40_000, path
        assert 0.05 < mesh.extents.max() < 2.5, path
        if shapes.fault(path) != "holed":
            assert np.allclose([mesh.bounds[0, 1], *mesh.bounds.mean(axis=0)[[0, 2]]], 0, atol=2e-6), path


def test_up_is_y_and_front_is_z(merged):
    for path, mesh in merged.items():
        low, (width, height, depth) = mesh.bounds[0], mesh.extents
        V = mesh.vertices - low
        if family(path) == "chair":  # the back is behind
            assert (V[V[:, 1] > 0.8 * height, 2] < 0.5 * depth).all(), path
        if family(path) == "table":  # the top is over the legs
            top = V[V[:, 1] > 0.8 * height]
            assert (np.ptp(top, axis=0)[[0, 2]] > 0.85 * np.array([width, depth])).all(), path
        if family(path) == "car":  # longer than wide, and driving along z
            assert depth > 1.5 * width, path


def test_faults_are_what_the_names_say(merged):
    found = [shapes.fault(path) for path in merged]
    assert set(found) == {"", *shapes.FAULTS} and found.count("") > len(found) / 2
    for path, mesh in merged.items():
        fault = shapes.fault(path)
        twice = len(mesh.faces) - len(np.unique(np.sort(mesh.faces, axis=1), axis=0))
        if fault == "":
            assert borders(mesh) == 0 and mesh.is_winding_consistent, path
        elif fault in ("holed", "sheet"):
            assert borders(mesh) > 5 and mesh.is_winding_consistent, path
        elif fault == "flipped":
            assert not mesh.is_winding_consistent, path
        elif fault == "doubled":
            assert twice > 100, path


def test_sound_shapes_are_closed_parts_that_face_outwards(files):
    parts = 0
    for path in files:
        if path.suffix == ".glb" and not shapes.fault(path):
            for part in trimesh.load_scene(path).dump():
                assert trimesh.Trimesh(part.vertices, part.faces).is_volume, path
                parts += 1
    assert parts > 100


def test_shelves_are_of_many_parts_each_in_its_own_frame(files):
    path = next(path for path in files if family(path) == "shelf" and path.suffix == ".glb")
    scene = trimesh.load_scene(path)
    middles = np.array([mesh.bounds.mean(axis=0) for mesh in scene.geometry.values()])
    assert len(middles) > 10 and np.allclose(middles, 0, atol=1e-5)
    assert np.ptp([mesh.bounds.mean(axis=0) for mesh in scene.dump()], axis=0).max() > 0.3


def test_colours_survive_every_format_that_has_them(files):
    driven = set()
    for path in files:
        parts = trimesh.load_scene(path).dump()
        visuals = [part.visual for part in parts]
        if path.suffix == ".stl":
            assert visuals[0].kind is None, path
            continue
        seen = np.concatenate([getattr(v, "to_color", lambda v=v: v)().vertex_colors[:, :3] for v in visuals])
        assert len(np.unique(seen, axis=0)) > (family(path) != "bracket"), path  # a bracket may be all one paint
        if family(path) == "car":
            height = np.concatenate([part.vertices[:, 1] for part in parts])
            assert (seen[height < 0.002] == (0x34, 0x36, 0x3C)).all(), f"{path}: what stands on the floor is no tyre"
            driven.add(path.suffix)
        if family(path) in ("mug", "teapot", "bottle"):
            materials = [v.material.to_pbr() if path.suffix == ".obj" else v.material for v in visuals]
            assert max(material.baseColorTexture.width for material in materials) > 300, f"{path}: where is the print?"
    assert driven == {".glb", ".obj", ".ply"}


def test_standing_leaves_the_caller_its_meshes():
    tall, wide = lathe([(30, -10), (30, 90)], (200, 0, 0)), lathe([(100, 0), (100, 5)])
    stood = shapes.standing([tall, wide])
    assert np.allclose([mesh.volume * 1e6 for mesh in stood], [tall.volume, wide.volume], rtol=1e-4)
    assert np.allclose(stood[0].bounds, [(1.05, 0, -0.3), (1.65, 1, 0.3)], atol=1e-2) and tall.extents[1] == 100


def test_no_shape_at_all_is_refused(tmp_path):
    with pytest.raises(ValueError, match="at least one"):
        shapes.make(tmp_path, 0)


@pytest.mark.slow
@pytest.mark.parametrize("make", shapes.FAMILIES, ids=NAMES)
def test_any_seed_gives_closed_parts_or_sheets(make):
    for seed in range(60):
        for _, *meshes in make(np.random.default_rng(seed)):
            for mesh in meshes:
                assert mesh.is_volume or (borders(mesh) > 0 and mesh.is_winding_consistent), seed
