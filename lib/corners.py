"""A field's values at the corners of a grid: each is asked once, kept under its key, and looked up from then on.

The grid has 2^depth cells along each side of the box [-BOX, BOX]; corner i lies exactly at i * 2 * BOX / 2^depth - BOX.
A corner is one int64 key, its three indices side by side, at the finest level for all levels: keys sort like (i, j, k),
a neighbour's key is a sum, and no corner is asked twice. A ring of corners outside the box, which are never asked and
always outside, closes what the box cuts. All of it is torch, on the device where the field is.
"""

import time
from collections.abc import Callable, Iterator

import numpy as np
import torch

from lib import memory
from lib.cubes import OFFSETS
from lib.dataset import BOX

BITS = 13  # an index in a key, so that three and two more bits make an int64 at any depth that fits a memory
ORIGIN = 1  # added to every index, for the ring
STEPS = (1 << 2 * BITS, 1 << BITS, 1)  # to the next corner along x, y, z
FAR = 1e6  # below any value: outside the box
CELL_BYTES = 200  # memory that a corner takes, with its part of cells and faces: 140 measured at depth 10
FIRST = 1 << 13  # points of the first call, if nobody says how many
LEAST = 1 << 8  # points of a call that memory must hold
PIECE = 1 << 18  # cells at once: bounds the memory of what is computed about them

Query = Callable[[torch.Tensor], torch.Tensor]  # points (n, 3) -> values (n,), positive inside


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
        self.query, self.depth, self.device = query, depth, device
        self.on_gpu = torch.device(device).type == "cuda"
        self.chunk, self.grows = chunk or FIRST, not chunk
        self.largest = 1 << 20 if self.on_gpu else 1 << 15  # on a CPU what a query makes of so many nearly fits caches
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
            part = ijk[done : done + self.chunk]
            points = part.to(torch.float32) * (2 * BOX / self.last) - BOX  # (n, 3)
            found = self.measured(points)
            if found is None:  # the memory that it took is given back by now: from here again, half as many
                continue
            if found.shape != (len(points),):
                raise ValueError(f"the query gave {tuple(found.shape)} for {len(points)} points; wanted a value each")
            values.append(found.float())
            done += len(part)
            if not torch.isfinite(values[-1]).all():
                self.refuse(points, values[-1])
        self.asked += len(ijk)
        values = torch.cat(values).clamp_(-FAR / 10, FAR / 10) if values else torch.empty(0, device=self.device)
        if self.on_gpu:
            torch.cuda.synchronize(self.device)
        self.seconds += time.perf_counter() - begin
        return values

    def measured(self, points: torch.Tensor) -> torch.Tensor | None:
        """One call; None if it was too much for the memory, and `chunk` is half of it then.

        What a call took says how many points the next may have, at most four times as many.
        """
        now, most = memory.taken(self.device) if self.grows else (0, 0)
        try:
            found = self.query(points)
        except (MemoryError, RuntimeError) as error:
            if not memory.is_out(error) or len(points) <= LEAST:
                raise
            self.chunk, self.grows = len(points) // 2, False
        else:
            if self.grows and len(points) == self.chunk:
                peak = memory.taken(self.device)[1]
                each = (peak - now) / len(points) if peak > most else 0  # else it fitted into what was taken before
                room = min(memory.free(self.device) / 4, memory.GIB)
                self.chunk = int(min(max(room / max(each, 1), LEAST), 4 * len(points), self.largest))
                self.grows = 2 * len(points) <= self.chunk  # nearer than that the next one would tell no more
            return found
        if self.on_gpu:
            torch.cuda.empty_cache()  # pieces that are too small for anything
        return None

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


def pieces(keys: torch.Tensor, count: int = PIECE) -> Iterator[torch.Tensor]:
    """At least one, if an empty one."""
    return (keys[n : n + count] for n in range(0, max(len(keys), 1), count))
