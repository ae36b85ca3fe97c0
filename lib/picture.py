"""Meshes as pictures: shaded in their own colours, before and after, on a contact sheet that fits a notebook."""

import contextlib
import functools
import io
import math
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from IPython.display import Image

from lib.mesh import read, read_scene

WIDTH = 1200  # pixels of every picture: sharp on a page, small in a log
BYTES = 450_000  # of a picture, if it can be: three of them in base64 keep a notebook under 2 MB
PAPER, INK, GREY, LINE = "#FAF9F6", "#26303A", "#7A828A", "#DAD7D0"
CLAY, STONE = "#A9BCCF", "#C9C4BA"  # meshes we made, and meshes that came without colours
ACCENT = "#E4009B"  # the one loud colour, for back faces and marks: no wood or paint has it, and all eyes see it
LENS = 24  # degrees the camera sees: little perspective, so that before and after compare


# -- OpenGL -----------------------------------------------------------------------------------------------------------

NO_OPENGL = (
    "No OpenGL to draw with. Install a software renderer (Debian and Ubuntu: `apt install libegl1 libegl-mesa0`, or "
    "`apt install libosmesa6`) and start the kernel again."
)
PROBE = """
from vtkmodules.vtkRenderingCore import vtkRenderWindow
import vtkmodules.vtkRenderingOpenGL2
window = vtkRenderWindow(); window.SetOffScreenRendering(1); window.SetSize(8, 8); window.Render()
print("renderer:", window.ReportCapabilities().partition("OpenGL renderer string:")[2].split("\\n")[0].strip())
"""


@functools.cache
def opengl() -> str:
    """Set VTK to the first of EGL, OSMesa and X that draws here, and name the renderer; RuntimeError if none does.

    Ask before VTK draws: without OpenGL it ends the interpreter, and no `except` can help. Hence the probe's process.
    """
    name = "VTK_DEFAULT_OPENGL_WINDOW"
    windows = ("vtkEGLRenderWindow", "vtkOSOpenGLRenderWindow", "vtkXOpenGLRenderWindow")
    chosen = [{name: window} for window in windows] if sys.platform == "linux" and name not in os.environ else [{}]
    for setting in chosen:
        if found := probe(PROBE, "renderer:", setting):
            os.environ.update(setting)
            return found
    raise RuntimeError(NO_OPENGL)


def probe(code: str, word: str, setting: dict | None = None) -> str:
    """What Python code prints after a word, in a process of its own; nothing if it crashes or hangs."""
    command = {"args": [sys.executable, "-c", code], "capture_output": True, "text": True, "timeout": 60, "check": True}
    with contextlib.suppress(subprocess.SubprocessError):
        said = subprocess.run(**command, env=os.environ | (setting or {})).stdout
        return said.partition(word)[2].split("\n")[0].strip()
    return ""


def engine() -> Callable:
    """What draws one mesh here: OpenGL, or else rays; RuntimeError where embree is not installed either."""
    try:
        opengl()
        return draw
    except RuntimeError as error:
        try:
            import embreex  # noqa: F401
        except ImportError:
            raise error from None
        return cast


# -- sheets -----------------------------------------------------------------------------------------------------------


