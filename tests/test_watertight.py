import judge_watertight
import numpy as np
import pytest
import trimesh
from scipy.spatial import cKDTree
from test_cubes import marching_cubes
from test_field import assert_manifold

from lib import contour, field, watertight, winding


def close(m, resolution=64, remesh="always", **parameters):
    V, F, facts = watertight.close(np.asarray(m.vertices), np.asarray(m.faces), resolution, remesh=remesh, **parameters)
    assert_manifold(V, F)
    assert facts["watertight_out"] and facts["volume"] > 0 and facts["missed"] < 0.02
    assert all(part.volume > 0 for part in parts(V, F))  # no inner shell
    return V, F, facts


def parts(V, F):
    return trimesh.Trimesh(V, F, process=False).split(only_watertight=False)


def ball(radius=1.0, at=(0, 0, 0), fine=3):
    return trimesh.creation.icosphere(subdivisions=fine, radius=radius).apply_translation(at)


def box(low, high):
    return trimesh.creation.box(bounds=[low, high])


def cut(m, keep):
    """Faces whose centre is to be kept."""
    m = m.copy()
    m.update_faces(keep(m.triangles_center))
    m.remove_unreferenced_vertices()
    return m


def join(*meshes):
    return trimesh.util.concatenate(meshes)


def turned(m, share=0.5):
    """Some faces wound the other way."""
    flip = np.random.default_rng(0).random(len(m.faces)) < share
    return trimesh.Trimesh(m.vertices, np.where(flip[:, None], m.faces[:, ::-1], m.faces), process=False)


def both_ways(m, V, F, count=20000):
    """Distances from samples of the result to the source and back."""
    one, two = (np.asarray(m.vertices), np.asarray(m.faces)), (V, F)
    return [field.closest(field.prepare(*b), winding.sample(*a, count)[0])[0] for a, b in ((two, one), (one, two))]


def sheet(across=(0, 0, 1), size=1.6, at=(0, 0, 0), cells=8, thin=1.0):
    """A flat rectangle of zero thickness."""
    g = np.linspace(-size / 2, size / 2, cells + 1)
    x, y = np.meshgrid(g, g, indexing="ij")
    V = np.stack([x, thin * y, np.zeros_like(x)], -1).reshape(-1, 3)
    n = np.arange((cells + 1) ** 2).reshape(cells + 1, -1)
    a, b, c, d = n[:-1, :-1].ravel(), n[1:, :-1].ravel(), n[1:, 1:].ravel(), n[:-1, 1:].ravel()
    m = trimesh.Trimesh(V, np.r_[np.c_[a, b, c], np.c_[a, c, d]], process=False)
    return m.apply_transform(trimesh.geometry.align_vectors([0, 0, 1], across)).apply_translation(at)


# -- closed forms -----------------------------------------------------------------------------------------------------


def test_a_sphere_stays_where_it_is():
    h = field.spacing(96)
    V, F, facts = close(ball(fine=5), 96)
    assert (facts["euler"], facts["two_sided"], facts["hollow"]) == (2, 0, False)
    assert np.isclose(facts["volume"], 4 / 3 * np.pi, rtol=2e-3)
    assert np.abs(V.max(0) + V.min(0)).max() < 0.02 * h  # nothing is shifted
    assert all(d.max() < 0.1 * h for d in both_ways(ball(fine=5), V, F))


@pytest.mark.parametrize("angle", [0, 0.4])
def test_a_box_keeps_its_volume_and_its_edges(angle):
    h = field.spacing(96)
    m = trimesh.creation.box(extents=[1.4, 1, 0.7])
    m.apply_transform(trimesh.transformations.rotation_matrix(angle, [1, 2, 3]))
    V, F, facts = close(m, 96)
    assert facts["euler"] == 2
    assert np.isclose(facts["volume"], m.volume, rtol=1e-4)
    assert all(d.max() < 0.3 * h for d in both_ways(m, V, F))
    assert np.abs(V.max(0) - m.bounds[1]).max() < 0.3 * h
    # Faces are those of the box right up to its edges: marching cubes chamfers a cell on either side.
    P, N, _ = winding.sample(V, F, 50000)
    face = field.closest(field.prepare(m.vertices, m.faces), P)[1]
    edge = np.sort(np.abs(P @ np.linalg.inv(rotation(angle)).T) - np.array([0.7, 0.5, 0.35]), axis=1)[:, 1] > -2 * h
    assert edge.sum() > 1000
    assert ((m.face_normals[face[edge]] * N[edge]).sum(1) > np.cos(np.radians(10))).mean() > 0.95


