"""Run an experiment: the notebooks that a params file names, in order, into a folder that explains itself.

    python -m lib.batch params/demo.yaml [-p name=value] [-p 03_render.name=value] [--only 03_render] [--minutes 90]
    python -m lib.batch --log outputs/demo [folder]

A params file opens with a comment (question, expected cost, expected score), then come keys for every notebook that
has them, then sections named like notebooks, each with only what differs. Paths are absolute, or relative to the
folder the command is run in, the one with `notebooks` in it. The run lies in outputs/<name of the params file>; the
same command again resumes it: every notebook is executed again and keeps what it has made. Notebooks find LIB_BATCH=1
in their environment. Exit codes: 0 all well, 3 done with quarantine, 1 failed, 130 interrupted.

--log writes what is worth sharing of a run to a folder that can be committed, outputs/<run>_<its date> by default:
executed notebooks, page, gallery, ledgers and record; no data, no weights, no paths of this machine.
"""

import argparse
import contextlib
import hashlib
import importlib.metadata
import io
import itertools
import json
import logging
import math
import os
import platform
import re
import secrets
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil

from lib import gallery, log, page, parcel, runs
from lib.claims import Claims
from lib.dataset import sweep, write_text
from lib.engine import Ended, Engine, how_it_died
from lib.export import export
from lib.markup import minutes as in_minutes
from lib.params import choose, resolve

__all__ = ["Engine", "main"]  # papermill finds the engine here

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
CODES = {"completed": 0, "interrupted": 130}  # of the process; any other status is 1
CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f]")  # colours, and what may hide in a file's name


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser("python -m lib.batch", description=__doc__.split("\n")[0])
    parser.add_argument("params", type=Path, nargs="?", help="the experiment, such as params/demo.yaml")
    parser.add_argument("--log", type=Path, nargs="+", metavar="FOLDER", help="a run to share, and where to [its date]")
    parser.add_argument("-p", action="append", default=[], metavar="NAME=VALUE", help="overrides the params file")
    parser.add_argument("--only", nargs="+", default=[], metavar="SECTION", help="run these sections only")
    parser.add_argument("--minutes", type=positive, default=0, help="end a section that takes longer (default: never)")
    options = parser.parse_args(arguments)
    if bool(options.params) == bool(options.log) or len(options.log or []) > 2:
        parser.error("wanted params/NAME.yaml to run an experiment, or --log RUN [FOLDER] to share one")
    options.command = shlex.join(["python", "-m", "lib.batch", *(sys.argv[1:] if arguments is None else arguments)])
    try:
        if options.log:
            return share(*options.log)
        with on_signal(signal.default_int_handler):  # SIGTERM and a closed terminal are like a Ctrl-C
            run, sections = resolve(options.params, options.p)
            return execute(run, options, sections, choose(options.only, sections))
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return CODES["interrupted"]


def share(run: Path, target: Path | None = None) -> int:
    """Write a run's log and say what is in it."""
    target, files = parcel.pack(run, target)
    for size, name in files[:10]:
        print(CONTROL.sub("", f"{size / 1e6:8.2f} MB  {name}"))
    total = sum(size for size, _ in files)
    print(f"{sum(size for size, _ in files[10:]) / 1e6:8.2f} MB  in {len(files[10:])} more" * bool(files[10:]))
    print(f"{total / 1e6:8.2f} MB  in {target}. To commit it: git add -f {shlex.quote(str(target))}")
    return 0


# -- the run ----------------------------------------------------------------------------------------------------------


def execute(run: Path, options, sections: dict[str, dict], chosen: list[str]) -> int:
    """The chosen sections in order, in a folder that nobody else writes to meanwhile."""
    if not importlib.metadata.entry_points(group="papermill.engine", name="lib"):
        raise ValueError("papermill does not know this repo's engine. Install the repo: pip install -e .")
    run.mkdir(parents=True, exist_ok=True)
    with Claims(run) as claims:
        wait_for_turn(claims, run)
        sweep(run)
        record = begin(run, options, sections, chosen)
        try:
            for name in chosen:
                run_section(run, name, record, options.minutes)
                if record["status"] != "running":
                    break
            else:
                record["status"] = "completed"
        except KeyboardInterrupt:
            record["status"] = "interrupted"
        finally:
            finish(run, record)
    quarantined = sum(sections[name].get("quarantined", 0) for name in chosen)
    print(f"{run}: {record['status']}" + f", {quarantined} items quarantined" * bool(quarantined))
    print(Path(run, "index.html").resolve().as_uri())
    return CODES.get(record["status"], 1) or (3 if quarantined else 0)


