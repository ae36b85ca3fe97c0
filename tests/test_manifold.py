import numpy as np
import pytest
import trimesh
from test_field import assert_manifold, lattice, noise

from lib import contour, field, manifold

BALL = (lambda m: (np.asarray(m.vertices), np.asarray(m.faces)))(trimesh.creation.icosphere(subdivisions=3, radius=0.8))


@pytest.mark.parametrize("seed", range(4))
def test_repair_makes_any_signs_manifold(seed):
    keys, values = noise(16, seed)
    keys, values, turned = manifold.repair(keys, values)
    assert turned > 0
    assert (np.diff(keys) > 0).all()
    surface = field.prepare(*BALL)
    V, F, _ = contour.dual(surface, keys, values, np.ones(len(keys), bool), 16)  # all of it off the source
    assert_manifold(V, F)
    outside = field.flood(keys[values > 0])
    assert (outside(keys) == (values <= 0)).all()  # no voids


@pytest.mark.parametrize("seed", range(4))
def test_repair_that_may_clear_corners_leads_no_edge_through_the_source(seed):
    """Signs at random, and a source that cuts one edge in eleven."""
    keys, values = noise(16, seed)

    def cut(one, two):
        assert np.isin(np.abs(one - two), field.STEPS).all()
        return np.minimum(one, two) % 11 == 0

    filled, before, _ = manifold.repair(keys, values.copy())
    more, after, _ = manifold.repair(keys, values.copy(), loose=np.ones(len(keys), bool), cut=cut)
    V, F, _ = contour.dual(field.prepare(*BALL), more, after, np.ones(len(more), bool), 16)
    assert_manifold(V, F)
    assert (field.flood(more[after > 0])(more) == (after <= 0)).all()  # no voids
    cleared = more[after <= 0][np.isin(more[after <= 0], keys[values > 0])]
    assert len(cleared) > 20
    for step in field.STEPS:
        for one, two in ((cleared, cleared + step), (cleared - step, cleared)):
            outside = [after[field.find(more, end)] <= 0 for end in (one, two)]
            assert not (outside[0] & outside[1] & cut(one, two)).any()
    firm, still, _ = manifold.repair(keys, values.copy(), loose=np.zeros(len(keys), bool), cut=cut)
    assert np.array_equal(firm, filled) and np.array_equal(still, before)


def test_repair_turns_the_corner_that_mends_its_cell(monkeypatch):
    """And not the cheapest of all, which may leave two sheets there and make two in the next cell."""
    case, cost = np.flatnonzero(manifold.twofold()), np.random.default_rng(0).random(8)
    inside = case[:, None] >> np.arange(8) & 1 == 1
    for side in (inside, ~inside):
        costs = np.where(side, cost, np.inf)
        for each, able, own in zip(case, manifold.mended()[case], costs, strict=True):
            corner = manifold.cheapest(np.arange(8)[None], own, able[None])[0]
            assert np.isfinite(own[corner])
            assert not manifold.twofold()[each ^ 1 << corner] or not (able & np.isfinite(own)).any()
    keys, values = noise(16, 0)
    turned = manifold.repair(keys, values.copy())[2]
    monkeypatch.setattr(manifold, "mended", lambda: np.ones((256, 8), bool))
    assert turned < 0.9 * manifold.repair(keys, values.copy())[2]


@pytest.mark.parametrize("which", ["none may", "source between", "free"])
def test_repair_parts_two_blocks_that_meet_at_an_edge_or_joins_them(which):
    ijk, keys = lattice(20)
    one = ((ijk >= 4) & (ijk < 10)).all(1)
    other = ((ijk[:, :2] >= 10) & (ijk[:, :2] < 16)).all(1) & (ijk[:, 2] >= 4) & (ijk[:, 2] < 10)
    values = np.where(one | other, 0.1, -0.5)
    loose = np.full(len(keys), which != "none may")
    cut = (lambda one, two: np.full(len(one), which == "source between")) if which != "none may" else None
    keys, after, turned = manifold.repair(keys, values, loose=loose, cut=cut)
    assert turned >= 6
    V, F, _ = contour.dual(field.prepare(*BALL), keys, after, np.ones(len(keys), bool), 20)
    assert_manifold(V, F)
    assert trimesh.Trimesh(V, F).body_count == (2 if which == "free" else 1)


