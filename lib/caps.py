"""Solids with a hole: close it where a robust sign says so and this spares walls twice as large as its cap."""

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from lib import field, manifold, winding
from lib.outside import NEIGHBOURS, Grid, cuts, gridded, grow

SMALL = 8**2  # squares of cells: a hollow of fewer is hardly wider than the walls that it would be left with


def fill(grid: Grid, outside: np.ndarray, offset: np.ndarray, V: np.ndarray, pieces: list) -> tuple:
    """Turn inside what lies in a holed solid by its winding number, where that is worth its cap.

    The grid, with a band that has grown by the corners about the caps, who is outside, the offset of each corner, for
    the corners of caps the winding number, else nan, and how many hollows were closed.
    """
    band, h, old = grid.band, field.spacing(grid.resolution), len(grid.band.keys)
    level, keys, number = numbers(grid, outside, V, pieces)
    places, seals = grid.places.add(keys, old), windows(grid, band.keys[outside])
    out, thin = np.r_[outside, np.ones(len(keys), bool)], np.r_[offset > 0, np.zeros(len(keys), bool)]
    filled = out & (np.r_[level, number] > 0.5)
    filled, count = worthwhile(grid, np.r_[band.keys, keys], places, seals, out, filled, thin)
    if not count:
        return grid, outside, offset, None, 0

    needed = filled[old:].copy()  # of the new corners: those in a cell with one that is filled
    for step in NEIGHBOURS @ field.STEPS:
        needed |= np.r_[filled, False, False][places(keys + step)]
    keys, number = keys[needed], number[needed]
    needed = np.r_[np.ones(old, bool), needed]
    filled, outside = filled[needed], (out & ~filled)[needed]
    offset, cap = np.r_[offset, np.zeros(len(keys))], np.r_[np.full(old, np.nan), number]
    del level, places, out, thin, needed  # gigabytes at 1024
    grid = grow(grid, keys, (np.full(len(keys), h), np.full(len(keys), -1), np.full((len(keys), 3), np.nan)))
    offset[touches(grid, filled, offset > 0)] = 0  # the rim of a hole is no sheet any more

    order = np.argsort(grid.band.keys)
    beside = np.flatnonzero(np.isin(order, grid.beside[outside[grid.beside]]))
    surface, resolution, band = grid.surface, grid.resolution, field.Band(*(x[order] for x in grid.band))
    outside, offset, cap = outside[order], offset[order], cap[order]
    del grid, filled, order
    flood = field.flood(np.sort(np.r_[band.keys[~outside], seals]))
    return gridded(surface, resolution, band, flood, beside), outside, offset, cap, count


