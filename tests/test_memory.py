import os

import psutil
import pytest
import torch

from lib import memory


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="peaks are reset on Linux only")
def test_the_peak_is_of_the_work_since_the_reset():
    block = bytearray(300 * 2**20)
    before = memory.peak_gib()
    del block
    memory.reset_peak()
    assert memory.peak_gib() < before - 0.25


def test_what_is_free_is_less_than_what_there_is():
    assert 2**20 < memory.free() <= psutil.virtual_memory().total


def test_a_container_without_a_limit_leaves_all(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "Path", lambda _: tmp_path)
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("77\n")
    assert memory.container_left() == 2**62
    (tmp_path / "memory.max").write_text("100\n")
    assert memory.container_left() == 23


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpus_peaks_are_of_what_came_after_the_reset():
    block = torch.zeros(2**28, device="cuda")
    del block
    memory.reset_peak("cuda")
    torch.zeros(2**26, device="cuda")
    found = memory.peaks("cuda")
    assert 0.25 <= found["gpu_allocated_gib"] <= found["gpu_reserved_gib"] < 1


def test_a_gpu_that_is_not_there_is_refused_with_what_to_give_instead(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert memory.choose("auto") == memory.choose("cpu") == "cpu"
    with pytest.raises(ValueError, match=r"device = 'cuda:1', and torch sees no GPU here\. Give 'cpu', or 'auto'"):
        memory.choose("cuda:1")
