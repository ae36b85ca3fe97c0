"""Views of every mesh from a sphere of cameras: an image of the source, depth and normals of the closed mesh.

An engine only says which face a pixel sees and how far away it is: OpenGL draws each face in the colour of its number,
embree casts a ray a pixel. All else is computed from that, so their files differ in a few pixels on edges at most.
"""

import functools
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import pandas

from lib import camera, field, mesh, paint, picture, view
from lib.claims import Claims
from lib.clock import Clock
from lib.dataset import read_facts
from lib.view import cloud, contact_sheet, disagreement, opened

__all__ = ["check", "cloud", "contact_sheet", "depths", "disagreement", "render"]  # what the notebook asks for

Engine = Literal["auto", "opengl", "rays"]
Axes = Literal["world", "camera"]
Shading = Literal["flat", "smooth"]
FINER = 2  # samples along each side of an image's pixel: smooth edges
NUMBERS = (1 << 24) - 1  # faces that a colour of 24 bits can tell apart
SOFTWARE = ("llvmpipe", "softpipe", "swrast", "swiftshader", "swr", "software")  # renderers that use no GPU


def render(
    item,
    views: int = 36,
    size: int = 256,
    projection: camera.Projection = "perspective",
    field_of_view: float = 40.0,
    distance: float = 0.0,
    maps: list | tuple = view.MAPS,
    normals: Axes = "world",
    shading: Shading = "flat",
    engine: Engine = "auto",
    gpu: bool = False,
) -> dict:
    """Draw an item's views, check each, write them and their cameras; returns the facts."""
    lens = {"projection": projection, "field_of_view": field_of_view, "distance": distance}
    check(engine=engine, gpu=gpu, views=views, size=size, maps=maps, normals=normals, shading=shading, **lens)
    lens = camera.lens(size, **lens)
    poses = camera.poses(views, lens.distance)
    clock, facts, edge_on = Clock(), {"views": views}, []
    drawn = [{} for _ in poses]
    if {"depth", "normal"} & set(maps):
        V, F = mesh.read(item.path("_normalized.obj"))
        clock("read")
        facts |= {"faces": len(F), "engine_maps": choose(engine, gpu, len(F), size)}
        draw_maps(drawn, V, F, lens, poses, maps, normals, shading, ENGINES[facts["engine_maps"]])
        clock("maps")
    if "image" in maps:
        skin = paint.skin(source(item))
        clock("read_source")
        facts |= {"faces_source": len(skin.F), "engine_image": choose(engine, gpu, len(skin.F), FINER * size)}
        facts |= {"textures": len(skin.textures)}
        edge_on = draw_images(drawn, skin, lens, poses, ENGINES[facts["engine_image"]])
        facts["edge_on"] = len(edge_on)
        clock("image")
    for k, one in enumerate(drawn):
        view.check(one, k, maps, edge_on=k in edge_on and len(edge_on) < views)
    facts |= view.measure(drawn)
    clock("check")
    facts["bytes"] = write(item, drawn, lens, poses, {"normals": normals, "shading": shading})
    clock("write")
    used = {facts[name] for name in ("engine_maps", "engine_image") if name in facts}
    return facts | {"renderer": opengl(gpu) if "opengl" in used else "embree"} | clock.seconds


def check(
    *,
    engine: Engine = "auto",
    gpu: bool = False,
    views: int = 1,
    size: int = 256,
    maps: list | tuple = view.MAPS,
    normals: Axes = "world",
    shading: Shading = "flat",
    **lens,
) -> str:
    """Raise ValueError for parameters that cannot be met here; the name of what draws."""
    camera.lens(size, **lens)
    if not 1 <= views <= 1000:
        raise ValueError(f"views = {views}; wanted 1 to 1000, as names have three digits")
    if isinstance(maps, str) or not maps or not set(maps) <= set(view.MAPS):
        raise ValueError(f"maps = {maps!r}; wanted a list of one or more of {', '.join(view.MAPS)}")
    for name, value, choices in (("normals", normals, Axes), ("shading", shading, Shading), ("engine", engine, Engine)):
        if value not in get_args(choices):
            raise ValueError(f"{name} = {value!r}; wanted one of {', '.join(get_args(choices))}")
    if engine == "rays":
        if gpu:
            raise ValueError('engine = "rays" uses no GPU; set gpu = false, or engine = "opengl"')
        return "embree"
    try:
        return opengl(gpu)
    except RuntimeError:
        if gpu or engine == "opengl":
            raise ValueError(f'{picture.NO_OPENGL} Or set engine = "rays" and gpu = false.') from None
        return "embree, as there is no OpenGL"


