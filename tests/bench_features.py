"""What 04 costs: the whole chain beside the bare network on the same pictures, and the two kinds of files.

    python tests/bench_features.py [--weights random] [--pictures 72] [--device cuda] [--size 224] [--resize 256]

Rounds of the two are interleaved in one process, medians are compared; the bar is a ratio of 0.9.
"""

import argparse
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from lib import dino, features, memory


def draw(folder: Path, count: int, side: int) -> list[Path]:
    """Views as 03 leaves them: shaded balls and boxes before nothing, RGBA."""
    rng, paths = np.random.default_rng(0), []
    y, x = np.indices((side, side)) / side - 0.5
    for k in range(count):
        (a, b), size = rng.uniform(-0.15, 0.15, 2), rng.uniform(0.15, 0.3)
        far = np.maximum(abs(x - a), abs(y - b)) if k % 2 else np.hypot(x - a, y - b)
        light = np.clip(1 - far / size, 0, 1)[..., None] * rng.uniform(60, 255, 3) + rng.uniform(0, 6, (side, side, 1))
        pixels = np.dstack([light, 255.0 * (far < size)]).clip(0, 255).astype(np.uint8)
        paths.append(folder / f"{k}.png")
        Image.fromarray(pixels).save(paths[-1])
    return paths


def timed(function) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default="random")
    parser.add_argument("--pictures", type=int, default=48)
    parser.add_argument("--side", type=int, default=256, help="pixels of a view of 03")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--resize", type=int, default=256)
    parser.add_argument("--chunk", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="auto")
    given = parser.parse_args()
    model = dino.load(given.weights, 0, memory.choose(given.device))
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(8) as threads:
        folder = Path(folder)
        paths = draw(folder, given.pictures, given.side)

        def prepared(path: Path) -> np.ndarray:
            return dino.prepare(Image.open(path), given.size, given.resize)

        def chain() -> None:
            """As in the stage: read and prepared by threads while the network works, then written."""
            chunks = [paths[k : k + given.chunk] for k in range(0, len(paths), given.chunk)]
            ahead = [[threads.submit(prepared, path) for path in chunk] for chunk in chunks]
            for number, futures in enumerate(ahead):
                found = dino.encode(model, np.stack([future.result() for future in futures]), given.chunk)
                for k, one in enumerate(found):
                    threads.submit(np.savez, folder / f"{number}_{k}.npz", features=one)

        ready = np.stack([prepared(path) for path in paths])
        dino.encode(model, ready, given.chunk)
        seconds = {"chain": [], "bare": []}
        for _ in range(given.rounds):
            seconds["chain"].append(timed(chain))
            seconds["bare"].append(len(ready) / features.bare(model, ready, given.chunk, rounds=1))
        rates = {name: len(paths) / statistics.median(values) for name, values in seconds.items()}
        alone = timed(lambda: [prepared(path) for path in paths]) / len(paths)
        print(f"{given.weights} on {model.device}, {given.size} px from {given.side}, {len(paths)} pictures")
        print(
            f"  the chain {rates['chain']:.2f} pictures/s, the bare network {rates['bare']:.2f}, "
            f"ratio {rates['chain'] / rates['bare']:.3f} (bar 0.9); preparing one takes {alone * 1000:.1f} ms"
        )
        found = dino.encode(model, ready[: given.chunk], given.chunk)
        for name, save in (("savez", np.savez), ("savez_compressed", np.savez_compressed)):
            path = folder / "one.npz"
            took = timed(lambda save=save, path=path: [save(path, features=one) for one in found]) / len(found)
            back = timed(lambda path=path: [dino.read_features(path) for _ in found]) / len(found)
            share = path.stat().st_size / found[0].nbytes
            print(
                f"  {name}: {path.stat().st_size:,} bytes a picture ({share:.3f} of the numbers), "
                f"written in {took * 1000:.1f} ms, read in {back * 1000:.1f} ms"
            )


if __name__ == "__main__":
    main()
