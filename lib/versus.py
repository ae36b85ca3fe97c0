"""Which mesh is held against which: what was decoded, generated or predicted, and the truth, as items to be scored."""

import functools
import hashlib
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd

from lib.dataset import Item, enter_items, items, read_facts, sha256, slug, splits, whole, write_text
from lib.search import list_meshes, passed_over
from lib.weights import file_of
from lib.words import say

NORMALISED, PAIR = "_normalized.obj", "_pair.json"  # ends of files' names
VIEW = re.compile(r"(?P<shape>.+)_view_\d+(_\d+)?")  # what 07 calls a mesh


@dataclass(frozen=True)
class Pair:
    """What was made and what it should be."""

    name: str
    made: str  # a mesh's file, or latents to be decoded
    truth: str  # a mesh's file
    task: str  # reconstruction, generation or comparison
    kind: str  # class of the shape, for means by class


def collect(
    dataset: str,
    run: str,
    resolution: int,
    vae: str = "",  # that made the latents of 05, "" = this run's
    generated: str = "",  # folder of a 07_generate, "" = this run's
    predictions: str = "",  # two folders of meshes to compare, in place of all that
    truth: str = "",
    split: str = "unseen",
    limit: int = 0,
) -> tuple[list[Item], pd.DataFrame]:
    """All there is to score, as items of the tree <run>/08_evaluate; and what cannot be, with reasons."""
    tree = Path(run, "08_evaluate")
    if bool(predictions) != bool(truth):
        given = f"predictions = {predictions!r} and truth = {truth!r}"
        raise ValueError(f"{given} came, wanted two folders of meshes: give both, or neither")
    if predictions:
        pairs, aside = compared(predictions, truth)
        return enter(pairs[: limit or None], tree, resolution), aside
    if generated and not Path(generated, "made.csv").exists():
        raise ValueError(f"generated = {generated!r} holds no made.csv; wanted the folder <run>/07_generate of a run")
    known = items(dataset, resolution)
    pairs, aside = from_pictures(generated or Path(run, "07_generate"), known)
    where = vae or str(Path(run, "11_train_vae"))
    if not vae and not Path(where).exists():
        told = pd.DataFrame([{"pair": "reconstructions", "reason": f"no VAE in {where}: give vae = its folder"}])
        return enter(pairs[: limit or None], tree, resolution), pd.concat([told, aside])
    weights = file_of(where)
    back = reconstructions(known, sha256(weights), split)
    return enter([*back[: limit or None], *pairs[: limit or None]], tree, resolution, weights), aside


def reconstructions(known: list[Item], vae: str, split: str = "unseen") -> list[Pair]:
    """Shapes that 05 encoded with this VAE, mixed; `split` is train, val, test, unseen (val and test) or all."""
    wanted = {"unseen": ["val", "test"], "all": ["train", "val", "test"]}.get(split, [split])
    if set(wanted) - {"train", "val", "test"}:
        raise ValueError(f"split = {split!r}; wanted train, val, test, unseen (both of val and test) or all")
    parts, kinds, found = splits([item.name for item in known], known[0].dataset), classes(known), []
    for item in sorted(known, key=lambda item: hashlib.sha256(item.name.encode()).digest()):
        record = read_facts(item).get("05_latents")
        if parts[item.name] not in wanted or not record or not whole(item, record["outputs"]):
            continue
        if record["parameters"].get("sha256") != vae:
            raise ValueError(
                f"the latents of {item.name} in {item.dataset} were made by another VAE than this. Run 05_latents with "
                "this one, then this again, or give vae = the one that made them."
            )
        place = str(item.path("_latent_sample.npy")), str(item.path(NORMALISED))
        found.append(Pair(item.name, *place, "reconstruction", kinds[item.name]))
    return found