def numbers(grid: Grid, outside: np.ndarray, V: np.ndarray, pieces: list) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The greatest winding number that a piece has at each corner of the band that is outside, else 0; then the same
    for FREE corners, of the cells that caps cross: their keys, and their numbers."""
    band, h = grid.band, field.spacing(grid.resolution)
    level, caps = np.zeros(len(band.keys)), []
    P = grid.at(slice(None))
    for F in pieces:  # one by one: outside, the small numbers of many pieces add up
        low, high = V[F].min((0, 1)), V[F].max((0, 1))
        keys, number = winding.band(V, F, grid.resolution, lambda keys: grid.look(keys, outside)[0])
        X = field.position(field.unpack(keys), grid.resolution)
        number = ended(number, np.minimum(X - low, high - X).min(1) / h)
        at = np.flatnonzero(outside & ((low < P) & (high > P)).all(1))
        known = field.find(keys, band.keys[at])
        here = np.zeros(len(at))
        here[known >= 0] = number[known[known >= 0]]
        here[known < 0] = winding.number_at(V, F, P[at[known < 0]])
        level[at] = np.maximum(level[at], here)
        ends = field.unique(manifold.crossed_cells(keys, number - 0.5)[:, None] + field.OFFSETS @ field.STEPS)
        new = field.find(ends, keys) >= 0
        new[new] = grid.places(keys[new]) == field.FREE
        caps.append((keys[new], number[new]))
    keys, number = (np.concatenate(x) for x in zip(*caps, strict=True))
    order = np.lexsort([-number, keys])
    keys, number = keys[order], number[order]
    first = np.r_[True, keys[1:] != keys[:-1]][: len(keys)]
    return level, keys[first], number[first]


def windows(grid: Grid, outside: np.ndarray) -> np.ndarray:
    """ENCLOSED corners next to outside ones (keys), in windows too narrow for a ball: no flood may come through."""
    near = (outside + step for step in NEIGHBOURS[:6] @ field.STEPS)
    return field.unique(np.concatenate([keys[grid.places(keys) == field.ENCLOSED] for keys in near]))


def worthwhile(grid: Grid, keys, places: field.Places, seals, outside, filled, thin) -> tuple[np.ndarray, int]:
    """Of corners that would be filled those of hollows where this saves twice as much wall as their caps are large, and
    how many such hollows there are.

    A pit has little wall, and so has a bath tub: what would close them is but a lid.
    """
    at = np.flatnonzero(filled)
    hollow, crossed = hollows(grid, keys, places, seals, outside, at)
    # In cells' squares: a wall has about one corner in each, and a cap crosses 1.5 edges.
    wall, cap = np.bincount(hollow, thin[at]), np.bincount(hollow, crossed) / 1.5
    worth = wall > np.maximum(2 * cap, SMALL)
    chosen = np.zeros(len(keys), bool)
    chosen[at[worth[hollow]]] = True
    return chosen, int(worth.sum())


def hollows(grid: Grid, keys, places: field.Places, seals, outside, at) -> tuple[np.ndarray, np.ndarray]:
    """Which hollow each of the corners that would be filled is in, and how many of its edges end at an outside corner:
    its hollow's cap crosses these. They are joined along edges, and through what they enclose."""
    name = np.full(len(keys), -1)
    name[at] = np.arange(len(at))
    left = outside & (name < 0)
    rooms = field.rooms(np.sort(np.r_[keys[~left], seals]))  # of FREE corners: 0 is not enclosed
    crossed, one, two = np.zeros(len(at)), [], []
    for step in NEIGHBOURS[:6] @ field.STEPS:
        near = keys[at] + step
        place, room = places(near), rooms(near)
        other = np.where(place >= 0, name[place], np.where((place == field.FREE) & (room > 0), len(at) + room, -1))
        open = np.flatnonzero((other < 0) & np.r_[left, False, True][place])
        crossed[open] += ~cuts(grid, keys[at[open]], near[open])
        one.append(np.flatnonzero(other >= 0))
        two.append(other[one[-1]])
    one, two = np.concatenate(one), np.concatenate(two)
    size = len(at) + 1 + rooms.room.max(initial=0)
    _, hollow = connected_components(coo_array((np.ones(len(one), bool), (one, two)), shape=(size, size)), False)
    return np.unique(hollow[: len(at)], return_inverse=True)[1], crossed


def ended(number: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """Winding numbers below 1/2 outside a box, in which each corner is so many cells deep, or deep below 0.

    Where several sheets of a piece lie about a hole their numbers add up, and its cap would bulge out, by 3.5 cells at
    a lamp. By as much as they are far out, lest manifold.repair takes them for the cheapest corners to fill; and as
    much above 1/2 within the last cell inside, so that the cap ends on the box.
    """
    side = 0.5 + depth / 2
    last = (depth > 0) & (depth < 1) & (number > 0.5)
    return np.where(depth < 0, np.minimum(number, side), np.where(last, np.maximum(number, side), number))


def touches(grid: Grid, marked: np.ndarray, which: np.ndarray) -> np.ndarray:
    """Corners of the band (indices), of those asked for, whose closest point lies in a cell with a marked corner."""
    at = np.flatnonzero(which)
    found, marked = np.zeros(len(at), bool), np.r_[marked, False, False]
    for part in field.parts(len(at), field.CHUNK >> 3):
        ijk = np.floor((grid.band.point[at[part]] + field.BOX) / field.spacing(grid.resolution)).astype(np.int64)
        found[part] = marked[grid.places(field.pack(ijk)[:, None] + field.OFFSETS @ field.STEPS)].any(1)
    return at[found]
