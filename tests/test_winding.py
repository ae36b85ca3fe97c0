import numpy as np
import trimesh

from lib import field, winding


def ball(keep=lambda c: np.ones(len(c), bool)):
    m = trimesh.creation.icosphere(subdivisions=4)
    return np.asarray(m.vertices), np.asarray(m.faces[keep(m.triangles_center)])


def turned(F, share=0.5):
    flip = np.random.default_rng(0).random(len(F)) < share
    return np.where(flip[:, None], F[:, ::-1], F)


def volume(V, F):
    A, B, C = V[F].swapaxes(0, 1)
    return np.einsum("ij,ij->", A, np.cross(B, C)) / 6


def test_patches_are_wound_one_way():
    V, F = ball()
    V2, F2 = np.r_[V, V + 3], np.r_[turned(F), turned(F) + len(V)]
    patch, sign = winding.patches(F2)
    assert patch.max() == 1 and (patch[: len(F)] == patch[0]).all()
    fixed = np.where((sign < 0)[:, None], F2[:, ::-1], F2)
    assert np.isclose(abs(volume(V, fixed[: len(F)])), volume(V, F))
    assert np.isclose(abs(volume(V2, fixed)), abs(volume(V, F)) * 2) or np.isclose(volume(V2, fixed), 0)


def test_patches_end_where_three_faces_meet():
    F = np.array([[0, 1, 2], [1, 0, 3], [0, 1, 4]])  # three on one edge
    assert winding.patches(F)[0].max() == 2


def test_faces_are_turned_outward():
    V, F = ball()
    for spoiled in (F[:, ::-1], turned(F)):
        assert np.isclose(volume(V, winding.turn_outward(V, spoiled)), volume(V, F))


def test_winding_numbers_are_solid_angles():
    V, F = ball(lambda c: c[:, 1] < 0.6)
    seen = 1 - (1 - 0.6) / 2  # the cap of height 0.4 is missing from the centre's view
    assert np.isclose(winding.number_at(V, F, np.zeros((1, 3)))[0], seen, atol=0.02)


def test_only_solids_with_a_hole_are_chosen():
    V, F = ball()
    assert winding.holed_solids(V, F, 0.02) == []
    V, F = ball(lambda c: c[:, 1] < 0.7)
    (found,) = winding.holed_solids(V, turned(F), 0.02)
    assert len(found) == len(F)
    V, F = ball(lambda c: c[:, 1] < 0.0)
    assert winding.holed_solids(V, F, 0.02) == []


def test_band_holds_the_cells_of_the_cap():
    V, F = ball(lambda c: c[:, 1] < 0.7)
    keys, number = winding.band(V * 0.9, F, 64)
    ijk = np.stack(np.meshgrid(*[np.arange(65)] * 3, indexing="ij"), -1).reshape(-1, 3)
    every = winding.number_at(V * 0.9, F, field.position(ijk, 64)) > 0.5
    dense = every.reshape(65, 65, 65)
    for axis, step in enumerate(field.STEPS):
        differ = np.flatnonzero((dense != np.roll(dense, -1, axis)).ravel() & (ijk[:, axis] < 64))
        at = field.pack(ijk[differ])
        assert (field.find(keys, at) >= 0).all() and (field.find(keys, at + step) >= 0).all()
    here = field.find(keys, field.pack(ijk))
    assert ((number[here] > 0.5) == every)[here >= 0].all()


def test_samples_are_spread_by_area():
    V = np.array([[0, 0, 0], [3, 0, 0], [0, 1, 0], [0, 0, 5], [1, 0, 5], [0, 1, 5.0]])
    F = np.array([[0, 1, 2], [3, 4, 5]])
    P, N, face = winding.sample(V, F, 4000)
    assert np.isclose((face == 0).mean(), 0.75, atol=1e-3)
    assert (P[face == 0, 2] == 0).all() and (P[face == 1, 2] == 5).all()
    assert np.allclose(P[face == 0].mean(0), [1, 1 / 3, 0], atol=0.05)
    assert np.allclose(N, [0, 0, 1])


def test_band_finds_a_flat_solid():
    m = trimesh.creation.box(extents=[1.8, 1.8, 0.1])
    _, number = winding.band(np.asarray(m.vertices), np.asarray(m.faces)[1:], 128)
    assert (number > 0.5).sum() > 1000
    tiny = trimesh.creation.box(extents=[1.8, 0.005, 0.005])
    winding.band(np.asarray(tiny.vertices), np.asarray(tiny.faces), 64)  # between the corners: none are inside
