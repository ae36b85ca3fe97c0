"""Steps in their order, whose seconds add up to the whole."""

import time

import pytest

from lib.clock import Clock


def test_the_steps_add_up(monkeypatch):
    now = iter([10.0, 10.5, 12.75, 12.75])
    monkeypatch.setattr(time, "perf_counter", lambda: next(now))
    clock = Clock()
    for step in ("read", "sample", "write"):
        clock(step)
    assert clock.seconds == pytest.approx({"seconds_read": 0.5, "seconds_sample": 2.25, "seconds_write": 0})
