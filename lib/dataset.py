"""Names and places of every file: items and their slugs, atomic writing, facts, splits."""

import csv
import fnmatch
import hashlib
import json
import os
import re
import stat
import time
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from lib.claims import Claims, TakenOver
from lib.seals import row_seal, seal, unsealed
from lib.search import alternatives, list_meshes, passed_over, refuse_resolution, suffixes
from lib.words import say

BOX = 1.05  # half the side of the grid's box; meshes span [-1, 1]
PARTIAL = ".partial-"  # how the name of a file begins until its content is whole
RECORD = {"version", "parameters", "inputs", "outputs", "facts"}  # what a stage notes about an item, at the least
COLUMNS = (
    "item",
    "source",
    "sha256",
    "size",
    "mtime_ns",
)  # of items.csv; the last two spare us hashing what did not change
SEAL = "seal"  # its last column: a row whose bits are others is not believed


# -- items ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Item:
    """One mesh at one resolution: small, picklable, and all that a stage needs to find its files."""

    name: str  # slug, also the name of its folder
    source: str  # path of the original mesh
    sha256: str  # of the original
    dataset: str  # root of the tree
    resolution: int
    # suffix -> size and sha256 of what writing() has written
    written: dict = field(default_factory=dict, compare=False, repr=False)
    ours: Callable | None = field(default=None, compare=False, repr=False)  # is it still claimed by this process?

    @property
    def stem(self) -> str:
        return f"{self.resolution}_{self.name}"

    @property
    def folder(self) -> str:
        return f"{self.dataset}/{self.name}/{self.stem}"

    def path(self, suffix: str) -> Path:
        """Where the file with this suffix lies, as in item.path("_normalized.obj")."""
        return Path(self.folder, self.stem + suffix)

    @contextmanager
    def writing(self, suffix: str) -> Iterator[Path]:
        """A path to write to; the file appears under its own name when the block ends well, whole or not at all."""
        with writing(self.path(suffix)) as beside:
            yield beside
            self.written[suffix] = {"size": beside.stat().st_size, "sha256": sha256(beside)}
            self.refuse_late()

    def refuse_late(self) -> None:
        """Whoever slept until others did its work must not write over theirs."""
        if self.ours and not self.ours():
            raise TakenOver(f"{self.stem} was taken over by another run, which held this one for dead")

    def link_original(self) -> None:
        """Put the original beside its results: a link, or a copy where links are not allowed."""
        target = Path(self.folder).parent / (self.name + Path(self.source).suffix.lower())
        if target.exists() and target.samefile(self.source):
            return
        with writing(target, self.folder) as beside:  # ours alone: another resolution may sweep the folder above
            try:
                beside.symlink_to(Path(self.source).absolute())
            except OSError:  # Windows without developer mode, some mounted disks
                beside.write_bytes(Path(self.source).read_bytes())


def slug(path: str) -> str:
    """A safe name for a mesh, from its path below the meshes' folder: unique, at most 60 characters, never to change.

    The hash is of the whole path, so meshes added later cannot take or change a name, and no two names differ by case
    or by accents alone.
    """
    plain = unicodedata.normalize("NFKD", PurePosixPath(path).stem).encode("ascii", "ignore").decode().lower()
    stem = re.sub("[^a-z0-9]+", "_", plain)[:51].strip("_") or "mesh"
    return f"{stem}_{hashlib.sha256(os.fsencode(path)).hexdigest()[:8]}"


