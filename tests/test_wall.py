import numpy as np
import pytest
import trimesh

from lib import field, outside, wall

R = 48
H, EPS = field.spacing(R), 2 / R


def plate(thickness):
    m = trimesh.creation.box(extents=[1.4, 1.4, thickness])
    return m.apply_transform(trimesh.transformations.rotation_matrix(0.5, [1, 2, 3]))


def made(m):
    grid = outside.band(field.prepare(m.vertices + 0.137 * H, m.faces), R)
    out = outside.push_back(grid)
    return grid, out, wall.offsets(grid, out)


def signed(grid, out, offset):
    return wall.signed(*wall.widen(grid, out, offset))


def middle(grid, m):
    """Corners whose closest point lies well inside a large face of a plate."""
    turn = trimesh.transformations.rotation_matrix(0.5, [1, 2, 3])[:3, :3]
    return (np.abs((grid.band.point - 0.137 * H) @ turn)[:, :2] < 0.7 - 3 * H).all(1)


@pytest.mark.parametrize("thickness", [0.3, 0.8, 1.4])
def test_a_plate_is_moved_out_by_half_of_what_it_lacks(thickness):
    t = thickness * EPS
    grid, out, offset = made(plate(t))
    here = out & middle(grid, t) & (grid.band.distance > 1e-3 * H)
    assert here.sum() > 1000
    assert np.allclose(offset[here], EPS - t / 2, rtol=0, atol=0.01 * EPS)
    assert (offset[~out] == 0).all()


def test_solids_have_no_walls():
    for m in (trimesh.creation.icosphere(subdivisions=4), plate(3 * EPS)):
        _, out, offset = made(m)
        assert (offset[out] > 0).mean() < 0.002


def test_a_round_solid_gets_no_bump_where_a_grid_edge_cuts_a_sliver_off_it():
    for angle in (0.3, 0.7, 1.1):
        m = trimesh.creation.capsule(1.0, 0.4, count=[32, 32])
        m.apply_transform(trimesh.transformations.rotation_matrix(angle, [1, 2, 3])).apply_translation(
            -m.bounds.mean(0)
        )
        assert not signed(*made(m))[2].any()


def test_the_field_of_a_plate_is_the_distance_to_its_wall():
    """On both sides of the wall's surface: how far a corner lies from the plane that is eps off the plate's middle."""
    t = 0.6 * EPS
    m = plate(t)
    keys, values, walled, _ = signed(*made(m))
    turn = trimesh.transformations.rotation_matrix(0.5, [1, 2, 3])[:3, :3]
    X = (field.position(field.unpack(keys), R) - 0.137 * H) @ turn
    here = (np.abs(X[:, :2]) < 0.7 - 3 * H).all(1) & (np.abs(X[:, 2]) > t / 2 + 1e-3 * H) & (np.abs(X[:, 2]) < 1.9 * H)
    assert here.sum() > 2000 and walled[here].all()
    assert np.allclose(values[here], (EPS - np.abs(X[:, 2]))[here], rtol=0, atol=0.02 * H)
    assert (np.diff(keys) > 0).all()


def test_a_sheet_between_two_corners_is_not_lost():
    """Corners near the rim of a sheet are nearest to another one that stands close by."""
    g = np.linspace(-0.6, 0.6, 30)
    V = np.stack(np.meshgrid(g, g, indexing="ij"), -1).reshape(-1, 2)
    n = np.arange(900).reshape(30, 30)
    a, b, c, d = n[:-1, :-1].ravel(), n[1:, :-1].ravel(), n[1:, 1:].ravel(), n[:-1, 1:].ravel()
    F = np.r_[np.c_[a, b, c], np.c_[a, c, d]]
    one = trimesh.Trimesh(np.c_[V, 0.0 * V[:, 0]], F, process=False)
    two = trimesh.Trimesh(np.c_[V, 0.3 * H + 0.2 * V[:, 0]], F, process=False)
    grid, out, offset = made(trimesh.util.concatenate([one, two]))
    keys, values, *_ = signed(grid, out, offset)
    lower = np.searchsorted(keys, keys)
    for axis, step in enumerate(field.STEPS):  # every grid edge that a sheet crosses has an end in the wall
        upper = field.find(keys, keys + step)
        lower = np.flatnonzero((upper >= 0) & (values <= 0) & (values[np.maximum(upper, 0)] <= 0))
        D = np.zeros((len(lower), 3))
        D[:, axis] = H
        assert not field.blocked(grid.surface, field.position(field.unpack(keys[lower]), R), D).any()
