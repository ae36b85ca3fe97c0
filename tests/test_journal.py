import numpy as np
import pytest
from PIL import Image

from lib import journal
from lib.journal import Journal, Watch, read_curve


def test_what_is_written_is_read_to_the_bit_and_what_comes_later_is_struck(tmp_path):
    rows = [{"step": step, "loss": step / 3} for step in range(1, 6)]
    with Journal(tmp_path, 0, True) as book:
        for row in rows:
            book.curve(row)
    assert read_curve(tmp_path) == rows
    with Journal(tmp_path, 3, True):
        assert read_curve(tmp_path) == rows[:3]
    with Journal(tmp_path, 0, True):
        assert read_curve(tmp_path) == []


def test_tensorboard_reads_the_same_numbers(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with Journal(tmp_path, 0, True) as book:
        for step in (1, 2, 3):
            book.curve({"step": step, "loss": step / 4})
    with Journal(tmp_path, 1, True) as book:  # gone on from step 1: what came later is purged
        book.curve({"step": 2, "loss": 9.0})
    events = EventAccumulator(str(tmp_path / "events")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(1, 0.25), (2, 9.0)]


def test_a_line_that_a_kill_cut_short_is_no_row(tmp_path):
    (tmp_path / "curve.csv").write_text("step,loss,rate\n1,0.5,1.0\n2,0.25")
    assert read_curve(tmp_path) == [{"step": 1, "loss": 0.5, "rate": 1.0}]


def test_a_validation_is_numbers_and_pictures(tmp_path):
    picture = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    with Journal(tmp_path, 0, True) as book:
        book.validation(7, {"iou": 0.5, "shapes": picture})
        assert book.has(7) and not book.has(6)
    assert read_curve(tmp_path, "validation") == [{"step": 7, "iou": 0.5}]
    assert (np.asarray(Image.open(tmp_path / "pictures" / "shapes_000000007.png")) == picture).all()
    assert "iou 0.5" in (tmp_path / "train.log").read_text()


def test_only_the_first_process_writes(tmp_path, capsys):
    with Journal(tmp_path, 0, False) as book:
        book.curve({"step": 1, "loss": 1.0})
        book.progress(1, 2, 1.0, 8, 0.0)
    assert not list(tmp_path.iterdir()) and not capsys.readouterr().out


def test_progress_is_a_line_of_plain_text(tmp_path, capsys):
    with Journal(tmp_path / "11_train_vae", 0, True) as book:
        book.curve({"step": 500, "loss": 0.125})
        book.progress(500, 2000, 10.0, 8, 0.004)
    line = "11_train_vae: step 500/2,000  loss 0.125  10 steps/s  80 samples/s  waiting 0.4%  2 min left"
    assert capsys.readouterr().out == line + "\n"


def test_the_pace_is_that_under_way(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(journal.time, "monotonic", lambda: now[0])
    watch = Watch(start=10, before=50.0)
    assert watch.pace == 5.0  # of earlier sessions, while there is none in this one
    for step in watch.waiting(iter(range(5))):
        now[0] += 2.0 if step else 90.0  # the first one is compiled
        with watch.pause():
            now[0] += 30.0
    assert watch.pace == pytest.approx(2.0)


def test_a_watch_counts_waiting_and_not_pauses(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(journal.time, "monotonic", lambda: now[0])

    def slow():
        for k in range(3):
            now[0] += 1.0
            yield k

    watch = Watch(start=10, before=50.0)
    for _ in watch.waiting(slow()):
        now[0] += 4.0
    assert watch.waited == 3 and watch.share == pytest.approx(0.2) and watch.seconds == 65
    with watch.pause():
        now[0] += 1000.0
    assert watch.seconds == 65 and watch.speed(13) == pytest.approx(0.2)
    assert watch.tells() and not watch.tells()