def rotation(angle):
    return trimesh.transformations.rotation_matrix(angle, [1, 2, 3])[:3, :3]


def test_a_flanged_bushing_keeps_its_edges_outward_and_inward():
    profile = [[0.2, -0.8], [0.9, -0.8], [0.9, -0.5], [0.45, -0.5], [0.45, 0.6], [0.2, 0.6], [0.2, -0.8]]
    m = trimesh.creation.revolve(np.array(profile), sections=64)
    m.apply_transform(trimesh.transformations.rotation_matrix(0.4, [1, 2, 3]))
    V, F, facts = close(m)
    assert facts["euler"] == 0 and np.isclose(facts["volume"], m.volume, rtol=1e-4)
    missed, figures = judged(m, trimesh.Trimesh(V, F, process=False))
    assert not missed and figures["edges"] > 0.97 and figures["near_edges"] > 0.1


def test_a_torus_stays_where_it_is():
    m = trimesh.creation.torus(0.7, 0.3, major_sections=200, minor_sections=100)
    V, F, facts = close(m, 96)
    assert facts["euler"] == 0
    assert np.isclose(facts["volume"], 2 * np.pi**2 * 0.7 * 0.3**2, rtol=3e-3)
    assert all(d.max() < 0.1 * field.spacing(96) for d in both_ways(m, V, F))


@pytest.mark.parametrize("resolution", [16, 37, 64])
def test_small_and_odd_resolutions_close_too(resolution):
    assert close(trimesh.creation.box(extents=[2, 1.9, 1.8]), resolution)[2]["euler"] == 2


# -- parts ------------------------------------------------------------------------------------------------------------


def test_parts_are_kept_united_and_filled():
    apart = close(join(ball(0.4, (-0.6, 0, 0)), ball(0.3, (0.7, 0, 0))))[2]
    assert (apart["parts_in"], apart["parts_out"], apart["euler"]) == (2, 2, 4)
    nested = close(join(ball(1), ball(0.6), ball(0.3)))[2]
    assert (nested["parts_in"], nested["parts_out"], nested["euler"]) == (3, 1, 2)
    assert np.isclose(nested["volume"], ball(1).volume, rtol=5e-3)


def test_a_car_keeps_its_wheels():
    body = box([-0.9, -0.2, -0.35], [0.9, 0.25, 0.35])
    wheels = [
        trimesh.creation.cylinder(0.17, 0.1).apply_translation((x, -0.22, z))
        for x in (-0.55, 0.55)
        for z in (-0.5, 0.5)
    ]
    facts = close(join(body, *wheels), 96)[2]
    assert facts["parts_out"] == 5
    assert np.isclose(facts["volume"], body.volume + 4 * wheels[0].volume, rtol=5e-3)


def test_overlapping_cubes_with_flipped_faces_become_their_union():
    m = turned(join(box([-0.9] * 3, [0.3] * 3), box([-0.3] * 3, [0.9] * 3)))
    facts = close(m)[2]
    assert (facts["parts_out"], facts["euler"]) == (1, 2)
    assert np.isclose(facts["volume"], 2 * 1.2**3 - 0.6**3, rtol=2e-3)


def test_two_cubes_touching_at_an_edge_become_manifold():
    facts = close(join(box([-0.8, -0.8, -0.5], [0, 0, 0.5]), box([0, 0, -0.5], [0.8, 0.8, 0.5])))[2]
    assert np.isclose(facts["volume"], 2 * 0.64, rtol=0.02)


def test_the_direction_of_faces_does_not_matter():
    m = join(ball(0.5, (-0.4, 0, 0)), sheet(at=(0.3, 0, 0), size=0.9))
    V1, F1, _ = close(m, 48)
    V2, F2, _ = close(turned(m), 48)
    assert np.array_equal(F1, F2)
    assert np.allclose(V1, V2, rtol=0, atol=1e-6)


