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
    normals: np.ndarray  # (m, 3, 3) of each face's corners
    colours: np.ndarray  # (m, 3, 3) of each face's corners, 0 to 255
    uv: np.ndarray  # (m, 3, 2) of each face's corners in its texture
    texture: np.ndarray  # (m,) which of the textures, -1 = none
    textures: list  # of mip maps, each a list of images, every one half the size of the one before


def skin(parts: list[tuple]) -> Skin:
    """From parts (V, F, paint) as picture.original gives them."""
    from PIL import ImageColor

    V, F, colours, uvs, which, textures, size = [], [], [], [], [], [], 0
    for points, faces, paint in parts:
        m = len(faces)
        colour, uv, texture = np.full((m, 3, 3), 255, np.float32), np.zeros((m, 3, 2), np.float32), -1
        if isinstance(paint, str):
            colour[:] = ImageColor.getrgb(paint)
        elif isinstance(paint, tuple):
            uv, texture = np.asarray(paint[0], np.float32)[faces], len(textures)
            textures.append(halves(np.asarray(paint[1])))
        else:
            paint = np.asarray(paint)
            colour[:] = paint[faces] if len(paint) == len(points) else paint[:, None]
        V.append(points), F.append(faces + size), colours.append(colour), uvs.append(uv)
        which.append(np.full(m, texture))
        size += len(points)
    V, F, colours, uvs, which = (np.concatenate(x) for x in (V, F, colours, uvs, which))
    return Skin(V, F, smooth(V, F), colours, uvs, which, textures)


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


def barycentric(V: np.ndarray, F: np.ndarray, face: np.ndarray, P: np.ndarray) -> np.ndarray:
    """Weights (n, 3) of the corners of the faces at points P (n, 3) on them."""
    a, b, c = (V[F[face, k]] for k in range(3))
    u, v, w = b - a, c - a, P - a
    uu, uv, vv, wu, wv = ((x * y).sum(1) for x, y in ((u, u), (u, v), (v, v), (w, u), (w, v)))
    area = np.maximum(uu * vv - uv**2, 1e-300)
    s, t = (wu * vv - wv * uv) / area, (wv * uu - wu * uv) / area
    weights = np.clip(np.stack([1 - s - t, s, t], 1), 0, 1)  # a pixel's centre may lie a hair beyond the edge
    return weights / np.maximum(weights.sum(1, keepdims=True), 1e-300)


# -- colours ----------------------------------------------------------------------------------------------------------


def levels(skin: Skin, unit: float) -> np.ndarray:
    """Which mip map suits each face (m,) where a unit of length covers so many pixels."""
    detail = np.zeros(len(skin.F), int)
    for k, images in enumerate(skin.textures):
        of = np.flatnonzero(skin.texture == k)
        height, width = images[0].shape[:2]
        u, v = (skin.uv[of, n] - skin.uv[of, 0] for n in (1, 2))
        texels = np.abs(u[:, 0] * v[:, 1] - u[:, 1] * v[:, 0]) / 2 * height * width
        pixels = flat(skin.V, skin.F[of])[1] * unit**2
        level = np.log2(np.maximum(texels, 1e-30) / np.maximum(pixels, 1e-30)) / 2
        detail[of] = np.clip(np.round(level), 0, len(images) - 1)
    return detail


def colours(skin: Skin, detail: np.ndarray, face: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The colours (n, 3), 0 to 255, of points on faces (n,) with barycentric weights (n, 3)."""
    C = np.einsum("nk,nkc->nc", weights, skin.colours[face])
    textured = np.flatnonzero(skin.texture[face] >= 0)
    at = face[textured]
    uv = np.einsum("nk,nkc->nc", weights[textured], skin.uv[at])
    kind = skin.texture[at] * 64 + detail[at]
    for one in np.unique(kind):
        here = np.flatnonzero(kind == one)
        C[textured[here]] = sample(skin.textures[one // 64][one % 64], uv[here])
    return C


def sample(image: np.ndarray, uv: np.ndarray) -> np.ndarray:
    """Colours (n, 3) of a repeating image between its pixels; v = 0 is its lower edge."""
    height, width = image.shape[:2]
    x, y = uv[:, 0] % 1 * width - 0.5, (1 - uv[:, 1] % 1) * height - 0.5
    left, top = np.floor(x).astype(int), np.floor(y).astype(int)
    x, y = (x - left)[:, None], (y - top)[:, None]
    columns, rows = (left % width, (left + 1) % width), (top % height, (top + 1) % height)
    upper = image[rows[0], columns[0]] * (1 - x) + image[rows[0], columns[1]] * x
    lower = image[rows[1], columns[0]] * (1 - x) + image[rows[1], columns[1]] * x
    return upper * (1 - y) + lower * y


def lit(C: np.ndarray, N: np.ndarray) -> np.ndarray:
    """Colours (n, 3) under the lamps, which go with the camera; N (n, 3) are normals in the camera's axes."""
    return np.minimum(C * (AMBIENT + DIFFUSE * np.maximum(N @ LAMPS.T, 0).sum(1))[:, None], 255)
