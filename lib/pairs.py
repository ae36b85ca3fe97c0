"""What the diffusion transformer learns from: latents of shapes and features of their views, a split at a time."""

import functools
import io
import json
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lib import cutout, dino, shard
from lib.cache import Cache
from lib.dataset import Item, read_facts, splits
from lib.seals import unsealed
from lib.shard import Member, Shards

SUFFIXES = {"image": "dinov2", "depth": "depth", "normal": "normal"}  # in the names of features
LATENTS, FEATURES = "05_latents", "04_features"
LACKS = "no latents of 05_latents, or no features of 04_features"  # at this resolution, of this map


@dataclass
class Pairs:
    """Latents in memory, features in memory or in their files; everything by the number of the shape."""

    names: list[str]
    mean: np.ndarray  # (N, T, C) float16, of the posterior
    logvar: np.ndarray | None  # (N, T, C) float16, if the posterior is to be sampled
    views: list[list[Path | Member]]  # of each shape: its features' files, or where they lie in shards
    held: np.ndarray | None  # (files, P, F) float16: all features, if they fit into memory

    def __len__(self) -> int:
        return len(self.names)

    def features(self, shape: int, view: int) -> np.ndarray:
        """Patch features (P, F) of one view."""
        if self.held is None:
            return mapped(self.views[shape][view])
        return self.held[self.starts[shape] + view]

    @functools.cached_property
    def starts(self) -> np.ndarray:
        return np.cumsum([0, *map(len, self.views)])

    def draw(self, shape: int, count: int, rng: np.random.Generator) -> np.ndarray:
        """Features of different views of a shape, by chance: (P, F) of one, (V, P, F) of several."""
        views = len(self.views[shape])
        if count == 1:
            return self.features(shape, int(rng.integers(views)))
        return np.stack([self.features(shape, v) for v in rng.choice(views, count, replace=count > views)])


def read(
    items: list[Item],
    tokens: int = 0,  # of a shape's latents, 0 = the longest there are
    map: str = "image",  # whose features
    sampled: bool = False,  # is the posterior's spread needed?
    memory: float = 4.0,  # GiB that a split's features may take; more stay in their files
    disk: float = 0.0,  # GiB of this machine's for what comes from a bucket, which is then fetched once
) -> tuple[dict[str, Pairs], dict]:
    """The pairs of each split, and what all of them have in common: statistics and VAE of the latents, the features."""
    if map not in SUFFIXES:
        raise ValueError(f"map = {map!r}; wanted one of {', '.join(SUFFIXES)}")
    cache = Cache(disk) if disk > 0 else None
    source = Shards(items[0].dataset, items[0].resolution, cache) if packed(items) else Tree()
    records = {item.name: source.facts(item) for item in items}
    ready = [
        item for item in items if {LATENTS, FEATURES} <= records[item.name].keys() and seen(item, records, map, source)
    ]
    if not ready:
        raise ValueError(
            f"none of {len(items)} meshes in {items[0].dataset} has latents and features of its {map} at resolution "
            f"{items[0].resolution}. Run 04_features and 05_latents first."
        )
    about = {"latents": statistics(ready, records, source), "features": same_features(ready, records) | {"map": map}}
    about["features"]["share"] = share_of_frame(ready, source)
    tail = tail_of(about["latents"], tokens)
    parts = source.splits([item.name for item in ready], ready[0].dataset)
    found = {}
    for part in ("train", "val", "test"):
        chosen = [item for item in ready if parts[item.name] == part]
        found[part] = gather(chosen, records, tail, map, sampled, memory, source)
    about["latents"] |= {"tokens": tokens or about["latents"]["tokens"], "longest": about["latents"]["tokens"]}
    about["latents"] |= (
        about["latents"].pop("lengths", {}).get(str(about["latents"]["tokens"]), {})
    )  # its own statistics
    return found, about


