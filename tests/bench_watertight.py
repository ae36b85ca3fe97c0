"""What 01 does to a folder of meshes: every result judged against its source, and beside other tools.

    python tests/bench_watertight.py                                      # built-in shapes, two minutes
    python tests/bench_watertight.py MESHES --dataset D                   # all of a folder; <D>/run_256/table.txt
    python tests/bench_watertight.py MESHES --dataset D --count 60        # 60 of them, drawn by --seed
    python tests/bench_watertight.py MESHES --dataset D --worst 40        # and pictures of the forty worst
    python tests/bench_watertight.py MESHES --dataset D --peers PYTHON    # ten of 10,000 to 200,000 faces, and others

The same command again goes on where it stopped; with a larger --count it adds to what is done.
"""

import argparse
import contextlib
import functools
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).parent))

import judge_watertight

from lib import dataset, field, mesh, nearest, picture, pool, shapes
from lib.watertight import close, watertight

STAGE = "01_watertight"
USABLE = ["done", "kept"]
PEERS = ("point_cloud_utils", "alpha_wrap", "mesh2sdf")
BESIDE = {  # figures that explain a miss of a bar
    "closed": ["open_edges", "torn_fans"],
    "volume": ["volume"],
    "no_shells": ["parts"],
    "mean": ["mean_all", "thin"],
    "near": ["farthest", "on_caps"],
    "kept": ["brushed", "missed_at", "seen"],
}


def judged(item) -> dict:
    """One result of 01 judged; a stage of its own, so that the pool guards it and keeps what is done."""
    facts = dataset.read_facts(item)[STAGE]["facts"]
    V, F = mesh.read(item.source)
    source = (V - facts["center"]) / facts["scale"], F
    result = mesh.read(item.path("_normalized.obj"))
    opened = functools.partial(without_caps, *source, item.resolution)
    return judge_watertight.judge(source, result, item.resolution, facts, opened)


def without_caps(V, F, resolution: int) -> tuple:
    return close(V, F, resolution, holes="wall")[:2]


def close_and_judge(items: list, run: str, parameters: dict, jobs: int) -> pd.DataFrame:
    """A row an item: the judge's figures, and what 01 said of it with `made_` before the name.

    Twenty at a time, after which <run>/table.txt has the table of all so far; each twenty has ledgers of its own.
    """
    limits = {"jobs": jobs, "timeout": 3600, "memory": 12}  # of the clock: other jobs may have the cores
    rows = []
    for start in range(0, len(items), 20):
        some, folder = items[start : start + 20], f"{run}/{start:04}"
        made = pool.map(watertight, some, STAGE, folder, parameters, **limits).set_index("item")
        there = [item for item in some if made.loc[item.name, "status"] in USABLE]
        seen = pd.DataFrame(columns=["item", "status", "reason"])
        if there:
            seen = pool.map(judged, there, "01_judge", folder, inputs=("source", "_normalized.obj"), **limits)
        rows.append(made.add_prefix("made_").join(seen.set_index("item")))
        with dataset.writing(f"{run}/table.txt") as path, path.open("w") as file, contextlib.redirect_stdout(file):
            tell(pd.concat(rows))
    return pd.concat(rows)


# -- tables -----------------------------------------------------------------------------------------------------------


def tell(rows: pd.DataFrame) -> None:
    """Bars met, what it cost, then a line for each mesh that missed one: which, and by how much."""
    aside = rows[~rows["made_status"].isin(USABLE)]
    rows = rows.drop(aside.index)
    lost, rows = rows[~rows["status"].isin(USABLE)], rows[rows["status"].isin(USABLE)]
    for item, row in [*aside.iterrows(), *lost.iterrows()]:
        print(f"aside     {item}: {row['made_reason']} {row['reason']} ({row['made_source']})")
    if rows.empty:
        return
    records = rows.to_dict("records")
    verdicts = pd.DataFrame([judge_watertight.verdict(row) for row in records], index=rows.index)
    missed = verdicts.isin([False])
    solids, seconds = rows[rows["solid"].astype(bool)], rows["made_seconds"].astype(float)
    print(f"\n{len(rows)} judged, {len(solids)} of them solids; {len(aside)} put aside")
    for name in verdicts:
        print(f"  {name:10} {verdicts[name].isin([True]).sum():4} of {verdicts[name].notna().sum()}")
    met = (~missed.any(axis=1)).sum()
    print(f"  {'all bars':10} {met:4} of {len(rows)}: {met / len(rows):.1%} (asked for: 99%)")
    print(f"solids: mean distance to the source {solids['mean'].median():.4f} cell in the median (bar 0.05)")
    edges = solids["edges"].dropna().astype(float)
    print(f"normals within 2 cells of a solid's sharp edges: {edges.median():.1%} right in the median, ", end="")
    print(f"{(edges >= 0.97).sum()} of {len(edges)} at 97% or more")
    print(f"over 0.1% of what is seen lies behind a flagged cap: {(rows['capped'] > 0.001).sum()}; ", end="")
    print(f"where no ball of eps comes: {(rows['unreached'] > 0.001).sum()}")
    strict = (rows["brushed"] > 0.001).sum()
    print(
        f"kept, if the ball's skin and not its centre has to come within 2 cells: {len(rows) - strict} of {len(rows)}"
    )
    print(f"hollow: {rows['hollow'].sum()}; with caps: {(rows['made_caps'] > 0).sum()}")
    marks = f"median {seconds.median():.1f}, 90% below {seconds.quantile(0.9):.1f}, most {seconds.max():.1f}"
    print(f"seconds: {marks}, in all {seconds.sum():.0f}; most memory {rows['made_peak_gib'].max():.2f} GiB")
    print()
    for item, row in zip(rows.index, records, strict=True):
        if miss := judge_watertight.over(row):
            print(f"miss {item}: {'; '.join(told(row, *bar) for bar in miss.items())} ({row['made_source']})")


