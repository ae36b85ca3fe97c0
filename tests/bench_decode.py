"""What decoding asks, takes and misses: sparse against dense in one run, on known distances and on trained VAEs.

    python tests/bench_decode.py [--depths 7 8 9 10] [--dense 8] [--device cuda] [--clip 0.015]
    python tests/bench_decode.py --vae FOLDER --latents FILE.npy ...   a trained VAE on latents that 05 wrote
    python tests/bench_decode.py --size dora                           its real decoder on cells of a known distance

Depths up to --dense are decoded densely too, beyond it dense is scaled from 1% of its chunks. Memory is the process's
peak, and on a GPU what torch allocated and reserved. The author's figures are of an RTX 3090, every grid point asked.
"""

import argparse
import math
import sys
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from lib import decode, memory, surface, vae
from lib.latents import AUTHOR

HEAD = "shape         depth mode   queries    q/corner  % dense    query s   all s    cells     faces     GiB   "


def chair(X):
    """Sparse: a seat, a back and four legs; like all shapes that come from 01 its longest side is 2."""
    parts = [box(X, (0.6, 0.05, 0.6), (0, -0.1, 0)), box(X, (0.6, 0.6, 0.04), (0, 0.4, -0.56))]
    parts += [box(X, (0.05, 0.45, 0.05), (x, -0.55, z)) for x in (-0.55, 0.55) for z in (-0.55, 0.55)]
    return torch.stack(parts).amax(0)


def mug(X):
    """A body with a handle and a hollow."""
    radius = (X[:, ::2] - X.new_tensor([-0.2, 0.0])).norm(dim=1)
    outer = -torch.maximum(radius - 0.8, X[:, 1].abs() - 1)
    inner = -torch.maximum(radius - 0.7, (X[:, 1] - 0.15).abs() - 1)
    ring = torch.stack([(X[:, :2] - X.new_tensor([0.6, 0.0])).norm(dim=1) - 0.35, X[:, 2]], 1).norm(dim=1)
    return torch.minimum(torch.maximum(outer, 0.05 - ring), -inner)


def shelf(X):
    """Many flat boards."""
    boards = [box(X, (0.9, 0.03, 0.35), (0, y, 0)) for y in (-0.97, -0.48, 0, 0.48, 0.97)]
    return torch.stack([*boards, *(box(X, (0.03, 1, 0.35), (x, 0, 0)) for x in (-0.9, 0, 0.9))]).amax(0)


def box(X, half, center):
    d = (X - X.new_tensor(center)).abs() - X.new_tensor(half)
    return -(d.clamp(min=0).norm(dim=1) + d.amax(1).clamp(max=0))


SHAPES = {"chair": chair, "mug": mug, "shelf": shelf}


def show(name, depth, mode, facts, seconds):
    peak = " / ".join(f"{facts[key]:.2f}" for key in ("gpu_allocated_gib", "gpu_reserved_gib") if key in facts)
    whole = {"per_corner": facts["queries"] / max(facts["corners"], 1)} | facts
    part = 100 * facts["queries"] / (2**depth + 1) ** 3
    print(
        f"{name:13} {depth:5} {mode:6} {facts['queries']:11,} {whole['per_corner']:7.2f} {part:9.2f} "
        f"{facts.get('seconds_query', math.nan):9.2f} {seconds:8.2f} {facts['cells']:10,} {facts['faces']:10,} "
        f"{peak or facts['peak_gib']:>6}",
        flush=True,
    )


