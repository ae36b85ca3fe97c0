"""Every file of the tree held against the hash that its stage noted: what changed is named, and made anew next time."""

import json
from collections.abc import Iterable
from pathlib import Path

import joblib

from lib.claims import Claims
from lib.dataset import (
    RECORD,
    Item,
    archived,
    items,
    read_facts,
    replace,
    sha256,
    sound_rows,
    write_facts,
    write_items,
)
from lib.seals import seal, unsealed

DAMAGED = ".damaged-"  # how the name of a file begins that was set aside
KNOWN = RECORD | {"versions", "seconds", "peak_gib", "adopted"}  # in the record of a stage


def verify(
    dataset: str | Path, resolution: int, mend: bool = True, only: Iterable[str] = (), jobs: int = -1
) -> list[dict]:
    """A row a fault. What is damaged is set aside under another name, so that the next run makes it, and it alone."""
    dataset = Path(dataset).expanduser().absolute()
    rows, faults = listed(dataset, mend)
    sound = [Item(row["item"], row["source"], row["sha256"], str(dataset), resolution) for row in rows]
    chosen = [item for item in (sound if faults else items(dataset, resolution)) if not only or item.name in only]
    faults += statistics(dataset, resolution, mend)
    found = joblib.Parallel(jobs, return_as="generator")(joblib.delayed(examine)(item, mend) for item in chosen)
    return faults + [row for rows in found for row in rows]


def listed(dataset: Path, mend: bool) -> tuple[list[dict], list[dict]]:
    """The sound rows of items.csv, and what is wrong with others: these go, and 01 enters their meshes anew."""
    path = dataset / "items.csv"
    rows, damaged = sound_rows(path) if path.exists() else ([], [])
    if damaged and mend:
        with Claims(dataset) as claims:
            claims.take("items.csv", wait=True)
            rows, damaged = sound_rows(path)
            set_aside(path)
            write_items(dataset, rows)
    do = "Run 01_watertight again: it enters the mesh anew, and results are kept."
    return rows, [{"mesh": "", "file": str(path), "fault": f"changed in line {line}", "do": do} for line in damaged]


def statistics(dataset: Path, resolution: int, mend: bool) -> list[dict]:
    """Mean and deviation of the latents."""
    path = dataset / f"{resolution}_latent_stats.json"
    fault = broken_seal(path, mend)
    return [{"mesh": "", "file": str(path), "fault": fault, "do": STATISTICS}] if fault else []


STATISTICS = "Run 05_latents again: it keeps the latents and writes this file, which had no seal in older releases."


def examine(item: Item, mend: bool) -> list[dict]:
    """One mesh's faults. Nobody else works on it meanwhile; if somebody does, that is told."""
    if not Path(item.folder).is_dir():
        return []
    with Claims(item.dataset) as claims:
        if not claims.take(item.stem):
            return [row(item, item.folder, "is being worked on", "Verify again when that run has ended.")]
        return [*records(item, mend), *note(item, mend), *files(item, mend), *original(item)]


def records(item: Item, mend: bool) -> list[dict]:
    """Is the file of facts readable, and each record in it as it was written?"""
    path = item.path("_facts.json")
    if not path.exists():
        return []
    facts = read_facts(item)
    try:
        written = json.loads(path.read_text(encoding="utf-8"))
        seals = {stage: record.get("seal") for stage, record in written.items()}
    except (ValueError, RecursionError, AttributeError):
        facts = {}
        faults = [row(item, str(path), "cannot be read", "Run the notebooks again: they make this mesh anew.")]
    else:
        bad = [k for k in seals if k not in facts or not as_written(facts[k], seals[k])]
        faults = [row(item, str(path), f"its record of {stage} changed", redo(stage)) for stage in bad]
        facts = {stage: record for stage, record in facts.items() if stage not in bad}
    if faults and mend:
        set_aside(path)
        if facts:
            write_facts(item, facts)
    return faults


def as_written(record: dict, found: str | None) -> bool:
    """An older tree's record has no seal, or one without its times."""
    return record.keys() <= KNOWN if found is None else found in (seal(record, times=True), seal(record))


def note(item: Item, mend: bool) -> list[dict]:
    """What says which of its files are in an archive alone."""
    path = item.path("_archived.json")
    fault = broken_seal(path, mend)
    do = "Bring its files back by `python -m lib.pack restore`, or run the notebooks, which make them anew."
    return [row(item, str(path), fault, do)] if fault else []


def files(item: Item, mend: bool) -> list[dict]:
    """What every stage made."""
    faults, away = [], archived(item)
    for stage, record in read_facts(item).items():
        for suffix, output in record["outputs"].items():
            path = item.path(suffix)
            if path.exists() and sha256(path) == output["sha256"]:
                continue
            if not path.exists() and away.get(suffix) == output["sha256"]:
                continue
            lost = not path.exists()
            faults.append(row(item, str(path), "is missing" if lost else "is damaged", redo(stage)))
            if mend and not lost:
                set_aside(path)
    return faults


def original(item: Item) -> list[dict]:
    """The mesh that came in; it is the user's, so nothing is set aside."""
    if not item.sha256 or not Path(item.source).is_file() or sha256(item.source) == item.sha256:
        return []
    do = "Bring back the file as it was, or run 01_watertight, which takes the new one for what you want."
    return [row(item, item.source, "is not the file that 01_watertight read", do)]


def row(item: Item, file: str, fault: str, do: str) -> dict:
    return {"mesh": item.name, "file": file, "fault": fault, "do": do}


def redo(stage: str) -> str:
    return f"Run {stage} again: it makes this mesh anew and keeps the others."


def broken_seal(path: Path, mend: bool) -> str:
    """What is wrong with a small file that carries a seal; "" if nothing is, or if it is not there."""
    try:
        unsealed(path.read_bytes(), strict=True)
    except FileNotFoundError:
        return ""
    except ValueError as error:
        if mend:
            set_aside(path)
        return f"is damaged: {error}"
    return ""


def set_aside(path: Path) -> None:
    replace(path, path.with_name(f"{DAMAGED}{path.name}"))