def test_the_slit_between_two_cushions_stays_open_from_2_2_eps_on():
    half = 1.1 * 2 / 64
    m = join(box([-0.8, -0.4, -0.5], [-half, 0.4, 0.5]), box([half, -0.4, -0.5], [0.8, 0.4, 0.5]))
    m = join(m, box([-0.8, -0.4, -0.7], [0.8, 0.4, -0.5]))
    for angle in (0, 0.4):
        _, _, facts = close(m.copy().apply_transform(trimesh.transformations.rotation_matrix(angle, [1, 2, 3])))
        assert np.isclose(facts["volume"], m.volume, rtol=2e-3) and facts["missed"] == 0  # filled: 6% more


# -- walls ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("across", [(0, 0, 1), (1, 2, 3)])
def test_a_sheet_becomes_a_wall_of_two_eps(across):
    resolution = 64
    eps, h = 2 / resolution, field.spacing(resolution)
    m = sheet(across)
    V, F, facts = close(m, resolution)
    assert (facts["parts_out"], facts["euler"]) == (1, 2)
    assert facts["two_sided"] > 0.9 and facts["hollow"]
    assert np.isclose(facts["volume"], m.area * 2 * eps, rtol=0.1)
    there, back = both_ways(m, V, F)
    assert there.max() < 1.3 * h and back.max() < 1.3 * h


@pytest.mark.parametrize("thickness", [0.2, 0.9, 1.5])
def test_a_thin_plate_grows_to_two_eps(thickness):
    resolution = 64
    eps, h = 2 / resolution, field.spacing(resolution)
    t = thickness * h
    m = trimesh.creation.box(extents=[1.6, 1.6, t])
    m.apply_transform(trimesh.transformations.rotation_matrix(0.5, [1, 2, 3]))
    facts = close(m, resolution)[2]
    assert (facts["parts_out"], facts["euler"]) == (1, 2)
    assert np.isclose(facts["volume"], 1.6 * 1.6 * 2 * eps, rtol=0.15)
    assert facts["thin"] > 0.8


def test_a_book_of_thin_sheets_keeps_them_apart():
    resolution, gap = 96, 10 * field.spacing(96)
    pages = join(*(sheet(at=(0, 0, (n - 1.5) * gap), size=1.2) for n in range(4)))
    assert close(pages, resolution)[2]["parts_out"] == 4
    spine = sheet((1, 0, 0), size=1.2, at=(-0.6, 0, 0))
    facts = close(join(pages, spine), resolution)[2]
    assert (facts["parts_out"], facts["euler"]) == (1, 2)


def test_a_fan_of_blades_stays_in_one_piece():
    hub = trimesh.creation.cylinder(0.25, 0.3)
    blade = sheet((0.2, 0.2, 1), size=0.5, at=(0.42, 0, 0), thin=0.4)
    turn = trimesh.transformations.rotation_matrix
    blades = [blade.copy().apply_transform(turn(a, [0, 0, 1])) for a in np.arange(5) * 2 * np.pi / 5]
    V, F, facts = close(join(hub, *blades), 96)
    assert (facts["parts_out"], facts["euler"]) == (1, 2)
    assert 0.2 < facts["two_sided"] < 0.95 and not facts["caps"]
    there, _ = both_ways(join(hub, *blades), V, F)
    assert there.max() < 1.5 * field.spacing(96)


def test_a_moebius_strip_becomes_a_ring():
    turn, across = np.meshgrid(
        np.linspace(0, 2 * np.pi, 60, endpoint=False), np.linspace(-0.25, 0.25, 6), indexing="ij"
    )
    r = 0.65 + across * np.cos(turn / 2)
    V = np.stack([r * np.cos(turn), r * np.sin(turn), across * np.sin(turn / 2)], -1).reshape(-1, 3)
    n = np.arange(360).reshape(60, 6)
    after = np.r_[n[1:], n[:1, ::-1]]  # half a turn: the last row joins the first one backwards
    a, b, c, d = n[:, :-1].ravel(), after[:, :-1].ravel(), after[:, 1:].ravel(), n[:, 1:].ravel()
    m = trimesh.Trimesh(V, np.r_[np.c_[a, b, c], np.c_[a, c, d]], process=False)
    facts = close(m)[2]
    assert (facts["parts_out"], facts["euler"], facts["caps"]) == (1, 0, 0)
    assert facts["two_sided"] > 0.9