class Tree:
    """Where everything is, if it lies in files of its own. lib.shard.Shards is the same for what is packed."""

    splits = staticmethod(splits)

    def facts(self, item: Item) -> dict:
        """What is asked of the two stages' records; a million whole ones would fill the memory."""
        found = {stage: record for stage, record in read_facts(item).items() if stage in (LATENTS, FEATURES)}
        return {stage: {k: record[k] for k in ("parameters", "facts", "outputs")} for stage, record in found.items()}

    def file(self, item: Item, suffix: str) -> Path:
        return item.path(suffix)

    def statistics(self, item: Item) -> dict:
        return unsealed(Path(item.dataset, f"{item.resolution}_latent_stats.json").read_bytes())

    def extent(self, item: Item, view: int) -> float | None:
        return extent(item, view)


def packed(items: list[Item]) -> bool:
    return bool(items) and shard.there(items[0].dataset, items[0].resolution)


def gather(
    items: list[Item], records: dict, tail: str, map: str, sampled: bool, memory: float, source: Tree | Shards
) -> Pairs:
    views = [seen(item, records, map, source) for item in items]
    with ThreadPoolExecutor() as threads:
        mean = list(threads.map(lambda item: latents(source.file(item, f"_latent_sample{tail}.npy")), items))
        logvar = list(
            threads.map(lambda item: latents(source.file(item, f"_latent_logvar{tail}.npy")), items if sampled else [])
        )
        files = [path for paths in views for path in paths]
        first = mapped(files[0]) if files else np.empty((0, 0), np.float16)
        held = None
        if first.nbytes * len(files) <= memory * 2**30:
            held = np.empty((len(files), *first.shape), np.float16)
            list(threads.map(lambda k: held.__setitem__(k, whole(files[k])), range(len(files))))
    for item, one in zip(items, mean, strict=True):
        if one.shape != mean[0].shape:
            raise ValueError(
                f"{item.folder}: latents of {one.shape}, others have {mean[0].shape}. Run 05_latents again."
            )
    stacked = [np.stack(some) if some else np.empty((0, 0, 0), np.float16) for some in (mean, logvar)]
    return Pairs([item.name for item in items], stacked[0], stacked[1] if sampled else None, views, held)


def seen(item: Item, records: dict, map: str, source: Tree | Shards) -> list[Path | Member]:
    """The files of the features of an item's views."""
    made = records[item.name][FEATURES]["outputs"]
    names = sorted(suffix for suffix in made if suffix.endswith(f"_{SUFFIXES[map]}_features.npz"))
    return [source.file(item, suffix) for suffix in names]


def latents(path: Path | Member) -> np.ndarray:
    try:
        found = np.load(io.BytesIO(path.read()) if isinstance(path, Member) else path, allow_pickle=False)
        if found.ndim != 2 or not np.isfinite(found).all():
            raise ValueError(f"{found.shape}, wanted finite numbers (tokens, channels)")
        return found.astype(np.float16, copy=False)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{path} cannot be read ({error}). Run 05_latents again.") from None


def whole(path: Path | Member) -> np.ndarray:
    """A view's features, read and, from a shard, held against their hash."""
    if not isinstance(path, Member):
        return dino.read_features(path)
    with np.load(io.BytesIO(path.read()), allow_pickle=False) as file:
        return file["features"]


@functools.lru_cache(100_000)
def offset(path: Path | Member) -> tuple[int, tuple, np.dtype] | None:
    """Where in an .npz that is not compressed its array begins, its shape and type."""
    raw, begin = (io.BytesIO(path.read()), path.start) if isinstance(path, Member) else (path.open("rb"), 0)
    with raw, zipfile.ZipFile(raw) as archive, archive.open("features.npy") as file:
        if archive.getinfo("features.npy").compress_type != zipfile.ZIP_STORED:
            return None
        header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        shape, fortran, kind = header[np.lib.format.read_magic(file)](file)
        start = archive.getinfo("features.npy").header_offset
        length = file.tell()
        if fortran:
            return None
        raw.seek(start + 26)  # the local header has lengths of its own
        name, extra = np.frombuffer(raw.read(4), "<u2")
    return begin + start + 30 + int(name) + int(extra) + length, shape, kind


