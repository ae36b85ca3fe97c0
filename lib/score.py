"""How near one shape is to another, from points of their surfaces, and one set of shapes to another set.

Distances are in the unit of the frame, in which shapes span [-1, 1]. Both surfaces are sampled at random: two samples
of one surface score no perfect marks, so compare at equal counts only.
"""

from typing import NamedTuple

import numpy as np
from scipy.spatial import cKDTree

from lib.field import morton, parts

BEND = 30.0  # degrees that normals differ by about a sharp edge
OPPOSITE = 150.0  # degrees from which it is the other side of a wall, and no edge
PIECE = 1 << 20  # faces at once
REACH = 0.02  # how far from a sharp edge a point still counts as one of it, and how far off it may be


class Match(NamedTuple):
    """Of each point of two samples, how far the nearest one of the other is, and which."""

    there: np.ndarray  # (n,) from each of P to the nearest of Q, inf if there is none
    back: np.ndarray  # (m,) from each of Q to the nearest of P
    there_to: np.ndarray  # (n,) its number in Q
    back_to: np.ndarray  # (m,) its number in P


def match(P: np.ndarray, Q: np.ndarray) -> Match:
    """All that most scores of points P (n, 3) and Q (m, 3) are made of."""
    (there, there_to), (back, back_to) = nearest(P, Q), nearest(Q, P)
    return Match(there, back, there_to, back_to)


