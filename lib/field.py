"""Fields on a sparse grid: distance and ray queries to a mesh, the narrow band, outside by flood fill.

The grid has R cells along each side of the box [-BOX, BOX]; corner i lies exactly at i * 2 * BOX / R - BOX. A corner is
one int64 key, its three indices side by side in 21 bits each, so that keys sort like (i, j, k), a neighbour's key is a
sum, and corners a little outside the box need no special case. Keys are kept sorted and looked up by binary search;
nothing dense is ever made.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import igl
import numpy as np
from embreex.mesh_construction import TriangleMesh
from embreex.rtcore_scene import EmbreeScene
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from lib.cubes import OFFSETS
from lib.dataset import BOX

BITS = 21
ORIGIN = 1024  # added to every index, so that corners outside the box have positive ones too
STEPS = np.array([1 << 2 * BITS, 1 << BITS, 1])  # to the next corner along x, y, z
CHUNK = 1 << 20  # queries at once: bounds the memory of their arguments

# -- keys -------------------------------------------------------------------------------------------------------------


def pack(ijk: np.ndarray) -> np.ndarray:
    """Keys of corners (..., 3)."""
    return (np.asarray(ijk, np.int64) + ORIGIN) @ STEPS


def unpack(keys: np.ndarray) -> np.ndarray:
    """Indices (..., 3) of keys."""
    mask = (1 << BITS) - 1
    return np.stack([keys >> 2 * BITS, keys >> BITS & mask, keys & mask], -1) - ORIGIN


def spacing(resolution: int) -> float:
    return 2 * BOX / resolution


def position(ijk: np.ndarray, resolution: int) -> np.ndarray:
    """Where corners (or points between them) lie: i = 0 is -BOX and i = R is BOX."""
    return ijk * spacing(resolution) - BOX


def find(keys: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Index of each wanted key in the sorted keys, -1 where it is not there."""
    at = np.searchsorted(keys, wanted)
    at[at == len(keys)] = 0
    return np.where(keys[at] == wanted, at, -1) if len(keys) else np.full(wanted.shape, -1)


def unique(keys: np.ndarray) -> np.ndarray:
    """Sorted, each key once; several times faster than np.unique on millions of keys."""
    keys = np.sort(keys, axis=None)
    first = np.ones(len(keys), bool)
    first[1:] = keys[1:] != keys[:-1]
    return keys[first]


def parts(count: int, size: int = 0) -> Iterator[slice]:
    """Slices that make up so many things, of no more than a size each: millions at once would take gigabytes."""
    size = size or CHUNK
    return (slice(start, start + size) for start in range(0, count, size))


# -- queries ----------------------------------------------------------------------------------------------------------


class Surface(NamedTuple):
    """A triangle mesh made ready for queries."""

    V: np.ndarray
    F: np.ndarray
    search: Callable | None  # points (n, 3) -> distance, face and point closest to each, in double precision
    scene: EmbreeScene  # rays, in single precision and five times as fast


def libigl(V: np.ndarray, F: np.ndarray) -> Callable:
    """The search of a surface; nearest.search gives one that is faster, where numba can be had."""
    tree = igl.AABB()
    tree.init(V, F)

    def search(P):
        squared, face, point = tree.squared_distance(V, F, np.ascontiguousarray(P, np.float64))
        return np.sqrt(squared), face, point

    return search


def prepare(V: np.ndarray, F: np.ndarray, rays_only: bool = False, search: Callable = libigl) -> Surface:
    V, F = np.array(V, np.float64, order="C"), np.array(F, np.int64, order="C")
    # robust: else one ray in ten that is aimed at an edge passes between its two faces; it costs no time.
    scene = EmbreeScene(robust=True)
    TriangleMesh(scene, V.astype(np.float32), F.astype(np.int32))
    return Surface(V, F, None if rays_only else search(V, F), scene)


