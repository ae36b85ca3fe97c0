"""Points on sharp edges, on the surface and near it, with signed distance: what Dora-VAE learns from."""

import hashlib
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from scipy.spatial import cKDTree

from lib import mesh, signed, winding
from lib.clock import Clock
from lib.dataset import BOX
from lib.edges import Edges, find_edges

VERSION = 5  # a compiled search for the closest face; balls that meet are on one side, for points anywhere
Precision = Literal["float16", "float32"]
FAR = 0.25  # half precision rounds labels beyond this by 1e-4 and more
ENOUGH = 2.0  # length of sharp edges that takes all sharp points (a cube has 24): a stray edge must not
CROWD = 2.4  # of the points for each chosen one, so many lie within the radius to begin with: nearly all find room
CLOSER = 0.93  # by which share it shrinks until they do


def sharp_sample(item, **parameters) -> dict:
    """Sample an item's closed mesh, write points and labels under Dora's keys; returns the facts.

    The parameters are those of `checked`.
    """
    parameters = checked(**parameters)
    clock = Clock()
    source = item.path("_normalized.obj")
    V, F = mesh.read(source)
    if np.abs(V).max() > BOX:
        raise ValueError(f"{source} reaches {np.abs(V).max():.4g}; wanted [-1, 1]. Run 01_watertight on it again.")
    clock("read")
    points, facts = sample(V, F, **parameters)
    clock("sample")
    arrays = label(V, F, points, parameters["precision"], parameters["uniform"])
    clock("label")
    with item.writing("_sample_points.npz") as path:
        np.savez(path, **arrays)
    with item.writing("_sharp_sample.ply") as path:
        write_points(path, points["fps_sharp_surface"][:, 0])
    clock("write")
    facts |= judge(V, F, arrays, parameters["uniform"])
    facts["bytes"] = sum(output["size"] for output in item.written.values())
    return facts | clock.seconds


def checked(
    coarse: int = 32768,  # points spread over the surface
    sharp: int = 32768,  # points on its sharp edges
    draws: int = 200_000,  # random points of the surface, twice: to be moved off it, and to choose the coarse ones from
    uniform: int = 200_000,  # points anywhere in the box
    near: tuple = (0.001, 0.005),  # standard deviations of the move off the surface, each for all the draws
    sharp_near: tuple = (0.001, 0.005, 0.007, 0.01),  # the same off the sharp edges
    angle: float = 15.0,  # degrees between two faces' normals from which their edge is sharp
    precision: Precision = "float16",  # of what is stored; labels are those of the rounded points
    seed: int = 0,
) -> dict:
    """These parameters by name, if they make sense together: asked before anything that is done is done again."""
    parameters = dict(locals())
    counts = {name: parameters[name] for name in ("coarse", "sharp", "draws", "uniform")}
    wrong = [f"{name} = {count}; wanted 1 or more" for name, count in counts.items() if count < 1]
    wrong += [f"draws = {draws} is less than coarse = {coarse}, which are chosen from them"] * (draws < coarse)
    for name in ("near", "sharp_near"):
        if not len(parameters[name]) or not all(0 <= sigma <= BOX for sigma in parameters[name]):
            wrong.append(f"{name} = {list(parameters[name])}; wanted distances from 0 to {BOX}, one at least")
    wrong += [f"angle = {angle}; wanted degrees from 0 to 180"] * (not 0 <= angle <= 180)
    wrong += [f"seed = {seed}; wanted 0 or more"] * (seed < 0)
    wrong += [f"precision = {precision!r}; wanted one of {get_args(Precision)}"] * (
        precision not in get_args(Precision)
    )
    if wrong:
        raise ValueError("; ".join(wrong))
    return parameters


# -- points -----------------------------------------------------------------------------------------------------------


