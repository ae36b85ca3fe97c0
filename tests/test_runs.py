import json
import os
import platform
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from test_page import HOSTILE, Page, record

from lib import runs

NAME = HOSTILE[:-1].replace("/", "")  # what a folder may be called


def add(outputs, name, parameters=None, **changes):
    sections = record()["sections"]
    for section, given in (parameters or {}).items():
        sections[section] = sections["01_one"] | {"parameters": given}
    (outputs / name).mkdir(parents=True)
    (outputs / name / "run.json").write_text(json.dumps(record(sections=sections, **changes)))
    (outputs / name / "index.html").write_text("")
    return outputs / name


def page_of(outputs):
    runs.write(outputs)
    return Page((outputs / "index.html").read_text(encoding="utf-8"))


def test_every_run_is_in_the_table_the_latest_first(tmp_path):
    add(tmp_path, "early", started="2026-01-01T00:00:00+00:00")
    late = add(tmp_path, "late", started="2026-02-01T00:00:00+02:00")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "data.bin").write_bytes(b"\0")
    (late / "11_train_vae").mkdir()
    (late / "11_train_vae" / "scores.csv").write_text("item,iou,f_05\na,0.5,x\nb,0.25,\n")
    rows = [
        "a,done,reconstruction,0.5,1",
        "b,quarantined,,,",
        "c,done,generation,0.1,0.25",
        "d,done,generation,0.1,0.5",
    ]
    (late / "08_evaluate.csv").write_text("\n".join(["item,status,task,iou,f_0.05", *rows]))
    found = page_of(tmp_path)
    assert found.open == [] and "2 of them" in found.text and "foreign" not in found.text
    assert found.text.index("late") < found.text.index("early")
    assert [tag["href"] for tag in found.all("a")] == ["late/index.html", "early/index.html"]
    assert "late Is it so?" in found.text and "timed out 2 quarantined 4.2 min 0.375 0.5 1 0.375" in found.text
    heads = ["11: overlap", "08: overlap, decoded", "08: F(0.05), decoded", "08: F(0.05), generated"]
    assert f"Time {' '.join(heads)} Unlike" in found.text, "no column for what no run has"


def test_it_tells_which_parameters_differ(tmp_path):
    for name, steps, depth in (("a", 900, 6), ("b", 900, 6), ("c", 1500, 6)):
        given = {"dataset": "data", "seed": 0, "run": f"outputs/{name}"}
        add(tmp_path, name, {"06_train": given | {"steps": steps}, "07_make": given | {"steps": 25, "depth": depth}})
    found, _ = runs.collect(tmp_path)
    assert runs.differing(found) == {"06_train.steps": {"a": "900", "b": "900", "c": "1500"}}
    assert runs.unusual(runs.differing(found), "c") == ["06_train.steps = 1500"]
    assert runs.unusual(runs.differing(found), "a") == []
    add(tmp_path, "d", {"06_train": {"dataset": HOSTILE, "steps": 900}, "07_make": {"dataset": HOSTILE, "steps": 25}})
    found, _ = runs.collect(tmp_path)
    assert runs.differing(found)["dataset"]["d"] == json.dumps(HOSTILE), "what is the same in all sections is told once"
    assert "06_train.steps = 1500" in page_of(tmp_path).text


BROKEN = ["", "{", "[]", "3", '{"sections": {}}', '{"sections": [], "status": "x"}', "\0", '{"sections": {"a": 3}}']


@pytest.mark.parametrize("content", BROKEN)
def test_a_broken_record_is_named_and_costs_nothing(tmp_path, content):
    add(tmp_path, "whole")
    folder = add(tmp_path, NAME)
    (folder / "run.json").write_text(content)
    found = page_of(tmp_path)
    assert "1 of them" in found.text and "Records that cannot be read" in found.text and NAME in found.text
    assert "onerror" not in {key for _, attributes in found.tags for key in attributes}


def test_hostile_names_lead_to_their_folder(tmp_path):
    add(tmp_path, "a#b %41?<i>", {"01_one": {"steps": HOSTILE}}, question=HOSTILE)
    (link,) = page_of(tmp_path).all("a")
    assert link["href"] == "a%23b%20%2541%3F%3Ci%3E/index.html"


def test_nothing_yet_is_a_page_too(tmp_path):
    assert "None yet" in page_of(tmp_path).text


def test_a_run_that_died_without_a_word_is_not_running(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    add(tmp_path, "dead", status="running", host=platform.node(), pid=child.pid)
    add(tmp_path, "alive", status="running", host=platform.node(), pid=os.getpid())
    add(tmp_path, "elsewhere", status="running", host="another machine", pid=child.pid)
    found, _ = runs.collect(tmp_path)
    assert {run["name"]: run["status"] for run in found} == {
        "dead": "killed",
        "alive": "running",
        "elsewhere": "running",
    }


def test_only_the_outputs_here_get_a_table(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    inside, outside = add(tmp_path / "outputs", "demo"), add(tmp_path / "home", "demo")
    runs.refresh(outside)
    assert not (tmp_path / "home" / "index.html").exists()
    runs.refresh(inside)
    assert "demo" in Page((tmp_path / "outputs" / "index.html").read_text()).text


def test_trouble_with_the_table_costs_no_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    inside = add(tmp_path / "outputs", "demo")
    (tmp_path / "outputs" / "index.html").mkdir()
    runs.refresh(inside)
    assert "no table of runs" in capsys.readouterr().err


def test_two_that_write_at_once_leave_a_whole_page(tmp_path):
    for number in range(20):
        add(tmp_path / "outputs", f"run_{number}")
    code = "from pathlib import Path; from lib import runs\nfor _ in range(10): runs.refresh(Path('outputs/run_3'))"
    where = os.environ | {"PYTHONPATH": str(Path(runs.__file__).parents[1])}
    with ThreadPoolExecutor() as threads:
        command = [sys.executable, "-c", code]
        ends = list(threads.map(lambda _: subprocess.run(command, cwd=tmp_path, env=where, check=True), range(3)))
    assert len(ends) == 3
    assert "20 of them" in Page((tmp_path / "outputs" / "index.html").read_text()).text
    assert not list((tmp_path / "outputs").glob(".partial*"))
