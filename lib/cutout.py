"""A person's picture made like those of the training: its shape cut out of the background, and put in their frame."""

from pathlib import Path

import numpy as np

from lib import dino

PLAIN = 24  # levels that a plain background may vary by, in each colour
LEAST = 0.005  # share of a picture that its shape must cover


def read(path: str | Path):
    """An RGBA picture from a file of any common format, upright, with the shape opaque and all else transparent."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    if not Path(path).expanduser().exists():
        raise ValueError(f"image = {str(path)!r} is not there. Give a picture's file, or a folder of them.")
    try:
        with Image.open(Path(path).expanduser()) as picture:
            picture = ImageOps.exif_transpose(picture)
            picture.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        why = "its bytes are of no known format" if isinstance(error, UnidentifiedImageError) else error
        raise ValueError(
            f"image = {str(path)!r} cannot be read as a picture ({why}). Give a PNG, JPEG or WebP."
        ) from None
    if picture.mode.startswith("I") or picture.mode == "F":
        picture = Image.fromarray(np.clip(np.asarray(picture, np.float64) / 257, 0, 255).astype(np.uint8))
    return cut_out(picture, str(path))


def cut_out(picture, name: str = "the picture"):
    """By its own alpha, else by a border of one colour, else by a remover if one is installed."""
    rgba = picture.convert("RGBA")
    alpha = np.asarray(rgba.getchannel("A"))
    if (alpha < 250).mean() < LEAST:
        alpha = by_border(np.asarray(rgba.convert("RGB"), np.int16))
        if alpha is None:
            return by_remover(rgba, name)
        rgba.putalpha(picture_of(alpha))
    if (alpha > 127).mean() < LEAST:
        raise ValueError(
            f"{name} shows next to nothing: {(alpha > 127).mean():.2%} of it is opaque, or unlike its border. Give a "
            "picture of one shape, larger, or before a background of another colour."
        )
    return rgba


def by_border(rgb: np.ndarray) -> np.ndarray | None:
    """Alpha (h, w) uint8 where the border is of one colour: what is like it and joined to it is background."""
    from scipy.ndimage import label

    border = np.concatenate([rgb[0], rgb[-1], rgb[:, 0], rgb[:, -1]])
    colour = np.median(border, 0)
    if (np.abs(border - colour).max(1) > PLAIN).mean() > 0.1:  # the shape may touch an edge of the picture
        return None
    like = np.abs(rgb - colour).max(2) <= PLAIN
    parts, _ = label(like)
    outer = np.unique(np.concatenate([parts[0], parts[-1], parts[:, 0], parts[:, -1]]))
    return np.where(np.isin(parts, outer[outer > 0]), 0, 255).astype(np.uint8)


def by_remover(rgba, name: str):
    """The optional package rembg, if it is there: nothing of ours depends on it."""
    try:
        from rembg import remove
    except ImportError:
        raise ValueError(
            f"{name} has no transparent background, and its border is of several colours. Give a picture with alpha or "
            "before a plain background, or `pip install rembg`, which is then asked to cut the shape out."
        ) from None
    return remove(rgba)


def picture_of(pixels: np.ndarray):
    from PIL import Image

    return Image.fromarray(pixels)


def frame(rgba, share: float, side: int = 512):
    """The shape in the middle of a square, its longer extent `share` of the side, as it stands in the views of 03."""
    from PIL import Image

    box = picture_of(((np.asarray(rgba.getchannel("A")) > 127) * 255).astype(np.uint8)).getbbox()
    cropped = rgba.crop(box)
    scale = share * side / max(cropped.size)
    new = tuple(max(round(extent * scale), 1) for extent in cropped.size)
    square = Image.new("RGBA", (side, side), (*dino.BACKGROUND, 0))
    square.paste(cropped.resize(new, Image.Resampling.LANCZOS), tuple((side - extent) // 2 for extent in new))
    return square


def extent(alpha: np.ndarray) -> float:
    """The longer side of what is seen, as a share of the picture's."""
    rows, columns = (np.flatnonzero((alpha > 127).any(axis)) for axis in (1, 0))
    if not len(rows):
        return 0.0
    return max((rows[-1] - rows[0] + 1) / alpha.shape[0], (columns[-1] - columns[0] + 1) / alpha.shape[1])
