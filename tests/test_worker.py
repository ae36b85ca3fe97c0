import sys

import psutil

from lib import worker


def test_a_worker_that_dies_between_items_is_noticed_and_put_away(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path, tmp_path])  # a Path there is a mistake that Python forgives
    handle = worker.Worker(tmp_path / "log", threads=1)
    handle.start({"function": "math:sqrt", "dataset": str(tmp_path), "memory": 0, "beat": ""})
    handle.usage.kill()
    while handle.usage.status() != psutil.STATUS_ZOMBIE:
        pass
    assert handle.ask({})["status"] == "died"
    handle.end()
    assert not handle.usable()


def test_a_worker_that_has_grown_by_a_gib_gets_no_more_items(tmp_path, monkeypatch):
    handle = worker.Worker(tmp_path / "log", threads=1)
    handle.start({"function": "math:sqrt", "dataset": str(tmp_path), "memory": 0, "beat": ""})
    for gib, usable in ((0.4, True), (1.3, True), (1.5, False)):
        monkeypatch.setattr(handle, "gib", lambda gib=gib: gib)
        assert handle.usable() == usable
    handle.usage.kill()
    handle.end()


def test_libraries_are_told_how_many_threads_a_worker_may_have(tmp_path, monkeypatch):
    monkeypatch.setenv("LP_NUM_THREADS", "7")  # what the user says goes
    monkeypatch.delenv("IGL_NUM_THREADS", raising=False)
    handle = worker.Worker(tmp_path / "log", threads=3)
    handle.start(
        {"function": "math:sqrt", "dataset": str(tmp_path), "memory": 0, "beat": ""}
    )  # until then it may have none yet
    told = handle.usage.environ()
    handle.usage.kill()
    handle.end()
    assert [told[f"{name}_NUM_THREADS"] for name in ("OMP", "IGL", "LP")] == ["3", "3", "7"]
