"""A run's index.html: what was asked, how each notebook ended, its first picture, what was put aside, where it ran."""

import csv
import html
import re
import sys
from datetime import datetime
from pathlib import Path

import nbformat

from lib.dataset import write_text

ROWS = 500  # of the quarantine that the page shows; the ledgers have them all


def write(run: Path, record: dict) -> None:
    """Write <run>/index.html: one file, no network, for light and dark, whole or not at all."""
    sections = record["sections"]
    title = run.resolve().name
    parts = [
        header(title, record),
        overview(run, sections),
        *(notebook(run, name, section) for name, section in sections.items()),
        put_aside(run, sections),
        origin(record),
    ]
    refresh = '<meta http-equiv="refresh" content="10">' if record["status"] == "running" else ""
    write_text(
        run / "index.html",
        f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
{refresh}<title>{text(title)}: {text(record["status"])}</title>
<style>{STYLE}</style>
</head>
<body>
<main>
{"".join(parts)}
</main>
</body>
</html>
""".encode("utf-8", "replace").decode(),
    )


# -- parts of the page ------------------------------------------------------------------------------------------------


def header(title: str, record: dict) -> str:
    question = text(record["question"]).replace("\n", "<br>") or "The params file opens with no question."
    seconds = sum(section.get("seconds", 0) for section in record["sections"].values())
    return f"""<header>
<h1>{text(title)} {badge(record["status"])}</h1>
<p class="question">{question}</p>
<p class="quiet">{minutes(seconds)} in all, begun {moment(record["started"])}, as of {moment(record.get("ended"))}</p>
</header>
"""


def overview(run: Path, sections: dict) -> str:
    rows = [
        [
            f'<a href="#{text(name)}">{text(name)}</a>',
            badge(section["status"]),
            minutes(section["seconds"]) if "seconds" in section else "",
            f"{section['peak_gib']:.2f} GiB" if "peak_gib" in section else "",
            str(section.get("quarantined", "")),
            links(run, name),
        ]
        for name, section in sections.items()
    ]
    heads = ["Notebook", "Status", "Time", "Peak memory", "Quarantined", "Log"]
    return f"<section>\n<h2>Notebooks</h2>\n{table(heads, rows)}</section>\n"


def links(run: Path, name: str) -> str:
    """The files of a section that are there."""
    kinds = {
        "page": f"{name}.html",
        "notebook": f"{name}.ipynb",
        "running": f"{name}.running.ipynb",
        "text": f"{name}.log",
        "ledger": f"{name}.csv",
    }
    there = {kind: file for kind, file in kinds.items() if (run / file).exists()}
    return " ".join(f'<a href="{text(file)}" title="{text(file)}">{kind}</a>' for kind, file in there.items())


def notebook(run: Path, name: str, section: dict) -> str:
    reason = f'<p class="reason">{text(section["reason"])}</p>\n' if section["reason"] else ""
    differs = [
        [f"<code>{text(key)}</code>", code(change["value"]), code(change["default"]), text(change["help"])]
        for key, change in section["differs"].items()
    ]
    changes = table(["Parameter", "Here", "Default", "Meaning"], differs) if differs else "<p>All defaults.</p>\n"
    loud = "".join(f'<p class="banner">{text(told)}</p>\n' for told in banners(run / f"{name}.ipynb"))
    figure = ""
    if picture := first_picture(run / f"{name}.ipynb"):
        png, about = picture
        image = f'<img src="data:image/png;base64,{png}" alt="{text(about or "First picture of " + name)}">'
        figure = f'<figure><a href="{text(name)}.ipynb">{image}</a></figure>\n'
    return f"""<section id="{text(name)}">
<h2>{text(name)} {badge(section["status"])}</h2>
{reason}{loud}{changes}{figure}</section>
"""


def put_aside(run: Path, sections: dict) -> str:
    rows = [
        [text(name), *(text(row[key]) for key in ("item", "reason", "seconds")), code(row["command"])]
        for name, section in sections.items()
        if section.get("quarantined")
        for row in quarantine(run, name)
    ]
    if not rows:
        return "<section>\n<h2>Quarantine</h2>\n<p>Nothing was put aside.</p>\n</section>\n"
    more = f"<p>{len(rows) - ROWS} more are in the ledgers.</p>\n" if len(rows) > ROWS else ""
    heads = ["Notebook", "Item", "Reason", "Seconds", "Repeat it alone"]
    return f"<section>\n<h2>Quarantine: {len(rows)}</h2>\n{table(heads, rows[:ROWS])}{more}</section>\n"


def origin(record: dict) -> str:
    """Where it ran, with which code, and the command that repeats it."""
    facts = record["provenance"]
    packages = {"python": facts.get("python", "")} | facts.get("packages", {})
    changes = f", with changes not committed ({facts.get('diff_sha256', '')[:12]})" if facts.get("dirty") else ""
    rows = {
        "Command": code(record["command"]),
        "Commit": text((facts.get("commit") or "no git checkout") + changes),
        "Machine": text(f"{facts.get('cpu')}, {facts.get('cores')} cores, {facts.get('memory_gib')} GiB"),
        "System": text(f"{facts.get('system')}, {record['host']}"),
        "GPU": text("; ".join(facts.get("gpu", [])) or "none"),
        "Seeds": text(", ".join(f"{name}: {seed}" for name, seed in record["seeds"].items()) or "none"),
        "Packages": text(", ".join(f"{name} {version}" for name, version in packages.items())),
    }
    lines = "".join(f'<tr><th scope="row">{head}</th><td>{cell}</td></tr>\n' for head, cell in rows.items())
    return f"""<section>
<h2>Where it ran</h2>
<div class="wide"><table>{lines}</table></div>
<details><summary>{text(record["params"])}</summary><pre>{text(record["text"])}</pre></details>
<p class="quiet">All of this for programs: <a href="run.json">run.json</a></p>
</section>
"""


# -- what it is made from ---------------------------------------------------------------------------------------------


def quarantine(run: Path, name: str) -> list[dict]:
    """The rows of a section's ledger that were put aside; everything is text, so that item 00123 stays 00123."""
    csv.field_size_limit(2**27)
    try:
        with (run / f"{name}.csv").open(newline="", encoding="utf-8", errors="replace") as file:
            rows = [row for row in csv.DictReader(file) if row.get("status") == "quarantined"]
    except (FileNotFoundError, csv.Error):
        return []
    return [{key: row.get(key) or "" for key in ("item", "reason", "seconds", "command")} for row in rows]


def first_picture(log: Path) -> tuple[str, str] | None:
    """The first PNG of an executed notebook, as base64, and what its author says it shows."""
    for output in outputs(log):
        if png := output.get("data", {}).get("image/png"):
            about = output.metadata.get("image/png", output.metadata)
            return re.sub("[^A-Za-z0-9+/=]", "", png), str(about.get("alt", ""))
    return None


def banners(log: Path) -> list[str]:
    """What an executed notebook says with report.banner: it must not be missed by who reads only the page."""
    told = (output.get("metadata", {}).get("text/html", {}) for output in outputs(log))
    return [str(about["banner"]) for about in told if "banner" in about]


def outputs(log: Path) -> list:
    """All that the cells of an executed notebook show."""
    try:
        return [output for cell in nbformat.read(log, 4).cells for output in cell.get("outputs", [])]
    except Exception:  # there is none, or it is damaged: the page comes all the same
        return []


def export(log: Path) -> None:
    """A log as HTML beside it, for people without Jupyter; it loads nothing, except MathJax if there are formulas."""
    import jinja2  # slow, and only needed at the end of a notebook
    from nbconvert import HTMLExporter

    bare = "{% extends 'lab/index.html.j2' %}{% block html_head_js_requirejs %}{% endblock %}"
    try:
        nb = nbformat.read(log, 4)
        if not any("$" in cell.source for cell in nb.cells if cell.cell_type == "markdown"):
            bare += "{% block html_head_js_mathjax %}{% endblock %}"
        bare += "{% block html_head_js_mermaidjs %}{% endblock %}"
        exporter = HTMLExporter(template_file="bare.j2", extra_loaders=[jinja2.DictLoader({"bare.j2": bare})])
        body, _ = exporter.from_notebook_node(nb, {"metadata": {"name": log.stem}})
        write_text(log.with_suffix(".html"), body)
    except Exception as error:  # a copy for convenience must not end a run of days
        sys.stderr.write(f"no HTML copy of {log}: {error}\n")


# -- small pieces -----------------------------------------------------------------------------------------------------


def text(value) -> str:
    return html.escape(str(value))


def code(value) -> str:
    return f"<code>{text(value)}</code>"


def badge(status: str) -> str:
    return f'<span class="badge {text(status.replace(" ", "-"))}">{text(status)}</span>'


def table(heads: list[str], rows: list[list[str]]) -> str:
    """Rows of cells that are already HTML."""
    top = "".join(f'<th scope="col">{text(head)}</th>' for head in heads)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>\n" for row in rows)
    return f'<div class="wide"><table>\n<thead><tr>{top}</tr></thead>\n<tbody>\n{body}</tbody>\n</table></div>\n'


def minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.0f} s"