def source(item) -> list[tuple]:
    """The parts of an item's original, with their paint, moved to where 01 put them."""
    facts = next((r["facts"] for r in read_facts(item).values() if "_normalized.obj" in r["outputs"]), {})
    if not {"center", "scale"} <= facts.keys():
        raise ValueError(f"{item.path('_facts.json')} has no center and scale. Run 01_watertight on this item again.")
    center, scale = np.array(facts["center"]), facts["scale"]
    return [((V - center) / scale, F, look) for V, F, look in picture.original(item.source)]


def write(item, drawn: list[dict], lens, poses, more: dict) -> int:
    """The maps as PNGs, then the cameras; how many bytes they take."""
    for k, one in enumerate(drawn):
        for name, pixels in one.items():
            with item.writing(view.SUFFIX.format(k, name)) as path:
                path.write_bytes(view.png(pixels))
    with item.writing("_views.json") as path:
        told = camera.describe(lens, poses, item.stem, list(drawn[0]), **more)
        path.write_text(json.dumps(told, indent=1), encoding="utf-8")
    return sum(output["size"] for output in item.written.values())


# -- maps -------------------------------------------------------------------------------------------------------------


def draw_maps(drawn: list[dict], V, F, lens, poses, maps, normals: str, shading: str, engine: Callable) -> None:
    """Depth and normals of a mesh, both from one look at it, added to what is drawn of each view."""
    N = paint.flat(V, F)[0] if shading == "flat" else paint.smooth(V, F)
    rows = paint.gradients(V, F) if shading == "smooth" else None
    look = engine(V, F)
    for one, pose in zip(drawn, poses, strict=True):
        face, depth = look(lens, pose)
        seen = face >= 0
        if "depth" in maps:
            one["depth"] = view.encode_depth(lens, depth)
        if "normal" in maps:
            n = N[face[seen]]
            if shading == "smooth":
                n = np.einsum("nk,nkc->nc", paint.barycentric(rows[face[seen]], points(lens, pose, depth)), n)
                n /= np.maximum(np.linalg.norm(n, axis=1, keepdims=True), 1e-9)
            one["normal"] = np.zeros((*face.shape, 3), np.uint8)
            one["normal"][seen] = view.encode_normal(n if normals == "world" else n @ pose[:3, :3])


def draw_images(drawn: list[dict], skin: paint.Skin, lens, poses, engine: Callable) -> list[int]:
    """Pictures of a painted mesh, RGBA; alpha is how much of a pixel it covers.

    Returns the views that are blank because there is nothing to see, by the word of a second engine: a flat sheet that
    shows its edge.
    """
    fine = lens._replace(size=FINER * lens.size, focal=FINER * lens.focal)
    detail = paint.levels(skin, fine.focal / (1 if lens.projection == "orthographic" else lens.distance))
    N, rows, look = paint.flat(skin.V, skin.F)[0], paint.gradients(skin.V, skin.F), engine(skin.V, skin.F)
    edge_on = []
    for k, (one, pose) in enumerate(zip(drawn, poses, strict=True)):
        face, depth = look(fine, pose)
        seen = face >= 0
        if not seen.any() and (by_rays(skin.V, skin.F)(fine, pose)[0] < 0).all():
            edge_on.append(k)
        face, P = face[seen], points(fine, pose, depth)
        n, colours = paint.look(skin, detail, face, paint.barycentric(rows[face], P))
        away = P - pose[:3, 3] if lens.projection == "perspective" else np.broadcast_to(-pose[:3, 2], P.shape)
        n[np.einsum("nc,nc->n", N[face], away) > 0] *= -1  # a face that is seen from behind is lit on that side
        samples = np.zeros((*seen.shape, 4), np.float32)
        samples[seen, :3] = paint.lit(colours, n @ pose[:3, :3])
        samples[seen, 3] = 255
        mean = sum(samples[i::FINER, k::FINER] for i in range(FINER) for k in range(FINER)) / FINER**2
        mean[..., :3] *= 255 / np.maximum(mean[..., 3:], 1)  # colour of what is covered alone
        one["image"] = np.round(mean).astype(np.uint8)
    return edge_on


