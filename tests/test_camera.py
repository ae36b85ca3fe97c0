"""camera.py: the whole box in every frame; pixels to points and back; what is written is what is read."""

import itertools
import json

import numpy as np
import pytest

from lib import camera
from lib.dataset import BOX

CORNERS = np.array(list(itertools.product((-BOX, BOX), repeat=3)))
LENSES = [
    camera.lens(64),
    camera.lens(100, field_of_view=75),
    camera.lens(64, field_of_view=20, distance=20),
    camera.lens(64, "orthographic"),
]


@pytest.mark.parametrize("lens", LENSES)
def test_the_whole_box_is_in_the_frame_from_everywhere(lens):
    for pose in camera.poses(500, lens.distance):
        at, depth = camera.project(lens, pose, CORNERS)
        assert (at > 0).all() and (at < lens.size).all()
        assert (depth > lens.near).all() and (depth < lens.far).all()


def test_the_lens_is_as_near_as_it_can_be():
    """A corner of the box that faces sideways comes within two pixels of the frame."""
    lens = camera.lens(256)
    at = np.concatenate([camera.project(lens, pose, CORNERS)[0] for pose in camera.poses(2000, lens.distance)])
    assert 0 < min(at.min(), (256 - at).min()) < 4


def test_views_are_spread_evenly_and_stand_upright():
    D = camera.sphere(36)
    assert np.allclose(np.linalg.norm(D, axis=1), 1)
    apart = np.arccos(np.clip(D @ D.T - 2 * np.eye(36), -1, 1)).min(1)
    ideal = np.sqrt(4 * np.pi / 36)  # the side of a square that has a view's share of the sphere
    assert apart.min() > 0.75 * ideal and apart.max() < 1.2 * ideal
    M = camera.poses(36, 3.0)
    R = M[:, :3, :3]
    assert np.allclose(R @ R.transpose(0, 2, 1), np.eye(3)) and np.allclose(np.linalg.det(R), 1)
    assert np.allclose(R[:, 1, 0], 0) and (R[:, 1, 1] > 0).all()  # the horizon is level, up is up
    assert np.allclose(M[:, :3, 3], 3 * R[:, :, 2])  # from the centre, looking back at it


def test_one_view_is_a_view():
    assert np.isfinite(camera.poses(1, 2.0)).all()


@pytest.mark.parametrize("lens", LENSES)
def test_projecting_and_casting_a_ray_are_inverse(lens):
    rng = np.random.default_rng(0)
    P = rng.uniform(-1, 1, (50, 3))
    for pose in camera.poses(7, lens.distance):
        at, depth = camera.project(lens, pose, P)
        O, D = camera.rays(lens, pose, at)
        assert np.allclose(O + depth[:, None] * D, P, atol=1e-12)


def test_pixels_have_their_origin_at_the_top_left_and_their_centre_at_one_half():
    lens = camera.lens(64)
    pose = np.eye(4)
    pose[2, 3] = lens.distance
    at, depth = camera.project(lens, pose, np.array([[0, 0, 0], [0.5, 0, 0], [0, 0.5, 0], [0, 0, 0.5]]))
    assert np.allclose(at[0], 32) and at[1][0] > 32 and at[2][1] < 32  # x to the right, y upwards
    assert np.allclose(depth, [lens.distance] * 3 + [lens.distance - 0.5])
    near = np.zeros((64, 64))
    near[10, 20] = 2.0
    (point,) = camera.unproject(lens, pose, near)
    assert np.allclose(camera.project(lens, pose, point[None])[0], [20.5, 10.5])


@pytest.mark.parametrize(
    ("chosen", "word"),
    [
        ({"size": 4}, "size"),
        ({"field_of_view": 0.0}, "field_of_view"),
        ({"field_of_view": 180.0}, "field_of_view"),
        ({"distance": 2.0}, "distance"),
        ({"distance": -6.0}, "distance"),
        ({"distance": float("nan")}, "distance"),
        ({"projection": "orthographic", "distance": 1.0}, "distance"),
        ({"projection": "fisheye"}, "projection"),
    ],
)
def test_a_lens_that_leaves_part_of_the_box_out_is_refused(chosen, word):
    with pytest.raises(ValueError, match=word):
        camera.lens(**{"size": 64} | chosen)


@pytest.mark.parametrize("lens", LENSES)
def test_what_is_described_is_what_is_read(lens, tmp_path):
    M = camera.poses(3, lens.distance)
    told = camera.describe(lens, M, "64_cup", ["image", "depth"], normals="world")
    (tmp_path / "views.json").write_text(json.dumps(told))
    again, poses, more = camera.read(tmp_path / "views.json")
    assert again == lens and np.array_equal(poses, M) and more["normals"] == "world"
    assert told["frames"][2]["file_path"] == "64_cup_view_002_image.png"
    assert told["frames"][2]["depth_file_path"] == "64_cup_view_002_depth.png"
    assert "normal_file_path" not in told["frames"][2]


def test_a_damaged_list_of_cameras_names_its_file(tmp_path):
    for text in ("", "{}", "[]", '{"frames": [{}]}', '{"frames": [{"transform_matrix": [1, 2]}], "w": 3}'):
        (tmp_path / "views.json").write_text(text)
        with pytest.raises(ValueError, match=r"views\.json"):
            camera.read(tmp_path / "views.json")
    with pytest.raises(ValueError, match=r"none\.json"):
        camera.read(tmp_path / "none.json")
