"""Cameras of a dataset: one lens for all, places on a sphere, and the way from pixels to points and back.

A pose is a 4 x 4 matrix from the camera's axes to the world's: x to the right, y upwards, z to the viewer (OpenGL's).
Pixel (0, 0) is at the top left; its centre lies at (0.5, 0.5). Depth is measured along the camera's axis, not along
the ray. All views and all meshes share one lens, so that sizes and depths compare.
"""

import json
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from lib.dataset import BOX

Projection = Literal["perspective", "orthographic"]
REACH = 1.01 * np.sqrt(3) * BOX  # radius of a ball about the whole box: what lies in it is in the frame from everywhere


class Lens(NamedTuple):
    """What all cameras of a dataset have in common."""

    size: int  # pixels across the square frame
    projection: Projection
    focal: float  # pixels a unit covers at depth 1; at any depth if orthographic
    distance: float  # from the centre of the box

    @property
    def near(self) -> float:
        return self.distance - REACH

    @property
    def far(self) -> float:
        return self.distance + REACH

    @property
    def depth_scale(self) -> float:
        """Depth of one step of a 16-bit pixel. It depends on the lens alone: all meshes have the same."""
        return self.far / 65535


def lens(size: int, projection: str = "perspective", field_of_view: float = 40, distance: float = 0) -> Lens:
    """A lens that has the whole box in its frame, however the camera stands; as near as it can if distance is 0."""
    if not 8 <= size <= 8192:
        raise ValueError(f"size = {size} pixels; wanted 8 to 8192")
    if projection == "orthographic":
        least, half = 1.5 * REACH, REACH  # half of what the frame shows, in units at depth 1
    elif projection == "perspective" and 1 <= field_of_view <= 120:
        least, half = REACH / np.sin(np.radians(field_of_view / 2)), np.tan(np.radians(field_of_view / 2))
    elif projection == "perspective":
        raise ValueError(f"field_of_view = {field_of_view:g} degrees; wanted 1 to 120")
    else:
        raise ValueError(f"projection = {projection!r}; wanted 'perspective' or 'orthographic'")
    if distance and not least - 1e-9 <= distance <= 1000:
        raise ValueError(f"distance = {distance:g} leaves part of the box out of the frame; wanted {least:.3f} to 1000")
    return Lens(size, projection, float(size / 2 / half), float(distance or least))


def sphere(count: int) -> np.ndarray:
    """Directions (n, 3) spread evenly over a sphere, by the golden angle (Fibonacci's); y is up, no pole is met."""
    k = np.arange(count)
    y = 1 - (2 * k + 1) / count
    turn = k * np.pi * (3 - np.sqrt(5))
    return np.stack([np.sqrt(1 - y**2) * np.sin(turn), y, np.sqrt(1 - y**2) * np.cos(turn)], 1)


def poses(views: int, distance: float) -> np.ndarray:
    """Cameras (n, 4, 4) on a sphere that look at its centre, upright."""
    back = sphere(views)
    right = np.cross([0, 1, 0], back)
    right /= np.linalg.norm(right, axis=1, keepdims=True)
    M = np.tile(np.eye(4), (views, 1, 1))
    M[:, :3, 0], M[:, :3, 1], M[:, :3, 2], M[:, :3, 3] = right, np.cross(back, right), back, distance * back
    return M


def project(lens: Lens, pose: np.ndarray, P: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where points (n, 3) fall in the frame (n, 2), column and row in pixels, and their depth (n,)."""
    C = (P - pose[:3, 3]) @ pose[:3, :3]
    depth = -C[:, 2]
    plane = C[:, :2] / depth[:, None] if lens.projection == "perspective" else C[:, :2]
    return lens.size / 2 + lens.focal * plane * [1, -1], depth


def rays(lens: Lens, pose: np.ndarray, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Origins and directions (n, 3) through places (n, 2) of the frame; O + depth * D is where a depth lies."""
    plane = (pixels - lens.size / 2) / lens.focal * [1, -1]
    R, eye = pose[:3, :3], pose[:3, 3]
    if lens.projection == "perspective":
        return np.broadcast_to(eye, (len(plane), 3)), plane @ R[:, :2].T - R[:, 2]
    return eye + plane @ R[:, :2].T, np.broadcast_to(-R[:, 2], (len(plane), 3))


def unproject(lens: Lens, pose: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """The points (n, 3) that a depth map (h, w) shows, row by row; 0 is background."""
    row, column = np.nonzero(depth)
    O, D = rays(lens, pose, np.stack([column, row], 1) + 0.5)
    return O + depth[row, column, None] * D


# -- views.json -------------------------------------------------------------------------------------------------------

FILES = {"image": "file_path", "depth": "depth_file_path", "normal": "normal_file_path"}  # keys of a frame


def describe(lens: Lens, M: np.ndarray, stem: str, maps: list[str], **more) -> dict:
    """The cameras as a transforms.json, which tools for NeRF and Gaussian splatting read."""
    half = lens.size / 2
    about = {
        "camera_model": "PINHOLE" if lens.projection == "perspective" else "ORTHOGRAPHIC",
        "projection": lens.projection,
        **dict.fromkeys(("fl_x", "fl_y"), lens.focal),  # orthographic: pixels a unit
        **{"cx": half, "cy": half, "w": lens.size, "h": lens.size},
        **{"distance": lens.distance, "near": lens.near, "far": lens.far, "depth_scale": lens.depth_scale},
    }
    if lens.projection == "perspective":
        about["camera_angle_x"] = float(2 * np.arctan(half / lens.focal))
    frames = []
    for k, pose in enumerate(M):
        names = {FILES[name]: f"{stem}_view_{k:03}_{name}.png" for name in maps}
        frames.append({"file_path": next(iter(names.values()))} | names | {"transform_matrix": pose.tolist()})
    return about | more | {"frames": frames}


def read(path: str | Path) -> tuple[Lens, np.ndarray, dict]:
    """Lens, poses (n, 4, 4) and everything else in a views.json."""
    try:
        told = json.loads(Path(path).read_text(encoding="utf-8"))
        M = np.array([frame["transform_matrix"] for frame in told["frames"]], float).reshape(-1, 4, 4)
        return Lens(told["w"], told["projection"], told["fl_x"], told["distance"]), M, told
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no list of cameras ({error!r}). Run 03_render on this item again.") from None
