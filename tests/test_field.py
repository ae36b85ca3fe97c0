import itertools

import igl
import numpy as np
import pytest
import trimesh
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from lib import field, winding
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


@pytest.mark.parametrize("turn", [0, 0.7])
def test_signed_distance_is_that_of_a_box_positive_inside(turn):
    low, high = np.array([-0.5, -0.3, -0.1]), np.array([0.4, 0.6, 0.2])
    m = box(low, high)
    rng, T = np.random.default_rng(0), trimesh.transformations.rotation_matrix(turn, [1, 2, 3])
    P = np.r_[rng.uniform(-1, 1, (20000, 3)), rng.normal(0, 1e-3, (20000, 3)) + m.sample(20000, seed=0)]
    outside = np.linalg.norm(np.maximum(np.maximum(low - P, P - high), 0), axis=1)
    inside = np.minimum(P - low, high - P).min(1)
    m.apply_transform(T)
    signed = field.signed_distance(field.prepare(m.vertices, m.faces), P @ T[:3, :3].T)
    assert np.allclose(signed, np.where(outside > 0, -outside, inside), rtol=0, atol=1e-12)


def test_signed_distance_behind_spikes_and_in_notches_has_the_sign_of_the_winding_number():
    rng = np.random.default_rng(0)
    m = trimesh.creation.icosphere(subdivisions=3)
    star = trimesh.Trimesh(m.vertices * rng.uniform(0.2, 1, (len(m.vertices), 1)), m.faces, process=False)
    surface = field.prepare(star.vertices, star.faces)
    corners = star.vertices[rng.integers(len(star.vertices), size=20000)]
    edges = star.vertices[star.edges[rng.integers(len(star.edges), size=20000)]].mean(1)
    P = np.r_[rng.uniform(-1, 1, (20000, 3)), corners + rng.normal(0, 0.02, (20000, 3)), edges]
    P[40000:] += rng.normal(0, 0.02, (20000, 3))
    signed = field.signed_distance(surface, P)
    assert ((signed > 0) == (winding.number_at(surface.V, surface.F, P) > 0.5)).all()
    distance, face, point = field.closest(surface, P)
    assert np.allclose(np.abs(signed), distance, rtol=0, atol=1e-15)  # in the caller's order
    alone = ((P - point) * star.face_normals[face]).sum(1) < 0
    assert ((signed > 0) != alone).mean() > 0.001  # the normal of the closest face alone would be wrong here


def folded():
    """A ball of radius 1 with corners pushed over a neighbour and beyond, which is still one closed mesh; and these."""
    m, pushed = trimesh.creation.icosphere(subdivisions=5), np.arange(700, 4000, 160)
    V = np.array(m.vertices)
    for k in pushed:
        V[k] += 2 * (V[m.vertex_neighbors[k][0]] - V[k])
    return V, np.array(m.faces), V[pushed]


def by_closest_face(surface, P):
    """Whether each point is behind the face that is closest to it."""
    _, face, point = field.closest(surface, P)
    N = trimesh.Trimesh(surface.V, surface.F, process=False).face_normals
    return ((P - point) * N[face]).sum(1) < 0


@pytest.mark.parametrize("beyond", [np.inf, 0.25])
def test_a_face_folded_over_its_neighbours_turns_no_sign(beyond):
    V, F, _ = folded()
    P = np.random.default_rng(0).uniform(-1.6, 1.6, (20000, 3))
    radius = np.linalg.norm(P, axis=1)
    P, inside = P[np.abs(radius - 1) > 0.03], (radius < 1)[np.abs(radius - 1) > 0.03]
    surface = field.prepare(V, F)
    assert ((field.signed_distance(surface, P, beyond) > 0) == inside).all()
    assert (by_closest_face(surface, P) != inside).sum() > 20


def test_beside_a_fold_signs_are_those_of_the_winding_number():
    V, F, corners = folded()
    rng = np.random.default_rng(0)
    P = corners[rng.integers(len(corners), size=2000)] + rng.normal(0, 0.02, (2000, 3))
    surface = field.prepare(V, F)
    signed, inside = field.signed_distance(surface, P), igl.winding_number(V, F, P) > 0.5
    assert ((signed > 0) == inside)[np.abs(signed) > 1e-5].all()
    assert (by_closest_face(surface, P) != inside).sum() > 100


def test_crossings_of_a_ray_are_counted_as_winding_numbers():
    balls = [trimesh.creation.icosphere(subdivisions=2, radius=r) for r in (0.3, 0.6, 0.9)]
    balls[1].invert()
    both = trimesh.util.concatenate(balls)
    surface = field.prepare(both.vertices, both.faces)
    P = np.random.default_rng(0).uniform(-1, 1, (3000, 3))
    exact = np.round(igl.winding_number(surface.V, surface.F, P))
    counted = [field.winding_number(surface, both.face_normals, P, D) for D in field.ASKEW]
    assert set(exact) == {0, 1} and (np.median(counted, 0) == exact).all()


@pytest.mark.parametrize("beyond", [0.0, 0.25, 1.0])
def test_far_distances_are_as_exact_as_half_precision_and_near_ones_exact(beyond):
    m = trimesh.creation.torus(0.6, 0.3, major_sections=300, minor_sections=150)
    P = np.random.default_rng(0).uniform(-1.05, 1.05, (20000, 3))
    surface = field.prepare(m.vertices, m.faces)
    exact, quick = field.signed_distance(surface, P), field.signed_distance(surface, P, beyond)
    assert ((exact > 0) == (quick > 0)).all()
    off = np.abs(exact - quick)
    assert off[np.abs(exact) < beyond].max(initial=0) == 0
    assert (off <= 1.001 * field.HALF * np.abs(exact)).all()
    assert (off > 0).mean() > (0.2 if beyond < 1 else 0.0001)  # else nothing was saved
    if beyond == 0.25:  # the largest faces, by their corners alone, would ask for 0.36
        assert (off > 0)[np.abs(exact) > 1.01 * beyond].mean() > 0.99


def test_the_covering_radius_is_the_farthest_that_a_point_can_be_from_all_corners():
    rng = np.random.default_rng(0)
    weights = rng.dirichlet([1, 1, 1], 20000)
    for _ in range(30):
        V = rng.normal(size=(3, 3))
        P = weights @ V
        farthest = np.linalg.norm(P[:, None] - V, axis=2).min(1).max()
        (bound,) = field.covering_radius(V, np.array([[0, 1, 2]]))
        assert farthest <= bound + 1e-12
        assert farthest > 0.5 * bound
    assert np.isclose(field.covering_radius(np.eye(3), np.array([[0, 1, 2]])), np.sqrt(2 / 3))


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
