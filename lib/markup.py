"""Small pieces of HTML, escaped, and the one style of our pages: calm, light and dark, no network."""

import html
from datetime import datetime
from pathlib import Path
from urllib.parse import quote

from lib.dataset import write_text


def write(target: Path, title: str, parts: list[str], head: str = "") -> None:
    """A page of parts that are already HTML: one file, no network, for light and dark, whole or not at all."""
    write_text(
        target,
        f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
{head}<title>{text(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<main>
{"".join(parts)}
</main>
</body>
</html>
""".encode("utf-8", "replace").decode(),  # a file's name may hold half a letter
    )


def text(value) -> str:
    return html.escape(str(value))


def code(value) -> str:
    return f"<code>{text(value)}</code>"


def badge(status) -> str:
    return f'<span class="badge {text(str(status).replace(" ", "-"))}">{text(status)}</span>'


def address(path) -> str:
    """A file's path as a link's target: also a name with # or % in it leads to its file."""
    return text(quote(str(path).encode("utf-8", "surrogateescape"), safe="/"))


def link(path, words, more: str = "") -> str:
    """A link to a file beside the page; more is further attributes."""
    return f'<a href="{address(path)}"{more}>{text(words)}</a>'


def table(heads: list[str], rows: list[list[str]], label: str, headed: bool = False) -> str:
    """Rows of cells that are already HTML, in a box that scrolls, also by keyboard; headed: a row's first names it."""
    top = "".join(f'<th scope="col">{text(head)}</th>' for head in heads)
    body = "".join(f"<tr>{cells(row, headed)}</tr>\n" for row in rows)
    table = f"<table>\n<thead><tr>{top}</tr></thead>\n<tbody>\n{body}</tbody>\n</table>"
    return wide(table, label)


def cells(row: list[str], headed: bool) -> str:
    first = f'<th scope="row">{row[0]}</th>' if headed else f"<td>{row[0]}</td>"
    return first + "".join(f"<td>{cell}</td>" for cell in row[1:])


def wide(content: str, label: str) -> str:
    """What may be wider than a phone scrolls in a box of its own, which the keyboard can reach."""
    return f'<div class="wide" role="region" aria-label="{text(label)}" tabindex="0">{content}</div>\n'


def minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.0f} s"


def moment(stamp: str | None) -> str:
    """A time of day for people; the present if there is none."""
    when = datetime.fromisoformat(stamp) if stamp else datetime.now().astimezone()
    return f'<time datetime="{when.isoformat(timespec="seconds")}">{when:%Y-%m-%d %H:%M}</time>'


STYLE = """
:root { --paper: #faf9f6; --card: #ffffff; --stage: #f1efea; --ink: #26303a; --grey: #5d6670; --line: #e2dfd8;
  --link: #2a5f88; --good: #28744a; --bad: #b8145a; --wait: #7d6117; --one: #2f6690; --two: #b8145a; }
@media (prefers-color-scheme: dark) { :root { --paper: #15191d; --card: #1d2329; --stage: #262e36; --ink: #e6e3dc;
  --grey: #a3abb3; --line: #333c45; --link: #8fc1e8; --good: #7ccf9c; --bad: #ff85ae; --wait: #e0c16c;
  --one: #8fc1e8; --two: #ff85ae; } }
* { box-sizing: border-box; }
html { scroll-padding-top: 1rem; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.6 system-ui, sans-serif; }
main { max-width: 68rem; margin: 0 auto; padding: 3.5rem 1.5rem 6rem; }
h1 { font-size: 2.3rem; line-height: 1.2; letter-spacing: -.015em; margin: 0 0 .8rem; overflow-wrap: anywhere; }
h2 { font-size: 1.3rem; line-height: 1.3; letter-spacing: -.005em; margin: 0 0 1rem; overflow-wrap: anywhere; }
h3 { font-size: 1rem; margin: 1.6rem 0 .6rem; overflow-wrap: anywhere; }
p { margin: 0 0 .8rem; max-width: 46rem; }
a { color: var(--link); text-underline-offset: .18em; text-decoration-thickness: .06em; }
:focus-visible { outline: 3px solid var(--link); outline-offset: 2px; border-radius: 4px; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 1.6rem 1.75rem;
  margin-top: 1.5rem; }
section > :last-child { margin-bottom: 0; }
nav { margin-top: 1.2rem; font-size: .95rem; }
nav a { margin-right: 1.1rem; white-space: nowrap; }
.question { font-size: 1.1rem; }
.quiet { color: var(--grey); font-size: .92rem; }
.reason { color: var(--bad); font-family: ui-monospace, monospace; font-size: .88rem; overflow-wrap: anywhere; }
.banner { border: 2px solid var(--bad); border-radius: 8px; padding: .5rem .9rem; font-weight: 600; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: .5rem 1rem .5rem 0; border-bottom: 1px solid var(--line); }
tbody tr:last-child > * { border-bottom: 0; }
th { color: var(--grey); font-weight: 600; white-space: nowrap; }
td { overflow-wrap: anywhere; min-width: 5.5rem; }
td:has(code) { min-width: 10.5rem; }
td:first-child { white-space: nowrap; }
td a { margin-right: .3em; }
.files { white-space: nowrap; }
dl { display: flex; flex-wrap: wrap; gap: 1rem 2.5rem; margin: 0; }
dt { color: var(--grey); font-size: .92rem; }
dd { margin: 0; font-size: 1.6rem; line-height: 1.3; font-variant-numeric: tabular-nums; }
code, pre { font-family: ui-monospace, monospace; font-size: .86rem; }
pre { overflow-x: auto; white-space: pre-wrap; }
details { margin-top: 1rem; }
summary { cursor: pointer; color: var(--link); }
figure { margin: 1.1rem 0 0; }
img { max-width: 100%; height: auto; border-radius: 8px; }
section > figure img { background: #faf9f6; }
.badge { display: inline-block; border: 1px solid; border-radius: 99px; padding: 0 .65em; font-size: .8rem;
  font-weight: 600; line-height: 1.7; letter-spacing: 0; vertical-align: middle; white-space: nowrap;
  color: var(--wait); }
.completed { color: var(--good); }
.failed, .killed, .timed-out { color: var(--bad); }
.not-run { color: var(--grey); }
@media (max-width: 40rem) { main { padding: 2rem .9rem 4rem; } section { padding: 1.2rem 1.1rem; }
  h1 { font-size: 1.8rem; } }
"""