def moment(stamp: str | None) -> str:
    """A time of day for people; the present if there is none."""
    when = datetime.fromisoformat(stamp) if stamp else datetime.now().astimezone()
    return f'<time datetime="{when.isoformat(timespec="seconds")}">{when:%Y-%m-%d %H:%M}</time>'


STYLE = """
:root { --paper: #faf9f6; --card: #ffffff; --ink: #26303a; --grey: #67707a; --line: #e2dfd8; --link: #2f6690;
  --good: #2e7d4f; --bad: #c2185b; --wait: #8a6d1f; }
@media (prefers-color-scheme: dark) { :root { --paper: #15191d; --card: #1d2329; --ink: #e6e3dc; --grey: #9aa3ac;
  --line: #323a42; --link: #8fc1e8; --good: #7ccf9c; --bad: #ff7fab; --wait: #e0c16c; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 system-ui, sans-serif; }
main { max-width: 68rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 2.2rem; line-height: 1.2; margin: 0 0 .6rem; }
h2 { font-size: 1.2rem; margin: 0 0 .8rem; }
a { color: var(--link); }
section { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 1.25rem 1.4rem;
  margin-top: 1.25rem; }
.question { font-size: 1.1rem; max-width: 50rem; margin: 0 0 .6rem; }
.quiet { color: var(--grey); margin: .4rem 0 0; font-size: .92rem; }
.reason { color: var(--bad); font-family: ui-monospace, monospace; font-size: .88rem; overflow-wrap: anywhere; }
.banner { border: 2px solid var(--bad); border-radius: 6px; padding: .5rem .8rem; font-weight: 600; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; }
th, td { text-align: left; vertical-align: top; padding: .45rem .9rem .45rem 0; border-bottom: 1px solid var(--line); }
tr:last-child > * { border-bottom: 0; }
th { color: var(--grey); font-weight: 600; white-space: nowrap; }
td { overflow-wrap: anywhere; min-width: 6rem; }
td:first-child { white-space: nowrap; }
code, pre { font-family: ui-monospace, monospace; font-size: .86rem; }
pre { overflow-x: auto; white-space: pre-wrap; }
details { margin-top: 1rem; }
summary { cursor: pointer; color: var(--link); }
figure { margin: 1.1rem 0 0; }
img { max-width: 100%; height: auto; border-radius: 6px; background: #fff; }
.badge { display: inline-block; border: 1px solid; border-radius: 99px; padding: 0 .6em; font-size: .8rem;
  font-weight: 600; line-height: 1.6; vertical-align: middle; white-space: nowrap; color: var(--wait); }
.completed { color: var(--good); }
.failed, .killed, .timed-out { color: var(--bad); }
.not-run { color: var(--grey); }
"""
