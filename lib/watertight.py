"""Close a mesh, so that inside and outside are defined: on the source where it is thick, walls where it is thin."""

import itertools
import time

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from lib import contour, field, mesh

NEIGHBOURS = np.array([o for o in itertools.product((-1, 0, 1), repeat=3) if any(o)])  # (26, 3)
NEIGHBOURS = NEIGHBOURS[np.argsort(np.abs(NEIGHBOURS).sum(1), kind="stable")]  # the nearest first
SHIFT = np.array([0.4142, 0.7321, 0.2361])  # of the grid, in cells: the faces of many meshes lie in round planes
TILT = 35
FAR = 2.2  # reach of the band in cells: eps (0.95 cell) and one edge


def watertight(item, resolution: int = 256, holes: str = "close", remesh: str = "auto") -> dict:
    """Read an item's mesh, normalise it, close it, write it; returns the facts."""
    V, F = mesh.read(item.source)
    V, center, scale = mesh.normalise(V)
    V, F, facts = close(V, F, resolution, holes, remesh)
    with item.writing("_normalized.obj") as path:
        mesh.write(path, V, F)
    return {"center": [float(c) for c in center], "scale": float(scale), **facts}


def close(
    V: np.ndarray,
    F: np.ndarray,
    resolution: int = 256,
    holes: str = "close",
    remesh: str = "auto",
) -> tuple[np.ndarray, np.ndarray, dict]:
    """A closed, manifold, outward mesh of a normalised one; flipped faces, holes and overlaps do not matter."""
    watch = Watch()
    h, eps = field.spacing(resolution), 2 / resolution
    V, F = merge(V, F)
    came = topology(V, F)
    shift = SHIFT * h
    surface = field.prepare(V + shift, F)
    watch("prepare")

    band = field.band(surface, resolution, FAR * h)
    watch("band")
    flooded = field.flood(band.keys[band.distance <= eps])
    outside = push_back(surface, band, flooded, resolution, eps)
    watch("outside")
    offset = walls(surface, band, outside, flooded, resolution, eps)
    watch("walls")
    values, wall = signed(band, outside, offset, resolution)
    keys, values, turned = contour.repair(band.keys, values, flooded)
    watch("repair")
    wall = np.isin(keys, band.keys[wall])
    V, F, on_source = contour.dual(surface, keys, values, wall, resolution)
    watch("extract")

    distance = field.closest(surface, np.concatenate([V, V[F].mean(1)]))[0] / h
    pierced = contour.intersections(V, F)
    went = topology(V, F)
    near = outside & (band.distance < h)
    watch("measure")
    facts = {f"{name}_in": came[name] for name in ("faces", "parts", "watertight")}
    facts |= {f"{name}_out": went[name] for name in ("faces", "parts", "watertight")}
    facts |= {"volume": went["volume"], "euler": went["euler"]}
    facts |= {"distance_mean": float(distance.mean()), "distance_max": float(distance.max())}
    facts |= {"on_source": float(on_source.mean()), "two_sided": float((offset[near] > 0.99 * eps).mean()), "thin": float((offset[near] > 0).mean())}
    facts |= {"turned": turned, "self_intersections": float(pierced.mean())}
    return V - shift, F, facts | watch.seconds


# -- which corners are outside ----------------------------------------------------------------------------------------


def push_back(surface, band, flooded, resolution, eps, rounds=2) -> np.ndarray:
    """Outside up to the source: a corner within eps of it joins when it sees a neighbour that is outside.

    No orientation is asked, so flipped faces do not matter. Two rounds, so that nothing leaks through small holes.
    """
    h = field.spacing(resolution)
    outside = flooded(band.keys)
    for _ in range(rounds):
        before = outside.copy()
        todo = np.flatnonzero(~outside & (band.distance <= eps) & (band.distance > 1e-3 * h))
        for step in NEIGHBOURS:
            key = band.keys[todo] + step @ field.STEPS
            near = field.find(band.keys, key)
            is_out = np.where(near >= 0, before[near], flooded(key))
            todo_out, near = todo[is_out], near[is_out]
            room = band.distance[todo_out] + np.where(near >= 0, band.distance[near], FAR * h)
            sees = room > 1.0001 * np.linalg.norm(step) * h  # two free balls that overlap
            ask = todo_out[~sees]
            O = field.position(field.unpack(band.keys[ask]), resolution)
            sees[~sees] = field.hits(surface, O, np.broadcast_to(step * h, O.shape))[0] > 1
            outside[todo_out[sees]] = True
            todo = todo[~outside[todo]]
    return outside


