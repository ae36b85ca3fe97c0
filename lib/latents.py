"""05: every shape to its VAE latents, and what it costs to decode them at each depth of the octree."""

import functools
import os
import time
from collections.abc import Generator
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from lib import chart, memory, mesh, pairs, picture, points, score, vae, weights
from lib.dataset import Item, read_facts, sha256, splits, write_text
from lib.decode import smallest
from lib.seals import sealed
from lib.simplify import thinned
from lib.surface import half, surface

SAMPLES = "_sample_points.npz"
STAGE = "05_latents"
choose = memory.choose  # the notebook asks it
COMPARED = 30_000  # points of either surface whose distances are the error
DRAWN = 1_000_000  # faces of a picture: more than it has pixels; VTK takes about 250 bytes a face
AUTHOR = {8: (27, 2.1), 9: (210, 6.1), 10: (1800, 23.7)}  # seconds and GB, every grid point asked, on a 3090

# -- encoding ---------------------------------------------------------------------------------------------------------


def latents(
    item: Item,
    sha256: str,  # of the VAE: latents of another one are made again
    tokens: list,  # lengths; the longest has the plain name
    points: int,
    anchors: str,
    seed: int,
    vae: str,
    device: str,
) -> Generator[tuple, list, dict]:
    """Read an item's points, ask for its latents, write posterior mean and logvar of each length; returns the facts."""
    coarse, sharp = seen(item.path(SAMPLES), points, seed)
    found = yield coarse, sharp
    for length, (mean, logvar) in zip(tokens, found, strict=True):
        tail = "" if length == max(tokens) else f"_{length}"
        for name, array in ((f"_latent_sample{tail}.npy", mean), (f"_latent_logvar{tail}.npy", logvar)):
            half = array.astype(np.float16)
            if not np.isfinite(half).all():
                raise ValueError(f"{item.path(SAMPLES)}: the VAE gave {array[~np.isfinite(half)][0]} as a latent")
            with item.writing(name) as path, path.open("wb") as file:
                np.save(file, half)
    mean, logvar = found[tokens.index(max(tokens))]
    return {
        "tokens": max(tokens),
        "channels": mean.shape[1],
        "spread": float(np.exp(0.5 * logvar).mean()),  # of the posterior; 1 says nothing about the shape
        "largest": float(np.abs(mean).max()),
        "points": len(coarse),
        "sharp": len(sharp),
        "bytes": sum(output["size"] for output in item.written.values()),
    }


