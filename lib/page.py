"""A run's index.html: what was asked, how each notebook ended, its first picture, what was put aside, where it ran."""

import base64
import functools
import io
import re
from pathlib import Path

import nbformat

from lib import cards, curves, markup, runs, tables
from lib.gallery import manifest
from lib.markup import address, badge, code, minutes, moment, table, text, wide

PICTURE = 840  # pixels of a picture's width
ROWS = 500  # of the quarantine that the page shows; the ledgers have them all


def write(run: Path, record: dict) -> None:
    """Write <run>/index.html: all but the gallery's meshes and what it links to is in it."""
    sections = record["sections"]
    title = run.resolve().name
    refresh = '<meta http-equiv="refresh" content="10">\n' if record["status"] == "running" else ""
    parts = [
        header(run, title, record),
        overview(run, sections),
        results(run),
        cards.section(run),
        *(notebook(run, name, section) for name, section in sections.items()),
        put_aside(run, sections),
        origin(record),
    ]
    head = f"{refresh}<style>{curves.STYLE}{cards.STYLE}</style>\n"
    markup.write(run / "index.html", f"{title}: {record['status']}", parts, head)


# -- parts of the page ------------------------------------------------------------------------------------------------


def header(run: Path, title: str, record: dict) -> str:
    question = re.sub(r"\n(?=[A-Z]\w*:)", "<br>", text(record["question"])) or "The params file opens with no question."
    seconds = sum(section.get("seconds", 0) for section in record["sections"].values())
    return f"""<header>
<h1>{text(title)} {badge(record["status"])}</h1>
<p class="question">{question}</p>
<p class="quiet">{minutes(seconds)} in all, begun {moment(record["started"])}, as of {moment(record.get("ended"))}</p>
{ways(run, record)}</header>
"""


def ways(run: Path, record: dict) -> str:
    """Links to the parts of the page, and to the other runs."""
    parts = {"#notebooks": "Notebooks", "#gallery": "Gallery", "#quarantine": "Quarantine", "#origin": "Where it ran"}
    if not manifest(run).get("groups"):
        del parts["#gallery"]
    if not record.get("shared") and (run.resolve().parent / "index.html").exists():  # a shared log stands alone
        parts["../index.html"] = "All runs"
    links = "".join(f'<a href="{target}">{words}</a>\n' for target, words in parts.items())
    return f'<nav aria-label="This page">{links}</nav>\n'


def overview(run: Path, sections: dict) -> str:
    rows = [
        [
            f'<a href="#{address(name)}">{text(name)}</a>',
            badge(section["status"]),
            minutes(section["seconds"]) if "seconds" in section else "",
            f"{section['peak_gib']:.2f} GiB" if "peak_gib" in section else "",
            str(section.get("quarantined", "")),
            links(run, name),
        ]
        for name, section in sections.items()
    ]
    heads = ["Notebook", "Status", "Time", "Peak memory", "Quarantined", "Log"]
    return f'<section id="notebooks">\n<h2>Notebooks</h2>\n{table(heads, rows, "Notebooks", headed=True)}</section>\n'


def results(run: Path) -> str:
    """The run's main scores, if it has some."""
    if not (found := runs.scores(run)):
        return ""
    pairs = "".join(f"<div><dt>{text(name)}</dt><dd>{value:.3g}</dd></div>\n" for name, value in found.items())
    return f'<section id="scores">\n<h2>Scores</h2>\n<dl>\n{pairs}</dl>\n</section>\n'


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
    return f'<span class="files">{" ".join(file_link(name, *pair) for pair in there.items())}</span>'


def file_link(name: str, kind: str, file: str) -> str:
    return f'<a href="{address(file)}" aria-label="{text(name)}: {kind}">{kind}</a>'


