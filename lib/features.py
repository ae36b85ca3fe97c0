"""DINOv2 patch features of every view of every mesh: what the diffusion transformer is shown of a picture."""

import functools
import json
import re
import time
from collections.abc import Generator

import joblib
import numpy as np
import pandas as pd

from lib import dino, memory
from lib.dataset import Item

MAPS = {"image": "_dinov2_features.npz", "depth": "_depth_features.npz", "normal": "_normal_features.npz"}


def features(
    item: Item,
    fingerprint: str,  # of the network: other weights under the same name are noticed
    maps: list,
    views: int,
    size: int,
    resize: int,
    compress: bool,
    weights: str,
    seed: int,
    device: str,
    chunk: int,
) -> Generator[np.ndarray, tuple, dict]:
    """Read an item's views, ask for their patch tokens, write a file a view and map; returns the facts."""
    start = time.perf_counter()
    shown = {suffix: show(item, name, number, frames) for suffix, name, number, frames in listed(item, maps, views)}
    pictures = np.stack([dino.prepare(picture, size, resize) for picture, _ in shown.values()])
    cut = float(np.mean([lost(mask, size / resize) for _, mask in shown.values()]))
    read = time.perf_counter()
    tokens, spent = yield pictures
    answered = time.perf_counter()
    save = np.savez_compressed if compress else np.savez
    for suffix, found in zip(shown, tokens, strict=True):
        with item.writing(suffix) as path:
            save(path, features=found)
    return {
        "pictures": len(tokens),
        "patches": tokens.shape[1],
        "width": tokens.shape[2],
        "bytes": sum(output["size"] for output in item.written.values()),
        "cut": cut,
        "seconds_read": read - start,
        **spent,
        "seconds_write": time.perf_counter() - answered,
        "weights": weights,
        "seed": seed,
        "device": device,
    }


def answer(requests: list, fingerprint: str, weights: str, seed: int, device: str, chunk: int, **_) -> list[tuple]:
    """Patch tokens of several items' pictures, views of many meshes in one batch; and each item's share of seconds."""
    start = time.perf_counter()
    model = network(weights, seed, device)
    if model.fingerprint != fingerprint:
        raise RuntimeError(f"weights = {weights!r} changed since this run began; start it again")
    loaded = time.perf_counter()
    tokens = dino.encode(model, np.concatenate(requests), chunk)
    spent = {"seconds_load": loaded - start, "seconds_model": time.perf_counter() - loaded}
    shares = [{key: value * len(one) / len(tokens) for key, value in spent.items()} for one in requests]
    ends = np.cumsum([len(request) for request in requests])[:-1]
    return list(zip(np.split(tokens, ends), shares, strict=True))


