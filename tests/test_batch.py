import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import psutil
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from lib import batch

HOSTILE = "<script>alert(1)</script> {} $x$"
LEDGER = f"""
import csv
with open(run + "/01_one.csv", "w", newline="") as file:
    table = csv.writer(file)
    table.writerow(["item", "status", "reason", "seconds", "command"])
    table.writerow(["00123", "quarantined", {HOSTILE!r}, "1.5", "python -m lib.pool"])
    table.writerow(["00124", "done", "", "1.5", ""])
"""
RUN = 'run = "outputs/notebook"  # folder of the ledger'
HOLD = "ctypes.PyDLL(None).sleep(600)"  # a native call that never lets go of the GIL
WORKER = "worker = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])"
SHOW = "import ctypes, os, subprocess, sys, time, pathlib\nprint('kernel', os.getpid(), flush=True)"


STARTED = []


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """An empty repo as the working directory; whatever a failed test leaves running is ended."""
    yield make_place(tmp_path, monkeypatch)
    while STARTED:
        STARTED.pop().kill()


def make_place(folder, monkeypatch):
    """Notebooks and params go here; lib is found also where it is not installed."""
    (folder / "notebooks").mkdir()
    (folder / "params").mkdir()
    monkeypatch.chdir(folder)
    before = os.environ.get("PYTHONPATH", "")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(batch.__file__).parents[1]), before]))
    return folder


def write_notebook(name, *sources, parameters=RUN):
    cells = [new_code_cell(parameters, metadata={"tags": ["parameters"]}), *map(new_code_cell, sources)]
    nbformat.write(new_notebook(cells=[new_markdown_cell(f"# {name}"), *cells]), f"notebooks/{name}.ipynb")


def write_params(text):
    Path("params/demo.yaml").write_text(text, encoding="utf-8")


def start(*options, output="terminal.txt"):
    """The command as a person starts it, in a terminal that lacks letters."""
    with open(output, "w") as terminal:
        STARTED.append(
            subprocess.Popen(
                [sys.executable, "-m", "lib.batch", "params/demo.yaml", *options],
                env=os.environ | {"PYTHONIOENCODING": "ascii"},
                stdin=subprocess.DEVNULL,
                stdout=terminal,
                stderr=subprocess.STDOUT,
                preexec_fn=None if os.name == "nt" else hear_signals,
            )
        )
    return STARTED[-1]


def hear_signals():
    """As in a terminal, also if the tests themselves run in the background or under nohup."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def until(true, what, deadline=120):
    """Wait for something to become true."""
    end = time.monotonic() + deadline
    while not (found := true()):
        assert time.monotonic() < end, f"waited in vain for {what}"
        time.sleep(0.05)
    return found


def terminal(output="terminal.txt"):
    return Path(output).read_text()


def pid_of(word, output="terminal.txt"):
    """The process that a cell has printed after a word."""
    return int(until(lambda: terminal(output).partition(f"| {word} ")[2].partition("\n")[0], word))


def gone(pid):
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def record():
    return json.loads(Path("outputs/demo/run.json").read_text())


def statuses(name, folder="outputs/demo"):
    nb = nbformat.read(f"{folder}/{name}.ipynb", 4)
    return nb.metadata.papermill.status, [cell.metadata.papermill.status for cell in nb.cells]


# -- before any kernel ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "options", "words"),
    [
        ("01_one:\n  resolutoin: 3\n", [], ["Did you mean resolution?", "resolution = 256  # grid cells"]),
        ("01_one:\n  resolution: high\n", [], ["resolution wants a whole number, like 256, but 'high' came"]),
        ("01_one:\n", ["-p", "resolutoin=3"], ["Did you mean resolution?"]),
        ("01_one:\n", ["--only", "01_on"], ["Did you mean 01_one?"]),
        ("01_on:\n", [], ["Did you mean 01_one?"]),
    ],
)
def test_a_mistake_ends_it_before_anything_starts(place, monkeypatch, capsys, text, options, words):
    write_notebook("01_one", parameters="resolution = 256  # grid cells")
    write_params(text)
    monkeypatch.setattr(subprocess, "Popen", None)
    assert batch.main(["params/demo.yaml", *options]) == 1
    message = capsys.readouterr().err
    assert all(word in message for word in words) and "Traceback" not in message
    assert not Path("outputs").exists()


# -- one run, looked at from all sides --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    """First the first section alone, then all three; the second one's kernel dies."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        folder = make_place(tmp_path_factory.mktemp("story"), monkeypatch)
        parameters = 'meshes = "data"  # folder\nresolution = 256  # cells\nrate = 0.5  # step\nseed = 3  # of all'
        write_notebook(
            "01_one",
            "print(repr(meshes), resolution, rate, run)",
            "print('over\\rwritten \\x1b[31mred\\x1b[0m')\nprint('é no newline', end='')",
            "import matplotlib.pyplot as plt\nplt.plot([1, 2]);",
            LEDGER,
            parameters=f"{parameters}\n{RUN}",
        )
        write_notebook("02_two", "print('about to die')", "import os\nos.kill(os.getpid(), 9)", "print('after death')")
        write_notebook("03_three", "print('never')")
        write_params(
            "# Does it work?\n# Expected: a minute.\n\nrate: 1\n01_one:\n  meshes: 00123\n02_two:\n03_three:\n"
        )
        codes = [start("--only", "01_one", "-p", "resolution=64").wait()]
        only = record(), sorted(os.listdir("outputs/demo"))
        codes.append(start("-p", "01_one.resolution=8", output="all.txt").wait())
        return {"folder": folder, "codes": codes, "only": only, "terminals": [terminal(), terminal("all.txt")]}