def collect(meshes: str | Path, dataset: str | Path, resolution: int, limit: int = 0) -> list[Item]:
    """The meshes below a folder as items, in the order of their paths; what is new is entered into items.csv."""
    meshes, dataset = (Path(path).expanduser().absolute() for path in (meshes, dataset))
    if not meshes.is_dir():
        raise ValueError(
            f"meshes = {str(meshes)!r} is not a folder. Give the folder that holds the meshes (searched recursively); "
            f"`python -m lib.shapes {meshes} --count 14` makes some to try."
            + alternatives("meshes", Path("data").glob("*/meshes"))
        )
    if os.path.realpath(meshes) == os.path.realpath(dataset):
        raise ValueError(
            f"meshes and dataset are both {meshes}, where results would be taken for meshes. Give two folders."
        )
    if dataset.exists() and not dataset.is_dir():
        raise ValueError(f"dataset = {str(dataset)!r} is a file. Give the folder for the results; it need not exist.")
    found, others = list_meshes(meshes, besides=dataset)
    if not found:
        told = passed_over(others) or f"Formats that are read: {' '.join(suffixes())}"
        raise ValueError(f"no mesh below {meshes}. {told}")
    if others:
        say(passed_over(others))
    found = found[: limit if limit > 0 else None]
    known = read_items(dataset)
    with ThreadPoolExecutor() as threads:  # hashlib lets go of the GIL
        rows = list(threads.map(lambda path: item_row(meshes, path, known), found))
    for row in rows:
        refuse_namesake(row, known.get(row["item"]), dataset)
    changed = [row for row in rows if known.get(row["item"]) != row]
    if changed:
        enter_items(dataset, changed)
    return [Item(row["item"], row["source"], row["sha256"], str(dataset), resolution) for row in rows]


def items(dataset: str | Path, resolution: int, limit: int = 0) -> list[Item]:
    """The items that 01 entered into items.csv; those of packed shards, where these lie in the tree's place."""
    from lib import shard  # which knows items itself

    if shard.there(dataset, resolution):
        return shard.items(dataset, resolution, limit)
    dataset = Path(dataset).expanduser().absolute()
    rows = read_items(dataset)
    if not rows:
        known = {path.parent for depth in ("*", "*/*") for path in Path("data").glob(f"{depth}/items.csv")}
        told = alternatives("dataset", known)
        raise ValueError(f"{dataset}/items.csv has no item. Run 01_watertight on this dataset first.{told}")
    refuse_resolution(dataset, rows, resolution)
    there = {name: os.path.exists(row["source"]) for name, row in rows.items()}
    bytes_there = {rows[name]["sha256"] for name in rows if there[name]}
    renamed = {name for name in rows if not there[name] and rows[name]["sha256"] in bytes_there}
    chosen = [row for name, row in rows.items() if name not in renamed][: limit if limit > 0 else None]
    return [Item(row["item"], row["source"], row["sha256"], str(dataset), resolution) for row in chosen]


def item_row(meshes: Path, path: str, known: dict) -> dict:
    """A mesh's row of items.csv; its bytes are hashed only if size or time of the file changed since last time."""
    name = slug(os.path.relpath(path, meshes).replace(os.sep, "/"))
    row = {"item": name, "source": path, "sha256": "", "size": "", "mtime_ns": ""}
    try:
        status = os.stat(path)
    except OSError:
        return row
    row |= {"size": str(status.st_size), "mtime_ns": str(status.st_mtime_ns)}
    before = known.get(name)
    if before and before["sha256"] and before == row | {"sha256": before["sha256"]}:
        row["sha256"] = before["sha256"]
    elif stat.S_ISREG(status.st_mode) and os.access(path, os.R_OK):
        row["sha256"] = sha256(path)
    return row  # without a sha256: no ordinary, readable file; the stage that opens it will say so


def refuse_namesake(row: dict, before: dict | None, dataset: Path) -> None:
    """Two folders of meshes in one tree: a path below the one may be equal to one below the other."""
    if before and before["source"] != row["source"] and os.path.exists(before["source"]):
        raise ValueError(
            f"{row['source']} would be called {row['item']} in {dataset}, as {before['source']} is already. "
            "Give the folder above both as meshes, or another dataset."
        )


