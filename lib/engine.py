"""What papermill calls to execute a notebook: an engine that can be stopped, leaves no process, and tells the truth."""

import asyncio
import contextlib
import os
import signal
import sys
import tempfile
import threading
from pathlib import Path

from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError

from lib import log
from lib.words import first_line

SAVE_EVERY = 5.0  # seconds between two saves of a running log: writing it is not what the run is for
GRACE = 20.0  # seconds that an interrupted cell gets to publish what it has
ENVIRONMENT = {
    "LIB_BATCH": "1",  # tells a notebook that nobody is at the keyboard
    "PYTHONHASHSEED": "0",
    "MPLBACKEND": "module://matplotlib_inline.backend_inline",
}


class Ended(Exception):
    """A notebook did not complete; its log says the same."""

    def __init__(self, status: str, reason: str):
        super().__init__(f"{status}: {reason}")
        self.status, self.reason = status, reason


class Engine:
    """`papermill --engine lib`, and what lib.batch runs.

    Not a subclass of papermill's engine: papermill loads this class while it is itself still being imported.
    """

    @staticmethod
    def nb_kernel_name(nb, name=None) -> str:
        return "python3"

    @staticmethod
    def nb_language(nb, language=None) -> str:
        return "python"

    @staticmethod
    def execute_notebook(nb, kernel_name, output_path=None, target=None, minutes=0.0, orders=None, **_):
        """Execute all cells into a log at `target`, or else at papermill's output; raise Ended if one is missing.

        Batch gives no output path: papermill writes its output in place at the end, where a full disk would cost the
        log that lay there before.
        """
        if os.name == "nt":
            asyncio.set_event_loop_policy(asyncio.WindowsSelectorEventLoopPolicy())  # zmq needs it
        return asyncio.run(execute(nb, Path(target or output_path), minutes, orders))


async def execute(nb, target: Path, minutes: float = 0.0, orders=None):
    """Run the cells in a kernel of their own, and keep the log of it."""
    client = Client(nb, iopub_timeout=60, raise_on_iopub_timeout=True)  # lost output is an error, not a gap in the log
    client.cut = f"all of it is in {target.stem}.log" if orders else "lib.batch keeps all of it in a text file"
    if orders:
        threading.Thread(target=obey, args=(orders, client, asyncio.get_running_loop()), daemon=True).start()
    log.begin(nb)
    log.save(nb, log.running(target), client.cut)
    saving = asyncio.create_task(keep_saving(nb, log.running(target), client.cut))
    with tempfile.TemporaryDirectory(prefix="kernel-") as folder:
        client.km = Manager(folder)
        status, reason = await run_cells(client, minutes)
    saving.cancel()
    log.finish(nb, status, reason)
    log.replace_running(nb, target, client.cut)
    if status != "completed":
        raise Ended(status, reason)
    return nb


async def run_cells(client: "Client", minutes: float) -> tuple[str, str]:
    """All cells in order, as far as they come: how it ended, and why."""
    cells, where = client.nb.cells, "before the first cell"
    environment = {**os.environ, **ENVIRONMENT}
    try:
        async with client.async_setup_kernel(cleanup_kc=True, env=environment):
            client.listen(minutes)
            for index, cell in enumerate(cells):
                if client.stopped:
                    return client.stopped, f"after {index} of {len(cells)} cells"
                where = f"in cell {index + 1} of {len(cells)}"
                log.begin_cell(cell)
                try:
                    await client.async_execute_cell(cell, index)
                except DeadKernelError:
                    if client.stopped:
                        return client.stopped, f"{where}, which did not stop by itself"
                    return "killed", f"the kernel {how_it_died(client.process().poll())} {where}"
                log.finish_cell(cell, "completed")
    except CellExecutionError as error:
        return client.stopped or "failed", f"{where}: {error.ename}: {first_line(error.evalue)}"
    except Exception as error:  # a kernel that does not start, messages that are lost
        return client.stopped or "failed", f"{where}: {type(error).__name__}: {first_line(error)}"
    return "completed", ""


