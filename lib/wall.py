"""The field of a surface on its grid: the surface itself where it bounds a thick solid, walls where it is thin."""

from collections.abc import Iterator
from functools import partial

import numpy as np

from lib import contour, field, manifold, outside
from lib.outside import NEIGHBOURS, Grid

TILT = np.radians(35)  # of the rays that look for a body behind an edge: an edge of 60 degrees is no thin part

# -- how far off the source -------------------------------------------------------------------------------------------


def offsets(grid: Grid, out: np.ndarray, where=True) -> np.ndarray:
    """How far off the source the surface must lie near each outside corner, so that what is thin has a thickness.

    0 where the solid is thicker than 2 eps, eps at an open sheet, in between for thin parts.
    """
    band, h, eps = grid.band, field.spacing(grid.resolution), 2 / grid.resolution
    offset = np.zeros(len(band.keys))
    at = np.flatnonzero(where & out & (band.distance > 1e-3 * h) & (band.face >= 0))
    Q = band.point[at]
    U = (Q - grid.at(at)) / band.distance[at][:, None]

    thick = np.flatnonzero(~grid.look(grid.nearest(Q + U * 0.75 * h), out)[0])  # most are, and need no ray
    for depth in (1.5 * h, 2.2 * h):
        is_out, radius = grid.look(grid.nearest(Q[thick] + U[thick] * depth), out)
        deep = ~is_out & (radius >= eps)
        offset[at[thick[deep]]] = -1
        thick = thick[~deep]
    left = offset[at] == 0
    offset[at[~left]] = 0
    at, Q, U = at[left], Q[left], U[left]
    found = thin(grid, out, Q, U)
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
        body = [~grid.look(grid.nearest(Q[left] + tilted * depth), out)[0] for depth in (0.8 * h, 1.6 * h)]
        left, tilted = left[body[0] | body[1]], tilted[body[0] | body[1]]
        found[left] = np.minimum(found[left], thin(grid, out, Q[left], tilted, np.cos(TILT)))
    offset[at] = found
    return offset


def thin(grid: Grid, out, Q: np.ndarray, U: np.ndarray, slant: float = 1.0) -> np.ndarray:
    """eps - t / 2 where the solid at Q has a thickness t < 2 eps with outside behind it, else 0; U is slanted to it."""
    h, eps = field.spacing(grid.resolution), 2 / grid.resolution
    offset, t = np.zeros(len(Q)), np.zeros(len(Q))
    todo = np.arange(len(Q))
    for _ in range(6):  # layers; between close ones no corner may be in sight
        t[todo] += 1e-3 * h
        gap = field.hits(grid.surface, Q[todo] + U[todo] * t[todo, None], U[todo], 3 * h)[0]
        X = Q[todo] + U[todo] * (t[todo] + np.minimum(gap / 2, 0.75 * h))[:, None]
        seen = outside.sees(grid, out, X)
        offset[todo[seen]] = np.maximum(eps - slant * t[todo[seen]] / 2, 0)
        t[todo] += gap
        todo = todo[~seen & (slant * t[todo] < 2 * eps)]
    return offset


# -- the field --------------------------------------------------------------------------------------------------------


