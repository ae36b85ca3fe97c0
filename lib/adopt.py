"""Take over what older scripts made, as far as it is whole and right: python -m lib.adopt OLD MESHES DATASET.

What is taken is noted as adopted, and the notebooks keep it whatever their parameters; what is not is told with its
reason, and a normal run makes that alone. OLD is only read; on one disk its files and the tree's share their bytes.
"""

import argparse
import csv
import io
import os
import re
import shutil
import sys
import zipfile
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lib import field, mesh, nearest, points, score, signed, vae, weights
from lib.claims import Claims
from lib.dataset import Item, collect, find_inputs, read_facts, sha256, write_facts, writing
from lib.words import say

CLOSED, SAMPLED, RENDERED, SHOWN, LATENT = (
    *("01_watertight", "02_sharp_sample", "03_render"),
    *("04_features", "05_latents"),
)
COLUMNS = ("item", "stage", "adopted", "reason", "file")
CHANNELS = 64


class Adopted(NamedTuple):
    """What a stage would have written and noted."""

    files: dict[str, Path | bytes]  # suffix -> the old file, or the new one's bytes where its format changes
    facts: dict
    parameters: dict


class Refused(Exception):
    """Why an old file is not taken over."""


def adopt(old: str | Path, meshes: str | Path, dataset: str | Path, resolution: int, model: str = "") -> list[dict]:
    """Every mesh and stage: what was taken over, and why what was not. Also <dataset>/<R>_adopted.csv."""
    old = Path(old).expanduser().absolute()
    if not old.is_dir():
        raise ValueError(f"{old} is no folder. Give the root of what the older scripts made.")
    known, rows = named(old), []
    named_vae = {"sha256": sha256(weights.file_of(model)), **vae.load(model).config} if model else {}
    everything = collect(meshes, dataset, resolution)
    stems = Counter(stem(item) for item in everything)
    for item in everything:
        Path(item.folder).mkdir(parents=True, exist_ok=True)
        files = {} if stems[stem(item)] > 1 else of_mesh(known, stem(item), resolution)
        reason = f"{stems[stem(item)]} meshes are called {stem(item)}: it cannot be told whose these files are"
        with Claims(item.dataset) as claims:
            claims.take(item.stem, wait=True)
            for stage, inputs, check in STAGES:
                path = next((files[suffix] for suffix in LOOKED_FOR[stage] if suffix in files), None)
                row = {"item": item.name, "stage": stage, "adopted": False, "file": str(path or "")}
                try:
                    if stage in read_facts(item):
                        raise Refused("the tree has its own already")
                    if path is None:
                        raise Refused(reason if stems[stem(item)] > 1 else lost(files))
                    found = check(item, files, named_vae)
                    needed = find_inputs(item, read_facts(item), inputs)
                    if needed is None:
                        raise Refused(f"what it was made of was not taken over: {', '.join(inputs)}")
                    take(item, stage, found, needed, path)
                    rows.append(row | {"adopted": True, "reason": ""})
                except Refused as error:
                    rows.append(row | {"reason": str(error)})
    with (
        writing(Path(everything[0].dataset, f"{resolution}_adopted.csv")) as beside,
        beside.open("w", newline="") as out,
    ):
        table = csv.DictWriter(out, COLUMNS)
        table.writeheader()
        table.writerows(rows)
    return rows


def take(item: Item, stage: str, found: Adopted, inputs: dict, path: Path) -> None:
    """The old files under their new names, then the facts, without which nothing counts."""
    item.written.clear()
    for suffix, source in found.files.items():
        with item.writing(suffix) as beside:
            if isinstance(source, bytes):
                beside.write_bytes(source)
            else:
                try:
                    os.link(source, beside)
                except OSError:  # another disk
                    shutil.copyfile(source, beside)
    if stage == CLOSED:
        item.link_original()
    record = {"version": 0, "parameters": found.parameters, "inputs": inputs, "outputs": dict(item.written)}
    record |= {"adopted": str(path), "versions": {}, "seconds": 0.0, "peak_gib": 0.0}
    write_facts(item, read_facts(item) | {stage: record | {"facts": found.facts | {"adopted": True}}})


# -- finding them -----------------------------------------------------------------------------------------------------