# -- holes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spoil", [lambda m: m, turned])
def test_a_ball_with_a_hole_is_closed_or_left_a_wall(spoil):
    m = spoil(cut(ball(fine=4), lambda c: c[:, 1] < 0.8))
    V, F, facts = close(m)
    cap = np.pi * 0.2**2 * (3 - 0.2) / 3
    assert (facts["caps"], facts["euler"], facts["hollow"]) == (1, 2, False)
    assert np.isclose(facts["volume"], 4 / 3 * np.pi - cap, rtol=0.02)
    assert both_ways(m, V, F)[1].max() < 0.7 * field.spacing(64)
    assert not cKDTree(V).query_pairs(1e-3 * field.spacing(64))  # or faces without area, where cap and source meet

    _, _, facts = close(m, holes="wall")
    assert (facts["caps"], facts["euler"], facts["hollow"]) == (0, 2, True)
    assert np.isclose(facts["volume"], m.area * 2 * 2 / 64, rtol=0.1)
    assert facts["two_sided"] > 0.9


def test_half_a_ball_is_a_bowl_and_not_closed():
    facts = close(cut(ball(), lambda c: c[:, 1] < 0))[2]
    assert facts["caps"] == 0 and facts["hollow"]


def test_a_vase_with_an_opening_stays_open():
    profile = np.array([[0, -0.9], [0.5, -0.9], [0.6, 0], [0.3, 0.9], [0.2, 0.9], [0.45, 0], [0.4, -0.75], [0, -0.75]])
    vase = trimesh.creation.revolve(profile, sections=64)
    facts = close(vase, 96)[2]
    assert (facts["caps"], facts["euler"], facts["hollow"]) == (0, 2, False)
    assert np.isclose(facts["volume"], abs(vase.volume), rtol=0.01)


# -- passing through --------------------------------------------------------------------------------------------------


def test_a_good_mesh_passes_through_and_others_do_not():
    def remeshed(m):
        return close(m, 32, remesh="auto")[2]["remeshed"]

    assert not remeshed(ball())
    assert not remeshed(join(ball(0.4, (-0.6, 0, 0)), ball(0.3, (0.7, 0, 0))))
    assert remeshed(turned(ball()))
    assert remeshed(trimesh.Trimesh(ball().vertices, ball().faces[:, ::-1], process=False))
    assert remeshed(cut(ball(), lambda c: c[:, 1] < 0.99))
    assert remeshed(join(ball(1), ball(0.5)))
    assert remeshed(join(ball(0.6, (-0.3, 0, 0)), ball(0.6, (0.3, 0, 0))))
    V, _, facts = close(ball(), 48, remesh="auto")
    assert len(V) == len(ball().vertices) and np.isclose(facts["volume"], ball().volume)


def test_wrong_choices_are_refused():
    with pytest.raises(ValueError, match="shut"):
        close(ball(), holes="shut")


# -- pieces -----------------------------------------------------------------------------------------------------------


def test_a_soup_of_triangles_becomes_manifold():
    rng = np.random.default_rng(0)
    V = (rng.uniform(-0.8, 0.8, (300, 1, 3)) + rng.normal(0, 0.1, (300, 3, 3))).reshape(-1, 3)
    close(trimesh.Trimesh(V, np.arange(900).reshape(-1, 3), process=False))


def test_two_runs_give_the_same_bits_and_leave_the_mesh_alone():
    m = join(trimesh.creation.torus(0.7, 0.2), sheet(size=1))
    V, F = np.array(m.vertices), np.array(m.faces)
    one, two = (watertight.close(V, F, 64) for _ in range(2))
    assert np.array_equal(one[0], two[0]) and np.array_equal(one[1], two[1])
    assert np.array_equal(V, m.vertices) and np.array_equal(F, m.faces)


