"""A field's surface from few of its values: a coarse grid, refined where it may be crossed, then along the surface.

What is known of the grid, and how its corners are named, stands in `corners`.
"""

import time
from functools import cache
from typing import NamedTuple

import numpy as np
import torch

from lib import memory
from lib.corners import FAR, ORIGIN, PIECE, STEPS, Field, Known, Query, pieces, unique, unpack
from lib.cubes import OFFSETS, triangles
from lib.dataset import BOX

DEEPEST = 11
NEAR = 1e-3  # of a cell: no vertex lies closer to a corner, so that no face is degenerate where a value is zero
BAND = 0.95  # of the clip: farther values say only "far"
BENDS = 3.0  # times what a field bends beside a cell it may bend in it; trained ones were seen to need 0.3
SEEN = 0.015  # radius that the default start finds for sure, if the field is a distance


# -- the whole --------------------------------------------------------------------------------------------------------


def decode(
    query: Query,
    depth: int,
    *,
    exact: bool = False,  # finds what a dense decode finds, for two to three times the queries
    clip: float = 1.0,  # distance at which the field reads 1, where it ends; 1 is a plain signed distance
    start: int | None = None,  # level that is asked densely, by itself from the clip
    device: str | torch.device = "cpu",  # where the points are made, and all else is done
    chunk: int = 0,  # points a call, 0 = by the memory that is free
) -> tuple[torch.Tensor, torch.Tensor, dict]:
    """V (n, 3) float32, F (m, 3) int32, closed and outward, and facts: queries, cells, seconds, memory.

    Fast mode may miss detached pieces that hold no ball of radius smallest(depth, clip); it never leaves a hole.
    """
    if not 1 <= depth <= DEEPEST:
        raise ValueError(f"depth = {depth}; wanted 1 to {DEEPEST}: a grid of 2^depth cells a side")
    if not clip > 0:
        raise ValueError(f"clip = {clip}; wanted the distance at which the field reads 1")
    watch = Watch(device)
    field = Field(query, depth, device, chunk)
    seek = depth if exact else max(depth - 2, min(start or coarsest(clip), depth))
    cells = descend(field, min(start or coarsest(clip), depth), seek, clip, exact)
    if seek < depth:
        bisect(field, cells, 1 << depth - seek)
    watch("refine")
    cells, cases, edges, rounds = follow(field)
    watch("follow")
    V, F, corners = extract(field, cells, cases, edges)
    watch("extract")
    facts = {"depth": depth, "exact": exact, "queries": field.asked, "cells": len(cells), "corners": corners}
    facts |= {"per_corner": field.asked / max(corners, 1), "of_dense": field.asked / (2**depth + 1) ** 3}
    facts |= {"rounds": rounds, "vertices": len(V), "faces": len(F), "cut": field.cut, "chunk": field.chunk}
    facts |= watch.seconds | {"seconds_query": round(field.seconds, 4)} | memory.peaks(device)
    return V, F, facts


def dense(query: Query, depth: int, *, device="cpu", chunk: int = 0) -> tuple[torch.Tensor, torch.Tensor, dict]:
    """The same from every corner of the grid, a slab at a time: what sparse decoding is measured against."""
    watch = Watch(device)
    field = Field(query, depth, device, chunk)
    side = torch.arange(-1, 2**depth + 2, device=device) + ORIGIN
    plane = (side[:, None] * STEPS[1] + side).flatten()
    for x in side:
        field.add(plane + x * STEPS[0])
    watch("query")
    cells, cases, edges, _ = follow(field)
    V, F, corners = extract(field, cells, cases, edges)
    watch("extract")
    facts = {"depth": depth, "queries": field.asked, "cells": len(cells), "corners": corners}
    return V, F, facts | watch.seconds | memory.peaks(device)


def coarsest(clip: float) -> int:
    """The dense level: the first at which no ball of radius SEEN can hide between corners."""
    return next((level for level in range(4, 7) if span(level) - BAND * clip <= SEEN), 7)