def notebook(run: Path, name: str, section: dict) -> str:
    reason = f'<p class="reason">{text(section["reason"])}</p>\n' if section["reason"] else ""
    differs = [
        [f"<code>{text(key)}</code>", code(change["value"]), code(change["default"]), text(change["help"])]
        for key, change in section["differs"].items()
    ]
    heads = ["Parameter", "Here", "Default", "Meaning"]
    changes = table(heads, differs, f"Parameters of {name}", headed=True) if differs else "<p>All defaults.</p>\n"
    loud = "".join(f'<p class="banner">{text(told)}</p>\n' for told in banners(run / f"{name}.ipynb"))
    figure = ""
    if picture := first_picture(run / f"{name}.ipynb"):
        source, about = picture
        image = f'<img src="{source}" alt="{text(about or "First picture of " + name)}">'
        log = next(file for file in (f"{name}.html", f"{name}.ipynb") if (run / file).exists())
        figure = f'<figure><a href="{address(log)}">{image}</a></figure>\n'
    return f"""<section id="{text(name)}">
<h2>{text(name)} {badge(section["status"])}</h2>
{reason}{loud}{changes}{curves.curves(run / name)}{figure}</section>
"""


def put_aside(run: Path, sections: dict) -> str:
    rows = [
        [text(name), *(text(row[key]) for key in ("item", "reason", "seconds")), code(row["command"])]
        for name, section in sections.items()
        if section.get("quarantined")
        for row in quarantine(run, name)
    ]
    if not rows:
        return '<section id="quarantine">\n<h2>Quarantine</h2>\n<p>Nothing was put aside.</p>\n</section>\n'
    more = f"<p>{len(rows) - ROWS} more are in the ledgers.</p>\n" if len(rows) > ROWS else ""
    heads = ["Notebook", "Item", "Reason", "Seconds", "Repeat it alone"]
    body = table(heads, rows[:ROWS], "Quarantine")
    return f'<section id="quarantine">\n<h2>Quarantine: {len(rows)}</h2>\n{body}{more}</section>\n'


def origin(record: dict) -> str:
    """Where it ran, with which code, and the command that repeats it."""
    facts = record["provenance"]
    packages = {"python": facts.get("python", "")} | facts.get("packages", {})
    changes = f", with changes not committed ({facts.get('diff_sha256', '')[:12]})" if facts.get("dirty") else ""
    rows = {
        "Command": code(record["command"]),
        "Commit": text((facts.get("commit") or "no git checkout") + changes),
        "Machine": text(f"{facts.get('cpu')}, {facts.get('cores')} cores, {facts.get('memory_gib')} GiB"),
        "System": text(f"{facts.get('system')}, {record.get('host', '')}".rstrip(", ")),
        "GPU": text("; ".join(facts.get("gpu", [])) or "none"),
        "Seeds": text(", ".join(f"{name}: {seed}" for name, seed in record["seeds"].items()) or "none"),
        "Packages": text(", ".join(f"{name} {version}" for name, version in packages.items())),
    }
    if record.get("shortened"):
        rows["Shortened here"] = text("; ".join(record["shortened"]))
    lines = "".join(f'<tr><th scope="row">{head}</th><td>{cell}</td></tr>\n' for head, cell in rows.items())
    return f"""<section id="origin">
<h2>Where it ran</h2>
{wide(f"<table>{lines}</table>", "Where it ran")}<details><summary>{text(record["params"])}</summary>
<pre>{text(record["text"])}</pre></details>
<p class="quiet">All of this for programs: <a href="run.json">run.json</a></p>
</section>
"""


# -- what it is made from ---------------------------------------------------------------------------------------------


def quarantine(run: Path, name: str) -> list[dict]:
    """The rows of a section's ledger that were put aside."""
    aside = [row for row in tables.rows(run / f"{name}.csv") if row.get("status") == "quarantined"]
    return [{key: row.get(key) or "" for key in ("item", "reason", "seconds", "command")} for row in aside]


def first_picture(log: Path) -> tuple[str, str] | None:
    """The first picture of an executed notebook as a data URL, and what its author says it shows."""
    for output in outputs(log):
        for kind in ("image/png", "image/jpeg"):  # the latter in a log that was made small
            if picture := output.get("data", {}).get(kind):
                about = output.metadata.get(kind, output.metadata)
                return smaller(re.sub("[^A-Za-z0-9+/=]", "", picture), kind), str(about.get("alt", ""))
    return None


@functools.lru_cache(64)
def smaller(picture: str, kind: str) -> str:
    """A picture at the width of the page, as a data URL: the log beside it has it in full."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(base64.b64decode(picture))) as image:
            image.thumbnail((PICTURE, 4 * PICTURE))
            buffer = io.BytesIO()
            image.convert("RGB").save(buffer, "webp", quality=78)
        return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    except (OSError, ValueError):
        return f"data:{kind};base64,{picture}"


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
