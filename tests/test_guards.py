"""Guards by themselves; what they do to workers that crash, hang and eat memory is tests/test_pool.py's."""

from lib.dataset import Item
from lib.guards import Guards
from lib.stop import Stop

ITEMS = [Item(name, "", "", "", 32) for name in ("a", "b", "c")]


def job(tmp_path) -> dict:
    return {"run": str(tmp_path), "stage": "01_shout", "dataset": str(tmp_path / "tree"), "timeout": 1, "memory": 1}


def test_who_is_asked_to_stop_starts_nothing(tmp_path):
    with Stop(60) as stop, Guards(job(tmp_path), stop, 2) as guards:
        stop.because("a test")
        assert guards.do(ITEMS) == [(item, {"status": "not run"}) for item in ITEMS]
        assert list(guards.map(ITEMS)) == [] and guards.workers == []


def test_logs_that_say_nothing_go_and_others_stay(tmp_path):
    ours, others = tmp_path / "01_shout_worker_1.log", tmp_path / "02_sing_worker_1.log"
    for log in (ours, others):
        log.write_text("of an earlier run")
    with Stop(60) as stop, Guards(job(tmp_path), stop, 1):
        assert not ours.exists() and others.exists()
        ours.write_text("a worker's last words")
        (tmp_path / "01_shout_worker_2.log").touch()
    assert sorted(path.name for path in tmp_path.glob("*.log")) == [ours.name, others.name]
