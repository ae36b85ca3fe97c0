"""Close a mesh, so that inside and outside are defined: on the source where it is thick, walls where it is thin."""

from functools import partial
from typing import Literal, get_args

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from lib import caps, contour, field, manifold, mesh, nearest, outside, wall, winding
from lib.clock import Clock

VERSION = 12  # raised when the same parameters come to give other files
SHIFT = np.array([0.4142, 0.7321, 0.2361])  # of the grid, in cells: the faces of many meshes lie in round planes
Holes, Remesh = Literal["close", "wall"], Literal["auto", "always"]
PASSED_ON = {"remeshed": False, "two_sided": 0.0, "thin": 0.0, "caps": 0, "turned": 0}
PASSED_ON |= {"on_source": 1.0, "missed": 0.0}  # facts of a mesh that needs no remaking


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
    clock = Clock()
    V, F = merge(V, F)
    came = {f"{name}_in": value for name, value in topology(V, F).items() if name in ("faces", "parts", "watertight")}
    if remesh == "auto" and came["watertight_in"] and is_solid(V, F):
        clock("prepare")
        facts = PASSED_ON | judge(field.prepare(V, F), V, F, resolution)
    else:
        V, F, facts = remake(V, F, resolution, holes, clock)
    if not facts["watertight_out"]:
        raise RuntimeError("what was closed came out open or no 2-manifold, a bug of 01's: keep the mesh and report it")
    facts["hollow"] = bool(facts["volume"] < 1.1 * facts["area"] * 2 / resolution)  # all wall
    return V, F, came | facts | clock.seconds


def remake(V: np.ndarray, F: np.ndarray, resolution: int, holes: str, clock: Clock):
    """The surface made anew, from the signs of the corners of a sparse grid: V, F and facts."""
    h, eps = field.spacing(resolution), 2 / resolution
    shift = SHIFT * h
    V = V + shift
    surface = field.prepare(V, F, search=nearest.search)
    clock("prepare")
    grid = outside.band(surface, resolution)
    clock("band")

    # Step 1: who is outside. A flood that stays eps off the source, then back to the source by sight.
    out = outside.push_back(grid)
    clock("outside")

    # Step 2: how far off the source the surface must lie where the source is thin.
    offset = wall.offsets(grid, out)
    two_sided, is_thin = (float((offset[out] > least).mean()) if out.any() else 0.0 for least in (0.99 * eps, 0))
    clock("walls")

    # Step 3: solids with a large hole are closed, which turns their inside from outside to inside.
    pieces = winding.holed_solids(V, F, 1.5 * h) if holes == "close" and two_sided > 0.005 else []
    cap, closed = None, 0
    if pieces:
        grid, out, offset, cap, closed = caps.fill(grid, out, offset, V, pieces)
    if closed:
        offset = np.minimum(offset, wall.offsets(grid, out, offset > 0))
    clock("holes")

    # Step 4: the field, its signs repaired so that what they bound is manifold, and the surface.
    grid, out, offset, cap = wall.widen(grid, out, offset, cap)
    keys, values, walled, loose = wall.signed(grid, out, offset, cap)
    walled = keys[walled]
    keys, values, turned = manifold.repair(keys, values, grid.flood, loose, partial(outside.cuts, grid))
    clock("repair")
    walled = field.find(walled, keys) >= 0
    P, N, _ = winding.sample(V, F, winding.SAMPLES)
    P = P[np.logical_or(*(outside.sees(grid, out, P + side * 0.1 * h * N) for side in (1, -1)))]
    del grid, out, offset, cap  # gigabytes at 1024
    V_new, F_new, moved = contour.dual(surface, keys, values, walled, resolution)
    del keys, values, walled
    clock("extract")

    # Step 5: how good it is, where the source is seen from outside.
    facts = {"remeshed": True, "two_sided": two_sided, "thin": is_thin, "caps": closed, "turned": turned}
    facts |= {"on_source": float(moved.mean()), "missed": 0.0}
    facts |= judge(surface, V_new, F_new, resolution, P)
    clock("measure")
    return V_new - shift, F_new, facts


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
    a, b = F.ravel(), np.roll(F, -1, axis=1).ravel()  # where each half-edge starts and ends
    across = opposites(a, b, n)
    closed = len(across) > 0
    edges = len(across) // 2 if closed else len(field.unique(np.minimum(a, b) * n + np.maximum(a, b)))
    once = a < b if closed else slice(None)
    parts = groups(a[once], b[once], n)
    if closed:  # and one fan of faces around each vertex: from half-edge to half-edge about the vertex where they start
        closed = cycles(np.where(across % 3 == 2, across - 2, across + 1)) == n
    volume = 0.0
    for part in field.parts(m):
        A, B, C = V[F[part]].swapaxes(0, 1)
        volume += float(np.einsum("ij,ij->", A, np.cross(B, C)) / 6)
    return {"faces": m, "parts": parts, "euler": n - edges + m, "watertight": closed, "volume": volume}


