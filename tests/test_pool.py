"""Every promise of the pool, with real SIGKILLs, segfaults, hangs, a real full disk and two runs at once."""

import contextlib
import ctypes
import json
import math
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import pandas
import psutil
import pytest

from lib import claims, dataset, pool, worker

ROOT = Path(__file__).parent.parent
VERSION = 1
DEADLINE = 60  # seconds, generous: nothing here is about speed


# -- functions of one item, at the top of a module as the pool wants them ---------------------------------------------


def shout(item, suffix="!", pause=0.0):
    """Writes what it read, louder; notes every call, so that tests can count."""
    noted(item, "begun")
    time.sleep(pause)
    with item.writing("_shout.txt") as path:
        path.write_text(Path(item.source).read_text().upper() + suffix)
    noted(item, "ended")
    return {"length": len(suffix)}


def choose(item, how: Literal["softly", "loudly"] = "softly"):
    return shout(item, "?" if how == "softly" else "!")


def echo(item):
    """A second stage: reads what the first one made."""
    with item.writing("_echo.txt") as path:
        path.write_text(item.path("_shout.txt").read_text() * 2)
    return {}


def misbehave(item):
    """Does what the mesh says."""
    noted(item, "begun")
    what = Path(item.source).stem
    if what == "raise":
        raise ZeroDivisionError("no faces")
    if what == "segfault":
        ctypes.string_at(0)
    if what == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "exit":
        os._exit(7)
    if what == "hang_in_native_code":
        re.match("(a+)+$", "a" * 60 + "b")  # for centuries, and without letting go of the GIL
    if what == "eat_memory":
        blocks = []
        while True:
            blocks.append(b"x" * 2**24)
    if what == "chatty":
        print("text on standard output is not an answer")
        os.write(1, b"nor is this\n")
        sys.stdin.read()
    if what == "child_holds_the_pipe":
        if os.fork() == 0:
            time.sleep(DEADLINE)
            os._exit(0)
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "closes_its_pipes":
        os.closerange(3, 100)
        time.sleep(DEADLINE)
    if what == "comes_back_twice":
        os.fork()
    if what == "leaves_a_child":
        child = subprocess.Popen([sys.executable, "-c", f"import time; time.sleep({DEADLINE})"])
        (Path(item.dataset).parent / "child").write_text(str(child.pid))
    if what == "returns_nothing":
        return None
    if what == "no_fact":
        return {"what": object()}
    if what.endswith("after_writing"):
        with item.writing("_shout.txt") as path:
            path.write_text("whole, but nobody noted it")
        if what == "raise_after_writing":
            raise ValueError("no normals")
        if what == "die_after_writing":
            os.kill(os.getpid(), signal.SIGKILL)
    if what == "dies_while_writing":
        with item.writing("_shout.txt") as path:
            path.write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)
    with item.writing("_shout.txt") as path:
        path.write_text(what)
    return {"what": what}


def boast(item):
    """Facts under the ledger's names, and numbers that JSON does not know."""
    return {"status": "splendid", "item": "me", "seconds": "none", "loss": math.nan, "psnr": math.inf, "n": 3}


def babble(item):
    while True:
        print("warning: " + "x" * 10_000)


def meet(item):
    """Begins when two runs are at work."""
    noted(item, f"begun by {os.getppid()}")
    diary = Path(item.dataset).parent / "calls.txt"
    until(lambda: len(set(re.findall(r"by (\d+)", diary.read_text()))) == 2)
    return {}


def wait_for_gate(item):
    noted(item, "begun")
    until((Path(item.dataset).parent / "gate").exists)
    return {}


def fill(item):
    with item.writing("_fill.bin") as path:
        path.write_bytes(bytes(300_000))
    return {}


def noted(item, what):
    with open(Path(item.dataset).parent / "calls.txt", "a") as calls:
        calls.write(f"{item.name} {what}\n")


def calls(tree, what="begun") -> list[str]:
    with contextlib.suppress(FileNotFoundError):
        return sorted(line.split()[0] for line in (tree.parent / "calls.txt").read_text().splitlines() if what in line)
    return []


