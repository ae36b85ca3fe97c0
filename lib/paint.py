"""What colour a point of a mesh has, from its texture or its paint, and what light makes of it."""

from typing import NamedTuple

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

CREASE = 40  # degrees between two faces from which on their edge is sharp
AMBIENT, DIFFUSE = 0.35, 0.8
LAMPS = np.array([[-1, 1.6, 1.4], [1.6, 0.4, 1], [0, -1, 0.8]])  # directions to them, in the camera's axes
LAMPS = LAMPS / np.linalg.norm(LAMPS, axis=1, keepdims=True) * np.array([[0.8], [0.45], [0.2]])  # times strength


class Skin(NamedTuple):
    """A painted mesh, ready to be asked for the colours of its points."""

    V: np.ndarray
    F: np.ndarray
    corners: np.ndarray  # (m, 3, 8) of each face's corners: normal, colour (0 to 255), place in the texture
    texture: np.ndarray  # (m,) which of the textures, -1 = none
    textures: list  # of mip maps, each a list of images, every one half the size of the one before


def skin(parts: list[tuple]) -> Skin:
    """From parts (V, F, paint) as picture.original gives them."""
    from PIL import ImageColor

    V, F, looks, which, textures, size = [], [], [], [], [], 0
    for points, faces, paint in parts:
        look, texture = np.zeros((len(faces), 3, 5), np.float32), -1
        if isinstance(paint, str):
            look[..., :3] = ImageColor.getrgb(paint)
        elif isinstance(paint, tuple):
            look[..., 3:], texture = np.asarray(paint[0], np.float32)[faces], len(textures)
            textures.append(halves(np.asarray(paint[1])))
        else:
            paint = np.asarray(paint)
            look[..., :3] = paint[faces] if len(paint) == len(points) else paint[:, None]
        V.append(points), F.append(faces + size), looks.append(look), which.append(np.full(len(faces), texture))
        size += len(points)
    V, F, looks, which = (np.concatenate(x) for x in (V, F, looks, which))
    return Skin(V, F, np.concatenate([smooth(V, F).astype(np.float32), looks], 2), which, textures)


