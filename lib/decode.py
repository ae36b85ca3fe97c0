"""A field's surface from few of its values: a coarse grid, refined where it may be crossed, then along the surface.

The grid has 2^depth cells along each side of the box [-BOX, BOX]; corner i lies exactly at i * 2 * BOX / 2^depth - BOX.
A corner is one int64 key, its three indices side by side, at the finest level for all levels: keys sort like (i, j, k),
a neighbour's key is a sum, and no corner is asked twice. A ring of corners outside the box, which are never asked and
always outside, closes what the box cuts. All of it is torch, on the device where the field is.
"""

import time
from collections.abc import Callable, Iterator
from functools import cache
from typing import NamedTuple

import numpy as np
import torch

from lib import memory
from lib.cubes import OFFSETS, triangles
from lib.dataset import BOX

BITS = 13  # an index in a key, so that three and two more bits make an int64 at any depth that fits a memory
DEEPEST = 11
ORIGIN = 1  # added to every index, for the ring
STEPS = (1 << 2 * BITS, 1 << BITS, 1)  # to the next corner along x, y, z
FAR = 1e6  # below any value: outside the box
NEAR = 1e-3  # of a cell: no vertex lies closer to a corner, so that no face is degenerate where a value is zero
BAND = 0.95  # of the clip: farther values say only "far"
SEEN = 0.015  # radius that the default start finds for sure, if the field is a distance
CELL_BYTES = 200  # memory that a corner takes, with its part of cells and faces: 140 measured at depth 10
PIECE = 1 << 18  # cells at once: bounds the memory of what is computed about them

Query = Callable[[torch.Tensor], torch.Tensor]  # points (n, 3) -> values (n,), positive inside


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
    facts |= {"rounds": rounds, "vertices": len(V), "faces": len(F), "cut": field.cut}
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


# -- what is known of the field ---------------------------------------------------------------------------------------