def test_merging_joins_places_and_drops_what_is_no_face():
    m = trimesh.creation.box()
    loose = m.vertices[m.faces].reshape(-1, 3)
    V, F = watertight.merge(loose, np.r_[np.arange(36).reshape(-1, 3), [[0, 0, 1], [2, 1, 0]]])
    assert (V.shape, F.shape) == ((8, 3), (12, 3))
    with pytest.raises(ValueError, match="no face of this mesh has an area"):
        watertight.merge(np.zeros((3, 3)), np.array([[0, 1, 2]]))


def test_topology_of_known_shapes():
    for m, euler in ((ball(), 2), (trimesh.creation.torus(0.7, 0.2), 0)):
        facts = watertight.topology(np.asarray(m.vertices), np.asarray(m.faces))
        assert (facts["euler"], facts["parts"], facts["watertight"]) == (euler, 1, True)
        assert np.isclose(facts["volume"], m.volume)
    flipped = m.faces.copy()
    flipped[0] = flipped[0, ::-1]
    assert not watertight.topology(m.vertices, flipped)["watertight"]
    assert not watertight.topology(m.vertices, m.faces[1:])["watertight"]
    touching = watertight.merge(*(lambda m: (m.vertices, m.faces))(join(box([-1] * 3, [0] * 3), box([0] * 3, [1] * 3))))
    assert not watertight.topology(*touching)["watertight"]  # closed, but two fans of faces at the corner they share


def test_what_comes_out_is_the_same_whatever_is_done_at_once(monkeypatch):
    m = join(cut(ball(), lambda c: c[:, 1] < 0.5), box([-0.3, -0.2, -0.9], [0.4, 0.1, 0.9]))
    V, F, facts = watertight.close(m.vertices, m.faces, 64)
    monkeypatch.setattr(field, "CHUNK", 997)
    monkeypatch.setattr(contour, "QUADS", 101)
    V_parts, F_parts, facts_parts = watertight.close(m.vertices, m.faces, 64)
    assert len(F) > 10 * 997 and np.array_equal(V, V_parts) and np.array_equal(F, F_parts)
    for name, value in facts.items():
        assert name.startswith("seconds") or facts_parts[name] == pytest.approx(value, rel=1e-12), name


def test_cycles_of_permutations():
    rng = np.random.default_rng(0)
    for n in (*range(1, 40), 1000):
        after, seen, count = rng.permutation(n), np.zeros(n, bool), 0
        for start in range(n):
            count += not seen[start]
            while not seen[start]:
                seen[start], start = True, after[start]
        assert watertight.cycles(after) == count


# -- the judge that bench_watertight.py holds results against ---------------------------------------------------------


def judged(source, result, resolution=64, opened=None, **flags):
    """Bars that a result misses, and the judge's figures."""
    facts = {"hollow": False, "caps": 0} | flags
    source, result, opened = (m and (np.asarray(m.vertices), np.asarray(m.faces)) for m in (source, result, opened))
    figures = judge_watertight.judge(source, result, resolution, facts, opened and (lambda: opened))
    return set(judge_watertight.over(figures)), figures


def test_the_judge_passes_what_is_good_and_sees_each_fault():
    h, good = field.spacing(64), ball(fine=4)
    missed, figures = judged(good, good)
    assert not missed and figures["solid"] and figures["spans"] and figures["mean"] < 1e-6
    assert judged(good, cut(good, lambda c: np.arange(len(c)) > 0))[0] >= {"closed"}
    inside_out = trimesh.Trimesh(good.vertices, good.faces[:, ::-1], process=False)
    assert judged(good, inside_out)[0] >= {"volume", "outward", "no_shells"}
    assert judged(good, good.copy().apply_translation((0.6 * h, 0, 0)))[0] == {"mean"}
    assert judged(good, good.copy().apply_scale(1 + 1.5 * h))[0] == {"mean", "near", "bounds"}
    assert "no_shells" in judged(join(good, ball(0.5)), join(good, ball(0.5)))[0]
    void = trimesh.Trimesh(ball(0.5).vertices, ball(0.5).faces[:, ::-1], process=False)
    assert judged(good, join(good, void))[0] == {"no_shells", "mean", "near"}
    assert judged(join(good, ball(0.1, (0.9, 0.9, 0))), good)[0] == {"kept"}
    twins = join(ball(0.6, (-0.4, 0, 0)), ball(0.6, (0.4, 0.03, 0.02)))
    assert judged(twins, twins)[0] == {"simple", "outward"}