def contact_sheet(
    meshes: Iterable,  # each (V, F), (V, F, paint), a list of such parts, or a text that says why there is none
    titles: Iterable[str],  # one a mesh; a second line is drawn in grey
    columns: int = 4,
    together: int = 1,  # so many neighbours share a camera, as before and after do
    edges: bool = False,  # draw the edges of the faces
    turn: float = 35,  # degrees around the upright (y) axis
    tilt: float = 20,  # degrees above the horizon
    alt: str = "Contact sheet of meshes",
) -> Image:
    """A grid of shaded meshes as one PNG. Faces seen from behind have the loud colour: holes and flipped faces show.

    Paint is a colour's name, colours of the points or the faces (k, 3) uint8, or a texture: (n, 2) coordinates, image.
    """
    from PIL import Image as Pixels

    try:
        drawn = engine()
    except RuntimeError as error:
        return placard(str(error))
    meshes = [[mesh] if isinstance(mesh, tuple) else mesh for mesh in meshes]
    if not meshes:
        return placard("Nothing to show.")
    side, gap = WIDTH // columns, 8  # of a cell, around a picture; pixels
    heads = headings(list(titles), columns, side - 2 * gap)
    head = 26 + 20 * max(len(lines) for lines, *_ in heads)  # of a cell's title
    sheet = Pixels.new("RGB", (WIDTH, math.ceil(len(meshes) / columns) * (side + head)), PAPER)
    for k, (mesh, (lines, room, last)) in enumerate(zip(meshes, heads, strict=True)):
        x, y = k % columns * side + gap, k // columns * (side + head) + head
        label(sheet, (x, y - 18), last, side - 2 * gap, GREY)
        for n, line in enumerate(reversed(lines)):
            label(sheet, (x, y - 38 - 20 * n), line, room)
        if isinstance(mesh, str):
            label(sheet, (x, y + 20 + side // 3), mesh, side - 2 * gap, GREY)
            continue
        group = meshes[k - k % together :][:together]
        camera = aim([part[0] for other in group if not isinstance(other, str) for part in other], turn, tilt)
        sheet.paste(drawn(mesh, camera, side - 2 * gap, edges), (x, y))
    return png(sheet, alt)


def growth(folder: Path, items: list, alt: str, columns: int = 5) -> Image:
    """How shapes took form while a model learned, a row each: <folder>/<item>_step_<n>.obj, then the truth."""
    meshes, titles = [], []
    for item in items:
        made = sorted(folder.glob(f"{item.name}_step_*.obj"))
        some = np.unique(np.linspace(0, len(made) - 1, columns - 1).round().astype(int)) if made else ()
        for k in some:
            meshes.append(mesh_or_reason(made[k]))
            titles.append(f"{item.name if len(titles) % columns == 0 else ''}\nstep {int(made[k].stem[-9:]):,}")
        if made:
            left = columns - 1 - len(some)  # of few steps none is shown twice
            meshes += [mesh_or_reason(item.path("_normalized.obj")), *[""] * left]
            titles += ["\ntruth", *["\n"] * left]
    return contact_sheet(meshes, titles, columns, together=columns, alt=alt)


def mesh_or_reason(path: Path) -> tuple | str:
    """A mesh for a contact sheet, or why there is none."""
    try:
        return read(path)
    except ValueError as error:
        return f"nothing to see: {error}"


def before_after(names: list[str], pairs: list[tuple], columns: int = 4, **view) -> Image:
    """A contact sheet of pairs of meshes, each pair side by side under its name and in one frame."""
    meshes = [mesh for pair in pairs for mesh in pair]
    counts = ["" if isinstance(mesh, str) else f", {sum(len(part[1]) for part in mesh):,} faces" for mesh in meshes]
    titles = [f"{(names[k // 2], '')[k % 2]}\n{('before', 'after')[k % 2]}{count}" for k, count in enumerate(counts)]
    return contact_sheet(meshes, titles, columns, together=2, alt=f"Before and after: {', '.join(names)}", **view)


def live(controls: list, see: Callable[..., tuple]) -> None:
    """Widgets, two sliders that turn and tilt, and below them what is to be seen so, made anew when one is moved.

    What is seen is plain output of the cell: a notebook saved by hand keeps the last of it, for viewers that know no
    widgets, and for JupyterLab itself, which finds none again once the kernel is gone.
    """
    import ipywidgets as widgets
    from IPython.display import display

    turn = widgets.IntSlider(35, -180, 180, 5, description="turn", continuous_update=False)
    tilt = widgets.IntSlider(20, -85, 85, 5, description="tilt", continuous_update=False)
    box = widgets.VBox([widgets.HBox(controls), widgets.HBox([turn, tilt])])
    display({**box._repr_mimebundle_(), "text/plain": "Run this cell to choose and to turn."}, raw=True)
    shown = [display(thing, display_id=True) for thing in see(turn=turn.value, tilt=tilt.value)]

    def again(_) -> None:
        for place, thing in zip(shown, see(turn=turn.value, tilt=tilt.value), strict=True):
            place.update(thing)

    for control in (*controls, turn, tilt):
        control.observe(again, "value")


def placard(message: str) -> Image:
    """A picture that says why there is no picture."""
    from PIL import Image as Pixels

    sheet = Pixels.new("RGB", (WIDTH, 120), PAPER)
    for k, line in enumerate(textwrap.wrap(message, 120, break_on_hyphens=False)):
        label(sheet, (24, 20 + 28 * k), line, WIDTH - 48)
    return png(sheet, message)


def headings(titles: list[str], columns: int, width: int) -> list[tuple[list[str], int, str]]:
    """Above each cell: its first line, broken if it is long, the room it has over neighbours without one, its last."""
    heads = []
    for k, title in enumerate(titles):
        first, _, second = title.partition("\n")
        cells = 1
        while (k + cells) % columns and k + cells < len(titles) and titles[k + cells].startswith("\n"):
            cells += 1
        lines = [""]
        for word in first.split(" "):
            longer = f"{lines[-1]} {word}".strip()
            if lines[-1] and len(lines) < 4 and typeface().getlength(longer) > cells * width:
                lines.append(word)
            else:
                lines[-1] = longer
        heads.append((lines, cells * width, second))
    return heads


@functools.cache
def typeface():
    import matplotlib
    from PIL import ImageFont

    return ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf")), 15)


def label(sheet, corner: tuple[int, int], line: str, width: int, colour: str = INK) -> None:
    """Write a line; what is too long for the width ends in an ellipsis."""
    from PIL import ImageDraw

    while typeface().getlength(line) > width:
        line = line[:-2].rstrip("…") + "…"
    ImageDraw.Draw(sheet).text(corner, line, colour, typeface())


def png(pixels, alt: str) -> Image:
    """A small PNG: 6 bits a channel, where no eye sees a difference; 5 or 4 if busy textures make it too large."""
    from PIL import Image as Pixels

    for step in (4, 8, 16):
        buffer = io.BytesIO()
        Pixels.fromarray(np.asarray(pixels) // step * step + step // 2).save(buffer, "png")
        if buffer.tell() <= BYTES:
            break
    return Image(buffer.getvalue(), format="png", alt=alt)


# -- one mesh ---------------------------------------------------------------------------------------------------------


def aim(points: list[np.ndarray], turn: float, tilt: float) -> list[np.ndarray]:
    """Position, focal point and upward direction of a camera that has all the points in view, as close as it can."""
    a, b = np.radians([turn, tilt])
    back = np.array([np.sin(a) * np.cos(b), np.sin(b), np.cos(a) * np.cos(b)])
    right = np.array([np.cos(a), 0, -np.sin(a)])
    axes = np.stack([right, np.cross(back, right), back])  # (3, 3), rows: to the right, upwards, to the viewer
    P = np.concatenate(points) @ axes.T  # (n, 3)
    low, high = P.min(0), P.max(0)
    middle = (low + high) / 2
    reach = np.abs(P[:, :2] - middle[:2]).max(1)  # (n,)
    near = (P[:, 2] + 1.04 * reach / np.tan(np.radians(LENS / 2))).max()
    return [np.array([*middle[:2], near]) @ axes, middle @ axes, axes[1]]


ONE_AT_A_TIME = threading.Lock()


@functools.cache
def canvas():
    """The one plotter of this process (each new one leaks a little): soft light, and shade where surfaces meet."""
    import pyvista

    plotter = pyvista.Plotter(off_screen=True, lighting="none")
    plotter.set_background(PAPER)
    for position, strength in (((-1, 1.6, 1.4), 0.8), ((1.6, 0.4, 1), 0.5), ((0, -1, 0.8), 0.25)):
        plotter.add_light(pyvista.Light(position=position, intensity=strength, light_type="camera light"))
    plotter.enable_ssao(radius=0.3, bias=0.01, kernel_size=64)  # nine tenths of the time without a GPU
    plotter.camera.view_angle = LENS
    return plotter


@contextlib.contextmanager
def current():
    """The plotter, for one thread at a time, which lets go of its OpenGL at the end: without that VTK ends the kernel.

    JupyterLab lets widgets call from a thread of their own, beside that of the cells.
    """
    with ONE_AT_A_TIME:
        plotter = canvas()
        plotter.render_window.MakeCurrent()
        try:
            yield plotter
        finally:
            plotter.render_window.ReleaseCurrent()


def draw(parts: list, camera: list, side: int, edges: bool = False):
    """One mesh, seen by the camera, as a square of pixels."""
    check(parts)
    with current() as plotter:
        return drawn(plotter, parts, camera, side, edges)


def drawn(plotter, parts: list, camera: list, side: int, edges: bool):
    """The same by a plotter that is this thread's."""
    import pyvista
    from PIL import Image as Pixels

    plotter.clear_actors()
    finer = 3 if side < WIDTH / 3 else 2  # drawn larger, then reduced: smooth edges
    plotter.render_window.SetSize(finer * side, finer * side)  # plotter.window_size would draw once more, for nothing
    position, focus, up = camera
    unit = np.linalg.norm(position - focus) * np.tan(np.radians(LENS / 2))  # one size for all: shades have a radius
    for V, F, *paint in parts:
        surface = pyvista.PolyData.from_regular_faces(((V - focus) / unit).astype(np.float32), F)
        shade = {"ambient": 0.3, "diffuse": 0.85, "reset_camera": False, "render": False}
        front = looks(surface, *paint) | {"show_edges": edges, "edge_color": GREY, "edge_opacity": 0.5}
        plotter.add_mesh(surface, culling="back", **front, **shade)
        plotter.add_mesh(surface, culling="front", color=ACCENT, **shade)
    plotter.camera.position, plotter.camera.focal_point, plotter.camera.up = (position - focus) / unit, (0, 0, 0), up
    plotter.renderer.ResetCameraClippingRange()
    plotter.render()
    return Pixels.fromarray(plotter.screenshot(return_img=True)).reduce(finer)


def cast(parts: list, camera: list, side: int, edges: bool = False, clear: bool = False):
    """The same by rays and in 03's light, for where there is no OpenGL; edges and soft shade are left out.

    Clear: what is beside the mesh is transparent, for pages that are light or dark.
    """
    from PIL import Image as Pixels
    from PIL import ImageColor

    from lib import field, paint

    check(parts)
    skin = paint.skin([(V, F, CLAY if not look or look[0] is None else look[0]) for V, F, *look in parts])
    position, focus, up = camera
    back = (position - focus) / np.linalg.norm(position - focus)
    axes = np.stack([np.cross(up, back), up, back])  # (3, 3), rows: to the right, upwards, to the viewer
    unit = np.linalg.norm(position - focus)
    V = ((skin.V - focus) / unit) @ axes.T  # (n, 3) as the camera sees it, which stands at (0, 0, 1)
    finer = 2 * side
    plane = (np.arange(finer) + 0.5 - side) / side * np.tan(np.radians(LENS / 2))
    right, down = (grid.ravel() for grid in np.meshgrid(plane, plane))
    D = np.stack([right, -down, np.full(finer**2, -1.0)], 1)  # (p, 3)
    depth, face = field.hits(field.prepare(V, skin.F, rays_only=True), np.tile([0.0, 0.0, 1.0], (len(D), 1)), D)
    hit = face >= 0
    seen = np.flatnonzero(hit)
    face, D, P = face[seen], D[seen], np.array([0, 0, 1]) + depth[seen, None] * D[seen]
    weights = paint.barycentric(paint.gradients(V, skin.F)[face], P)
    N, C = paint.look(skin, paint.levels(skin, side / np.tan(np.radians(LENS / 2)) / unit), face, weights)
    N = N @ axes.T
    behind = (paint.flat(V, skin.F)[0][face] * D).sum(1) > 0
    N[behind], C[behind] = -N[behind], ImageColor.getrgb(ACCENT)
    pixels = np.full((finer**2, 3), ImageColor.getrgb(PAPER), np.uint8)
    pixels[seen] = paint.lit(C, N / np.maximum(np.linalg.norm(N, axis=1, keepdims=True), 1e-9))
    drawn = Pixels.fromarray(pixels.reshape(finer, finer, 3))
    if clear:
        drawn.putalpha(Pixels.fromarray((255 * hit).astype(np.uint8).reshape(finer, finer)))
    return drawn.reduce(2)


def check(parts: list) -> None:
    """What native code would crash over."""
    for V, F, *_ in parts:
        if len(F) == 0 or F.min() < 0 or F.max() >= len(V):
            raise ValueError(f"faces need indices from 0 to {len(V) - 1}, these have none or others")


def looks(surface, paint=None) -> dict:
    """How PyVista is told to paint a surface."""
    import pyvista

    if paint is None or isinstance(paint, str):
        return {"color": paint or CLAY}
    if isinstance(paint, tuple):
        surface.active_texture_coordinates, image = paint
        return {"texture": pyvista.Texture(image), "color": "white"}
    return {"scalars": np.asarray(paint, np.uint8), "rgb": True}


# -- a file's own colours ---------------------------------------------------------------------------------------------


def original(source: str) -> list[tuple]:
    """The parts (V, F, paint) of a mesh as it came; one part in stone if nothing in the file has colours."""
    dumped = [part for part in read_scene(source).dump() if len(getattr(part, "faces", ()))]
    paints = [painted(part) for part in dumped]
    if all(paint is None for paint in paints):
        return [(*read(source), STONE)]
    pairs = zip(dumped, paints, strict=True)
    return [(np.array(part.vertices), np.array(part.faces), STONE if paint is None else paint) for part, paint in pairs]


def painted(part) -> np.ndarray | tuple | None:
    """A trimesh's own paint as contact_sheet takes it, or None."""
    visual = part.visual
    if visual.kind != "texture":
        return getattr(visual, f"{visual.kind}_colors")[:, :3] if visual.kind else None
    image = getattr(visual.material, "baseColorTexture", None) or getattr(visual.material, "image", None)
    textured = image is not None and visual.uv is not None
    colours = np.asarray(image.convert("RGB")) if textured else visual.material.main_color[:3]
    if (colours == 102).all() or (colours == 100).all():  # trimesh's greys for a material or image that is not there
        return None
    return (visual.uv, colours) if textured else np.tile(colours, (len(part.vertices), 1))
