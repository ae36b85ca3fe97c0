"""Distance queries of 02 beside pysdf's and others', farthest points beside exact ones, and the chain as published.

python tests/bench_sharp_sample.py                    # ours alone: seconds by step, queries a second, spread
python tests/bench_sharp_sample.py --peers PYTHON     # and beside what that environment has
python tests/bench_sharp_sample.py A_normalized.obj ...    # on these, not on two built-in shapes
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from test_sharp_sample import farthest, spacing

from lib import mesh, shapes, sharp_sample, watertight, winding

HERE = Path(__file__).parent
ENGINES = ("pysdf", "fcpw", "warp", "point_cloud_utils", "open3d")
SETS = {"near": 400_000, "sharp": 131_072, "far": 200_000}  # queries of a mesh
ONE = dict.fromkeys(("OMP_NUM_THREADS", "IGL_NUM_THREADS"), "1")  # thread, as a worker of the stage has


def closed_shapes(folder: Path) -> list[Path]:
    """Two of the built-in shapes, closed at 256 as 01 does it."""
    shapes.make(folder / "shapes", 3)
    found = []
    sources = [path for path in sorted((folder / "shapes").rglob("*.*")) if path.suffix in mesh.SUFFIXES]
    for source in sources[:2]:
        V, F = mesh.read(source)
        found.append(folder / f"{source.stem}_normalized.obj")
        mesh.write(found[-1], *watertight.close(mesh.normalise(V)[0], F, 256)[:2])
    return found


def run(python: str, *command) -> dict | None:
    """What a process of peers_sharp_sample.py says; None if its environment lacks the package."""
    command = [python, HERE / "peers_sharp_sample.py", *map(str, command)]
    said = subprocess.run(command, capture_output=True, text=True, env=os.environ | ONE)
    if said.returncode:
        print(f"  {command[2]}: not run, {said.stderr.strip().splitlines()[-1][:100]}")
        return None
    return json.loads(said.stdout.strip().splitlines()[-1])


def queries(source: Path, folder: Path, peers: str | None, rounds: int) -> float | None:
    """Millions of queries a second, one thread each, engines in turns; ours over pysdf's by cores' time, in the mix."""
    V, F = mesh.read(source)
    points, _ = sharp_sample.sample(V, F)
    rand = points["rand_points"]
    sets = {"near": rand[:-200_000], "sharp": points["sharp_near_surface"], "far": rand[-200_000:]}
    np.savez(folder / "asked.npz", V=V, F=F, **sets)
    told, answers = {}, {}
    for _ in range(rounds):
        for engine in ("ours", "exact", *(ENGINES if peers else ())):
            if engine in told and told[engine] is None:
                continue
            python = sys.executable if engine in ("ours", "exact") else peers
            said = run(python, engine, folder / "asked.npz", folder / "answer.npz")
            told[engine] = said and [*told.get(engine, []), said]
            if said:
                with np.load(folder / "answer.npz", allow_pickle=False) as file:
                    answers[engine] = dict(file)
    print(f"{source.stem}, {len(F):,} faces. Million queries a second (of one core's time); all: in the stage's mix")
    for engine, said in told.items():
        if said is None:
            continue
        cells = []
        for clock in (0, 1):
            each = {name: statistics.median(one[name][clock] for one in said) / len(sets[name]) for name in SETS}
            each["all"] = sum(each[name] * count for name, count in SETS.items()) / sum(SETS.values())
            cells.append({name: 1e-6 / seconds for name, seconds in each.items()})
        told[engine] = cells
        line = "  ".join(f"{name} {cells[0][name]:.2f} ({cells[1][name]:.2f})" for name in (*SETS, "all"))
        wrong = [np.abs(np.abs(answers[engine][name]) - np.abs(answers["exact"][name])).max() for name in SETS]
        print(f"  {engine:18} {line}  off by up to {max(wrong):.0e}")
    if told.get("pysdf"):
        for name in (*SETS, "all"):
            wall, core = (told["ours"][clock][name] / told["pysdf"][clock][name] for clock in (0, 1))
            bar = "   (bar 1.5)" if name == "all" else ""
            print(f"  ours over pysdf, {name:5}: {wall:.2f} times by the clock, {core:.2f} times by cores' time{bar}")
        return core
    return None


def whole(source: Path, folder: Path, peers: str | None, rounds: int) -> None:
    """Seconds by step of the whole chain, ours and the published one, in turns."""
    told = {"chain": [], "published": []}
    for _ in range(rounds):
        told["chain"].append(run(sys.executable, "chain", source, folder / "chain.npz"))
        if peers:
            told["published"].append(run(peers, "published", source, folder / "published.npz"))
    total = {}
    for name, runs in told.items():
        if runs and all(runs):
            steps = {
                step: [statistics.median(one[step][clock] for one in runs) for clock in (0, 1)] for step in runs[0]
            }
            total[name] = [sum(spent[clock] for spent in steps.values()) for clock in (0, 1)]
            line = ", ".join(f"{step} {wall:.1f} ({core:.1f})" for step, (wall, core) in steps.items())
            print(f"  {name:10} {total[name][0]:.1f} s ({total[name][1]:.1f} of one core): {line}")
    if len(total) == 2:
        wall, core = (total["published"][clock] / total["chain"][clock] for clock in (0, 1))
        print(f"  the chain: {wall:.1f} times as fast as the published one, {core:.1f} times by cores' time")


def spreading(source: Path) -> None:
    """The smallest distance between chosen points and the largest to one, beside exact farthest points'."""
    V, F = mesh.read(source)
    P = winding.sample(V, F, 20_000)[0]
    apart, reach = spacing(P, sharp_sample.spread(P, 3000, np.random.default_rng(0)))
    best_apart, best_reach = spacing(P, farthest(P, 3000))
    P = winding.sample(V, F, 200_000)[0]
    start = time.process_time()
    sharp_sample.spread(P, 32768, np.random.default_rng(0))
    seconds = time.process_time() - start
    told = f"least distance {apart / best_apart:.2f} times, largest gap {reach / best_reach:.2f} times"
    print(f"  spread: {told} those of exact farthest points; 32,768 of 200,000 take {seconds:.2f} s of one core")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("meshes", nargs="*", type=Path, help="closed meshes in [-1, 1]; none: two built-in shapes")
    parser.add_argument("--peers", metavar="PYTHON", help="of an environment as peers_sharp_sample.py says")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ratios = []
        for source in options.meshes or closed_shapes(folder):
            ratios.append(queries(source, folder, options.peers, options.rounds))
            whole(source, folder, options.peers, options.rounds)
            spreading(source)
        if ratios := [ratio for ratio in ratios if ratio]:
            told = ", ".join(f"{ratio:.2f}" for ratio in ratios)
            print(f"ours over pysdf by cores' time: median {statistics.median(ratios):.2f} (bar 1.5) of {told}")


if __name__ == "__main__":
    main()