@pytest.fixture
def work(tmp_path):
    """work("a", "b") makes mesh files of these names and returns their items; the tree is tmp_path/tree."""

    def make(*names: str, resolution: int = 64) -> list[dataset.Item]:
        (tmp_path / "meshes").mkdir(exist_ok=True)
        for name in names:
            (tmp_path / "meshes" / f"{name}.obj").write_text(name)
        return dataset.collect(tmp_path / "meshes", tmp_path / "tree", resolution)

    return make


def run(items, function=shout, jobs=2, **options):
    folder = Path(items[0].dataset).parent / "run"
    return pool.map(function, items, stage="01_shout", run=folder, jobs=jobs, **options)


def files(tree: Path) -> dict[str, object]:
    """All of a tree but what may differ between two honest runs: seconds, memory, and when a source was made."""

    def steady(facts):
        if not isinstance(facts, dict):
            return facts
        passed_over = ("seconds", "peak_gib", "seal")  # a seal is of the times, too
        return {key: steady(value) for key, value in facts.items() if not key.startswith(passed_over)}

    found = {}
    for path in sorted(tree.rglob("*")):
        name = path.relative_to(tree).as_posix()
        if name.endswith("_facts.json"):
            found[name] = steady(json.loads(path.read_text()))
        elif path.is_file() and name not in (".claims", "items.csv"):
            found[name] = path.read_bytes()
    return found


# -- done once --------------------------------------------------------------------------------------------------------


def test_done_is_kept_and_comes_with_its_facts(work, tmp_path):
    items = work("a", "b", "c")
    first = run(items)
    assert list(first.columns[:7]) == list(pool.COLUMNS)
    assert list(first.item) == [item.name for item in items]  # in their order, whoever was first
    assert list(first.status) == ["done"] * 3 and list(first.length) == [1] * 3
    assert items[1].path("_shout.txt").read_text() == "B!"
    before = files(tmp_path / "tree")
    second = run(items)
    assert list(second.status) == ["kept"] * 3
    assert second.drop(columns="status").equals(first.drop(columns="status"))
    assert len(calls(tmp_path / "tree")) == 3
    assert files(tmp_path / "tree") == before
    assert read_ledger(tmp_path / "run" / "01_shout.csv").equals(second)


def test_only_what_is_stale_is_done_again(work, tmp_path, monkeypatch):
    run(work("a", "b", "c"))
    (tmp_path / "meshes" / "b.obj").write_text("changed")
    assert list(run(work()).status) == ["kept", "done", "kept"]
    items = work()
    assert items[1].path("_shout.txt").read_text() == "CHANGED!"
    items[0].path("_shout.txt").write_text("A")  # cut short by an older tool
    items[2].path("_shout.txt").unlink()
    assert list(run(items).status) == ["done", "kept", "done"]
    assert list(run(items, parameters={"suffix": "?"}).status) == ["done"] * 3
    items[1].path("_facts.json").write_text("{")
    assert list(run(items, parameters={"suffix": "?"}).status) == ["kept", "done", "kept"]
    monkeypatch.setattr(sys.modules[__name__], "VERSION", 2)
    assert list(run(items, parameters={"suffix": "?"}).status) == ["done"] * 3


@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.99])
def test_a_file_that_was_cut_short_is_made_again(work, share):
    items = work("a" * 100)
    run(items)
    whole = items[0].path("_shout.txt").read_text()
    os.truncate(items[0].path("_shout.txt"), int(share * len(whole)))
    assert list(run(items).status) == ["done"]
    assert items[0].path("_shout.txt").read_text() == whole


def test_a_crash_after_the_files_but_before_the_facts_is_made_good(work):
    items = work("die_after_writing")
    assert list(run(items, misbehave).status) == ["quarantined"]
    assert items[0].path("_shout.txt").exists() and not dataset.read_facts(items[0])
    assert list(run(items, shout).status) == ["done"]
    assert items[0].path("_shout.txt").read_text() == "DIE_AFTER_WRITING!"


def test_a_choice_that_there_is_not_is_refused_before_anything_is_lost(work):
    items = work("a")
    run(items, choose, parameters={"how": "loudly"})
    with pytest.raises(ValueError, match="how = 'madly'; wanted 'softly' or 'loudly'"):
        run(items, choose, parameters={"how": "madly"})
    assert items[0].path("_shout.txt").read_text() == "A!"
    assert list(run(items, choose, parameters={"how": "loudly"}).status) == ["kept"]


