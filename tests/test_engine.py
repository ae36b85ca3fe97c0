import asyncio
import os
import signal
import sys
from pathlib import Path

import nbformat
import psutil
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from lib import engine, log


@pytest.fixture(autouse=True)
def repo_on_path(monkeypatch):
    """So that the tests also run where the repo is not installed."""
    before = os.environ.get("PYTHONPATH", "")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(engine.__file__).parents[1]), before]))


def execute(target, *sources, **options):
    """Execute cells after a title; the log, and how it ended."""
    nb = new_notebook(cells=[new_markdown_cell("# A title"), *map(new_code_cell, sources)])
    nb.metadata.papermill = {}
    ended = None
    try:
        asyncio.run(engine.execute(nb, target, **options))
    except engine.Ended as error:
        ended = error
    assert os.listdir(target.parent) == [target.name]  # nothing is left beside the log
    return nbformat.read(target, 4), ended


def statuses(nb):
    return [cell.metadata.papermill.status for cell in nb.cells]


def printed(nb, index):
    return "".join(output.get("text", "") for output in nb.cells[index].outputs)


def test_a_notebook_runs_to_its_end_in_this_interpreter(tmp_path, capsys):
    nb, ended = execute(
        tmp_path / "01_x {y}.ipynb",
        "import os, sys\nprint(sys.executable)\nprint(os.getcwd())\nprint(os.environ['LIB_BATCH'], hash('a'))",
        "for i in range(3000): print(i, flush=True)",
        "print('no newline', end='')\nprint('to stderr', file=sys.stderr)",
        "import ipywidgets as w\nout = w.Output()\nwith out: print('caught by a widget')\ndisplay(out)\nw.IntSlider(3)",
        "import matplotlib.pyplot as plt\nplt.plot([1, 2]);",
        "handle = display('old', display_id=True)\nhandle.update('new')",
        "print('one')\nfrom IPython.display import clear_output\nclear_output(wait=True)\nprint('two')",
    )
    assert ended is None and set(statuses(nb)) == {"completed"}
    assert nb.metadata.papermill.status == "completed" and nb.metadata.papermill.duration > 0
    out = nb.cells[1].outputs[0].text.splitlines()
    assert out[:2] == [sys.executable, os.getcwd()] and out[2].startswith("1 ")
    assert [output.text for output in nb.cells[2].outputs] == ["".join(f"{i}\n" for i in range(3000))]
    assert {output.name: output.text for output in nb.cells[3].outputs} == {
        "stdout": "no newline",
        "stderr": "to stderr\n",
    }
    assert printed(nb, 4) == "caught by a widget\n" and len(nb.cells[4].outputs) == 1
    assert "widgets" not in nb.metadata
    assert "image/png" in nb.cells[5].outputs[0].data
    assert nb.cells[6].outputs[0].data["text/plain"] == "'new'"
    assert printed(nb, 7) == "two\n"
    on_terminal = capsys.readouterr().out
    assert "2998\n2999\n" in on_terminal and "to stderr" in on_terminal


def test_a_failed_cell_ends_the_notebook(tmp_path, capsys):
    nb, ended = execute(tmp_path / "01_x.ipynb", "1", "assert 1 > 2, 'nothing <usable>'", "2")
    assert statuses(nb) == ["failed", "completed", "completed", "failed", "not run"]
    assert ended.status == "failed" and ended.reason == "in cell 3 of 4: AssertionError: nothing <usable>"
    assert nb.cells[3].outputs[0].ename == "AssertionError"
    assert "AssertionError" in capsys.readouterr().out


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_a_killed_kernel_is_not_a_completed_one(tmp_path):
    nb, ended = execute(
        tmp_path / "01_x.ipynb", "print('so far', flush=True)", "import os\nos.kill(os.getpid(), 9)", "2"
    )
    assert statuses(nb) == ["killed", "completed", "completed", "killed", "not run"]
    assert ended.status == "killed" and "SIGKILL" in ended.reason and "in cell 3 of 4" in ended.reason
    assert printed(nb, 2) == "so far\n"


def test_a_segfault_names_its_signal(tmp_path):
    _, ended = execute(tmp_path / "01_x.ipynb", "import ctypes\nctypes.string_at(0)")
    assert ended.status == "killed" and ("SIGSEGV" in ended.reason or os.name == "nt")


def test_a_notebook_that_takes_too_long_may_publish_and_ends_as_timed_out(tmp_path):
    waits = "import time\ntry:\n    while True: time.sleep(0.05)\nfinally:\n    print('published')"
    nb, ended = execute(tmp_path / "01_x.ipynb", waits, "2", minutes=0.005)
    assert statuses(nb) == ["timed out", "completed", "timed out", "not run"]
    assert ended.status == "timed out" and "in cell 2 of 3" in ended.reason
    assert printed(nb, 2) == "published\n"


