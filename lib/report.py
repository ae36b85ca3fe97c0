"""What a notebook shows of a run: tables, curves, contact sheets with the worst first, and an explorer."""

import base64
import functools
import html
import importlib.metadata
import io
import json
import math
import os
import platform
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterable
from datetime import UTC, datetime
from numbers import Real
from pathlib import Path

import numpy as np
import pandas as pd
from IPython.display import HTML, Image, display

WIDTH = 1200  # pixels of every picture: sharp on a page, small in a log
PAPER, INK, GREY, LINE = "#FAF9F6", "#26303A", "#7A828A", "#DAD7D0"
CLAY, STONE = "#A9BCCF", "#C9C4BA"  # meshes we made, and meshes that came without colours
BLUE, ACCENT = "#4A7BA6", "#E4009B"  # curves, and the one loud colour: back faces and marks; told apart by all eyes
LENS = 24  # degrees the camera sees: little perspective, so that before and after compare
CORPUS = 14_752  # meshes of the set this project is made for
USABLE = ["done", "kept"]


# -- where it ran -----------------------------------------------------------------------------------------------------


def provenance() -> dict:
    """What a log needs to be understood later, in plain JSON types: commit, versions, machine and GPU."""
    import joblib
    import psutil

    root = Path(__file__).resolve().parents[1]
    git = ("git", "-C", str(root))
    checkout = said(*git, "rev-parse", "--show-toplevel")
    ours = checkout and Path(checkout).resolve() == root  # not installed inside somebody else's repository
    asked = [re.match(r"[\w.-]+", line)[0] for line in importlib.metadata.requires("lib") if "extra" not in line]
    nvidia = said("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader")
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": said(*git, "rev-parse", "HEAD") if ours else None,
        "dirty": bool(said(*git, "status", "--porcelain")) if ours else None,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release().split('-')[0]} {platform.machine()}",
        "cpu": cpu(),
        "cores": joblib.cpu_count(),  # those we may use: affinity and container limits count
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpu": nvidia.splitlines(),  # the driver's word, so that torch need not be imported
        "packages": {name: importlib.metadata.version(name) for name in sorted(asked)},
    }


def cpu() -> str:
    """The processor's name as its maker writes it, where the system tells."""
    if found := sys.platform == "linux" and re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text()):
        return found[1]
    return said("sysctl", "-n", "machdep.cpu.brand_string") or platform.processor() or platform.machine()


def said(*command: str, **environment: str) -> str:
    """What a command prints; nothing if it is not there or fails."""
    settings = {"env": os.environ | environment, "capture_output": True, "text": True, "timeout": 60, "check": True}
    try:
        return subprocess.run(command, **settings).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def machine() -> HTML:
    """Where and with what this notebook ran."""
    facts = provenance()
    rows = {
        "date": facts["date"],
        "commit": (facts["commit"] or "no git checkout") + (" and uncommitted changes" if facts["dirty"] else ""),
        "machine": f"{facts['cpu']}, {facts['cores']} cores, {facts['memory_gib']} GiB, {facts['system']}",
        "GPU": "; ".join(facts["gpu"]) or "none",
        "packages": ", ".join(f"{k} {v}" for k, v in ({"python": facts["python"]} | facts["packages"]).items()),
    }
    return table(pd.DataFrame(rows.items()), header=False)


# -- tables -----------------------------------------------------------------------------------------------------------


def table(frame: pd.DataFrame, columns: Iterable[str] | None = None, header: bool = True) -> HTML:
    """A table as GitHub, nbviewer and JupyterLab all show it: no style sheet, nothing cut off, every text escaped."""
    frame = frame if columns is None else frame.filter(columns)  # those of them that there are
    numeric = [pd.api.types.is_numeric_dtype(frame[name]) for name in frame]
    sides = [f'align="{side}" style="text-align: {side}"' for side in (("left", "right")[n] for n in numeric)]

    def line(tag: str, cells: Iterable) -> str:
        return "".join(f"<{tag} {side}>{html.escape(cell)}</{tag}>" for cell, side in zip(cells, sides, strict=True))

    heads = f"<thead><tr>{line('th', map(str, frame))}</tr></thead>\n" if header else ""
    body = "\n".join(f"<tr>{line('td', map(text, row))}</tr>" for row in frame.astype(object).itertuples(index=False))
    # the classes keep MathJax from reading the $ in a reason as a formula
    opening = '<table border="1" class="dataframe tex2jax_ignore mathjax_ignore">'
    return HTML(f"{opening}\n{heads}<tbody>\n{body}\n</tbody>\n</table>")