def opposites(a: np.ndarray, b: np.ndarray, n: int) -> np.ndarray:
    """For each half-edge from a to b the one that runs the other way; empty if one has none, or more than one."""
    edge = np.minimum(a, b) * n + np.maximum(a, b)
    order = np.argsort(edge)
    edge = edge[order]
    one, two = order[::2], order[1::2]
    pairs = len(edge) % 2 == 0 and (edge[::2] == edge[1::2]).all() and (edge[1:-1:2] != edge[2::2]).all()
    if not pairs or (a[one] != b[two]).any():
        return np.zeros(0, np.int32)
    across = np.empty(len(edge), np.int32)
    across[one], across[two] = two, one
    return across


def groups(a: np.ndarray, b: np.ndarray, count: int) -> int:
    """How many groups so many things come to if each a is joined to its b."""
    pairs = a.astype(np.int32), b.astype(np.int32)
    graph = coo_array((np.ones(len(a), bool), pairs), shape=(count, count))
    return int(connected_components(graph, directed=False)[0])


def cycles(after: np.ndarray) -> int:
    """How many cycles a permutation has: each takes the least of its numbers, looking twice as far every time."""
    least = own = np.arange(len(after), dtype=after.dtype)
    while ((further := np.minimum(least, least[after])) != least).any():
        least, after = further, after[after]
    return int((least == own).sum())


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
    h, surface = field.spacing(resolution), field.prepare(V, F, rays_only=True)
    facts = {f"{k}_out" if k in ("faces", "parts", "watertight") else k: v for k, v in topology(V, F).items()}
    facts["area"] = float(winding.areas(V, F).sum())
    facts["self_intersections"] = float(contour.intersections(surface).mean())
    back = field.closest(source, winding.sample(V, F, 1 << 15)[0])[0] / h
    facts |= {"distance_mean": float(back.mean()), "distance_max": float(back.max())}
    if seen is not None and len(seen):  # slots too narrow for the grid
        facts["missed"] = float(beyond(V, F, seen, 2 * h).mean())
    return facts


def beyond(V: np.ndarray, F: np.ndarray, P: np.ndarray, reach: float) -> np.ndarray:
    """Whether each point is farther than that from a mesh whose faces are small; most have a vertex within reach."""
    far = cKDTree(V, balanced_tree=False, compact_nodes=False).query(P, distance_upper_bound=reach)[0] > reach
    if far.any():
        faces = (F[part] for part in field.parts(len(F)))
        longest = max(np.linalg.norm(V[some] - V[np.roll(some, 1, 1)], axis=2).max() for some in faces)
        near = cKDTree(P[far]).query(V, distance_upper_bound=reach + longest)[0] <= reach + longest
        some = F[near[F].any(1)]
        far[far] = field.closest(field.prepare(V, some), P[far])[0] > reach if len(some) else True
    return far
