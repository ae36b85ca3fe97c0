"""How time, memory, files and bytes grow with the number of meshes: measured, then reckoned to a million.

python tests/bench_dataset.py                     # 100 to 10,000 meshes, in minutes; a page in outputs/scale
python tests/bench_dataset.py --largest 100000    # an hour; 6 GB of disk, half a million inodes, 5 GB of memory
"""

import argparse
import bisect
import gc
import heapq
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lib import chart, dataset, markup, pool, shard
from lib.store import Store

MILLION, THREADS = 10**6, 16  # meshes; meshes at a time on a machine
LATENCY = 3e-4  # seconds that a network disk takes to answer: what one file's size costs there
VIEWS, MAPS = 36, 3
OUTPUTS = {"01_watertight": 1, "02_sharp_sample": 2, "03_render": VIEWS * MAPS + 1, "04_features": VIEWS * MAPS}
OUTPUTS |= {"05_latents": 2}  # files that a stage makes of a mesh
STATS = sum(OUTPUTS.values()) + 1 + 1 + VIEWS * MAPS + 1  # and those that it asks for as inputs, when all is kept
MEGABYTES = {"closed mesh": 17, "points": 7, "views": 1, "features of three maps": 21}  # at 256, see the README
FILES = sum(OUTPUTS.values()) + 2  # of a mesh: and the original, and the facts
TRAINER = "MiB of each trainer's process"
PACKED = VIEWS * MAPS * 196_862 + 2 * 262_272  # bytes of a mesh in a shard: DINOv2-small's patches, 2048 tokens
SHARD = 256 * 10**6  # bytes
SECONDS = (15.0, 0.8, 300.0)  # of a mesh in 01 to 03: median, spread of the logarithm, and the most it may take


# -- measured ---------------------------------------------------------------------------------------------------------


def tree(folder: Path, count: int) -> list[dataset.Item]:
    """Meshes of a few bytes with facts as long as real ones, and the files of the stage that is asked about."""
    for k in range(count):
        path = folder / "meshes" / f"{k // 1000:03}" / f"{k:06}.obj"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{k:06}")
    return dataset.collect(folder / "meshes", folder / "tree", 64)


def facts_of(item: dataset.Item, job: pool.Job) -> dict:
    record = {"version": 1, "parameters": {}, "inputs": {"source": item.sha256}, "seconds": 1.0, "peak_gib": 0.1}
    record |= {"versions": {name: "1.0.0" for name in "abcdefghij"}, "facts": {f"fact_{k}": k / 7 for k in range(20)}}
    file = {"size": 6, "sha256": "0" * 64}
    made = {stage: {f"_{stage}_{k:03}.png": file for k in range(count)} for stage, count in OUTPUTS.items()}
    found = {stage: record | {"outputs": outputs} for stage, outputs in made.items()}
    return found | {job.stage: found[job.stage] | {"outputs": {"_closed.obj": file}}}


def measure(count: int) -> dict:
    """Core-seconds of each step at so many meshes, in a process of its own; and MiB, and bytes."""
    spent, process = {}, psutil.Process()

    def timed(name, function, *args):
        start = time.process_time()
        result = function(*args)
        spent[name] = time.process_time() - start
        return result

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tree(folder, count)
        (folder / "tree" / "items.csv").unlink()
        before = process.memory_info().rss
        items = timed("list and hash", dataset.collect, folder / "meshes", folder / "tree", 64)
        items = timed("list again", dataset.collect, folder / "meshes", folder / "tree", 64)
        timed("read items.csv", dataset.items, folder / "tree", 64)
        job = pool.Job("01_watertight", "bench_dataset:tree", {}, ["source"], 1, str(folder / "tree"), 64, name, 0, 0)
        for item in items:
            item.path("_facts.json").parent.mkdir(parents=True)
            item.path("_facts.json").write_text(json.dumps(facts_of(item, job), indent=1))
            item.path("_closed.obj").write_text("closed")
        ledger = pool.Ledger(job, items)
        pool.say = lambda text: None
        todo = timed("resume", pool.plan, job, items, ledger)
        assert not todo and ledger.counts["kept"] == count
        timed("write the ledger once", ledger.write)
        spent["MiB of the run's process"] = (process.memory_info().rss - before) / 2**20
        spent["bytes of items.csv"] = (folder / "tree" / "items.csv").stat().st_size
        spent["bytes of a ledger"] = ledger.path.stat().st_size
        spent["bytes of facts"] = sum(item.path("_facts.json").stat().st_size for item in items)
    return spent


