"""Winding numbers of a mesh whose faces point anywhere: turn patches outward, judge pieces, close large holes."""

import itertools

import igl
import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from lib import field

SAMPLES = 8192  # points on the surface that judge its pieces
SOLID = 0.8  # mean winding number just inside a piece, from which it is a solid with a hole
LEAST = 16  # samples of a piece: smaller ones are left alone
CONSISTENT = 0.97  # share of a piece's samples whose two sides the winding number tells apart


def patches(F: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Faces joined across edges that have exactly two: patch (m,), and +1 or -1 (m,), which makes each wound one way.

    Two copies of each face, one turned over, are joined where they agree: a patch is one of the two halves that come
    out, except for a Moebius strip, where both are the same.
    """
    m, n = len(F), F.max() + 1
    a, b = F.ravel(), np.roll(F, -1, 1).ravel()
    edge = np.minimum(a, b) * n + np.maximum(a, b)
    order = np.argsort(edge, kind="stable")
    _, first, count = np.unique(edge[order], return_index=True, return_counts=True)
    one, two = order[first[count == 2]], order[first[count == 2] + 1]
    f, g, against = one // 3, two // 3, a[one] == a[two]
    rows, columns = np.r_[f, f + m], np.r_[np.where(against, g + m, g), np.where(against, g, g + m)]
    _, label = connected_components(
        coo_array((np.ones(len(rows)), (rows, columns)), shape=(2 * m, 2 * m)), directed=False
    )
    patch = np.minimum(label[:m], label[m:])
    return np.unique(patch, return_inverse=True)[1], np.where(label[:m] <= label[m:], 1, -1)


def turn_outward(V: np.ndarray, F: np.ndarray) -> np.ndarray:
    """Faces turned patch by patch to the side from which more rays escape."""
    patch, sign = patches(F)
    F = np.where((sign < 0)[:, None], F[:, ::-1], F)
    P, N, face = sample(V, F, SAMPLES)
    surface, rng = field.prepare(V, F, rays_only=True), np.random.default_rng(0)
    votes = np.zeros(len(P))
    for _ in range(16):
        D = rng.normal(size=P.shape)
        D *= np.sign((D * N).sum(1, keepdims=True))
        D += 0.2 * np.linalg.norm(D, axis=1, keepdims=True) * N  # none that graze
        for side in (1, -1):
            votes += side * np.isinf(field.hits(surface, P + side * 1e-4 * N, D * side)[0])
    inward = np.bincount(patch[face], votes, patch.max() + 1) < 0
    return np.where(inward[patch][:, None], F[:, ::-1], F)


def holed_solids(V: np.ndarray, F: np.ndarray, gap: float) -> list[np.ndarray]:
    """The outward faces of each piece that is a solid but for a hole."""
    F = turn_outward(V, F)
    joined = coo_array((np.ones(F.size), (F.ravel(), np.roll(F, -1, 1).ravel())), shape=(len(V), len(V)))
    _, piece = connected_components(joined, directed=False)
    piece = piece[F[:, 0]]
    P, N, face = sample(V, F, SAMPLES)
    found = []
    for number in np.flatnonzero(np.bincount(piece[face]) >= LEAST):
        mine, own = piece[face] == number, F[piece == number]
        inner = number_at(V, own, P[mine] - gap * N[mine])
        outer = number_at(V, own, P[mine] + gap * N[mine])
        if inner.mean() > SOLID and ((inner > 0.5) & (outer < 0.5)).mean() > CONSISTENT and is_open(own):
            found.append(own)
    return found


def is_open(F: np.ndarray) -> bool:
    """Whether an edge has a single face."""
    edge = np.sort(np.stack([F, np.roll(F, -1, 1)], -1), axis=-1) @ np.array([F.max() + 1, 1])
    return bool((np.unique(edge, return_counts=True)[1] == 1).any())


def number_at(V: np.ndarray, F: np.ndarray, P: np.ndarray) -> np.ndarray:
    """Generalised winding number of each point: 1 inside a closed outward mesh, 0 outside, in between near a hole."""
    return igl.fast_winding_number(V, np.ascontiguousarray(F), np.ascontiguousarray(P))


def sample(V: np.ndarray, F: np.ndarray, count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points spread evenly over the area, the normals there, and their faces."""
    area = areas(V, F)
    rng = np.random.default_rng(seed)
    face = np.searchsorted(np.cumsum(area), (np.arange(count) + rng.random(count)) / count * area.sum())
    face = np.minimum(face, len(F) - 1)
    u, v = rng.random((2, count))
    u, v = np.where(u + v > 1, 1 - u, u), np.where(u + v > 1, 1 - v, v)
    A, B, C = V[F[face]].swapaxes(0, 1)
    N = np.cross(B - A, C - A) / np.maximum(2 * area[face], 1e-300)[:, None]
    return A + u[:, None] * (B - A) + v[:, None] * (C - A), N, face


def areas(V: np.ndarray, F: np.ndarray) -> np.ndarray:
    area = np.empty(len(F))
    for part in field.parts(len(F)):
        A, B, C = V[F[part]].swapaxes(0, 1)
        area[part] = np.linalg.norm(np.cross(B - A, C - A), axis=1) / 2
    return area


def band(V: np.ndarray, F: np.ndarray, resolution: int, wanted=None) -> tuple[np.ndarray, np.ndarray]:
    """Corners wherever the winding number crosses 1/2, all those of the crossed cells, and their numbers.

    From a coarse grid to the corners: cells are halved where the number crosses 1/2 at one of their corners' edges. The
    last and by far most are only those that are wanted: a function of keys that tells which.
    """
    h = field.spacing(resolution)
    size = np.ptp(V[F], axis=(0, 1)) / h
    step = 1 << max(0, int(np.log2(max(size.min() / 8, size.max() / 64, 1))))  # fine enough for flat pieces
    low = np.floor((V[F].min((0, 1)) + field.BOX) / h / step).astype(np.int64) - 1
    high = np.ceil((V[F].max((0, 1)) + field.BOX) / h / step).astype(np.int64) + 1
    keys = field.pack(np.stack(np.meshgrid(*map(np.arange, low, high + 1), indexing="ij"), -1).reshape(-1, 3) * step)
    while True:
        if step == 1 and wanted is not None:
            keys = keys[wanted(keys)]
        number = number_at(V, F, field.position(field.unpack(keys), resolution))
        if step == 1:
            return keys, number
        inside = number > 0.5
        crossed = np.zeros(len(keys), bool)
        for axis in field.STEPS * step:
            near = field.find(keys, keys + axis)
            differ = np.flatnonzero((near >= 0) & (inside != inside[near]))
            crossed[differ] = crossed[near[differ]] = True
        cells = field.unique(keys[crossed][:, None] - field.OFFSETS * step @ field.STEPS)
        step //= 2
        keys = field.unique(
            cells[:, None] + np.array(list(itertools.product((0, step, 2 * step), repeat=3))) @ field.STEPS
        )
