import itertools

import numpy as np
import pytest
import trimesh
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from lib import field
from lib.dataset import BOX


def lattice(n):
    """All corners 0..n along each axis, and their keys."""
    ijk = np.stack(np.meshgrid(*[np.arange(n + 1)] * 3, indexing="ij"), -1).reshape(-1, 3)
    return ijk, field.pack(ijk)


def noise(n, seed, kind="normal"):
    """A random field with a ring of negative corners around it."""
    ijk, keys = lattice(n)
    rng = np.random.default_rng(seed)
    values = rng.normal(size=len(ijk)) if kind == "normal" else rng.integers(-1, 2, len(ijk)).astype(float)
    values[((ijk == 0) | (ijk == n)).any(1)] = -1
    return keys, values


def assert_manifold(V, F):
    """Every edge has two faces that run along it in opposite directions, every vertex one fan of faces."""
    n, m = len(V), len(F)
    a, b = F.ravel(), np.roll(F, -1, 1).ravel()
    there, back = a * n + b, b * n + a
    assert len(np.unique(there)) == 3 * m
    assert (np.sort(there) == np.sort(back)).all()
    # Join the two corners of a face at a with those of the face across the edge (a, b).
    across = np.argsort(there)[np.searchsorted(np.sort(there), back)]  # half-edge b -> a
    at_a = across + 1 - 3 * (across % 3 == 2)  # the next half-edge of that face starts at a
    fans, _ = connected_components(coo_array((np.ones(3 * m), (np.arange(3 * m), at_a)), shape=(3 * m, 3 * m)))
    assert fans == n == len(np.unique(F))


def box(low, high):
    return trimesh.creation.box(bounds=[low, high])


def test_keys_sort_like_indices_and_neighbours_are_sums():
    ijk = np.array(list(itertools.product((-3, 0, 1, 1027), repeat=3)))
    keys = field.pack(ijk)
    assert (np.diff(keys) > 0).all()
    assert (field.unpack(keys) == ijk).all()
    assert (field.unpack(keys + field.STEPS[1]) == ijk + np.array([0, 1, 0])).all()
    assert (field.find(keys, keys[::-1]) == np.arange(len(keys))[::-1]).all()
    assert (field.find(keys, keys + 1)[-1:] == -1).all()
    assert (field.unique(np.r_[keys, keys[::2]]) == keys).all()


@pytest.mark.parametrize("resolution", [7, 128, 256, 1000, 1024])
def test_first_and_last_corner_lie_on_the_box(resolution):
    at = field.position(np.array([0, resolution / 2, resolution]), resolution)
    assert np.allclose(at, [-BOX, 0, BOX], rtol=0, atol=1e-15)


def test_closest_is_the_distance_to_a_box_inside_and_outside():
    low, high = np.array([-0.5, -0.3, -0.1]), np.array([0.4, 0.6, 0.2])
    surface = field.prepare(*(lambda m: (m.vertices, m.faces))(box(low, high)))
    P = np.random.default_rng(0).uniform(-1, 1, (5000, 3))
    distance, face, point = field.closest(surface, P)
    outside = np.linalg.norm(np.maximum(np.maximum(low - P, P - high), 0), axis=1)
    inside = np.minimum(P - low, high - P).min(1)
    assert np.allclose(distance, np.where(outside > 0, outside, inside), rtol=0, atol=1e-14)
    assert np.allclose(np.linalg.norm(P - point, axis=1), distance)
    normal = np.cross(*np.diff(surface.V[surface.F[face]], axis=1).swapaxes(0, 1))
    assert np.allclose(((point - surface.V[surface.F[face, 0]]) * normal).sum(1), 0, atol=1e-12)


def test_morton_goes_through_each_eighth_of_the_box_before_the_next():
    P = np.random.default_rng(0).uniform(-3, 5, (4096, 3))
    P[:2] = [-3] * 3, [5] * 3
    order = np.argsort(field.morton(P))
    eighth = ((P[order] + 3) * (1023 / 8)).astype(int) // 512 @ [4, 2, 1]
    assert (np.diff(eighth) >= 0).all() and len(set(eighth)) == 8
    assert len(np.unique(field.morton(P))) > 4090
    assert field.morton(np.zeros((3, 3))).tolist() == [0, 0, 0] and field.morton(np.zeros((0, 3))).shape == (0,)


def test_hits_finds_the_first_face_and_says_when_there_is_none():
    near, far = box([-0.5] * 3, [0.5] * 3), box([-0.9] * 3, [0.9] * 3)
    both = trimesh.util.concatenate([far, near])
    surface = field.prepare(both.vertices, both.faces)
    O = np.array([[0, 0.1, 0.2], [0.7, 0.1, 0.2], [0.7, 0.1, 0.2], [0.95, 0, 0.1]])
    D = np.array([[1, 0, 0], [1, 0, 0], [-1, 0, 0], [1, 0, 0.0]])
    t, face = field.hits(surface, O, D)
    assert np.allclose(t, [0.5, 0.2, 0.2, np.inf], atol=1e-6)
    assert ((face >= 12) == [True, False, True, False]).all()
    assert face[3] == -1


@pytest.mark.parametrize("resolution", [20, 33, 64])
def test_band_is_every_corner_within_reach(resolution):
    m = trimesh.creation.torus(0.6, 0.2, major_sections=24, minor_sections=12)
    surface = field.prepare(m.vertices, m.faces)
    reach = 2.5 * field.spacing(resolution)
    band = field.band(surface, resolution, reach)
    ijk, keys = lattice(resolution)
    distance, _, _ = field.closest(surface, field.position(ijk, resolution))
    assert (band.keys == keys[distance <= reach]).all()
    assert (band.distance == distance[distance <= reach]).all()
    assert np.allclose(
        np.linalg.norm(field.position(field.unpack(band.keys), resolution) - band.point, axis=1), band.distance
    )


@pytest.mark.parametrize("share", [0.05, 0.35, 0.6, 0.7, 0.9])
def test_flood_is_the_dense_one(share):
    n = 24
    ijk, keys = lattice(n)
    blocked = np.random.default_rng(0).random(len(keys)) < share
    blocked &= ((ijk > 0) & (ijk < n)).all(1)
    label, _ = ndimage.label(~blocked.reshape(n + 1, n + 1, n + 1))
    outside = field.flood(keys[blocked])
    assert (outside(keys) == (label == label[0, 0, 0]).ravel()).all()
    assert outside(field.pack(np.array([[-9, 0, 0], [n + 9, 5, 5], [5, 5, n + 9]]))).all()


def test_two_runs_give_the_same_bits():
    m = trimesh.creation.torus(0.6, 0.2)
    one, two = (field.band(field.prepare(m.vertices, m.faces), 64, 0.1) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))