def read_items(dataset: str | Path) -> dict[str, dict]:
    """The rows of items.csv by item; everything stays text, so that 00123 stays 00123."""
    path = Path(dataset, "items.csv")
    rows, damaged = sound_rows(path) if path.exists() else ([], [])
    if damaged:
        raise ValueError(
            f"{path}: line {damaged[0]} is damaged; wanted {','.join((*COLUMNS, SEAL))}. "
            "Remove the file and run 01_watertight again: it is made anew, and results are kept."
        )
    return {row["item"]: row for row in rows}


def sound_rows(path: Path) -> tuple[list[dict], list[int]]:
    """Rows of items.csv that are as they were written, and the lines that are not. Older files have no seals."""
    rows, damaged = [], []
    try:
        with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            table = csv.DictReader(file)
            heads = tuple(table.fieldnames or ())
            if heads not in (COLUMNS, (*COLUMNS, SEAL)):
                return [], [1]
            for number, row in enumerate(table, 2):
                found = row.pop(SEAL, None)
                whole = tuple(row) == COLUMNS and None not in row.values()
                if whole and (SEAL not in heads or found == row_seal(row)):
                    rows.append(row)
                else:
                    damaged.append(number)
    except csv.Error:
        damaged.append(len(rows) + len(damaged) + 2)
    return rows, damaged


def enter_items(dataset: Path, rows: list[dict]) -> None:
    """Add rows to items.csv, or replace them, under a lock: two runs may do so at once."""
    dataset.mkdir(parents=True, exist_ok=True)
    with Claims(dataset) as claims:
        claims.take("items.csv", wait=True)
        merged = read_items(dataset) | {row["item"]: row for row in rows}
        write_items(dataset, merged.values())


def write_items(dataset: Path, rows: Iterable[dict]) -> None:
    """All of items.csv. Only for who holds the claim on it."""
    with (
        writing(dataset / "items.csv") as beside,
        beside.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        table = csv.DictWriter(file, (*COLUMNS, SEAL))
        table.writeheader()
        table.writerows(row | {SEAL: row_seal(row)} for row in sorted(rows, key=lambda row: row["source"]))


def duplicates(items: list[Item]) -> dict[str, str]:
    """Items whose original has the same bytes as another's: name -> name of the one that stands for both."""
    first: dict[str, str] = {}
    twins = {}
    done_first = sorted(items, key=lambda item: (not os.path.isdir(item.folder), item.name))
    for item in done_first:  # who was done before stays
        if item.sha256 and first.setdefault(item.sha256, item.name) != item.name:
            twins[item.name] = first[item.sha256]
    return twins


# -- splits -----------------------------------------------------------------------------------------------------------


def splits(names: list[str], dataset: str | Path) -> dict[str, str]:
    """train, val or test for each name: by its hash, unless <dataset>/split.json says otherwise."""
    path = Path(dataset, "split.json")
    chosen = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if unknown := set(chosen) - {"train", "val", "test"}:
        raise ValueError(
            f'{path}: unknown split {sorted(unknown)}; wanted {{"train": [names], "val": [names], "test": [names]}}'
        )
    override = {name: part for part, names in chosen.items() for name in names}
    return {name: override.get(name) or split(name) for name in names}


def split(name: str) -> str:
    """80/10/10 by a hash of the name, so that nobody changes sides as the set grows."""
    part = int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) / 2**32
    return "train" if part < 0.8 else "val" if part < 0.9 else "test"


def kept_unseen(items: list[Item]) -> list[Item]:
    """Those of val and test, mixed: the first few of them are not all of one folder or kind."""
    parts = splits([item.name for item in items], items[0].dataset) if items else {}
    kept = [item for item in items if parts[item.name] != "train"]
    return sorted(kept, key=lambda item: hashlib.sha256(item.name.encode()).digest())


# -- writing ----------------------------------------------------------------------------------------------------------


