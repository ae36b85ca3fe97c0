"""What scores cost: those of nearest points beside scipy's cKDTree done naively, then each of the others.

python tests/bench_score.py                # 40 pairs of 100,000 points each, a minute
python tests/bench_score.py --pairs 1000   # as many as a test set has
"""

import argparse
import sys
import time
from pathlib import Path

import joblib
import numpy as np
import trimesh
from scipy.spatial import cKDTree

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lib import edges, evaluate, score, winding


def shape(number: int) -> tuple[np.ndarray, np.ndarray]:
    """A ball with bumps, which no two numbers share; 20,480 faces with edges, hollows and thin places."""
    ball, rng = trimesh.creation.icosphere(5), np.random.default_rng(number)
    V = np.asarray(ball.vertices)
    waves = rng.normal(size=(4, 3)) * 4
    r = 0.7 + 0.15 * np.sign(np.sin(V @ waves.T)).mean(1) + 0.1 * np.cos(V @ waves.T[:, 0])
    return V * r[:, None], np.asarray(ball.faces)


def sampled(number: int, count: int):
    mesh = shape(number)
    return mesh, score.surface_sample(*mesh, count, np.random.default_rng(number))


def ours(P, N, Q, M) -> dict:
    return evaluate.of_points(score.match(P, Q), N, M)


def naive(P, N, Q, M) -> dict:
    """The same scores, each of which asks for itself: two trees and two queries a score."""

    def asked():
        (there, j), (back, i) = cKDTree(Q).query(P), cKDTree(P).query(Q)
        return score.Match(there, back, j, i)

    found = {"chamfer_l1": score.chamfer_l1(asked()), "chamfer_l2": score.chamfer_l2(asked())}
    found |= {f"f_{distance}": score.f_score(asked(), distance) for distance in evaluate.DISTANCES}
    return found | {"normal_consistency": score.normal_consistency(asked(), N, M)}


def once(P, N, Q, M) -> None:
    """Two trees and two queries in all, points in the order they came."""
    cKDTree(Q).query(P), cKDTree(P).query(Q)


def seconds(function, *arguments) -> float:
    """Of one core."""
    start = time.process_time()
    function(*arguments)
    return time.process_time() - start


def compare(what: str, *arrays) -> None:
    """Both ways give the same scores; the median of five rounds of each, interleaved."""
    mine, theirs = ours(*arrays), naive(*arrays)
    assert all(np.isclose(mine[name], theirs[name], rtol=1e-12) for name in mine), what
    rounds = [[seconds(way, *arrays) for way in (ours, naive, once)] for _ in range(5)]
    medians = np.median(rounds, 0)
    print(f"{what}: chamfer, F and normal consistency from {len(arrays[0]):,} points, seconds of a core")
    for name, median in zip(("one match", "cKDTree for each score", "cKDTree, once"), medians, strict=True):
        print(f"  {name:24} {median:6.2f}   {median / medians[0]:.2f} times ours")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument("--points", type=int, default=100_000)
    options = parser.parse_args()
    (made, (P, N)), (truth, (Q, M)) = sampled(0, options.points), sampled(1, options.points)
    noise = np.random.default_rng(0).normal(0, 0.01, P.shape)
    for what, other in (("a shape and its reconstruction", (P + noise, N)), ("two different shapes", (Q, M))):
        compare(what, P, N, *other)
    pairs = [(sampled(k, options.points)[1], sampled(k + 1, options.points)[1]) for k in range(min(options.pairs, 8))]
    with joblib.Parallel(n_jobs=-1) as workers:
        workers(joblib.delayed(ours)(*(array[:2000] for array in (P, N, Q, M))) for _ in range(16))  # started
        start = time.perf_counter()
        workers(
            joblib.delayed(ours)(*pairs[k % len(pairs)][0], *pairs[k % len(pairs)][1]) for k in range(options.pairs)
        )
        minutes = (time.perf_counter() - start) / options.pairs * 1000 / 60
    print(
        f"1,000 such pairs on {joblib.cpu_count()} cores: {minutes:.1f} minutes, from {options.pairs}, sampled before"
    )
    rng = np.random.default_rng(0)
    sample = [score.surface_points(*shape(k), evaluate.SETS, rng) for k in range(24)]
    others = {
        "sampling, both": lambda: [score.surface_sample(*mesh, options.points, rng) for mesh in (made, truth)],
        "iou": lambda: evaluate.overlap(made, truth, options.points, rng),
        "  of it winding numbers": lambda: winding.number_at(*made, rng.uniform(-1, 1, (options.points, 3))),
        "sharp_normal_error, 22 maps of 256": lambda: edges.sharp_normal_error(made, truth),
        "f_sharp": lambda: score.f_sharp(P, N, Q, M),
        "a set of 24 beside one of 24": lambda: [score.apart(sample, sample) for _ in range(3)],
        "interval of 1,000 scores": lambda: score.interval(np.arange(1000.0)),
    }
    print("the others, seconds of a core, median of 3:")
    for name, way in others.items():
        print(f"  {name:36} {np.median([seconds(way) for _ in range(3)]):6.2f}")


if __name__ == "__main__":
    main()
