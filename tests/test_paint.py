"""paint.py: textures where they belong, creases kept and all else smooth, light as a formula says."""

import numpy as np
import pytest
import trimesh

from lib import paint

SQUARE = np.array([[-1.0, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]]), np.array([[0, 1, 2], [0, 2, 3]])
UV = np.array([[0.0, 0], [1, 0], [1, 1], [0, 1]])


def asked(skin, P, detail=None):
    """Colours of points on a skin, each on the face that is closest to it."""
    found = trimesh.proximity.closest_point_naive(trimesh.Trimesh(skin.V, skin.F, process=False), P)
    detail = np.zeros(len(skin.F), int) if detail is None else detail
    weights = paint.barycentric(paint.gradients(skin.V, skin.F)[found[2]], P)
    return paint.look(skin, detail, found[2], weights)[1]


def test_a_texture_stands_upright():
    image = np.uint8([[[250, 0, 0], [0, 250, 0]], [[0, 0, 250], [250, 250, 0]]])  # red, green over blue, yellow
    skin = paint.skin([(*SQUARE, (UV, image))])
    quarters = np.array([[-0.5, 0.5, 0], [0.5, 0.5, 0], [-0.5, -0.5, 0], [0.5, -0.5, 0]])
    assert np.allclose(asked(skin, quarters), image.reshape(4, 3), atol=1e-4)


def test_a_texture_repeats_and_is_smooth_between_its_pixels():
    image = np.arange(48, dtype=np.uint8).reshape(4, 4, 3) * 5
    rng = np.random.default_rng(0)
    uv = rng.uniform(0, 1, (200, 2))
    assert np.allclose(paint.sample(image, uv), paint.sample(image, uv + np.array([3, -2])), atol=1e-9)
    u, v = np.meshgrid((np.arange(4) + 0.5) / 4, 1 - (np.arange(4) + 0.5) / 4)
    assert np.allclose(paint.sample(image, np.stack([u, v], -1).reshape(-1, 2)), image.reshape(-1, 3))
    between = paint.sample(image, np.array([[0.25, 0.375]]))  # between columns 0 and 1 of row 2
    assert np.allclose(between, (image[2, 0].astype(float) + image[2, 1]) / 2)


@pytest.mark.parametrize("by", ["points", "faces", "name"])
def test_paint_by_points_by_faces_and_by_name(by):
    V, F = SQUARE
    given = {
        "points": np.uint8([[0, 0, 0], [200, 0, 0], [200, 0, 0], [0, 0, 0]]),
        "faces": np.uint8([[10, 20, 30], [40, 50, 60]]),
        "name": "#102030",
    }[by]
    skin = paint.skin([(*SQUARE, "white"), (V + np.array([0, 0, 5]), F, given)])
    C = asked(skin, np.array([[0.5, -0.4, 5], [-0.5, 0.4, 5], [0, 0.1, 0]]))
    wanted = {
        "points": [[150, 0, 0], [50, 0, 0]],
        "faces": [[10, 20, 30], [40, 50, 60]],
        "name": [[16, 32, 48]] * 2,
    }[by]
    assert np.allclose(C, [*wanted, [255] * 3], atol=1e-3)


def test_far_textures_are_asked_in_less_detail():
    image = np.zeros((64, 64, 3), np.uint8)
    image[::2] = 200  # stripes of a pixel, grey from afar
    skin = paint.skin([(*SQUARE, (UV, image))])
    assert [picture.shape[0] for picture in skin.textures[0]] == [64, 32, 16, 8, 4, 2, 1]
    assert (paint.levels(skin, 32) == 0).all()  # 64 pixels across 2 units
    assert (paint.levels(skin, 4) == 3).all() and (paint.levels(skin, 1e-9) == 6).all()
    C = asked(skin, np.random.default_rng(0).uniform(-1, 1, (20, 3)) * [1, 1, 0], paint.levels(skin, 4))
    assert np.allclose(C, 100, atol=1)


def test_weights_give_back_the_point():
    rng = np.random.default_rng(0)
    V, F = rng.normal(size=(30, 3)), rng.integers(0, 30, (50, 3))
    F = F[(F[:, 0] != F[:, 1]) & (F[:, 1] != F[:, 2]) & (F[:, 0] != F[:, 2])]
    W = rng.dirichlet([1, 1, 1], len(F))
    P = np.einsum("nk,nkc->nc", W, V[F])
    assert np.allclose(paint.barycentric(paint.gradients(V, F), P), W, atol=1e-6)
    flat = paint.barycentric(paint.gradients(np.zeros((3, 3)), np.array([[0, 1, 2]])), np.zeros((1, 3)))
    assert np.isfinite(flat).all()


# -- normals ----------------------------------------------------------------------------------------------------------


def test_a_cube_keeps_its_creases_and_a_ball_is_round():
    box = trimesh.creation.box()
    V, F = np.array(box.vertices), np.array(box.faces)
    assert np.allclose(paint.smooth(V, F), paint.flat(V, F)[0][:, None])
    ball = trimesh.creation.icosphere(3)
    V, F = np.array(ball.vertices), np.array(ball.faces)
    assert (np.einsum("mkc,mkc->mk", paint.smooth(V, F), V[F]) > np.cos(np.radians(1))).all()


def test_vertices_that_a_file_parted_are_smooth_together():
    ball = trimesh.creation.icosphere(2)
    V, F = np.array(ball.vertices), np.array(ball.faces)
    parted = V[F].reshape(-1, 3), np.arange(3 * len(F)).reshape(-1, 3)
    assert np.allclose(paint.smooth(*parted), paint.smooth(V, F))


def test_faces_that_point_against_each_other_share_no_normal():
    V, F = SQUARE
    turned = np.array([F[0], F[1][::-1]])
    N = paint.smooth(V, turned)
    assert np.allclose(N[0], [0, 0, 1]) and np.allclose(N[1], [0, 0, -1])


def test_a_face_without_area_has_no_normal_and_harms_no_other():
    V, F = SQUARE
    N = paint.smooth(V, np.r_[F, [[0, 0, 1]]])
    assert np.isfinite(N).all() and np.allclose(N[:2], [0, 0, 1])


# -- light ------------------------------------------------------------------------------------------------------------


def test_light_falls_off_with_the_cosine_and_never_below_the_ambient():
    C = np.full((3, 3), 100.0)
    N = np.array([[0, 0, 1.0], [0, 1, 0], [0, 0, -1]])
    light = paint.lit(C, N)[:, 0] / 100
    wanted = [paint.AMBIENT + paint.DIFFUSE * sum(max(n @ lamp, 0) for lamp in paint.LAMPS) for n in N]
    assert np.allclose(light, wanted) and light[2] == pytest.approx(paint.AMBIENT)
    assert paint.lit(C * 10, N).max() == 255
