"""The table of runs, outputs/index.html: what each asked, how it ended, what it scored, what was set differently."""

import collections
import json
import platform
import sys
from datetime import datetime
from pathlib import Path

import psutil

from lib import markup
from lib.claims import Claims
from lib.markup import badge, code, link, minutes, moment, table, text
from lib.tables import mean, rows

SCORES = {  # what a run is known by: where it is written, the column whose mean counts, and of which task's rows
    "11: overlap": ("11_train_vae/scores.csv", "iou", ""),
    "11: F(0.05)": ("11_train_vae/scores.csv", "f_05", ""),
    "07: F(0.05)": ("07_generate/scores.csv", "made", ""),
    "08: overlap, decoded": ("08_evaluate.csv", "iou", "reconstruction"),
    "08: F(0.05), decoded": ("08_evaluate.csv", "f_0.05", "reconstruction"),
    "08: F(0.05), generated": ("08_evaluate.csv", "f_0.05", "generation"),
    "08: F(0.05), compared": ("08_evaluate.csv", "f_0.05", "comparison"),
}
NAMED = 5  # parameters that a row of the table names; all are in the second table
COLUMNS = 12  # runs side by side in it, the latest


def refresh(run: Path) -> None:
    """Write outputs/index.html anew if the run lies in outputs/ here; trouble with it is told, and costs no run."""
    outputs = Path("outputs").resolve()
    if run.resolve().parent != outputs:  # somebody's own folder may have an index.html of its own
        return
    try:
        with Claims(outputs) as claims:  # who reads first must not write last
            claims.take("index.html", wait=True)
            write(outputs)
    except OSError as error:
        sys.stderr.write(f"no table of runs in {outputs}: {error}\n")


def write(outputs: Path) -> None:
    """Write <outputs>/index.html: every folder in it that has a run.json, the latest first."""
    found, damaged = collect(outputs)
    parts = [header(found), overview(outputs, found), parameters(found), broken(damaged)]
    markup.write(outputs / "index.html", "Runs", parts, f"<style>{STYLE}</style>\n")


def collect(outputs: Path) -> tuple[list[dict], dict[str, str]]:
    """What is known of each run, and of those whose record cannot be read, why."""
    found, damaged = [], {}
    for path in sorted(outputs.glob("*/run.json")):
        try:
            found.append(read(path))
        except Exception as error:  # whatever somebody wrote in there
            damaged[path.parent.name] = f"{type(error).__name__}: {error}"
    return sorted(found, key=lambda run: run["started"], reverse=True), damaged


def read(path: Path) -> dict:
    """One run, from its record."""
    record = json.loads(path.read_text(encoding="utf-8"))
    sections = record["sections"]
    status = str(record["status"])
    if status == "running" and record.get("host") == platform.node() and not psutil.pid_exists(record["pid"]):
        status = "killed"  # without a word: nobody was left to write it down
    return {
        "name": path.parent.name,
        "question": (str(record["question"]).splitlines() or [""])[0],
        "status": status,
        "started": datetime.fromisoformat(record["started"]).astimezone(),
        "seconds": sum(float(section.get("seconds", 0)) for section in sections.values()),
        "quarantined": sum(int(section.get("quarantined", 0)) for section in sections.values()),
        "given": {
            name: dict(section.get("parameters", {}))
            for name, section in sections.items()
            if section.get("status") != "not run"
        },
        "scores": scores(path.parent),
    }


def scores(run: Path) -> dict[str, float]:
    """Means of a run's main scores, of those that are there."""
    found = {}
    for name, (file, column, task) in SCORES.items():
        found[name] = mean([row for row in rows(run / file) if not task or row.get("task") == task], column)
    return {name: value for name, value in found.items() if value is not None}


# -- what differs -----------------------------------------------------------------------------------------------------