def points(lens, pose, depth: np.ndarray) -> np.ndarray:
    """Where in the world the pixels look that see something, (n, 3)."""
    return camera.unproject(lens, pose, np.where(np.isfinite(depth), depth, 0))


# -- engines ----------------------------------------------------------------------------------------------------------


def choose(engine: str, gpu: bool, faces: int, size: int) -> str:
    """The engine that is faster for so many faces in a frame of this size."""
    if engine == "opengl" and faces > NUMBERS:
        raise ValueError(f'{faces:,} faces are more than OpenGL draws here ({NUMBERS:,}); set engine = "auto"')
    if engine != "auto":
        return engine
    try:
        software = is_software(opengl(gpu))
    except RuntimeError:
        return "rays"
    return "rays" if faces > NUMBERS or (software and faces > 0.12 * size**2) else "opengl"


def by_rays(V: np.ndarray, F: np.ndarray) -> Callable:
    """look(lens, pose) -> which face each pixel sees (h, w), -1 = none, and its depth (h, w), inf = none."""
    surface = field.prepare(V, F, rays_only=True)
    cells = field.unpack(field.unique(field.pack(np.floor(8 * V))))
    hull = (cells[:, None] + field.OFFSETS).reshape(-1, 3) / 8  # coarse, and all of the mesh lies within

    def look(lens, pose):
        at, _ = camera.project(lens, pose, hull)
        left, top = np.clip(np.floor(at.min(0)), 0, lens.size - 1).astype(int)
        right, bottom = np.clip(np.ceil(at.max(0)), 1, lens.size).astype(int)
        face, depth = np.full((lens.size,) * 2, -1), np.full((lens.size,) * 2, np.inf)
        column, row = np.meshgrid(np.arange(left, right), np.arange(top, bottom))
        pixels = np.stack([column.ravel(), row.ravel()], 1) + 0.5
        t, seen = field.hits(surface, *camera.rays(lens, pose, pixels))
        face[top:bottom, left:right], depth[top:bottom, left:right] = seen.reshape(row.shape), t.reshape(row.shape)
        return face, depth

    return look


NUMBER = """//VTK::Light::Impl
int number = gl_PrimitiveID + 1;
gl_FragData[0] = vec4(number & 255, number >> 8 & 255, number >> 16 & 255, 255) / 255.0;
"""  # the shader that paints each face in the colour of its number


def by_opengl(V: np.ndarray, F: np.ndarray) -> Callable:
    """The same, read from the colours and the depths of one OpenGL drawing."""
    import pyvista
    from vtkmodules.util.numpy_support import vtk_to_numpy

    plotter, colours, depths = canvas()
    window, eye = plotter.render_window, plotter.camera
    plotter.clear_actors()
    surface = pyvista.PolyData.from_regular_faces(V.astype(np.float32), F)
    actor = plotter.add_mesh(surface, lighting=False, color="white", reset_camera=False, render=False)
    actor.GetShaderProperty().AddFragmentShaderReplacement("//VTK::Light::Impl", False, NUMBER, False)

    def look(lens, pose):
        last = lens.size - 1
        window.SetSize(lens.size, lens.size)
        eye.position, eye.focal_point, eye.up = pose[:3, 3], pose[:3, 3] - pose[:3, 2], pose[:3, 1]
        eye.SetParallelProjection(lens.projection == "orthographic")
        eye.SetParallelScale(lens.size / 2 / lens.focal)
        eye.SetViewAngle(2 * np.degrees(np.arctan(lens.size / 2 / lens.focal)))
        eye.SetClippingRange(lens.near, lens.far)
        window.Render()
        window.GetPixelData(0, 0, last, last, 0, colours, 0)
        window.GetZbufferData(0, 0, last, last, depths)
        rgb = vtk_to_numpy(colours).reshape(lens.size, lens.size, 3)[::-1].astype(np.int32)  # its rows go upwards
        z = vtk_to_numpy(depths).reshape(lens.size, lens.size)[::-1].astype(np.float64)
        if lens.projection == "perspective":
            depth = lens.near * lens.far / (lens.far - z * (lens.far - lens.near))
        else:
            depth = lens.near + z * (lens.far - lens.near)
        face = (rgb[..., 0] | rgb[..., 1] << 8 | rgb[..., 2] << 16) - 1
        if face.max() >= len(F):
            raise ValueError(f'OpenGL ({opengl()}) gives face {face.max()} of {len(F)}; set engine = "rays"')
        return face, np.where(z < 1, depth, np.inf)

    return look