def sample(V: np.ndarray, F: np.ndarray, **parameters) -> tuple[dict, dict]:
    """Points under Dora's keys, in double precision: (n, 1, 6) with normals on the surface, (n, 3) off it; and facts.

    They come from the seed and the mesh alone, so neither order nor number of workers changes them.
    """
    p = checked(**parameters)
    digest = hashlib.sha256(V.tobytes() + F.tobytes()).digest()
    rng = np.random.default_rng([p["seed"], *np.frombuffer(digest, np.uint32)])
    moved, drawn = (np.hstack(winding.sample(V, F, p["draws"], rng.integers(2**63))[:2]) for _ in range(2))
    coarse = drawn[spread(drawn[:, :3], p["coarse"], rng)]
    sharp, facts = draw_sharp(V, F, p["sharp"], p["angle"], rng)
    points = {
        "fps_coarse_surface": coarse[:, None],
        "fps_sharp_surface": sharp[:, None],
        "sharp_near_surface": shaken(sharp[:, :3], p["sharp_near"], rng),
        "rand_points": np.r_[shaken(moved[:, :3], p["near"], rng), rng.uniform(-BOX, BOX, (p["uniform"], 3))],
    }
    return points, {"faces": len(F), **facts}


def shaken(P: np.ndarray, sigmas: tuple, rng) -> np.ndarray:
    """All points moved by Gaussian noise, once for each standard deviation."""
    return np.concatenate([P + rng.normal(0, sigma, P.shape) for sigma in sigmas])