def differing(runs: list[dict]) -> dict[str, dict[str, str]]:
    """Parameters that are not the same in all runs: {parameter: {run: value}}, each value as it would be written."""
    keys = {key for run in runs for given in run["given"].values() for key in given} - {"run"}
    shared = {key for key in keys if all(len(set(values(run, key).values())) < 2 for run in runs)}
    found: dict[str, dict[str, str]] = {}
    for run in runs:
        for key in sorted(keys):
            for section, value in values(run, key).items():
                found.setdefault(key if key in shared else f"{section}.{key}", {})[run["name"]] = value
    return {name: by_run for name, by_run in sorted(found.items()) if len(set(by_run.values())) > 1}


def values(run: dict, key: str) -> dict[str, str]:
    return {name: json.dumps(given[key], sort_keys=True) for name, given in run["given"].items() if key in given}


def unusual(differs: dict[str, dict[str, str]], name: str) -> list[str]:
    """A run's parameters that most runs have set otherwise."""
    told = []
    for parameter, by_run in differs.items():
        usual = collections.Counter(by_run.values()).most_common(1)[0][0]
        if by_run.get(name, usual) != usual:
            told.append(f"{parameter} = {short(by_run[name])}")
    return told


def short(value: str) -> str:
    return value if len(value) <= 48 else value[:47] + "…"


# -- the page ---------------------------------------------------------------------------------------------------------


def header(found: list[dict]) -> str:
    told = f"{len(found)} of them, the latest first." if found else "None yet: python -m lib.batch params/demo.yaml"
    return f'<header>\n<h1>Runs</h1>\n<p class="quiet">{told} As of {moment(None)}.</p>\n</header>\n'


def overview(outputs: Path, found: list[dict]) -> str:
    differs = differing(found)
    known = [name for name in SCORES if any(name in run["scores"] for run in found)]
    lines = []
    for run in found:
        page = "index.html" if (outputs / run["name"] / "index.html").exists() else "run.json"
        name = link(f"{run['name']}/{page}", run["name"])
        odd = unusual(differs, run["name"])
        aside = f"<br>{run['quarantined']} quarantined" if run["quarantined"] else ""
        more = [f'<a href="#parameters">and {len(odd) - NAMED} more</a>'] if len(odd) > NAMED else []
        lines.append(
            [
                f'{name}<br><span class="asked">{text(run["question"])}</span>',
                f"{moment(run['started'].isoformat())}<br>{badge(run['status'])}{aside}",
                minutes(run["seconds"]),
                *(f"{run['scores'][score]:.3g}" if score in run["scores"] else "" for score in known),
                "<br>".join([code(told) for told in odd[:NAMED]] + more),
            ]
        )
    heads = ["Run", "Begun", "Time", *known, "Unlike most"]
    return f'<section id="runs">\n<h2>All runs</h2>\n{table(heads, lines, "All runs", headed=True)}</section>\n'


def parameters(found: list[dict]) -> str:
    """Runs side by side, a row for each parameter that is not the same in all."""
    shown = found[:COLUMNS]
    differs = differing(shown)
    if not differs:
        return ""
    lines = [
        [code(name), *(code(short(by_run[run["name"]])) if run["name"] in by_run else "" for run in shown)]
        for name, by_run in differs.items()
    ]
    heads = ["Parameter", *(run["name"] for run in shown)]
    more = f'<p class="quiet">Of the latest {COLUMNS} runs.</p>\n' if len(found) > COLUMNS else ""
    body = table(heads, lines, "Parameters that differ", headed=True)
    return f'<section id="parameters">\n<h2>Parameters that differ</h2>\n{more}{body}</section>\n'


def broken(damaged: dict[str, str]) -> str:
    if not damaged:
        return ""
    lines = [[text(name), text(reason)] for name, reason in damaged.items()]
    body = table(["Folder", "Why"], lines, "Records that cannot be read", headed=True)
    return f"<section>\n<h2>Records that cannot be read</h2>\n{body}</section>\n"


STYLE = """
main { max-width: 92rem; }
.asked { color: var(--grey); font-weight: 400; display: inline-block; max-width: 24rem; min-width: 13rem;
  white-space: normal; }
td:has(code) { min-width: 5.5rem; }
#runs td:last-child { min-width: 15rem; }
"""