async def keep_saving(nb, target: Path, cut: str) -> None:
    """Save the log now and then until we are cancelled."""
    told = ""
    while True:
        await asyncio.sleep(SAVE_EVERY)
        try:
            log.save(nb, target, cut)
        except OSError as error:  # the run may still end well: somebody may clean up the disk
            if str(error) != told:
                sys.stdout.write(f"{error}\n")
            told = str(error)


# -- the kernel -------------------------------------------------------------------------------------------------------


class Client(NotebookClient):
    """nbclient that prints what the cells print, is deaf to widgets, and can be stopped."""

    stopped = ""  # the status to end with, once somebody asked to end
    cut = ""  # where the rest of a shortened text can be read
    interrupt = None  # asyncio forgets a task that nobody holds

    def listen(self, minutes: float) -> None:
        """Let signals and time stop the run. On a signal nbclient itself would drop the kernel at once."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            with contextlib.suppress(NotImplementedError):  # Windows
                loop.add_signal_handler(number, self.stop, "interrupted")
        if minutes:
            loop.call_later(60 * minutes, self.stop, "timed out")

    def stop(self, status: str) -> None:
        """Interrupt the running cell. Asked again, or when the grace is over, kill the kernel."""
        if self.stopped:
            return self.kill()
        self.stopped = status
        asyncio.get_running_loop().call_later(GRACE, self.kill)
        if self.km and self.km.has_kernel:
            self.interrupt = asyncio.ensure_future(self.km.interrupt_kernel())

    def kill(self) -> None:
        """End the kernel and its process group."""
        if process := self.process():
            with contextlib.suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL) if hasattr(os, "killpg") else process.kill()

    def process(self):
        return self.km and self.km.provisioner and self.km.provisioner.process

    def output(self, outs, msg, display_id, cell_index):
        """Print what cells print, and join it: a million lines must not make a million outputs."""
        content = msg["content"]
        if msg["msg_type"] == "error":
            sys.stdout.write("\n".join(content["traceback"]) + "\n")
        if msg["msg_type"] != "stream":
            return super().output(outs, msg, display_id, cell_index)
        sys.stdout.write(content["text"])
        sys.stdout.flush()
        last = outs[-1] if outs and not self.clear_before_next_output else {}
        if last.get("name") != content["name"]:
            return super().output(outs, msg, display_id, cell_index)
        last.text += content["text"]
        if len(last.text) > 3 * log.TEXT:
            last.text = log.shorten(last.text, log.TEXT, self.cut)
        return last

    def handle_comm_msg(self, outs, msg, cell_index) -> None:
        """Keep no state of widgets. What an Output widget would catch then stays in the cell as plain output."""


class Manager(AsyncKernelManager):
    """Starts our kernel, whatever others are installed where."""

    def __init__(self, folder: str):
        """The kernel talks through files in a folder where it can: a port may be taken, and others may listen."""
        files = os.name != "nt" and len(folder) < 80  # such a file's path may have about 100 characters
        where = {"transport": "ipc" if files else "tcp", "connection_file": f"{folder}/kernel.json"}
        super().__init__(kernel_spec_manager=ThisPython(), **where)


class ThisPython(KernelSpecManager):
    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        command = [sys.executable, "-m", "lib.kernel", "-f", "{connection_file}"]
        return KernelSpec(argv=command, display_name="Python 3", language="python")


def obey(orders, client: Client, loop) -> None:
    """Every line is an order to stop. When the lines end, batch is dead, and so must we and the kernel be."""
    for _ in orders:
        with contextlib.suppress(RuntimeError):  # the loop has just ended
            loop.call_soon_threadsafe(client.stop, "interrupted")
    client.kill()
    os._exit(1)


def how_it_died(code: int | None) -> str:
    """A dead process's exit code in words."""
    if code is None or code >= 0:
        return f"ended with exit code {code}"
    name = signal.Signals(-code).name
    return f"was killed by {name}" + " (out of memory?)" * (name == "SIGKILL")
