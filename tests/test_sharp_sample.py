import numpy as np
import pytest
import trimesh

from lib import sharp_sample

FEW = {"coarse": 500, "sharp": 1200, "draws": 3000, "uniform": 2000}


def sample(m, **parameters):
    return sharp_sample.sample(np.array(m.vertices), np.array(m.faces), **FEW | parameters)


def test_a_cubes_sharp_points_lie_on_its_twelve_edges_in_equal_measure():
    points, facts = sample(trimesh.creation.box())
    P = points["fps_sharp_surface"][:, 0, :3]
    on = np.isclose(np.abs(P), 0.5, rtol=0, atol=1e-12)
    assert (on.sum(1) >= 2).all()
    edge = [tuple(np.where(o, np.sign(p), 0)) for o, p in zip(on, P, strict=True)]
    counts = [edge.count(e) for e in set(edge)]
    assert len(counts) == 12 and set(counts) <= {99, 100, 101}
    assert (facts["sharp_edges"], facts["on_sharp"], facts["smooth"]) == (12, 1.0, False)
    assert np.isclose(facts["sharp_length"], 12)


def test_parameters_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="draws = 3 is less than coarse = 5"):
        sharp_sample.checked(coarse=5, draws=3)