def seen(path: Path, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """What the encoder is shown: points of the surface and of its sharp edges with normals, (n, 6) each."""
    shape, rng = points.read(path), np.random.default_rng(seed)
    return tuple(points.pick(array, count or len(array), rng) for array in (shape.coarse, shape.sharp))


@torch.inference_mode()
def encode(
    questions: list, sha256: str, tokens: list, points: int, anchors: str, seed: int, vae: str, device: str
) -> list[list]:
    """Mean and logvar (T, C) of each length, for the points of several shapes; those of equal size go together."""
    model = looking(vae, device, anchors)
    if fingerprint(vae) != sha256:
        raise RuntimeError(f"vae = {vae!r} changed since this run began; start it again")
    answers: list[list] = [[] for _ in questions]
    alike: dict[tuple, list[int]] = {}
    for number, (coarse, sharp) in enumerate(questions):
        alike.setdefault((len(coarse), len(sharp)), []).append(number)
    for numbers in alike.values():
        coarse, sharp = (torch.from_numpy(np.stack([questions[n][k] for n in numbers])).to(device) for k in (0, 1))
        for length in tokens:
            farthest = model.config["anchors"] != "fixed"
            indices = model.choose(coarse, sharp, length, seed) if farthest else None  # in full precision
            with half(device):
                mean, logvar = model.encode(coarse, sharp, length, seed, indices)  # (B, T, C) each
            for number, *pair in zip(numbers, mean.float().cpu().numpy(), logvar.float().cpu().numpy(), strict=True):
                answers[number].append(pair)
    return answers


@functools.lru_cache(1)
def network(where: str, device: str) -> vae.VAE:
    """One network a process."""
    return vae.load(where, device)


def looking(where: str, device: str, anchors: str) -> vae.VAE:
    """The same, whose tokens look from where it was trained to, or from elsewhere."""
    model = network(where, device)
    return model.look_from(anchors) if anchors else model


@functools.lru_cache(4)
def fingerprint(where: str) -> str:
    return sha256(weights.file_of(where))


def describe(where: str, device: str, anchors: str = "") -> dict:
    """What a run is told of its VAE. Loads it once, so that an error comes before any work."""
    model = looking(where, device, anchors)
    numbers = sum(parameter.numel() for parameter in model.parameters())
    return {
        "weights": where,
        "sha256": fingerprint(where),
        "size": model.config["size"],
        "million parameters": round(numbers / 1e6, 2),
        "tokens": model.config["tokens"],
        "channels": model.channels,
        "anchors": model.config["anchors"],
        "ordered": model.ordered,
        "ancestors": model.config.get("ancestors", []),
        "clip": model.config["clip"],
        "device": torch.cuda.get_device_name(device) if str(device).startswith("cuda") else "CPU",
    }


def shares(device: str, jobs: int, batch: int, scheduler: str = "") -> dict:
    """Processes and items a batch. On this machine's GPU three processes: one computes, the others read and write."""
    on_gpu = device.startswith("cuda")
    return {"jobs": 3 if on_gpu and jobs < 0 and not scheduler else jobs, "batch": batch or (16 if on_gpu else 1)}


def statistics(items: list[Item], about: dict, tokens: list) -> tuple[dict, str]:
    """Mean and deviation of each channel over the train split, written as <dataset>/<R>_latent_stats.json; or {}, and
    the words for what is missing."""
    target = Path(items[0].dataset, f"{items[0].resolution}_latent_stats.json")
    made = [item for item in items if is_of(item, about)]
    part = splits([item.name for item in made], items[0].dataset)
    train = [item for item in made if part[item.name] == "train"]
    if not train:
        return {}, missing(target, len(items), list(part.values()))
    lengths = {}
    for length in tokens:
        tail = "" if length == max(tokens) else f"_{length}"
        total = np.zeros((2, about["channels"]))
        for item in train:
            mean = pairs.latents(item.path(f"_latent_sample{tail}.npy")).astype(np.float64)  # (T, C)
            total += mean.sum(0), (mean**2).sum(0)
        first, second = total / (len(train) * length)
        lengths[str(length)] = {
            "mean": first.tolist(),
            "std": np.sqrt(np.maximum(second - first**2, 1e-12)).tolist(),
        }
    stats = {"sha256": about["sha256"], "vae": about["weights"], "size": about["size"], "tokens": max(tokens)}
    stats |= {name: about[name] for name in ("channels", "anchors", "ordered", "ancestors")} | {"count": len(train)}
    stats |= lengths[str(max(tokens))] | {"lengths": lengths}
    write_text(target, sealed(stats, 1))
    return stats, ""


def is_of(item: Item, about: dict) -> bool:
    """Are an item's latents of this VAE, its tokens looking from where they do now?"""
    made_with = read_facts(item).get(STAGE, {}).get("parameters", {})
    return all(made_with.get(name) == about[name] for name in ("sha256", "anchors"))


def missing(target: Path, count: int, parts: list[str]) -> str:
    """Why there are no statistics, and what to do."""
    if not parts:
        return f"None of {count} meshes has latents of this VAE: {target.name} was not written. Why stands further up."
    told = " and ".join(f"{parts.count(name)} in {name}" for name in ("val", "test") if name in parts)
    return (
        f"No mesh of the train split has latents: of {len(parts)} that have them, {told}. {target.name}, the mean and "
        "deviation over train that 06_train_dit scales by, was not written. To look at latents and surfaces it is not "
        f"needed. To learn, add meshes (limit = 0 takes all), or say in {target.with_name('split.json')} from whom to "
        'learn, as {"train": ["a mesh\'s name", ...]}, and run this again.'
    )


def deviations(stats: dict) -> str:
    """Of the channels, the least and the most."""
    if not stats:
        return "No deviation of channels: no mesh to take it over."
    return f"deviation of the {stats['channels']} channels: {min(stats['std']):.3f} to {max(stats['std']):.3f}"


# -- decoding ---------------------------------------------------------------------------------------------------------


def decoded(model: vae.VAE, z: np.ndarray, depth: int, exact: bool) -> tuple[tuple, dict]:
    """From latents to a mesh (V, F) on the CPU, and facts; out of memory is a fact too."""
    start = time.perf_counter()
    try:
        V, F, facts = surface(model, z, depth, exact)
    except (MemoryError, RuntimeError) as error:
        if not memory.is_out(error):
            raise
        return (np.zeros((0, 3)), np.zeros((0, 3), int)), {"depth": depth, "result": f"out of memory: {error}"[:200]}
    return (V, F), facts | {"seconds": time.perf_counter() - start, "result": "whole" if len(F) else "no surface"}


def errors(V: np.ndarray, F: np.ndarray, item: Item) -> dict:
    """How far a mesh lies from an item's surface: mean distance both ways, and the share nearer than 0.02."""
    rng = np.random.default_rng(0)
    truth = points.pick(points.read(item.path(SAMPLES)).coarse, COMPARED, rng)[:, :3]
    made = score.surface_points(V, F, COMPARED, rng)
    found = score.match(made, truth)
    return {"error": score.chamfer_l1(found) / 2, "f_02": score.f_score(found, 0.02)}


def costs(
    rows: pd.DataFrame,  # of the ledger: the shapes to decode
    dataset: str,
    resolution: int,
    depths: list,
    tokens: list,
    where: str,
    device: str,
    exact: bool = False,
) -> tuple[pd.DataFrame, dict]:
    """Each of these shapes decoded at each depth, and at the least from each length: rows of facts, and the meshes."""
    model, found, meshes = network(where, device), [], {}
    warm_up(model)
    for name in rows["item"]:
        item = Item(name, "", "", str(dataset), resolution)
        for length in sorted(tokens, reverse=True):
            tail = "" if length == max(tokens) else f"_{length}"
            z = pairs.latents(item.path(f"_latent_sample{tail}.npy"))
            for depth in depths if not tail else [min(depths)]:
                (V, F), facts = decoded(model, z, depth, exact)
                found.append({"item": name, "tokens": length, **facts, **(errors(V, F, item) if len(F) else {})})
                meshes[name, length, depth] = drawable(V, F, facts)
    return pd.DataFrame(found), meshes


def warm_up(model: vae.VAE) -> None:
    """What a GPU loads and chooses at first belongs to no depth."""
    z = np.zeros((2, model.channels), np.float32)
    decoded(model, z, 1, False)


def drawable(V: np.ndarray, F: np.ndarray, facts: dict) -> tuple | str:
    """A mesh as pictures take it, with the number of faces that it had; or why there is none."""
    return facts["result"] if facts["result"] != "whole" else (*thinned(V, F, DRAWN), len(F))


def by_depth(found: pd.DataFrame) -> pd.DataFrame:
    """Means over the shapes at each depth, beside the author's figures; the longest latents only."""
    if found.empty:
        return found
    longest = found[found["tokens"] == found["tokens"].max()].copy()
    whole = longest["result"] == "whole"
    columns = ["seconds", "queries", "per_corner", "of_dense", "gpu_allocated_gib", "gpu_reserved_gib", "peak_gib"]
    columns = [name for name in [*columns, "faces", "error", "f_02"] if name in longest]
    table = longest[whole].groupby("depth")[columns].mean()
    peaks = [name for name in columns if name.endswith("_gib")]
    table[peaks] = longest[whole].groupby("depth")[peaks].max()
    table = table.reindex(sorted(longest["depth"].unique())).reset_index()
    failed = longest[~whole].groupby("depth")["result"].first()
    counts = longest.groupby("depth")["result"].agg(shapes=len, whole=lambda result: (result == "whole").sum())
    table["whole"] = [f"{counts['whole'][d]} of {counts['shapes'][d]}" for d in table["depth"]]
    table["else"] = [failed.get(depth, "") for depth in table["depth"]]
    if AUTHOR.keys() & set(table["depth"]):
        theirs = [AUTHOR.get(depth, (np.nan, np.nan)) for depth in table["depth"]]
        table["author's seconds"], table["author's GB"] = zip(*theirs, strict=True)
    return table


def promise(depths: list, about: dict, exact: bool = False) -> pd.DataFrame:
    """From which size on a detached piece is surely found, in units of the box's side of 2.1 and in cells."""
    radii = [smallest(depth, about["clip"], exact) for depth in depths]
    cells = [radius / (2.1 / 2**depth) for radius, depth in zip(radii, depths, strict=True)]
    return pd.DataFrame({"depth": depths, "radius of a ball in it": radii, "the same in cells": cells})


# -- what the notebook shows ------------------------------------------------------------------------------------------


def title(about: dict, tokens: list) -> str:
    """Model, tokens, weights and device in one line."""
    return (
        f"{about['size']} ({about['million parameters']:g} M parameters, {about['weights']}, sha256 "
        f"{about['sha256'][:12]}), {' and '.join(map(str, tokens))} {about['anchors']} tokens of {about['channels']}, "
        f"on {about['device']}"
    )


def pictures(rows: pd.DataFrame, meshes: dict, dataset: str, resolution: int, depths: list, **view):
    """A row a shape: what came in, then what its latents decode to at each depth, in one frame."""
    tokens = max((length for _, length, _ in meshes), default=0)
    shown, titles = [], []
    for name in rows["item"]:
        item = Item(name, "", "", str(dataset), resolution)
        shape = came(item)
        shown.append(shape if isinstance(shape, str) else shape[:2])
        titles.append(f"{name}\nthe shape" + ("" if isinstance(shape, str) else f", {faces(*shape)}"))
        for depth in depths:
            made = meshes[name, tokens, depth]
            shown.append(made if isinstance(made, str) else made[:2])
            titles.append(f"depth {depth}\n" + ("" if isinstance(made, str) else faces(*made)))
    alt = f"Shapes and what their latents decode to at depth {', '.join(map(str, depths))}"
    return picture.contact_sheet(shown, titles, 1 + len(depths), together=1 + len(depths), alt=alt, **view)


def faces(V: np.ndarray, F: np.ndarray, count: int) -> str:
    """How many a mesh has, and how many of them are in the picture."""
    return f"{count:,} faces" + (f", drawn as {len(F):,}" if len(F) < count else "")


def came(item: Item) -> tuple | str:
    try:
        return drawable(*mesh.read(item.path("_normalized.obj")), {"result": "whole"})
    except ValueError as error:
        return f"cannot be read: {error}"


def curves(found: pd.DataFrame):
    """Seconds and queries against depth; error against depth and against the number of tokens."""
    if found.empty:
        return picture.placard("Nothing was decoded.")
    whole = found[found["result"] == "whole"]
    longest, least = whole[whole["tokens"] == whole["tokens"].max()], whole[whole["depth"] == whole["depth"].min()]
    with chart.canvas(2.6, 1, 3) as (figure, axes):
        time_, error, length = axes.flat
        for name, rows in longest.groupby("item"):
            time_.semilogy(rows["depth"], rows["seconds"], "o-", markersize=3, linewidth=1)
            error.plot(rows["depth"], rows["error"], "o-", markersize=3, linewidth=1, label=name)
        theirs = {depth: AUTHOR[depth][0] for depth in sorted(found["depth"].unique()) if depth in AUTHOR}
        time_.semilogy(list(theirs), list(theirs.values()), "s:", color=picture.GREY, markersize=4)
        for _, rows in least.groupby("item"):
            length.plot(rows["tokens"], rows["error"], "o-", markersize=3, linewidth=1)
        time_.set(title="seconds (grey: the author)", xlabel="octree depth", xticks=sorted(found["depth"].unique()))
        error.set(title="error to the input", xlabel="octree depth", xticks=sorted(found["depth"].unique()))
        error.set_ylim(0, None)
        length.set(title="error by length", xlabel="tokens", xticks=sorted(found["tokens"].unique()))
        length.set_ylim(0, None)
        return chart.image(figure, "Seconds and error against octree depth, error against number of tokens")


def explorer(rows: pd.DataFrame, meshes: dict, dataset: str, resolution: int, depths: list):
    """Pick a shape, slide the depth, turn it; in batch, a still picture of the first shape at the greatest depth."""
    if os.environ.get("LIB_BATCH") or rows.empty:
        return pictures(rows.head(1), meshes, dataset, resolution, depths[-1:])
    import ipywidgets as widgets

    choice = widgets.Dropdown(options=list(rows["item"]), description="shape")
    depth = widgets.SelectionSlider(options=list(depths), value=depths[-1], description="depth")

    def see(**view) -> tuple:
        return (pictures(rows[rows["item"] == choice.value], meshes, dataset, resolution, [depth.value], **view),)

    picture.live([choice, depth], see)
