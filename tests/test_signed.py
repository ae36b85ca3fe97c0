import igl
import numpy as np
import pytest
import trimesh

from lib import nearest, signed, winding


def box(low, high):
    return trimesh.creation.box(bounds=[low, high])


@pytest.mark.parametrize("turn", [0, 0.7])
def test_signed_distance_is_that_of_a_box_positive_inside(turn):
    low, high = np.array([-0.5, -0.3, -0.1]), np.array([0.4, 0.6, 0.2])
    m = box(low, high)
    rng, T = np.random.default_rng(0), trimesh.transformations.rotation_matrix(turn, [1, 2, 3])
    P = np.r_[rng.uniform(-1, 1, (20000, 3)), rng.normal(0, 1e-3, (20000, 3)) + m.sample(20000, seed=0)]
    outside = np.linalg.norm(np.maximum(np.maximum(low - P, P - high), 0), axis=1)
    inside = np.minimum(P - low, high - P).min(1)
    m.apply_transform(T)
    label = signed.distance(signed.prepare(m.vertices, m.faces), P @ T[:3, :3].T)
    assert np.allclose(label, np.where(outside > 0, -outside, inside), rtol=0, atol=1e-12)


def test_signed_distance_behind_spikes_and_in_notches_has_the_sign_of_the_winding_number():
    rng = np.random.default_rng(0)
    m = trimesh.creation.icosphere(subdivisions=3)
    star = trimesh.Trimesh(m.vertices * rng.uniform(0.2, 1, (len(m.vertices), 1)), m.faces, process=False)
    solid = signed.prepare(star.vertices, star.faces)
    corners = star.vertices[rng.integers(len(star.vertices), size=20000)]
    edges = star.vertices[star.edges[rng.integers(len(star.edges), size=20000)]].mean(1)
    P = np.r_[rng.uniform(-1, 1, (20000, 3)), corners + rng.normal(0, 0.02, (20000, 3)), edges]
    P[40000:] += rng.normal(0, 0.02, (20000, 3))
    label = signed.distance(solid, P)
    assert ((label > 0) == (winding.number_at(solid.surface.V, solid.surface.F, P) > 0.5)).all()
    distance, face, point = nearest.closest(solid.tree, P)
    assert np.allclose(np.abs(label), distance, rtol=0, atol=1e-15)  # in the caller's order
    alone = ((P - point) * star.face_normals[face]).sum(1) < 0
    assert ((label > 0) != alone).mean() > 0.001  # the normal of the closest face alone would be wrong here


def folded():
    """A ball of radius 1 with corners pushed over a neighbour and beyond, which is still one closed mesh; and these."""
    m, pushed = trimesh.creation.icosphere(subdivisions=5), np.arange(700, 4000, 160)
    V = np.array(m.vertices)
    for k in pushed:
        V[k] += 2 * (V[m.vertex_neighbors[k][0]] - V[k])
    return V, np.array(m.faces), V[pushed]


def by_closest_face(solid, P):
    """Whether each point is behind the face that is closest to it."""
    _, face, point = nearest.closest(solid.tree, P)
    N = trimesh.Trimesh(solid.surface.V, solid.surface.F, process=False).face_normals
    return ((P - point) * N[face]).sum(1) < 0


@pytest.mark.parametrize("beyond", [np.inf, 0.25])
def test_a_face_folded_over_its_neighbours_turns_no_sign(beyond):
    V, F, _ = folded()
    P = np.random.default_rng(0).uniform(-1.6, 1.6, (20000, 3))
    radius = np.linalg.norm(P, axis=1)
    P, inside = P[np.abs(radius - 1) > 0.03], (radius < 1)[np.abs(radius - 1) > 0.03]
    solid = signed.prepare(V, F)
    assert ((signed.distance(solid, P, beyond) > 0) == inside).all()
    assert (by_closest_face(solid, P) != inside).sum() > 20


def test_beside_a_fold_signs_are_those_of_the_winding_number():
    V, F, corners = folded()
    rng = np.random.default_rng(0)
    P = corners[rng.integers(len(corners), size=2000)] + rng.normal(0, 0.02, (2000, 3))
    solid = signed.prepare(V, F)
    label, inside = signed.distance(solid, P), igl.winding_number(V, F, P) > 0.5
    assert ((label > 0) == inside)[np.abs(label) > 1e-5].all()
    assert (by_closest_face(solid, P) != inside).sum() > 100


@pytest.mark.parametrize("beyond", [np.inf, 0.25])
def test_where_solids_overlap_and_beside_it_points_are_inside(beyond):
    balls = [trimesh.creation.icosphere(subdivisions=3, radius=0.6).apply_translation([x, 0, 0]) for x in (-0.35, 0.35)]
    both = trimesh.util.concatenate(balls)
    P = np.random.default_rng(0).uniform(-1.05, 1.05, (20000, 3))
    inside = winding.number_at(np.array(both.vertices), np.array(both.faces), P) > 0.5
    label = signed.distance(signed.prepare(both.vertices, both.faces), P, beyond)
    assert ((label > 0) == inside).all() and inside.mean() > 0.1


def test_crossings_of_a_ray_are_counted_as_winding_numbers():
    balls = [trimesh.creation.icosphere(subdivisions=2, radius=r) for r in (0.3, 0.6, 0.9)]
    balls[1].invert()
    both = trimesh.util.concatenate(balls)
    solid = signed.prepare(both.vertices, both.faces)
    P = np.random.default_rng(0).uniform(-1, 1, (3000, 3))
    exact = np.round(igl.winding_number(solid.surface.V, solid.surface.F, P))
    counted = [signed.winding_number(solid, P, D) for D in signed.ASKEW]
    assert set(exact) == {0, 1} and (np.median(counted, 0) == exact).all()


@pytest.mark.parametrize("beyond", [0.0, 0.25, 1.0])
def test_far_distances_are_as_exact_as_half_precision_and_near_ones_exact(beyond):
    m = trimesh.creation.torus(0.6, 0.3, major_sections=300, minor_sections=150)
    P = np.random.default_rng(0).uniform(-1.05, 1.05, (20000, 3))
    solid = signed.prepare(m.vertices, m.faces)
    exact, quick = signed.distance(solid, P), signed.distance(solid, P, beyond)
    assert ((exact > 0) == (quick > 0)).all()
    off = np.abs(exact - quick)
    assert off[np.abs(exact) < beyond].max(initial=0) == 0
    assert (off <= 1.001 * signed.HALF * np.abs(exact)).all()
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
        (bound,) = signed.covering_radius(V, np.array([[0, 1, 2]]))
        assert farthest <= bound + 1e-12
        assert farthest > 0.5 * bound
    assert np.isclose(signed.covering_radius(np.eye(3), np.array([[0, 1, 2]])), np.sqrt(2 / 3))
