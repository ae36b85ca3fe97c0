"""A mesh with few faces that looks like one with many: vertices are merged by cells of a grid, edges stay sharp."""

import numpy as np


def simplify(V: np.ndarray, F: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """At most so many faces. No vertex moves further than its cell's diagonal, and each cell keeps one.

    Clustering takes any triangles, also open or crossing ones, in seconds for a million (Rossignac and Borrel 1993);
    a cell's vertex goes where the planes of its faces meet (Lindstrom 2000), so that edges and corners stay sharp.
    """
    V, F = np.asarray(V, np.float64), np.asarray(F, np.int64)
    if len(F) <= most:
        return V, F
    low, side = V.min(0), np.ptp(V, 0).max()
    few, many = 1, 2  # cells along the longest side: few enough, too many
    while len(merged(V, F, low, side / many)[1]) <= most and many < 4096:
        few, many = many, 2 * many
    while many - few > max(1, few // 32):
        middle = (few + many) // 2
        few, many = (middle, many) if len(merged(V, F, low, side / middle)[1]) <= most else (few, middle)
    cell, G = merged(V, F, low, side / few)
    return placed(V, F, cell, G, low, side / few)


def merged(V: np.ndarray, F: np.ndarray, low: np.ndarray, size: float) -> tuple[np.ndarray, np.ndarray]:
    """The number of each vertex's cell (n,), and the faces (k, 3) between three of them, each once."""
    place = np.floor((V - low) / size).astype(np.int64)  # (n, 3)
    key = (place[:, 0] << 42) + (place[:, 1] << 21) + place[:, 2]
    cell = np.unique(key, return_inverse=True)[1].reshape(-1)
    G = cell[F]
    G = G[(G[:, 0] != G[:, 1]) & (G[:, 1] != G[:, 2]) & (G[:, 2] != G[:, 0])]
    order = (G.argmin(1)[:, None] + np.arange(3)) % 3
    G = np.take_along_axis(G, order, 1)  # the same face starts with the same corner
    return cell, np.unique(G, axis=0) if len(G) else G


def placed(V, F, cell, G, low, size) -> tuple[np.ndarray, np.ndarray]:
    """Where each cell's one vertex goes: nearest to the planes of all faces that have a corner in it."""
    count = cell.max() + 1
    mean = (
        np.stack([np.bincount(cell, V[:, k], count) for k in range(3)], 1) / np.bincount(cell, minlength=count)[:, None]
    )
    A, B, C = (V[F[:, k]] for k in range(3))
    N = np.cross(B - A, C - A)
    N /= np.sqrt(np.linalg.norm(N, axis=1, keepdims=True)) + 1e-30  # squared, it weighs as much as the face's area
    Q, b = np.zeros((count, 3, 3)), np.zeros((count, 3))
    for k in range(3):
        corner = cell[F[:, k]]
        away = (N * (A - mean[corner])).sum(1)
        for i in range(3):
            b[:, i] += np.bincount(corner, N[:, i] * away, count)
            for j in range(3):
                Q[:, i, j] += np.bincount(corner, N[:, i] * N[:, j], count)
    values, axes = np.linalg.eigh(Q)  # (c, 3), (c, 3, 3)
    strong = values > 1e-2 * values[:, 2:] + 1e-30  # along a plane or an edge the vertex stays in the middle
    along = np.einsum("cij,ci->cj", axes, b) * strong / np.where(strong, values, 1)
    found = mean + np.einsum("cij,cj->ci", axes, along)
    first = np.full(count, len(V))
    np.minimum.at(first, cell, np.arange(len(V)))
    corner = low + np.floor((V[first] - low) / size) * size  # the lowest of each cell
    found = np.clip(found, corner, corner + size)
    used, G = np.unique(G, return_inverse=True)
    return found[used], G.reshape(-1, 3)
