"""Learn to denoise latents, shown a picture's features: rectified flow, validated, with shapes sampled on the way."""

import hashlib
import json
import math
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

from lib import chart, dino, dit, flow, journal, loop, memory, mesh, pairs, vae, words
from lib.dataset import Item
from lib.decode import decode
from lib.pairs import Pairs
from lib.place import launch, process

BINS = 5  # of time, in which the loss is told apart
DEPTH = 6  # of the octree that samples on the way are extracted with: 64 cells a side
WATCHED = 4  # shapes of val of which samples are drawn on the way
PEAK = {"H200": 989, "H100": 989, "GH200": 989, "B200": 2250, "A100": 312, "L40": 181, "4090": 165, "3090": 71}
# TFLOP/s of dense bf16 by a GPU's name: what MFU is a share of


class Result(NamedTuple):
    """A run that has ended, for the notebook."""

    folder: Path
    facts: pd.DataFrame  # the run in numbers
    validation: pd.DataFrame  # errors with own and with shuffled features, a row each time
    aside: pd.DataFrame  # shapes that were left out, and why


def train_dit(
    items: list[Item],
    folder: str | Path,  # <run>/06_train_dit
    *,
    processes: int = 1,  # of torchrun, one a GPU; the batch is shared among them
    fresh: bool = False,  # replace a run in this folder that was made otherwise, instead of refusing
    **options,  # see `learn`
) -> Result:
    """Train, validate, write model.safetensors and config.json. The same call goes on after any end."""
    folder, device = Path(folder), memory.choose(options.get("device", "cpu"))
    options |= {"fresh": fresh, "device": device}
    if processes > 1:
        launch("lib.train_dit", folder, {"items": [asdict(item) for item in items], "options": options}, processes)
        options["fresh"] = False  # it stands at its last step: what follows only writes the model
    trained, parts, told = learn(items, folder, **options)
    told["trained"] = {"step": trained.step, "seconds": trained.seconds, "shapes": len(parts["train"])}
    dit.save(folder, trained.model, told)
    rows = pd.DataFrame(journal.read_curve(folder, "validation"))
    used = {name for part in parts.values() for name in part.names}
    aside = [{"item": item.name, "reason": pairs.LACKS} for item in items if item.name not in used]
    numbers = facts(trained, parts, options["recipe"], device)
    return Result(folder, numbers, rows, pd.DataFrame(aside, columns=["item", "reason"]))


def learn(
    items: list[Item],
    folder: Path,
    *,
    size: str = "B",  # of the network, see lib.dit
    start: str = "",  # folder of an earlier run, whose weights this one begins with
    tokens: int = 0,  # of a shape, 0 = the longest latents there are
    map: str = "image",  # whose features are shown
    views: int = 1,  # shown at once
    posterior: str = "mean",  # or "sample": latents drawn from what the VAE thinks possible
    dropout: float = 0.1,  # share of samples that are shown nothing
    times: tuple = (0.0, 1.0, 3.0),  # mean and deviation of their logit, and their shift
    checkpointing: bool = False,
    draws: int = 8,  # of noise, time and view for each shape of a validation
    guidance: float = 2.0,  # of the samples on the way
    memory: float = 4.0,  # GiB that a split's features may take; more stay in their files
    disk: float = 0.0,  # GiB of this machine's for what comes from a bucket, which is then fetched once
    device: str = "cpu",
    seed: int = 0,
    recipe: dict,  # steps, batch_size, lr ...: see lib.loop.train
    **means,  # accumulate, compiled, workers, fresh, validate_every
) -> tuple[loop.Trained, dict[str, Pairs], dict]:
    """What every process does: read and train. Also returns what was learned from, and what is written about it."""
    parts, about = pairs.read(items, tokens, map, posterior == "sample", memory, disk)
    train, val = parts["train"], parts["val"]
    check(train, about, posterior)
    flows = {"views": views, "posterior": posterior, "dropout": dropout}
    flows |= dict(zip(("time_mean", "time_std", "shift"), times, strict=True))
    torch.manual_seed(seed)
    model = make(train, about, size, start)
    model.checkpointing = checkpointing
    seen = val if len(val) > 1 else train  # a handful of meshes may have no val split: the notebook says so
    shapes = shaper(about)

    def validate(average: dit.DiT, step: int) -> dict:
        draw_samples(average, shapes, seen, flows, guidance, Path(folder, "samples"), step)
        return examine(average, seen, flows, draws, seed)

    made_with = {"network": model.config, "start": start, **flows, **about, "names": digest(train.names)}
    source = {"pairs": train, "stats": about["latents"], "seed": seed, "flows": flows}
    given = {"validate": validate, "device": device, "seed": seed, **recipe, **means}
    trained = loop.train(model, loss, partial(batch, **source), folder, made_with, **given)
    return trained, parts, {**about, "flow": flows}


def check(train: Pairs, about: dict, posterior: str) -> None:
    if posterior not in ("mean", "sample"):
        raise ValueError(f"posterior = {posterior!r}; wanted 'mean' or 'sample'")
    if posterior == "sample" and train.logvar is None:
        raise ValueError("posterior = 'sample' needs the spread of the latents: read the pairs with sampled = true")
    if not len(train):
        raise ValueError("no mesh of the train split has latents and features. Run 04_features and 05_latents on more.")
    channels = train.mean.shape[2]
    if len(about["latents"]["mean"]) != channels:
        raise ValueError(f"latents have {channels} channels, their statistics {len(about['latents']['mean'])}")


def make(train: Pairs, about: dict, size: str, start: str) -> dit.DiT:
    """A new network with the data's statistics; with an earlier run's weights, if there is one."""
    _, tokens, channels = train.mean.shape
    stats = about["latents"]
    width = train.features(0, 0).shape[-1]
    # what has no order is the coarse points' tokens, then as many of the sharp points'
    model = dit.DiT(size, tokens, channels, width, stats["ordered"], 1 if stats["ordered"] else 2)
    scale = dict(zip(("feature_mean", "feature_std"), pairs.scale_of_features(train), strict=True))
    scale |= {"latent_mean": stats["mean"], "latent_std": stats["std"]}
    for name, values in scale.items():
        getattr(model, name).copy_(torch.as_tensor(np.asarray(values, np.float32)))
    if start:
        earlier, before = dit.load(start)
        same_vae(about, before, start)
        dit.adopt(model, earlier)
    return model


def same_vae(about: dict, before: dict, start: str) -> None:
    """A network knows the latents of one VAE, or of one that began as it, and the features of one DINOv2."""
    for what, key in (("latents", "sha256"), ("features", "fingerprint")):
        if before[what][key] not in (about[what][key], *about[what].get("ancestors", [])):
            raise ValueError(
                f"start = {start!r} was trained on {what} of another network ({before[what][key][:12]}, here "
                f"{about[what][key][:12]}). Start from a run on the same, or from scratch with start = ''."
            )


# -- what is learned --------------------------------------------------------------------------------------------------


def batch(step: int, samples: range, *, pairs: Pairs, stats: dict, seed: int, flows: dict) -> dict:
    """A batch by the numbers of its samples alone, noise and dropout too: with two processes it is the same."""
    rows = []
    for sample, shape in zip(samples, loop.deal(samples, len(pairs), seed), strict=True):
        rng = np.random.default_rng([seed, sample])
        rows.append(throw(pairs, shape, rng, flows))
    found = {name: torch.from_numpy(np.stack([row[name] for row in rows])) for name in rows[0]}
    found["x"] = (found["x"] - torch.tensor(stats["mean"])) / torch.tensor(stats["std"])  # channel by channel
    found["t"] = logit_normal(found["t"], flows)
    return found


def logit_normal(normal: torch.Tensor, flows: dict) -> torch.Tensor:
    """Normal numbers as logit-normal times, see flow.times."""
    return flow.shifted(torch.sigmoid(flows["time_mean"] + flows["time_std"] * normal), flows["shift"])


def throw(pairs: Pairs, shape: int, rng: np.random.Generator, flows: dict) -> dict:
    """All that is random about one sample."""
    x = pairs.mean[shape].astype(np.float32)  # (T, C)
    if flows["posterior"] == "sample":
        spread = np.exp(0.5 * pairs.logvar[shape].astype(np.float32))
        x = x + spread * rng.standard_normal(x.shape, np.float32)
    return {
        "x": x,
        "noise": rng.standard_normal(x.shape, np.float32),
        "t": np.float32(rng.standard_normal()),
        "keep": np.bool_(rng.random() >= flows["dropout"]),  # by its own throw: no batch is without condition
        "features": pairs.draw(shape, flows["views"], rng),
    }


def loss(model: torch.nn.Module, batch: dict) -> dict:
    """Mean squared error of the velocity, and its sums and counts by time."""
    each = flow.errors(
        lambda x, t: model(x, t, batch["features"], batch["keep"]), batch["x"], batch["noise"], batch["t"]
    )
    sums, counts = flow.by_time(batch["t"], each, BINS)
    terms = {"loss": each.mean()}
    terms |= {f"sum_{k}": sums[k] / len(each) for k in range(BINS)}
    return terms | {f"count_{k}": counts[k] / len(each) for k in range(BINS)}


# -- validation -------------------------------------------------------------------------------------------------------


@torch.no_grad()
def examine(model: dit.DiT, pairs: Pairs, flows: dict, draws: int, seed: int, rounds: int = 2000) -> dict:
    """The velocity's error with each shape's own features and with another shape's: same noise, same times.

    The gap says whether the picture is looked at. Its interval is of a bootstrap over shapes. `nothing` is the error of
    the velocity 0, which a network has that was never trained.
    """
    own, other, nothing = (np.empty((len(pairs), draws)) for _ in range(3))
    device = model.last.weight.device
    for draw in range(draws):
        rngs = [np.random.default_rng([seed, 1, shape, draw]) for shape in range(len(pairs))]
        turn = 1 + draw % (len(pairs) - 1) if len(pairs) > 1 else 0
        features = [pairs.draw(shape, flows["views"], rng) for shape, rng in enumerate(rngs)]
        for start in range(0, len(pairs), 64):
            some = range(start, min(start + 64, len(pairs)))
            x = torch.from_numpy(np.stack([pairs.mean[shape] for shape in some]).astype(np.float32)).to(device)
            noise = torch.from_numpy(np.stack([rngs[shape].standard_normal(x.shape[1:], np.float32) for shape in some]))
            share = torch.tensor(
                [(draw + rngs[shape].random()) / draws for shape in some]
            )  # evenly, of training's times
            t = logit_normal(torch.special.ndtri(share.clamp(0.01, 0.99)), flows).float()  # the rare ends outweigh all
            nothing[start : some.stop, draw] = (
                (noise.to(device) - model.normalise(x)).square().mean((1, 2)).cpu().numpy()
            )
            for errors, shift in ((own, 0), (other, turn)):
                shown = torch.from_numpy(np.stack([features[(shape + shift) % len(pairs)] for shape in some])).to(
                    device
                )
                found = errors_of(model, model.normalise(x), noise.to(device), t.to(device), shown)
                errors[start : some.stop, draw] = found.cpu().numpy()
    gap = (other - own).mean(1)
    low, high = bootstrap(gap, rounds, seed)
    found = {"own": own.mean(), "shuffled": other.mean(), "nothing": nothing.mean()}
    return found | {"gap": gap.mean(), "gap_low": low, "gap_high": high}


def errors_of(model, x, noise, t, features) -> torch.Tensor:
    with torch.autocast("cuda", torch.bfloat16, enabled=x.is_cuda):
        return flow.errors(lambda x, t: model(x, t, features), x, noise, t)


def bootstrap(values: np.ndarray, rounds: int = 2000, seed: int = 0) -> tuple[float, float]:
    """The middle 95% of the means of values drawn again with replacement."""
    rng = np.random.default_rng(seed)
    means = values[rng.integers(len(values), size=(rounds, len(values)))].mean(1)
    return tuple(float(x) for x in np.percentile(means, (2.5, 97.5)))


# -- samples on the way -----------------------------------------------------------------------------------------------


def shaper(about: dict):
    """What makes a mesh of latents (T, C), if the VAE that they are of is still where it was; else nothing."""
    try:
        model = vae.load(about["latents"]["vae"])
    except (ValueError, KeyError) as error:
        words.say(f"no samples on the way: {error}")
        return None

    def shape(latents: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        device = latents.device
        context = model.to(device).decode(latents[None])
        V, F, _ = decode(
            lambda X: model.query(context, X[None])[0].float(), DEPTH, clip=model.config["clip"], device=device
        )
        return V.cpu().numpy(), F.cpu().numpy()

    return shape


def draw_samples(model: dit.DiT, shape, seen: Pairs, flows: dict, guidance: float, folder: Path, step: int) -> None:
    """Meshes of a few shapes from their first view, as <folder>/<mesh>_step_<step>.obj."""
    if shape is None:
        return
    chosen = np.linspace(0, len(seen) - 1, min(WATCHED, len(seen))).round().astype(int)
    features = torch.from_numpy(np.stack([np.asarray(seen.features(k, 0)) for k in chosen]))
    tokens = seen.mean.shape[1]
    folder.mkdir(parents=True, exist_ok=True)
    for k, latents in zip(
        chosen, dit.sample(model, features, tokens, guidance=guidance, shift=flows["shift"]), strict=True
    ):
        mesh.write(folder / f"{seen.names[k]}_step_{step:09d}.obj", *shape(latents))


# -- what the notebook shows ------------------------------------------------------------------------------------------


def facts(trained: loop.Trained, parts: dict[str, Pairs], recipe: dict, device: str) -> pd.DataFrame:
    """What a run cost, and how much of the machine it used."""
    train, val = parts["train"], parts["val"]
    tokens, patches = train.mean.shape[1], train.features(0, 0).shape[0]
    speed = recipe["batch_size"] / trained.pace
    work = 3 * dit.flops(trained.model, tokens, patches) * speed / 1e12  # backward costs twice forward
    rows = {
        "shapes to learn from": len(train),
        "shapes to validate on": f"{len(val)} of val"
        if len(val) > 1
        else f"{len(train)} of train, as val has {len(val)}",
        "views of a shape": len(train.views[0]),
        "features are": "in memory" if train.held is not None else "in their files",
        "million weights": sum(p.numel() for p in trained.model.parameters()) / 1e6,
        "tokens x channels": f"{tokens} x {train.mean.shape[2]}",
        "steps": trained.step,
        "minutes of training": trained.seconds / 60,
        "samples a second": speed,
        "tokens a second": speed * tokens,
        "TFLOP a second": work,
        "share of the time spent waiting for batches": trained.waiting,
    }
    if torch.device(device).type == "cuda":
        name = torch.cuda.get_device_name(device)
        peak = next((value for key, value in PEAK.items() if key in name), math.nan)
        rows |= {"peak GPU memory, GiB": trained.peak_gib, f"MFU: share of {peak} TFLOP/s": work / peak}
    return pd.DataFrame(rows.items(), columns=["what", "number"])


def told(folder: str | Path) -> str:
    """The words of the banner where the features are a random network's."""
    _, about = dit.load(folder)
    return dino.warning(about["features"]["weights"])


def curves(folder: str | Path):
    """The loss, the loss by time, and the errors on unseen shapes with their own and with shuffled features."""
    rows, seen = (pd.DataFrame(journal.read_curve(folder, name)) for name in ("curve", "validation"))
    with chart.canvas(2.6, 1, 3) as (figure, axes):
        left, middle, right = axes.flat
        left.plot(rows["step"], rows["loss"], linewidth=1, label="learned")
        left.plot(seen["step"], seen["own"], "o-", markersize=3, linewidth=1, label="unseen")
        left.set(title="squared error of the velocity", xlabel="step", yscale="log")
        left.legend()
        smooth = rows.set_index("step").rolling(max(len(rows) // 20, 1), min_periods=1).sum()
        for k in range(BINS):
            name = f"t {k / BINS:g} to {(k + 1) / BINS:g}"
            shade = (0.9 - 0.8 * k / BINS, 0.35, 0.2 + 0.6 * k / BINS)  # from data's end to noise's
            middle.plot(smooth.index, smooth[f"sum_{k}"] / smooth[f"count_{k}"], linewidth=1, label=name, color=shade)
        middle.set(title="by time: 0 is data, 1 noise", xlabel="step", yscale="log")
        middle.legend(fontsize=6)
        right.plot(seen["step"], seen["shuffled"], "o-", markersize=3, linewidth=1, label="another shape's picture")
        right.plot(seen["step"], seen["own"], "o-", markersize=3, linewidth=1, label="its own picture")
        right.fill_between(seen["step"], seen["own"] + seen["gap_low"], seen["own"] + seen["gap_high"], alpha=0.2)
        right.set(title="unseen: does it look?", xlabel="step")
        right.legend()
        return chart.image(figure, "Loss, loss by time, and errors of unseen shapes, over the steps")


def growth(result: Result, items: list[Item]):
    """Some unseen shapes as they were sampled along the way, a row each, and the truth."""
    from lib import picture

    alt = "Unseen shapes as they were sampled while the model learned, and the truth"
    return picture.growth(Path(result.folder, "samples"), items, alt)


def digest(names: list[str]) -> str:
    return hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]


if __name__ == "__main__":  # as a process of torchrun
    with process():
        asked = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
        learn([Item(**item) for item in asked["items"]], Path(sys.argv[1]).parent, **asked["options"])
