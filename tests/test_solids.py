"""Solids are closed and have the volume and area of their formulas; paint lies where it should."""

import numpy as np
import pytest
import trimesh
from PIL import ImageColor
from scipy.spatial import cKDTree

from lib import solids
from lib.solids import ball, block, circle, curve, lathe, plate, put, rectangle, torus, tube, vessel


def is_solid(mesh, handles=0):
    """Closed, facing outwards, in one piece, and with so many handles."""
    return mesh.is_volume and mesh.body_count == 1 and mesh.euler_number == 2 - 2 * handles


def sector(n):
    """A regular n-gon's area over its radius squared."""
    return n / 2 * np.sin(2 * np.pi / n)


def turned_volume(profile, n=56):
    """Of a profile turned about an axis in n steps: every piece is a frustum of regular n-gons."""
    (r, y), (s, z) = np.transpose(profile)[:, :-1], np.transpose(profile)[:, 1:]
    return sector(n) * ((z - y) * (r * r + r * s + s * s)).sum() / 3


def turned_area(profile, n=56):
    """Of the same, without its ends: every piece is n trapezoids."""
    (r, y), (s, z) = np.transpose(profile)[:, :-1], np.transpose(profile)[:, 1:]
    return (n * np.sin(np.pi / n) * (r + s) * np.hypot(z - y, (s - r) * np.cos(np.pi / n))).sum()


