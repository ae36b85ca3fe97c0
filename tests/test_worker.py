import math
import os
import sys

import numpy as np
import psutil
import pytest

from lib import worker


def explain(function):
    try:
        function()
    except Exception as error:
        return worker.explain(error)


def test_a_fault_in_a_library_is_placed_in_our_code():
    def ours():
        np.linalg.inv(np.zeros((2, 2)))

    assert explain(ours).startswith("LinAlgError: Singular matrix, in test_worker.py:")
    assert explain(ours).endswith(" ours")


def test_a_message_written_for_the_user_is_left_as_it_is():
    ours = compile("raise ValueError('chair.obj: no faces;\\n   wanted triangles')", worker.__file__, "exec")
    assert explain(lambda: exec(ours)) == "chair.obj: no faces; wanted triangles"


def test_a_reason_is_short_and_can_be_printed():
    def ours():
        raise RuntimeError("\udcff\ud800" + "x" * 10**6)

    assert "\\udcff\\ud800xxx" in explain(ours) and len(explain(ours).encode()) < 1200


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


def test_facts_are_plain_json():
    assert worker.plain(np.float32(0.5)) == 0.5
    assert worker.plain(np.arange(3)) == [0, 1, 2]
    with pytest.raises(TypeError, match="not object"):
        worker.plain(object())


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="peaks are reset on Linux only")
def test_the_peak_is_of_the_work_since_the_reset():
    block = bytearray(300 * 2**20)
    before = worker.peak_gib()
    del block
    worker.reset_peak()
    assert worker.peak_gib() < before - 0.25


def test_resolve_and_versions():
    assert worker.resolve("math:sqrt") is math.sqrt
    assert worker.versions()["numpy"] == np.__version__
    assert "python" in worker.versions() and "torch" not in worker.versions()
