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


def container_left(mine: str = "/proc/self/cgroup", root: str = "/sys/fs/cgroup") -> int:
    """Bytes that this process's container may still take by its tightest limit; without one, more than any machine has.

    Files that the kernel only keeps at hand are not taken: it gives up those not used lately before anything fails.
    """
    left = [2**62]
    with contextlib.suppress(OSError):  # no Linux, no containers
        for line in Path(mine).read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers in ("", "memory"):  # cgroup 2 and 1; inside a container its folder is often the root
                own = Path(root, controllers, path.strip("/"))
                folders = [own, *own.parents][: len(Path(path).parts)]
                left += [limit_left(folder, *FILES[controllers]) for folder in folders]
    return min(left)


FILES = {
    "": ("memory.max", "memory.current", "inactive_file"),
    "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


def limit_left(folder: Path, most: str, taken: str, idle: str) -> int:
    """Bytes that one group of processes may still take."""
    try:
        numbers = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        used = int((folder / taken).read_text()) - int(numbers.get(idle, 0))
        return max(int((folder / most).read_text()) - max(used, 0), 0)
    except (OSError, ValueError):  # no such group here, or its limit is "max"
        return 2**62


def is_out(error: Exception) -> bool:
    """Is this error one of too little memory? torch has a class of its own for it on a GPU, and there not always."""
    words = ("out of memory", "can't allocate memory", "not enough memory", "ALLOC_FAILED")
    return isinstance(error, MemoryError) or any(word in str(error) for word in words)


def reset_peak(device="cpu") -> None:
    """Let the peaks begin anew (the process's on Linux only), so that what comes next has its own."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    if str(device).startswith("cuda"):
        import torch

        torch.cuda.empty_cache()  # else what an earlier step reserved counts for the next
        torch.cuda.reset_peak_memory_stats(device)


def taken(device="cpu") -> tuple[int, int]:
    """Bytes that this process takes now, or torch on a GPU, and at the most since the reset."""
    if str(device).startswith("cuda"):
        import torch

        return torch.cuda.memory_allocated(device), torch.cuda.max_memory_allocated(device)
    return psutil.Process().memory_info().rss, peak()


def peak_gib() -> float:
    """The most memory this process had since the reset."""
    return round(peak() / GIB, 3)


def peak() -> int:
    """The same in bytes."""
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) << 10
    except (OSError, IndexError):
        memory = psutil.Process().memory_info()
        return getattr(memory, "peak_wset", memory.rss)


def peaks(device="cpu") -> dict[str, float]:
    """The process's peak, and on a GPU what torch allocated and what it reserved at most."""
    found = {"peak_gib": peak_gib()}
    if str(device).startswith("cuda"):
        import torch

        found["gpu_allocated_gib"] = round(torch.cuda.max_memory_allocated(device) / GIB, 3)
        found["gpu_reserved_gib"] = round(torch.cuda.max_memory_reserved(device) / GIB, 3)
    return found