def smallest(depth: int, clip: float, exact: bool = False, start: int | None = None) -> float:
    """Radius of a ball that any detached piece must hold to be found for sure, where the field is a clipped distance.

    The ball's centre lies in a cell of each level, at most span(level) from its nearest corner. That corner is inside,
    or so close to the surface that the cell is refined. Fast mode also needs one corner inside at the level where it
    seeks. Pieces that hang on something larger need no such ball: they are reached along the surface.
    """
    first = min(start or coarsest(clip), depth)
    seek = depth if exact else max(depth - 2, first)
    reach = [span(level) - bound(level, depth, clip) * clip for level in range(first, seek)]
    return max([span(seek), *reach])


def span(level: int) -> float:
    """Half the diagonal of a cell."""
    return 3**0.5 / 2 * 2 * BOX / 2**level


def bound(level: int, depth: int, clip: float) -> float:
    """A cell may hold a piece of the surface if a corner's value is smaller: with slope 1 / clip it is half a diagonal.

    At the last two levels half of that: cells cost most there, and a dense decode finds no more (facts of trained
    models, and of distances).
    """
    slope = 1.0 if level < depth - 2 else 0.5
    return min(BAND, slope * span(level) / clip)


def bends_show(level: int, depth: int, clip: float) -> bool:
    """Is this the last level, and does the clip leave of the field what lies about a cell, to see it bend?"""
    return level == depth - 1 and BAND * clip >= 2 * BOX / 2**level


class Watch:
    """Seconds by step; waits for the GPU."""

    def __init__(self, device):
        self.device, self.seconds = torch.device(device), {}
        memory.reset_peak(device)
        self.last = time.perf_counter()

    def __call__(self, step: str) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now = time.perf_counter()
        self.seconds[f"seconds_{step}"] = round(now - self.last, 4)
        self.last = now


# -- step 1: cells that may hold the surface --------------------------------------------------------------------------