def nearest(P: np.ndarray, Q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distance (n,) from each of P to the nearest of Q, and its number there; inf and -1 if there is none.

    Points that follow one another in space find their tree's boxes in the cache.
    """
    if not len(Q):
        return np.full(len(P), np.inf), np.full(len(P), -1)
    order, distance, number = np.argsort(morton(P)), np.empty(len(P)), np.empty(len(P), np.int64)
    distance[order], number[order] = cKDTree(Q).query(P[order])
    return distance, number


# -- one shape beside another -----------------------------------------------------------------------------------------


def chamfer_l1(m: Match) -> float:
    """Mean distance from P to Q plus mean distance from Q to P; inf if one of them is empty."""
    return float(m.there.mean() + m.back.mean()) if len(m.there) and len(m.back) else np.inf


def chamfer_l2(m: Match) -> float:
    """Mean squared distance from P to Q plus mean squared distance from Q to P; inf if one of them is empty."""
    return float((m.there**2).mean() + (m.back**2).mean()) if len(m.there) and len(m.back) else np.inf


def f_score(m: Match, distance: float) -> float:
    """Harmonic mean of the shares of P and of Q that lie within a distance of the other's points."""
    if not len(m.there) or not len(m.back):
        return 0.0
    precision, recall = (m.there <= distance).mean(), (m.back <= distance).mean()
    return float(2 * precision * recall / (precision + recall)) if precision + recall else 0.0


def normal_consistency(m: Match, N: np.ndarray, M: np.ndarray) -> float:
    """Mean cosine between the normals (n, 3), (m, 3) of nearest points, whichever way these face; 1 is best."""
    if not len(N) or not len(M):
        return 0.0
    there = np.abs((N * M[m.there_to]).sum(1)).mean()
    return float(there + np.abs((M * N[m.back_to]).sum(1)).mean()) / 2


def iou(inside: np.ndarray, truth: np.ndarray) -> float:
    """Volume in common over volume in either, from who is inside of points that lie anywhere; 1 if both are empty."""
    either = np.count_nonzero(inside | truth)
    return np.count_nonzero(inside & truth) / either if either else 1.0


def f_sharp(P: np.ndarray, N: np.ndarray, Q: np.ndarray, M: np.ndarray, distance: float = REACH) -> float:
    """F-score at a distance of the points on sharp edges; nan if the truth Q has none, 0 if P alone has none."""
    edges, truth = P[sharp(P, N)], Q[sharp(Q, M)]
    return f_score(match(edges, truth), distance) if len(truth) else np.nan


def sharp(P: np.ndarray, N: np.ndarray, reach: float = REACH, most: int = 16) -> np.ndarray:
    """Which points (n,) have another within reach whose normal differs by BEND or more, the other side of walls apart.

    That sees an edge which marching cubes cut off or a network rounded, where the bend from face to face is small.
    """
    if len(P) < 2:
        return np.zeros(len(P), bool)
    order = np.argsort(morton(P))
    P, N = P[order], N[order]
    gap, number = cKDTree(P).query(P, min(most, len(P)), distance_upper_bound=reach)
    cosine = np.einsum("ij,ikj->ik", N, np.r_[N, np.zeros((1, 3))][number])  # (n, k)
    low, high = np.cos(np.radians((OPPOSITE, BEND)))
    found = np.empty(len(P), bool)
    found[order] = (np.isfinite(gap) & (cosine > low) & (cosine < high)).any(1)
    return found


def surface_points(V: np.ndarray, F: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Points (count, 3) spread over a mesh's area; none if it has no faces."""
    return surface_sample(V, F, count, rng)[0]


def surface_sample(V, F, count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The same, and the normals (count, 3) there."""
    if not len(F):
        return np.zeros((0, 3)), np.zeros((0, 3))
    pieces = parts(len(F), PIECE)
    area = np.concatenate([np.linalg.norm(corner_and_sides(V, F[piece])[3], axis=1) for piece in pieces])
    face = rng.choice(len(F), count, p=area / area.sum())
    u, v = rng.random((2, count, 1))
    u, v = np.where(u + v > 1, 1 - u, u), np.where(u + v > 1, 1 - v, v)
    A, along, across, N = corner_and_sides(V, F[face])
    return A + u * along + v * across, N / area[face, None]


def corner_and_sides(V: np.ndarray, F: np.ndarray) -> tuple[np.ndarray, ...]:
    """Of each face its first corner, the two sides from there, and their cross product, (m, 3) each."""
    A, B, C = (V[F[:, k]].astype(np.float64) for k in range(3))
    return A, B - A, C - A, np.cross(B - A, C - A)


# -- one set beside another -------------------------------------------------------------------------------------------


def apart(made: list[np.ndarray], truth: list[np.ndarray]) -> np.ndarray:
    """chamfer_l1 (n, m) of each of some samples to each of some others."""
    trees = [[cKDTree(P) for P in some] for some in (made, truth)]
    return np.array(
        [
            [b.query(P)[0].mean() + a.query(Q)[0].mean() for Q, b in zip(truth, trees[1], strict=True)]
            for P, a in zip(made, trees[0], strict=True)
        ]
    )


def coverage(between: np.ndarray) -> float:
    """Share of the true shapes (m) that are the nearest one of some made shape (n), from distances (n, m)."""
    return len(np.unique(between.argmin(1))) / between.shape[1]


def minimum_matching_distance(between: np.ndarray) -> float:
    """Mean over the true shapes of the distance to the nearest made shape, from distances (n, m)."""
    return float(between.min(0).mean())


def one_nearest_neighbour(made: np.ndarray, between: np.ndarray, truth: np.ndarray) -> float:
    """Share of all shapes whose nearest other shape is of their own set: 0.5 if the sets cannot be told apart, or 1.

    From distances among the made (n, n), of the made to the true (n, m), and among the true (m, m).
    """
    every = np.block([[made, between], [between.T, truth]])
    np.fill_diagonal(every, np.inf)
    own = np.arange(len(every)) < len(made)
    return float((own[every.argmin(1)] == own).mean())


# -- how sure ---------------------------------------------------------------------------------------------------------


def interval(values: np.ndarray, draws: int = 10_000, sure: float = 0.95, seed: int = 0) -> tuple[float, float]:
    """Between which bounds the mean lies, by the bootstrap: percentiles of the means of sets drawn with replacement."""
    values = np.asarray(values, np.float64)
    values = values[np.isfinite(values)]
    if not len(values):
        return np.nan, np.nan
    rng = np.random.default_rng(seed)
    means = [values[rng.integers(len(values), size=(100, len(values)))].mean(1) for _ in range(-(-draws // 100))]
    low, high = np.quantile(np.concatenate(means), [(1 - sure) / 2, (1 + sure) / 2])
    return float(low), float(high)
