"""The pool's promises on a real dask cluster, whose workers are killed, stopped and restarted under it."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
import yaml

from lib import claims, cluster, dataset, guards, pool

sys.path.append(str(Path(__file__).parent))
from test_pool import DEADLINE, ROOT, calls, misbehave, noted, read_ledger, until

FAULTS = ["raise", "segfault", "killed", "exit", "hang_in_native_code", "eat_memory", "dies_while_writing"]
FAR = ["kills_its_worker", "stops_its_worker", "has_its_worker_restarted"]  # once each, and done all the same


# -- functions of one item --------------------------------------------------------------------------------------------


def far(item):
    """Misbehaves towards the process that looks after this one, if it is a dask worker's: once."""
    what, folder = Path(item.source).stem, Path(item.dataset).parent
    above = psutil.Process(os.getppid())
    once = folder / f"{what}_was_here"
    if what in FAR and "multiprocessing" in " ".join(above.cmdline()) and not once.exists():
        noted(item, "begun")
        once.write_text(str(above.pid))
        if what == "kills_its_worker":
            above.kill()
        if what == "stops_its_worker":
            above.send_signal(signal.SIGSTOP)
        if what == "has_its_worker_restarted":
            until(lambda: not above.is_running())
    return misbehave(item)


def deadly(item):
    """Kills whatever looks after it, each time, if its mesh says so."""
    noted(item, "begun")
    if Path(item.source).stem == "deadly":
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(DEADLINE)  # it dies with the one above
    return {}


def gate(item):
    noted(item, f"begun by {os.getpid()}")
    until((Path(item.dataset).parent / "gate").exists, deadline=600)
    with item.writing("_gate.txt") as path:
        path.write_text("open")
    noted(item, "ended")
    return {}


# -- a cluster --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dask_cluster():
    """Three dask workers, each a process under its nanny, as `dask worker` starts them."""
    dask = pytest.importorskip("dask")
    from distributed import LocalCluster

    rules = {"distributed.scheduler.worker-ttl": "30s", "distributed.scheduler.allowed-failures": 1}
    rules["distributed.deploy.lost-worker-timeout"] = "600s"  # a restart takes long on a busy machine
    with (
        dask.config.set(rules),
        LocalCluster(n_workers=3, threads_per_worker=1, dashboard_address=None, scheduler_port=0) as made,
        made.get_client() as client,
    ):
        client.wait_for_workers(3, timeout=300)
        yield client


@pytest.fixture
def work(tmp_path):
    def make(*names):
        (tmp_path / "meshes").mkdir(exist_ok=True)
        for name in names:
            (tmp_path / "meshes" / f"{name}.obj").write_text(name)
        return dataset.collect(tmp_path / "meshes", tmp_path / "tree", 64)

    return make