def wait_for_turn(claims: Claims, run: Path) -> None:
    """Hold the folder alone, by a lock that dies with this process."""
    if claims.take("run"):
        return
    owner = read_record(run)
    who = f"process {owner.get('pid')} on {owner.get('host')} since {owner.get('started')}"
    print(f"{run} is being written by {who}; waiting for it to end", flush=True)
    claims.take("run", wait=True)


def begin(run: Path, options, sections: dict[str, dict], chosen: list[str]) -> dict:
    """The record that explains the run. Sections that are not chosen keep what an earlier run said of them."""
    before = read_record(run).get("sections", {})
    for name, section in sections.items():
        section.update(status="not run", reason="")
        if name not in chosen and name in before:
            section.update(before[name])
            if section["status"] == "running":  # its batch died without a word
                section["status"] = "killed"
    text = options.params.read_text(encoding="utf-8")
    opening = itertools.takewhile(lambda line: line.startswith("#"), text.lstrip().splitlines())
    record = {
        "run": str(run),
        "params": str(options.params),
        "question": "\n".join(line.lstrip("# ") for line in opening),
        "text": text,
        "command": options.command,
        "status": "running",
        "pid": os.getpid(),
        "host": platform.node(),
        "cwd": str(Path.cwd()),
        "started": log.now(),
        "seeds": {name: s["parameters"]["seed"] for name, s in sections.items() if "seed" in s["parameters"]},
        "provenance": {},
        "sections": sections,
    }
    publish(run, record)  # before anything slow: who comes second reads here whom to wait for
    runs.refresh(run)
    record["provenance"] = provenance()
    return record


def provenance() -> dict:
    """Code, packages and machine."""
    from lib import report  # slow to import, and of no use to who mistyped a key

    facts = report.provenance()
    if facts["dirty"]:
        git = ["git", "-C", str(Path(__file__).parents[1])]
        changes = [
            subprocess.run([*git, *order], capture_output=True).stdout for order in (["status", "-s"], ["diff", "HEAD"])
        ]
        facts["diff_sha256"] = hashlib.sha256(b"".join(changes)).hexdigest()
    return facts


def finish(run: Path, record: dict) -> None:
    """No status is left open, also if we failed ourselves."""
    for part in (record, *record["sections"].values()):
        if part["status"] == "running":
            part["status"] = "failed" if part is record else record["status"]
    record["ended"] = log.now()
    publish(run, record)
    runs.refresh(run)


def publish(run: Path, record: dict) -> None:
    """Bring the folder's record and its page up to date."""
    write_text(run / "run.json", json.dumps(record, indent=1))
    page.write(run, record)


