"""What 01 does to a folder of meshes: every result judged against its source, and beside other tools.

    python tests/bench_watertight.py                                      # built-in shapes, two minutes
    python tests/bench_watertight.py MESHES --dataset D --count 60        # 60 of a folder, drawn by --seed
    python tests/bench_watertight.py MESHES --dataset D --peers PYTHON    # ten of 10,000 to 200,000 faces, and others

The same command again goes on where it stopped; with a larger --count it adds to what is done.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).parent))

import judge_watertight

from lib import dataset, mesh, pool, shapes
from lib.watertight import watertight

STAGE = "01_watertight"
USABLE = ["done", "kept"]
FIGURES = {  # of each bar, which is told of a miss
    "closed": ["open_edges", "torn_fans"],
    "volume": ["volume"],
    "outward": ["inward"],
    "no_shells": ["shells"],
    "mean": ["mean", "mean_all", "thin"],
    "near": ["far", "farthest"],
    "kept": ["missed", "missed_at", "seen"],
    "bounds": ["bounds"],
    "flagged": ["hollow", "flagged"],
    "simple": ["crossing"],
}


def judged(item) -> dict:
    """One result of 01 judged; a stage of its own, so that the pool guards it and keeps what is done."""
    facts = dataset.read_facts(item)[STAGE]["facts"]
    V, F = mesh.read(item.source)
    source = (V - facts["center"]) / facts["scale"], F
    return judge_watertight.judge(source, mesh.read(item.path("_normalized.obj")), item.resolution, facts)


def close_and_judge(items: list, run: str, parameters: dict, jobs: int) -> pd.DataFrame:
    """A row an item: the judge's figures, and what 01 said of it with `made_` before the name."""
    limits = {"jobs": jobs, "timeout": 900, "memory": 12}
    made = pool.map(watertight, items, STAGE, run, parameters, **limits).set_index("item")
    there = [item for item in items if made.loc[item.name, "status"] in USABLE]
    seen = pool.map(judged, there, "01_judge", run, inputs=("source", "_normalized.obj"), **limits).set_index("item")
    return made.add_prefix("made_").join(seen)


# -- tables -----------------------------------------------------------------------------------------------------------


def tell(rows: pd.DataFrame) -> None:
    """Bars met, what it cost, then each miss with its figures."""
    aside = rows[~rows["made_status"].isin(USABLE)]
    rows = rows.drop(aside.index)
    lost, rows = rows[~rows["status"].isin(USABLE)], rows[rows["status"].isin(USABLE)]
    verdicts = pd.DataFrame([judge_watertight.verdict(row) for row in rows.to_dict("records")], index=rows.index)
    missed = verdicts.isin([False])
    solids, seconds = rows[rows["solid"].astype(bool)], rows["made_seconds"].astype(float)
    print(f"\n{len(rows)} judged, {len(solids)} of them solids; {len(aside)} put aside")
    for name in verdicts:
        print(f"  {name:10} {verdicts[name].isin([True]).sum():4} of {verdicts[name].notna().sum()}")
    print(f"  {'all bars':10} {(~missed.any(axis=1)).sum():4} of {len(rows)}")
    print(f"solids: mean distance to the source {solids['mean'].median():.4f} cell in the median (bar 0.05)")
    print(f"over 0.1% of what is seen lies behind a flagged cap: {(rows['capped'] > 0.001).sum()}; ", end="")
    print(f"where no ball of eps comes: {(rows['unreached'] > 0.001).sum()}")
    print(f"hollow: {rows['hollow'].sum()}; with caps: {(rows['made_caps'] > 0).sum()}")
    marks = f"median {seconds.median():.1f}, 90% below {seconds.quantile(0.9):.1f}, most {seconds.max():.1f}"
    print(f"seconds: {marks}, in all {seconds.sum():.0f}; most memory {rows['made_peak_gib'].max():.2f} GiB")
    for item, row in [*aside.iterrows(), *lost.iterrows()]:
        print(f"aside     {item}: {row['made_reason']} {row['reason']} ({row['made_source']})")
    for name in verdicts:
        for item, row in rows[missed[name]].iterrows():
            figures = ", ".join(f"{figure} {short(row[figure])}" for figure in FIGURES[name])
            print(f"{name:9} {item}: {figures} ({row['made_source']})")


def short(value) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


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
        parameters = {"resolution": options.resolution, "holes": options.holes, "remesh": options.remesh}
        run = options.run or f"{options.dataset}/run_{options.resolution}"
        tell(bench_watertight.close_and_judge(items, run, parameters, options.jobs))


if __name__ == "__main__":
    import bench_watertight  # workers import functions by name

    main()
