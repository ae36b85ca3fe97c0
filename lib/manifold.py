"""Signs at the corners of a sparse grid, turned where they have to be so that what they bound is a 2-manifold."""

import itertools
from collections.abc import Callable
from functools import cache

import numpy as np

from lib import field
from lib.field import OFFSETS, STEPS

AROUND = (
    np.array(  # (3, 4): from an edge's lower corner to the four cells that share it, counter-clockwise about the axis
        [[0, -STEPS[(a + 1) % 3], -STEPS[(a + 1) % 3] - STEPS[(a + 2) % 3], -STEPS[(a + 2) % 3]] for a in range(3)]
    )
)
REACH = 6  # corners through which a way out of a void may lead
ROUNDS = 8  # of ways: walls, and what parts two sheets, close some of them again

Cut = Callable[[np.ndarray, np.ndarray], np.ndarray]  # keys of neighbours -> whether the source lies between them


def repair(
    keys: np.ndarray,
    values: np.ndarray,
    flood=None,
    loose: np.ndarray | None = None,  # corners that may turn outside
    cut: Cut | None = None,
) -> tuple[np.ndarray, np.ndarray, int]:
    """Turn corners until every cell has one sheet and no void is left; keys and values with all corners that this
    needs, and how many were turned.

    No corner turns outside twice, so it ends. Then no face of a cell has its corners inside, outside, inside, outside,
    every crossed edge gives one quad and every crossed cell one vertex with one fan around it: a 2-manifold. A void is
    what the walls of narrow slits have closed, as a rule: a way out is sought before it is filled.
    """
    turned = 0
    loose = np.zeros(len(keys), bool) if loose is None else loose.copy()
    suspects, beyond = crossed_cells(keys, values), flood or field.flood(keys[values > 0])
    for rounds in itertools.count():
        keys, values, loose, count = one_sheet(keys, values, loose, cut, suspects, beyond)
        turned += count
        rooms = field.rooms(keys[values > 0])
        room = np.where(values > 0, -1, rooms(keys))  # 0 is outside
        if room.max() <= 0:
            return keys, values, turned
        way = dig(keys, room, loose, cut) if rounds < ROUNDS and loose.any() else np.zeros(0, int)
        new = way if len(way) else np.flatnonzero(room > 0)
        turn(values, loose, new)
        turned += len(new)
        open = np.isin(np.arange(rooms.room.max() + 1), room if len(way) else 0)  # all of a void is filled, or stays
        suspects, beyond = around(keys[new]), rooms.outside(open)


def one_sheet(keys, values, loose, cut: Cut, suspects: np.ndarray, beyond) -> tuple:
    """Turn corners of the suspected cells, and of those that this makes suspect, until none has two sheets.

    Outside ones turn inside, or inside ones outside where that takes less and no grid edge from there to an outside
    corner is cut by the source. Corners that are not among the keys yet are outside if they are `beyond`.
    """
    turned = 0
    while len(suspects):
        corner_keys = suspects[:, None] + OFFSETS @ STEPS  # (c, 8)
        missing = field.unique(corner_keys[field.find(keys, corner_keys) < 0])
        if len(missing):
            far = np.abs(values).max()
            at = np.searchsorted(keys, missing)
            keys, values = np.insert(keys, at, missing), np.insert(values, at, np.where(beyond(missing), -far, far))
            loose = np.insert(loose, at, False)
        corner = field.find(keys, corner_keys)
        case = (values[corner] > 0) @ (1 << np.arange(8))
        two = twofold()[case]
        corner, mends = corner[two], mended()[case[two]]
        fill = cheapest(corner, np.where(values > 0, np.inf, -values), mends)
        clear = cheapest(corner, np.where((values > 0) & loose, values, np.inf), mends)
        less = loose[clear] & (values[clear] > 0) & (values[clear] < -values[fill])
        if less.any():
            less[less] = ~opens(keys, values <= 0, clear[less], cut)
        new = field.unique(np.r_[clear[less], fill[~less]])
        turn(values, loose, new)
        turned += len(new)
        suspects = around(keys[new])
    return keys, values, loose, turned


def turn(values: np.ndarray, loose: np.ndarray, corner: np.ndarray) -> None:
    """Turn corners inside out, in place; those that come to be outside were loose, and are no more."""
    values[corner] = np.where(values[corner] > 0, np.minimum(-values[corner], -1e-9), np.maximum(-values[corner], 1e-9))
    loose[corner] = False


def around(keys: np.ndarray) -> np.ndarray:
    """The cells that have one of these corners."""
    return field.unique(keys[:, None] - OFFSETS @ STEPS)