ENGINES = {"opengl": by_opengl, "rays": by_rays}


@functools.cache
def canvas() -> tuple:
    """The one plotter of this process, and arrays to read its pixels into: each new one would leak a little."""
    import pyvista
    from vtkmodules.vtkCommonCore import vtkFloatArray, vtkUnsignedCharArray

    opengl()
    plotter = pyvista.Plotter(off_screen=True, lighting="none")
    plotter.set_background("black")
    plotter.render_window.SetMultiSamples(0)  # numbers of faces do not mix
    return plotter, vtkUnsignedCharArray(), vtkFloatArray()


# -- OpenGL -----------------------------------------------------------------------------------------------------------

INDEX = "VTK_DEFAULT_EGL_DEVICE_INDEX"  # which of several GPUs VTK takes
FOUND = "LIB_EGL_DEVICES"  # what a run has found, for its workers
COUNT = """
from vtkmodules.vtkRenderingCore import vtkRenderWindow
import vtkmodules.vtkRenderingOpenGL2
print("devices:", getattr(vtkRenderWindow(), "GetNumberOfDevices", int)())
"""


@functools.cache
def opengl(gpu: bool = False) -> str:
    """The renderer's name; ValueError if it has to be a GPU and is none, RuntimeError if there is no OpenGL.

    Where there are several GPUs each worker takes the next one and keeps it.
    """
    name = picture.opengl()
    if INDEX not in os.environ and (found := devices()):
        index, name = found[turn() % len(found)]
        os.environ[INDEX] = index
    if gpu and is_software(name):
        raise ValueError(
            f"gpu = true, but OpenGL draws with {name}, which is software. Install the GPU's driver with its EGL "
            f"library, or choose a GPU by the environment's {INDEX}, or set gpu = false."
        )
    return name


def is_software(renderer: str) -> bool:
    return any(name in renderer.lower() for name in SOFTWARE)


def devices() -> list[list[str]]:
    """[EGL index, renderer] of each GPU, if EGL has more than one device; asked once a run, as each costs a second."""
    if FOUND not in os.environ:
        count = int(picture.probe(COUNT, "devices:") or 0)
        names = {
            k: picture.probe(picture.PROBE, "renderer:", {INDEX: str(k)}) for k in range(count if count > 1 else 0)
        }
        found = [[str(k), name] for k, name in names.items() if name and not is_software(name)]
        os.environ[FOUND] = json.dumps(found)
    return json.loads(os.environ[FOUND])


@functools.cache
def turn() -> int:
    """A number that no other live process of this user has, as small as can be: it goes with the process's lock."""
    folder = Path(tempfile.gettempdir(), f"lib-egl-{os.environ.get('USER', '')}")
    folder.mkdir(exist_ok=True)
    LOCKS.append(Claims(folder, shared=False))
    return next(n for n in range(1 << 16) if LOCKS[0].take(f"turn {n}"))


LOCKS: list[Claims] = []  # held until the process ends


# -- what the notebook shows ------------------------------------------------------------------------------------------


def depths(rows, dataset: str, resolution: int) -> pandas.DataFrame:
    """How far the points that the depth maps show lie from the mesh that was drawn, over all views of each item."""
    table = []
    for name in rows["item"]:
        item, lens, poses, told = opened(name, dataset, resolution)
        if "depth" not in view.maps_of(told):
            continue
        surface = field.prepare(*mesh.read(item.path("_normalized.obj")))
        maps = [view.read(item, k, "depth") * told["depth_scale"] for k in range(len(poses))]
        P = np.concatenate([camera.unproject(lens, *pair) for pair in zip(poses, maps, strict=True)])
        far = field.closest(surface, P)[0] / told["depth_scale"]
        row = {"item": name, "points": len(P), "step": told["depth_scale"], "median, steps": np.median(far)}
        table.append(row | {"99% below, steps": np.percentile(far, 99), "most, steps": far.max()})
    return pandas.DataFrame(table)
