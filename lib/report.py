"""What a notebook shows of a run: where it ran, tables, curves, meshes before and after, and an explorer."""

import functools
import html
import importlib.metadata
import json
import math
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from numbers import Real
from pathlib import Path

import numpy as np
import pandas as pd
from IPython.display import HTML, Image

from lib import chart, mesh, picture
from lib.dataset import Item

CORPUS = 14_752  # meshes of the set this project is made for
USABLE = ["done", "kept"]
DRAWN = 4_000_000  # faces: what has more is told, not drawn, as the kernel has no guard


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
        "packages": {name: version(name) for name in sorted(asked)},
    }


def version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # a machine that only trains needs no VTK and no JupyterLab
        return "not installed"


def cpu() -> str:
    """The processor's name as its maker writes it, where the system tells."""
    if found := sys.platform == "linux" and re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text()):
        return found[1]
    return said("sysctl", "-n", "machdep.cpu.brand_string") or platform.processor() or platform.machine()


def said(*command: str) -> str:
    """What a command prints; nothing if it is not there or fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.strip()
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


def banner(text: str) -> HTML:
    """What must not be missed, on the run's page too: that something stands in for the real thing."""
    style = "border: 2px solid #C2185B; border-radius: 6px; padding: 8px 12px; font-weight: 600"
    return HTML(
        f'<div style="{style}">{html.escape(text)}</div>' if text else "", metadata={"banner": text} if text else {}
    )


# -- tables -----------------------------------------------------------------------------------------------------------


def table(frame: pd.DataFrame, columns: Iterable[str] | None = None, header: bool = True) -> HTML:
    """A table as GitHub, nbviewer and JupyterLab all show it: no style sheet, nothing cut off, every text escaped."""
    if frame.empty:
        return HTML("<p>None.</p>")
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
    rate = joblib.effective_n_jobs(jobs) / spent if spent else math.nan
    numbers = {
        "items": len(ledger),
        **{status: (ledger["status"] == status).sum() for status in (*USABLE, "quarantined")},
        "seconds an item, median": seconds.median(),
        "seconds an item, 90% below": seconds.quantile(0.9),
        "seconds an item, most": seconds.max(),
        "peak memory, GiB": peaks.max(),
        "items a second": rate,
        f"days for {CORPUS:,} meshes on this machine": CORPUS / rate / 86400,
    }
    if "bytes" in usable:  # in a thousand's steps, as the author of the notes counts: 108 MB a mesh, 1.6 TB in all
        mean = usable["bytes"].astype(float).mean()
        numbers |= {"MB an item": mean / 1e6, f"TB for {CORPUS:,} meshes": mean * CORPUS / 1e12}
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


def worst_by_each(ledger: pd.DataFrame, facts: Iterable[str]) -> pd.DataFrame:
    """For each fact the usable item with its highest value; `worst_by` names the facts of those that have several.

    A fact that no item has, or that is the same for all, has no worst.
    """
    found: dict = {}
    for fact in facts:
        rows = worst(ledger, fact, 1) if fact in ledger else ledger.head(0)
        if len(rows) and pd.to_numeric(ledger[fact], errors="coerce").nunique() > 1:
            found.setdefault(rows.index[0], []).append(f"{fact} {text(rows[fact].iloc[0])}")
    return ledger.loc[list(found)].assign(worst_by=[", ".join(names) for names in found.values()])


def typical(ledger: pd.DataFrame, n: int = 8) -> pd.DataFrame:
    """Up to n usable items, evenly spaced along the ledger: a fair sample, and the same one each time."""
    usable = ledger[ledger["status"].isin(USABLE)]
    return usable.iloc[np.linspace(0, len(usable) - 1, min(n, len(usable))).round().astype(int)]


# -- curves -----------------------------------------------------------------------------------------------------------


def timing(ledger: pd.DataFrame, size: str = "faces_in") -> Image:
    """Seconds and memory of all items in rising order; below, if there is a size, seconds against it and by step."""
    from matplotlib.ticker import EngFormatter, LogLocator, NullLocator

    rows = ledger[ledger["status"].isin(USABLE)]
    with chart.canvas(4.6 if size in rows else 2.3, 1 + (size in rows), 2) as (figure, axes):
        time, memory, *below = axes.flat
        chart.rising(time, rows["seconds"], "seconds an item")
        chart.rising(memory, rows["peak_gib"], "peak memory, GiB")
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
        return chart.image(figure, f"Seconds and memory of {len(rows)} items in rising order")