@cache
def twofold() -> np.ndarray:
    """(256,) cases of a cell whose inside or outside corners are not joined along its edges: two sheets in one cell."""
    side = np.arange(256)[:, None] >> np.arange(8) & 1  # (256, 8)
    name = np.tile(np.arange(8), (256, 1))
    for _ in range(7):  # every corner takes the least name of its side among its neighbours'
        for axis in (1, 2, 4):
            other = np.arange(8) ^ axis
            name = np.where(side == side[:, other], np.minimum(name, name[:, other]), name)
    return (name == np.arange(8)).sum(1) > 2


@cache
def mended() -> np.ndarray:
    """(256, 8) whether a cell has one sheet once this corner of it is turned."""
    return ~twofold()[np.arange(256)[:, None] ^ (1 << np.arange(8))]


def cheapest(corner: np.ndarray, cost: np.ndarray, mends: np.ndarray) -> np.ndarray:
    """Of each cell's corners (c, 8) the one that costs least: of those that mend the cell, if one does.

    Without that a tree's cells needed two to three times as many corners turned, and lost twigs that can be reached.
    """
    cost = cost[corner]
    aimed = np.where(mends, cost, np.inf)
    cost = np.where(np.isfinite(aimed).any(1)[:, None], aimed, cost)
    return np.take_along_axis(corner, cost.argmin(1)[:, None], 1)[:, 0]


def opens(keys: np.ndarray, outside: np.ndarray, corner: np.ndarray, cut: Cut, find=None) -> np.ndarray:
    """Whether the source cuts an edge from a corner to one outside, or to another of these, if all these were outside.

    Such a corner that turned outside would tear a hole into what the source bounds. `find` looks up unsorted keys.
    """
    after = outside.copy()
    after[corner] = True
    torn = np.zeros(len(corner), bool)
    for step in np.r_[STEPS, -STEPS]:
        other = find(keys[corner] + step) if find else field.find(keys, keys[corner] + step)
        both = np.flatnonzero((other >= 0) & after[other])
        torn[both] |= cut(keys[corner[both]], keys[other[both]])
    return torn


def dig(keys: np.ndarray, room: np.ndarray, loose: np.ndarray, cut: Cut) -> np.ndarray:
    """Corners (indices) that open voids when they turn outside: of each void a shortest way, if there is one.

    Each corner is in a room: 0 outside, -1 inside, else a void. A way leads by loose corners, along edges that the
    source does not cut, and past no outside corner to which it does.
    """
    free, owner = room >= 0, np.maximum(room, 0)  # the void that a corner's way is from
    came = np.full(len(keys), -1)  # from which corner
    front, ends = np.flatnonzero(owner), {}
    for _ in range(REACH):
        one, two = neighbours(keys, front)
        new = loose[two] & ~free[two] & (owner[two] == 0)
        new[new] = ~cut(keys[one[new]], keys[two[new]])
        reached, first = np.unique(two[new], return_index=True)
        came[reached] = one[new][first]
        owner[reached] = owner[came[reached]]
        one, two = neighbours(keys, reached)
        one, two = one[free[two]], two[free[two]]
        front = np.setdiff1d(reached, one[cut(keys[one], keys[two])])
        for end in front[np.isin(front, one[room[two] == 0])]:
            ends.setdefault(owner[end], end)
        front = front[~np.isin(owner[front], list(ends))]
    way = []
    for end in ends.values():
        while not free[end]:
            way.append(end)
            end = came[end]
    way = field.unique(np.array(way, int))
    return way[~opens(keys, free, way, cut)]  # two ways may lead past each other, on two sides of the source


def neighbours(keys: np.ndarray, corner: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pairs (indices): corners, and those of their six neighbours that are among the keys."""
    other = field.find(keys, keys[corner][:, None] + np.r_[STEPS, -STEPS])
    one, way = np.nonzero(other >= 0)
    return corner[one], other[one, way]


def crossed_edges(keys: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Grid edges whose ends have different signs: index of the lower and the upper corner, axis."""
    upper = np.stack([field.find(keys, keys + step) for step in STEPS], -1)  # (n, 3)
    lower, axis = np.nonzero((upper >= 0) & ((values > 0)[:, None] != (values > 0)[upper]))
    return lower, upper[lower, axis], axis


def crossed_cells(keys: np.ndarray, values: np.ndarray) -> np.ndarray:
    lower, _, axis = crossed_edges(keys, values)
    return field.unique(keys[lower][:, None] + AROUND[axis])
