import numpy as np
import pytest
import trimesh

from lib import score


def test_overlap_of_two_boxes_is_what_their_sides_say():
    P = np.random.default_rng(0).uniform(0, 2, (200_000, 3))
    a, b = (P < (1, 1, 1)).all(1), (P < (1, 1, 2)).all(1)
    assert score.iou(a, b) == pytest.approx(0.5, abs=0.01) and score.iou(a, a) == 1
    assert score.iou(a, ~a) == 0 and score.iou(a & False, a & False) == 1


def test_points_within_the_distance_count_and_no_others():
    P = np.array([[0.0, 0, 0], [1, 0, 0], [2, 0, 0], [3, 0, 0]])
    Q = np.array([[0.04, 0, 0], [1, 0.06, 0]])
    assert score.f_score(P, Q, 0.05) == pytest.approx(2 * 0.25 * 0.5 / 0.75)
    assert score.f_score(P, P, 0.0) == 1 and score.f_score(P, P + 9, 0.05) == 0
    assert score.f_score(P, np.zeros((0, 3)), 0.05) == 0
    assert score.chamfer(P, Q) == pytest.approx((0.04 + 0.06 + 1.00180 + 2.00090) / 4 + 0.05, abs=1e-4)


def test_points_lie_on_the_surface_and_evenly():
    box = trimesh.creation.box((2, 1, 0.5))
    P = score.surface_points(box.vertices, box.faces, 50_000, np.random.default_rng(0))
    assert np.abs(P).max(0) == pytest.approx((1, 0.5, 0.25))
    on = np.isclose(np.abs(P), (1, 0.5, 0.25))
    assert on.any(1).all()
    assert on.mean(0) == pytest.approx(np.array([0.5, 1, 2]) / 3.5, abs=0.01)  # shares of the area
    assert np.abs(P.mean(0)).max() < 0.02
    assert len(score.surface_points(np.zeros((0, 3)), np.zeros((0, 3), int), 5, np.random.default_rng(0))) == 0


def test_a_sphere_against_a_larger_one_is_the_gap_between_them():
    rng = np.random.default_rng(0)
    a, b = (trimesh.creation.icosphere(4, r) for r in (1.0, 1.1))
    P, Q = (score.surface_points(np.asarray(m.vertices), np.asarray(m.faces), 20_000, rng) for m in (a, b))
    assert score.chamfer(P, Q) == pytest.approx(0.2, abs=0.01)
    assert score.f_score(P, Q, 0.09) == 0 and score.f_score(P, Q, 0.12) > 0.99