def closest(surface: Surface, P: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distance (n,), face (n,) and point (n, 3) of the surface closest to each P (n, 3)."""
    distance, face, point = np.empty(len(P)), np.empty(len(P), np.int64), np.empty((len(P), 3))
    for part in parts(len(P)):
        distance[part], face[part], point[part] = surface.search(P[part])
    return distance, face, point


def nearest(V: np.ndarray, elements: np.ndarray, P: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distance (n,) and place (n, 3) of the segment (m, 2) or point (m, 1) of V closest to each P (n, 3)."""
    if not len(elements) or not len(P):
        return np.full(len(P), np.inf), np.full((len(P), 3), np.inf)
    tree = igl.AABB()
    tree.init(V, elements)
    squared, _, point = tree.squared_distance(V, elements, np.ascontiguousarray(P))
    return np.sqrt(squared), point


def hits(surface: Surface, O: np.ndarray, D: np.ndarray, limit: float = 1e37) -> tuple[np.ndarray, np.ndarray]:
    """First hit of each ray O + t * D: t (n,) up to the limit, inf where it hits nothing, and face (n,), then -1."""
    t, face = np.full(len(O), np.inf), np.empty(len(O), np.int64)
    for part, found in rays(surface, O, D, limit, {"output": True}):
        face[part] = found["primID"]
        np.copyto(t[part], found["tfar"], where=face[part] >= 0)
    return t, face


def blocked(surface: Surface, O: np.ndarray, D: np.ndarray, limit: float = 1.0) -> np.ndarray:
    """Whether anything lies between O (n, 3) and O + limit * D; quicker than its first hit."""
    found = np.empty(len(O), bool)
    for part, face in rays(surface, O, D, limit, {"query": "OCCLUDED"}):
        found[part] = face >= 0
    return found


def rays(surface, O, D, limit, options):
    for part in parts(len(O)):
        O_part, D_part = (np.ascontiguousarray(x[part], np.float32) for x in (O, D))
        yield part, surface.scene.run(O_part, D_part, dists=np.full(len(O_part), limit, np.float32), **options)


def morton(P: np.ndarray) -> np.ndarray:
    """Places (n,) of points (n, 3) on a curve through the 1024^3 cells of their box: indices, bits interleaved."""
    if not len(P):
        return np.zeros(0, np.int64)
    low = P.min(0)
    cells = ((P - low) * (1023 / max((P - low).max(), 1e-300))).astype(np.int64)  # (n, 3)
    spaced = np.arange(1024)
    for shift, mask in ((16, 0x30000FF), (8, 0x300F00F), (4, 0x30C30C3), (2, 0x9249249)):
        spaced = (spaced | spaced << shift) & mask
    return spaced[cells[:, 0]] << 2 | spaced[cells[:, 1]] << 1 | spaced[cells[:, 2]]


# -- the narrow band --------------------------------------------------------------------------------------------------


class Band(NamedTuple):
    """Every corner within reach of a surface, in the order of its key."""

    keys: np.ndarray
    distance: np.ndarray
    face: np.ndarray  # closest face
    point: np.ndarray  # closest point (n, 3)


def band(surface: Surface, resolution: int, reach: float) -> Band:
    """Octree descent: blocks of s^3 corners, halved while the distance from their centre leaves the reach possible.

    Needs about 9 queries for each crossed cell of the surface, wherever the rest of the grid is.
    """
    h = spacing(resolution)
    step = 1 << max(0, int(np.log2(resolution / 8)))
    low = np.floor((surface.V.min(0) + BOX - reach) / h / step).astype(np.int64)
    high = np.ceil((surface.V.max(0) + BOX + reach) / h / step).astype(np.int64)
    blocks = np.stack(np.meshgrid(*map(np.arange, low, high + 1), indexing="ij"), -1).reshape(-1, 3) * step
    keys = pack(blocks)
    while True:
        radius = (step - 1) / 2 * h * np.sqrt(3)  # of the block's corners about their centre
        distance, face, point = closest(surface, position(unpack(keys) + (step - 1) / 2, resolution))
        near = distance <= reach + radius
        keys = keys[near]
        if step == 1:
            order = np.argsort(keys)
            return Band(keys[order], *(x[near][order] for x in (distance, face, point)))
        step //= 2
        keys = (keys[:, None] + OFFSETS * step @ STEPS).ravel()


# -- outside ----------------------------------------------------------------------------------------------------------


class Outside(NamedTuple):
    """Who can be reached from afar: every corner but those in some runs along z, which are blocked or enclosed."""

    first: np.ndarray  # key of each run's first corner, sorted
    last: np.ndarray

    def __call__(self, keys: np.ndarray) -> np.ndarray:
        if not len(self.first):
            return np.ones(keys.shape, bool)
        run = np.searchsorted(self.first, keys, side="right") - 1
        return (run < 0) | (keys > self.last[run])


class Rooms(NamedTuple):
    """Free corners by the rooms they are in, in runs along z between blocked ones; room 0 surrounds them all."""

    first: np.ndarray  # key of each run's first corner, sorted
    last: np.ndarray
    room: np.ndarray  # that each run is in

    def __call__(self, keys: np.ndarray) -> np.ndarray:
        """The room that each free corner is in."""
        if not len(self.first):
            return np.zeros(keys.shape, np.int64)
        run = np.searchsorted(self.first, keys, side="right") - 1
        return np.where((run < 0) | (keys > self.last[run]), 0, self.room[run])

    def outside(self, open: np.ndarray) -> Outside:
        """Who is outside if some of the rooms are: a bool each."""
        free = open[self.room]
        first, last = self.first[free], self.last[free]
        inner = first[1:] >> BITS == last[:-1] >> BITS  # between two runs of a column
        return Outside(last[:-1][inner] + 1, first[1:][inner] - 1)


def rooms(blocked: np.ndarray) -> Rooms:
    """Flood fill over 6-connected free corners, by runs along z between the blocked ones (sorted keys).

    Runs of neighbouring columns that overlap are joined, so the work grows with the surface, not with the volume.
    """
    if not len(blocked):
        return Rooms(blocked, blocked, blocked)
    ijk = unpack(blocked)
    low, high = ijk.min(0) - 1, ijk.max(0) + 1
    x, y = np.meshgrid(np.arange(low[0], high[0] + 1), np.arange(low[1], high[1] + 1), indexing="ij")
    ends = pack(np.stack([np.stack([x, y, np.full_like(x, z)], -1) for z in (low[2] - 1, high[2] + 1)], 2)).ravel()
    walls = np.insert(blocked, np.searchsorted(blocked, ends), ends)  # and one below and one above each column
    gap = np.flatnonzero((walls[1:] - walls[:-1] > 1) & (walls[1:] >> BITS == walls[:-1] >> BITS))
    first, last = walls[gap] + 1, walls[gap + 1] - 1
    a, b = [], []
    for step in STEPS[:2]:
        start = np.searchsorted(last, first + step)  # the first run of the next column that ends above this one's start
        stop = np.searchsorted(first, last + step, side="right")  # and the first that starts above its end
        count = np.maximum(stop - start, 0)
        a.append(np.repeat(np.arange(len(first)), count))
        b.append(np.arange(count.sum()) + np.repeat(start - np.cumsum(count) + count, count))
    a, b = np.concatenate(a), np.concatenate(b)
    graph = coo_array((np.ones(len(a), bool), (a, b)), shape=(len(first), len(first)))
    return Rooms(first, last, connected_components(graph, directed=False)[1])  # which numbers them in their order


def flood(blocked: np.ndarray) -> Outside:
    """What can be reached from afar by steps along the axes, from free corner to free corner."""
    found = rooms(blocked)
    return found.outside(np.arange(found.room.max(initial=0) + 1) == 0)


class Places(NamedTuple):
    """Where a corner stands among some sorted keys, and FREE or ENCLOSED for one that is none of them.

    Each block of 8^3 corners that has keys has a table, and a coarse grid of blocks says which: three times as fast as
    a binary search. The coarse grid ends a block beyond the keys; what lies farther off is as FREE as that block.
    """

    base: int  # key of the first corner of the coarse grid
    number: np.ndarray  # the block's table (a, b, c); FREE's and ENCLOSED's are shared
    table: np.ndarray  # 512 numbers each

    def __call__(self, keys: np.ndarray) -> np.ndarray:
        keys = keys - self.base
        mask = (1 << BITS) - 1
        i, j, k = (n.astype(np.int32) for n in (keys >> 2 * BITS, keys >> BITS & mask, keys & mask))
        a, b, c = (np.clip(n >> 3, 0, last - 1) for n, last in zip((i, j, k), self.number.shape, strict=True))
        table = self.number[a, b, c]
        return self.table[(table << 9) | (i & 7) << 6 | (j & 7) << 3 | k & 7]

    def add(self, keys: np.ndarray, start: int) -> "Places":
        """With more keys, FREE ones; they stand at start and after."""
        block = (unpack(keys) - unpack(np.int64(self.base))) >> 3
        number, bare = self.number.copy(), np.zeros(self.number.shape, bool)
        bare[tuple(block.T)] = True
        bare &= number == 0
        count = len(self.table) // 512
        number[bare] = np.arange(count, count + bare.sum())
        table = np.r_[self.table, np.full(512 * bare.sum(), FREE, np.int32)]
        table[number[tuple(block.T)] * 512 + (unpack(keys) & 7) @ (64, 8, 1)] = np.arange(start, start + len(keys))
        return Places(self.base, number, table)


FREE, ENCLOSED = -1, -2
BLOCK = np.stack(np.unravel_index(np.arange(512), (8, 8, 8)), -1)  # (512, 3)


def places(keys: np.ndarray, outside: Outside) -> Places:
    """Of sorted keys, among which are all corners where the outside ends."""
    block = unpack(keys) >> 3
    low, high = block.min(0) - 1, block.max(0) + 2
    all_blocks = np.stack(np.meshgrid(*map(np.arange, low, high), indexing="ij"), -1)  # (a, b, c, 3)
    number = np.where(outside(pack(all_blocks * 8)), 0, 1).astype(np.int32)
    touched = np.zeros(number.shape, bool)
    touched[tuple((block - low).T)] = True
    number[touched] = np.arange(2, 2 + touched.sum())
    table = np.empty((2 + touched.sum(), 512), np.int32)
    table[0], table[1] = FREE, ENCLOSED
    rows = pack(all_blocks[touched] * 8)[:, None] + BLOCK[::8] @ STEPS  # (t, 64)
    # Along each row of eight: a binary search for the first corner only, then from run to run.
    first, last = np.r_[outside.first, np.iinfo(np.int64).max], np.r_[outside.last, 0]
    run = np.searchsorted(outside.first, rows, side="right") - 1
    for n in range(8):
        run += first[run + 1] <= rows + n
        table[2:, n::8] = np.where(rows + n > last[run], FREE, ENCLOSED)
    table[number[tuple((block - low).T)], (unpack(keys) & 7) @ (64, 8, 1)] = np.arange(len(keys))
    return Places(int((low * 8 + ORIGIN) @ STEPS), number, table.ravel())
