import base64
import errno
import os
import random

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from lib import log

CUT = "all of it is in 01_x.log"


def notebook(*outputs):
    """A log with one cell for each list of outputs, begun."""
    nb = new_notebook(cells=[new_markdown_cell("# A title"), *(new_code_cell("pass") for _ in outputs)])
    nb.metadata.papermill = {}
    log.begin(nb)
    for cell, outs in zip(nb.cells[1:], outputs, strict=True):
        cell.outputs = outs
    return nb


def stream(text, name="stdout"):
    return new_output("stream", name=name, text=text)


def display(**data):
    return new_output("display_data", {key.replace("_", "/", 1): value for key, value in data.items()})


def noise(size, seed=0):
    return base64.b64encode(random.Random(seed).randbytes(size)).decode()


def widget(**data):
    return new_output(
        "display_data", {log.WIDGET: {"model_id": "1"}, **{k.replace("_", "/"): v for k, v in data.items()}}
    )


def statuses(nb):
    return [cell.metadata.papermill.status for cell in nb.cells]


# -- how it ended -----------------------------------------------------------------------------------------------------


def test_the_log_says_which_cell_ended_it_and_which_never_ran(tmp_path):
    nb = notebook([], [], [])
    for cell in nb.cells[:2]:
        log.begin_cell(cell)
        log.finish_cell(cell, "completed")
    log.begin_cell(nb.cells[2])
    log.finish(nb, "killed", "the kernel was killed by SIGKILL in <b>cell</b> 3")
    log.save(nb, tmp_path / "01_x.ipynb", CUT)
    nb = nbformat.read(tmp_path / "01_x.ipynb", 4)
    assert statuses(nb) == ["killed", "completed", "completed", "killed", "not run"]
    assert "SIGKILL" in nb.cells[0].source and "&lt;b&gt;cell" in nb.cells[0].source
    assert nb.metadata.papermill.status == "killed" and nb.metadata.papermill.exception is True
    assert nb.metadata.papermill.duration >= 0 and nb.cells[3].metadata.papermill.duration >= 0
    assert nb.cells[2].metadata.papermill.exception is None and nb.cells[4].metadata.papermill.end_time is None


def test_a_completed_log_has_no_banner():
    nb = notebook([])
    log.finish(nb, "completed", "")
    assert len(nb.cells) == 2 and nb.metadata.papermill.exception is None


def test_the_log_of_a_process_that_died_is_finished_by_another(tmp_path):
    target = tmp_path / "01_x.ipynb"
    nb = notebook([stream("so far")], [])
    log.begin_cell(nb.cells[1])
    log.save(nb, log.running(target), CUT)
    log.settle(target, "killed", "the section's process was killed by SIGKILL")
    nb = nbformat.read(target, 4)
    assert statuses(nb) == ["killed", "not run", "killed", "not run"]
    assert nb.cells[2].outputs[0].text == "so far" and "Last saved at" in nb.metadata.papermill.reason
    assert os.listdir(tmp_path) == ["01_x.ipynb"]
    before = target.read_bytes()
    log.settle(target, "failed", "nothing is left to settle")
    assert target.read_bytes() == before


# -- small ------------------------------------------------------------------------------------------------------------


def test_widgets_leave_their_fallback_and_nothing_else():
    nb = notebook(
        [
            widget(text_plain="IntSlider(value=3)"),
            widget(),
            widget(text_plain="  0%|          | 0/20 [00:00<?, ?it/s]"),
        ],
        [widget(text_plain="VBox(children=(\n  A(),\n))", image_png="AAAA"), widget(text_plain="three of five chosen")],
        [new_output("display_data", {"text/plain": "Frame(a=1)", "image/png": "AAAA"})],
    )
    nb.metadata.widgets = {"application/vnd.jupyter.widget-state+json": {"state": {}}}
    slim = log.slim(nb, CUT)
    assert "widgets" not in slim.metadata and log.WIDGET not in nbformat.writes(slim)
    assert slim.cells[1].outputs == []
    assert [sorted(output.data) for output in slim.cells[2].outputs] == [["image/png", "text/plain"], ["text/plain"]]
    assert sorted(slim.cells[3].outputs[0].data) == ["image/png", "text/plain"]
    assert len(nb.cells[1].outputs) == 3 and "widgets" in nb.metadata  # a copy was stripped


