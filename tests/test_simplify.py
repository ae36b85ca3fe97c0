import time
import tracemalloc

import igl
import numpy as np
import pytest
import trimesh

from lib import simplify as module
from lib.simplify import simplify, thinned


def farthest(V, F, W, G):
    """From points of one surface to the other, both ways."""
    pairs = ((V, W, G), (W, V, F))
    return max(np.sqrt(igl.point_mesh_squared_distance(P, A, B)[0].max()) for P, A, B in pairs)


def test_a_mesh_with_few_faces_stays_as_it_is():
    box = trimesh.creation.box()
    V, F = simplify(box.vertices, box.faces, 12)
    assert (box.vertices == V).all() and (box.faces == F).all()


def test_a_million_faces_become_few_in_seconds_and_stay_near():
    sphere = trimesh.creation.icosphere(subdivisions=8)
    began = time.monotonic()
    V, F = simplify(sphere.vertices, sphere.faces, 5000)
    assert 4000 < len(F) <= 5000 and time.monotonic() - began < 60
    assert np.abs(np.linalg.norm(V, axis=1) - 1).max() < 2e-3
    W = V[F].mean(1)  # also between its vertices
    assert np.abs(np.linalg.norm(W, axis=1) - 1).max() < 5e-3
    N = np.cross(V[F[:, 1]] - V[F[:, 0]], V[F[:, 2]] - V[F[:, 0]])
    assert ((N * W).sum(1) > 0).mean() > 0.99, "but for a sliver it faces outward"


def test_edges_and_corners_stay_sharp():
    box = trimesh.creation.box()
    for _ in range(6):
        box = box.subdivide()
    turned = trimesh.transformations.rotation_matrix(0.5, [1, 2, 3])[:3, :3]
    V, F = simplify(box.vertices @ turned.T, box.faces, 3000)
    back = V @ turned
    assert len(F) <= 3000 < len(box.faces)
    assert np.abs(np.abs(back).max(1) - 0.5).max() < 0.01, "a sixth of a cell off its sides"
    corners = np.array(np.meshgrid(*[[-0.5, 0.5]] * 3)).reshape(3, -1).T
    assert np.linalg.norm(back[None] - corners[:, None], axis=2).min(1).max() < 0.01


@pytest.mark.parametrize("shape", ["torus", "plate", "soup"])
def test_it_stays_within_a_cell_of_what_came(shape):
    rng = np.random.default_rng(0)
    if shape == "torus":
        mesh = trimesh.creation.torus(1, 0.3, major_sections=200, minor_sections=100)
    elif shape == "plate":  # open, and thinner than a cell
        mesh = trimesh.creation.box([2, 2, 0.001])
        for _ in range(5):
            mesh = mesh.subdivide()
    else:
        at = rng.random((9000, 1, 3))
        mesh = trimesh.Trimesh((at + 0.1 * rng.random((9000, 3, 3))).reshape(-1, 3), np.arange(27000).reshape(-1, 3))
    V, F = simplify(mesh.vertices, mesh.faces, 2000)
    assert 0 < len(F) <= 2000 and F.max() < len(V) and np.isfinite(V).all()
    assert len(np.unique(F)) == len(V), "every vertex is used"
    if shape != "soup":  # where whole triangles fall into one cell
        assert farthest(V, F, np.array(mesh.vertices), np.array(mesh.faces)) < 0.15


# -- for a picture ----------------------------------------------------------------------------------------------------


def test_what_is_few_enough_to_draw_is_drawn_as_it_is():
    box = trimesh.creation.box()
    V, F = thinned(box.vertices, box.faces, 12)
    assert V is box.vertices and F is box.faces


@pytest.mark.parametrize("most", [40_000, 4000])
def test_a_thinned_surface_is_as_near_as_its_cells_are_small_and_looks_outward(most):
    sphere = trimesh.creation.icosphere(subdivisions=7)  # 327,680 faces
    V, F = thinned(sphere.vertices.astype(np.float32), sphere.faces.astype(np.int32), most)
    assert most / 2 < len(F) <= most and V.dtype == np.float32
    size = (module.FACES_A_CELL * 4 * np.pi / most) ** 0.5
    A, B, C = V[F].swapaxes(0, 1)
    assert np.abs(np.linalg.norm(V, axis=1) - 1).max() < size**2 / 2  # the mean of a cap lies below it
    assert np.abs(np.linalg.norm((A + B + C) / 3, axis=1) - 1).max() < size**2
    assert np.linalg.norm(np.cross(B - A, C - A), axis=1).sum() / 2 == pytest.approx(4 * np.pi, rel=0.02)
    assert ((np.cross(B - A, C - A) * A).sum(1) > 0).mean() > 0.999
    assert set(np.unique(F)) == set(range(len(V)))


def test_both_sides_of_a_wall_stay_when_it_is_thinner_than_a_cell():
    plate = trimesh.creation.box((2, 1, 0.004))
    for _ in range(7):
        plate = plate.subdivide()
    turned = trimesh.transformations.rotation_matrix(0.5, [1, 2, 3])[:3, :3]
    V, F = thinned(plate.vertices @ turned.T, plate.faces, 4000)
    A, B, C = (V @ turned)[F].swapaxes(0, 1)
    z = np.cross(B - A, C - A)[:, 2] / 2
    assert z[z > 0].sum() == pytest.approx(2, rel=0.05) and z[z < 0].sum() == pytest.approx(-2, rel=0.05)


def test_faces_without_an_area_are_no_reason_to_stop():
    V = np.random.default_rng(0).random((30, 3)) * [1, 0, 0]
    V, F = thinned(V, np.arange(30).reshape(-1, 3), 4)
    assert len(F) <= 4


def test_millions_of_faces_are_thinned_in_pieces(monkeypatch):
    monkeypatch.setattr(module, "PIECE", 1 << 14)
    sphere = trimesh.creation.icosphere(subdivisions=7)
    V, F = sphere.vertices.astype(np.float32), sphere.faces.astype(np.int32)
    tracemalloc.start()
    pieces = thinned(V, F, 10_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40 * len(F)  # one array of the three corners in double precision would be 72 bytes a face
    monkeypatch.undo()
    assert all((a == b).all() for a, b in zip(pieces, thinned(V, F, 10_000), strict=True))
