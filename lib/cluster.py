"""The pool's items on many machines, by the workers of a dask scheduler that runs already.

A dask worker only looks after processes of its own (lib/guards.py), as the pool does on one machine: so what an item
does to its process it does not do to dask, and the ledger comes to the same. All machines see the dataset, the run's
folder and this repo under the same paths. Dask gives what a lost machine had to another one.
"""

import contextlib
import hashlib
import json
import math
import os
import platform
import queue
import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import CancelledError
from dataclasses import asdict, dataclass, field
from pathlib import Path

from lib.dataset import Item
from lib.guards import GRACE, Guards
from lib.stop import Stop
from lib.words import say

IDLE = 30.0  # seconds after which a dask worker ends processes that nobody asks for anything
LOST = 3  # times that what came to no end is given out again
ANSWER = 10.0  # seconds in which all dask workers should have done as they are told


# -- the run's end ----------------------------------------------------------------------------------------------------


@dataclass
class Flight:
    """Some items on their way."""

    items: list[Item]
    tries: int = 0  # that came to no end
    alone: bool = False  # dask blames it for the death of workers; so do we, if it happens with nothing beside it
    since: float = field(default_factory=time.monotonic)


class Cluster:
    """Gives items to a scheduler's workers, few at a time, and takes what comes back as it comes."""

    def __init__(self, job: dict, stop: Stop, scheduler: str, jobs: int = -1, batch: int = 1):
        self.job, self.stop, self.scheduler, self.jobs, self.batch = job, stop, scheduler, jobs, batch
        self.run = os.urandom(8).hex()
        self.order = json.dumps({"run": self.run, "job": job, "code": code(), "folder": os.getcwd()})  # noqa: PTH109
        self.done: queue.SimpleQueue = queue.SimpleQueue()
        self.flying: dict = {}  # future -> Flight
        self.count, self.counted = 0, -math.inf  # threads, and when we last asked how many there are

    def __enter__(self) -> "Cluster":
        for log in Path(self.job["run"]).glob(f"{self.job['stage']}_worker_*.log"):
            log.unlink(missing_ok=True)
        self.client = connect(self.scheduler)
        threads, workers = self.threads(), len(self.client.nthreads())
        say(f"{self.job['stage']}: on {workers} workers with {threads} threads, {self.scheduler}")
        return self

    def __exit__(self, *_) -> None:
        try:
            self.client.cancel(list(self.flying), force=True)
            self.tell(end)
            self.client.close()
        except (OSError, RuntimeError) as error:  # the scheduler is gone, and its workers end themselves
            say(f"{self.job['stage']}: {self.scheduler} could not be told that the run is over: {error}")
        for log in Path(self.job["run"]).glob(f"{self.job['stage']}_worker_*.log"):
            if not log.stat().st_size:
                log.unlink(missing_ok=True)

    def tell(self, what, *more) -> None:
        """Have all dask workers do something for this run; one that does not answer is not waited for."""
        asked = threading.Thread(target=self.client.run, args=(what, self.run, *more), kwargs={"on_error": "ignore"})
        asked.daemon = True
        asked.start()
        asked.join(ANSWER)

    def threads(self) -> int:
        """How many items can be done at a time; workers come and go."""
        if time.monotonic() - self.counted > 2:
            self.counted = time.monotonic()
            with contextlib.suppress(OSError):  # check() tells of a scheduler that is lost for good
                self.count = sum(self.client.nthreads().values())
        return min(self.count, self.jobs) if self.jobs > 0 else self.count

    def map(self, items: list[Item]) -> Iterator[tuple[Item, dict]]:
        size = max(min(self.batch, -(-len(items) // (self.threads() or 1))), 1)
        waiting = deque(Flight(items[start : start + size]) for start in range(0, len(items), size))
        suspects: deque[Flight] = deque()
        held = False
        while (not self.stop.reason and (waiting or suspects)) or self.flying:
            if self.stop.reason and not held:
                self.tell(hold, max(self.stop.deadline - time.monotonic(), 0.0))  # what is in hand may be finished
                held = True
            if time.monotonic() > self.stop.deadline + 1:
                return
            if not self.stop.reason:
                self.give_out(waiting, suspects)
            try:
                future = self.done.get(timeout=0.2)
            except queue.Empty:
                self.check()
                continue
            if flight := self.flying.pop(future, None):
                yield from self.outcome(future, flight, waiting, suspects)

    def give_out(self, waiting: deque, suspects: deque) -> None:
        """Enough for all threads and a few more: the scheduler has no list of a million tasks to keep."""
        if self.client.status != "running":  # it lost the scheduler, and tries to find it again
            return self.check()
        threads = self.threads()
        room = (threads if self.jobs > 0 else threads + max(threads // 4, 1)) or 1
        while waiting and len(self.flying) < room:
            self.send(waiting.popleft())
        if suspects and not self.flying:
            self.send(suspects.popleft())

    def send(self, flight: Flight) -> None:
        flight.since = time.monotonic()
        items = json.dumps([asdict(item) for item in flight.items])
        future = self.client.submit(work, self.order, items, key=f"{self.job['stage']}-{os.urandom(8).hex()}")
        self.flying[future] = flight
        future.add_done_callback(self.done.put)

    def outcome(self, future, flight: Flight, waiting: deque, suspects: deque) -> list[tuple[Item, dict]]:
        """Replies, or none yet: some are given out again."""
        from distributed import KilledWorker

        failure = future.exception() if future.status == "error" else None
        if isinstance(failure, KilledWorker):
            if not flight.alone:  # the one that killed them may have been its neighbour
                suspects.extend(Flight([item], flight.tries, alone=True) for item in flight.items)
                return []
            reason = f"lost: {failure.allowed_failures + 1} workers died while they had it and no other item, "
            reason += f"the last was {failure.last_worker.address}"
            seconds = round(time.monotonic() - flight.since, 3)
            return [(flight.items[0], {"status": "quarantined", "seconds": seconds, "reason": reason})]
        if failure:
            raise failure
        replies = []
        if future.status == "finished":
            with contextlib.suppress(TimeoutError, CancelledError, OSError):  # its worker died with the answer
                replies = json.loads(future.result(timeout=ANSWER))
        unfinished = {"status": "not run"}
        if self.stop.reason or (replies and unfinished not in replies):
            return list(zip(flight.items, replies or [unfinished] * len(flight.items), strict=True))
        flight.tries += self.client.status == "running"
        if flight.tries > LOST:
            reason = f"lost: it came to no end on {self.scheduler}, {flight.tries} times ({future.status})"
            return [(item, {"status": "quarantined", "reason": reason}) for item in flight.items]
        waiting.append(flight)
        return []

    def check(self) -> None:
        if self.client.status in ("closing", "closed"):
            raise OSError(
                f"{self.job['stage']} stopped: the scheduler {self.scheduler} is lost ({self.client.status}). "
                "What is done is kept: start it again, and the same command goes on from here."
            )


def connect(scheduler: str):
    """A client of the scheduler at an address, or in a scheduler's file."""
    try:
        from distributed import Client
    except ImportError:
        raise ValueError(
            f"scheduler = {scheduler!r}, but the package distributed is not installed. Run: pip install -e .[cluster] "
            '(here and on the workers), or set scheduler = "" to work on this machine.'
        ) from None
    path = Path(scheduler)
    if "://" not in scheduler and not path.is_file():
        raise ValueError(f'scheduler = {scheduler!r}; wanted an address, as "tcp://host:8786", or a scheduler\'s file')
    where = {"address": scheduler} if "://" in scheduler else {"scheduler_file": str(path)}
    try:
        return Client(**where, timeout=10, set_as_default=False, name="pool")
    except (OSError, ValueError) as error:
        raise ValueError(
            f"no scheduler answers at {scheduler} ({error}). `dask scheduler` starts one and prints its address."
        ) from None


def code() -> str:
    """A hash of this library, which must be the same on all machines."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:12]


# -- a dask worker's end ----------------------------------------------------------------------------------------------


class Post:
    """What this dask worker does for one run."""

    def __init__(self, order: dict):
        check_place(order)
        from distributed import get_worker

        self.worker, self.stop = get_worker(), Stop(GRACE)
        name = f"{platform.node()}_{os.getpid()}_"
        self.guards = Guards(order["job"], self.stop, self.worker.state.nthreads, 1, name, order["folder"])
        self.keys: dict[str, float] = {}
        self.last = time.monotonic()
        self.guards.__enter__()
        threading.Thread(target=self.look_on, args=(order["run"],), daemon=True).start()

    def do(self, items: list[dict]) -> list[dict]:
        key = self.worker.get_current_task()
        self.keys[key] = time.monotonic()
        try:
            return [reply for _, reply in self.guards.do([Item(**item) for item in items])]
        finally:
            self.last = time.monotonic()
            del self.keys[key]

    def look_on(self, run: str) -> None:
        """End it all when nobody waits for what is in hand (the run is over or was killed), or nothing was for long."""
        while not self.guards.ended.wait(0.1):
            tasks = self.worker.state.tasks
            wanted = all(key in tasks and tasks[key].state == "executing" for key in list(self.keys))
            if not wanted or (not self.keys and time.monotonic() - self.last > IDLE):
                self.stop.deadline = 0.0
                end(run)


POSTS: dict[str, Post] = {}  # of this process, by run
OVER: set[str] = set()  # runs that begin nothing more
LOCK = threading.Lock()


def work(order: str, items: str) -> str:
    """What dask calls: some items under this process's guards. Texts in, text out."""
    order, items = json.loads(order), json.loads(items)
    run = order["run"]
    with LOCK:
        if run in OVER:
            return json.dumps([{"status": "not run"}] * len(items))
        if run not in POSTS:
            POSTS[run] = Post(order)
        post = POSTS[run]
        post.last = time.monotonic()
    return json.dumps(post.do(items))


def hold(run: str, grace: float) -> None:
    """Begin nothing more for a run; what is in hand has some seconds to end."""
    with LOCK:
        OVER.add(run)
        if post := POSTS.get(run):
            post.stop.reason, post.stop.deadline = "the run is stopped", time.monotonic() + grace


def end(run: str) -> None:
    """End all processes that this dask worker has for a run."""
    with LOCK:
        post = POSTS.pop(run, None)
    if post:
        post.stop.reason = post.stop.reason or "the run is over"
        post.guards.__exit__(None, None, None)


def check_place(order: dict) -> None:
    """This machine must see what the run's sees, and have the same code."""
    here = f"the dask worker {os.getpid()} on {platform.node()}"
    for name in ("dataset", "run"):
        if not Path(order["job"][name]).is_dir():
            raise ValueError(f"{here} sees no folder {order['job'][name]}. Mount it there under the same path.")
    if not Path(order["folder"]).is_dir():
        raise ValueError(f"{here} has no folder {order['folder']}, where the run was started. Put the repo there too.")
    if order["code"] != code():
        raise ValueError(f"{here} has other code in {Path(__file__).parent}. Bring both to the same, and try again.")