@contextmanager
def writing(target: str | Path, folder: str | Path | None = None) -> Iterator[Path]:
    """A path beside the target to write to; it takes the target's name when the block ends well, else it is removed.

    It lies in another folder if one is given.
    """
    target = Path(target)
    folder = Path(folder or target.parent)
    folder.mkdir(parents=True, exist_ok=True)
    beside = folder / f"{PARTIAL}{os.getpid()}-{target.name}"
    try:
        yield beside
        replace(beside, target)
    finally:
        beside.unlink(missing_ok=True)


def write_text(target: str | Path, text: str) -> None:
    with writing(target) as beside:
        beside.write_text(text, encoding="utf-8")


def replace(source: Path, target: Path, tries: int = 8) -> None:
    """os.replace, tried for some seconds where Windows refuses because a reader or a scanner has the file open."""
    for attempt in range(tries):
        try:
            return os.replace(source, target)
        except PermissionError:
            if attempt == tries - 1:
                raise
            time.sleep(0.03 * 2**attempt)


def sweep(folder: str | Path) -> None:
    """Remove what writers that were killed left behind. Only for who holds the claim on the folder."""
    for leftover in Path(folder).glob(PARTIAL + "*"):
        leftover.unlink(missing_ok=True)


def sha256(path: str | Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# -- facts ------------------------------------------------------------------------------------------------------------


def read_facts(item: Item) -> dict:
    """What every stage noted about an item: {stage: record}. A missing or damaged file is no facts."""
    try:
        with open(f"{item.folder}/{item.stem}_facts.json", encoding="utf-8") as file:
            facts = json.load(file)
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(facts, dict):
        return {}
    return {
        stage: {name: value for name, value in record.items() if name != "seal"}
        for stage, record in facts.items()
        if sound(record)
    }


def sound(record) -> bool:
    """Has a stage's record what everyone relies on?"""
    try:
        made = all({"size", "sha256"} <= output.keys() for output in record["outputs"].values())
        return made and record.keys() >= RECORD and isinstance(record["facts"], dict)
    except (KeyError, TypeError, AttributeError):
        return False


def write_facts(item: Item, facts: dict) -> None:
    sealed = {stage: record | {"seal": seal(record, times=True)} for stage, record in facts.items()}
    with writing(item.path("_facts.json")) as beside:
        beside.write_text(json.dumps(sealed, indent=1), encoding="utf-8")
        item.refuse_late()


def whole(item: Item, outputs: dict) -> bool:
    """Are all these files there, in their full size, or were they put into an archive as they were?"""
    stem, away = f"{item.folder}/{item.stem}", None
    for suffix, output in outputs.items():
        try:
            if os.stat(stem + suffix).st_size != output["size"]:
                return False
        except OSError:
            away = archived(item) if away is None else away
            if away.get(suffix) != output["sha256"]:
                return False
    return True


def archived(item: Item) -> dict[str, str]:
    """Suffix and sha256 of the files that lib.archive removed when it had them."""
    try:
        with open(f"{item.folder}/{item.stem}_archived.json", encoding="utf-8") as file:
            return {suffix: str(hash) for suffix, hash in unsealed(file.read())["files"].items()}
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return {}


def find_inputs(item: Item, facts: dict, suffixes: tuple[str, ...]) -> dict | None:
    """The sha256 of each file a stage reads, None if one is missing. "source" is the original mesh.

    "_view_*_image.png" stands for all that an earlier stage made under such a name, at least one.
    """
    made = {suffix: output for record in facts.values() for suffix, output in record["outputs"].items()}
    wanted = {}
    for suffix in suffixes:
        if "*" in suffix:
            wanted |= {name: made[name] for name in fnmatch.filter(made, suffix)} or {suffix: None}
        elif suffix != "source":
            wanted[suffix] = made.get(suffix)
    if None in wanted.values() or not whole(item, wanted):
        return None
    hashes = {suffix: output["sha256"] for suffix, output in wanted.items()}
    return ({"source": item.sha256} if "source" in suffixes else {}) | hashes
