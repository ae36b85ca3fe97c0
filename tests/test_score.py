import numpy as np
import pytest
import trimesh
from scipy.spatial.transform import Rotation

from lib import score

SPHERE = trimesh.creation.icosphere(5)


def sampled(m, count=20_000, seed=0):
    return score.surface_sample(np.asarray(m.vertices), np.asarray(m.faces), count, np.random.default_rng(seed))


# -- points -----------------------------------------------------------------------------------------------------------


def test_points_lie_on_the_surface_and_evenly():
    box = trimesh.creation.box((2, 1, 0.5))
    P, N = sampled(box, 50_000)
    assert np.abs(P).max(0) == pytest.approx((1, 0.5, 0.25))
    on = np.isclose(np.abs(P), (1, 0.5, 0.25))
    assert on.any(1).all()
    assert on.mean(0) == pytest.approx(np.array([0.5, 1, 2]) / 3.5, abs=0.01)  # shares of the area
    assert np.abs(P.mean(0)).max() < 0.02
    assert np.allclose((P * N).sum(1), np.abs(N) @ (1, 0.5, 0.25)) and np.allclose(np.abs(N).max(1), 1)  # outward
    assert len(score.surface_points(np.zeros((0, 3)), np.zeros((0, 3), int), 5, np.random.default_rng(0))) == 0


def test_the_nearest_point_is_the_nearest_whatever_the_order():
    rng = np.random.default_rng(0)
    P, Q = rng.random((300, 3)), rng.random((200, 3))
    distances = np.linalg.norm(P[:, None] - Q, axis=2)
    found = score.match(P, Q)
    assert np.array_equal(found.there_to, distances.argmin(1)) and np.allclose(found.there, distances.min(1))
    assert np.array_equal(found.back_to, distances.argmin(0)) and np.allclose(found.back, distances.min(0))


# -- one shape beside another -----------------------------------------------------------------------------------------


def test_points_within_the_distance_count_and_no_others():
    P = np.array([[0.0, 0, 0], [1, 0, 0], [2, 0, 0], [3, 0, 0]])
    Q = np.array([[0.04, 0, 0], [1, 0.06, 0]])
    assert score.f_score(score.match(P, Q), 0.05) == pytest.approx(2 * 0.25 * 0.5 / 0.75)
    assert score.f_score(score.match(P, P), 0.0) == 1 and score.f_score(score.match(P, P + 9), 0.05) == 0
    far = np.sqrt([1 + 0.06**2, 4 + 0.06**2])
    there = np.array([0.04, 0.06, *far])
    assert score.chamfer_l1(score.match(P, Q)) == pytest.approx(there.mean() + 0.05)
    assert score.chamfer_l2(score.match(P, Q)) == pytest.approx((there**2).mean() + (0.04**2 + 0.06**2) / 2)


def test_nothing_is_as_far_as_can_be():
    P = np.zeros((3, 3))
    for pair in (score.match(P, P[:0]), score.match(P[:0], P)):
        assert score.chamfer_l1(pair) == score.chamfer_l2(pair) == np.inf
        assert score.f_score(pair, 1e9) == 0
        assert score.normal_consistency(pair, P[: len(pair.there)], P[: len(pair.back)]) == 0


def test_a_sphere_against_a_larger_one_is_the_gap_between_them():
    (P, N), (Q, M) = sampled(SPHERE), sampled(trimesh.creation.icosphere(5, 1.1), seed=1)
    found = score.match(P, Q)
    assert score.chamfer_l1(found) == pytest.approx(0.2, abs=0.01)
    assert score.chamfer_l2(found) == pytest.approx(0.02, abs=0.002)
    assert score.f_score(found, 0.09) == 0 and score.f_score(found, 0.12) > 0.99
    assert score.normal_consistency(found, N, M) == pytest.approx(1, abs=0.005)


def test_a_shifted_sphere_is_off_by_the_closed_form():
    """Its distance at an angle a from the shift d is |d cos a| to first order: d / 2 in the mean, d^2 / 3 squared."""
    d = 0.1
    found = score.match(sampled(SPHERE, 100_000)[0], sampled(SPHERE, 100_000, 1)[0] + [0, d, 0])
    assert score.chamfer_l1(found) == pytest.approx(d, rel=0.03)  # d / 2 each way
    assert score.chamfer_l2(found) == pytest.approx(2 * d**2 / 3, rel=0.03)


def test_distances_grow_with_the_shapes_and_scores_do_not():
    P, Q = sampled(SPHERE, 5000)[0], sampled(trimesh.creation.box((1.5, 1.5, 1.5)), 5000)[0]
    one, three = score.match(P, Q), score.match(3 * P, 3 * Q)
    assert score.chamfer_l1(three) == pytest.approx(3 * score.chamfer_l1(one))
    assert score.chamfer_l2(three) == pytest.approx(9 * score.chamfer_l2(one))
    assert score.f_score(three, 0.3) == score.f_score(one, 0.1)


def test_all_scores_are_the_same_however_both_shapes_are_turned():
    (P, N), (Q, M) = sampled(SPHERE, 5000), sampled(trimesh.creation.box((1.5, 1.5, 1.5)), 5000)
    R = Rotation.from_rotvec([0.3, -1, 0.5]).as_matrix()
    one, turned = score.match(P, Q), score.match(P @ R.T, Q @ R.T)
    assert score.chamfer_l1(turned) == pytest.approx(score.chamfer_l1(one))
    assert score.normal_consistency(turned, N @ R.T, M @ R.T) == pytest.approx(score.normal_consistency(one, N, M))
    assert score.f_sharp(P @ R.T, N @ R.T, Q @ R.T, M @ R.T) == pytest.approx(score.f_sharp(P, N, Q, M))


