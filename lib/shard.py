"""What a transformer learns from, packed: latents and features in plain tar files with an index, read as they lie.

Why not a library: of four, MosaicML streaming 0.13 asks for older numpy and transformers (and 660 MB of clouds'
packages), litdata 0.2.76 for torchvision and boto3 and takes 6 times the core-seconds of a mapped view, Parquet 6 to 7
with 16 rows a group, 1.2 to 1.6 with one, for 170 MB of pyarrow, and webdataset 1.0.2 streams, which gives no sample by
its number, so no exact resume. It reads these tars as they are, and `tar` opens them. tests/peers_shard.py measures.
"""

import itertools
import re
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path

from lib.cache import Cache
from lib.dataset import Item, read_facts, sha256, sha256_of, splits
from lib.dataset import items as in_tree
from lib.seals import seal, unsealed
from lib.store import Store, Torn

FORMAT = 2  # of the files beside shards; what 1 noted is packed anew
STAGES = ("04_features", "05_latents")
MEMBERS = re.compile(r"_(latent_\w+\.npy|view_\d+_\w+_features\.npz)$")  # of what these stages made


@dataclass(frozen=True, slots=True)
class Member:
    """A file in a shard."""

    store: Store
    shard: str
    start: int
    size: int
    sha256: str

    def read(self) -> bytes:
        """All of it, as it was packed: other bytes raise an error."""
        return self.store.read(self.shard, self.start, self.size, self.sha256)

    def here(self) -> Path | None:
        """The shard's path, if it lies on this machine."""
        return self.store.path(self.shard)

    def __str__(self) -> str:
        return f"{self.store.place}/{self.shard}, {self.size} bytes at {self.start}"


# -- reading ----------------------------------------------------------------------------------------------------------


def there(place: str | Path, resolution: int) -> bool:
    """Do packed shards lie at a place, and not a tree?"""
    return "://" in str(place) or Path(place).expanduser().joinpath(f"{resolution}_shards.json").exists()


class Shards:
    """All that lib.pairs asks of a tree, from shards: which facts, which bytes, in the tree's own order."""

    def __init__(self, place: str | Path, resolution: int, cache: Cache | None = None):
        self.store = Store(place, cache)
        self.index = opened(self.store, resolution)
        self.items = listed(self.store, self.index)

    def facts(self, item: Item) -> dict:
        if item.name not in self.items:
            return {}
        entry = self.items[item.name]
        return {stage: record | {"outputs": of_stage(entry, stage)} for stage, record in entry["records"].items()}

    def file(self, item: Item, suffix: str) -> Member:
        entry = self.items[item.name]
        return Member(self.store, entry["shard"], *entry["members"][suffix])

    def statistics(self, item: Item) -> dict:
        return dict(self.index["stats"])

    def extent(self, item: Item, view: int) -> float | None:
        return self.items[item.name]["extents"][view]

    def splits(self, names: list[str], dataset: str) -> dict[str, str]:
        return {name: self.index["splits"][name] for name in names}


def opened(store: Store, resolution: int) -> dict:
    """The index of a place."""
    name = f"{resolution}_shards.json"
    try:
        return store.read_json(name)
    except FileNotFoundError:
        raise ValueError(
            f"{store.place}/{name} is not there. `python -m lib.pack shards DATASET {store.place} --resolution "
            f"{resolution}` makes it."
        ) from None


def listed(store: Store, index: dict) -> dict[str, dict]:
    """Every item of a place by name: its shard, where in it each file lies, and what its stages noted."""
    sizes, found = store.names(), {}
    for shard, about in index["shards"].items():
        if sizes.get(shard) != about["size"] or side(shard) not in sizes:
            raise ValueError(f"{store.place}/{shard}: {sizes.get(shard, 'no')} bytes, wanted {about['size']}. {REPACK}")
    with ThreadPoolExecutor(16) as threads:
        for shard, known in zip(index["shards"], threads.map(partial(sidecar, store), index["shards"]), strict=True):
            if known is None:
                raise ValueError(f"{store.place}/{side(shard)} is damaged. {REPACK}")
            found |= {entry["name"]: lean(entry) | {"shard": shard} for entry in known["items"]}
    return found


def lean(entry: dict) -> dict:
    """An entry in a third of the memory: all meshes have the same names of files, and one of each will do."""
    members = {sys.intern(suffix): tuple(place) for suffix, place in entry["members"].items()}
    return {"records": entry["records"], "extents": entry["extents"], "members": members}