def sample_of_dense(query, depth: int, device) -> float:
    """Seconds that a dense decode's queries would take, from 1% of its chunks, evenly spaced."""
    side, chunk = 2**depth + 1, 1 << 15
    count = -(-(side**3) // chunk)
    chosen = np.linspace(0, count - 1, max(count // 100, 3)).astype(int)
    h = 2 * decode.BOX / 2**depth
    with torch.inference_mode():
        query(torch.zeros(chunk, 3, device=device)).sum().item()  # what comes late the first time
        start = time.perf_counter()
        for number in chosen:
            index = torch.arange(number * chunk, min((number + 1) * chunk, side**3), device=device)
            ijk = torch.stack([index // side**2, index // side % side, index % side], 1)
            value = query(ijk.float() * h - decode.BOX)
        value.sum().item()
    return (time.perf_counter() - start) * count / len(chosen)


def one(name, query, clip, args, depths) -> list[tuple]:
    """One field: fast, exact and dense, at each depth, in one run; what `summary` takes."""
    told = []
    with torch.inference_mode():
        query(torch.zeros(100, 3, device=args.device))
    for depth in depths:
        modes, made = {}, {}
        for exact in (False, True) if depth <= args.exact else (False,):
            start = time.perf_counter()
            V, F, facts = decode.decode(query, depth, exact=exact, clip=clip, device=args.device)
            made[exact], modes[exact] = facts, time.perf_counter() - start
            show(name, depth, "exact" if exact else "fast", facts, modes[exact])
            del V, F
        if depth <= args.dense:
            start = time.perf_counter()
            _, F, facts = decode.dense(query, depth, device=args.device)
            seconds = time.perf_counter() - start
            show(name, depth, "dense", facts | {"faces": len(F)}, seconds)
            missed = {("exact" if e else "fast"): facts["cells"] - made[e]["cells"] for e in made}
            told += [(depth, mode, missed.get(mode), made[mode == "exact"]) for mode in missed]
            print(f"{'':13} {'':5} dense / sparse: {ratios(seconds, modes)}; cells missed: {missed}")
        else:
            told += [(depth, "exact" if exact else "fast", None, facts) for exact, facts in made.items()]
        if depth > args.dense and args.sampled:
            seconds = sample_of_dense(query, depth, args.device)
            print(f"{'':13} {'':5} dense, from 1%: {seconds:,.0f} s of queries; / sparse: {ratios(seconds, modes)}")
        if depth in AUTHOR:
            seconds, gib = AUTHOR[depth]
            print(f"{'':13} {'':5} the author, 3090: {seconds} s, {gib} GB")
    return told


def summary(told: list[tuple]) -> None:
    """Over all fields: what was asked, least, middle and most, and in how many a dense decode found more."""
    for depth, mode in sorted({row[:2] for row in told}):
        rows = [row[2:] for row in told if row[:2] == (depth, mode)]
        asked = np.quantile([facts["per_corner"] for _, facts in rows], [0, 0.5, 1])
        most = 100 * max(facts["of_dense"] for _, facts in rows)
        beside = [missed for missed, _ in rows if missed is not None]
        text = f"{len(rows)} fields, {asked[0]:.2f} to {asked[2]:.2f} values a corner (median {asked[1]:.2f})"
        text += f", at most {most:.1f}% of dense"
        text += (
            f"; of {len(beside)} decoded densely {sum(map(bool, beside))} had cells that were missed" if beside else ""
        )
        print(f"depth {depth}, {mode}: {text}")


def ratios(seconds, modes):
    return ", ".join(f"{'exact' if exact else 'fast'} {seconds / spent:.1f}x" for exact, spent in modes.items())


def cells_known(size, args):
    """The real decoder of a size, asked where a known distance says that the surface is."""
    torch.manual_seed(0)
    model = vae.build(size).to(args.device).eval().requires_grad_(False)
    z = np.random.default_rng(0).standard_normal((model.config["tokens"], model.channels)).astype(np.float32)
    surface.field(model, z)  # what comes late the first time
    start = time.perf_counter()
    real = surface.field(model, z)
    if args.device.startswith("cuda"):
        torch.cuda.synchronize(args.device)
    clip = model.config["clip"]
    print(f"{size}: {model.config['tokens']} tokens, keys and values in {time.perf_counter() - start:.2f} s")

    def query(X):
        real(X)  # the work
        return (mug(X) / clip).clamp(-1, 1)  # the answer

    one(f"mug by {size}", query, clip, args, args.depths)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depths", type=int, nargs="+", default=[7, 8, 9])
    parser.add_argument("--dense", type=int, default=7, help="deepest level that is decoded densely too")
    parser.add_argument("--exact", type=int, default=9, help="deepest level that is decoded exactly too")
    parser.add_argument("--sampled", action="store_true", help="scale deeper dense decodes from 1%% of their chunks")
    parser.add_argument("--clip", type=float, default=0.015)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=SHAPES)
    parser.add_argument("--size", help="of a network whose decoder is run on the cells of the mug")
    parser.add_argument("--vae", help="a trained one: a folder, a checkpoint or a hub id")
    parser.add_argument("--latents", nargs="+", default=[], help="files that 05_latents wrote")
    args = parser.parse_args()
    name = torch.cuda.get_device_name(args.device) if args.device.startswith("cuda") else "CPU"
    print(f"{name}, {torch.get_num_threads()} threads, {memory.free(args.device) / 2**30:.1f} GiB free")
    print(HEAD + ("(allocated / reserved)" if args.device.startswith("cuda") else "(process)"))
    if args.size:
        cells_known(args.size, args)
    elif args.vae:
        model = vae.load(args.vae, args.device)
        told = []
        for path in args.latents:
            z = np.load(path, allow_pickle=False)
            told += one(Path(path).stem[:13], surface.field(model, z), model.config["clip"], args, args.depths)
        summary(told)
    else:
        for name in args.shapes:
            one(name, lambda X, f=SHAPES[name]: (f(X) / args.clip).clamp(-1, 1), args.clip, args, args.depths)


if __name__ == "__main__":
    main()
