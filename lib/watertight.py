"""Close a mesh, so that inside and outside are defined: the surface at 2/R around everything it has, outermost only."""

import time

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from lib import field, mesh


def watertight(item, resolution: int = 256) -> dict:
    """Read an item's mesh, normalise it, close it, write it; returns the facts."""
    V, F = mesh.read(item.source)
    V, center, scale = mesh.normalise(V)
    V, F, facts = close(V, F, resolution)
    item.link_original()
    with item.writing("_normalized.obj") as path:
        mesh.write(path, V, F)
    return {"center": [float(c) for c in center], "scale": float(scale), **facts}


def close(V: np.ndarray, F: np.ndarray, resolution: int = 256) -> tuple[np.ndarray, np.ndarray, dict]:
    """A closed, manifold, outward mesh around a normalised one; flipped faces, holes and overlaps do not matter."""
    watch = Watch()
    V, F = merge(V, F)
    came = topology(V, F)
    surface = field.prepare(V, F)
    watch("prepare")

    eps = 2 / resolution
    h = field.spacing(resolution)
    band = field.band(surface, resolution, eps + np.sqrt(3) * h)  # so every crossed cell has all its corners
    watch("band")

    blocked = band.distance <= eps
    outside = field.flood(band.keys[blocked])(band.keys)
    # Free but out of reach from outside is inside: no inner shells.
    values = np.where(outside, eps - band.distance, np.maximum(np.abs(eps - band.distance), 1e-9))
    watch("flood")

    V, F = field.marching_cubes(band.keys, values, resolution)
    watch("extract")

    distance = field.closest(surface, np.concatenate([V, V[F].mean(1)]))[0] / h
    went = topology(V, F)
    watch("measure")
    facts = {f"{name}_in": came[name] for name in ("faces", "parts", "watertight")}
    facts |= {f"{name}_out": went[name] for name in ("faces", "parts", "watertight")}
    facts |= {"volume": went["volume"], "euler": went["euler"]}
    facts |= {"distance_mean": float(distance.mean()), "distance_max": float(distance.max())}
    return V, F, facts | watch.seconds


def merge(V: np.ndarray, F: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One vertex for each place (to 1e-7 of the box), without degenerate faces and unused vertices."""
    grid = np.round(V * 1e7).astype(np.int64)
    order = np.lexsort(grid.T)
    new = np.r_[True, (grid[order][1:] != grid[order][:-1]).any(1)]
    name = np.empty(len(V), np.int64)
    name[order] = np.cumsum(new) - 1
    V, F = V[order][new], name[F]
    a, b, c = V[F].swapaxes(0, 1)
    F = F[np.linalg.norm(np.cross(b - a, c - a), axis=1) > 1e-16]
    if not len(F):
        raise ValueError("no face of this mesh has an area; is it a point cloud or a set of lines? Wanted: triangles")
    used = np.unique(F)
    return V[used], np.searchsorted(used, F)


def topology(V: np.ndarray, F: np.ndarray) -> dict:
    """Counts that need no distance: faces, parts, Euler number, whether closed and consistently wound, volume."""
    n = len(V)
    a, b = F.ravel(), np.roll(F, -1, axis=1).ravel()
    there, back = np.sort(a * n + b), np.sort(b * n + a)
    parts, _ = connected_components(coo_array((np.ones(len(a), bool), (a, b)), shape=(n, n)), directed=False)
    edges = len(field.unique(np.minimum(a, b) * n + np.maximum(a, b)))
    corners = V[F]
    return {
        "faces": len(F),
        "parts": int(parts),
        "euler": n - edges + len(F),
        "watertight": bool((there == back).all() and (np.diff(there) > 0).all()),
        "volume": float(np.einsum("ij,ij->", corners[:, 0], np.cross(corners[:, 1], corners[:, 2])) / 6),
    }


class Watch:
    """Seconds between calls, under the names given."""

    def __init__(self):
        self.seconds, self.last = {}, time.perf_counter()

    def __call__(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[f"seconds_{name}"], self.last = round(now - self.last, 3), now
