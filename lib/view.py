"""Maps of a view as files: what their pixels mean, what is checked before they are published, and how to read them."""

import io

import numpy as np

from lib import camera, picture
from lib.dataset import Item

MAPS = ("image", "depth", "normal")
SUFFIX = "_view_{:03}_{}.png"
MASKS = {  # where a map shows the mesh
    "image": lambda pixels: pixels[..., 3] > 0,
    "depth": lambda pixels: pixels > 0,
    "normal": lambda pixels: pixels.any(-1),
}


def encode_depth(lens: camera.Lens, depth: np.ndarray) -> np.ndarray:
    """16-bit pixels: depth / depth_scale, 0 where there is nothing (depth is inf)."""
    seen = depth != np.inf
    z = depth[seen]
    if not ((z >= lens.near) & (z <= lens.far)).all():  # nan is neither
        raise ValueError(
            f"depth from {z.min():g} to {z.max():g}; wanted {lens.near:g} to {lens.far:g}, where the box is"
        )
    pixels = np.zeros(depth.shape, np.uint16)
    pixels[seen] = np.round(z / lens.depth_scale)
    return pixels


def encode_normal(N: np.ndarray) -> np.ndarray:
    """8-bit pixels: (n + 1) * 127.5; never black, which is the background."""
    return np.round((N + 1) * 127.5).astype(np.uint8)


def png(pixels: np.ndarray) -> bytes:
    """A PNG without loss: runs suit such maps, and take a third of the usual time for as few bytes."""
    from PIL import Image as Pixels

    buffer = io.BytesIO()
    Pixels.fromarray(pixels).save(buffer, "png", compress_level=6, compress_type=3)
    return buffer.getvalue()


def read(item, k: int, name: str) -> np.ndarray:
    """One map: image (h, w, 4) uint8, depth (h, w) uint16, normal (h, w, 3) uint8."""
    from PIL import Image as Pixels

    path = item.path(SUFFIX.format(k, name))
    try:
        with Pixels.open(path) as picture:
            return np.asarray(picture)
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"{path} is no whole picture ({error}). Run 03_render on this item again.") from None


def check(maps: dict, k: int, wanted: list | tuple = (), edge_on: bool = False) -> None:
    """Raise ValueError unless a view has all wanted maps, shows something, all of it, and its maps agree where.

    The image may be blank where a sheet shows its edge.
    """
    if lacks := [name for name in wanted if name not in maps]:
        raise ValueError(f"view {k} lacks {', '.join(lacks)}")
    shows = {name: MASKS[name](pixels) for name, pixels in maps.items()}
    for name, mask in shows.items():
        if not mask.any() and not (edge_on and name == "image"):
            raise ValueError(
                f"view {k}: the {name} map is blank; is the renderer sound? See `renderer` in the notebook"
            )
        rim = np.r_[mask[0], mask[-1], mask[:, 0], mask[:, -1]]
        if rim.any():
            raise ValueError(
                f"view {k}: the {name} map is cut off, {rim.sum()} pixels of its rim are not empty; "
                "the mesh is larger than the box of 01_watertight"
            )
    if {"depth", "normal"} <= shows.keys() and (differ := (shows["depth"] != shows["normal"]).sum()):
        raise ValueError(f"view {k}: depth and normal maps disagree in {differ} pixels about what is background")


def measure(drawn: list[dict]) -> dict:
    """Facts of a mesh's maps: how much of the frame they fill, and how far image and depth agree on what is there."""
    solid = "depth" if "depth" in drawn[0] else "normal" if "normal" in drawn[0] else "image"
    shares = [MASKS[solid](one[solid]).mean() for one in drawn]
    facts = {"coverage": float(np.mean(shares)), "coverage_least": float(np.min(shares))}
    if solid != "image" and "image" in drawn[0]:
        each = [overlap(one["image"], MASKS[solid](one[solid])) for one in drawn]
        facts |= {"overlap": float(np.mean(each)), "overlap_least": min(each), "overlap_view": int(np.argmin(each))}
    return facts


def overlap(image: np.ndarray, mask: np.ndarray) -> float:
    """How far image and mask show the same pixels: those in both, of those in either."""
    covered = image[..., 3] > 127
    return float((covered & mask).sum() / max((covered | mask).sum(), 1))


# -- what the notebook shows ------------------------------------------------------------------------------------------


def shown(pixels: np.ndarray, name: str, lens: camera.Lens, depth_scale: float):
    """A map as an RGB picture on paper: near is bright, far is dark."""
    from PIL import Image as Pixels

    if name == "depth":
        z = pixels * depth_scale
        grey = np.clip(255 - 225 * (z - lens.near) / (lens.far - lens.near), 0, 255)
        mask = pixels > 0
        pixels = np.dstack([grey] * 3 + [255 * mask]).astype(np.uint8)
    elif name == "normal":
        pixels = np.dstack([pixels, 255 * pixels.any(-1)]).astype(np.uint8)
    sheet = Pixels.new("RGBA", pixels.shape[1::-1], picture.PAPER)
    sheet.alpha_composite(Pixels.fromarray(pixels))
    return sheet.convert("RGB")


def opened(name: str, dataset: str, resolution: int):
    """An item by its name, with lens, poses and what else its views.json tells."""
    item = Item(name, "", "", str(dataset), resolution)
    return item, *camera.read(item.path("_views.json"))