def test_a_later_stage_follows_the_earlier_one(work, tmp_path, capsys):
    items = work("a", "b")

    def second():
        return pool.map(echo, items, stage="02_echo", run=tmp_path / "run", inputs=("_shout.txt",), jobs=1)

    run(items[:1])
    assert list(second().item) == [items[0].name]
    told = capsys.readouterr().out
    assert "1 items are left out" in told and "02_echo: 1 items, 0 kept, 1 to do" in told
    run(items)
    assert list(second().status) == ["kept", "done"]
    run(items, parameters={"suffix": "?"})
    assert list(second().status) == ["done", "done"]
    assert items[1].path("_echo.txt").read_text() == "B?B?"
    assert list(run(items, parameters={"suffix": "?"}).status) == ["kept", "kept"]  # 02 did not disturb 01's facts


def test_paths_and_tuples_are_parameters_too(work, tmp_path):
    items = work("a")
    assert list(run(items, parameters={"suffix": tmp_path}).status) == ["done"]
    assert items[0].path("_shout.txt").read_text() == "A" + str(tmp_path)
    assert list(run(items, parameters={"suffix": tmp_path}).status) == ["kept"]


@pytest.mark.parametrize("damage", ["{}", "null", "[]", '{"version": 1, "parameters": {}, "outputs": null}'])
def test_a_record_that_lacks_something_is_no_record(work, damage):
    items = work("a", "b")
    run(items)
    items[0].path("_facts.json").write_text(f'{{"01_shout": {damage}}}')
    assert list(run(items).status) == ["done", "kept"]


def test_facts_do_not_pose_as_columns_and_are_json_for_everyone(work):
    items = work("a")
    for status in ("done", "kept"):
        ledger = run(items, boast)
        assert (ledger.status[0], ledger.item[0], ledger.n[0]) == (status, items[0].name, 3)
        assert ledger.seconds[0] >= 0
    facts = json.loads(items[0].path("_facts.json").read_text(), parse_constant=pytest.fail)["01_shout"]["facts"]
    assert facts["psnr"] is None and facts["status"] == "splendid"


def test_resolutions_live_side_by_side(work):
    run(work("a", resolution=64))
    assert list(run(work("a", resolution=128)).status) == ["done"]
    assert list(run(work("a", resolution=64)).status) == ["kept"]


def test_the_same_bytes_twice_are_worked_on_once(work, tmp_path):
    work("a")
    (tmp_path / "meshes" / "copy.obj").write_text("a")
    ledger = run(work())
    assert sorted(ledger.status) == ["done", "quarantined"]
    assert ledger.set_index("status").reason["quarantined"] == f"duplicate: the same bytes as {ledger.item[0]}"
    assert len(calls(tmp_path / "tree")) == 1


def test_hostile_names_arrive_unchanged(work):
    names = ["00123", "{run}", "-rf", "quo\"te's, comma", "caf\u00e9", "$(touch x)", "1e5", "nan", "trailing. "]
    items = work(*names)
    ledger = run(items)
    assert list(ledger.status) == ["done"] * len(names)
    assert [item.path("_shout.txt").read_text() for item in items] == [Path(i.source).stem.upper() + "!" for i in items]
    read = read_ledger(Path(items[0].dataset).parent / "run" / "01_shout.csv")
    assert list(read.source) == [item.source for item in items] and list(read.item) == [item.name for item in items]


def test_a_name_that_is_no_text_is_a_name(work, tmp_path):
    name = os.fsdecode(b"\xff\xfe.obj")
    (tmp_path / "meshes").mkdir()
    (tmp_path / "meshes" / name).write_text("a")
    items = work()
    assert list(run(items).status) == ["done"]
    assert read_ledger(tmp_path / "run" / "01_shout.csv").source[0] == items[0].source


# -- one bad item -----------------------------------------------------------------------------------------------------