def text(value) -> str:
    """A cell's text: three digits of a fraction, thousands apart, nothing for what is missing."""
    if isinstance(value, (list, tuple, np.ndarray)):
        return ", ".join(map(text, value))
    if pd.isna(value):
        return ""
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:.3g}"


def totals(ledger: pd.DataFrame, jobs: int = -1) -> dict[str, float]:
    """A run in numbers; the rate counts the seconds of all items, also of those put aside."""
    import joblib

    usable = ledger[ledger["status"].isin(USABLE)]
    seconds, peaks = usable["seconds"].astype(float), usable["peak_gib"].astype(float)
    spent = ledger["seconds"].astype(float).mean()
    rate = 3600 * joblib.effective_n_jobs(jobs) / spent if spent else math.nan
    numbers = {
        "items": len(ledger),
        **{status: (ledger["status"] == status).sum() for status in (*USABLE, "quarantined")},
        "seconds an item, median": seconds.median(),
        "seconds an item, 90% below": seconds.quantile(0.9),
        "seconds an item, most": seconds.max(),
        "peak memory, GiB": peaks.max(),
        "items an hour": rate,
        f"hours for {CORPUS:,} meshes on this machine": CORPUS / rate,
    }
    if "bytes" in usable:
        mean = usable["bytes"].astype(float).mean()
        numbers |= {"MiB an item": mean / 2**20, f"GiB for {CORPUS:,} meshes": mean * CORPUS / 2**30}
    return {name: float(number) for name, number in numbers.items()}


def summary(ledger: pd.DataFrame, jobs: int = -1) -> HTML:
    """Counts, time and memory of a run, and what the whole set would take on this machine."""
    return table(pd.DataFrame(totals(ledger, jobs).items()), header=False)


def quarantine(ledger: pd.DataFrame, n: int = 10) -> HTML:
    """Why items were put aside: reasons by how often, then the first n items, each with the command that repeats it."""
    rows = ledger[ledger["status"] == "quarantined"]
    if rows.empty:
        return HTML("<p>No item was put aside.</p>")
    items = table(rows.head(n)[["item", "reason", "seconds", "command"]])
    return HTML(f"{table(reasons(rows)).data}\n<p>{min(n, len(rows))} of {len(rows):,}:</p>\n{items.data}")


def reasons(rows: pd.DataFrame) -> pd.DataFrame:
    """Reasons and how often; those that differ only in a name or a number are one, in the words of the first."""

    def nameless(row) -> str:
        reason = row.reason.replace(row.source, "…").replace(Path(row.source).name, "…")
        return re.sub(r"\w+_[0-9a-f]{8}\b", "…", reason)  # other items' names

    told = pd.DataFrame({"reason": list(map(nameless, rows.astype(str).itertuples()))})
    kind = told["reason"].str.replace(r"\d[\d.,e+-]*", "#", regex=True)
    groups = told.groupby(kind, sort=False)["reason"].agg(items="size", reason="first")
    return groups.sort_values("items", ascending=False, kind="stable", ignore_index=True)


def worst(ledger: pd.DataFrame, by: str, n: int = 10, lowest: bool = False) -> pd.DataFrame:
    """The n usable items with the highest (or lowest) value in a column, the worst first."""
    usable = ledger[ledger["status"].isin(USABLE)]
    if by not in ledger and len(usable):  # a ledger of nothing but quarantine has no facts, and nothing to sort
        raise ValueError(f"the ledger has no column {by!r}; choose from {', '.join(map(str, ledger.columns))}")
    return usable.dropna(subset=by).sort_values(by, ascending=lowest, kind="stable").head(n) if len(usable) else usable


def typical(ledger: pd.DataFrame, n: int = 8) -> pd.DataFrame:
    """Up to n usable items, evenly spaced along the ledger: a fair sample, and the same one each time."""
    usable = ledger[ledger["status"].isin(USABLE)]
    return usable.iloc[np.linspace(0, len(usable) - 1, min(n, len(usable))).round().astype(int)]


# -- curves -----------------------------------------------------------------------------------------------------------