def signed(grid: Grid, out, offset, cap=None) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Sorted keys, the field there, positive inside, the corners where a wall or a cap has a part in it, and those
    that manifold.repair may turn outside: it knows how far from the source they are.

    The grid is a widened one. Off the source the field is the union of balls about closest points, which joins sheets
    to solids without a notch.
    """
    band, h, eps = grid.band, field.spacing(grid.resolution), 2 / grid.resolution
    at = np.flatnonzero(offset > 0)
    balls = cover(grid, at, band.point[at], offset[at])
    for corner, center in leaks(grid, out & (balls <= 0)):  # where the closest points near a sheet are of others
        balls = np.maximum(balls, cover(grid, corner, center, np.full(len(corner), eps)))
    more = np.where(out, balls, 0)
    if len(at):
        more[~out] = spread(grid, at, offset[at])[~out]
    values = np.where(out, np.maximum(-band.distance, balls), np.maximum(band.distance, 1e-9) + more)
    wall = np.where(out, balls > -band.distance, more > 0)
    if cap is not None:
        capped = np.flatnonzero(np.isfinite(cap))
        values[capped], wall[capped] = (cap[capped] - 0.5) * 2 * h, True
    # Where a ball comes by between walls that fill a slit, they leave it a way.
    way = grid.beside[values[grid.beside] > 0]
    if len(way):
        way = way[~manifold.opens(band.keys, values <= 0, way, partial(outside.cuts, grid), grid.places)]
        values[way] = -0.3 * h
    # A crossed edge with one end only would be a hole: at a wall's far side, a cap's rim, a sealed room's window.
    ends = []
    for step in NEIGHBOURS[:6] @ field.STEPS:
        place = grid.places(band.keys + step)
        across = (place < 0) & ((values > 0) == (place == field.FREE))
        ends.append(band.keys[across] + step)
    ends = field.unique(np.concatenate(ends))
    keys, values = np.r_[band.keys, ends], np.r_[values, np.where(grid.places(ends) == field.FREE, -h, h)]
    order = np.argsort(keys, kind="stable")
    loose = np.r_[band.distance > 1e-3 * h, np.zeros(len(ends), bool)]
    return keys[order], values[order], np.r_[wall, np.ones(len(ends), bool)][order], loose[order]


def widen(grid: Grid, out, offset, cap=None) -> tuple:
    """The band wherever a wall's surface may cross an edge: a wall is eps thick on each side, and an edge one cell.

    The grid, and with its new corners who is outside, the offsets and, if there are caps, their winding numbers.
    """
    around = field.unique(grid.band.keys[offset > 0][:, None] + NEIGHBOURS[:6] @ field.STEPS)
    keys = around[grid.places(around) == field.FREE]
    X = field.position(field.unpack(keys), grid.resolution)
    distance, face, point = field.closest(grid.surface, X)
    # The wall that it looks at: that of the corner a step towards its closest point.
    toward = grid.places(grid.nearest(X + (point - X) * (field.spacing(grid.resolution) / distance)[:, None]))
    offset, out = np.r_[offset, np.r_[offset, 0, 0][toward]], np.r_[out, np.ones(len(keys), bool)]
    cap = None if cap is None else np.r_[cap, np.full(len(keys), np.nan)]
    return outside.grow(grid, keys, (distance, face, point)), out, offset, cap


def cover(grid: Grid, corner: np.ndarray, center: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """How deep each corner of the band lies in balls; each is seen by the neighbours of the corner that has it."""
    depth = np.full(len(grid.band.keys), -np.inf)
    for step in [np.zeros(3, int), *NEIGHBOURS]:
        near = grid.places(grid.band.keys[corner] + step @ field.STEPS)
        has = near >= 0
        far = np.linalg.norm(grid.at(near[has]) - center[has], axis=1)
        depth[near[has]] = np.maximum(depth[near[has]], radius[has] - far)  # no two corners have this neighbour
    return depth


def spread(grid: Grid, corner: np.ndarray, value: np.ndarray) -> np.ndarray:
    """The greatest value among each corner's neighbours and itself, 0 where they have none."""
    most = np.zeros(len(grid.band.keys))
    for step in [np.zeros(3, int), *NEIGHBOURS]:
        near = grid.places(grid.band.keys[corner] + step @ field.STEPS)
        most[near[near >= 0]] = np.maximum(most[near[near >= 0]], value[near >= 0])
    return most


def leaks(grid: Grid, free: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Grid edges with two free ends that a sheet crosses: the ends, and where."""
    band, h = grid.band, field.spacing(grid.resolution)
    N = contour.face_normals(grid.surface.V, grid.surface.F)
    for axis, step in enumerate(field.STEPS):
        upper = grid.places(band.keys + step)
        lower = np.flatnonzero((upper >= 0) & free & np.r_[free, False, False][upper])
        upper = upper[lower]
        close = outside.apart(band.distance[lower], band.distance[upper], h)
        lower, upper = lower[close], upper[close]
        P, D = grid.at(lower), np.zeros((len(lower), 3))
        D[:, axis] = h
        (there, one), (back, two) = (field.hits(grid.surface, *ray, 1) for ray in ((P, D), (P + D, -D)))
        # Both ways the same place, and two sides of one sheet: where it cuts a sliver off a round solid, the edge runs
        # along the faces more than they differ.
        bend = np.linalg.norm(np.cross(N[one], N[two]), axis=1)
        sheet = (np.abs(1 - there - back) < 0.1) & (bend < 0.43) & (np.minimum(*np.abs(N[[one, two], axis])) >= bend)
        for end in (lower[sheet], upper[sheet]):
            yield end, P[sheet] + D[sheet] * there[sheet, None]