def test_the_judge_sees_fans_and_edges_that_are_no_manifold():
    at_an_edge = join(box([-1] * 3, [0] * 3), box([0, 0, -1], [1, 1, 0]))
    at_a_corner = join(box([-1] * 3, [0] * 3), box([0] * 3, [1] * 3))
    for m, key in ((at_an_edge, "open_edges"), (at_a_corner, "torn_fans")):
        m = trimesh.Trimesh(*watertight.merge(m.vertices, m.faces), process=False)
        missed, figures = judged(m, m)
        assert "closed" in missed and figures[key] == 1
    assert "closed" not in judged(at_a_corner, at_a_corner)[0]  # two parts, a vertex each


def test_the_judge_passes_parts_that_all_but_touch():
    stacked = join(box([-0.6, -0.5, -0.4], [0.6, 0, 0.4]), box([-0.6, 1e-5, -0.4], [0.6, 0.5, 0.4]))
    figures = judged(stacked, stacked)[1]
    assert figures["inward"] == 0 and figures["shells"] == 0
    deep = join(box([-0.6, -0.5, -0.4], [0.6, 0.1, 0.4]), box([-0.6, 0, -0.4], [0.6, 0.5, 0.4]))
    assert "outward" in judged(deep, deep)[0]


def test_the_judge_takes_no_mean_of_stray_samples():
    h = field.spacing(128)
    thin, speck = box([-1, -3e-4, -1], [1, 3e-4, 1]), box([0, 0.5, 0], [2.1 * h, 0.5 + 2.1 * h, 2.1 * h])
    wall = box([-1, -h, -1], [1, h, 1]).subdivide_to_size(8 * h)
    for size, expected in ((1, set()), (2, {"mean"})):  # the speck's faces are 0.08% and 0.3% of the area
        parts = [speck.copy().apply_translation((0.6 * h * side,) * 3).apply_scale(size) for side in (0, 1)]
        missed, figures = judged(join(thin, parts[0]), join(wall, parts[1]), resolution=128)
        assert missed & {"mean"} == expected and figures["solid"] and figures["thin"] > 0.99


def test_the_judge_knows_the_rim_of_a_large_thin_part():
    """At 512 its samples lie farther apart than a wall is thick; a block as large as its rims is none of them."""
    grow = np.array([[-1], [1]]) * 0.8 * 2 / 512
    strips = [box([-1, -3e-4, x], [1, 3e-4, x + 0.05]) for x in np.linspace(-1, 0.95, 14)]
    walls = [box(*(m.bounds + grow)).subdivide_to_size(0.2) for m in strips]
    missed, figures = judged(join(*strips), join(*walls), resolution=512, hollow=True)
    assert not missed and figures["thin"] > 0.999
    block = box([-1, 0.5, -0.1], [1, 0.6, 0.1])
    grown = box(*(block.bounds + grow)).subdivide_to_size(0.2)
    missed, figures = judged(join(*strips, block), join(*walls, grown), resolution=512, hollow=True)
    assert missed == {"mean"} and figures["mean"] > 0.7


def test_the_judge_takes_a_sheet_for_thin_if_a_ball_comes_to_its_back():
    """A drum with two skins, which are walls in the result; the way in turns, so that no ray finds their backs."""
    frame = [box([-0.8, -0.1, z], [1.1, 0.1, z + 0.1]) for z in (-0.8, 0.7)] + [
        box([-0.8, -0.1, -0.8], [-0.7, 0.1, 0.8])
    ]
    lock = [box([0.78, -0.1, -0.5], [0.88, 0.1, 0.8]), box([0.78, 0.1, -0.8], [1.1, 0.2, 0.8])]
    lock += [box([0.78, -0.2, -0.8], [1.1, -0.1, 0.8])]
    grow = np.array([[-1], [1]]) * 0.9 * 2 / 64
    skins = [join(*(sheet((0, 1, 0), at=(0, y, 0)) for y in (-0.1, 0.1)))]
    walls = [box(*(np.array([[-0.8, y, -0.8], [0.8, y, 0.8]]) + grow)) for y in (-0.1, 0.1)]
    for end, thin in ((0.5, True), (0.8, False)):  # a way in, and none
        door = box([1, -0.1, -0.8], [1.1, 0.1, end])
        solid = [m.subdivide_to_size(0.1) for m in (*frame, *lock, door)]
        missed, figures = judged(join(*solid, *skins), join(*solid, *walls))
        assert figures["solid"] and ("mean" in missed) == (not thin), (end, figures)