ASK = "import os, signal, time; os.kill(os.getppid(), signal.SIGTERM)"  # the kernel's parent is this process
WAIT = "while True: time.sleep(0.05)"
STUBBORN = """
asked = False
while True:
    try:
        if not asked:
            asked = True
            import os, signal, time; os.kill(os.getppid(), signal.SIGTERM)
        while True: time.sleep(0.05)
    except KeyboardInterrupt:
        print("not I", flush=True)
"""


@pytest.fixture
def sigterm():
    """Should the engine not listen to a signal, it must not end the tests."""
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_a_signal_interrupts_the_cell(tmp_path, sigterm):
    nb, ended = execute(tmp_path / "01_x.ipynb", f"{ASK}\n{WAIT}", "2")
    assert statuses(nb) == ["interrupted", "completed", "interrupted", "not run"]
    assert ended.status == "interrupted" and ended.reason == "in cell 2 of 3: KeyboardInterrupt: "


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_a_cell_that_ends_well_when_interrupted_is_completed_and_the_next_one_does_not_run(tmp_path, sigterm):
    calm = f"try:\n    {ASK}\n    {WAIT}\nexcept KeyboardInterrupt:\n    print('all is saved')"
    nb, ended = execute(tmp_path / "01_x.ipynb", calm, "2")
    assert statuses(nb) == ["interrupted", "completed", "completed", "not run"] and printed(nb, 2) == "all is saved\n"
    assert ended.status == "interrupted" and ended.reason == "after 2 of 3 cells"


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_what_does_not_stop_is_killed_after_its_grace(tmp_path, sigterm, monkeypatch):
    monkeypatch.setattr(engine, "GRACE", 1.0)
    nb, ended = execute(tmp_path / "01_x.ipynb", "import os\nprint(os.getpid())", STUBBORN, "2")
    assert statuses(nb) == ["interrupted", "completed", "completed", "interrupted", "not run"]
    assert "did not stop by itself" in ended.reason and printed(nb, 3) == "not I\n"
    assert not psutil.pid_exists(int(printed(nb, 2)))


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_a_second_signal_kills(tmp_path, sigterm, monkeypatch):
    monkeypatch.setattr(engine, "GRACE", 1000.0)
    asks_again = STUBBORN.replace("print", "os.kill(os.getppid(), signal.SIGTERM); print")
    nb, ended = execute(tmp_path / "01_x.ipynb", asks_again, "2")
    assert statuses(nb) == ["interrupted", "completed", "interrupted", "not run"]
    assert "did not stop by itself" in ended.reason


def test_a_running_log_can_be_opened_and_the_old_one_stays_until_the_end(tmp_path, monkeypatch):
    target, seen = tmp_path / "01_x.ipynb", []
    target.write_text("the old log")

    def spy(nb, path, cut, save=log.save):
        old = target.read_text() == "the old log"
        save(nb, path, cut)
        seen.append((path, [cell.metadata.papermill.status for cell in nbformat.read(path, 4).cells], old))
        if seen[-1][1] == ["completed", "running"]:
            (tmp_path / "go").touch()

    monkeypatch.setattr(engine, "SAVE_EVERY", 0.2)
    monkeypatch.setattr(log, "save", spy)
    go = f"pathlib.Path({str(tmp_path / 'go')!r})"
    _, ended = execute(target, f"import pathlib, time\nwhile not {go}.exists(): time.sleep(0.05)\n{go}.unlink()")
    assert ended is None
    assert seen[0] == (log.running(target), ["not run", "not run"], True)
    assert {path for path, _, _ in seen[:-1]} == {log.running(target)} and all(old for *_, old in seen)
    assert seen[-1] == (target, ["completed", "completed"], True)


def test_papermill_finds_the_engine_by_its_name(tmp_path):
    import papermill
    from papermill.engines import papermill_engines

    assert papermill_engines.get_engine("lib").__name__ == "Engine"
    nb = new_notebook(cells=[new_code_cell("x = 1", metadata={"tags": ["parameters"]}), new_code_cell("print(x)")])
    nbformat.write(nb, tmp_path / "in.ipynb")
    papermill.execute_notebook(
        tmp_path / "in.ipynb",
        tmp_path / "out.ipynb",
        {"x": 2},
        engine_name="lib",
        progress_bar=False,
        kernel_name="python3",
        language="python",
    )
    nb = nbformat.read(tmp_path / "out.ipynb", 4)
    assert printed(nb, 2) == "2\n" and set(statuses(nb)) == {"completed"}