@pytest.fixture
def after(story, monkeypatch):
    monkeypatch.chdir(story["folder"])
    return story


def test_the_exit_code_tells_quarantine_from_failure(after):
    assert after["codes"] == [3, 1]


@pytest.mark.parametrize("minutes", ["-1", "0", "nan", "inf", "soon"])
def test_minutes_are_a_positive_number(place, minutes, capsys):
    with pytest.raises(SystemExit):
        batch.main(["params/demo.yaml", "--minutes", minutes])
    assert minutes in capsys.readouterr().err and not Path("outputs").exists()


def test_an_older_ledger_is_not_counted_when_a_section_fails_before_it_writes_one(place):
    write_notebook("01_one", LEDGER)
    write_params("# ?\n01_one: {}\n")
    assert batch.main(["params/demo.yaml"]) == 3
    write_notebook("01_one", "raise ValueError('early')")
    assert batch.main(["params/demo.yaml"]) == 1
    section = json.loads(Path("outputs/demo/run.json").read_text())["sections"]["01_one"]
    assert section["quarantined"] == 0 and Path("outputs/demo/01_one.csv").exists()
    assert "Nothing was put aside" in Path("outputs/demo/index.html").read_text()


def test_only_runs_what_was_asked_for(after):
    told, files = after["only"]
    assert [section["status"] for section in told["sections"].values()] == ["completed", "not run", "not run"]
    assert "01_one.ipynb" in files and not [file for file in files if file.startswith(("02", "03"))]
    assert told["status"] == "completed" and told["sections"]["01_one"]["parameters"]["resolution"] == 64


def test_values_arrive_with_their_types(after):
    nb = nbformat.read("outputs/demo/01_one.ipynb", 4)
    assert nb.cells[3].outputs[0].text == "'00123' 8 1.0 outputs/demo\n"
    assert nb.metadata.papermill.parameters == {"meshes": "00123", "resolution": 8, "rate": 1.0, "run": "outputs/demo"}


def test_the_terminal_and_the_text_log_have_plain_lines(after):
    lines = after["terminals"][1].splitlines()
    for line in ["01_one | written red", "01_one | ? no newline", "02_two | about to die"]:
        assert line in lines
    assert lines[-1] == Path("outputs/demo/index.html").resolve().as_uri()
    assert "after death" not in after["terminals"][1]
    told = Path("outputs/demo/01_one.log").read_text(encoding="utf-8")
    assert told.count("written red\né no newline\n") == 2 and "| " not in told  # of both runs


def test_a_killed_kernel_ends_the_run_honestly(after):
    assert statuses("01_one")[0] == "completed" and set(statuses("01_one")[1]) == {"completed"}
    assert statuses("02_two") == ("killed", ["killed", *4 * ["completed"], "killed", "not run"])
    assert not Path("outputs/demo/03_three.ipynb").exists()
    sections = record()["sections"]
    assert [section["status"] for section in sections.values()] == ["completed", "killed", "not run"]
    assert "SIGKILL" in sections["02_two"]["reason"] and "in cell 5 of 6" in sections["02_two"]["reason"]
    assert record()["status"] == "killed"


