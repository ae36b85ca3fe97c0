"""What is there: meshes below a folder, formats that are not read, datasets and the resolutions they were made at."""

import os
import warnings
from collections import Counter
from collections.abc import Collection, Iterable
from itertools import islice
from pathlib import Path, PurePath

KINDS = 8  # suffixes that are told, the most frequent first
COMPANIONS = {  # what lies beside meshes and is none: materials, textures, words
    *(".mtl", ".bin", ".png", ".jpg", ".jpeg", ".tga", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".dds", ".exr"),
    *(".hdr", ".svg", ".txt", ".md", ".rst", ".pdf", ".html", ".htm", ".json", ".csv", ".tsv", ".xml", ".yaml", ".yml"),
    *(".url", ".ini", ".log", ".db", ".license", ".py", ".ipynb", ".sha256"),
}


def suffixes() -> tuple[str, ...]:
    """Of the files that are meshes."""
    from lib.mesh import SUFFIXES  # slow to import, and nothing else here needs it

    return tuple(sorted(SUFFIXES))


def list_meshes(folder: str | Path, besides: str | Path) -> tuple[list[str], Counter]:
    """Paths of the mesh files below a folder, sorted, and how many files of which other suffix lie there.

    Hidden folders and our own tree are passed over; companions of meshes are not counted.
    """
    besides, read, found, others = os.path.realpath(besides), suffixes(), [], Counter()

    def tell(error: OSError) -> None:
        warnings.warn(f"passed over: {error}", stacklevel=2)

    for where, folders, files in os.walk(folder, onerror=tell):
        folders[:] = sorted(f for f in folders if f[0] != "." and os.path.realpath(f"{where}/{f}") != besides)
        for name in sorted(files):
            if name[0] != "." and name.lower().endswith(read):
                found.append(f"{where}/{name}")
            elif name[0] != "." and (suffix := PurePath(name).suffix.lower()):
                others[suffix] += suffix not in COMPANIONS
    return found, +others


def passed_over(others: Counter) -> str:
    """The files that were not looked at, in a sentence; nothing if there are none."""
    if not others:
        return ""
    told = ", ".join(f"{count:,} {suffix}" for suffix, count in others.most_common(KINDS))
    more = f" and {len(others) - KINDS} more suffixes" * (len(others) > KINDS)
    return (
        f"Passed over, as their format is not read: {told}{more}. Read are {' '.join(suffixes())}; "
        "export the others as .glb or .obj."
    )


def resolutions(dataset: str | Path, names: Iterable[str]) -> list[int]:
    """Those at which the first of these items were made."""
    found = set()
    for name in islice(names, 64):
        for path in Path(dataset, name).glob(f"*_{name}/*_{name}_facts.json"):
            found.add(path.parent.name.removesuffix(f"_{name}"))
    return sorted(int(text) for text in found if text.isdecimal())


def refuse_resolution(dataset: str | Path, names: Collection[str], resolution: int) -> None:
    """Raise ValueError if no item was made at it: every stage would leave out all, and have nothing to show."""
    if any(os.path.exists(f"{dataset}/{name}/{resolution}_{name}/{resolution}_{name}_facts.json") for name in names):
        return
    if made := resolutions(dataset, names):
        raise ValueError(
            f"resolution = {resolution}: no item of {dataset} was made at it. It has {' and '.join(map(str, made))}: "
            f"set resolution to one of these, or run 01_watertight at {resolution} on it first."
        )


def alternatives(name: str, folders: Iterable[Path]) -> str:
    """What a parameter could be instead, as a sentence; nothing if nothing is there."""
    words = []
    for folder in sorted(folders)[:4]:
        made = resolutions(folder, sorted(path.name for path in folder.iterdir() if path.is_dir()))
        words.append(f'"{folder.as_posix()}"' + f" (resolution {' and '.join(map(str, made))})" * bool(made))
    return f" There is {name} = {', or '.join(words)}." if words else ""
