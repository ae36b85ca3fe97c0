"""Which corners of a sparse grid lie outside a surface: all that a ball of radius eps reaches, and what these can see.

Outside is an array of bools, one for each corner of the band; every other corner is as the flood left it.
"""

from typing import NamedTuple

import numpy as np

from lib import field

NEIGHBOURS = np.stack(np.unravel_index(np.arange(27), (3, 3, 3)), -1) - 1
NEIGHBOURS = NEIGHBOURS[np.argsort(np.abs(NEIGHBOURS).sum(1), kind="stable")][1:]  # (26, 3) the nearest first
CORNERS = np.array([0, 1, 2, 4, 3, 5, 6, 7])  # of a cell, by how many axes they differ from the first


class Grid(NamedTuple):
    """What every step asks."""

    surface: field.Surface
    resolution: int
    band: field.Band  # at least the corners within a cell of the surface
    flood: field.Outside
    places: field.Places
    radius: np.ndarray  # without faces about it, of each corner of the band, then of an ENCLOSED one and a FREE one
    beside: np.ndarray  # corners of the band that the flood does not reach, but a ball that comes by between corners

    def at(self, index: np.ndarray) -> np.ndarray:
        """Where corners of the band lie."""
        return field.position(field.unpack(self.band.keys[index]), self.resolution)

    def look(self, keys: np.ndarray, outside: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """For any corners: whether they are outside, and a radius without faces about them."""
        place = self.places(keys)
        return np.r_[outside, False, True][place], self.radius[place]

    def nearest(self, X: np.ndarray) -> np.ndarray:
        """Keys of the corners nearest to points (n, 3)."""
        return field.pack(np.round((X + field.BOX) / field.spacing(self.resolution)).astype(np.int64))


def gridded(surface: field.Surface, resolution: int, band: field.Band, flood: field.Outside, beside=()) -> Grid:
    h = field.spacing(resolution)
    radius = np.r_[band.distance, h, h]
    return Grid(surface, resolution, band, flood, field.places(band.keys, flood), radius, np.array(beside, int))


def band(surface: field.Surface, resolution: int) -> Grid:
    """The corners within a cell of the surface, which are the ends of all edges that it crosses, and the flood."""
    near = field.band(surface, resolution, 1.01 * field.spacing(resolution))
    # eps and no less: at 0.9 eps two sofas' slits open, but rooms that were sealed leak (a football table's).
    rooms = field.rooms(near.keys[near.distance <= 2 / resolution])
    return gridded(surface, resolution, near, *squeeze(surface, resolution, near, rooms))


def squeeze(surface: field.Surface, resolution: int, near: field.Band, rooms: field.Rooms):
    """The flood of a ball that may leave the corners: it also comes through slits in which no corner is eps off.

    A corner in a slit, or next to one, stands for a place near it where the ball fits; from afar the ball goes from
    free corners and places to those of neighbours. The flood, and the corners whose places it comes to.
    """
    h, eps = field.spacing(resolution), 2 / resolution
    tight = (near.distance > 0.3 * h) & (near.distance <= eps)
    at, X = niches(surface, resolution, near, np.flatnonzero(tight), 4)
    mouth = np.zeros(len(near.keys), bool)
    for step in NEIGHBOURS:
        other = field.find(near.keys, near.keys[at] + step @ field.STEPS)
        same = ~apart(near.distance[at], near.distance[other], np.linalg.norm(step) * h)  # side of the wall
        mouth[other[same & (other >= 0)]] = True
    mouth[at] = False
    more = niches(surface, resolution, near, np.flatnonzero(tight & mouth), np.inf)
    at, X = np.r_[at, more[0]], np.r_[X, more[1]]

    place = np.full(len(near.keys) + 1, -1)  # of each corner that has one, -1 for others and for none
    place[at] = np.arange(len(at))
    free = np.r_[near.distance > eps, True]
    beside, Y = [], []  # places, and free corners a step along an axis from them
    for step in NEIGHBOURS[:6] @ field.STEPS:
        one = np.flatnonzero(free[field.find(near.keys, near.keys[at] + step)])
        beside.append(one)
        Y.append(near.keys[at[one]] + step)
    beside, Y = np.concatenate(beside), np.concatenate(Y)
    room, Y = rooms(Y), field.position(field.unpack(Y), resolution)

    come, open = np.zeros(len(at), bool), np.arange(rooms.room.max(initial=0) + 1) == 0
    new, tried = np.zeros(0, np.int64), np.zeros(len(beside), bool)
    while True:
        door = np.flatnonzero((come[beside] != open[room]) & ~tried)
        tried[door] = True
        door = door[fits(surface, eps, X[beside[door]], Y[door])]
        other = place[field.find(near.keys, near.keys[at[new]][:, None] + NEIGHBOURS @ field.STEPS)]  # (n, 26)
        one, way = np.nonzero((other >= 0) & ~come[other])
        two = other[one, way]
        two = two[fits(surface, eps, X[new[one]], X[two])]
        new = field.unique(np.r_[two, beside[door]])
        new = new[~come[new]]
        if not len(new) and open[room[door]].all():
            return rooms.outside(open), at[come]
        come[new] = open[room[door]] = True


def fits(surface: field.Surface, eps: float, one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """Whether a ball that fits in both places fits a quarter, half and three quarters of the way between them."""
    good = np.ones(len(one), bool)
    for share in (0.5, 0.25, 0.75):
        good[good] = field.closest(surface, (one + (two - one) * share)[good])[0] > eps
    return good


def niches(surface: field.Surface, resolution: int, near: field.Band, at: np.ndarray, width: float) -> tuple:
    """Of some corners of the band those beside which a ball of radius eps fits, and where; width: of a slit, in cells,
    between the walls of which they have to lie."""
    h, eps = field.spacing(resolution), 2 / resolution
    X = C = field.position(field.unpack(near.keys[at]), resolution)
    Q, distance, found, places = near.point[at], near.distance[at], [], []
    for _ in range(3):  # away from the nearest wall, not farther than the middle between it and the next
        U = (X - Q) / distance[:, None]
        room = field.hits(surface, X, U, 4 * h)[0]
        slit = (room + distance > 2 * eps) & (room <= width * h)
        at, C, X, U = at[slit], C[slit], X[slit], U[slit]
        X = X + U * np.minimum((room - distance) / 2, eps - distance + 0.1 * h)[slit, None]
        distance, _, Q = field.closest(surface, X)
        fits, close = distance > eps, np.linalg.norm(X - C, axis=1) < 0.9 * h
        found.append(at[fits & close])
        places.append(X[fits & close])
        left = ~fits & close & (distance > 0.1 * h)
        at, C, X, Q, distance = at[left], C[left], X[left], Q[left], distance[left]
    return np.concatenate(found), np.concatenate(places)


def grow(grid: Grid, keys: np.ndarray, found: tuple) -> Grid:
    """With more corners at the end of its band: FREE ones, and what closest() found for them."""
    near = field.Band(*(np.concatenate(pair) for pair in zip(grid.band, (keys, *found), strict=True)))
    places = grid.places.add(keys, len(grid.band.keys))
    return grid._replace(band=near, places=places, radius=np.r_[near.distance, grid.radius[-2:]])


def apart(one: np.ndarray, two: np.ndarray, length: float) -> np.ndarray:
    """Whether balls of these radii, which have no face in them, about points so far apart leave room for one between.

    The balls on two sides of a flat sheet touch: without a margin rounding would decide, and a pane was lost.
    """
    return one + two <= 1.0001 * length


def push_back(grid: Grid, rounds: int = 2) -> np.ndarray:
    """Outside up to the source: a corner within eps of it joins when it sees a neighbour that is outside.

    No orientation is asked, so flipped faces do not matter. Two rounds, so that nothing leaks through small holes.
    """
    band, h = grid.band, field.spacing(grid.resolution)
    outside = grid.flood(band.keys)
    outside[grid.beside] = True
    new = np.r_[outside, False, True]  # whom no round has asked yet
    for _ in range(rounds):
        todo = np.flatnonzero(~outside & (band.distance > 1e-3 * h))
        before = outside.copy()
        for step in NEIGHBOURS:
            place = grid.places(band.keys[todo] + step @ field.STEPS)
            near = new[place]
            one, place = todo[near], place[near]
            free = ~apart(band.distance[one], grid.radius[place], np.linalg.norm(step) * h)
            O = grid.at(one[~free])
            free[~free] = ~field.blocked(grid.surface, O, np.broadcast_to(step * h, O.shape))
            outside[one[free]] = True
            todo = todo[~outside[todo]]
        new = np.r_[outside & ~before, False, False]
    return outside


def sees(grid: Grid, outside: np.ndarray, X: np.ndarray) -> np.ndarray:
    """Whether each point (n, 3) sees a corner of its cell that is outside; the nearest is asked first."""
    X = (X + field.BOX) / field.spacing(grid.resolution)
    low = np.floor(X).astype(np.int64)
    nearest = (X - low > 0.5) @ (4, 2, 1)
    seen = np.zeros(len(X), bool)
    todo = np.arange(len(X))
    for other in CORNERS:
        corner = low[todo] + field.OFFSETS[nearest[todo] ^ other]
        is_out, radius = grid.look(field.pack(corner), outside)
        one, corner, radius = todo[is_out], corner[is_out], radius[is_out]
        D = (X[one] - corner) * field.spacing(grid.resolution)
        free = radius > np.linalg.norm(D, axis=1)
        O = field.position(corner[~free], grid.resolution)
        free[~free] = ~field.blocked(grid.surface, O, D[~free], 1 - 1e-3)  # points may lie on the surface
        seen[one[free]] = True
        todo = todo[~seen[todo]]
    return seen


def cuts(grid: Grid, one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """Whether the source lies between neighbouring corners (keys)."""
    found = apart(grid.radius[grid.places(one)], grid.radius[grid.places(two)], field.spacing(grid.resolution))
    P, Q = (field.position(field.unpack(end[found]), grid.resolution) for end in (one, two))
    found[found] = field.blocked(grid.surface, P, Q - P)
    return found