def named(old: Path) -> dict[str, Path]:
    """Every file by its name in small letters; of several with one name, none."""
    found: dict[str, Path | None] = {}
    for where, _, names in os.walk(old):
        for name in names:
            found[name.lower()] = None if name.lower() in found else Path(where, name)
    return {name: path for name, path in found.items() if path}


def stem(item: Item) -> str:
    return Path(item.source).stem.lower()


def of_mesh(known: dict[str, Path], name: str, resolution: int) -> dict[str, Path]:
    """A mesh's old files by their suffix; the resolution may be missing, and a claim's p_ may be left over."""
    found = {}
    for start in (f"{resolution}_{name}", name, f"p_{resolution}_{name}", f"p_{name}"):
        for suffix in [*(one for names in LOOKED_FOR.values() for one in names), *ZIPPED]:
            original = suffix == ".obj" and start in (name, f"p_{name}")
            if start + suffix in known and not original:
                found.setdefault(suffix, known[start + suffix])
        for k in range(37):  # his lists have a view 036 too
            for tail in ("normal.png", "depth.png"):
                if (path := known.get(f"{start}_view_{k:03d}_{tail}")) is not None:
                    found.setdefault(f"_view_{k:03d}_{tail}", path)
    return found


LOOKED_FOR = {
    CLOSED: ("_normalized.obj", ".obj"),  # the second as it left the watertight script
    SAMPLED: ("_sample_points.npz",),
    RENDERED: ("_view_000_depth.png", "_view_000_normal.png", "_view_001_depth.png"),
    SHOWN: tuple(
        f"_view_000_{kind}{tail}"
        for kind in ("normal", "depth", "normal.png", "depth.png")
        for tail in ("_features.npz", "_features.pt")
    ),
    LATENT: tuple(f"_latent_sample{ending}" for ending in (".npy", ".npz", ".pt")),
}


ZIPPED = ("_mesh_and_points.7z", "_renders.7z")  # what the zipping scripts put beside, and removed the files


def lost(files: dict[str, Path]) -> str:
    away = " or ".join(suffix for suffix in ZIPPED if suffix in files)
    return f"lost, or still in {away}: unpack it there, adopt again" if away else "lost: there is no such file"


# -- checking them ----------------------------------------------------------------------------------------------------


def closed(item: Item, files: dict, *_) -> Adopted:
    """Is the old mesh closed, in its box, all of its source, and nothing else?"""
    path = next(files[suffix] for suffix in LOOKED_FOR[CLOSED] if suffix in files)
    try:
        V, F = mesh.read(path)
        source, triangles = mesh.read(item.source)
    except ValueError as error:
        raise Refused(str(error)) from None
    source, center, scale = mesh.normalise(source)
    edges = np.concatenate([F[:, [0, 1]], F[:, [1, 2]], F[:, [2, 0]]])
    keys, back = edges[:, 0] * len(V) + edges[:, 1], edges[:, 1] * len(V) + edges[:, 0]
    if len(np.unique(keys)) != len(keys) or not np.array_equal(np.sort(keys), np.sort(back)):
        raise Refused("not closed: an edge has not two faces that agree")
    if np.abs(V).max() > 1.05 or np.ptp(V, axis=0).max() < 1.8:
        raise Refused(f"not in its box: it spans {V.min():.3g} to {V.max():.3g}, wanted -1 to 1")
    A, B, C = V[F].swapaxes(0, 1)
    if np.einsum("ij,ij->", A, np.cross(B, C)) <= 0:
        raise Refused("inside out: its volume is negative")
    far, rng = 3 * 2.1 / item.resolution, np.random.default_rng(0)
    P, Q = (score.surface_points(*one, 20_000, rng) for one in ((source, triangles), (V, F)))
    surface, original = field.prepare(V, F), field.prepare(source, triangles)
    extra = float((field.closest(original, Q)[0] > far).mean())
    if extra > 0.5:
        raise Refused(f"not this mesh, or turned: {100 * extra:.1f}% of it lies over three cells from the source")
    lost = missed(surface, original, P, far)
    if lost > 0.002:
        raise Refused(f"parts are lost: {100 * lost:.1f}% of the source's surface, seen from outside, is not in it")
    if extra > 0.02:
        raise Refused(f"not of this mesh alone: {100 * extra:.1f}% of it lies over three cells from the source")
    facts = {"center": [float(c) for c in center], "scale": float(scale), "watertight_out": True, "missed": lost}
    return Adopted({"_normalized.obj": path}, facts, {})


