import numpy as np
import pytest
import trimesh
from scipy import ndimage

from lib import field, outside

R = 48
H, EPS = field.spacing(R), 2 / R


def grid_of(*meshes):
    m = trimesh.util.concatenate(meshes)
    return outside.band(field.prepare(m.vertices + 0.137 * H, m.faces), R)


def box(low, high):
    return trimesh.creation.box(bounds=[low, high])


def ball(radius=0.8):
    return trimesh.creation.icosphere(subdivisions=4, radius=radius)


def without(m, keep):
    return trimesh.Trimesh(m.vertices, m.faces[keep(m.triangles_center)], process=False)


def where(grid):
    return grid.at(slice(None)) - 0.137 * H


def test_places_are_those_of_a_binary_search():
    grid = grid_of(ball(), box([-0.2] * 3, [0.2] * 3))
    wanted = field.pack(np.random.default_rng(0).integers(-2, R + 3, (20000, 2, 3)))
    found = field.find(grid.band.keys, wanted)
    free = np.where(grid.flood(wanted), field.FREE, field.ENCLOSED)
    assert np.array_equal(grid.places(wanted), np.where(found >= 0, found, free))
    assert {field.FREE, field.ENCLOSED} <= set(np.unique(grid.places(wanted)))


def test_the_band_has_both_ends_of_every_edge_that_the_surface_crosses():
    m = trimesh.creation.torus(0.6, 0.25)
    grid = grid_of(m)
    ijk = np.stack(np.meshgrid(*[np.arange(R + 1)] * 3, indexing="ij"), -1)
    inside = m.contains(field.position(ijk.reshape(-1, 3), R) - 0.137 * H).reshape(ijk.shape[:3])
    for axis in range(3):
        low, high = np.take(inside, range(R), axis), np.take(inside, range(1, R + 1), axis)
        at = np.argwhere(low != high)
        assert len(at) and (grid.places(field.pack(at)) >= 0).all()
        assert (grid.places(field.pack(at) + field.STEPS[axis]) >= 0).all()


@pytest.mark.parametrize("flipped", [False, True])
def test_outside_ends_at_a_solid_whichever_way_its_faces_point(flipped):
    m = trimesh.creation.box(extents=[1.3, 1, 0.7])
    m.apply_transform(trimesh.transformations.rotation_matrix(0.6, [3, 1, 2]))
    if flipped:
        m.faces[::2] = m.faces[::2, ::-1]
    grid = grid_of(m)
    out, clear = outside.push_back(grid), grid.band.distance > 1e-3 * H
    hull = m.convex_hull
    assert np.array_equal(out[clear], ~hull.contains(where(grid))[clear])


def test_what_no_ball_reaches_stays_inside_and_a_mouth_that_it_fits_lets_it_in():
    def inner(mouth):
        jar = trimesh.creation.revolve([[mouth * EPS, 0.5], [0.6, 0.5], [0.6, -0.5], [0, -0.5]], sections=64)
        jar.apply_transform(trimesh.transformations.rotation_matrix(0.7, [1, 2, 3]))
        grid = grid_of(jar)
        turn = trimesh.transformations.rotation_matrix(0.7, [1, 2, 3])[:3, :3]
        X = where(grid) @ turn
        deep = (np.linalg.norm(X[:, :2], axis=1) < 0.6 - 0.1 * H) & (np.abs(X[:, 2]) < 0.5 - 2 * H)
        return outside.push_back(grid)[deep].mean()

    assert [inner(mouth) for mouth in (0.5, 0.95, 2, 4)] == [0, 0, 1, 1]


def test_the_flood_is_that_of_a_dense_grid():
    grid = grid_of(without(ball(), lambda c: c[:, 2] < 0.6), box([-0.2] * 3, [0.2] * 3))
    ijk = np.stack(np.meshgrid(*[np.arange(-2, R + 3)] * 3, indexing="ij"), -1)
    near = grid.places(field.pack(ijk))
    free = np.where(near >= 0, grid.band.distance[np.maximum(near, 0)] > EPS, True)
    label, _ = ndimage.label(free)
    assert np.array_equal(grid.flood(field.pack(ijk)), label == label[0, 0, 0])


@pytest.mark.parametrize("shift", [0, 0.2, 0.4, 0.6, 0.8])
@pytest.mark.parametrize("turn", [None, (0, 0, 1), (1, 2, 3)])
@pytest.mark.parametrize(("width", "open"), [(1.9, 0), (2.2, 1), (3.1, 1)])
def test_a_slit_is_open_from_two_eps_on_however_it_lies_in_the_grid(shift, turn, width, open):
    """Two plates, joined along three of their sides."""
    half, s = width * EPS / 2, shift * H
    plates = [box([s + side * half - 0.1 * (side < 0), -0.6, -0.5], [s + side * half + 0.1 * (side > 0), 0.6, 0.9])
              for side in (-1, 1)]  # fmt: skip
    sides = [box([s - half, y, -0.5], [s + half, y + 0.1, 0.9]) for y in (-0.6, 0.5)]
    turn = trimesh.transformations.rotation_matrix(np.pi / 4, turn)[:3, :3] if turn else np.eye(3)
    m = trimesh.util.concatenate([*plates, *sides, box([s - half, -0.6, -0.6], [s + half, 0.6, -0.5])])
    grid = grid_of(trimesh.Trimesh(m.vertices @ turn.T, m.faces, process=False))
    X = np.array([[s, y, z] for y in np.linspace(-0.4, 0.4, 20) for z in np.linspace(-0.4, 0.4, 20)]) @ turn.T
    assert outside.sees(grid, outside.push_back(grid), X + 0.137 * H).mean() == open


def test_points_see_outside_only_past_what_is_in_the_way():
    m = ball()
    grid = grid_of(m)
    out = outside.push_back(grid)
    P = m.triangles_center * (1 + np.random.default_rng(0).uniform(0.2, 0.9, (len(m.faces), 1)) * H / 0.8)
    assert outside.sees(grid, out, P + 0.137 * H).all()
    assert not outside.sees(grid, out, P * (1 - 2 * H / 0.8) + 0.137 * H).any()


def test_a_flat_pane_cuts_every_edge_across_it():
    """The distances of the two ends come to a cell, and rounding would decide whether one of them is that of a face."""
    pane = without(box([-0.6] * 3, [0.6, 0.6, 0]), lambda center: center[:, 2] > -1e-9)
    for height in np.random.default_rng(0).uniform(-0.5, 0.5, 20):
        grid = outside.band(field.prepare(pane.vertices + np.array((0, 0, height)), pane.faces), R)
        P = grid.at(slice(None))
        below = (np.abs(P[:, :2]) < 0.5).all(1) & (P[:, 2] < height - 1e-6 * H) & (P[:, 2] > height - H * (1 - 1e-6))
        keys = grid.band.keys[below]
        assert len(keys) > 400 and outside.cuts(grid, keys, keys + field.STEPS[2]).all()


def test_a_grid_that_grew_finds_its_new_corners():
    grid = grid_of(ball())
    more = field.unique(grid.band.keys[:, None] + outside.NEIGHBOURS @ field.STEPS)
    more = more[grid.places(more) == field.FREE]
    far = field.closest(grid.surface, field.position(field.unpack(more), R))
    grown = outside.grow(grid, more, far)
    assert np.array_equal(grown.places(grown.band.keys), np.arange(len(grid.band.keys) + len(more)))
    assert np.array_equal(grown.radius[:-2], grown.band.distance) and np.array_equal(
        grown.radius[-2:], grid.radius[-2:]
    )
    assert (grid.places(more) == field.FREE).all()  # the first one is left alone
