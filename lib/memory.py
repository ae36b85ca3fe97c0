"""A device and its memory: how much there is, and the most that was taken since a reset, by the process or on a GPU."""

import contextlib
from pathlib import Path

import psutil

GIB = 2**30


def choose(device: str) -> str:
    """The device that is meant: "auto" is the GPU where there is one."""
    import torch

    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device = {device!r}, and torch sees no GPU here. Give 'cpu', or 'auto' for what there is.")
    if device != "auto":
        return device
    return "cuda" if torch.cuda.is_available() else "cpu"


def free(device="cpu") -> int:
    """Bytes that may still be taken; on a GPU also what torch holds and does not use."""
    if str(device).startswith("cuda"):
        import torch

        reserved = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + reserved
    return min(psutil.virtual_memory().available, container_left())


def container_left() -> int:
    """Bytes that this process's container may still take (cgroup 2); more than any machine has without a limit."""
    with contextlib.suppress(OSError, ValueError):
        cgroup = Path("/sys/fs/cgroup")
        return int((cgroup / "memory.max").read_text()) - int((cgroup / "memory.current").read_text())
    return 2**62


def is_out(error: Exception) -> bool:
    """Is this error one of too little memory? torch has a class of its own for it on a GPU, and there not always."""
    words = ("out of memory", "can't allocate memory", "ALLOC_FAILED")
    return isinstance(error, MemoryError) or any(word in str(error) for word in words)


def reset_peak(device="cpu") -> None:
    """Let the peaks begin anew (the process's on Linux only), so that what comes next has its own."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    if str(device).startswith("cuda"):
        import torch

        torch.cuda.empty_cache()  # else what an earlier step reserved counts for the next
        torch.cuda.reset_peak_memory_stats(device)


def peak_gib() -> float:
    """The most memory this process had since the reset."""
    try:
        status = Path("/proc/self/status").read_text()
        return round(int(status.split("VmHWM:")[1].split()[0]) / 2**20, 3)
    except (OSError, IndexError):
        memory = psutil.Process().memory_info()
        return round(getattr(memory, "peak_wset", memory.rss) / GIB, 3)


def peaks(device="cpu") -> dict[str, float]:
    """The process's peak, and on a GPU what torch allocated and what it reserved at most."""
    found = {"peak_gib": peak_gib()}
    if str(device).startswith("cuda"):
        import torch

        found["gpu_allocated_gib"] = round(torch.cuda.max_memory_allocated(device) / GIB, 3)
        found["gpu_reserved_gib"] = round(torch.cuda.max_memory_reserved(device) / GIB, 3)
    return found