# -- meshes -----------------------------------------------------------------------------------------------------------


def before_after(
    rows: pd.DataFrame, dataset: str, resolution: int, columns: int = 4, titles: str = "item", **view
) -> Image:
    """Each item of these rows as it came and as it left, side by side in one frame, under what a column says."""
    pairs = [pair(row, dataset, resolution) for row in rows.to_dict("records")]
    return picture.before_after(list(rows[titles] if len(rows) else ()), pairs, columns, **view)


def pair(row: dict, dataset: str, resolution: int) -> tuple:
    """An item's mesh as it came, moved to where it was put, and as it left. Only for items that a worker could read."""
    item = Item(row["item"], row["source"], "", str(dataset), resolution)
    center, scale = row["center"], row["scale"]
    center = np.array(json.loads(center) if isinstance(center, str) else center)  # text where it was read from the CSV
    if (most := max(row.get("faces_in", 0), row.get("faces_out", 0))) > DRAWN:
        return (f"too large to draw here: {most:,.0f} faces",) * 2
    try:
        before = [((V - center) / scale, F, paint) for V, F, paint in picture.original(item.source)]
    except ValueError as error:
        before = f"cannot be read: {error}"
    try:
        after = [mesh.read(item.path("_normalized.obj"))]
    except ValueError as error:
        after = f"cannot be read: {error}"
    return before, after


def explorer(ledger: pd.DataFrame, dataset: str, resolution: int, by: str = "seconds") -> Image | None:
    """Pick a mesh, compare before and after, turn it; in batch, a still picture of the first choice."""
    rows = worst(ledger, by, len(ledger)).set_index("item", drop=False)
    if os.environ.get("LIB_BATCH") or rows.empty:
        return before_after(rows.head(1), dataset, resolution, columns=2)
    import ipywidgets as widgets

    choice = widgets.Dropdown(options=[(f"{name} ({by} {text(value)})", name) for name, value in rows[by].items()])
    load = functools.lru_cache(2)(lambda name: pair(rows.loc[name].to_dict(), dataset, resolution))

    def see(**view) -> tuple[Image, HTML]:
        still = picture.before_after([choice.value], [load(choice.value)], 2, **view)
        row = rows.loc[choice.value].drop(["item", "status", "reason", "command"])
        return still, table(pd.DataFrame(row.items()), header=False)

    picture.live([choice], see)


# -- points -----------------------------------------------------------------------------------------------------------


def sampled(row: dict, dataset: str, resolution: int) -> tuple:
    """An item's closed mesh V, F and the arrays that were sampled from it."""
    item = Item(row["item"], row["source"], "", str(dataset), resolution)
    with np.load(item.path("_sample_points.npz"), allow_pickle=False) as file:
        return *mesh.read(item.path("_normalized.obj")), {key: file[key].astype(float) for key in file}