def halves(image: np.ndarray) -> list[np.ndarray]:
    """An image (h, w, 3) and its halves, down to one pixel."""
    from PIL import Image as Pixels

    images, picture = [image], Pixels.fromarray(image)
    while max(picture.size) > 1:
        picture = picture.resize([max(side // 2, 1) for side in picture.size], Pixels.Resampling.BOX)
        images.append(np.asarray(picture))
    return images


# -- normals ----------------------------------------------------------------------------------------------------------


def flat(V: np.ndarray, F: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Normals (m, 3) of faces and their areas (m,); a face without area has the normal 0."""
    a, b, c = (V[F[:, k]] for k in range(3))
    N = np.cross(b - a, c - a)
    twice = np.linalg.norm(N, axis=1)
    return N / np.maximum(twice, 1e-300)[:, None], twice / 2


def smooth(V: np.ndarray, F: np.ndarray, crease: float = CREASE) -> np.ndarray:
    """Normals (m, 3, 3) of the faces' corners: the mean over the faces about a vertex that no crease parts."""
    N, area = flat(V, F)
    _, place = np.unique(np.round(V, 6), axis=0, return_inverse=True)  # files part vertices for many reasons
    P = place.reshape(-1)[F]  # (m, 3)
    # The two halves of an edge lie side by side once edges are sorted by their ends.
    a, b = P.ravel(), np.roll(P, -1, 1).ravel()
    face, corner = np.divmod(np.arange(3 * len(F)), 3)
    order = np.lexsort([face, np.maximum(a, b), np.minimum(a, b)])
    one, two = order[:-1], order[1:]
    pair = (a[one] == b[two]) & (b[one] == a[two])  # those that run against each other: the faces agree
    one, two = one[pair], two[pair]
    soft = (N[face[one]] * N[face[two]]).sum(1) > np.cos(np.radians(crease))
    one, two = one[soft], two[soft]
    after = 3 * face + (corner + 1) % 3  # half-edge k starts in corner k and ends in corner after[k]
    rows, columns = np.r_[one, after[one]], np.r_[after[two], two]
    graph = coo_array((np.ones(len(rows), bool), (rows, columns)), shape=(3 * len(F),) * 2)
    count, fan = connected_components(graph, directed=False)
    weighted = np.repeat(N * area[:, None], 3, axis=0)
    sums = np.stack([np.bincount(fan, weighted[:, k], count) for k in range(3)], 1)
    sums /= np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-300)
    return sums[fan].reshape(-1, 3, 3)


def gradients(V: np.ndarray, F: np.ndarray) -> np.ndarray:
    """For each face two rows (m, 2, 4): times (x, y, z, 1) they are the weights of its second and third corner."""
    a, b, c = (V[F[:, k]] for k in range(3))
    u, v = b - a, c - a
    uu, uv, vv = (np.einsum("ij,ij->i", x, y)[:, None] for x, y in ((u, u), (u, v), (v, v)))
    area = np.maximum(uu * vv - uv**2, 1e-300)
    rows = np.stack([(vv * u - uv * v) / area, (uu * v - uv * u) / area], 1)
    return np.concatenate([rows, -np.einsum("mkc,mc->mk", rows, a)[..., None]], 2)


def barycentric(rows: np.ndarray, P: np.ndarray) -> np.ndarray:
    """Weights (n, 3) of the corners at points P (n, 3), from the gradients (n, 2, 4) of the faces that they lie on."""
    W = np.empty((len(P), 3))
    W[:, 1:] = np.clip(
        np.einsum("nkc,nc->nk", rows[..., :3], P) + rows[..., 3], 0, 1
    )  # a hair beyond the edge it may be
    W[:, 0] = np.maximum(1 - W[:, 1] - W[:, 2], 0)
    return W / W.sum(1, keepdims=True)


# -- colours ----------------------------------------------------------------------------------------------------------


def levels(skin: Skin, unit: float) -> np.ndarray:
    """Which mip map suits each face (m,) where a unit of length covers so many pixels."""
    detail = np.zeros(len(skin.F), int)
    for k, images in enumerate(skin.textures):
        of = np.flatnonzero(skin.texture == k)
        height, width = images[0].shape[:2]
        u, v = (skin.corners[of, n, 6:] - skin.corners[of, 0, 6:] for n in (1, 2))
        texels = np.abs(u[:, 0] * v[:, 1] - u[:, 1] * v[:, 0]) / 2 * height * width
        pixels = flat(skin.V, skin.F[of])[1] * unit**2
        level = np.log2(np.maximum(texels, 1e-30) / np.maximum(pixels, 1e-30)) / 2
        detail[of] = np.clip(np.round(level), 0, len(images) - 1)
    return detail


def look(skin: Skin, detail: np.ndarray, face: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Normals and colours (n, 3), 0 to 255, of points on faces (n,) with barycentric weights (n, 3)."""
    X = np.einsum("nk,nkc->nc", weights.astype(np.float32), skin.corners[face])
    if skin.textures:
        kind = skin.texture[face] * 64 + detail[face]
        for one in np.unique(kind[kind >= 0]):
            here = np.flatnonzero(kind == one)
            X[here, 3:6] = sample(skin.textures[one // 64][one % 64], X[here, 6:])
    return X[:, :3], X[:, 3:6]


def sample(image: np.ndarray, uv: np.ndarray) -> np.ndarray:
    """Colours (n, 3) of a repeating image between its pixels; v = 0 is its lower edge."""
    height, width = image.shape[:2]
    x, y = uv[:, 0] % 1 * width - 0.5, (1 - uv[:, 1] % 1) * height - 0.5
    left, top = np.floor(x).astype(np.intp), np.floor(y).astype(np.intp)
    x, y = (x - left)[:, None], (y - top)[:, None]
    columns, rows = (left % width, (left + 1) % width), (top % height * width, (top + 1) % height * width)
    flat = image.reshape(-1, image.shape[2])
    upper = flat[rows[0] + columns[0]] * (1 - x) + flat[rows[0] + columns[1]] * x
    lower = flat[rows[1] + columns[0]] * (1 - x) + flat[rows[1] + columns[1]] * x
    return upper * (1 - y) + lower * y


def lit(C: np.ndarray, N: np.ndarray) -> np.ndarray:
    """Colours (n, 3) under the lamps, which go with the camera; N (n, 3) are normals in the camera's axes."""
    return np.minimum(C * (AMBIENT + DIFFUSE * np.maximum(N @ LAMPS.T, 0) @ np.ones(len(LAMPS)))[:, None], 255)
