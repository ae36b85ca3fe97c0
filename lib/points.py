"""The points a shape VAE sees and is asked for: read from 02, drawn anew each step, turned with their labels."""

import threading
import zipfile
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np

Augment = Literal["none", "flip", "turn", "rotate"]
KEYS = {"fps_coarse_surface": 6, "fps_sharp_surface": 6, "sharp_near_surface": 4, "rand_points": 4}  # numbers a point


class Points(NamedTuple):
    """Of one shape; surfaces are (n, 6) with normals, the others (n, 4) with the signed distance, positive inside."""

    coarse: np.ndarray  # spread over the surface
    sharp: np.ndarray  # on its sharp edges
    edges: np.ndarray  # near these
    near: np.ndarray  # near the surface
    uniform: np.ndarray  # anywhere in the box


def read(path: str | Path, uniform: int = 0) -> Points:
    """All points of a `_sample_points.npz`, in the precision they were written in.

    The last `uniform` of rand_points lie anywhere in the box, the others near the surface; 0 is Dora's third.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = [file[key].reshape(-1, width) for key, width in KEYS.items()]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path} holds no sample points ({type(error).__name__}: {error}); wanted {', '.join(KEYS)}. "
            "Remove it and run 02_sharp_sample again."
        ) from None
    if not all(len(array) for array in arrays) or not all(np.isfinite(array).all() for array in arrays):
        raise ValueError(f"{path}: an array is empty or not finite. Remove it and run 02_sharp_sample again.")
    coarse, sharp, edges, anywhere = arrays
    first = len(anywhere) - (uniform or max(len(anywhere) // 3, 1))
    if first < 1:
        raise ValueError(f"{path}: {len(anywhere)} rand_points, where {uniform} should lie anywhere and others near")
    return Points(coarse, sharp, edges, anywhere[:first], anywhere[first:])


class Shelf:
    """Points of many shapes by number: kept in memory as far as they fit, else read again when they are wanted."""

    def __init__(self, files: list[tuple[Path, int]], memory: float):
        self.files, self.room = files, memory * 2**30  # path and uniform, see `read`; bytes
        self.kept: dict[int, Points] = {}
        self.lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, number: int) -> Points:
        if number in self.kept:
            return self.kept[number]
        points = read(*self.files[number])
        size = sum(array.nbytes for array in points)
        with self.lock:
            if number not in self.kept and size <= self.room:
                self.kept[number] = points
                self.room -= size
        return points


def pick(array: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """So many rows at random, as float32; none twice if there are enough, all in their order if just so many."""
    if count < len(array):
        array = array[rng.choice(len(array), count, replace=False, shuffle=False)]
    elif count > len(array):
        array = array[rng.integers(0, len(array), count)]
    return array.astype(np.float32)


def draw(
    shape: Points,
    rng: np.random.Generator,
    points: int,  # on the surface, and as many on sharp edges; 0 = all that there are of each
    supervision: tuple[int, int, int],  # how many near the edges, near the surface and anywhere
    edges: bool = True,  # False: points of the whole surface stand in for those of the edges, to compare
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What a step sees and is asked about a shape: coarse (points, 6), sharp (points, 6), queries (sum, 4)."""
    sharp, asked = (shape.sharp, shape.edges) if edges else (shape.coarse, shape.near)
    sources = zip((asked, shape.near, shape.uniform), supervision, strict=True)
    queries = np.concatenate([pick(array, count, rng) for array, count in sources])
    return *(pick(array, points or len(array), rng) for array in (shape.coarse, sharp)), queries


def augment(how: Augment, coarse: np.ndarray, sharp: np.ndarray, queries: np.ndarray, rng: np.random.Generator):
    """Mirrored and turned, with labels that stay true.

    flip: left and right; turn: also by right angles about the upright axis y; rotate: as Dora does, a mirror about any
    axis for three in four, then any rotation, and scaled and moved back so that the surface fills [-1, 1] as before.
    """
    if how not in get_args(Augment):
        raise ValueError(f"augment = {how!r}; wanted one of {', '.join(get_args(Augment))}")
    if how == "none":
        return coarse, sharp, queries
    if how == "rotate":
        mirror = np.ones(3)
        mirror[rng.integers(3)] = -1 if rng.random() < 0.75 else 1
        M = random_rotation(rng) * mirror
    else:
        M = np.diag([rng.choice([-1.0, 1.0]), 1, 1])
        c, s = ((1, 0), (0, 1), (-1, 0), (0, -1))[rng.integers(4) if how == "turn" else 0]
        M = np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]]) @ M
    M = M.astype(np.float32)
    coarse, sharp = (np.hstack([P[:, :3] @ M.T, P[:, 3:] @ M.T]) for P in (coarse, sharp))
    queries = np.hstack([queries[:, :3] @ M.T, queries[:, 3:]])
    if how == "rotate":
        surface = np.concatenate([coarse[:, :3], sharp[:, :3]])
        low, high = surface.min(0), surface.max(0)
        center, scale = (low + high) / 2, 2 / (high - low).max()
        for P in (coarse, sharp, queries):
            P[:, :3] = (P[:, :3] - center) * scale
        queries[:, 3] *= scale  # distances grow with the shape
    return coarse, sharp, queries


def random_rotation(rng: np.random.Generator) -> np.ndarray:
    """Uniform over all rotations: a random quaternion's matrix (3, 3)."""
    w, x, y, z = (q := rng.normal(size=4)) / np.linalg.norm(q)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )
