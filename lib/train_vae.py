"""11: learn a field, so that a shape becomes a few latents and comes back: Dora-VAE from scratch or fine-tuned."""

import hashlib
import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import nn

from lib import chart, loop, mesh, picture, points, score, surface, vae, weights
from lib.dataset import Item, find_inputs, kept_unseen, read_facts, sha256, splits, writing
from lib.journal import read_curve
from lib.place import launch, process

SAMPLES = "_sample_points.npz"
DEPTH = 6  # of the octree that reconstructions are extracted with: 64 cells a side
SURFACE = 10_000  # points that an F-score compares
VOLUME = 32_768  # points that overlap is counted on
WATCHED = 4  # shapes of val that are reconstructed while the model learns

# What a size is trained with unless a recipe says otherwise. The first is Dora's, whose rate is a fine-tuner's.
DORA = {
    "points": 32768,  # on the surface that the encoder sees, and as many on sharp edges
    "supervision": [21384, 10000, 10000],  # points asked for near sharp edges, near the surface and anywhere
    "tokens": [256, 512, 768, 1024, 1280, 2048, 4096],  # one of these is drawn each step
    "odds": [0.1, 0.1, 0.1, 0.1, 0.1, 0.3, 0.2],
    "sharp_weight": 2.0,  # of the error near sharp edges; near the surface and anywhere it is 1
    "kl": 1e-3,
    "batch_size": 8,
    "optimiser": "adamw",
    "lr": 5e-3,  # of Muon
    "adam_lr": 5e-5,
    "eps": 1e-6,
    "weight_decay": 0.01,
    "warmup": 1000,
    "clip": 1.0,
    "ema": 0.9999,
}
SMALL = {"points": 4096, "supervision": [2048, 1024, 1024], "tokens": [128, 256, 512], "odds": [0.3, 0.4, 0.3]}
SMALL |= {"batch_size": 16, "optimiser": "muon", "adam_lr": 1e-3, "eps": 1e-8, "warmup": 500, "ema": 0.999}
TINY = {"points": 384, "supervision": [64, 128, 320], "tokens": [96], "odds": [1.0], "sharp_weight": 1.0, "kl": 1e-4}
TINY |= {"batch_size": 8, "optimiser": "muon", "adam_lr": 3e-3, "eps": 1e-8, "warmup": 50, "ema": 0.99}
TINY |= {"weight_decay": 0.2}  # a hundred shapes are soon learned by heart, their sharp edges first
RECIPES = {"dora": DORA, "small": DORA | SMALL, "tiny": DORA | TINY}


class Result(NamedTuple):
    """What a training run came to, for the notebook."""

    folder: Path  # with the model, its config, its curves and reconstructions
    facts: pd.DataFrame  # the run in numbers
    scores: pd.DataFrame  # a row an unseen shape, the worst first
    baselines: pd.DataFrame  # means of the scores beside what they are without a model, and at most
    aside: pd.DataFrame  # shapes that were left out, and why


def train_vae(
    items: list[Item],
    folder: str | Path,  # <run>/11_train_vae
    *,
    unseen: int = 24,  # shapes of val and test that are scored at the end
    processes: int = 1,  # of torchrun, one a GPU; the batch is shared among them
    fresh: bool = False,  # replace a run in this folder that was made otherwise, instead of refusing
    **options,  # see `learn`
) -> Result:
    """Train, write the model, reconstruct unseen shapes and score them."""
    folder, options = Path(folder), options | {"fresh": fresh}
    train, held_out, aside = divide(items)
    if processes > 1:
        launch("lib.train_vae", folder, {"items": [asdict(item) for item in items], "options": options}, processes)
        options["fresh"] = False
    trained, judge = learn(items, folder, **options)
    vae.save(trained.model, folder)
    made = folder / "reconstructions"
    with torch.no_grad():
        rows = [judge(trained.model, item, made / f"{item.name}.obj") for item in held_out[:unseen]]
    scores = pd.DataFrame(rows).sort_values("f_05", ignore_index=True)
    with writing(folder / "scores.csv") as beside:
        scores.to_csv(beside, index=False)
    facts = {
        "shapes to learn from": len(train),
        "shapes kept unseen": len(held_out),
        "weights": sum(weight.numel() for weight in trained.model.parameters()),
        "steps": trained.step,
        "minutes of training": trained.seconds / 60,
        "steps a second": 1 / trained.pace,
        "share of the time spent waiting for batches": trained.waiting,
        "peak GPU memory, GiB": trained.peak_gib,
    }
    facts = pd.DataFrame(facts.items(), columns=["what", "number"])
    return Result(folder, facts, scores, compare(scores, train, held_out[:unseen]), aside)