def sees_outside(surface, band, outside, flooded, X, resolution) -> np.ndarray:
    """Whether each point (n, 3) sees a corner of its cell that is outside."""
    h = field.spacing(resolution)
    ijk = np.floor((X + field.BOX) / h).astype(np.int64)
    seen = np.zeros(len(X), bool)
    for step in field.OFFSETS:
        todo = np.flatnonzero(~seen)
        key = field.pack(ijk[todo] + step)
        near = field.find(band.keys, key)
        is_out = np.where(near >= 0, outside[near], flooded(key))
        todo, near = todo[is_out], near[is_out]
        D = field.position(ijk[todo] + step, resolution) - X[todo]
        sees = np.where(near >= 0, band.distance[near], FAR * h) > np.linalg.norm(D, axis=1)
        sees[~sees] = field.hits(surface, X[todo[~sees]], D[~sees])[0] > 1
        seen[todo[sees]] = True
    return seen


def walls(surface, band, outside, flooded, resolution, eps) -> np.ndarray:
    """How far off the source the surface must lie near each outside corner, so that what is thin has a thickness.

    0 where the solid is thicker than 2 eps, eps at an open sheet, in between for thin parts.
    """
    h = field.spacing(resolution)
    offset = np.zeros(len(band.keys))
    at = np.flatnonzero(outside & (band.distance < 2 * h) & (band.distance > 1e-3 * h))
    Q = band.point[at]
    U = (Q - field.position(field.unpack(band.keys[at]), resolution)) / band.distance[at][:, None]

    def depth(distance):
        """Which corners nearest to the points that lie so deep are inside, and which of them far from all faces."""
        key = field.pack(np.round((Q + U * distance + field.BOX) / h).astype(np.int64))
        near = field.find(band.keys, key)
        inside = np.where(near >= 0, ~outside[near], ~flooded(key))
        return inside, inside & np.where(near >= 0, band.distance[near] >= eps, True)

    thick = depth(0.75 * h)[0] & (depth(1.5 * h)[1] | depth(2.2 * h)[1])
    at, Q, U = at[~thick], Q[~thick], U[~thick]
    found = thin(surface, band, outside, flooded, Q, U, resolution, eps)
    at, Q, U, found = at[found > 0], Q[found > 0], U[found > 0], found[found > 0]
    # Tilted rays find the body behind a convex edge, which would get a bump otherwise.
    side = np.cross(U, np.eye(3)[np.abs(U).argmin(1)])
    side /= np.linalg.norm(side, axis=1, keepdims=True)
    other = np.cross(U, side)
    for turn in np.radians([0, 60, 120, 180, 240, 300]):
        tilted = np.cos(np.radians(TILT)) * U + np.sin(np.radians(TILT)) * (np.cos(turn) * side + np.sin(turn) * other)
        found = np.minimum(found, thin(surface, band, outside, flooded, Q, tilted, resolution, eps))
    offset[at] = found
    return offset


def thin(surface, band, outside, flooded, Q, U, resolution, eps) -> np.ndarray:
    """eps - t / 2 where the solid at Q along U has a thickness t < 2 eps with outside behind it, else 0."""
    h = field.spacing(resolution)
    offset, t = np.zeros(len(Q)), np.zeros(len(Q))
    todo = np.arange(len(Q))
    for _ in range(6):  # layers; between close ones no corner may be in sight
        t[todo] += 1e-3 * h
        gap = field.hits(surface, Q[todo] + U[todo] * t[todo, None], U[todo])[0]
        X = Q[todo] + U[todo] * (t[todo] + np.minimum(gap / 2, 0.75 * h))[:, None]
        sees = sees_outside(surface, band, outside, flooded, X, resolution)
        offset[todo[sees]] = np.maximum(eps - t[todo[sees]] / 2, 0)
        t[todo] += gap
        todo = todo[~sees & (t[todo] < 2 * eps)]
    return offset


def signed(band, outside, offset, resolution) -> tuple[np.ndarray, np.ndarray]:
    """The field, positive inside, and the corners where a wall has a part in it.

    Off the source it is the union of balls about closest points, which joins sheets to solids without a notch.
    """
    values = np.where(outside, -band.distance, np.maximum(band.distance, 1e-9))
    balls, most = np.full(len(values), -np.inf), np.zeros(len(values))
    at = np.flatnonzero(offset > 0)
    for step in [np.zeros(3, int), *NEIGHBOURS]:
        near = field.find(band.keys, band.keys[at] + step @ field.STEPS)
        one, near = at[near >= 0], near[near >= 0]
        P = field.position(field.unpack(band.keys[near]), resolution)
        balls[near] = np.maximum(balls[near], offset[one] - np.linalg.norm(P - band.point[one], axis=1))
        most[near] = np.maximum(most[near], offset[one])
    wall = np.where(outside, balls > values, most > 0)
    return np.where(outside, np.maximum(values, balls), values + most), wall


# -- meshes -----------------------------------------------------------------------------------------------------------

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
