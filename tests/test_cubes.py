import itertools
from collections import Counter

import numpy as np
import pytest

from lib.cubes import OFFSETS, triangles

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
