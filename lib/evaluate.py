"""08: how good: reconstructions and generations beside the truth, or any two folders of meshes, in one table."""

import functools
import hashlib
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from lib import camera, edges, memory, mesh, picture, score, winding
from lib.clock import Clock
from lib.dataset import Item, write_text
from lib.pairs import latents
from lib.surface import surface
from lib.vae import VAE, load
from lib.versus import Pair, collect, pair_of

__all__ = ["collect", "evaluate"]  # and what the notebook shows, below

MADE = "_made.obj"  # end of the name of a mesh that latents were decoded to
SHARP = 15.0  # degrees of bend from which an edge counts for the level
Align = Literal["none", "truth", "each"]
SETS = 2048  # points of a shape where whole sets are compared

# Every score: what it is and in which unit, and whether more is better.
SCORES = {
    "chamfer_l1": ("mean distance to the other surface, there plus back; the shape spans 2", False),
    "chamfer_l2": ("mean squared distance to the other surface, there plus back", False),
    "f_0.005": ("share of either surface within 0.005 of the other, harmonic mean", True),
    "f_0.01": ("the same within 0.01", True),
    "f_0.02": ("the same within 0.02", True),
    "f_0.05": ("the same within 0.05", True),
    "normal_consistency": ("mean cosine between normals of nearest points, whichever way they face", True),
    "iou": ("volume in common of volume in either", True),
    "sharp_normal_error": ("100 times the squared error of normal maps near the truth's edges", False),
    "f_sharp": ("F-score within 0.02 of what lies on sharp edges; of shapes that have some", True),
}
DISTANCES = (0.005, 0.01, 0.02, 0.05)


# -- one pair ---------------------------------------------------------------------------------------------------------


def evaluate(
    item: Item,
    points: int = 100_000,  # of either surface, and places in the box for the overlap
    align: Align = "none",
    views: int = 22,  # normal maps, 0 = leave this score out
    size: int = 256,  # pixels of a map
    depth: int = 7,  # of the octree that latents are decoded at
    seed: int = 0,
    vae: str = "",
    device: str = "cpu",
) -> dict:
    """The scores of one pair; the mesh is kept where latents were decoded."""
    if points < 1:
        raise ValueError(f"points = {points}; wanted at least 1")
    clock, pair = Clock(), pair_of(item)
    truth = mesh.read(pair.truth)
    made = decoded(item, pair, vae, depth, device) if pair.made.endswith(".npy") else mesh.read(pair.made)
    clock("read")
    made, truth = aligned(made, truth, align)
    if (reach := np.linalg.norm(truth[0], axis=1).max()) > camera.REACH:  # no map shows all of it
        raise ValueError(f'{pair.truth} reaches {reach:.3g} from 0, wanted shapes of [-1, 1]; set align = "truth"')
    own = int(hashlib.sha256(pair.name.encode()).hexdigest()[:8], 16)
    rng = np.random.default_rng([seed, own])
    (P, N), (Q, M), (again, across) = (score.surface_sample(*V_F, points, rng) for V_F in (made, truth, truth))
    clock("sample")
    scores = of_points(score.match(P, Q), N, M)
    best = of_points(score.match(again, Q), across, M)
    clock("points")
    scores["iou"] = overlap(made, truth, points, rng)
    clock("iou")
    if views:
        scores["sharp_normal_error"] = edges.sharp_normal_error(made, truth, views, size)
        clock("normals")
    scores["f_sharp"], best["f_sharp"] = score.f_sharp(P, N, Q, M), score.f_sharp(again, across, Q, M)
    clock("sharp")
    found = edges.find_edges(*merged(*truth))
    sharp = int((found.bend > SHARP).sum())
    return {
        "task": pair.task,
        "kind": pair.kind,
        "level": edges.level(sharp),
        **{name: number(scores[name]) for name in SCORES if name in scores},
        **{f"best_{name}": number(value) for name, value in best.items()},
        "faces_made": len(made[1]),
        "faces_truth": len(truth[1]),
        "open": bool(len(made[1])) and winding.is_open(merged(*made)[1]),
        "sharp_edges": sharp,
        **clock.seconds,
    }