def choose(device: str, jobs: int, scheduler: str = "") -> tuple[str, int]:
    """The device that is meant, and how many processes have the network, if that is not told.

    Two: one reads and writes while the other computes. A GPU is so fast that it takes more: 750 pictures a second by
    two, 2,000 by eight (dinov2-small on an H200 with 16 cores).
    """
    device = memory.choose(device)
    several = max(2, min(8, joblib.cpu_count() // 2)) if device.startswith("cuda") else 2
    return device, jobs if jobs > 0 or scheduler else several


@functools.lru_cache(1)
def network(weights: str, seed: int, device: str):
    """One network a process."""
    return dino.load(weights, seed, device)


def inputs(maps: list) -> tuple[str, ...]:
    """The files of 03 that are read."""
    if not maps or set(maps) - set(MAPS):
        raise ValueError(f"maps = {maps!r}; wanted one or more of {list(MAPS)}")
    return ("_views.json", *(f"_view_*_{name}.png" for name in maps))


def listed(item: Item, maps: list, views: int) -> list[tuple]:
    """(suffix to write, map, number of the view, views.json) of so many views, evenly spaced along the list."""
    path = item.path("_views.json")
    found = json.loads(path.read_text(encoding="utf-8"))
    numbers = [int(re.search(r"view_(\d+)", frame["file_path"])[1]) for frame in found["frames"]]
    if not numbers:
        raise ValueError(f"{path} lists no view. Run 03_render again.")
    chosen = np.linspace(0, len(numbers) - 1, min(views or len(numbers), len(numbers))).round().astype(int)
    frames = {numbers[i]: found | {"frame": found["frames"][i]} for i in chosen}
    return [(f"_view_{n:03d}{MAPS[name]}", name, n, frame) for n, frame in frames.items() for name in maps]


def show(item: Item, name: str, number: int, frames: dict) -> tuple:
    """A view's map as a picture, and where in it the shape is."""
    from PIL import Image

    path = item.path(f"_view_{number:03d}_{name}.png")
    try:
        with Image.open(path) as picture:
            picture.verify()  # its checksums, which loading it passes over
        with Image.open(path) as picture:
            picture.load()
            if name == "depth":
                depth = np.asarray(picture, np.float64) * frames["depth_scale"]
                return dino.grey(depth, frames["frame"]["transform_matrix"]), depth > 0
            pixels = np.array(dino.flatten(picture))
            if "A" in picture.getbands():
                return Image.fromarray(pixels), np.asarray(picture.getchannel("A")) > 0
            blank = (pixels == 0).all(2) | (pixels == 255).all(2)  # no normal is black; older trees have white there
            pixels[blank] = dino.BACKGROUND
            return Image.fromarray(pixels), ~blank
    except (OSError, SyntaxError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} cannot be read ({error}). Run 03_render again.") from None


def lost(mask: np.ndarray, share: float) -> float:
    """The share of the shape that lies outside the middle which is cut out."""
    total = np.count_nonzero(mask)
    side = min(mask.shape) * share
    top, left = (round((extent - side) / 2) for extent in mask.shape)
    inside = np.count_nonzero(mask[top : mask.shape[0] - top, left : mask.shape[1] - left])
    return 1 - inside / total if total else 0.0


# -- what the notebook shows ------------------------------------------------------------------------------------------


def describe(weights: str, seed: int) -> dict:
    """What a run is told of its network: name, hash, size. Loads it once, so that an error comes before any work."""
    model = dino.load(weights, seed)
    config = model.config
    return {
        "weights": weights,
        "warning": dino.warning(weights),
        "fingerprint": model.fingerprint,
        "kind": config.model_type,
        "width": config.hidden_size,
        "layers": config.num_hidden_layers,
        "registers": dino.specials(model) - 1,
        "million parameters": round(sum(p.numel() for p in model.parameters()) / 1e6, 1),
    }


def rows(entries) -> pd.DataFrame:
    """Names and values as a table's rows."""
    return pd.DataFrame([*entries.items()])


def cost(ledger: pd.DataFrame, jobs: int, corpus: int = 14_752) -> pd.DataFrame:
    """Bytes and rate of this run, and what the whole set would take, beside the author's."""
    usable = ledger[ledger["status"].isin(["done", "kept"])]
    mean = usable.mean(numeric_only=True)
    megabytes, pictures, rate = mean.get("bytes", np.nan) / 1e6, mean.get("pictures", np.nan), steady(ledger, jobs)
    rows = {
        "pictures a mesh": (pictures, 72),
        "MB a mesh": (megabytes, np.nan),
        "MB a picture": (megabytes / pictures, np.nan),
        f"TB for {corpus:,} meshes": (megabytes * corpus / 1e6, np.nan),
        "GB, with the renders, for 14,752 meshes": (np.nan, 368),
        "pictures a second": (rate, 72 * 14_752 / (70 * 60)),
        "meshes a second": (rate / pictures, 3.5),
        f"hours for {corpus:,} meshes": (corpus * pictures / rate / 3600, 70 / 60),
        "the same, dinov2-with-registers-large": (np.nan, 12),
    }
    columns = ["", "here", "the author, dinov2-small on a 3090"]
    return pd.DataFrame([(name, *pair) for name, pair in rows.items()], columns=columns)


def steady(ledger: pd.DataFrame, jobs: int) -> float:
    """Pictures a second while a run is under way: reading, computing, writing; the loading of the network set apart."""
    rows = ledger[ledger["status"].isin(["done", "kept"])]
    seconds = (rows["seconds"] - rows["seconds_load"]).sum() if len(rows) else 0
    return rows["pictures"].sum() * min(joblib.effective_n_jobs(jobs), len(rows)) / seconds if seconds else np.nan


def throughput(ledger: pd.DataFrame, dataset: str, resolution: int, parameters: dict, means: dict, jobs: int) -> dict:
    """Pictures a second of the run beside those of the bare network, on pictures of this run ready in memory."""
    most = 2 * means["chunk"]
    pictures = []
    for name in ledger[ledger["status"].isin(["done", "kept"])]["item"]:
        asked = features(Item(name, "", "", str(dataset), resolution), **parameters, **means)
        pictures.append(next(asked))
        asked.close()
        if sum(map(len, pictures)) >= most:
            break
    run = steady(ledger, jobs)
    alone = bare(network(means["weights"], means["seed"], means["device"]), np.concatenate(pictures), means["chunk"])
    return {"pictures a second, this run": run, "the bare network": alone, "ratio": run / alone}


def bare(model, pictures: np.ndarray, chunk: int, rounds: int = 3) -> float:
    """Pictures a second of the network alone: the median of some rounds."""
    import torch

    ready = [dino.normalise(pictures[i : i + chunk], model) for i in range(0, len(pictures), chunk)]

    def once() -> float:
        start = time.perf_counter()
        with torch.inference_mode():
            for x in ready:
                model(x)
        if model.device.type == "cuda":
            torch.cuda.synchronize(model.device)
        return time.perf_counter() - start

    once()  # the first one also finds its kernels and memory
    return len(pictures) / float(np.median([once() for _ in range(rounds)]))


def colours(rows: pd.DataFrame, dataset: str, resolution: int, parameters: dict, name: str = "image", views: int = 4):
    """Views as the network got them, and below each its patches in the colours of their first three components."""
    from PIL import Image

    from lib import picture

    shown, tokens = [], []
    for row in rows["item"]:
        item = Item(row, "", "", str(dataset), resolution)
        for suffix, kind, number, frames in listed(item, [name], parameters["views"])[:views]:
            prepared = dino.prepare(show(item, kind, number, frames)[0], parameters["size"], parameters["resize"])
            shown.append(prepared.transpose(1, 2, 0))
            tokens.append(dino.read_features(item.path(suffix)))
    tokens = np.stack(tokens).astype(np.float32)  # (n, P, W)
    painted = components(tokens)
    side = round(painted.shape[1] ** 0.5)
    cells = [Image.fromarray(pixels).resize((150, 150)) for pixels in shown]
    below = [Image.fromarray(p.reshape(side, side, 3)).resize((150, 150), Image.Resampling.NEAREST) for p in painted]
    columns = max(1, min(8, len(cells)))
    sheet = Image.new("RGB", (columns * 150, -(-len(cells) // columns) * 300), dino.BACKGROUND)
    for i, pair in enumerate(zip(cells, below, strict=True)):
        for j, cell in enumerate(pair):
            sheet.paste(cell, (i % columns * 150, i // columns * 300 + j * 150))
    return picture.png(sheet, f"{len(cells)} views and the first three components of their patch features")


def components(tokens: np.ndarray) -> np.ndarray:
    """Tokens (n, P, W) as colours (n, P, 3) uint8: their first three principal components over all."""
    flat = tokens.reshape(-1, tokens.shape[-1])
    flat = flat - flat.mean(0)
    axes = np.linalg.eigh(flat.T @ flat)[1][:, :-4:-1]  # (W, 3)
    axes *= np.sign(axes.sum(0))
    found = flat @ axes
    low, high = np.percentile(found, (2, 98), axis=0)
    found = np.clip((found - low) / np.maximum(high - low, 1e-9), 0, 1)
    return (found * 255).astype(np.uint8).reshape(*tokens.shape[:2], 3)


def agreement(ledger: pd.DataFrame, dataset: str, resolution: int, parameters: dict, most: int = 64) -> pd.DataFrame:
    """Does a view resemble its own mesh? For each, the share of its views whose nearest other view is of that mesh."""
    usable = ledger[ledger["status"].isin(["done", "kept"])]["item"].head(most)
    means, owner = [], []
    for index, name in enumerate(usable):
        item = Item(name, "", "", str(dataset), resolution)
        for suffix, *_ in listed(item, parameters["maps"][:1], parameters["views"]):
            means.append(dino.read_features(item.path(suffix)).astype(np.float32).mean(0))
            owner.append(index)
    X, owner = np.stack(means), np.array(owner)
    X = (X - X.mean(0)) / np.maximum(X.std(0), 1e-6)
    X /= np.linalg.norm(X, axis=1, keepdims=True)
    alike = X @ X.T
    np.fill_diagonal(alike, -np.inf)
    own = owner[alike.argmax(1)] == owner
    chance = (np.bincount(owner)[owner] - 1) / (len(owner) - 1)
    table = pd.DataFrame({"item": usable.to_numpy()[owner], "own": own, "by chance": chance})
    return table.groupby("item", sort=False).mean().reset_index().sort_values("own", kind="stable")
