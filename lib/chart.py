"""Curves as pictures: one style for every matplotlib figure of a notebook, and the small PNG it becomes."""

import io
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pandas as pd
from IPython.display import Image

from lib.picture import ACCENT, GREY, INK, LINE, PAPER, WIDTH, png

BLUE = "#4A7BA6"  # of what is measured; the accent marks what to look at
STYLE = {
    **dict.fromkeys(("figure.facecolor", "axes.facecolor"), PAPER),
    **dict.fromkeys(("axes.labelcolor", "axes.titlecolor", "text.color"), INK),
    **dict.fromkeys(("xtick.color", "ytick.color"), GREY),
    **dict.fromkeys(("axes.edgecolor", "grid.color"), LINE),
    **dict.fromkeys(("axes.spines.top", "axes.spines.right"), False),
    **dict.fromkeys(("figure.constrained_layout.w_pad", "figure.constrained_layout.h_pad"), 0.12),
    **{"axes.grid": True, "axes.axisbelow": True, "axes.titlelocation": "left", "axes.titlesize": 10, "font.size": 9},
    **{"legend.facecolor": PAPER, "legend.edgecolor": "none", "legend.framealpha": 0.85},  # curves may lie below
    "axes.prop_cycle": f"cycler('color', ['{BLUE}', '{ACCENT}', '#E0A100', '#3E8E7E'])",
}


@contextmanager
def canvas(height: float, rows: int = 1, columns: int = 1) -> Iterator[tuple]:
    """A figure of the notebook's width, with its axes in an array (rows, columns); draw on it inside the block."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(figsize=(8, height), dpi=WIDTH / 8, layout="constrained")
        yield figure, figure.subplots(rows, columns, squeeze=False)


def rising(axes, values: pd.Series, title: str) -> None:
    """Values in rising order over the share of items; the median and the mark that 90% stay below are named."""
    values = np.sort(values.astype(float).dropna())
    axes.set(title=title, xlabel="% of items", xlim=(0, 103), xticks=(0, 25, 50, 75, 90, 100))
    axes.plot(np.linspace(0, 100, len(values)), values, marker="." if len(values) < 50 else "")
    for share in (50, 90) if len(values) else ():
        mark = np.percentile(values, share)
        axes.plot(share, mark, "o", color=ACCENT, markersize=5)
        text = f"{mark:,.0f}" if mark >= 1000 else f"{mark:.3g}"
        axes.annotate(text, (share, mark), (-6, 5), textcoords="offset points", ha="right", color=ACCENT)
    axes.set_ylim(0, values.max(initial=0) * 1.1 or 1)


def image(figure, alt: str) -> Image:
    """A matplotlib figure as a small PNG."""
    from PIL import Image as Pixels

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return png(Pixels.open(buffer).convert("RGB"), alt)