def test_the_judge_knows_what_can_be_reached_and_what_lies_behind_a_cap():
    h = field.spacing(64)
    for width, key in ((1.5 * h, "unreached"), (4 * h, "missed")):  # a ball of radius eps is 1.9 cells wide
        halves = join(box([-1, -0.5, -0.5], [-width / 2, 0.5, 0.5]), box([width / 2, -0.5, -0.5], [1, 0.5, 0.5]))
        sealed = box([-1, -0.5, -0.5], [1, 0.5, 0.5])
        figures = judged(halves, sealed)[1]
        others = {"unreached", "missed", "capped"} - {key}
        assert figures[key] > 0.05 and all(figures[other] < 0.02 for other in others)  # the mouth can be reached
    bowl = join(cut(ball(fine=4), lambda c: c[:, 1] < 0.5), ball(0.3))
    filled = bowl.convex_hull.subdivide_to_size(h)
    missed, figures = judged(bowl, filled, caps=1)
    assert figures["capped"] > 0.05 and figures["missed"] < 5e-4 and not figures["solid"] and not missed
    assert "kept" in judged(bowl, filled)[0]  # not flagged


def test_the_judge_blames_a_cap_for_what_is_there_without_it():
    """A shell with a slit that a ball may just pass: what closes it lies so near the source that it seems no cap."""
    slit = 2.15 * field.spacing(64)
    shell = join(box([-1, -1, -1], [-slit / 2, 1, 1]), box([slit / 2, -1, -1], [1, 1, 1]))
    shell = cut(shell, lambda c: np.abs(c[:, 0]) > slit / 2 + 1e-6)  # two cups, their mouths at the slit
    source, solid = join(shell, ball(0.9)), box([-1, -1, -1], [1, 1, 1]).subdivide_to_size(0.2)
    missed, figures = judged(source, solid, caps=2)
    assert "kept" in missed and figures["missed"] > 0.002 and figures["capped"] == 0
    missed, figures = judged(source, solid, opened=ball(0.9), caps=2)
    assert "kept" not in missed and figures["missed"] == 0 and figures["capped"] > 0.002
    assert judged(source, solid, opened=solid, caps=2)[1]["missed"] > 0.002  # it is not there without caps either


def test_the_judge_tells_what_is_far_on_caps_and_excuses_nothing():
    source, left, right = ball(0.6), ball(0.08, (-0.9, 0, 0)), ball(0.08, (0.9, 0, 0))
    result = join(source, left, right)
    for opened, share in ((source, 1), (join(source, left), 0.5), (result, 0)):
        missed, figures = judged(source, result, opened=opened, caps=1)
        assert "near" in missed and figures["on_caps"] == pytest.approx(share, abs=0.1 * (share == 0.5))
    assert judged(source, result, opened=source)[1]["on_caps"] == 0  # no cap is flagged


def test_the_judge_measures_edges():
    m = trimesh.creation.box(extents=[1.4, 1.1, 0.9])
    m.apply_transform(trimesh.transformations.rotation_matrix(0.4, [1, 2, 3]))
    surface = field.prepare(m.vertices, m.faces)
    keys, distance, *_ = field.band(surface, 64, 3 * field.spacing(64))
    P = field.position(field.unpack(keys), 64)
    values = np.where(winding.number_at(surface.V, surface.F, P) > 0.5, distance, -distance)
    chamfered = trimesh.Trimesh(*marching_cubes(keys, values, 64), process=False)
    assert 0.5 < judged(m, chamfered)[1]["edges"] < 0.8
    assert judged(m, m)[1]["edges"] == 1