def of_points(found: score.Match, N: np.ndarray, M: np.ndarray) -> dict:
    """The scores that nearest points and their normals give."""
    scores = {"chamfer_l1": score.chamfer_l1(found), "chamfer_l2": score.chamfer_l2(found)}
    scores |= {f"f_{distance}": score.f_score(found, distance) for distance in DISTANCES}
    return scores | {"normal_consistency": score.normal_consistency(found, N, M)}


def overlap(made: tuple, truth: tuple, count: int, rng: np.random.Generator) -> float:
    """IoU from places anywhere in the box about both; inside is where winding numbers exceed 1/2, holes or not."""
    if not len(made[1]):
        return 0.0
    both = np.concatenate([made[0], truth[0]])
    X = rng.uniform(both.min(0), both.max(0), (count, 3))
    return score.iou(*(np.abs(winding.number_at(V, F, X)) > 0.5 for V, F in (made, truth)))


def decoded(item: Item, pair: Pair, vae: str, depth: int, device: str) -> tuple[np.ndarray, np.ndarray]:
    """The mesh that a shape's latents stand for, also written beside its scores."""
    V, F, _ = surface(network(vae, device), latents(Path(pair.made)), depth)
    if len(F):
        with item.writing(MADE) as beside:
            mesh.write(beside, V, F)
    return V, F


@functools.lru_cache(1)
def network(vae: str, device: str) -> VAE:
    """One network a process."""
    return load(vae, memory.choose(device))


def aligned(made: tuple, truth: tuple, align: Align) -> tuple[tuple, tuple]:
    """Both in one frame: as they are, moved together so that the truth spans [-1, 1], or each by its own box."""
    if align == "none" or not len(made[1]):
        return made, truth
    V, center, scale = mesh.normalise(truth[0])
    W = (made[0] - center) / scale if align == "truth" else mesh.normalise(made[0])[0]
    return (W, made[1]), (V, truth[1])