def test_long_texts_are_cut_in_the_middle_and_say_where_the_rest_is():
    text = "".join(f"line {i}\n" for i in range(50_000))
    slim = log.slim(notebook([stream(text)], [display(text_plain=text)], [stream("short")]), CUT)
    for cut in (slim.cells[1].outputs[0].text, slim.cells[2].outputs[0].data["text/plain"]):
        assert cut.startswith("line 0\nline 1\n") and cut.endswith("line 49998\nline 49999\n")
        assert cut.count(CUT) == 1 and len(cut) < log.TEXT + 200
        assert log.shorten(cut + text, log.TEXT, CUT).count(CUT) == 1  # cut again as more arrives: one line says so
    assert slim.cells[3].outputs[0].text == "short"


def test_a_traceback_of_a_deep_recursion_is_cut_too():
    error = new_output("error", ename="RecursionError", evalue="deep", traceback=["frame " * 100] * 3000)
    slim = log.slim(notebook([error]), CUT)
    assert len("\n".join(slim.cells[1].outputs[0].traceback)) < log.TEXT + 200
    nbformat.validate(slim)


def test_a_bar_that_overwrites_itself_keeps_its_last_state():
    assert log.shorten("a\n 0%\r 50%\r100%\nb\n", 100, CUT) == "a\n100%\nb\n"


def test_a_log_stays_below_the_limit_by_many_texts_first_and_large_pictures_last():
    many = [[stream(f"{i} " * 20_000)] for i in range(60)]  # 60 outputs, each of them allowed
    large, small = noise(1_500_000, 1), noise(200_000, 2)
    pictures = [display(image_png=small, text_plain="<Figure 1>"), display(image_png=large, text_plain="<Figure 2>")]
    slim = log.slim(notebook(*many, pictures), CUT)
    assert len(nbformat.writes(slim).encode()) <= log.LIMIT
    kept, dropped = slim.cells[-1].outputs
    assert kept.data["image/png"] == small
    assert "image/png" not in dropped.data and "image/png of 2.0 MB left out" in dropped.data["text/plain"]
    assert dropped.data["text/plain"].startswith("<Figure 2>")
    nbformat.validate(slim)


def test_pictures_survive_if_cutting_texts_is_enough():
    texts = [[stream("x" * 80_000)] for _ in range(30)]
    slim = log.slim(notebook(*texts, [display(image_png=noise(900_000))]), CUT)
    assert len(nbformat.writes(slim).encode()) <= log.LIMIT
    assert "image/png" in slim.cells[-1].outputs[0].data


# -- on disk ----------------------------------------------------------------------------------------------------------


def test_a_name_with_half_a_letter_can_be_logged(tmp_path):
    log.save(notebook([stream("mesh \udce9.obj")]), tmp_path / "01_x.ipynb", CUT)
    assert nbformat.read(tmp_path / "01_x.ipynb", 4).cells[1].outputs[0].text == "mesh ?.obj"


def test_replace_is_tried_again_while_another_program_has_the_log_open(tmp_path, monkeypatch):
    target, refused, replace = tmp_path / "01_x.ipynb", [], os.replace

    def busy(source, to):
        if len(refused) < 3:
            refused.append(to)
            raise PermissionError(errno.EACCES, "being used by another process", str(to))
        replace(source, to)

    monkeypatch.setattr(os, "replace", busy)
    log.save(notebook([]), target, CUT)
    assert len(refused) == 3 and nbformat.read(target, 4).cells


def test_a_full_disk_costs_neither_the_old_log_nor_the_reason(tmp_path, monkeypatch):
    target = tmp_path / "01_x.ipynb"
    log.save(notebook([stream("good")]), target, CUT)
    before = target.read_bytes()

    def full(source, to):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match=r"01_x\.ipynb: No space left on device; its disk has .* MiB left"):
        log.replace_running(notebook([stream("new")]), target, CUT)
    assert target.read_bytes() == before and os.listdir(tmp_path) == ["01_x.ipynb"]