def of_stage(entry: dict, stage: str) -> list[str]:
    """The suffixes of what a stage made of an item."""
    return [suffix for suffix in entry["members"] if ("_latent_" in suffix) == (stage == STAGES[1])]


REPACK = "Run `python -m lib.pack shards` with the same dataset and place again: it makes what is missing."


def items(place: str | Path, resolution: int, limit: int = 0) -> list[Item]:
    """The items of a place, in the order of the tree that they came from."""
    names = opened(Store(place), resolution)["names"]
    return [Item(name, "", "", str(place), resolution) for name in names[: limit if limit > 0 else None]]


def side(shard: str) -> str:
    """The name of the file that says what is in a shard."""
    return shard.removesuffix(".tar") + ".json"


# -- packing ----------------------------------------------------------------------------------------------------------


def pack(dataset: str | Path, place: str | Path, resolution: int, extent, megabytes: int = 256) -> dict:
    """Pack what 04 and 05 made. What lies there whole already is kept; the index comes last. What was done, in numbers.

    `extent(item, view)` measures a view for lib.pairs, which is above us.
    """
    everything = in_tree(dataset, resolution)
    records = {item.name: {k: r for k, r in read_facts(item).items() if k in STAGES} for item in everything}
    ready = {item.name: item for item in everything if len(records[item.name]) == len(STAGES)}
    stats = Path(everything[0].dataset, f"{resolution}_latent_stats.json")
    if not ready or not stats.exists():
        raise ValueError(f"{dataset} has no mesh with features and latents at {resolution}. Run 04 and 05 first.")
    try:
        about = unsealed(stats.read_bytes())
    except ValueError as error:
        raise ValueError(f"{stats} is damaged ({error}). Remove it and run 05_latents: it writes it again.") from None
    store, told = Store(place), {"meshes": 0, "kept": 0, "packed": 0, "bytes": 0, "left out": []}
    plans, kept = plan(store, resolution, ready, records, megabytes)
    shards = dict(kept)
    for shard, names in plans:
        shards[shard], left_out = write(store, shard, [ready[name] for name in names], records, extent)
        told["left out"] += left_out
        told["packed"] += 1
    shards = {shard: about for shard, about in sorted(shards.items()) if about}
    packed = {entry["name"] for shard in shards for entry in sidecar(store, shard)["items"]}
    names = [name for name in ready if name in packed]
    index = {"format": FORMAT, "resolution": resolution, "names": names, "shards": shards}
    index |= {"stats": about, "splits": splits(names, everything[0].dataset)}
    store.write_json(f"{resolution}_shards.json", index)
    for name in store.names():  # of meshes that are gone, or were packed otherwise
        if re.fullmatch(rf"{resolution}_\d+\.(tar|json)", name) and name.replace(".json", ".tar") not in shards:
            store.remove(name)
    return told | {"meshes": len(names), "kept": len(kept), "bytes": sum(about["size"] for about in shards.values())}


def plan(store: Store, resolution: int, ready: dict, records: dict, megabytes: int) -> tuple[list, dict]:
    """Which shards are to be written, of which items, and what is known of those that are kept."""
    sizes, kept, plans, free = store.names(), {}, [], dict.fromkeys(ready)
    numbers = [int(m[1]) for m in (re.fullmatch(rf"{resolution}_(\d+)\.(tar|json)", name) for name in sizes) if m]
    for number in sorted(set(numbers)):
        shard = f"{resolution}_{number:05d}.tar"
        known = sidecar(store, shard) if side(shard) in sizes else None
        entries = known["items"] if known else []
        same = [e["name"] for e in entries if e["name"] in free and e["seals"] == seals(records[e["name"]])]
        for name in same:
            del free[name]
        if known and len(same) == len(entries) and sizes.get(shard) == known["size"]:
            kept[shard] = {name: known[name] for name in ("size", "sha256")}
        elif same:
            plans.append((shard, same))
    taken = {*kept, *(shard for shard, _ in plans)}
    unused = (shard for n in itertools.count() if (shard := f"{resolution}_{n:05d}.tar") not in taken)
    room = 0
    for name in free:
        size = sum(output["size"] for record in records[name].values() for output in record["outputs"].values())
        if room < size:
            room = max(megabytes * 10**6, size)
            plans.append((next(unused), []))
        plans[-1][1].append(name)
        room -= size
    return plans, kept


