"""Keep data: python -m lib.pack shards | archive | restore | verify | export | copy, each with --help."""

import argparse
import os
import re
import shutil
import sys
from pathlib import Path

from lib import archive, pairs, shard, store, verify
from lib.archive import SIZED
from lib.dataset import items, read_facts, sha256, writing
from lib.words import say

AUTHOR = {"MB a mesh": 108.5, "of these renders and features": 24.9}  # 1.6 TB and 368 GB of 14,752 meshes at 256


def main(words: list[str] | None = None) -> int:
    """0: all is well; 1: something is damaged, or was left out; 2: the words make no sense."""
    asked = parser().parse_args(words)
    try:
        return DO[asked.what](asked)
    except (ValueError, OSError) as error:
        say(f"{asked.what} stopped: {error}")
        return 1


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(prog="python -m lib.pack", description=__doc__)
    parts = top.add_subparsers(dest="what", required=True)

    def part(name: str, about: str, *places: tuple[str, str]) -> argparse.ArgumentParser:
        found = parts.add_parser(name, help=about, description=about)
        for place, clause in places:
            found.add_argument(place, help=clause)
        return found

    tree, place = ("dataset", "root of the tree"), ("place", "a folder, or s3://bucket/prefix")
    shards = part("shards", "latents and features into tar shards, which 06 can learn from", tree, place)
    archives = part("archive", "originals, meshes, points and renders into verified archives", tree, place)
    restore = part("restore", "bring back what an archive holds", place, tree)
    verified = part("verify", "hold every file of a tree, or of a place of shards and archives, to its hash", tree)
    export = part("export", "latents and features alone, as a tree of links", tree, ("folder", "made if need be"))
    copied = part("copy", "a run's folder, with its logs, to another place", ("folder", "of the run"), place)
    for one in (shards, archives, restore, verified, export):
        one.add_argument("--resolution", type=int, default=256, help="of the files: 256")
    for one in (shards, archives):
        one.add_argument("--megabytes", type=float, default=256, help="of a file: 256")
    for one in (archives, verified):
        one.add_argument("--jobs", type=int, default=-1, help="at a time: -1, one a core")
    archives.add_argument("--remove", action="store_true", help="what was verified there goes from the tree")
    restore.add_argument("--only", nargs="+", metavar="MESH", help="these alone")
    verified.add_argument("--only-tell", action="store_true", help="set nothing aside")
    verified.add_argument("--tree", default="", help="of an archive's meshes, which then makes anew what is lost")
    export.add_argument("--copy", action="store_true", help="files in place of links")
    copied.add_argument("--checkpoints", action="store_true", help="those to go on from, too")
    return top


def do_shards(asked) -> int:
    told = shard.pack(asked.dataset, asked.place, asked.resolution, pairs.extent, asked.megabytes)
    say(f"{told['meshes']} meshes, {told['packed']} shards written, {told['kept']} kept, {told['bytes'] / 1e9:.3f} GB")
    say(f"learn from them: -p 06_train_dit.dataset={asked.place}")
    return left_out(told)


def do_archive(asked) -> int:
    told = archive.archive(asked.dataset, asked.place, asked.resolution, asked.megabytes, asked.remove, jobs=asked.jobs)
    say(table(told, *weights(asked.dataset, asked.resolution)))
    if asked.remove:
        say(f"{told['removed']} files were removed; `python -m lib.pack restore` brings them back")
    return left_out(told)


def do_restore(asked) -> int:
    told = archive.restore(asked.place, asked.dataset, asked.resolution, asked.only)
    if not (told["written"] or told["kept"] or told["differ"]):
        of = f"nothing of {', '.join(asked.only)}" if asked.only else "no archives"
        raise ValueError(f"{asked.place} holds {of} at {asked.resolution}. Look at place, --resolution and --only.")
    say(f"{told['written']} files written, {told['kept']} were there, {len(told['differ'])} differ and were left alone")
    for path in told["differ"]:
        say(f"differs: {path}. Remove it to have the archive's.")
    return 1 if told["differ"] else 0


def do_verify(asked) -> int:
    mend, faults, known = not asked.only_tell, [], False
    names = store.Store(asked.dataset).names() if "://" in asked.dataset or not is_tree(asked.dataset) else {}
    if f"{asked.resolution}_shards.json" in names:
        faults, known = shard.verify(asked.dataset, asked.resolution, mend), True
    if any(re.fullmatch(rf"{asked.resolution}_\d+_archive\.(tar|json)", name) for name in names):
        faults, known = faults + archive.verify(asked.dataset, asked.resolution, asked.tree, mend), True
    if not names and is_tree(asked.dataset):
        faults, known = verify.verify(asked.dataset, asked.resolution, mend, jobs=asked.jobs), True
    if not known:
        raise ValueError(f"{asked.dataset} is no tree, and holds no shards or archives of {asked.resolution}")
    for row in faults:
        say(f"{row['mesh'] or '(no mesh)'}: {row['file']} {row['fault']}. {row['do']}")
    say(f"{len(faults)} faults" if faults else "all is as it was written")
    return 1 if faults else 0


