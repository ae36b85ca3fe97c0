"""A run as a small folder to commit: notebooks, page, gallery, ledgers and record; no data, and nobody's home in it."""

import base64
import csv
import io
import json
import os
import platform
import re
import shutil
import tempfile
from datetime import datetime
from pathlib import Path

import nbformat

from lib import gallery, page
from lib.dataset import write_text
from lib.log import LIMIT

LARGEST = 12_000_000  # bytes of all together: a repository keeps every version for ever
LEDGER = 300_000  # characters of a table: of a larger one the first rows, and all that were put aside
QUALITY = 75  # of a JPEG
CARDS = 6  # of a gallery, over all its groups
PRIVATE = ("pid", "host", "cwd")  # of a record: of no use elsewhere
TABLES = ("*.csv", "*/curve.csv", "*/validation.csv", "*/scores.csv", "*/made.csv", "*/scores.tex")
BINARY = r"data:[\w/+.;=-]*;base64,[A-Za-z0-9+/=]+"  # pictures in a text: no paths in there, whatever it looks like


def pack(run: Path, target: Path | None = None) -> tuple[Path, list[tuple[int, str]]]:
    """Write a run's log to a folder, by default outputs/<run>_<its date>: the folder, and its files by size."""
    record = read(run)
    target = target or Path("outputs", f"{run.resolve().name}_{record['started'][:10]}")
    refuse(run, target, record)
    hide = veil(record)
    kept: dict[str, str | Path] = {}
    for name in record["sections"]:
        if (run / f"{name}.ipynb").is_file():
            kept[f"{name}.ipynb"] = notebook(run / f"{name}.ipynb", hide)
    shortened: list[str] = []
    for path in sorted({path for pattern in TABLES for path in run.glob(pattern)}):
        text, less = table(path)
        kept[path.relative_to(run).as_posix()] = hide(text)
        shortened += [less] * bool(less)
    if groups := fewer(gallery.manifest(run).get("groups", [])):
        names = {name for name in gallery.listed(groups) if not name.endswith(".glb")}  # again in the .js
        paths = {name: run / "gallery" / name for name in {*names, "viewer.js"}}
        kept |= {f"gallery/{name}": path for name, path in paths.items() if path.is_file()}
        kept |= {name: short(path) for name, path in kept.items() if re.fullmatch(r"gallery/\d\d_\w+\.js", name)}
        kept["gallery/gallery.json"] = hide(json.dumps({"of": [], "groups": groups}, indent=1))
    about = shared(record, hide) | {"shortened": shortened, "files": sorted(kept)}
    lay(kept | {"run.json": json.dumps(about, indent=1)}, target)
    page.write(target, about)
    return target, weigh(target)


def read(run: Path) -> dict:
    """The run's record; ValueError if the folder is not that of a run."""
    try:
        record = json.loads((run / "run.json").read_text(encoding="utf-8"))
        if isinstance(record["sections"], dict) and record["status"] and datetime.fromisoformat(record["started"]):
            return record
        raise ValueError("sections or status")
    except (OSError, ValueError, KeyError, TypeError) as error:
        there = sorted(path.parent.name for path in Path("outputs").glob("*/run.json"))
        raise ValueError(
            f"{run} is not the folder of a run: {run / 'run.json'} cannot be read ({type(error).__name__}). "
            f"Give a folder that lib.batch wrote; in outputs/ there is {', '.join(there) or 'none'}."
        ) from None


def refuse(run: Path, target: Path, record: dict) -> None:
    """Raise ValueError for what would not be a log, or would cost something else."""
    if record["status"] == "running":
        raise ValueError(f"{run} is still running. Share it once it has ended.")
    if target.resolve() == run.resolve():
        raise ValueError(f"{target} is the run itself. Name another folder: its log lies beside it.")
    taken = target.exists() and (not target.is_dir() or any(target.iterdir()))
    if taken and "files" not in earlier(target):
        raise ValueError(f"{target} is there already and no log that was written by --log. Name another folder.")