def entry(k: int) -> dict:
    """What stands beside a shard about one mesh, as long as a real one."""
    record = {"parameters": {"fingerprint": "f" * 64, "size": 224, "resize": 256, "sha256": "a" * 64}}
    record |= {"facts": {"weights": "random", "seed": 0} | {f"fact_{n}": n / 7 for n in range(20)}}
    maps = ("dinov2", "depth", "normal")
    suffixes = [f"_view_{view:03d}_{name}_features.npz" for view in range(VIEWS) for name in maps]
    suffixes += [f"_latent_{kind}.npy" for kind in ("sample", "logvar")]
    members = {s: [n * 197_632 + 512, 196_862, dataset.sha256_of(f"{k} {n}".encode())] for n, s in enumerate(suffixes)}
    item = dataset.Item(f"mesh_{k:06}_{members[suffixes[0]][2][:8]}", "", "", "", 64)
    return shard.entry_of(item, dict.fromkeys(shard.STAGES, record), members, [0.7] * 3)


def measure_shards(count: int) -> dict:
    """Core-seconds until a place of so many packed meshes is open, and MiB that it takes in every trainer's process."""
    with tempfile.TemporaryDirectory() as name:
        store, shards, names = Store(name), {}, []
        a_shard = SHARD // PACKED
        for first in range(0, count, a_shard):
            entries = [entry(k) for k in range(first, min(first + a_shard, count))]
            tar = f"64_{len(shards):05d}.tar"
            shards[tar] = {"size": 0, "sha256": "0" * 64}  # their bytes are not read until a view is asked for
            Path(name, tar).touch()
            text = {"format": shard.FORMAT, **shards[tar], "items": entries}
            Path(name, shard.side(tar)).write_text(json.dumps(text | {"seal": dataset.seal(text)}))
            names += [one["name"] for one in entries]
        index = {"format": shard.FORMAT, "resolution": 64, "names": names, "shards": shards, "stats": {}}
        store.write_json("64_shards.json", index | {"splits": dataset.splits(names, name)})
        weight = sum(store.names().values())
        del entries, index
        gc.collect()
        before, start = psutil.Process().memory_info().rss, time.process_time()
        source = shard.Shards(name, 64)
        spent = {"open shards": time.process_time() - start}
        for item in shard.items(name, 64):
            for suffix in source.facts(item)[shard.STAGES[0]]["outputs"]:
                source.file(item, suffix)
        spent[TRAINER] = (psutil.Process().memory_info().rss - before) / 2**20
    return spent | {"shards": len(shards), "bytes of shards' indexes": weight}


def power(sizes: list[int], values: list[float]) -> float:
    """The exponent of growth, between the last two sizes."""
    return float(np.log(values[-1] / values[-2]) / np.log(sizes[-1] / sizes[-2]))


# -- reckoned ---------------------------------------------------------------------------------------------------------


