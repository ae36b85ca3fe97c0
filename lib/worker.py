"""One guarded process, seen from both ends: the pool's handle on it, and what runs inside it.

They speak JSON, a line each way for an item, or for some that are done together (lib/attempt.py).
"""

import contextlib
import ctypes
import faulthandler
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil

from lib.attempt import attempt, place, plain, resolve
from lib.claims import Claims
from lib.dataset import Item

FLOOD = 100 * 2**20  # bytes that an item may print
START = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from lib.worker import serve; serve(int(sys.argv[2]))"
THREADS = [f"{library}_NUM_THREADS" for library in ("OMP", "OPENBLAS", "MKL", "LP", "IGL")]
THREADS += ["VECLIB_MAXIMUM_THREADS"]


# -- the pool's end ---------------------------------------------------------------------------------------------------


class Worker:
    """A handle on one process: ask it to do an item; a watchdog calls check() meanwhile and may end it."""

    def __init__(self, log: Path, threads: int, folder: str | None = None):
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
                cwd=folder,
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

    def ask(self, request: dict | list, timeout: float = 0, memory: float = 0) -> dict:
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
    resolve(job["function"])  # imports what it needs
    own = os.getpid()
    with Claims(job["dataset"], job["beat"]) as claims:
        answer(answers, {"status": "ready"})
        for line in requests:
            replies = attempt(job, [Item(**item) for item in json.loads(line)], claims)
            if os.getpid() != own:
                os._exit(0)  # a child that the item forked and let return: it has no say
            answer(answers, {"replies": replies})


def answer(stream, reply: dict) -> None:
    stream.write(json.dumps(reply, default=plain) + "\n")
    stream.flush()


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