ODD = ["chatty", "comes_back_twice", "leaves_a_child"]  # but not at fault
FAULTS = {
    "raise": ("ZeroDivisionError: no faces, in test_pool.py", 1),
    "segfault": ("died of SIGSEGV, in test_pool.py", 2),
    "killed": ("died of SIGKILL, twice", 2),
    "exit": ("ended with exit code 7, twice", 2),
    "hang_in_native_code": ("timeout: more than 8 s, in test_pool.py", 1),
    "eat_memory": ("memory: more than 1 GiB", 1),
    "no_fact": ("TypeError: a fact or parameter must be", 1),
    "returns_nothing": ("TypeError: test_pool:misbehave must return a dict of facts, not NoneType", 1),
    "dies_while_writing": ("died of SIGKILL, twice", 2),
    "raise_after_writing": ("ValueError: no normals, in test_pool.py", 1),
    "child_holds_the_pipe": ("died of SIGKILL, twice", 2),
    "closes_its_pipes": ("timeout: more than 8 s", 1),
}


@pytest.fixture(scope="module")
def poisoned(tmp_path_factory):
    """One run over all faults at once, and a dozen innocents."""
    folder = tmp_path_factory.mktemp("poisoned")
    (folder / "meshes").mkdir()
    for name in [*FAULTS, *(f"innocent_{k:02}" for k in range(12)), *ODD]:
        (folder / "meshes" / f"{name}.obj").write_text(name)
    items = dataset.collect(folder / "meshes", folder / "tree", 64)
    ledger = run(items, misbehave, timeout=8, memory=1)
    return folder, items, ledger.set_index(ledger.source.map(lambda source: Path(source).stem))


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_ends_its_item_alone_and_says_why(poisoned, fault):
    folder, _, ledger = poisoned
    reason, tries = FAULTS[fault]
    row = ledger.loc[fault]
    assert row.status == "quarantined" and reason in row.reason
    assert calls(folder / "tree").count(row["item"]) == tries  # a death may come from outside, so it gets a second try
    assert not list((folder / "tree" / row["item"]).rglob("64_*_shout.txt"))


def test_innocents_are_untouched(poisoned):
    folder, items, ledger = poisoned
    rest = ledger.drop(index=list(FAULTS))
    assert list(rest.status) == ["done"] * 15
    assert list(rest.what) == list(rest.index)  # nobody got another's answer
    assert list(ledger.item) == [item.name for item in items]
    assert all(calls(folder / "tree").count(name) == 1 for name in rest.item)


def test_what_an_item_leaves_running_ends_with_its_worker(poisoned):
    child = int((poisoned[0] / "child").read_text())
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE


def test_memory_and_time_of_an_item_are_its_own(poisoned):
    _, _, ledger = poisoned
    assert ledger.peak_gib["eat_memory"] > 0.9
    assert ledger.seconds["hang_in_native_code"] >= 8
    assert ledger.peak_gib.drop("eat_memory").max() < 0.5


def test_what_was_left_half_written_is_swept_by_the_next_run(poisoned):
    folder, items, _ = poisoned
    assert list((folder / "tree").rglob(dataset.PARTIAL + "*"))
    half = [item for item in items if "dies_while_writing" in item.source]
    pool.map(shout, half, stage="01_shout", run=folder / "run2", jobs=1)
    assert not list((folder / "tree").rglob(dataset.PARTIAL + "*"))
    assert half[0].path("_shout.txt").read_text() == "DIES_WHILE_WRITING!"


def test_the_command_in_the_ledger_repeats_the_item(poisoned):
    _, _, ledger = poisoned
    environment = os.environ | {
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    }
    command = [sys.executable, *shlex.split(ledger.command["raise"])[1:]]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT)
    assert result.returncode and "ZeroDivisionError: no faces" in result.stderr and "in misbehave" in result.stderr
    command = [sys.executable, *shlex.split(ledger.command["innocent_01"])[1:]]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT)
    assert json.loads(result.stdout)["outputs"]["_shout.txt"]["size"] == len("innocent_01")


def test_a_quarantined_item_is_tried_again_by_the_next_run(work, tmp_path):
    items = work("raise", "fine")
    assert sorted(run(items, misbehave).status) == ["done", "quarantined"]
    assert sorted(run(items, misbehave).status) == ["kept", "quarantined"]
    (tmp_path / "meshes" / "raise.obj").write_text("mended")
    assert sorted(run(work(), shout).status) == ["done", "kept"]


def test_a_function_that_no_worker_can_import_is_refused_before_any_work(work):
    def local(item):
        return {}

    with pytest.raises(ValueError, match="top of a module"):
        run(work("a"), local)


