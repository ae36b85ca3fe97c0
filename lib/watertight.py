"""Close a mesh, so that inside and outside are defined: on the source where it is thick, walls where it is thin."""

import itertools
import time
from collections.abc import Iterator
from typing import Literal, NamedTuple, get_args

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from lib import contour, field, mesh, winding

NEIGHBOURS = np.array([o for o in itertools.product((-1, 0, 1), repeat=3) if any(o)])  # (26, 3)
NEIGHBOURS = NEIGHBOURS[np.argsort(np.abs(NEIGHBOURS).sum(1), kind="stable")]  # the nearest first
SHIFT = np.array([0.4142, 0.7321, 0.2361])  # of the grid, in cells: the faces of many meshes lie in round planes
Holes, Remesh = Literal["close", "wall"], Literal["auto", "always"]
TILT = np.radians(35)  # of the rays that look for a body behind an edge: an edge of 60 degrees is no thin part
PASSED_ON = {"remeshed": False, "two_sided": 0.0, "thin": 0.0, "caps": 0, "turned": 0}
PASSED_ON |= {"hollow": False, "on_source": 1.0, "missed": 0.0}  # facts of a mesh that needs no remaking
FAR = 2.0  # reach of the band in cells: a wall (eps, 0.95 cell) and one edge


def watertight(item, resolution: int = 256, holes: Holes = "close", remesh: Remesh = "auto") -> dict:
    """Read an item's mesh, normalise it, close it, write it; returns the facts."""
    V, F = mesh.read(item.source)
    V, center, scale = mesh.normalise(V)
    V, F, facts = close(V, F, resolution, holes, remesh)
    item.link_original()
    with item.writing("_normalized.obj") as path:
        mesh.write(path, V, F)
    return {"center": [float(c) for c in center], "scale": float(scale), **facts}


def close(
    V: np.ndarray,
    F: np.ndarray,
    resolution: int = 256,
    holes: Holes = "close",
    remesh: Remesh = "auto",
) -> tuple[np.ndarray, np.ndarray, dict]:
    """A closed, manifold, outward mesh of a normalised one; flipped faces, holes and overlaps do not matter."""
    wanted = get_args(Holes), get_args(Remesh)
    if holes not in wanted[0] or remesh not in wanted[1]:
        raise ValueError(f"holes is {holes!r} and remesh {remesh!r}; wanted one of {wanted[0]} and one of {wanted[1]}")
    watch = Watch()
    V, F = merge(V, F)
    came = {f"{name}_in": value for name, value in topology(V, F).items() if name in ("faces", "parts", "watertight")}
    if remesh == "auto" and came["watertight_in"] and is_solid(V, F):
        watch("prepare")
        facts = PASSED_ON | judge(field.prepare(V, F), V, F, resolution)
    else:
        V, F, facts = remake(V, F, resolution, holes, watch)
    return V, F, came | facts | watch.seconds


def remake(V: np.ndarray, F: np.ndarray, resolution: int, holes: str, watch: "Watch"):
    """The surface made anew, from the signs of the corners of a sparse grid: V, F and facts."""
    h, eps = field.spacing(resolution), 2 / resolution
    shift = SHIFT * h
    V = V + shift
    surface = field.prepare(V, F)
    watch("prepare")
    grid = Grid(surface, resolution, field.band(surface, resolution, FAR * h))
    watch("band")

    # Step 1: who is outside. A flood that stays eps off the source, then back to the source by sight.
    flooded = field.flood(grid.band.keys[grid.band.distance <= eps])
    outside = push_back(grid, flooded, eps)
    watch("outside")

    # Step 2: how far off the source the surface must lie where the source is thin.
    offset = walls(grid, outside, flooded, eps)
    near = outside & (grid.band.distance < h)
    two_sided, is_thin = (float((offset[near] > least).mean()) for least in (0.99 * eps, 0))
    watch("walls")

    # Step 3: solids with a large hole are closed, which turns their inside from outside to inside.
    pieces = winding.holed_solids(V, F, 1.5 * h) if holes == "close" and two_sided > 0.005 else []
    number = None
    if pieces:
        thin_keys = grid.band.keys[offset > 0]
        grid, outside, filled, number = fill(grid, outside, flooded, V, pieces)
        flooded = field.flood(grid.band.keys[~outside])
        offset = walls(grid, outside, flooded, eps, field.find(thin_keys, grid.band.keys) >= 0)
        offset[touches(grid, filled, offset > 0)] = 0  # the rim of a hole is no sheet any more
    watch("holes")

    # Step 4: the field, its signs repaired so that what they bound is manifold, and the surface.
    values, wall = signed(grid, outside, offset, eps, number)
    keys, values, turned = contour.repair(grid.band.keys, values)
    watch("repair")
    wall = field.find(grid.band.keys[wall], keys) >= 0
    V_new, F_new, moved = contour.dual(surface, keys, values, wall, resolution)
    watch("extract")

    # Step 5: how good it is, where the source is seen from outside.
    P, N, _ = winding.sample(V, F, winding.SAMPLES)
    seen = np.logical_or(*(sees_outside(grid, outside, flooded, P + side * 0.1 * h * N) for side in (1, -1)))
    facts = {"remeshed": True, "two_sided": two_sided, "thin": is_thin, "caps": len(pieces), "turned": turned}
    facts |= {"hollow": False, "on_source": float(moved.mean()), "missed": 0.0}
    facts |= judge(surface, V_new, F_new, resolution, P[seen])
    facts["hollow"] = bool(facts["volume"] < 1.1 * facts["area"] * eps)  # all wall
    watch("measure")
    return V_new - shift, F_new, facts