def test_the_folder_explains_itself(after):
    told = record()
    assert told["question"] == "Does it work?\nExpected: a minute."
    assert told["text"] == Path("params/demo.yaml").read_text()
    assert told["command"] == "python -m lib.batch params/demo.yaml -p 01_one.resolution=8"
    assert told["seeds"] == {"01_one": 3}
    first = told["sections"]["01_one"]
    assert first["parameters"] == {"meshes": "00123", "resolution": 8, "rate": 1.0, "seed": 3, "run": "outputs/demo"}
    assert {name: change["default"] for name, change in first["differs"].items()} == {
        "meshes": "data",
        "resolution": 256,
        "rate": 0.5,
    }
    assert first["seconds"] > 0 and first["peak_gib"] > 0.02 and first["quarantined"] == 1
    assert told["sections"]["03_three"]["differs"] == {}
    assert told["started"] < told["ended"]
    assert {"commit", "dirty", "python", "cpu", "gpu", "packages"} <= set(told["provenance"])
    assert {"numpy", "papermill"} <= set(told["provenance"]["packages"])


def test_the_page_stands_at_the_end(after):
    page = Path("outputs/demo/index.html").read_text(encoding="utf-8")
    for words in ["Does it work?", "killed", "not run", "SIGKILL", "00123", "data:image/webp;base64,", "alert(1)"]:
        assert words in page
    assert "<script" not in page and 'http-equiv="refresh"' not in page
    for link in ("01_one.html", "01_one.ipynb", "01_one.log", "01_one.csv", "02_two.ipynb"):
        assert f'href="{link}"' in page and Path("outputs/demo", link).exists()
    assert not [file for file in os.listdir("outputs/demo") if ".running" in file or ".partial" in file]


def test_the_table_of_runs_has_it(after):
    table = Path("outputs/index.html").read_text(encoding="utf-8")
    assert 'href="demo/index.html"' in table and "killed" in table and "Does it work?" in table


# -- other ends -------------------------------------------------------------------------------------------------------


def test_a_good_run_ends_with_0_also_in_an_odd_folder(place, capsys):
    write_notebook("01_one", "print(run)", 'print("=" * 300_000)')
    write_params("01_one:\n")
    folder = str(place / "out {side} of 'it'")
    assert batch.main(["params/demo.yaml", "-p", f"run={folder}"]) == 0
    assert statuses("01_one", folder)[0] == "completed"
    nb = nbformat.read(f"{folder}/01_one.ipynb", 4)
    assert nb.cells[3].outputs[0].text == f"{folder}\n"
    assert "all of it is in 01_one.log" in nb.cells[4].outputs[0].text
    assert "=" * 300_000 in Path(folder, "01_one.log").read_text()
    assert capsys.readouterr().out.splitlines()[-1] == Path(folder, "index.html").as_uri()


@pytest.mark.slow
def test_a_section_that_takes_too_long_ends_the_run(place, capsys):
    write_notebook("01_one", "import time\nwhile True: time.sleep(0.05)")
    write_notebook("02_two", "1")
    write_params("01_one:\n02_two:\n")
    assert batch.main(["params/demo.yaml", "--minutes", "0.01"]) == 1
    assert statuses("01_one")[0] == "timed out"
    assert [section["status"] for section in record()["sections"].values()] == ["timed out", "not run"]


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_lets_the_notebook_publish_and_ends_with_130(place, number):
    publish = "pathlib.Path(run, 'published').touch()"
    wait = f"try:\n    print('waits', flush=True)\n    while True: time.sleep(0.05)\nfinally:\n    {publish}"
    write_notebook("01_one", SHOW, wait, "print('never')")
    write_notebook("02_two", "1")
    write_params("01_one:\n02_two:\n")
    child = start()
    kernel = pid_of("kernel")
    until(lambda: "| waits" in terminal(), "the cell")
    child.send_signal(number)
    assert child.wait(60) == 130
    assert Path("outputs/demo/published").exists() and gone(kernel)
    assert statuses("01_one") == ("interrupted", ["interrupted", *4 * ["completed"], "interrupted", "not run"])
    assert [section["status"] for section in record()["sections"].values()] == ["interrupted", "not run"]
    assert terminal().splitlines()[-1].startswith("file://")
    if number == signal.SIGINT:  # the same command resumes; here, nothing keeps the second attempt
        write_notebook("01_one", "1")
        assert start().wait(120) == 0
        assert statuses("01_one")[0] == "completed" and record()["status"] == "completed"


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_nothing_outlives_a_killed_batch(place):
    worker = f"{WORKER}\nprint('worker', worker.pid, flush=True)"
    write_notebook("01_one", SHOW, worker, f"print('hangs', flush=True)\n{HOLD}")
    write_params("01_one:\n")
    child = start()
    pids = [pid_of("kernel"), pid_of("worker")]
    until(lambda: "| hangs" in terminal(), "the cell")
    pids += [process.pid for process in psutil.Process(child.pid).children()]
    child.kill()
    child.wait()
    until(lambda: all(map(gone, pids)), f"the end of {pids}", deadline=10)


