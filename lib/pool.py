"""Map one function over items: each in a guarded process, what is done is kept, one bad item hurts no other.

The items are done on this machine (lib/guards.py), or on those that a dask scheduler has (lib/cluster.py).
"""

import inspect
import json
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal, get_args, get_origin, get_type_hints

import joblib
import pandas

from lib.attempt import alone, current, plain, resolve
from lib.claims import Claims
from lib.cluster import Cluster
from lib.dataset import Item, duplicates, find_inputs, read_facts, read_items, write_text, writing
from lib.guards import GRACE, Guards
from lib.stop import Stop
from lib.words import in_words, say

COLUMNS = (
    "item",
    "status",
    "reason",
    "seconds",
    "peak_gib",
    "source",
    "command",
)  # of every ledger; a stage's facts follow

LOOKING = 16  # threads that look what is done already


@dataclass(frozen=True)
class Job:
    """What is to be done to every item; goes to the workers and into the run's folder as JSON."""

    stage: str
    function: str  # "lib.watertight:watertight"
    parameters: dict
    inputs: list
    version: int
    dataset: str
    resolution: int
    run: str
    timeout: float
    memory: float
    means: dict = field(default_factory=dict)
    together: str = ""  # "lib.latents:encode", or none


def map(
    function: Callable,  # f(item, **parameters, **means) -> dict of facts, at the top of a module
    items: list[Item],
    stage: str,  # the notebook's name, as in "01_watertight"
    run: str | Path,  # folder for the ledger and the workers' logs
    parameters: dict | None = None,  # what the function gets; an item done with others is done again
    *,
    inputs: tuple[str, ...] = ("source",),  # suffixes of the files it reads; "source" is the original mesh
    jobs: int = -1,  # items at a time, -1 = one a core, or one a thread of the scheduler's workers
    scheduler: str = "",  # address of a dask scheduler, or its file: its workers do the items; "" = this machine
    timeout: float = 0,  # seconds an item may take, 0 = any
    memory: float = 0,  # GiB an item may take, 0 = any
    means: dict | None = None,  # more of what it gets, which makes no other result of it: a device, where weights lie
    together: Callable | None = None,  # f(questions, **parameters, **means) -> answers; see lib/attempt.py
    batch: int = 1,  # items whose questions are answered together
) -> pandas.DataFrame:
    """Do every item that is not done yet. Returns the ledger, a row an item, which is also <run>/<stage>.csv.

    A stage with a model is a generator: it yields a question for the model (read in a thread), gets the answer, writes
    it (in a thread) and returns its facts. `together` answers the questions of up to `batch` items. With two or three
    jobs the one reads and writes while the other has the device.
    Raise VERSION in the function's module when the same parameters come to give other files: all is done again then.
    """
    if not items:
        raise ValueError(f"{stage}: no items to work on")
    parameters, means = (json.loads(json.dumps(given or {}, default=plain)) for given in (parameters, means))
    if bool(together) != inspect.isgeneratorfunction(function):
        raise ValueError(f"{stage}: a stage that yields questions needs `together`, which answers them, and no other")
    if batch < 1:
        raise ValueError(f"batch = {batch}; wanted 1 or more items that are done together")
    job = Job(
        stage=stage,
        function=name_of(function, parameters | means),
        parameters=parameters,  # as the facts have them: a tuple is a list
        means=means,
        together=name_of(together, parameters | means) if together else "",
        inputs=list(inputs),
        version=getattr(sys.modules[function.__module__], "VERSION", 1),
        dataset=str(Path(items[0].dataset).absolute()),
        resolution=items[0].resolution,
        run=str(Path(run).absolute()),
        timeout=timeout,
        memory=memory,
    )
    Path(job.dataset).mkdir(parents=True, exist_ok=True)
    ledger = Ledger(job, items)
    todo = plan(job, items, ledger)
    try:
        with Stop(GRACE) as stop, guarded(job, stop, scheduler if todo else "", jobs, batch, len(todo)) as guards:
            work_off(todo, ledger, guards, stop)
    finally:
        ledger.write()
    say(f"{stage}: {ledger.tally()} in {in_words(time.monotonic() - ledger.started)}, see {short(str(ledger.path))}")
    if stop.reason:
        error = KeyboardInterrupt if stop.signal else OSError
        raise error(f"{stage} stopped: {stop.reason}. What is done is kept: the same command goes on from here.")
    table = ledger.table()
    table.attrs["wall"] = time.monotonic() - ledger.started  # seconds of the whole run, for rates
    return table


