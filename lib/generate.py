"""A picture in, a mesh out: cut out, framed as in training, DINOv2, the diffusion transformer, the VAE, a surface."""

import functools
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

from lib import cutout, dino, dit, memory, mesh, picture, score, vae
from lib.dataset import Item, find_inputs, kept_unseen, read_facts, splits, writing
from lib.pairs import SUFFIXES
from lib.surface import surface
from lib.versus import family as family_of

ABOVE = 0.4  # of the way from the first camera, at the top, to the last, at the bottom: a little above the horizon
SURFACE = 4096  # points of a surface that F-scores compare


class Tools(NamedTuple):
    """Everything that stands between a picture and a mesh."""

    model: dit.DiT
    shapes: vae.VAE
    eyes: object  # DINOv2
    about: dict  # what 06 wrote about itself


class Asked(NamedTuple):
    """A picture to make meshes of."""

    name: str  # <mesh>_view_<NNN>, or the picture's own
    picture: object  # RGBA, framed
    item: Item | None  # the mesh it shows, if it is known
    seen: Path | None = None  # its features, where a map is looked at in the image's place
    reason: str = ""  # why there is no picture


def generate(
    asked: list[Asked],
    tools: Tools,
    folder: str | Path,  # <run>/07_generate
    *,
    steps: int = 25,
    guidance: float = 2.0,
    sampler: str = "euler",
    samples: int = 1,  # meshes of each picture
    depth: int = 7,  # of the octree: 128 cells a side
    seed: int = 0,
    batch: int = 16,  # pictures at once
) -> pd.DataFrame:
    """Meshes of pictures as <folder>/<name>.glb and .obj, beside the picture: a row each, also where one failed."""
    for name, given in (("samples", samples), ("batch", batch), ("octree_depth", depth)):
        if given < 1:
            raise ValueError(f"{name} = {given}; wanted at least 1")
    folder = Path(folder)
    rows = [{"picture": one.name, "sample": 0, "name": one.name, "reason": one.reason} for one in asked if one.reason]
    jobs = [(one, k) for one in asked if not one.reason for k in range(samples)]
    for start in range(0, len(jobs), batch):
        some = jobs[start : start + batch]
        began = time.perf_counter()
        features = torch.from_numpy(look([one for one, _ in some], tools))
        looked = time.perf_counter()
        options = {"steps": steps, "guidance": guidance, "sampler": sampler, "shift": tools.about["flow"]["shift"]}
        tokens = tools.about["latents"]["tokens"]
        latents = dit.sample(tools.model, features, tokens, seed=seed + 1000 * start, **options)
        shares = {"seconds_look": looked - began, "seconds_sample": time.perf_counter() - looked}
        for (one, k), z in zip(some, latents, strict=True):
            row = {"picture": one.name, "sample": k} | {name: value / len(some) for name, value in shares.items()}
            rows.append(row | write(one, k, z, tools, folder, depth))
    return kept(pd.DataFrame(rows), folder / "made.csv")


def kept(table: pd.DataFrame, target: Path) -> pd.DataFrame:
    """A table, which is also on disk for who scores or shows this run."""
    with writing(target) as beside:
        table.to_csv(beside, index=False)
    return table


def look(asked: list[Asked], tools: Tools) -> np.ndarray:
    """Patch features (n, P, F) of pictures, prepared as those of the training were."""
    if all(one.seen for one in asked):
        return np.stack([dino.read_features(one.seen) for one in asked])
    made = tools.about["features"]
    pictures = np.stack([dino.prepare(one.picture, made["size"], made["resize"]) for one in asked])
    return dino.encode(tools.eyes, pictures)


def write(one: Asked, k: int, z: torch.Tensor, tools: Tools, folder: Path, depth: int) -> dict:
    """Latents as a mesh in its files; what it took, or why there is none."""
    began = time.perf_counter()
    name = one.name if k == 0 else f"{one.name}_{k + 1}"
    try:
        V, F = surface(tools.shapes, z, depth)[:2]
        if not len(F):
            raise ValueError("the field is negative everywhere: no surface")
        for suffix in (".glb", ".obj"):
            with writing(folder / (name + suffix)) as beside:
                mesh.write(beside, V, F)
        with writing(folder / f"{name}.png") as beside:
            one.picture.save(beside, "png")
    except (ValueError, MemoryError, RuntimeError) as error:
        if not isinstance(error, ValueError) and not memory.is_out(error):
            raise
        return {"name": name, "reason": str(error)}
    cost = {"seconds_mesh": time.perf_counter() - began, "faces": len(F)} | memory.peaks(z.device)
    return {"name": name, "reason": "", **cost}


# -- what it starts from ----------------------------------------------------------------------------------------------


def tools(model: str | Path, device: str = "cpu") -> Tools:
    """The networks that the folder of a run of 06 names: what it was trained on is what it is used with."""
    device = memory.choose(device)
    network, about = dit.load(model, device)
    made = about["features"]
    eyes = dino.load(made["weights"], made["seed"], device)
    if eyes.fingerprint != made["fingerprint"]:
        raise ValueError(f"{model} was trained on features of other weights than {made['weights']!r} has today")
    return Tools(network, vae.load(about["latents"]["vae"], device), eyes, about)