def test_turned_normals_of_a_cube_differ_by_the_angle():
    (P, N), a = sampled(trimesh.creation.box((2, 2, 2)), 50_000), np.radians(20)
    R, same = Rotation.from_rotvec([0, a, 0]).as_matrix(), score.match(P, P)
    found = score.normal_consistency(same, N, N @ R.T)
    assert found == pytest.approx((4 * np.cos(a) + 2) / 6, abs=0.002)  # those along the axis keep their own
    assert score.normal_consistency(same, -N, N @ R.T) == pytest.approx(found)  # whichever way they face


def test_overlap_of_two_boxes_is_what_their_sides_say():
    P = np.random.default_rng(0).uniform(0, 2, (200_000, 3))
    a, b = (P < (1, 1, 1)).all(1), (P < (1, 1, 2)).all(1)
    assert score.iou(a, b) == pytest.approx(0.5, abs=0.01) and score.iou(a, a) == 1
    assert score.iou(a, ~a) == 0 and score.iou(a & False, a & False) == 1


# -- sharp edges ------------------------------------------------------------------------------------------------------


def test_what_lies_near_a_cubes_edges_is_sharp_and_nothing_else():
    P, N = sampled(trimesh.creation.box((1.6, 1.6, 1.6)), 100_000)
    off = np.sort(0.8 - np.abs(P), axis=1)[:, 1]  # distance from the nearest edge
    found = score.sharp(P, N)
    assert not found[off > score.REACH].any()
    assert found[off < score.REACH / 2].mean() > 0.97


def test_a_sphere_and_the_sides_of_a_thin_wall_have_no_sharp_points():
    assert not score.sharp(*sampled(SPHERE, 100_000)).any()
    P, N = sampled(trimesh.creation.box((2, 2, 0.01)), 100_000)
    middle = np.abs(P[:, :2]).max(1) < 0.9
    assert not score.sharp(P, N)[middle].any()


def test_edges_that_are_cut_off_count_and_lost_ones_do_not():
    """A cube beside itself, with edges cut at 45 degrees, as a ball, and moved by more than the distance."""
    cube = sampled(trimesh.creation.box((1, 1, 1)), 100_000)
    corners = np.array(np.meshgrid(*[(-0.5, 0.5)] * 3)).reshape(3, -1).T
    cut = trimesh.convex.convex_hull(np.concatenate([corners - 0.01 * np.sign(corners) * axis for axis in np.eye(3)]))
    again = sampled(trimesh.creation.box((1, 1, 1)), 100_000, 1)
    assert score.f_sharp(*again, *cube) > 0.99
    assert score.f_sharp(*sampled(cut, 100_000), *cube) > 0.95
    assert score.f_sharp(*sampled(trimesh.creation.icosphere(4, 0.6), 100_000), *cube) == 0
    assert np.isnan(score.f_sharp(*cube, *sampled(SPHERE, 100_000)))
    moved = score.f_sharp(again[0] + 0.1, again[1], *cube)
    assert moved < 0.2


# -- sets -------------------------------------------------------------------------------------------------------------


def test_a_set_beside_itself_others_and_one_of_its_own():
    rng = np.random.default_rng(0)
    near, far = ([rng.random((200, 3)) + shift + 10 * k for k in range(6)] for shift in (0, 5))
    twins = [P + 1e-3 for P in near]
    among, to_twins = score.apart(near, near), score.apart(near, twins)
    assert np.allclose(among, among.T) and np.allclose(np.diag(among), 0)
    assert among[0, 1] == pytest.approx(score.chamfer_l1(score.match(near[0], near[1])))
    assert score.coverage(to_twins) == 1 and score.minimum_matching_distance(to_twins) < 0.01
    assert score.coverage(score.apart([near[2]] * 6, near)) == pytest.approx(1 / 6)  # one shape again and again
    assert score.one_nearest_neighbour(among, to_twins, score.apart(twins, twins)) == 0  # each is beside its twin
    crowd = [near[0] + k / 100 for k in range(6)]
    apart = score.apart(crowd, [P + 50 for P in crowd])
    assert score.one_nearest_neighbour(score.apart(crowd, crowd), apart, score.apart(crowd, crowd)) == 1
    assert score.minimum_matching_distance(score.apart(near, far)) > 1


# -- how sure ---------------------------------------------------------------------------------------------------------


def test_the_interval_of_a_mean_is_as_wide_as_theory_says():
    values = np.random.default_rng(0).normal(3, 2, 400)
    low, high = score.interval(values)
    assert low < values.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * values.std() / np.sqrt(400), rel=0.05)
    assert score.interval(values) == (low, high)  # seeded
    assert score.interval([5, 5, np.nan, 5]) == (5, 5)
    assert np.isnan(score.interval([])).all()


def test_points_of_a_large_mesh_are_the_same_whatever_is_done_at_once(monkeypatch):
    rng = np.random.default_rng(0)
    V, F = rng.random((500, 3)).astype(np.float32), rng.integers(0, 500, (20_000, 3))
    whole = score.surface_sample(V, F, 3000, np.random.default_rng(1))
    monkeypatch.setattr(score, "PIECE", 777)
    pieces = score.surface_sample(V, F, 3000, np.random.default_rng(1))
    assert all((a == b).all() for a, b in zip(whole, pieces, strict=True))
    A, B, C = (V[F[:, k]].astype(float) for k in range(3))
    N = np.cross(B - A, C - A)
    area = np.linalg.norm(N, axis=1)
    face = np.random.default_rng(1).choice(len(F), 3000, p=area / area.sum())
    assert np.allclose(whole[1], N[face] / area[face, None], atol=0, rtol=1e-12)
    assert np.abs(((whole[0] - A[face]) * whole[1]).sum(1)).max() < 1e-12  # each in the plane of its face
