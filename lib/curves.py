"""What was written down while a network learned, as small curves that a page can hold, each told in words too."""

import math
from pathlib import Path

from lib.journal import read_curve
from lib.markup import table, text

WIDTH, HEIGHT, LEFT, FOOT = 240, 130, 46, 22  # of a curve, and of the room for its numbers, in its own units
POINTS = 240  # of a curve: as many as can be seen
MOST = 8  # curves of a section


def curves(folder: Path) -> str:
    """The loss of <folder>/curve.csv and all of validation.csv, one small curve each; nothing if there are none."""
    learned, seen = read(folder, "curve"), read(folder, "validation")
    names = dict.fromkeys(name for row in seen for name in row if name != "step")
    bands = {name for name in names if name.endswith(("_low", "_high"))}  # of an interval, whose middle is shown
    series = {"loss, learned": pairs(learned, "loss")}
    series |= {f"{name}, unseen": pairs(seen, name) for name in names if name not in bands}
    drawn = [(name, points) for name, points in series.items() if points][:MOST]
    if not drawn:
        return ""
    figures = "".join(
        f"<figure>{svg(name, points)}<figcaption>{text(name)}</figcaption></figure>\n" for name, points in drawn
    )
    rows = [[f"{row['step']:,}", *(number(row.get(name)) for name in names)] for row in seen]
    label = f"Validation of {folder.name}"
    numbers = table(["step", *names], rows, label, headed=True) if rows else ""
    more = f"<details><summary>The numbers of the validation</summary>{numbers}</details>\n" if rows else ""
    return f'<div class="curves">\n{figures}</div>\n{more}'


def read(folder: Path, name: str) -> list[dict]:
    """The rows of a curve; none of a file that is damaged, which must not cost the page."""
    try:
        return [row for row in read_curve(folder, name) if "step" in row]
    except (OSError, ValueError, TypeError):
        return []


def pairs(rows: list[dict], name: str) -> list[tuple]:
    return [(row["step"], row[name]) for row in rows if math.isfinite(row.get(name, math.nan))]


def svg(name: str, points: list[tuple]) -> str:
    """One curve, with its ends on the axes; on a logarithmic scale if it spans more than a factor of ten."""
    told = f"{name}: {summary(points)}"
    points = [*points[:: math.ceil(len(points) / POINTS)], points[-1]]
    values = [value for _, value in points]
    low, high, last = min(values), max(values), points[-1][0]
    scale = math.log if low > 0 and high > 10 * low else float
    bottom, top = scale(low), scale(high)
    spread = top - bottom or 1

    def place(point: tuple) -> str:
        x = LEFT + 6 + (WIDTH - LEFT - 14) * point[0] / (last or 1)
        y = 8 + (HEIGHT - FOOT - 16) * (1 - (scale(point[1]) - bottom) / spread if top > bottom else 0.5)
        return f"{x:.1f},{y:.1f}"

    line = " ".join(map(place, points))
    x, y = place(points[-1]).split(",")
    axis = f"M{LEFT} 4V{HEIGHT - FOOT}H{WIDTH - 4}"
    kind = "two" if name.endswith("unseen") else "one"
    labels = (
        [(LEFT - 6, 14, "end", number(high)), (LEFT - 6, HEIGHT - FOOT - 2, "end", number(low))] if low < high else []
    )
    labels += [(LEFT, HEIGHT - 5, "start", "0"), (WIDTH - 4, HEIGHT - 5, "end", f"step {last:,}")]
    words = "".join(f'<text x="{a}" y="{b}" text-anchor="{side}">{text(word)}</text>' for a, b, side, word in labels)
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{text(told)}"><path class="axis" d="{axis}"/>'
        f'<polyline class="{kind}" points="{line}"/><circle class="{kind}" cx="{x}" cy="{y}" r="3"/>{words}</svg>'
    )


def summary(points: list[tuple]) -> str:
    """A curve in words."""
    (start, first), (end, last) = points[0], points[-1]
    least, most = (extreme(points, key=lambda point: point[1]) for extreme in (min, max))
    return (
        f"{number(first)} at step {start:,}, {number(last)} at step {end:,}; "
        f"least {number(least[1])} at step {least[0]:,}, most {number(most[1])} at step {most[0]:,}"
    )


def number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


STYLE = """
.curves { display: grid; grid-template-columns: repeat(auto-fill, minmax(14rem, 1fr)); gap: 1.2rem;
  margin-top: 1.6rem; }
.curves figure { margin: 0; }
.curves svg { display: block; width: 100%; height: auto; font: 11px system-ui, sans-serif; }
.curves figcaption, .card figcaption { font-size: .88rem; color: var(--grey); }
.curves text { fill: var(--grey); }
.axis { fill: none; stroke: var(--line); }
polyline { fill: none; stroke: currentColor; stroke-width: 1.6; stroke-linejoin: round; }
circle { fill: currentColor; }
.one { color: var(--one); }
.two { color: var(--two); }
"""
