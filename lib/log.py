"""An executed notebook as a log: it says how it ended, stays small, and is on disk whole or not at all."""

import copy
import html
import platform
import re
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import nbformat

from lib.dataset import write_text

LIMIT = 2_000_000  # bytes of an executed notebook; GitHub and nbviewer show no larger ones
TEXT = 40_000  # characters that an output of more than twice as many is cut to; fewer if that is still too much
WIDGET = "application/vnd.jupyter.widget-view+json"
MARKER = "papermill-error-cell-tag"  # papermill removes cells with this tag when it executes a log again


# -- how it ended -----------------------------------------------------------------------------------------------------


def begin(nb) -> None:
    """Make a notebook an empty log: no cell has run yet."""
    nb.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nb.metadata.language_info = {
        "name": "python",
        "version": platform.python_version(),
        "pygments_lexer": "ipython3",
        "file_extension": ".py",
        "mimetype": "text/x-python",
    }
    nb.metadata.papermill.update(status="running", reason="", exception=None, start_time=now(), end_time=None)
    for cell in nb.cells:
        cell.metadata.papermill = {"status": "not run", "exception": None, "start_time": None, "end_time": None}
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None


def begin_cell(cell) -> None:
    cell.metadata.papermill.update(status="running", start_time=now())


def finish_cell(cell, status: str) -> None:
    finish_note(cell.metadata.papermill, status)


def finish(nb, status: str, reason: str) -> None:
    """Write down how it ended: in the notebook, in the cell it ended in, and at the top for people."""
    finish_note(nb.metadata.papermill, status)
    nb.metadata.papermill["reason"] = reason
    for cell in nb.cells:
        if cell.metadata.papermill["status"] == "running":
            finish_cell(cell, status)
    if status != "completed":
        banner = nbformat.v4.new_markdown_cell(f"<b>{status}</b>: <code>{html.escape(reason)}</code>")
        banner.metadata = nbformat.from_dict({"tags": [MARKER], "papermill": {"status": status}})
        nb.cells.insert(0, banner)


def finish_note(note: dict, status: str) -> None:
    """papermill's own keys for one cell or the whole notebook, with its status."""
    note.update(status=status, end_time=now(), exception=None if status == "completed" else True)
    span = datetime.fromisoformat(note["end_time"]) - datetime.fromisoformat(note["start_time"])
    note["duration"] = span.total_seconds()


def settle(target: Path, status: str, reason: str) -> None:
    """Finish the log of an execution that died without a word; nothing to do if it had its word."""
    if not running(target).exists():
        return
    nb = nbformat.read(running(target), 4)
    saved = datetime.fromtimestamp(running(target).stat().st_mtime, UTC)
    finish(nb, status, f"{reason}. Last saved at {saved:%H:%M:%S} UTC")
    replace_running(nb, target, "")


# -- on disk ----------------------------------------------------------------------------------------------------------


def running(target: Path) -> Path:
    """Where a log lies until it has ended; the one of the time before stays in its place so long."""
    return target.with_suffix(".running.ipynb")


def replace_running(nb, target: Path, cut: str) -> None:
    """The running log becomes the log."""
    try:
        save(nb, target, cut)
    except OSError:  # on a full disk, the running log's room may do
        running(target).unlink(missing_ok=True)
        save(nb, target, cut)
    running(target).unlink(missing_ok=True)


def save(nb, target: Path, cut: str) -> None:
    """Write the log beside its place, then move it there: what lay there before survives a full disk."""
    content = nbformat.writes(slim(nb, cut)).encode("utf-8", "replace").decode()  # a file's name may hold half a letter
    try:
        write_text(target, content)
    except OSError as error:
        free = shutil.disk_usage(target.parent).free / 2**20
        raise OSError(
            f"cannot save the log {target}: {error.strerror}; its disk has {free:.1f} MiB left. "
            "Make room and run the same command again; an earlier log is untouched."
        ) from error


# -- small ------------------------------------------------------------------------------------------------------------


def slim(nb, cut: str):
    """A copy without widgets and below the limit: long texts go first, then the largest pictures."""
    nb = copy.deepcopy(nb)
    nb.metadata.pop("widgets", None)
    outputs = [output for cell in nb.cells if cell.cell_type == "code" for output in strip_widgets(cell)]
    length = TEXT
    shorten_texts(outputs, length, cut)
    while (excess := len(nbformat.writes(nb).encode("utf-8", "replace")) - LIMIT) > 0 and length > 500:
        length //= 2
        shorten_texts(outputs, length, cut)
    for size, data, kind in sorted(pictures(outputs), key=lambda picture: -picture[0]):
        if excess <= 0:
            break
        note = f"[{kind} of {size / 1e6:.1f} MB left out: a log stays below {LIMIT / 1e6:.0f} MB]"
        data["text/plain"] = f"{data.get('text/plain', '')}\n{note}".strip()
        del data[kind]
        excess -= size - len(note)
    return nb


def strip_widgets(cell) -> list:
    """Drop what only a live widget can show but keep its fallback, unless that is a mere name or a frozen bar."""
    kept = []
    for output in cell.outputs:
        data = output.get("data", {})
        if WIDGET in data:
            del data[WIDGET]
            mere = r"\w*\(.*\)|.*\d+%\|.*"  # IntSlider(value=3), or a progress bar as it was at its start
            if not set(data) - {"text/plain"} and re.fullmatch(mere, data.get("text/plain", "()"), re.DOTALL):
                continue
        kept.append(output)
    cell.outputs = kept
    return kept


def pictures(outputs: list) -> Iterator[tuple[int, dict, str]]:
    """All but the plain text: size, the output's data, and the key in it."""
    for data in (output.get("data", {}) for output in outputs):
        yield from ((len(str(data[kind])), data, kind) for kind in data if kind != "text/plain")


def shorten_texts(outputs: list, length: int, cut: str) -> None:
    for output in outputs:
        if output.output_type == "stream":
            output.text = shorten(output.text, length, cut)
        elif output.output_type == "error":
            output.evalue = shorten(output.evalue, length, cut)
            output.traceback = shorten("\n".join(output.traceback), length, cut).split("\n")
        elif "text/plain" in output.data:
            output.data["text/plain"] = shorten(output.data["text/plain"], length, cut)


def shorten(text: str, length: int, cut: str) -> str:
    """The beginning and the end of a long text, with a line between them that says so."""
    if "\r" in text:
        text = "\n".join(map(last_state, text.split("\n")))
    if len(text) <= 2 * length:
        return text
    return f"{text[: length // 2]}\n[... cut to keep this log small; {cut} ...]\n{text[-length // 2 :]}"


def last_state(line: str) -> str:
    """What is to be seen of a line that was written over, as progress bars do."""
    seen = line.rstrip("\r")
    return seen.rsplit("\r", 1)[-1] + line[len(seen) :]


def now() -> str:
    return datetime.now().astimezone().isoformat(timespec="milliseconds")