def learn(
    items: list[Item],
    folder: Path,
    *,
    size: str = "small",  # of the network, see lib.vae
    network: dict | None = None,  # what differs from the size's own, see lib.vae.MEANING; 0 and "" do not
    start: str = "scratch",  # or weights to begin with: a path, a run's folder, a hub's id
    steps: int = 20_000,
    recipe: dict | None = None,  # what differs from the size's own, see DORA; 0, "" and [] do not
    edges: bool = True,  # sharp edges are seen and asked for; False: as many points of the whole surface instead
    augment: points.Augment = "none",
    validate_every: int = 0,  # steps, 0 = a fifth of all
    cache: float = 4.0,  # GiB of points kept in memory; what does not fit is read again each time
    seed: int = 0,
    **means,  # accumulate, device, compiled, workers, fresh: see lib.loop.train
) -> tuple[loop.Trained, Callable]:
    """What every process does: train. Also returns who judges an item by the same lights."""
    chosen = choose(size, recipe or {})
    train, held_out, _ = divide(items)
    torch.manual_seed(seed)
    model = begin(size, {name: value for name, value in (network or {}).items() if value not in (0, "")}, start)
    asked = {name: chosen.pop(name) for name in ("points", "supervision", "tokens", "odds", "sharp_weight", "kl")}
    made_with = {"network": model.config, "start": start, "edges": edges, "augment": augment, "data": digest(train)}
    seen, kept = (points.Shelf([samples(item) for item in some], cache) for some in (train, held_out))
    drawn = partial(batch, asked=asked, edges=edges, seed=seed, channels=model.channels)
    ask = partial(losses, asked=asked, clip=model.config["clip"])
    judge = partial(judged, tokens=max(asked["tokens"]), edges=edges)
    watched = [item for item in held_out if splits([item.name], item.dataset)[item.name] == "val"] or held_out
    trained = loop.train(
        model,
        ask,
        partial(drawn, shelf=seen, how=augment),
        folder,
        asked | made_with,
        steps=steps,
        seed=seed,
        validate=lambda ema, step: (
            glance(judge, ema, watched[:WATCHED], folder, step)
            | unseen_losses(ema, ask, partial(drawn, shelf=kept, how="none"), len(kept), chosen["batch_size"])
        ),
        validate_every=validate_every or -(-steps // 5),
        **chosen,
        **means,
    )
    return trained, judge


def begin(size: str, network: dict, start: str) -> nn.Module:
    """The network with fresh weights, or with others'."""
    if start == "scratch":
        return vae.build(size, **network)
    model = vae.load(start).requires_grad_(True)
    wanted = {"size": size} | network
    different = [
        f"{k} = {v!r} is asked for and {model.config[k]!r} came" for k, v in wanted.items() if model.config[k] != v
    ]
    if different:
        raise ValueError(f"start = {start!r}: {'; '.join(different)}. Ask for what it is, or start from scratch.")
    # so that what learned the latents of an earlier resolution may go on with this one's, see lib.train_dit.same_vae
    model.config["ancestors"] = [sha256(weights.file_of(start)), *model.config.get("ancestors", [])]
    return model


def choose(size: str, recipe: dict) -> dict:
    """The size's recipe with what is given in its place."""
    own = RECIPES.get(size, RECIPES["small"])
    if unknown := recipe.keys() - own.keys():
        raise ValueError(f"recipe: unknown {', '.join(sorted(unknown))}; there are {', '.join(own)}")
    given = {name: value for name, value in recipe.items() if value not in (0, "", [], ())}
    if "tokens" in given and "odds" not in given:
        given["odds"] = [1 / len(given["tokens"])] * len(given["tokens"])
    chosen = own | given
    if len(chosen["odds"]) != len(chosen["tokens"]) or len(chosen["supervision"]) != 3:
        wanted = "one of odds for each of tokens, and three numbers of supervision"
        raise ValueError(
            f"recipe: {', '.join(f'{k} = {chosen[k]}' for k in ('tokens', 'odds', 'supervision'))}; {wanted}"
        )
    return chosen


def divide(items: list[Item]) -> tuple[list[Item], list[Item], pd.DataFrame]:
    """Shapes to learn from, shapes that stay unseen (val and test), and what has no samples."""
    aside, usable = [], []
    for item in items:
        if find_inputs(item, read_facts(item), (SAMPLES,)) is None:
            aside.append({"item": item.name, "reason": f"no {SAMPLES} of 02_sharp_sample at {item.resolution}"})
        else:
            usable.append(item)
    part = splits([item.name for item in usable], items[0].dataset) if items else {}
    train = [item for item in usable if part[item.name] == "train"]
    held_out = kept_unseen(usable)
    if not train or not held_out:
        where = f"{items[0].dataset} at {items[0].resolution}" if items else "no items"
        raise ValueError(
            f"{where}: {len(train)} shapes to learn from and {len(held_out)} to validate with, of {len(items)}; wanted "
            "some of both. Run 02_sharp_sample on more shapes, or move some in <dataset>/split.json."
        )
    return train, held_out, pd.DataFrame(aside, columns=["item", "reason"])


def samples(item: Item) -> tuple[Path, int]:
    """Where an item's points lie, and how many of them anywhere, as 02 noted it."""
    made = read_facts(item).get("02_sharp_sample", {}).get("parameters", {})
    return item.path(SAMPLES), int(made.get("uniform", 0))


def digest(train: list[Item]) -> str:
    """Of the data: the same names with the same samples."""
    hashes = {item.name: find_inputs(item, read_facts(item), (SAMPLES,)) for item in train}
    return f"{len(train)} shapes, {hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()[:16]}"


# -- batches and the loss ---------------------------------------------------------------------------------------------


def batch(step: int, samples: range, *, shelf, asked: dict, channels: int, edges: bool, how: str, seed: int) -> dict:
    """What one step learns from: a function of the numbers of step and samples alone."""
    odds = np.array(asked["odds"]) / sum(asked["odds"])
    tokens = int(np.random.default_rng([seed, 2, step]).choice(asked["tokens"], p=odds))
    rows = []
    for number, sample in zip(loop.deal(samples, len(shelf), seed), samples, strict=True):
        rng = np.random.default_rng([seed, 1, sample])
        drawn = points.draw(shelf[number], rng, asked["points"], asked["supervision"], edges)
        rows.append((*points.augment(how, *drawn, rng), rng.standard_normal((tokens, channels), np.float32)))
    stacked = (torch.from_numpy(np.stack(column)) for column in zip(*rows, strict=True))
    return dict(zip(("coarse", "sharp", "queries", "noise"), stacked, strict=True)) | {"tokens": tokens, "step": step}


def losses(model: nn.Module, batch: dict, asked: dict, clip: float) -> dict:
    """Dora's: squared errors of the clipped distance, near sharp edges and elsewhere, and the latents' information."""
    mean, logvar = model.encode(batch["coarse"], batch["sharp"], batch["tokens"], seed=batch["step"])
    mean, logvar = mean.float(), logvar.float()
    z = mean + (0.5 * logvar).exp() * batch["noise"]  # (B, T, C)
    field = model.query(model.decode(z), batch["queries"][..., :3]).float()  # (B, N)
    error = (field - clipped(batch["queries"][..., 3], clip)).square()
    near_edges = asked["supervision"][0]
    sharp, rest = error[:, :near_edges].mean(), error[:, near_edges:].mean()
    kl = model.kl(mean, logvar)
    return {"loss": rest + asked["sharp_weight"] * sharp + asked["kl"] * kl, "sharp": sharp, "rest": rest, "kl": kl}


def clipped(distance, clip: float):
    """What the field is to be: 1 from `clip` inside, -1 from `clip` outside."""
    return (distance / clip).clip(-1, 1)


# -- judging ----------------------------------------------------------------------------------------------------------


def judged(model: nn.Module, item: Item, target: Path | None, *, tokens: int, edges: bool) -> dict:
    """An item's scores, encoded from all its points, as 05 does; the reconstruction is written if there is a target."""
    shape, rng = points.read(*samples(item)), np.random.default_rng(0)
    counts = [len(shape.edges) // 8, 0, min(VOLUME, len(shape.uniform))]
    coarse, sharp, queries = points.draw(shape, rng, 0, counts, edges)
    device, clip = next(model.parameters()).device, model.config["clip"]
    if not edges:
        queries[: counts[0]] = points.pick(shape.edges, counts[0], rng)  # seen or not, edges are what is judged
    coarse, sharp, X = (torch.from_numpy(array)[None].to(device) for array in (coarse, sharp, queries[:, :3]))
    mean, _ = model.encode(coarse, sharp, tokens, seed=0)
    query = surface.field(model, mean[0])
    field = torch.cat([query(part) for part in X[0].split(1 << 16)]).cpu().numpy()
    error = np.square(field.clip(-1, 1) - clipped(queries[:, 3], clip))
    near, anywhere = slice(0, counts[0]), slice(counts[0], None)
    V, F, _ = surface.surface(model, mean[0], DEPTH)
    if target is not None:
        target.parent.mkdir(parents=True, exist_ok=True)
        mesh.write(target, V, F)
    truth = points.pick(shape.coarse, SURFACE, rng)[:, :3]
    made = score.surface_points(V, F, SURFACE, rng)
    found = score.match(made, truth)
    return {
        "item": item.name,
        "iou": score.iou(field[anywhere] > 0, queries[anywhere, 3] > 0),
        "f_02": score.f_score(found, 0.02),
        "f_05": score.f_score(found, 0.05),
        "edge_error": float(error[near].mean()),
        "edge_gap": float(np.minimum(score.nearest(points.pick(shape.sharp, 4096, rng)[:, :3], made)[0], 1).mean()),
        "error": float(error[anywhere].mean()),
    }


def glance(judge: Callable, model: nn.Module, watched: list[Item], folder: Path, step: int) -> dict:
    """Means of the scores of a few unseen shapes, and their reconstructions."""
    rows = [judge(model, item, folder / "reconstructions" / f"{item.name}_step_{step:09d}.obj") for item in watched]
    return pd.DataFrame(rows).drop(columns="item").mean().to_dict()


def unseen_losses(model: nn.Module, ask: Callable, draw: Callable, count: int, size: int) -> dict:
    """Means of the loss and its terms over all shapes that stay unseen, the same points of them each time."""
    device, found = next(model.parameters()).device, []
    for start in range(0, count, size):
        samples = range(start, min(start + size, count))
        with torch.no_grad():
            terms = ask(model, loop.moved(draw(0, samples), device))
        found.append({f"unseen_{name}": len(samples) / count * float(value) for name, value in terms.items()})
    return pd.DataFrame(found).sum().to_dict()


def compare(scores: pd.DataFrame, train: list[Item], unseen: list[Item]) -> pd.DataFrame:
    """F-scores beside what they would be without a model: another unseen shape, the nearest one learned from."""
    surfaces = {item.name: points.read(*samples(item)).coarse[:, :3].astype(np.float32) for item in (*train, *unseen)}
    rng = np.random.default_rng(0)
    rows: dict[str, list] = {"another unseen shape": [], "the nearest learned shape": [], "the shape itself": []}
    for number, item in enumerate(unseen):
        own = rng.permutation(surfaces[item.name])
        truth, rest = own[: len(own) // 2][:SURFACE], own[len(own) // 2 :]
        few = truth[:1000]
        gaps = {
            other.name: score.chamfer_l1(score.match(few, points.pick(surfaces[other.name], 1000, rng)))
            for other in train
        }
        stand_ins = surfaces[unseen[number - 1].name], surfaces[min(gaps, key=gaps.get)], rest
        for found, other in zip(rows.values(), stand_ins, strict=True):
            P = points.pick(other, len(truth), rng)
            pair = score.match(P, truth)
            found.append([score.f_score(pair, distance) for distance in (0.02, 0.05)])
    means = [
        {"in its place": name, **dict(zip(("f_02", "f_05"), np.mean(found, 0), strict=True))}
        for name, found in rows.items()
    ]
    return pd.DataFrame([{"in its place": "the reconstruction", **scores.drop(columns="item").mean()}, *means])


# -- what the notebook shows ------------------------------------------------------------------------------------------


def curves(folder: str | Path):
    """The loss by its terms, and what the unseen shapes score meanwhile."""
    rows, seen = pd.DataFrame(read_curve(folder)), pd.DataFrame(read_curve(folder, "validation"))
    with chart.canvas(2.6, 1, 2) as (figure, axes):
        left, right = axes.flat
        for name in ("sharp", "rest"):
            left.plot(rows["step"], rows[name], label=f"{name}, learned", linewidth=1)
        for name, label in (("unseen_sharp", "sharp, unseen"), ("unseen_rest", "rest, unseen")):
            if name not in seen:  # a run from before there were these
                continue
            left.plot(seen["step"], seen[name], "o-", label=label, markersize=3, linewidth=1)
        left.set(title="squared error of the field", xlabel="step", yscale="log")
        left.legend()
        for name, label in (("iou", "overlap"), ("f_05", "F(0.05)"), ("f_02", "F(0.02)")):
            right.plot(seen["step"], seen[name], "o-", label=label, markersize=3, linewidth=1)
        right.set(title="unseen shapes, mean", xlabel="step", ylim=(0, 1))
        right.legend()
        return chart.image(figure, "Loss by term, and scores of unseen shapes, over the steps")


def growth(result: Result, items: list[Item]):
    """Some unseen shapes as they were reconstructed along the way, a row each, and the truth."""
    alt = "Unseen shapes as they were reconstructed while the model learned, and the truth"
    return picture.growth(result.folder / "reconstructions", items, alt)


def worst(result: Result, items: list[Item], n: int = 8, columns: int = 4):
    """The unseen shapes that came back worst, each beside the truth."""
    place = {item.name: item for item in items}
    meshes, titles = [], []
    for row in result.scores.head(n).itertuples():
        meshes += [
            picture.mesh_or_reason(place[row.item].path("_normalized.obj")),
            picture.mesh_or_reason(result.folder / "reconstructions" / f"{row.item}.obj"),
        ]
        titles += [f"{row.item}\ntruth", f"\nIoU {row.iou:.2f}, F(0.05) {row.f_05:.2f}"]
    return picture.contact_sheet(meshes, titles, columns, together=2, alt="The worst reconstructions beside the truth")


if __name__ == "__main__":  # as a process of torchrun
    with process():
        asked = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
        learn([Item(**item) for item in asked["items"]], Path(sys.argv[1]).parent, **asked["options"])
