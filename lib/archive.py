"""What training does not need (originals, meshes, points, renders) in verified tars, and back again to the bit.

An archive is a tar of small xz files and a .json that says what is in it. It counts once both have been read back. Only
then, and only if asked, is anything removed; a note in the mesh's folder says so, which stages take for the file.
"""

import lzma
import re
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import joblib

from lib.claims import Claims
from lib.dataset import Item, archived, items, read_facts, sha256, sha256_of, write_text, writing
from lib.seals import sealed, unsealed
from lib.shard import MEMBERS, add, side, sidecar
from lib.squeeze import ENDINGS, expand, squeeze
from lib.store import Store

FORMAT = 1  # of an archive's index

# -- putting away -----------------------------------------------------------------------------------------------------


def archive(
    dataset: str | Path,
    place: str | Path,
    resolution: int,
    megabytes: int = 256,  # an archive
    remove: bool = False,  # what was verified there
    jobs: int = -1,
) -> dict:
    """Put away what is not yet there. The same command goes on after any end. What was done, in numbers."""
    store, told = Store(place), {"meshes": 0, "files": 0, "before": 0, "after": 0, "removed": 0, "left out": []}
    there = contents(store, resolution)
    have = {name: file["sha256"] for files in there.values() for name, file in files.items()}
    everything = items(dataset, resolution)
    todo = [item for item in everything if any(have.get(name) != h for name, h in wanted(item).items())]
    made = joblib.Parallel(jobs, return_as="generator")(joblib.delayed(squeezed)(item, have) for item in todo)
    taken = {int(name.split("_")[1]) for name in there}
    numbers = (n for n in range(10**6) if n not in taken)
    for files, left_out in batches(made, megabytes * 10**6):
        told["left out"] += left_out
        if files:
            there[name] = write(store, name := f"{resolution}_{next(numbers):05d}_archive.tar", files)
    for files in there.values():
        told["files"] += len(files)
        told["before"] += sum(file["before"] for file in files.values())
        told["after"] += sum(file["size"] for file in files.values())
    told["meshes"] = len({name.split("/")[0] for files in there.values() for name in files})
    if remove:
        told["removed"] = take_away(store, there, everything)
    return told


def wanted(item: Item) -> dict[str, str]:
    """Names below the dataset, and hashes, of what is to be put away: what stages made, but what is trained on."""
    made = {}
    for record in read_facts(item).values():
        made |= {suffix: out["sha256"] for suffix, out in record["outputs"].items() if not MEMBERS.search(suffix)}
    away = archived(item)
    names = {suffix: f"{item.name}/{item.stem}/{item.stem}{suffix}" for suffix in made}
    found = {names[suffix]: made[suffix] for suffix in made if item.path(suffix).exists() or suffix in away}
    original = Path(item.source)
    if found and item.sha256 and original.exists():
        found[f"{item.name}/{item.name}{original.suffix.lower()}"] = item.sha256
    return found


def squeezed(item: Item, have: dict[str, str]) -> tuple[dict[str, tuple], list[str]]:
    """Name -> (ending, bytes, size and hash before) of an item's files that are not there; and what is not whole."""
    found, faults = {}, []
    for name, hash in wanted(item).items():
        path = Path(item.dataset, name)
        path = path if path.exists() else Path(item.source)
        if have.get(name) == hash or (path.suffix.lower() != Path(name).suffix):
            continue
        data = path.read_bytes()
        if sha256_of(data) != hash:
            faults.append(f"{item.name}: {path} is damaged or changed. `python -m lib.pack verify` sets it aside.")
            continue
        found[name] = (*squeeze(name, data), len(data), hash)
    facts = item.path("_facts.json")
    if found:
        data = facts.read_bytes()
        found[f"{item.name}/{item.stem}/{facts.name}"] = (*squeeze(facts.name, data), len(data), sha256_of(data))
    return found, faults


def batches(made: Iterator[tuple], limit: int) -> Iterator[tuple[dict, list]]:
    """Items' files until they fill an archive."""
    files, faults = {}, []
    for found, wrong in made:
        files |= found
        faults += wrong
        if sum(len(file[1]) for file in files.values()) >= limit:
            yield files, faults
            files, faults = {}, []
    yield files, faults


