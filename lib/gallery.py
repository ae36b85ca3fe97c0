"""Some of a run's meshes for its page, to be turned by hand: what was made beside its picture and the truth.

    python -m lib.gallery outputs/demo

Batch calls it after each section, in a process of its own: a reader that hangs or crashes costs the gallery, not the
run. The meshes lie in <run>/gallery as small .glb for other programs, and again as .js for the page: a page opened
from a disk may load scripts, but no other files (viewer.js says how). Still pictures stand in for both.
"""

import base64
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

from lib.dataset import Item, write_text, writing
from lib.tables import number, rows

FACES = 5000  # of a mesh: some 0.1 MB as GLB, and smooth at the size of a card
LARGEST = 4_000_000  # faces of a mesh that is read at all, as in report.py
CARDS = {"generated": 8, "reconstructed": 4, "closed": 6}
SIDE = 340  # pixels of a still picture, twice its size on a page
PATIENCE = 600  # seconds that all of it may take
VERSION = 1  # of what is made of the same meshes
OURS = re.compile(r"\d\d_(made|truth|picture)\.(glb|js|png)|viewer\.js|gallery\.json")
COLOURS = {"made": "#A9BCCF", "truth": "#C9C4BA"}  # picture.py's clay and stone


# -- which meshes -----------------------------------------------------------------------------------------------------


def wanted(run: Path, sections: dict) -> list[dict]:
    """Groups of cards, by the places that the stages write to: title, words, and the files of each card."""
    groups = [generated(run, sections), reconstructed(run, sections)]
    if not any(group["cards"] for group in groups):
        groups = [closed(run, sections)]
    return [group for group in groups if group["cards"]]


def generated(run: Path, sections: dict) -> dict:
    """<run>/07_generate/<name>.glb, the picture beside it; <mesh>_view_<NNN> names the mesh that it shows.

    Those of the last run of 07 if it wrote down which: others may lie there from before. The worst come first.
    """
    folder, cards = run / "07_generate", []
    scores = {row.get("picture"): number(row.get("made")) for row in rows(folder / "scores.csv")}
    listed = [folder / f"{row['name']}.glb" for row in rows(folder / "made.csv") if row.get("name")]
    found = [path for path in listed if path.is_file()] or sorted(folder.glob("*.glb"))
    rank = {name: place for place, name in enumerate(scores)}
    for made in spread(sorted(found, key=lambda path: rank.get(path.stem, len(rank))), CARDS["generated"]):
        shown = re.fullmatch(r"(.+)_view_\d{3}(_\d+)?", made.stem)
        truth = normalised(shown[1], sections.get("07_generate")) if shown else None
        own = re.sub(r"_\d+$", "", made.stem) if shown and shown[2] else made.stem
        pictures = [path for name in (made.stem, own) if (path := made.with_name(f"{name}.png")).is_file()]
        told = f"F(0.05) {scores[made.stem]:.2f}" if scores.get(made.stem) is not None else ""
        cards.append(card(made.stem, told, made=made, truth=truth, picture=next(iter(pictures), None)))
    words = (
        "The picture that came in, the mesh that 07 made of it, and the true one where it is known; the worst first."
    )
    return {"title": "Made of pictures", "words": words, "cards": cards}


def reconstructed(run: Path, sections: dict) -> dict:
    """<run>/11_train_vae/reconstructions/<mesh>.obj; the scores beside them put the worst first."""
    folder = run / "11_train_vae" / "reconstructions"
    made = {path.stem: path for path in sorted(folder.glob("*.obj")) if "_step_" not in path.stem}
    scores = {row["item"]: row for row in rows(folder.parent / "scores.csv") if row.get("item") in made}
    order = [*scores, *(name for name in made if name not in scores)]
    cards = []
    for name in spread(order, CARDS["reconstructed"]):
        numbers = [(key, number(value)) for key, value in list(scores.get(name, {}).items())[1:4]]
        told = ", ".join(f"{key} {value:.2f}" for key, value in numbers if value is not None)
        cards.append(card(name, told, made=made[name], truth=normalised(name, sections.get("11_train_vae"))))
    words = "Shapes that 11 never saw while it learned, there and back through their latents; the worst first."
    return {"title": "There and back", "words": words, "cards": cards}