def simulate(meshes: int, machines: int, each: float, seed: int = 0) -> dict:
    """Machines that take meshes from one run, which needs `each` seconds for an answer.

    A machine is lost once a day by chance, and comes back after five minutes; what it had in hand is given out again.
    """
    rng = np.random.default_rng(seed)
    median, spread, most = SECONDS
    waiting = list(np.minimum(median * np.exp(spread * rng.standard_normal(meshes)), most))
    losses = [np.cumsum(rng.exponential(86400, 1000)).tolist() for _ in range(machines)]  # years of them
    free = [(0.0, thread) for thread in range(machines * THREADS)]  # when each has time
    run = busy = end = 0.0
    again = 0
    while waiting:
        now, thread = heapq.heappop(free)
        lost = losses[thread // THREADS]
        last = bisect.bisect(lost, now) - 1
        if last >= 0 and now < lost[last] + 300:  # it is down
            heapq.heappush(free, (lost[last] + 300, thread))
            continue
        run = max(run, now) + each  # one answer at a time
        seconds, fall = waiting.pop(), lost[bisect.bisect(lost, run)]
        if run + seconds > fall:
            waiting.append(seconds)
            again += 1
            heapq.heappush(free, (fall, thread))
            continue
        busy, end = busy + seconds, max(end, run + seconds)
        heapq.heappush(free, (run + seconds, thread))
    return {"hours": end / 3600, "busy": busy / (end * machines * THREADS), "given out again": again}


def limits(sizes: list[int], found: dict[str, list[float]]) -> list[tuple]:
    """What is at a million, what is too much, at how many meshes it comes to that, and what then: the first on top."""

    def at(name: str, meshes: float) -> float:
        return found[name][-1] * (meshes / sizes[-1]) ** max(power(sizes, found[name]), 1.0)

    asked = STATS * LATENCY
    files, tb = (lambda n: n * FILES), (lambda n: n * sum(MEGABYTES.values()) / 1e6)
    by_one, once = "seconds for all files' sizes from a network disk", "write the ledger once"
    run, trainer = (lambda n: at("MiB of the run's process", n) / 1024), (lambda n: at(TRAINER, n) / 1024)
    rows = [
        (f"{by_one}, one by one", lambda n: n * asked, 3600, "16 threads ask, as a run does"),
        (f"{by_one} by 16 threads", lambda n: n * asked / 16, 3600, "datasets of 500,000 meshes each"),
        ("files of one dataset", files, 6.1e7, "ext4 has room for that many a TB: archive what is done"),
        ("TB of one dataset", tb, 16, "archives and shards: two thirds"),
        ("GiB of each trainer's process", trainer, 16, "shards' indexes read as needed: not built"),
        ("core-seconds to open shards", lambda n: at("open shards", n), 600, "indexes read as needed: not built"),
        ("core-seconds to resume one notebook", lambda n: at("resume", n), 3600, "datasets of a million meshes each"),
        (
            "core-seconds to list and hash",
            lambda n: at("list and hash", n),
            3600,
            "nothing; but real meshes cost by their bytes",
        ),
        (f"core-seconds to {once}", lambda n: at(once, n), 60, "it is written less often as it grows"),
        ("GiB of the run's process", run, 16, "datasets of a million meshes each"),
        ("MB of a ledger", lambda n: at("bytes of a ledger", n) / 1e6, 1000, "datasets of a million meshes each"),
        ("GB of facts", lambda n: at("bytes of facts", n) / 1e9, 100, "they lie in the archives, too"),
    ]
    table, grid = [], np.logspace(3, 10, 701)
    for name, what, most, then in rows:
        table.append((name, what(MILLION), most, float(next((n for n in grid if what(n) > most), np.inf)), then))
    return sorted(table, key=lambda row: row[3])


def machines(each: float) -> list[dict]:
    """01 to 03 for so many meshes on so many machines."""
    plans = [(10**5, 1), (10**5, 10), (10**5, 100), (MILLION, 10), (MILLION, 100), (MILLION, 1000)]
    made = OUTPUTS["01_watertight"] + OUTPUTS["02_sharp_sample"] + OUTPUTS["03_render"] + 3  # and facts, thrice
    rows = []
    for meshes, count in plans:
        result = simulate(meshes, count, each)
        rows.append({"meshes": meshes, "machines": count, **result})
        rows[-1]["files a second"] = meshes * made / result["hours"] / 3600
    return rows


# -- the page ---------------------------------------------------------------------------------------------------------


def draw(sizes: list[int], found: dict[str, list[float]], fleet: list[dict]) -> bytes:
    """Time, memory, files and machines: points where it was measured, dashes where it is reckoned."""

    def curve(axes, name: str, label: str, scale: float = 1.0) -> None:
        values = np.array(found[name]) * scale
        line = axes.loglog(sizes, values, "o-", label=label, markersize=4)[0]
        far = values[-1] * (MILLION / sizes[-1]) ** max(power(sizes, found[name]), 1.0)
        axes.loglog([sizes[-1], MILLION], [values[-1], far], "--", color=line.get_color())

    with chart.canvas(6.4, 2, 2) as (figure, axes):
        for name in ("resume", "list and hash", "write the ledger once", "open shards"):
            curve(axes[0, 0], name, name)
        axes[0, 0].set(title="core-seconds", xlabel="meshes")
        curve(axes[0, 1], "MiB of the run's process", "a run's process")
        curve(axes[0, 1], TRAINER, "each trainer's process, from shards")
        axes[0, 1].axhline(16 * 1024, color=chart.GREY, linestyle=":", label="16 GiB")
        axes[0, 1].set(title="MiB of memory", xlabel="meshes")
        grid = np.array([*sizes, MILLION])
        rows = [("files of a dataset", FILES), ("of its shards", 2 / (SHARD // PACKED)), ("of its archives", 2 / 43)]
        for name, count in rows:  # 43 meshes of 6 MB fill an archive
            axes[1, 0].loglog(grid, np.maximum(grid * count, 2), "--", label=name)
        axes[1, 0].axhline(6.1e7, color=chart.GREY, linestyle=":", label="room on 1 TB of ext4")
        axes[1, 0].set(title="files, reckoned", xlabel="meshes")
        for meshes in (10**5, MILLION):
            chosen = [row for row in fleet if row["meshes"] == meshes]
            axes[1, 1].loglog(
                [row["machines"] for row in chosen], [row["hours"] for row in chosen], "s--", label=f"{meshes:,} meshes"
            )
        axes[1, 1].set(title="hours of 01 to 03, simulated", xlabel=f"machines of {THREADS} threads")
        for one in axes.flat:
            one.legend(fontsize=7)
        return chart.image(figure, "growth").data


def plain(value: float) -> str:
    """A number for people: three digits that count."""
    if value >= 1e6:
        return f"{value / 1e6:,.3g} million" if value < 1e9 else f"{value / 1e9:,.3g} billion"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def rounded(value: float) -> float:
    return float(f"{value:.2g}")


def write(target: Path, sizes: list[int], found: dict[str, list[float]]) -> str:
    """A page with tables and a chart; its words as text too."""
    target.mkdir(parents=True, exist_ok=True)
    fleet = machines(found["resume"][-1] / sizes[-1])  # an answer's way into the ledger costs no more than that
    (target / "growth.png").write_bytes(draw(sizes, found, fleet))
    heads = ["step", *(f"{size:,}" for size in sizes), "grows as N to the"]
    measured = [[n, *map(plain, values), f"{power(sizes, values):.2f}"] for n, values in found.items()]
    broken = limits(sizes, found)
    breaks = [[name, plain(value), plain(most), plain(rounded(n)), then] for name, value, most, n, then in broken]
    reckoned = [
        [
            *(f"{row[name]:,}" for name in ("meshes", "machines")),
            *(f"{row['hours']:,.1f}", f"{row['busy']:.0%}", f"{row['files a second']:,.0f}"),
            f"{row['given out again']:,}",
        ]
        for row in fleet
    ]
    columns = ["meshes", "machines", "hours", "busy", "files a second", "given out again"]
    tables = [
        (f"What breaks first, at {MILLION:,}", ["what", "then", "too much", "at so many meshes", "way out"], breaks),
        ("Measured", heads, measured),
        (f"01 to 03 on machines of {THREADS} threads, simulated", columns, reckoned),
    ]
    first = "; ".join(f"{name} (with {plain(rounded(n))} meshes)" for name, _, _, n, _ in broken[:4])
    how = (
        f"Measured at {' to '.join(f'{size:,}' for size in (sizes[0], sizes[-1]))} meshes by core-seconds of a process "
        "of its own, with stand-ins: a mesh is a few bytes, but its facts, ledger row and entry beside a shard are as "
        f"long as real ones. Beyond, dashed, by the exponent between the last two sizes, 1 at the least. {FILES} files "
        f"and {sum(MEGABYTES.values())} MB a mesh are those of the notebooks' defaults at resolution 256. Machines are "
        "simulated: meshes of a log-normal time (median 15 s), an answer at a time to the run, and a machine in a day "
        "lost by chance for five minutes."
    )
    parts = [
        "<h1>From a hundred meshes to a million</h1>\n",
        f'<p class="question">What breaks first on the way? In this order: {markup.text(first)}.</p>\n',
        f"<p>{markup.text(how)}</p>\n",
        '<section><h2>Growth</h2><figure><img src="growth.png" alt="time, memory, files and hours by number of meshes '
        'and machines: the tables below in curves"></figure></section>\n',
    ]
    lines = [f"What breaks first: {first}."]
    for title, names, rows in tables:
        cells = [[markup.text(cell) for cell in row] for row in rows]
        parts.append(f"<section><h2>{title}</h2>\n" + markup.table(names, cells, title) + "</section>\n")
        lines += [f"\n{title}", " | ".join(names), *(" | ".join(row) for row in rows)]
    parts.append(f'<p class="quiet">Made {markup.moment(None)} by python tests/bench_dataset.py.</p>\n')
    markup.write(target / "index.html", "Growth", parts)
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--largest", type=int, default=10_000)
    parser.add_argument("--out", type=Path, default=Path("outputs/scale"))
    parser.add_argument("--draw", action="store_true", help="the page again, from what was measured last time")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        what, count = options.one
        print(json.dumps({"tree": measure, "shards": measure_shards}[what](int(count))))
        sys.exit()
    kept = options.out / "growth.json"
    if not options.draw:
        sizes, each = [size for size in (100, 1000, 10_000, 100_000) if size <= options.largest], []
        for size in sizes:
            each.append({})
            for what in ("tree", "shards"):
                command = [sys.executable, __file__, "--one", what, str(size)]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                each[-1] |= json.loads(done.stdout.splitlines()[-1])
        dataset.write_text(kept, json.dumps({"sizes": sizes, "found": {k: [one[k] for one in each] for k in each[0]}}))
    print(write(options.out, **json.loads(kept.read_text())))