def sharp_points(rows: pd.DataFrame, dataset: str, resolution: int, columns: int = 4, shown: int = 5000) -> Image:
    """The points of sharp edges on each item's mesh; of very many each second, third ..."""
    sheets, titles = [], []
    for row in rows.to_dict("records"):
        V, F, arrays = sampled(row, dataset, resolution)
        P = arrays["fps_sharp_surface"][:, 0, :3]
        sheets.append([(V, F), (*beads(P[:: -(-len(P) // shown)], 0.007), picture.ACCENT)])
        share = f"{text(100 * row['on_sharp'])}%" if row["on_sharp"] else "none"
        titles.append(f"{row['item']}\n{share} on edges, {text(row['sharp_length'])} long")
    return picture.contact_sheet(sheets, titles, columns, alt=f"Points of sharp edges: {', '.join(rows['item'])}")


def beads(P: np.ndarray, radius: float) -> tuple[np.ndarray, np.ndarray]:
    """A small octahedron about each point (n, 3), all as one mesh."""
    tips = np.concatenate([np.eye(3), -np.eye(3)]) * radius  # (6, 3)
    sides = np.array([[0, 1, 2], [1, 3, 2], [3, 4, 2], [4, 0, 2], [1, 0, 5], [3, 1, 5], [4, 3, 5], [0, 4, 5]])
    return (P[:, None] + tips).reshape(-1, 3), (6 * np.arange(len(P))[:, None, None] + sides).reshape(-1, 3)


def slices(rows: pd.DataFrame, dataset: str, resolution: int, columns: int = 4, cells: int = 200) -> Image:
    """Signed distance in a plane through each item, where it is deepest; stored points there, by label."""
    if rows.empty:
        return picture.placard("Nothing to show.")
    lines = -(-len(rows) // columns)
    with chart.canvas(2.2 * lines, lines, columns) as (figure, axes):
        for place, row in zip(axes.flat, rows.to_dict("records"), strict=False):
            draw_slice(place, *sampled(row, dataset, resolution), cells)
            place.set_title(row["item"][:30], fontsize=7)
        for place in axes.flat[len(rows) :]:
            place.set_axis_off()
        return chart.image(figure, f"Signed distance in a plane, positive inside: {', '.join(rows['item'])}")


def draw_slice(axes, V: np.ndarray, F: np.ndarray, arrays: dict, cells: int) -> None:
    from lib import signed  # libigl is not everywhere that a report is written

    points = np.concatenate([arrays["rand_points"], arrays["sharp_near_surface"]])  # (n, 4)
    P, label = points[:, :3], points[:, 3]
    depth = np.maximum(label, 0) ** 2  # else the many points near the surface decide
    filled = [np.histogram(P[:, axis], 21, (-1.05, 1.05), weights=depth)[0] for axis in range(3)]
    axis, slab = np.unravel_index(np.argmax(filled), (3, 21))
    height = -1 + 0.1 * slab
    across = [[2, 1], [0, 2], [0, 1]][axis]  # what is up stays up
    x = np.linspace(-1.05, 1.05, cells)
    plane = np.full((cells, cells, 3), height)
    plane[..., across[0]], plane[..., across[1]] = np.meshgrid(x, x)
    distance = signed.distance(signed.prepare(V, F), plane.reshape(-1, 3)).reshape(cells, cells)
    limit = np.abs(distance).max()
    axes.contourf(x, x, distance, np.linspace(-limit, limit, 33), cmap="RdBu", alpha=0.6)
    axes.contour(x, x, distance, [0], colors=chart.INK, linewidths=0.7)
    off = np.abs(P[:, axis] - height)
    near = np.argsort(off)[:3000]
    near = near[off[near] < 0.01]  # of few points the nearest would lie far off, and seem to be labelled wrongly
    colours = np.where(label[near] > 0, chart.BLUE, chart.ACCENT)
    axes.scatter(*P[near][:, across].T, s=0.5, c=colours, linewidths=0)
    axes.set(aspect="equal", xticks=(), yticks=(), xlim=(-1.05, 1.05), ylim=(-1.05, 1.05))


def labels(rows: pd.DataFrame, dataset: str, resolution: int, uniform: int) -> Image:
    """How the stored labels of these items are spread in each set; the last `uniform` points lie anywhere."""
    if rows.empty:
        return picture.placard("Nothing to show.")
    arrays = [sampled(row, dataset, resolution)[2] for row in rows.to_dict("records")]
    sets = {
        "off the sharp edges": [some["sharp_near_surface"][:, 3] for some in arrays],
        "off the surface": [some["rand_points"][:-uniform, 3] for some in arrays],
        "anywhere in the box": [some["rand_points"][-uniform:, 3] for some in arrays],
    }
    with chart.canvas(2.2, 1, 3) as (figure, axes):
        for place, (name, values) in zip(axes.flat, sets.items(), strict=True):
            values = np.concatenate(values)
            limit = np.quantile(np.abs(values), 0.999) or 1
            _, _, bars = place.hist(values, np.linspace(-limit, limit, 61), color=chart.ACCENT)
            for bar in bars[30:]:
                bar.set_facecolor(chart.BLUE)
            place.set(title=f"{name}: {text(100 * (values > 0).mean())}% inside", yticks=(), xlabel="signed distance")
        return chart.image(figure, f"Labels of {len(rows)} items: distance from the surface, positive inside")