def mapped(path: Path | Member) -> np.ndarray:
    """A view's features by memory map where they are stored plainly: the system keeps in memory what is asked often."""
    try:
        here = path.here() if isinstance(path, Member) else path
        place = here and offset(path)
        return whole(path) if place is None else np.memmap(here, place[2], "r", place[0], place[1])
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} cannot be read ({error}). Run 04_features again.") from None


# -- what they have in common -----------------------------------------------------------------------------------------


def statistics(items: list[Item], records: dict, source: Tree | Shards) -> dict:
    """<R>_latent_stats.json, after making sure that all latents are of the VAE that it speaks of."""
    path = Path(items[0].dataset, f"{items[0].resolution}_latent_stats.json")
    try:
        stats = source.statistics(items[0])
        mean, std = np.array(stats["mean"], np.float32), np.array(stats["std"], np.float32)
        assert stats["sha256"] and isinstance(stats["ordered"], bool)
        assert mean.ndim == 1 and mean.shape == std.shape and np.isfinite(mean).all() and (std > 0).all()
    except (OSError, ValueError, KeyError, TypeError, AssertionError):
        raise ValueError(
            f"{path} is missing or damaged. Run 05_latents to its end, which says what it lacks if it cannot write it."
        ) from None
    foreign = [item.name for item in items if vae_of(records[item.name]) != (stats["sha256"], stats.get("anchors"))]
    if foreign:
        raise ValueError(
            f"the latents of {len(foreign)} of {len(items)} meshes, the first {foreign[0]}, are of another VAE than "
            f"{path}, or its tokens looked from elsewhere. Run 05_latents to its end with one VAE, then this again."
        )
    return stats


def vae_of(record: dict) -> tuple:
    """The VAE's hash, and where its tokens looked from; older releases did not say."""
    return tuple(record[LATENTS]["parameters"].get(name) for name in ("sha256", "anchors"))


def same_features(items: list[Item], records: dict) -> dict:
    """What the features were made with: it must be one network and one preparation for all."""
    kinds = {}
    for item in items:
        record = records[item.name][FEATURES]
        made = {name: record["parameters"][name] for name in ("fingerprint", "size", "resize")}
        made |= {name: record["facts"][name] for name in ("weights", "seed")}
        kinds.setdefault(json.dumps(made, sort_keys=True), []).append(item.name)
    if len(kinds) > 1:
        told = "; ".join(f"{len(names)} like {names[0]} ({kind})" for kind, names in kinds.items())
        raise ValueError(f"features were made in {len(kinds)} ways: {told}. Run 04_features for all, then this again.")
    return json.loads(next(iter(kinds)))


def share_of_frame(items: list[Item], source: Tree | Shards, most: int = 64) -> float:
    """How much of its frame a shape fills in the views of 03, the median: a person's picture is to fill as much."""
    chosen = np.linspace(0, len(items) - 1, min(most, len(items))).round().astype(int)
    found = [source.extent(items[k], k % 3) for k in chosen]
    found = [one for one in found if one is not None]
    return float(np.median(found)) if found else 0.6


def extent(item: Item, view: int) -> float | None:
    """How much of its frame a shape fills in a view of 03."""
    from PIL import Image

    path = item.path(f"_view_{view:03d}_image.png")
    if not path.exists():
        return None
    with Image.open(path) as picture:
        return float(cutout.extent(np.asarray(picture.convert("RGBA").getchannel("A"))))


def tail_of(stats: dict, tokens: int) -> str:
    """The end of the name of latents of so many tokens: the longest have none."""
    return "" if tokens in (0, stats["tokens"]) else f"_{tokens}"


def scale_of_features(pairs: Pairs, most: int = 512) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation of each number of a patch, over some views of all shapes."""
    every = [(shape, view) for shape in range(len(pairs)) for view in range(len(pairs.views[shape]))]
    chosen = [every[k] for k in np.linspace(0, len(every) - 1, min(most, len(every))).round().astype(int)]
    patches = np.concatenate([np.asarray(pairs.features(*one), np.float32) for one in chosen])
    return patches.mean(0), np.maximum(patches.std(0), 1e-3)