def merged(V: np.ndarray, F: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Vertices at one place are one, or files that repeat them would be nothing but rims."""
    places, same = np.unique(V, axis=0, return_inverse=True)
    F = same.reshape(-1)[F]
    return places, F[(np.roll(F, 1, 1) != F).all(1)]


def number(value: float) -> float | None:
    """As JSON has it: nothing where there is no score."""
    return float(value) if np.isfinite(value) else None


# -- what the notebook shows ------------------------------------------------------------------------------------------


def scored(ledger: pd.DataFrame) -> pd.DataFrame:
    """The rows that have scores, numbers as numbers; the columns that tables need are there even if no row is."""
    rows = ledger[ledger["status"].isin(["done", "kept"])].copy()
    rows = rows.reindex(
        columns=[*rows.columns, *(name for name in ("task", "kind", "level", "f_0.05") if name not in rows)]
    )
    for name in rows.columns.intersection([*SCORES, *(f"best_{name}" for name in SCORES)]):
        rows[name] = pd.to_numeric(rows[name], errors="coerce")
    return rows


def summary(ledger: pd.DataFrame) -> pd.DataFrame:
    """A row a score: of each task the mean, and where 95% of bootstrapped means lie; then the best that can be."""
    rows, table = scored(ledger), []
    for name, counted in (("pairs", len), ("no surface", lambda some: int((some["faces_made"] == 0).sum()))):
        counts = {task: counted(some) for task, some in rows.groupby("task", sort=False)}
        table.append({"score": name, **counts, "what it is": "their distances are in no mean" if table else "scored"})
    for name in rows.columns.intersection(list(SCORES), sort=False):
        meaning, more = SCORES[name]
        line = {"score": name, "better": "more" if more else "less"}
        for task, some in rows.groupby("task", sort=False):
            low, high = score.interval(some[name].to_numpy())
            line |= {task: some[name].mean(), f"{task}, 95%": f"{low:.3g} to {high:.3g}"}
        best = rows[f"best_{name}"].mean() if f"best_{name}" in rows else np.nan
        table.append(line | {"two samples of the truth": best, "what it is": meaning})
    return pd.DataFrame(table)


def by(ledger: pd.DataFrame, column: str) -> pd.DataFrame:
    """Means of the scores by task and class, or by task and level."""
    rows = scored(ledger)
    groups = rows.groupby(["task", column])
    means = groups[list(rows.columns.intersection(list(SCORES), sort=False))].mean()
    return groups.size().to_frame("shapes").join(means).reset_index()


def sets(ledger: pd.DataFrame, entered: list[Item], most: int = 200) -> pd.DataFrame:
    """The made meshes as a set beside the true ones: has it as many kinds, and could one tell them apart?

    Of what was generated or is others' predictions, one of each shape.
    """
    rows, place, found = scored(ledger), {item.name: item for item in entered}, []
    for task, some in rows[rows["task"] != "reconstruction"].groupby("task", sort=False):
        pairs = {pair.truth: pair for pair in map(pair_of, [place[name] for name in some["item"][::-1]])}
        rng = np.random.default_rng(0)
        made, true = (
            [score.surface_points(*mesh.read(getattr(pair, side)), SETS, rng) for pair in list(pairs.values())[:most]]
            for side in ("made", "truth")
        )
        if len(made) < 2:
            continue
        between = score.apart(made, true)
        apart = score.one_nearest_neighbour(score.apart(made, made), between, score.apart(true, true))
        nearest = score.minimum_matching_distance(between)
        numbers = {"coverage": score.coverage(between), "minimum matching distance": nearest, "1-NNA": apart}
        found.append({"task": task, "shapes": len(made)} | numbers)
    return pd.DataFrame(found, columns=["task", "shapes", "coverage", "minimum matching distance", "1-NNA"])


def latex(ledger: pd.DataFrame, target: str | Path) -> str:
    """The means as a LaTeX table (with booktabs), a row a task; also written to a file."""
    rows = scored(ledger)
    names = rows.columns.intersection(list(SCORES), sort=False)
    arrows = {name: r"$\uparrow$" if SCORES[name][1] else r"$\downarrow$" for name in names}
    heads = " & ".join(name.replace("_", r"\_") + arrows[name] for name in names)
    top = [r"\begin{tabular}{l" + "r" * len(names) + "}", r"\toprule", f" & {heads} \\\\", r"\midrule"]
    lines = []
    for task, some in rows.groupby("task", sort=False):
        lines.append(" & ".join([f"{task} ({len(some)})", *(f"{some[name].mean():.4g}" for name in names)]) + r" \\")
    text = "\n".join([*top, *lines, r"\bottomrule", r"\end{tabular}"])
    write_text(target, text + "\n")
    return text


def worst(ledger: pd.DataFrame, entered: list[Item], n: int = 12, columns: int = 6):
    """The pairs of each task that came out worst by F(0.05), each made mesh beside the truth."""
    rows, place = scored(ledger).sort_values("f_0.05", kind="stable"), {item.name: item for item in entered}
    rows = rows.groupby("task", sort=False).head(n // max(rows["task"].nunique(), 1))
    rows = rows.sort_values(["task", "f_0.05"], kind="stable")
    meshes, titles = [], []
    for row in rows.to_dict("records"):
        pair, kept = pair_of(place[row["item"]]), place[row["item"]].path(MADE)
        meshes += [
            picture.mesh_or_reason(path) for path in (kept if kept.exists() else Path(pair.made), Path(pair.truth))
        ]
        titles += [f"{row['item']}\nF(0.05) {row['f_0.05']:.2f}, {row['task']}", "\ntruth"]
    alt = f"The {len(rows)} worst pairs: what was made, and the truth"
    return picture.contact_sheet(meshes, titles, columns, together=2, alt=alt)