def guarded(job: Job, stop: Stop, scheduler: str, jobs: int, batch: int, items: int) -> Guards | Cluster:
    """Who does the items: processes here, or a cluster's."""
    if scheduler:
        return Cluster(asdict(job), stop, scheduler, jobs, batch)
    return Guards(asdict(job), stop, min(joblib.effective_n_jobs(jobs), items or 1), batch)


def work_off(todo: list[Item], ledger: "Ledger", guards: Guards | Cluster, stop: Stop) -> None:
    """Do the items and enter them, also those that another run has in hand: it may fail."""
    told = 0
    while todo and not stop.reason:
        busy = []
        for item, reply in guards.map(todo):
            if reply["status"] == "busy":
                busy.append(item)
            elif reply["status"] == "full":
                stop.because(f"nothing can be written to {ledger.job.dataset} ({reply['reason']})")
            elif reply["status"] != "not run":
                ledger.enter(item, reply)
                ledger.progress()
        if busy and len(busy) != told:
            say(f"{ledger.job.stage}: {len(busy)} items are being done by another run; waiting for it")
        if todo := busy:
            told = len(busy)
            time.sleep(1)


def name_of(function: Callable, parameters: dict) -> str:
    """The name by which a worker imports the function."""
    name = f"{function.__module__}:{function.__qualname__}"
    if function.__module__ == "__main__" or "<" in name or resolve(name) is not function:
        raise ValueError(f"{name} cannot be imported by another process. Define it at the top of a module.")
    try:
        inspect.signature(function).bind(None, **parameters)
    except TypeError as error:  # every item would fail, and lose what it has
        raise ValueError(f"{name}{inspect.signature(function)}: {error}") from None
    for key, hint in get_type_hints(function).items():
        if get_origin(hint) is Literal and key in parameters and parameters[key] not in get_args(hint):
            choices = " or ".join(repr(choice) for choice in get_args(hint))
            raise ValueError(f"{key} = {parameters[key]!r}; wanted {choices}. Nothing was touched.")
    return name


def plan(job: Job, items: list[Item], ledger: "Ledger") -> list[Item]:
    """Enter what is done already into the ledger, leave out what has nothing to work on, return the rest."""
    twins = duplicates(items) if "source" in job.inputs else {}
    todo, waiting, wanted = [], set(), asdict(job)

    def look(item: Item) -> dict | None:
        """How it stands, None if it is to do."""
        if item.name in twins:
            return {"status": "quarantined", "reason": f"duplicate: the same bytes as {twins[item.name]}"}
        facts = read_facts(item)
        if current(wanted, item, facts):
            return {"status": "kept", "record": facts[job.stage]}
        return {"status": "waiting"} if find_inputs(item, facts, job.inputs) is None else None

    for item, standing in zip(items, at_once(look, items), strict=True):
        if standing is None:
            todo.append(item)
        elif standing["status"] == "waiting":
            waiting.add(item.name)
        else:
            ledger.enter(item, standing)
    if waiting:
        ledger.names = [name for name in ledger.names if name not in waiting]
        lack = f"they lack {' or '.join(job.inputs)} from an earlier notebook"
        say(f"{job.stage}: {len(waiting)} items are left out, {lack}")
    say(f"{job.stage}: {len(ledger.names)} items, {ledger.counts['kept']} kept, {len(todo)} to do")
    return todo