def pictures(image: str, items: list[Item], about: dict, most: int = 24, view: int = -1) -> list[Asked]:
    """A picture's file, every picture in a folder, or (image = "") a view of meshes that were kept unseen."""
    from PIL import Image

    made = about["features"]
    if image and made["map"] != "image":
        raise ValueError(
            f"the model was trained on {made['map']} maps, which no picture has; train one with map = 'image'"
        )
    if image:
        return from_files(Path(image).expanduser(), made["share"], most)
    found, held_out = [], kept_unseen(items)
    for item in held_out:
        if most and len(found) == most:
            break
        number = view if view >= 0 else ABOVE * len(list(Path(item.folder).glob(f"{item.stem}_view_*_image.png")))
        stem = f"_view_{int(number):03d}"
        path, seen = item.path(f"{stem}_image.png"), item.path(f"{stem}_{made['map']}_features.npz")
        seen = None if made["map"] == "image" else seen
        if path.exists() and (seen is None or seen.exists()):
            with Image.open(path) as shown:
                found.append(Asked(f"{item.name}{stem}", shown.convert("RGBA"), item, seen))
    if not found:
        which = f"view {view}" if view >= 0 else "views"
        raise ValueError(f"none of {len(held_out)} unseen meshes has {which}. Run 03_render, or give image = a file.")
    return found


def from_files(where: Path, share: float, most: int) -> list[Asked]:
    """A picture's file, or those of a folder, of which the bad ones come with the reason; it takes one good one.

    What lies beside them is no picture by its suffix, and is passed over.
    """
    from PIL import Image

    if not where.is_dir():
        return [Asked(where.stem, cutout.frame(cutout.read(where), share), None)]
    files = sorted(path for path in where.iterdir() if path.is_file() and path.name[0] != ".")
    paths = [path for path in files if path.suffix.lower() in Image.registered_extensions()][: most or None]
    if not paths:
        raise ValueError(
            f"image = {str(where)!r} is a folder without a picture (.png, .jpg ...; other files there: {len(files)}). "
            "Give a picture, or a folder of them."
        )
    stems, found = [path.stem for path in paths], []
    for path in paths:
        name = path.stem if stems.count(path.stem) == 1 else path.name.replace(".", "_")  # or one would be lost
        try:
            found.append(Asked(name, cutout.frame(cutout.read(path), share), None))
        except ValueError as error:
            found.append(Asked(name, None, None, reason=str(error)))
    if all(one.reason for one in found):
        raise ValueError(f"none of {len(found)} files in {where} is a picture of a shape. The first: {found[0].reason}")
    return found


# -- how good ---------------------------------------------------------------------------------------------------------


def judge(made: pd.DataFrame, asked: list[Asked], items: list[Item], tools: Tools, folder: str | Path) -> pd.DataFrame:
    """F(0.05) to the true mesh of each picture of a known one, beside what others would score in its place."""
    folder, rng = Path(folder), np.random.default_rng(0)
    known = [one for one in asked if one.item]
    if not known:
        return pd.DataFrame()
    parts = splits([item.name for item in items], items[0].dataset)
    train = [item for item in items if parts[item.name] == "train" and has_latents(item, tools)]
    points = functools.cache(lambda item: sampled(*mesh.read(item.path("_normalized.obj")), rng))
    nearest = nearest_by_features(known, train, tools)
    names = made[made["sample"] == 0].set_index("picture")["name"]
    order, rows = rng.permutation(len(known)), []
    after = dict(zip(order, np.roll(order, 1), strict=True))
    for number, one in enumerate(known):
        truth = points(one.item)
        family = [item for item in train if family_of(item.name) == family_of(one.item.name)]
        stand_ins = {
            "made": made_points(folder / f"{names[one.name]}.obj", rng),
            "the VAE's own": own(one.item, tools, rng),
            "nearest by features": points(nearest[number]) if nearest else None,
            "same family": points(family[int(rng.integers(len(family)))]) if family else None,
            "a random unseen": points(known[after[number]].item),
            "itself again": sampled(*mesh.read(one.item.path("_normalized.obj")), rng),
        }
        scores = {name: nothing_is_zero(P, truth) for name, P in stand_ins.items()}
        rows.append({"picture": one.name, **scores})
    scores = pd.DataFrame(rows).sort_values("made", kind="stable", ignore_index=True)
    return kept(scores, folder / "scores.csv")