def guarded() -> list[psutil.Process]:
    """Processes that do items, anywhere below the test."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if process.status() != psutil.STATUS_ZOMBIE and "lib.worker" in " ".join(process.cmdline()):
                found.append(process)
    return found


def listening(pid: int, client) -> str:
    """The address of the dask worker with this process. Asking the workers for theirs would wait for a stopped one."""
    connections = psutil.Process(pid).net_connections("tcp")
    ports = {connection.laddr.port for connection in connections if connection.status == psutil.CONN_LISTEN}
    (address,) = [each for each in client.scheduler_info()["workers"] if int(each.rpartition(":")[2]) in ports]
    return address


def kind(reason: str) -> str:
    return reason.split(":")[0].split(", in ")[0].removesuffix(", twice")


# -- its promises -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_cluster_that_falls_apart_ends_like_this_machine_alone(dask_cluster, work, tmp_path):
    """Every fault of an item, and a worker killed, another stopped, a third restarted, each while it has an item."""
    items = work(*FAULTS, *FAR, *(f"innocent_{k}" for k in range(6)))
    dask_cluster.write_scheduler_file(str(tmp_path / "scheduler.json"))
    limits = {"stage": "01_far", "timeout": 20, "memory": 1}
    marker = tmp_path / "has_its_worker_restarted_was_here"

    def restart():
        until(lambda: marker.exists() and marker.read_text(), deadline=600)
        where = listening(int(marker.read_text()), dask_cluster)
        dask_cluster.restart_workers([where], timeout=120, raise_for_error=False)

    restarter = threading.Thread(target=restart)
    restarter.start()
    try:
        there = pool.map(far, items, run=tmp_path / "far", scheduler=str(tmp_path / "scheduler.json"), **limits)
    finally:
        with contextlib.suppress(OSError, psutil.Error):
            psutil.Process(int((tmp_path / "stops_its_worker_was_here").read_text())).kill()
    restarter.join()
    assert all((tmp_path / f"{what}_was_here").exists() for what in FAR)
    begun = calls(tmp_path / "tree")
    assert all(begun.count(item.name) == 1 for item in items if "innocent" in item.name)
    assert not guarded() and not list((tmp_path / "tree" / claims.LEASES).glob("*.lease"))

    alone = [dataset.Item(i.name, i.source, i.sha256, str(tmp_path / "alone" / "tree"), 64) for i in items]
    here = pool.map(far, alone, run=tmp_path / "here", jobs=2, **limits)
    assert list(there["item"]) == list(here["item"])
    # the one whose worker was stopped was done when it was given to another one
    assert list(there.status.replace("kept", "done")) == list(here.status)
    assert list(there.reason.map(kind)) == list(here.reason.map(kind))
    assert list(there.what.fillna("")) == list(here.what.fillna(""))
    assert (there.seconds[there.reason.str.startswith("timeout")] >= 20).all() and there.command.str.len().min() > 0
    assert set(there.status) >= {"done", "quarantined"}

    again = pool.map(far, items, run=tmp_path / "far", scheduler=str(tmp_path / "scheduler.json"), **limits)
    assert list(again.status) == ["kept" if status == "done" else status for status in here.status]


@pytest.mark.slow
def test_what_kills_every_worker_is_put_aside_alone(dask_cluster, work, tmp_path):
    items = work("deadly", *(f"innocent_{k}" for k in range(4)))
    address = dask_cluster.scheduler.address
    ledger = pool.map(deadly, items, "01_deadly", tmp_path / "run", scheduler=address).set_index("source")
    reason = ledger.reason[items[0].source]
    assert "lost: 2 workers died while they had it and no other item, the last was tcp://" in reason
    assert list(ledger.status.replace("kept", "done")) == ["quarantined"] + ["done"] * 4  # an answer may die on its way


RUNNER = """
import sys
from pathlib import Path
sys.path[:0] = [{root!r}, {tests!r}]
from lib import dataset, guards, pool
import test_cluster
guards.GRACE = 60
folder = Path(sys.argv[1])
items = dataset.collect(folder / "meshes", folder / "tree", 64)
pool.map(test_cluster.gate, items, stage="01_gate", run=folder / "run", scheduler=sys.argv[2])
"""


def start(folder, client) -> subprocess.Popen:
    code = RUNNER.format(root=str(ROOT), tests=str(ROOT / "tests"))
    command = [sys.executable, "-c", code, str(folder), client.scheduler.address]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT)


@pytest.mark.slow
def test_a_killed_run_leaves_nothing_at_work_on_the_cluster(dask_cluster, work, tmp_path):
    items = work(*"abcdefgh")
    dask_cluster.wait_for_workers(3, timeout=300)
    process = start(tmp_path, dask_cluster)
    until(lambda: len(calls(tmp_path / "tree")) == 3, process, deadline=300)
    at_work = guarded()
    assert len(at_work) == 3
    process.kill()
    process.wait()
    until(lambda: not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in at_work))
    (tmp_path / "gate").touch()
    ledger = pool.map(gate, items, "01_gate", tmp_path / "run", scheduler=dask_cluster.scheduler.address)
    assert list(ledger.status) == ["done"] * 8
    assert calls(tmp_path / "tree", "ended") == sorted(item.name for item in items)  # nobody ended one late


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_ends_what_is_in_hand_and_begins_nothing(dask_cluster, work, tmp_path, number):
    work(*"abcdefgh")
    dask_cluster.wait_for_workers(3, timeout=300)
    process = start(tmp_path, dask_cluster)
    until(lambda: len(calls(tmp_path / "tree")) == 3, process, deadline=300)
    process.send_signal(number)
    until(lambda: f"stopping: {signal.Signals(number).name}\n" in iter(process.stdout.readline, ""))
    (tmp_path / "gate").touch()
    output = process.communicate(timeout=DEADLINE)[0]
    assert "KeyboardInterrupt: 01_gate stopped" in output and "the same command goes on from here" in output
    begun = calls(tmp_path / "tree")
    assert calls(tmp_path / "tree", "ended") == begun
    assert 3 <= len(begun) <= 4, "one more waits at its worker, which may be told a moment too late"
    assert sorted(read_ledger(tmp_path / "run" / "01_gate.csv")["item"]) == calls(tmp_path / "tree")
    assert not guarded()


@pytest.mark.slow
def test_a_machine_that_sees_other_folders_or_code_is_told(dask_cluster, work, tmp_path, monkeypatch):
    items = work("a")
    monkeypatch.setattr(cluster, "code", lambda: "other")
    with pytest.raises(ValueError, match=r"the dask worker \d+ on .* has other code in"):
        pool.map(deadly, items, "01_deadly", tmp_path / "run", scheduler=dask_cluster.scheduler.address)


def test_the_readmes_scripts_are_whole():
    blocks = dict(
        re.findall(r"^```\w+ (ssh|slurm|kubernetes)\n(.*?)^```", (ROOT / "README.md").read_text(), re.S | re.M)
    )
    for name in ("ssh", "slurm"):
        subprocess.run(["bash", "-n"], input=blocks[name], text=True, check=True)
        assert "-m lib.batch" in blocks[name] and "--memory-limit 0" in blocks[name]
    parts = list(yaml.safe_load_all(blocks["kubernetes"]))
    assert [part["kind"] for part in parts] == ["Service", "Deployment", "Deployment", "Job"]


def test_a_scheduler_that_is_not_there_is_told_with_the_next_step(work, tmp_path, monkeypatch):
    items = work("a")
    with pytest.raises(ValueError, match=r'scheduler = "?.*wanted an address, as "tcp://host:8786"'):
        pool.map(deadly, items, "01_deadly", tmp_path / "run", scheduler="nowhere.json")
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ValueError, match=r"pip install -e .\[cluster\]"):
        pool.map(deadly, items, "01_deadly", tmp_path / "run", scheduler="tcp://127.0.0.1:1")
    assert guards.GRACE and not calls(tmp_path / "tree")