def closed(run: Path, sections: dict) -> dict:
    """What 01 made, where nothing was learned yet."""
    section = sections.get("01_watertight")
    done = [row["item"] for row in rows(run / "01_watertight.csv") if row.get("status") in ("done", "kept")]
    paths = {name: path for name in spread(done, CARDS["closed"]) if (path := normalised(name, section))}
    cards = [card(name, made=path) for name, path in paths.items()]
    return {"title": "Closed meshes", "words": "What 01 made of the meshes that came in.", "cards": cards}


def card(name: str, told: str = "", picture: Path | None = None, **meshes: Path | None) -> dict:
    files = {kind: path for kind, path in meshes.items() if path}
    return {"name": name, "told": told, "picture": picture, "meshes": files}


def normalised(name: str, section: dict | None) -> Path | None:
    """The mesh of 01 in the dataset that a section was given, if it is there."""
    given = (section or {}).get("parameters", {})
    if not {"dataset", "resolution"} <= given.keys():
        return None
    path = Item(name, "", "", str(given["dataset"]), given["resolution"]).path("_normalized.obj")
    return path if path.is_file() else None


def spread(things: list, most: int) -> list:
    """So many, evenly from the first to the last."""
    chosen = np.linspace(0, len(things) - 1, min(most, len(things))).round().astype(int)
    return [things[k] for k in chosen]


# -- what the page gets -----------------------------------------------------------------------------------------------


def refresh(run: Path, sections: dict) -> None:
    """Build the gallery anew if its meshes are new; whatever goes wrong is told, and costs no run."""
    try:
        groups = wanted(run, sections)
        if not groups or manifest(run).get("of") == origin(groups):
            return
        command = [sys.executable, "-m", "lib.gallery", str(run)]
        subprocess.run(command, timeout=PATIENCE, check=True, capture_output=True, text=True)
    except subprocess.TimeoutExpired:
        sys.stderr.write(f"no gallery of {run}: it took over {PATIENCE} s. To try again: python -m lib.gallery {run}\n")
    except Exception as error:
        said = (getattr(error, "stderr", "") or str(error)).strip().splitlines()[-1:]
        sys.stderr.write(f"no gallery of {run}: {' '.join(said)}. To try again: python -m lib.gallery {run}\n")


def build(run: Path, sections: dict) -> None:
    """Write <run>/gallery: meshes, still pictures, the viewer, and last the list that the page reads."""
    groups, folder = wanted(run, sections), run / "gallery"
    of = origin(groups)
    folder.mkdir(exist_ok=True)
    with writing(folder / "viewer.js") as beside:
        shutil.copyfile(Path(__file__).with_name("viewer.js"), beside)
    count = 0
    for group in groups:
        for entry in group["cards"]:
            count += 1
            fill(entry, folder, f"{count:02d}")
    write_text(folder / "gallery.json", json.dumps({"of": of, "groups": groups}, indent=1))
    kept = {"viewer.js", "gallery.json", *listed(groups)}
    for path in folder.iterdir():
        if OURS.fullmatch(path.name) and path.name not in kept:
            path.unlink()