def descend(field: Field, start: int, seek: int, clip: float, exact: bool) -> torch.Tensor:
    """Cells (keys of their first corners) of the level `seek`, halved from the dense level where they may be crossed.

    Their corners are known then.
    """
    size = 2 << field.depth - start  # of a cell whose eight halves are looked at together
    offsets, lattice = (steps_to(n, field.device) for n in (2, 3))
    side = torch.arange(0, field.last, size, device=field.device) + ORIGIN
    cells = (side[:, None, None] * STEPS[0] + side[:, None] * STEPS[1] + side).flatten()
    for level in range(start, seek):
        size //= 2
        limit = bound(level, field.depth, clip)
        halved = []
        for part in pieces(cells, PIECE // 8):
            value = field(part + lattice * size).view(3, 3, 3, -1)
            gap = gaps(value)  # (8, c)
            near = gap < limit
            if exact and bends_show(level, field.depth, clip):
                near &= (gap <= 0) | (gap < BENDS * bend(value))
            halved.append(unique((part + offsets * size)[near]))
        cells = torch.cat(halved)
        cells = unique(cells) if len(halved) > 1 else cells
    cells = unique(torch.cat([unique(part + offsets * (size // 2)) for part in pieces(cells, PIECE // 8)]))
    for part in pieces(cells):
        field.corners(part, size // 2)
    return cells


def steps_to(count: int, device) -> torch.Tensor:
    """From the first corner to so many along each side, (count^3, 1), in the order of their keys."""
    ijk = torch.tensor(list(np.ndindex((count,) * 3)), device=device)
    return (ijk * torch.tensor(STEPS, device=device)).sum(1, keepdim=True)


def gaps(value: torch.Tensor) -> torch.Tensor:
    """How far the nearest corner of each half (8, c) is from the other sign; not above 0 where there are both."""
    low, high = value, value  # (3, 3, 3, c)
    for axis in range(3):
        low = torch.minimum(low.narrow(axis, 0, 2), low.narrow(axis, 1, 2))
        high = torch.maximum(high.narrow(axis, 0, 2), high.narrow(axis, 1, 2))
    return torch.maximum(low, -high).flatten(0, 2)  # (2, 2, 2, c) before


def bend(value: torch.Tensor) -> torch.Tensor:
    """How far a field leaves what is linear between corners, by the greatest second differences of 27 (3, 3, 3, c).

    Along any line through a sheet between corners, the distance to it has second differences of twice the least value
    at least: BENDS of 3 find all that are thicker than half a cell of the finest level, 4 all there are; a ball that
    smallest() promises needs 1.9. Where the field only comes near zero, it bends no more than elsewhere.
    """
    return sum(value.diff(2, axis).abs().flatten(0, 2).amax(0) for axis in range(3)) / 8  # (c,)


def bisect(field: Field, cells: torch.Tensor, size: int) -> None:
    """Ask along the edges of cells whose ends differ in sign, until each has a crossed edge of the finest level."""
    found = []
    for part in pieces(cells):
        inside = field.corners(part, size) > 0  # (8, c)
        for axis, first, second in edges_of_a_cell():
            cross = inside[first] != inside[second]
            found.append((part[cross] + int(OFFSETS[first] @ STEPS) * size) * 4 + axis)
    found = unique(torch.cat(found))
    low, step = found >> 2, torch.tensor(STEPS, device=field.device)[found & 3]
    while size > 1:
        size //= 2
        middle = low + step * size
        value = torch.cat([field(part) for part in pieces(torch.stack([low, middle], -1))])  # (e, 2)
        same = (value[:, 0] > 0) == (value[:, 1] > 0)
        low = torch.where(same, middle, low)


@cache
def edges_of_a_cell() -> list[tuple[int, int, int]]:
    """The twelve: axis, first and second corner."""
    return [(a, c, c + (4, 2, 1)[a]) for a in range(3) for c in range(8) if not OFFSETS[c][a]]


# -- step 2: along the surface ----------------------------------------------------------------------------------------


class Edges(NamedTuple):
    """The crossed edges of one axis: where their lower and upper corners stand among the known ones."""

    low: torch.Tensor
    high: torch.Tensor


def follow(field: Field) -> tuple[torch.Tensor, torch.Tensor, list[Edges], int]:
    """All crossed cells that hang together with a crossed edge that is known: cells, their cases, all crossed edges.

    Two cells that share a side with both signs are neighbours on the surface, so nothing is asked that is not a corner
    of a crossed cell. New corners may show edges of a surface that nobody had come to: then on from there.
    """
    done, rounds = Known(torch.uint8, field.device), 0
    sides, across, crossings = tensors(field.device)[:3]
    while True:
        edges = crossed_edges(field)
        found = sum(len(low) for low, _ in edges)
        if not field.cut and 4 * found == int(crossings[done.all()[1].int()].sum()):
            return *done.all(), edges, rounds  # all four cells of each edge are done
        layer = around(field, edges, done)
        if not len(layer):
            return *done.all(), edges, rounds
        before = len(field.known)
        while len(layer):
            rounds += 1
            reached = []
            for part in pieces(layer):
                case = torch.zeros(len(part), dtype=torch.uint8, device=field.device)
                for n, value in enumerate(field.corners(part)):
                    case |= (value > 0).to(torch.uint8) << n
                done.add(part, case)
                reached.append(unique((part + across[:, None])[sides[:, case.int()]]))
                reached[-1] = reached[-1][~done.find(reached[-1])[1]]
            layer = unique(torch.cat(reached)) if len(reached) > 1 else reached[0]
            layer = fresh(layer, done) if len(reached) > 1 else layer
        if len(field.known) == before:
            return *done.all(), edges, rounds


def fresh(cells: torch.Tensor, done: Known) -> torch.Tensor:
    """Those of the cells that are not done."""
    return torch.cat([part[~done.find(part)[1]] for part in pieces(cells)])


def crossed_edges(field: Field) -> list[Edges]:
    """Of known corners of the finest level that are neighbours, those that differ in sign, an axis at a time."""
    keys, values = field.known.all()
    inside, found = values > 0, []
    for step in STEPS:
        low, high = [], []
        for n in range(0, len(keys), 4 * PIECE):
            wanted = keys[n : n + 4 * PIECE] + step
            at = torch.searchsorted(keys, wanted).clamp_(max=len(keys) - 1)
            cross = (keys[at] == wanted) & (inside[at] != inside[n : n + 4 * PIECE])
            low.append(cross.nonzero()[:, 0] + n)
            high.append(at[cross])
        found.append(Edges(torch.cat(low).to(torch.int32), torch.cat(high).to(torch.int32)))
    return found


def around(field: Field, edges: list[Edges], done: Known) -> torch.Tensor:
    """Cells that share a crossed edge and are not done; where the box cuts the surface, those of the ring too."""
    keys, values = field.known.all()
    found = [keys[:0]]
    for axis, (low, _) in enumerate(edges):
        for part in pieces(low):
            found.append(unique(keys[part] - beside(axis, field.device)))
    border = (values > 0).nonzero()[:, 0]
    for part in pieces(border if field.cut else border[:0]):
        ijk = unpack(keys[part])
        for axis, step in enumerate(STEPS):
            for at, outward in ((0, -step), (field.last, 0)):
                low = keys[part][ijk[:, axis] == at] + outward  # the edge to the ring's corner begins there
                found.append(unique(low - beside(axis, field.device)))
    return fresh(unique(torch.cat(found)), done)


def beside(axis: int, device) -> torch.Tensor:
    """What leads from an edge's lower corner to the first corners of the four cells that share it, subtracted."""
    return torch.tensor(OFFSETS[OFFSETS[:, axis] == 0] @ STEPS, device=device)[:, None]  # (4, 1)


@cache
def tensors(device) -> tuple[torch.Tensor, ...]:
    """Of the 256 cases: sides with both signs (6, 256), steps across the sides (6,), crossed edges (256,), triangles
    (256, n, 3), and their number (256,)."""
    case = np.arange(256)[:, None] >> np.arange(8) & 1  # (256, 8)
    sides = [case[:, OFFSETS[:, axis] == end] for axis in range(3) for end in (0, 1)]
    mixed = np.stack([side.any(1) & ~side.all(1) for side in sides])
    across = [sign * step for step in STEPS for sign in (-1, 1)]
    crossings = sum(case[:, first] != case[:, second] for _, first, second in edges_of_a_cell())
    return tuple(torch.tensor(array, device=device) for array in (mixed, across, crossings, *triangles()))


# -- step 3: the surface ----------------------------------------------------------------------------------------------


def extract(field: Field, cells, cases, edges: list[Edges]) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Marching cubes on the crossed cells: V (n, 3) float32, F (m, 3) int32, and how many corners the cells have.

    A vertex is a crossed edge, so none is there twice.
    """
    keys, values = field.known.all()
    table, count = tensors(field.device)[3:]
    vertex = torch.full((3, len(keys)), -1, dtype=torch.int32, device=field.device)
    V, first = torch.empty((sum(len(low) for low, _ in edges), 3), device=field.device), 0
    for axis, (low, high) in enumerate(edges):
        vertex[axis, low] = torch.arange(first, first + len(low), dtype=torch.int32, device=field.device)
        for n in range(0, len(low), PIECE):
            a, b = low[n : n + PIECE], high[n : n + PIECE]
            place = unpack(keys[a]).float()
            place[:, axis] += (values[a] / (values[a] - values[b])).clamp_(NEAR, 1 - NEAR)
            V[first + n : first + n + len(a)] = place * (2 * BOX / field.last) - BOX
        first += len(low)

    used = torch.zeros(len(keys), dtype=torch.bool, device=field.device)
    F, filled = torch.empty((int(count[cases.int()].sum()), 3), dtype=torch.int32, device=field.device), 0
    for part, case in zip(pieces(cells), pieces(cases), strict=True):
        corner = torch.searchsorted(keys, part + field.columns)  # (4, c)
        corner = torch.stack([corner, corner + 1], 1).flatten(0, 1)  # (8, c)
        used[corner] = True
        number = count[case.int()]
        which = torch.repeat_interleave(number)
        nth = torch.arange(len(which), device=field.device) - (number.cumsum(0) - number)[which]
        edge = table[case.int()[which], nth]  # (m, 3) of 24 = lower corner * 3 + axis
        F[filled : filled + len(which)] = vertex[edge % 3, corner[edge // 3, which[:, None]]]
        filled += len(which)
    return V, F, int((used & (values > -FAR)).sum())  # without the ring
