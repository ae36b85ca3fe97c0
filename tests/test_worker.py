import sys

import psutil

from lib import worker


def test_a_worker_that_dies_between_items_is_noticed_and_put_away(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path, tmp_path])  # a Path there is a mistake that Python forgives
    handle = worker.Worker(tmp_path / "log", threads=1)
    handle.start({"function": "math:sqrt", "dataset": str(tmp_path), "memory": 0})
    handle.usage.kill()
    while handle.usage.status() != psutil.STATUS_ZOMBIE:
        pass
    assert handle.ask({})["status"] == "died"
    handle.end()
    assert not handle.usable()