def fill(entry: dict, folder: Path, key: str) -> None:
    """Make a card's files, and replace the paths in it by their names; what cannot be read is said on the card."""
    entry["picture"] = copy_picture(entry["picture"], folder / f"{key}_picture.png")
    shapes, entry["why"] = {}, []
    for kind, path in entry.pop("meshes").items():
        try:
            shapes[kind] = read(path)
        except ValueError as error:
            entry["why"].append(f"{kind}: {error}".replace(str(path), path.name))
    V = np.concatenate([V for V, _ in shapes.values()]) if shapes else np.zeros((1, 3))
    middle = (V.min(0) + V.max(0)) / 2
    radius = float(np.linalg.norm(V - middle, axis=1).max())
    entry |= {"middle": middle.tolist(), "radius": radius, "meshes": []}
    for kind, (V, F) in shapes.items():
        shown = write(V, F, folder / f"{key}_{kind}", kind, middle, radius)
        entry["meshes"].append({"file": f"{key}_{kind}", "kind": kind, "faces": len(F), "shown": shown})


def read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    from lib import mesh

    V, F = mesh.read(path)
    if len(F) > LARGEST:
        raise ValueError(f"{path} has {len(F):,} faces; no more than {LARGEST:,} are shown")
    return V, F


def write(V: np.ndarray, F: np.ndarray, target: Path, kind: str, middle: np.ndarray, radius: float) -> int:
    """A mesh as .glb, the same as .js, and a still picture: how many faces are left of it."""
    from lib import mesh, picture
    from lib.simplify import simplify

    few, faces = simplify(V, F, FACES)
    with writing(target.with_suffix(".glb")) as beside:
        mesh.write(beside, few, faces)
    write_text(target.with_suffix(".js"), script(target.with_suffix(".glb")))
    with writing(target.with_suffix(".png")) as beside:
        picture.cast([(V, F, COLOURS[kind])], camera(middle, radius), SIDE, clear=True).quantize(64, method=2).save(
            beside, "png"
        )
    return len(faces)


def script(glb: Path) -> str:
    """A GLB as a page loads it."""
    return f'mesh("{glb.stem}", "{base64.b64encode(glb.read_bytes()).decode()}");\n'


def unscripted(text: str) -> bytes:
    """The GLB again."""
    return base64.b64decode(text.rpartition(', "')[2].partition('"')[0])


def camera(middle: np.ndarray, radius: float) -> list[np.ndarray]:
    """Where viewer.js begins, as picture.py takes it: position, focal point, upward direction."""
    from lib.picture import LENS

    a, b, half = np.radians([35, 20, LENS / 2])
    back = np.array([np.sin(a) * np.cos(b), np.sin(b), np.cos(a) * np.cos(b)])
    right = np.array([np.cos(a), 0, -np.sin(a)])
    return [middle + back * radius / np.sin(half), middle, np.cross(back, right)]


def copy_picture(source: Path | None, target: Path) -> str:
    """A picture, made small; the name of the copy, or nothing where there is none to see."""
    from PIL import Image

    if not source:
        return ""
    try:
        with Image.open(source) as image, writing(target) as beside:
            image.thumbnail((SIDE, SIDE))
            image.save(beside, "png")
    except (OSError, ValueError, Image.DecompressionBombError):
        return ""
    return target.name


def origin(groups: list[dict]) -> list:
    """What a gallery is made of: it is built again if any of it has changed."""
    paths = [
        path for group in groups for entry in group["cards"] for path in (entry["picture"], *entry["meshes"].values())
    ]
    seen = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in paths if path]
    return [VERSION, FACES, *map(list, seen)]


def listed(groups: list[dict]) -> set[str]:
    """The names of all files of the cards."""
    entries = [entry for group in groups for entry in group["cards"]]
    files = {
        f"{shape['file']}{suffix}"
        for entry in entries
        for shape in entry["meshes"]
        for suffix in (".glb", ".js", ".png")
    }
    return files | {entry["picture"] for entry in entries if entry["picture"]}


def manifest(run: Path) -> dict:
    """What build() wrote down, if it is whole."""
    try:
        found = json.loads((run / "gallery" / "gallery.json").read_text(encoding="utf-8"))
        listed(found["groups"])
        return found
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    build(folder, json.loads((folder / "run.json").read_text(encoding="utf-8"))["sections"])