STYLE = {
    **dict.fromkeys(("figure.facecolor", "axes.facecolor"), PAPER),
    **dict.fromkeys(("axes.labelcolor", "axes.titlecolor", "text.color"), INK),
    **dict.fromkeys(("xtick.color", "ytick.color"), GREY),
    **dict.fromkeys(("axes.edgecolor", "grid.color"), LINE),
    **dict.fromkeys(("axes.spines.top", "axes.spines.right", "legend.frameon"), False),
    **dict.fromkeys(("figure.constrained_layout.w_pad", "figure.constrained_layout.h_pad"), 0.12),
    **{"axes.grid": True, "axes.axisbelow": True, "axes.titlelocation": "left", "axes.titlesize": 10, "font.size": 9},
    "axes.prop_cycle": f"cycler('color', ['{BLUE}', '{ACCENT}', '#E0A100', '#3E8E7E'])",
}


def timing(ledger: pd.DataFrame, size: str = "faces_in") -> Image:
    """Seconds and memory of all items in rising order; below, if there is a size, seconds against it and by step."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter, LogLocator, NullLocator

    rows = ledger[ledger["status"].isin(USABLE)]
    with rc_context(STYLE):
        figure = Figure(figsize=(8, 4.6 if size in rows else 2.3), dpi=WIDTH / 8, layout="constrained")
        time, memory, *below = figure.subplots(1 + (size in rows), 2).flat
        rising(time, rows["seconds"], "seconds an item")
        rising(memory, rows["peak_gib"], "peak memory, GiB")
        if below:
            against, by_step = below
            against.semilogx(rows[size], rows["seconds"], "o", markersize=4, alpha=0.7, markeredgewidth=0)
            against.set(title="seconds against size", xlabel=size.replace("_", " "), ylim=(0, None))
            against.xaxis.set(major_locator=LogLocator(subs=(1, 3)), minor_locator=NullLocator())
            against.xaxis.set_major_formatter(EngFormatter())
            steps = rows.filter(regex="^seconds_").astype(float).mean()
            by_step.barh(steps.index.str.removeprefix("seconds_"), steps)
            by_step.set(title="seconds by step, mean")
            by_step.invert_yaxis()
        return chart(figure, f"Seconds and memory of {len(rows)} items in rising order")


def rising(axes, values: pd.Series, title: str) -> None:
    """Values in rising order over the share of items; the median and the mark that 90% stay below are named."""
    values = np.sort(values.astype(float).dropna())
    axes.set(title=title, xlabel="% of items", xlim=(0, 103), xticks=(0, 25, 50, 75, 90, 100))
    axes.plot(np.linspace(0, 100, len(values)), values, marker="." if len(values) < 50 else "")
    for share in (50, 90) if len(values) else ():
        mark = np.percentile(values, share)
        axes.plot(share, mark, "o", color=ACCENT, markersize=5)
        axes.annotate(text(mark), (share, mark), (-6, 5), textcoords="offset points", ha="right", color=ACCENT)
    axes.set_ylim(0, values.max(initial=0) * 1.1 or 1)


def chart(figure, alt: str) -> Image:
    """A matplotlib figure as a small PNG."""
    from PIL import Image as Pixels

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return picture(Pixels.open(buffer).convert("RGB"), alt)


# -- pictures of meshes -----------------------------------------------------------------------------------------------

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
        if found := said(sys.executable, "-c", PROBE, **setting).partition("renderer: ")[2]:
            os.environ.update(setting)
            return found
    raise RuntimeError(NO_OPENGL)


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
        opengl()
    except RuntimeError as error:
        return placard(str(error))
    meshes = [[mesh] if isinstance(mesh, tuple) else mesh for mesh in meshes]
    if not meshes:
        return placard("Nothing to show.")
    side, head, gap = WIDTH // columns, 46, 8  # of a cell, of its title, around a picture; pixels
    sheet = Pixels.new("RGB", (WIDTH, math.ceil(len(meshes) / columns) * (side + head)), PAPER)
    for k, (mesh, title) in enumerate(zip(meshes, titles, strict=True)):
        x, y = k % columns * side + gap, k // columns * (side + head)
        label(sheet, (x, y + gap), title, side - 2 * gap)
        if isinstance(mesh, str):
            label(sheet, (x, y + head + side // 3), "\n" + mesh, side - 2 * gap)
            continue
        group = meshes[k - k % together :][:together]
        camera = aim([part[0] for other in group if not isinstance(other, str) for part in other], turn, tilt)
        sheet.paste(draw(mesh, camera, side - 2 * gap, edges), (x, y + head))
    return picture(sheet, alt)


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


@functools.cache
def canvas():
    """The one plotter of this process (each new one leaks a little): soft light, and shade where surfaces meet."""
    import pyvista

    plotter = pyvista.Plotter(off_screen=True, lighting="none")
    plotter.set_background(PAPER)
    for position, strength in (((-1, 1.6, 1.4), 0.8), ((1.6, 0.4, 1), 0.5), ((0, -1, 0.8), 0.25)):
        plotter.add_light(pyvista.Light(position=position, intensity=strength, light_type="camera light"))
    plotter.enable_ssao(radius=0.3, bias=0.01, kernel_size=64)
    plotter.camera.view_angle = LENS
    return plotter


def draw(parts: list, camera: list, side: int, edges: bool = False):
    """One mesh, seen by the camera, as a square of pixels."""
    import pyvista
    from PIL import Image as Pixels

    plotter = canvas()
    plotter.clear_actors()
    finer = 3 if side < WIDTH / 3 else 2  # drawn larger, then reduced: smooth edges
    plotter.window_size = [finer * side, finer * side]
    position, focus, up = camera
    unit = np.linalg.norm(position - focus) * np.tan(np.radians(LENS / 2))  # one size for all: shades have a radius
    for V, F, *paint in parts:
        if len(F) == 0 or F.min() < 0 or F.max() >= len(V):
            raise ValueError(f"faces need indices from 0 to {len(V) - 1}, these have none or others")  # VTK would crash
        surface = pyvista.PolyData.from_regular_faces(((V - focus) / unit).astype(np.float32), F)
        shade = {"ambient": 0.3, "diffuse": 0.85, "reset_camera": False, "render": False}
        front = looks(surface, *paint) | {"show_edges": edges, "edge_color": GREY, "edge_opacity": 0.5}
        plotter.add_mesh(surface, culling="back", **front, **shade)
        plotter.add_mesh(surface, culling="front", color=ACCENT, **shade)
    plotter.camera.position, plotter.camera.focal_point, plotter.camera.up = (position - focus) / unit, (0, 0, 0), up
    plotter.renderer.ResetCameraClippingRange()
    plotter.render()
    return Pixels.fromarray(plotter.screenshot(return_img=True)).reduce(finer)


def looks(surface, paint=None) -> dict:
    """How PyVista is told to paint a surface."""
    import pyvista

    if paint is None or isinstance(paint, str):
        return {"color": paint or CLAY}
    if isinstance(paint, tuple):
        surface.active_texture_coordinates, image = paint
        return {"texture": pyvista.Texture(image), "color": "white"}
    return {"scalars": np.asarray(paint, np.uint8), "rgb": True}


def before_after(rows: pd.DataFrame, dataset: str, resolution: int, columns: int = 4, **view) -> Image:
    """Each item of these rows as it came and as it left, side by side in one frame."""
    pairs = [pair(row, dataset, resolution) for row in rows.to_dict("records")]
    return side_by_side(list(rows["item"]), pairs, columns, **view)


def side_by_side(names: list[str], pairs: list[tuple], columns: int = 4, **view) -> Image:
    meshes = [mesh for both in pairs for mesh in both]
    counts = ["" if isinstance(mesh, str) else f", {sum(len(part[1]) for part in mesh):,} faces" for mesh in meshes]
    titles = [f"{(names[k // 2], '')[k % 2]}\n{('before', 'after')[k % 2]}{count}" for k, count in enumerate(counts)]
    return contact_sheet(meshes, titles, columns, together=2, alt=f"Before and after: {', '.join(names)}", **view)


def pair(row: dict, dataset: str, resolution: int) -> tuple:
    """An item's mesh as it came, moved to where it was put, and as it left. Only for items that a worker could read."""
    from lib import mesh
    from lib.dataset import Item

    item = Item(row["item"], row["source"], "", str(dataset), resolution)
    center, scale = row["center"], row["scale"]
    center = np.array(json.loads(center) if isinstance(center, str) else center)  # text where it was read from the CSV
    try:
        before = [((V - center) / scale, F, STONE if paint is None else paint) for V, F, paint in original(item.source)]
    except (OSError, ValueError) as error:
        before = f"cannot be read: {error}"
    try:
        after = [mesh.read(item.path("_normalized.obj"))]
    except (OSError, ValueError) as error:
        after = f"cannot be read: {error}"
    return before, after


