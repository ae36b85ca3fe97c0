"""Marching cubes' cases, made so that what they tile is manifold: the triangles of a cell for its corners' signs."""

import itertools
from functools import cache

import numpy as np

OFFSETS = np.array(list(itertools.product((0, 1), repeat=3)))  # (8, 3) a cell's corners, in the order of their keys


@cache
def triangles() -> tuple[np.ndarray, np.ndarray]:
    """The 256 cases of marching cubes: (256, 12, 3) edges as lower corner * 3 + axis, and how many triangles count.

    Where a side of the cube has two inside corners across, they are kept apart; as this looks at nothing but the side,
    the two cells that share it agree.
    """
    sides = []
    for axis, end in itertools.product(range(3), (0, 1)):
        u, v = (np.eye(3, dtype=int)[(axis + n) % 3] for n in (1, 2))
        start = np.eye(3, dtype=int)[axis] * end
        ring = [start, start + u, start + u + v, start + v]  # counter-clockwise when seen from the upper end
        sides.append([int(c @ (4, 2, 1)) for c in (ring if end else ring[::-1])])

    def edge(a: int, b: int) -> int:
        return min(a, b) * 3 + {4: 0, 2: 1, 1: 2}[abs(a - b)]

    side_of = {edge(side[n], side[n - 1]): set() for side in sides for n in range(4)}
    for s, side in enumerate(sides):
        for n in range(4):
            side_of[edge(side[n], side[n - 1])].add(s)

    cases = []
    for case in range(256):
        follows = {}  # from the edge where a walk around a side enters the inside to where it leaves
        for side in sides:
            turns = [n for n in range(4) if (case >> side[n] & 1) != (case >> side[n - 1] & 1)]
            for n in turns:
                if case >> side[n] & 1:  # enters here; leaves at the next turn
                    leave = turns[(turns.index(n) + 1) % len(turns)]
                    follows[edge(side[n], side[n - 1])] = edge(side[leave], side[leave - 1])
        faces = []
        while follows:
            loop = [next(iter(follows))]
            while (after := follows.pop(loop[-1])) != loop[0]:
                loop.append(after)
            faces += flattest(tuple(loop), side_of)[1]
        cases.append(faces)
    table = np.full((256, max(map(len, cases)), 3), -1)
    for case, faces in enumerate(cases):
        table[case, : len(faces)] = np.reshape(faces, (-1, 3))
    return table, np.array([len(faces) for faces in cases])


def flattest(loop: tuple, side_of: dict) -> tuple[int, list]:
    """Triangles of a loop with the fewest diagonals in a side of the cube, where the next cell could have the same."""
    if len(loop) < 3:
        return 0, []
    found = []
    for n in range(1, len(loop) - 1):
        left, right = flattest(loop[: n + 1], side_of), flattest(loop[n:], side_of)
        diagonals = [pair for pair, gap in (((0, n), n), ((n, -1), len(loop) - 1 - n)) if gap > 1]
        flat = sum(bool(side_of[loop[i]] & side_of[loop[j]]) for i, j in diagonals)
        found.append((flat + left[0] + right[0], [*left[1], (loop[0], loop[n], loop[-1]), *right[1]]))
    return min(found, key=lambda f: f[0])
