"""Do items under their claims and note what was done: one alone, or several whose questions are answered together.

A stage's function of one item may be a generator: what it yields is asked together with what other items ask at that
time, and what it is sent is its answer. So a model on a GPU sees many meshes at once, and each item still has its own
claim, its own faults and its own facts. Between yields a stage runs in any thread: it keeps no thread's state there.
"""

import contextlib
import dataclasses
import errno
import functools
import importlib
import importlib.metadata
import inspect
import json
import os
import platform
import shutil
import sysconfig
import time
import traceback
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lib.claims import Claims
from lib.dataset import Item, find_inputs, read_facts, sweep, whole, write_facts
from lib.memory import peak_gib, reset_peak

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # no item's fault: the run stops
PACKAGES = ("numpy", "scipy", "igl", "embreex", "trimesh", "skimage", "pyvista", "torch", "transformers", "lib")
SPOILT = "CUDA error"  # after one, and unlike after "out of memory", nothing works in this process any more
THREADS = 8  # that read and write a batch's items


# -- some items -------------------------------------------------------------------------------------------------------


def attempt(job: dict, items: list[Item], claims: Claims) -> list[dict]:
    """Do items unless another run is at them or has done them meanwhile. Never raises: a fault is an answer."""
    function, together = resolve(job["function"]), job["together"] and resolve(job["together"])
    replies: dict[str, dict] = {}
    items = [dataclasses.replace(item, ours=functools.partial(claims.holds, item.stem)) for item in items]
    courses = {}
    try:
        for item in items:
            try:
                if claims.take(item.stem):
                    courses[item.name] = course(function, job, item, len(items))
            except OSError as error:
                replies[item.name] = failed(job, error)
        with ThreadPoolExecutor(THREADS) as threads:
            each = threads.map if len(items) > 1 else map  # alone in the main thread, where a hang or crash is placed
            todo, answers = [item for item in items if item.name in courses], [None] * len(courses)
            while todo:
                steps = list(each(lambda item, answer: step(job, item, courses[item.name], answer), todo, answers))
                replies |= {item.name: reply for item, (reply, _) in zip(todo, steps, strict=True) if reply}
                asked = [(item, question) for item, (reply, question) in zip(todo, steps, strict=True) if not reply]
                todo = [item for item, _ in asked]
                answers = answer(together, job, [question for _, question in asked])
    finally:
        for item in items:
            if item.name in courses:
                claims.drop(item.stem)
    return [replies.get(item.name, {"status": "busy"}) for item in items]


def step(job: dict, item: Item, running: Generator, answer) -> tuple[dict | None, object]:
    """Let an item go on with its answer (or the error in its place): its reply at the end, or its next question."""
    try:
        return None, running.throw(answer) if isinstance(answer, Exception) else running.send(answer)
    except StopIteration as end:
        return end.value, None
    except Exception as error:
        if not item.ours():  # we slept, and were held for dead: all that lies there is another one's
            return {"status": "busy"}, None
        traceback.print_exc()
        for suffix in item.written:  # nothing that could be taken for a result
            item.path(suffix).unlink(missing_ok=True)
        return failed(job, error), None


def failed(job: dict, error: Exception) -> dict:
    """The reply to an error: it is the item's, unless the disk is full."""
    free = shutil.disk_usage(job["dataset"]).free  # numpy's short writes carry no errno
    full = getattr(error, "errno", None) in FULL or free < 2**20
    return {"status": "full" if full else "quarantined", "reason": explain(error)}


def answer(together: Callable, job: dict, questions: list) -> list:
    """What the stage makes of several questions at once, an answer each; an error in place of those it fails on.

    If it fails on several, each half is tried: in the end the culprit is alone, and a batch too large for the memory
    has become small enough.
    """
    if not questions:
        return []
    failed = None
    try:
        answers = list(together(questions, **job["parameters"], **job["means"]))
        if len(answers) != len(questions):
            raise TypeError(f"{job['together']} gave {len(answers)} answers to {len(questions)} questions")
        return answers
    except Exception as error:
        if SPOILT in str(error):
            traceback.print_exc()
            os._exit(1)  # the pool tries its items one by one in a new process
        failed = error if len(questions) == 1 else None  # else let go of its frames, and of the memory they hold
    if failed:
        return [failed]
    half = len(questions) // 2
    return answer(together, job, questions[:half]) + answer(together, job, questions[half:])


