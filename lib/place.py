"""This process among those that torchrun started, its device, and how others are started."""

import atexit
import contextlib
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import distributed

from lib import memory
from lib.dataset import write_text
from lib.words import say


@dataclass
class Place:
    """Who we are, and what all of us find out together."""

    rank: int
    world: int
    device: torch.device

    @classmethod
    def here(cls, device: str) -> "Place":
        device = memory.choose(device)
        world = int(os.environ.get("WORLD_SIZE", 1))
        if world == 1:
            return cls(0, 1, torch.device(device))
        on_gpu = torch.device(device).type == "cuda"
        if on_gpu:
            device = f"cuda:{os.environ['LOCAL_RANK']}"
            torch.cuda.set_device(device)
        if not distributed.is_initialized():
            distributed.init_process_group("nccl" if on_gpu else "gloo")
            atexit.register(distributed.destroy_process_group)  # as PyTorch asks for
        return cls(distributed.get_rank(), world, torch.device(device))

    @property
    def first(self) -> bool:
        return self.rank == 0

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    def peak_gib(self) -> float:
        """Of this process's GPU memory."""
        return torch.cuda.max_memory_allocated(self.device) / 2**30 if self.on_gpu else 0.0

    def wait(self) -> None:
        if self.world > 1:
            distributed.barrier()

    def any(self, *flags: bool) -> list[bool]:
        """For each flag: is it so anywhere?"""
        return [bool(count) for count in self.reduced([float(flag) for flag in flags])]

    def average(self, sums: dict) -> dict:
        """Sums over steps as any process may go on with them: each has a share of the batch, and so of the sums."""
        values = self.reduced([float(value) for value in sums.values()]) if sums else []
        return {name: value / self.world for name, value in zip(sums, values, strict=True)}

    def mean(self, sums: dict) -> dict:
        """Sums over steps as means, over all processes."""
        names = [name for name in sums if name != "n"]
        values = self.reduced([float(sums[name]) for name in names])
        return {name: value / sums["n"] / self.world for name, value in zip(names, values, strict=True)}

    def reduced(self, values: list[float]) -> list[float]:
        if self.world == 1:
            return values
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        distributed.all_reduce(tensor)
        return tensor.tolist()


@contextlib.contextmanager
def process() -> Iterator[None]:
    """The life of a process that torchrun started. It ends here: the usual end of an interpreter may be an abort.

    Gloo's threads live as long as anything refers to its group, as caches of PyTorch do to the very end. One that then
    still lets go of a tensor asks for an interpreter that is gone, and takes the process with it.
    """
    code = 1
    try:
        yield
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def launch(module: str, folder: Path, asked: dict, processes: int) -> None:
    """Run a module in so many processes of torchrun; what it is asked lies in <folder>/asked.json, its argument."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "asked.json", json.dumps(asked))
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [sys.executable, *launcher, "-m", module, str(folder / "asked.json")]
    last = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as child:
        try:
            for line in child.stdout:
                say(line.rstrip())
                last = [*last, line][-30:]
        except KeyboardInterrupt:
            child.terminate()  # torchrun passes it on; each saves and ends
            child.wait()
            raise
    if child.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {child.returncode}:\n{''.join(last)}")