class Grid(NamedTuple):
    """What every step below asks."""

    surface: field.Surface
    resolution: int
    band: field.Band

    def at(self, index: np.ndarray) -> np.ndarray:
        """Where corners of the band lie."""
        return field.position(field.unpack(self.band.keys[index]), self.resolution)

    def look(self, keys, outside, flooded) -> tuple[np.ndarray, np.ndarray]:
        """For any corners: whether they are outside, and a radius without faces about them."""
        near = field.find(self.band.keys, keys)
        far = FAR * field.spacing(self.resolution)
        return np.where(near >= 0, outside[near], flooded(keys)), np.where(near >= 0, self.band.distance[near], far)


# -- which corners are outside ----------------------------------------------------------------------------------------


def push_back(grid, flooded, eps, rounds=2) -> np.ndarray:
    """Outside up to the source: a corner within eps of it joins when it sees a neighbour that is outside.

    No orientation is asked, so flipped faces do not matter. Two rounds, so that nothing leaks through small holes.
    """
    band, h = grid.band, field.spacing(grid.resolution)
    outside = flooded(band.keys)
    for _ in range(rounds):
        before = outside.copy()
        todo = np.flatnonzero(~outside & (band.distance <= eps) & (band.distance > 1e-3 * h))
        for step in NEIGHBOURS:
            is_out, radius = grid.look(band.keys[todo] + step @ field.STEPS, before, flooded)
            one, radius = todo[is_out], radius[is_out]
            sees = band.distance[one] + radius > 1.0001 * np.linalg.norm(step) * h  # two free balls that overlap
            O = grid.at(one[~sees])
            sees[~sees] = field.hits(grid.surface, O, np.broadcast_to(step * h, O.shape))[0] > 1
            outside[one[sees]] = True
            todo = todo[~outside[todo]]
    return outside


def sees_outside(grid, outside, flooded, X) -> np.ndarray:
    """Whether each point (n, 3) sees a corner of its cell that is outside."""
    ijk = np.floor((X + field.BOX) / field.spacing(grid.resolution)).astype(np.int64)
    seen = np.zeros(len(X), bool)
    for step in field.OFFSETS:
        todo = np.flatnonzero(~seen)
        is_out, radius = grid.look(field.pack(ijk[todo] + step), outside, flooded)
        todo, radius = todo[is_out], radius[is_out]
        O = field.position(ijk[todo] + step, grid.resolution)
        D = X[todo] - O
        sees = radius > np.linalg.norm(D, axis=1)
        sees[~sees] = field.hits(grid.surface, O[~sees], D[~sees])[0] > 1 - 1e-3  # points may lie on the surface
        seen[todo[sees]] = True
    return seen


# -- walls ------------------------------------------------------------------------------------------------------------