def missed(surface: field.Surface, source: field.Surface, P: np.ndarray, far: float) -> float:
    """The share of points of the source that lie far off the old surface, outside of it or in plain sight.

    What lies inside and is seen from nowhere, as drawers are, is no loss: it was up to half of artists' surfaces.
    """
    off = P[field.closest(surface, P)[0] > far].astype(float)
    within = off[signed.distance(signed.prepare(surface.V, surface.F), off) >= 0] if len(off) else off
    D = np.random.default_rng(0).standard_normal((32, 3))
    D = np.tile(D / np.linalg.norm(D, axis=1, keepdims=True), (len(within), 1))  # (n * 32, 3)
    free = ~field.blocked(source, np.repeat(within, 32, 0) + 1e-3 * D, D, 4.0) if len(within) else np.empty(0, bool)
    seen = (free.reshape(-1, 32).mean(1) > 0.25).sum()  # of artists' meshes that are whole, none
    return float((len(off) - len(within) + seen) / len(P))


def sampled(item: Item, files: dict, *_) -> Adopted:
    """Do the old points lie on the old mesh, and are their labels its signed distances, positive inside?"""
    path = files["_sample_points.npz"]
    try:
        shape = points.read(path)
    except ValueError as error:
        told = str(error).removeprefix(f"{path} ").partition(" Remove it")[0]
        damaged = not zipfile.is_zipfile(path)
        raise Refused("cut short or damaged: it is no .npz" if damaged else told) from None
    if CLOSED not in read_facts(item):
        raise Refused("the mesh that the points are of was not taken over")
    solid = signed.prepare(*mesh.read(item.path("_normalized.obj")))
    rng = np.random.default_rng(0)
    for name, P in (("surface", shape.coarse), ("edges", shape.sharp)):
        off = float(np.quantile(nearest.closest(solid.tree, points.pick(P[:, :3], 2000, rng).astype(float))[0], 0.99))
        if off > 3e-3:
            raise Refused(f"points of the {name} lie {off:.2g} off the mesh: they are another's")
    asked = np.concatenate([points.pick(P, 1000, rng) for P in (shape.edges, shape.near, shape.uniform)]).astype(float)
    truth = signed.distance(solid, asked[:, :3])
    if np.quantile(np.abs(np.abs(truth) - np.abs(asked[:, 3])), 0.99) > 5e-3:
        raise Refused("labels are no distances to the mesh")
    clear = np.abs(truth) > 5e-3
    if (wrong := float((np.sign(truth) != np.sign(asked[:, 3]))[clear].mean())) > 0.01:
        raise Refused(f"labels have the wrong sign at {100 * wrong:.0f}% of points; wanted positive inside")
    files = {suffix: files[suffix] for suffix in ("_sample_points.npz", "_sharp_sample.ply") if suffix in files}
    return Adopted(files, {"coarse": len(shape.coarse), "sharp": len(shape.sharp)}, {"uniform": len(shape.uniform)})


def rendered(item: Item, files: dict, *_) -> Adopted:
    """Old views have neither cameras nor pictures, and a depth that is stretched over each view by itself."""
    views = {int(name[6:9]) for name in files if re.fullmatch(r"_view_\d{3}_(normal|depth)\.png", name)}
    lost = sorted(set(range(36)) - views)
    told = f"{len(lost)} of 36 views are lost, the first {lost[0]}; " if lost else ""
    path = next((path for name, path in sorted(files.items()) if name.endswith("_depth.png")), None)
    if path:
        from PIL import Image

        with Image.open(path) as picture:
            if picture.mode in ("L", "P", "RGB", "RGBA"):
                told += "depth is not metric: 8 bits, stretched over each view by itself; "
    raise Refused(f"{told}there are no cameras and no images of the shaded shape")


def shown(item: Item, files: dict, *_) -> Adopted:
    """Old features are of views that 03 makes anew."""
    path = next(files[suffix] for suffix in LOOKED_FOR[SHOWN] if suffix in files)
    try:
        shape = array_of(path, "features").shape
    except (OSError, ValueError, KeyError, RuntimeError, zipfile.BadZipFile) as error:
        raise Refused(unreadable(error)) from None
    side = round(shape[0] ** 0.5) if len(shape) == 2 else 0
    if side * side != shape[0]:
        raise Refused(f"{shape}: a class token or registers are among the {shape[0]} patches, which are no square")
    raise Refused("they are of normals and depths of views without cameras, none of an image as a person has it")