def original(source: str) -> list[tuple]:
    """The parts of a mesh as it came, each with its paint (see contact_sheet); one part if nothing has colours."""
    from lib import mesh

    dumped = [part for part in mesh.read_scene(source).dump() if len(getattr(part, "faces", ()))]
    parts = [(np.array(part.vertices), np.array(part.faces), painted(part)) for part in dumped]
    return parts if any(paint is not None for _, _, paint in parts) else [(*mesh.read(source), None)]


def painted(part) -> np.ndarray | tuple | None:
    visual = part.visual
    if visual.kind != "texture":
        return getattr(visual, f"{visual.kind}_colors")[:, :3] if visual.kind else None
    image = getattr(visual.material, "baseColorTexture", None) or getattr(visual.material, "image", None)
    textured = image is not None and visual.uv is not None
    colours = np.asarray(image.convert("RGB")) if textured else visual.material.main_color[:3]
    if (colours == 102).all():  # trimesh's grey for a material that is not there
        return None
    return (visual.uv, colours) if textured else np.tile(colours, (len(part.vertices), 1))


def placard(message: str) -> Image:
    """A picture that says why there is no picture."""
    from PIL import Image as Pixels

    sheet = Pixels.new("RGB", (WIDTH, 120), PAPER)
    for k, line in enumerate(textwrap.wrap(message, 120, break_on_hyphens=False)):
        label(sheet, (24, 20 + 28 * k), line, WIDTH - 48)
    return picture(sheet, message)


