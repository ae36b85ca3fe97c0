"""Sharp edges: found on a mesh, counted into Dora-bench's levels, and seen in normal maps where meshes differ."""

from typing import NamedTuple

import numpy as np
from scipy.ndimage import binary_dilation
from skimage.feature import canny

from lib import camera, contour, field

THIN = 1e-6  # height of a face below which its normal means nothing: coordinates have seven decimals
LEVELS = {
    1: "L1",
    5_001: "L2",
    20_001: "L3",
    50_001: "L4",
}  # sharp edges from which a shape is of a level of Dora-bench


class Edges(NamedTuple):
    """Edges of a mesh, each with its two ends (e, 2), length, bend in degrees and mean normal (e, 3)."""

    ends: np.ndarray
    length: np.ndarray
    bend: np.ndarray
    normal: np.ndarray


def find_edges(V: np.ndarray, F: np.ndarray) -> Edges:
    """The edges of two faces, and those of one face (rims) with a bend of 180 degrees: no edge loses a mesh."""
    a, b = F.ravel(), np.roll(F, -1, 1).ravel()
    key = np.minimum(a, b) * len(V) + np.maximum(a, b)
    order = np.argsort(key, kind="stable")
    same = key[order][1:] == key[order][:-1]
    one, two = order[:-1][same], order[1:][same]
    rim = order[~np.r_[False, same] & ~np.r_[same, False]]
    N = steady_normals(V, F, one, two)
    first, second = N[one // 3], N[two // 3] * np.where(a[one] == a[two], -1, 1)[:, None]
    bend = np.degrees(np.arctan2(np.linalg.norm(np.cross(first, second), axis=1), (first * second).sum(1)))
    mean = first + second
    size = np.linalg.norm(mean, axis=1, keepdims=True)
    mean = np.where(size > 1e-6, mean / np.maximum(size, 1e-6), first)  # two sides of a sheet have no mean
    ends = np.stack([a, b], -1)[np.r_[one, rim]]
    length = np.linalg.norm(V[ends[:, 1]] - V[ends[:, 0]], axis=1)
    return Edges(ends, length, np.r_[bend, np.full(len(rim), 180.0)], np.r_[mean, N[rim // 3]])


def steady_normals(V: np.ndarray, F: np.ndarray, one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """Normals (m, 3) of faces; a sliver, whose own means nothing, has that of its neighbour across its longest edge.

    Else its edges would all seem sharp; so the bend is where the sliver's other neighbour begins.
    """
    N = contour.face_normals(V, F)
    side = np.linalg.norm(V[np.roll(F, -1, 1)] - V[F], axis=2)  # (m, 3)
    area = np.linalg.norm(np.cross(V[F[:, 1]] - V[F[:, 0]], V[F[:, 2]] - V[F[:, 0]]), axis=1)
    sliver = np.flatnonzero(area < THIN * side.max(1))
    if len(sliver):
        across = np.arange(3 * len(F))
        across[one], across[two] = two, one
        beyond = across[3 * sliver + side[sliver].argmax(1)] // 3
        for _ in range(8):  # slivers behind slivers
            N[sliver] = N[beyond]
    return N


# -- how much of them there is, and how well they come back -----------------------------------------------------------


def level(count: int) -> str:
    """L1 to L4 of Dora-bench by the number of sharp edges, L0 if there is none. Finer meshes of one shape have more."""
    return next((name for least, name in reversed(LEVELS.items()) if count >= least), "L0")


def sharp_normal_error(made: tuple, truth: tuple, views: int = 22, size: int = 256) -> float:
    """100 times the mean squared error of normal maps near the edges that Canny sees in those of the truth, as images.

    As Dora-bench has it, whose code was not published: its `views` are a Fibonacci sphere here, a map's colours are
    (n + 1) / 2 and where nothing is seen 1/2; edges of any colour count, silhouettes too, two pixels to each side.
    """
    lens, squares, pixels = camera.lens(size), 0.0, 0
    poses = camera.poses(views, lens.distance)
    for mine, theirs in zip(normal_maps(*made, lens, poses), normal_maps(*truth, lens, poses), strict=True):
        near = binary_dilation(np.any([canny(theirs[..., k]) for k in range(3)], 0), iterations=2)
        squares += float(np.square(mine - theirs)[near].sum())
        pixels += 3 * int(near.sum())
    return 100 * squares / pixels if pixels else 0.0


def normal_maps(V: np.ndarray, F: np.ndarray, lens: camera.Lens, poses: np.ndarray):
    """Images (h, w, 3) of each view, 0 to 1, of the faces' normals as world coordinates."""
    row, column = np.mgrid[: lens.size, : lens.size] + 0.5
    pixels = np.stack([column.ravel(), row.ravel()], 1)
    surface = field.prepare(V, F, rays_only=True) if len(F) else None
    N = np.r_[contour.face_normals(V, F), np.zeros((1, 3))] if len(F) else np.zeros((1, 3))  # the last is nothing's
    for pose in poses:
        face = field.hits(surface, *camera.rays(lens, pose, pixels))[1] if surface else np.full(len(pixels), -1)
        yield (N[face].reshape(lens.size, lens.size, 3) + 1) / 2