def at_once(look: Callable, items: list[Item], share: int = 100) -> Iterator:
    """look(item) of each, in order, by threads: a network disk takes its time over every one of a million files."""
    shares = [items[start : start + share] for start in range(0, len(items), share)]
    with ThreadPoolExecutor(LOOKING) as threads:
        for some in threads.map(lambda some: [look(item) for item in some], shares):
            yield from some


# -- the ledger -------------------------------------------------------------------------------------------------------


class Ledger:
    """A row an item, in the order of the items; on disk once a minute and at the end."""

    def __init__(self, job: Job, items: list[Item]):
        self.job, self.names, self.rows = job, [item.name for item in items], {}
        self.counts = {"done": 0, "kept": 0, "quarantined": 0}
        self.path = Path(job.run, f"{job.stage}.csv")
        self.started = self.told = self.wrote = time.monotonic()
        self.worked, self.writing = 0, 0.0  # items; seconds that the last writing took
        write_text(self.path.with_suffix(".json"), json.dumps(asdict(job), indent=1))
        python = short(sys.executable)  # a .venv below the repo, else whatever is active
        python = "python" if Path(python).is_absolute() else python
        self.repeat = shlex.join([python, "-m", "lib.pool", short(str(self.path.with_suffix(".json")))])

    def enter(self, item: Item, reply: dict) -> None:
        record = reply.get("record", reply)
        row = {
            "item": item.name,
            "status": reply["status"],
            "reason": short(reply.get("reason", "")),
            "seconds": record.get("seconds", 0.0),
            "peak_gib": record.get("peak_gib", 0.0),
            "source": item.source,
            "command": f"{self.repeat} {item.name}",
        }
        self.rows[item.name] = row | record.get("facts", {}) | row  # the row first; no fact may pose as its status
        self.counts[reply["status"]] += 1

    def progress(self) -> None:
        """A line now and then, a hundred or so a run, and the rows so far once a minute."""
        now, total = time.monotonic(), len(self.names)
        self.worked += 1
        if now - self.told > (600 if self.worked % max(total // 100, 1) else 5):
            rate = self.worked / (now - self.started)
            left = (total - len(self.rows)) / rate
            say(f"{self.job.stage}: {len(self.rows)}/{total}  {self.tally()}  {rate:.2f}/s  {in_words(left)} left")
            self.told = now
        if now - self.wrote > max(60, 30 * self.writing):  # of a million rows it takes half a minute
            self.write()

    def tally(self) -> str:
        return "  ".join(f"{count} {status}" for status, count in self.counts.items() if count)

    def table(self) -> pandas.DataFrame:
        rows = [self.rows[name] for name in self.names if name in self.rows]
        return pandas.DataFrame(rows) if rows else pandas.DataFrame(columns=list(COLUMNS))

    def write(self) -> None:
        self.wrote = time.monotonic()
        try:
            with writing(self.path) as beside:
                self.table().to_csv(beside, index=False, errors="surrogatepass")  # a file's name may be no text
            self.writing = time.monotonic() - self.wrote
        except OSError as error:  # the facts are the record, and this is only their table
            say(f"{self.job.stage}: the ledger {short(str(self.path))} cannot be written: {error}")


def short(text: str) -> str:
    """Paths below the folder we are in, from there on: a log is to be shared."""
    return text.replace(os.getcwd() + os.sep, "")  # noqa: PTH109


# -- one item again ---------------------------------------------------------------------------------------------------


def repeat(job_file: str, name: str) -> None:
    """Do one item of an earlier run in this process, whatever is done: the traceback is yours, and so is a debugger."""
    job = json.loads(Path(job_file).read_text(encoding="utf-8"))
    rows = read_items(job["dataset"])
    if name not in rows:
        raise SystemExit(f"{name} is not in {job['dataset']}/items.csv")
    item = Item(name, rows[name]["source"], rows[name]["sha256"], job["dataset"], job["resolution"])
    with Claims(job["dataset"]) as claims:
        claims.take(item.stem, wait=True)
        record = alone(job, item)
    say(json.dumps(record, indent=1))


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit("usage: python -m lib.pool <run>/<stage>.json <item>")
    repeat(*sys.argv[1:])