def latent(item: Item, files: dict, named_vae: dict) -> Adopted:
    """Are the old latents posterior means of the VAE that is named, in a length that it knows?"""
    path = next(files[suffix] for suffix in LOOKED_FOR[LATENT] if suffix in files)
    try:
        found = array_of(path, "latent_sample", "latents", "latent", "arr_0")
    except (OSError, ValueError, KeyError, RuntimeError, zipfile.BadZipFile) as error:
        raise Refused(unreadable(error)) from None
    found = found[0] if found.ndim == 3 and len(found) == 1 else found
    if found.ndim != 2 or found.shape[1] != CHANNELS:
        wrong = "what follows post_kl, not the latents" if found.shape[-1:] == (768,) else "no latents"
        raise Refused(f"wrong tensor: {found.shape} is {wrong}; wanted (tokens, {CHANNELS})")
    half = found.astype(np.float16)
    if not np.isfinite(half).all() or float(half.astype(np.float32).std()) < 1e-3:
        raise Refused("not finite, or all the same")
    if not named_vae:
        raise Refused("whose latents they are is not known: name their VAE by --vae if you do know")
    if len(half) != named_vae["tokens"]:
        usual = f"where a shape of that VAE usually has {named_vae['tokens']}: 05 makes all alike"
        raise Refused(f"{len(half)} tokens, {usual}")
    data = io.BytesIO()
    np.save(data, half)
    parameters = {name: named_vae[name] for name in ("sha256", "anchors")} | {"tokens": [len(half)]}
    facts = {"tokens": len(half), "channels": CHANNELS, "largest": float(np.abs(half).max())}
    return Adopted({"_latent_sample.npy": data.getvalue()}, facts, parameters)


def unreadable(error: Exception) -> str:
    """Why an array was not read."""
    if isinstance(error, ValueError) and "allow_pickle" in str(error):
        return "holds Python objects in place of numbers; these are not run"
    if isinstance(error, KeyError):
        return f"has not the array that was looked for: {error}"
    return f"cut short or damaged ({type(error).__name__})"


def array_of(path: Path, *keys: str) -> np.ndarray:
    """The array in an .npy, .npz or .pt; no code in it is run."""
    if path.suffix == ".pt":
        import torch

        found = torch.load(path, map_location="cpu", weights_only=True)
        found = next(found[key] for key in keys if key in found) if isinstance(found, dict) else found
        return found.float().numpy()
    found = np.load(path, allow_pickle=False)
    return found if isinstance(found, np.ndarray) else found[next((key for key in keys if key in found), keys[0])]


STAGES = (
    (CLOSED, ("source",), closed),
    (SAMPLED, ("_normalized.obj",), sampled),
    (RENDERED, ("source", "_normalized.obj"), rendered),
    (SHOWN, ("_views.json",), shown),
    (LATENT, ("_sample_points.npz",), latent),
)


def main(words: list[str] | None = None) -> int:
    """Adopt, and tell what and why not."""
    top = argparse.ArgumentParser(prog="python -m lib.adopt", description=__doc__)
    top.add_argument("old", help="root of what the older scripts made; searched recursively")
    top.add_argument("meshes", help="folder of the meshes that came in, as 01 is given it")
    top.add_argument("dataset", help="root of the tree to fill")
    top.add_argument("--resolution", type=int, default=256, help="of the old files: 256")
    top.add_argument("--vae", default="", help="whose latents the old ones are: a folder or checkpoint")
    asked = top.parse_args(words)
    try:
        rows = adopt(asked.old, asked.meshes, asked.dataset, asked.resolution, asked.vae)
    except (ValueError, OSError) as error:
        say(f"adopt stopped: {error}")
        return 1
    for stage, _, _ in STAGES:
        mine = [row for row in rows if row["stage"] == stage]
        say(f"{stage}: {sum(row['adopted'] for row in mine)} of {len(mine)} taken over")
        why = Counter(
            re.sub(r"(?<![\w.])\d[\d.e-]*(?!\w)", "#", row["reason"])[:110] for row in mine if not row["adopted"]
        )
        for reason, count in why.most_common(5):
            say(f"    {count} not: {reason}")
    say(f"each with its reason: {asked.dataset}/{asked.resolution}_adopted.csv. A normal run makes the rest.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
