"""Threads that look after one worker process each.

The mapping is joblib's. Its threads do no work of their own: each looks after one worker process (lib/worker.py), and
one watchdog looks after them all. So a fault costs its own item and nothing else, be it a hang or a crash in native
code, where joblib's own process pools lose every item in flight.
"""

import contextlib
import itertools
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import joblib

from lib.claims import Beat, release
from lib.dataset import Item
from lib.stop import Stop
from lib.worker import Worker

GRACE = 5.0  # seconds that items in flight get to finish when the run is stopped


class Guards:
    """Threads that look after one worker each, and the watchdog that ends what takes too long or too much."""

    def __init__(self, job: dict, stop: Stop, count: int, batch: int = 1, name: str = "", folder: str | None = None):
        self.job, self.stop, self.count, self.batch = job, stop, count, batch
        self.name, self.folder = name, folder  # of the logs, if others have some of this run; where the workers start
        self.mine = threading.local()  # a worker dies with the thread that started it, so each thread has its own
        self.numbers = itertools.count(1)
        self.workers: list[Worker] = []
        self.ended = threading.Event()
        self.beat = Beat(job["dataset"])  # for all that our workers claim: one that hangs could not beat itself
        self.watchdog = threading.Thread(target=self.watch, daemon=True)
        self.parallel = joblib.Parallel(count, backend="threading", return_as="generator_unordered", batch_size=1)
        self.clear(lambda log: True)

    def clear(self, useless: Callable[[Path], bool]) -> None:
        """Remove logs. Another run in this folder may do the same, or (Windows) have them open."""
        for log in Path(self.job["run"]).glob(f"{self.job['stage']}_worker_{self.name}*.log"):
            with contextlib.suppress(OSError):
                if useless(log):
                    log.unlink()

    def __enter__(self) -> "Guards":
        self.watchdog.start()
        self.parallel.__enter__()
        return self

    def __exit__(self, *exception) -> None:
        self.ended.set()
        self.watchdog.join()
        for worker in list(self.workers):
            worker.end()
        self.parallel.__exit__(*exception)
        self.beat.end()
        self.clear(lambda log: not log.stat().st_size)

    def map(self, items: list[Item]) -> Iterator[tuple[Item, dict]]:
        size = min(self.batch, -(-len(items) // self.count))  # a few items are enough for all
        batches = (items[start : start + size] for start in range(0, len(items), size))
        done = self.parallel(joblib.delayed(self.do)(batch) for batch in batches if not self.stop.reason)
        return itertools.chain.from_iterable(done)

    def do(self, items: list[Item]) -> list[tuple[Item, dict]]:
        """One item; once more in a new process if the first one died: what killed it may have come from outside.

        Several at once, or one by one, if their process came to an end over them: then it is known over whom.
        """
        tries = 2 if len(items) == 1 else 1
        for _ in range(tries):
            if self.stop.reason or self.ended.is_set():
                return [(item, {"status": "not run"}) for item in items]
            limits = self.job["timeout"] * len(items), self.job["memory"]
            reply = self.worker().ask([asdict(item) for item in items], *limits)
            if "replies" in reply:
                share = {"seconds": round(reply["seconds"] / len(items), 3), "peak_gib": reply["peak_gib"]}
                return [(item, share | answer) for item, answer in zip(items, reply["replies"], strict=True)]
            release(self.job["dataset"], [item.stem for item in items], self.beat.token)
            if reply["status"] != "died" and len(items) == 1:
                return [(items[0], reply)]
        if len(items) > 1:
            return [pair for item in items for pair in self.do([item])]
        return [(items[0], reply | {"status": "quarantined", "reason": f"{reply['reason']}, twice"})]

    def worker(self) -> Worker:
        """This thread's worker, a new one if it has none or the old one is spent."""
        if not hasattr(self.mine, "log"):
            name = f"{self.job['stage']}_worker_{self.name}{next(self.numbers)}.log"
            self.mine.log = Path(self.job["run"], name)
        worker = getattr(self.mine, "worker", None)
        if worker and worker.usable():
            return worker
        if worker:
            worker.end()
            self.workers.remove(worker)
        self.beat.begin()
        threads = max(joblib.cpu_count() // self.count, 1)
        self.mine.worker = Worker(self.mine.log, threads, self.folder)
        self.workers.append(self.mine.worker)
        if self.ended.is_set():  # the run failed just now, and nobody would end this one
            self.mine.worker.end()
        self.mine.worker.start(self.job | {"beat": self.beat.token})
        return self.mine.worker

    def watch(self) -> None:
        while not self.ended.wait(0.05):
            for worker in list(self.workers):
                worker.check(self.stop.deadline)
