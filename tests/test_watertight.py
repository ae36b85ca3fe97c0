import numpy as np
import pytest
import trimesh
from test_field import assert_manifold

from lib import field, watertight


def close(m, resolution):
    V, F, facts = watertight.close(np.asarray(m.vertices), np.asarray(m.faces), resolution)
    assert_manifold(V, F)
    assert facts["watertight_out"] and facts["volume"] > 0
    return V, F, facts


def both_ways(m, V, F):
    """Distances from the result's vertices to the source and from points on the source to the result."""
    there = field.closest(field.prepare(m.vertices, m.faces), V)[0]
    P = np.r_[m.vertices, m.triangles_center]
    return there, field.closest(field.prepare(V, F), P)[0]


def ball(radius=1.0, at=(0, 0, 0)):
    return trimesh.creation.icosphere(subdivisions=5, radius=radius).apply_translation(at)


def test_a_sphere_is_grown_by_eps():
    resolution = 96
    eps, h = 2 / resolution, field.spacing(resolution)
    V, F, facts = close(ball(), resolution)
    assert facts["euler"] == 2
    assert np.isclose(facts["volume"], 4 / 3 * np.pi * (1 + eps) ** 3, rtol=2e-3)
    assert np.abs(np.linalg.norm(V, axis=1) - 1 - eps).max() < 0.02 * h
    assert np.abs((V.max(0) + V.min(0)) / 2).max() < 1e-3 * h  # nothing is shifted
    assert all(np.abs(d - eps).max() < 0.05 * h for d in both_ways(ball(), V, F))
    assert np.isclose(facts["distance_mean"], eps / h, atol=0.05)


def test_a_box_is_grown_by_eps_as_steiner_says():
    resolution = 128
    eps = 2 / resolution
    a, b, c = size = np.array([2.0, 1.2, 0.7])
    m = trimesh.creation.box(extents=size)
    V, F, facts = close(m, resolution)
    steiner = a * b * c + 2 * (a * b + b * c + c * a) * eps + np.pi * (a + b + c) * eps**2 + 4 / 3 * np.pi * eps**3
    assert facts["euler"] == 2
    assert np.isclose(facts["volume"], steiner, rtol=1e-3)
    # Flat sides lie at eps exactly: no half-cell shift.
    assert np.allclose(V.max(0), size / 2 + eps, rtol=0, atol=1e-9)
    assert np.allclose(V.min(0), -size / 2 - eps, rtol=0, atol=1e-9)
    assert all((d < eps + 1e-9).all() for d in both_ways(m, V, F)[:1])


def test_a_torus_is_grown_by_eps_as_pappus_says():
    resolution = 96
    eps, h = 2 / resolution, field.spacing(resolution)
    m = trimesh.creation.torus(0.7, 0.3, major_sections=200, minor_sections=100)
    V, F, facts = close(m, resolution)
    assert facts["euler"] == 0
    assert np.isclose(facts["volume"], 2 * np.pi**2 * 0.7 * (0.3 + eps) ** 2, rtol=5e-3)
    assert all(np.abs(d - eps).max() < 0.1 * h for d in both_ways(m, V, F))


@pytest.mark.parametrize("resolution", [16, 37, 64])
def test_small_and_odd_resolutions_close_too(resolution):
    _, _, facts = close(trimesh.creation.box(extents=[2, 2, 2]), resolution)
    assert facts["euler"] == 2


def test_every_part_is_kept_and_nothing_inside():
    def made(*meshes):
        return close(trimesh.util.concatenate(meshes), 64)[2]

    apart = made(ball(0.4, (-0.6, 0, 0)), ball(0.3, (0.7, 0, 0)))
    assert (apart["parts_in"], apart["parts_out"], apart["euler"]) == (2, 2, 4)
    nested = made(ball(1), ball(0.5))
    assert (nested["parts_in"], nested["parts_out"], nested["euler"]) == (2, 1, 2)
    overlapping = made(ball(0.6, (-0.4, 0, 0)), ball(0.6, (0.4, 0, 0)))
    assert (overlapping["parts_out"], overlapping["euler"]) == (1, 2)


def test_an_open_half_sphere_becomes_a_closed_shell():
    half = ball()
    half.update_faces(half.triangles_center[:, 2] > 0)
    half.remove_unreferenced_vertices()
    _, _, facts = close(half, 64)
    assert not facts["watertight_in"]
    assert facts["euler"] == 2
    assert np.isclose(facts["volume"], half.area * 2 * 2 / 64, rtol=0.05)


def test_the_direction_of_faces_does_not_matter():
    m = ball(0.9)
    flip = np.random.default_rng(0).random(len(m.faces)) < 0.5
    F = np.where(flip[:, None], m.faces[:, ::-1], m.faces)
    V1, F1, _ = watertight.close(m.vertices, m.faces, 48)
    V2, F2, _ = watertight.close(m.vertices, F, 48)
    assert np.array_equal(F1, F2)
    assert np.allclose(V1, V2, rtol=0, atol=1e-9)


def test_a_soup_of_triangles_becomes_manifold():
    rng = np.random.default_rng(0)
    V = (rng.uniform(-0.8, 0.8, (300, 1, 3)) + rng.normal(0, 0.1, (300, 3, 3))).reshape(-1, 3)
    close(trimesh.Trimesh(V, np.arange(900).reshape(-1, 3), process=False), 64)


def test_two_runs_give_the_same_bits_and_leave_the_mesh_alone():
    m = trimesh.creation.torus(0.7, 0.2)
    V, F = np.array(m.vertices), np.array(m.faces)
    one, two = (watertight.close(V, F, 64) for _ in range(2))
    assert np.array_equal(one[0], two[0]) and np.array_equal(one[1], two[1])
    assert np.array_equal(V, m.vertices) and np.array_equal(F, m.faces)


def test_merging_joins_places_and_drops_faces_without_area():
    m = trimesh.creation.box()
    loose = m.vertices[m.faces].reshape(-1, 3)
    faces = np.r_[np.arange(36).reshape(-1, 3), [[0, 0, 1]]]
    V, F = watertight.merge(loose, faces)
    assert (V.shape, F.shape) == ((8, 3), (12, 3))
    with pytest.raises(ValueError, match="no face of this mesh has an area"):
        watertight.merge(np.zeros((3, 3)), np.array([[0, 1, 2]]))


def test_topology_of_known_shapes():
    for m, euler in ((ball(), 2), (trimesh.creation.torus(0.7, 0.2), 0)):
        facts = watertight.topology(np.asarray(m.vertices), np.asarray(m.faces))
        assert (facts["euler"], facts["parts"], facts["watertight"]) == (euler, 1, True)
        assert np.isclose(facts["volume"], m.volume)
    flipped = m.faces.copy()
    flipped[0] = flipped[0, ::-1]
    assert not watertight.topology(m.vertices, flipped)["watertight"]
    assert not watertight.topology(m.vertices, m.faces[1:])["watertight"]