def label(sheet, corner: tuple[int, int], title: str, width: int) -> None:
    """Write a title, its second line in grey; what is too long for the width ends in an ellipsis."""
    import matplotlib
    from PIL import ImageDraw, ImageFont

    font = ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf")), 15)
    x, y = corner
    for line, colour in zip(title.split("\n"), (INK, GREY), strict=False):
        while font.getlength(line) > width:
            line = line[:-2].rstrip("…") + "…"
        ImageDraw.Draw(sheet).text((x, y), line, colour, font)
        y += 20


def picture(pixels, alt: str) -> Image:
    """A small PNG of 256 colours, 16 of them the loud one's: it matters most where there is little of it."""
    from PIL import Image as Pixels
    from PIL import ImageColor

    common = pixels.quantize(240)
    index, colours = np.array(common), np.asarray(pixels, np.float32)  # (height, width), (height, width, 3)
    loud = np.array(ImageColor.getrgb(ACCENT), np.float32)
    shade = colours @ loud / (loud @ loud)  # (height, width): 1 is the accent itself, 0 is black
    near = (np.linalg.norm(colours - shade[..., None] * loud, axis=-1) < 30) & (shade > 0.3)
    index[near] = 240 + (shade[near] * 12).round().clip(0, 15)
    palette = np.zeros((256, 3), np.uint8)
    palette.flat[: len(common.getpalette())] = common.getpalette()
    palette[240:] = (np.arange(16)[:, None] / 12 * loud).clip(0, 255)
    small = Pixels.fromarray(index)
    small.putpalette(palette.tobytes())
    buffer = io.BytesIO()
    small.save(buffer, "png", optimize=True)
    return Image(buffer.getvalue(), format="png", alt=alt)


def explorer(ledger: pd.DataFrame, dataset: str, resolution: int, by: str = "seconds") -> Image | None:
    """Pick a mesh, compare before and after, turn it; in batch, a still picture of the first choice."""
    rows = worst(ledger, by, len(ledger)).set_index("item", drop=False)
    if os.environ.get("LIB_BATCH") or rows.empty:
        return before_after(rows.head(1), dataset, resolution, columns=2)
    import ipywidgets as widgets

    choice = widgets.Dropdown(options=[(f"{name} ({by} {text(value)})", name) for name, value in rows[by].items()])
    turn = widgets.IntSlider(35, -180, 180, 5, description="turn", continuous_update=False)
    tilt = widgets.IntSlider(20, -85, 85, 5, description="tilt", continuous_update=False)
    still, facts = widgets.Image(), widgets.HTML()
    load = functools.lru_cache(2)(lambda name: pair(rows.loc[name].to_dict(), dataset, resolution))

    def show(_=None) -> None:
        still.value = side_by_side([choice.value], [load(choice.value)], 2, turn=turn.value, tilt=tilt.value).data
        row = rows.loc[choice.value].drop(["item", "status", "reason", "command"])
        facts.value = table(pd.DataFrame(row.items()), header=False).data

    for control in (choice, turn, tilt):
        control.observe(show, "value")
    show()
    box = widgets.VBox([widgets.HBox([choice, turn, tilt]), still, facts])
    # viewers that know no widgets (GitHub) take the still picture from the same output
    display({**box._repr_mimebundle_(), "image/png": base64.b64encode(still.value).decode()}, raw=True)
