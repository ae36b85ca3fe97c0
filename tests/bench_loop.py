"""What training costs: step time, samples a second, peak memory, and the share of the machine that a model uses (MFU).

    python tests/bench_loop.py                                              tiny networks, on what is here
    python tests/bench_loop.py --model vae --size dora --batches 2 4 8 16   the published VAE with its own recipe
    python tests/bench_loop.py --model dit --size L --tokens 2048 --batches 8 16 --compiled
    python tests/bench_loop.py --model dit --size L --tokens 2048 --batches 44 --accumulate 2 --compiled

Steps are lib.loop's own: forward, backward, clipping, optimisers and average, on batches that lie ready, so that no
loader is measured. Work is three times what torch's FLOP counter finds in a forward pass (products of matrices and
attention); MFU is its rate over the GPU's dense bf16 peak by the data sheet.
"""

import argparse
import copy
import statistics
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parent.parent))

from lib import dit, loop, memory, points, train_dit, train_vae, vae
from lib.place import Place

PATCHES, FEATURES = 256, 384  # of DINOv2-small's at 224 pixels
FLOWS = {"views": 1, "posterior": "mean", "dropout": 0.1, "time_mean": 0.0, "time_std": 1.0, "shift": 1.0}


def shape_vae(size: str, tokens: int, rng: np.random.Generator):
    """A VAE, its loss, its recipe and what makes a batch: points of one ball, as many as the recipe asks for."""
    model, asked = vae.build(size), dict(train_vae.RECIPES.get(size))
    asked |= {"tokens": [tokens], "odds": [1.0]} if tokens else {}
    D = rng.standard_normal((4 * asked["points"], 3)).astype(np.float32)
    D /= np.linalg.norm(D, axis=1, keepdims=True)
    surface, X = np.hstack([0.9 * D, D]), rng.uniform(-1, 1, (1 << 17, 3)).astype(np.float32)
    anywhere = np.hstack([X, 0.9 - np.linalg.norm(X, axis=1, keepdims=True)])
    ball = points.Points(surface, surface, anywhere, anywhere, anywhere)

    def batch(count: int) -> dict:
        source = {"shelf": [ball] * count, "asked": asked, "channels": model.channels}
        return train_vae.batch(0, range(count), **source, edges=True, how="none", seed=0)

    return model, partial(train_vae.losses, asked=asked, clip=model.config["clip"]), asked, batch


def transformer(size: str, tokens: int, rng: np.random.Generator):
    """A diffusion transformer on noise, as large as Dora's latents and DINOv2-small's features."""
    tokens = tokens or 64
    model = dit.DiT(size, tokens, 64, FEATURES, ordered=False, branches=2)

    def batch(count: int) -> dict:
        x, noise = (rng.standard_normal((count, tokens, 64), np.float32) for _ in range(2))
        made = {"x": x, "noise": noise, "t": rng.random(count, np.float32), "keep": rng.random(count) > 0.1}
        made["features"] = rng.standard_normal((count, PATCHES, FEATURES), np.float32).astype(np.float16)
        return {name: torch.from_numpy(array) for name, array in made.items()}

    return model, train_dit.loss, {"optimiser": "adamw", "adam_lr": 1e-4, "lr": 5e-3, "eps": 1e-8}, batch


def measure(model, loss, recipe: dict, batch: dict, args) -> dict:
    """Medians over steps that are under way."""
    place = Place.here(args.device)
    model = copy.deepcopy(model).to(place.device)
    model.checkpointing = args.checkpointing
    given = {name: recipe[name] for name in ("optimiser", "lr", "adam_lr", "eps")}
    made = loop.optimisers(model, betas=(0.9, 0.99), weight_decay=0.01, **given)
    run = loop.Run(model, copy.deepcopy(model).eval().requires_grad_(False), made)
    stepper = loop.Stepper(model, loss)
    with torch.no_grad(), FlopCounterMode(display=False) as counted:
        stepper(loop.moved(first(batch), place.device))
    count = args.accumulate * len(next(iter(batch.values())))
    if args.compiled:
        torch.compiler.reset()  # else another batch size would be compiled for all sizes, and slower
        loop.compile_blocks(model)
    memory.reset_peak(args.device)
    seconds = []
    for step in range(args.warmup + args.steps):
        start = time.perf_counter()
        pieces = [batch] * args.accumulate
        loop.forward_backward(stepper, pieces, place, 0, step, 1.0, model)  # ends with a number read from the GPU
        loop.update(run, 1e-3, 0.999)
        if place.on_gpu:
            torch.cuda.synchronize(place.device)
        seconds.append(time.perf_counter() - start)
    step = statistics.median(seconds[args.warmup :])
    work = 3 * counted.get_total_flops() * count / step / 1e12
    peaks = memory.peaks(args.device)
    return {"batch": count, "ms": 1e3 * step, "samples": count / step, "tflops": work, **peaks}


def first(batch: dict) -> dict:
    return {name: value[:1] if torch.is_tensor(value) else value for name, value in batch.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("vae", "dit"), nargs="+", default=["vae", "dit"])
    parser.add_argument("--size", default="tiny")
    parser.add_argument("--tokens", type=int, default=0, help="of a shape, 0 = the longest of the size's recipe")
    parser.add_argument("--batches", type=int, nargs="+", default=[8])
    parser.add_argument("--accumulate", type=int, default=1, help="such batches a step, as 06 has it")
    parser.add_argument("--steps", type=int, default=10, help="that are measured")
    parser.add_argument("--warmup", type=int, default=3, help="steps before them")
    parser.add_argument("--compiled", action="store_true", help="torch.compile")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    on_gpu = args.device.startswith("cuda")
    name = torch.cuda.get_device_name(args.device) if on_gpu else f"CPU, {torch.get_num_threads()} threads"
    peak = next((value for key, value in train_dit.PEAK.items() if key in name), None) if on_gpu else None
    print(f"{name}, torch {torch.__version__}; {vars(args)}")
    print("model size   tokens batch    ms/step  samples/s   tokens/s   TFLOP/s    MFU   GiB (allocated / reserved)")
    for kind in args.model:
        made = (shape_vae if kind == "vae" else transformer)(args.size, args.tokens, np.random.default_rng(0))
        model, loss, recipe, batch = made
        for count in args.batches:
            try:
                ready = batch(count)
                tokens = ready.get("tokens") or ready["x"].shape[1]
                found = measure(model, loss, recipe, ready, args)
            except (MemoryError, torch.OutOfMemoryError) as error:
                print(f"{kind:5} {args.size:6} {'':6} {count:5}   out of memory: {str(error)[:80]}", flush=True)
                break
            share = f"{found['tflops'] / peak:6.1%}" if peak else "     -"
            room = [found[key] for key in ("gpu_allocated_gib", "gpu_reserved_gib", "peak_gib") if key in found]
            print(
                f"{kind:5} {args.size:6} {tokens:6} {found['batch']:5} {found['ms']:10.1f} {found['samples']:10.2f} "
                f"{found['samples'] * tokens:10.0f} {found['tflops']:9.2f} {share}   "
                f"{' / '.join(f'{gib:.1f}' for gib in room[:2] if gib)}",
                flush=True,
            )


if __name__ == "__main__":
    main()