class Known:
    """Sorted keys with a value each, in a few pieces that double in size: adding a little costs little."""

    def __init__(self, dtype: torch.dtype, device):
        self.pieces = [(torch.empty(0, dtype=torch.int64, device=device), torch.empty(0, dtype=dtype, device=device))]

    def __len__(self) -> int:
        return sum(len(keys) for keys, _ in self.pieces)

    def add(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Sorted keys, none of them known."""
        self.pieces.append((keys, values))
        while len(self.pieces) > 1 and 2 * len(self.pieces[-1][0]) >= len(self.pieces[-2][0]):
            self.pieces.append(merged(self.pieces.pop(-2), self.pieces.pop()))

    def find(self, keys: torch.Tensor, above: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        """Values of keys (...), and which of them are known.

        With `above` also of the keys that much above, as (..., 2): for no more searches, if no key between is known.
        """
        value = self.pieces[0][1].new_zeros((*keys.shape, 2) if above else keys.shape)
        known = torch.zeros(value.shape, dtype=torch.bool, device=keys.device)
        for have, values in self.pieces:
            if not len(have):
                continue
            at = torch.searchsorted(have, keys)
            for wanted, found, is_known in (
                [(keys, value[..., 0], known[..., 0]), (keys + above, value[..., 1], known[..., 1])]
                if above
                else [(keys, value, known)]
            ):
                place = at.clamp(max=len(have) - 1)
                hit = have[place] == wanted
                torch.where(hit, values[place], found, out=found)
                is_known |= hit
                at += hit
        return value, known

    def all(self) -> tuple[torch.Tensor, torch.Tensor]:
        while len(self.pieces) > 1:
            self.pieces.append(merged(self.pieces.pop(-2), self.pieces.pop()))
        return self.pieces[0]


def merged(a: tuple, b: tuple) -> tuple[torch.Tensor, torch.Tensor]:
    """Two sorted pieces as one; they have no key in common."""
    if not len(a[0]) or not len(b[0]):
        return a if len(a[0]) else b
    keys, values = torch.cat([a[0], b[0]]), torch.cat([a[1], b[1]])
    on_cpu = keys.device.type == "cpu"  # numpy merges runs, ten times as fast as torch sorts
    order = torch.from_numpy(np.argsort(keys.numpy(), kind="stable")) if on_cpu else keys.argsort()
    return keys[order], values[order]


def unique(keys: torch.Tensor) -> torch.Tensor:
    """Sorted, each key once. Fastest (on CPUs) for a few sorted runs, one after the other."""
    keys = keys.flatten()
    keys = torch.from_numpy(np.sort(keys.numpy(), kind="stable")) if keys.device.type == "cpu" else keys.sort()[0]
    first = torch.ones(len(keys), dtype=torch.bool, device=keys.device)
    torch.ne(keys[1:], keys[:-1], out=first[1:])
    return keys[first]


class Field:
    """The values of corners: known ones are looked up, others asked, in chunks."""

    def __init__(self, query: Query, depth: int, device, chunk: int = 0):
        self.query, self.depth, self.device, self.chunk = query, depth, device, chunk
        self.last = 2**depth  # index of the last corner
        self.known = Known(torch.float32, device)
        self.asked, self.seconds, self.cut = 0, 0.0, False
        self.columns = torch.tensor(OFFSETS[::2] @ STEPS, device=device)[:, None]  # (4, 1) corners that lie lowest
        self.room = memory.free(device) // CELL_BYTES

    def __call__(self, keys: torch.Tensor, above: int = 0) -> torch.Tensor:
        """Values of corners, keys of any shape; with `above` see Known.find."""
        values, known = self.known.find(keys, above)
        if not known.all():
            both = torch.stack([keys, keys + above], -1) if above else keys
            missing = both[~known]
            new = unique(missing)
            values[~known] = self.add(new)[torch.searchsorted(new, missing)]
        return values

    def corners(self, cells: torch.Tensor, size: int = 1) -> torch.Tensor:
        """Values of the corners of cells, (8, c). No finer corner may be known."""
        values = self(cells + self.columns * size, size)  # (4, c, 2)
        return values.movedim(2, 1).flatten(0, 1)

    def add(self, keys: torch.Tensor) -> torch.Tensor:
        """Ask for sorted keys that are not known."""
        if len(self.known) + len(keys) > self.room:
            raise MemoryError(
                f"depth {self.depth}: over {len(self.known):,} corners near the surface, more than this memory holds. "
                "A trained field has fewer: was this one trained? Else take a smaller depth."
            )
        ijk = unpack(keys)
        inside = ((ijk >= 0) & (ijk <= self.last)).all(-1)
        values = torch.full(keys.shape, -FAR, device=self.device)
        values[inside] = self.ask(ijk[inside])
        self.known.add(keys, values)
        border = inside & ((ijk == 0) | (ijk == self.last)).any(-1)
        self.cut |= bool((values[border] > 0).any())
        return values

    @torch.inference_mode()
    def ask(self, ijk: torch.Tensor) -> torch.Tensor:
        """Query corners (n, 3)."""
        begin, values, done = time.perf_counter(), [], 0
        while done < len(ijk):
            part = ijk[done : done + (self.chunk or 1 << 14)]
            points = part.to(torch.float32) * (2 * BOX / self.last) - BOX  # (n, 3)
            found = self.measured(points)
            if found.shape != (len(points),):
                raise ValueError(f"the query gave {tuple(found.shape)} for {len(points)} points; wanted a value each")
            values.append(found.float())
            done += len(part)
            if not torch.isfinite(values[-1]).all():
                self.refuse(points, values[-1])
        self.asked += len(ijk)
        values = torch.cat(values).clamp_(-FAR / 10, FAR / 10) if values else torch.empty(0, device=self.device)
        if torch.device(self.device).type == "cuda":
            torch.cuda.synchronize(self.device)
        self.seconds += time.perf_counter() - begin
        return values

    def measured(self, points: torch.Tensor) -> torch.Tensor:
        """One call. On a GPU the first one of any size tells what a point takes, and so how many the next may have."""
        if self.chunk:
            return self.query(points)
        if torch.device(self.device).type != "cuda":
            self.chunk = 1 << 15  # what a query makes of them still fits the caches, or nearly
            return self.query(points)
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        found = self.query(points)
        each = (torch.cuda.max_memory_allocated(self.device) - before) / len(points)
        room = min(memory.free(self.device) / 4, memory.GIB)
        self.chunk = int(min(max(room / max(each, 1), 1 << 10), 1 << 20))
        return found

    def refuse(self, points: torch.Tensor, values: torch.Tensor) -> None:
        bad = ~torch.isfinite(values)
        place = ", ".join(f"{x:.3f}" for x in points[bad][0].tolist())
        raise ValueError(
            f"the query gave {values[bad][0].item()} at {int(bad.sum()):,} of {len(values):,} points, first at "
            f"({place}). Wanted numbers: look at the latents and at the model's weights."
        )


def unpack(keys: torch.Tensor) -> torch.Tensor:
    """Indices (..., 3) of keys."""
    mask = (1 << BITS) - 1
    return torch.stack([keys >> 2 * BITS, keys >> BITS & mask, keys & mask], -1) - ORIGIN


def pieces(keys: torch.Tensor) -> Iterator[torch.Tensor]:
    """At least one, if an empty one."""
    return (keys[n : n + PIECE] for n in range(0, max(len(keys), 1), PIECE))


# -- step 1: cells that may hold the surface --------------------------------------------------------------------------


def descend(field: Field, start: int, seek: int, clip: float, exact: bool) -> torch.Tensor:
    """Cells (keys of their first corners) of the level `seek`, halved from the dense level where they may be crossed.

    Their corners are known then.
    """
    size, offsets = 1 << field.depth - start, torch.tensor(OFFSETS @ STEPS, device=field.device)[:, None]
    side = torch.arange(0, field.last, size, device=field.device) + ORIGIN
    cells = (side[:, None, None] * STEPS[0] + side[:, None] * STEPS[1] + side).flatten()
    for level in range(start, seek):
        size = 1 << field.depth - level
        limit = bound(level, field.depth, clip)
        halved = []
        for part in pieces(cells):
            value = field.corners(part, size)  # (8, c)
            inside = value > 0
            near = (inside.any(0) & ~inside.all(0)) | (value.abs().amin(0) < limit)
            halved.append(unique(part[near] + offsets * (size // 2)))
        cells = torch.cat(halved)
        cells = unique(cells) if len(halved) > 1 else cells
    for part in pieces(cells):
        field.corners(part, 1 << field.depth - seek)
    return cells


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