def told(row: dict, bar: str, value: float) -> str:
    beside = "".join(f", {figure} {short(row[figure])}" for figure in BESIDE.get(bar, []))
    return f"{bar} {short(value)}, at most {judge_watertight.BARS[bar][0]} asked for{beside}"


def show_worst(rows: pd.DataFrame, items: list, run: str, count: int) -> None:
    """Pictures of those that come nearest to a bar or miss it by most, ten a sheet: <run>/worst_<k>.png."""
    rows = rows[rows["status"].isin(USABLE)]
    reach = pd.Series([judge_watertight.reach(row) for row in rows.to_dict("records")], index=rows.index)
    worst = reach.sort_values(ascending=False, kind="stable").index[:count]
    by_name = {item.name: item for item in items}
    for start in range(0, len(worst), 10):
        names = list(worst[start : start + 10])
        pairs = []
        for item in map(by_name.get, names):
            V, F = mesh.read(item.source)
            pairs.append(([(mesh.normalise(V)[0], F)], [mesh.read(item.path("_normalized.obj"))]))
        path = Path(f"{run}/worst_{start // 10}.png")
        path.write_bytes(picture.before_after(names, pairs).data)
        print(f"{path}: {', '.join(names)}")


def short(value) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


# -- other tools -----------------------------------------------------------------------------------------------------


def compare(items: list, python: str, resolution: int, count: int = 10, slow: int = 2) -> None:
    """Seconds (of one core) and distances of 01, a dense grid of the same distances, and other tools, mesh by mesh.

    The dense grid asks libigl's tree, and once more the compiled one that 01 has. mesh2sdf takes minutes a mesh, so it
    does the first few only.
    """
    rows = []
    nearest.search(np.eye(3), np.arange(3)[None])(np.zeros((1, 3)))  # compiled once on a machine
    for item in items:
        if not count:
            break
        V, F = mesh.read(item.source)
        if 10_000 <= len(F) <= 200_000:
            count -= 1
            V = mesh.normalise(V)[0]
            tools = {
                "01": functools.partial(timed, close, V, F, resolution, remesh="always"),
                "dense grid": functools.partial(dense, V, F, resolution),
                "dense, 01's tree": functools.partial(dense, V, F, resolution, search=nearest.search),
                **{name: functools.partial(peer, python, name, V, F, resolution) for name in PEERS},
            }
            for name, tool in tools.items():
                if name != "mesh2sdf" or slow > 0:
                    V_new, F_new, seconds = tool()
                    rows.append({"mesh": item.name, "faces": len(F), "tool": name, "seconds": seconds})
                    rows[-1] |= both_ways((V, F), (V_new, F_new), resolution)
                    print("  ".join(f"{k} {short(v)}" for k, v in rows[-1].items()), flush=True)
                if name == "dense grid" and len(rows) == 2:
                    print(
                        f"all rows of its corners asked, not 2% of them: {short(dense(V, F, resolution, 1)[2])} seconds"
                    )
            slow -= 1
    rows = pd.DataFrame(rows)
    seconds = rows.pivot(index="mesh", columns="tool", values="seconds")
    ratio = seconds.div(seconds["01"], axis=0)
    table = rows.groupby("tool").agg(
        meshes=("mesh", "size"), seconds=("seconds", "median"), closed=("closed", "sum"), hollow=("hollow", "sum"),
        mean=("mean", "median"), farthest=("farthest", "median"), missed=("missed", "median"), parts=("parts", "mean"),
    )  # fmt: skip
    table.insert(2, "times 01's", ratio.median())
    print("\nmedians; lengths in cells, seconds of one core; parts: mean share that is kept of those that are seen")
    print(table.loc[list(dict.fromkeys(rows["tool"]))].to_string(float_format=lambda x: f"{x:.3g}"))


def timed(function, *arguments, **options):
    """Its first two results, and the seconds it used on all cores."""
    start = time.process_time()
    V, F, *_ = function(*arguments, **options)
    return V, F, time.process_time() - start


