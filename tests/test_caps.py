import numpy as np
import pytest
import trimesh

from lib import caps, watertight

R = 64
EPS = 2 / R


def vessel(*profile, at=0.0):
    """An open sheet turned about an axis."""
    m = trimesh.creation.revolve(np.array(profile), sections=64).apply_translation((at, 0, 0))
    return m.apply_transform(trimesh.transformations.rotation_matrix(0.6, [3, 1, 2]))


def close(*meshes, **parameters):
    m = trimesh.util.concatenate(meshes)
    return watertight.close(np.asarray(m.vertices), np.asarray(m.faces), R, remesh="always", **parameters)[2]


def bottle(neck, at=0.0):
    return vessel([0, -0.8], [0.4, -0.8], [0.4, 0.8], [neck, 0.8], at=at)


def test_a_bottle_is_closed_whose_walls_are_larger_than_its_cap():
    facts = close(bottle(0.15))
    assert facts["caps"] == 1 and not facts["hollow"]
    assert np.isclose(facts["volume"], np.pi * 0.4**2 * 1.6, rtol=0.02)
    assert close(bottle(0.15), bottle(0.2, at=1))["caps"] == 2


def test_a_small_bottle_is_closed_as_a_large_one_is():
    """Seven cells across: what is worth closing depends on its shape, not on how many cells it has."""
    small = bottle(0.22).apply_scale(0.22)
    facts = close(small, trimesh.creation.box((0.2, 0.2, 2)).apply_translation((0.5, 0, 0)))
    assert facts["caps"] == 1 and not facts["hollow"]
    assert np.isclose(facts["volume"], 0.2 * 0.2 * 2 + 0.22**3 * np.pi * 0.4**2 * 1.6, rtol=0.01)


def test_a_bath_tub_gets_no_lid():
    """To its winding numbers the tub is a ball with a hole; but about it all is solid, so that a lid spares no wall."""
    turn = np.linspace(-np.pi / 2, np.arcsin(0.75), 40)
    tub = vessel(*np.stack([0.8 * np.cos(turn), 0.8 * np.sin(turn)], -1))
    outer = vessel([0, -0.9], [0.9, -0.9], [0.9, 0.6], [0.42, 0.6])  # its rim hangs over the tub
    facts = close(tub, outer)
    assert facts["caps"] == 0
    assert np.isclose(facts["volume"], np.pi * (0.9**2 * 1.5 - 1.4**2 * (3 * 0.8 - 1.4) / 3), rtol=0.03)
    assert close(tub)["caps"] == 1


def test_what_no_ball_reaches_stays_sealed_when_a_hole_is_closed():
    facts = close(bottle(0.9 * EPS), bottle(0.15, at=1))
    assert facts["caps"] == 1 and not facts["hollow"]
    assert np.isclose(facts["volume"], 2 * np.pi * 0.4**2 * 1.6, rtol=0.02)


@pytest.mark.parametrize("deep", [0.05, 0.5, 0.85])
def test_a_cap_ends_with_its_box_whatever_the_numbers_about_it(deep):
    """Of two corners a cell apart, one inside the box and one outside: on a straight line 1/2 is on the box."""
    for number in (0.5001, 0.51):
        inside, outer = caps.ended(np.full(2, number), np.array([deep, deep - 1]))
        assert np.isclose(np.interp(deep, [0, 1], [inside, outer]), 0.5)
    depth = np.linspace(-3, 3, 61)
    assert (caps.ended(np.full(61, 0.97), depth) < 0.5)[depth < 0].all()
    within = np.linspace(0.1, 0.49, 61)  # a cap that is not near the box's side stays
    assert np.array_equal(caps.ended(within, depth)[depth > 0], within[depth > 0])