def walls(grid, outside, flooded, eps, where=True) -> np.ndarray:
    """How far off the source the surface must lie near each outside corner, so that what is thin has a thickness.

    0 where the solid is thicker than 2 eps, eps at an open sheet, in between for thin parts.
    """
    band, h = grid.band, field.spacing(grid.resolution)
    offset = np.zeros(len(band.keys))
    at = np.flatnonzero(where & outside & (band.distance < 2 * h) & (band.distance > 1e-3 * h))
    Q = band.point[at]
    U = (Q - grid.at(at)) / band.distance[at][:, None]

    def inside(depth):
        """Of the corner nearest to the point that lies so deep: whether it is inside, and far from all faces."""
        key = field.pack(np.round((Q + U * depth + field.BOX) / h).astype(np.int64))
        is_out, radius = grid.look(key, outside, flooded)
        return ~is_out, ~is_out & (radius >= eps)

    thick = inside(0.75 * h)[0] & (inside(1.5 * h)[1] | inside(2.2 * h)[1])  # most are, and need no ray
    at, Q, U = at[~thick], Q[~thick], U[~thick]
    found = thin(grid, outside, flooded, Q, U, eps)
    at, Q, U, found = at[found > 0], Q[found > 0], U[found > 0], found[found > 0]
    offset[at] = found
    # Near an edge tilted rays may find a body behind it, which would get a bump otherwise.
    edges = contour.borders(grid.surface.V, grid.surface.F)
    near = field.nearest(grid.surface.V, edges, Q)[0] < 1.2 * h
    at, Q, U, found = at[near], Q[near], U[near], found[near]
    side = np.cross(U, np.eye(3)[np.abs(U).argmin(1)])
    side /= np.linalg.norm(side, axis=1, keepdims=True)
    other = np.cross(U, side)
    for turn in np.radians(np.arange(0, 360, 60)):
        left = np.flatnonzero(found > 0)
        tilted = np.cos(TILT) * U[left] + np.sin(TILT) * (np.cos(turn) * side[left] + np.sin(turn) * other[left])
        found[left] = np.minimum(found[left], thin(grid, outside, flooded, Q[left], tilted, eps, np.cos(TILT)))
    offset[at] = found
    return offset


def thin(grid, outside, flooded, Q, U, eps, slant=1.0) -> np.ndarray:
    """eps - t / 2 where the solid at Q has a thickness t < 2 eps with outside behind it, else 0; U is slanted to it."""
    h = field.spacing(grid.resolution)
    offset, t = np.zeros(len(Q)), np.zeros(len(Q))
    todo = np.arange(len(Q))
    for _ in range(6):  # layers; between close ones no corner may be in sight
        t[todo] += 1e-3 * h
        gap = field.hits(grid.surface, Q[todo] + U[todo] * t[todo, None], U[todo])[0]
        X = Q[todo] + U[todo] * (t[todo] + np.minimum(gap / 2, 0.75 * h))[:, None]
        sees = sees_outside(grid, outside, flooded, X)
        offset[todo[sees]] = np.maximum(eps - slant * t[todo[sees]] / 2, 0)
        t[todo] += gap
        todo = todo[~sees & (slant * t[todo] < 2 * eps)]
    return offset


# -- holes ------------------------------------------------------------------------------------------------------------


def fill(grid, outside, flooded, V, pieces) -> tuple[Grid, np.ndarray, np.ndarray, np.ndarray]:
    """Turn inside what lies in a holed solid by its winding number; the band grows by the corners about the caps.

    The grid, who is outside, who was turned inside, and for the corners of caps the winding number, else nan.
    """
    band, h = grid.band, field.spacing(grid.resolution)
    level, caps = np.zeros(len(band.keys)), []
    for F in pieces:  # one by one: outside, the small numbers of many pieces add up
        keys, number = winding.band(V, F, grid.resolution)
        caps.append((keys, number))
        P = grid.at(slice(None))
        low, high = V[F].min((0, 1)), V[F].max((0, 1))
        at = np.flatnonzero(((low < P) & (high > P)).all(1))
        known = field.find(keys, band.keys[at])
        here = np.zeros(len(at))
        here[known >= 0] = number[known[known >= 0]]
        here[known < 0] = winding.number_at(V, F, P[at[known < 0]])
        level[at] = np.maximum(level[at], here)
    keys, number = (np.concatenate(x) for x in zip(*caps, strict=True))
    order = np.lexsort([-number, keys])
    keys, number = keys[order], number[order]
    new = np.r_[True, keys[1:] != keys[:-1]] & (field.find(band.keys, keys) < 0) & flooded(keys)
    at, count = np.searchsorted(band.keys, keys[new]), new.sum()
    band = field.Band(
        np.insert(band.keys, at, keys[new]),
        np.insert(band.distance, at, np.full(count, FAR * h)),
        np.insert(band.face, at, -1),
        np.insert(band.point, at, np.nan, axis=0),
    )
    level, outside = np.insert(level, at, number[new]), np.insert(outside, at, True)
    cap = np.insert(np.full(len(level) - count, np.nan), at, number[new])
    filled = outside & (level > 0.5)
    return Grid(grid.surface, grid.resolution, band), outside & ~filled, filled, cap


