"""One guarded process, seen from both ends: the pool's handle on it, and what runs inside it.

They speak JSON, a line each way an item. Inside, an item is done under its claim and its facts are noted last.
"""

import contextlib
import ctypes
import errno
import faulthandler
import importlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import psutil

from lib.dataset import Claims, Item, find_inputs, read_facts, sweep, whole, write_facts

FLOOD = 100 * 2**20  # bytes that an item may print
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # no item's fault: the run stops
START = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from lib.worker import serve; serve(int(sys.argv[2]))"
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS", "LP_NUM_THREADS")
PACKAGES = ("numpy", "scipy", "igl", "embreex", "trimesh", "skimage", "pyvista", "torch", "transformers", "lib")


# -- the pool's end ---------------------------------------------------------------------------------------------------


class Worker:
    """A handle on one process: ask it to do an item; a watchdog calls check() meanwhile and may end it."""

    def __init__(self, log: Path, threads: int):
        self.lock = threading.Lock()
        self.since = None  # when the item in hand was begun
        self.verdict = ""  # why we killed it
        with log.open("ab") as errors:
            self.log = log.open("rb")  # kept open: another run in the same folder may clear it away
            self.process = subprocess.Popen(
                [sys.executable, "-c", START, json.dumps([*map(str, sys.path)]), str(os.getpid())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env={name: str(threads) for name in THREADS} | os.environ,
                start_new_session=True,  # a Ctrl-C in the terminal is for the run, which decides
                encoding="utf-8",
            )
        self.usage = psutil.Process(self.process.pid)
        self.first_gib = None

    def start(self, job: dict) -> None:
        """Hand over the job; the process imports what the job's function needs."""
        reply = self.ask(job, timeout=600)
        if reply["status"] in ("died", "quarantined"):
            log = f"The end of its log, {self.log.name}:\n{self.tail()[-2000:]}"
            raise RuntimeError(f"a worker could not start ({reply['reason']}). {log}")
        if job["memory"] and self.gib() > job["memory"]:
            takes = f"a worker takes {self.gib():.2f} GiB before its first item"
            raise ValueError(f"memory = {job['memory']:g} GiB an item is too little: {takes}")

    def ask(self, request: dict, timeout: float = 0, memory: float = 0) -> dict:
        """Send one line, wait for the answer. If none comes: {"status": "died", "reason": how and where}."""
        if self.log_size() > FLOOD:
            os.truncate(self.log.name, 0)
        self.mark = self.log_size()
        with self.lock:
            self.since, self.peak, self.timeout, self.memory = time.monotonic(), 0.0, timeout, memory
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except OSError:
            line = ""
        if not line.endswith("\n"):
            self.process.wait()  # it may live on without its pipes: the watchdog looks on
            self.kill()
        with self.lock:
            facts = {"seconds": round(time.monotonic() - self.since, 3), "peak_gib": round(self.peak, 3)}
            self.since = None
        if line.endswith("\n"):
            return facts | json.loads(line)
        status = {"": "died", "stopped": "not run"}.get(self.verdict, "quarantined")
        return facts | {"status": status, "reason": self.obituary()}

    def check(self, deadline: float) -> None:
        """End the process if the item in hand takes too long or too much, or the whole run is past its deadline."""
        with self.lock:
            if self.since is None or self.verdict:
                return
            now, gib = time.monotonic(), self.gib()
            self.peak = max(self.peak, gib)
            if not gib:
                self.kill()  # it is dead, but what it forked may hold its pipes, and we would wait for ever
            elif self.timeout and now - self.since > self.timeout:
                self.condemn(f"timeout: more than {self.timeout:g} s")
            elif self.memory and gib > self.memory:
                self.condemn(f"memory: more than {self.memory:g} GiB")
            elif self.log_size() > self.mark + FLOOD:
                self.condemn(f"flood: printed more than {FLOOD / 2**20:g} MiB")
            elif now > deadline:
                self.condemn("stopped")

    def condemn(self, verdict: str) -> None:
        self.verdict = verdict
        if not verdict.startswith("memory") and hasattr(signal, "SIGUSR1"):
            self.process.send_signal(signal.SIGUSR1)  # it writes to its log where it hangs
            time.sleep(0.1)
        self.kill()

    def kill(self) -> None:
        """End the process and all that it started."""
        with contextlib.suppress(OSError):
            os.killpg(self.process.pid, signal.SIGKILL) if hasattr(os, "killpg") else self.process.kill()

    def obituary(self) -> str:
        code = self.process.returncode
        how = self.verdict or (f"died of {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}")
        frames = re.findall(r'File "(.+)", line (\d+) in (\S+)', self.tail())  # faulthandler's, the innermost first
        return how + place(frames)

    def tail(self) -> str:
        """The end of what it has written to its log about the item in hand."""
        self.log.seek(max(self.mark, self.log_size() - 2**16))
        return self.log.read().decode("utf-8", "replace")

    def log_size(self) -> int:
        return os.fstat(self.log.fileno()).st_size

    def gib(self) -> float:
        """What it takes now; 0 if it is dead."""
        try:
            return self.usage.memory_info().rss / 2**30
        except psutil.Error:
            return 0.0

    def usable(self) -> bool:
        """Alive, and not grown by more than a GiB since its first item: native libraries leak."""
        if self.verdict or self.process.poll() is not None:
            return False
        gib = self.gib()
        self.first_gib = gib if self.first_gib is None else self.first_gib
        return gib < self.first_gib + 1

    def end(self) -> None:
        if self.since is not None:
            self.kill()
        with contextlib.suppress(OSError):  # it died before it read all
            self.process.stdin.close()  # between items this ends it
        if self.process.returncode is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(2)
            self.kill()  # also what its items left running
            self.process.wait()
        self.process.stdout.close()
        self.log.close()


# -- inside -----------------------------------------------------------------------------------------------------------


def serve(parent: int) -> None:
    """Read the job, then items, from standard input until it closes. What the work prints goes to the log."""
    requests, answers = os.fdopen(os.dup(0), encoding="utf-8"), os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    sys.stdout.reconfigure(errors="backslashreplace", line_buffering=True)  # print any file's name; lose no last words
    die_with(parent)
    faulthandler.enable(all_threads=False)
    if hasattr(
        signal, "SIGUSR1"
    ):  # how the pool asks where a hung item hangs; answers even if native code holds the GIL
        faulthandler.register(signal.SIGUSR1, all_threads=False)
    job = json.loads(requests.readline())
    function, own = resolve(job["function"]), os.getpid()
    with Claims(job["dataset"]) as claims:
        answer(answers, {"status": "ready"})
        for line in requests:
            reply = attempt(function, job, Item(**json.loads(line)), claims)
            if os.getpid() != own:
                os._exit(0)  # a child that the item forked and let return: it has no say
            answer(answers, reply)


def answer(stream, reply: dict) -> None:
    stream.write(json.dumps(reply, default=plain) + "\n")
    stream.flush()


def plain(value):
    """Numpy's numbers and arrays as JSON has them."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"a fact or parameter must be a number, a text or a list of them, not {type(value).__name__}")


def attempt(function: Callable, job: dict, item: Item, claims: Claims) -> dict:
    """Do one item, unless another run is at it or has done it meanwhile. Never raises: a fault is an answer."""
    if not claims.take(item.stem):
        return {"status": "busy"}
    try:
        facts = read_facts(item)
        if current(job, item, facts):
            return {"status": "kept", "record": facts[job["stage"]]}
        return {"status": "done", "record": perform(function, job, item, facts)}
    except Exception as error:
        traceback.print_exc()
        for suffix in item.written:  # nothing that could be taken for a result
            item.path(suffix).unlink(missing_ok=True)
        free = shutil.disk_usage(job["dataset"]).free  # numpy's short writes carry no errno
        full = getattr(error, "errno", None) in FULL or free < 2**20
        return {"status": "full" if full else "quarantined", "reason": explain(error)}
    finally:
        claims.drop(item.stem)


def current(job: dict, item: Item, facts: dict) -> bool:
    """Was this stage done with these parameters, from these inputs, and is what it made still whole?"""
    record = facts.get(job["stage"])
    return (
        record is not None
        and record["version"] == job["version"]
        and record["parameters"] == job["parameters"]
        and record["inputs"] == find_inputs(item, facts, job["inputs"])
        and whole(item, record["outputs"])
    )


def perform(function: Callable, job: dict, item: Item, facts: dict) -> dict:
    """Call the stage's function on one item and note what it did. The facts come last: until then nothing counts."""
    sweep(item.folder)
    if stale := facts.pop(job["stage"], None):  # gone before its files are, so that no crash leaves a record that lies
        write_facts(item, facts)
        for suffix in stale["outputs"]:
            item.path(suffix).unlink(missing_ok=True)
    inputs = find_inputs(item, facts, job["inputs"])
    if inputs is None:
        raise ValueError(f"{item.folder}: one of {', '.join(job['inputs'])} is missing; run the earlier notebook again")
    reset_peak()
    start = time.perf_counter()
    result = function(item, **job["parameters"])
    if not isinstance(result, dict):
        raise TypeError(f"{job['function']} must return a dict of facts, not {type(result).__name__}")
    record = {
        "version": job["version"],
        "parameters": job["parameters"],
        "inputs": inputs,
        "outputs": dict(item.written),
        "versions": versions(),
        "seconds": round(time.perf_counter() - start, 3),
        "peak_gib": peak_gib(),
        "facts": json.loads(json.dumps(result, default=plain), parse_constant=lambda _: None),  # JSON knows no NaN
    }
    write_facts(item, facts | {job["stage"]: record})
    return record


def explain(error: Exception) -> str:
    """One line: what went wrong, and where, unless the message is one that we wrote for the user."""
    text = " ".join(str(error).split())[:1000].encode(errors="backslashreplace").decode()
    trace = traceback.extract_tb(error.__traceback__)
    if isinstance(error, ValueError) and Path(trace[-1].filename).parent == Path(__file__).parent:
        return text
    return f"{type(error).__name__}: {text}" + place([(f.filename, f.lineno, f.name) for f in reversed(trace)])


def place(frames: list[tuple]) -> str:
    """Where in our own code something happened, from (file, line, function) with the innermost first."""
    libraries = ("site-packages", sysconfig.get_path("stdlib"))
    ours = [frame for frame in frames if not any(library in frame[0] for library in libraries)] or frames
    return f", in {Path(ours[0][0]).name}:{ours[0][1]} {ours[0][2]}" if ours else ""


def resolve(name: str) -> Callable:
    """ "lib.watertight:watertight" -> the function."""
    module, _, function = name.partition(":")
    return getattr(importlib.import_module(module), function)


def versions() -> dict[str, str]:
    """Of what this process has really loaded."""
    packages, loaded = {"igl": "libigl", "skimage": "scikit-image"}, {"python": platform.python_version()}
    for name in PACKAGES:
        if name in sys.modules:
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # we may run from a bare checkout
                loaded[name] = importlib.metadata.version(packages.get(name, name))
    return loaded


# -- memory and life --------------------------------------------------------------------------------------------------


def reset_peak() -> None:
    """Let the kernel forget the highest memory so far (Linux), so that the peak is the item's own."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_gib() -> float:
    try:
        status = Path("/proc/self/status").read_text()
        return round(int(status.split("VmHWM:")[1].split()[0]) / 2**20, 3)
    except (OSError, IndexError):
        memory = psutil.Process().memory_info()
        return round(getattr(memory, "peak_wset", memory.rss) / 2**30, 3)


def die_with(parent: int) -> None:
    """Leave no orphan: a worker that outlives its run would go on writing into the tree."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: works also while native code holds the GIL
    try:
        process = psutil.Process(parent)
    except psutil.NoSuchProcess:
        os._exit(1)

    def watch() -> None:  # where there is no such signal
        while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
