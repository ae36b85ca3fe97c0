"""Notebooks in a real JupyterLab in a real browser: run cell by cell, turned by their sliders, saved and opened again.

Needs Chromium, as test_browser.py does.
"""

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import psutil
import pytest
from chromium import Chromium, where
from test_browser import REQUIRED

from lib import shapes

ROOT = Path(__file__).parent.parent
PATIENCE = 300  # seconds, generous: a kernel that starts, a cell that closes meshes on two cores
NOTEBOOK = "jupyterapp.shell.currentWidget"
KERNEL = f"{NOTEBOOK}.sessionContext.session?.kernel"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not where() and not REQUIRED, reason="no Chromium here: apt install chromium"),
]


class Lab(Chromium):
    """A browser with a notebook of a running JupyterLab in it."""

    def __init__(self, address: str, token: str):
        super().__init__(local=True)
        self.address, self.token = address, token

    def notebook(self, path: str) -> None:
        """Open a notebook in a workspace of its own, and wait for its kernel."""
        fresh = f"lab/workspaces/w{time.monotonic_ns()}/tree/{path}?reset&token={self.token}"
        self.open(self.address + fresh, 1300, 1400)
        self.until(f"window.jupyterapp && {NOTEBOOK}?.content?.widgets?.length > 1", PATIENCE)
        self.until(f"{KERNEL}?.status === 'idle'", PATIENCE)
        self.run("jupyterapp.shell.collapseLeft()")

    def cells(self) -> list[list]:
        """Kind and source of each."""
        return self.run(f"{NOTEBOOK}.content.widgets.map((c) => [c.model.type, c.model.sharedModel.getSource()])")

    def find(self, words: str) -> int:
        return next(k for k, (kind, source) in enumerate(self.cells()) if kind == "code" and words in source)

    def show(self, k: int) -> None:
        self.run(f"{NOTEBOOK}.content.activeCellIndex = {k}")
        self.run(f"{NOTEBOOK}.content.scrollToItem({k}, 'start')")

    def run_cell(self, k: int) -> list[dict]:
        """Run a cell as a person does, and wait until it is done: its outputs."""
        self.show(k)
        self.run("window.ran = false, void jupyterapp.commands.execute('notebook:run-cell').then(() => (ran = true))")
        self.until("ran", PATIENCE)
        return self.outputs(k)

    def outputs(self, k: int) -> list[dict]:
        """As they would be saved."""
        return self.run(f"{NOTEBOOK}.content.widgets[{k}].model.outputs.toJSON()")

    def picture(self, k: int, besides: str = "") -> str:
        """The picture below a cell that has one, once the page shows what the model holds, and it is another one."""
        cell, deadline = f"{NOTEBOOK}.content.widgets[{k}]", time.monotonic() + PATIENCE
        sources = f"[...{cell}.node.querySelectorAll('.jp-OutputArea-output img')].map((image) => image.src)"
        while True:
            saved = [data["image/png"].strip() for data in map(data_of, self.outputs(k)) if "image/png" in data]
            if len(saved) == 1 and saved != [besides] and self.run(sources) == [f"data:image/png;base64,{saved[0]}"]:
                return saved[0]
            assert time.monotonic() < deadline, f"cell {k} has {len(saved)} pictures and shows no new one"
            time.sleep(0.2)

    def slide(self, number: int, key: str, times: int = 3) -> None:
        """Move a slider by the keyboard."""
        self.run(f"document.querySelectorAll('.widget-slider .noUi-handle')[{number}].focus()")
        for _ in range(times):
            self.key(key)

    def choose(self, number: int) -> None:
        """Another entry of the one list."""
        choice = "document.querySelector('.widget-dropdown select')"
        self.run(f"{choice}.selectedIndex = {number}, {choice}.dispatchEvent(new Event('change', {{bubbles: true}}))")

    def alive(self) -> bool:
        """Does the kernel still compute, without a dialog that says it died?"""
        self.until(f"{KERNEL}?.status === 'idle'", PATIENCE)
        return not self.run("!!document.querySelector('.jp-Dialog')")

    def errors(self) -> list[str]:
        """What the console holds of them; JupyterLab warns of much, and misses files that need not be there."""
        self.run("1")
        found = []
        for event in self.events:
            told = event.get("params", {})
            if event["method"] == "Runtime.exceptionThrown":
                found.append(json.dumps(told["exceptionDetails"]))
            elif event["method"] == "Runtime.consoleAPICalled" and told["type"] in ("error", "assert"):
                found.append(json.dumps(told["args"]))
        return found


def data_of(output: dict) -> dict:
    return output.get("data", {})


def faults(outputs: list[dict]) -> list[str]:
    """Errors, and what was printed to stderr."""
    told = [f"{output['ename']}: {output['evalue']}" for output in outputs if output["output_type"] == "error"]
    return told + [output["text"] for output in outputs if output.get("name") == "stderr"]