def earlier(target: Path) -> dict:
    """The record of a log that lies there already."""
    try:
        return read(target)
    except ValueError:
        return {}


# -- what is kept -----------------------------------------------------------------------------------------------------


def shared(record: dict, hide) -> dict:
    """The record without what is only of use on this machine."""
    return walk({key: value for key, value in record.items() if key not in PRIVATE}, hide) | {"shared": True}


def notebook(path: Path, hide) -> str:
    nb = nbformat.read(path, 4)
    for cell in nb.cells:
        cell.source = hide(cell.source)
        for output in cell.get("outputs", []):
            lighter(output)
            for key in ("text", "evalue", "traceback"):
                if key in output:
                    output[key] = walk(output[key], hide)
            for kind, content in output.get("data", {}).items():
                if not kind.startswith("image/"):
                    output["data"][kind] = walk(content, hide)
    nb.metadata = nbformat.from_dict(walk(nb.metadata, hide))
    nb.metadata.pop("widgets", None)
    nbformat.validate(nb)
    text = nbformat.writes(nb)
    if len(text.encode("utf-8", "replace")) > LIMIT:
        raise ValueError(
            f"{path} is over {LIMIT / 1e6:.0f} MB, which GitHub shows no more. Run it again with lib.batch."
        )
    return text


def lighter(output) -> None:
    """The picture of an output in fewer bytes: lines in a palette, shades as JPEG, which GitHub shows as well."""
    from PIL import Image

    data, tried = output.get("data", {}), {}
    try:
        with Image.open(io.BytesIO(base64.b64decode(data.get("image/png", "")))) as image:
            pixels = image.convert("RGB")
    except (OSError, ValueError):  # none, or damaged: it stays as it is
        return
    if image.mode in ("RGBA", "LA", "PA"):  # there is no telling what it lies on
        return
    for kind, picture, options in (
        ("image/png", pixels.quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE), {"optimize": True}),
        ("image/jpeg", pixels, {"quality": QUALITY, "optimize": True, "progressive": True}),
    ):
        buffer = io.BytesIO()
        picture.save(buffer, kind.partition("/")[2], **options)
        tried[kind] = base64.b64encode(buffer.getvalue()).decode()
    kind = min(tried, key=lambda kind: len(tried[kind]))
    if len(tried[kind]) < 0.9 * len(data["image/png"]):
        del data["image/png"]
        data[kind] = tried[kind]
        if "image/png" in output.metadata:
            output.metadata[kind] = output.metadata.pop("image/png")


def fewer(groups: list[dict]) -> list[dict]:
    """A gallery with some of its cards, of each group evenly from the first to the last."""
    share = min(1, CARDS / max(1, sum(len(group["cards"]) for group in groups)))
    return [group | {"cards": gallery.spread(group["cards"], round(share * len(group["cards"])))} for group in groups]


def short(path: Path) -> str:
    """The script of a gallery's mesh, written anew: earlier galleries spent four bytes on an index."""
    from lib import mesh

    text = path.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        glb = Path(folder, f"{path.stem}.glb")
        try:
            glb.write_bytes(gallery.unscripted(text))
            mesh.write(glb, *mesh.read(glb))
            return gallery.script(glb)
        except ValueError:  # damaged, which the page says
            return text


def table(path: Path) -> tuple[str, str]:
    """A table and, if it is a very long one, what was left out: rows that were not put aside, from its end.

    A ledger's commands work where the run lies, so they stay with what was put aside; of numbers six digits do.
    """
    text = path.read_text(encoding="utf-8", errors="replace")
    text = re.sub(r"\d+\.\d{7,}(e-?\d+)?\b", lambda found: f"{float(found[0]):.6g}", text)
    if not text.startswith("item,status,"):
        return text, ""
    head, *rows = csv.reader(io.StringIO(text.replace("\0", "")))
    loud = [row for row in rows if "quarantined" in row]
    kept = io.StringIO()
    writer = csv.writer(kept, lineterminator="\n")
    writer.writerows([head, *loud])
    count, silent = len(loud), head.index("command") if "command" in head else len(head)
    for row in rows:
        if kept.tell() > LEDGER:
            break
        if "quarantined" not in row:
            writer.writerow([*row[:silent], *[""] * bool(row[silent:]), *row[silent + 1 :]])
            count += 1
    return kept.getvalue(), f"{path.name}: {count:,} of {len(rows):,} rows" * (count < len(rows))