def write(store: Store, name: str, files: dict[str, tuple]) -> dict[str, dict]:
    """One archive and its index, each read back. What is in it."""
    entries = {}
    with tempfile.TemporaryDirectory(prefix="archive-") as folder:
        path = Path(folder, name)
        with path.open("wb") as file, tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as tar:
            for target, (ending, data, before, hash) in files.items():
                add(tar, target + ending, data)
                start = tar.offset - -(-len(data) // 512) * 512
                entries[target] = {"start": start, "size": len(data), "stored": sha256_of(data), "ending": ending}
                entries[target] |= {"before": before, "sha256": hash}
        about = {"size": path.stat().st_size, "sha256": sha256(path)}
        store.write(name, path)
    note(store, name, about, entries)
    return entries


def note(store: Store, name: str, about: dict, entries: dict) -> None:
    store.write_json(side(name), {"format": FORMAT, **about, "items": entries})


def contents(store: Store, resolution: int) -> dict[str, dict]:
    """Archive -> what is in it, of those that are whole by name and size."""
    sizes, found = store.names(), {}
    for name in sizes:
        if re.fullmatch(rf"{resolution}_\d+_archive\.tar", name) and side(name) in sizes:
            known = sidecar(store, name, FORMAT)
            if known and known["size"] == sizes[name]:
                found[name] = known["items"]
    return found


def take_away(store: Store, there: dict[str, dict], everything: list[Item]) -> int:
    """Remove from the tree what an archive holds, once that has been read back now; the originals' sources stay."""
    by_folder, removed = {item.name: item for item in everything}, 0
    for name, files in there.items():
        known = sidecar(store, name, FORMAT)
        if not known or store.hash(name) != known["sha256"]:
            raise ValueError(
                f"{store.place}/{name} is damaged: nothing of it was removed. Run `lib.pack verify` on it."
            )
        for folder in dict.fromkeys(target.split("/")[0] for target in files):
            item = by_folder.get(folder)
            if item is None or not Path(item.folder).is_dir():
                continue
            start = f"{item.name}/{item.stem}/{item.stem}"
            mine = {target[len(start) :]: file for target, file in files.items() if target.startswith(start)}
            with Claims(item.dataset) as claims:
                if claims.take(item.stem):  # nobody works on it
                    removed += take_item(item, {k: f["sha256"] for k, f in mine.items()}, store.place)
                    claims.drop(item.stem)
    return removed


SIZED = re.compile(r"_view_00[0-2]_image\.png")  # stay: 06 asks of three views how much of its frame a shape fills


def take_item(item: Item, held: dict[str, str], place: str) -> int:
    """First the note that it is in the archive, then the file goes: a kill between them leaves one file too many."""
    going = {
        suffix: hash
        for suffix, hash in held.items()
        if suffix != "_facts.json"
        and not SIZED.fullmatch(suffix)
        and item.path(suffix).exists()
        and sha256(item.path(suffix)) == hash
    }
    if going:
        note = {"place": place, "files": archived(item) | going}
        write_text(item.path("_archived.json"), sealed(note, 1))
    for suffix in going:
        item.path(suffix).unlink(missing_ok=True)
    return len(going)


# -- bringing back ----------------------------------------------------------------------------------------------------


def restore(place: str | Path, dataset: str | Path, resolution: int, only: list[str] | None = None) -> dict:
    """Write back what is not there, each file against its hash; nothing that differs is written over."""
    store, told = Store(place), {"written": 0, "kept": 0, "differ": []}
    dataset = Path(dataset).expanduser().absolute()
    back: dict[str, dict[str, str]] = {}
    seen = set()
    for archive, files in sorted(contents(store, resolution).items(), reverse=True):  # the newest of each file counts
        for name, file in files.items():
            folder, target = name.split("/")[0], dataset / name
            if (only and folder not in only) or name in seen or ".." in Path(name).parts or Path(name).is_absolute():
                continue
            seen.add(name)
            if target.exists():
                same = name.endswith("_facts.json") or sha256(target) == file["sha256"]
                told["kept"] += same
                told["differ"] += [] if same else [str(target)]
                continue
            data = expand(file["ending"], store.read(archive, file["start"], file["size"], file["stored"]))
            if sha256_of(data) != file["sha256"]:
                raise ValueError(f"{store.place}/{archive}: {name} did not come back as it was; nothing was written")
            with writing(target) as beside:
                beside.write_bytes(data)
            told["written"] += 1
            back.setdefault(folder, {})[name] = file["sha256"]
    for folder in back:
        item = Item(folder, "", "", str(dataset), resolution)
        left = {suffix: hash for suffix, hash in archived(item).items() if not item.path(suffix).exists()}
        if archived(item) and not left:
            item.path("_archived.json").unlink()
    return told


# -- verifying --------------------------------------------------------------------------------------------------------


def verify(place: str | Path, resolution: int, dataset: str | Path = "", mend: bool = True) -> list[dict]:
    """Every archive against its hash, a row a fault. What is damaged is taken out of its index, and its note away."""
    store, faults = Store(place), []
    sizes = store.names()
    indices = {side(name) for name in sizes if name.endswith("_archive.tar")}
    for index in sorted(indices | {name for name in sizes if name.endswith("_archive.json")}):
        name = index.replace(".json", ".tar")
        known = sidecar(store, name, FORMAT) if index in sizes else None
        if known is None:
            entries = listed(store, name) if mend and name in sizes else {}
            if entries:
                note(store, name, {"size": sizes[name], "sha256": store.hash(name)}, entries)
            told = "it was made anew of the .tar. " if entries else ""
            faults.append(fault("", f"{store.place}/{index}", "is damaged or missing", told + ONE))
            continue
        if name in sizes and sizes[name] == known["size"] and store.hash(name) == known["sha256"]:
            continue
        whole = {target: file for target, file in known["items"].items() if sound(store, name, file, sizes)}
        lost = [target for target in known["items"] if target not in whole]
        faults += [fault(t.split("/")[0], f"{store.place}/{name}", f"{t} in it is damaged", ONE) for t in lost]
        if not lost:
            faults.append(
                fault("", f"{store.place}/{name}", "is damaged between its files, all of which are whole", ONE)
            )
        if mend:
            about = {"size": sizes.get(name, 0), "sha256": store.hash(name) if name in sizes else ""}
            note(store, name, about, whole) if whole else store.remove(index)
            forget(dataset, resolution, lost)
    return faults


ONE = "Run `python -m lib.pack archive` again; if the tree has the file no more, run its notebook, which makes it anew."


def listed(store: Store, name: str) -> dict[str, dict]:
    """The index of an archive, of the archive itself: what in it can be read."""
    entries = {}
    with tempfile.TemporaryFile() as file:
        store.fetch(name, file)
        file.seek(0)
        try:
            with tarfile.open(fileobj=file) as tar:
                for member in tar:
                    data = tar.extractfile(member).read()
                    ending = next(e for e in ENDINGS if member.name.endswith(e))
                    before = expand(ending, data)
                    entry = {
                        "start": member.offset_data,
                        "size": len(data),
                        "stored": sha256_of(data),
                        "ending": ending,
                    }
                    entry |= {"before": len(before), "sha256": sha256_of(before)}
                    entries[member.name.removesuffix(ending)] = entry
        except (tarfile.TarError, lzma.LZMAError, EOFError, ValueError):
            pass  # up to here it is whole
    return entries


def fault(mesh: str, file: str, what: str, do: str) -> dict:
    return {"mesh": mesh, "file": file, "fault": what, "do": do}


def sound(store: Store, name: str, file: dict, sizes: dict) -> bool:
    if file["start"] + file["size"] > sizes.get(name, 0):
        return False
    return sha256_of(store.read(name, file["start"], file["size"])) == file["stored"]


def forget(dataset: str | Path, resolution: int, lost: list[str]) -> None:
    """No note says any more that these are in an archive: their stage makes them anew."""
    for target in lost if dataset else []:
        folder = target.split("/")[0]
        item = Item(folder, "", "", str(Path(dataset).expanduser().absolute()), resolution)
        away = archived(item)
        suffix = target.removeprefix(f"{folder}/{item.stem}/{item.stem}")
        if away.pop(suffix, None):
            path = item.path("_archived.json")
            write_text(path, sealed(unsealed(path.read_text(encoding="utf-8")) | {"files": away}, 1))