def test_a_parameter_that_the_function_lacks_is_refused_before_any_work(work):
    items = work("a")
    run(items)
    with pytest.raises(ValueError, match=r"shout\(item, suffix(.|\n)*'sufix'"):
        run(items, parameters={"sufix": "?"})
    assert items[0].path("_shout.txt").exists()


def test_a_memory_limit_below_an_idle_worker_is_refused(work):
    with pytest.raises(ValueError, match=r"memory = 0\.001 GiB an item is too little"):
        run(work("a"), memory=0.001)


def test_an_item_that_prints_without_end_is_stopped(work, tmp_path, monkeypatch):
    monkeypatch.setattr(worker, "FLOOD", 2**20)
    ledger = run(work("a"), babble)
    assert "flood: printed more than 1 MiB" in ledger.reason[0]


def test_a_worker_that_cannot_start_says_so_with_its_log(work, tmp_path, monkeypatch):
    (tmp_path / "fragile.py").write_text(
        "import os\nif 'FRAGILE' in os.environ: raise ImportError('no libGL')\ndef work(item): ...\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import fragile

    monkeypatch.setenv("FRAGILE", "1")
    with pytest.raises(RuntimeError, match=r"could not start(.|\n)*no libGL"):
        run(work("a"), fragile.work)


# -- stopping and dying -----------------------------------------------------------------------------------------------

RUNNER = """
import sys
from pathlib import Path
sys.path[:0] = [{root!r}, {tests!r}]
from lib import dataset, guards, pool
import test_pool
folder = Path(sys.argv[1])
guards.GRACE = float(sys.argv[5])
items = dataset.collect(folder / "meshes", folder / "tree", 64)
pool.map(getattr(test_pool, sys.argv[2]), items, stage="01_shout", run=folder / sys.argv[3], jobs=2,
         parameters=eval(sys.argv[4]))
"""


def start(folder, function="shout", name="run", parameters=None, grace=5) -> subprocess.Popen:
    """A run in a process of its own, to be killed."""
    code = RUNNER.format(root=str(ROOT), tests=str(ROOT / "tests"))
    command = [sys.executable, "-c", code, str(folder), function, name, repr(parameters or {}), str(grace)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT)


def read_ledger(path: str | Path) -> pandas.DataFrame:
    """A ledger from its file; names stay text, also one like 00123."""
    text = [name for name in pool.COLUMNS if name not in ("seconds", "peak_gib")]
    table = pandas.read_csv(path, dtype=dict.fromkeys(text, str), encoding_errors="surrogatepass")
    return table.fillna(dict.fromkeys(text, ""))


def until(condition, process=None, deadline=DEADLINE):
    """Wait for something to become true, at most so many seconds."""
    end = time.monotonic() + deadline
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        assert process is None or process.poll() is None, process.stdout.read()
        time.sleep(0.02)


def workers_of(process) -> list[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(process.pid).children(recursive=True)
    return []


def test_no_worker_outlives_a_killed_run(work, tmp_path):
    work("hang_in_native_code", "innocent")
    process = start(tmp_path, "misbehave")
    until(lambda: len(calls(tmp_path / "tree")) == 2, process)
    workers = workers_of(process)
    assert workers
    process.kill()
    process.wait()
    until(lambda: not any(worker.is_running() and worker.status() != "zombie" for worker in workers))


def test_a_killed_run_writes_nothing_late(work, tmp_path):
    work(*(f"m{k}" for k in range(8)))
    process = start(tmp_path, parameters={"pause": 1})
    until(lambda: len(calls(tmp_path / "tree")) == 2, process)
    workers = workers_of(process)
    process.kill()
    process.wait()
    until(lambda: not any(worker.is_running() and worker.status() != "zombie" for worker in workers))
    assert len(calls(tmp_path / "tree")) == 2 and not calls(tmp_path / "tree", "ended")  # nor did they take a next item
    assert not list((tmp_path / "tree").rglob("64_*_shout.txt"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_lets_items_finish_and_loses_nothing(work, tmp_path, number):
    items = work(*(f"m{k:02}" for k in range(40)))
    process = start(tmp_path, parameters={"pause": 0.2})
    until(lambda: len(calls(tmp_path / "tree", "ended")) >= 3, process)
    process.send_signal(number)
    output = process.communicate(timeout=DEADLINE)[0]
    assert "KeyboardInterrupt: 01_shout stopped" in output and "the same command goes on from here" in output
    done = calls(tmp_path / "tree", "ended")
    assert 3 <= len(done) < 40
    assert calls(tmp_path / "tree", "begun") == done  # who was in flight was let finish
    ledger = read_ledger(tmp_path / "run" / "01_shout.csv")
    assert sorted(ledger.item) == done
    assert list(run(items, parameters={"pause": 0.2}).status).count("kept") == len(done)


def test_a_second_ctrl_c_does_not_wait(work, tmp_path):
    work("hang_in_native_code")
    process = start(tmp_path, "misbehave", grace=1000)
    until(lambda: calls(tmp_path / "tree"), process)
    process.send_signal(signal.SIGINT)
    assert "stopping: SIGINT\n" in iter(process.stdout.readline, "")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=DEADLINE)
    assert not list((tmp_path / "tree").rglob("*_shout.txt"))


def test_two_runs_at_once_share_the_work(work, tmp_path):
    items = work(*(f"m{k:02}" for k in range(40)))
    both = [start(tmp_path, "meet", name) for name in ("left", "right")]
    outputs = [process.communicate(timeout=DEADLINE)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert calls(tmp_path / "tree") == sorted(item.name for item in items)  # each item once
    ledgers = [read_ledger(tmp_path / name / "01_shout.csv") for name in ("left", "right")]
    assert all(list(ledger.item) == [item.name for item in items] for ledger in ledgers)
    assert all((ledger.status == "done").sum() > 0 for ledger in ledgers)
    assert sum((ledger.status == "done").sum() for ledger in ledgers) == 40


def test_a_run_survives_another_one_that_clears_its_folder(work, tmp_path):
    work("a", "b", "c")
    first = start(tmp_path, "wait_for_gate")
    until(lambda: len(calls(tmp_path / "tree")) == 2, first)
    run([item for item in work("z") if "z.obj" in item.source])  # same stage, same folder
    assert not list((tmp_path / "run").glob("*.log"))
    (tmp_path / "gate").touch()
    output = first.communicate(timeout=DEADLINE)[0]
    assert first.returncode == 0 and "01_shout: 3 done" in output, output


def test_waiting_is_said_once(work, tmp_path, capsys, monkeypatch):
    items = work("m")
    naps = []
    with claims.Claims(tmp_path / "tree") as held:
        held.take(items[0].stem)

        def nap(seconds):
            naps.append(seconds)
            if len(naps) == 3:
                held.drop(items[0].stem)

        monkeypatch.setattr(pool, "time", SimpleNamespace(sleep=nap, monotonic=time.monotonic))
        assert list(run(items).status) == ["done"]
    assert len(naps) == 3 and capsys.readouterr().out.count("by another run") == 1


def test_a_run_that_fails_leaves_no_worker_and_a_ledger(work, tmp_path, monkeypatch):
    def fail(ledger, enter=pool.Ledger.progress):
        raise RuntimeError("our own mistake")

    monkeypatch.setattr(pool.Ledger, "progress", fail)
    with pytest.raises(RuntimeError, match="our own mistake"):
        run(work(*"abcdefghijkl"), parameters={"pause": 0.5}, jobs=3)
    begun = calls(tmp_path / "tree")
    until(lambda: not [child for child in workers_of(SimpleNamespace(pid=os.getpid())) if child.is_running()])
    assert calls(tmp_path / "tree") == begun and len(set(begun)) == len(begun) < 12  # no second try, no new item
    assert len(read_ledger(tmp_path / "run" / "01_shout.csv")) == 1


def test_a_run_waits_for_what_another_one_has_in_hand(work, tmp_path):
    work("m")
    first = start(tmp_path, "wait_for_gate", name="left")
    until(lambda: calls(tmp_path / "tree"), first)
    second = start(tmp_path, "wait_for_gate", name="right")
    assert any("waiting" in line for line in second.stdout)
    (tmp_path / "gate").touch()
    first.communicate(timeout=DEADLINE)
    second.communicate(timeout=DEADLINE)
    assert first.returncode == second.returncode == 0
    assert len(calls(tmp_path / "tree")) == 1
    assert list(read_ledger(tmp_path / "right" / "01_shout.csv").status) == ["kept"]


def test_a_crash_after_the_facts_but_before_the_ledger_is_adopted(work, tmp_path):
    items = work("a", "b")
    run(items)
    (tmp_path / "run" / "01_shout.csv").unlink()
    assert list(run(items).status) == ["kept", "kept"]
    assert len(calls(tmp_path / "tree")) == 2


@pytest.mark.slow
def test_a_run_killed_twenty_times_ends_like_an_undisturbed_one(work, tmp_path):
    items = work(*(f"m{k:02}" for k in range(60)))
    moment, kills = random.Random(0), 0
    while kills < 20:
        before = len(calls(tmp_path / "tree"))
        process = start(tmp_path, parameters={"pause": 0.05})
        until(lambda: len(calls(tmp_path / "tree")) > before, process)  # noqa: B023 (called at once)
        time.sleep(0.6 * moment.random())
        kills += process.poll() is None
        process.kill()
        process.communicate()
        for item in moment.sample(items, 40):  # else the last kills find nothing to do
            item.path("_shout.txt").unlink(missing_ok=True)
    ledger = run(items, parameters={"pause": 0.05})
    assert len(ledger) == 60 and "quarantined" not in set(ledger.status)
    undisturbed = tmp_path / "undisturbed"
    undisturbed.mkdir()
    (undisturbed / "meshes").symlink_to(tmp_path / "meshes")
    run(dataset.collect(undisturbed / "meshes", undisturbed / "tree", 64), parameters={"pause": 0.05})
    assert files(tmp_path / "tree") == files(undisturbed / "tree")


# -- a full disk ------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_full_disk_stops_the_run_and_nothing_is_half_written(work, tmp_path, small_disk):
    work(*(f"m{k:02}" for k in range(20)))
    items = dataset.collect(tmp_path / "meshes", small_disk / "tree", 64)
    with pytest.raises(OSError, match=r"No space left on device(.|\n)*the same command goes on"):
        pool.map(fill, items, stage="01_fill", run=tmp_path / "run", jobs=2)
    whole = list((small_disk / "tree").rglob("*_fill.bin"))
    assert 1 <= len(whole) < 20 and all(path.stat().st_size == 300_000 for path in whole)
    assert not [path for path in (small_disk / "tree").rglob(dataset.PARTIAL + "*") if path.stat().st_size]
    subprocess.run(["mount", "-o", "remount,size=20m", str(small_disk)], check=True)
    ledger = pool.map(fill, items, stage="01_fill", run=tmp_path / "run", jobs=2)
    assert set(ledger.status) == {"done", "kept"} and len(ledger) == 20


def test_a_ledger_that_cannot_be_written_does_not_end_a_run(work, tmp_path, capsys):
    (tmp_path / "run" / "01_shout.csv").mkdir(parents=True)
    assert list(run(work("a")).status) == ["done"]
    assert "01_shout.csv cannot be written" in capsys.readouterr().out


def test_progress_is_plain_text_with_rate_and_time_left(work, tmp_path, capsys):
    items = work("a", "b", "c", "d")
    run(items[:2])
    output = capsys.readouterr().out
    assert "01_shout: 2 items, 0 kept, 2 to do" in output and "01_shout: 2 done in" in output
    assert "\r" not in output and "\x1b" not in output
    job = pool.Job("01_shout", "", {}, [], 1, "", 64, str(tmp_path / "run"), 0, 0)
    ledger = pool.Ledger(job, items)
    ledger.started = ledger.told = time.monotonic() - 10
    ledger.enter(items[0], {"status": "done"})
    ledger.progress()
    assert capsys.readouterr().out == "01_shout: 1/4  1 done  0.10/s  30 s left\n"


def test_a_ledger_that_takes_long_to_write_is_written_less_often(work, tmp_path):
    """Once a minute, or all the time would go into a million rows."""
    job = pool.Job("01_shout", "", {}, [], 1, "", 64, str(tmp_path / "run"), 0, 0)
    ledger = pool.Ledger(job, work("a"))
    ledger.enter(work("a")[0], {"status": "done"})
    for taken, ago, written in ((10, 61, False), (10, 301, True), (0, 59, False), (0, 61, True)):
        ledger.path.unlink(missing_ok=True)
        ledger.writing, ledger.wrote = taken, time.monotonic() - ago
        ledger.progress()
        assert ledger.path.exists() == written
