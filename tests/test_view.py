"""view.py: what is written is what is read; every check of a view fires; pictures show what they say."""

import io
import json

import numpy as np
import pandas
import pytest
from PIL import Image as Pixels

from lib import camera, view
from lib.dataset import Item

LENS = camera.lens(32)


def good() -> dict:
    """A view that shows a square in the middle."""
    image, depth, normal = (
        np.zeros((32, 32, 4), np.uint8),
        np.zeros((32, 32), np.uint16),
        np.zeros((32, 32, 3), np.uint8),
    )
    image[8:24, 8:24], depth[8:24, 8:24], normal[8:24, 8:24] = (200, 30, 30, 255), 40000, (128, 128, 255)
    return {"image": image, "depth": depth, "normal": normal}


def tree(folder, count=3) -> Item:
    item = Item("cup", "", "", str(folder), 32)
    poses = camera.poses(count, LENS.distance)
    for k in range(count):
        for name, pixels in good().items():
            with item.writing(view.SUFFIX.format(k, name)) as path:
                path.write_bytes(view.png(pixels))
    item.path("_views.json").write_text(json.dumps(camera.describe(LENS, poses, item.stem, list(view.MAPS))))
    return item


def test_depth_is_kept_to_half_a_step_and_nothing_is_zero():
    z = np.random.default_rng(0).uniform(LENS.near, LENS.far, (32, 32))
    z[:4] = np.inf
    pixels = view.encode_depth(LENS, z)
    assert pixels.dtype == np.uint16 and (pixels[:4] == 0).all() and (pixels[4:] > 0).all()
    assert np.abs(pixels[4:] * LENS.depth_scale - z[4:]).max() <= LENS.depth_scale / 2 * (1 + 1e-9)


def decode_normal(pixels: np.ndarray) -> np.ndarray:
    """Normals (h, w, 3) of unit length, 0 where there is nothing."""
    N = np.where(pixels.any(-1, keepdims=True), pixels / 127.5 - 1, 0)
    return N / np.maximum(np.linalg.norm(N, axis=-1, keepdims=True), 1e-9)


def test_normals_are_kept_to_half_a_step_and_none_is_background():
    N = np.random.default_rng(0).normal(size=(1000, 3))
    N = np.r_[N / np.linalg.norm(N, axis=1, keepdims=True), np.eye(3), -np.eye(3)]
    pixels = view.encode_normal(N)
    assert pixels.dtype == np.uint8 and pixels.any(-1).all()
    assert np.abs(pixels / 127.5 - 1 - N).max() <= 0.5 / 127.5 + 1e-9
    assert np.abs(decode_normal(pixels) - N).max() < 0.01
    assert not decode_normal(np.zeros((2, 3), np.uint8)).any()


def test_a_png_is_read_as_it_was_written_by_any_reader(tmp_path):
    item = tree(tmp_path)
    for name, pixels in good().items():
        again = view.read(item, 1, name)
        assert again.dtype == pixels.dtype and np.array_equal(again, pixels)
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 65536, (32, 32)).astype(np.uint16)
    assert np.array_equal(np.asarray(Pixels.open(io.BytesIO(view.png(noise)))), noise)


def test_a_missing_or_truncated_map_names_its_file(tmp_path):
    item = tree(tmp_path)
    path = item.path("_view_001_depth.png")
    whole = path.read_bytes()
    for length in (0, 20, len(whole) // 2):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"view_001_depth\.png"):
            view.read(item, 1, "depth")
    with pytest.raises(ValueError, match=r"view_007_image\.png"):
        view.read(item, 7, "image")


# -- checks -----------------------------------------------------------------------------------------------------------


def test_a_good_view_passes():
    view.check(good(), 0)


@pytest.mark.parametrize("name", view.MAPS)
def test_a_blank_map_is_refused(name):
    maps = good()
    maps[name][:] = 0
    with pytest.raises(ValueError, match=f"view 3: the {name} map is blank"):
        view.check(maps, 3)


def test_only_an_image_may_be_blank_where_a_sheet_shows_its_edge():
    maps = good()
    maps["image"][:] = 0
    view.check(maps, 0, edge_on=True)
    maps["depth"][:] = 0
    with pytest.raises(ValueError, match="the depth map is blank"):
        view.check(maps, 0, edge_on=True)


@pytest.mark.parametrize("name", view.MAPS)
@pytest.mark.parametrize("side", [np.s_[0, 12], np.s_[31, 12], np.s_[12, 0], np.s_[12, 31]])
def test_a_map_that_touches_the_frame_is_refused(name, side):
    maps = good()
    maps[name][side] = 255
    with pytest.raises(ValueError, match=f"the {name} map is cut off, "):
        view.check(maps, 0)


def test_masks_that_differ_in_one_pixel_are_refused():
    maps = good()
    maps["normal"][12, 12] = 0
    with pytest.raises(ValueError, match="disagree in 1 "):
        view.check(maps, 0)


def test_depth_that_is_no_number_or_out_of_reach_is_refused():
    for bad in (np.nan, LENS.near - 0.01, LENS.far + 0.01):
        z = np.full((4, 4), LENS.distance)
        z[1, 1] = bad
        with pytest.raises(ValueError, match="depth"):
            view.encode_depth(LENS, z)


def test_measures_know_how_far_image_and_depth_agree():
    same, shifted = good(), good()
    shifted["image"] = np.roll(shifted["image"], 8, axis=1)  # half of the square
    facts = view.measure([same, shifted])
    assert facts["coverage"] == facts["coverage_least"] == 0.25
    assert facts["overlap"] == pytest.approx((1 + 1 / 3) / 2) and facts["overlap_least"] == pytest.approx(1 / 3)
    assert facts["overlap_view"] == 1
    assert "overlap" not in view.measure([{"image": same["image"]}])


# -- pictures ---------------------------------------------------------------------------------------------------------


def pixels(image) -> np.ndarray:
    return np.asarray(Pixels.open(io.BytesIO(image.data)).convert("RGB")).astype(int)


def test_sheets_show_every_view_of_every_map(tmp_path):
    item = tree(tmp_path)
    rows = pandas.DataFrame([{"item": item.name, "overlap_view": 2, "overlap_least": 1.0}])
    sheet = pixels(view.contact_sheet(rows, tmp_path, 32))
    assert sheet.shape == (3 * 130, 1200, 3)
    middles = sheet[30 + 50 :: 130, 50:350:100]
    assert np.abs(middles[0] - [200, 30, 30]).max() < 8 and np.abs(middles[2] - [128, 128, 255]).max() < 8
    assert np.ptp(middles[1], axis=-1).max() == 0
    apart = pixels(view.disagreement(rows, tmp_path, 32))
    assert apart.shape == (330, 1200, 3)
    assert view.disagreement(rows[["item"]], tmp_path, 32).data and view.contact_sheet(rows[:0], tmp_path, 32).data


def test_the_cloud_has_a_colour_a_view(tmp_path):
    item = tree(tmp_path)
    sheet = pixels(view.cloud(pandas.DataFrame([{"item": item.name}]), tmp_path, 32))
    for tint in view.TINTS[:3]:
        assert (np.abs(sheet - tint).max(-1) < 8).sum() > 50


def test_the_nearer_point_hides_the_farther():
    P = np.array([[0, 0, 1.0], [0, 0, -1.0], [1, 1, 0], [-1, -1, 0]])
    sheet = view.splat(P, np.uint8([[255, 0, 0], [0, 255, 0], [9, 9, 9], [9, 9, 9]]), 100, turn=0, tilt=0)
    assert tuple(sheet[50, 50]) == (255, 0, 0)