def seals(records: dict) -> dict[str, str]:
    """By which it is seen whether a mesh has changed since it was packed."""
    return {stage: seal(record) for stage, record in records.items()}


def sidecar(store: Store, shard: str, wanted: int = FORMAT) -> dict | None:
    """What the file beside a shard says is in it; nothing if it is damaged."""
    try:
        found = store.read_json(side(shard))
        return found if found["format"] == wanted else None
    except (Torn, KeyError, FileNotFoundError):
        return None


def write(store: Store, shard: str, items: list[Item], records: dict, extent) -> tuple[dict | None, list[str]]:
    """A shard and what is in it; each file is held against what its stage noted. And which meshes were left out."""
    entries, left_out = [], []
    with tempfile.TemporaryDirectory(prefix="shard-") as folder:
        path = Path(folder, shard)
        with path.open("wb") as file, tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as tar:
            for item in items:
                try:
                    files = list(read_item(item, records[item.name]))
                except ValueError as error:
                    left_out.append(str(error))
                    continue
                members = {}
                for suffix, data in files:
                    add(tar, f"{item.stem}.{suffix[1:]}", data)
                    members[suffix] = [tar.offset - -(-len(data) // 512) * 512, len(data), sha256_of(data)]
                entries.append(entry_of(item, records[item.name], members, [extent(item, v) for v in range(3)]))
        if not entries:
            return None, left_out
        about = {"size": path.stat().st_size, "sha256": sha256(path)}
        store.write(shard, path)
    store.write_json(side(shard), {"format": FORMAT, **about, "items": entries})
    return about, left_out


def entry_of(item: Item, records: dict, members: dict, extents: list) -> dict:
    """What is noted of a mesh: what pairs ask of a stage's record, and where each file lies, its size and sha256."""
    asked = {stage: {name: record[name] for name in ("parameters", "facts")} for stage, record in records.items()}
    return {
        "name": item.name,
        "seals": seals(records),
        "records": asked,
        "extents": extents,
        "members": members,
    }


def read_item(item: Item, records: dict) -> Iterator[tuple[str, bytes]]:
    """Suffix and bytes of each file that is packed."""
    for stage in STAGES:
        for suffix, output in sorted(records[stage]["outputs"].items()):
            if MEMBERS.search(suffix):
                path = item.path(suffix)
                data = path.read_bytes() if path.exists() else b""
                if sha256_of(data) != output["sha256"]:
                    raise ValueError(
                        f"{item.name}: {path} is {'damaged' if data else 'missing'}. `python -m lib.pack verify` sets "
                        f"it aside, and {stage} makes it anew."
                    )
                yield suffix, data


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """A file without time or owner: the same content is the same archive."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, BytesIO(data))


# -- verifying --------------------------------------------------------------------------------------------------------


def verify(place: str | Path, resolution: int, mend: bool = True) -> list[dict]:
    """Every shard against its hash: one row a fault. The index of a faulty one goes, so that `pack` makes it again."""
    store, faults = Store(place), []
    sizes = store.names()
    index = opened(store, resolution)
    for shard, about in index["shards"].items():
        known = sidecar(store, shard) if side(shard) in sizes else None
        if known is None or known["sha256"] != about["sha256"]:
            found = [("", f"{side(shard)} is damaged or missing")]
        elif sizes.get(shard) != about["size"]:
            found = [("", f"{shard} has {sizes.get(shard, 'no')} bytes, wanted {about['size']}")]
        elif store.hash(shard) != about["sha256"]:
            found = named(store, shard, known) or [("", f"{shard} is damaged between its files")]
        else:
            continue
        faults += [
            {"mesh": mesh, "file": f"{store.place}/{shard}", "fault": what, "do": REPACK} for mesh, what in found
        ]
        if mend:
            store.remove(side(shard))
    return faults


def named(store: Store, shard: str, known: dict) -> list[tuple[str, str]]:
    """Which files in a shard are damaged."""
    found = []
    for entry in known["items"]:
        for suffix, (start, size, hash) in entry["members"].items():
            if sha256_of(store.read(shard, start, size)) != hash:
                found.append((entry["name"], f"{suffix} in it is damaged"))
    return found
