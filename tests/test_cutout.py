"""Pictures as people have them, made like those of the training."""

import sys

import numpy as np
import pytest
from PIL import Image

from lib import cutout

H, W = 90, 120


def disc(background=(255, 255, 255), noise=0, alpha=False, at=(60, 40), radius=20):
    """A red disc, and where it is."""
    y, x = np.indices((H, W))
    far = np.hypot(x - at[0], y - at[1])
    inside = far < radius
    pixels = np.where(inside[..., None], (200, 30, 30), background).astype(float)
    pixels += np.random.default_rng(0).uniform(-noise, noise, pixels.shape) * ~inside[..., None]
    pixels = pixels.clip(0, 255).astype(np.uint8)
    if alpha:
        pixels = np.dstack([pixels, np.where(inside, 255, 0).astype(np.uint8)])
    return Image.fromarray(pixels), inside


def opaque(picture) -> np.ndarray:
    return np.asarray(picture.getchannel("A")) > 127


def test_alpha_is_believed():
    picture, inside = disc(alpha=True)
    assert (opaque(cutout.cut_out(picture)) == inside).all()


@pytest.mark.parametrize("background, noise", [((255, 255, 255), 0), ((20, 40, 90), 6), ((128, 128, 128), 10)])
def test_a_plain_background_is_cut_away(background, noise):
    picture, inside = disc(background, noise)
    assert (opaque(cutout.cut_out(picture)) == inside).mean() > 0.999


def test_what_looks_like_the_background_inside_the_shape_stays():
    picture, inside = disc()
    pixels = np.array(picture)
    pixels[35:45, 55:65] = 255  # a white label on it
    assert (opaque(cutout.cut_out(Image.fromarray(pixels))) == inside).all()


def test_a_shape_may_touch_the_edge():
    picture, inside = disc(at=(60, 12))
    assert (opaque(cutout.cut_out(picture)) == inside).all()


def test_a_busy_background_asks_for_help(monkeypatch):
    monkeypatch.setitem(sys.modules, "rembg", None)
    pixels = np.random.default_rng(0).integers(0, 256, (H, W, 3), np.uint8)
    with pytest.raises(ValueError, match=r"border is of several colours. .*pip install rembg"):
        cutout.cut_out(Image.fromarray(pixels), "cat.png")


def test_a_picture_of_nothing_is_refused():
    with pytest.raises(ValueError, match="next to nothing"):
        cutout.cut_out(Image.new("RGB", (50, 50), "white"))
    with pytest.raises(ValueError, match="next to nothing"):
        cutout.cut_out(Image.new("RGBA", (50, 50)))


@pytest.mark.parametrize(
    "suffix, mode", [("png", "RGBA"), ("png", "P"), ("jpg", "RGB"), ("webp", "RGB"), ("bmp", "RGB"), ("gif", "P")]
)
def test_any_common_file_is_read(tmp_path, suffix, mode):
    picture, inside = disc(alpha=mode == "RGBA")
    picture.convert(mode).save(tmp_path / f"a.{suffix}")
    assert (opaque(cutout.read(tmp_path / f"a.{suffix}")) == inside).mean() > 0.99


def test_a_turned_photo_stands_upright(tmp_path):
    picture, inside = disc()
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    picture.save(tmp_path / "a.jpg", exif=exif)
    assert (opaque(cutout.read(tmp_path / "a.jpg")) == np.rot90(inside, -1)).mean() > 0.99


@pytest.mark.parametrize("content", [b"", b"GIF89a nothing", b"\x89PNG\r\n\x1a\n" + b"x" * 99])
def test_what_is_no_picture(tmp_path, content):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(ValueError, match=r"a.png' cannot be read as a picture .* Give a PNG"):
        cutout.read(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"none.png' is not there\. Give a picture's file, or a folder"):
        cutout.read(tmp_path / "none.png")


@pytest.mark.parametrize("share", [0.3, 0.7])
@pytest.mark.parametrize("at", [(30, 30), (90, 60)])
def test_the_frame_is_that_of_the_views(share, at):
    framed = cutout.frame(disc(alpha=True, at=at)[0], share, 200)
    alpha = np.asarray(framed.getchannel("A"))
    assert cutout.extent(alpha) == pytest.approx(share, abs=0.015)
    y, x = np.nonzero(alpha > 127)
    assert abs(x.mean() - 99.5) < 1.5 and abs(y.mean() - 99.5) < 1.5
    assert cutout.extent(np.zeros((5, 5))) == 0