def bare(source: Path, target: Path, **given) -> None:
    """A notebook as a person opens it, with their words in its second cell."""
    nb = nbformat.read(source, 4)
    [cell] = [cell for cell in nb.cells if "parameters" in cell.metadata.get("tags", [])]
    lines = cell.source.splitlines()
    for name, value in given.items():
        [place] = [k for k, line in enumerate(lines) if line.startswith(f"{name} = ")]
        lines[place] = f"{name} = {value!r}"
    cell.source = "\n".join(lines)
    nbformat.write(nb, target)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What JupyterLab serves: 01 executed by batch, and bare with the same parameters."""
    folder = tmp_path_factory.mktemp("lab")
    shapes.make(folder / "meshes", 3)
    places = {"meshes": folder / "meshes", "dataset": folder / "tree", "run": folder / "run"}
    given = [f"-p{name}={path}" for name, path in places.items()]
    command = [sys.executable, "-m", "lib.batch", "params/smoke.yaml", *given, "--only", "01_watertight"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    words = {name: str(path) for name, path in places.items()} | {"resolution": 32, "jobs": 1}
    bare(ROOT / "notebooks" / "01_watertight.ipynb", folder / "bare.ipynb", **words)
    return folder


@contextlib.contextmanager
def served(folder: Path):
    """Address and token of a JupyterLab, which ends with all that it started."""
    home = {
        name: str(folder / ".jupyter") for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR")
    }
    options = {"ServerApp.port": 0, "ServerApp.ip": "127.0.0.1", "LabApp.expose_app_in_browser": True}
    command = [sys.executable, "-m", "jupyterlab", str(folder), "--no-browser", "--allow-root"]
    environment = os.environ | home | {"PYTHONPATH": str(ROOT)}
    environment.pop("LIB_BATCH", None)
    with (folder / ".lab.log").open("wb") as log:
        given = [f"--{name}={value}" for name, value in options.items()]
        server = psutil.Popen([*command, *given], cwd=folder, env=environment, stdout=log, stderr=log)
    family = [server]
    try:
        deadline, found = time.monotonic() + PATIENCE, []
        while not found:
            said = (folder / ".lab.log").read_text()
            assert server.poll() is None and time.monotonic() < deadline, said
            found = list((folder / ".jupyter").glob("jpserver-*.json"))
            time.sleep(0.1)
        about = json.loads(found[0].read_text())
        yield about["url"], about["token"]
    finally:
        with contextlib.suppress(psutil.Error):
            family += server.children(recursive=True)
        for process in family:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(family, 10)


@pytest.fixture(scope="module")
def server(folder):
    assert where(), "LIB_BROWSER=required, but there is no Chromium: apt install chromium"
    with served(folder) as address_and_token:
        yield address_and_token


@pytest.fixture
def lab(server):
    """A browser for each test: one that leaves a notebook with changes asks whether it may."""
    with Lab(*server) as lab:
        yield lab


def test_an_executed_notebook_shows_its_pictures_and_becomes_live_when_it_is_run(lab):
    lab.notebook("run/01_watertight.ipynb")
    code = [k for k, (kind, _) in enumerate(lab.cells()) if kind == "code"]
    assert sum("image/png" in data for k in code for data in map(data_of, lab.outputs(k))) == 4
    assert [told for k in code for told in faults(lab.outputs(k))] == []
    explorer = lab.find("report.explorer")
    lab.show(explorer)
    still = lab.picture(explorer)
    assert lab.run("document.querySelectorAll('.jupyter-widgets').length") == 0  # none that wants a kernel
    for k in [k for k in code if k <= lab.find("pool.map")]:
        assert faults(lab.run_cell(k)) == []
    assert faults(lab.run_cell(explorer)) == []
    first = lab.picture(explorer)
    lab.slide(1, "ArrowRight")
    assert lab.picture(explorer, besides=first) != still
    assert lab.alive() and lab.errors() == []


def test_a_bare_notebook_runs_cell_by_cell_turns_its_meshes_and_keeps_what_was_seen(lab):
    lab.notebook("bare.ipynb")
    for k, (kind, _) in enumerate(lab.cells()):
        assert kind != "code" or faults(lab.run_cell(k)) == []
    explorer = lab.find("report.explorer")
    lab.show(explorer)
    first = lab.picture(explorer)
    lab.slide(0, "ArrowRight")
    turned = lab.picture(explorer, besides=first)
    lab.choose(1)
    other = lab.picture(explorer, besides=turned)
    lab.slide(1, "ArrowLeft")
    assert len({first, turned, other, lab.picture(explorer, besides=other)}) == 4
    assert lab.alive() and lab.errors() == []

    # Saved by hand, and opened when its kernel is gone: the last picture is there.
    last = lab.picture(explorer)
    lab.run("jupyterapp.commands.execute('docmanager:save')")
    lab.run("jupyterapp.serviceManager.sessions.shutdownAll()")
    lab.notebook("bare.ipynb")
    lab.show(explorer)
    assert lab.picture(explorer) == last