# -- one item ---------------------------------------------------------------------------------------------------------


def course(function: Callable, job: dict, item: Item, company: int = 1) -> Generator:
    """What happens to one item that is claimed: yields what its stage asks, returns the reply."""
    facts = read_facts(item)
    if current(job, item, facts):
        return {"status": "kept", "record": facts[job["stage"]]}
    return {"status": "done", "record": (yield from perform(function, job, item, facts, company))}


def current(job: dict, item: Item, facts: dict) -> bool:
    """Was this stage done with these parameters, from these inputs, and is what it made still whole?"""
    record = facts.get(job["stage"])
    return (
        record is not None
        and (record.get("adopted") or record["version"] == job["version"])  # adopted: by lib.adopt, from older scripts
        and (record.get("adopted") or record["parameters"] == job["parameters"])
        and record["inputs"] == find_inputs(item, facts, job["inputs"])
        and whole(item, record["outputs"])
    )


def perform(
    function: Callable, job: dict, item: Item, facts: dict, company: int = 1
) -> Generator[object, object, dict]:
    """Call the stage's function on one item and note what it did. The facts come last: until then nothing counts."""
    item.written.clear()  # what others wrote with this item is none of this stage's outputs
    sweep(item.folder)
    if stale := facts.pop(job["stage"], None):  # gone before its files are, so that no crash leaves a record that lies
        write_facts(item, facts)
        for suffix in stale["outputs"]:
            item.path(suffix).unlink(missing_ok=True)
    inputs = find_inputs(item, facts, job["inputs"])
    if inputs is None:
        raise ValueError(f"{item.folder}: one of {', '.join(job['inputs'])} is missing; run the earlier notebook again")
    if away := [suffix for suffix in inputs if suffix != "source" and not item.path(suffix).exists()]:
        raise ValueError(
            f"{item.folder}: {away[0]} is in an archive only, whose place {item.stem}_archived.json tells. `python -m "
            f"lib.pack restore PLACE {item.dataset} --resolution {item.resolution} --only {item.name}` brings it back."
        )
    reset_peak()
    start = time.perf_counter()
    result = function(item, **job["parameters"], **job["means"])
    if inspect.isgenerator(result):
        result = yield from result
    if not isinstance(result, dict):
        raise TypeError(f"{job['function']} must return a dict of facts, not {type(result).__name__}")
    record = {
        "version": job["version"],
        "parameters": job["parameters"],
        "inputs": inputs,
        "outputs": dict(item.written),
        "versions": versions(),
        "seconds": round((time.perf_counter() - start) / company, 3),  # its share of what they took together
        "peak_gib": peak_gib(),
        "facts": json.loads(json.dumps(result, default=plain), parse_constant=lambda _: None),  # JSON knows no NaN
    }
    write_facts(item, facts | {job["stage"]: record})
    return record


def alone(job: dict, item: Item) -> dict:
    """One item in this process, whatever is done: faults are raised. Its record."""
    running, answer = perform(resolve(job["function"]), job, item, read_facts(item)), None
    while True:
        try:
            question = running.send(answer)
        except StopIteration as end:
            return end.value
        [answer] = resolve(job["together"])([question], **job["parameters"], **job["means"])


# -- what goes into facts and replies ---------------------------------------------------------------------------------


def plain(value):
    """Numpy's numbers and arrays as JSON has them."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"a fact or parameter must be a number, a text or a list of them, not {type(value).__name__}")


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


@functools.cache
def versions() -> dict[str, str]:
    """Of all that a stage may use here: what this process has loaded depends on the items before, and says less."""
    packages, found = {"igl": "libigl", "skimage": "scikit-image"}, {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # we may run from a bare checkout
            found[name] = importlib.metadata.version(packages.get(name, name))
    return found