def flat_area(loop):
    """The shoelace formula: positive if the loop is counter-clockwise."""
    x, y = np.transpose(loop)
    return (x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2


def length(loop):
    return np.linalg.norm(np.roll(loop, -1, axis=0) - loop, axis=1).sum()


def rim(mesh):
    """The edges that have a face on one side only."""
    edges, count = np.unique(mesh.edges_sorted, axis=0, return_counts=True)
    return edges[count == 1]


# -- outlines and curves ----------------------------------------------------------------------------------------------


def test_outlines_are_counter_clockwise_and_of_their_area():
    assert flat_area(circle(3, (7, -2), n=9)) == pytest.approx(9 * sector(9))
    assert flat_area(rectangle(5, 3)) == pytest.approx(15)
    outline = rectangle(5, 3, (1, 0, 0.5, 0), (2, 2), steps=6)
    assert flat_area(outline) == pytest.approx(15 - (1 - sector(24) / 4) * (1 + 0.25))
    assert np.allclose([outline.min(axis=0), outline.max(axis=0)], [(-0.5, 0.5), (4.5, 3.5)])
    assert np.linalg.norm(outline - (4.5, 3.5), axis=1).min() > 0.4  # the first corner is the upper right one
    assert flat_area(rectangle(5, 3, 99)) > 2 * 3  # a corner too large makes a stadium, no knot


def test_a_curve_goes_through_its_points_and_is_straight_where_they_are():
    points = circle(2, n=8)[:6]  # in equal steps, so that every fourth sample is a point
    assert np.allclose(curve(points, 21)[::4], points)
    assert np.linalg.norm(curve(points, 201)[60:140], axis=1) == pytest.approx(2, rel=0.01)  # and round in between
    assert np.allclose(curve([(0, 0, 0), (3, 3, 6)], 4), np.outer(range(4), (1, 1, 2)))


def test_inset_moves_every_edge_by_as_much():
    triangle = np.array([(0, 0), (4, 0), (0, 3)])
    assert np.allclose(solids.inset(triangle, 0.5), [(0.5, 0.5), (2.5, 0.5), (0.5, 2)])  # of half the inradius
    outline, step = circle(2, n=7), 0.3 / np.cos(np.pi / 7)
    assert np.allclose(solids.inset(outline, 0.3), circle(2 - step, n=7))
    assert np.allclose(solids.inset(outline[::-1], 0.3), circle(2 + step, n=7)[::-1])


# -- solids -----------------------------------------------------------------------------------------------------------


def test_a_block_without_bevel_is_a_box():
    box = block((4, 3, 2), (1, 1, 1), bevel=0)
    assert is_solid(box) and (box.volume, box.area) == pytest.approx((24, 52))
    assert np.allclose(box.bounds, [(-1, 1, 0), (3, 4, 2)])
    stump = block((4, 3, 2), bevel=0, taper=0.5)
    assert is_solid(stump) and stump.volume == pytest.approx(3 * (8 + 2 + 4) / 3)  # of a pyramid


@pytest.mark.parametrize("bevel", [0.2, 0.8])
def test_a_bevelled_block_is_a_smaller_box_and_all_within_reach_of_it(bevel):
    mesh = block((4, 3, 2), bevel=bevel)
    assert is_solid(mesh) and np.allclose(mesh.bounds, [(-2, 0, -1), (2, 3, 1)])
    V, low, high = mesh.vertices, mesh.bounds[0] + bevel, mesh.bounds[1] - bevel
    away = np.linalg.norm(V - V.clip(low, high), axis=1)
    assert np.allclose(away, bevel)
    a, b, c = high - low
    rounded = a * b * c + 2 * bevel * (a * b + b * c + c * a)
    rounded += np.pi * bevel**2 * (a + b + c) + 4 / 3 * np.pi * bevel**3
    assert 0.95 * rounded < mesh.volume < rounded  # Steiner's formula


def test_rims_and_corners_too_round_for_their_block_are_reduced():
    for mesh in (block((4, 3, 2), bevel=9), block((4, 3, 2), corner=9), block((9, 0.2, 9), bevel=0.4, corner=4.5)):
        assert is_solid(mesh) and 0.5 * np.prod(mesh.extents) < mesh.volume < np.prod(mesh.extents)


@pytest.mark.parametrize("n", [6, 56])
def test_a_line_turned_is_a_cylinder_or_a_cone(n):
    cylinder, cone = lathe([(2, 1), (2, 4)], n=n), lathe([(2, 1), (0, 4)], n=n)
    side, slant = 4 * n * np.sin(np.pi / n), np.hypot(3, 2 * np.cos(np.pi / n))  # perimeter, height of a triangle
    assert is_solid(cylinder) and cylinder.volume == pytest.approx(4 * sector(n) * 3)
    assert is_solid(cone) and cone.volume == pytest.approx(4 * sector(n))
    assert cylinder.area == pytest.approx(2 * 4 * sector(n) + side * 3)
    assert cone.area == pytest.approx(4 * sector(n) + side * slant / 2)
    assert np.allclose(cone.bounds[:, 1], [1, 4])


def test_any_profile_turned_has_the_volume_and_area_of_its_frusta():
    rng = np.random.default_rng(0)
    for step in (1, -1):  # upwards, downwards
        profile = np.stack([rng.uniform(1, 3, 9), np.sort(rng.uniform(0, 5, 9))], axis=1)[::step]
        mesh, sheet = lathe(profile), lathe(profile, ends="open")
        assert is_solid(mesh) and mesh.volume == pytest.approx(step * turned_volume(profile))
        assert mesh.area == pytest.approx(turned_area(profile) + sector(56) * (profile[[0, -1], 0] ** 2).sum())
        assert sheet.area == pytest.approx(turned_area(profile)) and len(rim(sheet)) == 2 * 56
        section = [(3, 0), (5, 0), (4, 2)][::step]
        ring = lathe(section, ends="join")
        assert is_solid(ring, 1) and ring.area == pytest.approx(turned_area([*section, section[0]]))
        assert ring.volume == pytest.approx(step * turned_volume([*section, section[0]]))


def test_a_profile_that_leaves_the_axis_outside_ends_on_it():
    assert np.allclose(lathe([(2, 0), (-0.1, 3)]).vertices, lathe([(2, 0), (0, 3)]).vertices)


def test_torus_and_ball_are_round_within_their_polygons():
    mesh = torus(3, 0.5, (1, 2, 3))
    assert is_solid(mesh, 1) and np.allclose(mesh.bounds.mean(axis=0), (1, 2, 3))
    ring = 2 * np.pi**2 * 3 * 0.5**2
    assert mesh.volume == pytest.approx(ring * sector(56) / np.pi * sector(12) / np.pi)
    assert mesh.volume == pytest.approx(ring, rel=0.05)
    V = mesh.vertices - (1, 2, 3)
    assert np.allclose(np.hypot(np.hypot(V[:, 0], V[:, 2]) - 3, V[:, 1]), 0.5)
    mesh = ball(2, (1, 2, 3), 0.5)
    assert is_solid(mesh) and mesh.volume == pytest.approx(4 / 3 * np.pi * 8 * 0.5, rel=0.04)
    assert np.allclose(np.linalg.norm((mesh.vertices - (1, 2, 3)) / (1, 0.5, 1), axis=1), 2)


def test_a_vessel_holds_what_its_inside_does():
    cup = vessel([(2, 0), (2, 3)], 0.3)
    inside = [(1.7, 0.3), (1.7, 3)]
    lip = turned_volume([(2, 3), (1.85, 3.1)]) - turned_volume([(1.7, 3), (1.85, 3.1)])
    assert is_solid(cup) and cup.volume == pytest.approx(4 * sector(56) * 3 + lip - turned_volume(inside))
    assert is_solid(vessel(curve([(2, 0), (3, 2), (2.5, 5)]), 0.2))


def test_a_vessel_of_no_thickness_is_an_open_sheet_that_faces_outwards():
    sheet = vessel([(2, 0), (2, 3)], 0)
    assert sheet.is_winding_consistent and sheet.euler_number == 1  # a disc
    assert len(rim(sheet)) == 56 and np.allclose(sheet.vertices[rim(sheet), 1], 3)
    assert sheet.area == pytest.approx(turned_area([(0, 0), (2, 0), (2, 3)]))
    assert ((sheet.triangles_center - (0, 1, 0)) * sheet.face_normals).sum(axis=1).min() > 0


def test_a_tube_along_a_straight_path_is_a_prism_whatever_its_direction():
    section, rng = rectangle(2, 1, 0.3), np.random.default_rng(0)
    for way in [*np.eye(3), *-np.eye(3), *rng.normal(size=(8, 3))]:
        start, long = rng.normal(size=3), np.linalg.norm(way)
        bar = tube(np.linspace(start, start + way, 5), 0.5, section)
        assert is_solid(bar) and bar.volume == pytest.approx(0.25 * flat_area(section) * long)
        assert bar.area == pytest.approx(2 * 0.25 * flat_area(section) + 0.5 * length(section) * long)
        pin = tube([start, start + way], (0.4, 0.8))
        assert is_solid(pin) and pin.volume == pytest.approx(turned_volume([(0.4, 0), (0.8, long)], 16))


def test_a_bent_tube_keeps_its_width_everywhere():
    t = np.linspace(0, 9, 200)
    path = np.stack([2 * np.cos(t), 0.5 * t, 2 * np.sin(t)], axis=1)
    mesh = tube(path, 0.6)
    away = np.sort(cKDTree(path).query(mesh.vertices)[0])
    assert is_solid(mesh) and np.allclose(away[:2], 0) and np.allclose(away[2:], 0.6, rtol=1e-3)
    assert mesh.volume == pytest.approx(0.36 * sector(16) * 9 * np.hypot(2, 0.5), rel=5e-3)  # Pappus
    arch = tube(circle(5, n=100)[:51], 1, rectangle(2, 1, 0.1))
    assert arch.extents[2] == pytest.approx(2)  # a section's x leaves a flat path


def test_a_plate_without_bevel_is_its_area_times_its_depth():
    angles = np.arange(320) * 2 * np.pi / 320
    star = solids.polar(5 + np.cos(8 * angles), angles)
    for outline, holes in (
        ([(0, 0), (6, 0), (0, 4)], []),
        ([(0, 0), (6, 0), (0, 4)], [circle(0.7, (1.5, 1))]),
        (star, [circle(0.5, (x, y)) for x in (-1, 1) for y in (-1, 1)]),
    ):
        area = flat_area(outline) - sum(flat_area(hole) for hole in holes)
        around = length(outline) + sum(length(hole) for hole in holes)
        mesh = plate(outline, 0.5, holes, bevel=0)
        assert is_solid(mesh, len(holes)) and mesh.volume == pytest.approx(0.5 * area)
        assert mesh.area == pytest.approx(2 * area + 0.5 * around)
        assert np.allclose(mesh.bounds[:, 2], (-0.25, 0.25))


def test_bevels_of_a_plate_take_off_wedges():
    """A slice's area is quadratic in its inset, so Simpson's rule gives the volume of a bevel exactly."""
    loops = [rectangle(8, 5, 1), *(circle(1, (x, 0))[::-1] for x in (-2, 2))]
    whole, half, none = (sum(flat_area(solids.inset(loop, by)) for loop in loops) for by in (0.2, 0.1, 0))
    mesh = plate(loops[0], 1, [hole[::-1] for hole in loops[1:]], 0.2)
    assert is_solid(mesh, 2) and mesh.volume == pytest.approx(0.6 * none + 2 * 0.2 * (whole + 4 * half + none) / 6)
    assert np.allclose(mesh.extents, (8, 5, 1))


def test_an_outline_that_crosses_itself_is_no_plate():
    with pytest.raises(AssertionError, match="crosses itself"):
        plate([(0, 0), (4, 4), (4, 0), (0, 4)], 1, bevel=0.1)


def test_copies_are_turned_then_moved_mirrored_and_spun_without_turning_inside_out():
    wedge = lathe([(1, 0), (0, 2)], (3, 0, 1))
    assert np.allclose(put(wedge, (2, 7, 0), 90).bounds.mean(axis=0), (3, 8, -3), atol=1e-2)
    twins, four, five = solids.mirrored(wedge), solids.mirrored(wedge, "xz"), solids.spun(wedge, 5, 10)
    for copies in (twins, four, five):
        assert all(is_solid(copy) and copy.volume == pytest.approx(wedge.volume) for copy in copies)
    assert {tuple(copy.center_mass.round(6)) for copy in four} == {(x, 0.5, z) for x in (3, -3) for z in (1, -1)}
    assert len(twins) == 2 and np.allclose(twins[0].center_mass * (-1, 1, 1), twins[1].center_mass)
    angles = np.unwrap([np.arctan2(-z, x) for x, _, z in (copy.center_mass for copy in five)])
    assert np.allclose(np.diff(angles), 2 * np.pi / 5) and wedge.bounds[0, 0] == pytest.approx(2)


# -- paint ------------------------------------------------------------------------------------------------------------


def rgb(colour):
    return np.array(ImageColor.getrgb(colour))


def test_mixed_is_ink_paper_or_between():
    image = np.asarray(solids.mixed("#102030", "#304050", np.array([[0, 0.5, 1], [-9, 0.25, 9]])))
    assert image.tolist() == [[[48, 64, 80], [32, 48, 64], [16, 32, 48]], [[48, 64, 80], [40, 56, 72], [16, 32, 48]]]


def test_timber_goes_on_where_the_image_ends():
    for seed in range(8):
        image, project = solids.timber(np.random.default_rng(seed))
        assert project is solids.along_grain
        for axis in (0, 1):
            steps = np.abs(np.diff(np.asarray(image).astype(float), axis=axis, append=np.take(image, [0], axis)))
            steps = steps.mean(axis=(1 - axis, 2))
            assert steps[-1] <= 1.2 * steps[:-1].max()


def test_wood_keeps_its_scale_and_its_grain_runs_along():
    for order in ([30, 4, 12], [4, 12, 30], [12, 30, 4]):
        plank = block(order, bevel=0)
        uv = solids.along_grain(plank)
        a, b, c = uv.transpose(1, 0, 2)
        areas = np.abs(np.linalg.det(np.stack([b - a, c - a], axis=1))) / 2
        assert np.allclose(areas * 40**2, plank.area_faces)
        sides = np.abs(plank.face_normals[:, np.argmax(order)]) < 0.5
        assert np.ptp(uv[sides][..., 0]) == pytest.approx(30 / 40)


def test_pots_are_plain_within_and_patterned_outside():
    for seed in range(20):
        image, project = solids.crockery(np.random.default_rng(seed), "#000000", "#ffffff")
        image = np.asarray(image)
        assert project is solids.around and (image[-5:] == 255).all() and 0.1 < (image == 0).mean() < 0.7


def test_a_label_is_in_front_and_below_its_top():
    for seed in range(20):
        image, project = solids.labelled(np.random.default_rng(seed), "#3f7d62", 0.5)
        glass = (np.asarray(image) == rgb("#3f7d62")).all(axis=2)
        assert project is solids.around and glass[:128].all() and glass[-20:].all() and glass[:, [0, -1]].all()
        assert not glass[140:210, 180:204].any()


def test_no_face_crosses_the_print_and_the_inside_is_of_its_lowest_row():
    mesh = vessel(curve([(3, 0), (4, 5), (2, 9)]), 0.3)
    uv, T = solids.around(mesh), mesh.triangles
    outside = ((mesh.face_normals * mesh.triangles_center)[:, [0, 2]]).sum(axis=1) > 0
    assert np.ptp(uv[..., 0], axis=1).max() < 0.5 and (uv[~outside] == (0.5, 0)).all() and (~outside).any()
    front = (T[..., 2] > 0) & (np.abs(T[..., 0]) < 1e-6) & outside[:, None]
    assert np.allclose(uv[front][:, 0], 0.5)
    assert np.allclose(uv[outside][..., 1] * mesh.extents[1], T[outside][..., 1])


def test_paint_moves_no_surface_and_every_corner_has_its_colour():
    mesh, rng = lathe(curve([(3, 0), (4, 5), (2, 9)])), np.random.default_rng(0)
    prints = [solids.crockery(rng, "#000000", "#ffffff"), solids.timber(rng)]
    paints = ["#ff0000", prints[0], "#00ff7f", prints[1], "#ff0000"]
    coats = solids.painted([(mesh, paint) for paint in paints], "pot")
    for coat, paint in zip(coats, paints, strict=True):
        assert np.array_equal(coat.triangles, mesh.triangles)
        if isinstance(paint, tuple):
            assert coat.visual.material.image is paint[0]
            assert np.allclose(coat.visual.uv[coat.faces], paint[1](mesh), atol=1e-5)
        else:
            assert (coat.visual.to_color().vertex_colors[:, :3] == rgb(paint)).all()
            assert len(coat.vertices) == len(mesh.vertices)
    names = [coat.visual.material.name for coat in coats]
    assert names[0] == names[2] == names[4] and len(set(names)) == 3  # one palette for all flat colours
    assert all(trimesh.Trimesh(coat.vertices, coat.faces).is_volume for coat in coats)
