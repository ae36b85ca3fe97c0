import numpy as np
import pytest
import trimesh

from lib import camera, edges

NOTHING = np.zeros((0, 3)), np.zeros((0, 3), int)


def arrays(m):
    return np.asarray(m.vertices, float), np.asarray(m.faces)


def test_slivers_make_no_edge_sharp_and_hide_none():
    m = trimesh.creation.box()
    V, F = (np.asarray(m.vertices), np.asarray(m.faces))
    one = next(f for f in range(12) if len(set(F[f]) & set(F[0])) == 2 and f)  # a neighbour of face 0
    a, b = sorted(set(F[0]) & set(F[one]))
    V = np.r_[V, (V[a] + V[b])[None] / 2]  # a point in the middle of an edge, used by face 0 alone; a sliver fills in
    k = next(i for i in range(3) if {F[0, i], F[0, i - 2]} == {a, b})
    p, q, r = F[0, k], F[0, k - 2], F[0, k - 1]
    split = np.r_[F[1:], [[p, 8, r], [8, q, r], [p, q, 8]]]
    before, after = (edges.find_edges(V, faces) for faces in (F, split))
    assert np.isclose(before.length[before.bend > 15].sum(), 12)
    assert np.isclose(after.length[after.bend > 15].sum(), 12)


def test_levels_are_dora_benchs():
    counts = (0, 1, 5_000, 5_001, 20_000, 20_001, 50_000, 50_001)
    assert [edges.level(count) for count in counts] == ["L0", "L1", "L1", "L2", "L2", "L3", "L3", "L4"]


def test_a_cube_has_twelve_edges_of_ninety_degrees():
    found = edges.find_edges(*arrays(trimesh.creation.box()))
    assert np.allclose(found.bend[found.bend > 15], 90) and (found.bend > 15).sum() == 12


def test_normal_maps_show_faces_and_nothing_else():
    V, F = arrays(trimesh.creation.box())
    lens = camera.lens(64)
    [image] = edges.normal_maps(V, F, lens, camera.poses(1, lens.distance))
    seen = (image != 0.5).any(2)
    assert 0.02 < seen.mean() < 0.3
    assert np.allclose(np.sort(np.abs(2 * image[seen] - 1), axis=1), [0, 0, 1])  # those of a box's sides


def test_what_is_the_same_has_no_error_and_what_is_missing_all_of_it():
    box = arrays(trimesh.creation.box((1, 1.2, 1.4)))
    assert edges.sharp_normal_error(box, box, 4, 64) == 0
    assert edges.sharp_normal_error(box, NOTHING, 4, 64) == 0  # a truth without an edge asks for nothing
    missing = edges.sharp_normal_error(NOTHING, box, 8, 256)
    # of the pixels near an edge those that see the box, most within and half of them at silhouettes, err by 1/2 of a
    # unit normal: 1/4 over three colours
    assert 100 / 12 * 0.5 < missing < 100 / 12
    turned = box[0], box[1][:, ::-1]
    assert edges.sharp_normal_error(turned, box, 8, 256) == pytest.approx(4 * missing)  # twice as far, squared


def test_the_error_grows_as_an_edge_is_cut_off():
    box = arrays(trimesh.creation.box((1, 1, 1)))
    corners = box[0]

    def cut(by):
        return arrays(
            trimesh.convex.convex_hull(np.concatenate([corners - by * np.sign(corners) * a for a in np.eye(3)]))
        )

    errors = [edges.sharp_normal_error(cut(by), box, 6, 128) for by in (0.05, 0.1, 0.2)]
    assert 0 < errors[0] < errors[1] < errors[2]
