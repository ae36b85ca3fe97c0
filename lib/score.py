"""How near one shape is to another: overlap of what is inside, F-score of their surfaces, distance from sharp edges."""

import numpy as np
from scipy.spatial import cKDTree


def iou(inside: np.ndarray, truth: np.ndarray) -> float:
    """Volume in common over volume in either, from who is inside of points that lie anywhere; 1 if both are empty."""
    either = np.count_nonzero(inside | truth)
    return np.count_nonzero(inside & truth) / either if either else 1.0


def f_score(P: np.ndarray, Q: np.ndarray, distance: float) -> float:
    """Harmonic mean of the shares of P (n, 3) and Q (m, 3) that lie within a distance of each other's points.

    Two samples of one surface do not reach 1 where the distance is near their spacing: compare at equal counts.
    """
    if not len(P) or not len(Q):
        return 0.0
    precision, recall = ((gaps(a, b) <= distance).mean() for a, b in ((P, Q), (Q, P)))
    return float(2 * precision * recall / (precision + recall)) if precision + recall else 0.0


def chamfer(P: np.ndarray, Q: np.ndarray) -> float:
    """Mean distance from P to Q plus mean distance from Q to P."""
    return float(gaps(P, Q).mean() + gaps(Q, P).mean())


def gaps(P: np.ndarray, Q: np.ndarray) -> np.ndarray:
    """Distance from each of P to the nearest of Q, inf if there is none."""
    return cKDTree(Q).query(P)[0] if len(Q) else np.full(len(P), np.inf)


def surface_points(V: np.ndarray, F: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Points (count, 3) spread over a mesh's area; none if it has no faces."""
    if not len(F):
        return np.zeros((0, 3))
    A, B, C = (V[F[:, k]].astype(np.float64) for k in range(3))
    area = np.linalg.norm(np.cross(B - A, C - A), axis=1)
    face = rng.choice(len(F), count, p=area / area.sum())
    u, v = rng.random((2, count, 1))
    u, v = np.where(u + v > 1, 1 - u, u), np.where(u + v > 1, 1 - v, v)
    return A[face] + u * (B - A)[face] + v * (C - A)[face]
