import itertools
from collections import Counter

import numpy as np
import pytest
import trimesh
from scipy.spatial import cKDTree
from skimage import measure
from test_field import assert_manifold, lattice, noise

from lib import field
from lib.cubes import OFFSETS, triangles
from lib.dataset import BOX

TABLE, COUNT = triangles()


def faces(case: int) -> list[tuple]:
    return [tuple(map(int, face)) for face in TABLE[case, : COUNT[case]]]


def crossed(case: int) -> set[int]:
    """Edges of the cube, as lower corner * 3 + axis, whose ends differ in sign."""
    sign = [case >> n & 1 for n in range(8)]
    steps = (4, 2, 1)
    return {c * 3 + a for c in range(8) for a in range(3) if not OFFSETS[c][a] and sign[c] != sign[c + steps[a]]}


@pytest.mark.parametrize("case", range(256))
def test_triangles_of_a_cell_use_the_crossed_edges_and_bound_patches(case):
    assert {edge for face in faces(case) for edge in face} == crossed(case)
    sides = Counter(pair for a, b, c in faces(case) for pair in ((a, b), (b, c), (c, a)))
    assert set(sides.values()) <= {1}  # no side twice in one direction: patches are oriented
    inner = {frozenset(pair) for pair in sides if pair[::-1] in sides}
    rim = [pair for pair in sides if frozenset(pair) not in inner]
    assert Counter(a for a, _ in rim) == Counter(b for _, b in rim) == Counter(crossed(case))  # closed loops


def test_a_corner_alone_has_one_triangle_that_looks_away_from_it():
    for corner in range(8):
        [face] = faces(1 << corner)
        place = np.array([OFFSETS[e // 3] + 0.5 * np.eye(3)[e % 3] for e in face])
        normal = np.cross(place[1] - place[0], place[2] - place[0])
        assert normal @ (place.mean(0) - OFFSETS[corner]) > 0


def test_any_signs_give_edges_of_two_faces():
    rng = np.random.default_rng(0)
    for share in (0.1, 0.5, 0.9):
        inside = np.pad(rng.random((6, 6, 6)) < share, 1)
        edges = Counter()
        for cell in itertools.product(range(7), repeat=3):
            case = sum(int(inside[tuple(cell + o)]) << n for n, o in enumerate(OFFSETS))
            for face in faces(case):
                name = [(*(cell + OFFSETS[e // 3]), e % 3) for e in face]
                edges.update([(name[0], name[1]), (name[1], name[2]), (name[2], name[0])])
        assert edges and all(count == 1 and edges[b, a] == 1 for (a, b), count in edges.items())


# -- at work ----------------------------------------------------------------------------------------------------------


def marching_cubes(keys: np.ndarray, values: np.ndarray, resolution: int) -> tuple[np.ndarray, np.ndarray]:
    """The table at work: where a field crosses zero, positive inside: V (n, 3), F (m, 3), outward.

    Sorted keys hold at least all corners of the crossed cells, and a ring of negative ones around them. Then each edge
    has exactly two faces and each vertex one fan of faces, whatever the values; vertices differ in the last digits only
    where a value is zero, so they are kept a thousandth of a cell off the corners.
    """
    inside = values > 0
    neighbour = np.stack([field.find(keys, keys + step) for step in field.STEPS], -1)  # (n, 3)
    crossed = (neighbour >= 0) & (inside[:, None] != inside[neighbour])
    lower, axis = np.nonzero(crossed)
    upper = neighbour[lower, axis]
    t = np.clip(values[lower] / (values[lower] - values[upper]), 1e-3, 1 - 1e-3)
    ijk = field.unpack(keys[lower]).astype(float)
    ijk[np.arange(len(t)), axis] += t
    vertex = np.full(crossed.shape, -1)
    vertex[crossed] = np.arange(len(t))

    # The cells that share a crossed edge, and their corners.
    lower_ends = [-OFFSETS[OFFSETS[:, a] == 0] for a in range(3)]
    around = np.array([np.delete(lower_ends[a], a, 1) @ np.delete(field.STEPS, a) for a in range(3)])  # (3, 4)
    cells = field.unique(keys[lower][:, None] + around[axis])
    corner = field.find(keys, cells[:, None] + OFFSETS @ field.STEPS)  # (c, 8)
    corner = corner[(corner >= 0).all(1)]
    case = inside[corner] @ (1 << np.arange(8))  # (c,)
    table, count = triangles()
    which = np.repeat(np.arange(len(corner)), count[case])
    nth = np.arange(len(which)) - np.repeat(np.cumsum(count[case]) - count[case], count[case])
    edge = table[case[which], nth]  # (m, 3) of 24 = lower corner * 3 + axis
    F = vertex[corner[which[:, None], edge // 3], edge % 3]
    return field.position(ijk, resolution), F


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("place", [-0.95, 0.0123, 0.71])
def test_a_plane_is_extracted_where_it_is(axis, place):
    resolution = 24
    ijk, keys = lattice(resolution)
    V, F = marching_cubes(keys, place - field.position(ijk, resolution)[:, axis], resolution)
    assert np.allclose(V[:, axis], place, rtol=0, atol=1e-12)
    normal = np.cross(V[F[:, 1]] - V[F[:, 0]], V[F[:, 2]] - V[F[:, 0]])
    assert (normal[:, axis] > 0).all()  # from inside to outside
    assert np.isclose(normal[:, axis].sum() / 2, (2 * BOX) ** 2)


@pytest.mark.parametrize("kind", ["normal", "integer"])
@pytest.mark.parametrize("seed", [0, 1])
def test_marching_cubes_is_manifold_on_noise(seed, kind):
    keys, values = noise(20, seed, kind)  # integers hold exact zeros
    V, F = marching_cubes(keys, values, 20)
    assert_manifold(V, F)
    assert len(np.unique(V, axis=0)) == len(V)


def test_marching_cubes_is_the_dense_one_on_noise_and_on_a_smooth_field():
    n = 24
    keys, values = noise(n, 3)
    V, F = marching_cubes(keys, values, n)
    dense = values.reshape(n + 1, n + 1, n + 1)
    theirs, faces, _, _ = measure.marching_cubes(dense, 0, method="lorensen", allow_degenerate=True)
    assert (len(theirs), len(faces)) == (len(V), len(F))
    far, _ = cKDTree(field.position(theirs, n)).query(V)
    assert far.max() < 1.1e-3 * field.spacing(n)

    ijk, keys = lattice(n)
    P = field.position(ijk, n)
    values = 0.3 - np.abs(np.linalg.norm(np.c_[np.linalg.norm(P[:, :2], axis=1) - 0.6, P[:, 2]], axis=1))
    near = np.abs(values) < 2 * field.spacing(n)
    V, F = marching_cubes(keys[near], values[near], n)
    theirs, faces, _, _ = measure.marching_cubes(values.reshape(n + 1, n + 1, n + 1), 0, method="lorensen")
    assert (len(theirs), len(faces)) == (len(V), len(F))
    far, _ = cKDTree(field.position(theirs, n)).query(V)
    assert far.max() < 1e-5
    assert trimesh.Trimesh(V, F, process=False).euler_number == 0