def sampled(V: np.ndarray, F: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return score.surface_points(V, F, SURFACE, rng)


def made_points(path: Path, rng: np.random.Generator) -> np.ndarray | None:
    """Points of a mesh that was made, none if it was not."""
    return sampled(*mesh.read(path), rng) if path.exists() else None


def nothing_is_zero(P: np.ndarray | None, truth: np.ndarray) -> float:
    return float("nan") if P is None else score.f_score(score.match(P, truth), 0.05)


def has_latents(item: Item, tools: Tools) -> bool:
    """Of the VAE that is at work here: 05 may have been run again with another one."""
    made = read_facts(item).get("05_latents", {}).get("parameters", {})
    return made.get("sha256") == tools.about["latents"]["sha256"] and item.path("_latent_sample.npy").exists()


def own(item: Item, tools: Tools, rng: np.random.Generator) -> np.ndarray | None:
    """What the VAE makes of the shape's own latents: no generation can be expected to be better."""
    if not has_latents(item, tools):
        return None
    tokens, longest = (tools.about["latents"][name] for name in ("tokens", "longest"))
    tail = "" if tokens == longest else f"_{tokens}"
    z = torch.from_numpy(np.load(item.path(f"_latent_sample{tail}.npy"), allow_pickle=False).astype(np.float32))
    V, F = surface(tools.shapes, z, 6)[:2]
    return sampled(V, F, rng) if len(F) else None


def nearest_by_features(known: list[Asked], train: list[Item], tools: Tools) -> list[Item]:
    """Of each picture, the training mesh with the view whose patches are most alike, each in its place."""
    center, spread = (getattr(tools.model, f"feature_{name}").cpu().numpy() for name in ("mean", "std"))

    def directions(features: np.ndarray) -> np.ndarray:
        x = ((features.astype(np.float32) - center) / spread).reshape(len(features), -1)  # (n, P x F)
        return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-9)

    Q = directions(look(known, tools))
    most, nearest = np.full(len(known), -np.inf), [None] * len(known)
    suffix = f"_view_*_{SUFFIXES[tools.about['features']['map']]}_features.npz"
    for item in train:
        names = find_inputs(item, read_facts(item), (suffix,))  # not what an earlier run of 04 has left lying there
        if not names:
            continue
        features = np.stack([dino.read_features(item.path(name)) for name in sorted(names)])
        alike = (Q @ directions(features).T).max(1)
        for k in np.flatnonzero(alike > most):
            most[k], nearest[k] = alike[k], item
    return nearest if nearest[0] else []


# -- what the notebook shows ------------------------------------------------------------------------------------------


def told(networks: Tools) -> str:
    """The words of the banner where the features are a random network's."""
    return dino.warning(networks.about["features"]["weights"])


def verdict(scores: pd.DataFrame) -> pd.DataFrame:
    """Means over the pictures of known meshes, a row each thing that could be handed out."""
    if scores.empty:
        return pd.DataFrame(columns=["handed out", "F(0.05)", "pictures"])
    means = scores.drop(columns="picture").agg(["mean", "count"]).T.reset_index()
    return means.set_axis(["handed out", "F(0.05)", "pictures"], axis=1)


def cost(made: pd.DataFrame) -> pd.DataFrame:
    """Seconds a mesh by step, and the most memory."""
    numbers = made.filter(regex="^seconds_|^peak_|^gpu_|^faces$").astype(float)
    return pd.DataFrame({"": numbers.columns, "median": numbers.median().values, "most": numbers.max().values})


def gallery(made: pd.DataFrame, asked: list[Asked], folder: str | Path, scores: pd.DataFrame, n: int = 8):
    """Pictures, what was made of them from two sides, and the truth where it is known; the worst first."""
    folder, place = Path(folder), {one.name: one for one in asked if not one.reason}
    order = list(scores["picture"]) if len(scores) else list(place)
    chosen = [order[k] for k in np.linspace(0, len(order) - 1, min(n, len(order))).round().astype(int)]
    names = made[made["sample"] == 0].set_index("picture")["name"]
    f = scores.set_index("picture")["made"] if len(scores) else {}
    meshes, titles = [], []
    for name in chosen:
        one, path = place[name], folder / f"{names[name]}.obj"
        shown = mesh.read(path) if path.exists() else "no mesh"
        meshes += [billboard(one.picture), shown, turned(shown)]
        titles += [name, f"\nF(0.05) {f[name]:.2f}" if name in f else "", "\nfrom behind"]
        if one.item:
            meshes.append(mesh.read(one.item.path("_normalized.obj")))
            titles.append("\ntruth")
    columns = 4 if place[chosen[0]].item else 3
    return picture.contact_sheet(meshes, titles, columns, alt="Pictures, what was made of them, and the truth")


def turned(shown):
    """The same from behind."""
    return shown if isinstance(shown, str) else (shown[0] * [-1, 1, -1], shown[1])


def billboard(rgba) -> tuple:
    """A picture as a thing to look at on a contact sheet: two textured triangles that face its camera."""
    V = np.array([[-1, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]], float)
    a, b = np.radians([35, -20])
    around = np.array([[np.cos(a), 0, np.sin(a)], [0, 1, 0], [-np.sin(a), 0, np.cos(a)]])
    over = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    V = V @ (around @ over).T
    corners = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], float)
    return V, np.array([[0, 1, 2], [0, 2, 3]]), (corners, np.asarray(dino.flatten(rgba)))