def touches(grid, marked, which) -> np.ndarray:
    """Corners of the band (indices), of those asked for, whose closest point lies in a cell with a marked corner."""
    at = np.flatnonzero(which)
    ijk = np.floor((grid.band.point[at] + field.BOX) / field.spacing(grid.resolution)).astype(np.int64)
    near = field.find(grid.band.keys[marked], field.pack(ijk)[:, None] + field.OFFSETS @ field.STEPS)
    return at[(near >= 0).any(1)]


# -- the field --------------------------------------------------------------------------------------------------------


def signed(grid, outside, offset, eps, number=None) -> tuple[np.ndarray, np.ndarray]:
    """The field, positive inside, and the corners where a wall has a part in it.

    Off the source it is the union of balls about closest points, which joins sheets to solids without a notch.
    """
    band, h = grid.band, field.spacing(grid.resolution)
    at = np.flatnonzero(offset > 0)
    balls = cover(grid, at, band.point[at], offset[at])
    for corner, center in leaks(grid, outside & (balls <= 0)):  # where the closest points near a sheet are of others
        balls = np.maximum(balls, cover(grid, corner, center, np.full(len(corner), eps)))
    more = np.where(outside, balls, 0)
    if len(at):
        more[~outside] = spread(grid, at, offset[at])[~outside]
    values = np.where(outside, np.maximum(-band.distance, balls), np.maximum(band.distance, 1e-9) + more)
    wall = np.where(outside, balls > -band.distance, more > 0)
    if number is not None:
        cap = np.isfinite(number)
        values[cap] = (number[cap] - 0.5) * 2 * h
        wall |= cap
    return values, wall


def cover(grid, corner, center, radius) -> np.ndarray:
    """How deep each corner of the band lies in balls; each is seen by the neighbours of the corner that has it."""
    depth = np.full(len(grid.band.keys), -np.inf)
    for step in [np.zeros(3, int), *NEIGHBOURS]:
        near = field.find(grid.band.keys, grid.band.keys[corner] + step @ field.STEPS)
        has = near >= 0
        far = np.linalg.norm(grid.at(near[has]) - center[has], axis=1)
        np.maximum.at(depth, near[has], radius[has] - far)
    return depth


def spread(grid, corner, value) -> np.ndarray:
    """The greatest value among each corner's neighbours and itself, 0 where they have none."""
    most = np.zeros(len(grid.band.keys))
    for step in [np.zeros(3, int), *NEIGHBOURS]:
        near = field.find(grid.band.keys, grid.band.keys[corner] + step @ field.STEPS)
        most[near[near >= 0]] = np.maximum(most[near[near >= 0]], value[near >= 0])
    return most