def read_record(run: Path) -> dict:
    """What the last run in this folder wrote down, if that can be read."""
    try:
        return json.loads((run / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


# -- one section ------------------------------------------------------------------------------------------------------


def run_section(run: Path, name: str, record: dict, minutes: float) -> None:
    """Execute a notebook in a process of its own and write down how it ended."""
    section = record["sections"][name]
    target = run / f"{name}.ipynb"
    section.update(status="running", started=log.now())
    publish(run, record)
    start = time.monotonic()
    before = ledger_time(run, name)
    job = {key: section[key] for key in ("notebook", "given")} | {"target": str(target), "minutes": minutes}
    ending, peak_gib, stopped = run_process(name, job, target.with_suffix(".log"))
    seconds = round(time.monotonic() - start, 1)
    rows = page.quarantine(run, name) if ledger_time(run, name) != before else []  # an older run's are not ours
    section.update(ending, ended=log.now(), seconds=seconds, peak_gib=peak_gib, quarantined=len(rows))
    about = f"{in_minutes(seconds)}, {peak_gib} GiB" + f", {len(rows)} quarantined" * bool(rows)
    print(CONTROL.sub("", f"{name} {ending['status']} ({about}) {ending['reason']}"), flush=True)
    if ending["status"] != "completed" or stopped:
        record["status"] = "interrupted" if stopped else ending["status"]
    log.settle(target, **ending)
    export(target)
    if not stopped:
        gallery.refresh(run, record["sections"])
    publish(run, record)


def ledger_time(run: Path, name: str) -> int:
    """When the section's ledger was written, 0 if there is none."""
    try:
        return (run / f"{name}.csv").stat().st_mtime_ns
    except OSError:
        return 0


def run_process(name: str, job: dict, text_log: Path) -> tuple[dict, float, bool]:
    """The section's process from start to end: how it ended, its peak memory, and whether we were asked to stop.

    It has a session of its own, so a Ctrl-C reaches it only through us. When we die, its stdin ends and so does it.
    """
    own_group = (
        {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP} if os.name == "nt" else {"start_new_session": True}
    )
    command = [sys.executable, "-m", "lib.batch", "--section"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "bufsize": 0}
    child = subprocess.Popen(command, **pipes, **own_group)
    job["ending"] = secrets.token_hex()  # opens the line that says how it ended; no cell can print it
    signals, ending = [], {}

    def pass_on(number: int, _frame) -> None:
        signals.append(number)
        with contextlib.suppress(OSError):
            child.stdin.write(b"stop\n")

    with on_signal(pass_on):
        reader = threading.Thread(target=relay, args=(child.stdout, name, text_log, job["ending"], ending), daemon=True)
        reader.start()
        with contextlib.suppress(OSError):  # if it is dead already, we shall see
            child.stdin.write(json.dumps(job).encode() + b"\n")
        peak = watch(child)
        reader.join(5 if child.returncode else None)  # no last line if it died, and an orphan may hold the other end
    if not ending:
        status = "interrupted" if signals else "killed" if child.returncode < 0 else "failed"
        ending = {"status": status, "reason": f"the section's process {how_it_died(child.returncode)}"}
    return ending, peak, bool(signals)


def watch(child: subprocess.Popen) -> float:
    """Wait for the process to end, and end what it started: the highest memory of all of them together, in GiB."""
    family, peak = set(), 0.0
    while child.poll() is None:
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(child.pid)
            alive = [process, *process.children(recursive=True)]
            family.update(alive)
            peak = max(peak, sum(member.memory_info().rss for member in alive))
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(1)  # looking costs some milliseconds
    for member in family:
        with contextlib.suppress(psutil.Error):
            member.kill()
    return round(peak / 2**30, 2)


def relay(stream, name: str, text_log: Path, mark: str, ending: dict) -> None:
    """Print what the section prints, keep it in a text file, and pick out the line that says how it ended."""
    try:
        file = os.open(text_log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    except OSError:
        file = os.open(os.devnull, os.O_WRONLY)
    keep = contextlib.suppress(OSError, ValueError)  # a full disk, a closed terminal: read on, or the section stops too
    with keep:
        os.write(file, f"--- {log.now()} {name}\n".encode())
    for line in io.TextIOWrapper(stream, "utf-8", "replace", newline="\n"):
        text, _, said = line.partition(mark)
        if text:
            text = CONTROL.sub("", text.rstrip("\r\n").rsplit("\r", 1)[-1])  # of a bar, its last state
            with keep:
                print(f"{name} | {text}", flush=True)
            with keep:
                os.write(file, f"{text}\n".encode())
        if said:
            ending.update(json.loads(said))
            break
    os.close(file)


def section() -> None:
    """The process of a section: its job is the first line on stdin, every further line is an order to stop."""
    import papermill

    logging.getLogger("papermill").setLevel(logging.ERROR)  # it warns of parameters that its regex does not find
    sys.stdout.reconfigure(encoding="utf-8")
    orders = open(0, "rb", buffering=0, closefd=False)  # noqa: SIM115 (unbuffered: a reader in it does not block our exit)
    job = json.loads(orders.readline())
    ending = {"status": "completed", "reason": ""}
    try:
        papermill.execute_notebook(
            job["notebook"],
            None,  # papermill would format the braces of a path away, and write in place
            job["given"],
            engine_name="lib",
            kernel_name="python3",
            language="python",
            progress_bar=False,
            target=job["target"],
            minutes=job["minutes"],
            orders=orders,
        )
    except Ended as error:
        ending = {"status": error.status, "reason": error.reason}
    except Exception as error:
        ending = {"status": "failed", "reason": f"{type(error).__name__}: {error}"}
    print(job["ending"] + json.dumps(ending), flush=True)


# -- small things -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def on_signal(handler):
    """Let a function hear what asks us to stop, except what our caller told us to ignore (nohup)."""
    heard = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, handler) for number in heard}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def positive(text: str) -> float:
    """A number of minutes."""
    if not 0 < float(text) < math.inf:
        raise ValueError
    return float(text)


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="replace")  # a terminal that lacks a letter must not end a run
    if sys.argv[1:] == ["--section"]:
        section()
    else:
        sys.exit(main())