def spread(P: np.ndarray, count: int, rng) -> np.ndarray:
    """Indices of `count` of the points (n, 3), as far apart and as near to the rest as farthest-point sampling's.

    That takes the farthest point, one by one. Here all that do not crowd each other are taken at once: in random order
    those without a chosen point within a radius. Then the radius shrinks, until there are enough of them.
    """
    tree, rank = cKDTree(P), rng.permutation(len(P))
    crowd = min(max(round(CROWD * len(P) / count), 2), len(P))
    radius = np.median(tree.query(P[:: max(len(P) // 500, 1)], [crowd])[0])
    while True:  # a radius at which not quite all find room, so that none of those who do is left out
        pairs = tree.query_pairs(radius, output_type="ndarray").astype(np.int32)  # (m, 2)
        new = independent(pairs, np.ones(len(P), bool), rank)
        if len(new) <= count:
            break
        radius *= 1.1
    distance = np.linalg.norm(P[pairs[:, 0]] - P[pairs[:, 1]], axis=1)
    gap = np.full(len(P), np.inf)  # to the nearest chosen point; of a chosen one -inf
    while True:
        chosen = np.zeros(len(P), bool)
        chosen[new] = True
        for one, other in ((0, 1), (1, 0)):
            near = chosen[pairs[:, one]]
            np.minimum.at(gap, pairs[near, other], distance[near])
        gap[new] = -np.inf
        left = count - np.isneginf(gap).sum()
        if not left:
            return np.flatnonzero(np.isneginf(gap))
        radius = radius * CLOSER if radius > 1e-9 else 0.0  # some points may lie in one place
        new = independent(pairs[distance < radius], gap >= radius, rank)
        new = new[np.argsort(-gap[new], kind="stable")][:left]  # the loneliest


def independent(pairs: np.ndarray, free: np.ndarray, rank: np.ndarray) -> np.ndarray:
    """Points of which no two are a pair, as if each that is free were taken by rank unless its partner is."""
    taken, free = [np.zeros(0, np.int64)], free.copy()
    while True:
        pairs = pairs[free[pairs].all(1)]
        beaten = np.zeros(len(free), bool)
        beaten[np.where(rank[pairs[:, 0]] > rank[pairs[:, 1]], pairs[:, 0], pairs[:, 1])] = True
        new = free & ~beaten
        taken.append(np.flatnonzero(new))
        if not len(pairs):
            return np.concatenate(taken)
        free &= ~new
        free[pairs[new[pairs[:, 0]], 1]] = free[pairs[new[pairs[:, 1]], 0]] = False


# -- sharp edges ------------------------------------------------------------------------------------------------------


def draw_sharp(V: np.ndarray, F: np.ndarray, count: int, angle: float, rng) -> tuple[np.ndarray, dict]:
    """Points and normals (count, 6) on the sharp edges, at equal distances along them; and facts.

    Where they are none, or too short to take all points, the rest goes where the surface bends most: along all other
    edges in proportion to their bend; where nothing bends, anywhere.
    """
    edges = find_edges(V, F)
    is_sharp = edges.bend > angle
    length = float(edges.length[is_sharp].sum())
    on_sharp = min(count, int(np.ceil(count * length / ENOUGH)))
    bend = np.where(is_sharp, 0, edges.length * edges.bend)
    bent = count - on_sharp if bend.sum() > 1e-3 else 0
    points = [
        along(V, edges, np.where(is_sharp, edges.length, 0), on_sharp, rng),
        along(V, edges, bend, bent, rng),
        np.hstack(winding.sample(V, F, count - on_sharp - bent, rng.integers(2**63))[:2]),
    ]
    facts = {"sharp_edges": int(is_sharp.sum()), "sharp_length": length, "on_sharp": on_sharp / count}
    facts |= {"smooth": on_sharp == 0, "filled": "" if on_sharp == count else "curvature" if bent else "uniform"}
    return np.concatenate(points), facts


def along(V: np.ndarray, edges: Edges, weight: np.ndarray, count: int, rng) -> np.ndarray:
    """Points and normals (count, 6) at equal steps of the edges' summed weight, the first one anywhere in its step."""
    if not count:
        return np.zeros((0, 6))
    end = np.cumsum(weight)
    at = (np.arange(count) + rng.random()) / count * end[-1]
    edge = np.minimum(np.searchsorted(end, at, side="right"), np.flatnonzero(weight)[-1])
    t = np.clip((end[edge] - at) / weight[edge], 0, 1)[:, None]
    start, stop = V[edges.ends[edge]].swapaxes(0, 1)
    return np.hstack([t * start + (1 - t) * stop, edges.normal[edge]])


# -- labels and files -------------------------------------------------------------------------------------------------


def label(V: np.ndarray, F: np.ndarray, points: dict, precision: Precision, uniform: int) -> dict:
    """The arrays to be stored: coordinates are rounded first and labels computed for where the points then are.

    Labels are exact before they are rounded, but for the last `uniform` points in half precision: farther than FAR
    from the surface these may be off by what rounding takes, which halves the time.
    """
    arrays = {key: P.astype(precision) for key, P in points.items()}
    solid = signed.prepare(V, F)
    sharp, rand = (arrays[key].astype(np.float64) for key in ("sharp_near_surface", "rand_points"))
    near = signed.distance(solid, np.r_[sharp, rand[:-uniform]])
    far = signed.distance(solid, rand[-uniform:], FAR if precision == "float16" else np.inf)
    distance = np.r_[near, far].astype(precision)[:, None]
    arrays["sharp_near_surface"] = np.hstack([arrays["sharp_near_surface"], distance[: len(sharp)]])
    arrays["rand_points"] = np.hstack([arrays["rand_points"], distance[len(sharp) :]])
    return arrays


def judge(V: np.ndarray, F: np.ndarray, arrays: dict, uniform: int) -> dict:
    """Facts of the labels; the share of the box that is inside must be the mesh's volume, which asks no label."""
    anywhere = arrays["rand_points"][-uniform:, 3].astype(float)
    A, B, C = V[F].swapaxes(0, 1)
    volume = float(np.einsum("ij,ij->", A, np.cross(B, C)) / 6 / (2 * BOX) ** 3)
    inside = float((anywhere > 0).mean())
    spread = np.sqrt(max(volume * (1 - volume), 1 / uniform) / uniform)
    facts = {"inside": inside, "volume": volume, "off": abs(inside - volume) / spread}
    facts |= {"deepest": float(anywhere.max()), "farthest": float(anywhere.min())}
    for key in ("sharp_near_surface", "rand_points"):
        near = arrays[key][: len(arrays[key]) - (uniform if key == "rand_points" else 0), 3].astype(float)
        facts[f"{key.split('_')[0]}_mean"] = float(np.abs(near).mean())
    assert all(np.isfinite(array).all() for array in arrays.values()), "a point or label is no number"
    return facts


def write_points(path: Path, P: np.ndarray) -> None:
    """Points with normals (n, 6) as binary PLY."""
    names = ("x", "y", "z", "nx", "ny", "nz")
    head = f"ply\nformat binary_little_endian 1.0\nelement vertex {len(P)}\n"
    head += "".join(f"property float {name}\n" for name in names) + "end_header\n"
    path.write_bytes(head.encode() + P.astype("<f4").tobytes())