def veil(record: dict):
    """A function that takes out of a text where on this machine it was written: the repo, homes, hosts, data."""
    here, home = record.get("cwd") or str(Path.cwd()), str(Path.home())
    names = {f"{here}/": "", f"{here}\\": "", here: ".", home: "~"}
    for section in record["sections"].values():
        for given in (section.get("parameters", {}).get(key) for key in ("meshes", "dataset")):
            if isinstance(given, str) and given:
                names |= away(given, here)
    hosts = {record.get("host"), platform.node()} - {None, ""}
    order = sorted(names, key=len, reverse=True)  # the longest first: the repo may lie in the home
    ours = "|".join(re.escape(name) + (r"(?![\w.-])" if name[-1] not in "/\\" else "") for name in order)
    users = r"(?:/home|/Users|[A-Za-z]:\\+Users)[/\\]+[^/\\\s\"'<>:]+"
    host = "|".join(rf"(?<![\w.-]){re.escape(name)}(?![\w.-])" for name in hosts if len(name) > 3) or "(?!)"
    pattern = re.compile(f"({BINARY})|({ours})|({users})|({host})")

    def replaced(found: re.Match) -> str:
        binary, own, user, _ = found.groups()
        return binary or (names[own] if own else "~" if user else "a machine")

    return lambda text: pattern.sub(replaced, text)


def away(given: str, here: str) -> dict[str, str]:
    """Where data lies outside the repo, also by a link in it, and what is said instead."""
    said = f"~/{Path(given).name}" if Path(given).is_absolute() else given
    places = {str(Path(here, given)), os.path.realpath(Path(here, given))}
    return {place: said for place in places if not Path(place).is_relative_to(here)}


def walk(value, hide):
    """All texts in lists and mappings, their keys too."""
    if isinstance(value, str):
        return hide(value)
    if isinstance(value, dict):
        return {hide(str(key)): walk(content, hide) for key, content in value.items()}
    return [walk(content, hide) for content in value] if isinstance(value, list) else value


# -- the folder -------------------------------------------------------------------------------------------------------


def lay(kept: dict[str, str | Path], target: Path) -> None:
    """Write it all, after it was weighed; of an earlier log in the same folder, what is left over is removed."""
    sizes = {name: what.stat().st_size if isinstance(what, Path) else len(what.encode()) for name, what in kept.items()}
    if sum(sizes.values()) > LARGEST:
        most = sorted(sizes, key=sizes.get, reverse=True)[:5]
        told = ", ".join(f"{name} {sizes[name] / 1e6:.1f} MB" for name in most)
        raise ValueError(
            f"the log would have {sum(sizes.values()) / 1e6:.1f} MB, over the {LARGEST / 1e6:.0f} that a repository "
            f"should take: {told}. Show less in the largest, and run it again."
        )
    for name in earlier(target).get("files", []):
        if name not in kept and (target / name).resolve().is_relative_to(target.resolve()):
            (target / name).unlink(missing_ok=True)
    for name, what in kept.items():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        if isinstance(what, Path):
            shutil.copyfile(what, target / name)
        else:
            write_text(target / name, what)


def weigh(target: Path) -> list[tuple[int, str]]:
    """Every file's size and name, the largest first."""
    files = [path for path in target.rglob("*") if path.is_file()]
    return sorted(((path.stat().st_size, path.relative_to(target).as_posix()) for path in files), reverse=True)