def leaks(grid, free) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Grid edges with two free ends that a sheet crosses: the ends, and where."""
    band, h = grid.band, field.spacing(grid.resolution)
    N = contour.face_normals(grid.surface.V, grid.surface.F)
    for axis, step in enumerate(field.STEPS):
        upper = field.find(band.keys, band.keys + step)
        lower = np.flatnonzero((upper >= 0) & free & free[upper])
        upper = upper[lower]
        close = band.distance[lower] + band.distance[upper] <= h
        lower, upper = lower[close], upper[close]
        P, D = grid.at(lower), np.zeros((len(lower), 3))
        D[:, axis] = h
        (there, one), (back, two) = field.hits(grid.surface, P, D), field.hits(grid.surface, P + D, -D)
        # Both ways the same place, and no convex edge of a solid.
        sheet = (np.abs(1 - there - back) < 0.1) & (np.abs((N[one] * N[two]).sum(1)) > 0.9)
        for end in (lower[sheet], upper[sheet]):
            yield end, P[sheet] + D[sheet] * there[sheet, None]


# -- meshes -----------------------------------------------------------------------------------------------------------


def merge(V: np.ndarray, F: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One vertex for each place (to 1e-7 of the box), without degenerate faces, second copies and unused vertices."""
    grid = np.round(V * 1e7).astype(np.int64)
    order = np.lexsort(grid.T)
    new = np.r_[True, (grid[order][1:] != grid[order][:-1]).any(1)]
    name = np.empty(len(V), np.int64)
    name[order] = np.cumsum(new) - 1
    V, F = V[order][new], name[F]
    a, b, c = V[F].swapaxes(0, 1)
    F = F[np.linalg.norm(np.cross(b - a, c - a), axis=1) > 1e-16]
    order = np.lexsort(np.sort(F, axis=1).T)
    corners = np.sort(F, axis=1)[order]
    F = F[np.sort(order[np.r_[True, (corners[1:] != corners[:-1]).any(1)][: len(F)]])]
    if not len(F):
        raise ValueError("no face of this mesh has an area; is it a point cloud or a set of lines? Wanted: triangles")
    used = np.unique(F)
    return V[used], np.searchsorted(used, F)


def topology(V: np.ndarray, F: np.ndarray) -> dict:
    """Counts that need no distance: faces, parts, Euler number, whether it is a closed oriented 2-manifold, volume."""
    n, m = len(V), len(F)
    a, b = F.ravel(), np.roll(F, -1, axis=1).ravel()
    there, back = a * n + b, b * n + a
    parts, _ = connected_components(coo_array((np.ones(len(a), bool), (a, b)), shape=(n, n)), directed=False)
    edges = len(field.unique(np.minimum(there, back)))
    order = np.argsort(there)
    closed = bool((there[order] == np.sort(back)).all() and (np.diff(there[order]) > 0).all())
    if closed:  # and one fan of faces around each vertex: from half-edge to half-edge about the vertex where they start
        across = order[np.searchsorted(there[order], back)]
        after = across + 1 - 3 * (across % 3 == 2)
        fans, _ = connected_components(
            coo_array((np.ones(3 * m, bool), (np.arange(3 * m), after)), shape=(3 * m, 3 * m))
        )
        closed = fans == n
    corners = V[F]
    return {
        "faces": m,
        "parts": int(parts),
        "euler": n - edges + m,
        "watertight": closed,
        "volume": float(np.einsum("ij,ij->", corners[:, 0], np.cross(corners[:, 1], corners[:, 2])) / 6),
    }


def is_solid(V: np.ndarray, F: np.ndarray) -> bool:
    """Whether a closed oriented mesh is one already: outward, no face through another, no shell inside another."""
    P, N, _ = winding.sample(V, F, winding.SAMPLES)
    P, N = np.r_[P, V[F].mean(1)], np.r_[N, contour.face_normals(V, F)]
    step = 1e-5
    simple = (np.abs(winding.number_at(V, F, P + step * N)) < 0.1) & (
        np.abs(winding.number_at(V, F, P - step * N) - 1) < 0.1
    )
    return bool(simple.all()) and not contour.intersections(field.prepare(V, F, rays_only=True)).any()


def judge(source, V: np.ndarray, F: np.ndarray, resolution: int, seen=None) -> dict:
    """What came out: counts, and how far it lies from the source, in cells; whether points seen on it were missed."""
    h, surface = field.spacing(resolution), field.prepare(V, F)
    facts = {f"{k}_out" if k in ("faces", "parts", "watertight") else k: v for k, v in topology(V, F).items()}
    facts["area"] = float(np.linalg.norm(np.cross(*(V[F[:, k]] - V[F[:, 0]] for k in (1, 2))), axis=1).sum() / 2)
    facts["self_intersections"] = float(contour.intersections(surface).mean())
    back = field.closest(source, winding.sample(V, F, 1 << 15)[0])[0] / h
    facts |= {"distance_mean": float(back.mean()), "distance_max": float(back.max())}
    if seen is not None and len(seen):
        facts["missed"] = float((field.closest(surface, seen)[0] > 2 * h).mean())  # slots too narrow for the grid
    return facts


class Watch:
    """Seconds between calls, under the names given."""

    def __init__(self):
        self.seconds, self.last = {}, time.perf_counter()

    def __call__(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[f"seconds_{name}"], self.last = round(now - self.last, 3), now
