import sys
from pathlib import Path

import pytest
import torch

from lib import checkpoint
from lib.place import Place

ALONE = Place(0, 1, torch.device("cpu"))
MADE = {"lr": 0.1, "steps": 20, "what": "toy"}


def save(folder, step, keep=2, size=100):
    checkpoint.save(folder, step, {"step": step, "made_with": MADE, "w": torch.full((size,), float(step))}, keep, ALONE)


def names(folder):
    return sorted(path.name for path in (folder / "resume").iterdir())


def test_the_last_ones_are_kept_and_the_newest_is_gone_on_from(tmp_path):
    assert checkpoint.settle(tmp_path, MADE, False, ALONE) is None
    for step in (5, 10, 15):
        save(tmp_path, step)
    assert names(tmp_path) == ["step_000000010.pt", "step_000000015.pt"]
    assert (checkpoint.settle(tmp_path, MADE | {"steps": 99}, False, ALONE)["w"] == 15).all()


def test_a_damaged_one_falls_back_to_the_one_before(tmp_path, capsys):
    save(tmp_path, 5)
    save(tmp_path, 10)
    newest = tmp_path / "resume" / "step_000000010.pt"
    for keep in (newest.stat().st_size - 1, newest.stat().st_size // 2, 0):
        newest.write_bytes(newest.read_bytes()[:keep])
        assert checkpoint.latest(tmp_path, ALONE)["step"] == 5
        assert f"{newest} cannot be read" in capsys.readouterr().out


def test_it_is_data_and_never_code(tmp_path, capsys):
    (tmp_path / "resume").mkdir()
    torch.save({"step": 5, "trap": Path("x")}, tmp_path / "resume" / "step_000000005.pt")  # a class torch does not know
    assert checkpoint.latest(tmp_path, ALONE) is None
    assert "UnpicklingError" in capsys.readouterr().out


@pytest.mark.skipif(sys.platform == "win32", reason="no limits on a file's size there")
def test_a_full_disk_costs_no_checkpoint(tmp_path):
    import resource

    save(tmp_path, 5, keep=1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
    try:
        with pytest.raises(OSError, match=r"step_000000010.pt cannot be written.*make room"):
            save(tmp_path, 10, keep=1, size=10_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert names(tmp_path) == ["step_000000005.pt"] and checkpoint.latest(tmp_path, ALONE)["step"] == 5


def test_what_was_made_otherwise_is_refused_or_replaced(tmp_path):
    save(tmp_path, 5)
    (tmp_path / "curve.csv").write_text("step\n5\n")
    (tmp_path / "mine.txt").write_text("a person's")
    for changed, words in (
        ({"lr": 0.2}, "lr was 0.1 and is 0.2"),
        ({"new": 1}, "new was None and is 1"),
        ({"steps": 4}, "at step 5 already, steps = 4"),
    ):
        with pytest.raises(ValueError, match=words) as told:
            checkpoint.settle(tmp_path, MADE | changed, False, ALONE)
        assert str(tmp_path) in str(told.value) and "fresh = true" in str(told.value)
    assert checkpoint.settle(tmp_path, MADE, True, ALONE)["step"] == 5  # as asked: nothing to replace
    assert checkpoint.settle(tmp_path, MADE | {"lr": 0.2}, True, ALONE) is None
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_finished_model_without_checkpoints_is_not_trained_over(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    with pytest.raises(ValueError, match="no checkpoint to go on from"):
        checkpoint.settle(tmp_path, MADE, False, ALONE)
    assert (tmp_path / "model.safetensors").read_bytes() == b"weights"


def test_what_a_killed_writer_left_goes_when_the_folder_is_claimed(tmp_path):
    (tmp_path / "resume").mkdir()
    for half in (tmp_path / ".partial-1-config.json", tmp_path / "resume" / ".partial-1-step_000000005.pt"):
        half.write_text("half")
    save(tmp_path, 5)
    with checkpoint.claim(tmp_path):
        assert names(tmp_path) == ["step_000000005.pt"]
        assert not list(tmp_path.glob(".partial*"))
