"""What the pool's promises cost: per item beside bare joblib, and to resume 100,000 items that are all done."""

import contextlib
import io
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import joblib

from lib import dataset, pool


def touch(item):
    """The least a stage can do: read a small file, write a small file."""
    with item.writing("_touch.txt") as path:
        path.write_text(Path(item.source).read_text())
    return {"size": 5}


def touch_bare(source, target):
    Path(target).write_text(Path(source).read_text())


def meshes(folder: Path, count: int) -> Path:
    for k in range(count):
        path = folder / "meshes" / f"{k // 1000:03}" / f"{k:06}.obj"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{k:06}")
    return folder / "meshes"


def quietly(function, *args, **options):
    with contextlib.redirect_stdout(io.StringIO()):
        start = time.perf_counter()
        result = function(*args, **options)
        return time.perf_counter() - start, result


def overhead(count: int = 2000, rounds: int = 3) -> None:
    """Milliseconds an item beyond joblib's own; starting the workers is left out by taking the slope of two sizes."""
    costs = []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            items = dataset.collect(meshes(folder, count), folder / "tree", 64)
            few, many = items[: count // 10], items[count // 10 :]
            seconds = []
            for part in (few, many):
                limits = {"jobs": 2, "timeout": 60, "memory": 4}
                seconds += [quietly(pool.map, touch, part, "00_touch", folder / "run", **limits)[0]]
            ours = (seconds[1] - seconds[0]) / (len(many) - len(few))
            seconds = []
            for part in (few, many):
                calls = [joblib.delayed(touch_bare)(item.source, f"{folder}/{item.name}.txt") for item in part]
                seconds += [quietly(joblib.Parallel(2, batch_size=1), calls)[0]]
            bare = (seconds[1] - seconds[0]) / (len(many) - len(few))
            costs.append(1000 * (ours - bare))
    print(f"pool.map costs {statistics.median(costs):.2f} ms an item over bare joblib (median of {rounds}; bar 5 ms)")


def resume(count: int = 100_000) -> None:
    """Seconds to find out that everything is done, and to write the ledger."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        items = dataset.collect(meshes(folder, count), folder / "tree", 64)
        quietly(pool.map, touch, items[:1], stage="00_touch", run=folder / "run", jobs=1)
        record = dataset.read_facts(items[0])["00_touch"]
        for item in items[1:]:
            os.makedirs(item.folder)
            item.path("_touch.txt").write_text("00000x")
            inputs = {"source": item.sha256}
            item.path("_facts.json").write_text(json.dumps({"00_touch": record | {"inputs": inputs}}, indent=1))
        start = time.perf_counter()
        again = dataset.collect(folder / "meshes", folder / "tree", 64)
        collected = time.perf_counter() - start
        mapped, ledger = quietly(pool.map, touch, again, stage="00_touch", run=folder / "run", jobs=2)
        assert set(ledger.status) == {"kept"} and len(ledger) == count
        seconds = f"{collected:.1f} s to list and {mapped:.1f} s to check"
        print(f"{count:,} done items are resumed in {collected + mapped:.1f} s (bar 20 s): {seconds}")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    import bench_pool  # workers import functions by name

    bench_pool.overhead()
    bench_pool.resume()
