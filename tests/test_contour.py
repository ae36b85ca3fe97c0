import itertools

import numpy as np
import trimesh
from test_field import assert_manifold, lattice

from lib import contour, field, manifold


def ball(n=3):
    m = trimesh.creation.icosphere(subdivisions=n, radius=0.8)
    return np.asarray(m.vertices), np.asarray(m.faces)


def test_edges_and_corners_of_a_box_are_sharp_and_a_ball_has_none():
    m = trimesh.creation.box(extents=[1, 2, 3])
    edges, corners = contour.sharp(m.vertices, m.faces)
    assert (len(edges), len(corners)) == (12, 8)
    length = np.linalg.norm(m.vertices[edges[:, 0]] - m.vertices[edges[:, 1]], axis=1)
    assert np.allclose(np.sort(length), np.repeat([1, 2, 3], 4))  # no diagonal of a side
    assert len(contour.sharp(*ball())[0]) == 0
    flipped = np.where(np.arange(12)[:, None] % 2, m.faces, m.faces[:, ::-1])
    assert len(contour.sharp(m.vertices, flipped)[0]) == 12
    assert len(contour.borders(m.vertices, m.faces[:1])) == 3  # the rim of one face


def test_a_plane_through_cells_is_met_exactly():
    """Every vertex lies on the source, also where three planes meet in a cell."""
    m = trimesh.creation.box(extents=[1.1, 0.9, 0.7])
    m.apply_transform(trimesh.transformations.rotation_matrix(0.7, [3, 1, 2]))
    surface = field.prepare(m.vertices, m.faces)
    ijk, keys = lattice(40)
    distance, _, _ = field.closest(surface, field.position(ijk, 40))
    inside = m.ray.contains_points(field.position(ijk, 40))
    keys, values, turned = manifold.repair(keys, np.where(inside, distance, -distance))
    V, F, on = contour.dual(surface, keys, values, np.zeros(len(keys), bool), 40)
    assert turned < 10
    assert_manifold(V, F)
    assert on.mean() > 0.99
    assert field.closest(surface, V[on])[0].max() < 1e-9
    far, _ = field.nearest(V, np.arange(len(V))[:, None], np.asarray(m.vertices))
    assert far.max() < 1e-9  # all eight corners are vertices
    assert np.isclose(trimesh.Trimesh(V, F).volume, m.volume, rtol=1e-4)


def test_split_joins_features_and_turns_nothing():
    V = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0.0]])
    quads, up = np.array([[0, 1, 2, 3]]), np.array([[0, 0, 1.0]])
    for feature, diagonal in (((0, 2), {0, 2}), ((1, 3), {1, 3})):
        F, worst = contour.split(V, quads, up, np.isin(np.arange(4), feature))
        assert set(F[0]) & set(F[1]) == diagonal and np.isclose(worst, 1)
    V[2] = [0.2, 0.2, 0]  # not convex: only one diagonal lies inside
    F, worst = contour.split(V, quads, up, np.isin(np.arange(4), (1, 3)))
    assert set(F[0]) & set(F[1]) == {0, 2} and worst > 0.99


def test_intersections_finds_faces_that_are_gone_through():
    one, two = trimesh.creation.box(), trimesh.creation.box().apply_translation([0.3, 0.4, 0.45])
    apart = trimesh.creation.box().apply_translation([3, 0, 0])
    for other, expected in ((two, True), (apart, False)):
        m = trimesh.util.concatenate([one, other])
        assert contour.intersections(field.prepare(m.vertices, m.faces)).any() == expected
    assert not contour.intersections(field.prepare(*ball(4))).any()


def test_move_keeps_vertices_apart_and_faces_the_right_way_up():
    V = np.array([[x, y, 0.0] for x, y in itertools.product(range(4), repeat=2)])
    n = np.arange(16).reshape(4, 4)
    quads = np.stack([n[:-1, :-1], n[1:, :-1], n[1:, 1:], n[:-1, 1:]], -1).reshape(-1, 4)
    wanted = V.copy()
    wanted[5] = [2.8, 2.8, 0]  # would turn faces over
    new, moved = contour.move(V, wanted, np.arange(16) == 5, quads, 1)
    assert not moved.any() and np.array_equal(new, V)
    wanted[5] = wanted[6] = [1, 1.4, 0]  # two to one place: the nearer one has it
    new, moved = contour.move(V, wanted, np.isin(np.arange(16), (5, 6)), quads, 1)
    assert (np.flatnonzero(moved) == [5]).all() and np.allclose(new[5], [1, 1.4, 0])
