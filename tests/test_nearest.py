import igl
import numpy as np
import pytest
import trimesh

from lib import field, nearest


def soup(count, size, seed):
    """Faces of any shape anywhere in a box, many of them slivers; some are segments or points."""
    rng = np.random.default_rng(seed)
    V = rng.uniform(-1, 1, (count, 1, 3)) + size * rng.normal(size=(count, 3, 3)) * rng.choice([1, 1e-3], (count, 1, 3))
    F = np.arange(3 * count).reshape(-1, 3)
    F[::7, 1] = F[::7, 0]
    F[1::7, 2] = F[1::7, 0]
    F[2::7, 2] = F[2::7, 1]
    F[3::49] = F[3::49, :1]
    return V.reshape(-1, 3), F


@pytest.mark.parametrize("size", [0.01, 0.3])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 500.0])
def test_the_closest_face_is_that_of_libigls_tree(size, scale):
    V, F = soup(3000, size, 0)
    rng = np.random.default_rng(1)
    on = V[F[rng.integers(len(F), size=2000)]].mean(1)
    P = np.r_[rng.uniform(-1.5, 1.5, (2000, 3)), on, on + rng.normal(0, 1e-3, on.shape), rng.uniform(-4, 4, (200, 3))]
    V, P = V * scale, P * scale
    tree = igl.AABB()
    tree.init(V, F)
    squared, _, _ = tree.squared_distance(V, F, P)
    distance, face, point = nearest.closest(nearest.plant(V, F), P)
    assert np.abs(distance - np.sqrt(squared)).max() < 2e-8 * scale  # both are off by 1e-9 on a needle
    assert (np.abs(distance - np.sqrt(squared)) < 1e-12 * scale).mean() > 0.95
    assert np.allclose(np.linalg.norm(P - point, axis=1), distance, rtol=0, atol=2e-8 * scale)
    for k in range(0, len(P), 100):  # the point lies on its face
        one = igl.AABB()
        one.init(V, F[face[k : k + 1]])
        assert one.squared_distance(V, F[face[k : k + 1]], point[k : k + 1])[0] < (2e-8 * scale) ** 2


@pytest.mark.parametrize("m", [trimesh.creation.torus(0.6, 0.2), trimesh.creation.box(extents=[1, 0.8, 0.6])])
def test_no_order_of_the_points_changes_a_bit(m):
    """Outside a box most closest points are on its edges and corners, which are of several faces."""
    tree = nearest.plant(m.vertices, m.faces)
    P = np.random.default_rng(0).uniform(-1, 1, (5000, 3))
    found = nearest.closest(tree, P)
    assert np.abs(found[0] - field.closest(field.prepare(m.vertices, m.faces), P)[0]).max() < 1e-15
    order = np.random.default_rng(1).permutation(len(P))
    for one, two in zip(found, nearest.closest(tree, P[order]), strict=True):
        assert (one[order] == two).all()
    for one, two, three in zip(found, nearest.closest(tree, P[:77]), nearest.closest(tree, P[77:]), strict=True):
        assert (np.r_[two, three] == one).all()


@pytest.mark.parametrize("count", [1, 2, 7, 8, 9, 64, 65, 1000])
def test_every_face_is_in_the_tree_once(count):
    V, F = soup(count, 0.1, count)
    tree = nearest.plant(V, F)
    assert sorted(tree.face) == list(range(count))
    leaves = tree.child[tree.child < 0]
    assert sorted(-1 - leaves) == list(range(count))
    assert sorted(tree.child[tree.child > 0]) == list(range(1, len(tree.child)))
    for node, k in zip(*np.nonzero(tree.child < 0), strict=True):
        X = V[F[tree.face[-1 - tree.child[node, k]]]]
        low, high = tree.boxes[node, :3, k], tree.boxes[node, 3:, k]
        assert (low < X.min(0)).all() and (X.max(0) < high).all()
        assert (high - low < np.ptp(X, axis=0) + 3e-6).all()


def test_points_are_faces_too():
    V = np.random.default_rng(0).normal(size=(500, 3))
    distance, face, point = nearest.closest(nearest.plant(V, np.arange(500)[:, None].repeat(3, 1)), V + 1e-9)
    assert (face == np.arange(500)).all() and (point == V).all() and np.allclose(distance, 1e-9 * np.sqrt(3), rtol=1e-6)


def test_faces_all_in_one_place_are_divided_too():
    V = np.array([[0.1, 0.2, 0.3], [0.4, 0.2, 0.3], [0.1, 0.7, 0.3]])
    distance, _, point = nearest.closest(nearest.plant(V, np.tile([0, 1, 2], (300, 1))), np.array([[0.2, 0.3, 0.8]]))
    assert np.allclose(distance, 0.5) and np.allclose(point, [[0.2, 0.3, 0.3]])