def contact_sheet(rows, dataset: str, resolution: int, columns: int = 12):
    """All views of each item of these rows: the images first, then depth, then normals."""
    from PIL import Image as Pixels

    if not len(rows):
        return picture.placard("Nothing to show.")
    side, bands = picture.WIDTH // columns, []
    for name in rows["item"]:
        item, lens, poses, told = opened(name, dataset, resolution)
        for kind in maps_of(told):
            band = Pixels.new("RGB", (picture.WIDTH, side * -(-len(poses) // columns) + 30), picture.PAPER)
            picture.label(band, (8, 6), f"{name}: {kind}", picture.WIDTH - 16)
            for k in range(len(poses)):
                cell = shown(read(item, k, kind), kind, lens, told["depth_scale"]).resize((side, side), Pixels.BOX)
                band.paste(cell, (k % columns * side, 30 + k // columns * side))
            bands.append(band)
    return picture.png(stacked(bands), f"All views of {', '.join(rows['item'])}")


def maps_of(told: dict) -> list[str]:
    return [name for name, key in camera.FILES.items() if told["frames"][0].get(key, "").endswith(f"_{name}.png")]


def stacked(bands: list):
    from PIL import Image as Pixels

    sheet = Pixels.new("RGB", (picture.WIDTH, sum(band.height for band in bands)), picture.PAPER)
    top = 0
    for band in bands:
        sheet.paste(band, (0, top))
        top += band.height
    return sheet


def disagreement(rows, dataset: str, resolution: int, columns: int = 4):
    """Of each item the view where image and depth agree least: image, depth, normal, and magenta where only one is."""
    from PIL import Image as Pixels
    from PIL import ImageColor

    if not len(rows) or "overlap_view" not in rows:
        return picture.placard("Nothing to show: there are no images, or no depth and normals.")
    side, bands = picture.WIDTH // columns, []
    for row in rows.to_dict("records"):
        item, lens, _, told = opened(row["item"], dataset, resolution)
        k, solid = int(row["overlap_view"]), next(name for name in ("depth", "normal") if name in maps_of(told))
        cells = [shown(read(item, k, name), name, lens, told["depth_scale"]) for name in maps_of(told)]
        covered, mask = read(item, k, "image")[..., 3] > 127, MASKS[solid](read(item, k, solid))
        colours = [ImageColor.getrgb(colour) for colour in (picture.PAPER, picture.ACCENT, picture.CLAY)]
        cells.append(Pixels.fromarray(np.uint8(colours)[covered * 1 + mask]))
        band = Pixels.new("RGB", (picture.WIDTH, side + 30), picture.PAPER)
        picture.label(band, (8, 6), f"{row['item']}: view {k}, overlap {row['overlap_least']:.3f}", picture.WIDTH - 16)
        for n, cell in enumerate(cells):
            band.paste(cell.resize((side, side), Pixels.BOX), (n * side, 30))
        bands.append(band)
    return picture.png(stacked(bands), "The views where image and depth agree least")


def cloud(rows, dataset: str, resolution: int, views: int = 6, side: int = 600):
    """Points that the depth maps of several views show, each view in its colour, seen from two places."""
    from PIL import Image as Pixels

    bands = []
    for name in rows["item"]:
        item, lens, poses, told = opened(name, dataset, resolution)
        if "depth" not in maps_of(told):
            continue
        chosen = np.unique(np.linspace(0, len(poses) - 1, min(views, len(poses))).astype(int))
        P = [camera.unproject(lens, poses[k], read(item, k, "depth") * told["depth_scale"]) for k in chosen]
        C = np.repeat(TINTS[np.arange(len(P)) % len(TINTS)], [len(p) for p in P], axis=0)
        band = Pixels.new("RGB", (picture.WIDTH, side + 30), picture.PAPER)
        picture.label(band, (8, 6), f"{name}: points of views {', '.join(map(str, chosen))}", picture.WIDTH - 16)
        for n, turn in enumerate((35, 215)):
            band.paste(Pixels.fromarray(splat(np.concatenate(P), C, side, turn)), (n * side, 30))
        bands.append(band)
    if not bands:
        return picture.placard("Nothing to show: there are no depth maps.")
    return picture.png(stacked(bands), "Unprojected depth of several views")


TINTS = np.uint8([[228, 0, 155], [74, 123, 166], [224, 161, 0], [62, 142, 126], [120, 94, 180], [80, 80, 80]])


def splat(P: np.ndarray, C: np.ndarray, side: int, turn: float, tilt: float = 20) -> np.ndarray:
    """Points (n, 3) in their colours (n, 3) as a picture (side, side, 3); the nearest to the viewer wins."""
    from PIL import ImageColor

    a, b = np.radians([turn, tilt])
    back = np.array([np.sin(a) * np.cos(b), np.sin(b), np.cos(a) * np.cos(b)])
    right = np.array([np.cos(a), 0, -np.sin(a)])
    X = (P - (P.min(0) + P.max(0)) / 2) @ np.stack([right, np.cross(back, right), back]).T
    at = np.floor(side / 2 + X[:, :2] / np.abs(X[:, :2]).max() * [0.47, -0.47] * side).astype(int)
    sheet = np.full((side, side, 3), ImageColor.getrgb(picture.PAPER), np.uint8)
    order = np.argsort(X[:, 2], kind="stable")
    for dx, dy in ((0, 0), (0, 1), (1, 0), (1, 1)):  # two pixels wide
        sheet[np.minimum(at[order, 1] + dy, side - 1), np.minimum(at[order, 0] + dx, side - 1)] = C[order]
    return sheet