def peer(python: str, name: str, V, F, resolution: int):
    with tempfile.TemporaryDirectory() as folder:
        np.savez(f"{folder}/source.npz", V=V, F=F)
        script = Path(__file__).with_name("peers_watertight.py")
        command = [python, script, name, f"{folder}/source.npz", f"{folder}/result.npz", str(resolution)]
        said = subprocess.run(command, capture_output=True, text=True)
        if said.returncode:
            raise RuntimeError(f"{name} failed, its end:\n{said.stderr[-1000:]}")
        made = np.load(f"{folder}/result.npz", allow_pickle=False)
        return made["V"], made["F"], json.loads(said.stdout.splitlines()[-1])["seconds"]


def dense(V, F, resolution: int, share: float = 0.02, search=field.libigl):
    """eps - distance on all (R + 1)^3 corners, and marching cubes: what Dora and others do.

    Its seconds: a random share of its rows of corners, extrapolated, plus marching cubes on a grid of that size.
    Its mesh is taken from a band about the surface, where the same distances give the same mesh.
    """
    from skimage.measure import marching_cubes

    eps, n = 2 / resolution, resolution + 1
    start = time.process_time()
    surface = field.prepare(V, F, search=search)
    ready = time.process_time() - start
    band = field.band(surface, resolution, eps + 2 * field.spacing(resolution))
    grid = np.full(n**3, -1.0)
    inside = ((field.unpack(band.keys) >= 0) & (field.unpack(band.keys) < n)).all(1)
    grid[field.unpack(band.keys[inside]) @ [n * n, n, 1]] = eps - band.distance[inside]
    rows = np.sort(np.random.default_rng(0).choice(n * n, max(1, int(share * n * n)), replace=False))
    chosen = (rows[:, None] * n + np.arange(n)).ravel()  # whole rows, or the searches would share nothing
    start = time.process_time()
    P = field.position(np.stack(np.unravel_index(chosen, (n, n, n)), -1), resolution)
    field.closest(surface, P)
    queries = (time.process_time() - start) * n**3 / len(chosen)
    start = time.process_time()
    V, F, _, _ = marching_cubes(grid.reshape(n, n, n), 0)
    return field.position(V, resolution), F[:, ::-1], ready + queries + time.process_time() - start


def both_ways(source: tuple, result: tuple, resolution: int) -> dict:
    """Closed or not, hollow or not, distances to the source and what was missed of the source that is seen."""
    rng, h, eps = np.random.default_rng(0), field.spacing(resolution), 2 / resolution
    source, result = judge_watertight.Mesh(*judge_watertight.drop_flat(*source)), judge_watertight.Mesh(*result)
    told = judge_watertight.topology(result.V, result.F)
    area = np.linalg.norm(result.normals, axis=1).sum() / 2
    back = source.closest(judge_watertight.sample(result, 20_000, rng)[0])[0] / h
    P, N, face = judge_watertight.sample(source, 20_000, rng)
    seen = source.seen(P, N).any(1)
    there = result.closest(P[seen])[0] / h
    part = judge_watertight.parts(source.V, judge_watertight.merged(source.V)[source.F])[face[seen]]
    kept = np.bincount(part, there <= 2)[np.unique(part)] / np.bincount(part)[np.unique(part)]
    return {
        "closed": told["open_edges"] + told["torn_fans"] == 0,
        "hollow": bool(abs(told["volume"]) < 1.1 * area * eps),
        "mean": float(back.mean()),
        "farthest": float(np.quantile(back, 0.999)),
        "missed": float((there > 2).mean()),
        "parts": float((kept > 0.5).mean()),
    }


# -- the command ------------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("meshes", nargs="?", help="folder of meshes; without it, built-in shapes at 128")
    parser.add_argument("--dataset", help="where results go, and stay")
    parser.add_argument("--run", help="folder of ledgers and logs (default: <dataset>/run)")
    parser.add_argument("--resolution", type=int, default=256)
    parser.add_argument("--count", type=int, default=0, help="so many of the meshes, drawn at random (0 = all)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--holes", choices=("close", "wall"), default="close")
    parser.add_argument("--remesh", choices=("auto", "always"), default="auto")
    parser.add_argument("--worst", type=int, default=0, help="pictures of so many, before and after")
    parser.add_argument("--peers", metavar="PYTHON", help="compare instead; peers_watertight.py says how to make one")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if not options.meshes:
            shapes.make(folder + "/meshes", 16)
            options.meshes, options.dataset, options.resolution = folder + "/meshes", folder + "/dataset", 128
        if not options.dataset:
            parser.error("--dataset is wanted: the folder where results go")
        items = dataset.collect(options.meshes, options.dataset, options.resolution)
        order = np.random.default_rng(options.seed).permutation(len(items))
        items = [items[k] for k in order[: options.count or None]]
        if options.peers:
            return compare(items, options.peers, options.resolution)
        parameters = {"resolution": options.resolution, "holes": options.holes, "remesh": options.remesh}
        run = options.run or f"{options.dataset}/run_{options.resolution}"
        rows = bench_watertight.close_and_judge(items, run, parameters, options.jobs)
        tell(rows)
        show_worst(rows, items, run, options.worst)


if __name__ == "__main__":
    import bench_watertight  # workers import functions by name

    main()