def do_export(asked) -> int:
    told = export(asked.dataset, asked.folder, asked.resolution, asked.copy)
    say(f"{told['meshes']} meshes, {told['files']} files, {told['bytes'] / 1e9:.3f} GB, in {asked.folder}")
    return 0


def do_copy(asked) -> int:
    sent = store.copy(asked.folder, asked.place, () if asked.checkpoints else ("resume",))
    say(f"{len(sent)} files, {sum(sent.values()) / 1e6:.1f} MB sent and read back; the rest was there")
    return 0


DO = {name.removeprefix("do_"): function for name, function in list(globals().items()) if name.startswith("do_")}


def is_tree(place: str) -> bool:
    return Path(place).expanduser().joinpath("items.csv").exists()


def left_out(told: dict) -> int:
    for reason in told["left out"]:
        say(f"left out: {reason}")
    return 1 if told["left out"] else 0


# -- for training alone -----------------------------------------------------------------------------------------------


def export(dataset: str | Path, folder: str | Path, resolution: int, copied: bool = False) -> dict:
    """Latents, features and what reading them takes, in the tree's own names: links, or copies that were verified."""
    told, folder = {"meshes": 0, "files": 0, "bytes": 0}, Path(folder).expanduser().absolute()
    chosen = [item for item in items(dataset, resolution) if shard.STAGES[1] in read_facts(item)]
    if not chosen:
        raise ValueError(f"{dataset} has no latents at {resolution}. Run 05_latents first.")
    root = Path(chosen[0].dataset)
    if folder == root or folder in root.parents or root in folder.parents:
        raise ValueError(f"{folder} and the tree {root} lie in one another. Give a folder apart, like data/training.")
    for name in ("items.csv", "split.json", f"{resolution}_latent_stats.json"):
        if (root / name).exists():
            put(root / name, folder / name, True)
    for item in chosen:
        outputs = [name for record in read_facts(item).values() for name in record["outputs"]]
        wanted = [name for name in outputs if shard.MEMBERS.search(name) or SIZED.fullmatch(name)]
        for suffix in [name for name in wanted if item.path(name).exists()]:
            path = item.path(suffix)
            put(path, folder / path.relative_to(root), copied)
            told["files"] += 1
            told["bytes"] += path.stat().st_size
        facts = item.path("_facts.json")
        put(facts, folder / facts.relative_to(root), True)
        told["meshes"] += 1
    return told


def put(source: Path, target: Path, copied: bool) -> None:
    """A link, or a copy with the same hash, at once or not at all."""
    if target.exists() and (target.samefile(source) or (target.is_symlink() is not copied and same(source, target))):
        return
    with writing(target) as beside:
        if not copied:
            try:
                return os.symlink(source, beside)  # noqa: PTH211 (writing() renames it)
            except OSError:  # Windows without developer mode
                pass
        shutil.copyfile(source, beside)
        if not same(source, beside):
            raise OSError(f"{target} reads back otherwise than {source}; is the disk sound?")


def same(a: Path, b: Path) -> bool:
    return a.stat().st_size == b.stat().st_size and sha256(a) == sha256(b)


# -- what it weighs ---------------------------------------------------------------------------------------------------


def weights(dataset: str | Path, resolution: int) -> tuple[float, float]:
    """Bytes of features and of latents in the tree, which stay as they are."""
    features = latents = 0
    for item in items(dataset, resolution):
        for record in read_facts(item).values():
            for suffix, output in record["outputs"].items():
                features += output["size"] if suffix.endswith("_features.npz") else 0
                latents += output["size"] if "_latent_" in suffix else 0
    return features, latents


def table(told: dict, features: float, latents: float) -> str:
    """Megabytes a mesh before and after, beside the author's."""
    count = max(told["meshes"], 1) * 1e6
    before, after, rest = told["before"] / count, told["after"] / count, (features + latents) / count
    third = AUTHOR["MB a mesh"] / 3
    rows = [
        ("MB a mesh", "in the tree", "kept", "the author"),
        ("original, mesh, points, renders", f"{before:.2f}", f"{after:.2f}", ""),
        ("features", f"{features / count:.2f}", f"{features / count:.2f}", ""),
        ("latents", f"{latents / count:.2f}", f"{latents / count:.2f}", ""),
        ("all", f"{before + rest:.2f}", f"{after + rest:.2f}", f"{AUTHOR['MB a mesh']:.1f}, a third: {third:.1f}"),
    ]
    return "\n".join(f"{a:34}{b:>12}{c:>10}   {d}" for a, b, c, d in rows)


if __name__ == "__main__":
    sys.exit(main())