@pytest.mark.slow
@pytest.mark.skipif(
    sys.platform != "linux", reason="elsewhere a kernel watches its parent, which a native call prevents"
)
def test_a_hanging_kernel_dies_even_if_all_above_it_are_killed_at_once(place):
    write_notebook("01_one", SHOW, f"print('hangs', flush=True)\n{HOLD}")
    write_params("01_one:\n")
    child = start()
    kernel = pid_of("kernel")
    until(lambda: "| hangs" in terminal(), "the cell")
    (section,) = psutil.Process(child.pid).children()
    psutil.Process(child.pid).suspend()  # it shall not clean up
    section.kill()
    child.kill()
    child.wait()
    until(lambda: gone(kernel), f"the end of {kernel}", deadline=10)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_the_death_of_a_sections_process_is_noticed_and_written_down(place, monkeypatch):
    write_notebook(
        "01_one", SHOW, f"{WORKER}\nprint('worker', worker.pid, flush=True)", f"print('hangs', flush=True)\n{HOLD}", "1"
    )
    write_notebook("02_two", "1")
    write_params("01_one:\n02_two:\n")
    child = start()
    pids = [pid_of("kernel"), pid_of("worker")]
    log = Path("outputs/demo/01_one.running.ipynb")
    until(lambda: '"status": "running"' in log.read_text().partition('"metadata": {\n  "kernelspec"')[0], "a saved log")
    (section,) = psutil.Process(child.pid).children()
    section.kill()
    assert child.wait(60) == 1
    until(lambda: all(map(gone, pids)), f"the end of {pids}", deadline=10)
    assert statuses("01_one") == ("killed", ["killed", *5 * ["completed"], "killed", "not run"])
    assert "process was killed by SIGKILL" in nbformat.read("outputs/demo/01_one.ipynb", 4).cells[0].source
    assert [section["status"] for section in record()["sections"].values()] == ["killed", "not run"]
    assert "killed" in Path("outputs/demo/index.html").read_text()


@pytest.mark.slow
def test_the_same_run_started_twice_waits_for_its_turn(place):
    diary = "with open('diary', 'a') as diary: diary.write('{} ')"
    wait = "while not pathlib.Path('go').exists(): time.sleep(0.05)"
    write_notebook("01_one", SHOW, diary.format("begin"), wait, diary.format("end"))
    write_params("01_one:\n")
    first = start(output="first.txt")
    until(lambda: Path("diary").exists(), "the first to begin")
    second = start(output="second.txt")
    until(lambda: "waiting" in terminal("second.txt"), "the second to wait")
    assert f"process {first.pid} on" in terminal("second.txt")
    Path("go").touch()
    assert [first.wait(120), second.wait(120)] == [0, 0]
    assert Path("diary").read_text() == "begin end begin end "
    assert record()["pid"] == second.pid and record()["status"] == "completed"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="only root on Linux can mount a small disk")
def test_a_full_disk_costs_no_log(place, capsys):
    disk = place / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", disk], check=False).returncode:
        pytest.skip("no disk can be mounted here")
    try:
        fill = """
        if full:
            import base64, os
            from IPython.display import display
            display({"image/png": base64.b64encode(os.urandom(300_000)).decode()}, raw=True)
            with open(f"{run}/filler", "wb", buffering=0) as file:
                while True:
                    try: file.write(bytes(4096))
                    except OSError: break
        """
        write_notebook(
            "01_one", "\n".join(line[8:] for line in fill.splitlines()), parameters=f"full = False  # ?\n{RUN}"
        )
        write_params("01_one:\n")
        command = ["params/demo.yaml", "-p", f"run={disk}/run"]
        assert batch.main(command) == 0
        before = {name: (disk / "run" / name).read_bytes() for name in ("01_one.ipynb", "index.html")}
        capsys.readouterr()
        assert batch.main([*command, "-p", "full=true"]) == 1
        told = capsys.readouterr()
        assert "cannot save the log" in told.out and "No space left on device" in told.out
        assert str(disk) in told.out and "MiB left" in told.out and "Traceback" not in told.err
        assert (disk / "run/01_one.ipynb").read_bytes() == before["01_one.ipynb"]
        assert "</html>" in (disk / "run/index.html").read_text()
        (disk / "run/filler").unlink()
        assert batch.main(command) == 0
        assert statuses("01_one", disk / "run")[0] == "completed"
        assert not list((disk / "run").glob(".partial*"))
    finally:
        subprocess.run(["umount", "-l", disk], check=True)
