import asyncio
import time

import nbformat
from nbformat.v4 import new_code_cell, new_notebook
from test_engine import repo_on_path  # noqa: F401 (a fixture)

from lib import engine


def test_no_output_is_lost_while_nobody_reads_it(tmp_path, monkeypatch):
    """The reader stops at the first line until 10,000 more have been sent; zmq's own limit is 1,000."""
    output = engine.Client.output

    def wait_for_all(self, *arguments):
        end = time.monotonic() + 60
        while not (tmp_path / "all printed").exists() and time.monotonic() < end:
            time.sleep(0.05)
        return output(self, *arguments)

    monkeypatch.setattr(engine.Client, "output", wait_for_all)
    nb = new_notebook(cells=[new_code_cell("from pathlib import Path\nfor i in range(10_000): print(i, flush=True)")])
    nb.cells[0].source += f"\nPath({str(tmp_path / 'all printed')!r}).touch()"
    nb.metadata.papermill = {}
    asyncio.run(engine.execute(nb, tmp_path / "01_x.ipynb"))
    (output,) = nbformat.read(tmp_path / "01_x.ipynb", 4).cells[0].outputs
    assert output.text == "".join(f"{i}\n" for i in range(10_000))


LATE = """
import pathlib, threading, weakref
from ipykernel.kernelapp import IPKernelApp

app = IPKernelApp.instance()

class Pipes(weakref.WeakKeyDictionary):
    def values(self, app=app, told=pathlib.Path({told!r})):
        told.write_text(str(app.control_thread.is_alive()))
        return super().values()

def linger(*order, add=app.kernel.io_loop.add_callback, wait=threading.Event().wait):
    add(*order)
    wait(0.5)

app.iopub_thread._event_pipes = Pipes(app.iopub_thread._event_pipes)
app.kernel.io_loop.add_callback = linger
"""


def test_who_hears_the_order_to_end_has_ended_before_its_pipe_is_closed(tmp_path):
    """Otherwise zmq aborts now and then, with a line about an assertion at the end of a log that ended well."""
    nb = new_notebook(cells=[new_code_cell(LATE.format(told=str(tmp_path / "alive")))])
    nb.metadata.papermill = {}
    asyncio.run(engine.execute(nb, tmp_path / "01_x.ipynb"))
    assert (tmp_path / "alive").read_text() == "False"