def test_repair_leaves_what_is_well_alone_and_only_adds():
    ijk, keys = lattice(20)
    values = 0.7 - np.linalg.norm(field.position(ijk, 20), axis=1)
    same, after, turned = manifold.repair(keys, values.copy())
    assert turned == 0 and np.array_equal(same, keys) and np.array_equal(after, values)
    keys, values = noise(12, 0)
    more, after, _ = manifold.repair(keys, values.copy())
    assert (after[field.find(more, keys[values > 0])] > 0).all()


def test_repair_fills_a_void():
    ijk, keys = lattice(20)
    r = np.linalg.norm(field.position(ijk, 20), axis=1)
    values = np.where(r > 0.4, 0.8 - r, r - 0.4 - 1e-3)  # a shell, positive between 0.4 and 0.8
    _, after, _ = manifold.repair(keys, values)
    assert (after[r < 0.4] > 0).all()


@pytest.mark.parametrize("lets", ["no way", "all ways", "one way"])
def test_a_void_opens_where_the_source_lets_it_and_is_filled_elsewhere(lets):
    """A shell three corners thick; the source lies in it, or in all of it but the ray along +x."""
    ijk, keys = lattice(20)
    r = np.linalg.norm(ijk - 10, axis=1)
    values = np.where(r > 4.5, 7.5 - r, r - 4.5) * 0.1
    on_ray = (ijk[:, 1:] == 10).all(1) & (ijk[:, 0] > 10)

    def cut(one, two):
        at = field.find(keys, np.stack([one, two]))
        met = (r[at].min(0) < 6) & (r[at].max(0) >= 6)
        return met & {"no way": True, "all ways": False, "one way": ~on_ray[at].all(0)}[lets]

    more, after, _ = manifold.repair(keys, values.copy(), loose=np.ones(len(keys), bool), cut=cut)
    assert (field.flood(more[after > 0])(more) == (after <= 0)).all()  # no void
    inside = after[field.find(more, keys[r < 4])] > 0
    assert inside.all() if lets == "no way" else not inside.any()
    opened = (r > 4.5) & (r < 7.5) & (after[field.find(more, keys)] <= 0)
    assert opened.sum() == (0 if lets == "no way" else 3) and (lets != "one way" or on_ray[opened].all())
    V, F, _ = contour.dual(field.prepare(*BALL), more, after, np.ones(len(more), bool), 20)
    assert_manifold(V, F)


@pytest.mark.parametrize("opens", [True, False])
def test_a_way_out_of_a_void_and_a_filled_one_leave_the_inside_in(opens):
    """A void of one corner beneath a ball's skin, with no keys but the ends of crossed edges and the way between."""
    ijk, keys = lattice(20)
    void, between = ((ijk == (x, 10, 10)).all(1) for x in (14, 16))
    values = np.where(void, -0.1, 0.8 - 0.1 * np.linalg.norm(ijk - 10, axis=1) - 1e-6)
    crossed = np.union1d(np.r_[tuple(manifold.crossed_edges(keys, values)[:2])], np.flatnonzero(between))
    some, few = keys[crossed], values[crossed]
    loose = np.full(len(some), opens)
    more, after, _ = manifold.repair(some, few.copy(), loose=loose, cut=lambda one, two: np.zeros(len(one), bool))
    assert (field.flood(more[after > 0])(keys[values <= 0]) == (~void[values <= 0] | opens)).all()
    V, F, _ = contour.dual(field.prepare(*BALL), more, after, np.ones(len(more), bool), 20)
    assert_manifold(V, F)
    assert np.isclose(trimesh.Trimesh(V, F).volume, 4 / 3 * np.pi * (8 * field.spacing(20)) ** 3, rtol=0.03)


def test_a_cell_has_one_sheet_unless_its_corners_fall_apart():
    twofold = manifold.twofold()
    assert not twofold[0] and not twofold[255] and not twofold[1] and not twofold[3]
    assert twofold[1 | 1 << 7] and twofold[1 | 1 << 3]  # corners across the cell, across a side
    assert (twofold == twofold[::-1]).all()  # inside and outside alike
