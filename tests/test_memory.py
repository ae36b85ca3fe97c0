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


def container(tmp_path, version, path, limits):
    """Files as the kernel shows them: of each group its limit, what it takes, and what of that idles."""
    names = memory.FILES["" if version == 2 else "memory"]
    lines = "0::PATH" if version == 2 else "9:name=systemd:/\n4:memory:PATH\n0::/"
    (tmp_path / "cgroup").write_text(lines.replace("PATH", path) + "\n")
    folder = tmp_path / ("fs" if version == 2 else "fs/memory")
    for part, (most, taken, idle) in zip(["", *path.strip("/").split("/")], limits, strict=False):
        folder /= part
        folder.mkdir(parents=True, exist_ok=True)
        (folder / names[0]).write_text(f"{most}\n")
        (folder / names[1]).write_text(f"{taken}\n")
        (folder / "memory.stat").write_text(f"anon 5\nactive_file 7\n{names[2]} {idle}\n")
    return memory.container_left(tmp_path / "cgroup", tmp_path / "fs")


@pytest.mark.parametrize(("version", "none"), [(2, "max"), (1, 2**63 - 4096)])
def test_what_a_container_leaves_is_its_limit_less_what_no_idle_file_takes(tmp_path, version, none):
    assert container(tmp_path, version, "/", [(none, 77, 0)]) == 2**62
    assert container(tmp_path, version, "/", [(100, 77, 0)]) == 23
    assert container(tmp_path, version, "/", [(100, 98, 60)]) == 62  # files read once, which the kernel gives up
    assert container(tmp_path, version, "/", [(100, 130, 10)]) == 0
    assert container(tmp_path, version, "/", [(100, 20, 40)]) == 100


@pytest.mark.parametrize(("version", "none"), [(2, "max"), (1, 2**63 - 4096)])
def test_the_tightest_limit_above_a_process_counts(tmp_path, version, none):
    groups = [(none, 500, 0), (300, 250, 20), (200, 50, 0)]
    assert container(tmp_path, version, "/job/step", groups) == 70  # the job's, which other steps take from
    assert container(tmp_path, version, "/job/step", [groups[0], (none, 250, 20), groups[2]]) == 150
    assert container(tmp_path, version, "/not/shown", [(100, 30, 0)]) == 70  # a container sees itself as the root


def test_without_containers_all_is_left(tmp_path):
    assert memory.container_left(tmp_path / "cgroup", tmp_path) == 2**62


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="peaks are reset on Linux only")
def test_what_is_taken_now_and_at_the_most():
    memory.reset_peak()
    now, most = memory.taken()
    block = bytearray(300 * 2**20)
    more = memory.taken()
    del block
    after = memory.taken()
    assert more[0] - now > 290 * 2**20 and after[0] < now + 100 * 2**20
    assert most - now < 50 * 2**20 and after[1] >= more[0] - 2**20


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 4000000000 bytes."),
    ],
)
def test_too_little_memory_is_known_by_its_words(error):
    assert memory.is_out(error) and not memory.is_out(RuntimeError("shapes cannot be multiplied"))


def test_torchs_own_refusal_is_known():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert memory.is_out(caught.value)


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
