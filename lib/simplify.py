"""A mesh with few faces that looks like one with many: vertices are merged by cells of a grid, edges stay sharp."""

import numpy as np

PIECE = 1 << 20  # faces at once: all of some million would take gigabytes
NUMBERS = 1 << 21  # so many cells have numbers of which three fit an int64
FACES_A_CELL = 2.6  # that are left where a surface goes through: two along its sides, three across them


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


def thinned(V: np.ndarray, F: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """At most so many faces, of a surface that has millions of small ones as a grid's are: good enough for a picture.

    Of the vertices in a cell the mean is left; there is one size of cells, from the area, and one pass or two.
    """
    if len(F) <= most:
        return V, F
    low, area = V.min(0), 0.0
    for n in range(0, len(F), PIECE):
        A, B, C = (V[F[n : n + PIECE, k]] for k in range(3))
        area += float(np.linalg.norm(np.cross(B - A, C - A), axis=1).sum()) / 2
    size = max((FACES_A_CELL * area / most) ** 0.5, float(np.ptp(V, 0).max()) / (1 << 20), 1e-30)
    while True:
        cells, cell = cells_of(V, low, size)
        G = [apart(cell[F[n : n + PIECE]]) for n in range(0, len(F), PIECE)]
        G = once(np.concatenate(G)) if len(cells) < NUMBERS else np.concatenate(G)
        if len(G) <= most:
            break
        size *= max(1.05 * (len(G) / most) ** 0.5, 1.1)
    number = np.bincount(cell, minlength=len(cells))
    mean = np.stack([np.bincount(cell, V[:, k], len(cells)) / number for k in range(3)], 1).astype(V.dtype)
    return mean, turned(mean, G)


def turned(V: np.ndarray, F: np.ndarray) -> np.ndarray:
    """The faces; those that folded over, against all around them, the other way round: a picture has them as specks.

    Both sides of a wall that is thinner than a cell lie in one place, and stay.
    """
    A, B, C = V[F].swapaxes(0, 1)
    N = np.cross(B - A, C - A)
    size = np.linalg.norm(N, axis=1)
    *around, weight = (np.bincount(F.ravel(), np.repeat(x, 3), len(V))[F].sum(1) for x in (*N.T, size))  # (m,) each
    over = (np.stack(around, 1) * N).sum(1) < -0.5 * size * weight
    return np.where(over[:, None], F[:, [0, 2, 1]], F)


def cells_of(V: np.ndarray, low: np.ndarray, size: float) -> tuple[np.ndarray, np.ndarray]:
    """The cells that hold vertices, as keys, and the number of each vertex's cell, (n,) int32."""
    key = np.zeros(len(V), np.int64)
    for k in range(3):
        key = (key << 21) + ((V[:, k] - low[k]) / size).astype(np.int64)
    cells, cell = np.unique(key, return_inverse=True)
    return cells, cell.reshape(-1).astype(np.int32)


def apart(G: np.ndarray) -> np.ndarray:
    """The faces whose corners are three different ones, each turned so that the least comes first."""
    G = G[(G[:, 0] != G[:, 1]) & (G[:, 1] != G[:, 2]) & (G[:, 2] != G[:, 0])]
    return np.take_along_axis(G, (G.argmin(1)[:, None] + np.arange(3)) % 3, 1)


def once(G: np.ndarray) -> np.ndarray:
    """Each face once; its corners are below NUMBERS, so that three fit one integer."""
    key = (G[:, 0].astype(np.int64) * NUMBERS + G[:, 1]) * NUMBERS + G[:, 2]
    return G[np.unique(key, return_index=True)[1]]


def merged(V: np.ndarray, F: np.ndarray, low: np.ndarray, size: float) -> tuple[np.ndarray, np.ndarray]:
    """The number of each vertex's cell (n,), and the faces (k, 3) between three of them, each once."""
    _, cell = cells_of(V, low, size)
    G = apart(cell[F])
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