def from_pictures(folder: str | Path, known: list[Item]) -> tuple[list[Pair], pd.DataFrame]:
    """The meshes that 07 made of views of known shapes; and what it could not make, or whose truth is unknown."""
    pairs, aside = [], []
    path = Path(folder, "made.csv")
    table = pd.read_csv(path, keep_default_na=False, dtype=str) if path.exists() else pd.DataFrame()
    place, kinds = {item.name: item for item in known}, classes(known)
    for row in table.to_dict("records"):
        match = VIEW.fullmatch(row["name"])
        item = place.get(match["shape"]) if match else None
        if row["reason"] or item is None:
            aside.append({"pair": row["name"], "reason": row["reason"] or "a picture of no mesh of the dataset"})
        else:
            made = str(Path(folder, row["name"] + ".obj").absolute())
            pairs.append(Pair(row["name"], made, str(item.path(NORMALISED)), "generation", kinds[item.name]))
    return pairs, pd.DataFrame(aside, columns=["pair", "reason"])


def compared(predictions: str | Path, truth: str | Path) -> tuple[list[Pair], pd.DataFrame]:
    """Meshes of two folders by their paths below them, whatever the suffix; a_view_005.glb belongs to a.obj, too."""
    folders, found = [], []
    for name, given in (("predictions", predictions), ("truth", truth)):
        folder = Path(given).expanduser().absolute()
        if not folder.is_dir():
            raise ValueError(f"{name} = {str(given)!r} is not a folder. Give the folder that holds the meshes.")
        folders.append(folder)
        paths, others = list_meshes(folder, besides=folder / ".none")
        if others:
            say(f"{name}: {passed_over(others)}")
        found.append({path.relative_to(folder).with_suffix("").as_posix(): path for path in map(Path, paths)})
    (ours, theirs), (made, true) = folders, found
    pairs, matched, paired = [], set(), set()
    for key, path in made.items():
        match = VIEW.fullmatch(key)
        own = key if key in true else match["shape"] if match else None
        if own in true:
            matched.add(own)
            paired.add(key)
            kind = str(Path(own).parent) if "/" in own else family(own)
            pairs.append(Pair(slug(path.relative_to(ours).as_posix()), str(path), str(true[own]), "comparison", kind))
    if not pairs:
        some = [", ".join(sorted(paths)[:3]) or "no mesh" for paths in (made, true)]
        raise ValueError(
            f"no mesh below {ours} ({some[0]} ...) is called like one below {theirs} ({some[1]} ...). Name each "
            "prediction like its truth; the suffixes may differ."
        )
    lost = [{"pair": key, "reason": f"nothing below {ours} is called so"} for key in true if key not in matched]
    lost += [{"pair": key, "reason": f"nothing below {theirs} is called so"} for key in made if key not in paired]
    return pairs, pd.DataFrame(lost, columns=["pair", "reason"])


def classes(known: list[Item]) -> dict[str, str]:
    """Class of each item: the folder its original lies in if there are several, else its name up to a number."""
    folders = {item.name: Path(item.source).parent.name for item in known}
    if len(set(folders.values())) > 1:
        return folders
    return {item.name: family(item.name) for item in known}


def family(name: str) -> str:
    """chair of chair_003_flipped_0badcafe."""
    return re.sub(r"_\d+(_.*)?$|_[0-9a-f]{8}$", "", name)


def enter(pairs: list[Pair], folder: Path, resolution: int, vae: str | Path = "") -> list[Item]:
    """The pairs as items of a tree of their own: the pool resumes them, and puts bad ones aside.

    An item's hash is of all its files, so that a pair is scored again when either of them, or the VAE, has changed.
    """
    if not pairs:
        raise ValueError(f"{folder}: nothing to score. Run 05_latents or 07_generate, or give predictions and truth.")
    tree, rows, hashed = folder.absolute(), [], functools.cache(sha256)
    for pair in pairs:
        files = [pair.made, pair.truth, *([vae] if vae and pair.made.endswith(".npy") else [])]
        hashes = [hashed(path) if Path(path).exists() else "missing" for path in files]
        key = hashlib.sha256(" ".join([pair.name, *hashes]).encode()).hexdigest()
        rows.append({"item": pair.name, "source": pair.made, "sha256": key, "size": "", "mtime_ns": ""})
    entered = [Item(row["item"], row["source"], row["sha256"], str(tree), resolution) for row in rows]
    for item, pair in zip(entered, pairs, strict=True):
        write_text(item.path(PAIR), json.dumps(asdict(pair), indent=1))
    enter_items(tree, rows)
    return entered


def pair_of(item: Item) -> Pair:
    return Pair(**json.loads(item.path(PAIR).read_text(encoding="utf-8")))
